//! placeholder
pub mod build;
pub mod invariants;
pub mod model;
pub mod mutation;
pub mod plan;
#[cfg(test)]
mod simulation;
pub mod validate;
