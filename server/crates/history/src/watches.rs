//! The promises of watches, judged by the validators of room `watch` against what happened.

use std::fmt::Debug;

use proto::etcdserverpb::WatchResponse;
use proto::mvccpb;
use types::Revision;
use watch::CreateWatch;
use watch::check::{History, validate};

use super::Revisions;

/// One watch of one client and everything that came for it.
#[derive(Clone, Debug)]
pub struct WatchRecord<Member> {
    pub member: Member,
    pub request: CreateWatch,
    pub responses: Vec<WatchResponse>,
    /// The revision up to which it must have everything.
    pub complete: Option<i64>,
}

/// Judges every watch. `compact_revision` is the newest one that anybody may have come to.
///
/// # Errors
/// The first broken promise.
pub fn check<Member: Debug>(
    watches: &[WatchRecord<Member>],
    revisions: &Revisions,
    compact_revision: i64,
) -> Result<(), String> {
    let mut happened = History::new();
    for (revision, changes) in revisions {
        let events = changes.iter().map(|change| mvccpb::Event {
            r#type: i32::from(change.delete),
            kv: Some(change.key_value.clone()),
            prev_kv: None,
        });
        happened.push(Revision(*revision), events.collect());
    }
    happened.compact(Revision(compact_revision));
    for watch in watches {
        let complete = watch.complete.map(Revision);
        validate(&happened, &watch.request, &watch.responses, complete).map_err(|violation| {
            format!("watch {:?} on member {:?}: {violation}", watch.request, watch.member)
        })?;
    }
    Ok(())
}
