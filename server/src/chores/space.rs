//! Refusing writes while a full disk can still be emptied.
//!
//! A disk that is really full stops the log, and with it everything. So this member raises its NOSPACE
//! alarm, as for a store at its quota, when the log has no room for another segment or the disk is
//! down to what deletions, compactions and the images behind them need. The alarm stays until
//! somebody disarms it, and comes back when there is still no space then.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use disk::Disk;
use machine::{AlarmKind, CommandKind, Proposal};
use proto::etcdserverpb::alarm_request::AlarmAction;
use proto::etcdserverpb::{AlarmRequest, AlarmType};
use replica::{Handle, SPACE_RESERVE_BYTES};
use tokio_util::sync::CancellationToken;

use crate::boot::ServerFacts;

/// How often it is looked; what is written in between comes out of the reserve.
const INTERVAL: Duration = Duration::from_millis(100);

/// Looks after the space in `directories` for as long as the server runs.
pub(crate) async fn watch(
    handle: Handle,
    disk: Arc<dyn Disk>,
    directories: Vec<PathBuf>,
    facts: Arc<ServerFacts>,
    stop: CancellationToken,
) {
    let me = handle.status().member_id;
    let mut was_low = false;
    loop {
        let is_low = handle.log_is_in_reserve()
            || directories.iter().any(|directory| {
                disk.available_space(directory).is_ok_and(|free| free < SPACE_RESERVE_BYTES)
            });
        facts.low_space.store(is_low, Ordering::Relaxed);
        if is_low && !was_low {
            tracing::warn!("the disk is almost full; writes that need space are refused");
        }
        was_low = is_low;
        let alarms = handle.views().alarms(AlarmKind::NO_SPACE);
        if is_low && !alarms.iter().any(|alarm| alarm.member == me) {
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
