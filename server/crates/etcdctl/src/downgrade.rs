//! `downgrade`: prepares a cluster for the version before.

use cobra::{Exit, Outcome};
use proto::etcdserverpb::DowngradeRequest;
use proto::etcdserverpb::downgrade_request::DowngradeAction;

use crate::command::{Command, Group, Invocation};
use crate::global::Session;
use crate::output::Answer;
use crate::output::auth::AuthAnswer;
use crate::words;

pub(crate) fn command() -> Command {
    Command {
        name: "downgrade",
        usage: "<TARGET_VERSION>",
        short: "Prepares the cluster for the version before",
        group: Group::MAINTENANCE,
        children: vec![
            Command {
                name: "validate",
                usage: "<TARGET_VERSION>",
                short: "Tells whether the cluster could be downgraded",
                run: Some(|it| Box::pin(to_version(it, DowngradeAction::Validate, "validate"))),
                ..Command::default()
            },
            Command {
                name: "enable",
                usage: "<TARGET_VERSION>",
                short: "Begins a downgrade",
                run: Some(|it| Box::pin(to_version(it, DowngradeAction::Enable, "enable"))),
                ..Command::default()
            },
            Command {
                name: "cancel",
                short: "Ends a downgrade that was begun",
                run: Some(|it| Box::pin(ask(it, DowngradeAction::Cancel, "cancel", String::new()))),
                ..Command::default()
            },
        ],
        ..Command::default()
    }
}

async fn to_version(
    invocation: Invocation,
    action: DowngradeAction,
    name: &'static str,
) -> Outcome {
    let version = match invocation.arguments() {
        [] => return Err(Exit::bad_arguments("TARGET_VERSION not provided")),
        [version] if version.is_empty() => {
            return Err(Exit::bad_arguments("target version not provided"));
        }
        [version] => words::text(version)?,
        _ => return Err(Exit::bad_arguments("too many arguments")),
    };
    ask(invocation, action, name, version).await
}

async fn ask(
    invocation: Invocation,
    action: DowngradeAction,
    name: &'static str,
    version: String,
) -> Outcome {
    let session = Session::new(&invocation)?;
    let request = DowngradeRequest { action: action.into(), version };
    let response = session.timed_client().await?.downgrade(request).await?;
    session.printer.print(Answer::Auth(AuthAnswer::Downgrade(name, &response)))
}
