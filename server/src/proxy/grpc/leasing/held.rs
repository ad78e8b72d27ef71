//! Which keys the proxy holds, and what it knows of them: the bookkeeping, without any I/O.
//!
//! Invariants:
//!
//! - An answer is known only of a key that is held, while no write of our own is under way on it, and only
//!   until the session may have ended. Nobody else writes the key meanwhile, so the answer is what the
//!   members would say.
//! - An answer is taken only if no write of our own has begun since it was asked for (`changes`).
//! - A key whose write has an unknown end is let go at once. It is held again only under a newer revision,
//!   which the condition of that write does not meet any more.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use proto::etcdserverpb::{RangeRequest, RangeResponse};
use tokio::time::Instant;

/// How many keys are held at most.
const KEYS_MAX: usize = 4096;
/// How long an answer may be that is kept.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// How long a key that somebody else wanted is left alone, as in etcd.
const BACK_OFF: Duration = Duration::from_secs(2);

/// The keys of one proxy.
#[derive(Debug, Default)]
pub(super) struct Held {
    session: Option<Session>,
    keys: BTreeMap<Bytes, Key>,
    /// When keys were taken away.
    taken: BTreeMap<Bytes, Instant>,
    /// The newest revision of the members that was seen.
    newest: i64,
    clock: u64,
}

#[derive(Clone, Copy, Debug)]
struct Session {
    lease: i64,
    /// Before this the members do not let its lease end.
    valid_until: Instant,
}

#[derive(Debug)]
struct Key {
    /// The revision since when it is held; nothing while that is being asked for.
    since: Option<i64>,
    answer: Option<RangeResponse>,
    /// Writes of our own that are under way.
    writers: usize,
    /// When something has changed last, by `clock`.
    changes: u64,
    /// When it was read last, by `clock`.
    used: u64,
}

/// What a read of a key has to do.
#[derive(Debug, PartialEq)]
pub(super) enum Look {
    /// Nothing: this is the answer.
    Known(RangeResponse),
    /// Ask the members.
    Ask,
    /// Ask the members, and hand the answer to [`Held::fill`] with this number.
    Fill(u64),
    /// Try to hold the key with this lease, and hand the outcome to [`Held::acquired`] with this number.
    /// Another key has to be let go for it, if one is named.
    Acquire { lease: i64, number: u64, instead: Option<Holding> },
}

/// A key that is held, and since when.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Holding {
    pub(super) key: Bytes,
    pub(super) since: i64,
}

impl Held {
    pub(super) fn begin_session(&mut self, lease: i64, valid_until: Instant) {
        self.session = Some(Session { lease, valid_until });
    }

    pub(super) fn renewed(&mut self, until: Instant) {
        if let Some(session) = &mut self.session {
            session.valid_until = session.valid_until.max(until);
        }
    }

    pub(super) fn is_valid(&self, now: Instant) -> bool {
        self.session.is_some_and(|session| now < session.valid_until)
    }

    pub(super) fn end_session(&mut self) {
        self.session = None;
        self.keys.clear();
    }

    /// The members were at this revision.
    pub(super) fn seen(&mut self, revision: i64) {
        self.newest = self.newest.max(revision);
    }

    pub(super) fn look(&mut self, key: &Bytes, now: Instant) -> Look {
        let Some(session) = self.session.filter(|session| now < session.valid_until) else {
            return Look::Ask;
        };
        let (number, newest) = (self.tick(), self.newest);
        if let Some(known) = self.keys.get_mut(key) {
            known.used = number;
            return match &known.answer {
                _ if known.since.is_none() || known.writers > 0 => Look::Ask,
                None => Look::Fill(known.changes),
                Some(answer) => {
                    let mut answer = answer.clone();
                    // It is as true now as when it was asked for.
                    if let Some(header) = &mut answer.header {
                        header.revision = header.revision.max(newest);
                    }
                    Look::Known(answer)
                }
            };
        }
        self.taken.retain(|_, at| now < *at + BACK_OFF);
        if self.taken.contains_key(key) {
            return Look::Ask;
        }
        let instead = match self.keys.len() < KEYS_MAX {
            true => None,
            false => match self.let_go_of_the_oldest() {
                Some(holding) => Some(holding),
                None => return Look::Ask,
            },
        };
        let (since, answer) = (None, None);
        let made = Key { since, answer, writers: 0, changes: number, used: number };
        self.keys.insert(key.clone(), made);
        Look::Acquire { lease: session.lease, number, instead }
    }

    /// The key is held since this revision, and has this value. False if that is not wanted any more.
    pub(super) fn acquired(
        &mut self,
        key: &Bytes,
        number: u64,
        since: i64,
        answer: &RangeResponse,
    ) -> bool {
        self.seen(since);
        let Some(known) = self.keys.get_mut(key) else { return false };
        if known.changes != number || known.since.is_some() {
            return false;
        }
        known.since = Some(since);
        self.fill(key, number, answer);
        true
    }

    /// Somebody else holds the key, or nobody knows.
    pub(super) fn not_acquired(&mut self, key: &Bytes, number: u64) {
        let is_it = |known: &Key| known.changes == number && known.since.is_none();
        if self.keys.get(key).is_some_and(is_it) {
            self.keys.remove(key);
        }
    }

    /// What the members have said of a key that is held.
    pub(super) fn fill(&mut self, key: &Bytes, number: u64, answer: &RangeResponse) {
        // A key with a lease ends without any write.
        let may_end = answer.kvs.iter().any(|kv| kv.lease != 0);
        if let Some(known) = self.keys.get_mut(key)
            && known.changes == number
            && known.since.is_some()
            && known.writers == 0
            && !may_end
            && answer.encoded_len() <= ANSWER_BYTES_MAX
        {
            known.answer = Some(answer.clone());
        }
    }

    /// A write of a key begins. Tells since when the key is held; such a write has to be ended.
    pub(super) fn begin_write(&mut self, key: &Bytes) -> Option<Holding> {
        let number = self.tick();
        let known = self.keys.get_mut(key)?;
        let since = known.since?;
        known.writers += 1;
        known.answer = None;
        known.changes = number;
        Some(Holding { key: key.clone(), since })
    }

    /// The members have answered a write.
    pub(super) fn end_write(&mut self, holding: &Holding) {
        let number = self.tick();
        if let Some(known) = self.keys.get_mut(&holding.key)
            && known.since == Some(holding.since)
        {
            known.writers = known.writers.saturating_sub(1);
            known.changes = number;
        }
    }

    /// The key is not held any more, if it was since that revision or is being asked for.
    pub(super) fn let_go(&mut self, holding: &Holding, now: Instant) {
        let is_it = |known: &Key| known.since.is_none_or(|since| since == holding.since);
        if self.keys.get(&holding.key).is_some_and(is_it) {
            self.keys.remove(&holding.key);
        }
        self.taken.retain(|_, at| now < *at + BACK_OFF);
        if self.taken.len() < KEYS_MAX {
            self.taken.insert(holding.key.clone(), now);
        }
    }

    /// The members have deleted what said that the key is held, at this revision.
    pub(super) fn lost(&mut self, key: &Bytes, at: i64) {
        let is_older = |known: &Key| known.since.is_some_and(|since| since < at);
        if self.keys.get(key).is_some_and(is_older) {
            self.keys.remove(key);
        }
    }

    /// Whether something says that we hold a key which we do not know of.
    pub(super) fn is_stray(&self, holding: &Holding) -> bool {
        match self.keys.get(&holding.key) {
            Some(known) => known.since.is_some_and(|since| since != holding.since),
            None => true,
        }
    }

    fn let_go_of_the_oldest(&mut self) -> Option<Holding> {
        let idle = self.keys.iter().filter(|(_, known)| known.writers == 0);
        let held = idle.filter_map(|(key, known)| Some((known.used, key, known.since?)));
        let (_, key, since) = held.min_by_key(|(used, _, _)| *used)?;
        let holding = Holding { key: key.clone(), since };
        self.keys.remove(&holding.key);
        Some(holding)
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}

/// What of a key's answer a request asks for.
pub(super) fn part(mut answer: RangeResponse, request: &RangeRequest) -> RangeResponse {
    if request.count_only {
        answer.kvs.clear();
    }
    if request.keys_only {
        answer.kvs.iter_mut().for_each(|kv| kv.value.clear());
    }
    answer
}

#[cfg(test)]
mod tests {
    use proto::etcdserverpb::ResponseHeader;
    use proto::mvccpb::KeyValue;

    use super::*;

    fn answer(revision: i64, lease: i64) -> RangeResponse {
        let kv = KeyValue { mod_revision: revision, lease, ..KeyValue::default() };
        let header = Some(ResponseHeader { revision, ..ResponseHeader::default() });
        RangeResponse { header, kvs: vec![kv], count: 1, ..RangeResponse::default() }
    }

    fn key() -> Bytes {
        Bytes::from_static(b"k")
    }

    /// A session until a minute from now, and what it holds.
    fn holding(since: i64) -> (Held, Instant, Holding) {
        let (mut held, now) = (Held::default(), Instant::now());
        held.begin_session(7, now + Duration::from_secs(60));
        let Look::Acquire { lease: 7, number, instead: None } = held.look(&key(), now) else {
            panic!("a free key is acquired");
        };
        assert_eq!(held.look(&key(), now), Look::Ask, "while it is being acquired");
        assert!(held.acquired(&key(), number, since, &answer(since, 0)));
        assert_eq!(held.look(&key(), now), Look::Known(answer(since, 0)));
        (held, now, Holding { key: key(), since })
    }

    #[test]
    fn nothing_is_known_after_the_session_may_have_ended() {
        let (mut held, now, _) = holding(5);
        let later = now + Duration::from_secs(60);
        assert_eq!(held.look(&key(), later), Look::Ask);
        held.renewed(later + Duration::from_secs(60));
        assert_eq!(held.look(&key(), later), Look::Known(answer(5, 0)));
        held.end_session();
        assert_eq!(held.look(&key(), now), Look::Ask);
    }

    #[test]
    fn what_was_asked_before_or_during_a_write_is_not_known_after_it() {
        let (mut held, now, _) = holding(5);
        let writing = held.begin_write(&key()).unwrap();
        assert_eq!(held.look(&key(), now), Look::Ask);
        held.end_write(&writing);
        let Look::Fill(number) = held.look(&key(), now) else { panic!("it is held") };
        let second = held.begin_write(&key()).unwrap();
        held.fill(&key(), number, &answer(6, 0));
        assert_eq!(held.look(&key(), now), Look::Ask, "a write is under way");
        held.end_write(&second);
        held.fill(&key(), number, &answer(6, 0));
        let Look::Fill(number) = held.look(&key(), now) else { panic!("6 is too old") };
        held.fill(&key(), number, &answer(7, 0));
        assert_eq!(held.look(&key(), now), Look::Known(answer(7, 0)));
    }

    #[test]
    fn a_key_that_can_end_by_itself_is_never_known() {
        let (mut held, now, _) = holding(5);
        let writing = held.begin_write(&key()).unwrap();
        held.end_write(&writing);
        let Look::Fill(number) = held.look(&key(), now) else { panic!("it is held") };
        held.fill(&key(), number, &answer(6, 99));
        assert!(matches!(held.look(&key(), now), Look::Fill(_)));
    }

    #[test]
    fn a_key_that_was_taken_away_is_left_alone_for_a_while() {
        let (mut held, now, taken) = holding(5);
        held.let_go(&taken, now);
        assert_eq!(held.look(&key(), now), Look::Ask);
        assert!(matches!(held.look(&key(), now + BACK_OFF), Look::Acquire { .. }));
    }

    #[test]
    fn a_key_that_was_taken_away_before_it_was_had_is_not_held() {
        let (mut held, now) = (Held::default(), Instant::now());
        held.begin_session(7, now + Duration::from_secs(60));
        let Look::Acquire { number, .. } = held.look(&key(), now) else { panic!("it is free") };
        held.let_go(&Holding { key: key(), since: 5 }, now);
        assert!(!held.acquired(&key(), number, 5, &answer(5, 0)));
        assert!(held.is_stray(&Holding { key: key(), since: 5 }));
        assert_eq!(held.look(&key(), now), Look::Ask);
    }

    #[test]
    fn only_an_end_that_is_newer_than_the_beginning_counts() {
        let (mut held, now, _) = holding(5);
        held.lost(&key(), 4);
        assert_eq!(held.look(&key(), now), Look::Known(answer(5, 0)));
        held.lost(&key(), 6);
        assert!(matches!(held.look(&key(), now), Look::Acquire { .. }));
    }

    #[test]
    fn revisions_of_answers_do_not_go_back() {
        let (mut held, now, _) = holding(5);
        held.seen(9);
        let Look::Known(known) = held.look(&key(), now) else { panic!("it is held") };
        assert_eq!(known.header.unwrap().revision, 9);
        assert_eq!(known.kvs, answer(5, 0).kvs);
    }

    #[test]
    fn the_key_that_was_not_read_for_longest_makes_room() {
        let (mut held, now, first) = holding(1);
        for number in 1..KEYS_MAX {
            let key = Bytes::from(number.to_string());
            let Look::Acquire { number, instead: None, .. } = held.look(&key, now) else {
                panic!("there is room");
            };
            assert!(held.acquired(&key, number, 2, &answer(2, 0)));
        }
        let Look::Acquire { instead, .. } = held.look(&"one more".into(), now) else {
            panic!("there is room again");
        };
        assert_eq!(instead, Some(first));
        assert_eq!(held.keys.len(), KEYS_MAX);
    }
}
