//! Judges of a run. Each says what was broken, or nothing.

pub mod agreement;
pub mod auth;
pub mod durability;
pub mod fencing;
pub mod linearizability;
pub mod log;
pub mod model;
pub mod watch;

#[cfg(test)]
mod tests;
