//! Tokens from strangers.

use super::Jwt;
use super::simple;

/// Reads the bytes as a token, and as the claims of one that is signed properly.
pub(crate) fn token(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let _ = simple::index_of(&text);
    let jwt = Jwt::with_secret(b"a secret that no stranger knows").expect("a secret is a key");
    assert!(jwt.verify(&text).is_err(), "nobody signed {text}");
    let token = jwt.signed(input).expect("a secret signs");
    let _ = jwt.verify(&token);
}
