//! A codec for answers that are already bytes, and for requests that stay bytes.
//!
//! A put travels to the log exactly as the client sent it, and a range is answered from the bytes
//! the store holds. So the hot services skip prost on one side: [`Raw`] keeps the request's bytes
//! beside its decoded form, [`Encoded`] is sent as it is.

use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;

use bytes::{Buf, BufMut, Bytes};
use http_body::Body as HttpBody;
use prost::Message;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::StdError;
use tonic::server::{Grpc, ServerStreamingService, StreamingService, UnaryService};
use tonic::{Request, Response, Status, Streaming};

/// A protobuf message in its wire form.
pub(crate) struct Encoded(pub(crate) Bytes);

impl Encoded {
    pub(crate) fn of(message: &impl Message) -> Self {
        Self(message.encode_to_vec().into())
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
        target.reserve(item.0.len());
        target.put(item.0);
        Ok(())
    }
}

pub(crate) struct RawDecoder<R>(PhantomData<fn() -> R>);

impl<R: Message + Default + 'static> Decoder for RawDecoder<R> {
    type Item = Raw<R>;
    type Error = Status;

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<Raw<R>>, Status> {
        let bytes = source.copy_to_bytes(source.remaining());
        let message = R::decode(bytes.clone()).map_err(|error| {
            Status::internal(format!("grpc: error unmarshalling request: {error}"))
        })?;
        Ok(Some(Raw { bytes, message }))
    }
}

/// What a handler returns.
pub(crate) type Answer<T> = Pin<Box<dyn Future<Output = Result<Response<T>, Status>> + Send>>;

/// What a gRPC service answers to HTTP.
pub(crate) type HttpAnswer =
    Pin<Box<dyn Future<Output = Result<http::Response<Body>, std::convert::Infallible>> + Send>>;

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
pub(crate) fn unary<R, B, F, Fut>(
    request: http::Request<B>,
    message_bytes_max: usize,
    handle: F,
) -> HttpAnswer
where
    R: Message + Default + 'static,
    B: HttpBody + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
    F: FnMut(Request<Raw<R>>) -> Fut + Send + 'static,
    Fut: Future<Output = Result<Response<Encoded>, Status>> + Send + 'static,
{
    Box::pin(async move { Ok(grpc::<R>(message_bytes_max).unary(Handler(handle), request).await) })
}

/// Serves one call that is answered with a stream.
pub(crate) fn server_streaming<R, B, F, Fut, S>(
    request: http::Request<B>,
    message_bytes_max: usize,
    handle: F,
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
        Ok(grpc::<R>(message_bytes_max).server_streaming(Handler(handle), request).await)
    })
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
