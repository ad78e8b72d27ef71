//! `etcdutl`: work on files of a server that is not running.
//!
//! Snapshot files are etcd's own format on both sides, so they are read the same whether Go etcd or
//! Keelson wrote them: [`snapshot_file`] opens one and checks its digest, [`schema`] gives its
//! content meaning, [`status`] sums it up, [`restore`] makes a data directory of it, from which
//! Keelson's server starts; [`import`] does the same from a data directory that Go etcd has left.
//! [`hash_kv`] hashes a file's history, [`data_dir`] works on our own directories. [`print`](mod@print) writes what Go's `etcdutl` 3.7 writes, byte for byte,
//! in each of its formats.

pub mod data_dir;
pub mod go_wal;
pub mod hash_kv;
pub mod import;
pub mod print;
mod request_v2;
pub mod restore;
pub mod schema;
pub mod snapshot_file;
pub mod status;
