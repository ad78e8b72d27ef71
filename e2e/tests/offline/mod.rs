//! For tests of `etcdutl`: our programs and Go's, directories that they make, and what Go etcdctl says at a
//! member that serves one.

#![allow(dead_code, reason = "each test takes what it needs")]

mod session;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use e2e::peers::{self, EtcdBinaries};
use e2e::processes::Member;
pub(crate) use session::{Session, seen};

pub(crate) struct Tools {
    pub(crate) go: EtcdBinaries,
    pub(crate) etcd: PathBuf,
    pub(crate) etcdutl: PathBuf,
}

impl Tools {
    pub(crate) fn build() -> Tools {
        Tools {
            go: peers::etcd_binaries().unwrap(),
            etcd: peers::our_binary("etcd").unwrap(),
            etcdutl: peers::our_binary("etcdutl").unwrap(),
        }
    }

    /// Our `etcdutl` and server.
    pub(crate) fn ours(&self) -> (&Path, &Path) {
        (&self.etcdutl, &self.etcd)
    }

    /// Go's.
    pub(crate) fn gos(&self) -> (&Path, &Path) {
        (&self.go.etcdutl, &self.go.etcd)
    }

    /// Go etcdctl's output; it has to succeed.
    pub(crate) fn etcdctl(&self, member: &Member, words: &[&str], input: &str) -> Result<String> {
        let said = etcdctl(&self.go.etcdctl, member, words, input)?;
        ensure!(said.done, "etcdctl {words:?} failed: {}", said.errors);
        Ok(said.output)
    }
}

/// What an etcdctl came to.
pub(crate) struct Said {
    pub(crate) done: bool,
    pub(crate) output: String,
    pub(crate) errors: String,
}

pub(crate) fn etcdctl(
    program: &Path,
    member: &Member,
    words: &[impl AsRef<str>],
    input: &str,
) -> Result<Said> {
    let mut child = Command::new(program)
        .env_clear()
        .env("ETCDCTL_ENDPOINTS", &member.endpoint)
        .env("ETCDCTL_COMMAND_TIMEOUT", "60s")
        .args(words.iter().map(AsRef::as_ref))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("run etcdctl")?;
    // One that is refused early does not read its input.
    let _ = child.stdin.take().context("it has an input")?.write_all(input.as_bytes());
    let output = child.wait_with_output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Said {
        done: output.status.success(),
        output: text(&output.stdout),
        errors: text(&output.stderr),
    })
}

/// The flags that make a directory the member's.
pub(crate) fn identity(member: &Member) -> Vec<String> {
    vec![
        format!("--data-dir={}", member.data_directory.display()),
        format!("--name={}", member.name),
        format!("--initial-cluster={}={}", member.name, member.peer_url),
        format!("--initial-advertise-peer-urls={}", member.peer_url),
        "--initial-cluster-token=e2e".to_owned(),
    ]
}

/// Makes the stopped member's data directory anew from a snapshot, and starts a server on it. It is not
/// waited for: with an alarm a member is never healthy.
pub(crate) fn restore(
    member: &mut Member,
    (etcdutl, etcd): (&Path, &Path),
    file: &Path,
    more: &[&str],
) -> Result<()> {
    member.stop()?;
    fs::remove_dir_all(&member.data_directory)?;
    let output = Command::new(etcdutl)
        .args(["snapshot", "restore"])
        .arg(file)
        .args(identity(member))
        .args(more)
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    member.set_program(etcd);
    member.launch()
}
