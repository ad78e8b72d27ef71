//! One connection: handshake, protocol, requests, farewell.

use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::config::ListenConfig;
use crate::tls::{PeerIdentity, ServerTls, Unreadable};

use super::coalesce::Coalescing;
use super::dispatch::{AnswerBody, AnswerFuture};
use super::handshakes::Handshake;
use super::ping_police::{CallUnderWay, Calls, PingPolice};
use super::{Purpose, Services};

/// How long a TLS handshake may take; etcd has the same limit (`transport/listener_tls.go`).
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long, and how much, is still read from a client whose handshake failed.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(2);
const FAREWELL_BYTES_MAX: u64 = 64 * 1024;
/// How long the head of an HTTP/1 request may take.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
const HEADER_LIST_BYTES_MAX: u32 = 16 * 1024;
/// Streams that a client opened and reset again before they were looked at (CVE-2023-44487).
const PENDING_RESETS_MAX: usize = 20;
/// What a client may send on one stream and on one connection before it must wait.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
/// Never ping more often than this (`grpc-go` raises smaller values too).
const KEEPALIVE_INTERVAL_MIN: Duration = Duration::from_secs(1);

/// Settings of every connection.
#[derive(Clone, Debug)]
pub struct ConnectionSettings {
    pub streams_max: u32,
    pub keepalive_interval: Option<Duration>,
    pub keepalive_timeout: Option<Duration>,
    /// Clients must not ping more often than this.
    pub keepalive_min_time: Duration,
}

impl ConnectionSettings {
    /// As the flags say.
    pub fn of(config: &ListenConfig) -> Self {
        Self {
            streams_max: config.streams_max,
            keepalive_interval: config.keepalive_interval,
            keepalive_timeout: config.keepalive_timeout,
            keepalive_min_time: config.keepalive_min_time,
        }
    }
}

/// Who is at the other end; handlers find it among the extensions of a request.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    /// None on a unix socket.
    pub remote: Option<SocketAddr>,
    /// The address that the client reached; none on a unix socket.
    pub local: Option<SocketAddr>,
    pub purpose: Purpose,
    pub secure: bool,
    /// What the client's verified certificate says.
    pub identity: Option<Arc<PeerIdentity>>,
}

/// Where a connection comes from.
pub(super) struct Remote {
    address: Option<SocketAddr>,
    local: Option<SocketAddr>,
    purpose: Purpose,
}

impl Remote {
    pub(super) fn of(stream: &TcpStream, purpose: Purpose) -> Self {
        // At a socket of both families an IPv4 address comes in the clothes of IPv6.
        let plain =
            |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
        let (address, local) = (stream.peer_addr().ok(), stream.local_addr().ok());
        Self { address: address.map(plain), local: local.map(plain), purpose }
    }

    pub(super) fn unix(purpose: Purpose) -> Self {
        Self { address: None, local: None, purpose }
    }
}

/// Serves one connection to its end.
pub(super) async fn serve<S>(
    stream: S,
    remote: Remote,
    tls: Option<(Arc<ServerTls>, Handshake)>,
    services: Services,
    settings: &ConnectionSettings,
    stop: CancellationToken,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut info = ConnectionInfo {
        remote: remote.address,
        local: remote.local,
        purpose: remote.purpose,
        secure: tls.is_some(),
        identity: None,
    };
    let Some((tls, turn)) = tls else {
        return speak(stream, info, services, settings, stop).await;
    };
    let handshake = TlsAcceptor::from(tls.current()).accept(stream).into_fallible();
    let ended = turn.within(HANDSHAKE_TIMEOUT, handshake).await;
    drop(turn);
    let stream = match ended {
        Ok(Ok(stream)) => stream,
        Ok(Err((error, stream))) => {
            rejected(&info, &client::tls_reason(&error));
            let _ = tokio::time::timeout(FAREWELL_TIMEOUT, farewell(stream)).await;
            return Err(error);
        }
        Err(error) => {
            rejected(&info, &error.to_string());
            return Err(error);
        }
    };
    let (_, session) = stream.get_ref();
    let shown = PeerIdentity::shown(session.peer_certificates());
    if let Err(reason) = check_identity(&tls, shown, &mut info).await {
        rejected(&info, &reason);
        let _ = tokio::time::timeout(FAREWELL_TIMEOUT, farewell(stream)).await;
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, reason));
    }
    speak(stream, info, services, settings, stop).await
}

/// Ends a connection whose client may be in the middle of a sentence. A socket that is closed with
/// something unread in it resets the connection, and the client then loses what it was told (an
/// alert, or just the end) for "connection reset by peer".
async fn farewell(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    stream.shutdown().await?;
    let mut rest = stream.take(FAREWELL_BYTES_MAX);
    tokio::io::copy(&mut rest, &mut tokio::io::sink()).await?;
    Ok(())
}

/// etcd's texts, which operators search for (`embed/config_logging.go`).
fn rejected(info: &ConnectionInfo, error: &str) {
    let remote = info.remote.map(|address| address.to_string()).unwrap_or_default();
    match info.purpose {
        Purpose::Peer => {
            tracing::warn!("remote-addr" = remote, error, "rejected connection on peer endpoint");
        }
        Purpose::Client | Purpose::ClientHttp | Purpose::Metrics => {
            tracing::warn!("remote-addr" = remote, error, "rejected connection on client endpoint");
        }
    }
}

async fn check_identity(
    tls: &ServerTls,
    shown: Result<Option<PeerIdentity>, Unreadable>,
    info: &mut ConnectionInfo,
) -> Result<(), String> {
    info.identity = shown.map_err(|error| error.to_string())?.map(Arc::new);
    tls.admits(info.identity.as_deref())?;
    match (&info.identity, info.remote) {
        (Some(identity), Some(remote)) if tls.checks_remote_address() => {
            identity.check_address(remote.ip()).await
        }
        _ => Ok(()),
    }
}

async fn speak<S>(
    stream: S,
    info: ConnectionInfo,
    services: Services,
    settings: &ConnectionSettings,
    stop: CancellationToken,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let builder = builder(settings);
    let calls = Arc::new(Calls::default());
    // Members ping each other by rules of their own.
    let min_time = (info.purpose == Purpose::Client).then_some(settings.keepalive_min_time);
    let stream = PingPolice::new(Coalescing::new(stream), min_time, calls.clone());
    let after = AfterUpgrade::default();
    let service = ConnectionService { services, info, calls, after: after.clone() };
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        biased;
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        ended = connection.as_mut() => ended,
    };
    if let Some(next) = after.take() {
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = next => {}
        }
    }
    ended.map_err(io::Error::other)
}

fn builder(settings: &ConnectionSettings) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    let mut http2 = builder.http2();
    http2
        .timer(TokioTimer::new())
        // As grpc-go, whose answers have no date; HTTP/1 has one.
        .auto_date_header(false)
        .max_concurrent_streams(settings.streams_max)
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    // etcd reads 0 as "off" for either of the two.
    if let (Some(interval), Some(timeout)) =
        (settings.keepalive_interval, settings.keepalive_timeout)
    {
        http2.keep_alive_interval(interval.max(KEEPALIVE_INTERVAL_MIN)).keep_alive_timeout(timeout);
    }
    builder
}

type Conversation = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What a connection is for once its last request has made something else of it. A handler that
/// accepts an upgrade finds this among the extensions of the request; what it sets is awaited in the
/// connection's place, and so counts as the connection and ends with the server.
#[derive(Clone, Default)]
// A std mutex: held to put something in or to take it out, which never waits.
pub struct AfterUpgrade(Arc<Mutex<Option<Conversation>>>);

impl AfterUpgrade {
    pub fn set(&self, conversation: impl Future<Output = ()> + Send + 'static) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::pin(conversation));
    }

    fn take(&self) -> Option<Conversation> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

struct ConnectionService {
    services: Services,
    info: ConnectionInfo,
    calls: Arc<Calls>,
    after: AfterUpgrade,
}

impl Service<Request<Incoming>> for ConnectionService {
    type Response = http::Response<TrackedBody>;
    type Error = std::convert::Infallible;
    type Future = TrackedAnswer;

    fn call(&self, mut request: Request<Incoming>) -> TrackedAnswer {
        request.extensions_mut().insert(self.info.clone());
        if request.version() <= http::Version::HTTP_11
            && request.headers().contains_key(http::header::UPGRADE)
        {
            request.extensions_mut().insert(self.after.clone());
        }
        let call = CallUnderWay::begin(&self.calls);
        TrackedAnswer { answer: self.services.call(request), call: Some(call) }
    }
}

/// An answer whose call counts as under way until its body is at its end.
struct TrackedAnswer {
    answer: AnswerFuture,
    call: Option<CallUnderWay>,
}

impl Future for TrackedAnswer {
    type Output = Result<http::Response<TrackedBody>, std::convert::Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        Pin::new(&mut this.answer).poll(cx).map(|answer| {
            let call = this.call.take();
            answer.map(|response| response.map(|body| TrackedBody { body, call }))
        })
    }
}

struct TrackedBody {
    body: AnswerBody,
    call: Option<CallUnderWay>,
}

impl Body for TrackedBody {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        let this = self.get_mut();
        let frame = Pin::new(&mut this.body).poll_frame(cx);
        if matches!(frame, Poll::Ready(None)) {
            this.call = None;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
