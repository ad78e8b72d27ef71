//! Judges of a run. Each says what was broken, or nothing.

pub mod agreement;
pub mod durability;
pub mod linearizability;
pub mod model;
pub mod watch;

#[cfg(test)]
mod tests;
