//! The log as the members applied it.
//!
//! Every member says what it applied at which index and what came of it. Two members, or one before
//! and after it was started again, must never say two things. What all of them say together is the
//! one order of everything that was proposed, writes and changes of permissions alike.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use machine::{
    Applied, AppliedEntry, AppliedPayload, Auth, Batch, CommandKind, MembershipEntry, Outcome,
    Proposal, Ticket,
};
use tokio::time::Instant;
use types::{MemberId, Term};

use crate::counts::Event;
use crate::trace::Trace;

/// A command of an entry.
#[derive(Clone, Debug)]
pub struct Logged {
    pub ticket: Ticket,
    pub proposal: Proposal,
    /// Whether it was done rather than refused.
    pub done: bool,
    /// What its client is told; known once the member that it waits at has applied it.
    pub outcome: Option<Outcome>,
}

/// An applied entry.
#[derive(Clone, Debug)]
pub struct LoggedEntry {
    pub term: Term,
    /// The first member that applied it, and when.
    pub by: MemberId,
    pub at: Duration,
    payload: AppliedPayload,
    pub commands: Vec<Logged>,
}

/// Users and roles as a member had them.
#[derive(Clone, Debug)]
pub struct AuthSample {
    pub member: MemberId,
    pub index: u64,
    pub auth: Arc<Auth>,
}

/// The journal of one run; clones share it.
#[derive(Clone)]
pub struct Journal {
    state: Arc<Mutex<State>>,
    start: Instant,
    trace: Trace,
}

#[derive(Default)]
struct State {
    entries: BTreeMap<u64, LoggedEntry>,
    samples: Vec<AuthSample>,
    newest: Newest,
}

/// What the log said last: each of its entries is first applied in its order.
#[derive(Default)]
struct Newest {
    term: Option<Term>,
    membership: Option<MembershipEntry>,
}

impl Newest {
    /// Counts what the next entry of the log says.
    fn count(&mut self, entry: &LoggedEntry, trace: &Trace) {
        if self.term.is_some_and(|term| term < entry.term) {
            trace.count(Event::LeaderChange);
        }
        self.term = self.term.max(Some(entry.term));
        let expired =
            |command: &&Logged| command.done && command.proposal.kind == CommandKind::LeaseExpire;
        let expired = entry.commands.iter().filter(expired).count();
        trace.count_times(Event::LeaseExpired, expired as u64);
        let AppliedPayload::Membership(now) = &entry.payload else { return };
        if let Some(before) = self.membership.replace(now.clone()) {
            let (had, has) = (nodes(&before), nodes(now));
            let (voted, vote) = (voters(&before), voters(now));
            let count = |event, ids: BTreeSet<MemberId>| trace.count_times(event, ids.len() as u64);
            count(Event::MemberAdded, &has - &had);
            count(Event::MemberRemoved, &had - &has);
            count(Event::MemberPromoted, &(&vote - &voted) & &had);
        }
    }
}

fn nodes(membership: &MembershipEntry) -> BTreeSet<MemberId> {
    membership.nodes.iter().map(|node| node.id).collect()
}

fn voters(membership: &MembershipEntry) -> BTreeSet<MemberId> {
    membership.voters.iter().flatten().copied().collect()
}

impl Journal {
    /// Nothing was applied yet.
    pub fn new(trace: Trace) -> Self {
        Self { state: Arc::default(), start: Instant::now(), trace }
    }

    /// A member has applied an entry.
    pub fn applied(&self, member: MemberId, entry: &AppliedEntry, applied: &Applied) {
        let mut state = self.state();
        let index = entry.position.index.0;
        let State { entries, newest, .. } = &mut *state;
        let known = entries.entry(index).or_insert_with(|| {
            let logged = LoggedEntry {
                term: entry.position.term,
                by: member,
                at: self.start.elapsed(),
                payload: entry.payload.clone(),
                commands: commands(entry, applied),
            };
            newest.count(&logged, &self.trace);
            logged
        });
        if known.term != entry.position.term || known.payload != entry.payload {
            self.trace.violation(format!(
                "LOGS DIFFER at index {index}: member {} had {:?} of term {}, member {} has {:?} of \
                 term {}",
                known.by.0,
                known.payload,
                known.term.0,
                member.0,
                entry.payload,
                entry.position.term.0
            ));
            return;
        }
        if let Err(what) = agree(known, applied) {
            self.trace.violation(format!(
                "OUTCOMES DIFFER at index {index} between member {} and member {}: {what}",
                known.by.0, member.0
            ));
        }
    }

    /// A member shows its users and roles.
    pub fn sample(&self, sample: AuthSample) {
        self.state().samples.push(sample);
    }

    /// Everything that was applied, by index.
    pub fn entries(&self) -> BTreeMap<u64, LoggedEntry> {
        self.state().entries.clone()
    }

    /// Everything that members showed.
    pub fn samples(&self) -> Vec<AuthSample> {
        self.state().samples.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn commands(entry: &AppliedEntry, applied: &Applied) -> Vec<Logged> {
    let AppliedPayload::Batch(payload) = &entry.payload else { return Vec::new() };
    let proposals = Batch::decode(payload).expect("a member applies what can be decoded");
    proposals
        .into_iter()
        .zip(&applied.commands)
        .map(|((ticket, proposal), (_, done))| Logged {
            ticket,
            proposal,
            done: *done,
            outcome: None,
        })
        .collect()
}

/// Compares what came of an entry with what is known, and adds the answers that are new.
fn agree(known: &mut LoggedEntry, applied: &Applied) -> Result<(), String> {
    let done: Vec<bool> = applied.commands.iter().map(|(_, done)| *done).collect();
    let before: Vec<bool> = known.commands.iter().map(|command| command.done).collect();
    if done != before {
        return Err(format!("{before:?} and {done:?} were done of {:?}", known.commands));
    }
    for (ticket, outcome) in &applied.outcomes {
        let command = known.commands.iter_mut().find(|command| command.ticket == *ticket);
        let Some(command) = command else { continue };
        match &command.outcome {
            None => command.outcome = Some(outcome.clone()),
            Some(earlier) if earlier == outcome => {}
            Some(earlier) => return Err(format!("{earlier:?} and {outcome:?}")),
        }
    }
    Ok(())
}
