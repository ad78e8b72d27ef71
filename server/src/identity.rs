//! Who this member is: found in its directory, computed for a new cluster, or learnt from the
//! cluster that it joins.
//!
//! The identity is written once, durably, before anything else is stored under it; afterwards the
//! flags that describe a new cluster are ignored, as etcd does. A directory of another member or
//! cluster is refused by name.
//!
//! # Invariants
//! No empty directory serves under the id of a member that has served before, as far as anybody can tell:
//! it has forgotten its vote and the entries it acknowledged, so a quorum that counts it proves nothing,
//! and what was committed could be lost. A member publishes its client URLs once it serves, which is after
//! its identity was stored; so whoever finds no identity, but its own URLs published, has lost its data.
//! etcd refuses that in a new cluster (`isMemberBootstrapped`); here it is refused for `existing` as well.

mod joining;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use disk::Disk;
use futures_util::future::join_all;
use proto::peerpb::MemberDescription;
use replica::ProtocolVersions;
use serde::{Deserialize, Serialize};
use types::{ClusterId, MemberId};

use crate::config::{ClusterState, Config, Discovery, InitialCluster};
use crate::discovery;
use crate::ids::Founding;
use crate::peer::outbound::Outbound;
use crate::urls::Hosts;

const FILE: &str = "identity.json";

/// A description is a few hundred bytes; more is damage.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// How long a joining member asks its peers before it gives up and lets the process be started anew.
const JOIN_ATTEMPTS: u32 = 30;
const JOIN_PAUSE: Duration = Duration::from_secs(1);
/// How long a founder asks the others whether it has been there before: etcd's time. They may well not
/// run yet.
const FOUNDERS_TIMEOUT: Duration = Duration::from_secs(1);

/// A member and where it keeps its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) member: MemberId,
    pub(crate) cluster: ClusterId,
    /// `member/` of the data directory.
    pub(crate) directory: PathBuf,
    /// The members that the cluster begins with, if this member is one of them.
    pub(crate) founders: InitialCluster,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    /// Hexadecimal, as everything that prints ids.
    member_id: String,
    cluster_id: String,
    /// The first members, if they were discovered: a member that ends before its log has begun finds
    /// them here, and not in a place that may say something else by then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    initial_cluster: Option<String>,
}

/// Why a member has no identity.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    #[error("{path}: {source}")]
    Io { path: String, source: io::Error },
    #[error(
        "{path} is damaged: {detail}; restore it, or clear the data directory and let this member join again"
    )]
    Damaged { path: String, detail: String },
    #[error(
        "this data directory belongs to {what} {found}, but --expect-{what}-id says {expected}; \
         start with the right data directory"
    )]
    Unexpected { what: &'static str, found: String, expected: String },
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    #[error(transparent)]
    Discovery(#[from] crate::discovery::DiscoveryError),
    #[error("couldn't find local name {0:?} in the initial cluster configuration")]
    NotInInitialCluster(String),
    #[error(
        "could not learn from any peer in --initial-cluster which member this is: {0}; add this \
         member to the cluster first (etcdctl member add), with peer URLs that lead to it, and list all \
         members in --initial-cluster"
    )]
    Unknown(String),
    #[error(
        "member {0} has already been bootstrapped, but its data directory is empty: what it has promised \
         to the others is lost; remove it from the cluster (etcdctl member remove {0}), add it as a new \
         member (etcdctl member add), and start that with --initial-cluster-state=existing"
    )]
    Bootstrapped(MemberId),
    #[error(transparent)]
    Incompatible(#[from] crate::version::Incompatible),
    #[error("looking up the members' hosts was interrupted: {0}")]
    Interrupted(#[from] tokio::task::JoinError),
}

impl Identity {
    /// Finds or makes the identity.
    ///
    /// # Errors
    /// When the directory cannot be used, belongs to somebody else, or no peer knows this member.
    pub(crate) async fn establish(
        disk: &dyn Disk,
        config: &Config,
        outbound: &Arc<Outbound>,
    ) -> Result<Self, IdentityError> {
        let directory = PathBuf::from(&config.data_dir).join("member");
        let path = directory.join(FILE);
        let at = |source| IdentityError::Io { path: path.display().to_string(), source };
        disk.create_dir_all(&directory).map_err(at)?;
        disk.set_private(PathBuf::from(&config.data_dir).as_path()).map_err(at)?;
        disk.set_private(&directory).map_err(at)?;
        if disk.exists(&path).map_err(at)? {
            let bytes = disk::read_file(disk, &path, FILE_BYTES_MAX).map_err(at)?;
            let damaged =
                |detail| IdentityError::Damaged { path: path.display().to_string(), detail };
            let (member, cluster, discovered) = parse(&bytes).map_err(damaged)?;
            let founders = discovered.unwrap_or_else(|| config.cluster.initial.clone());
            let identity = Self { member, cluster, directory, founders };
            identity.check_expected(config)?;
            return Ok(identity);
        }
        let discovered = discovery::first_members(config).await?;
        let is_discovered = discovered.is_some();
        let founders = discovered.unwrap_or_else(|| config.cluster.initial.clone());
        let (member, cluster) = match config.cluster.state {
            ClusterState::New => {
                if !matches!(config.cluster.discovery, Some(Discovery::Registry(_))) {
                    check_founding(config, &founders).await?;
                }
                let (member, cluster) = founding(config, &founders)?;
                let others = others(&founders, &config.name);
                check_not_bootstrapped(member, cluster, &others, outbound).await?;
                (member, cluster)
            }
            ClusterState::Existing => {
                founders.check_joining(&config.name)?;
                ask_peers(config, &founders, outbound).await?
            }
        };
        let identity = Self { member, cluster, directory, founders };
        identity.check_expected(config)?;
        let kept = is_discovered.then(|| identity.founders.to_string());
        store(disk, &identity.directory, member, cluster, kept).map_err(at)?;
        Ok(identity)
    }

    fn check_expected(&self, config: &Config) -> Result<(), IdentityError> {
        let cluster = &config.cluster;
        if let Some(expected) = cluster.expect_cluster_id.filter(|id| *id != self.cluster) {
            return Err(IdentityError::Unexpected {
                what: "cluster",
                found: self.cluster.to_string(),
                expected: expected.to_string(),
            });
        }
        match cluster.expect_member_id.filter(|id| *id != self.member) {
            None => Ok(()),
            Some(expected) => Err(IdentityError::Unexpected {
                what: "member",
                found: self.member.to_string(),
                expected: expected.to_string(),
            }),
        }
    }
}

/// Writes the identity into the directory of a member, `member/` of the data directory.
pub fn write(
    disk: &dyn Disk,
    directory: &Path,
    member: MemberId,
    cluster: ClusterId,
) -> io::Result<()> {
    store(disk, directory, member, cluster, None)
}

fn store(
    disk: &dyn Disk,
    directory: &Path,
    member: MemberId,
    cluster: ClusterId,
    initial_cluster: Option<String>,
) -> io::Result<()> {
    let stored =
        Stored { member_id: member.to_string(), cluster_id: cluster.to_string(), initial_cluster };
    let bytes = serde_json::to_vec(&stored).map_err(io::Error::other)?;
    disk::write_file_atomically(disk, directory, FILE, &bytes)
}

type Parsed = (MemberId, ClusterId, Option<InitialCluster>);

fn parse(bytes: &[u8]) -> Result<Parsed, String> {
    let stored: Stored = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let id = |text: &str| u64::from_str_radix(text, 16).map_err(|error| error.to_string());
    let initial = stored.initial_cluster.as_deref().map(InitialCluster::parse).transpose();
    let initial = initial.map_err(|error| error.to_string())?;
    Ok((MemberId(id(&stored.member_id)?), ClusterId(id(&stored.cluster_id)?), initial))
}

fn founding(
    config: &Config,
    founders: &InitialCluster,
) -> Result<(MemberId, ClusterId), IdentityError> {
    let founding = Founding::compute(founders, &config.cluster.token);
    let own = founding.member(&config.name);
    let own = own.ok_or_else(|| IdentityError::NotInInitialCluster(config.name.clone()))?;
    Ok((own.id, founding.cluster_id))
}

/// A registry's members have told it what they advertise; whoever else founds must find it in the list.
async fn check_founding(config: &Config, founders: &InitialCluster) -> Result<(), IdentityError> {
    let (founders, name) = (founders.clone(), config.name.clone());
    let advertised = config.cluster.advertise_peer_urls.clone();
    // Looking names up waits.
    let check = move || founders.check_founding(&name, &advertised, &Hosts::patient());
    Ok(tokio::task::spawn_blocking(check).await??)
}

/// The names and peer URLs of the other members.
fn others<'m>(members: &'m InitialCluster, own: &str) -> Vec<(&'m str, Vec<String>)> {
    let others = members.members().filter(|(name, _)| *name != own);
    others.map(|(name, urls)| (name, urls.iter().map(ToString::to_string).collect())).collect()
}

/// Asks all other founders at once. One that does not answer says nothing.
async fn check_not_bootstrapped(
    member: MemberId,
    cluster: ClusterId,
    others: &[(&str, Vec<String>)],
    outbound: &Arc<Outbound>,
) -> Result<(), IdentityError> {
    let answers = others
        .iter()
        .map(|(_, urls)| tokio::time::timeout(FOUNDERS_TIMEOUT, outbound.members_at(urls)));
    for answer in join_all(answers).await {
        let Ok(Ok(answer)) = answer else { continue };
        let own = answer.members.iter().find(|known| known.id == member.0);
        if answer.cluster_id == cluster.0 && own.is_some_and(has_served) {
            return Err(IdentityError::Bootstrapped(member));
        }
    }
    Ok(())
}

fn has_served(member: &MemberDescription) -> bool {
    !member.client_urls.is_empty()
}

/// A member that was added to a running cluster is known there by its peer URLs.
async fn ask_peers(
    config: &Config,
    listed: &InitialCluster,
    outbound: &Arc<Outbound>,
) -> Result<(MemberId, ClusterId), IdentityError> {
    let others = others(listed, &config.name);
    let mut reason = "no other member is in --initial-cluster".to_owned();
    for attempt in 0..JOIN_ATTEMPTS {
        if attempt > 0 {
            tokio::time::sleep(JOIN_PAUSE).await;
        }
        let mut reasons = Vec::new();
        for (name, urls) in &others {
            let answer = match outbound.members_at(urls).await {
                Ok(answer) => answer,
                Err(error) => {
                    reasons.push(format!("{name}: {error}"));
                    continue;
                }
            };
            let (own, listed) = (config.name.clone(), listed.clone());
            let token = config.cluster.token.clone();
            // Looking names up waits; one that leads nowhere is asked for again with the next answer.
            let search = tokio::task::spawn_blocking(move || {
                joining::find(&own, &listed, &token, &answer, &Hosts::impatient())
                    .cloned()
                    .map(|own| (own, answer))
            });
            match search.await? {
                Ok((own, _)) if has_served(&own) => {
                    return Err(IdentityError::Bootstrapped(MemberId(own.id)));
                }
                Ok((own, answer)) => {
                    check_versions(&answer)?;
                    let learners = answer.members.iter().map(|member| member.is_learner);
                    config.cluster.check_learners(learners)?;
                    return Ok((MemberId(own.id), ClusterId(answer.cluster_id)));
                }
                Err(refusal) => reasons.push(format!("{name}: {refusal}")),
            }
        }
        if !reasons.is_empty() {
            reason = reasons.join("; ");
        }
        tracing::warn!(reason, "could not join the cluster yet; asking again");
    }
    Err(IdentityError::Unknown(reason))
}

/// A process that the cluster's members would not understand, or that does not know what they may keep,
/// ends before it has stored anything.
fn check_versions(answer: &proto::peerpb::MembersResponse) -> Result<(), IdentityError> {
    let members = ProtocolVersions { oldest: answer.protocol_min, newest: answer.protocol_max };
    Ok(crate::version::release().check_join(answer.cluster_version.parse().ok(), members)?)
}
