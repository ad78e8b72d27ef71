//! A cluster comes to be, serves by its Service's name over TLS, and keeps its data when a Pod goes.

use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use e2e::kubernetes::{Namespace, wait};
use serde_json::{Value, json};

use crate::product::{Etcd, REPOSITORY, STEP, VERSION, kubernetes, repository, text};

/// A Pod of our image in which `etcdctl` has the cluster's client certificate, or none.
fn client_pod(name: &str, secret: Option<&str>) -> Value {
    let volume = match secret {
        Some(secret) => json!({"name": "tls", "secret": {"secretName": secret}}),
        None => json!({"name": "tls", "emptyDir": {}}),
    };
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 65532, "fsGroup": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{
                "name": "client", "image": format!("{REPOSITORY}:{VERSION}"),
                // Our image has no shell and no `sleep`: a server of its own keeps the Pod running.
                "args": ["--data-dir=/tmp/data"],
                "securityContext": {
                    "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
                    "readOnlyRootFilesystem": true,
                },
                "volumeMounts": [
                    {"name": "tls", "mountPath": "/tls"}, {"name": "tmp", "mountPath": "/tmp"},
                ],
            }],
            "volumes": [volume, {"name": "tmp", "emptyDir": {}}],
        },
    })
}

#[test]
fn the_smallest_example_serves_by_its_services_name_over_tls_only() -> Result<()> {
    let cluster = kubernetes()?;
    let namespace = Namespace::restricted(&cluster, "bootstrap")?;
    let example = repository().join("manifests/examples/cluster.yaml");
    namespace.kubectl(&format!("apply -f {}", example.display()))?;
    let etcd = Etcd::adopt(&namespace, "example")?;
    etcd.wait_until_settled(3)?;

    namespace.apply(&client_pod("client", Some("example-client-tls")).to_string())?;
    namespace.apply(&client_pod("stranger", None).to_string())?;
    for pod in ["client", "stranger"] {
        namespace.wait_for(&format!("pod {pod}"), "{.status.phase}", "Running", STEP)?;
    }
    let etcdctl = |pod: &str, scheme: &str, flags: &[&str], line: &[&str]| {
        let endpoint = format!("--endpoints={scheme}://example-client.bootstrap.svc:2379");
        let mut command = vec!["etcdctl", &endpoint, "--command-timeout=5s"];
        command.extend(flags);
        command.extend(line);
        namespace.exec(pod, &command)
    };
    let trusted = ["--cacert=/tls/ca.crt", "--cert=/tls/tls.crt", "--key=/tls/tls.key"];
    let put = etcdctl("client", "https", &trusted, &["put", "greeting", "hello"])?;
    ensure!(put == "OK", "{put}");
    let got = etcdctl("client", "https", &trusted, &["get", "greeting", "--print-value-only"])?;
    ensure!(got == "hello", "{got}");
    let get = ["get", "greeting"];
    let without = etcdctl("stranger", "https", &["--insecure-skip-tls-verify"], &get);
    ensure!(without.is_err(), "a client without a certificate was served: {without:?}");
    let plain = etcdctl("stranger", "http", &[], &get);
    ensure!(plain.is_err(), "a client without TLS was served: {plain:?}");
    // Inside a member no flags are needed.
    let got = namespace.exec("example-1", &["etcdctl", "get", "greeting", "--print-value-only"])?;
    ensure!(got == "hello", "{got}");

    let nodes: Vec<_> = etcd.member_names()?.iter().map(|pod| namespace.node_of(pod)).collect();
    let mut nodes = nodes.into_iter().collect::<Result<Vec<_>>>()?;
    nodes.sort();
    ensure!(nodes == cluster.nodes(), "the members are on {nodes:?}");
    let budget = namespace.get("poddisruptionbudget example")?;
    ensure!(budget["spec"]["minAvailable"] == 2, "{budget}");
    let hash = etcd.hash()?;
    ensure!(hash.hash != 0, "{hash:?}");
    // The example keeps its volumes; the test does not.
    etcd.patch(&json!({"deletionPolicy": "Delete"}))
}

#[test]
fn a_deleted_pod_comes_back_as_the_same_member_with_its_data() -> Result<()> {
    let cluster = kubernetes()?;
    let namespace = Namespace::restricted(&cluster, "deletion")?;
    // One member: nobody else could give it the data.
    let etcd = Etcd::create(&namespace, "alone", 1, &json!({}))?;
    let caller = etcd.caller()?;
    let revision = caller.put("kept", "yes")?;
    let before = etcd.members()?;
    let pod_uid = |pods: &Value| text(&pods["metadata"]["uid"]);
    let pod = pod_uid(&namespace.get("pod alone-1")?);
    let id = caller.status()?.header.map(|header| (header.cluster_id, header.member_id));

    // As abruptly as Kubernetes can.
    namespace.kubectl("delete pod alone-1 --grace-period=0 --force")?;
    wait::until("there is another Pod", STEP, || {
        let now = pod_uid(&namespace.get("pod alone-1")?);
        if now == pod { Err(anyhow!("it is still the same")) } else { Ok(()) }
    })?;
    etcd.wait_until_settled(1)?;
    let answer = wait::until("it answers", STEP, || etcd.caller()?.get("kept"))?;
    ensure!(answer.as_deref() == Some("yes"), "{answer:?}");
    let after = etcd.members()?;
    ensure!(after.len() == 1, "{after:?}");
    for path in ["/metadata/uid", "/status/memberID", "/status/claimUID"] {
        ensure!(before[0].pointer(path) == after[0].pointer(path), "{path} has changed: {after:?}");
    }
    let caller = etcd.caller()?;
    let now = caller.status()?.header.map(|header| (header.cluster_id, header.member_id));
    ensure!(now == id, "{now:?} was {id:?}");
    let next = caller.put("kept", "still")?;
    ensure!(next == revision + 1, "{next} after {revision}");
    Ok(())
}

#[test]
fn a_member_whose_volume_is_lost_is_replaced() -> Result<()> {
    let cluster = kubernetes()?;
    let namespace = Namespace::restricted(&cluster, "volume-loss")?;
    let etcd = Etcd::create(&namespace, "main", 3, &json!({}))?;
    etcd.caller()?.put("kept", "yes")?;
    let before = etcd.member_names()?;
    let victim = before.last().cloned().unwrap_or_default();
    let pod = namespace.get(&format!("pod {victim}"))?;
    let claim = text(&pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"]);
    namespace.kubectl(&format!("delete persistentvolumeclaim {claim} --wait=false"))?;
    namespace.kubectl(&format!("delete pod {victim} --grace-period=0 --force"))?;
    wait::until("the member is replaced", Duration::from_secs(300), || {
        let now = etcd.member_names()?;
        if now.contains(&victim) { Err(anyhow!("the members are {now:?}")) } else { Ok(()) }
    })?;
    etcd.wait_until_settled(3)?;
    ensure!(etcd.caller()?.get("kept")?.as_deref() == Some("yes"));
    etcd.hash().map(drop)
}
