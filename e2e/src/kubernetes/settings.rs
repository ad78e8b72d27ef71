//! The configuration files of containerd, CNI, kubelet, kube-proxy and the DNS server. Each setting
//! that is not obvious says what goes wrong without it.

use super::layout::{HOST_ADDRESS, Layout, NodeNumber, POD_NETWORK};

pub(super) const PAUSE_IMAGE: &str = "docker.io/keelson/pause:1";

pub(super) fn containerd(layout: &Layout, node: NodeNumber, cni_programs: &str) -> String {
    // restrict_oom_score_adj: without CAP_SYS_RESOURCE every sandbox would fail.
    // sandbox_image: there is no registry to pull the default from.
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
oom_score = 0
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{cni_programs}"
    conf_dir = "{}"
"#,
        layout.node(node, "cni").display()
    )
}

pub(super) fn cni(node: NodeNumber) -> String {
    format!(
        r#"{{"cniVersion": "0.4.0", "name": "keelson", "plugins": [
  {{"type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "isGateway": true,
   "hairpinMode": true, "ipMasq": false,
   "ipam": {{"type": "host-local", "ranges": [[{{"subnet": "{}"}}]]}}}},
  {{"type": "portmap", "capabilities": {{"portMappings": true}}}}]}}
"#,
        node.pod_subnet()
    )
}

pub(super) fn kubelet(layout: &Layout, node: NodeNumber) -> String {
    // syncFrequency: an online volume expansion waits for the next sync, a minute by default.
    // nodeStatusUpdateFrequency, nodeLeaseDurationSeconds: a dead node is noticed in seconds.
    // oomScoreAdj, maxOpenFiles: the defaults need CAP_SYS_RESOURCE.
    // evictionHard, image garbage: a test machine's disk may be nearly full.
    format!(
        r#"apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {{anonymous: {{enabled: false}}, webhook: {{enabled: true}}, x509: {{clientCAFile: {authority}}}}}
authorization: {{mode: Webhook}}
clusterDomain: cluster.local
clusterDNS: ["{HOST_ADDRESS}"]
resolvConf: ""
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
cgroupRoot: /
cgroupsPerQOS: true
enforceNodeAllocatable: []
failCgroupV1: false
failSwapOn: false
volumePluginDir: /var/lib/kubelet/volumeplugins
maxOpenFiles: 20000
oomScoreAdj: 0
address: {address}
healthzPort: 10248
syncFrequency: 2s
maxPods: 110
nodeStatusUpdateFrequency: 1s
nodeLeaseDurationSeconds: 4
evictionHard: {{memory.available: "100Mi", nodefs.available: "100Mi", imagefs.available: "100Mi", nodefs.inodesFree: "1%"}}
imageGCHighThresholdPercent: 100
"#,
        authority = layout.pki("ca.crt").display(),
        address = node.address(),
    )
}

pub(super) fn kube_proxy(layout: &Layout, node: NodeNumber) -> String {
    // conntrack: the defaults write sysctls that a namespace may not write.
    format!(
        r#"apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
bindAddress: {address}
clientConnection: {{kubeconfig: {kubeconfig}}}
clusterCIDR: {POD_NETWORK}
conntrack: {{maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}}
healthzBindAddress: 127.0.0.1:10256
metricsBindAddress: 127.0.0.1:10249
"#,
        address = node.address(),
        kubeconfig = layout.pki("proxy.kubeconfig").display(),
    )
}

pub(super) fn corefile(layout: &Layout) -> String {
    format!(
        ".:53 {{
    bind {HOST_ADDRESS}
    errors
    health {HOST_ADDRESS}:8080
    ready {HOST_ADDRESS}:8181
    kubernetes cluster.local in-addr.arpa {{
        kubeconfig {}
        pods insecure
        ttl 5
    }}
    cache 5
}}
",
        layout.pki("dns.kubeconfig").display()
    )
}
