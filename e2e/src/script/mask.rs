//! Masks what differs from run to run, and nothing else: addresses, ids, times, sizes, terms, and
//! the wording of help, which is our own.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::Value;

/// Numbers that follow these texts depend on the run.
const VOLATILE: [&str; 18] = [
    "\"raft_term\":",
    "\"raftTerm\":",
    "\"raftIndex\":",
    "\"raftAppliedIndex\":",
    "\"dbSize\":",
    "\"dbSizeInUse\":",
    "\"RaftTerm\" : ",
    "\"RaftIndex\" : ",
    "\"RaftAppliedIndex\" : ",
    "\"DBSize\" : ",
    "\"DBSizeInUse\" : ",
    "remaining(",
    "\"ttl\":",
    "took = ",
    "took ",
    "\"took\":\"",
    "\"Took\" : ",
    // header.raft_term in a dump of protobuf
    "1.4: ",
];

/// Fields of log lines that depend on the run or are worded by the runtime.
const VOLATILE_LOG: [&str; 8] =
    ["ts", "caller", "logger", "target", "peer", "took", "stacktrace", "size"];

/// Ids are at least this big, so that revisions and hashes are not mistaken for one.
const SMALLEST_ID: u64 = 1 << 48;
/// Ids with zeros in front: those of leases are the rest of a clock behind two bytes of a member's.
const SMALLEST_PADDED_ID: u64 = 1 << 32;

#[derive(Debug, Default)]
pub(super) struct Mask {
    texts: Vec<(String, String)>,
    ids: BTreeMap<u64, String>,
    next_id: u32,
}

impl Mask {
    /// Gives a text a name.
    pub(super) fn text(&mut self, text: &str, name: &str) {
        self.texts.push((text.to_owned(), name.to_owned()));
        // Longer texts first, so that none is cut by a shorter one inside it.
        self.texts.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
    }

    /// Gives an id a name.
    pub(super) fn id(&mut self, id: u64, name: &str) {
        self.ids.insert(id, name.to_owned());
    }

    /// A command with names replaced by what they stand for.
    pub(super) fn unmask(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (actual, name) in &self.texts {
            text = text.replace(name, actual);
        }
        for (id, name) in &self.ids {
            text = text.replace(&format!("<{name}>"), &format!("{id:x}"));
            text = text.replace(&format!("<{name}#>"), &id.to_string());
        }
        text
    }

    /// The masked lines of an output.
    pub(super) fn mask(&mut self, words: &[String], text: &str) -> Vec<String> {
        let text = if is_help(text) { mask_help(text) } else { text.to_owned() };
        let mut lines: Vec<String> = text.split('\n').map(str::to_owned).collect();
        match lines.last() {
            Some(last) if last.is_empty() => drop(lines.pop()),
            _ => lines.push("(no newline at the end)".to_owned()),
        }
        if text.is_empty() {
            return Vec::new();
        }
        // The order of members is that of their ids, which are chosen by chance.
        let members = words.iter().any(|word| word == "list") && text.contains("started");
        // `--debug` also shows what the gRPC library does, which is the library's own business.
        if words.iter().any(|word| word == "--debug") && text.contains("ETCDCTL_") {
            lines.retain(|line| line.starts_with("ETCDCTL_"));
        }
        let lines = lines.iter().map(|line| self.line(words, line));
        let mut lines: Vec<String> = lines.collect();
        // Of a lease's answer etcdctl writes the header alone: its fourth field is the term.
        if lines.first().is_some_and(|line| line.starts_with("1: <cluster")) {
            lines.iter_mut().filter(|line| line.starts_with("4: ")).for_each(|line| {
                *line = "4: ~".to_owned();
            });
        }
        if members && !text.contains('│') {
            lines.sort_by_key(|line| line.split_once(", ").map(|(_, rest)| rest.to_owned()));
        }
        lines
    }

    fn line(&mut self, words: &[String], line: &str) -> String {
        let mut line = mask_log(line).unwrap_or_else(|| line.to_owned());
        // How much of a TLS alert a client reads before the end is chance.
        for end in ["unexpected EOF", "connection reset by peer"] {
            // Go etcd closes the connection with something unread in it, in one run of many.
            line = line.replace(&format!("server preface: {end}"), "server preface: EOF");
        }
        line = sort_cluster(&line);
        for (actual, name) in &self.texts {
            line = line.replace(actual, name);
        }
        for before in VOLATILE {
            line = mask_number_after(&line, before);
        }
        if words.iter().any(|word| word == "timetolive") {
            line = mask_number_after(&line, "\"TTL\" : ");
        }
        line = mask_cells(&line);
        let masked = self.mask_ids(&line);
        // Ids are padded to a width, and tables to that of the widest cell.
        if masked != line || line.contains(['│', '─']) || line.contains("memberID:") {
            collapse(&masked)
        } else {
            masked
        }
    }

    fn mask_ids(&mut self, line: &str) -> String {
        let mut masked = String::new();
        let mut rest = line;
        while !rest.is_empty() {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(rest.len());
            let (word, after) = rest.split_at(end);
            match self.id_name(&masked, word) {
                Some(name) => masked.push_str(&name),
                None => masked.push_str(word),
            }
            let step = after.chars().next().map_or(0, char::len_utf8);
            masked.push_str(&after[..step]);
            rest = &after[step..];
        }
        masked
    }

    /// The name of the id that a word is, after this text. One of 16 digits may be either notation: decimal
    /// ones are values of fields.
    fn id_name(&mut self, before: &str, word: &str) -> Option<String> {
        let is_value = before.ends_with(':') || before.ends_with(": ");
        let hex = u64::from_str_radix(word, 16).ok().filter(|_| word.len() >= 12);
        let known = |id: Option<u64>| id.is_some_and(|id| self.ids.contains_key(&id));
        let decimal = word.parse::<u64>().ok();
        let decimal = decimal.filter(|id| word.len() >= 15 || known(Some(*id)));
        let lower = !word.chars().any(|letter| letter.is_ascii_uppercase());
        let (id, mark) = match (hex, decimal) {
            (_, Some(decimal)) if known(Some(decimal)) => (decimal, "#"),
            (hex, Some(decimal)) if !known(hex) && (hex.is_none() || is_value) => (decimal, "#"),
            (Some(hex), _) if lower => (hex, ""),
            _ => return None,
        };
        if !self.ids.contains_key(&id) {
            let smallest =
                if word.len() == 16 && mark.is_empty() { SMALLEST_PADDED_ID } else { SMALLEST_ID };
            if id < smallest {
                return None;
            }
            self.next_id += 1;
            self.ids.insert(id, format!("id{}", self.next_id));
        }
        Some(format!("<{}{mark}>", self.ids[&id]))
    }
}

/// A line of a log with its volatile fields left out.
fn mask_log(line: &str) -> Option<String> {
    if !line.starts_with("{\"level\":") {
        return None;
    }
    let Ok(Value::Object(fields)) = serde_json::from_str(line) else { return None };
    // Sorted here, because the map's own order depends on how serde_json is built.
    let fields: BTreeMap<String, Value> = fields.into_iter().collect();
    let mut masked = String::from("log");
    for (name, value) in fields {
        if VOLATILE_LOG.contains(&name.as_str()) {
            continue;
        }
        let mut value = value.to_string();
        // How a connection failed is worded by the runtime.
        if let Some(index) = value.find("transport: ") {
            value.truncate(index + "transport".len());
        }
        write!(masked, " {name}={value}").expect("a string takes every write");
    }
    Some(masked)
}

/// The members in `ETCD_INITIAL_CLUSTER`, whose order is that of their ids.
fn sort_cluster(line: &str) -> String {
    let inner =
        line.strip_prefix("ETCD_INITIAL_CLUSTER=\"").and_then(|rest| rest.strip_suffix('"'));
    let Some(members) = inner else { return line.to_owned() };
    let mut members: Vec<&str> = members.split(',').collect();
    members.sort_unstable();
    format!("ETCD_INITIAL_CLUSTER=\"{}\"", members.join(","))
}

fn mask_number_after(line: &str, before: &str) -> String {
    let mut masked = String::new();
    let mut rest = line;
    while let Some(index) = rest.find(before) {
        let (head, tail) = rest.split_at(index + before.len());
        masked.push_str(head);
        // A duration goes on with letters and more digits.
        let duration =
            before.to_lowercase().starts_with(['t', '"']) && before.to_lowercase().contains("took");
        let belongs = |letter: char| {
            letter.is_ascii_digit()
                || duration && (letter == 'µ' || letter == '.' || letter.is_ascii_lowercase())
        };
        let mut end = tail.find(|letter| !belongs(letter)).unwrap_or(tail.len());
        if tail[..end].ends_with('.') {
            end -= 1;
        }
        let starts_with_digit = tail.starts_with(|letter: char| letter.is_ascii_digit());
        if starts_with_digit && end > 0 {
            masked.push('~');
            rest = &tail[end..];
        } else {
            rest = tail;
        }
    }
    masked.push_str(rest);
    masked
}

/// Cells of `endpoint status` and `endpoint health` that depend on the run.
fn mask_cells(line: &str) -> String {
    let (separator, first) = if line.starts_with('│') { ("│", 1) } else { (", ", 0) };
    let mut cells: Vec<String> = line.split(separator).map(str::to_owned).collect();
    let is_title = cells.iter().any(|cell| cell.contains("ENDPOINT"));
    let volatile: &[usize] = match cells.len() - 2 * first {
        // sizes and the part in use, then term and indexes
        16 if !is_title => &[4, 5, 6, 10, 11, 12],
        4 if first == 1 && !is_title => &[2],
        _ => &[],
    };
    for index in volatile {
        cells[index + first] = "~".to_owned();
    }
    if first == 1 {
        cells = cells.iter().map(|cell| format!(" {} ", cell.trim())).collect();
    }
    cells.join(separator)
}

fn collapse(line: &str) -> String {
    let mut collapsed = String::new();
    for letter in line.chars() {
        if !(matches!(letter, ' ' | '─') && collapsed.ends_with(letter)) {
            collapsed.push(letter);
        }
    }
    collapsed
}

fn is_help(text: &str) -> bool {
    text.lines().any(|line| line == "Usage:" || line.starts_with("The following options"))
}

/// Help without the descriptions: names, types, defaults and shape stay.
fn mask_help(text: &str) -> String {
    let mut masked = String::new();
    let mut about = text.contains("Usage:");
    let mut commands = false;
    let mut examples = false;
    for line in text.lines() {
        if line.starts_with("Error:") {
            masked.push_str(&format!("{line}\n"));
            continue;
        }
        about &= line != "Usage:";
        let heading = !line.is_empty() && !line.starts_with(' ');
        examples = line == "Examples:" || examples && !heading;
        if about || examples {
            continue;
        }
        commands = if heading {
            line.ends_with("ommands:") || line.ends_with(" commands")
        } else {
            commands
        };
        let trimmed = line.trim_start();
        let shown = if trimmed.starts_with('-') {
            flag_line(line)
        } else if commands && !heading {
            line.split("  ").find(|part| !part.is_empty()).map_or(String::new(), |name| {
                format!("  {}", name.split(' ').next().unwrap_or_default())
            })
        } else {
            line.to_owned()
        };
        masked.push_str(&format!("{shown}\n"));
    }
    masked
}

/// A flag with its default but without its description.
fn flag_line(line: &str) -> String {
    let indent = line.len() - line.trim_start().len();
    let after = line[indent..].find("   ").map_or(line.len(), |index| indent + index);
    let default = line.rfind("(default ").map_or("", |index| &line[index..]);
    format!("{} {default}", &line[..after]).trim_end().to_owned()
}

/// A message without its schema: one line per field with the path of its numbers. What can be read
/// as a message is, unless it is text.
pub(super) fn dump_protobuf(bytes: &[u8]) -> String {
    let mut text = String::new();
    if fields(bytes, "", &mut text).is_none() {
        text = format!("not protobuf: {bytes:02x?}\n");
    }
    text
}

fn fields(mut bytes: &[u8], path: &str, text: &mut String) -> Option<()> {
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let (number, kind) = (key >> 3, key & 7);
        let path = if path.is_empty() { number.to_string() } else { format!("{path}.{number}") };
        match kind {
            0 => writeln!(text, "{path}: {}", varint(&mut bytes)?).ok()?,
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                let (value, rest) = bytes.split_at_checked(length)?;
                bytes = rest;
                let is_text = value.iter().all(|byte| (b' '..=b'~').contains(byte));
                let mut nested = String::new();
                if !is_text && fields(value, &path, &mut nested).is_some() {
                    text.push_str(&nested);
                } else {
                    let value = String::from_utf8_lossy(value);
                    writeln!(text, "{path}: {value:?}").ok()?;
                }
            }
            _ => return None,
        }
    }
    Some(())
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_get_names_in_both_notations() {
        let mut mask = Mask::default();
        mask.id(0xbabc_9795_b64f_03e3, "cluster");
        let words = ["etcdctl".to_owned()];
        let lines = mask.mask(&words, "lease 3ceea1fe1546050a granted\n13455796455940752355\n");
        assert_eq!(lines, ["lease <id1> granted", "<cluster#>"]);
        assert_eq!(
            mask.unmask("etcdctl <id1> <id1#>"),
            "etcdctl 3ceea1fe1546050a 4390624799383487754"
        );
    }

    #[test]
    fn an_id_whose_hexadecimal_notation_has_no_letter_is_taken_for_what_it_is() {
        let mut mask = Mask::default();
        let words = ["etcdctl".to_owned()];
        let lines = "\"Key\" : \"e/1234567890123456\"\n\"Lease\" : 1311768467284833366\n\
            \"Other\" : 1234567890123457\n";
        assert_eq!(
            mask.mask(&words, lines),
            ["\"Key\" : \"e/<id1>\"", "\"Lease\" : <id1#>", "\"Other\" : <id2#>"]
        );
    }

    #[test]
    fn an_id_with_zeros_in_front_is_one() {
        let mut mask = Mask::default();
        let words = ["etcdctl".to_owned()];
        let lines =
            "lease 000023135cabe95d granted\n\"Lease\" : 38566066121053\n\"Revision\" : 7\n";
        let lines = mask.mask(&words, lines);
        assert_eq!(lines, ["lease <id1> granted", "\"Lease\" : <id1#>", "\"Revision\" : 7"]);
    }

    #[test]
    fn times_and_terms_are_masked_and_revisions_are_not() {
        let mut mask = Mask::default();
        let words = ["etcdctl".to_owned()];
        for (line, masked) in [
            ("a is healthy: took = 4.690581ms", "a is healthy: took = ~"),
            ("[a]. took 1.002285112s. (no)", "[a]. took ~. (no)"),
            ("{\"revision\":2,\"raft_term\":12}", "{\"revision\":2,\"raft_term\":~}"),
            ("granted with TTL(10s), remaining(9s)", "granted with TTL(10s), remaining(~s)"),
            ("a, 3628877040, 2", "a, 3628877040, 2"),
        ] {
            assert_eq!(mask.mask(&words, &format!("{line}\n")), [masked]);
        }
    }

    #[test]
    fn protobuf_is_shown_by_field_number() {
        let bytes = [10, 4, 8, 1, 32, 2, 18, 1, b'a'];
        assert_eq!(dump_protobuf(&bytes), "1.1: 1\n1.4: 2\n2: \"a\"\n");
        assert!(dump_protobuf(&[255]).starts_with("not protobuf"));
    }
}
