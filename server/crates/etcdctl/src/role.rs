//! `role`: roles and what they permit. No command here has a deadline, as in Go etcdctl.

use bytes::Bytes;
use client::prefix_range_end;
use cobra::{Exit, Flag, Kind, Matches, Outcome};
use proto::authpb::Permission;
use proto::authpb::permission::Type;
use proto::etcdserverpb::{
    AuthRoleAddRequest, AuthRoleDeleteRequest, AuthRoleGetRequest, AuthRoleGrantPermissionRequest,
    AuthRoleListRequest, AuthRoleRevokePermissionRequest,
};

use crate::command::{Command, Group, Invocation};
use crate::global::Session;
use crate::output::Answer;
use crate::output::auth::AuthAnswer;
use crate::words::{self, Word};

/// To a server this is the end of all keys, and as a key the first one.
const OPEN_END: &[u8] = b"\0";

const RANGE_FLAGS: [Flag; 2] = [
    Flag::new("prefix", Kind::Bool, "false", "all keys that begin with the key"),
    Flag::new("from-key", Kind::Bool, "false", "all keys from the key on"),
];

pub(crate) fn command() -> Command {
    Command {
        name: "role",
        usage: "<subcommand>",
        short: "Manages roles",
        group: Group::AUTHENTICATION,
        children: vec![
            Command {
                name: "add",
                usage: "<role name>",
                short: "Adds a role",
                run: Some(|it| Box::pin(add(it))),
                ..Command::default()
            },
            Command {
                name: "delete",
                usage: "<role name>",
                short: "Deletes a role",
                run: Some(|it| Box::pin(delete(it))),
                ..Command::default()
            },
            Command {
                name: "get",
                usage: "<role name>",
                short: "Tells what a role permits",
                run: Some(|it| Box::pin(get(it))),
                ..Command::default()
            },
            Command {
                name: "list",
                short: "Lists all roles",
                run: Some(|it| Box::pin(list(it))),
                ..Command::default()
            },
            Command {
                name: "grant-permission",
                usage: "[options] <role name> <permission type> <key> [endkey]",
                short: "Permits a role to read or write keys",
                long: "Permits a role to read or write keys. The permission type is read, write or \
                       readwrite.",
                flags: RANGE_FLAGS.to_vec(),
                run: Some(|it| Box::pin(grant_permission(it))),
                ..Command::default()
            },
            Command {
                name: "revoke-permission",
                usage: "<role name> <key> [endkey]",
                short: "Takes a permission from a role",
                flags: RANGE_FLAGS.to_vec(),
                run: Some(|it| Box::pin(revoke_permission(it))),
                ..Command::default()
            },
        ],
        ..Command::default()
    }
}

/// The one argument of a command.
fn name_of(invocation: &Invocation, command: &str) -> Outcome<String> {
    match invocation.arguments() {
        [name] => words::text(name),
        _ => Err(Exit::bad_arguments(format!(
            "role {command} command requires role name as its argument"
        ))),
    }
}

async fn add(invocation: Invocation) -> Outcome {
    let name = name_of(&invocation, "add")?;
    let session = Session::new(&invocation)?;
    let request = AuthRoleAddRequest { name: name.clone() };
    let response = session.client().await?.role_add(request).await?;
    let text = format!("Role {name} created\n");
    session.printer.print(Answer::Auth(AuthAnswer::Done(text.as_bytes(), &response.header)))
}

async fn delete(invocation: Invocation) -> Outcome {
    let role = name_of(&invocation, "delete")?;
    let session = Session::new(&invocation)?;
    let request = AuthRoleDeleteRequest { role: role.clone() };
    let response = session.client().await?.role_delete(request).await?;
    let text = format!("Role {role} deleted\n");
    session.printer.print(Answer::Auth(AuthAnswer::Done(text.as_bytes(), &response.header)))
}

async fn get(invocation: Invocation) -> Outcome {
    let role = name_of(&invocation, "get")?;
    let session = Session::new(&invocation)?;
    let request = AuthRoleGetRequest { role: role.clone() };
    let response = session.client().await?.role_get(request).await?;
    session.printer.print(Answer::Auth(AuthAnswer::RoleGet(&role, &response)))
}

async fn list(invocation: Invocation) -> Outcome {
    if !invocation.arguments().is_empty() {
        return Err(Exit::bad_arguments("role list command requires no arguments"));
    }
    let session = Session::new(&invocation)?;
    let response = session.client().await?.role_list(AuthRoleListRequest {}).await?;
    session.printer.print(Answer::Auth(AuthAnswer::RoleList(&response)))
}

async fn grant_permission(invocation: Invocation) -> Outcome {
    let [name, kind, keys @ ..] = invocation.arguments() else { return Err(grant_usage()) };
    if keys.is_empty() {
        return Err(grant_usage());
    }
    let perm_type = match words::shown(kind).to_uppercase().as_str() {
        "READ" => Type::Read,
        "WRITE" => Type::Write,
        "READWRITE" => Type::Readwrite,
        _ => {
            let kind = words::shown(kind);
            return Err(Exit::bad_arguments(format!("invalid permission type: {kind}")));
        }
    };
    let (key, range_end) = range(&invocation.matches, keys)?;
    let permission = Permission { perm_type: perm_type.into(), key, range_end };
    let name = words::text(name)?;
    let text = format!("Role {name} updated\n");
    let request = AuthRoleGrantPermissionRequest { name, perm: Some(permission) };
    let session = Session::new(&invocation)?;
    let response = session.client().await?.role_grant_permission(request).await?;
    session.printer.print(Answer::Auth(AuthAnswer::Done(text.as_bytes(), &response.header)))
}

fn grant_usage() -> Exit {
    Exit::bad_arguments(
        "role grant command requires role name, permission type, and key [endkey] as its argument",
    )
}

async fn revoke_permission(invocation: Invocation) -> Outcome {
    let (Some(role), Some(typed)) = (invocation.arguments().first(), invocation.arguments().get(1))
    else {
        return Err(Exit::bad_arguments(
            "role revoke-permission command requires role name and key [endkey] as its argument",
        ));
    };
    let (key, range_end) = range(&invocation.matches, &invocation.arguments()[1..])?;
    let role = words::text(role)?;
    let revoked = match &range_end[..] {
        [] => [b"key ", &typed[..]].concat(),
        OPEN_END => [b"range [", &typed[..], b", <open ended>"].concat(),
        end => [b"range [", &typed[..], b", ", end, b")"].concat(),
    };
    let from = format!(" is revoked from role {role}\n");
    let text = [b"Permission of ", &revoked[..], from.as_bytes()].concat();
    let request = AuthRoleRevokePermissionRequest { role, key, range_end };
    let session = Session::new(&invocation)?;
    let response = session.client().await?.role_revoke_permission(request).await?;
    session.printer.print(Answer::Auth(AuthAnswer::Done(&text, &response.header)))
}

/// Key and range end of a permission; `keys` is not empty.
fn range(flags: &Matches, keys: &[Word]) -> Outcome<(Bytes, Bytes)> {
    let (prefix, from_key) = (flags.is_true("prefix"), flags.is_true("from-key"));
    let key = keys[0].clone();
    let exclusive = || Exit::bad_arguments("--from-key and --prefix flags are mutually exclusive");
    let open = Bytes::from_static(OPEN_END);
    let end = match keys.get(1) {
        // No key is empty, so everything begins at the first one; an end is passed over, as in Go.
        _ if key.is_empty() && prefix && from_key => return Err(exclusive()),
        _ if key.is_empty() && (prefix || from_key) => return Ok((open.clone(), open)),
        _ if key.is_empty() => return Ok((open, Bytes::new())),
        Some(_) if prefix => {
            return Err(Exit::bad_arguments("unexpected endkey argument with --prefix flag"));
        }
        Some(_) if from_key => {
            return Err(Exit::bad_arguments("unexpected endkey argument with --from-key flag"));
        }
        Some(end) => end.clone(),
        None if prefix && from_key => return Err(exclusive()),
        None if prefix => prefix_range_end(&key),
        None if from_key => open,
        None => Bytes::new(),
    };
    Ok((key, end))
}
