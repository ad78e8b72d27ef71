//! The key that tokens are signed and verified with.
//!
//! RSA, P-256, P-384, Ed25519 and HMAC are ring's; P-521 is not, and comes from its own crate. A
//! private key is read from PKCS#8, PKCS#1 or SEC1, a public one from a public key, PKCS#1's
//! too, or a certificate.

use std::ops::RangeInclusive;

use p521::ecdsa::signature::{Signer, Verifier};
use p521::elliptic_curve::sec1::ToEncodedPoint;
use p521::pkcs8::DecodePrivateKey;
use ring::hmac;
use ring::rand::SystemRandom;
use ring::signature::{
    self as sig, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaEncoding, RsaKeyPair, UnparsedPublicKey,
    VerificationAlgorithm,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, SubjectPublicKeyInfoDer};
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::public_key::RSAPublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::JwtError;

/// `sign-method`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    Hs256,
    Hs384,
    Hs512,
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    Es512,
    EdDsa,
}

impl Method {
    pub(super) const ALL: [Method; 13] = [
        Method::Hs256,
        Method::Hs384,
        Method::Hs512,
        Method::Rs256,
        Method::Rs384,
        Method::Rs512,
        Method::Ps256,
        Method::Ps384,
        Method::Ps512,
        Method::Es256,
        Method::Es384,
        Method::Es512,
        Method::EdDsa,
    ];

    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.name() == name)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Method::Hs256 => "HS256",
            Method::Hs384 => "HS384",
            Method::Hs512 => "HS512",
            Method::Rs256 => "RS256",
            Method::Rs384 => "RS384",
            Method::Rs512 => "RS512",
            Method::Ps256 => "PS256",
            Method::Ps384 => "PS384",
            Method::Ps512 => "PS512",
            Method::Es256 => "ES256",
            Method::Es384 => "ES384",
            Method::Es512 => "ES512",
            Method::EdDsa => "EdDSA",
        }
    }

    fn hmac(self) -> Option<hmac::Algorithm> {
        match self {
            Method::Hs256 => Some(hmac::HMAC_SHA256),
            Method::Hs384 => Some(hmac::HMAC_SHA384),
            Method::Hs512 => Some(hmac::HMAC_SHA512),
            _ => None,
        }
    }

    fn rsa(self) -> Option<&'static dyn RsaEncoding> {
        match self {
            Method::Rs256 => Some(&sig::RSA_PKCS1_SHA256),
            Method::Rs384 => Some(&sig::RSA_PKCS1_SHA384),
            Method::Rs512 => Some(&sig::RSA_PKCS1_SHA512),
            Method::Ps256 => Some(&sig::RSA_PSS_SHA256),
            Method::Ps384 => Some(&sig::RSA_PSS_SHA384),
            Method::Ps512 => Some(&sig::RSA_PSS_SHA512),
            _ => None,
        }
    }

    /// ring's way to verify; none for HMAC and P-521.
    fn verification(self) -> Option<&'static dyn VerificationAlgorithm> {
        Some(match self {
            Method::Rs256 => &sig::RSA_PKCS1_2048_8192_SHA256,
            Method::Rs384 => &sig::RSA_PKCS1_2048_8192_SHA384,
            Method::Rs512 => &sig::RSA_PKCS1_2048_8192_SHA512,
            Method::Ps256 => &sig::RSA_PSS_2048_8192_SHA256,
            Method::Ps384 => &sig::RSA_PSS_2048_8192_SHA384,
            Method::Ps512 => &sig::RSA_PSS_2048_8192_SHA512,
            Method::Es256 => &sig::ECDSA_P256_SHA256_FIXED,
            Method::Es384 => &sig::ECDSA_P384_SHA384_FIXED,
            Method::EdDsa => &sig::ED25519,
            Method::Hs256 | Method::Hs384 | Method::Hs512 | Method::Es512 => return None,
        })
    }
}

enum Private {
    Rsa(Box<RsaKeyPair>),
    Ecdsa(EcdsaKeyPair),
    P521(Box<p521::ecdsa::SigningKey>),
    Ed25519(Ed25519KeyPair),
}

enum Public {
    Ring(&'static dyn VerificationAlgorithm, Vec<u8>),
    P521(Box<p521::ecdsa::VerifyingKey>),
}

enum Material {
    Secret(hmac::Key),
    Pair { private: Option<Private>, public: Public },
}

/// A method with its keys.
pub(super) struct Key {
    method: Method,
    material: Material,
}

/// A file: its path, for errors, and what is in it.
type File<'a> = (&'a str, Vec<u8>);

fn unusable(path: &str, detail: impl ToString) -> JwtError {
    JwtError::Key { path: path.to_owned(), detail: detail.to_string() }
}

impl Key {
    pub(super) fn new(
        method: Method,
        public: Option<File<'_>>,
        private: Option<File<'_>>,
    ) -> Result<Self, JwtError> {
        if let Some(algorithm) = method.hmac() {
            let secret = private.filter(|(_, bytes)| !bytes.is_empty());
            let (_, bytes) = secret.ok_or(JwtError::MissingKey)?;
            let material = Material::Secret(hmac::Key::new(algorithm, &bytes));
            return Ok(Self { method, material });
        }
        let private = private.filter(|(_, bytes)| !bytes.is_empty());
        let public = public.filter(|(_, bytes)| !bytes.is_empty());
        let private = private.map(|file| private_key(method, &file)).transpose()?;
        let public = public.map(|file| public_key(&file)).transpose()?;
        let public = match (&private, public) {
            (None, None) => return Err(JwtError::MissingKey),
            (Some((_, own)), Some((_, given))) if *own != given => {
                return Err(JwtError::KeyMismatch);
            }
            (Some((_, own)), _) => verifier(method, "priv-key", own.clone())?,
            (None, Some((path, given))) => verifier(method, path, given)?,
        };
        let private = private.map(|(private, _)| private);
        Ok(Self { method, material: Material::Pair { private, public } })
    }

    pub(super) fn method(&self) -> Method {
        self.method
    }

    /// The signature; nothing without a private key.
    pub(super) fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        let random = SystemRandom::new();
        match &self.material {
            Material::Secret(key) => Some(hmac::sign(key, message).as_ref().to_vec()),
            Material::Pair { private, .. } => match private.as_ref()? {
                Private::Rsa(pair) => {
                    let mut signature = vec![0; pair.public().modulus_len()];
                    let signed = pair.sign(self.method.rsa()?, &random, message, &mut signature);
                    signed.ok().map(|()| signature)
                }
                Private::Ecdsa(pair) => {
                    pair.sign(&random, message).ok().map(|signature| signature.as_ref().to_vec())
                }
                Private::P521(key) => {
                    let signature: p521::ecdsa::Signature = key.try_sign(message).ok()?;
                    Some(signature.to_bytes().to_vec())
                }
                Private::Ed25519(pair) => Some(pair.sign(message).as_ref().to_vec()),
            },
        }
    }

    /// Whether the signature is this key's. The comparison does not stop at the first difference.
    pub(super) fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.material {
            Material::Secret(key) => hmac::verify(key, message, signature).is_ok(),
            Material::Pair { public: Public::Ring(algorithm, key), .. } => {
                UnparsedPublicKey::new(*algorithm, key).verify(message, signature).is_ok()
            }
            Material::Pair { public: Public::P521(key), .. } => {
                let signature = p521::ecdsa::Signature::from_slice(signature);
                signature.is_ok_and(|signature| key.verify(message, &signature).is_ok())
            }
        }
    }
}

/// The key and its public half, as ring takes it: RSA's two numbers, a point, or Ed25519's bytes.
fn private_key(method: Method, (path, pem): &File<'_>) -> Result<(Private, Vec<u8>), JwtError> {
    let der = PrivateKeyDer::from_pem_slice(pem).map_err(|error| unusable(path, error))?;
    let rejected = |error: ring::error::KeyRejected| {
        unusable(path, format!("the key does not fit {}: {error}", method.name()))
    };
    match method {
        Method::Es256 => ecdsa(&sig::ECDSA_P256_SHA256_FIXED_SIGNING, P256, &der),
        Method::Es384 => ecdsa(&sig::ECDSA_P384_SHA384_FIXED_SIGNING, P384, &der),
        Method::Es512 => return p521_key(&der).map_err(|detail| unusable(path, detail)),
        Method::EdDsa => Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_der()).map(|pair| {
            let public = pair.public_key().as_ref().to_vec();
            (Private::Ed25519(pair), public)
        }),
        _ => {
            let pair = match &der {
                PrivateKeyDer::Pkcs1(der) => RsaKeyPair::from_der(der.secret_pkcs1_der()),
                other => RsaKeyPair::from_pkcs8(other.secret_der()),
            };
            pair.map(|pair| {
                let public = pair.public_key().as_ref().to_vec();
                (Private::Rsa(Box::new(pair)), public)
            })
        }
    }
    .map_err(rejected)
}

/// The object identifiers of the curves, as DER.
const P256: &[u8] = &[0x06, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
const P384: &[u8] = &[0x06, 5, 0x2b, 0x81, 4, 0, 0x22];
/// That of keys on a curve.
const EC_PUBLIC_KEY: &[u8] = &[0x06, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];

fn ecdsa(
    algorithm: &'static sig::EcdsaSigningAlgorithm,
    curve: &[u8],
    der: &PrivateKeyDer<'_>,
) -> Result<(Private, Vec<u8>), ring::error::KeyRejected> {
    let pkcs8 = match der {
        PrivateKeyDer::Sec1(sec1) => wrap_sec1(curve, sec1.secret_sec1_der()),
        other => other.secret_der().to_vec(),
    };
    let pair = EcdsaKeyPair::from_pkcs8(algorithm, &pkcs8, &SystemRandom::new())?;
    let public = pair.public_key().as_ref().to_vec();
    Ok((Private::Ecdsa(pair), public))
}

/// SEC1, as `openssl ecparam` writes it, inside PKCS#8, which ring reads.
fn wrap_sec1(curve: &[u8], sec1: &[u8]) -> Vec<u8> {
    let algorithm = der_value(0x30, &[EC_PUBLIC_KEY, curve]);
    der_value(0x30, &[&[0x02, 1, 0], &algorithm, &der_value(0x04, &[sec1])])
}

/// One DER value of at most 64 KiB.
fn der_value(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let [high, low] = (content.len() as u16).to_be_bytes();
    let mut out = match content.len() {
        ..128 => vec![tag, low],
        128..256 => vec![tag, 0x81, low],
        _ => vec![tag, 0x82, high, low],
    };
    out.extend(content);
    out
}

fn p521_key(der: &PrivateKeyDer<'_>) -> Result<(Private, Vec<u8>), String> {
    let secret = match der {
        PrivateKeyDer::Sec1(sec1) => p521::SecretKey::from_sec1_der(sec1.secret_sec1_der())
            .map_err(|error| error.to_string())?,
        other => p521::SecretKey::from_pkcs8_der(other.secret_der())
            .map_err(|error| format!("the key does not fit ES512: {error}"))?,
    };
    let public = secret.public_key().to_encoded_point(false).as_bytes().to_vec();
    let key = p521::ecdsa::SigningKey::from_slice(&secret.to_bytes());
    let key = key.map_err(|error| error.to_string())?;
    Ok((Private::P521(Box::new(key)), public))
}

fn public_key<'p>((path, pem): &File<'p>) -> Result<(&'p str, Vec<u8>), JwtError> {
    let damaged = |error: &dyn std::fmt::Display| unusable(path, error.to_string());
    // RSA's two numbers as they are.
    if let Ok((_, section)) = parse_x509_pem(pem)
        && section.label == "RSA PUBLIC KEY"
    {
        return Ok((*path, section.contents));
    }
    let info = match SubjectPublicKeyInfoDer::from_pem_slice(pem) {
        Ok(der) => der.to_vec(),
        Err(_) => {
            let certificate =
                CertificateDer::from_pem_slice(pem).map_err(|error| damaged(&error))?;
            let (_, parsed) =
                X509Certificate::from_der(&certificate).map_err(|error| damaged(&error))?;
            parsed.public_key().raw.to_vec()
        }
    };
    let (_, info) = SubjectPublicKeyInfo::from_der(&info).map_err(|error| damaged(&error))?;
    Ok((*path, info.subject_public_key.data.to_vec()))
}

/// The sizes of RSA keys that the library verifies with. With a private key it takes 4096 bits at most.
const RSA_BITS: RangeInclusive<usize> = 2048..=8192;

fn modulus_bits(modulus: &[u8]) -> usize {
    let zeros = modulus.iter().take_while(|byte| **byte == 0).count();
    let first = modulus.get(zeros).map_or(0, |byte| byte.leading_zeros() as usize);
    8 * (modulus.len() - zeros) - first
}

fn too_small_or_large(bits: usize) -> String {
    let (least, most) = (RSA_BITS.start(), RSA_BITS.end());
    format!("the RSA key has {bits} bits; use one of {least} to {most}")
}

fn verifier(method: Method, path: &str, public: Vec<u8>) -> Result<Public, JwtError> {
    let unfit = || unusable(path, format!("the key does not fit {}", method.name()));
    if let Some(algorithm) = method.verification() {
        // ring looks at a public key only when it verifies; the sizes tell mistakes at the start.
        let fits = match method {
            Method::Es256 => public.len() == 65,
            Method::Es384 => public.len() == 97,
            Method::EdDsa => public.len() == 32,
            _ => {
                let (_, key) = RSAPublicKey::from_der(&public).map_err(|_| unfit())?;
                let bits = modulus_bits(key.modulus);
                if !RSA_BITS.contains(&bits) {
                    return Err(unusable(path, too_small_or_large(bits)));
                }
                true
            }
        };
        return if fits { Ok(Public::Ring(algorithm, public)) } else { Err(unfit()) };
    }
    let key = p521::ecdsa::VerifyingKey::from_sec1_bytes(&public).map_err(|_| unfit())?;
    Ok(Public::P521(Box::new(key)))
}
