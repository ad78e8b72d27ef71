//! `make-mirror`: copies the keys of one cluster to another and keeps following.
//!
//! First the keys as they were at one revision, then every change after it, in order; the changes of
//! one revision are one transaction there too. What was deleted before the mirror began is not
//! deleted there, leases are not copied, and revisions are those of the destination.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use client::{Client, prefix_range_end};
use cobra::{Exit, Flag, Kind, Matches, Outcome, exit};
use proto::etcdserverpb::request_op::Request;
use proto::etcdserverpb::{
    DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, WatchCreateRequest,
    WatchResponse,
};
use proto::mvccpb::event::EventType;

use crate::command::{Command, Group, Invocation};
use crate::global::{Session, connect, destination};
use crate::output;

/// Keys per request of the first copy.
const PAGE: i64 = 1000;
/// How often the number of copied changes is told.
const REPORT_INTERVAL: Duration = Duration::from_secs(30);

pub(crate) fn command() -> Command {
    let text = |name, help| Flag::new(name, Kind::Text, "", help);
    Command {
        name: "make-mirror",
        usage: "[options] <destination>",
        short: "Copies keys to another cluster and keeps following",
        long: "Copies the keys of the cluster to the one at the destination endpoint, then follows \
               every change.\nEvery 30 seconds it prints how many changes it has made there.",
        group: Group::UTILITY,
        flags: vec![
            text("prefix", "only keys that begin with this"),
            Flag::new(
                "rev",
                Kind::Integer,
                "0",
                "copy no state, only changes from this revision on",
            ),
            Flag::new("max-txn-ops", Kind::Unsigned, "128", "most changes in one transaction"),
            text("dest-prefix", "begins keys at the destination, instead of --prefix"),
            Flag::new("no-dest-prefix", Kind::Bool, "false", "drop --prefix at the destination"),
            text("dest-cert", "file with the client certificate for the destination"),
            text("dest-key", "file with the client certificate's private key"),
            text("dest-cacert", "file with the authorities of the destination"),
            Flag::new(
                "dest-insecure-transport",
                Kind::Bool,
                "true",
                "talk to the destination without TLS unless it is asked for",
            ),
            text("dest-user", "user, or user:password; asks for a missing password"),
            text("dest-password", "password of --dest-user, which then is the name alone"),
        ],
        run: Some(|invocation| Box::pin(make_mirror(invocation))),
        ..Command::default()
    }
}

async fn make_mirror(invocation: Invocation) -> Outcome {
    let [endpoint] = invocation.arguments() else {
        return Err(Exit::bad_arguments("make-mirror takes one destination argument"));
    };
    let session = Session::new(&invocation)?;
    let to = connect(destination(&session, endpoint)?).await?;
    let from = session.client().await?;
    let mut mirror = Mirror::new(session.matches(), from, to)?;
    let total = Arc::clone(&mirror.total);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(REPORT_INTERVAL).await;
            let count = total.load(Ordering::Relaxed);
            if output::write(format!("{count}\n").as_bytes()).is_err() {
                return;
            }
        }
    });
    // Revision 1 is that of an empty store, so changes from there on are all there is.
    let mut revision = (session.matches().integer("rev") - 1).max(0);
    if revision == 0 {
        revision = mirror.copy_state().await?;
    }
    mirror.follow(revision).await
}

struct Mirror {
    from: Client,
    to: Client,
    prefix: Bytes,
    to_prefix: Bytes,
    max_txn_ops: usize,
    total: Arc<AtomicI64>,
}

impl Mirror {
    fn new(flags: &Matches, from: Client, to: Client) -> Outcome<Mirror> {
        let (prefix, to_prefix) = (flags.word("prefix"), flags.word("dest-prefix"));
        let dropped = flags.is_true("no-dest-prefix");
        if dropped && !to_prefix.is_empty() {
            return Err(Exit::bad_arguments(
                "`--dest-prefix` and `--no-dest-prefix` cannot be set at the same time, choose one",
            ));
        }
        let to_prefix = if to_prefix.is_empty() && !dropped { prefix.clone() } else { to_prefix };
        let max_txn_ops = usize::try_from(flags.integer("max-txn-ops")).unwrap_or(0).max(1);
        Ok(Mirror { from, to, prefix, to_prefix, max_txn_ops, total: Arc::default() })
    }

    /// Copies the newest state and answers its revision.
    async fn copy_state(&mut self) -> Outcome<i64> {
        let (mut key, range_end) = match self.prefix.is_empty() {
            true => (Bytes::from_static(&[0]), Bytes::from_static(&[0])),
            false => (self.prefix.clone(), prefix_range_end(&self.prefix)),
        };
        let mut revision = 0;
        loop {
            let request = RangeRequest {
                key,
                range_end: range_end.clone(),
                limit: PAGE,
                revision,
                ..RangeRequest::default()
            };
            let response = self.from.range(request).await?;
            if revision == 0 {
                revision = response.header.map_or(0, |header| header.revision);
            }
            let last = response.kvs.last().map(|kv| kv.key.clone());
            for kv in response.kvs {
                let key = self.at_destination(&kv.key);
                let request = PutRequest { key, value: kv.value, ..PutRequest::default() };
                self.to.put(request).await?;
                self.total.fetch_add(1, Ordering::Relaxed);
            }
            let Some(last) = last.filter(|_| response.more) else { return Ok(revision) };
            key = [&last[..], &[0]].concat().into();
        }
    }

    /// Follows the changes after a revision until the watch ends.
    async fn follow(&mut self, revision: i64) -> Outcome {
        let (key, range_end) = match self.prefix.is_empty() {
            true => (Bytes::from_static(&[0]), Bytes::from_static(&[0])),
            false => (self.prefix.clone(), prefix_range_end(&self.prefix)),
        };
        let mut changes = self.from.watch(WatchCreateRequest {
            key,
            range_end,
            start_revision: revision + 1,
            ..WatchCreateRequest::default()
        });
        while let Some(response) = changes.next().await {
            let response = response?;
            if response.compact_revision != 0 {
                let message = "etcdserver: mvcc: required revision has been compacted";
                return Err(Exit::with(exit::ERROR, message));
            }
            if response.canceled {
                break;
            }
            self.apply(response).await?;
        }
        Err(Exit::with(exit::ERROR, "watch is canceled by the server"))
    }

    /// Makes the changes of a response: a transaction for each revision, or several if it is large.
    async fn apply(&self, response: WatchResponse) -> Outcome {
        let mut operations: Vec<RequestOp> = Vec::new();
        let mut revision = 0;
        for event in response.events {
            let kind = event.r#type();
            let kv = event.kv.unwrap_or_default();
            if kv.mod_revision > revision || operations.len() == self.max_txn_ops {
                self.commit(std::mem::take(&mut operations)).await?;
            }
            revision = kv.mod_revision;
            let key = self.at_destination(&kv.key);
            let request = match kind {
                EventType::Put => Request::RequestPut(PutRequest {
                    key,
                    value: kv.value,
                    ..PutRequest::default()
                }),
                EventType::Delete => Request::RequestDeleteRange(DeleteRangeRequest {
                    key,
                    ..DeleteRangeRequest::default()
                }),
            };
            operations.push(RequestOp { request: Some(request) });
            self.total.fetch_add(1, Ordering::Relaxed);
        }
        self.commit(operations).await
    }

    async fn commit(&self, success: Vec<RequestOp>) -> Outcome {
        if !success.is_empty() {
            self.to.txn(TxnRequest { success, ..TxnRequest::default() }).await?;
        }
        Ok(())
    }

    fn at_destination(&self, key: &[u8]) -> Bytes {
        let rest = key.strip_prefix(&self.prefix[..]).unwrap_or(key);
        let mut renamed = BytesMut::from(&self.to_prefix[..]);
        renamed.extend_from_slice(rest);
        renamed.freeze()
    }
}
