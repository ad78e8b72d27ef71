//! Command lines of Go etcdctl, and what it says to them.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use e2e::processes::Member;
use proto::etcdserverpb::{AuthenticateRequest, AuthenticateResponse};
use serde_json::Value;

use crate::calls::{call, until};

/// Runs command lines of the following form in order.
///
/// ```text
/// [!] words of etcdctl [<<< input]      with `!` it must be refused, else it must succeed
/// gone words of etcdctl                 until it says nothing
/// login NAME PASSWORD                   keeps a token, which `{token}` stands for from then on
/// {0}, {1}, ..                          the leases that were granted, in order
/// ```
pub(crate) struct Session {
    etcdctl: PathBuf,
    leases: Vec<String>,
    token: String,
}

impl Session {
    pub(crate) fn new(etcdctl: &Path) -> Session {
        Session { etcdctl: etcdctl.to_owned(), leases: Vec::new(), token: String::new() }
    }

    pub(crate) fn run(&mut self, member: &Member, lines: &[&str]) {
        for line in lines {
            if let Some((name, password)) =
                line.strip_prefix("login ").and_then(|who| who.split_once(' '))
            {
                let request = AuthenticateRequest { name: name.into(), password: password.into() };
                let path = "/etcdserverpb.Auth/Authenticate";
                let answer: AuthenticateResponse = call(member, path, &request).unwrap();
                self.token = answer.token;
                continue;
            }
            if let Some(command) = line.strip_prefix("gone ") {
                until(line, || self.say(member, command) == (true, String::new()));
                continue;
            }
            let (refused, command) = match line.strip_prefix('!') {
                Some(command) => (true, command),
                None => (false, *line),
            };
            let (done, said) = self.say(member, command);
            assert_eq!(done, !refused, "{line}: {said}");
            if command.contains("lease grant") {
                self.leases.push(said.split(' ').nth(1).unwrap().to_owned());
            }
        }
    }

    /// Whether it succeeded, and what was printed but the log of the client.
    fn say(&self, member: &Member, line: &str) -> (bool, String) {
        let (words, input) = line.split_once("<<<").unwrap_or((line, ""));
        let words = words.split_whitespace().map(|word| self.filled_in(word));
        let mut child = Command::new(&self.etcdctl)
            .env_clear()
            .env("ETCDCTL_ENDPOINTS", &member.endpoint)
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // One that is refused early does not read its input.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        for line in stderr.lines().filter(|line| !line.starts_with('{')) {
            said.push_str(line);
            said.push('\n');
        }
        (output.status.success(), said)
    }

    fn filled_in(&self, word: &str) -> String {
        let mut word = word.replace("{token}", &self.token);
        for (number, lease) in self.leases.iter().enumerate() {
            word = word.replace(&format!("{{{number}}}"), lease);
        }
        word
    }
}

/// What each of these lines says at a member, but for what belongs to the member itself, and to the
/// moment.
pub(crate) fn seen(member: &Member, session: &Session, lines: &[&str]) -> String {
    let mut all = String::new();
    for line in lines {
        let (_, said) = session.say(member, line);
        all.push_str(&format!("$ {line}\n"));
        if line.contains("hashkv") {
            let mut hash: Value = serde_json::from_str(&said).unwrap();
            let mut hash = hash[0]["HashKV"].take();
            hash["header"] = Value::Null;
            all.push_str(&format!("{hash}\n"));
            continue;
        }
        let own = ["\"ClusterID\"", "\"MemberID\"", "\"RaftTerm\""];
        for said in said.lines().filter(|said| !own.iter().any(|name| said.starts_with(name))) {
            all.push_str(&without_time(said));
            all.push('\n');
        }
    }
    all
}

/// A lease's line without the seconds that are left of it.
fn without_time(said: &str) -> String {
    match said.split_once("remaining(") {
        Some((before, after)) => {
            let after = after.split_once(')').map_or("", |(_, after)| after);
            format!("{before}remaining(){after}")
        }
        None => said.to_owned(),
    }
}
