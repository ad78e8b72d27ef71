//! One connection: handshake, protocol, requests, farewell.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::config::ListenConfig;
use crate::tls::{PeerIdentity, ServerTls};

use super::coalesce::Coalescing;
use super::dispatch::AnswerFuture;
use super::{Purpose, Services};

/// How long a TLS handshake may take; etcd has the same limit (`transport/listener_tls.go`).
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
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
}

impl ConnectionSettings {
    /// As the flags say.
    pub fn of(config: &ListenConfig) -> Self {
        Self {
            streams_max: config.streams_max,
            keepalive_interval: config.keepalive_interval,
            keepalive_timeout: config.keepalive_timeout,
        }
    }
}

/// Who is at the other end; handlers find it among the extensions of a request.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    /// None on a unix socket.
    pub remote: Option<SocketAddr>,
    pub purpose: Purpose,
    pub secure: bool,
    /// What the client's verified certificate says.
    pub identity: Option<Arc<PeerIdentity>>,
}

/// Where a connection comes from.
pub(super) struct Remote {
    address: Option<SocketAddr>,
    purpose: Purpose,
}

impl Remote {
    pub(super) fn of(stream: &TcpStream, purpose: Purpose) -> Self {
        Self { address: stream.peer_addr().ok(), purpose }
    }

    pub(super) fn unix(purpose: Purpose) -> Self {
        Self { address: None, purpose }
    }
}

/// Serves one connection to its end.
pub(super) async fn serve<S>(
    stream: S,
    remote: Remote,
    tls: Option<Arc<ServerTls>>,
    services: Services,
    settings: &ConnectionSettings,
    handshakes: Arc<Semaphore>,
    stop: CancellationToken,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut info = ConnectionInfo {
        remote: remote.address,
        purpose: remote.purpose,
        secure: tls.is_some(),
        identity: None,
    };
    let Some(tls) = tls else {
        return speak(stream, info, services, settings, stop).await;
    };
    let stream = {
        let _turn = handshakes.acquire_owned().await.map_err(io::Error::other)?;
        let handshake = TlsAcceptor::from(tls.current()).accept(stream);
        let timed = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await;
        timed.map_err(|_| io::Error::from(io::ErrorKind::TimedOut)).flatten()
    };
    let stream = stream.inspect_err(|error| rejected(&info, &error.to_string()))?;
    let (_, session) = stream.get_ref();
    info.identity = session.peer_certificates().and_then(PeerIdentity::of).map(Arc::new);
    if let Err(reason) = check_identity(&tls, &info).await {
        rejected(&info, &reason);
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, reason));
    }
    speak(stream, info, services, settings, stop).await
}

/// etcd's text, which operators search for (`embed/etcd.go`).
fn rejected(info: &ConnectionInfo, error: &str) {
    let remote = info.remote.map(|address| address.to_string()).unwrap_or_default();
    tracing::warn!("remote-addr" = remote, error, "rejected connection");
}

async fn check_identity(tls: &ServerTls, info: &ConnectionInfo) -> Result<(), String> {
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
    let service = ConnectionService { services, info };
    let connection = builder.serve_connection(TokioIo::new(Coalescing::new(stream)), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        biased;
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        ended = connection.as_mut() => ended,
    };
    ended.map_err(io::Error::other)
}

fn builder(settings: &ConnectionSettings) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    let mut http2 = builder.http2();
    http2
        .timer(TokioTimer::new())
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

struct ConnectionService {
    services: Services,
    info: ConnectionInfo,
}

impl Service<Request<Incoming>> for ConnectionService {
    type Response = http::Response<super::dispatch::AnswerBody>;
    type Error = std::convert::Infallible;
    type Future = AnswerFuture;

    fn call(&self, mut request: Request<Incoming>) -> AnswerFuture {
        request.extensions_mut().insert(self.info.clone());
        self.services.call(request)
    }
}
