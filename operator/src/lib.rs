//! placeholder
pub mod certificates;
pub mod cluster;
pub mod crd;
pub mod etcd;
pub mod kubernetes;
