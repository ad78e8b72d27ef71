use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer,
    CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyIdMethod,
    KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;

type Issuer = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Issuer {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Writes a pair for `names`, issued to the common name `cn`.
fn issue(issuer: &Issuer, directory: &Path, file: &str, cn: &str, names: &[&str]) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.push(DnType::CommonName, cn);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, issuer).unwrap();
    std::fs::write(directory.join(format!("{file}.crt")), certificate.pem()).unwrap();
    std::fs::write(directory.join(format!("{file}.key")), key.serialize_pem()).unwrap();
}

pub(crate) fn config(directory: &Path, file: &str) -> TlsConfig {
    let path = |name: String| directory.join(name).to_string_lossy().into_owned();
    TlsConfig {
        cert_file: path(format!("{file}.crt")),
        key_file: path(format!("{file}.key")),
        trusted_ca_file: path("ca.crt".to_owned()),
        min_version: TlsVersion::Tls12,
        max_version: TlsVersion::Tls13,
        ..TlsConfig::default()
    }
}

/// Connects and says one byte each way; the server's view of the client, or the error.
async fn handshake(server: &ServerTls, client: &ClientTls) -> Result<Option<PeerIdentity>, String> {
    let (served, connected) = both_sides(server, client).await?;
    connected?;
    served
}

/// What came of a handshake at the server, and at the client.
type Sides = (Result<Option<PeerIdentity>, String>, Result<(), String>);

async fn both_sides(server: &ServerTls, client: &ClientTls) -> Result<Sides, String> {
    let told = |error: std::io::Error| ::client::tls_reason(&error);
    let (near, far) = tokio::io::duplex(64 * 1024);
    let acceptor = TlsAcceptor::from(server.current());
    let connector = TlsConnector::from(client.current().map_err(|error| error.to_string())?);
    let serve = async {
        let mut stream = acceptor.accept(far).await.map_err(told)?;
        stream.write_all(b"x").await.map_err(told)?;
        stream.flush().await.map_err(told)?;
        let (_, session) = stream.get_ref();
        PeerIdentity::shown(session.peer_certificates()).map_err(|error| error.to_string())
    };
    let connect = async {
        let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
        let mut stream = connector.connect(name, near).await.map_err(told)?;
        let mut byte = [0];
        stream.read_exact(&mut byte).await.map(drop).map_err(told)
    };
    Ok(tokio::join!(serve, connect))
}

pub(crate) struct Directory {
    pub(crate) directory: tempfile::TempDir,
    issuer: Issuer,
}

/// A CA, a pair of a server at `localhost` and one of a client called alice.
pub(crate) fn prepared() -> Directory {
    let directory = tempfile::tempdir().unwrap();
    let issuer = authority("ca");
    std::fs::write(directory.path().join("ca.crt"), issuer.pem()).unwrap();
    issue(&issuer, directory.path(), "server", "server", &["localhost", "127.0.0.1"]);
    issue(&issuer, directory.path(), "client", "alice", &["client.example", "10.0.0.7"]);
    Directory { directory, issuer }
}

#[tokio::test]
async fn a_trusted_ca_alone_requires_client_certificates() {
    let prepared = prepared();
    let directory = prepared.directory.path();
    let server = ServerTls::new(config(directory, "server")).unwrap();
    let identity = handshake(&server, &ClientTls::new(config(directory, "client"))).await.unwrap();
    assert_eq!(identity.unwrap().common_name, "alice");
    let mut anonymous = config(directory, "client");
    (anonymous.cert_file, anonymous.key_file) = (String::new(), String::new());
    assert!(handshake(&server, &ClientTls::new(anonymous)).await.is_err());
    let stranger = authority("another");
    issue(&stranger, directory, "stranger", "eve", &["client.example"]);
    assert!(handshake(&server, &ClientTls::new(config(directory, "stranger"))).await.is_err());
}

#[tokio::test]
async fn renewed_certificates_are_used_without_a_restart() {
    let prepared = prepared();
    let directory = prepared.directory.path();
    let server = ServerTls::new(config(directory, "server")).unwrap();
    let client = ClientTls::new(config(directory, "client"));
    let before = server.current();
    assert!(Arc::ptr_eq(&before, &server.current()), "nothing changed");
    handshake(&server, &client).await.unwrap();
    issue(&prepared.issuer, directory, "server", "renewed", &["localhost"]);
    assert!(!Arc::ptr_eq(&before, &server.current()));
    handshake(&server, &client).await.unwrap();
    // etcd reads the CA only once (etcd#11555); here a new one counts at once, for both sides.
    let next = authority("next");
    std::fs::write(directory.join("ca.crt"), next.pem()).unwrap();
    assert!(handshake(&server, &client).await.is_err());
    issue(&next, directory, "server", "server", &["localhost"]);
    issue(&next, directory, "client", "bob", &["client.example"]);
    assert_eq!(handshake(&server, &client).await.unwrap().unwrap().common_name, "bob");
}

#[tokio::test]
async fn files_that_cannot_be_used_leave_the_last_good_ones() {
    let prepared = prepared();
    let directory = prepared.directory.path();
    let server = ServerTls::new(config(directory, "server")).unwrap();
    let client = ClientTls::new(config(directory, "client"));
    let before = server.current();
    for broken in ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        std::fs::write(directory.join("server.crt"), broken).unwrap();
        assert!(Arc::ptr_eq(&before, &server.current()));
        handshake(&server, &client).await.unwrap();
        assert!(ServerTls::new(config(directory, "server")).is_err(), "a start is refused");
    }
    std::fs::remove_file(directory.join("server.crt")).unwrap();
    assert!(Arc::ptr_eq(&before, &server.current()));
    // The other pair's key does not fit.
    std::fs::copy(directory.join("client.crt"), directory.join("server.crt")).unwrap();
    assert!(matches!(ServerTls::new(config(directory, "server")), Err(TlsError::Pair { .. })));
    handshake(&server, &client).await.unwrap();
}

#[tokio::test]
async fn names_in_certificates_are_held_to_the_rules() {
    let prepared = prepared();
    let directory = prepared.directory.path();
    let rules = |change: &dyn Fn(&mut TlsConfig)| {
        let mut config = config(directory, "server");
        change(&mut config);
        ServerTls::new(config).unwrap()
    };
    let server = rules(&|_| {});
    let client = ClientTls::new(config(directory, "client"));
    let identity = handshake(&server, &client).await.unwrap().unwrap();
    let admitted = |change: &dyn Fn(&mut TlsConfig)| rules(change).admits(Some(&identity)).is_ok();
    assert!(admitted(&|_| {}));
    assert!(admitted(&|config| config.allowed_cns = vec!["alice".into()]));
    assert!(!admitted(&|config| config.allowed_cns = vec!["bob".into()]));
    assert!(admitted(&|config| config.allowed_hostnames = vec!["client.example".into()]));
    assert!(!admitted(&|config| config.allowed_hostnames = vec!["other.example".into()]));
    // Whom a member calls is held to the same names.
    let calls = |change: &dyn Fn(&mut TlsConfig)| {
        let mut config = config(directory, "client");
        change(&mut config);
        let (server, client) = (&server, ClientTls::new(config));
        async move { handshake(server, &client).await.map(drop) }
    };
    assert_eq!(calls(&|config| config.allowed_cns = vec!["server".into()]).await, Ok(()));
    let refused = calls(&|config| config.allowed_cns = vec!["alice".into()]).await.unwrap_err();
    assert!(refused.contains("server") && refused.contains("is not allowed"), "{refused}");
    // Whoever refuses says so in the handshake, in Go's alert.
    let strict = rules(&|config| config.allowed_cns = vec!["bob".into()]);
    let (served, connected) = both_sides(&strict, &client).await.unwrap();
    let refused = served.unwrap_err();
    assert!(refused.contains("alice") && refused.contains("is not allowed"), "{refused}");
    assert_eq!(connected.unwrap_err(), "remote error: tls: bad certificate");
    let mut picky = config(directory, "client");
    picky.allowed_cns = vec!["alice".into()];
    let (served, _) = both_sides(&server, &ClientTls::new(picky)).await.unwrap();
    assert_eq!(served.unwrap_err(), "remote error: tls: bad certificate");
    let names = |name: &str| vec![name.to_owned()];
    assert_eq!(calls(&|config| config.allowed_hostnames = names("localhost")).await, Ok(()));
    assert!(calls(&|config| config.allowed_hostnames = names("client.example")).await.is_err());
    assert!(identity.check_address("10.0.0.7".parse().unwrap()).await.is_ok());
    let elsewhere = identity.check_address("10.0.0.8".parse().unwrap()).await.unwrap_err();
    let told = r#"tls: "10.0.0.8" does not match any of DNSNames ["client.example"]"#;
    assert!(elsewhere.starts_with(told), "{elsewhere}");
}

/// A server with a list of revoked certificates, none of them of these.
fn with_list(prepared: &Directory) -> (TlsConfig, ServerTls) {
    let directory = prepared.directory.path();
    let mut config = config(directory, "server");
    config.crl_file = directory.join("list.crl").to_string_lossy().into_owned();
    std::fs::write(&config.crl_file, list(&prepared.issuer, &[7])).unwrap();
    let server = ServerTls::new(config.clone()).unwrap();
    (config, server)
}

#[tokio::test]
async fn revoked_certificates_are_refused_as_soon_as_the_list_says_so() {
    let prepared = prepared();
    let directory = prepared.directory.path();
    let (config, server) = with_list(&prepared);
    let client = ClientTls::new(super::tests::config(directory, "client"));
    let identity = handshake(&server, &client).await.unwrap().unwrap();
    assert_eq!(server.admits(Some(&identity)), Ok(()));
    let serial = identity.serials()[0].clone();
    let mut both = Vec::new();
    both.extend_from_slice(&list_of(&prepared.issuer, &[vec![7], serial.clone()]));
    std::fs::write(&config.crl_file, &both).unwrap();
    server.current();
    let refused = server.admits(Some(&identity)).unwrap_err();
    assert_eq!(refused, format!("transport: certificate serial {} revoked", hex::encode(serial)));
    // A list that cannot be read leaves the last good one in force; also one that is just being written.
    let certificate = std::fs::read(directory.join("client.crt")).unwrap();
    for unread in [b"nonsense", &b""[..], b"-----BEGI", &certificate] {
        std::fs::write(&config.crl_file, unread).unwrap();
        server.current();
        assert!(server.admits(Some(&identity)).is_err(), "{unread:?}");
        let told = ServerTls::new(config.clone()).map(drop);
        assert!(
            matches!(told, Err(TlsError::Revocations { .. } | TlsError::Pem { .. })),
            "{told:?}"
        );
    }
    std::fs::remove_file(&config.crl_file).unwrap();
    server.current();
    assert!(server.admits(Some(&identity)).is_err());
    assert!(matches!(ServerTls::new(config), Err(TlsError::Read { .. })));
}

/// While a pair that could not be used lay there, nobody was revoked any more.
#[tokio::test]
async fn a_pair_that_does_not_fit_holds_up_no_revocation() {
    let prepared = prepared();
    let directory = prepared.directory.path();
    let (config, server) = with_list(&prepared);
    let client = ClientTls::new(super::tests::config(directory, "client"));
    let identity = handshake(&server, &client).await.unwrap().unwrap();
    std::fs::copy(directory.join("client.key"), &config.key_file).unwrap();
    assert!(matches!(ServerTls::new(config.clone()), Err(TlsError::Pair { .. })));
    let revoked = list_of(&prepared.issuer, &[identity.serials()[0].clone()]);
    std::fs::write(&config.crl_file, revoked).unwrap();
    server.current();
    assert!(server.admits(Some(&identity)).unwrap_err().contains("revoked"));
    handshake(&server, &client).await.expect("the last good pair serves on");
}

/// A session that is resumed shows no certificate, which may have ended since.
#[tokio::test]
async fn a_client_shows_its_certificate_each_time() {
    let prepared = prepared();
    let directory = prepared.directory.path();
    let server = ServerTls::new(config(directory, "server")).unwrap();
    let client = ClientTls::new(config(directory, "client"));
    for _ in 0..3 {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let acceptor = TlsAcceptor::from(server.current());
        let connector = TlsConnector::from(client.current().unwrap());
        let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
        let serve = async {
            let mut stream = acceptor.accept(far).await.unwrap();
            stream.write_all(b"x").await.unwrap();
            stream.flush().await.unwrap();
            stream.get_ref().1.handshake_kind()
        };
        let connect = async {
            let mut stream = connector.connect(name, near).await.unwrap();
            stream.read_exact(&mut [0]).await.unwrap();
        };
        let (kind, ()) = tokio::join!(serve, connect);
        assert_eq!(kind, Some(rustls::HandshakeKind::Full));
    }
}

/// What webpki does not look into: it would pass over the rules, as a certificate that names nothing.
#[tokio::test]
async fn certificates_that_cannot_be_read_are_refused() {
    let prepared = prepared();
    let directory = prepared.directory.path();
    let client = std::fs::read(directory.join("client.crt")).unwrap();
    let [whole] = &certificates("client.crt", &client).unwrap()[..] else { panic!("one") };
    let cut = CertificateDer::from(whole[..whole.len() - 1].to_vec());
    assert!(PeerIdentity::shown(Some(std::slice::from_ref(&cut))).is_err());
    assert!(PeerIdentity::shown(Some(&[whole.clone(), cut])).is_err(), "its serial is not known");
    assert_eq!(PeerIdentity::shown(None), Ok(None));

    let server = ServerTls::new(config(directory, "server")).unwrap();
    let cut_name = vec![0x30, 0x02, 0x82, 0x05];
    let short_address = vec![0x30, 0x05, 0x87, 0x03, 10, 0, 0];
    for names in [cut_name, short_address] {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        let names = CustomExtension::from_oid_content(&[2, 5, 29, 17], names);
        params.custom_extensions.push(names);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &prepared.issuer).unwrap();
        std::fs::write(directory.join("odd.crt"), certificate.pem()).unwrap();
        std::fs::write(directory.join("odd.key"), key.serialize_pem()).unwrap();
        let odd = ClientTls::new(config(directory, "odd"));
        let (served, _) = both_sides(&server, &odd).await.unwrap();
        let refused = served.unwrap_err();
        assert!(refused.contains("failed to parse a certificate"), "{refused}");
    }
}

/// As in Go, the last one counts.
#[test]
fn of_several_common_names_the_last_is_the_name() {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "first");
    params.distinguished_name.push(DnType::CustomDnType(vec![2, 5, 4, 3]), "last");
    let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
    let identity = PeerIdentity::shown(Some(std::slice::from_ref(certificate.der())));
    assert_eq!(identity.unwrap().unwrap().common_name, "last");

    // One that is written in another way counts, too: the name before it would be another user's.
    let units = rcgen::string::BmpString::try_from("bob").unwrap();
    let last = rcgen::DnValue::BmpString(units);
    params.distinguished_name.push(DnType::CustomDnType(vec![2, 5, 4, 3]), last);
    let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
    let identity = PeerIdentity::shown(Some(&[certificate.der().clone()]));
    assert_eq!(identity.unwrap().unwrap().common_name, "bob");
}

fn list(issuer: &Issuer, serials: &[u8]) -> Vec<u8> {
    let serials: Vec<Vec<u8>> = serials.iter().map(|serial| vec![*serial]).collect();
    list_of(issuer, &serials)
}

fn list_of(issuer: &Issuer, serials: &[Vec<u8>]) -> Vec<u8> {
    let revoked = |serial: &Vec<u8>| RevokedCertParams {
        serial_number: SerialNumber::from_slice(serial),
        revocation_time: date_time_ymd(2026, 1, 1),
        reason_code: None,
        invalidity_date: None,
    };
    let params = CertificateRevocationListParams {
        this_update: date_time_ymd(2026, 1, 1),
        next_update: date_time_ymd(2026, 1, 2),
        crl_number: SerialNumber::from(1_u64),
        issuing_distribution_point: None,
        revoked_certs: serials.iter().map(revoked).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    params.signed_by(issuer).unwrap().der().to_vec()
}

#[tokio::test]
async fn members_with_certificates_of_their_own_making_trust_each_other() {
    let directory = tempfile::tempdir().unwrap();
    let url: crate::urls::Url = "https://127.0.0.1:2380".parse().unwrap();
    let rules = TlsConfig { max_version: TlsVersion::Tls13, ..TlsConfig::default() };
    let one = with_self_signed(rules.clone(), &directory.path().join("1"), &[&url], 1).unwrap();
    let two = with_self_signed(rules, &directory.path().join("2"), &[&url], 1).unwrap();
    let server = ServerTls::new(one).unwrap();
    assert_eq!(handshake(&server, &ClientTls::new(two.clone())).await, Ok(None));
    let stranger = ClientTls::new(TlsConfig { is_self_signed: false, ..two });
    assert!(handshake(&server, &stranger).await.is_err());
}

/// Writes a pair that is its own authority and is trusted by nobody else.
fn issue_itself(directory: &Path, file: &str, change: impl FnOnce(&mut CertificateParams)) {
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, file);
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    std::fs::write(directory.join(format!("{file}.crt")), certificate.pem()).unwrap();
    std::fs::write(directory.join(format!("{file}.key")), key.serialize_pem()).unwrap();
}

/// As Go's crypto/x509, which refuses it for its time, its purposes and its names only.
#[tokio::test]
async fn a_certificate_that_is_its_own_authority_is_believed_where_it_is_trusted() {
    use ExtendedKeyUsagePurpose::{Any, ClientAuth, ServerAuth};
    type Change = fn(&mut CertificateParams);
    let prepared = prepared();
    let directory = prepared.directory.path();
    let trusting = |file: &str, trusted: &str| TlsConfig {
        trusted_ca_file: directory.join(trusted).to_string_lossy().into_owned(),
        ..config(directory, file)
    };
    let server = |file: &str, trusted: &str| ServerTls::new(trusting(file, trusted)).unwrap();
    let client = |file: &str, trusted: &str| ClientTls::new(trusting(file, trusted));
    let rows: [(&str, Change, bool, bool); 8] = [
        ("plain", |_| {}, true, true),
        ("both", |p| p.extended_key_usages = vec![ServerAuth, ClientAuth], true, true),
        ("any", |p| p.extended_key_usages = vec![Any], true, true),
        ("server", |p| p.extended_key_usages = vec![ServerAuth], true, false),
        ("client", |p| p.extended_key_usages = vec![ClientAuth], false, true),
        ("expired", |p| p.not_after = date_time_ymd(2020, 1, 1), false, false),
        ("early", |p| p.not_before = date_time_ymd(2120, 1, 1), false, false),
        ("nameless", |p| p.subject_alt_names.clear(), false, true),
    ];
    for (name, change, as_server, as_client) in rows {
        let file = format!("own-{name}");
        issue_itself(directory, &file, change);
        // Who is at the other end has a certificate of the CA.
        let own = std::fs::read_to_string(directory.join(format!("{file}.crt"))).unwrap();
        let bundle = own.clone() + &prepared.issuer.pem();
        std::fs::write(directory.join("bundle.crt"), bundle).unwrap();
        let called = handshake(&server(&file, "ca.crt"), &client("client", "bundle.crt")).await;
        assert_eq!(called.is_ok(), as_server, "{name}: {called:?}");
        let calls = handshake(&server("server", "bundle.crt"), &client(&file, "ca.crt")).await;
        assert_eq!(calls.is_ok(), as_client, "{name}: {calls:?}");
        if let Ok(identity) = calls {
            assert_eq!(identity.unwrap().common_name, file);
        }
        let stranger = client("client", "ca.crt");
        assert!(handshake(&server(&file, "ca.crt"), &stranger).await.is_err(), "{name}");
        let stranger = client(&file, "ca.crt");
        assert!(handshake(&server("server", "ca.crt"), &stranger).await.is_err(), "{name}");
    }
    // Trusted or not, it is held to the names that are allowed.
    let rules = |names: &[&str]| TlsConfig {
        allowed_cns: names.iter().map(|&name| name.to_owned()).collect(),
        ..trusting("own-plain", "own-plain.crt")
    };
    let both = server("own-plain", "own-plain.crt");
    assert!(handshake(&both, &ClientTls::new(rules(&["own-plain"]))).await.is_ok());
    assert!(handshake(&both, &ClientTls::new(rules(&["another"]))).await.is_err());
}

/// ring cannot check what P-521 keys sign. `p521_ca` has signed for both of the others.
#[tokio::test]
async fn who_is_signed_by_a_p_521_key_is_believed_by_both_sides() {
    let prepared = prepared();
    let directory = prepared.directory.path();
    let known = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/tls/testdata");
    for name in ["p521_ca.crt", "p521_signed.crt", "p521_signed.key"] {
        std::fs::copy(known.join(name), directory.join(name)).unwrap();
    }
    let pair = TlsConfig {
        trusted_ca_file: directory.join("p521_ca.crt").to_string_lossy().into_owned(),
        ..config(directory, "p521_signed")
    };
    let stranger =
        TlsConfig { trusted_ca_file: pair.trusted_ca_file.clone(), ..config(directory, "client") };
    let (server, client) = (ServerTls::new(pair.clone()).unwrap(), ClientTls::new(pair));
    let identity = handshake(&server, &client).await.unwrap().unwrap();
    assert_eq!(identity.common_name, "signed by P-521");
    let stranger = handshake(&server, &ClientTls::new(stranger)).await;
    assert!(stranger.is_err(), "of another authority");
    let schemes = provider(&[]).unwrap().signature_verification_algorithms.supported_schemes();
    assert!(schemes.contains(&rustls::SignatureScheme::ECDSA_NISTP521_SHA512));
}

#[test]
fn cipher_suites_go_by_the_names_of_go() {
    let suites =
        |names: &[&str]| provider(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
    let chosen = suites(&["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"]).unwrap();
    let tls12 = chosen.cipher_suites.iter().filter(|s| s.version() == &version::TLS12).count();
    assert_eq!(tls12, 1);
    assert!(matches!(
        suites(&["TLS_RSA_WITH_AES_128_CBC_SHA"]),
        Err(TlsError::UnsupportedCipherSuite { .. })
    ));
    let mixed =
        suites(&["TLS_RSA_WITH_AES_128_CBC_SHA", "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"]);
    assert_eq!(mixed.unwrap().cipher_suites.len(), 4);
    let about = |names: &str| {
        let names: Vec<String> = names.split(',').map(str::to_owned).collect();
        about_cipher_suites(&names).unwrap()
    };
    let good = "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,TLS_AES_128_GCM_SHA256";
    let told = about(&format!("TLS_RSA_WITH_AES_128_CBC_SHA,{good}")).unwrap();
    assert!(told.ends_with("not supported: TLS_RSA_WITH_AES_128_CBC_SHA"), "{told}");
    assert_eq!(about(good), None);
    assert_eq!(suites(&["TLS_AES_128_GCM_SHA256"]).unwrap().cipher_suites.len(), 3);
    assert!(matches!(suites(&["foo"]), Err(TlsError::UnknownCipherSuite { .. })));
}
