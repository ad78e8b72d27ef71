//! An open file of the simulated disk.

use std::io;
use std::sync::MutexGuard;

use super::chance::RollingHash;
use super::content::Content;
use super::names::Inode;
use super::{Fault, SimDisk, State, Verdict, input_output_error, operation, power_is_off};
use crate::File;

pub(super) struct SimFile {
    pub(super) disk: SimDisk,
    pub(super) inode: Inode,
    pub(super) generation: u64,
    pub(super) writable: bool,
}

impl SimFile {
    fn alive(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.disk.powered()?;
        if state.generation == self.generation { Ok(state) } else { Err(power_is_off()) }
    }

    /// Judges and runs one change of the bytes. `change` gets what is left of the growth limit and
    /// returns whether everything fitted; `end` is the length the file needs.
    fn change_bytes(
        &self,
        operation: u64,
        end: u64,
        change: impl FnOnce(&mut Content, u64),
        record: impl FnOnce(&mut RollingHash),
    ) -> io::Result<()> {
        if !self.writable {
            return Err(io::Error::from_raw_os_error(rustix::io::Errno::BADF.raw_os_error()));
        }
        let mut state = self.alive()?;
        record(&mut state.hash);
        let verdict = state.judge(operation, self.inode);
        let content = state.files.get(&self.inode).ok_or(io::ErrorKind::NotFound)?;
        if content.poisoned {
            return Err(input_output_error());
        }
        let len = content.len();
        let limit = state.growth_limit(len);
        let limit = match verdict {
            Verdict::Go | Verdict::Crash => limit,
            Verdict::Fail => {
                let limit = state.chance.below(end.saturating_add(1));
                let content = state.files.get_mut(&self.inode).ok_or(io::ErrorKind::NotFound)?;
                content.poisoned = true;
                change(content, limit);
                return Err(input_output_error());
            }
            Verdict::NoSpace => state.chance.below(end.saturating_add(1)),
        };
        let content = state.files.get_mut(&self.inode).ok_or(io::ErrorKind::NotFound)?;
        change(content, limit);
        match verdict {
            Verdict::Crash => Err(power_is_off()),
            _ if limit < end => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(()),
        }
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.alive()?;
        let verdict = state.judge(operation::SYNC, self.inode);
        let content = state.files.get_mut(&self.inode).ok_or(io::ErrorKind::NotFound)?;
        if content.poisoned {
            return Err(input_output_error());
        }
        match verdict {
            Verdict::Go => {
                content.sync();
                Ok(())
            }
            // The sectors on their way may or may not arrive, which is what "unsynced" says.
            Verdict::Crash => Err(power_is_off()),
            Verdict::Fail | Verdict::NoSpace => {
                content.fail_sync();
                Err(input_output_error())
            }
        }
    }
}

impl File for SimFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.alive()?;
        state.reads += 1;
        let number = state.reads;
        state.hash.number(operation::READ);
        state.hash.number(offset ^ (buf.len() as u64).rotate_left(32));
        if state.faults.remove(&Fault::FailReadAt(number)) {
            return Err(input_output_error());
        }
        let content = state.files.get(&self.inode).ok_or(io::ErrorKind::NotFound)?;
        Ok(content.read(buf, offset))
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let end = offset + buf.len() as u64;
        let write = |content: &mut Content, limit: u64| {
            let fits = limit.saturating_sub(offset).min(buf.len() as u64) as usize;
            content.write(&buf[..fits], offset);
        };
        self.change_bytes(operation::WRITE, end, write, |hash| {
            hash.number(offset);
            hash.bytes(buf);
        })
    }

    fn write_vectored_at(&self, slices: &[io::IoSlice<'_>], offset: u64) -> io::Result<()> {
        let joined: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
        self.write_all_at(&joined, offset)
    }

    fn len(&self) -> io::Result<u64> {
        let state = self.alive()?;
        Ok(state.files.get(&self.inode).ok_or(io::ErrorKind::NotFound)?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let set = |content: &mut Content, limit: u64| {
            if len <= limit {
                content.set_len(len);
            }
        };
        self.change_bytes(operation::SET_LEN, len, set, |hash| hash.number(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync()
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        let mut state = self.disk.state();
        if state.generation != self.generation {
            return;
        }
        if let Some(count) = state.handles.get_mut(&self.inode) {
            *count -= 1;
            if *count == 0 {
                state.handles.remove(&self.inode);
                state.forget_if_unused(self.inode);
            }
        }
    }
}
