//! Which versions of the peer protocol a build understands, and whether two builds understand each
//! other.
//!
//! A newer build only adds to the protocol, and says what an older member does with each addition
//! (`proto/keelson/peer/v1`), so two members understand each other as soon as they have one version in
//! common. The older of the two cannot know whether the newer still understands it; therefore the
//! newer says so in every envelope.

use proto::peerpb::Envelope;

/// The versions of the peer protocol that a build understands, both inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProtocolVersions {
    /// The oldest version whose members it still understands.
    pub oldest: u32,
    /// The version that it speaks.
    pub newest: u32,
}

/// Two members have no version of the protocol in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Skew {
    /// The other member is the older one.
    #[error(
        "the sender is too old: it speaks peer protocol {theirs}, and this member understands none \
         before {oldest}; upgrade the sender one version at a time"
    )]
    TooOld { theirs: u32, oldest: u32 },
    /// The other member is the newer one.
    #[error(
        "the sender is too new: it understands no peer protocol before {oldest}, and this member \
         speaks {ours}; upgrade this member first"
    )]
    TooNew { oldest: u32, ours: u32 },
}

impl ProtocolVersions {
    /// What this build understands.
    pub const OWN: Self = Self { oldest: 1, newest: 1 };

    /// What the sender of a message understands. One that does not say how far back it goes is from
    /// before members said so, and goes back to the beginning.
    pub fn of(envelope: &Envelope) -> Self {
        Self { oldest: envelope.protocol_oldest, newest: envelope.protocol_version }
    }

    /// Whether a member that understands these versions understands that sender.
    ///
    /// # Errors
    /// Which of the two is too old.
    pub fn check(self, sender: Self) -> Result<(), Skew> {
        if sender.newest < self.oldest {
            return Err(Skew::TooOld { theirs: sender.newest, oldest: self.oldest });
        }
        if sender.oldest > self.newest {
            return Err(Skew::TooNew { oldest: sender.oldest, ours: self.newest });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_with_a_version_in_common_understand_each_other() {
        let versions = |oldest, newest| ProtocolVersions { oldest, newest };
        for (ours, theirs, expected) in [
            ((1, 1), (1, 1), Ok(())),
            ((1, 1), (1, 2), Ok(())),
            ((1, 2), (1, 1), Ok(())),
            ((2, 3), (1, 2), Ok(())),
            ((1, 1), (0, 1), Ok(())), // says nothing of how far back it goes
            ((2, 3), (0, 1), Err(Skew::TooOld { theirs: 1, oldest: 2 })),
            ((1, 1), (2, 3), Err(Skew::TooNew { oldest: 2, ours: 1 })),
            ((1, 1), (0, 0), Err(Skew::TooOld { theirs: 0, oldest: 1 })), // says nothing at all
        ] {
            let checked = versions(ours.0, ours.1).check(versions(theirs.0, theirs.1));
            assert_eq!(checked, expected, "{ours:?} hears {theirs:?}");
        }
    }
}
