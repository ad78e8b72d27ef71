//! Requests of auth, as clients make them and as the log holds them.

use bytes::Bytes;
use machine::CommandKind;
use prost::Message;
use proto::etcdserverpb as pb;

macro_rules! requests {
    ($($name:ident($message:ident)),* $(,)?) => {
        /// A request of auth.
        #[derive(Clone, Debug, PartialEq)]
        pub enum AuthRequest {
            /// A client shows its password.
            LogIn {
                user: String,
                password: &'static str,
            },
            $($name(pb::$message),)*
        }

        impl AuthRequest {
            /// What it is in the log; none for a login, which is not proposed as it is.
            pub fn command(&self) -> Option<(CommandKind, Vec<u8>)> {
                match self {
                    Self::LogIn { .. } => None,
                    $(Self::$name(message) => {
                        Some((kinds::$name, message.encode_to_vec()))
                    })*
                }
            }

            /// The request of a command; none if the command is not one of auth's.
            pub fn decode(kind: CommandKind, body: Bytes) -> Option<Self> {
                match kind {
                    $(kinds::$name => pb::$message::decode(body).ok().map(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

/// The kinds by the names of the requests.
#[allow(non_upper_case_globals, reason = "they stand for variants of an enum")]
mod kinds {
    use machine::CommandKind;

    pub(super) const Enable: CommandKind = CommandKind::AuthEnable;
    pub(super) const Disable: CommandKind = CommandKind::AuthDisable;
    pub(super) const Status: CommandKind = CommandKind::AuthStatus;
    pub(super) const Authenticate: CommandKind = CommandKind::Authenticate;
    pub(super) const UserAdd: CommandKind = CommandKind::UserAdd;
    pub(super) const UserDelete: CommandKind = CommandKind::UserDelete;
    pub(super) const UserChangePassword: CommandKind = CommandKind::UserChangePassword;
    pub(super) const UserGrantRole: CommandKind = CommandKind::UserGrantRole;
    pub(super) const UserRevokeRole: CommandKind = CommandKind::UserRevokeRole;
    pub(super) const UserGet: CommandKind = CommandKind::UserGet;
    pub(super) const UserList: CommandKind = CommandKind::UserList;
    pub(super) const RoleAdd: CommandKind = CommandKind::RoleAdd;
    pub(super) const RoleDelete: CommandKind = CommandKind::RoleDelete;
    pub(super) const RoleGet: CommandKind = CommandKind::RoleGet;
    pub(super) const RoleList: CommandKind = CommandKind::RoleList;
    pub(super) const RoleGrantPermission: CommandKind = CommandKind::RoleGrantPermission;
    pub(super) const RoleRevokePermission: CommandKind = CommandKind::RoleRevokePermission;
}

requests! {
    Enable(AuthEnableRequest),
    Disable(AuthDisableRequest),
    Status(AuthStatusRequest),
    Authenticate(InternalAuthenticateRequest),
    UserAdd(AuthUserAddRequest),
    UserDelete(AuthUserDeleteRequest),
    UserChangePassword(AuthUserChangePasswordRequest),
    UserGrantRole(AuthUserGrantRoleRequest),
    UserRevokeRole(AuthUserRevokeRoleRequest),
    UserGet(AuthUserGetRequest),
    UserList(AuthUserListRequest),
    RoleAdd(AuthRoleAddRequest),
    RoleDelete(AuthRoleDeleteRequest),
    RoleGet(AuthRoleGetRequest),
    RoleList(AuthRoleListRequest),
    RoleGrantPermission(AuthRoleGrantPermissionRequest),
    RoleRevokePermission(AuthRoleRevokePermissionRequest),
}

/// The passwords that users have: one of these. Instead of a hash the base64 of the password itself is
/// stored, which the edge would never do; hashing is its business and slow by design.
pub const PASSWORDS: [(&str, &str); 2] = [("one", "b25l"), ("two", "dHdv")];

/// The operation that a command was proposed for. It travels in the request's own bytes as a field
/// that no etcd message has and every decoder skips, so that the log itself says whose it is.
#[derive(Clone, PartialEq, prost::Message)]
struct Tag {
    #[prost(uint64, tag = "15000")]
    operation: u64,
}

/// Marks a request's bytes.
pub fn tag(mut body: Vec<u8>, operation: usize) -> Bytes {
    let tag = Tag { operation: operation as u64 + 1 };
    body.extend_from_slice(&tag.encode_to_vec());
    body.into()
}

/// The operation that a request's bytes are marked with.
pub fn tag_of(body: &Bytes) -> Option<usize> {
    let tag = Tag::decode(body.clone()).ok()?;
    (tag.operation as usize).checked_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marked_request_is_the_same_request() {
        let request = pb::AuthUserDeleteRequest { name: "u".to_owned() };
        let (kind, body) = AuthRequest::UserDelete(request).command().unwrap();
        assert_eq!(tag_of(&body.clone().into()), None);
        let marked = tag(body.clone(), 7);
        assert_eq!(tag_of(&marked), Some(7));
        assert_eq!(AuthRequest::decode(kind, marked), AuthRequest::decode(kind, body.into()));
    }
}
