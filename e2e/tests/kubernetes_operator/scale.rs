//! Size changes under a client that writes all the while.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use e2e::kubernetes::{Cluster, Namespace, wait};
use serde_json::{Value, json};

use crate::product::{Etcd, OPERATOR_NAMESPACE, RELEASE, STEP, kubernetes, text};
use crate::writer::{PLANNED, Writer};

#[test]
fn one_to_three_to_five_to_three_to_one_loses_no_write_even_when_the_operator_is_killed()
-> Result<()> {
    let cluster = kubernetes()?;
    let namespace = Namespace::restricted(&cluster, "scale")?;
    let etcd = Etcd::create(&namespace, "main", 1, &json!({}))?;
    let writer = Writer::start(&etcd, PLANNED)?;

    // By the scale subresource, as `kubectl scale` and autoscalers do it.
    namespace.kubectl("scale etcdcluster main --replicas=3")?;
    etcd.wait_until_settled(3)?;
    writer.wait_for_more()?;

    namespace.kubectl("scale etcdcluster main --replicas=5")?;
    etcd.wait_for("a learner joins", STEP, |status| status["learners"] == 1)?;
    crash_operators(&cluster)?;
    etcd.wait_until_settled(5)?;
    writer.wait_for_more()?;
    let status = etcd.status()?;
    ensure!(status["faultTolerance"] == 2, "{status}");

    let leader = etcd.leader()?;
    namespace.kubectl("scale etcdcluster main --replicas=3")?;
    etcd.wait_for("the first has left", STEP, |status| status["voters"] == 4)?;
    crash_operators(&cluster)?;
    etcd.wait_until_settled(3)?;
    writer.wait_for_more()?;
    println!("  the leader was {leader} and is {}", etcd.leader()?);
    etcd.hash()?;
    secrets_are_of_members(&etcd)?;

    // To one again: two leave, the one that leads hands over first, and no write goes with them.
    let members = etcd.member_names()?;
    let [stays, .., leads] = members.as_slice() else { bail!("the members are {members:?}") };
    let (stays, leads) = (stays.clone(), leads.clone());
    lead_by(&etcd, &leads)?;
    namespace.kubectl("scale etcdcluster main --replicas=1")?;
    etcd.wait_until_settled(1)?;
    writer.wait_for_more()?;
    let status = etcd.status()?;
    ensure!(status["leader"]["member"] == stays.as_str(), "{stays} does not lead: {status}");
    etcd.was_told_of_the_move(&leads)?;

    writer.finish(&etcd)?;
    // Who left has left nothing: no object, no Pod, no volume, no certificate.
    let members = etcd.member_names()?;
    ensure!(members == [stays], "{members:?}");
    secrets_are_of_members(&etcd)?;
    wait::until("one volume is left", STEP, || {
        let claims = namespace.get("persistentvolumeclaims")?;
        let count = claims["items"].as_array().map_or(0, Vec::len);
        if count == 1 { Ok(()) } else { Err(anyhow!("there are {count}")) }
    })
}

/// The Secrets of members that left go after them, as soon as the garbage collector comes round.
fn secrets_are_of_members(etcd: &Etcd<'_>) -> Result<()> {
    let members = etcd.member_names()?;
    let of_cluster = ["main-client-ca", "main-client-tls", "main-peer-ca"].map(str::to_owned);
    let mut expected: Vec<String> = members.iter().map(|member| format!("{member}-tls")).collect();
    expected.extend(of_cluster);
    expected.sort();
    wait::until("no Secret of a member is left that is gone", STEP, || {
        let secrets = etcd.namespace.get("secrets -l etcd.keelson.dev/component=certificate")?;
        let secrets = secrets["items"].as_array().into_iter().flatten();
        let mut names: Vec<String> =
            secrets.map(|secret| text(&secret["metadata"]["name"])).collect();
        names.sort();
        if names == expected {
            Ok(())
        } else {
            Err(anyhow!("there are {names:?}, not {expected:?}"))
        }
    })
}

/// Lets this member lead.
fn lead_by(etcd: &Etcd<'_>, member: &str) -> Result<()> {
    wait::until(&format!("{member} leads"), STEP, || {
        let status = etcd.caller_of(member)?.status()?;
        let id = status.header.context("a header")?.member_id;
        if status.leader == id {
            return Ok(());
        }
        etcd.caller_of(&etcd.leader()?)?.move_leader(id)?;
        Err(anyhow!("it was told to"))
    })?;
    etcd.wait_for("the operator knows it", STEP, |status| status["leader"]["member"] == member)
        .map(drop)
}

/// Kills every operator at once, as a crash does: without a word to it, and so with the lease in its
/// hands, which is free for the next one only after it has stood still for its whole time.
fn crash_operators(cluster: &Cluster) -> Result<()> {
    const LEASE: Duration = Duration::from_secs(15);
    let line = |what: &str| -> Result<Value> {
        let line = ["-n", OPERATOR_NAMESPACE, "get", "-o", "json"];
        let found = cluster.access().kubectl(line).words(what).run()?;
        serde_json::from_str(&found).with_context(|| format!("read {what}"))
    };
    let holder = || -> Result<String> {
        Ok(text(&line(&format!("lease {RELEASE}"))?["spec"]["holderIdentity"]))
    };
    let (pods, dead) = (line("pods")?, holder()?);
    let began = Instant::now();
    let mut crashed = 0;
    for pod in pods["items"].as_array().into_iter().flatten() {
        crashed += cluster.crash(&text(&pod["metadata"]["uid"]), "etcd-operator")?;
    }
    ensure!(crashed > 0, "no operator runs in {pods}");
    wait::until("another operator has taken the lease of a dead one", STEP, || {
        let holds = holder()?;
        ensure!(!holds.is_empty() && holds != dead, "it is held by {holds:?}, and was by {dead:?}");
        Ok(())
    })?;
    let took = began.elapsed();
    ensure!(took >= LEASE, "the lease of {dead} was taken after {took:?}");
    println!("  {crashed} operators were killed; the next one acts after {took:?}");
    Ok(())
}
