//! Ranges of keys as the etcd API writes them.

use bytes::Bytes;

/// Where a range of keys stops.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RangeEnd {
    /// Only the start key itself (`range_end` absent).
    Single,
    /// Every key from the start on (`range_end` is one zero byte).
    Unbounded,
    /// Up to, and without, this key.
    Before(Bytes),
}

/// A half-open range of keys, or one key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyRange {
    /// The first key of the range.
    pub start: Bytes,
    /// Where it stops.
    pub end: RangeEnd,
}

impl KeyRange {
    /// Reads the pair of fields `key` and `range_end` of a request.
    pub fn from_wire(key: Bytes, range_end: Bytes) -> Self {
        let end = match range_end.as_ref() {
            [] => RangeEnd::Single,
            [0] => RangeEnd::Unbounded,
            _ => RangeEnd::Before(range_end),
        };
        Self { start: key, end }
    }

    /// The range of exactly one key.
    pub fn single(key: Bytes) -> Self {
        Self { start: key, end: RangeEnd::Single }
    }

    /// Whether `key` lies in the range.
    pub fn contains(&self, key: &[u8]) -> bool {
        match &self.end {
            RangeEnd::Single => key == self.start,
            RangeEnd::Unbounded => key >= self.start.as_ref(),
            RangeEnd::Before(end) => key >= self.start.as_ref() && key < end.as_ref(),
        }
    }

    /// Whether no key can lie in the range. etcd answers such a range with nothing, not an error.
    pub fn is_empty(&self) -> bool {
        matches!(&self.end, RangeEnd::Before(end) if end <= &self.start)
    }

    /// Whether some key lies in both ranges.
    pub fn overlaps(&self, other: &KeyRange) -> bool {
        if self.is_empty() || other.is_empty() {
            return false;
        }
        starts_before_end(&self.start, other) && starts_before_end(&other.start, self)
    }
}

fn starts_before_end(key: &Bytes, range: &KeyRange) -> bool {
    match &range.end {
        RangeEnd::Single => key <= &range.start,
        RangeEnd::Unbounded => true,
        RangeEnd::Before(end) => key < end,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(key: &'static str, end: &'static str) -> KeyRange {
        KeyRange::from_wire(Bytes::from_static(key.as_bytes()), Bytes::from_static(end.as_bytes()))
    }

    #[test]
    fn wire_pairs_mean_what_etcd_says() {
        let cases = [
            ("a", "", "a", true),
            ("a", "", "b", false),
            ("a", "c", "b", true),
            ("a", "c", "c", false),
            ("b", "\0", "zz", true),
            ("b", "\0", "a", false),
            ("\0", "\0", "", false),
            ("\0", "\0", "a", true),
            ("c", "a", "b", false),
        ];
        for (key, end, probe, inside) in cases {
            assert_eq!(
                range(key, end).contains(probe.as_bytes()),
                inside,
                "{key:?} {end:?} {probe:?}"
            );
        }
    }

    #[test]
    fn overlap_is_symmetric_and_excludes_the_end() {
        let cases = [
            (("a", "c"), ("b", "d"), true),
            (("a", "c"), ("c", "d"), false),
            (("a", ""), ("a", ""), true),
            (("a", ""), ("b", ""), false),
            (("a", "\0"), ("z", ""), true),
            (("b", "\0"), ("a", ""), false),
            (("a", "c"), ("b", ""), true),
            (("c", "a"), ("b", ""), false),
        ];
        for ((a, b), (c, d), expected) in cases {
            assert_eq!(range(a, b).overlaps(&range(c, d)), expected);
            assert_eq!(range(c, d).overlaps(&range(a, b)), expected);
        }
    }
}
