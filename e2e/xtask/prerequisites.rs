//! What must be on the machine, and installing it. Debian packages come by apt-get, because they are
//! the only thing that cannot be built from pinned sources in reasonable time; Go and Rust are
//! asked for. Whatever is present, from wherever, is used as it is.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use e2e::kubernetes::program::Program;
use e2e::peers;

use crate::progress::Progress;
use crate::workspace::Workspace;

/// A Debian package, by what it is recognised, and what it is for.
struct Package {
    name: &'static str,
    /// Any of these: a program, or an absolute path.
    proof: &'static [&'static str],
    reason: &'static str,
}

const fn package(
    name: &'static str,
    proof: &'static [&'static str],
    reason: &'static str,
) -> Package {
    Package { name, proof, reason }
}

const KUBERNETES: [Package; 9] = [
    package("containerd", &["containerd"], "runs the containers of each node"),
    package("runc", &["runc"], "starts a container for containerd"),
    package(
        "containernetworking-plugins",
        &["/usr/lib/cni/bridge", "/opt/cni/bin/bridge", "/usr/libexec/cni/bridge"],
        "connects pods to the network",
    ),
    package("iproute2", &["ip"], "makes the network between the nodes"),
    package("procps", &["sysctl"], "sets up forwarding in the nodes"),
    package("nftables", &["nft"], "kube-proxy writes Services with it"),
    package("iptables", &["iptables"], "the CNI plugin for host ports uses it"),
    package("xfsprogs", &["mkfs.xfs"], "makes and grows volumes"),
    package("busybox-static", &["/bin/busybox", "/usr/bin/busybox"], "the shell in test pods"),
];

const IMAGE_TEST: [Package; 1] =
    [package("buildah", &["buildah"], "builds the Dockerfile in the tests")];

const GIB: u64 = 1 << 30;
/// What a first run puts on the disk: our programs and tests, those of Kubernetes, images in three nodes.
const SPACE_AT_FIRST: u64 = 14 * GIB;
/// And one after it.
const SPACE_AGAIN: u64 = 5 * GIB;

/// Longest time for Go to fetch another Go.
const GO_FETCH_LIMIT: Duration = Duration::from_secs(600);

/// Kernel parts that may be modules.
const KERNEL_MODULES: [&str; 8] =
    ["overlay", "br_netfilter", "bridge", "veth", "loop", "xfs", "nf_tables", "nft_chain_nat"];

/// For a local Kubernetes: root, Go, packages, kernel.
pub(crate) fn for_kubernetes(workspace: &Workspace, progress: &Progress) -> Result<()> {
    require_root()?;
    require_go()?;
    install(workspace, progress, &KUBERNETES)?;
    load_kernel_modules();
    require_kernel()
}

/// For the test of the Dockerfile.
pub(crate) fn for_image_test(workspace: &Workspace, progress: &Progress) -> Result<()> {
    require_root()?;
    install(workspace, progress, &IMAGE_TEST)
}

pub(crate) fn require_go() -> Result<()> {
    if find("go").is_none() {
        bail!("Go is missing: {}", peers::GO);
    }
    taken(asked_of(&Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/etcd")))
}

/// Go, asked to read this module's file: a Go that is too old for it fetches another one, or fails if
/// it is told to fetch none or has no network. `go env` would not notice.
fn asked_of(module: &Path) -> Program {
    let go = Program::new("go").args(["-C".as_ref(), module.as_os_str()]);
    go.words("list -m").limit(GO_FETCH_LIMIT)
}

fn taken(go: Program) -> Result<()> {
    go.run().map(drop).with_context(|| format!("this Go will not do: {}", peers::GO))
}

fn require_root() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!(
            "a local Kubernetes needs root (namespaces, mounts, control groups): run \
             `sudo -E env PATH=$PATH cargo xtask ...`, or `cargo xtask up --no-kubernetes`, which \
             needs none"
        );
    }
    Ok(())
}

/// A disk that is full in the middle of it is told by whoever writes next, and nobody tells the cause.
pub(crate) fn require_space(workspace: &Workspace) -> Result<()> {
    let needed = match workspace.peers().join("kube-apiserver").exists() {
        true => SPACE_AGAIN,
        false => SPACE_AT_FIRST,
    };
    for directory in [workspace.target(), workspace.state()] {
        fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
        let disk = rustix::fs::statvfs(directory)
            .with_context(|| format!("ask for the space at {}", directory.display()))?;
        enough_space(directory, disk.f_bavail.saturating_mul(disk.f_frsize), needed)?;
    }
    Ok(())
}

fn enough_space(directory: &Path, free: u64, needed: u64) -> Result<()> {
    if free < needed {
        bail!(
            "the disk of {} has {} GiB left and {} are needed: make room, or let CARGO_TARGET_DIR \
             (what is compiled) and KEELSON_STATE (the nodes and their images) name places on another",
            directory.display(),
            free / GIB,
            needed / GIB
        );
    }
    Ok(())
}

fn install(workspace: &Workspace, progress: &Progress, packages: &[Package]) -> Result<()> {
    let missing: Vec<&Package> = packages.iter().filter(|package| !is_present(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for package in &missing {
        progress.say(&format!("missing: {} ({})", package.name, package.reason));
    }
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    if find("apt-get").is_none() {
        bail!(
            "this machine has no apt-get; install these, or what has the same programs, by hand: \
             {}",
            names.join(" ")
        );
    }
    let mut update = Command::new("apt-get");
    update.args(["-q", "update"]);
    // Outdated lists may still do; what matters is whether the installation works.
    if let Err(error) =
        progress.running("apt-get update", &workspace.log("apt-update"), &mut update)
    {
        progress.say(&format!("apt-get update failed, going on with the old lists: {error:#}"));
    }
    let mut install = Command::new("apt-get");
    install
        .args(["-q", "-y", "--no-install-recommends", "install"])
        .args(&names)
        .env("DEBIAN_FRONTEND", "noninteractive");
    progress
        .running("apt-get install", &workspace.log("apt-install"), &mut install)
        .with_context(|| format!("install {} by hand and try again", names.join(" ")))?;
    match missing.into_iter().find(|package| !is_present(package)) {
        Some(package) => bail!("{} is installed but has none of {:?}", package.name, package.proof),
        None => Ok(()),
    }
}

fn is_present(package: &Package) -> bool {
    package.proof.iter().any(|proof| {
        if proof.starts_with('/') { Path::new(proof).exists() } else { find(proof).is_some() }
    })
}

/// Looks up a program in PATH, and where Debian has those for root.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}

/// They are often built in, and then there is nothing to load: `require_kernel` has the last word.
fn load_kernel_modules() {
    if find("modprobe").is_some() {
        let _ = Program::new("modprobe").words("-q -a").args(KERNEL_MODULES).output();
    }
}

fn require_kernel() -> Result<()> {
    let known = fs::read_to_string("/proc/filesystems").context("list the file systems")?;
    for needed in ["overlay", "xfs"] {
        if !known.lines().any(|line| line.split_whitespace().last() == Some(needed)) {
            bail!("the kernel has no {needed} file system (module missing?)");
        }
    }
    if !Path::new("/dev/loop-control").exists() {
        bail!("/dev/loop-control is missing: the kernel needs loop devices for volumes");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_without_room_is_told_with_both_ways_out() {
        let told = enough_space(Path::new("/here"), 3 * GIB + 1, 5 * GIB).unwrap_err().to_string();
        for part in ["/here", "3 GiB", "5 are needed", "CARGO_TARGET_DIR", "KEELSON_STATE"] {
            assert!(told.contains(part), "{told}");
        }
        enough_space(Path::new("/here"), 5 * GIB, 5 * GIB).unwrap();
    }

    #[test]
    fn a_go_that_will_not_do_is_told_with_both_ways_out() {
        let module = tempfile::tempdir().unwrap();
        fs::write(module.path().join("go.mod"), "module example\n\ngo 1.999.0\n").unwrap();
        let told = taken(asked_of(module.path()).env("GOTOOLCHAIN", "local")).unwrap_err();
        let told = format!("{told:#}");
        assert!(["https://go.dev/dl/", "GOTOOLCHAIN=auto"].iter().all(|way| told.contains(way)));
    }
}
