//! The network between members: [`replica::Peers`] over queues with delay, loss and cuts.
//!
//! A message is carried by a task that belongs to nobody's process: it arrives although its sender was
//! paused or died meanwhile. Serving it is a task of the receiver's process: it does not run while the
//! receiver is paused and is gone when that dies. Streams keep their order, as TCP does; a lost or cut
//! message breaks its stream, and the sender finds out late.
//!
//! Nothing leaves a member after its simulated power has failed, even if the member's tasks have not
//! been stopped yet.

mod transfers;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use deadlines::LeasePeer;
use disk::SimDisk;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt};
use proto::peerpb;
use replica::runtime::NodeGate;
use replica::{AppendResponses, Peer, PeerError, PeerResult, Peers};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until};
use types::MemberId;

use crate::chance::Chance;
use crate::counts::Event;
use crate::swarm::{NetworkPlan, TransferPlan};
use crate::trace::Trace;

pub use transfers::Transfer;
use transfers::Transfers;

/// Messages of one stream that may be under way.
const STREAM_WINDOW: usize = 64;

/// One process of a member: from a start to a crash, kill or stop.
#[derive(Clone)]
pub struct Life {
    pub member: MemberId,
    /// Counts the processes of all members.
    pub number: u64,
    pub gate: NodeGate,
    pub disk: SimDisk,
    over: Arc<watch::Sender<bool>>,
}

impl Life {
    /// A new process.
    pub fn new(member: MemberId, number: u64, disk: SimDisk) -> Self {
        let over = Arc::new(watch::Sender::new(false));
        Self { member, number, gate: NodeGate::new(), disk, over }
    }

    /// Whether the process runs and its machine has power.
    pub fn is_alive(&self) -> bool {
        !*self.over.borrow() && !self.disk.is_crashed()
    }

    /// Ends the process at once.
    pub fn end(&self) {
        self.gate.kill();
        self.over.send_replace(true);
    }

    /// Returns when the process has ended.
    pub async fn ended(&self) {
        let mut over = self.over.subscribe();
        // The sender lives in `self`.
        let _ = over.wait_for(|over| *over).await;
    }

    /// Runs `work` as a task of this process; none if the process ends first.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let (done, result) = oneshot::channel();
        self.spawn(async move {
            // Whoever asked may have stopped waiting.
            let _ = done.send(work.await);
        });
        let result = tokio::select! {
            biased;
            () = self.ended() => None,
            result = result => result.ok(),
        };
        result.filter(|_| self.is_alive())
    }

    /// Starts a task of this process.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        tokio::spawn(self.gate.scope(work));
    }
}

/// What can be reached at a member's address.
#[derive(Clone)]
struct Endpoint {
    /// What answers, with the room below it.
    leases: LeasePeer,
    life: Life,
}

/// The network; clones share it.
#[derive(Clone)]
pub struct Network(Arc<Mutex<State>>);

struct State {
    chance: Chance,
    plan: NetworkPlan,
    members: BTreeMap<MemberId, Endpoint>,
    /// From whom to whom nothing arrives.
    cut: BTreeSet<(MemberId, MemberId)>,
    transfers: Transfers,
    trace: Trace,
}

/// What becomes of one message.
enum Fate {
    Arrives(Duration),
    Lost,
}

impl Network {
    /// A network without members.
    pub fn new(seed: u64, plan: NetworkPlan, transfers: TransferPlan, trace: Trace) -> Self {
        Self(Arc::new(Mutex::new(State {
            chance: Chance::new(seed, "network"),
            plan,
            members: BTreeMap::new(),
            cut: BTreeSet::new(),
            transfers: Transfers::new(seed, transfers),
            trace,
        })))
    }

    /// Connects a process.
    pub fn connect(&self, life: &Life, leases: LeasePeer) {
        self.state().members.insert(life.member, Endpoint { leases, life: life.clone() });
    }

    /// Disconnects a member's process.
    pub fn disconnect(&self, member: MemberId) {
        self.state().members.remove(&member);
    }

    /// Disconnects all. Who can be reached here reaches others through here: without an end to it nobody would
    /// ever be let go of.
    pub fn disconnect_all(&self) {
        self.state().members.clear();
    }

    /// Lets nothing through from one member to another.
    pub fn cut(&self, from: MemberId, to: MemberId) {
        self.state().cut.insert((from, to));
    }

    /// Lets everything through again.
    pub fn heal(&self) {
        self.state().cut.clear();
    }

    /// Heals and also stops losing messages.
    pub fn become_perfect(&self) {
        let mut state = self.state();
        state.cut.clear();
        state.plan.loss_per_mille = 0;
        state.plan.straggler_per_mille = 0;
        state.transfers.become_perfect();
    }

    fn endpoint(&self, member: MemberId) -> Option<Endpoint> {
        self.state().members.get(&member).filter(|endpoint| endpoint.life.is_alive()).cloned()
    }

    fn is_cut(&self, from: MemberId, to: MemberId) -> bool {
        self.state().cut.contains(&(from, to))
    }

    fn draw(&self, from: MemberId, to: MemberId, what: &str) -> Fate {
        let mut state = self.state();
        let State { chance, plan, cut, trace, .. } = &mut *state;
        let loss = plan.loss_per_mille;
        let micros = match chance.hits(plan.straggler_per_mille) {
            true => {
                trace.count(Event::MessageLate);
                chance.between(0, 1_000_000)
            }
            false => chance.between(plan.delay_min_micros, plan.delay_max_micros),
        };
        let (lost, is_cut) = (chance.hits(loss), cut.contains(&(from, to)));
        if lost {
            trace.count(Event::MessageLost);
        }
        if is_cut {
            trace.count(Event::MessageCut);
        }
        let lost = lost || is_cut;
        trace.note(format_args!(
            "net {}>{} {what} {}",
            from.0,
            to.0,
            if lost { "lost" } else { "sent" }
        ));
        if lost { Fate::Lost } else { Fate::Arrives(Duration::from_micros(micros)) }
    }

    /// How long a sender takes to find out that nobody answers.
    fn silence(&self) -> Duration {
        Duration::from_millis(self.state().chance.between(100, 6_000))
    }

    /// Carries one message; false if it is lost.
    async fn pass(&self, from: MemberId, to: MemberId, what: &str) -> bool {
        match self.draw(from, to, what) {
            Fate::Lost => false,
            Fate::Arrives(delay) => {
                sleep(delay).await;
                !self.is_cut(from, to)
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How the way of one direction of a stream ended.
enum PipeEnd {
    /// The sender has finished and everything has arrived.
    Finished,
    /// A message was lost.
    Broken,
    /// The receiver does not listen any more.
    Closed,
}

async fn sleep_until_some(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Carries one direction of a stream, in order.
async fn pipe<T>(
    network: &Network,
    (from, to): (MemberId, MemberId),
    what: &str,
    source: &mut mpsc::Receiver<T>,
    sink: &mpsc::Sender<T>,
) -> PipeEnd {
    let mut flying: VecDeque<(Instant, T)> = VecDeque::new();
    let mut open = true;
    while open || !flying.is_empty() {
        let next = flying.front().map(|(at, _)| *at);
        tokio::select! {
            biased;
            () = sleep_until_some(next) => {
                let Some((_, message)) = flying.pop_front() else { continue };
                if network.is_cut(from, to) {
                    return PipeEnd::Broken;
                }
                if sink.send(message).await.is_err() {
                    return PipeEnd::Closed;
                }
            }
            received = source.recv(), if open && flying.len() < STREAM_WINDOW => match received {
                None => open = false,
                Some(message) => match network.draw(from, to, what) {
                    Fate::Lost => return PipeEnd::Broken,
                    Fate::Arrives(delay) => {
                        let earliest = flying.back().map_or(Instant::now(), |(at, _)| *at);
                        flying.push_back((earliest.max(Instant::now() + delay), message));
                    }
                },
            },
        }
    }
    PipeEnd::Finished
}

/// One process's way to the others.
pub struct NodePeers {
    pub network: Network,
    pub life: Life,
}

fn no_answer() -> PeerError {
    PeerError::NoAnswer("the simulated connection broke".into())
}

impl NodePeers {
    /// Sends one request and waits for its answer.
    fn call<Q, A>(
        &self,
        what: &'static str,
        to: &Peer,
        request: Q,
        serve: impl FnOnce(LeasePeer, Q) -> BoxFuture<'static, PeerResult<A>> + Send + 'static,
    ) -> BoxFuture<'static, PeerResult<A>>
    where
        Q: Send + 'static,
        A: Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let (network, life, to) = (self.network.clone(), self.life.clone(), to.id);
        if life.is_alive() {
            tokio::spawn(async move {
                let result = carry(&network, life.member, to, what, request, serve).await;
                // The caller may have stopped waiting.
                let _ = answer.send(result);
            });
        }
        Box::pin(async move { answered.await.unwrap_or_else(|_| Err(no_answer())) })
    }
}

async fn carry<Q, A>(
    network: &Network,
    from: MemberId,
    to: MemberId,
    what: &str,
    request: Q,
    serve: impl FnOnce(LeasePeer, Q) -> BoxFuture<'static, PeerResult<A>> + Send + 'static,
) -> PeerResult<A>
where
    Q: Send + 'static,
    A: Send + 'static,
{
    if !network.pass(from, to, what).await {
        sleep(network.silence()).await;
        return Err(no_answer());
    }
    let Some(Endpoint { leases, life }) = network.endpoint(to) else {
        return Err(PeerError::Unreachable("nobody listens there".into()));
    };
    let Some(result) = life.run(async move { serve(leases, request).await }).await else {
        sleep(network.silence()).await;
        return Err(no_answer());
    };
    if !network.pass(to, from, what).await {
        sleep(network.silence()).await;
        return Err(no_answer());
    }
    result
}

/// Carries a stream of append requests and its answers until one side ends or it breaks.
async fn carry_appends(
    network: Network,
    from: MemberId,
    to: MemberId,
    mut requests: mpsc::Receiver<peerpb::AppendRequest>,
    answers: mpsc::Sender<PeerResult<peerpb::AppendResponse>>,
) {
    if !network.pass(from, to, "open").await {
        sleep(network.silence()).await;
        // Nobody listens any more if this fails; so below.
        let _ = answers.send(Err(no_answer())).await;
        return;
    }
    let Some(Endpoint { leases, life }) = network.endpoint(to) else {
        let refused = PeerError::Unreachable("nobody listens there".into());
        let _ = answers.send(Err(refused)).await;
        return;
    };
    let (arrive, arrived) = mpsc::channel(STREAM_WINDOW);
    let (back, mut coming_back) = mpsc::channel(STREAM_WINDOW);
    let process = life.clone();
    life.spawn(async move {
        let arrived = stream::unfold(arrived, |mut arrived| async move {
            arrived.recv().await.map(|message| (message, arrived))
        });
        let mut results = leases.inbound.append(arrived);
        while let Some(result) = results.next().await {
            if !process.is_alive() || back.send(result).await.is_err() {
                return;
            }
        }
    });
    let broken = {
        let there = async {
            let end = pipe(&network, (from, to), "append", &mut requests, &arrive).await;
            drop(arrive);
            match end {
                PipeEnd::Broken => {}
                // What was sent will still be answered.
                PipeEnd::Finished | PipeEnd::Closed => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = answers.closed() => false,
            () = life.ended() => true,
            () = there => true,
            end = pipe(&network, (to, from), "appended", &mut coming_back, &answers) => {
                matches!(end, PipeEnd::Broken)
            }
        }
    };
    if broken {
        drop(coming_back);
        sleep(network.silence()).await;
        let _ = answers.send(Err(no_answer())).await;
    }
}

macro_rules! call {
    ($self:ident, $to:ident, $method:ident, $request:ident) => {
        $self.call(stringify!($method), &$to, $request, |member, request| {
            Box::pin(async move { member.inbound.$method(request).await })
        })
    };
}

impl Peers for NodePeers {
    fn append(
        &self,
        to: Peer,
        mut requests: BoxStream<'static, peerpb::AppendRequest>,
    ) -> BoxFuture<'static, PeerResult<AppendResponses>> {
        let (leave, leaving) = mpsc::channel(STREAM_WINDOW);
        let (answer, answers) = mpsc::channel(STREAM_WINDOW);
        let life = self.life.clone();
        self.life.spawn(async move {
            loop {
                let request = tokio::select! {
                    biased;
                    () = leave.closed() => return,
                    request = requests.next() => request,
                };
                let Some(request) = request.filter(|_| life.is_alive()) else { return };
                if leave.send(request).await.is_err() {
                    return;
                }
            }
        });
        let from = self.life.member;
        tokio::spawn(carry_appends(self.network.clone(), from, to.id, leaving, answer));
        let answers = stream::unfold(answers, |mut answers| async move {
            answers.recv().await.map(|answer| (answer, answers))
        });
        Box::pin(async move { Ok(answers.boxed()) })
    }

    fn vote(
        &self,
        to: Peer,
        request: peerpb::VoteRequest,
    ) -> BoxFuture<'static, PeerResult<peerpb::VoteResponse>> {
        call!(self, to, vote, request)
    }

    fn snapshot(
        &self,
        to: Peer,
        chunks: BoxStream<'static, peerpb::SnapshotChunk>,
    ) -> BoxFuture<'static, PeerResult<peerpb::SnapshotResponse>> {
        transfers::send(self, to.id, chunks)
    }

    fn holding(
        &self,
        to: Peer,
        request: peerpb::HoldingRequest,
    ) -> BoxFuture<'static, PeerResult<peerpb::HoldingResponse>> {
        call!(self, to, holding, request)
    }

    fn transfer_leader(
        &self,
        to: Peer,
        request: peerpb::TransferLeaderRequest,
    ) -> BoxFuture<'static, PeerResult<peerpb::TransferLeaderResponse>> {
        call!(self, to, transfer_leader, request)
    }

    fn forward(
        &self,
        to: Peer,
        request: peerpb::ForwardRequest,
    ) -> BoxFuture<'static, PeerResult<peerpb::ForwardResponse>> {
        call!(self, to, forward, request)
    }

    fn read_index(
        &self,
        to: Peer,
        request: peerpb::ReadIndexRequest,
    ) -> BoxFuture<'static, PeerResult<peerpb::ReadIndexResponse>> {
        call!(self, to, read_index, request)
    }

    fn change_membership(
        &self,
        to: Peer,
        request: peerpb::ChangeMembershipRequest,
    ) -> BoxFuture<'static, PeerResult<peerpb::ChangeMembershipResponse>> {
        call!(self, to, change_membership, request)
    }

    fn lease_keep_alive(
        &self,
        to: Peer,
        request: peerpb::LeaseKeepAliveRequest,
    ) -> BoxFuture<'static, PeerResult<peerpb::LeaseKeepAliveResponse>> {
        self.call("lease_keep_alive", &to, request, |member, request| {
            Box::pin(async move { member.keep_alive(request).await })
        })
    }

    fn version(
        &self,
        _: Peer,
        _: peerpb::VersionRequest,
    ) -> BoxFuture<'static, PeerResult<peerpb::VersionResponse>> {
        Box::pin(async { Err(PeerError::Refused("versions belong to the edge".into())) })
    }

    fn hash_kv(
        &self,
        _: Peer,
        _: peerpb::HashKvRequest,
    ) -> BoxFuture<'static, PeerResult<peerpb::HashKvResponse>> {
        Box::pin(async { Err(PeerError::Refused("the checkers compare states".into())) })
    }

    fn lease_time_to_live(
        &self,
        to: Peer,
        request: peerpb::LeaseTimeToLiveRequest,
    ) -> BoxFuture<'static, PeerResult<peerpb::LeaseTimeToLiveResponse>> {
        self.call("lease_time_to_live", &to, request, |member, request| {
            Box::pin(async move { member.time_to_live(request).await })
        })
    }
}
