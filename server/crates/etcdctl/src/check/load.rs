//! Many clients that put keys, and what their requests took.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use client::Client;
use cobra::Outcome;
use proto::etcdserverpb::PutRequest;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;

use crate::global::Session;
use crate::words::Word;

/// How often progress is shown.
const PROGRESS: Duration = Duration::from_secs(1);

/// What is written.
pub(super) struct Load {
    pub(super) prefix: Word,
    pub(super) key_bytes: usize,
    pub(super) value_bytes: usize,
    /// How many puts there are at most.
    pub(super) puts: u64,
    /// How many of them begin per second; as many as possible if nothing is said.
    pub(super) per_second: Option<u64>,
    /// When the last one begins.
    pub(super) until: Option<Instant>,
}

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Report {
    seconds: Vec<f64>,
    errors: BTreeMap<String, u64>,
    total: Duration,
}

type Queue = Arc<Mutex<mpsc::Receiver<Bytes>>>;

impl Load {
    /// Runs it with so many clients, each with connections of its own, until it is done or interrupted.
    pub(super) async fn run(
        &self,
        session: &Session,
        clients: usize,
        interrupted: impl Future<Output = ()>,
    ) -> Outcome<Report> {
        let (keys, queue) = mpsc::channel(clients);
        let queue: Queue = Arc::new(Mutex::new(queue));
        let value = Bytes::from(vec![0; self.value_bytes]);
        let mut workers = JoinSet::new();
        for _ in 0..clients {
            let client = session.client().await?;
            workers.spawn(work(client, Arc::clone(&queue), value.clone()));
        }
        let begin = Instant::now();
        tokio::select! {
            () = self.generate(keys, begin) => {}
            () = interrupted => {}
        }
        let mut report = Report::default();
        while let Some(done) = workers.join_next().await {
            // A worker that panicked has reported that itself.
            report.add(done.unwrap_or_default());
        }
        report.total = begin.elapsed();
        Ok(report)
    }

    async fn generate(&self, keys: mpsc::Sender<Bytes>, begin: Instant) {
        let mut shown = begin;
        for number in 0..self.puts {
            if let Some(per_second) = self.per_second {
                let at = begin + Duration::from_secs_f64(number as f64 / per_second as f64);
                tokio::time::sleep_until(at.into()).await;
            }
            if self.until.is_some_and(|until| Instant::now() >= until) {
                break;
            }
            // Nobody takes keys any more only if every worker has panicked.
            if keys.send(self.key()).await.is_err() {
                break;
            }
            if shown.elapsed() >= PROGRESS {
                shown = Instant::now();
                show(&format!("\r{number} / {}", self.puts));
            }
        }
        show("\r");
    }

    fn key(&self) -> Bytes {
        let mut key = BytesMut::from(&self.prefix[..]);
        key.extend_from_slice(&rand::random::<u64>().to_be_bytes());
        key.resize(self.prefix.len() + self.key_bytes, 0);
        key.freeze()
    }
}

/// Progress is for people only.
fn show(text: &str) {
    let mut err = std::io::stderr();
    if err.is_terminal() {
        let _ = err.write_all(text.as_bytes());
    }
}

async fn work(client: Client, queue: Queue, value: Bytes) -> Report {
    let mut report = Report::default();
    loop {
        let next = queue.lock().await.recv().await;
        let Some(key) = next else { return report };
        let begin = Instant::now();
        let request = PutRequest { key, value: value.clone(), ..PutRequest::default() };
        match client.put(request).await {
            Ok(_) => report.seconds.push(begin.elapsed().as_secs_f64()),
            Err(error) => *report.errors.entry(error.to_string()).or_default() += 1,
        }
    }
}

impl Report {
    fn add(&mut self, other: Report) {
        self.seconds.extend(other.seconds);
        for (error, count) in other.errors {
            *self.errors.entry(error).or_default() += count;
        }
    }

    /// Lines about what failed; nothing if nothing did.
    pub(super) fn errors(&self) -> String {
        let lines = self.errors.iter().map(|(e, count)| format!("FAIL: ERROR({e}) -> {count}\n"));
        let lines: String = lines.collect();
        if lines.is_empty() { lines } else { format!("FAIL: too many errors\n{lines}") }
    }

    pub(super) fn per_second(&self) -> f64 {
        self.seconds.len() as f64 / self.total.as_secs_f64()
    }

    pub(super) fn slowest(&self) -> f64 {
        self.seconds.iter().copied().fold(0.0, f64::max)
    }

    /// The standard deviation of what successful requests took.
    pub(super) fn deviation(&self) -> f64 {
        if self.seconds.is_empty() {
            return 0.0;
        }
        let count = self.seconds.len() as f64;
        let average = self.seconds.iter().sum::<f64>() / count;
        let squares: f64 = self.seconds.iter().map(|taken| (taken - average).powi(2)).sum();
        (squares / count).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_sums_up_what_requests_took() {
        let mut report = Report { seconds: vec![1.0, 3.0], ..Report::default() };
        let errors = BTreeMap::from([("lost".to_owned(), 2)]);
        report.add(Report { seconds: vec![2.0, 2.0], errors, ..Report::default() });
        report.total = Duration::from_secs(2);
        assert_eq!(report.per_second(), 2.0);
        assert_eq!(report.slowest(), 3.0);
        assert_eq!(report.deviation(), 0.5f64.sqrt());
        assert_eq!(report.errors(), "FAIL: too many errors\nFAIL: ERROR(lost) -> 2\n");
    }
}
