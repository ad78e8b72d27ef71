//! What strangers send, as functions of bytes for the room `fuzz`: none of them may panic.

/// The name of an RPC, as in `/etcdserverpb.KV/Put`, on further lines headers, and after an empty one a
/// body for it.
///
/// # Panics
/// When what the gateway understood cannot be written as JSON again.
pub fn gateway(input: &[u8]) {
    crate::gateway::fuzz::request(input);
}

/// A token as it stands, and a token of which only the claims come from a stranger.
///
/// # Panics
/// When a token that this server did not sign is believed.
pub fn token(input: &[u8]) {
    crate::auth::fuzz::token(input);
}

/// A configuration file, and a command line with one argument per line.
pub fn configuration(input: &[u8]) {
    crate::config::fuzz::configuration(input);
}

/// The value of `--initial-cluster`.
///
/// # Panics
/// When a URL is another after it was written and read.
pub fn initial_cluster(input: &[u8]) {
    crate::config::fuzz::initial_cluster(input);
}
