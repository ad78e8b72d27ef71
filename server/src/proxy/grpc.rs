//! `etcd grpc-proxy start`: passes gRPC calls on to the members, over connections of its own.
//!
//! Every call is passed on as it came, with the caller's token; nothing is decided here. Only what
//! `--namespace` and `--advertise-client-url` ask for changes messages. Flags that ask for what is not
//! here stop the start.
//!
//! Deliberately absent so far: putting watches of one key together, remembering ranges, sharing
//! keep-alives, registering under `--resolver-prefix`. Each of them saves the members work and is no part
//! of an answer.

mod forward;
mod namespace;
mod pages;

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use client::{Client, TlsOptions};
use prometheus::Registry;
use proto::etcdserverpb::cluster_server::ClusterServer;
use proto::etcdserverpb::kv_server::KvServer;
use proto::etcdserverpb::lease_server::LeaseServer;
use proto::etcdserverpb::watch_server::WatchServer;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::config::{TlsConfig, TlsVersion};
use crate::listen::{
    ConnectionSettings, Endpoint, ListenOptions, Listeners, Purpose, RpcThread, ServiceSet,
    Services,
};
use crate::ops::calls::CallMetrics;
use crate::ops::{notify, register_process, signals::Terminations};
use crate::tls::{ServerTls, with_self_signed};
use crate::urls::Url;

use super::command::Values;
use super::{Refusal, endpoints};

use forward::{Elections, Forward, Keys, Leases, Locks, Members, Upkeep, Users, Watches};
use namespace::Namespace;

/// How long calls under way may take once the proxy stops.
const DRAIN_GRACE: Duration = Duration::from_secs(5);
/// After which a call is slow, as the server's default has it.
const SLOW_CALL: Duration = Duration::from_millis(300);

/// Flags that are known and ask for what is not here.
const REFUSED: [(&str, &str); 7] = [
    ("resolver-prefix", "registering the proxy is not supported yet"),
    ("endpoints-auto-sync-interval", "the members are those of --endpoints or --discovery-srv"),
    ("experimental-leasing-prefix", "leasing is not supported yet"),
    ("experimental-serializable-ordering", "ordering is not supported yet"),
    ("experimental-enable-grpc-logging", "logging of calls is not supported yet"),
    ("enable-pprof", "profiles of the proxy are not supported yet"),
    ("permit-without-stream", "connections without calls are not pinged"),
];

/// Runs the proxy until a signal ends it.
pub(super) fn start(values: &Values) -> Result<(), Refusal> {
    check(values)?;
    // The provider is the same for all of TLS; a second installation is refused and changes nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let discovered = endpoints::discover(values, "cacert")?;
    let endpoints = match discovered.is_empty() {
        true => values.list("endpoints"),
        false => discovered.iter().map(client::ClientTarget::endpoint).collect(),
    };
    let complained = |error: Box<dyn Error>| Refusal::Complained(error.to_string());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| complained(error.into()))?;
    runtime.block_on(run(values, endpoints)).map_err(complained)
}

/// etcd's `checkArgs`, and what is not here.
fn check(values: &Values) -> Result<(), Refusal> {
    let refuse = |text: String| Err(Refusal::Complained(text));
    let (prefix, ttl) = (values.text("resolver-prefix"), values.number("resolver-ttl"));
    if !prefix.is_empty() && ttl < 1 {
        return refuse(format!("invalid resolver-ttl {ttl}"));
    }
    if prefix.is_empty() && ttl > 0 {
        return refuse(format!("invalid resolver-prefix {prefix:?}"));
    }
    if values.is_true("auto-tls") && values.number("self-signed-cert-validity") == 0 {
        return refuse("selfSignedCertValidity is invalid,it should be greater than 0".to_owned());
    }
    let (least, most) = (version(values, "tls-min-version")?, version(values, "tls-max-version")?);
    if most.is_some_and(|most| least.unwrap_or(TlsVersion::Tls12) > most) {
        return refuse("min version (TLS1.3) is greater than max version (TLS1.2)".to_owned());
    }
    if least == Some(TlsVersion::Tls13) && !values.list("listen-cipher-suites").is_empty() {
        let text = "cipher suites cannot be configured when only TLS1.3 is enabled";
        return refuse(text.to_owned());
    }
    for (name, why) in REFUSED {
        let asked = match values.text(name) {
            "true" | "false" => values.is_true(name),
            _ => values.is_changed("grpc-proxy", name),
        };
        if asked {
            return refuse(format!("--{name}={}: {why}", values.text(name)));
        }
    }
    Ok(())
}

/// The version of TLS that a flag names; nothing if it leaves it open.
fn version(values: &Values, name: &str) -> Result<Option<TlsVersion>, Refusal> {
    match values.text(name) {
        "" => Ok(None),
        "TLS1.2" => Ok(Some(TlsVersion::Tls12)),
        "TLS1.3" => Ok(Some(TlsVersion::Tls13)),
        other => Err(Refusal::Complained(format!(
            "{name} is invalid: unexpected TLS version {other:?} (must be one of: TLS1.2, TLS1.3)"
        ))),
    }
}

async fn run(values: &Values, endpoints: Vec<String>) -> Result<(), Box<dyn Error>> {
    let listeners = bind(values)?;
    let config = client_config(values, endpoints)?;
    let client = Client::connect(config.clone()).await?;
    let registry = Registry::new();
    register_process(&registry)?;
    let calls = CallMetrics::register(&registry, false, SLOW_CALL)?;
    let routes = routes(values, &client, config.max_response_bytes.unwrap_or(usize::MAX));
    let http = pages::handler(Arc::new(pages::Pages { client, config, registry }));
    let clients =
        Services { grpc: Some(routes), direct: None, http: Some(http.clone()), calls: Some(calls) };
    let metrics = Services { http: Some(http), ..Services::default() };
    let services = ServiceSet::from([(Purpose::Client, clients), (Purpose::Metrics, metrics)]);
    let some = |name: &str| Some(values.duration(name)).filter(|it| !it.is_zero());
    let settings = ConnectionSettings {
        streams_max: u32::try_from(values.number("max-concurrent-streams")).unwrap_or(u32::MAX),
        keepalive_interval: some("grpc-keepalive-interval"),
        keepalive_timeout: some("grpc-keepalive-timeout"),
        keepalive_min_time: values.duration("grpc-keepalive-min-time"),
    };
    let stop = CancellationToken::new();
    let (thread, serving) = RpcThread::pair(services, settings);
    let serving = tokio::spawn(serving.run(stop.clone(), DRAIN_GRACE));
    let accepting = tokio::spawn(listeners.run(vec![thread], stop.clone()));
    if let Err(error) = notify::ready() {
        tracing::warn!(%error, "failed to notify systemd for readiness");
    }
    tracing::info!(address = values.text("listen-addr"), "started gRPC proxy");
    let signal = Terminations::listen()?.next().await;
    tracing::info!(signal, "received signal; shutting down");
    stop.cancel();
    accepting.await??;
    serving.await?;
    Ok(())
}

fn routes(values: &Values, client: &Client, response_bytes_max: usize) -> Routes {
    let forward = Forward(client.clone());
    let members = Members {
        forward: forward.clone(),
        advertised: values.text("advertise-client-url").to_owned(),
    };
    let routes = Routes::new(ClusterServer::new(members))
        .add_service(Upkeep(forward.clone()))
        .add_service(Users(forward.clone()))
        .add_service(Locks(forward.clone()))
        .add_service(Elections(forward.clone()));
    let prefix = values.text("namespace");
    if prefix.is_empty() {
        return routes
            .add_service(Keys(forward.clone()))
            .add_service(Watches(forward.clone()))
            .add_service(Leases(forward));
    }
    let namespace = Namespace::new(forward, prefix, response_bytes_max);
    routes
        .add_service(KvServer::new(namespace.clone()))
        .add_service(WatchServer::new(namespace.clone()))
        .add_service(LeaseServer::new(namespace))
}

/// How the members are reached.
fn client_config(
    values: &Values,
    endpoints: Vec<String>,
) -> Result<client::Config, Box<dyn Error>> {
    let file = |name: &str| Some(values.text(name)).filter(|it| !it.is_empty()).map(Into::into);
    let tls = TlsOptions {
        ca_file: file("cacert"),
        certificate_file: file("cert"),
        key_file: file("key"),
        server_name: None,
        insecure_skip_verify: values.is_true("insecure-skip-tls-verify"),
    };
    if tls.insecure_skip_verify {
        tracing::warn!(
            "--insecure-skip-tls-verify was given, this grpc proxy process skips authentication of \
             etcd server TLS certificates. This option should be enabled only for testing purposes."
        );
    }
    if let Some(path) = &tls.certificate_file {
        refuse_common_name(path)?;
    }
    let is_secure = tls.insecure_skip_verify
        || tls.ca_file.is_some()
        || tls.certificate_file.is_some()
        || tls.key_file.is_some();
    let some = |name: &str| Some(values.duration(name)).filter(|it| !it.is_zero());
    let bytes = |name: &str| usize::try_from(values.number(name)).ok().filter(|it| *it > 0);
    Ok(client::Config {
        endpoints,
        dial_timeout: Some(Duration::from_secs(5)),
        keepalive_time: some("dial-keepalive-time"),
        keepalive_timeout: some("dial-keepalive-timeout"),
        tls: is_secure.then_some(tls),
        credentials: None,
        max_request_bytes: bytes("max-send-bytes"),
        max_response_bytes: bytes("max-recv-bytes"),
    })
}

/// A member would take the name for that of a user, and every client of the proxy would be that user.
fn refuse_common_name(path: &Path) -> Result<(), Box<dyn Error>> {
    let file = std::fs::read(path).map_err(|error| format!("open {}: {error}", path.display()))?;
    let (_, pem) = x509_parser::pem::parse_x509_pem(&file)?;
    let certificate = pem.parse_x509()?;
    let name = certificate.subject().iter_common_name().next();
    let name = name.and_then(|name| name.as_str().ok()).unwrap_or_default();
    if name.is_empty() {
        return Ok(());
    }
    Err(format!("cert has non empty Common Name ({name}): {}", path.display()).into())
}

/// The sockets for clients and for metrics.
fn bind(values: &Values) -> Result<Listeners, Box<dyn Error>> {
    let (cert, authority) = (values.text("cert-file"), values.text("trusted-ca-file"));
    let given = !cert.is_empty() || !values.text("key-file").is_empty() || !authority.is_empty();
    let is_secure = given || values.is_true("auto-tls");
    let scheme = if is_secure { "https" } else { "http" };
    let url: Url = format!("{scheme}://{}", values.text("listen-addr")).parse()?;
    let mut config = TlsConfig {
        cert_file: cert.to_owned(),
        key_file: values.text("key-file").to_owned(),
        trusted_ca_file: authority.to_owned(),
        // Go asks every client for a certificate when it knows who signs them.
        client_cert_auth: !authority.is_empty(),
        crl_file: values.text("client-crl-file").to_owned(),
        skip_client_san_verification: true,
        cipher_suites: values.list("listen-cipher-suites"),
        min_version: version(values, "tls-min-version")?.unwrap_or(TlsVersion::Tls12),
        max_version: version(values, "tls-max-version")?.unwrap_or(TlsVersion::Tls13),
        ..TlsConfig::default()
    };
    if is_secure && !given {
        let directory = Path::new(values.text("data-dir")).join("fixtures").join("proxy");
        let years = u64::try_from(values.number("self-signed-cert-validity")).unwrap_or(0);
        config = with_self_signed(config, &directory, &[&url], years)?;
    }
    let tls = is_secure.then(|| ServerTls::new(config).map(Arc::new)).transpose()?;
    let mut listened = vec![Endpoint { url, purpose: Purpose::Client, tls: tls.clone() }];
    if !values.text("metrics-addr").is_empty() {
        let url: Url = values.text("metrics-addr").parse()?;
        listened.push(Endpoint { url, purpose: Purpose::Metrics, tls });
    }
    Ok(Listeners::bind(listened, ListenOptions::default())?)
}
