//! What an action is made of: the single writes, in the order in which they happen.
//!
//! The list is a value, so that `act` and the simulator carry out the very same steps, and the
//! simulator can let the operator die between any two of them. The first write of a list is the
//! intent or the decision itself in the cluster's status; what comes of every later one is seen in
//! what it left behind: an object, a peer URL, a uid.

use types::{ClusterId, MemberId};

use super::{
    model::{JoinReason, Serial},
    plan::{Action, RemoveReason},
};

/// One write to Kubernetes or etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// `status.operation`: what is about to be done.
    Intent,
    /// The frozen bootstrap plan and the serials it uses.
    FreezeBootstrap {
        serials: Vec<Serial>,
        attempt: i32,
    },
    LatchCluster {
        cluster_id: ClusterId,
    },
    /// The serial and the intent, in one write. From then on it is used, whether its object is ever
    /// made or not: a request that nobody waits for any more may still make it.
    Allocate {
        serial: Serial,
    },
    CreateMemberObject {
        serial: Serial,
        reason: JoinReason,
    },
    AddLearner {
        serial: Serial,
    },
    Promote {
        id: MemberId,
    },
    RemoveMember {
        id: MemberId,
    },
    MoveLeader {
        from: Serial,
        to: MemberId,
    },
    DeletePod {
        serial: Serial,
        uid: String,
    },
    /// Delete the member's Pod whatever its uid, its claim if the policy says so, and the object.
    DeletePodOf {
        serial: Serial,
    },
    RetireClaim {
        serial: Serial,
    },
    DeleteMemberObject {
        serial: Serial,
    },
}

/// Nobody joins any more once this is done, and it was no failure: what comes next is a first attempt.
pub fn ends_joining(action: &Action) -> bool {
    let unwanted = matches!(action, Action::Remove { reason: RemoveReason::NotNeeded, .. });
    unwanted || matches!(action, Action::Promote { .. })
}

/// The writes of an action in order.
pub fn mutations(action: &Action) -> Vec<Mutation> {
    match action.clone() {
        Action::FreezeBootstrap { serials, attempt } => {
            vec![Mutation::FreezeBootstrap { serials, attempt }]
        }
        Action::LatchCluster { cluster_id } => vec![Mutation::LatchCluster { cluster_id }],
        Action::CreateMember { serial, reason } => {
            vec![Mutation::Allocate { serial }, Mutation::CreateMemberObject { serial, reason }]
        }
        Action::AddLearner { serial } => vec![Mutation::Intent, Mutation::AddLearner { serial }],
        Action::Promote { id, .. } => vec![Mutation::Intent, Mutation::Promote { id }],
        Action::Remove { id, .. } => vec![Mutation::Intent, Mutation::RemoveMember { id }],
        Action::MoveLeader { from, to, .. } => {
            vec![Mutation::Intent, Mutation::MoveLeader { from, to }]
        }
        Action::RestartPod { serial, uid, .. } => {
            vec![Mutation::Intent, Mutation::DeletePod { serial, uid }]
        }
        Action::Release { serial, keep_claim } => {
            let mut mutations = vec![Mutation::Intent, Mutation::DeletePodOf { serial }];
            if !keep_claim {
                mutations.push(Mutation::RetireClaim { serial });
            }
            mutations.push(Mutation::DeleteMemberObject { serial });
            mutations
        }
    }
}
