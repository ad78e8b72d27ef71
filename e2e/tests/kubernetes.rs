//! The local Kubernetes is a real one: what the operator's tests stand on is proven here, with pods,
//! volumes and node faults. Needs a running cluster: `cargo xtask test --only kubernetes`.
//!
//! Each test has its own namespace, and several run at a time, except those that take nodes away.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use e2e::kubernetes::{Cluster, Namespace, NodeNumber, object_store, wait};

const READY: Duration = Duration::from_secs(60);
/// Twice what the settings (6 s of grace, 5 s of toleration) make of it on a quiet machine.
const NODE_LOSS: Duration = Duration::from_secs(40);

fn cluster() -> Result<Cluster> {
    Cluster::of_environment()
}

/// A StatefulSet of `replicas` on different nodes, each with a volume at /data and its own name
/// served over HTTP, and a headless and an ordinary Service before it.
fn stateful(namespace: &Namespace, replicas: usize) -> Result<()> {
    namespace.apply(&STATEFUL.replace("REPLICAS", &replicas.to_string()))?;
    namespace.wait_for("statefulset web", "{.status.readyReplicas}", &replicas.to_string(), READY)
}

const STATEFUL: &str = r#"
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: web}
spec:
  serviceName: web
  podManagementPolicy: Parallel
  replicas: REPLICAS
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      topologySpreadConstraints:
        - maxSkew: 1
          topologyKey: kubernetes.io/hostname
          whenUnsatisfiable: DoNotSchedule
          labelSelector: {matchLabels: {app: web}}
      containers:
        - name: web
          image: keelson/box:1
          args: ["-c", "echo $HOSTNAME > /data/name; exec httpd -f -p 8080 -h /data"]
          readinessProbe: {httpGet: {path: /name, port: 8080}, periodSeconds: 1}
          volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
    - metadata: {name: data}
      spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 300Mi}}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: None, selector: {app: web}, ports: [{port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: front}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
"#;

#[test]
fn pods_of_different_nodes_find_each_other_by_name_and_by_service() -> Result<()> {
    let cluster = cluster()?;
    let namespace = Namespace::new(&cluster, "names")?;
    stateful(&namespace, 3)?;
    // That a Pod is ready is told to names and Services on ways of their own: kube-proxy writes its
    // rules once a second at most. So each question is asked until it is answered.
    let ask = |pod: &str, url: &str, wanted: &str| {
        wait::until(&format!("{pod} asks {url}"), READY, || {
            let answer =
                namespace.shell(pod, &format!("timeout 5 wget -qO- {url} 2>&1 || true"))?;
            ensure!(answer.contains(wanted), "the answer is {answer:?}, which has no {wanted:?}");
            Ok(())
        })
    };
    let mut nodes = Vec::new();
    for pod in ["web-0", "web-1", "web-2"] {
        nodes.push(namespace.node_of(pod)?);
        ask("web-0", &format!("http://{pod}.web:8080/name"), pod)?;
    }
    nodes.sort();
    ensure!(nodes == cluster.nodes(), "the pods are on {nodes:?}");
    ask("web-1", "http://front.names.svc.cluster.local/name", "web-")?;
    // The API server by name, from a pod: what an in-cluster client does.
    let address = namespace.shell("web-2", "nslookup kubernetes.default.svc.cluster.local")?;
    ensure!(address.contains("10.96.0.1"), "{address}");
    // The object store is there, and wants credentials.
    ask("web-2", &format!("{}/{}/x", object_store::ENDPOINT, object_store::BUCKET), "403")
}

#[test]
fn a_pod_may_be_as_restricted_as_our_image_asks_for() -> Result<()> {
    let cluster = cluster()?;
    let namespace = Namespace::new(&cluster, "restricted")?;
    let level = "pod-security.kubernetes.io/enforce=restricted";
    namespace.kubectl(&format!("label namespace restricted {level}"))?;
    namespace.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: box}
spec:
  terminationGracePeriodSeconds: 0
  securityContext:
    runAsNonRoot: true
    runAsUser: 65532
    fsGroup: 65532
    seccompProfile: {type: RuntimeDefault}
  containers:
    - name: box
      image: keelson/box:1
      args: ["-c", "exec sleep 1000"]
      securityContext:
        readOnlyRootFilesystem: true
        allowPrivilegeEscalation: false
        capabilities: {drop: [ALL]}
      volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, emptyDir: {}}]
"#,
    )?;
    namespace.wait_for("pod box", "{.status.phase}", "Running", READY)?;
    let status = namespace.shell("box", "cat /proc/self/status")?;
    for line in ["Seccomp:\t2", "NoNewPrivs:\t1", "CapEff:\t0000000000000000"] {
        ensure!(status.contains(line), "{line:?} is not in {status}");
    }
    namespace.shell("box", "touch /data/x")?;
    ensure!(namespace.shell("box", "touch /x").is_err(), "the root file system is writable");
    Ok(())
}

#[test]
fn a_volume_has_its_size_keeps_its_data_and_grows_while_in_use() -> Result<()> {
    let cluster = cluster()?;
    let namespace = Namespace::new(&cluster, "volumes")?;
    stateful(&namespace, 1)?;
    let blocks = || namespace.shell("web-0", "stat -f -c %b /data")?.parse::<u64>().context("%b");
    let fill = "dd if=/dev/zero of=/data/fill bs=1M count=1000; rm /data/fill";
    let full = namespace.shell("web-0", &format!("{{ {fill}; }} 2>&1"))?;
    ensure!(full.contains("No space left on device"), "the volume is not bounded: {full}");

    namespace.shell("web-0", "echo kept > /data/kept && sync")?;
    namespace.kubectl("delete pod web-0")?;
    // A kubelet looks for the container by the name of its Pod, and may find that of the Pod before, which is
    // just about to end.
    let before = wait::until("the new pod answers", READY, || {
        let kept = namespace.shell("web-0", "cat /data/kept")?;
        if kept == "kept" { blocks() } else { Err(anyhow!("it has {kept:?}")) }
    })?;
    let bigger = r#"--patch={"spec":{"resources":{"requests":{"storage":"600Mi"}}}}"#;
    namespace.kubectl(&format!("patch pvc data-web-0 {bigger}"))?;
    namespace.wait_for("pvc data-web-0", "{.status.capacity.storage}", "600Mi", READY)?;
    ensure!(blocks()? > before * 3 / 2, "the file system did not grow with the volume");
    ensure!(namespace.shell("web-0", "cat /data/kept")? == "kept");
    Ok(())
}

/// These take nodes away, and each gives back what it took: they run one after another, and alone.
mod nodes {
    use super::*;

    #[test]
    fn a_pod_moves_with_its_volume_when_its_node_is_powered_off_for_good() -> Result<()> {
        let cluster = cluster()?;
        let namespace = Namespace::new(&cluster, "failover")?;
        stateful(&namespace, 1)?;
        namespace.shell("web-0", "echo kept > /data/kept && sync")?;
        let lost = namespace.node_of("web-0")?;

        cluster.power_off(lost)?;
        cluster.wait_for_node(lost, "Unknown", NODE_LOSS)?;
        let taint = "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute";
        namespace.kubectl(&format!("taint node {lost} {taint}"))?;
        wait::until("the pod has its data on another node", NODE_LOSS, || {
            let node = namespace.node_of("web-0")?;
            ensure!(node != lost, "it is still on {lost}");
            let kept = namespace.shell("web-0", "cat /data/kept")?;
            if kept == "kept" { Ok(()) } else { Err(anyhow!("it has {kept:?}")) }
        })?;

        namespace.kubectl(&format!("taint node {lost} {taint}-"))?;
        cluster.power_on(lost)?;
        cluster.wait_for_node(lost, "True", READY)
    }

    #[test]
    fn a_node_that_reboots_runs_its_pods_again() -> Result<()> {
        let cluster = cluster()?;
        let namespace = Namespace::new(&cluster, "reboot")?;
        stateful(&namespace, 1)?;
        let node = namespace.node_of("web-0")?;
        cluster.power_off(node)?;
        cluster.power_on(node)?;
        wait::until("the pod answers again", NODE_LOSS, || {
            namespace.shell("web-0", "wget -qO- http://127.0.0.1:8080/name")
        })?;
        cluster.wait_for_node(node, "True", READY)
    }

    #[test]
    fn a_node_that_hangs_or_loses_its_network_is_noticed_and_comes_back() -> Result<()> {
        let cluster = cluster()?;
        let node = NodeNumber(2);
        cluster.freeze(node)?;
        cluster.wait_for_node(node, "Unknown", NODE_LOSS)?;
        cluster.thaw(node)?;
        cluster.wait_for_node(node, "True", READY)?;

        cluster.partition(node)?;
        cluster.wait_for_node(node, "Unknown", NODE_LOSS)?;
        cluster.heal(node)?;
        cluster.wait_for_node(node, "True", READY)
    }
}
