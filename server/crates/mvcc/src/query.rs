//! Range requests: what can be asked, and etcd's order of filtering, sorting and cutting.
//!
//! The order matters and has quirks that clients can see (`etcdserver/txn/range.go`):
//! - a limit is applied while walking the keys only if the order is the default one and there are no
//!   revision filters, and then one key more is taken, to know whether there is `more`;
//! - a target other than the key with order `None` is sorted ascending, but counts as the default
//!   order for the rule above, so it sorts the first `limit + 1` keys only;
//! - `count` is the number of keys in the range, whatever the limit and the filters.

use std::cmp::Reverse;

use bytes::Bytes;
use revlog::RevStoreError;
use types::{KeyRange, RecordRevision, Revision};

use crate::history::{KeyHistory, Version};
use crate::index::{Index, fault};
use crate::key_value::{KeyValue, value_of, without_value};

/// `RangeRequest.SortOrder`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SortOrder {
    #[default]
    None,
    Ascend,
    Descend,
}

/// `RangeRequest.SortTarget`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SortTarget {
    #[default]
    Key,
    Version,
    Create,
    Mod,
    Value,
}

/// A range request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeQuery {
    pub range: KeyRange,
    /// The most keys to answer with; 0 or less for all.
    pub limit: i64,
    /// The revision to read at; 0 or less for the newest.
    pub revision: i64,
    pub sort_order: SortOrder,
    pub sort_target: SortTarget,
    pub keys_only: bool,
    pub count_only: bool,
    /// Bounds on mod and create revisions; 0 for none.
    pub min_mod: i64,
    pub max_mod: i64,
    pub min_create: i64,
    pub max_create: i64,
}

impl RangeQuery {
    /// Everything in `range` at the newest revision, in key order.
    pub fn all(range: KeyRange) -> Self {
        Self {
            range,
            limit: 0,
            revision: 0,
            sort_order: SortOrder::None,
            sort_target: SortTarget::Key,
            keys_only: false,
            count_only: false,
            min_mod: 0,
            max_mod: 0,
            min_create: 0,
            max_create: 0,
        }
    }

    /// Whether the answer keeps the order of keys and no filter applies: what RangeStream supports.
    pub fn is_plain(&self) -> bool {
        self.default_order() && !self.has_filters()
    }

    fn default_order(&self) -> bool {
        self.sort_order == SortOrder::None
            || (self.sort_target == SortTarget::Key && self.sort_order == SortOrder::Ascend)
    }

    fn has_filters(&self) -> bool {
        self.min_mod != 0 || self.max_mod != 0 || self.min_create != 0 || self.max_create != 0
    }

    fn passes(&self, version: &Version) -> bool {
        (self.max_mod == 0 || version.main <= self.max_mod)
            && (self.min_mod == 0 || version.main >= self.min_mod)
            && (self.max_create == 0 || version.create <= self.max_create)
            && (self.min_create == 0 || version.create >= self.min_create)
    }

    /// Whether the index alone answers; then leases are left out, as etcd 3.7 does.
    pub(crate) fn is_from_index(&self) -> bool {
        self.keys_only && self.sort_target != SortTarget::Value
    }

    /// How many keys to take while walking, if that is bounded.
    pub(crate) fn walk_limit(&self) -> Option<u64> {
        let limit = u64::try_from(self.limit).ok().filter(|limit| *limit > 0)?;
        self.is_plain().then(|| limit.saturating_add(u64::from(self.limit < i64::MAX)))
    }
}

/// The answer to a range request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeAnswer {
    /// Encoded `mvccpb.KeyValue`s.
    pub kvs: Vec<Bytes>,
    /// Whether the limit left keys out.
    pub more: bool,
    /// How many keys are in the range.
    pub count: i64,
    /// The revision of the store when it was read.
    pub revision: Revision,
}

/// Why a range cannot be answered.
#[derive(Debug, thiserror::Error)]
pub enum RangeError {
    #[error("mvcc: required revision has been compacted")]
    Compacted,
    #[error("mvcc: required revision is a future revision")]
    FutureRevision,
    #[error(transparent)]
    Store(#[from] RevStoreError),
}

/// A key that the walk took: its version, and for an answer from the index the encoded bytes.
pub(crate) struct Hit {
    pub(crate) version: Version,
    pub(crate) encoded: Bytes,
}

/// A walk over a range at a pinned revision, resumable after the lock was released.
pub(crate) struct Scan<'q> {
    query: &'q RangeQuery,
    at: i64,
    resume: Option<Box<[u8]>>,
    walk_limit: Option<u64>,
    pub(crate) hits: Vec<Hit>,
    pub(crate) count: i64,
}

impl<'q> Scan<'q> {
    pub(crate) fn new(query: &'q RangeQuery, at: i64) -> Self {
        let walk_limit = query.walk_limit();
        Self { query, at, resume: None, walk_limit, hits: Vec::new(), count: 0 }
    }

    /// Walks up to `budget` keys further and answers whether the range is done.
    pub(crate) fn step(&mut self, index: &Index, budget: usize) -> bool {
        let resume = self.resume.take();
        let mut walk = index.walk(&self.query.range, resume.as_deref());
        let mut last = None;
        for _ in 0..budget {
            let Some((key, history)) = walk.next() else { return true };
            self.visit(key, history);
            last = Some(key);
        }
        self.resume = last.map(Into::into);
        false
    }

    fn visit(&mut self, key: &[u8], history: &KeyHistory) {
        let Some(version) = history.at(self.at) else { return };
        self.count += 1;
        if self.query.count_only || self.is_full() || !self.query.passes(version) {
            return;
        }
        let encoded = match self.query.is_from_index() {
            true => encode_key(key, version),
            false => Bytes::new(),
        };
        self.hits.push(Hit { version: *version, encoded });
    }

    fn is_full(&self) -> bool {
        self.walk_limit.is_some_and(|limit| self.hits.len() as u64 >= limit)
    }
}

/// A key-value without value and lease, as the index alone can give it.
pub(crate) fn encode_key(key: &[u8], version: &Version) -> Bytes {
    let kv = KeyValue {
        key: Bytes::copy_from_slice(key),
        create_revision: version.create,
        mod_revision: version.main,
        version: version.version,
        ..KeyValue::default()
    };
    kv.encode()
}

/// Sorts, cuts and fetches what a walk found.
pub(crate) fn assemble<E: From<RevStoreError>>(
    query: &RangeQuery,
    mut hits: Vec<Hit>,
    fetch: &mut dyn FnMut(RecordRevision) -> Result<Bytes, E>,
) -> Result<(Vec<Bytes>, bool), E> {
    if query.sort_target == SortTarget::Value {
        return by_value(query, hits, fetch);
    }
    let more = order(query, &mut hits);
    let from_index = query.is_from_index();
    let kvs = hits.into_iter().map(|hit| match from_index {
        true => Ok(hit.encoded),
        false => fetch(hit.version.record()),
    });
    Ok((kvs.collect::<Result<_, E>>()?, more))
}

/// Sorts by anything but the value, and cuts; answers whether keys were left out.
pub(crate) fn order(query: &RangeQuery, hits: &mut Vec<Hit>) -> bool {
    let descend = query.sort_order == SortOrder::Descend;
    match query.sort_target {
        SortTarget::Key if descend => hits.reverse(),
        SortTarget::Key | SortTarget::Value => {}
        SortTarget::Version => sort(hits, descend, |hit| hit.version.version),
        SortTarget::Create => sort(hits, descend, |hit| hit.version.create),
        SortTarget::Mod => sort(hits, descend, |hit| hit.version.main),
    }
    cut(query, hits)
}

/// Fetches, sorts by the value, and cuts.
pub(crate) fn by_value<E: From<RevStoreError>>(
    query: &RangeQuery,
    hits: Vec<Hit>,
    fetch: &mut dyn FnMut(RecordRevision) -> Result<Bytes, E>,
) -> Result<(Vec<Bytes>, bool), E> {
    let mut found = Vec::with_capacity(hits.len());
    for hit in hits {
        let encoded = fetch(hit.version.record())?;
        let value = value_of(&encoded).map_err(|error| E::from(fault(error.to_string())))?;
        found.push((value, encoded));
    }
    sort(&mut found, query.sort_order == SortOrder::Descend, |(value, _)| value.clone());
    let more = cut(query, &mut found);
    let kvs = found.into_iter().map(|(_, encoded)| match query.keys_only {
        true => without_value(&encoded).map_err(|error| E::from(fault(error.to_string()))),
        false => Ok(encoded),
    });
    Ok((kvs.collect::<Result<_, E>>()?, more))
}

/// Sorts stably, also downwards: equal items keep the order of keys. Go's sort is not stable beyond
/// twelve items, so no client can rely on another order.
fn sort<T, K: Ord>(items: &mut [T], descend: bool, key: impl Fn(&T) -> K) {
    match descend {
        true => items.sort_by_key(|item| Reverse(key(item))),
        false => items.sort_by_key(key),
    }
}

fn cut<T>(query: &RangeQuery, items: &mut Vec<T>) -> bool {
    let limit =
        usize::try_from(query.limit).unwrap_or(if query.limit > 0 { usize::MAX } else { 0 });
    let more = limit > 0 && items.len() > limit;
    if more {
        items.truncate(limit);
    }
    more
}
