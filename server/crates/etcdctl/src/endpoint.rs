//! `endpoint`: asks each endpoint how it is.

use std::io::Write as _;

use client::Client;
use cobra::{Exit, Flag, Kind, Outcome, exit};
use proto::etcdserverpb::alarm_request::AlarmAction;
use proto::etcdserverpb::{
    AlarmType, HashKvRequest, HashKvResponse, MemberListRequest, RangeRequest, StatusRequest,
    StatusResponse,
};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::alarm;
use crate::command::{Command, Group, Invocation};
use crate::global::Session;
use crate::output::{Answer, Health};

/// Asks all members instead of the given endpoints.
pub(crate) const CLUSTER: Flag =
    Flag::new("cluster", Kind::Bool, "false", "ask every member of the cluster");

pub(crate) fn command() -> Command {
    Command {
        name: "endpoint",
        usage: "<subcommand>",
        short: "Asks endpoints how they are",
        group: Group::MAINTENANCE,
        persistent: vec![CLUSTER],
        children: vec![
            Command {
                name: "health",
                short: "Tells whether endpoints are healthy",
                run: Some(|invocation| Box::pin(health(invocation))),
                ..Command::default()
            },
            Command {
                name: "status",
                short: "Tells the status of endpoints",
                long: "Tells the status of endpoints. In the simple format the columns are \
                       endpoint, id, version,\nstorage version, size, size in use, part not in \
                       use, quota, is leader, is learner, term,\nindex, applied index, errors, \
                       downgrade target and whether a downgrade is under way.",
                run: Some(|invocation| Box::pin(status(invocation))),
                ..Command::default()
            },
            Command {
                name: "hashkv",
                short: "Tells the hash of the keys and values of endpoints",
                persistent: vec![Flag::new(
                    "rev",
                    Kind::Integer,
                    "0",
                    "highest revision to hash; the newest if zero",
                )],
                run: Some(|invocation| Box::pin(hash_kv(invocation))),
                ..Command::default()
            },
        ],
        ..Command::default()
    }
}

/// The endpoints to ask: as given, or every client URL of the cluster with `--cluster`.
pub(crate) async fn endpoints(session: &Session) -> Outcome<Vec<String>> {
    if !session.matches().is_true("cluster") {
        return Ok(session.endpoints());
    }
    let deadline = session.deadline();
    let client =
        session.client().await.map_err(|exit| Exit { code: exit::ERROR, ..exit })?.until(deadline);
    let request = MemberListRequest { linearizable: true };
    let response = client.member_list(request).await.map_err(|error| {
        let reason = "failed to fetch endpoints from etcd cluster member list";
        Exit::with(exit::ERROR, format!("{reason}: {error}"))
    })?;
    Ok(response.members.into_iter().flat_map(|member| member.client_ur_ls).collect())
}

async fn health(invocation: Invocation) -> Outcome {
    let session = Session::new(&invocation)?;
    let mut asked = JoinSet::new();
    for endpoint in endpoints(&session).await? {
        let config = session.config_of(&endpoint);
        let deadline = session.deadline();
        asked.spawn(async move {
            match Client::connect(config).await {
                Ok(client) => ask_health(endpoint, client.until(deadline)).await,
                Err(error) => {
                    Health { endpoint, healthy: false, took: None, error: error.to_string() }
                }
            }
        });
    }
    // In the order of the answers, as in Go etcdctl.
    let list = asked.join_all().await;
    session.printer.print(Answer::Health(&list))?;
    if list.iter().any(|health| !health.error.is_empty()) {
        return Err(Exit::with(exit::ERROR, "unhealthy cluster"));
    }
    Ok(())
}

/// An endpoint is healthy if it answers a linearizable read, even with "permission denied", which
/// has been through consensus too, and if there is no alarm.
async fn ask_health(endpoint: String, client: Client) -> Health {
    let start = Instant::now();
    let request = RangeRequest { key: "health".into(), ..RangeRequest::default() };
    let result = client.range(request).await;
    let took = Some(start.elapsed());
    let error = match result {
        Err(error) if error.message() != "etcdserver: permission denied" => error.to_string(),
        _ => match client.alarm(alarm::all(AlarmAction::Get)).await {
            Err(_) => "Unable to fetch the alarm list".to_owned(),
            Ok(response) if response.alarms.is_empty() => String::new(),
            Ok(response) => {
                let name = |alarm: i32| match AlarmType::try_from(alarm) {
                    Ok(AlarmType::Nospace) => "NOSPACE ",
                    Ok(AlarmType::Corrupt) => "CORRUPT ",
                    _ => "UNKNOWN ",
                };
                let names: String = response.alarms.iter().map(|found| name(found.alarm)).collect();
                format!("Active Alarm(s): {names}")
            }
        },
    };
    Health { endpoint, healthy: error.is_empty(), took, error }
}

async fn status(invocation: Invocation) -> Outcome {
    let session = Session::new(&invocation)?;
    let mut list: Vec<(String, StatusResponse)> = Vec::new();
    let mut failed = false;
    for endpoint in endpoints(&session).await? {
        let client = session.client_of(&endpoint).await?.until(session.deadline());
        match client.status(StatusRequest {}).await {
            Ok(response) => list.push((endpoint, response)),
            Err(error) => {
                failed = true;
                let _ = writeln!(
                    std::io::stderr(),
                    "Failed to get the status of endpoint {endpoint} ({error})"
                );
            }
        }
    }
    session.printer.print(Answer::Status(&list))?;
    if failed { Err(Exit::silent(exit::ERROR)) } else { Ok(()) }
}

async fn hash_kv(invocation: Invocation) -> Outcome {
    let session = Session::new(&invocation)?;
    let revision = session.matches().integer("rev");
    let mut list: Vec<(String, HashKvResponse)> = Vec::new();
    let mut last_error = None;
    for endpoint in endpoints(&session).await? {
        let client = session.client_of(&endpoint).await?.until(session.deadline());
        match client.hash_kv(HashKvRequest { revision }).await {
            Ok(response) => list.push((endpoint, response)),
            Err(error) => {
                let _ = writeln!(
                    std::io::stderr(),
                    "Failed to get the hash of endpoint {endpoint} ({error})"
                );
                last_error = Some(error);
            }
        }
    }
    session.printer.print(Answer::HashKv(&list))?;
    last_error.map_or(Ok(()), |error| Err(Exit::with(exit::ERROR, error)))
}
