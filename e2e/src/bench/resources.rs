//! What processes use, read from `/proc`: CPU time, resident memory, and the load of the machine.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// CPU time, user and system, of all of these processes since they started.
pub fn cpu_time(pids: &[u32]) -> Result<Duration> {
    pids.iter().map(|pid| cpu_time_of(&pid.to_string())).sum()
}

/// CPU time of the running program.
pub fn own_cpu_time() -> Result<Duration> {
    cpu_time_of("self")
}

fn cpu_time_of(process: &str) -> Result<Duration> {
    let path = format!("/proc/{process}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let ticks = ticks_of_stat(&text).with_context(|| format!("{path} is not as proc(5) says"))?;
    Ok(Duration::from_nanos(ticks * 1_000_000_000 / rustix::param::clock_ticks_per_second()))
}

/// Fields 14 and 15; the name in field 2 may contain anything, also blanks and parentheses.
fn ticks_of_stat(text: &str) -> Option<u64> {
    let (_, after_name) = text.rsplit_once(") ")?;
    let mut fields = after_name.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// Resident memory of a process in bytes.
pub fn resident_bytes(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let kibibytes: u64 = text
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.split_ascii_whitespace().next()?.parse().ok())
        .with_context(|| format!("{path} has no VmRSS"))?;
    Ok(kibibytes * 1024)
}

/// `/proc/loadavg` as it is, so that a reader can see what else the machine was doing.
pub fn load_average() -> String {
    fs::read_to_string("/proc/loadavg").unwrap_or_default().trim().to_owned()
}

/// CPU time of the whole machine since boot that was not idle, in all processes.
pub fn machine_cpu_time() -> Result<Duration> {
    let text = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
    let first = text.lines().next().unwrap_or_default();
    // user nice system idle iowait irq softirq steal
    let ticks: Vec<u64> =
        first.split_ascii_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    let busy: u64 = ticks
        .iter()
        .take(8)
        .enumerate()
        .filter(|(index, _)| !matches!(index, 3 | 4))
        .map(|(_, ticks)| ticks)
        .sum();
    Ok(Duration::from_nanos(busy * 1_000_000_000 / rustix::param::clock_ticks_per_second()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let text = "7 (a) b) R 1 1 1 0 -1 4194304 9 0 0 0 250 50 0 0 20 0 1 0 9 9 9";
        assert_eq!(ticks_of_stat(text), Some(300));
        assert_eq!(ticks_of_stat("7 (x) R 1"), None);
    }

    #[test]
    fn this_process_has_memory_and_the_machine_has_worked() {
        assert!(resident_bytes(std::process::id()).unwrap() > 100_000);
        assert!(machine_cpu_time().unwrap() >= own_cpu_time().unwrap());
    }
}
