//! Why TLS failed, in the words of Go's `crypto/tls` and `crypto/x509`, which people search for and tools
//! look for in logs.

use std::io;
use std::net::Ipv4Addr;

use jiff::Timestamp;
use rustls::pki_types::{ServerName, UnixTime};
use rustls::{AlertDescription, CertificateError, Error, InvalidMessage};

use crate::error::io_reason;

/// Marks a reason among the names of a certificate.
const RULE: &str = "rule: ";

/// A certificate that is valid, but has no name that a rule allows. For names alone rustls sends the alert
/// that Go sends for whatever the application refuses ("bad certificate"); the reason stands where the names
/// of the certificate would, and [`tls_reason`] tells it.
pub fn name_not_allowed(reason: &str) -> CertificateError {
    CertificateError::NotValidForNameContext {
        expected: ServerName::IpAddress(Ipv4Addr::UNSPECIFIED.into()),
        presented: vec![format!("{RULE}{reason}")],
    }
}

/// The reason of a handshake, or of a connection, that failed. Other errors are told as they are.
pub fn tls_reason(error: &io::Error) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    match (inner, error.kind()) {
        (Some(error), _) => reason(error),
        (None, io::ErrorKind::UnexpectedEof) => "EOF".to_owned(),
        (None, _) => io_reason(error),
    }
}

fn reason(error: &Error) -> String {
    match error {
        Error::AlertReceived(alert) => match alert_text(*alert) {
            Some(text) => format!("remote error: tls: {text}"),
            None => format!("remote error: tls: alert({})", u8::from(*alert)),
        },
        Error::InvalidCertificate(error) => match rule(error) {
            Some(reason) => reason.to_owned(),
            None => {
                format!("tls: failed to verify certificate: x509: {}", certificate_reason(error))
            }
        },
        Error::NoCertificatesPresented => "tls: client didn't provide a certificate".to_owned(),
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "tls: first record does not look like a TLS handshake".to_owned()
        }
        Error::NoApplicationProtocol => {
            "tls: client requested unsupported application protocols".to_owned()
        }
        error => format!("tls: {error}"),
    }
}

fn rule(error: &CertificateError) -> Option<&str> {
    match error {
        CertificateError::NotValidForNameContext { presented, .. } => {
            presented.first()?.strip_prefix(RULE)
        }
        _ => None,
    }
}

/// What Go calls the alerts of RFC 8446 §6 and of its predecessors.
fn alert_text(alert: AlertDescription) -> Option<&'static str> {
    use AlertDescription as Alert;
    Some(match alert {
        Alert::CloseNotify => "close notify",
        Alert::UnexpectedMessage => "unexpected message",
        Alert::BadRecordMac => "bad record MAC",
        Alert::DecryptionFailed => "decryption failed",
        Alert::RecordOverflow => "record overflow",
        Alert::DecompressionFailure => "decompression failure",
        Alert::HandshakeFailure => "handshake failure",
        Alert::BadCertificate => "bad certificate",
        Alert::UnsupportedCertificate => "unsupported certificate",
        Alert::CertificateRevoked => "revoked certificate",
        Alert::CertificateExpired => "expired certificate",
        Alert::CertificateUnknown => "unknown certificate",
        Alert::IllegalParameter => "illegal parameter",
        Alert::UnknownCA => "unknown certificate authority",
        Alert::AccessDenied => "access denied",
        Alert::DecodeError => "error decoding message",
        Alert::DecryptError => "error decrypting message",
        Alert::ExportRestriction => "export restriction",
        Alert::ProtocolVersion => "protocol version not supported",
        Alert::InsufficientSecurity => "insufficient security level",
        Alert::InternalError => "internal error",
        Alert::InappropriateFallback => "inappropriate fallback",
        Alert::UserCanceled => "user canceled",
        Alert::NoRenegotiation => "no renegotiation",
        Alert::MissingExtension => "missing extension",
        Alert::UnsupportedExtension => "unsupported extension",
        Alert::CertificateUnobtainable => "certificate unobtainable",
        Alert::UnrecognisedName => "unrecognized name",
        Alert::BadCertificateStatusResponse => "bad certificate status response",
        Alert::BadCertificateHashValue => "bad certificate hash value",
        Alert::UnknownPSKIdentity => "unknown PSK identity",
        Alert::CertificateRequired => "certificate required",
        Alert::NoApplicationProtocol => "no application protocol",
        Alert::EncryptedClientHelloRequired => "encrypted client hello required",
        _ => return None,
    })
}

fn certificate_reason(error: &CertificateError) -> String {
    const EXPIRED: &str = "certificate has expired or is not yet valid";
    match error {
        CertificateError::UnknownIssuer => "certificate signed by unknown authority".to_owned(),
        CertificateError::ExpiredContext { time, not_after } => {
            format!("{EXPIRED}: current time {} is after {}", date(*time), date(*not_after))
        }
        CertificateError::NotValidYetContext { time, not_before } => {
            format!("{EXPIRED}: current time {} is before {}", date(*time), date(*not_before))
        }
        CertificateError::Expired | CertificateError::NotValidYet => EXPIRED.to_owned(),
        CertificateError::NotValidForNameContext { expected, presented } => {
            name_reason(expected, presented)
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "certificate specifies an incompatible key usage".to_owned()
        }
        CertificateError::UnhandledCriticalExtension => "unhandled critical extension".to_owned(),
        error => error.to_string(),
    }
}

/// `presented` has each name in the form of its type, such as `DnsName("localhost")`.
fn name_reason(expected: &ServerName<'_>, presented: &[String]) -> String {
    let is_address = matches!(expected, ServerName::IpAddress(_));
    let expected = expected.to_str();
    let kind = if is_address { "IpAddress(" } else { "DnsName(" };
    let names: Vec<&str> = presented
        .iter()
        .filter_map(|name| name.strip_prefix(kind)?.strip_suffix(')'))
        .map(|name| name.trim_matches('"'))
        .collect();
    match names.is_empty() {
        true if is_address => format!(
            "cannot validate certificate for {expected} because it doesn't contain any IP SANs"
        ),
        true => format!("certificate is not valid for any names, but wanted to match {expected}"),
        false => format!("certificate is valid for {}, not {expected}", names.join(", ")),
    }
}

fn date(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    match Timestamp::from_second(seconds) {
        Ok(time) => time.to_string(),
        Err(_) => format!("{seconds} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn told(error: impl Into<Error>) -> String {
        tls_reason(&io::Error::new(io::ErrorKind::InvalidData, error.into()))
    }

    #[test]
    fn reasons_are_told_as_go_tells_them() {
        let alert = |alert| told(Error::AlertReceived(alert));
        assert_eq!(alert(AlertDescription::BadCertificate), "remote error: tls: bad certificate");
        assert_eq!(alert(AlertDescription::Unknown(77)), "remote error: tls: alert(77)");
        let certificate = |error: CertificateError| {
            let told = told(error);
            told.strip_prefix("tls: failed to verify certificate: x509: ").unwrap().to_owned()
        };
        assert_eq!(
            certificate(CertificateError::UnknownIssuer),
            "certificate signed by unknown authority"
        );
        let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        assert_eq!(
            certificate(CertificateError::ExpiredContext { time: at(86_400), not_after: at(0) }),
            "certificate has expired or is not yet valid: \
             current time 1970-01-02T00:00:00Z is after 1970-01-01T00:00:00Z"
        );
        let name = |expected: &str, presented: &[&str]| {
            certificate(CertificateError::NotValidForNameContext {
                expected: ServerName::try_from(expected.to_owned()).unwrap(),
                presented: presented.iter().map(|&name| name.to_owned()).collect(),
            })
        };
        let presented = ["DnsName(\"a.example\")", "DnsName(\"b.example\")"];
        assert_eq!(
            name("localhost", &presented),
            "certificate is valid for a.example, b.example, not localhost"
        );
        assert_eq!(
            name("127.0.0.1", &presented),
            "cannot validate certificate for 127.0.0.1 because it doesn't contain any IP SANs"
        );
        assert_eq!(
            name("localhost", &[]),
            "certificate is not valid for any names, but wanted to match localhost"
        );
        assert_eq!(
            told(name_not_allowed("CN \"bob\" is not allowed")),
            "CN \"bob\" is not allowed"
        );
    }

    #[test]
    fn what_is_no_tls_is_told_as_it_is() {
        assert_eq!(tls_reason(&io::ErrorKind::UnexpectedEof.into()), "EOF");
        let reset = io::Error::from_raw_os_error(104);
        assert_eq!(tls_reason(&reset), "connection reset by peer");
    }
}
