//! What apply tells the edge: events for watches, leases and tokens that changed, things to count.
//!
//! Everything here is called by the thread that applies and returns at once.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use machine::{AuthChange, LeaseChange, Views};
use mvcc::RevisionEvents;
use replica::{EventSink, Observation};
use watch::{Hub, HubOptions, HubTask};

use crate::auth::SimpleTokens;
use crate::leases::LeaseClock;
use crate::ops::metrics::Metrics;

/// The watch hub, which is there once the replica has shown its state.
#[derive(Clone, Default)]
pub(crate) struct HubCell(Arc<RwLock<Option<Hub>>>);

impl HubCell {
    pub(crate) fn get(&self) -> Hub {
        let hub = self.0.read().unwrap_or_else(PoisonError::into_inner).clone();
        hub.expect("the replica shows its state before any client is served")
    }
}

/// Those who are told.
pub(crate) struct Events {
    pub(crate) hub: HubCell,
    pub(crate) options: HubOptions,
    pub(crate) leases: LeaseClock,
    pub(crate) tokens: Arc<SimpleTokens>,
    pub(crate) metrics: Metrics,
    pub(crate) slow_apply: Duration,
}

impl EventSink for Events {
    fn publish(&self, events: Vec<RevisionEvents>) {
        self.metrics.published(&events);
        self.hub.get().publish(events);
    }

    fn leases_changed(&self, changes: &[LeaseChange]) {
        self.metrics.leases_changed(changes);
        self.leases.apply(changes);
    }

    fn observe(&self, observation: Observation<'_>) {
        self.metrics.observe(observation, self.slow_apply);
    }

    fn auth_changed(&self, changes: &[AuthChange]) {
        self.tokens.apply(changes);
    }

    fn reset(&self, views: &Views) {
        self.leases.forget();
        // What took back a token may be among what was not applied one by one.
        self.tokens.forget();
        let mut known = self.hub.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(hub) = &*known {
            // Watches go on where they were, in the history of the new state.
            return hub.reset(views.mvcc.clone());
        }
        let (hub, task) = Hub::new(views.mvcc.clone(), self.options.clone());
        *known = Some(hub);
        drop(known);
        let thread = std::thread::Builder::new().name("watch".to_owned());
        if let Err(error) = thread.spawn(move || run_hub(task)) {
            tracing::error!(%error, "the watch hub has no thread");
        }
    }
}

fn run_hub(task: HubTask) {
    match tokio::runtime::Builder::new_current_thread().enable_time().build() {
        Ok(runtime) => {
            if let Err(error) = runtime.block_on(task.run()) {
                tracing::error!(%error, "the watch hub cannot read the store");
            }
        }
        Err(error) => tracing::error!(%error, "the watch hub has no runtime"),
    }
}
