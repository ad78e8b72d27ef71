//! `txn`: reads comparisons and two lists of requests from standard input and runs them as one.
//!
//! The three parts end with an empty line each. A comparison is `target("key") operator "value"`, a
//! request is a `put`, `get` or `del` with the flags of those commands.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::os::fd::AsFd as _;

use bytes::Bytes;
use cobra::{Exit, Flag, Kind, Outcome, exit};
use proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use proto::etcdserverpb::request_op::Request;
use proto::etcdserverpb::{Compare, RequestOp, TxnRequest};

use crate::command::{Command, Group, Invocation};
use crate::global::Session;
use crate::output::{self, Answer};
use crate::words::{self, Word};
use crate::{del, get, go, put};

pub(crate) fn command() -> Command {
    Command {
        name: "txn",
        usage: "[options]",
        short: "Runs requests in one transaction",
        long: "Reads a transaction from standard input and runs it. It has three parts, each ended \
               by an\nempty line:\n\n  comparisons, as in         mod(\"key\") > \"0\"\n  \
               requests if all hold, as in  put key value\n  requests if one does not, as in  \
               get key\n\nTargets are version (or ver), create (c), mod (m), value (val) and \
               lease; operators are\n=, !=, < and >; requests are get, put and del.",
        group: Group::KEY_VALUE,
        flags: vec![Flag::new("interactive", Kind::Bool, "false", "ask for each part").short('i')],
        run: Some(|invocation| Box::pin(txn(invocation))),
        ..Command::default()
    }
}

async fn txn(invocation: Invocation) -> Outcome {
    if !invocation.arguments().is_empty() {
        return Err(Exit::bad_arguments("txn command does not accept argument"));
    }
    let session = Session::new(&invocation)?;
    // No deadline, as in Go etcdctl: a transaction may be typed by hand.
    let client = session.client().await?;
    let interactive = session.matches().is_true("interactive");
    let prompt = |text: &str| match interactive {
        true => output::write(format!("{text}\n").as_bytes()),
        false => Ok(()),
    };
    let request = {
        let mut input = input().map_err(|error| Exit::with(exit::INVALID_INPUT, error))?;
        prompt("compares:")?;
        let compare = part(&mut input, |line, _| comparison(line))?;
        prompt("success requests (get, put, del):")?;
        let success = part(&mut input, operation)?;
        prompt("failure requests (get, put, del):")?;
        let failure = part(&mut input, operation)?;
        TxnRequest { compare, success, failure }
    };
    let response = client.txn(request).await?;
    session.printer.print(Answer::Txn(&response))
}

/// Standard input with a buffer as large as Go's: a `put` without a value takes what is behind it.
fn input() -> std::io::Result<BufReader<File>> {
    let raw = File::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    Ok(BufReader::with_capacity(4096, raw))
}

/// Lines up to an empty one.
fn part<T>(
    input: &mut BufReader<File>,
    parse: impl Fn(&[u8], &mut File) -> Outcome<T>,
) -> Outcome<Vec<T>> {
    let mut items = Vec::new();
    loop {
        let mut line = Vec::new();
        let read = input.read_until(b'\n', &mut line);
        read.map_err(|error| Exit::with(exit::INVALID_INPUT, error))?;
        if !line.ends_with(b"\n") {
            return Err(Exit::with(exit::INVALID_INPUT, "EOF"));
        }
        match trim(&line) {
            [] => return Ok(items),
            line => items.push(parse(line, input.get_mut())?),
        }
    }
}

/// A line without the white space around it.
fn trim(line: &[u8]) -> &[u8] {
    str::from_utf8(line).map_or(line.trim_ascii(), |line| line.trim().as_bytes())
}

fn invalid(message: String) -> Exit {
    Exit::with(exit::INVALID_INPUT, message)
}

fn comparison(line: &[u8]) -> Outcome<Compare> {
    let line = go::scannable(line);
    let Some((target, rest)) = line.split_once('(') else {
        return Err(invalid(format!("malformed comparison: {line}")));
    };
    let (key, operator, value) = match scan_comparison(rest) {
        Ok(parts) => parts,
        Err((key, operator)) => {
            let key = go::quote(&key);
            return Err(invalid(format!(
                "malformed comparison: {line}; got {target}({key}) {operator} \"\""
            )));
        }
    };
    let number = || {
        go::parse_int(&value, 10)
            .map_err(|_| invalid(format!("invalid txn compare request: {line}")))
    };
    let (target, union) = match target {
        "ver" | "version" => (CompareTarget::Version, TargetUnion::Version(number()?)),
        "c" | "create" => (CompareTarget::Create, TargetUnion::CreateRevision(number()?)),
        "m" | "mod" => (CompareTarget::Mod, TargetUnion::ModRevision(number()?)),
        "val" | "value" => (CompareTarget::Value, TargetUnion::Value(Bytes::from(value))),
        "lease" => {
            // Lease ids are hexadecimal wherever etcdctl reads them.
            let id = go::parse_int(&value, 16)
                .map_err(|_| invalid(format!("invalid txn compare request: {line}")))?;
            (CompareTarget::Lease, TargetUnion::Lease(id))
        }
        unknown => {
            return Err(invalid(format!(
                "malformed comparison: {line} (unknown target {unknown})"
            )));
        }
    };
    let result = match operator.as_str() {
        "=" => CompareResult::Equal,
        "!=" => CompareResult::NotEqual,
        ">" => CompareResult::Greater,
        "<" => CompareResult::Less,
        unknown => {
            return Err(invalid(format!(
                "malformed comparison: {line} (unknown operator {unknown})"
            )));
        }
    };
    Ok(Compare {
        result: result.into(),
        target: target.into(),
        key: Bytes::from(key),
        range_end: Bytes::new(),
        target_union: Some(union),
    })
}

type Parts = (Vec<u8>, String, Vec<u8>);

/// `"key") operator "value"`. If it is not that: the key and operator as far as they were read.
fn scan_comparison(text: &str) -> Result<Parts, (Vec<u8>, String)> {
    let unread = || (Vec::new(), String::new());
    let (key, rest) = go::scan_quoted(text.trim_start()).ok_or_else(unread)?;
    let Some(rest) = rest.strip_prefix(')') else { return Err((key, String::new())) };
    let rest = rest.trim_start();
    let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
    let (operator, rest) = (rest[..end].to_owned(), rest[end..].trim_start());
    match go::scan_quoted(rest) {
        Some((value, _)) if !operator.is_empty() => Ok((key, operator, value)),
        _ => Err((key, operator)),
    }
}

fn operation(line: &[u8], input: &mut File) -> Outcome<RequestOp> {
    let words = split(line)?;
    let line = words::shown(line);
    if words.len() < 2 {
        return Err(invalid(format!("invalid txn compare request: {line}")));
    }
    let commands = Command {
        children: vec![put::command(), get::command(), del::command()],
        ..Command::default()
    };
    let found = commands.find(&words);
    let name = found.command().name;
    let Ok(matches) = found.parse() else {
        return Err(invalid(format!("invalid txn request: {line}")));
    };
    let request = match name {
        "put" => Request::RequestPut(put::request(&matches, input)?),
        "get" => Request::RequestRange(get::request(&matches)?),
        "del" => Request::RequestDeleteRange(del::request(&matches)?),
        _ => return Err(invalid(format!("invalid txn request: {line}"))),
    };
    Ok(RequestOp { request: Some(request) })
}

/// Splits a line into words. A word in single quotes is taken as it is, one in double quotes has
/// Go's escapes, any other ends at white space.
pub(crate) fn split(line: &[u8]) -> Outcome<Vec<Word>> {
    let mut words = Vec::new();
    let mut rest = line.trim_ascii_start();
    while let Some(first) = rest.first() {
        let end = match first {
            b'\'' => rest[1..].iter().position(|byte| *byte == b'\'').map(|end| end + 2),
            b'"' => closing_quote(rest),
            _ => Some(rest.iter().position(u8::is_ascii_whitespace).unwrap_or(rest.len())),
        };
        // A quote without its end is passed over.
        let (word, after) = rest.split_at(end.unwrap_or(1));
        match word {
            _ if end.is_none() => {}
            [b'\'', inner @ .., _] => words.push(Word::copy_from_slice(inner)),
            [b'"', ..] => {
                let (word, _) = go::scan_quoted(&go::scannable(word))
                    .ok_or_else(|| invalid("invalid syntax".to_owned()))?;
                words.push(Word::from(word));
            }
            word => words.push(Word::copy_from_slice(word)),
        }
        rest = after.trim_ascii_start();
    }
    Ok(words)
}

/// Where the string in double quotes at the start of `text` ends.
fn closing_quote(text: &[u8]) -> Option<usize> {
    let mut escaped = false;
    for (index, byte) in text.iter().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return Some(index + 1),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparisons_are_read() {
        let compare = comparison(br#"mod("a\x00") > "5""#).unwrap();
        assert_eq!(compare.key, &b"a\0"[..]);
        assert_eq!(compare.result(), CompareResult::Greater);
        assert_eq!(compare.target_union, Some(TargetUnion::ModRevision(5)));
        let lease = comparison(br#"lease("a") = "ff""#).unwrap();
        assert_eq!(lease.target_union, Some(TargetUnion::Lease(255)));
    }

    #[test]
    fn bad_comparisons_say_how_far_they_were_read() {
        for (line, message) in [
            ("mod", "malformed comparison: mod"),
            (r#"x("a") = "1""#, r#"malformed comparison: x("a") = "1" (unknown target x)"#),
            (r#"mod("a") = x"#, r#"malformed comparison: mod("a") = x; got mod("a") = """#),
            (r#"mod(a) = "1""#, r#"malformed comparison: mod(a) = "1"; got mod("")  """#),
            (r#"mod("a") = "x""#, r#"invalid txn compare request: mod("a") = "x""#),
        ] {
            assert_eq!(comparison(line.as_bytes()).unwrap_err(), invalid(message.to_owned()));
        }
    }

    #[test]
    fn lines_are_split_into_words() {
        for (line, words) in [
            (&b"put a b"[..], &[&b"put"[..], b"a", b"b"][..]),
            (br#"put 'a b' "c\td" "#, &[b"put", b"a b", b"c\td"]),
            (br#"put "" ''"#, &[b"put", b"", b""]),
            (b"put a'b", &[b"put", b"a'b"]),
            (br#"put 'a "b c"#, &[b"put", b"a", b"b", b"c"]),
            // Only what is in double quotes is read as text.
            (b"put \xff '\xfe' \"\\xfd\"", &[b"put", b"\xff", b"\xfe", b"\xfd"]),
            (b"put \"\xff\xe2\x82\"", &[b"put", b"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"]),
            (b"put a\xc2\xa0b", &[b"put", b"a\xc2\xa0b"]),
        ] {
            assert_eq!(split(line).unwrap(), words, "{line:?}");
        }
    }
}
