//! `etcd grpc-proxy start`: stands before the members and saves them work.
//!
//! Serializable ranges are answered from memory where they can be ([`keys`]), watches of one range share
//! one watch of the members ([`watches`]), renewals of leases share a stream ([`leases`]), proxies find
//! each other ([`resolver`]), and keys that are read may be held ([`leasing`]). All other calls are passed
//! on as they came, with the caller's token; the proxy lends nobody rights of its own.

mod cache;
mod forward;
mod keys;
mod leases;
mod leasing;
mod logged;
mod members;
mod metrics;
mod namespace;
mod pages;
mod resolver;
mod watches;

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use client::{Client, TlsOptions};
use prometheus::Registry;
use proto::etcdserverpb::RangeRequest;
use proto::etcdserverpb::cluster_server::ClusterServer;
use proto::etcdserverpb::kv_server::KvServer;
use proto::etcdserverpb::lease_server::LeaseServer;
use proto::etcdserverpb::watch_server::WatchServer;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::config::{TlsConfig, TlsVersion};
use crate::listen::{
    ConnectionSettings, Endpoint, ListenOptions, Listeners, Purpose, RpcThread, ServiceSet,
    Services,
};
use crate::ops::calls::CallMetrics;
use crate::ops::{notify, register_process, signals::Terminations};
use crate::tls::{ServerTls, about_cipher_suites, common_name, with_self_signed};
use crate::urls::Url;

use super::command::Values;
use super::{Refusal, endpoints};

use cache::Cache;
use forward::{Elections, Forward, Locks, Upkeep, Users};
use keys::{Keys, Order};
use leases::Leases;
use leasing::Leasing;
use logged::Logged;
use members::Members;
use metrics::ProxyMetrics;
use namespace::{Limits, Namespace};
use resolver::{Proxies, Registration};
use watches::Watches;

/// How long calls under way may take once the proxy stops.
const DRAIN_GRACE: Duration = Duration::from_secs(5);
/// After which a call is slow, as the server's default has it.
const SLOW_CALL: Duration = Duration::from_millis(300);

/// How long asking for the members may take, and a read before the proxy serves.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause before a failed read before the proxy serves is made again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// What etcd says of a revision that is gone.
const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";

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

/// etcd's `checkArgs`.
fn check(values: &Values) -> Result<(), Refusal> {
    let refuse = |text: String| Err(Refusal::Complained(text));
    let (prefix, ttl) = (values.text("resolver-prefix"), values.number("resolver-ttl"));
    if !prefix.is_empty() && ttl < 1 {
        return refuse(format!("invalid resolver-ttl {ttl}"));
    }
    if prefix.is_empty() && ttl > 0 {
        return refuse(format!("invalid resolver-prefix {prefix:?}"));
    }
    if !prefix.is_empty() && values.text("advertise-client-url").is_empty() {
        return refuse("invalid advertise-client-url \"\"".to_owned());
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
    let stop = CancellationToken::new();
    if values.is_true("experimental-serializable-ordering") {
        read_once(&client).await;
    }
    let proxies = Proxies::default();
    let registered = register(values, &client, &proxies, &stop);
    if !values.duration("endpoints-auto-sync-interval").is_zero() {
        let interval = values.duration("endpoints-auto-sync-interval");
        tokio::spawn(sync_endpoints(client.clone(), interval));
    }
    let namespace = namespace(values, &client, &config);
    let prefix = values.text("experimental-leasing-prefix");
    let leasing = (!prefix.is_empty()).then(|| Leasing::new(namespace.clone(), prefix));
    let held = leasing.clone().map(|leasing| tokio::spawn(leasing.keep(stop.clone())));
    let ways = Ways { client: client.clone(), namespace, leasing };
    let routes = routes(values, ways, proxies, ProxyMetrics::register(&registry)?);
    let itself = pages::itself(&client_of_itself(values)?).await?;
    let profiling = values.is_true("enable-pprof");
    let http =
        pages::handler(Arc::new(pages::Pages { client, itself, config, registry, profiling }));
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
    for goodbye in registered.into_iter().chain(held) {
        goodbye.await?;
    }
    Ok(())
}

/// The ways to the members.
struct Ways {
    client: Client,
    namespace: Namespace,
    leasing: Option<Arc<Leasing>>,
}

fn namespace(values: &Values, client: &Client, config: &client::Config) -> Namespace {
    let limits = Limits {
        send: config.max_request_bytes.unwrap_or(usize::MAX),
        receive: config.max_response_bytes.unwrap_or(usize::MAX),
    };
    Namespace::new(Forward(client.clone()), values.text("namespace"), limits)
}

fn routes(values: &Values, ways: Ways, proxies: Proxies, metrics: ProxyMetrics) -> Routes {
    let Ways { client, namespace, leasing } = ways;
    let forward = Forward(client.clone());
    let is_ordered = values.is_true("experimental-serializable-ordering");
    let keys = Keys {
        members: namespace.clone(),
        cache: Arc::new(Cache::new(metrics.clone())),
        order: is_ordered.then(|| Arc::new(Order::new(client.endpoints().len()))),
        leasing,
    };
    let advertised = values.text("advertise-client-url").to_owned();
    let members = Members { forward: forward.clone(), advertised, proxies };
    let is_logged = values.is_true("experimental-enable-grpc-logging");
    Routes::new(Logged { service: ClusterServer::new(members), is_logged })
        .add_service(Logged { service: KvServer::new(keys), is_logged })
        .add_service(Logged {
            service: WatchServer::new(Watches::new(namespace.clone(), metrics)),
            is_logged,
        })
        .add_service(Logged { service: LeaseServer::new(Leases::new(namespace)), is_logged })
        .add_service(Logged { service: Upkeep(forward.clone()), is_logged })
        .add_service(Logged { service: Users(forward.clone()), is_logged })
        .add_service(Logged { service: Locks(forward.clone()), is_logged })
        .add_service(Logged { service: Elections(forward), is_logged })
}

/// Waits until the cluster has answered a linearizable read: before, a serializable one could show an
/// older revision than the proxy that ran before this one did.
async fn read_once(client: &Client) {
    tracing::info!("waiting for linearized read from cluster to recover ordering");
    loop {
        let range = RangeRequest { key: "_".into(), keys_only: true, ..RangeRequest::default() };
        let client = client.until(Instant::now() + CALL_TIMEOUT);
        match client.range(range).await {
            Ok(_) => return,
            // That it may not be read is an answer too.
            Err(error) if error.message().starts_with("etcdserver: user name is empty") => return,
            Err(error) => {
                tracing::warn!(%error, "ordering recovery failed, retrying in 1s");
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }
}

/// Makes the proxy known to others, and others to it, if that is wanted.
fn register(
    values: &Values,
    client: &Client,
    proxies: &Proxies,
    stop: &CancellationToken,
) -> Option<tokio::task::JoinHandle<()>> {
    let prefix = values.text("resolver-prefix");
    if prefix.is_empty() {
        return None;
    }
    let registration = Registration {
        client: client.clone(),
        prefix: format!("{}{prefix}", values.text("namespace")),
        address: values.text("advertise-client-url").to_owned(),
        ttl: values.number("resolver-ttl"),
    };
    tokio::spawn(registration.clone().follow(proxies.clone()));
    Some(tokio::spawn(registration.keep(stop.clone())))
}

/// Follows the cluster's membership.
async fn sync_endpoints(client: Client, interval: Duration) {
    let mut before = client.current_endpoints();
    loop {
        tokio::time::sleep(interval).await;
        let asked = client.until(Instant::now() + CALL_TIMEOUT);
        if let Err(error) = asked.sync_endpoints().await {
            tracing::info!(%error, "Auto sync endpoints failed.");
        }
        let endpoints = client.current_endpoints();
        if endpoints != before {
            tracing::info!(endpoints = endpoints.join(","), "set etcd endpoints by autoSync");
            before = endpoints;
        }
    }
}

/// How the proxy reaches itself, to say whether it is well; nothing without an address.
fn client_of_itself(values: &Values) -> Result<Option<client::Config>, Box<dyn Error>> {
    let advertised = values.text("advertise-client-url").to_owned();
    let file = |name: &str| Some(values.text(name)).filter(|it| !it.is_empty()).map(Into::into);
    let is_made_here = values.text("cert-file").is_empty() && values.is_true("auto-tls");
    let tls = TlsOptions {
        ca_file: file("trusted-ca-file"),
        certificate_file: file("cert-file"),
        key_file: file("key-file"),
        server_name: None,
        // Nobody else has signed a certificate that was made here.
        insecure_skip_verify: is_made_here,
        refused: None,
    };
    let is_secure = is_made_here || tls.certificate_file.is_some() || tls.ca_file.is_some();
    Ok((!advertised.is_empty()).then(|| client::Config {
        endpoints: vec![advertised],
        dial_timeout: Some(Duration::from_secs(5)),
        tls: is_secure.then_some(tls),
        ..client::Config::default()
    }))
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
        // One that is renewed is looked at, too.
        refused: Some(|pem| nameless(pem).err()),
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
        keepalive_without_calls: values.is_true("permit-without-stream"),
        tls: is_secure.then_some(tls),
        credentials: None,
        max_request_bytes: bytes("max-send-bytes"),
        max_response_bytes: bytes("max-recv-bytes"),
    })
}

/// A member would take the name for that of a user, and every client of the proxy would be that user.
fn refuse_common_name(path: &Path) -> Result<(), Box<dyn Error>> {
    let pem = std::fs::read(path)
        .map_err(|error| format!("open {}: {}", path.display(), client::io_reason(&error)))?;
    nameless(&pem).map_err(|reason| format!("{reason}: {}", path.display()).into())
}

/// Whether a certificate's subject has no common name, and why not if it has.
fn nameless(pem: &[u8]) -> Result<(), String> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem).map_err(|error| error.to_string())?;
    if pem.label != "CERTIFICATE" {
        return Err("there is no certificate; the file must hold certificates first".to_owned());
    }
    let certificate = pem.parse_x509().map_err(|error| error.to_string())?;
    match common_name(&certificate).map_err(|error| error.to_string())? {
        name if name.is_empty() => Ok(()),
        name => Err(format!("cert has non empty Common Name ({name})")),
    }
}

/// An authority for clients, or half a pair, is no pair to listen with. The texts are etcd's.
fn check_pair(values: &Values) -> Result<(), String> {
    match (values.text("cert-file"), values.text("key-file")) {
        ("", "") => Err(format!(
            "cannot listen on TLS for {}: KeyFile and CertFile are not presented",
            values.text("listen-addr")
        )),
        (cert, key) if cert.is_empty() || key.is_empty() => {
            Err(format!("KeyFile and CertFile must both be present[key: {key}, cert: {cert}]"))
        }
        _ => Ok(()),
    }
}

/// The sockets for clients and for metrics.
fn bind(values: &Values) -> Result<Listeners, Box<dyn Error>> {
    let (cert, authority) = (values.text("cert-file"), values.text("trusted-ca-file"));
    let given = !cert.is_empty() || !values.text("key-file").is_empty() || !authority.is_empty();
    let is_secure = given || values.is_true("auto-tls");
    if given {
        check_pair(values)?;
    }
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
    if let Some(about) = about_cipher_suites(&config.cipher_suites)? {
        tracing::warn!("{about}");
    }
    let tls = is_secure.then(|| ServerTls::new(config).map(Arc::new)).transpose()?;
    let mut listened = vec![Endpoint { url, purpose: Purpose::Client, tls: tls.clone() }];
    if !values.text("metrics-addr").is_empty() {
        let url: Url = values.text("metrics-addr").parse()?;
        listened.push(Endpoint { url, purpose: Purpose::Metrics, tls });
    }
    Ok(Listeners::bind(listened, ListenOptions::default())?)
}
