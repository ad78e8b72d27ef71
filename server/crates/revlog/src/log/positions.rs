//! Where each record of a segment begins: 12 bytes of memory per record.

use types::RecordRevision;

use super::format::{RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES};

/// Bytes of one place in memory and in a footer.
pub(super) const PLACE_BYTES: usize = 12;

/// One record: its revision relative to the segment's first, and where it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    main_delta: u32,
    sub: u32,
    offset: u32,
}

const _: () = assert!(size_of::<Place>() == PLACE_BYTES);

/// The records of one segment in order. Record `i` ends where `i + 1` begins: there are no gaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Positions {
    first_main: i64,
    places: Vec<Place>,
    end: u32,
}

impl Positions {
    /// No records; the first will begin at `start`.
    pub(super) fn new(start: u32) -> Self {
        Self { first_main: 0, places: Vec::new(), end: start }
    }

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    pub(super) fn first_main(&self) -> i64 {
        self.first_main
    }

    /// Where the last record ends.
    pub(super) fn end(&self) -> u32 {
        self.end
    }

    /// Whether a record of this revision can be pushed: its distance to the first must fit.
    pub(super) fn fits(&self, revision: RecordRevision) -> bool {
        self.is_empty() || u32::try_from(revision.main - self.first_main).is_ok()
    }

    /// Adds the record that begins where the last one ends.
    pub(super) fn push(&mut self, revision: RecordRevision, bytes: u32) {
        if self.is_empty() {
            self.first_main = revision.main;
        }
        assert!(self.fits(revision), "{revision} is too far from {}", self.first_main);
        self.places.push(Place {
            main_delta: (revision.main - self.first_main) as u32,
            sub: u32::try_from(revision.sub).expect("the writer refuses larger numbers"),
            offset: self.end,
        });
        self.end += bytes;
    }

    /// The revision of record `ordinal`.
    pub(super) fn revision(&self, ordinal: usize) -> RecordRevision {
        let place = self.places[ordinal];
        RecordRevision {
            main: self.first_main + i64::from(place.main_delta),
            sub: i64::from(place.sub),
        }
    }

    pub(super) fn first(&self) -> Option<RecordRevision> {
        (!self.is_empty()).then(|| self.revision(0))
    }

    pub(super) fn last(&self) -> Option<RecordRevision> {
        self.len().checked_sub(1).map(|ordinal| self.revision(ordinal))
    }

    /// Where record `ordinal` begins; the end of the records for the one after the last.
    pub(super) fn offset(&self, ordinal: usize) -> u32 {
        self.places.get(ordinal).map_or(self.end, |place| place.offset)
    }

    /// The bytes of record `ordinal`.
    pub(super) fn bytes(&self, ordinal: usize) -> u32 {
        self.offset(ordinal + 1) - self.offset(ordinal)
    }

    /// The ordinal of exactly this record.
    pub(super) fn find(&self, revision: RecordRevision) -> Option<usize> {
        let main_delta = u32::try_from(revision.main.checked_sub(self.first_main)?).ok()?;
        let sub = u32::try_from(revision.sub).ok()?;
        // Where each transaction wrote one record and none is gone, the distance is the ordinal.
        if let Some(place) = self.places.get(main_delta as usize)
            && place.main_delta == main_delta
            && place.sub == sub
        {
            return Some(main_delta as usize);
        }
        let key = (main_delta, sub);
        self.places.binary_search_by_key(&key, |place| (place.main_delta, place.sub)).ok()
    }

    /// The ordinal of the first record at or above `revision`.
    pub(super) fn lower_bound(&self, revision: RecordRevision) -> usize {
        self.places.partition_point(|place| {
            let main = self.first_main + i64::from(place.main_delta);
            (main, i64::from(place.sub)) < (revision.main, revision.sub)
        })
    }

    /// The ordinal of the first record that begins at or beyond `offset`.
    pub(super) fn lower_bound_offset(&self, offset: u32) -> usize {
        self.places.partition_point(|place| place.offset < offset)
    }

    /// The ordinal of the first record after `from` that does not end at or below `offset`.
    pub(super) fn ordinal_beyond(&self, from: usize, offset: u64) -> usize {
        let beyond = self.places[from..].partition_point(|place| u64::from(place.offset) <= offset);
        // The record before the first that begins beyond may itself reach beyond.
        let last = from + beyond;
        if last == self.len() && u64::from(self.end) <= offset { last } else { last - 1 }
    }

    /// Forgets the records from `ordinal` on.
    pub(super) fn truncate(&mut self, ordinal: usize) {
        self.end = self.offset(ordinal);
        self.places.truncate(ordinal);
    }

    /// Appends the first `count` places in the form of the footer.
    pub(super) fn encode_places(&self, count: usize, out: &mut Vec<u8>) {
        for place in &self.places[..count] {
            out.extend_from_slice(&place.main_delta.to_le_bytes());
            out.extend_from_slice(&place.sub.to_le_bytes());
            out.extend_from_slice(&place.offset.to_le_bytes());
        }
    }

    /// Reads the places of a footer. The caller asks [`Positions::is_valid`] before any other use.
    pub(super) fn decode(first_main: i64, end: u32, places: &[u8]) -> Self {
        let number = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let places = places
            .chunks_exact(PLACE_BYTES)
            .map(|chunk| Place {
                main_delta: number(chunk),
                sub: number(&chunk[4..]),
                offset: number(&chunk[8..]),
            })
            .collect();
        Self { first_main, places, end }
    }

    /// Whether the records are in order, without overlap and inside the segment.
    pub(super) fn is_valid(&self) -> bool {
        let begins_right = self.offset(0) == SEGMENT_HEADER_BYTES
            && self.first_main.checked_add(i64::from(u32::MAX)).is_some()
            && self.places.first().is_none_or(|place| place.main_delta == 0);
        let ordered = self.places.windows(2).all(|pair| {
            (pair[0].main_delta, pair[0].sub) < (pair[1].main_delta, pair[1].sub)
                && pair[0].offset < pair[1].offset
                && (pair[1].offset - pair[0].offset) as usize >= RECORD_HEADER_BYTES
        });
        let ends_right = self.places.last().is_none_or(|place| {
            place.offset < self.end && (self.end - place.offset) as usize >= RECORD_HEADER_BYTES
        });
        begins_right && ordered && ends_right
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(main: i64, sub: i64) -> RecordRevision {
        RecordRevision { main, sub }
    }

    fn positions(revisions: &[(i64, i64)]) -> Positions {
        let mut positions = Positions::new(SEGMENT_HEADER_BYTES);
        for &(main, sub) in revisions {
            positions.push(at(main, sub), 30);
        }
        positions
    }

    #[test]
    fn records_are_found_in_dense_sparse_and_multiple_histories() {
        for revisions in [
            vec![(5, 0), (6, 0), (7, 0)],
            vec![(5, 0), (5, 1), (5, 2), (6, 0), (9, 4)],
            vec![(5, 0), (90, 0), (4_000_000_000, 1)],
        ] {
            let positions = positions(&revisions);
            assert!(positions.is_valid());
            for (ordinal, &(main, sub)) in revisions.iter().enumerate() {
                assert_eq!(positions.find(at(main, sub)), Some(ordinal));
                assert_eq!(positions.revision(ordinal), at(main, sub));
                assert_eq!(positions.lower_bound(at(main, sub)), ordinal);
                assert_eq!(positions.lower_bound(at(main, sub + 1)), ordinal + 1);
                assert_eq!(positions.find(at(main, sub + 70)), None);
            }
            assert_eq!(positions.find(at(4, 0)), None);
            assert_eq!(positions.find(at(i64::MIN, 0)), None);
            assert_eq!(positions.find(at(i64::MAX, -1)), None);
        }
    }

    #[test]
    fn a_distance_beyond_four_bytes_does_not_fit() {
        let positions = positions(&[(5, 0)]);
        assert!(positions.fits(at(5 + i64::from(u32::MAX), 0)));
        assert!(!positions.fits(at(6 + i64::from(u32::MAX), 0)));
    }

    #[test]
    fn ordinal_beyond_is_the_first_record_that_ends_after_the_offset() {
        let positions = positions(&[(1, 0), (2, 0), (3, 0)]);
        let cases = [(32, 0), (61, 0), (62, 1), (63, 1), (121, 2), (122, 3), (9_999, 3)];
        for (offset, expected) in cases {
            assert_eq!(positions.ordinal_beyond(0, offset), expected, "{offset}");
        }
    }
}
