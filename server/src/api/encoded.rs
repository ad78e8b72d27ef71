//! A codec for answers that are already bytes, and for requests that stay bytes.
//!
//! A put travels to the log exactly as the client sent it, and a range is answered from the bytes
//! the store holds. So the hot services skip prost on one side: [`Raw`] keeps the request's bytes
//! beside its decoded form, [`Encoded`] is sent as it is.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::marker::PhantomData;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, header};
use http_body::{Body as HttpBody, Frame};
use prost::Message;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::StdError;
use tonic::metadata::MetadataMap;
use tonic::server::{Grpc, ServerStreamingService, StreamingService, UnaryService};
use tonic::{Request, Response, Status, Streaming};

use super::status::ApiError;
use crate::read_budget::{Outgoing, Share, Stalled};

/// A protobuf message in its wire form, with its part of the read budget where it has one.
pub(crate) struct Encoded {
    beginning: Bytes,
    /// Held until the beginning has left.
    share: Option<Share>,
    rest: Option<Arc<Outgoing>>,
}

impl From<Bytes> for Encoded {
    fn from(bytes: Bytes) -> Self {
        Self { beginning: bytes, share: None, rest: None }
    }
}

impl Encoded {
    pub(crate) fn of(message: &impl Message) -> Self {
        Bytes::from(message.encode_to_vec()).into()
    }

    /// A message that holds a share of the read budget.
    pub(crate) fn counted(bytes: Bytes, share: Option<Share>) -> Self {
        Self { share, ..bytes.into() }
    }

    /// A message whose greater part is in pieces, of which each holds its own share.
    pub(crate) fn in_pieces(beginning: Bytes, rest: Arc<Outgoing>) -> Self {
        Self { rest: Some(rest), ..beginning.into() }
    }

    pub(crate) fn len(&self) -> usize {
        self.beginning.len() + self.rest.as_ref().map_or(0, |rest| rest.bytes())
    }
}

/// A request as it came and as it reads.
pub(crate) struct Raw<R> {
    pub(crate) bytes: Bytes,
    pub(crate) message: R,
}

/// Decodes `Raw<R>`, encodes [`Encoded`].
pub(crate) struct EncodedCodec<R>(PhantomData<fn() -> R>);

impl<R> EncodedCodec<R> {
    pub(crate) fn new() -> Self {
        Self(PhantomData)
    }
}

impl<R: Message + Default + 'static> Codec for EncodedCodec<R> {
    type Encode = Encoded;
    type Decode = Raw<R>;
    type Encoder = EncodedEncoder;
    type Decoder = RawDecoder<R>;

    fn encoder(&mut self) -> EncodedEncoder {
        EncodedEncoder
    }

    fn decoder(&mut self) -> RawDecoder<R> {
        RawDecoder(PhantomData)
    }
}

pub(crate) struct EncodedEncoder;

impl Encoder for EncodedEncoder {
    type Item = Encoded;
    type Error = Status;

    fn encode(&mut self, item: Encoded, target: &mut EncodeBuf<'_>) -> Result<(), Status> {
        target.reserve(item.len());
        target.put(item.beginning);
        while let Some(rest) = &item.rest
            && let Some(piece) = rest.next_piece().map_err(stalled)?
        {
            target.put(piece);
        }
        Ok(())
    }
}

pub(crate) struct RawDecoder<R>(PhantomData<fn() -> R>);

impl<R: Message + Default + 'static> Decoder for RawDecoder<R> {
    type Item = Raw<R>;
    type Error = Status;

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<Raw<R>>, Status> {
        raw(source.copy_to_bytes(source.remaining())).map(Some)
    }
}

/// What a handler returns.
pub(crate) type Answer<T> = Pin<Box<dyn Future<Output = Result<Response<T>, Status>> + Send>>;

/// What a gRPC service answers to HTTP.
pub(crate) type HttpAnswer =
    Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

/// Turns a function into the service traits of tonic.
struct Handler<F>(F);

impl<R, F, Fut> UnaryService<Raw<R>> for Handler<F>
where
    F: FnMut(Request<Raw<R>>) -> Fut,
    Fut: Future<Output = Result<Response<Encoded>, Status>> + Send + 'static,
{
    type Response = Encoded;
    type Future = Answer<Encoded>;

    fn call(&mut self, request: Request<Raw<R>>) -> Self::Future {
        Box::pin((self.0)(request))
    }
}

impl<R, F, Fut, S> ServerStreamingService<Raw<R>> for Handler<F>
where
    F: FnMut(Request<Raw<R>>) -> Fut,
    Fut: Future<Output = Result<Response<S>, Status>> + Send + 'static,
    S: futures_util::Stream<Item = Result<Encoded, Status>> + Send + 'static,
{
    type Response = Encoded;
    type ResponseStream = S;
    type Future = Answer<S>;

    fn call(&mut self, request: Request<Raw<R>>) -> Self::Future {
        Box::pin((self.0)(request))
    }
}

impl<R, F, Fut, S> StreamingService<Raw<R>> for Handler<F>
where
    F: FnMut(Request<Streaming<Raw<R>>>) -> Fut,
    Fut: Future<Output = Result<Response<S>, Status>> + Send + 'static,
    S: futures_util::Stream<Item = Result<Encoded, Status>> + Send + 'static,
{
    type Response = Encoded;
    type ResponseStream = S;
    type Future = Answer<S>;

    fn call(&mut self, request: Request<Streaming<Raw<R>>>) -> Self::Future {
        Box::pin((self.0)(request))
    }
}

fn grpc<R: Message + Default + 'static>(message_bytes_max: usize) -> Grpc<EncodedCodec<R>> {
    Grpc::new(EncodedCodec::new())
        .apply_max_message_size_config(Some(message_bytes_max), Some(i32::MAX as usize))
}

/// Serves one unary call with `handle`.
///
/// tonic reads and writes every call as a stream of messages, with two buffers of 8 KiB and several
/// boxes for each. Here the one message is taken from its frame and the answer is sent as one frame;
/// texts of errors are those of tonic and grpc-go. What is compressed is left to tonic, which refuses it.
pub(crate) fn unary<R, B, F, Fut>(
    request: http::Request<B>,
    message_bytes_max: usize,
    mut handle: F,
) -> HttpAnswer
where
    R: Message + Default + 'static,
    B: HttpBody + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
    F: FnMut(Request<Raw<R>>) -> Fut + Send + 'static,
    Fut: Future<Output = Result<Response<Encoded>, Status>> + Send + 'static,
{
    Box::pin(async move {
        if is_compressed(request.headers()) {
            return Ok(grpc::<R>(message_bytes_max).unary(Handler(handle), request).await);
        }
        let answer = match read_request(request, message_bytes_max).await {
            Ok(request) => handle(request).await,
            Err(status) => Err(status),
        };
        Ok(answer.map_or_else(|status| status.into_http(), unary_response))
    })
}

/// Whether the request says that it is. What tonic answers is not counted by the read budget.
fn is_compressed(headers: &HeaderMap) -> bool {
    headers.get("grpc-encoding").is_some_and(|encoding| encoding != "identity")
}

async fn read_request<R, B>(
    request: http::Request<B>,
    message_bytes_max: usize,
) -> Result<Request<Raw<R>>, Status>
where
    R: Message + Default,
    B: HttpBody,
    B::Error: Into<StdError>,
{
    let (parts, body) = request.into_parts();
    let message = read_message(body, message_bytes_max).await.and_then(raw)?;
    Ok(Request::from_http(http::Request::from_parts(parts, message)))
}

/// Reads the body of a unary call to its end.
async fn read_message<B>(body: B, bytes_max: usize) -> Result<Bytes, Status>
where
    B: HttpBody,
    B::Error: Into<StdError>,
{
    let mut body = pin!(body);
    let mut received = Bytes::new();
    while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        let frame = frame.map_err(|error| Status::from_error(error.into()))?;
        let Ok(mut data) = frame.into_data() else { continue };
        if is_whole(&received, bytes_max)? {
            // What a client sends behind its message is nothing that this server must keep.
            continue;
        }
        let data = data.copy_to_bytes(data.remaining());
        received = if received.is_empty() {
            data
        } else {
            let mut joined = BytesMut::from(received);
            joined.extend_from_slice(&data);
            joined.freeze()
        };
    }
    if received.is_empty() {
        return Err(Status::internal("Missing request message."));
    }
    match message_length(&received, bytes_max)? {
        Some(length) if is_whole(&received, bytes_max)? => {
            Ok(received.slice(MESSAGE_HEADER_BYTES..MESSAGE_HEADER_BYTES + length))
        }
        _ => Err(Status::internal("Unexpected EOF decoding stream.")),
    }
}

/// Whether a whole message has arrived; an error as soon as it cannot become one.
fn is_whole(received: &[u8], bytes_max: usize) -> Result<bool, Status> {
    let length = message_length(received, bytes_max)?;
    Ok(length.is_some_and(|length| received.len() >= MESSAGE_HEADER_BYTES + length))
}

/// A flag and the length stand before each message.
const MESSAGE_HEADER_BYTES: usize = 5;

/// How long the message is that begins here, if that much has arrived.
fn message_length(received: &[u8], bytes_max: usize) -> Result<Option<usize>, Status> {
    let [flag, length @ ..] = match received.first_chunk::<MESSAGE_HEADER_BYTES>() {
        Some(header) => *header,
        None => return Ok(None),
    };
    match flag {
        0 => {}
        1 => {
            return Err(Status::internal(
                "protocol error: received message with compressed-flag but no grpc-encoding was \
                 specified",
            ));
        }
        flag => {
            return Err(Status::internal(format!(
                "protocol error: received message with invalid compression flag: {flag} (valid \
                 flags are 0 and 1), while sending request"
            )));
        }
    }
    let length = u32::from_be_bytes(length) as usize;
    if length > bytes_max {
        return Err(Status::resource_exhausted(format!(
            "grpc: received message larger than max ({length} vs. {bytes_max})"
        )));
    }
    Ok(Some(length))
}

fn raw<R: Message + Default>(bytes: Bytes) -> Result<Raw<R>, Status> {
    let message = R::decode(bytes.clone())
        .map_err(|error| Status::internal(format!("grpc: error unmarshalling request: {error}")))?;
    Ok(Raw { bytes, message })
}

/// Messages up to this size are copied behind their header; longer ones follow it in a frame.
const COPIED_BYTES_MAX: usize = 16 * 1024;

fn unary_response(response: Response<Encoded>) -> http::Response<Body> {
    let (metadata, message, extensions) = response.into_parts();
    let frames = match Frames::of(message) {
        Ok(frames) => frames,
        Err(status) => return status.into_http(),
    };
    http_response(metadata, Body::new(UnaryBody { frames, status_sent: false }), extensions)
}

fn stalled(_: Stalled) -> Status {
    ApiError::TooManyRequests.into()
}

/// One message in frames: header and beginning in one or two, then the pieces of what is large.
struct Frames {
    first: [Bytes; 2],
    rest: Option<Arc<Outgoing>>,
}

impl Frames {
    fn of(message: Encoded) -> Result<Self, Status> {
        let bytes = message.len();
        let Some(length) = u32::try_from(bytes).ok().filter(|len| *len <= i32::MAX as u32) else {
            return Err(Status::out_of_range(format!(
                "Error, encoded message length too large: found {bytes} bytes, the limit is: {} \
                 bytes",
                i32::MAX
            )));
        };
        let Encoded { beginning, share, rest } = message;
        let copied = if beginning.len() <= COPIED_BYTES_MAX { &beginning[..] } else { &[] };
        let mut first = BytesMut::with_capacity(MESSAGE_HEADER_BYTES + copied.len());
        first.put_u8(0);
        first.put_u32(length);
        first.put_slice(copied);
        let mut first = [first.freeze(), Bytes::new()];
        let bulk = usize::from(copied.is_empty());
        if copied.is_empty() {
            first[1] = beginning;
        }
        if let Some(share) = share {
            first[bulk] = share.attach(std::mem::take(&mut first[bulk]));
        }
        Ok(Self { first, rest })
    }

    /// The next frame; none after the last.
    fn next_frame(&mut self) -> Result<Option<Bytes>, Status> {
        if let Some(frame) = self.first.iter_mut().find(|frame| !frame.is_empty()) {
            return Ok(Some(std::mem::take(frame)));
        }
        match &self.rest {
            Some(rest) => rest.next_piece().map_err(stalled),
            None => Ok(None),
        }
    }
}

/// One message, and the status that it went well.
struct UnaryBody {
    frames: Frames,
    status_sent: bool,
}

impl HttpBody for UnaryBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.status_sent {
            return Poll::Ready(None);
        }
        // An error in the middle of a message resets the stream: the client has nothing of it.
        if let Some(frame) = this.frames.next_frame()? {
            return Poll::Ready(Some(Ok(Frame::data(frame))));
        }
        this.status_sent = true;
        let mut trailers = HeaderMap::with_capacity(1);
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.status_sent
    }
}

/// Serves one call that is answered with a stream.
///
/// Not by tonic, which copies messages into a buffer of its own: what they hold of the read budget
/// is to be held until they have left.
pub(crate) fn server_streaming<R, B, F, Fut, S>(
    request: http::Request<B>,
    message_bytes_max: usize,
    mut handle: F,
) -> HttpAnswer
where
    R: Message + Default + 'static,
    B: HttpBody + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
    F: FnMut(Request<Raw<R>>) -> Fut + Send + 'static,
    Fut: Future<Output = Result<Response<S>, Status>> + Send + 'static,
    S: futures_util::Stream<Item = Result<Encoded, Status>> + Send + 'static,
{
    Box::pin(async move {
        if is_compressed(request.headers()) {
            let mut tonic = grpc::<R>(message_bytes_max);
            return Ok(tonic.server_streaming(Handler(handle), request).await);
        }
        let answer = match read_request(request, message_bytes_max).await {
            Ok(request) => handle(request).await,
            Err(status) => Err(status),
        };
        Ok(answer.map_or_else(|status| status.into_http(), streamed_response))
    })
}

fn streamed_response<S>(response: Response<S>) -> http::Response<Body>
where
    S: futures_util::Stream<Item = Result<Encoded, Status>> + Send + 'static,
{
    let (metadata, messages, extensions) = response.into_parts();
    let body = StreamBody { messages: Box::pin(messages), frames: None, status_sent: false };
    http_response(metadata, Body::new(body), extensions)
}

fn http_response(
    metadata: MetadataMap,
    body: Body,
    extensions: http::Extensions,
) -> http::Response<Body> {
    let mut answer = http::Response::new(body);
    *answer.headers_mut() = metadata.into_headers();
    *answer.extensions_mut() = extensions;
    let content_type = HeaderValue::from_static("application/grpc");
    answer.headers_mut().insert(header::CONTENT_TYPE, content_type);
    answer
}

/// Messages as they come, and the status they end with.
struct StreamBody<S> {
    messages: Pin<Box<S>>,
    /// Of the message that is being sent.
    frames: Option<Frames>,
    status_sent: bool,
}

impl<S: futures_util::Stream<Item = Result<Encoded, Status>>> HttpBody for StreamBody<S> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.status_sent {
            return Poll::Ready(None);
        }
        let ended = loop {
            if let Some(frames) = &mut this.frames {
                if let Some(frame) = frames.next_frame()? {
                    return Poll::Ready(Some(Ok(Frame::data(frame))));
                }
                this.frames = None;
            }
            match ready!(this.messages.as_mut().poll_next(cx)) {
                Some(message) => match message.and_then(Frames::of) {
                    Ok(frames) => this.frames = Some(frames),
                    Err(status) => break status,
                },
                None => break Status::ok(""),
            }
        };
        this.status_sent = true;
        let mut trailers = HeaderMap::with_capacity(2);
        ended.add_header(&mut trailers)?;
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.status_sent
    }
}

/// Serves one call with a stream each way.
pub(crate) fn streaming<R, B, F, Fut, S>(
    request: http::Request<B>,
    message_bytes_max: usize,
    handle: F,
) -> HttpAnswer
where
    R: Message + Default + 'static,
    B: HttpBody + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
    F: FnMut(Request<Streaming<Raw<R>>>) -> Fut + Send + 'static,
    Fut: Future<Output = Result<Response<S>, Status>> + Send + 'static,
    S: futures_util::Stream<Item = Result<Encoded, Status>> + Send + 'static,
{
    Box::pin(
        async move { Ok(grpc::<R>(message_bytes_max).streaming(Handler(handle), request).await) },
    )
}

/// The answer to a method that the service does not have.
pub(crate) fn unimplemented() -> HttpAnswer {
    Box::pin(async { Ok(Status::unimplemented("unknown method").into_http()) })
}

/// Appends a length-delimited field to a message that is being encoded.
pub(crate) fn put_field(out: &mut impl BufMut, tag: u32, bytes: &[u8]) {
    prost::encoding::encode_key(tag, prost::encoding::WireType::LengthDelimited, out);
    prost::encoding::encode_varint(bytes.len() as u64, out);
    out.put_slice(bytes);
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// A body in pieces that counts how many of its bytes are kept.
    struct Pieces {
        left: VecDeque<Vec<u8>>,
        kept: Arc<AtomicUsize>,
    }

    struct Piece(Bytes, Arc<AtomicUsize>);

    impl Buf for Piece {
        fn remaining(&self) -> usize {
            self.0.remaining()
        }

        fn chunk(&self) -> &[u8] {
            self.0.chunk()
        }

        fn advance(&mut self, count: usize) {
            self.0.advance(count);
        }

        fn copy_to_bytes(&mut self, length: usize) -> Bytes {
            self.1.fetch_add(length, Ordering::Relaxed);
            self.0.copy_to_bytes(length)
        }
    }

    impl HttpBody for Pieces {
        type Data = Piece;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Piece>, Infallible>>> {
            let kept = self.kept.clone();
            let piece = self.left.pop_front();
            Poll::Ready(piece.map(|piece| Ok(Frame::data(Piece(piece.into(), kept)))))
        }
    }

    async fn read(pieces: &[&[u8]], bytes_max: usize) -> (Result<Bytes, String>, usize) {
        let kept = Arc::new(AtomicUsize::new(0));
        let left = pieces.iter().map(|piece| piece.to_vec()).collect();
        let body = Pieces { left, kept: kept.clone() };
        let message = read_message(body, bytes_max).await;
        (message.map_err(|status| status.message().to_owned()), kept.load(Ordering::Relaxed))
    }

    #[tokio::test]
    async fn a_message_is_read_however_it_is_cut_and_nothing_behind_it_is_kept() {
        let whole = b"\0\0\0\0\x03abc";
        for cut in 0..=whole.len() {
            let (first, second) = whole.split_at(cut);
            let flood: &[u8] = &[7; 1000];
            let (message, kept) = read(&[first, second, flood, flood, flood], 3).await;
            assert_eq!(message.as_deref(), Ok(&b"abc"[..]), "cut at {cut}");
            assert_eq!(kept, whole.len(), "cut at {cut}");
        }
    }

    #[tokio::test]
    async fn what_is_no_message_is_refused_as_soon_as_that_is_known() {
        for (pieces, refusal) in [
            (&[][..], "Missing request message."),
            (&[&b"\0\0\0"[..]], "Unexpected EOF decoding stream."),
            (&[b"\0\0\0\0\x03ab"], "Unexpected EOF decoding stream."),
            (&[b"\x01\0\0\0\0"], "compressed-flag"),
            (&[b"\x02\0\0\0\0"], "invalid compression flag: 2"),
            (&[b"\0\0\0\0\x04a", b"bcd"], "received message larger than max (4 vs."),
        ] {
            let (message, _) = read(pieces, 3).await;
            let text = message.expect_err("it is no message");
            assert!(text.contains(refusal), "{text}");
        }
        let (_, kept) = read(&[b"\0\0\0\0\x04a", b"bcd"], 3).await;
        assert_eq!(kept, 6, "what comes after a length that is refused is not read");
    }
}
