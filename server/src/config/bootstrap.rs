//! The members that a new cluster begins with (`--initial-cluster`).

use std::collections::{BTreeMap, BTreeSet};

use crate::cli::value::ValueError;
use crate::urls::{Url, UrlError, joined};

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

    /// etcd's `VerifyBootstrap`: this member must be in the list with the URLs it advertises.
    pub fn check_founding(&self, name: &str, advertised: &[Url]) -> Result<(), ConfigError> {
        self.check_joining(name)?;
        let listed: BTreeSet<&Url> = self.members[name].iter().collect();
        let own: BTreeSet<&Url> = advertised.iter().collect();
        let missing: Vec<String> =
            listed.difference(&own).map(|url| format!("{name}={url}")).collect();
        if !missing.is_empty() {
            return refuse(format!(
                "--initial-cluster has {} but missing from --initial-advertise-peer-urls={}",
                missing.join(","),
                joined(advertised)
            ));
        }
        let missing: Vec<String> = own.difference(&listed).map(ToString::to_string).collect();
        if !missing.is_empty() {
            let pairs: Vec<String> = advertised.iter().map(|url| format!("{name}={url}")).collect();
            return refuse(format!(
                "--initial-advertise-peer-urls has {} but missing from --initial-cluster={}",
                missing.join(","),
                pairs.join(",")
            ));
        }
        Ok(())
    }

    /// etcd's `VerifyJoinExisting`: this member must be in the list, and no URL twice.
    pub fn check_joining(&self, name: &str) -> Result<(), ConfigError> {
        if !self.members.contains_key(name) {
            return refuse(format!(
                "couldn't find local name {name:?} in the initial cluster configuration"
            ));
        }
        let mut seen = BTreeSet::new();
        if self.members.values().flatten().any(|url| !seen.insert(url)) {
            return refuse(format!("initial cluster {self} has duplicate url"));
        }
        Ok(())
    }
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
