//! Calls to other members.
//!
//! One HTTP/2 connection per member and kind of traffic carries everything: votes and heartbeats
//! must not wait behind a snapshot, so snapshots have a connection of their own. Connections are
//! made lazily and made again by themselves; when a member's URLs change, so does the connection.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt};
use prost::Message;
use proto::peerpb::member_client::MemberClient;
use proto::peerpb::raft_client::RaftClient;
use proto::peerpb::{self};
use replica::{AppendResponses, Peer, PeerError, PeerResult, Peers};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use types::MemberId;

use super::meters::{Direction, PeerMeter, PeerMeters};
use super::{EXPELLED, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, REFUSED};
use crate::dial::Dialer;

/// How long making a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Room for several entries in flight on one stream.
const WINDOW_BYTES: u32 = 16 << 20;

/// Which of the connections to a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Lane {
    Messages,
    Snapshots,
}

/// The connections to all members.
pub(crate) struct Outbound {
    dialer: Dialer,
    // A std mutex: held to look a connection up, which never waits.
    channels: Mutex<BTreeMap<(MemberId, Lane), Connection>>,
    /// Set once this member knows who it is.
    meters: OnceLock<PeerMeters>,
    /// Ends when a member says that this one was removed from the cluster.
    expulsion: CancellationToken,
}

struct Connection {
    urls: Vec<String>,
    channel: Channel,
}

impl Outbound {
    pub(crate) fn new(dialer: Dialer) -> Arc<Self> {
        Arc::new(Self {
            dialer,
            channels: Mutex::default(),
            meters: OnceLock::new(),
            expulsion: CancellationToken::new(),
        })
    }

    /// Has the traffic counted from now on.
    pub(crate) fn measure(&self, meters: PeerMeters) {
        // Called once, at start.
        let _ = self.meters.set(meters);
    }

    fn account(&self, to: &Peer) -> Account {
        let meter = self.meters.get().map(|meters| meters.of(to.id));
        Account { meter, expulsion: self.expulsion.clone() }
    }

    fn channel(&self, to: &Peer, lane: Lane) -> PeerResult<Channel> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = channels.get(&(to.id, lane))
            && known.urls == to.urls
        {
            return Ok(known.channel.clone());
        }
        let channel = self.connect(&to.urls)?;
        let connection = Connection { urls: to.urls.clone(), channel: channel.clone() };
        channels.insert((to.id, lane), connection);
        Ok(channel)
    }

    fn connect(&self, urls: &[String]) -> PeerResult<Channel> {
        // The authority of requests only; where to connect is the dialer's business.
        let endpoint = Endpoint::from_static("http://member.keelson")
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES);
        let connector = self
            .dialer
            .connector(urls)
            .map_err(|error| PeerError::Unreachable(error.to_string()))?;
        Ok(endpoint.connect_with_connector_lazy(connector))
    }

    /// Asks whoever answers at these URLs about its cluster: the question of a process that does not
    /// know yet who it is.
    pub(crate) async fn members_at(&self, urls: &[String]) -> PeerResult<peerpb::MembersResponse> {
        let mut client = MemberClient::new(self.connect(urls)?);
        let request = Request::new(peerpb::MembersRequest { envelope: None });
        match tokio::time::timeout(KEEPALIVE_TIMEOUT, client.members(request)).await {
            Ok(answer) => Ok(answer.map_err(peer_error)?.into_inner()),
            Err(_) => Err(PeerError::NoAnswer("no answer in time".to_owned())),
        }
    }

    fn raft_messages(&self, to: &Peer) -> PeerResult<RaftClient<Channel>> {
        self.raft(to, Lane::Messages)
    }

    fn raft(&self, to: &Peer, lane: Lane) -> PeerResult<RaftClient<Channel>> {
        let client = RaftClient::new(self.channel(to, lane)?);
        Ok(client.max_decoding_message_size(usize::MAX).max_encoding_message_size(usize::MAX))
    }

    fn member(&self, to: &Peer) -> PeerResult<MemberClient<Channel>> {
        let client = MemberClient::new(self.channel(to, Lane::Messages)?);
        Ok(client.max_decoding_message_size(usize::MAX).max_encoding_message_size(usize::MAX))
    }
}

/// A stream of requests as tonic takes it: a type without a lifetime of its own.
struct Outgoing<T>(BoxStream<'static, T>);

impl<T> Stream for Outgoing<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        self.0.as_mut().poll_next(cx)
    }
}

/// Whether the peer can have seen the call decides what the caller may conclude.
fn peer_error(status: Status) -> PeerError {
    let mut source = std::error::Error::source(&status);
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return PeerError::Unreachable(error.to_string());
        }
        source = error.source();
    }
    match status.code() {
        REFUSED => PeerError::Refused(status.message().to_owned()),
        EXPELLED => PeerError::Removed,
        _ => PeerError::NoAnswer(with_causes(&status)),
    }
}

/// What a call failed of, down to its cause: a certificate that was refused is a "transport error" above.
fn with_causes(status: &Status) -> String {
    let mut told = status.message().to_owned();
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        let cause = error.downcast_ref().map_or_else(|| error.to_string(), client::tls_reason);
        if !told.contains(&cause) {
            told.push_str(": ");
            told.push_str(&cause);
        }
        source = error.source();
    }
    told
}

/// What becomes of messages to one member.
#[derive(Clone)]
struct Account {
    meter: Option<Arc<PeerMeter>>,
    expulsion: CancellationToken,
}

impl Account {
    fn sent(&self, message: &impl Message) {
        if let Some(meter) = &self.meter {
            meter.sent(message.encoded_len());
        }
    }

    fn answered<T: Message>(&self, result: &PeerResult<T>) {
        match (result, &self.meter) {
            (Ok(answer), Some(meter)) => {
                meter.received(answer.encoded_len());
                meter.answered();
            }
            (Ok(_), None) => {}
            (Err(error), _) => self.failed(error),
        }
    }

    fn failed(&self, error: &PeerError) {
        if *error == PeerError::Removed {
            self.expulsion.cancel();
        }
        if let Some(meter) = &self.meter {
            meter.failed(error);
        }
    }
}

/// One call with one answer.
macro_rules! call {
    ($self:ident, $client:ident, $to:ident, $method:ident, $request:ident) => {{
        let (client, account) = ($self.$client(&$to), $self.account(&$to));
        Box::pin(async move {
            account.sent(&$request);
            let result = match client {
                Ok(mut client) => client
                    .$method(Request::new($request))
                    .await
                    .map(tonic::Response::into_inner)
                    .map_err(peer_error),
                Err(error) => Err(error),
            };
            account.answered(&result);
            result
        })
    }};
}

impl Peers for Outbound {
    fn append(
        &self,
        to: Peer,
        requests: BoxStream<'static, peerpb::AppendRequest>,
    ) -> BoxFuture<'static, PeerResult<AppendResponses>> {
        let (client, account) = (self.raft_messages(&to), self.account(&to));
        let sender = account.clone();
        let requests = requests.inspect(move |request| sender.sent(request));
        Box::pin(async move {
            let mut client = client?;
            let response = client.append(Request::new(Outgoing(requests.boxed()))).await;
            let response = response.map_err(|status| {
                let error = peer_error(status);
                account.failed(&error);
                error
            })?;
            let answers = response.into_inner().map(move |answer| {
                let answer = answer.map_err(peer_error);
                account.answered(&answer);
                answer
            });
            Ok(answers.boxed())
        })
    }

    fn vote(
        &self,
        to: Peer,
        request: peerpb::VoteRequest,
    ) -> BoxFuture<'static, PeerResult<peerpb::VoteResponse>> {
        call!(self, raft_messages, to, vote, request)
    }

    fn snapshot(
        &self,
        to: Peer,
        chunks: BoxStream<'static, peerpb::SnapshotChunk>,
    ) -> BoxFuture<'static, PeerResult<peerpb::SnapshotResponse>> {
        let (client, account) = (self.raft(&to, Lane::Snapshots), self.account(&to));
        let member = to.id;
        let sender = account.clone();
        let chunks = chunks.inspect(move |chunk| sender.sent(chunk));
        Box::pin(async move {
            let mut client = client?;
            let began = Instant::now();
            let meter = account.meter.as_ref();
            let _under_way = meter.map(|meter| meter.snapshot_begins(Direction::Sent));
            let sent = client.snapshot(Request::new(Outgoing(chunks.boxed()))).await;
            let result = sent.map(tonic::Response::into_inner).map_err(peer_error);
            account.answered(&result);
            // To a member that is not there none is on its way: its calls fail, which are counted.
            if let Some(meter) = meter
                && !matches!(result, Err(PeerError::Unreachable(_)))
            {
                meter.snapshot(Direction::Sent, result.is_ok(), began);
            }
            if result.is_ok() {
                let took = began.elapsed();
                tracing::info!("remote-peer-id" = %member, ?took, "sent database snapshot");
            }
            result
        })
    }

    fn holding(
        &self,
        to: Peer,
        request: peerpb::HoldingRequest,
    ) -> BoxFuture<'static, PeerResult<peerpb::HoldingResponse>> {
        call!(self, raft_messages, to, holding, request)
    }

    fn transfer_leader(
        &self,
        to: Peer,
        request: peerpb::TransferLeaderRequest,
    ) -> BoxFuture<'static, PeerResult<peerpb::TransferLeaderResponse>> {
        call!(self, raft_messages, to, transfer_leader, request)
    }

    fn forward(
        &self,
        to: Peer,
        request: peerpb::ForwardRequest,
    ) -> BoxFuture<'static, PeerResult<peerpb::ForwardResponse>> {
        call!(self, member, to, forward, request)
    }

    fn read_index(
        &self,
        to: Peer,
        request: peerpb::ReadIndexRequest,
    ) -> BoxFuture<'static, PeerResult<peerpb::ReadIndexResponse>> {
        call!(self, member, to, read_index, request)
    }

    fn change_membership(
        &self,
        to: Peer,
        request: peerpb::ChangeMembershipRequest,
    ) -> BoxFuture<'static, PeerResult<peerpb::ChangeMembershipResponse>> {
        call!(self, member, to, change_membership, request)
    }

    fn lease_keep_alive(
        &self,
        to: Peer,
        request: peerpb::LeaseKeepAliveRequest,
    ) -> BoxFuture<'static, PeerResult<peerpb::LeaseKeepAliveResponse>> {
        call!(self, member, to, lease_keep_alive, request)
    }

    fn version(
        &self,
        to: Peer,
        request: peerpb::VersionRequest,
    ) -> BoxFuture<'static, PeerResult<peerpb::VersionResponse>> {
        let meter = self.account(&to).meter;
        let call: BoxFuture<'static, PeerResult<_>> = call!(self, member, to, version, request);
        Box::pin(async move {
            let began = Instant::now();
            let result = call.await;
            // The one question whose answer waits for nothing: no disk, no quorum, no hash.
            if let (Some(meter), Ok(_)) = (&meter, &result) {
                meter.round_trip(began.elapsed());
            }
            result
        })
    }

    fn hash_kv(
        &self,
        to: Peer,
        request: peerpb::HashKvRequest,
    ) -> BoxFuture<'static, PeerResult<peerpb::HashKvResponse>> {
        call!(self, member, to, hash_kv, request)
    }

    fn lease_time_to_live(
        &self,
        to: Peer,
        request: peerpb::LeaseTimeToLiveRequest,
    ) -> BoxFuture<'static, PeerResult<peerpb::LeaseTimeToLiveResponse>> {
        call!(self, member, to, lease_time_to_live, request)
    }

    fn connected_for(&self, member: MemberId) -> Duration {
        self.meters.get().map_or(Duration::ZERO, |meters| meters.of(member).active_for())
    }

    fn expelled(&self) -> BoxFuture<'static, ()> {
        Box::pin(self.expulsion.clone().cancelled_owned())
    }
}
