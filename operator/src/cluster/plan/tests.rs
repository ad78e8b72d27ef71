//! Situations and what the planner says to them: the specification by example. Each situation
//! starts from a healthy cluster of three, whose leader is member 1, and says what is different.

use jiff::SignedDuration;

use super::*;
use crate::cluster::model::{Bootstrap, Kubelet, Names, Pod, Reach, Serving, Silence};

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

#[test]
fn a_lost_voter_is_replaced_by_a_learner_first() {
    let lost = |loss: Loss| {
        move |s: &mut Situation| {
            s.silence(2, Some(Cause::NotReady));
            s.member(2).loss = Some(loss);
        }
    };
    for loss in [Loss::Claim, Loss::Data, Loss::NodeGone, Loss::NodeSilent] {
        assert_eq!(says(3, lost(loss)), "CreateMember 4", "{loss:?}");
    }
    let promoted = |s: &mut Situation| {
        lost(Loss::NodeGone)(s);
        s.join(4, false);
    };
    assert_eq!(says(3, promoted), "Remove 2");
    let refused_by_go_etcd = |s: &mut Situation| {
        lost(Loss::NodeGone)(s);
        let refused = Member {
            id: None,
            join_refused: true,
            initial_state: InitialState::Existing,
            pod: None,
            claim: Claim::Unborn,
            reach: Reach::Silent(Silence::NoAddress),
            ..member(4)
        };
        s.observed.members.insert(Serial(4), refused);
        s.observed.latest_serial = Serial(4);
    };
    assert_eq!(says(3, refused_by_go_etcd), "Remove 2");
    // The newcomer of a growing cluster is none that replaces.
    let growing = |s: &mut Situation| {
        refused_by_go_etcd(s);
        s.desired.replicas = 5;
    };
    assert_eq!(says(3, growing), "Remove 2");
    let by_hand = |replicas| {
        move |s: &mut Situation| {
            refused_by_go_etcd(s);
            s.desired.replicas = replicas;
            s.desired.replace_automatically = false;
        }
    };
    assert_eq!(says(3, by_hand(3)), "Remove 2");
    assert_eq!(says(3, by_hand(5)), "Remove waits for I11");
}

/// As long as the loss is known; that it stays known while the Pod is made anew is `observe`'s part.
#[test]
fn the_successor_of_an_emptied_member_stays_until_it_votes() {
    let learning = |s: &mut Situation| {
        s.silence(2, Some(Cause::NotReady));
        s.member(2).loss = Some(Loss::Data);
        s.join(4, true);
    };
    assert_eq!(says(3, learning), "Promote 4");
    let cancelled = |s: &mut Situation| s.join(4, true);
    assert_eq!(says(3, cancelled), "Remove 4");
}

#[test]
fn silence_alone_is_not_death() {
    assert_eq!(says(3, |s| s.silence(2, None)), "nothing");
    assert_eq!(says(3, |s| s.silence(2, Some(Cause::Crash("exit 1".to_owned())))), "nothing");
}

#[test]
fn replacements_are_held_back_where_they_would_do_harm() {
    let silent = |s: &mut Situation, serial| {
        s.silence(serial, Some(Cause::NotReady));
        s.member(serial).loss = Some(Loss::NodeSilent);
    };
    let two = |s: &mut Situation| {
        silent(s, 2);
        silent(s, 3);
    };
    assert_eq!(says(5, two), "CreateMember waits for I11");
    let again = |s: &mut Situation| {
        silent(s, 2);
        s.observed.last_replacement = Some(now() - SignedDuration::from_mins(29));
    };
    assert_eq!(says(3, again), "CreateMember waits for I11");
    let manual = |s: &mut Situation| {
        silent(s, 2);
        s.desired.replace_automatically = false;
    };
    assert_eq!(says(3, manual), "CreateMember waits for I11");
    let asked_for = |s: &mut Situation| {
        manual(s);
        s.member(2).deletion_requested = true;
    };
    assert_eq!(says(3, asked_for), "CreateMember 4");
}

#[test]
fn who_may_vote_in_a_moment_counts_and_so_do_all_that_voted_when_nobody_can_be_asked() {
    let counted = |change: fn(&mut Situation)| {
        let mut situation = situation(5);
        change(&mut situation);
        situation.observed.electorate()
    };
    assert_eq!(counted(|_| {}), 5);
    assert_eq!(counted(|s| s.join(6, true)), 6);
    let absent = |s: &mut Situation| {
        s.join(6, true);
        s.silence(6, None);
    };
    assert_eq!(counted(absent), 5);
    // Else a drain in this moment would be allowed what the wanted size allows: two of five.
    let unheard = |s: &mut Situation| {
        s.desired.replicas = 3;
        s.observed.membership = None;
    };
    assert_eq!(counted(unheard), 5);
}

#[test]
fn without_a_quorum_nothing_is_changed() {
    let lost = |s: &mut Situation| {
        s.observed.membership = None;
        s.silence(2, None);
        s.silence(3, None);
    };
    assert_eq!(says(3, lost), "Any waits for I2");
    assert_eq!(
        says(3, |s| {
            lost(s);
            s.desired.replicas = 1;
        }),
        "Any waits for I2"
    );
    // What does not run can be restarted with a corrected template.
    let broken = |s: &mut Situation| {
        lost(s);
        outdate(s);
        s.silence(2, Some(Cause::Image("no such image".to_owned())));
    };
    assert_eq!(says(3, broken), "RestartPod 2");
}

/// Two nodes of three lose the control plane and the operator, and reach each other and the clients.
fn cut_off(s: &mut Situation, serial: i64, down: Cause) {
    s.silence(serial, Some(down));
    s.member(serial).pod.as_mut().unwrap().kubelet = Kubelet::Silent;
}

#[test]
fn what_is_only_cut_off_from_the_control_plane_is_not_stopped() {
    let crash = || Cause::Crash("exit 1".to_owned());
    for (two, three) in
        [(Cause::NotReady, Cause::NotReady), (crash(), Cause::NotReady), (crash(), crash())]
    {
        let cut = |s: &mut Situation| {
            outdate(s);
            s.observed.membership = None;
            s.member(1).reach = Reach::Silent(Silence::Timeout);
            cut_off(s, 2, two);
            cut_off(s, 3, three);
        };
        assert_eq!(says(3, cut), "RestartPod waits for I3");
    }
    // Where the operator may not look at nodes, the node controller's word is all it has.
    let unseen = |s: &mut Situation| {
        outdate(s);
        s.observed.membership = None;
        for serial in [2, 3] {
            s.silence(serial, Some(Cause::NotReady));
            s.member(serial).pod.as_mut().unwrap().kubelet = Kubelet::Unseen;
        }
    };
    assert_eq!(says(3, unseen), "RestartPod waits for I3");
    // It does not keep the operator from a member that surely does not run.
    let and_one_without_an_image = |s: &mut Situation| {
        unseen(s);
        s.silence(3, Some(Cause::Image("no such image".to_owned())));
    };
    assert_eq!(says(3, and_one_without_an_image), "RestartPod 3");
}

#[test]
fn a_member_that_hangs_gets_the_correction_where_that_costs_no_quorum() {
    // A quorum answers without it, also if that is not everybody.
    let one_of_three = |s: &mut Situation| {
        outdate(s);
        cut_off(s, 2, Cause::NotReady);
    };
    assert_eq!(says(3, one_of_three), "RestartPod 2");
    let two_of_five = |s: &mut Situation| {
        outdate(s);
        cut_off(s, 4, Cause::NotReady);
        cut_off(s, 5, Cause::NotReady);
    };
    assert_eq!(says(5, two_of_five), "RestartPod 4");
    // One of the two votes, since there is a list; nobody can tell which.
    let two_of_three = |s: &mut Situation| {
        outdate(s);
        s.silence(2, Some(Cause::NotReady));
        s.silence(3, Some(Cause::NotReady));
    };
    assert_eq!(says(3, two_of_three), "RestartPod waits for I3");
    // None answers. Their kubelets say now that they are not ready, or they say that nobody leads.
    let all = |s: &mut Situation| {
        outdate(s);
        s.observed.membership = None;
        for serial in 1..=3 {
            s.silence(serial, Some(Cause::NotReady));
        }
    };
    assert_eq!(says(3, all), "RestartPod 1");
    let leaderless = |s: &mut Situation| {
        all(s);
        for serial in 1..=3 {
            cut_off(s, serial, Cause::NotReady);
        }
        s.member(3).reach = Reach::Silent(Silence::NoLeader);
    };
    assert_eq!(says(3, leaderless), "RestartPod 3");
}

/// Without a quorum a rollout of something worse would take the members that could bring it back.
#[test]
fn without_a_quorum_the_next_is_stopped_when_the_one_before_has_come_up() {
    let first = |down: Cause, reach: Silence| {
        move |s: &mut Situation| {
            outdate(s);
            s.observed.membership = None;
            for serial in 1..=3 {
                s.silence(serial, Some(Cause::NotReady));
            }
            s.member(1).pod.as_mut().unwrap().template = "t2".to_owned();
            s.silence(1, Some(down));
            s.member(1).reach = Reach::Silent(reach);
        }
    };
    let image = Cause::Image("no such image".to_owned());
    assert_eq!(says(3, first(image, Silence::Refused)), "RestartPod waits for I3");
    assert_eq!(says(3, first(Cause::NotReady, Silence::Refused)), "RestartPod waits for I3");
    assert_eq!(says(3, first(Cause::NotReady, Silence::NoLeader)), "RestartPod 2");
    let ending = |s: &mut Situation| {
        first(Cause::NotReady, Silence::NoLeader)(s);
        s.member(1).pod.as_mut().unwrap().terminating = true;
    };
    assert_eq!(says(3, ending), "RestartPod waits for I3");
    let learner = |s: &mut Situation| {
        first(Cause::Crash("exit 1".to_owned()), Silence::Refused)(s);
        s.member(1).voted = false;
    };
    assert_eq!(says(3, learner), "RestartPod 2");
    // A node that is gone for long does not hold up the others.
    let far_away = |s: &mut Situation| {
        first(Cause::NotReady, Silence::Timeout)(s);
        s.member(1).pod.as_mut().unwrap().kubelet = Kubelet::Silent;
    };
    assert_eq!(says(3, far_away), "RestartPod 2");
}

#[test]
fn membership_is_left_alone_while_data_is_corrupt() {
    let corrupt = |s: &mut Situation| {
        s.observed.membership.as_mut().unwrap().corrupt = true;
        s.desired.replicas = 5;
    };
    assert_eq!(says(3, corrupt), "CreateMember waits for I1");
}

#[test]
fn another_clusters_answer_is_not_acted_on() {
    let other =
        |s: &mut Situation| s.observed.membership.as_mut().unwrap().cluster_id = ClusterId(2);
    assert_eq!(says(3, other), "Any waits for I6");
}

#[test]
fn paused_means_nothing_at_all() {
    let paused = |s: &mut Situation| {
        s.desired.paused = true;
        s.member(2).pod = None;
        s.desired.replicas = 5;
    };
    assert_eq!(says(3, paused), "Any waits for Paused");
    let mut situation = situation(3);
    paused(&mut situation);
    assert!(plan(&situation.desired, &situation.observed, now()).ensures.is_empty());
}

#[test]
fn a_deleted_pod_comes_back_on_its_own_claim_and_a_lost_claim_does_not() {
    let mut situation = situation(3);
    situation.member(2).pod = None;
    let ensures = plan(&situation.desired, &situation.observed, now()).ensures;
    assert!(
        matches!(ensures[..], [Ensure::Pod { serial: Serial(2), new_cluster: false, .. }]),
        "{ensures:?}"
    );
    situation.member(2).claim = Claim::Lost;
    assert_eq!(plan(&situation.desired, &situation.observed, now()).ensures, []);
}

#[test]
fn a_first_start_freezes_its_plan_and_latches_the_cluster() {
    let mut situation = situation(3);
    let formed = std::mem::take(&mut situation.observed);
    let first = plan(&situation.desired, &situation.observed, now());
    let serials = vec![Serial(1), Serial(2), Serial(3)];
    assert_eq!(
        first.action,
        Some(Action::FreezeBootstrap { serials: serials.clone(), attempt: 1 })
    );
    let started_at = now();
    let token = "token".to_owned();
    situation.observed.bootstrap = Some(Bootstrap { token, attempt: 1, started_at, serials });
    situation.observed.latest_serial = Serial(3);
    let members = plan(&situation.desired, &situation.observed, now()).ensures;
    assert_eq!(members.len(), 3, "{members:?}");
    situation.observed.membership = formed.membership;
    let latch = plan(&situation.desired, &situation.observed, now()).action;
    assert_eq!(latch, Some(Action::LatchCluster { cluster_id: ClusterId(1) }));
}

#[test]
fn a_first_start_that_lost_a_volume_is_tried_again_under_a_new_token_and_new_names() {
    let mut situation = situation(3);
    situation.observed.cluster_id = None;
    situation.observed.membership = None;
    let serials = vec![Serial(1), Serial(2), Serial(3)];
    let token = "token".to_owned();
    situation.observed.bootstrap =
        Some(Bootstrap { token, attempt: 1, started_at: now(), serials });
    situation.member(2).loss = Some(Loss::Claim);
    let again = plan(&situation.desired, &situation.observed, now()).action;
    let serials = vec![Serial(4), Serial(5), Serial(6)];
    assert_eq!(again, Some(Action::FreezeBootstrap { serials, attempt: 2 }));
}

/// A first start whose members crash made three more claims every ten minutes, for as long as nobody looked.
#[test]
fn a_first_start_that_crashes_is_tried_again_more_and_more_seldom_and_a_seed_not_at_all() {
    let says = |attempt: i32, minutes: i64, down: Cause, restored: bool| {
        let mut situation = situation(3);
        situation.observed.cluster_id = None;
        situation.observed.membership = None;
        situation.desired.restored = restored;
        let started_at = now() - SignedDuration::from_mins(minutes);
        let serials = vec![Serial(1), Serial(2), Serial(3)];
        let token = "token".to_owned();
        situation.observed.bootstrap = Some(Bootstrap { token, attempt, started_at, serials });
        for serial in 1..=3 {
            situation.silence(serial, Some(down.clone()));
        }
        let plan = plan(&situation.desired, &situation.observed, now());
        match plan.action {
            Some(Action::FreezeBootstrap { attempt, .. }) => format!("attempt {attempt}"),
            Some(action) => format!("{action:?}"),
            None => plan.blocked[0].refusal.detail.clone(),
        }
    };
    let crash = || Cause::Crash("exit 1".to_owned());
    let day = 24 * 60;
    for (attempt, minutes) in [(1, 10), (2, 20), (3, 40), (8, 1280), (9, 1280), (1000, 1280)] {
        let waits = says(attempt, minutes - 1, crash(), false);
        assert!(waits.contains("the next attempt is made at 2027-01-15T"), "{waits}");
        let again = says(attempt, minutes, crash(), false);
        assert_eq!(again, format!("attempt {}", attempt + 1));
    }
    // Its image may come yet, and would come to no other member.
    for cause in [Cause::Image("no such image".to_owned()), Cause::NotReady] {
        let waits = says(1, day, cause, false);
        assert!(waits.starts_with("waiting for a quorum") && !waits.contains("attempt"), "{waits}");
    }
    let seed = says(1, day, Cause::Crash("restore exited with 1".to_owned()), true);
    assert!(seed.contains("another seed would be made of the same backup"), "{seed}");
}

/// Serial 4 was given out and the operator died, before its object was made or after. Whatever came of
/// it, the serial is not given out again, and only an object is a replacement.
#[test]
fn a_serial_is_given_out_once_and_counts_as_a_replacement_when_its_member_is_made() {
    let minutes_ago = |minutes| Some(now() - SignedDuration::from_mins(minutes));
    let unused = |s: &mut Situation| s.observed.latest_serial = Serial(4);
    let growing = |s: &mut Situation| {
        unused(s);
        s.desired.replicas = 5;
    };
    assert_eq!(says(3, growing), "CreateMember 5");
    let lose = |s: &mut Situation, serial| {
        s.silence(serial, Some(Cause::NotReady));
        s.member(serial).loss = Some(Loss::NodeGone);
    };
    let replacing = |s: &mut Situation| {
        unused(s);
        lose(s, 2);
    };
    assert_eq!(says(3, replacing), "CreateMember 5");
    // Another action came in between, and the lost one came back: nothing is due any more.
    assert_eq!(says(3, unused), "nothing");
    // The object was made, at once or late.
    let made = |s: &mut Situation, serial: i64, minutes| {
        let joining = Member {
            id: None,
            initial_state: InitialState::Existing,
            replacement: minutes_ago(minutes),
            pod: None,
            claim: Claim::Unborn,
            reach: Reach::Silent(Silence::NoAddress),
            ..member(serial)
        };
        s.observed.members.insert(Serial(serial), joining);
    };
    let joining = |s: &mut Situation| {
        replacing(s);
        made(s, 4, 0);
    };
    assert_eq!(says(3, joining), "AddLearner 4");
    // It was made so late that the next one was there already, which then is not needed.
    let twice = |s: &mut Situation| {
        joining(s);
        s.observed.latest_serial = Serial(5);
        made(s, 5, 1);
    };
    assert_eq!(says(3, twice), "AddLearner 4");
    let done = |s: &mut Situation, minutes| {
        twice(s);
        s.join(4, false);
        s.observed.latest_serial = Serial(5);
        s.member(4).replacement = minutes_ago(minutes);
        s.observed.membership.as_mut().unwrap().entries.remove(1);
        s.observed.members.remove(&Serial(2));
    };
    assert_eq!(says(3, |s| done(s, 0)), "Release 5");
    // It votes, and another is lost, before and after the interval.
    let next = |s: &mut Situation, minutes| {
        done(s, minutes);
        s.observed.members.remove(&Serial(5));
        lose(s, 3);
    };
    assert_eq!(says(3, |s| next(s, 29)), "CreateMember waits for I11");
    assert_eq!(says(3, |s| next(s, 30)), "CreateMember 6");
    // Its object has left again: that is in the status.
    let left = |s: &mut Situation| {
        replacing(s);
        s.observed.last_replacement = minutes_ago(29);
    };
    assert_eq!(says(3, left), "CreateMember waits for I11");
}

/// Found by the simulator: the quorum was lost before the ids were latched, and a Pod that was made anew
/// named its own member only. With that a member that had not started yet never did.
#[test]
fn while_nobody_answers_the_members_of_the_first_start_know_each_other() {
    let mut situation = situation(3);
    situation.observed.membership = None;
    for member in situation.observed.members.values_mut() {
        member.id = None;
        member.reach = Reach::Silent(Silence::NoLeader);
    }
    situation.member(3).pod = None;
    let ensures = plan(&situation.desired, &situation.observed, now()).ensures;
    let Some(Ensure::Pod { serial: Serial(3), initial_cluster, new_cluster: false }) =
        ensures.first()
    else {
        panic!("{ensures:?}")
    };
    let names: Vec<_> =
        initial_cluster.split(',').filter_map(|pair| pair.split('=').next()).collect();
    assert_eq!(names, ["main-1", "main-2", "main-3"]);
}

#[test]
fn a_recovered_cluster_starts_with_one_member() {
    let mut situation = situation(3);
    situation.observed = Observed::default();
    situation.desired.restored = true;
    let first = plan(&situation.desired, &situation.observed, now()).action;
    assert_eq!(first, Some(Action::FreezeBootstrap { serials: vec![Serial(1)], attempt: 1 }));
}

/// Found by the simulator: the members of the first attempt formed a cluster after the second
/// attempt was frozen, and the planner waited for ever for them to be the second's.
#[test]
fn an_attempt_that_was_given_up_is_cleared_away_even_if_it_formed_a_cluster_since() {
    let mut situation = situation(3);
    situation.observed.cluster_id = None;
    situation.observed.latest_serial = Serial(6);
    let serials = vec![Serial(4), Serial(5), Serial(6)];
    let token = "token-2".to_owned();
    situation.observed.bootstrap =
        Some(Bootstrap { token, attempt: 2, started_at: now(), serials });
    let next = plan(&situation.desired, &situation.observed, now()).action;
    assert_eq!(next, Some(Action::Release { serial: Serial(1), keep_claim: false }));
}

/// What a client may have written is nowhere else: whatever the policy says, it stays.
#[test]
fn the_claim_of_a_first_start_that_was_given_up_is_kept() {
    let serial = Serial(1);
    for (initial_state, had_an_id, keep_claim) in [
        (InitialState::New, false, true),
        (InitialState::Restored, false, true),
        // It was in the list of the cluster that goes on, and others have what it had.
        (InitialState::New, true, false),
        // It never got an id, so its server never started.
        (InitialState::Existing, false, false),
    ] {
        let mut situation = situation(3);
        situation.observed.cluster_id = None;
        situation.observed.membership = None;
        situation.observed.latest_serial = Serial(6);
        let serials = vec![Serial(4), Serial(5), Serial(6)];
        let token = "token-2".to_owned();
        situation.observed.bootstrap =
            Some(Bootstrap { token, attempt: 2, started_at: now(), serials });
        let member = situation.member(1);
        member.initial_state = initial_state;
        member.id = had_an_id.then(|| id(1));
        let Situation { desired, observed } = &situation;
        let next = plan(desired, observed, now()).action.unwrap();
        assert_eq!(next, Action::Release { serial, keep_claim }, "{initial_state:?}");
        let retires = |action: &Action| {
            let retire = crate::cluster::mutation::Mutation::RetireClaim { serial };
            crate::cluster::mutation::mutations(action).contains(&retire)
        };
        assert_eq!(retires(&next), !keep_claim);
        // Nor does a planner that thinks otherwise get it done.
        let delete = Action::Release { serial, keep_claim: false };
        let permitted = invariants::permit(&delete, desired, observed, now());
        assert_eq!(permitted.is_ok(), !keep_claim, "{permitted:?}");
    }
}

#[test]
fn only_the_cluster_that_was_planned_and_answers_is_latched() {
    let planned = |attempt: i64| {
        let serials = (1..=3).map(|number| Serial(number + 3 * (attempt - 1))).collect();
        let token = format!("token-{attempt}");
        Some(Bootstrap { token, attempt: 1, started_at: now(), serials })
    };
    let latch = Action::LatchCluster { cluster_id: ClusterId(1) };
    let permitted = |change: &dyn Fn(&mut Observed)| {
        let mut situation = situation(3);
        situation.observed.cluster_id = None;
        situation.observed.bootstrap = planned(1);
        change(&mut situation.observed);
        invariants::permit(&latch, &situation.desired, &situation.observed, now()).is_ok()
    };
    assert!(permitted(&|_| {}));
    assert!(!permitted(&|observed| observed.cluster_id = Some(ClusterId(1))));
    assert!(!permitted(&|observed| observed.membership = None));
    assert!(!permitted(&|observed| observed.bootstrap = planned(2)));
    assert!(!permitted(&|observed| {
        observed.membership.as_mut().unwrap().cluster_id = ClusterId(2);
    }));
}
