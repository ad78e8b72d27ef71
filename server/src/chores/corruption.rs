//! Whether the members hold the same data (etcd: `etcdserver/corrupt.go`).
//!
//! Three checks compare HashKV, and only hashes at equal revisions relative to equal compactions:
//! - *initial*: a member that starts compares itself with the others before it serves anybody, and
//!   does not start when it differs from them, unless a majority is on its side;
//! - *periodic*: the leader compares its newest state with the others';
//! - *compact hash*: the leader compares the state at the last compaction, which every member reaches
//!   at the same place of the log, and can tell which members are the odd ones.
//!
//! All three are made unless they are turned off. A check that could not compare all members has found
//! nothing, which is not the same as that there is nothing ([`Checks`]): it is counted as incomplete, and
//! once that happens time after time it is an error in the log, for the metric's alert.
//!
//! Who differs gets the CORRUPT alarm, with which apply refuses every change. What to say about a set
//! of answers is decided by functions of values; only the loops around them wait and ask.

use std::collections::BTreeMap;
use std::time::Duration;

use machine::{AlarmKind, CommandKind, Proposal};
use mvcc::HashAnswer;
use proto::etcdserverpb::alarm_request::AlarmAction;
use proto::etcdserverpb::{AlarmRequest, AlarmType};
use replica::{Handle, PeerHash};
use tokio_util::sync::CancellationToken;
use types::MemberId;

use crate::ops::metrics::Metrics;

/// The member id of an alarm that means the whole cluster.
const WHOLE_CLUSTER: MemberId = MemberId(0);

/// Why a member does not start, or a check could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CorruptionError {
    #[error(
        "checkInitialHashKV failed: {0} found data inconsistency with peers; remove this member from \
         its cluster, clear its data directory and add it again as a new member"
    )]
    Inconsistent(MemberId),
    #[error(
        "checkInitialHashKV failed: {0} found data inconsistency with peers, and no majority tells which of \
         them is right; start the other members, or look into the data (etcdutl hashkv) and remove those \
         members that are wrong"
    )]
    Undecided(MemberId),
    #[error("{0} failed to fetch hash ({1})")]
    Hash(MemberId, mvcc::RangeError),
    #[error("the hash was not finished: {0}")]
    Ended(#[from] tokio::task::JoinError),
    #[error(transparent)]
    Unavailable(#[from] replica::Unavailable),
}

/// So many checks in a row that could not compare everybody are worth an error.
const INCOMPLETE_IS_AN_ERROR: u32 = 3;

/// One kind of check, and what it has come to.
pub struct Checks {
    name: &'static str,
    metrics: Metrics,
    incomplete_in_a_row: u32,
}

/// What a check has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// All members hold the same.
    Passed,
    /// Not everybody could be compared.
    Incomplete,
    /// Somebody has other data.
    Mismatch,
}

impl Checks {
    /// When a member starts.
    pub fn initial(metrics: Metrics) -> Self {
        Self::new("initial", metrics)
    }

    fn new(name: &'static str, metrics: Metrics) -> Self {
        // From the first moment, so that an alert can tell nothing from zero.
        for result in ["passed", "incomplete", "mismatch"] {
            metrics.corruption_checks.with_label_values(&[name, result]);
        }
        metrics.corruption_checks_incomplete.with_label_values(&[name]).set(0.0);
        Self { name, metrics, incomplete_in_a_row: 0 }
    }

    fn record(&mut self, outcome: Outcome) {
        let result = match outcome {
            Outcome::Passed => "passed",
            Outcome::Incomplete => "incomplete",
            Outcome::Mismatch => "mismatch",
        };
        self.metrics.corruption_checks.with_label_values(&[self.name, result]).inc();
        match outcome {
            Outcome::Incomplete => self.incomplete_in_a_row += 1,
            Outcome::Passed | Outcome::Mismatch => self.incomplete_in_a_row = 0,
        }
        let in_a_row = f64::from(self.incomplete_in_a_row);
        self.metrics.corruption_checks_incomplete.with_label_values(&[self.name]).set(in_a_row);
        if self.incomplete_in_a_row == INCOMPLETE_IS_AN_ERROR {
            tracing::error!(
                check = self.name,
                "in-a-row" = self.incomplete_in_a_row,
                "members could not be compared with each other for some time; whether all hold the same \
                 data is not known"
            );
        }
    }

    /// A leader's count says nothing once another one checks.
    fn pass_on(&mut self) {
        self.incomplete_in_a_row = 0;
        self.metrics.corruption_checks_incomplete.with_label_values(&[self.name]).set(0.0);
    }
}

/// The local hash at a revision; 0 for the newest.
async fn hash(handle: &Handle, revision: i64) -> Result<HashAnswer, CorruptionError> {
    let (mvcc, me) = (handle.views().mvcc, handle.status().member_id);
    let hashed = tokio::task::spawn_blocking(move || mvcc.hash_kv(revision)).await?;
    hashed.map_err(|error| CorruptionError::Hash(me, error))
}

/// Compares this member with the others before it serves anybody.
///
/// etcd's member does not start if a single one differs, and so a sound member does not that is restarted
/// beside a damaged one; its check is off unless it is turned on, though.
///
/// # Errors
/// When other members have other data at the same revision, and no majority has what this one has.
pub async fn initial_check(handle: &Handle, mut checks: Checks) -> Result<(), CorruptionError> {
    let me = handle.status().member_id;
    if handle.is_alone() {
        return Ok(());
    }
    tracing::info!("local-member-id" = %me, "starting initial corruption check");
    let own = hash(handle, 0).await?;
    let peers = handle.hash_of_others(own.revision.0).await;
    log_differences(&own, &peers);
    if let Verdict::Odd(odd) = judge(me, &own, &peers) {
        checks.record(Outcome::Mismatch);
        if odd.contains(&me) {
            return Err(CorruptionError::Inconsistent(me));
        }
        if odd.contains(&WHOLE_CLUSTER) {
            return Err(CorruptionError::Undecided(me));
        }
        for member in odd {
            tracing::error!("local-member-id" = %me, "peer-id" = %member, "a minority has other data");
            alarm(handle, member).await;
        }
        return Ok(());
    }
    let missing = not_compared(&own, &peers);
    // A member that begins knows of nobody to compare itself with.
    if !peers.is_empty() {
        checks.record(if missing.is_empty() { Outcome::Passed } else { Outcome::Incomplete });
    }
    if !missing.is_empty() {
        tracing::warn!(
            "local-member-id" = %me,
            "number-of-peers" = peers.len(),
            "peers-not-compared" = ?missing,
            "initial corruption checking is incomplete; was not able to compare with all peers"
        );
    }
    tracing::info!(
        "local-member-id" = %me,
        "number-of-peers-checked" = peers.len() - missing.len(),
        "initial corruption checking passed; no corruption"
    );
    Ok(())
}

/// The members whose data are as unknown after a check as before it: a check that could not be made has
/// found nothing, which is not the same as that there is nothing.
fn not_compared(own: &HashAnswer, peers: &[(MemberId, PeerHash)]) -> Vec<MemberId> {
    let comparable = |answer: &PeerHash| match answer {
        PeerHash::Hash(theirs) => theirs.compact_revision == own.compact_revision.0,
        PeerHash::Compacted | PeerHash::FutureRevision | PeerHash::NoAnswer(_) => false,
    };
    peers.iter().filter(|(_, answer)| !comparable(answer)).map(|(peer, _)| *peer).collect()
}

/// Says why others could not be compared, or differ.
fn log_differences(own: &HashAnswer, peers: &[(MemberId, PeerHash)]) {
    for (peer, answer) in peers {
        match answer {
            PeerHash::Hash(theirs) if theirs.hash == own.hash => {}
            PeerHash::Hash(theirs) => {
                let comparable = theirs.compact_revision == own.compact_revision.0;
                let found = if comparable { "hash values" } else { "compact revision values" };
                tracing::warn!(
                    "local-member-revision" = own.revision.0,
                    "local-member-compact-revision" = own.compact_revision.0,
                    "local-member-hash" = own.hash,
                    "remote-peer-id" = %peer,
                    "remote-peer-revision" = theirs.revision,
                    "remote-peer-compact-revision" = theirs.compact_revision,
                    "remote-peer-hash" = theirs.hash,
                    "found different {found} from remote peer"
                );
            }
            PeerHash::FutureRevision => {
                tracing::warn!("remote-peer-id" = %peer, "cannot fetch hash from slow remote peer");
            }
            PeerHash::Compacted => tracing::warn!(
                "remote-peer-id" = %peer,
                "cannot fetch hash from remote peer; local member is behind"
            ),
            PeerHash::NoAnswer(error) => {
                tracing::warn!("remote-peer-id" = %peer, error, "failed hash kv request");
            }
        }
    }
}

/// Compares the newest state for as long as the server runs, while this member leads.
pub async fn check_periodically(
    handle: Handle,
    interval: Duration,
    metrics: Metrics,
    stop: CancellationToken,
) {
    let mut checks = Checks::new("periodic", metrics);
    while pause(interval, &stop).await {
        if !handle.leads() {
            checks.pass_on();
            continue;
        }
        let outcome = periodic_check(&handle).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "failed to check hash KV");
            Outcome::Incomplete
        });
        checks.record(outcome);
    }
}

async fn periodic_check(handle: &Handle) -> Result<Outcome, CorruptionError> {
    let me = handle.status().member_id;
    let before = hash(handle, 0).await?;
    let peers = handle.hash_of_others(before.revision.0).await;
    handle.read_index().await?;
    let after = hash(handle, 0).await?;
    let odd = odd_one(me, &before, &after, &peers);
    if let Some(odd) = odd {
        alarm(handle, odd).await;
    }
    let missing = not_compared(&before, &peers);
    if !missing.is_empty() {
        tracing::warn!(
            "number-of-peers" = peers.len(),
            "peers-not-compared" = ?missing,
            "peer corruption check is incomplete; was not able to compare with all peers"
        );
    }
    let checked = peers.iter().filter(|(_, peer)| matches!(peer, PeerHash::Hash(_))).count();
    tracing::info!("number-of-peers-checked" = checked, "finished peer corruption check");
    Ok(match odd {
        Some(_) => Outcome::Mismatch,
        None if missing.is_empty() => Outcome::Passed,
        None => Outcome::Incomplete,
    })
}

/// The first member whose answer cannot be that of a sound one.
fn odd_one(
    me: MemberId,
    before: &HashAnswer,
    after: &HashAnswer,
    peers: &[(MemberId, PeerHash)],
) -> Option<MemberId> {
    let same_place =
        (before.revision, before.compact_revision) == (after.revision, after.compact_revision);
    if same_place && before.hash != after.hash {
        tracing::warn!("hash-1" = before.hash, "hash-2" = after.hash, "found hash mismatch");
        return Some(me);
    }
    for (peer, answer) in peers {
        let PeerHash::Hash(theirs) = answer else { continue };
        let why = if theirs.revision > after.current_revision.0 {
            "revision from follower must be less than or equal to leader's"
        } else if theirs.compact_revision > after.compact_revision.0 {
            "compact revision from follower must be less than or equal to leader's"
        } else if theirs.compact_revision == before.compact_revision.0 && theirs.hash != before.hash
        {
            "same compact revision then hashes must match"
        } else {
            continue;
        };
        tracing::warn!(
            "leader-revision" = after.current_revision.0,
            "leader-compact-revision" = after.compact_revision.0,
            "leader-hash" = before.hash,
            "follower-revision" = theirs.revision,
            "follower-compact-revision" = theirs.compact_revision,
            "follower-hash" = theirs.hash,
            "follower-peer-id" = %peer,
            "{why}"
        );
        return Some(*peer);
    }
    None
}

/// Compares the state at each new compaction for as long as the server runs, while this member leads.
pub async fn check_compactions(
    handle: Handle,
    interval: Duration,
    metrics: Metrics,
    stop: CancellationToken,
) {
    let mut checks = Checks::new("compact_hash", metrics);
    let mut checked = -1;
    while pause(interval, &stop).await {
        if !handle.leads() {
            checks.pass_on();
            continue;
        }
        tracing::info!("local-member-id" = %handle.status().member_id, "starting compact hash check");
        let compaction = handle.views().mvcc.compact_revision().0;
        let unchecked = compaction > checked;
        if unchecked {
            let outcome = compaction_check(&handle, compaction).await.unwrap_or_else(|error| {
                tracing::warn!(%error, "failed to check hash KV");
                Some(Outcome::Incomplete)
            });
            if let Some(outcome) = outcome {
                checks.record(outcome);
            }
            if matches!(outcome, Some(Outcome::Passed | Outcome::Mismatch)) {
                checked = compaction;
            }
        }
        tracing::info!(
            "number-of-hashes-checked" = u8::from(unchecked),
            "finished compaction hash check"
        );
    }
}

/// Compares the state at a compaction, if it is still the last one.
async fn compaction_check(
    handle: &Handle,
    compaction: i64,
) -> Result<Option<Outcome>, CorruptionError> {
    let own = hash(handle, compaction).await?;
    if own.compact_revision.0 != compaction {
        return Ok(None); // The next compaction went by; it will be looked at.
    }
    let peers = handle.hash_of_others(compaction).await;
    for peer in not_compared(&own, &peers) {
        tracing::warn!("peer-id" = %peer, "Skipped peer's hash");
    }
    match judge(handle.status().member_id, &own, &peers) {
        Verdict::Equal => {
            tracing::info!(
                "number-of-peers-checked" = peers.len(),
                revision = own.revision.0,
                compactRevision = own.compact_revision.0,
                "successfully checked hash on whole cluster"
            );
            Ok(Some(Outcome::Passed))
        }
        Verdict::Incomplete => {
            tracing::warn!(
                "number-of-peers" = peers.len(),
                revision = own.revision.0,
                compactRevision = own.compact_revision.0,
                "skipped revision in compaction hash check; was not able to check all peers"
            );
            Ok(Some(Outcome::Incomplete))
        }
        Verdict::Odd(members) => {
            if members == [WHOLE_CLUSTER] {
                tracing::error!(
                    "Detected compaction hash mismatch but cannot identify the corrupted members, so \
                     intentionally set the memberID as 0"
                );
            }
            for member in members {
                tracing::error!("peer-id" = %member, "Detected compaction hash mismatch");
                alarm(handle, member).await;
            }
            Ok(Some(Outcome::Mismatch))
        }
    }
}

/// What the hashes at one revision say.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// All members have the same.
    Equal,
    /// Those that answered have the same, but not all did.
    Incomplete,
    /// These members differ from a majority of all members, or nobody can tell who is right.
    Odd(Vec<MemberId>),
}

fn judge(me: MemberId, own: &HashAnswer, peers: &[(MemberId, PeerHash)]) -> Verdict {
    let mut by_hash = BTreeMap::from([(own.hash, vec![me])]);
    let mut answered = 0;
    for (peer, answer) in peers {
        match answer {
            PeerHash::Hash(theirs) if theirs.compact_revision == own.compact_revision.0 => {
                by_hash.entry(theirs.hash).or_default().push(*peer);
                answered += 1;
            }
            _ => {}
        }
    }
    if by_hash.len() == 1 {
        return if answered == peers.len() { Verdict::Equal } else { Verdict::Incomplete };
    }
    let members = peers.len() + 1;
    let quorum = members / 2 + 1;
    if !by_hash.values().any(|members| members.len() >= quorum) {
        return Verdict::Odd(vec![WHOLE_CLUSTER]);
    }
    by_hash.retain(|_, members| members.len() < quorum);
    Verdict::Odd(by_hash.into_values().flatten().collect())
}

async fn alarm(handle: &Handle, member: MemberId) {
    let raised = handle.views().alarms(AlarmKind::CORRUPT);
    if raised.iter().any(|alarm| alarm.member == member) {
        return;
    }
    let request = AlarmRequest {
        action: AlarmAction::Activate as i32,
        member_id: member.0,
        alarm: AlarmType::Corrupt as i32,
    };
    if let Err(error) = handle.propose(Proposal::new(CommandKind::Alarm, &request)).await {
        tracing::error!(%error, %member, "the CORRUPT alarm could not be raised; trying again");
    }
}

/// Waits; false once the server stops. An interval of zero never comes.
async fn pause(interval: Duration, stop: &CancellationToken) -> bool {
    if interval.is_zero() {
        stop.cancelled().await;
        return false;
    }
    tokio::select! {
        biased;
        () = stop.cancelled() => false,
        () = tokio::time::sleep(interval) => true,
    }
}

#[cfg(test)]
mod tests {
    use proto::peerpb::HashedKv;
    use types::Revision;

    use super::*;

    const ME: MemberId = MemberId(1);

    fn own(hash: u32, compact_revision: i64) -> HashAnswer {
        HashAnswer {
            hash,
            compact_revision: Revision(compact_revision),
            revision: Revision(50),
            current_revision: Revision(60),
        }
    }

    fn peer(id: u64, hash: u32, compact_revision: i64, revision: i64) -> (MemberId, PeerHash) {
        let hashed = HashedKv { hash, hash_revision: 50, compact_revision, revision };
        (MemberId(id), PeerHash::Hash(hashed))
    }

    /// T40 (etcd's postmortem of 3.5): checks passed silently while peers answered with errors.
    #[test]
    fn t40_a_peer_that_could_not_be_asked_is_not_taken_for_a_sound_one() {
        let silent = [
            PeerHash::NoAnswer("down".to_owned()),
            PeerHash::FutureRevision,
            PeerHash::Compacted,
            peer(0, 7, 20, 50).1,
        ];
        for answer in silent {
            let peers = [peer(2, 7, 10, 50), (MemberId(3), answer)];
            assert_eq!(not_compared(&own(7, 10), &peers), [MemberId(3)], "{peers:?}");
            assert_eq!(judge(ME, &own(7, 10), &peers), Verdict::Incomplete, "{peers:?}");
        }
        let sound = [peer(2, 7, 10, 50), peer(3, 7, 10, 50)];
        assert_eq!(not_compared(&own(7, 10), &sound), []);
        assert_eq!(judge(ME, &own(7, 10), &sound), Verdict::Equal);
    }

    #[test]
    fn the_periodic_check_names_the_first_odd_member() {
        let odd = |after: &HashAnswer, peers: &[_]| odd_one(ME, &own(7, 10), after, peers);
        let same = own(7, 10);
        assert_eq!(odd(&same, &[peer(2, 7, 10, 60), peer(3, 9, 5, 40)]), None);
        assert_eq!(odd(&own(8, 10), &[]), Some(ME), "its own hash changed under it");
        assert_eq!(odd(&same, &[peer(2, 7, 10, 60), peer(3, 8, 10, 55)]), Some(MemberId(3)));
        assert_eq!(odd(&same, &[peer(2, 7, 10, 61)]), Some(MemberId(2)), "ahead of the leader");
        assert_eq!(odd(&same, &[peer(2, 7, 11, 60)]), Some(MemberId(2)), "compacted further");
        assert_eq!(odd(&own(9, 20), &[peer(2, 7, 20, 60)]), None, "the leader compacted meanwhile");
    }

    #[test]
    fn the_minority_is_blamed_or_everybody() {
        let verdict = |peers: &[_]| judge(ME, &own(7, 10), peers);
        let silent = (MemberId(3), PeerHash::Compacted);
        assert_eq!(verdict(&[peer(2, 7, 10, 50), peer(3, 7, 10, 50)]), Verdict::Equal);
        assert_eq!(verdict(&[]), Verdict::Equal);
        assert_eq!(verdict(&[peer(2, 7, 10, 50), silent.clone()]), Verdict::Incomplete);
        assert_eq!(verdict(&[peer(2, 7, 9, 50), peer(3, 7, 10, 50)]), Verdict::Incomplete);
        let blamed = |ids: &[u64]| Verdict::Odd(ids.iter().copied().map(MemberId).collect());
        assert_eq!(verdict(&[peer(2, 7, 10, 50), peer(3, 8, 10, 50)]), blamed(&[3]));
        assert_eq!(verdict(&[peer(2, 8, 10, 50), peer(3, 8, 10, 50)]), blamed(&[1]));
        assert_eq!(verdict(&[peer(2, 8, 10, 50), peer(3, 9, 10, 50)]), blamed(&[0]));
        assert_eq!(verdict(&[peer(2, 8, 10, 50), silent]), blamed(&[0]));
    }
}
