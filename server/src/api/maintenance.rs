//! `etcdserverpb.Maintenance` and `grpc.health.v1.Health`.

use std::pin::Pin;

use futures_util::{Stream, StreamExt, TryStreamExt};
use machine::{Alarm, AlarmKind, CommandKind, Outcome};
use prost::Message;
use proto::etcdserverpb::maintenance_server::{Maintenance, MaintenanceServer};
use proto::etcdserverpb::{
    AlarmRequest, AlarmResponse, AlarmType, DefragmentRequest, DefragmentResponse, DowngradeInfo,
    DowngradeRequest, DowngradeResponse, HashKvRequest, HashKvResponse, HashRequest, HashResponse,
    MoveLeaderRequest, MoveLeaderResponse, SnapshotRequest, SnapshotResponse, StatusRequest,
    StatusResponse, alarm_request,
};
use proto::health::health_check_response::ServingStatus;
use proto::health::health_server::{Health, HealthServer};
use proto::health::{
    HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse,
};
use tonic::{Request, Response, Status};
use types::MemberId;

use super::access::Access;
use super::context::{ApiContext, admitted, wants_leader};
use super::downgrade;
use super::kv::unexpected;
use super::leader::while_led;
use super::status::{ApiError, internal, range_error};
use crate::snapshot_file::{self, SnapshotFileError};
use crate::version;

/// The service of one RPC thread.
pub(crate) struct MaintenanceService {
    context: ApiContext,
}

pub(crate) fn service(context: ApiContext) -> MaintenanceServer<MaintenanceService> {
    MaintenanceServer::new(MaintenanceService { context })
}

#[tonic::async_trait]
impl Maintenance for MaintenanceService {
    async fn alarm(
        &self,
        request: Request<AlarmRequest>,
    ) -> Result<Response<AlarmResponse>, Status> {
        let credentials = self.context.credentials(&request);
        let request = admitted(&self.context, request, false)?;
        let lists = request.action == alarm_request::AlarmAction::Get as i32;
        let access = if lists { Access::AnyUser } else { Access::Admin };
        let caller = self.context.caller(&credentials, access).await?;
        let is_kind = AlarmType::try_from(request.alarm).is_ok();
        if lists && !is_kind {
            // There are none of a kind that there is not.
            self.context.linearize().await?;
            let revision = self.context.handle.views().mvcc.revision();
            let header = Some(self.context.header(revision));
            return Ok(Response::new(AlarmResponse { header, alarms: Vec::new() }));
        }
        if !is_kind || alarm_request::AlarmAction::try_from(request.action).is_err() {
            return Err(Status::invalid_argument("etcdserver: unknown alarm or action"));
        }
        match self
            .context
            .propose(CommandKind::Alarm, request.encode_to_vec().into(), &caller)
            .await?
        {
            Outcome::Alarm(mut response) => {
                self.context.complete(&mut response.header);
                Ok(Response::new(response))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        let credentials = self.context.credentials(&request);
        admitted(&self.context, request, true)?;
        self.context.caller(&credentials, Access::AnyUser).await?;
        let status = self.context.handle.status();
        let views = self.context.handle.views();
        let size = views.mvcc.store_size();
        let mut errors = Vec::new();
        if status.answered_leader().is_none() {
            errors.push("etcdserver: no leader".to_owned());
        }
        errors.extend(views.alarms(AlarmKind::NONE).iter().map(alarm_text));
        let downgrade = views.tables().downgrade;
        Ok(Response::new(StatusResponse {
            header: Some(self.context.header(views.mvcc.revision())),
            version: version::release().etcd,
            db_size: to_i64(size.total),
            leader: status.answered_leader().map_or(0, |id| id.0),
            raft_index: status.committed.0,
            raft_term: status.term.0,
            raft_applied_index: status.applied.0,
            errors,
            db_size_in_use: to_i64(size.in_use),
            is_learner: status.is_learner,
            storage_version: version::told_storage(views.tables().cluster_version),
            db_size_quota: to_i64(self.context.limits.quota_bytes.unwrap_or(0)),
            downgrade_info: Some(DowngradeInfo {
                enabled: downgrade.target_version.is_some(),
                target_version: downgrade.target_version.unwrap_or_default(),
            }),
        }))
    }

    async fn defragment(
        &self,
        request: Request<DefragmentRequest>,
    ) -> Result<Response<DefragmentResponse>, Status> {
        let credentials = self.context.credentials(&request);
        admitted(&self.context, request, false)?;
        self.context.caller(&credentials, Access::Admin).await?;
        self.context.handle.save_image().await.map_err(ApiError::from)?;
        let views = self.context.handle.views();
        let done = tokio::task::spawn_blocking(move || views.mvcc.defragment()).await;
        done.map_err(|error| internal(&error))?.map_err(|error| internal(&error))?;
        tracing::info!("finished defragmenting directory");
        Ok(Response::new(DefragmentResponse { header: None }))
    }

    async fn hash(&self, request: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        let credentials = self.context.credentials(&request);
        admitted(&self.context, request, false)?;
        self.context.caller(&credentials, Access::Admin).await?;
        let views = self.context.handle.views();
        let revision = views.mvcc.revision();
        let timer = self.context.server.metrics.hash.start_timer();
        let hashed = tokio::task::spawn_blocking(move || snapshot_file::hash(&views)).await;
        timer.observe_duration();
        let hash = hashed.map_err(|error| internal(&error))?.map_err(|error| internal(&error))?;
        Ok(Response::new(HashResponse { header: Some(self.context.header(revision)), hash }))
    }

    async fn hash_kv(
        &self,
        request: Request<HashKvRequest>,
    ) -> Result<Response<HashKvResponse>, Status> {
        let credentials = self.context.credentials(&request);
        let request = admitted(&self.context, request, false)?;
        self.context.caller(&credentials, Access::Admin).await?;
        let mvcc = self.context.handle.views().mvcc;
        let timer = self.context.server.metrics.hash_rev.start_timer();
        let hashed = tokio::task::spawn_blocking(move || {
            let answer = match mvcc.hash_of_compaction(request.revision) {
                Some(answer) => answer,
                None => mvcc.hash_kv(request.revision)?,
            };
            Ok::<_, mvcc::RangeError>((answer, mvcc.revision()))
        });
        let (answer, revision) =
            hashed.await.map_err(|error| internal(&error))?.map_err(range_error)?;
        timer.observe_duration();
        Ok(Response::new(HashKvResponse {
            header: Some(self.context.header(revision)),
            hash: answer.hash,
            compact_revision: answer.compact_revision.0,
            hash_revision: answer.revision.0,
        }))
    }

    type SnapshotStream = Pin<Box<dyn Stream<Item = Result<SnapshotResponse, Status>> + Send>>;

    async fn snapshot(
        &self,
        request: Request<SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        let credentials = self.context.credentials(&request);
        admitted(&self.context, request, true)?;
        self.context.caller(&credentials, Access::Admin).await?;
        let views = self.context.handle.views();
        let directory = self.context.server.scratch_directory.clone();
        let timer = self.context.server.metrics.backend_snapshot.start_timer();
        let reserve = self.context.handle.space_reserve();
        let file =
            tokio::task::spawn_blocking(move || snapshot_file::write(&views, &directory, reserve));
        let file = file.await.map_err(|error| internal(&error))?;
        let file = file.map_err(|error| match error {
            SnapshotFileError::NoSpace { .. } => Status::resource_exhausted(error.to_string()),
            error => internal(&error),
        })?;
        timer.observe_duration();
        tracing::info!(bytes = file.len(), "sending database snapshot to client");
        Ok(Response::new(Box::pin(snapshot_file::stream(file))))
    }

    async fn move_leader(
        &self,
        request: Request<MoveLeaderRequest>,
    ) -> Result<Response<MoveLeaderResponse>, Status> {
        let credentials = self.context.credentials(&request);
        let request = admitted(&self.context, request, false)?;
        self.context.caller(&credentials, Access::Admin).await?;
        let handle = &self.context.handle;
        if !handle.leads() {
            return Err(ApiError::NotLeader.into());
        }
        let target = MemberId(request.target_id);
        if !handle.status().voters.contains(&target) {
            return Err(ApiError::BadLeaderTransferee.into());
        }
        match handle.move_leader(target).await {
            Ok(()) => Ok(Response::new(MoveLeaderResponse { header: None })),
            // etcd has no table entry for this time-out, so the wire says Unknown.
            Err(replica::Unavailable::Timeout) => {
                Err(Status::unknown("etcdserver: request timed out, leader transfer took too long"))
            }
            Err(reason) => Err(ApiError::from(reason).into()),
        }
    }

    async fn downgrade(
        &self,
        request: Request<DowngradeRequest>,
    ) -> Result<Response<DowngradeResponse>, Status> {
        let credentials = self.context.credentials(&request);
        let request = admitted(&self.context, request, false)?;
        let caller = self.context.caller(&credentials, Access::Admin).await?;
        downgrade::downgrade(&self.context, &request, &caller).await.map(Response::new)
    }
}

/// As etcd prints an alarm: the text form of its protobuf message.
fn alarm_text(alarm: &Alarm) -> String {
    let kind = AlarmType::try_from(alarm.kind.0).unwrap_or(AlarmType::None);
    format!("memberID:{} alarm:{}", alarm.member.0, kind.as_str_name())
}

fn to_i64(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// The health service that gRPC probes ask; the server as a whole has the empty name.
/// As in etcd it is asked like every other: a learner refuses it.
pub(crate) fn health(context: ApiContext) -> HealthServer<HealthService> {
    HealthServer::new(HealthService { context })
}

pub(crate) struct HealthService {
    context: ApiContext,
}

const SERVING: HealthCheckResponse = HealthCheckResponse { status: ServingStatus::Serving as i32 };

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        match admitted(&self.context, request, false)?.service.as_str() {
            "" => Ok(Response::new(SERVING)),
            _ => Err(Status::not_found("unknown service")),
        }
    }

    async fn list(
        &self,
        request: Request<HealthListRequest>,
    ) -> Result<Response<HealthListResponse>, Status> {
        admitted(&self.context, request, false)?;
        let statuses = [(String::new(), SERVING)].into_iter().collect();
        Ok(Response::new(HealthListResponse { statuses }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let wants_leader = wants_leader(request.metadata());
        let status = match admitted(&self.context, request, false)?.service.as_str() {
            "" => SERVING,
            _ => HealthCheckResponse { status: ServingStatus::ServiceUnknown as i32 },
        };
        let first = futures_util::stream::once(async move { Ok(status) });
        let statuses = first.chain(futures_util::stream::pending());
        let statuses = while_led(self.context.clone(), wants_leader, statuses);
        // The words of Go's health service for whatever ends its stream.
        let ended = |_| Status::cancelled("Stream has ended.");
        Ok(Response::new(statuses.map_err(ended).boxed()))
    }
}
