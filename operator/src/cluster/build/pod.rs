//! The Pod of a member: etcd's ordinary flags, its volume, its certificates, and nothing that the
//! restricted Pod security standard forbids.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{
        Affinity, Capabilities, Container, ContainerPort, EnvVar, HTTPGetAction, KeyToPath,
        LocalObjectReference, PersistentVolumeClaimVolumeSource, Pod, PodAffinityTerm,
        PodAntiAffinity, PodSecurityContext, PodSpec, Probe, SeccompProfile, SecretVolumeSource,
        SecurityContext, Volume, VolumeMount, WeightedPodAffinityTerm,
    },
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};
use types::{ClusterId, MemberId};

use super::{
    CLIENT_PORT, INITIAL_CLUSTER_ANNOTATION, METRICS_PORT, PEER_PORT, SERVING_LABEL,
    TEMPLATE_ANNOTATION, member_labels, member_selector, owned_by_member,
};
use crate::{
    cluster::{model::Serial, validate::Validated},
    crd::{self, AutoCompactionMode, Distribution, LogLevel, PullPolicy},
};

/// Name of the volume that holds the data.
pub const DATA_VOLUME: &str = "data";
const DATA_MOUNT: &str = "/var/lib/etcd";
/// Below the mount, so that `lost+found` and a restore in progress are not in the data directory.
const DATA_DIRECTORY: &str = "/var/lib/etcd/data";
const TLS_MOUNT: &str = "/etc/etcd/tls";
const INITIAL_STATE: &str = "initial-cluster-state";
const NEW_CLUSTER: &str = "new";
/// The user of the image; also owns the volume.
const USER: i64 = 65532;

/// What distinguishes one member's Pod from another's.
#[derive(Clone, Debug)]
pub struct MemberPod {
    pub serial: Serial,
    /// Uid of the `EtcdMember`, which owns the Pod.
    pub owner_uid: String,
    pub new_cluster: bool,
    pub initial_cluster: String,
    pub token: String,
    /// Present once latched; then the server refuses any other data.
    pub expected: Option<(ClusterId, MemberId)>,
    /// Present while the first member of a recovered cluster has to be seeded.
    pub restore: Option<RestoreStep>,
}

/// The init container that seeds the data directory, with the volumes it needs.
#[derive(Clone, Debug)]
pub struct RestoreStep {
    pub container: Container,
    pub volumes: Vec<Volume>,
}

/// The Pod of one member.
pub fn pod(validated: &Validated, member: &MemberPod) -> Pod {
    let (names, template) = (&validated.desired.names, &validated.spec.pod_template);
    let name = names.member(member.serial);
    let mut labels = template.labels.clone();
    labels.extend(member_labels(validated, member.serial));
    labels.insert(SERVING_LABEL.to_owned(), "false".to_owned());
    let mut annotations = template.annotations.clone();
    annotations.insert(TEMPLATE_ANNOTATION.to_owned(), validated.desired.template.clone());
    annotations.insert(INITIAL_CLUSTER_ANNOTATION.to_owned(), member.initial_cluster.clone());
    let mut spec = restricted_pod();
    spec.hostname = Some(name.clone());
    spec.subdomain = Some(format!("{}-peers", names.cluster));
    spec.init_containers = member.restore.as_ref().map(|restore| vec![restore.container.clone()]);
    spec.containers = vec![server(validated, member)];
    spec.volumes = Some(volumes(validated, member));
    spec.image_pull_secrets = pull_secrets(&validated.spec.image.pull_secrets);
    spec.restart_policy = Some("Always".to_owned());
    spec.termination_grace_period_seconds = template.termination_grace_period_seconds;
    spec.node_selector = Some(template.node_selector.clone()).filter(|labels| !labels.is_empty());
    spec.affinity = affinity(validated);
    spec.tolerations = Some(template.tolerations.clone()).filter(|list| !list.is_empty());
    spec.topology_spread_constraints = template.topology_spread_constraints.clone();
    spec.priority_class_name = template.priority_class_name.clone();
    spec.runtime_class_name = template.runtime_class_name.clone();
    Pod {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: Some(names.namespace.clone()),
            labels: Some(labels),
            annotations: Some(annotations),
            owner_references: Some(vec![owned_by_member(
                validated,
                member.serial,
                &member.owner_uid,
            )]),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    }
}

/// A Pod as the restricted security standard wants it, without access to the API server.
pub fn restricted_pod() -> PodSpec {
    PodSpec {
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            fs_group: Some(USER),
            fs_group_change_policy: Some("OnRootMismatch".to_owned()),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                ..SeccompProfile::default()
            }),
            ..PodSecurityContext::default()
        }),
        ..PodSpec::default()
    }
}

/// The same for a container.
pub fn restricted_container() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        read_only_root_filesystem: Some(true),
        run_as_non_root: Some(true),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
        ..SecurityContext::default()
    }
}

/// Whether a member's Pod was made to start the cluster, and not to join it.
pub fn starts_cluster(pod: &Pod) -> bool {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let mut arguments = containers.flat_map(|container| container.args.iter().flatten());
    arguments.any(|argument| argument == &format!("--{INITIAL_STATE}={NEW_CLUSTER}"))
}

fn server(validated: &Validated, member: &MemberPod) -> Container {
    let mut mounts = vec![mount(DATA_VOLUME, DATA_MOUNT, false)];
    if validated.desired.names.tls {
        mounts.push(mount("tls", TLS_MOUNT, true));
    }
    let port = |name: &str, port| ContainerPort {
        name: Some(name.to_owned()),
        container_port: port,
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    };
    Container {
        name: "etcd".to_owned(),
        image: Some(validated.target.image.clone()),
        image_pull_policy: validated.spec.image.pull_policy.map(pull_policy),
        command: Some(vec!["/usr/local/bin/etcd".to_owned()]),
        args: Some(arguments(validated, member)),
        env: Some(client_environment(validated)),
        ports: Some(vec![
            port("client", CLIENT_PORT),
            port("peer", PEER_PORT),
            port("metrics", METRICS_PORT),
        ]),
        resources: Some(validated.spec.resources.clone()),
        security_context: Some(restricted_container()),
        // A member that replays a long log or receives a snapshot is slow, not dead.
        startup_probe: Some(probe("/livez", 5, 360)),
        liveness_probe: Some(probe("/livez", 10, 6)),
        readiness_probe: Some(probe("/readyz", 3, 3)),
        volume_mounts: Some(mounts),
        // The last words of a server that does not start: some of them are evidence.
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        ..Container::default()
    }
}

/// Lets `kubectl exec POD -- etcdctl ...` reach the member without flags. The member's own server
/// certificate is one that clients may show, too.
fn client_environment(validated: &Validated) -> Vec<EnvVar> {
    let scheme = validated.desired.names.scheme();
    let mut variables = vec![("ETCDCTL_ENDPOINTS", format!("{scheme}://127.0.0.1:{CLIENT_PORT}"))];
    if validated.desired.names.tls {
        variables.extend([
            ("ETCDCTL_CACERT", format!("{TLS_MOUNT}/client-ca.crt")),
            ("ETCDCTL_CERT", format!("{TLS_MOUNT}/server.crt")),
            ("ETCDCTL_KEY", format!("{TLS_MOUNT}/server.key")),
        ]);
    }
    let variable = |(name, value): (&str, String)| EnvVar {
        name: name.to_owned(),
        value: Some(value),
        value_from: None,
    };
    variables.into_iter().map(variable).collect()
}

fn arguments(validated: &Validated, member: &MemberPod) -> Vec<String> {
    let (names, spec) = (&validated.desired.names, &validated.spec);
    let (scheme, host) = (names.scheme(), names.host(member.serial));
    let mut flags: Vec<(&str, String)> = vec![
        ("name", names.member(member.serial)),
        ("data-dir", DATA_DIRECTORY.to_owned()),
        ("listen-client-urls", format!("{scheme}://0.0.0.0:{CLIENT_PORT}")),
        ("advertise-client-urls", format!("{scheme}://{host}:{CLIENT_PORT}")),
        ("listen-peer-urls", format!("{scheme}://0.0.0.0:{PEER_PORT}")),
        ("initial-advertise-peer-urls", names.peer_url(member.serial)),
        ("listen-metrics-urls", format!("http://0.0.0.0:{METRICS_PORT}")),
        ("initial-cluster", member.initial_cluster.clone()),
        ("initial-cluster-token", member.token.clone()),
        (INITIAL_STATE, if member.new_cluster { NEW_CLUSTER } else { "existing" }.to_owned()),
        ("quota-backend-bytes", validated.quota_bytes.to_string()),
    ];
    if names.tls {
        let file = |name: &str| format!("{TLS_MOUNT}/{name}");
        flags.extend([
            ("cert-file", file("server.crt")),
            ("key-file", file("server.key")),
            ("trusted-ca-file", file("client-ca.crt")),
            ("client-cert-auth", "true".to_owned()),
            ("peer-cert-file", file("peer.crt")),
            ("peer-key-file", file("peer.key")),
            ("peer-trusted-ca-file", file("peer-ca.crt")),
            ("peer-client-cert-auth", "true".to_owned()),
        ]);
    }
    if let (Distribution::Keelson, Some((cluster_id, member_id))) =
        (spec.image.distribution, member.expected)
    {
        flags.push(("expect-cluster-id", cluster_id.to_string()));
        flags.push(("expect-member-id", member_id.to_string()));
    }
    flags.extend(settings(validated));
    let extra = spec.extra_args.iter().map(|(name, value)| (name.as_str(), value.clone()));
    flags.into_iter().chain(extra).map(|(name, value)| format!("--{name}={value}")).collect()
}

fn settings(validated: &Validated) -> Vec<(&'static str, String)> {
    let config = &validated.spec.config;
    let number = |name, value: Option<i64>| value.map(|value| (name, value.to_string()));
    let level = |level| match level {
        LogLevel::Debug => "debug",
        LogLevel::Info => "info",
        LogLevel::Warn => "warn",
        LogLevel::Error => "error",
    };
    let mode = |mode| match mode {
        AutoCompactionMode::Periodic => "periodic",
        AutoCompactionMode::Revision => "revision",
    };
    let compaction = config.auto_compaction.as_ref();
    [
        number("heartbeat-interval", config.heartbeat_interval_milliseconds),
        number("election-timeout", config.election_timeout_milliseconds),
        number("snapshot-count", config.snapshot_count),
        number("max-request-bytes", config.max_request_bytes),
        number("max-txn-ops", config.max_txn_ops),
        compaction.map(|compaction| ("auto-compaction-mode", mode(compaction.mode).to_owned())),
        compaction.map(|compaction| ("auto-compaction-retention", compaction.retention.clone())),
        config.log_level.map(|wanted| ("log-level", level(wanted).to_owned())),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn volumes(validated: &Validated, member: &MemberPod) -> Vec<Volume> {
    let name = validated.desired.names.member(member.serial);
    let mut volumes = vec![Volume {
        name: DATA_VOLUME.to_owned(),
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name: validated.desired.names.claim(member.serial),
            read_only: None,
        }),
        ..Volume::default()
    }];
    if validated.desired.names.tls {
        volumes.push(Volume {
            name: "tls".to_owned(),
            secret: Some(SecretVolumeSource {
                secret_name: Some(format!("{name}-tls")),
                default_mode: Some(0o440),
                items: None::<Vec<KeyToPath>>,
                optional: None,
            }),
            ..Volume::default()
        });
    }
    volumes.extend(member.restore.iter().flat_map(|restore| restore.volumes.clone()));
    volumes
}

/// Without the user's own wish: over hosts and zones, but never at the price of not starting.
///
/// Not by spread constraints: of several soft ones the scheduler heeds none on a node that lacks
/// the label of any of them, and nodes without zones are common.
fn affinity(validated: &Validated) -> Option<Affinity> {
    let template = &validated.spec.pod_template;
    let wished = template.affinity.as_ref().is_some_and(|own| own.pod_anti_affinity.is_some());
    if wished || template.topology_spread_constraints.is_some() {
        return template.affinity.clone();
    }
    let selector: BTreeMap<String, String> = member_selector(&validated.desired.names.cluster);
    let apart = |key: &str| WeightedPodAffinityTerm {
        weight: 100,
        pod_affinity_term: PodAffinityTerm {
            topology_key: key.to_owned(),
            label_selector: Some(LabelSelector {
                match_labels: Some(selector.clone()),
                ..LabelSelector::default()
            }),
            ..PodAffinityTerm::default()
        },
    };
    let terms = vec![apart("kubernetes.io/hostname"), apart("topology.kubernetes.io/zone")];
    Some(Affinity {
        pod_anti_affinity: Some(PodAntiAffinity {
            preferred_during_scheduling_ignored_during_execution: Some(terms),
            ..PodAntiAffinity::default()
        }),
        ..template.affinity.clone().unwrap_or_default()
    })
}

pub(crate) fn pull_secrets(
    secrets: &[crd::LocalObjectReference],
) -> Option<Vec<LocalObjectReference>> {
    let secrets = secrets.iter();
    let secrets = secrets.map(|secret| LocalObjectReference { name: secret.name.clone() });
    Some(secrets.collect::<Vec<_>>()).filter(|secrets| !secrets.is_empty())
}

fn pull_policy(policy: PullPolicy) -> String {
    match policy {
        PullPolicy::Always => "Always",
        PullPolicy::IfNotPresent => "IfNotPresent",
        PullPolicy::Never => "Never",
    }
    .to_owned()
}

fn probe(path: &str, period_seconds: i32, failure_threshold: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::Int(METRICS_PORT),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period_seconds),
        failure_threshold: Some(failure_threshold),
        timeout_seconds: Some(5),
        ..Probe::default()
    }
}

fn mount(name: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    }
}
