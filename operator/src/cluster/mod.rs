//! placeholder
pub mod build;
pub mod invariants;
pub mod model;
pub mod mutation;
pub mod observe;
pub mod plan;
pub mod security;
#[cfg(test)]
mod simulation;
pub mod validate;
