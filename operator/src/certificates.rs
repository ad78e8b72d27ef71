//! The self-managed certificates of a cluster: one CA for clients and one for peers, a server and
//! a peer certificate per member, and one client certificate for users and the operator.
//!
//! Two CAs, because a client must never be able to speak the peer protocol. Certificates are data
//! here: what goes in is the PEM that exists, what comes out is the PEM that should exist; reading
//! and writing the Secrets is the caller's business. A leaf is issued again when it nears its end,
//! when its names change, or when another CA signed it. Deliberately absent: rotation of the CA.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType,
};
use x509_parser::{extensions::GeneralName, parse_x509_certificate, pem::parse_x509_pem};

const CA_LIFETIME: SignedDuration = SignedDuration::from_hours(24 * 3650);
const LEAF_LIFETIME: SignedDuration = SignedDuration::from_hours(2160);
const RENEW_BEFORE: SignedDuration = SignedDuration::from_hours(720);

/// A certificate and its key, as PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyPairPem {
    pub certificate: String,
    pub key: String,
}

impl std::fmt::Debug for KeyPairPem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyPairPem").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// What a leaf is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// Shown to clients; also used by the server's own gateway to dial itself.
    Server,
    /// Both ends of a connection between members.
    Peer,
    /// Shown by users and by the operator.
    Client,
}

/// A certificate that cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("issue certificate {name:?}: {source}")]
    Issue { name: String, source: rcgen::Error },
    #[error("read certificate: {detail}; delete the Secret to have it issued again")]
    Read { detail: String },
}

/// A new CA.
///
/// # Errors
/// The key or certificate could not be made.
pub fn new_ca(name: &str, now: Timestamp) -> Result<KeyPairPem, CertificateError> {
    let issue = |source| CertificateError::Issue { name: name.to_owned(), source };
    let key = KeyPair::generate().map_err(issue)?;
    let mut params = CertificateParams::new(Vec::<String>::new()).map_err(issue)?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid_for(&mut params, now, CA_LIFETIME);
    let certificate = params.self_signed(&key).map_err(issue)?;
    Ok(KeyPairPem { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// A new leaf, signed by the CA.
///
/// # Errors
/// The CA cannot be read, or a name is not valid in a certificate.
pub fn new_leaf(
    ca: &KeyPairPem,
    name: &str,
    alternative_names: &[String],
    usage: Usage,
    now: Timestamp,
) -> Result<KeyPairPem, CertificateError> {
    let issue = |source| CertificateError::Issue { name: name.to_owned(), source };
    let ca_key = KeyPair::from_pem(&ca.key).map_err(issue)?;
    let issuer = Issuer::from_ca_cert_pem(&ca.certificate, ca_key).map_err(issue)?;
    let key = KeyPair::generate().map_err(issue)?;
    let mut params = CertificateParams::new(alternative_names.to_vec()).map_err(issue)?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = match usage {
        Usage::Server | Usage::Peer => {
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]
        }
        Usage::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
    };
    valid_for(&mut params, now, LEAF_LIFETIME);
    let certificate = params.signed_by(&key, &issuer).map_err(issue)?;
    Ok(KeyPairPem { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// Whether a leaf that exists can stay: it can be read, has its key, time left, the names it needs, and the
/// CA's signature.
///
/// # Errors
/// The CA cannot be read.
pub fn leaf_is_current(
    pair: &KeyPairPem,
    ca: &str,
    alternative_names: &[String],
    now: Timestamp,
) -> Result<bool, CertificateError> {
    let ca = facts(ca)?;
    let Ok(leaf) = facts(&pair.certificate) else { return Ok(false) };
    let key = KeyPair::from_pem(&pair.key);
    if !key.is_ok_and(|key| key.subject_public_key_info() == leaf.public_key) {
        return Ok(false);
    }
    let wanted: BTreeSet<&str> = alternative_names.iter().map(String::as_str).collect();
    let has: BTreeSet<&str> = leaf.alternative_names.iter().map(String::as_str).collect();
    let signed = verify_signature(&leaf.der, &ca.der)?;
    Ok(signed && wanted == has && leaf.not_after.duration_since(now) > RENEW_BEFORE)
}

/// When a certificate ends.
///
/// # Errors
/// It cannot be read.
pub fn not_after(certificate: &str) -> Result<Timestamp, CertificateError> {
    Ok(facts(certificate)?.not_after)
}

fn valid_for(params: &mut CertificateParams, now: Timestamp, lifetime: SignedDuration) {
    let date = |at: Timestamp| {
        let date = at.to_zoned(TimeZone::UTC).date();
        let (month, day) = (date.month().unsigned_abs(), date.day().unsigned_abs());
        rcgen::date_time_ymd(i32::from(date.year()), month, day)
    };
    // A day of slack for clocks that are behind.
    params.not_before = date(now - SignedDuration::from_hours(24));
    params.not_after = date(now + lifetime);
}

struct Facts {
    der: Vec<u8>,
    not_after: Timestamp,
    alternative_names: Vec<String>,
    /// As SubjectPublicKeyInfo.
    public_key: Vec<u8>,
}

fn facts(pem: &str) -> Result<Facts, CertificateError> {
    let read = |detail: String| CertificateError::Read { detail };
    let (_, pem) = parse_x509_pem(pem.as_bytes()).map_err(|error| read(error.to_string()))?;
    let (_, certificate) =
        parse_x509_certificate(&pem.contents).map_err(|error| read(error.to_string()))?;
    let not_after = Timestamp::from_second(certificate.validity().not_after.timestamp())
        .map_err(|error| read(error.to_string()))?;
    let names = certificate.subject_alternative_name().map_err(|error| read(error.to_string()))?;
    let names = names.map(|names| names.value.general_names.clone()).unwrap_or_default();
    let alternative_names = names
        .into_iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_owned()),
            GeneralName::IPAddress(bytes) => ip_address(bytes),
            _ => None,
        })
        .collect();
    let public_key = certificate.public_key().raw.to_vec();
    Ok(Facts { der: pem.contents.clone(), not_after, alternative_names, public_key })
}

fn ip_address(bytes: &[u8]) -> Option<String> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Some(std::net::Ipv4Addr::from(octets).to_string());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|octets| std::net::Ipv6Addr::from(octets).to_string())
}

/// Checks the issuer by name and key identifier; the signature itself is checked by everybody who
/// is shown the certificate.
fn verify_signature(leaf: &[u8], ca: &[u8]) -> Result<bool, CertificateError> {
    use x509_parser::extensions::ParsedExtension;
    let parse = |der| parse_x509_certificate(der).map(|(_, certificate)| certificate);
    let read =
        |error: x509_parser::nom::Err<_>| CertificateError::Read { detail: error.to_string() };
    let (leaf, ca) = (parse(leaf).map_err(read)?, parse(ca).map_err(read)?);
    let authority =
        leaf.extensions().iter().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                id.key_identifier.as_ref().map(|id| id.0.to_vec())
            }
            _ => None,
        });
    let subject = ca.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
        _ => None,
    });
    Ok(leaf.issuer() == ca.subject() && authority.is_some() && authority == subject)
}

/// The names as certificates hold them: an address that parses is an address.
pub fn normalized(names: &[String]) -> Vec<String> {
    names
        .iter()
        .filter_map(|name| match name.parse::<std::net::IpAddr>() {
            Ok(address) => Some(address.to_string()),
            Err(_) => SanType::DnsName(name.clone().try_into().ok()?).into_text(),
        })
        .collect()
}

trait IntoText {
    fn into_text(self) -> Option<String>;
}

impl IntoText for SanType {
    fn into_text(self) -> Option<String> {
        match self {
            SanType::DnsName(name) => Some(name.as_str().to_owned()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-11-21T12:00:00Z".parse().unwrap()
    }

    fn names() -> Vec<String> {
        ["main-1.main-peers.ns.svc", "localhost", "127.0.0.1"].map(str::to_owned).to_vec()
    }

    #[test]
    fn a_fresh_leaf_is_current() {
        let ca = new_ca("main client CA", now()).unwrap();
        let leaf = new_leaf(&ca, "main-1", &names(), Usage::Server, now()).unwrap();
        assert!(leaf_is_current(&leaf, &ca.certificate, &names(), now()).unwrap());
    }

    #[test]
    fn a_leaf_is_renewed_thirty_days_before_its_end() {
        let ca = new_ca("main client CA", now()).unwrap();
        let leaf = new_leaf(&ca, "main-1", &names(), Usage::Server, now()).unwrap();
        let current = |days: i64| {
            let then = now() + SignedDuration::from_hours(24 * days);
            leaf_is_current(&leaf, &ca.certificate, &names(), then).unwrap()
        };
        assert!(current(58));
        assert!(!current(61));
    }

    #[test]
    fn other_names_or_another_ca_make_a_leaf_stale() {
        let ca = new_ca("main client CA", now()).unwrap();
        let other = new_ca("main client CA", now()).unwrap();
        let leaf = new_leaf(&ca, "main-1", &names(), Usage::Server, now()).unwrap();
        assert!(!leaf_is_current(&leaf, &ca.certificate, &[], now()).unwrap());
        assert!(!leaf_is_current(&leaf, &other.certificate, &names(), now()).unwrap());
    }

    #[test]
    fn a_leaf_that_cannot_be_read_or_has_another_key_is_stale() {
        let ca = new_ca("main client CA", now()).unwrap();
        let leaf = new_leaf(&ca, "main-1", &names(), Usage::Server, now()).unwrap();
        let other = new_leaf(&ca, "main-1", &names(), Usage::Server, now()).unwrap();
        let (certificate, key) = (|| leaf.certificate.clone(), || leaf.key.clone());
        let rubbish = || "not PEM".to_owned();
        for pair in [
            KeyPairPem { certificate: rubbish(), key: key() },
            KeyPairPem { certificate: certificate(), key: rubbish() },
            KeyPairPem { certificate: certificate(), key: other.key },
        ] {
            assert!(!leaf_is_current(&pair, &ca.certificate, &names(), now()).unwrap());
        }
        assert!(leaf_is_current(&leaf, "not PEM", &names(), now()).is_err());
    }

    #[test]
    fn rubbish_in_a_secret_is_an_error_that_says_what_to_do() {
        let error = not_after("not a certificate").unwrap_err().to_string();
        assert!(error.contains("delete the Secret"), "{error}");
    }

    #[test]
    fn the_key_is_not_in_the_debug_text() {
        let ca = new_ca("main client CA", now()).unwrap();
        assert!(!format!("{ca:?}").contains("PRIVATE KEY"));
    }
}
