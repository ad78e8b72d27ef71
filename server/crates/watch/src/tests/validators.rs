//! The validators themselves find what they are for.

use proto::etcdserverpb::ResponseHeader;

use super::*;
use crate::check::validate;

fn put(key: &'static str, create: i64, revision: i64) -> Event {
    let key = Bytes::from_static(key.as_bytes());
    let (create_revision, mod_revision) = (create, revision);
    let version = 1 + i64::from(create != revision);
    let kv = KeyValue { key, create_revision, mod_revision, version, ..KeyValue::default() };
    Event { kv: Some(kv), ..Event::default() }
}

fn response(revision: i64, events: Vec<Event>) -> WatchResponse {
    let header = Some(ResponseHeader { revision, ..ResponseHeader::default() });
    WatchResponse { header, events, ..WatchResponse::default() }
}

fn created(revision: i64) -> WatchResponse {
    WatchResponse { created: true, ..response(revision, Vec::new()) }
}

fn canceled(compact_revision: i64) -> WatchResponse {
    WatchResponse { canceled: true, compact_revision, ..response(0, Vec::new()) }
}

fn history() -> History {
    let mut history = History::new();
    history.push(Revision(2), vec![put("a", 2, 2), put("b", 2, 2)]);
    history.push(Revision(3), vec![put("a", 2, 3)]);
    history.push(Revision(4), vec![put("b", 2, 4)]);
    history.compact(Revision(2));
    history
}

fn judge(watch: CreateWatch, responses: &[WatchResponse]) -> Option<&'static str> {
    let end = Some(Revision(4));
    validate(&history(), &watch, responses, end).err().map(|violation| violation.promise)
}

#[test]
fn each_broken_promise_is_named() {
    let all = on("a", "z");
    let two = || response(2, vec![put("a", 2, 2), put("b", 2, 2)]);
    let (three, four) =
        (|| response(3, vec![put("a", 2, 3)]), || response(4, vec![put("b", 2, 4)]));
    let from_two = CreateWatch { start_revision: 2, ..all.clone() };
    let cases = [
        (all.clone(), vec![created(1), two(), three(), four()], None),
        (all.clone(), vec![created(2), three(), four(), response(4, vec![])], None),
        (all.clone(), vec![created(2), four(), three()], Some("ordered")),
        (all.clone(), vec![created(2), three(), three()], Some("unique")),
        (
            all.clone(),
            vec![created(1), response(2, vec![put("a", 2, 2)]), response(2, vec![put("b", 2, 2)])],
            Some("atomic"),
        ),
        (on("a", ""), vec![created(1), two()], Some("filtered")),
        (CreateWatch { no_put: true, ..all.clone() }, vec![created(1), two()], Some("filtered")),
        (all.clone(), vec![created(3), three(), four()], Some("started")),
        (all.clone(), vec![created(2), four()], Some("resumable")),
        (all.clone(), vec![created(1), two(), four()], Some("reliable")),
        (all.clone(), vec![created(2), response(3, vec![]), three(), four()], Some("bookmarkable")),
        (all.clone(), vec![created(2), response(3, vec![])], Some("bookmarkable")),
        (all.clone(), vec![created(2), three()], Some("complete")),
        (from_two.clone(), vec![created(4), canceled(2)], Some("compacted")),
        (CreateWatch { start_revision: 1, ..all.clone() }, vec![created(4), canceled(2)], None),
        (
            CreateWatch { start_revision: 9, ..all },
            vec![created(4), response(4, vec![])],
            Some("started"),
        ),
        (from_two, vec![two()], Some("created")),
    ];
    for (watch, responses, promise) in cases {
        assert_eq!(judge(watch.clone(), &responses), promise, "{watch:?} {responses:?}");
    }
}

#[test]
fn previous_versions_are_required_unless_compacted() {
    let watch = CreateWatch { prev_kv: true, ..on("a", "") };
    let event = put("a", 2, 3);
    let with = |prev_kv| vec![created(2), response(3, vec![Event { prev_kv, ..event.clone() }])];
    assert_eq!(judge(watch.clone(), &with(put("a", 2, 2).kv)), None);
    assert_eq!(judge(watch.clone(), &with(None)), Some("previous"));
    assert_eq!(judge(watch.clone(), &with(put("b", 2, 2).kv)), Some("previous"));
    let mut history = history();
    history.compact(Revision(3));
    assert_eq!(validate(&history, &watch, &with(None), None), Ok(()));
    let unasked = CreateWatch { prev_kv: false, ..watch };
    assert_eq!(judge(unasked, &with(put("a", 2, 2).kv)), Some("previous"));
}
