//! Members that are not there: what the one real member sends them is seen here and answered as the test
//! says.

#![allow(clippy::unwrap_used, reason = "a failure here is the test's verdict")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt};
use proto::peerpb;
use proto::peerpb::append_response::Result as Wire;
use replica::{AppendResponses, Peer, PeerError, PeerResult, Peers};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;
use types::MemberId;

/// What the others do and have seen.
#[derive(Default)]
pub(crate) struct Script {
    /// Up to where each says that it has the log; who is missing says nothing.
    acknowledged: BTreeMap<MemberId, u64>,
    /// Up to where each was sent the log, or has received it if it is slow.
    pub(crate) sent: BTreeMap<MemberId, u64>,
    /// What was asked of all of them, pre-votes included.
    pub(crate) votes: Vec<peerpb::VoteRequest>,
    /// With what they refuse their votes, if they do.
    pub(crate) refusal: Option<peerpb::Vote>,
    /// One that entries reach late, and whose answers to heartbeats take long.
    pub(crate) slow: Option<(MemberId, Way)>,
    /// Heartbeats to the slow one; those that named an entry it did not have.
    pub(crate) heartbeats: usize,
    pub(crate) heartbeats_behind: usize,
}

#[derive(Clone, Copy)]
pub(crate) struct Way {
    pub(crate) entries: Duration,
    pub(crate) answer: Duration,
}

impl Script {
    pub(crate) fn acknowledge(&mut self, member: u64, upto: u64) {
        self.acknowledged.insert(MemberId(member), upto);
    }

    pub(crate) fn acknowledge_all(&mut self, upto: u64) {
        (2..=5).for_each(|member| self.acknowledge(member, upto));
    }

    fn says(&self, member: MemberId, upto: u64) -> bool {
        self.acknowledged.get(&member).is_some_and(|acknowledged| *acknowledged >= upto)
    }
}

#[derive(Clone)]
pub(crate) struct Others(Arc<watch::Sender<Script>>);

impl Default for Others {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Script::default())))
    }
}

fn index(id: Option<peerpb::LogId>) -> u64 {
    id.map_or(0, |id| id.index)
}

/// #1795: after a failed read a leader once sent entries from the middle of its log as if they were the
/// first ones.
fn assert_in_order(request: &peerpb::AppendRequest) {
    let sent = request.entries.iter().map(|entry| index(entry.log_id));
    let expected = index(request.prev_log_id) + 1..;
    assert!(sent.eq(expected.take(request.entries.len())), "{request:?}");
}

impl Others {
    pub(crate) fn change(&self, change: impl FnOnce(&mut Script)) {
        self.0.send_modify(change);
    }

    pub(crate) fn look<T>(&self, look: impl FnOnce(&Script) -> T) -> T {
        look(&self.0.borrow())
    }

    pub(crate) fn sent(&self, member: u64) -> u64 {
        self.look(|script| script.sent.get(&MemberId(member)).copied().unwrap_or(0))
    }

    fn has(&self, member: MemberId, upto: u64) {
        self.change(|script| {
            let sent = script.sent.entry(member).or_default();
            *sent = upto.max(*sent);
        });
    }

    fn slow(&self, member: MemberId) -> Option<Way> {
        self.look(|script| script.slow.filter(|(id, _)| *id == member).map(|(_, way)| way))
    }

    /// Takes note of a request, however late it is answered.
    fn note(&self, to: MemberId, request: &peerpb::AppendRequest) {
        assert_in_order(request);
        if let (Some(last), None) = (request.entries.last(), self.slow(to)) {
            self.has(to, index(last.log_id));
        }
    }

    /// What a member says to a request, when it does.
    async fn answer(&self, to: MemberId, request: &peerpb::AppendRequest) -> Wire {
        let last = request.entries.last().and_then(|entry| entry.log_id);
        let slow = self.slow(to);
        let success = |matching| Wire::Success(peerpb::Success { matching });
        match (last, slow) {
            (Some(last), slow) => {
                if let Some(way) = slow {
                    sleep(way.entries).await;
                    self.has(to, last.index);
                }
                self.until_it_says(to, last.index).await;
                success(Some(last))
            }
            (None, Some(way)) => {
                let behind = index(request.prev_log_id) > self.sent(to.0);
                self.change(|script| {
                    script.heartbeats += 1;
                    script.heartbeats_behind += usize::from(behind);
                });
                sleep(way.answer).await;
                match request.prev_log_id {
                    Some(prev) if behind => Wire::Conflict(prev),
                    prev => success(prev),
                }
            }
            (None, None) => {
                self.until_it_says(to, index(request.prev_log_id)).await;
                success(request.prev_log_id)
            }
        }
    }

    async fn until_it_says(&self, member: MemberId, upto: u64) {
        let mut script = self.0.subscribe();
        script.wait_for(|script| script.says(member, upto)).await.unwrap();
    }
}

fn not_here<T: Send + 'static>() -> BoxFuture<'static, PeerResult<T>> {
    Box::pin(async { Err(PeerError::Refused("the test does not need it".into())) })
}

impl Peers for Others {
    fn append(
        &self,
        to: Peer,
        mut requests: BoxStream<'static, peerpb::AppendRequest>,
    ) -> BoxFuture<'static, PeerResult<AppendResponses>> {
        let (others, (answer, answers)) = (self.clone(), mpsc::channel(64));
        let (arrive, mut arrived) = mpsc::channel(64);
        let reader = self.clone();
        tokio::spawn(async move {
            while let Some(request) = requests.next().await {
                reader.note(to.id, &request);
                if arrive.send(request).await.is_err() {
                    return;
                }
            }
        });
        tokio::spawn(async move {
            while let Some(request) = arrived.recv().await {
                let result = Some(others.answer(to.id, &request).await);
                if answer.send(Ok(peerpb::AppendResponse { result })).await.is_err() {
                    return;
                }
            }
        });
        let answers = stream::unfold(answers, |mut answers| async move {
            answers.recv().await.map(|answer| (answer, answers))
        });
        Box::pin(async move { Ok(answers.boxed()) })
    }

    fn vote(
        &self,
        _: Peer,
        request: peerpb::VoteRequest,
    ) -> BoxFuture<'static, PeerResult<peerpb::VoteResponse>> {
        let refusal = self.look(|script| script.refusal);
        let answer = peerpb::VoteResponse {
            vote: refusal.or(request.vote),
            granted: refusal.is_none(),
            last_log_id: None,
        };
        self.change(|script| script.votes.push(request));
        Box::pin(async move { Ok(answer) })
    }

    fn snapshot(
        &self,
        _: Peer,
        _: BoxStream<'static, peerpb::SnapshotChunk>,
    ) -> BoxFuture<'static, PeerResult<peerpb::SnapshotResponse>> {
        not_here()
    }

    fn holding(
        &self,
        _: Peer,
        _: peerpb::HoldingRequest,
    ) -> BoxFuture<'static, PeerResult<peerpb::HoldingResponse>> {
        not_here()
    }

    fn transfer_leader(
        &self,
        _: Peer,
        _: peerpb::TransferLeaderRequest,
    ) -> BoxFuture<'static, PeerResult<peerpb::TransferLeaderResponse>> {
        not_here()
    }

    fn forward(
        &self,
        _: Peer,
        _: peerpb::ForwardRequest,
    ) -> BoxFuture<'static, PeerResult<peerpb::ForwardResponse>> {
        not_here()
    }

    fn read_index(
        &self,
        _: Peer,
        _: peerpb::ReadIndexRequest,
    ) -> BoxFuture<'static, PeerResult<peerpb::ReadIndexResponse>> {
        not_here()
    }

    fn change_membership(
        &self,
        _: Peer,
        _: peerpb::ChangeMembershipRequest,
    ) -> BoxFuture<'static, PeerResult<peerpb::ChangeMembershipResponse>> {
        not_here()
    }

    fn lease_keep_alive(
        &self,
        _: Peer,
        _: peerpb::LeaseKeepAliveRequest,
    ) -> BoxFuture<'static, PeerResult<peerpb::LeaseKeepAliveResponse>> {
        not_here()
    }

    fn version(
        &self,
        _: Peer,
        _: peerpb::VersionRequest,
    ) -> BoxFuture<'static, PeerResult<peerpb::VersionResponse>> {
        not_here()
    }

    fn hash_kv(
        &self,
        _: Peer,
        _: peerpb::HashKvRequest,
    ) -> BoxFuture<'static, PeerResult<peerpb::HashKvResponse>> {
        not_here()
    }

    fn lease_time_to_live(
        &self,
        _: Peer,
        _: peerpb::LeaseTimeToLiveRequest,
    ) -> BoxFuture<'static, PeerResult<peerpb::LeaseTimeToLiveResponse>> {
        not_here()
    }
}
