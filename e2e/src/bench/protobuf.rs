//! The little of protobuf that the load needs: appending fields, and walking over the fields of an
//! answer without making a message of it.

/// A field of a message as it is on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field<'a> {
    /// A number (varint).
    Number(u64),
    /// Bytes, text or a message.
    Bytes(&'a [u8]),
}

/// Appends a varint.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a field that is a number; zero is left out, as protobuf does.
pub fn put_number(out: &mut Vec<u8>, field: u32, value: i64) {
    if value != 0 {
        put_varint(out, u64::from(field) << 3);
        put_varint(out, value as u64);
    }
}

/// Appends a field of bytes.
pub fn put_bytes(out: &mut Vec<u8>, field: u32, bytes: &[u8]) {
    put_varint(out, u64::from(field) << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Walks over the fields of a message; stops at the end or at what is not protobuf.
pub fn fields(message: &[u8]) -> impl Iterator<Item = (u32, Field<'_>)> {
    let mut rest = message;
    std::iter::from_fn(move || {
        let tag = varint(&mut rest)?;
        let value = match tag & 7 {
            0 => Field::Number(varint(&mut rest)?),
            2 => {
                let length = usize::try_from(varint(&mut rest)?).ok()?;
                let (bytes, after) = rest.split_at_checked(length)?;
                rest = after;
                Field::Bytes(bytes)
            }
            _ => return None,
        };
        Some((u32::try_from(tag >> 3).ok()?, value))
    })
}

/// The number in a field, 0 if it is absent.
pub fn number(message: &[u8], field: u32) -> u64 {
    fields(message)
        .find_map(|(number, value)| match value {
            Field::Number(value) if number == field => Some(value),
            _ => None,
        })
        .unwrap_or(0)
}

/// The bytes in a field, none if it is absent.
pub fn bytes(message: &[u8], field: u32) -> &[u8] {
    fields(message)
        .find_map(|(number, value)| match value {
            Field::Bytes(value) if number == field => Some(value),
            _ => None,
        })
        .unwrap_or_default()
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..70).step_by(7) {
        let (first, after) = rest.split_first()?;
        *rest = after;
        value |= u64::from(first & 0x7f).checked_shl(shift)?;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;
    use proto::etcdserverpb::{PutRequest, PutResponse, ResponseHeader};

    #[test]
    fn what_is_appended_is_what_prost_reads() {
        let mut encoded = Vec::new();
        put_bytes(&mut encoded, 1, b"key");
        put_bytes(&mut encoded, 2, &[7; 300]);
        put_number(&mut encoded, 3, 1 << 40);
        put_number(&mut encoded, 4, 0);
        let request = PutRequest::decode(encoded.as_slice()).unwrap();
        assert_eq!(request.key.as_ref(), b"key");
        assert_eq!(request.value.as_ref(), [7; 300]);
        assert_eq!(request.lease, 1 << 40);
    }

    #[test]
    fn what_prost_writes_is_what_is_read() {
        let header = ResponseHeader { revision: 12_345, raft_term: 2, ..Default::default() };
        let answer = PutResponse { header: Some(header), prev_kv: None }.encode_to_vec();
        assert_eq!(number(bytes(&answer, 1), 3), 12_345);
        assert_eq!(number(bytes(&answer, 1), 9), 0);
    }

    #[test]
    fn a_cut_message_ends_the_walk() {
        let mut encoded = Vec::new();
        put_bytes(&mut encoded, 1, &[1; 20]);
        assert_eq!(fields(&encoded[..10]).count(), 0);
        assert_eq!(fields(&[0xff; 30]).count(), 0);
    }
}
