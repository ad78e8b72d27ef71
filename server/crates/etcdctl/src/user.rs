//! `user`: users, their passwords and their roles. No command here has a deadline, as in Go etcdctl.

use cobra::{Exit, Flag, Kind, Matches, Outcome};
use proto::authpb::UserAddOptions;
use proto::etcdserverpb::{
    AuthRoleGetRequest, AuthUserAddRequest, AuthUserChangePasswordRequest, AuthUserDeleteRequest,
    AuthUserGetRequest, AuthUserGrantRoleRequest, AuthUserListRequest, AuthUserRevokeRoleRequest,
};

use crate::command::{Command, Group, Invocation};
use crate::global::Session;
use crate::output::auth::AuthAnswer;
use crate::output::{self, Answer};
use crate::terminal;
use crate::words;

const INTERACTIVE: Flag = Flag::new(
    "interactive",
    Kind::Bool,
    "true",
    "ask for the password twice; if false, read it from standard input",
);

const ADD_FLAGS: [Flag; 3] = [
    INTERACTIVE,
    Flag::new("new-user-password", Kind::Text, "", "the password"),
    Flag::new(
        "no-password",
        Kind::Bool,
        "false",
        "a user without password, known by the common name of a certificate",
    ),
];

const DETAIL: Flag = Flag::new("detail", Kind::Bool, "false", "also list what the roles permit");

pub(crate) fn command() -> Command {
    let leaf = |name, usage, short, flags: &[Flag], run| Command {
        name,
        usage,
        short,
        flags: flags.to_vec(),
        run: Some(run),
        ..Command::default()
    };
    let (name, both) = ("<user name>", "<user name> <role name>");
    let new = "<user name or user:password> [options]";
    let name_and_options = "<user name> [options]";
    Command {
        name: "user",
        usage: "<subcommand>",
        short: "Manages users",
        group: Group::AUTHENTICATION,
        children: vec![
            leaf("add", new, "Adds a user", &ADD_FLAGS, |it| Box::pin(add(it))),
            leaf("delete", name, "Deletes a user", &[], |it| Box::pin(delete(it))),
            leaf("get", name_and_options, "Tells the roles of a user", &[DETAIL], |it| {
                Box::pin(get(it))
            }),
            leaf("list", "", "Lists all users", &[], |it| Box::pin(list(it))),
            leaf("passwd", name_and_options, "Changes a password", &[INTERACTIVE], |it| {
                Box::pin(change_password(it))
            }),
            leaf("grant-role", both, "Gives a role to a user", &[], |it| Box::pin(grant_role(it))),
            leaf("revoke-role", both, "Takes a role from a user", &[], |it| {
                Box::pin(revoke_role(it))
            }),
        ],
        ..Command::default()
    }
}

/// The one argument of a command.
fn name_of(invocation: &Invocation, command: &str) -> Outcome<String> {
    match invocation.arguments() {
        [name] => words::text(name),
        _ => Err(Exit::bad_arguments(format!(
            "user {command} command requires user name as its argument"
        ))),
    }
}

async fn add(invocation: Invocation) -> Outcome {
    let argument = name_of(&invocation, "add")?;
    let (name, password, no_password) = new_user(&invocation.matches, argument)?;
    let session = Session::new(&invocation)?;
    let request = AuthUserAddRequest {
        name: name.clone(),
        password,
        options: Some(UserAddOptions { no_password }),
        ..AuthUserAddRequest::default()
    };
    let response = session.client().await?.user_add(request).await?;
    let text = format!("User {name} created\n");
    session.printer.print(Answer::Auth(AuthAnswer::Done(text.as_bytes(), &response.header)))
}

/// Name, password and whether there is none.
fn new_user(flags: &Matches, argument: String) -> Outcome<(String, String, bool)> {
    if flags.is_true("no-password") {
        return Ok((argument, String::new(), true));
    }
    let given = words::text(&flags.word("new-user-password"))?;
    if !given.is_empty() {
        return Ok((argument, given, false));
    }
    match argument.split_once(':') {
        Some(("", _)) => Err(Exit::bad_arguments("empty user name is not allowed")),
        Some((name, password)) => Ok((name.to_owned(), password.to_owned(), false)),
        None => {
            let password = new_password(flags, &argument)?;
            Ok((argument, password, false))
        }
    }
}

fn new_password(flags: &Matches, name: &str) -> Outcome<String> {
    match flags.is_true("interactive") {
        true => terminal::ask_new_password(name),
        false => terminal::read_password(),
    }
}

async fn delete(invocation: Invocation) -> Outcome {
    let name = name_of(&invocation, "delete")?;
    let session = Session::new(&invocation)?;
    let request = AuthUserDeleteRequest { name: name.clone() };
    let response = session.client().await?.user_delete(request).await?;
    let text = format!("User {name} deleted\n");
    session.printer.print(Answer::Auth(AuthAnswer::Done(text.as_bytes(), &response.header)))
}

async fn get(invocation: Invocation) -> Outcome {
    let name = name_of(&invocation, "get")?;
    let session = Session::new(&invocation)?;
    let client = session.client().await?;
    let response = client.user_get(AuthUserGetRequest { name: name.clone() }).await?;
    if !session.matches().is_true("detail") {
        return session.printer.print(Answer::Auth(AuthAnswer::UserGet(&name, &response)));
    }
    output::write(format!("User: {name}\n").as_bytes())?;
    for role in response.roles {
        output::write(b"\n")?;
        let response = client.role_get(AuthRoleGetRequest { role: role.clone() }).await?;
        session.printer.print(Answer::Auth(AuthAnswer::RoleGet(&role, &response)))?;
    }
    Ok(())
}

async fn list(invocation: Invocation) -> Outcome {
    if !invocation.arguments().is_empty() {
        return Err(Exit::bad_arguments("user list command requires no arguments"));
    }
    let session = Session::new(&invocation)?;
    let response = session.client().await?.user_list(AuthUserListRequest {}).await?;
    session.printer.print(Answer::Auth(AuthAnswer::UserList(&response)))
}

async fn change_password(invocation: Invocation) -> Outcome {
    let name = name_of(&invocation, "passwd")?;
    let password = new_password(&invocation.matches, &name)?;
    let session = Session::new(&invocation)?;
    let request = AuthUserChangePasswordRequest {
        name,
        password,
        ..AuthUserChangePasswordRequest::default()
    };
    let response = session.client().await?.user_change_password(request).await?;
    session.printer.print(Answer::Auth(AuthAnswer::Done(b"Password updated\n", &response.header)))
}

async fn grant_role(invocation: Invocation) -> Outcome {
    let [user, role] = invocation.arguments() else {
        let message = "user grant command requires user name and role name as its argument";
        return Err(Exit::bad_arguments(message));
    };
    let (user, role) = (words::text(user)?, words::text(role)?);
    let text = format!("Role {role} is granted to user {user}\n");
    let request = AuthUserGrantRoleRequest { user, role };
    let session = Session::new(&invocation)?;
    let response = session.client().await?.user_grant_role(request).await?;
    session.printer.print(Answer::Auth(AuthAnswer::Done(text.as_bytes(), &response.header)))
}

async fn revoke_role(invocation: Invocation) -> Outcome {
    let [user, role] = invocation.arguments() else {
        let message = "user revoke-role requires user name and role name as its argument";
        return Err(Exit::bad_arguments(message));
    };
    let (name, role) = (words::text(user)?, words::text(role)?);
    let text = format!("Role {role} is revoked from user {name}\n");
    let request = AuthUserRevokeRoleRequest { name, role };
    let session = Session::new(&invocation)?;
    let response = session.client().await?.user_revoke_role(request).await?;
    session.printer.print(Answer::Auth(AuthAnswer::Done(text.as_bytes(), &response.header)))
}
