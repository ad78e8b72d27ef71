//! `version`: the version of etcd that this program is compatible with.

use crate::command::{Command, Group};
use crate::output;

const ETCD_VERSION: &str = "3.7.3";
const API_VERSION: &str = "3.7";

pub(crate) fn command() -> Command {
    Command {
        name: "version",
        short: "Tells the version",
        group: Group::UTILITY,
        run: Some(|_| {
            Box::pin(async {
                let text = format!("etcdctl version: {ETCD_VERSION}\nAPI version: {API_VERSION}\n");
                output::write(text.as_bytes())
            })
        }),
        ..Command::default()
    }
}
