//! What the client does when servers refuse, vanish or come late. The servers here are real gRPC
//! servers on loopback whose answers are scripted, because no etcd can be asked to fail on demand.

#![allow(clippy::unwrap_used, reason = "this is a test, helpers included")]

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use client::{Client, Config, Error};
use proto::etcdserverpb::kv_server::{Kv, KvServer};
use proto::etcdserverpb::lease_server::{Lease, LeaseServer};
use proto::etcdserverpb::watch_request::RequestUnion;
use proto::etcdserverpb::watch_server::{Watch, WatchServer};
use proto::etcdserverpb::*;
use proto::mvccpb::{Event, KeyValue};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::Server;
use tonic::{Code, Request, Response, Status, Streaming};

/// A server that fails as often as it is told and remembers what it was asked.
#[derive(Clone, Default)]
struct Scripted(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    failures: VecDeque<Status>,
    calls: usize,
    watches: Vec<i64>,
    ttls: VecDeque<i64>,
}

impl Scripted {
    fn failing(failures: impl IntoIterator<Item = Status>) -> Scripted {
        let scripted = Scripted::default();
        scripted.0.lock().unwrap().failures.extend(failures);
        scripted
    }

    fn calls(&self) -> usize {
        self.0.lock().unwrap().calls
    }

    fn answer<T: Default>(&self) -> Result<Response<T>, Status> {
        let mut state = self.0.lock().unwrap();
        state.calls += 1;
        state.failures.pop_front().map_or_else(|| Ok(Response::new(T::default())), Err)
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Kv for Scripted {
    type RangeStreamStream = ReceiverStream<Result<RangeStreamResponse, Status>>;

    async fn range(&self, _: Request<RangeRequest>) -> Answer<RangeResponse> {
        self.answer()
    }
    async fn range_stream(&self, _: Request<RangeRequest>) -> Answer<Self::RangeStreamStream> {
        Err(Status::unimplemented("not scripted"))
    }
    async fn put(&self, _: Request<PutRequest>) -> Answer<PutResponse> {
        self.answer()
    }
    async fn delete_range(&self, _: Request<DeleteRangeRequest>) -> Answer<DeleteRangeResponse> {
        self.answer()
    }
    async fn txn(&self, _: Request<TxnRequest>) -> Answer<TxnResponse> {
        self.answer()
    }
    async fn compact(&self, _: Request<CompactionRequest>) -> Answer<CompactionResponse> {
        self.answer()
    }
}

fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader { revision, ..ResponseHeader::default() })
}

#[tonic::async_trait]
impl Watch for Scripted {
    type WatchStream = ReceiverStream<Result<WatchResponse, Status>>;

    /// Delivers the event of the revision asked for and then breaks the stream.
    async fn watch(&self, request: Request<Streaming<WatchRequest>>) -> Answer<Self::WatchStream> {
        let first = request.into_inner().message().await?.and_then(|first| first.request_union);
        let Some(RequestUnion::CreateRequest(create)) = first else {
            return Err(Status::invalid_argument("a watch begins with its creation"));
        };
        self.0.lock().unwrap().watches.push(create.start_revision);
        let revision = create.start_revision.max(5);
        let kv = KeyValue { mod_revision: revision, ..KeyValue::default() };
        let event = Event { kv: Some(kv), ..Event::default() };
        let created =
            WatchResponse { header: header(4), created: true, ..WatchResponse::default() };
        let events = WatchResponse {
            header: header(revision),
            events: vec![event],
            ..WatchResponse::default()
        };
        let (sender, receiver) = mpsc::channel(3);
        for response in [Ok(created), Ok(events), Err(Status::unavailable("gone"))] {
            sender.try_send(response).expect("there is room for three");
        }
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

#[tonic::async_trait]
impl Lease for Scripted {
    type LeaseKeepAliveStream = ReceiverStream<Result<LeaseKeepAliveResponse, Status>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Answer<Self::LeaseKeepAliveStream> {
        let mut requests = request.into_inner();
        let (sender, receiver) = mpsc::channel(1);
        let state = Arc::clone(&self.0);
        tokio::spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                let ttl = state.lock().unwrap().ttls.pop_front().unwrap_or(0);
                let response = LeaseKeepAliveResponse { header: None, id: request.id, ttl };
                if sender.send(Ok(response)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
    async fn lease_grant(&self, _: Request<LeaseGrantRequest>) -> Answer<LeaseGrantResponse> {
        self.answer()
    }
    async fn lease_revoke(&self, _: Request<LeaseRevokeRequest>) -> Answer<LeaseRevokeResponse> {
        self.answer()
    }
    async fn lease_time_to_live(
        &self,
        _: Request<LeaseTimeToLiveRequest>,
    ) -> Answer<LeaseTimeToLiveResponse> {
        self.answer()
    }
    async fn lease_leases(&self, _: Request<LeaseLeasesRequest>) -> Answer<LeaseLeasesResponse> {
        self.answer()
    }
}

/// Serves until the returned sender is dropped.
async fn serve(scripted: &Scripted, listener: TcpListener) -> oneshot::Sender<()> {
    let (stop, stopped) = oneshot::channel::<()>();
    let server = Server::builder()
        .add_service(KvServer::new(scripted.clone()))
        .add_service(WatchServer::new(scripted.clone()))
        .add_service(LeaseServer::new(scripted.clone()))
        .serve_with_incoming(TcpListenerStream::new(listener));
    // Dropping the server's future cuts its connections, as a crash does.
    tokio::spawn(async move {
        tokio::select! {
            result = server => result.expect("the server runs"),
            _ = stopped => {}
        }
    });
    stop
}

async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    (listener, endpoint)
}

async fn connect(endpoints: &[&str]) -> Client {
    let endpoints = endpoints.iter().map(|&endpoint| endpoint.to_owned()).collect();
    let client = Client::connect(Config { endpoints, ..Config::default() }).await.unwrap();
    client.until(Instant::now() + Duration::from_secs(20))
}

fn unavailable() -> Status {
    Status::unavailable("etcdserver: request timed out")
}

#[tokio::test]
async fn reads_are_repeated_while_the_server_is_unavailable() {
    let scripted = Scripted::failing([unavailable(), unavailable()]);
    let (listener, endpoint) = listen().await;
    let _running = serve(&scripted, listener).await;
    connect(&[&endpoint]).await.range(RangeRequest::default()).await.unwrap();
    assert_eq!(scripted.calls(), 3);
}

#[tokio::test]
async fn a_mutation_that_was_sent_is_never_repeated() {
    let scripted = Scripted::failing([unavailable()]);
    let (listener, endpoint) = listen().await;
    let _running = serve(&scripted, listener).await;
    let error = connect(&[&endpoint]).await.put(PutRequest::default()).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::Unavailable));
    assert_eq!(error.to_string(), "etcdserver: request timed out");
    assert_eq!(scripted.calls(), 1);
}

#[tokio::test]
async fn errors_that_will_not_pass_are_not_repeated() {
    let text = "etcdserver: mvcc: required revision has been compacted";
    let scripted = Scripted::failing([Status::out_of_range(text)]);
    let (listener, endpoint) = listen().await;
    let _running = serve(&scripted, listener).await;
    let error = connect(&[&endpoint]).await.range(RangeRequest::default()).await.unwrap_err();
    assert_eq!(error.to_string(), text);
    assert_eq!(scripted.calls(), 1);
}

#[tokio::test]
async fn a_mutation_goes_to_a_server_that_is_up() {
    let (closed, dead) = listen().await;
    drop(closed);
    let scripted = Scripted::default();
    let (listener, alive) = listen().await;
    let _running = serve(&scripted, listener).await;
    let client = connect(&[&dead, &alive]).await;
    for _ in 0..3 {
        client.put(PutRequest::default()).await.unwrap();
    }
    assert_eq!(scripted.calls(), 3);
}

#[tokio::test]
async fn connected_servers_are_used_in_turn() {
    let scripted = [Scripted::default(), Scripted::default()];
    let (first, first_endpoint) = listen().await;
    let (second, second_endpoint) = listen().await;
    let _first = serve(&scripted[0], first).await;
    let _second = serve(&scripted[1], second).await;
    let client = connect(&[&first_endpoint, &second_endpoint]).await;
    // The second connection may come later than the first answers.
    while scripted.iter().any(|scripted| scripted.calls() == 0) {
        client.range(RangeRequest::default()).await.unwrap();
    }
    let before: Vec<usize> = scripted.iter().map(Scripted::calls).collect();
    for _ in 0..4 {
        client.range(RangeRequest::default()).await.unwrap();
    }
    let after: Vec<usize> = scripted.iter().map(Scripted::calls).collect();
    assert_eq!([after[0] - before[0], after[1] - before[1]], [2, 2]);
}

#[tokio::test]
async fn a_call_waits_for_a_server_that_comes_late() {
    let (listener, endpoint) = listen().await;
    drop(listener);
    let client = connect(&[&endpoint]).await;
    let call = tokio::spawn(async move { client.put(PutRequest::default()).await });
    // Wherever the call is by now, it has to end well.
    tokio::task::yield_now().await;
    let scripted = Scripted::default();
    let listener = TcpListener::bind(&endpoint).await.unwrap();
    let _running = serve(&scripted, listener).await;
    call.await.unwrap().unwrap();
    assert_eq!(scripted.calls(), 1);
}

#[tokio::test]
async fn the_client_connects_again_after_a_crash() {
    let scripted = Scripted::default();
    let (listener, endpoint) = listen().await;
    let running = serve(&scripted, listener).await;
    let client = connect(&[&endpoint]).await;
    client.put(PutRequest::default()).await.unwrap();
    drop(running);
    // The port is free once the server is gone.
    let listener = loop {
        match TcpListener::bind(&endpoint).await {
            Ok(listener) => break listener,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    let _running = serve(&scripted, listener).await;
    client.range(RangeRequest::default()).await.unwrap();
    client.put(PutRequest::default()).await.unwrap();
    assert_eq!(scripted.calls(), 3);
}

#[tokio::test]
async fn a_call_ends_at_its_deadline() {
    let (listener, endpoint) = listen().await;
    drop(listener);
    let client = connect(&[&endpoint]).await.until(Instant::now() + Duration::from_millis(50));
    let error = client.range(RangeRequest::default()).await.unwrap_err();
    assert!(matches!(error, Error::DeadlineExceeded));
    assert_eq!(error.to_string(), "context deadline exceeded");
}

#[tokio::test]
async fn a_request_above_the_limit_is_not_sent() {
    let scripted = Scripted::default();
    let (listener, endpoint) = listen().await;
    let _running = serve(&scripted, listener).await;
    let config =
        Config { endpoints: vec![endpoint], max_request_bytes: Some(10), ..Config::default() };
    let client = Client::connect(config).await.unwrap();
    let request = PutRequest { key: vec![0; 20].into(), ..PutRequest::default() };
    let error = client.put(request).await.unwrap_err();
    assert_eq!(error.message(), "trying to send message larger than max (22 vs. 10)");
    assert_eq!(scripted.calls(), 0);
}

/// Trap: a watcher that begins "now" and loses its stream must not begin at a later "now" again.
#[tokio::test]
async fn a_watch_resumes_after_the_last_revision_it_delivered() {
    let scripted = Scripted::default();
    let (listener, endpoint) = listen().await;
    let _running = serve(&scripted, listener).await;
    let mut watch = connect(&[&endpoint]).await.watch(WatchCreateRequest::default());
    let mut revisions = Vec::new();
    while revisions.len() < 3 {
        let response = watch.next().await.unwrap().unwrap();
        revisions.push(response.header.unwrap().revision);
    }
    assert_eq!(revisions, [5, 6, 7]);
    assert_eq!(scripted.0.lock().unwrap().watches, [0, 6, 7]);
}

#[tokio::test]
async fn a_lease_is_renewed_until_the_server_has_forgotten_it() {
    let scripted = Scripted::default();
    scripted.0.lock().unwrap().ttls.extend([1, 1, 0]);
    let (listener, endpoint) = listen().await;
    let _running = serve(&scripted, listener).await;
    let mut renewals = connect(&[&endpoint]).await.lease_keep_alive(7);
    assert_eq!(renewals.next().await.map(|renewal| (renewal.id, renewal.ttl)), Some((7, 1)));
    assert!(renewals.next().await.is_some());
    assert_eq!(renewals.next().await, None);
}

#[tokio::test]
async fn renewing_an_unknown_lease_once_is_an_error() {
    let scripted = Scripted::default();
    let (listener, endpoint) = listen().await;
    let _running = serve(&scripted, listener).await;
    let error = connect(&[&endpoint]).await.lease_keep_alive_once(7).await.unwrap_err();
    assert_eq!(error.to_string(), "etcdserver: requested lease not found");
}

#[tokio::test]
async fn a_client_needs_an_endpoint() {
    let error = Client::connect(Config::default()).await.unwrap_err();
    assert_eq!(error.to_string(), "etcdclient: no available endpoints");
}
