//! The promises of watches, judged by the validators of crate `watch` against what was published.

use proto::mvccpb;
use types::Revision;
use watch::check::{History as WatchHistory, validate};

use crate::history::History;

/// Judges every watch of the run.
///
/// # Errors
/// The first broken promise.
pub fn check(history: &History, compact_revision: i64) -> Result<(), String> {
    let mut happened = WatchHistory::new();
    for (revision, log) in history.revisions() {
        let events = log.changes.iter().map(|change| mvccpb::Event {
            r#type: i32::from(change.delete),
            kv: Some(change.key_value.clone()),
            prev_kv: None,
        });
        happened.push(Revision(revision), events.collect());
    }
    happened.compact(Revision(compact_revision));
    for watch in history.watches() {
        let complete = watch.complete.map(Revision);
        validate(&happened, &watch.request, &watch.responses, complete).map_err(|violation| {
            format!("watch {:?} on member {}: {violation}", watch.request, watch.member.0)
        })?;
    }
    Ok(())
}
