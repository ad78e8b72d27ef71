//! Users, roles, and who may do what: etcd's auth store.
//!
//! Invariants:
//! - [`Auth::revision`] grows with every change of users, roles or permissions and when auth is turned
//!   off. A request that was checked under an older revision is refused when it is applied, so that no
//!   permission outlives its revocation.
//! - While auth is on there is a user `root` with the role `root`: both are kept from deletion.
//! - What a user may do ([`Access`]) is derived from users and roles, never stored.
//!
//! Deliberately absent: passwords (only their hashes come here), hashing, tokens, clocks.

mod access;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use types::{KeyRange, RangeEnd};

pub use access::Access;

/// The user, and the role, that may do everything.
pub const ROOT: &str = "root";

/// The revision of a store on which nothing was ever changed.
const FIRST_REVISION: u64 = 1;

/// Why auth refused. The edge has etcd's codes and texts for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum AuthRefusal {
    #[error("root user does not exist")]
    RootUserNotFound,
    #[error("root user does not have root role")]
    RootRoleNotGranted,
    #[error("user already exists")]
    UserExists,
    #[error("user name is empty")]
    UserEmpty,
    #[error("user not found")]
    UserNotFound,
    #[error("role already exists")]
    RoleExists,
    #[error("role not found")]
    RoleNotFound,
    #[error("role name is empty")]
    RoleEmpty,
    #[error("permission not given")]
    PermissionNotGiven,
    #[error("authentication failed, invalid user ID or password")]
    AuthenticationFailed,
    #[error("authentication failed, password was given for no password user")]
    NoPasswordUser,
    #[error("permission denied")]
    PermissionDenied,
    #[error("role is not granted to the user")]
    RoleNotGranted,
    #[error("permission is not granted to the role")]
    PermissionNotGranted,
    #[error("authentication is not enabled")]
    NotEnabled,
    #[error("revision in header is old")]
    OldRevision,
    #[error("invalid auth management")]
    InvalidManagement,
}

/// A user.
#[derive(Clone, PartialEq, Eq)]
pub struct User {
    /// The bcrypt hash of the password; empty if there is none.
    pub password_hash: Bytes,
    /// Granted roles, sorted.
    pub roles: Vec<String>,
    /// Whether only a certificate makes one this user; none for users older than that choice.
    pub no_password: Option<bool>,
}

impl std::fmt::Debug for User {
    /// Without the hash: what is printed ends up in logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("User")
            .field("roles", &self.roles)
            .field("no_password", &self.no_password)
            .finish_non_exhaustive()
    }
}

impl User {
    /// Whether a password can make one this user.
    pub fn has_no_password(&self) -> bool {
        self.no_password == Some(true)
    }

    fn has_root_role(&self) -> bool {
        self.roles.binary_search_by(|role| role.as_str().cmp(ROOT)).is_ok()
    }
}

/// What a permission allows, as the number on the wire (`authpb.Permission.Type`). Numbers this
/// program does not know are kept and allow nothing, as in etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PermissionKind(pub i32);

impl PermissionKind {
    pub const READ: PermissionKind = PermissionKind(0);
    pub const WRITE: PermissionKind = PermissionKind(1);
    pub const READ_WRITE: PermissionKind = PermissionKind(2);

    pub(crate) fn reads(self) -> bool {
        self == Self::READ || self == Self::READ_WRITE
    }

    pub(crate) fn writes(self) -> bool {
        self == Self::WRITE || self == Self::READ_WRITE
    }
}

/// A permission of a role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permission {
    pub kind: PermissionKind,
    pub range: KeyRange,
}

impl Permission {
    /// A range that no request could ever name must not be granted.
    fn is_valid(&self) -> bool {
        !self.range.start.is_empty() && !self.range.is_empty()
    }
}

/// All users and roles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Auth {
    pub(crate) enabled: bool,
    pub(crate) revision: u64,
    pub(crate) users: BTreeMap<String, User>,
    pub(crate) roles: BTreeMap<String, Vec<Permission>>,
    /// Derived: what each user may do.
    access: BTreeMap<String, Arc<Access>>,
}

impl Default for Auth {
    fn default() -> Self {
        Self::new(false, FIRST_REVISION, BTreeMap::new(), BTreeMap::new())
    }
}

impl Auth {
    /// A store of these parts, as from a backup. A store that was never begun begins here.
    pub fn new(
        enabled: bool,
        revision: u64,
        users: BTreeMap<String, User>,
        roles: BTreeMap<String, Vec<Permission>>,
    ) -> Self {
        let revision = revision.max(FIRST_REVISION);
        let mut auth = Self { enabled, revision, users, roles, access: BTreeMap::new() };
        auth.derive_all();
        auth
    }

    /// Whether permissions are asked for at all.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Which state of users and roles this is.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// All users, in order of name.
    pub fn users(&self) -> impl ExactSizeIterator<Item = (&str, &User)> {
        self.users.iter().map(|(name, user)| (name.as_str(), user))
    }

    /// All roles with their permissions, in order of name.
    pub fn roles(&self) -> impl ExactSizeIterator<Item = (&str, &[Permission])> {
        self.roles.iter().map(|(name, permissions)| (name.as_str(), permissions.as_slice()))
    }

    /// One user.
    pub fn user(&self, name: &str) -> Result<&User, AuthRefusal> {
        self.users.get(name).ok_or(AuthRefusal::UserNotFound)
    }

    /// The hash that a user's password is to be compared with, and the revision that the comparison
    /// will be about.
    pub fn password_hash(&self, name: &str) -> Result<(Bytes, u64), AuthRefusal> {
        if !self.enabled {
            return Err(AuthRefusal::NotEnabled);
        }
        let user = self.user(name).map_err(|_| AuthRefusal::AuthenticationFailed)?;
        if user.has_no_password() {
            return Err(AuthRefusal::NoPasswordUser);
        }
        Ok((user.password_hash.clone(), self.revision))
    }

    /// The permissions of a role. The role `root` has all of them, whatever was granted to it.
    pub fn role(&self, name: &str) -> Result<Vec<Permission>, AuthRefusal> {
        let granted = self.roles.get(name).ok_or(AuthRefusal::RoleNotFound)?;
        if name != ROOT {
            return Ok(granted.clone());
        }
        let range = KeyRange { start: Bytes::new(), end: RangeEnd::Unbounded };
        Ok(vec![Permission { kind: PermissionKind::READ_WRITE, range }])
    }

    /// Turns auth on. As in etcd this leaves the revision alone.
    pub fn enable(&mut self) -> Result<(), AuthRefusal> {
        if self.enabled {
            return Ok(());
        }
        let root = self.users.get(ROOT).ok_or(AuthRefusal::RootUserNotFound)?;
        if !root.has_root_role() {
            return Err(AuthRefusal::RootRoleNotGranted);
        }
        self.enabled = true;
        Ok(())
    }

    /// Turns auth off; false if it was.
    pub fn disable(&mut self) -> bool {
        let was_enabled = std::mem::take(&mut self.enabled);
        if was_enabled {
            self.revision += 1;
        }
        was_enabled
    }

    /// Adds a user.
    pub fn add_user(
        &mut self,
        name: &str,
        no_password: bool,
        password_hash: impl FnOnce() -> Result<Bytes, AuthRefusal>,
    ) -> Result<(), AuthRefusal> {
        if name.is_empty() {
            return Err(AuthRefusal::UserEmpty);
        }
        if self.users.contains_key(name) {
            return Err(AuthRefusal::UserExists);
        }
        let password_hash = if no_password { Bytes::new() } else { password_hash()? };
        let user = User { password_hash, roles: Vec::new(), no_password: Some(no_password) };
        self.users.insert(name.to_owned(), user);
        self.user_changed(name);
        Ok(())
    }

    /// Takes a user away.
    pub fn delete_user(&mut self, name: &str) -> Result<(), AuthRefusal> {
        if self.enabled && name == ROOT {
            return Err(AuthRefusal::InvalidManagement);
        }
        self.users.remove(name).ok_or(AuthRefusal::UserNotFound)?;
        self.user_changed(name);
        Ok(())
    }

    /// Changes a password. A user without one stays without.
    pub fn change_password(
        &mut self,
        name: &str,
        password_hash: impl FnOnce() -> Result<Bytes, AuthRefusal>,
    ) -> Result<(), AuthRefusal> {
        let user = self.users.get_mut(name).ok_or(AuthRefusal::UserNotFound)?;
        user.password_hash = if user.has_no_password() { Bytes::new() } else { password_hash()? };
        self.revision += 1;
        Ok(())
    }

    /// Grants a role. The role `root` need not exist; a grant that is there already changes nothing.
    pub fn grant_role(&mut self, name: &str, role: &str) -> Result<(), AuthRefusal> {
        let user = self.users.get_mut(name).ok_or(AuthRefusal::UserNotFound)?;
        if role != ROOT && !self.roles.contains_key(role) {
            return Err(AuthRefusal::RoleNotFound);
        }
        let Err(place) = user.roles.binary_search_by(|granted| granted.as_str().cmp(role)) else {
            return Ok(());
        };
        user.roles.insert(place, role.to_owned());
        self.user_changed(name);
        Ok(())
    }

    /// Takes a role from a user.
    pub fn revoke_role(&mut self, name: &str, role: &str) -> Result<(), AuthRefusal> {
        if self.enabled && name == ROOT && role == ROOT {
            return Err(AuthRefusal::InvalidManagement);
        }
        let user = self.users.get_mut(name).ok_or(AuthRefusal::UserNotFound)?;
        let before = user.roles.len();
        user.roles.retain(|granted| granted != role);
        if user.roles.len() == before {
            return Err(AuthRefusal::RoleNotGranted);
        }
        self.user_changed(name);
        Ok(())
    }

    /// Adds a role without permissions.
    pub fn add_role(&mut self, name: &str) -> Result<(), AuthRefusal> {
        if name.is_empty() {
            return Err(AuthRefusal::RoleEmpty);
        }
        if self.roles.contains_key(name) {
            return Err(AuthRefusal::RoleExists);
        }
        self.roles.insert(name.to_owned(), Vec::new());
        // A user may have been granted the role `root` before it existed.
        self.roles_changed();
        Ok(())
    }

    /// Takes a role away, also from all users.
    pub fn delete_role(&mut self, name: &str) -> Result<(), AuthRefusal> {
        if self.enabled && name == ROOT {
            return Err(AuthRefusal::InvalidManagement);
        }
        self.roles.remove(name).ok_or(AuthRefusal::RoleNotFound)?;
        for user in self.users.values_mut() {
            user.roles.retain(|granted| granted != name);
        }
        self.roles_changed();
        Ok(())
    }

    /// Grants a permission, or changes its kind if the role has one for exactly this range.
    pub fn grant_permission(
        &mut self,
        role: &str,
        permission: Option<Permission>,
    ) -> Result<(), AuthRefusal> {
        let permission = permission.ok_or(AuthRefusal::PermissionNotGiven)?;
        if !permission.is_valid() {
            return Err(AuthRefusal::InvalidManagement);
        }
        let granted = self.roles.get_mut(role).ok_or(AuthRefusal::RoleNotFound)?;
        // As in etcd only the first of those that begin at the same key is compared.
        let place = granted.partition_point(|other| other.range.start < permission.range.start);
        match granted.get_mut(place) {
            Some(other) if other.range == permission.range => other.kind = permission.kind,
            _ => {
                granted.push(permission);
                granted.sort_by(|one, other| one.range.start.cmp(&other.range.start));
            }
        }
        self.roles_changed();
        Ok(())
    }

    /// Takes a permission back; the range must be the one that was granted.
    pub fn revoke_permission(&mut self, role: &str, range: &KeyRange) -> Result<(), AuthRefusal> {
        let granted = self.roles.get_mut(role).ok_or(AuthRefusal::RoleNotFound)?;
        let before = granted.len();
        granted.retain(|permission| permission.range != *range);
        if granted.len() == before {
            return Err(AuthRefusal::PermissionNotGranted);
        }
        self.roles_changed();
        Ok(())
    }

    /// Whether a caller is a user, whoever; without authentication everybody is.
    pub fn check_any_user(&self, user: &str) -> Result<(), AuthRefusal> {
        match self.enabled && user.is_empty() {
            true => Err(AuthRefusal::UserEmpty),
            false => Ok(()),
        }
    }

    /// Whether a user may administer the cluster. The revision under which the caller was recognised
    /// does not matter for this, as in etcd.
    pub fn check_admin(&self, user: &str) -> Result<(), AuthRefusal> {
        self.check_any_user(user)?;
        match !self.enabled || self.user(user)?.has_root_role() {
            true => Ok(()),
            false => Err(AuthRefusal::PermissionDenied),
        }
    }

    /// Whether a user, recognised under `revision`, may read a range of keys.
    pub fn check_read(
        &self,
        user: &str,
        revision: u64,
        range: &KeyRange,
    ) -> Result<(), AuthRefusal> {
        self.check_keys(user, revision, |access| access.may_read(range))
    }

    /// Whether a user, recognised under `revision`, may write a range of keys.
    pub fn check_write(
        &self,
        user: &str,
        revision: u64,
        range: &KeyRange,
    ) -> Result<(), AuthRefusal> {
        self.check_keys(user, revision, |access| access.may_write(range))
    }

    fn check_keys(
        &self,
        name: &str,
        revision: u64,
        may: impl FnOnce(&Access) -> bool,
    ) -> Result<(), AuthRefusal> {
        if !self.enabled {
            return Ok(());
        }
        if revision == 0 {
            return Err(AuthRefusal::UserEmpty);
        }
        if revision < self.revision {
            return Err(AuthRefusal::OldRevision);
        }
        let user = self.users.get(name).ok_or(AuthRefusal::PermissionDenied)?;
        let allowed =
            user.has_root_role() || self.access.get(name).is_some_and(|access| may(access));
        if allowed { Ok(()) } else { Err(AuthRefusal::PermissionDenied) }
    }

    fn user_changed(&mut self, name: &str) {
        self.revision += 1;
        match self.users.get(name) {
            Some(user) => {
                let access = Arc::new(Access::of(user, &self.roles));
                self.access.insert(name.to_owned(), access);
            }
            None => {
                self.access.remove(name);
            }
        }
    }

    fn roles_changed(&mut self) {
        self.revision += 1;
        self.derive_all();
    }

    fn derive_all(&mut self) {
        let access = |(name, user): (&String, &User)| {
            (name.clone(), Arc::new(Access::of(user, &self.roles)))
        };
        self.access = self.users.iter().map(access).collect();
    }
}

#[cfg(test)]
mod tests;
