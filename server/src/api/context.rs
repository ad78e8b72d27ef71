//! What every handler needs, and the checks that services share.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use deadlines::LeaseClock;
use machine::{AlarmKind, AuthRefusal, Caller, CommandKind, Outcome, Proposal, Refusal, Views};
use proto::etcdserverpb::ResponseHeader;
use replica::{Handle, Unavailable};
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};
use types::{ClusterId, MemberId, Revision};

use super::status::ApiError;
use crate::auth::Authentication;
use crate::boot::ServerFacts;
use crate::chores::space;
use crate::config::Config;
use crate::events::HubCell;
use crate::ops::observed::operation;
use crate::ops::spans::Span;

/// What requests may cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Bytes of one request, as it is proposed.
    pub(crate) request_bytes_max: usize,
    /// Operations of one transaction.
    pub(crate) txn_ops_max: usize,
    /// Bytes the data may take before writes are refused; none for no limit.
    pub(crate) quota_bytes: Option<u64>,
    /// The shortest time to live of a lease, in seconds.
    pub(crate) lease_ttl_min: i64,
}

/// etcd lets gRPC read this much more than a request may be, for what wraps it.
const GRPC_OVERHEAD_BYTES: usize = 512 << 10;

impl Limits {
    /// What a configuration allows.
    pub(crate) fn of(config: &Config) -> Self {
        let election = config.raft.election_timeout.as_secs_f64();
        Self {
            request_bytes_max: config.limits.request_bytes_max,
            txn_ops_max: config.limits.txn_ops_max,
            quota_bytes: config.limits.quota_bytes,
            // etcd's minimum: one and a half election timeouts, in whole seconds.
            lease_ttl_min: (1.5 * election).ceil() as i64,
        }
    }

    /// What gRPC accepts as one message.
    pub(crate) fn message_bytes_max(&self) -> usize {
        self.request_bytes_max + GRPC_OVERHEAD_BYTES
    }
}

/// Shared by the handlers of one RPC thread.
#[derive(Clone)]
pub(crate) struct ApiContext {
    pub(crate) handle: Handle,
    pub(crate) hub: HubCell,
    pub(crate) leases: LeaseClock,
    pub(crate) cluster_id: ClusterId,
    pub(crate) member_id: MemberId,
    pub(crate) limits: Limits,
    pub(crate) server: Arc<ServerFacts>,
    pub(crate) authentication: Authentication,
}

impl ApiContext {
    /// The header of an answer at `revision`.
    pub(crate) fn header(&self, revision: Revision) -> ResponseHeader {
        ResponseHeader {
            cluster_id: self.cluster_id.0,
            member_id: self.member_id.0,
            revision: revision.0,
            raft_term: self.handle.term().0,
        }
    }

    /// Fills the header that apply left with a revision only.
    pub(crate) fn complete(&self, header: &mut Option<ResponseHeader>) {
        let revision = header.as_ref().map_or(0, |header| header.revision);
        *header = Some(self.header(Revision(revision)));
    }

    /// Refuses what a learner does not serve, and what the caller wants only from a member that has
    /// a leader (metadata `hasleader`).
    pub(crate) fn admit(&self, metadata: &MetadataMap, learner_may: bool) -> Result<(), Status> {
        if !learner_may && self.handle.is_learner() {
            return Err(ApiError::NotSupportedForLearner.into());
        }
        if metadata
            .get("client-api-version")
            .is_some_and(|version| std::str::from_utf8(version.as_encoded_bytes()).is_err())
        {
            return Err(ApiError::InvalidClientApiVersion.into());
        }
        if wants_leader(metadata) && self.handle.leader().is_none() {
            return Err(ApiError::NoLeader.into());
        }
        Ok(())
    }

    /// Proposes a caller's request and waits for what became of it.
    pub(crate) async fn propose(
        &self,
        kind: CommandKind,
        body: bytes::Bytes,
        caller: &Caller,
    ) -> Result<Outcome, Status> {
        let began = Instant::now();
        let answered = |went_through| {
            self.server.request_times.answered(operation(kind), went_through, began.elapsed());
        };
        if body.len() > self.limits.request_bytes_max {
            answered(false);
            return Err(ApiError::RequestTooLarge.into());
        }
        let proposal = Proposal { kind, body, caller: caller.clone() };
        let span = Span::current();
        if let Some(span) = &span {
            span.event("Send raft proposal");
        }
        let answer = self.handle.propose(proposal).await;
        if let Some(span) = &span {
            match &answer {
                Ok(_) => span.event("Receive raft result"),
                Err(reason) => {
                    span.exception(Status::from(ApiError::from(*reason)).message());
                }
            }
        }
        // As in etcd, what apply refuses has gone through as well.
        answered(answer.is_ok());
        match answer {
            Ok(Outcome::Refused(refusal)) => Err(refusal_status(refusal)),
            Ok(outcome) => Ok(outcome),
            Err(reason) => Err(ApiError::from(reason).into()),
        }
    }

    /// Waits until a local read is linearizable.
    pub(crate) async fn linearize(&self) -> Result<(), Status> {
        self.handle.read_index().await.map_err(|reason: Unavailable| ApiError::from(reason).into())
    }

    /// Whether `cost` more bytes fit; if not, the NOSPACE alarm is raised for this member.
    pub(crate) async fn check_quota(&self, cost: u64) -> Result<(), Status> {
        if cost == 0 {
            return Ok(());
        }
        if self.server.low_space.load(Ordering::Relaxed) {
            return Err(ApiError::NoSpace.into());
        }
        // Apply refuses it for certain; here it is kept out of the log of a member without space.
        // What this member knows may be old, so it is looked at again after a round with the leader.
        if self.handle.with_views(Views::no_space) {
            self.linearize().await?;
            let (no_space, corrupt) = self.handle.with_views(|views| {
                (views.no_space(), !views.alarms(AlarmKind::CORRUPT).is_empty())
            });
            // With both alarms apply names the other one, and so does this.
            if no_space {
                return Err(if corrupt { ApiError::Corrupt } else { ApiError::NoSpace }.into());
            }
        }
        let Some(quota) = self.limits.quota_bytes else { return Ok(()) };
        if space::fits(&self.handle, cost, quota) {
            return Ok(());
        }
        // The refusal stands whether or not the alarm could be raised; the next write tries again.
        if let Err(error) = self.raise_no_space().await {
            tracing::warn!(%error, "the NOSPACE alarm could not be raised");
        }
        Err(ApiError::NoSpace.into())
    }

    async fn raise_no_space(&self) -> Result<(), Status> {
        use prost::Message;
        use proto::etcdserverpb::{AlarmRequest, AlarmType, alarm_request::AlarmAction};
        let request = AlarmRequest {
            action: AlarmAction::Activate as i32,
            member_id: self.member_id.0,
            alarm: AlarmType::Nospace as i32,
        };
        let body = request.encode_to_vec().into();
        // On this member's own behalf.
        self.propose(CommandKind::Alarm, body, &Caller::default()).await.map(|_| ())
    }
}

pub(super) fn wants_leader(metadata: &MetadataMap) -> bool {
    metadata.get("hasleader").is_some_and(|value| value.as_bytes() == b"true")
}

/// Takes a request apart after the checks that all methods share.
pub(crate) fn admitted<R>(
    context: &ApiContext,
    request: Request<R>,
    learner_may: bool,
) -> Result<R, Status> {
    context.admit(request.metadata(), learner_may)?;
    Ok(request.into_inner())
}

/// What apply refused, as the client is told.
pub(crate) fn refusal_status(refusal: Refusal) -> Status {
    let error = match refusal {
        Refusal::EmptyKey => ApiError::EmptyKey,
        Refusal::KeyNotFound => ApiError::KeyNotFound,
        Refusal::ValueProvided => ApiError::ValueProvided,
        Refusal::LeaseProvided => ApiError::LeaseProvided,
        Refusal::TooManyOperations => ApiError::TooManyOps,
        Refusal::DuplicateKey => ApiError::DuplicateKey,
        Refusal::InvalidSortOption => ApiError::InvalidSortOption,
        Refusal::Compacted => ApiError::Compacted,
        Refusal::FutureRevision => ApiError::FutureRevision,
        Refusal::NoSpace => ApiError::NoSpace,
        Refusal::Corrupt => ApiError::Corrupt,
        Refusal::LeaseNotFound => ApiError::LeaseNotFound,
        Refusal::LeaseExists => ApiError::LeaseExists,
        Refusal::LeaseTtlTooLarge => ApiError::LeaseTtlTooLarge,
        Refusal::MemberNotFound | Refusal::MemberRemoved => ApiError::MemberNotFound,
        // Only our own chores propose what can be refused like this.
        Refusal::StaleTerm { .. } => ApiError::LeaderChanged,
        Refusal::InvalidVersion => ApiError::WrongDowngradeVersionFormat,
        // etcd has no table entry for it, so the wire says Unknown.
        Refusal::Auth(AuthRefusal::NoPasswordUser) => {
            return Status::unknown(
                "auth: authentication failed, password was given for no password user",
            );
        }
        Refusal::Auth(refusal) => refusal.into(),
    };
    error.into()
}
