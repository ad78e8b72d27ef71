//! How a member learns who founds its cluster with it, when `--initial-cluster` does not say so.
//!
//! Either from the SRV records of a domain ([`dns`]), or by meeting in another etcd cluster
//! ([`registry`]), whichever of Go etcd's or of ours it is. It happens once: who has an identity knows
//! its cluster and looks nowhere, so that neither DNS nor the other cluster can lead it elsewhere.
//!
//! Deliberately absent: etcd's v2 discovery and the public service that went with it.

mod dns;
mod registry;

use crate::config::{ClusterState, Config, Discovery, InitialCluster};

/// Why the first members are not known, in etcd's words.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiscoveryError {
    #[error("error setting up initial cluster: {0}")]
    Dns(String),
    #[error("error setting up initial cluster: cannot find local etcd member {0:?} in SRV records")]
    NotInDns(String),
    #[error("discovery URL should not be set when joining existing initial cluster")]
    Existing,
    #[error("failed to join discovery cluster ({0})")]
    Registry(#[from] RegistryError),
    #[error("the discovery was interrupted: {0}")]
    Interrupted(#[from] tokio::task::JoinError),
}

/// Why members could not meet in the registry.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegistryError {
    #[error("discovery: invalid peer URL")]
    InvalidUrl,
    #[error("discovery: size key is bad")]
    BadSize,
    #[error("discovery: size key not found")]
    SizeNotFound,
    #[error("discovery: cluster is full")]
    Full,
    #[error("discovery cluster {0} has duplicate url")]
    DuplicateUrl(String),
    /// etcd would merge the two into one member, and the cluster would be smaller than wanted.
    #[error("discovery cluster {0} has several members of one name; give each its own --name")]
    DuplicateName(String),
    #[error(transparent)]
    Client(#[from] client::Error),
}

/// The first members of the cluster; nothing if the flags name them.
///
/// # Errors
/// They cannot be found, or this member is not one of them.
pub(crate) async fn first_members(
    config: &Config,
) -> Result<Option<InitialCluster>, DiscoveryError> {
    let advertised = &config.cluster.advertise_peer_urls;
    match &config.cluster.discovery {
        None => Ok(None),
        Some(Discovery::Dns { domain, service_name }) => {
            let question = dns::Question {
                domain: domain.clone(),
                service_name: service_name.clone(),
                name: config.name.clone(),
                advertised: advertised.clone(),
            };
            // Asking the name servers waits, and nothing else goes on yet.
            let answer = tokio::task::spawn_blocking(move || question.ask());
            answer.await?.map(Some)
        }
        Some(Discovery::Registry(_)) if config.cluster.state == ClusterState::Existing => {
            Err(DiscoveryError::Existing)
        }
        Some(Discovery::Registry(registry)) => {
            let own = registry::Own {
                id: crate::ids::founding_member_id(advertised, &registry.token),
                urls: config.cluster.initial.to_string(),
            };
            match registry::join(registry, own).await {
                Ok(members) => Ok(Some(members)),
                Err(error) => {
                    if matches!(error, RegistryError::Full) {
                        tracing::warn!(
                            "discovery-token" = registry.token,
                            "discovery-endpoints" = ?registry.client.endpoints,
                            %error,
                            "failed to bootstrap; discovery token was already used"
                        );
                        tracing::warn!(
                            "do not reuse discovery token; generate a new one to bootstrap a cluster"
                        );
                    }
                    Err(error.into())
                }
            }
        }
    }
}
