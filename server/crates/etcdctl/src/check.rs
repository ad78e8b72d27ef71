//! `check`: whether a cluster is fast enough, and how much memory data take.
//!
//! Both write to a prefix of their own, which has to be empty before and is emptied after. The loads
//! and the limits are those of Go etcdctl.

mod load;

use std::time::{Duration, Instant};

use client::{Client, http_get, prefix_range_end};
use cobra::{Exit, Flag, Kind, Outcome, exit};
use proto::etcdserverpb::{CompactionRequest, DefragmentRequest, DeleteRangeRequest, RangeRequest};

use crate::command::{Command, Group, Invocation};
use crate::global::Session;
use crate::words::{self, Word};
use crate::{concurrency, go, output};
use load::{Load, Report};

/// How long a check of performance lasts.
const PERF_SECONDS: u64 = 60;
/// How long cleaning up may take.
const CLEAN_UP: Duration = Duration::from_secs(30);
/// A cluster has to reach this part of the load's writes per second.
const THROUGHPUT_REACHED: f64 = 0.9;
const SLOWEST_SECONDS: f64 = 0.5;
const DEVIATION_SECONDS: f64 = 0.1;
const MEMORY_METRIC: &str = "process_resident_memory_bytes";

const PERF_PREFIX: &str = "/etcdctl-check-perf/";
const DATASCALE_PREFIX: &str = "/etcdctl-check-datascale/";

pub(crate) fn command() -> Command {
    let load = Flag::new("load", Kind::Text, "s", "s(mall), m(edium), l(arge) or xl(arge)");
    let flags = |load, prefix| {
        vec![
            load,
            Flag::new("prefix", Kind::Text, prefix, "where to write"),
            Flag::new("auto-compact", Kind::Bool, "false", "compact afterwards"),
            Flag::new("auto-defrag", Kind::Bool, "false", "defragment afterwards"),
        ]
    };
    Command {
        name: "check",
        usage: "<subcommand>",
        short: "Checks properties of the cluster",
        group: Group::UTILITY,
        children: vec![
            Command {
                name: "perf",
                usage: "[options]",
                short: "Checks the performance of the cluster",
                long: "Writes for a minute and tells whether the cluster kept up. The loads are \
                       150, 1000, 8000 and\n15000 writes per second.",
                flags: flags(load.values(&["small", "medium", "large", "xLarge"]), PERF_PREFIX),
                run: Some(|invocation| Box::pin(perf(invocation))),
                ..Command::default()
            },
            Command {
                name: "datascale",
                usage: "[options]",
                short: "Checks how much memory data take",
                long: "Writes keys and tells how much the memory of the first endpoint grew. The \
                       loads are 10000,\n100000, 1000000 and 3000000 keys of 1 KiB.",
                flags: flags(load, DATASCALE_PREFIX),
                run: Some(|invocation| Box::pin(datascale(invocation))),
                ..Command::default()
            },
        ],
        ..Command::default()
    }
}

/// What the name of a load stands for, by its place in the tables.
fn size(session: &Session) -> Outcome<usize> {
    let name = session.matches().text("load");
    let names = [["s", "small"], ["m", "medium"], ["l", "large"], ["xl", "xLarge"]];
    names
        .iter()
        .position(|names| names.contains(&name))
        .ok_or_else(|| Exit::with(exit::BAD_FEATURE, format!("unknown load option {name}")))
}

/// Refuses a prefix that is in use. The two checks quote the command that empties it differently.
async fn check_empty(client: &Client, prefix: &Word, quote: &str) -> Outcome {
    let request = RangeRequest {
        key: prefix.clone(),
        range_end: prefix_range_end(prefix),
        limit: 1,
        ..RangeRequest::default()
    };
    if client.range(request).await?.kvs.is_empty() {
        return Ok(());
    }
    let quoted = go::quote(prefix);
    let shown = words::shown(prefix);
    let delete = format!("{quote}etcdctl del --prefix {shown}{quote}");
    let message = format!("prefix {quoted} has keys. Delete with {delete} first");
    Err(Exit::with(exit::INVALID_INPUT, message))
}

async fn perf(invocation: Invocation) -> Outcome {
    let session = Session::new(&invocation)?;
    let (limit, clients) = [(150, 50), (1000, 200), (8000, 500), (15000, 1000)][size(&session)?];
    let prefix = session.matches().word("prefix");
    let client = session.client().await?;
    let interrupted = interrupted_once()?;
    check_empty(&client, &prefix, "'").await?;
    let load = Load {
        prefix: prefix.clone(),
        key_bytes: 256,
        value_bytes: 1024,
        puts: limit * PERF_SECONDS,
        per_second: Some(limit),
        until: Some(Instant::now() + Duration::from_secs(PERF_SECONDS)),
    };
    // Who interrupts it gets what there is of it, and the load is taken away all the same.
    let report = load.run(&session, clients, interrupted).await?;
    if let Some(revision) = clean_up(&client, &prefix).await?
        && session.matches().is_true("auto-compact")
    {
        compact(&client, revision).await?;
    }
    defragment(&session).await?;
    judge(&report, limit as f64)
}

/// The first interruption, which ends the load. Another one does not wait for what is cleaned up.
fn interrupted_once() -> Outcome<impl Future<Output = ()>> {
    let first = concurrency::interruption()?;
    Ok(async move {
        first.await;
        tokio::spawn(async {
            // What could be listened to once can be again.
            if let Ok(second) = concurrency::interruption() {
                second.await;
                std::process::exit(i32::from(exit::INTERRUPTED));
            }
        });
    })
}

fn judge(report: &Report, limit: f64) -> Outcome {
    let mut text = report.errors();
    let mut passed = text.is_empty();
    let mut line = |good: bool, pass: String, fail: String| {
        passed &= good;
        text.push_str(if good { &pass } else { &fail });
    };
    let writes = report.per_second() as u64 + 1;
    line(
        report.per_second() / limit > THROUGHPUT_REACHED,
        format!("PASS: Throughput is {writes} writes/s\n"),
        format!("FAIL: Throughput too low: {writes} writes/s\n"),
    );
    let (slowest, deviation) = (report.slowest(), report.deviation());
    line(
        slowest <= SLOWEST_SECONDS,
        format!("PASS: Slowest request took {slowest:.6}s\n"),
        format!("Slowest request took too long: {slowest:.6}s\n"),
    );
    line(
        deviation <= DEVIATION_SECONDS,
        format!("PASS: Stddev is {deviation:.6}s\n"),
        format!("Stddev too high: {deviation:.6}s\n"),
    );
    text.push_str(if passed { "PASS\n" } else { "FAIL\n" });
    output::write(text.as_bytes())?;
    if passed { Ok(()) } else { Err(Exit::silent(exit::ERROR)) }
}

async fn datascale(invocation: Invocation) -> Outcome {
    let session = Session::new(&invocation)?;
    let loads = [(10_000, 50), (100_000, 200), (1_000_000, 500), (3_000_000, 1000)];
    let (puts, clients) = loads[size(&session)?];
    let prefix = session.matches().word("prefix");
    let client = session.client().await?;
    check_empty(&client, &prefix, "").await?;
    let before = memory(&session, "before").await?;
    output::write(
        format!(
            "Start data scale check for work load [{puts} key-value pairs, 1024 bytes per \
             key-value, {clients} concurrent clients].\n"
        )
        .as_bytes(),
    )?;
    let load = Load {
        prefix: prefix.clone(),
        key_bytes: 512,
        value_bytes: 512,
        puts,
        per_second: None,
        until: None,
    };
    let report = load.run(&session, clients, std::future::pending()).await?;
    let after = memory(&session, "after").await?;
    let revision = delete(&client, &prefix).await?;
    if session.matches().is_true("auto-compact") {
        compact(&client, revision).await?;
    }
    defragment(&session).await?;
    let errors = report.errors();
    if !errors.is_empty() {
        output::write(errors.as_bytes())?;
        return Err(Exit::silent(exit::ERROR));
    }
    let used = (after - before) / (1024.0 * 1024.0);
    output::write(format!("PASS: Approximate system memory used : {used:.2} MB.\n").as_bytes())
}

/// The memory of the first endpoint.
async fn memory(session: &Session, when: &str) -> Outcome<f64> {
    let endpoint = session.endpoints().first().cloned().unwrap_or_default();
    let found = match http_get(&session.config_of(&endpoint), &endpoint, "/metrics").await {
        Ok(page) => page
            .lines()
            .find_map(|line| line.strip_prefix(MEMORY_METRIC))
            .and_then(|value| value.trim().parse::<f64>().ok())
            .ok_or_else(|| format!("could not find: {MEMORY_METRIC}")),
        Err(error) => Err(format!("fetch error: {error}")),
    };
    match found {
        Ok(bytes) if bytes > 0.0 => Ok(bytes),
        other => {
            let reason = other.err().map(|reason| format!("{reason}\n")).unwrap_or_default();
            let text = format!(
                "{reason}FAIL: Could not read {MEMORY_METRIC} {when} the put operations.\n"
            );
            output::write(text.as_bytes())?;
            Err(Exit::silent(exit::ERROR))
        }
    }
}

async fn delete(client: &Client, prefix: &Word) -> Result<i64, client::Error> {
    let request = DeleteRangeRequest {
        key: prefix.clone(),
        range_end: prefix_range_end(prefix),
        ..DeleteRangeRequest::default()
    };
    let response = client.delete_range(request).await?;
    Ok(response.header.map_or(0, |header| header.revision))
}

/// Deletes what was written, and tells if that does not work: the result counts all the same.
async fn clean_up(client: &Client, prefix: &Word) -> Outcome<Option<i64>> {
    let client = client.until(tokio::time::Instant::now() + CLEAN_UP);
    match delete(&client, prefix).await {
        Ok(revision) => Ok(Some(revision)),
        Err(error) => {
            let text = format!("FAIL: Cleanup failed during key deletion: ERROR({error})\n");
            output::write(text.as_bytes())?;
            Ok(None)
        }
    }
}

async fn compact(client: &Client, revision: i64) -> Outcome {
    output::write(format!("Compacting with revision {revision}\n").as_bytes())?;
    let client = client.until(tokio::time::Instant::now() + CLEAN_UP);
    client.compact(CompactionRequest { revision, physical: true }).await?;
    output::write(format!("Compacted with revision {revision}\n").as_bytes())
}

async fn defragment(session: &Session) -> Outcome {
    if !session.matches().is_true("auto-defrag") {
        return Ok(());
    }
    for endpoint in session.endpoints() {
        let quoted = go::quote(endpoint.as_bytes());
        output::write(format!("Defragmenting {quoted}\n").as_bytes())?;
        let deadline = tokio::time::Instant::now() + CLEAN_UP;
        let client = session.client_of(&endpoint).await?.until(deadline);
        client.defragment(DefragmentRequest {}).await?;
        output::write(format!("Defragmented {quoted}\n").as_bytes())?;
    }
    Ok(())
}
