//! Simple tokens on this member: their random letters, and the clock for [`machine::SimpleTokens`],
//! which decides everything else. All are forgotten when the process ends.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use machine::AuthChange;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::time::Instant;
use types::LogIndex;

const LETTERS: &[u8; 52] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
const PREFIX_LETTERS: usize = 16;

/// The lifetime when `--auth-token-ttl` is 0, as in etcd.
pub(crate) const LIFETIME_DEFAULT: Duration = Duration::from_secs(300);

/// The tokens that this member knows.
pub(crate) struct SimpleTokens {
    started: Instant,
    // A std mutex: apply registers tokens synchronously, and nobody awaits while holding it.
    tokens: Mutex<machine::SimpleTokens>,
}

/// The entry that registered a token; none if it is no such token.
pub(super) fn index_of(token: &str) -> Option<LogIndex> {
    machine::SimpleTokens::index_of(token)
}

impl SimpleTokens {
    pub(crate) fn new(lifetime: Duration) -> Self {
        let tokens = Mutex::new(machine::SimpleTokens::new(lifetime));
        Self { started: Instant::now(), tokens }
    }

    fn lock(&self) -> MutexGuard<'_, machine::SimpleTokens> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
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
        self.lock().apply(changes, self.started.elapsed());
    }

    /// Forgets all tokens.
    pub(crate) fn forget(&self) {
        self.lock().forget();
    }

    /// Whose token it is; asking makes it live on.
    pub(super) fn user_of(&self, token: &str) -> Option<String> {
        self.lock().user_of(token, self.started.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_letters_and_differ() {
        let [one, other] = [(); 2].map(|()| SimpleTokens::random_prefix().unwrap());
        assert!(one.len() == 16 && one.bytes().all(|byte| byte.is_ascii_alphabetic()));
        assert_ne!(one, other);
    }
}
