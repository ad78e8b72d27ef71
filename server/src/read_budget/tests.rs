use std::cell::Cell;
use std::rc::Rc;

use tokio::task::{JoinHandle, LocalSet, yield_now};

use super::*;

const SMALL: u64 = SMALL_BYTES_MAX as u64;
const BYTES: u64 = 64 * SMALL;
/// What the lane of large answers has.
const LARGE: u64 = 48 * SMALL;

fn budget() -> ReadBudget {
    ReadBudget::new(BudgetOptions::of(BYTES))
}

/// Takes what it needs as a read does.
async fn read(budget: &ReadBudget, bytes: u64) -> Result<Share, Refused> {
    let read = |share: &mut Option<Share>| match budget.cover(share, bytes) {
        true => Ok(Attempt::Done(share.take())),
        false => Ok(Attempt::Needs(bytes)),
    };
    budget.within(read).await.map(|share| share.expect("it is covered"))
}

/// A read that goes on while the test does, as far as it comes in this moment.
async fn begin(budget: &ReadBudget, bytes: u64) -> JoinHandle<Result<Share, Refused>> {
    let budget = budget.clone();
    let reading = tokio::spawn(async move { read(&budget, bytes).await });
    yield_now().await;
    reading
}

#[tokio::test(start_paused = true)]
async fn small_answers_do_not_wait_for_large_ones() {
    let budget = budget();
    let held = read(&budget, LARGE).await.unwrap();
    let waits = begin(&budget, SMALL + 1).await;
    let small = read(&budget, SMALL).await.unwrap();
    assert!(!waits.is_finished());
    assert_eq!(
        budget.stats(),
        BudgetStats { held: LARGE + SMALL, waited: 1, ..Default::default() }
    );
    drop((held, small));
    drop(waits.await.unwrap().unwrap());
    assert_eq!(budget.stats().held, 0);
}

#[tokio::test(start_paused = true)]
async fn the_first_to_come_is_the_first_to_be_served() {
    let budget = budget();
    let held = read(&budget, LARGE - 2 * SMALL).await.unwrap();
    let large = begin(&budget, LARGE).await;
    // It would fit, but would keep the other waiting for ever if there were enough of its kind.
    let fits = begin(&budget, 2 * SMALL).await;
    assert!(!large.is_finished() && !fits.is_finished());
    drop(held);
    let large = large.await.unwrap().unwrap();
    yield_now().await;
    assert!(!fits.is_finished());
    drop(large);
    fits.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_answer_larger_than_everything_is_read_alone() {
    let budget = budget();
    let held = read(&budget, 2 * SMALL).await.unwrap();
    let huge = begin(&budget, 100 * BYTES).await;
    assert!(!huge.is_finished());
    drop(held);
    let huge = huge.await.unwrap().unwrap();
    assert_eq!(budget.stats().held, LARGE);
    let next = begin(&budget, 2 * SMALL).await;
    assert!(!next.is_finished());
    drop(huge);
    next.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_gives_up_lets_others_pass_and_keeps_nothing() {
    let budget = budget();
    let held = read(&budget, LARGE - 2 * SMALL).await.unwrap();
    let large = begin(&budget, LARGE).await;
    let fits = begin(&budget, 2 * SMALL).await;
    large.abort();
    let fits = fits.await.unwrap().unwrap();
    // One that is served and ends before it could notice.
    let late = begin(&budget, 2 * SMALL).await;
    drop(fits);
    late.abort();
    let _ = late.await;
    assert_eq!(budget.stats().held, LARGE - 2 * SMALL);
    drop(held);
    assert_eq!(budget.stats().held, 0);
}

#[tokio::test(start_paused = true)]
async fn a_wait_ends_when_patience_does_however_often_the_answer_grows() {
    let budget = budget();
    let held = read(&budget, LARGE).await.unwrap();
    let began = Instant::now();
    assert!(read(&budget, LARGE).await.is_err());
    assert_eq!(began.elapsed(), Duration::from_secs(7));
    assert_eq!(budget.stats().refused, 1);
    drop(held);
    // What was enough when it began to wait is not any more when it has it.
    let mut needs = SMALL;
    let grows = |share: &mut Option<Share>| -> Result<Attempt<()>, Refused> {
        needs += SMALL;
        assert!(share.as_ref().is_none_or(|share| share.bytes() < needs));
        match needs > 10 * SMALL && budget.cover(share, needs) {
            true => Ok(Attempt::Done(())),
            false => Ok(Attempt::Needs(needs)),
        }
    };
    assert_eq!(budget.within(grows).await, Ok(()));
    assert_eq!(budget.stats().held, 0);
}

#[tokio::test(start_paused = true)]
async fn so_many_may_wait_and_one_more_is_refused_at_once() {
    let budget = budget();
    let held = read(&budget, LARGE).await.unwrap();
    let mut waiting = Vec::new();
    for _ in 0..WAITING_MAX {
        waiting.push(begin(&budget, 2 * SMALL).await);
    }
    let began = Instant::now();
    assert!(read(&budget, 2 * SMALL).await.is_err());
    assert_eq!(began.elapsed(), Duration::ZERO);
    drop(held);
    for waiting in waiting {
        drop(waiting.await.unwrap().unwrap());
    }
    assert_eq!(budget.stats().held, 0);
}

#[tokio::test(start_paused = true)]
async fn a_debt_stops_reads_and_what_would_make_more_of_it() {
    let budget = budget();
    let held = read(&budget, LARGE).await.unwrap();
    let debt = budget.overdraw(None, 10 * SMALL);
    assert_eq!(budget.stats().held, LARGE + 10 * SMALL);
    let solvent = tokio::spawn({
        let budget = budget.clone();
        async move { budget.solvent().await }
    });
    yield_now().await;
    assert!(!solvent.is_finished());
    drop(held);
    assert_eq!(solvent.await.unwrap(), Ok(()));
    drop(debt);
    let share = read(&budget, 3 * SMALL).await.unwrap();
    let share = budget.overdraw(Some(share), 5 * SMALL);
    assert_eq!(budget.stats().held, 5 * SMALL);
    let share = budget.overdraw(Some(share), 2 * SMALL);
    assert_eq!(budget.stats().held, 2 * SMALL);
    drop(share);
    let _debt = budget.overdraw(None, 2 * BYTES);
    let _more = budget.overdraw(None, 2 * BYTES);
    assert_eq!(budget.solvent().await, Err(Refused));
}

/// An answer of so many bytes in fields of 10,000.
fn outgoing(budget: &ReadBudget, share: Share, bytes: u64) -> Arc<Outgoing> {
    let mut writer = OutgoingWriter::new(budget, share, bytes as usize + 100);
    let field = vec![7; 10_000];
    for _ in 0..bytes / 10_004 {
        writer.put_field(2, &field);
    }
    writer.finish()
}

#[tokio::test(start_paused = true)]
async fn pieces_are_given_back_as_they_leave_but_not_before() {
    let budget = budget();
    let share = read(&budget, 10 * SMALL).await.unwrap();
    let outgoing = outgoing(&budget, share, 10 * SMALL - 100);
    let held = budget.stats().held;
    assert!(held <= 10 * SMALL && held >= outgoing.bytes() as u64, "{held}");
    let first = outgoing.next_piece().unwrap().unwrap();
    let part = first.slice(10..20);
    assert_eq!(&first[..4], [0x12, 0x90, 0x4e, 7], "a field's key and length stand before it");
    drop(first);
    assert_eq!(budget.stats().held, held, "a part of it is still to leave");
    drop(part);
    assert_eq!(budget.stats().held, held - SMALL);
    let mut bytes = SMALL as usize;
    while let Some(piece) = outgoing.next_piece().unwrap() {
        bytes += piece.len();
    }
    assert_eq!(bytes, outgoing.bytes());
    assert_eq!(budget.stats().held, 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_larger_than_everything_holds_everything_until_its_last_pieces_leave() {
    let budget = budget();
    let bytes = 2 * LARGE;
    let share = read(&budget, bytes).await.unwrap();
    let outgoing = outgoing(&budget, share, bytes - 100);
    for _ in 0..40 {
        outgoing.next_piece().unwrap().unwrap();
    }
    // What it was said to need more than it did was given back.
    let held = budget.stats().held;
    assert!(held <= LARGE && held > LARGE - SMALL, "{held}");
    while outgoing.next_piece().unwrap().is_some() {
        let held = budget.stats().held;
        assert!(held <= LARGE);
    }
    assert_eq!(budget.stats().held, 0);
}

#[tokio::test(start_paused = true)]
async fn who_does_not_read_loses_the_rest_to_who_waits() {
    let budget = budget();
    let share = read(&budget, LARGE).await.unwrap();
    let idle = outgoing(&budget, share, LARGE - 100);
    let piece = idle.next_piece().unwrap().unwrap();
    tokio::time::advance(Duration::from_secs(60)).await;
    assert_eq!(budget.stats().dropped, 0, "nobody needs it");
    let share = read(&budget, 20 * SMALL).await.unwrap();
    assert_eq!(idle.next_piece(), Err(Stalled));
    assert_eq!(budget.stats().held, 21 * SMALL, "the connection has a piece in its hands");
    drop(piece);
    let reads = outgoing(&budget, share, 20 * SMALL - 100);
    let waits = begin(&budget, LARGE).await;
    for _ in 0..6 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(reads.next_piece().unwrap().is_some(), "it does read");
    }
    assert_eq!(budget.stats().dropped, 1);
    drop((idle, reads));
    waits.await.unwrap().unwrap();
    assert!(budget.shared.outgoing.lock().unwrap().is_empty());
}

/// Reads of all sizes that come, wait, hold, give up and go: never more is held than there is, and
/// all come to an end.
#[test]
fn nothing_is_lost_and_nobody_is_stuck_whatever_reads_do() {
    for seed in 1..60_u64 {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        let local = LocalSet::new();
        local.block_on(&runtime.unwrap(), random_reads(seed));
    }
}

async fn random_reads(seed: u64) {
    let budget = budget();
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let (served, refused) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let mut tasks = Vec::new();
    for _ in 0..200 {
        let (budget, served, refused) = (budget.clone(), served.clone(), refused.clone());
        let bytes = match random(3) {
            0 => 1 + random(SMALL),
            1 => SMALL + random(10 * SMALL),
            _ => SMALL + random(2 * LARGE),
        };
        let (hold, gives_up) = (random(400), (random(4) == 0).then(|| random(2000)));
        tasks.push(tokio::task::spawn_local(async move {
            let reading = async {
                match read(&budget, bytes).await {
                    Ok(mut share) => {
                        assert!(budget.stats().held <= BYTES);
                        tokio::time::sleep(Duration::from_millis(hold / 2)).await;
                        share.trim(bytes / 2);
                        tokio::time::sleep(Duration::from_millis(hold / 2)).await;
                        served.set(served.get() + 1);
                    }
                    Err(Refused) => refused.set(refused.get() + 1),
                }
            };
            let limit = Duration::from_millis(gives_up.unwrap_or(1 << 40));
            let _ = tokio::time::timeout(limit, reading).await;
        }));
        tokio::time::sleep(Duration::from_millis(random(30))).await;
    }
    for task in tasks {
        task.await.unwrap();
    }
    let stats = budget.stats();
    assert_eq!(stats.held, 0, "seed {seed}");
    assert_eq!(stats.refused, refused.get(), "seed {seed}");
    assert!(served.get() > 20, "seed {seed}: {} served", served.get());
    assert!(budget.shared.large.lock().waiting.is_empty());
}
