//! `cargo xtask test`: groups of tests, each a list of steps. What CI runs is what this runs.
//!
//! The group `kubernetes` waits most of its time for kubelets and nodes; groups that wait as well, for
//! elections and time-outs, run beside it and give way to it. Everything is compiled before.
//!
//! The last line is `N passed, N failed`: tests where a step runs tests, else the step itself. It also names
//! what was skipped because this machine has not what it needs.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use e2e::kubernetes::layout::STORE_CLIENT_URL;
use e2e::kubernetes::program::Program;
use e2e::kubernetes::{Lifetime, Traces, wait};
use e2e::processes::http_get;

use crate::counts::{Compared, Counts, ONE, count_results};
use crate::operator::Operator;
use crate::programs::{self, Batch, Outcome, Task, TestProgram};
use crate::progress::Progress;
use crate::pulse::Pulse;
use crate::workspace::{Profile, Workspace};
use crate::{image, prerequisites, store_log, up};

#[derive(Args, Default)]
pub(crate) struct Options {
    /// Run these groups only; may be given several times.
    #[arg(long, value_enum, value_name = "GROUP")]
    only: Vec<Group>,
    /// Leave these groups out.
    #[arg(long, value_enum, value_name = "GROUP")]
    skip: Vec<Group>,
    /// Another etcd as the store of the local Kubernetes.
    #[arg(long, value_name = "PROGRAM")]
    store: Option<PathBuf>,
    /// Test our programs as they are shipped; without it they share the compilation of the tests.
    #[arg(long)]
    release: bool,
}

impl Options {
    pub(crate) fn quick() -> Self {
        Self { only: vec![Group::Fmt, Group::Clippy, Group::Unit], ..Self::default() }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Group {
    /// Formatting of Rust and Go.
    Fmt,
    /// Lints, with warnings denied.
    Clippy,
    /// Unit and property tests of all rooms.
    Unit,
    /// Real processes: crashes, pauses, faults.
    Process,
    /// Linearizability of real processes that are killed and paused.
    Chaos,
    /// Differential tests against Go etcd.
    Differential,
    /// Programs written with other people's clients; their packages are downloaded.
    Clients,
    /// The image and the Dockerfile.
    Image,
    /// The local Kubernetes, with our etcd as its store, and the operator on it.
    Kubernetes,
}

/// What runs beside the group `kubernetes`.
const BESIDE_KUBERNETES: [Group; 3] = [Group::Process, Group::Differential, Group::Clients];
/// How many of their programs at a time.
const BESIDE_AT_ONCE: usize = 2;

/// What every group compiles. It is the same for all of them, whatever they then run, because cargo
/// compiles a library once for each set of features that the chosen packages ask of it.
const EVERYTHING: [&str; 3] = ["--workspace", "--features", "e2e/cluster"];

/// What the steps have come to.
#[derive(Default)]
struct Summary {
    passed: usize,
    failed: usize,
    failures: Vec<String>,
    /// What tests say that they have left out.
    skipped: BTreeSet<String>,
    compared: Compared,
}

impl Summary {
    fn add(&mut self, other: Summary) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.failures.extend(other.failures);
        self.skipped.extend(other.skipped);
        self.compared.add(other.compared);
    }

    fn step(&mut self, name: &str, result: Result<Counts>) {
        match result {
            Ok(counts) => {
                self.passed += counts.passed;
                self.failed += counts.failed;
                self.skipped.extend(counts.skipped);
                self.compared.add(counts.compared);
                if counts.failed > 0 {
                    self.failures.push(format!("{name}: {} tests failed", counts.failed));
                }
            }
            Err(error) => {
                self.failed += 1;
                self.failures.push(format!("{name}: {error:#}"));
                println!("FAILED {name}: {error:#}");
            }
        }
    }

    fn last_line(&self) -> String {
        let skipped: Vec<&str> = self.skipped.iter().map(String::as_str).collect();
        let skipped = match skipped.is_empty() {
            true => String::new(),
            false => format!(", skipped: {}", skipped.join("; ")),
        };
        format!("{} passed, {} failed{skipped}", self.passed, self.failed)
    }
}

pub(crate) fn run(workspace: &Workspace, progress: &Progress, options: &Options) -> Result<bool> {
    let mut summary = Summary::default();
    let mut chosen = Group::value_variants().to_vec();
    chosen.retain(|group| {
        let wanted = options.only.is_empty() || options.only.contains(group);
        wanted && !options.skip.contains(group)
    });
    let tests = Tests { workspace, progress, options };
    let with_kubernetes = chosen.contains(&Group::Kubernetes);
    if with_kubernetes {
        prerequisites::require_space(workspace)?;
    }
    let is_beside = |group: &Group| with_kubernetes && BESIDE_KUBERNETES.contains(group);
    let (beside, in_turn): (Vec<Group>, Vec<Group>) = chosen.into_iter().partition(is_beside);
    for group in in_turn {
        progress.say(&format!("--- {}", name_of(group)));
        match group {
            Group::Kubernetes => tests.kubernetes_and(&beside, &mut summary),
            group => tests.run_group(group, &mut summary),
        }
    }
    if !summary.failures.is_empty() {
        println!("\nFailures:");
        for failure in &summary.failures {
            println!("  {failure}");
        }
    }
    let Compared { all, equal } = summary.compared;
    if all > 0 {
        let deviating = all - equal;
        println!("\n{all} compared with Go etcd, {equal} equal, {deviating} deviating with reason");
    }
    println!("\n{}", summary.last_line());
    Ok(summary.failed == 0)
}

fn name_of(group: Group) -> String {
    group.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

struct Tests<'a> {
    workspace: &'a Workspace,
    progress: &'a Progress,
    options: &'a Options,
}

impl Tests<'_> {
    fn run_group(&self, group: Group, summary: &mut Summary) {
        match group {
            Group::Fmt => {
                summary.step("rustfmt", self.cargo_check("rustfmt", &["fmt", "--all", "--check"]));
                let clients =
                    ["fmt", "--all", "--check", "--manifest-path", "e2e/peers/rust/Cargo.toml"];
                summary.step("rustfmt of clients", self.cargo_check("rustfmt", &clients));
                summary.step("gofmt", self.gofmt());
            }
            Group::Clippy => {
                let mut line = vec!["clippy", "--all-targets"];
                line.extend(EVERYTHING);
                // Nothing else compiles the programs of the fuzzer.
                line.extend(["--features", "fuzz/libfuzzer", "--", "-D", "warnings"]);
                let mut clippy = self.workspace.cargo(&line);
                // Nothing is linked, so nobody needs the compiler of C++ that libFuzzer wants.
                clippy.env("CUSTOM_LIBFUZZER_PATH", "./none");
                summary.step("clippy", self.check("clippy", clippy));
            }
            Group::Unit => {
                summary.step("unit", self.unit());
            }
            Group::Process | Group::Chaos | Group::Differential | Group::Clients => {
                summary.step(&name_of(group), self.test_files(group));
            }
            Group::Image => {
                summary.step("image", self.image());
                summary.step("Dockerfile", self.dockerfile());
            }
            Group::Kubernetes => self.kubernetes_and(&[], summary),
        }
    }

    /// The group `kubernetes`, and these beside it.
    fn kubernetes_and(&self, beside: &[Group], summary: &mut Summary) {
        let tests = match self.prepare_kubernetes() {
            Ok(tests) => Some(tests),
            Err(error) => {
                summary.step("kubernetes", Err(error));
                None
            }
        };
        let (mut waiting, mut steps) = (Vec::new(), Vec::new());
        for group in beside {
            match self.compile_files(*group) {
                Ok(programs) => {
                    let step = name_of(*group);
                    waiting.extend(tasks(&step, programs, arguments_of(*group)));
                    steps.push(step);
                }
                Err(error) => summary.step(&name_of(*group), Err(error)),
            }
        }
        let in_kubernetes = || {
            let mut summary = Summary::default();
            let ended = tests.map_or(Ok(()), |tests| self.kubernetes(&tests, &mut summary));
            if let Err(error) = ended {
                summary.step("kubernetes", Err(error));
            }
            summary
        };
        thread::scope(|scope| {
            let in_kubernetes = scope.spawn(in_kubernetes);
            // Together: at the end of every group alone a processor would have nothing to do.
            let name = "beside kubernetes";
            let batch = Batch { gives_way: true, ..self.batch(name, BESIDE_AT_ONCE) };
            match batch.run(waiting) {
                Ok(outcomes) => steps.iter().for_each(|step| {
                    let of_step = outcomes.iter().filter(|outcome| outcome.step == *step);
                    summary.step(step, self.judge(step, of_step));
                }),
                Err(error) => summary.step(name, Err(error)),
            }
            summary.add(in_kubernetes.join().expect("the thread returns a summary"));
        });
    }

    /// The tests beside the code, and those in the `tests` of every package but e2e.
    fn unit(&self) -> Result<Counts> {
        let mut packages = vec![self.workspace.join("server"), self.workspace.join("operator")];
        let crates = self.workspace.join("server/crates");
        for entry in fs::read_dir(&crates).context("list server/crates")? {
            packages.push(entry?.path());
        }
        let mut names = Vec::new();
        for package in packages {
            names.extend(test_targets(&package.join("tests"))?);
        }
        let line = ["--lib", "--bins"].map(str::to_owned).into_iter().chain(selected(&names));
        // One at a time: some count what a busy machine does.
        let programs = self.compile("unit", &line.collect::<Vec<_>>())?;
        self.run("unit", tasks("unit", programs, &[]), 1)
    }

    fn cargo_check(&self, name: &str, line: &[&str]) -> Result<Counts> {
        self.check(name, self.workspace.cargo(line))
    }

    fn check(&self, name: &str, mut command: Command) -> Result<Counts> {
        self.progress.running(name, &self.workspace.log(name), &mut command)?;
        Ok(ONE)
    }

    fn compile(&self, name: &str, selection: &[String]) -> Result<Vec<TestProgram>> {
        let mut line = EVERYTHING.to_vec();
        line.extend(selection.iter().map(String::as_str));
        programs::compile(self.workspace, self.progress, name, &line)
    }

    /// Runs test programs of one step and counts the tests, also those that passed when others failed.
    fn run(&self, step: &str, tasks: Vec<Task>, at_once: usize) -> Result<Counts> {
        let outcomes = self.batch(step, at_once).run(tasks)?;
        self.judge(step, outcomes.iter())
    }

    fn batch<'b>(&'b self, name: &'b str, at_once: usize) -> Batch<'b> {
        let (workspace, progress) = (self.workspace, self.progress);
        Batch { workspace, progress, name, at_once, gives_way: false }
    }

    fn judge<'o>(&self, step: &str, outcomes: impl Iterator<Item = &'o Outcome>) -> Result<Counts> {
        let (mut counts, mut failed) = (Counts::default(), Vec::new());
        for outcome in outcomes {
            counts.add(count_results(&outcome.output));
            if !outcome.succeeded {
                failed.push(outcome.name.as_str());
            }
        }
        if counts.failed == 0 && !failed.is_empty() {
            bail!("died without a word of a test: {}", failed.join(", "));
        }
        self.progress.say(&format!("  {step}: {} tests passed", counts.passed));
        Ok(counts)
    }

    fn gofmt(&self) -> Result<Counts> {
        prerequisites::require_go()?;
        let unformatted =
            Program::new("gofmt").args(["-l"]).args([self.workspace.join("e2e/peers")]).run()?;
        if !unformatted.is_empty() {
            bail!("run gofmt -w on {}", unformatted.trim().replace('\n', " "));
        }
        Ok(ONE)
    }

    /// The files of e2e/tests that belong to a group: none can be forgotten, because those without
    /// another group are process tests.
    fn test_files(&self, group: Group) -> Result<Counts> {
        let (programs, step) = (self.compile_files(group)?, name_of(group));
        self.run(&step, tasks(&step, programs, arguments_of(group)), programs_at_once(group))
    }

    fn compile_files(&self, group: Group) -> Result<Vec<TestProgram>> {
        let mut names = test_targets(&self.workspace.join("e2e/tests"))?;
        names.retain(|name| group_of(name) == group);
        if names.is_empty() {
            bail!("no file of e2e/tests belongs to this group");
        }
        prerequisites::require_go()?;
        let programs = self.compile(&name_of(group), &selected(&names).collect::<Vec<_>>())?;
        self.build_what_they_run()?;
        Ok(programs)
    }

    /// Our programs, compiled as the tests are, and Go etcd's.
    fn build_what_they_run(&self) -> Result<()> {
        let (workspace, progress) = (self.workspace, self.progress);
        workspace.build_programs(progress, Profile::Dev)?;
        progress.working("build Go etcd", || e2e::peers::build_etcd(&workspace.peers()))
    }

    /// The image is the same when it is made again.
    fn image(&self) -> Result<Counts> {
        let profile = Profile::chosen(!self.options.release);
        self.workspace.build_programs(self.progress, profile)?;
        let first = image::assemble(self.workspace, self.progress, profile)?;
        let second = image::assemble(self.workspace, self.progress, profile)?;
        if first.digest != second.digest {
            bail!("the image is {} and, made again, {}", first.digest, second.digest);
        }
        Ok(ONE)
    }

    /// The Dockerfile builds, and our server runs in what it builds.
    fn dockerfile(&self) -> Result<Counts> {
        prerequisites::for_image_test(self.workspace, self.progress)?;
        let context = self.workspace.state().join("image");
        let storage = self.workspace.state().join("buildah");
        let buildah = |command: &str| {
            // buildah keeps a cache in /var/lib whatever it is told: it gets a /var/lib of its own.
            let mut buildah = Command::new("unshare");
            let script = "mount -t tmpfs tmpfs /var/lib && exec buildah \"$@\"";
            buildah.args(["--mount", "sh", "-c", script, "buildah"]);
            for (flag, directory) in [("--root", "root"), ("--runroot", "runroot")] {
                buildah.arg(flag).arg(storage.join(directory));
            }
            buildah.args(["--storage-driver", "vfs", command]);
            buildah.arg("--cni-config-dir").arg(storage.join("cni"));
            buildah
        };
        let mut build = buildah("build");
        build.args(["--isolation", "chroot", "--tag", "keelson-dockerfile-test"]);
        build.arg("--file");
        build.arg(self.workspace.join("e2e/image/Dockerfile")).arg(&context);
        self.progress.running(
            "build the Dockerfile",
            &self.workspace.log("dockerfile"),
            &mut build,
        )?;
        let (log, container) = (self.workspace.log("dockerfile-run"), "keelson-dockerfile-test");
        let mut from = buildah("from");
        from.args(["--name", container, "localhost/keelson-dockerfile-test"]);
        self.progress.running("make a container of it", &log, &mut from)?;
        // As the image's own user, with the libraries that the image has.
        let mut run = buildah("run");
        run.args(["--isolation", "chroot", container, "--", "/usr/local/bin/etcd", "--version"]);
        self.progress.running("run etcd in it", &log, &mut run)?;
        fs::remove_dir_all(&storage).with_context(|| format!("remove {}", storage.display()))?;
        Ok(ONE)
    }

    /// Builds all that the tests on a local Kubernetes need; nothing is compiled while it runs.
    fn prepare_kubernetes(&self) -> Result<KubernetesTests> {
        let (workspace, progress) = (self.workspace, self.progress);
        let profile = Profile::chosen(!self.options.release);
        prerequisites::for_kubernetes(workspace, progress)?;
        workspace.build_peers(progress)?;
        // The next version first: the programs that stay are those that are shipped.
        let next = image::assemble_next(workspace, progress, profile)?;
        workspace.build_programs(progress, profile)?;
        let image = image::assemble(workspace, progress, profile)?;
        let store =
            self.options.store.clone().unwrap_or_else(|| workspace.program(profile, "etcd"));
        let programs =
            self.compile("kubernetes", &selected(&KUBERNETES_TESTS).collect::<Vec<_>>())?;
        let images = [image.tarball, next.tarball];
        Ok(KubernetesTests { store, image: image.name, images, programs })
    }

    /// The tests on a local Kubernetes, and at their end what its apiserver thought of our store.
    fn kubernetes(&self, tests: &KubernetesTests, summary: &mut Summary) -> Result<()> {
        let (workspace, progress) = (self.workspace, self.progress);
        let store = tests.store.clone();
        let before = Traces::now()?;
        let pulse = Pulse::start(workspace.state())?;
        let cluster = up::start_cluster(workspace, progress, store, Lifetime::Caller)?;
        progress.working("load the images into the nodes", || {
            tests.images.iter().try_for_each(|image| cluster.load_image(image))
        })?;
        for (name, targets, at_once, arguments) in KUBERNETES_STEPS {
            let arguments = [&["--nocapture"], arguments].concat();
            let programs = tests.programs.iter().cloned();
            let programs = programs.filter(|program| targets.contains(&program.target()));
            summary.step(name, self.run(name, tasks(name, programs, &arguments), at_once));
        }
        let operator = Operator { workspace, progress, access: cluster.access() };
        summary.step("up and down", operator.come_and_go(&tests.image).map(|()| ONE));
        let said = |log: &str| {
            let text = fs::read_to_string(cluster.layout().log(log));
            text.with_context(|| format!("read what {log} has logged"))
        };
        let store_said = said("store")?;
        let standstills = pulse.end();
        let store = STORE_CLIENT_URL.trim_start_matches("http://");
        let metrics = http_get(store, "/metrics").context("ask the store for its metrics")?;
        fs::write(cluster.layout().log("store-metrics"), metrics).context("keep its metrics")?;
        progress.say(&format!("  {}", store_log::told(&standstills)));
        let of_api_server = said("kube-apiserver")
            .and_then(|log| store_log::of_api_server(&log, &standstills))
            .with_context(|| store_log::slow_flushes(&store_said));
        summary.step("kube-apiserver's log", of_api_server.map(|()| ONE));
        let of_store = store_log::of_store(&store_said);
        summary.step("the store's log", of_store.map(|()| ONE));
        // Kept also when all went well: they say how long things took.
        let logs = workspace.state().join("logs/cluster");
        if logs.exists() {
            fs::remove_dir_all(&logs).with_context(|| format!("remove {}", logs.display()))?;
        }
        fs::rename(cluster.layout().join("logs"), &logs).context("keep the cluster's logs")?;
        progress.say(&format!("  the cluster's logs are in {}", logs.display()));
        progress.working("remove the local Kubernetes", || cluster.stop())?;
        summary.step("what is left of it", nothing_since(&before));
        Ok(())
    }
}

/// Nothing is on the machine that was not there before. The kernel takes a moment to let go.
fn nothing_since(before: &Traces) -> Result<Counts> {
    wait::until("no trace is left", Duration::from_secs(20), || {
        let left = Traces::now()?.since(before);
        ensure!(left.is_empty(), "left: {}", left.join(", "));
        Ok(ONE)
    })
}

/// The targets of the group `kubernetes`.
const KUBERNETES_TESTS: [&str; 3] = ["kubernetes", "kubernetes_operator", "kubernetes_store"];

/// In which order they run, how many programs at a time, and which of their tests. What has a namespace
/// of its own does not mind others; a node that hangs or goes away is everybody's, and so are the
/// namespaces that the operator sees, and its end.
const KUBERNETES_STEPS: [(&str, &[&str], usize, &[&str]); 3] = [
    ("kubernetes-nodes", &["kubernetes"], 1, &["--test-threads=1", "nodes::"]),
    (
        "kubernetes-namespaces",
        &["kubernetes", "kubernetes_operator", "kubernetes_store"],
        2,
        &["--test-threads=3", "--skip=namespaced::", "--skip=nodes::", "--skip=uninstall::"],
    ),
    (
        "kubernetes-operator-alone",
        &["kubernetes_operator"],
        1,
        &["--test-threads=1", "namespaced::", "nodes::", "uninstall::"],
    ),
];

/// What the tests on a local Kubernetes need, built.
struct KubernetesTests {
    store: PathBuf,
    /// The name of the first image.
    image: String,
    images: [PathBuf; 2],
    programs: Vec<TestProgram>,
}

/// The names of the test programs in a directory, if it is there.
fn test_targets(directory: &Path) -> Result<Vec<String>> {
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
        }
    }
    names.sort();
    Ok(names)
}

fn tasks(
    step: &str,
    programs: impl IntoIterator<Item = TestProgram>,
    arguments: &[&'static str],
) -> Vec<Task> {
    let task = |program| Task { step: step.to_owned(), program, arguments: arguments.to_vec() };
    programs.into_iter().map(task).collect()
}

/// How cargo is told to run these.
fn selected<T: AsRef<str>>(names: &[T]) -> impl Iterator<Item = String> {
    names.iter().flat_map(|name| ["--test".to_owned(), name.as_ref().to_owned()])
}

/// Most tests wait for elections, time-outs and other processes; those that count what a busy machine
/// does are alone with it.
fn programs_at_once(group: Group) -> usize {
    match group {
        Group::Process | Group::Differential | Group::Clients => 2,
        _ => 1,
    }
}

/// What a test that passes says is not shown otherwise: what it has skipped, how much it has compared.
fn arguments_of(group: Group) -> &'static [&'static str] {
    match group {
        Group::Clients => &["--nocapture"],
        Group::Process | Group::Differential => &["--show-output"],
        _ => &[],
    }
}

fn group_of(test_file: &str) -> Group {
    match test_file {
        "wire" => Group::Differential,
        "chaos" => Group::Chaos,
        "clients" => Group::Clients,
        name if name.starts_with("differential") => Group::Differential,
        name if name.starts_with("kubernetes") => Group::Kubernetes,
        _ => Group::Process,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_skipped_stands_in_the_last_line() {
        let mut summary = Summary::default();
        summary.step("process", Ok(count_results("test result: ok. 1 passed; 0 failed;\n")));
        assert_eq!(summary.last_line(), "1 passed, 0 failed");
        let output = "SKIPPED b: no Node\ntest both ... SKIPPED a: no Python\n\
            SKIPPED b: no Node\ntest result: ok. 2 passed; 0 failed; 0 ignored;\n";
        let mut beside = Summary::default();
        beside.step("clients", Ok(count_results(output)));
        summary.add(beside);
        assert_eq!(summary.last_line(), "3 passed, 0 failed, skipped: a: no Python; b: no Node");
    }

    #[test]
    fn every_test_file_of_the_cluster_is_run() {
        let mut files = test_targets(Path::new("tests")).unwrap();
        files.retain(|name| group_of(name) == Group::Kubernetes);
        assert_eq!(files, KUBERNETES_TESTS);
    }

    #[test]
    fn every_test_file_has_a_group() {
        assert_eq!(group_of("wire"), Group::Differential);
        assert_eq!(group_of("kubernetes_operator"), Group::Kubernetes);
        assert_eq!(group_of("scenarios"), Group::Process);
        assert_eq!(group_of("chaos"), Group::Chaos);
    }
}
