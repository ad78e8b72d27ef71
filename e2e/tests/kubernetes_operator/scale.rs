//! Size changes under a client that writes all the while.

use anyhow::{Result, anyhow, ensure};
use e2e::kubernetes::{Namespace, wait};
use serde_json::json;

use crate::product::{Etcd, OPERATOR_NAMESPACE, STEP, kubernetes, text};
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
    kill_operators(&cluster)?;
    etcd.wait_until_settled(5)?;
    writer.wait_for_more()?;
    let status = etcd.status()?;
    ensure!(status["faultTolerance"] == 2, "{status}");

    let leader = etcd.leader()?;
    namespace.kubectl("scale etcdcluster main --replicas=3")?;
    etcd.wait_for("the first has left", STEP, |status| status["voters"] == 4)?;
    kill_operators(&cluster)?;
    etcd.wait_until_settled(3)?;
    writer.wait_for_more()?;
    println!("  the leader was {leader} and is {}", etcd.leader()?);
    etcd.hash()?;

    // To one again: two leave, whoever of them leads hands over first, and no write goes with them.
    let stays = etcd.member_names()?.into_iter().next().unwrap_or_default();
    namespace.kubectl("scale etcdcluster main --replicas=1")?;
    etcd.wait_until_settled(1)?;
    writer.wait_for_more()?;
    let status = etcd.status()?;
    ensure!(status["leader"]["member"] == stays.as_str(), "{stays} does not lead: {status}");

    writer.finish(&etcd)?;
    // Who left has left nothing: no object, no Pod, no volume.
    let members = etcd.member_names()?;
    ensure!(members == [stays], "{members:?}");
    wait::until("one volume is left", STEP, || {
        let claims = namespace.get("persistentvolumeclaims")?;
        let count = claims["items"].as_array().map_or(0, Vec::len);
        if count == 1 { Ok(()) } else { Err(anyhow!("there are {count}")) }
    })
}

/// Kills every operator at once, without a chance to end in an orderly way.
fn kill_operators(cluster: &e2e::kubernetes::Cluster) -> Result<()> {
    let access = cluster.access();
    let pods = || -> Result<Vec<String>> {
        let line = ["-n", OPERATOR_NAMESPACE, "get", "pods", "-o", "json"];
        let list: serde_json::Value = serde_json::from_str(&access.kubectl(line).run()?)?;
        let items = list["items"].as_array().cloned().unwrap_or_default();
        Ok(items.iter().map(|pod| text(&pod["metadata"]["name"])).collect())
    };
    let before = pods()?;
    ensure!(!before.is_empty(), "there is no operator");
    access
        .kubectl(["-n", OPERATOR_NAMESPACE, "delete", "pods", "--all"])
        .words("--grace-period=0 --force")
        .run()?;
    wait::until("the killed operators are gone", STEP, || {
        let now = pods()?;
        if before.iter().any(|pod| now.contains(pod)) {
            return Err(anyhow!("there are {now:?}"));
        }
        Ok(())
    })
}
