//! Simple tokens: random letters that every member remembers for a while.
//!
//! A token is `<16 letters>.<index>`. It is registered by applying the entry at that index, so every
//! member knows it, and a member that is behind knows what to wait for. Members forget tokens one by
//! one: each use on a member makes the token live on there. All are forgotten when the process ends,
//! when auth is turned off, and when a snapshot replaces the state; those of a user when its password
//! changes or the user goes.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use machine::AuthChange;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::time::Instant;
use types::LogIndex;

const LETTERS: &[u8; 52] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
const PREFIX_LETTERS: usize = 16;

/// How often tokens that nobody uses any more are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// The lifetime when `--auth-token-ttl` is 0, as in etcd.
pub(crate) const LIFETIME_DEFAULT: Duration = Duration::from_secs(300);

struct Token {
    user: String,
    ends: Instant,
}

#[derive(Default)]
struct Inner {
    tokens: HashMap<String, Token>,
    swept: Option<Instant>,
}

/// The tokens that this member knows.
pub(crate) struct SimpleTokens {
    lifetime: Duration,
    // A std mutex: apply registers tokens synchronously, and nobody awaits while holding it.
    inner: Mutex<Inner>,
}

/// The entry that registered a token; none if it is no such token.
pub(super) fn index_of(token: &str) -> Option<LogIndex> {
    let (_, index) = token.split_once('.')?;
    // Go's parser takes no sign.
    let digits = !index.is_empty() && index.bytes().all(|digit| digit.is_ascii_digit());
    digits.then(|| index.parse().ok()).flatten().map(LogIndex)
}

impl SimpleTokens {
    pub(crate) fn new(lifetime: Duration) -> Self {
        Self { lifetime, inner: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The letters of a new token; none if the system has no randomness to give.
    pub(crate) fn random_prefix() -> Option<String> {
        let mut prefix = String::with_capacity(PREFIX_LETTERS);
        while prefix.len() < PREFIX_LETTERS {
            let mut bytes = [0u8; 2 * PREFIX_LETTERS];
            SystemRandom::new().fill(&mut bytes).ok()?;
            // Of 256 values the 208 that fall on each letter equally often are taken.
            let letters = bytes.iter().filter(|byte| usize::from(**byte) < 4 * LETTERS.len());
            let letters =
                letters.map(|byte| char::from(LETTERS[usize::from(*byte) % LETTERS.len()]));
            prefix.extend(letters.take(PREFIX_LETTERS - prefix.len()));
        }
        Some(prefix)
    }

    /// Takes note of what apply did.
    pub(crate) fn apply(&self, changes: &[AuthChange]) {
        let now = Instant::now();
        let mut inner = self.lock();
        for change in changes {
            match change {
                AuthChange::TokenAssigned { token, user } => {
                    let ends = now + self.lifetime;
                    let user = user.clone();
                    inner.tokens.insert(token.clone(), Token { user, ends });
                }
                AuthChange::UserInvalidated { user } => {
                    inner.tokens.retain(|_, token| token.user != *user);
                }
                AuthChange::Disabled => inner.tokens.clear(),
            }
        }
        if inner.swept.is_none_or(|swept| now >= swept + SWEEP_INTERVAL) {
            inner.swept = Some(now);
            inner.tokens.retain(|_, token| token.ends > now);
        }
    }

    /// Forgets all tokens.
    pub(crate) fn forget(&self) {
        self.lock().tokens.clear();
    }

    /// Whose token it is; asking makes it live on.
    pub(super) fn user_of(&self, token: &str) -> Option<String> {
        let now = Instant::now();
        let mut inner = self.lock();
        let known = inner.tokens.get_mut(token).filter(|token| token.ends > now)?;
        known.ends = now + self.lifetime;
        Some(known.user.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assigned(token: &str, user: &str) -> AuthChange {
        AuthChange::TokenAssigned { token: token.to_owned(), user: user.to_owned() }
    }

    #[test]
    fn only_letters_a_dot_and_an_index_are_a_token() {
        for (token, index) in [
            ("abc.17", Some(17)),
            (".0", Some(0)),
            ("a.18446744073709551615", Some(u64::MAX)),
            ("a.18446744073709551616", None),
            ("a.+1", None),
            ("a.", None),
            ("a.1.2", None),
            ("a", None),
            ("", None),
        ] {
            assert_eq!(index_of(token), index.map(LogIndex), "{token}");
        }
    }

    #[test]
    fn prefixes_are_letters_and_differ() {
        let [one, other] = [(); 2].map(|()| SimpleTokens::random_prefix().unwrap());
        assert!(one.len() == 16 && one.bytes().all(|byte| byte.is_ascii_alphabetic()));
        assert_ne!(one, other);
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_lives_on_while_it_is_used() {
        let tokens = SimpleTokens::new(Duration::from_secs(10));
        tokens.apply(&[assigned("a.1", "u"), assigned("b.2", "u")]);
        for _ in 0..3 {
            tokio::time::advance(Duration::from_secs(9)).await;
            assert_eq!(tokens.user_of("a.1").as_deref(), Some("u"));
        }
        assert_eq!(tokens.user_of("b.2"), None);
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(tokens.user_of("a.1"), None);
        tokens.apply(&[assigned("c.3", "u")]);
        assert_eq!(tokens.lock().tokens.len(), 1, "what is over takes no space");
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_go_with_their_user_and_with_auth() {
        let tokens = SimpleTokens::new(Duration::from_secs(10));
        tokens.apply(&[assigned("a.1", "u"), assigned("b.2", "v")]);
        tokens.apply(&[AuthChange::UserInvalidated { user: "u".to_owned() }]);
        assert_eq!((tokens.user_of("a.1"), tokens.user_of("b.2").as_deref()), (None, Some("v")));
        tokens.apply(&[AuthChange::Disabled]);
        assert_eq!(tokens.user_of("b.2"), None);
        tokens.apply(&[assigned("c.3", "v")]);
        tokens.forget();
        assert_eq!(tokens.user_of("c.3"), None);
    }
}
