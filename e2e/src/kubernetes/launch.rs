//! Starting the processes of a cluster.
//!
//! A process is started through xtask's hidden command `internal launch`, which moves itself into
//! the right control group before it becomes the program: so no child can ever escape the sweep.
//! It also leaves the terminal's session, so that Ctrl-C reaches xtask only.

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::process::{Signal, set_parent_process_death_signal, setsid};

use super::cgroup::Cgroups;
use super::layout::Layout;

/// How long the processes of a cluster live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// Until `down`.
    Detached,
    /// Until the thread that starts them ends, at the latest, and so does the store's data. Start from the
    /// main thread.
    Caller,
}

/// A process that was started, under the name of its log.
pub struct Started {
    pub name: String,
    pub child: Child,
}

/// Starts a program in a control group, with its output in a log file.
pub fn start(
    layout: &Layout,
    group: &str,
    lifetime: Lifetime,
    name: &str,
    command_line: &[OsString],
) -> Result<Started> {
    let path = layout.log(name);
    let log = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))?;
    let mut command = Command::new(layout.launcher());
    command.args(["internal", "launch", "--group", group]);
    if lifetime == Lifetime::Caller {
        command.arg("--die-with-parent");
    }
    let child = command
        .arg("--")
        .args(command_line)
        .current_dir(layout.root())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("start {name}"))?;
    Ok(Started { name: name.to_owned(), child })
}

/// The hidden command: joins the group and becomes the program. Returns only an error.
pub fn become_program(group: &str, die_with_parent: bool, command_line: &[OsString]) -> Result<()> {
    let Some((program, arguments)) = command_line.split_first() else {
        bail!("internal launch: no program given");
    };
    if die_with_parent {
        set_parent_process_death_signal(Some(Signal::KILL)).context("set the death signal")?;
    }
    Cgroups::detect()?.join(group)?;
    setsid().context("leave the session")?;
    let error = Command::new(program).args(arguments).exec();
    Err(error).with_context(|| format!("become {}", Path::new(program).display()))
}
