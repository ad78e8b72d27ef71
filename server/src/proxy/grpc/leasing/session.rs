//! The session of a proxy that holds keys: its lease, and who wants the keys back.
//!
//! The session is valid for as long as the members cannot have let its lease end: a share of the time to live
//! from when the last renewal that was answered had been sent. A lost connection does not end it; a
//! history that was compacted before it was read does, and so does authentication that was turned on.

use std::sync::Arc;
use std::time::Duration;

use proto::etcdserverpb::*;
use proto::mvccpb::Event;
use proto::mvccpb::event::EventType;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status};

use super::super::watches::passes;
use super::held::Holding;
use super::{Leasing, PAUSE, REVOKE};

/// How long keys outlive a proxy that is gone, as in etcd (seconds).
const TTL: i64 = 60;
/// The share of that in which the lease is taken for certain, because clocks do not run alike.
const CERTAIN: f64 = 0.9;
/// How often the lease is renewed, and whether anybody may still read is asked.
const RENEW_INTERVAL: Duration = Duration::from_secs(5);
/// How long one call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause before a session that has ended is followed by the next.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// How long giving everything back may hold up the end of the process.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

impl Leasing {
    /// Keeps a session, and begins another whenever it has ended, until told to stop.
    pub(in super::super) async fn keep(self: Arc<Self>, stop: CancellationToken) {
        while !stop.is_cancelled() {
            match stop.run_until_cancelled(self.begin()).await {
                None => return,
                Some(Ok((lease, revision))) => {
                    tracing::info!(lease, "leasing session begins");
                    let ended = async {
                        tokio::select! {
                            status = self.renew(lease) => status,
                            status = self.follow(lease, revision + 1) => status,
                        }
                    };
                    let ended = stop.run_until_cancelled(ended).await;
                    self.lock().end_session();
                    if let Some(status) = ended {
                        tracing::warn!(%status, "leasing session has ended");
                    }
                    let revoke = LeaseRevokeRequest { id: lease };
                    // If it fails the members take the keys back with the lease, a little later.
                    let revoke = self.members.revoke(Request::new(revoke));
                    let _ = timeout(GOODBYE_TIMEOUT, revoke).await;
                }
                Some(Err(status)) => tracing::warn!(%status, "failed to begin a leasing session"),
            }
            stop.run_until_cancelled(sleep(RETRY_PAUSE)).await;
        }
    }

    /// The lease, and the revision behind which its story begins.
    async fn begin(&self) -> Result<(i64, i64), Status> {
        let asked = Instant::now();
        let grant = self.members.grant(Request::new(LeaseGrantRequest { ttl: TTL, id: 0 }));
        let granted = in_time(grant).await?.into_inner();
        let revision = granted.header.map_or(0, |header| header.revision);
        self.lock().begin_session(granted.id, asked + certain(granted.ttl));
        Ok((granted.id, revision))
    }

    /// Renews the lease until it is lost.
    async fn renew(&self, lease: i64) -> Status {
        loop {
            sleep(RENEW_INTERVAL).await;
            let asked = Instant::now();
            let all = WatchCreateRequest { key: self.prefix.clone(), ..Default::default() };
            let may_read = self.members.look_at(Request::new(all));
            let renewed = async {
                may_read.await?;
                self.renew_once(lease).await
            };
            match in_time(renewed).await {
                Ok(ttl) if ttl > 0 => self.lock().renewed(asked + certain(ttl)),
                Ok(_) => return Status::not_found("etcdserver: requested lease not found"),
                Err(status) if passes(&status) && self.lock().is_valid(Instant::now()) => {}
                Err(status) => return status,
            }
        }
    }

    async fn renew_once(&self, id: i64) -> Result<i64, Status> {
        let request = tokio_stream::once(LeaseKeepAliveRequest { id });
        let mut answers = self.members.renew(Request::new(request)).await?;
        let answer = answers.message().await?;
        answer.map(|answer| answer.ttl).ok_or_else(|| Status::unavailable("the stream has ended"))
    }

    /// Follows what is said of held keys, until that is not known any more.
    async fn follow(self: &Arc<Self>, lease: i64, mut next: i64) -> Status {
        loop {
            let create = WatchCreateRequest {
                key: self.prefix.clone(),
                range_end: client::prefix_range_end(&self.prefix),
                start_revision: next,
                ..WatchCreateRequest::default()
            };
            let opened = self.members.watch(Request::new(create), tokio_stream::pending()).await;
            let lost = match opened {
                Err(status) => Some(status),
                Ok(mut answers) => loop {
                    match answers.next().await {
                        Ok(Some(response)) if response.canceled => {
                            return Status::aborted(response.cancel_reason);
                        }
                        Ok(Some(response)) => {
                            for event in response.events {
                                next = event.kv.as_ref().map_or(next, |kv| kv.mod_revision + 1);
                                self.happened(lease, event);
                            }
                        }
                        Ok(None) => break None,
                        Err(status) => break Some(status),
                    }
                },
            };
            if let Some(status) = lost.filter(|status| !passes(status)) {
                return status;
            }
            sleep(PAUSE).await;
        }
    }

    fn happened(self: &Arc<Self>, lease: i64, event: Event) {
        let kind = event.r#type();
        let Some(kv) = event.kv else { return };
        if !kv.key.starts_with(&self.prefix) {
            return;
        }
        let key = kv.key.slice(self.prefix.len()..);
        if kind == EventType::Delete {
            return self.lock().lost(&key, kv.mod_revision);
        }
        if kv.lease != lease {
            return;
        }
        let holding = Holding { key, since: kv.create_revision };
        let is_wanted = kv.value == REVOKE;
        if is_wanted {
            self.lock().let_go(&holding, Instant::now());
        }
        if is_wanted || self.lock().is_stray(&holding) {
            self.give_back(holding);
        }
    }
}

fn certain(ttl: i64) -> Duration {
    Duration::from_secs(ttl.unsigned_abs()).mul_f64(CERTAIN)
}

async fn in_time<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    let late = Status::unavailable("a member did not answer in time");
    timeout(CALL_TIMEOUT, call).await.unwrap_or(Err(late))
}
