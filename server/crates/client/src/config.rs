//! What a client is told: where the servers are and how to talk to them.

use std::path::PathBuf;
use std::time::Duration;

/// Settings of a client. Defaults are clientv3's.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Servers as `host:port`, `http://host:port`, `https://host:port` or `unix:path`. The scheme of
    /// the first one decides for all: `https` needs TLS, `http` never uses it, no scheme uses it if
    /// [`Config::tls`] is set.
    pub endpoints: Vec<String>,
    /// Bounds fetching a token when the client is made; not the establishing of connections, which
    /// the deadline of each call bounds.
    pub dial_timeout: Option<Duration>,
    /// After this time without traffic on a busy connection the server is pinged. Raised to ten
    /// seconds, because servers drop clients that ping more often (grpc-go does the same).
    pub keepalive_time: Option<Duration>,
    /// A ping unanswered for this long closes the connection.
    pub keepalive_timeout: Option<Duration>,
    /// Whether a connection without calls is pinged too.
    pub keepalive_without_calls: bool,
    /// TLS settings; see [`Config::endpoints`] for when they are used.
    pub tls: Option<TlsOptions>,
    /// Who the client is.
    pub credentials: Option<Credentials>,
    /// Largest request in bytes, 2 MiB by default.
    pub max_request_bytes: Option<usize>,
    /// Largest response in bytes, 2 GiB by default.
    pub max_response_bytes: Option<usize>,
}

/// Why a certificate, as it is in its file, must not be shown; nothing if it may be.
pub type Refused = fn(&[u8]) -> Option<String>;

/// TLS settings, by file: each connection takes the files as they are when it begins.
#[derive(Clone, Debug, Default)]
pub struct TlsOptions {
    /// Trusted authorities; without it those that the platform's well-known files list.
    pub ca_file: Option<PathBuf>,
    /// Client certificate; needs `key_file`.
    pub certificate_file: Option<PathBuf>,
    /// Private key of the client certificate.
    pub key_file: Option<PathBuf>,
    /// Name to expect in the server's certificate instead of the endpoint's host.
    pub server_name: Option<String>,
    /// Accept any certificate. For tests.
    pub insecure_skip_verify: bool,
    /// What else is asked of the client certificate's file, whenever it is read.
    pub refused: Option<Refused>,
}

/// How a client proves who it is.
#[derive(Clone, Debug)]
pub enum Credentials {
    /// A name and password, exchanged for a token.
    Password {
        /// The user.
        username: String,
        /// Its password.
        password: String,
    },
    /// A token made elsewhere, never refreshed.
    Token(String),
}
