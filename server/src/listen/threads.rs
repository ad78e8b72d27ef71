//! Threads that serve connections, each with a runtime of its own.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::tls::ServerTls;

use super::connection::{ConnectionSettings, HANDSHAKE_TIMEOUT, Remote, serve};
use super::descriptors::handshakes_max;
use super::handshakes::{Handshake, Handshakes};
use super::{Purpose, Services};

/// Accepted connections that wait for a thread; the acceptor waits when there are more.
const HAND_OVER_QUEUE: usize = 256;

/// What one thread serves, by the purpose of the listener.
pub type ServiceSet = BTreeMap<Purpose, Services>;

/// A socket on its way to a thread.
pub(super) struct Accepted {
    pub(super) transport: Transport,
    pub(super) purpose: Purpose,
    pub(super) security: Security,
    /// Held as long as the connection.
    pub(super) slot: OwnedSemaphorePermit,
}

pub(super) enum Transport {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

/// What is spoken on a socket.
#[derive(Clone)]
pub(super) enum Security {
    Plain,
    Tls(Arc<ServerTls>),
    /// Each client as it likes: `http` and `https` at one address (etcd: `embed/serve.go`, cmux).
    Either(Arc<ServerTls>),
}

impl Security {
    /// Whether this client speaks TLS: what it begins with is a record of a handshake then.
    async fn of(
        self,
        stream: &TcpStream,
        handshakes: &Arc<Handshakes>,
    ) -> io::Result<Option<(Arc<ServerTls>, Handshake)>> {
        const HANDSHAKE_RECORD: u8 = 22;
        let Self::Either(tls) = self else { return Ok(self.of_unix(handshakes)) };
        // Who says nothing at all keeps silent in a handshake, as far as anybody knows.
        let handshake = handshakes.begin();
        let mut first = [0];
        handshake.within(HANDSHAKE_TIMEOUT, stream.peek(&mut first)).await??;
        Ok((first == [HANDSHAKE_RECORD]).then_some((tls, handshake)))
    }

    /// A path names a socket of one kind.
    fn of_unix(self, handshakes: &Arc<Handshakes>) -> Option<(Arc<ServerTls>, Handshake)> {
        match self {
            Self::Plain => None,
            Self::Tls(tls) | Self::Either(tls) => Some((tls, handshakes.begin())),
        }
    }
}

/// The way to one serving thread.
#[derive(Clone)]
pub struct RpcThread {
    queue: mpsc::Sender<Accepted>,
    connections: Arc<AtomicUsize>,
}

impl RpcThread {
    /// A thread's end for acceptors and its end for the thread itself, which must be run on a
    /// current-thread runtime: this is how the runtime that Raft has can serve the peers.
    pub fn pair(services: ServiceSet, settings: ConnectionSettings) -> (Self, Serving) {
        let (queue, arrivals) = mpsc::channel(HAND_OVER_QUEUE);
        let connections = Arc::new(AtomicUsize::new(0));
        let serving = Serving { arrivals, connections: connections.clone(), services, settings };
        (Self { queue, connections }, serving)
    }

    pub(super) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    pub(super) async fn hand_over(&self, accepted: Accepted) {
        self.connections.fetch_add(1, Ordering::Relaxed);
        if self.queue.send(accepted).await.is_err() {
            self.connections.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The serving end of an [`RpcThread`].
pub struct Serving {
    arrivals: mpsc::Receiver<Accepted>,
    connections: Arc<AtomicUsize>,
    services: ServiceSet,
    settings: ConnectionSettings,
}

impl Serving {
    /// Serves until `stop`, then drains: clients are told to go away, calls under way may end within
    /// `grace`, what is left is cut off.
    pub async fn run(mut self, stop: CancellationToken, grace: Duration) {
        let mut serving = JoinSet::new();
        let handshakes = Handshakes::new(handshakes_max());
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(_) = serving.join_next(), if !serving.is_empty() => {}
                arrived = self.arrivals.recv() => match arrived {
                    Some(accepted) => {
                        let connection = self.connection(accepted, &stop, handshakes.clone());
                        serving.spawn(connection);
                    }
                    None => break,
                },
            }
        }
        self.arrivals.close();
        let drained = async { while serving.join_next().await.is_some() {} };
        if tokio::time::timeout(grace, drained).await.is_err() {
            tracing::info!("connections were cut off after the grace period");
        }
    }

    fn connection(
        &self,
        accepted: Accepted,
        stop: &CancellationToken,
        handshakes: Arc<Handshakes>,
    ) -> impl Future<Output = ()> + Send + 'static {
        let counted = Counted { connections: self.connections.clone(), _slot: accepted.slot };
        let services = self.services.get(&accepted.purpose).cloned().unwrap_or_default();
        let settings = self.settings.clone();
        let (stop, security, purpose) = (stop.clone(), accepted.security, accepted.purpose);
        let served = async move {
            match accepted.transport {
                Transport::Tcp(stream) => {
                    let stream = TcpStream::from_std(stream)?;
                    let remote = Remote::of(&stream, purpose);
                    let tls = security.of(&stream, &handshakes).await?;
                    serve(stream, remote, tls, services, &settings, stop).await
                }
                Transport::Unix(stream) => {
                    let (stream, remote) = (UnixStream::from_std(stream)?, Remote::unix(purpose));
                    let tls = security.of_unix(&handshakes);
                    serve(stream, remote, tls, services, &settings, stop).await
                }
            }
        };
        async move {
            let _counted = counted;
            if let Err(error) = served.await {
                tracing::debug!(%error, "connection ended");
            }
        }
    }
}

struct Counted {
    connections: Arc<AtomicUsize>,
    _slot: OwnedSemaphorePermit,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// All threads that serve clients.
pub struct RpcThreads {
    threads: Vec<RpcThread>,
    joins: Vec<JoinHandle<()>>,
}

impl RpcThreads {
    /// Starts `count` threads. `services` is called on each of them, inside its runtime, so that what
    /// it makes may spawn tasks there.
    ///
    /// # Errors
    /// When the system refuses a thread or a runtime.
    pub fn start(
        count: usize,
        services: Arc<dyn Fn(usize) -> ServiceSet + Send + Sync>,
        settings: &ConnectionSettings,
        stop: &CancellationToken,
        grace: Duration,
    ) -> io::Result<Self> {
        let (mut threads, mut joins) = (Vec::new(), Vec::new());
        for index in 0..count {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let (services, settings, stop) = (services.clone(), settings.clone(), stop.clone());
            let (ready, thread) = std::sync::mpsc::sync_channel(1);
            let work = move || {
                runtime.block_on(async move {
                    let (thread, serving) = RpcThread::pair(services(index), settings);
                    if ready.send(thread).is_ok() {
                        serving.run(stop, grace).await;
                    }
                });
            };
            joins.push(std::thread::Builder::new().name(format!("rpc-{index}")).spawn(work)?);
            threads.push(thread.recv().map_err(io::Error::other)?);
        }
        Ok(Self { threads, joins })
    }

    /// The threads' ends for acceptors.
    pub fn handles(&self) -> Vec<RpcThread> {
        self.threads.clone()
    }

    /// Waits until every thread has drained; call it off the runtimes.
    pub fn join(self) {
        drop(self.threads);
        for join in self.joins {
            if join.join().is_err() {
                tracing::error!("an RPC thread panicked");
            }
        }
    }
}
