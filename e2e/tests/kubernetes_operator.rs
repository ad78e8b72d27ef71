//! The operator on a real Kubernetes whose store is our etcd: every promise that needs kubelets,
//! volumes, a network and nodes that fail. What the planner decides is tested without all that, in
//! the operator itself.
//!
//! Each test has its own namespace, and several run at a time, except those that take nodes away, the one
//! that confines the operator, and the last one, `uninstall`, which removes it. `cargo xtask test --only kubernetes` runs them.

#[path = "kubernetes_operator/backup.rs"]
mod backup;
#[path = "kubernetes_operator/bootstrap.rs"]
mod bootstrap;
#[path = "kubernetes_operator/caller.rs"]
mod caller;
#[path = "kubernetes_operator/manifests.rs"]
mod manifests;
#[path = "kubernetes_operator/namespaced.rs"]
mod namespaced;
#[path = "kubernetes_operator/nodes.rs"]
mod nodes;
#[path = "kubernetes_operator/product.rs"]
mod product;
#[path = "kubernetes_operator/rollout.rs"]
mod rollout;
#[path = "kubernetes_operator/scale.rs"]
mod scale;
#[path = "kubernetes_operator/specs.rs"]
mod specs;
#[path = "kubernetes_operator/uninstall.rs"]
mod uninstall;
#[path = "kubernetes_operator/writer.rs"]
mod writer;
