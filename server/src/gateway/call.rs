//! Calls of the services with JSON on the outside.

use bytes::{Buf, BufMut, Bytes};
use futures_util::{Stream, StreamExt, stream};
use http::Response;
use http::uri::PathAndQuery;
use http_body_util::BodyExt;
use hyper::body::Body;
use tokio::time::Instant;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Request, Status, Streaming};

use crate::listen::{ConnectionInfo, GrpcCalls, HttpBody};
use crate::read_budget::ReadBudget;

use super::encode::Html;
use super::schema::Method;
use super::syntax::Values;
use super::{Asked, decode, encode, error_object, failure, http_status, success};

/// JSON may be so many times longer than the message: base64 takes 4/3 of its bytes, and each
/// character may be written as an escape of six.
const JSON_EXPANSION_MAX: usize = 8;

#[derive(Clone)]
pub(super) struct Calls {
    grpc: GrpcCalls,
    message_bytes_max: usize,
    reads: ReadBudget,
}

impl Calls {
    pub(super) fn new(grpc: GrpcCalls, message_bytes_max: usize, reads: ReadBudget) -> Self {
        Self { grpc, message_bytes_max, reads }
    }

    fn client(&self) -> Grpc<GrpcCalls> {
        Grpc::new(self.grpc.clone()).max_decoding_message_size(usize::MAX)
    }

    pub(super) fn json_bytes_max(&self) -> usize {
        self.message_bytes_max.saturating_mul(JSON_EXPANSION_MAX)
    }

    /// A call with one message each way.
    pub(super) async fn unary<B>(&self, asked: Asked, body: B) -> Result<Bytes, Status>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
    {
        let message = self.first_message(body, asked.method).await?;
        let mut client = self.client();
        let path = PathAndQuery::from_static(asked.path);
        let called = client.unary(request(&asked, message), path, BytesCodec);
        let answer = by(asked.deadline, called).await??.into_inner();
        let mut json = String::with_capacity(answer.len() * 2);
        encode::decode_message(&answer, asked.method.response, Html::Plain, &mut json)
            .map_err(|error| Status::internal(error.to_string()))?;
        // It is longer than what it was made of, and is held as that would have been.
        Ok(self.reads.count(json.into()))
    }

    /// A call that is answered with a stream. The answer begins with its first message, so that a
    /// refusal has the status that it should have.
    pub(super) async fn stream<B>(&self, asked: Asked, body: B) -> Response<HttpBody>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
    {
        let mut messages = match by(asked.deadline, self.open(&asked, body)).await {
            Ok(Ok(messages)) => messages,
            Ok(Err(OpenError::Request(status))) => return failure(&status),
            Ok(Err(OpenError::Call(status))) | Err(status) => return stream_failure(&status),
        };
        let (deadline, response) = (asked.deadline, asked.method.response);
        let first = match by(deadline, messages.next()).await {
            Ok(Some(Ok(first))) => first,
            Ok(Some(Err(status))) | Err(status) => return stream_failure(&status),
            Ok(None) => return Response::new(HttpBody::from(String::new())),
        };
        let first = line(&Ok(first), response);
        let rest = stream::unfold(Some(messages), move |messages| async move {
            let mut messages = messages?;
            let message = by(deadline, messages.next()).await.transpose()?.flatten();
            let goes_on = message.is_ok();
            Some((line(&message, response), goes_on.then_some(messages)))
        });
        success(HttpBody::stream(stream::once(std::future::ready(first)).chain(rest)))
    }

    async fn open<B>(&self, asked: &Asked, body: B) -> Result<Streaming<Bytes>, OpenError>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
    {
        let mut client = self.client();
        let path = PathAndQuery::from_static(asked.path);
        let codec = BytesCodec;
        let opened = if asked.method.client_streams {
            let messages = message_stream(body, asked.method, self.json_bytes_max());
            client.streaming(request(asked, messages), path, codec).await
        } else {
            let first = self.first_message(body, asked.method).await;
            let message = first.map_err(OpenError::Request)?;
            client.server_streaming(request(asked, message), path, codec).await
        };
        Ok(opened.map_err(OpenError::Call)?.into_inner())
    }

    /// The message in a body; without one, an empty message, as in etcd. What comes after it is
    /// read over.
    async fn first_message<B>(&self, mut body: B, method: Method) -> Result<Bytes, Status>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let mut values = Values::default();
        let json = loop {
            if let Some(value) = values.next().map_err(Status::invalid_argument)? {
                break Some(value);
            }
            if values.len() > self.json_bytes_max() {
                return Err(self.too_large(values.len()));
            }
            match body.frame().await {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        values.extend(data);
                    }
                }
                Some(Err(_)) => return Err(Status::invalid_argument("unexpected EOF")),
                None => break values.last().map_err(Status::invalid_argument)?,
            }
        };
        let Some(json) = json else { return Ok(Bytes::new()) };
        let message = decode::encode_message(&json, method.request);
        let message = message.map_err(Status::invalid_argument)?;
        match message.len() > self.message_bytes_max {
            true => Err(self.too_large(message.len())),
            false => Ok(message.into()),
        }
    }

    fn too_large(&self, bytes: usize) -> Status {
        let max = self.message_bytes_max;
        let text = format!("grpc: received message larger than max ({bytes} vs. {max})");
        Status::resource_exhausted(text)
    }
}

enum OpenError {
    /// The request cannot be read.
    Request(Status),
    /// The service refuses it.
    Call(Status),
}

/// The messages of a body, until it ends or something in it is no message; the call ends its side
/// then, as etcd's does.
fn message_stream<B>(
    body: B,
    method: Method,
    json_bytes_max: usize,
) -> impl Stream<Item = Bytes> + Send + 'static
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
{
    stream::unfold(Some((body, Values::default())), move |state| async move {
        let (mut body, mut values) = state?;
        let (json, state) = loop {
            match values.next() {
                Ok(Some(json)) => break (json, Some((body, values))),
                Ok(None) if values.len() <= json_bytes_max => {}
                Ok(None) | Err(_) => return None,
            }
            match body.frame().await {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        values.extend(data);
                    }
                }
                Some(Err(_)) => return None,
                None => break (values.last().ok().flatten()?, None),
            }
        };
        match decode::encode_message(&json, method.request) {
            Ok(message) => Some((message.into(), state)),
            Err(error) => {
                tracing::debug!(error, "failed to decode a request of the gateway");
                None
            }
        }
    })
}

fn request<M>(asked: &Asked, message: M) -> Request<M> {
    let mut request = Request::new(message);
    *request.metadata_mut() = asked.metadata.clone();
    if let Some(info) = &asked.info {
        request.extensions_mut().insert(ConnectionInfo { identity: None, ..info.clone() });
    }
    request
}

/// What a future gives, within the deadline; one that has passed is not even begun.
async fn by<F: Future>(deadline: Option<Instant>, future: F) -> Result<F::Output, Status> {
    let exceeded = || Status::deadline_exceeded("context deadline exceeded");
    match deadline {
        None => Ok(future.await),
        Some(deadline) if deadline <= Instant::now() => Err(exceeded()),
        Some(deadline) => tokio::time::timeout_at(deadline, future).await.map_err(|_| exceeded()),
    }
}

/// A line of a stream.
fn line(message: &Result<Bytes, Status>, response: usize) -> Bytes {
    let mut json = String::new();
    match message {
        Ok(message) => {
            json.push_str("{\"result\":");
            if encode::decode_message(message, response, Html::Escaped, &mut json).is_err() {
                let status = Status::internal("failed to marshal error message");
                return line(&Err(status), response);
            }
        }
        Err(status) => {
            json.push_str("{\"error\":");
            json.push_str(&error_object(status, Html::Escaped));
        }
    }
    json.push_str("}\n");
    json.into()
}

/// A stream that ends before it began.
fn stream_failure(status: &Status) -> Response<HttpBody> {
    let mut response = failure(status);
    *response.status_mut() = http_status(status.code());
    response.headers_mut().remove(http::header::WWW_AUTHENTICATE);
    let line = line(&Err(status.clone()), 0);
    response.map(|_| HttpBody::from(line))
}

/// Messages that are bytes already.
#[derive(Clone, Copy, Default)]
struct BytesCodec;

impl Codec for BytesCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = BytesCodec;
    type Decoder = BytesCodec;

    fn encoder(&mut self) -> BytesCodec {
        BytesCodec
    }

    fn decoder(&mut self) -> BytesCodec {
        BytesCodec
    }
}

impl Encoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, target: &mut EncodeBuf<'_>) -> Result<(), Status> {
        target.reserve(item.len());
        target.put(item);
        Ok(())
    }
}

impl Decoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(source.copy_to_bytes(source.remaining())))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tonic::metadata::MetadataMap;

    use super::super::schema::SCHEMA;
    use super::*;
    use crate::listen::Purpose;
    use crate::tls::PeerIdentity;

    #[test]
    fn cve_2018_16886_a_call_of_the_gateway_is_not_the_certificates() {
        let certificate = rcgen::CertificateParams::new(vec!["root".to_owned()]).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = certificate.self_signed(&key).unwrap().der().clone();
        let identity = PeerIdentity::shown(Some(&[certificate])).unwrap().map(Arc::new);
        assert!(identity.is_some());
        let remote = Some("10.0.0.7:1".parse().unwrap());
        let purpose = Purpose::Client;
        let info = ConnectionInfo { remote, local: None, purpose, secure: true, identity };
        let (metadata, path) = (MetadataMap::new(), "/etcdserverpb.KV/Put");
        let method = SCHEMA.methods[path];
        let asked = Asked { path, method, metadata, deadline: None, info: Some(info) };
        let request = request(&asked, ());
        let told = request.extensions().get::<ConnectionInfo>().unwrap();
        assert!(told.identity.is_none() && told.remote == remote && told.secure);
    }
}
