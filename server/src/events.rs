//! What apply tells the edge: events for watches, leases and tokens that changed, things to count.
//!
//! Everything here is called by the thread that applies and returns at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use deadlines::LeaseClock;
use machine::{AuthChange, CommandKind, LeaseChange, Views};
use mvcc::RevisionEvents;
use replica::{EventSink, Observation};
use watch::{Hub, HubOptions, HubTask};

use crate::auth::SimpleTokens;
use crate::ops::metrics::Metrics;

/// The watch hub, which is there once the replica has shown its state.
#[derive(Clone, Default)]
pub(crate) struct HubCell {
    hub: Arc<RwLock<Option<Hub>>>,
    failure: Arc<tokio::sync::watch::Sender<Option<String>>>,
}

impl HubCell {
    pub(crate) fn get(&self) -> Hub {
        let hub = self.hub.read().unwrap_or_else(PoisonError::into_inner).clone();
        hub.expect("the replica shows its state before any client is served")
    }

    /// Returns why no watch can be served any more, once that is so. The member must end then, as
    /// after a failed sync: its clients go on at another, from the revision that they have seen, while
    /// here they would wait for events that never come.
    pub(crate) async fn failed(&self) -> String {
        let mut failure = self.failure.subscribe();
        let failed = failure.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        match failed {
            Some(reason) => reason,
            None => std::future::pending().await,
        }
    }

    fn fail(&self, reason: String) {
        tracing::error!(reason, "watches cannot be served; this member stops");
        self.failure.send_replace(Some(reason));
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
    /// Set by every entry that put a key or granted a lease.
    pub(crate) has_grown: Arc<AtomicBool>,
}

impl EventSink for Events {
    fn publish(&self, events: Vec<RevisionEvents>) {
        self.hub.get().publish(events);
    }

    fn leases_changed(&self, changes: &[LeaseChange]) {
        self.metrics.leases_changed(changes);
        self.leases.apply(changes);
    }

    fn observe(&self, observation: Observation<'_>) {
        if let Observation::Applied { commands, operations, .. } = &observation
            && (operations.puts > 0 || commands.contains(&(CommandKind::LeaseGrant, true)))
        {
            self.has_grown.store(true, Ordering::Relaxed);
        }
        self.metrics.observe(observation, self.slow_apply);
    }

    fn auth_changed(&self, changes: &[AuthChange]) {
        self.tokens.apply(changes);
    }

    fn reset(&self, views: &Views) {
        self.leases.forget();
        // What took back a token may be among what was not applied one by one.
        self.tokens.forget();
        let mut known = self.hub.hub.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(hub) = &*known {
            // Watches go on where they were, in the history of the new state.
            return hub.reset(views.mvcc.clone());
        }
        let (hub, task) = Hub::new(views.mvcc.clone(), self.options.clone());
        *known = Some(hub);
        drop(known);
        let (thread, cell) =
            (std::thread::Builder::new().name("watch".to_owned()), self.hub.clone());
        if let Err(error) = thread.spawn(move || run_hub(task, &cell)) {
            self.hub.fail(format!("the watch hub has no thread: {error}"));
        }
    }
}

fn run_hub(task: HubTask, cell: &HubCell) {
    match tokio::runtime::Builder::new_current_thread().enable_time().build() {
        Ok(runtime) => {
            if let Err(error) = runtime.block_on(task.run()) {
                cell.fail(format!("the watch hub cannot read the store: {error}"));
            }
        }
        Err(error) => cell.fail(format!("the watch hub has no runtime: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use mvcc::Store;
    use mvcc::memory::MemoryRevs;
    use revlog::RevStore;
    use types::LeaseId;
    use watch::CreateWatch;

    use super::*;

    #[tokio::test]
    async fn a_store_that_cannot_be_read_for_watches_ends_the_member() {
        let records = Arc::new(MemoryRevs::default());
        let store = Store::empty(records.clone());
        let (hub, task) = Hub::new(store.read(), HubOptions::default());
        let cell = HubCell::default();
        let thread = std::thread::spawn({
            let cell = cell.clone();
            move || run_hub(task, &cell)
        });
        let (handle, mut output) = hub.open();
        let watch = CreateWatch { key: "a".into(), prev_kv: true, ..CreateWatch::default() };
        handle.create(watch).await;
        assert!(output.next().await.is_some(), "the watch is there before anything happens");
        for _ in 0..2 {
            let mut writer = store.writer();
            writer.begin();
            writer.put("a".into(), "1".into(), LeaseId(0));
            writer.end();
            let events = writer.commit().unwrap();
            // As after a sector went bad: no compaction said that the record may go.
            records.remove(&[events[0].events[0].record]).unwrap();
            hub.publish(events);
        }
        let reason = cell.failed().await;
        assert!(reason.starts_with("the watch hub cannot read the store: "), "{reason}");
        assert!(reason.contains("record 2/0"), "{reason}");
        thread.join().unwrap();
    }
}
