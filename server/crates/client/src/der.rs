//! As much of X.509's encoding as is needed to read how long a certificate is valid, and what for.
//!
//! ```text
//! Certificate ::= SEQUENCE { tbsCertificate SEQUENCE {
//!     version [0], serialNumber, signature, issuer, validity SEQUENCE { notBefore, notAfter },
//!     subject, subjectPublicKeyInfo, issuerUniqueID [1], subjectUniqueID [2],
//!     extensions [3] SEQUENCE OF SEQUENCE { extnID, critical BOOLEAN, extnValue OCTET STRING } }, ..
//! ```

const SEQUENCE: u8 = 0x30;
const OBJECT_IDENTIFIER: u8 = 0x06;
const BOOLEAN: u8 = 0x01;
const OCTET_STRING: u8 = 0x04;
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
/// 2.5.29.37
const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x25];
/// 2.5.29.37.0: every purpose.
const ANY_PURPOSE: &[u8] = &[0x55, 0x1d, 0x25, 0x00];
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// The first and last second at which a certificate is valid, since 1970.
pub(crate) fn validity(certificate: &[u8]) -> Option<(u64, u64)> {
    let (SEQUENCE, times, _) = value(from_validity(certificate)?)? else { return None };
    let (kind, not_before, times) = value(times)?;
    let (kind_after, not_after, _) = value(times)?;
    Some((time(kind, not_before)?, time(kind_after, not_after)?))
}

/// Whether a certificate may be used for a purpose: those that are listed, or all where there is no list.
pub(crate) fn serves(certificate: &[u8], purpose: &[u8]) -> Option<bool> {
    let mut rest = from_validity(certificate)?;
    while let Some(&tag) = rest.first() {
        let (_, content, following) = value(rest)?;
        rest = following;
        if tag == EXTENSIONS {
            let (SEQUENCE, extensions, []) = value(content)? else { return None };
            return extensions_allow(extensions, purpose);
        }
    }
    Some(true)
}

fn extensions_allow(mut extensions: &[u8], purpose: &[u8]) -> Option<bool> {
    while !extensions.is_empty() {
        let (SEQUENCE, extension, following) = value(extensions)? else { return None };
        extensions = following;
        let (OBJECT_IDENTIFIER, id, mut rest) = value(extension)? else { return None };
        if id != EXTENDED_KEY_USAGE {
            continue;
        }
        if rest.first() == Some(&BOOLEAN) {
            rest = value(rest)?.2;
        }
        let (OCTET_STRING, listed, []) = value(rest)? else { return None };
        let (SEQUENCE, mut listed, []) = value(listed)? else { return None };
        while !listed.is_empty() {
            let (OBJECT_IDENTIFIER, found, following) = value(listed)? else { return None };
            if found == purpose || found == ANY_PURPOSE {
                return Some(true);
            }
            listed = following;
        }
        return Some(false);
    }
    Some(true)
}

/// The fields of a certificate from its validity on.
fn from_validity(certificate: &[u8]) -> Option<&[u8]> {
    let (_, certificate, _) = value(certificate)?;
    let (SEQUENCE, mut rest, _) = value(certificate)? else { return None };
    if rest.first() == Some(&VERSION) {
        rest = value(rest)?.2;
    }
    for _serial_signature_issuer in 0..3 {
        rest = value(rest)?.2;
    }
    Some(rest)
}

/// Tag and content of the first value, and what follows it.
fn value(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
        let add = |length: usize, &digit: &u8| {
            length.checked_mul(256).map(|length| length + usize::from(digit))
        };
        (digits.iter().try_fold(0, add)?, rest)
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// `YYMMDDhhmmssZ`, where years from 50 on are of the last century, or `YYYYMMDDhhmmssZ`.
fn time(kind: u8, text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let (year, rest) = match kind {
        UTC_TIME => {
            let (year, rest) = text.split_at_checked(2)?;
            let year: u64 = year.parse().ok()?;
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        GENERALIZED_TIME => {
            let (year, rest) = text.split_at_checked(4)?;
            (year.parse().ok()?, rest)
        }
        _ => return None,
    };
    let number = |index: usize| rest.get(index..index + 2)?.parse::<u64>().ok();
    let (month, day) = (number(0)?, number(2)?);
    let days = days_since_epoch(year, month, day)?;
    Some(days * 86_400 + number(4)? * 3_600 + number(6)? * 60 + number(8)?)
}

fn days_since_epoch(year: u64, month: u64, day: u64) -> Option<u64> {
    const BEFORE_MONTH: [u64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    let before = BEFORE_MONTH.get(usize::try_from(month).ok()?.checked_sub(1)?)?;
    let leap_years = |years: u64| years / 4 - years / 100 + years / 400;
    let past = year.checked_sub(1)?;
    let leap_day = month > 2 && leap_years(year) > leap_years(past);
    let days = past * 365 + leap_years(past) + before + day.checked_sub(1)? + u64::from(leap_day);
    days.checked_sub(719_162)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        for (kind, text, seconds) in [
            (UTC_TIME, "700101000000Z", 0),
            (UTC_TIME, "261121131543Z", 1_795_266_943),
            (GENERALIZED_TIME, "20000229235959Z", 951_868_799),
            (GENERALIZED_TIME, "21000301000000Z", 4_107_542_400),
        ] {
            assert_eq!(time(kind, text.as_bytes()), Some(seconds), "{text}");
        }
        assert_eq!(time(UTC_TIME, b"26112113154Z"), None);
    }

    #[test]
    fn bad_encodings_have_no_validity() {
        for bytes in [&b""[..], b"\x30", b"\x30\x03\x30\x01", &[0x30, 0x88, 255, 255, 255, 255]] {
            assert_eq!(validity(bytes), None);
            assert_eq!(serves(bytes, ANY_PURPOSE), None);
        }
    }
}
