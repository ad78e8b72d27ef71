//! Every refusal of the API as a gRPC status: etcd's codes and etcd's exact texts, in one table.
//!
//! Clients compare the text: Go's client finds its error values by the description. Two errors look
//! wrong and are not: `MemberNotEnoughStarted` and `TooManyRequests` reach the wire as `Unknown`,
//! because etcd maps them to the client-side values of its errors
//! (`server/etcdserver/api/v3rpc/util.go`).

use machine::AuthRefusal;
use replica::{MembershipRefusal, Unavailable};
use tonic::{Code, Status};

use crate::read_budget::Refused;

/// An error of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ApiError {
    EmptyKey,
    KeyNotFound,
    ValueProvided,
    LeaseProvided,
    TooManyOps,
    DuplicateKey,
    InvalidClientApiVersion,
    InvalidSortOption,
    Compacted,
    FutureRevision,
    NoSpace,
    LeaseNotFound,
    LeaseExists,
    LeaseTtlTooLarge,
    MemberExists,
    PeerUrlExists,
    MemberNotEnoughStarted,
    MemberBadUrls,
    MemberNotFound,
    MemberNotLearner,
    LearnerNotReady,
    TooManyLearners,
    RequestTooLarge,
    TooManyRequests,
    NoLeader,
    NotLeader,
    LeaderChanged,
    Stopped,
    Timeout,
    TimeoutLeaderFailure,
    TimeoutConnectionLost,
    TimeoutWaitAppliedIndex,
    Unhealthy,
    Corrupt,
    BadLeaderTransferee,
    NotSupportedForLearner,
    RootUserNotFound,
    RootRoleNotGranted,
    UserExists,
    UserEmpty,
    UserNotFound,
    RoleExists,
    RoleNotFound,
    RoleEmpty,
    AuthFailed,
    PermissionNotGiven,
    PermissionDenied,
    RoleNotGranted,
    PermissionNotGranted,
    AuthNotEnabled,
    InvalidAuthToken,
    InvalidAuthManagement,
    AuthOldRevision,
    WrongDowngradeVersionFormat,
    InvalidDowngradeTargetVersion,
    ClusterVersionUnavailable,
    DowngradeInProcess,
    NoInflightDowngrade,
}

impl ApiError {
    #[expect(clippy::too_many_lines, reason = "one table, a line per error")]
    fn code_and_text(self) -> (Code, &'static str) {
        use Code::{
            DataLoss, FailedPrecondition, InvalidArgument, NotFound, OutOfRange, ResourceExhausted,
            Unknown,
        };
        // Spelled out: this enum has a variant of the same name.
        let unavailable = Code::Unavailable;
        match self {
            Self::EmptyKey => (InvalidArgument, "etcdserver: key is not provided"),
            Self::KeyNotFound => (InvalidArgument, "etcdserver: key not found"),
            Self::ValueProvided => (InvalidArgument, "etcdserver: value is provided"),
            Self::LeaseProvided => (InvalidArgument, "etcdserver: lease is provided"),
            Self::TooManyOps => (InvalidArgument, "etcdserver: too many operations in txn request"),
            Self::DuplicateKey => {
                (InvalidArgument, "etcdserver: duplicate key given in txn request")
            }
            Self::InvalidClientApiVersion => {
                (InvalidArgument, "etcdserver: invalid client api version")
            }
            Self::InvalidSortOption => (InvalidArgument, "etcdserver: invalid sort option"),
            Self::Compacted => {
                (OutOfRange, "etcdserver: mvcc: required revision has been compacted")
            }
            Self::FutureRevision => {
                (OutOfRange, "etcdserver: mvcc: required revision is a future revision")
            }
            Self::NoSpace => (ResourceExhausted, "etcdserver: mvcc: database space exceeded"),
            Self::LeaseNotFound => (NotFound, "etcdserver: requested lease not found"),
            Self::LeaseExists => (FailedPrecondition, "etcdserver: lease already exists"),
            Self::LeaseTtlTooLarge => (OutOfRange, "etcdserver: too large lease TTL"),
            Self::MemberExists => (FailedPrecondition, "etcdserver: member ID already exist"),
            Self::PeerUrlExists => (FailedPrecondition, "etcdserver: Peer URLs already exists"),
            Self::MemberNotEnoughStarted => {
                (Unknown, "etcdserver: re-configuration failed due to not enough started members")
            }
            Self::MemberBadUrls => (InvalidArgument, "etcdserver: given member URLs are invalid"),
            Self::MemberNotFound => (NotFound, "etcdserver: member not found"),
            Self::MemberNotLearner => {
                (FailedPrecondition, "etcdserver: can only promote a learner member")
            }
            Self::LearnerNotReady => (
                FailedPrecondition,
                "etcdserver: can only promote a learner member which is in sync with leader",
            ),
            Self::TooManyLearners => {
                (FailedPrecondition, "etcdserver: too many learner members in cluster")
            }
            Self::RequestTooLarge => (InvalidArgument, "etcdserver: request is too large"),
            Self::TooManyRequests => (Unknown, "etcdserver: too many requests"),
            Self::NoLeader => (unavailable, "etcdserver: no leader"),
            Self::NotLeader => (FailedPrecondition, "etcdserver: not leader"),
            Self::LeaderChanged => (unavailable, "etcdserver: leader changed"),
            Self::Stopped => (unavailable, "etcdserver: server stopped"),
            Self::Timeout => (unavailable, "etcdserver: request timed out"),
            Self::TimeoutLeaderFailure => (
                unavailable,
                "etcdserver: request timed out, possibly due to previous leader failure",
            ),
            Self::TimeoutConnectionLost => {
                (unavailable, "etcdserver: request timed out, possibly due to connection lost")
            }
            Self::TimeoutWaitAppliedIndex => (
                unavailable,
                "etcdserver: request timed out, waiting for the applied index took too long",
            ),
            Self::Unhealthy => (unavailable, "etcdserver: unhealthy cluster"),
            Self::Corrupt => (DataLoss, "etcdserver: corrupt cluster"),
            Self::BadLeaderTransferee => (FailedPrecondition, "etcdserver: bad leader transferee"),
            Self::RootUserNotFound => (FailedPrecondition, "etcdserver: root user does not exist"),
            Self::RootRoleNotGranted => {
                (FailedPrecondition, "etcdserver: root user does not have root role")
            }
            Self::UserExists => (FailedPrecondition, "etcdserver: user name already exists"),
            Self::UserEmpty => (InvalidArgument, "etcdserver: user name is empty"),
            Self::UserNotFound => (FailedPrecondition, "etcdserver: user name not found"),
            Self::RoleExists => (FailedPrecondition, "etcdserver: role name already exists"),
            Self::RoleNotFound => (FailedPrecondition, "etcdserver: role name not found"),
            Self::RoleEmpty => (InvalidArgument, "etcdserver: role name is empty"),
            Self::AuthFailed => {
                (InvalidArgument, "etcdserver: authentication failed, invalid user ID or password")
            }
            Self::PermissionNotGiven => (InvalidArgument, "etcdserver: permission not given"),
            Self::PermissionDenied => (Code::PermissionDenied, "etcdserver: permission denied"),
            Self::RoleNotGranted => {
                (FailedPrecondition, "etcdserver: role is not granted to the user")
            }
            Self::PermissionNotGranted => {
                (FailedPrecondition, "etcdserver: permission is not granted to the role")
            }
            Self::AuthNotEnabled => {
                (FailedPrecondition, "etcdserver: authentication is not enabled")
            }
            Self::InvalidAuthToken => (Code::Unauthenticated, "etcdserver: invalid auth token"),
            Self::InvalidAuthManagement => (InvalidArgument, "etcdserver: invalid auth management"),
            Self::AuthOldRevision => (InvalidArgument, "etcdserver: revision of auth store is old"),
            Self::NotSupportedForLearner => {
                (FailedPrecondition, "etcdserver: rpc not supported for learner")
            }
            Self::WrongDowngradeVersionFormat => {
                (InvalidArgument, "etcdserver: wrong downgrade target version format")
            }
            Self::InvalidDowngradeTargetVersion => {
                (InvalidArgument, "etcdserver: invalid downgrade target version")
            }
            Self::ClusterVersionUnavailable => {
                (FailedPrecondition, "etcdserver: cluster version not found during downgrade")
            }
            Self::DowngradeInProcess => {
                (FailedPrecondition, "etcdserver: cluster has a downgrade job in progress")
            }
            Self::NoInflightDowngrade => {
                (FailedPrecondition, "etcdserver: no inflight downgrade job")
            }
        }
    }
}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Status {
        let (code, text) = error.code_and_text();
        Status::new(code, text)
    }
}

impl From<Refused> for Status {
    fn from(_: Refused) -> Status {
        ApiError::TooManyRequests.into()
    }
}

impl From<AuthRefusal> for ApiError {
    fn from(refusal: AuthRefusal) -> ApiError {
        match refusal {
            AuthRefusal::RootUserNotFound => ApiError::RootUserNotFound,
            AuthRefusal::RootRoleNotGranted => ApiError::RootRoleNotGranted,
            AuthRefusal::UserExists => ApiError::UserExists,
            AuthRefusal::UserEmpty => ApiError::UserEmpty,
            AuthRefusal::UserNotFound => ApiError::UserNotFound,
            AuthRefusal::RoleExists => ApiError::RoleExists,
            AuthRefusal::RoleNotFound => ApiError::RoleNotFound,
            AuthRefusal::RoleEmpty => ApiError::RoleEmpty,
            AuthRefusal::PermissionNotGiven => ApiError::PermissionNotGiven,
            AuthRefusal::AuthenticationFailed | AuthRefusal::NoPasswordUser => ApiError::AuthFailed,
            AuthRefusal::PermissionDenied => ApiError::PermissionDenied,
            AuthRefusal::RoleNotGranted => ApiError::RoleNotGranted,
            AuthRefusal::PermissionNotGranted => ApiError::PermissionNotGranted,
            AuthRefusal::NotEnabled => ApiError::AuthNotEnabled,
            AuthRefusal::OldRevision => ApiError::AuthOldRevision,
            AuthRefusal::InvalidManagement => ApiError::InvalidAuthManagement,
        }
    }
}

impl From<Unavailable> for ApiError {
    fn from(reason: Unavailable) -> ApiError {
        match reason {
            Unavailable::TooManyRequests => ApiError::TooManyRequests,
            Unavailable::NoLeader => ApiError::NoLeader,
            Unavailable::LeaderChanged | Unavailable::NotApplied => ApiError::LeaderChanged,
            Unavailable::NotLeader => ApiError::NotLeader,
            Unavailable::Timeout => ApiError::Timeout,
            Unavailable::TimeoutLeaderFailure => ApiError::TimeoutLeaderFailure,
            Unavailable::TimeoutConnectionLost => ApiError::TimeoutConnectionLost,
            Unavailable::TimeoutWaitAppliedIndex => ApiError::TimeoutWaitAppliedIndex,
            Unavailable::Unhealthy => ApiError::Unhealthy,
            Unavailable::Stopped => ApiError::Stopped,
        }
    }
}

impl From<MembershipRefusal> for ApiError {
    fn from(refusal: MembershipRefusal) -> ApiError {
        match refusal {
            MembershipRefusal::MemberNotFound => ApiError::MemberNotFound,
            MembershipRefusal::MemberIdExists => ApiError::MemberExists,
            MembershipRefusal::PeerUrlExists => ApiError::PeerUrlExists,
            MembershipRefusal::NotEnoughStarted => ApiError::MemberNotEnoughStarted,
            MembershipRefusal::NotLearner => ApiError::MemberNotLearner,
            MembershipRefusal::LearnerNotReady => ApiError::LearnerNotReady,
            MembershipRefusal::TooManyLearners => ApiError::TooManyLearners,
            MembershipRefusal::Unhealthy => ApiError::Unhealthy,
            MembershipRefusal::Unavailable(reason) => reason.into(),
        }
    }
}

/// An error that etcd has no table entry for: a storage fault while reading. The text names it.
pub(crate) fn internal(error: &impl std::fmt::Display) -> Status {
    Status::unknown(error.to_string())
}

/// A range that cannot be answered.
pub(crate) fn range_error(error: mvcc::RangeError) -> Status {
    match error {
        mvcc::RangeError::Compacted => ApiError::Compacted.into(),
        mvcc::RangeError::FutureRevision => ApiError::FutureRevision.into(),
        mvcc::RangeError::Store(error) => internal(&error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Those that clients meet only by chance; `e2e/tests/differential_calls/errors.rs` has the reasons,
    /// and meets the others at both servers.
    #[test]
    fn what_is_met_by_chance_has_etcds_code_and_text() {
        let timed_out = "etcdserver: request timed out";
        for (error, code, text) in [
            (
                Unavailable::TooManyRequests.into(),
                Code::Unknown,
                "etcdserver: too many requests".to_owned(),
            ),
            (
                Unavailable::LeaderChanged.into(),
                Code::Unavailable,
                "etcdserver: leader changed".to_owned(),
            ),
            (
                Unavailable::Stopped.into(),
                Code::Unavailable,
                "etcdserver: server stopped".to_owned(),
            ),
            (Unavailable::Timeout.into(), Code::Unavailable, timed_out.to_owned()),
            (
                Unavailable::TimeoutLeaderFailure.into(),
                Code::Unavailable,
                format!("{timed_out}, possibly due to previous leader failure"),
            ),
            (
                Unavailable::TimeoutConnectionLost.into(),
                Code::Unavailable,
                format!("{timed_out}, possibly due to connection lost"),
            ),
            (
                Unavailable::TimeoutWaitAppliedIndex.into(),
                Code::Unavailable,
                format!("{timed_out}, waiting for the applied index took too long"),
            ),
            (
                MembershipRefusal::MemberIdExists.into(),
                Code::FailedPrecondition,
                "etcdserver: member ID already exist".to_owned(),
            ),
            (
                ApiError::ClusterVersionUnavailable,
                Code::FailedPrecondition,
                "etcdserver: cluster version not found during downgrade".to_owned(),
            ),
        ] {
            let status = Status::from(error);
            assert_eq!((status.code(), status.message()), (code, &*text));
        }
    }
}
