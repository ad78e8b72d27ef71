//! Requests from strangers.

use super::decode::encode_message;
use super::encode::{Html, decode_message};
use super::schema::SCHEMA;
use super::syntax::Values;

/// Reads a body that arrives in two pieces, after a line with the name of the RPC.
pub(crate) fn request(input: &[u8]) {
    let Some(line) = input.iter().position(|byte| *byte == b'\n') else { return };
    let (path, body) = (String::from_utf8_lossy(&input[..line]), &input[line + 1..]);
    let Some(method) = SCHEMA.methods.get(&*path) else { return };
    let mut values = Values::default();
    let (first, second) = body.split_at(body.len() / 2);
    for piece in [first, second] {
        values.extend(piece);
        loop {
            match values.next() {
                Ok(Some(value)) => there_and_back(&value, method.request),
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
    if let Ok(Some(value)) = values.last() {
        there_and_back(&value, method.request);
    }
    // What a service answers is well formed; nothing relies on it.
    let _ = decode_message(body, method.response, Html::Escaped, &mut String::new());
}

fn there_and_back(json: &[u8], message: usize) {
    let Ok(bytes) = encode_message(json, message) else { return };
    for html in [Html::Plain, Html::Escaped] {
        let mut text = String::new();
        decode_message(&bytes, message, html, &mut text).expect("what was encoded is readable");
        let mut values = Values::default();
        values.extend(text.as_bytes());
        let read = values.next();
        assert!(
            read.as_ref().is_ok_and(|value| value.as_deref() == Some(text.as_bytes())),
            "{text}"
        );
    }
}
