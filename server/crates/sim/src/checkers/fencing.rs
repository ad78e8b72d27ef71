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

/// Each promise broken once, by hand.
#[cfg(test)]
mod tests {
    use concurrency::Place;
    use history::Change;
    use proto::mvccpb::KeyValue;

    use super::*;

    fn put(key: &'static str, created: i64) -> Change {
        let key_value = KeyValue {
            key: key.into(),
            create_revision: created,
            mod_revision: created,
            version: 1,
            lease: created,
            ..KeyValue::default()
        };
        Change { delete: false, key_value }
    }

    fn deletion(key: &'static str, revision: i64) -> Change {
        let key_value = KeyValue { key: key.into(), mod_revision: revision, ..KeyValue::default() };
        Change { delete: true, key_value }
    }

    /// One candidate at revision 2 and another at 3, writes at 4 and 7, the first one's end at 5, a
    /// third candidate at 6.
    fn model() -> Model {
        let mut model = Model::default();
        let changes = [
            put("l/a", 2),
            put("l/b", 3),
            put("done", 4),
            deletion("l/a", 5),
            put("l/c", 6),
            put("done", 7),
        ];
        for (revision, change) in (2..).zip(changes) {
            model.push(revision, &[change]);
        }
        model
    }

    fn claim(key: &'static str, created: i64, revision: i64, wrote: bool) -> Claim {
        let place = Place { directory: "l/".into(), key: key.into(), created };
        Claim { client: 1, place, lease: created, revision, wrote }
    }

    fn judge(claims: &[Claim]) -> Result<(), String> {
        let mut order = LogOrder::default();
        order.ended.insert(2, 5);
        check(claims, &order, &model())
    }

    #[track_caller]
    fn broken(claims: &[Claim], expected: &str) {
        let violation = judge(claims).unwrap_err();
        assert!(violation.starts_with(expected), "{violation}");
    }

    #[test]
    fn one_holder_after_the_other_is_right() {
        let claims = [
            claim("l/b", 3, 7, true),
            claim("l/a", 2, 2, false),
            claim("l/a", 2, 4, true),
            claim("l/b", 3, 5, false),
        ];
        assert_eq!(judge(&claims), Ok(()));
    }

    #[test]
    fn a_candidate_that_is_not_the_oldest_is_no_holder() {
        broken(&[claim("l/b", 3, 3, false)], "NOT THE HOLDER");
        broken(&[claim("l/c", 6, 7, true)], "NOT THE HOLDER");
    }

    #[test]
    fn a_candidate_whose_key_is_gone_is_no_holder() {
        broken(&[claim("l/a", 2, 5, false)], "NOT THE HOLDER");
        broken(&[claim("l/a", 2, 7, true)], "NOT THE HOLDER");
    }

    #[test]
    fn a_key_that_was_made_anew_is_another_candidacy() {
        broken(&[claim("l/b", 2, 7, true)], "NOT THE HOLDER");
    }

    #[test]
    fn a_lease_that_was_over_before_the_write_is_found() {
        let mut order = LogOrder::default();
        order.ended.insert(2, 3);
        let violation = check(&[claim("l/a", 2, 4, true)], &order, &model()).unwrap_err();
        assert!(violation.starts_with("EXPIRED"), "{violation}");
    }
}
