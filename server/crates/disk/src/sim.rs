//! The simulated disk; see [`SimDisk`].

mod chance;
mod content;
mod file;
mod names;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chance::{Chance, RollingHash};
pub use content::SECTOR_BYTES;
use content::{Content, Survival};
use file::SimFile;
use names::{Inode, Names};

use crate::{DirEntry, DirLock, Disk, File, OpenMode};

/// Something that goes wrong once. Operations are numbered from 1 over the disk's whole life;
/// [`SimDisk::mutations`] and [`SimDisk::reads`] tell the numbers reached so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The power fails during this changing operation (write, sync, create, rename, remove).
    CrashAt(u64),
    /// This changing operation fails with EIO. On a write or sync the file is poisoned.
    FailAt(u64),
    /// This changing operation fails with ENOSPC; of a write, a part may have been done.
    NoSpaceAt(u64),
    /// This read fails with EIO.
    FailReadAt(u64),
}

/// An in-memory disk that behaves as badly as a real one may, decided by a seed.
///
/// Clones share the disk. A typical run:
///
/// ```
/// use disk::{Disk, File, OpenMode, SimDisk};
/// use std::path::Path;
///
/// let disk = SimDisk::new(7);
/// let file = disk.open(Path::new("a"), OpenMode::Create).unwrap();
/// file.write_all_at(b"hello", 0).unwrap();
/// file.sync_data().unwrap();
/// disk.sync_dir(Path::new("")).unwrap();
/// disk.crash();
/// assert!(file.write_all_at(b"later", 0).is_err());
/// disk.restart();
/// assert!(file.len().is_err(), "a handle of the dead process stays dead");
/// assert_eq!(disk::read_file(&disk, Path::new("a"), 99).unwrap(), b"hello");
/// ```
///
/// * **Power loss** ([`SimDisk::crash`] then [`SimDisk::restart`], or [`Fault::CrashAt`]): each
///   unsynced 512-byte sector becomes its old, its new or an earlier unsynced version, or tears in
///   the middle; the length becomes the old, the new or one between; unsynced names survive or not.
/// * **Process death** ([`SimDisk::kill`]): nothing is lost, but old handles and locks are dead.
/// * **Full disk** ([`SimDisk::set_capacity`]): a write that needs more is cut short. Overwriting
///   never needs more.
/// * **Failed sync** ([`Fault::FailAt`]): poisons the file until the process ends. The kernel takes
///   the dropped sectors for clean: reads still see them, also in the next process, but only writing
///   them again and syncing makes them durable.
/// * **Bit rot** ([`SimDisk::flip`]).
/// * **Determinism** ([`SimDisk::operations_hash`]): two runs of one seed must give the same hash.
#[derive(Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
    /// The generation whose process has this value, if only one has.
    process: Option<u64>,
}

struct State {
    chance: Chance,
    names: Names,
    files: BTreeMap<Inode, Content>,
    /// Open handles by inode, so that a removed file keeps its bytes while somebody reads it.
    handles: BTreeMap<Inode, u64>,
    next_inode: Inode,
    locks: BTreeSet<PathBuf>,
    capacity: Option<u64>,
    faults: BTreeSet<Fault>,
    mutations: u64,
    reads: u64,
    crashed: bool,
    /// Counts restarts; a handle of an earlier generation belongs to a dead process.
    generation: u64,
    toll: Toll,
    hash: RollingHash,
}

/// What losses of power took that was not synced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Toll {
    /// Sectors that are as they were before.
    pub lost: u64,
    /// Sectors of which a part changed, or that are older than the last write.
    pub torn: u64,
    /// Files that were not made, renamed or removed after all.
    pub names: u64,
}

/// The error of every operation while the power is off.
#[derive(Debug, thiserror::Error)]
#[error("the simulated machine has lost its power")]
struct SimulatedCrash;

/// Whether an error only says that the simulated power is off.
pub fn is_simulated_crash(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<SimulatedCrash>())
}

/// What is to happen to the changing operation at hand.
enum Verdict {
    Go,
    /// Take effect, unsynced, and then lose power.
    Crash,
    Fail,
    NoSpace,
}

impl SimDisk {
    /// An empty disk whose misfortunes are decided by `seed`.
    pub fn new(seed: u64) -> Self {
        Self {
            state: Arc::new(Mutex::new(State {
                chance: Chance::new(seed),
                names: Names::new(),
                files: BTreeMap::new(),
                handles: BTreeMap::new(),
                next_inode: names::ROOT + 1,
                locks: BTreeSet::new(),
                capacity: None,
                faults: BTreeSet::new(),
                mutations: 0,
                reads: 0,
                crashed: false,
                generation: 0,
                toll: Toll::default(),
                hash: RollingHash::new(),
            })),
            process: None,
        }
    }

    /// The disk as the present process has it. After [`SimDisk::restart`] or [`SimDisk::kill`] every
    /// operation fails: a simulated process that has died is dropped some time later, and what it tidies
    /// up then must not hit its successor.
    pub fn of_this_process(&self) -> SimDisk {
        let generation = self.state().generation;
        SimDisk { state: self.state.clone(), process: Some(generation) }
    }

    /// Plans a fault.
    pub fn inject(&self, fault: Fault) {
        self.state().faults.insert(fault);
    }

    /// Forgets all planned faults.
    pub fn clear_faults(&self) {
        self.state().faults.clear();
    }

    /// Limits the sum of all file lengths; `None` lifts the limit.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state().capacity = bytes;
    }

    /// The sum of all file lengths, in whole sectors.
    pub fn used_bytes(&self) -> u64 {
        self.state().used()
    }

    /// The changing operations so far, failed ones included.
    pub fn mutations(&self) -> u64 {
        self.state().mutations
    }

    /// The reads so far.
    pub fn reads(&self) -> u64 {
        self.state().reads
    }

    /// The hash of all operations so far.
    pub fn operations_hash(&self) -> u64 {
        self.state().hash.value()
    }

    /// What all losses of power so far took.
    pub fn toll(&self) -> Toll {
        self.state().toll
    }

    /// Whether the power is off, by [`SimDisk::crash`] or a [`Fault::CrashAt`] that struck.
    pub fn is_crashed(&self) -> bool {
        self.state().crashed
    }

    /// Cuts the power: every operation fails until [`SimDisk::restart`].
    pub fn crash(&self) {
        self.state().crashed = true;
    }

    /// Switches the power on again, after cutting it if it was on: decides what survived.
    pub fn restart(&self) {
        let mut state = self.state();
        let survival = match state.chance.below(6) {
            0 => Survival::Nothing,
            1 => Survival::Everything,
            _ => Survival::Some,
        };
        let State { chance, names, files, toll, .. } = &mut *state;
        names.lose_power(survival, chance, toll);
        for content in files.values_mut() {
            content.lose_power(survival, chance, toll);
        }
        state.begin_generation();
    }

    /// The process dies but the machine lives on: nothing is lost, old handles and locks are dead.
    pub fn kill(&self) {
        self.state().begin_generation();
    }

    /// A copy of the disk as it is now, with a life of its own; handles belong to the original. For
    /// trying many misfortunes on one state.
    pub fn fork(&self) -> SimDisk {
        let state = self.state();
        let mut copy = State {
            chance: state.chance.clone(),
            names: state.names.clone(),
            files: state.files.clone(),
            handles: BTreeMap::new(),
            next_inode: state.next_inode,
            locks: BTreeSet::new(),
            capacity: state.capacity,
            faults: state.faults.clone(),
            mutations: state.mutations,
            reads: state.reads,
            crashed: state.crashed,
            generation: state.generation,
            toll: state.toll,
            hash: state.hash.clone(),
        };
        copy.begin_generation();
        copy.crashed = state.crashed;
        SimDisk { state: Arc::new(Mutex::new(copy)), process: None }
    }

    /// Flips one bit of a file, on the platter and in every cache.
    pub fn flip(&self, path: &Path, bit: u64) -> io::Result<()> {
        let mut state = self.state();
        let inode = state.names.find(path)?;
        let content = state.files.get_mut(&inode).ok_or(io::ErrorKind::IsADirectory)?;
        if bit / 8 >= content.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        content.flip(bit);
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn powered(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.state();
        let dead = self.process.is_some_and(|generation| generation != state.generation);
        if state.crashed || dead { Err(power_is_off()) } else { Ok(state) }
    }
}

fn power_is_off() -> io::Error {
    io::Error::other(SimulatedCrash)
}

fn input_output_error() -> io::Error {
    io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error())
}

// === impl State ===

impl State {
    fn used(&self) -> u64 {
        let sector = SECTOR_BYTES as u64;
        self.files.values().map(|content| content.len().div_ceil(sector) * sector).sum()
    }

    /// The length up to which a file of `len` bytes may grow.
    fn growth_limit(&self, len: u64) -> u64 {
        let Some(capacity) = self.capacity else { return u64::MAX };
        let sector = SECTOR_BYTES as u64;
        let free = capacity.saturating_sub(self.used()) / sector * sector;
        len.div_ceil(sector) * sector + free
    }

    fn begin_generation(&mut self) {
        self.crashed = false;
        self.generation += 1;
        self.locks.clear();
        self.handles.clear();
        let named = self.names.all_named();
        self.files.retain(|inode, _| named.contains(inode));
        for content in self.files.values_mut() {
            content.poisoned = false;
        }
        self.hash.number(u64::MAX);
    }

    /// Counts a changing operation and decides its fate.
    fn judge(&mut self, operation: u64, inode: Inode) -> Verdict {
        self.mutations += 1;
        self.hash.number(operation);
        self.hash.number(inode);
        let number = self.mutations;
        if self.faults.remove(&Fault::CrashAt(number)) {
            self.crashed = true;
            Verdict::Crash
        } else if self.faults.remove(&Fault::FailAt(number)) {
            Verdict::Fail
        } else if self.faults.remove(&Fault::NoSpaceAt(number)) {
            Verdict::NoSpace
        } else {
            Verdict::Go
        }
    }

    /// Judges an operation on names and runs it unless it fails outright.
    fn change_names(
        &mut self,
        operation: u64,
        path: &Path,
        change: impl FnOnce(&mut State),
    ) -> io::Result<()> {
        self.hash.bytes(path.as_os_str().as_encoded_bytes());
        match self.judge(operation, 0) {
            Verdict::Go => {
                change(self);
                Ok(())
            }
            Verdict::Crash => {
                change(self);
                Err(power_is_off())
            }
            Verdict::Fail => Err(input_output_error()),
            Verdict::NoSpace => Err(io::ErrorKind::StorageFull.into()),
        }
    }

    fn forget_if_unused(&mut self, inode: Inode) {
        if !self.handles.contains_key(&inode) && !self.names.is_named(inode) {
            self.files.remove(&inode);
        }
    }
}

/// The numbers of the operations in the hash.
mod operation {
    pub(super) const CREATE: u64 = 1;
    pub(super) const CREATE_DIR: u64 = 2;
    pub(super) const RENAME: u64 = 3;
    pub(super) const REMOVE: u64 = 4;
    pub(super) const REMOVE_DIR: u64 = 5;
    pub(super) const SYNC_DIR: u64 = 6;
    pub(super) const WRITE: u64 = 7;
    pub(super) const SET_LEN: u64 = 8;
    pub(super) const SYNC: u64 = 9;
    pub(super) const READ: u64 = 10;
}

// === impl Disk ===

impl Disk for SimDisk {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.powered()?;
        let mut prefix = PathBuf::new();
        for component in path.components() {
            prefix.push(component);
            match state.names.find(&prefix) {
                Ok(inode) if state.names.is_dir(inode) => continue,
                Ok(_) => return Err(io::ErrorKind::NotADirectory.into()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            let place = state.names.place(&prefix)?;
            let parent = place.0;
            state.change_names(operation::CREATE_DIR, &prefix, |state| {
                let inode = state.next_inode;
                state.next_inode += 1;
                state.names.link(place, inode, true);
            })?;
            state.change_names(operation::SYNC_DIR, &prefix, |state| {
                if !state.crashed {
                    state.names.sync(parent);
                }
            })?;
        }
        Ok(())
    }

    fn set_private(&self, path: &Path) -> io::Result<()> {
        self.powered()?.names.find(path).map(|_| ())
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        let mut state = self.powered()?;
        let place = state.names.place(path)?;
        let inode = match (state.names.entry(&place), mode) {
            (Some(_), OpenMode::Create) => return Err(io::ErrorKind::AlreadyExists.into()),
            (Some(inode), _) if state.names.is_dir(inode) => {
                return Err(io::ErrorKind::IsADirectory.into());
            }
            (Some(inode), _) => inode,
            (None, OpenMode::Read | OpenMode::ReadWrite) => {
                return Err(io::ErrorKind::NotFound.into());
            }
            (None, OpenMode::Create | OpenMode::CreateOrOpen) => {
                let inode = state.next_inode;
                state.next_inode += 1;
                state.change_names(operation::CREATE, path, |state| {
                    state.files.insert(inode, Content::default());
                    state.names.link(place, inode, false);
                })?;
                inode
            }
        };
        *state.handles.entry(inode).or_default() += 1;
        let generation = state.generation;
        let writable = mode != OpenMode::Read;
        Ok(Arc::new(SimFile { disk: self.clone(), inode, generation, writable }))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        let state = self.powered()?;
        let directory = state.names.find(path)?;
        let entries = state.names.entries(directory)?;
        Ok(entries
            .iter()
            .map(|(name, inode)| DirEntry {
                name: name.clone(),
                is_dir: state.names.is_dir(*inode),
                len: state.files.get(inode).map_or(0, Content::len),
            })
            .collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.powered()?;
        let source = state.names.place(from)?;
        let target = state.names.place(to)?;
        let inode = state.names.entry(&source).ok_or(io::ErrorKind::NotFound)?;
        let replaced = state.names.entry(&target);
        if replaced == Some(inode) {
            return Ok(());
        }
        if let Some(replaced) = replaced {
            match (state.names.is_dir(inode), state.names.is_dir(replaced)) {
                (false, true) => return Err(io::ErrorKind::IsADirectory.into()),
                (true, false) => return Err(io::ErrorKind::NotADirectory.into()),
                (true, true) if !state.names.entries(replaced)?.is_empty() => {
                    return Err(io::ErrorKind::DirectoryNotEmpty.into());
                }
                _ => {}
            }
        }
        state.hash.bytes(from.as_os_str().as_encoded_bytes());
        state.change_names(operation::RENAME, to, |state| {
            state.names.rename(source, target, inode);
        })
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.powered()?;
        let place = state.names.place(path)?;
        let inode = state.names.entry(&place).ok_or(io::ErrorKind::NotFound)?;
        if state.names.is_dir(inode) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        state.change_names(operation::REMOVE, path, |state| state.names.unlink(place, inode))
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.powered()?;
        let place = state.names.place(path)?;
        let inode = state.names.entry(&place).ok_or(io::ErrorKind::NotFound)?;
        if !state.names.is_dir(inode) {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        state.change_names(operation::REMOVE_DIR, path, |state| {
            state.names.unlink_below(inode);
            state.names.unlink(place, inode);
        })
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.powered()?;
        let directory = state.names.find(path)?;
        if !state.names.is_dir(directory) {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        state.change_names(operation::SYNC_DIR, path, |state| {
            if !state.crashed {
                state.names.sync(directory);
                let files: Vec<Inode> = state.files.keys().copied().collect();
                for inode in files {
                    state.forget_if_unused(inode);
                }
            }
        })
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        match self.powered()?.names.find(path) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn lock(&self, path: &Path) -> io::Result<DirLock> {
        let mut state = self.powered()?;
        state.names.find(path)?;
        if !state.locks.insert(path.to_path_buf()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let generation = state.generation;
        Ok(DirLock::new(SimLock { disk: self.clone(), path: path.to_path_buf(), generation }))
    }

    fn available_space(&self, _path: &Path) -> io::Result<u64> {
        let state = self.powered()?;
        Ok(state.capacity.map_or(u64::MAX / 2, |capacity| capacity.saturating_sub(state.used())))
    }
}

struct SimLock {
    disk: SimDisk,
    path: PathBuf,
    generation: u64,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut state = self.disk.state();
        if state.generation == self.generation {
            state.locks.remove(&self.path);
        }
    }
}
