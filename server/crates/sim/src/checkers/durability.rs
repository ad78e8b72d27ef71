//! At the end every member holds what was acknowledged, and nothing else.

use bytes::Bytes;
use history::Model;
use machine::Views;
use mvcc::RangeQuery;
use types::{KeyRange, MemberId};

use crate::history::decode;

/// Compares a member's keys with the model at its newest revision.
///
/// # Errors
/// What differs.
pub fn check(member: MemberId, views: &Views, model: &Model) -> Result<(), String> {
    let all = KeyRange::from_wire(Bytes::from_static(&[0]), Bytes::from_static(&[0]));
    let answer = views
        .mvcc
        .range(&RangeQuery::all(all))
        .map_err(|error| format!("member {} cannot be read: {error}", member.0))?;
    if answer.revision.0 != model.revision() {
        return Err(format!(
            "member {} is at revision {} and not at {}",
            member.0,
            answer.revision.0,
            model.revision()
        ));
    }
    let found: Vec<_> = answer.kvs.iter().map(decode).collect();
    let expected = model.all_at(model.revision());
    if found != expected {
        let missing: Vec<_> = expected.iter().filter(|kv| !found.contains(kv)).collect();
        let surplus: Vec<_> = found.iter().filter(|kv| !expected.contains(kv)).collect();
        return Err(format!("member {} lacks {missing:?} and has {surplus:?}", member.0));
    }
    Ok(())
}
