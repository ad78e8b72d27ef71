//! Calls: deadlines, tokens, and which failures are tried again.

use std::error::Error as _;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prost::Message;
use proto::etcdserverpb::auth_client::AuthClient;
use proto::etcdserverpb::cluster_client::ClusterClient;
use proto::etcdserverpb::kv_client::KvClient;
use proto::etcdserverpb::lease_client::LeaseClient;
use proto::etcdserverpb::maintenance_client::MaintenanceClient;
use proto::etcdserverpb::*;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::body::Body;
use tonic::metadata::{AsciiMetadataValue, MetadataMap};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status, Streaming};
use tower::{Service, ServiceExt};
use tracing::warn;

use crate::config::{Config, Credentials};
use crate::connection::Dialer;
use crate::error::{Error, grpc_text};
use crate::pool::{Lent, Pool};

/// clientv3's limits and pauses (client/v3/options.go).
const DEFAULT_MAX_REQUEST_BYTES: usize = 2 * 1024 * 1024;
const DEFAULT_MAX_RESPONSE_BYTES: usize = i32::MAX as usize;
const MAX_ATTEMPTS: usize = 100;
const BACKOFF: Duration = Duration::from_millis(25);
const BACKOFF_JITTER: f64 = 0.1;
/// The API version that the client says it speaks.
const API_VERSION: &str = "3.7.3";

/// A client of one cluster. Cheap to clone; clones share connections and token.
#[derive(Clone, Debug)]
pub struct Client {
    shared: Arc<Shared>,
    deadline: Option<Instant>,
    require_leader: bool,
}

#[derive(Debug)]
struct Shared {
    pool: Arc<Pool>,
    config: Config,
    token: Mutex<Option<AsciiMetadataValue>>,
    max_request_bytes: usize,
    max_response_bytes: usize,
}

/// Whether a call may be made twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Repeat {
    /// Making it twice does no harm: `UNAVAILABLE` is tried again.
    Safe,
    /// It may have been applied: tried again only if it was never sent.
    OnlyIfUnsent,
}

impl Client {
    /// Makes a client. It connects when it is first used; only a name and password make it fetch a
    /// token now.
    pub async fn connect(config: Config) -> Result<Client, Error> {
        let dialer = Dialer::new(&config)?;
        if config.endpoints.is_empty() {
            return Err(Error::NoEndpoints);
        }
        if let Some(receive) = config.max_response_bytes
            && let Some(send) = config.max_request_bytes
            && send > receive
        {
            return Err(Error::MessageLimits { send, receive });
        }
        let shared = Shared {
            pool: Pool::new(dialer, &config.endpoints),
            token: Mutex::new(None),
            max_request_bytes: config.max_request_bytes.unwrap_or(DEFAULT_MAX_REQUEST_BYTES),
            max_response_bytes: config.max_response_bytes.unwrap_or(DEFAULT_MAX_RESPONSE_BYTES),
            config,
        };
        let client = Client { shared: Arc::new(shared), deadline: None, require_leader: false };
        let dial_deadline =
            client.shared.config.dial_timeout.map(|timeout| Instant::now() + timeout);
        Client { deadline: dial_deadline, ..client.clone() }.refresh_token().await?;
        Ok(client)
    }

    /// The same client whose calls end at a deadline.
    pub fn until(&self, deadline: Instant) -> Client {
        Client { deadline: Some(deadline), ..self.clone() }
    }

    /// The same client whose streams end when the server that serves them has lost its leader.
    pub fn require_leader(&self) -> Client {
        Client { require_leader: true, ..self.clone() }
    }

    /// The endpoints it was made with.
    pub fn endpoints(&self) -> &[String] {
        &self.shared.config.endpoints
    }

    /// The endpoints that it uses now.
    pub fn current_endpoints(&self) -> Vec<String> {
        self.shared.pool.endpoints()
    }

    /// Asks the cluster who its members are and uses them from now on, as clientv3's `Sync` does: all
    /// that have started and are no learners, at the addresses that they advertise.
    ///
    /// # Errors
    /// When the members cannot be asked; then nothing changes.
    pub async fn sync_endpoints(&self) -> Result<(), Error> {
        let request = MemberListRequest { linearizable: true };
        let members = self.member_list(request).await?.members;
        let members = members.into_iter().filter(|it| !it.name.is_empty() && !it.is_learner);
        let endpoints: Vec<String> = members.flat_map(|member| member.client_ur_ls).collect();
        if endpoints.is_empty() {
            return Err(Error::NoEndpoints);
        }
        self.shared.pool.set_endpoints(&endpoints);
        Ok(())
    }

    pub(crate) fn dial_timeout(&self) -> Option<Duration> {
        self.shared.config.dial_timeout
    }

    pub(crate) fn max_response_bytes(&self) -> usize {
        self.shared.max_response_bytes
    }

    /// Waits for a connection; at the deadline logs why there was none.
    pub(crate) async fn lend(&self, method: &str, attempt: usize) -> Result<Lent, Error> {
        let lent = self.shared.pool.lend(self.deadline).await;
        lent.map_err(|reason| {
            let reason = format!("latest balancer error: {reason}");
            let error = grpc_text(Code::DeadlineExceeded, &reason);
            self.log_failure(method, attempt, &error, "");
            Error::DeadlineExceeded
        })
    }

    pub(crate) fn discard(&self, lent: &Lent) {
        self.shared.pool.discard(lent);
    }

    /// The metadata that every request carries.
    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let metadata: &mut MetadataMap = request.metadata_mut();
        metadata.insert("client-api-version", AsciiMetadataValue::from_static(API_VERSION));
        if let Some(token) = self.token() {
            metadata.insert("token", token);
        }
        if self.require_leader {
            metadata.insert("hasleader", AsciiMetadataValue::from_static("true"));
        }
        request
    }

    fn token(&self) -> Option<AsciiMetadataValue> {
        self.shared.token.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Fetches a token with the name and password of the configuration, if there are any.
    pub(crate) async fn refresh_token(&self) -> Result<(), Error> {
        let token = match &self.shared.config.credentials {
            None => return Ok(()),
            Some(Credentials::Token(token)) => token.clone(),
            // clientv3 does not log in without a password.
            Some(Credentials::Password { username, password })
                if username.is_empty() || password.is_empty() =>
            {
                return Ok(());
            }
            Some(Credentials::Password { username, password }) => {
                let (name, password) = (username.clone(), password.clone());
                match Box::pin(self.authenticate(AuthenticateRequest { name, password })).await {
                    Ok(response) => response.token,
                    Err(error)
                        if error.message() == "etcdserver: authentication is not enabled" =>
                    {
                        String::new()
                    }
                    Err(error) => return Err(error),
                }
            }
        };
        let value = match token.as_str() {
            "" => None,
            token => Some(
                AsciiMetadataValue::try_from(token)
                    .map_err(|_| Error::from(Status::unauthenticated("the token is not ASCII")))?,
            ),
        };
        *self.shared.token.lock().unwrap_or_else(PoisonError::into_inner) = value;
        Ok(())
    }

    async fn unary<Q, A, F, R>(
        &self,
        method: &'static str,
        repeat: Repeat,
        message: Q,
        send: F,
    ) -> Result<A, Error>
    where
        Q: Message + Clone,
        F: Fn(Channel, Request<Q>) -> R,
        R: Future<Output = Result<Response<A>, Status>>,
    {
        let mut attempt = 0;
        loop {
            self.pause_before(attempt).await?;
            let lent = self.lend(method, attempt).await?;
            self.check_size(message.encoded_len())
                .inspect_err(|error| self.log_failure(method, attempt, &text(error), ""))?;
            let call = send(lent.channel.clone(), self.request(message.clone()));
            let Some(result) = self.before_deadline(call).await else {
                let error = grpc_text(Code::DeadlineExceeded, "context deadline exceeded");
                self.log_failure(method, attempt, &error, &lent.endpoint);
                return Err(Error::DeadlineExceeded);
            };
            let status = match result {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) => status,
            };
            let sent = self.note_lost_connection(&lent, &status);
            let status = as_grpc_go(status);
            if sent {
                let error = grpc_text(status.code(), status.message());
                self.log_failure(method, attempt, &error, &lent.endpoint);
            }
            attempt += 1;
            if !self.may_repeat(repeat, sent, &status).await? || attempt >= MAX_ATTEMPTS {
                return Err(status.into());
            }
        }
    }

    /// Whether to try again after a failure; fetches a new token if the old one has expired.
    async fn may_repeat(&self, repeat: Repeat, sent: bool, status: &Status) -> Result<bool, Error> {
        if !sent {
            return Ok(true);
        }
        let expired = matches!(
            status.message(),
            "etcdserver: invalid auth token"
                | "etcdserver: revision of auth store is old"
                | "etcdserver: user name is empty"
        );
        match &self.shared.config.credentials {
            Some(Credentials::Password { .. }) if expired => {
                self.refresh_token().await?;
                return Ok(true);
            }
            // Who is known by certificate has no token; only the auth revision was old.
            None if status.message() == "etcdserver: revision of auth store is old" => {
                return Ok(true);
            }
            _ => {}
        }
        // Another endpoint may be a voter (client/v3/retry_interceptor.go, isSafeRetry).
        if status.message() == "etcdserver: rpc not supported for learner" {
            return Ok(self.shared.pool.len() > 1);
        }
        Ok(repeat == Repeat::Safe && status.code() == Code::Unavailable)
    }

    /// Gives a lost connection back and tells whether the request can have been sent.
    pub(crate) fn note_lost_connection(&self, lent: &Lent, status: &Status) -> bool {
        let mut cause = status.source();
        let mut sent = true;
        let mut transport = false;
        while let Some(error) = cause {
            transport |= error.is::<tonic::transport::Error>() || error.is::<tonic::ConnectError>();
            // The channel had to connect again, which our connections never do: nothing was sent.
            sent &= !error.is::<tonic::ConnectError>();
            cause = error.source();
        }
        let unavailable = status.code() == Code::Unavailable && status.source().is_some();
        if transport || unavailable || is_cut_off(status) {
            self.discard(lent);
        }
        sent
    }

    /// clientv3 pauses after each round over a quorum of the endpoints.
    async fn pause_before(&self, attempt: usize) -> Result<(), Error> {
        let quorum = self.shared.pool.len() / 2 + 1;
        if attempt == 0 || !attempt.is_multiple_of(quorum) {
            return Ok(());
        }
        let jitter = 1.0 + BACKOFF_JITTER * (rand::random::<f64>() * 2.0 - 1.0);
        self.before_deadline(sleep(BACKOFF.mul_f64(jitter))).await.ok_or(Error::DeadlineExceeded)
    }

    fn check_size(&self, size: usize) -> Result<(), Error> {
        let limit = self.shared.max_request_bytes;
        if size <= limit {
            return Ok(());
        }
        let message = format!("trying to send message larger than max ({size} vs. {limit})");
        Err(Status::resource_exhausted(message).into())
    }

    /// The result of a future, or nothing if the deadline passes first.
    pub(crate) async fn before_deadline<F: Future>(&self, future: F) -> Option<F::Output> {
        match self.deadline {
            None => Some(future.await),
            Some(deadline) => timeout_at(deadline, future).await.ok(),
        }
    }

    fn log_failure(&self, method: &str, attempt: usize, error: &str, endpoint: &str) {
        let target = self.endpoints().first().map_or("", String::as_str);
        warn!(target, method, attempt, error, peer = endpoint, "retrying of unary invoker failed");
    }

    async fn streaming<Q, A, F, R>(
        &self,
        repeat: Repeat,
        message: Q,
        send: F,
    ) -> Result<Streaming<A>, Error>
    where
        F: FnOnce(Channel, Request<Q>) -> R,
        R: Future<Output = Result<Response<Streaming<A>>, Status>>,
    {
        self.refresh_token().await?;
        let lent = self.shared.pool.lend(self.deadline).await.map_err(|reason| {
            // clientv3 only tells about streams that it could have tried again.
            if repeat == Repeat::Safe {
                let reason = format!("latest balancer error: {reason}");
                let error = grpc_text(Code::DeadlineExceeded, &reason);
                tracing::error!(error, "streamer failed to create ClientStream");
            }
            Error::DeadlineExceeded
        })?;
        let call = send(lent.channel.clone(), self.request(message));
        match self.before_deadline(call).await {
            None => Err(Error::DeadlineExceeded),
            Some(Ok(response)) => Ok(response.into_inner()),
            Some(Err(status)) => {
                self.note_lost_connection(&lent, &status);
                Err(status.into())
            }
        }
    }

    /// Passes on a call of somebody else as it is: metadata, messages and the answer. It waits for a
    /// connection, and tries another as long as nothing was sent.
    pub async fn pass_on(&self, request: http::Request<Body>) -> http::Response<Body> {
        loop {
            let lent = match self.shared.pool.lend(self.deadline).await {
                Ok(lent) => lent,
                Err(reason) => return Status::unavailable(reason).into_http(),
            };
            let mut channel = lent.channel.clone();
            if channel.ready().await.is_err() {
                self.discard(&lent);
                continue;
            }
            return match channel.call(request).await {
                Ok(response) => response,
                Err(error) => {
                    self.discard(&lent);
                    Status::unavailable(format!("error reading from server: {error}")).into_http()
                }
            };
        }
    }

    /// KV.RangeStream, gathered into the response that KV.Range would have given.
    pub async fn range_stream(&self, request: RangeRequest) -> Result<RangeResponse, Error> {
        let limit = self.max_response_bytes();
        let mut stream = self
            .streaming(Repeat::OnlyIfUnsent, request, |channel, request| async move {
                KvClient::new(channel).max_decoding_message_size(limit).range_stream(request).await
            })
            .await?;
        let mut whole = RangeResponse::default();
        loop {
            let next = self.before_deadline(stream.message()).await;
            let Some(chunk) = next.ok_or(Error::DeadlineExceeded)?? else { return Ok(whole) };
            let Some(part) = chunk.range_response else { continue };
            whole.kvs.extend(part.kvs);
            whole.header = part.header.or(whole.header);
            whole.more |= part.more;
            if part.count != 0 {
                whole.count = part.count;
            }
        }
    }

    /// Maintenance.Snapshot: the pieces of a copy of the store, in order.
    pub async fn snapshot(&self) -> Result<Streaming<SnapshotResponse>, Error> {
        let limit = self.max_response_bytes();
        self.streaming(Repeat::Safe, SnapshotRequest {}, |channel, request| async move {
            MaintenanceClient::new(channel).max_decoding_message_size(limit).snapshot(request).await
        })
        .await
    }

    /// The next message of a server stream, ended by the deadline.
    pub async fn next<T>(&self, stream: &mut Streaming<T>) -> Result<Option<T>, Error> {
        Ok(self.before_deadline(stream.message()).await.ok_or(Error::DeadlineExceeded)??)
    }
}

/// A call that was cut off is "cancelled" or "unknown" for hyper and h2, by how the connection ended,
/// and always "unavailable" for grpc-go, whose word counts for what is tried again.
fn as_grpc_go(status: Status) -> Status {
    if is_cut_off(&status) {
        return Status::unavailable(format!("error reading from server: {}", status.message()));
    }
    status
}

/// What the server itself says has no source.
fn is_cut_off(status: &Status) -> bool {
    matches!(status.code(), Code::Cancelled | Code::Unknown) && status.source().is_some()
}

fn text(error: &Error) -> String {
    match error {
        Error::Rpc { code, message } => grpc_text(*code, message),
        error => error.to_string(),
    }
}

macro_rules! unary_calls {
    ($($name:ident: $client:ident, $method:literal, $request:ty => $response:ty, $repeat:ident;)*) => {
        impl Client {
            $(
                #[doc = concat!("The call `", $method, "`.")]
                pub async fn $name(&self, request: $request) -> Result<$response, Error> {
                    let limit = self.max_response_bytes();
                    let send = |channel, request| async move {
                        let mut client = $client::new(channel).max_decoding_message_size(limit);
                        client.$name(request).await
                    };
                    self.unary(concat!("/etcdserverpb.", $method), Repeat::$repeat, request, send).await
                }
            )*
        }
    };
}

// What may be repeated is clientv3's choice (client/v3/retry.go).
unary_calls! {
    range: KvClient, "KV/Range", RangeRequest => RangeResponse, Safe;
    put: KvClient, "KV/Put", PutRequest => PutResponse, OnlyIfUnsent;
    delete_range: KvClient, "KV/DeleteRange", DeleteRangeRequest => DeleteRangeResponse, OnlyIfUnsent;
    txn: KvClient, "KV/Txn", TxnRequest => TxnResponse, OnlyIfUnsent;
    compact: KvClient, "KV/Compact", CompactionRequest => CompactionResponse, OnlyIfUnsent;
    lease_grant: LeaseClient, "Lease/LeaseGrant", LeaseGrantRequest => LeaseGrantResponse, Safe;
    lease_revoke: LeaseClient, "Lease/LeaseRevoke", LeaseRevokeRequest => LeaseRevokeResponse, Safe;
    lease_time_to_live: LeaseClient, "Lease/LeaseTimeToLive", LeaseTimeToLiveRequest => LeaseTimeToLiveResponse, Safe;
    lease_leases: LeaseClient, "Lease/LeaseLeases", LeaseLeasesRequest => LeaseLeasesResponse, Safe;
    member_add: ClusterClient, "Cluster/MemberAdd", MemberAddRequest => MemberAddResponse, OnlyIfUnsent;
    member_remove: ClusterClient, "Cluster/MemberRemove", MemberRemoveRequest => MemberRemoveResponse, OnlyIfUnsent;
    member_update: ClusterClient, "Cluster/MemberUpdate", MemberUpdateRequest => MemberUpdateResponse, OnlyIfUnsent;
    member_list: ClusterClient, "Cluster/MemberList", MemberListRequest => MemberListResponse, Safe;
    member_promote: ClusterClient, "Cluster/MemberPromote", MemberPromoteRequest => MemberPromoteResponse, OnlyIfUnsent;
    alarm: MaintenanceClient, "Maintenance/Alarm", AlarmRequest => AlarmResponse, Safe;
    status: MaintenanceClient, "Maintenance/Status", StatusRequest => StatusResponse, Safe;
    defragment: MaintenanceClient, "Maintenance/Defragment", DefragmentRequest => DefragmentResponse, OnlyIfUnsent;
    hash_kv: MaintenanceClient, "Maintenance/HashKV", HashKvRequest => HashKvResponse, Safe;
    move_leader: MaintenanceClient, "Maintenance/MoveLeader", MoveLeaderRequest => MoveLeaderResponse, Safe;
    downgrade: MaintenanceClient, "Maintenance/Downgrade", DowngradeRequest => DowngradeResponse, OnlyIfUnsent;
    auth_enable: AuthClient, "Auth/AuthEnable", AuthEnableRequest => AuthEnableResponse, OnlyIfUnsent;
    auth_disable: AuthClient, "Auth/AuthDisable", AuthDisableRequest => AuthDisableResponse, OnlyIfUnsent;
    auth_status: AuthClient, "Auth/AuthStatus", AuthStatusRequest => AuthStatusResponse, OnlyIfUnsent;
    authenticate: AuthClient, "Auth/Authenticate", AuthenticateRequest => AuthenticateResponse, OnlyIfUnsent;
    user_add: AuthClient, "Auth/UserAdd", AuthUserAddRequest => AuthUserAddResponse, OnlyIfUnsent;
    user_get: AuthClient, "Auth/UserGet", AuthUserGetRequest => AuthUserGetResponse, Safe;
    user_list: AuthClient, "Auth/UserList", AuthUserListRequest => AuthUserListResponse, Safe;
    user_delete: AuthClient, "Auth/UserDelete", AuthUserDeleteRequest => AuthUserDeleteResponse, OnlyIfUnsent;
    user_change_password: AuthClient, "Auth/UserChangePassword", AuthUserChangePasswordRequest => AuthUserChangePasswordResponse, OnlyIfUnsent;
    user_grant_role: AuthClient, "Auth/UserGrantRole", AuthUserGrantRoleRequest => AuthUserGrantRoleResponse, OnlyIfUnsent;
    user_revoke_role: AuthClient, "Auth/UserRevokeRole", AuthUserRevokeRoleRequest => AuthUserRevokeRoleResponse, OnlyIfUnsent;
    role_add: AuthClient, "Auth/RoleAdd", AuthRoleAddRequest => AuthRoleAddResponse, OnlyIfUnsent;
    role_get: AuthClient, "Auth/RoleGet", AuthRoleGetRequest => AuthRoleGetResponse, Safe;
    role_list: AuthClient, "Auth/RoleList", AuthRoleListRequest => AuthRoleListResponse, Safe;
    role_delete: AuthClient, "Auth/RoleDelete", AuthRoleDeleteRequest => AuthRoleDeleteResponse, OnlyIfUnsent;
    role_grant_permission: AuthClient, "Auth/RoleGrantPermission", AuthRoleGrantPermissionRequest => AuthRoleGrantPermissionResponse, OnlyIfUnsent;
    role_revoke_permission: AuthClient, "Auth/RoleRevokePermission", AuthRoleRevokePermissionRequest => AuthRoleRevokePermissionResponse, OnlyIfUnsent;
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_lost_connection_is_unavailable_however_it_was_lost_and_an_answer_stays_what_it_is() {
        for kind in [io::ErrorKind::ConnectionReset, io::ErrorKind::HostUnreachable] {
            let lost = Status::from_error(Box::new(io::Error::from(kind)));
            assert_eq!(as_grpc_go(lost).code(), Code::Unavailable, "{kind}");
        }
        for answer in [Status::unknown("of the server"), Status::cancelled("of the server")] {
            let code = answer.code();
            assert_eq!(as_grpc_go(answer).code(), code);
        }
    }
}
