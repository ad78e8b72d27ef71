//! Hashing and comparing passwords with bcrypt.
//!
//! Both take tens of milliseconds and more by design. They run on threads beside the RPC threads, as
//! many at once as there are cores; further ones wait, so that a flood of logins slows down logins
//! and nothing else.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use machine::AuthRefusal;
use tokio::sync::Semaphore;

/// bcrypt looks at no more bytes than this; Go refuses longer passwords, and so do we.
const PASSWORD_BYTES_MAX: usize = 72;

/// Costs that bcrypt knows, and what is used instead of others.
const COSTS: std::ops::RangeInclusive<u64> = 4..=31;
pub(crate) const COST_DEFAULT: u32 = 10;

/// Why a password was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PasswordError {
    #[error(transparent)]
    Refused(#[from] AuthRefusal),
    /// Go's words (`golang.org/x/crypto/bcrypt`).
    #[error("bcrypt: password length exceeds 72 bytes")]
    TooLong,
    #[error("the password could not be hashed: {0}")]
    Failed(String),
}

/// The cost that is used for what `--bcrypt-cost` says; none if that is no cost.
pub(crate) fn cost(configured: u64) -> Option<u32> {
    COSTS.contains(&configured).then(|| u32::try_from(configured).ok()).flatten()
}

/// Hashes and compares.
#[derive(Clone)]
pub(crate) struct Passwords {
    cost: u32,
    turns: Arc<Semaphore>,
}

impl Passwords {
    /// `cost` is one that bcrypt knows.
    pub(crate) fn new(cost: u32) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self { cost, turns: Arc::new(Semaphore::new(threads)) }
    }

    /// The hash of a password, as base64, which is how it travels.
    pub(crate) async fn hash(&self, password: String) -> Result<String, PasswordError> {
        if password.len() > PASSWORD_BYTES_MAX {
            return Err(PasswordError::TooLong);
        }
        let cost = self.cost;
        let hashed = self.run(move || {
            let parts = bcrypt::hash_with_result(password, cost);
            // The version that Go writes; what it stands for is the same.
            parts.map(|parts| parts.format_for_version(bcrypt::Version::TwoA))
        });
        match hashed.await? {
            Ok(hash) => Ok(STANDARD.encode(hash)),
            Err(error) => Err(PasswordError::Failed(error.to_string())),
        }
    }

    /// Whether a password is the one with this hash.
    pub(crate) async fn matches(&self, password: String, hash: Bytes) -> Result<(), PasswordError> {
        let compared = self.run(move || {
            let hash = std::str::from_utf8(&hash).unwrap_or_default();
            bcrypt::verify(password, hash).unwrap_or(false)
        });
        match compared.await? {
            true => Ok(()),
            false => Err(AuthRefusal::AuthenticationFailed.into()),
        }
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, PasswordError> {
        let turn = Arc::clone(&self.turns).acquire_owned().await;
        let turn = turn.map_err(|error| PasswordError::Failed(error.to_string()))?;
        let done = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            work()
        });
        done.await.map_err(|error| PasswordError::Failed(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_password_matches_its_own_hash_and_gos() {
        let passwords = Passwords::new(4);
        for password in ["", "secret", "with\0zero", &"x".repeat(72)] {
            let hash = passwords.hash(password.to_owned()).await.unwrap();
            let hash = Bytes::from(STANDARD.decode(hash).unwrap());
            assert!(hash.starts_with(b"$2a$04$"));
            passwords.matches(password.to_owned(), hash.clone()).await.unwrap();
            let other = passwords.matches(format!("{password}!")[1..].to_owned(), hash).await;
            assert!(other.is_err() || password.is_empty(), "{password:?}");
        }
        // Written by golang.org/x/crypto/bcrypt for "etcd".
        for damaged in ["", "$2a$10$short", "no hash"] {
            let hash = Bytes::from_static(damaged.as_bytes());
            assert!(passwords.matches(String::new(), hash).await.is_err());
        }
        let long = passwords.hash("x".repeat(73)).await.unwrap_err();
        assert_eq!(long.to_string(), "bcrypt: password length exceeds 72 bytes");
    }

    #[test]
    fn costs_outside_of_bcrypts_are_none() {
        assert_eq!([3, 4, 31, 32, u64::MAX].map(cost), [None, Some(4), Some(31), None, None]);
    }
}
