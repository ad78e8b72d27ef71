//! From a seed to everything else: how many members, which times, which faults, which clients.
//!
//! Each seed turns most kinds of faults off and the rest up, differently (swarm testing): a mix of
//! everything at once hides what a single kind would show.

use std::time::Duration;

use types::Planted;

use crate::chance::Chance;

/// The whole setting of one run; a pure function of its seed.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The number that everything follows from.
    pub seed: u64,
    /// Members at the start: 1, 3 or 5.
    pub members: u64,
    /// Heartbeat interval and election timeout.
    pub heartbeat: Duration,
    pub election: Duration,
    pub pre_vote: bool,
    /// An image after so many entries, and the entries kept behind it.
    pub image_entries: u64,
    pub entries_kept: u64,
    /// How long a request may take.
    pub request_timeout: Duration,
    /// The most a flush of the log takes, in microseconds.
    pub flush_micros: u64,
    /// How long faults go on.
    pub safety: Duration,
    pub network: NetworkPlan,
    pub transfers: TransferPlan,
    pub faults: FaultPlan,
    pub workload: WorkloadPlan,
    pub auth: AuthPlan,
    pub locks: LockPlan,
    pub keeping: KeepPlan,
    /// A mistake that the members make.
    pub planted: Option<Planted>,
}

/// How messages travel.
#[derive(Clone, Debug)]
pub struct NetworkPlan {
    pub delay_min_micros: u64,
    pub delay_max_micros: u64,
    pub loss_per_mille: u64,
    /// One message in so many thousand takes up to a second.
    pub straggler_per_mille: u64,
}

/// How snapshots travel, and what befalls them on their way.
#[derive(Clone, Debug)]
pub struct TransferPlan {
    /// Into how many pieces each chunk is cut.
    pub pieces: u64,
    /// The longest that a sender takes between two pieces.
    pub pace_max_millis: u64,
    /// Of so many in a thousand, the sender, the receiver or the way between them breaks in the middle.
    pub strike_per_mille: u64,
}

/// The weight of each kind of fault, 0 for never, and the pause between two.
#[derive(Clone, Debug)]
pub struct FaultPlan {
    pub pause_min_millis: u64,
    pub pause_max_millis: u64,
    pub power_loss: u64,
    pub power_loss_at_operation: u64,
    pub power_loss_of_all: u64,
    pub kill: u64,
    pub stop: u64,
    pub partition: u64,
    pub one_way: u64,
    pub freeze: u64,
    pub move_leader: u64,
    pub membership: u64,
    pub save_image: u64,
    pub disk_error: u64,
    /// Whether more members than a minority may be down at once.
    pub break_quorum: bool,
}

/// What clients do.
#[derive(Clone, Debug)]
pub struct WorkloadPlan {
    pub clients: u64,
    pub watchers: u64,
    pub keys: u64,
    pub think_max_millis: u64,
    pub put: u64,
    pub delete: u64,
    pub txn: u64,
    pub range: u64,
    pub serializable: u64,
    pub past: u64,
    pub compact: u64,
    pub lease: u64,
    pub value_bytes_max: u64,
    /// The hub's slice of work, small so that catching up is divided.
    pub watch_slice: u64,
}

/// Who may do what, and how often that changes.
#[derive(Clone, Debug)]
pub struct AuthPlan {
    /// Whether there are users at all.
    pub is_used: bool,
    pub pause_max_millis: u64,
}

/// Clients that lock and campaign.
#[derive(Clone, Debug)]
pub struct LockPlan {
    pub clients: u64,
    /// Locks, and elections, that they compete for.
    pub names: u64,
}

/// Clients that keep leases alive.
#[derive(Clone, Debug)]
pub struct KeepPlan {
    pub clients: u64,
    /// How often a leader records how much time leases have left, if it does.
    pub checkpoint_interval: Option<Duration>,
}

impl Plan {
    /// The plan of a seed.
    pub fn of(seed: u64) -> Plan {
        let mut chance = Chance::new(seed, "plan");
        let c = &mut chance;
        let members = [1, 3, 3, 3, 3, 5][c.below(6) as usize];
        let (heartbeat, election) = [(100, 1000), (50, 500), (20, 200)][c.below(3) as usize];
        let members_fault = if members == 1 { 0 } else { 1 };
        Plan {
            seed,
            members,
            heartbeat: Duration::from_millis(heartbeat),
            election: Duration::from_millis(election),
            pre_vote: c.hits(800),
            image_entries: [10, 30, 100, 500][c.below(4) as usize],
            entries_kept: [0, 5, 50, 200][c.below(4) as usize],
            request_timeout: Duration::from_millis(5000 + 2 * election),
            flush_micros: [100, 2_000, 20_000][c.below(3) as usize],
            safety: Duration::from_millis(c.between(6_000, 20_000)),
            network: NetworkPlan {
                delay_min_micros: [50, 500, 3_000][c.below(3) as usize],
                delay_max_micros: [3_500, 10_000, 60_000][c.below(3) as usize],
                loss_per_mille: [0, 0, 5, 50][c.below(4) as usize],
                straggler_per_mille: [0, 0, 20][c.below(3) as usize],
            },
            transfers: TransferPlan::of(&mut Chance::new(seed, "transfer plan")),
            faults: FaultPlan::of(c, members_fault),
            workload: WorkloadPlan::of(c),
            auth: AuthPlan::of(&mut Chance::new(seed, "auth plan")),
            locks: LockPlan::of(&mut Chance::new(seed, "lock plan")),
            keeping: KeepPlan::of(&mut Chance::new(seed, "keep plan")),
            planted: None,
        }
    }
}

/// A weight that is 0 in half of all seeds.
fn weight(c: &mut Chance) -> u64 {
    if c.hits(500) { 0 } else { c.between(1, 10) }
}

impl TransferPlan {
    fn of(c: &mut Chance) -> Self {
        TransferPlan {
            pieces: [1, 4, 16][c.below(3) as usize],
            pace_max_millis: [0, 20, 300][c.below(3) as usize],
            strike_per_mille: [0, 200, 600][c.below(3) as usize],
        }
    }
}

impl FaultPlan {
    fn of(c: &mut Chance, several: u64) -> Self {
        let pause_min_millis = c.between(50, 500);
        FaultPlan {
            pause_min_millis,
            pause_max_millis: pause_min_millis + c.between(100, 3000),
            power_loss: weight(c),
            power_loss_at_operation: weight(c),
            power_loss_of_all: weight(c) / 3,
            kill: weight(c),
            stop: weight(c) / 2,
            partition: weight(c) * several,
            one_way: weight(c) * several,
            freeze: weight(c),
            move_leader: weight(c) * several,
            membership: weight(c) * several,
            save_image: weight(c),
            disk_error: if c.hits(100) { 2 } else { 0 },
            break_quorum: c.hits(500),
        }
    }
}

impl AuthPlan {
    fn of(c: &mut Chance) -> Self {
        AuthPlan { is_used: c.hits(400), pause_max_millis: [50, 300, 1500][c.below(3) as usize] }
    }
}

impl LockPlan {
    fn of(c: &mut Chance) -> Self {
        let clients = if c.hits(400) { c.between(2, 4) } else { 0 };
        LockPlan { clients, names: c.between(1, 2) }
    }
}

impl KeepPlan {
    fn of(c: &mut Chance) -> Self {
        KeepPlan {
            clients: if c.hits(400) { c.between(2, 5) } else { 0 },
            checkpoint_interval: c.hits(400).then_some(Duration::from_secs(1)),
        }
    }
}

impl WorkloadPlan {
    fn of(c: &mut Chance) -> Self {
        WorkloadPlan {
            clients: c.between(2, 6),
            watchers: c.between(1, 4),
            keys: [2, 5, 12, 40][c.below(4) as usize],
            think_max_millis: [5, 40, 200][c.below(3) as usize],
            put: 10,
            delete: c.between(1, 8),
            txn: c.between(0, 8),
            range: c.between(2, 12),
            serializable: c.between(0, 4),
            past: c.between(0, 3),
            compact: weight(c) / 3,
            lease: weight(c) / 2,
            value_bytes_max: [16, 200, 4_000][c.below(3) as usize],
            watch_slice: [1, 7, 1000][c.below(3) as usize],
        }
    }
}
