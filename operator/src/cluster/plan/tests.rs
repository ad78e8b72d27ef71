//! Situations and what the planner says to them: the specification by example. Each situation
//! starts from a healthy cluster of three, whose leader is member 1, and says what is different.

use jiff::SignedDuration;

use super::*;
use crate::cluster::model::{
    Bootstrap, Cause, Kubelet, Membership, Names, Pod, Reach, Serving, Silence,
};

mod first_start;
mod losses;

const SINCE: i64 = 1_800_000_000;

fn now() -> Timestamp {
    Timestamp::from_second(SINCE + 3600).unwrap()
}

fn id(serial: i64) -> MemberId {
    MemberId(0x100 + serial as u64)
}

fn member(serial: i64) -> Member {
    Member {
        serial: Serial(serial),
        initial_state: InitialState::New,
        replacement: None,
        id: Some(id(serial)),
        listed_since: Some(Timestamp::from_second(SINCE).unwrap()),
        voted: true,
        deletion_requested: false,
        join_refused: false,
        claim: Claim::Bound,
        pod: Some(Pod {
            uid: format!("pod-{serial}"),
            template: "t1".to_owned(),
            initial_cluster: String::new(),
            new_cluster: false,
            terminating: false,
            down: None,
            kubelet: Kubelet::Heard,
            serving: true,
        }),
        loss: None,
        loss_due: None,
        reach: Reach::Serving(Serving {
            since: Timestamp::from_second(SINCE).unwrap(),
            lag: 0,
            leader: serial == 1,
            version: "3.7.3".to_owned(),
        }),
    }
}

fn entry(desired: &Desired, serial: i64, learner: bool) -> Entry {
    Entry {
        id: id(serial),
        name: desired.names.member(Serial(serial)),
        peer_url: desired.names.peer_url(Serial(serial)),
        learner,
        started: true,
    }
}

struct Situation {
    desired: Desired,
    observed: Observed,
}

fn situation(voters: i64) -> Situation {
    let names = Names {
        cluster: "main".to_owned(),
        namespace: "ns".to_owned(),
        tls: true,
        claim_suffix: "c".to_owned(),
    };
    let desired = Desired {
        names,
        replicas: voters as usize,
        restored: false,
        template: "t1".to_owned(),
        paused: false,
        rolling: true,
        min_ready: SignedDuration::from_secs(10),
        lag_max: 100,
        replace_automatically: true,
        replacement_interval: SignedDuration::from_mins(30),
    };
    let observed = Observed {
        cluster_id: Some(ClusterId(1)),
        bootstrap: None,
        latest_serial: Serial(voters),
        last_replacement: None,
        join_attempts: 1,
        membership: Some(Membership {
            cluster_id: ClusterId(1),
            entries: (1..=voters).map(|serial| entry(&desired, serial, false)).collect(),
            corrupt: false,
        }),
        members: (1..=voters).map(|serial| (Serial(serial), member(serial))).collect(),
    };
    Situation { desired, observed }
}

impl Situation {
    fn member(&mut self, serial: i64) -> &mut Member {
        self.observed.members.get_mut(&Serial(serial)).unwrap()
    }

    fn silence(&mut self, serial: i64, down: Option<Cause>) {
        let member = self.member(serial);
        member.reach = Reach::Silent(Silence::Timeout);
        member.pod.as_mut().unwrap().down = down;
    }

    /// It has never run.
    fn unstart(&mut self, serial: i64) {
        let entries = &mut self.observed.membership.as_mut().unwrap().entries;
        entries.iter_mut().find(|entry| entry.id == id(serial)).unwrap().started = false;
        self.silence(serial, Some(Cause::NotReady));
    }

    /// Its Pod names the members that there are at the moment.
    fn name_all(&mut self, serial: i64) {
        let member = &self.observed.members[&Serial(serial)];
        let expected = initial_cluster(&self.desired, &self.observed, member);
        self.member(serial).pod.as_mut().unwrap().initial_cluster = expected;
    }

    fn join(&mut self, serial: i64, learner: bool) {
        let entry = entry(&self.desired, serial, learner);
        self.observed.membership.as_mut().unwrap().entries.push(entry);
        let member = Member { initial_state: InitialState::Existing, ..member(serial) };
        self.observed.members.insert(Serial(serial), member);
        self.observed.latest_serial = Serial(serial);
    }
}

/// The action, or the rule that holds it back, in one line.
fn says(voters: i64, change: impl FnOnce(&mut Situation)) -> String {
    let mut situation = situation(voters);
    change(&mut situation);
    let plan = plan(&situation.desired, &situation.observed, now());
    match (&plan.action, plan.blocked.first()) {
        (Some(action), _) => match action.serial() {
            Some(serial) => format!("{} {serial}", action.kind()),
            None => action.kind().to_owned(),
        },
        (None, Some(blocked)) => format!("{} waits for {}", blocked.action, blocked.refusal.rule),
        (None, None) => "nothing".to_owned(),
    }
}

fn outdate(situation: &mut Situation) {
    situation.desired.template = "t2".to_owned();
}

#[test]
fn a_healthy_cluster_is_left_alone() {
    for voters in [1, 3, 5, 7] {
        assert_eq!(says(voters, |_| {}), "nothing");
    }
}

#[test]
fn the_size_changes_through_learners_and_removals() {
    assert_eq!(says(3, |s| s.desired.replicas = 5), "CreateMember 4");
    assert_eq!(says(3, |s| s.desired.replicas = 1), "Remove 3");
    assert_eq!(says(5, |s| s.desired.replicas = 3), "Remove 5");
    // The leader is moved before it is removed.
    let youngest_leads = |s: &mut Situation| {
        s.desired.replicas = 1;
        for serial in [1, 3] {
            if let Reach::Serving(serving) = &mut s.member(serial).reach {
                serving.leader = serial == 3;
            }
        }
    };
    assert_eq!(says(3, youngest_leads), "MoveLeader 3");
}

#[test]
fn a_learner_is_promoted_when_it_has_caught_up() {
    let joining = |s: &mut Situation| {
        s.desired.replicas = 5;
        s.join(4, true);
    };
    assert_eq!(says(3, joining), "Promote 4");
    let behind = |s: &mut Situation| {
        joining(s);
        if let Reach::Serving(serving) = &mut s.member(4).reach {
            serving.lag = 101;
        }
    };
    assert_eq!(says(3, behind), "Promote waits for I4");
    let fresh = |s: &mut Situation| {
        joining(s);
        if let Reach::Serving(serving) = &mut s.member(4).reach {
            serving.since = now() - SignedDuration::from_secs(9);
        }
    };
    assert_eq!(says(3, fresh), "Promote waits for I4");
    // Nobody wants it any more.
    assert_eq!(says(3, |s| s.join(4, true)), "Remove 4");
}

#[test]
fn a_learner_that_never_starts_is_taken_out_unless_the_next_would_not_either() {
    let never = |cause: Cause| {
        move |s: &mut Situation| {
            s.desired.replicas = 5;
            s.join(4, true);
            s.unstart(4);
            s.silence(4, Some(cause));
            s.name_all(4);
        }
    };
    assert_eq!(says(3, never(Cause::Crash("exit 1".to_owned()))), "Remove 4");
    assert_eq!(says(3, never(Cause::Image("no such image".to_owned()))), "Promote waits for I4");
    // Its time begins when it is added, however long that was held back.
    let just_added = |s: &mut Situation| {
        never(Cause::NotReady)(s);
        s.member(4).listed_since = Some(now() - SignedDuration::from_secs(599));
    };
    assert_eq!(says(3, just_added), "Promote waits for I4");
    // Twice as long for each further one in a row.
    for (attempt, minutes, expected) in [
        (2, 19, "Promote waits for I4"),
        (2, 20, "Remove 4"),
        (3, 39, "Promote waits for I4"),
        (3, 40, "Remove 4"),
    ] {
        let further = |s: &mut Situation| {
            never(Cause::NotReady)(s);
            s.observed.join_attempts = attempt;
            s.member(4).listed_since = Some(now() - SignedDuration::from_mins(minutes));
        };
        assert_eq!(says(3, further), expected, "attempt {attempt} after {minutes} minutes");
    }
}

/// Of five the third was still waiting for its image; its Pod had been made anew meanwhile, and was told to
/// join the five that there were. Another was lost and taken out. When the third started it found four, said
/// that the member count is unequal, and said so for ever; and etcd adds nobody while a voter is down.
#[test]
fn a_voter_that_comes_late_is_told_of_who_has_left() {
    let late = |s: &mut Situation| {
        s.unstart(3);
        s.name_all(3);
    };
    assert_eq!(says(5, late), "nothing");
    let left = |s: &mut Situation| {
        late(s);
        s.observed.members.remove(&Serial(2));
        s.observed.membership.as_mut().unwrap().entries.remove(1);
        s.silence(3, Some(Cause::Crash("exit 1".to_owned())));
    };
    assert_eq!(says(5, left), "RestartPod 3");
    let told = |s: &mut Situation| {
        left(s);
        s.name_all(3);
    };
    assert_eq!(says(5, told), "CreateMember 6");
}

/// Go etcd names all members of the first start in its list, also those that never ran: a name is no start.
#[test]
fn who_has_never_run_is_told_of_the_members_that_there_are() {
    let late = |s: &mut Situation| {
        s.desired.replicas = 5;
        s.unstart(3);
        s.name_all(3);
    };
    assert_eq!(says(3, late), "CreateMember 4");
    let left_behind = |s: &mut Situation| {
        late(s);
        s.join(4, true);
    };
    assert_eq!(says(3, left_behind), "RestartPod 3");
    let told = |s: &mut Situation| {
        left_behind(s);
        s.name_all(3);
    };
    assert_eq!(says(3, told), "Promote 4");
    // It makes no difference that it crashes at once, nor that the user restarts members himself.
    let crashes = |s: &mut Situation| {
        left_behind(s);
        s.silence(3, Some(Cause::Crash("exit 1".to_owned())));
        s.desired.rolling = false;
    };
    assert_eq!(says(3, crashes), "RestartPod 3");
    let going = |s: &mut Situation| {
        left_behind(s);
        s.member(3).pod.as_mut().unwrap().terminating = true;
    };
    assert_eq!(says(3, going), "Promote 4");
    // With data it does not look at the list.
    let has_run = |s: &mut Situation| {
        left_behind(s);
        s.observed.membership.as_mut().unwrap().entries[2].started = true;
    };
    assert_eq!(says(3, has_run), "Promote 4");
    // A learner is told in the same way, as long as it has time.
    let learner = |s: &mut Situation| {
        s.desired.replicas = 5;
        s.join(4, true);
        s.unstart(4);
        s.member(4).listed_since = Some(now());
    };
    assert_eq!(says(3, learner), "RestartPod 4");
}

/// The log of the cluster begins with the frozen plan: who brings that comes in with it.
#[test]
fn a_pod_of_the_first_start_keeps_the_frozen_plan() {
    let founds = |s: &mut Situation| {
        s.desired.replicas = 5;
        s.unstart(3);
        s.name_all(3);
        s.member(3).pod.as_mut().unwrap().new_cluster = true;
        s.join(4, true);
    };
    assert_eq!(says(3, founds), "Promote 4");
}

#[test]
fn who_may_be_part_of_the_quorum_is_not_stopped_for_its_list() {
    // Of three only two answer with it, if it should run after all.
    let needed = |s: &mut Situation| {
        s.unstart(3);
        s.silence(2, None);
        s.desired.replicas = 5;
    };
    assert_eq!(says(3, needed), "CreateMember waits for I2");
    // Of five there are enough that answer without it.
    let spare = |s: &mut Situation| {
        s.unstart(5);
        s.silence(4, None);
    };
    assert_eq!(says(5, spare), "RestartPod 5");
}

#[test]
fn a_list_names_also_those_that_the_operator_did_not_add() {
    let mut situation = situation(3);
    let entries = &mut situation.observed.membership.as_mut().unwrap().entries;
    let stranger = Entry { id: MemberId(0xbee), ..entries[1].clone() };
    entries.push(Entry { peer_url: "https://10.0.0.9:2380".to_owned(), ..stranger });
    let observed = &situation.observed;
    let list = initial_cluster(&situation.desired, observed, &observed.members[&Serial(2)]);
    let (_, last) = list.rsplit_once(',').unwrap();
    assert_eq!((list.split(',').count(), last), (4, "bee=https://10.0.0.9:2380"));
}

#[test]
fn changes_roll_over_followers_first_and_the_leader_last() {
    assert_eq!(says(3, outdate), "RestartPod 2");
    let follower_lags = |s: &mut Situation| {
        outdate(s);
        if let Reach::Serving(serving) = &mut s.member(3).reach {
            serving.lag = 7;
        }
    };
    assert_eq!(says(3, follower_lags), "RestartPod 3");
    let only_the_leader_is_left = |s: &mut Situation| {
        outdate(s);
        for serial in [2, 3] {
            s.member(serial).pod.as_mut().unwrap().template = "t2".to_owned();
        }
    };
    assert_eq!(says(3, only_the_leader_is_left), "MoveLeader 1");
    assert_eq!(says(1, outdate), "RestartPod 1");
    assert_eq!(
        says(3, |s| {
            outdate(s);
            s.desired.rolling = false;
        }),
        "nothing"
    );
}

/// A rollout on a busy machine once deleted two Pods of three, because the first still answered while its
/// kubelet was slow.
#[test]
fn a_member_whose_pod_is_being_deleted_is_not_counted_on_though_it_answers() {
    let first_is_under_way = |s: &mut Situation| {
        outdate(s);
        s.member(2).pod.as_mut().unwrap().terminating = true;
    };
    assert_eq!(says(3, first_is_under_way), "RestartPod waits for I3");
    let of_five = |s: &mut Situation| first_is_under_way(s);
    assert_eq!(says(5, of_five), "RestartPod waits for I3");
    let leader_is_next = |s: &mut Situation| {
        first_is_under_way(s);
        s.member(3).pod.as_mut().unwrap().template = "t2".to_owned();
    };
    assert_eq!(says(3, leader_is_next), "MoveLeader waits for I3");
}

#[test]
fn a_rollout_stops_at_a_member_that_does_not_come_back_and_goes_on_with_the_correction() {
    let stuck = |s: &mut Situation| {
        outdate(s);
        s.member(2).pod.as_mut().unwrap().template = "t2".to_owned();
        s.silence(2, Some(Cause::Image("no such image".to_owned())));
    };
    assert_eq!(says(3, stuck), "RestartPod waits for I3");
    let corrected = |s: &mut Situation| {
        stuck(s);
        s.desired.template = "t3".to_owned();
    };
    assert_eq!(says(3, corrected), "RestartPod 2");
}
