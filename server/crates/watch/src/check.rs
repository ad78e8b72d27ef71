//! Validators of watches: what etcd promises (its robustness suite's checks, W1 to W9), and more.
//!
//! They judge decoded `WatchResponse`s against the history that the log says happened, so that the
//! tests here, the simulator and the tests of real processes use the same ones. [`Violation`] names
//! the promise that was broken:
//!
//! | | promise |
//! |---|---|
//! | ordered | W1: revisions of events never decrease |
//! | unique | W2: no event comes twice |
//! | reliable | W3: between the first and the last event nothing that matches is missing, and nothing else is there |
//! | atomic | W4: a revision is never divided between two responses, unless as fragments |
//! | resumable | W5: the first event is the first that matches from the start revision on |
//! | bookmarkable | W6: after progress r no event up to r comes, before it none is missing |
//! | filtered | W7: no event of a filtered kind or of a key outside of the range |
//! | previous | W8: prev_kv is the version one revision earlier; absent only if compacted or created |
//! | created | W9: create and mod revision say whether a put created the key |
//! | started | nothing before the start revision, also no progress (etcd#20221) |
//! | compacted | a watch is cancelled for compaction only if it needed what is compacted |
//! | complete | a live watch has everything up to the revision that the caller says it must have |

use std::collections::BTreeMap;
use std::fmt;

use proto::etcdserverpb::WatchResponse;
use proto::mvccpb::event::EventType;
use proto::mvccpb::{Event, KeyValue};
use types::{KeyRange, Revision};

use crate::hub::CreateWatch;

/// A promise that was broken, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub promise: &'static str,
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not {}: {}", self.promise, self.detail)
    }
}

impl std::error::Error for Violation {}

/// What happened, by revision.
#[derive(Clone, Debug, Default)]
pub struct History {
    events: BTreeMap<i64, Vec<Event>>,
    /// Each key's versions: its key-value from a revision on, none once it is deleted.
    versions: BTreeMap<Vec<u8>, BTreeMap<i64, Option<KeyValue>>>,
    compact_revision: i64,
}

impl History {
    /// A history without events.
    pub fn new() -> Self {
        Self { compact_revision: -1, ..Self::default() }
    }

    /// Adds the next revision's events, in order; previous versions need not be filled in.
    pub fn push(&mut self, revision: Revision, events: Vec<Event>) {
        for event in &events {
            let kv = event.kv.clone().unwrap_or_default();
            let version = (event.r#type == EventType::Put as i32).then(|| kv.clone());
            self.versions.entry(kv.key.to_vec()).or_default().insert(revision.0, version);
        }
        self.events.insert(revision.0, events);
    }

    /// Notes a compaction.
    pub fn compact(&mut self, revision: Revision) {
        self.compact_revision = self.compact_revision.max(revision.0);
    }

    /// The last revision with events.
    pub fn revision(&self) -> Revision {
        Revision(self.events.last_key_value().map_or(1, |(revision, _)| *revision))
    }

    fn before(&self, key: &[u8], revision: i64) -> Option<&KeyValue> {
        self.versions.get(key)?.range(..revision).next_back()?.1.as_ref()
    }

    /// What a watch gets of the revisions from `from` to `until`.
    fn matching<'a>(
        &'a self,
        watch: &'a Watch<'_>,
        from: i64,
        until: i64,
    ) -> impl Iterator<Item = &'a Event> {
        let until = until.max(from - 1);
        let events = self.events.range(from..until + 1).flat_map(|(_, events)| events);
        events.filter(move |event| watch.wants(event))
    }
}

/// Divides the responses of a stream by watch. What speaks for the whole stream goes to every watch
/// that is alive then. Ids must not be used twice on the stream.
pub fn by_watch(responses: &[WatchResponse]) -> BTreeMap<i64, Vec<WatchResponse>> {
    let mut watches: BTreeMap<i64, Vec<WatchResponse>> = BTreeMap::new();
    for response in responses {
        if response.watch_id != -1 {
            watches.entry(response.watch_id).or_default().push(response.clone());
        } else if !response.created {
            let alive =
                |seen: &&mut Vec<WatchResponse>| seen.last().is_none_or(|last| !last.canceled);
            for seen in watches.values_mut().filter(alive) {
                seen.push(response.clone());
            }
        }
    }
    watches
}

/// One watch: what was asked and what came.
struct Watch<'a> {
    request: &'a CreateWatch,
    range: KeyRange,
    /// The first revision that it may hear of.
    start: i64,
    responses: &'a [WatchResponse],
}

impl Watch<'_> {
    fn wants(&self, event: &Event) -> bool {
        let filtered = match event.r#type == EventType::Put as i32 {
            true => self.request.no_put,
            false => self.request.no_delete,
        };
        !filtered && event.kv.as_ref().is_some_and(|kv| self.range.contains(&kv.key))
    }

    fn events(&self) -> impl Iterator<Item = &Event> {
        self.responses.iter().flat_map(|response| &response.events)
    }
}

/// Judges one watch by everything that came for it, from its creation on. `complete` is the revision
/// up to which it must have everything if it is still alive.
pub fn validate(
    history: &History,
    request: &CreateWatch,
    responses: &[WatchResponse],
    complete: Option<Revision>,
) -> Result<(), Violation> {
    let Some(created) = responses.first().filter(|first| first.created && !first.canceled) else {
        return violation("created", format!("it begins with {:?}", responses.first()));
    };
    let start = match request.start_revision {
        0 => header(created) + 1,
        start => start,
    };
    let Some(range) = request.range() else {
        return violation("created", "its range is empty".to_owned());
    };
    let watch = Watch { request, range, start, responses: &responses[1..] };
    ordered_and_unique(&watch)?;
    atomic(&watch)?;
    filtered(history, &watch)?;
    reliable(history, &watch)?;
    bookmarkable(history, &watch)?;
    ended(history, &watch, complete)
}

fn violation<T>(promise: &'static str, detail: String) -> Result<T, Violation> {
    Err(Violation { promise, detail })
}

fn header(response: &WatchResponse) -> i64 {
    response.header.as_ref().map_or(0, |header| header.revision)
}

fn revision(event: &Event) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}

fn ordered_and_unique(watch: &Watch<'_>) -> Result<(), Violation> {
    let events: Vec<_> = watch.events().collect();
    for (number, pair) in events.windows(2).enumerate() {
        if revision(pair[0]) > revision(pair[1]) {
            return violation("ordered", format!("{:?} before {:?}", pair[0], pair[1]));
        }
        let same = revision(pair[0]) == revision(pair[1]);
        let earlier = events[..=number]
            .iter()
            .rev()
            .take_while(|event| same && revision(event) == revision(pair[1]));
        let key = |event: &Event| event.kv.as_ref().map(|kv| (kv.key.clone(), event.r#type));
        if earlier.into_iter().any(|event| key(event) == key(pair[1])) {
            return violation("unique", format!("{:?} twice", pair[1]));
        }
    }
    Ok(())
}

fn atomic(watch: &Watch<'_>) -> Result<(), Violation> {
    let with_events = watch.responses.iter().filter(|response| !response.events.is_empty());
    let mut previous: Option<&WatchResponse> = None;
    for response in with_events {
        if let Some(previous) = previous.filter(|previous| !previous.fragment) {
            let (last, first) = (previous.events.last(), response.events.first());
            if last.map(revision) == first.map(revision) {
                return violation("atomic", format!("{last:?} and {first:?} in two responses"));
            }
        }
        if response.fragment && !watch.request.fragment {
            return violation("atomic", "a fragment that nobody asked for".to_owned());
        }
        previous = Some(response);
    }
    match previous.is_some_and(|last| last.fragment) && !over(watch) {
        true => violation("atomic", "the last fragment never came".to_owned()),
        false => Ok(()),
    }
}

fn over(watch: &Watch<'_>) -> bool {
    watch.responses.last().is_some_and(|last| last.canceled)
}

fn filtered(history: &History, watch: &Watch<'_>) -> Result<(), Violation> {
    for event in watch.events() {
        let kv = event.kv.clone().unwrap_or_default();
        if !watch.wants(event) {
            return violation("filtered", format!("{event:?}"));
        }
        if kv.mod_revision < watch.start {
            return violation("started", format!("{event:?} before {}", watch.start));
        }
        let put = event.r#type == EventType::Put as i32;
        let before = history.before(&kv.key, kv.mod_revision);
        let creates = put && kv.create_revision == kv.mod_revision;
        let previous = before.filter(|_| watch.request.prev_kv && !creates);
        let may_be_absent = kv.mod_revision - 1 < history.compact_revision;
        if event.prev_kv.as_ref() != previous && !(event.prev_kv.is_none() && may_be_absent) {
            return violation("previous", format!("{event:?}, expected {previous:?}"));
        }
        let known = history.events.get(&kv.mod_revision).into_iter().flatten();
        let replaced_within =
            known.filter(|event| event.kv.as_ref().is_some_and(|k| k.key == kv.key));
        if put && replaced_within.count() == 1 && creates != before.is_none() {
            return violation("created", format!("{event:?} after {before:?}"));
        }
    }
    Ok(())
}

/// What came is exactly what matches, from the start to the last event.
fn reliable(history: &History, watch: &Watch<'_>) -> Result<(), Violation> {
    let Some(last) = watch.events().last().map(revision) else { return Ok(()) };
    let mut expected = history.matching(watch, watch.start, last);
    for (number, event) in watch.events().enumerate() {
        let bare = Event { prev_kv: None, ..event.clone() };
        let promise = if number == 0 { "resumable" } else { "reliable" };
        match expected.next() {
            Some(expected) if (Event { prev_kv: None, ..expected.clone() }) == bare => {}
            expected => return violation(promise, format!("{event:?} where {expected:?} was due")),
        }
    }
    // A fragmented revision may have been cut by the end of the watch.
    let cut = watch.responses.iter().rfind(|r| !r.events.is_empty()).is_some_and(|r| r.fragment);
    match expected.next().filter(|_| !cut) {
        Some(missing) => violation("reliable", format!("{missing:?} is missing")),
        None => Ok(()),
    }
}

fn bookmarkable(history: &History, watch: &Watch<'_>) -> Result<(), Violation> {
    let (mut progress, mut seen, mut last) = (0, 0, 0);
    for response in watch.responses {
        if let Some(first) =
            response.events.first().map(revision).filter(|first| *first <= progress)
        {
            return violation(
                "bookmarkable",
                format!("event of {first} after progress {progress}"),
            );
        }
        seen += response.events.len();
        last = response.events.last().map_or(last, revision);
        if !response.events.is_empty() || response.canceled || response.created {
            continue;
        }
        let at = header(response);
        if at < progress || at < last {
            let detail = format!("progress {at} after progress {progress} and event of {last}");
            return violation("bookmarkable", detail);
        }
        if watch.request.start_revision != 0 && at < watch.start {
            return violation("started", format!("progress {at} before {}", watch.start));
        }
        let due = history.matching(watch, watch.start, at).count();
        if due != seen {
            return violation(
                "bookmarkable",
                format!("{seen} of {due} events before progress {at}"),
            );
        }
        progress = at;
    }
    Ok(())
}

fn ended(
    history: &History,
    watch: &Watch<'_>,
    complete: Option<Revision>,
) -> Result<(), Violation> {
    let last = watch.events().last().map(revision);
    if let Some(end) = watch.responses.last().filter(|last| last.canceled) {
        let next = last.map_or(watch.start, |last| last + 1);
        let compacted = end.compact_revision;
        let honest = next < compacted && compacted <= history.compact_revision && header(end) == 0;
        return match compacted != 0 && !honest {
            true => violation("compacted", format!("{end:?} when {next} was next")),
            false => Ok(()),
        };
    }
    let Some(complete) = complete else { return Ok(()) };
    let (due, seen) =
        (history.matching(watch, watch.start, complete.0).count(), watch.events().count());
    match due == seen {
        true => Ok(()),
        false => violation(
            "complete",
            format!("{seen} of {due} events up to {complete}, the last {last:?}"),
        ),
    }
}
