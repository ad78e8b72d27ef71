//! A small deterministic source of chance (SplitMix64) and the rolling hash of operations. Both are
//! ours because they must never change with a dependency: a recorded seed has to replay for ever.

/// SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Clone)]
pub(super) struct Chance {
    state: u64,
}

impl Chance {
    pub(super) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    pub(super) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.state)
    }

    /// A number below `bound`, which must not be 0. The modulo's bias does not matter here.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// The hash of everything that was done, for comparing two runs of one seed.
#[derive(Clone)]
pub(super) struct RollingHash {
    value: u64,
}

impl RollingHash {
    pub(super) fn new() -> Self {
        Self { value: 0x6b65_656c_736f_6e00 }
    }

    pub(super) fn value(&self) -> u64 {
        self.value
    }

    pub(super) fn number(&mut self, number: u64) {
        self.value = mix(self.value.rotate_left(5) ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        let mut words = bytes.chunks_exact(8);
        for word in &mut words {
            let word = word.iter().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
            self.value = (self.value.rotate_left(23) ^ word).wrapping_mul(0xff51_afd7_ed55_8ccd);
        }
        for byte in words.remainder() {
            self.number(u64::from(*byte));
        }
    }
}

fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
