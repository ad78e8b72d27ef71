//! A member without others, over a restored data directory.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use disk::{Disk, OsDisk};
use etcdutl::restore::Restored;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use machine::{LeaseChange, Views};
use proto::peerpb;
use replica::{
    AppendResponses, Blocking, Bootstrap, EventSink, ImagePolicy, LogMetrics, LogWriterPlacement,
    Node, Parts, Peer, PeerError, PeerResult, Peers, Replica, Rules, Timing,
};
use revlog::{RevLog, RevLogOptions, RevStore};

struct Nobody;

macro_rules! unreachable_peers {
    ($($call:ident($request:ty) -> $response:ty;)*) => {
        impl Peers for Nobody {
            $(fn $call(&self, _: Peer, _: $request) -> BoxFuture<'static, PeerResult<$response>> {
                Box::pin(async { Err(PeerError::Unreachable("there is nobody".into())) })
            })*
        }
    };
}

unreachable_peers! {
    append(BoxStream<'static, peerpb::AppendRequest>) -> AppendResponses;
    vote(peerpb::VoteRequest) -> peerpb::VoteResponse;
    snapshot(BoxStream<'static, peerpb::SnapshotChunk>) -> peerpb::SnapshotResponse;
    holding(peerpb::HoldingRequest) -> peerpb::HoldingResponse;
    transfer_leader(peerpb::TransferLeaderRequest) -> peerpb::TransferLeaderResponse;
    forward(peerpb::ForwardRequest) -> peerpb::ForwardResponse;
    read_index(peerpb::ReadIndexRequest) -> peerpb::ReadIndexResponse;
    change_membership(peerpb::ChangeMembershipRequest) -> peerpb::ChangeMembershipResponse;
    lease_keep_alive(peerpb::LeaseKeepAliveRequest) -> peerpb::LeaseKeepAliveResponse;
    version(peerpb::VersionRequest) -> peerpb::VersionResponse;
    hash_kv(peerpb::HashKvRequest) -> peerpb::HashKvResponse;
    lease_time_to_live(peerpb::LeaseTimeToLiveRequest) -> peerpb::LeaseTimeToLiveResponse;
}

impl EventSink for Nobody {
    fn publish(&self, _: Vec<mvcc::RevisionEvents>) {}
    fn leases_changed(&self, _: &[LeaseChange]) {}
    fn reset(&self, _: &Views) {}
}

/// Starts the member as the server does, and waits until it leads.
pub(crate) async fn start(data_dir: &Path, restored: &Restored) -> Replica {
    let disk: Arc<dyn Disk> = Arc::new(OsDisk::new());
    let engine_disk = disk.clone();
    let node = |founder: &server::ids::FoundingMember| Node {
        name: founder.name.clone(),
        peer_urls: founder.peer_urls.clone(),
        voter_intent: true,
    };
    let members = &restored.founding.members;
    let bootstrap = members.iter().map(|member| (member.id, node(member))).collect();
    let replica = replica::start(Parts {
        cluster: restored.founding.cluster_id,
        member: restored.member,
        directory: data_dir.join("member"),
        wal_directory: data_dir.join("member/wal"),
        disk,
        open_engine: Arc::new(move |path: &Path| {
            let log = RevLog::open(engine_disk.clone(), path, RevLogOptions::default())?;
            Ok(Arc::new(log) as Arc<dyn RevStore>)
        }),
        peers: Arc::new(Nobody),
        protocol: replica::ProtocolVersions::OWN,
        events: Arc::new(Nobody),
        bootstrap: Bootstrap::New(bootstrap),
        force_new_cluster: false,
        timing: Timing {
            heartbeat_interval: Duration::from_millis(100),
            election_timeout: Duration::from_millis(1000),
            pre_vote: true,
        },
        images: ImagePolicy { entries: 50, bytes: 64 << 20, entries_kept: 10 },
        rules: Rules {
            request_timeout: Duration::from_secs(7),
            strict_reconfig: true,
            learners_max: 1,
            priority_requests: false,
        },
        log_writer: LogWriterPlacement::OwnThread,
        blocking: Blocking::Threads,
        metrics: LogMetrics::register(&prometheus::Registry::new()).unwrap(),
    });
    let replica = replica.await.unwrap();
    let mut status = replica.handle().watch_status();
    status.wait_for(|status| status.leader.is_some()).await.unwrap();
    replica
}
