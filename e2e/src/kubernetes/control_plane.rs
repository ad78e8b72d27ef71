//! The control plane: the store, apiserver, controller manager, scheduler, DNS, the CSI
//! controller with its sidecars, and an object store. They are plain processes of the host, on the loopback and the
//! bridge address; what they would be as static pods is of no interest to what is tested.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::cgroup::CONTROL_PLANE;
use super::launch::{self, Lifetime, Started};
use super::layout::{
    HOST_ADDRESS, Layout, POD_NETWORK, SERVICE_NETWORK, STORE_CLIENT_URL, STORE_PEER_URL,
};
use super::object_store;

/// A process of the control plane: its name, its program and the arguments.
struct Part {
    name: &'static str,
    arguments: Vec<String>,
}

/// Starts parts of the control plane.
pub(super) struct Starter<'a> {
    pub(super) layout: &'a Layout,
    pub(super) programs: &'a Path,
    /// The `etcd` that Kubernetes keeps its objects in.
    pub(super) store: &'a Path,
    pub(super) lifetime: Lifetime,
}

impl Starter<'_> {
    /// What the apiserver needs, and itself.
    pub(super) fn store_and_api_server(&self) -> Result<Vec<Started>> {
        let store = match self.lifetime {
            Lifetime::Detached => self.start_program(self.store, store(self.layout))?,
            Lifetime::Caller => self.start_store_in_memory()?,
        };
        Ok(vec![store, self.start(api_server(self.layout))?])
    }

    /// Kubelets ask for their leases with a second of patience. Tests write so much that a flush may take
    /// longer on the disk of a small machine, and so may a page of the program that the system has let go
    /// of; both say nothing about the store. So theirs is in a memory that only it sees, and goes with it:
    /// the data, and the program.
    fn start_store_in_memory(&self) -> Result<Started> {
        let directories = ["store", "store-program"].map(|name| self.layout.join(name));
        for directory in &directories {
            fs::create_dir_all(directory)
                .with_context(|| format!("make {}", directory.display()))?;
        }
        let script = "mount -t tmpfs tmpfs \"$0\" && mount -t tmpfs tmpfs \"$1\" && \
                      program=$1/etcd && cp \"$2\" \"$program\" && shift 2 && exec \"$program\" \"$@\"";
        let mut line: Vec<OsString> =
            ["unshare", "--mount", "sh", "-c", script].map(OsString::from).into();
        line.extend(directories.map(OsString::from));
        line.push(self.store.into());
        let store = store(self.layout);
        line.extend(store.arguments.into_iter().map(OsString::from));
        line.push("--memory-mlock".into());
        launch::start(self.layout, CONTROL_PLANE, self.lifetime, store.name, &line)
    }

    /// What only works once the apiserver does. (Started before, the controller manager would sit
    /// in a back-off of several seconds.)
    pub(super) fn controllers(&self) -> Result<Vec<Started>> {
        let mut parts = vec![controller_manager(self.layout), scheduler(self.layout)];
        parts.push(dns(self.layout));
        parts.push(csi_controller(self.layout));
        parts.push(Part { name: "versitygw", arguments: object_store::arguments(self.layout) });
        for (name, port, more) in [
            (
                "csi-provisioner",
                18081,
                &[
                    "--feature-gates=Topology=false",
                    "--extra-create-metadata",
                    "--volume-name-uuid-length=16",
                ][..],
            ),
            ("csi-attacher", 18082, &[]),
            ("csi-resizer", 18083, &[]),
        ] {
            parts.push(sidecar(self.layout, name, port, more));
        }
        parts.into_iter().map(|part| self.start(part)).collect()
    }

    fn start(&self, part: Part) -> Result<Started> {
        let program = match part.name {
            "csi-controller" => self.programs.join("keelson-csi"),
            name => self.programs.join(name),
        };
        self.start_program(&program, part)
    }

    fn start_program(&self, program: &Path, part: Part) -> Result<Started> {
        let mut line: Vec<OsString> = vec![program.into()];
        line.extend(part.arguments.into_iter().map(OsString::from));
        launch::start(self.layout, CONTROL_PLANE, self.lifetime, part.name, &line)
    }
}

fn store(layout: &Layout) -> Part {
    let data = layout.join("store");
    let arguments = vec![
        format!("--data-dir={}", data.display()),
        format!("--listen-client-urls={STORE_CLIENT_URL}"),
        format!("--advertise-client-urls={STORE_CLIENT_URL}"),
        format!("--listen-peer-urls={STORE_PEER_URL}"),
        format!("--initial-advertise-peer-urls={STORE_PEER_URL}"),
        format!("--initial-cluster=default={STORE_PEER_URL}"),
        "--log-level=warn".to_owned(),
    ];
    Part { name: "store", arguments }
}

fn api_server(layout: &Layout) -> Part {
    let pki = |file: &str| layout.pki(file).display().to_string();
    let arguments = vec![
        format!("--etcd-servers={STORE_CLIENT_URL}"),
        format!("--bind-address={HOST_ADDRESS}"),
        format!("--advertise-address={HOST_ADDRESS}"),
        "--secure-port=6443".to_owned(),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        format!("--client-ca-file={}", pki("ca.crt")),
        format!("--tls-cert-file={}", pki("apiserver.crt")),
        format!("--tls-private-key-file={}", pki("apiserver.key")),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
        format!("--service-account-key-file={}", pki("sa.pub")),
        format!("--service-account-signing-key-file={}", pki("sa.key")),
        format!("--service-cluster-ip-range={SERVICE_NETWORK}"),
        format!("--kubelet-client-certificate={}", pki("kubelet-client.crt")),
        format!("--kubelet-client-key={}", pki("kubelet-client.key")),
        "--allow-privileged=true".to_owned(),
        // Node names are in no DNS, so logs, exec and port-forward go by address.
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        // Pods leave a dead node within seconds, not minutes.
        "--default-not-ready-toleration-seconds=5".to_owned(),
        "--default-unreachable-toleration-seconds=5".to_owned(),
        format!("--requestheader-client-ca-file={}", pki("front.crt")),
        "--requestheader-allowed-names=front-proxy-client".to_owned(),
        "--requestheader-username-headers=X-Remote-User".to_owned(),
        "--requestheader-group-headers=X-Remote-Group".to_owned(),
        "--requestheader-extra-headers-prefix=X-Remote-Extra-".to_owned(),
        format!("--proxy-client-cert-file={}", pki("front-client.crt")),
        format!("--proxy-client-key-file={}", pki("front-client.key")),
        format!("--cert-dir={}", layout.join("apiserver").display()),
    ];
    Part { name: "kube-apiserver", arguments }
}

/// The three flags by which a component finds and trusts the apiserver.
fn api_access(kubeconfig: &Path) -> Vec<String> {
    ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"]
        .map(|flag| format!("--{flag}={}", kubeconfig.display()))
        .to_vec()
}

fn controller_manager(layout: &Layout) -> Part {
    let pki = |file: &str| layout.pki(file).display().to_string();
    let mut arguments = api_access(&layout.pki("controller-manager.kubeconfig"));
    arguments.extend([
        "--bind-address=127.0.0.1".to_owned(),
        "--use-service-account-credentials=true".to_owned(),
        format!("--service-account-private-key-file={}", pki("sa.key")),
        format!("--root-ca-file={}", pki("ca.crt")),
        format!("--cluster-signing-cert-file={}", pki("ca.crt")),
        format!("--cluster-signing-key-file={}", pki("ca.key")),
        "--leader-elect=false".to_owned(),
        // Else a directory outside of ours is made.
        format!("--flex-volume-plugin-dir={}", layout.join("flex").display()),
        // It makes one token per controller at start, one by one: 4 s with the default rates.
        "--kube-api-qps=300".to_owned(),
        "--kube-api-burst=600".to_owned(),
        format!("--cluster-cidr={POD_NETWORK}"),
        // The CNI configuration names each node's subnet; numbers given out here would differ.
        "--allocate-node-cidrs=false".to_owned(),
        format!("--service-cluster-ip-range={SERVICE_NETWORK}"),
        "--node-monitor-grace-period=6s".to_owned(),
        "--node-monitor-period=1s".to_owned(),
        format!("--requestheader-client-ca-file={}", pki("front.crt")),
    ]);
    Part { name: "kube-controller-manager", arguments }
}

fn scheduler(layout: &Layout) -> Part {
    let mut arguments = api_access(&layout.pki("scheduler.kubeconfig"));
    arguments.extend(["--bind-address=127.0.0.1".to_owned(), "--leader-elect=false".to_owned()]);
    Part { name: "kube-scheduler", arguments }
}

fn dns(layout: &Layout) -> Part {
    let corefile = layout.join("Corefile").display().to_string();
    Part { name: "coredns", arguments: vec!["-conf".to_owned(), corefile] }
}

fn csi_controller(layout: &Layout) -> Part {
    let arguments = vec![
        "-role=controller".to_owned(),
        format!("-endpoint={}", layout.csi_socket().display()),
        format!("-volumes={}", layout.volumes().display()),
    ];
    Part { name: "csi-controller", arguments }
}

fn sidecar(layout: &Layout, name: &'static str, port: u16, more: &[&str]) -> Part {
    let mut arguments = vec![
        format!("--kubeconfig={}", layout.kubeconfig().display()),
        format!("--csi-address={}", layout.csi_socket().display()),
        format!("--http-endpoint=127.0.0.1:{port}"),
        "--retry-interval-start=200ms".to_owned(),
    ];
    arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
    Part { name, arguments }
}
