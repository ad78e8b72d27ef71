//! What a verified certificate says about whoever showed it.

use std::net::IpAddr;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::ParsedCertificate;
use sha2::{Digest, Sha256};
use x509_parser::asn1_rs::Tag;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::config::TlsConfig;

/// The parts of a client's certificate that rules look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The common name of its subject, the last if it has several; empty if it has none.
    pub common_name: String,
    dns_names: Vec<String>,
    addresses: Vec<IpAddr>,
    certificate: CertificateDer<'static>,
    /// Of all certificates that were shown.
    serials: Vec<Vec<u8>>,
}

/// A certificate that was shown and verified, but whose names or serial number cannot be read here: no
/// rule could be held to it, so whoever shows it is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("tls: failed to parse a certificate that was shown: {0}")]
pub struct Unreadable(String);

/// The common name of a subject: the last if it has several, as in Go, which overwrites those before it; empty
/// if it has none.
pub(crate) fn common_name(certificate: &X509Certificate<'_>) -> Result<String, Unreadable> {
    let Some(name) = certificate.subject().iter_common_name().last() else {
        return Ok(String::new());
    };
    let value = name.attr_value();
    if value.tag() == Tag::BmpString {
        let units = value.data.chunks_exact(2).map(|unit| u16::from_be_bytes([unit[0], unit[1]]));
        return String::from_utf16(&units.collect::<Vec<_>>())
            .map_err(|error| Unreadable(error.to_string()));
    }
    name.as_str().map(str::to_owned).map_err(|error| Unreadable(error.to_string()))
}

impl PeerIdentity {
    /// Reads the chain that was shown and verified, if one was; its first certificate is who it is about.
    ///
    /// # Errors
    /// When one of the certificates cannot be read.
    pub fn shown(chain: Option<&[CertificateDer<'_>]>) -> Result<Option<Self>, Unreadable> {
        let Some([certificate, ..]) = chain else { return Ok(None) };
        let certificate = certificate.clone().into_owned();
        let parsed = parse(&certificate)?;
        let common_name = common_name(&parsed)?;
        let (mut dns_names, mut addresses) = (Vec::new(), Vec::new());
        let names = parsed.subject_alternative_name();
        if let Some(names) = names.map_err(|error| Unreadable(error.to_string()))? {
            for name in &names.value.general_names {
                match name {
                    GeneralName::DNSName(name) => dns_names.push((*name).to_owned()),
                    GeneralName::IPAddress(bytes) => match address(bytes) {
                        Some(address) => addresses.push(address),
                        None => return Err(Unreadable("an address of no length".to_owned())),
                    },
                    GeneralName::Invalid(..) => {
                        return Err(Unreadable("a malformed name".to_owned()));
                    }
                    _ => {}
                }
            }
        }
        drop(parsed);
        let serials = chain.unwrap_or_default().iter().map(serial).collect::<Result<_, _>>()?;
        Ok(Some(Self { common_name, dns_names, addresses, certificate, serials }))
    }

    pub(super) fn serials(&self) -> &[Vec<u8>] {
        &self.serials
    }

    /// Whether the certificate names this host.
    pub fn is_valid_for(&self, host: &str) -> bool {
        let Ok(certificate) = ParsedCertificate::try_from(&self.certificate) else { return false };
        ServerName::try_from(host.to_owned())
            .is_ok_and(|name| rustls::client::verify_server_name(&certificate, &name).is_ok())
    }

    /// Whether the names of the certificate are among those that are allowed, where some are listed:
    /// common names, and hosts that it has to be valid for.
    pub(super) fn check_names(&self, config: &TlsConfig) -> Result<(), String> {
        if !config.allowed_cns.is_empty() && !config.allowed_cns.contains(&self.common_name) {
            return Err(format!(
                "client certificate authentication failed: CN {:?} is not allowed",
                self.common_name
            ));
        }
        if !config.allowed_hostnames.is_empty()
            && !config.allowed_hostnames.iter().any(|name| self.is_valid_for(name))
        {
            return Err(
                "client certificate authentication failed: no allowed hostname in it".to_owned()
            );
        }
        Ok(())
    }

    /// etcd's `checkCertSAN`: the address of a member must be one that its certificate names, by
    /// itself or through a name that resolves to it. A certificate that names nothing passes. etcd also
    /// asks DNS for the names of the address, which it compares with those of the certificate; there is
    /// no such question here, so a certificate with a wildcard passes from any address.
    pub async fn check_address(&self, remote: IpAddr) -> Result<(), String> {
        let remote = remote.to_canonical();
        let names_nothing = self.dns_names.is_empty() && self.addresses.is_empty();
        if names_nothing || self.addresses.contains(&remote) {
            return Ok(());
        }
        if self.dns_names.iter().any(|name| name.starts_with("*.")) {
            return Ok(());
        }
        for name in &self.dns_names {
            let Ok(mut found) = tokio::net::lookup_host((name.as_str(), 0)).await else { continue };
            if found.any(|address| address.ip().to_canonical() == remote) {
                return Ok(());
            }
        }
        let reason = if self.dns_names.is_empty() {
            let addresses: Vec<String> = self.addresses.iter().map(IpAddr::to_string).collect();
            format!("x509: certificate is valid for {}, not {remote}", addresses.join(", "))
        } else {
            let names: Vec<String> =
                self.dns_names.iter().map(|name| format!("{name:?}")).collect();
            let names = names.join(" ");
            format!("tls: \"{remote}\" does not match any of DNSNames [{names}]")
        };
        Err(format!("{reason} (--peer-skip-client-san-verification turns this check off)"))
    }
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Unreadable> {
    let parsed = X509Certificate::from_der(certificate);
    parsed.map(|(_, parsed)| parsed).map_err(|error| Unreadable(error.to_string()))
}

fn serial(certificate: &CertificateDer<'_>) -> Result<Vec<u8>, Unreadable> {
    Ok(parse(certificate)?.tbs_certificate.serial.to_bytes_be())
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(|bytes| IpAddr::from(bytes).to_canonical()),
        _ => None,
    }
}

/// The SHA-256 of a certificate in hexadecimal: what an operator compares to see that a renewed
/// certificate is in use.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    hex::encode(Sha256::digest(certificate.as_ref()))
}
