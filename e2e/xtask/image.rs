//! `cargo xtask image`: one image with all our programs.
//!
//! ```text
//! <state>/image/rootfs/      the root file system; e2e/image/Dockerfile copies the same
//! <state>/image/oci/         OCI layout
//! <state>/image/keelson-VERSION.tar  for `ctr images import`, `podman load`, `docker load`
//! ```
//!
//! It is made from nothing: the programs, the C library's files that they ask for, and the few files
//! that the C library itself reads. It runs as 65532 and never writes to its root.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use e2e::image::Image;
use e2e::kubernetes::program::Program;

use crate::prerequisites;
use crate::progress::Progress;
use crate::workspace::{PROGRAMS, Profile, Workspace};

const REPOSITORY: &str = "docker.io/keelson/keelson";
const USER: u32 = 65532;
/// Where Debian has its bundle, and where TLS libraries look for one.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

#[derive(Args)]
pub(crate) struct Options {
    /// Compile quickly instead of well.
    #[arg(long)]
    dev: bool,
}

/// A finished image.
pub(crate) struct Built {
    pub(crate) name: String,
    pub(crate) tarball: PathBuf,
    pub(crate) root: PathBuf,
    pub(crate) digest: String,
}

pub(crate) fn build(
    workspace: &Workspace,
    progress: &Progress,
    options: &Options,
) -> Result<Built> {
    let profile = Profile::chosen(options.dev);
    workspace.build_programs(progress, profile)?;
    let built = assemble(workspace, progress, profile)?;
    progress.say(&format!("{} ({})", built.name, built.digest));
    progress.say(&format!("  tarball: {}", built.tarball.display()));
    progress.say(&format!("  root file system: {}", built.root.display()));
    Ok(built)
}

/// Makes the image of programs that are built. Its tag is the version of etcd that its server
/// reports, because that is what `spec.version` of an EtcdCluster names.
pub(crate) fn assemble(
    workspace: &Workspace,
    progress: &Progress,
    profile: Profile,
) -> Result<Built> {
    let programs = PROGRAMS.map(|(_, name)| workspace.program(profile, name));
    assemble_of(progress, &programs, &workspace.state().join("image"))
}

/// Builds the server a second time, as one that reports the next version, and makes its image: what
/// a rolling upgrade goes to. Our programs must be built again afterwards, since the two servers
/// share a file name.
pub(crate) fn assemble_next(
    workspace: &Workspace,
    progress: &Progress,
    profile: Profile,
) -> Result<Built> {
    workspace.build_programs_with(progress, profile, &["--features", "server/next-version"])?;
    let programs = PROGRAMS.map(|(_, name)| workspace.program(profile, name));
    let directory = workspace.state().join("image-next");
    let built = assemble_of(progress, &programs, &directory)?;
    // Only the tarball is used, and disks of test machines are small.
    for part in ["rootfs", "oci"] {
        fs::remove_dir_all(directory.join(part)).with_context(|| part.to_owned())?;
    }
    Ok(built)
}

fn assemble_of(progress: &Progress, programs: &[PathBuf], directory: &Path) -> Result<Built> {
    let root = directory.join("rootfs");
    progress.working("assemble the image", || {
        write_root(programs, &root)?;
        let version = reported_version(&root.join("usr/local/bin/etcd"))?;
        let name = format!("{REPOSITORY}:{version}");
        let image = Image {
            name: name.clone(),
            entrypoint: vec!["/usr/local/bin/etcd".to_owned()],
            user: format!("{USER}:{USER}"),
            labels: vec![
                ("org.opencontainers.image.title".to_owned(), "keelson".to_owned()),
                ("org.opencontainers.image.version".to_owned(), version.clone()),
                ("org.opencontainers.image.licenses".to_owned(), "Apache-2.0".to_owned()),
            ],
        };
        let tarball = directory.join(format!("keelson-{version}.tar"));
        let digest = image.write_tarball(&root, &directory.join("oci"), &tarball)?;
        Ok(Built { name, tarball, root: root.clone(), digest })
    })
}

/// The version of etcd in the first line of `etcd --version`.
fn reported_version(etcd: &Path) -> Result<String> {
    let report = Program::new(etcd).words("--version").run()?;
    let version = report.lines().next().and_then(|line| line.strip_prefix("etcd Version: "));
    version.map(str::to_owned).with_context(|| format!("etcd --version answered {report:?}"))
}

fn write_root(programs: &[PathBuf], root: &Path) -> Result<()> {
    if root.exists() {
        fs::remove_dir_all(root).with_context(|| format!("clear {}", root.display()))?;
    }
    for directory in ["usr/local/bin", "etc", "tmp", "var/run/etcd"] {
        fs::create_dir_all(root.join(directory))?;
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    for (file, text) in [
        (
            "etc/passwd",
            format!("root:x:0:0:root:/:/sbin/nologin\netcd:x:{USER}:{USER}:etcd:/:/sbin/nologin\n"),
        ),
        ("etc/group", format!("root:x:0:\netcd:x:{USER}:\n")),
        // The C library asks DNS only if this says so.
        ("etc/nsswitch.conf", "hosts: files dns\n".to_owned()),
    ] {
        fs::write(root.join(file), text).with_context(|| file.to_owned())?;
    }
    // Public authorities, for object stores: those that this machine trusts.
    if Path::new(AUTHORITIES).exists() {
        copy(Path::new(AUTHORITIES), &root.join(AUTHORITIES.trim_start_matches('/')))?;
    }
    for program in programs {
        let name = program.file_name().context("a program has a name")?;
        let copied = root.join("usr/local/bin").join(name);
        copy(program, &copied)?;
        // Without what only debuggers read an image is a third smaller. The tool comes with the
        // linker that Rust needs.
        if let Some(strip) = prerequisites::find("strip") {
            Program::new(strip).words("--strip-debug").args([&copied]).run()?;
        }
        copy_libraries(program, root)?;
    }
    Ok(())
}

/// Copies every library that the program asks the loader for, to the very path it is asked at.
fn copy_libraries(program: &Path, root: &Path) -> Result<()> {
    let output = Program::new("ldd").args([program]).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if said.contains("not a dynamic executable") {
        return Ok(()); // It is static and asks for nothing.
    }
    if !output.status.success() {
        bail!("`ldd {}` ended with {}: {}", program.display(), output.status, said.trim());
    }
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        if line.contains("not found") {
            bail!("{} misses a library: {}", program.display(), line.trim());
        }
        let path = line.split_whitespace().find(|word| word.starts_with('/'));
        if let Some(library) = path {
            let library = Path::new(library);
            copy(library, &root.join(library.strip_prefix("/")?))?;
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(directory) = to.parent() {
        fs::create_dir_all(directory)?;
    }
    fs::copy(from, to).with_context(|| format!("copy {} into the image", from.display()))?;
    Ok(())
}
