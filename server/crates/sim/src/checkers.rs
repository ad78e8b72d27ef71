//! Judges of a run by what only the simulator knows of it: the log and the members' states. Those of
//! what clients saw are in room `history`. Each says what was broken, or nothing.

pub mod agreement;
pub mod auth;
pub mod durability;
pub mod fencing;
pub mod log;
