//! Which member the next connection goes to.
//!
//! The rules are those of SRV records (RFC 2782) as etcd follows them: of the members that work, only
//! those of the best priority count; among them the weights decide by chance, and members without a
//! weight take turns. A member that could not be reached is left out until it was reached again.

use client::SrvTarget;

/// Once in so many times a member without a weight is preferred to those that have one, so that it is
/// not forgotten.
const UNWEIGHTED_ONE_IN: u32 = 100;

/// A member and whether it works.
#[derive(Clone, Debug)]
struct Remote {
    target: SrvTarget,
    is_active: bool,
}

/// The members of a gateway, by their number.
#[derive(Debug)]
pub(super) struct Remotes {
    remotes: Vec<Remote>,
    turns: usize,
}

impl Remotes {
    pub(super) fn new(targets: Vec<SrvTarget>) -> Self {
        let remotes = targets.into_iter().map(|target| Remote { target, is_active: true });
        Self { remotes: remotes.collect(), turns: 0 }
    }

    /// Where a member is, as host and port.
    pub(super) fn address(&self, number: usize) -> (String, u16) {
        let target = &self.remotes[number].target;
        (target.host.clone(), target.port)
    }

    pub(super) fn set_active(&mut self, number: usize, is_active: bool) {
        self.remotes[number].is_active = is_active;
    }

    /// The members that are left out at present.
    pub(super) fn inactive(&self) -> Vec<usize> {
        (0..self.remotes.len()).filter(|number| !self.remotes[*number].is_active).collect()
    }

    /// The member for the next connection; nothing when none works. `chance` gives a number below
    /// its argument.
    pub(super) fn pick(&mut self, mut chance: impl FnMut(u32) -> u32) -> Option<usize> {
        let active = || self.remotes.iter().enumerate().filter(|(_, remote)| remote.is_active);
        let best = active().map(|(_, remote)| remote.target.priority).min()?;
        let (weighted, unweighted): (Vec<_>, Vec<_>) = active()
            .filter(|(_, remote)| remote.target.priority == best)
            .map(|(number, remote)| (number, u32::from(remote.target.weight)))
            .partition(|(_, weight)| *weight > 0);
        let forgotten =
            !unweighted.is_empty() && !weighted.is_empty() && chance(UNWEIGHTED_ONE_IN) == 0;
        if weighted.is_empty() || forgotten {
            let (number, _) = unweighted[self.turns % unweighted.len()];
            self.turns = self.turns.wrapping_add(1);
            return Some(number);
        }
        let mut left = chance(weighted.iter().map(|(_, weight)| weight).sum());
        for (number, weight) in weighted {
            if left < weight {
                return Some(number);
            }
            left -= weight;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(priority: u16, weight: u16) -> SrvTarget {
        SrvTarget { priority, weight, port: 2379, host: "m".to_owned() }
    }

    #[test]
    fn members_without_weights_take_turns_and_failed_ones_are_left_out() {
        let mut remotes = Remotes::new(vec![target(0, 0), target(0, 0), target(0, 0)]);
        let next = |remotes: &mut Remotes| remotes.pick(|_| 0);
        assert_eq!([0; 4].map(|_| next(&mut remotes)), [Some(0), Some(1), Some(2), Some(0)]);
        remotes.set_active(1, false);
        assert_eq!(remotes.inactive(), [1]);
        assert!((0..9).all(|_| next(&mut remotes) != Some(1)));
        remotes.set_active(0, false);
        remotes.set_active(2, false);
        assert_eq!(next(&mut remotes), None);
        remotes.set_active(1, true);
        assert_eq!(next(&mut remotes), Some(1));
    }

    #[test]
    fn a_worse_priority_is_used_only_when_the_better_one_fails() {
        let mut remotes = Remotes::new(vec![target(2, 0), target(1, 0)]);
        assert_eq!(remotes.pick(|_| 0), Some(1));
        remotes.set_active(1, false);
        assert_eq!(remotes.pick(|_| 0), Some(0));
    }

    #[test]
    fn weights_decide_in_proportion() {
        let mut remotes = Remotes::new(vec![target(0, 1), target(0, 3), target(0, 0)]);
        let mut counts = [0; 3];
        for draw in 0..4 {
            counts[remotes.pick(|below| if below == 4 { draw } else { 1 }).unwrap()] += 1;
        }
        assert_eq!(counts, [1, 3, 0]);
        assert_eq!(remotes.pick(|_| 0), Some(2), "but the third is not forgotten");
    }
}
