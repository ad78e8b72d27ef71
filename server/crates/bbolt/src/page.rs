//! What reader and writer share of the format.

/// The size of the pages we write: that of nearly every machine etcd runs on.
pub const PAGE_BYTES: usize = 4096;

pub(crate) const PAGE_HEADER_BYTES: usize = 16;
/// Bytes of an element of a leaf or a branch, alike.
pub(crate) const ELEMENT_BYTES: usize = 16;
pub(crate) const BUCKET_BYTES: usize = 16;
pub(crate) const META_BYTES: usize = 64;
/// Bytes of the meta that its checksum covers.
pub(crate) const META_SUMMED_BYTES: usize = 56;

pub(crate) const FLAG_BRANCH: u16 = 1;
pub(crate) const FLAG_LEAF: u16 = 2;
pub(crate) const FLAG_META: u16 = 4;
pub(crate) const FLAG_FREELIST: u16 = 16;
/// A leaf element whose value is a bucket.
pub(crate) const ELEMENT_BUCKET: u32 = 1;

pub(crate) const MAGIC: u32 = 0xED0C_DAED;
pub(crate) const VERSION: u32 = 2;
/// The freelist page of a file that has none: the free pages are those that nothing reaches.
pub(crate) const NO_FREELIST: u64 = u64::MAX;

/// The header of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageHeader {
    pub(crate) id: u64,
    pub(crate) flags: u16,
    pub(crate) count: u16,
    pub(crate) overflow: u32,
}

impl PageHeader {
    pub(crate) fn encode(self) -> [u8; PAGE_HEADER_BYTES] {
        let mut out = [0; PAGE_HEADER_BYTES];
        out[..8].copy_from_slice(&self.id.to_le_bytes());
        out[8..10].copy_from_slice(&self.flags.to_le_bytes());
        out[10..12].copy_from_slice(&self.count.to_le_bytes());
        out[12..].copy_from_slice(&self.overflow.to_le_bytes());
        out
    }

    /// Reads the header at the front of `bytes`, which must hold it.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (id, rest) = bytes.split_first_chunk::<8>()?;
        let (flags, rest) = rest.split_first_chunk::<2>()?;
        let (count, rest) = rest.split_first_chunk::<2>()?;
        let (overflow, _) = rest.split_first_chunk::<4>()?;
        Some(Self {
            id: u64::from_le_bytes(*id),
            flags: u16::from_le_bytes(*flags),
            count: u16::from_le_bytes(*count),
            overflow: u32::from_le_bytes(*overflow),
        })
    }
}

/// The number at `at`, or nothing beyond the end.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let number = bytes.get(at..at.checked_add(4)?)?;
    number.first_chunk::<4>().map(|number| u32::from_le_bytes(*number))
}

/// The number at `at`, or nothing beyond the end.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let number = bytes.get(at..at.checked_add(8)?)?;
    number.first_chunk::<8>().map(|number| u64::from_le_bytes(*number))
}

/// The 64-bit FNV-1a hash.
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fnv1a_gives_its_published_values() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
