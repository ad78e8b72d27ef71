//! Reading and writing the plain values of an image: integers little endian, lengths as `u32`.

use types::MemberId;

/// Why the tables of an image cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Another version of the format.
    #[error("tables are in format {found}, this program reads {known}; use the newer program")]
    Version { found: u8, known: u8 },
    /// The bytes end inside a value.
    #[error("tables end early, in {field}")]
    Short { field: &'static str },
    /// A value that no encoder writes.
    #[error("tables are damaged: {field} {detail}")]
    Damaged { field: &'static str, detail: &'static str },
}

pub(crate) struct Encoder {
    out: Vec<u8>,
}

impl Encoder {
    pub(crate) fn new(version: u8) -> Self {
        Self { out: vec![version] }
    }

    pub(crate) fn bool(&mut self, value: bool) {
        self.out.push(u8::from(value));
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn count(&mut self, value: usize) {
        self.u32(u32::try_from(value).expect("a table holds far fewer than 2^32 values"));
    }

    pub(crate) fn bytes(&mut self, value: &[u8]) {
        self.count(value.len());
        self.out.extend_from_slice(value);
    }

    pub(crate) fn text(&mut self, value: &str) {
        self.bytes(value.as_bytes());
    }

    pub(crate) fn texts(&mut self, values: &[String]) {
        self.count(values.len());
        for value in values {
            self.text(value);
        }
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.out
    }
}

pub(crate) struct Decoder<'a> {
    rest: &'a [u8],
}

impl<'a> Decoder<'a> {
    /// Begins to read; the answer also says in which version, which is `known` or an older one.
    pub(crate) fn new(bytes: &'a [u8], known: u8) -> Result<(Self, u8), DecodeError> {
        let mut decoder = Self { rest: bytes };
        let [found] = decoder.array("version")?;
        if found == 0 || found > known {
            return Err(DecodeError::Version { found, known });
        }
        Ok((decoder, found))
    }

    fn slice(&mut self, length: usize, field: &'static str) -> Result<&'a [u8], DecodeError> {
        let (value, rest) =
            self.rest.split_at_checked(length).ok_or(DecodeError::Short { field })?;
        self.rest = rest;
        Ok(value)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        let (value, rest) = self.rest.split_first_chunk().ok_or(DecodeError::Short { field })?;
        self.rest = rest;
        Ok(*value)
    }

    pub(crate) fn bool(&mut self, field: &'static str) -> Result<bool, DecodeError> {
        match self.array(field)? {
            [0] => Ok(false),
            [1] => Ok(true),
            [_] => Err(DecodeError::Damaged { field, detail: "is neither 0 nor 1" }),
        }
    }

    pub(crate) fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.array(field)?))
    }

    pub(crate) fn u64(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array(field)?))
    }

    pub(crate) fn bytes(&mut self, field: &'static str) -> Result<&'a [u8], DecodeError> {
        let length = self.u32(field)?;
        self.slice(length as usize, field)
    }

    pub(crate) fn text(&mut self, field: &'static str) -> Result<String, DecodeError> {
        let bytes = self.bytes(field)?;
        let text = std::str::from_utf8(bytes);
        let text = text.map_err(|_| DecodeError::Damaged { field, detail: "is not UTF-8" })?;
        Ok(text.to_owned())
    }

    pub(crate) fn texts(&mut self, field: &'static str) -> Result<Vec<String>, DecodeError> {
        (0..self.u32(field)?).map(|_| self.text(field)).collect()
    }

    /// A value that must be above the one before it, which makes the encoding of a set unique.
    pub(crate) fn rising<T: Ord + Copy>(
        &self,
        last: Option<T>,
        value: T,
        field: &'static str,
    ) -> Result<T, DecodeError> {
        match last {
            Some(last) if last >= value => {
                Err(DecodeError::Damaged { field, detail: "does not rise" })
            }
            _ => Ok(value),
        }
    }

    pub(crate) fn member(
        &mut self,
        last: Option<MemberId>,
        field: &'static str,
    ) -> Result<MemberId, DecodeError> {
        let id = MemberId(self.u64(field)?);
        self.rising(last, id, field)
    }

    pub(crate) fn finish(self) -> Result<(), DecodeError> {
        match self.rest {
            [] => Ok(()),
            _ => Err(DecodeError::Damaged { field: "end", detail: "is followed by more bytes" }),
        }
    }
}
