//! The container of images and snapshots: sections cut into frames, each with its checksum, and one
//! digest over all of it at the end.
//!
//! ```text
//! +----------+------------+---------+   kind 1: image (sections 1, 2, 4)
//! | KEELSTAT | format u32 | kind u8 |   kind 2: snapshot (sections 1, 2, 4, 5)
//! |          |    = 1     |         |
//! +----------+------------+---------+
//! then frames, integers little endian
//! +------------+---------+------------+------------+---------+
//! | section u8 | last u8 | length u32 | CRC-32C u32| payload |  CRC over section, last,
//! +------------+---------+------------+------------+---------+  length and payload
//! sections, each one or more frames of which the last has last = 1
//!   1 tables    the encoding of room `tables`
//!   2 leases    the image of room `lease`
//!   3 (reserved for auth)
//!   4 index     the image of room `mvcc`: key index, revisions, garbage
//!   5 records   values, see snapshot.rs
//! 255 end       one frame, payload: SHA-256 of every byte before this frame
//! ```
//!
//! A reader gets a frame's payload only after its checksum matched, and nothing that was built from
//! a file may be used before [`FrameReader::finish`] has compared the digest. A section that the
//! reader does not know is an error and not skipped: it holds state.

use std::io::{self, Read, Write};

use sha2::{Digest, Sha256};

const MAGIC: &[u8; 8] = b"KEELSTAT";
const FORMAT: u32 = 1;

/// Frames are cut at this size, except around a record that is longer.
pub(crate) const FRAME_BYTES: usize = 256 << 10;

/// A longer frame is damage: no value comes near it.
const FRAME_BYTES_MAX: u32 = 1 << 30;

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Image = 1,
    Snapshot = 2,
}

/// A part of the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Section {
    Tables = 1,
    Leases = 2,
    Index = 4,
    Records = 5,
    End = 255,
}

/// Why the container cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// It ends early or cannot be read.
    #[error("read state: {0}")]
    Io(#[from] io::Error),
    /// It is no such file.
    #[error("this is not a state file (it begins with {found:02x?})")]
    Magic { found: [u8; 8] },
    /// It is of another format.
    #[error("state file has format {found}, this program reads {FORMAT}; use a newer program")]
    Format { found: u32 },
    /// An image was expected and a snapshot found, or the other way round.
    #[error("state file is of kind {found}, expected kind {expected}")]
    Kind { found: u8, expected: u8 },
    /// A frame of another section than the next one.
    #[error(
        "state file has section {found} where section {expected} belongs; if it is not damaged, a \
         newer program wrote it"
    )]
    Section { found: u8, expected: u8 },
    /// A frame does not match its checksum.
    #[error("frame {frame} of the state file, in section {section}, does not match its checksum")]
    Checksum { frame: u64, section: u8 },
    /// A frame that no writer writes.
    #[error("frame {frame} of the state file is damaged: {detail}")]
    Frame { frame: u64, detail: &'static str },
    /// Bytes of a section that its reader did not ask for.
    #[error("section {section} of the state file is longer than its content")]
    Excess { section: u8 },
    /// Every frame is whole, but they are not the ones that were written.
    #[error("state file does not match the digest at its end")]
    Digest,
}

fn checksum(head: &[u8; 6], payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(head), payload)
}

/// Writes a container.
pub(crate) struct FrameWriter<'a> {
    out: &'a mut dyn Write,
    digest: Sha256,
}

impl<'a> FrameWriter<'a> {
    pub(crate) fn new(out: &'a mut dyn Write, kind: Kind) -> io::Result<Self> {
        let mut writer = Self { out, digest: Sha256::new() };
        writer.put(MAGIC)?;
        writer.put(&FORMAT.to_le_bytes())?;
        writer.put(&[kind as u8])?;
        Ok(writer)
    }

    /// Writes one section through `fill`.
    pub(crate) fn section<E: From<io::Error>>(
        &mut self,
        section: Section,
        fill: impl FnOnce(&mut SectionWriter<'_, 'a>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut writer =
            SectionWriter { frames: self, section, buffer: Vec::with_capacity(FRAME_BYTES) };
        fill(&mut writer)?;
        writer.frame(true)?;
        Ok(())
    }

    /// Writes the digest. Without it the file counts as damaged.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        let digest: [u8; 32] = self.digest.clone().finalize().into();
        self.frame(Section::End, true, &digest)?;
        self.out.flush()
    }

    fn frame(&mut self, section: Section, last: bool, payload: &[u8]) -> io::Result<()> {
        let length = u32::try_from(payload.len()).ok().filter(|length| *length <= FRAME_BYTES_MAX);
        let length = length.ok_or(io::ErrorKind::FileTooLarge)?;
        let mut head = [0; 6];
        head[0] = section as u8;
        head[1] = u8::from(last);
        head[2..].copy_from_slice(&length.to_le_bytes());
        self.put(&head)?;
        self.put(&checksum(&head, payload).to_le_bytes())?;
        self.put(payload)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.digest.update(bytes);
        self.out.write_all(bytes)
    }
}

/// Collects the bytes of a section into frames.
pub(crate) struct SectionWriter<'w, 'a> {
    frames: &'w mut FrameWriter<'a>,
    section: Section,
    buffer: Vec<u8>,
}

impl SectionWriter<'_, '_> {
    fn frame(&mut self, last: bool) -> io::Result<()> {
        self.frames.frame(self.section, last, &self.buffer)?;
        self.buffer.clear();
        Ok(())
    }
}

impl Write for SectionWriter<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = FRAME_BYTES - self.buffer.len();
        let taken = room.min(bytes.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        if self.buffer.len() == FRAME_BYTES {
            self.frame(false)?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads a container.
pub(crate) struct FrameReader<'a> {
    input: &'a mut dyn Read,
    digest: Sha256,
    frame: u64,
}

impl<'a> FrameReader<'a> {
    pub(crate) fn new(input: &'a mut dyn Read, kind: Kind) -> Result<Self, FrameError> {
        let mut reader = Self { input, digest: Sha256::new(), frame: 0 };
        let found: [u8; 8] = reader.take()?;
        if &found != MAGIC {
            return Err(FrameError::Magic { found });
        }
        let found = u32::from_le_bytes(reader.take()?);
        if found != FORMAT {
            return Err(FrameError::Format { found });
        }
        let [found] = reader.take()?;
        if found != kind as u8 {
            return Err(FrameError::Kind { found, expected: kind as u8 });
        }
        Ok(reader)
    }

    /// Reads one section through `read`, which must take all of it.
    pub(crate) fn section<T, E: From<FrameError>>(
        &mut self,
        section: Section,
        read: impl FnOnce(&mut SectionReader<'_, 'a>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut reader = SectionReader {
            frames: self,
            section,
            payload: Vec::new(),
            at: 0,
            last: false,
            error: None,
        };
        let value = read(&mut reader);
        // A frame's own error says more than "unexpected end of file" from whoever read it.
        if let Some(error) = reader.error.take() {
            return Err(error.into());
        }
        let value = value?;
        if reader.fill()? {
            return Err(FrameError::Excess { section: section as u8 }.into());
        }
        Ok(value)
    }

    /// Compares the digest; only now may anything that was read be used.
    pub(crate) fn finish(mut self) -> Result<(), FrameError> {
        let digest: [u8; 32] = self.digest.clone().finalize().into();
        let mut payload = Vec::new();
        let last = self.next(Section::End, &mut payload)?;
        match last && payload == digest {
            true => Ok(()),
            false => Err(FrameError::Digest),
        }
    }

    /// The next frame, whose checksum has been compared; answers whether it is its section's last.
    fn next(&mut self, section: Section, payload: &mut Vec<u8>) -> Result<bool, FrameError> {
        let frame = self.frame;
        self.frame += 1;
        let head: [u8; 6] = self.take()?;
        let expected = u32::from_le_bytes(self.take()?);
        let length = u32::from_le_bytes([head[2], head[3], head[4], head[5]]);
        if length > FRAME_BYTES_MAX {
            return Err(FrameError::Frame { frame, detail: "it is longer than a frame can be" });
        }
        payload.clear();
        (&mut *self.input).take(u64::from(length)).read_to_end(payload)?;
        if payload.len() != length as usize {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        if checksum(&head, payload) != expected {
            return Err(FrameError::Checksum { frame, section: head[0] });
        }
        self.digest.update(&payload);
        if head[0] != section as u8 {
            return Err(FrameError::Section { found: head[0], expected: section as u8 });
        }
        match head[1] {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(FrameError::Frame { frame, detail: "it is neither last nor not last" }),
        }
    }

    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes)?;
        self.digest.update(bytes);
        Ok(bytes)
    }
}

/// Hands out the bytes of a section as if they were in one piece.
pub(crate) struct SectionReader<'r, 'a> {
    frames: &'r mut FrameReader<'a>,
    section: Section,
    payload: Vec<u8>,
    at: usize,
    last: bool,
    error: Option<FrameError>,
}

impl SectionReader<'_, '_> {
    /// Makes sure that there are bytes to hand out; false at the end of the section.
    pub(crate) fn fill(&mut self) -> Result<bool, FrameError> {
        while self.at == self.payload.len() {
            if self.last {
                return Ok(false);
            }
            self.at = 0;
            self.last = self.frames.next(self.section, &mut self.payload)?;
        }
        Ok(true)
    }
}

impl Read for SectionReader<'_, '_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.error.is_some() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        match self.fill() {
            Ok(true) => {}
            Ok(false) => return Ok(0),
            Err(error) => {
                self.error = Some(error);
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
        let taken = out.len().min(self.payload.len() - self.at);
        out[..taken].copy_from_slice(&self.payload[self.at..self.at + taken]);
        self.at += taken;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn write(parts: &[(Section, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut frames = FrameWriter::new(&mut out, Kind::Image).unwrap();
        for (section, bytes) in parts {
            frames.section(*section, |out| out.write_all(bytes)).unwrap();
        }
        frames.finish().unwrap();
        out
    }

    fn read(mut bytes: &[u8], sections: &[Section]) -> Result<Vec<Vec<u8>>, FrameError> {
        let mut frames = FrameReader::new(&mut bytes, Kind::Image)?;
        let mut parts = Vec::new();
        for section in sections {
            parts.push(frames.section(*section, |input| {
                let mut part = Vec::new();
                input.read_to_end(&mut part)?;
                Ok::<_, FrameError>(part)
            })?);
        }
        frames.finish()?;
        Ok(parts)
    }

    const SECTIONS: [Section; 2] = [Section::Tables, Section::Index];

    #[test]
    fn sections_of_any_length_come_back() {
        for length in [0, 1, FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 1, 3 * FRAME_BYTES] {
            let long: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            let bytes = write(&[(Section::Tables, b"small"), (Section::Index, &long)]);
            assert_eq!(read(&bytes, &SECTIONS).unwrap(), [b"small".to_vec(), long]);
        }
    }

    #[test]
    fn the_container_is_as_drawn() {
        let bytes = write(&[(Section::Tables, b"ab")]);
        assert_eq!(&bytes[..13], b"KEELSTAT\x01\0\0\0\x01");
        assert_eq!(&bytes[13..19], &[1, 1, 2, 0, 0, 0]);
        let crc = crc32c::crc32c(b"\x01\x01\x02\0\0\0ab");
        assert_eq!(&bytes[19..23], &crc.to_le_bytes());
        assert_eq!(&bytes[23..25], b"ab");
        assert_eq!(&bytes[25..31], &[255, 1, 32, 0, 0, 0]);
        assert_eq!(&bytes[35..], Sha256::digest(&bytes[..25]).as_slice());
    }

    #[test]
    fn a_missing_moved_or_foreign_section_is_an_error() {
        let bytes = write(&[(Section::Index, b"x"), (Section::Tables, b"y")]);
        assert!(matches!(
            read(&bytes, &SECTIONS),
            Err(FrameError::Section { found: 4, expected: 1 })
        ));
        let bytes = write(&[(Section::Tables, b"y")]);
        assert!(matches!(read(&bytes, &SECTIONS), Err(FrameError::Section { found: 255, .. })));
        let mut foreign = bytes.clone();
        foreign[8] = 2;
        assert!(matches!(read(&foreign, &SECTIONS), Err(FrameError::Format { found: 2 })));
        assert!(matches!(
            FrameReader::new(&mut bytes.as_slice(), Kind::Snapshot),
            Err(FrameError::Kind { found: 1, expected: 2 })
        ));
    }

    #[test]
    fn whole_frames_of_another_file_do_not_pass_the_digest() {
        let (one, two) = (write(&[(Section::Tables, b"a")]), write(&[(Section::Tables, b"b")]));
        let mixed = [&one[..24], &two[24..]].concat();
        assert!(matches!(read(&mixed, &SECTIONS[..1]), Err(FrameError::Digest)));
    }

    #[test]
    fn a_section_must_be_read_to_its_end() {
        let bytes = write(&[(Section::Tables, b"abc")]);
        let mut input = bytes.as_slice();
        let mut frames = FrameReader::new(&mut input, Kind::Image).unwrap();
        let read = frames.section(Section::Tables, |input| {
            let mut two = [0; 2];
            input.read_exact(&mut two).map_err(FrameError::from)
        });
        assert!(matches!(read, Err(FrameError::Excess { section: 1 })));
    }

    proptest! {
        #[test]
        fn every_flipped_bit_and_every_cut_is_an_error(
            at in any::<prop::sample::Index>(), bit in 0u8..8,
        ) {
            let bytes = write(&[(Section::Tables, b"some tables"), (Section::Index, b"keys")]);
            let at = at.index(bytes.len());
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            prop_assert!(read(&flipped, &SECTIONS).is_err());
            prop_assert!(read(&bytes[..at], &SECTIONS).is_err());
        }
    }
}
