//! What readers see of the state while apply goes on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use lease::{Lease, Lessor};
use mvcc::ReadView;
use tables::{Alarm, AlarmKind, Alarms, Auth, ClusterVersion, LogPosition, MemberRecord, Tables};
use types::{LeaseId, LogIndex, MemberId, Revision};

/// The replicated state beside the keys.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) leases: Lessor,
    pub(crate) tables: Tables,
}

/// The state beside the keys, shared between the applier and readers.
///
/// The applier holds the lock while it applies one entry, readers while they copy what they came for.
/// It is taken before the lock of the key index and never the other way round.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shared {
    state: Arc<RwLock<State>>,
    /// Users and roles once more, for the requests that are judged by them: those must not wait for
    /// the applier. Nothing while an entry changes them, for then they must: its keys and its
    /// permissions are to be seen both or not at all.
    auth: Arc<RwLock<Option<Arc<Auth>>>>,
    glance: Arc<Glance>,
}

/// What every request asks, answered without a lock that the applier holds for a whole entry.
#[derive(Debug, Default)]
struct Glance {
    /// Auth is off, and no entry that may switch it on is being applied.
    auth_off: AtomicBool,
    /// A NOSPACE alarm is raised.
    no_space: AtomicBool,
}

const UNPOISONED: &str = "a panic while applying ends the process";

impl Shared {
    pub(crate) fn new(leases: Lessor, tables: Tables) -> Self {
        let auth = Arc::new(RwLock::new(Some(Arc::clone(&tables.auth))));
        let glance = Arc::new(Glance {
            auth_off: AtomicBool::new(!tables.auth.is_enabled()),
            no_space: AtomicBool::new(tables.alarms.any(AlarmKind::NO_SPACE)),
        });
        Self { state: Arc::new(RwLock::new(State { leases, tables })), auth, glance }
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().expect(UNPOISONED)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().expect(UNPOISONED)
    }
}

impl Shared {
    /// To be called by the holder of the write lock before it changes users or roles.
    pub(crate) fn hide_auth(&self) {
        self.glance.auth_off.store(false, Ordering::SeqCst);
        *self.auth.write().expect(UNPOISONED) = None;
    }

    /// To be called by the holder of the write lock once the whole entry can be read.
    pub(crate) fn show_auth(&self, auth: &Arc<Auth>) {
        *self.auth.write().expect(UNPOISONED) = Some(Arc::clone(auth));
        self.glance.auth_off.store(!auth.is_enabled(), Ordering::SeqCst);
    }

    /// To be called by the holder of the write lock after it changed alarms.
    pub(crate) fn show_alarms(&self, alarms: &Alarms) {
        self.glance.no_space.store(alarms.any(AlarmKind::NO_SPACE), Ordering::SeqCst);
    }

    fn auth(&self) -> Arc<Auth> {
        let shown = self.auth.read().expect(UNPOISONED).clone();
        shown.unwrap_or_else(|| Arc::clone(&self.read().tables.auth))
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

    /// All of the state at one moment; the keys are read at its revision afterwards.
    pub fn whole_state(&self) -> WholeState {
        let state = self.state.read();
        // The applier changes the keys under this lock, too.
        WholeState {
            revision: self.mvcc.revision(),
            leases: leases_of(&state),
            tables: state.tables.clone(),
        }
    }

    /// The version that the cluster has agreed on.
    pub fn cluster_version(&self) -> Option<ClusterVersion> {
        self.state.read().tables.cluster_version
    }

    /// Users and roles. A read that is judged by them is done in this order: the users and roles, the
    /// keys, the users and roles again; if their revision differs it was judged by the wrong ones.
    pub fn auth(&self) -> Arc<Auth> {
        self.state.auth()
    }

    /// Whether auth is off. Unlike [`Views::auth`] it never waits for the applier; "no" also means
    /// that an entry is just changing users or roles.
    pub fn auth_is_off(&self) -> bool {
        self.state.glance.auth_off.load(Ordering::SeqCst)
    }

    /// Whether a NOSPACE alarm is raised; it does not wait for the applier either.
    pub fn no_space(&self) -> bool {
        self.state.glance.no_space.load(Ordering::SeqCst)
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
        leases_of(&self.state.read())
    }
}

/// The whole state after some entry.
#[derive(Clone, Debug)]
pub struct WholeState {
    /// Of the keys.
    pub revision: Revision,
    /// Id, granted TTL, remaining TTL.
    pub leases: Vec<(LeaseId, i64, i64)>,
    pub tables: Tables,
}

fn leases_of(state: &State) -> Vec<(LeaseId, i64, i64)> {
    let facts = |(id, lease): (LeaseId, &Lease)| (id, lease.granted_ttl, lease.remaining_ttl);
    state.leases.iter().map(facts).collect()
}
