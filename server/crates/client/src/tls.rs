//! TLS settings from files.
//!
//! Beside the algorithms of ring this checks ECDSA signatures by P-521 keys: the certificates that
//! etcd makes for itself (`--auto-tls`) have such keys.

use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use p521::ecdsa::signature::Verifier as _;
use p521::ecdsa::{Signature, VerifyingKey};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature,
};
use rustls::server::ParsedCertificate;
use rustls::server::danger::ClientCertVerified;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{
    AlgorithmIdentifier, CertificateDer, InvalidSignature, PrivateKeyDer, ServerName,
    SignatureVerificationAlgorithm, UnixTime, alg_id,
};

use crate::config::TlsOptions;
use crate::der;
use crate::error::{Error, io_reason};

/// Where Linux distributions keep the authorities that they trust, as Go's crypto/x509 looks for
/// them.
const SYSTEM_AUTHORITIES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// What the files hold that the options name.
#[derive(PartialEq, Eq)]
pub(crate) struct Files {
    certificate: Option<Vec<u8>>,
    key: Option<Vec<u8>>,
    authorities: Option<Vec<u8>>,
}

impl Files {
    pub(crate) fn read(options: &TlsOptions) -> Result<Self, Error> {
        let pair = pair(options)?;
        Ok(Self {
            certificate: pair.map(|(certificate, _)| read(certificate)).transpose()?,
            key: pair.map(|(_, key)| read(key)).transpose()?,
            authorities: options.ca_file.as_deref().map(read).transpose()?,
        })
    }
}

/// Makes rustls's configuration, offering one version of HTTP only.
pub(crate) fn client_config(
    options: &TlsOptions,
    files: &Files,
    protocol: &[u8],
) -> Result<Arc<ClientConfig>, Error> {
    let provider = CryptoProvider {
        signature_verification_algorithms: signature_algorithms(),
        ..ring::default_provider()
    };
    let provider = Arc::new(provider);
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(tls_error)?;
    let identity = identity(options, files)?;
    let verifier: Arc<dyn ServerCertVerifier> = if options.insecure_skip_verify {
        Arc::new(AcceptAny::new(provider))
    } else {
        let trusted = match (&options.ca_file, &files.authorities) {
            (Some(path), Some(pem)) => certificates(path, pem)?,
            _ => Vec::new(),
        };
        let roots = Arc::new(authorities(options, &trusted)?);
        let chains = WebPkiServerVerifier::builder_with_provider(roots, provider)
            .build()
            .map_err(|error| Error::Tls(error.to_string()))?;
        Arc::new(LastWord::new(chains, move |judged| chain_or_trusted(&trusted, judged)))
    };
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    let mut config = match identity {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(tls_error)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![protocol.to_vec()];
    Ok(Arc::new(config))
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// A certificate's file and its key's.
fn pair(options: &TlsOptions) -> Result<Option<(&Path, &Path)>, Error> {
    match (options.certificate_file.as_deref(), options.key_file.as_deref()) {
        (None, None) => Ok(None),
        (Some(certificate), Some(key)) => Ok(Some((certificate, key))),
        (certificate, key) => {
            let show = |path: Option<&Path>| {
                path.map(|path| path.display().to_string()).unwrap_or_default()
            };
            Err(Error::Tls(format!(
                "KeyFile and CertFile must both be present[key: {}, cert: {}]",
                show(key),
                show(certificate)
            )))
        }
    }
}

fn identity(options: &TlsOptions, files: &Files) -> Result<Option<Identity>, Error> {
    let Some((certificate, key)) = pair(options)? else { return Ok(None) };
    let (Some(certificate_pem), Some(key_pem)) = (&files.certificate, &files.key) else {
        return Ok(None);
    };
    let chain = certificates(certificate, certificate_pem)?;
    if let Some(reason) = options.refused.and_then(|refused| refused(certificate_pem)) {
        return Err(Error::Tls(format!("{}: {reason}", certificate.display())));
    }
    let key = PrivateKeyDer::from_pem_slice(key_pem)
        .map_err(|error| Error::Tls(format!("{}: no private key: {error}", key.display())))?;
    Ok(Some((chain, key)))
}

fn authorities(
    options: &TlsOptions,
    trusted: &[CertificateDer<'static>],
) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    if options.ca_file.is_some() {
        for certificate in trusted {
            roots.add(certificate.clone()).map_err(tls_error)?;
        }
        return Ok(roots);
    }
    let system = SYSTEM_AUTHORITIES.iter().map(Path::new).find(|path| path.exists());
    if let Some(file) = system {
        roots.add_parsable_certificates(certificates(file, &read(file)?)?);
    }
    if roots.is_empty() {
        return Err(Error::Tls(
            "no trusted certificate authorities on this system: name a CA bundle".to_owned(),
        ));
    }
    Ok(roots)
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| Error::Tls(format!("{}: {error}", path.display())))?;
    if certificates.is_empty() {
        return Err(Error::Tls(format!("{}: no certificate found", path.display())));
    }
    Ok(certificates)
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path)
        .map_err(|error| Error::File { path: path.to_path_buf(), reason: io_reason(&error) })
}

fn tls_error(error: rustls::Error) -> Error {
    Error::Tls(error.to_string())
}

/// Judges a server's certificate after webpki has judged its chain. What webpki refuses and Go accepts: one
/// that is its own authority, as `etcd --auto-tls` makes it and many small clusters use it.
///
/// # Errors
/// The certificate is not believed.
pub fn chain_or_trusted(trusted: &[CertificateDer<'_>], judged: Judged<'_>) -> Verdict {
    let Judged { chain, certificate, name, now } = judged;
    if chain.is_ok() || !is_among(trusted, certificate) {
        return chain;
    }
    let parsed = is_good_for(certificate, SERVER_AUTHENTICATION, now)?;
    verify_server_name(&parsed, name)?;
    Ok(ServerCertVerified::assertion())
}

/// The same for a client's certificate, which is for no name.
///
/// # Errors
/// The certificate is not believed.
pub fn client_chain_or_trusted(
    trusted: &[CertificateDer<'_>],
    chain: Result<ClientCertVerified, rustls::Error>,
    certificate: &CertificateDer<'_>,
    now: UnixTime,
) -> Result<ClientCertVerified, rustls::Error> {
    if chain.is_ok() || !is_among(trusted, certificate) {
        return chain;
    }
    is_good_for(certificate, CLIENT_AUTHENTICATION, now)?;
    Ok(ClientCertVerified::assertion())
}

/// 1.3.6.1.5.5.7.3.1
const SERVER_AUTHENTICATION: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 1];
/// 1.3.6.1.5.5.7.3.2
const CLIENT_AUTHENTICATION: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 2];

fn is_among(trusted: &[CertificateDer<'_>], certificate: &CertificateDer<'_>) -> bool {
    trusted.iter().any(|trusted| trusted.as_ref() == certificate.as_ref())
}

/// What is asked of a certificate that nobody has to vouch for. webpki reads it, which refuses what is
/// critical and unknown.
fn is_good_for<'a>(
    certificate: &'a CertificateDer<'a>,
    purpose: &[u8],
    now: UnixTime,
) -> Result<ParsedCertificate<'a>, rustls::Error> {
    let parsed = ParsedCertificate::try_from(certificate)?;
    let (not_before, not_after) =
        der::validity(certificate).ok_or(CertificateError::BadEncoding)?;
    if now.as_secs() < not_before {
        return Err(CertificateError::NotValidYet.into());
    }
    if now.as_secs() > not_after {
        return Err(CertificateError::Expired.into());
    }
    match der::serves(certificate, purpose) {
        Some(true) => Ok(parsed),
        Some(false) => Err(CertificateError::InvalidPurpose.into()),
        None => Err(CertificateError::BadEncoding.into()),
    }
}

/// What is decided of a server's certificate.
pub type Verdict = Result<ServerCertVerified, rustls::Error>;

/// A server's certificate, and what webpki says of it.
#[derive(Debug)]
pub struct Judged<'a> {
    /// Whether an authority vouches for it, for this name and this time.
    pub chain: Verdict,
    /// The certificate itself.
    pub certificate: &'a CertificateDer<'a>,
    /// Who was called.
    pub name: &'a ServerName<'a>,
    /// When.
    pub now: UnixTime,
}

/// Has the chain of a server's certificate checked, and gives someone else the last word.
pub struct LastWord<F> {
    chains: Arc<WebPkiServerVerifier>,
    decide: F,
}

impl<F: Fn(Judged<'_>) -> Verdict> LastWord<F> {
    /// `decide` has the last word.
    pub fn new(chains: Arc<WebPkiServerVerifier>, decide: F) -> Self {
        Self { chains, decide }
    }
}

impl<F> fmt::Debug for LastWord<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LastWord").field("chains", &self.chains).finish_non_exhaustive()
    }
}

impl<F: Fn(Judged<'_>) -> Verdict + Send + Sync> ServerCertVerifier for LastWord<F> {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Verdict {
        let chain =
            self.chains.verify_server_cert(certificate, intermediates, name, ocsp_response, now);
        (self.decide)(Judged { chain, certificate, name, now })
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

/// The signatures that are believed: those that ring checks, and those by P-521 keys.
pub fn signature_algorithms() -> WebPkiSupportedAlgorithms {
    *ALGORITHMS
}

/// ring's algorithms and [`EcdsaP521Sha512`]. rustls wants lists that live for ever.
static ALGORITHMS: LazyLock<WebPkiSupportedAlgorithms> = LazyLock::new(|| {
    let ring = ring::default_provider().signature_verification_algorithms;
    let p521: &[&dyn SignatureVerificationAlgorithm] = &[&EcdsaP521Sha512];
    let mut all = ring.all.to_vec();
    all.extend_from_slice(p521);
    let mut mapping = ring.mapping.to_vec();
    mapping.push((SignatureScheme::ECDSA_NISTP521_SHA512, p521));
    WebPkiSupportedAlgorithms { all: all.leak(), mapping: mapping.leak() }
});

#[derive(Debug)]
struct EcdsaP521Sha512;

impl SignatureVerificationAlgorithm for EcdsaP521Sha512 {
    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ECDSA_P521
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ECDSA_SHA512
    }

    fn verify_signature(
        &self,
        public_key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        let key = VerifyingKey::from_sec1_bytes(public_key).map_err(|_| InvalidSignature)?;
        let signature = Signature::from_der(signature).map_err(|_| InvalidSignature)?;
        key.verify(message, &signature).map_err(|_| InvalidSignature)
    }
}

/// Accepts every certificate but still checks that the server holds its key.
#[derive(Debug)]
pub struct AcceptAny(Arc<CryptoProvider>);

impl AcceptAny {
    /// With the algorithms of this provider.
    pub fn new(provider: Arc<CryptoProvider>) -> Self {
        Self(provider)
    }
}

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
