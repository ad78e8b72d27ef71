//! Alarms: set and cleared through the log, so that every member refuses the same requests.

use std::collections::BTreeSet;

use types::MemberId;

/// What an alarm is about, as the number on the wire (`etcdserverpb.AlarmType`). Numbers this
/// program does not know are kept, as etcd keeps them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AlarmKind(pub i32);

impl AlarmKind {
    /// No alarm; in a query it stands for all of them.
    pub const NONE: AlarmKind = AlarmKind(0);
    /// The store of a member is at its quota.
    pub const NO_SPACE: AlarmKind = AlarmKind(1);
    /// A member's data differ from the others'.
    pub const CORRUPT: AlarmKind = AlarmKind(2);
}

/// One alarm of one member. It names exactly the member that the request named: etcd once raised
/// CORRUPT for a member id of 0 that nobody could clear (trap T34).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Alarm {
    /// What it is about.
    pub kind: AlarmKind,
    /// Whose it is.
    pub member: MemberId,
}

/// The alarms that are on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Alarms {
    pub(crate) on: BTreeSet<Alarm>,
}

impl Alarms {
    /// Turns an alarm on. It may have been on before.
    pub fn activate(&mut self, alarm: Alarm) {
        self.on.insert(alarm);
    }

    /// Turns an alarm off; false if it was not on.
    pub fn deactivate(&mut self, alarm: Alarm) -> bool {
        self.on.remove(&alarm)
    }

    /// The alarms of one kind, or all of them for [`AlarmKind::NONE`], in order of kind and member.
    pub fn list(&self, kind: AlarmKind) -> impl Iterator<Item = Alarm> {
        self.on.iter().copied().filter(move |alarm| kind == AlarmKind::NONE || alarm.kind == kind)
    }

    /// Whether any member has this alarm.
    pub fn any(&self, kind: AlarmKind) -> bool {
        self.on.iter().any(|alarm| alarm.kind == kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alarm(kind: AlarmKind, member: u64) -> Alarm {
        Alarm { kind, member: MemberId(member) }
    }

    #[test]
    fn t34_an_alarm_is_cleared_only_by_its_own_member_and_kind() {
        let mut alarms = Alarms::default();
        alarms.activate(alarm(AlarmKind::CORRUPT, 7));
        alarms.activate(alarm(AlarmKind::NO_SPACE, 7));
        alarms.activate(alarm(AlarmKind::NO_SPACE, 8));
        alarms.activate(alarm(AlarmKind::NO_SPACE, 8));
        assert!(!alarms.deactivate(alarm(AlarmKind::CORRUPT, 0)));
        assert!(!alarms.deactivate(alarm(AlarmKind::CORRUPT, 8)));
        assert!(alarms.deactivate(alarm(AlarmKind::NO_SPACE, 7)));
        assert!(alarms.any(AlarmKind::NO_SPACE) && alarms.any(AlarmKind::CORRUPT));
        let all: Vec<_> = alarms.list(AlarmKind::NONE).collect();
        assert_eq!(all, [alarm(AlarmKind::NO_SPACE, 8), alarm(AlarmKind::CORRUPT, 7)]);
        assert_eq!(alarms.list(AlarmKind::CORRUPT).count(), 1);
    }
}
