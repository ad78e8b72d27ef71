//! Proxies find each other: each one writes a key below `--resolver-prefix` that lives as long as it does
//! (`--resolver-ttl`), and all of them watch these keys, so that any of them can tell a client of all.
//!
//! Keys and values are those of Go's `naming/endpoints`, so that proxies of etcd and ours know each other.
//! They are in the namespace, if there is one. The proxy does this in its own name, which the members may
//! refuse; then it says so and tries again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use client::Client;
use proto::etcdserverpb::*;
use proto::mvccpb::KeyValue;
use proto::mvccpb::event::EventType;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Pause before a failed attempt is made again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// How long one call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long taking the registration back may hold up the end of the process.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

/// A proxy as its key's value describes it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Update {
    #[serde(rename = "Op", default)]
    op: u8,
    #[serde(rename = "Addr", default)]
    address: String,
    #[serde(rename = "Metadata", default)]
    metadata: serde_json::Value,
}

/// What the metadata, which is JSON once more, says.
#[derive(Debug, Serialize, Deserialize)]
struct Meta {
    #[serde(default)]
    name: String,
}

/// The name of this host.
pub(super) fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

/// The proxies that have registered, by key.
#[derive(Clone, Debug, Default)]
pub(super) struct Proxies(Arc<Mutex<BTreeMap<Bytes, Member>>>);

impl Proxies {
    pub(super) fn members(&self) -> Vec<Member> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Bytes, Member>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, kv: &KeyValue) {
        match member(&kv.value) {
            Ok(member) => {
                self.lock().insert(kv.key.clone(), member);
            }
            Err(error) => {
                let key = String::from_utf8_lossy(&kv.key).into_owned();
                tracing::warn!(key, %error, "unmarshal endpoint update failed");
            }
        }
    }
}

fn member(value: &[u8]) -> Result<Member, serde_json::Error> {
    let update: Update = serde_json::from_slice(value)?;
    let name = match &update.metadata {
        serde_json::Value::String(text) => serde_json::from_str::<Meta>(text)?.name,
        _ => String::new(),
    };
    Ok(Member { name, client_ur_ls: vec![update.address], ..Member::default() })
}

/// Where and how a proxy registers.
#[derive(Clone, Debug)]
pub(super) struct Registration {
    pub(super) client: Client,
    /// What the keys of all proxies begin with, the namespace included and the last slash not.
    pub(super) prefix: String,
    pub(super) address: String,
    pub(super) ttl: i64,
}

impl Registration {
    /// Registers, and again whenever the registration has been lost, until told to stop.
    pub(super) async fn keep(self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            match self.register().await {
                Ok(lease) => {
                    tracing::info!(
                        addr = self.address,
                        "lease-ttl" = self.ttl,
                        "registered session with lease"
                    );
                    let mut kept = self.client.lease_keep_alive(lease);
                    let lost = async { while kept.next().await.is_some() {} };
                    if stop.run_until_cancelled(lost).await.is_none() {
                        let revoke = self.client.lease_revoke(LeaseRevokeRequest { id: lease });
                        // If it fails the key ends with the lease, a little later.
                        let _ = timeout(GOODBYE_TIMEOUT, revoke).await;
                        return;
                    }
                    tracing::warn!("session expired; possible network partition or server restart");
                    tracing::warn!("creating a new session to rejoin");
                }
                Err(error) => tracing::warn!(%error, "failed to create a session"),
            }
            stop.run_until_cancelled(sleep(RETRY_PAUSE)).await;
        }
    }

    async fn register(&self) -> Result<i64, client::Error> {
        let client = self.client.until(Instant::now() + CALL_TIMEOUT);
        let lease = client.lease_grant(LeaseGrantRequest { ttl: self.ttl, id: 0 }).await?.id;
        let put = PutRequest {
            key: format!("{}/{}", self.prefix, self.address).into(),
            value: described(&self.address, &host_name()).into(),
            lease,
            ..PutRequest::default()
        };
        client.put(put).await?;
        Ok(lease)
    }

    /// Follows the registrations of all proxies.
    pub(super) async fn follow(self, proxies: Proxies) {
        loop {
            if let Err(error) = self.follow_once(&proxies).await {
                let prefix = &self.prefix;
                tracing::warn!(prefix, %error, "failed to establish endpoint watch");
            }
            sleep(RETRY_PAUSE).await;
        }
    }

    async fn follow_once(&self, proxies: &Proxies) -> Result<(), client::Error> {
        let key = Bytes::from(format!("{}/", self.prefix));
        let range_end = client::prefix_range_end(&key);
        let range = RangeRequest {
            key: key.clone(),
            range_end: range_end.clone(),
            ..RangeRequest::default()
        };
        let client = self.client.until(Instant::now() + CALL_TIMEOUT);
        let found = client.range(range).await?;
        proxies.lock().clear();
        found.kvs.iter().for_each(|kv| proxies.put(kv));
        let revision = found.header.map_or(0, |header| header.revision);
        let create = WatchCreateRequest {
            key,
            range_end,
            start_revision: revision + 1,
            ..WatchCreateRequest::default()
        };
        let mut watch = self.client.watch(create);
        while let Some(response) = watch.next().await {
            for event in response?.events {
                let (kind, Some(kv)) = (event.r#type(), event.kv) else { continue };
                match kind {
                    EventType::Put => proxies.put(&kv),
                    EventType::Delete => {
                        proxies.lock().remove(&kv.key);
                    }
                }
            }
        }
        Ok(())
    }
}

fn described(address: &str, name: &str) -> String {
    let meta = serde_json::json!({ "name": name }).to_string();
    // The order of Go's structure, so that values are equal byte by byte.
    let (address, meta) = (serde_json::Value::from(address), serde_json::Value::from(meta));
    format!("{{\"Op\":0,\"Addr\":{address},\"Metadata\":{meta}}}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registration_is_read_as_it_is_written_and_as_go_writes_it() {
        let text = described("127.0.0.1:23790", "host");
        let of_go = r#"{"Op":0,"Addr":"127.0.0.1:23790","Metadata":"{\"name\":\"host\"}"}"#;
        assert_eq!(text, of_go);
        let read = member(text.as_bytes()).unwrap();
        assert_eq!((read.name.as_str(), &read.client_ur_ls[0][..]), ("host", "127.0.0.1:23790"));
        assert!(member(b"no json").is_err());
    }
}
