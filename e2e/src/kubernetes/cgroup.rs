//! Control groups: what makes a node's processes one thing that can be frozen, killed and counted.
//!
//! Every process of a cluster is below the group `keelson`: `keelson/control-plane`, and one group
//! per node (`keelson/n1`), which is the root of that node's cgroup namespace. So a cluster can be
//! found and ended without pid files, and without a chance to hit a process of somebody else.
//!
//! Two worlds are handled. With version 1 (also as part of a hybrid) each controller is a hierarchy
//! of its own, and a process joins all of them. With version 2 alone there is one hierarchy, whose
//! rule that inner groups hold no processes has two effects: a node's own processes move down into
//! `init`, and the `unshare` that holds the node waits in `keelson/holders`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::layout::NodeNumber;
use super::wait;

pub(super) const GROUP: &str = "keelson";
const HOLDERS: &str = "keelson/holders";
pub const CONTROL_PLANE: &str = "keelson/control-plane";
/// The controllers that the kubelet wants.
const CONTROLLERS: [&str; 6] = ["cpuset", "cpu", "io", "memory", "hugetlb", "pids"];

pub fn node_group(node: NodeNumber) -> String {
    format!("{GROUP}/{node}")
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Hierarchy {
    mount: PathBuf,
    /// The mount options that name it again in another namespace; empty for version 2.
    options: String,
    version_2: bool,
}

impl Hierarchy {
    fn has(&self, controller: &str) -> bool {
        self.options.split(',').any(|option| option == controller)
    }
}

/// The hierarchies of this machine.
#[derive(Clone, Debug)]
pub struct Cgroups {
    hierarchies: Vec<Hierarchy>,
}

impl Cgroups {
    pub fn detect() -> Result<Self> {
        let table = fs::read_to_string("/proc/self/mountinfo").context("read the mount table")?;
        let hierarchies = parse_mounts(&table);
        if hierarchies.is_empty() {
            bail!("no control groups are mounted below /sys/fs/cgroup");
        }
        Ok(Self { hierarchies })
    }

    /// Version 2 alone, as on a machine with a current systemd.
    fn unified(&self) -> bool {
        self.hierarchies.iter().all(|hierarchy| hierarchy.version_2)
    }

    /// The hierarchy in which all processes are counted.
    fn tracker(&self) -> &Hierarchy {
        self.hierarchies
            .iter()
            .find(|hierarchy| hierarchy.has("pids"))
            .unwrap_or(&self.hierarchies[self.hierarchies.len() - 1])
    }

    /// Moves this process into the group; what it starts is born there.
    pub fn join(&self, group: &str) -> Result<()> {
        for hierarchy in &self.hierarchies {
            make_group(hierarchy, group)?;
            fs::write(hierarchy.mount.join(group).join("cgroup.procs"), "0")
                .with_context(|| format!("join {group} of {}", hierarchy.mount.display()))?;
        }
        Ok(())
    }

    /// Moves the process that holds a node's namespaces out of the node's root group, which under
    /// version 2 must hold no processes before it can have subgroups.
    pub fn set_holder_aside(&self, holder: u32) -> Result<()> {
        if !self.unified() {
            return Ok(());
        }
        make_group(self.tracker(), HOLDERS)?;
        let procs = self.tracker().mount.join(HOLDERS).join("cgroup.procs");
        fs::write(&procs, holder.to_string()).with_context(|| format!("write {}", procs.display()))
    }

    /// Inside a node: shows the node's own groups as the whole machine's.
    pub fn remount_inside(&self) -> Result<()> {
        use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
        for hierarchy in &self.hierarchies {
            let (point, data) = (&hierarchy.mount, hierarchy.options.as_str());
            let kind = if hierarchy.version_2 { "cgroup2" } else { "cgroup" };
            unmount(point, UnmountFlags::DETACH)
                .with_context(|| format!("unmount {}", point.display()))?;
            let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
            let data = std::ffi::CString::new(data).context("a mount option with a zero byte")?;
            mount(kind, point, kind, flags, data.as_c_str())
                .with_context(|| format!("mount {kind} ({data:?}) at {}", point.display()))?;
        }
        if self.unified() { self.delegate_inside() } else { Ok(()) }
    }

    /// Version 2: makes room in the node's root group for the groups of its pods.
    fn delegate_inside(&self) -> Result<()> {
        let root = &self.tracker().mount;
        fs::create_dir_all(root.join("init"))?;
        fs::write(root.join("init/cgroup.procs"), "0").context("move the node's init")?;
        wait::until("the node's root control group is free", Duration::from_secs(10), || {
            enable_controllers(root)
        })
    }

    /// Stops all processes of a node where they are, or lets them go on.
    pub fn freeze(&self, node: NodeNumber, frozen: bool) -> Result<()> {
        let group = node_group(node);
        let version_1 = self.hierarchies.iter().find(|hierarchy| hierarchy.has("freezer"));
        let (file, text, done) = match version_1 {
            Some(hierarchy) => {
                let text = if frozen { "FROZEN" } else { "THAWED" };
                (hierarchy.mount.join(&group).join("freezer.state"), text, text.to_owned())
            }
            None => {
                let text = if frozen { "1" } else { "0" };
                (self.tracker().mount.join(&group).join("cgroup.freeze"), text, text.to_owned())
            }
        };
        fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
        wait::until(&format!("{node} is {text}"), Duration::from_secs(10), || {
            let state = match version_1 {
                Some(_) => fs::read_to_string(&file)?.trim().to_owned(),
                None => frozen_event(&file.with_file_name("cgroup.events"))?,
            };
            if state == done { Ok(()) } else { Err(anyhow!("its state is {state}")) }
        })
    }

    /// The live processes of a group and of all groups in it.
    pub fn processes(&self, group: &str) -> Vec<u32> {
        let mut found = Vec::new();
        for directory in tree(&self.tracker().mount.join(group)) {
            let listed = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
            found.extend(listed.lines().filter_map(|line| line.parse::<u32>().ok()));
        }
        found.retain(|pid| is_live(*pid));
        found
    }

    pub fn anything_runs(&self) -> bool {
        !self.processes(GROUP).is_empty()
    }

    /// Ends every process of a group. Frozen ones are thawed first: they would not die.
    pub fn kill(&self, group: &str) -> Result<()> {
        self.thaw_below(group);
        wait::until(&format!("the processes of {group} end"), Duration::from_secs(20), || {
            let left = self.processes(group);
            for pid in &left {
                if let Some(pid) = Pid::from_raw(i32::try_from(*pid)?) {
                    // Gone between listing and killing is what we want.
                    let _ = kill_process(pid, Signal::KILL);
                }
            }
            if left.is_empty() { Ok(()) } else { Err(anyhow!("{} are left", left.len())) }
        })
    }

    pub fn kill_all(&self) -> Result<()> {
        self.kill(GROUP)
    }

    fn thaw_below(&self, group: &str) {
        for hierarchy in &self.hierarchies {
            for directory in tree(&hierarchy.mount.join(group)) {
                // Groups without the file, or gone meanwhile, have nothing to thaw.
                if hierarchy.has("freezer") {
                    let _ = write_existing(&directory.join("freezer.state"), "THAWED");
                }
                if hierarchy.version_2 {
                    let _ = write_existing(&directory.join("cgroup.freeze"), "0");
                }
            }
        }
    }

    /// Removes a group's empty directories. Needed before a node starts again: the kubelet takes
    /// the groups of dead pods for containers and spends seconds on each.
    pub fn remove(&self, group: &str) -> Result<()> {
        for hierarchy in &self.hierarchies {
            let top = hierarchy.mount.join(group);
            wait::until(&format!("{} is removed", top.display()), Duration::from_secs(10), || {
                for directory in tree(&top).iter().rev() {
                    match fs::remove_dir(directory) {
                        Err(error) if error.kind() != io::ErrorKind::NotFound => {
                            return Err(error).with_context(|| directory.display().to_string());
                        }
                        _ => {}
                    }
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    pub fn remove_all(&self) -> Result<()> {
        self.remove(GROUP)
    }
}

/// Finds the hierarchies in the text of /proc/self/mountinfo (proc(5)).
fn parse_mounts(table: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in table.lines() {
        let Some((mount, device)) = line.split_once(" - ") else { continue };
        let (Some(point), Some(kind)) = (mount.split(' ').nth(4), device.split(' ').next()) else {
            continue;
        };
        if !point.starts_with("/sys/fs/cgroup") || !matches!(kind, "cgroup" | "cgroup2") {
            continue;
        }
        let version_2 = kind == "cgroup2";
        let options = device.split(' ').nth(2).unwrap_or_default();
        let options = if version_2 { String::new() } else { naming_options(options) };
        let hierarchy = Hierarchy { mount: PathBuf::from(point), options, version_2 };
        if !found.contains(&hierarchy) {
            found.push(hierarchy);
        }
    }
    found
}

/// A hierarchy without controllers is named by `name=` and wants `none` beside it.
fn naming_options(options: &str) -> String {
    let kept: Vec<&str> =
        options.split(',').filter(|option| !matches!(*option, "rw" | "ro" | "xattr")).collect();
    if kept.iter().all(|option| option.starts_with("name=") || option.contains('_')) {
        let name: Vec<&str> =
            kept.into_iter().filter(|option| option.starts_with("name=")).collect();
        return format!("none,{}", name.join(","));
    }
    kept.join(",")
}

/// Makes each level of a group ready for processes or subgroups.
fn make_group(hierarchy: &Hierarchy, group: &str) -> Result<()> {
    let mut directory = hierarchy.mount.clone();
    for part in Path::new(group) {
        if hierarchy.version_2 && hierarchy.mount == Path::new("/sys/fs/cgroup") {
            enable_controllers(&directory)?;
        }
        let parent = directory.clone();
        directory.push(part);
        fs::create_dir_all(&directory)
            .with_context(|| format!("make the control group {}", directory.display()))?;
        if hierarchy.has("cpuset") {
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let value = fs::read_to_string(parent.join(file)).context(file)?;
                fs::write(directory.join(file), value.trim()).context(file)?;
            }
        }
    }
    Ok(())
}

/// Version 2: lets the subgroups of a group have the controllers that the machine offers it.
fn enable_controllers(group: &Path) -> Result<()> {
    let offered = fs::read_to_string(group.join("cgroup.controllers"))?;
    for controller in
        CONTROLLERS.iter().filter(|one| offered.split_whitespace().any(|o| o == **one))
    {
        fs::write(group.join("cgroup.subtree_control"), format!("+{controller}"))
            .with_context(|| format!("give {controller} to the groups in {}", group.display()))?;
    }
    Ok(())
}

fn frozen_event(file: &Path) -> Result<String> {
    let events = fs::read_to_string(file)?;
    let state = events.lines().find_map(|line| line.strip_prefix("frozen "));
    Ok(state.unwrap_or("unknown").to_owned())
}

/// Without O_CREAT, which these file systems refuse with another error.
fn write_existing(file: &Path, text: &str) -> io::Result<()> {
    io::Write::write_all(&mut fs::OpenOptions::new().write(true).open(file)?, text.as_bytes())
}

/// A directory and all below it, parents first; nothing if it does not exist.
fn tree(top: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![top.to_owned()];
    while let Some(directory) = open.pop() {
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        let below = entries.flatten().filter(|entry| entry.path().is_dir());
        open.extend(below.map(|entry| entry.path()));
        found.push(directory);
    }
    found
}

/// A zombie has ended; only its parent has not noticed.
pub(super) fn is_live(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_1_version_2_and_hybrid_mounts_are_recognised() {
        let hybrid = "24 1 0:21 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
            25 24 0:22 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
            26 24 0:23 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer\n\
            27 24 0:24 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
            28 24 0:25 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
            29 1 0:26 / /proc rw - proc proc rw\n";
        let found = Cgroups { hierarchies: parse_mounts(hybrid) };
        let options: Vec<&str> = found.hierarchies.iter().map(|one| one.options.as_str()).collect();
        assert_eq!(options, ["cpu,cpuacct", "freezer", "none,name=systemd", ""]);
        assert!(!found.unified());
        let unified = "24 1 0:21 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let found = Cgroups { hierarchies: parse_mounts(unified) };
        assert!(found.unified());
        assert_eq!(found.tracker().mount, Path::new("/sys/fs/cgroup"));
    }
}
