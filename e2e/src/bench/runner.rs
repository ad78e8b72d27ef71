//! Starts the servers, asks the workloads of both in turn, and collects the samples.
//!
//! Both servers run at the same time, each idle while the other is measured, and every case is
//! measured on one and at once on the other, so that whatever else the machine does hits both. The
//! order changes from round to round. Each round has fresh data directories on the same disk. The
//! flags are the same; that the durability is too is checked by killing both after the puts and
//! looking whether everything that was acknowledged is there.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::access;
use super::fan_out::FanOut;
use super::latency::Histogram;
use super::protobuf::{bytes, number, put_bytes};
use super::resources;
use super::swarm::{Load, Swarm, call_once};
use super::wire::{self, Target};
use super::workloads::{CompareAndSwaps, Keyspace, Puts, RANGE, Reads, STATUS};
use crate::processes::{Cluster, Member, ServerOptions, Tls};

/// The flags of both servers besides names, URLs and directories.
pub const FLAGS: [&str; 2] = ["--quota-backend-bytes=8589934592", "--log-level=error"];

const CALL_LIMIT: Duration = Duration::from_secs(60);
const FILL_LIMIT: Duration = Duration::from_secs(600);
/// Calls in flight while keys are filled in.
const FILL_IN_FLIGHT: usize = 200;
const FILL_CONNECTIONS: usize = 10;

/// The two that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Our server.
    Ours,
    /// Go etcd.
    Etcd,
}

impl Side {
    /// Both, ours first.
    pub const BOTH: [Side; 2] = [Side::Ours, Side::Etcd];
}

/// What a case asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Puts to random keys.
    Put,
    /// Linearizable reads of one key.
    GetLinearizable,
    /// Serializable reads of one key.
    GetSerializable,
    /// Linearizable ranges of 1000 keys.
    Range,
    /// Compare-and-swap.
    Txn,
    /// One key to as many watchers as the width says.
    Watch,
    /// Filling in many keys, the memory they take, and starting again with them.
    Start,
}

impl Work {
    /// How it is called in the table.
    pub fn name(self) -> &'static str {
        match self {
            Work::Put => "put",
            Work::GetLinearizable => "get, linearizable",
            Work::GetSerializable => "get, serializable",
            Work::Range => "range of 1000",
            Work::Txn => "txn compare-and-swap",
            Work::Watch => "watch fan-out",
            Work::Start => "fill",
        }
    }

    /// How it is called on the command line.
    pub fn group(self) -> &'static str {
        match self {
            Work::Put => "put",
            Work::GetLinearizable | Work::GetSerializable => "get",
            Work::Range => "range",
            Work::Txn => "txn",
            Work::Watch => "watch",
            Work::Start => "start",
        }
    }
}

/// What stands between a client and the keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Guard {
    /// Nothing.
    #[default]
    Open,
    /// TLS, with a certificate of the server.
    Tls,
    /// Authentication: a user with a simple token, whose role may use the prefix of all keys.
    Auth,
}

impl Guard {
    /// All of them.
    pub const ALL: [Guard; 3] = [Guard::Open, Guard::Tls, Guard::Auth];

    /// How it is called in the table, after the workload's name.
    pub fn name(self) -> &'static str {
        match self {
            Guard::Open => "",
            Guard::Tls => ", TLS",
            Guard::Auth => ", auth on",
        }
    }
}

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// What is asked.
    pub work: Work,
    /// What the servers ask for first.
    pub guard: Guard,
    /// Of how many members.
    pub members: usize,
    /// Calls in flight, or watchers.
    pub width: usize,
}

impl Case {
    /// How it is called in the table.
    pub fn name(self) -> String {
        format!("{}{}", self.work.name(), self.guard.name())
    }

    /// How it is called on the command line.
    pub fn group(self) -> &'static str {
        match self.guard {
            Guard::Open => self.work.group(),
            Guard::Tls => "tls",
            Guard::Auth => "auth",
        }
    }

    fn connections(self) -> usize {
        match self.width {
            1 => 1,
            width if width <= 100 => width.min(10),
            _ => 100,
        }
    }
}

/// The rows of the whole benchmark, puts first because they come before the check of durability.
pub const CASES: [Case; 25] = {
    const fn case(work: Work, members: usize, width: usize) -> Case {
        Case { work, guard: Guard::Open, members, width }
    }
    const fn guarded_puts(guard: Guard, width: usize) -> Case {
        Case { work: Work::Put, guard, members: 1, width }
    }
    [
        case(Work::Put, 1, 1),
        case(Work::Put, 1, 100),
        case(Work::Put, 1, 1000),
        case(Work::GetLinearizable, 1, 1),
        case(Work::GetLinearizable, 1, 100),
        case(Work::GetLinearizable, 1, 1000),
        case(Work::GetSerializable, 1, 1),
        case(Work::GetSerializable, 1, 100),
        case(Work::GetSerializable, 1, 1000),
        case(Work::Range, 1, 10),
        case(Work::Txn, 1, 100),
        case(Work::Txn, 1, 1000),
        case(Work::Watch, 1, 1),
        case(Work::Watch, 1, 100),
        case(Work::Watch, 1, 10_000),
        case(Work::Put, 3, 1),
        case(Work::Put, 3, 100),
        case(Work::Put, 3, 1000),
        case(Work::GetLinearizable, 3, 100),
        case(Work::GetLinearizable, 3, 1000),
        guarded_puts(Guard::Tls, 100),
        guarded_puts(Guard::Tls, 1000),
        guarded_puts(Guard::Auth, 100),
        guarded_puts(Guard::Auth, 1000),
        case(Work::Start, 1, FILL_IN_FLIGHT),
    ]
};

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Our server's program.
    pub ours: PathBuf,
    /// Go etcd's program.
    pub etcd: PathBuf,
    /// Where the data directories are made.
    pub directory: PathBuf,
    /// How often everything is measured.
    pub rounds: usize,
    /// How long one measurement takes.
    pub duration: Duration,
    /// How long the load runs before it.
    pub warm_up: Duration,
    /// How many keys the reads choose from.
    pub keys: u64,
    /// How many keys the start has to load.
    pub start_keys: u64,
    /// The rows.
    pub cases: Vec<Case>,
}

/// One measurement of one side.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// Calls or events per second.
    pub rate: f64,
    /// Latencies in microseconds: half, 99 and 99.9 of a hundred calls are faster.
    pub latency: [f64; 3],
    /// CPU time of all members per call or event, in microseconds.
    pub server_cpu: f64,
    /// CPU time of the client per call or event, in microseconds.
    pub client_cpu: f64,
    /// Cores that neither the servers nor the client have used.
    pub foreign_cores: f64,
    /// `/proc/loadavg` at the end.
    pub load_average: String,
    /// Of the start only.
    pub start: Option<Start>,
}

/// What many keys cost.
#[derive(Clone, Copy, Debug, Default)]
pub struct Start {
    /// How many keys.
    pub keys: u64,
    /// Resident bytes after they were put.
    pub filled_bytes: u64,
    /// Resident bytes after the start.
    pub started_bytes: u64,
    /// From the start of the process to the answer to a linearizable read.
    pub seconds: f64,
}

/// The samples of a row, ours and Go etcd's.
#[derive(Clone, Debug)]
pub struct Row {
    /// The row.
    pub case: Case,
    /// By side, in the order of `Side::BOTH`.
    pub samples: [Vec<Sample>; 2],
}

/// Runs everything; `say` hears what goes on.
pub fn run(options: &Options, say: &dyn Fn(&str)) -> Result<Vec<Row>> {
    fs::create_dir_all(&options.directory)
        .with_context(|| format!("make {}", options.directory.display()))?;
    let mut rows: Vec<Row> = options
        .cases
        .iter()
        .map(|case| Row { case: *case, samples: [Vec::new(), Vec::new()] })
        .collect();
    for round in 0..options.rounds {
        for guard in Guard::ALL {
            for members in [1, 3] {
                let chosen =
                    |row: &&mut Row| row.case.members == members && row.case.guard == guard;
                let shared = rows.iter_mut().filter(|row| row.case.work != Work::Start);
                let shared: Vec<&mut Row> = shared.filter(chosen).collect();
                if !shared.is_empty() {
                    let round_name = format!("round {} of {}", round + 1, options.rounds);
                    let what = format!("{round_name}, {members} members{}", guard.name());
                    say(&what);
                    run_shared(options, round, shared, say).context(what)?;
                }
            }
        }
        for row in rows.iter_mut().filter(|row| row.case.work == Work::Start) {
            for side in order(round) {
                say(&format!("round {}: start with keys, {side:?}", round + 1));
                let sample = fill_and_start(options, side)
                    .with_context(|| format!("fill and start {side:?}"))?;
                row.samples[side as usize].push(sample);
            }
        }
    }
    Ok(rows)
}

fn order(round: usize) -> [Side; 2] {
    let [first, second] = Side::BOTH;
    if round.is_multiple_of(2) { [first, second] } else { [second, first] }
}

/// The cases that share one pair of clusters.
fn run_shared(
    options: &Options,
    round: usize,
    rows: Vec<&mut Row>,
    say: &dyn Fn(&str),
) -> Result<()> {
    let Some(Case { members, guard, .. }) = rows.first().map(|row| row.case) else {
        return Ok(());
    };
    let mut servers = Side::BOTH
        .into_iter()
        .map(|side| Server::start(options, side, members, guard))
        .collect::<Result<Vec<Server>>>()?;
    let keyspace = Keyspace { name: b'r', size: options.keys };
    for server in &servers {
        fill(&server.leader, keyspace).with_context(|| format!("fill {:?}", server.side))?;
    }
    let mut put = false;
    for (index, row) in rows.into_iter().enumerate() {
        if put && row.case.work != Work::Put {
            for server in &mut servers {
                server.check_durability()?;
            }
        }
        put = row.case.work == Work::Put;
        for side in order(round) {
            let case = row.case;
            let server = &servers[side as usize];
            let sample = measure(options, server, case, index as u8)
                .with_context(|| format!("{case:?} of {side:?}"))?;
            say(&format!(
                "  {:<20} {:>6} {side:?}: {:.0}/s, server {:.1} us, client {:.1} us, foreign {:.2}",
                case.name(),
                case.width,
                sample.rate,
                sample.server_cpu,
                sample.client_cpu,
                sample.foreign_cores,
            ));
            row.samples[side as usize].push(sample);
        }
    }
    Ok(())
}

/// A running cluster of one side.
struct Server {
    side: Side,
    cluster: Cluster,
    guard: Guard,
    leader: Target,
}

impl Server {
    fn start(options: &Options, side: Side, members: usize, guard: Guard) -> Result<Server> {
        let program = match side {
            Side::Ours => &options.ours,
            Side::Etcd => &options.etcd,
        };
        let mut wanted = ServerOptions::one(program);
        wanted.members = members;
        wanted.flags = FLAGS.map(str::to_owned).to_vec();
        if guard == Guard::Tls {
            wanted.tls = Tls::Files;
        }
        let cluster = Cluster::start_below(&wanted, &options.directory)
            .with_context(|| format!("start {side:?}"))?;
        let leader = find_leader(&cluster, guard, None)?;
        if guard == Guard::Auth {
            access::turn_on(&leader, CALL_LIMIT).context("turn authentication on")?;
        }
        let mut server = Server { side, cluster, guard, leader };
        server.find_leader()?;
        Ok(server)
    }

    /// Finds out who leads, and gets a token where that is needed.
    fn find_leader(&mut self) -> Result<()> {
        let token = match self.guard {
            Guard::Open | Guard::Tls => None,
            Guard::Auth => {
                let any = address(&self.cluster.members()[0])?;
                Some(access::authenticate(any, CALL_LIMIT).context("get a token")?)
            }
        };
        self.leader = find_leader(&self.cluster, self.guard, token)?;
        Ok(())
    }

    fn pids(&self) -> Vec<u32> {
        self.cluster.members().iter().filter_map(Member::pid).collect()
    }

    /// Kills all members at once and looks whether what was acknowledged is there after a restart.
    fn check_durability(&mut self) -> Result<()> {
        let acknowledged = revision(&self.leader)?;
        let count = self.cluster.members().len();
        for index in 0..count {
            self.cluster.member_mut(index).kill()?;
        }
        for index in 0..count {
            self.cluster.member_mut(index).launch()?;
        }
        for index in 0..count {
            self.cluster.member_mut(index).wait_until_healthy()?;
        }
        self.find_leader()?;
        let found = revision(&self.leader)?;
        if found < acknowledged {
            bail!("{:?} lost puts at kill -9: {acknowledged} before, {found} after", self.side);
        }
        Ok(())
    }
}

fn address(member: &Member) -> Result<SocketAddr> {
    member.endpoint.parse().with_context(|| format!("parse {}", member.endpoint))
}

/// The revision that a linearizable read of one key answers.
fn revision(server: &Target) -> Result<u64> {
    let mut request = Vec::new();
    put_bytes(&mut request, 1, access::PREFIX);
    let answer = call_once(server, RANGE, &request, CALL_LIMIT)?;
    Ok(number(bytes(&answer, 1), 3))
}

fn find_leader(cluster: &Cluster, guard: Guard, token: Option<String>) -> Result<Target> {
    let deadline = Instant::now() + CALL_LIMIT;
    while Instant::now() < deadline {
        for member in cluster.members() {
            let tls = match guard {
                Guard::Tls => Some(wire::trusting(&member.certificate)?),
                Guard::Open | Guard::Auth => None,
            };
            let target = Target { address: address(member)?, tls, token: token.clone() };
            let status = call_once(&target, STATUS, &[], CALL_LIMIT)?;
            let leader = number(&status, 4);
            if leader != 0 && leader == number(bytes(&status, 1), 2) {
                return Ok(target);
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    bail!("no member says that it is the leader")
}

fn fill(server: &Target, keyspace: Keyspace) -> Result<f64> {
    let mut swarm = Swarm::connect(server, FILL_CONNECTIONS, FILL_IN_FLIGHT)?;
    let measured = swarm.run(&mut Puts::fill(keyspace, FILL_IN_FLIGHT), FILL_LIMIT)?;
    if measured.latencies.count() != keyspace.size {
        bail!("{} of {} keys in {FILL_LIMIT:?}", measured.latencies.count(), keyspace.size);
    }
    Ok(keyspace.size as f64 / measured.elapsed.as_secs_f64())
}

fn measure(options: &Options, server: &Server, case: Case, number: u8) -> Result<Sample> {
    let keyspace = Keyspace { name: b'r', size: options.keys };
    let own = Keyspace { name: b'A' + number, size: options.keys };
    let width = case.width;
    match case.work {
        Work::Put => unary(options, server, case, Puts::random(keyspace, width)),
        Work::GetLinearizable => {
            unary(options, server, case, Reads::new(keyspace, false, 1, width))
        }
        Work::GetSerializable => unary(options, server, case, Reads::new(keyspace, true, 1, width)),
        Work::Range => unary(options, server, case, Reads::new(keyspace, false, 1000, width)),
        Work::Txn => unary(options, server, case, CompareAndSwaps::new(own, width)),
        Work::Watch => {
            let mut fan_out = FanOut::connect(&server.leader, own, width)?;
            fan_out.run(options.warm_up)?;
            let meter = Meter::start(server.pids())?;
            let (events, measured) = fan_out.run(options.duration)?;
            meter.stop(events, measured.elapsed, &measured.latencies)
        }
        Work::Start => bail!("the start has servers of its own"),
    }
}

fn unary(options: &Options, server: &Server, case: Case, mut load: impl Load) -> Result<Sample> {
    let mut swarm = Swarm::connect(&server.leader, case.connections(), case.width)?;
    swarm.run(&mut load, options.warm_up)?;
    let meter = Meter::start(server.pids())?;
    let measured = swarm.run(&mut load, options.duration)?;
    meter.stop(measured.latencies.count(), measured.elapsed, &measured.latencies)
}

fn fill_and_start(options: &Options, side: Side) -> Result<Sample> {
    let mut server = Server::start(options, side, 1, Guard::Open)?;
    let keyspace = Keyspace { name: b'm', size: options.start_keys };
    let meter = Meter::start(server.pids())?;
    let mut swarm = Swarm::connect(&server.leader, FILL_CONNECTIONS, FILL_IN_FLIGHT)?;
    let measured = swarm.run(&mut Puts::fill(keyspace, FILL_IN_FLIGHT), FILL_LIMIT)?;
    let mut sample =
        meter.stop(measured.latencies.count(), measured.elapsed, &measured.latencies)?;
    drop(swarm);
    let before = revision(&server.leader)?;
    let pid = |server: &Server| server.pids().first().copied().context("the server runs");
    let filled_bytes = resources::resident_bytes(pid(&server)?)?;
    server.cluster.member_mut(0).stop()?;
    let began = Instant::now();
    server.cluster.member_mut(0).launch()?;
    let after = loop {
        // Until it listens, connecting is refused; until it serves, the call waits.
        match revision(&server.leader) {
            Ok(revision) => break revision,
            Err(error) if began.elapsed() > CALL_LIMIT => {
                return Err(error.context("the server does not answer after its start"));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    };
    let seconds = began.elapsed().as_secs_f64();
    if after < before {
        bail!("revision {before} before the restart, {after} after it");
    }
    let started_bytes = resources::resident_bytes(pid(&server)?)?;
    sample.start = Some(Start { keys: keyspace.size, filled_bytes, started_bytes, seconds });
    Ok(sample)
}

/// CPU time at the beginning of a measurement.
struct Meter {
    pids: Vec<u32>,
    servers: Duration,
    client: Duration,
    machine: Duration,
}

impl Meter {
    fn start(pids: Vec<u32>) -> Result<Meter> {
        Ok(Meter {
            servers: resources::cpu_time(&pids)?,
            client: resources::own_cpu_time()?,
            machine: resources::machine_cpu_time()?,
            pids,
        })
    }

    fn stop(self, count: u64, elapsed: Duration, latencies: &Histogram) -> Result<Sample> {
        if count == 0 {
            bail!("nothing was answered in {elapsed:?}");
        }
        let servers = resources::cpu_time(&self.pids)?.saturating_sub(self.servers);
        let client = resources::own_cpu_time()?.saturating_sub(self.client);
        let machine = resources::machine_cpu_time()?.saturating_sub(self.machine);
        let foreign = machine.saturating_sub(servers).saturating_sub(client);
        let each = |time: Duration| time.as_secs_f64() * 1e6 / count as f64;
        Ok(Sample {
            rate: count as f64 / elapsed.as_secs_f64(),
            latency: [0.5, 0.99, 0.999].map(|share| latencies.quantile(share)),
            server_cpu: each(servers),
            client_cpu: each(client),
            foreign_cores: foreign.as_secs_f64() / elapsed.as_secs_f64(),
            load_average: resources::load_average(),
            start: None,
        })
    }
}
