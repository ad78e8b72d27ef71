//! PID 1 of a node. It sees its own network, mounts, processes and control groups, makes the rest of
//! the node in there, starts containerd, kubelet, kube-proxy and the CSI node service at their
//! default paths, and restarts whichever ends, as an init system would.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use rustix::process::{WaitOptions, wait};

use super::cgroup::Cgroups;
use super::layout::{Layout, NodeNumber};
use super::program::Program;
use super::wait::until;

const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";
const CSI_SOCKET: &str = "/var/lib/kubelet/plugins/csi.keelson.dev/csi.sock";
const CSI_REGISTRATION: &str = "/var/lib/kubelet/plugins_registry/csi.keelson.dev-reg.sock";
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// Runs the node for as long as it lives.
pub fn run(layout: &Layout, node: NodeNumber, programs: &Path) -> Result<()> {
    rustix::system::sethostname(node.to_string().as_bytes()).context("set the host name")?;
    prepare_mounts(layout, node)?;
    until("the host connects the network", Duration::from_secs(30), has_default_route)?;
    let started = Instant::now();
    let mut services = Services { layout, node, running: BTreeMap::new() };
    services.start(Service::new(
        "containerd",
        "containerd",
        &["--config", &layout.node(node, "containerd.toml").display().to_string()],
    ))?;
    until("containerd answers", Duration::from_secs(60), || {
        Program::new("ctr").words("version").limit(Duration::from_secs(5)).run()
    })?;
    import_images(layout)?;
    println!("containerd is up with its images after {} ms", started.elapsed().as_millis());
    for service in node_services(layout, node, programs) {
        services.start(service)?;
    }
    services.supervise()
}

fn prepare_mounts(layout: &Layout, node: NodeNumber) -> Result<()> {
    // Pods may ask for mounts that travel in both directions.
    mount_change("/", MountPropagationFlags::SHARED | MountPropagationFlags::REC)
        .context("make the mounts shared")?;
    Cgroups::detect()?.remount_inside()?;
    for (directory, point) in [("varlib", "/var/lib"), ("varlog", "/var/log")] {
        let directory = layout.node(node, directory);
        mount_bind(&directory, point)
            .with_context(|| format!("mount {} on {point}", directory.display()))?;
    }
    mount("run", "/run", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, c"mode=755")
        .context("mount a new /run")?;
    for directory in ["/run/lock", "/var/lib/kubelet"] {
        fs::create_dir_all(directory).with_context(|| format!("make {directory}"))?;
    }
    Ok(())
}

/// The host sets the default route last, when the node's network is complete.
fn has_default_route() -> Result<()> {
    let routes = fs::read_to_string("/proc/net/route")?;
    if routes.lines().any(|line| line.split_whitespace().nth(1) == Some("00000000")) {
        return Ok(());
    }
    bail!("no default route yet");
}

/// Makes known the images that lie in the cluster's directory; pods never pull.
fn import_images(layout: &Layout) -> Result<()> {
    let mut images: Vec<PathBuf> = fs::read_dir(layout.join("images"))
        .context("list the images")?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "tar"))
        .collect();
    images.sort();
    for image in images {
        Program::new("ctr").words("-n k8s.io images import").args([&image]).run()?;
    }
    Ok(())
}

fn node_services(layout: &Layout, node: NodeNumber, programs: &Path) -> Vec<Service> {
    let file = |name: &str| layout.node(node, name).display().to_string();
    let program = |name: &str| programs.join(name).display().to_string();
    let kubeconfig = layout.pki(&format!("{node}.kubeconfig"));
    vec![
        Service::new(
            "kubelet",
            &program("kubelet"),
            &[
                &format!("--config={}", file("kubelet.yaml")),
                &format!("--kubeconfig={}", kubeconfig.display()),
                &format!("--hostname-override={node}"),
                &format!("--node-ip={}", node.address()),
            ],
        ),
        Service::new(
            "csi",
            &program("keelson-csi"),
            &[
                "-role=node",
                &format!("-node={node}"),
                &format!("-endpoint={CSI_SOCKET}"),
                &format!("-registrar={CSI_REGISTRATION}"),
                &format!("-volumes={}", layout.volumes().display()),
            ],
        ),
        Service::new(
            "kube-proxy",
            &program("kube-proxy"),
            &[&format!("--config={}", file("proxy.yaml")), &format!("--hostname-override={node}")],
        ),
    ]
}

struct Service {
    name: &'static str,
    program: String,
    arguments: Vec<String>,
}

impl Service {
    fn new(name: &'static str, program: &str, arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        Self { name, program: program.to_owned(), arguments }
    }
}

struct Services<'a> {
    layout: &'a Layout,
    node: NodeNumber,
    running: BTreeMap<u32, Service>,
}

impl Services<'_> {
    fn start(&mut self, service: Service) -> Result<()> {
        let path = self.layout.log(&format!("{}-{}", self.node, service.name));
        let log = fs::OpenOptions::new().create(true).append(true).open(&path)?;
        let child = Command::new(&service.program)
            .args(&service.arguments)
            .env("CONTAINERD_ADDRESS", CONTAINERD_SOCKET)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", service.name))?;
        self.running.insert(child.id(), service);
        Ok(())
    }

    /// Reaps for ever: its own services, which it starts again, and orphans of containers.
    fn supervise(mut self) -> Result<()> {
        loop {
            let Some((pid, status)) = wait(WaitOptions::empty()).context("wait for children")?
            else {
                continue;
            };
            let pid = pid.as_raw_nonzero().get().unsigned_abs();
            if let Some(service) = self.running.remove(&pid) {
                println!("{} ended ({status:?}); starting it again", service.name);
                thread::sleep(RESTART_PAUSE);
                self.start(service)?;
            }
        }
    }
}
