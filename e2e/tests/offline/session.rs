//! Command lines of Go etcdctl, and what it says to them.

use std::path::{Path, PathBuf};

use e2e::processes::Member;
use proto::etcdserverpb::{AuthenticateRequest, AuthenticateResponse};
use serde_json::Value;

use super::etcdctl;
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
        let words: Vec<String> =
            words.split_whitespace().map(|word| self.filled_in(word)).collect();
        let came = etcdctl(&self.etcdctl, member, &words, input).unwrap();
        let mut said = came.output;
        for line in came.errors.lines().filter(|line| !line.starts_with('{')) {
            said.push_str(line);
            said.push('\n');
        }
        (came.done, said)
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
            all.push_str(&without_chance(said));
            all.push('\n');
        }
    }
    all
}

/// A lease's line without the seconds that are left of it, and with its keys in order; Go etcd's have none.
fn without_chance(said: &str) -> String {
    let Some((before, after)) = said.split_once("remaining(") else { return said.to_owned() };
    let after = after.split_once(')').map_or("", |(_, after)| after);
    let Some((between, keys)) = after.split_once("keys([") else {
        return format!("{before}remaining(){after}");
    };
    let mut keys: Vec<&str> = keys.trim_end_matches("])").split(' ').collect();
    keys.sort_unstable();
    format!("{before}remaining(){between}keys([{}])", keys.join(" "))
}
