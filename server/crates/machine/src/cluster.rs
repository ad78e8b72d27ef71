//! Alarms, what members say about themselves, and versions.

use proto::etcdserverpb as pb;
use proto::etcdserverpb::alarm_request::AlarmAction;
use proto::membershippb;
use tables::{Alarm, AlarmKind, ClusterVersion, MembershipRefusal};
use types::MemberId;

use crate::apply::Applier;
use crate::outcome::{FollowUp, Refusal, header};

impl Applier<'_> {
    /// Lists, sets or clears alarms. As in etcd the answer to a change holds the alarm it changed, a
    /// change to no kind does nothing, and so does an action that nobody knows.
    pub(crate) fn alarm(&mut self, request: &pb::AlarmRequest) -> pb::AlarmResponse {
        let alarm = Alarm { kind: AlarmKind(request.alarm), member: MemberId(request.member_id) };
        let alarms: Vec<Alarm> = match AlarmAction::try_from(request.action) {
            Ok(AlarmAction::Get) => self.tables.alarms.list(alarm.kind).collect(),
            Ok(AlarmAction::Activate) if alarm.kind != AlarmKind::NONE => {
                self.tables.alarms.activate(alarm);
                self.follow_ups.push(FollowUp::AlarmsChanged);
                vec![alarm]
            }
            Ok(AlarmAction::Deactivate) if self.tables.alarms.deactivate(alarm) => {
                self.follow_ups.push(FollowUp::AlarmsChanged);
                vec![alarm]
            }
            _ => Vec::new(),
        };
        let wire =
            |alarm: Alarm| pb::AlarmMember { member_id: alarm.member.0, alarm: alarm.kind.0 };
        pb::AlarmResponse {
            header: header(self.writer.revision()),
            alarms: alarms.into_iter().map(wire).collect(),
        }
    }

    pub(crate) fn set_member_attributes(
        &mut self,
        request: membershippb::ClusterMemberAttrSetRequest,
    ) -> Result<(), Refusal> {
        let attributes = request.member_attributes.unwrap_or_default();
        let set = self.tables.membership.set_attributes(
            MemberId(request.member_id),
            attributes.name,
            attributes.client_urls,
        );
        set.map_err(|refusal| match refusal {
            MembershipRefusal::Removed(_) => Refusal::MemberRemoved,
            MembershipRefusal::Unknown(_) => Refusal::MemberNotFound,
        })
    }

    pub(crate) fn set_cluster_version(
        &mut self,
        request: &membershippb::ClusterVersionSetRequest,
    ) -> Result<(), Refusal> {
        let version: ClusterVersion = request.ver.parse().map_err(|_| Refusal::InvalidVersion)?;
        if self.tables.cluster_version.is_some_and(|current| version < current) {
            self.follow_ups.push(FollowUp::WriteImage);
        }
        self.tables.cluster_version = Some(version);
        Ok(())
    }

    pub(crate) fn set_downgrade(&mut self, request: membershippb::DowngradeInfoSetRequest) {
        self.tables.downgrade.target_version = request.enabled.then_some(request.ver);
    }
}
