//! Numbers, durations and quotes as Go's standard library reads and writes them.
//!
//! Flags, arguments and error texts of etcd's programs are what Go makes of them, and every program of
//! ours has to read and complain alike. Texts come as bytes: an argument need not be UTF-8.

use std::fmt;
use std::time::Duration;

/// Why a text is no number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Syntax,
    Range,
}

/// What `strconv` says of a text that it cannot read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NumberError {
    function: &'static str,
    text: Vec<u8>,
    pub reason: Reason,
}

impl fmt::Display for NumberError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match self.reason {
            Reason::Syntax => "invalid syntax",
            Reason::Range => "value out of range",
        };
        write!(f, "strconv.{}: parsing {}: {why}", self.function, quote(&self.text))
    }
}

impl std::error::Error for NumberError {}

/// `strconv.ParseInt(text, radix, 64)`; radix 0 reads prefixes and underscores as Go's literals do.
pub fn parse_int(text: impl AsRef<[u8]>, radix: u32) -> Result<i64, NumberError> {
    let text = text.as_ref();
    let failed = |reason| NumberError { function: "ParseInt", text: text.to_vec(), reason };
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        [b'+', digits @ ..] => (false, digits),
        _ => (false, text),
    };
    let magnitude = magnitude(digits, radix).map_err(failed)?;
    let value =
        if negative { 0i64.checked_sub_unsigned(magnitude) } else { i64::try_from(magnitude).ok() };
    value.ok_or_else(|| failed(Reason::Range))
}

/// `strconv.ParseUint(text, radix, 64)`.
pub fn parse_unsigned(text: impl AsRef<[u8]>, radix: u32) -> Result<u64, NumberError> {
    let text = text.as_ref();
    let failed = |reason| NumberError { function: "ParseUint", text: text.to_vec(), reason };
    magnitude(text, radix).map_err(failed)
}

/// `strconv.ParseUint(text, 0, 32)`.
pub fn parse_uint32(text: impl AsRef<[u8]>) -> Result<u32, NumberError> {
    let text = text.as_ref();
    let out_of_range =
        NumberError { function: "ParseUint", text: text.to_vec(), reason: Reason::Range };
    u32::try_from(parse_unsigned(text, 0)?).map_err(|_| out_of_range)
}

/// `strconv.ParseBool`.
pub fn parse_bool(text: impl AsRef<[u8]>) -> Result<bool, NumberError> {
    match text.as_ref() {
        b"1" | b"t" | b"T" | b"TRUE" | b"true" | b"True" => Ok(true),
        b"0" | b"f" | b"F" | b"FALSE" | b"false" | b"False" => Ok(false),
        other => {
            Err(NumberError { function: "ParseBool", text: other.to_vec(), reason: Reason::Syntax })
        }
    }
}

fn magnitude(text: &[u8], radix: u32) -> Result<u64, Reason> {
    let literal = radix == 0;
    let (radix, digits) = match text {
        _ if !literal => (radix, text),
        [b'0', b'x' | b'X', digits @ ..] if !digits.is_empty() => (16, digits),
        [b'0', b'o' | b'O', digits @ ..] if !digits.is_empty() => (8, digits),
        [b'0', b'b' | b'B', digits @ ..] if !digits.is_empty() => (2, digits),
        [b'0', digits @ ..] if !digits.is_empty() => (8, digits),
        _ => (10, text),
    };
    if digits.is_empty() || literal && !are_underscores_fine(text) {
        return Err(Reason::Syntax);
    }
    let mut value = 0u64;
    for digit in digits.iter().filter(|digit| !(literal && **digit == b'_')) {
        let digit = char::from(*digit).to_digit(radix).ok_or(Reason::Syntax)?;
        let shifted = value.checked_mul(u64::from(radix)).ok_or(Reason::Range)?;
        value = shifted.checked_add(u64::from(digit)).ok_or(Reason::Range)?;
    }
    Ok(value)
}

/// An underscore stands between two digits, or between the prefix and a digit.
fn are_underscores_fine(text: &[u8]) -> bool {
    let digit = |index: usize| text.get(index).is_some_and(u8::is_ascii_hexdigit);
    let prefixed = matches!(text, [b'0', b'x' | b'X' | b'o' | b'O' | b'b' | b'B', ..]);
    let begins = |index: usize| digit(index) || prefixed && index == 1;
    (0..text.len())
        .filter(|index| text[*index] == b'_')
        .all(|index| index > 0 && begins(index - 1) && digit(index + 1))
}

/// `time.ParseDuration`, for durations that are not negative.
pub fn parse_duration(text: impl AsRef<[u8]>) -> Result<Duration, String> {
    let bytes = text.as_ref();
    let quoted = || quote(bytes);
    let invalid = || format!("time: invalid duration {}", quoted());
    let text = str::from_utf8(bytes).map_err(|_| invalid())?;
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total = 0f64;
    while !rest.is_empty() {
        let number = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.');
        let (number, unit_on) = rest.split_at(number.unwrap_or(rest.len()));
        let value: f64 = number.parse().map_err(|_| invalid())?;
        let unit_end = unit_on.find(|letter: char| letter.is_ascii_digit() || letter == '.');
        let (unit, next) = unit_on.split_at(unit_end.unwrap_or(unit_on.len()));
        let nanoseconds = match unit {
            "ns" => 1.0,
            "us" | "µs" | "μs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            "" => return Err(format!("time: missing unit in duration {}", quoted())),
            unit => {
                let unit = quote(unit.as_bytes());
                return Err(format!("time: unknown unit {unit} in duration {}", quoted()));
            }
        };
        total += value * nanoseconds;
        rest = next;
    }
    // Go's limit is that of its 64-bit count of nanoseconds.
    if total > i64::MAX as f64 {
        return Err(invalid());
    }
    Ok(Duration::from_nanos(total.round() as u64))
}

/// Go's `Duration.String()`.
pub fn duration(duration: Duration) -> String {
    let nanoseconds = duration.as_nanos();
    let fraction = |value: u128, unit: u128| {
        let (whole, part) = (value / unit, value % unit);
        let digits = unit.ilog10() as usize;
        let part = format!("{part:0digits$}");
        match part.trim_end_matches('0') {
            "" => whole.to_string(),
            part => format!("{whole}.{part}"),
        }
    };
    match nanoseconds {
        0 => "0s".to_owned(),
        1..1_000 => format!("{nanoseconds}ns"),
        1_000..1_000_000 => format!("{}µs", fraction(nanoseconds, 1_000)),
        1_000_000..1_000_000_000 => format!("{}ms", fraction(nanoseconds, 1_000_000)),
        _ => {
            let minutes = nanoseconds / 60_000_000_000;
            let seconds = fraction(nanoseconds % 60_000_000_000, 1_000_000_000);
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{seconds}s"),
                (0, minutes) => format!("{minutes}m{seconds}s"),
                (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
            }
        }
    }
}

/// `strconv.Quote` of bytes that need not be UTF-8 (`%q`).
pub fn quote(bytes: &[u8]) -> String {
    let mut quoted = String::from("\"");
    for chunk in bytes.utf8_chunks() {
        for letter in chunk.valid().chars() {
            quote_char(letter, &mut quoted);
        }
        for byte in chunk.invalid() {
            quoted.push_str(&format!("\\x{byte:02x}"));
        }
    }
    quoted.push('"');
    quoted
}

fn quote_char(letter: char, quoted: &mut String) {
    match letter {
        '"' | '\\' => quoted.extend(['\\', letter]),
        '\u{7}' => quoted.push_str("\\a"),
        '\u{8}' => quoted.push_str("\\b"),
        '\u{c}' => quoted.push_str("\\f"),
        '\n' => quoted.push_str("\\n"),
        '\r' => quoted.push_str("\\r"),
        '\t' => quoted.push_str("\\t"),
        '\u{b}' => quoted.push_str("\\v"),
        ' '..='~' => quoted.push(letter),
        letter if (letter as u32) < 0x20 || letter as u32 == 0x7f => {
            quoted.push_str(&format!("\\x{:02x}", letter as u32));
        }
        letter if is_printable(letter) => quoted.push(letter),
        letter if (letter as u32) < 0x10000 => {
            quoted.push_str(&format!("\\u{:04x}", letter as u32));
        }
        letter => quoted.push_str(&format!("\\U{:08x}", letter as u32)),
    }
}

/// Go's `unicode.IsPrint` as far as the standard library here knows: Rust escapes the same
/// characters when debugging, and combining marks besides, which Go prints.
fn is_printable(letter: char) -> bool {
    letter.escape_debug().count() == 1 || ('\u{300}'..='\u{36f}').contains(&letter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_written_as_go_does() {
        for (text, written) in [
            ("1h2m3.5s", "1h2m3.5s"),
            ("90s", "1m30s"),
            ("1500ms", "1.5s"),
            ("4690581ns", "4.690581ms"),
            ("0", "0s"),
            ("2us", "2µs"),
            ("1h", "1h0m0s"),
        ] {
            assert_eq!(duration(parse_duration(text).unwrap()), written, "{text}");
        }
        let unit = "time: missing unit in duration \"5\"";
        assert_eq!(parse_duration("5"), Err(unit.to_owned()));
    }

    #[test]
    fn strings_are_quoted_as_go_quotes_them() {
        for (bytes, quoted) in [
            (&b"a\"b\\"[..], r#""a\"b\\""#),
            (b"\x00\n\x7f\xff", r#""\x00\n\x7f\xff""#),
            ("é\u{200b}\u{301}".as_bytes(), "\"é\\u200b\u{301}\""),
        ] {
            assert_eq!(quote(bytes), quoted);
        }
    }

    #[test]
    fn numbers_are_read_as_go_reads_them() {
        for (text, number) in [
            ("-12", Some(-12)),
            ("+12", Some(12)),
            ("0x1F", Some(31)),
            ("0o17", Some(15)),
            ("017", Some(15)),
            ("0B11", Some(3)),
            ("00", Some(0)),
            ("1_000", Some(1000)),
            ("0x_1F", Some(31)),
            ("0_17", Some(15)),
            ("-9223372036854775808", Some(i64::MIN)),
            ("_1", None),
            ("1_", None),
            ("1__0", None),
            ("0x", None),
            ("0x1_", None),
            ("08", None),
            ("--1", None),
            ("-", None),
            ("", None),
            ("1 ", None),
        ] {
            assert_eq!(parse_int(text, 0).ok(), number, "{text}");
        }
        assert_eq!(parse_int("ff", 16), Ok(255));
        assert_eq!(parse_int("010", 10), Ok(10));
        assert!(parse_int("1_0", 10).is_err());
        assert!(parse_unsigned("+1", 0).is_err());
        assert_eq!(parse_unsigned("18446744073709551615", 0), Ok(u64::MAX));
        assert_eq!(parse_uint32("0xffffffff"), Ok(u32::MAX));
        assert_eq!(parse_bool("T"), Ok(true));
    }

    #[test]
    fn what_is_no_number_is_told_in_gos_words() {
        let told = |found: Result<i64, NumberError>| found.unwrap_err().to_string();
        let syntax = "strconv.ParseInt: parsing \"x\\xff\": invalid syntax";
        assert_eq!(told(parse_int(b"x\xff", 10)), syntax);
        let range = "strconv.ParseInt: parsing \"9223372036854775808\": value out of range";
        assert_eq!(told(parse_int("9223372036854775808", 10)), range);
        // The number is too large before it is wrong.
        assert_eq!(parse_int("99999999999999999999x", 10).unwrap_err().reason, Reason::Range);
        let large = "strconv.ParseUint: parsing \"4294967296\": value out of range";
        assert_eq!(parse_uint32("4294967296").unwrap_err().to_string(), large);
        let truth = "strconv.ParseBool: parsing \"yes\": invalid syntax";
        assert_eq!(parse_bool("yes").unwrap_err().to_string(), truth);
        assert_eq!(parse_duration(b"\xff"), Err("time: invalid duration \"\\xff\"".to_owned()));
    }
}
