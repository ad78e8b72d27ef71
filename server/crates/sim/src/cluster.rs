//! The members: starting, stopping and breaking them.
//!
//! One task, the nemesis, changes what runs; everybody else only asks who does.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use deadlines::LeasePeer;
use disk::{Disk, Fault, SimDisk};
use replica::{
    Blocking, Bootstrap, Handle, ImagePolicy, LogMetrics, LogWriterPlacement, Node, Parts, Replica,
    Rules, Timing, Unavailable,
};
use tokio::time::{sleep, timeout};
use types::{ClusterId, LeaseId, MemberId};
use watch::Hub;

use crate::chance::Chance;
use crate::checkers::agreement::Agreement;
use crate::counts::Event;
use crate::history::History;
use crate::journal::{AuthSample, Journal};
use crate::network::{Life, Network, NodePeers};
use crate::sink::Sink;
use crate::swarm::Plan;
use crate::trace::Trace;

const CLUSTER: ClusterId = ClusterId(0x6b65_656c);

/// How often it is looked whether a member's machine has lost its power.
pub const LOOK: Duration = Duration::from_millis(5);

/// A start that takes longer than this hangs.
const START_MAX: Duration = Duration::from_secs(60);

/// How long an orderly stop may take before the process is killed, as an init system does.
const STOP_MAX: Duration = Duration::from_secs(20);

/// A running process.
struct Process {
    life: Life,
    replica: Replica,
    sink: Arc<Sink>,
}

/// What a client needs of a running process.
#[derive(Clone)]
pub struct Service {
    pub life: Life,
    pub handle: Handle,
    pub hub: Option<Hub>,
    sink: Arc<Sink>,
}

impl Service {
    /// Renews a lease, as the member's service does it; 0 for one that is gone.
    ///
    /// # Errors
    /// When no leader answered in time.
    pub async fn keep_alive(&self, id: LeaseId) -> Result<i64, Unavailable> {
        let renewed = self.sink.leases.renew(&self.handle, &[id]).await?;
        Ok(renewed.first().copied().unwrap_or(0))
    }

    /// Whose token it is, if this process knows it.
    pub fn user_of(&self, token: &str) -> Option<String> {
        self.sink.tokens().user_of(token, self.sink.started.elapsed())
    }
}

struct Member {
    disk: SimDisk,
    bootstrap: Bootstrap,
    process: Option<Process>,
    frozen: bool,
    /// It was told to fail a disk operation, so it may stop for that.
    disk_may_fail: bool,
    /// It left the cluster and is never started again.
    gone: bool,
    /// It may be missing in the cluster: nobody was told that it was added, or its removal was asked
    /// for, whatever came of that.
    may_leave: bool,
}

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The machine loses its power: what was not synced is at risk.
    PowerLoss,
    /// SIGKILL: the machine lives on.
    Kill,
}

/// All members.
pub struct Cluster {
    pub plan: Plan,
    pub network: Network,
    pub history: History,
    pub journal: Journal,
    pub agreement: Agreement,
    pub trace: Trace,
    members: Mutex<BTreeMap<MemberId, Member>>,
    lives: Mutex<u64>,
}

fn lease_peer(replica: &Replica, sink: &Sink) -> LeasePeer {
    LeasePeer {
        inbound: replica.inbound(),
        handle: replica.handle().clone(),
        clock: sink.leases.clone(),
    }
}

fn node(id: MemberId) -> Node {
    Node { name: format!("m{id}"), peer_urls: vec![peer_url(id)], voter_intent: true }
}

/// Where a member's peers reach it.
pub fn peer_url(id: MemberId) -> String {
    format!("http://m{}:2380", id.0)
}

impl Cluster {
    /// The first members, none of them started.
    pub fn new(plan: Plan, trace: Trace) -> Arc<Self> {
        let first: BTreeMap<_, _> =
            (1..=plan.members).map(|id| (MemberId(id), node(MemberId(id)))).collect();
        let cluster = Arc::new(Self {
            network: Network::new(
                plan.seed,
                plan.network.clone(),
                plan.transfers.clone(),
                trace.clone(),
            ),
            history: History::new(trace.clone()),
            journal: Journal::new(trace.clone()),
            agreement: Agreement::default(),
            trace,
            members: Mutex::default(),
            lives: Mutex::new(0),
            plan,
        });
        for id in first.keys() {
            cluster.add(*id, Bootstrap::New(first.clone()));
        }
        cluster
    }

    /// Gives a member a machine with an empty disk.
    pub fn add(&self, id: MemberId, bootstrap: Bootstrap) {
        let disk = SimDisk::new(self.plan.seed.wrapping_mul(31).wrapping_add(id.0));
        let member = Member {
            disk,
            bootstrap,
            process: None,
            frozen: false,
            disk_may_fail: false,
            gone: false,
            may_leave: false,
        };
        self.members().insert(id, member);
    }

    /// Starts a member's process unless it runs; false if it did not come up.
    pub async fn start(&self, id: MemberId) -> bool {
        let Some(life) = self.new_life(id) else { return true };
        let sink = Arc::new(Sink::new(life.clone(), self));
        let Some(parts) = self.parts(&life, sink.clone()) else { return false };
        self.trace.note(format_args!("start member {} life {}", id.0, life.number));
        let started = self.while_powered(&life, START_MAX, replica::start(parts)).await;
        match started {
            Some(Ok(replica)) => {
                self.network.connect(&life, lease_peer(&replica, &sink));
                life.spawn(sink.leases.clone().run(replica.handle().clone()));
                if let Some(member) = self.members().get_mut(&id) {
                    member.process = Some(Process { life, replica, sink });
                }
                true
            }
            Some(Err(error)) => {
                life.end();
                if !life.disk.is_crashed() && !self.disk_may_fail(id) {
                    self.trace.violation(format!("member {} cannot start: {error}", id.0));
                }
                self.recover_disk(&life);
                false
            }
            None => {
                if life.is_alive() {
                    self.trace.violation(format!("member {} hangs while it starts", id.0));
                }
                life.end();
                self.recover_disk(&life);
                false
            }
        }
    }

    /// After a start that failed: the next one finds the machine with power.
    fn recover_disk(&self, life: &Life) {
        match life.disk.is_crashed() {
            true => self.lose_power(life),
            false => life.disk.kill(),
        }
        life.disk.clear_faults();
    }

    fn new_life(&self, id: MemberId) -> Option<Life> {
        let members = self.members();
        let member = members.get(&id).filter(|m| m.process.is_none() && !m.gone)?;
        let mut lives = self.lives.lock().unwrap_or_else(PoisonError::into_inner);
        *lives += 1;
        Some(Life::new(id, *lives, member.disk.clone()))
    }

    fn disk_may_fail(&self, id: MemberId) -> bool {
        self.members().get(&id).is_some_and(|member| member.disk_may_fail)
    }

    fn parts(&self, life: &Life, sink: Arc<Sink>) -> Option<Parts> {
        let bootstrap = self.members().get(&life.member)?.bootstrap.clone();
        let disk: Arc<dyn Disk> = Arc::new(life.disk.of_this_process());
        let engine_disk = disk.clone();
        let plan = &self.plan;
        let mut chance = Chance::new(plan.seed.wrapping_add(life.number), "flush");
        let flush_micros = plan.flush_micros;
        Some(Parts {
            cluster: CLUSTER,
            member: life.member,
            directory: PathBuf::from("member"),
            wal_directory: PathBuf::from("member/wal"),
            disk,
            open_engine: Arc::new(move |path: &Path| {
                let options = revlog::RevLogOptions {
                    segment_bytes: 64 << 10,
                    write_bytes: 4 << 10,
                    recent_bytes: 16 << 10,
                };
                let log = revlog::RevLog::open(engine_disk.clone(), path, options)?;
                Ok(Arc::new(log) as Arc<dyn revlog::RevStore>)
            }),
            peers: Arc::new(NodePeers { network: self.network.clone(), life: life.clone() }),
            protocol: replica::ProtocolVersions::OWN,
            events: sink,
            bootstrap,
            force_new_cluster: false,
            timing: Timing {
                heartbeat_interval: plan.heartbeat,
                election_timeout: plan.election,
                pre_vote: plan.pre_vote,
            },
            images: ImagePolicy {
                entries: plan.image_entries,
                bytes: 1 << 20,
                entries_kept: plan.entries_kept,
            },
            rules: Rules {
                request_timeout: plan.request_timeout,
                // Names are published by the edge, which is not here.
                strict_reconfig: false,
                learners_max: 2,
                priority_requests: false,
            },
            log_writer: LogWriterPlacement::Task(Box::new(move || {
                Duration::from_micros(chance.between(10, flush_micros))
            })),
            blocking: Blocking::Inline,
            metrics: LogMetrics::register(&prometheus::Registry::new()).ok()?,
        })
    }

    /// Runs work of a process; none if the process or the machine's power ends first, or time does.
    async fn while_powered<T: Send + 'static>(
        &self,
        life: &Life,
        at_most: Duration,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let power_fails = async {
            while life.is_alive() {
                sleep(LOOK).await;
            }
        };
        let work = timeout(at_most, life.run(work));
        tokio::select! {
            biased;
            result = work => result.ok().flatten(),
            () = power_fails => None,
        }
    }

    /// Ends a member's process at once.
    pub fn end(&self, id: MemberId, end: End) {
        let Some(process) = self.take_process(id) else { return };
        self.trace.note(format_args!("{end:?} of member {}", id.0));
        process.life.end();
        process.life.disk.clear_faults();
        match end {
            End::PowerLoss => self.lose_power(&process.life),
            End::Kill => process.life.disk.kill(),
        }
    }

    /// The machine of a process loses its power, unless it has already, and has it again.
    fn lose_power(&self, life: &Life) {
        if life.disk.is_crashed() {
            self.trace.count(Event::PowerLossAtOperation);
        }
        life.disk.restart();
    }

    /// Stops a member's process in order.
    pub async fn stop(&self, id: MemberId) {
        let Some(Process { life, replica, sink }) = self.take_process(id) else { return };
        self.trace.note(format_args!("stop member {}", id.0));
        life.disk.clear_faults();
        // Others still reach it while it hands over its leadership.
        self.network.connect(&life, lease_peer(&replica, &sink));
        let in_order = async {
            let led = replica.handle().leads();
            replica.hand_over_leadership().await;
            let handed_over = led && !replica.handle().leads();
            replica.shutdown().await;
            handed_over
        };
        let stopped = self.while_powered(&life, STOP_MAX, in_order).await;
        self.trace.count(Event::Stop);
        if stopped == Some(true) {
            self.trace.count(Event::HandOver);
        }
        self.trace.note(format_args!("stopped member {}: {}", id.0, stopped.is_some()));
        self.network.disconnect(id);
        drop(sink);
        life.end();
        match life.disk.is_crashed() {
            true => self.lose_power(&life),
            false => life.disk.kill(),
        }
    }

    fn take_process(&self, id: MemberId) -> Option<Process> {
        self.network.disconnect(id);
        let mut members = self.members();
        let member = members.get_mut(&id)?;
        member.frozen = false;
        member.disk_may_fail = false;
        member.process.take()
    }

    /// A member may from now on be missing in the cluster.
    pub fn may_leave(&self, id: MemberId) {
        if let Some(member) = self.members().get_mut(&id) {
            member.may_leave = true;
        }
    }

    /// A member that is missing in the leader's cluster, which it must not be without a reason.
    pub fn retire_stranger(&self, id: MemberId) {
        if !self.members().get(&id).is_some_and(|member| member.may_leave) {
            self.trace.violation(format!("member {} is missing in its cluster", id.0));
        }
        self.retire(id);
    }

    /// A member that left the cluster: ends its process for good.
    pub fn retire(&self, id: MemberId) {
        self.end(id, End::Kill);
        if let Some(member) = self.members().get_mut(&id) {
            member.gone = true;
        }
    }

    /// Stops a process as SIGSTOP does.
    pub fn freeze(&self, id: MemberId) {
        self.set_frozen(id, true);
    }

    /// Lets it go on.
    pub fn thaw(&self, id: MemberId) {
        self.set_frozen(id, false);
    }

    fn set_frozen(&self, id: MemberId, frozen: bool) {
        let mut members = self.members();
        let Some(member) = members.get_mut(&id) else { return };
        let Some(process) = &member.process else { return };
        if member.frozen != frozen {
            self.trace.note(format_args!("member {} frozen: {frozen}", id.0));
            member.frozen = frozen;
            match frozen {
                true => {
                    self.trace.count(Event::Pause);
                    process.life.gate.pause();
                }
                false => process.life.gate.resume(),
            }
        }
    }

    /// Plans that a member's power fails, or that one of its writes fails, some operations from now.
    pub fn plan_disk_fault(&self, id: MemberId, after: u64, power: bool) {
        let mut members = self.members();
        let Some(member) = members.get_mut(&id).filter(|member| member.process.is_some()) else {
            return;
        };
        let at = member.disk.mutations() + after;
        member.disk_may_fail |= !power;
        let fault = if power { Fault::CrashAt(at) } else { Fault::FailAt(at) };
        self.trace.note(format_args!("member {} will meet {fault:?}", id.0));
        member.disk.inject(fault);
    }

    /// Takes back what was planned and has not happened.
    pub fn forget_disk_faults(&self, id: MemberId) {
        if let Some(member) = self.members().get(&id) {
            member.disk.clear_faults();
        }
    }

    /// Members whose machine has lost its power, or that stopped by themselves, as they should.
    pub fn fallen(&self) -> Vec<(MemberId, End)> {
        let members = self.members();
        let mut fallen = Vec::new();
        for (id, member) in &*members {
            let Some(process) = &member.process else { continue };
            if process.life.disk.is_crashed() {
                fallen.push((*id, End::PowerLoss));
            } else if let Some(fatal) = process.replica.handle().status().fatal {
                if !member.disk_may_fail {
                    self.trace.violation(format!("member {} has stopped: {fatal}", id.0));
                }
                self.trace.count(Event::DiskError);
                fallen.push((*id, End::Kill));
            }
        }
        fallen
    }

    /// Members that belong to the cluster.
    pub fn all(&self) -> Vec<MemberId> {
        self.members().iter().filter(|(_, m)| !m.gone).map(|(id, _)| *id).collect()
    }

    /// Members whose process runs, frozen or not.
    pub fn running(&self) -> Vec<MemberId> {
        let members = self.members();
        members.iter().filter(|(_, m)| m.process.is_some()).map(|(id, _)| *id).collect()
    }

    /// Members whose process runs and is not frozen.
    pub fn healthy(&self) -> Vec<MemberId> {
        let members = self.members();
        let healthy = |member: &Member| member.process.is_some() && !member.frozen;
        members.iter().filter(|(_, m)| healthy(m)).map(|(id, _)| *id).collect()
    }

    /// What a client talks to, if the member runs.
    pub fn service(&self, id: MemberId) -> Option<Service> {
        let members = self.members();
        let process = members.get(&id)?.process.as_ref().filter(|p| p.life.is_alive())?;
        Some(Service {
            life: process.life.clone(),
            handle: process.replica.handle().clone(),
            hub: process.sink.hub().clone(),
            sink: process.sink.clone(),
        })
    }

    /// Compares the states of all running members.
    pub fn compare_states(&self) {
        for id in self.running() {
            let Some(service) = self.service(id) else { continue };
            let views = service.handle.views();
            self.agreement.compare(id, &views, &self.trace);
            if self.plan.auth.is_used {
                let (index, auth) = (views.applied_index().0, views.auth());
                self.journal.sample(AuthSample { member: id, index, auth });
            }
        }
    }

    /// Mixes what every disk has done into the run's hash.
    pub fn mix_disks(&self) {
        for member in self.members().values() {
            self.trace.mix(member.disk.operations_hash());
        }
    }

    /// Counts what every disk has lost.
    pub fn count_losses(&self) {
        for member in self.members().values() {
            let toll = member.disk.toll();
            self.trace.count_times(Event::SectorLost, toll.lost);
            self.trace.count_times(Event::SectorTorn, toll.torn);
            self.trace.count_times(Event::NameLost, toll.names);
        }
    }

    fn members(&self) -> MutexGuard<'_, BTreeMap<MemberId, Member>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
