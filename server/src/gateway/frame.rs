//! Frames of a WebSocket (RFC 6455, 5), as the accepting side reads and writes them.
//!
//! ```text
//! | fin 1, reserved 3, kind 4 | masked 1, length 7 | length 0, 16 or 64 | mask 0 or 32 | payload |
//! ```
//!
//! A client masks what it sends and a server does not. A message may come in several frames, with frames
//! of control between them. Texts of refusals are those of Go's library.

use std::io;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt};

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

const CONTROL_BYTES_MAX: u64 = 125;

/// Bytes read at once, so that a length that is only claimed takes no memory.
const PIECE_BYTES: u64 = 64 << 10;

/// A frame to the client.
pub(super) struct Frame {
    pub(super) head: Vec<u8>,
    pub(super) payload: Bytes,
}

impl Frame {
    fn new(kind: u8, payload: Bytes) -> Self {
        let mut head = vec![0x80 | kind];
        match payload.len() {
            short @ 0..=125 => head.push(short as u8),
            medium @ 126..=0xffff => {
                head.push(126);
                head.extend_from_slice(&(medium as u16).to_be_bytes());
            }
            long => {
                head.push(127);
                head.extend_from_slice(&(long as u64).to_be_bytes());
            }
        }
        Self { head, payload }
    }

    pub(super) fn text(payload: Bytes) -> Self {
        Self::new(TEXT, payload)
    }

    pub(super) fn pong(payload: Bytes) -> Self {
        Self::new(PONG, payload)
    }

    pub(super) fn close(code: Option<u16>, text: &str) -> Self {
        let mut payload = code.map(|code| code.to_be_bytes().to_vec()).unwrap_or_default();
        payload.extend_from_slice(text.as_bytes());
        Self::new(CLOSE, payload.into())
    }
}

/// What a client sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// A whole message, and the end of its line.
    Message(Bytes),
    Ping(Bytes),
    Pong,
    /// With the reason's number, if there is one.
    Close(Option<u16>),
}

/// Why nothing more can be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrameError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("{0}")]
    Protocol(&'static str),
    #[error("a message is too large")]
    TooLarge,
}

/// The messages of a client.
pub(super) struct Messages<R> {
    from: R,
    limit: usize,
    /// The beginning of a message whose rest is to come.
    begun: Option<Vec<u8>>,
}

impl<R: AsyncRead + Unpin> Messages<R> {
    pub(super) fn new(from: R, limit: usize) -> Self {
        Self { from, limit, begun: None }
    }

    /// The next message or frame of control.
    pub(super) async fn next(&mut self) -> Result<Received, FrameError> {
        loop {
            let (is_last, kind, payload) = self.frame().await?;
            match kind {
                PING => return Ok(Received::Ping(payload.into())),
                PONG => return Ok(Received::Pong),
                CLOSE => {
                    let code = payload.first_chunk().map(|code| u16::from_be_bytes(*code));
                    return Ok(Received::Close(code));
                }
                CONTINUATION => match &mut self.begun {
                    Some(begun) => begun.extend_from_slice(&payload),
                    None => return Err(FrameError::Protocol("continuation after FIN")),
                },
                TEXT | BINARY if self.begun.is_none() => self.begun = Some(payload),
                TEXT | BINARY => return Err(FrameError::Protocol("data before FIN")),
                _ => return Err(FrameError::Protocol("bad opcode")),
            }
            if is_last && let Some(mut message) = self.begun.take() {
                message.push(b'\n');
                return Ok(Received::Message(message.into()));
            }
        }
    }

    async fn frame(&mut self) -> Result<(bool, u8, Vec<u8>), FrameError> {
        let [first, second] = self.bytes().await?;
        let (is_last, kind, length) = (first & 0x80 != 0, first & 0x0f, second & 0x7f);
        if first & 0x70 != 0 {
            return Err(FrameError::Protocol("RSV bits set"));
        }
        if second & 0x80 == 0 {
            return Err(FrameError::Protocol("bad MASK"));
        }
        let length = match length {
            126 => u64::from(u16::from_be_bytes(self.bytes().await?)),
            127 => u64::from_be_bytes(self.bytes().await?),
            short => u64::from(short),
        };
        if kind >= CLOSE && length > CONTROL_BYTES_MAX {
            return Err(FrameError::Protocol("len > 125 for control"));
        }
        if kind >= CLOSE && !is_last {
            return Err(FrameError::Protocol("FIN not set on control"));
        }
        let before = self.begun.as_ref().map_or(0, Vec::len);
        if length > self.limit.saturating_sub(before) as u64 {
            return Err(FrameError::TooLarge);
        }
        let mask: [u8; 4] = self.bytes().await?;
        let mut payload = Vec::new();
        while (payload.len() as u64) < length {
            let wanted = (length - payload.len() as u64).min(PIECE_BYTES);
            let read = (&mut self.from).take(wanted).read_to_end(&mut payload).await?;
            if read == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
        for (byte, mask) in payload.iter_mut().zip(mask.iter().cycle()) {
            *byte ^= mask;
        }
        Ok((is_last, kind, payload))
    }

    async fn bytes<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.from.read_exact(&mut bytes).await?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame of a client, with a mask.
    fn sent(first: u8, payload: &[u8]) -> Vec<u8> {
        const MASK: [u8; 4] = [1, 2, 3, 4];
        let mut frame = Frame::new(first & 0x0f, Bytes::copy_from_slice(payload)).head;
        frame[0] = first;
        frame[1] |= 0x80;
        frame.extend_from_slice(&MASK);
        frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        frame
    }

    async fn read(bytes: &[u8]) -> Vec<Result<Received, String>> {
        let mut messages = Messages::new(bytes, 70_000);
        let mut all = Vec::new();
        loop {
            match messages.next().await {
                Err(FrameError::Io(_)) => return all,
                Err(error) => {
                    all.push(Err(error.to_string()));
                    return all;
                }
                Ok(received) => all.push(Ok(received)),
            }
        }
    }

    #[tokio::test]
    async fn messages_of_all_lengths_are_read_also_in_pieces_with_pings_between() {
        for length in [0, 1, 125, 126, 65_535, 65_536] {
            let payload = vec![b'x'; length];
            let line = [payload.clone(), b"\n".to_vec()].concat();
            assert_eq!(read(&sent(0x81, &payload)).await, [Ok(Received::Message(line.into()))]);
        }
        let pieces =
            [sent(0x01, b"a"), sent(0x89, b"p"), sent(0x00, b"b"), sent(0x80, b"c")].concat();
        let expected = [Ok(Received::Ping("p".into())), Ok(Received::Message("abc\n".into()))];
        assert_eq!(read(&pieces).await, expected);
        let close = [sent(0x8a, b""), sent(0x88, &[3, 232]), sent(0x88, b"")].concat();
        let expected =
            [Ok(Received::Pong), Ok(Received::Close(Some(1000))), Ok(Received::Close(None))];
        assert_eq!(read(&close).await, expected);
    }

    #[tokio::test]
    async fn what_is_no_frame_is_refused() {
        let mut unmasked = sent(0x81, b"a");
        unmasked[1] &= 0x7f;
        for (bytes, text) in [
            (unmasked, "bad MASK"),
            (sent(0xc1, b"a"), "RSV bits set"),
            (sent(0x80, b"a"), "continuation after FIN"),
            ([sent(0x01, b"a"), sent(0x81, b"b")].concat(), "data before FIN"),
            (sent(0x83, b"a"), "bad opcode"),
            (sent(0x09, b""), "FIN not set on control"),
            (sent(0x89, &[0; 126]), "len > 125 for control"),
            (sent(0x81, &[0; 70_001]), "a message is too large"),
            (vec![0x81, 0xff, 255, 255, 255, 255, 255, 255, 255, 255], "a message is too large"),
        ] {
            assert_eq!(read(&bytes).await, [Err(text.to_owned())], "{text}");
        }
        assert_eq!(read(&sent(0x81, b"whole")[..8]).await, [], "an end in the middle is the end");
    }
}
