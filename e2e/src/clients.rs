//! Programs that users would write, with clients that others have made.
//!
//! Their sources are in `e2e/peers/{clients,rust,python,node}`, and their clients come from where users get
//! them, at pinned versions: clientv3 from Go's proxy, etcd-client from crates.io, etcd3gw and etcd3 from
//! PyPI, etcd3 from npm. A
//! program goes through named cases against a running cluster and prints one line for each, `ok NAME`
//! or `FAILED NAME: why`. What is installed lands in `clients/` where the peers are, once for the same
//! pins. Deliberately absent: anything that differs between Go etcd and ours.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use sha2::{Digest, Sha256};

use crate::kubernetes::program::Program;
use crate::peers::state_directory;
use crate::processes::Cluster;

/// Compiling clientv3 or downloading packages, on a machine that has other things to do.
const PREPARATION_LIMIT: Duration = Duration::from_secs(15 * 60);
/// A case has a limit of its own; this one is for a program that hangs between them.
const RUN_LIMIT: Duration = Duration::from_secs(5 * 60);

/// A program that is ready to run, or why it cannot be.
#[derive(Clone, Debug)]
pub enum Suite {
    /// All it needs is here.
    Ready {
        /// What it is called in reports.
        name: &'static str,
        /// The command line but for the members' addresses.
        command: Vec<PathBuf>,
        /// Whether it is told all members or one, which is all that its client can have.
        members: Members,
    },
    /// The machine does not have what runs it.
    NoRuntime {
        /// What it is called in reports.
        name: &'static str,
        /// What is missing.
        missing: String,
    },
}

/// How many members a client is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Members {
    /// The last one, which leads as rarely as any other.
    One,
    /// All, separated by commas.
    All,
}

/// What the cases of a program came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Names of those that passed.
    pub ok: Vec<String>,
    /// `NAME: why` of those that did not.
    pub failed: Vec<String>,
}

impl Suite {
    /// Runs all cases against a cluster.
    pub fn run(&self, cluster: &Cluster) -> Result<Option<Report>> {
        let Suite::Ready { name, command, members } = self else { return Ok(None) };
        let endpoints: Vec<&str> =
            cluster.members().iter().map(|member| member.endpoint.as_str()).collect();
        let endpoints = match members {
            Members::All => endpoints.join(","),
            Members::One => (*endpoints.last().context("a cluster has members")?).to_owned(),
        };
        let (program, arguments) = command.split_first().context("a command has a program")?;
        let output =
            Program::new(program).args(arguments).args([endpoints]).limit(RUN_LIMIT).output()?;
        let report = Report::read(&String::from_utf8_lossy(&output.stdout));
        if !output.status.success() && report.failed.is_empty() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("{name} ended with {} after {:?}: {}", output.status, report.ok, said.trim());
        }
        Ok(Some(report))
    }
}

impl Report {
    fn read(output: &str) -> Report {
        let begins = |with: &'static str| {
            output.lines().filter_map(move |line| line.strip_prefix(with).map(str::to_owned))
        };
        Report { ok: begins("ok ").collect(), failed: begins("FAILED ").collect() }
    }
}

/// All programs, made ready once per process.
pub fn suites() -> Result<Vec<Suite>> {
    static SUITES: OnceLock<Result<Vec<Suite>, String>> = OnceLock::new();
    let prepare = || -> Result<Vec<Suite>> {
        let mut suites = vec![go()?, rust()?];
        suites.extend(python()?);
        suites.push(node()?);
        Ok(suites)
    };
    SUITES
        .get_or_init(|| prepare().map_err(|error| format!("{error:#}")))
        .clone()
        .map_err(|error| anyhow!(error))
}

fn sources(directory: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("peers").join(directory)
}

fn go() -> Result<Suite> {
    let program = state_directory()?.join("bin/clients");
    Program::new("go")
        .args([Path::new("-C"), &sources("clients"), Path::new("build"), Path::new("-trimpath")])
        .args([Path::new("-o"), &program, Path::new(".")])
        .env("CGO_ENABLED", "0")
        .limit(PREPARATION_LIMIT)
        .run()
        .with_context(|| {
            format!("build e2e/peers/clients; if Go is too old: {}", crate::peers::GO)
        })?;
    let command = vec![program, "cases".into(), "-endpoints".into()];
    Ok(Suite::Ready { name: "clientv3", command, members: Members::All })
}

/// Its packages are compiled apart from ours, as they would be for a user of the client.
fn rust() -> Result<Suite> {
    let target = state_directory()?.join("clients/rust");
    fs::create_dir_all(&target).with_context(|| format!("create {}", target.display()))?;
    let manifest = sources("rust").join("Cargo.toml");
    let cargo = |words: &str| {
        Program::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .words(words)
            .args([Path::new("--manifest-path"), &manifest])
            .args([Path::new("--target-dir"), &target])
            .limit(PREPARATION_LIMIT)
    };
    let protoc = cargo("run --locked --quiet --package protoc")
        .run()
        .context("build the protobuf compiler's crate of e2e/peers/rust")?;
    cargo("build --locked --quiet --package clients")
        .env("PROTOC", protoc.trim())
        .run()
        .context("build e2e/peers/rust")?;
    let command = vec![target.join("debug/clients"), "cases".into()];
    Ok(Suite::Ready { name: "etcd-client of Rust", command, members: Members::All })
}

fn python() -> Result<Vec<Suite>> {
    let names = [("etcd3gw", "gateway.py"), ("etcd3 of Python", "grpc_client.py")];
    let Ok(version) = Program::new("python3")
        .args(["-c", "import sys, venv, ensurepip; print(sys.version, sys.prefix)"])
        .run()
    else {
        let missing = "python3 with venv and ensurepip".to_owned();
        return Ok(names
            .map(|(name, _)| Suite::NoRuntime { name, missing: missing.clone() })
            .to_vec());
    };
    let requirements = sources("python").join("requirements.txt");
    let environment = installed("python", &version, &[&requirements], |environment| {
        Program::new("python3")
            .args(["-m", "venv"])
            .args([environment])
            .limit(PREPARATION_LIMIT)
            .run()?;
        Program::new(environment.join("bin/python"))
            .words("-m pip install --quiet --disable-pip-version-check --no-deps --requirement")
            .args([&requirements])
            .limit(PREPARATION_LIMIT)
            .run()?;
        Ok(())
    })?;
    let suite = |(name, file): (&'static str, &str)| {
        let python = environment.join("bin/python");
        // No compiled files beside the sources.
        let command = vec![python, "-B".into(), sources("python").join(file)];
        Suite::Ready { name, command, members: Members::One }
    };
    Ok(names.map(suite).to_vec())
}

fn node() -> Result<Suite> {
    let name = "etcd3 of Node.js";
    let versions = ["node", "npm"].map(|program| Program::new(program).args(["--version"]).run());
    let [Ok(node), Ok(npm)] = versions else {
        return Ok(Suite::NoRuntime { name, missing: "node with npm".to_owned() });
    };
    let files = ["package.json", "package-lock.json", "cases.cjs"].map(|f| sources("node").join(f));
    let pins: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    let directory = installed("node", &format!("{node}{npm}"), &pins, |directory| {
        fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
        // The program lies beside what it requires, because there Node.js looks for it.
        for file in &files {
            let to = directory.join(file.file_name().context("a file has a name")?);
            fs::copy(file, &to).with_context(|| format!("copy {}", file.display()))?;
        }
        Program::new("npm")
            .words("ci --ignore-scripts --no-audit --no-fund --prefix")
            .args([directory])
            .limit(PREPARATION_LIMIT)
            .run()?;
        Ok(())
    })?;
    let command = vec!["node".into(), directory.join("cases.cjs")];
    Ok(Suite::Ready { name, command, members: Members::All })
}

/// The directory that `install` has filled for these pins and this runtime; a stamp, written last,
/// tells whether it has.
fn installed(
    name: &str,
    runtime: &str,
    pins: &[&Path],
    install: impl Fn(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let mut digest = Sha256::new_with_prefix(runtime);
    for pin in pins {
        digest.update(fs::read(pin).with_context(|| format!("read {}", pin.display()))?);
    }
    let digest = hex::encode(digest.finalize());
    let directory = state_directory()?.join("clients").join(name);
    let stamp = directory.join("stamp");
    if fs::read_to_string(&stamp).is_ok_and(|stamped| stamped == digest) {
        return Ok(directory);
    }
    if directory.exists() {
        fs::remove_dir_all(&directory)
            .with_context(|| format!("remove {}", directory.display()))?;
    }
    install(&directory).with_context(|| format!("install the clients of {name}"))?;
    fs::write(&stamp, digest).with_context(|| format!("write {}", stamp.display()))?;
    Ok(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_what_passed_and_what_did_not() {
        let report = Report::read("ok kv/a\nFAILED kv/b: not this\nsomething else\nok kv/c\n");
        assert_eq!(report.ok, ["kv/a", "kv/c"]);
        assert_eq!(report.failed, ["kv/b: not this"]);
    }
}
