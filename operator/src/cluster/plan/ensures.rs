//! What should exist now: objects, latched facts, claims and Pods.
//!
//! Every one of these can be made any number of times. A member's claim comes first, then the
//! record of its uid, and only then a Pod: so a Pod never starts on a claim that could be another
//! one than the member's own (I6).

use super::{
    super::{
        invariants,
        model::{Claim, Desired, Member, Observed, Serial},
    },
    Ensure,
};
use crate::crd::InitialState;

pub(super) fn ensures(desired: &Desired, observed: &Observed) -> Vec<Ensure> {
    let mut ensures = Vec::new();
    if let (None, Some(bootstrap)) = (observed.cluster_id, &observed.bootstrap) {
        let initial_state =
            if desired.restored { InitialState::Restored } else { InitialState::New };
        for serial in
            bootstrap.serials.iter().filter(|serial| !observed.members.contains_key(serial))
        {
            ensures.push(Ensure::MemberObject { serial: *serial, initial_state });
        }
    }
    for member in observed.members.values() {
        ensures.extend(member_ensures(desired, observed, member));
    }
    ensures.retain(|ensure| invariants::permit_ensure(ensure, observed).is_ok());
    ensures
}

fn member_ensures(desired: &Desired, observed: &Observed, member: &Member) -> Option<Ensure> {
    let serial = member.serial;
    let entry = observed.entry_of(&desired.names, member);
    if let (Some(_), None, Some(entry)) = (observed.cluster_id, member.id, entry) {
        return Some(Ensure::LatchMemberId { serial, id: entry.id });
    }
    let belongs = match (observed.cluster_id, &observed.membership) {
        (None, _) => observed.bootstrap.as_ref()?.serials.contains(&serial),
        // While nobody can answer, members that once belonged are kept running.
        (Some(_), None) => once_belonged(member),
        (Some(_), Some(_)) => entry.is_some(),
    };
    if !belongs {
        return None;
    }
    match (&member.claim, &member.pod) {
        (Claim::Unborn, _) => Some(Ensure::Claim { serial }),
        (Claim::Unlatched { uid }, _) => Some(Ensure::LatchClaim { serial, uid: uid.clone() }),
        (Claim::Bound, None) => Some(Ensure::Pod {
            serial,
            new_cluster: observed.cluster_id.is_none(),
            initial_cluster: initial_cluster(desired, observed, member),
        }),
        (Claim::Bound, Some(pod)) => {
            // I8: clients come after the cluster id is latched, and never to a learner.
            let serving = observed.cluster_id.is_some()
                && entry.map_or(pod.serving, |entry| !entry.learner && entry.started);
            (serving != pod.serving && !pod.terminating).then(|| Ensure::Serving {
                serial,
                pod_uid: pod.uid.clone(),
                serving,
            })
        }
        (Claim::Lost, _) => None,
    }
}

/// Those of the first start do even if the operator died before it latched their ids.
fn once_belonged(member: &Member) -> bool {
    member.id.is_some() || member.initial_state != InitialState::Existing
}

/// `--initial-cluster`: the frozen plan before the cluster is formed, the member list afterwards.
/// A server with data ignores it, except that its own name must occur in it.
pub fn initial_cluster(desired: &Desired, observed: &Observed, member: &Member) -> String {
    let names = &desired.names;
    let joins = observed.cluster_id.is_some();
    let entries =
        observed.membership.iter().filter(|_| joins).flat_map(|membership| &membership.entries);
    // A list without those that the operator did not add is another cluster's to the server. It heeds
    // no name in it but its own.
    let others = entries.filter(|entry| names.serial_of(&entry.peer_url).is_none());
    let others = others.map(|entry| format!("{}={}", entry.id, entry.peer_url));
    let mut serials: Vec<Serial> = match (observed.cluster_id, &observed.bootstrap) {
        (None, Some(bootstrap)) => bootstrap.serials.clone(),
        _ => match &observed.membership {
            Some(membership) => membership
                .entries
                .iter()
                .filter_map(|entry| names.serial_of(&entry.peer_url))
                .collect(),
            None => {
                let belonged = observed.members.values().filter(|member| once_belonged(member));
                belonged.map(|member| member.serial).collect()
            }
        },
    };
    if !serials.contains(&member.serial) {
        serials.push(member.serial);
    }
    serials.sort_unstable();
    let pairs = serials.into_iter().map(|s| format!("{}={}", names.member(s), names.peer_url(s)));
    pairs.chain(others).collect::<Vec<_>>().join(",")
}
