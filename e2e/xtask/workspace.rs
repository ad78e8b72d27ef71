//! Where things are, and building our own programs.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use e2e::kubernetes::programs::MODULES;

use crate::progress::Progress;

/// The programs of the product, by package.
pub(crate) const PROGRAMS: [(&str, &str); 5] = [
    ("server", "etcd"),
    ("etcdctl", "etcdctl"),
    ("etcdutl", "etcdutl"),
    ("operator", "etcd-operator"),
    ("operator", "kubectl-etcd"),
];

/// How our programs are compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    Release,
    Dev,
}

impl Profile {
    pub(crate) fn chosen(dev: bool) -> Self {
        if dev { Self::Dev } else { Self::Release }
    }

    fn directory(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Dev => "debug",
        }
    }
}

pub(crate) struct Workspace {
    root: PathBuf,
    target: PathBuf,
    state: PathBuf,
}

impl Workspace {
    pub(crate) fn find() -> Result<Self> {
        // Cargo names the package's directory when it runs us; a bare `xtask` was built there.
        let package = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = package.parent().context("the package lies in the workspace")?.to_owned();
        if !root.join("Cargo.toml").exists() {
            bail!("{} is not the workspace: run `cargo xtask` in a clone", root.display());
        }
        let target = env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| root.join("target"), |path| root.join(path));
        let state = env::var_os("KEELSON_STATE")
            .map_or_else(|| root.join("target/keelson"), |path| root.join(path));
        Ok(Self { root, target, state })
    }

    pub(crate) fn join(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// Where cargo compiles.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    pub(crate) fn state(&self) -> &Path {
        &self.state
    }

    /// Where the programs built from Go modules are.
    pub(crate) fn peers(&self) -> PathBuf {
        self.state.join("bin")
    }

    pub(crate) fn log(&self, step: &str) -> PathBuf {
        let name: String =
            step.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        self.state.join("logs").join(format!("{name}.log"))
    }

    pub(crate) fn program(&self, profile: Profile, name: &str) -> PathBuf {
        self.target.join(profile.directory()).join(name)
    }

    /// A cargo command line in this workspace.
    pub(crate) fn cargo(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.args(arguments).current_dir(&self.root).env("KEELSON_STATE", &self.state);
        // Set by cargo for xtask only; they would make build scripts run again.
        for (name, _) in env::vars_os() {
            if name.to_string_lossy().starts_with("CARGO_PKG_") {
                command.env_remove(name);
            }
        }
        command.env_remove("CARGO_MANIFEST_DIR").env_remove("CARGO_MANIFEST_PATH");
        command
    }

    /// Builds the product's programs.
    pub(crate) fn build_programs(&self, progress: &Progress, profile: Profile) -> Result<()> {
        self.build_programs_with(progress, profile, &[])
    }

    /// The same with further arguments of `cargo build`.
    pub(crate) fn build_programs_with(
        &self,
        progress: &Progress,
        profile: Profile,
        further: &[&str],
    ) -> Result<()> {
        let mut arguments = vec!["build", "--locked"];
        arguments.extend(further);
        if profile == Profile::Release {
            arguments.push("--release");
        }
        for (package, _) in PROGRAMS {
            arguments.extend(["--package", package]);
        }
        let what = "build our programs";
        progress.running(what, &self.log("build"), &mut self.cargo(&arguments))?;
        for (package, name) in PROGRAMS {
            if !self.program(profile, name).exists() {
                progress.say(&format!("  the package {package} has no program {name} yet"));
            }
        }
        Ok(())
    }

    /// Builds the programs of the local Kubernetes.
    pub(crate) fn build_peers(&self, progress: &Progress) -> Result<()> {
        fs::create_dir_all(self.peers())
            .with_context(|| format!("make {}", self.peers().display()))?;
        for module in &MODULES {
            progress.working(&format!("build {}", module.what), || {
                module.build(&self.join("e2e/peers"), &self.peers())
            })?;
        }
        Ok(())
    }
}
