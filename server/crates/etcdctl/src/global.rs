//! The flags that all commands share, the environment behind them, and the client made from them.

use std::env;
use std::io::Write as _;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use client::{Client, Config, Credentials, TlsOptions};
use cobra::{Exit, Flag, Kind, Matches, Outcome, WRITE_OUT, exit};
use tokio::time::Instant;

use crate::command::Invocation;
use crate::output::{Format, Printer};
use crate::words::{self, Word};
use crate::{go, log, terminal};

/// The flags, with Go etcdctl's names and defaults.
pub(crate) const FLAGS: [Flag; 21] = [
    Flag::new("endpoints", Kind::List, "127.0.0.1:2379", "servers to talk to"),
    Flag::new("debug", Kind::Bool, "false", "show the settings in use"),
    WRITE_OUT,
    Flag::new("hex", Kind::Bool, "false", "print bytes and ids as hexadecimal numbers"),
    Flag::new("dial-timeout", Kind::Duration, "2s", "how long fetching a token may take"),
    Flag::new("command-timeout", Kind::Duration, "5s", "how long a short command may take"),
    Flag::new("keepalive-time", Kind::Duration, "2s", "ping a silent server after this time"),
    Flag::new(
        "keepalive-timeout",
        Kind::Duration,
        "6s",
        "give up a server that leaves a ping unanswered",
    ),
    Flag::new("max-request-bytes", Kind::Integer, "0", "largest request (0 means 2 MiB)"),
    Flag::new("max-recv-bytes", Kind::Integer, "0", "largest response (0 means 2 GiB)"),
    Flag::new("insecure-transport", Kind::Bool, "true", "talk without TLS unless it is asked for"),
    Flag::new("insecure-discovery", Kind::Bool, "true", "accept insecure servers found by DNS"),
    Flag::new(
        "insecure-skip-tls-verify",
        Kind::Bool,
        "false",
        "accept any server certificate; only for tests",
    ),
    Flag::new("cert", Kind::Text, "", "file with the client certificate"),
    Flag::new("key", Kind::Text, "", "file with the client certificate's private key"),
    Flag::new(
        "cacert",
        Kind::Text,
        "",
        "file with the authorities that server certificates must come from",
    ),
    Flag::new(
        "auth-jwt-token",
        Kind::Text,
        "",
        "token to authenticate with, instead of --user and --password",
    ),
    Flag::new("user", Kind::Text, "", "user, or user:password; asks for a missing password"),
    Flag::new("password", Kind::Text, "", "password of --user, which then is the name alone"),
    Flag::new("discovery-srv", Kind::Text, "", "domain whose SRV records name the servers")
        .short('d'),
    Flag::new("discovery-srv-name", Kind::Text, "", "service name to ask for in SRV records"),
];

const ENVIRONMENT: &str = "ETCDCTL_";

/// The settings of one run.
pub(crate) struct Session {
    /// Prints the answers.
    pub(crate) printer: Printer,
    config: Config,
    matches: Matches,
}

impl Session {
    /// Reads the environment and checks the shared flags.
    pub(crate) fn new(invocation: &Invocation) -> Outcome<Session> {
        Session::with_variables(invocation, &[])
    }

    /// As [`Session::new`], for a command that reads variables of its own.
    pub(crate) fn with_variables(invocation: &Invocation, own: &[&str]) -> Outcome<Session> {
        let mut matches = invocation.matches.clone();
        apply_environment(&mut matches, &invocation.inherited, own)?;
        if matches.is_true("debug") {
            show_settings(&matches, &invocation.inherited);
        }
        let config = config(&matches)?;
        let Some(format) = Format::parse(matches.text("write-out")) else {
            return Err(Exit::with(exit::BAD_FEATURE, "unsupported output format"));
        };
        let printer = Printer { format, hex: matches.is_true("hex"), value_only: false };
        Ok(Session { printer, config, matches })
    }

    /// The flags with the environment applied.
    pub(crate) fn matches(&self) -> &Matches {
        &self.matches
    }

    /// The servers, one by one.
    pub(crate) fn endpoints(&self) -> Vec<String> {
        self.config.endpoints.clone()
    }

    /// A client of all endpoints.
    pub(crate) async fn client(&self) -> Outcome<Client> {
        connect(self.config.clone()).await
    }

    /// A client of all endpoints whose calls end in time.
    pub(crate) async fn timed_client(&self) -> Outcome<Client> {
        let deadline = self.deadline();
        Ok(self.client().await?.until(deadline))
    }

    /// A client of one endpoint.
    pub(crate) async fn client_of(&self, endpoint: &str) -> Outcome<Client> {
        connect(self.config_of(endpoint)).await
    }

    /// The settings for one endpoint.
    pub(crate) fn config_of(&self, endpoint: &str) -> Config {
        Config { endpoints: vec![endpoint.to_owned()], ..self.config.clone() }
    }

    /// When a command that starts now has to end.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.matches.duration("command-timeout")
    }
}

/// Makes a client; what is wrong with it decides the exit code.
pub(crate) async fn connect(config: Config) -> Outcome<Client> {
    Client::connect(config).await.map_err(|error| match error {
        client::Error::File { .. } | client::Error::Tls(_) => Exit::bad_arguments(error),
        error => Exit::with(exit::BAD_CONNECTION, error),
    })
}

/// The variable of a flag.
fn variable(flag: &str) -> String {
    format!("{ENVIRONMENT}{}", flag.to_uppercase().replace('-', "_"))
}

/// Sets flags from the environment (pkg/flags/flag.go). A flag on the command line conflicts with
/// its variable, which ends the run; a variable without a flag is told.
fn apply_environment(matches: &mut Matches, inherited: &[Flag], own: &[&str]) -> Outcome {
    let given: Vec<String> = inherited
        .iter()
        .filter(|flag| matches.is_set(flag.name))
        .map(|flag| variable(flag.name))
        .collect();
    for (name, value) in env::vars_os() {
        let Some(name) = name.to_str() else { continue };
        let value = Word::from(value.into_vec());
        if given.iter().any(|given| given == name) {
            let message = "conflicting environment variable is shadowed by corresponding \
                           command-line flag (either unset environment variable or disable flag))";
            log::line("fatal", message, &[("environment-variable", name)]);
            return Err(Exit::silent(exit::ERROR));
        }
        if !name.starts_with(ENVIRONMENT) || (own.contains(&name) && !value.is_empty()) {
            continue;
        }
        match inherited.iter().find(|flag| variable(flag.name) == name) {
            Some(flag) if !value.is_empty() => matches.set_from_environment(flag.name, value),
            _ => {
                let variable = format!("{name}={}", words::shown(&value));
                let fields = [("environment-variable", variable.as_str())];
                log::line("warn", "unrecognized environment variable", &fields);
            }
        }
    }
    Ok(())
}

fn show_settings(matches: &Matches, inherited: &[Flag]) {
    let mut flags: Vec<&Flag> = inherited.iter().collect();
    flags.sort_by_key(|flag| flag.name);
    for flag in flags {
        let value = match flag.kind {
            Kind::List => format!("[{}]", matches.text(flag.name)),
            Kind::Duration => go::duration(matches.duration(flag.name)),
            Kind::Bool => matches.is_true(flag.name).to_string(),
            Kind::Integer | Kind::Unsigned => matches.integer(flag.name).to_string(),
            Kind::Text => matches.text(flag.name).to_owned(),
        };
        let _ = writeln!(std::io::stderr(), "{}={value}", variable(flag.name));
    }
}

fn config(matches: &Matches) -> Outcome<Config> {
    let limit = |name| usize::try_from(matches.integer(name)).ok().filter(|&limit| limit > 0);
    Ok(Config {
        endpoints: endpoints(matches)?,
        dial_timeout: Some(matches.duration("dial-timeout")).filter(|timeout| !timeout.is_zero()),
        keepalive_time: Some(matches.duration("keepalive-time")).filter(|time| !time.is_zero()),
        keepalive_timeout: Some(matches.duration("keepalive-timeout")),
        keepalive_without_calls: false,
        tls: tls(matches)?,
        credentials: credentials(matches)?,
        max_request_bytes: limit("max-request-bytes"),
        max_response_bytes: limit("max-recv-bytes"),
    })
}

/// The servers: those that DNS names for `--discovery-srv`, or else `--endpoints`.
fn endpoints(matches: &Matches) -> Outcome<Vec<String>> {
    let domain = matches.text("discovery-srv");
    let mut found = Vec::new();
    if !domain.is_empty() {
        let service_name = matches.text("discovery-srv-name");
        found = client::discover_endpoints(domain, service_name)
            .map_err(|error| Exit::with(exit::ERROR, error))?;
        if !matches.is_true("insecure-discovery") {
            found.retain(|endpoint| {
                let secure = !endpoint.starts_with("http://");
                if !secure {
                    let endpoint = go::quote(endpoint.as_bytes());
                    let text = format!("ignoring discovered insecure endpoint {endpoint}\n");
                    let _ = std::io::stderr().write_all(text.as_bytes());
                }
                secure
            });
        }
    }
    if found.is_empty() {
        let given = matches.list("endpoints");
        found = given.iter().map(|endpoint| endpoint.trim().to_owned()).collect();
    }
    Ok(found)
}

fn tls(matches: &Matches) -> Outcome<Option<TlsOptions>> {
    let file = |name: &str| -> Outcome<Option<PathBuf>> {
        match matches.text(name) {
            "" if matches.is_set(name) => {
                Err(Exit::bad_arguments(format!("empty string is passed to --{name} option")))
            }
            "" => Ok(None),
            _ => Ok(Some(words::path(&matches.word(name)))),
        }
    };
    let options = TlsOptions {
        certificate_file: file("cert")?,
        key_file: file("key")?,
        ca_file: file("cacert")?,
        // Who does not trust what DNS says only talks to servers of the domain.
        server_name: Some(matches.text("discovery-srv"))
            .filter(|domain| !domain.is_empty() && !matches.is_true("insecure-discovery"))
            .map(str::to_owned),
        insecure_skip_verify: matches.is_true("insecure-skip-tls-verify"),
        refused: None,
    };
    let wanted = options.certificate_file.is_some()
        || options.key_file.is_some()
        || options.ca_file.is_some()
        || options.insecure_skip_verify
        || !matches.is_true("insecure-transport");
    Ok(wanted.then_some(options))
}

fn credentials(matches: &Matches) -> Outcome<Option<Credentials>> {
    let token = matches.word("auth-jwt-token");
    if !token.is_empty() {
        return Ok(Some(Credentials::Token(credential(&token)?)));
    }
    password_credentials(&matches.word("user"), &matches.word("password"), "Password: ")
}

/// Name and password; the password can be part of the user, and is asked for if it is nowhere.
fn password_credentials(
    user: &[u8],
    password: &[u8],
    prompt: &str,
) -> Outcome<Option<Credentials>> {
    if user.is_empty() {
        return Ok(None);
    }
    let (user, password) = (credential(user)?, credential(password)?);
    let ask = || terminal::ask_password(prompt).map_err(|error| Exit::with(exit::ERROR, error));
    let (username, password) = match (password.as_str(), user.split_once(':')) {
        ("", Some((username, password))) => (username.to_owned(), password.to_owned()),
        ("", None) => (user, ask()?),
        _ => (user, password),
    };
    Ok(Some(Credentials::Password { username, password }))
}

/// A part of the credentials, which are sent as text.
fn credential(word: &[u8]) -> Outcome<String> {
    words::text(word).map_err(|exit| Exit { code: exit::BAD_CONNECTION, ..exit })
}

/// The settings for the destination of a mirror: its own flags for who and how, ours for the rest.
pub(crate) fn destination(session: &Session, endpoint: &[u8]) -> Outcome<Config> {
    let matches = session.matches();
    let file = |name: &str| {
        let name = Some(matches.word(name)).filter(|name| !name.is_empty());
        name.map(|name| words::path(&name))
    };
    let options = TlsOptions {
        certificate_file: file("dest-cert"),
        key_file: file("dest-key"),
        ca_file: file("dest-cacert"),
        ..TlsOptions::default()
    };
    let wanted = options.certificate_file.is_some()
        || options.key_file.is_some()
        || options.ca_file.is_some()
        || !matches.is_true("dest-insecure-transport");
    let (user, password) = (matches.word("dest-user"), matches.word("dest-password"));
    Ok(Config {
        tls: wanted.then_some(options),
        credentials: password_credentials(&user, &password, "Destination Password: ")?,
        ..session.config_of(&words::shown(endpoint))
    })
}
