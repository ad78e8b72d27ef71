//! Who a request comes from.
//!
//! A client shows a token that it got for its password, or a certificate whose common name is a user.
//! [`Authentication::recognise`] makes a [`Caller`] of it, with the auth revision under which it was
//! recognised; what that caller may do is decided by `machine`.
//!
//! Invariants:
//! - A password is hashed or compared on a thread of its own, never while applying, and only its hash
//!   is proposed. Neither passwords nor tokens are ever logged.
//! - A request through the JSON gateway is never judged by a certificate: the gateway's own would
//!   speak for everybody (CVE-2018-16886).
//! - With auth off nothing of this is looked at.

mod credentials;
#[cfg(feature = "fuzz")]
pub(crate) mod fuzz;
mod jwt;
mod password;
mod simple;

use std::sync::Arc;
use std::time::Duration;

use machine::{AuthRefusal, Caller, Views};
use replica::Handle;
use types::LogIndex;

use crate::config::AuthConfig;

pub(crate) use credentials::Credentials;
pub(crate) use jwt::parse_kind;
pub use jwt::{Jwt, JwtError};
pub(crate) use password::{COST_DEFAULT, PasswordError, Passwords, cost};
pub(crate) use simple::SimpleTokens;

/// How long a token may be ahead of this member. A token names the entry that registered it, so a
/// member that is behind waits for that entry.
const TOKEN_PATIENCE: Duration = Duration::from_secs(5);

/// What tokens look like.
#[derive(Clone, Debug)]
pub enum TokenKind {
    /// Random ones that every member remembers for this long.
    Simple(Duration),
    /// Signed ones.
    Jwt(Arc<Jwt>),
    /// None: only certificates are believed.
    None,
}

impl TokenKind {
    /// What this member is to know of its tokens, which only one of the kinds needs.
    pub(crate) fn of_this_member(&self) -> SimpleTokens {
        SimpleTokens::new(match self {
            Self::Simple(lifetime) => *lifetime,
            Self::Jwt(_) | Self::None => Duration::ZERO,
        })
    }
}

/// Why nobody was recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InvalidToken;

/// Recognises callers.
#[derive(Clone)]
pub(crate) struct Authentication {
    pub(crate) tokens: Tokens,
    pub(crate) passwords: Passwords,
}

/// The tokens that this member accepts.
#[derive(Clone)]
pub(crate) enum Tokens {
    Simple(Arc<SimpleTokens>),
    Jwt(Arc<Jwt>),
    None,
}

impl Tokens {
    /// Of this kind; `simple` is what apply fills.
    pub(crate) fn new(kind: &TokenKind, simple: Arc<SimpleTokens>) -> Self {
        match kind {
            TokenKind::Simple(_) => Self::Simple(simple),
            TokenKind::Jwt(jwt) => Self::Jwt(Arc::clone(jwt)),
            TokenKind::None => Self::None,
        }
    }

    /// The random part of a token that is to be registered through the log; empty if the tokens of
    /// this member are not.
    pub(crate) fn prefix(&self) -> Result<String, AuthRefusal> {
        match self {
            Self::Simple(_) => {
                SimpleTokens::random_prefix().ok_or(AuthRefusal::AuthenticationFailed)
            }
            Self::Jwt(_) | Self::None => Ok(String::new()),
        }
    }
}

impl Authentication {
    /// By these settings; `simple` is what apply fills.
    pub(crate) fn new(config: &AuthConfig, simple: Arc<SimpleTokens>) -> Self {
        Self {
            tokens: Tokens::new(&config.tokens, simple),
            passwords: Passwords::new(config.bcrypt_cost),
        }
    }

    /// Who shows these credentials; nobody without credentials or while auth is off.
    pub(crate) async fn recognise(
        &self,
        handle: &Handle,
        credentials: &Credentials,
    ) -> Result<Caller, InvalidToken> {
        if handle.with_views(Views::auth_is_off) {
            return Ok(Caller::default());
        }
        let auth = handle.views().auth();
        if !auth.is_enabled() {
            return Ok(Caller::default());
        }
        if let Some(token) = credentials.token() {
            return self.recognise_token(handle, token.ok_or(InvalidToken)?).await;
        }
        Ok(credentials.common_name().map_or_else(Caller::default, |name| Caller {
            user: name.to_owned(),
            auth_revision: auth.revision(),
        }))
    }

    async fn recognise_token(&self, handle: &Handle, token: &str) -> Result<Caller, InvalidToken> {
        match &self.tokens {
            Tokens::Simple(tokens) => {
                let index = simple::index_of(token).ok_or(InvalidToken)?;
                wait_for(handle, index).await?;
                // Read only now: the entry that was waited for may have changed it.
                let auth_revision = handle.views().auth().revision();
                let user = tokens.user_of(token).ok_or(InvalidToken)?;
                Ok(Caller { user, auth_revision })
            }
            Tokens::Jwt(jwt) => jwt.verify(token).map_err(|error| {
                tracing::warn!(%error, "failed to parse a JWT token");
                InvalidToken
            }),
            Tokens::None => Err(InvalidToken),
        }
    }
}

async fn wait_for(handle: &Handle, index: LogIndex) -> Result<(), InvalidToken> {
    let reached = tokio::time::timeout(TOKEN_PATIENCE, handle.applied(index)).await;
    reached.map_err(|_| InvalidToken)
}
