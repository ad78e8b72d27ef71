//! JSON as Go's encoding/json writes it: fields in the order of the structure, no spaces, zero
//! values left out where the structure says so, and `<`, `>`, `&` escaped.

use std::fmt::Display;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// An object that is being written.
#[derive(Debug, Default)]
pub(crate) struct Object {
    text: String,
}

impl Object {
    pub(crate) fn new() -> Object {
        Object::default()
    }

    /// The finished text.
    pub(crate) fn finish(&self) -> String {
        format!("{{{}}}", self.text)
    }

    /// A field whose value is JSON already.
    pub(crate) fn raw(&mut self, name: &str, value: impl Display) {
        if !self.text.is_empty() {
            self.text.push(',');
        }
        self.text.push_str(&format!("{}:{value}", string(name)));
    }

    /// The fields of another finished object.
    pub(crate) fn raw_fields(&mut self, object: &str) {
        let fields = object.trim_start_matches('{').trim_end_matches('}');
        if !fields.is_empty() {
            if !self.text.is_empty() {
                self.text.push(',');
            }
            self.text.push_str(fields);
        }
    }

    pub(crate) fn string(&mut self, name: &str, value: &str) {
        self.raw(name, string(value));
    }

    pub(crate) fn number(&mut self, name: &str, value: impl Display) {
        self.raw(name, value);
    }

    /// A string that is left out when it is empty.
    pub(crate) fn string_unless_empty(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            self.string(name, value);
        }
    }

    /// A number or bool that is left out when it is zero or false.
    pub(crate) fn unless_zero<T: Display + Default + PartialEq>(&mut self, name: &str, value: T) {
        if value != T::default() {
            self.raw(name, value);
        }
    }

    /// Bytes in base64, left out when there are none.
    pub(crate) fn bytes_unless_empty(&mut self, name: &str, value: &[u8]) {
        if !value.is_empty() {
            self.raw(name, bytes(value));
        }
    }

    /// A list that is left out when it is empty.
    pub(crate) fn list_unless_empty<T>(
        &mut self,
        name: &str,
        values: &[T],
        write: impl Fn(&T) -> String,
    ) {
        if !values.is_empty() {
            self.raw(name, list(values, write));
        }
    }

    /// A message that is left out when it is absent.
    pub(crate) fn message<T>(
        &mut self,
        name: &str,
        value: Option<&T>,
        write: impl Fn(&T) -> String,
    ) {
        if let Some(value) = value {
            self.raw(name, write(value));
        }
    }
}

/// A list.
pub(crate) fn list<T>(values: &[T], write: impl Fn(&T) -> String) -> String {
    format!("[{}]", values.iter().map(write).collect::<Vec<_>>().join(","))
}

/// Bytes in base64.
pub(crate) fn bytes(value: &[u8]) -> String {
    format!("\"{}\"", STANDARD.encode(value))
}

/// A string.
pub(crate) fn string(value: &str) -> String {
    let mut text = String::from("\"");
    for letter in value.chars() {
        match letter {
            '"' | '\\' => text.extend(['\\', letter]),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '\u{8}' => text.push_str("\\b"),
            '\u{c}' => text.push_str("\\f"),
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' | '\u{0}'..='\u{1f}' => {
                text.push_str(&format!("\\u{:04x}", letter as u32));
            }
            letter => text.push(letter),
        }
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_written_as_go_writes_them() {
        let mut object = Object::new();
        object.string("a", "<\"\u{1}é\n");
        object.unless_zero("zero", 0);
        object.unless_zero("one", 1u64);
        object.bytes_unless_empty("bytes", b"ab");
        object.list_unless_empty("list", &[1, 2], i32::to_string);
        object.raw_fields("{\"more\":true}");
        let text = "{\"a\":\"\\u003c\\\"\\u0001é\\n\",\"one\":1,\"bytes\":\"YWI=\",\"list\":[1,2],\"more\":true}";
        assert_eq!(object.finish(), text);
        assert_eq!(Object::new().finish(), "{}");
    }
}
