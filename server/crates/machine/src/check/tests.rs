use super::*;

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn operation(request: Request) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

fn get(key: &str) -> pb::RequestOp {
    operation(Request::RequestRange(pb::RangeRequest { key: bytes(key), ..Default::default() }))
}

fn write(key: &str) -> pb::RequestOp {
    operation(Request::RequestPut(pb::PutRequest { key: bytes(key), ..Default::default() }))
}

fn remove(key: &str, range_end: &str) -> pb::RequestOp {
    operation(Request::RequestDeleteRange(pb::DeleteRangeRequest {
        key: bytes(key),
        range_end: bytes(range_end),
        prev_kv: false,
    }))
}

fn branches(success: &[pb::RequestOp], failure: &[pb::RequestOp]) -> pb::TxnRequest {
    pb::TxnRequest { compare: vec![], success: success.to_vec(), failure: failure.to_vec() }
}

fn nest(success: &[pb::RequestOp], failure: &[pb::RequestOp]) -> pb::RequestOp {
    operation(Request::RequestTxn(branches(success, failure)))
}

#[test]
fn single_requests_are_checked_in_etcds_order() {
    let request = |key, value, lease| pb::PutRequest {
        key: bytes(key),
        value: bytes(value),
        lease,
        ignore_value: true,
        ignore_lease: true,
        prev_kv: false,
    };
    assert_eq!(put(&request("", "v", 1)), Err(Refusal::EmptyKey));
    assert_eq!(put(&request("k", "v", 1)), Err(Refusal::ValueProvided));
    assert_eq!(put(&request("k", "", 1)), Err(Refusal::LeaseProvided));
    assert_eq!(put(&request("k", "", 0)), Ok(()));
    let order = |sort_order, sort_target| pb::RangeRequest {
        key: bytes("k"),
        sort_order,
        sort_target,
        ..Default::default()
    };
    assert_eq!(range(&order(2, 4)), Ok(()));
    assert_eq!(range(&order(3, 0)), Err(Refusal::InvalidSortOption));
    assert_eq!(range(&order(0, -1)), Err(Refusal::InvalidSortOption));
    assert_eq!(range(&pb::RangeRequest::default()), Err(Refusal::EmptyKey));
    assert_eq!(delete_range(&pb::DeleteRangeRequest::default()), Err(Refusal::EmptyKey));
}

#[test]
fn the_longest_list_counts_and_nested_transactions_share_what_is_left() {
    let many = |count| vec![get("k"); count];
    assert_eq!(txn(&branches(&many(128), &many(128)), 128), Ok(()));
    assert_eq!(txn(&branches(&many(1), &many(129)), 128), Err(Refusal::TooManyOperations));
    let compares = pb::TxnRequest {
        compare: vec![pb::Compare { key: bytes("k"), ..Default::default() }; 129],
        ..Default::default()
    };
    assert_eq!(txn(&compares, 128), Err(Refusal::TooManyOperations));
    let nested = |count| branches(&[nest(&many(count), &[])], &[]);
    assert_eq!(txn(&nested(127), 128), Ok(()));
    assert_eq!(txn(&nested(128), 128), Err(Refusal::TooManyOperations));
    assert_eq!(txn(&branches(&[nest(&[], &[])], &[]), 1), Ok(()), "an empty one costs nothing");
}

#[test]
fn what_is_inside_a_transaction_is_checked_too() {
    let compare = pb::TxnRequest { compare: vec![pb::Compare::default()], ..Default::default() };
    assert_eq!(txn(&compare, 128), Err(Refusal::EmptyKey));
    for bad in [get(""), write(""), remove("", ""), nest(&[], &[write("")])] {
        assert_eq!(txn(&branches(&[], &[bad]), 128), Err(Refusal::EmptyKey));
    }
    let empty = pb::RequestOp { request: None };
    assert_eq!(txn(&branches(&[empty], &[]), 128), Err(Refusal::KeyNotFound));
}

#[test]
fn no_key_is_put_twice_or_put_and_deleted_on_one_path() {
    let duplicate = Err(Refusal::DuplicateKey);
    let cases = [
        (vec![write("a"), write("b")], Ok(())),
        (vec![write("a"), write("a")], duplicate),
        (vec![write("a"), remove("a", "")], duplicate),
        (vec![remove("a", ""), write("a")], duplicate),
        (vec![remove("a", ""), write("a\0")], Ok(())),
        (vec![remove("a", "c"), write("b")], duplicate),
        (vec![remove("a", "c"), write("c")], Ok(())),
        (vec![remove("a", "c"), remove("b", "d")], Ok(())),
        (vec![remove("a", ""), remove("a", "")], Ok(())),
        (vec![remove("c", "a"), write("b")], Ok(())),
        // The oddity of deletions "from a key on".
        (vec![remove("a", "\0"), write("b")], Ok(())),
        // Then and else of one nested transaction exclude each other.
        (vec![nest(&[write("a")], &[write("a")])], Ok(())),
        (vec![nest(&[write("a")], &[]), nest(&[write("a")], &[])], duplicate),
        (vec![nest(&[write("a")], &[]), nest(&[], &[write("a")])], duplicate),
        (vec![write("a"), nest(&[write("a")], &[])], duplicate),
        (vec![nest(&[], &[write("a")]), write("a")], duplicate),
        (vec![nest(&[write("a"), write("a")], &[])], duplicate),
        // Deletions of the outer level meet puts of nested ones wherever they stand.
        (vec![nest(&[write("b")], &[]), remove("a", "c")], duplicate),
        (vec![nest(&[], &[write("b")]), remove("a", "c")], duplicate),
        (vec![nest(&[remove("a", "c")], &[]), write("b")], duplicate),
        (vec![write("b"), nest(&[], &[remove("a", "c")])], duplicate),
        // Between two nested ones only a deletion in the earlier meets a put in the later.
        (vec![nest(&[remove("a", "c")], &[]), nest(&[write("b")], &[])], duplicate),
        (vec![nest(&[write("b")], &[]), nest(&[remove("a", "c")], &[])], Ok(())),
        (vec![nest(&[remove("a", "c")], &[write("b")])], Ok(())),
    ];
    for (operations, expected) in cases {
        assert_eq!(txn(&branches(&operations, &[]), 128), expected, "{operations:?}");
        assert_eq!(txn(&branches(&[], &operations), 128), expected, "{operations:?}");
    }
    assert_eq!(txn(&branches(&[write("a")], &[write("a")]), 128), Ok(()));
}

#[test]
fn a_union_of_intervals_answers_like_its_parts() {
    let ends = ["", "\0", "a", "ab", "b", "c", "d"];
    let starts = ["a", "ab", "b", "bb", "c"];
    let parts: Vec<_> =
        starts.iter().flat_map(|start| ends.iter().map(move |end| (*start, *end))).collect();
    let inside = |(start, end): (&str, &str), key: &str| match end {
        "" => key == start,
        _ => key >= start && key < end,
    };
    for one in &parts {
        for two in &parts {
            for three in parts.iter().step_by(3) {
                let mut union = Intervals::default();
                for (start, end) in [one, two, three] {
                    union.insert(start.as_bytes(), end.as_bytes());
                }
                for key in ["0", "a", "a\0", "aa", "ab", "b", "ba", "bb", "c", "cc", "d"] {
                    let expected = [one, two, three].into_iter().any(|part| inside(*part, key));
                    assert_eq!(
                        union.contains(key.as_bytes()),
                        expected,
                        "{key:?} in {one:?} {two:?} {three:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn costs_are_etcds() {
    let request = pb::PutRequest { key: bytes("key"), value: bytes("value"), ..Default::default() };
    assert_eq!(put_cost(&request), 256 + 3 + 5);
    assert_eq!(lease_grant_cost(), 64);
    assert_eq!(txn_cost(&branches(&[get("a"), remove("a", "")], &[])), 0);
    assert_eq!(txn_cost(&branches(&[write("a")], &[write("a"), write("b")])), 2 * 257);
    assert_eq!(txn_cost(&branches(&[nest(&[], &[write("a")]), write("b")], &[])), 2 * 257);
}

#[test]
fn only_ranges_make_a_read_only_transaction() {
    let range = pb::RangeRequest { key: bytes("k"), serializable: true, ..Default::default() };
    let local = [operation(Request::RequestRange(range))];
    assert!(is_read_only(&branches(&[get("a")], &[get("b")])));
    assert!(!is_serializable(&branches(&local, &[get("b")])));
    assert!(is_serializable(&branches(&local, &local)));
    assert!(!is_read_only(&branches(&[get("a")], &[nest(&[get("a")], &[])])));
    assert!(is_serializable(&branches(&[], &[])));
}
