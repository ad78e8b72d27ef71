//! One member of a lost cluster goes on alone: `--force-new-cluster`.
//!
//! A cluster whose quorum is gone for good can elect nobody, so nothing can be committed that would
//! make it smaller. What is done here instead is done to the files of the one member that is left,
//! before Raft starts: a configuration of this member alone is appended to its log, in a term that is
//! newer than any it has heard of, and marked as committed. Started on that, it elects itself, and the
//! members that are gone become tombstones as if they had been removed one by one.
//!
//! Every entry that the member has stays, also those that it does not know to be committed: it
//! cannot tell which of them the lost members had acknowledged. (etcd drops them.) So nothing is
//! lost that reached this member's log, and a request that nobody answered may take effect.
//!
//! The caller vouches that the others will never run again; if they do, there are two clusters.

use std::collections::{BTreeMap, BTreeSet};

use openraft::entry::RaftEntry;
use types::{LogIndex, MemberId, Term};

use crate::codec;
use crate::raft_types::{Entry, Membership, Node, Payload, log_id, optional_index, term_of};
use crate::start::StartError;
use crate::store::Loaded;

/// How much of the log is looked at in one step.
const READ_BYTES: u64 = 16 << 20;

/// Appends the configuration of `me` alone, and commits it; `recovered` is then what the log holds.
pub(crate) fn leave_the_others(
    wal: &mut wal::Wal,
    recovered: &mut wal::Recovered,
    loaded: &Loaded,
    me: MemberId,
) -> Result<(), StartError> {
    let applied = loaded.applied.as_ref().map(codec::wal_log_id);
    let last = recovered.last.max(applied);
    // An empty directory has nothing to force: the member is made in the ordinary way.
    let Some(last) = last else { return Ok(()) };
    let membership = last_membership(wal, recovered, loaded)?;
    let node = membership.get_node(&me.0).cloned().ok_or(StartError::NotAMember(me))?;
    let others: Vec<MemberId> =
        membership.nodes().map(|(id, _)| MemberId(*id)).filter(|id| *id != me).collect();
    if others.is_empty() && membership.voter_ids().eq([me.0]) {
        return Ok(());
    }
    if recovered.last.is_none_or(|end| end.index < last.index) {
        // The image is ahead of the log, as after a restore: the log goes on behind it.
        wal.purge(last)?;
    }
    let voted = recovered.vote.map_or(Term(0), |vote| vote.term);
    let term = Term(last.term.max(voted).0 + 1);
    let id = log_id(term, LogIndex(last.index.0 + 1));
    let alone = Membership::new(
        vec![BTreeSet::from([me.0])],
        BTreeMap::from([(me.0, Node { voter_intent: true, ..node })]),
    )
    .map_err(|error| StartError::Raft(error.to_string()))?;
    let entry = Entry::new(id, Payload::Membership(alone));
    wal.append(&[
        wal::Record::Vote(wal::Vote { term, node: me, committed: false }),
        codec::entry_record(&entry),
        codec::committed_record(&id),
    ])?;
    wal.sync()?;
    tracing::warn!(
        "local-member-id" = %me, removed = ?others, "commit-index" = id.index() + 1, term = term_of(&id).0,
        "forcing restart member"
    );
    *recovered = wal.recovered();
    Ok(())
}

/// The newest configuration, committed or not.
fn last_membership(
    wal: &wal::Wal,
    recovered: &wal::Recovered,
    loaded: &Loaded,
) -> Result<Membership, StartError> {
    let mut membership = loaded.membership.membership().clone();
    let Some(last) = recovered.last else { return Ok(membership) };
    let applied = optional_index(loaded.applied.as_ref());
    let purged = recovered.purged.map_or(LogIndex(0), |id| id.index);
    let until = LogIndex(last.index.0 + 1);
    let mut next = LogIndex(applied.max(purged).0 + 1);
    while next < until {
        let entries = wal.read(next, until, READ_BYTES)?;
        let Some(end) = entries.last().map(|entry| entry.id.index) else { break };
        for entry in entries {
            let entry = codec::entry_from_wal(entry).map_err(StartError::Directory)?;
            if let Some(newer) = entry.get_membership() {
                membership = newer;
            }
        }
        next = LogIndex(end.0 + 1);
    }
    Ok(membership)
}
