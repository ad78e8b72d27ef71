//! What test programs say in their output.

use std::collections::BTreeSet;

/// How much tests say that they have compared with Go etcd, and how much of it was equal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Compared {
    pub(crate) all: usize,
    pub(crate) equal: usize,
}

impl Compared {
    /// Reads `12 commands compared, 11 equal`.
    fn read(line: &str) -> Option<Compared> {
        let (all, equal) = line.split_once(" compared, ")?;
        let first = |text: &str| text.split(' ').next()?.parse().ok();
        Some(Compared { all: first(all)?, equal: first(equal)? })
    }

    pub(crate) fn add(&mut self, other: Compared) {
        self.all += other.all;
        self.equal += other.equal;
    }
}

/// What came of test programs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    /// What tests say that they have left out.
    pub(crate) skipped: BTreeSet<String>,
    pub(crate) compared: Compared,
}

impl Counts {
    pub(crate) fn add(&mut self, other: Counts) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped.extend(other.skipped);
        self.compared.add(other.compared);
    }
}

/// A step that is no test program.
pub(crate) const ONE: Counts = Counts {
    passed: 1,
    failed: 0,
    skipped: BTreeSet::new(),
    compared: Compared { all: 0, equal: 0 },
};

/// Adds up the lines in which Rust's test harness says how a test program went, and collects those in
/// which a test says what it has skipped.
pub(crate) fn count_results(output: &str) -> Counts {
    let mut counts = Counts::default();
    // The harness may have begun the line.
    let skipped = output.lines().filter_map(|line| line.split_once("SKIPPED "));
    counts.skipped = skipped.map(|(_, what)| what.trim().to_owned()).collect();
    output.lines().filter_map(Compared::read).for_each(|compared| counts.compared.add(compared));
    for line in output.lines().filter_map(|line| line.trim().strip_prefix("test result: ")) {
        let number_before = |word: &str| {
            let text = line.split(&format!(" {word}")).next().unwrap_or_default();
            text.rsplit(' ').next().and_then(|number| number.parse::<usize>().ok()).unwrap_or(0)
        };
        counts.passed += number_before("passed");
        counts.failed += number_before("failed");
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_all_test_programs_are_added_up() {
        let output = "running 2 tests\n\
            test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; finished in 0.00s\n\
            test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured\n";
        let counts = count_results(output);
        assert_eq!(counts, Counts { passed: 15, failed: 2, ..Counts::default() });
    }

    #[test]
    fn what_was_compared_is_added_up() {
        let output = "1630 facts of 104 families compared, 1572 equal, 58 deviating with reason\n\
            12 commands compared, 12 equal\nno number compared, 1 equal\n";
        assert_eq!(count_results(output).compared, Compared { all: 1642, equal: 1584 });
    }
}
