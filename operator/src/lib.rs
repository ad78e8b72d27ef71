//! placeholder
pub mod cluster;
pub mod crd;
