//! Mistakes that can be made on purpose: the simulator has to find them, or it finds nothing.
//!
//! They exist only with the feature `planted`, which the simulator turns on and nothing that is
//! shipped does, and are made only on threads that were told so.

#[cfg(feature = "planted")]
use std::cell::Cell;

/// A mistake that etcd or another store once made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// The log says that entries are durable before they are (etcd#14370).
    AckBeforeFsync,
    /// A leader answers reads without asking whether it still leads.
    StaleReadIndex,
    /// A compaction loses the deletion at its own revision (etcd#18089).
    LostDeleteEvent,
    /// Whoever led once goes on with the deadlines that it had then, and revokes leases by them as if it
    /// led now.
    ExpiryOfOldTerm,
    /// Permissions are judged when a request is proposed and not once more when it is applied.
    PermissionAtProposeOnly,
    /// Whoever waited for a lock is told that it holds it, also when its own key has ended with its lease
    /// meanwhile.
    UnconfirmedLock,
    /// What a holder does is done also when it holds no longer.
    UnfencedWrite,
    /// A snapshot whose stream has ended early is taken for a whole one.
    PartialSnapshot,
}

#[cfg(feature = "planted")]
thread_local! {
    static PLANTED: Cell<Option<Planted>> = const { Cell::new(None) };
}

impl Planted {
    /// Whether this mistake shall be made here.
    #[inline]
    pub fn is_made(self) -> bool {
        #[cfg(feature = "planted")]
        return PLANTED.get() == Some(self);
        #[cfg(not(feature = "planted"))]
        return false;
    }

    /// From now on this thread makes this mistake, or none.
    #[cfg(feature = "planted")]
    pub fn plant(mistake: Option<Self>) {
        PLANTED.set(mistake);
    }
}
