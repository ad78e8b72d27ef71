//! Writing a file from front to back.
//!
//! Pages are written in the order in which they become full, children before their parents, so
//! each tree level needs one page in memory. Only the two meta pages at the front, which say where
//! the root is, are written last.

use std::io::{self, Seek, SeekFrom, Write};

use bytes::Bytes;

use crate::page::{
    BUCKET_BYTES, ELEMENT_BUCKET, ELEMENT_BYTES, FLAG_BRANCH, FLAG_FREELIST, FLAG_LEAF, FLAG_META,
    MAGIC, META_SUMMED_BYTES, PAGE_BYTES, PAGE_HEADER_BYTES, PageHeader, VERSION, fnv1a,
};

/// bbolt's limits of a key and a value (MaxKeySize, MaxValueSize in its bucket.go).
const KEY_BYTES_MAX: usize = 32_768;
const VALUE_BYTES_MAX: usize = (1 << 31) - 2;
/// The empty freelist, after the two meta pages.
const FREELIST_PAGE: u64 = 2;
/// A branch gets a parent only when it has more than these, so that no branch has a single child.
const CHILDREN_MIN: usize = 2;

/// Why a file could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The output did not take the bytes.
    #[error("write the bbolt file: {0}")]
    Io(#[from] io::Error),
    /// Names and keys must come in strictly increasing order.
    #[error("key {key:?} comes after {after:?}: keys must increase")]
    Order { key: Bytes, after: Bytes },
    /// An empty key or name, or one that is too long.
    #[error("a key of {0} bytes: bbolt takes 1 to 32768")]
    KeyLength(usize),
    /// A value that is too long.
    #[error("a value of {0} bytes: bbolt takes less than 2 GiB")]
    ValueLength(usize),
    /// A key was put before the first bucket was begun.
    #[error("a key outside of any bucket")]
    NoBucket,
}

/// Writes one file. Begin a bucket, put its keys, begin the next; finish.
pub struct Writer<W> {
    pages: Pages<W>,
    buckets: Tree,
    bucket: Option<(Bytes, Tree)>,
}

impl<W: Write + Seek> Writer<W> {
    /// Starts a file at the current position of `out`, which must be its beginning.
    pub fn new(out: W) -> Result<Self, WriteError> {
        let mut pages = Pages { out, next: 0, scratch: Vec::new() };
        // The room of the meta pages; they are written when the root is known.
        pages.out.write_all(&[0; 2 * PAGE_BYTES])?;
        pages.next = FREELIST_PAGE;
        pages.write(FLAG_FREELIST, 0, &[])?;
        Ok(Self { pages, buckets: Tree::default(), bucket: None })
    }

    /// Begins the bucket `name`, which must be greater than the ones before.
    pub fn bucket(&mut self, name: &[u8]) -> Result<(), WriteError> {
        self.end_bucket()?;
        check_order(name, self.buckets.last_key.as_ref())?;
        self.bucket = Some((Bytes::copy_from_slice(name), Tree::default()));
        Ok(())
    }

    /// Puts a key into the bucket, greater than the ones before.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), WriteError> {
        let Some((_, tree)) = &mut self.bucket else { return Err(WriteError::NoBucket) };
        if value.len() > VALUE_BYTES_MAX {
            return Err(WriteError::ValueLength(value.len()));
        }
        tree.put(&mut self.pages, 0, key, value)
    }

    /// Writes what is left and the meta pages, and gives the output back, positioned at the end.
    pub fn finish(mut self) -> Result<W, WriteError> {
        self.end_bucket()?;
        let root = self.buckets.finish(&mut self.pages)?;
        let pages = self.pages.next;
        let mut out = self.pages.out;
        out.seek(SeekFrom::Current(
            -i64::try_from(pages * PAGE_BYTES as u64)
                .map_err(|_| WriteError::Io(io::ErrorKind::FileTooLarge.into()))?,
        ))?;
        for transaction in 0..2 {
            out.write_all(&meta_page(transaction, root, pages))?;
        }
        out.seek(SeekFrom::Current(((pages - 2) * PAGE_BYTES as u64) as i64))?;
        Ok(out)
    }

    fn end_bucket(&mut self) -> Result<(), WriteError> {
        let Some((name, tree)) = self.bucket.take() else { return Ok(()) };
        let root = tree.finish(&mut self.pages)?;
        let mut value = [0; BUCKET_BYTES];
        value[..8].copy_from_slice(&root.to_le_bytes());
        self.buckets.put(&mut self.pages, ELEMENT_BUCKET, &name, &value)
    }
}

fn meta_page(transaction: u64, root: u64, pages: u64) -> [u8; PAGE_BYTES] {
    let mut page = [0; PAGE_BYTES];
    let header = PageHeader { id: transaction, flags: FLAG_META, count: 0, overflow: 0 };
    page[..PAGE_HEADER_BYTES].copy_from_slice(&header.encode());
    let meta = &mut page[PAGE_HEADER_BYTES..];
    meta[..4].copy_from_slice(&MAGIC.to_le_bytes());
    meta[4..8].copy_from_slice(&VERSION.to_le_bytes());
    meta[8..12].copy_from_slice(&(PAGE_BYTES as u32).to_le_bytes());
    meta[16..24].copy_from_slice(&root.to_le_bytes());
    meta[32..40].copy_from_slice(&FREELIST_PAGE.to_le_bytes());
    meta[40..48].copy_from_slice(&pages.to_le_bytes());
    meta[48..56].copy_from_slice(&transaction.to_le_bytes());
    let checksum = fnv1a(&meta[..META_SUMMED_BYTES]);
    meta[56..64].copy_from_slice(&checksum.to_le_bytes());
    page
}

fn check_order(key: &[u8], last: Option<&Bytes>) -> Result<(), WriteError> {
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        return Err(WriteError::KeyLength(key.len()));
    }
    match last {
        Some(last) if key <= last.as_ref() => {
            Err(WriteError::Order { key: Bytes::copy_from_slice(key), after: last.clone() })
        }
        _ => Ok(()),
    }
}

/// The output and the number of the next page.
struct Pages<W> {
    out: W,
    next: u64,
    scratch: Vec<u8>,
}

impl<W: Write> Pages<W> {
    /// Writes a page with this body and gives its number.
    fn write(&mut self, flags: u16, count: u16, body: &[u8]) -> Result<u64, WriteError> {
        let length = PAGE_HEADER_BYTES + body.len();
        let pages = length.div_ceil(PAGE_BYTES);
        let id = self.next;
        let header = PageHeader { id, flags, count, overflow: (pages - 1) as u32 };
        self.scratch.clear();
        self.scratch.extend_from_slice(&header.encode());
        self.scratch.extend_from_slice(body);
        self.scratch.resize(pages * PAGE_BYTES, 0);
        self.out.write_all(&self.scratch)?;
        self.next += pages as u64;
        Ok(id)
    }
}

/// A tree of pages being written from left to right.
#[derive(Default)]
struct Tree {
    leaf: Leaf,
    /// The open branch of each level, the lowest first.
    branches: Vec<Branch>,
    last_key: Option<Bytes>,
}

/// The elements of a leaf that is not written yet.
#[derive(Default)]
struct Leaf {
    /// Flags, key length, value length.
    elements: Vec<(u32, u32, u32)>,
    data: Vec<u8>,
    first_key: Bytes,
}

/// The children of a branch that is not written yet.
#[derive(Default)]
struct Branch {
    children: Vec<(Bytes, u64)>,
    bytes: usize,
}

impl Tree {
    fn put<W: Write>(
        &mut self,
        pages: &mut Pages<W>,
        flags: u32,
        key: &[u8],
        value: &[u8],
    ) -> Result<(), WriteError> {
        check_order(key, self.last_key.as_ref())?;
        let bytes = ELEMENT_BYTES + key.len() + value.len();
        if !self.leaf.elements.is_empty() && self.leaf.bytes() + bytes > PAGE_BYTES {
            self.end_leaf(pages)?;
        }
        let key = Bytes::copy_from_slice(key);
        if self.leaf.elements.is_empty() {
            self.leaf.first_key = key.clone();
        }
        self.leaf.elements.push((flags, key.len() as u32, value.len() as u32));
        self.leaf.data.extend_from_slice(&key);
        self.leaf.data.extend_from_slice(value);
        self.last_key = Some(key);
        Ok(())
    }

    fn end_leaf<W: Write>(&mut self, pages: &mut Pages<W>) -> Result<(), WriteError> {
        let (page, first_key) = self.leaf.write(pages)?;
        self.add_child(pages, 0, first_key, page)
    }

    /// Adds a page below level `level`, ending branches that are full.
    fn add_child<W: Write>(
        &mut self,
        pages: &mut Pages<W>,
        level: usize,
        first_key: Bytes,
        page: u64,
    ) -> Result<(), WriteError> {
        let mut child = Some((first_key, page));
        let mut level = level;
        while let Some((first_key, page)) = child.take() {
            if self.branches.len() == level {
                self.branches.push(Branch::default());
            }
            let branch = &mut self.branches[level];
            branch.bytes += ELEMENT_BYTES + first_key.len();
            branch.children.push((first_key, page));
            // The last two children stay back: the rest of this level must not be a single one.
            if PAGE_HEADER_BYTES + branch.bytes > PAGE_BYTES
                && branch.children.len() > 2 * CHILDREN_MIN
            {
                let kept = branch.children.split_off(branch.children.len() - CHILDREN_MIN);
                let full = std::mem::take(branch);
                branch.bytes = kept.iter().map(|(key, _)| ELEMENT_BYTES + key.len()).sum();
                branch.children = kept;
                child = Some(full.write(pages)?);
                level += 1;
            }
        }
        Ok(())
    }

    /// Writes what is left and gives the root page.
    fn finish<W: Write>(mut self, pages: &mut Pages<W>) -> Result<u64, WriteError> {
        if self.branches.is_empty() {
            return Ok(self.leaf.write(pages)?.0);
        }
        self.end_leaf(pages)?;
        let mut level = 0;
        loop {
            let branch = std::mem::take(&mut self.branches[level]);
            let (first_key, page) = branch.write(pages)?;
            level += 1;
            if level == self.branches.len() {
                return Ok(page);
            }
            self.add_child(pages, level, first_key, page)?;
        }
    }
}

impl Leaf {
    fn bytes(&self) -> usize {
        PAGE_HEADER_BYTES + self.elements.len() * ELEMENT_BYTES + self.data.len()
    }

    /// Writes the page, empties the leaf, and gives the page with its first key.
    fn write<W: Write>(&mut self, pages: &mut Pages<W>) -> Result<(u64, Bytes), WriteError> {
        let mut body = Vec::with_capacity(self.bytes());
        let mut position = self.elements.len() * ELEMENT_BYTES;
        for (index, &(flags, key, value)) in self.elements.iter().enumerate() {
            let from_element = position - index * ELEMENT_BYTES;
            for number in [flags, from_element as u32, key, value] {
                body.extend_from_slice(&number.to_le_bytes());
            }
            position += (key + value) as usize;
        }
        body.extend_from_slice(&self.data);
        let page = pages.write(FLAG_LEAF, self.elements.len() as u16, &body)?;
        self.elements.clear();
        self.data.clear();
        Ok((page, std::mem::take(&mut self.first_key)))
    }
}

impl Branch {
    /// Writes the page and gives it with its first key.
    fn write<W: Write>(self, pages: &mut Pages<W>) -> Result<(Bytes, u64), WriteError> {
        let mut body = Vec::with_capacity(self.bytes);
        let mut position = self.children.len() * ELEMENT_BYTES;
        for (index, (key, page)) in self.children.iter().enumerate() {
            let from_element = position - index * ELEMENT_BYTES;
            body.extend_from_slice(&(from_element as u32).to_le_bytes());
            body.extend_from_slice(&(key.len() as u32).to_le_bytes());
            body.extend_from_slice(&page.to_le_bytes());
            position += key.len();
        }
        for (key, _) in &self.children {
            body.extend_from_slice(key);
        }
        let page = pages.write(FLAG_BRANCH, self.children.len() as u16, &body)?;
        let first_key = self.children.into_iter().next().map(|(key, _)| key).unwrap_or_default();
        Ok((first_key, page))
    }
}
