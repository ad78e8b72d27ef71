//! The gateway through a WebSocket, for browsers that want a stream both ways: each message of the
//! client is a piece of the request's body, each line of the answer's body a message to the client.
//!
//! etcd has this from `grpc-websocket-proxy`, whose rules are kept: a call is a POST whatever the
//! handshake's method is, a token comes in `Sec-WebSocket-Protocol: Bearer, TOKEN` or in the cookie
//! `token`, of the other headers only `Origin` and `Referer` count, and the end of the answer is the end
//! of the connection. An answer that is no stream is one message. Extensions are not offered.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{
    AUTHORIZATION, CONNECTION, COOKIE, ORIGIN, REFERER, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame as BodyFrame, Incoming};
use hyper_util::rt::TokioIo;
use sha1::{Digest, Sha1};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::Gateway;
use super::frame::{Frame, FrameError, Messages, Received};
use crate::listen::{AfterUpgrade, ConnectionInfo, HttpBody};

/// What the accepting side appends to the key (RFC 6455, 1.3).
const ACCEPT_SUFFIX: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const VERSION: HeaderValue = HeaderValue::from_static("13");
/// Messages that wait, in each direction.
const QUEUE: usize = 16;

/// Whether a request wants to become a WebSocket.
pub(crate) fn is_wanted(headers: &HeaderMap) -> bool {
    has_word(headers, &CONNECTION, "upgrade") && has_word(headers, &UPGRADE, "websocket")
}

fn has_word(headers: &HeaderMap, name: &HeaderName, wanted: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|word| word.trim().eq_ignore_ascii_case(wanted))
}

/// Shakes hands, and has the conversation go on once the connection is free for it.
pub(crate) fn accept(gateway: Gateway, mut request: Request<Incoming>) -> Response<HttpBody> {
    if request.method() != Method::GET {
        return refused(StatusCode::METHOD_NOT_ALLOWED);
    }
    let headers = request.headers();
    let key = headers.get(SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes).unwrap_or_default();
    let is_key = STANDARD.decode(key).is_ok_and(|decoded| decoded.len() == 16);
    if !has_word(headers, &SEC_WEBSOCKET_VERSION, "13") || !is_key {
        return refused(StatusCode::BAD_REQUEST);
    }
    let accepted =
        STANDARD.encode(Sha1::new().chain_update(key).chain_update(ACCEPT_SUFFIX).finalize());
    let Some(after) = request.extensions().get::<AfterUpgrade>().cloned() else {
        // HTTP/2 has no such upgrade.
        return refused(StatusCode::BAD_REQUEST);
    };
    let (inner, says_bearer) = inner_request(&request);
    let upgraded = hyper::upgrade::on(&mut request);
    after.set(async move {
        match upgraded.await {
            Ok(stream) => converse(gateway, inner, TokioIo::new(stream)).await,
            Err(error) => tracing::debug!(%error, "a client went away during its handshake"),
        }
    });
    let mut response = Response::new(HttpBody::from(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    if let Ok(accepted) = HeaderValue::from_str(&accepted) {
        headers.insert(SEC_WEBSOCKET_ACCEPT, accepted);
    }
    if says_bearer {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("Bearer"));
    }
    response
}

/// The refusal of Go's library for WebSockets.
fn refused(status: StatusCode) -> Response<HttpBody> {
    let text = format!("{}\n", status.canonical_reason().unwrap_or_default());
    let mut response = Response::new(HttpBody::from(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(SEC_WEBSOCKET_VERSION, VERSION);
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    headers.insert(http::header::CONTENT_TYPE, plain);
    headers.insert(http::header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// The request that is made of a handshake, and whether the client's subprotocol is `Bearer`.
fn inner_request(handshake: &Request<Incoming>) -> (Request<()>, bool) {
    let headers = handshake.headers();
    let mut inner = Request::new(());
    *inner.method_mut() = Method::POST;
    *inner.uri_mut() = handshake.uri().clone();
    for name in [ORIGIN, REFERER] {
        if let Some(value) = headers.get(&name) {
            inner.headers_mut().insert(name, value.clone());
        }
    }
    let protocol = headers.get(SEC_WEBSOCKET_PROTOCOL).and_then(|value| value.to_str().ok());
    let token = cookie(headers, "token").or_else(|| {
        // Some browsers write no space behind the comma.
        protocol
            .and_then(|text| text.split_once("Bearer,"))
            .map(|(_, token)| token.trim().to_owned())
    });
    let token = token.and_then(|token| HeaderValue::from_str(&format!("Bearer {token}")).ok());
    if let Some(token) = token {
        inner.headers_mut().insert(AUTHORIZATION, token);
    }
    if let Some(info) = handshake.extensions().get::<ConnectionInfo>() {
        inner.extensions_mut().insert(info.clone());
    }
    (inner, protocol.is_some_and(|text| text.starts_with("Bearer")))
}

fn cookie(headers: &HeaderMap, wanted: &str) -> Option<String> {
    let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    cookies.flat_map(|line| line.split(';')).find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        (name.trim() == wanted).then(|| value.trim().trim_matches('"').to_owned())
    })
}

/// Carries messages until one of the sides has said everything.
async fn converse<S>(gateway: Gateway, request: Request<()>, stream: S)
where
    S: AsyncRead + AsyncWrite + Send,
{
    let (read, mut write) = tokio::io::split(stream);
    let (outbox, mut frames) = mpsc::channel::<Frame>(QUEUE);
    let limit = gateway.json_bytes_max();
    let talk = async move {
        let (to_body, pieces) = mpsc::channel::<Bytes>(QUEUE);
        let listening = listen(Messages::new(BufReader::new(read), limit), to_body, outbox.clone());
        tokio::select! {
            () = listening => {}
            () = answer(&gateway, request, pieces, outbox) => {}
        }
    };
    let writing = async {
        while let Some(frame) = frames.recv().await {
            let Frame { head, payload } = frame;
            if write.write_all(&head).await.is_err() || write.write_all(&payload).await.is_err() {
                return;
            }
            if write.flush().await.is_err() {
                return;
            }
        }
        // The client may have gone away first.
        let _ = write.shutdown().await;
    };
    tokio::join!(talk, writing);
}

/// Takes the client's messages until it closes or says what cannot be understood.
async fn listen<R: AsyncRead + Unpin>(
    mut messages: Messages<R>,
    to_body: mpsc::Sender<Bytes>,
    outbox: mpsc::Sender<Frame>,
) {
    loop {
        let reply = match messages.next().await {
            Ok(Received::Message(message)) => {
                // A call that has read all it wants does not take more.
                let _ = to_body.send(message).await;
                continue;
            }
            Ok(Received::Ping(payload)) => Frame::pong(payload),
            Ok(Received::Pong) => continue,
            Ok(Received::Close(code)) => {
                let _ = outbox.send(Frame::close(code, "")).await;
                return;
            }
            Err(FrameError::Protocol(text)) => {
                let _ = outbox.send(Frame::close(Some(1002), text)).await;
                return;
            }
            Err(FrameError::TooLarge) => {
                let _ = outbox.send(Frame::close(Some(1009), "")).await;
                return;
            }
            Err(FrameError::Io(_)) => return,
        };
        if outbox.send(reply).await.is_err() {
            return;
        }
    }
}

/// Makes the call and sends its lines.
async fn answer(
    gateway: &Gateway,
    request: Request<()>,
    pieces: mpsc::Receiver<Bytes>,
    outbox: mpsc::Sender<Frame>,
) {
    let pieces = ReceiverStream::new(pieces)
        .map(|piece| Ok::<_, std::convert::Infallible>(BodyFrame::data(piece)));
    let response = gateway.answer(request.map(|()| StreamBody::new(pieces))).await;
    let mut body = response.into_body();
    while let Some(Ok(frame)) = body.frame().await {
        let Ok(data) = frame.into_data() else { continue };
        for line in data.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            if outbox.send(Frame::text(data.slice_ref(line))).await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handshake_is_recognised_and_its_token_found() {
        let headers = |pairs: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.append(*name, HeaderValue::from_static(value));
            }
            headers
        };
        let upgrade = headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket")]);
        assert!(is_wanted(&upgrade));
        assert!(!is_wanted(&headers(&[("connection", "upgrade"), ("upgrade", "h2c")])));
        assert!(!is_wanted(&headers(&[("upgrade", "websocket")])));
        let cookies = headers(&[("cookie", "a=b; token=t.1"), ("cookie", "c=d")]);
        assert_eq!(cookie(&cookies, "token").as_deref(), Some("t.1"));
        assert_eq!(cookie(&cookies, "d"), None);
    }
}
