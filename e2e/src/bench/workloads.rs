//! What the unary calls ask: puts, reads of one key, ranges, and the compare-and-swap that
//! Kubernetes sends for every update.
//!
//! Keys are 48 bytes and values 256, the sizes of etcd's own benchmark tool and close to those of a
//! Kubernetes lease. Every answer is looked at: a read must bring a value of the right length, a
//! range all its keys, and a compare-and-swap must win, because each slot has its own keys.

use super::protobuf::{Field, bytes, fields, number, put_bytes, put_number};
use super::swarm::Load;

/// Bytes of a key.
pub const KEY_SIZE: usize = 48;
/// Bytes of a value.
pub const VALUE_SIZE: usize = 256;

pub const PUT: &str = "/etcdserverpb.KV/Put";
pub const RANGE: &str = "/etcdserverpb.KV/Range";
pub const TXN: &str = "/etcdserverpb.KV/Txn";
pub const STATUS: &str = "/etcdserverpb.Maintenance/Status";

/// Keys with a common beginning and a number; the order of the numbers is the order of the keys.
#[derive(Clone, Copy, Debug)]
pub struct Keyspace {
    /// Tells keyspaces apart.
    pub name: u8,
    /// How many keys there are.
    pub size: u64,
}

impl Keyspace {
    /// The key with this number.
    pub fn key(&self, mut number: u64) -> [u8; KEY_SIZE] {
        let mut key = *b"/registry/keelson/?/0000000000000000000000000000";
        key[18] = self.name;
        for digit in key[20..].iter_mut().rev() {
            if number == 0 {
                break;
            }
            *digit = b'0' + (number % 10) as u8;
            number /= 10;
        }
        key
    }
}

/// Small, fast and repeatable: xorshift64* by Marsaglia and Vigna.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Random {
        Random(seed | 1)
    }

    /// The next number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) % bound
    }
}

/// Values that differ in every byte: cut at changing places from a pool of noise.
pub(super) struct Values {
    pool: Vec<u8>,
    random: Random,
}

impl Values {
    pub(super) fn new() -> Values {
        let mut random = Random::new(0x006b_6565_6c73_6f6e);
        let pool = (0..64 * 1024 + VALUE_SIZE).map(|_| random.below(256) as u8).collect();
        Values { pool, random }
    }

    pub(super) fn next(&mut self) -> &[u8] {
        let at = self.random.below(64 * 1024) as usize;
        &self.pool[at..at + VALUE_SIZE]
    }
}

/// Puts, to random keys or to each key once.
pub struct Puts {
    keyspace: Keyspace,
    random: Random,
    values: Values,
    /// The next key if each is put once.
    fill: Option<u64>,
    received: Vec<usize>,
}

impl Puts {
    /// Puts to random keys, without end.
    pub fn random(keyspace: Keyspace, slots: usize) -> Puts {
        let random = Random::new(7);
        Puts { keyspace, random, values: Values::new(), fill: None, received: vec![0; slots] }
    }

    /// Puts each key once.
    pub fn fill(keyspace: Keyspace, slots: usize) -> Puts {
        Puts { fill: Some(0), ..Puts::random(keyspace, slots) }
    }
}

impl Load for Puts {
    fn path(&self) -> &'static str {
        PUT
    }

    fn next(&mut self, _slot: usize, message: &mut Vec<u8>) -> bool {
        let number = match &mut self.fill {
            None => self.random.below(self.keyspace.size),
            Some(next) if *next < self.keyspace.size => {
                *next += 1;
                *next - 1
            }
            Some(_) => return false,
        };
        put_bytes(message, 1, &self.keyspace.key(number));
        put_bytes(message, 2, self.values.next());
        true
    }

    fn data(&mut self, slot: usize, bytes: &[u8]) {
        self.received[slot] += bytes.len();
    }

    fn end(&mut self, slot: usize) -> Result<(), String> {
        // Five bytes of gRPC and a header that has at least a revision.
        at_least(&mut self.received[slot], 8)
    }
}

/// Reads of one random key, or of many keys in a row.
pub struct Reads {
    keyspace: Keyspace,
    random: Random,
    serializable: bool,
    keys: u64,
    received: Vec<usize>,
}

impl Reads {
    /// All keys of the keyspace must be there.
    pub fn new(keyspace: Keyspace, serializable: bool, keys: u64, slots: usize) -> Reads {
        Reads { keyspace, random: Random::new(11), serializable, keys, received: vec![0; slots] }
    }
}

impl Load for Reads {
    fn path(&self) -> &'static str {
        RANGE
    }

    fn next(&mut self, _slot: usize, message: &mut Vec<u8>) -> bool {
        let first = self.random.below(self.keyspace.size - self.keys + 1);
        put_bytes(message, 1, &self.keyspace.key(first));
        if self.keys > 1 {
            put_bytes(message, 2, &self.keyspace.key(first + self.keys));
        }
        put_number(message, 7, i64::from(self.serializable));
        true
    }

    fn data(&mut self, slot: usize, bytes: &[u8]) {
        self.received[slot] += bytes.len();
    }

    fn end(&mut self, slot: usize) -> Result<(), String> {
        at_least(&mut self.received[slot], self.keys as usize * (KEY_SIZE + VALUE_SIZE))
    }
}

fn at_least(received: &mut usize, wanted: usize) -> Result<(), String> {
    match std::mem::take(received) {
        enough if enough >= wanted => Ok(()),
        less => Err(format!("{less} bytes instead of at least {wanted}")),
    }
}

/// "If the key is still at this revision, put, else get": the update of Kubernetes.
pub struct CompareAndSwaps {
    keyspace: Keyspace,
    random: Random,
    values: Values,
    slots: u64,
    /// The revision at which each key was last put; 0 is a key that does not exist.
    revisions: Vec<i64>,
    /// The key that each slot is about, and what has arrived of the answer.
    current: Vec<u64>,
    answers: Vec<Vec<u8>>,
    compare: Vec<u8>,
    operation: Vec<u8>,
    request: Vec<u8>,
}

impl CompareAndSwaps {
    /// The keys of the keyspace must not be there yet.
    pub fn new(keyspace: Keyspace, slots: usize) -> CompareAndSwaps {
        CompareAndSwaps {
            keyspace,
            random: Random::new(13),
            values: Values::new(),
            slots: slots as u64,
            revisions: vec![0; keyspace.size as usize],
            current: vec![0; slots],
            answers: vec![Vec::new(); slots],
            compare: Vec::new(),
            operation: Vec::new(),
            request: Vec::new(),
        }
    }
}

impl Load for CompareAndSwaps {
    fn path(&self) -> &'static str {
        TXN
    }

    fn next(&mut self, slot: usize, message: &mut Vec<u8>) -> bool {
        // Keys that leave the same rest belong to the same slot, so no other call changes them.
        let number = self.random.below(self.keyspace.size / self.slots) * self.slots + slot as u64;
        self.current[slot] = number;
        let key = self.keyspace.key(number);

        self.compare.clear();
        put_number(&mut self.compare, 2, 2);
        put_bytes(&mut self.compare, 3, &key);
        // A zero must be said: it is a member of a oneof.
        self.compare.push(6 << 3);
        super::protobuf::put_varint(&mut self.compare, self.revisions[number as usize] as u64);
        put_bytes(message, 1, &self.compare);

        self.request.clear();
        put_bytes(&mut self.request, 1, &key);
        put_bytes(&mut self.request, 2, self.values.next());
        self.operation.clear();
        put_bytes(&mut self.operation, 2, &self.request);
        put_bytes(message, 2, &self.operation);

        self.request.clear();
        put_bytes(&mut self.request, 1, &key);
        self.operation.clear();
        put_bytes(&mut self.operation, 1, &self.request);
        put_bytes(message, 3, &self.operation);
        true
    }

    fn data(&mut self, slot: usize, bytes: &[u8]) {
        self.answers[slot].extend_from_slice(bytes);
    }

    fn end(&mut self, slot: usize) -> Result<(), String> {
        let answer = &mut self.answers[slot];
        let message = answer.get(5..).unwrap_or_default();
        let revision = number(bytes(message, 1), 3) as i64;
        let succeeded = number(message, 2) == 1;
        let responses = fields(message).filter(|field| matches!(field, (3, Field::Bytes(_))));
        if !succeeded || responses.count() != 1 || revision == 0 {
            return Err(format!("the compare-and-swap answered {message:02x?}"));
        }
        answer.clear();
        self.revisions[self.current[slot] as usize] = revision;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;
    use proto::etcdserverpb::{PutRequest, RangeRequest, TxnRequest, request_op::Request};

    const KEYSPACE: Keyspace = Keyspace { name: b'k', size: 1000 };

    #[test]
    fn keys_are_ordered_by_number() {
        assert_eq!(KEYSPACE.key(0).len(), KEY_SIZE);
        assert!(KEYSPACE.key(9) < KEYSPACE.key(10));
        assert!(KEYSPACE.key(999) < KEYSPACE.key(1000));
        assert!(KEYSPACE.key(10).ends_with(b"0010"));
    }

    #[test]
    fn a_fill_puts_each_key_once() {
        let mut load = Puts::fill(Keyspace { name: b'k', size: 3 }, 1);
        let mut keys = Vec::new();
        let mut message = Vec::new();
        while load.next(0, &mut message) {
            let request = PutRequest::decode(message.as_slice()).unwrap();
            assert_eq!(request.value.len(), VALUE_SIZE);
            keys.push(request.key);
            message.clear();
        }
        assert_eq!(keys, [0, 1, 2].map(|number| KEYSPACE.key(number).to_vec()));
    }

    #[test]
    fn reads_ask_for_what_they_check() {
        let mut message = Vec::new();
        let mut load = Reads::new(KEYSPACE, true, 100, 1);
        load.next(0, &mut message);
        let request = RangeRequest::decode(message.as_slice()).unwrap();
        assert!(request.serializable && request.key < request.range_end);
        load.data(0, &[0; 100]);
        assert!(load.end(0).is_err());
        load.data(0, &[0; 100 * (KEY_SIZE + VALUE_SIZE)]);
        assert_eq!(load.end(0), Ok(()));
    }

    #[test]
    fn a_compare_and_swap_compares_the_revision_it_has_seen() {
        let mut load = CompareAndSwaps::new(Keyspace { name: b'c', size: 2 }, 2);
        for seen in [0, 77] {
            let mut message = Vec::new();
            load.next(1, &mut message);
            let request = TxnRequest::decode(message.as_slice()).unwrap();
            let compare = &request.compare[0];
            assert_eq!(
                compare.target_union,
                Some(proto::etcdserverpb::compare::TargetUnion::ModRevision(seen))
            );
            assert!(matches!(request.success[0].request, Some(Request::RequestPut(_))));
            assert!(matches!(request.failure[0].request, Some(Request::RequestRange(_))));
            let mut header = Vec::new();
            put_number(&mut header, 3, 77);
            let mut answer = vec![0; 5];
            put_bytes(&mut answer, 1, &header);
            put_number(&mut answer, 2, 1);
            put_bytes(&mut answer, 3, &[]);
            load.data(1, &answer);
            assert_eq!(load.end(1), Ok(()));
        }
    }

    #[test]
    fn a_lost_compare_and_swap_is_an_error() {
        let mut load = CompareAndSwaps::new(Keyspace { name: b'c', size: 1 }, 1);
        load.next(0, &mut Vec::new());
        load.data(0, &[0; 5]);
        assert!(load.end(0).is_err());
    }
}
