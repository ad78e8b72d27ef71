//! The operator of the model: the real planner, rules and mutations, on the model's world.

use super::{
    super::{
        invariants,
        mutation::{Mutation, ends_joining, mutations},
        plan::{Action, Ensure, Plan, RemoveReason, plan},
    },
    *,
};

fn replaces(action: &Action) -> bool {
    matches!(action, Action::CreateMember { reason: JoinReason::Replacement, .. })
}

impl World {
    /// One pass; `seen` is an older observation that a slow operator still decides on.
    pub(super) fn pass(
        &mut self,
        seen: Option<Observed>,
        crash_percent: usize,
    ) -> Result<(), Died> {
        let stale = seen.is_some();
        let observed = seen.unwrap_or_else(|| self.observe());
        let plan = plan(&self.desired, &observed, self.now);
        let tempting = |member: &Member| member.is_outdated(&self.desired) && member.is_down();
        let unseen = observed.cluster_id.is_some() && observed.membership.is_none();
        if !stale && unseen && self.available() && observed.members.values().any(tempting) {
            *self.actions.entry(CUT).or_default() += 1;
        }
        if !stale {
            for ensure in &plan.ensures {
                self.die(crash_percent)?;
                self.ensure(ensure);
            }
        }
        if !stale {
            self.space_replacements(&plan, &observed);
            self.die(crash_percent)?;
            self.remember(&observed);
        }
        let Some(action) = plan.action else {
            if !stale {
                self.die(crash_percent)?;
                self.status.last_replacement = observed.replaced_at();
            }
            return Ok(());
        };
        self.keep_the_successor(&action, stale);
        self.give_it_time(&action);
        let permitted = invariants::permit(&action, &self.desired, &self.observe(), self.now);
        if let Err(refusal) = permitted {
            assert!(stale, "the planner chose a forbidden action: {action:?}: {refusal}");
            return Ok(());
        }
        self.log.push(format!("{} {action:?}", self.now));
        *self.actions.entry(action.kind()).or_default() += 1;
        for mutation in mutations(&action) {
            if self.die(crash_percent).is_err() {
                self.leave_behind(&mutation);
                return Err(Died);
            }
            // Before the id is latched there is no client to whom a quorum could be lost (I8).
            let quorum_before = self.status.cluster_id.is_some() && self.available();
            let single = self.voters().len() == 1;
            if !self.mutate(&mutation, &action) {
                break;
            }
            assert!(
                !quorum_before
                    || self.available()
                    || (single && matches!(mutation, Mutation::DeletePod { .. })),
                "I2-I4: {mutation:?} lost the quorum"
            );
            self.check();
        }
        Ok(())
    }

    /// I11: two replacements are apart, and none waits but for one that was.
    fn space_replacements(&self, plan: &Plan, observed: &Observed) {
        let recent = |at| self.now.duration_since(at) < self.desired.replacement_interval;
        let recent = self.replaced.is_some_and(recent);
        let waits = plan.blocked.iter().any(|b| b.refusal.detail.starts_with("the last replace"));
        assert!(recent || !waits, "I11: it waits for no reason: {:?}", plan.blocked);
        let asked_for = observed.members.values().any(|member| member.deletion_requested);
        let due = asked_for || observed.voters().len() < self.desired.replicas;
        let replaced = plan.action.as_ref().is_some_and(replaces);
        assert!(due || !recent || !replaced, "I11: {:?} {:?}", self.replaced, plan.action);
    }

    /// The operator died, and its last request may be on its way.
    fn leave_behind(&mut self, mutation: &Mutation) {
        let Mutation::CreateMemberObject { serial, reason } = *mutation else { return };
        if self.chance.percent(50) {
            *self.actions.entry(UNUSED).or_default() += 1;
            return;
        }
        let late = TICK * (1 + self.chance.below(6) as i32);
        self.under_way.push((self.now + late, serial, reason));
    }

    /// What was on its way is done, though nobody waits for it any more.
    pub(super) fn arrive(&mut self) {
        let now = self.now;
        let due: Vec<_> = self.under_way.extract_if(.., |(at, ..)| *at <= now).collect();
        for (_, serial, reason) in due {
            self.log.push(format!("{now} the object of {serial} is made late"));
            *self.actions.entry(LATE).or_default() += 1;
            self.make_member(serial, reason);
        }
    }

    fn make_member(&mut self, serial: Serial, reason: JoinReason) {
        let initial_state = InitialState::Existing;
        self.ensure(&Ensure::MemberObject { serial, initial_state });
        if reason == JoinReason::Replacement {
            self.objects.get_mut(&serial).unwrap().replacement = Some(self.now);
            self.replaced = Some(self.now);
        }
    }

    /// What of an observation is written into the members' objects.
    fn remember(&mut self, observed: &Observed) {
        for (serial, member) in &observed.members {
            let Some(object) = self.objects.get_mut(serial) else { continue };
            if observed.membership.is_some() {
                let entry = observed.entry_of(&self.desired.names, member);
                object.voted = entry.is_some_and(|entry| !entry.learner);
            }
            let down = member.pod.as_ref().and_then(|pod| pod.down.as_ref());
            match &member.reach {
                Reach::Serving(_) => object.data_gone = false,
                Reach::Silent(_) if matches!(down, Some(Cause::DataGone(_))) => {
                    object.data_gone = object.id.is_some();
                }
                Reach::Silent(_) => {}
            }
        }
    }

    /// A learner is given its whole time to start, from when it was added.
    fn give_it_time(&self, action: &Action) {
        if let Action::Remove { reason: RemoveReason::NeverStarted, id, .. } = action {
            let given = self.now.duration_since(self.added[id]);
            let deadline = attempt_deadline(self.status.join_attempts);
            assert!(given >= deadline, "{action:?} after {given:#}");
        }
    }

    /// The successor of a member that lost its data is not sent away before it votes, also while the
    /// Pod of that member is made anew and has not said again what it found.
    fn keep_the_successor(&self, action: &Action, stale: bool) {
        let Action::Remove { reason: RemoveReason::NotNeeded, .. } = action else { return };
        let emptied = self.voters().iter().any(|entry| {
            let serial = self.desired.names.serial_of(&entry.peer_url).unwrap();
            self.volumes.get(&serial).is_some_and(|volume| volume.emptied)
                && self.objects.get(&serial).is_some_and(|object| object.data_gone)
        });
        let wanted = self.voters().len() <= self.desired.replicas;
        assert!(
            stale || !emptied || !wanted,
            "the successor of an emptied member goes: {action:?}"
        );
    }

    fn die(&mut self, percent: usize) -> Result<(), Died> {
        if self.chance.percent(percent) { Err(Died) } else { Ok(()) }
    }

    pub(super) fn ensure(&mut self, ensure: &Ensure) {
        match ensure.clone() {
            Ensure::MemberObject { serial, initial_state } => {
                self.objects.entry(serial).or_insert(Object {
                    initial_state,
                    replacement: None,
                    id: None,
                    listed_since: None,
                    voted: false,
                    claim_uid: None,
                    deletion_requested: false,
                    join_refused: false,
                    data_gone: false,
                });
            }
            Ensure::LatchMemberId { serial, id } => {
                let object = self.objects.get_mut(&serial).unwrap();
                (object.id, object.listed_since) = (Some(id), Some(self.now));
            }
            Ensure::Claim { serial } => {
                let uid = self.uid();
                let volume = Volume { uid, node: None, data: None, emptied: false };
                self.volumes.entry(serial).or_insert(volume);
            }
            Ensure::LatchClaim { serial, uid } => {
                self.objects.get_mut(&serial).unwrap().claim_uid = Some(uid);
            }
            Ensure::Pod { serial, new_cluster, initial_cluster } => {
                assert!(!new_cluster || self.status.cluster_id.is_none(), "I7: {serial}");
                let pod = Pod {
                    uid: self.uid(),
                    template: self.desired.template.clone(),
                    initial_cluster,
                    new_cluster,
                    terminating: false,
                    down: Some(Cause::NotReady),
                    kubelet: Kubelet::Heard,
                    serving: false,
                };
                let token = self.status.bootstrap.as_ref().unwrap().token.clone();
                let slow = self.chance.percent(10);
                let server = Server {
                    pod,
                    token,
                    starts_at: self.now
                        + TICK * if slow { self.chance.below(40) as i32 } else { 0 },
                    node: None,
                    running: false,
                    serving_since: None,
                };
                self.servers.entry(serial).or_insert(server);
            }
            Ensure::Serving { serial, serving, .. } => {
                assert!(!serving || self.status.cluster_id.is_some(), "I8: {serial}");
                self.servers.get_mut(&serial).unwrap().pod.serving = serving;
            }
        }
    }

    /// Returns whether the list goes on.
    pub(super) fn mutate(&mut self, mutation: &Mutation, action: &Action) -> bool {
        match mutation.clone() {
            Mutation::Intent => {
                self.status.last_replacement = self.observe().replaced_at();
                if ends_joining(action) {
                    self.status.join_attempts = 0;
                }
            }
            Mutation::FreezeBootstrap { serials, attempt } => {
                self.status.latest_serial = *serials.last().unwrap();
                for serial in &serials {
                    assert!(self.serials_used.insert(*serial), "I7: serial {serial} comes twice");
                }
                let token = format!("token-{attempt}");
                let started_at = self.now;
                self.status.bootstrap = Some(Bootstrap { token, attempt, started_at, serials });
            }
            Mutation::LatchCluster { cluster_id } => {
                let formed = &self.etcd.as_ref().unwrap().token;
                assert_eq!(*formed, self.status.bootstrap.as_ref().unwrap().token, "I7");
                self.status.cluster_id = Some(cluster_id);
            }
            Mutation::Allocate { serial } => {
                assert!(self.serials_used.insert(serial), "I7: serial {serial} comes twice");
                self.status.latest_serial = serial;
                self.status.join_attempts += 1;
                self.status.last_replacement = self.observe().replaced_at();
                if self.counts_serials && replaces(action) {
                    self.status.last_replacement = Some(self.now);
                }
            }
            Mutation::CreateMemberObject { serial, reason } => self.make_member(serial, reason),
            Mutation::DeletePod { serial, uid } => {
                let server = self.servers.get_mut(&serial).unwrap();
                assert_eq!(server.pod.uid, uid, "the wrong Pod is deleted: {action:?}");
                server.pod.terminating = true;
            }
            Mutation::DeletePodOf { serial } => {
                self.servers.remove(&serial);
            }
            Mutation::RetireClaim { serial } => {
                if let Some(data) = self.volumes.get(&serial).and_then(|v| v.data.as_ref()) {
                    self.check_retired(serial, data);
                }
                self.volumes.remove(&serial);
            }
            Mutation::DeleteMemberObject { serial } => {
                let data = self.volumes.get(&serial).and_then(|volume| volume.data.as_ref());
                if data.is_some_and(|data| data.written && !self.goes_on(data)) {
                    *self.actions.entry(KEPT).or_default() += 1;
                }
                self.objects.remove(&serial);
            }
            etcd => return self.mutate_etcd(&etcd),
        }
        true
    }

    fn mutate_etcd(&mut self, mutation: &Mutation) -> bool {
        if !self.available() {
            return false;
        }
        let all_run = self.voters().iter().all(|entry| self.runs(entry));
        let peer_url = |serial| self.desired.names.peer_url(serial);
        let unreached = matches!(mutation, Mutation::RemoveMember { id } if self.volumes.iter().any(
            |(serial, volume)| {
                volume.data.as_ref().is_some_and(|data| data.id == *id) && !self.reaches(*serial)
            }
        ));
        let etcd = self.etcd.as_mut().unwrap();
        match mutation.clone() {
            Mutation::AddLearner { serial } => {
                if self.refuses_learners && !all_run {
                    self.objects.get_mut(&serial).unwrap().join_refused = true;
                    return false;
                }
                let peer_url = peer_url(serial);
                assert!(etcd.entries.iter().all(|entry| entry.peer_url != peer_url), "added twice");
                let id = id_of("join", serial);
                self.added.insert(id, self.now);
                etcd.entries.push(Entry {
                    id,
                    name: String::new(),
                    peer_url,
                    learner: true,
                    started: false,
                });
            }
            Mutation::Promote { id } => {
                etcd.entries.iter_mut().find(|entry| entry.id == id).unwrap().learner = false;
            }
            Mutation::RemoveMember { id } => {
                etcd.entries.retain(|entry| entry.id != id);
                // Of one that the operator does not reach it cannot know, nor could it ask it to hand over.
                assert!(etcd.leader != Some(id) || unreached, "I2: the leader was removed");
                etcd.leader = etcd.leader.filter(|leader| *leader != id);
                // The removed server stops.
                for (serial, volume) in &self.volumes {
                    let removed = volume.data.as_ref().is_some_and(|data| data.id == id);
                    if let Some(server) = self.servers.get_mut(serial).filter(|_| removed) {
                        server.running = false;
                        server.serving_since = None;
                    }
                }
            }
            Mutation::MoveLeader { to, .. } => etcd.leader = Some(to),
            other => unreachable!("{other:?} is not a mutation of etcd"),
        }
        true
    }

    /// Whether the data is of the cluster whose id is latched, and so of which there are copies.
    fn goes_on(&self, data: &Data) -> bool {
        let formed = self.etcd.as_ref().is_some_and(|etcd| etcd.token == data.token);
        self.status.cluster_id.is_some() && formed
    }

    fn check_retired(&self, serial: Serial, data: &Data) {
        assert!(
            !data.written || self.goes_on(data),
            "I8: a client may have written to {serial}, whose first start was given up"
        );
        assert!(self.entry(data.id).is_none(), "I5: {serial} is a member and loses its data");
    }

    pub(super) fn check(&self) {
        let Some(etcd) = &self.etcd else { return };
        let learners = etcd.entries.iter().filter(|entry| entry.learner).count();
        assert!(learners <= 1, "I1: {learners} learners");
        for server in self.servers.values().filter(|server| server.pod.serving) {
            assert!(self.status.cluster_id.is_some(), "I8: {:?} serves clients", server.pod.uid);
        }
    }
}
