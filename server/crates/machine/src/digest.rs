//! One number for the whole replicated state.

use std::fmt;
use std::io::{self, Write};

use bytes::Bytes;
use mvcc::{RangeError, RangeQuery, Store};
use sha2::{Digest as _, Sha256};
use types::KeyRange;

use crate::views::State;

/// A SHA-256 over everything replicated: the tables with the applied position, the leases, the
/// revisions, HashKV of the history, and every live key with all that is known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

struct Hasher(Sha256);

impl Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How many keys are read under one hold of the index's lock.
const KEYS_PER_CHUNK: usize = 500;

pub(crate) fn digest(store: &Store, state: &State) -> Result<Digest, RangeError> {
    let mut hasher = Hasher(Sha256::new());
    hasher.0.update(state.tables.encode());
    state.leases.write_image(&mut hasher).expect("a hasher takes everything");
    let meta = store.meta();
    hasher.0.update(meta.revision.0.to_le_bytes());
    hasher.0.update(meta.compact_revision.0.to_le_bytes());
    let view = store.read();
    hasher.0.update(view.hash_kv(0)?.hash.to_le_bytes());
    let everything = KeyRange::from_wire(Bytes::from_static(&[0]), Bytes::from_static(&[0]));
    let mut cursor = view.range_stream(RangeQuery::all(everything))?;
    loop {
        let keys = cursor.next(KEYS_PER_CHUNK)?;
        if keys.is_empty() {
            return Ok(Digest(hasher.0.finalize().into()));
        }
        for key in keys {
            hasher.0.update((key.len() as u64).to_le_bytes());
            hasher.0.update(&key);
        }
    }
}
