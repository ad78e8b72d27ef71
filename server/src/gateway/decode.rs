//! A JSON object as the wire form of a protobuf message: protobuf's JSON mapping with the choices
//! and the error texts of Go's `protojson`, as etcd's gateway has them. Fields and enumeration
//! values that are not known are left out.
//!
//! The text has passed [`super::syntax`]: brackets match, numbers and escapes are well formed.

use base64::Engine;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use prost::encoding::{WireType, encode_key, encode_varint};

use super::schema::{Field, Kind, SCHEMA};

/// prost decodes no deeper.
const DEPTH_MAX: usize = 100;

/// Encodes `json` as the message at `message` of the tables.
///
/// # Errors
/// Go's text.
pub(super) fn encode_message(json: &[u8], message: usize) -> Result<Vec<u8>, String> {
    // Go counts lines and columns from where the value begins.
    let json = json.trim_ascii_start();
    let mut out = Vec::with_capacity(json.len());
    let mut parser = Parser { json, at: 0 };
    parser.message(message, &mut out, 0).map_err(|error| format!("proto: {error}"))?;
    Ok(out)
}

struct Parser<'j> {
    json: &'j [u8],
    at: usize,
}

/// A token with its place and its text as it stands there.
struct Token<'j> {
    at: usize,
    raw: &'j [u8],
    kind: TokenKind,
}

#[derive(Debug, PartialEq, Eq)]
enum TokenKind {
    Punctuation(u8),
    String(String),
    Number,
    Bool(bool),
    Null,
    End,
}

impl Token<'_> {
    fn is(&self, byte: u8) -> bool {
        self.kind == TokenKind::Punctuation(byte)
    }

    fn text(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(self.raw)
    }
}

impl<'j> Parser<'j> {
    /// The next byte that is no white space, comma or colon: the syntax was checked before.
    fn peek(&mut self) -> Option<u8> {
        while let Some(byte) = self.json.get(self.at).copied() {
            if !matches!(byte, b' ' | b'\t' | b'\r' | b'\n' | b',' | b':') {
                return Some(byte);
            }
            self.at += 1;
        }
        None
    }

    fn token(&mut self) -> Result<Token<'j>, String> {
        let first = self.peek();
        let at = self.at;
        let kind = match first {
            None => TokenKind::End,
            Some(b'"') => TokenKind::String(self.string()?),
            Some(byte @ (b'{' | b'}' | b'[' | b']')) => {
                self.at += 1;
                TokenKind::Punctuation(byte)
            }
            Some(_) => {
                let rest = &self.json[at..];
                let is_part = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.');
                self.at += rest.iter().take_while(|byte| is_part(byte)).count().max(1);
                match &self.json[at..self.at] {
                    b"true" => TokenKind::Bool(true),
                    b"false" => TokenKind::Bool(false),
                    b"null" => TokenKind::Null,
                    _ => TokenKind::Number,
                }
            }
        };
        Ok(Token { at, raw: &self.json[at..self.at], kind })
    }

    /// Reads a string; `at` is at its first quotation mark.
    fn string(&mut self) -> Result<String, String> {
        let start = self.at;
        let mut text = Vec::new();
        let mut at = start + 1;
        loop {
            match self.json[at] {
                b'"' => break,
                b'\\' => at = self.escape(start, at, &mut text)?,
                byte => {
                    text.push(byte);
                    at += 1;
                }
            }
        }
        self.at = at + 1;
        String::from_utf8(text).map_err(|_| self.syntax_error(start, "invalid UTF-8 in string"))
    }

    /// Reads one escape and returns where it ends.
    fn escape(&self, start: usize, at: usize, text: &mut Vec<u8>) -> Result<usize, String> {
        let unit = |at: usize| -> Option<u32> {
            let digits = self.json.get(at..at + 6)?;
            let digits = std::str::from_utf8(digits.strip_prefix(b"\\u")?).ok()?;
            u32::from_str_radix(digits, 16).ok()
        };
        let plain = match self.json[at + 1] {
            b'b' => 0x08,
            b'f' => 0x0c,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                let high = unit(at).unwrap_or(0xd800);
                if (0xd800..=0xdfff).contains(&high) && self.json.len() < at + 12 {
                    return Err("unexpected EOF".to_owned());
                }
                let (code, end) = match high {
                    0xd800..=0xdfff => (surrogates(high, unit(at + 6)), at + 12),
                    code => (char::from_u32(code), at + 6),
                };
                let Some(character) = code else {
                    let escape = String::from_utf8_lossy(&self.json[at + 6..at + 12]);
                    let error = format!("invalid escape code {escape:?} in string");
                    return Err(self.syntax_error(start, &error));
                };
                text.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                return Ok(end);
            }
            same => same,
        };
        text.push(plain);
        Ok(at + 2)
    }

    fn place(&self, at: usize) -> String {
        let before = &self.json[..at];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        let start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let column = String::from_utf8_lossy(&before[start..]).chars().count() + 1;
        format!("(line {line}:{column})")
    }

    fn error(&self, at: usize, text: &str) -> String {
        format!("{}: {text}", self.place(at))
    }

    fn syntax_error(&self, at: usize, text: &str) -> String {
        format!("syntax error {}: {text}", self.place(at))
    }

    fn unexpected(&self, token: &Token<'_>) -> String {
        self.syntax_error(token.at, &format!("unexpected token {}", token.text()))
    }

    fn message(&mut self, message: usize, out: &mut Vec<u8>, depth: usize) -> Result<(), String> {
        if depth > DEPTH_MAX {
            return Err("exceeded max recursion depth".to_owned());
        }
        let open = self.token()?;
        if !open.is(b'{') {
            return Err(self.unexpected(&open));
        }
        let message = &SCHEMA.messages[message];
        let mut seen = vec![false; message.fields.len()];
        let mut oneofs_seen = vec![false; message.oneofs.len()];
        loop {
            let name = self.token()?;
            let TokenKind::String(text) = &name.kind else { return Ok(()) };
            let Some(index) = message.field_called(text) else {
                self.skip()?;
                continue;
            };
            if std::mem::replace(&mut seen[index], true) {
                return Err(self.error(name.at, &format!("duplicate field {}", name.text())));
            }
            let field = &message.fields[index];
            if self.peek() == Some(b'n') {
                self.token()?;
                continue;
            }
            if let Some(oneof) = field.oneof
                && std::mem::replace(&mut oneofs_seen[oneof], true)
            {
                let oneof = &message.oneofs[oneof];
                let text = format!("error parsing {}, oneof {oneof} is already set", name.text());
                return Err(self.error(name.at, &text));
            }
            match field.repeated {
                true => self.list(field, out, depth)?,
                false => self.value(field, out, depth)?,
            }
        }
    }

    /// Reads over a value of an unknown field.
    fn skip(&mut self) -> Result<(), String> {
        let mut open = 0_usize;
        loop {
            match self.token()?.kind {
                TokenKind::Punctuation(b'{' | b'[') => open += 1,
                TokenKind::Punctuation(_) => open -= 1,
                _ => {}
            }
            if open == 0 {
                return Ok(());
            }
        }
    }

    fn list(&mut self, field: &Field, out: &mut Vec<u8>, depth: usize) -> Result<(), String> {
        let open = self.token()?;
        if !open.is(b'[') {
            return Err(self.unexpected(&open));
        }
        while self.peek() != Some(b']') {
            self.value(field, out, depth)?;
        }
        self.token().map(|_| ())
    }

    fn value(&mut self, field: &Field, out: &mut Vec<u8>, depth: usize) -> Result<(), String> {
        if let Kind::Message(message) = field.kind {
            let mut inner = Vec::new();
            self.message(message, &mut inner, depth + 1)?;
            put_bytes(field.number, &inner, out);
            return Ok(());
        }
        let token = self.token()?;
        let Some(scalar) = scalar(&token, field.kind) else {
            let (kind, name, raw) = (field.kind.name(), &field.json_name, token.text());
            let text = format!("invalid value for {kind} field {name}: {raw}");
            return Err(self.error(token.at, &text));
        };
        // Zero is the absence of a value, but for members of lists and alternatives.
        let keeps_zero = field.repeated || field.oneof.is_some();
        match scalar {
            Scalar::Varint(value) if value != 0 || keeps_zero => {
                encode_key(field.number, WireType::Varint, out);
                encode_varint(value, out);
            }
            Scalar::Bytes(bytes) if !bytes.is_empty() || keeps_zero => {
                put_bytes(field.number, &bytes, out);
            }
            Scalar::Varint(_) | Scalar::Bytes(_) | Scalar::Unknown => {}
        }
        Ok(())
    }
}

fn surrogates(high: u32, low: Option<u32>) -> Option<char> {
    match (high, low?) {
        (0xd800..=0xdbff, low @ 0xdc00..=0xdfff) => {
            char::from_u32(0x1_0000 + ((high - 0xd800) << 10) + (low - 0xdc00))
        }
        _ => None,
    }
}

fn put_bytes(number: u32, bytes: &[u8], out: &mut Vec<u8>) {
    encode_key(number, WireType::LengthDelimited, out);
    encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// A value in the form that the wire has.
enum Scalar {
    Varint(u64),
    Bytes(Vec<u8>),
    /// An enumeration's value that is not known.
    Unknown,
}

/// None if the token is no value of the kind.
fn scalar(token: &Token<'_>, kind: Kind) -> Option<Scalar> {
    match (kind, &token.kind) {
        (Kind::Bool, TokenKind::Bool(value)) => Some(Scalar::Varint(u64::from(*value))),
        (Kind::Int32, _) => integer::<i32>(token).map(|value| Scalar::Varint(value as u64)),
        (Kind::Int64, _) => integer::<i64>(token).map(|value| Scalar::Varint(value as u64)),
        (Kind::Uint32, _) => integer::<u32>(token).map(|value| Scalar::Varint(value.into())),
        (Kind::Uint64, _) => integer::<u64>(token).map(Scalar::Varint),
        (Kind::String, TokenKind::String(text)) => Some(Scalar::Bytes(text.clone().into_bytes())),
        (Kind::Bytes, TokenKind::String(text)) => decode_base64(text).map(Scalar::Bytes),
        (Kind::Enum(_), TokenKind::Number) => {
            integer::<i32>(token).map(|value| Scalar::Varint(value as u64))
        }
        (Kind::Enum(kind), TokenKind::String(text)) => {
            let values = &SCHEMA.enums[kind].values;
            let known = values.iter().find(|(_, name)| name == text);
            Some(known.map_or(Scalar::Unknown, |(number, _)| Scalar::Varint(*number as u64)))
        }
        _ => None,
    }
}

/// An integer is a number or a string that holds one; fractions and exponents are fine as long as
/// the value is whole.
fn integer<T: std::str::FromStr>(token: &Token<'_>) -> Option<T> {
    let text = match &token.kind {
        TokenKind::Number => std::str::from_utf8(token.raw).ok()?,
        TokenKind::String(text) => text,
        _ => return None,
    };
    whole_number(text)?.parse().ok()
}

/// The digits of a JSON number that is whole; none if it is not, or is no number.
fn whole_number(text: &str) -> Option<String> {
    let (sign, rest) = match text.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", text),
    };
    let (mantissa, exponent) = match rest.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (rest, None),
    };
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((_, "")) => return None,
        Some(parts) => parts,
        None => (mantissa, ""),
    };
    let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let has_leading_zero = whole.len() > 1 && whole.starts_with('0');
    if whole.is_empty() || has_leading_zero || !is_digits(whole) || !is_digits(fraction) {
        return None;
    }
    let exponent: i32 = match exponent {
        Some(text) => {
            let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
            if digits.is_empty() || !is_digits(digits) {
                return None;
            }
            text.parse().ok()?
        }
        None => 0,
    };
    let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
    if whole.is_empty() && fraction.is_empty() {
        return Some("0".to_owned());
    }
    // More digits than the biggest integer has would only be counted.
    const DIGITS_MAX: usize = 20;
    let shift = usize::try_from(exponent.unsigned_abs()).ok()?;
    let digits = if exponent >= 0 {
        if fraction.len() > shift || whole.len().saturating_add(shift) > DIGITS_MAX {
            return None;
        }
        format!("{whole}{fraction}{}", "0".repeat(shift - fraction.len()))
    } else {
        let kept = whole.len().checked_sub(shift)?;
        let (kept, cut) = whole.split_at(kept);
        if !fraction.is_empty() || !cut.bytes().all(|byte| byte == b'0') {
            return None;
        }
        kept.to_owned()
    };
    Some(format!("{sign}{digits}"))
}

/// The standard alphabet or that of URLs, with the padding that the length calls for.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let alphabet = match text.contains(['-', '_']) {
        true => &base64::alphabet::URL_SAFE,
        false => &base64::alphabet::STANDARD,
    };
    let padding = match text.len() % 4 {
        0 => DecodePaddingMode::RequireCanonical,
        _ => DecodePaddingMode::RequireNone,
    };
    let config = GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(padding);
    // Go's decoder reads over ends of lines.
    let text: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
    GeneralPurpose::new(alphabet, config).decode(text).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;
    use proto::etcdserverpb::compare::TargetUnion;
    use proto::etcdserverpb::request_op::Request;
    use proto::etcdserverpb::{MemberAddRequest, RangeRequest, TxnRequest, WatchRequest};

    use super::*;

    fn decode<M: Message + Default>(path: &str, json: &str) -> Result<M, String> {
        let bytes = encode_message(json.as_bytes(), SCHEMA.methods[path].request)?;
        Ok(M::decode(bytes.as_slice()).unwrap())
    }

    fn range(json: &str) -> Result<RangeRequest, String> {
        decode("/etcdserverpb.KV/Range", json)
    }

    #[test]
    fn names_numbers_and_bytes_come_in_several_forms() {
        let expected = RangeRequest {
            key: "foo?>".into(),
            range_end: "fop".into(),
            limit: 1200,
            sort_order: 2,
            sort_target: 3,
            serializable: true,
            ..Default::default()
        };
        let cases = [
            r#"{"key":"Zm9vPz4=","range_end":"Zm9w","limit":"1200","sort_order":"DESCEND","sort_target":"MOD","serializable":true}"#,
            r#"{"key":"Zm9vPz4","rangeEnd":"Zm9w","limit":1.2e3,"sortOrder":2,"sortTarget":3,"serializable":true}"#,
            "{ \"key\" : \"Zm9vPz4\\u003d\" ,\n\t\"unknown\":[{\"a\":[1,\"}\"]}],\"range_end\":\"Zm9w\",\"revision\":null,\
             \"limit\":12000e-1,\"sort_order\":\"DESCEND\",\"sort_target\":3.0,\"serializable\":true,\"keys_only\":false}",
        ];
        for case in cases {
            assert_eq!(range(case).unwrap(), expected, "{case}");
        }
        assert_eq!(range(r#"{"key":"_-8"}"#).unwrap().key.as_ref(), b"\xff\xef");
        assert_eq!(range(r#"{"limit":"-9223372036854775808"}"#).unwrap().limit, i64::MIN);
        assert_eq!(range(r#"{"sort_order":"FOO","limit":1}"#).unwrap().limit, 1);
    }

    #[test]
    fn lists_alternatives_and_messages_nest() {
        let txn: TxnRequest = decode(
            "/etcdserverpb.KV/Txn",
            r#"{"compare":[{"key":"YQ==","target":"CREATE","create_revision":"0"}],
                "success":[{"request_txn":{"failure":[{"requestPut":{"key":"YQ=="}}]}},{}]}"#,
        )
        .unwrap();
        assert_eq!(txn.compare[0].target_union, Some(TargetUnion::CreateRevision(0)));
        let Some(Request::RequestTxn(inner)) = &txn.success[0].request else { panic!() };
        assert!(matches!(inner.failure[0].request, Some(Request::RequestPut(_))));
        assert_eq!(txn.success[1].request, None);
        let add: MemberAddRequest =
            decode("/etcdserverpb.Cluster/MemberAdd", r#"{"peerURLs":["a","\ud83d\ude00\n"]}"#)
                .unwrap();
        assert_eq!(add.peer_ur_ls, ["a", "\u{1f600}\n"]);
        let watch: WatchRequest =
            decode("/etcdserverpb.Watch/Watch", r#"{"create_request":{"filters":["NOPUT",1]}}"#)
                .unwrap();
        assert!(format!("{watch:?}").contains("[Noput, Nodelete]"), "{watch:?}");
    }

    #[test]
    fn errors_have_the_texts_of_protojson() {
        let cases = [
            ("[]", "proto: syntax error (line 1:1): unexpected token ["),
            ("null", "proto: syntax error (line 1:1): unexpected token null"),
            (" \n\"a\"", "proto: syntax error (line 1:1): unexpected token \"a\""),
            (
                r#"{"key":"Z*9v"}"#,
                r#"proto: (line 1:8): invalid value for bytes field key: "Z*9v""#,
            ),
            (
                "{\n \"range_end\":1}",
                "proto: (line 2:14): invalid value for bytes field rangeEnd: 1",
            ),
            (r#"{"limit":1.5}"#, "proto: (line 1:10): invalid value for int64 field limit: 1.5"),
            (
                r#"{"limit":" 1"}"#,
                r#"proto: (line 1:10): invalid value for int64 field limit: " 1""#,
            ),
            (r#"{"limit":{}}"#, "proto: (line 1:10): invalid value for int64 field limit: {"),
            (
                r#"{"sort_order":true}"#,
                "proto: (line 1:15): invalid value for enum field sortOrder: true",
            ),
            (r#"{"key":"","key":""}"#, r#"proto: (line 1:11): duplicate field "key""#),
            (r#"{"x":"\ud800"}"#, "proto: unexpected EOF"),
            (r#"{"x":"\ud800\u0041"}"#, "proto: syntax error (line 1:6): invalid escape code"),
        ];
        for (json, expected) in cases {
            let error = range(json).unwrap_err();
            assert!(error.starts_with(expected), "{json}: {error}");
        }
        let watch = encode_message(
            br#"{"create_request":{},"cancel_request":{}}"#,
            SCHEMA.methods["/etcdserverpb.Watch/Watch"].request,
        );
        assert_eq!(
            watch.unwrap_err(),
            "proto: (line 1:22): error parsing \"cancel_request\", oneof \
             etcdserverpb.WatchRequest.request_union is already set"
        );
    }

    /// Texts that are nearly JSON more often than not.
    fn nearly_json() -> impl Strategy<Value = Vec<u8>> {
        let parts: [&[u8]; 32] = [
            b"{",
            b"}",
            b"[",
            b"]",
            b",",
            b":",
            b" ",
            b"\n",
            b"\"",
            b"\\",
            b"\\u",
            b"\\ud83d\\ude00",
            b"\\ud800",
            b"12",
            b"-",
            b"0",
            b".5",
            b"e+3",
            b"true",
            b"null",
            b"\xff",
            b"\xc3\xa4",
            b"\"key\":",
            b"\"YQ==\"",
            b"\"limit\":\"7\"",
            b"\"success\":[",
            b"\"compare\":[{",
            b"\"request_txn\":{",
            b"\"target\":\"MOD\"",
            b"\"create_request\":{",
            b"\"filters\":[",
            b"\"progress_request\":{}",
        ];
        let part = proptest::sample::select(parts.to_vec());
        proptest::collection::vec(part, 0..40).prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn whatever_a_body_holds_is_a_message_or_an_error(
            bodies in proptest::collection::vec(nearly_json(), 1..4)
        ) {
            let mut values = super::super::syntax::Values::default();
            for body in bodies {
                values.extend(&body);
                while let Ok(Some(json)) = values.next() {
                    for path in ["/etcdserverpb.KV/Txn", "/etcdserverpb.Watch/Watch"] {
                        let request = SCHEMA.methods[path].request;
                        if let Ok(bytes) = encode_message(&json, request) {
                            let mut text = String::new();
                            let html = super::super::encode::Html::Plain;
                            let shown = super::super::encode::decode_message(&bytes, request, html, &mut text);
                            prop_assert!(shown.is_ok());
                            prop_assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok());
                            // What is shown means what was meant.
                            prop_assert_eq!(
                                TxnRequest::decode(encode_message(text.as_bytes(), request).unwrap().as_slice()).ok(),
                                TxnRequest::decode(bytes.as_slice()).ok()
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn deep_requests_are_refused() {
        let depth = 5_000;
        let open = r#"{"success":[{"request_txn":"#.repeat(depth);
        let json = format!("{open}{{}}{}", "}]}".repeat(depth));
        let error = encode_message(json.as_bytes(), SCHEMA.methods["/etcdserverpb.KV/Txn"].request);
        assert_eq!(error.unwrap_err(), "proto: exceeded max recursion depth");
    }

    #[test]
    fn whole_numbers_are_told_from_others() {
        let cases = [
            ("0", Some("0")),
            ("-0", Some("0")),
            ("12", Some("12")),
            ("-12e2", Some("-1200")),
            ("0.5e1", Some("5")),
            ("1.50e+2", Some("150")),
            ("100e-2", Some("1")),
            ("1e-1", None),
            ("1.5", None),
            ("01", None),
            ("", None),
            ("1e", None),
            ("1e99999999999", None),
            ("1e21", None),
            ("+1", None),
            ("1.", None),
            ("0x1", None),
        ];
        for (text, expected) in cases {
            assert_eq!(whole_number(text).as_deref(), expected, "{text}");
        }
    }
}
