//! Latencies in logarithmic buckets: constant memory, three per cent precision, no allocation while
//! measuring.

use std::time::Duration;

/// Each power of two is divided into this many buckets.
const STEPS: u64 = 32;
const STEP_BITS: u32 = 5;
const BUCKETS: usize = (64 - STEP_BITS as usize) * STEPS as usize + STEPS as usize;

/// How often which latency was seen.
#[derive(Clone)]
pub struct Histogram {
    buckets: Vec<u64>,
    count: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: vec![0; BUCKETS], count: 0 }
    }
}

impl Histogram {
    /// Counts one latency.
    pub fn record(&mut self, latency: Duration) {
        let nanoseconds = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket_of(nanoseconds)] += 1;
        self.count += 1;
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The latency that `share` (0 to 1) of all do not exceed, in microseconds.
    pub fn quantile(&self, share: f64) -> f64 {
        let wanted = ((self.count as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return upper_end(index as u64) as f64 / 1000.0;
            }
        }
        0.0
    }
}

fn bucket_of(value: u64) -> usize {
    if value < STEPS {
        return value as usize;
    }
    let shift = value.ilog2() - STEP_BITS;
    (u64::from(shift) * STEPS + (value >> shift)) as usize
}

/// The largest value that belongs to a bucket.
fn upper_end(bucket: u64) -> u64 {
    if bucket < 2 * STEPS {
        return bucket;
    }
    let shift = bucket / STEPS - 1;
    let lead = bucket - shift * STEPS;
    ((lead + 1) << shift) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_its_upper_end_and_is_narrow() {
        for value in (0..2000).chain([4095, 4096, 1 << 20, (1 << 40) + 12345]) {
            let bucket = bucket_of(value);
            let end = upper_end(bucket as u64);
            assert!(end >= value && bucket_of(end) == bucket, "{value} {bucket} {end}");
            assert!(end - value <= value / STEPS, "{value} {end}");
        }
    }

    #[test]
    fn quantiles_are_those_of_the_values() {
        let mut histogram = Histogram::default();
        for microseconds in 1..=1000 {
            histogram.record(Duration::from_micros(microseconds));
        }
        assert!((histogram.quantile(0.5) - 500.0).abs() < 20.0);
        assert!((histogram.quantile(0.99) - 990.0).abs() < 35.0);
        assert_eq!(histogram.count(), 1000);
    }
}
