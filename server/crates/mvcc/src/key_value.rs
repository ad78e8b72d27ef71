//! `mvccpb.KeyValue` by hand: exactly the bytes that Go's protobuf writes.
//!
//! ```text
//! field            tag   wire form
//! key              0x0a  length, bytes      every field that is zero or empty is left out,
//! create_revision  0x10  varint             the others follow in the order of their numbers;
//! mod_revision     0x18  varint             that is what golang/protobuf does, and HashKV covers
//! version          0x20  varint             these very bytes
//! value            0x2a  length, bytes
//! lease            0x30  varint
//! ```
//!
//! Written by hand so that a record is encoded once, into a buffer shared by the record store, the
//! watchers and the responses, and so that a reader can find one field without decoding the others.

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};

const TAG_KEY: u8 = 0x0a;
const TAG_CREATE: u8 = 0x10;
const TAG_MOD: u8 = 0x18;
const TAG_VERSION: u8 = 0x20;
const TAG_VALUE: u8 = 0x2a;
const TAG_LEASE: u8 = 0x30;

/// Room for every tag and number of a key-value, beside the key and the value themselves.
const OVERHEAD: usize = 6 + 6 * 10;

/// Records are cut from buffers of this size, so that a small put is not an allocation of its own.
const ARENA: usize = 64 * 1024;

/// A decoded `mvccpb.KeyValue`; key and value share the encoded buffer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyValue {
    pub key: Bytes,
    pub create_revision: i64,
    pub mod_revision: i64,
    pub version: i64,
    pub value: Bytes,
    pub lease: i64,
}

/// Why bytes are not a `mvccpb.KeyValue`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyValueError {
    #[error("key-value ends in the middle of a field at byte {0}")]
    Truncated(usize),
    #[error("number at byte {0} of a key-value is longer than ten bytes")]
    LongNumber(usize),
    #[error("field {field} of a key-value at byte {at} has the unexpected wire type {wire_type}")]
    WireType { field: u64, wire_type: u8, at: usize },
}

impl KeyValue {
    /// Reads encoded bytes; fields it does not know are passed over, as proto3 asks.
    pub fn decode(encoded: &Bytes) -> Result<Self, KeyValueError> {
        let mut fields = Fields { bytes: encoded, at: 0 };
        let mut found = Self::default();
        while let Some(field) = fields.next()? {
            match field {
                Field::Bytes(1, range) => found.key = encoded.slice(range),
                Field::Number(2, number) => found.create_revision = number,
                Field::Number(3, number) => found.mod_revision = number,
                Field::Number(4, number) => found.version = number,
                Field::Bytes(5, range) => found.value = encoded.slice(range),
                Field::Number(6, number) => found.lease = number,
                _ => {}
            }
        }
        Ok(found)
    }

    /// Writes canonical bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(OVERHEAD + self.key.len() + self.value.len());
        put_field(&mut out, TAG_KEY, &self.key);
        put_number(&mut out, TAG_CREATE, self.create_revision);
        put_number(&mut out, TAG_MOD, self.mod_revision);
        put_number(&mut out, TAG_VERSION, self.version);
        put_field(&mut out, TAG_VALUE, &self.value);
        put_number(&mut out, TAG_LEASE, self.lease);
        out.freeze()
    }
}

/// The same bytes without the value.
pub(crate) fn without_value(encoded: &Bytes) -> Result<Bytes, KeyValueError> {
    Ok(KeyValue { value: Bytes::new(), ..KeyValue::decode(encoded)? }.encode())
}

/// The value inside encoded bytes.
pub(crate) fn value_of(encoded: &Bytes) -> Result<Bytes, KeyValueError> {
    Ok(KeyValue::decode(encoded)?.value)
}

/// Cuts encoded records from shared buffers.
#[derive(Debug, Default)]
pub(crate) struct Encoder {
    arena: BytesMut,
}

impl Encoder {
    /// An encoded put and, sharing its buffer, the key within it.
    pub(crate) fn put(&mut self, fields: &KeyValue) -> (Bytes, Bytes) {
        let mut own = self.room(OVERHEAD + fields.key.len() + fields.value.len());
        let out = own.as_mut().unwrap_or(&mut self.arena);
        let key = put_field(out, TAG_KEY, &fields.key);
        put_number(out, TAG_CREATE, fields.create_revision);
        put_number(out, TAG_MOD, fields.mod_revision);
        put_number(out, TAG_VERSION, fields.version);
        put_field(out, TAG_VALUE, &fields.value);
        put_number(out, TAG_LEASE, fields.lease);
        let encoded = out.split().freeze();
        let key = encoded.slice(key);
        (encoded, key)
    }

    /// A deletion as it goes on the wire, the part of it that is the record, and the key.
    pub(crate) fn tombstone(&mut self, key: &[u8], mod_revision: i64) -> (Bytes, Bytes, Bytes) {
        let mut own = self.room(OVERHEAD + key.len());
        let out = own.as_mut().unwrap_or(&mut self.arena);
        let key = put_field(out, TAG_KEY, key);
        let record = out.len();
        put_number(out, TAG_MOD, mod_revision);
        let wire = out.split().freeze();
        (wire.slice(..record), wire.slice(key), wire)
    }

    /// Makes room in the arena, or answers with a buffer for this record alone when it is so big
    /// that the rest of an arena would be wasted.
    fn room(&mut self, need: usize) -> Option<BytesMut> {
        if need > ARENA / 4 {
            return Some(BytesMut::with_capacity(need));
        }
        if self.arena.capacity() < need {
            self.arena = BytesMut::with_capacity(ARENA);
        }
        None
    }
}

/// A deletion as it goes on the wire.
pub(crate) fn encode_deletion(key: &[u8], mod_revision: i64) -> Bytes {
    KeyValue { key: Bytes::copy_from_slice(key), mod_revision, ..KeyValue::default() }.encode()
}

fn put_field(out: &mut BytesMut, tag: u8, bytes: &[u8]) -> Range<usize> {
    if bytes.is_empty() {
        return out.len()..out.len();
    }
    out.put_u8(tag);
    put_varint(out, bytes.len() as u64);
    let start = out.len();
    out.put_slice(bytes);
    start..out.len()
}

fn put_number(out: &mut BytesMut, tag: u8, number: i64) {
    if number != 0 {
        out.put_u8(tag);
        put_varint(out, number as u64);
    }
}

fn put_varint(out: &mut BytesMut, mut number: u64) {
    while number >= 0x80 {
        out.put_u8(number as u8 | 0x80);
        number >>= 7;
    }
    out.put_u8(number as u8);
}

enum Field {
    Number(u64, i64),
    Bytes(u64, Range<usize>),
    Other,
}

struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Fields<'_> {
    fn next(&mut self) -> Result<Option<Field>, KeyValueError> {
        if self.at == self.bytes.len() {
            return Ok(None);
        }
        let at = self.at;
        let tag = self.varint()?;
        let (field, wire_type) = (tag >> 3, (tag & 7) as u8);
        let expected = match field {
            1 | 5 => Some(2),
            2..=4 | 6 => Some(0),
            _ => None,
        };
        if expected.is_some_and(|expected| expected != wire_type) {
            return Err(KeyValueError::WireType { field, wire_type, at });
        }
        match wire_type {
            0 => Ok(Some(Field::Number(field, self.varint()? as i64))),
            1 => self.skip(8).map(|_| Some(Field::Other)),
            2 => {
                let length = self.varint()?;
                let range = self.skip(usize::try_from(length).unwrap_or(usize::MAX))?;
                Ok(Some(Field::Bytes(field, range)))
            }
            5 => self.skip(4).map(|_| Some(Field::Other)),
            _ => Err(KeyValueError::WireType { field, wire_type, at }),
        }
    }

    fn skip(&mut self, length: usize) -> Result<Range<usize>, KeyValueError> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or(KeyValueError::Truncated(self.at))?;
        let range = self.at..end;
        self.at = end;
        Ok(range)
    }

    fn varint(&mut self) -> Result<u64, KeyValueError> {
        let start = self.at;
        let mut number = 0u64;
        for shift in (0..70).step_by(7) {
            let byte = *self.bytes.get(self.at).ok_or(KeyValueError::Truncated(start))?;
            self.at += 1;
            number |= u64::from(byte & 0x7f).wrapping_shl(shift);
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(KeyValueError::LongNumber(start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> KeyValue {
        KeyValue {
            key: Bytes::from_static(b"foo"),
            create_revision: 2,
            mod_revision: 300,
            version: 5,
            value: Bytes::from_static(b"bar"),
            lease: -1,
        }
    }

    #[test]
    fn fields_follow_their_numbers_and_zeros_are_left_out() {
        let encoded = full().encode();
        let mut expected = b"\x0a\x03foo\x10\x02\x18\xac\x02\x20\x05\x2a\x03bar\x30".to_vec();
        expected.extend([0xff; 9]);
        expected.push(1);
        assert_eq!(encoded, expected);
        assert_eq!(KeyValue::default().encode(), "");
    }

    #[test]
    fn decoding_undoes_encoding() {
        for kv in [full(), KeyValue::default(), KeyValue { lease: i64::MAX, ..full() }] {
            assert_eq!(KeyValue::decode(&kv.encode()), Ok(kv));
        }
    }

    #[test]
    fn the_arena_writes_what_the_plain_encoder_writes() {
        let mut encoder = Encoder::default();
        for size in [0, 10, ARENA / 8, ARENA, 3 * ARENA, 20] {
            let kv = KeyValue { value: vec![7; size].into(), ..full() };
            assert_eq!(encoder.put(&kv), (kv.encode(), kv.key.clone()));
        }
        let (record, key, wire) = encoder.tombstone(b"foo", 9);
        assert_eq!(
            (&record[..], &key[..], &wire[..]),
            (&b"\x0a\x03foo"[..], &b"foo"[..], &b"\x0a\x03foo\x18\x09"[..])
        );
        assert_eq!(wire, encode_deletion(b"foo", 9));
    }

    #[test]
    fn damaged_bytes_are_refused_and_unknown_fields_passed_over() {
        type Case = (&'static [u8], Result<&'static [u8], KeyValueError>);
        let cases: [Case; 6] = [
            (b"\x0a\x01k\x78\x05", Ok(b"k")),
            (b"\x79\0\0\0\0\0\0\0\0\x0a\x01k\x7d\0\0\0\0", Ok(b"k")),
            (b"\x0a\x05k", Err(KeyValueError::Truncated(2))),
            (b"\x18", Err(KeyValueError::Truncated(1))),
            (
                b"\x18\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
                Err(KeyValueError::LongNumber(1)),
            ),
            (b"\x08\x05", Err(KeyValueError::WireType { field: 1, wire_type: 0, at: 0 })),
        ];
        for (bytes, expected) in cases {
            let found = KeyValue::decode(&Bytes::from_static(bytes)).map(|kv| kv.key);
            assert_eq!(found, expected.map(Bytes::from_static), "{bytes:?}");
        }
    }

    #[test]
    fn a_value_can_be_taken_out() {
        let encoded = full().encode();
        assert_eq!(value_of(&encoded), Ok(Bytes::from_static(b"bar")));
        let bare = KeyValue { value: Bytes::new(), ..full() };
        assert_eq!(without_value(&encoded), Ok(bare.encode()));
    }
}
