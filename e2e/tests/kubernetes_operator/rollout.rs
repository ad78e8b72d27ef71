//! A new version reaches every member, one after another, under a client that writes.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use e2e::kubernetes::{Namespace, wait};
use serde_json::{Value, json};

use crate::product::{Etcd, NEXT_VERSION, STEP, VERSION, condition, kubernetes, text};
use crate::writer::{PLANNED, Writer};

#[test]
fn a_new_version_rolls_through_without_a_lost_write_and_a_bad_image_stops() -> Result<()> {
    let cluster = kubernetes()?;
    let namespace = Namespace::restricted(&cluster, "rollout")?;
    let etcd = Etcd::create(&namespace, "main", 3, &json!({}))?;
    ensure!(etcd.status()?["currentVersion"] == VERSION, "{}", etcd.status()?);
    let leader = etcd.leader()?;
    let before = etcd.members()?;
    let writer = Writer::start(&etcd, PLANNED)?;

    etcd.patch(&json!({"version": NEXT_VERSION}))?;
    one_at_a_time(&etcd, "the new version", Duration::from_secs(300), |_| {
        let status = etcd.status()?;
        ensure!(status["currentVersion"] == NEXT_VERSION, "the status is {status}");
        Ok(())
    })?;
    etcd.wait_until_settled(3)?;
    writer.wait_for_more()?;
    for member in etcd.members()? {
        let name = text(&member["metadata"]["name"]);
        let version = etcd.caller_of(&name)?.status()?.version;
        ensure!(version == NEXT_VERSION, "{name} runs {version}");
        let old = before.iter().find(|old| old["metadata"]["name"] == name.as_str());
        let id = old.map(|old| old["status"]["memberID"].clone());
        ensure!(id.as_ref() == Some(&member["status"]["memberID"]), "{name} is another member");
    }
    ensure!(etcd.leader()? != leader, "{leader} still leads");
    restarted_last(&etcd, &leader)?;

    flags_and_resources_reach_every_member(&etcd)?;
    writer.wait_for_more()?;

    // Down is refused, with the reason; what runs goes on.
    etcd.patch(&json!({"version": "3.6.0"}))?;
    etcd.wait_for("the downgrade is refused", STEP, |status| {
        let applied = condition(status, "SpecApplied");
        applied["status"] == "False" && text(&applied["message"]).contains("3.6.0")
    })?;

    // An image that does not exist stops at the first member; the others serve.
    etcd.patch(
        &json!({"version": NEXT_VERSION, "image": {"tag": "missing", "pullPolicy": "Never"}}),
    )?;
    let broken = one_at_a_time(&etcd, "one member cannot start", STEP, |pods| {
        let waiting = |pod: &&Value| {
            let state = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
            text(&state["reason"]).contains("ErrImage")
        };
        let broken: Vec<_> = pods.iter().filter(waiting).collect();
        if broken.len() == 1 { Ok(broken[0].clone()) } else { Err(anyhow!("{}", broken.len())) }
    })?;
    writer.wait_for_more()?;
    let status = etcd.wait_for("it says so", STEP, |status| {
        status["readyReplicas"] == 2 && condition(status, "Degraded")["status"] == "True"
    })?;
    ensure!(condition(&status, "Ready")["status"] == "True", "{status}");
    println!("  {} waits: {}", text(&broken["metadata"]["name"]), status["blockedBy"]);

    etcd.patch(&json!({"image": {"tag": null, "pullPolicy": null}}))?;
    one_at_a_time(&etcd, "all members have the image", STEP, |pods| {
        let runs = pods.iter().filter(|pod| is_running(pod)).count();
        ensure!(runs == 3, "{runs} of 3 members run");
        Ok(())
    })?;
    etcd.wait_until_settled(3)?;
    writer.finish(&etcd)?;
    etcd.hash().map(drop)
}

/// No Pod was made after that of the member that led. Events do not say it: the test of scaling kills
/// operators meanwhile, and one that dies after an action does not tell of it.
fn restarted_last(etcd: &Etcd<'_>, leader: &str) -> Result<()> {
    let mut made = Vec::new();
    for member in etcd.member_names()? {
        let pod = etcd.namespace.get(&format!("pod {member}"))?;
        made.push((text(&pod["metadata"]["creationTimestamp"]), member));
    }
    let last = made.iter().map(|(at, _)| at).max().context("there are Pods")?;
    let is_last = made.iter().any(|(at, member)| at == last && member == leader);
    ensure!(is_last, "{leader} was not the last: {made:?}");
    Ok(())
}

/// Not only another image: a flag and other resources go the same way, one member at a time.
fn flags_and_resources_reach_every_member(etcd: &Etcd<'_>) -> Result<()> {
    let ids = |members: &[Value]| -> Vec<Value> {
        members.iter().map(|member| member["status"]["memberID"].clone()).collect()
    };
    let before = ids(&etcd.members()?);
    // More than the 1.5 MiB that a server takes if it is not told otherwise.
    let large = "x".repeat(1_800_000);
    ensure!(etcd.caller()?.put("large", &large).is_err(), "it is taken without the flag");
    etcd.patch(&json!({
        "config": {"maxRequestBytes": 2_097_152},
        "extraArgs": {"max-concurrent-streams": "1000"},
        "resources": {"requests": {"cpu": "25m", "memory": "40Mi"}},
    }))?;
    one_at_a_time(etcd, "all members have the flags", Duration::from_secs(300), |pods| {
        let told = |pod: &&Value| {
            let container = &pod["spec"]["containers"][0];
            let arguments = container["args"].to_string();
            arguments.contains("--max-concurrent-streams=1000")
                && arguments.contains("--max-request-bytes=2097152")
                && container["resources"]["requests"] == json!({"cpu": "25m", "memory": "40Mi"})
        };
        let told = pods.iter().filter(told).count();
        ensure!(told == 3, "{told} of {} have", pods.len());
        Ok(())
    })?;
    etcd.wait_until_settled(3)?;
    ensure!(ids(&etcd.members()?) == before, "there are other members than {before:?}");
    etcd.caller()?.put("large", &large).map(drop)
}

/// Waits until `holds` of the members' Pods, of which never more than one is away meanwhile.
fn one_at_a_time<T>(
    etcd: &Etcd<'_>,
    what: &str,
    limit: Duration,
    holds: impl Fn(&[Value]) -> Result<T>,
) -> Result<T> {
    wait::until(what, limit, || {
        let pods = etcd.namespace.get("pods -l etcd.keelson.dev/component=server")?;
        let pods = pods["items"].as_array().cloned().unwrap_or_default();
        let there = pods.iter().filter(|pod| is_running(pod)).count();
        if there < 2 {
            let seen: Vec<String> = pods.iter().map(|pod| pod["status"].to_string()).collect();
            return Ok(Err(anyhow!("only {there} of 3 members run: {}", seen.join("; "))));
        }
        holds(&pods).map(Ok)
    })
    .and_then(|held| held)
    .with_context(|| etcd.story())
}

/// It has a container that runs and is not told to end. That it does not answer in time may be the
/// machine's fault.
fn is_running(pod: &Value) -> bool {
    let running = &pod["status"]["containerStatuses"][0]["state"]["running"];
    pod["metadata"]["deletionTimestamp"].is_null() && !running.is_null()
}
