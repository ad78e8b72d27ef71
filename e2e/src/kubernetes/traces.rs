//! What a local Kubernetes could leave behind on the machine: links, routes, mounts, control groups and loop
//! devices. Files are below the state directory, and go with it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// How deep below the root of the control groups is looked: those of pods go with their parents.
const CGROUP_DEPTH: usize = 3;

/// Names of control groups of ours, of the kubelet's and of containerd's.
const CLUSTERS_GROUPS: [&str; 4] = [super::cgroup::GROUP, "kubepods", "containerd", "k8s.io"];

/// All there is of these on the machine at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traces(BTreeSet<String>);

impl Traces {
    /// Looks now.
    pub fn now() -> Result<Self> {
        let mut found = BTreeSet::new();
        for link in fs::read_dir("/sys/class/net").context("list links")?.flatten() {
            found.insert(format!("link {}", link.file_name().to_string_lossy()));
        }
        let routes = fs::read_to_string("/proc/net/route").context("list routes")?;
        found.extend(routes.lines().skip(1).map(|route| {
            format!("route {}", route.split_whitespace().take(3).collect::<Vec<_>>().join(" "))
        }));
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("list mounts")?;
        let place = |mount: &str| mount.split(' ').nth(4).map(str::to_owned);
        found.extend(mounts.lines().filter_map(place).map(|place| format!("mount {place}")));
        for device in fs::read_dir("/sys/block").context("list block devices")?.flatten() {
            if let Ok(file) = fs::read_to_string(device.path().join("loop/backing_file")) {
                found.insert(format!("loop device of {}", file.trim()));
            }
        }
        control_groups(Path::new("/sys/fs/cgroup"), CGROUP_DEPTH, &mut found);
        Ok(Self(found))
    }

    /// What is there and was not before.
    pub fn since(&self, before: &Self) -> Vec<String> {
        self.0.difference(&before.0).cloned().collect()
    }
}

/// A group that goes while it is looked at is not there. Sessions of users and services of the machine have
/// groups too, which come and go at any time: a cluster's is known by its name, or that of a group above.
fn control_groups(directory: &Path, depth: usize, found: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for path in entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()) {
        if CLUSTERS_GROUPS.iter().any(|name| path.to_string_lossy().contains(name)) {
            found.insert(format!("control group {}", path.display()));
        }
        if depth > 1 {
            control_groups(&path, depth - 1, found);
        }
    }
}
