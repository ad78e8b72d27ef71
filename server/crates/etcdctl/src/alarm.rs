//! `alarm`: lists and clears alarms.

use cobra::{Exit, Outcome};
use proto::etcdserverpb::alarm_request::AlarmAction;
use proto::etcdserverpb::{AlarmRequest, AlarmResponse};

use crate::command::{Command, Group, Invocation};
use crate::global::Session;
use crate::output::Answer;

pub(crate) fn command() -> Command {
    Command {
        name: "alarm",
        usage: "<subcommand>",
        short: "Lists and clears alarms",
        group: Group::MAINTENANCE,
        children: vec![
            Command {
                name: "disarm",
                short: "Clears all alarms",
                run: Some(|invocation| Box::pin(disarm(invocation))),
                ..Command::default()
            },
            Command {
                name: "list",
                short: "Lists all alarms",
                run: Some(|invocation| Box::pin(list(invocation))),
                ..Command::default()
            },
        ],
        ..Command::default()
    }
}

async fn list(invocation: Invocation) -> Outcome {
    if !invocation.arguments().is_empty() {
        return Err(Exit::bad_arguments("alarm list command accepts no arguments"));
    }
    let session = Session::new(&invocation)?;
    let response = session.timed_client().await?.alarm(all(AlarmAction::Get)).await?;
    session.printer.print(Answer::Alarm(&response))
}

async fn disarm(invocation: Invocation) -> Outcome {
    if !invocation.arguments().is_empty() {
        return Err(Exit::bad_arguments("alarm disarm command accepts no arguments"));
    }
    let session = Session::new(&invocation)?;
    let client = session.timed_client().await?;
    // Each alarm is cleared by its own request; the answer gathers them and so has no header.
    let mut cleared = AlarmResponse::default();
    for alarm in client.alarm(all(AlarmAction::Get)).await?.alarms {
        let request = AlarmRequest {
            action: AlarmAction::Deactivate.into(),
            member_id: alarm.member_id,
            alarm: alarm.alarm,
        };
        cleared.alarms.extend(client.alarm(request).await?.alarms);
    }
    session.printer.print(Answer::Alarm(&cleared))
}

/// A request about every alarm of every member.
pub(crate) fn all(action: AlarmAction) -> AlarmRequest {
    AlarmRequest { action: action.into(), ..AlarmRequest::default() }
}
