//! etcd's rules for watches, one by one.

use super::*;
use crate::check::validate;

#[tokio::test(start_paused = true)]
async fn t21_ids_are_given_from_zero_or_as_wanted_and_never_twice() {
    let mut world = World::small();
    world.apply(&[Put("a", "1")]);
    let mut client = world.open();
    let mut ids = Vec::new();
    for (wanted, id) in [(0, 0), (0, 1), (3, 3), (2, 2), (0, 4), (3, -1)] {
        let answer = client.watch(CreateWatch { watch_id: wanted, ..on("a", "") }).await;
        assert_eq!((answer[0].watch_id, answer[0].created, header(&answer[0])), (id, true, 2));
        ids.push(answer[0].clone());
    }
    assert!(ids[5].canceled);
    assert_eq!(ids[5].cancel_reason, "mvcc: duplicate watch ID provided on the WatchStream");
    client.handle.cancel(0).await;
    client.handle.cancel(77).await;
    let answers = client.read_all().await;
    assert_eq!(answers.len(), 1, "an unknown id gets no answer");
    assert!(answers[0].canceled && answers[0].watch_id == 0 && answers[0].compact_revision == 0);
    world.apply(&[Put("a", "2")]);
    let mut heard: Vec<i64> =
        client.read_all().await.iter().map(|answer| answer.watch_id).collect();
    heard.sort_unstable();
    assert_eq!(heard, [1, 2, 3, 4], "watch 0 alone was closed");
}

#[tokio::test(start_paused = true)]
async fn impossible_watches_are_created_and_cancelled_at_once() {
    let world = World::small();
    let mut client = world.open();
    let cases = [
        (on("b", "a"), "mvcc: watcher range is empty"),
        (on("b", "b"), "mvcc: watcher range is empty"),
        (
            CreateWatch { start_revision: -1, ..on("a", "") },
            "etcdserver: mvcc: required revision has been compacted",
        ),
    ];
    for (watch, reason) in cases {
        let answer = client.watch(watch).await;
        assert!(answer[0].created && answer[0].canceled && answer[0].watch_id == -1);
        assert_eq!((answer[0].cancel_reason.as_str(), header(&answer[0])), (reason, 1));
    }
    client.handle.refuse("rpc error: no".to_owned()).await;
    assert_eq!(client.read_all().await[0].cancel_reason, "rpc error: no");
}

#[tokio::test(start_paused = true)]
async fn an_empty_key_means_the_smallest_key() {
    let mut world = World::small();
    let mut client = world.open();
    client.watch(on("", "\0")).await;
    world.apply(&[Put("\0", "1")]);
    world.apply(&[Put("z", "1")]);
    assert_eq!(revisions(&client.read_all().await), [2, 3]);
}

#[tokio::test(start_paused = true)]
async fn a_watch_from_now_hears_nothing_committed_before_it_even_if_published_after() {
    let mut world = World::small();
    world.commit(&[vec![Put("a", "1")]]);
    let mut client = world.open();
    let created = client.watch(on("a", "")).await;
    assert_eq!(header(&created[0]), 2);
    world.publish();
    assert!(client.read_all().await.is_empty());
    world.apply(&[Put("a", "2")]);
    assert_eq!(revisions(&client.read_all().await), [3]);
}

#[tokio::test(start_paused = true)]
async fn t14_a_watch_of_the_future_hears_no_event_and_no_progress_before_its_start() {
    let mut world = World::small();
    let mut client = world.open();
    client.watch(CreateWatch { start_revision: 4, progress_notify: true, ..on("a", "") }).await;
    world.apply(&[Put("a", "1")]);
    world.apply(&[Put("a", "2")]);
    client.handle.request_progress().await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(client.read_all().await.is_empty());
    world.apply(&[Put("a", "3")]);
    assert_eq!(revisions(&client.read_all().await), [4]);
    client.handle.request_progress().await;
    assert_eq!(header(&client.read_all().await[0]), 4);
}

#[tokio::test(start_paused = true)]
async fn t14_a_reset_does_not_show_a_future_watch_the_past() {
    let mut world = World::small();
    let mut client = world.open();
    client.watch(CreateWatch { start_revision: 4, ..on("a", "") }).await;
    world.commit(&[vec![Put("a", "1")], vec![Put("a", "2")]]);
    world.unpublished.clear();
    world.hub.reset(world.store.read());
    client.handle.request_progress().await;
    assert!(client.read_all().await.is_empty());
    world.apply(&[Put("a", "3")]);
    assert_eq!(revisions(&client.read_all().await), [4]);
}

#[tokio::test(start_paused = true)]
async fn t07_a_watch_from_the_compacted_revision_hears_the_deletion_there() {
    let mut world = World::small();
    world.apply(&[Put("a", "1")]);
    world.apply(&[Delete("a", "")]);
    world.apply(&[Put("b", "1")]);
    world.compact(3);
    let mut client = world.open();
    let watch = CreateWatch { start_revision: 3, prev_kv: true, ..on("a", "z") };
    let answers = client.watch(watch.clone()).await;
    assert_eq!(revisions(&answers), [3, 4]);
    assert_eq!(answers[1].events[0].r#type, EventType::Delete as i32);
    assert_eq!(answers[1].events[0].prev_kv, None, "the previous version is compacted");
    validate(&world.history, &watch, &answers, Some(Revision(4))).unwrap();
}

#[tokio::test(start_paused = true)]
async fn t08_no_delete_event_is_missing_whatever_the_size_of_the_slices() {
    for slice_events in 1..20 {
        let mut world = World::new(HubOptions { slice_events, ..HubOptions::default() });
        for _ in 0..5 {
            world.apply(&[Put("a", "1"), Put("b", "1"), Put("c", "1")]);
            world.apply(&[Delete("a", "z")]);
        }
        world.compact(5);
        let mut client = world.open();
        let watch = CreateWatch { start_revision: 5, prev_kv: true, ..on("a", "z") };
        let answers = client.watch(watch.clone()).await;
        validate(&world.history, &watch, &answers, Some(Revision(11))).unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn t09_a_slow_client_gets_every_event_or_is_told_of_compaction() {
    let mut world = World::small();
    let (mut reads_late, mut compacted) = (world.open(), world.open());
    let watch = CreateWatch { prev_kv: true, ..on("a", "") };
    for client in [&mut reads_late, &mut compacted] {
        client.watch(watch.clone()).await;
    }
    for _ in 0..50 {
        world.apply(&[Put("a", "0123456789")]);
        idle().await;
    }
    assert_eq!(world.hub.stats().slow_watchers, 2);
    reads_late.read_all().await;
    validate(&world.history, &watch, &reads_late.seen, Some(Revision(51))).unwrap();
    assert_eq!(world.hub.stats().slow_watchers, 1);

    world.compact(40);
    world.apply(&[Put("a", "more")]);
    let answers = compacted.read_all().await;
    let end = answers.last().unwrap();
    assert!(end.canceled && end.compact_revision == 40 && end.cancel_reason.is_empty());
    assert_eq!(header(end), 0);
    validate(&world.history, &watch, &compacted.seen, None).unwrap();
    world.apply(&[Put("a", "after")]);
    assert!(compacted.read_all().await.is_empty());
    assert_eq!(world.hub.stats().watchers, 1);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_not_read_holds_a_bounded_number_of_bytes() {
    let mut world = World::small();
    let mut client = world.open();
    client.watch(on("a", "")).await;
    for _ in 0..200 {
        world.apply(&[Put("a", "0123456789")]);
        idle().await;
    }
    let queued = client.read(usize::MAX);
    let bytes: usize = queued.iter().map(Message::encoded_len).sum();
    assert!(bytes < 600, "{bytes} bytes were queued");
    assert!(queued.len() < 10);
    assert_eq!(client.read_all().await.len() + queued.len(), client.seen.len() - 1);
}

/// T10 (etcd #17247): a watch that catches up meets what is written meanwhile, and a client goes on
/// behind what it has heard, as after a lost connection.
#[tokio::test(start_paused = true)]
async fn t10_no_event_comes_twice_where_the_history_meets_what_is_new() {
    for slice_events in 1..12 {
        let options = HubOptions { slice_events, stream_bytes: 300, ..HubOptions::default() };
        let mut world = World::new(options);
        for _ in 0..10 {
            world.apply(&[Put("a", "1"), Put("b", "1"), Put("c", "1")]);
            world.apply(&[Delete("a", "z")]);
        }
        let watch = CreateWatch { start_revision: 2, prev_kv: true, ..on("a", "z") };
        let mut client = world.open();
        client.handle.create(watch.clone()).await;
        for _ in 0..10 {
            world.apply(&[Put("a", "2"), Put("b", "2")]);
            idle().await;
            client.read(2);
        }
        client.read_all().await;
        let last = world.store.revision();
        validate(&world.history, &watch, &client.seen, Some(last)).unwrap();
        let mut heard = revisions(&client.seen);
        heard.dedup();
        assert_eq!(heard, (2..=last.0).collect::<Vec<_>>(), "slices of {slice_events}");

        drop(client);
        let mut again = world.open();
        again.handle.create(CreateWatch { start_revision: last.0 + 1, ..watch }).await;
        assert!(revisions(&again.read_all().await).is_empty(), "slices of {slice_events}");
    }
}

#[tokio::test(start_paused = true)]
async fn t12_manual_progress_comes_after_every_event_it_speaks_for() {
    let mut world = World::small();
    let mut client = world.open();
    client.watch(on("a", "")).await;
    client.watch(on("b", "")).await;
    for _ in 0..20 {
        world.apply(&[Put("a", "1")]);
        client.handle.request_progress().await;
        world.apply(&[Put("b", "1")]);
        let answers = client.read_all().await;
        let mut heard = 0;
        for answer in &answers {
            heard += answer.events.len();
            if answer.events.is_empty() {
                assert_eq!(answer.watch_id, -1);
                assert_eq!(header(answer), world.store.revision().0 - 2 + heard as i64);
            }
        }
        assert_eq!(heard, 2);
    }
}

#[tokio::test(start_paused = true)]
async fn manual_progress_is_silent_while_a_watch_of_the_stream_is_behind() {
    let mut world = World::small();
    let mut client = world.open();
    client.handle.request_progress().await;
    assert!(client.read_all().await.is_empty(), "a stream without watches has no progress");
    client.watch(on("a", "")).await;
    for _ in 0..30 {
        world.apply(&[Put("b", "0123456789")]);
    }
    client.handle.create(CreateWatch { start_revision: 1, ..on("b", "") }).await;
    client.handle.request_progress().await;
    idle().await;
    assert_eq!(world.hub.stats().slow_watchers, 1);
    let answers = client.read_all().await;
    assert!(answers.iter().all(|answer| answer.watch_id != -1));
    client.handle.request_progress().await;
    let answers = client.read_all().await;
    assert_eq!((answers.len(), answers[0].watch_id, header(&answers[0])), (1, -1, 31));
}

#[tokio::test(start_paused = true)]
async fn t20_an_idle_watch_hears_of_progress_and_a_busy_one_does_not() {
    let mut world = World::small();
    let mut client = world.open();
    let watch = CreateWatch { progress_notify: true, ..on("a", "") };
    client.watch(watch.clone()).await;
    client.watch(on("b", "")).await;
    world.apply(&[Put("c", "1")]);
    tokio::time::sleep(Duration::from_secs(11)).await;
    let answers = client.read_all().await;
    assert_eq!((answers.len(), answers[0].watch_id, header(&answers[0])), (1, 0, 2));
    world.apply(&[Put("a", "1")]);
    tokio::time::sleep(Duration::from_secs(11)).await;
    let answers = client.read_all().await;
    assert_eq!((answers.len(), revisions(&answers)), (1, vec![3]), "an event since the last tick");
    tokio::time::sleep(Duration::from_secs(11)).await;
    let answers = client.read_all().await;
    assert_eq!((answers.len(), header(&answers[0])), (1, 3));
}

#[tokio::test(start_paused = true)]
async fn t13_watches_survive_a_snapshot_install_without_gap_or_repetition() {
    let mut world = World::small();
    let (mut here, mut there) = (world.open(), world.open());
    let watch = CreateWatch { prev_kv: true, ..on("a", "z") };
    here.watch(watch.clone()).await;
    world.apply(&[Put("a", "1")]);
    here.read_all().await;
    there.watch(CreateWatch { start_revision: 9, ..watch.clone() }).await;
    // The leader goes on without this member, which then gets the leader's content.
    world.commit(&[vec![Put("a", "2")], vec![Delete("a", "")], vec![Put("b", "3")]]);
    let mut image = Vec::new();
    world.store.write_image(&mut image).unwrap();
    let leader = Store::restore(world.store.revs(), &mut image.as_slice()).unwrap();
    world.unpublished.clear();
    world.store = leader;
    world.hub.reset(world.store.read());
    here.read_all().await;
    world.apply(&[Put("a", "4")]);
    here.read_all().await;
    validate(&world.history, &watch, &here.seen, Some(Revision(6))).unwrap();
    assert!(there.read_all().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn t13_a_watch_that_a_snapshot_left_behind_compaction_is_cancelled() {
    let mut world = World::small();
    let mut client = world.open();
    client.watch(on("a", "")).await;
    world.commit(&[vec![Put("a", "1")], vec![Put("a", "2")], vec![Put("a", "3")]]);
    world.unpublished.clear();
    world.compact(4);
    world.hub.reset(world.store.read());
    let answers = client.read_all().await;
    assert_eq!((answers.len(), answers[0].compact_revision), (1, 4));
}

#[tokio::test(start_paused = true)]
async fn an_overflowing_backlog_is_made_good_from_the_history() {
    let mut world = World::small();
    let mut client = world.open();
    let watch = CreateWatch { prev_kv: true, ..on("a", "") };
    client.watch(watch.clone()).await;
    for _ in 0..100 {
        world.apply(&[Put("a", "0123456789")]);
    }
    client.read_all().await;
    validate(&world.history, &watch, &client.seen, Some(Revision(101))).unwrap();
}

#[tokio::test(start_paused = true)]
async fn fragments_divide_a_large_revision_and_only_where_allowed() {
    let mut world = World::small();
    let mut client = world.open();
    let watch = CreateWatch { fragment: true, watch_id: 5, ..on("a", "z") };
    client.watch(watch.clone()).await;
    client.watch(on("a", "z")).await;
    world.apply(&[Put("a", "0123456789"), Put("b", "0123456789"), Put("c", "0123456789")]);
    let answers = client.read_all().await;
    let shape = |id| -> Vec<(usize, bool)> {
        let of = answers.iter().filter(|answer| answer.watch_id == id);
        of.map(|answer| (answer.events.len(), answer.fragment)).collect()
    };
    assert_eq!(shape(0), [(3, false)]);
    assert_eq!(shape(5), [(2, true), (1, false)]);
}

#[tokio::test(start_paused = true)]
async fn dropping_either_half_of_a_stream_ends_its_watches() {
    let mut world = World::small();
    let mut first = world.open();
    first.watch(on("a", "")).await;
    let mut second = world.open();
    second.watch(on("a", "")).await;
    assert_eq!((world.hub.stats().watchers, world.hub.stats().streams), (2, 2));
    drop(first.output);
    idle().await;
    assert_eq!((world.hub.stats().watchers, world.hub.stats().streams), (1, 1));
    drop(second.handle);
    idle().await;
    assert_eq!((world.hub.stats().watchers, world.hub.stats().streams), (0, 0));
    assert!(second.output.next().await.is_none());
    world.apply(&[Put("a", "1")]);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_asks_without_reading_waits() {
    let world = World::small();
    let mut client = world.open();
    let asked = {
        let ask = async {
            for _ in 0..100 {
                client.handle.create(on("a", "")).await;
                idle().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(1), ask).await
    };
    assert!(asked.is_err());
    assert!(client.read(usize::MAX).len() < 10);
}

#[tokio::test(start_paused = true)]
async fn stopping_the_hub_ends_every_stream() {
    let world = World::small();
    let mut client = world.open();
    client.watch(on("a", "")).await;
    world.hub.stop();
    assert!(client.output.next().await.is_none());
    client.handle.create(on("a", "")).await;
    let (handle, mut output) = world.hub.open();
    handle.create(on("a", "")).await;
    assert!(output.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_record_missing_without_a_compaction_stops_the_task() {
    let revs = Arc::new(MemoryRevs::default());
    let store = Store::empty(revs.clone());
    let (hub, task) = Hub::new(store.read(), HubOptions::default());
    let task = tokio::spawn(task.run());
    let (handle, mut output) = hub.open();
    handle.create(CreateWatch { prev_kv: true, ..on("a", "") }).await;
    assert!(matches!(output.next().await, Some(crate::WatchMessage::Created { .. })));
    for _ in 0..2 {
        let mut writer = store.writer();
        writer.begin();
        writer.put("a".into(), "1".into(), LeaseId(0));
        writer.end();
        let events = writer.commit().unwrap();
        revlog::RevStore::remove(&*revs, &[events[0].events[0].record]).unwrap();
        hub.publish(events);
    }
    let failure = task.await.unwrap().unwrap_err().to_string();
    assert!(failure.contains("record 2/0, which event 3/0 replaced, is missing"), "{failure}");
    while output.next().await.is_some() {}
}

/// Without a stream nothing that is published is kept; whoever comes at that moment misses nothing.
#[tokio::test(start_paused = true)]
async fn the_first_watch_hears_what_was_published_to_nobody() {
    let mut world = World::small();
    world.apply(&[Put("a", "1")]);
    idle().await;
    world.apply(&[Put("a", "2")]);
    world.commit(&[vec![Put("a", "3")]]);
    let mut client = world.open();
    client.handle.create(CreateWatch { start_revision: 2, ..on("a", "") }).await;
    // The hub has not yet seen that there is a stream.
    world.publish();
    world.apply(&[Put("a", "4")]);
    assert_eq!(revisions(&client.read_all().await), [2, 3, 4, 5]);
}
