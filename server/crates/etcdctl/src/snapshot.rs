//! `snapshot save`: stores a copy of one member's data in a file.
//!
//! The copy is written beside its place and moved there only when it is complete and on disk, so
//! that a file under the final name is never half a copy.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use client::Client;
use cobra::{Exit, Outcome, exit};
use tokio::time::Instant;
use tonic::Code;

use crate::command::{Command, Group, Invocation};
use crate::global::Session;
use crate::{go, log, output, words};

/// The store ends with its digest, which no multiple of a disk sector can.
const SECTOR: u64 = 512;
const DIGEST: u64 = 32;

pub(crate) fn command() -> Command {
    Command {
        name: "snapshot",
        usage: "<subcommand>",
        short: "Stores copies of a member's data",
        group: Group::MAINTENANCE,
        children: vec![Command {
            name: "save",
            usage: "<filename>",
            short: "Stores a copy of a member's data in a file",
            run: Some(|invocation| Box::pin(save(invocation))),
            ..Command::default()
        }],
        ..Command::default()
    }
}

async fn save(invocation: Invocation) -> Outcome {
    let [path] = invocation.arguments() else {
        return Err(Exit::bad_arguments("snapshot save expects one argument <filename>"));
    };
    let path = words::path(path);
    let session = Session::new(&invocation)?;
    let interrupted = |message: String| Exit::with(exit::INTERRUPTED, message);
    let endpoints: Vec<String> =
        session.endpoints().iter().map(|endpoint| endpoint.trim().to_owned()).collect();
    let [endpoint] = endpoints.as_slice() else {
        return Err(interrupted(format!(
            "snapshot must be requested to one selected node, not multiple [{}]",
            endpoints.join(" ")
        )));
    };
    // A copy takes as long as it takes, unless the user says otherwise.
    let limited = session.matches().is_set("command-timeout");
    let mut client = session.client().await.map_err(|exit| {
        if exit.code == exit::BAD_CONNECTION {
            Exit { code: exit::INTERRUPTED, ..exit }
        } else {
            exit
        }
    })?;
    if limited {
        client = client.until(session.deadline());
    }
    let mut part = path.clone().into_os_string();
    part.push(".part");
    let part = PathBuf::from(part);
    let result = fetch(&client, endpoint, &part, &path).await;
    if let Err(error) = fs::remove_file(&part)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        let reason = error.to_string();
        log::line("error", "Failed to cleanup .part file", &[("error", &reason)]);
    }
    let version = result.map_err(interrupted)?;
    let saved = [b"Snapshot saved at ", path.as_os_str().as_bytes(), b"\n"].concat();
    output::write(&saved)?;
    if version.is_empty() {
        return Ok(());
    }
    output::write(format!("Server version {version}\n").as_bytes())
}

/// Receives the copy into `part` and moves it to `path`; returns the copy's version.
async fn fetch(
    client: &Client,
    endpoint: &str,
    part: &Path,
    path: &Path,
) -> Result<String, String> {
    let mut file =
        File::options().write(true).create(true).truncate(true).mode(0o600).open(part).map_err(
            |error| {
                let error = go_error("open", part, &error);
                format!("could not open {} ({error})", part.display())
            },
        )?;
    log::line("info", "created temporary db file", &[("path", &part.display().to_string())]);
    let start = Instant::now();
    let mut stream = match client.snapshot().await {
        Ok(stream) => stream,
        Err(error) if is_refusal(&error) => return Err(refused(&error)),
        Err(error) => return Err(error.to_string()),
    };
    log::line("info", "opened snapshot stream; downloading", &[]);
    log::line("info", "fetching snapshot", &[("endpoint", endpoint)]);
    let mut size = 0u64;
    let mut version = String::new();
    let mut first = true;
    while let Some(piece) = client.next(&mut stream).await.map_err(|error| match first {
        true => error.to_string(),
        false => format!("could not write snapshot: {error}"),
    })? {
        if first {
            version = piece.version;
            first = false;
        }
        let written = file.write_all(&piece.blob);
        written.map_err(|error| {
            let error = go_error("write", part, &error);
            format!("could not write snapshot: {error}")
        })?;
        size += piece.blob.len() as u64;
    }
    log::line("info", "completed snapshot read; closing", &[]);
    if size % SECTOR != DIGEST {
        return Err(format!("sha256 checksum not found [bytes: {size}]"));
    }
    file.sync_all().map_err(|error| format!("could not fsync snapshot: {error}"))?;
    let took = go::duration(start.elapsed());
    log::line(
        "info",
        "fetched snapshot",
        &[
            ("endpoint", endpoint),
            ("size", &go::humanize_bytes(size)),
            ("took", &took),
            ("etcd-version", &version),
        ],
    );
    fs::rename(part, path).map_err(|error| {
        let (part, path) = (part.display(), path.display());
        format!("could not rename {part} to {path} ({error})")
    })?;
    sync_directory(path).map_err(|error| format!("could not fsync the directory: {error}"))?;
    log::line("info", "saved", &[("path", &path.display().to_string())]);
    Ok(version)
}

/// Whether the server has answered, with a no.
fn is_refusal(error: &client::Error) -> bool {
    matches!(error.code(), Some(code) if !matches!(code, Code::Unavailable | Code::DeadlineExceeded))
}

/// Go's client opens the stream before it hears what the server says.
fn refused(error: &client::Error) -> String {
    let reason = error.in_words_of_grpc();
    log::line("info", "opened snapshot stream; downloading", &[]);
    let fields = [("error", reason.as_str())];
    log::line("warn", "failed to receive from snapshot stream; closing", &fields);
    reason
}

/// Without this a crash may undo the move.
fn sync_directory(path: &Path) -> std::io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

/// An I/O error as Go prints it.
fn go_error(operation: &str, path: &Path, error: &std::io::Error) -> String {
    format!("{operation} {}: {}", path.display(), client::io_reason(error))
}
