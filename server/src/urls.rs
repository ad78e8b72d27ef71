//! URLs of members, as etcd checks and prints them (`client/pkg/types/urls.go`): a scheme, and
//! `host:port` or the path of a socket. Nothing else is allowed, so nothing else is kept.
//!
//! The printed form is part of the member ids, so it must be what Go prints.

mod same;

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

pub use same::Hosts;

/// How to reach or where to listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scheme {
    Http,
    Https,
    Unix,
    Unixs,
}

impl Scheme {
    fn text(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
            Scheme::Unix => "unix",
            Scheme::Unixs => "unixs",
        }
    }

    /// Whether connections carry TLS.
    pub fn is_secure(self) -> bool {
        matches!(self, Scheme::Https | Scheme::Unixs)
    }

    /// Whether the address is the path of a socket.
    pub fn is_unix(self) -> bool {
        matches!(self, Scheme::Unix | Scheme::Unixs)
    }
}

/// One URL of a member. The order is that of the printed text, as etcd sorts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    scheme: Scheme,
    /// `host:port`, or what stands between the slashes of a socket's URL.
    authority: String,
    /// The path of a socket; empty for TCP.
    path: String,
    text: String,
}

/// Why a text is not a URL that etcd takes, in etcd's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    #[error("URL scheme must be http, https, unix, or unixs: {0}")]
    Scheme(String),
    #[error("URL address does not have the form \"host:port\": {0}")]
    Address(String),
    #[error("URL must not contain a path: {0}")]
    Path(String),
    #[error("URL must not contain a user, a query or a fragment: {0}")]
    Extra(String),
}

impl FromStr for Url {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let unknown_scheme = || UrlError::Scheme(text.to_owned());
        let (scheme, rest) = text.split_once(':').ok_or_else(unknown_scheme)?;
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            "unix" => Scheme::Unix,
            "unixs" => Scheme::Unixs,
            _ => return Err(unknown_scheme()),
        };
        if rest.contains(['?', '#', '@']) {
            return Err(UrlError::Extra(text.to_owned()));
        }
        if scheme.is_unix() {
            let (authority, path) = match rest.strip_prefix("//") {
                Some(rest) => rest.split_at(rest.find('/').unwrap_or(rest.len())),
                None => ("", rest),
            };
            let text = format!("{}:{rest}", scheme.text());
            return Ok(Self { scheme, authority: authority.into(), path: path.into(), text });
        }
        let address = || UrlError::Address(text.to_owned());
        let rest = rest.strip_prefix("//").ok_or_else(address)?;
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        split_host_port(authority).ok_or_else(address)?;
        if !path.is_empty() {
            return Err(UrlError::Path(text.to_owned()));
        }
        let text = format!("{}://{authority}", scheme.text());
        Ok(Self { scheme, authority: authority.to_owned(), path: String::new(), text })
    }
}

impl Url {
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The host without brackets; empty for `:port`.
    pub fn host(&self) -> &str {
        split_host_port(&self.authority).map_or("", |(host, _)| host)
    }

    /// The port as it is written.
    pub fn port(&self) -> &str {
        split_host_port(&self.authority).map_or("", |(_, port)| port)
    }

    /// Host and port as they are written.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The path of a socket as etcd opens it: host and path together (`client/pkg/transport`).
    pub fn socket_path(&self) -> String {
        format!("{}{}", self.authority, self.path)
    }

    /// The printed form.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The same URL on another host.
    pub fn with_host(&self, host: &str, port: &str) -> Self {
        let authority =
            if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let text = format!("{}://{authority}", self.scheme.text());
        Self { scheme: self.scheme, authority, path: String::new(), text }
    }

    /// etcd's `checkBindURLs`: a name cannot be bound, except `localhost`.
    pub fn check_bind(&self) -> Result<(), String> {
        if self.scheme.is_unix() || self.host() == "localhost" {
            return Ok(());
        }
        match self.host().parse::<IpAddr>() {
            Ok(_) => Ok(()),
            Err(_) => Err(format!("expected IP in URL for binding ({self})")),
        }
    }

    /// etcd's `checkHostURLs`: an advertised URL must name a host.
    pub fn check_advertise(&self) -> Result<(), String> {
        if !self.scheme.is_unix() && self.host().is_empty() {
            return Err(format!("unexpected empty host ({self})"));
        }
        Ok(())
    }
}

impl PartialOrd for Url {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Url {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.text.cmp(&other.text)
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The URLs as texts.
pub fn texts(urls: &[Url]) -> Vec<String> {
    urls.iter().map(Url::to_string).collect()
}

/// The URLs as one text.
pub fn joined(urls: &[Url]) -> String {
    texts(urls).join(",")
}

/// Go's `net.SplitHostPort`.
fn split_host_port(authority: &str) -> Option<(&str, &str)> {
    let (host, port) = authority.rsplit_once(':')?;
    let host = match host.strip_prefix('[') {
        Some(inner) => inner.strip_suffix(']')?,
        None if host.contains(':') => return None,
        None => host,
    };
    port.bytes().all(|byte| byte.is_ascii_digit()).then_some((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_checked_as_etcd_checks_them() {
        for good in [
            "http://localhost:2379",
            "https://10.0.0.1:2379",
            "http://[::1]:2379",
            "unix:///tmp/x",
            "unixs:x",
        ] {
            assert_eq!(good.parse::<Url>().unwrap().to_string(), good);
        }
        let bad = [
            ("foo", "URL scheme must be http, https, unix, or unixs: foo"),
            ("ftp://a:1", "URL scheme must be http, https, unix, or unixs: ftp://a:1"),
            ("http://a", "URL address does not have the form \"host:port\": http://a"),
            ("http://a:1/p", "URL must not contain a path: http://a:1/p"),
            (
                "http://::1:2379",
                "URL address does not have the form \"host:port\": http://::1:2379",
            ),
        ];
        for (text, error) in bad {
            assert_eq!(text.parse::<Url>().unwrap_err().to_string(), error);
        }
    }

    #[test]
    fn only_addresses_and_localhost_can_be_bound() {
        let url = |text: &str| text.parse::<Url>().unwrap();
        assert!(url("http://localhost:1").check_bind().is_ok());
        assert!(url("http://[::]:1").check_bind().is_ok());
        assert_eq!(
            url("http://example.com:1").check_bind().unwrap_err(),
            "expected IP in URL for binding (http://example.com:1)"
        );
        assert!(url("http://:1").check_advertise().is_err());
    }
}
