//! Texts as Go's standard library writes and reads them.
//!
//! Part of etcdctl's output is whatever Go prints for a value: quoted strings, durations, parse
//! errors. Scripts compare these texts, so they are made here exactly.

use std::time::Duration;

/// `strconv.Quote` of bytes that need not be UTF-8 (`%q`).
pub(crate) fn quote(bytes: &[u8]) -> String {
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

/// A string in Go's double quotes or backquotes at the start of `text`: the string and what follows.
pub(crate) fn scan_quoted(text: &str) -> Option<(Vec<u8>, &str)> {
    if let Some(rest) = text.strip_prefix('`') {
        let (raw, rest) = rest.split_once('`')?;
        return Some((raw.as_bytes().to_vec(), rest));
    }
    let mut rest = text.strip_prefix('"')?;
    let mut value = Vec::new();
    loop {
        let letter = rest.chars().next()?;
        rest = &rest[letter.len_utf8()..];
        match letter {
            '"' => return Some((value, rest)),
            '\n' => return None,
            '\\' => rest = unescape(rest, &mut value)?,
            letter => value.extend(letter.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

/// The escape after a backslash: appends what it stands for and returns what follows it.
fn unescape<'a>(text: &'a str, value: &mut Vec<u8>) -> Option<&'a str> {
    let letter = text.chars().next()?;
    let rest = &text[letter.len_utf8()..];
    let digits = |text: &'a str, count: usize, radix: u32| -> Option<(u32, &'a str)> {
        let digits = text.get(..count)?;
        if !digits.chars().all(|digit| digit.is_digit(radix)) {
            return None;
        }
        Some((u32::from_str_radix(digits, radix).ok()?, &text[count..]))
    };
    let simple = match letter {
        'a' => 7,
        'b' => 8,
        'f' => 12,
        'n' => b'\n',
        'r' => b'\r',
        't' => b'\t',
        'v' => 11,
        '\\' => b'\\',
        '"' => b'"',
        'x' => {
            let (byte, rest) = digits(rest, 2, 16)?;
            value.push(u8::try_from(byte).ok()?);
            return Some(rest);
        }
        '0'..='7' => {
            let (byte, rest) = digits(text, 3, 8)?;
            value.push(u8::try_from(byte).ok()?);
            return Some(rest);
        }
        'u' | 'U' => {
            let (code, rest) = digits(rest, if letter == 'u' { 4 } else { 8 }, 16)?;
            value.extend(char::from_u32(code)?.encode_utf8(&mut [0; 4]).as_bytes());
            return Some(rest);
        }
        _ => return None,
    };
    value.push(simple);
    Some(rest)
}

/// `strconv.ParseInt(text, radix, 64)`; radix 0 reads prefixes and underscores as Go literals do.
pub(crate) fn parse_int(text: &str, radix: u32) -> Result<i64, String> {
    let (negative, digits) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let fail = |reason: &str| number_error("ParseInt", text, reason);
    let magnitude = magnitude(digits, radix).map_err(fail)?;
    let value =
        if negative { 0i64.checked_sub_unsigned(magnitude) } else { i64::try_from(magnitude).ok() };
    value.ok_or_else(|| fail("value out of range"))
}

/// `strconv.ParseUint(text, 0, 64)`.
pub(crate) fn parse_unsigned(text: &str) -> Result<u64, String> {
    magnitude(text, 0).map_err(|reason| number_error("ParseUint", text, reason))
}

/// `strconv.ParseUint(text, 16, 64)`.
pub(crate) fn parse_hex(text: &str) -> Result<u64, String> {
    magnitude(text, 16).map_err(|reason| number_error("ParseUint", text, reason))
}

/// `strconv.ParseBool`.
pub(crate) fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err(number_error("ParseBool", text, "invalid syntax")),
    }
}

fn number_error(function: &str, text: &str, reason: &str) -> String {
    format!("strconv.{function}: parsing {}: {reason}", quote(text.as_bytes()))
}

fn magnitude(digits: &str, radix: u32) -> Result<u64, &'static str> {
    const SYNTAX: &str = "invalid syntax";
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = if radix != 0 {
        (radix, lower)
    } else {
        let (radix, digits) = match lower.as_bytes() {
            [b'0', b'x', ..] => (16, &lower[2..]),
            [b'0', b'o', ..] => (8, &lower[2..]),
            [b'0', b'b', ..] => (2, &lower[2..]),
            [b'0', _, ..] => (8, &lower[1..]),
            _ => (10, &lower[..]),
        };
        if digits.ends_with('_') || digits.contains("__") {
            return Err(SYNTAX);
        }
        (radix, digits.replace('_', ""))
    };
    if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(radix)) {
        return Err(SYNTAX);
    }
    u64::from_str_radix(&digits, radix).map_err(|_| "value out of range")
}

/// `time.ParseDuration`, for durations that are not negative.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let invalid = || format!("time: invalid duration {}", quote(text.as_bytes()));
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
            "" => {
                return Err(format!("time: missing unit in duration {}", quote(text.as_bytes())));
            }
            unit => {
                return Err(format!(
                    "time: unknown unit {} in duration {}",
                    quote(unit.as_bytes()),
                    quote(text.as_bytes())
                ));
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

/// `Duration.String()`.
pub(crate) fn duration(duration: Duration) -> String {
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

/// go-humanize's `Bytes`: units of a thousand, one decimal below ten.
pub(crate) fn humanize_bytes(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 10 {
        return format!("{bytes} B");
    }
    let mut exponent = 0;
    let mut unit = 1u64;
    while exponent + 1 < UNITS.len() && bytes / unit >= 1000 {
        unit *= 1000;
        exponent += 1;
    }
    let value = (bytes as f64 / unit as f64 * 10.0 + 0.5).floor() / 10.0;
    let decimals = usize::from(value < 10.0);
    format!("{value:.decimals$} {}", UNITS[exponent])
}

/// `%016x` of a signed number, whose sign counts as a digit.
pub(crate) fn hex16(number: i64) -> String {
    if number < 0 { format!("-{:015x}", number.unsigned_abs()) } else { format!("{number:016x}") }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn quoted_strings_are_read_back() {
        for text in ["a", "", "\"\\", "\u{7}\u{b}\n\r\t", "é"] {
            let quoted = quote(text.as_bytes());
            assert_eq!(scan_quoted(&quoted), Some((text.as_bytes().to_vec(), "")), "{quoted}");
        }
        assert_eq!(scan_quoted(r#""\xff\101" x"#), Some((b"\xffA".to_vec(), " x")));
        assert_eq!(scan_quoted("`a\\n`)"), Some((b"a\\n".to_vec(), ")")));
        assert_eq!(scan_quoted("\"open"), None);
        assert_eq!(scan_quoted("bare"), None);
    }

    #[test]
    fn numbers_are_read_with_gos_errors() {
        assert_eq!(parse_int("-12", 10), Ok(-12));
        assert_eq!(parse_int("0x1F", 0), Ok(31));
        assert_eq!(parse_int("1_000", 0), Ok(1000));
        assert_eq!(parse_int("ff", 16), Ok(255));
        let syntax = "strconv.ParseInt: parsing \"x\": invalid syntax";
        assert_eq!(parse_int("x", 10), Err(syntax.to_owned()));
        let range = "strconv.ParseInt: parsing \"9223372036854775808\": value out of range";
        assert_eq!(parse_int("9223372036854775808", 10), Err(range.to_owned()));
        assert_eq!(parse_int("-9223372036854775808", 10), Ok(i64::MIN));
        let empty = "strconv.ParseUint: parsing \"\": invalid syntax";
        assert_eq!(parse_hex(""), Err(empty.to_owned()));
    }

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
    fn sizes_are_rounded_as_humanize_rounds_them() {
        for (bytes, text) in [
            (0, "0 B"),
            (82, "82 B"),
            (999, "999 B"),
            (20480, "20 kB"),
            (2_147_483_648, "2.1 GB"),
            (1_000_000, "1.0 MB"),
        ] {
            assert_eq!(humanize_bytes(bytes), text);
        }
    }
}
