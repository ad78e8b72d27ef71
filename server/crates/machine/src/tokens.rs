//! The simple tokens that one member accepts.
//!
//! A token is `<letters>.<index>`. Applying the entry at that index registers it on every member, so a
//! member that is behind knows what to wait for. Members forget tokens one by one: each use on a member
//! makes the token live on there. All are forgotten when auth is turned off, and those of a user when
//! its password changes or the user goes. What is known here is not replicated state: whoever owns it
//! passes the time in, and forgets everything when a snapshot replaces the state or the process ends.

use std::collections::BTreeMap;
use std::time::Duration;

use types::LogIndex;

use crate::auth::AuthChange;

/// How often tokens that nobody uses any more are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Token {
    user: String,
    ends: Duration,
}

/// The tokens of one member; times are since any fixed instant.
#[derive(Debug)]
pub struct SimpleTokens {
    lifetime: Duration,
    tokens: BTreeMap<String, Token>,
    sweep_at: Duration,
}

impl SimpleTokens {
    /// No tokens yet; each will live this long after its last use.
    pub fn new(lifetime: Duration) -> Self {
        Self { lifetime, tokens: BTreeMap::new(), sweep_at: Duration::ZERO }
    }

    /// The entry that registered a token; none if it is no such token.
    pub fn index_of(token: &str) -> Option<LogIndex> {
        let (_, index) = token.split_once('.')?;
        // Go's parser takes no sign.
        let digits = !index.is_empty() && index.bytes().all(|digit| digit.is_ascii_digit());
        digits.then(|| index.parse().ok()).flatten().map(LogIndex)
    }

    /// Takes note of what apply did.
    pub fn apply(&mut self, changes: &[AuthChange], now: Duration) {
        for change in changes {
            match change {
                AuthChange::TokenAssigned { token, user } => {
                    let ends = now.saturating_add(self.lifetime);
                    self.tokens.insert(token.clone(), Token { user: user.clone(), ends });
                }
                AuthChange::UserInvalidated { user } => {
                    self.tokens.retain(|_, token| token.user != *user);
                }
                AuthChange::Disabled => self.tokens.clear(),
            }
        }
        if now >= self.sweep_at {
            self.sweep_at = now + SWEEP_INTERVAL;
            self.tokens.retain(|_, token| token.ends > now);
        }
    }

    /// Forgets all tokens.
    pub fn forget(&mut self) {
        self.tokens.clear();
    }

    /// Whose token it is; asking makes it live on.
    pub fn user_of(&mut self, token: &str, now: Duration) -> Option<String> {
        let known = self.tokens.get_mut(token).filter(|token| token.ends > now)?;
        known.ends = now.saturating_add(self.lifetime);
        Some(known.user.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFETIME: Duration = Duration::from_secs(10);

    fn assigned(token: &str, user: &str) -> AuthChange {
        AuthChange::TokenAssigned { token: token.to_owned(), user: user.to_owned() }
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
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
            assert_eq!(SimpleTokens::index_of(token), index.map(LogIndex), "{token}");
        }
    }

    #[test]
    fn a_token_lives_on_while_it_is_used() {
        let mut tokens = SimpleTokens::new(LIFETIME);
        tokens.apply(&[assigned("a.1", "u"), assigned("b.2", "u")], at(0));
        for now in [9, 18, 27] {
            assert_eq!(tokens.user_of("a.1", at(now)).as_deref(), Some("u"));
        }
        assert_eq!(tokens.user_of("b.2", at(27)), None);
        assert_eq!(tokens.user_of("a.1", at(37)), None);
        tokens.apply(&[assigned("c.3", "u")], at(37));
        assert_eq!(tokens.tokens.len(), 1, "what is over takes no space");
    }

    #[test]
    fn tokens_go_with_their_user_and_with_auth() {
        let mut tokens = SimpleTokens::new(LIFETIME);
        tokens.apply(&[assigned("a.1", "u"), assigned("b.2", "v")], at(0));
        tokens.apply(&[AuthChange::UserInvalidated { user: "u".to_owned() }], at(0));
        assert_eq!(tokens.user_of("a.1", at(1)), None);
        assert_eq!(tokens.user_of("b.2", at(1)).as_deref(), Some("v"));
        tokens.apply(&[AuthChange::Disabled], at(1));
        assert_eq!(tokens.user_of("b.2", at(1)), None);
        tokens.apply(&[assigned("c.3", "v")], at(1));
        tokens.forget();
        assert_eq!(tokens.user_of("c.3", at(1)), None);
    }
}
