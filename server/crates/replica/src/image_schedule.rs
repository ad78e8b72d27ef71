//! When the next image is due.
//!
//! openraft writes one image at a time and passes over a request that comes meanwhile. So a request
//! counts for nothing; only an image that is there does, and until then it is asked for again.

use types::LogIndex;

use crate::start::ImagePolicy;

/// How far this member and its newest image are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    pub(crate) applied: LogIndex,
    /// Bytes of entries applied since the start.
    pub(crate) bytes: u64,
    /// The applied index of the newest image.
    pub(crate) saved: LogIndex,
    /// Whether a compaction has freed records that only an image may release.
    pub(crate) compacted: bool,
}

/// Remembers what the newest image holds of what was applied.
#[derive(Debug)]
pub(crate) struct ImageSchedule {
    policy: ImagePolicy,
    /// The bytes that were applied when the newest image was asked for.
    saved_bytes: u64,
    /// The same of the one that is asked for, and the index that it has to reach.
    asked: Option<(LogIndex, u64)>,
}

impl ImageSchedule {
    pub(crate) fn new(policy: ImagePolicy) -> Self {
        Self { policy, saved_bytes: 0, asked: None }
    }

    /// Whether an image is to be asked for now.
    pub(crate) fn is_due(&mut self, now: Progress) -> bool {
        if let Some((index, bytes)) = self.asked
            && now.saved >= index
        {
            (self.saved_bytes, self.asked) = (bytes, None);
        }
        let entries = now.applied.0.saturating_sub(now.saved.0);
        let bytes = now.bytes.saturating_sub(self.saved_bytes);
        let enough = entries >= self.policy.entries || bytes >= self.policy.bytes;
        let due = entries > 0 && (enough || now.compacted);
        if due {
            self.asked.get_or_insert((now.applied, now.bytes));
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: ImagePolicy = ImagePolicy { entries: 10, bytes: 1000, entries_kept: 5 };

    fn at(applied: u64, bytes: u64, saved: u64) -> Progress {
        let (applied, saved) = (LogIndex(applied), LogIndex(saved));
        Progress { applied, bytes, saved, compacted: false }
    }

    #[test]
    fn entries_bytes_or_a_compaction_make_an_image_due() {
        let mut schedule = ImageSchedule::new(POLICY);
        assert!(!schedule.is_due(at(9, 900, 0)));
        assert!(schedule.is_due(at(10, 950, 0)), "enough entries");
        assert!(!schedule.is_due(at(11, 1800, 10)), "bytes count from the image before");
        assert!(schedule.is_due(at(12, 1950, 10)), "enough bytes");
        assert!(!schedule.is_due(at(12, 1950, 12)));
        assert!(!schedule.is_due(Progress { compacted: true, ..at(12, 1950, 12) }), "nothing new");
        assert!(schedule.is_due(Progress { compacted: true, ..at(13, 1950, 12) }));
    }

    /// openraft #1829: an order that came while an image was being written was lost.
    #[test]
    fn an_image_that_was_asked_for_while_another_was_written_is_asked_for_again() {
        let mut schedule = ImageSchedule::new(POLICY);
        assert!(schedule.is_due(at(10, 10, 0)));
        let compacted = |saved| Progress { compacted: true, ..at(17, 17, saved) };
        assert!(schedule.is_due(compacted(0)), "the first image is still being written");
        assert!(schedule.is_due(compacted(10)), "it does not know of the compaction");
        assert!(!schedule.is_due(Progress { compacted: false, ..compacted(17) }));
    }

    #[test]
    fn bytes_are_not_forgotten_when_an_older_image_was_under_way() {
        let mut schedule = ImageSchedule::new(POLICY);
        assert!(schedule.is_due(at(3, 1000, 0)));
        assert!(schedule.is_due(at(5, 2000, 2)), "the image of 2 is not the one asked for");
        assert!(!schedule.is_due(at(5, 1999, 3)));
        assert!(schedule.is_due(at(5, 2000, 3)));
    }
}
