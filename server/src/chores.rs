//! Loops that keep a cluster in order. Each uses `replica::Handle` like any client and has no door
//! of its own into the state; each ends when its token is cancelled.

pub mod attributes;
pub mod cluster_version;
pub mod compactor;
pub mod corruption;
pub mod leadership;
pub mod reachability;
pub(crate) mod space;
