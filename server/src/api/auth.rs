//! `etcdserverpb.Auth`, as long as authentication cannot be enabled.
//!
//! What a server with authentication off answers is answered here: its status, and the refusal that
//! tells clients which send credentials to go on without. Everything that would change users, roles
//! or the switch itself says that it is not supported yet.

use proto::etcdserverpb::auth_server::{Auth, AuthServer};
use proto::etcdserverpb::{self as pb};
use tonic::{Request, Response, Status};

use super::context::{ApiContext, admitted};
use super::status::ApiError;

/// The auth revision of a store on which nothing was ever changed.
const FIRST_AUTH_REVISION: u64 = 1;

/// The service of one RPC thread.
pub(crate) struct AuthService {
    context: ApiContext,
}

pub(crate) fn service(context: ApiContext) -> AuthServer<AuthService> {
    AuthServer::new(AuthService { context })
}

fn not_yet<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("etcdserver: authentication is not supported yet"))
}

/// Methods that answer [`not_yet`].
macro_rules! not_supported_yet {
    ($($method:ident($request:ident) -> $response:ident;)*) => {
        #[tonic::async_trait]
        impl Auth for AuthService {
            async fn auth_status(
                &self,
                request: Request<pb::AuthStatusRequest>,
            ) -> Result<Response<pb::AuthStatusResponse>, Status> {
                admitted(&self.context, request, false)?;
                let revision = self.context.handle.views().mvcc.revision();
                Ok(Response::new(pb::AuthStatusResponse {
                    header: Some(self.context.header(revision)),
                    enabled: false,
                    auth_revision: FIRST_AUTH_REVISION,
                }))
            }

            async fn authenticate(
                &self,
                request: Request<pb::AuthenticateRequest>,
            ) -> Result<Response<pb::AuthenticateResponse>, Status> {
                admitted(&self.context, request, false)?;
                Err(ApiError::AuthNotEnabled.into())
            }

            $(async fn $method(
                &self,
                _: Request<pb::$request>,
            ) -> Result<Response<pb::$response>, Status> {
                not_yet()
            })*
        }
    };
}

not_supported_yet! {
    auth_enable(AuthEnableRequest) -> AuthEnableResponse;
    auth_disable(AuthDisableRequest) -> AuthDisableResponse;
    user_add(AuthUserAddRequest) -> AuthUserAddResponse;
    user_get(AuthUserGetRequest) -> AuthUserGetResponse;
    user_list(AuthUserListRequest) -> AuthUserListResponse;
    user_delete(AuthUserDeleteRequest) -> AuthUserDeleteResponse;
    user_change_password(AuthUserChangePasswordRequest) -> AuthUserChangePasswordResponse;
    user_grant_role(AuthUserGrantRoleRequest) -> AuthUserGrantRoleResponse;
    user_revoke_role(AuthUserRevokeRoleRequest) -> AuthUserRevokeRoleResponse;
    role_add(AuthRoleAddRequest) -> AuthRoleAddResponse;
    role_get(AuthRoleGetRequest) -> AuthRoleGetResponse;
    role_list(AuthRoleListRequest) -> AuthRoleListResponse;
    role_delete(AuthRoleDeleteRequest) -> AuthRoleDeleteResponse;
    role_grant_permission(AuthRoleGrantPermissionRequest) -> AuthRoleGrantPermissionResponse;
    role_revoke_permission(AuthRoleRevokePermissionRequest) -> AuthRoleRevokePermissionResponse;
}
