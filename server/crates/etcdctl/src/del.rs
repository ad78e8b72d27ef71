//! `del`: deletes a key or a range.

use std::io::Write as _;
use std::time::Duration;

use cobra::{Exit, Flag, Kind, Matches, Outcome};
use proto::etcdserverpb::DeleteRangeRequest;

use crate::command::{Command, Group, Invocation};
use crate::get::range;
use crate::global::Session;
use crate::go;
use crate::output::Answer;

pub(crate) const FLAGS: [Flag; 4] = [
    Flag::new("prefix", Kind::Bool, "false", "all keys that begin with the key"),
    Flag::new("prev-kv", Kind::Bool, "false", "also print the deleted keys and values"),
    Flag::new("from-key", Kind::Bool, "false", "all keys from the key on"),
    Flag::new("range", Kind::Bool, "false", "delete a range without waiting first"),
];

/// How long a user may think again before a range is deleted.
const SECOND_THOUGHT: Duration = Duration::from_secs(2);

pub(crate) fn command() -> Command {
    Command {
        name: "del",
        usage: "[options] <key> [range_end]",
        short: "Deletes a key or the range of keys [key, range_end)",
        group: Group::KEY_VALUE,
        flags: FLAGS.to_vec(),
        run: Some(|invocation| Box::pin(del(invocation))),
        ..Command::default()
    }
}

async fn del(invocation: Invocation) -> Outcome {
    let request = request(&invocation.matches)?;
    let session = Session::new(&invocation)?;
    let response = session.timed_client().await?.delete_range(request).await?;
    session.printer.print(Answer::Delete(&response))
}

/// The request that the flags and arguments describe; also used for `del` inside `txn`.
pub(crate) fn request(matches: &Matches) -> Outcome<DeleteRangeRequest> {
    let (key, end) = match matches.arguments.as_slice() {
        [key] => (key, None),
        [key, end] => (key, Some(end)),
        _ => {
            return Err(Exit::bad_arguments(
                "del command needs one argument as key and an optional argument as range_end",
            ));
        }
    };
    if matches.is_true("prefix") && matches.is_true("from-key") {
        return Err(Exit::bad_arguments(
            "`--prefix` and `--from-key` cannot be set at the same time, choose one",
        ));
    }
    let (start, range_end) = range(matches, key, end)?;
    if let Some(end) = end
        && !matches.is_true("range")
    {
        let (key, end) = (go::quote(key), go::quote(end));
        let _ = writeln!(
            std::io::stderr(),
            "Warning: Keys between {key} and {end} will be deleted. Please interrupt the command \
             within next 2 seconds to cancel. You can provide `--range` flag to avoid the delay."
        );
        // Nothing else runs yet.
        std::thread::sleep(SECOND_THOUGHT);
    }
    Ok(DeleteRangeRequest { key: start, range_end, prev_kv: matches.is_true("prev-kv") })
}
