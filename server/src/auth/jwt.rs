//! JSON web tokens: signed by one key that is configured on every member, so no member remembers any.
//!
//! A token names the user, the auth revision at which it was given, and when it ends. After any change
//! of users or roles the revision is old and clients log in again.
//!
//! Invariant: the algorithm is the configured one. What a token's header names is compared with it and
//! never chosen by, so a token cannot bring its own ("none", or an HMAC keyed with a public key).

mod key;
mod options;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use machine::Caller;
use serde_json::Value;

use key::Key;
pub(crate) use options::parse_kind;

/// Why keys or options cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JwtError {
    #[error("auth: invalid auth options: {0}")]
    Options(String),
    #[error(
        "auth: invalid auth signature method: sign-method is {0:?}, not one of RS256 RS384 RS512 \
         PS256 PS384 PS512 ES256 ES384 ES512 HS256 HS384 HS512 EdDSA"
    )]
    Method(String),
    #[error("auth: missing key data: give priv-key=, or pub-key= for a member that only verifies")]
    MissingKey,
    #[error("auth: public and private keys don't match")]
    KeyMismatch,
    #[error("auth: {path}: {detail}")]
    Key { path: String, detail: String },
}

/// Why a token was not believed; it goes to the log, without the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenError {
    #[error("token is malformed")]
    Malformed,
    #[error("token has another signing method than configured")]
    Method,
    #[error("token signature is invalid")]
    Signature,
    #[error("token is expired")]
    Expired,
    #[error("token is not valid yet")]
    NotYet,
    #[error("token names no user or no revision")]
    Claims,
}

/// Signs and verifies tokens.
pub struct Jwt {
    key: Key,
    lifetime: Duration,
}

impl std::fmt::Debug for Jwt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Jwt")
            .field("method", &self.key.method().name())
            .field("lifetime", &self.lifetime)
            .finish_non_exhaustive()
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

impl Jwt {
    /// Signs with HMAC, for as long as the tests of strangers' tokens run.
    #[cfg(feature = "fuzz")]
    pub(super) fn with_secret(secret: &[u8]) -> Result<Self, JwtError> {
        let key = Key::new(key::Method::Hs256, None, Some(("", secret.to_vec())))?;
        Ok(Self { key, lifetime: Duration::from_secs(60) })
    }

    /// A token for this user; nothing if this member can only verify.
    pub(crate) fn sign(&self, user: &str, auth_revision: u64) -> Option<String> {
        let ends = (now() + self.lifetime.as_secs_f64()).floor();
        // Seconds since 1970 are far below 2^63.
        let claims = serde_json::json!({
            "exp": ends as i64, "revision": auth_revision, "username": user,
        });
        self.signed(claims.to_string().as_bytes())
    }

    /// A token with these claims.
    pub(super) fn signed(&self, claims: &[u8]) -> Option<String> {
        let header = serde_json::json!({ "alg": self.key.method().name(), "typ": "JWT" });
        let part = |json: &[u8]| URL_SAFE_NO_PAD.encode(json);
        let message = format!("{}.{}", part(header.to_string().as_bytes()), part(claims));
        let signature = self.key.sign(message.as_bytes())?;
        Some(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// Whom a token names.
    pub(crate) fn verify(&self, token: &str) -> Result<Caller, TokenError> {
        let (message, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, claims) = message.split_once('.').ok_or(TokenError::Malformed)?;
        if claims.contains('.') {
            return Err(TokenError::Malformed);
        }
        let header = json(header)?;
        if header.get("alg").and_then(Value::as_str) != Some(self.key.method().name()) {
            return Err(TokenError::Method);
        }
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| TokenError::Malformed)?;
        if !self.key.verify(message.as_bytes(), &signature) {
            return Err(TokenError::Signature);
        }
        let claims = json(claims)?;
        check_times(&claims, now())?;
        let user = claims.get("username").and_then(Value::as_str).ok_or(TokenError::Claims)?;
        let revision = claims.get("revision").and_then(whole_number).ok_or(TokenError::Claims)?;
        Ok(Caller { user: user.to_owned(), auth_revision: revision })
    }
}

fn json(part: &str) -> Result<Value, TokenError> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed)?;
    let value: Value = serde_json::from_slice(&bytes).map_err(|_| TokenError::Malformed)?;
    if value.is_object() { Ok(value) } else { Err(TokenError::Malformed) }
}

/// A number of JSON, which other programs may write with a fraction of zero.
fn whole_number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| {
        let number = value.as_f64()?;
        (0.0..9_007_199_254_740_992.0).contains(&number).then_some(number as u64)
    })
}

/// A time that is there must be a number: to pass over one of another type would make a token valid
/// for ever.
fn check_times(claims: &Value, now: f64) -> Result<(), TokenError> {
    let time = |name: &str| match claims.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value.as_f64().map(Some).ok_or(TokenError::Claims),
    };
    if time("exp")?.is_some_and(|ends| now >= ends) {
        return Err(TokenError::Expired);
    }
    if time("nbf")?.is_some_and(|begins| now < begins) {
        return Err(TokenError::NotYet);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
