//! Locks and elections: what was done fenced was done by one holder at a time.
//!
//! - Whoever wrote with its key's creation revision compared had the oldest key under the name at the
//!   revision before, and whoever was told that it holds a lock had it when it was told. So no two are
//!   holders, or leaders, at one revision.
//! - Fencing numbers of writes never go back.
//! - A lease that is over has lost the lock: nothing is written with it afterwards.

use std::collections::BTreeMap;

use bytes::Bytes;
use history::Model;

use super::log::LogOrder;
use crate::history::Claim;

/// Judges what candidates claimed.
///
/// # Errors
/// The claim that was wrong.
pub fn check(claims: &[Claim], order: &LogOrder, model: &Model) -> Result<(), String> {
    let mut claims = claims.to_vec();
    claims.sort_by_key(|claim| claim.revision);
    let mut holders: BTreeMap<(Bytes, i64), Bytes> = BTreeMap::new();
    let mut newest: BTreeMap<Bytes, i64> = BTreeMap::new();
    for claim in &claims {
        let Claim { place, revision, .. } = claim;
        // A write proves who held it before it was made.
        let held_at = if claim.wrote { revision - 1 } else { *revision };
        let mut end = place.directory.to_vec();
        end.extend_from_slice(&[0xff]);
        let oldest = model.oldest(&place.directory, &end, held_at);
        let own = |kv: &proto::mvccpb::KeyValue| {
            kv.key == place.key && kv.create_revision == place.created
        };
        if !oldest.is_some_and(own) {
            return Err(format!("NOT THE HOLDER: {claim:?}, the oldest key was {oldest:?}"));
        }
        let holder = holders.entry((place.directory.clone(), held_at));
        let holder = holder.or_insert_with(|| place.key.clone());
        if *holder != place.key {
            return Err(format!("TWO HOLDERS: {claim:?}, and {holder:?}"));
        }
        if !claim.wrote {
            continue;
        }
        let number = newest.entry(place.directory.clone()).or_default();
        if place.created < *number {
            return Err(format!("FENCING: {claim:?} after a holder with number {number}"));
        }
        *number = place.created;
        if order.ended.get(&claim.lease).is_some_and(|ended| revision > ended) {
            return Err(format!("EXPIRED: {claim:?}, its lease had ended"));
        }
    }
    Ok(())
}
