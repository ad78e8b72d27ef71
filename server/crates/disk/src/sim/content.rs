//! The bytes of one simulated file: what programs see, what the platter holds, and the sectors in
//! between.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Toll;
use super::chance::Chance;

/// The unit that a simulated power loss keeps, loses or tears.
pub const SECTOR_BYTES: usize = 512;

/// How many overwritten unsynced versions of one sector are remembered as possible survivors.
const OLDER_VERSIONS_MAX: usize = 4;

type Sector = Arc<[u8; SECTOR_BYTES]>;

/// A sparse file image; a missing sector reads as zeros.
#[derive(Clone, Default)]
struct Image {
    len: u64,
    sectors: BTreeMap<u64, Sector>,
}

impl Image {
    fn sector(&self, number: u64) -> [u8; SECTOR_BYTES] {
        self.sectors.get(&number).map_or([0; SECTOR_BYTES], |sector| **sector)
    }

    fn set(&mut self, number: u64, bytes: [u8; SECTOR_BYTES]) {
        if bytes == [0; SECTOR_BYTES] {
            self.sectors.remove(&number);
        } else {
            self.sectors.insert(number, Arc::new(bytes));
        }
    }

    /// Cuts or extends; bytes beyond the new end are zeros afterwards, also in the last sector.
    fn set_len(&mut self, len: u64) {
        if len < self.len {
            let whole = len.div_ceil(SECTOR_BYTES as u64);
            self.sectors.split_off(&whole);
            let within = (len % SECTOR_BYTES as u64) as usize;
            if within != 0 {
                let number = len / SECTOR_BYTES as u64;
                let mut bytes = self.sector(number);
                bytes[within..].fill(0);
                self.set(number, bytes);
            }
        }
        self.len = len;
    }
}

/// One file.
#[derive(Clone, Default)]
pub(super) struct Content {
    /// What reads see.
    current: Image,
    /// What the last sync made durable.
    durable: Image,
    /// Sectors that differ or may differ, with versions written between the two images.
    unsynced: BTreeMap<u64, Vec<[u8; SECTOR_BYTES]>>,
    /// Sectors that a failed sync dropped: reads still see them, but no later sync will write them,
    /// because the kernel takes them for clean. Only writing them again helps.
    dropped: BTreeSet<u64>,
    /// Whether a write or sync failed; see the crate documentation.
    pub(super) poisoned: bool,
}

impl Content {
    pub(super) fn len(&self) -> u64 {
        self.current.len
    }

    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> usize {
        let available = self.current.len.saturating_sub(offset);
        let wanted = (buf.len() as u64).min(available) as usize;
        let mut done = 0;
        while done < wanted {
            let position = offset + done as u64;
            let within = (position % SECTOR_BYTES as u64) as usize;
            let step = (SECTOR_BYTES - within).min(wanted - done);
            match self.current.sectors.get(&(position / SECTOR_BYTES as u64)) {
                Some(sector) => {
                    buf[done..done + step].copy_from_slice(&sector[within..within + step]);
                }
                None => buf[done..done + step].fill(0),
            }
            done += step;
        }
        wanted
    }

    pub(super) fn write(&mut self, bytes: &[u8], offset: u64) {
        let mut done = 0;
        while done < bytes.len() {
            let position = offset + done as u64;
            let number = position / SECTOR_BYTES as u64;
            let within = (position % SECTOR_BYTES as u64) as usize;
            let step = (SECTOR_BYTES - within).min(bytes.len() - done);
            let before = self.current.sector(number);
            let mut after = before;
            after[within..within + step].copy_from_slice(&bytes[done..done + step]);
            if after != before || self.dropped.remove(&number) {
                self.touch(number, before);
                self.current.set(number, after);
            }
            done += step;
        }
        self.current.len = self.current.len.max(offset + bytes.len() as u64);
    }

    pub(super) fn set_len(&mut self, len: u64) {
        if len < self.current.len {
            let first = len / SECTOR_BYTES as u64;
            let numbers: Vec<u64> = self.current.sectors.range(first..).map(|(n, _)| *n).collect();
            for number in numbers {
                let before = self.current.sector(number);
                self.touch(number, before);
            }
        }
        self.current.set_len(len);
    }

    fn touch(&mut self, number: u64, before: [u8; SECTOR_BYTES]) {
        match self.unsynced.entry(number) {
            std::collections::btree_map::Entry::Vacant(vacant) => {
                // The version before the first unsynced write is the durable one.
                vacant.insert(Vec::new());
            }
            std::collections::btree_map::Entry::Occupied(mut occupied) => {
                let versions = occupied.get_mut();
                if versions.len() == OLDER_VERSIONS_MAX {
                    versions.remove(0);
                }
                versions.push(before);
            }
        }
    }

    /// A successful sync.
    pub(super) fn sync(&mut self) {
        for number in std::mem::take(&mut self.unsynced).into_keys() {
            match self.current.sectors.get(&number) {
                Some(sector) => self.durable.sectors.insert(number, Arc::clone(sector)),
                None => self.durable.sectors.remove(&number),
            };
        }
        self.durable.set_len(self.current.len);
    }

    /// A failed sync: what was on its way may or may not have arrived, and the kernel forgets it.
    pub(super) fn fail_sync(&mut self) {
        self.poisoned = true;
        self.dropped.extend(std::mem::take(&mut self.unsynced).into_keys());
    }

    /// A power loss: every unsynced sector and the length survive, vanish or tear.
    pub(super) fn lose_power(&mut self, survival: Survival, chance: &mut Chance, toll: &mut Toll) {
        let len = match survival {
            Survival::Nothing => self.durable.len,
            Survival::Everything => self.current.len,
            Survival::Some => {
                let (low, high) = (
                    self.durable.len.min(self.current.len),
                    self.durable.len.max(self.current.len),
                );
                match chance.below(3) {
                    0 => self.durable.len,
                    1 => self.current.len,
                    _ => low + chance.below(high - low + 1),
                }
            }
        };
        for number in std::mem::take(&mut self.dropped) {
            self.unsynced.entry(number).or_default();
        }
        let mut survivor = self.durable.clone();
        for (number, versions) in std::mem::take(&mut self.unsynced) {
            let old = self.durable.sector(number);
            let new = self.current.sector(number);
            let bytes = match survival {
                Survival::Nothing => old,
                Survival::Everything => new,
                Survival::Some => surviving_sector(old, &versions, new, chance),
            };
            toll.lost += u64::from(bytes == old && bytes != new);
            toll.torn += u64::from(bytes != old && bytes != new);
            survivor.set(number, bytes);
        }
        let longest = survivor.len.max(self.current.len);
        survivor.len = longest;
        survivor.set_len(len);
        self.current = survivor.clone();
        self.durable = survivor;
        self.poisoned = false;
    }

    /// Bit rot: the platter and every cache of it change.
    pub(super) fn flip(&mut self, bit: u64) {
        let byte = bit / 8;
        let number = byte / SECTOR_BYTES as u64;
        let within = (byte % SECTOR_BYTES as u64) as usize;
        for image in [&mut self.current, &mut self.durable] {
            if byte < image.len {
                let mut bytes = image.sector(number);
                bytes[within] ^= 1 << (bit % 8);
                image.set(number, bytes);
            }
        }
    }
}

/// What one power loss leaves of the unsynced changes.
#[derive(Clone, Copy)]
pub(super) enum Survival {
    Nothing,
    Some,
    Everything,
}

fn surviving_sector(
    old: [u8; SECTOR_BYTES],
    versions: &[[u8; SECTOR_BYTES]],
    new: [u8; SECTOR_BYTES],
    chance: &mut Chance,
) -> [u8; SECTOR_BYTES] {
    match chance.below(8) {
        0..=2 => old,
        3..=5 => new,
        6 if !versions.is_empty() => versions[chance.below(versions.len() as u64) as usize],
        _ => {
            // Torn inside the sector, which real drives promise not to do; formats must not rely
            // on that promise.
            let cut = chance.below(SECTOR_BYTES as u64 + 1) as usize;
            let (mut torn, tail) = if chance.below(2) == 0 { (new, old) } else { (old, new) };
            torn[cut..].copy_from_slice(&tail[cut..]);
            torn
        }
    }
}
