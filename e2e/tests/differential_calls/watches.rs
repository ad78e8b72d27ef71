//! Watches: what comes on one stream, watch by watch.
//!
//! How many events a response holds depends on time, so the events of each watch are compared as one
//! sequence, with everything else that was said to it in its place.

use std::collections::BTreeMap;
use std::time::Duration;

use prost::Message;
use proto::etcdserverpb::watch_create_request::FilterType;
use proto::etcdserverpb::watch_request::RequestUnion;
use proto::etcdserverpb::{self as pb, WatchCreateRequest, WatchResponse};
use proto::rpc::Rpc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

use super::codec::BytesCodec;
use super::talk::{Call, Talk, compare};

/// How long something that does not come is waited for.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long it must be silent after everything that was expected.
const SILENCE: Duration = Duration::from_millis(300);

/// What happens next.
enum Step {
    /// A request on the stream, after which so many responses and events are there in all.
    Send(RequestUnion, usize),
    /// A write by another call, and the same.
    Write(Call, usize),
}

fn create(create: WatchCreateRequest, heard: usize) -> Step {
    Step::Send(RequestUnion::CreateRequest(create), heard)
}

fn cancel(watch_id: i64, heard: usize) -> Step {
    Step::Send(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id }), heard)
}

fn progress(heard: usize) -> Step {
    Step::Send(RequestUnion::ProgressRequest(pb::WatchProgressRequest {}), heard)
}

fn put(key: &'static str, value: &'static str, heard: usize) -> Step {
    let put = pb::PutRequest { key: key.into(), value: value.into(), ..Default::default() };
    Step::Write(Call::new(Rpc::KVPut, &put), heard)
}

fn delete(key: &'static str, heard: usize) -> Step {
    let delete = pb::DeleteRangeRequest { key: key.into(), ..Default::default() };
    Step::Write(Call::new(Rpc::KVDeleteRange, &delete), heard)
}

fn of(key: &'static str, range_end: &'static str, start_revision: i64) -> WatchCreateRequest {
    WatchCreateRequest {
        key: key.into(),
        range_end: range_end.into(),
        start_revision,
        ..Default::default()
    }
}

/// What was heard on one stream.
#[derive(Default)]
struct Heard {
    count: usize,
    by_watch: BTreeMap<i64, Vec<String>>,
    end: Option<String>,
}

impl Heard {
    fn add(&mut self, response: WatchResponse) {
        let WatchResponse { header, watch_id, events, .. } = response.clone();
        let said = self.by_watch.entry(watch_id).or_default();
        if events.is_empty() {
            self.count += 1;
            said.push(format!("{response:?}"));
        }
        for event in events {
            self.count += 1;
            said.push(format!("{event:?}"));
        }
        // The revision of a header that comes with events is that of a moment.
        assert!(header.is_some(), "{response:?}");
    }

    /// Listens until so much was heard, or for as long as anything comes.
    async fn listen(&mut self, answers: &mut Streaming<bytes::Bytes>, count: usize) {
        while self.end.is_none() {
            let patience = if self.count < count { PATIENCE } else { SILENCE };
            match tokio::time::timeout(patience, answers.next()).await {
                Err(_) => return,
                Ok(Some(Ok(message))) => {
                    self.add(WatchResponse::decode(message).expect("a watch response"));
                }
                Ok(Some(Err(status))) => {
                    self.end = Some(format!("{:?}: {}", status.code(), status.message()));
                }
                Ok(None) => self.end = Some("the end".to_owned()),
            }
        }
    }
}

async fn watch(channel: Channel, steps: &[Step]) -> Result<Heard, Status> {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let (requests, sent) = tokio::sync::mpsc::channel(steps.len() + 1);
    let path = PathAndQuery::from_static(Rpc::WatchWatch.path());
    let request = Request::new(ReceiverStream::new(sent));
    // A server may send no headers before its first message, which may never come.
    let mut opening = Box::pin(grpc.streaming(request, path, BytesCodec::default()));
    let mut answers = None;
    let mut heard = Heard::default();
    for step in steps {
        let count = match step {
            Step::Send(request, count) => {
                let request = pb::WatchRequest { request_union: Some(request.clone()) };
                let sent = requests.send(request.encode_to_vec().into()).await;
                sent.map_err(|_| Status::unknown("the stream has ended"))?;
                *count
            }
            Step::Write(call, count) => {
                call.clone().make(channel.clone()).await;
                *count
            }
        };
        if answers.is_none() {
            let patience = if count == 0 { SILENCE } else { PATIENCE };
            match tokio::time::timeout(patience, &mut opening).await {
                Ok(stream) => answers = Some(stream?.into_inner()),
                Err(_) => continue,
            }
        }
        if let Some(answers) = &mut answers {
            heard.listen(answers, count).await;
        }
    }
    Ok(heard)
}

impl Talk {
    fn watch(&mut self, what: &str, steps: &[Step]) {
        match self.run(|channel| watch(channel, steps)) {
            Ok(heard) => {
                for (id, said) in &heard.by_watch {
                    self.note(&format!("{what}, watch {id}"), &format!("{said:#?}"));
                }
                self.note(&format!("{what}, the end"), &format!("{:?}", heard.end));
            }
            Err(status) => self.note(what, &format!("{:?}: {}", status.code(), status.message())),
        }
    }
}

/// A history up to revision 9: a is put twice, deleted, put again; b and c are put, b is deleted.
fn fill(talk: &mut Talk) {
    for step in [
        put("a", "1", 0),
        put("a", "2", 0),
        put("b", "3", 0),
        delete("a", 0),
        put("c", "4", 0),
        put("a", "5", 0),
        delete("b", 0),
        put("c", "6", 0),
    ] {
        if let Step::Write(call, _) = step {
            talk.call(call);
        }
    }
}

#[test]
fn histories_are_told_alike() {
    compare(1, &[], |talk| {
        fill(talk);
        let all = || of("\0", "\0", 1);
        let filtered = |filter: i32| WatchCreateRequest { filters: vec![filter], ..all() };
        talk.watch("everything", &[create(all(), 9)]);
        talk.watch("a", &[create(of("a", "", 1), 5)]);
        talk.watch("[a, c)", &[create(of("a", "c", 3), 6)]);
        talk.watch("from b", &[create(of("b", "\0", 1), 5)]);
        talk.watch("from revision 5", &[create(of("a", "", 5), 3)]);
        talk.watch("previous", &[create(WatchCreateRequest { prev_kv: true, ..all() }, 9)]);
        talk.watch("no put", &[create(filtered(FilterType::Noput as i32), 3)]);
        talk.watch("no delete", &[create(filtered(FilterType::Nodelete as i32), 7)]);
        talk.watch("a filter that is none", &[create(filtered(9), 9)]);
        let both = vec![FilterType::Noput as i32, FilterType::Nodelete as i32];
        talk.watch("nothing", &[create(WatchCreateRequest { filters: both, ..all() }, 1)]);
        talk.watch("two watches", &[create(of("a", "", 1), 5), create(of("c", "", 1), 8)]);
        talk.watch("no key", &[create(of("", "", 1), 1)]);
        talk.watch("no key, to the end", &[create(of("", "\0", 1), 9)]);
        talk.watch("[a, a)", &[create(of("a", "a", 1), 1)]);
        talk.watch("[b, a)", &[create(of("b", "a", 1), 1)]);
        talk.watch("negative", &[create(of("a", "", -1), 1)]);
        talk.watch("very negative", &[create(of("a", "", i64::MIN), 1)]);
        talk.watch("largest", &[create(of("a", "", i64::MAX), 1)]);
    });
}

#[test]
fn live_watches_are_told_alike() {
    compare(1, &[], |talk| {
        fill(talk);
        let now = || of("a", "d", 0);
        talk.watch(
            "now",
            &[create(now(), 1), put("a", "7", 2), delete("c", 3), delete("c", 3), put("z", "", 3)],
        );
        let chosen = |watch_id| WatchCreateRequest { watch_id, ..now() };
        talk.watch(
            "ids",
            &[
                create(chosen(7), 1),
                create(chosen(7), 2),
                create(chosen(0), 3),
                create(chosen(-5), 4),
                create(chosen(1), 5),
                create(chosen(0), 6),
                put("b", "8", 11),
                cancel(7, 12),
                cancel(7, 12),
                cancel(99, 12),
                create(chosen(7), 13),
            ],
        );
        talk.watch("progress of nothing", &[progress(1)]);
        talk.watch("progress", &[create(now(), 1), progress(2), put("a", "9", 3), progress(4)]);
        talk.watch(
            "progress of two",
            &[create(now(), 1), create(of("zz", "", 1), 2), put("x", "", 2), progress(3)],
        );
        talk.watch(
            "a watch that was refused and progress",
            &[create(of("b", "a", 0), 1), progress(2)],
        );
        talk.watch(
            "a watch that was cancelled and progress",
            &[create(now(), 1), cancel(0, 2), progress(3)],
        );
        // The next revision is 14: two are still to come that a watch from 16 does not hear of.
        talk.watch(
            "the future",
            &[create(of("a", "d", 16), 1), put("a", "", 1), put("a", "", 1), put("a", "16", 2)],
        );
        talk.watch("cancelled before it was made", &[cancel(0, 0), create(now(), 1)]);
    });
}

#[test]
fn compaction_is_told_alike() {
    compare(1, &[], |talk| {
        fill(talk);
        let compact = pb::CompactionRequest { revision: 5, physical: true };
        talk.ask(Rpc::KVCompact, &compact);
        for revision in [1, 4, 5, 6] {
            talk.watch(
                &format!("from {revision} after a compaction at 5"),
                &[create(
                    of("\0", "\0", revision),
                    if revision < 5 { 2 } else { 10 - revision as usize + 1 },
                )],
            );
        }
        let previous = WatchCreateRequest { prev_kv: true, ..of("\0", "\0", 5) };
        talk.watch("previous values at the compaction", &[create(previous, 6)]);
        talk.watch(
            "one of two is compacted",
            &[create(of("a", "", 2), 2), create(of("a", "", 0), 3), put("a", "x", 4)],
        );
    });
}

/// A watch by its own interval hears of progress; the one that does not ask does not.
#[test]
fn progress_comes_by_itself_alike() {
    compare(1, &["--watch-progress-notify-interval=1s"], |talk| {
        fill(talk);
        let told = WatchCreateRequest { progress_notify: true, ..of("a", "", 0) };
        talk.watch("progress by itself", &[create(told, 2)]);
    });
}
