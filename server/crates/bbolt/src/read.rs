//! Reading a file whose every byte may be wrong.

use std::io;

use bytes::Bytes;

use crate::page::{
    BUCKET_BYTES, ELEMENT_BUCKET, ELEMENT_BYTES, FLAG_BRANCH, FLAG_FREELIST, FLAG_LEAF, FLAG_META,
    MAGIC, META_BYTES, META_SUMMED_BYTES, NO_FREELIST, PAGE_HEADER_BYTES, PageHeader, VERSION,
    fnv1a, u32_at, u64_at,
};

/// Page sizes that a file may have; bbolt takes that of the machine.
const PAGE_BYTES_RANGE: std::ops::RangeInclusive<u32> = 512..=65_536;
/// Levels of a tree. Pages hold at least two children, and no file has 2^40 pages.
const DEPTH_MAX: usize = 40;

/// Bytes at offsets.
pub trait ReadAt {
    /// Fills `buf` or fails.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    /// The length in bytes.
    fn bytes(&self) -> io::Result<u64>;
}

impl<T: ReadAt + ?Sized> ReadAt for &T {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        (**self).read_exact_at(buf, offset)
    }

    fn bytes(&self) -> io::Result<u64> {
        (**self).bytes()
    }
}

impl ReadAt for [u8] {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).ok();
        let end = start.and_then(|start| start.checked_add(buf.len()));
        match start.zip(end).and_then(|(start, end)| self.get(start..end)) {
            Some(bytes) => {
                buf.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }
}

impl ReadAt for Vec<u8> {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.as_slice().read_exact_at(buf, offset)
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }
}

/// Why a file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file could not be read.
    #[error("read the bbolt file: {0}")]
    Io(#[from] io::Error),
    /// No bbolt file, or both of its meta pages are damaged.
    #[error("not a bbolt file, or both of its meta pages are damaged")]
    NoMeta,
    /// A bbolt file of another version than 2.
    #[error("bbolt version {0} is not supported, only 2 is")]
    Version(u32),
    /// The file ends before its last page.
    #[error("the file has {found} bytes and should have {expected}: it is cut off")]
    Cut { expected: u64, found: u64 },
    /// A page is not what it should be.
    #[error("page {page} is damaged: {fault}")]
    Damaged { page: u64, fault: &'static str },
}

fn damaged(page: u64, fault: &'static str) -> ReadError {
    ReadError::Damaged { page, fault }
}

/// An open file.
#[derive(Debug)]
pub struct Bbolt<R> {
    reader: R,
    page_bytes: u64,
    pages: u64,
    root: u64,
    freelist: u64,
}

impl<R: ReadAt> Bbolt<R> {
    /// Reads the meta pages and checks that the file is whole in length.
    pub fn open(reader: R) -> Result<Self, ReadError> {
        let found = reader.bytes()?;
        let mut refused = ReadError::NoMeta;
        let mut newest: Option<Meta> = None;
        // The second meta page tells where it is only by being there.
        let seconds = PAGE_BYTES_RANGE.start().ilog2()..=PAGE_BYTES_RANGE.end().ilog2();
        for offset in std::iter::once(0).chain(seconds.map(|power| 1u64 << power)) {
            let mut page = [0; PAGE_HEADER_BYTES + META_BYTES];
            if offset + page.len() as u64 > found {
                break;
            }
            reader.read_exact_at(&mut page, offset)?;
            match Meta::decode(&page) {
                Ok(meta) if offset == 0 || offset == u64::from(meta.page_bytes) => {
                    if newest.as_ref().is_none_or(|newest| newest.transaction < meta.transaction) {
                        newest = Some(meta);
                    }
                }
                Ok(_) | Err(ReadError::NoMeta) => {}
                Err(error) => refused = error,
            }
        }
        let meta = newest.ok_or(refused)?;
        let page_bytes = u64::from(meta.page_bytes);
        let expected = meta.pages.checked_mul(page_bytes).ok_or(ReadError::NoMeta)?;
        if found < expected {
            return Err(ReadError::Cut { expected, found });
        }
        let Meta { pages, root, freelist, .. } = meta;
        Ok(Self { reader, page_bytes, pages, root, freelist })
    }

    /// The bytes of all pages; the file may be longer.
    pub fn bytes(&self) -> u64 {
        self.pages * self.page_bytes
    }

    /// The names of the buckets, in order.
    pub fn buckets(&self) -> Result<Vec<Bytes>, ReadError> {
        let root = Bucket { file: self, root: Root::Page(self.root), of_buckets: true };
        root.entries().map(|entry| entry.map(|(name, _)| name)).collect()
    }

    /// The bucket of this name.
    pub fn bucket(&self, name: &[u8]) -> Result<Option<Bucket<'_, R>>, ReadError> {
        let root = Bucket { file: self, root: Root::Page(self.root), of_buckets: true };
        let Some(value) = root.get(name)? else { return Ok(None) };
        let page = u64_at(&value, 0).ok_or(damaged(self.root, "a bucket without a root"))?;
        let root = if page != 0 {
            Root::Page(page)
        } else if value.len() > BUCKET_BYTES {
            Root::Inline(value.slice(BUCKET_BYTES..))
        } else {
            return Err(damaged(self.root, "a bucket without a page"));
        };
        Ok(Some(Bucket { file: self, root, of_buckets: false }))
    }

    /// Checks the whole file as bbolt's `Tx.Check` does: every page belongs to exactly one bucket or
    /// is free, every tree is in order.
    pub fn check(&self) -> Result<(), ReadError> {
        let mut used = PageSet::new(self.pages);
        used.insert(0)?;
        used.insert(1)?;
        if self.freelist == NO_FREELIST {
            // Without a freelist whatever is not reached is free.
            return self.check_trees(&mut used);
        }
        let page = self.page(self.freelist)?;
        used.insert_page(self.freelist, page.header.overflow)?;
        let free = page.free_pages()?;
        for &id in &free {
            used.insert(id)?;
        }
        self.check_trees(&mut used)?;
        match used.first_missing() {
            Some(page) => Err(damaged(page, "unreachable unfreed")),
            None => Ok(()),
        }
    }

    fn check_trees(&self, used: &mut PageSet) -> Result<(), ReadError> {
        self.check_tree(self.root, used)?;
        for name in self.buckets()? {
            let bucket = self.bucket(&name)?.ok_or(damaged(self.root, "a bucket that is gone"))?;
            match bucket.root {
                Root::Page(page) => self.check_tree(page, used)?,
                Root::Inline(_) => {}
            }
            for entry in bucket.entries() {
                entry?;
            }
        }
        Ok(())
    }

    fn check_tree(&self, root: u64, used: &mut PageSet) -> Result<(), ReadError> {
        let mut pending = vec![root];
        while let Some(id) = pending.pop() {
            let page = self.page(id)?;
            // A page that is reached twice is refused here, so this ends.
            used.insert_page(id, page.header.overflow)?;
            if page.header.flags & FLAG_BRANCH != 0 {
                for index in 0..page.header.count {
                    pending.push(page.branch(index)?.1);
                }
            }
        }
        Ok(())
    }

    fn page(&self, id: u64) -> Result<Page, ReadError> {
        if id < 2 || id >= self.pages {
            return Err(damaged(id, "the number is outside of the file"));
        }
        let offset = id * self.page_bytes;
        let mut header = [0; PAGE_HEADER_BYTES];
        self.reader.read_exact_at(&mut header, offset)?;
        let header = PageHeader::decode(&header).ok_or(damaged(id, "no header"))?;
        if header.id != id {
            return Err(damaged(id, "it carries another number"));
        }
        if u64::from(header.overflow) >= self.pages - id {
            return Err(damaged(id, "it reaches beyond the file"));
        }
        let length = (u64::from(header.overflow) + 1) * self.page_bytes;
        let length = usize::try_from(length).map_err(|_| damaged(id, "it is too large"))?;
        let mut bytes = vec![0; length];
        self.reader.read_exact_at(&mut bytes, offset)?;
        Ok(Page { id, header, bytes: bytes.into() })
    }
}

struct Meta {
    page_bytes: u32,
    root: u64,
    freelist: u64,
    pages: u64,
    transaction: u64,
}

impl Meta {
    fn decode(page: &[u8]) -> Result<Self, ReadError> {
        let meta = &page[PAGE_HEADER_BYTES..];
        let number32 = |at| u32_at(meta, at).ok_or(ReadError::NoMeta);
        let number64 = |at| u64_at(meta, at).ok_or(ReadError::NoMeta);
        if number32(0)? != MAGIC || number64(56)? != fnv1a(&meta[..META_SUMMED_BYTES]) {
            return Err(ReadError::NoMeta);
        }
        let version = number32(4)?;
        if version != VERSION {
            return Err(ReadError::Version(version));
        }
        let page_bytes = number32(8)?;
        let is_meta = PageHeader::decode(page).is_some_and(|header| header.flags & FLAG_META != 0);
        if !is_meta || !page_bytes.is_power_of_two() || !PAGE_BYTES_RANGE.contains(&page_bytes) {
            return Err(ReadError::NoMeta);
        }
        Ok(Self {
            page_bytes,
            root: number64(16)?,
            freelist: number64(32)?,
            pages: number64(40)?,
            transaction: number64(48)?,
        })
    }
}

/// A page with all its bytes.
struct Page {
    id: u64,
    header: PageHeader,
    bytes: Bytes,
}

impl Page {
    fn leaf(&self, index: u16) -> Result<(u32, Bytes, Bytes), ReadError> {
        let fault = || damaged(self.id, "an element reaches beyond the page");
        let at = PAGE_HEADER_BYTES + usize::from(index) * ELEMENT_BYTES;
        let number = |offset| u32_at(&self.bytes, at + offset).ok_or_else(fault);
        let (flags, position) = (number(0)?, number(4)? as usize);
        let (key, value) = (number(8)? as usize, number(12)? as usize);
        // The numbers are 32 bits, so the sums stay far below 64.
        let start = at + position;
        let end = start + key + value;
        if end > self.bytes.len() {
            return Err(fault());
        }
        Ok((flags, self.bytes.slice(start..start + key), self.bytes.slice(start + key..end)))
    }

    fn branch(&self, index: u16) -> Result<(Bytes, u64), ReadError> {
        let fault = || damaged(self.id, "an element reaches beyond the page");
        let at = PAGE_HEADER_BYTES + usize::from(index) * ELEMENT_BYTES;
        let position = u32_at(&self.bytes, at).ok_or_else(fault)? as usize;
        let key = u32_at(&self.bytes, at + 4).ok_or_else(fault)? as usize;
        let page = u64_at(&self.bytes, at + 8).ok_or_else(fault)?;
        let start = at + position;
        if start + key > self.bytes.len() {
            return Err(fault());
        }
        Ok((self.bytes.slice(start..start + key), page))
    }

    fn free_pages(&self) -> Result<Vec<u64>, ReadError> {
        if self.header.flags & FLAG_FREELIST == 0 {
            return Err(damaged(self.id, "it is no freelist"));
        }
        let fault = || damaged(self.id, "the freelist reaches beyond the page");
        let mut first = PAGE_HEADER_BYTES;
        let mut count = u64::from(self.header.count);
        if count == 0xffff {
            count = u64_at(&self.bytes, first).ok_or_else(fault)?;
            first += 8;
        }
        if count > (self.bytes.len() - first) as u64 / 8 {
            return Err(fault());
        }
        (0..count as usize)
            .map(|index| u64_at(&self.bytes, first + index * 8).ok_or_else(fault))
            .collect()
    }
}

enum Root {
    Page(u64),
    /// The page of a small bucket stands inside the bucket's own entry.
    Inline(Bytes),
}

/// A bucket of an open file.
pub struct Bucket<'a, R> {
    file: &'a Bbolt<R>,
    root: Root,
    /// Whether the values are buckets.
    of_buckets: bool,
}

impl<'a, R: ReadAt> Bucket<'a, R> {
    /// The value of a key.
    pub fn get(&self, key: &[u8]) -> Result<Option<Bytes>, ReadError> {
        match self.entries_from(key).next() {
            None => Ok(None),
            Some(Err(error)) => Err(error),
            Some(Ok((found, value))) => Ok((found == key).then_some(value)),
        }
    }

    /// All keys with their values, in order. Keys and values share the memory of their page.
    pub fn entries(&self) -> Entries<'a, R> {
        self.entries_from(&[])
    }

    /// The keys from `key` on.
    pub fn entries_from(&self, key: &[u8]) -> Entries<'a, R> {
        let mut entries = Entries {
            file: self.file,
            of_buckets: self.of_buckets,
            stack: Vec::new(),
            visited: 0,
            last: None,
            failed: None,
        };
        if let Err(error) = entries.start(&self.root, key) {
            entries.failed = Some(error);
        }
        entries
    }
}

/// The entries of a bucket. After an error it ends.
pub struct Entries<'a, R> {
    file: &'a Bbolt<R>,
    of_buckets: bool,
    /// The pages from the root to the leaf, each with the element that comes next.
    stack: Vec<(Page, u16)>,
    /// Pages seen; more than the file has means that it loops.
    visited: u64,
    last: Option<Bytes>,
    failed: Option<ReadError>,
}

impl<R: ReadAt> Entries<'_, R> {
    fn start(&mut self, root: &Root, key: &[u8]) -> Result<(), ReadError> {
        match root {
            Root::Page(id) => self.descend(*id, key),
            Root::Inline(bytes) => {
                let header = PageHeader::decode(bytes)
                    .filter(|header| header.flags & FLAG_LEAF != 0)
                    .ok_or(damaged(0, "a small bucket is no leaf"))?;
                let page = Page { id: 0, header, bytes: bytes.clone() };
                let index = first_leaf(&page, key)?;
                self.stack.push((page, index));
                Ok(())
            }
        }
    }

    /// Goes down to the leaf where `key` is or would be.
    fn descend(&mut self, id: u64, key: &[u8]) -> Result<(), ReadError> {
        let mut id = id;
        loop {
            self.visited += 1;
            if self.visited > self.file.pages || self.stack.len() >= DEPTH_MAX {
                return Err(damaged(id, "the pages form a loop"));
            }
            let page = self.file.page(id)?;
            if page.header.flags & FLAG_LEAF != 0 {
                let index = first_leaf(&page, key)?;
                self.stack.push((page, index));
                return Ok(());
            }
            if page.header.flags & FLAG_BRANCH == 0 {
                return Err(damaged(id, "it is neither branch nor leaf"));
            }
            if page.header.count == 0 {
                return Err(damaged(id, "a branch without children"));
            }
            let index = last_branch(&page, key)?;
            id = page.branch(index)?.1;
            self.stack.push((page, index + 1));
        }
    }

    fn advance(&mut self) -> Result<Option<(Bytes, Bytes)>, ReadError> {
        while let Some((page, index)) = self.stack.last_mut() {
            if *index >= page.header.count {
                self.stack.pop();
                continue;
            }
            let at = *index;
            *index += 1;
            if page.header.flags & FLAG_BRANCH != 0 {
                let child = page.branch(at)?.1;
                self.descend(child, &[])?;
                continue;
            }
            let (flags, key, value) = page.leaf(at)?;
            if (flags & ELEMENT_BUCKET != 0) != self.of_buckets {
                return Err(damaged(page.id, "a bucket among keys, or a key among buckets"));
            }
            if self.last.as_ref().is_some_and(|last| *last >= key) {
                return Err(damaged(page.id, "the keys are not in order"));
            }
            self.last = Some(key.clone());
            return Ok(Some((key, value)));
        }
        Ok(None)
    }
}

impl<R: ReadAt> Iterator for Entries<'_, R> {
    type Item = Result<(Bytes, Bytes), ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(error) = self.failed.take() {
            return Some(Err(error));
        }
        match self.advance() {
            Ok(entry) => entry.map(Ok),
            Err(error) => {
                self.stack.clear();
                Some(Err(error))
            }
        }
    }
}

/// The first element of a leaf at or above `key`.
fn first_leaf(page: &Page, key: &[u8]) -> Result<u16, ReadError> {
    let (mut low, mut high) = (0, page.header.count);
    while low < high && !key.is_empty() {
        let middle = low + (high - low) / 2;
        if page.leaf(middle)?.1 < key {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(low)
}

/// The last child of a branch that begins at or below `key`; the first if none does.
fn last_branch(page: &Page, key: &[u8]) -> Result<u16, ReadError> {
    let (mut low, mut high) = (0, page.header.count);
    while low < high && !key.is_empty() {
        let middle = low + (high - low) / 2;
        if page.branch(middle)?.0 <= key {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(low.saturating_sub(1))
}

/// Pages that were seen.
struct PageSet {
    bits: Vec<u64>,
    pages: u64,
}

impl PageSet {
    fn new(pages: u64) -> Self {
        // The file is at least as long as its pages, so this is a small part of it.
        Self { bits: vec![0; (pages / 64 + 1) as usize], pages }
    }

    fn insert(&mut self, page: u64) -> Result<(), ReadError> {
        let bit = 1 << (page % 64);
        match self.bits.get_mut((page / 64) as usize) {
            Some(word) if page < self.pages && *word & bit == 0 => {
                *word |= bit;
                Ok(())
            }
            _ => Err(damaged(page, "multiple references, or outside of the file")),
        }
    }

    fn insert_page(&mut self, page: u64, overflow: u32) -> Result<(), ReadError> {
        (page..=page + u64::from(overflow)).try_for_each(|page| self.insert(page))
    }

    fn first_missing(&self) -> Option<u64> {
        (0..self.pages).find(|page| self.bits[(page / 64) as usize] & (1 << (page % 64)) == 0)
    }
}
