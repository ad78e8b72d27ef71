//! Members that have applied the same entries have the same state, all of it.

use std::collections::BTreeMap;
use std::hash::Hasher;
use std::sync::{Arc, Mutex, PoisonError};

use machine::Views;
use types::MemberId;

use crate::trace::Trace;

/// The digests seen so far, by applied index; clones share them.
#[derive(Clone, Default)]
pub struct Agreement(Arc<Mutex<BTreeMap<u64, (MemberId, StateDigest)>>>);

/// What is compared. Parts stand apart so that a report says which one differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateDigest {
    pub revision: i64,
    pub compact_revision: i64,
    pub keys: u32,
    pub tables: u64,
    pub leases: u64,
}

/// FNV-1a: the same on every run, unlike the standard library's default.
struct Fnv(u64);

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

fn fnv() -> Fnv {
    Fnv(0xcbf2_9ce4_8422_2325)
}

/// The state as a member shows it now.
///
/// # Errors
/// When the member cannot read its own state.
pub fn digest(views: &Views) -> Result<StateDigest, mvcc::RangeError> {
    let answer = views.mvcc.hash_kv(0)?;
    let mut tables = fnv();
    tables.write(&views.tables().encode());
    let mut leases = fnv();
    for (id, granted, remaining) in views.leases() {
        for number in [id.0, granted, remaining] {
            leases.write_i64(number);
        }
        for key in views.lease_keys(id).unwrap_or_default() {
            leases.write_usize(key.len());
            leases.write(&key);
        }
    }
    Ok(StateDigest {
        revision: answer.revision.0,
        compact_revision: answer.compact_revision.0,
        keys: answer.hash,
        tables: tables.finish(),
        leases: leases.finish(),
    })
}

impl Agreement {
    /// Compares a member's state with what others had at the same applied index.
    pub fn compare(&self, member: MemberId, views: &Views, trace: &Trace) {
        let index = views.applied_index().0;
        let digest = match digest(views) {
            Ok(digest) => digest,
            Err(error) => {
                trace.violation(format!("member {} cannot hash its state: {error}", member.0));
                return;
            }
        };
        trace.mix(u64::from(digest.keys));
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match known.get(&index) {
            None => {
                known.insert(index, (member, digest));
            }
            Some((_, same)) if *same == digest => {}
            Some((other, different)) => trace.violation(format!(
                "DIVERGED at applied index {index}: member {} has {different:?}, member {} has \
                 {digest:?}",
                other.0, member.0
            )),
        }
    }
}
