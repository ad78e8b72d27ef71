//! `auth`: switches authentication on and off.

use cobra::{Exit, Outcome};
use proto::etcdserverpb::{
    AuthDisableRequest, AuthEnableRequest, AuthRoleAddRequest, AuthStatusRequest,
    AuthUserGrantRoleRequest,
};

use crate::command::{Command, Group, Invocation};
use crate::global::Session;
use crate::output::auth::AuthAnswer;
use crate::output::{self, Answer};

/// The user and the role without which authentication cannot be switched on.
const ROOT: &str = "root";
const ROOT_ROLE_MISSING: &str = "etcdserver: root user does not have root role";

pub(crate) fn command() -> Command {
    let leaf = |name, short, run| Command { name, short, run: Some(run), ..Command::default() };
    Command {
        name: "auth",
        usage: "<enable or disable>",
        short: "Switches authentication on and off",
        group: Group::AUTHENTICATION,
        children: vec![
            leaf("enable", "Switches authentication on", |it| Box::pin(enable(it))),
            leaf("disable", "Switches authentication off", |it| Box::pin(disable(it))),
            leaf("status", "Tells whether authentication is on", |it| Box::pin(status(it))),
        ],
        ..Command::default()
    }
}

fn no_arguments(invocation: &Invocation, command: &str) -> Outcome {
    match invocation.arguments() {
        [] => Ok(()),
        _ => Err(Exit::bad_arguments(format!(
            "auth {command} command does not accept any arguments"
        ))),
    }
}

/// Makes the root role and grants it to the root user if it is missing.
async fn enable(invocation: Invocation) -> Outcome {
    no_arguments(&invocation, "enable")?;
    let session = Session::new(&invocation)?;
    let client = session.timed_client().await?;
    while let Err(error) = client.auth_enable(AuthEnableRequest {}).await {
        if error.message() != ROOT_ROLE_MISSING {
            return Err(error.into());
        }
        client.role_add(AuthRoleAddRequest { name: ROOT.to_owned() }).await?;
        let grant = AuthUserGrantRoleRequest { user: ROOT.to_owned(), role: ROOT.to_owned() };
        client.user_grant_role(grant).await?;
    }
    output::write(b"Authentication Enabled\n")
}

async fn disable(invocation: Invocation) -> Outcome {
    no_arguments(&invocation, "disable")?;
    let session = Session::new(&invocation)?;
    session.timed_client().await?.auth_disable(AuthDisableRequest {}).await?;
    output::write(b"Authentication Disabled\n")
}

async fn status(invocation: Invocation) -> Outcome {
    no_arguments(&invocation, "status")?;
    let session = Session::new(&invocation)?;
    let response = session.timed_client().await?.auth_status(AuthStatusRequest {}).await?;
    session.printer.print(Answer::Auth(AuthAnswer::Status(&response)))
}
