//! Auth's commands: changing users and roles, and asking about them.
//!
//! As in etcd all of them go through the log, also those that only read, so that their answers are
//! linearizable and their permission is judged at the same place as everything else's. A password
//! never comes here: the edge hashes it and proposes the hash, or compares it and proposes a token.
//!
//! A token is registered on every member by applying it; which token a member accepts, and for how
//! long, is the edge's business ([`AuthChange`]).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use prost::Message;
use proto::{authpb, etcdserverpb as pb};
use tables::{Auth, AuthRefusal, Permission, PermissionKind};
use types::{KeyRange, RangeEnd, Revision};

use crate::apply::Applier;
use crate::command::{Caller, CommandKind, MalformedBody};
use crate::outcome::Refusal;
use crate::permit::Permit;

/// A decoded command of auth.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum AuthCommand {
    Enable,
    Disable,
    Status,
    Authenticate(pb::InternalAuthenticateRequest),
    UserAdd(pb::AuthUserAddRequest),
    UserDelete(pb::AuthUserDeleteRequest),
    UserChangePassword(pb::AuthUserChangePasswordRequest),
    UserGrantRole(pb::AuthUserGrantRoleRequest),
    UserRevokeRole(pb::AuthUserRevokeRoleRequest),
    UserGet(pb::AuthUserGetRequest),
    UserList,
    RoleAdd(pb::AuthRoleAddRequest),
    RoleDelete(pb::AuthRoleDeleteRequest),
    RoleGet(pb::AuthRoleGetRequest),
    RoleList,
    RoleGrantPermission(pb::AuthRoleGrantPermissionRequest),
    RoleRevokePermission(pb::AuthRoleRevokePermissionRequest),
}

impl AuthCommand {
    /// Reads a body; none if the kind is not one of auth's.
    pub(crate) fn decode(kind: CommandKind, body: Bytes) -> Option<Result<Self, MalformedBody>> {
        fn message<M: Message + Default>(
            kind: CommandKind,
            body: Bytes,
            command: impl FnOnce(M) -> AuthCommand,
        ) -> Result<AuthCommand, MalformedBody> {
            let decoded = M::decode(body).map(command);
            decoded.map_err(|error| MalformedBody { kind, detail: error.to_string() })
        }
        Some(match kind {
            CommandKind::AuthEnable => Ok(Self::Enable),
            CommandKind::AuthDisable => Ok(Self::Disable),
            CommandKind::AuthStatus => Ok(Self::Status),
            CommandKind::Authenticate => message(kind, body, Self::Authenticate),
            CommandKind::UserAdd => message(kind, body, Self::UserAdd),
            CommandKind::UserDelete => message(kind, body, Self::UserDelete),
            CommandKind::UserChangePassword => message(kind, body, Self::UserChangePassword),
            CommandKind::UserGrantRole => message(kind, body, Self::UserGrantRole),
            CommandKind::UserRevokeRole => message(kind, body, Self::UserRevokeRole),
            CommandKind::UserGet => message(kind, body, Self::UserGet),
            CommandKind::UserList => Ok(Self::UserList),
            CommandKind::RoleAdd => message(kind, body, Self::RoleAdd),
            CommandKind::RoleDelete => message(kind, body, Self::RoleDelete),
            CommandKind::RoleGet => message(kind, body, Self::RoleGet),
            CommandKind::RoleList => Ok(Self::RoleList),
            CommandKind::RoleGrantPermission => message(kind, body, Self::RoleGrantPermission),
            CommandKind::RoleRevokePermission => message(kind, body, Self::RoleRevokePermission),
            _ => return None,
        })
    }
}

/// What the edge must know at once, on every member, before it serves anybody at this position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthChange {
    /// A user showed its password; whoever shows this token is that user.
    TokenAssigned { token: String, user: String },
    /// A user is gone or has another password; its tokens are void.
    UserInvalidated { user: String },
    /// Auth was turned off; all tokens are void.
    Disabled,
}

/// The answer to a request of auth.
#[derive(Clone, Debug, PartialEq)]
pub struct AuthAnswer {
    /// The store's revision.
    pub revision: Revision,
    pub body: AuthBody,
}

/// What an answer holds beside its header.
#[derive(Clone, Debug, PartialEq)]
pub enum AuthBody {
    /// Nothing: it was done.
    Done,
    Status {
        enabled: bool,
        auth_revision: u64,
    },
    /// The token that every member has registered; empty if the edge makes its own.
    Token(String),
    Users(Vec<String>),
    Roles(Vec<String>),
    Permissions(Vec<authpb::Permission>),
}

/// Which commands of auth only administrators may give.
fn needs_admin(command: &AuthCommand) -> bool {
    match command {
        // Everybody may ask whether auth is on. A token is for whoever knew the password.
        AuthCommand::Status | AuthCommand::Authenticate(_) => false,
        // Everybody may look at oneself; that is judged with the request.
        AuthCommand::UserGet(_) | AuthCommand::RoleGet(_) => false,
        AuthCommand::Enable
        | AuthCommand::Disable
        | AuthCommand::UserAdd(_)
        | AuthCommand::UserDelete(_)
        | AuthCommand::UserChangePassword(_)
        | AuthCommand::UserGrantRole(_)
        | AuthCommand::UserRevokeRole(_)
        | AuthCommand::UserList
        | AuthCommand::RoleAdd(_)
        | AuthCommand::RoleDelete(_)
        | AuthCommand::RoleList
        | AuthCommand::RoleGrantPermission(_)
        | AuthCommand::RoleRevokePermission(_) => true,
    }
}

/// The stored hash of a request; it travels as base64, as in etcd's own log.
fn stored_hash(hashed: &str) -> Result<Bytes, AuthRefusal> {
    STANDARD.decode(hashed).map(Bytes::from).map_err(|_| AuthRefusal::NoPasswordUser)
}

fn permission(wire: authpb::Permission) -> Permission {
    Permission {
        kind: PermissionKind(wire.perm_type),
        range: KeyRange::from_wire(wire.key, wire.range_end),
    }
}

/// A permission as the API shows it.
pub fn wire_permission(permission: &Permission) -> authpb::Permission {
    authpb::Permission {
        perm_type: permission.kind.0,
        key: permission.range.start.clone(),
        range_end: match &permission.range.end {
            RangeEnd::Single => Bytes::new(),
            RangeEnd::Unbounded => Bytes::from_static(&[0]),
            RangeEnd::Before(end) => end.clone(),
        },
    }
}

impl Applier<'_> {
    pub(crate) fn auth_command(
        &mut self,
        command: AuthCommand,
        caller: &Caller,
    ) -> Result<AuthAnswer, Refusal> {
        if needs_admin(&command) {
            Permit::new(&self.tables.auth, caller).admin()?;
        }
        let body = match command {
            AuthCommand::Status => AuthBody::Status {
                enabled: self.tables.auth.is_enabled(),
                auth_revision: self.tables.auth.revision(),
            },
            AuthCommand::Authenticate(request) => self.authenticate(request, caller)?,
            AuthCommand::UserGet(request) => self.user_get(&request, caller)?,
            AuthCommand::RoleGet(request) => self.role_get(&request, caller)?,
            AuthCommand::UserList => {
                let names = self.tables.auth.users().map(|(name, _)| name.to_owned());
                AuthBody::Users(names.collect())
            }
            AuthCommand::RoleList => {
                let names = self.tables.auth.roles().map(|(name, _)| name.to_owned());
                AuthBody::Roles(names.collect())
            }
            change => {
                self.change_auth(change)?;
                AuthBody::Done
            }
        };
        Ok(AuthAnswer { revision: self.writer.revision(), body })
    }

    /// The password was compared by the edge, under the auth revision that the caller names. If
    /// anything changed since, it may have been the password.
    fn authenticate(
        &mut self,
        request: pb::InternalAuthenticateRequest,
        caller: &Caller,
    ) -> Result<AuthBody, AuthRefusal> {
        let auth = &self.tables.auth;
        if !auth.is_enabled() {
            return Err(AuthRefusal::NotEnabled);
        }
        if caller.auth_revision != auth.revision() {
            return Err(AuthRefusal::OldRevision);
        }
        let user = auth.user(&request.name).map_err(|_| AuthRefusal::AuthenticationFailed)?;
        if user.has_no_password() {
            return Err(AuthRefusal::AuthenticationFailed);
        }
        if request.simple_token.is_empty() {
            return Ok(AuthBody::Token(String::new()));
        }
        let token = format!("{}.{}", request.simple_token, self.index.0);
        let change = AuthChange::TokenAssigned { token: token.clone(), user: request.name };
        self.auth_changes.push(change);
        Ok(AuthBody::Token(token))
    }

    fn user_get(
        &self,
        request: &pb::AuthUserGetRequest,
        caller: &Caller,
    ) -> Result<AuthBody, AuthRefusal> {
        let auth = &self.tables.auth;
        match Permit::new(auth, caller).admin() {
            Err(refusal) if request.name != caller.user => Err(refusal),
            _ => Ok(AuthBody::Roles(auth.user(&request.name)?.roles.clone())),
        }
    }

    fn role_get(
        &self,
        request: &pb::AuthRoleGetRequest,
        caller: &Caller,
    ) -> Result<AuthBody, AuthRefusal> {
        let auth = &self.tables.auth;
        let is_own =
            || auth.user(&caller.user).is_ok_and(|user| user.roles.contains(&request.role));
        match Permit::new(auth, caller).admin() {
            Err(refusal) if !is_own() => Err(refusal),
            _ => {
                let permissions = auth.role(&request.role)?;
                Ok(AuthBody::Permissions(permissions.iter().map(wire_permission).collect()))
            }
        }
    }

    fn change_auth(&mut self, change: AuthCommand) -> Result<(), AuthRefusal> {
        let auth: &mut Auth = std::sync::Arc::make_mut(&mut self.tables.auth);
        match change {
            AuthCommand::Enable => auth.enable(),
            AuthCommand::Disable => {
                if auth.disable() {
                    self.auth_changes.push(AuthChange::Disabled);
                }
                Ok(())
            }
            AuthCommand::UserAdd(request) => {
                let no_password = request.options.is_some_and(|options| options.no_password);
                auth.add_user(&request.name, no_password, || stored_hash(&request.hashed_password))
            }
            AuthCommand::UserDelete(request) => {
                auth.delete_user(&request.name)?;
                self.auth_changes.push(AuthChange::UserInvalidated { user: request.name });
                Ok(())
            }
            AuthCommand::UserChangePassword(request) => {
                let hash = || stored_hash(&request.hashed_password);
                auth.change_password(&request.name, hash)?;
                self.auth_changes.push(AuthChange::UserInvalidated { user: request.name });
                Ok(())
            }
            AuthCommand::UserGrantRole(request) => auth.grant_role(&request.user, &request.role),
            AuthCommand::UserRevokeRole(request) => auth.revoke_role(&request.name, &request.role),
            AuthCommand::RoleAdd(request) => auth.add_role(&request.name),
            AuthCommand::RoleDelete(request) => auth.delete_role(&request.role),
            AuthCommand::RoleGrantPermission(request) => {
                auth.grant_permission(&request.name, request.perm.map(permission))
            }
            AuthCommand::RoleRevokePermission(request) => {
                let range = KeyRange::from_wire(request.key, request.range_end);
                auth.revoke_permission(&request.role, &range)
            }
            // What only asks was answered before.
            AuthCommand::Status
            | AuthCommand::Authenticate(_)
            | AuthCommand::UserGet(_)
            | AuthCommand::UserList
            | AuthCommand::RoleGet(_)
            | AuthCommand::RoleList => Ok(()),
        }
    }
}
