//! One connection to one server: plain or TLS, TCP or a Unix socket.
//!
//! A dialled connection is used until it is lost and never dials again by itself: the pool decides
//! when to try again, so that a call can tell "never sent" from "sent and lost".

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use crate::config::Config;
use crate::error::{Error, io_reason};
use crate::renewal::RenewedTls;
use crate::tls_reason::tls_reason;

/// The shortest interval between pings that a server tolerates by default.
const MIN_KEEPALIVE_TIME: Duration = Duration::from_secs(10);
/// How long one attempt to connect may take, as in grpc-go.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// The longest page that [`http_get`] reads.
const HTTP_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// How to reach the servers of a client.
#[derive(Clone, Debug)]
pub(crate) struct Dialer {
    tls: Option<Arc<RenewedTls>>,
    keepalive: Option<(Duration, Duration)>,
    keepalive_without_calls: bool,
}

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Address {
    Tcp(String),
    Unix(String),
}

impl Dialer {
    /// Reads the TLS files if TLS will be used.
    pub(crate) fn new(config: &Config) -> Result<Dialer, Error> {
        Self::for_protocol(config, b"h2")
    }

    fn for_protocol(config: &Config, protocol: &'static [u8]) -> Result<Dialer, Error> {
        let scheme = config.endpoints.first().map_or("", |endpoint| scheme(endpoint));
        let options = match scheme {
            "http" => None,
            "https" | "unixs" => Some(config.tls.clone().unwrap_or_default()),
            _ => config.tls.clone(),
        };
        // Settings that cannot work are an error even if `http://` then leaves them unused.
        let tls = match (&config.tls, options) {
            (_, Some(options)) => Some(Arc::new(RenewedTls::new(options, protocol)?)),
            (Some(unused), None) => {
                RenewedTls::new(unused.clone(), protocol)?;
                None
            }
            (None, None) => None,
        };
        let keepalive = config.keepalive_time.map(|time| {
            (time.max(MIN_KEEPALIVE_TIME), config.keepalive_timeout.unwrap_or(CONNECT_TIMEOUT))
        });
        let keepalive_without_calls = config.keepalive_without_calls;
        Ok(Dialer { tls, keepalive, keepalive_without_calls })
    }

    /// Connects to a server. The error is the reason as grpc-go words it.
    pub(crate) async fn dial(&self, endpoint: &str) -> Result<Channel, String> {
        let address = Address::parse(endpoint);
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let invalid =
            |error: &dyn std::fmt::Display| format!("invalid endpoint {endpoint:?}: {error}");
        let origin: Uri = format!("{scheme}://{}", address.authority())
            .parse()
            .map_err(|error: http::uri::InvalidUri| invalid(&error))?;
        // TLS is ours and not tonic's: in a build in which somebody has turned on tonic's, it would
        // refuse to connect to an `https` address without its own settings.
        let mut builder = Endpoint::from_shared(format!("http://{}", address.authority()))
            .map_err(|error| invalid(&error))?
            .origin(origin)
            .connect_timeout(CONNECT_TIMEOUT);
        if let Some((time, timeout)) = self.keepalive {
            builder = builder
                .http2_keep_alive_interval(time)
                .keep_alive_timeout(timeout)
                .keep_alive_while_idle(self.keepalive_without_calls);
        }
        // The stream is opened here and not by the connector, so that its own error can be told and
        // a lost connection stays lost: a connector's stream can be taken only once.
        let (stream, greeted) = Greeted::new(self.open(&address).await?);
        let stream = Arc::new(tokio::sync::Mutex::new(Some(TokioIo::new(stream))));
        let connector = service_fn(move |_: Uri| {
            let stream = stream.clone();
            async move {
                stream.lock().await.take().ok_or_else(|| {
                    io::Error::new(io::ErrorKind::NotConnected, "the connection was lost")
                })
            }
        });
        let channel = builder
            .connect_with_connector(connector)
            .await
            .map_err(|error| format!("connection error: desc = \"transport: {error}\""))?;
        // Until the server has answered the greeting it may not even speak HTTP/2. A greeting that
        // is dropped untold is a connection that ended.
        match greeted.await {
            Ok(Ok(())) => Ok(channel),
            Ok(Err(reason)) => Err(preface_error(&reason)),
            Err(_) => Err(preface_error("EOF")),
        }
    }

    async fn open(&self, address: &Address) -> Result<Box<dyn Stream>, String> {
        let failed = |error: io::Error| {
            format!(
                "connection error: desc = \"transport: Error while dialing: dial {}: connect: {}\"",
                address.describe(),
                io_reason(&error)
            )
        };
        let stream: Box<dyn Stream> = match address {
            Address::Tcp(authority) => {
                let stream = TcpStream::connect(authority).await.map_err(failed)?;
                // Small requests must not wait for more to send.
                stream.set_nodelay(true).map_err(failed)?;
                Box::new(stream)
            }
            Address::Unix(path) => Box::new(UnixStream::connect(path).await.map_err(failed)?),
        };
        let Some(tls) = &self.tls else { return Ok(stream) };
        let name = tls.server_name().map_or_else(|| address.host(), str::to_owned);
        let handshake = |error: String| {
            format!(
                "connection error: desc = \"transport: authentication handshake failed: {error}\""
            )
        };
        let name = ServerName::try_from(name).map_err(|error| handshake(error.to_string()))?;
        let stream = TlsConnector::from(tls.current())
            .connect(name, stream)
            .await
            .map_err(|error| handshake(tls_reason(&error)))?;
        Ok(Box::new(stream))
    }
}

/// Fetches a page of a server that is no gRPC, such as its metrics, in the way its endpoint is
/// reached. HTTP/1.0 is enough: the answer ends with the connection.
pub async fn http_get(config: &Config, endpoint: &str, path: &str) -> Result<String, Error> {
    let of_endpoint = Config { endpoints: vec![endpoint.to_owned()], ..config.clone() };
    let dialer = Dialer::for_protocol(&of_endpoint, b"http/1.1")?;
    let address = Address::parse(endpoint);
    let failed = |reason: String| Error::Http { endpoint: endpoint.to_owned(), reason };
    let fetch = async {
        let mut stream = dialer.open(&address).await?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", address.authority());
        let mut answer = Vec::new();
        let sent = stream.write_all(request.as_bytes()).await;
        sent.map_err(|error| error.to_string())?;
        let mut limited = stream.take(HTTP_BYTES_MAX);
        match limited.read_to_end(&mut answer).await {
            // Not every server ends TLS politely; what it sent is whole by its own account below.
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => Err(error.to_string()),
            _ => Ok(answer),
        }
    };
    let answer = tokio::time::timeout(CONNECT_TIMEOUT, fetch)
        .await
        .map_err(|_| failed("no answer".to_owned()))?
        .map_err(failed)?;
    let text = String::from_utf8_lossy(&answer).into_owned();
    let status = text.lines().next().unwrap_or_default().to_owned();
    match text.split_once("\r\n\r\n") {
        Some((_, body)) if status.split(' ').nth(1) == Some("200") => Ok(body.to_owned()),
        _ => Err(failed(format!("it answers {status:?}"))),
    }
}

fn preface_error(reason: &str) -> String {
    format!("connection error: desc = \"error reading server preface: {reason}\"")
}

/// A stream that tells when the server has sent its greeting, which in HTTP/2 is a SETTINGS frame
/// (RFC 9113 section 3.4).
struct Greeted {
    stream: Box<dyn Stream>,
    head: Vec<u8>,
    tell: Option<oneshot::Sender<Result<(), String>>>,
}

/// A frame's header is three bytes of length and one of type; SETTINGS is type four.
const FRAME_TYPE: usize = 3;
const SETTINGS: u8 = 4;

impl Greeted {
    fn new(stream: Box<dyn Stream>) -> (Greeted, oneshot::Receiver<Result<(), String>>) {
        let (tell, told) = oneshot::channel();
        (Greeted { stream, head: Vec::new(), tell: Some(tell) }, told)
    }

    fn note(&mut self, read: &[u8]) {
        let missing = (FRAME_TYPE + 1).saturating_sub(self.head.len());
        self.head.extend_from_slice(&read[..missing.min(read.len())]);
        let result = match self.head.get(FRAME_TYPE) {
            None if read.is_empty() => Err("EOF".to_owned()),
            None => return,
            Some(&SETTINGS) => Ok(()),
            Some(_) => Err("this is not HTTP/2".to_owned()),
        };
        if let Some(tell) = self.tell.take() {
            // Nobody listens when the dial was given up.
            let _ = tell.send(result);
        }
    }
}

impl AsyncRead for Greeted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        if self.tell.is_some() {
            self.note(&buffer.filled()[before..]);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Greeted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// Any byte stream that HTTP/2 can run over.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Address {
    /// Never fails: what is no address is found out when it is dialled, as in clientv3.
    fn parse(endpoint: &str) -> Address {
        for prefix in ["unixs://", "unix://", "unixs:", "unix:"] {
            if let Some(path) = endpoint.strip_prefix(prefix) {
                return Address::Unix(path.to_owned());
            }
        }
        let rest = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest);
        Address::Tcp(rest.split('/').next().unwrap_or(rest).to_owned())
    }

    fn authority(&self) -> &str {
        match self {
            Address::Tcp(authority) => authority,
            Address::Unix(_) => "localhost",
        }
    }

    fn host(&self) -> String {
        match self {
            Address::Tcp(authority) => {
                let host = authority.rsplit_once(':').map_or(authority.as_str(), |(host, _)| host);
                host.trim_start_matches('[').trim_end_matches(']').to_owned()
            }
            Address::Unix(path) => path.rsplit('/').next().unwrap_or(path).to_owned(),
        }
    }

    fn describe(&self) -> String {
        match self {
            Address::Tcp(authority) => format!("tcp {authority}"),
            Address::Unix(path) => format!("unix {path}"),
        }
    }
}

fn scheme(endpoint: &str) -> &str {
    match endpoint.split_once(':') {
        Some((scheme @ ("http" | "https" | "unix" | "unixs"), _)) => scheme,
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_with_and_without_a_scheme() {
        let tcp = |text: &str| Address::Tcp(text.to_owned());
        for (endpoint, address, host) in [
            ("127.0.0.1:2379", tcp("127.0.0.1:2379"), "127.0.0.1"),
            ("http://a.example:2379", tcp("a.example:2379"), "a.example"),
            ("https://[::1]:2379/", tcp("[::1]:2379"), "::1"),
            ("unix:///run/etcd.sock", Address::Unix("/run/etcd.sock".to_owned()), "etcd.sock"),
            ("unix:etcd.sock", Address::Unix("etcd.sock".to_owned()), "etcd.sock"),
        ] {
            assert_eq!(Address::parse(endpoint), address, "{endpoint}");
            assert_eq!(address.host(), host, "{endpoint}");
        }
        assert_eq!(scheme("localhost:2379"), "");
    }
}
