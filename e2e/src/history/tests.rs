//! A right history passes; each kind of wrong history is found.

use super::*;

fn kv(key: Key, value: u64, create_revision: i64, mod_revision: i64, version: i64) -> KeyValue {
    KeyValue { key, value, create_revision, mod_revision, version }
}

fn put_event(kv: KeyValue) -> Event {
    Event { revision: kv.mod_revision, key: kv.key, put: Some(kv) }
}

fn call(called: u64, returned: u64, request: Request, revision: i64, outcome: Outcome) -> Call {
    let answered = Some((returned, Answer { revision, outcome }));
    Call { connection: 1, client: 1, called, request, answered }
}

fn unanswered(called: u64, request: Request) -> Call {
    Call { connection: 1, client: 2, called, request, answered: None }
}

fn put(key: Key, value: u64) -> Request {
    Request::Put { key, value }
}

fn get(key: Key) -> Request {
    Request::Read { key: Some(key), serializable: false }
}

fn stale_get(key: Key) -> Request {
    Request::Read { key: Some(key), serializable: true }
}

/// Put 1, swap both keys at once, delete without an answer, failed swap, reads.
fn right() -> (Vec<Call>, Vec<Event>) {
    let swap = Request::Swap { key: 1, expected: 2, puts: vec![(1, 20), (2, 21)] };
    let failed = Request::Swap { key: 1, expected: 2, puts: vec![(1, 30)] };
    let calls = vec![
        call(10, 20, put(1, 10), 2, Outcome::Written),
        call(15, 40, swap, 3, Outcome::Written),
        call(41, 50, get(1), 3, Outcome::Found(vec![kv(1, 20, 2, 3, 2)])),
        unanswered(45, Request::Delete { key: 1 }),
        call(60, 70, failed, 4, Outcome::Found(vec![])),
        unanswered(61, put(7, 99)),
        call(80, 90, stale_get(1), 2, Outcome::Found(vec![kv(1, 10, 2, 2, 1)])),
        call(91, 95, Request::Delete { key: 1 }, 4, Outcome::Deleted(false)),
        call(
            96,
            99,
            Request::Read { key: None, serializable: false },
            4,
            Outcome::Found(vec![kv(2, 21, 3, 3, 1)]),
        ),
    ];
    let events = vec![
        put_event(kv(1, 10, 2, 2, 1)),
        put_event(kv(1, 20, 2, 3, 2)),
        put_event(kv(2, 21, 3, 3, 1)),
        Event { revision: 4, key: 1, put: None },
    ];
    (calls, events)
}

fn violations(calls: &[Call], events: &[Event]) -> Vec<Violation> {
    match Timeline::replay(events) {
        Ok(timeline) => check(calls, &timeline).1,
        Err(violation) => vec![violation],
    }
}

#[test]
fn a_right_history_passes() {
    let (calls, events) = right();
    let (checked, violations) = check(&calls, &Timeline::replay(&events).unwrap());
    assert_eq!(violations, []);
    let expected =
        Checked { calls: 9, answered: 7, acknowledged_writes: 2, resolved_writes: 1, reads: 5 };
    assert_eq!(checked, expected);
}

#[test]
fn a_lost_acknowledged_write_is_found() {
    let (mut calls, events) = right();
    calls.push(call(100, 110, put(3, 77), 5, Outcome::Written));
    let found = violations(&calls, &events);
    assert!(matches!(found[..], [Violation::LostWrite { call: 9, revision: 5, .. }]), "{found:?}");
}

#[test]
fn a_stale_linearizable_read_is_found() {
    let (mut calls, events) = right();
    calls.push(call(100, 110, get(1), 3, Outcome::Found(vec![kv(1, 20, 2, 3, 2)])));
    assert_eq!(violations(&calls, &events), [Violation::Stale { call: 9, revision: 3, floor: 4 }]);
}

#[test]
fn a_read_of_another_state_is_found() {
    let (mut calls, events) = right();
    calls[2].answered =
        Some((50, Answer { revision: 3, outcome: Outcome::Found(vec![kv(1, 10, 2, 2, 1)]) }));
    let found = violations(&calls, &events);
    assert!(matches!(found[..], [Violation::WrongRead { call: 2, revision: 3, .. }]), "{found:?}");
}

#[test]
fn a_read_of_a_write_that_had_not_begun_is_found() {
    let (mut calls, mut events) = right();
    calls.push(call(200, 210, put(3, 77), 5, Outcome::Written));
    events.push(put_event(kv(3, 77, 5, 5, 1)));
    calls.push(call(150, 160, get(3), 5, Outcome::Found(vec![kv(3, 77, 5, 5, 1)])));
    assert_eq!(violations(&calls, &events), [Violation::Stale { call: 9, revision: 5, floor: 5 }]);
    calls[10].request = stale_get(3);
    assert_eq!(violations(&calls, &events), [Violation::FromTheFuture { call: 10, revision: 5 }]);
}

#[test]
fn writes_in_the_wrong_order_are_found() {
    let calls = [
        call(10, 20, put(1, 1), 3, Outcome::Written),
        call(30, 40, put(1, 2), 2, Outcome::Written),
    ];
    let events = [put_event(kv(1, 2, 2, 2, 1)), put_event(kv(1, 1, 2, 3, 2))];
    assert_eq!(violations(&calls, &events), [Violation::Stale { call: 1, revision: 2, floor: 3 }]);
}

#[test]
fn a_write_that_took_effect_twice_is_found() {
    let (calls, mut events) = right();
    events.push(put_event(kv(1, 10, 5, 5, 1)));
    assert_eq!(violations(&calls, &events), [Violation::WrittenTwice { call: 0, revision: 5 }]);
}

#[test]
fn an_event_of_nobody_is_found() {
    let (calls, mut events) = right();
    let event = put_event(kv(5, 55, 5, 5, 1));
    events.push(event.clone());
    assert_eq!(violations(&calls, &events), [Violation::Phantom { event }]);
    let event = Event { revision: 6, key: 5, put: None };
    events.push(event.clone());
    assert!(violations(&calls, &events).contains(&Violation::Phantom { event }));
}

#[test]
fn a_swap_against_its_comparison_is_found() {
    let (mut calls, events) = right();
    if let Request::Swap { expected, .. } = &mut calls[1].request {
        *expected = 1;
    }
    assert_eq!(
        violations(&calls, &events),
        [Violation::WrongComparison { call: 1, revision: 3, found: 2 }]
    );
}

#[test]
fn a_torn_transaction_is_found() {
    let (calls, mut events) = right();
    events.remove(2);
    events[2] = Event { revision: 4, key: 1, put: None };
    let found = violations(&calls, &events);
    assert!(matches!(found[0], Violation::LostWrite { call: 1, revision: 3, .. }), "{found:?}");
}

#[test]
fn a_gap_in_the_watch_is_found() {
    let (calls, mut events) = right();
    events.remove(0);
    assert_eq!(violations(&calls, &events), [Violation::HistoryHasGap { after: 1, next: 3 }]);
}

#[test]
fn a_member_that_goes_back_in_time_is_found() {
    let (mut calls, events) = right();
    calls.push(call(100, 101, stale_get(2), 3, Outcome::Found(vec![kv(2, 21, 3, 3, 1)])));
    calls.push(call(102, 103, stale_get(2), 2, Outcome::Found(vec![])));
    assert_eq!(
        violations(&calls, &events),
        [Violation::WentBack { call: 10, revision: 2, before: 3 }]
    );
    calls[10].connection = 2;
    assert_eq!(violations(&calls, &events), []);
}
