//! Rules that connect several values, and defaults that depend on where the server listens.

use std::net::UdpSocket;

use crate::urls::{Url, joined};

use super::{Config, ConfigError, ListenConfig, TlsConfig, TlsVersion, refuse};

/// etcd's `maxElectionMs`.
pub(super) const ELECTION_MILLIS_MAX: u64 = 50_000;
pub(super) const PEER_URL_DEFAULT: &str = "http://localhost:2380";
pub(super) const CLIENT_URL_DEFAULT: &str = "http://localhost:2379";
pub(super) const INITIAL_CLUSTER_DEFAULT: &str = "default=http://localhost:2380";

impl Config {
    /// etcd's `Validate`, in its order.
    pub(super) fn check(&mut self) -> Result<(), ConfigError> {
        let listen = &self.listen;
        for url in listen
            .peer_urls
            .iter()
            .chain(&listen.client_urls)
            .chain(&listen.client_http_urls)
            .chain(&listen.metrics_urls)
        {
            url.check_bind().map_err(ConfigError)?;
        }
        check_advertised(self)?;
        if self.listen.client_http_urls.is_empty() {
            self.warnings.push(
                "Running http and grpc server on single port. This is not recommended for production."
                    .to_owned(),
            );
        }
        for url in &self.listen.client_http_urls {
            if self.listen.client_urls.contains(url) {
                return refuse(format!(
                    "cannot bind both --listen-client-urls and --listen-client-http-urls on the same url {url}"
                ));
            }
        }
        if self.name == "default" {
            self.warnings.push(
                "it isn't recommended to use default name, please set a value for --name. \
                 Note that etcd might run into issue when multiple members have the same default name"
                    .to_owned(),
            );
        }
        check_tls(&self.listen, &mut self.warnings)?;
        for (kind, auto, tls) in [
            ("client", self.listen.client_auto_tls, &self.listen.client_tls),
            ("peer", self.listen.peer_auto_tls, &self.listen.peer_tls),
        ] {
            if auto && !tls.cert_file.is_empty() {
                self.warnings.push(format!("ignoring {kind} auto TLS since certs given"));
            }
        }
        if self.cluster.force_new_cluster {
            self.warnings.push("forcing a new cluster of this member alone".to_owned());
        }
        Ok(())
    }
}

fn check_advertised(config: &Config) -> Result<(), ConfigError> {
    for url in &config.cluster.advertise_peer_urls {
        url.check_advertise().map_err(|error| {
            ConfigError(format!(
                "--initial-advertise-peer-urls {:?} must be \"host:port\" ({error})",
                joined(&config.cluster.advertise_peer_urls)
            ))
        })?;
    }
    for url in &config.cluster.advertise_client_urls {
        url.check_advertise().map_err(|error| {
            ConfigError(format!(
                "--advertise-client-urls {:?} must be in the format \"host:port\", \"unix:/path/to/socket\" or \"unixs:/path/to/socket\" ({error})",
                joined(&config.cluster.advertise_client_urls)
            ))
        })?;
    }
    Ok(())
}

fn check_tls(listen: &ListenConfig, warnings: &mut Vec<String>) -> Result<(), ConfigError> {
    let secure = |urls: &[Url]| urls.iter().find(|url| url.scheme().is_secure()).cloned();
    let for_clients = secure(&listen.client_urls).or(secure(&listen.client_http_urls));
    let for_metrics = secure(&listen.metrics_urls).is_some();
    let tls = &listen.client_tls;
    if tls.cert_file.is_empty() && tls.key_file.is_empty() && !listen.client_auto_tls {
        if let Some(url) = for_clients {
            return refuse(format!(
                "TLS key/cert (--cert-file, --key-file) must be provided for client url {url} with HTTPS scheme"
            ));
        }
        if for_metrics {
            return refuse(
                "client TLS key/cert (--cert-file, --key-file) must be provided for metrics secure url",
            );
        }
    } else if for_clients.is_some() || for_metrics {
        check_tls_files("", tls)?;
    }
    let of_clients = listen.client_urls.iter().chain(&listen.client_http_urls);
    let plain = of_clients.filter(|url| !url.scheme().is_secure());
    warnings.extend(ignored_tls("http or unix", "", plain, tls, listen.client_auto_tls));
    let plain = listen.peer_urls.iter().filter(|url| url.as_str().starts_with("http://"));
    warnings.extend(ignored_tls("HTTP", "peer-", plain, &listen.peer_tls, listen.peer_auto_tls));
    check_tls_files("peer-", &listen.peer_tls)?;
    if listen.peer_tls.cert_file.is_empty()
        && !listen.peer_auto_tls
        && let Some(url) = secure(&listen.peer_urls)
    {
        let address = url.as_str().split_once("://").map_or(url.as_str(), |(_, rest)| rest);
        return refuse(format!(
            "cannot listen on TLS for {address}: KeyFile and CertFile are not presented"
        ));
    }
    if tls.min_version > tls.max_version {
        return refuse("min version (TLS1.3) is greater than max version (TLS1.2)");
    }
    if tls.min_version == TlsVersion::Tls13 && !tls.cipher_suites.is_empty() {
        return refuse("cipher suites cannot be configured when only TLS1.3 is enabled");
    }
    let about = crate::tls::about_cipher_suites(&tls.cipher_suites);
    warnings.extend(about.map_err(|error| ConfigError(error.to_string()))?);
    Ok(())
}

/// What to say of URLs without TLS although it is set up: they are open to everybody, also beside others
/// that are not (etcd: `embed.configureClientListeners`, `configurePeerListeners`).
fn ignored_tls<'u>(
    scheme: &str,
    prefix: &str,
    plain: impl Iterator<Item = &'u Url>,
    tls: &TlsConfig,
    auto: bool,
) -> Vec<String> {
    let has_pair = auto || !tls.cert_file.is_empty() || !tls.key_file.is_empty();
    let pair = "key and cert files are present; ignoring key and cert files";
    let certificates =
        format!("--{prefix}client-cert-auth is enabled; ignoring client cert auth for this URL");
    let mut told = Vec::new();
    for url in plain {
        let mut ignored = |what: &str| told.push(format!("scheme is {scheme} while {what}: {url}"));
        if has_pair {
            ignored(pair);
        }
        if tls.client_cert_auth {
            ignored(&certificates);
        }
    }
    told
}

/// The files of one side; without a pair nothing else of them is used, as in etcd.
fn check_tls_files(prefix: &str, tls: &TlsConfig) -> Result<(), ConfigError> {
    if tls.cert_file.is_empty() != tls.key_file.is_empty() {
        return refuse(format!(
            "KeyFile and CertFile must both be present[key: {}, cert: {}]",
            tls.key_file, tls.cert_file
        ));
    }
    if tls.cert_file.is_empty() {
        return Ok(());
    }
    if tls.client_cert_file.is_empty() != tls.client_key_file.is_empty() {
        return refuse(format!(
            "ClientKeyFile and ClientCertFile must both be present or both absent: key: {}, cert: {}]",
            tls.client_key_file, tls.client_cert_file
        ));
    }
    if tls.client_cert_auth && tls.trusted_ca_file.is_empty() {
        return refuse(format!(
            "--{prefix}client-cert-auth needs --{prefix}trusted-ca-file to check the certificates with"
        ));
    }
    if !tls.allowed_cns.is_empty() && !tls.allowed_hostnames.is_empty() {
        return refuse(format!(
            "AllowedCNs and AllowedHostnames are mutually exclusive (cns={:?}, hostnames={:?})",
            tls.allowed_cns, tls.allowed_hostnames
        ));
    }
    Ok(())
}

/// etcd's `UpdateDefaultClusterFromName`: a server that listens on every address and advertises
/// nothing of its own advertises the address of its default route.
pub(super) fn replace_unspecified_hosts(
    peer: &mut [Url],
    client: &mut [Url],
    listen: &ListenConfig,
) {
    for (advertised, default, bound) in [
        (peer, PEER_URL_DEFAULT, listen.peer_urls.first()),
        (client, CLIENT_URL_DEFAULT, listen.client_urls.first()),
    ] {
        let Some(bound) = bound.filter(|url| url.host() == "0.0.0.0") else { continue };
        if let ([only], Some(host)) = (advertised, default_route_address())
            && only.as_str() == default
        {
            *only = only.with_host(&host, bound.port());
        }
    }
}

/// The address that packets to far away leave from. Connecting a datagram socket sends nothing.
fn default_route_address() -> Option<String> {
    let socket = UdpSocket::bind(("0.0.0.0", 0)).ok()?;
    socket.connect(("192.0.2.1", 9)).ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_unspecified() && !address.is_loopback()).then(|| address.to_string())
}
