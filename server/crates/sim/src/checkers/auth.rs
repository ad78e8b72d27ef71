//! etcd's users, roles and permissions, written a second time and slowly.
//!
//! It shares no code with the members. What a user may do is looked up in the permissions themselves,
//! key by key where they meet.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use machine::{Auth, AuthBody, AuthRefusal, Caller};
use proto::{authpb, etcdserverpb as pb};

use crate::auth::{AuthRequest, PASSWORDS};

type Verdict = Result<(), AuthRefusal>;

const ROOT: &str = "root";

#[derive(Clone, Debug, PartialEq)]
struct User {
    password: &'static str,
    roles: BTreeSet<String>,
}

/// All users and roles after some entry of the log.
#[derive(Clone, Debug, PartialEq)]
pub struct AuthModel {
    enabled: bool,
    revision: u64,
    users: BTreeMap<String, User>,
    roles: BTreeMap<String, Vec<authpb::Permission>>,
}

impl Default for AuthModel {
    fn default() -> Self {
        Self { enabled: false, revision: 1, users: BTreeMap::new(), roles: BTreeMap::new() }
    }
}

fn password(hashed: &str) -> Result<&'static str, AuthRefusal> {
    let known = PASSWORDS.iter().find(|(_, stored)| *stored == hashed);
    known.map(|(password, _)| *password).ok_or(AuthRefusal::NoPasswordUser)
}

/// Whether one permission holds a key.
fn holds(permission: &authpb::Permission, key: &[u8]) -> bool {
    match permission.range_end.as_ref() {
        [] => key == permission.key,
        [0] => key >= permission.key.as_ref(),
        end => key >= permission.key.as_ref() && key < end,
    }
}

/// The first key behind a permission; none if there is none.
fn behind(permission: &authpb::Permission) -> Option<Vec<u8>> {
    match permission.range_end.as_ref() {
        [] => Some([permission.key.as_ref(), &[0]].concat()),
        [0] => None,
        end => Some(end.to_vec()),
    }
}

/// Whether permissions hold a whole range: from its first key on, each time as far as one reaches.
fn cover(permissions: &[&authpb::Permission], key: &[u8], range_end: &[u8]) -> bool {
    let limit = match range_end {
        [] => Some([key, &[0]].concat()),
        [0] => None,
        end => Some(end.to_vec()),
    };
    let mut at = key.to_vec();
    loop {
        let mut reach: Option<Vec<u8>> = None;
        for permission in permissions.iter().filter(|permission| holds(permission, &at)) {
            match behind(permission) {
                None => return true,
                further => reach = reach.max(further),
            }
        }
        match (reach, &limit) {
            (Some(reach), Some(limit)) if reach >= *limit => return true,
            (Some(reach), _) => at = reach,
            (None, _) => return false,
        }
    }
}

impl AuthModel {
    /// Whether permissions are asked for at all.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Which state this is.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// What differs from a member's, if anything does.
    pub fn compare(&self, auth: &Auth) -> Result<(), String> {
        let users = auth.users().map(|(name, user)| {
            let password =
                PASSWORDS.iter().find(|(plain, _)| user.password_hash == plain.as_bytes());
            let password = password.map_or("", |(plain, _)| *plain);
            (name.to_owned(), User { password, roles: user.roles.iter().cloned().collect() })
        });
        let roles = auth.roles().map(|(name, permissions)| {
            (name.to_owned(), permissions.iter().map(machine::wire_permission).collect())
        });
        let theirs = AuthModel {
            enabled: auth.is_enabled(),
            revision: auth.revision(),
            users: users.collect(),
            roles: roles.collect(),
        };
        if theirs == *self { Ok(()) } else { Err(format!("{theirs:?} instead of {self:?}")) }
    }

    fn is_root(&self, user: &str) -> bool {
        self.users.get(user).is_some_and(|user| user.roles.contains(ROOT))
    }

    /// Whether a user may administer.
    pub fn admin(&self, user: &str) -> Verdict {
        if !self.enabled {
            return Ok(());
        }
        if user.is_empty() {
            return Err(AuthRefusal::UserEmpty);
        }
        self.users.get(user).ok_or(AuthRefusal::UserNotFound)?;
        if self.is_root(user) { Ok(()) } else { Err(AuthRefusal::PermissionDenied) }
    }

    fn keys(&self, caller: &Caller, key: &[u8], end: &[u8], kinds: [i32; 2]) -> Verdict {
        if !self.enabled {
            return Ok(());
        }
        if caller.auth_revision == 0 {
            return Err(AuthRefusal::UserEmpty);
        }
        if caller.auth_revision < self.revision {
            return Err(AuthRefusal::OldRevision);
        }
        let user = self.users.get(&caller.user).ok_or(AuthRefusal::PermissionDenied)?;
        let permissions: Vec<_> = user
            .roles
            .iter()
            .filter_map(|role| self.roles.get(role))
            .flatten()
            .filter(|permission| kinds.contains(&permission.perm_type))
            .collect();
        match self.is_root(&caller.user) || cover(&permissions, key, end) {
            true => Ok(()),
            false => Err(AuthRefusal::PermissionDenied),
        }
    }

    /// Whether a caller may read a range.
    pub fn read(&self, caller: &Caller, key: &[u8], end: &[u8]) -> Verdict {
        self.keys(caller, key, end, [0, 2])
    }

    /// Whether a caller may write a range.
    pub fn write(&self, caller: &Caller, key: &[u8], end: &[u8]) -> Verdict {
        self.keys(caller, key, end, [1, 2])
    }

    /// Whether a caller may end a lease, or attach to it, that these keys are attached to.
    pub fn lease(&self, caller: &Caller, attached: &[Bytes]) -> Verdict {
        if self.admin(&caller.user).is_ok() {
            return Ok(());
        }
        attached.iter().try_for_each(|key| self.write(caller, key, &[]))
    }

    /// Whether a caller may put; `attached` are the keys of the put's lease.
    pub fn put(&self, caller: &Caller, put: &pb::PutRequest, attached: &[Bytes]) -> Verdict {
        self.write(caller, &put.key, &[])?;
        self.lease(caller, attached)?;
        if put.prev_kv { self.read(caller, &put.key, &[]) } else { Ok(()) }
    }

    /// Whether a caller may delete.
    pub fn delete(&self, caller: &Caller, delete: &pb::DeleteRangeRequest) -> Verdict {
        self.write(caller, &delete.key, &delete.range_end)?;
        match delete.prev_kv {
            true => self.read(caller, &delete.key, &delete.range_end),
            false => Ok(()),
        }
    }

    /// What a request of auth does, and is told.
    pub fn apply(
        &mut self,
        request: AuthRequest,
        caller: &Caller,
        index: u64,
    ) -> Result<AuthBody, AuthRefusal> {
        match request {
            AuthRequest::Status(_) => {
                Ok(AuthBody::Status { enabled: self.enabled, auth_revision: self.revision })
            }
            AuthRequest::Authenticate(request) => {
                if !self.enabled {
                    return Err(AuthRefusal::NotEnabled);
                }
                if caller.auth_revision != self.revision {
                    return Err(AuthRefusal::OldRevision);
                }
                if !self.users.contains_key(&request.name) {
                    return Err(AuthRefusal::AuthenticationFailed);
                }
                Ok(AuthBody::Token(format!("{}.{index}", request.simple_token)))
            }
            AuthRequest::UserGet(request) => {
                if request.name != caller.user {
                    self.admin(&caller.user)?;
                }
                let user = self.users.get(&request.name).ok_or(AuthRefusal::UserNotFound)?;
                Ok(AuthBody::Roles(user.roles.iter().cloned().collect()))
            }
            AuthRequest::RoleGet(request) => {
                let own = self.users.get(&caller.user);
                if !own.is_some_and(|user| user.roles.contains(&request.role)) {
                    self.admin(&caller.user)?;
                }
                let permissions = self.roles.get(&request.role);
                Ok(AuthBody::Permissions(permissions.ok_or(AuthRefusal::RoleNotFound)?.clone()))
            }
            AuthRequest::UserList(_) => {
                self.admin(&caller.user)?;
                Ok(AuthBody::Users(self.users.keys().cloned().collect()))
            }
            AuthRequest::RoleList(_) => {
                self.admin(&caller.user)?;
                Ok(AuthBody::Roles(self.roles.keys().cloned().collect()))
            }
            change => {
                self.admin(&caller.user)?;
                if self.change(change)? {
                    self.revision += 1;
                }
                Ok(AuthBody::Done)
            }
        }
    }

    /// Changes users and roles; whether that makes another revision of them.
    fn change(&mut self, change: AuthRequest) -> Result<bool, AuthRefusal> {
        match change {
            AuthRequest::Enable(_) => {
                if !self.enabled {
                    self.users.get(ROOT).ok_or(AuthRefusal::RootUserNotFound)?;
                    if !self.is_root(ROOT) {
                        return Err(AuthRefusal::RootRoleNotGranted);
                    }
                    self.enabled = true;
                }
                Ok(false)
            }
            AuthRequest::Disable(_) => Ok(std::mem::take(&mut self.enabled)),
            AuthRequest::RoleAdd(request) => {
                if self.roles.contains_key(&request.name) {
                    return Err(AuthRefusal::RoleExists);
                }
                self.roles.insert(request.name, Vec::new());
                Ok(true)
            }
            AuthRequest::RoleDelete(request) => {
                if self.enabled && request.role == ROOT {
                    return Err(AuthRefusal::InvalidManagement);
                }
                self.roles.remove(&request.role).ok_or(AuthRefusal::RoleNotFound)?;
                for user in self.users.values_mut() {
                    user.roles.remove(&request.role);
                }
                Ok(true)
            }
            AuthRequest::RoleGrantPermission(request) => {
                let permission = request.perm.ok_or(AuthRefusal::PermissionNotGiven)?;
                let end = permission.range_end.as_ref();
                let is_nothing = end.len() > 1 && end <= permission.key.as_ref();
                if permission.key.is_empty() || is_nothing {
                    return Err(AuthRefusal::InvalidManagement);
                }
                let granted = self.roles.get_mut(&request.name).ok_or(AuthRefusal::RoleNotFound)?;
                grant(granted, permission);
                Ok(true)
            }
            AuthRequest::RoleRevokePermission(request) => {
                let granted = self.roles.get_mut(&request.role).ok_or(AuthRefusal::RoleNotFound)?;
                let before = granted.len();
                granted.retain(|p| (&p.key, &p.range_end) != (&request.key, &request.range_end));
                match granted.len() == before {
                    true => Err(AuthRefusal::PermissionNotGranted),
                    false => Ok(true),
                }
            }
            change => self.change_users(change),
        }
    }

    fn change_users(&mut self, change: AuthRequest) -> Result<bool, AuthRefusal> {
        match change {
            AuthRequest::UserAdd(request) => {
                if self.users.contains_key(&request.name) {
                    return Err(AuthRefusal::UserExists);
                }
                let password = password(&request.hashed_password)?;
                self.users.insert(request.name, User { password, roles: BTreeSet::new() });
                Ok(true)
            }
            AuthRequest::UserDelete(request) => {
                if self.enabled && request.name == ROOT {
                    return Err(AuthRefusal::InvalidManagement);
                }
                self.users.remove(&request.name).ok_or(AuthRefusal::UserNotFound)?;
                Ok(true)
            }
            AuthRequest::UserChangePassword(request) => {
                let user = self.users.get_mut(&request.name).ok_or(AuthRefusal::UserNotFound)?;
                user.password = password(&request.hashed_password)?;
                Ok(true)
            }
            AuthRequest::UserGrantRole(request) => {
                let user = self.users.get_mut(&request.user).ok_or(AuthRefusal::UserNotFound)?;
                if request.role != ROOT && !self.roles.contains_key(&request.role) {
                    return Err(AuthRefusal::RoleNotFound);
                }
                // One that is there already changes nothing.
                Ok(user.roles.insert(request.role))
            }
            AuthRequest::UserRevokeRole(request) => {
                if self.enabled && request.name == ROOT && request.role == ROOT {
                    return Err(AuthRefusal::InvalidManagement);
                }
                let user = self.users.get_mut(&request.name).ok_or(AuthRefusal::UserNotFound)?;
                match user.roles.remove(&request.role) {
                    true => Ok(true),
                    false => Err(AuthRefusal::RoleNotGranted),
                }
            }
            // The rest is no change.
            _ => Ok(false),
        }
    }

    /// The password that makes one this user.
    pub fn password_of(&self, user: &str) -> Option<&'static str> {
        self.users.get(user).map(|user| user.password)
    }
}

/// Adds a permission to those of a role, in the order of their first keys. As in etcd only the first
/// that begins at the same key is compared with it.
fn grant(granted: &mut Vec<authpb::Permission>, permission: authpb::Permission) {
    if let Some(first) = granted.iter_mut().find(|other| other.key >= permission.key)
        && (&first.key, &first.range_end) == (&permission.key, &permission.range_end)
    {
        first.perm_type = permission.perm_type;
        return;
    }
    let place = granted.iter().position(|other| other.key > permission.key);
    granted.insert(place.unwrap_or(granted.len()), permission);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permission(key: &'static str, end: &'static str) -> authpb::Permission {
        authpb::Permission { perm_type: 2, key: key.into(), range_end: end.into() }
    }

    #[test]
    fn permissions_that_touch_are_one_and_those_with_a_gap_are_not() {
        let [point, one, two] =
            [permission("a", ""), permission("a\0", "b"), permission("c", "\0")];
        let all = [&point, &one, &two];
        assert!(cover(&all, b"a", b"b"));
        assert!(!cover(&all, b"a", b"c"));
        assert!(cover(&all, b"d", b"\0"));
        assert!(!cover(&all, b"a", b"\0"));
        assert!(cover(&all, b"a", b""));
        assert!(!cover(&all, b"b", b""));
    }

    #[test]
    fn what_was_granted_before_is_changed_only_where_it_is_found() {
        let mut granted = Vec::new();
        for (key, end) in [("a", "c"), ("a", "b"), ("a", "c"), ("a", "b")] {
            grant(&mut granted, permission(key, end));
        }
        // The second range is not the first that begins at its key, so it is added once more.
        let ends: Vec<_> = granted.iter().map(|p| p.range_end.clone()).collect();
        assert_eq!(ends, ["c", "b", "b"]);
    }
}
