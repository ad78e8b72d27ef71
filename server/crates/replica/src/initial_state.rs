//! A member that begins with a state: the directory that [`crate::start`] finds after a restore.
//!
//! What is written is exactly what a member leaves that has an image and whose log holds nothing
//! beyond it: the records in `store/0` and one image over them. There is no log. At start openraft
//! sees a state ahead of an empty log and begins the log behind it, as after a snapshot from a leader.
//! All members restored from the same state with the same membership stand at the same position, so
//! whichever is elected holds everything that the others hold.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use disk::Disk;
use machine::Machine;
use types::{ClusterId, MemberId};

use crate::codec;
use crate::images::Images;
use crate::raft_types::{StoredMembership, log_id};
use crate::store::store_path;

/// The epoch of a directory into which no snapshot was ever installed.
const FIRST_EPOCH: u64 = 0;

/// Where in a member's directory the records of an initial state belong. Whoever writes one fills a
/// record store there first.
pub fn initial_records_directory(directory: &Path) -> PathBuf {
    store_path(directory, FIRST_EPOCH)
}

/// Writes the image of an initial state into a member's directory; when this returns, image and
/// records survive power loss.
///
/// The tables of `machine` give the position in the log and the membership. Until a member is told
/// otherwise by its cluster, these are what it believes, so they must be the same for every member of
/// the cluster. Records that a compaction made dead are freed.
///
/// # Errors
/// The disk fails, or the tables name no position or a membership that cannot be. The directory is of
/// no use then and has to be thrown away.
pub fn write_initial_state(
    disk: Arc<dyn Disk>,
    directory: &Path,
    cluster: ClusterId,
    member: MemberId,
    machine: &Machine,
) -> io::Result<()> {
    let invalid = |detail: String| io::Error::new(io::ErrorKind::InvalidInput, detail);
    let tables = machine.views().tables();
    let applied = tables
        .applied
        .ok_or_else(|| invalid("an initial state has to have a position in the log".to_owned()))?;
    let applied = log_id(applied.term, applied.index);
    let membership = codec::membership_from_entry(&tables.membership.as_entry())
        .map_err(|error| invalid(error.to_string()))?;
    let membership = StoredMembership::new(Some(applied), membership);
    let images = Images::open(disk, directory.join("image"), cluster, member)?;
    let header = images.header(
        FIRST_EPOCH,
        Some(codec::log_id_message(&applied)),
        codec::stored_membership_message(&membership),
    );
    let image = machine.image();
    images.write(&header, |out| Ok(image.write(out)?))?;
    image.remove_garbage().map_err(io::Error::other)?;
    Ok(())
}
