//! Sockets that wait for connections.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::tls::ServerTls;
use crate::urls::Url;

use super::Purpose;
use super::descriptors::connections_max;
use super::threads::{Accepted, RpcThread, Security, Transport};

/// Connections that the kernel keeps for us.
const BACKLOG: i32 = 1024;
/// etcd's TCP keepalive (`client/pkg/transport/keepalive_listener.go`).
const TCP_KEEPALIVE: Duration = Duration::from_secs(30);
/// How long to wait when the process has no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Something to listen on.
pub struct Endpoint {
    pub url: Url,
    pub purpose: Purpose,
    /// Must be there for `https` and `unixs`.
    pub tls: Option<Arc<ServerTls>>,
}

impl Endpoint {
    fn is_secure(&self) -> bool {
        self.url.scheme().is_secure()
    }

    /// Whether clients reach both at one socket, whatever they speak there.
    fn shares_socket_with(&self, other: &Endpoint) -> bool {
        let is_tcp = |endpoint: &Endpoint| !endpoint.url.scheme().is_unix();
        matches!(self.purpose, Purpose::Client | Purpose::ClientHttp)
            && self.purpose == other.purpose
            && is_tcp(self)
            && is_tcp(other)
            && self.url.authority() == other.url.authority()
    }
}

/// Options of all sockets.
#[derive(Clone, Copy, Debug, Default)]
pub struct ListenOptions {
    /// `--socket-reuse-port`.
    pub reuse_port: bool,
}

/// Why a URL cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// In Go's words, which people and tools search for.
    #[error("listen {network} {address}: bind: {}", client::io_reason(source))]
    Bind { network: &'static str, address: String, source: io::Error },
    #[error("listen on {url}: a certificate and a key are needed")]
    NoTls { url: String },
    /// In etcd's words.
    #[error(
        "file descriptor limit of etcd process is too low; please set higher: {limit} (ulimit -n, LimitNOFILE=)"
    )]
    FewDescriptors { limit: u64 },
}

impl BindError {
    fn new(url: &Url, source: io::Error) -> Self {
        let (network, address) = match socket_address(url) {
            _ if url.scheme().is_unix() => ("unix", url.socket_path()),
            Ok(address) => ("tcp", address.to_string()),
            Err(_) => ("tcp", url.authority().to_owned()),
        };
        Self::Bind { network, address, source }
    }
}

/// Sockets that are bound and not yet served.
pub struct Listeners {
    bound: Vec<Listener>,
    /// Connections that each serves at a time; more wait in the kernel.
    connections_max: usize,
}

struct Listener {
    socket: Bound,
    purpose: Purpose,
    security: Security,
}

enum Bound {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

impl Listeners {
    /// Binds all of them.
    ///
    /// # Errors
    /// At the first that cannot be bound, for one because another process has its port; or when the process
    /// may open too few files.
    pub fn bind(
        endpoints: impl IntoIterator<Item = Endpoint>,
        options: ListenOptions,
    ) -> Result<Self, BindError> {
        let endpoints: Vec<Endpoint> = endpoints.into_iter().collect();
        let mut bound = Vec::new();
        for (at, endpoint) in endpoints.iter().enumerate() {
            let shared = |others: &[Endpoint], is_secure| {
                let same = |other: &&Endpoint| other.shares_socket_with(endpoint);
                others.iter().filter(same).any(|other| other.is_secure() == is_secure)
            };
            let (before, all) = (&endpoints[..at], &endpoints);
            if shared(before, true) || shared(before, false) {
                continue;
            }
            let plain = !endpoint.is_secure() || shared(all, false);
            let secure = endpoint.is_secure() || shared(all, true);
            let security = match (secure, endpoint.tls.clone()) {
                (false, _) => Security::Plain,
                (true, Some(tls)) if plain => Security::Either(tls),
                (true, Some(tls)) => Security::Tls(tls),
                (true, None) => {
                    return Err(BindError::NoTls { url: endpoint.url.to_string() });
                }
            };
            let socket = bind(&endpoint.url, options)
                .map_err(|source| BindError::new(&endpoint.url, source))?;
            bound.push(Listener { socket, purpose: endpoint.purpose, security });
        }
        let connections_max = connections_max(bound.len())?;
        Ok(Self { bound, connections_max })
    }

    /// The addresses that TCP listeners have, in the order of the endpoints; a test binds port 0.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let address = |listener: &Listener| match &listener.socket {
            Bound::Tcp(socket) => socket.local_addr().ok(),
            Bound::Unix(_) => None,
        };
        self.bound.iter().filter_map(address).collect()
    }

    /// Accepts until `stop`, and deals the connections out to `threads`.
    ///
    /// # Errors
    /// When a socket cannot be handed to the runtime.
    pub async fn run(self, threads: Vec<RpcThread>, stop: CancellationToken) -> io::Result<()> {
        let threads = Arc::new(threads);
        let mut acceptors = JoinSet::new();
        for Listener { socket, purpose, security } in self.bound {
            let socket = match socket {
                Bound::Tcp(listener) => Incoming::Tcp(TcpListener::from_std(listener)?),
                Bound::Unix(listener) => Incoming::Unix(UnixListener::from_std(listener)?),
            };
            let slots = Arc::new(Semaphore::new(self.connections_max));
            let acceptor = Acceptor { socket, purpose, security, slots };
            acceptors.spawn(acceptor.run(threads.clone(), stop.clone()));
        }
        while acceptors.join_next().await.is_some() {}
        Ok(())
    }
}

enum Incoming {
    Tcp(TcpListener),
    Unix(UnixListener),
}

struct Acceptor {
    socket: Incoming,
    purpose: Purpose,
    security: Security,
    slots: Arc<Semaphore>,
}

impl Acceptor {
    async fn run(self, threads: Arc<Vec<RpcThread>>, stop: CancellationToken) {
        loop {
            let next = async {
                let slot = self.slots.clone().acquire_owned().await.map_err(io::Error::other)?;
                Ok::<_, io::Error>((self.accept().await?, slot))
            };
            let (transport, slot) = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                accepted = next => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        // A connection that died in the queue is nobody's problem; no descriptors
                        // left is, and goes away when others close.
                        tracing::warn!(%error, "accept failed");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                },
            };
            let (purpose, security) = (self.purpose, self.security.clone());
            let accepted = Accepted { transport, purpose, security, slot };
            let quietest = threads.iter().min_by_key(|thread| thread.connections());
            if let Some(thread) = quietest {
                thread.hand_over(accepted).await;
            }
        }
    }

    async fn accept(&self) -> io::Result<Transport> {
        match &self.socket {
            Incoming::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                let keepalive =
                    TcpKeepalive::new().with_time(TCP_KEEPALIVE).with_interval(TCP_KEEPALIVE);
                socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
                Ok(Transport::Tcp(stream.into_std()?))
            }
            Incoming::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok(Transport::Unix(stream.into_std()?))
            }
        }
    }
}

fn bind(url: &Url, options: ListenOptions) -> io::Result<Bound> {
    if url.scheme().is_unix() {
        let path = url.socket_path();
        // etcd removes what an earlier process left behind; a live one would be cut off, but two
        // servers of one socket are kept apart by the lock on the data directory.
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = std::os::unix::net::UnixListener::bind(&path)?;
        listener.set_nonblocking(true)?;
        return Ok(Bound::Unix(listener));
    }
    bind_tcp(socket_address(url)?, options).map(Bound::Tcp)
}

/// The unspecified address of either family means both, as in Go.
///
/// # Errors
/// The system's.
pub(crate) fn bind_tcp(
    address: SocketAddr,
    options: ListenOptions,
) -> io::Result<std::net::TcpListener> {
    if address.ip().is_unspecified() {
        let both = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), address.port());
        match bind_family(both, options) {
            Err(error) if address.is_ipv4() && has_no_ipv6(&error) => {}
            bound => return bound,
        }
    }
    bind_family(address, options)
}

fn bind_family(address: SocketAddr, options: ListenOptions) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if options.reuse_port {
        socket.set_reuse_port(true)?;
    }
    if let IpAddr::V6(ip) = address.ip() {
        socket.set_only_v6(!ip.is_unspecified())?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Whether the kernel said that it speaks no IPv6, or has it turned off.
fn has_no_ipv6(error: &io::Error) -> bool {
    let number = error.raw_os_error().map(rustix::io::Errno::from_raw_os_error);
    matches!(number, Some(rustix::io::Errno::AFNOSUPPORT | rustix::io::Errno::ADDRNOTAVAIL))
}

fn socket_address(url: &Url) -> io::Result<SocketAddr> {
    let invalid = |text: &str| io::Error::new(io::ErrorKind::InvalidInput, text.to_owned());
    let port = url.port().parse().map_err(|_| invalid("the port is not a number up to 65535"))?;
    let ip = match url.host() {
        "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
        host => host.parse().map_err(|_| invalid("the host is not an IP address"))?,
    };
    Ok(SocketAddr::new(ip, port))
}
