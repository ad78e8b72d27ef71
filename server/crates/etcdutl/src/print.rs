//! The output formats, as Go's `etcdutl` 3.7 prints them.

use crate::hash_kv::HashKv;
use crate::status::Status;

/// The values of `--write-out` that can print an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Simple,
    Json,
    Table,
    Fields,
}

/// Why a format cannot be used; Go's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    #[error("protobuf not supported as output format")]
    Protobuf,
    #[error("unsupported output format")]
    Unknown,
}

impl std::str::FromStr for Format {
    type Err = FormatError;

    fn from_str(name: &str) -> Result<Self, FormatError> {
        match name {
            "simple" => Ok(Self::Simple),
            "json" => Ok(Self::Json),
            "table" => Ok(Self::Table),
            "fields" => Ok(Self::Fields),
            "protobuf" => Err(FormatError::Protobuf),
            _ => Err(FormatError::Unknown),
        }
    }
}

/// The text of a status, with its last line feed.
pub fn status(status: &Status, format: Format) -> String {
    let columns = [
        ("HASH", format!("{:x}", status.hash)),
        ("REVISION", status.revision.to_string()),
        ("TOTAL KEYS", status.total_key.to_string()),
        ("TOTAL SIZE", human_bytes(status.total_size)),
        ("VERSION", status.version.clone()),
    ];
    match format {
        Format::Simple => {
            let values: Vec<&str> = columns.iter().map(|(_, value)| value.as_str()).collect();
            values.join(", ") + "\n"
        }
        Format::Json => {
            let json = serde_json::to_string(status).expect("numbers and a text are always JSON");
            json + "\n"
        }
        Format::Fields => format!(
            "\"Hash\" : {}\n\"Revision\" : {}\n\"Keys\" : {}\n\"Size\" : {}\n\"Version\" : {}\n",
            status.hash, status.revision, status.total_key, status.total_size, status.version
        ),
        Format::Table => table(&columns),
    }
}

/// The text of a hash, with its last line feed.
pub fn hash_kv(found: &HashKv, format: Format) -> String {
    let columns = [
        ("HASH", found.hash.to_string()),
        ("HASH REVISION", found.hash_revision.to_string()),
        ("COMPACT REVISION", found.compact_revision.to_string()),
    ];
    match format {
        Format::Simple => {
            let values: Vec<&str> = columns.iter().map(|(_, value)| value.as_str()).collect();
            values.join(", ") + "\n"
        }
        Format::Json => {
            let json = serde_json::to_string(found).expect("numbers are always JSON");
            json + "\n"
        }
        Format::Fields => format!(
            "\"Hash\" : {}\n\"Hash revision\" : {}\n\"Compact revision\" : {}\n",
            found.hash, found.hash_revision, found.compact_revision
        ),
        Format::Table => table(&columns),
    }
}

/// One row under its headings, which are centred; values stand at the right.
fn table(columns: &[(&str, String)]) -> String {
    let width = |column: &(&str, String)| column.0.chars().count().max(column.1.chars().count());
    let rule = |left: &str, middle: &str, right: &str| {
        let dashes: Vec<String> =
            columns.iter().map(|column| "─".repeat(width(column) + 2)).collect();
        format!("{left}{}{right}\n", dashes.join(middle))
    };
    let line = |cells: Vec<String>| format!("│ {} │\n", cells.join(" │ "));
    let headings = columns.iter().map(|column| format!("{:^1$}", column.0, width(column)));
    let values = columns.iter().map(|column| format!("{:>1$}", column.1, width(column)));
    [
        rule("┌", "┬", "┐"),
        line(headings.collect()),
        rule("├", "┼", "┤"),
        line(values.collect()),
        rule("└", "┴", "┘"),
    ]
    .concat()
}

/// Bytes in powers of a thousand, as the Go package `humanize` writes them.
fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 10 {
        return format!("{bytes} B");
    }
    let power = bytes.ilog(1_000) as usize;
    let value = (bytes as f64 / 1_000f64.powi(power as i32) * 10.0 + 0.5).floor() / 10.0;
    let unit = UNITS[power];
    if value < 10.0 { format!("{value:.1} {unit}") } else { format!("{value:.0} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_written_as_go_humanize_writes_them() {
        let cases = [
            (0, "0 B"),
            (9, "9 B"),
            (10, "10 B"),
            (999, "999 B"),
            (1_000, "1.0 kB"),
            (1_049, "1.0 kB"),
            (1_050, "1.1 kB"),
            (9_949, "9.9 kB"),
            (9_999, "10 kB"),
            (24_576, "25 kB"),
            (106_496, "106 kB"),
            (999_999, "1000 kB"),
            (20_480_000, "20 MB"),
            (u64::MAX, "18 EB"),
        ];
        for (bytes, expected) in cases {
            assert_eq!(human_bytes(bytes), expected, "{bytes}");
        }
    }

    #[test]
    fn every_format_is_that_of_go_etcdutl() {
        let sum = Status {
            hash: 3_652_215_703,
            revision: 48,
            total_key: 44,
            total_size: 106_496,
            version: "3.7.0".to_string(),
        };
        let cases = [
            (Format::Simple, "d9b06397, 48, 44, 106 kB, 3.7.0\n"),
            (
                Format::Json,
                "{\"hash\":3652215703,\"revision\":48,\"totalKey\":44,\"totalSize\":106496,\
                 \"version\":\"3.7.0\"}\n",
            ),
            (
                Format::Fields,
                "\"Hash\" : 3652215703\n\"Revision\" : 48\n\"Keys\" : 44\n\"Size\" : 106496\n\
                 \"Version\" : 3.7.0\n",
            ),
            (
                Format::Table,
                "┌──────────┬──────────┬────────────┬────────────┬─────────┐\n\
                 │   HASH   │ REVISION │ TOTAL KEYS │ TOTAL SIZE │ VERSION │\n\
                 ├──────────┼──────────┼────────────┼────────────┼─────────┤\n\
                 │ d9b06397 │       48 │         44 │     106 kB │   3.7.0 │\n\
                 └──────────┴──────────┴────────────┴────────────┴─────────┘\n",
            ),
        ];
        for (format, expected) in cases {
            assert_eq!(status(&sum, format), expected);
        }
    }

    #[test]
    fn a_short_hash_is_padded_and_its_heading_centred_as_in_go() {
        let sum = Status {
            hash: 0xa5_edb2c,
            revision: 0,
            total_key: 1,
            total_size: 24_576,
            version: "3.7.0".to_string(),
        };
        let lines: Vec<String> = status(&sum, Format::Table).lines().map(String::from).collect();
        assert_eq!(lines[1], "│  HASH   │ REVISION │ TOTAL KEYS │ TOTAL SIZE │ VERSION │");
        assert_eq!(lines[3], "│ a5edb2c │        0 │          1 │      25 kB │   3.7.0 │");
    }
}
