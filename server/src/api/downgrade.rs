//! Downgrades of the whole cluster: `Maintenance.Downgrade` (etcd: `etcdserver/version`).
//!
//! Enabling one only records the target in the replicated state. The leader then lowers the cluster's
//! version, after which members of the older version may join, and ends the downgrade once every
//! member runs it (`chores::cluster_version`).

use machine::{Caller, ClusterVersion, CommandKind, Outcome};
use prost::Message;
use proto::etcdserverpb::downgrade_request::DowngradeAction;
use proto::etcdserverpb::{DowngradeRequest, DowngradeResponse};
use proto::membershippb::DowngradeInfoSetRequest;
use tonic::Status;

use super::context::ApiContext;
use super::kv::unexpected;
use super::status::ApiError;
use crate::chores::cluster_version::is_valid_downgrade;

/// Validates, enables or cancels a downgrade.
pub(super) async fn downgrade(
    context: &ApiContext,
    request: &DowngradeRequest,
    caller: &Caller,
) -> Result<DowngradeResponse, Status> {
    match DowngradeAction::try_from(request.action) {
        Ok(DowngradeAction::Validate) => {
            validate(context, &request.version).await?;
        }
        Ok(DowngradeAction::Enable) => {
            let target = validate(context, &request.version).await.inspect_err(|refusal| {
                tracing::warn!(error = refusal.message(), "reject downgrade request");
            })?;
            set(context, caller, true, &target.to_string()).await?;
        }
        Ok(DowngradeAction::Cancel) => {
            // As etcd 3.7 does it: that there was nothing to cancel is logged and not an error.
            if let Err(refusal) = cancel(context, caller).await {
                tracing::warn!(error = refusal.message(), "failed to cancel downgrade");
            }
        }
        Err(_) => return Err(Status::unknown("etcdserver: unknown method")),
    }
    let version = context.handle.views().cluster_version();
    Ok(DowngradeResponse {
        header: Some(context.header(context.handle.views().mvcc.revision())),
        version: version.map(|v| format!("{}.{}", v.major, v.minor)).unwrap_or_default(),
    })
}

/// The target, if the cluster may be downgraded to it now.
async fn validate(context: &ApiContext, target: &str) -> Result<ClusterVersion, Status> {
    let target = parse(target).ok_or(ApiError::WrongDowngradeVersionFormat)?;
    let known = || context.handle.views().cluster_version();
    if known().is_none() {
        return Err(ApiError::ClusterVersionUnavailable.into());
    }
    // What is known here may be older than a downgrade that another member has begun.
    context.linearize().await?;
    if !known().is_some_and(|cluster| is_valid_downgrade(cluster, target)) {
        return Err(ApiError::InvalidDowngradeTargetVersion.into());
    }
    if context.handle.views().tables().downgrade.target_version.is_some() {
        return Err(ApiError::DowngradeInProcess.into());
    }
    Ok(target)
}

async fn cancel(context: &ApiContext, caller: &Caller) -> Result<(), Status> {
    context.linearize().await?;
    if context.handle.views().tables().downgrade.target_version.is_none() {
        return Err(ApiError::NoInflightDowngrade.into());
    }
    set(context, caller, false, "").await
}

async fn set(
    context: &ApiContext,
    caller: &Caller,
    enabled: bool,
    version: &str,
) -> Result<(), Status> {
    let request = DowngradeInfoSetRequest { enabled, ver: version.to_owned() };
    let body = request.encode_to_vec().into();
    match context.propose(CommandKind::DowngradeInfoSet, body, caller).await? {
        Outcome::DowngradeInfoSet => Ok(()),
        other => Err(unexpected(&other)),
    }
}

/// `major.minor` or `major.minor.patch`, of which the patch does not matter.
fn parse(text: &str) -> Option<ClusterVersion> {
    semantic(text).or_else(|| semantic(&format!("{text}.0")))
}

/// A semantic version as etcd's library reads it: zeros may lead, and what follows `-` and `+` has to
/// be there in the right form and does not matter.
fn semantic(text: &str) -> Option<ClusterVersion> {
    let (text, before_release) = text.split_once('-').unwrap_or((text, ""));
    let (text, build) = text.split_once('+').unwrap_or((text, ""));
    let is_identifier = |text: &str| {
        let is_part = |part: &str| {
            !part.is_empty()
                && part.bytes().all(|letter| letter.is_ascii_alphanumeric() || letter == b'-')
        };
        text.is_empty() || text.split('.').all(is_part)
    };
    let mut numbers = text.split('.').map(|number| {
        let digits = !number.is_empty() && number.bytes().all(|letter| letter.is_ascii_digit());
        number.parse().ok().filter(|_| digits)
    });
    let mut next = || numbers.next().flatten();
    let (major, minor, _) = (next()?, next()?, next()?);
    let ends = numbers.next().is_none();
    (ends && is_identifier(before_release) && is_identifier(build)).then_some(ClusterVersion {
        major,
        minor,
        patch: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_has_two_numbers_or_three() {
        let version = |minor| Some(ClusterVersion { major: 3, minor, patch: 0 });
        assert_eq!(parse("3.6"), version(6));
        for good in ["3.6.9", "03.6.0", "3.6.0-rc.1", "3.6.0+x", "3.6.0-"] {
            assert_eq!(parse(good), version(6), "{good}");
        }
        for bad in ["", "3", "3.6.", "v3.6", "3.6.0.1", "latest", "-3.6.0", "3.6.0-a..b", "3.6.0+_"]
        {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
