//! `--auth-token`: `simple`, nothing, or `jwt,sign-method=RS256,priv-key=path,pub-key=path,ttl=5m`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::key::{Key, Method};
use super::{Jwt, JwtError};
use crate::auth::{TokenKind, simple};
use crate::cli::value::parse_duration;

const LIFETIME_DEFAULT: Duration = Duration::from_secs(300);
const KNOWN: [&str; 4] = ["sign-method", "pub-key", "priv-key", "ttl"];

/// Reads the flag and the files it names. `seconds` is `--auth-token-ttl`, which simple tokens obey;
/// `warn` hears of options that nobody knows.
pub(crate) fn parse_kind(
    text: &str,
    seconds: u64,
    warn: &mut dyn FnMut(String),
) -> Result<TokenKind, JwtError> {
    let (kind, options) = split(text)?;
    match kind {
        "simple" => Ok(TokenKind::Simple(match seconds {
            0 => simple::LIFETIME_DEFAULT,
            _ => Duration::from_secs(seconds),
        })),
        "jwt" => {
            for name in options.keys().filter(|name| !KNOWN.contains(name)) {
                warn(format!("unknown JWT option {name:?} of --auth-token"));
            }
            Ok(TokenKind::Jwt(Arc::new(Jwt::new(&options)?)))
        }
        "" => Ok(TokenKind::None),
        other => {
            Err(JwtError::Options(format!("unknown token type {other:?} (simple, jwt or empty)")))
        }
    }
}

fn split(text: &str) -> Result<(&str, BTreeMap<&str, &str>), JwtError> {
    let mut parts = text.split(',');
    let kind = parts.next().unwrap_or_default();
    let mut options = BTreeMap::new();
    for part in parts {
        let pair = part.split_once('=').filter(|(_, value)| !value.contains('='));
        let (name, value) = pair
            .ok_or_else(|| JwtError::Options(format!("{part:?} is not of the form name=value")))?;
        if options.insert(name, value).is_some() {
            return Err(JwtError::Options(format!("{name} is given twice")));
        }
    }
    Ok((kind, options))
}

impl Jwt {
    fn new(options: &BTreeMap<&str, &str>) -> Result<Self, JwtError> {
        let option = |name: &str| options.get(name).copied().filter(|value| !value.is_empty());
        let lifetime = match option("ttl") {
            None => LIFETIME_DEFAULT,
            Some(text) => parse_duration(text)
                .ok()
                .and_then(|nanoseconds| u64::try_from(nanoseconds).ok())
                .map(Duration::from_nanos)
                .ok_or_else(|| JwtError::Options(format!("ttl {text:?} is not a duration")))?,
        };
        let name = option("sign-method").unwrap_or_default();
        let method = Method::named(name).ok_or_else(|| JwtError::Method(name.to_owned()))?;
        let file =
            |name: &str| option(name).map(|path| read(path).map(|bytes| (path, bytes))).transpose();
        let (public, private) = (file("pub-key")?, file("priv-key")?);
        Ok(Self { key: Key::new(method, public, private)?, lifetime })
    }
}

fn read(path: &str) -> Result<Vec<u8>, JwtError> {
    std::fs::read(path)
        .map_err(|error| JwtError::Key { path: path.to_owned(), detail: error.to_string() })
}
