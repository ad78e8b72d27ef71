//! What readers see of the state while apply goes on.

use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use lease::{Lease, Lessor};
use mvcc::ReadView;
use tables::{Alarm, AlarmKind, LogPosition, MemberRecord, Tables};
use types::{LeaseId, LogIndex, MemberId};

/// The replicated state beside the keys.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) leases: Lessor,
    pub(crate) tables: Tables,
}

/// The state beside the keys, shared between the applier and readers.
///
/// The applier holds the lock while it applies one entry, readers while they copy what they came for.
/// It is taken before the lock of the key index and never the other way round; readers take only one
/// of the two at a time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shared(Arc<RwLock<State>>);

const UNPOISONED: &str = "a panic while applying ends the process";

impl Shared {
    pub(crate) fn new(leases: Lessor, tables: Tables) -> Self {
        Self(Arc::new(RwLock::new(State { leases, tables })))
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, State> {
        self.0.read().expect(UNPOISONED)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.0.write().expect(UNPOISONED)
    }
}

/// The read side of the whole state; cheap to clone. Each call sees whole entries only.
#[derive(Clone)]
pub struct Views {
    /// The keys.
    pub mvcc: ReadView,
    state: Shared,
}

impl Views {
    pub(crate) fn new(mvcc: ReadView, state: Shared) -> Self {
        Self { mvcc, state }
    }

    /// The last entry applied.
    pub fn applied(&self) -> Option<LogPosition> {
        self.state.read().tables.applied
    }

    /// Its index, 0 before the first.
    pub fn applied_index(&self) -> LogIndex {
        self.state.read().tables.applied_index()
    }

    /// A copy of all small tables at one moment.
    pub fn tables(&self) -> Tables {
        self.state.read().tables.clone()
    }

    /// All members, in order of id.
    pub fn members(&self) -> Vec<MemberRecord> {
        self.state.read().tables.membership.members().cloned().collect()
    }

    /// One member.
    pub fn member(&self, id: MemberId) -> Option<MemberRecord> {
        self.state.read().tables.membership.member(id).cloned()
    }

    /// Whether the id belonged to a member that was removed.
    pub fn is_removed(&self, id: MemberId) -> bool {
        self.state.read().tables.membership.is_removed(id)
    }

    /// The alarms of one kind, or all for [`AlarmKind::NONE`].
    pub fn alarms(&self, kind: AlarmKind) -> Vec<Alarm> {
        self.state.read().tables.alarms.list(kind).collect()
    }

    /// A lease as it is now.
    pub fn lease(&self, id: LeaseId) -> Option<Arc<Lease>> {
        self.state.read().leases.get(id).cloned()
    }

    /// The keys attached to a lease, in order.
    pub fn lease_keys(&self, id: LeaseId) -> Option<Vec<Bytes>> {
        self.lease(id).map(|lease| lease.keys().cloned().collect())
    }

    /// All leases: id, granted TTL, remaining TTL. This is what a new leader's deadlines start from.
    pub fn leases(&self) -> Vec<(LeaseId, i64, i64)> {
        let state = self.state.read();
        let facts = |(id, lease): (LeaseId, &Lease)| (id, lease.granted_ttl, lease.remaining_ttl);
        state.leases.iter().map(facts).collect()
    }
}
