//! Answers about authentication, users, roles and downgrades, in every format.
//!
//! Most of them say no more than that it is done: one sentence for people, the header for programs.

use prost::Message;
use proto::authpb::Permission;
use proto::authpb::permission::Type;
use proto::etcdserverpb::*;

use super::Format;
use super::fields::Lines;
use super::json::{self, Object};
use super::json_messages::with_header;

const ROOT: &str = "root";

/// What to print.
#[derive(Clone, Copy, Debug)]
pub(crate) enum AuthAnswer<'a> {
    /// The sentence for people, and the header.
    Done(&'a [u8], &'a Option<ResponseHeader>),
    RoleGet(&'a str, &'a AuthRoleGetResponse),
    RoleList(&'a AuthRoleListResponse),
    UserGet(&'a str, &'a AuthUserGetResponse),
    UserList(&'a AuthUserListResponse),
    Status(&'a AuthStatusResponse),
    /// With what was done.
    Downgrade(&'a str, &'a DowngradeResponse),
}

/// The text of an answer; nothing if the format does not have it.
pub(super) fn render(format: Format, hex: bool, answer: AuthAnswer<'_>) -> Option<Vec<u8>> {
    Some(match format {
        Format::Simple => simple(answer),
        Format::Json => format!("{}\n", json(answer)).into_bytes(),
        Format::Protobuf => protobuf(answer),
        Format::Fields => fields(hex, answer)?.into_bytes(),
        Format::Table => return None,
    })
}

fn simple(answer: AuthAnswer<'_>) -> Vec<u8> {
    let lines = |names: &[String]| names.iter().map(|name| format!("{name}\n")).collect();
    let text: String = match answer {
        AuthAnswer::Done(text, _) => return text.to_vec(),
        AuthAnswer::RoleGet(role, response) => return role_get(role, response),
        AuthAnswer::RoleList(response) => lines(&response.roles),
        AuthAnswer::UserList(response) => lines(&response.users),
        AuthAnswer::UserGet(name, response) => {
            let roles: String = response.roles.iter().map(|role| format!(" {role}")).collect();
            format!("User: {name}\nRoles:{roles}\n")
        }
        AuthAnswer::Status(response) => format!(
            "Authentication Status: {}\nAuthRevision: {}\n",
            response.enabled, response.auth_revision
        ),
        AuthAnswer::Downgrade(action, response) => {
            format!("Downgrade {action} success, cluster version {}\n", response.version)
        }
    };
    text.into_bytes()
}

fn role_get(role: &str, response: &AuthRoleGetResponse) -> Vec<u8> {
    let everything = role == ROOT && response.perm.is_empty();
    let part = |wanted: Type| -> Vec<u8> {
        if everything {
            return b"\t[, <open ended>\n".to_vec();
        }
        let permitted = |permission: &&Permission| {
            permission.perm_type() == wanted || permission.perm_type() == Type::Readwrite
        };
        response.perm.iter().filter(permitted).flat_map(permission_line).collect()
    };
    let head = format!("Role {role}\nKV Read:\n").into_bytes();
    [head, part(Type::Read), b"KV Write:\n".to_vec(), part(Type::Write)].concat()
}

fn permission_line(permission: &Permission) -> Vec<u8> {
    let key = &permission.key[..];
    let mut line = match &permission.range_end[..] {
        [] => return [b"\t", key, b"\n"].concat(),
        [0] => [b"\t[", key, b", <open ended>"].concat(),
        end => [b"\t[", key, b", ", end, b")"].concat(),
    };
    let of_prefix = client::prefix_range_end(&permission.key);
    if of_prefix == permission.range_end && !permission.key.is_empty() {
        line.extend([b" (prefix ", key, b")"].concat());
    }
    line.push(b'\n');
    line
}

fn json(answer: AuthAnswer<'_>) -> String {
    let names = |header: &Option<ResponseHeader>, name: &str, list: &[String]| {
        let mut object = with_header(header);
        object.list_unless_empty(name, list, |name| json::string(name));
        object
    };
    let object = match answer {
        AuthAnswer::Done(_, header) => with_header(header),
        AuthAnswer::RoleGet(_, response) => {
            let mut object = with_header(&response.header);
            object.list_unless_empty("perm", &response.perm, |permission| {
                let mut object = Object::new();
                object.unless_zero("permType", permission.perm_type);
                object.bytes_unless_empty("key", &permission.key);
                object.bytes_unless_empty("range_end", &permission.range_end);
                object.finish()
            });
            object
        }
        AuthAnswer::RoleList(response) => names(&response.header, "roles", &response.roles),
        AuthAnswer::UserGet(_, response) => names(&response.header, "roles", &response.roles),
        AuthAnswer::UserList(response) => names(&response.header, "users", &response.users),
        AuthAnswer::Status(response) => {
            let mut object = with_header(&response.header);
            object.unless_zero("enabled", response.enabled);
            object.unless_zero("authRevision", response.auth_revision);
            object
        }
        AuthAnswer::Downgrade(_, response) => {
            let mut object = with_header(&response.header);
            object.string_unless_empty("version", &response.version);
            object
        }
    };
    object.finish()
}

fn protobuf(answer: AuthAnswer<'_>) -> Vec<u8> {
    match answer {
        // The messages that have a header only are the same on the wire.
        AuthAnswer::Done(_, header) => AuthUserAddResponse { header: *header }.encode_to_vec(),
        AuthAnswer::RoleGet(_, response) => response.encode_to_vec(),
        AuthAnswer::RoleList(response) => response.encode_to_vec(),
        AuthAnswer::UserGet(_, response) => response.encode_to_vec(),
        AuthAnswer::UserList(response) => response.encode_to_vec(),
        AuthAnswer::Status(response) => response.encode_to_vec(),
        AuthAnswer::Downgrade(_, response) => response.encode_to_vec(),
    }
}

fn fields(hex: bool, answer: AuthAnswer<'_>) -> Option<String> {
    let mut lines = Lines { hex, text: String::new() };
    match answer {
        AuthAnswer::Done(_, header) => lines.header(header),
        AuthAnswer::RoleGet(_, response) => {
            lines.header(&response.header);
            for permission in &response.perm {
                // Two spaces, as in Go.
                let name = permission.perm_type().as_str_name();
                lines.field("PermType", format_args!(" {name}"));
                lines.quoted("Key", &permission.key);
                lines.quoted("RangeEnd", &permission.range_end);
            }
        }
        AuthAnswer::RoleList(response) => {
            lines.header(&response.header);
            lines.text.push_str("\"Roles\" :");
            for role in &response.roles {
                lines.text.push_str(&format!(" {}", crate::go::quote(role.as_bytes())));
            }
            lines.end();
        }
        AuthAnswer::UserGet(..)
        | AuthAnswer::UserList(_)
        | AuthAnswer::Status(_)
        | AuthAnswer::Downgrade(..) => return None,
    }
    Some(lines.text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_are_shown_as_points_ranges_and_prefixes() {
        let permission = |perm_type: Type, key: &'static str, end: &'static str| Permission {
            perm_type: perm_type.into(),
            key: key.into(),
            range_end: end.into(),
        };
        let response = AuthRoleGetResponse {
            header: None,
            perm: vec![
                permission(Type::Read, "a", ""),
                permission(Type::Write, "b", "d"),
                permission(Type::Readwrite, "c", "d"),
                permission(Type::Read, "x", "\0"),
            ],
        };
        let text = "Role r\nKV Read:\n\ta\n\t[c, d) (prefix c)\n\t[x, <open ended>\n\
                    KV Write:\n\t[b, d)\n\t[c, d) (prefix c)\n";
        assert_eq!(role_get("r", &response), text.as_bytes());
        let everything = "Role root\nKV Read:\n\t[, <open ended>\nKV Write:\n\t[, <open ended>\n";
        assert_eq!(role_get("root", &AuthRoleGetResponse::default()), everything.as_bytes());
    }
}
