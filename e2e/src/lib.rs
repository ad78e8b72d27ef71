//! What the end-to-end tests and the developer commands stand on: real programs, built and run here.

pub mod image;
pub mod kubernetes;
