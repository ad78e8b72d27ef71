//! Members that speak TLS with each other: who is heard, who may join, and how certificates are renewed.
//!
//! Go etcd and ours go through the same tables, so that the expectations are no inventions. `curl` is who
//! calls a member's port without being a member.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, also in its helpers")]

use std::path::Path;
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;
use e2e::authority::{Authority, Pair, Subject, flag};
use e2e::kubernetes::wait;
use e2e::peers;
use e2e::processes::{Cluster, Member, PeerTls, ServerOptions, Tls, free_ports};
use e2e::serving::Serving;

const LIMIT: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// What a member says that cannot learn from the others who it is: etcd's ends then, ours asks again for a while.
const IN_VAIN: [&str; 2] =
    ["cannot fetch cluster info from peer urls", "could not join the cluster yet"];

const MEMBER: Subject<'_> = Subject {
    name: "member",
    serial: 1,
    common_name: "member",
    // The second makes it known by another name than its address.
    hosts: &["127.0.0.1", "127.0.0.77"],
};
const STRANGER: Subject<'_> =
    Subject { name: "stranger", serial: 2, common_name: "stranger", hosts: &["127.0.0.1"] };
const REVOKED: Subject<'_> = Subject { name: "revoked", serial: 3, ..MEMBER };
const NAMELESS: Subject<'_> = Subject { name: "nameless", serial: 4, hosts: &[], ..MEMBER };
const ELSEWHERE: Subject<'_> =
    Subject { name: "elsewhere", serial: 5, hosts: &["127.0.0.77"], ..MEMBER };
const BY_NAME: Subject<'_> =
    Subject { name: "by name", serial: 6, hosts: &["localhost"], ..MEMBER };
const WILDCARD: Subject<'_> =
    Subject { name: "wildcard", serial: 7, hosts: &["*.example"], ..MEMBER };
const SUBJECTS: [Subject<'_>; 7] =
    [MEMBER, STRANGER, REVOKED, NAMELESS, ELSEWHERE, BY_NAME, WILDCARD];

const HERE: &str = "127.0.0.1";
const OTHER_ADDRESS: &str = "127.0.0.2";

/// The rules of a cluster beyond certificates of one CA that are not revoked, with whom a call gets through
/// and who may join.
struct Rules {
    flags: &'static [&'static str],
    /// Pair and address of callers that get an answer; all others of [`CALLERS`] get none.
    heard: &'static [(&'static str, &'static str)],
    /// Those whom ours hears and etcd does not, which asks DNS for the name of their address.
    heard_by_ours: &'static [(&'static str, &'static str)],
    /// Pairs to call others with, for a fourth member whose pair for being called is that of a member.
    joins: &'static [&'static str],
    refused: &'static [&'static str],
}

/// `foreign` is signed by another authority, `none` is no certificate.
const CALLERS: [(&str, &str); 11] = [
    ("member", HERE),
    ("member", OTHER_ADDRESS),
    ("stranger", HERE),
    ("stranger", OTHER_ADDRESS),
    ("revoked", HERE),
    ("nameless", HERE),
    ("elsewhere", HERE),
    ("by name", HERE),
    ("wildcard", HERE),
    ("foreign", HERE),
    ("none", HERE),
];

const RULES: [Rules; 4] = [
    Rules {
        flags: &[],
        heard: &[("member", HERE), ("stranger", HERE), ("nameless", HERE), ("by name", HERE)],
        heard_by_ours: &[("wildcard", HERE)],
        joins: &["stranger"],
        refused: &["elsewhere", "revoked", "foreign"],
    },
    Rules {
        flags: &["--peer-cert-allowed-cn=someone,member"],
        heard: &[("member", HERE), ("nameless", HERE), ("by name", HERE)],
        heard_by_ours: &[("wildcard", HERE)],
        joins: &["member"],
        refused: &["stranger", "elsewhere"],
    },
    Rules {
        flags: &["--peer-cert-allowed-hostname=127.0.0.77"],
        heard: &[("member", HERE)],
        heard_by_ours: &[],
        joins: &["member"],
        refused: &["stranger", "nameless"],
    },
    Rules {
        flags: &["--peer-skip-client-san-verification"],
        heard: &[
            ("member", HERE),
            ("member", OTHER_ADDRESS),
            ("stranger", HERE),
            ("stranger", OTHER_ADDRESS),
            ("nameless", HERE),
            ("elsewhere", HERE),
            ("by name", HERE),
            ("wildcard", HERE),
        ],
        heard_by_ours: &[],
        joins: &["elsewhere"],
        refused: &["revoked"],
    },
];

/// Two authorities: one signs for members, the other for one who is none.
struct Certificates {
    authority: Authority,
    foreign: Authority,
}

impl Certificates {
    fn new() -> Certificates {
        let (authority, foreign) = (Authority::new().unwrap(), Authority::new().unwrap());
        for subject in &SUBJECTS {
            authority.issue(subject).unwrap();
        }
        authority.revoke(&[REVOKED.serial]).unwrap();
        foreign.issue(&Subject { name: "foreign", ..MEMBER }).unwrap();
        Certificates { authority, foreign }
    }

    fn pair(&self, name: &str) -> Pair {
        let of = if name == "foreign" { &self.foreign } else { &self.authority };
        of.pair(name)
    }

    fn options(&self, program: &Path, flags: &[&str]) -> ServerOptions {
        let rules = flags.iter().map(|&flag| flag.to_owned());
        ServerOptions {
            members: 3,
            peer_tls: PeerTls::Given(self.pair("member")),
            flags: [
                flag("peer-trusted-ca-file", &self.authority.ca()),
                flag("peer-crl-file", &self.authority.revoked()),
                "--peer-client-cert-auth".to_owned(),
            ]
            .into_iter()
            .chain(rules)
            .collect(),
            ..ServerOptions::one(program)
        }
    }
}

/// At once: most of the time members wait for each other.
fn with_both_programs(test: impl Fn(&Path) + Sync) {
    let (theirs, ours) = (peers::etcd_binaries().unwrap().etcd, peers::our_binary("etcd").unwrap());
    thread::scope(|scope| {
        for program in [&theirs, &ours] {
            scope.spawn(|| test(program));
        }
    });
}

fn run_etcdctl(member: &Member, arguments: &[&str]) -> Output {
    Command::new(peers::etcd_binaries().unwrap().etcdctl)
        .arg(format!("--endpoints={}", member.client_url()))
        // An election on a busy machine, after members were restarted.
        .arg("--command-timeout=30s")
        .args(arguments)
        .output()
        .unwrap()
}

fn etcdctl(member: &Member, arguments: &[&str]) -> String {
    let output = run_etcdctl(member, arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}\n{}", member.log());
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Whether a member answers who calls its port for members.
fn hears(member: &Member, ca: &Path, pair: Option<&Pair>, from: &str) -> bool {
    let mut curl = Command::new("curl");
    // Members of etcd agree on HTTP/2 and then speak HTTP/1.
    curl.args(["--silent", "--show-error", "--max-time", "20", "--http1.1", "--no-alpn"]);
    curl.args(["--interface", from, "--cacert"]).arg(ca);
    if let Some(pair) = pair {
        curl.arg("--cert").arg(&pair.cert).arg("--key").arg(&pair.key);
    }
    let answer = curl.arg(format!("{}/version", member.peer_url)).output();
    let answer = answer.expect("run curl; install it");
    String::from_utf8_lossy(&answer.stdout).contains("etcdserver")
}

fn callers_are_heard_by_the_rules(program: &Path, rules: &Rules) {
    let certificates = Certificates::new();
    let mut cluster = Cluster::start(&certificates.options(program, rules.flags)).unwrap();
    etcdctl(&cluster.members()[0], &["put", "a", "1"]);
    assert_eq!(etcdctl(&cluster.members()[2], &["get", "a"]), "a\n1\n");
    let ca = certificates.authority.ca();
    let is_ours = program == peers::our_binary("etcd").unwrap();
    for (name, from) in CALLERS {
        let by_ours = is_ours && rules.heard_by_ours.contains(&(name, from));
        let pair = (name != "none").then(|| certificates.pair(name));
        let member = &cluster.members()[1];
        assert_eq!(
            hears(member, &ca, pair.as_ref(), from),
            by_ours || rules.heard.contains(&(name, from)),
            "{} with {:?}: {name} from {from}\n{}",
            program.display(),
            rules.flags,
            member.log()
        );
    }
    a_fourth_joins_by_the_rules(program, rules, &certificates, &mut cluster);
}

fn a_fourth_joins_by_the_rules(
    program: &Path,
    rules: &Rules,
    certificates: &Certificates,
    cluster: &mut Cluster,
) {
    let options = certificates.options(program, rules.flags);
    let fourth = cluster.prepare_to_join(&options, &[0, 1, 2]).unwrap();
    add(cluster, fourth);
    for name in rules.refused {
        calls_with(cluster.member_mut(fourth), &certificates.pair(name));
        let member = cluster.member_mut(fourth);
        let before = member.log().len();
        member.launch().unwrap();
        until(|| IN_VAIN.iter().any(|words| member.log()[before..].contains(words)));
        member.kill().unwrap();
        assert!(!member.log().contains("ready to serve"), "{} {name}", program.display());
    }
    for name in rules.joins {
        let member = cluster.member_mut(fourth);
        calls_with(member, &certificates.pair(name));
        member.launch().unwrap();
        member.wait_until_healthy().unwrap();
        assert_eq!(etcdctl(member, &["get", "a"]), "a\n1\n", "{} {name}", program.display());
    }
}

/// etcd wants all members to have been connected for some seconds.
fn add(cluster: &Cluster, member: usize) {
    let url = format!("--peer-urls={}", cluster.members()[member].peer_url);
    let deadline = Instant::now() + LIMIT;
    loop {
        let output = run_etcdctl(&cluster.members()[0], &["member", "add", "m4", &url]);
        if output.status.success() {
            return;
        }
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(errors.contains("unhealthy cluster") && Instant::now() < deadline, "{errors}");
        thread::sleep(LOOK_AGAIN);
    }
}

fn calls_with(member: &mut Member, pair: &Pair) {
    member.clear_flag("--peer-client-cert-file");
    member.clear_flag("--peer-client-key-file");
    member.set_flag(&flag("peer-client-cert-file", &pair.cert));
    member.set_flag(&flag("peer-client-key-file", &pair.key));
}

#[test]
fn members_hear_those_whose_certificates_the_rules_allow() {
    with_both_programs(|program| {
        for rules in &RULES {
            callers_are_heard_by_the_rules(program, rules);
        }
    });
}

/// A certificate of the CA that may call nobody may not be called either: with it members find no quorum.
#[test]
fn members_do_not_call_those_whose_names_are_not_allowed() {
    with_both_programs(|program| {
        let certificates = Certificates::new();
        let mut options = certificates.options(program, &["--peer-cert-allowed-cn=member"]);
        let mut cluster = Cluster::start(&options).unwrap();
        options.peer_tls = PeerTls::Given(certificates.pair("stranger"));
        let member = certificates.pair("member");
        options.flags.push(flag("peer-client-cert-file", &member.cert));
        options.flags.push(flag("peer-client-key-file", &member.key));
        let fourth = cluster.prepare_to_join(&options, &[0, 1, 2]).unwrap();
        add(&cluster, fourth);
        cluster.member_mut(fourth).launch().unwrap();
        let complains =
            |member: &Member| member.log().contains("client certificate authentication failed");
        until(|| cluster.members().iter().any(complains));
    });
}

/// One pair for everything, which is also what everybody trusts: `openssl req -x509` makes it so.
#[test]
fn a_certificate_that_is_its_own_authority_serves_where_it_is_trusted() {
    let authority = Authority::new().unwrap();
    let own = authority.issue_itself(&Subject { name: "own", ..MEMBER }).unwrap();
    let other = authority.issue_itself(&Subject { name: "other", serial: 2, ..MEMBER }).unwrap();
    with_both_programs(|program| {
        let options = ServerOptions {
            members: 2,
            tls: Tls::Given { cert: own.cert.clone(), key: own.key.clone() },
            peer_tls: PeerTls::Given(own.clone()),
            flags: vec![
                "--client-cert-auth".to_owned(),
                flag("trusted-ca-file", &own.cert),
                "--peer-client-cert-auth".to_owned(),
                flag("peer-trusted-ca-file", &own.cert),
            ],
            ..ServerOptions::one(program)
        };
        let cluster = Cluster::start(&options).unwrap();
        let [first, second] = cluster.members() else { panic!("two members") };
        let showing = |pair: &Pair| {
            [flag("cacert", &own.cert), flag("cert", &pair.cert), flag("key", &pair.key)]
        };
        let [cacert, cert, key] = &showing(&own);
        etcdctl(first, &[cacert, cert, key, "put", "a", "1"]);
        assert_eq!(etcdctl(second, &[cacert, cert, key, "get", "a"]), "a\n1\n");
        assert!(hears(first, &own.cert, Some(&own), HERE), "{}", first.log());
        assert!(!hears(first, &own.cert, Some(&other), HERE), "{}", program.display());
        let [cacert, cert, key] = &showing(&other);
        let refused = run_etcdctl(first, &["--command-timeout=3s", cacert, cert, key, "get", "a"]);
        assert!(!refused.status.success(), "{refused:?}");
    });
}

fn until(condition: impl Fn() -> bool) {
    let came_true = || {
        ensure!(condition(), "it did not");
        Ok(())
    };
    wait::until("it comes true", LIMIT, came_true).unwrap();
}

/// What runs on is the cluster: a member that is started anew shows new certificates to members that are not,
/// and they to it. Of the CA etcd takes notice at its start only (etcd#11555), ours at once.
#[test]
fn certificates_are_renewed_while_the_cluster_goes_on() {
    let go = peers::etcd_binaries().unwrap().etcd;
    with_both_programs(|program| {
        let certificates = Certificates::new();
        let authority = &certificates.authority;
        let mut cluster = Cluster::start(&certificates.options(program, &[])).unwrap();
        let ca = authority.ca();
        let old = certificates.pair("stranger");
        let is_served = |cluster: &Cluster, value: &str| {
            etcdctl(&cluster.members()[0], &["put", "a", value]);
            assert_eq!(etcdctl(&cluster.members()[2], &["get", "a"]), format!("a\n{value}\n"));
        };

        // The same authority signs again: serial 1 would be noticed now.
        let renewed = Subject { serial: 11, ..MEMBER };
        authority.issue(&renewed).unwrap();
        authority.revoke(&[MEMBER.serial]).unwrap();
        cluster.member_mut(1).restart().unwrap();
        is_served(&cluster, "renewed");

        // Another authority: first both are believed, then it signs, then the first is not believed any more.
        let next = Authority::new().unwrap();
        let theirs = next.issue(&Subject { name: "theirs", serial: 21, ..MEMBER }).unwrap();
        next.revoke(&[]).unwrap();
        authority.trust(&[authority, &next]).unwrap();
        let is_of_go = program == go;
        let member = &cluster.members()[0];
        assert_eq!(hears(member, &ca, Some(&theirs), HERE), !is_of_go, "{}", program.display());
        if is_of_go {
            restart_all(&mut cluster);
        }
        authority.renew(&next, &Subject { serial: 12, ..MEMBER }).unwrap();
        cluster.member_mut(2).restart().unwrap();
        is_served(&cluster, "of the next authority");
        assert!(hears(&cluster.members()[0], &ca, Some(&theirs), HERE));
        assert!(hears(&cluster.members()[0], &next.ca(), Some(&old), HERE), "who has not renewed");
        authority.trust(&[&next]).unwrap();
        assert_eq!(hears(&cluster.members()[0], &ca, Some(&old), HERE), is_of_go);
        if is_of_go {
            restart_all(&mut cluster);
        } else {
            cluster.member_mut(1).restart().unwrap();
        }
        is_served(&cluster, "of nobody else");
        assert!(!hears(&cluster.members()[0], &ca, Some(&old), HERE), "{}", program.display());
        assert!(hears(&cluster.members()[0], &ca, Some(&theirs), HERE), "{}", program.display());
    });
}

/// One after the other, so that two of three serve all the time.
fn restart_all(cluster: &mut Cluster) {
    for index in 0..cluster.members().len() {
        cluster.member_mut(index).restart().unwrap();
    }
}

/// What cannot be meant is refused before anything listens.
#[test]
fn names_of_both_kinds_are_refused_together() {
    let certificates = Certificates::new();
    let pair = certificates.pair("member");
    with_both_programs(|program| {
        let directory = tempfile::tempdir().unwrap();
        let ports = free_ports(2).unwrap();
        let mut command = Command::new(program);
        command
            .arg(format!("--data-dir={}", directory.path().join("data").display()))
            .arg(format!("--listen-client-urls=http://127.0.0.1:{}", ports[0]))
            .arg(format!("--advertise-client-urls=http://127.0.0.1:{}", ports[0]))
            .arg(format!("--listen-peer-urls=https://127.0.0.1:{}", ports[1]))
            .arg(format!("--initial-advertise-peer-urls=https://127.0.0.1:{}", ports[1]))
            .arg(format!("--initial-cluster=default=https://127.0.0.1:{}", ports[1]))
            .arg(flag("peer-cert-file", &pair.cert))
            .arg(flag("peer-key-file", &pair.key))
            .arg(flag("peer-trusted-ca-file", &certificates.authority.ca()))
            .args(["--peer-cert-allowed-cn=a", "--peer-cert-allowed-hostname=b"]);
        let mut serving = Serving::launch(&mut command).unwrap();
        let status = serving.wait_until_ended().unwrap();
        let log = serving.log();
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(log.contains("AllowedCNs and AllowedHostnames are mutually exclusive"), "{log}");
    });
}
