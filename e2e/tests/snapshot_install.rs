//! A member that was away for so long that the leader sends it a snapshot: what its clients see of it.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, also in its helpers")]

mod calls;

use std::time::{Duration, Instant};

use calls::{Watch, call, compact, metric, metrics, put, status, until};
use e2e::processes::{Cluster, Member, ServerOptions, signal};
use proto::etcdserverpb::{DefragmentRequest, DefragmentResponse};

/// How long the leader may take, by far, until it gives up entries for a follower that does not answer.
const GIVEN_UP_MAX: Duration = Duration::from_secs(60);

/// So many writes are more than what the leader keeps of its log for followers.
const BEYOND_THE_LOG: usize = 60;

/// The members that are not away.
struct Others<'a>(Vec<&'a Member>);

impl Others<'_> {
    fn write(&self, number: usize) -> i64 {
        put(self.0[number % self.0.len()], &format!("key-{}", number % 10), b"value").unwrap()
    }

    /// Snapshots on their way to the one that is away, whoever leads.
    fn snapshots_under_way(&self) -> f64 {
        let sent =
            |member| metric(&metrics(member), "etcd_network_snapshot_send_inflights_total", "");
        self.0.iter().map(|member| sent(member)).sum()
    }

    /// Writes until only a snapshot can bring the one that is away up to date. Until the leader has
    /// begun one, what it sends waits in the sockets, and the follower would find it there. The first
    /// snapshot may be as old as that; the writes behind it are in no log any more. Answers the last
    /// revision.
    fn write_past_the_log(&self) -> i64 {
        let began = Instant::now();
        let mut number = 0;
        while self.snapshots_under_way() == 0.0 {
            assert!(began.elapsed() < GIVEN_UP_MAX, "no snapshot after {number} writes");
            (0..20).for_each(|more| {
                self.write(number + more);
            });
            number += 20;
        }
        (0..BEYOND_THE_LOG).for_each(|more| {
            self.write(number + more);
        });
        self.purge()
    }

    /// Has everybody write an image, behind which the log goes. Answers the last revision.
    fn purge(&self) -> i64 {
        for member in &self.0 {
            let path = "/etcdserverpb.Maintenance/Defragment";
            call::<DefragmentResponse>(member, path, &DefragmentRequest {}).unwrap();
        }
        // The log goes in the turn after the image, which the leader takes before these.
        (0..BEYOND_THE_LOG).map(|number| self.write(number)).max().unwrap()
    }
}

/// How many snapshots a member has made its own.
fn installed(member: &Member) -> usize {
    member.log().matches("\"applied snapshot\"").count()
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
    let away = cluster.members().iter().find(|member| !leads(member)).unwrap();
    let others = cluster.members().iter().filter(|member| member.name != away.name);
    let others = Others(others.collect());

    let begin = others.write(0);
    until("the follower has the first key", || {
        status(away).unwrap().header.unwrap().revision >= begin
    });
    let mut watch = Watch::open(away, begin);
    signal(away.pid().unwrap(), "STOP").unwrap();
    let last = others.write_past_the_log();
    signal(away.pid().unwrap(), "CONT").unwrap();
    watch.until("the watch has everything", |watch| watch.revisions().last() == Some(&last));
    assert_eq!(watch.revisions(), (begin..=last).collect::<Vec<i64>>(), "none lost, none doubled");
    let first_time = installed(away);
    assert!(first_time >= 1, "the follower took no snapshot");
    until("its leader says that it has sent one", || {
        others.0.iter().any(|member| member.log().contains("\"sent database snapshot\""))
    });
    let measured = metrics(away);
    for name in ["etcd_snap_db_fsync_duration_seconds", "etcd_snap_db_save_total_duration_seconds"]
    {
        let count = metric(&measured, &format!("{name}_count"), "");
        assert!(count >= 1.0, "{name} says {count}");
    }
    let next = others.write(0);
    watch.until("the watch goes on", |watch| watch.revisions().last() == Some(&next));
    assert_eq!(watch.ended, None);

    signal(away.pid().unwrap(), "STOP").unwrap();
    let last = others.write_past_the_log();
    compact(others.0[0], last).unwrap();
    others.purge();
    signal(away.pid().unwrap(), "CONT").unwrap();
    watch.until("the watch is cancelled", |watch| watch.responses.last().unwrap().canceled);
    let cancelled = watch.responses.last().unwrap();
    assert_eq!(cancelled.compact_revision, last, "{cancelled:?}");
    assert_eq!(watch.ended, None, "the stream stays");
    assert!(installed(away) > first_time, "the follower took no other snapshot");
    let mut again = Watch::open(away, last);
    let next = others.write(0);
    again.until("a new watch works", |watch| watch.revisions().last() == Some(&next));
}
