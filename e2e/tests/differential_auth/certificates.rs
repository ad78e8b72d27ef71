//! Users by the common name of their certificate.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::peers;
use e2e::processes::{Cluster, ServerOptions, Tls};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// An authority and what it has signed, as files.
struct Authority {
    directory: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.distinguished_name.push(DnType::CommonName, "authority");
        let key = KeyPair::generate().expect("a key");
        let certificate = parameters.self_signed(&key).expect("a certificate");
        fs::write(directory.path().join("ca.pem"), certificate.pem()).expect("write it");
        Self { directory, issuer: Issuer::new(parameters, key) }
    }

    /// Makes `<file>.pem` and `<file>.key` for this name, or for two with a comma between them.
    fn sign(&self, file: &str, common_name: &str) {
        let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
        let mut parameters = CertificateParams::new(names).expect("names");
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        let common_names = common_name.split(',').filter(|name| !name.is_empty());
        // A kind of name may be pushed once, and this is the same by another word.
        let kinds = [DnType::CommonName, DnType::CustomDnType(vec![2, 5, 4, 3])];
        for (kind, name) in kinds.into_iter().zip(common_names) {
            parameters.distinguished_name.push(kind, name);
        }
        let key = KeyPair::generate().expect("a key");
        let certificate = parameters.signed_by(&key, &self.issuer).expect("a certificate");
        fs::write(self.path(&format!("{file}.pem")), certificate.pem()).expect("write it");
        fs::write(self.path(&format!("{file}.key")), key.serialize_pem()).expect("write it");
    }

    fn path(&self, file: &str) -> PathBuf {
        self.directory.path().join(file)
    }
}

/// What `etcdctl` prints and says with this certificate; the last line of what it says.
fn etcdctl(
    program: &Path,
    cluster: &Cluster,
    authority: &Authority,
    who: &str,
    arguments: &[&str],
) -> String {
    let output = Command::new(program)
        .arg(format!("--endpoints={}", cluster.members()[0].client_url()))
        .arg(format!("--cacert={}", authority.path("ca.pem").display()))
        .arg(format!("--cert={}", authority.path(&format!("{who}.pem")).display()))
        .arg(format!("--key={}", authority.path(&format!("{who}.key")).display()))
        .args(arguments)
        .output()
        .expect("run etcdctl");
    let said = String::from_utf8_lossy(&output.stderr);
    // Lines of its log are JSON.
    let last = said.lines().rfind(|line| !line.starts_with('{')).unwrap_or_default();
    format!("{}{last}", String::from_utf8_lossy(&output.stdout)).trim().to_owned()
}

#[test]
fn a_certificate_makes_one_the_user_it_names_and_a_password_goes_first() {
    let go = peers::etcd_binaries().expect("build Go etcd");
    let authority = Authority::new();
    for (file, name) in [
        ("server", "server"),
        ("root", "root"),
        ("u", "u"),
        ("x", "x"),
        ("x and u", "x,u"),
        ("none", ""),
    ] {
        authority.sign(file, name);
    }
    let mut flags = vec!["--client-cert-auth".to_owned(), "--bcrypt-cost=4".to_owned()];
    for (flag, file) in
        [("cert-file", "server.pem"), ("key-file", "server.key"), ("trusted-ca-file", "ca.pem")]
    {
        flags.push(format!("--{flag}={}", authority.path(file).display()));
    }
    let steps: &[(&str, &[&str], &str)] = &[
        ("x", &["user", "add", "root:pw"], "User root created"),
        ("x", &["user", "grant-role", "root", "root"], "Role root is granted to user root"),
        ("x", &["user", "add", "u", "--no-password"], "User u created"),
        ("x", &["role", "add", "r"], "Role r created"),
        ("x", &["role", "grant-permission", "r", "readwrite", "k"], "Role r updated"),
        ("x", &["user", "grant-role", "u", "r"], "Role r is granted to user u"),
        ("x", &["auth", "enable", "--user=root:pw"], "Authentication Enabled"),
        ("u", &["put", "k", "v"], "OK"),
        ("u", &["get", "k"], "k\nv"),
        ("x and u", &["put", "k", "v"], "OK"),
        ("u", &["put", "j", "v"], "Error: etcdserver: permission denied"),
        ("u", &["put", "j", "v", "--user=root:pw"], "OK"),
        ("root", &["put", "j", "w"], "OK"),
        ("root", &["user", "list"], "root\nu"),
        ("x", &["get", "k"], "Error: etcdserver: permission denied"),
        ("none", &["get", "k"], "Error: etcdserver: permission denied"),
        ("none", &["user", "list"], "Error: etcdserver: user name is empty"),
    ];
    for program in [peers::our_binary("etcd").expect("build our etcd"), go.etcd] {
        let options =
            ServerOptions { flags: flags.clone(), tls: Tls::Files, ..ServerOptions::one(&program) };
        let cluster = Cluster::start(&options).expect("start a server");
        for (who, arguments, expected) in steps {
            let said = etcdctl(&go.etcdctl, &cluster, &authority, who, arguments);
            assert_eq!(said, *expected, "{} as {who}: {arguments:?}", program.display());
        }
    }
}

/// A caller without a certificate.
const NOBODY: &str = "";

/// What the gateway answers to this certificate: status, type and body.
fn ask_gateway(cluster: &Cluster, authority: &Authority, who: &str, arguments: &[&str]) -> String {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--max-time", "20", "--http1.1", "--cacert"])
        .arg(authority.path("ca.pem"));
    if who != NOBODY {
        curl.arg("--cert").arg(authority.path(&format!("{who}.pem")));
        curl.arg("--key").arg(authority.path(&format!("{who}.key")));
    }
    let output = curl
        .args(["--write-out", "%{http_code} %{content_type}"])
        .args(arguments)
        .arg(format!("{}/v3/kv/put", cluster.members()[0].client_url()))
        .output()
        .expect("run curl; install it");
    let complaint = String::from_utf8_lossy(&output.stderr);
    if who == NOBODY && complaint.contains("certificate required") {
        return "(a certificate is required)".to_owned();
    }
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    match text.contains("\"header\"") {
        // Ids and terms are the run's.
        true => "(a header)".to_owned(),
        false => text.into_owned(),
    }
}

/// CVE-2018-16886: a certificate's name would not count behind the gateway, so who has one is told.
#[test]
fn the_gateway_refuses_certificates_with_names_alike() {
    let go = peers::etcd_binaries().expect("build Go etcd");
    let ours = peers::our_binary("etcd").expect("build our etcd");
    let authority = Authority::new();
    for (file, name) in [("server", "server"), ("u", "u"), ("none", "")] {
        authority.sign(file, name);
    }
    let put = ["--data", r#"{"key":"aw==","value":"dg=="}"#];
    let upgrade = [
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    ];
    let upgrade: Vec<&str> = upgrade.iter().flat_map(|header| ["--header", header]).collect();
    for by_name in [true, false] {
        let answers = |program: &Path| -> Vec<String> {
            let mut flags = vec!["--bcrypt-cost=4".to_owned()];
            if by_name {
                flags.push("--client-cert-auth".to_owned());
            }
            flags.push(format!("--trusted-ca-file={}", authority.path("ca.pem").display()));
            let (cert, key) = (authority.path("server.pem"), authority.path("server.key"));
            let tls = Tls::Given { cert, key };
            let options = ServerOptions { flags, tls, ..ServerOptions::one(program) };
            let cluster = Cluster::start(&options).expect("start a server");
            let ask =
                |who: &str, arguments: &[&str]| ask_gateway(&cluster, &authority, who, arguments);
            // An authority alone already makes the server require certificates of clients.
            let mut answers = vec![ask("u", &put), ask("none", &put), ask(NOBODY, &put)];
            for arguments in [
                &["user", "add", "root:pw"][..],
                &["user", "grant-role", "root", "root"],
                &["auth", "enable", "--user=root:pw"],
            ] {
                answers.push(etcdctl(&go.etcdctl, &cluster, &authority, "none", arguments));
            }
            answers.extend([ask("u", &put), ask("none", &put)]);
            answers.push(ask("u", &["--request", "OPTIONS"]));
            answers.push(ask("u", &["--header", "Authorization: nonsense", put[0], put[1]]));
            if by_name {
                answers.push(ask("u", &upgrade));
            }
            answers
        };
        let expected = answers(&go.etcd);
        let refused = expected.iter().any(|answer| answer.starts_with("CommonName of client"));
        assert_eq!(refused, by_name, "{expected:?}");
        assert_eq!(expected[2], "(a certificate is required)");
        assert_eq!(answers(&ours), expected, "by name: {by_name}");
    }
}
