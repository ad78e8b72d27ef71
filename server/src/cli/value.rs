//! The types of flag values, read as Go's `flag` package and etcd's own flag types read them, with
//! the same texts when they cannot be read: people and tools search for those texts.

use types::go::{self, NumberError, Reason};

use crate::gates::FeatureGates;
use crate::urls::Url;

/// What kind of value a flag takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Text,
    /// A boolean: the only kind that may stand without a value.
    Bool,
    Uint64,
    Uint32,
    Int64,
    /// A length of time as Go writes it (`1h30m`, `100ms`).
    Duration,
    /// A list of listen or advertise URLs.
    Urls,
    /// A list of texts, separated by commas.
    Texts,
    /// `*`, or a list of origins.
    Origins,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// Some of these words, separated by commas.
    AllOf(&'static [&'static str]),
    /// A list of feature gates.
    Gates,
    /// An identity in hexadecimal.
    HexId,
    /// Anything; etcd forgets it.
    Anything,
}

/// Why a value was not taken, in the words of etcd.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct ValueError(pub String);

impl ValueError {
    fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl Kind {
    /// Whether `value` is one of this kind.
    pub(crate) fn check(self, value: &str) -> Result<(), ValueError> {
        match self {
            Kind::Text | Kind::Texts | Kind::Anything => Ok(()),
            Kind::Bool => parse_bool(value).map(drop),
            Kind::Uint64 => parse_uint64(value).map(drop),
            Kind::Int64 => parse_int64(value).map(drop),
            Kind::Uint32 => parse_uint32(value).map(drop),
            Kind::Duration => Ok(parse_duration(value).map(drop)?),
            Kind::Urls => parse_urls(value).map(drop),
            Kind::Origins if value == "*" => Ok(()),
            Kind::Origins => parse_url_list(value).map(drop),
            Kind::OneOf(words) if words.contains(&value) => Ok(()),
            Kind::OneOf(_) => Err(ValueError::new("invalid value")),
            Kind::AllOf(words) => match value.split(',').find(|word| !words.contains(word)) {
                None => Ok(()),
                Some(word) => Err(ValueError::new(format!("invalid value {word:?}"))),
            },
            Kind::Gates => FeatureGates::default().set_from_text(value).map_err(ValueError::new),
            Kind::HexId => parse_hex_id(value).map(drop),
        }
    }
}

/// Go's `strconv.ParseBool`.
pub(crate) fn parse_bool(value: &str) -> Result<bool, ValueError> {
    Ok(go::parse_bool(value)?)
}

/// Go's flags say only this much of a number that they cannot read.
impl From<NumberError> for ValueError {
    fn from(error: NumberError) -> Self {
        ValueError::new(match error.reason {
            Reason::Syntax => "parse error",
            Reason::Range => "value out of range",
        })
    }
}

pub(crate) fn parse_int64(value: &str) -> Result<i64, ValueError> {
    Ok(go::parse_int(value, 0)?)
}

pub(crate) fn parse_uint64(value: &str) -> Result<u64, ValueError> {
    Ok(go::parse_unsigned(value, 0)?)
}

/// etcd's `Uint32Value` passes Go's own text on.
pub(crate) fn parse_uint32(value: &str) -> Result<u32, ValueError> {
    go::parse_uint32(value).map_err(|error| ValueError::new(error.to_string()))
}

/// Why a text is no length of time, in the words of Go's `time.ParseDuration`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DurationError {
    #[error("time: invalid duration {0:?}")]
    Invalid(String),
    #[error("time: missing unit in duration {0:?}")]
    MissingUnit(String),
    #[error("time: unknown unit {unit:?} in duration {text:?}")]
    UnknownUnit { unit: String, text: String },
}

/// Go's flags say only this much of what they cannot read.
impl From<DurationError> for ValueError {
    fn from(_: DurationError) -> Self {
        ValueError::new("parse error")
    }
}

/// Go's `time.ParseDuration`, in nanoseconds.
pub(crate) fn parse_duration(value: &str) -> Result<i64, DurationError> {
    let invalid = || DurationError::Invalid(value.to_owned());
    let (negative, mut rest) = match value.as_bytes() {
        [b'-', ..] => (true, &value[1..]),
        [b'+', ..] => (false, &value[1..]),
        _ => (false, value),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let is_number = |c: char| c.is_ascii_digit() || c == '.';
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let number_len = rest.find(|c| !is_number(c)).unwrap_or(rest.len());
        let (number, after) = rest.split_at(number_len);
        if !number.contains(|c: char| c.is_ascii_digit()) {
            return Err(invalid());
        }
        let (unit, next) = after.split_at(after.find(is_number).unwrap_or(after.len()));
        if unit.is_empty() {
            return Err(DurationError::MissingUnit(value.to_owned()));
        }
        let nanos = unit_nanos(unit).ok_or_else(|| DurationError::UnknownUnit {
            unit: unit.to_owned(),
            text: value.to_owned(),
        })?;
        total += scaled(number, nanos).ok_or_else(invalid)?;
        rest = next;
    }
    i64::try_from(if negative { -total } else { total }).map_err(|_| invalid())
}

fn unit_nanos(unit: &str) -> Option<i128> {
    Some(match unit {
        "ns" => 1,
        "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    })
}

fn scaled(number: &str, unit: i128) -> Option<i128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let fraction = &fraction[..fraction.len().min(15)];
    let parts: i128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    let nanos = whole.checked_mul(unit)?;
    nanos.checked_add(parts * unit / 10_i128.pow(u32::try_from(fraction.len()).ok()?))
}

/// etcd's `types.NewURLs`: sorted, without doubles; an empty text is no URL at all.
pub(crate) fn parse_urls(value: &str) -> Result<Vec<Url>, ValueError> {
    if value.is_empty() { Ok(Vec::new()) } else { parse_url_list(value) }
}

/// The same of a text that must not be empty.
fn parse_url_list(value: &str) -> Result<Vec<Url>, ValueError> {
    let mut urls = value
        .split(',')
        .map(|text| text.trim().parse::<Url>().map_err(|error| ValueError::new(error.to_string())))
        .collect::<Result<Vec<_>, _>>()?;
    urls.sort();
    urls.dedup();
    Ok(urls)
}

/// A list of texts, separated by commas; empty when the text is.
pub(crate) fn parse_texts(value: &str) -> Vec<String> {
    if value.is_empty() { Vec::new() } else { value.split(',').map(str::to_owned).collect() }
}

/// A member or cluster id in hexadecimal.
pub(crate) fn parse_hex_id(value: &str) -> Result<u64, ValueError> {
    let digits = value.strip_prefix("0x").unwrap_or(value);
    u64::from_str_radix(digits, 16)
        .ok()
        .filter(|_| !digits.starts_with('+'))
        .ok_or_else(|| ValueError::new("expected up to 16 hexadecimal digits"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_go_reads_them() {
        let good = [
            ("0", 0),
            ("5s", 5_000_000_000),
            ("1h30m", 5_400_000_000_000),
            ("1.5s", 1_500_000_000),
            (".5s", 500_000_000),
            ("-1ms", -1_000_000),
            ("100ms", 100_000_000),
            ("1µs", 1_000),
            ("2h45m3.25s", 9_903_250_000_000),
        ];
        for (text, nanos) in good {
            assert_eq!(parse_duration(text), Ok(nanos), "{text}");
        }
        for bad in ["", "5", "s", "5x", "1.2.3s", "-", ".s", "5 s", "9223372036854775808ns", "1e3s"]
        {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
        for (bad, text) in [
            ("", "time: invalid duration \"\""),
            ("-1", "time: missing unit in duration \"-1\""),
            ("1x", "time: unknown unit \"x\" in duration \"1x\""),
        ] {
            assert_eq!(parse_duration(bad).unwrap_err().to_string(), text);
        }
    }

    #[test]
    fn integers_read_as_go_reads_them() {
        assert_eq!(parse_uint64("10"), Ok(10));
        assert_eq!(parse_uint64("0x10"), Ok(16));
        assert_eq!(parse_int64("-3"), Ok(-3));
        assert_eq!(parse_int64("+3"), Ok(3));
        for wrong in ["-3", "1_", "1__0"] {
            assert_eq!(parse_uint64(wrong).unwrap_err().0, "parse error", "{wrong}");
        }
        assert_eq!(parse_uint64("18446744073709551616").unwrap_err().0, "value out of range");
        assert_eq!(
            parse_uint32("x").unwrap_err().0,
            "strconv.ParseUint: parsing \"x\": invalid syntax"
        );
        assert_eq!(
            parse_uint32("4294967296").unwrap_err().0,
            "strconv.ParseUint: parsing \"4294967296\": value out of range"
        );
    }
}
