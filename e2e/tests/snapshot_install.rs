//! A member that was away for so long that the leader sends it a snapshot: what its clients see of it.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, also in its helpers")]

mod calls;

use calls::{Watch, compact, metric, metrics, put, status, until};
use e2e::processes::{Cluster, Member, ServerOptions, signal};

/// Writes more than the leader keeps for followers, and answers the last revision.
fn fill(member: &Member) -> i64 {
    let mut last = 0;
    for number in 0..200 {
        last = put(member, &format!("key-{}", number % 10), b"value").unwrap();
    }
    last
}

fn installed(member: &Member) -> f64 {
    metric(&metrics(member), "etcd_network_snapshot_receive_success", "")
}

#[test]
fn watches_go_on_over_a_snapshot_from_the_leader_unless_compaction_has_passed_them() {
    let program = e2e::peers::our_binary("etcd").unwrap();
    let flags = ["--snapshot-count=20", "--snapshot-catchup-entries=5"];
    let options = ServerOptions {
        members: 3,
        flags: flags.map(str::to_owned).to_vec(),
        ..ServerOptions::one(&program)
    };
    let cluster = Cluster::start(&options).unwrap();
    let leader = status(&cluster.members()[0]).unwrap().leader;
    let leads = |member: &&Member| status(member).unwrap().header.unwrap().member_id == leader;
    let leading = cluster.members().iter().find(leads).unwrap();
    let away = cluster.members().iter().find(|member| !leads(member)).unwrap();

    let begin = put(leading, "first", b"value").unwrap();
    until("the follower has the first key", || {
        status(away).unwrap().header.unwrap().revision >= begin
    });
    let mut watch = Watch::open(away, begin);
    signal(away.pid().unwrap(), "STOP").unwrap();
    let last = fill(leading);
    signal(away.pid().unwrap(), "CONT").unwrap();
    until("the follower takes a snapshot", || installed(away) >= 1.0);
    watch.until("the watch has everything", |watch| watch.revisions().last() == Some(&last));
    assert_eq!(watch.revisions(), (begin..=last).collect::<Vec<i64>>(), "none lost, none doubled");
    let next = put(leading, "after", b"value").unwrap();
    watch.until("the watch goes on", |watch| watch.revisions().last() == Some(&next));
    assert_eq!(watch.ended, None);

    signal(away.pid().unwrap(), "STOP").unwrap();
    let last = fill(leading);
    compact(leading, last).unwrap();
    signal(away.pid().unwrap(), "CONT").unwrap();
    until("the follower takes another snapshot", || installed(away) >= 2.0);
    watch.until("the watch is cancelled", |watch| watch.responses.last().unwrap().canceled);
    let cancelled = watch.responses.last().unwrap();
    assert_eq!(cancelled.compact_revision, last, "{cancelled:?}");
    assert_eq!(watch.ended, None, "the stream stays");
    let mut again = Watch::open(away, last);
    let next = put(leading, "after", b"value").unwrap();
    again.until("a new watch works", |watch| watch.revisions().last() == Some(&next));
}
