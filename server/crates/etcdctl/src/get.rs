//! `get`: reads a key or a range.

use bytes::Bytes;
use client::prefix_range_end;
use cobra::{Exit, Flag, Kind, Matches, Outcome, exit};
use proto::etcdserverpb::RangeRequest;
use proto::etcdserverpb::range_request::{SortOrder, SortTarget};

use crate::command::{Command, Group, Invocation};
use crate::global::Session;
use crate::go;
use crate::output::{Answer, Format, Printer};
use crate::words::Word;

pub(crate) const FLAGS: [Flag; 15] = [
    Flag::new("consistency", Kind::Text, "l", "linearizable (l) or serializable (s)")
        .values(&["l", "s"]),
    Flag::new("order", Kind::Text, "", "ASCEND or DESCEND").values(&["ASCEND", "DESCEND"]),
    Flag::new("sort-by", Kind::Text, "", "CREATE, KEY, MODIFY, VALUE or VERSION")
        .values(&["CREATE", "KEY", "MODIFY", "VALUE", "VERSION"]),
    Flag::new("limit", Kind::Integer, "0", "most keys to return"),
    Flag::new("prefix", Kind::Bool, "false", "all keys that begin with the key"),
    Flag::new("from-key", Kind::Bool, "false", "all keys from the key on"),
    Flag::new("rev", Kind::Integer, "0", "read at this revision"),
    Flag::new("keys-only", Kind::Bool, "false", "leave the values away"),
    Flag::new("count-only", Kind::Bool, "false", "only count the keys"),
    Flag::new(
        "print-value-only",
        Kind::Bool,
        "false",
        "print values without keys; simple format only",
    ),
    Flag::new("min-create-rev", Kind::Integer, "0", "lowest create revision"),
    Flag::new("max-create-rev", Kind::Integer, "0", "highest create revision"),
    Flag::new("min-mod-rev", Kind::Integer, "0", "lowest modification revision"),
    Flag::new("max-mod-rev", Kind::Integer, "0", "highest modification revision"),
    Flag::new("stream", Kind::Bool, "false", "receive the keys as a stream"),
];

pub(crate) fn command() -> Command {
    Command {
        name: "get",
        usage: "[options] <key> [range_end]",
        short: "Reads a key or a range of keys",
        group: Group::KEY_VALUE,
        flags: FLAGS.to_vec(),
        run: Some(|invocation| Box::pin(get(invocation))),
        ..Command::default()
    }
}

async fn get(invocation: Invocation) -> Outcome {
    let request = request(&invocation.matches)?;
    let session = Session::new(&invocation)?;
    let client = session.timed_client().await?;
    let flags = session.matches();
    let response = if flags.is_true("stream") {
        client.range_stream(request).await?
    } else {
        client.range(request).await?
    };
    let printer = session.printer;
    if flags.is_true("count-only") && printer.format != Format::Fields {
        return Err(Exit::bad_arguments("--count-only is only for `--write-out=fields`"));
    }
    let value_only = flags.is_true("print-value-only");
    if value_only && printer.format != Format::Simple {
        return Err(Exit::bad_arguments("print-value-only is only for `--write-out=simple`"));
    }
    Printer { value_only, ..printer }.print(Answer::Get(&response))
}

/// The request that the flags and arguments describe; also used for `get` inside `txn`.
pub(crate) fn request(matches: &Matches) -> Outcome<RangeRequest> {
    let Some(key) = matches.arguments.first() else {
        return Err(Exit::bad_arguments(
            "get command needs one argument as key and an optional argument as range_end",
        ));
    };
    for (one, other) in [("prefix", "from-key"), ("keys-only", "count-only")] {
        if matches.is_true(one) && matches.is_true(other) {
            return Err(Exit::bad_arguments(format!(
                "`--{one}` and `--{other}` cannot be set at the same time, choose one"
            )));
        }
    }
    let serializable = is_serializable(&matches.word("consistency"))?;
    let (key, range_end) = range(matches, key, matches.arguments.get(1))?;
    let sort_order = sort_order(matches.text("order"))?;
    let sort_target = sort_target(matches.text("sort-by"))?;
    let bounds = |what: &str, name: &str| -> Outcome<(i64, i64)> {
        let min = matches.integer(&format!("min-{what}-rev")).max(0);
        let given = matches.integer(&format!("min-{what}-rev"));
        let max = matches.integer(&format!("max-{what}-rev"));
        if max > 0 && given > max {
            let message = format!("getMin{name}Rev(={given}) > getMax{name}Rev(={max})");
            return Err(Exit::with(exit::BAD_FEATURE, message));
        }
        Ok((min, max.max(0)))
    };
    let (min_create_revision, max_create_revision) = bounds("create", "Create")?;
    let (min_mod_revision, max_mod_revision) = bounds("mod", "Mod")?;
    // Keys come in ascending order by themselves, and a server sorts nothing for less (clientv3).
    let by_key = sort_target == SortTarget::Key && sort_order == SortOrder::Ascend;
    let sort_order = if by_key { SortOrder::None } else { sort_order };
    Ok(RangeRequest {
        key,
        range_end,
        limit: matches.integer("limit"),
        revision: matches.integer("rev").max(0),
        sort_order: sort_order.into(),
        sort_target: sort_target.into(),
        serializable,
        keys_only: matches.is_true("keys-only"),
        count_only: matches.is_true("count-only"),
        min_mod_revision,
        max_mod_revision,
        min_create_revision,
        max_create_revision,
    })
}

/// Key and range end of `get` and `del`.
pub(crate) fn range(
    matches: &Matches,
    key: &Word,
    range_end: Option<&Word>,
) -> Outcome<(Bytes, Bytes)> {
    let prefix = matches.is_true("prefix");
    let from_key = matches.is_true("from-key");
    let key = key.clone();
    match range_end {
        Some(_) if prefix || from_key => Err(Exit::bad_arguments(
            "too many arguments, only accept one argument when `--prefix` or `--from-key` is set",
        )),
        // No key is empty, so everything begins at the first one.
        None if (prefix || from_key) && key.is_empty() => {
            Ok((Bytes::from_static(&[0]), Bytes::from_static(&[0])))
        }
        None if prefix => {
            let end = prefix_range_end(&key);
            Ok((key, end))
        }
        None if from_key => Ok((key, Bytes::from_static(&[0]))),
        None => Ok((key, Bytes::new())),
        Some(end) => Ok((key, end.clone())),
    }
}

/// Reads `--consistency`.
pub(crate) fn is_serializable(consistency: &[u8]) -> Outcome<bool> {
    match consistency {
        b"s" => Ok(true),
        b"l" => Ok(false),
        other => {
            let message = format!("unknown consistency flag {}", go::quote(other));
            Err(Exit::with(exit::BAD_FEATURE, message))
        }
    }
}

fn sort_order(text: &str) -> Outcome<SortOrder> {
    match text.to_uppercase().as_str() {
        "ASCEND" => Ok(SortOrder::Ascend),
        "DESCEND" => Ok(SortOrder::Descend),
        "" => Ok(SortOrder::None),
        _ => Err(Exit::with(exit::BAD_FEATURE, format!("bad sort order {text}"))),
    }
}

fn sort_target(text: &str) -> Outcome<SortTarget> {
    match text.to_uppercase().as_str() {
        "CREATE" => Ok(SortTarget::Create),
        "KEY" | "" => Ok(SortTarget::Key),
        "MODIFY" => Ok(SortTarget::Mod),
        "VALUE" => Ok(SortTarget::Value),
        "VERSION" => Ok(SortTarget::Version),
        _ => Err(Exit::with(exit::BAD_FEATURE, format!("bad sort target {text}"))),
    }
}
