//! What the planner knows: the desired cluster and one observation of the real one.
//!
//! Both are plain values. Nothing here reads a clock, Kubernetes or etcd, so that a test can put
//! any situation in front of the planner.

use std::{collections::BTreeMap, fmt};

use jiff::{SignedDuration, Timestamp};
use types::{ClusterId, MemberId};

use crate::crd::InitialState;
pub use crate::crd::JoinReason;

/// What the first attempt has; see [`attempt_deadline`].
const FIRST_DEADLINE: SignedDuration = SignedDuration::from_mins(10);
/// How often the deadline doubles.
const DOUBLINGS_MAX: i32 = 7;

/// Number of a member within its cluster; never used twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Serial(pub i64);

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The checked wish of the user, as far as the planner needs it.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired {
    pub names: Names,
    pub replicas: usize,
    /// The first member is seeded from a backup, and the others join it.
    pub restored: bool,
    /// Hash of everything that requires a restart when it changes.
    pub template: String,
    pub paused: bool,
    /// Whether the operator restarts members itself to bring changes to them.
    pub rolling: bool,
    pub min_ready: SignedDuration,
    pub lag_max: u64,
    pub replace_automatically: bool,
    pub replacement_interval: SignedDuration,
}

/// How members and their addresses are named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    pub cluster: String,
    pub namespace: String,
    pub tls: bool,
    /// Tells the claims of this cluster from those that an older cluster of this name left behind.
    pub claim_suffix: String,
}

impl Names {
    /// Name of the member and of its Pod.
    pub fn member(&self, serial: Serial) -> String {
        format!("{}-{serial}", self.cluster)
    }

    /// Name of the claim with the member's data.
    pub fn claim(&self, serial: Serial) -> String {
        format!("{}-{}", self.member(serial), self.claim_suffix)
    }

    /// The serial of a member by the name of its claim, if the claim is of this cluster and no other.
    pub fn serial_of_claim(&self, claim: &str) -> Option<Serial> {
        let rest = claim.strip_prefix(&self.cluster)?.strip_prefix('-')?;
        let serial = Serial(rest.split('-').next()?.parse().ok()?);
        (self.claim(serial) == claim).then_some(serial)
    }

    /// DNS name of the member's Pod below the headless Service.
    pub fn host(&self, serial: Serial) -> String {
        format!("{}.{}-peers.{}.svc", self.member(serial), self.cluster, self.namespace)
    }

    /// URL under which the other members reach this one; part of its identity in etcd.
    pub fn peer_url(&self, serial: Serial) -> String {
        format!("{}://{}:2380", self.scheme(), self.host(serial))
    }

    /// `http` or `https`.
    pub fn scheme(&self) -> &'static str {
        if self.tls { "https" } else { "http" }
    }

    /// The serial of a member by its peer URL, if the URL is one of ours.
    pub fn serial_of(&self, peer_url: &str) -> Option<Serial> {
        let name = peer_url.strip_prefix(self.scheme())?.strip_prefix("://")?.split('.').next()?;
        let serial = name.strip_prefix(&self.cluster)?.strip_prefix('-')?.parse().ok()?;
        (self.peer_url(Serial(serial)) == peer_url).then_some(Serial(serial))
    }
}

/// One observation. Everything in it was read in this pass and not from a cache.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// Latched identity of the cluster.
    pub cluster_id: Option<ClusterId>,
    pub bootstrap: Option<Bootstrap>,
    pub latest_serial: Serial,
    /// As far as the status has it: see [`Observed::replaced_at`].
    pub last_replacement: Option<Timestamp>,
    /// Members that were to join since the last one that voted.
    pub join_attempts: i32,
    /// A linearizable member list; absent when no quorum answered.
    pub membership: Option<Membership>,
    pub members: BTreeMap<Serial, Member>,
}

/// The frozen plan of the first start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bootstrap {
    pub token: String,
    pub attempt: i32,
    pub started_at: Timestamp,
    pub serials: Vec<Serial>,
}

/// etcd's member list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    pub cluster_id: ClusterId,
    pub entries: Vec<Entry>,
    pub corrupt: bool,
}

/// One member in etcd's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub id: MemberId,
    /// Those of the first start have theirs from the plan, whether they ever start or not.
    pub name: String,
    pub peer_url: String,
    pub learner: bool,
    /// It has run, and told the others where clients find it.
    pub started: bool,
}

/// One `EtcdMember` with what belongs to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    pub serial: Serial,
    pub initial_state: InitialState,
    /// When it was made, if that was in place of a lost one.
    pub replacement: Option<Timestamp>,
    pub id: Option<MemberId>,
    /// Since when etcd has had it in its list, as far as that was noted with the id.
    pub listed_since: Option<Timestamp>,
    /// It was a voter when a quorum answered last.
    pub voted: bool,
    /// Somebody deleted the object: replace this member.
    pub deletion_requested: bool,
    /// etcd refused the learner because another member is down.
    pub join_refused: bool,
    pub claim: Claim,
    pub pod: Option<Pod>,
    /// Evidence that the member cannot come back with its data.
    pub loss: Option<Loss>,
    /// When its node will have been silent for long enough to count as a loss.
    pub loss_due: Option<Timestamp>,
    pub reach: Reach,
}

/// The state of a member's claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It was never created.
    Unborn,
    /// It exists, but its uid is not latched yet, so no Pod may use it.
    Unlatched { uid: String },
    /// It exists and is the one that holds the member's data.
    Bound,
    /// The latched claim is gone, or another one stands in its place.
    Lost,
}

/// The member's Pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    pub uid: String,
    pub template: String,
    pub initial_cluster: String,
    /// It starts the cluster, and does not join it.
    pub new_cluster: bool,
    pub terminating: bool,
    /// What is wrong with it, as the API server has it.
    pub down: Option<Cause>,
    /// Whether that is the kubelet's word of now.
    pub kubelet: Kubelet,
    /// Whether Services may send clients to it.
    pub serving: bool,
}

/// Whether what the API server has of a Pod is what its kubelet sees. Of a node that is cut off it has
/// old words, and the node controller's own: that no Pod there is ready. The servers may run and serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kubelet {
    /// The node is ready, or there is none that the Pod could run on.
    Heard,
    Silent,
    /// The operator may not look at nodes.
    Unseen,
}

/// Why a member is down, as far as Kubernetes can tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    Image(String),
    Config(String),
    OutOfMemory,
    Crash(String),
    /// It says that it has run before and that what it had stored is gone.
    DataGone(String),
    Unschedulable(String),
    NotReady,
}

/// Evidence that a member is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Its data is gone, and the claim with it.
    Claim,
    /// Its claim is there and comes up empty, by the server's own word.
    Data,
    /// Its node was deleted or declared out of service.
    NodeGone,
    /// Its node has been not ready for longer than the policy waits. The member may come back.
    NodeSilent,
}

/// Whether the member itself answers. Silence is never death.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    Serving(Serving),
    Silent(Silence),
}

/// What a member says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Serving {
    pub since: Timestamp,
    pub lag: u64,
    pub leader: bool,
    pub version: String,
}

/// Why a member did not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Silence {
    NoAddress,
    Refused,
    Timeout,
    TlsRejected,
    IdentityMismatch,
    NoLeader,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::Image(detail) => write!(f, "Image: {detail}"),
            Cause::Config(detail) => write!(f, "Config: {detail}"),
            Cause::OutOfMemory => f.write_str("OutOfMemory"),
            Cause::Crash(detail) => write!(f, "Crash: {detail}"),
            Cause::DataGone(detail) => write!(f, "DataGone: {detail}"),
            Cause::Unschedulable(detail) => write!(f, "Unschedulable: {detail}"),
            Cause::NotReady => f.write_str("NotReady"),
        }
    }
}

/// After how long this attempt is given up: of a first start whose members crash or are lost again, for one
/// under a new token; of a learner that has not started since it was added, for another one. The first has ten
/// minutes and each further one twice as much, up to most of a day: what failed so often fails for a
/// reason that new volumes do not mend.
pub fn attempt_deadline(attempt: i32) -> SignedDuration {
    FIRST_DEADLINE * (1 << (attempt - 1).clamp(0, DOUBLINGS_MAX))
}

/// Tells the claims of the cluster with this uid from those of others of its name.
pub fn claim_suffix(uid: &str) -> &str {
    uid.split('-').next().unwrap_or("0")
}

/// Votes needed of `voters`.
pub fn quorum(voters: usize) -> usize {
    voters / 2 + 1
}

/// What a member's own words prove: one that had an id and now finds nothing under it has lost its
/// data. Before the id is latched the same words may come from a first start that was tried twice.
/// They count for as long as it does not serve, also when the Pod that said them is gone: another one
/// on the same volume needs its time to say so again. What serves has its data, whatever was said.
pub fn data_loss(
    id: Option<MemberId>,
    down: Option<&Cause>,
    said_before: bool,
    reach: &Reach,
) -> Option<Loss> {
    let said = said_before || matches!(down, Some(Cause::DataGone(_)));
    (id.is_some() && said && matches!(reach, Reach::Silent(_))).then_some(Loss::Data)
}

impl Member {
    /// The member answers and is part of a cluster with a leader.
    /// It answers and nothing says that it is about to end. A Pod that is being deleted answers until
    /// the kubelet has heard of it and the server has ended: who counts on it counts one too many.
    pub fn is_serving(&self) -> bool {
        matches!(self.reach, Reach::Serving(_)) && !self.is_ending()
    }

    fn is_ending(&self) -> bool {
        self.pod.as_ref().is_some_and(|pod| pod.terminating)
    }

    pub fn is_leader(&self) -> bool {
        matches!(&self.reach, Reach::Serving(serving) if serving.leader)
    }

    /// Entries behind the leader; a silent member counts as infinitely far behind.
    pub fn lag(&self) -> u64 {
        match &self.reach {
            Reach::Serving(serving) => serving.lag,
            Reach::Silent(_) => u64::MAX,
        }
    }

    /// Serving, close to the leader, and not only since a moment ago.
    pub fn is_stable(&self, desired: &Desired, now: Timestamp) -> bool {
        match &self.reach {
            Reach::Serving(serving) => {
                !self.is_ending()
                    && serving.lag <= desired.lag_max
                    && now.duration_since(serving.since) >= desired.min_ready
            }
            Reach::Silent(_) => false,
        }
    }

    /// The Pod was made from other settings than the desired ones.
    pub fn is_outdated(&self, desired: &Desired) -> bool {
        self.pod.as_ref().is_some_and(|pod| pod.template != desired.template && !pod.terminating)
    }

    /// It does not answer, and Kubernetes does not call it ready. It may run and serve all the same:
    /// see [`Kubelet`].
    pub fn is_down(&self) -> bool {
        !self.is_serving() && self.pod.as_ref().is_some_and(|pod| pod.down.is_some())
    }

    /// The server does not run: by its silence and by what is known of its container, if that is of now.
    pub fn does_not_run(&self) -> bool {
        let evident = |pod: &Pod| match (&pod.down, pod.kubelet) {
            (None | Some(Cause::NotReady), _) | (_, Kubelet::Silent) => false,
            (Some(_), Kubelet::Heard | Kubelet::Unseen) => true,
        };
        !self.is_serving() && self.pod.as_ref().is_some_and(evident)
    }

    /// It runs, and belongs to no quorum: it says that it has no leader, or its kubelet says that it is
    /// not ready, for which it would have to read with a quorum.
    pub fn has_no_quorum(&self) -> bool {
        match self.reach {
            Reach::Serving(_) => false,
            Reach::Silent(Silence::NoLeader) => true,
            Reach::Silent(_) => {
                let heard = |pod: &Pod| pod.down.is_some() && pod.kubelet == Kubelet::Heard;
                self.pod.as_ref().is_some_and(heard)
            }
        }
    }
}

impl Observed {
    /// The entry of a member: by its latched id, or by its address while no id is latched.
    pub fn entry_of<'a>(&'a self, names: &Names, member: &Member) -> Option<&'a Entry> {
        let entries = &self.membership.as_ref()?.entries;
        match member.id {
            Some(id) => entries.iter().find(|entry| entry.id == id),
            None => {
                let peer_url = names.peer_url(member.serial);
                entries.iter().find(|entry| entry.peer_url == peer_url)
            }
        }
    }

    /// When a member was made in place of a lost one for the last time. A serial that was given out for
    /// one is none yet.
    pub fn replaced_at(&self) -> Option<Timestamp> {
        let made = self.members.values().filter_map(|member| member.replacement).max();
        made.max(self.last_replacement)
    }

    /// The member object of an entry, if there is one.
    pub fn member_of(&self, entry: &Entry) -> Option<&Member> {
        self.members.values().find(|member| member.id == Some(entry.id))
    }

    pub fn voters(&self) -> Vec<&Entry> {
        self.entries().filter(|entry| !entry.learner).collect()
    }

    pub fn learners(&self) -> Vec<&Entry> {
        self.entries().filter(|entry| entry.learner).collect()
    }

    /// How many the quorum is counted among: a learner that serves may vote at any moment. While nobody can be
    /// asked, as far as it was last heard.
    pub fn electorate(&self) -> usize {
        if self.membership.is_none() {
            return self.members.values().filter(|member| member.voted).count();
        }
        let serves = |entry: &&Entry| self.member_of(entry).is_some_and(Member::is_serving);
        self.voters().len() + self.learners().into_iter().filter(serves).count()
    }

    fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.membership.iter().flat_map(|membership| &membership.entries)
    }

    /// Voters that answer, optionally without one of them.
    pub fn healthy_voters(&self, without: Option<MemberId>) -> usize {
        self.voters()
            .into_iter()
            .filter(|entry| Some(entry.id) != without)
            .filter(|entry| self.member_of(entry).is_some_and(Member::is_serving))
            .count()
    }
}
