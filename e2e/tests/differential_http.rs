//! What stands beside gRPC on the listeners (`/health`, `/livez`, `/readyz`, `/version`, `/metrics`,
//! `/debug/vars`) is answered as by Go etcd: every path by every method, on client, metrics and peer URLs, by
//! members that are well, full, corrupt, or learners.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, also in its helpers")]

mod calls;

use std::path::Path;

use calls::{call, until};
use e2e::gateway::{Ask, ask};
use e2e::processes::{Cluster, Member, ServerOptions};
use proto::etcdserverpb::alarm_request::AlarmAction;
use proto::etcdserverpb::{
    AlarmRequest, AlarmResponse, AlarmType, MemberAddRequest, MemberAddResponse, StatusResponse,
};

const METHODS: [&str; 6] = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"];

/// Those whose answer says how the member is.
const HEALTH: &[&str] = &[
    "/health",
    "/health?serializable=true",
    "/health?serializable=nonsense",
    "/health?exclude=NOSPACE",
    "/health?exclude=CORRUPT&exclude=NOSPACE",
    "/health?exclude=nothing",
    "/livez",
    "/livez?verbose",
    "/livez?verbose&exclude=serializable_read",
    "/livez?exclude=nothing&verbose",
    "/livez/serializable_read",
    "/livez/serializable_read?verbose",
    "/livez/data_corruption",
    "/livez/",
    "/readyz",
    "/readyz?verbose",
    "/readyz?verbose=false",
    "/readyz?verbose&exclude=data_corruption&exclude=linearizable_read",
    "/readyz/data_corruption",
    "/readyz/data_corruption?verbose",
    "/readyz/serializable_read?verbose",
    "/readyz/linearizable_read?verbose",
    "/readyz/non_learner?verbose",
    "/readyz/nothing",
];

const OTHERS: &[&str] = &[
    "/",
    "/version",
    "/version/",
    "/nothing",
    "/members",
    "/v2/keys",
    "/debug/pprof/",
    "/config/local/log",
    "/health/",
    "/healthz",
];

/// Whose bodies are numbers of the run.
const NUMBERS: &[&str] = &["/metrics", "/debug/vars"];

/// Asks everything at one listener; what differs from run to run is left out.
fn answers(
    listener: &str,
    endpoint: &str,
    paths: &[&str],
    methods: &[&'static str],
) -> Vec<String> {
    let mut answers = Vec::new();
    for path in paths {
        for method in methods {
            let request = Ask { method, path: (*path).to_owned(), ..Ask::default() };
            let answer = ask(endpoint, &request).unwrap_or_else(|e| panic!("{request:?}: {e:#}"));
            let mut answer = answer.masked();
            if NUMBERS.contains(path) && answer.status == "200" {
                answer.body = "numbers".to_owned();
            }
            if answer.body.contains("[+]") || answer.body.contains("[-]") {
                // Go goes through its checks in another order each time.
                let mut lines: Vec<&str> = answer.body.lines().collect();
                lines.sort_unstable();
                answer.body = lines.join("\n");
            }
            answers.push(format!("{listener} {method} {path}: {answer:?}"));
        }
    }
    answers
}

fn everywhere(member: &Member, paths: &[&str], methods: &[&'static str]) -> Vec<String> {
    [("client", member.endpoint.as_str()), ("metrics", member.metrics_endpoint())]
        .into_iter()
        .flat_map(|(listener, endpoint)| answers(listener, endpoint, paths, methods))
        .collect()
}

/// Go etcd leaves a connection to a peer URL open for five seconds, so these are few.
fn at_peer_url(member: &Member) -> Vec<String> {
    let endpoint = member.peer_url.trim_start_matches("http://");
    answers("peer", endpoint, &["/version", "/health", "/metrics", "/nothing"], &["GET"])
}

/// Does the same with a cluster of each program, and compares what it answers.
fn compare(members: usize, talk: impl Fn(&Path, &mut Cluster) -> Vec<String>) {
    let programs =
        [e2e::peers::etcd_binaries().unwrap().etcd, e2e::peers::our_binary("etcd").unwrap()];
    let [expected, found] = programs.map(|program| {
        let options = ServerOptions { members, ..ServerOptions::one(&program) };
        let mut cluster = Cluster::start(&options).unwrap();
        talk(&program, &mut cluster)
    });
    let differences: Vec<String> = expected
        .iter()
        .zip(&found)
        .filter(|(expected, found)| expected != found)
        .map(|(expected, found)| format!("Go   {expected}\nours {found}\n"))
        .collect();
    assert_eq!(expected.len(), found.len());
    assert!(differences.is_empty(), "\n{}", differences.concat());
    println!("{} requests, all answered alike", expected.len());
}

fn alarm(member: &Member, kind: AlarmType, action: AlarmAction) {
    let id = calls::status(member).unwrap().header.unwrap().member_id;
    let request = AlarmRequest { action: action as i32, member_id: id, alarm: kind as i32 };
    let _: AlarmResponse = call(member, "/etcdserverpb.Maintenance/Alarm", &request).unwrap();
}

#[test]
fn a_member_that_is_well_answers_everything_alike() {
    compare(1, |_, cluster| {
        let paths = [HEALTH, OTHERS, NUMBERS].concat();
        let member = &cluster.members()[0];
        [everywhere(member, &paths, &METHODS), at_peer_url(member)].concat()
    });
}

#[test]
fn alarms_show_in_health_alike() {
    compare(1, |_, cluster| {
        let member = &cluster.members()[0];
        let mut found = Vec::new();
        for kind in [AlarmType::Nospace, AlarmType::Corrupt] {
            alarm(member, kind, AlarmAction::Activate);
            found.extend(everywhere(member, HEALTH, &["GET"]));
            alarm(member, kind, AlarmAction::Deactivate);
            found.extend(everywhere(member, HEALTH, &["GET"]));
        }
        found
    });
}

#[test]
fn a_learner_answers_alike() {
    compare(1, |program, cluster| {
        let options = ServerOptions::one(program);
        let joining = cluster.prepare_to_join(&options, &[0]).unwrap();
        let peer_url = cluster.members()[joining].peer_url.clone();
        let request = MemberAddRequest { peer_ur_ls: vec![peer_url], is_learner: true };
        let _: MemberAddResponse =
            call(&cluster.members()[0], "/etcdserverpb.Cluster/MemberAdd", &request).unwrap();
        cluster.member_mut(joining).launch().unwrap();
        let learner = &cluster.members()[joining];
        let is_there = Ask { method: "GET", path: "/livez".to_owned(), ..Ask::default() };
        until("the learner serves", || {
            ask(learner.metrics_endpoint(), &is_there).is_ok_and(|answer| answer.status == "200")
        });
        // A linearizable read of a learner ends with its time-out; what it says is compared elsewhere.
        let quick = |path: &&&str| path.contains("serializable") || path.contains("non_learner");
        let paths: Vec<&str> = HEALTH.iter().filter(quick).copied().collect();
        everywhere(learner, &paths, &["GET"])
    });
}

/// Without a quorum nobody has a leader: neither a follower, whose vote is still for the one that it has
/// lost, nor the one that led.
#[test]
fn a_member_that_lost_its_quorum_has_no_leader_alike() {
    for survivor_leads in [false, true] {
        compare(3, |_, cluster| {
            let id = |of: &StatusResponse| of.header.as_ref().unwrap().member_id;
            let statuses: Vec<_> =
                cluster.members().iter().map(|member| calls::status(member).unwrap()).collect();
            let leads = |of: &StatusResponse| id(of) == of.leader;
            let survivor = statuses.iter().position(|of| leads(of) == survivor_leads).unwrap();
            for other in (0..3).filter(|other| *other != survivor) {
                cluster.member_mut(other).kill().unwrap();
            }
            let survivor = &cluster.members()[survivor];
            let health = Ask { method: "GET", path: "/health".to_owned(), ..Ask::default() };
            until("the member has noticed", || {
                ask(survivor.metrics_endpoint(), &health)
                    .is_ok_and(|answer| answer.body.contains("RAFT NO LEADER"))
            });
            let now = calls::status(survivor).unwrap();
            let metrics = calls::metrics(survivor);
            let told = [
                format!("leader {:x}, errors {:?}", now.leader, now.errors),
                format!("has_leader {}", metrics["etcd_server_has_leader"]),
                format!("is_leader {}", metrics["etcd_server_is_leader"]),
            ];
            // What reads through a quorum ends with its time-out; what that says is compared elsewhere.
            let quick = |path: &&&str| {
                path.starts_with("/livez")
                    || (path.starts_with("/health") && !path.contains("exclude"))
                    || path.ends_with("/serializable_read?verbose")
            };
            let paths: Vec<&str> = HEALTH.iter().filter(quick).copied().collect();
            told.into_iter().chain(everywhere(survivor, &paths, &["GET"])).collect()
        });
    }
}
