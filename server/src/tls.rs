//! TLS of listeners and of connections to other members.
//!
//! In: the files and rules of [`crate::config::TlsConfig`]. Out: rustls configurations, made anew
//! whenever a file has changed, so that certificates are renewed without a restart. etcd reads
//! certificate and key again at every handshake and the CA only at the start (etcd#11555); here all
//! files are read again. A pair that does not fit together, as it may happen while files are being
//! exchanged, leaves the last good one in use and is logged once; the other files are taken all the same.
//!
//! Invariants: a listener never starts with files that cannot be used; a trusted CA means that
//! clients must show a certificate, also without `--client-cert-auth` (as in etcd); a certificate that is
//! itself among the trusted ones needs nobody to vouch for it, also one that is an authority (as in Go); the
//! cipher suites and versions are those that were asked for and rustls has.

mod client;
mod identity;
mod revoked;
mod self_signed;
mod server;

pub use client::ClientTls;
pub(crate) use identity::common_name;
pub use identity::{PeerIdentity, Unreadable, fingerprint};
pub use self_signed::{SelfSignedError, make_certificates, with_self_signed};
pub use server::ServerTls;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::{SupportedProtocolVersion, version};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};

use crate::config::{TlsConfig, TlsVersion};

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("open {path}: {}", ::client::io_reason(source))]
    Read { path: String, source: std::io::Error },
    #[error("no certificate in {path}; it must hold certificates in PEM form")]
    NoCertificate { path: String },
    #[error("no private key in {path}; it must hold a key in PEM form")]
    NoKey { path: String },
    #[error("parse {path}: {source}")]
    Pem { path: String, source: rustls_pki_types::pem::Error },
    #[error("unexpected TLS cipher suite {name:?}")]
    UnknownCipherSuite { name: String },
    #[error(
        "TLS cipher suite {name:?} is not supported; use one of the ECDHE suites with AES-GCM or ChaCha20-Poly1305"
    )]
    UnsupportedCipherSuite { name: String },
    #[error("use {cert} with {key}: {source}")]
    Pair { cert: String, key: String, source: rustls::Error },
    #[error("parse {path} as a list of revoked certificates: {reason}")]
    Revocations { path: String, reason: String },
    #[error("use the CA certificates of {path}: {reason}")]
    Authority { path: String, reason: String },
}

/// The bytes of the files that a configuration is made of; equal bytes make an equal configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Files {
    cert: Vec<u8>,
    key: Vec<u8>,
    authority: Vec<u8>,
    revocations: Vec<u8>,
}

impl Files {
    fn read(cert: &str, key: &str, authority: &str, revocations: &str) -> Result<Self, TlsError> {
        Ok(Self {
            cert: read(cert)?,
            key: read(key)?,
            authority: read(authority)?,
            revocations: read(revocations)?,
        })
    }
}

/// An empty path is an empty file.
fn read(path: &str) -> Result<Vec<u8>, TlsError> {
    if path.is_empty() {
        return Ok(Vec::new());
    }
    std::fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

fn certificates(path: &str, bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates = CertificateDer::pem_slice_iter(bytes)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| TlsError::Pem { path: path.to_owned(), source })?;
    match certificates.is_empty() {
        true => Err(TlsError::NoCertificate { path: path.to_owned() }),
        false => Ok(certificates),
    }
}

fn private_key(path: &str, bytes: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(bytes).map_err(|source| match source {
        rustls_pki_types::pem::Error::NoItemsFound => TlsError::NoKey { path: path.to_owned() },
        source => TlsError::Pem { path: path.to_owned(), source },
    })
}

/// A list of revoked certificates comes in PEM or in DER form. A file without one, as it is while a list is
/// being written, is no list that revokes nothing; only no path is.
fn revocations(
    path: &str,
    bytes: &[u8],
) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    if path.is_empty() {
        return Ok(Vec::new());
    }
    if !bytes.starts_with(b"-----") && !bytes.is_empty() {
        return Ok(vec![CertificateRevocationListDer::from(bytes.to_vec())]);
    }
    let lists = CertificateRevocationListDer::pem_slice_iter(bytes)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| TlsError::Pem { path: path.to_owned(), source })?;
    match lists.is_empty() {
        true => {
            Err(TlsError::Revocations { path: path.to_owned(), reason: "none in it".to_owned() })
        }
        false => Ok(lists),
    }
}

fn roots(path: &str, bytes: &[u8]) -> Result<Arc<rustls::RootCertStore>, TlsError> {
    let mut store = rustls::RootCertStore::empty();
    for certificate in certificates(path, bytes)? {
        store.add(certificate).map_err(|error| TlsError::Authority {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
    }
    Ok(Arc::new(store))
}

fn versions(config: &TlsConfig) -> Vec<&'static SupportedProtocolVersion> {
    [(TlsVersion::Tls12, &version::TLS12), (TlsVersion::Tls13, &version::TLS13)]
        .into_iter()
        .filter(|(version, _)| (config.min_version..=config.max_version).contains(version))
        .map(|(_, supported)| supported)
        .collect()
}

/// Suites of TLS 1.3 may be named; in Go they cannot be chosen and are always there.
const SUITES_OF_TLS13: [&str; 3] =
    ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"];

/// Go's names of the suites of TLS 1.2 that rustls has.
const SUITES: [(&str, rustls::CipherSuite); 6] = {
    use rustls::CipherSuite as S;
    [
        ("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", S::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256),
        ("TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", S::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384),
        ("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", S::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
        ("TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", S::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
        (
            "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
            S::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
        ),
        (
            "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
            S::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        ),
    ]
};

/// What an operator is told whose list has suites that are not spoken; nothing if all of it is.
///
/// # Errors
/// When one is unknown, or none of them is supported.
pub(crate) fn about_cipher_suites(names: &[String]) -> Result<Option<String>, TlsError> {
    let (_, unsupported) = chosen_suites(names)?;
    Ok((!unsupported.is_empty()).then(|| {
        format!("leaving out TLS cipher suites that are not supported: {}", unsupported.join(", "))
    }))
}

/// ring with the suites that were asked for, which also believes P-521 keys.
fn provider(names: &[String]) -> Result<Arc<CryptoProvider>, TlsError> {
    let mut provider = CryptoProvider {
        signature_verification_algorithms: ::client::signature_algorithms(),
        ..rustls::crypto::ring::default_provider()
    };
    if !names.is_empty() {
        let (chosen, _) = chosen_suites(names)?;
        provider
            .cipher_suites
            .retain(|suite| suite.version() == &version::TLS13 || chosen.contains(&suite.suite()));
    }
    Ok(Arc::new(provider))
}

/// The suites of TLS 1.2 that these names stand for, and the names of those that nobody speaks here.
fn chosen_suites(names: &[String]) -> Result<(Vec<rustls::CipherSuite>, Vec<String>), TlsError> {
    let (mut chosen, mut unsupported) = (Vec::new(), Vec::new());
    for name in names {
        let go_name = match name.as_str() {
            "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305" | "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305" => {
                format!("{name}_SHA256")
            }
            _ => name.clone(),
        };
        match SUITES.iter().find(|(known, _)| *known == go_name) {
            Some((_, suite)) => chosen.push(*suite),
            None if SUITES_OF_TLS13.contains(&go_name.as_str()) => {}
            None if name.starts_with("TLS_RSA_WITH_") || name.starts_with("TLS_ECDHE_") => {
                unsupported.push(name.clone());
            }
            None => return Err(TlsError::UnknownCipherSuite { name: name.clone() }),
        }
    }
    // Lists are written for Go, which has old suites too; without those the others still serve.
    if let Some(name) = unsupported.first().filter(|_| chosen.is_empty()) {
        return Err(TlsError::UnsupportedCipherSuite { name: name.clone() });
    }
    Ok((chosen, unsupported))
}

#[cfg(test)]
pub(crate) mod tests;
