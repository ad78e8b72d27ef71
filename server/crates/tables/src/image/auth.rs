//! Auth in an image.
//!
//! ```text
//! users: count u32, each name, hash, no password u8 (0 no, 1 yes, 2 not said), roles; names rising
//! roles: count u32, each name, permissions (count u32, each kind u32, key, end); names rising
//! ```
//! Hash, key and end are lengths u32 and bytes; the end is as on the wire.

use std::collections::BTreeMap;

use bytes::Bytes;
use types::{KeyRange, RangeEnd};

use crate::auth::{Auth, Permission, PermissionKind, User};
use crate::codec::{DecodeError, Decoder, Encoder};

const NOT_SAID: u32 = 2;

pub(super) fn encode(out: &mut Encoder, auth: &Auth) {
    out.bool(auth.enabled);
    out.u64(auth.revision);
    out.count(auth.users.len());
    for (name, user) in &auth.users {
        out.text(name);
        out.bytes(&user.password_hash);
        out.u32(user.no_password.map_or(NOT_SAID, u32::from));
        out.texts(&user.roles);
    }
    out.count(auth.roles.len());
    for (name, permissions) in &auth.roles {
        out.text(name);
        out.count(permissions.len());
        for permission in permissions {
            out.u32(permission.kind.0.cast_unsigned());
            out.bytes(&permission.range.start);
            match &permission.range.end {
                RangeEnd::Single => out.bytes(&[]),
                RangeEnd::Unbounded => out.bytes(&[0]),
                RangeEnd::Before(end) => out.bytes(end),
            }
        }
    }
}

pub(super) fn decode(input: &mut Decoder<'_>) -> Result<Auth, DecodeError> {
    let enabled = input.bool("auth")?;
    let revision = input.u64("auth revision")?;
    if revision == 0 {
        return Err(DecodeError::Damaged { field: "auth revision", detail: "is 0" });
    }
    let mut users: BTreeMap<String, User> = BTreeMap::new();
    for _ in 0..input.u32("users")? {
        let name = input.text("user name")?;
        check_rising(users.last_key_value(), &name, "user name")?;
        let password_hash = Bytes::copy_from_slice(input.bytes("password hash")?);
        let no_password = match input.u32("no password")? {
            0 => Some(false),
            1 => Some(true),
            NOT_SAID => None,
            _ => return Err(DecodeError::Damaged { field: "no password", detail: "is unknown" }),
        };
        let roles = input.texts("granted roles")?;
        users.insert(name, User { password_hash, roles, no_password });
    }
    let mut roles: BTreeMap<String, Vec<Permission>> = BTreeMap::new();
    for _ in 0..input.u32("roles")? {
        let name = input.text("role name")?;
        check_rising(roles.last_key_value(), &name, "role name")?;
        let count = input.u32("permissions")?;
        let permissions = (0..count).map(|_| permission(input)).collect::<Result<_, _>>()?;
        roles.insert(name, permissions);
    }
    Ok(Auth::new(enabled, revision, users, roles))
}

fn permission(input: &mut Decoder<'_>) -> Result<Permission, DecodeError> {
    let kind = PermissionKind(input.u32("permission kind")?.cast_signed());
    let key = Bytes::copy_from_slice(input.bytes("permission key")?);
    let end = Bytes::copy_from_slice(input.bytes("permission end")?);
    Ok(Permission { kind, range: KeyRange::from_wire(key, end) })
}

fn check_rising<T>(
    last: Option<(&String, &T)>,
    name: &String,
    field: &'static str,
) -> Result<(), DecodeError> {
    match last {
        Some((last, _)) if last >= name => {
            Err(DecodeError::Damaged { field, detail: "does not rise" })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn example() -> Auth {
        let range = |key: &'static str, end: &'static str| {
            KeyRange::from_wire(
                Bytes::from_static(key.as_bytes()),
                Bytes::from_static(end.as_bytes()),
            )
        };
        let permissions = [("a", ""), ("b", "\0"), ("c", "d")].map(|(key, end)| Permission {
            kind: PermissionKind::READ_WRITE,
            range: range(key, end),
        });
        let user = |hash: &'static str, no_password, roles: &[&str]| User {
            password_hash: Bytes::from_static(hash.as_bytes()),
            roles: roles.iter().map(ToString::to_string).collect(),
            no_password,
        };
        let users = [
            ("alice".to_owned(), user("$2a$10$x", Some(false), &["reader"])),
            ("bob".to_owned(), user("", Some(true), &[])),
            ("root".to_owned(), user("$2a$10$y", None, &["root"])),
        ];
        let roles = [("reader".to_owned(), permissions.to_vec()), ("root".to_owned(), Vec::new())];
        Auth::new(true, 12, users.into(), roles.into())
    }

    #[test]
    fn names_out_of_order_are_damage() {
        for field in ["user name", "role name"] {
            let mut out = Encoder::new(2);
            out.bool(false);
            out.u64(1);
            if field == "role name" {
                out.count(0);
            }
            out.count(2);
            for name in ["b", "a"] {
                out.text(name);
                if field == "user name" {
                    out.bytes(&[]);
                    out.u32(0);
                }
                out.count(0);
            }
            let bytes = out.finish();
            let (mut input, _) = Decoder::new(&bytes, 2).unwrap();
            let decoded = decode(&mut input);
            assert_eq!(decoded, Err(DecodeError::Damaged { field, detail: "does not rise" }));
        }
    }
}
