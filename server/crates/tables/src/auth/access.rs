//! The interval algebra of permissions.
//!
//! A user may do what the union of all its roles' permissions covers: ranges that overlap or touch
//! become one, so a request may span several of them. A request is checked with the range that the
//! client wrote; an end of one zero byte means "without end" on both sides (CVE-2026-73499).

use std::collections::BTreeMap;

use bytes::Bytes;
use types::{KeyRange, RangeEnd};

use super::{Permission, User};

/// Half an open interval of keys; no end is without end.
type Interval = (Bytes, Option<Bytes>);

/// Disjoint intervals that do not touch, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Union(Vec<Interval>);

/// What one user may do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    read: Union,
    write: Union,
}

impl Access {
    /// Of a user whose roles have these permissions; a granted role that does not exist has none.
    pub(crate) fn of(user: &User, roles: &BTreeMap<String, Vec<Permission>>) -> Self {
        let permissions = || user.roles.iter().filter_map(|role| roles.get(role)).flatten();
        let union = |allowed: fn(super::PermissionKind) -> bool| {
            let granted = permissions().filter(|permission| allowed(permission.kind));
            Union::of(granted.map(|permission| &permission.range))
        };
        Self {
            read: union(super::PermissionKind::reads),
            write: union(super::PermissionKind::writes),
        }
    }

    /// Whether every key of the range may be read.
    pub fn may_read(&self, range: &KeyRange) -> bool {
        self.read.covers(range)
    }

    /// Whether every key of the range may be written.
    pub fn may_write(&self, range: &KeyRange) -> bool {
        self.write.covers(range)
    }
}

/// The smallest key above `key`.
fn successor(key: &Bytes) -> Bytes {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next.into()
}

fn interval(range: &KeyRange) -> Interval {
    let end = match &range.end {
        RangeEnd::Single => Some(successor(&range.start)),
        RangeEnd::Before(end) => Some(end.clone()),
        RangeEnd::Unbounded => None,
    };
    (range.start.clone(), end)
}

impl Union {
    fn of<'r>(ranges: impl Iterator<Item = &'r KeyRange>) -> Self {
        let mut intervals: Vec<Interval> =
            ranges.filter(|range| !range.is_empty()).map(interval).collect();
        intervals.sort_by(|one, other| one.0.cmp(&other.0));
        let mut merged: Vec<Interval> = Vec::new();
        for (begin, end) in intervals {
            match merged.last_mut() {
                Some((_, last @ Some(_))) if last.as_ref() >= Some(&begin) => {
                    *last = match (last.take(), end) {
                        (Some(one), Some(other)) => Some(one.max(other)),
                        _ => None,
                    };
                }
                // Nothing lies behind an interval without end.
                Some((_, None)) => break,
                _ => merged.push((begin, end)),
            }
        }
        Self(merged)
    }

    /// Whether one interval holds the whole range. A range that ends before it begins has no keys;
    /// like etcd's interval tree this asks for its first key then.
    fn covers(&self, range: &KeyRange) -> bool {
        let (begin, end) = interval(range);
        let behind = self.0.partition_point(|(first, _)| *first <= begin);
        let Some((_, limit)) = behind.checked_sub(1).map(|at| &self.0[at]) else { return false };
        match (limit, end) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(limit), Some(end)) => begin < *limit && end <= *limit,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn range(key: &str, end: &str) -> KeyRange {
        KeyRange::from_wire(key.as_bytes().to_vec().into(), end.as_bytes().to_vec().into())
    }

    fn union(granted: &[(&str, &str)]) -> Union {
        let ranges: Vec<KeyRange> = granted.iter().map(|(key, end)| range(key, end)).collect();
        Union::of(ranges.iter())
    }

    #[test]
    fn a_request_may_span_permissions_that_overlap_or_touch() {
        /// What is granted, what is asked for, and whether that is allowed.
        type Case<'a> = (&'a [(&'a str, &'a str)], &'a str, &'a str, bool);
        let cases: &[Case<'_>] = &[
            (&[], "a", "", false),
            (&[("a", "")], "a", "", true),
            (&[("a", "")], "b", "", false),
            (&[("a", "")], "a", "b", false),
            (&[("a", "")], "a", "a\0", true),
            (&[("a", ""), ("a\0", "c")], "a", "c", true),
            (&[("a", "b"), ("b", "c")], "a", "c", true),
            (&[("a", "b"), ("b", "c")], "a", "c\0", false),
            (&[("a", "c"), ("b", "d")], "a", "d", true),
            (&[("a", "b"), ("c", "d")], "a", "d", false),
            (&[("a", "b"), ("b\0", "d")], "a", "d", false),
            (&[("a", "\0")], "zz", "\0", true),
            (&[("a", "\0")], "A", "\0", false),
            (&[("a", "b"), ("b", "\0")], "a", "\0", true),
            (&[("\0", "\0")], "\0", "\0", true),
            // A range without keys is judged by where it begins.
            (&[("a", "c")], "b", "a", true),
            (&[("a", "c")], "d", "a", false),
        ];
        for (granted, key, end, allowed) in cases {
            assert_eq!(
                union(granted).covers(&range(key, end)),
                *allowed,
                "{granted:?} {key} {end}"
            );
        }
    }

    #[test]
    fn cve_2026_73499_a_point_does_not_allow_everything_behind_it() {
        assert!(!union(&[("a", "")]).covers(&range("a", "\0")));
        assert!(!union(&[("a", "b")]).covers(&range("a", "\0")));
        assert!(!union(&[("\0", "")]).covers(&range("\0", "\0")));
    }

    /// Keys of one or two letters out of three, for a model that lists them.
    fn key() -> impl Strategy<Value = String> {
        proptest::string::string_regex("[abc]{1,2}").expect("a regular expression")
    }

    fn keys() -> Vec<String> {
        let letters = ["a", "b", "c"];
        let two =
            letters.iter().flat_map(|one| letters.iter().map(move |two| format!("{one}{two}")));
        let mut all: Vec<String> = letters.iter().map(ToString::to_string).chain(two).collect();
        // Between each and its neighbours there are others.
        all.extend(all.clone().into_iter().map(|key| key + "\0"));
        all.push("d".to_owned());
        all
    }

    fn end() -> impl Strategy<Value = String> {
        prop_oneof![Just(String::new()), Just("\0".to_owned()), key()]
    }

    proptest! {
        #[test]
        fn the_union_covers_what_its_keys_cover(
            granted in proptest::collection::vec((key(), end()), 0..6),
            key in key(), end in end(),
        ) {
            let ranges: Vec<KeyRange> =
                granted.iter().map(|(key, end)| range(key, end)).collect();
            let asked = range(&key, &end);
            prop_assume!(!asked.is_empty());
            let all = keys();
            let held: BTreeSet<&String> = all
                .iter()
                .filter(|key| ranges.iter().any(|range| range.contains(key.as_bytes())))
                .collect();
            let model = all
                .iter()
                .filter(|key| asked.contains(key.as_bytes()))
                .all(|key| held.contains(key));
            let covered = Union::of(ranges.iter()).covers(&asked);
            // What is covered is held key by key; the keys of the model are not all keys there are,
            // so the other direction holds only where nothing lies between them.
            prop_assert!(!covered || model);
            if asked.end == RangeEnd::Single {
                prop_assert_eq!(covered, model);
            }
        }
    }
}
