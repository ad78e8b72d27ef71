//! `etcdserverpb.Auth`.
//!
//! Everything goes through the log, also what only asks. Passwords end here: a request that carries
//! one is proposed with its hash instead, and a login with nothing but the letters of a token.

use machine::{AuthBody, AuthRefusal, Caller, CommandKind, Outcome};
use prost::Message;
use proto::etcdserverpb::auth_server::{Auth, AuthServer};
use proto::etcdserverpb::{self as pb, ResponseHeader};
use tonic::{Request, Response, Status};

use super::access::{Access, auth_status};
use super::context::{ApiContext, admitted};
use super::kv::unexpected;
use super::status::{ApiError, internal};
use crate::auth::{PasswordError, Tokens};

/// The service of one RPC thread.
pub(crate) struct AuthService {
    context: ApiContext,
}

pub(crate) fn service(context: ApiContext) -> AuthServer<AuthService> {
    let max = context.limits.message_bytes_max();
    AuthServer::new(AuthService { context }).max_decoding_message_size(max)
}

fn password_status(error: PasswordError) -> Status {
    match error {
        PasswordError::Refused(refusal) => auth_status(refusal),
        other => internal(&other),
    }
}

impl AuthService {
    /// Proposes a request and answers its header and what else it came to.
    async fn propose(
        &self,
        kind: CommandKind,
        request: &impl Message,
        caller: &Caller,
    ) -> Result<(Option<ResponseHeader>, AuthBody), Status> {
        let body = request.encode_to_vec().into();
        match self.context.propose(kind, body, caller).await? {
            Outcome::Auth(answer) => Ok((Some(self.context.header(answer.revision)), answer.body)),
            other => Err(unexpected(&other)),
        }
    }

    /// The way of all requests that carry no password. Apply judges what they demand.
    async fn pass<R: Message>(
        &self,
        kind: CommandKind,
        request: Request<R>,
    ) -> Result<(Option<ResponseHeader>, AuthBody), Status> {
        let credentials = self.context.credentials(&request);
        let request = admitted(&self.context, request, false)?;
        let caller = self.context.caller(&credentials, Access::Anybody).await?;
        self.propose(kind, &request, &caller).await
    }

    /// Compares the password and has a token registered. Whatever changes between the two makes the
    /// comparison void and begins again.
    async fn log_in(
        &self,
        name: &str,
        password: &str,
    ) -> Result<(Option<ResponseHeader>, String), Status> {
        self.context.linearize().await?;
        loop {
            let auth = self.context.handle.views().auth();
            let (hash, revision) = auth.password_hash(name).map_err(auth_status)?;
            let compared =
                self.context.authentication.passwords.matches(password.to_owned(), hash).await;
            if let Err(error) = compared {
                tracing::warn!(user = name, %error, "invalid authentication was requested");
                return Err(password_status(error));
            }
            match self.assign(name, revision).await {
                Err(Denied::Stale) => {
                    tracing::info!("revision when password checked became stale; retrying");
                }
                Err(Denied::For(status)) => return Err(status),
                Ok(answer) => return Ok(answer),
            }
        }
    }

    async fn assign(
        &self,
        name: &str,
        revision: u64,
    ) -> Result<(Option<ResponseHeader>, String), Denied> {
        let tokens = &self.context.authentication.tokens;
        let prefix = tokens.prefix().map_err(|refusal| Denied::For(auth_status(refusal)))?;
        let request = pb::InternalAuthenticateRequest {
            name: name.to_owned(),
            password: String::new(),
            simple_token: prefix,
        };
        let caller = Caller { user: String::new(), auth_revision: revision };
        let stale = Status::from(ApiError::AuthOldRevision);
        let proposed = self.propose(CommandKind::Authenticate, &request, &caller).await;
        let (header, body) = proposed.map_err(|status| match status.message() {
            message if message == stale.message() => Denied::Stale,
            _ => Denied::For(status),
        })?;
        let AuthBody::Token(registered) = body else {
            return Err(Denied::For(Status::internal("a login was not answered with a token")));
        };
        let token = match tokens {
            Tokens::Simple(_) => Some(registered),
            Tokens::Jwt(jwt) => Some(jwt.sign(name, revision).ok_or_else(|| {
                Denied::For(Status::unknown("auth: token signing attempted with verify-only key"))
            })?),
            Tokens::None => None,
        };
        let refused = || Denied::For(auth_status(AuthRefusal::AuthenticationFailed));
        Ok((header, token.ok_or_else(refused)?))
    }

    /// The hash of a password that is to be stored. To be asked for only once the caller is known to
    /// be an administrator: nobody else shall make this member hash.
    async fn hash(&self, password: String) -> Result<String, Status> {
        self.context.authentication.passwords.hash(password).await.map_err(password_status)
    }
}

/// Why no token was given.
enum Denied {
    /// Users or roles have changed since the password was compared.
    Stale,
    For(Status),
}

#[tonic::async_trait]
impl Auth for AuthService {
    async fn auth_enable(
        &self,
        request: Request<pb::AuthEnableRequest>,
    ) -> Result<Response<pb::AuthEnableResponse>, Status> {
        let (header, _) = self.pass(CommandKind::AuthEnable, request).await?;
        tracing::info!("enabled authentication");
        Ok(Response::new(pb::AuthEnableResponse { header }))
    }

    async fn auth_disable(
        &self,
        request: Request<pb::AuthDisableRequest>,
    ) -> Result<Response<pb::AuthDisableResponse>, Status> {
        let (header, _) = self.pass(CommandKind::AuthDisable, request).await?;
        tracing::info!("disabled authentication");
        Ok(Response::new(pb::AuthDisableResponse { header }))
    }

    async fn auth_status(
        &self,
        request: Request<pb::AuthStatusRequest>,
    ) -> Result<Response<pb::AuthStatusResponse>, Status> {
        let (header, body) = self.pass(CommandKind::AuthStatus, request).await?;
        let AuthBody::Status { enabled, auth_revision } = body else { return Err(unlike(&body)) };
        Ok(Response::new(pb::AuthStatusResponse { header, enabled, auth_revision }))
    }

    async fn authenticate(
        &self,
        request: Request<pb::AuthenticateRequest>,
    ) -> Result<Response<pb::AuthenticateResponse>, Status> {
        let request = admitted(&self.context, request, false)?;
        let (header, token) = self.log_in(&request.name, &request.password).await?;
        Ok(Response::new(pb::AuthenticateResponse { header, token }))
    }

    async fn user_add(
        &self,
        request: Request<pb::AuthUserAddRequest>,
    ) -> Result<Response<pb::AuthUserAddResponse>, Status> {
        let credentials = self.context.credentials(&request);
        let mut request = admitted(&self.context, request, false)?;
        let caller = self.context.caller(&credentials, Access::Admin).await?;
        let password = std::mem::take(&mut request.password);
        if !request.options.is_some_and(|options| options.no_password) {
            request.hashed_password = self.hash(password).await?;
        }
        let (header, _) = self.propose(CommandKind::UserAdd, &request, &caller).await?;
        Ok(Response::new(pb::AuthUserAddResponse { header }))
    }

    async fn user_change_password(
        &self,
        request: Request<pb::AuthUserChangePasswordRequest>,
    ) -> Result<Response<pb::AuthUserChangePasswordResponse>, Status> {
        let credentials = self.context.credentials(&request);
        let mut request = admitted(&self.context, request, false)?;
        let caller = self.context.caller(&credentials, Access::Admin).await?;
        let password = std::mem::take(&mut request.password);
        if !password.is_empty() {
            request.hashed_password = self.hash(password).await?;
        }
        let (header, _) = self.propose(CommandKind::UserChangePassword, &request, &caller).await?;
        Ok(Response::new(pb::AuthUserChangePasswordResponse { header }))
    }

    async fn user_get(
        &self,
        request: Request<pb::AuthUserGetRequest>,
    ) -> Result<Response<pb::AuthUserGetResponse>, Status> {
        let (header, body) = self.pass(CommandKind::UserGet, request).await?;
        let AuthBody::Roles(roles) = body else { return Err(unlike(&body)) };
        Ok(Response::new(pb::AuthUserGetResponse { header, roles }))
    }

    async fn user_list(
        &self,
        request: Request<pb::AuthUserListRequest>,
    ) -> Result<Response<pb::AuthUserListResponse>, Status> {
        let (header, body) = self.pass(CommandKind::UserList, request).await?;
        let AuthBody::Users(users) = body else { return Err(unlike(&body)) };
        Ok(Response::new(pb::AuthUserListResponse { header, users }))
    }

    async fn role_get(
        &self,
        request: Request<pb::AuthRoleGetRequest>,
    ) -> Result<Response<pb::AuthRoleGetResponse>, Status> {
        let (header, body) = self.pass(CommandKind::RoleGet, request).await?;
        let AuthBody::Permissions(perm) = body else { return Err(unlike(&body)) };
        Ok(Response::new(pb::AuthRoleGetResponse { header, perm }))
    }

    async fn role_list(
        &self,
        request: Request<pb::AuthRoleListRequest>,
    ) -> Result<Response<pb::AuthRoleListResponse>, Status> {
        let (header, body) = self.pass(CommandKind::RoleList, request).await?;
        let AuthBody::Roles(roles) = body else { return Err(unlike(&body)) };
        Ok(Response::new(pb::AuthRoleListResponse { header, roles }))
    }

    async fn user_delete(
        &self,
        request: Request<pb::AuthUserDeleteRequest>,
    ) -> Result<Response<pb::AuthUserDeleteResponse>, Status> {
        let (header, _) = self.pass(CommandKind::UserDelete, request).await?;
        Ok(Response::new(pb::AuthUserDeleteResponse { header }))
    }

    async fn user_grant_role(
        &self,
        request: Request<pb::AuthUserGrantRoleRequest>,
    ) -> Result<Response<pb::AuthUserGrantRoleResponse>, Status> {
        let (header, _) = self.pass(CommandKind::UserGrantRole, request).await?;
        Ok(Response::new(pb::AuthUserGrantRoleResponse { header }))
    }

    async fn user_revoke_role(
        &self,
        request: Request<pb::AuthUserRevokeRoleRequest>,
    ) -> Result<Response<pb::AuthUserRevokeRoleResponse>, Status> {
        let (header, _) = self.pass(CommandKind::UserRevokeRole, request).await?;
        Ok(Response::new(pb::AuthUserRevokeRoleResponse { header }))
    }

    async fn role_add(
        &self,
        request: Request<pb::AuthRoleAddRequest>,
    ) -> Result<Response<pb::AuthRoleAddResponse>, Status> {
        let (header, _) = self.pass(CommandKind::RoleAdd, request).await?;
        Ok(Response::new(pb::AuthRoleAddResponse { header }))
    }

    async fn role_delete(
        &self,
        request: Request<pb::AuthRoleDeleteRequest>,
    ) -> Result<Response<pb::AuthRoleDeleteResponse>, Status> {
        let (header, _) = self.pass(CommandKind::RoleDelete, request).await?;
        Ok(Response::new(pb::AuthRoleDeleteResponse { header }))
    }

    async fn role_grant_permission(
        &self,
        request: Request<pb::AuthRoleGrantPermissionRequest>,
    ) -> Result<Response<pb::AuthRoleGrantPermissionResponse>, Status> {
        let (header, _) = self.pass(CommandKind::RoleGrantPermission, request).await?;
        Ok(Response::new(pb::AuthRoleGrantPermissionResponse { header }))
    }

    async fn role_revoke_permission(
        &self,
        request: Request<pb::AuthRoleRevokePermissionRequest>,
    ) -> Result<Response<pb::AuthRoleRevokePermissionResponse>, Status> {
        let (header, _) = self.pass(CommandKind::RoleRevokePermission, request).await?;
        Ok(Response::new(pb::AuthRoleRevokePermissionResponse { header }))
    }
}

/// The applier answered another question: a bug, reported as such.
fn unlike(body: &AuthBody) -> Status {
    Status::internal(format!("unexpected answer {:?}", std::mem::discriminant(body)))
}
