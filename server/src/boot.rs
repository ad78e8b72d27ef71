//! Putting the server together and taking it apart again.
//!
//! Threads: the main thread runs Raft, the peers' traffic and the chores on one runtime; each RPC
//! thread serves clients on its own; the watch hub has a thread; the log writer has one (started by
//! the replica). Start, in order: identity, listeners bound, hub, replica, chores, listeners served,
//! name published. Stop is the same list backwards.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;
use deadlines::LeasePeer;
use disk::{Disk, OsDisk};
use machine::Views;
use prometheus::Registry;
use replica::{
    Blocking, Bootstrap, Handle, ImagePolicy, LogMetrics, LogWriterPlacement, Node, Parts, Replica,
    Rules, Timing,
};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use watch::HubOptions;

use crate::api::{self, ApiContext, Limits};
use crate::auth::Authentication;
use crate::chores;
use crate::config::{ClusterState, Config};
use crate::dial::{Dialer, local_address};
use crate::engine;
use crate::events::{Events, HubCell};
use crate::gateway::Gateway;
use crate::identity::Identity;
use crate::leases;
use crate::listen::{
    ConnectionSettings, Endpoint, GrpcCalls, ListenOptions, Listeners, Purpose, RpcThread,
    RpcThreads, ServiceSet, Services,
};
use crate::member::LocalMember;
use crate::ops::calls::CallMetrics;
use crate::ops::http::{HttpMetrics, HttpParts, handler, handler_with};
use crate::ops::measured_disk::MeasuredDisk;
use crate::ops::metrics::{Metrics, RequestTimes};
use crate::ops::signals::Terminations;
use crate::ops::spans::Spans;
use crate::ops::{memory, notify, register_process};
use crate::peer::inbound::PeerService;
use crate::peer::meters::PeerMeters;
use crate::peer::outbound::Outbound;
use crate::read_budget::ReadBudget;
use crate::tls::{ClientTls, ServerTls, make_certificates};

/// How long calls of peers that are under way may take once the server stops. Their streams of entries never end by themselves, so it is always waited for;
/// what they wait for is answered long before, or is answered by the next leader.
const PEER_DRAIN_GRACE: Duration = Duration::from_millis(500);

/// How long work on threads of its own may go on once everything else has ended: a look-up of a name
/// can take far longer, and an image that is cut off leaves the one before.
const THREADS_GRACE: Duration = Duration::from_secs(1);

/// Write an image after this many bytes of entries, however few entries they are.
const IMAGE_BYTES: u64 = 256 << 20;

/// Facts that handlers need and that do not change.
pub(crate) struct ServerFacts {
    /// Where files without a name may be written.
    pub(crate) scratch_directory: PathBuf,
    pub(crate) election_timeout: Duration,
    pub(crate) metrics: Metrics,
    pub(crate) request_times: RequestTimes,
    /// Whether the common name of a client's certificate is a user's name.
    pub(crate) client_cert_auth: bool,
    /// The memory for answers that are read from the store.
    pub(crate) reads: ReadBudget,
    /// Whether the disk is too full for writes that need space.
    pub(crate) low_space: AtomicBool,
    /// Whether something that takes space was applied since this was last asked.
    pub(crate) has_grown: Arc<AtomicBool>,
}

/// Everything that registers metrics.
struct Instruments {
    registry: Registry,
    metrics: Metrics,
    http: HttpMetrics,
    calls: CallMetrics,
    log: LogMetrics,
}

impl Instruments {
    fn register(config: &Config, spans: Option<Spans>) -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        register_process(&registry)?;
        Ok(Self {
            metrics: Metrics::register(&registry)?,
            http: HttpMetrics::register(&registry)?,
            calls: CallMetrics::register(
                &registry,
                config.http.extensive_metrics,
                config.warning_unary,
            )?
            .traced(spans),
            log: LogMetrics::register(&registry)?,
            registry,
        })
    }
}

/// Runs the server until a signal ends it.
///
/// # Errors
/// Whatever keeps it from starting, and whatever ends it other than a signal.
pub fn serve(config: Config) -> Result<(), Box<dyn Error>> {
    // The provider is the same for all of TLS; a second installation is refused and changes nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(run(config));
    runtime.shutdown_timeout(THREADS_GRACE);
    ended
}

async fn run(mut config: Config) -> Result<(), Box<dyn Error>> {
    let mut told = Terminations::listen()?;
    if config.memory_lock {
        memory::lock()?;
    }
    make_certificates(&mut config.listen, Path::new(&config.data_dir))?;
    let spans = config.tracing.as_ref().map(Spans::export).transpose()?;
    let instruments = Instruments::register(&config, spans.clone())?;
    let metrics = instruments.metrics.clone();
    let disk: Arc<dyn Disk> = Arc::new(MeasuredDisk::new(Arc::new(OsDisk), metrics));
    let outbound = outbound(&config)?;
    let (clients, peers) = bind(&config)?;
    // Until something is served there is nothing to end in order: a start that waits, for other members
    // or for the process that still has the directory, is given up.
    let identity = tokio::select! {
        established = Identity::establish(&*disk, &config, &outbound) => established?,
        signal = told.next() => return given_up(signal),
    };
    let meters = PeerMeters::new(instruments.metrics.clone(), identity.member);
    outbound.measure(meters.clone());
    config.log_start(identity.cluster, identity.member, &identity.directory);

    let leases = leases::clock(&config, &instruments.metrics);
    let tokens = Arc::new(config.auth.tokens.of_this_member());
    let (hub, has_grown) = (HubCell::default(), Arc::new(AtomicBool::new(false)));
    let events = Arc::new(Events {
        hub: hub.clone(),
        options: hub_options(&config),
        leases: leases.clone(),
        tokens: Arc::clone(&tokens),
        metrics: instruments.metrics.clone(),
        slow_apply: config.warning_apply,
        has_grown: Arc::clone(&has_grown),
    });
    let parts = parts(&config, disk, &identity, outbound, events, &instruments);
    let replica = tokio::select! {
        started = replica::start(parts) => started?,
        signal = told.next() => return given_up(signal),
    };
    let stop = CancellationToken::new();
    let context = ApiContext {
        handle: replica.handle().clone(),
        hub,
        leases: leases.clone(),
        cluster_id: identity.cluster,
        member_id: identity.member,
        limits: Limits::of(&config),
        server: Arc::new(facts(&config, &identity, &instruments.metrics, has_grown)),
        authentication: Authentication::new(&config.auth, tokens),
    };
    let ended = serve_all(
        &config,
        &identity,
        &replica,
        context,
        instruments,
        meters,
        clients,
        peers,
        &stop,
        &mut told,
    );
    let ended = ended.await;
    stop.cancel();
    replica.shutdown().await;
    if let Some(spans) = spans {
        spans.shutdown().await;
    }
    ended
}

/// The way to the other members. Files that it cannot use are found now.
fn outbound(config: &Config) -> Result<Arc<Outbound>, Box<dyn Error>> {
    let tls = Arc::new(ClientTls::new(config.listen.peer_tls.clone()));
    tls.check()?;
    let bind = config.gates.enabled("SetMemberLocalAddr");
    let local = bind.then(|| local_address(&config.cluster.advertise_peer_urls)).flatten();
    Ok(Outbound::new(Dialer::new(Arc::new(move || tls.current()), local)))
}

fn hub_options(config: &Config) -> HubOptions {
    HubOptions {
        progress_interval: config.watch_progress_interval,
        fragment_bytes: config.limits.request_bytes_max + crate::config::GRPC_OVERHEAD_BYTES,
        ..HubOptions::default()
    }
}

fn facts(
    config: &Config,
    identity: &Identity,
    metrics: &Metrics,
    has_grown: Arc<AtomicBool>,
) -> ServerFacts {
    ServerFacts {
        scratch_directory: identity.directory.clone(),
        election_timeout: config.raft.election_timeout,
        metrics: metrics.clone(),
        request_times: RequestTimes::new(metrics),
        client_cert_auth: config.listen.client_tls.client_cert_auth,
        reads: ReadBudget::of_server(config.limits.read_memory_bytes, request_timeout(config)),
        low_space: AtomicBool::new(false),
        has_grown,
    }
}

/// How long a request may take; etcd's limit.
pub(crate) fn request_timeout(config: &Config) -> Duration {
    Duration::from_secs(5) + 2 * config.raft.election_timeout
}

fn given_up(signal: &str) -> Result<(), Box<dyn Error>> {
    tracing::info!(signal, "received signal while starting");
    Ok(())
}

/// Serves until a signal, or the end of the replica or of watches.
#[expect(clippy::too_many_arguments, reason = "the parts of the server, each used once")]
async fn serve_all(
    config: &Config,
    identity: &Identity,
    replica: &Replica,
    context: ApiContext,
    instruments: Instruments,
    meters: PeerMeters,
    clients: Listeners,
    peers: Listeners,
    stop: &CancellationToken,
    told: &mut Terminations,
) -> Result<(), Box<dyn Error>> {
    let handle = replica.handle().clone();
    config.cluster.check_learners(handle.views().members().iter().map(|it| it.is_learner))?;
    let metrics = instruments.metrics.clone();
    metrics.describe(identity.member, &config.gates, config.limits.quota_bytes);
    let settings = ConnectionSettings::of(&config.listen);
    let (hub, reads) = (context.hub.clone(), context.server.reads.clone());
    let http_parts = Arc::new(HttpParts {
        member: Arc::new(LocalMember::new(handle.clone(), hub, reads, metrics.clone())),
        metrics: instruments.http,
        registry: instruments.registry,
        config: config.http.clone(),
        arguments: std::env::args().collect(),
    });
    let http = handler(http_parts.clone());

    let peer_services = Services {
        grpc: Some(peer_routes(config, replica, &context, meters)),
        http: Some(http),
        ..Services::default()
    };
    let peer_services = ServiceSet::from([(Purpose::Peer, peer_services)]);
    let (peer_thread, peer_serving) =
        RpcThread::pair(peer_services, crate::peer::connection_settings());
    let peer_traffic = tokio::spawn(peer_serving.run(stop.clone(), PEER_DRAIN_GRACE));
    let peer_acceptor = tokio::spawn(peers.run(vec![peer_thread], stop.clone()));

    let services = client_services(
        context.clone(),
        http_parts,
        instruments.calls,
        !config.listen.client_http_urls.is_empty(),
    );
    let grace = request_timeout(config); // etcd: `stopServers`
    let threads = RpcThreads::start(thread_count(), services, &settings, stop, grace)?;
    let chores = start_chores(config, &handle, &context, &metrics, stop);

    let published = publish(config, identity, &handle, stop);
    let acceptor = async {
        if config.gates.enabled("InitialCorruptCheck") {
            let checks = chores::corruption::Checks::initial(metrics.clone());
            chores::corruption::initial_check(&handle, checks).await?;
        }
        published.await?;
        chores::cluster_version::decided(&handle).await;
        let running = tokio::spawn(clients.run(threads.handles(), stop.clone()));
        announce(config);
        running.await??;
        Ok::<(), Box<dyn Error>>(())
    };
    let ended = tokio::select! {
        signal = told.next() => {
            tracing::info!(signal, "received signal; shutting down");
            // While everything still runs: the next leader is heard of through our peer listener,
            // and clients that are connected here do not notice.
            replica.hand_over_leadership().await;
            Ok(())
        }
        result = acceptor => result,
        reason = replica_ended(&handle) => Err(reason.into()),
        reason = context.hub.failed() => Err(reason.into()),
    };
    stop.cancel();
    if handle.has_died() {
        // Nobody can be answered any more; who waits had better ask another member at once.
        return ended;
    }
    context.hub.get().stop(); // Watches would otherwise take the whole grace period.
    for chore in chores {
        // A chore that panicked has said so; the server stops anyway.
        let _ = chore.await;
    }
    let _ = peer_acceptor.await;
    let _ = peer_traffic.await;
    tokio::task::spawn_blocking(move || threads.join()).await?;
    ended
}

fn peer_routes(
    config: &Config,
    replica: &Replica,
    context: &ApiContext,
    meters: PeerMeters,
) -> Routes {
    let service = PeerService {
        inbound: replica.inbound(),
        handle: context.handle.clone(),
        leases: LeasePeer {
            inbound: replica.inbound(),
            handle: context.handle.clone(),
            clock: context.leases.clone(),
        },
        token_digest: Bytes::copy_from_slice(&Sha256::digest(&config.cluster.token)),
        meters,
        request_bytes_max: config.limits.request_bytes_max,
    };
    service.routes()
}

/// Says that clients are served, to people and to the service manager.
fn announce(config: &Config) {
    for url in config.listen.client_urls.iter().chain(&config.listen.client_http_urls) {
        let address = url.as_str().split_once("://").map_or(url.as_str(), |(_, rest)| rest);
        tracing::info!(address, "ready to serve client requests");
        tracing::info!(address, "serving client traffic");
    }
    if let Err(error) = notify::ready() {
        tracing::warn!(%error, "the service manager was not told that the server is ready");
    }
}

/// One RPC thread per core: each serves its connections alone.
fn thread_count() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Why the replica will not serve any more, once that is so.
async fn replica_ended(handle: &Handle) -> String {
    let mut status = handle.watch_status();
    let release = crate::version::release();
    let outgrown = || release.is_outgrown_by(handle.views().cluster_version());
    let ended = status.wait_for(|status| status.fatal.is_some() || status.removed || outgrown());
    match ended.await {
        Ok(status) => match &status.fatal {
            Some(reason) => format!("the replica stopped: {reason}"),
            None if status.removed => {
                "the member has been permanently removed from the cluster".to_owned()
            }
            None => crate::version::OUTGROWN.to_owned(),
        },
        Err(_) => "the replica stopped".to_owned(),
    }
}

fn client_services(
    context: ApiContext,
    http: Arc<HttpParts>,
    calls: CallMetrics,
    // `--listen-client-http-urls`: then the client URLs speak gRPC only.
    split_http: bool,
) -> Arc<dyn Fn(usize) -> ServiceSet + Send + Sync> {
    Arc::new(move |_| {
        let context = ApiContext { handle: context.handle.for_this_thread(), ..context.clone() };
        let routes = api::routes(&context);
        let gateway = http.config.gateway.then(|| {
            let calls = GrpcCalls::new(routes.clone(), Some(calls.clone()));
            let (server, handle) = (context.server.clone(), context.handle.clone());
            let names_count =
                move || server.client_cert_auth && !handle.with_views(Views::auth_is_off);
            let (max, reads) = (context.limits.message_bytes_max(), context.server.reads.clone());
            Gateway::new(calls, max, reads, Arc::new(names_count))
        });
        let client_http = handler_with(http.clone(), gateway);
        let clients = Services {
            grpc: Some(routes),
            direct: Some(api::direct(&context)),
            http: (!split_http).then(|| client_http.clone()),
            calls: Some(calls.clone()),
        };
        let only_http = |handler| Services { http: Some(handler), ..Services::default() };
        ServiceSet::from([
            (Purpose::Client, clients),
            (Purpose::ClientHttp, only_http(client_http)),
            (Purpose::Metrics, only_http(handler(http.clone()))),
        ])
    })
}

fn start_chores(
    config: &Config,
    handle: &Handle,
    context: &ApiContext,
    metrics: &Metrics,
    stop: &CancellationToken,
) -> Vec<tokio::task::JoinHandle<()>> {
    let own = crate::version::release().parsed();
    let outbound = context.handle.clone();
    let versions: chores::cluster_version::MemberVersions =
        Arc::new(move || Box::pin(crate::member::versions_of_others(outbound.clone(), own)));
    let mut chores = vec![
        tokio::spawn(leases::expire(context.leases.clone(), handle.clone(), stop.clone())),
        tokio::spawn(chores::cluster_version::run(
            handle.clone(),
            own,
            versions.clone(),
            stop.clone(),
        )),
        tokio::spawn(chores::cluster_version::end_downgrades(
            handle.clone(),
            own,
            versions,
            config.downgrade_check,
            stop.clone(),
        )),
        tokio::spawn(chores::leadership::follow(handle.clone(), metrics.clone(), stop.clone())),
        tokio::spawn(chores::reachability::watch(context.handle.clone(), stop.clone())),
    ];
    let directories = [
        Some(context.server.scratch_directory.clone()),
        config.wal_dir.as_ref().map(PathBuf::from),
    ];
    chores.push(tokio::spawn(chores::space::watch(
        handle.clone(),
        Arc::new(OsDisk),
        directories.into_iter().flatten().collect(),
        config.limits.quota_bytes,
        context.server.clone(),
        stop.clone(),
    )));
    if !config.corruption.periodic.is_zero() {
        let interval = config.corruption.periodic;
        let (metrics, stop) = (metrics.clone(), stop.clone());
        let check = chores::corruption::check_periodically(handle.clone(), interval, metrics, stop);
        chores.push(tokio::spawn(check));
    }
    if let Some(interval) = config.compaction_checks() {
        let (metrics, stop) = (metrics.clone(), stop.clone());
        let check = chores::corruption::check_compactions(handle.clone(), interval, metrics, stop);
        chores.push(tokio::spawn(check));
    }
    if let Some(retention) = config.compaction.retention {
        chores.push(tokio::spawn(chores::compactor::run(handle.clone(), retention, stop.clone())));
    }
    chores
}

async fn publish(
    config: &Config,
    identity: &Identity,
    handle: &Handle,
    stop: &CancellationToken,
) -> Result<(), Box<dyn Error>> {
    let urls: Vec<String> =
        config.cluster.advertise_client_urls.iter().map(ToString::to_string).collect();
    // A learner cannot be sure that a leader hears it; it serves what learners serve meanwhile.
    Ok(chores::attributes::publish(handle, identity.member, &config.name, &urls, stop).await?)
}

/// Binds every socket before anything on disk is touched, so that a second server on the same ports
/// fails early. Client sockets and peer sockets are served by different threads.
fn bind(config: &Config) -> Result<(Listeners, Listeners), Box<dyn Error>> {
    let listen = &config.listen;
    let tls = |config: &crate::config::TlsConfig, needed: bool| {
        needed.then(|| ServerTls::new(config.clone()).map(Arc::new)).transpose()
    };
    let secure = |urls: &[crate::urls::Url]| urls.iter().any(|url| url.scheme().is_secure());
    let client_urls = [&listen.client_urls[..], &listen.client_http_urls, &listen.metrics_urls];
    let client_tls = tls(&listen.client_tls, client_urls.iter().any(|urls| secure(urls)))?;
    let peer_tls = tls(&listen.peer_tls, secure(&listen.peer_urls))?;
    let purposes = [Purpose::Client, Purpose::ClientHttp, Purpose::Metrics];
    let endpoints = client_urls.iter().zip(purposes).flat_map(|(urls, purpose)| {
        let tls = client_tls.clone();
        urls.iter().map(move |url| Endpoint { url: url.clone(), purpose, tls: tls.clone() })
    });
    let options = ListenOptions { reuse_port: listen.reuse_port };
    let peers = listen.peer_urls.iter().map(|url| Endpoint {
        url: url.clone(),
        purpose: Purpose::Peer,
        tls: peer_tls.clone(),
    });
    let peers = Listeners::bind(peers, options)?;
    Ok((Listeners::bind(endpoints, options)?, peers))
}

fn parts(
    config: &Config,
    disk: Arc<dyn Disk>,
    identity: &Identity,
    outbound: Arc<Outbound>,
    events: Arc<Events>,
    instruments: &Instruments,
) -> Parts {
    let timing = Timing {
        heartbeat_interval: config.raft.heartbeat,
        election_timeout: config.raft.election_timeout,
        pre_vote: config.raft.pre_vote,
    };
    let wal_directory = match &config.wal_dir {
        Some(directory) => PathBuf::from(directory),
        None => identity.directory.join("wal"),
    };
    Parts {
        cluster: identity.cluster,
        member: identity.member,
        directory: identity.directory.clone(),
        wal_directory,
        open_engine: engine::opener(config.engine, disk.clone(), instruments.metrics.clone()),
        disk,
        peers: outbound,
        protocol: crate::version::release().protocol,
        events,
        bootstrap: bootstrap(config, identity),
        force_new_cluster: config.cluster.force_new_cluster,
        timing,
        images: ImagePolicy {
            entries: config.raft.snapshot_count,
            bytes: IMAGE_BYTES,
            entries_kept: config.raft.catch_up_entries,
        },
        rules: rules(config),
        log_writer: LogWriterPlacement::OwnThread,
        blocking: Blocking::Threads,
        metrics: instruments.log.clone(),
    }
}

pub(crate) fn rules(config: &Config) -> Rules {
    Rules {
        request_timeout: request_timeout(config),
        strict_reconfig: config.cluster.strict_reconfig_check,
        learners_max: config.cluster.learners_max,
        priority_requests: config.gates.enabled("PriorityRequest"),
    }
}

fn bootstrap(config: &Config, identity: &Identity) -> Bootstrap {
    if config.cluster.state == ClusterState::Existing {
        return Bootstrap::Join;
    }
    let founding = crate::ids::Founding::compute(&identity.founders, &config.cluster.token);
    if founding.cluster_id != identity.cluster {
        // The directory knows better than the flags: it is a member already.
        return Bootstrap::Join;
    }
    Bootstrap::New(
        founding
            .members
            .into_iter()
            .map(|crate::ids::FoundingMember { id, name, peer_urls }| {
                (id, Node { name, peer_urls, voter_intent: true })
            })
            .collect(),
    )
}
