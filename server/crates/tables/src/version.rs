//! The version a cluster speaks, and a downgrade that is under way.

use std::fmt;
use std::str::FromStr;

/// A version `major.minor.patch`. etcd replicates the cluster's version with a patch of 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterVersion {
    pub major: u32,
    pub minor: u32,
    pub patch: u32,
}

/// A text that is no version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a version of the form major.minor.patch")]
pub struct VersionError(pub String);

impl FromStr for ClusterVersion {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Self, VersionError> {
        let mut numbers = text.split('.').map(|number| match number.as_bytes() {
            [b'0'] | [b'1'..=b'9', ..] => number.parse().ok(),
            _ => None,
        });
        let mut next = || numbers.next().flatten();
        match (next(), next(), next(), numbers.next()) {
            (Some(major), Some(minor), Some(patch), None) => Ok(Self { major, minor, patch }),
            _ => Err(VersionError(text.to_owned())),
        }
    }
}

impl fmt::Display for ClusterVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// Whether the cluster is on its way to an older version, and to which. The target is kept as text,
/// as etcd keeps it and shows it in `Status`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Downgrade {
    /// The version to go to; `None` when no downgrade is under way.
    pub target_version: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_three_plain_numbers_are_a_version() {
        for good in ["3.7.0", "0.0.0", "10.20.30"] {
            assert_eq!(good.parse::<ClusterVersion>().unwrap().to_string(), good);
        }
        for bad in
            ["", "3.7", "3.7.0.1", "3.07.0", "v3.7.0", "3.7.x", "+3.7.0", "3..0", "3.7.99999999999"]
        {
            assert_eq!(bad.parse::<ClusterVersion>(), Err(VersionError(bad.to_owned())));
        }
        let parse = |text: &str| text.parse::<ClusterVersion>().unwrap();
        assert!(parse("3.10.0") > parse("3.9.9"));
    }
}
