//! `compaction`: gives up history.

use cobra::{Exit, Flag, Kind, Outcome, exit};
use proto::etcdserverpb::CompactionRequest;

use crate::command::{Command, Group, Invocation};
use crate::global::Session;
use crate::{go, output};

pub(crate) fn command() -> Command {
    Command {
        name: "compaction",
        usage: "[options] <revision>",
        short: "Gives up the history before a revision",
        group: Group::KEY_VALUE,
        flags: vec![Flag::new(
            "physical",
            Kind::Bool,
            "false",
            "wait until the space is really free",
        )],
        run: Some(|invocation| Box::pin(compact(invocation))),
        ..Command::default()
    }
}

async fn compact(invocation: Invocation) -> Outcome {
    let [revision] = invocation.arguments() else {
        return Err(Exit::bad_arguments("compaction command needs 1 argument"));
    };
    let revision = go::parse_int(revision, 10).map_err(|reason| Exit::with(exit::ERROR, reason))?;
    let session = Session::new(&invocation)?;
    let physical = session.matches().is_true("physical");
    session.timed_client().await?.compact(CompactionRequest { revision, physical }).await?;
    output::write(format!("compacted revision {revision}\n").as_bytes())
}
