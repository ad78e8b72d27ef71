//! The task that breaks things, and mends them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use replica::{Bootstrap, MembershipChange};
use tokio::time::{Instant, sleep, timeout};
use types::MemberId;

use crate::chance::Chance;
use crate::cluster::{Cluster, End, LOOK, peer_url};
use crate::counts::Event;
use crate::network::Transfer;

/// How often states are compared.
const COMPARE: Duration = Duration::from_millis(300);

/// How long the sender of a snapshot is stopped, in milliseconds: longer than a receiver waits for it.
const SENDER_STOPS: (u64, u64) = (10_500, 14_000);

/// Breaks a cluster by its plan.
pub struct Nemesis {
    cluster: Arc<Cluster>,
    chance: Chance,
    /// When which member starts again, and when which goes on.
    starts: BTreeMap<MemberId, Instant>,
    thaws: BTreeMap<MemberId, Instant>,
    heal_at: Option<Instant>,
    next_id: u64,
    compare_at: Instant,
    transfers: TransferStrikes,
}

/// Which snapshots under way are struck, and when.
struct TransferStrikes {
    chance: Chance,
    /// The newest one that was looked at.
    newest: u64,
    /// After how many pieces each is struck.
    after: BTreeMap<u64, u64>,
}

impl Nemesis {
    /// A nemesis that has broken nothing.
    pub fn new(cluster: Arc<Cluster>) -> Self {
        Self {
            chance: Chance::new(cluster.plan.seed, "nemesis"),
            starts: BTreeMap::new(),
            thaws: BTreeMap::new(),
            heal_at: None,
            next_id: cluster.plan.members + 1,
            compare_at: Instant::now(),
            transfers: TransferStrikes {
                chance: Chance::new(cluster.plan.seed, "transfer strikes"),
                newest: 0,
                after: BTreeMap::new(),
            },
            cluster,
        }
    }

    /// Starts all members and lets them find a leader.
    pub async fn begin(&mut self) {
        for id in self.cluster.all() {
            self.cluster.start(id).await;
        }
    }

    /// Breaks and mends until the time is over or a promise is broken.
    pub async fn rage(&mut self, until: Instant) {
        let mut strike_at = Instant::now() + self.pause();
        while Instant::now() < until && self.cluster.trace.first_violation().is_none() {
            sleep(LOOK).await;
            self.tend().await;
            self.strike_transfers();
            if Instant::now() >= strike_at {
                self.strike().await;
                strike_at = Instant::now() + self.pause();
            }
        }
    }

    /// Mends everything and keeps it so for a while.
    pub async fn mend(&mut self) {
        self.cluster.trace.note(format_args!("mend everything"));
        self.cluster.count_losses();
        self.cluster.trace.end_count();
        self.cluster.network.become_perfect();
        for id in self.cluster.running() {
            self.cluster.thaw(id);
        }
        self.thaws.clear();
        self.starts.clear();
        // A disk fault that is still to come would break what was mended.
        for (id, end) in self.cluster.fallen() {
            self.cluster.end(id, end);
        }
        for id in self.cluster.running() {
            self.cluster.forget_disk_faults(id);
        }
        for id in self.cluster.all() {
            for _ in 0..3 {
                if self.cluster.start(id).await {
                    break;
                }
            }
        }
    }

    /// Takes the power of all members at once and starts them again.
    pub async fn black_out(&mut self) {
        self.cluster.trace.note(format_args!("power loss of all members"));
        let running = self.cluster.running();
        for id in &running {
            self.cluster.end(*id, End::PowerLoss);
        }
        for id in running {
            self.cluster.start(id).await;
        }
    }

    fn pause(&mut self) -> Duration {
        let faults = &self.cluster.plan.faults;
        let millis = self.chance.between(faults.pause_min_millis, faults.pause_max_millis);
        Duration::from_millis(millis)
    }

    /// Does what was planned for now, and follows what happened by itself.
    pub async fn tend(&mut self) {
        let now = Instant::now();
        for (id, end) in self.cluster.fallen() {
            self.cluster.end(id, end);
            self.start_later(id);
        }
        if self.heal_at.is_some_and(|at| at <= now) {
            self.heal_at = None;
            self.cluster.trace.note(format_args!("heal the network"));
            self.cluster.network.heal();
        }
        let due = |plans: &BTreeMap<MemberId, Instant>| -> Vec<MemberId> {
            plans.iter().filter(|(_, at)| **at <= now).map(|(id, _)| *id).collect()
        };
        for id in due(&self.thaws) {
            self.thaws.remove(&id);
            self.cluster.thaw(id);
        }
        for id in due(&self.starts) {
            self.starts.remove(&id);
            match self.cluster.start(id).await {
                true => self.cluster.trace.count(Event::Restart),
                false => self.start_later(id),
            }
        }
        if self.compare_at <= now {
            self.compare_at = now + COMPARE;
            self.cluster.compare_states();
        }
    }

    fn start_later(&mut self, id: MemberId) {
        let millis = match self.chance.hits(300) {
            true => self.chance.between(0, 20),
            false => self.chance.between(20, 4000),
        };
        self.starts.insert(id, Instant::now() + Duration::from_millis(millis));
    }

    /// Whether one more member may be taken from the cluster for a while.
    fn may_take_one(&self) -> bool {
        let (all, healthy) = (self.cluster.all().len(), self.cluster.healthy().len());
        self.cluster.plan.faults.break_quorum || all == 1 || healthy > all / 2 + 1
    }

    async fn strike(&mut self) {
        let faults = self.cluster.plan.faults.clone();
        let weights = [
            faults.power_loss,
            faults.power_loss_at_operation,
            faults.power_loss_of_all,
            faults.kill,
            faults.stop,
            faults.partition,
            faults.one_way,
            faults.freeze,
            faults.move_leader,
            faults.membership,
            faults.save_image,
            faults.disk_error,
        ];
        if weights.iter().sum::<u64>() == 0 {
            return;
        }
        let kind = self.chance.weighted(&weights);
        let Some(victim) = self.victim() else { return };
        if matches!(kind, 0 | 1 | 3 | 4 | 7 | 11) && !self.may_take_one() {
            return;
        }
        match kind {
            0 => self.take(victim, End::PowerLoss),
            1 => {
                let after = self.chance.between(1, 60);
                self.cluster.plan_disk_fault(victim, after, true);
            }
            2 => {
                self.cluster.trace.count(Event::PowerLossOfAll);
                self.black_out().await;
            }
            3 => self.take(victim, End::Kill),
            4 => {
                self.cluster.stop(victim).await;
                self.start_later(victim);
            }
            5 => self.partition(),
            6 => self.cut_one_way(victim),
            7 => {
                self.cluster.freeze(victim);
                let millis = self.chance.between(50, 5000);
                self.thaws.insert(victim, Instant::now() + Duration::from_millis(millis));
            }
            8 => self.move_leader(),
            9 => self.change_membership().await,
            10 => self.save_image(victim),
            _ => {
                let after = self.chance.between(1, 60);
                self.cluster.plan_disk_fault(victim, after, false);
            }
        }
    }

    /// A running member, the leader more often than others.
    fn victim(&mut self) -> Option<MemberId> {
        let running = self.cluster.running();
        let leader = running
            .iter()
            .copied()
            .find(|id| self.cluster.service(*id).is_some_and(|service| service.handle.leads()));
        let any = self.chance.pick(&running).copied();
        if self.chance.hits(400) { leader.or(any) } else { any }
    }

    /// Looks after the snapshots under way and strikes those whose time has come.
    fn strike_transfers(&mut self) {
        let plan = self.cluster.plan.transfers.clone();
        for transfer in self.cluster.network.transfers() {
            let strikes = &mut self.transfers;
            if transfer.number > strikes.newest {
                strikes.newest = transfer.number;
                if strikes.chance.hits(plan.strike_per_mille) {
                    // The header is the first piece and the trailer the last.
                    let after = strikes.chance.between(1, plan.pieces + 1);
                    strikes.after.insert(transfer.number, after);
                }
            }
            let after = strikes.after.get(&transfer.number);
            if after.is_some_and(|after| *after <= transfer.arrived) {
                strikes.after.remove(&transfer.number);
                self.strike_transfer(&transfer);
            }
        }
    }

    fn strike_transfer(&mut self, transfer: &Transfer) {
        let kind = self.transfers.chance.below(6);
        let Transfer { number, from, to, .. } = *transfer;
        if kind < 5 && !self.may_take_one() {
            return;
        }
        self.cluster.trace.note(format_args!("strike {kind} at snapshot {number}"));
        self.cluster.trace.count(Event::SnapshotStruck);
        match kind {
            0 => self.take(to, End::PowerLoss),
            1 => self.take(to, End::Kill),
            2 => self.take(from, End::PowerLoss),
            3 => self.take(from, End::Kill),
            4 => {
                self.cluster.freeze(from);
                let millis = self.transfers.chance.between(SENDER_STOPS.0, SENDER_STOPS.1);
                self.thaws.insert(from, Instant::now() + Duration::from_millis(millis));
            }
            _ => {
                self.cluster.network.cut(from, to);
                self.cluster.network.cut(to, from);
                self.heal_later();
            }
        }
    }

    fn take(&mut self, victim: MemberId, end: End) {
        self.cluster.trace.count(match end {
            End::PowerLoss => Event::PowerLoss,
            End::Kill => Event::Kill,
        });
        self.cluster.end(victim, end);
        self.start_later(victim);
    }

    fn heal_later(&mut self) {
        let millis = self.chance.between(100, 8000);
        self.heal_at = Some(Instant::now() + Duration::from_millis(millis));
    }

    /// Divides the members into two sides.
    fn partition(&mut self) {
        let all = self.cluster.all();
        let mut sides = (Vec::new(), Vec::new());
        let lonely = self.chance.hits(500).then(|| self.victim()).flatten();
        for id in all {
            let left = match lonely {
                Some(lonely) => id == lonely,
                None => self.chance.hits(500),
            };
            if left { sides.0.push(id) } else { sides.1.push(id) }
        }
        self.cluster.trace.note(format_args!("partition {:?} from {:?}", sides.0, sides.1));
        if !sides.0.is_empty() && !sides.1.is_empty() {
            self.cluster.trace.count(Event::Partition);
        }
        for a in &sides.0 {
            for b in &sides.1 {
                self.cluster.network.cut(*a, *b);
                self.cluster.network.cut(*b, *a);
            }
        }
        self.heal_later();
    }

    fn cut_one_way(&mut self, victim: MemberId) {
        let outwards = self.chance.hits(500);
        let others: Vec<_> =
            self.cluster.all().into_iter().filter(|other| *other != victim).collect();
        for other in others {
            if self.chance.hits(700) {
                let (from, to) = if outwards { (victim, other) } else { (other, victim) };
                self.cluster.trace.note(format_args!("cut {} > {}", from.0, to.0));
                self.cluster.trace.count(Event::OneWayCut);
                self.cluster.network.cut(from, to);
            }
        }
        self.heal_later();
    }

    fn move_leader(&mut self) {
        let running = self.cluster.running();
        let leader = running
            .iter()
            .copied()
            .find(|id| self.cluster.service(*id).is_some_and(|service| service.handle.leads()));
        let Some(service) = leader.and_then(|id| self.cluster.service(id)) else { return };
        let Some(target) = self.chance.pick(&running).copied() else { return };
        self.cluster.trace.note(format_args!("move the leader to {}", target.0));
        let (life, trace) = (service.life.clone(), self.cluster.trace.clone());
        tokio::spawn(async move {
            // It may well fail: the target may be down.
            let moved = life.run(async move { service.handle.move_leader(target).await }).await;
            if target != life.member && matches!(moved, Some(Ok(()))) {
                trace.count(Event::LeaderMoved);
            }
        });
    }

    fn save_image(&mut self, victim: MemberId) {
        let Some(service) = self.cluster.service(victim) else { return };
        self.cluster.trace.note(format_args!("image on {}", victim.0));
        let life = service.life.clone();
        tokio::spawn(async move {
            // It may well fail: the member may be cut off.
            let _ = life.run(async move { service.handle.save_image().await }).await;
        });
    }

    /// Adds, promotes or removes a member.
    async fn change_membership(&mut self) {
        let Some(service) = self.victim().and_then(|id| self.cluster.service(id)) else { return };
        let all = self.cluster.all();
        let most = self.cluster.plan.members + 2;
        let least = self.cluster.plan.members.min(3);
        let change = match self.chance.below(3) {
            0 if (all.len() as u64) < most => {
                let id = MemberId(self.next_id);
                self.next_id += 1;
                let learner = self.chance.hits(500);
                MembershipChange::Add { id, peer_urls: vec![peer_url(id)], learner }
            }
            1 if all.len() as u64 > least => match self.chance.pick(&all) {
                Some(id) => MembershipChange::Remove { id: *id },
                None => return,
            },
            _ => {
                let status = service.handle.status();
                let learner = status.nodes.iter().find(|(_, node)| !node.voter_intent);
                match learner {
                    Some((id, _)) => MembershipChange::Promote { id: *id },
                    None => return,
                }
            }
        };
        self.cluster.trace.note(format_args!("membership {change:?}"));
        if let MembershipChange::Remove { id } = &change {
            self.cluster.may_leave(*id);
        }
        let life = service.life.clone();
        let asked = change.clone();
        let handle = service.handle;
        let work = life.run(async move { handle.change_membership(asked).await });
        // A member may be frozen while it is asked.
        let result = timeout(self.cluster.plan.request_timeout, work).await;
        self.cluster.trace.note(format_args!("membership {change:?}: {result:?}"));
        match (change, result) {
            // Whatever came of it, the new member may try to join.
            (MembershipChange::Add { id, .. }, result) => {
                self.cluster.add(id, Bootstrap::Join);
                if !matches!(result, Ok(Some(Ok(())))) {
                    self.cluster.may_leave(id);
                }
                self.cluster.start(id).await;
            }
            (MembershipChange::Remove { id }, Ok(Some(Ok(())))) => {
                self.thaws.remove(&id);
                self.starts.remove(&id);
                self.cluster.retire(id);
            }
            _ => {}
        }
    }
}
