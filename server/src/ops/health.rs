//! `/health`, `/livez` and `/readyz`, with the answers of etcd
//! (`server/etcdserver/api/etcdhttp/health.go`): probes and operators match their texts.
//!
//! In: the path and query of a request, and what the member knows of itself ([`Vitals`]). Out: an
//! answer. A check that reads does what a client would do: a range of one key.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;

use http::StatusCode;
use prometheus::{GaugeVec, IntCounter, IntCounterVec, Opts, Registry};
use tables::AlarmKind;

/// The future of a check.
pub type Check<'c> = Pin<Box<dyn Future<Output = Result<(), String>> + Send + 'c>>;

/// What health is judged by.
pub trait Vitals: Send + Sync + 'static {
    fn has_leader(&self) -> bool;
    fn is_learner(&self) -> bool;
    fn alarms(&self) -> Vec<AlarmKind>;
    /// Reads one key, linearizably or as this member has it; the error is the text a client gets.
    fn read(&self, serializable: bool) -> Check<'_>;
}

/// An answer of a health endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthAnswer {
    pub status: StatusCode,
    pub body: String,
}

/// The outcome of checks, under etcd's names.
#[derive(Clone)]
pub struct HealthMetrics {
    success: IntCounter,
    failures: IntCounter,
    last: GaugeVec,
    total: IntCounterVec,
}

impl HealthMetrics {
    /// # Errors
    /// When a name is taken in `registry`.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = Self {
            success: IntCounter::new(
                "etcd_server_health_success",
                "The total number of successful health checks.",
            )?,
            failures: IntCounter::new(
                "etcd_server_health_failures",
                "The total number of failed health checks.",
            )?,
            last: GaugeVec::new(
                Opts::new("etcd_server_healthcheck", "The last result of each health check."),
                &["type", "name"],
            )?,
            total: IntCounterVec::new(
                Opts::new("etcd_server_healthchecks_total", "Health checks by result."),
                &["type", "name", "status"],
            )?,
        };
        registry.register(Box::new(metrics.success.clone()))?;
        registry.register(Box::new(metrics.failures.clone()))?;
        registry.register(Box::new(metrics.last.clone()))?;
        registry.register(Box::new(metrics.total.clone()))?;
        Ok(metrics)
    }

    fn record(&self, kind: Kind, check: Name, passed: bool) {
        let status = if passed { "success" } else { "error" };
        self.last.with_label_values(&[kind.text(), check.text()]).set(if passed {
            1.0
        } else {
            0.0
        });
        self.total.with_label_values(&[kind.text(), check.text(), status]).inc();
    }
}

/// The two families of checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Livez,
    Readyz,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Name {
    DataCorruption,
    SerializableRead,
    LinearizableRead,
    NonLearner,
}

impl Kind {
    fn text(self) -> &'static str {
        match self {
            Kind::Livez => "livez",
            Kind::Readyz => "readyz",
        }
    }

    fn checks(self) -> &'static [Name] {
        match self {
            Kind::Livez => &[Name::SerializableRead],
            Kind::Readyz => &[
                Name::DataCorruption,
                Name::SerializableRead,
                Name::LinearizableRead,
                Name::NonLearner,
            ],
        }
    }
}

impl Name {
    fn text(self) -> &'static str {
        match self {
            Name::DataCorruption => "data_corruption",
            Name::SerializableRead => "serializable_read",
            Name::LinearizableRead => "linearizable_read",
            Name::NonLearner => "non_learner",
        }
    }

    async fn run(self, vitals: &dyn Vitals) -> Result<(), String> {
        match self {
            Name::DataCorruption if vitals.alarms().contains(&AlarmKind::CORRUPT) => {
                Err("alarm activated: CORRUPT".to_owned())
            }
            Name::NonLearner if vitals.is_learner() => Err("not supported for learner".to_owned()),
            Name::DataCorruption | Name::NonLearner => Ok(()),
            Name::SerializableRead => vitals.read(true).await,
            Name::LinearizableRead => vitals.read(false).await,
        }
    }
}

/// Answers a GET of a health path; none when the path is not one.
pub async fn answer(
    vitals: &dyn Vitals,
    metrics: &HealthMetrics,
    path: &str,
    query: &str,
) -> Option<HealthAnswer> {
    if path == "/health" {
        return Some(health(vitals, metrics, query).await);
    }
    let (kind, checks) = match checks_of(path)? {
        (kind, None) => (kind, not_excluded(kind, query)),
        (kind, Some(check)) => (kind, vec![check]),
    };
    Some(run(vitals, metrics, kind, &checks, query).await)
}

/// What a path under `/livez` or `/readyz` checks: one thing, or all; none when there is no such path.
pub(super) fn checks_of(path: &str) -> Option<(Kind, Option<Name>)> {
    let (kind, rest) = match path.strip_prefix("/livez") {
        Some(rest) => (Kind::Livez, rest),
        None => (Kind::Readyz, path.strip_prefix("/readyz")?),
    };
    if rest.is_empty() {
        return Some((kind, None));
    }
    let name = rest.strip_prefix('/')?;
    Some((kind, Some(*kind.checks().iter().find(|check| check.text() == name)?)))
}

async fn run(
    vitals: &dyn Vitals,
    metrics: &HealthMetrics,
    kind: Kind,
    checks: &[Name],
    query: &str,
) -> HealthAnswer {
    let (mut lines, mut healthy) = (String::new(), true);
    for check in checks {
        let result = check.run(vitals).await;
        metrics.record(kind, *check, result.is_ok());
        match result {
            Ok(()) => lines.push_str(&format!("[+]{} ok\n", check.text())),
            Err(reason) => {
                healthy = false;
                lines.push_str(&format!("[-]{} failed: {reason}\n", check.text()));
            }
        }
    }
    if !healthy {
        tracing::error!(path = kind.text(), reason = lines, "Health check error");
        // Go's http.Error ends the text with a newline of its own.
        return HealthAnswer {
            status: StatusCode::SERVICE_UNAVAILABLE,
            body: format!("{lines}\n"),
        };
    }
    let verbose = pairs(query).any(|(name, _)| name == "verbose");
    let body = if verbose { format!("{lines}ok\n") } else { "ok\n".to_owned() };
    HealthAnswer { status: StatusCode::OK, body }
}

fn not_excluded(kind: Kind, query: &str) -> Vec<Name> {
    let mut excluded = excluded(query);
    let checks: Vec<Name> =
        kind.checks().iter().copied().filter(|check| !excluded.remove(check.text())).collect();
    if !excluded.is_empty() {
        tracing::warn!(
            "missing-health-checks" = ?excluded,
            "some health checks cannot be excluded"
        );
    }
    checks
}

async fn health(vitals: &dyn Vitals, metrics: &HealthMetrics, query: &str) -> HealthAnswer {
    let reason = unhealthy(vitals, query).await;
    let (status, body) = match &reason {
        None => {
            metrics.success.inc();
            (StatusCode::OK, r#"{"health":"true","reason":""}"#.to_owned())
        }
        Some(reason) => {
            metrics.failures.inc();
            let body = serde_json::json!({ "health": "false", "reason": reason });
            tracing::warn!(output = %body, "/health error");
            (StatusCode::SERVICE_UNAVAILABLE, format!("{body}\n"))
        }
    };
    HealthAnswer { status, body }
}

async fn unhealthy(vitals: &dyn Vitals, query: &str) -> Option<String> {
    let serializable = pairs(query).find(|(name, _)| name == "serializable");
    let serializable = serializable.is_some_and(|(_, value)| value == "true");
    let excluded = excluded(query);
    for kind in vitals.alarms() {
        let name = match kind {
            AlarmKind::NO_SPACE => "NOSPACE",
            AlarmKind::CORRUPT => "CORRUPT",
            _ => "UNKNOWN",
        };
        if !excluded.contains(name) {
            return Some(format!("ALARM {name}"));
        }
    }
    if !serializable && !vitals.has_leader() {
        return Some("RAFT NO LEADER".to_owned());
    }
    vitals.read(serializable).await.err().map(|error| format!("RANGE ERROR:{error}"))
}

fn excluded(query: &str) -> BTreeSet<String> {
    pairs(query)
        .filter(|(name, value)| name == "exclude" && !value.is_empty())
        .map(|(_, value)| value)
        .collect()
}

/// The names and values of a query. Names of checks and alarms need no escapes, so `%` is left as
/// it is.
fn pairs(query: &str) -> impl Iterator<Item = (String, String)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (name.to_owned(), value.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Member {
        leader: bool,
        learner: bool,
        alarms: Vec<AlarmKind>,
        reads: Result<(), String>,
    }

    impl Vitals for Member {
        fn has_leader(&self) -> bool {
            self.leader
        }

        fn is_learner(&self) -> bool {
            self.learner
        }

        fn alarms(&self) -> Vec<AlarmKind> {
            self.alarms.clone()
        }

        fn read(&self, serializable: bool) -> Check<'_> {
            Box::pin(async move { if serializable { Ok(()) } else { self.reads.clone() } })
        }
    }

    fn healthy() -> Member {
        Member { leader: true, learner: false, alarms: Vec::new(), reads: Ok(()) }
    }

    async fn ask(member: Member, path: &str, query: &str) -> Option<(u16, String)> {
        let metrics = HealthMetrics::register(&Registry::new()).unwrap();
        let answer = answer(&member, &metrics, path, query).await?;
        Some((answer.status.as_u16(), answer.body))
    }

    #[tokio::test]
    async fn health_says_what_etcd_says() {
        let ok = (200, r#"{"health":"true","reason":""}"#.to_owned());
        let bad =
            |reason: &str| (503, format!("{{\"health\":\"false\",\"reason\":\"{reason}\"}}\n"));
        let no_space = || Member { alarms: vec![AlarmKind::NO_SPACE], ..healthy() };
        let leaderless =
            || Member { leader: false, reads: Err("etcdserver: no leader".into()), ..healthy() };
        let cases = [
            (healthy(), "", ok.clone()),
            (no_space(), "", bad("ALARM NOSPACE")),
            (no_space(), "exclude=NOSPACE", ok.clone()),
            (no_space(), "exclude=CORRUPT&serializable=true", bad("ALARM NOSPACE")),
            (leaderless(), "", bad("RAFT NO LEADER")),
            (leaderless(), "serializable=true", ok),
            (
                Member { reads: Err("etcdserver: request timed out".into()), ..healthy() },
                "",
                bad("RANGE ERROR:etcdserver: request timed out"),
            ),
        ];
        for (member, query, expected) in cases {
            assert_eq!(ask(member, "/health", query).await, Some(expected), "{query}");
        }
    }

    #[tokio::test]
    async fn livez_and_readyz_list_their_checks() {
        let learner = || Member { learner: true, ..healthy() };
        assert_eq!(ask(learner(), "/livez", "").await, Some((200, "ok\n".into())));
        let (status, body) = ask(learner(), "/readyz", "").await.unwrap();
        assert_eq!(status, 503);
        assert!(body.contains("[-]non_learner failed: not supported for learner\n"), "{body}");
        assert!(body.contains("[+]linearizable_read ok\n"), "{body}");
        assert_eq!(
            ask(learner(), "/readyz", "exclude=non_learner&exclude=foo").await,
            Some((200, "ok\n".into()))
        );
        assert_eq!(
            ask(healthy(), "/readyz/data_corruption", "verbose").await,
            Some((200, "[+]data_corruption ok\nok\n".into()))
        );
        let corrupt = Member { alarms: vec![AlarmKind::CORRUPT], ..healthy() };
        assert_eq!(
            ask(corrupt, "/readyz/data_corruption", "").await.unwrap().1,
            "[-]data_corruption failed: alarm activated: CORRUPT\n\n"
        );
        for path in ["/livez/", "/livez/non_learner", "/livezx", "/readyz/foo", "/"] {
            assert_eq!(ask(healthy(), path, "").await, None, "{path}");
        }
    }
}
