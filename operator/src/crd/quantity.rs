//! Sizes as Kubernetes writes them, read as whole bytes.
//!
//! What the API server's CEL accepts as a quantity is read here too: a number with a binary suffix
//! (`1.5Gi`), a decimal one (`500M`, down to `n`), or a decimal exponent (`1e10`). A fraction of a
//! byte is rounded up, as Kubernetes does, and a size above `i64::MAX` is capped there. The value is
//! computed on the digits themselves, so no form loses precision.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// No exponent that matters is larger: beyond it a size is capped, or rounded up to one byte.
const EXPONENT_MAX: i64 = 1_000;

/// A size that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a size such as 10Gi, 500Mi or 1e10")]
pub struct QuantityError {
    /// What was written.
    pub text: String,
}

/// What a number is multiplied by.
#[derive(Clone, Copy)]
enum Unit {
    /// Two to this power.
    Binary(u32),
    /// Ten to this power.
    Decimal(i64),
}

/// Bytes in a quantity.
///
/// # Errors
/// The text is no quantity, or it is negative, which no size is.
pub fn quantity_bytes(quantity: &Quantity) -> Result<u64, QuantityError> {
    read(&quantity.0).ok_or_else(|| QuantityError { text: quantity.0.clone() })
}

fn read(text: &str) -> Option<u64> {
    let (is_negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let has_digits = !(whole.is_empty() && fraction.is_empty());
    if !has_digits || fraction.contains('.') {
        return None;
    }
    let (whole, fraction) = (digits(whole), digits(fraction));
    let bytes = match unit(suffix)? {
        Unit::Binary(power) => doubled(&whole, fraction, power),
        Unit::Decimal(power) => shifted(whole, &fraction, power),
    };
    (!is_negative || bytes == 0).then_some(bytes)
}

fn digits(text: &str) -> Vec<u8> {
    text.bytes().map(|digit| digit - b'0').collect()
}

fn unit(suffix: &str) -> Option<Unit> {
    let unit = match suffix {
        "Ki" => Unit::Binary(10),
        "Mi" => Unit::Binary(20),
        "Gi" => Unit::Binary(30),
        "Ti" => Unit::Binary(40),
        "Pi" => Unit::Binary(50),
        "Ei" => Unit::Binary(60),
        "n" => Unit::Decimal(-9),
        "u" => Unit::Decimal(-6),
        "m" => Unit::Decimal(-3),
        "" => Unit::Decimal(0),
        "k" => Unit::Decimal(3),
        "M" => Unit::Decimal(6),
        "G" => Unit::Decimal(9),
        "T" => Unit::Decimal(12),
        "P" => Unit::Decimal(15),
        "E" => Unit::Decimal(18),
        exponent => {
            let power: i64 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            Unit::Decimal(power.clamp(-EXPONENT_MAX, EXPONENT_MAX))
        }
    };
    Some(unit)
}

const LARGEST: u64 = i64::MAX as u64;

/// The number times two to a power: what is carried out of the fraction goes into the whole.
fn doubled(whole: &[u8], mut fraction: Vec<u8>, power: u32) -> u64 {
    let Some(mut bytes) = capped(whole).map(u128::from) else { return LARGEST };
    for _ in 0..power {
        let mut carry = 0;
        for digit in fraction.iter_mut().rev() {
            let double = *digit * 2 + carry;
            (*digit, carry) = (double % 10, double / 10);
        }
        bytes = bytes * 2 + u128::from(carry);
    }
    let rest = fraction.iter().any(|digit| *digit > 0);
    u64::try_from(bytes + u128::from(rest)).map_or(LARGEST, |bytes| bytes.min(LARGEST))
}

/// The number times ten to a power: the point moves.
fn shifted(mut whole: Vec<u8>, fraction: &[u8], power: i64) -> u64 {
    let point = i64::try_from(whole.len()).unwrap_or(i64::MAX).saturating_add(power);
    whole.extend_from_slice(fraction);
    let places = usize::try_from(point).unwrap_or(0);
    let rest = whole.iter().skip(places).any(|digit| *digit > 0);
    whole.resize(places, 0);
    let bytes = capped(&whole).unwrap_or(LARGEST);
    bytes.saturating_add(u64::from(rest)).min(LARGEST)
}

/// The number that the digits write, unless it is above the largest size.
fn capped(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0_u64, |number, digit| {
        let next = number.checked_mul(10)?.checked_add(u64::from(*digit))?;
        (next <= LARGEST).then_some(next)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str) -> Result<u64, QuantityError> {
        quantity_bytes(&Quantity(text.to_owned()))
    }

    /// Each is a form that `resource.ParseQuantity` of Kubernetes reads, with what its `Value` is.
    const READ: [(&str, u64); 40] = [
        ("0", 0),
        ("4096", 4096),
        ("+4096", 4096),
        ("007", 7),
        ("10Gi", 10 << 30),
        ("1.5Gi", 3 << 29),
        ("1.Gi", 1 << 30),
        (".5Gi", 1 << 29),
        ("0.5Ki", 512),
        ("1Ki", 1 << 10),
        ("1Mi", 1 << 20),
        ("1Ti", 1 << 40),
        ("1Pi", 1 << 50),
        ("1Ei", 1 << 60),
        // More decimals than a thousandth, exactly: 1.23456 * 2^30 = 1325598706.2...
        ("1.23456Gi", 1_325_598_707),
        ("1.0000000000000000000000001Ki", 1025),
        ("500M", 500_000_000),
        ("2k", 2_000),
        ("1G", 1_000_000_000),
        ("1T", 1_000_000_000_000),
        ("1P", 1_000_000_000_000_000),
        ("1E", 1_000_000_000_000_000_000),
        ("1.5k", 1_500),
        ("1.23456789M", 1_234_568),
        ("1e10", 10_000_000_000),
        ("1E10", 10_000_000_000),
        ("1e+3", 1_000),
        ("1.5e3", 1_500),
        ("12345e-2", 124),
        ("123e-3", 1),
        ("1e-30", 1),
        ("0e30", 0),
        ("1500m", 2),
        ("1000m", 1),
        ("1u", 1),
        ("1n", 1),
        ("16000000000u", 16_000),
        ("99999999Ei", i64::MAX as u64),
        ("99999999999999999999", i64::MAX as u64),
        ("1e99999", i64::MAX as u64),
    ];

    #[test]
    fn every_form_of_kubernetes_is_read_and_rounded_up_to_whole_bytes() {
        for (text, expected) in READ {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for wrong in [
            "", " ", "ten", "-1Gi", "-1e3", "1.5.5Gi", " 1Gi", "1Gi ", "1gi", "1K", "1ki", "Gi",
            ".", "+", "-", "1e", "1e1.5", "1ee3", "1e3Gi", "0x10", "1,5Gi", "+-1", "1_000",
        ] {
            assert!(bytes(wrong).is_err(), "{wrong:?} is {:?}", bytes(wrong));
        }
    }

    /// CEL in the API server decides what gets in; the operator must be able to read all of it.
    #[test]
    fn what_cel_accepts_as_a_size_is_read() {
        use crate::crd::EtcdCluster;
        let accepted = |size: serde_json::Value| {
            let cluster: EtcdCluster = serde_json::from_value(serde_json::json!({
                "apiVersion": "etcd.keelson.dev/v1alpha1", "kind": "EtcdCluster",
                "metadata": {"name": "main"}, "spec": {"storage": {"size": size}},
            }))
            .unwrap();
            (cluster.validate_cel().is_ok(), bytes(&cluster.spec.storage.size.0))
        };
        let mut seen = 0;
        for (text, _) in READ.iter().filter(|(text, _)| *text != "1e99999") {
            let (accepted, read) = accepted(serde_json::json!(text));
            assert!(!accepted || read.is_ok(), "{text}");
            // What is smaller holds no log.
            assert_eq!(accepted, read.unwrap() >= 16 << 20, "{text}");
            seen += usize::from(accepted);
        }
        assert!(seen > 10, "CEL accepted only {seen}");
        assert_eq!(accepted(serde_json::json!(1_073_741_824)), (true, Ok(1 << 30)));
    }
}
