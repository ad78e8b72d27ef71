//! Enforcing a least time between a client's pings (`--grpc-keepalive-min-time`), as grpc-go does for
//! etcd (`internal/transport/http2_server.go`).
//!
//! A ping that comes too early is a strike: earlier than the least time after the one before, or
//! than two hours if no call is under way. What the server sends for a call forgives all strikes: each
//! HEADERS or DATA frame, because clients of grpc-go answer the pieces of one great message with
//! pings that measure the connection. The third strike too many ends the connection with GOAWAY, code
//! ENHANCE_YOUR_CALM and the text `too_many_pings`, which clients know.
//!
//! The HTTP/2 library answers pings by itself and tells nobody. So this wrapper reads along: it
//! follows the frames in both directions by their headers alone, and writes its GOAWAY between two
//! frames. A connection that does not begin with HTTP/2's preface is left alone.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// What every HTTP/2 connection begins with (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEADER_BYTES: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const FLAG_ACK: u8 = 1;
const ENHANCE_YOUR_CALM: u32 = 0xb;
const TOO_MANY_PINGS: &[u8] = b"too_many_pings";
/// grpc-go's `maxPingStrikes`.
const STRIKES_MAX: u32 = 2;
/// grpc-go's `defaultPingTimeout`: the least time while no call is under way.
const IDLE_MIN_TIME: Duration = Duration::from_secs(2 * 3600);

/// What the calls of a connection tell its police.
#[derive(Default)]
pub(super) struct Calls {
    under_way: AtomicUsize,
}

/// One call, from its request to the end of its answer.
pub(super) struct CallUnderWay(Arc<Calls>);

impl CallUnderWay {
    pub(super) fn begin(calls: &Arc<Calls>) -> Self {
        calls.under_way.fetch_add(1, Ordering::Relaxed);
        Self(calls.clone())
    }
}

impl Drop for CallUnderWay {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The rule itself.
struct Rule {
    min_time: Duration,
    last_ping: Option<Instant>,
    strikes: u32,
}

impl Rule {
    /// Whether a ping at `now` is one too many.
    fn breaks(&mut self, now: Instant, calls_under_way: bool, sent: bool) -> bool {
        let before = self.last_ping.replace(now);
        if sent {
            self.strikes = 0;
            return false;
        }
        let least = if calls_under_way { self.min_time } else { IDLE_MIN_TIME };
        self.strikes += u32::from(before.is_some_and(|before| before + least > now));
        self.strikes > STRIKES_MAX
    }
}

/// Follows one direction of a connection.
#[derive(Default)]
struct Frames {
    header: [u8; FRAME_HEADER_BYTES],
    have: usize,
    skip: usize,
}

struct FrameHead {
    kind: u8,
    flags: u8,
    stream: u32,
}

impl Frames {
    /// Shows the head of each frame that begins in `bytes`.
    fn follow(&mut self, mut bytes: &[u8], mut show: impl FnMut(FrameHead)) {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let taken = (FRAME_HEADER_BYTES - self.have).min(bytes.len());
            self.header[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            if self.have == FRAME_HEADER_BYTES {
                let [a, b, c, kind, flags, d, e, f, g] = self.header;
                self.skip = u32::from_be_bytes([0, a, b, c]) as usize;
                self.have = 0;
                show(FrameHead { kind, flags, stream: u32::from_be_bytes([d & 0x7f, e, f, g]) });
            }
        }
    }

    fn is_between_frames(&self) -> bool {
        self.have == 0 && self.skip == 0
    }
}

/// Where a connection stands.
enum State {
    /// So many bytes of the preface have come.
    Preface(usize),
    Http2,
    /// Not HTTP/2.
    Other,
    /// The rule is broken: GOAWAY is on its way, and then the connection ends.
    Ending,
}

/// A connection whose pings are watched.
pub(super) struct PingPolice<S> {
    inner: S,
    calls: Arc<Calls>,
    rule: Rule,
    state: State,
    incoming: Frames,
    outgoing: Frames,
    last_stream: u32,
    /// Something was sent for a call since the last ping.
    sent: bool,
}

impl<S> PingPolice<S> {
    /// Without a least time nothing is watched.
    pub(super) fn new(inner: S, min_time: Option<Duration>, calls: Arc<Calls>) -> Self {
        Self {
            inner,
            calls,
            state: if min_time.is_some() { State::Preface(0) } else { State::Other },
            rule: Rule { min_time: min_time.unwrap_or_default(), last_ping: None, strikes: 0 },
            incoming: Frames::default(),
            outgoing: Frames::default(),
            last_stream: 0,
            sent: false,
        }
    }

    /// Looks at what goes out.
    fn note(&mut self, bytes: &[u8]) {
        let Self { outgoing, sent, .. } = self;
        outgoing.follow(bytes, |frame| *sent |= matches!(frame.kind, DATA | HEADERS));
    }

    /// Looks at what came; true once a ping was one too many.
    fn inspect(&mut self, mut bytes: &[u8]) -> bool {
        if let State::Preface(have) = self.state {
            let rest = &PREFACE[have..];
            let length = rest.len().min(bytes.len());
            if bytes[..length] != rest[..length] {
                self.state = State::Other;
            } else if length == rest.len() {
                self.state = State::Http2;
                bytes = &bytes[length..];
            } else {
                self.state = State::Preface(have + length);
            }
        }
        if !matches!(self.state, State::Http2) {
            return false;
        }
        let Self { incoming, rule, calls, last_stream, sent, .. } = self;
        let mut broken = false;
        incoming.follow(bytes, |frame| match frame.kind {
            HEADERS => *last_stream = frame.stream.max(*last_stream),
            PING if frame.flags & FLAG_ACK == 0 => {
                let under_way = calls.under_way.load(Ordering::Relaxed) > 0;
                broken |= rule.breaks(Instant::now(), under_way, std::mem::take(sent));
            }
            _ => {}
        });
        broken
    }

    fn go_away(&self) -> Vec<u8> {
        let length = (8 + TOO_MANY_PINGS.len()) as u32;
        let mut frame = length.to_be_bytes()[1..].to_vec();
        frame.extend_from_slice(&[GOAWAY, 0, 0, 0, 0, 0]);
        frame.extend_from_slice(&self.last_stream.to_be_bytes());
        frame.extend_from_slice(&ENHANCE_YOUR_CALM.to_be_bytes());
        frame.extend_from_slice(TOO_MANY_PINGS);
        frame
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> PingPolice<S> {
    /// Says why, then ends the connection.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.inner).poll_flush(cx))?;
        Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, "too many pings")))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for PingPolice<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if matches!(this.state, State::Ending) {
            return this.poll_end(cx);
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(cx, buffer))?;
        if !this.inspect(&buffer.filled()[before..]) {
            return Poll::Ready(Ok(()));
        }
        buffer.set_filled(before);
        this.state = State::Ending;
        tracing::warn!("got too many pings from the client, closing the connection");
        // In the middle of a frame nothing can be said; the end alone has to do.
        if this.outgoing.is_between_frames() {
            let frame = this.go_away();
            // The writer below takes small frames whole; if it is full the end alone has to do, too.
            let _ = Pin::new(&mut this.inner).poll_write(cx, &frame);
        }
        this.poll_end(cx)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for PingPolice<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.inner).poll_write(cx, bytes))?;
        if matches!(this.state, State::Http2) {
            this.note(&bytes[..written]);
        }
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.inner).poll_write_vectored(cx, slices))?;
        if matches!(this.state, State::Http2) {
            let mut left = written;
            for slice in slices {
                let length = left.min(slice.len());
                this.note(&slice[..length]);
                left -= length;
            }
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn rule() -> Rule {
        Rule { min_time: SECOND * 5, last_ping: None, strikes: 0 }
    }

    /// After how many pings, one each `interval`, the rule is broken; none if it is not.
    fn broken_after(interval: Duration, calls_under_way: bool) -> Option<u32> {
        let (mut rule, start) = (rule(), Instant::now());
        (0..20)
            .find(|number| rule.breaks(start + interval * *number, calls_under_way, false))
            .map(|number| number + 1)
    }

    #[test]
    fn the_fourth_early_ping_is_one_too_many() {
        assert_eq!(broken_after(SECOND, true), Some(4));
        assert_eq!(broken_after(SECOND * 5, true), None);
        assert_eq!(broken_after(SECOND * 6, false), Some(4), "idle clients need not ping");
        assert_eq!(broken_after(IDLE_MIN_TIME, false), None);
    }

    #[test]
    fn an_answer_forgives_all_strikes() {
        let (mut rule, start) = (rule(), Instant::now());
        for number in 0..30 {
            let answered = number % 3 == 2;
            assert!(!rule.breaks(start + SECOND / 10 * number, true, answered), "{number}");
        }
    }

    #[test]
    fn frames_are_found_however_the_bytes_are_cut() {
        let mut bytes = Vec::new();
        for (length, kind) in [(0_u32, 4_u8), (8, PING), (300, 0), (8, PING)] {
            bytes.extend_from_slice(&length.to_be_bytes()[1..]);
            bytes.extend_from_slice(&[kind, 0, 0, 0, 0, 1]);
            bytes.extend(vec![PING; length as usize]);
        }
        for cut in 1..bytes.len() {
            let mut frames = Frames::default();
            let mut kinds = Vec::new();
            bytes.chunks(cut).for_each(|part| frames.follow(part, |frame| kinds.push(frame.kind)));
            assert_eq!(kinds, [4, PING, 0, PING], "cut every {cut} bytes");
            assert!(frames.is_between_frames());
        }
    }

    #[test]
    fn every_frame_of_a_great_answer_forgives_all_strikes() {
        let ping = [0, 0, 8, PING, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
        let police = || {
            let mut police = PingPolice::new((), Some(SECOND * 5), Arc::default());
            assert!(!police.inspect(PREFACE));
            police
        };
        for kind in [DATA, HEADERS] {
            // The call itself may be over: what it has answered is still on its way.
            let mut police = police();
            for number in 0..20 {
                police.note(&[0, 0, 2, kind, 0, 0, 0, 0, 1, 0, 0]);
                assert!(!police.inspect(&ping), "after frame {number} of kind {kind}");
            }
        }
        let mut police = police();
        let broken = (0..20).position(|_| {
            police.note(&[0, 0, 8, PING, FLAG_ACK, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
            police.inspect(&ping)
        });
        assert_eq!(broken, Some(3), "an answer to a ping forgives nothing");
    }

    #[test]
    fn http_1_is_left_alone() {
        let mut police = PingPolice::new((), Some(SECOND), Arc::default());
        assert!(!police.inspect(b"PRI * HTTP/1.1\r\n"));
        assert!(matches!(police.state, State::Other));
    }
}
