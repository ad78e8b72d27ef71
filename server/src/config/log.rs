//! Where the log goes, how it looks, and how its file makes room for itself.

use std::time::Duration;

use serde_json::{Map, Value};

use super::values::Values;
use super::{ConfigError, LogConfig, LogFormat, LogLevel, LogOutput, refuse};

/// etcd's text, with its own name for the flag.
const NO_SINGLE_FILE: &str =
    "--log-outputs requires a single file path when --log-rotate-config-json is defined";

/// The size of a file when none is given, in MiB.
const MEBIBYTES_DEFAULT: u64 = 100;

/// When a file of the log is full, and which of the files before it are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogRotation {
    pub bytes_max: u64,
    /// How many backups are kept; 0 for all.
    pub backups_max: usize,
    pub age_max: Option<Duration>,
}

impl LogRotation {
    /// Reads `--log-rotation-config-json` as Go does: names in any case, what is missing has its
    /// default, what is unknown is left alone.
    fn parse(text: &str) -> Result<Self, ConfigError> {
        let fields: Map<String, Value> = match serde_json::from_str(text) {
            Ok(Value::Object(fields)) => fields,
            Ok(other) => {
                return refuse(format!("invalid log rotation config: {other} is no object"));
            }
            Err(error) => {
                return refuse(format!("improperly formatted log rotation config: {error}"));
            }
        };
        let field = |name: &str| {
            fields.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
        };
        let number = |name: &str| match field(name) {
            None | Some(Value::Null) => Ok(0),
            Some(value) => value.as_u64().ok_or_else(|| {
                ConfigError(format!(
                    "invalid log rotation config: {name} must be a number from 0 on, not {value}"
                ))
            }),
        };
        for name in ["localtime", "compress"] {
            match field(name) {
                None | Some(Value::Null | Value::Bool(false)) => {}
                Some(Value::Bool(true)) => {
                    return refuse(format!(
                        "{name} of --log-rotation-config-json is not supported yet: names of files \
                         are in UTC, and files are not compressed"
                    ));
                }
                Some(value) => {
                    return refuse(format!(
                        "invalid log rotation config: {name} must be true or false, not {value}"
                    ));
                }
            }
        }
        let mebibytes = Some(number("maxsize")?).filter(|size| *size > 0);
        let days = Some(number("maxage")?).filter(|days| *days > 0);
        Ok(Self {
            bytes_max: mebibytes.unwrap_or(MEBIBYTES_DEFAULT).saturating_mul(1 << 20),
            backups_max: usize::try_from(number("maxbackups")?).unwrap_or(usize::MAX),
            age_max: days.map(|days| Duration::from_secs(days.saturating_mul(86_400))),
        })
    }

    fn of(values: &Values<'_>, outputs: &[LogOutput]) -> Result<Self, ConfigError> {
        let files = outputs.iter().filter(|output| matches!(output, LogOutput::File(_))).count();
        if files > 1 || (files == 0 && outputs.len() == 1) {
            return refuse(NO_SINGLE_FILE);
        }
        Self::parse(&values.text("log-rotation-config-json"))
    }
}

pub(super) fn log_of(
    values: &Values<'_>,
    warnings: &mut Vec<String>,
) -> Result<LogConfig, ConfigError> {
    match values.text("logger").as_str() {
        "zap" => {}
        "capnslog" => return refuse("--logger=capnslog is removed in v3.5"),
        other => return refuse(format!("unknown logger option {other:?}")),
    }
    if values.is_set_to_nothing("log-outputs") {
        return refuse("open sink \"\": open : no such file or directory");
    }
    let mut names = values.texts("log-outputs");
    names.dedup();
    if names.len() > 1 && names.iter().any(|name| name == "default") {
        return refuse("multi logoutput for \"default\" is not supported yet");
    }
    let outputs = names
        .into_iter()
        .map(|name| match name.as_str() {
            "default" | "stderr" => Ok(LogOutput::Stderr),
            "stdout" => Ok(LogOutput::Stdout),
            "systemd/journal" => refuse(
                "--log-outputs=systemd/journal is not supported yet; write to stderr and let systemd collect it",
            ),
            _ => Ok(LogOutput::File(name)),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let outputs = if outputs.is_empty() { vec![LogOutput::Stderr] } else { outputs };
    let rotates = values.boolean("enable-log-rotation")?;
    if !rotates && values.0.is_set("log-rotation-config-json") {
        warnings.push(
            "--log-rotation-config-json has no effect: it only means something together with \
             --enable-log-rotation"
                .to_owned(),
        );
    }
    Ok(LogConfig {
        rotation: rotates.then(|| LogRotation::of(values, &outputs)).transpose()?,
        outputs,
        level: match values.text("log-level").as_str() {
            "debug" => LogLevel::Debug,
            "info" | "" => LogLevel::Info,
            "warn" => LogLevel::Warn,
            "error" | "dpanic" | "panic" | "fatal" => LogLevel::Error,
            other => return refuse(format!("unrecognized level: {other:?}")),
        },
        format: match values.text("log-format").as_str() {
            "json" | "" => LogFormat::Json,
            "console" => LogFormat::Console,
            other => {
                return refuse(format!(
                    "unknown log format: {other}, supported values json, console"
                ));
            }
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotation_is_read_as_go_reads_it() {
        let parse = |text: &str| LogRotation::parse(text).map_err(|error| error.0);
        let plain = LogRotation { bytes_max: 100 << 20, backups_max: 0, age_max: None };
        assert_eq!(parse("{}"), Ok(plain));
        assert_eq!(
            parse(
                r#"{"maxsize": 100, "maxage": 0, "maxbackups": 0, "localtime": false, "compress": false}"#
            ),
            Ok(plain)
        );
        let age_max = Some(Duration::from_secs(2 * 86_400));
        assert_eq!(
            parse(r#"{"maxSize": 1, "MaxAge": 2, "maxbackups": 3, "more": []}"#),
            Ok(LogRotation { bytes_max: 1 << 20, backups_max: 3, age_max })
        );
        for (text, error) in [
            ("{\"maxsize\": }", "improperly formatted log rotation config: "),
            ("{\"maxsize\": \"1\"}", "invalid log rotation config: "),
            ("{\"maxage\": -1}", "invalid log rotation config: "),
            ("[]", "invalid log rotation config: "),
            ("{\"compress\": 1}", "invalid log rotation config: "),
            ("{\"compress\": true}", "compress of --log-rotation-config-json is not supported"),
        ] {
            let refused = parse(text).unwrap_err();
            assert!(refused.starts_with(error), "{text}: {refused}");
        }
    }
}
