//! Metrics of three members: what leader and followers show of each other while the leader changes, a
//! follower is gone, and comes back so late that it needs a snapshot.
//!
//! Dashboards and alerts for etcd read these, so their names, types, labels and, where they do not
//! depend on the moment, their numbers have to be Go etcd's.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::{Duration, Instant};

use e2e::exposition::{self, Family, Page};
use e2e::processes::http_get;
use proto::etcdserverpb as pb;
use proto::rpc::Rpc;

use super::metrics::names;
use super::random::lead;
use super::talk::{Call, Talk, with_both};

/// How long it may take until a member shows what happens to another one.
const LIMIT: Duration = Duration::from_secs(90);
/// A leader that stays one, and a log that soon begins behind what a member has that was away.
const FLAGS: [&str; 4] = [
    "--election-timeout=5000",
    "--heartbeat-interval=250",
    "--snapshot-count=20",
    "--snapshot-catchup-entries=5",
];

/// How the number of a series is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Number {
    /// A gauge as it is; a counter or a histogram by how much it rose.
    Equal,
    /// Whether it rose.
    Rises,
    /// Not at all, for the reason that stands beside it.
    Depends(&'static str),
}
use Number::{Depends, Equal, Rises};

/// The families that tell of a member among others, by how their names begin.
const FAMILIES: &[(&str, Number)] = &[
    ("etcd_cluster_version", Depends("whoever reports it has it")),
    ("etcd_network_active_peers", Equal),
    ("etcd_network_disconnected_peers_total", Equal),
    ("etcd_network_known_peers", Equal),
    ("etcd_network_peer_received_bytes_total", Rises),
    ("etcd_network_peer_round_trip_time_seconds", Rises),
    ("etcd_network_peer_sent_bytes_total", Rises),
    ("etcd_network_peer_sent_failures_total", Rises),
    ("etcd_network_snapshot_", Equal),
    ("etcd_server_has_leader", Equal),
    ("etcd_server_heartbeat_send_failures_total", Depends("what a busy machine does")),
    ("etcd_server_id", Equal),
    ("etcd_server_is_leader", Equal),
    ("etcd_server_is_learner", Equal),
    ("etcd_server_leader_changes_seen_total", Equal),
    ("etcd_server_learner_promote_", Depends("nobody is promoted, so one may have no series")),
    ("etcd_server_proposals_applied_total", Rises),
    ("etcd_server_proposals_committed_total", Rises),
    ("etcd_server_proposals_failed_total", Equal),
    ("etcd_server_proposals_pending", Equal),
    ("etcd_server_snapshot_apply_in_progress_total", Equal),
];

/// What differs, and why.
const DEVIATIONS: &[(&str, &str)] =
    &[("{From=0}", "etcd counts bytes of messages that do not say whose they are")];

/// What tools look for in the logs, of a snapshot that the second member sends to the third.
const LOGGED: [(usize, &str); 4] = [
    (1, "sent database snapshot"),
    (2, "applying snapshot"),
    (2, "applySnapshot: opened snapshot backend"),
    (2, "applied snapshot"),
];

/// How a leader says where its log begins now. Go's tells it of the log only at debug level, right after it
/// has told of the image.
const LOG_BEGINS: [(&str, &str); 2] = [
    ("\"compacted Raft logs\"", "\"compact-index\":"),
    ("\"saved snapshot to disk\"", "\"snapshot-index\":"),
];
/// What Go's log begins before the image of.
const KEPT: u64 = 5;

/// What a talk has come to: by member, moment, family and labels, or text of the log.
type Facts = BTreeMap<String, String>;

fn page(talk: &Talk, member: usize) -> Page {
    let member = &talk.cluster.members()[member];
    let text = http_get(member.metrics_endpoint(), "/metrics").expect("metrics");
    exposition::parse(&text).unwrap_or_else(|error| panic!("{}: {error:#}", member.name))
}

/// The number of a series: how often a histogram has observed.
fn number(page: &Page, family: &str, labels: &[(&str, &str)]) -> f64 {
    let samples = page.get(family).map_or(&[][..], |family| &family.samples);
    let is_it = |sample: &&exposition::Sample| {
        let has =
            |(label, value): &(&str, &str)| sample.labels.get(*label).is_some_and(|it| it == value);
        (sample.name == family || sample.name == format!("{family}_count"))
            && labels.iter().all(has)
    };
    samples.iter().filter(is_it).map(|sample| sample.value).sum()
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {LIMIT:?}: {what}");
        thread::sleep(Duration::from_millis(100));
    }
}

/// The last entry that a log can have begun behind, of those that it tells of.
fn log_begins(log: &str) -> u64 {
    let begins = |line: &str| {
        let (_, field) = LOG_BEGINS.iter().find(|(text, _)| line.contains(text))?;
        let (_, rest) = line.split_once(field)?;
        rest.split(|other: char| !other.is_ascii_digit()).next()?.parse().ok()
    };
    log.lines().filter_map(begins).max().unwrap_or(0)
}

fn put(talk: &mut Talk, member: usize, count: usize) {
    talk.member = member;
    for number in 0..count {
        let (key, value) = (format!("key-{number}").into(), "some value".into());
        let request = pb::PutRequest { key, value, ..Default::default() };
        let came = talk.quietly(Call::new(Rpc::KVPut, &request));
        assert!(!came.messages.is_empty(), "a put by member {member}: {:?}", came.status);
    }
}

/// What a member shows of this moment.
struct Moment<'a> {
    name: &'a str,
    member: usize,
    before: &'a Page,
    /// Which families are compared, by how their names begin.
    families: &'a [&'a str],
}

fn note(talk: &Talk, names: &BTreeMap<String, String>, moment: &Moment<'_>, facts: &mut Facts) {
    let now = page(talk, moment.member);
    let empty = Family::default();
    for (name, family) in &now {
        let Some((_, how)) = FAMILIES.iter().find(|(beginning, _)| name.starts_with(beginning))
        else {
            continue;
        };
        if !moment.families.iter().any(|beginning| name.starts_with(beginning)) {
            continue;
        }
        let before = moment.before.get(name).unwrap_or(&empty);
        let place = format!("m{}, {}: {name}", moment.member + 1, moment.name);
        facts.insert(format!("{place}: type"), family.kind.clone());
        if matches!(how, Depends(_)) {
            continue;
        }
        let labels: BTreeSet<&String> =
            family.samples.iter().flat_map(|sample| sample.labels.keys()).collect();
        facts.insert(format!("{place}: labels"), format!("{labels:?}"));
        for sample in &family.samples {
            if sample.name.ends_with("_bucket") || sample.name.ends_with("_sum") {
                continue;
            }
            let same =
                |was: &&exposition::Sample| was.name == sample.name && was.labels == sample.labels;
            let was = before.samples.iter().find(same).map_or(0.0, |was| was.value);
            let rose = sample.value - was;
            let number = match (how, family.kind.as_str()) {
                (Rises, _) => (rose > 0.0).to_string(),
                (_, "gauge") => sample.value.to_string(),
                _ => rose.to_string(),
            };
            let labels = sample
                .labels
                .iter()
                .map(|(label, value)| format!("{label}={}", names.get(value).unwrap_or(value)));
            let labels = labels.collect::<Vec<_>>().join(",");
            facts.insert(format!("{place}: {{{labels}}}"), number);
        }
    }
}

/// A talk about three members.
struct Three<'a> {
    talk: &'a mut Talk,
    names: BTreeMap<String, String>,
    /// In their order, as metrics show them.
    ids: [String; 3],
    facts: Facts,
}

impl Three<'_> {
    fn sees(&self, member: usize, other: usize) -> bool {
        let labels = [("Remote", self.ids[other].as_str())];
        number(&page(self.talk, member), "etcd_network_active_peers", &labels) == 1.0
    }

    fn note(&mut self, moment: &Moment<'_>) {
        note(self.talk, &self.names, moment, &mut self.facts);
    }

    /// Work, by way of each of them, and another leader.
    fn another_leads(&mut self) {
        let pairs = || (0..3).flat_map(|it| (0..3).map(move |other| (it, other)));
        let pairs = || pairs().filter(|(member, other)| member != other);
        until("everybody sees everybody", || pairs().all(|(it, other)| self.sees(it, other)));
        let before = [0, 1, 2].map(|member| page(self.talk, member));
        for member in 0..3 {
            put(self.talk, member, 5);
        }
        lead(self.talk, 1);
        put(self.talk, 0, 1);
        let asked = |page: &Page, other: usize| {
            let labels = [("To", self.ids[other].as_str())];
            number(page, "etcd_network_peer_round_trip_time_seconds", &labels)
        };
        until("everybody has asked everybody how far away they are", || {
            let now = [0, 1, 2].map(|member| page(self.talk, member));
            pairs().all(|(it, other)| asked(&now[it], other) > asked(&before[it], other))
        });
        for (member, before) in before.iter().enumerate() {
            let moment = Moment { name: "another leads", member, before, families: &["etcd_"] };
            self.note(&moment);
        }
    }

    fn one_is_gone(&mut self) {
        let before = [0, 1].map(|member| page(self.talk, member));
        let applied =
            number(&page(self.talk, 2), "etcd_server_proposals_applied_total", &[]) as u64;
        self.talk.cluster.member_mut(2).kill().expect("kill a member");
        put(self.talk, 0, 60);
        // Who comes back before that needs no snapshot.
        until("the leader's log begins behind what it has", || {
            log_begins(&self.talk.cluster.members()[1].log()) > applied + KEPT
        });
        until("it is seen that a member is gone", || !self.sees(0, 2) && !self.sees(1, 2));
        let failures = || {
            let labels = [("To", self.ids[2].as_str())];
            number(&page(self.talk, 1), "etcd_network_peer_sent_failures_total", &labels)
        };
        let failed = failures();
        until("the leader cannot send to it", || failures() > failed);
        for (member, before) in before.iter().enumerate() {
            let mut families = vec![
                "etcd_network_active_peers",
                "etcd_network_disconnected_peers_total",
                "etcd_network_known_peers",
                "etcd_network_snapshot_",
                "etcd_server_",
            ];
            // Who follows may have had nothing to send.
            families.extend((member == 1).then_some("etcd_network_peer_sent_failures_total"));
            self.note(&Moment { name: "one is gone", member, before, families: &families });
        }
    }

    fn it_is_back(&mut self) {
        let before = page(self.talk, 1);
        self.talk.cluster.member_mut(2).restart().expect("start a member again");
        let deadline = Instant::now() + LIMIT;
        loop {
            let labels = [("To", self.ids[2].as_str())];
            let sent = number(&page(self.talk, 1), "etcd_network_snapshot_send_success", &labels);
            let seen = [self.sees(1, 2), self.sees(2, 1), self.sees(0, 2)];
            if sent > 0.0 && seen == [true; 3] {
                break;
            }
            if Instant::now() >= deadline {
                let log = self.talk.cluster.members()[1].log();
                panic!(
                    "{sent} snapshots were sent to it, {seen:?} see each other; the leader:\n{log}"
                );
            }
            thread::sleep(Duration::from_millis(100));
        }
        put(self.talk, 2, 1);
        for (member, text) in LOGGED {
            let log = self.talk.cluster.members()[member].log();
            let is_there = log.contains(&format!("\"msg\":\"{text}\""));
            self.facts.insert(format!("m{} logs: {text}", member + 1), is_there.to_string());
        }
        for (member, before) in [(1, &before), (2, &Page::new())] {
            let families = &[
                "etcd_network_active_peers",
                "etcd_network_known_peers",
                "etcd_network_snapshot_",
                "etcd_server_has_leader",
                "etcd_server_i",
                "etcd_server_snapshot_apply_in_progress_total",
            ];
            self.note(&Moment { name: "it is back", member, before, families });
        }
    }
}

fn talk(talk: &mut Talk) -> Facts {
    lead(talk, 0);
    let names = names(talk);
    let ids = ["m1", "m2", "m3"].map(|name| {
        let found = names.iter().find(|(_, known)| *known == name);
        found.map(|(id, _)| id.clone()).expect("a member of this name")
    });
    let mut three = Three { talk, names, ids, facts: Facts::new() };
    three.another_leads();
    three.one_is_gone();
    three.it_is_back();
    three.facts
}

#[test]
fn three_members_show_each_other_alike() {
    let [go, ours] = with_both(3, &FLAGS, talk);
    let all: BTreeSet<&String> = go.keys().chain(ours.keys()).collect();
    let (mut compared, mut deviating, mut wrong) = (0, BTreeSet::new(), String::new());
    for place in &all {
        // Some series are there before they are used, in the one server or in the other; then nobody
        // knows the labels of the other's either.
        let is_number = place.ends_with('}');
        let missing = || if is_number { "0".to_owned() } else { "none".to_owned() };
        let [theirs, own] =
            [&go, &ours].map(|facts| facts.get(*place).cloned().unwrap_or_else(missing));
        let unused = |text: &String| ["0", "false", "{}", "none"].contains(&text.as_str());
        compared += 1;
        let of_family = place.ends_with(": labels") || place.ends_with(": type");
        let no_samples = of_family && (unused(&theirs) || unused(&own));
        if theirs == own || no_samples || (unused(&theirs) && unused(&own)) {
            continue;
        }
        match DEVIATIONS.iter().position(|(part, _)| place.contains(part)) {
            Some(row) => drop(deviating.insert((row, place))),
            None => wrong.push_str(&format!("{place}: Go {theirs}, ours {own}\n")),
        }
    }
    for (beginning, _) in FAMILIES {
        if !all.iter().any(|place| place.contains(beginning)) {
            wrong.push_str(&format!("{beginning}: etcd has none\n"));
        }
    }
    for (row, (part, _)) in DEVIATIONS.iter().enumerate() {
        if !deviating.iter().any(|(used, _)| *used == row) {
            wrong.push_str(&format!("{part}: no longer differs\n"));
        }
    }
    for (member, text) in LOGGED {
        if go.get(&format!("m{} logs: {text}", member + 1)).is_none_or(|it| it != "true") {
            wrong.push_str(&format!("{text}: etcd does not log it\n"));
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
    let (equal, deviating) = (compared - deviating.len(), deviating.len());
    println!("{compared} facts compared, {equal} equal, {deviating} deviating with reason");
}
