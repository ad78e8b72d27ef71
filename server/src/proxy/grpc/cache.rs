//! Ranges that were read before, for serializable reads.
//!
//! As in etcd's proxy every range that passes is remembered, linearizable ones too, and a serializable
//! read takes what is remembered until a write that passes touches one of its keys. A write that reaches
//! the cluster another way is not seen: such a read is as old as it may be, which is what its client has
//! asked for.
//!
//! Four things are stricter than in etcd. What one caller has read is remembered for that caller (its
//! token) alone, so that nobody reads here what the members would refuse; and only for a few seconds, since
//! the proxy does not see when a permission is taken back or a token ends. A range that was under way
//! while a write to it passed is not remembered, so that a client never loses sight of its own write. And
//! the bytes are bounded as well as the number.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use proto::etcdserverpb::{RangeRequest, RangeResponse};
use tokio::time::Instant;
use tonic::Status;

use super::metrics::ProxyMetrics;

/// How many ranges are remembered, as in etcd.
const RANGES_MAX: usize = 2048;
/// How many bytes all of them may have.
const BYTES_MAX: usize = 64 * 1024 * 1024;
/// What is longer is not remembered.
const RANGE_BYTES_MAX: usize = BYTES_MAX / 16;
/// For how long a range is remembered.
const AGE_MAX: Duration = Duration::from_secs(10);
/// How many writes are looked through before a range that was under way meanwhile is remembered. When
/// there were more, it is not.
const WRITES_KNOWN: usize = 1024;

/// Keys from one on up to, and without, another; without an end when there is none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Span {
    start: Bytes,
    end: Option<Bytes>,
}

impl Span {
    /// What `key` and `range_end` of a request mean.
    pub(super) fn of(key: &Bytes, range_end: &Bytes) -> Self {
        let end = match &range_end[..] {
            [] => Some([&key[..], b"\0"].concat().into()),
            [0] => None,
            _ => Some(range_end.clone()),
        };
        Self { start: key.clone(), end }
    }

    fn overlaps(&self, other: &Span) -> bool {
        let before = |key: &Bytes, end: &Option<Bytes>| end.as_ref().is_none_or(|end| key < end);
        before(&self.start, &other.end) && before(&other.start, &self.end)
    }
}

/// Which range it is, and whose.
#[derive(Clone, Debug)]
pub(super) struct Question {
    /// The caller and the request; equal for equal questions.
    encoded: Bytes,
    revision: i64,
    span: Span,
}

impl Question {
    pub(super) fn new(token: &[u8], range: &RangeRequest) -> Self {
        let range = RangeRequest { serializable: true, ..range.clone() };
        let mut encoded = Vec::with_capacity(token.len() + 8 + range.encoded_len());
        encoded.extend_from_slice(&(token.len() as u64).to_be_bytes());
        encoded.extend_from_slice(token);
        encoded.extend_from_slice(&range.encode_to_vec());
        let span = Span::of(&range.key, &range.range_end);
        Self { encoded: encoded.into(), revision: range.revision, span }
    }
}

/// The moment at which a range was asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked(u64);

/// What is remembered.
#[derive(Debug)]
pub(super) struct Cache {
    state: Mutex<State>,
    metrics: ProxyMetrics,
}

#[derive(Debug, Default)]
struct State {
    numbers: HashMap<Bytes, u64>,
    entries: HashMap<u64, Entry>,
    /// Entries by when they were used last.
    ages: BTreeMap<u64, u64>,
    /// Entries that writes change, by what they cover.
    spans: BTreeMap<Span, BTreeSet<u64>>,
    bytes: usize,
    clock: u64,
    /// The last writes, by when they were answered.
    writes: VecDeque<(u64, Span)>,
    /// When the last write was answered that is not among `writes` any more.
    writes_dropped: u64,
    compacted: i64,
}

#[derive(Debug)]
struct Entry {
    question: Question,
    response: RangeResponse,
    bytes: usize,
    used: u64,
    since: Instant,
}

impl Cache {
    pub(super) fn new(metrics: ProxyMetrics) -> Self {
        Self { state: Mutex::default(), metrics }
    }

    /// What is remembered for a question; nothing if nothing is.
    pub(super) fn get(&self, question: &Question) -> Result<Option<RangeResponse>, Status> {
        let mut state = self.lock();
        if question.revision > 0 && question.revision < state.compacted {
            if let Some(number) = state.numbers.get(&question.encoded).copied() {
                state.remove(number);
            }
            self.metrics.cache_hits.inc();
            return Err(Status::out_of_range(super::COMPACTED));
        }
        let found = state.use_again(question);
        match found.is_some() {
            true => self.metrics.cache_hits.inc(),
            false => self.metrics.cache_misses.inc(),
        }
        Ok(found)
    }

    /// Marks the moment before a range is asked for.
    pub(super) fn asked(&self) -> Asked {
        Asked(self.lock().clock)
    }

    /// Remembers the answer of the members, unless a write to the same keys passed in between.
    pub(super) fn remember(&self, asked: Asked, question: Question, response: &RangeResponse) {
        let mut state = self.lock();
        state.remember(asked, question, response);
        self.metrics.cache_keys.set(state.entries.len() as f64);
    }

    /// A write to these keys was answered, or its answer never came.
    pub(super) fn written(&self, spans: impl IntoIterator<Item = Span>) {
        let mut state = self.lock();
        for span in spans {
            state.forget(&span);
            let now = state.tick();
            state.writes.push_back((now, span));
            if state.writes.len() > WRITES_KNOWN
                && let Some((dropped, _)) = state.writes.pop_front()
            {
                state.writes_dropped = dropped;
            }
        }
        self.metrics.cache_keys.set(state.entries.len() as f64);
    }

    /// Forgets what is known of these keys: somebody doubts it.
    pub(super) fn forget(&self, spans: impl IntoIterator<Item = Span>) {
        let mut state = self.lock();
        spans.into_iter().for_each(|span| state.forget(&span));
        self.metrics.cache_keys.set(state.entries.len() as f64);
    }

    /// Revisions before this one are gone.
    pub(super) fn compacted(&self, revision: i64) {
        let mut state = self.lock();
        state.compacted = state.compacted.max(revision);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn use_again(&mut self, question: &Question) -> Option<RangeResponse> {
        let number = *self.numbers.get(&question.encoded)?;
        if self.entries.get(&number)?.since.elapsed() >= AGE_MAX {
            self.remove(number);
            return None;
        }
        let now = self.tick();
        let entry = self.entries.get_mut(&number)?;
        self.ages.remove(&entry.used);
        entry.used = now;
        self.ages.insert(now, number);
        Some(entry.response.clone())
    }

    fn remember(&mut self, asked: Asked, question: Question, response: &RangeResponse) {
        let Asked(asked) = asked;
        let bytes = question.encoded.len() + response.encoded_len();
        let span = question.span.clone();
        let pinned = question.revision != 0;
        let changed = || {
            asked < self.writes_dropped
                || self
                    .writes
                    .iter()
                    .rev()
                    .take_while(|(at, _)| *at > asked)
                    .any(|(_, write)| write.overlaps(&span))
        };
        if bytes > RANGE_BYTES_MAX
            || (pinned && question.revision < self.compacted)
            || (!pinned && changed())
        {
            return;
        }
        if let Some(number) = self.numbers.get(&question.encoded).copied() {
            self.remove(number);
        }
        let number = self.tick();
        if !pinned {
            self.spans.entry(span).or_default().insert(number);
        }
        self.ages.insert(number, number);
        self.numbers.insert(question.encoded.clone(), number);
        let response = response.clone();
        let since = Instant::now();
        self.entries.insert(number, Entry { question, response, bytes, used: number, since });
        self.bytes += bytes;
        while self.entries.len() > RANGES_MAX || self.bytes > BYTES_MAX {
            let Some((_, oldest)) = self.ages.first_key_value() else { return };
            self.remove(*oldest);
        }
    }

    fn remove(&mut self, number: u64) {
        let Some(entry) = self.entries.remove(&number) else { return };
        self.bytes -= entry.bytes;
        self.ages.remove(&entry.used);
        self.numbers.remove(&entry.question.encoded);
        let span = &entry.question.span;
        if let Some(numbers) = self.spans.get_mut(span) {
            numbers.remove(&number);
            if numbers.is_empty() {
                self.spans.remove(span);
            }
        }
    }

    fn forget(&mut self, span: &Span) {
        let touched = self.spans.iter().filter(|(known, _)| known.overlaps(span));
        let numbers: Vec<u64> = touched.flat_map(|(_, numbers)| numbers).copied().collect();
        numbers.into_iter().for_each(|number| self.remove(number));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(key: &str, end: &str, revision: i64) -> RangeRequest {
        RangeRequest {
            key: key.to_owned().into(),
            range_end: end.to_owned().into(),
            revision,
            ..RangeRequest::default()
        }
    }

    fn span(key: &str, end: &str) -> Span {
        Span::of(&key.to_owned().into(), &end.to_owned().into())
    }

    fn answer(count: i64) -> RangeResponse {
        RangeResponse { count, ..RangeResponse::default() }
    }

    fn cache() -> Cache {
        Cache::new(ProxyMetrics::register(&prometheus::Registry::new()).unwrap())
    }

    #[test]
    fn ranges_are_remembered_for_who_read_them_until_a_key_of_theirs_is_written() {
        let cache = cache();
        let question = |token: &str| Question::new(token.as_bytes(), &range("a", "c", 0));
        cache.remember(cache.asked(), question("me"), &answer(7));
        assert_eq!(cache.get(&question("me")).unwrap(), Some(answer(7)));
        assert_eq!(cache.get(&question("you")).unwrap(), None);
        cache.written([span("c", "")]);
        assert_eq!(cache.get(&question("me")).unwrap(), Some(answer(7)), "c is outside");
        cache.written([span("b", "")]);
        assert_eq!(cache.get(&question("me")).unwrap(), None);
    }

    /// A permission may have been taken back since.
    #[tokio::test(start_paused = true)]
    async fn what_was_read_long_ago_is_asked_again() {
        let cache = cache();
        let question = Question::new(b"me", &range("a", "", 0));
        cache.remember(cache.asked(), question.clone(), &answer(7));
        tokio::time::advance(AGE_MAX - Duration::from_millis(1)).await;
        assert_eq!(cache.get(&question).unwrap(), Some(answer(7)));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(cache.get(&question).unwrap(), None, "also if it was used meanwhile");
    }

    #[test]
    fn a_range_that_was_under_way_while_its_key_was_written_is_not_remembered() {
        let cache = cache();
        let question = Question::new(b"", &range("a", "", 0));
        let asked = cache.asked();
        cache.written([span("a", "")]);
        cache.remember(asked, question.clone(), &answer(1));
        assert_eq!(cache.get(&question).unwrap(), None);
        let asked = cache.asked();
        for _ in 0..=WRITES_KNOWN {
            cache.written([span("b", "")]);
        }
        cache.remember(asked, question.clone(), &answer(1));
        assert_eq!(cache.get(&question).unwrap(), None, "too many writes to be sure");
        cache.remember(cache.asked(), question.clone(), &answer(1));
        assert_eq!(cache.get(&question).unwrap(), Some(answer(1)));
    }

    #[test]
    fn a_revision_stays_what_it_was_until_it_is_compacted() {
        let cache = cache();
        let at = |revision| Question::new(b"", &range("a", "", revision));
        cache.remember(cache.asked(), at(3), &answer(1));
        cache.written([span("a", "")]);
        assert_eq!(cache.get(&at(3)).unwrap(), Some(answer(1)));
        cache.compacted(3);
        assert_eq!(cache.get(&at(3)).unwrap(), Some(answer(1)), "the revision itself is kept");
        cache.compacted(4);
        let refused = cache.get(&at(3)).unwrap_err();
        assert_eq!(refused.message(), "etcdserver: mvcc: required revision has been compacted");
        assert_eq!(refused.code(), tonic::Code::OutOfRange);
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first() {
        let cache = cache();
        let at = |number: usize| Question::new(b"", &range(&format!("{number:05}"), "", 0));
        for number in 0..RANGES_MAX {
            cache.remember(cache.asked(), at(number), &answer(1));
        }
        assert!(cache.get(&at(0)).unwrap().is_some());
        cache.remember(cache.asked(), at(RANGES_MAX), &answer(1));
        assert!(cache.get(&at(0)).unwrap().is_some());
        assert!(cache.get(&at(1)).unwrap().is_none());
        let state = cache.lock();
        assert_eq!(state.entries.len(), RANGES_MAX);
        assert_eq!((state.ages.len(), state.numbers.len()), (RANGES_MAX, RANGES_MAX));
    }

    proptest! {
        #[test]
        fn spans_overlap_when_they_have_a_key_in_common(
            a in "[a-c]{1,2}", a_end in "(|\0|[a-d]{1,2})", b in "[a-c]{1,2}", b_end in "(|\0|[a-d]{1,2})",
        ) {
            let keys: Vec<String> = ["", "a", "b", "c", "d"]
                .iter()
                .flat_map(|first| ["", "\0", "a", "b", "c", "d"].map(|second| format!("{first}{second}")))
                .flat_map(|key| [key.clone(), format!("{key}\0")])
                .filter(|key| !key.is_empty())
                .collect();
            let holds = |start: &str, end: &str, key: &str| match end {
                "" => key == start,
                "\0" => key >= start,
                _ => key >= start && key < end,
            };
            let common = keys.iter().any(|key| holds(&a, &a_end, key) && holds(&b, &b_end, key));
            let empty = |start: &str, end: &str| !matches!(end, "" | "\0") && end <= start;
            if !empty(&a, &a_end) && !empty(&b, &b_end) {
                prop_assert_eq!(span(&a, &a_end).overlaps(&span(&b, &b_end)), common);
            }
        }
    }
}
