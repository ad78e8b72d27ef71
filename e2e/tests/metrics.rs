//! The metrics of a server that works: what etcd's dashboards and alerts read has to move.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, also in its helpers")]

mod calls;

use calls::{Watch, compact, hash_kv, metric, metrics, put, read_all, status, until};
use e2e::processes::{Cluster, Member, ServerOptions};
use proto::etcdserverpb::{
    DeleteRangeRequest, DeleteRangeResponse, LeaseGrantRequest, LeaseGrantResponse,
    MoveLeaderRequest, MoveLeaderResponse,
};

/// Does a little of everything on a member.
fn work(member: &Member) {
    for number in 0..60 {
        put(member, &format!("key-{}", number % 20), b"some value").unwrap();
    }
    let request = DeleteRangeRequest { key: "key-3".into(), ..Default::default() };
    let _: DeleteRangeResponse =
        calls::call(member, "/etcdserverpb.KV/DeleteRange", &request).unwrap();
    let request = LeaseGrantRequest { ttl: 2, id: 0 };
    let _: LeaseGrantResponse =
        calls::call(member, "/etcdserverpb.Lease/LeaseGrant", &request).unwrap();
    read_all(member).unwrap();
    let revision = status(member).unwrap().header.unwrap().revision;
    hash_kv(member, revision).unwrap();
    compact(member, revision).unwrap();
}

#[test]
fn the_metrics_of_a_working_cluster_move() {
    let program = e2e::peers::our_binary("etcd").unwrap();
    let options = ServerOptions {
        members: 3,
        flags: vec!["--snapshot-count=20".to_owned()],
        ..ServerOptions::one(&program)
    };
    let cluster = Cluster::start(&options).unwrap();
    let leader = status(&cluster.members()[0]).unwrap().leader;
    let leads = |member: &&Member| status(member).unwrap().header.unwrap().member_id == leader;
    let leading = cluster.members().iter().find(leads).unwrap();
    let following = cluster.members().iter().find(|member| !leads(member)).unwrap();
    let before = [leading, following].map(metrics);
    let watch = Watch::open(following, 0);
    work(following);
    work(leading);
    until("a lease expires", || {
        metric(&metrics(leading), "etcd_debugging_server_lease_expired_total", "") >= 2.0
    });

    let grows = [
        ("etcd_disk_wal_fsync_duration_seconds_count", ""),
        ("etcd_disk_wal_write_bytes_total", ""),
        ("etcd_disk_backend_commit_duration_seconds_count", ""),
        ("etcd_server_apply_duration_seconds_count", "op=\"Put\""),
        ("etcd_server_apply_duration_seconds_count", "op=\"LeaseGrant\""),
        ("etcd_server_request_duration_seconds_count", "type=\"Put\""),
        ("etcd_server_request_duration_seconds_count", "type=\"Range\""),
        ("etcd_server_range_duration_seconds_count", "success=\"true\""),
        ("etcd_server_proposals_committed_total", ""),
        ("etcd_server_proposals_applied_total", ""),
        ("etcd_network_peer_sent_bytes_total", ""),
        ("etcd_network_peer_received_bytes_total", ""),
        ("etcd_network_peer_round_trip_time_seconds_count", ""),
        ("etcd_network_client_grpc_sent_bytes_total", ""),
        ("etcd_network_client_grpc_received_bytes_total", ""),
        ("etcd_mvcc_put_total", ""),
        ("etcd_mvcc_delete_total", ""),
        ("etcd_mvcc_range_total", ""),
        ("etcd_mvcc_hash_rev_duration_seconds_count", ""),
        ("etcd_debugging_mvcc_current_revision", ""),
        ("etcd_debugging_mvcc_compact_revision", ""),
        ("etcd_debugging_mvcc_keys_total", ""),
        ("etcd_debugging_mvcc_total_put_size_in_bytes", ""),
        ("etcd_debugging_mvcc_db_compaction_keys_total", ""),
        ("etcd_debugging_mvcc_db_compaction_total_duration_milliseconds_count", ""),
        ("etcd_debugging_mvcc_db_compaction_last", ""),
        ("etcd_debugging_lease_granted_total", ""),
        ("etcd_debugging_snap_save_total_duration_seconds_count", ""),
        ("etcd_debugging_snap_save_marshalling_duration_seconds_count", ""),
        ("etcd_snap_fsync_duration_seconds_count", ""),
        ("etcd_debugging_disk_backend_commit_write_duration_seconds_count", ""),
        ("process_network_receive_bytes_total", ""),
        ("process_network_transmit_bytes_total", ""),
        ("grpc_server_handled_total", "grpc_method=\"Put\""),
    ];
    for (member, before) in [leading, following].into_iter().zip(&before) {
        // Some only once the member has next asked another one, or been asked.
        for (name, labels) in grows {
            let was = metric(before, name, labels);
            until(&format!("{} {name}{{{labels}}} grows beyond {was}", member.name), || {
                metric(&metrics(member), name, labels) > was
            });
        }
        let now = metrics(member);
        assert_eq!(metric(&now, "etcd_server_has_leader", ""), 1.0);
        assert!(metric(&now, "etcd_network_active_peers", "") >= 1.0, "{}", member.name);
        assert_eq!(metric(&now, "etcd_server_proposals_pending", ""), 0.0);
        assert!(metric(&now, "etcd_server_leader_changes_seen_total", "") >= 1.0);
    }
    assert_watch_is_shown(following, watch);
    assert_leader_change_is_shown(leading, following);
}

fn assert_watch_is_shown(member: &Member, mut watch: Watch) {
    watch.until("its events arrive", |watch| watch.revisions().len() >= 122);
    let now = metrics(member);
    assert_eq!(metric(&now, "etcd_debugging_mvcc_watch_stream_total", ""), 1.0);
    assert_eq!(metric(&now, "etcd_debugging_mvcc_watcher_total", ""), 1.0);
    assert_eq!(metric(&now, "etcd_debugging_mvcc_slow_watcher_total", ""), 0.0);
    assert!(metric(&now, "etcd_debugging_mvcc_events_total", "") >= 122.0);
    drop(watch);
    until("the watch is gone from the metrics", || {
        metric(&metrics(member), "etcd_debugging_mvcc_watcher_total", "") == 0.0
    });
}

fn assert_leader_change_is_shown(leading: &Member, following: &Member) {
    let seen = |member| metric(&metrics(member), "etcd_server_leader_changes_seen_total", "");
    let before = [leading, following].map(seen);
    let target_id = status(following).unwrap().header.unwrap().member_id;
    let _: MoveLeaderResponse = calls::call(
        leading,
        "/etcdserverpb.Maintenance/MoveLeader",
        &MoveLeaderRequest { target_id },
    )
    .unwrap();
    until("both see another leader", || {
        [leading, following].map(seen).iter().zip(before).all(|(now, before)| *now > before)
    });
    assert_eq!(metric(&metrics(following), "etcd_server_is_leader", ""), 1.0);
    assert_eq!(metric(&metrics(leading), "etcd_server_is_leader", ""), 0.0);
}
