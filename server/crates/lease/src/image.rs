//! The leases in an image or a snapshot.
//!
//! ```text
//! +---------+-----------+  then per lease, in order of id, integers little endian
//! | version | count u64 |  +--------+-----------------+-------------------+----------+
//! | u8 = 1  |           |  | id i64 | granted TTL i64 | remaining TTL i64 | keys u32 |
//! +---------+-----------+  +--------+-----------------+-------------------+----------+
//!                          then per key, in order of key: length u32, bytes
//! ```
//!
//! The surrounding file carries the checksum. Decoding is strict all the same: ids and keys must
//! rise, so that one state has exactly one encoding and digests of states can be compared.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use types::LeaseId;

use crate::lessor::{Lease, Lessor, TTL_SECONDS_MAX};

const VERSION: u8 = 1;

/// The longest key accepted from an image: above the largest request, so a longer one is damage.
const KEY_BYTES_MAX: u32 = 1 << 30;

/// Why the leases of an image cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The image ends early or cannot be read.
    #[error("read leases: {0}")]
    Io(#[from] io::Error),
    /// Another version of the format.
    #[error("leases are in format {found}, this program reads {VERSION}; use the newer program")]
    Version { found: u8 },
    /// A value that no encoder writes.
    #[error("leases are damaged at lease number {number}: {detail}")]
    Damaged { number: u64, detail: &'static str },
}

impl Lessor {
    /// Writes all leases.
    pub fn write_image(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&[VERSION])?;
        out.write_all(&(self.leases.len() as u64).to_le_bytes())?;
        for (id, lease) in &self.leases {
            let mut head = [0; 28];
            head[0..8].copy_from_slice(&id.0.to_le_bytes());
            head[8..16].copy_from_slice(&lease.granted_ttl.to_le_bytes());
            head[16..24].copy_from_slice(&lease.remaining_ttl.to_le_bytes());
            head[24..28].copy_from_slice(&count(lease.keys.len())?);
            out.write_all(&head)?;
            for key in &lease.keys {
                out.write_all(&count(key.len())?)?;
                out.write_all(key)?;
            }
        }
        Ok(())
    }

    /// Reads what [`Lessor::write_image`] wrote, and nothing after it.
    pub fn read_image(input: &mut dyn Read) -> Result<Lessor, ImageError> {
        let [version] = take(input)?;
        if version != VERSION {
            return Err(ImageError::Version { found: version });
        }
        let leases = u64::from_le_bytes(take(input)?);
        let mut lessor = Lessor::new();
        for number in 0..leases {
            let id = LeaseId(i64::from_le_bytes(take(input)?));
            let granted_ttl = i64::from_le_bytes(take(input)?);
            let remaining_ttl = i64::from_le_bytes(take(input)?);
            let damaged = |detail| ImageError::Damaged { number, detail };
            if !id.is_some() {
                return Err(damaged("lease id 0"));
            }
            if lessor.leases.last_key_value().is_some_and(|(last, _)| *last >= id) {
                return Err(damaged("lease ids do not rise"));
            }
            if !(1..=TTL_SECONDS_MAX).contains(&granted_ttl) {
                return Err(damaged("TTL out of range"));
            }
            let keys = read_keys(input, number)?;
            lessor.leases.insert(id, Arc::new(Lease { granted_ttl, remaining_ttl, keys }));
        }
        Ok(lessor)
    }
}

fn read_keys(input: &mut dyn Read, number: u64) -> Result<BTreeSet<Bytes>, ImageError> {
    let mut keys = BTreeSet::new();
    for _ in 0..u32::from_le_bytes(take(input)?) {
        let length = u32::from_le_bytes(take(input)?);
        if length > KEY_BYTES_MAX {
            return Err(ImageError::Damaged { number, detail: "key too long" });
        }
        let mut key = Vec::new();
        if input.take(u64::from(length)).read_to_end(&mut key)? != length as usize {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        if keys.last().is_some_and(|last: &Bytes| last.as_ref() >= key.as_slice()) {
            return Err(ImageError::Damaged { number, detail: "keys do not rise" });
        }
        keys.insert(Bytes::from(key));
    }
    Ok(keys)
}

fn take<const N: usize>(input: &mut dyn Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    input.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn count(length: usize) -> io::Result<[u8; 4]> {
    match u32::try_from(length) {
        Ok(length) => Ok(length.to_le_bytes()),
        Err(_) => Err(io::Error::new(io::ErrorKind::InvalidInput, "more than 2^32 in one lease")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encode(lessor: &Lessor) -> Vec<u8> {
        let mut out = Vec::new();
        lessor.write_image(&mut out).unwrap();
        out
    }

    fn example() -> Lessor {
        let mut lessor = Lessor::new();
        lessor.grant(LeaseId(-2), 60).unwrap();
        lessor.grant(LeaseId(9), 5).unwrap();
        lessor.checkpoint(LeaseId(9), 2);
        lessor.attach(LeaseId(9), b"b").unwrap();
        lessor.attach(LeaseId(9), b"a").unwrap();
        lessor
    }

    #[test]
    fn the_encoding_is_as_drawn() {
        let mut expected = vec![1];
        expected.extend(2u64.to_le_bytes());
        for word in [-2i64, 60, 0] {
            expected.extend(word.to_le_bytes());
        }
        expected.extend(0u32.to_le_bytes());
        for word in [9i64, 5, 2] {
            expected.extend(word.to_le_bytes());
        }
        expected.extend(2u32.to_le_bytes());
        for key in [b"a", b"b"] {
            expected.extend(1u32.to_le_bytes());
            expected.extend(key);
        }
        assert_eq!(encode(&example()), expected);
    }

    #[test]
    fn every_cut_and_every_foreign_version_is_an_error() {
        let bytes = encode(&example());
        assert_eq!(Lessor::read_image(&mut bytes.as_slice()).unwrap(), example());
        for length in 0..bytes.len() {
            assert!(Lessor::read_image(&mut &bytes[..length]).is_err(), "cut at {length}");
        }
        let mut foreign = bytes;
        foreign[0] = 2;
        let error = Lessor::read_image(&mut foreign.as_slice()).unwrap_err();
        assert!(matches!(error, ImageError::Version { found: 2 }));
    }

    proptest! {
        #[test]
        fn one_state_has_one_encoding(
            leases in prop::collection::btree_map(
                1i64..50,
                (1i64..1000, 0i64..1000, prop::collection::vec("[a-d]{0,3}", 0..6)),
                0..20,
            )
        ) {
            let mut lessor = Lessor::new();
            for (id, (ttl, remaining, keys)) in leases {
                lessor.grant(LeaseId(id), ttl).unwrap();
                lessor.checkpoint(LeaseId(id), remaining);
                for key in keys {
                    lessor.attach(LeaseId(id), key.as_bytes()).unwrap();
                }
            }
            let bytes = encode(&lessor);
            let mut rest = bytes.as_slice();
            let back = Lessor::read_image(&mut rest).unwrap();
            prop_assert!(rest.is_empty());
            prop_assert_eq!(encode(&back), bytes);
            prop_assert_eq!(back, lessor);
        }

        #[test]
        fn damage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Lessor::read_image(&mut bytes.as_slice());
        }
    }
}
