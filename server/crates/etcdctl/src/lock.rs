//! `lock`: holds a lock while a command runs, or until it is interrupted.
//!
//! The lock is a queue of keys below its name (see [`crate::concurrency`]). Its key's creation
//! revision, `ETCD_LOCK_REV` or newer for the command, is the fencing token: whoever writes under
//! the lock should compare with it, because a lease can be lost while its holder does not run.

use std::pin::pin;

use cobra::{Exit, Flag, Kind, Outcome, exit};
use proto::etcdserverpb::DeleteRangeRequest;
use proto::mvccpb::KeyValue;

use crate::command::{Command, Group, Invocation};
use crate::concurrency::{self, LeaseSession, get, interrupted, wait_for_turn};
use crate::execute;
use crate::global::Session;
use crate::output::{Answer, Printer};
use crate::words::Word;

pub(crate) fn command() -> Command {
    Command {
        name: "lock",
        usage: "<lockname> [exec-command arg1 arg2 ...]",
        short: "Holds a lock, also while a command runs",
        long: "Acquires a lock and prints its key. The lock is given back when the command has \
               ended, or on\nSIGINT and SIGTERM. The command finds the key in ETCD_LOCK_KEY and a \
               revision to fence its writes\nwith in ETCD_LOCK_REV; its exit code becomes \
               etcdctl's.",
        group: Group::CONCURRENCY,
        flags: vec![Flag::new(
            "ttl",
            Kind::Integer,
            "10",
            "seconds after which a lost holder's lock is free",
        )],
        run: Some(|invocation| Box::pin(lock(invocation))),
        ..Command::default()
    }
}

async fn lock(invocation: Invocation) -> Outcome {
    let [name, command @ ..] = invocation.arguments() else {
        return Err(Exit::bad_arguments(
            "lock takes a lock name argument and an optional command to execute",
        ));
    };
    let session = Session::new(&invocation)?;
    let client = session.client().await?;
    let held = LeaseSession::begin(client, invocation.matches.integer("ttl")).await?;
    let prefix = [&name[..], b"/"].concat();
    let mut signals = pin!(concurrency::interruption()?);
    let revision = tokio::select! {
        revision = acquire(&held, &prefix) => revision?,
        () = &mut signals => {
            release(&held, &prefix).await?;
            return Err(interrupted());
        }
    };
    if command.is_empty() {
        return hold(held, &prefix, session.printer, signals).await;
    }
    let ended = run(&held, &prefix, revision, command).await;
    let released = release(&held, &prefix).await;
    ended.and(released)
}

/// Waits for the lock; answers a revision at which it is held.
async fn acquire(held: &LeaseSession, prefix: &[u8]) -> Outcome<i64> {
    let created = held.enqueue(prefix, &Word::new()).await?;
    let first = concurrency::first(&held.client, prefix).await?;
    if is_first(&first.kvs, created) {
        return Ok(created);
    }
    if let Err(error) = wait_for_turn(&held.client, prefix, created - 1).await {
        // What failed is more telling than that nothing can be released either.
        let _ = release(held, prefix).await;
        return Err(error.into());
    }
    // The lease may have been lost meanwhile.
    let response = get(&held.client, held.key(prefix)).await?;
    match response.kvs.is_empty() {
        true => Err(Exit::with(exit::ERROR, "mutex: session is expired")),
        false => Ok(response.header.map_or(created, |header| header.revision)),
    }
}

/// Whether the queue begins with the key created at a revision. An empty queue is nobody's turn: then that
/// key has gone with its lease.
fn is_first(queue: &[KeyValue], created: i64) -> bool {
    queue.first().is_some_and(|key| key.create_revision == created)
}

async fn release(held: &LeaseSession, prefix: &[u8]) -> Outcome {
    let request = DeleteRangeRequest { key: held.key(prefix), ..DeleteRangeRequest::default() };
    held.client.delete_range(request).await?;
    Ok(())
}

/// Shows the lock and holds it until a signal.
async fn hold(
    mut held: LeaseSession,
    prefix: &[u8],
    printer: Printer,
    signals: impl Future<Output = ()>,
) -> Outcome {
    let response = get(&held.client, held.key(prefix)).await?;
    if response.kvs.is_empty() {
        return Err(Exit::with(exit::ERROR, "lock lost on init"));
    }
    printer.print(Answer::Get(&response))?;
    tokio::select! {
        () = signals => release(&held, prefix).await,
        () = held.expired() => Err(Exit::with(exit::ERROR, "session expired")),
    }
}

/// Runs a command that holds the lock; its exit code becomes ours.
async fn run(held: &LeaseSession, prefix: &[u8], revision: i64, command: &[Word]) -> Outcome {
    let key = held.key(prefix);
    let revision = revision.to_string();
    let variables = [("ETCD_LOCK_KEY", &key[..]), ("ETCD_LOCK_REV", revision.as_bytes())];
    let ended = execute::run(command, &variables).await;
    ended.map_err(|failure| Exit::with(failure.code, failure.text))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `lock` ran its command when the lease had ended between the two calls and nobody else waited.
    #[test]
    fn an_empty_queue_is_nobodys_turn() {
        let key = |create_revision| KeyValue { create_revision, ..KeyValue::default() };
        assert!(is_first(&[key(7), key(8)], 7));
        assert!(!is_first(&[key(7), key(8)], 8));
        assert!(!is_first(&[], 8));
    }
}
