//! Random histories, compactions, slow clients and snapshot installs, judged by the validators.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::check::{by_watch, validate};

const STREAMS: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    Commit(Vec<Vec<Change>>),
    Publish,
    Compact(i64),
    Create {
        stream: usize,
        watch: CreateWatch,
        start: Option<i64>,
    },
    Cancel {
        stream: usize,
        nth: usize,
    },
    Progress {
        stream: usize,
    },
    Read {
        stream: usize,
        count: usize,
    },
    Idle,
    Tick,
    /// The content is replaced by a leader's, so nothing committed since the last publish is published.
    Install,
}

fn key() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["a", "b", "ba", "c", "d"])
}

fn change() -> impl Strategy<Value = Change> {
    let value = prop::sample::select(vec!["", "x", "0123456789012345678901234567890123456789"]);
    let end = prop::sample::select(vec!["", "", "\0", "c"]);
    prop_oneof![
        3 => (key(), value).prop_map(|(key, value)| Put(key, value)),
        1 => (key(), end).prop_map(|(key, end)| Delete(key, end)),
    ]
}

fn watch() -> impl Strategy<Value = CreateWatch> {
    let end = prop::sample::select(vec!["", "\0", "c", "z"]);
    let flags = prop::array::uniform5(prop::bool::weighted(0.3));
    (key(), end, flags).prop_map(
        |(key, end, [progress_notify, no_put, no_delete, prev_kv, fragment])| CreateWatch {
            progress_notify,
            no_put,
            no_delete,
            prev_kv,
            fragment,
            ..on(key, end)
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let stream = || 0..STREAMS;
    let start = prop::option::of(-12..6i64);
    let transaction = prop::collection::vec(change(), 1..4);
    prop_oneof![
        6 => prop::collection::vec(transaction, 1..4).prop_map(Step::Commit),
        4 => Just(Step::Publish),
        1 => (0..10i64).prop_map(Step::Compact),
        3 => (stream(), watch(), start).prop_map(|(stream, watch, start)| Step::Create { stream, watch, start }),
        1 => (stream(), 0..8usize).prop_map(|(stream, nth)| Step::Cancel { stream, nth }),
        1 => stream().prop_map(|stream| Step::Progress { stream }),
        3 => (stream(), 1..5usize).prop_map(|(stream, count)| Step::Read { stream, count }),
        4 => Just(Step::Idle),
        1 => Just(Step::Tick),
        1 => Just(Step::Install),
    ]
}

enum Ask {
    Create(CreateWatch),
    Cancel(i64),
    Progress,
}

struct Run {
    world: World,
    clients: Vec<Client>,
    /// What was asked, by stream and id.
    asked: BTreeMap<(usize, i64), CreateWatch>,
}

impl Run {
    async fn step(&mut self, step: &Step) {
        let world = &mut self.world;
        match step {
            Step::Commit(transactions) => world.commit(transactions),
            Step::Publish => world.publish(),
            Step::Compact(below) => world.compact(world.store.revision().0 - below),
            Step::Create { stream, watch, start } => self.create(*stream, watch, *start).await,
            Step::Cancel { stream, nth } => {
                let id = 1 + *nth as i64;
                self.ask(*stream, Ask::Cancel(id)).await;
            }
            Step::Progress { stream } => {
                self.ask(*stream, Ask::Progress).await;
            }
            Step::Read { stream, count } => drop(self.clients[*stream].read(*count)),
            Step::Idle => idle().await,
            Step::Tick => tokio::time::sleep(Duration::from_secs(12)).await,
            Step::Install => {
                let mut image = Vec::new();
                world.store.write_image(&mut image).unwrap();
                let leader = Store::restore(world.store.revs(), &mut image.as_slice()).unwrap();
                world.unpublished.clear();
                world.store = leader;
                world.hub.reset(world.store.read());
            }
        }
    }

    async fn create(&mut self, stream: usize, watch: &CreateWatch, start: Option<i64>) {
        let used = self.asked.keys().filter(|(of, _)| *of == stream).count();
        let watch_id = 1 + used as i64;
        let revision = self.world.store.revision().0;
        let start_revision = start.map_or(0, |start| (revision + start).max(1));
        let watch = CreateWatch { watch_id, start_revision, ..watch.clone() };
        if watch.range().is_none() {
            return;
        }
        self.asked.insert((stream, watch_id), watch.clone());
        self.ask(stream, Ask::Create(watch)).await;
    }

    /// Sends a request; a client whose stream is full reads first.
    async fn ask(&mut self, stream: usize, ask: Ask) {
        let client = &mut self.clients[stream];
        while !client.handle.has_room() {
            client.read(1);
        }
        match ask {
            Ask::Create(watch) => client.handle.create(watch).await,
            Ask::Cancel(id) => client.handle.cancel(id).await,
            Ask::Progress => client.handle.request_progress().await,
        }
    }

    async fn finish(&mut self) {
        self.world.publish();
        let mut quiet = 0;
        while quiet < 2 {
            let mut read = 0;
            for client in &mut self.clients {
                read += client.read_all().await.len();
            }
            quiet = if read == 0 { quiet + 1 } else { 0 };
        }
        for (stream, client) in self.clients.iter().enumerate() {
            let mut shown = 0;
            for response in client.seen.iter().filter(|response| response.compact_revision == 0) {
                assert!(header(response) >= shown, "a header went back: {:?}", client.seen);
                shown = header(response);
            }
            let watches = by_watch(&client.seen);
            for ((_, id), watch) in self.asked.iter().filter(|((of, _), _)| *of == stream) {
                let responses = watches.get(id).map_or(&[][..], Vec::as_slice);
                let revision = self.world.store.revision();
                if let Err(violation) =
                    validate(&self.world.history, watch, responses, Some(revision))
                {
                    panic!("{violation}\n{watch:?}\n{responses:#?}");
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn every_watch_keeps_every_promise(steps in prop::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let world = World::small();
            let clients = (0..STREAMS).map(|_| world.open()).collect();
            let mut run = Run { world, clients, asked: BTreeMap::new() };
            for step in &steps {
                run.step(step).await;
            }
            run.finish().await;
        });
    }
}
