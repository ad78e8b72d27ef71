//! The server's side of TLS.

use std::sync::{Arc, Mutex, PoisonError};

use client::{client_chain_or_trusted, name_not_allowed};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoClientAuth, NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::config::TlsConfig;

use super::identity::PeerIdentity;
use super::revoked::Revoked;
use super::{Files, TlsError, certificates, private_key, provider, roots, versions};

/// Makes the configuration of each handshake.
pub struct ServerTls {
    config: TlsConfig,
    // A std mutex: held while files are compared, never across an await.
    made: Mutex<Made>,
}

struct Made {
    files: Files,
    server: Arc<ServerConfig>,
    revoked: Arc<Revoked>,
    /// Why files are not used, so that it is complained about once.
    refused: Vec<String>,
}

/// Reads files of one kind.
type ReadKind = fn(&TlsConfig, &mut Files) -> Result<(), TlsError>;

/// What is exchanged together: a pair, the authorities, the list of revoked certificates.
const KINDS: [ReadKind; 3] = [
    |config, files| {
        files.cert = super::read(&config.cert_file)?;
        files.key = super::read(&config.key_file)?;
        Ok(())
    },
    |config, files| {
        files.authority = super::read(&config.trusted_ca_file)?;
        Ok(())
    },
    |config, files| {
        files.revocations = super::read(&config.crl_file)?;
        Ok(())
    },
];

impl ServerTls {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// When they cannot be used; the listener must not start then.
    pub fn new(config: TlsConfig) -> Result<Self, TlsError> {
        let files = read(&config)?;
        let (server, revoked) = make(&config, &files)?;
        Ok(Self { config, made: Mutex::new(Made { files, server, revoked, refused: Vec::new() }) })
    }

    /// The configuration for a connection that begins now. Of files that cannot be used the last good ones
    /// are, each kind by itself: a pair that does not fit holds up no revocation.
    pub fn current(&self) -> Arc<ServerConfig> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let mut refused = Vec::new();
        for read in KINDS {
            let mut files = made.files.clone();
            let remade = read(&self.config, &mut files).and_then(|()| match files == made.files {
                true => Ok(None),
                false => make(&self.config, &files).map(Some),
            });
            match remade {
                Ok(None) => {}
                Ok(Some((server, revoked))) => {
                    tracing::info!(path = self.config.cert_file, "certificate files have changed");
                    (made.files, made.server, made.revoked) = (files, server, revoked);
                }
                Err(error) => refused.push(error.to_string()),
            }
        }
        for error in refused.iter().filter(|error| !made.refused.contains(error)) {
            tracing::error!(error, "keeping the last good certificate");
        }
        made.refused = refused;
        made.server.clone()
    }

    /// Whether a client with this identity may stay: the rules that come after the signature. Who has shown
    /// no certificate is held to none; where there is a CA, everybody has to show one.
    pub(crate) fn admits(&self, identity: Option<&PeerIdentity>) -> Result<(), String> {
        let Some(identity) = identity else { return Ok(()) };
        let revoked = self.made.lock().unwrap_or_else(PoisonError::into_inner).revoked.clone();
        revoked.check(identity)?;
        identity.check_names(&self.config)
    }

    /// Whether the address of a member must be one that its certificate names.
    pub(crate) fn checks_remote_address(&self) -> bool {
        !self.config.skip_client_san_verification
    }
}

fn read(config: &TlsConfig) -> Result<Files, TlsError> {
    Files::read(&config.cert_file, &config.key_file, &config.trusted_ca_file, &config.crl_file)
}

fn make(config: &TlsConfig, files: &Files) -> Result<(Arc<ServerConfig>, Arc<Revoked>), TlsError> {
    let revoked = Revoked::read(&config.crl_file, &files.revocations)?;
    let provider = provider(&config.cipher_suites)?;
    let verifier: Arc<dyn ClientCertVerifier> = if config.trusted_ca_file.is_empty() {
        Arc::new(NoClientAuth)
    } else {
        let roots = roots(&config.trusted_ca_file, &files.authority)?;
        let chains = WebPkiClientVerifier::builder_with_provider(roots, provider.clone()).build();
        let chains = chains.map_err(|error| TlsError::Authority {
            path: config.trusted_ca_file.clone(),
            reason: error.to_string(),
        })?;
        let trusted = certificates(&config.trusted_ca_file, &files.authority)?;
        Arc::new(Rules { chains, trusted, config: config.clone() })
    };
    let pair_error = |source| TlsError::Pair {
        cert: config.cert_file.clone(),
        key: config.key_file.clone(),
        source,
    };
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&versions(config))
        .map_err(pair_error)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            certificates(&config.cert_file, &files.cert)?,
            private_key(&config.key_file, &files.key)?,
        )
        .map_err(pair_error)?;
    if !config.trusted_ca_file.is_empty() {
        // A session that is resumed shows no certificate: one that has ended meanwhile, or whose authority is
        // not trusted any more, would go on being believed.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
    }
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok((Arc::new(server), Arc::new(revoked)))
}

/// Has the chains of clients' certificates checked, believes those too that are trusted themselves, and tells
/// in the handshake, as etcd does, whose names are not allowed.
#[derive(Debug)]
struct Rules {
    chains: Arc<dyn ClientCertVerifier>,
    trusted: Vec<CertificateDer<'static>>,
    config: TlsConfig,
}

impl ClientCertVerifier for Rules {
    fn offer_client_auth(&self) -> bool {
        self.chains.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.chains.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chains.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let chain = self.chains.verify_client_cert(certificate, intermediates, now);
        let verified = client_chain_or_trusted(&self.trusted, chain, certificate, now)?;
        let identity = PeerIdentity::shown(Some(std::slice::from_ref(certificate)));
        let allowed = identity.map_err(|error| error.to_string()).and_then(|identity| {
            identity.map_or(Ok(()), |identity| identity.check_names(&self.config))
        });
        allowed.map_err(|reason| name_not_allowed(&reason))?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chains.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chains.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}
