//! Members, volumes, nodes and quorums that are lost, and what is left alone then.

use super::*;

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
