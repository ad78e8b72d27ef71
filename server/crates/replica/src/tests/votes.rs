//! No vote is answered before it is durable: who forgets one votes twice in a term.

use disk::Fault;
use openraft::storage::RaftLogReader;
use types::Planted;

use super::*;
use crate::raft_types::Vote;

/// Terms in which a member votes, in some of them also for whom it then follows.
const TERMS: u64 = 6;

/// Different misfortunes at each operation.
const SEEDS: u64 = 8;

/// What was found when the power was back.
#[derive(Debug, Default)]
struct Found {
    losses: u64,
    /// The last vote that was promised, or none before the first.
    promised: u64,
    /// The one that was being saved and was not promised yet, which is allowed.
    unpromised: u64,
    /// One that is older than the promised one, or none.
    forgotten: u64,
    /// One that nobody has saved.
    invented: u64,
}

/// What a member saves, in this order.
fn votes() -> impl Iterator<Item = Vote> {
    (1..=TERMS).flat_map(|term| {
        let candidate = term % 3 + 1;
        let followed = (term % 2 == 0).then(|| Vote::new_committed(term, candidate));
        [Vote::new(term, candidate)].into_iter().chain(followed)
    })
}

/// Saves one vote after the other, and an entry behind some, until the power fails; answers the last one
/// that was promised, and the one that was to be.
async fn vote_on(mut log: LogStore) -> (Option<Vote>, Option<Vote>) {
    let (mut promised, mut index) = (None, 0);
    for vote in votes() {
        if log.save_vote(&vote).await.is_err() {
            return (promised, Some(vote));
        }
        promised = Some(vote);
        if vote.is_committed() {
            index += 1;
            let entry =
                Entry::new(log_id(Term(vote.leader_id().term), LogIndex(index)), Payload::Blank);
            log.append([entry], IOFlushed::noop()).await.unwrap();
        }
    }
    (promised, None)
}

/// The power fails at every operation in turn, and behind the last promise.
async fn losses_of_power() -> Found {
    let mut all = Found::default();
    for seed in 1..=SEEDS {
        for at in 1.. {
            let disk = SimDisk::new(1_000 * seed + at);
            let (log, writer) = open_log(&disk);
            disk.inject(Fault::CrashAt(disk.mutations() + at));
            let (promised, begun) = vote_on(log).await;
            disk.crash();
            writer.end().await;
            disk.clear_faults();
            disk.restart();

            let (mut log, writer) = open_log(&disk);
            let found = log.read_vote().await.unwrap();
            writer.end().await;
            all.losses += 1;
            match found {
                _ if found == promised => all.promised += 1,
                Some(_) if found == begun => all.unpromised += 1,
                _ if found < promised => all.forgotten += 1,
                _ => all.invented += 1,
            }
            if begun.is_none() {
                break;
            }
        }
    }
    all
}

/// On a thread of its own, which takes a mistake with it.
fn losses_of_power_with(mistake: Option<Planted>) -> Found {
    let run = move || {
        Planted::plant(mistake);
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build().unwrap();
        runtime.block_on(losses_of_power())
    };
    std::thread::spawn(run).join().unwrap()
}

#[test]
fn a_vote_that_was_answered_is_there_after_a_power_loss_at_any_operation() {
    let found = losses_of_power_with(None);
    assert!(found.losses >= SEEDS * 2 * votes().count() as u64, "a write and a flush: {found:?}");
    assert_eq!((found.forgotten, found.invented), (0, 0), "{found:?}");
    assert!(found.unpromised >= SEEDS, "the power never failed in the middle: {found:?}");
}

/// Else the test above finds nothing.
#[test]
fn a_vote_that_is_answered_before_it_is_durable_is_found_to_be_forgotten() {
    let found = losses_of_power_with(Some(Planted::AckBeforeFsync));
    assert!(found.forgotten >= SEEDS, "{found:?}");
}
