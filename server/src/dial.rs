//! Connecting to other members: TCP or unix sockets, with TLS where the URL says `https` or `unixs`.
//!
//! The TLS configuration is asked for at every connection, so that renewed certificates are used
//! without a restart.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

/// Gives the TLS configuration of the next connection.
pub(crate) type TlsSource = Arc<dyn Fn() -> io::Result<Arc<ClientConfig>> + Send + Sync>;

/// A connection of whatever kind.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Makes connections to members.
#[derive(Clone)]
pub(crate) struct Dialer {
    tls: TlsSource,
}

/// Where one URL points.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
    Tcp { host: String, port: u16, tls: bool },
    Unix { path: String, tls: bool },
}

impl Target {
    fn parse(url: &str) -> io::Result<Self> {
        let invalid = || {
            io::Error::new(io::ErrorKind::InvalidInput, format!("cannot connect to URL {url:?}"))
        };
        let (scheme, rest) = url.split_once("://").ok_or_else(invalid)?;
        let tls = scheme == "https" || scheme == "unixs";
        if scheme.starts_with("unix") {
            return Ok(Target::Unix { path: rest.to_owned(), tls });
        }
        let authority = rest.split('/').next().unwrap_or(rest);
        let (host, port) = authority.rsplit_once(':').ok_or_else(invalid)?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Target::Tcp { host, port: port.parse().map_err(|_| invalid())?, tls })
    }

    async fn connect(&self, tls: &TlsSource) -> io::Result<Box<dyn Stream>> {
        match self {
            Target::Tcp { host, port, tls: encrypted } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                match encrypted {
                    true => encrypt(stream, host, tls).await,
                    false => Ok(Box::new(stream)),
                }
            }
            Target::Unix { path, tls: encrypted } => {
                let stream = UnixStream::connect(path).await?;
                match encrypted {
                    true => encrypt(stream, "localhost", tls).await,
                    false => Ok(Box::new(stream)),
                }
            }
        }
    }
}

async fn encrypt(
    stream: impl Stream + 'static,
    host: &str,
    tls: &TlsSource,
) -> io::Result<Box<dyn Stream>> {
    let name = ServerName::try_from(host.to_owned())
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    let stream = TlsConnector::from(tls()?).connect(name, stream).await?;
    Ok(Box::new(stream))
}

impl Dialer {
    pub(crate) fn new(tls: TlsSource) -> Self {
        Self { tls }
    }

    /// A connector that tries the URLs of one member in turn.
    ///
    /// # Errors
    /// When none of them can be connected to in principle.
    pub(crate) fn connector(&self, urls: &[String]) -> io::Result<Connector> {
        let targets: Vec<Target> =
            urls.iter().map(|url| Target::parse(url)).collect::<Result<_, _>>()?;
        if targets.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the member has no peer URL"));
        }
        Ok(Connector {
            targets: Arc::new(targets),
            tls: self.tls.clone(),
            next: Arc::new(AtomicUsize::new(0)),
        })
    }
}

/// Connects to one member.
#[derive(Clone)]
pub(crate) struct Connector {
    targets: Arc<Vec<Target>>,
    tls: TlsSource,
    /// The URL to try first; it moves on after a failure.
    next: Arc<AtomicUsize>,
}

impl tower::Service<http::Uri> for Connector {
    type Response = TokioIo<Box<dyn Stream>>;
    type Error = io::Error;
    type Future = BoxFuture<'static, Result<Self::Response, io::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Uri) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let first = this.next.load(Ordering::Relaxed);
            let target = &this.targets[first % this.targets.len()];
            match target.connect(&this.tls).await {
                Ok(stream) => Ok(TokioIo::new(stream)),
                Err(error) => {
                    this.next.store(first.wrapping_add(1), Ordering::Relaxed);
                    Err(error)
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_their_targets() {
        let tcp = |host: &str, port, tls| Target::Tcp { host: host.into(), port, tls };
        let cases = [
            ("http://10.0.0.1:2380", Some(tcp("10.0.0.1", 2380, false))),
            ("https://m-0.peers.ns.svc:2380", Some(tcp("m-0.peers.ns.svc", 2380, true))),
            ("http://[::1]:2380", Some(tcp("::1", 2380, false))),
            (
                "unix://run/peer.sock",
                Some(Target::Unix { path: "run/peer.sock".into(), tls: false }),
            ),
            ("http://no-port", None),
            ("nonsense", None),
        ];
        for (url, target) in cases {
            assert_eq!(Target::parse(url).ok(), target, "{url}");
        }
    }
}
