//! The configuration file: YAML, of which JSON is a part. Its keys are the names of the flags,
//! except for three nested sections; durations are whole numbers of nanoseconds (Go's own limit,
//! which deployments have written into their files). This is the only place that reads YAML.

use serde_yaml::{Mapping, Value};

use crate::cli::RawConfig;
use crate::cli::value::Kind;

use super::{ConfigError, refuse};

/// Keys that are flags under another name or inside a section, as (section, key, flag).
const NESTED: &[(&str, &str, &str)] = &[
    ("client-transport-security", "cert-file", "cert-file"),
    ("client-transport-security", "key-file", "key-file"),
    ("client-transport-security", "client-cert-file", "client-cert-file"),
    ("client-transport-security", "client-key-file", "client-key-file"),
    ("client-transport-security", "client-cert-auth", "client-cert-auth"),
    ("client-transport-security", "trusted-ca-file", "trusted-ca-file"),
    ("client-transport-security", "auto-tls", "auto-tls"),
    ("client-transport-security", "allowed-hostname", "client-cert-allowed-hostname"),
    ("peer-transport-security", "cert-file", "peer-cert-file"),
    ("peer-transport-security", "key-file", "peer-key-file"),
    ("peer-transport-security", "client-cert-file", "peer-client-cert-file"),
    ("peer-transport-security", "client-key-file", "peer-client-key-file"),
    ("peer-transport-security", "client-cert-auth", "peer-client-cert-auth"),
    ("peer-transport-security", "trusted-ca-file", "peer-trusted-ca-file"),
    ("peer-transport-security", "auto-tls", "peer-auto-tls"),
    ("peer-transport-security", "allowed-cn", "peer-cert-allowed-cn"),
    ("peer-transport-security", "allowed-hostname", "peer-cert-allowed-hostname"),
    (
        "peer-transport-security",
        "skip-client-san-verification",
        "peer-skip-client-san-verification",
    ),
    ("socket-options", "reuse-port", "socket-reuse-port"),
    ("socket-options", "reuse-address", "socket-reuse-address"),
    ("discovery-config", "token", "discovery-token"),
    ("discovery-config.client", "endpoints", "discovery-endpoints"),
    ("discovery-config.client", "dial-timeout", "discovery-dial-timeout"),
    ("discovery-config.client", "request-timeout", "discovery-request-timeout"),
    ("discovery-config.client", "keepalive-time", "discovery-keepalive-time"),
    ("discovery-config.client", "keepalive-timeout", "discovery-keepalive-timeout"),
    ("discovery-config.client.secure", "cert", "discovery-cert"),
    ("discovery-config.client.secure", "key", "discovery-key"),
    ("discovery-config.client.secure", "cacert", "discovery-cacert"),
    ("discovery-config.client.secure", "insecure-transport", "discovery-insecure-transport"),
    (
        "discovery-config.client.secure",
        "insecure-skip-tls-verify",
        "discovery-insecure-skip-tls-verify",
    ),
    ("discovery-config.client.auth", "username", "discovery-user"),
    ("discovery-config.client.auth", "password", "discovery-password"),
];

/// Flags that etcd reads only inside a section; at the top level it does not know them.
fn stands_at_top_level(name: &str) -> bool {
    !NESTED.iter().any(|(_, _, flag)| *flag == name)
}

/// Reads the file at `path`.
pub(super) fn read(path: &str) -> Result<RawConfig, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| ConfigError(format!("open {path}: {}", client::io_reason(&error))))?;
    let mut raw = parse(&text)?;
    raw.config_file = Some(path.to_owned());
    Ok(raw)
}

pub(super) fn parse(text: &str) -> Result<RawConfig, ConfigError> {
    let document: Value = serde_yaml::from_str(text)
        .map_err(|error| ConfigError(format!("cannot parse the configuration file: {error}")))?;
    let mut raw = RawConfig::default();
    let mapping = match document {
        Value::Null => return Ok(raw),
        Value::Mapping(mapping) => mapping,
        _ => return refuse("the configuration file must be a mapping of flag names to values"),
    };
    for (key, value) in &mapping {
        let Some(key) = key.as_str() else {
            return refuse("every key of the configuration file must be a text");
        };
        match value {
            Value::Null => {}
            Value::Mapping(section) => read_section(&mut raw, key, section)?,
            _ if key.ends_with("-transport-security") => {
                return refuse(format!("invalid {key}"));
            }
            value if stands_at_top_level(key) => set(&mut raw, key, key, value)?,
            _ => raw.warnings.push(format!("unknown key {key:?} in the configuration file")),
        }
    }
    Ok(raw)
}

fn read_section(raw: &mut RawConfig, section: &str, keys: &Mapping) -> Result<(), ConfigError> {
    for (key, value) in keys {
        let key = key.as_str().unwrap_or_default();
        let name = format!("{section}.{key}");
        match (NESTED.iter().find(|(of, nested, _)| *of == section && *nested == key), value) {
            (Some((_, _, flag)), _) => set(raw, &name, flag, value)?,
            (None, Value::Mapping(keys)) if section.starts_with("discovery-config") => {
                read_section(raw, &name, keys)?;
            }
            (None, _) => {
                raw.warnings.push(format!("unknown key {name:?} in the configuration file"))
            }
        }
    }
    Ok(())
}

fn set(raw: &mut RawConfig, key: &str, flag: &str, value: &Value) -> Result<(), ConfigError> {
    let kind = RawConfig::kind_of(flag);
    let text = match (value, kind) {
        (Value::Null, _) => return Ok(()),
        (Value::Bool(value), Some(Kind::Bool) | None) => value.to_string(),
        (Value::Number(value), Some(Kind::Duration)) if value.is_i64() || value.is_u64() => {
            format!("{value}ns")
        }
        (Value::Number(value), Some(Kind::Uint64 | Kind::Uint32 | Kind::Int64) | None) => {
            value.to_string()
        }
        (Value::String(_), Some(Kind::Duration)) => {
            return refuse(format!(
                "{key} must be a whole number of nanoseconds in the configuration file, such as 600000000000 for 10m"
            ));
        }
        (
            Value::String(value),
            Some(
                Kind::Text
                | Kind::Urls
                | Kind::Texts
                | Kind::Origins
                | Kind::OneOf(_)
                | Kind::AllOf(_)
                | Kind::Gates
                | Kind::HexId,
            )
            | None,
        ) => value.clone(),
        (Value::Sequence(values), Some(Kind::Texts) | None) => {
            let texts: Option<Vec<&str>> = values.iter().map(Value::as_str).collect();
            match texts {
                Some(texts) => texts.join(","),
                None => return refuse(format!("{key} must be a list of texts")),
            }
        }
        _ => {
            return refuse(format!(
                "the value of {key} in the configuration file has the wrong type"
            ));
        }
    };
    raw.set_from_file(flag, text).map_err(ConfigError::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn a_file_as_deployments_write_it_is_read() {
        let mut raw = parse(
            "name: m1\ndata-dir: /d\nlisten-client-urls: http://10.0.0.1:2379\n\
             quota-backend-bytes: 8589934592\nwatch-progress-notify-interval: 5000000000\n\
             initial-cluster: m1=https://10.0.0.1:2380\npre-vote: true\nlog-outputs: [stdout]\n\
             client-transport-security:\n  cert-file: /c\n  key-file: /k\n  client-cert-auth: true\n  trusted-ca-file: /ca\n\
             peer-transport-security:\n  allowed-cn: [a, b]\nsome-new-key: 3\n",
        )
        .unwrap();
        raw.config_file = Some("etcd.yaml".to_owned());
        let config = Config::from_raw(raw).unwrap();
        assert_eq!(config.name, "m1");
        assert_eq!(config.limits.quota_bytes, Some(8_589_934_592));
        assert_eq!(config.watch_progress_interval.as_secs(), 5);
        assert!(config.listen.client_tls.client_cert_auth);
        assert_eq!(config.listen.client_tls.trusted_ca_file, "/ca");
        assert_eq!(config.listen.peer_tls.allowed_cns, ["a", "b"]);
        assert!(config.warnings.iter().any(|warning| warning.contains("some-new-key")));
    }

    #[test]
    fn discovery_has_sections_in_its_section() {
        let raw = parse(
            "name: a\ndiscovery-config:\n  token: t\n  client:\n    endpoints: [a:1, b:1]\n    \
             request-timeout: 3000000000\n    secure:\n      cacert: /ca\n      other: 1\n",
        )
        .unwrap();
        assert!(raw.warnings.iter().any(|warning| warning.contains("client.secure.other")));
        let cluster = Config::from_raw(raw).unwrap().cluster;
        let Some(crate::config::Discovery::Registry(registry)) = cluster.discovery else {
            panic!("no registry")
        };
        assert_eq!(registry.client.endpoints, ["a:1", "b:1"]);
        assert_eq!(registry.request_timeout.as_secs(), 3);
        assert!(registry.client.tls.is_some_and(|tls| tls.ca_file.is_some()));
    }

    #[test]
    fn json_is_read_as_well() {
        let raw = parse(r#"{"name": "m1", "heartbeat-interval": 200}"#).unwrap();
        assert_eq!((raw.text("name"), raw.text("heartbeat-interval")), ("m1", "200"));
    }

    #[test]
    fn values_of_the_wrong_type_are_refused() {
        for text in [
            "watch-progress-notify-interval: 5s",
            "name: 3",
            "pre-vote: maybe",
            "listen-peer-urls: foo",
            "client-transport-security: 3",
            "- a",
            "a: [",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
