//! placeholder
pub mod crd;
