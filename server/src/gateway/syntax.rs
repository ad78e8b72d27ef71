//! Where a JSON value ends in a stream of them, and what is wrong with it if it does not: the rules
//! and the texts of Go's `encoding/json`, which etcd's gateway reads requests with.
//!
//! The scanner keeps its state between chunks, so that a body is looked at once.

use bytes::{Bytes, BytesMut};

/// How deep objects and lists may be nested.
const DEPTH_MAX: usize = 10_000;

/// Takes bytes in, gives values out.
#[derive(Default)]
pub(super) struct Values {
    buffer: BytesMut,
    scanned: usize,
    scanner: Scanner,
}

impl Values {
    pub(super) fn extend(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// How many bytes wait.
    pub(super) fn len(&self) -> usize {
        self.buffer.len()
    }

    /// The next value; none if more bytes are needed.
    ///
    /// # Errors
    /// Go's text, when what there is cannot become a value.
    pub(super) fn next(&mut self) -> Result<Option<Bytes>, String> {
        while let Some(byte) = self.buffer.get(self.scanned).copied() {
            match self.scanner.step(byte)? {
                Step::On => self.scanned += 1,
                Step::EndsHere => {
                    self.scanned += 1;
                    return Ok(Some(self.take()));
                }
                Step::EndedBefore => return Ok(Some(self.take())),
            }
        }
        Ok(None)
    }

    /// The value at the end of the stream; none if only white space is left.
    ///
    /// # Errors
    /// Go's text, when the stream ends within a value.
    pub(super) fn last(&mut self) -> Result<Option<Bytes>, String> {
        if self.buffer.iter().all(u8::is_ascii_whitespace) {
            return Ok(None);
        }
        match self.scanner.step(b' ') {
            Ok(Step::EndedBefore | Step::EndsHere) => Ok(Some(self.take())),
            Ok(Step::On) | Err(_) => Err("unexpected EOF".to_owned()),
        }
    }

    fn take(&mut self) -> Bytes {
        self.scanner = Scanner::default();
        let value = self.buffer.split_to(self.scanned).freeze();
        self.scanned = 0;
        value
    }
}

enum Step {
    On,
    /// The byte is the last of the value.
    EndsHere,
    /// The byte before was the last of the value.
    EndedBefore,
}

#[derive(Clone, Copy)]
enum Nesting {
    Key,
    Value,
    Element,
}

#[derive(Clone, Copy, Default)]
enum State {
    #[default]
    Value,
    ValueOrEnd,
    Key,
    KeyOrEnd,
    End,
    String,
    Escape,
    /// So many hexadecimal digits are missing.
    Hex(u8),
    Minus,
    Zero,
    Digits,
    Point,
    Fraction,
    Exponent,
    ExponentSign,
    ExponentDigits,
    /// A literal and how much of it was read.
    Literal(&'static str, usize),
}

#[derive(Default)]
struct Scanner {
    state: State,
    nesting: Vec<Nesting>,
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

fn wrong(byte: u8, context: &str) -> Result<Step, String> {
    let quoted = match byte {
        b'\'' => r"\'".to_owned(),
        b'\n' => r"\n".to_owned(),
        b'\r' => r"\r".to_owned(),
        b'\t' => r"\t".to_owned(),
        0x07 => r"\a".to_owned(),
        0x08 => r"\b".to_owned(),
        0x0b => r"\v".to_owned(),
        0x0c => r"\f".to_owned(),
        b'\\' => r"\\".to_owned(),
        0x20..=0x7e => char::from(byte).to_string(),
        0x00..=0x1f | 0x7f => format!(r"\x{byte:02x}"),
        // Go reads the byte as a character of Latin 1.
        0x80..=0xa0 | 0xad => format!(r"\u{byte:04x}"),
        _ => char::from(byte).to_string(),
    };
    Err(format!("invalid character '{quoted}' {context}"))
}

impl Scanner {
    fn step(&mut self, byte: u8) -> Result<Step, String> {
        match self.state {
            State::Value => self.begin_value(byte),
            State::ValueOrEnd if byte == b']' => self.end_value(byte),
            State::ValueOrEnd => self.begin_value(byte),
            State::KeyOrEnd if byte == b'}' => {
                self.set_nesting(Nesting::Value);
                self.end_value(byte)
            }
            State::Key | State::KeyOrEnd => match byte {
                _ if is_space(byte) => Ok(Step::On),
                b'"' => self.go(State::String),
                _ => wrong(byte, "looking for beginning of object key string"),
            },
            State::End => self.end_value(byte),
            State::String => match byte {
                b'"' => self.go(State::End),
                b'\\' => self.go(State::Escape),
                0x00..=0x1f => wrong(byte, "in string literal"),
                _ => Ok(Step::On),
            },
            State::Escape => match byte {
                b'b' | b'f' | b'n' | b'r' | b't' | b'\\' | b'/' | b'"' => self.go(State::String),
                b'u' => self.go(State::Hex(4)),
                _ => wrong(byte, "in string escape code"),
            },
            State::Hex(missing) => match (byte.is_ascii_hexdigit(), missing) {
                (false, _) => wrong(byte, "in \\u hexadecimal character escape"),
                (true, 1) => self.go(State::String),
                (true, _) => self.go(State::Hex(missing - 1)),
            },
            State::Literal(text, read) => {
                let expected = text.as_bytes()[read];
                if byte != expected {
                    let expected = char::from(expected);
                    return wrong(byte, &format!("in literal {text} (expecting '{expected}')"));
                }
                let ends = read + 1 == text.len();
                self.go(if ends { State::End } else { State::Literal(text, read + 1) })
            }
            _ => self.number(byte),
        }
    }

    fn number(&mut self, byte: u8) -> Result<Step, String> {
        let digit = byte.is_ascii_digit();
        match self.state {
            State::Minus => match byte {
                b'0' => self.go(State::Zero),
                b'1'..=b'9' => self.go(State::Digits),
                _ => wrong(byte, "in numeric literal"),
            },
            State::Digits if digit => Ok(Step::On),
            State::Zero | State::Digits if byte == b'.' => self.go(State::Point),
            State::Point if digit => self.go(State::Fraction),
            State::Point => wrong(byte, "after decimal point in numeric literal"),
            State::Fraction | State::ExponentDigits if digit => Ok(Step::On),
            State::Zero | State::Digits | State::Fraction if matches!(byte, b'e' | b'E') => {
                self.go(State::Exponent)
            }
            State::Exponent if matches!(byte, b'+' | b'-') => self.go(State::ExponentSign),
            State::Exponent | State::ExponentSign if digit => self.go(State::ExponentDigits),
            State::Exponent | State::ExponentSign => wrong(byte, "in exponent of numeric literal"),
            _ => self.end_value(byte),
        }
    }

    fn go(&mut self, state: State) -> Result<Step, String> {
        self.state = state;
        Ok(Step::On)
    }

    fn set_nesting(&mut self, nesting: Nesting) {
        if let Some(innermost) = self.nesting.last_mut() {
            *innermost = nesting;
        }
    }

    fn begin_value(&mut self, byte: u8) -> Result<Step, String> {
        match byte {
            _ if is_space(byte) => Ok(Step::On),
            b'{' => self.open(byte, Nesting::Key, State::KeyOrEnd),
            b'[' => self.open(byte, Nesting::Element, State::ValueOrEnd),
            b'"' => self.go(State::String),
            b'-' => self.go(State::Minus),
            b'0' => self.go(State::Zero),
            b'1'..=b'9' => self.go(State::Digits),
            b't' => self.go(State::Literal("true", 1)),
            b'f' => self.go(State::Literal("false", 1)),
            b'n' => self.go(State::Literal("null", 1)),
            _ => wrong(byte, "looking for beginning of value"),
        }
    }

    fn open(&mut self, byte: u8, nesting: Nesting, state: State) -> Result<Step, String> {
        self.nesting.push(nesting);
        match self.nesting.len() > DEPTH_MAX {
            true => wrong(byte, "exceeded max depth"),
            false => self.go(state),
        }
    }

    fn close(&mut self) -> Result<Step, String> {
        self.nesting.pop();
        self.state = State::End;
        Ok(if self.nesting.is_empty() { Step::EndsHere } else { Step::On })
    }

    fn end_value(&mut self, byte: u8) -> Result<Step, String> {
        let Some(nesting) = self.nesting.last().copied() else { return Ok(Step::EndedBefore) };
        if is_space(byte) {
            return self.go(State::End);
        }
        match (nesting, byte) {
            (Nesting::Key, b':') => {
                self.set_nesting(Nesting::Value);
                self.go(State::Value)
            }
            (Nesting::Key, _) => wrong(byte, "after object key"),
            (Nesting::Value, b',') => {
                self.set_nesting(Nesting::Key);
                self.go(State::Key)
            }
            (Nesting::Value, b'}') | (Nesting::Element, b']') => self.close(),
            (Nesting::Value, _) => wrong(byte, "after object key:value pair"),
            (Nesting::Element, b',') => self.go(State::Value),
            (Nesting::Element, _) => wrong(byte, "after array element"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a stream gives: its values, and the error that ends it.
    fn read(text: &str, chunk: usize) -> (Vec<String>, Option<String>) {
        let mut values = Values::default();
        let mut found = Vec::new();
        for bytes in text.as_bytes().chunks(chunk) {
            values.extend(bytes);
            loop {
                match values.next() {
                    Ok(Some(value)) => found.push(value),
                    Ok(None) => break,
                    Err(error) => return (texts(&found), Some(error)),
                }
            }
        }
        match values.last() {
            Ok(last) => found.extend(last),
            Err(error) => return (texts(&found), Some(error)),
        }
        (texts(&found), None)
    }

    fn texts(values: &[Bytes]) -> Vec<String> {
        let text = |value: &Bytes| String::from_utf8_lossy(value).trim().to_owned();
        values.iter().map(text).collect()
    }

    #[test]
    fn values_are_found_wherever_the_chunks_end() {
        let text =
            "{\"a\":[1,-2.5e+3,{\"b\":\"}\\\"\\u00e4\"}],\"c\":{}}  [true,false,null]\n12 \"x\" 0";
        let expected = [
            "{\"a\":[1,-2.5e+3,{\"b\":\"}\\\"\\u00e4\"}],\"c\":{}}",
            "[true,false,null]",
            "12",
            "\"x\"",
            "0",
        ];
        for chunk in 1..text.len() {
            assert_eq!(read(text, chunk), (expected.map(str::to_owned).to_vec(), None), "{chunk}");
        }
    }

    #[test]
    fn errors_have_the_texts_of_go() {
        let cases = [
            ("x", "invalid character 'x' looking for beginning of value"),
            ("{\"a\"", "unexpected EOF"),
            ("{\"a\" 1}", "invalid character '1' after object key"),
            ("{\"a\":1 \"", "invalid character '\"' after object key:value pair"),
            ("{a", "invalid character 'a' looking for beginning of object key string"),
            ("[1 2", "invalid character '2' after array element"),
            ("\"\n", "invalid character '\\n' in string literal"),
            ("\"\\x", "invalid character 'x' in string escape code"),
            ("\"\\u12g", "invalid character 'g' in \\u hexadecimal character escape"),
            ("-a", "invalid character 'a' in numeric literal"),
            ("1.a", "invalid character 'a' after decimal point in numeric literal"),
            ("1e+a", "invalid character 'a' in exponent of numeric literal"),
            ("nil", "invalid character 'i' in literal null (expecting 'u')"),
            ("{'a'", "invalid character '\\'' looking for beginning of object key string"),
        ];
        for (text, error) in cases {
            assert_eq!(read(text, 1), (Vec::new(), Some(error.to_owned())), "{text}");
        }
        let deep = "[".repeat(DEPTH_MAX + 1);
        assert_eq!(read(&deep, 64).1.unwrap(), "invalid character '[' exceeded max depth");
    }
}
