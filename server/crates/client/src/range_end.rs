//! Ranges as etcd's API writes them: a key and an exclusive end.

use bytes::Bytes;

/// The end of the range of all keys that begin with `prefix`: the prefix with its last byte that can
/// be incremented incremented and the rest cut off. A prefix of only `0xff` bytes, or an empty one,
/// has no such end; one zero byte then means "every key from here on".
pub fn prefix_range_end(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if let Some(next) = last.checked_add(1) {
            end.push(next);
            return Bytes::from(end);
        }
    }
    Bytes::from_static(&[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_next_sibling() {
        for (prefix, end) in [
            (&b"a"[..], &b"b"[..]),
            (b"ab", b"ac"),
            (b"a/", b"a0"),
            (b"a\xff", b"b"),
            (b"\xff\xff", b"\0"),
            (b"", b"\0"),
        ] {
            assert_eq!(prefix_range_end(prefix), end, "{prefix:?}");
        }
    }
}
