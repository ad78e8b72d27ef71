//! A certificate authority for tests of TLS: pairs of certificate and key as files, and the list of those
//! that are revoked.
//!
//! Every file of an authority is in its own directory, `NAME.pem` and `NAME.key` for a pair. Files may be
//! written again at any time, also by another authority ([`Authority::renew`]), which is how certificates
//! are renewed while servers run.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateRevocationListParams,
    CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SerialNumber, date_time_ymd,
};
use tempfile::TempDir;

/// Arguments with which `curl` speaks TLS in one way only.
pub mod speaking {
    /// The version 1.2.
    pub const TLS12: &[&str] = &["--tls-max", "1.2"];
    /// The version 1.3.
    pub const TLS13: &[&str] = &["--tlsv1.3"];
    /// A suite of the version 1.2.
    pub const AES_128: &[&str] =
        &["--tls-max", "1.2", "--ciphers", "ECDHE-ECDSA-AES128-GCM-SHA256"];
    /// Another suite of the version 1.2.
    pub const AES_256: &[&str] =
        &["--tls-max", "1.2", "--ciphers", "ECDHE-ECDSA-AES256-GCM-SHA384"];
}

/// Who signs, and where the files are.
#[derive(Debug)]
pub struct Authority {
    directory: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// Whom a certificate is for.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// What its files are called.
    pub name: &'a str,
    /// Its serial number, by which it is revoked.
    pub serial: u64,
    /// Its common name; empty for none.
    pub common_name: &'a str,
    /// Names and addresses that it is valid for.
    pub hosts: &'a [&'a str],
}

/// The files of a pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Authority {
    /// An authority that has signed nothing and revoked nothing.
    pub fn new() -> Result<Authority> {
        let directory = tempfile::tempdir().context("create a directory for certificates")?;
        let mut params = CertificateParams::new(Vec::new()).context("parameters of a CA")?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        // Two authorities of one name could not be told apart by who looks for an issuer. A key is
        // another each time.
        let key = KeyPair::generate().context("make the key of a CA")?;
        let name = format!("authority {}", hex::encode(&key.public_key_raw()[..8]));
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, key).context("make a CA")?;
        let authority = Authority { directory, issuer };
        authority.trust(&[&authority])?;
        authority.revoke(&[])?;
        Ok(authority)
    }

    /// A file of this authority.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The certificates that who trusts this authority believes.
    pub fn ca(&self) -> PathBuf {
        self.path("ca.pem")
    }

    /// The list of revoked certificates.
    pub fn revoked(&self) -> PathBuf {
        self.path("revoked.crl")
    }

    /// The files of a pair, whether they exist or not.
    pub fn pair(&self, name: &str) -> Pair {
        Pair { cert: self.path(&format!("{name}.pem")), key: self.path(&format!("{name}.key")) }
    }

    /// Signs a certificate.
    pub fn issue(&self, subject: &Subject<'_>) -> Result<Pair> {
        self.renew(self, subject)
    }

    /// Makes a certificate that is its own authority, as `openssl req -x509` does, and that nobody trusts who
    /// is not told to.
    pub fn issue_itself(&self, subject: &Subject<'_>) -> Result<Pair> {
        let mut params = parameters(subject)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().context("make a key")?;
        let certificate = params.self_signed(&key).context("sign a certificate")?;
        self.write(subject.name, &certificate, &key)
    }

    /// Writes a pair that another authority has signed over the files of this one.
    pub fn renew(&self, by: &Authority, subject: &Subject<'_>) -> Result<Pair> {
        let key = KeyPair::generate().context("make a key")?;
        let certificate = parameters(subject)?.signed_by(&key, &by.issuer);
        self.write(subject.name, &certificate.context("sign a certificate")?, &key)
    }

    fn write(&self, name: &str, certificate: &Certificate, key: &KeyPair) -> Result<Pair> {
        let pair = self.pair(name);
        replace(&pair.key, key.serialize_pem().as_bytes())?;
        replace(&pair.cert, certificate.pem().as_bytes())?;
        Ok(pair)
    }

    /// Lets those who trust this authority believe these, and nobody else.
    pub fn trust(&self, authorities: &[&Authority]) -> Result<()> {
        let bundle: String = authorities.iter().map(|authority| authority.issuer.pem()).collect();
        replace(&self.ca(), bundle.as_bytes())
    }

    /// Revokes the certificates with these serial numbers, and no others any more.
    pub fn revoke(&self, serials: &[u64]) -> Result<()> {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2026, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2026, 1, 1),
            next_update: date_time_ymd(2036, 1, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.issuer).context("sign a list of revoked certificates")?;
        replace(&self.revoked(), list.der())
    }

    /// What `etcdctl` needs to trust this authority and to show a pair.
    pub fn client_flags(&self, name: &str) -> Vec<String> {
        let pair = self.pair(name);
        vec![flag("cacert", &self.ca()), flag("cert", &pair.cert), flag("key", &pair.key)]
    }
}

fn parameters(subject: &Subject<'_>) -> Result<CertificateParams> {
    let hosts: Vec<String> = subject.hosts.iter().map(|&host| host.to_owned()).collect();
    let mut params = CertificateParams::new(hosts).context("parameters of a certificate")?;
    params.serial_number = Some(SerialNumber::from(subject.serial));
    params.distinguished_name = DistinguishedName::new();
    if !subject.common_name.is_empty() {
        params.distinguished_name.push(DnType::CommonName, subject.common_name);
    }
    Ok(params)
}

/// A flag that names a file.
pub fn flag(name: &str, path: &Path) -> String {
    format!("--{name}={}", path.display())
}

/// Nobody ever reads half a file: Go's servers read it anew for each connection.
fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let next = path.with_added_extension("next");
    fs::write(&next, bytes).with_context(|| format!("write {}", next.display()))?;
    fs::rename(&next, path).with_context(|| format!("rename to {}", path.display()))
}
