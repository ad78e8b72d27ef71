//! Ranges with every option against every other.

use prost::Message;
use proto::etcdserverpb::{self as pb, RangeRequest};
use proto::rpc::Rpc;

use super::talk::{Call, Talk, compare};

/// Keys with different versions, values, leases and revisions. The store ends at revision 16,
/// compacted at 6.
pub(super) fn fill(talk: &mut Talk) {
    for id in [11, 12] {
        talk.ask(Rpc::LeaseLeaseGrant, &pb::LeaseGrantRequest { id, ttl: 100_000 + id });
    }
    let put = |key: &'static str, value: &'static str, lease| pb::PutRequest {
        key: key.into(),
        value: value.into(),
        lease,
        ..Default::default()
    };
    for request in [
        put("a", "z", 0),
        put("b", "m", 11),
        put("c", "c", 0),
        put("a", "y", 0),
        put("d", "", 12),
        put("b", "b", 11),
        put("e", "m", 0),
        put("a", "x", 11),
        put("ab", "q", 0),
        put("c", "n", 0),
        put("e", "l", 0),
        put("f", "0", 0),
        put("d", "d", 0),
    ] {
        talk.ask(Rpc::KVPut, &request);
    }
    let delete = pb::DeleteRangeRequest { key: "f".into(), ..Default::default() };
    talk.ask(Rpc::KVDeleteRange, &delete);
    talk.ask(Rpc::KVPut, &put("f", "1", 0));
    talk.ask(Rpc::KVCompact, &pb::CompactionRequest { revision: 6, physical: true });
}

/// The chunks of a streamed range make the range.
fn merged(talk: &mut Talk, request: &RangeRequest) -> Option<pb::RangeResponse> {
    let came = talk.quietly(Call::new(Rpc::KVRangeStream, request));
    if came.status.is_some() {
        return None;
    }
    let mut whole = pb::RangeResponse::default();
    for message in came.messages {
        let chunk = pb::RangeStreamResponse::decode(message).expect("a chunk");
        let chunk = chunk.range_response.expect("an answer in the chunk");
        whole.merge(chunk.encode_to_vec().as_slice()).expect("chunks are messages");
    }
    Some(whole)
}

#[test]
fn every_order_with_every_limit_is_answered_alike() {
    compare(1, &[], |talk| {
        fill(talk);
        for sort_order in -1..=3 {
            for sort_target in -1..=5 {
                for limit in [-1, 0, 1, 2, 3, 6, 100] {
                    for (keys_only, count_only) in
                        [(false, false), (true, false), (false, true), (true, true)]
                    {
                        let request = RangeRequest {
                            key: "a".into(),
                            range_end: "g".into(),
                            limit,
                            sort_order,
                            sort_target,
                            keys_only,
                            count_only,
                            ..Default::default()
                        };
                        talk.ask(Rpc::KVRange, &request);
                    }
                }
            }
        }
    });
}

#[test]
fn every_range_at_every_revision_is_answered_alike() {
    compare(1, &[], |talk| {
        fill(talk);
        let ranges: [(&'static [u8], &'static [u8]); 12] = [
            (b"", b""),
            (b"a", b""),
            (b"none", b""),
            (b"a", b"d"),
            (b"b", b"\0"),
            (b"\0", b"\0"),
            (b"\0", b""),
            (b"", b"\0"),
            (b"c", b"c"),
            (b"d", b"a"),
            (b"aa", b"zz"),
            (b"\xff", b"\0"),
        ];
        for (key, range_end) in ranges {
            for revision in [i64::MIN, -1, 0, 1, 5, 6, 7, 12, 15, 16, 17, i64::MAX] {
                for (limit, serializable) in [(0, false), (2, true)] {
                    let request = RangeRequest {
                        key: key.into(),
                        range_end: range_end.into(),
                        limit,
                        revision,
                        serializable,
                        ..Default::default()
                    };
                    talk.ask(Rpc::KVRange, &request);
                    let whole = merged(talk, &request);
                    talk.note("its chunks", &format!("{whole:?}"));
                }
            }
        }
    });
}

#[test]
fn every_filter_is_answered_alike() {
    compare(1, &[], |talk| {
        fill(talk);
        let bounds = [(0, 0), (8, 0), (0, 12), (9, 13), (14, 3), (-1, -1), (100, 0)];
        for (min_mod, max_mod) in bounds {
            for (min_create, max_create) in bounds {
                for (limit, count_only, keys_only) in
                    [(0, false, false), (2, false, true), (1, true, false)]
                {
                    let request = RangeRequest {
                        key: "\0".into(),
                        range_end: "\0".into(),
                        limit,
                        count_only,
                        keys_only,
                        min_mod_revision: min_mod,
                        max_mod_revision: max_mod,
                        min_create_revision: min_create,
                        max_create_revision: max_create,
                        ..Default::default()
                    };
                    talk.ask(Rpc::KVRange, &request);
                }
            }
        }
    });
}

#[test]
fn streamed_ranges_are_answered_alike() {
    compare(1, &[], |talk| {
        fill(talk);
        let all =
            || RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
        for request in [
            all(),
            RangeRequest::default(),
            RangeRequest { limit: 3, ..all() },
            RangeRequest { count_only: true, ..all() },
            RangeRequest { count_only: true, limit: 2, ..all() },
            RangeRequest { keys_only: true, ..all() },
            RangeRequest { serializable: true, revision: 9, ..all() },
            RangeRequest { sort_order: 1, ..all() },
            RangeRequest { sort_order: 2, ..all() },
            RangeRequest { sort_order: 1, sort_target: 0, ..all() },
            RangeRequest { sort_order: 7, ..all() },
            // A target without an order.
            RangeRequest { sort_target: 1, ..all() },
            RangeRequest { sort_target: 2, ..all() },
            RangeRequest { sort_target: 3, ..all() },
            RangeRequest { sort_target: 4, ..all() },
            RangeRequest { sort_target: 4, keys_only: true, ..all() },
            RangeRequest { sort_target: 4, limit: 2, ..all() },
            RangeRequest { sort_target: 4, count_only: true, ..all() },
            RangeRequest { min_mod_revision: 3, ..all() },
            RangeRequest { max_create_revision: 3, ..all() },
            RangeRequest { revision: 5, ..all() },
            RangeRequest { revision: 99, ..all() },
            RangeRequest { key: "none".into(), ..Default::default() },
        ] {
            talk.ask(Rpc::KVRangeStream, &request);
        }
        // Enough keys for several chunks.
        for number in 0..60 {
            let key = format!("many/{number:03}").into();
            let value = vec![b'v'; 20_000].into();
            talk.quietly(Call::new(
                Rpc::KVPut,
                &pb::PutRequest { key, value, ..Default::default() },
            ));
        }
        for limit in [0, 15] {
            let request = RangeRequest { limit, ..all() };
            let came = talk.quietly(Call::new(Rpc::KVRangeStream, &request));
            assert!(came.messages.len() > 1, "{} chunks", came.messages.len());
            let whole = merged(talk, &request);
            talk.note("many keys in chunks", &format!("{whole:?}"));
        }
    });
}

/// The hash of a revision is the same before a compaction to it and after, also behind a defragmentation.
#[test]
fn hashes_around_compactions_are_answered_alike() {
    compare(1, &[], |talk| {
        fill(talk);
        let hashes = |talk: &mut Talk| {
            for revision in [0, 5, 6, 7, 9, 12, 14, 16, 17] {
                talk.ask(Rpc::MaintenanceHashKV, &pb::HashKvRequest { revision });
            }
        };
        hashes(talk);
        for revision in [9, 12, 16] {
            let compact = pb::CompactionRequest { revision, physical: true };
            talk.ask(Rpc::KVCompact, &compact);
            hashes(talk);
        }
        talk.ask(Rpc::MaintenanceDefragment, &pb::DefragmentRequest {});
        hashes(talk);
    });
}
