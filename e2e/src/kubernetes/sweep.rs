//! Removing a cluster from any state that a crash may have left: frozen nodes, mounted volumes,
//! half-made links. Nothing is looked up in files; the control groups, the link names and the loop
//! devices' backing files say what is ours. Run before every start and at the end.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::cgroup::Cgroups;
use super::layout::Layout;
use super::program::Program;
use super::{network, wait};

/// Ends and removes the cluster of this layout; nothing to do is fine.
pub fn sweep(layout: &Layout) -> Result<()> {
    refuse_foreign(layout)?;
    if let Ok(cgroups) = Cgroups::detect() {
        cgroups.kill_all()?;
        network::remove()?;
        detach_loops(layout.root())?;
        cgroups.remove_all()?;
    }
    wait::until("the cluster's directory is removed", Duration::from_secs(20), || {
        match fs::remove_dir_all(layout.root()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| layout.root().display().to_string())
            }
            _ => Ok(()),
        }
    })
}

/// A cluster that another clone has started is not ours to end. What is left of one that was ended from
/// outside, and its clone perhaps removed, is nobody's.
pub(super) fn refuse_foreign(layout: &Layout) -> Result<()> {
    let owner = network::owner().unwrap_or_default();
    if owner.is_empty() || Path::new(&owner) == layout.root() || !is_somebody_there() {
        return Ok(());
    }
    bail!(
        "a local Kubernetes of {owner} is on this machine, and two would use the same addresses: run \
         `cargo xtask down` in its clone first (with KEELSON_STATE={} if the clone is gone)",
        Path::new(&owner).parent().unwrap_or(Path::new("/")).display()
    )
}

/// Processes of another process namespace are not seen, but their nodes' cables are.
fn is_somebody_there() -> bool {
    network::has_cables() || Cgroups::detect().is_ok_and(|cgroups| cgroups.anything_runs())
}

/// Mounts detach their loop devices themselves; this is for what a crash in between has left.
fn detach_loops(root: &Path) -> Result<()> {
    let Ok(devices) = fs::read_dir("/sys/block") else { return Ok(()) };
    for device in devices.flatten() {
        let backing = fs::read_to_string(device.path().join("loop/backing_file"));
        if backing.is_ok_and(|file| Path::new(file.trim()).starts_with(root)) {
            let name = Path::new("/dev").join(device.file_name());
            Program::new("losetup").args(["-d".as_ref(), name.as_os_str()]).run()?;
        }
    }
    Ok(())
}
