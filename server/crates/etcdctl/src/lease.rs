//! `lease`: grants, revokes, inspects and keeps leases alive.

use cobra::{Exit, Flag, Kind, Outcome, exit};
use proto::etcdserverpb::{
    LeaseGrantRequest, LeaseLeasesRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest,
};

use crate::command::{Command, Group, Invocation};
use crate::global::Session;
use crate::go;
use crate::output::{self, Answer, Format};

pub(crate) fn command() -> Command {
    Command {
        name: "lease",
        usage: "<subcommand>",
        short: "Grants, revokes, inspects and renews leases",
        group: Group::KEY_VALUE,
        children: vec![
            Command {
                name: "grant",
                usage: "<ttl>",
                short: "Creates a lease",
                run: Some(|invocation| Box::pin(grant(invocation))),
                ..Command::default()
            },
            Command {
                name: "revoke",
                usage: "<leaseID>",
                short: "Ends a lease and deletes its keys",
                run: Some(|invocation| Box::pin(revoke(invocation))),
                ..Command::default()
            },
            Command {
                name: "timetolive",
                usage: "<leaseID> [options]",
                short: "Tells what is left of a lease",
                flags: vec![Flag::new("keys", Kind::Bool, "false", "also list the lease's keys")],
                run: Some(|invocation| Box::pin(time_to_live(invocation))),
                ..Command::default()
            },
            Command {
                name: "list",
                short: "Lists all leases",
                run: Some(|invocation| Box::pin(list(invocation))),
                ..Command::default()
            },
            Command {
                name: "keep-alive",
                usage: "[options] <leaseID>",
                short: "Keeps a lease alive",
                flags: vec![Flag::new("once", Kind::Bool, "false", "renew it once and end")],
                run: Some(|invocation| Box::pin(keep_alive(invocation))),
                ..Command::default()
            },
        ],
        ..Command::default()
    }
}

async fn grant(invocation: Invocation) -> Outcome {
    let [ttl] = invocation.arguments() else {
        return Err(Exit::bad_arguments("lease grant command needs TTL argument"));
    };
    let ttl = go::parse_int(ttl, 10)
        .map_err(|reason| Exit::bad_arguments(format!("bad TTL ({reason})")))?;
    let session = Session::new(&invocation)?;
    let client = session.timed_client().await?;
    let response = client
        .lease_grant(LeaseGrantRequest { ttl, id: 0 })
        .await
        .map_err(|error| Exit::with(exit::ERROR, format!("failed to grant lease ({error})")))?;
    session.printer.print(Answer::LeaseGrant(&response))
}

async fn revoke(invocation: Invocation) -> Outcome {
    let [id] = invocation.arguments() else {
        return Err(Exit::bad_arguments("lease revoke command needs 1 argument"));
    };
    let id = lease_id(id)?;
    let session = Session::new(&invocation)?;
    let client = session.timed_client().await?;
    let response = client
        .lease_revoke(LeaseRevokeRequest { id })
        .await
        .map_err(|error| Exit::with(exit::ERROR, format!("failed to revoke lease ({error})")))?;
    session.printer.print(Answer::LeaseRevoke(id, &response))
}

// The next three have no deadline, as in Go etcdctl, and fail with "bad connection".

async fn time_to_live(invocation: Invocation) -> Outcome {
    let [id] = invocation.arguments() else {
        return Err(Exit::bad_arguments("lease timetolive command needs lease ID as argument"));
    };
    let session = Session::new(&invocation)?;
    let keys = session.matches().is_true("keys");
    let client = session.client().await?;
    let request = LeaseTimeToLiveRequest { id: lease_id(id)?, keys };
    let response = client.lease_time_to_live(request).await.map_err(bad_connection)?;
    session.printer.print(Answer::LeaseTimeToLive(&response, keys))
}

async fn list(invocation: Invocation) -> Outcome {
    let session = Session::new(&invocation)?;
    let client = session.client().await?;
    let response = client.lease_leases(LeaseLeasesRequest {}).await.map_err(bad_connection)?;
    session.printer.print(Answer::Leases(&response))
}

async fn keep_alive(invocation: Invocation) -> Outcome {
    let [id] = invocation.arguments() else {
        return Err(Exit::bad_arguments("lease keep-alive command needs lease ID as argument"));
    };
    let id = lease_id(id)?;
    let session = Session::new(&invocation)?;
    let client = session.client().await?;
    if session.matches().is_true("once") {
        let response = client.lease_keep_alive_once(id).await.map_err(bad_connection)?;
        return session.printer.print(Answer::LeaseKeepAlive(&response));
    }
    let mut renewals = client.lease_keep_alive(id);
    while let Some(response) = renewals.next().await {
        session.printer.print(Answer::LeaseKeepAlive(&response))?;
    }
    if session.printer.format == Format::Simple {
        let text = format!("lease {} expired or revoked.\n", go::hex16(id));
        output::write(text.as_bytes())?;
    }
    Ok(())
}

fn bad_connection(error: client::Error) -> Exit {
    Exit::with(exit::BAD_CONNECTION, error)
}

fn lease_id(text: &[u8]) -> Outcome<i64> {
    go::parse_int(text, 16).map_err(|reason| {
        Exit::bad_arguments(format!("bad lease ID arg ({reason}), expecting ID in Hex"))
    })
}
