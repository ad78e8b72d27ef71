//! What comes out: a table for people, JSON for machines, and whether the floors hold.
//!
//! Figures are medians over the rounds; a ratio is that of the medians. The floors stand for a
//! server that has work to do, so they are judged from 100 calls in flight (watchers) upwards: one
//! call in flight measures the round trip and the disk, which both servers share.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::runner::{CASES, Case, FLAGS, Guard, Options, Row, Sample, Work};

/// A promise and what was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Floor {
    /// What is promised.
    pub name: String,
    /// How many times better than Go etcd we must be.
    pub wanted: f64,
    /// How many times better we are.
    pub found: f64,
}

impl Floor {
    /// Whether the promise is kept.
    pub fn holds(&self) -> bool {
        self.found >= self.wanted
    }
}

/// The floors that these rows have to keep.
pub fn floors(rows: &[Row]) -> Vec<Floor> {
    let mut floors = Vec::new();
    for row in rows.iter().filter(|row| row.case.width >= 100) {
        let case = row.case;
        let name = format!("{}, {} member(s), {}", case.name(), case.members, case.width);
        let wanted = match (case.work, case.guard, case.members) {
            (Work::Put, Guard::Auth, _) => {
                floors.extend(price_of_auth(rows, row, name));
                continue;
            }
            (Work::Put, Guard::Tls, _) | (Work::Watch, ..) => 2.0,
            (Work::Put, Guard::Open, 1) => 2.5,
            (Work::Put | Work::GetLinearizable, ..) => 3.0,
            _ => continue,
        };
        floors.push(Floor { name: name.clone(), wanted, found: rate_ratio(row) });
        if case.work == Work::Put && case.guard == Guard::Open {
            floors.push(Floor {
                name: format!("server CPU per {name}"),
                wanted: 3.0,
                found: cpu_ratio(row),
            });
        }
    }
    floors
}

/// What is left of our own rate once every put needs a permission: that of the same puts without.
fn price_of_auth(rows: &[Row], row: &Row, name: String) -> Option<Floor> {
    let open = Case { guard: Guard::Open, ..row.case };
    let without = rows.iter().find(|other| other.case == open)?;
    let rate = |row: &Row| median(&row.samples[0], |sample| sample.rate);
    let name = format!("{name}, next to ours without");
    Some(Floor { name, wanted: 0.9, found: rate(row) / rate(without) })
}

/// The tables as Markdown.
pub fn table(rows: &[Row]) -> String {
    let mut text = String::from(
        "| workload | members | in flight | ours /s | etcd /s | ratio | ours p50/p99/p99.9 ms | \
         etcd p50/p99/p99.9 ms | ours CPU us | etcd CPU us | ratio |\n\
         |---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for row in rows {
        let [ours, etcd] = &row.samples;
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | **{:.1}x** | {} | {} | {:.1} | {:.1} | **{:.1}x** |",
            row.case.name(),
            row.case.members,
            row.case.width,
            rate_with_spread(ours),
            rate_with_spread(etcd),
            rate_ratio(row),
            latencies(ours),
            latencies(etcd),
            median(ours, |sample| sample.server_cpu),
            median(etcd, |sample| sample.server_cpu),
            cpu_ratio(row),
        );
    }
    for row in rows.iter().filter(|row| row.case.work == Work::Start) {
        text.push_str(&start_table(row));
    }
    text
}

fn start_table(row: &Row) -> String {
    let [ours, etcd] = &row.samples;
    let keys = ours.iter().chain(etcd).find_map(|sample| Some(sample.start?.keys)).unwrap_or(0);
    let mut text = format!("\n| {keys} keys | ours | etcd | ratio |\n|---|---|---|---|\n");
    let mut line = |name: &str, value: fn(&Sample) -> f64| {
        let (ours, etcd) = (median(ours, value), median(etcd, value));
        let _ = writeln!(text, "| {name} | {ours:.2} | {etcd:.2} | **{:.1}x** |", etcd / ours);
    };
    line("start to first linearizable read, s", |sample| sample.start.unwrap_or_default().seconds);
    line("resident after the puts, MiB per million keys", |sample| {
        let start = sample.start.unwrap_or_default();
        per_million(start.filled_bytes, start.keys)
    });
    line("resident after the start, MiB per million keys", |sample| {
        let start = sample.start.unwrap_or_default();
        per_million(start.started_bytes, start.keys)
    });
    text
}

fn per_million(bytes: u64, keys: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20) * 1e6 / keys.max(1) as f64
}

/// Everything that was measured, with how.
pub fn json(options: &Options, rows: &[Row], floors: &[Floor]) -> Value {
    let samples = |samples: &[Sample]| -> Value { samples.iter().map(sample_json).collect() };
    json!({
        "machine": {
            "cpus": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
            "kernel": std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
        },
        "flags": FLAGS,
        "rounds": options.rounds,
        "seconds_per_measurement": options.duration.as_secs_f64(),
        "keys": options.keys,
        "complete": rows.len() == CASES.len(),
        "rows": rows.iter().map(|row| json!({
            "workload": row.case.name(),
            "members": row.case.members,
            "in_flight": row.case.width,
            "rate_ratio": rate_ratio(row),
            "server_cpu_ratio": cpu_ratio(row),
            "ours": samples(&row.samples[0]),
            "etcd": samples(&row.samples[1]),
        })).collect::<Value>(),
        "floors": floors.iter().map(|floor| json!({
            "name": floor.name,
            "wanted": floor.wanted,
            "found": floor.found,
            "holds": floor.holds(),
        })).collect::<Value>(),
    })
}

fn sample_json(sample: &Sample) -> Value {
    let [half, p99, p999] = sample.latency;
    let mut value = json!({
        "per_second": sample.rate,
        "p50_us": half,
        "p99_us": p99,
        "p999_us": p999,
        "server_cpu_us": sample.server_cpu,
        "client_cpu_us": sample.client_cpu,
        "foreign_cores": sample.foreign_cores,
        "loadavg": sample.load_average,
    });
    if let Some(start) = sample.start {
        value["start"] = json!({
            "keys": start.keys,
            "seconds": start.seconds,
            "resident_bytes_filled": start.filled_bytes,
            "resident_bytes_started": start.started_bytes,
        });
    }
    value
}

fn rate_ratio(row: &Row) -> f64 {
    let [ours, etcd] = &row.samples;
    median(ours, |sample| sample.rate) / median(etcd, |sample| sample.rate)
}

/// How many times less CPU we use.
fn cpu_ratio(row: &Row) -> f64 {
    let [ours, etcd] = &row.samples;
    median(etcd, |sample| sample.server_cpu) / median(ours, |sample| sample.server_cpu)
}

fn median(samples: &[Sample], value: impl Fn(&Sample) -> f64) -> f64 {
    let mut values: Vec<f64> = samples.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

fn rate_with_spread(samples: &[Sample]) -> String {
    let rates = || samples.iter().map(|sample| sample.rate);
    let middle = median(samples, |sample| sample.rate);
    if samples.len() < 2 {
        return short(middle);
    }
    let (low, high) = (rates().fold(f64::MAX, f64::min), rates().fold(0.0, f64::max));
    format!("{} ({}-{})", short(middle), short(low), short(high))
}

fn short(rate: f64) -> String {
    if rate >= 10_000.0 { format!("{:.1}k", rate / 1000.0) } else { format!("{rate:.0}") }
}

fn latencies(samples: &[Sample]) -> String {
    let one = |index: usize| median(samples, |sample| sample.latency[index]) / 1000.0;
    format!("{:.2}/{:.2}/{:.2}", one(0), one(1), one(2))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(work: Work, width: usize, ours: &[f64], etcd: &[f64]) -> Row {
        let samples = |rates: &[f64]| {
            let sample =
                |rate: &f64| Sample { rate: *rate, server_cpu: 1e6 / rate, ..Sample::default() };
            rates.iter().map(sample).collect()
        };
        let case = Case { work, guard: Guard::Open, members: 1, width };
        Row { case, samples: [samples(ours), samples(etcd)] }
    }

    #[test]
    fn a_floor_is_judged_by_the_medians() {
        let rows = [row(Work::Put, 100, &[10.0, 250.0, 260.0], &[90.0, 100.0, 900.0])];
        let floors = floors(&rows);
        assert_eq!(floors.len(), 2);
        assert!(floors[0].holds() && (floors[0].found - 2.5).abs() < 1e-9);
        assert!(!floors[1].holds(), "2.5 times less CPU is not a third");
    }

    #[test]
    fn one_call_in_flight_has_no_floor() {
        assert_eq!(floors(&[row(Work::Put, 1, &[1.0], &[1.0])]), []);
        assert_eq!(floors(&[row(Work::Txn, 1000, &[1.0], &[1.0])]), []);
    }

    #[test]
    fn authentication_is_judged_by_what_it_takes_from_our_own_rate() {
        let open = row(Work::Put, 100, &[100.0], &[10.0]);
        let mut guarded = row(Work::Put, 100, &[89.0], &[1.0]);
        guarded.case.guard = Guard::Auth;
        assert_eq!(floors(std::slice::from_ref(&guarded)), [], "nothing to compare with");
        let floors = floors(&[open, guarded]);
        let auth = floors.last().unwrap();
        assert!(!auth.holds() && (auth.found - 0.89).abs() < 1e-9, "{auth:?}");
    }

    #[test]
    fn the_table_shows_the_spread() {
        let text = table(&[row(Work::Range, 10, &[30_000.0, 20_000.0, 10_000.0], &[5_000.0])]);
        assert!(text.contains("| 20.0k (10.0k-30.0k) | 5000 | **4.0x** |"), "{text}");
    }
}
