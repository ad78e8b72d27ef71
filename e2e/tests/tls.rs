//! TLS of real processes: certificates that servers make for themselves, lists of revoked ones, and
//! the protocols that share a port.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use e2e::authority::speaking::{AES_128, AES_256, TLS12, TLS13};
use e2e::authority::{Authority, Pair, Subject, flag};
use e2e::peers;
use e2e::processes::{Cluster, Member, PeerTls, ServerOptions, Tls, free_ports, http_get};

fn ours() -> PathBuf {
    peers::our_binary("etcd").expect("build our etcd")
}

fn go_etcdctl() -> PathBuf {
    peers::etcd_binaries().expect("build Go etcdctl").etcdctl
}

fn etcdctl(member: &Member, flags: &[String], arguments: &[&str]) -> Output {
    Command::new(go_etcdctl())
        .arg(format!("--endpoints={}", member.client_url()))
        .arg("--command-timeout=3s")
        .args(flags)
        .args(arguments)
        .output()
        .expect("run etcdctl")
}

#[test]
fn members_that_make_their_own_certificates_form_a_cluster() {
    let mut options = ServerOptions::one(&ours());
    options.members = 3;
    options.tls = Tls::Auto;
    options.peer_tls = PeerTls::Auto;
    let mut cluster = Cluster::start(&options).expect("start three members");
    let fixtures = cluster.members()[0].data_directory.join("fixtures");
    let certificate = fs::read(fixtures.join("peer/cert.pem")).expect("a certificate for members");
    let trust = flag("cacert", &cluster.members()[0].certificate);
    let written = etcdctl(&cluster.members()[0], std::slice::from_ref(&trust), &["put", "a", "1"]);
    assert!(written.status.success(), "{written:?}");
    cluster.member_mut(0).restart().expect("start the first member again");
    let read = etcdctl(&cluster.members()[0], &[trust], &["get", "a"]);
    assert_eq!(String::from_utf8_lossy(&read.stdout), "a\n1\n", "{read:?}");
    let kept = fs::read(fixtures.join("peer/cert.pem")).expect("a certificate for members");
    assert_eq!(kept, certificate, "clients and members keep trusting what they trusted");
}

/// A CA with a server's pair and two clients'.
fn authority() -> Authority {
    let authority = Authority::new().expect("a CA");
    for (serial, name) in [(1, "server"), (2, "alice"), (3, "bob")] {
        let hosts = ["127.0.0.1", &format!("{name}.example")];
        let subject = Subject { name, serial, common_name: name, hosts: &hosts };
        authority.issue(&subject).expect("a certificate");
    }
    authority
}

/// Whether HTTP is answered to a client with this certificate.
fn asks_over_http(authority: &Authority, address: &str, name: &str) -> bool {
    let answer = Command::new("curl")
        .args(["--silent", "--show-error", "--max-time", "10", "--cacert"])
        .arg(authority.path("ca.pem"))
        .arg("--cert")
        .arg(authority.path(&format!("{name}.pem")))
        .arg("--key")
        .arg(authority.path(&format!("{name}.key")))
        .arg(format!("https://{address}/version"))
        .output()
        .expect("run curl; install it");
    String::from_utf8_lossy(&answer.stdout).contains("etcdserver")
}

/// The same for Go etcd and for ours, so that the expectation is no invention. With a listener of its
/// own for HTTP, etcd once forgot the list on the one for gRPC.
#[test]
fn cve_2026_59818_revoked_clients_are_refused_on_every_listener_without_a_restart() {
    let go = peers::etcd_binaries().expect("build Go etcd").etcd;
    for (program, split) in [(&go, false), (&go, true), (&ours(), false), (&ours(), true)] {
        let authority = authority();
        let mut options = ServerOptions::one(program);
        options.tls =
            Tls::Given { cert: authority.path("server.pem"), key: authority.path("server.key") };
        options.flags = vec![
            "--client-cert-auth".to_owned(),
            flag("trusted-ca-file", &authority.path("ca.pem")),
            flag("client-crl-file", &authority.path("revoked.crl")),
        ];
        let http = format!("127.0.0.1:{}", free_ports(1).expect("a port")[0]);
        if split {
            options.flags.push(format!("--listen-client-http-urls=https://{http}"));
        }
        let cluster = Cluster::start(&options).expect("start a server");
        let member = &cluster.members()[0];
        let is_served =
            |name| etcdctl(member, &authority.client_flags(name), &["get", "a"]).status.success();
        assert!(is_served("alice") && is_served("bob"), "{}", member.log());
        let anonymous = [flag("cacert", &authority.path("ca.pem"))];
        assert!(!etcdctl(member, &anonymous, &["get", "a"]).status.success());
        authority.revoke(&[3]).expect("revoke it");
        assert!(is_served("alice"), "{}", member.log());
        assert!(!is_served("bob"), "{}", member.log());
        assert!(member.log().contains("revoked"), "{}", member.log());
        if split {
            let asks = |name: &str| asks_over_http(&authority, &http, name);
            assert!(asks("alice"), "{}", member.log());
            assert!(!asks("bob"), "{}", member.log());
        }
        // Without the list etcd serves nobody, ours those whom the last one let pass.
        fs::remove_file(authority.revoked()).expect("remove the list");
        assert_eq!(is_served("alice"), *program != go, "{}", member.log());
        assert!(!is_served("bob"), "{}", member.log());
    }
}

/// Whether this address answers who speaks TLS like this.
fn answers(authority: &Authority, address: &str, how: &[&str]) -> bool {
    let answer = Command::new("curl")
        .args(["--silent", "--show-error", "--max-time", "10", "--http1.1", "--no-alpn"])
        .arg("--cacert")
        .arg(authority.ca())
        .args(how)
        .arg(format!("{address}/version"))
        .output()
        .expect("run curl; install it");
    String::from_utf8_lossy(&answer.stdout).contains("etcdserver")
}

#[test]
fn clients_and_members_are_heard_in_the_versions_and_suites_that_were_asked_for() {
    let authority = authority();
    let Pair { cert, key } = authority.pair("server");
    for program in [peers::etcd_binaries().expect("build Go etcd").etcd, ours()] {
        for (flags, heard, refused) in [
            (&["--tls-min-version=TLS1.3"], &[TLS13][..], &[TLS12][..]),
            (&["--tls-max-version=TLS1.2"], &[TLS12, AES_256], &[TLS13]),
            (
                &["--cipher-suites=TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"],
                &[AES_128, TLS13],
                &[AES_256],
            ),
        ] {
            let options = ServerOptions {
                flags: flags.iter().map(|&flag| flag.to_owned()).collect(),
                tls: Tls::Given { cert: cert.clone(), key: key.clone() },
                peer_tls: PeerTls::Given(authority.pair("server")),
                ..ServerOptions::one(&program)
            };
            let cluster = Cluster::start(&options).expect("start a server");
            let member = &cluster.members()[0];
            for address in [&member.client_url(), &member.peer_url] {
                let asks = |how: &&[&str]| answers(&authority, address, how);
                let name = format!("{} {flags:?} {address}\n{}", program.display(), member.log());
                assert!(heard.iter().all(asks), "{name}");
                assert!(!refused.iter().any(asks), "{name}");
            }
        }
    }
}

/// Certificates that have P-521 keys or are signed by one, as many authorities made with Go's tools have.
#[test]
fn keys_of_the_curve_p_521_are_believed() {
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("../server/src/tls/testdata");
    let authority = authority();
    let Pair { cert, key } = authority.pair("server");
    for program in [peers::etcd_binaries().expect("build Go etcd").etcd, ours()] {
        let options = ServerOptions {
            flags: vec![flag("trusted-ca-file", &files.join("p521_ca.crt"))],
            tls: Tls::Given { cert: cert.clone(), key: key.clone() },
            ..ServerOptions::one(&program)
        };
        let cluster = Cluster::start(&options).expect("start a server");
        let member = &cluster.members()[0];
        for name in ["p521_client", "p521_signed"] {
            let flags = [
                flag("cacert", &authority.ca()),
                flag("cert", &files.join(format!("{name}.crt"))),
                flag("key", &files.join(format!("{name}.key"))),
            ];
            let put = etcdctl(member, &flags, &["put", "a", name]);
            assert!(put.status.success(), "{} {name}: {put:?}", program.display());
        }
        let stranger = etcdctl(member, &authority.client_flags("alice"), &["put", "a", "x"]);
        assert!(!stranger.status.success(), "{}", program.display());
    }
}

#[test]
fn only_clients_with_an_allowed_host_name_are_served() {
    let authority = authority();
    let mut options = ServerOptions::one(&ours());
    options.tls =
        Tls::Given { cert: authority.path("server.pem"), key: authority.path("server.key") };
    options.flags = vec![
        flag("trusted-ca-file", &authority.path("ca.pem")),
        "--client-cert-allowed-hostname=alice.example".to_owned(),
        "--tls-min-version=TLS1.2".to_owned(),
        "--tls-max-version=TLS1.2".to_owned(),
        "--cipher-suites=TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,TLS_RSA_WITH_AES_128_CBC_SHA"
            .to_owned(),
    ];
    let cluster = Cluster::start(&options).expect("start a server");
    let member = &cluster.members()[0];
    let is_served =
        |name| etcdctl(member, &authority.client_flags(name), &["get", "a"]).status.success();
    assert!(is_served("alice"), "{}", member.log());
    assert!(!is_served("bob"), "{}", member.log());
    let told = "not supported: TLS_RSA_WITH_AES_128_CBC_SHA";
    assert!(member.log().contains(told), "{}", member.log());
}

#[test]
fn the_gateway_is_served_over_tls_by_both_versions_of_http() {
    if Command::new("curl").arg("--version").output().is_err() {
        panic!("this test asks with curl; install it");
    }
    let mut options = ServerOptions::one(&ours());
    options.tls = Tls::Auto;
    let cluster = Cluster::start(&options).expect("start a server");
    let member = &cluster.members()[0];
    for version in ["--http1.1", "--http2"] {
        let answer = Command::new("curl")
            .args(["--silent", "--show-error", "--max-time", "10", version, "--cacert"])
            .arg(&member.certificate)
            .arg(format!("{}/v3/kv/put", member.client_url()))
            .args(["--data", r#"{"key":"Zm9v","value":"YmFy"}"#])
            .output()
            .expect("run curl");
        let body = String::from_utf8_lossy(&answer.stdout);
        assert!(body.contains("\"revision\":"), "{version}: {answer:?}");
    }
}

#[test]
fn go_reads_the_profiles_of_our_server() {
    let mut options = ServerOptions::one(&ours());
    options.flags = vec!["--enable-pprof".to_owned()];
    let cluster = Cluster::start(&options).expect("start a server");
    let member = &cluster.members()[0];
    let shown = Command::new("go")
        .args(["tool", "pprof", "-raw", "-symbolize=none", "-timeout=60"])
        .arg(format!("{}/debug/pprof/profile?seconds=1", member.client_url()))
        .env("PPROF_TMPDIR", member.data_directory.join("pprof"))
        .output()
        .expect("run go tool pprof");
    let text = String::from_utf8_lossy(&shown.stdout);
    assert!(text.contains("cpu/nanoseconds"), "{shown:?}");
    let threads = http_get(&member.endpoint, "/debug/pprof/threads").expect("ask for threads");
    assert!(threads.contains("rpc-0"), "{threads}");
}
