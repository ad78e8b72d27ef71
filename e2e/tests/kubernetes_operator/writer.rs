//! A client that writes while a cluster is being changed, and knows what was acknowledged.
//!
//! It writes every key once, in order. A call that fails is made again, on a new connection: the
//! same put twice does no harm. What it must never see is an error that says that trying again is
//! in vain, or one that repeating does not cure.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use bytes::Bytes;
use client::Error;
use e2e::kubernetes::wait;
use proto::etcdserverpb::PutRequest;
use tonic::Code;

use crate::caller::Caller;
use crate::product::Etcd;

const PREFIX: &str = "writer/";
/// A call that is not answered in this time is made again.
const CALL: Duration = Duration::from_secs(2);
/// Longest time for one write, with all its repetitions, while the operator changes the cluster. It
/// keeps a quorum and moves the leader off what it stops, so that nothing has to be detected. It took
/// 1.2 s on two quiet cores and 5 s on two that had other groups of tests to run as well.
pub(crate) const PLANNED: Duration = Duration::from_secs(20);
/// The same while nodes die: detecting that is Kubernetes' part, and electing another leader takes a
/// second or two of it.
pub(crate) const NODE_DIES: Duration = Duration::from_secs(90);
/// How long a member may take to have what the others have.
const CAUGHT_UP: Duration = Duration::from_secs(90);
/// Pace: enough to be in the middle of whatever happens, and to leave the machine to others.
const PACE: Duration = Duration::from_millis(10);

pub(crate) struct Writer {
    thread: Option<JoinHandle<Result<Written>>>,
    limit: Duration,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    acknowledged: AtomicU64,
    /// Why the writer has given up.
    failure: Mutex<Option<String>>,
}

/// What the writer has seen.
#[derive(Debug, Default)]
pub(crate) struct Written {
    /// The revision that each number was acknowledged with.
    pub(crate) acknowledged: BTreeMap<u64, i64>,
    pub(crate) repeated: usize,
    pub(crate) longest: Duration,
}

impl Writer {
    /// `limit` is the longest time that one write may take.
    pub(crate) fn start(etcd: &Etcd<'_>, limit: Duration) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let seen = Arc::clone(&shared);
        let service = etcd.namespace.get(&format!("service {}-client", etcd.name))?;
        let address = crate::product::text(&service["spec"]["clusterIP"]);
        let name = format!("{}-client.{}.svc", etcd.name, etcd.namespace.name());
        let certificates = etcd.certificates()?;
        let connect = move || Caller::new(&address, &name, certificates.clone());
        let thread = std::thread::spawn(move || {
            write(&seen, limit, connect).inspect_err(|error| {
                *seen.failure.lock().expect("nobody panics with it") = Some(format!("{error:#}"));
            })
        });
        let writer = Self { thread: Some(thread), limit, shared };
        writer.wait_for_more()?;
        Ok(writer)
    }

    /// Waits until writes have been acknowledged that began after this call.
    pub(crate) fn wait_for_more(&self) -> Result<()> {
        let before = self.shared.acknowledged.load(Ordering::Acquire);
        wait::until("writes go on", 2 * (self.limit + CALL), || {
            let failure = self.shared.failure.lock().expect("nobody panics with it").clone();
            let now = self.shared.acknowledged.load(Ordering::Acquire);
            if failure.is_some() || now > before + 1 {
                return Ok(failure);
            }
            Err(anyhow!("none since {before}"))
        })
        .and_then(|failure| match failure {
            Some(failure) => bail!("the writer has given up: {failure}"),
            None => Ok(()),
        })
    }

    /// Ends the writing, and checks that everything acknowledged is there: by a linearizable read,
    /// and in each member by itself.
    pub(crate) fn finish(mut self, etcd: &Etcd<'_>) -> Result<Written> {
        self.shared.stop.store(true, Ordering::Release);
        let thread = self.thread.take().context("it finishes once")?;
        let written = thread.join().map_err(|_| anyhow!("the writer panicked"))??;
        println!(
            "  {} writes, {} of them repeated, the longest took {:?}",
            written.acknowledged.len(),
            written.repeated,
            written.longest
        );
        ensure!(!written.acknowledged.is_empty(), "nothing was written");
        let callers = etcd.member_names()?.into_iter().map(|member| {
            let caller = etcd.caller_of(&member)?;
            Ok((member, caller))
        });
        let callers = callers.collect::<Result<Vec<_>>>()?;
        check("the cluster", &etcd.caller()?, false, &written)?;
        for (member, caller) in &callers {
            // Serializable: what this member has, which may be a moment behind.
            wait::until(&format!("{member} has all writes"), CAUGHT_UP, || {
                check(member, caller, true, &written)
            })?;
        }
        Ok(written)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
    }
}

fn write(
    shared: &Shared,
    limit: Duration,
    connect: impl Fn() -> Result<Caller>,
) -> Result<Written> {
    let mut written = Written::default();
    let mut caller = connect()?;
    let mut number = 0;
    while !shared.stop.load(Ordering::Acquire) {
        number += 1;
        let began = Instant::now();
        let revision = loop {
            let put = PutRequest {
                key: Bytes::from(format!("{PREFIX}{number:08}")),
                value: Bytes::from(number.to_string()),
                ..PutRequest::default()
            };
            match caller.call(CALL, async move |client| client.put(put).await) {
                Ok(answer) => break answer.header.context("a header")?.revision,
                Err(error) if began.elapsed() < limit && may_be_cured(&error) => {
                    written.repeated += 1;
                    caller = connect()?;
                }
                Err(error) => bail!("put {number}, after {:?}: {error}", began.elapsed()),
            }
        };
        let took = began.elapsed();
        ensure!(took <= limit, "put {number} took {took:?}, and {limit:?} are the limit");
        written.longest = written.longest.max(took);
        written.acknowledged.insert(number, revision);
        shared.acknowledged.store(number, Ordering::Release);
        std::thread::park_timeout(PACE);
    }
    Ok(written)
}

/// What clients of etcd repeat: the member is gone, has no leader, or did not answer in time. Not that
/// it is a learner: those are in no Service, neither by their label nor by their readiness.
fn may_be_cured(error: &Error) -> bool {
    match error {
        Error::DeadlineExceeded => true,
        Error::Rpc { code, .. } => {
            matches!(code, Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled)
        }
        _ => false,
    }
}

fn check(who: &str, caller: &Caller, serializable: bool, written: &Written) -> Result<()> {
    let found = caller.prefix(PREFIX, serializable)?;
    let found: BTreeMap<u64, i64> = found
        .kvs
        .iter()
        .filter_map(|kv| {
            let value = std::str::from_utf8(&kv.value).ok()?.parse().ok()?;
            Some((value, kv.mod_revision))
        })
        .collect();
    let mut last = 0;
    for (number, revision) in &written.acknowledged {
        // A repeated put may have been applied twice: then it has a later revision.
        let there = found.get(number).with_context(|| format!("{who} has lost {number}"))?;
        ensure!(
            there == revision || (written.repeated > 0 && there > revision),
            "{who} has {number} at {there}, and it was acknowledged at {revision}"
        );
        ensure!(*revision > last, "{number} was acknowledged at {revision}, after {last}");
        last = *revision;
    }
    Ok(())
}
