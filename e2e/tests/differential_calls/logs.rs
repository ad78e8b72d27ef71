//! What tools look for in the log of a server is said by both.

use std::time::{Duration, Instant};

use proto::etcdserverpb as pb;
use proto::rpc::Rpc;

use super::refusals::sample;
use super::talk::{Call, with_both};

/// How long it may take until something is logged.
const LIMIT: Duration = Duration::from_secs(60);

/// Messages that a member logs when it is used so.
const MESSAGES: [&str; 5] = [
    "ready to serve client requests",
    "finished scheduled compaction",
    "finished defragmenting directory",
    "added member",
    "removed member",
];

#[test]
fn what_tools_look_for_is_logged_by_both() {
    let missing = with_both(1, &[], |talk| {
        for _ in 0..20 {
            talk.quietly(sample(Rpc::KVPut));
        }
        let compact = pb::CompactionRequest { revision: 9, physical: true };
        let peer_ur_ls = vec!["http://127.0.0.1:1".to_owned()];
        let add = pb::MemberAddRequest { peer_ur_ls, is_learner: true };
        for call in [
            Call::new(Rpc::KVCompact, &compact),
            sample(Rpc::MaintenanceDefragment),
            Call::new(Rpc::ClusterMemberAdd, &add),
        ] {
            let came = talk.quietly(call.clone());
            assert!(came.status.is_none(), "{call:?}: {came:?}");
            if call.rpc == Some(Rpc::ClusterMemberAdd) {
                let member = came.read::<pb::MemberAddResponse>().member.expect("the new member");
                let remove = pb::MemberRemoveRequest { id: member.id };
                talk.quietly(Call::new(Rpc::ClusterMemberRemove, &remove));
            }
        }
        let deadline = Instant::now() + LIMIT;
        loop {
            let log = talk.cluster.members()[0].log();
            let is_missing = |text: &&str| !log.contains(&format!("\"msg\":\"{text}\""));
            let missing: Vec<&str> = MESSAGES.into_iter().filter(is_missing).collect();
            if missing.is_empty() || Instant::now() > deadline {
                return missing;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    assert_eq!(missing, [Vec::<&str>::new(), Vec::new()], "not logged by Go, and by ours");
}
