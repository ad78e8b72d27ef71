//! Many calls in flight on a few connections, on one thread: the next call starts when one ends.
//!
//! A `Load` says what is asked and whether an answer is right; a `Swarm` keeps its slots busy and
//! measures. Slot `i` lives on connection `i % connections`. A swarm keeps its calls in flight
//! between two runs, so that a measured run begins in the middle of the work and not with a burst.

use std::io;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mio::{Events, Interest, Poll, Token};

use super::http2::{Answer, Connection};
use super::latency::Histogram;
use super::wire::Target;

/// How long the event loop waits at most before it looks at the clock.
const TICK: Duration = Duration::from_millis(10);
/// How long all calls together may stand still before the run is given up.
const STALL: Duration = Duration::from_secs(20);

/// What is asked, and what is a right answer.
pub trait Load {
    /// The gRPC path of every call.
    fn path(&self) -> &'static str;
    /// Appends the next request of a slot; `false` if there is nothing more to ask.
    fn next(&mut self, slot: usize, message: &mut Vec<u8>) -> bool;
    /// Takes a part of the answer of a slot.
    fn data(&mut self, slot: usize, bytes: &[u8]);
    /// The call of a slot has ended with status 0: says what is wrong with its answer, if anything.
    fn end(&mut self, slot: usize) -> Result<(), String>;
}

/// What a run has come to.
#[derive(Clone, Default)]
pub struct Measured {
    /// Calls answered rightly, and how long each took.
    pub latencies: Histogram,
    /// From the beginning of the run to its end.
    pub elapsed: Duration,
}

/// The connections and their calls.
pub struct Swarm {
    poll: Poll,
    events: Events,
    connections: Vec<Connection>,
    /// When the call of each slot began; none while the slot rests.
    began: Vec<Option<Instant>>,
    message: Vec<u8>,
    ended: Vec<(u32, Option<u32>)>,
}

impl Swarm {
    /// Connects.
    pub fn connect(target: &Target, connections: usize, in_flight: usize) -> Result<Swarm> {
        let poll = Poll::new().context("make an event loop")?;
        let mut opened = Vec::with_capacity(connections);
        for index in 0..connections {
            let mut connection = Connection::open(target)
                .with_context(|| format!("connect to the server at {}", target.address))?;
            let interest = Interest::READABLE | Interest::WRITABLE;
            poll.registry().register(connection.socket(), Token(index), interest)?;
            opened.push(connection);
        }
        Ok(Swarm {
            poll,
            events: Events::with_capacity(connections.max(16)),
            connections: opened,
            began: vec![None; in_flight],
            message: Vec::new(),
            ended: Vec::new(),
        })
    }

    /// Keeps all slots busy for as long as given, or until the load has nothing more to ask and
    /// everything is answered. A wrong answer is an error.
    pub fn run(&mut self, load: &mut impl Load, duration: Duration) -> Result<Measured> {
        let mut measured = Measured::default();
        let start = Instant::now();
        let mut last_answer = start;
        for slot in 0..self.began.len() {
            if self.began[slot].is_none() {
                self.ask(load, slot, start);
            }
        }
        for connection in &mut self.connections {
            connection.flush().context("send the first requests")?;
        }
        loop {
            match self.poll.poll(&mut self.events, Some(TICK)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result.context("wait for answers")?,
            }
            let now = Instant::now();
            let ready: Vec<usize> = self.events.iter().map(|event| event.token().0).collect();
            for index in ready {
                if self.serve(index, load, now, &mut measured)? {
                    last_answer = now;
                }
            }
            measured.elapsed = now - start;
            if measured.elapsed >= duration || self.began.iter().all(Option::is_none) {
                return Ok(measured);
            }
            if now - last_answer > STALL {
                bail!("no call was answered for {STALL:?}");
            }
        }
    }

    /// Takes what one connection has and asks the next; answers whether a call has ended.
    fn serve(
        &mut self,
        index: usize,
        load: &mut impl Load,
        now: Instant,
        measured: &mut Measured,
    ) -> Result<bool> {
        let mut ended = std::mem::take(&mut self.ended);
        let connection = &mut self.connections[index];
        let received = connection.receive(&mut |answer| match answer {
            Answer::Data { token, bytes } => load.data(token as usize, bytes),
            Answer::End { token, status } => ended.push((token, status)),
        });
        received.with_context(|| format!("receive on connection {index}"))?;
        let progress = !ended.is_empty();
        for (token, status) in ended.drain(..) {
            let slot = token as usize;
            if status != Some(0) {
                bail!("{}: grpc-status {status:?}", load.path());
            }
            if let Err(wrong) = load.end(slot) {
                bail!("{}: wrong answer: {wrong}", load.path());
            }
            if let Some(began) = self.began[slot].take() {
                measured.latencies.record(now - began);
            }
            self.ask(load, slot, now);
        }
        self.ended = ended;
        self.connections[index].flush().context("send requests")?;
        Ok(progress)
    }

    fn ask(&mut self, load: &mut impl Load, slot: usize, now: Instant) {
        self.message.clear();
        if load.next(slot, &mut self.message) {
            let index = slot % self.connections.len();
            self.connections[index].call(load.path(), &self.message, slot as u32);
            self.began[slot] = Some(now);
        }
    }
}

/// Makes one unary call and answers the message. Connects for it; meant for what is not measured.
pub fn call_once(
    target: impl Into<Target>,
    path: &'static str,
    message: &[u8],
    limit: Duration,
) -> Result<Vec<u8>> {
    let mut swarm = Swarm::connect(&target.into(), 1, 1)?;
    let mut once = Once { path, message, asked: false, answer: Vec::new() };
    swarm.run(&mut once, limit)?;
    if once.answer.len() < 5 || swarm.began[0].is_some() {
        bail!("{path} was not answered in {limit:?}");
    }
    Ok(once.answer.split_off(5))
}

struct Once<'a> {
    path: &'static str,
    message: &'a [u8],
    asked: bool,
    answer: Vec<u8>,
}

impl Load for Once<'_> {
    fn path(&self) -> &'static str {
        self.path
    }

    fn next(&mut self, _slot: usize, message: &mut Vec<u8>) -> bool {
        message.extend_from_slice(self.message);
        !std::mem::replace(&mut self.asked, true)
    }

    fn data(&mut self, _slot: usize, bytes: &[u8]) {
        self.answer.extend_from_slice(bytes);
    }

    fn end(&mut self, _slot: usize) -> Result<(), String> {
        Ok(())
    }
}
