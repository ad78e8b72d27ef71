//! Runs the commands of a script.

use std::env;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use super::mask::{Mask, dump_protobuf};
use super::{ServerLine, Step};
use crate::processes::{Cluster, PeerTls, ServerOptions, Tls, signal};

/// How long a command may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a running command is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The programs that a script is run with.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The server, Go etcd or ours.
    pub etcd: PathBuf,
    /// The client, Go etcdctl or ours.
    pub etcdctl: PathBuf,
    /// The offline tool that has to accept what the client saves; Go's, so that it is a judge.
    pub etcdutl: PathBuf,
}

pub(super) struct Runner {
    programs: Programs,
    cluster: Cluster,
    directory: TempDir,
    /// The programs by their names, for commands that run through a shell.
    names: TempDir,
    mask: Mask,
}

/// A command line taken apart.
struct Line {
    variables: Vec<(String, String)>,
    words: Vec<String>,
}

impl Runner {
    /// The lines of the servers' logs that are warnings or worse, but for those about their start.
    pub(super) fn complaints(&self) -> String {
        let mut complaints = String::new();
        for member in self.cluster.members() {
            let log = member.log();
            let told = log
                .lines()
                .filter(|line| !line.contains("\"level\":\"info\"") && !line.contains("/health"));
            told.for_each(|line| complaints.push_str(&format!("{}: {line}\n", member.name)));
        }
        complaints
    }

    pub(super) fn start(server: &ServerLine, programs: &Programs) -> Result<Runner> {
        let options = ServerOptions {
            program: programs.etcd.clone(),
            members: server.members,
            flags: server.flags.clone(),
            tls: server.tls.clone(),
            peer_tls: PeerTls::Off,
        };
        let cluster = Cluster::start(&options)?;
        let directory = tempfile::tempdir().context("create a directory for the script")?;
        let names = tempfile::tempdir().context("create a directory for the programs")?;
        for (name, program) in [("etcdctl", &programs.etcdctl), ("etcdutl", &programs.etcdutl)] {
            symlink(program, names.path().join(name)).context("link a program")?;
        }
        let mut mask = Mask::default();
        mask.text(&directory.path().display().to_string(), "<dir>");
        for (index, member) in cluster.members().iter().enumerate() {
            let number = index + 1;
            mask.text(&member.endpoint, &format!("<endpoint{number}>"));
            mask.text(&member.peer_url, &format!("<peer{number}>"));
            mask.text(&member.certificate.display().to_string(), &format!("<cert{number}>"));
        }
        let mut runner = Runner { programs: programs.clone(), cluster, directory, names, mask };
        runner.learn_ids(server.tls != Tls::Off)?;
        Ok(runner)
    }

    /// The ids of the cluster and its members get names of their own.
    fn learn_ids(&mut self, tls: bool) -> Result<()> {
        let mut command = Command::new(&self.programs.etcdctl);
        command
            .args(["member", "list", "--write-out=json"])
            .arg(format!("--endpoints={}", self.cluster.members()[0].endpoint))
            .env_remove("ETCDCTL_ENDPOINTS");
        if tls {
            command.arg("--insecure-skip-tls-verify");
        }
        let output = command.output().context("list the members")?;
        let list: serde_json::Value =
            serde_json::from_slice(&output.stdout).context("parse the list of members")?;
        let id = |value: &serde_json::Value| value.as_u64().context("an id is a number");
        self.mask.id(id(&list["header"]["cluster_id"])?, "cluster");
        for member in list["members"].as_array().context("there are members")? {
            let name = member["name"].as_str().context("a member has a name")?;
            self.mask.id(id(&member["ID"])?, name);
        }
        Ok(())
    }

    /// Runs a step and returns its masked output.
    pub(super) fn run(&mut self, step: &Step) -> Result<Vec<String>> {
        let line = Line::parse(&self.mask.unmask(&step.command))?;
        let program = match line.words.first().map(String::as_str) {
            Some("etcdctl") => self.programs.etcdctl.clone(),
            Some(other) => PathBuf::from(other),
            None => bail!("there is no command"),
        };
        let mut command = Command::new(program);
        command
            .args(&line.words[1..])
            .env_clear()
            .env("PATH", self.path()?)
            .current_dir(self.directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let names_endpoints = line.words.iter().any(|word| word.starts_with("--endpoints"));
        if !names_endpoints {
            command.env("ETCDCTL_ENDPOINTS", self.endpoints());
        }
        command.envs(line.variables);
        let input: String =
            step.input.iter().map(|line| format!("{}\n", self.mask.unmask(line))).collect();
        let finished = Running::start(command, input, step.until.is_some())?.finish(step.until)?;
        Ok(self.show(&line.words, step.until.is_some(), finished))
    }

    fn path(&self) -> Result<OsString> {
        let inherited = env::var_os("PATH").unwrap_or_default();
        let own = self.names.path().to_path_buf();
        env::join_paths([own].into_iter().chain(env::split_paths(&inherited)))
            .context("make a search path")
    }

    fn endpoints(&self) -> String {
        let members = self.cluster.members().iter();
        members.map(|member| member.endpoint.clone()).collect::<Vec<_>>().join(",")
    }

    fn show(&mut self, words: &[String], ended: bool, finished: Finished) -> Vec<String> {
        let stdout = if words.iter().any(|word| word.contains("protobuf")) {
            dump_protobuf(&finished.stdout)
        } else {
            printable(&finished.stdout)
        };
        let mut lines = Vec::new();
        for (first, text) in [('|', stdout), ('!', printable(&finished.stderr))] {
            for line in self.mask.mask(words, &text) {
                lines.push(format!("{first} {line}").trim_end().to_owned());
            }
        }
        if finished.code == Some(0) {
            lines.retain(|line| !is_retry_of_a_new_token(line));
        }
        if !ended && finished.code != Some(0) {
            let code = finished.code.map_or("a signal".to_owned(), |code| code.to_string());
            lines.push(format!("= {code}"));
        }
        lines
    }
}

/// A token is told by one member and known to another as soon as that has applied it, which a client with
/// several endpoints may forestall; it asks again then.
fn is_retry_of_a_new_token(line: &str) -> bool {
    line.contains("retrying of unary invoker failed") && line.contains("invalid auth token")
}

struct Finished {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    code: Option<i32>,
}

/// A command that is running, with what it has printed so far.
struct Running {
    child: Child,
    stdout: Reader,
    stderr: Reader,
    /// Kept open for a command that would end with its input.
    _stdin: Option<std::process::ChildStdin>,
}

impl Running {
    fn start(mut command: Command, input: String, keep_open: bool) -> Result<Running> {
        let mut child = command.spawn().context("start the command")?;
        let mut stdin = child.stdin.take().context("the input is a pipe")?;
        // A command that does not read its input may have ended already.
        let _ = stdin.write_all(input.as_bytes());
        let stdout = Reader::start(child.stdout.take().context("the output is a pipe")?);
        let stderr = Reader::start(child.stderr.take().context("the errors are a pipe")?);
        Ok(Running { child, stdout, stderr, _stdin: keep_open.then_some(stdin) })
    }

    fn finish(mut self, until: Option<usize>) -> Result<Finished> {
        let deadline = Instant::now() + COMMAND_TIMEOUT;
        let code = loop {
            if let Some(status) = self.child.try_wait().context("look at the command")? {
                break status.code();
            }
            if until.is_some_and(|lines| self.stdout.lines() >= lines) {
                signal(self.child.id(), "KILL")?;
                break self.child.wait().context("wait for the command")?.code();
            }
            if Instant::now() > deadline {
                self.child.kill().context("kill the command")?;
                self.child.wait().context("wait for the command")?;
                bail!(
                    "not done after {COMMAND_TIMEOUT:?}; it printed {:?}",
                    printable(&self.stdout.finish())
                );
            }
            thread::sleep(POLL_INTERVAL);
        };
        Ok(Finished { stdout: self.stdout.finish(), stderr: self.stderr.finish(), code })
    }
}

/// Reads a pipe to its end beside everything else.
struct Reader {
    read: Arc<Mutex<Vec<u8>>>,
    thread: JoinHandle<()>,
}

impl Reader {
    fn start(mut pipe: impl Read + Send + 'static) -> Reader {
        let read = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&read);
        let thread = thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = pipe.read(&mut buffer) {
                let mut read = shared.lock().expect("no reader panics");
                read.extend_from_slice(&buffer[..count]);
            }
        });
        Reader { read, thread }
    }

    fn lines(&self) -> usize {
        let read = self.read.lock().expect("no reader panics");
        read.iter().filter(|&&byte| byte == b'\n').count()
    }

    fn finish(self) -> Vec<u8> {
        // A reader that panicked has what it read until then.
        let _ = self.thread.join();
        self.read.lock().expect("no reader panics").clone()
    }
}

impl Line {
    fn parse(text: &str) -> Result<Line> {
        let mut words = split(text)?;
        let is_variable = |word: &String| {
            word.split_once('=').is_some_and(|(name, _)| {
                !name.is_empty()
                    && name.chars().all(|letter| letter.is_ascii_uppercase() || letter == '_')
            })
        };
        let count = words.iter().take_while(|word| is_variable(word)).count();
        let variables = words
            .drain(..count)
            .filter_map(|word| word.split_once('=').map(|(n, v)| (n.to_owned(), v.to_owned())))
            .collect();
        Ok(Line { variables, words })
    }
}

/// Splits a command into words; quotes keep white space and are removed.
fn split(text: &str) -> Result<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for letter in text.chars() {
        match (quote, letter) {
            (Some(open), letter) if letter == open => quote = None,
            (Some(_), letter) => word.get_or_insert_default().push(letter),
            (None, '\'' | '"') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (None, ' ') => words.extend(word.take()),
            (None, letter) => word.get_or_insert_default().push(letter),
        }
    }
    if quote.is_some() {
        bail!("a quote is not closed: {text}");
    }
    words.extend(word);
    Ok(words)
}

/// Text with every byte that is not printable shown as `\xNN`.
fn printable(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        for letter in chunk.valid().chars() {
            match letter {
                '\n' | '\t' => text.push(letter),
                letter if letter.is_control() => {
                    text.push_str(&format!("\\x{:02x}", letter as u32))
                }
                letter => text.push(letter),
            }
        }
        chunk.invalid().iter().for_each(|byte| text.push_str(&format!("\\x{byte:02x}")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_split_like_a_shell_does() {
        let line = Line::parse("A_B=1 etcdctl put 'a b' \"c d\"e '' x=y").unwrap();
        assert_eq!(line.variables, [("A_B".to_owned(), "1".to_owned())]);
        assert_eq!(line.words, ["etcdctl", "put", "a b", "c de", "", "x=y"]);
        assert!(Line::parse("etcdctl 'a").is_err());
    }
}
