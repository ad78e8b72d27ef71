//! The members that a new cluster begins with (`--initial-cluster`).

use std::collections::{BTreeMap, BTreeSet};

use crate::cli::value::ValueError;
use crate::urls::{Hosts, Url, UrlError, joined, texts};

use super::{ConfigError, refuse};

/// Whether this member founds a cluster or joins one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterState {
    New,
    Existing,
}

/// Names and peer URLs of the first members, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InitialCluster {
    members: BTreeMap<String, Vec<Url>>,
}

impl InitialCluster {
    /// Reads `name=url,name=url`; a name that stands twice has several URLs.
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        let mut members: BTreeMap<String, Vec<Url>> = BTreeMap::new();
        for pair in text.split(',').filter(|pair| !pair.is_empty()) {
            let (name, url) = pair.split_once('=').unwrap_or((pair, ""));
            members.entry(name.to_owned()).or_default().push(url.trim().parse()?);
        }
        for urls in members.values_mut() {
            urls.sort();
        }
        Ok(Self { members })
    }

    /// Names and sorted peer URLs, ordered by name.
    pub fn members(&self) -> impl Iterator<Item = (&str, &[Url])> {
        self.members.iter().map(|(name, urls)| (name.as_str(), urls.as_slice()))
    }

    /// The peer URLs of one member.
    pub fn peer_urls(&self, name: &str) -> Option<&[Url]> {
        self.members.get(name).map(Vec::as_slice)
    }

    /// etcd's `VerifyBootstrap`: this member must be in the list with the URLs it advertises, or with
    /// others that lead to the same places, and no URL twice. It blocks while names are looked up.
    pub fn check_founding(
        &self,
        name: &str,
        advertised: &[Url],
        hosts: &Hosts,
    ) -> Result<(), ConfigError> {
        let listed = self.of_member(name)?;
        if let Err(error) = hosts.check_same(advertised, listed) {
            return refuse(not_advertised(name, listed, advertised, &error));
        }
        self.check_duplicates()
    }

    /// etcd's `VerifyJoinExisting`: this member must be in the list, and no URL twice.
    pub fn check_joining(&self, name: &str) -> Result<(), ConfigError> {
        self.of_member(name)?;
        self.check_duplicates()
    }

    fn of_member(&self, name: &str) -> Result<&[Url], ConfigError> {
        self.peer_urls(name).ok_or_else(|| {
            ConfigError(format!(
                "couldn't find local name {name:?} in the initial cluster configuration"
            ))
        })
    }

    fn check_duplicates(&self) -> Result<(), ConfigError> {
        let mut seen = BTreeSet::new();
        if self.members.values().flatten().any(|url| !seen.insert(url)) {
            return refuse(format!("initial cluster {self} has duplicate url"));
        }
        Ok(())
    }
}

/// How the URLs of a member that are listed and those that it advertises differ; `error` is how they do
/// once their names are looked up.
fn not_advertised(name: &str, listed: &[Url], advertised: &[Url], error: &str) -> String {
    let missing = |of: &[Url], from: &[Url]| -> Vec<String> {
        let missing: BTreeSet<&Url> = of.iter().filter(|url| !from.contains(url)).collect();
        missing.into_iter().map(ToString::to_string).collect()
    };
    let pairs = |urls: Vec<String>| -> String {
        let pairs: Vec<String> = urls.iter().map(|url| format!("{name}={url}")).collect();
        pairs.join(",")
    };
    let not_advertised = missing(listed, advertised);
    if !not_advertised.is_empty() {
        return format!(
            "--initial-cluster has {} but missing from --initial-advertise-peer-urls={} ({error})",
            pairs(not_advertised),
            joined(advertised)
        );
    }
    let not_listed = missing(advertised, listed);
    if !not_listed.is_empty() {
        return format!(
            "--initial-advertise-peer-urls has {} but missing from --initial-cluster={}",
            not_listed.join(","),
            pairs(texts(advertised))
        );
    }
    format!(
        "failed to resolve {} to match --initial-cluster={} ({error})",
        joined(advertised),
        pairs(texts(advertised))
    )
}

impl std::fmt::Display for InitialCluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut pairs: Vec<String> = self
            .members
            .iter()
            .flat_map(|(name, urls)| urls.iter().map(move |url| format!("{name}={url}")))
            .collect();
        pairs.sort();
        f.write_str(&pairs.join(","))
    }
}

impl From<UrlError> for ValueError {
    fn from(error: UrlError) -> Self {
        ValueError(error.to_string())
    }
}
