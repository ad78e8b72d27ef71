//! The files a member starts from: the state machine at one applied index.
//!
//! ```text
//! image/<index, 20 digits>.image
//! +----------+--------+--------------------+--------+------------------------------------+
//! | magic 8  | len u32| header (protobuf)  | crc u32| the machine's image, with its digest|
//! +----------+--------+--------------------+--------+------------------------------------+
//! ```
//!
//! The header binds the image to its cluster and member, to a log position with the membership
//! there, and to the directory (`store/<epoch>`) whose records it indexes. An image becomes visible
//! by one rename, after its bytes and the records it refers to are durable; whatever an image does
//! not name is garbage that [`Images::sweep`] removes. So a crash at any point leaves the old image
//! or the new one, whole. Only the newest is kept: records that it no longer needs are freed, so an
//! older one could not be replayed from.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use disk::{Disk, OpenMode};
use prost::Message;
use proto::peerpb;
use types::{ClusterId, LogIndex, MemberId};

const MAGIC: &[u8; 8] = b"KLIMAGE1";

/// What an image says of itself before the machine's part.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ImageHeader {
    #[prost(fixed64, tag = "1")]
    pub(crate) cluster_id: u64,
    #[prost(fixed64, tag = "2")]
    pub(crate) member_id: u64,
    /// The directory of records that the image indexes.
    #[prost(uint64, tag = "3")]
    pub(crate) epoch: u64,
    #[prost(message, optional, tag = "4")]
    pub(crate) applied: Option<peerpb::LogId>,
    #[prost(message, optional, tag = "5")]
    pub(crate) membership: Option<peerpb::StoredMembership>,
}

/// Why an image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file could not be read or written.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The file is damaged.
    #[error(
        "{path} is damaged: {detail}; what it held cannot be rebuilt from this directory: remove \
         this member from its cluster, clear its data directory and add it again as a new member, \
         or restore a backup"
    )]
    Damaged { path: String, detail: String },
    /// The file belongs to another cluster or member.
    #[error(
        "{path} belongs to member {found_member} of cluster {found_cluster}, but this is member \
         {member} of cluster {cluster}; start with the data directory of this member, or remove \
         this member from its cluster, clear its data directory and add it again"
    )]
    Foreign {
        path: String,
        found_member: MemberId,
        found_cluster: ClusterId,
        member: MemberId,
        cluster: ClusterId,
    },
}

/// How the file ends that becomes an image.
const UNFINISHED: &str = ".image.tmp";

/// The directory of images.
pub(crate) struct Images {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    cluster: ClusterId,
    member: MemberId,
}

impl Images {
    /// Opens the directory and removes what was being written when a process before ended: each image has a
    /// name of its own, so that no later one would take its place.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        directory: PathBuf,
        cluster: ClusterId,
        member: MemberId,
    ) -> io::Result<Self> {
        disk.create_dir_all(&directory)?;
        for entry in disk.list(&directory)? {
            if entry.name.ends_with(UNFINISHED) {
                disk.remove_file(&directory.join(&entry.name))?;
            }
        }
        Ok(Self { disk, directory, cluster, member })
    }

    /// The images there are, newest first.
    pub(crate) fn list(&self) -> io::Result<Vec<(LogIndex, PathBuf)>> {
        let mut images: Vec<_> = self
            .disk
            .list(&self.directory)?
            .into_iter()
            .filter_map(|entry| {
                let index = entry.name.strip_suffix(".image")?.parse().ok()?;
                Some((LogIndex(index), self.directory.join(&entry.name)))
            })
            .collect();
        images.sort_by_key(|(index, _)| std::cmp::Reverse(*index));
        Ok(images)
    }

    /// Opens an image and reads its header; the reader then stands at the machine's part.
    pub(crate) fn read(&self, path: &Path) -> Result<(ImageHeader, disk::FileReader), ImageError> {
        let damaged = |detail: &str| ImageError::Damaged {
            path: path.display().to_string(),
            detail: detail.to_owned(),
        };
        let mut file = disk::FileReader::open(&*self.disk, path)?;
        let mut magic = [0; 8];
        file.read_exact(&mut magic)?;
        if &magic != MAGIC {
            return Err(damaged("not an image of this version"));
        }
        let mut word = [0; 4];
        file.read_exact(&mut word)?;
        let length = u32::from_le_bytes(word) as usize;
        if length > (64 << 20) {
            return Err(damaged("its header is impossibly long"));
        }
        let mut header = vec![0; length];
        file.read_exact(&mut header)?;
        file.read_exact(&mut word)?;
        if crc32c::crc32c(&header) != u32::from_le_bytes(word) {
            return Err(damaged("its header does not match its checksum"));
        }
        let header = ImageHeader::decode(header.as_slice())
            .map_err(|error| damaged(&format!("its header cannot be read: {error}")))?;
        self.check_owner(path, &header)?;
        Ok((header, file))
    }

    fn check_owner(&self, path: &Path, header: &ImageHeader) -> Result<(), ImageError> {
        if header.cluster_id == self.cluster.0 && header.member_id == self.member.0 {
            return Ok(());
        }
        Err(ImageError::Foreign {
            path: path.display().to_string(),
            found_member: MemberId(header.member_id),
            found_cluster: ClusterId(header.cluster_id),
            member: self.member,
            cluster: self.cluster,
        })
    }

    /// How many bytes an image has.
    pub(crate) fn bytes(&self, path: &Path) -> io::Result<u64> {
        self.disk.open(path, OpenMode::Read)?.len()
    }

    /// Writes an image and tells how many bytes it has; when this returns it survives power loss.
    pub(crate) fn write(
        &self,
        header: &ImageHeader,
        body: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<u64> {
        let index = header.applied.map_or(0, |applied| applied.index);
        let name = format!("{index:020}.image");
        let mut out = disk::AtomicFile::create(&*self.disk, &self.directory, &name)?;
        let bytes = header.encode_to_vec();
        out.write_all(MAGIC)?;
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        out.write_all(&length.to_le_bytes())?;
        out.write_all(&bytes)?;
        out.write_all(&crc32c::crc32c(&bytes).to_le_bytes())?;
        body(&mut out)?;
        let bytes = out.bytes_written();
        out.commit()?;
        Ok(bytes)
    }

    /// The header of a new image of this member.
    pub(crate) fn header(
        &self,
        epoch: u64,
        applied: Option<peerpb::LogId>,
        membership: peerpb::StoredMembership,
    ) -> ImageHeader {
        ImageHeader {
            cluster_id: self.cluster.0,
            member_id: self.member.0,
            epoch,
            applied,
            membership: Some(membership),
        }
    }

    /// Removes every image but the newest.
    pub(crate) fn sweep(&self) -> io::Result<()> {
        for (_, path) in self.list()?.into_iter().skip(1) {
            self.disk.remove_file(&path)?;
        }
        Ok(())
    }
}
