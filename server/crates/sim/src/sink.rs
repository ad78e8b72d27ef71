//! What a member tells of what it applies, to those who judge it and those who need it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use deadlines::{ClockOptions, Counters, LeaseClock};
use machine::{Applied, AppliedEntry, AuthChange, LeaseChange, SimpleTokens, Views};
use mvcc::RevisionEvents;
use replica::{EventSink, Observation};
use tokio::time::Instant;
use watch::{Hub, HubOptions};

use crate::cluster::Cluster;
use crate::counts::Event;
use crate::history::History;
use crate::journal::Journal;
use crate::network::Life;
use crate::swarm::Plan;
use crate::trace::Trace;

/// Leases that one entry ends at most; few, so that there are several entries.
const EXPIRED_PER_TURN_MAX: usize = 3;

/// How long a token lives that nobody uses; short, so that some end.
const TOKEN_LIFETIME: Duration = Duration::from_secs(8);

/// What listens to a member's state machine: the history, the journal, the hub of watches, the clock
/// of leases and the tokens.
pub(crate) struct Sink {
    life: Life,
    history: History,
    journal: Journal,
    trace: Trace,
    slice: u64,
    hub: Mutex<Option<Hub>>,
    pub(crate) leases: LeaseClock,
    pub(crate) started: Instant,
    tokens: Mutex<SimpleTokens>,
}

fn lease_clock(plan: &Plan) -> LeaseClock {
    let counter = |name: &str| {
        prometheus::Counter::new(name, "not shown").expect("the name of a counter is well-formed")
    };
    let options = ClockOptions {
        checkpoint_interval: plan.keeping.checkpoint_interval,
        extend: plan.election,
        patience: plan.request_timeout,
        expired_per_turn_max: EXPIRED_PER_TURN_MAX,
    };
    LeaseClock::new(options, Counters { renewed: counter("renewed"), expired: counter("expired") })
}

impl Sink {
    pub(crate) fn new(life: Life, cluster: &Cluster) -> Self {
        Self {
            life,
            history: cluster.history.clone(),
            journal: cluster.journal.clone(),
            trace: cluster.trace.clone(),
            slice: cluster.plan.workload.watch_slice,
            hub: Mutex::default(),
            leases: lease_clock(&cluster.plan),
            started: Instant::now(),
            tokens: Mutex::new(SimpleTokens::new(TOKEN_LIFETIME)),
        }
    }

    pub(crate) fn tokens(&self) -> MutexGuard<'_, SimpleTokens> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn hub(&self) -> MutexGuard<'_, Option<Hub>> {
        self.hub.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EventSink for Sink {
    fn publish(&self, revisions: Vec<RevisionEvents>) {
        self.history.published(self.life.member, self.life.number, &revisions);
        if let Some(hub) = &*self.hub() {
            hub.publish(revisions);
        }
    }

    fn leases_changed(&self, changes: &[LeaseChange]) {
        self.leases.apply(changes);
    }

    fn auth_changed(&self, changes: &[AuthChange]) {
        self.tokens().apply(changes, self.started.elapsed());
    }

    fn applied(&self, entry: &AppliedEntry, applied: &Applied) {
        self.journal.applied(self.life.member, entry, applied);
    }

    fn reset(&self, views: &Views) {
        self.leases.forget();
        // What took back a token may be among what was not applied one by one.
        self.tokens().forget();
        self.history.begin(self.life.number, views.mvcc.revision().0);
        if let Some(hub) = &*self.hub() {
            self.trace.count(Event::WatchesReset);
            return hub.reset(views.mvcc.clone());
        }
        let options = HubOptions {
            progress_interval: Duration::from_secs(1),
            slice_events: self.slice as usize,
            stream_bytes: 4096,
            ..HubOptions::default()
        };
        let (hub, task) = Hub::new(views.mvcc.clone(), options);
        let life = self.life.clone();
        self.life.spawn(async move {
            if let Err(error) = task.run().await {
                // A failing disk ends the member itself.
                tracing::warn!(member = life.member.0, %error, "the hub has stopped");
            }
        });
        *self.hub() = Some(hub);
    }

    fn observe(&self, observation: Observation<'_>) {
        self.trace.count(match observation {
            Observation::ImageSaved(_) => Event::ImageSaved,
            Observation::InstallEnded if self.life.is_alive() => Event::SnapshotInstalled,
            Observation::InstallEnded => Event::InstallInterrupted,
            Observation::Swept { .. } => Event::Compaction,
            _ => return,
        });
    }
}
