//! Tests of the whole room: what etcd answers, and what members agree on.

mod alarms;
mod auth;
mod cluster;
mod keys;
mod leases;
mod member;
mod memory;
mod model;
mod state_files;
mod txns;
