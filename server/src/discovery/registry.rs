//! The first members from another etcd cluster, where each of them writes itself.
//!
//! ```text
//! /_etcd/registry/<token>/_config/size       how many members there are to be; written by the operator
//! /_etcd/registry/<token>/members/<id>       name=url,name=url of one member
//! ```
//!
//! The members that were created first found the cluster; who comes later is refused. Every member waits
//! until it sees as many as there are to be, so all see the same ones. Writing oneself again changes
//! nothing, and a member that was interrupted may therefore begin anew.

use std::time::Duration;

use client::{Client, prefix_range_end};
use proto::etcdserverpb::{PutRequest, RangeRequest, WatchCreateRequest};
use tokio::time::{Instant, sleep};
use types::MemberId;

use crate::config::{InitialCluster, Registry};

use super::RegistryError;

const PREFIX: &str = "/_etcd/registry";
/// After each failure the pause is doubled, up to two seconds to the power of this.
const BACKOFF_EXPONENT_MAX: u32 = 8;

/// What this member writes.
pub(super) struct Own {
    pub(super) id: MemberId,
    /// `name=url` for each of its peer URLs.
    pub(super) urls: String,
}

/// A member that has written itself.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    created: i64,
    key: String,
    urls: String,
}

/// Writes this member into the registry and waits for the others.
pub(super) async fn join(registry: &Registry, own: Own) -> Result<InitialCluster, RegistryError> {
    let client = Client::connect(registry.client.clone()).await?;
    let directory = format!("{PREFIX}/{}", registry.token.trim_matches('/'));
    let mut meeting = Meeting {
        client,
        registry,
        size_key: format!("{directory}/_config/size"),
        members_key: format!("{directory}/members"),
        own_key: format!("{directory}/members/{}", own.id),
        failures: 0,
    };
    let result = meeting.join(&own.urls).await;
    let token = &registry.token;
    match &result {
        Ok(members) => {
            tracing::info!("discovery-token" = token, cluster = %members, "discovery joined cluster successfully");
        }
        Err(error) => {
            tracing::error!("discovery-token" = token, %error, "discovery failed to join cluster");
        }
    }
    result
}

struct Meeting<'r> {
    client: Client,
    registry: &'r Registry,
    size_key: String,
    members_key: String,
    own_key: String,
    failures: u32,
}

/// What the registry says at one revision.
struct Seen {
    size: usize,
    entries: Entries,
    revision: i64,
}

impl Meeting<'_> {
    async fn join(&mut self, urls: &str) -> Result<InitialCluster, RegistryError> {
        self.look().await?;
        self.register(urls).await;
        let Seen { size, mut entries, mut revision } = self.look().await?;
        while entries.0.len() < size {
            tracing::info!(
                clusterSize = size,
                "found-peers" = entries.0.len(),
                "waiting for peers from discovery service"
            );
            if self.wait(&mut entries, size, revision).await.is_err() {
                // What the watch did not show is looked up: its revision may be compacted by now.
                self.pause("cluster status check").await;
                Seen { entries, revision, .. } = self.look().await?;
            }
        }
        tracing::info!(clusterSize = size, "found all needed peers from discovery service");
        entries.founders(size)
    }

    /// A client whose next request must be answered in time.
    fn in_time(&self) -> Client {
        self.client.until(Instant::now() + self.registry.request_timeout)
    }

    /// The size and the members, however long it takes to hear of them. A registry that is full
    /// without this member is an error.
    async fn look(&mut self) -> Result<Seen, RegistryError> {
        loop {
            match self.try_look().await {
                Err(RegistryError::Client(error)) => {
                    tracing::warn!(%error, "failed to get the cluster from discovery service");
                    self.pause("cluster status check").await;
                }
                Err(error) => return Err(error),
                Ok(seen) => {
                    self.failures = 0;
                    return match seen.entries.admits(&self.own_key, seen.size) {
                        true => Ok(seen),
                        false => Err(RegistryError::Full),
                    };
                }
            }
        }
    }

    async fn try_look(&self) -> Result<Seen, RegistryError> {
        let request = RangeRequest { key: self.size_key.clone().into(), ..Default::default() };
        let found = self.in_time().range(request).await?;
        let text = found.kvs.first().ok_or(RegistryError::SizeNotFound)?;
        let size = size_of(&text.value).ok_or(RegistryError::BadSize)?;
        let request = RangeRequest {
            key: self.members_key.clone().into(),
            range_end: prefix_range_end(self.members_key.as_bytes()),
            ..Default::default()
        };
        let found = self.in_time().range(request).await?;
        let mut entries = Entries::default();
        for kv in &found.kvs {
            entries.add(&kv.key, &kv.value, kv.create_revision);
        }
        let revision = found.header.map_or(0, |header| header.revision);
        Ok(Seen { size, entries, revision })
    }

    async fn register(&mut self, urls: &str) {
        loop {
            let request = PutRequest {
                key: self.own_key.clone().into(),
                value: urls.to_owned().into(),
                ..Default::default()
            };
            match self.in_time().put(request).await {
                Ok(_) => break,
                Err(error) => {
                    let text = "failed to register members itself to the discovery service";
                    tracing::warn!(memberKey = self.own_key, %error, "{text}");
                }
            }
            self.pause("register member itself").await;
        }
        self.failures = 0;
        tracing::info!(
            memberKey = self.own_key,
            memberInfo = urls,
            "register member itself successfully"
        );
    }

    /// Adds the members that write themselves after a revision, until there are enough. An error
    /// means that the watch is over before.
    async fn wait(&self, entries: &mut Entries, size: usize, revision: i64) -> Result<(), ()> {
        let mut watch = self.client.watch(WatchCreateRequest {
            key: self.members_key.clone().into(),
            range_end: prefix_range_end(self.members_key.as_bytes()),
            start_revision: revision + 1,
            ..Default::default()
        });
        while entries.0.len() < size {
            let response = watch.next().await.ok_or(())?.map_err(drop)?;
            if response.canceled {
                return Err(());
            }
            for kv in response.events.iter().filter_map(|event| event.kv.as_ref()) {
                entries.add(&kv.key, &kv.value, kv.create_revision);
            }
        }
        Ok(())
    }

    async fn pause(&mut self, reason: &str) {
        self.failures = (self.failures + 1).min(BACKOFF_EXPONENT_MAX);
        let backoff = Duration::from_secs(1 << self.failures);
        tracing::warn!(reason, ?backoff, "retry connecting to discovery service");
        sleep(backoff).await;
    }
}

fn size_of(value: &[u8]) -> Option<usize> {
    std::str::from_utf8(value).ok()?.parse().ok().filter(|size| *size > 0)
}

/// The members in the registry, in the order in which they were created.
#[derive(Debug, Default)]
struct Entries(Vec<Entry>);

impl Entries {
    fn add(&mut self, key: &[u8], value: &[u8], created: i64) {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        let (key, urls) = (text(key), text(value));
        let refused = if !urls.contains('=') {
            "invalid peer info returned from discovery service"
        } else if self.0.iter().any(|entry| entry.key == key) {
            "found duplicate peer from discovery service"
        } else {
            ""
        };
        if !refused.is_empty() {
            tracing::warn!(memberKey = key, memberInfo = urls, "{refused}");
            return;
        }
        tracing::info!(memberKey = key, memberInfo = urls, "found peer from discovery service");
        self.0.push(Entry { created, key, urls });
        self.0.sort_by(|left, right| (left.created, &left.key).cmp(&(right.created, &right.key)));
    }

    /// Whether a member is, or may still become, one of the first.
    fn admits(&self, own_key: &str, size: usize) -> bool {
        let place = self.0.iter().position(|entry| entry.key == own_key);
        place.unwrap_or(self.0.len()) < size
    }

    fn founders(&self, size: usize) -> Result<InitialCluster, RegistryError> {
        let founders = &self.0[..size.min(self.0.len())];
        let urls: Vec<&str> = founders.iter().map(|entry| entry.urls.as_str()).collect();
        let members =
            InitialCluster::parse(&urls.join(",")).map_err(|_| RegistryError::InvalidUrl)?;
        if members.members().count() < founders.len() {
            return Err(RegistryError::DuplicateName(members.to_string()));
        }
        let mut seen = std::collections::BTreeSet::new();
        if members.members().flat_map(|(_, urls)| urls).any(|url| !seen.insert(url.as_str())) {
            return Err(RegistryError::DuplicateUrl(members.to_string()));
        }
        Ok(members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(all: &[(&str, &str, i64)]) -> Entries {
        let mut entries = Entries::default();
        for (key, value, created) in all {
            entries.add(key.as_bytes(), value.as_bytes(), *created);
        }
        entries
    }

    #[test]
    fn the_first_to_come_found_the_cluster() {
        let found = entries(&[
            ("/members/3", "c=http://c:1", 9),
            ("/members/1", "a=http://a:1", 7),
            ("/members/1", "a=http://a:1", 7),
            ("/members/9", "nonsense", 3),
            ("/members/2", "b=http://b:1,b=http://b:2", 8),
        ]);
        let founders = found.founders(2).unwrap().to_string();
        assert_eq!(founders, "a=http://a:1,b=http://b:1,b=http://b:2");
        assert!(found.admits("/members/2", 2) && !found.admits("/members/3", 2));
        assert!(!found.admits("/members/4", 3) && found.admits("/members/4", 4));
    }

    #[test]
    fn members_that_cannot_be_told_apart_are_refused() {
        let error = |found: Entries| found.founders(2).unwrap_err().to_string();
        let same_name = entries(&[("/1", "a=http://a:1", 1), ("/2", "a=http://b:1", 2)]);
        assert!(error(same_name).ends_with("give each its own --name"));
        let same_url = entries(&[("/1", "a=http://a:1", 1), ("/2", "b=http://a:1", 2)]);
        assert!(error(same_url).ends_with("has duplicate url"));
        let no_url = entries(&[("/1", "a=a", 1)]);
        assert_eq!(error(no_url), "discovery: invalid peer URL");
    }

    #[test]
    fn a_size_is_a_positive_number() {
        assert_eq!(size_of(b"3"), Some(3));
        for bad in [&b"0"[..], b"-1", b"x", b"", b"\xff"] {
            assert_eq!(size_of(bad), None);
        }
    }
}
