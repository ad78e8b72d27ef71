//! Leases that live as long as this process, and queues of keys: what `lock` and `elect` are made of.
//!
//! Whoever wants its turn puts a key under a common prefix, on its own lease; whose key was created
//! first has the turn, and everyone else waits for the key before its own to go. These are the
//! recipes of clientv3's `concurrency`, down to the names of the keys, so that our clients, Go's and
//! the server's own lock service queue up with each other.

use bytes::Bytes;
use client::{Client, Error, prefix_range_end};
use cobra::{Exit, Outcome, exit};
use proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use proto::etcdserverpb::request_op::Request;
use proto::etcdserverpb::{
    Compare, DeleteRangeRequest, LeaseGrantRequest, PutRequest, RangeRequest, RangeResponse,
    RequestOp, TxnRequest, WatchCreateRequest,
};
use proto::mvccpb::event::EventType;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::log;

/// clientv3's default.
pub(crate) const DEFAULT_TTL: i64 = 60;

/// A lease that is kept alive.
pub(crate) struct LeaseSession {
    pub(crate) client: Client,
    pub(crate) lease: i64,
    /// Closed when the lease is lost.
    alive: watch::Receiver<()>,
}

impl LeaseSession {
    /// Grants a lease and keeps it alive until the process ends.
    pub(crate) async fn begin(client: Client, ttl: i64) -> Result<LeaseSession, Error> {
        let ttl = match ttl {
            1.. => ttl,
            _ => {
                let message = "WithTTL(): TTL should be > 0, preserving current TTL";
                log::warn_about(message, "current-session-ttl", DEFAULT_TTL);
                DEFAULT_TTL
            }
        };
        let lease = client.lease_grant(LeaseGrantRequest { ttl, id: 0 }).await?.id;
        let (holds, alive) = watch::channel(());
        let mut renewals = client.lease_keep_alive(lease);
        tokio::spawn(async move {
            while renewals.next().await.is_some() {}
            drop(holds);
        });
        Ok(LeaseSession { client, lease, alive })
    }

    /// Waits until the lease is lost.
    pub(crate) async fn expired(&mut self) {
        while self.alive.changed().await.is_ok() {}
    }

    /// This session's key in a queue.
    pub(crate) fn key(&self, prefix: &[u8]) -> Bytes {
        Bytes::from([prefix, format!("{:x}", self.lease).as_bytes()].concat())
    }

    /// Puts this session's key into a queue and answers the revision at which it was created.
    pub(crate) async fn enqueue(&self, prefix: &[u8], value: &Bytes) -> Result<i64, Error> {
        let key = self.key(prefix);
        let put = PutRequest {
            key: key.clone(),
            value: value.clone(),
            lease: self.lease,
            ..PutRequest::default()
        };
        // The lease is new, so the key is: nobody else has its name.
        let request = TxnRequest {
            compare: vec![created_at(&key, 0)],
            success: vec![RequestOp { request: Some(Request::RequestPut(put)) }],
            failure: Vec::new(),
        };
        let response = self.client.txn(request).await?;
        Ok(response.header.map_or(0, |header| header.revision))
    }

    /// Deletes this session's key, if it is the one created at `revision`.
    pub(crate) async fn leave(&self, prefix: &[u8], revision: i64) -> Result<(), Error> {
        let key = self.key(prefix);
        let delete = DeleteRangeRequest { key: key.clone(), ..DeleteRangeRequest::default() };
        let request = TxnRequest {
            compare: vec![created_at(&key, revision)],
            success: vec![RequestOp { request: Some(Request::RequestDeleteRange(delete)) }],
            failure: Vec::new(),
        };
        self.client.txn(request).await.map(drop)
    }
}

fn created_at(key: &Bytes, revision: i64) -> Compare {
    Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Create.into(),
        key: key.clone(),
        range_end: Bytes::new(),
        target_union: Some(TargetUnion::CreateRevision(revision)),
    }
}

/// One key.
pub(crate) async fn get(client: &Client, key: Bytes) -> Result<RangeResponse, Error> {
    client.range(RangeRequest { key, ..RangeRequest::default() }).await
}

/// The key of a queue that was created first: whose turn it is.
pub(crate) async fn first(client: &Client, prefix: &[u8]) -> Result<RangeResponse, Error> {
    client.range(by_creation(prefix, SortOrder::Ascend)).await
}

/// Waits until no key of the queue is left that was created at or before a revision.
pub(crate) async fn wait_for_turn(
    client: &Client,
    prefix: &[u8],
    last_before: i64,
) -> Result<(), WaitError> {
    loop {
        let request = RangeRequest {
            max_create_revision: last_before,
            ..by_creation(prefix, SortOrder::Descend)
        };
        let response = client.range(request).await?;
        let Some(before) = response.kvs.first() else { return Ok(()) };
        let revision = response.header.map_or(0, |header| header.revision);
        wait_for_deletion(client, before.key.clone(), revision).await?;
    }
}

fn by_creation(prefix: &[u8], order: SortOrder) -> RangeRequest {
    RangeRequest {
        key: Bytes::copy_from_slice(prefix),
        range_end: prefix_range_end(prefix),
        limit: 1,
        sort_order: order.into(),
        sort_target: SortTarget::Create.into(),
        ..RangeRequest::default()
    }
}

async fn wait_for_deletion(client: &Client, key: Bytes, from: i64) -> Result<(), WaitError> {
    let create = WatchCreateRequest { key, start_revision: from, ..WatchCreateRequest::default() };
    let mut stream = client.watch(create);
    while let Some(response) = stream.next().await {
        let response = response?;
        if response.events.iter().any(|event| event.r#type() == EventType::Delete) {
            return Ok(());
        }
    }
    Err(WaitError::Watch)
}

/// Why waiting ended too early.
pub(crate) enum WaitError {
    Call(Error),
    Watch,
}

impl From<Error> for WaitError {
    fn from(error: Error) -> WaitError {
        WaitError::Call(error)
    }
}

impl From<WaitError> for Exit {
    fn from(error: WaitError) -> Exit {
        match error {
            WaitError::Call(error) => error.into(),
            WaitError::Watch => Exit::with(exit::ERROR, "lost watcher waiting for delete"),
        }
    }
}

/// Waits for SIGINT or SIGTERM. From when this is made these signals do not end the process.
pub(crate) fn interruption() -> Outcome<impl Future<Output = ()>> {
    let failed = |error: std::io::Error| Exit::with(exit::ERROR, error);
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

/// What Go prints when waiting was interrupted.
pub(crate) fn interrupted() -> Exit {
    Exit::with(exit::ERROR, "context canceled")
}
