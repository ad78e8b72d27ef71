//! A client of the JSON gateway that keeps what it sees, so that two servers can be compared.
//!
//! What depends on the run is masked: ids of cluster, members and leases that a server chose, terms,
//! sizes. White space outside of strings goes too, because Go's JSON encoder puts it in by the
//! accident of a build.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// Fields whose values depend on the run.
const VOLATILE: [&str; 12] = [
    "cluster_id",
    "member_id",
    "memberID",
    "raft_term",
    "raftTerm",
    "raftIndex",
    "raftAppliedIndex",
    "dbSize",
    "dbSizeInUse",
    "leader",
    "peerURLs",
    "clientURLs",
];

/// One request.
#[derive(Clone, Debug, Default)]
pub struct Ask {
    /// POST if empty.
    pub method: &'static str,
    /// The path with its query.
    pub path: String,
    /// Further headers.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: String,
    /// Read so many lines of the body and hang up; without it, read to the end.
    pub lines: Option<usize>,
}

impl Ask {
    /// A POST below `/v3/`.
    pub fn post(path: &str, body: &str) -> Ask {
        Ask { path: format!("/v3/{path}"), body: body.to_owned(), ..Ask::default() }
    }

    /// A POST that is answered with a stream, of which so many lines are read.
    pub fn stream(path: &str, body: &str, lines: usize) -> Ask {
        Ask { lines: Some(lines), ..Ask::post(path, body) }
    }
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Of HTTP.
    pub status: String,
    /// Headers that the gateway sets, in lower case.
    pub headers: Vec<String>,
    /// Without chunks.
    pub body: String,
}

/// Headers that say something about the gateway.
const HEADERS: [&str; 4] =
    ["content-type:", "grpc-metadata-", "access-control-allow-origin:", "www-authenticate:"];

/// A request under way.
pub struct Asking {
    stream: TcpStream,
    lines: Option<usize>,
    bytes: Vec<u8>,
}

impl Asking {
    /// Sends a request to `host:port`.
    pub fn send(endpoint: &str, ask: &Ask) -> Result<Asking> {
        let mut stream = TcpStream::connect(endpoint).context("connect to the gateway")?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        let method = if ask.method.is_empty() { "POST" } else { ask.method };
        let mut head = format!("{method} {} HTTP/1.1\r\n", ask.path);
        if !ask.headers.iter().any(|(name, _)| name == "host") {
            head.push_str(&format!("host: {endpoint}\r\n"));
        }
        for (name, value) in &ask.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&format!("content-length: {}\r\n", ask.body.len()));
        // A stream that is cut off is cut off by hanging up.
        if ask.lines.is_none() {
            head.push_str("connection: close\r\n");
        }
        write!(stream, "{head}\r\n{}", ask.body).context("send a request")?;
        Ok(Asking { stream, lines: ask.lines, bytes: Vec::new() })
    }

    /// Waits until so many lines of the body are there.
    pub fn wait_for_lines(&mut self, lines: usize) -> Result<()> {
        self.read(Some(lines))
    }

    /// Waits for the answer.
    pub fn answer(mut self) -> Result<Answer> {
        self.read(self.lines)?;
        parse(&String::from_utf8_lossy(&self.bytes))
    }

    /// Reads until so many lines of the body are there, or to the end.
    fn read(&mut self, lines: Option<usize>) -> Result<()> {
        let mut chunk = [0; 16 * 1024];
        loop {
            let text = String::from_utf8_lossy(&self.bytes);
            if let Some((_, body)) = text.split_once("\r\n\r\n")
                && let Some(lines) = lines
                && dechunked(body).lines().filter(|line| line.ends_with('}')).count() >= lines
            {
                return Ok(());
            }
            let read = match self.stream.read(&mut chunk) {
                // A server that does not read the body may hang up before all of it was sent.
                Err(error)
                    if error.kind() == std::io::ErrorKind::ConnectionReset
                        && !self.bytes.is_empty() =>
                {
                    0
                }
                read => read.with_context(|| {
                    format!("read the answer after {:?}", String::from_utf8_lossy(&self.bytes))
                })?,
            };
            if read == 0 {
                return Ok(());
            }
            self.bytes.extend_from_slice(&chunk[..read]);
        }
    }
}

/// Asks and waits.
pub fn ask(endpoint: &str, request: &Ask) -> Result<Answer> {
    Asking::send(endpoint, request)?.answer()
}

fn parse(text: &str) -> Result<Answer> {
    let Some((head, body)) = text.split_once("\r\n\r\n") else { bail!("no head in {text:?}") };
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).context("a status line")?;
    let lower: Vec<String> = lines.map(str::to_ascii_lowercase).collect();
    let chunked = lower.iter().any(|line| line == "transfer-encoding: chunked");
    let mut headers: Vec<String> = lower
        .into_iter()
        .filter(|line| HEADERS.iter().any(|name| line.starts_with(name)))
        .collect();
    headers.sort();
    let body = if chunked { dechunked(body) } else { body.to_owned() };
    Ok(Answer { status: status.to_owned(), headers, body })
}

impl Answer {
    /// The answer without what depends on the run.
    pub fn masked(self) -> Answer {
        Answer { body: masked(&self.body), ..self }
    }
}

/// The data of the chunks that are complete; a body that is not chunked stays as it is.
fn dechunked(body: &str) -> String {
    let (mut rest, mut data) = (body, String::new());
    while let Some((size, after)) = rest.split_once("\r\n") {
        let Ok(size) = usize::from_str_radix(size, 16) else { return body.to_owned() };
        let Some(chunk) = after.get(..size).filter(|_| size > 0) else { break };
        data.push_str(chunk);
        rest = after[size..].strip_prefix("\r\n").unwrap_or_default();
    }
    data
}

/// The body without what depends on the run.
fn masked(body: &str) -> String {
    let mut out = compact(&body.replace('\u{a0}', " "));
    for name in VOLATILE {
        let start = format!("\"{name}\":");
        let mut from = 0;
        while let Some(found) = out[from..].find(&start) {
            let value = from + found + start.len();
            let end = value + value_length(&out[value..]);
            out.replace_range(value..end, "~");
            from = value;
        }
    }
    mask_long_ids(&out)
}

/// Ids that a server or a test chose are short; those made of hashes are long.
fn mask_long_ids(text: &str) -> String {
    const ID: &str = "\"ID\":\"";
    let mut parts = text.split(ID);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let digits = part.bytes().take_while(u8::is_ascii_digit).count();
        out.push_str(ID);
        out.push_str(if digits > 14 { "~" } else { &part[..digits] });
        out.push_str(&part[digits..]);
    }
    out
}

/// How long the string, number or list at the beginning of a text is. An object is left alone.
fn value_length(text: &str) -> usize {
    match text.as_bytes().first() {
        Some(b'"') => text[1..].find('"').map_or(text.len(), |end| end + 2),
        Some(b'[') => text.find(']').map_or(text.len(), |end| end + 1),
        Some(b'{') => 0,
        _ => text.find([',', '}', ']']).unwrap_or(text.len()),
    }
}

fn compact(text: &str) -> String {
    let (mut out, mut in_string, mut escaped) = (String::new(), false, false);
    let is_json = text.starts_with('{');
    for character in text.chars() {
        match character {
            '"' if !escaped => in_string = !in_string,
            ' ' if is_json && !in_string => continue,
            _ => {}
        }
        escaped = character == '\\' && !escaped;
        out.push(character);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_whatever_their_form() {
        let text = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nDate: x\r\n\
                    Transfer-Encoding: chunked\r\n\r\n5\r\n{\"a\":\r\n9\r\n \"x y\"}\n{\r\n0\r\n\r\n";
        let answer = parse(text).unwrap();
        assert_eq!(answer.status, "200");
        assert_eq!(answer.headers, ["content-type: application/json"]);
        assert_eq!(answer.body, "{\"a\": \"x y\"}\n{");
        assert_eq!(answer.masked().body, "{\"a\":\"x y\"}\n{");
        let header = r#"{"header":{"cluster_id": "1","raft_term":"2"}, "hash":3,"leader":"4","peerURLs":["a","b"]}"#;
        assert_eq!(
            masked(header),
            r#"{"header":{"cluster_id":~,"raft_term":~},"hash":3,"leader":~,"peerURLs":~}"#
        );
    }
}
