//! The command line and the environment, as the user types them.
//!
//! In: arguments and environment variables. Out: what to do, with every value still a text that has
//! the right form ([`RawConfig`]); [`crate::config`] makes sense of them. Reading is Go's: `-x` and
//! `--x` are one flag, a value follows `=` or a space, only booleans stand without one.
//!
//! Deliberately absent: the sub-commands, which [`crate::proxy`] reads by other rules.

mod flags;
mod help;
pub(crate) mod value;

use std::collections::BTreeMap;

use flags::{Flag, Status};
use value::Kind;

pub use help::{full_help, usage};

/// Whether an environment variable sets a flag.
pub(crate) fn is_variable(name: &str) -> bool {
    flags::all().any(|flag| flag.environment_variable() == name)
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Invocation {
    /// Print the help and exit with 0.
    Help,
    /// Print the versions and exit with 0.
    Version,
    /// Start a server.
    Run(RawConfig),
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    CommandLine,
    Environment,
    ConfigFile,
}

/// The values that were set, by the name of their flag.
#[derive(Clone, Debug, Default)]
pub struct RawConfig {
    values: BTreeMap<&'static str, (String, Source)>,
    /// Gates that were set by an older boolean flag.
    pub gates: Vec<(&'static str, bool)>,
    /// The configuration file; when there is one, it alone counts.
    pub config_file: Option<String>,
    /// What the user should know once there is a log.
    pub warnings: Vec<String>,
}

/// Why a command line cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CliError {
    /// Printed with the usage; exit code 2, as Go's `flag` does.
    #[error("{0}")]
    Usage(String),
    /// Logged as `failed to verify flags`; exit code 1.
    #[error("{0}")]
    Verify(String),
    /// Logged with the variable as a field of its own; exit code 1.
    #[error(
        "conflicting environment variable is shadowed by corresponding command-line flag \
         (either unset environment variable or disable flag))"
    )]
    Shadowed { variable: String },
}

/// Reads arguments (without the program's name) and the environment.
pub fn parse<A, E>(arguments: A, environment: E) -> Result<Invocation, CliError>
where
    A: IntoIterator<Item = String>,
    E: IntoIterator<Item = (String, String)>,
{
    let mut raw = RawConfig::default();
    let mut arguments = arguments.into_iter();
    let mut version = false;
    while let Some(argument) = arguments.next() {
        match read_flag(&argument, &mut arguments)? {
            Argument::Help => return Ok(Invocation::Help),
            Argument::End => match arguments.next() {
                Some(rest) => return Err(not_a_flag(&rest)),
                None => break,
            },
            Argument::Positional => return Err(not_a_flag(&argument)),
            Argument::Flag(flag, value) if flag.name == "version" => {
                version = value::parse_bool(&value).map_err(|e| CliError::Usage(e.0))?;
            }
            Argument::Flag(flag, value) => raw.set(flag, value, Source::CommandLine),
        }
    }
    if version {
        return Ok(Invocation::Version);
    }
    let environment: BTreeMap<String, String> =
        environment.into_iter().filter(|(name, _)| name.starts_with("ETCD_")).collect();
    let named_file = raw.text("config-file").to_owned();
    let file = match named_file.is_empty() {
        true => environment.get("ETCD_CONFIG_FILE").cloned().unwrap_or_default(),
        false => named_file,
    };
    if file.is_empty() {
        raw.read_environment(environment)?;
    } else {
        raw = RawConfig { config_file: Some(file), ..RawConfig::default() };
    }
    Ok(Invocation::Run(raw))
}

impl RawConfig {
    /// Remembers the value of a flag, under its present name.
    pub(crate) fn set(&mut self, flag: &'static Flag, value: String, source: Source) {
        match flag.status {
            Status::Legacy => {}
            Status::Gate(gate) => self.gates.push((gate, value::parse_bool(&value) == Ok(true))),
            Status::Alias(name) => {
                self.warnings.push(format!("--{} is an older name of --{name}", flag.name));
                self.values.insert(name, (value, source));
            }
            // etcd's lists of URLs stay as they are when they are set to nothing.
            _ if flag.kind == Kind::Urls && value.is_empty() => {
                self.values.entry(flag.name).or_insert((value, source));
            }
            _ => {
                self.values.insert(flag.name, (value, source));
            }
        }
    }

    /// Remembers a value from the configuration file, if the name is known and the value fits.
    pub fn set_from_file(&mut self, name: &str, value: String) -> Result<(), CliError> {
        let Some(flag) = flags::find(name) else {
            self.warnings.push(format!("unknown key {name:?} in the configuration file"));
            return Ok(());
        };
        let is_checked_later = match flag.kind {
            Kind::OneOf(_) | Kind::AllOf(_) | Kind::Origins => value.is_empty(),
            Kind::Gates => true,
            _ => false,
        };
        if !is_checked_later && flag.name != "initial-cluster-state" {
            flag.kind.check(&value).map_err(|error| {
                CliError::Verify(format!("invalid value {value:?} for {name}: {error}"))
            })?;
        }
        self.set(flag, value, Source::ConfigFile);
        Ok(())
    }

    /// The kind of a flag, so that the configuration file can be read by it.
    pub(crate) fn kind_of(name: &str) -> Option<Kind> {
        flags::find(name).map(|flag| flag.kind)
    }

    /// The text of a flag: what was set, or its default.
    pub fn text(&self, name: &str) -> &str {
        match self.values.get(name) {
            Some((value, _)) => value,
            None => flags::find(name).map_or("", |flag| flag.default),
        }
    }

    /// Whether a flag was set at all.
    pub fn is_set(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    /// Refuses what the server does not do, and says what has no effect.
    pub fn check_supported(&self) -> Result<Vec<String>, CliError> {
        let mut warnings = self.warnings.clone();
        for (name, (value, source)) in &self.values {
            let Some(flag) = flags::find(name).filter(|flag| !is_default(flag, value)) else {
                continue;
            };
            match flag.status {
                Status::Removed(why) if *source != Source::CommandLine => {
                    warnings.push(format!("--{name} has no effect: {why}"));
                }
                Status::RefusedUnlessDefault(why) | Status::Removed(why) => {
                    return Err(CliError::Verify(format!("--{name}={value}: {why}")));
                }
                Status::NoEffect(why) => {
                    warnings.push(format!("--{name} has no effect: {why}"));
                }
                _ => {}
            }
        }
        Ok(warnings)
    }

    /// etcd's `SetFlagsFromEnv`, with its refusal of a variable that a flag shadows.
    fn read_environment(&mut self, environment: BTreeMap<String, String>) -> Result<(), CliError> {
        let mut known = BTreeMap::new();
        for flag in flags::all() {
            known.insert(flag.environment_variable(), flag);
        }
        for (variable, value) in environment {
            let Some(flag) = known.get(&variable) else {
                if variable != "ETCD_UNSUPPORTED_ARCH" && variable != "ETCD_VERIFY" {
                    self.warnings.push(format!("unrecognized environment variable {variable}"));
                }
                continue;
            };
            if flag.name == "version" {
                self.warnings.push(format!("cannot set special environment variable {variable}"));
                continue;
            }
            if self.is_set(flag.name) {
                return Err(CliError::Shadowed { variable });
            }
            if value.is_empty() {
                continue;
            }
            flag.kind.check(&value).map_err(|error| {
                CliError::Verify(format!("invalid value {value:?} for {variable}: {error}"))
            })?;
            self.set(flag, value, Source::Environment);
        }
        Ok(())
    }
}

enum Argument {
    Help,
    End,
    Positional,
    Flag(&'static Flag, String),
}

/// Go's `FlagSet.parseOne`.
fn read_flag(
    argument: &str,
    rest: &mut impl Iterator<Item = String>,
) -> Result<Argument, CliError> {
    let Some(body) = argument.strip_prefix('-').filter(|body| !body.is_empty()) else {
        return Ok(Argument::Positional);
    };
    let body = match body.strip_prefix('-') {
        Some("") => return Ok(Argument::End),
        Some(body) => body,
        None => body,
    };
    if body.starts_with(['-', '=']) {
        return Err(CliError::Usage(format!("bad flag syntax: {argument}")));
    }
    let (name, value) = match body.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (body, None),
    };
    let Some(flag) = flags::find(name) else {
        if matches!(name, "help" | "h") {
            return Ok(Argument::Help);
        }
        return Err(CliError::Usage(format!("flag provided but not defined: -{name}")));
    };
    let is_switch = flag.kind == Kind::Bool || flag.status == Status::Legacy;
    let value = match value {
        Some(value) => value,
        None if is_switch => "true".to_owned(),
        None => match rest.next() {
            Some(value) => value,
            None => return Err(CliError::Usage(format!("flag needs an argument: -{name}"))),
        },
    };
    match flag.kind.check(&value) {
        Ok(()) => Ok(Argument::Flag(flag, value)),
        Err(error) if flag.kind == Kind::Bool => {
            Err(CliError::Usage(format!("invalid boolean value {value:?} for -{name}: {error}")))
        }
        Err(error) => {
            Err(CliError::Usage(format!("invalid value {value:?} for flag -{name}: {error}")))
        }
    }
}

fn not_a_flag(argument: &str) -> CliError {
    CliError::Verify(format!("{argument:?} is not a valid flag"))
}

/// Whether a value means what the default means.
fn is_default(flag: &Flag, value: &str) -> bool {
    if value == flag.default {
        return true;
    }
    match flag.kind {
        Kind::Bool => value::parse_bool(value) == value::parse_bool(flag.default),
        Kind::Duration => {
            let default = if flag.default.is_empty() { "0" } else { flag.default };
            value::parse_duration(value) == value::parse_duration(default)
        }
        Kind::Uint64 => value::parse_uint64(value) == value::parse_uint64(flag.default),
        Kind::Int64 => value::parse_int64(value) == value::parse_int64(flag.default),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
