//! Certificates that the server makes for itself (`--auto-tls`, `--peer-auto-tls`).
//!
//! They encrypt and name the hosts that are listened on, and nobody vouches for them: members that
//! use them do not check each other, as in etcd. A pair that is there is used again, so that clients
//! that trust it go on to.
//!
//! Our keys are of the curve P-256 and not of P-521 as etcd's, because the TLS library signs with
//! the former only; clients take both.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};

use crate::config::{ListenConfig, TlsConfig};
use crate::urls::Url;

const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// Go counts a duration in nanoseconds, of which there are no more.
const YEARS_MAX: u64 = 292;

/// Why a certificate cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SelfSignedError {
    #[error("selfSignedCertValidity is invalid,it should be greater than 0")]
    NoValidity,
    #[error(
        "--self-signed-cert-validity={years} is too long; a certificate is valid for {YEARS_MAX} years at most"
    )]
    TooLong { years: u64 },
    #[error("make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    #[error("write {path}: {source}")]
    Write { path: String, source: io::Error },
}

/// What `--auto-tls` and `--peer-auto-tls` ask for. The pairs lie in the data directory and beside what the
/// member has there, where etcd has them.
///
/// # Errors
/// When a pair cannot be made or written.
pub fn make_certificates(
    listen: &mut ListenConfig,
    data_directory: &Path,
) -> Result<(), SelfSignedError> {
    let fixtures = data_directory.join("fixtures");
    let years = listen.self_signed_years;
    if listen.client_auto_tls && listen.client_tls.cert_file.is_empty() {
        let urls: Vec<_> = listen.client_urls.iter().chain(&listen.client_http_urls).collect();
        let tls = std::mem::take(&mut listen.client_tls);
        listen.client_tls = with_self_signed(tls, &fixtures.join("client"), &urls, years)?;
    }
    if listen.peer_auto_tls && listen.peer_tls.cert_file.is_empty() {
        let urls: Vec<_> = listen.peer_urls.iter().collect();
        let tls = std::mem::take(&mut listen.peer_tls);
        listen.peer_tls = with_self_signed(tls, &fixtures.join("peer"), &urls, years)?;
    }
    Ok(())
}

/// The rules of a listener with a certificate that lies in `directory`, where it is made if it is
/// not there, for the hosts of `urls`.
///
/// # Errors
/// When it cannot be made or written.
pub fn with_self_signed(
    config: TlsConfig,
    directory: &Path,
    urls: &[&Url],
    years: u64,
) -> Result<TlsConfig, SelfSignedError> {
    if years == 0 {
        return Err(SelfSignedError::NoValidity);
    }
    if years > YEARS_MAX {
        return Err(SelfSignedError::TooLong { years });
    }
    let (cert, key) = (directory.join("cert.pem"), directory.join("key.pem"));
    if !(cert.exists() && key.exists()) {
        let lifetime = YEAR * u32::try_from(years).unwrap_or(u32::MAX);
        let (cert_pem, key_pem) = make(urls, SystemTime::now(), lifetime)?;
        tracing::warn!(validity_years = years, "automatically generate certificates");
        let created = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
        created.map_err(|source| failed(directory, source))?;
        write(&key, &key_pem)?;
        tracing::info!(path = %key.display(), "created key file");
        write(&cert, &cert_pem)?;
        tracing::info!(path = %cert.display(), "created cert file");
    }
    let text = |path: &PathBuf| path.to_string_lossy().into_owned();
    Ok(TlsConfig {
        cert_file: text(&cert),
        key_file: text(&key),
        client_cert_file: text(&cert),
        client_key_file: text(&key),
        is_self_signed: true,
        ..config
    })
}

fn make(
    urls: &[&Url],
    from: SystemTime,
    lifetime: Duration,
) -> Result<(String, String), rcgen::Error> {
    let mut hosts: Vec<String> = urls
        .iter()
        .filter(|url| !url.scheme().is_unix() && !url.host().is_empty())
        .map(|url| url.host().to_owned())
        .collect();
    hosts.sort();
    hosts.dedup();
    let mut params = CertificateParams::new(hosts)?;
    params.not_before = from.into();
    params.not_after = (from + lifetime).into();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "etcd");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::KeyEncipherment,
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::CrlSign,
    ];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate()?;
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}

/// Whole or not at all: half a file would be taken for a certificate at the next start.
fn write(path: &Path, text: &str) -> Result<(), SelfSignedError> {
    let unfinished = path.with_extension("tmp");
    let written = || -> io::Result<()> {
        let mut options = fs::OpenOptions::new();
        let mut file =
            options.write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&unfinished, path)
    };
    written().map_err(|source| failed(path, source))
}

fn failed(path: &Path, source: io::Error) -> SelfSignedError {
    SelfSignedError::Write { path: path.display().to_string(), source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use x509_parser::prelude::{FromDer, X509Certificate};

    use super::*;
    use crate::tls::{ServerTls, certificates};

    fn made(directory: &Path, years: u64) -> Result<TlsConfig, SelfSignedError> {
        let urls: Vec<Url> = ["https://127.0.0.1:2379", "https://node.example:1", "unixs:///s"]
            .map(|url| url.parse().unwrap())
            .into();
        let urls: Vec<&Url> = urls.iter().collect();
        let config =
            TlsConfig { max_version: crate::config::TlsVersion::Tls13, ..TlsConfig::default() };
        with_self_signed(config, directory, &urls, years)
    }

    #[test]
    fn a_certificate_is_made_once_and_used_again() {
        let directory = tempfile::tempdir().unwrap();
        let fixtures = directory.path().join("fixtures/client");
        let config = made(&fixtures, 2).unwrap();
        let first = fs::read(&config.cert_file).unwrap();
        let mode = fs::metadata(&config.key_file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        ServerTls::new(config.clone()).expect("the pair can be served");
        assert_eq!(made(&fixtures, 1).unwrap(), config);
        assert_eq!(fs::read(&config.cert_file).unwrap(), first);
        // Half of a pair is none.
        fs::remove_file(&config.key_file).unwrap();
        made(&fixtures, 1).unwrap();
        assert_ne!(fs::read(&config.cert_file).unwrap(), first);
    }

    #[test]
    fn it_names_the_hosts_and_lasts_as_long_as_was_said() {
        let directory = tempfile::tempdir().unwrap();
        let config = made(directory.path(), 3).unwrap();
        let pem = fs::read(&config.cert_file).unwrap();
        let der = certificates(&config.cert_file, &pem).unwrap().remove(0);
        let identity = crate::tls::PeerIdentity::shown(Some(std::slice::from_ref(&der)));
        let identity = identity.unwrap().unwrap();
        assert!(identity.is_valid_for("127.0.0.1") && identity.is_valid_for("node.example"));
        assert!(identity.common_name.is_empty());
        let (_, certificate) = X509Certificate::from_der(&der).unwrap();
        assert_eq!(certificate.subject().to_string(), "O=etcd");
        let validity = certificate.validity();
        let seconds = validity.not_after.timestamp() - validity.not_before.timestamp();
        assert_eq!(seconds, 3 * 365 * 24 * 3600);
    }

    #[test]
    fn validities_that_make_no_sense_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        for years in [0, YEARS_MAX + 1, u64::MAX] {
            assert!(made(directory.path(), years).is_err());
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
