//! The queue between the hub and one stream.
//!
//! It is bounded in bytes: the hub asks [`StreamQueue::has_room`] before it adds events and leaves
//! the watcher blocked otherwise. One message always fits into an empty queue, whatever its size.
//! Answers to the client's own requests are added regardless; the requests wait for room instead
//! (`StreamHandle`), so a client that asks and never reads does not grow the queue either.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use futures_util::Stream;
use tokio::sync::Notify;

use crate::hub::Shared;
use crate::message::WatchMessage;

const LOCK: &str = "no holder of a stream's queue panics";

#[derive(Debug, Default)]
struct Inner {
    messages: VecDeque<WatchMessage>,
    bytes: usize,
    waker: Option<Waker>,
    /// Set when the hub left something out for want of room and wants to hear of room.
    starved: bool,
    closed: bool,
}

/// Messages on their way to a client.
#[derive(Debug)]
pub(crate) struct StreamQueue {
    pub(crate) stream: u64,
    limit: usize,
    inner: Mutex<Inner>,
    /// Events in all queues of the hub.
    pending: Arc<AtomicUsize>,
    /// Told when there is room again, for requests that wait.
    pub(crate) room: Notify,
}

impl StreamQueue {
    pub(crate) fn new(stream: u64, limit: usize, pending: Arc<AtomicUsize>) -> Self {
        Self { stream, limit, inner: Mutex::default(), pending, room: Notify::new() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect(LOCK)
    }

    pub(crate) fn has_room(&self) -> bool {
        let inner = self.inner();
        inner.bytes < self.limit || inner.closed
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.inner().closed
    }

    /// Adds a message, whether there is room or not.
    pub(crate) fn push(&self, message: WatchMessage) {
        let mut inner = self.inner();
        if inner.closed {
            return;
        }
        inner.bytes += message.weight();
        self.pending.fetch_add(message.event_count(), Ordering::Relaxed);
        inner.messages.push_back(message);
        if let Some(waker) = inner.waker.take() {
            drop(inner);
            waker.wake();
        }
    }

    /// Asks to be told of room; answers false if there is room already.
    pub(crate) fn starve(&self) -> bool {
        let mut inner = self.inner();
        inner.starved = inner.bytes >= self.limit && !inner.closed;
        inner.starved
    }

    /// Ends the queue: what is in it can still be taken.
    pub(crate) fn close(&self) {
        let mut inner = self.inner();
        inner.closed = true;
        let waker = inner.waker.take();
        drop(inner);
        self.room.notify_one();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Takes a message and answers with it whether the hub waits for the room it leaves.
    fn pop(&self, waker: &Waker) -> Poll<(Option<WatchMessage>, bool)> {
        let mut inner = self.inner();
        let Some(message) = inner.messages.pop_front() else {
            if inner.closed {
                return Poll::Ready((None, false));
            }
            inner.waker = Some(waker.clone());
            return Poll::Pending;
        };
        inner.bytes -= message.weight();
        self.pending.fetch_sub(message.event_count(), Ordering::Relaxed);
        let half_empty = inner.bytes <= self.limit / 2;
        let wanted = half_empty && std::mem::take(&mut inner.starved);
        let room = inner.bytes < self.limit;
        drop(inner);
        if room {
            self.room.notify_one();
        }
        Poll::Ready((Some(message), wanted))
    }
}

impl Drop for StreamQueue {
    fn drop(&mut self) {
        // A client that has gone away leaves what it has not taken.
        let left = self.inner().messages.iter().map(WatchMessage::event_count).sum();
        self.pending.fetch_sub(left, Ordering::Relaxed);
    }
}

/// The messages of one gRPC stream, in order. It ends when the hub stops or the stream's handle is
/// dropped; dropping it ends the stream's watches.
pub struct StreamOutput {
    pub(crate) queue: Arc<StreamQueue>,
    pub(crate) shared: Arc<Shared>,
}

impl Stream for StreamOutput {
    type Item = WatchMessage;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<WatchMessage>> {
        self.queue.pop(cx.waker()).map(|(message, wanted)| {
            if wanted {
                self.shared.drained(self.queue.stream);
            }
            message
        })
    }
}

impl StreamOutput {
    /// The next message; `None` when there will be no more.
    pub async fn next(&mut self) -> Option<WatchMessage> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }
}

impl Drop for StreamOutput {
    fn drop(&mut self) {
        self.queue.close();
        self.shared.closed(self.queue.stream);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use types::Revision;

    use super::*;
    use crate::encoded::EncodedEvents;

    #[test]
    fn events_are_pending_until_they_are_taken_or_their_stream_is_gone() {
        let pending = Arc::new(AtomicUsize::new(0));
        let queue = StreamQueue::new(1, 1000, Arc::clone(&pending));
        let count = || pending.load(Ordering::Relaxed);
        let frames = vec![Bytes::from_static(b"event"); 3];
        let events = WatchMessage::Events {
            id: 1,
            revision: Revision(2),
            events: EncodedEvents::new(frames),
            fragment: false,
        };
        queue.push(WatchMessage::Created { id: 1, revision: Revision(1) });
        queue.push(events.clone());
        queue.push(events.clone());
        assert_eq!(count(), 6);
        let waker = Waker::noop();
        assert!(queue.pop(waker).is_ready() && queue.pop(waker).is_ready());
        assert_eq!(count(), 3);
        queue.close();
        queue.push(events);
        assert_eq!(count(), 3, "a closed queue takes nothing");
        drop(queue);
        assert_eq!(count(), 0);
    }
}
