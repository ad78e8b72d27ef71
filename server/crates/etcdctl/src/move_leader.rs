//! `move-leader`: hands leadership to another member.

use cobra::{Exit, Outcome};
use proto::etcdserverpb::{MoveLeaderRequest, StatusRequest};

use crate::command::{Command, Group, Invocation};
use crate::global::Session;
use crate::go;
use crate::output::Answer;

pub(crate) fn command() -> Command {
    Command {
        name: "move-leader",
        usage: "<transferee-member-id>",
        short: "Hands leadership to another member",
        group: Group::MAINTENANCE,
        run: Some(|invocation| Box::pin(move_leader(invocation))),
        ..Command::default()
    }
}

async fn move_leader(invocation: Invocation) -> Outcome {
    let [target] = invocation.arguments() else {
        return Err(Exit::bad_arguments("move-leader command needs 1 argument"));
    };
    let target = go::parse_unsigned(target, 16).map_err(Exit::bad_arguments)?;
    let session = Session::new(&invocation)?;
    let endpoints = session.client().await?.endpoints().to_vec();
    let deadline = session.deadline();
    // Only the leader accepts the request, so it is looked for among the endpoints.
    for endpoint in &endpoints {
        let client = session.client_of(endpoint).await?.until(deadline);
        let status = client.status(StatusRequest {}).await?;
        let leader = status.leader;
        if status.header.map_or(0, |header| header.member_id) == leader {
            let response = client.move_leader(MoveLeaderRequest { target_id: target }).await?;
            return session.printer.print(Answer::MoveLeader(leader, target, &response));
        }
    }
    Err(Exit::bad_arguments(format!("no leader endpoint given at [{}]", endpoints.join(" "))))
}
