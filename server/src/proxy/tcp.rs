//! `etcd gateway start`: passes TCP connections on to the members, byte for byte.
//!
//! A connection goes to one member for as long as it lives. A member that does not accept one is left
//! out, and tried again after `--retry-delay`; the client does not notice as long as another member
//! works. When either side ends a connection, the other one is ended too.

use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use client::SrvTarget;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, copy_buf};
use tokio::net::{TcpListener, TcpStream};

use crate::listen::{ListenOptions, bind_tcp};
use crate::ops::notify;
use crate::ops::signals::Terminations;

use super::command::Values;
use super::remotes::Remotes;
use super::{Refusal, endpoints};

/// What `--retry-delay=0` means.
const RETRY_DELAY_UNSET: Duration = Duration::from_secs(300);
/// How long a member may take to accept a connection. etcd waits for the operating system, which is
/// two minutes for a host that is gone.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// How soon a silent connection is looked after, as Go does for all of its connections.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// How much is read at a time.
const BUFFER_BYTES: usize = 64 << 10;
/// How long accepting pauses when the process has no room for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Runs the gateway until a signal ends it.
pub(super) fn start(values: &Values) -> Result<(), Refusal> {
    let listen = values.text("listen-addr");
    let targets = targets(values)?;
    check_loops(listen, &targets)?;
    if targets.is_empty() {
        return Err(Refusal::Printed("no endpoints found\n".to_owned()));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Refusal::Complained(error.to_string()))?;
    runtime.block_on(async {
        let listener = bind(listen).map_err(|error| {
            let reason = client::io_reason(&error);
            Refusal::Complained(format!("listen tcp {listen}: bind: {reason}"))
        })?;
        if let Err(error) = notify::ready() {
            tracing::warn!(%error, "failed to notify systemd for readiness");
        }
        let names: Vec<String> = targets.iter().map(|it| joined(&it.host, it.port)).collect();
        let retry_delay = match values.duration("retry-delay") {
            Duration::ZERO => RETRY_DELAY_UNSET,
            delay => delay,
        };
        let gateway = Arc::new(Gateway { remotes: Mutex::new(Remotes::new(targets)), retry_delay });
        tracing::info!(endpoints = ?names, "ready to proxy client requests");
        let mut told = Terminations::listen()
            .map_err(|error| Refusal::Complained(format!("listen for signals: {error}")))?;
        tokio::select! {
            signal = told.next() => tracing::info!(signal, "received signal; shutting down"),
            () = gateway.clone().accept(listener) => {}
            () = gateway.watch_inactive() => {}
        }
        Ok(())
    })
}

/// The members, from DNS or from `--endpoints`.
fn targets(values: &Values) -> Result<Vec<SrvTarget>, Refusal> {
    let discovered = endpoints::discover(values, "trusted-ca-file")?;
    if !discovered.is_empty() {
        return Ok(discovered.into_iter().map(|found| found.target).collect());
    }
    let given = values.list("endpoints");
    given
        .iter()
        .map(|endpoint| {
            let (host, port) = split_host_port(without_scheme(endpoint)).ok_or_else(|| {
                let endpoint = without_scheme(endpoint);
                Refusal::Printed(format!("error parsing endpoint {endpoint:?}"))
            })?;
            let port = port.parse().unwrap_or(0);
            Ok(SrvTarget { priority: 0, weight: 0, port, host: host.to_owned() })
        })
        .collect()
}

/// A gateway whose own address were among the members would connect to itself for ever.
fn check_loops(listen: &str, targets: &[SrvTarget]) -> Result<(), Refusal> {
    let refuse = |text: String| Err(Refusal::Printed(format!("{text}\n")));
    let Some((host, port)) = split_host_port(listen) else {
        return refuse(format!("failed to validate listen address: {listen}"));
    };
    let Some(own) = addresses(host) else {
        return refuse(format!("failed to resolve listen host: {host}"));
    };
    for target in targets {
        let Some(found) = addresses(&target.host) else {
            return refuse(format!("failed to resolve endpoint host: {}", target.host));
        };
        if target.port.to_string() != port {
            continue;
        }
        if let Some(address) = found.iter().find(|address| own.contains(address)) {
            return refuse(format!(
                "SRV or endpoint ({}:{}->{address}:{}) should not resolve to the gateway listen \
                 addr ({listen})",
                target.host, target.port, target.port
            ));
        }
    }
    Ok(())
}

/// The first address of the name that can be bound.
fn bind(listen: &str) -> io::Result<TcpListener> {
    let mut refused = io::ErrorKind::AddrNotAvailable.into();
    for address in listen.to_socket_addrs()? {
        match bind_tcp(address, ListenOptions::default()) {
            Ok(listener) => return TcpListener::from_std(listener),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

fn addresses(host: &str) -> Option<Vec<IpAddr>> {
    // Go looks nothing up for an empty name, which the system's resolver takes for this host.
    let found = (!host.is_empty()).then(|| (host, 0).to_socket_addrs().ok())??;
    Some(found.map(|address| address.ip()).collect())
}

fn without_scheme(endpoint: &str) -> &str {
    match endpoint.split_once("://") {
        None => endpoint,
        Some((_, rest)) => rest.split(['/', '?', '#']).next().unwrap_or(rest),
    }
}

/// Go's `net.SplitHostPort`, which leaves the port alone.
fn split_host_port(address: &str) -> Option<(&str, &str)> {
    let (host, port) = address.rsplit_once(':')?;
    match host.strip_prefix('[') {
        Some(inner) => Some((inner.strip_suffix(']')?, port)),
        None => (!host.contains(':')).then_some((host, port)),
    }
}

fn joined(host: &str, port: u16) -> String {
    match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}

struct Gateway {
    // A std mutex: held to choose and to note, never across an await.
    remotes: Mutex<Remotes>,
    retry_delay: Duration,
}

impl Gateway {
    fn remotes(&self) -> MutexGuard<'_, Remotes> {
        self.remotes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn accept(self: Arc<Self>, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((client, _)) => {
                    tokio::spawn(self.clone().serve(client));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn serve(self: Arc<Self>, client: TcpStream) {
        let Some(member) = self.connect().await else { return };
        for stream in [&client, &member] {
            // They only make the connection better; without them it works as well.
            let _ = stream.set_nodelay(true);
            let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
            let _ = SockRef::from(stream).set_tcp_keepalive(&keepalive);
        }
        let (client_reads, client_writes) = client.into_split();
        let (member_reads, member_writes) = member.into_split();
        tokio::select! {
            () = pass_on(client_reads, member_writes) => {}
            () = pass_on(member_reads, client_writes) => {}
        }
    }

    /// A connection to a member that works; nothing if none does.
    async fn connect(&self) -> Option<TcpStream> {
        loop {
            let (number, (host, port)) = {
                let mut remotes = self.remotes();
                let number = remotes.pick(|below| rand::random_range(0..below))?;
                (number, remotes.address(number))
            };
            match dial(&host, port).await {
                Ok(stream) => return Some(stream),
                Err(error) => {
                    self.remotes().set_active(number, false);
                    let (address, interval) = (joined(&host, port), self.retry_delay);
                    tracing::warn!(address, ?interval, %error, "deactivated endpoint");
                }
            }
        }
    }

    /// Tries the members that are left out, all at once, each time the delay has passed.
    async fn watch_inactive(self: Arc<Self>) {
        loop {
            tokio::time::sleep(self.retry_delay).await;
            let inactive = self.remotes().inactive();
            for number in inactive {
                tokio::spawn(self.clone().try_again(number));
            }
        }
    }

    async fn try_again(self: Arc<Self>, number: usize) {
        let (host, port) = self.remotes().address(number);
        let address = joined(&host, port);
        match dial(&host, port).await {
            Ok(_) => {
                self.remotes().set_active(number, true);
                tracing::info!(address, "activated");
            }
            Err(error) => {
                let interval = self.retry_delay;
                tracing::warn!(
                    address,
                    ?interval,
                    %error,
                    "failed to activate endpoint (stay inactive for another interval)"
                );
            }
        }
    }
}

async fn dial(host: &str, port: u16) -> io::Result<TcpStream> {
    let dialled = tokio::time::timeout(DIAL_TIMEOUT, TcpStream::connect((host, port))).await;
    dialled.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "i/o timeout")))
}

/// Everything that comes, until the end or a failure of either side.
async fn pass_on(from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
    let mut from = BufReader::with_capacity(BUFFER_BYTES, from);
    // Whichever side failed, both connections are over; nobody is left to be told.
    let _ = copy_buf(&mut from, &mut to).await;
    let _ = to.shutdown().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_hosts_and_ports_whatever_stands_around_them() {
        for (text, expected) in [
            ("127.0.0.1:2379", Some(("127.0.0.1", "2379"))),
            ("http://m1.example:2379/", Some(("m1.example", "2379"))),
            ("https://[::1]:2379", Some(("::1", "2379"))),
            ("foo", None),
            ("::1:2379", None),
        ] {
            assert_eq!(split_host_port(without_scheme(text)), expected, "{text}");
        }
    }

    #[test]
    fn cve_2020_15114_a_gateway_does_not_lead_to_itself() {
        let target = SrvTarget { priority: 0, weight: 0, port: 23790, host: "127.0.0.1".into() };
        let error = check_loops("127.0.0.1:23790", std::slice::from_ref(&target)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "SRV or endpoint (127.0.0.1:23790->127.0.0.1:23790) should not resolve to the gateway \
             listen addr (127.0.0.1:23790)\n"
        );
        assert!(check_loops("127.0.0.1:23791", &[target]).is_ok());
        let error = check_loops(":23790", &[]).unwrap_err();
        assert_eq!(error.to_string(), "failed to resolve listen host: \n");
    }
}
