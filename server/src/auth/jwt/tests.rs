use super::*;
use crate::auth::TokenKind;

/// Keys made by OpenSSL: PKCS#8, `_pkcs1`, `_sec1`, `_public`, `_certificate`.
fn file(name: &str) -> String {
    format!("{}/src/auth/jwt/testdata/{name}.pem", env!("CARGO_MANIFEST_DIR"))
}

fn parse(text: &str) -> Result<std::sync::Arc<Jwt>, JwtError> {
    match parse_kind(text, 0, &mut |_| {})? {
        TokenKind::Jwt(jwt) => Ok(jwt),
        other => panic!("{other:?}"),
    }
}

fn jwt(method: &str, private: &str, public: &str) -> Result<std::sync::Arc<Jwt>, JwtError> {
    let option = |name: &str, key: &str| match key {
        "" => String::new(),
        key => format!(",{name}={}", file(key)),
    };
    let (private, public) = (option("priv-key", private), option("pub-key", public));
    parse(&format!("jwt,sign-method={method}{private}{public}"))
}

/// Every method with keys in every form it may have.
const PAIRS: [(&str, &str, &str); 22] = [
    ("RS256", "rsa", "rsa_public"),
    ("RS384", "rsa", "rsa_public"),
    ("RS512", "rsa_pkcs1", "rsa_public"),
    ("PS256", "rsa", "rsa_public"),
    ("PS384", "rsa_pkcs1", "rsa_public"),
    ("PS512", "rsa", "rsa_public"),
    ("RS256", "rsa", "rsa_public_pkcs1"),
    ("ES256", "p256", "p256_public"),
    ("ES256", "p256_sec1", "p256_public"),
    ("ES256", "p256", "p256_certificate"),
    ("ES384", "p384", "p384_public"),
    ("ES384", "p384_sec1", "p384_public"),
    ("ES512", "p521", "p521_public"),
    ("ES512", "p521_sec1", "p521_public"),
    ("EdDSA", "ed25519", "ed25519_public"),
    ("HS256", "p256", ""),
    ("HS384", "p256", ""),
    ("HS512", "p256", ""),
    ("RS256", "rsa", ""),
    ("ES256", "p256", ""),
    ("ES512", "p521", ""),
    ("EdDSA", "ed25519", ""),
];

#[test]
fn what_one_member_signs_every_member_with_the_public_key_believes() {
    for (method, private, public) in PAIRS {
        let signer = jwt(method, private, public).unwrap();
        let token = signer.sign("alice", 7).unwrap();
        let expected = Caller { user: "alice".to_owned(), auth_revision: 7 };
        assert_eq!(signer.verify(&token), Ok(expected.clone()), "{method} {private}");
        if public.is_empty() {
            continue;
        }
        let verifier = jwt(method, "", public).unwrap();
        assert_eq!(verifier.verify(&token), Ok(expected), "{method} {public}");
        assert_eq!(verifier.sign("alice", 7), None, "a public key signs nothing");
    }
}

#[test]
fn keys_that_do_not_fit_are_refused_at_the_start() {
    for (method, private, public) in [
        ("RS256", "p256", ""),
        ("RS256", "", "p256_public"),
        ("ES256", "p384", ""),
        ("ES256", "", "p384_public"),
        ("ES384", "p256_sec1", ""),
        ("ES512", "p256", ""),
        ("ES512", "", "p384_public"),
        ("EdDSA", "rsa", ""),
        ("EdDSA", "", "p256_public"),
        ("ES256", "p256_public", ""),
        ("RS256", "missing", ""),
        ("RS256", "", "rsa_public_1024"),
        ("PS512", "", "rsa_public_1024"),
        ("ES256", "", "rsa_public_pkcs1"),
    ] {
        let error = jwt(method, private, public).unwrap_err();
        assert!(matches!(error, JwtError::Key { .. }), "{method} {private} {public}: {error}");
    }
    // It would verify nothing, and every token would be refused.
    let small = jwt("RS256", "", "rsa_public_1024").unwrap_err().to_string();
    assert!(small.ends_with("the RSA key has 1024 bits; use one of 2048 to 8192"), "{small}");
    let mismatch = jwt("ES256", "p256", "p384_public").unwrap_err();
    assert_eq!(mismatch.to_string(), "auth: public and private keys don't match");
    for method in ["RS256", "ES512", "EdDSA", "HS256"] {
        assert!(matches!(jwt(method, "", ""), Err(JwtError::MissingKey)), "{method}");
    }
    assert!(matches!(jwt("HS256", "", "p256_public"), Err(JwtError::MissingKey)));
}

#[test]
fn options_are_pairs_given_once() {
    for (text, part) in [
        ("jwt,sign-method", "not of the form"),
        ("jwt,sign-method=a=b", "not of the form"),
        ("jwt,ttl=1m,ttl=2m", "given twice"),
        ("jwt,sign-method=HS256,ttl=soon", "not a duration"),
        ("jwt", "auth: invalid auth signature method"),
        ("jwt,sign-method=none", "auth: invalid auth signature method"),
        ("kerberos", "unknown token type"),
    ] {
        let error = parse_kind(text, 0, &mut |_| {}).unwrap_err().to_string();
        assert!(error.contains(part), "{text}: {error}");
    }
    let mut warnings = Vec::new();
    let text = format!("jwt,sign-method=HS256,priv-key={},colour=red", file("p256"));
    parse_kind(&text, 0, &mut |warning| warnings.push(warning)).unwrap();
    assert_eq!(warnings, ["unknown JWT option \"colour\" of --auth-token"]);
    let simple = parse_kind("simple", 0, &mut |_| {});
    assert!(matches!(simple, Ok(TokenKind::Simple(lifetime)) if lifetime.as_secs() == 300));
    assert!(matches!(parse_kind("", 9, &mut |_| {}), Ok(TokenKind::None)));
}

/// A token with any header and claims, signed with the right key.
fn token(jwt: &Jwt, header: &str, claims: &str) -> String {
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let signature = jwt.key.sign(message.as_bytes()).unwrap();
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
}

#[test]
fn a_token_does_not_choose_how_it_is_verified() {
    let public = std::fs::read(file("p256_public")).unwrap();
    let verifier = jwt("ES256", "", "p256_public").unwrap();
    // Signed with the public key as a secret, which everybody has.
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &public);
    let claims = URL_SAFE_NO_PAD.encode(r#"{"username":"root","revision":1}"#);
    for (header, signed) in [
        (r#"{"alg":"HS256","typ":"JWT"}"#, true),
        (r#"{"alg":"none"}"#, false),
        (r#"{"alg":"NONE"}"#, false),
        (r#"{"typ":"JWT"}"#, false),
        (r#"{"alg":["ES256"]}"#, false),
    ] {
        let message = format!("{}.{claims}", URL_SAFE_NO_PAD.encode(header));
        let signature = match signed {
            true => URL_SAFE_NO_PAD.encode(ring::hmac::sign(&key, message.as_bytes())),
            false => String::new(),
        };
        let verified = verifier.verify(&format!("{message}.{signature}"));
        assert_eq!(verified, Err(TokenError::Method), "{header}");
    }
    let message = format!("{}.{claims}", URL_SAFE_NO_PAD.encode(r#"{"alg":"ES256"}"#));
    assert_eq!(verifier.verify(&format!("{message}.")), Err(TokenError::Signature));
    let zeros = URL_SAFE_NO_PAD.encode([0; 64]);
    assert_eq!(verifier.verify(&format!("{message}.{zeros}")), Err(TokenError::Signature));
}

#[test]
fn claims_are_taken_only_in_their_own_types() {
    let jwt = jwt("HS256", "p256", "").unwrap();
    let header = r#"{"alg":"HS256","typ":"JWT"}"#;
    let known = Ok(Caller { user: "u".to_owned(), auth_revision: 3 });
    for (claims, expected) in [
        (r#"{"username":"u","revision":3}"#, known.clone()),
        (r#"{"username":"u","revision":3.0,"exp":99999999999}"#, known.clone()),
        (r#"{"username":"u","revision":3,"exp":1}"#, Err(TokenError::Expired)),
        (r#"{"username":"u","revision":3,"exp":"99999999999"}"#, Err(TokenError::Claims)),
        (r#"{"username":"u","revision":3,"nbf":99999999999}"#, Err(TokenError::NotYet)),
        (r#"{"username":"u","revision":3,"nbf":"1"}"#, Err(TokenError::Claims)),
        (r#"{"username":["u"],"revision":3}"#, Err(TokenError::Claims)),
        (r#"{"username":"u","revision":"3"}"#, Err(TokenError::Claims)),
        (r#"{"username":"u","revision":-1}"#, Err(TokenError::Claims)),
        (r#"{"username":"u"}"#, Err(TokenError::Claims)),
        (r#"["u"]"#, Err(TokenError::Malformed)),
        ("no json", Err(TokenError::Malformed)),
    ] {
        assert_eq!(jwt.verify(&token(&jwt, header, claims)), expected, "{claims}");
    }
}

proptest::proptest! {
    /// PR#15676: Go etcd once panicked at a token.
    #[test]
    fn pr_15676_no_token_makes_the_server_panic(
        noise in "[a-zA-Z0-9_.{}\":-]{0,80}", cut in 0usize..300, at in 0usize..300, with in 0u8..128,
    ) {
        let jwt = jwt("HS256", "p256", "").unwrap();
        let good = jwt.sign("u", 1).unwrap();
        proptest::prop_assert!(jwt.verify(&noise).is_err());
        if cut < good.len() {
            proptest::prop_assert!(jwt.verify(&good[..cut]).is_err());
        }
        let mut changed = good.clone().into_bytes();
        let at = at % changed.len();
        changed[at] = with;
        let changed = String::from_utf8(changed).unwrap();
        // Unused bits at the end of base64 may differ without meaning anything.
        if changed != good && jwt.verify(&changed).is_ok() {
            proptest::prop_assert_eq!(at, good.len() - 1);
        }
    }
}
