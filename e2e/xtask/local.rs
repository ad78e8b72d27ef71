//! `cargo xtask up --no-kubernetes`: three `etcd` processes on the loopback, for which nobody needs
//! root. The ports are those of etcd's own example of a local cluster.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use e2e::kubernetes::{program::Program, wait};
use rustix::process::{Pid, Signal, kill_process};

use crate::progress::Progress;
use crate::workspace::{Profile, Workspace};

const MEMBERS: [Member; 3] = [
    Member { name: "infra1", client: 2379, peer: 2380 },
    Member { name: "infra2", client: 22379, peer: 22380 },
    Member { name: "infra3", client: 32379, peer: 32380 },
];

struct Member {
    name: &'static str,
    client: u16,
    peer: u16,
}

impl Member {
    fn directory(&self, workspace: &Workspace) -> PathBuf {
        workspace.state().join("local").join(self.name)
    }

    fn client_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.client)
    }

    fn peer_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.peer)
    }

    /// The running process, if it is still the one that was started on this directory.
    fn process(&self, workspace: &Workspace) -> Option<Pid> {
        let directory = self.directory(workspace);
        let pid: i32 = fs::read_to_string(directory.join("pid")).ok()?.trim().parse().ok()?;
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let ours = format!("--data-dir={}", directory.join("data").display());
        let found = line.split(|byte| *byte == 0).any(|argument| argument == ours.as_bytes());
        if found { Pid::from_raw(pid) } else { None }
    }
}

pub(crate) fn up(workspace: &Workspace, progress: &Progress, profile: Profile) -> Result<()> {
    down(workspace, progress)?;
    workspace.build_programs(progress, profile)?;
    for member in &MEMBERS {
        start(workspace, profile, member)?;
        progress.say(&format!("started {} on {}", member.name, member.client_url()));
    }
    let endpoints: Vec<String> = MEMBERS.iter().map(Member::client_url).collect();
    let endpoints = endpoints.join(",");
    let program = workspace.program(profile, "etcdctl");
    let etcdctl = |line: &str| {
        Program::new(&program)
            .args([format!("--endpoints={endpoints}")])
            .words(line)
            .limit(Duration::from_secs(10))
            .run()
    };
    progress.working("put and get through the cluster", || {
        // A member that has ended will not answer, however long one waits.
        wait::until("etcdctl put is answered", Duration::from_secs(60), || {
            match running(workspace) {
                Ok(()) => etcdctl("put hello keelson").map(Ok),
                Err(ended) => Ok(Err(ended)),
            }
        })??;
        let found = etcdctl("get hello --print-value-only")?;
        if found.trim() == "keelson" { Ok(()) } else { Err(anyhow!("get answered {found:?}")) }
    })?;
    println!("\nTry next:");
    println!("  export ETCDCTL_ENDPOINTS={endpoints}");
    println!("  {} member list", program.display());
    println!("  {} watch --prefix /", program.display());
    println!("  cargo xtask down");
    Ok(())
}

pub(crate) fn down(workspace: &Workspace, progress: &Progress) -> Result<()> {
    let directory = workspace.state().join("local");
    if !directory.exists() {
        return Ok(());
    }
    progress.working("stop the local processes", || {
        for process in MEMBERS.iter().filter_map(|member| member.process(workspace)) {
            kill_process(process, Signal::TERM).context("stop a member")?;
        }
        wait::until("the members end", Duration::from_secs(20), || {
            let left = MEMBERS.iter().filter(|member| member.process(workspace).is_some()).count();
            if left == 0 { Ok(()) } else { Err(anyhow!("{left} still run")) }
        })?;
        fs::remove_dir_all(&directory).with_context(|| format!("remove {}", directory.display()))
    })
}

fn start(workspace: &Workspace, profile: Profile, member: &Member) -> Result<()> {
    let directory = member.directory(workspace);
    fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
    let log = fs::File::create(directory.join("log"))?;
    let everybody: Vec<String> =
        MEMBERS.iter().map(|one| format!("{}={}", one.name, one.peer_url())).collect();
    let child = Command::new(workspace.program(profile, "etcd"))
        .args([
            format!("--name={}", member.name),
            format!("--data-dir={}", directory.join("data").display()),
            format!("--listen-client-urls={}", member.client_url()),
            format!("--advertise-client-urls={}", member.client_url()),
            format!("--listen-peer-urls={}", member.peer_url()),
            format!("--initial-advertise-peer-urls={}", member.peer_url()),
            format!("--initial-cluster={}", everybody.join(",")),
            "--initial-cluster-token=keelson-local".to_owned(),
            "--initial-cluster-state=new".to_owned(),
        ])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // Its own group, so that Ctrl-C on something else in this terminal does not end it.
        .process_group(0)
        .spawn()
        .with_context(|| format!("start {}", member.name))?;
    fs::write(directory.join("pid"), child.id().to_string()).context("note the process id")
}

/// An error names the first member that does not run.
fn running(workspace: &Workspace) -> Result<()> {
    let Some(member) = MEMBERS.iter().find(|member| member.process(workspace).is_none()) else {
        return Ok(());
    };
    let path = member.directory(workspace).join("log");
    let log = fs::read_to_string(&path).unwrap_or_default();
    let last = log.lines().next_back().unwrap_or("it wrote nothing");
    bail!("{} has ended: {last}\n(all it wrote is in {})", member.name, path.display())
}
