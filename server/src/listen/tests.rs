use std::sync::Arc;
use std::time::Duration;

use http::Response;
use proto::health::health_check_response::ServingStatus;
use proto::health::health_client::HealthClient;
use proto::health::health_server::{Health, HealthServer};
use proto::health::{
    HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::{Request, Status};

use super::*;

/// A gRPC service with a unary call and a stream that never ends.
#[derive(Clone)]
struct Serving;

type Statuses =
    std::pin::Pin<Box<dyn futures_util::Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Health for Serving {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<tonic::Response<HealthCheckResponse>, Status> {
        let info = request.extensions().get::<ConnectionInfo>().expect("the listener put it there");
        assert_eq!(info.purpose, Purpose::Client);
        Ok(tonic::Response::new(HealthCheckResponse { status: ServingStatus::Serving as i32 }))
    }

    async fn list(
        &self,
        _: Request<HealthListRequest>,
    ) -> Result<tonic::Response<HealthListResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    type WatchStream = Statuses;

    async fn watch(
        &self,
        _: Request<HealthCheckRequest>,
    ) -> Result<tonic::Response<Statuses>, Status> {
        Ok(tonic::Response::new(Box::pin(futures_util::stream::pending())))
    }
}

fn services() -> ServiceSet {
    let http: HttpHandler = Arc::new(|request| {
        let text = format!("http {}", request.uri().path());
        Box::pin(async move { Response::new(HttpBody::from(text)) })
    });
    let services = Services {
        grpc: Some(Routes::new(HealthServer::new(Serving))),
        direct: None,
        http: Some(http),
        calls: None,
    };
    ServiceSet::from([(Purpose::Client, services)])
}

fn settings() -> ConnectionSettings {
    ConnectionSettings {
        streams_max: 100,
        keepalive_interval: None,
        keepalive_timeout: None,
        keepalive_min_time: Duration::from_secs(5),
    }
}

struct Server {
    address: std::net::SocketAddr,
    stop: CancellationToken,
    threads: RpcThreads,
    acceptor: tokio::task::JoinHandle<std::io::Result<()>>,
}

fn endpoint(url: &str, tls: Option<Arc<crate::tls::ServerTls>>) -> Endpoint {
    Endpoint { url: url.parse().unwrap(), purpose: Purpose::Client, tls }
}

fn serve(threads: usize, grace: Duration) -> Server {
    let listeners =
        Listeners::bind([endpoint("http://127.0.0.1:0", None)], ListenOptions::default()).unwrap();
    let stop = CancellationToken::new();
    let rpc =
        RpcThreads::start(threads, Arc::new(|_| services()), &settings(), &stop, grace).unwrap();
    Server {
        address: listeners.addresses()[0],
        acceptor: tokio::spawn(listeners.run(rpc.handles(), stop.clone())),
        stop,
        threads: rpc,
    }
}

async fn get(mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8(answer).unwrap()
}

async fn join(server: Server) {
    server.acceptor.await.unwrap().unwrap();
    tokio::task::spawn_blocking(|| server.threads.join()).await.unwrap();
}

#[tokio::test]
async fn grpc_and_http_share_a_port() {
    let server = serve(2, Duration::from_secs(5));
    let answer = get(TcpStream::connect(server.address).await.unwrap(), "/a?b=c").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("http /a"), "{answer}");
    let mut client = HealthClient::connect(format!("http://{}", server.address)).await.unwrap();
    let status = client.check(HealthCheckRequest::default()).await.unwrap().into_inner().status;
    assert_eq!(status, ServingStatus::Serving as i32);
    drop(client);
    server.stop.cancel();
    join(server).await;
}

#[tokio::test]
async fn a_drain_sends_clients_away_and_cuts_off_streams_after_the_grace() {
    let server = serve(1, Duration::from_millis(200));
    let address = server.address;
    let mut client = HealthClient::connect(format!("http://{address}")).await.unwrap();
    let mut stream = client.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    server.stop.cancel();
    assert!(stream.message().await.is_err());
    join(server).await;
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_port_that_is_taken_is_an_error() {
    let first =
        Listeners::bind([endpoint("http://127.0.0.1:0", None)], ListenOptions::default()).unwrap();
    let address = first.addresses()[0];
    let url = format!("http://{address}");
    let second = Listeners::bind([endpoint(&url, None)], ListenOptions::default());
    assert_eq!(
        second.err().expect("the port is taken").to_string(),
        format!("listen tcp {address}: bind: address already in use")
    );
}

/// As in Go: a cluster whose Pods have addresses of IPv6 only is told to listen on 0.0.0.0, too.
#[tokio::test]
async fn the_unspecified_address_is_that_of_both_families() {
    for url in ["http://0.0.0.0:0", "http://[::]:0"] {
        let bound = Listeners::bind([endpoint(url, None)], ListenOptions::default()).unwrap();
        let port = bound.addresses()[0].port();
        TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        // Only where the machine has IPv6.
        if std::net::TcpListener::bind("[::1]:0").is_ok() {
            TcpStream::connect(("::1", port)).await.unwrap();
        }
    }
}

#[tokio::test]
async fn unix_sockets_are_served_and_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    std::fs::write(&path, "left behind").unwrap();
    let url = format!("unix://{}", path.display());
    let listeners = Listeners::bind([endpoint(&url, None)], ListenOptions::default()).unwrap();
    let stop = CancellationToken::new();
    let (thread, serving) = RpcThread::pair(services(), settings());
    let served = tokio::spawn(serving.run(stop.clone(), Duration::from_secs(5)));
    let acceptor = tokio::spawn(listeners.run(vec![thread], stop.clone()));
    let answer = get(tokio::net::UnixStream::connect(&path).await.unwrap(), "/u").await;
    assert!(answer.ends_with("http /u"), "{answer}");
    stop.cancel();
    acceptor.await.unwrap().unwrap();
    served.await.unwrap();
}

#[tokio::test]
async fn connections_are_spread_over_the_threads() {
    let server = serve(2, Duration::from_secs(5));
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = HealthClient::connect(format!("http://{}", server.address)).await.unwrap();
        client.check(HealthCheckRequest::default()).await.unwrap();
        clients.push(client);
    }
    let counts: Vec<usize> = server.threads.handles().iter().map(RpcThread::connections).collect();
    assert_eq!(counts, [2, 2]);
    drop(clients);
    server.stop.cancel();
    join(server).await;
}

/// What a TLS client gets to see: the protocol that was agreed on and the answer, or an error.
async fn get_over_tls(
    address: std::net::SocketAddr,
    tls: &crate::tls::ClientTls,
    protocol: &[u8],
) -> std::io::Result<(Option<Vec<u8>>, String)> {
    let mut config = (*tls.current()?).clone();
    config.alpn_protocols = vec![protocol.to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    let stream = TcpStream::connect(address).await?;
    let mut stream = connector.connect(name, stream).await?;
    let agreed = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
    if protocol == b"h2" {
        return Ok((agreed, String::new()));
    }
    stream.write_all(b"GET /tls HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok((agreed, String::from_utf8(answer).unwrap()))
}

#[tokio::test]
async fn tls_agrees_on_the_protocol_and_asks_who_the_client_is() {
    use crate::tls::tests::{config, prepared};
    use crate::tls::{ClientTls, ServerTls};
    let prepared = prepared();
    let directory = prepared.directory.path();
    let client = ClientTls::new(config(directory, "client"));
    let mut unknown = config(directory, "client");
    (unknown.cert_file, unknown.key_file) = (String::new(), String::new());
    let unknown = ClientTls::new(unknown);
    for (allowed, is_served) in [(Vec::new(), true), (vec!["bob".to_owned()], false)] {
        let mut rules = config(directory, "server");
        rules.allowed_cns = allowed;
        rules.skip_client_san_verification = true;
        let tls = Arc::new(ServerTls::new(rules).unwrap());
        let endpoint = endpoint("https://127.0.0.1:0", Some(tls));
        let listeners = Listeners::bind([endpoint], ListenOptions::default()).unwrap();
        let (address, stop) = (listeners.addresses()[0], CancellationToken::new());
        let (thread, serving) = RpcThread::pair(services(), settings());
        let served = tokio::spawn(serving.run(stop.clone(), Duration::ZERO));
        let acceptor = tokio::spawn(listeners.run(vec![thread], stop.clone()));

        let answer = get_over_tls(address, &client, b"http/1.1").await;
        let got = answer.is_ok_and(|(protocol, text)| {
            protocol.as_deref() == Some(b"http/1.1") && text.ends_with("http /tls")
        });
        assert_eq!(got, is_served, "a certificate of alice");
        let (protocol, _) = get_over_tls(address, &client, b"h2").await.unwrap();
        assert_eq!(protocol.as_deref(), Some(&b"h2"[..]));
        let answer = get_over_tls(address, &unknown, b"http/1.1").await;
        assert!(!answer.is_ok_and(|(_, text)| text.starts_with("HTTP/1.1 200")), "no certificate");

        stop.cancel();
        acceptor.await.unwrap().unwrap();
        served.await.unwrap();
    }
}

/// grpc-go that speaks plaintext to a TLS port writes in several pieces; a reset between two of
/// them once made etcdctl report another error than with Go etcd, in one run of many.
#[tokio::test]
async fn a_client_without_tls_reads_the_end_of_the_connection_and_not_a_reset() {
    use crate::tls::ServerTls;
    use crate::tls::tests::{config, prepared};
    let prepared = prepared();
    let tls = Arc::new(ServerTls::new(config(prepared.directory.path(), "server")).unwrap());
    let endpoint = endpoint("https://127.0.0.1:0", Some(tls));
    let listeners = Listeners::bind([endpoint], ListenOptions::default()).unwrap();
    let (address, stop) = (listeners.addresses()[0], CancellationToken::new());
    let (thread, serving) = RpcThread::pair(services(), settings());
    let served = tokio::spawn(serving.run(stop.clone(), Duration::ZERO));
    let acceptor = tokio::spawn(listeners.run(vec![thread], stop.clone()));

    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    stream.readable().await.unwrap();
    for _ in 0..3 {
        stream.write_all(b"more of the same sentence").await.unwrap();
    }
    stream.read_to_end(&mut Vec::new()).await.unwrap();
    drop(stream);

    stop.cancel();
    acceptor.await.unwrap().unwrap();
    served.await.unwrap();
}

#[tokio::test]
async fn clients_with_and_without_tls_share_a_port_that_has_urls_of_both() {
    use crate::tls::tests::{config, prepared};
    use crate::tls::{ClientTls, ServerTls};
    let prepared = prepared();
    let directory = prepared.directory.path();
    let mut rules = config(directory, "server");
    rules.skip_client_san_verification = true;
    let tls = Arc::new(ServerTls::new(rules).unwrap());
    for schemes in [["http", "https"], ["https", "http"]] {
        let urls = schemes.map(|scheme| format!("{scheme}://127.0.0.1:0"));
        let endpoints = urls.map(|url| endpoint(&url, Some(tls.clone())));
        let listeners = Listeners::bind(endpoints, ListenOptions::default()).unwrap();
        let addresses = listeners.addresses();
        assert_eq!(addresses.len(), 1);
        let stop = CancellationToken::new();
        let (thread, serving) = RpcThread::pair(services(), settings());
        let served = tokio::spawn(serving.run(stop.clone(), Duration::ZERO));
        let acceptor = tokio::spawn(listeners.run(vec![thread], stop.clone()));

        let answer = get(TcpStream::connect(addresses[0]).await.unwrap(), "/plain").await;
        assert!(answer.ends_with("http /plain"), "{answer}");
        let client = ClientTls::new(config(directory, "client"));
        let (_, answer) = get_over_tls(addresses[0], &client, b"http/1.1").await.unwrap();
        assert!(answer.ends_with("http /tls"), "{answer}");

        stop.cancel();
        acceptor.await.unwrap().unwrap();
        served.await.unwrap();
    }
}

#[test]
fn an_https_url_without_a_certificate_is_refused() {
    let listeners =
        Listeners::bind([endpoint("https://127.0.0.1:0", None)], ListenOptions::default());
    assert!(matches!(listeners, Err(BindError::NoTls { .. })));
}

/// Handshakes were once made for as many connections as came, each with its memory for as long as the
/// client kept silent; and with turns taken in order, everybody waited behind the silent ones. Here two may
/// be under way, and time stands still until nothing else moves.
#[tokio::test(start_paused = true)]
async fn ghsa_6vch_silent_clients_make_room_for_those_who_speak() {
    use super::connection::{Remote, serve};
    use crate::tls::tests::{config, prepared};
    use crate::tls::{ClientTls, ServerTls};
    let prepared = prepared();
    let directory = prepared.directory.path();
    let mut rules = config(directory, "server");
    rules.skip_client_san_verification = true;
    let tls = Arc::new(ServerTls::new(rules).unwrap());
    let client = ClientTls::new(config(directory, "client"));
    let turns = super::handshakes::Handshakes::new(2);
    let services = services()[&Purpose::Client].clone();
    let accept = |stream: tokio::io::DuplexStream| {
        let (tls, services) = (Some((tls.clone(), turns.begin())), services.clone());
        tokio::spawn(async move {
            let remote = Remote::unix(Purpose::Client);
            serve(stream, remote, tls, services, &settings(), CancellationToken::new()).await
        })
    };
    let began = tokio::time::Instant::now();
    let mut silent = Vec::new();
    for _ in 0..5 {
        let (near, far) = tokio::io::duplex(64 * 1024);
        silent.push((near, accept(far)));
    }
    assert_eq!(turns.count(), 2, "the first three have made room");

    let (near, far) = tokio::io::duplex(64 * 1024);
    let speaking = accept(far);
    let connector = tokio_rustls::TlsConnector::from(client.current().unwrap());
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    let stream = connector.connect(name, near).await.unwrap();
    assert!(get(stream, "/late").await.ends_with("http /late"));
    assert_eq!(began.elapsed().as_secs(), 0, "nobody waits behind the silent");
    for (number, (near, serving)) in silent.into_iter().enumerate() {
        let error = serving.await.unwrap().unwrap_err();
        let timed_out = error.kind() == std::io::ErrorKind::TimedOut;
        assert_eq!(timed_out, number == 4, "{number}: {error}");
        drop(near);
    }
    assert_eq!(began.elapsed().as_secs(), 10, "the last one had its time");
    speaking.await.unwrap().unwrap();
    assert_eq!(turns.count(), 0);
}
