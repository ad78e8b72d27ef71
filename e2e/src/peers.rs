//! The programs that our own are compared with, and where our own are found.
//!
//! Go etcd, its tools and a dump of its API descriptors are pinned in `e2e/peers/etcd` and built
//! with `go build`, which does nothing when they are up to date. They land in `peers/` below the
//! workspace's target directory, or below `KEELSON_STATE` if that is set.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, bail};

/// The programs of Go etcd.
#[derive(Clone, Debug)]
pub struct EtcdBinaries {
    /// The server.
    pub etcd: PathBuf,
    /// The client.
    pub etcdctl: PathBuf,
    /// The offline tool.
    pub etcdutl: PathBuf,
    /// Writes the descriptors of the API as a serialized `FileDescriptorSet`.
    pub descriptors: PathBuf,
}

/// How to get the Go that the modules in `e2e/peers` ask for.
pub const GO: &str = "install Go 1.26 or newer from https://go.dev/dl/ and have `go` in PATH; an older \
    one, from 1.21 on, fetches it by itself where there is a network and GOTOOLCHAIN=auto is set";

/// Set by who has built Go etcd's programs and ours, for all the test programs that it runs: looking again
/// whether they are up to date takes each of them seconds of the processors.
pub const BUILT: &str = "KEELSON_PROGRAMS_BUILT";

fn are_built() -> bool {
    env::var_os(BUILT).is_some()
}

/// Builds the programs of Go etcd if they are missing or out of date and tells where they are.
pub fn etcd_binaries() -> Result<EtcdBinaries> {
    // Several tests of one process ask at once; one build serves them all.
    static FOUND: OnceLock<Result<EtcdBinaries, String>> = OnceLock::new();
    let find = || -> Result<EtcdBinaries> {
        let directory = state_directory()?.join("bin");
        if !are_built() {
            build_etcd(&directory)?;
        }
        let [etcd, etcdctl, etcdutl, descriptors] =
            ETCD_BUILDS.map(|(name, _)| directory.join(name));
        Ok(EtcdBinaries { etcd, etcdctl, etcdutl, descriptors })
    };
    FOUND
        .get_or_init(|| find().map_err(|error| format!("{error:#}")))
        .clone()
        .map_err(|error| anyhow!(error))
}

/// What Go etcd's programs are called, and of which packages they are.
const ETCD_BUILDS: [(&str, &str); 4] = [
    ("etcd", "go.etcd.io/etcd/server/v3"),
    ("etcdctl", "go.etcd.io/etcd/etcdctl/v3"),
    ("etcdutl", "go.etcd.io/etcd/etcdutl/v3"),
    ("descriptors", "./descriptors"),
];

/// Builds the programs of Go etcd in a directory, where they are missing or out of date.
pub fn build_etcd(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    // Test programs run several at a time, and a program that is being written cannot be run.
    let lock =
        fs::File::create(directory.join(".lock")).context("create the lock of the builds")?;
    lock.lock().context("wait for another test program's builds")?;
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/etcd");
    for (name, package) in ETCD_BUILDS {
        let status = Command::new("go")
            .current_dir(&module)
            .env("CGO_ENABLED", "0")
            .args(["build", "-trimpath", "-o"])
            .arg(directory.join(name))
            .arg(package)
            .status()
            .with_context(|| format!("run `go build`: {GO}"))?;
        if !status.success() {
            let module = module.display();
            bail!("`go build {package}` in {module} failed: {status}; if Go is too old: {GO}");
        }
    }
    Ok(())
}

/// The packages with the product's programs. They are always built together: what their libraries are
/// compiled with depends on which of them are, and each set would be compiled anew.
pub const PRODUCT: [&str; 4] = ["server", "etcdctl", "etcdutl", "operator"];

/// Builds the product's programs, once in a process, and tells where the one with this name is.
pub fn our_binary(name: &str) -> Result<PathBuf> {
    static PROFILE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let find = || -> Result<PathBuf> {
        let profile = profile_directory()?;
        if !are_built() {
            build_ours(&profile)?;
        }
        Ok(profile)
    };
    let profile = PROFILE.get_or_init(|| find().map_err(|error| format!("{error:#}")));
    profile.clone().map(|profile| profile.join(name)).map_err(|error| anyhow!(error))
}

fn build_ours(profile: &Path) -> Result<()> {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["build", "--quiet"]);
    // What cargo tells a test of its package some build scripts look at (ring's does), and with another
    // answer than before they and everything above them would be built again, each time.
    for (name, _) in env::vars_os() {
        let is_of_package = name.to_str().is_some_and(|name| {
            ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"]
                .iter()
                .any(|start| name.starts_with(start))
        });
        if is_of_package {
            command.env_remove(name);
        }
    }
    command.args(PRODUCT.iter().flat_map(|package| ["--package", package]));
    if profile.ends_with("release") {
        command.arg("--release");
    }
    let status = command.status().context("run `cargo build`")?;
    if !status.success() {
        bail!("`cargo build` of our programs failed: {status}");
    }
    Ok(())
}

/// Where what is built for tests is kept.
pub(crate) fn state_directory() -> Result<PathBuf> {
    match env::var_os("KEELSON_STATE") {
        Some(state) => Ok(PathBuf::from(state)),
        None => {
            let profile = profile_directory()?;
            let target = profile.parent().context("the profile directory has a parent")?;
            Ok(target.join("peers"))
        }
    }
}

/// The directory of this build's profile: a test runs from its subdirectory `deps`, a binary from
/// itself.
fn profile_directory() -> Result<PathBuf> {
    let program = env::current_exe().context("find the running program")?;
    let directory = program.parent().context("the running program has a directory")?;
    let profile = if directory.ends_with("deps") { directory.parent() } else { Some(directory) };
    Ok(profile.context("the target directory has a profile")?.to_path_buf())
}
