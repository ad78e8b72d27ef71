//! How a member finds the first members of its cluster when `--initial-cluster` does not name them.

use std::time::Duration;

use client::{Credentials, TlsOptions};

use crate::cli::RawConfig;

use super::values::Values;
use super::{ConfigError, refuse};

/// Where the first members are written.
#[derive(Clone, Debug)]
pub enum Discovery {
    /// In the SRV records of a domain (`--discovery-srv`).
    Dns {
        domain: String,
        /// Follows the name of the service that is asked for.
        service_name: String,
    },
    /// In another etcd cluster, where every member writes itself (`--discovery-endpoints`).
    Registry(Box<Registry>),
}

/// An etcd cluster through which members find each other.
#[derive(Clone, Debug)]
pub struct Registry {
    /// Under which name; it becomes the token of the cluster too.
    pub token: String,
    pub client: client::Config,
    /// How long one request may take.
    pub request_timeout: Duration,
}

impl Discovery {
    /// What the flags ask for, checked with etcd's rules; nothing if the members are named.
    pub(super) fn of(values: &Values<'_>, raw: &RawConfig) -> Result<Option<Self>, ConfigError> {
        if values.text("discovery-fallback") == "proxy" {
            return refuse(
                "v2 proxy is deprecated, and --discovery-fallback can't be configured as \"proxy\"",
            );
        }
        let domain = values.text("discovery-srv");
        let endpoints = values.texts("discovery-endpoints");
        let token = values.text("discovery-token");
        let named = raw.is_set("initial-cluster") && !raw.text("initial-cluster").is_empty();
        // On the command line a flag without endpoints counts as well.
        let registry = !endpoints.is_empty() || raw.is_set("discovery-endpoints");
        let ways = [named, !domain.is_empty(), registry];
        if ways.into_iter().filter(|is_set| *is_set).count() > 1 {
            return refuse(
                "multiple discovery or bootstrap flags are set. Choose one of \"initial-cluster\", \
                 \"discovery-endpoints\" or \"discovery-srv\"",
            );
        }
        if token.is_empty() != endpoints.is_empty() {
            return refuse("both --discovery-token and --discovery-endpoints must be set");
        }
        if endpoints.iter().any(|endpoint| endpoint.trim().is_empty()) {
            return refuse("--discovery-endpoints must not contain empty endpoints");
        }
        if !domain.is_empty() {
            let service_name = values.text("discovery-srv-name");
            return Ok(Some(Discovery::Dns { domain, service_name }));
        }
        if endpoints.is_empty() {
            return Ok(None);
        }
        Ok(Some(Discovery::Registry(Box::new(Registry {
            token,
            client: client_of(values, endpoints)?,
            request_timeout: values.duration("discovery-request-timeout")?.unwrap_or_default(),
        }))))
    }
}

/// How to talk to the other cluster; as in etcd's client, TLS follows from any of its files too.
fn client_of(values: &Values<'_>, endpoints: Vec<String>) -> Result<client::Config, ConfigError> {
    let file = |name: &str| Some(values.text(name)).filter(|name| !name.is_empty());
    let files = ["discovery-cacert", "discovery-cert", "discovery-key"].map(file);
    let insecure_skip_verify = values.boolean("discovery-insecure-skip-tls-verify")?;
    let is_secure = files.iter().any(Option::is_some)
        || insecure_skip_verify
        || !values.boolean("discovery-insecure-transport")?;
    let [ca_file, certificate_file, key_file] = files.map(|name| name.map(Into::into));
    if certificate_file.is_some() != key_file.is_some() {
        return refuse("--discovery-cert and --discovery-key must both be set, or neither");
    }
    let tls = TlsOptions {
        ca_file,
        certificate_file,
        key_file,
        insecure_skip_verify,
        ..TlsOptions::default()
    };
    Ok(client::Config {
        endpoints,
        dial_timeout: values.duration("discovery-dial-timeout")?,
        keepalive_time: values.duration("discovery-keepalive-time")?,
        keepalive_timeout: values.duration("discovery-keepalive-timeout")?,
        tls: is_secure.then_some(tls),
        credentials: credentials_of(values)?,
        ..client::Config::default()
    })
}

/// `--discovery-user` may have the password behind a colon.
fn credentials_of(values: &Values<'_>) -> Result<Option<Credentials>, ConfigError> {
    let (user, password) = (values.text("discovery-user"), values.text("discovery-password"));
    let (username, password) = match user.split_once(':') {
        _ if user.is_empty() => return Ok(None),
        Some((username, password)) => (username.to_owned(), password.to_owned()),
        None => (user, password),
    };
    if password.is_empty() {
        // A server has no terminal to ask at.
        return refuse("--discovery-user needs a password: give --discovery-password");
    }
    Ok(Some(Credentials::Password { username, password }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Invocation, parse};
    use crate::config::Config;

    fn config(arguments: &[&str]) -> Result<Config, ConfigError> {
        match parse(arguments.iter().map(|text| (*text).to_owned()), []) {
            Ok(Invocation::Run(raw)) => Config::load(raw),
            other => panic!("{arguments:?}: {other:?}"),
        }
    }

    /// The texts are those that etcd 3.7.3 logs for the same command lines.
    #[test]
    fn contradictions_are_refused_in_the_words_of_etcd() {
        let conflict = "multiple discovery or bootstrap flags are set. Choose one of \
                        \"initial-cluster\", \"discovery-endpoints\" or \"discovery-srv\"";
        let together = "both --discovery-token and --discovery-endpoints must be set";
        let cases = [
            (&["--discovery-srv=a", "--initial-cluster=a=http://b:1"][..], conflict),
            (&["--discovery-srv=a", "--discovery-endpoints=a:1", "--discovery-token=t"], conflict),
            (&["--discovery-token=t"], together),
            (&["--discovery-endpoints=a:1"], together),
            (
                &["--discovery-token=t", "--discovery-endpoints=a:1,,b:1"],
                "--discovery-endpoints must not contain empty endpoints",
            ),
        ];
        for (arguments, text) in cases {
            assert_eq!(config(arguments).unwrap_err().0, text, "{arguments:?}");
        }
    }

    #[test]
    fn the_flags_say_how_to_talk_to_the_registry() {
        let found = config(&[
            "--name=a",
            "--discovery-token=t",
            "--discovery-endpoints=a:1,b:1",
            "--discovery-cacert=/ca",
            "--discovery-user=root:secret",
        ])
        .unwrap()
        .cluster;
        assert_eq!(found.token, "t");
        assert_eq!(found.initial.to_string(), "a=http://localhost:2380");
        let Some(Discovery::Registry(registry)) = found.discovery else { panic!("no registry") };
        assert_eq!(registry.request_timeout, Duration::from_secs(5));
        assert_eq!(registry.client.endpoints, ["a:1", "b:1"]);
        assert_eq!(registry.client.dial_timeout, Some(Duration::from_secs(2)));
        assert!(registry.client.tls.as_ref().is_some_and(|tls| tls.ca_file.is_some()));
        assert!(matches!(
            registry.client.credentials,
            Some(Credentials::Password { username, password })
                if username == "root" && password == "secret"
        ));
        assert!(config(&["--name=a"]).unwrap().cluster.discovery.is_none());
    }
}
