//! Refusing writes while a full disk can still be emptied, and beyond the quota of this member.
//!
//! A disk that is really full stops the log, and with it everything. So this member raises its NOSPACE
//! alarm when the log has no room for another segment or the disk is down to what deletions, compactions
//! and the images behind them need. The alarm stays until somebody disarms it, and comes back when there
//! is still no space then.
//!
//! Who proposes a write keeps it out of the log if it goes beyond the quota there (`api::context`). But
//! each member has a quota of its own, and each judges what it has applied, whoever proposed it (etcd's
//! `apply/quota.go`): a store that has reached the quota with a write raises the alarm, too. This one
//! comes back with the next write only.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use disk::Disk;
use machine::{AlarmKind, CommandKind, Proposal};
use proto::etcdserverpb::alarm_request::AlarmAction;
use proto::etcdserverpb::{AlarmRequest, AlarmType};
use replica::Handle;
use tokio_util::sync::CancellationToken;

use crate::boot::ServerFacts;

/// Whether `cost` more bytes stay below a quota.
pub(crate) fn fits(handle: &Handle, cost: u64, quota: u64) -> bool {
    let fits = |bytes: u64| bytes + cost < quota;
    // The first is cheap and may be too high, the second is exact and waits for the applier.
    handle.with_views(|views| fits(views.mvcc.store_bytes()))
        || fits(handle.views().mvcc.store_size().total)
}

/// How often it is looked; what is written in between comes out of the reserve.
const INTERVAL: Duration = Duration::from_millis(100);

/// Looks after the space in `directories` and the quota for as long as the server runs.
pub(crate) async fn watch(
    handle: Handle,
    disk: Arc<dyn Disk>,
    directories: Vec<PathBuf>,
    quota: Option<u64>,
    facts: Arc<ServerFacts>,
    stop: CancellationToken,
) {
    let me = handle.status().member_id;
    let mut was_low = false;
    let mut was_beyond = false;
    loop {
        let is_low = handle.log_is_in_reserve()
            || directories.iter().any(|directory| {
                disk.available_space(directory).is_ok_and(|free| free < handle.space_reserve())
            });
        facts.low_space.store(is_low, Ordering::Relaxed);
        if is_low && !was_low {
            tracing::warn!("the disk is almost full; writes that need space are refused");
        }
        was_low = is_low;
        let has_grown = facts.has_grown.swap(false, Ordering::Relaxed);
        let is_beyond =
            (has_grown || was_beyond) && quota.is_some_and(|quota| !fits(&handle, 0, quota));
        if is_beyond && !was_beyond {
            tracing::warn!("quota-size-bytes" = quota, "the store has reached the quota");
        }
        let alarms = handle.views().alarms(AlarmKind::NO_SPACE);
        let is_raised = alarms.iter().any(|alarm| alarm.member == me);
        was_beyond = is_beyond && !is_raised;
        if (is_low || is_beyond) && !is_raised {
            let request = AlarmRequest {
                action: AlarmAction::Activate as i32,
                member_id: me.0,
                alarm: AlarmType::Nospace as i32,
            };
            if let Err(error) = handle.propose(Proposal::new(CommandKind::Alarm, &request)).await {
                tracing::warn!(%error, "the NOSPACE alarm could not be raised; trying again");
            }
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}
