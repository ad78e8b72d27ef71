//! Texts as Go's standard library writes and reads them.
//!
//! Part of etcdctl's output is whatever Go prints for a value. Scripts compare these texts, so they are
//! made here exactly; what the other programs need too is in the room `types`.

pub(crate) use types::go::{duration, parse_int, parse_unsigned, quote};

/// What `fmt.Sscanf` reads: each byte that is no UTF-8 is replaced.
pub(crate) fn scannable(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    text
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
