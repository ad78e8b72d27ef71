//! The steps against answers that are written down.

use std::sync::Mutex;

use futures_util::FutureExt;

use super::*;

/// Answers in order and notes what it was asked.
#[derive(Default)]
struct Script {
    ranges: Mutex<Vec<RangeResponse>>,
    txns: Mutex<Vec<TxnResponse>>,
    asked: Mutex<Vec<String>>,
}

impl Script {
    fn note(&self, what: String) {
        self.asked.lock().unwrap().push(what);
    }
}

impl Calls for Script {
    type Error = ();

    async fn txn(&self, txn: TxnRequest) -> Result<TxnResponse, ()> {
        self.note(format!("txn {:?}", txn.compare[0].key));
        Ok(self.txns.lock().unwrap().remove(0))
    }

    async fn range(&self, range: RangeRequest) -> Result<RangeResponse, ()> {
        self.note(format!("range {:?} below {}", range.key, range.max_create_revision));
        Ok(self.ranges.lock().unwrap().remove(0))
    }

    async fn wait_for_deletion(&self, key: Bytes, revision: i64) -> Result<(), ()> {
        self.note(format!("wait {key:?} from {revision}"));
        Ok(())
    }
}

fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader { revision, ..Default::default() })
}

fn kv(key: &'static str, create_revision: i64) -> KeyValue {
    KeyValue { key: key.into(), create_revision, ..Default::default() }
}

fn found(revision: i64, kvs: Vec<KeyValue>) -> RangeResponse {
    RangeResponse { header: header(revision), kvs, more: false, count: 0 }
}

fn in_txn(kvs: Vec<KeyValue>) -> ResponseOp {
    ResponseOp { response: Some(Answer::ResponseRange(found(0, kvs))) }
}

#[test]
fn keys_of_candidates_are_those_of_go_clients() {
    let prefix = directory(b"my");
    assert_eq!(candidate_key(&prefix, LeaseId(0x2040_a1fe_b068_6807)), "my/2040a1feb0686807");
    assert_eq!(candidate_key(&prefix, LeaseId(7)), "my/7");
    assert_eq!(candidate_key(&prefix, LeaseId(-1)), "my/-1");
    assert_eq!(candidates(b"my"), ("my/".into(), "my0".into()));
}

#[test]
fn whoever_finds_its_own_key_oldest_is_first() {
    let entered = |succeeded, responses| {
        let script = Script::default();
        let txn = TxnResponse { header: header(9), succeeded, responses };
        script.txns.lock().unwrap().push(txn);
        enter(&script, b"m", LeaseId(7)).now_or_never().unwrap().unwrap()
    };
    let put = || ResponseOp { response: Some(Answer::ResponsePut(Default::default())) };
    let new = entered(true, vec![put(), in_txn(vec![kv("m/7", 9)])]);
    assert!(new.first && new.place.created == 9);
    let behind = entered(true, vec![put(), in_txn(vec![kv("m/1", 4)])]);
    assert!(!behind.first && behind.place.created == 9);
    let again = entered(false, vec![in_txn(vec![kv("m/7", 5)]), in_txn(vec![kv("m/7", 5)])]);
    assert!(again.first && again.place.created == 5);
}

#[test]
fn a_place_waits_for_the_newest_before_it_until_there_is_none() {
    let script = Script::default();
    let ranges = [found(9, vec![kv("m/2", 4)]), found(11, vec![kv("m/1", 3)]), found(12, vec![])];
    script.ranges.lock().unwrap().extend(ranges);
    let place = Place { directory: "m/".into(), key: "m/7".into(), created: 8 };
    place.wait(&script).now_or_never().unwrap().unwrap();
    let below = "range b\"m/\" below 7";
    let expected =
        [below, "wait b\"m/2\" from 9", below, "wait b\"m/1\" from 11", below].map(str::to_owned);
    assert_eq!(*script.asked.lock().unwrap(), expected);
}

#[test]
fn a_lease_that_is_a_candidate_with_another_value_proclaims() {
    let entered = |succeeded, responses| {
        let script = Script::default();
        let txn = TxnResponse { header: header(9), succeeded, responses };
        script.txns.lock().unwrap().push(txn);
        campaign(&script, b"m", LeaseId(7), "v".into()).now_or_never().unwrap().unwrap()
    };
    let earlier = |value: &'static str| KeyValue { value: value.into(), ..kv("m/7", 5) };
    assert!(!entered(true, vec![]).value_differs);
    assert!(!entered(false, vec![in_txn(vec![earlier("v")])]).value_differs);
    let other = entered(false, vec![in_txn(vec![earlier("w")])]);
    assert!(other.value_differs && other.place.created == 5);
}
