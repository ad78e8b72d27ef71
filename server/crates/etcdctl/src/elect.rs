//! `elect`: takes part in an election, or watches one.
//!
//! An election is a queue of keys below its name (see [`crate::concurrency`]); the key that was
//! created first belongs to the leader, and its value is the leader's proposal.

use std::pin::pin;

use bytes::Bytes;
use client::{Client, Error, prefix_range_end};
use cobra::{Exit, Flag, Kind, Outcome, exit};
use proto::etcdserverpb::{RangeResponse, ResponseHeader, WatchCreateRequest};
use proto::mvccpb::KeyValue;
use proto::mvccpb::event::EventType;

use crate::command::{Command, Group, Invocation};
use crate::concurrency::{self, DEFAULT_TTL, LeaseSession, get, interrupted, wait_for_turn};
use crate::global::Session;
use crate::output::{Answer, Printer};
use crate::words::Word;

pub(crate) fn command() -> Command {
    Command {
        name: "elect",
        usage: "<election-name> [proposal]",
        short: "Takes part in an election, or watches one",
        long: "With a proposal: waits until elected, prints the key and leads until SIGINT or \
               SIGTERM.\nWith --listen: prints the key and proposal of each leader.",
        group: Group::CONCURRENCY,
        flags: vec![Flag::new("listen", Kind::Bool, "false", "only watch").short('l')],
        run: Some(|invocation| Box::pin(elect(invocation))),
        ..Command::default()
    }
}

async fn elect(invocation: Invocation) -> Outcome {
    let listen = invocation.matches.is_true("listen");
    let (name, proposal) = match invocation.arguments() {
        [name] if listen => (name, None),
        [_] => return Err(Exit::bad_arguments("no proposal argument but -l not set")),
        [_, _] if listen => return Err(Exit::bad_arguments("proposal given but -l is set")),
        [name, proposal] => (name, Some(proposal)),
        _ => {
            return Err(Exit::bad_arguments(
                "elect takes one election name argument and an optional proposal argument",
            ));
        }
    };
    let session = Session::new(&invocation)?;
    let client = session.client().await?;
    let prefix = [&name[..], b"/"].concat();
    match proposal {
        Some(proposal) => campaign(client, &prefix, proposal, session.printer).await,
        None => {
            let mut signals = pin!(concurrency::interruption()?);
            tokio::select! {
                ended = observe(&client, &prefix, session.printer) => ended,
                () = &mut signals => Ok(()),
            }
        }
    }
}

async fn campaign(client: Client, prefix: &[u8], proposal: &Word, printer: Printer) -> Outcome {
    let mut held = LeaseSession::begin(client, DEFAULT_TTL).await?;
    let mut signals = pin!(concurrency::interruption()?);
    let created = held.enqueue(prefix, proposal).await?;
    tokio::select! {
        elected = wait_for_turn(&held.client, prefix, created - 1) => elected?,
        () = &mut signals => {
            held.leave(prefix, created).await?;
            return Err(interrupted());
        }
    }
    printer.print(Answer::Get(&get(&held.client, held.key(prefix)).await?))?;
    tokio::select! {
        () = signals => Ok(held.leave(prefix, created).await?),
        () = held.expired() => Err(Exit::with(exit::ERROR, "elect: session expired")),
    }
}

/// Prints every leader and every new proposal, until that is not possible any more.
async fn observe(client: &Client, prefix: &[u8], printer: Printer) -> Outcome {
    let lost = || Exit::with(exit::ERROR, "elect: observer lost");
    loop {
        // Why the observation ended is not told, as in Go.
        let (header, leader) = leader(client, prefix).await.ok().flatten().ok_or_else(lost)?;
        print(printer, header, leader.clone())?;
        let from = header.revision + 1;
        let mut changes = client.watch(watch_one(leader.key, from));
        'leader: loop {
            let response = changes.next().await.and_then(Result::ok).ok_or_else(lost)?;
            if response.canceled {
                return Err(lost());
            }
            for event in response.events {
                if event.r#type() == EventType::Delete {
                    break 'leader;
                }
                let header = response.header.unwrap_or_default();
                print(printer, header, event.kv.unwrap_or_default())?;
            }
        }
    }
}

/// The leader; waits for one if there is none. Nothing if the watch was cancelled.
async fn leader(
    client: &Client,
    prefix: &[u8],
) -> Result<Option<(ResponseHeader, KeyValue)>, Error> {
    let response = concurrency::first(client, prefix).await?;
    let header = response.header.unwrap_or_default();
    if let Some(leader) = response.kvs.into_iter().next() {
        return Ok(Some((header, leader)));
    }
    let mut changes = client.watch(WatchCreateRequest {
        key: Bytes::copy_from_slice(prefix),
        range_end: prefix_range_end(prefix),
        start_revision: header.revision,
        ..WatchCreateRequest::default()
    });
    while let Some(response) = changes.next().await {
        let response = response?;
        let header = response.header.unwrap_or_default();
        let put = response.events.into_iter().find(|event| event.r#type() == EventType::Put);
        if let Some(kv) = put.and_then(|event| event.kv) {
            // A response may hold several revisions; this is the one at which it was so.
            let header = ResponseHeader { revision: kv.mod_revision, ..header };
            return Ok(Some((header, kv)));
        }
    }
    Ok(None)
}

fn watch_one(key: Bytes, from: i64) -> WatchCreateRequest {
    WatchCreateRequest { key, start_revision: from, ..WatchCreateRequest::default() }
}

fn print(printer: Printer, header: ResponseHeader, kv: KeyValue) -> Outcome {
    let response =
        RangeResponse { header: Some(header), kvs: vec![kv], ..RangeResponse::default() };
    printer.print(Answer::Get(&response))
}
