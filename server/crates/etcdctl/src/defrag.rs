//! `defrag`: returns free space to the file system, one endpoint after the other.

use std::io::Write as _;

use cobra::{Exit, Outcome, exit};
use proto::etcdserverpb::DefragmentRequest;
use tokio::time::Instant;

use crate::command::{Command, Group, Invocation};
use crate::endpoint::{CLUSTER, endpoints};
use crate::global::Session;
use crate::{go, output};

pub(crate) fn command() -> Command {
    Command {
        name: "defrag",
        short: "Returns free space of members to their file systems",
        group: Group::MAINTENANCE,
        persistent: vec![CLUSTER],
        run: Some(|invocation| Box::pin(defrag(invocation))),
        ..Command::default()
    }
}

async fn defrag(invocation: Invocation) -> Outcome {
    let session = Session::new(&invocation)?;
    let mut failed = false;
    for endpoint in endpoints(&session).await? {
        let client = session.client_of(&endpoint).await?.until(session.deadline());
        let start = Instant::now();
        let result = client.defragment(DefragmentRequest {}).await;
        let took = go::duration(start.elapsed());
        match result {
            Ok(_) => {
                let text = format!("Finished defragmenting etcd member[{endpoint}]. took {took}\n");
                output::write(text.as_bytes())?;
            }
            Err(error) => {
                failed = true;
                let _ = writeln!(
                    std::io::stderr(),
                    "Failed to defragment etcd member[{endpoint}]. took {took}. ({error})"
                );
            }
        }
    }
    if failed { Err(Exit::silent(exit::ERROR)) } else { Ok(()) }
}
