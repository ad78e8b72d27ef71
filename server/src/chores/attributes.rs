//! Publishing this member's name and client URLs (etcd: `publishV3`): once after the start, until
//! the log has taken it. Until then the member lists as one that has not started.

use std::time::Duration;

use machine::{CommandKind, Outcome, Proposal, Refusal};
use proto::membershippb::{Attributes, ClusterMemberAttrSetRequest};
use replica::{Handle, Unavailable};
use tokio_util::sync::CancellationToken;
use types::MemberId;

/// How long to wait before the next attempt.
const PAUSE: Duration = Duration::from_millis(200);

/// Why nothing was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    #[error("this member was removed from the cluster")]
    Removed,
    #[error("the server is stopping")]
    Stopped,
}

/// Publishes and returns when this member has applied it.
///
/// # Errors
/// When there is no point in trying again.
pub async fn publish(
    handle: &Handle,
    member: MemberId,
    name: &str,
    client_urls: &[String],
    stop: &CancellationToken,
) -> Result<(), PublishError> {
    let request = ClusterMemberAttrSetRequest {
        member_id: member.0,
        member_attributes: Some(Attributes {
            name: name.to_owned(),
            client_urls: client_urls.to_vec(),
        }),
    };
    loop {
        let published = handle.propose(Proposal::new(CommandKind::MemberAttributes, &request));
        let outcome = tokio::select! {
            biased;
            () = stop.cancelled() => return Err(PublishError::Stopped),
            outcome = published => outcome,
        };
        match outcome {
            Ok(Outcome::Refused(Refusal::MemberRemoved)) => return Err(PublishError::Removed),
            Ok(Outcome::Refused(refusal)) => {
                // A member that is being added may not be in this member's configuration yet.
                tracing::warn!(%refusal, "failed to publish local member to cluster through raft");
            }
            Ok(_) => {
                tracing::info!(
                    "local-member-id" = %member,
                    name,
                    "published local member to cluster through raft"
                );
                return Ok(());
            }
            Err(Unavailable::Stopped) => return Err(PublishError::Stopped),
            Err(error) => {
                tracing::warn!(%error, "failed to publish local member to cluster through raft");
            }
        }
        tokio::select! {
            () = stop.cancelled() => return Err(PublishError::Stopped),
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}
