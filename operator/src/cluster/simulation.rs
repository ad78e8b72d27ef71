//! Simulated histories: a model of Kubernetes, nodes, volumes and etcd in which the real planner,
//! the real rules and the real list of mutations run, with an operator that dies between any two
//! writes, decides on old observations, and is disturbed by users and by losses.
//!
//! The oracle has two halves. While a history runs, every mutation is checked against the truth of
//! the model: a quorum that was there before an action is there after it, nobody starts empty
//! under an id that has run before, no serial comes twice, no voter's data is deleted, nor what a
//! client may have written to a first start that was given up, clients are let in only after the
//! cluster id is latched, and what waits for the interval between two replacements waits for one that
//! was. When the disturbances end, the cluster must become what was asked for.

mod disturbances;
mod observation;
mod operator;

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use types::{ClusterId, MemberId};

use super::{model::*, plan::plan};
use crate::crd::InitialState;

const HISTORIES: u64 = 5_000;
const TICK: SignedDuration = SignedDuration::from_secs(10);

/// Counted like actions: a bound volume that came back empty, and a claim of a first start that was
/// given up, with what a client may have written on it.
const EMPTIED: &str = "a volume came back empty";
const KEPT: &str = "a claim with possible writes was kept";
/// A quorum runs that the operator does not reach, and members of it have other settings than desired.
const CUT: &str = "a quorum was out of reach, and outdated";
/// The operator died between a serial and its object, which then was never made, or long after.
const UNUSED: &str = "a serial was given out for nothing";
const LATE: &str = "an object was made when nobody waited for it";
/// A server without data was told of other members than there are.
const STALE: &str = "a server found another member list than its own";

/// xorshift64*: small, seeded, and enough to choose disturbances.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 33) as usize % limit
    }

    fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Node {
    Up,
    Silent(Timestamp),
    /// Only from the control plane and the operator: what runs there runs on, with its peers and clients.
    Cut(Timestamp),
    Gone,
}

impl Node {
    fn comes_back(self) -> bool {
        matches!(self, Node::Silent(_) | Node::Cut(_))
    }
}

/// After this time without a word of the kubelet, Pods are marked as not ready.
const GRACE: SignedDuration = SignedDuration::from_secs(40);

#[derive(Clone, Debug)]
struct Data {
    id: MemberId,
    applied: u64,
    /// Of the cluster that it belongs to.
    token: String,
    /// It was part of a cluster that took writes. No Service led there before the id was latched, but
    /// a client may have known the member's own address.
    written: bool,
}

#[derive(Clone, Debug)]
struct Volume {
    uid: String,
    node: Option<usize>,
    data: Option<Data>,
    /// It came back empty: the server finds in the member list that it has run before, and refuses.
    emptied: bool,
}

#[derive(Clone, Debug)]
struct Server {
    pod: Pod,
    token: String,
    /// Until then its image is on its way.
    starts_at: Timestamp,
    node: Option<usize>,
    running: bool,
    serving_since: Option<Timestamp>,
}

#[derive(Clone, Debug)]
struct Object {
    initial_state: InitialState,
    replacement: Option<Timestamp>,
    id: Option<MemberId>,
    listed_since: Option<Timestamp>,
    voted: bool,
    claim_uid: Option<String>,
    deletion_requested: bool,
    join_refused: bool,
    data_gone: bool,
}

#[derive(Clone, Debug)]
struct Etcd {
    cluster_id: ClusterId,
    /// Of the attempt that formed it. A cluster of an attempt that was given up may still answer.
    token: String,
    entries: Vec<Entry>,
    leader: Option<MemberId>,
    commit: u64,
}

struct World {
    chance: Chance,
    now: Timestamp,
    desired: Desired,
    status: Observed,
    objects: BTreeMap<Serial, Object>,
    volumes: BTreeMap<Serial, Volume>,
    servers: BTreeMap<Serial, Server>,
    nodes: Vec<Node>,
    etcd: Option<Etcd>,
    /// Go etcd refuses a learner while a voter is down; ours does not.
    refuses_learners: bool,
    /// A mistake that must be found: it takes the node controller's word for the kubelet's.
    believes_the_node_controller: bool,
    /// Another: a serial that was given out for a replacement is one.
    counts_serials: bool,
    /// Another: a member that has a name has run.
    takes_names_for_starts: bool,
    bad_templates: BTreeSet<String>,
    ids_started: BTreeSet<MemberId>,
    added: BTreeMap<MemberId, Timestamp>,
    serials_used: BTreeSet<Serial>,
    /// When an object was made in place of a lost member for the last time.
    replaced: Option<Timestamp>,
    /// Requests of operators that died, and when the API server hears of them.
    under_way: Vec<(Timestamp, Serial, JoinReason)>,
    uids: u64,
    log: Vec<String>,
    actions: BTreeMap<&'static str, u64>,
}

struct Died;

impl World {
    fn new(seed: u64) -> World {
        let mut chance = Chance(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let replicas = [1, 3, 5][chance.below(3)];
        let desired = Desired {
            names: Names {
                cluster: "main".to_owned(),
                namespace: "ns".to_owned(),
                tls: true,
                claim_suffix: "c0ffee00".to_owned(),
            },
            replicas,
            restored: chance.percent(20),
            template: "t0".to_owned(),
            paused: false,
            rolling: true,
            min_ready: SignedDuration::from_secs(10),
            lag_max: 100,
            replace_automatically: true,
            replacement_interval: SignedDuration::from_secs(chance.below(3) as i64 * 60),
        };
        World {
            now: Timestamp::from_second(1_800_000_000).unwrap(),
            desired,
            status: Observed::default(),
            objects: BTreeMap::new(),
            volumes: BTreeMap::new(),
            servers: BTreeMap::new(),
            nodes: vec![Node::Up; 9],
            etcd: None,
            refuses_learners: chance.percent(30),
            believes_the_node_controller: false,
            counts_serials: false,
            takes_names_for_starts: false,
            chance,
            bad_templates: BTreeSet::new(),
            ids_started: BTreeSet::new(),
            added: BTreeMap::new(),
            serials_used: BTreeSet::new(),
            replaced: None,
            under_way: Vec::new(),
            uids: 0,
            log: Vec::new(),
            actions: BTreeMap::new(),
        }
    }

    fn uid(&mut self) -> String {
        self.uids += 1;
        format!("uid-{}", self.uids)
    }

    // === The truth about etcd ===

    fn entry(&self, id: MemberId) -> Option<&Entry> {
        self.etcd.as_ref()?.entries.iter().find(|entry| entry.id == id)
    }

    /// Whether a member can be counted on: what is about to end cannot, though it still answers.
    fn runs(&self, entry: &Entry) -> bool {
        let serial = self.desired.names.serial_of(&entry.peer_url).unwrap();
        let data = self.volumes.get(&serial).and_then(|volume| volume.data.as_ref());
        self.servers.get(&serial).is_some_and(|server| server.running && !server.pod.terminating)
            && data.is_some_and(|data| data.id == entry.id)
    }

    fn voters(&self) -> Vec<Entry> {
        let entries = self.etcd.iter().flat_map(|etcd| &etcd.entries);
        entries.filter(|entry| !entry.learner).cloned().collect()
    }

    fn running_voters(&self) -> usize {
        self.voters().iter().filter(|entry| self.runs(entry)).count()
    }

    fn available(&self) -> bool {
        let voters = self.voters().len();
        voters > 0 && self.running_voters() >= quorum(voters)
    }

    /// Voters whose data exists on a node that is not gone.
    fn intact_voters(&self, except: Option<Serial>) -> usize {
        self.voters()
            .iter()
            .filter(|entry| {
                let serial = self.desired.names.serial_of(&entry.peer_url).unwrap();
                Some(serial) != except
                    && self.volumes.get(&serial).is_some_and(|volume| {
                        volume.data.as_ref().is_some_and(|data| data.id == entry.id)
                            && volume.node.is_none_or(|node| {
                                matches!(self.nodes[node], Node::Up | Node::Cut(_))
                            })
                    })
                    && self.objects.get(&serial).is_some_and(|object| !object.deletion_requested)
            })
            .count()
    }

    // === Time passes ===

    fn tick(&mut self) {
        self.now += TICK;
        self.arrive();
        let serials: Vec<Serial> = self.servers.keys().copied().collect();
        for serial in serials {
            self.run_kubelet(serial);
        }
        self.form();
        self.replicate();
    }

    fn run_kubelet(&mut self, serial: Serial) {
        let mut server = self.servers.remove(&serial).unwrap();
        if server.node.is_some_and(|node| matches!(self.nodes[node], Node::Cut(_))) {
            // It hears of nothing, neither of Pods that are to end nor of volumes that are gone.
            self.servers.insert(serial, server);
            return;
        }
        let Some(volume) = self.volumes.get(&serial).cloned() else {
            // The kubelet cannot mount what is not there.
            server.running = false;
            server.pod.down = Some(Cause::NotReady);
            self.servers.insert(serial, server);
            return;
        };
        if server.node.is_none() {
            let up: Vec<usize> =
                (0..self.nodes.len()).filter(|n| self.nodes[*n] == Node::Up).collect();
            server.node = match volume.node {
                Some(node) => (self.nodes[node] == Node::Up).then_some(node),
                None => Some(up[self.chance.below(up.len())]),
            };
        }
        match server.node.map(|node| self.nodes[node]) {
            Some(Node::Cut(_)) => unreachable!("its Pods are left alone"),
            Some(Node::Gone) => return, // Kubernetes collects Pods of deleted nodes.
            Some(Node::Silent(_)) => {
                server.running = false;
                server.pod.down = Some(Cause::NotReady);
            }
            None if server.pod.terminating => return,
            None => server.pod.down = Some(Cause::Unschedulable("no node".to_owned())),
            // The kubelet is not always quick to hear of it, and the server ends in its own time.
            Some(Node::Up) if server.pod.terminating => {
                if server.running && self.chance.percent(50) {
                    self.servers.insert(serial, server);
                }
                return;
            }
            Some(Node::Up) if self.bad_templates.contains(&server.pod.template) => {
                server.running = false;
                server.pod.down = Some(Cause::Image("not found".to_owned()));
            }
            Some(Node::Up) if self.now < server.starts_at => {}
            Some(Node::Up) if !server.running => {
                if let Some(volume) = self.volumes.get_mut(&serial) {
                    volume.node = server.node;
                }
                server.running = self.start(serial, &server);
                let said = "has already been bootstrapped".to_owned();
                let emptied = self.volumes.get(&serial).is_some_and(|volume| volume.emptied);
                let cause =
                    if emptied { Cause::DataGone(said) } else { Cause::Crash("exit 1".to_owned()) };
                server.pod.down = (!server.running).then_some(cause);
            }
            Some(Node::Up) => {}
        }
        if !server.running {
            server.serving_since = None;
        }
        self.servers.insert(serial, server);
    }

    /// What the server does with its data directory when it starts.
    fn start(&mut self, serial: Serial, server: &Server) -> bool {
        let peer_url = self.desired.names.peer_url(serial);
        let volume = self.volumes.get(&serial).unwrap();
        if volume.data.is_some() || volume.emptied {
            return !volume.emptied;
        }
        let (id, token) = if server.pod.new_cluster {
            // Also after the cluster was formed by the others: a slow starter of the first start.
            (id_of(&server.token, serial), server.token.clone())
        } else {
            let Some(etcd) = &mut self.etcd else { return false };
            let expected = etcd.entries.len();
            let Some(entry) = etcd.entries.iter_mut().find(|entry| entry.peer_url == peer_url)
            else {
                return false;
            };
            if server.pod.initial_cluster.split(',').count() != expected {
                *self.actions.entry(STALE).or_default() += 1;
                return false;
            }
            (entry.id, etcd.token.clone())
        };
        assert!(
            self.ids_started.insert(id),
            "I6: {serial} starts empty under the id {id}, which has run before"
        );
        self.volumes.get_mut(&serial).unwrap().data =
            Some(Data { id, applied: 0, token, written: false });
        true
    }

    fn form(&mut self) {
        let Some(bootstrap) = self.status.bootstrap.clone() else { return };
        if self.etcd.as_ref().is_some_and(|etcd| etcd.token == bootstrap.token) {
            return;
        }
        let started = bootstrap.serials.iter().filter(|serial| {
            self.servers.get(serial).is_some_and(|server| server.running)
                && self.volumes.get(serial).is_some_and(|v| {
                    v.data.as_ref().is_some_and(|d| d.id == id_of(&bootstrap.token, **serial))
                })
        });
        if started.count() < quorum(bootstrap.serials.len()) {
            return;
        }
        let entry = |serial: &Serial| Entry {
            id: id_of(&bootstrap.token, *serial),
            name: self.desired.names.member(*serial),
            peer_url: self.desired.names.peer_url(*serial),
            learner: false,
            started: false,
        };
        let entries = bootstrap.serials.iter().map(entry).collect();
        let cluster_id = ClusterId(id_of(&bootstrap.token, Serial(0)).0);
        let token = bootstrap.token;
        self.etcd = Some(Etcd { cluster_id, token, entries, leader: None, commit: 10 });
    }

    fn replicate(&mut self) {
        let available = self.available();
        let Some(mut etcd) = self.etcd.take() else { return };
        self.etcd = Some(etcd.clone());
        let running: Vec<MemberId> =
            etcd.entries.iter().filter(|entry| self.runs(entry)).map(|entry| entry.id).collect();
        if available {
            etcd.commit += 20;
            let votes = |id: &&MemberId| etcd.entries.iter().any(|e| e.id == **id && !e.learner);
            if !etcd.leader.is_some_and(|leader| running.contains(&leader) && votes(&&leader)) {
                let candidates: Vec<MemberId> = running.iter().filter(votes).copied().collect();
                etcd.leader = Some(candidates[self.chance.below(candidates.len())]);
            }
        } else {
            etcd.leader = None;
        }
        for (serial, server) in &mut self.servers {
            let Some(data) = self.volumes.get_mut(serial).and_then(|v| v.data.as_mut()) else {
                continue;
            };
            let answers = running.contains(&data.id) || server.pod.terminating;
            let serves = server.running && available && answers;
            server.serving_since = serves.then(|| server.serving_since.unwrap_or(self.now));
            if server.running {
                server.pod.down = (!serves).then_some(Cause::NotReady);
            }
            if serves {
                let entry = etcd.entries.iter_mut().find(|entry| entry.id == data.id);
                entry.into_iter().for_each(|entry| entry.started = true);
                data.applied = etcd.commit.min(data.applied + 5_000);
                data.written = true;
            }
        }
        self.etcd = Some(etcd);
    }

    fn settle(&mut self) {
        self.nodes.iter_mut().filter(|node| node.comes_back()).for_each(|node| *node = Node::Up);
        // A rollout would mend what must mend without one.
        if self.bad_templates.contains(&self.desired.template) || self.chance.percent(50) {
            self.desired.template = "last".to_owned();
        }
    }

    fn is_converged(&self) -> bool {
        if self.voters().len() != self.desired.replicas
            || self.objects.len() != self.desired.replicas
            || !self.under_way.is_empty()
        {
            return false;
        }
        let observed = self.observe();
        let plan = plan(&self.desired, &observed, self.now);
        plan.action.is_none()
            && plan.blocked.is_empty()
            && plan.ensures.is_empty()
            && observed.voters().len() == self.desired.replicas
            && observed.learners().is_empty()
            && observed.members.len() == self.desired.replicas
            && observed.members.values().all(|m| m.is_serving() && !m.is_outdated(&self.desired))
            && self.servers.values().all(|server| server.pod.serving)
    }
}

fn id_of(token: &str, serial: Serial) -> MemberId {
    let seed = token.bytes().fold(17_u64, |hash, byte| hash.wrapping_mul(31) + u64::from(byte));
    MemberId(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (serial.0 as u64).wrapping_mul(0xBF58_476D))
}

/// Runs one history; returns how often each action was taken.
fn run(seed: u64, plant: fn(&mut World)) -> BTreeMap<&'static str, u64> {
    let mut world = World::new(seed);
    plant(&mut world);
    let mut seen = world.observe();
    for _ in 0..100 {
        world.tick();
        if world.chance.percent(25) {
            world.disturb();
        }
        let stale = world.chance.percent(15);
        let old = stale.then(|| seen.clone());
        seen = world.observe();
        let _ = world.pass(old, 4);
    }
    world.settle();
    for tick in 0..1_500 {
        world.tick();
        let _ = world.pass(None, 1);
        if tick % 8 == 0 && world.is_converged() {
            return world.actions;
        }
    }
    let observed = world.observe();
    let stuck = plan(&world.desired, &observed, world.now);
    panic!(
        "seed {seed} does not converge to {} replicas\n{}\n{observed:#?}\n{stuck:#?}",
        world.desired.replicas,
        world.log.join("\n")
    );
}

/// Runs the histories with these seeds and names the one that fails.
fn run_all(seeds: impl Iterator<Item = u64>) -> BTreeMap<&'static str, u64> {
    let mut actions = BTreeMap::new();
    for seed in seeds {
        let counted = std::panic::catch_unwind(|| run(seed, |_| {})).unwrap_or_else(|cause| {
            eprintln!("history with seed {seed} failed");
            std::panic::resume_unwind(cause)
        });
        for (kind, count) in counted {
            *actions.entry(kind).or_default() += count;
        }
    }
    actions
}

/// `OPERATOR_HISTORIES` runs more of them.
#[test]
fn every_history_keeps_the_invariants_and_converges() {
    let wanted = std::env::var("OPERATOR_HISTORIES").ok().and_then(|text| text.parse().ok());
    let histories: u64 = wanted.unwrap_or(HISTORIES);
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
    let workers: Vec<_> = (0..threads)
        .map(|worker| {
            let seeds = (1..=histories).filter(move |seed| seed % threads == worker);
            std::thread::spawn(move || run_all(seeds))
        })
        .collect();
    let mut actions: BTreeMap<&'static str, u64> = BTreeMap::new();
    for worker in workers {
        let counted = worker.join().unwrap_or_else(|cause| std::panic::resume_unwind(cause));
        for (kind, count) in counted {
            *actions.entry(kind).or_default() += count;
        }
    }
    // A history that never does something proves nothing about it.
    for kind in [
        "FreezeBootstrap",
        "LatchCluster",
        "CreateMember",
        "AddLearner",
        "Promote",
        "Remove",
        "MoveLeader",
        "RestartPod",
        "Release",
        EMPTIED,
        KEPT,
        CUT,
        UNUSED,
        LATE,
        STALE,
    ] {
        assert!(actions.get(kind).is_some_and(|count| *count > 100), "{kind}: {actions:?}");
    }
}

/// What the first history says that fails by the mistake, among a part of those that are run above.
fn find_out(mistake: fn(&mut World), by: &str) -> Option<String> {
    let says = |cause: Box<dyn std::any::Any + Send>| cause.downcast_ref::<String>().cloned();
    (1..=HISTORIES / 5).find_map(|seed| {
        let said = std::panic::catch_unwind(|| run(seed, mistake)).err().and_then(says)?;
        said.contains(by).then_some(said)
    })
}

/// It stops what only seems not to run.
#[test]
fn an_operator_that_takes_the_node_controllers_word_for_the_kubelets_is_found_out() {
    let found = find_out(|world| world.believes_the_node_controller = true, "DeletePod");
    let found = found.expect("some history loses its quorum");
    assert!(found.contains("lost the quorum"), "{found}");
}

/// It holds a replacement back for one that never happened.
#[test]
fn an_operator_that_takes_a_serial_for_a_member_is_found_out() {
    let found = find_out(|world| world.counts_serials = true, "waits for no reason");
    found.expect("some history waits for a replacement that never was");
}

/// A member of the first start came late, when others had joined or left, and its Pod had been made anew:
/// it was told of members that were not those of the cluster any more, and refused to start for ever. All
/// members of a first start have names, also those that never ran.
#[test]
fn an_operator_that_takes_a_name_for_a_start_is_found_out() {
    let found = find_out(|world| world.takes_names_for_starts = true, "does not converge");
    found.expect("in some history a member never starts");
}
