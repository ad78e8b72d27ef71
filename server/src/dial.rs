//! Connecting to other members: TCP or unix sockets, with TLS where the URL says `https` or `unixs`.
//!
//! The TLS configuration is asked for at every connection, so that renewed certificates are used
//! without a restart.
//!
//! With feature gate SetMemberLocalAddr connections leave from an address that the member advertises,
//! so that firewalls and certificates of other members see the address that they know.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream, UnixStream, lookup_host};
use tokio_rustls::TlsConnector;

use crate::urls::Url;

/// Gives the TLS configuration of the next connection.
pub(crate) type TlsSource = Arc<dyn Fn() -> io::Result<Arc<ClientConfig>> + Send + Sync>;

/// A connection of whatever kind.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Makes connections to members.
#[derive(Clone)]
pub(crate) struct Dialer {
    tls: TlsSource,
    /// The address that TCP connections leave from; the system's choice if none.
    local: Option<IpAddr>,
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

    async fn connect(&self, tls: &TlsSource, local: Option<IpAddr>) -> io::Result<Box<dyn Stream>> {
        match self {
            Target::Tcp { host, port, tls: encrypted } => {
                let stream = match local {
                    Some(local) => connect_from(local, host, *port).await?,
                    None => TcpStream::connect((host.as_str(), *port)).await?,
                };
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

/// Tries the addresses of a host that can be reached from this one, which are those of its family.
async fn connect_from(local: IpAddr, host: &str, port: u16) -> io::Result<TcpStream> {
    let mut failure = io::Error::new(
        io::ErrorKind::AddrNotAvailable,
        format!("host {host:?} has no address that can be reached from local address {local}"),
    );
    let addresses = lookup_host((host, port)).await?;
    for address in addresses.filter(|address| address.is_ipv4() == local.is_ipv4()) {
        let socket = if local.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.bind((local, 0).into())?;
        match socket.connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// The address for [`Dialer::new`] that etcd takes for `SetMemberLocalAddr`: the first that is advertised
/// to members as an address, and neither loopback nor unspecified.
pub(crate) fn local_address(advertised: &[Url]) -> Option<IpAddr> {
    let addresses = advertised.iter().filter_map(|url| url.host().parse::<IpAddr>().ok());
    let address = addresses
        .map(|address| address.to_canonical())
        .find(|address| !address.is_loopback() && !address.is_unspecified());
    match address {
        Some(address) => tracing::info!("LocalAddr" = %address, "setting member local address"),
        None => tracing::warn!(
            "unable to set a member local address due to lack of suitable local addresses"
        ),
    }
    address
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
    pub(crate) fn new(tls: TlsSource, local: Option<IpAddr>) -> Self {
        Self { tls, local }
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
            local: self.local,
            next: Arc::new(AtomicUsize::new(0)),
        })
    }
}

/// Connects to one member.
#[derive(Clone)]
pub(crate) struct Connector {
    targets: Arc<Vec<Target>>,
    tls: TlsSource,
    local: Option<IpAddr>,
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
            match target.connect(&this.tls, this.local).await {
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

    #[test]
    fn the_local_address_is_the_first_advertised_one_that_others_could_reach() {
        let cases = [
            ("http://127.0.0.1:1,http://10.0.0.1:1,http://10.0.0.2:1", Some("10.0.0.1")),
            ("http://0.0.0.0:1,http://[::]:1,http://[::1]:1,http://[fd00::1]:1", Some("fd00::1")),
            ("http://m1.test:1,https://192.168.0.7:1", Some("192.168.0.7")),
            // etcd does not look at the scheme.
            ("unix:///run/peer.sock,unix://10.0.0.1:1", Some("10.0.0.1")),
            ("unix:///run/peer.sock", None),
            ("http://127.0.0.2:1,http://localhost:1,http://[::ffff:127.0.0.1]:1", None),
        ];
        for (urls, expected) in cases {
            let urls: Vec<Url> = urls.split(',').map(|url| url.parse().unwrap()).collect();
            let expected = expected.map(|address| address.parse().unwrap());
            assert_eq!(local_address(&urls), expected, "{urls:?}");
        }
    }

    #[tokio::test]
    async fn connections_leave_from_the_local_address() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let local = "127.0.0.9".parse().unwrap();
        let stream = connect_from(local, "127.0.0.1", port).await.unwrap();
        let (_accepted, from) = listener.accept().await.unwrap();
        assert_eq!((from.ip(), stream.local_addr().unwrap()), (local, from));
        let other_family = connect_from(local, "::1", port).await.unwrap_err();
        assert_eq!(other_family.kind(), io::ErrorKind::AddrNotAvailable);
    }
}
