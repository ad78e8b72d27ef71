//! What fan-out costs: `cargo run --release -p watch --example fan_out [watchers] [puts]`.
//!
//! As in production the hub runs on a thread of its own, the writer on another and the streams on a
//! third, which encodes every message. Two loads: every watcher on the same prefix, and every
//! watcher on a key of its own. The pace of the writer is what the applier would see.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use mvcc::Store;
use mvcc::memory::MemoryRevs;
use types::{ClusterId, LeaseId, MemberId, Term};
use watch::{CreateWatch, Hub, HubOptions, WatchMessage};

const STREAMS: usize = 100;

struct Delivered {
    events: AtomicUsize,
    messages: AtomicUsize,
    bytes: AtomicUsize,
}

fn main() {
    let number = |at: usize, default| {
        std::env::args().nth(at).and_then(|number| number.parse().ok()).unwrap_or(default)
    };
    let (watchers, puts) = (number(1, 10_000), number(2, 1000));
    run("same prefix", watchers, puts, watchers, |_| CreateWatch {
        key: Bytes::from_static(b"/registry/"),
        range_end: Bytes::from_static(b"/registry0"),
        prev_kv: true,
        ..CreateWatch::default()
    });
    run("own key", watchers, puts * 100, 1, |number| CreateWatch {
        key: key(number),
        prev_kv: true,
        ..CreateWatch::default()
    });
}

fn key(number: usize) -> Bytes {
    format!("/registry/pods/pod-{number:08}").into()
}

fn thread(name: &str, work: impl Future<Output = ()> + Send + 'static) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.expect("a runtime can be made");
    let builder = std::thread::Builder::new().name(name.to_owned());
    builder.spawn(move || runtime.block_on(work)).expect("a thread can be made");
}

fn run(
    what: &str,
    watchers: usize,
    puts: usize,
    per_put: usize,
    watch: impl Fn(usize) -> CreateWatch + Send + 'static,
) {
    let store = Store::empty(Arc::new(MemoryRevs::default()));
    let (hub, task) = Hub::new(store.read(), HubOptions::default());
    thread("hub", async move { task.run().await.expect("memory can be read") });
    let delivered = Arc::new(Delivered {
        events: AtomicUsize::new(0),
        messages: AtomicUsize::new(0),
        bytes: AtomicUsize::new(0),
    });
    serve(&hub, watchers, watch, &delivered);
    while hub.stats().watchers < watchers {
        std::thread::yield_now();
    }
    let value = Bytes::from(vec![b'v'; 300]);
    let (start, mut longest) = (Instant::now(), Duration::ZERO);
    for number in 0..puts {
        let mut writer = store.writer();
        writer.begin();
        writer.put(key(number % watchers), value.clone(), LeaseId(0));
        writer.end();
        let events = writer.commit().expect("memory can be written");
        let publishing = Instant::now();
        hub.publish(events);
        longest = longest.max(publishing.elapsed());
    }
    let written = start.elapsed();
    let expected = puts * per_put;
    while delivered.events.load(Ordering::Relaxed) < expected {
        std::thread::yield_now();
    }
    let seconds = start.elapsed().as_secs_f64();
    println!("{what}: {watchers} watchers on {STREAMS} streams, {puts} puts");
    println!("  put and publish        {:>10.0} /s", puts as f64 / written.as_secs_f64());
    println!("  longest publish        {:>10} us", longest.as_micros());
    println!("  events delivered       {:>10.0} /s", expected as f64 / seconds);
    let messages = delivered.messages.load(Ordering::Relaxed);
    println!("  messages               {messages:>10}");
    let bytes = delivered.bytes.load(Ordering::Relaxed) as f64 / seconds / 1e6;
    println!("  encoded                {bytes:>10.0} MB/s");
    hub.stop();
}

fn serve(
    hub: &Hub,
    watchers: usize,
    watch: impl Fn(usize) -> CreateWatch + Send + 'static,
    delivered: &Arc<Delivered>,
) {
    let streams: Vec<_> = (0..STREAMS).map(|_| hub.open()).collect();
    let delivered = Arc::clone(delivered);
    thread("streams", async move {
        let mut tasks = tokio::task::JoinSet::new();
        let mut handles = Vec::new();
        for (number, (handle, mut output)) in streams.into_iter().enumerate() {
            let delivered = Arc::clone(&delivered);
            tasks.spawn(async move {
                let mut buffer = BytesMut::new();
                while let Some(message) = output.next().await {
                    buffer.clear();
                    message.encode(ClusterId(1), MemberId(2), Term(3), &mut buffer);
                    delivered.messages.fetch_add(1, Ordering::Relaxed);
                    delivered.bytes.fetch_add(buffer.len(), Ordering::Relaxed);
                    if let WatchMessage::Events { events, .. } = &message {
                        delivered.events.fetch_add(events.frames().len(), Ordering::Relaxed);
                    }
                }
            });
            for nth in (number..watchers).step_by(STREAMS) {
                handle.create(watch(nth)).await;
            }
            handles.push(handle);
        }
        while tasks.join_next().await.is_some() {}
    });
}
