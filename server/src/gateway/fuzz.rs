//! Requests from strangers.

use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::Instant;

use super::decode::encode_message;
use super::encode::{Html, decode_message};
use super::metadata::forwarded;
use super::schema::SCHEMA;
use super::syntax::Values;

/// Reads headers, which follow a line with the name of the RPC, and after an empty line a body that
/// arrives in two pieces.
pub(crate) fn request(input: &[u8]) {
    let Some((path, rest)) = line(input) else { return };
    let Some(body) = headers(rest) else { return };
    let path = String::from_utf8_lossy(path);
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

/// What comes before the end of the line, and after it.
fn line(input: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = input.iter().position(|byte| *byte == b'\n')?;
    Some((&input[..end], &input[end + 1..]))
}

/// Makes metadata and a deadline of headers; what comes after them.
fn headers(mut input: &[u8]) -> Option<&[u8]> {
    let mut headers = HeaderMap::new();
    loop {
        let (header, rest) = line(input)?;
        input = rest;
        if header.is_empty() {
            break;
        }
        let Some(colon) = header.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (&header[..colon], header[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name), HeaderValue::from_bytes(value))
        {
            // More than it can hold do not come from the listener.
            let _ = headers.try_append(name, value);
        }
    }
    if let Ok(forwarded) = forwarded(&headers, None) {
        let _ = forwarded.timeout.map(|timeout| Instant::now() + timeout);
    }
    Some(input)
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
