//! One run: a safety phase with faults, mending, a liveness phase without, and the verdict.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::Duration;

use history::leases::{End, Limits, Told};
use history::{leases, linearizability, watches};
use tokio::sync::watch as signal;
use tokio::time::{Instant, sleep};
use types::{MemberId, Planted};

use crate::administrator::{self, Administrator};
use crate::checkers;
use crate::cluster::{Cluster, LOOK, Service};
use crate::counts::Counts;
use crate::keeper::Keeper;
use crate::locker::{Locker, TTL_MAX};
use crate::nemesis::Nemesis;
use crate::session::Session;
use crate::swarm::Plan;
use crate::trace::Trace;
use crate::watcher::Watcher;
use crate::workload::{Client, Order};

/// How long a mended cluster may take until it serves again.
const LIVENESS: Duration = Duration::from_secs(60);

/// Numbers of the clients that are not plain ones, which count from 1.
const LOCKERS: u64 = 50;
const KEEPERS: u64 = 70;
const ADMINISTRATOR: u64 = 90;
const PROVER: u64 = 99;

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Report {
    pub seed: u64,
    /// The first broken promise.
    pub violation: Option<String>,
    /// The hash of everything that happened.
    pub hash: u64,
    pub notes: u64,
    pub operations: usize,
    pub acknowledged: usize,
    pub revisions: i64,
    pub watches: usize,
    /// Requests that users were not permitted, and logins that succeeded.
    pub unauthorized: usize,
    pub logins: usize,
    /// Writes of holders of locks and of leaders.
    pub fenced_writes: usize,
    /// Leases that were kept alive, and how often that was acknowledged.
    pub leases_kept: usize,
    pub renewals: usize,
    /// What happened to members and to what they do, while there were faults.
    pub counts: Counts,
    /// Simulated time.
    pub simulated: Duration,
    /// The last notes before a violation.
    pub last: Vec<String>,
}

thread_local! {
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Panics inside tasks would otherwise vanish: remember the first one of each thread.
fn catch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANIC.with(|cell| {
                cell.borrow_mut().get_or_insert_with(|| info.to_string());
            });
            before(info);
        }));
    });
}

/// Runs a seed on a thread of its own, so that nothing of an earlier run is left in it.
///
/// # Panics
/// When no thread can be made.
pub fn run(seed: u64, verbose: bool) -> Report {
    run_plan(Plan::of(seed), verbose)
}

/// Runs plans, so many at a time, until one breaks a promise; answers what came of that one.
///
/// # Panics
/// When no thread can be made.
pub fn first_violation(plans: impl Iterator<Item = Plan> + Send, jobs: usize) -> Option<Report> {
    run_all(plans, jobs).1
}

/// The same, and what happened in all that ran.
///
/// # Panics
/// When no thread can be made.
pub fn run_all(plans: impl Iterator<Item = Plan> + Send, jobs: usize) -> (Counts, Option<Report>) {
    let plans = Mutex::new(plans);
    let counts = Mutex::new(Counts::default());
    let found = Mutex::new(None);
    let lock = || found.lock().unwrap_or_else(PoisonError::into_inner);
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while lock().is_none() {
                    let next = plans.lock().unwrap_or_else(PoisonError::into_inner).next();
                    let Some(plan) = next else { return };
                    let report = run_plan(plan, false);
                    counts.lock().unwrap_or_else(PoisonError::into_inner).add_all(&report.counts);
                    if report.violation.is_some() {
                        lock().get_or_insert(report);
                    }
                }
            });
        }
    });
    let counts = counts.into_inner().unwrap_or_else(PoisonError::into_inner);
    (counts, found.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Runs a plan.
///
/// # Panics
/// When no thread can be made.
pub fn run_plan(plan: Plan, verbose: bool) -> Report {
    catch_panics();
    let seed = plan.seed;
    let thread = std::thread::Builder::new().name(format!("seed-{seed}"));
    let run = thread.spawn(move || run_here(plan, verbose)).expect("a thread for the run");
    match run.join() {
        Ok(report) => report,
        Err(_) => Report {
            seed,
            violation: Some("the simulator panicked, see above".into()),
            hash: 0,
            notes: 0,
            operations: 0,
            acknowledged: 0,
            revisions: 0,
            watches: 0,
            unauthorized: 0,
            logins: 0,
            fenced_writes: 0,
            leases_kept: 0,
            renewals: 0,
            counts: Counts::default(),
            simulated: Duration::ZERO,
            last: Vec::new(),
        },
    }
}

fn runtime(seed: u64) -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true);
    // tokio's own choices (`select!`, who of many is woken first) follow the seed only with this
    // flag; without it a run is as good a test, but cannot be replayed exactly.
    #[cfg(tokio_unstable)]
    builder.rng_seed(tokio::runtime::RngSeed::from_bytes(&seed.to_le_bytes()));
    #[cfg(not(tokio_unstable))]
    let _ = seed;
    builder.build().expect("a runtime without drivers")
}

fn run_here(plan: Plan, verbose: bool) -> Report {
    replica::runtime::seed_thread(plan.seed);
    Planted::plant(plan.planted);
    let runtime = runtime(plan.seed);
    runtime.block_on(async move {
        let trace = Trace::new(verbose);
        let begin = Instant::now();
        trace.note(format_args!("{plan:?}"));
        let seed = plan.seed;
        let cluster = Cluster::new(plan, trace.clone());
        if let Err(violation) = play(&cluster).await {
            trace.violation(violation);
        }
        if let Some(panic) = PANIC.with(|cell| cell.borrow_mut().take()) {
            trace.violation(format!("PANIC {panic}"));
        }
        cluster.mix_disks();
        cluster.network.disconnect_all();
        let operations = cluster.history.operations();
        let leases = cluster.history.leases();
        let renewals = leases.iter().flat_map(|lease| lease.renewals.iter().skip(1));
        Report {
            seed,
            violation: trace.first_violation(),
            hash: trace.hash(),
            notes: trace.notes(),
            acknowledged: operations.iter().filter(|op| op.response().is_some()).count(),
            operations: operations.len(),
            revisions: cluster.history.last_revision(),
            watches: cluster.history.watches().len(),
            unauthorized: operations.iter().filter(|op| op.is_unauthorized()).count(),
            logins: operations.iter().filter(|op| op.is_login()).count(),
            fenced_writes: cluster.history.claims().iter().filter(|claim| claim.wrote).count(),
            leases_kept: leases.len(),
            renewals: renewals.filter(|renewal| renewal.told == Told::Renewed).count(),
            counts: trace.counts(),
            simulated: begin.elapsed(),
            last: trace.last(),
        }
    })
}

/// Ends the run if a promise was already broken.
fn so_far(cluster: &Cluster) -> Result<(), String> {
    match cluster.trace.first_violation() {
        None => Ok(()),
        Some(violation) => Err(violation),
    }
}

async fn play(cluster: &Arc<Cluster>) -> Result<(), String> {
    let plan = cluster.plan.clone();
    let (order, orders) = signal::channel(Order::Work);
    let mut nemesis = Nemesis::new(cluster.clone());
    nemesis.begin().await;
    let mut tasks = Vec::new();
    let session = |number| {
        let user = plan.auth.is_used.then(|| administrator::user_of(number));
        Session::new(number, cluster.clone(), user)
    };
    let root = |number| {
        let user = plan.auth.is_used.then(|| administrator::ROOT.to_owned());
        Session::new(number, cluster.clone(), user)
    };
    for number in 1..=plan.workload.clients {
        let client = Client::new(session(number), orders.clone());
        tasks.push(tokio::spawn(client.run()));
    }
    for number in 1..=plan.locks.clients {
        let locker = Locker::new(root(LOCKERS + number), orders.clone());
        tasks.push(tokio::spawn(locker.run()));
    }
    for number in 1..=plan.keeping.clients {
        let keeper = Keeper::new(root(KEEPERS + number), orders.clone());
        tasks.push(tokio::spawn(keeper.run()));
    }
    if plan.auth.is_used {
        let administrator = Administrator::new(root(ADMINISTRATOR), orders.clone());
        tasks.push(tokio::spawn(administrator.run()));
    }
    let writers = tasks.len();
    for number in 1..=plan.workload.watchers {
        let watcher = Watcher::new(number, cluster.clone(), orders.clone());
        tasks.push(tokio::spawn(watcher.run()));
    }
    nemesis.rage(Instant::now() + plan.safety).await;
    so_far(cluster)?;
    nemesis.mend().await;
    so_far(cluster)?;

    let mut prover = Client::new(root(PROVER), orders.clone());
    serve_again(cluster, &mut nemesis, &mut prover).await?;
    // Clients finish what they have begun; then nothing moves any more.
    order.send_replace(Order::Settle);
    let clients = tasks.drain(..writers).collect::<Vec<_>>();
    for client in clients {
        client.await.map_err(|error| format!("a client failed: {error}"))?;
    }
    let revision = settle(cluster).await?;
    order.send_replace(Order::Finish(revision));
    for watcher in tasks {
        watcher.await.map_err(|error| format!("a watcher failed: {error}"))?;
    }
    so_far(cluster)?;

    // What was acknowledged survives the end of the world.
    nemesis.black_out().await;
    serve_again(cluster, &mut nemesis, &mut prover).await?;
    settle(cluster).await?;
    cluster.compare_states();
    so_far(cluster)?;
    judge(cluster)
}

/// Waits until every member serves a write and a read.
async fn serve_again(
    cluster: &Arc<Cluster>,
    nemesis: &mut Nemesis,
    prover: &mut Client,
) -> Result<(), String> {
    let deadline = Instant::now() + LIVENESS;
    let leader = loop {
        nemesis.tend().await;
        so_far(cluster)?;
        if let Some(leader) = stable_leader(cluster) {
            break leader;
        }
        if Instant::now() > deadline {
            return Err(format!("LIVENESS: no leader; {}", statuses(cluster)));
        }
        sleep(LOOK).await;
    };
    retire_strangers(cluster, leader);
    for member in cluster.all() {
        loop {
            nemesis.tend().await;
            so_far(cluster)?;
            let Err(failure) = prover.prove_service(member).await else { break };
            if Instant::now() > deadline {
                return Err(format!(
                    "LIVENESS: member {} does not serve: {failure}; {}",
                    member.0,
                    statuses(cluster)
                ));
            }
            sleep(LOOK).await;
            // A removal whose answer was lost may take effect only now.
            if let Some(leader) = stable_leader(cluster) {
                retire_strangers(cluster, leader);
            }
            if !cluster.all().contains(&member) {
                break;
            }
        }
    }
    Ok(())
}

/// The member that leads and has heard from a quorum lately.
fn stable_leader(cluster: &Cluster) -> Option<MemberId> {
    let leads = |id: &MemberId| {
        cluster.service(*id).is_some_and(|service| {
            let status = service.handle.status();
            status.leads_quorum
                || (status.is_leader() && status.voters.len() == 1 && status.committed.0 > 0)
        })
    };
    cluster.running().into_iter().find(leads)
}

/// Members that are not part of the leader's cluster: removed, or never added. A leader that does not
/// know yet that it was deposed is not asked; it may not have heard of an addition. It was not deposed if
/// a majority of its voters is not in a later term: only they could have begun one with another leader.
/// The strangers themselves say nothing: one that was removed unawares may campaign for ever.
fn retire_strangers(cluster: &Cluster, leader: MemberId) {
    let Some(service) = cluster.service(leader) else { return };
    let status = service.handle.status();
    let follows = |id: &&MemberId| {
        cluster.service(**id).is_some_and(|service| service.handle.term() <= status.term)
    };
    if status.voters.iter().filter(follows).count() * 2 <= status.voters.len() {
        return;
    }
    let nodes = status.nodes;
    for id in cluster.all() {
        if !nodes.contains_key(&id) {
            cluster.retire_stranger(id);
        }
    }
}

/// Waits until all members have applied the same; answers the revision.
async fn settle(cluster: &Arc<Cluster>) -> Result<i64, String> {
    let deadline = Instant::now() + LIVENESS;
    let mut equal_since: Option<(u64, Instant)> = None;
    loop {
        so_far(cluster)?;
        // A removal whose answer was lost may take effect even after its member has served.
        if let Some(leader) = stable_leader(cluster) {
            retire_strangers(cluster, leader);
        }
        let places: Vec<_> = cluster
            .running()
            .into_iter()
            .filter_map(|id| cluster.service(id))
            .map(|service| place(cluster, &service))
            .collect();
        let applied = places.first().copied().flatten().unwrap_or(0);
        let equal = places.iter().all(|place| *place == Some(applied)) && !leases_run(cluster);
        match (equal, equal_since) {
            (true, Some((index, since))) if index == applied => {
                // A heartbeat would have told of anything new.
                if since.elapsed() > Duration::from_millis(500) {
                    return Ok(cluster.history.last_revision());
                }
            }
            (true, _) => equal_since = Some((applied, Instant::now())),
            (false, _) => equal_since = None,
        }
        if Instant::now() > deadline {
            return Err(format!("LIVENESS: members do not catch up: {}", statuses(cluster)));
        }
        sleep(LOOK).await;
    }
}

/// How far a member has come; nothing if it knows of more. Checkpoints of leases never end, so that where
/// there are any the log does not either, but the revision stands still.
fn place(cluster: &Cluster, service: &Service) -> Option<u64> {
    let status = service.handle.status();
    match cluster.plan.keeping.checkpoint_interval {
        Some(_) => Some(service.handle.views().mvcc.revision().0.unsigned_abs()),
        None => (status.committed == status.applied).then_some(status.applied.0),
    }
}

/// Whether there is a lease that will be over in time.
fn leases_run(cluster: &Cluster) -> bool {
    cluster.running().into_iter().filter_map(|id| cluster.service(id)).any(|service| {
        service.handle.views().leases().iter().any(|(_, granted, _)| *granted <= TTL_MAX)
    })
}

fn statuses(cluster: &Cluster) -> String {
    let mut text = String::new();
    for id in cluster.all() {
        let status = cluster.service(id).map(|service| service.handle.status());
        let status = status.map(|s| {
            (
                s.leader,
                s.term,
                s.committed,
                s.applied,
                s.voters,
                s.nodes.keys().copied().collect::<Vec<_>>(),
            )
        });
        text.push_str(&format!("[{}: {status:?}] ", id.0));
    }
    text
}

fn judge(cluster: &Cluster) -> Result<(), String> {
    let order = checkers::log::check(&cluster.history, &cluster.journal)?;
    let (operations, revisions) =
        (cluster.history.operations_of_keys(), cluster.history.revisions());
    let judged = linearizability::check(&operations, &revisions, &order.writers)?;
    judge_leases(cluster, &leases::ends(&operations, &judged, &cluster.history.times()))?;
    let model = judged.model;
    checkers::fencing::check(&cluster.history.claims(), &order, &model)?;
    let mut compact_revision = -1;
    for id in cluster.all() {
        let Some(service) = cluster.service(id) else {
            return Err(format!("member {} does not run at the end", id.0));
        };
        let views = service.handle.views();
        checkers::durability::check(id, &views, &model)?;
        compact_revision = compact_revision.max(views.mvcc.compact_revision().0);
    }
    watches::check(&cluster.history.watches(), &revisions, compact_revision)
}

/// That none ends early. That all end is waited for when the cluster is whole again; while it is broken
/// nobody can say by when.
fn judge_leases(cluster: &Cluster, ends: &BTreeMap<i64, End>) -> Result<(), String> {
    let (now, grace) = (cluster.history.now(), Duration::from_secs(3600).as_nanos() as u64);
    let limits = Limits { terms: Vec::new(), grace, until: now };
    let judged = leases::check(&cluster.history.leases(), ends, &limits);
    judged.map_err(|violation| format!("LEASE {violation}"))
}
