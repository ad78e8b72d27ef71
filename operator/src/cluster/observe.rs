//! All reads of a pass: the objects of the cluster from the API server, and what each member says
//! about itself and about the membership.
//!
//! Nothing comes from a cache. A member that does not answer is recorded as silent, with the
//! reason; that it is lost is concluded only from what Kubernetes knows: a claim that is gone, a
//! node that is gone or has been not ready for long, or a server that ended with the words that its
//! data is gone.

use std::{collections::BTreeMap, time::Duration};

use futures_util::future::join_all;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStatus, Node, NodeCondition, PersistentVolume, PersistentVolumeClaim,
    Pod,
};
use kube::ResourceExt;
use types::{ClusterId, MemberId};

use super::{
    build::{
        INITIAL_CLUSTER_ANNOTATION, SERVING_LABEL, TEMPLATE_ANNOTATION, member_selector,
        selector_text, starts_cluster,
    },
    model::{
        self, Bootstrap, Cause, Claim, JoinReason, Kubelet, Loss, Member, Membership, Names,
        Observed, Reach, Serial, Serving, Silence,
    },
    validate::Validated,
};
use crate::{
    crd::{EtcdCluster, EtcdMember, MemberRole},
    etcd::{EtcdAdmin, EtcdError, MemberAddress, MemberReport},
    kubernetes::{Kubernetes, KubernetesError, is_owned_by},
};

/// What was read, as the planner needs it and as the later steps need it.
pub struct Observation {
    pub observed: Observed,
    pub objects: BTreeMap<Serial, EtcdMember>,
    pub pods: BTreeMap<Serial, Pod>,
    pub reports: BTreeMap<Serial, MemberReport>,
    pub addresses: BTreeMap<Serial, MemberAddress>,
}

/// Reads everything.
///
/// # Errors
/// The API server did not answer; what etcd does not answer is part of the observation.
pub async fn observe(
    kubernetes: &Kubernetes,
    etcd: &dyn EtcdAdmin,
    cluster: &EtcdCluster,
    validated: &Validated,
    now: Timestamp,
) -> Result<Observation, KubernetesError> {
    let names = &validated.desired.names;
    let (namespace, labels) = (&names.namespace, selector_text(&member_selector(&names.cluster)));
    let (objects, pods, claims) = tokio::try_join!(
        kubernetes.list::<EtcdMember>(namespace, &labels),
        kubernetes.list::<Pod>(namespace, &labels),
        kubernetes.list::<PersistentVolumeClaim>(namespace, &labels),
    )?;
    let objects: BTreeMap<Serial, EtcdMember> = objects
        .into_iter()
        .filter(|object| is_owned_by(object, &validated.uid))
        .map(|object| (Serial(object.spec.serial), object))
        .collect();
    let pods: BTreeMap<Serial, Pod> = pods
        .into_iter()
        .filter_map(|pod| Some((member_serial(names, &objects, &pod)?, pod)))
        .collect();
    let claims: BTreeMap<String, PersistentVolumeClaim> =
        claims.into_iter().map(|claim| (claim.name_any(), claim)).collect();

    let addresses = addresses(names, &objects, &pods);
    let reports = ask_members(etcd, &addresses, &pods).await;
    let machines = machines(kubernetes, &pods, &claims, &reports, &objects).await?;
    let latest_index =
        reports.values().flatten().map(|report| report.raft_index).max().unwrap_or_default();
    let status = cluster.status.clone().unwrap_or_default();
    let cluster_id = status.cluster_id.as_deref().and_then(parse_id).map(ClusterId);
    let scene = Scene { validated, cluster_id, latest_index, now };
    let members: BTreeMap<Serial, Member> = objects
        .iter()
        .map(|(serial, object)| {
            let claim = claims.get(&object.spec.claim_name);
            let report = reports.get(serial);
            (*serial, scene.member(object, claim, pods.get(serial), report, &machines))
        })
        .collect();
    let membership = membership(etcd, &addresses, &members, &reports).await;
    let reports = reports.into_iter().filter_map(|(serial, report)| Some((serial, report.ok()?)));
    let reports: BTreeMap<Serial, MemberReport> = reports.collect();
    let observed = Observed {
        cluster_id,
        bootstrap: status.bootstrap.as_ref().map(bootstrap),
        latest_serial: Serial(status.latest_member_serial),
        last_replacement: status.last_replacement_time.as_ref().map(|time| time.0),
        join_attempts: status.join_attempts,
        membership,
        members,
    };
    Ok(Observation { observed, objects, pods, reports, addresses })
}

/// The members that have an object, and its uid.
///
/// # Errors
/// The API server did not answer.
pub async fn serials(
    kubernetes: &Kubernetes,
    validated: &Validated,
) -> Result<BTreeMap<Serial, String>, KubernetesError> {
    let names = &validated.desired.names;
    let labels = selector_text(&member_selector(&names.cluster));
    let objects = kubernetes.list::<EtcdMember>(&names.namespace, &labels).await?;
    let owned = objects.iter().filter(|object| is_owned_by(*object, &validated.uid));
    Ok(owned.filter_map(|object| Some((Serial(object.spec.serial), object.uid()?))).collect())
}

/// Hexadecimal as etcd prints ids.
pub fn parse_id(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

/// Whose Pod it is. Name and labels may be those of somebody else's, or of an older member's.
fn member_serial(
    names: &Names,
    objects: &BTreeMap<Serial, EtcdMember>,
    pod: &Pod,
) -> Option<Serial> {
    let name = pod.name_any();
    let serial = name.strip_prefix(&names.cluster)?.strip_prefix('-')?.parse().ok()?;
    let owner = objects.get(&Serial(serial))?.uid()?;
    is_owned_by(pod, &owner).then_some(Serial(serial))
}

fn bootstrap(status: &crate::crd::BootstrapStatus) -> Bootstrap {
    Bootstrap {
        token: status.token.clone(),
        attempt: status.attempt,
        started_at: status.started_at.0,
        serials: status.members.iter().map(|member| Serial(member.serial)).collect(),
    }
}

// === Members ===

fn addresses(
    names: &Names,
    objects: &BTreeMap<Serial, EtcdMember>,
    pods: &BTreeMap<Serial, Pod>,
) -> BTreeMap<Serial, MemberAddress> {
    let address = |serial: &Serial| {
        let ip = pods.get(serial)?.status.as_ref()?.pod_ip.clone()?;
        let ip = if ip.contains(':') { format!("[{ip}]") } else { ip };
        let url = format!("{}://{ip}:{}", names.scheme(), super::build::CLIENT_PORT);
        Some((*serial, MemberAddress { url, host: names.host(*serial) }))
    };
    objects.keys().filter_map(address).collect()
}

type Reports = BTreeMap<Serial, Result<MemberReport, EtcdError>>;

/// For how long a member is waited for of whose kubelet nothing is heard. Such a one may answer as quickly as
/// any other; mostly it has no power, and then a pass, which looks twice, must not take as long as a call
/// may: a dozen of them replace a member.
const CUT_OFF_PATIENCE: Duration = Duration::from_secs(1);

async fn ask_members(
    etcd: &dyn EtcdAdmin,
    addresses: &BTreeMap<Serial, MemberAddress>,
    pods: &BTreeMap<Serial, Pod>,
) -> Reports {
    let ask = |(serial, address): (&Serial, _)| {
        let (serial, is_cut_off) = (*serial, pods.get(serial).is_some_and(is_judged_from_afar));
        async move {
            if !is_cut_off {
                return (serial, etcd.status(address).await);
            }
            let asked = tokio::time::timeout(CUT_OFF_PATIENCE, etcd.status(address)).await;
            let silent = |_| {
                let detail = format!("no answer within {} s", CUT_OFF_PATIENCE.as_secs());
                Err(EtcdError::Silent { silence: Silence::Timeout, detail })
            };
            (serial, asked.unwrap_or_else(silent))
        }
    };
    join_all(addresses.iter().map(ask)).await.into_iter().collect()
}

/// The member list from the first voter that can confirm it with a quorum.
async fn membership(
    etcd: &dyn EtcdAdmin,
    addresses: &BTreeMap<Serial, MemberAddress>,
    members: &BTreeMap<Serial, Member>,
    reports: &Reports,
) -> Option<Membership> {
    let corrupt = reports.values().flatten().any(|report| report.corrupt);
    for (serial, report) in reports {
        let voter = report.as_ref().is_ok_and(|report| !report.is_learner);
        let serving = members.get(serial).is_some_and(Member::is_serving);
        let (true, true, Some(address)) = (voter, serving, addresses.get(serial)) else { continue };
        match etcd.member_list(address).await {
            Ok((cluster_id, entries)) => return Some(Membership { cluster_id, entries, corrupt }),
            Err(error) => tracing::debug!(member = %serial, %error, "no member list"),
        }
    }
    None
}

/// What all members of the pass are judged by.
struct Scene<'a> {
    validated: &'a Validated,
    cluster_id: Option<ClusterId>,
    latest_index: u64,
    now: Timestamp,
}

impl Scene<'_> {
    fn member(
        &self,
        object: &EtcdMember,
        claim: Option<&PersistentVolumeClaim>,
        pod: Option<&Pod>,
        report: Option<&Result<MemberReport, EtcdError>>,
        machines: &Machines,
    ) -> Member {
        let status = object.status.clone().unwrap_or_default();
        let id = status.member_id.as_deref().and_then(parse_id).map(MemberId);
        let created = object.metadata.creation_timestamp.as_ref().map(|time| time.0);
        // An operator that did not note the time yet counted from the object's.
        let listed_since = status.listed_since.as_ref().map(|time| time.0);
        let listed_since = listed_since.or(created.filter(|_| id.is_some()));
        let replaces = object.spec.join_reason == Some(JoinReason::Replacement);
        let reach = self.reach(id, pod, report);
        Member {
            serial: Serial(object.spec.serial),
            initial_state: object.spec.initial_state,
            replacement: created.filter(|_| replaces),
            id,
            listed_since,
            voted: status.role == Some(MemberRole::Voter),
            deletion_requested: object.metadata.deletion_timestamp.is_some(),
            join_refused: status.join_refused.is_some(),
            claim: claim_state(status.claim_uid.as_deref(), claim),
            pod: pod.map(|pod| pod_state(pod, machines)),
            loss: machines.loss(object, claim, pod, &reach, self),
            loss_due: machines.loss_due(pod, self),
            reach,
        }
    }

    fn reach(
        &self,
        id: Option<MemberId>,
        pod: Option<&Pod>,
        report: Option<&Result<MemberReport, EtcdError>>,
    ) -> Reach {
        let report = match report {
            None => return Reach::Silent(Silence::NoAddress),
            Some(Err(EtcdError::Silent { silence, .. })) => return Reach::Silent(*silence),
            Some(Err(EtcdError::Refused { .. })) => return Reach::Silent(Silence::Refused),
            Some(Ok(report)) => report,
        };
        let other_cluster = self.cluster_id.is_some_and(|latched| latched != report.cluster_id);
        if other_cluster || id.is_some_and(|latched| latched != report.member_id) {
            return Reach::Silent(Silence::IdentityMismatch);
        }
        if report.leader == MemberId(0) {
            return Reach::Silent(Silence::NoLeader);
        }
        Reach::Serving(Serving {
            since: pod.and_then(serving_since).unwrap_or(self.now),
            lag: self.latest_index.saturating_sub(report.applied_index),
            leader: report.leader == report.member_id,
            version: report.version.clone(),
        })
    }
}

fn claim_state(latched: Option<&str>, claim: Option<&PersistentVolumeClaim>) -> Claim {
    let uid = claim.and_then(ResourceExt::uid);
    match (latched, uid) {
        (None, None) => Claim::Unborn,
        (None, Some(uid)) => Claim::Unlatched { uid },
        (Some(latched), Some(uid)) if latched == uid => Claim::Bound,
        (Some(_), _) => Claim::Lost,
    }
}

// === Pods ===

fn pod_state(pod: &Pod, machines: &Machines) -> model::Pod {
    let annotation = |key: &str| pod.annotations().get(key).cloned().unwrap_or_default();
    model::Pod {
        uid: pod.uid().unwrap_or_default(),
        template: annotation(TEMPLATE_ANNOTATION),
        initial_cluster: annotation(INITIAL_CLUSTER_ANNOTATION),
        new_cluster: starts_cluster(pod),
        terminating: pod.metadata.deletion_timestamp.is_some(),
        down: down_cause(pod),
        kubelet: machines.kubelet(pod),
        serving: pod.labels().get(SERVING_LABEL).is_some_and(|value| value == "true"),
    }
}

fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a k8s_openapi::api::core::v1::PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == kind)
}

/// Since when the server has been up: its container's start, and its readiness after that.
fn serving_since(pod: &Pod) -> Option<Timestamp> {
    let ready = condition(pod, "Ready").filter(|ready| ready.status == "True");
    let ready = ready.and_then(|ready| ready.last_transition_time.as_ref()).map(|time| time.0);
    let containers = pod.status.as_ref()?.container_statuses.as_ref()?;
    let started = containers
        .iter()
        .filter_map(|container| container.state.as_ref()?.running.as_ref()?.started_at.as_ref())
        .map(|time| time.0)
        .max();
    ready.max(started)
}

/// What is wrong with the Pod, as the API server has it: the kubelet's last word, or the node
/// controller's that nothing is ready on a node that is silent.
fn down_cause(pod: &Pod) -> Option<Cause> {
    if condition(pod, "Ready").is_some_and(|ready| ready.status == "True") {
        return None;
    }
    let scheduled = condition(pod, "PodScheduled");
    if let Some(unscheduled) = scheduled.filter(|condition| condition.status == "False") {
        let message = unscheduled.message.clone().unwrap_or_default();
        return Some(Cause::Unschedulable(message));
    }
    let status = pod.status.as_ref()?;
    if let Some(said) = status.container_statuses.iter().flatten().find_map(data_gone) {
        return Some(Cause::DataGone(said));
    }
    let containers = status.init_container_statuses.iter().chain(&status.container_statuses);
    containers.flatten().find_map(container_cause).or(Some(Cause::NotReady))
}

/// What etcd and our server say when they find nothing under an identity that has run before. It is
/// looked for in the last end as well, so that it is known also while the server tries once more.
const ALREADY_BOOTSTRAPPED: &str = "has already been bootstrapped";

fn data_gone(container: &ContainerStatus) -> Option<String> {
    let ends = [container.state.as_ref(), container.last_state.as_ref()];
    let messages = ends.into_iter().flatten().filter_map(|state| {
        let terminated = state.terminated.as_ref()?;
        terminated.message.as_ref().filter(|_| terminated.exit_code != 0)
    });
    let mut lines = messages.flat_map(|message| message.lines());
    let said = lines.find(|line| line.contains(ALREADY_BOOTSTRAPPED))?;
    Some(format!("{}: {said}", container.name))
}

fn container_cause(container: &ContainerStatus) -> Option<Cause> {
    let ended = |state: &Option<ContainerState>| state.as_ref()?.terminated.clone();
    let crash = |terminated: k8s_openapi::api::core::v1::ContainerStateTerminated| {
        if terminated.reason.as_deref() == Some("OOMKilled") {
            return Cause::OutOfMemory;
        }
        let message = terminated.message.unwrap_or_default();
        Cause::Crash(format!("{} exited with {} {message}", container.name, terminated.exit_code))
    };
    let waiting = container.state.as_ref().and_then(|state| state.waiting.as_ref());
    match waiting.and_then(|waiting| waiting.reason.as_deref()) {
        Some(
            reason @ ("ErrImagePull" | "ImagePullBackOff" | "InvalidImageName"
            | "ErrImageNeverPull"),
        ) => {
            let image = container.image.clone();
            Some(Cause::Image(format!("{reason} {image}")))
        }
        Some(
            reason @ ("CreateContainerConfigError" | "CreateContainerError" | "RunContainerError"),
        ) => {
            let message = waiting.and_then(|waiting| waiting.message.clone()).unwrap_or_default();
            Some(Cause::Config(format!("{reason} {message}")))
        }
        Some("CrashLoopBackOff") => Some(
            ended(&container.last_state)
                .map_or_else(|| Cause::Crash(container.name.clone()), crash),
        ),
        _ => ended(&container.state).filter(|terminated| terminated.exit_code != 0).map(crash),
    }
}

// === Nodes and volumes ===

/// Nodes and volumes, read only when some member does not answer or is not ready.
struct Machines {
    /// Absent when nobody needed them or the operator may not see them.
    nodes: Option<Vec<Node>>,
    volumes: Vec<PersistentVolume>,
}

async fn machines(
    kubernetes: &Kubernetes,
    pods: &BTreeMap<Serial, Pod>,
    claims: &BTreeMap<String, PersistentVolumeClaim>,
    reports: &Reports,
    objects: &BTreeMap<Serial, EtcdMember>,
) -> Result<Machines, KubernetesError> {
    let all_answer = objects.keys().all(|serial| reports.get(serial).is_some_and(Result::is_ok));
    let all_ready = pods.values().all(|pod| down_cause(pod).is_none());
    if all_answer && all_ready || claims.is_empty() {
        return Ok(Machines { nodes: None, volumes: Vec::new() });
    }
    let nodes = kubernetes.list_of_cluster::<Node>().await?;
    let unplaced =
        pods.values().any(|pod| pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_none()));
    let volumes = match (&nodes, unplaced) {
        (Some(_), true) => {
            kubernetes.list_of_cluster::<PersistentVolume>().await?.unwrap_or_default()
        }
        _ => Vec::new(),
    };
    Ok(Machines { nodes, volumes })
}

impl Machines {
    fn kubelet(&self, pod: &Pod) -> Kubelet {
        let name = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        match (name, &self.nodes) {
            (None, _) => Kubelet::Heard,
            (Some(_), None) => Kubelet::Unseen,
            (Some(name), Some(nodes)) => {
                kubelet(pod, nodes.iter().find(|node| node.name_any() == name))
            }
        }
    }

    /// The Pod's node, as far as it is known.
    fn node_of(&self, pod: Option<&Pod>) -> Option<&Node> {
        let name = pod?.spec.as_ref()?.node_name.as_deref()?;
        self.nodes.as_ref()?.iter().find(|node| node.name_any() == name)
    }

    fn loss_due(&self, pod: Option<&Pod>, scene: &Scene<'_>) -> Option<Timestamp> {
        silent_until(self.node_of(pod)?, scene).filter(|until| scene.now < *until)
    }

    fn loss(
        &self,
        object: &EtcdMember,
        claim: Option<&PersistentVolumeClaim>,
        pod: Option<&Pod>,
        reach: &Reach,
        scene: &Scene<'_>,
    ) -> Option<Loss> {
        let status = object.status.as_ref();
        let latched = status.and_then(|status| status.claim_uid.as_deref());
        let phase = claim.and_then(|claim| claim.status.as_ref()?.phase.as_deref());
        let going = claim.is_some_and(|claim| claim.metadata.deletion_timestamp.is_some());
        if latched.is_some()
            && (claim_state(latched, claim) == Claim::Lost || going || phase == Some("Lost"))
        {
            return Some(Loss::Claim);
        }
        let id = status.and_then(|status| parse_id(status.member_id.as_deref()?)).map(MemberId);
        let said_before = status.is_some_and(|status| status.data_gone.is_some());
        let cause = pod.and_then(down_cause);
        if let Some(loss) = model::data_loss(id, cause.as_ref(), said_before, reach) {
            return Some(loss);
        }
        let nodes = self.nodes.as_ref()?;
        match pod.and_then(|pod| pod.spec.as_ref()?.node_name.as_deref()) {
            Some(_) => node_loss(self.node_of(pod), scene),
            None => {
                let volume = claim.and_then(|claim| claim.spec.as_ref()?.volume_name.clone())?;
                let volume = self.volumes.iter().find(|known| known.name_any() == volume)?;
                (!nodes.iter().any(|node| may_mount(volume, node))).then_some(Loss::NodeGone)
            }
        }
    }
}

/// Whether the kubelet is heard of, and what the API server has of the Pod is its word.
fn kubelet(pod: &Pod, node: Option<&Node>) -> Kubelet {
    let ready = node.and_then(node_ready).is_some_and(|ready| ready.status == "True");
    if ready && !is_judged_from_afar(pod) { Kubelet::Heard } else { Kubelet::Silent }
}

/// The last word on the Pod is the node controller's, who hears nothing of the kubelet: that would say one
/// only with the other.
fn is_judged_from_afar(pod: &Pod) -> bool {
    let says = |kind| condition(pod, kind).map(|condition| condition.status.as_str());
    says("Ready") == Some("False") && says("ContainersReady") == Some("True")
}

fn node_ready(node: &Node) -> Option<&NodeCondition> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == "Ready")
}

/// When the node has been silent for long enough, if it is.
fn silent_until(node: &Node, scene: &Scene<'_>) -> Option<Timestamp> {
    let ready = node_ready(node).filter(|ready| ready.status != "True")?;
    let since = ready.last_transition_time.as_ref()?.0;
    Some(since + SignedDuration::from_secs(scene.validated.spec.recovery.node_loss_for_seconds))
}

fn node_loss(node: Option<&Node>, scene: &Scene<'_>) -> Option<Loss> {
    let Some(node) = node else { return Some(Loss::NodeGone) };
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    let tainted =
        |key: &str| taints.is_some_and(|taints| taints.iter().any(|taint| taint.key == key));
    if tainted("node.kubernetes.io/out-of-service") {
        return Some(Loss::NodeGone);
    }
    silent_until(node, scene).filter(|until| scene.now >= *until).map(|_| Loss::NodeSilent)
}

/// Whether the volume's node affinity admits the node. Expressions that are not understood count
/// as admitting: a member is not declared lost on a guess.
fn may_mount(volume: &PersistentVolume, node: &Node) -> bool {
    let required =
        volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref()?.required.as_ref());
    let Some(required) = required else { return true };
    required.node_selector_terms.iter().any(|term| {
        let expressions = term.match_expressions.iter().flatten();
        let mut expressions = expressions.filter(|expression| expression.operator == "In");
        expressions.all(|expression| {
            let value = node.labels().get(&expression.key);
            value
                .is_some_and(|value| expression.values.iter().flatten().any(|known| known == value))
        })
    })
}

#[cfg(test)]
pub(super) mod tests;
