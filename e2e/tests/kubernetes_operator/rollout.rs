//! A new version reaches every member, one after another, under a client that writes.

use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use e2e::kubernetes::{Namespace, wait};
use serde_json::json;

use crate::product::{Etcd, NEXT_VERSION, STEP, VERSION, condition, kubernetes, text};
use crate::writer::Writer;

#[test]
fn a_new_version_rolls_through_without_a_lost_write_and_a_bad_image_stops() -> Result<()> {
    let cluster = kubernetes()?;
    let namespace = Namespace::restricted(&cluster, "rollout")?;
    let etcd = Etcd::create(&namespace, "main", 3, &json!({}))?;
    ensure!(etcd.status()?["currentVersion"] == VERSION, "{}", etcd.status()?);
    let leader = etcd.leader()?;
    let before = etcd.members()?;
    let writer = Writer::start(&etcd)?;

    etcd.patch(&json!({"version": NEXT_VERSION}))?;
    etcd.wait_for("the new version", Duration::from_secs(150), |status| {
        status["currentVersion"] == NEXT_VERSION
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
    // The leader was moved before it was restarted, and went last.
    ensure!(etcd.leader()? != leader, "{leader} still leads");
    let started = |name: &str| -> Result<String> {
        Ok(text(&namespace.get(&format!("pod {name}"))?["status"]["startTime"]))
    };
    for member in etcd.member_names()?.iter().filter(|member| **member != leader) {
        ensure!(started(member)? <= started(&leader)?, "{leader} was restarted before {member}");
    }

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
    let broken = wait::until("one member cannot start", STEP, || {
        let pods = namespace.get("pods -l etcd.keelson.dev/component=server")?;
        let pods = pods["items"].as_array().cloned().unwrap_or_default();
        let waiting = |pod: &&serde_json::Value| {
            let state = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
            text(&state["reason"]).contains("ErrImage")
        };
        let broken: Vec<_> = pods.iter().filter(waiting).cloned().collect();
        if broken.len() == 1 { Ok(broken[0].clone()) } else { Err(anyhow!("{}", broken.len())) }
    })?;
    writer.wait_for_more()?;
    let status = etcd.wait_for("it says so", STEP, |status| {
        status["readyReplicas"] == 2 && condition(status, "Degraded")["status"] == "True"
    })?;
    ensure!(condition(&status, "Ready")["status"] == "True", "{status}");
    println!("  {} waits: {}", text(&broken["metadata"]["name"]), status["blockedBy"]);

    etcd.patch(&json!({"image": {"tag": null, "pullPolicy": null}}))?;
    etcd.wait_until_settled(3)?;
    writer.finish(&etcd)?;
    etcd.hash().map(drop)
}
