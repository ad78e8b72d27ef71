//! `put`: writes a key.

use std::io::Read;

use bytes::Bytes;
use cobra::{Exit, Flag, Kind, Matches, Outcome};
use proto::etcdserverpb::PutRequest;

use crate::command::{Command, Group, Invocation};
use crate::global::Session;
use crate::go;
use crate::output::Answer;

pub(crate) const FLAGS: [Flag; 4] = [
    Flag::new("lease", Kind::Text, "0", "id of the lease to attach the key to, hexadecimal"),
    Flag::new("prev-kv", Kind::Bool, "false", "also print the key as it was before"),
    Flag::new("ignore-value", Kind::Bool, "false", "keep the present value"),
    Flag::new("ignore-lease", Kind::Bool, "false", "keep the present lease"),
];

pub(crate) fn command() -> Command {
    Command {
        name: "put",
        usage: "[options] <key> <value> (<value> can also be given from stdin)",
        short: "Writes a key",
        long: "Writes a key.\n\nWithout a value on the command line, and without --ignore-value, \
               the value is read from\nstandard input. A value that begins with '-' has to follow \
               '--'.",
        group: Group::KEY_VALUE,
        flags: FLAGS.to_vec(),
        run: Some(|invocation| Box::pin(put(invocation))),
        ..Command::default()
    }
}

async fn put(invocation: Invocation) -> Outcome {
    let request = request(&invocation.matches, &mut std::io::stdin())?;
    let session = Session::new(&invocation)?;
    let response = session.timed_client().await?.put(request).await?;
    session.printer.print(Answer::Put(&response))
}

const NEEDED: &str = "put command needs 1 argument and input from stdin or 2 arguments";

/// The request that the flags and arguments describe; also used for `put` inside `txn`.
///
/// `input` is where the value comes from if it is no argument.
pub(crate) fn request(matches: &Matches, input: &mut impl Read) -> Outcome<PutRequest> {
    let Some(key) = matches.arguments.first() else { return Err(Exit::bad_arguments(NEEDED)) };
    let ignore_value = matches.is_true("ignore-value");
    let value = match matches.arguments.get(1) {
        Some(_) if ignore_value => {
            return Err(Exit::bad_arguments(
                "put command needs only 1 argument when 'ignore-value' is set",
            ));
        }
        Some(value) => value.clone(),
        None if ignore_value => Bytes::new(),
        None => {
            let mut value = Vec::new();
            let read = input.read_to_end(&mut value);
            if read.is_err() || value.is_empty() {
                return Err(Exit::bad_arguments(NEEDED));
            }
            Bytes::from(value)
        }
    };
    let lease = go::parse_int(matches.word("lease"), 16).map_err(|reason| {
        Exit::bad_arguments(format!("bad lease ID ({reason}), expecting ID in Hex"))
    })?;
    Ok(PutRequest {
        key: key.clone(),
        value,
        lease,
        prev_kv: matches.is_true("prev-kv"),
        ignore_value,
        ignore_lease: matches.is_true("ignore-lease"),
    })
}
