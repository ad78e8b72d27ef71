//! The client's side of TLS: how this member reaches the others.
//!
//! As in etcd, whom it calls is held to the same names as who calls it (`--peer-cert-allowed-cn`,
//! `--peer-cert-allowed-hostname`): a certificate of the same CA for something else makes no member.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use client::{AcceptAny, Judged, LastWord, Verdict, chain_or_trusted, name_not_allowed};
use rustls::client::WebPkiServerVerifier;
use rustls::{CertificateError, ClientConfig};
use rustls_pki_types::CertificateDer;

use crate::config::TlsConfig;

use super::identity::PeerIdentity;
use super::{Files, TlsError, certificates, private_key, provider, roots, versions};

/// Makes the configuration of each connection to another member.
pub struct ClientTls {
    config: TlsConfig,
    // A std mutex: held while files are compared, never across an await.
    made: Mutex<Option<(Files, Arc<ClientConfig>)>>,
}

impl ClientTls {
    pub fn new(config: TlsConfig) -> Self {
        Self { config, made: Mutex::new(None) }
    }

    /// The configuration for a connection that begins now.
    ///
    /// # Errors
    /// When the files cannot be used and never could; the dialer tries again later.
    pub fn current(&self) -> io::Result<Arc<ClientConfig>> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let files = match self.read() {
            Ok(files) => files,
            Err(error) => return kept(made.as_ref(), &error),
        };
        if let Some((_, client)) = made.as_ref().filter(|(known, _)| *known == files) {
            return Ok(client.clone());
        }
        match self.make(&files) {
            Ok(client) => {
                *made = Some((files, client.clone()));
                Ok(client)
            }
            Err(error) => kept(made.as_ref(), &error),
        }
    }

    /// Finds files that cannot be used at the start, and not at the first connection to a member.
    ///
    /// # Errors
    /// When files were named and one of them cannot be used.
    pub fn check(&self) -> io::Result<()> {
        match self.config.cert_file.is_empty() && self.config.trusted_ca_file.is_empty() {
            true => Ok(()),
            false => self.current().map(drop),
        }
    }

    /// What this member shows of itself: a client's pair, else the server's, as etcd does.
    fn pair(&self) -> (&str, &str) {
        let config = &self.config;
        match config.client_cert_file.is_empty() {
            true => (&config.cert_file, &config.key_file),
            false => (&config.client_cert_file, &config.client_key_file),
        }
    }

    fn read(&self) -> Result<Files, TlsError> {
        let (cert, key) = self.pair();
        Files::read(cert, key, &self.config.trusted_ca_file, "")
    }

    fn make(&self, files: &Files) -> Result<Arc<ClientConfig>, TlsError> {
        let (cert, key) = self.pair();
        let pair_error =
            |source| TlsError::Pair { cert: cert.to_owned(), key: key.to_owned(), source };
        // Without a CA nobody is trusted: the system's own authorities have no say about members.
        let roots = match self.config.trusted_ca_file.is_empty() {
            true => Arc::new(rustls::RootCertStore::empty()),
            false => roots(&self.config.trusted_ca_file, &files.authority)?,
        };
        let builder = ClientConfig::builder_with_provider(provider(&self.config.cipher_suites)?)
            .with_protocol_versions(&versions(&self.config))
            .map_err(pair_error)?
            .with_root_certificates(roots.clone());
        let mut client = match cert.is_empty() {
            true => builder.with_no_client_auth(),
            false => builder
                .with_client_auth_cert(
                    certificates(cert, &files.cert)?,
                    private_key(key, &files.key)?,
                )
                .map_err(pair_error)?,
        };
        if self.config.is_self_signed {
            // Certificates that members have made for themselves vouch for nothing.
            let any = Arc::new(AcceptAny::new(provider(&self.config.cipher_suites)?));
            client.dangerous().set_certificate_verifier(any);
        }
        let config = &self.config;
        if !config.is_self_signed && !config.trusted_ca_file.is_empty() {
            let trusted = certificates(&config.trusted_ca_file, &files.authority)?;
            let provider = provider(&config.cipher_suites)?;
            let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider).build();
            let verifier = verifier.map_err(|error| TlsError::Authority {
                path: config.trusted_ca_file.clone(),
                reason: error.to_string(),
            })?;
            let config = config.clone();
            let verifier = LastWord::new(verifier, move |judged| {
                with_allowed_names(&config, &trusted, judged)
            });
            client.dangerous().set_certificate_verifier(Arc::new(verifier));
        }
        client.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(client))
    }
}

/// Believes those whose certificate is signed by the CA or is one, valid for their host, and has an allowed
/// name, where some are listed.
fn with_allowed_names(
    config: &TlsConfig,
    trusted: &[CertificateDer<'_>],
    judged: Judged<'_>,
) -> Verdict {
    let certificate = judged.certificate;
    let verified = chain_or_trusted(trusted, judged)?;
    if config.allowed_cns.is_empty() && config.allowed_hostnames.is_empty() {
        return Ok(verified);
    }
    let identity = PeerIdentity::shown(Some(std::slice::from_ref(certificate)));
    let identity = identity.ok().flatten().ok_or(CertificateError::BadEncoding)?;
    identity.check_names(config).map_err(|reason| name_not_allowed(&reason))?;
    Ok(verified)
}

fn kept(
    made: Option<&(Files, Arc<ClientConfig>)>,
    error: &TlsError,
) -> io::Result<Arc<ClientConfig>> {
    match made {
        Some((_, client)) => {
            tracing::warn!(%error, "keeping the last good certificate for other members");
            Ok(client.clone())
        }
        None => Err(io::Error::new(io::ErrorKind::InvalidData, error.to_string())),
    }
}
