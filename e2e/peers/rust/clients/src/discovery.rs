//! The pair of every service discovery: workers that are registered for as long as they live, and a master
//! that knows who serves, from one read and from then on by watching.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use etcd_client::{EventType, GetOptions, PutOptions, WatchOptions, WatchStream};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use crate::{Failure, Outcome, Run, check, connect, equal, some};

/// Seconds that a registration outlives its worker.
const TTL: i64 = 2;

/// Registers an address until it is told to end.
pub(crate) async fn work(endpoints: &[String], key: &str, address: &str) -> Outcome {
    let mut told = signal(SignalKind::terminate()).map_err(|error| Failure(error.to_string()))?;
    let mut client = connect(endpoints, None).await?;
    let lease = client.lease_grant(TTL, None).await?.id();
    let (mut keeper, mut renewals) = client.lease_keep_alive(lease).await?;
    client.put(key, address, Some(PutOptions::new().with_lease(lease))).await?;
    println!("registered {key}");
    let mut beat = tokio::time::interval(Duration::from_millis(500));
    loop {
        tokio::select! {
            _ = told.recv() => break,
            _ = beat.tick() => keeper.keep_alive().await?,
            renewed = renewals.message() => {
                let renewed = some("a renewal", renewed?)?;
                check(renewed.ttl() > 0, format!("the registration of {key} was lost"))?;
            }
        }
    }
    // It leaves at once instead of when the lease ends.
    client.lease_revoke(lease).await?;
    Ok(())
}

struct Master {
    prefix: String,
    changes: WatchStream,
    serving: BTreeMap<String, String>,
    joined: usize,
    left: usize,
}

impl Master {
    async fn new(run: &mut Run) -> Outcome<Master> {
        let now = run.client.get(run.prefix.clone(), Some(GetOptions::new().with_prefix())).await?;
        let mut serving = BTreeMap::new();
        for kv in now.kvs() {
            let name = kv.key_str()?.replacen(&run.prefix, "", 1);
            serving.insert(name, kv.value_str()?.to_owned());
        }
        let revision = some("the header", now.header())?.revision() + 1;
        let options =
            WatchOptions::new().with_prefix().with_prev_key().with_start_revision(revision);
        let changes = run.client.watch(run.prefix.clone(), Some(options)).await?;
        Ok(Master { prefix: run.prefix.clone(), changes, serving, joined: 0, left: 0 })
    }

    /// Follows the changes until just these serve.
    async fn until(&mut self, names: &[&str]) -> Outcome {
        while !self.serving.keys().eq(names) {
            let response = some("a change", self.changes.message().await?)?;
            check(!response.canceled(), "the watch has ended")?;
            for event in response.events() {
                let kv = some("its key", event.kv())?;
                let name = kv.key_str()?.replacen(&self.prefix, "", 1);
                match event.event_type() {
                    EventType::Put => {
                        self.serving.insert(name, kv.value_str()?.to_owned());
                        self.joined += 1;
                    }
                    EventType::Delete => {
                        let before = some("who it was", event.prev_kv())?.value_str()?.to_owned();
                        equal("who left", self.serving.remove(&name), Some(before))?;
                        self.left += 1;
                    }
                }
            }
        }
        for (name, address) in &self.serving {
            equal("an address", address, &format!("10.0.0.{name}"))?;
        }
        Ok(())
    }
}

/// Runs a worker as a process of its own and waits until it is registered.
async fn start_worker(run: &Run, name: &str) -> Outcome<Child> {
    let failure = |error: std::io::Error| Failure(format!("worker {name}: {error}"));
    let mut worker = Command::new(std::env::current_exe().map_err(failure)?)
        .args(["worker", &run.endpoints.join(","), &run.key(name), &format!("10.0.0.{name}")])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failure)?;
    let mut output = BufReader::new(some("its output", worker.stdout.take())?).lines();
    let line = output.next_line().await.map_err(failure)?.unwrap_or_default();
    check(line.starts_with("registered"), format!("worker {name} said {line:?}"))?;
    Ok(worker)
}

pub(crate) async fn workers_come_and_go(run: &mut Run) -> Outcome {
    let failure = |error: std::io::Error| Failure(error.to_string());
    let mut crashes = start_worker(run, "1").await?;
    let mut master = Master::new(run).await?;
    master.until(&["1"]).await?;
    let _second = start_worker(run, "2").await?;
    let mut told = start_worker(run, "3").await?;
    master.until(&["1", "2", "3"]).await?;
    crashes.kill().await.map_err(failure)?;
    master.until(&["2", "3"]).await?;
    let pid = some("a worker's process", told.id())?;
    let kill = Command::new("kill").args(["-TERM", &pid.to_string()]).status().await;
    check(kill.map_err(failure)?.success(), "worker 3 could not be told to go")?;
    master.until(&["2"]).await?;
    check(told.wait().await.map_err(failure)?.success(), "worker 3 did not end well")?;
    let _first = start_worker(run, "1").await?;
    master.until(&["1", "2"]).await?;
    // Nobody left who should not have, however long the others waited.
    equal("joined and left", (master.joined, master.left), (3, 2))
}
