//! The HTTP/JSON gateway: every RPC of the API but RangeStream, which has no path in etcd either, as a
//! POST below `/v3/`, or through a [`websocket`].
//!
//! In: a JSON body, or several of them for an RPC that takes a stream. Out: one JSON object, or one
//! per line (`{"result":..}` or `{"error":..}`) for an RPC that answers with a stream. etcd has this
//! from grpc-gateway; its mapping, texts and statuses are kept (`server/embed/serve.go`).
//!
//! ```text
//! body ─ syntax ─ decode ─► protobuf ─► the services of this thread ─► protobuf ─ encode ─► body
//! ```
//!
//! Nothing here is written per RPC: [`routes`] has a line for each path, and [`schema`] reads the
//! types from the descriptors. A call goes to the same services as gRPC's, in the same thread and
//! without a connection, so it is checked and counted like any other. What a client's certificate
//! says is not passed on, as in etcd: a gateway's certificate is no user's.

mod call;
mod decode;
mod encode;
mod frame;
#[cfg(feature = "fuzz")]
pub(crate) mod fuzz;
mod metadata;
mod routes;
mod schema;
mod syntax;
pub(crate) mod websocket;

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method as HttpMethod, Request, Response, StatusCode, header};
use hyper::body::Body;
use tonic::{Code, Status};

use crate::listen::{ConnectionInfo, GrpcCalls, HttpBody};
use crate::read_budget::ReadBudget;

use self::call::Calls;
use self::encode::Html;
use self::schema::{Method, SCHEMA};

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const GRPC_CONTENT_TYPE: HeaderName = HeaderName::from_static("grpc-metadata-content-type");

/// Whether callers are recognised by the name in their certificate just now.
pub(crate) type NamesCount = Arc<dyn Fn() -> bool + Send + Sync>;

/// The gateway of one RPC thread.
#[derive(Clone)]
pub(crate) struct Gateway {
    calls: Calls,
    names_count: NamesCount,
}

/// A message of a call as JSON, for logs; nothing if it is none of the API's.
pub(crate) fn message_as_json(path: &str, is_response: bool, bytes: &[u8]) -> Option<String> {
    let method = SCHEMA.methods.get(path)?;
    let message = if is_response { method.response } else { method.request };
    let mut text = String::new();
    encode::decode_message(bytes, message, Html::Plain, &mut text).ok()?;
    Some(text)
}

/// One call: what is asked for, and by whom.
struct Asked {
    path: &'static str,
    method: Method,
    metadata: tonic::metadata::MetadataMap,
    deadline: Option<tokio::time::Instant>,
    info: Option<ConnectionInfo>,
}

impl Gateway {
    /// A gateway to `grpc`, which takes messages of up to `message_bytes_max`.
    pub(crate) fn new(
        grpc: GrpcCalls,
        message_bytes_max: usize,
        reads: ReadBudget,
        names_count: NamesCount,
    ) -> Self {
        Self { calls: Calls::new(grpc, message_bytes_max, reads), names_count }
    }

    /// Refuses a client whose certificate has a name, where names count: here it would not.
    pub(crate) fn refuse_name(&self, extensions: &http::Extensions) -> Option<Response<HttpBody>> {
        let identity = extensions.get::<ConnectionInfo>()?.identity.as_ref()?;
        let is_refused = !identity.common_name.is_empty() && (self.names_count)();
        is_refused.then(common_name_refused)
    }

    /// How long a request may be in JSON.
    fn json_bytes_max(&self) -> usize {
        self.calls.json_bytes_max()
    }

    /// Answers a request below `/v3/`.
    pub(crate) async fn answer<B>(&self, request: Request<B>) -> Response<HttpBody>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
    {
        let (parts, body) = request.into_parts();
        let info = parts.extensions.get::<ConnectionInfo>().cloned();
        let Some(path) = routes::method_of(parts.uri.path()) else {
            return failure(&Status::not_found("Not Found"));
        };
        if metadata::http_method(&parts) != HttpMethod::POST {
            return failure(&Status::unimplemented("Method Not Allowed"));
        }
        let forwarded = match metadata::forwarded(&parts.headers, info.as_ref()) {
            Ok(forwarded) => forwarded,
            Err(status) => return failure(&status),
        };
        let asked = Asked {
            path,
            method: SCHEMA.methods[path],
            metadata: forwarded.metadata,
            deadline: forwarded.timeout.map(|timeout| tokio::time::Instant::now() + timeout),
            info,
        };
        match asked.method.server_streams {
            true => self.calls.stream(asked, body).await,
            false => match self.calls.unary(asked, body).await {
                Ok(json) => success(HttpBody::from(json)),
                Err(status) => failure(&status),
            },
        }
    }
}

fn success(body: HttpBody) -> Response<HttpBody> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, JSON);
    headers.insert(GRPC_CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// A refusal of a call that has not answered anything yet.
fn failure(status: &Status) -> Response<HttpBody> {
    let mut response = Response::new(HttpBody::from(error_object(status, Html::Plain)));
    *response.status_mut() = http_status(status.code());
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    if status.code() == Code::Unauthenticated
        && let Ok(message) = HeaderValue::from_str(status.message())
    {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, message);
    }
    response
}

/// `google.rpc.Status` in JSON.
fn error_object(status: &Status, html: Html) -> String {
    let mut json = format!("{{\"code\":{}", i32::from(status.code()));
    if !status.message().is_empty() {
        json.push_str(",\"message\":");
        encode::push_string(status.message(), html, &mut json);
    }
    json.push('}');
    json
}

fn common_name_refused() -> Response<HttpBody> {
    let text = "CommonName of client sending a request against gateway will be ignored and not \
                used as expected\n";
    let mut response = Response::new(HttpBody::from(text.to_owned()));
    *response.status_mut() = StatusCode::BAD_REQUEST;
    let headers = response.headers_mut();
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    headers.insert(header::CONTENT_TYPE, plain);
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// grpc-gateway's table.
fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::Cancelled => StatusCode::from_u16(499).expect("499 is in the range of statuses"),
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => {
            StatusCode::BAD_REQUEST
        }
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_objects_with_code_and_message() {
        let status = Status::not_found("a \"b\" <c>");
        assert_eq!(error_object(&status, Html::Plain), r#"{"code":5,"message":"a \"b\" <c>"}"#);
        assert_eq!(
            error_object(&status, Html::Escaped),
            r#"{"code":5,"message":"a \"b\" \u003cc\u003e"}"#
        );
        assert_eq!(error_object(&Status::unknown(""), Html::Plain), r#"{"code":2}"#);
        let refused = failure(&Status::unauthenticated("etcdserver: invalid auth token"));
        assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(refused.headers()["www-authenticate"], "etcdserver: invalid auth token");
    }
}
