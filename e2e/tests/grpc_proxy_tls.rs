//! TLS of `etcd grpc-proxy start`, on both of its sides: who may speak with it, and whom it believes to be a
//! member.
//!
//! The proxies of Go etcd and ours go through the same table, each before both servers. Clients are Go's
//! `etcdctl`, and `curl` where versions and cipher suites matter.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, also in its helpers")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use e2e::authority::speaking::{AES_128, AES_256, TLS12, TLS13};
use e2e::authority::{Authority, Subject, flag};
use e2e::peers;
use e2e::processes::{Cluster, ServerOptions, Tls, free_ports};
use e2e::serving::Serving;

const READY: &str = "started gRPC proxy";
const REVOKED: u64 = 5;

/// Ours and Go's.
fn programs() -> [PathBuf; 2] {
    [peers::our_binary("etcd").unwrap(), peers::etcd_binaries().unwrap().etcd]
}

/// One authority for members, proxies and clients. The names of a pair's files are those of the tables.
fn authority() -> Authority {
    let authority = Authority::new().unwrap();
    for (serial, name, common_name) in [
        (1, "server", "server"),
        (2, "proxy", "proxy"),
        (3, "to members", ""),
        (4, "client", "client"),
        (REVOKED, "revoked", "revoked"),
    ] {
        let subject = Subject { name, serial, common_name, hosts: &["127.0.0.1"] };
        authority.issue(&subject).unwrap();
    }
    authority.revoke(&[REVOKED]).unwrap();
    authority
}

/// A member that wants certificates from everybody.
fn secure_member(program: &Path, authority: &Authority) -> Cluster {
    let pair = authority.pair("server");
    let options = ServerOptions {
        tls: Tls::Given { cert: pair.cert, key: pair.key },
        flags: vec![flag("trusted-ca-file", &authority.ca()), "--client-cert-auth".to_owned()],
        ..ServerOptions::one(program)
    };
    Cluster::start(&options).unwrap()
}

/// Flags for the side of the members.
fn to_members(authority: &Authority) -> Vec<String> {
    authority.client_flags("to members")
}

/// Flags for the side of clients, without an authority that clients have to be known to.
fn for_clients(authority: &Authority) -> Vec<String> {
    let pair = authority.pair("proxy");
    vec![flag("cert-file", &pair.cert), flag("key-file", &pair.key)]
}

struct Proxy {
    serving: Serving,
    address: String,
}

impl Proxy {
    fn command(
        program: &Path,
        endpoint: &str,
        flags: &[String],
        directory: &Path,
    ) -> (Command, String) {
        let address = format!("127.0.0.1:{}", free_ports(1).unwrap()[0]);
        let mut command = Command::new(program);
        command
            .args(["grpc-proxy", "start"])
            .arg(format!("--listen-addr={address}"))
            .arg(format!("--advertise-client-url={address}"))
            .arg(format!("--data-dir={}", directory.display()))
            .arg(format!("--endpoints={endpoint}"))
            .args(flags);
        (command, address)
    }

    fn start(program: &Path, endpoint: &str, flags: &[String], directory: &Path) -> Proxy {
        let (mut command, address) = Proxy::command(program, endpoint, flags, directory);
        Proxy { serving: Serving::start(&mut command, READY).unwrap(), address }
    }

    fn etcdctl(&self, flags: &[String], arguments: &[&str]) -> Output {
        Command::new(peers::etcd_binaries().unwrap().etcdctl)
            .arg(format!("--endpoints=https://{}", self.address))
            .arg("--command-timeout=5s")
            .args(flags)
            .args(arguments)
            .output()
            .unwrap()
    }

    /// Whether a client writes and reads through it.
    fn serves(&self, flags: &[String]) -> bool {
        let put = self.etcdctl(flags, &["put", "a", &self.address]);
        if !put.status.success() {
            return false;
        }
        let got = self.etcdctl(flags, &["get", "a", "--print-value-only"]);
        assert_eq!(String::from_utf8_lossy(&got.stdout).trim(), self.address, "{got:?}");
        true
    }

    /// Whether HTTP is answered to who speaks TLS like this.
    fn answers_over_http(&self, authority: &Authority, how: &[&str]) -> bool {
        self.page(authority, "/health", how).contains("\"health\":\"true\"")
    }

    fn page(&self, authority: &Authority, path: &str, how: &[&str]) -> String {
        let answer = Command::new("curl")
            .args(["--silent", "--show-error", "--max-time", "10", "--http1.1", "--no-alpn"])
            .arg("--cacert")
            .arg(authority.ca())
            .args(how)
            .arg(format!("https://{}{path}", self.address))
            .output()
            .expect("run curl; install it");
        String::from_utf8_lossy(&answer.stdout).into_owned()
    }
}

/// Runs a test with each proxy before each server, whose name for failures is the last argument.
fn with_each_pair(tls: impl Fn(&Path) -> Cluster, test: impl Fn(&Path, &Cluster, &str)) {
    for server in programs() {
        let cluster = tls(&server);
        for proxy in programs() {
            let name = format!("{} before {}", proxy.display(), server.display());
            test(&proxy, &cluster, &name);
        }
    }
}

#[test]
fn a_proxy_takes_clients_and_believes_members_by_its_certificates() {
    let authority = authority();
    let directory = tempfile::tempdir().unwrap();
    with_each_pair(
        |server| secure_member(server, &authority),
        |program, cluster, name| {
            let endpoint = cluster.members()[0].client_url();
            let trust = vec![flag("cacert", &authority.ca())];
            let anyone = [for_clients(&authority), to_members(&authority)].concat();
            let proxy = Proxy::start(program, &endpoint, &anyone, directory.path());
            assert!(proxy.serves(&trust), "{name}: {}", proxy.serving.log());
            assert!(!proxy.serves(&[]), "{name}: a client has to know who signed");
            assert!(proxy.serves(&authority.client_flags("client")), "{name}");
            assert!(proxy.answers_over_http(&authority, &[]), "{name}: {}", proxy.serving.log());
            // It asks itself, and does not know who signed its own certificate.
            assert_eq!(
                proxy.page(&authority, "/proxy/health", &[]),
                "{\"health\":\"false\",\"reason\":\"GET ERROR:context deadline exceeded\"}\n",
                "{name}"
            );

            // An authority alone makes it want certificates, and the list keeps some of them out.
            let known = [
                anyone,
                vec![
                    flag("trusted-ca-file", &authority.ca()),
                    flag("client-crl-file", &authority.revoked()),
                ],
            ]
            .concat();
            authority.revoke(&[REVOKED]).unwrap();
            let proxy = Proxy::start(program, &endpoint, &known, directory.path());
            assert!(proxy.serves(&authority.client_flags("client")), "{name}");
            let client = authority.pair("client");
            let files = [&client.cert, &client.key].map(|path| path.display().to_string());
            let shown = ["--cert", &files[0], "--key", &files[1]];
            assert_eq!(
                proxy.page(&authority, "/proxy/health", &shown),
                "{\"health\":\"true\",\"reason\":\"\"}",
                "{name}"
            );
            assert_eq!(proxy.page(&authority, "/health", &[]), "", "{name}");
            assert!(!proxy.serves(&trust), "{name}: without a certificate");
            assert!(!proxy.serves(&authority.client_flags("revoked")), "{name}: revoked");
            authority.revoke(&[]).unwrap();
            assert!(proxy.serves(&authority.client_flags("revoked")), "{name}: not any more");
        },
    );
}

#[test]
fn a_proxy_that_does_not_know_its_members_serves_nobody_unless_told_not_to_look() {
    let authority = authority();
    let other = Authority::new().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let nobody = Subject { name: "nobody", serial: 1, common_name: "", hosts: &["127.0.0.1"] };
    other.issue(&nobody).unwrap();
    let trust = vec![flag("cacert", &authority.ca())];
    let pair = authority.pair("server");
    with_each_pair(
        |server| {
            // It asks nobody for a certificate.
            let tls = Tls::Given { cert: pair.cert.clone(), key: pair.key.clone() };
            Cluster::start(&ServerOptions { tls, ..ServerOptions::one(server) }).unwrap()
        },
        |program, cluster, name| {
            let endpoint = cluster.members()[0].client_url();
            let serves = |flags: Vec<String>| {
                let flags = [for_clients(&authority), flags].concat();
                Proxy::start(program, &endpoint, &flags, directory.path()).serves(&trust)
            };
            let skip = "--insecure-skip-tls-verify".to_owned();
            assert!(serves(to_members(&authority)), "{name}");
            assert!(serves(vec![skip.clone()]), "{name}: without a look");
            assert!(!serves(other.client_flags("nobody")), "{name}: of another authority");
            let unseen = [other.client_flags("nobody"), vec![skip]].concat();
            assert!(serves(unseen), "{name}: of another authority, without a look");
        },
    );
}

/// Certificates are renewed long before a proxy ends, and the old one is then worth nothing.
#[test]
fn a_proxy_shows_members_the_pair_that_its_files_hold_now() {
    let directory = tempfile::tempdir().unwrap();
    for program in programs() {
        let name = program.display();
        let authority = authority();
        let pair = authority.pair("server");
        let options = ServerOptions {
            tls: Tls::Given { cert: pair.cert, key: pair.key },
            flags: vec![
                flag("trusted-ca-file", &authority.ca()),
                "--client-cert-auth".to_owned(),
                flag("client-crl-file", &authority.revoked()),
            ],
            ..ServerOptions::one(&programs()[0])
        };
        let mut cluster = Cluster::start(&options).unwrap();
        let endpoint = cluster.members()[0].client_url();
        let flags = [for_clients(&authority), to_members(&authority)].concat();
        let proxy = Proxy::start(&program, &endpoint, &flags, directory.path());
        let trust = vec![flag("cacert", &authority.ca())];
        assert!(proxy.serves(&trust), "{name}: {}", proxy.serving.log());

        // Each attempt takes seconds where nobody answers.
        let serves_again = || (0..6).any(|_| proxy.serves(&trust));
        let renew = |serial, common_name| {
            let hosts = &["127.0.0.1"];
            authority.issue(&Subject { name: "to members", serial, common_name, hosts }).unwrap();
        };
        renew(6, "");
        authority.revoke(&[3, REVOKED]).unwrap();
        cluster.member_mut(0).restart().unwrap();
        assert!(serves_again(), "{name} with a new pair: {}", proxy.serving.log());

        // Go's looks for a name at its start only.
        if program == programs()[0] {
            renew(7, "root");
            cluster.member_mut(0).restart().unwrap();
            assert!(serves_again(), "{name} with a named pair: {}", proxy.serving.log());
            let told = "keeping the last good TLS files";
            proxy.serving.wait_for_log(told).unwrap();
            assert!(proxy.serving.log().contains("cert has non empty Common Name (root)"));
        }
    }
}

#[test]
fn a_proxy_speaks_the_versions_and_suites_that_it_is_told() {
    let authority = authority();
    let directory = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(&ServerOptions::one(&programs()[0])).unwrap();
    let endpoint = cluster.members()[0].client_url();
    for program in programs() {
        for (flags, heard, refused) in [
            (&[][..], &[TLS12, TLS13, AES_128, AES_256][..], &[][..]),
            (&["--tls-min-version=TLS1.3"], &[TLS13], &[TLS12]),
            (&["--tls-max-version=TLS1.2"], &[TLS12, AES_128], &[TLS13]),
            (&["--tls-min-version=TLS1.3", "--tls-max-version=TLS1.3"], &[TLS13], &[TLS12]),
            // Without this one etcd's proxy ends: HTTP/2 wants it to be there.
            (
                &["--listen-cipher-suites=TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"],
                &[AES_128, TLS13],
                &[AES_256],
            ),
        ] {
            let rules = flags.iter().map(|&flag| flag.to_owned());
            let rules: Vec<String> = for_clients(&authority).into_iter().chain(rules).collect();
            let proxy = Proxy::start(&program, &endpoint, &rules, directory.path());
            for (how, expected) in
                heard.iter().map(|how| (how, true)).chain(refused.iter().map(|how| (how, false)))
            {
                let name = format!("{} {flags:?} {how:?}", program.display());
                assert_eq!(
                    proxy.answers_over_http(&authority, how),
                    expected,
                    "{name}\n{}",
                    proxy.serving.log()
                );
            }
        }
    }
}

/// Clients cannot know who signed, and etcd forgets the address in the certificate.
#[test]
fn a_proxy_makes_its_own_certificate_and_keeps_it() {
    let cluster = Cluster::start(&ServerOptions::one(&programs()[0])).unwrap();
    let endpoint = cluster.members()[0].client_url();
    for program in programs() {
        let directory = tempfile::tempdir().unwrap();
        let flags = ["--auto-tls", "--self-signed-cert-validity=2"].map(str::to_owned);
        let made = directory.path().join("fixtures/proxy/cert.pem");
        let mut certificates = Vec::new();
        for _ in 0..2 {
            let proxy = Proxy::start(&program, &endpoint, &flags, directory.path());
            assert!(
                proxy.serves(&["--insecure-skip-tls-verify".to_owned()]),
                "{}",
                program.display()
            );
            assert!(!proxy.serves(&[]), "{}", program.display());
            certificates.push(std::fs::read_to_string(&made).unwrap());
        }
        assert_eq!(certificates[0], certificates[1], "{}", program.display());
    }
}

/// What a proxy says that does not start, without lines of logs.
fn told(program: &Path, flags: &[String], directory: &Path) -> (Option<i32>, Vec<String>) {
    let (mut command, _) = Proxy::command(program, "127.0.0.1:1", flags, directory);
    let mut serving = Serving::launch(&mut command).unwrap();
    let status = serving.wait_until_ended().unwrap();
    let log = serving.log();
    let told = log.lines().filter(|line| !line.starts_with('{')).map(str::to_owned);
    (status.code(), told.collect())
}

#[test]
fn a_proxy_says_why_it_does_not_start_as_go_etcd_does() {
    let authority = authority();
    let directory = tempfile::tempdir().unwrap();
    let pair = authority.pair("client");
    let named = authority.client_flags("client");
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<String>>();
    let missing = directory.path().join("missing");
    for flags in [
        // A member would take the name for that of a user.
        named.clone(),
        vec![flag("cert", &pair.cert), flag("key", &pair.key)],
        vec![flag("cert", &missing), flag("key", &missing)],
        vec![flag("cert", &authority.pair("to members").cert)],
        vec![flag("key", &authority.pair("to members").key)],
        [&[flag("cacert", &missing)], &to_members(&authority)[1..]].concat(),
        words("--tls-min-version=TLS1.1"),
        words("--tls-max-version=1.2"),
        words("--tls-min-version=TLS1.3 --tls-max-version=TLS1.2"),
        words("--tls-min-version=TLS1.3 --listen-cipher-suites=TLS_AES_128_GCM_SHA256"),
        words("--auto-tls --self-signed-cert-validity=0"),
    ] {
        let [ours, theirs] = programs().map(|program| told(&program, &flags, directory.path()));
        assert_eq!(ours, theirs, "{flags:?}");
        assert_eq!(ours.0, Some(1), "{flags:?}");
        assert!(!ours.1.is_empty(), "{flags:?}");
    }
    // etcd writes these into its log.
    for (flags, words) in [
        (
            vec![flag("cert-file", &pair.cert)],
            "KeyFile and CertFile must both be present[key: , cert: ",
        ),
        (vec![flag("trusted-ca-file", &authority.ca())], "KeyFile and CertFile are not presented"),
        (
            vec![flag("cert-file", &missing), flag("key-file", &missing)],
            "no such file or directory",
        ),
        (
            [for_clients(&authority), words("--listen-cipher-suites=foo")].concat(),
            "unexpected TLS cipher suite \"foo\"",
        ),
    ] {
        for program in programs() {
            let (mut command, _) =
                Proxy::command(&program, "127.0.0.1:1", &flags, directory.path());
            let mut serving = Serving::launch(&mut command).unwrap();
            assert_eq!(serving.wait_until_ended().unwrap().code(), Some(1), "{flags:?}");
            assert!(serving.log().contains(words), "{flags:?}: {}", serving.log());
        }
    }
    let [(_, told), _] = programs().map(|program| told(&program, &named, directory.path()));
    let text = format!("cert has non empty Common Name (client): {}", pair.cert.display());
    assert_eq!(told, [text]);
}
