//! TLS, origins, and authentication.

use super::{
    Flag,
    Group::{Auth, Security},
    Kind,
};

const NO_AUTO_TLS: &str =
    "generating certificates is not supported yet; give certificate and key files";

pub(super) const FLAGS: &[Flag] = &[
    Flag::new(Security, "cert-file", Kind::Text, "", "Path to the client server TLS cert file."),
    Flag::new(Security, "key-file", Kind::Text, "", "Path to the client server TLS key file."),
    Flag::new(
        Security,
        "client-cert-auth",
        Kind::Bool,
        "false",
        "Enable client cert authentication.",
    ),
    Flag::new(
        Security,
        "client-cert-file",
        Kind::Text,
        "",
        "Path to a client TLS cert file of the server itself.",
    )
    .no_effect("this server opens no client connection to itself"),
    Flag::new(
        Security,
        "client-key-file",
        Kind::Text,
        "",
        "Path to a client TLS key file of the server itself.",
    )
    .no_effect("this server opens no client connection to itself"),
    Flag::new(
        Security,
        "client-crl-file",
        Kind::Text,
        "",
        "Path to the client certificate revocation list file.",
    ),
    Flag::new(
        Security,
        "client-cert-allowed-hostname",
        Kind::Texts,
        "",
        "Comma-separated list of SAN hostnames for client cert authentication.",
    ),
    Flag::new(
        Security,
        "trusted-ca-file",
        Kind::Text,
        "",
        "Path to the client server TLS trusted CA cert file.",
    ),
    Flag::new(
        Security,
        "auto-tls",
        Kind::Bool,
        "false",
        "Client TLS using generated certificates.",
    )
    .refused(NO_AUTO_TLS),
    Flag::new(Security, "peer-cert-file", Kind::Text, "", "Path to the peer server TLS cert file."),
    Flag::new(Security, "peer-key-file", Kind::Text, "", "Path to the peer server TLS key file."),
    Flag::new(
        Security,
        "peer-client-cert-auth",
        Kind::Bool,
        "false",
        "Enable peer client cert authentication.",
    ),
    Flag::new(
        Security,
        "peer-client-cert-file",
        Kind::Text,
        "",
        "Path to an explicit peer client TLS cert file; otherwise the peer cert file is used.",
    ),
    Flag::new(
        Security,
        "peer-client-key-file",
        Kind::Text,
        "",
        "Path to an explicit peer client TLS key file; otherwise the peer key file is used.",
    ),
    Flag::new(
        Security,
        "peer-trusted-ca-file",
        Kind::Text,
        "",
        "Path to the peer server TLS trusted CA file.",
    ),
    Flag::new(
        Security,
        "peer-cert-allowed-cn",
        Kind::Texts,
        "",
        "Comma-separated list of allowed CNs for inter-peer TLS authentication.",
    ),
    Flag::new(
        Security,
        "peer-cert-allowed-hostname",
        Kind::Texts,
        "",
        "Comma-separated list of allowed SAN hostnames for inter-peer TLS authentication.",
    ),
    Flag::new(
        Security,
        "peer-auto-tls",
        Kind::Bool,
        "false",
        "Peer TLS using generated certificates.",
    )
    .refused(NO_AUTO_TLS),
    Flag::new(
        Security,
        "self-signed-cert-validity",
        Kind::Uint64,
        "1",
        "The validity period (in years) of generated certificates.",
    )
    .refused(NO_AUTO_TLS),
    Flag::new(
        Security,
        "peer-crl-file",
        Kind::Text,
        "",
        "Path to the peer certificate revocation list file.",
    ),
    Flag::new(
        Security,
        "peer-skip-client-san-verification",
        Kind::Bool,
        "false",
        "Skip verification of SAN field in client certificate for peer connections.",
    ),
    Flag::new(
        Security,
        "cipher-suites",
        Kind::Texts,
        "",
        "Comma-separated list of supported TLS cipher suites between client/server and peers (empty means all).",
    ),
    Flag::new(
        Security,
        "cors",
        Kind::Origins,
        "*",
        "Comma-separated whitelist of origins for CORS, or cross-origin resource sharing, (empty or * means allow all).",
    ),
    Flag::new(
        Security,
        "host-whitelist",
        Kind::Texts,
        "*",
        "Acceptable hostnames from HTTP client requests, if server is not secure (empty or * means allow all).",
    ),
    Flag::new(
        Security,
        "tls-min-version",
        Kind::Text,
        "TLS1.2",
        "Minimum TLS version supported by etcd. Possible values: TLS1.2, TLS1.3.",
    ),
    Flag::new(
        Security,
        "tls-max-version",
        Kind::Text,
        "",
        "Maximum TLS version supported by etcd. Possible values: TLS1.2, TLS1.3 (empty means the newest).",
    ),
    Flag::new(
        Auth,
        "auth-token",
        Kind::Text,
        "simple",
        "Specify a v3 authentication token type and its options ('simple' or 'jwt').",
    ),
    Flag::new(
        Auth,
        "bcrypt-cost",
        Kind::Uint64,
        "10",
        "Specify the cost / strength of the bcrypt algorithm for hashing auth passwords.",
    ),
    Flag::new(
        Auth,
        "auth-token-ttl",
        Kind::Uint64,
        "300",
        "Time (in seconds) of the auth-token-ttl.",
    ),
];
