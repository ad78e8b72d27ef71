//! Members in one process whose messages go from hand to hand, over a simulated disk.

#![allow(clippy::unwrap_used, reason = "a failure here is the test's verdict")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use disk::{Disk, SimDisk};
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt, stream};
use machine::{CommandKind, LeaseChange, Proposal, Views};
use prost::Message;
use proto::etcdserverpb::PutRequest;
use proto::peerpb;
use replica::{
    AppendResponses, Blocking, Bootstrap, EventSink, ImagePolicy, Inbound, LogMetrics,
    LogWriterPlacement, Node, Parts, Peer, PeerError, PeerResult, Peers, Replica, Rules, Timing,
};
use tokio::time::sleep;
use types::{ClusterId, MemberId};

/// How many messages of a stream may be under way.
const UNDER_WAY: usize = 64;

#[derive(Clone, Default)]
pub(crate) struct Wires {
    pub(crate) members: Arc<Mutex<BTreeMap<MemberId, Inbound>>>,
    /// Whether entries are neither taken nor refused, as by a host that is gone.
    pub(crate) swallow: Arc<AtomicBool>,
    /// How many streams that carry entries, and not only heartbeats, were swallowed.
    pub(crate) swallowed: Arc<AtomicUsize>,
    /// Who gets no entries.
    pub(crate) cut_off: Arc<Mutex<Option<MemberId>>>,
    /// Who neither hears of the others nor is heard, also over streams that are open.
    pub(crate) apart: Arc<Mutex<Option<MemberId>>>,
    /// How many streams of entries or heartbeats were opened.
    pub(crate) opened: Arc<AtomicUsize>,
    /// Whether snapshots are on their way for ever.
    pub(crate) snapshots_crawl: Arc<AtomicBool>,
    /// How many bytes of snapshots have left.
    pub(crate) snapshot_bytes: Arc<AtomicUsize>,
    /// Whether senders of snapshots lose their power after the first piece: who receives is not told.
    pub(crate) snapshots_freeze: Arc<AtomicBool>,
    /// Whether members that are started check additions as etcd does. Names are published by the server,
    /// which is not here.
    pub(crate) strict: Arc<AtomicBool>,
    /// How long everything takes from one member to another.
    pub(crate) way: Arc<Mutex<Duration>>,
}

/// The same items, each of them so much later.
fn carried<T: Send + 'static>(
    items: impl Stream<Item = T> + Send + 'static,
    way: Duration,
) -> BoxStream<'static, T> {
    let arriving = move |item| async move {
        sleep(way).await;
        item
    };
    items.map(arriving).buffered(UNDER_WAY).boxed()
}

impl Wires {
    fn find(&self, to: &Peer) -> PeerResult<Inbound> {
        let members = self.members.lock().unwrap();
        members.get(&to.id).cloned().ok_or_else(|| PeerError::Unreachable("down".into()))
    }

    /// Whether a message arrives.
    fn lets_through(&self, envelope: Option<&peerpb::Envelope>) -> bool {
        let apart = *self.apart.lock().unwrap();
        let ends = envelope.map(|envelope| [envelope.from, envelope.to]).unwrap_or_default();
        apart.is_none_or(|apart| !ends.contains(&apart.0))
    }

    fn way(&self) -> Duration {
        *self.way.lock().unwrap()
    }
}

macro_rules! delivered {
    ($self:ident, $to:ident, $method:ident, $request:ident) => {{
        let (inbound, way) = ($self.find(&$to), $self.way());
        Box::pin(async move {
            sleep(way).await;
            let answer = inbound?.$method($request).await;
            sleep(way).await;
            answer
        })
    }};
}

macro_rules! call {
    ($self:ident, $to:ident, $method:ident, $request:ident) => {{
        match $self.lets_through($request.envelope.as_ref()) {
            true => delivered!($self, $to, $method, $request),
            false => Box::pin(async { Err(PeerError::Unreachable("apart".into())) }),
        }
    }};
}

impl Peers for Wires {
    fn append(
        &self,
        to: Peer,
        requests: BoxStream<'static, peerpb::AppendRequest>,
    ) -> BoxFuture<'static, PeerResult<AppendResponses>> {
        self.opened.fetch_add(1, Ordering::SeqCst);
        if self.swallow.load(Ordering::SeqCst) {
            let swallowed = self.swallowed.clone();
            return Box::pin(async move {
                // Held, as a connection that is being made holds what it is to carry.
                let mut requests = requests;
                let first = requests.next().await;
                if first.is_some_and(|first| !first.entries.is_empty()) {
                    swallowed.fetch_add(1, Ordering::SeqCst);
                }
                std::future::pending().await
            });
        }
        let inbound = match *self.cut_off.lock().unwrap() == Some(to.id) {
            true => Err(PeerError::Unreachable("cut off".into())),
            false => self.find(&to),
        };
        let (way, wires) = (self.way(), self.clone());
        let requests = requests.take_while(move |request| {
            std::future::ready(wires.lets_through(request.envelope.as_ref()))
        });
        Box::pin(async move { Ok(carried(inbound?.append(carried(requests, way)), way)) })
    }
    fn vote(
        &self,
        to: Peer,
        request: peerpb::VoteRequest,
    ) -> BoxFuture<'static, PeerResult<peerpb::VoteResponse>> {
        call!(self, to, vote, request)
    }
    fn snapshot(
        &self,
        to: Peer,
        chunks: BoxStream<'static, peerpb::SnapshotChunk>,
    ) -> BoxFuture<'static, PeerResult<peerpb::SnapshotResponse>> {
        if self.snapshots_crawl.load(Ordering::SeqCst) {
            return Box::pin(std::future::pending());
        }
        if self.snapshots_freeze.load(Ordering::SeqCst) {
            let begun = chunks.take(2).chain(stream::pending());
            let inbound = self.find(&to);
            let receiving = tokio::spawn(async move { inbound?.snapshot(begun.boxed()).await });
            return Box::pin(async move { receiving.await.unwrap() });
        }
        let sent = self.snapshot_bytes.clone();
        let chunks = chunks.inspect(move |chunk| {
            sent.fetch_add(chunk.encoded_len(), Ordering::SeqCst);
        });
        let chunks = chunks.boxed();
        delivered!(self, to, snapshot, chunks)
    }
    fn holding(
        &self,
        to: Peer,
        request: peerpb::HoldingRequest,
    ) -> BoxFuture<'static, PeerResult<peerpb::HoldingResponse>> {
        call!(self, to, holding, request)
    }
    fn transfer_leader(
        &self,
        to: Peer,
        request: peerpb::TransferLeaderRequest,
    ) -> BoxFuture<'static, PeerResult<peerpb::TransferLeaderResponse>> {
        call!(self, to, transfer_leader, request)
    }
    fn forward(
        &self,
        to: Peer,
        request: peerpb::ForwardRequest,
    ) -> BoxFuture<'static, PeerResult<peerpb::ForwardResponse>> {
        call!(self, to, forward, request)
    }
    fn read_index(
        &self,
        to: Peer,
        request: peerpb::ReadIndexRequest,
    ) -> BoxFuture<'static, PeerResult<peerpb::ReadIndexResponse>> {
        call!(self, to, read_index, request)
    }
    fn change_membership(
        &self,
        to: Peer,
        request: peerpb::ChangeMembershipRequest,
    ) -> BoxFuture<'static, PeerResult<peerpb::ChangeMembershipResponse>> {
        call!(self, to, change_membership, request)
    }
    fn lease_keep_alive(
        &self,
        _: Peer,
        _: peerpb::LeaseKeepAliveRequest,
    ) -> BoxFuture<'static, PeerResult<peerpb::LeaseKeepAliveResponse>> {
        Box::pin(async { Err(PeerError::Refused("no leases here".into())) })
    }
    fn version(
        &self,
        _: Peer,
        _: peerpb::VersionRequest,
    ) -> BoxFuture<'static, PeerResult<peerpb::VersionResponse>> {
        Box::pin(async { Err(PeerError::Refused("no versions here".into())) })
    }
    fn hash_kv(
        &self,
        _: Peer,
        _: peerpb::HashKvRequest,
    ) -> BoxFuture<'static, PeerResult<peerpb::HashKvResponse>> {
        Box::pin(async { Err(PeerError::Refused("no hashes here".into())) })
    }
    fn lease_time_to_live(
        &self,
        _: Peer,
        _: peerpb::LeaseTimeToLiveRequest,
    ) -> BoxFuture<'static, PeerResult<peerpb::LeaseTimeToLiveResponse>> {
        Box::pin(async { Err(PeerError::Refused("no leases here".into())) })
    }
}

struct Nobody;
impl EventSink for Nobody {
    fn publish(&self, _: Vec<mvcc::RevisionEvents>) {}
    fn leases_changed(&self, _: &[LeaseChange]) {}
    fn reset(&self, _: &Views) {}
}

pub(crate) const CLUSTER: ClusterId = ClusterId(7);

pub(crate) fn node(id: u64) -> (MemberId, Node) {
    let peer_urls = vec![format!("http://m{id}:2380")];
    (MemberId(id), Node { peer_urls, voter_intent: true, ..Node::default() })
}

pub(crate) async fn start(
    id: u64,
    disk: &Arc<SimDisk>,
    wires: &Wires,
    bootstrap: Bootstrap,
) -> Replica {
    let log_writer = LogWriterPlacement::Task(Box::new(|| Duration::from_micros(30)));
    start_with(log_writer, id, disk, wires, bootstrap).await
}

pub(crate) async fn start_with(
    log_writer: LogWriterPlacement,
    id: u64,
    disk: &Arc<SimDisk>,
    wires: &Wires,
    bootstrap: Bootstrap,
) -> Replica {
    start_parts(parts(log_writer, id, disk, wires, bootstrap), wires).await
}

pub(crate) async fn start_parts(parts: Parts, wires: &Wires) -> Replica {
    let id = parts.member;
    let replica = replica::start(parts).await.unwrap();
    wires.members.lock().unwrap().insert(id, replica.inbound());
    replica
}

pub(crate) fn parts(
    log_writer: LogWriterPlacement,
    id: u64,
    disk: &Arc<SimDisk>,
    wires: &Wires,
    bootstrap: Bootstrap,
) -> Parts {
    let disk: Arc<dyn Disk> = disk.clone();
    let engine_disk = disk.clone();
    Parts {
        cluster: CLUSTER,
        member: MemberId(id),
        directory: PathBuf::from("member"),
        wal_directory: PathBuf::from("member/wal"),
        disk,
        open_engine: Arc::new(move |path: &Path| {
            let log =
                revlog::RevLog::open(engine_disk.clone(), path, revlog::RevLogOptions::default())?;
            Ok(Arc::new(log) as Arc<dyn revlog::RevStore>)
        }),
        peers: Arc::new(wires.clone()),
        protocol: replica::ProtocolVersions::OWN,
        events: Arc::new(Nobody),
        bootstrap,
        force_new_cluster: false,
        timing: Timing {
            heartbeat_interval: Duration::from_millis(100),
            election_timeout: Duration::from_millis(1000),
            pre_vote: true,
        },
        images: ImagePolicy { entries: 50, bytes: 64 << 20, entries_kept: 10 },
        rules: Rules {
            request_timeout: Duration::from_secs(7),
            strict_reconfig: wires.strict.load(Ordering::SeqCst),
            learners_max: 1,
            priority_requests: false,
        },
        log_writer,
        blocking: Blocking::Inline,
        metrics: LogMetrics::register(&prometheus::Registry::new()).unwrap(),
    }
}

pub(crate) fn put(key: &str, value: &str) -> Proposal {
    let request = PutRequest {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        ..PutRequest::default()
    };
    Proposal::new(CommandKind::Put, &request)
}

pub(crate) fn get(replica: &Replica, key: &str) -> Option<Vec<u8>> {
    let encoded = replica.handle().views().mvcc.get(key.as_bytes(), 0).unwrap()?;
    Some(mvcc::KeyValue::decode(&encoded).unwrap().value.to_vec())
}

pub(crate) async fn leader(replicas: &[&Replica]) -> MemberId {
    let mut status = replicas[0].handle().watch_status();
    let status = status.wait_for(|status| status.leader.is_some()).await.unwrap();
    status.leader.unwrap()
}

/// Waits until one of them leads.
pub(crate) async fn first_leader(replicas: &[Replica]) -> MemberId {
    let mut statuses: Vec<_> = replicas.iter().map(|r| r.handle().watch_status()).collect();
    let leads = statuses.iter_mut().map(|status| {
        Box::pin(async { status.wait_for(|status| status.is_leader()).await.unwrap().member_id })
    });
    futures_util::future::select_all(leads).await.0
}

/// Waits until one member leads and all know it. What a member remembers of the time before it was
/// stopped is not enough: the leader that it names may not lead any more.
pub(crate) async fn all_follow_a_leader(replicas: &[Replica]) {
    let leader = first_leader(replicas).await;
    for replica in replicas {
        let mut status = replica.handle().watch_status();
        status.wait_for(|status| status.leader == Some(leader)).await.unwrap();
    }
}

/// Starts all members at once; answers the one that leads, and the others.
pub(crate) async fn start_and_elect(
    members: &BTreeMap<MemberId, Node>,
    disks: &[Arc<SimDisk>],
    wires: &Wires,
) -> (Replica, Vec<Replica>) {
    let mut replicas = Vec::new();
    for (id, disk) in members.keys().zip(disks) {
        replicas.push(start(id.0, disk, wires, Bootstrap::New(members.clone())).await);
    }
    all_follow_a_leader(&replicas).await;
    let at = replicas.iter().position(|replica| replica.handle().leads()).unwrap();
    let leading = replicas.swap_remove(at);
    (leading, replicas)
}
