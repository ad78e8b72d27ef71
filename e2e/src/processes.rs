//! Servers as child processes: on free ports, in their own directories, ready when started.
//!
//! The same code starts Go etcd and our server, because both take the same flags. Readiness is a
//! condition (`/health` says so), never a delay. A process is ended by its own handle and dies with
//! it, so a failed test leaves nothing behind.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::authority::{Pair, flag};
pub use crate::ports::free_ports;

/// How long a server may take until it is ready.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a condition of another process is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// How often a start is tried again on other ports when something took them first.
const PORT_ATTEMPTS: u32 = 5;

/// What to start.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// The server's program, Go etcd's or ours.
    pub program: PathBuf,
    /// How many members.
    pub members: usize,
    /// Flags for every member after the usual ones.
    pub flags: Vec<String>,
    /// Whether clients are served over TLS, and with whose certificate.
    pub tls: Tls,
    /// Whether members speak TLS to each other, and with whose certificate.
    pub peer_tls: PeerTls,
}

/// How members talk to each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PeerTls {
    /// Without TLS.
    #[default]
    Off,
    /// With certificates that they make for themselves (`--peer-auto-tls`).
    Auto,
    /// With one pair for all of them.
    Given(Pair),
}

/// How clients are served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Tls {
    /// Without TLS.
    #[default]
    Off,
    /// With a certificate that is made here and signs itself.
    Files,
    /// With a certificate that the server makes for itself (`--auto-tls`).
    Auto,
    /// With a pair of the test's.
    Given {
        /// The certificate.
        cert: PathBuf,
        /// Its key.
        key: PathBuf,
    },
}

impl ServerOptions {
    /// One member with nothing unusual.
    pub fn one(program: &Path) -> ServerOptions {
        ServerOptions {
            program: program.to_path_buf(),
            members: 1,
            flags: Vec::new(),
            tls: Tls::Off,
            peer_tls: PeerTls::Off,
        }
    }
}

/// A running cluster; ends when dropped.
#[derive(Debug)]
pub struct Cluster {
    members: Vec<Member>,
    directory: TempDir,
}

/// A member of a cluster.
#[derive(Debug)]
pub struct Member {
    /// Its name, `m1` and so on.
    pub name: String,
    /// Address for clients, host and port.
    pub endpoint: String,
    /// URL for peers.
    pub peer_url: String,
    /// Its data directory.
    pub data_directory: PathBuf,
    /// Address that serves `/health` without TLS.
    health: String,
    /// The certificate that clients have to trust, if they are served over TLS.
    pub certificate: PathBuf,
    log: PathBuf,
    command: Vec<String>,
    tls: Tls,
    child: Option<Child>,
    /// Some of its cluster never start, so that no version is ever decided.
    lacks_members: bool,
}

impl Cluster {
    /// Starts a new cluster and waits until every member is healthy.
    pub fn start(options: &ServerOptions) -> Result<Cluster> {
        Cluster::start_below(options, &std::env::temp_dir())
    }

    /// The same after every member's data directory was filled by `prepare`.
    pub fn start_prepared(
        options: &ServerOptions,
        prepare: &dyn Fn(&Member) -> Result<()>,
    ) -> Result<Cluster> {
        Cluster::try_start(options, &std::env::temp_dir(), 0, prepare)
    }

    /// The same without the last `absent` of its founders, which are never started.
    pub fn start_without(options: &ServerOptions, absent: usize) -> Result<Cluster> {
        Cluster::try_start(options, &std::env::temp_dir(), absent, &|_| Ok(()))
    }

    /// The same with the data below a directory, for who cares on which disk it lies.
    pub fn start_below(options: &ServerOptions, parent: &Path) -> Result<Cluster> {
        let mut attempt = 1;
        loop {
            match Cluster::try_start(options, parent, 0, &|_| Ok(())) {
                // Between choosing a port and binding it another process can take it.
                Err(error)
                    if attempt < PORT_ATTEMPTS
                        && format!("{error:#}")
                            .to_lowercase()
                            .contains("address already in use") =>
                {
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    fn try_start(
        options: &ServerOptions,
        parent: &Path,
        absent: usize,
        prepare: &dyn Fn(&Member) -> Result<()>,
    ) -> Result<Cluster> {
        let directory =
            tempfile::tempdir_in(parent).context("create a directory for the cluster")?;
        let ports = free_ports(options.members * 3)?;
        let mut members: Vec<Member> = ports
            .chunks_exact(3)
            .enumerate()
            .map(|(index, ports)| Member::new(directory.path(), index, ports, options))
            .collect();
        if options.tls == Tls::Files {
            make_certificate(directory.path())?;
        }
        let initial_cluster = members
            .iter()
            .map(|member| format!("{}={}", member.name, member.peer_url))
            .collect::<Vec<_>>()
            .join(",");
        let started = members.len() - absent;
        for member in &mut members[..started] {
            member.command = member.command_line(options, &initial_cluster);
            member.lacks_members = absent > 0;
            prepare(member)?;
            member.spawn()?;
        }
        for member in &mut members[..started] {
            member.wait_until_healthy()?;
        }
        Ok(Cluster { members, directory })
    }

    /// The members in the order of their names.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// A member that is to join members `of` this cluster, not started yet: add it to the cluster
    /// by its peer URL, then launch it. Answers its place among the members.
    pub fn prepare_to_join(&mut self, options: &ServerOptions, of: &[usize]) -> Result<usize> {
        let ports = free_ports(3)?;
        let mut member = Member::new(self.directory.path(), self.members.len(), &ports, options);
        let initial: Vec<String> = of
            .iter()
            .map(|index| &self.members[*index])
            .chain([&member])
            .map(|member| format!("{}={}", member.name, member.peer_url))
            .collect();
        member.command = member.command_line(options, &initial.join(","));
        member.command.push("--initial-cluster-state=existing".to_owned());
        self.members.push(member);
        Ok(self.members.len() - 1)
    }

    /// A member, to stop or restart it.
    pub fn member_mut(&mut self, index: usize) -> &mut Member {
        &mut self.members[index]
    }
}

impl Member {
    fn new(directory: &Path, index: usize, ports: &[u16], options: &ServerOptions) -> Member {
        let name = format!("m{}", index + 1);
        let peer_scheme = if options.peer_tls == PeerTls::Off { "http" } else { "https" };
        Member {
            endpoint: format!("127.0.0.1:{}", ports[0]),
            peer_url: format!("{peer_scheme}://127.0.0.1:{}", ports[1]),
            health: format!("127.0.0.1:{}", ports[2]),
            data_directory: directory.join(&name),
            certificate: match &options.tls {
                Tls::Auto => directory.join(&name).join("fixtures/client/cert.pem"),
                Tls::Given { cert, .. } => cert.clone(),
                Tls::Files | Tls::Off => directory.join("cert.pem"),
            },
            log: directory.join(format!("{name}.log")),
            name,
            command: Vec::new(),
            tls: options.tls.clone(),
            child: None,
            lacks_members: false,
        }
    }

    /// The address that serves health and metrics without TLS, host and port.
    pub fn metrics_endpoint(&self) -> &str {
        &self.health
    }

    /// The URL for clients.
    pub fn client_url(&self) -> String {
        let scheme = if self.tls == Tls::Off { "http" } else { "https" };
        format!("{scheme}://{}", self.endpoint)
    }

    /// The process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// What `/metrics` shows.
    pub fn metrics(&self) -> Result<String> {
        http_get(&self.health, "/metrics")
    }

    /// What the process has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Ends the process at once, as a crash would.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill().context("kill the server")?;
            child.wait().context("wait for the killed server")?;
        }
        Ok(())
    }

    /// Adds a flag for the next start.
    pub fn set_flag(&mut self, flag: &str) {
        self.command.push(flag.to_owned());
    }

    /// Takes back flags that begin so, for the next start.
    pub fn clear_flag(&mut self, beginning: &str) {
        self.command.retain(|flag| !flag.starts_with(beginning));
    }

    /// Starts the process in the expectation that it ends by itself, and answers how it ended and
    /// what it logged meanwhile.
    pub fn launch_until_end(&mut self) -> Result<(ExitStatus, String)> {
        let before = self.log().len();
        self.launch()?;
        let status = self.wait_until_ended(START_TIMEOUT)?;
        Ok((status, self.log().split_off(before)))
    }

    /// Waits until the process ends, because it was told to or by itself, and answers how it ended.
    pub fn wait_until_ended(&mut self, at_most: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + at_most;
        loop {
            let child = self.child.as_mut().context("the server was started")?;
            if let Some(status) = child.try_wait().context("look at the server")? {
                self.child = None;
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("{} runs although it should have ended:\n{}", self.name, self.log());
            }
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// Lets the next start be one of another program, with the same flags on the same data.
    pub fn set_program(&mut self, program: &Path) {
        if let Some(first) = self.command.first_mut() {
            *first = program.display().to_string();
        }
    }

    /// Asks the process to end and waits for it.
    pub fn stop(&mut self) -> Result<Option<ExitStatus>> {
        let Some(mut child) = self.child.take() else { return Ok(None) };
        signal(child.id(), "TERM")?;
        Ok(Some(child.wait().context("wait for the stopped server")?))
    }

    /// Starts the process again on the same ports and data and waits until it is healthy.
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.launch()?;
        self.wait_until_healthy()
    }

    /// Starts the ended process again on the same ports and data, without waiting.
    pub fn launch(&mut self) -> Result<()> {
        if self.child.is_some() {
            bail!("{} runs already", self.name);
        }
        self.spawn()
    }

    fn command_line(&self, options: &ServerOptions, initial_cluster: &str) -> Vec<String> {
        let mut command = vec![
            options.program.display().to_string(),
            format!("--name={}", self.name),
            format!("--data-dir={}", self.data_directory.display()),
            format!("--listen-client-urls={}", self.client_url()),
            format!("--advertise-client-urls={}", self.client_url()),
            format!("--listen-peer-urls={}", self.peer_url),
            format!("--initial-advertise-peer-urls={}", self.peer_url),
            format!("--initial-cluster={initial_cluster}"),
            format!("--listen-metrics-urls=http://{}", self.health),
            "--initial-cluster-token=e2e".to_owned(),
        ];
        match &options.peer_tls {
            PeerTls::Off => {}
            PeerTls::Auto => command.push("--peer-auto-tls".to_owned()),
            PeerTls::Given(pair) => {
                command.push(flag("peer-cert-file", &pair.cert));
                command.push(flag("peer-key-file", &pair.key));
            }
        }
        match &options.tls {
            Tls::Off => {}
            Tls::Given { cert, key } => {
                command.push(format!("--cert-file={}", cert.display()));
                command.push(format!("--key-file={}", key.display()));
            }
            Tls::Auto => command.push("--auto-tls".to_owned()),
            Tls::Files => {
                let key = self.certificate.with_file_name("key.pem");
                command.push(format!("--cert-file={}", self.certificate.display()));
                command.push(format!("--key-file={}", key.display()));
            }
        }
        command.extend(options.flags.iter().cloned());
        command
    }

    fn spawn(&mut self) -> Result<()> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("open {}", self.log.display()))?;
        let (program, arguments) =
            self.command.split_first().context("a command line begins with its program")?;
        let child = Command::new(program)
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share the log file")?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {program}"))?;
        self.child = Some(child);
        Ok(())
    }

    /// Waits until a launched process is healthy.
    pub fn wait_until_healthy(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        while !self.is_healthy() {
            let child = self.child.as_mut().context("the server was started")?;
            if let Some(status) = child.try_wait().context("look at the server")? {
                self.child = None;
                bail!("{} ended with {status} before it was ready:\n{}", self.name, self.log());
            }
            self.look_again_before(deadline, "ready")?;
        }
        Ok(())
    }

    fn look_again_before(&self, deadline: Instant, awaited: &str) -> Result<()> {
        if Instant::now() > deadline {
            bail!("{} was not {awaited} in {START_TIMEOUT:?}:\n{}", self.name, self.log());
        }
        thread::sleep(POLL_INTERVAL);
        Ok(())
    }

    fn is_healthy(&self) -> bool {
        http_get(&self.health, "/health").is_ok_and(|body| body.contains("\"health\":\"true\""))
            && (self.tls != Tls::Off || self.lacks_members || self.has_decided_versions())
    }

    /// Waits until cluster and storage have this server's version, also after a downgrade that was
    /// taken back.
    pub fn wait_for_its_version(&self) -> Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        while !self.has_decided_versions() {
            self.look_again_before(deadline, "of its version")?;
        }
        Ok(())
    }

    /// A new server raises its cluster and storage versions in the background; until then it tells
    /// old ones.
    fn has_decided_versions(&self) -> bool {
        let Ok(body) = http_get(&self.endpoint, "/version") else { return false };
        let Ok(versions) = serde_json::from_str::<serde_json::Value>(&body) else { return false };
        let minor = |name: &str| {
            let version = versions[name].as_str()?;
            Some(version.rsplit_once('.')?.0.to_owned())
        };
        let server = minor("etcdserver");
        server.is_some() && server == minor("etcdcluster") && server == minor("storage")
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // A failure means that it has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Writes `cert.pem` and `key.pem` for servers on loopback.
fn make_certificate(directory: &Path) -> Result<()> {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])
        .context("make a certificate")?;
    fs::write(directory.join("cert.pem"), made.cert.pem()).context("write the certificate")?;
    fs::write(directory.join("key.pem"), made.signing_key.serialize_pem())
        .context("write the certificate's key")
}

/// Asks `host:port` for a path over HTTP/1 and returns the body.
pub fn http_get(endpoint: &str, path: &str) -> Result<String> {
    let address: SocketAddr = endpoint.parse().with_context(|| format!("parse {endpoint}"))?;
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {endpoint}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").context("an answer has a head and a body")?;
    Ok(body.to_owned())
}

/// Sends a signal by name to one process.
pub fn signal(pid: u32, name: &str) -> Result<()> {
    let status = Command::new("kill")
        .arg(format!("-{name}"))
        .arg(pid.to_string())
        .status()
        .context("run `kill`")?;
    if !status.success() {
        bail!("cannot send {name} to process {pid}: {status}");
    }
    Ok(())
}
