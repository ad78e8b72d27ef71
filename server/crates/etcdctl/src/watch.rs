//! `watch`: prints events as they come, and can run a command for each.
//!
//! Interactive, it reads `watch` and `progress` lines from standard input and runs all watches at
//! once, until the input ends.

use std::env;
use std::io::{BufRead as _, Write as _};
use std::os::unix::ffi::OsStringExt as _;

use bytes::Bytes;
use client::{Client, ProgressRequester, WatchStream, prefix_range_end};
use cobra::{Exit, Flag, Kind, Matches, Outcome, exit};
use proto::etcdserverpb::{WatchCreateRequest, WatchResponse};
use tokio::sync::mpsc;

use crate::command::{Command, Group, Invocation};
use crate::global::Session;
use crate::output::{self, Answer, Printer};
use crate::words::{self, Word};
use crate::{execute, go, txn};

const FLAGS: [Flag; 5] = [
    Flag::new("interactive", Kind::Bool, "false", "read what to watch from standard input")
        .short('i'),
    Flag::new("prefix", Kind::Bool, "false", "all keys that begin with the key"),
    Flag::new("rev", Kind::Integer, "0", "first revision to tell about"),
    Flag::new("prev-kv", Kind::Bool, "false", "also print keys as they were before"),
    Flag::new("progress-notify", Kind::Bool, "false", "tell how far the watch is now and then"),
];

const KEY: &str = "ETCDCTL_WATCH_KEY";
const RANGE_END: &str = "ETCDCTL_WATCH_RANGE_END";

const BAD_NUMBER: &str = "bad number of arguments";
const CONFLICT: &str = "bad number of arguments (found conflicting environment key)";
const NO_COMMAND: &str = "bad number of arguments (found separator --, but no commands)";

/// Lines of input that wait for their turn.
const INPUT_LINES: usize = 16;

pub(crate) fn command() -> Command {
    Command {
        name: "watch",
        usage: "[options] [key or prefix] [range_end] [--] [exec-command arg1 arg2 ...]",
        short: "Prints changes of keys as they happen",
        group: Group::KEY_VALUE,
        flags: FLAGS.to_vec(),
        run: Some(|invocation| Box::pin(watch(invocation))),
        ..Command::default()
    }
}

/// What to watch, and what to run for each event.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    keys: Vec<Word>,
    execute: Vec<Word>,
}

async fn watch(invocation: Invocation) -> Outcome {
    let variable = |name: &str| Word::from(env::var_os(name).unwrap_or_default().into_vec());
    let environment = [variable(KEY), variable(RANGE_END)];
    let [key, range_end] = &environment;
    if key.is_empty() && !range_end.is_empty() {
        let range_end = go::quote(range_end);
        return Err(Exit::bad_arguments(format!(
            "ETCDCTL_WATCH_KEY is empty but got ETCDCTL_WATCH_RANGE_END={range_end}"
        )));
    }
    if invocation.matches.is_true("interactive") {
        return interactive(&invocation, &environment).await;
    }
    let words = words_after_watch(&invocation.command_line);
    let plan = plan(&invocation.matches, words, &environment).map_err(Exit::bad_arguments)?;
    let session = Session::with_variables(&invocation, &[KEY, RANGE_END])?;
    let client = session.client().await?.require_leader();
    let create = create_request(&invocation.matches, &plan.keys).map_err(Exit::bad_arguments)?;
    print_events(client.watch(create), session.printer, &plan.execute).await?;
    Err(Exit::with(exit::INTERRUPTED, "watch is canceled by the server"))
}

async fn interactive(invocation: &Invocation, environment: &[Word; 2]) -> Outcome {
    let session = Session::with_variables(invocation, &[KEY, RANGE_END])?;
    let client = session.client().await?.require_leader();
    let printer = session.printer;
    let mut lines = input_lines();
    let mut requesters: Vec<ProgressRequester> = Vec::new();
    let (ended, mut failures) = mpsc::channel(1);
    loop {
        let line = tokio::select! {
            line = lines.recv() => line,
            // A watch that cannot print any more ends the program.
            Some(exit) = failures.recv() => return Err(exit),
        };
        let Some(line) = line else {
            let message = "error reading watch request line: EOF";
            return Err(Exit::with(exit::INVALID_INPUT, message));
        };
        let words = txn::split(&line)?;
        let line = words::shown(&line);
        match words.first().map(|word| &word[..]) {
            None => complain(&format!("Invalid command: {line} (watch and progress supported)")),
            Some(b"progress") => requesters.iter().for_each(ProgressRequester::request),
            Some(b"watch") if words.len() < 2 && environment[0].is_empty() => {
                complain(&format!("Invalid command {line} (command type or key is not provided)"))
            }
            Some(b"watch") => {
                let words = &words[1..];
                let matches = Matches::parse(&FLAGS, words).map_err(Exit::bad_arguments)?;
                let plan = plan(&matches, words, environment).map_err(Exit::bad_arguments)?;
                let create = match create_request(&matches, &plan.keys) {
                    Ok(create) => create,
                    Err(reason) => {
                        complain(&format!("Invalid command {line} ({reason})"));
                        continue;
                    }
                };
                let requester = start(&client, create, printer, plan.execute, ended.clone()).await;
                requesters.extend(requester);
            }
            Some(_) => complain(&format!("Invalid command {line} (only support watch)")),
        }
    }
}

/// Runs a watch beside the others.
async fn start(
    client: &Client,
    create: WatchCreateRequest,
    printer: Printer,
    execute: Vec<Word>,
    ended: mpsc::Sender<Exit>,
) -> Option<ProgressRequester> {
    let mut stream = client.watch(create);
    // If the stream cannot be opened, its events end with the reason.
    let requester = stream.progress_requester().await.ok();
    tokio::spawn(async move {
        if let Err(exit) = print_events(stream, printer, &execute).await {
            // Whoever reads has ended the program already if this fails.
            let _ = ended.send(exit).await;
        }
    });
    requester
}

/// Reads standard input on a thread of its own, because reading cannot be interrupted.
fn input_lines() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(INPUT_LINES);
    std::thread::spawn(move || {
        let mut input = std::io::stdin().lock();
        let mut line = Vec::new();
        // A last line without its end is not complete and is dropped.
        while input.read_until(b'\n', &mut line).is_ok() && line.pop() == Some(b'\n') {
            if sender.blocking_send(std::mem::take(&mut line)).is_err() {
                return;
            }
        }
    });
    receiver
}

fn complain(message: &str) {
    let _ = writeln!(std::io::stderr(), "{message}");
}

/// The words after the command's own name; all words if the name is abbreviated.
fn words_after_watch(command_line: &[Word]) -> &[Word] {
    match command_line.iter().position(|word| word == "watch") {
        Some(index) => &command_line[index + 1..],
        None => command_line,
    }
}

/// Separates what to watch from what to run, and takes the key from the environment if it is there.
fn plan(
    matches: &Matches,
    words: &[Word],
    [key, range_end]: &[Word; 2],
) -> Result<Plan, &'static str> {
    let dashes = words.iter().position(|word| word == "--");
    let keys = &matches.arguments[..matches.before_dashes.unwrap_or(matches.arguments.len())];
    match dashes {
        Some(index) if index + 1 == words.len() => return Err(NO_COMMAND),
        None if words.is_empty() && key.is_empty() => return Err(BAD_NUMBER),
        _ => {}
    }
    let execute = dashes.map_or(Vec::new(), |index| words[index + 1..].to_vec());
    if key.is_empty() {
        return Ok(Plan { keys: keys.to_vec(), execute });
    }
    if !keys.is_empty() {
        return Err(CONFLICT);
    }
    let mut keys = vec![key.clone()];
    keys.extend(Some(range_end.clone()).filter(|end| !end.is_empty()));
    Ok(Plan { keys, execute })
}

fn create_request(matches: &Matches, keys: &[Word]) -> Result<WatchCreateRequest, &'static str> {
    let Some(key) = keys.first() else { return Err(BAD_NUMBER) };
    let prefix = matches.is_true("prefix");
    let (key, range_end) = match keys.get(1).filter(|_| keys.len() == 2) {
        Some(_) if prefix => return Err("`range_end` and `--prefix` are mutually exclusive"),
        Some(end) => (key.clone(), end.clone()),
        // No key is empty, so everything begins at the first one.
        None if prefix && key.is_empty() => (Bytes::from_static(&[0]), Bytes::from_static(&[0])),
        None if prefix => (key.clone(), prefix_range_end(key)),
        None => (key.clone(), Bytes::new()),
    };
    Ok(WatchCreateRequest {
        key,
        range_end,
        start_revision: matches.integer("rev"),
        progress_notify: matches.is_true("progress-notify"),
        prev_kv: matches.is_true("prev-kv"),
        ..WatchCreateRequest::default()
    })
}

/// Prints until the watch ends.
async fn print_events(mut stream: WatchStream, printer: Printer, execute: &[Word]) -> Outcome {
    while let Some(result) = stream.next().await {
        let response = match result {
            Ok(response) => response,
            Err(error) => {
                complain(&format!("watch was canceled ({error})"));
                WatchResponse { canceled: true, ..WatchResponse::default() }
            }
        };
        let revision = response.header.as_ref().map_or(0, |header| header.revision);
        if response.canceled && response.header.is_some() {
            complain(&format!("watch was canceled ({})", cancel_reason(&response)));
        }
        let progress = response.events.is_empty() && !response.canceled && revision != 0;
        if progress && response.compact_revision == 0 {
            output::write(format!("progress notify: {revision}\n").as_bytes())?;
        }
        printer.print(Answer::Watch(&response))?;
        if !execute.is_empty() {
            run_for_events(&response, revision, execute).await?;
        }
    }
    Ok(())
}

/// Why the server cancelled, in clientv3's words (client/v3/watch.go).
fn cancel_reason(response: &WatchResponse) -> String {
    if response.compact_revision != 0 {
        "etcdserver: mvcc: required revision has been compacted".to_owned()
    } else if response.cancel_reason.is_empty() {
        "etcdserver: mvcc: required revision is a future revision".to_owned()
    } else if ["etcdserver: ", "rpc error: "]
        .iter()
        .any(|begin| response.cancel_reason.starts_with(begin))
    {
        response.cancel_reason.clone()
    } else {
        format!("rpc error: code = FailedPrecondition desc = {}", response.cancel_reason)
    }
}

/// Runs the command for one event after the other; other watches go on meanwhile.
async fn run_for_events(response: &WatchResponse, revision: i64, command: &[Word]) -> Outcome {
    let revision = revision.to_string();
    for event in &response.events {
        let kv = event.kv.clone().unwrap_or_default();
        let kind = go::quote(event.r#type().as_str_name().as_bytes());
        let (key, value) = (go::quote(&kv.key), go::quote(&kv.value));
        let variables = [
            ("ETCD_WATCH_REVISION", revision.as_bytes()),
            ("ETCD_WATCH_EVENT_TYPE", kind.as_bytes()),
            ("ETCD_WATCH_KEY", key.as_bytes()),
            ("ETCD_WATCH_VALUE", value.as_bytes()),
        ];
        if let Err(failure) = execute::run(command, &variables).await {
            let words: Vec<String> = command.iter().map(|word| go::quote(word)).collect();
            complain(&format!("command [{}] error ({})", words.join(" "), failure.text));
            return Err(Exit::silent(exit::ERROR));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan_of(line: &str, key: &str) -> Result<Plan, &'static str> {
        let words: Vec<Word> =
            line.split_whitespace().map(|it| Word::from(it.to_owned())).collect();
        let matches = Matches::parse(&FLAGS, &words).unwrap();
        plan(&matches, &words, &[Word::from(key.to_owned()), Word::new()])
    }

    #[test]
    fn what_follows_the_dashes_is_run() {
        let plan = plan_of("a b --rev 1 -- echo -n a", "").unwrap();
        assert_eq!(plan.keys, ["a", "b"]);
        assert_eq!(plan.execute, ["echo", "-n", "a"]);
        assert_eq!(plan_of("-- echo", "key").unwrap().keys, ["key"]);
    }

    #[test]
    fn keys_come_from_one_place() {
        assert_eq!(plan_of("", ""), Err(BAD_NUMBER));
        assert_eq!(plan_of("a --", ""), Err(NO_COMMAND));
        assert_eq!(plan_of("a", "key"), Err(CONFLICT));
        assert_eq!(plan_of("a -- echo", "key"), Err(CONFLICT));
        assert_eq!(plan_of("--rev 1", "").unwrap().keys, [""; 0]);
    }
}
