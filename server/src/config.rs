//! What the server is to do: every value checked and defaulted once.
//!
//! In: the texts of [`RawConfig`]. Out: one part per room, so that no room sees flags of another.
//! The rules and their texts are etcd's (`server/embed/config.go`, `Validate`), because people and
//! tools search for them.

mod bootstrap;
mod check;
mod compaction;
mod discovery;
mod file;
#[cfg(feature = "fuzz")]
pub(crate) mod fuzz;
mod log;
mod told;
mod tracing;
mod values;

use std::time::Duration;

use types::{ClusterId, MemberId};

use crate::auth::{self, TokenKind};
use crate::cli::value::{parse_uint32, parse_urls};
use crate::cli::{CliError, RawConfig};
use crate::gates::FeatureGates;
use crate::urls::Url;
use values::{Values, value_error};

pub use bootstrap::{ClusterState, InitialCluster};
pub use compaction::{AutoCompaction, Retention};
pub use discovery::{Discovery, Registry};
pub use log::LogRotation;
pub use tracing::{SAMPLING_RATE_MAX, TracingConfig};

/// What gRPC may carry around a request (`server/embed`, `grpcOverheadBytes`).
pub const GRPC_OVERHEAD_BYTES: usize = 512 * 1024;
/// grpc-go's least time between pings when etcd sets none.
const KEEPALIVE_MIN_TIME_UNSET: Duration = Duration::from_secs(300);
/// The quota when none is given (`server/storage/quota.go`).
pub const QUOTA_BYTES_DEFAULT: u64 = 2 * 1024 * 1024 * 1024;

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    pub name: String,
    pub data_dir: String,
    /// A directory of its own for the log, if wanted.
    pub wal_dir: Option<String>,
    pub engine: Engine,
    pub raft: RaftConfig,
    pub cluster: ClusterConfig,
    pub listen: ListenConfig,
    pub limits: Limits,
    pub compaction: AutoCompaction,
    pub log: LogConfig,
    /// Where spans of calls go, if they are wanted.
    pub tracing: Option<TracingConfig>,
    /// Nothing of the process is to be swapped out.
    pub memory_lock: bool,
    pub http: HttpConfig,
    pub gates: FeatureGates,
    pub auth: AuthConfig,
    /// How often a watch that wants it hears of progress.
    pub watch_progress_interval: Duration,
    pub corruption: CorruptionChecks,
    /// How often the leader looks whether a downgrade is complete; zero for never.
    pub downgrade_check: Duration,
    pub warning_apply: Duration,
    pub warning_unary: Duration,
    /// What to log as warnings once there is a log.
    pub warnings: Vec<String>,
}

/// How often the leader compares the members' data.
#[derive(Clone, Copy, Debug)]
pub struct CorruptionChecks {
    /// The newest state; zero for never.
    pub periodic: Duration,
    /// The state at the last compaction, if feature gate CompactHashCheck is on; see
    /// [`Config::compaction_checks`].
    pub compactions: Duration,
}

/// Which engine keeps the values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    Revlog,
    Sled,
}

/// Times and sizes of the consensus.
#[derive(Clone, Debug)]
pub struct RaftConfig {
    pub heartbeat: Duration,
    pub election_timeout: Duration,
    pub pre_vote: bool,
    /// Entries between images.
    pub snapshot_count: u64,
    /// Entries that stay in the log below an image, for slow followers.
    pub catch_up_entries: u64,
}

/// How the cluster is formed and changed.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    pub state: ClusterState,
    pub token: String,
    pub initial: InitialCluster,
    /// Where the first members are found if `initial` does not name them.
    pub discovery: Option<Discovery>,
    pub advertise_peer_urls: Vec<Url>,
    pub advertise_client_urls: Vec<Url>,
    pub strict_reconfig_check: bool,
    pub learners_max: usize,
    pub force_new_cluster: bool,
    /// Refuse to be part of any other cluster.
    pub expect_cluster_id: Option<ClusterId>,
    /// Refuse to be any other member.
    pub expect_member_id: Option<MemberId>,
}

impl ClusterConfig {
    /// A member does not start in a cluster with more learners than it allows (etcd:
    /// `ValidateMaxLearnerConfig`).
    pub(crate) fn check_learners(
        &self,
        are_learners: impl Iterator<Item = bool>,
    ) -> Result<(), ConfigError> {
        let (learners, max) = (are_learners.filter(|is| *is).count(), self.learners_max);
        if learners <= max {
            return Ok(());
        }
        refuse(format!(
            "membership: too many learner members in cluster: there are {learners}, and --max-learners is \
             {max}; start with more, or promote or remove learners first"
        ))
    }
}

/// Where and how connections are accepted.
#[derive(Clone, Debug)]
pub struct ListenConfig {
    pub peer_urls: Vec<Url>,
    pub client_urls: Vec<Url>,
    /// When not empty, HTTP is served here and not on `client_urls`.
    pub client_http_urls: Vec<Url>,
    pub metrics_urls: Vec<Url>,
    pub client_tls: TlsConfig,
    pub peer_tls: TlsConfig,
    /// Make certificates for clients, or for members, if none are given.
    pub client_auto_tls: bool,
    pub peer_auto_tls: bool,
    /// How many years those are valid.
    pub self_signed_years: u64,
    pub streams_max: u32,
    /// How often the server pings a silent connection; none to never do so.
    pub keepalive_interval: Option<Duration>,
    pub keepalive_timeout: Option<Duration>,
    /// Clients must not ping more often than this.
    pub keepalive_min_time: Duration,
    pub reuse_port: bool,
}

/// Files and rules of TLS on one kind of listener.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsConfig {
    pub cert_file: String,
    pub key_file: String,
    /// What this member shows when it is the client; the pair above if empty.
    pub client_cert_file: String,
    pub client_key_file: String,
    pub trusted_ca_file: String,
    pub client_cert_auth: bool,
    pub crl_file: String,
    pub allowed_cns: Vec<String>,
    pub allowed_hostnames: Vec<String>,
    pub skip_client_san_verification: bool,
    pub cipher_suites: Vec<String>,
    pub min_version: TlsVersion,
    pub max_version: TlsVersion,
    /// The server made the certificate itself; members do not check each other's then.
    pub is_self_signed: bool,
}

/// Versions of TLS that may be spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    Tls12,
    #[default]
    Tls13,
}

/// How callers are recognised.
#[derive(Clone, Debug)]
pub struct AuthConfig {
    pub tokens: TokenKind,
    /// What hashing a password costs: two to the power of this.
    pub bcrypt_cost: u32,
}

/// How much a client may ask for.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub request_bytes_max: usize,
    pub txn_ops_max: usize,
    /// Bytes the store may take; none when there is no limit.
    pub quota_bytes: Option<u64>,
    /// Bytes of memory for answers that are read; none for a part of what the process may have.
    pub read_memory_bytes: Option<u64>,
}

/// Where logs go.
#[derive(Clone, Debug)]
pub struct LogConfig {
    pub outputs: Vec<LogOutput>,
    pub level: LogLevel,
    pub format: LogFormat,
    /// How the one file among the outputs makes room for itself, if it does.
    pub rotation: Option<LogRotation>,
}

/// One target of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogOutput {
    Stderr,
    Stdout,
    File(String),
}

/// The least severity that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    Debug,
    Info,
    Warn,
    Error,
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Json,
    Console,
}

/// What HTTP serves and to whom.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// Whether somebody may ask for traces of calls.
    pub traces: bool,
    pub gateway: bool,
    /// `--enable-pprof`, or a log that tells everything: profiles, and the level of the log.
    pub profiling: bool,
    /// Origins that may read answers; `*` alone means all.
    pub cors: Vec<String>,
    /// Hosts that plain HTTP requests may name; `*` or nothing means all.
    pub host_whitelist: Vec<String>,
    /// `--metrics=extensive`: also histograms of gRPC calls.
    pub extensive_metrics: bool,
}

/// Why a configuration cannot be used, in etcd's words where etcd has some.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

impl From<CliError> for ConfigError {
    fn from(error: CliError) -> Self {
        ConfigError(error.to_string())
    }
}

fn refuse<T>(text: impl Into<String>) -> Result<T, ConfigError> {
    Err(ConfigError(text.into()))
}

impl Config {
    /// How often the leader compares the state at the last compaction, if it does.
    pub(crate) fn compaction_checks(&self) -> Option<Duration> {
        self.gates.enabled("CompactHashCheck").then_some(self.corruption.compactions)
    }

    /// Makes sense of the command line, or of the configuration file that it names.
    pub fn load(raw: RawConfig) -> Result<Self, ConfigError> {
        match &raw.config_file {
            Some(path) => Self::from_raw(file::read(path)?),
            None => Self::from_raw(raw),
        }
    }

    /// Checks and defaults every value.
    pub fn from_raw(raw: RawConfig) -> Result<Self, ConfigError> {
        let mut warnings = raw.check_supported()?;
        let gates = gates_of(&raw)?;
        warnings.extend(gates.check().map_err(ConfigError)?);
        let values = Values(&raw);
        let listen = listen_of(&values)?;
        let log = log::log_of(&values, &mut warnings)?;
        let auth = auth_of(&values, &mut warnings)?;
        let mut config = Config {
            name: values.text("name"),
            data_dir: values.text("data-dir"),
            wal_dir: Some(values.text("wal-dir")).filter(|dir| !dir.is_empty()),
            engine: if raw.text("backend-engine") == "sled" {
                Engine::Sled
            } else {
                Engine::Revlog
            },
            raft: raft_of(&values)?,
            cluster: cluster_of(&values, &raw, &listen)?,
            listen,
            limits: limits_of(&values)?,
            compaction: AutoCompaction::parse(
                raw.text("auto-compaction-mode"),
                raw.text("auto-compaction-retention"),
            )?,
            log,
            tracing: tracing::tracing_of(&values)?,
            memory_lock: values.boolean("memory-mlock")?,
            http: http_of(&values, &mut warnings)?,
            gates,
            auth,
            watch_progress_interval: values
                .duration("watch-progress-notify-interval")?
                .unwrap_or(Duration::from_secs(600)),
            corruption: corruption_of(&values)?,
            downgrade_check: values.duration("downgrade-check-time")?.unwrap_or_default(),
            warning_apply: values.duration("warning-apply-duration")?.unwrap_or_default(),
            warning_unary: values
                .duration("warning-unary-request-duration")?
                .unwrap_or(Duration::from_millis(300)),
            warnings,
        };
        config.check()?;
        if config.data_dir.is_empty() {
            config.data_dir = format!("{}.etcd", config.name);
            config
                .warnings
                .push(format!("'data-dir' was empty; using default {}", config.data_dir));
        }
        Ok(config)
    }
}

fn corruption_of(values: &Values<'_>) -> Result<CorruptionChecks, ConfigError> {
    let periodic = values.duration("corrupt-check-time")?.unwrap_or_default();
    let Some(compactions) = values.duration("compact-hash-check-time")? else {
        let text = values.text("compact-hash-check-time");
        let set = if text.starts_with('-') { &text } else { "0s" };
        return refuse(format!("--compact-hash-check-time must be >0 (set to {set})"));
    };
    Ok(CorruptionChecks { periodic, compactions })
}

fn gates_of(raw: &RawConfig) -> Result<FeatureGates, ConfigError> {
    let mut gates = FeatureGates::default();
    for (name, value) in &raw.gates {
        gates.set(name, *value).map_err(ConfigError)?;
    }
    gates.set_from_text(raw.text("feature-gates")).map_err(ConfigError)?;
    Ok(gates)
}

fn raft_of(values: &Values<'_>) -> Result<RaftConfig, ConfigError> {
    let heartbeat = values.unsigned("heartbeat-interval")?;
    let election = values.unsigned("election-timeout")?;
    if heartbeat == 0 {
        return refuse("--heartbeat-interval must be >0 (set to 0ms)");
    }
    if election == 0 {
        return refuse("--election-timeout must be >0 (set to 0ms)");
    }
    if heartbeat.saturating_mul(5) > election {
        return refuse(format!(
            "--election-timeout[{election}ms] should be at least as 5 times as --heartbeat-interval[{heartbeat}ms]"
        ));
    }
    if election > check::ELECTION_MILLIS_MAX {
        return refuse(format!(
            "--election-timeout[{election}ms] is too long, and should be set less than {}ms",
            check::ELECTION_MILLIS_MAX
        ));
    }
    Ok(RaftConfig {
        heartbeat: Duration::from_millis(heartbeat),
        election_timeout: Duration::from_millis(election),
        pre_vote: values.boolean("pre-vote")?,
        snapshot_count: values.unsigned("snapshot-count")?,
        catch_up_entries: values.unsigned("snapshot-catchup-entries")?,
    })
}

fn cluster_of(
    values: &Values<'_>,
    raw: &RawConfig,
    listen: &ListenConfig,
) -> Result<ClusterConfig, ConfigError> {
    let mut advertise_peer_urls = values.urls("initial-advertise-peer-urls")?;
    let mut advertise_client_urls = values.urls("advertise-client-urls")?;
    let from_flags = raw.config_file.is_none();
    if from_flags && raw.is_set("listen-client-urls") && !raw.is_set("advertise-client-urls") {
        return refuse(
            "--advertise-client-urls is required when --listen-client-urls is set explicitly",
        );
    }
    if advertise_client_urls.is_empty() {
        advertise_client_urls = parse_urls(check::CLIENT_URL_DEFAULT).map_err(value_error)?;
    }
    if advertise_peer_urls.is_empty() {
        advertise_peer_urls = parse_urls(check::PEER_URL_DEFAULT).map_err(value_error)?;
    }
    check::replace_unspecified_hosts(&mut advertise_peer_urls, &mut advertise_client_urls, listen);
    let name = values.text("name");
    let discovery = Discovery::of(values, raw)?;
    let mut initial = values.text("initial-cluster");
    let is_default = initial == check::INITIAL_CLUSTER_DEFAULT && name != "default";
    if is_default || discovery.is_some() {
        let own = advertise_peer_urls.iter().map(|url| format!("{name}={url}"));
        initial = own.collect::<Vec<_>>().join(",");
    }
    let token = match &discovery {
        Some(Discovery::Registry(registry)) => registry.token.clone(),
        _ => values.text("initial-cluster-token"),
    };
    Ok(ClusterConfig {
        state: match raw.text("initial-cluster-state") {
            "existing" => ClusterState::Existing,
            "new" | "" => ClusterState::New,
            other => return refuse(format!("unexpected clusterState {other:?}")),
        },
        token,
        initial: InitialCluster::parse(&initial)
            .map_err(|error| ConfigError(format!("error setting up initial cluster: {error}")))?,
        discovery,
        advertise_peer_urls,
        advertise_client_urls,
        strict_reconfig_check: values.boolean("strict-reconfig-check")?,
        learners_max: usize::try_from(values.signed("max-learners")?)
            .map_err(|_| ConfigError("--max-learners must be 0 or more".to_owned()))?,
        force_new_cluster: values.boolean("force-new-cluster")?,
        expect_cluster_id: values.identity("expect-cluster-id")?.map(ClusterId),
        expect_member_id: values.identity("expect-member-id")?.map(MemberId),
    })
}

fn listen_of(values: &Values<'_>) -> Result<ListenConfig, ConfigError> {
    let or_default = |urls: Vec<Url>, default: &str| match urls.is_empty() {
        true => parse_urls(default).map_err(value_error),
        false => Ok(urls),
    };
    Ok(ListenConfig {
        peer_urls: or_default(values.urls("listen-peer-urls")?, check::PEER_URL_DEFAULT)?,
        client_urls: or_default(values.urls("listen-client-urls")?, check::CLIENT_URL_DEFAULT)?,
        client_http_urls: values.urls("listen-client-http-urls")?,
        metrics_urls: values.urls("listen-metrics-urls")?,
        client_tls: tls_of(values, "")?,
        peer_tls: tls_of(values, "peer-")?,
        client_auto_tls: values.boolean("auto-tls")?,
        peer_auto_tls: values.boolean("peer-auto-tls")?,
        self_signed_years: values.unsigned("self-signed-cert-validity")?,
        streams_max: parse_uint32(&values.text("max-concurrent-streams")).map_err(value_error)?,
        keepalive_interval: values.duration("grpc-keepalive-interval")?,
        keepalive_timeout: values.duration("grpc-keepalive-timeout")?,
        // Without the flag's rule grpc-go has one of its own.
        keepalive_min_time: values
            .duration("grpc-keepalive-min-time")?
            .unwrap_or(KEEPALIVE_MIN_TIME_UNSET),
        reuse_port: values.boolean("socket-reuse-port")?,
    })
}

/// Peers' flags begin with `peer-`; clients' have no prefix, or `client-` where that reads better.
fn tls_of(values: &Values<'_>, prefix: &str) -> Result<TlsConfig, ConfigError> {
    let is_peer = !prefix.is_empty();
    let name = |suffix: &str| format!("{prefix}{suffix}");
    let text = |suffix: &str| values.text(&name(suffix));
    let version = |flag: &str, empty: TlsVersion| match values.text(flag).as_str() {
        "" => Ok(empty),
        "TLS1.2" => Ok(TlsVersion::Tls12),
        "TLS1.3" => Ok(TlsVersion::Tls13),
        other => {
            refuse(format!("unexpected TLS version {other:?} (must be one of: TLS1.2, TLS1.3)"))
        }
    };
    if values.is_set_to_nothing("cipher-suites") {
        return refuse("unexpected TLS cipher suite \"\"");
    }
    let (crl, hostnames) = match is_peer {
        true => ("peer-crl-file", "peer-cert-allowed-hostname"),
        false => ("client-crl-file", "client-cert-allowed-hostname"),
    };
    Ok(TlsConfig {
        cert_file: text("cert-file"),
        key_file: text("key-file"),
        client_cert_file: text("client-cert-file"),
        client_key_file: text("client-key-file"),
        trusted_ca_file: text("trusted-ca-file"),
        client_cert_auth: values.boolean(&name("client-cert-auth"))?,
        crl_file: values.text(crl),
        allowed_cns: if is_peer { values.texts("peer-cert-allowed-cn") } else { Vec::new() },
        allowed_hostnames: values.texts(hostnames),
        skip_client_san_verification: !is_peer
            || values.boolean("peer-skip-client-san-verification")?,
        cipher_suites: values.texts("cipher-suites"),
        min_version: version("tls-min-version", TlsVersion::Tls12)?,
        max_version: version("tls-max-version", TlsVersion::Tls13)?,
        is_self_signed: false,
    })
}

fn limits_of(values: &Values<'_>) -> Result<Limits, ConfigError> {
    let quota = values.signed("quota-backend-bytes")?;
    Ok(Limits {
        request_bytes_max: usize::try_from(values.unsigned("max-request-bytes")?)
            .unwrap_or(usize::MAX),
        txn_ops_max: usize::try_from(values.unsigned("max-txn-ops")?).unwrap_or(usize::MAX),
        quota_bytes: match quota {
            0 => Some(QUOTA_BYTES_DEFAULT),
            _ => u64::try_from(quota).ok(),
        },
        read_memory_bytes: Some(values.unsigned("max-read-memory-bytes")?).filter(|max| *max > 0),
    })
}

fn auth_of(values: &Values<'_>, warnings: &mut Vec<String>) -> Result<AuthConfig, ConfigError> {
    let tokens = auth::parse_kind(
        &values.text("auth-token"),
        values.unsigned("auth-token-ttl")?,
        &mut |warning| warnings.push(warning),
    );
    let tokens = tokens.map_err(|error| ConfigError(error.to_string()))?;
    let cost = values.unsigned("bcrypt-cost")?;
    let bcrypt_cost = auth::cost(cost).unwrap_or_else(|| {
        warnings.push(format!(
            "use default bcrypt cost instead of the invalid given cost: {cost} is not between 4 \
             and 31"
        ));
        auth::COST_DEFAULT
    });
    Ok(AuthConfig { tokens, bcrypt_cost })
}

fn http_of(values: &Values<'_>, warnings: &mut Vec<String>) -> Result<HttpConfig, ConfigError> {
    let metrics = values.text("metrics");
    if !matches!(metrics.as_str(), "extensive" | "basic") {
        // etcd takes anything else for `basic`.
        warnings.push(format!(
            "unknown --metrics level {metrics:?}, using basic; known are basic and extensive"
        ));
    }
    Ok(HttpConfig {
        traces: values.text("log-level") == "debug",
        gateway: values.boolean("enable-grpc-gateway")?,
        profiling: values.boolean("enable-pprof")? || values.text("log-level") == "debug",
        cors: values.texts("cors"),
        host_whitelist: values.texts("host-whitelist"),
        extensive_metrics: metrics == "extensive",
    })
}

#[cfg(test)]
mod tests;
