//! Over a real listener, with the answers that etcd 3.7.3 gives to the same requests.

use tables::AlarmKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use super::*;
use crate::listen::{
    ConnectionSettings, Endpoint, GrpcCalls, ListenOptions, Listeners, RpcThread, ServiceSet,
    Services,
};
use crate::ops::health::Check;
use crate::read_budget::{BudgetOptions, ReadBudget};

struct Healthy;

impl Vitals for Healthy {
    fn has_leader(&self) -> bool {
        true
    }

    fn is_learner(&self) -> bool {
        false
    }

    fn alarms(&self) -> Vec<AlarmKind> {
        Vec::new()
    }

    fn read(&self, _: bool) -> Check<'_> {
        Box::pin(async { Ok(()) })
    }
}

impl Member for Healthy {
    fn cluster_version(&self) -> Option<String> {
        Some("3.7.0".to_owned())
    }

    fn raft_status(&self) -> serde_json::Value {
        serde_json::json!({ "term": 2 })
    }

    fn refresh_metrics(&self) {}
}

struct Server {
    address: std::net::SocketAddr,
    stop: CancellationToken,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn serve(purpose: Purpose, cors: &str, hosts: &str) -> Server {
    let registry = Registry::new();
    let parts = Arc::new(HttpParts {
        member: Arc::new(Healthy),
        metrics: HttpMetrics::register(&registry).unwrap(),
        registry,
        config: HttpConfig {
            traces: false,
            gateway: true,
            profiling: purpose == Purpose::Client,
            cors: vec![cors.to_owned()],
            host_whitelist: vec![hosts.to_owned()],
            extensive_metrics: false,
        },
        arguments: vec!["etcd".to_owned()],
    });
    // Without services every call is refused by gRPC, which tells that it got there.
    let gateway = Gateway::new(
        GrpcCalls::new(Routes::default(), None),
        1 << 20,
        ReadBudget::new(BudgetOptions::of(1 << 20)),
        Arc::new(|| false),
    );
    let gateway = (purpose == Purpose::Client).then_some(gateway);
    let http = handler_with(parts, gateway);
    let services = Services { http: Some(http), ..Services::default() };
    let endpoint = Endpoint { url: "http://127.0.0.1:0".parse().unwrap(), purpose, tls: None };
    let listeners = Listeners::bind([endpoint], ListenOptions::default()).unwrap();
    let address = listeners.addresses()[0];
    let settings = ConnectionSettings {
        streams_max: 10,
        keepalive_interval: None,
        keepalive_timeout: None,
        keepalive_min_time: std::time::Duration::from_secs(5),
    };
    let stop = CancellationToken::new();
    let (thread, serving) = RpcThread::pair(ServiceSet::from([(purpose, services)]), settings);
    tokio::spawn(serving.run(stop.clone(), std::time::Duration::ZERO));
    tokio::spawn(listeners.run(vec![thread], stop.clone()));
    Server { address, stop }
}

/// The answer to one request, its head in lower case.
async fn ask(server: &Server, line: &str, headers: &str) -> (String, String) {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let request = format!("{line} HTTP/1.1\r\nconnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_lowercase(), body.to_owned())
}

#[tokio::test]
async fn a_client_url_answers_what_etcd_answers() {
    let server = serve(Purpose::Client, "*", "*");
    let cases = [
        ("GET /health", "200", r#"{"health":"true","reason":""}"#),
        ("GET /health?serializable=true", "200", r#"{"health":"true","reason":""}"#),
        ("POST /health", "405", "Method Not Allowed\n"),
        ("GET /livez", "200", "ok\n"),
        ("GET /readyz/foo", "404", "404 page not found\n"),
        ("GET /debug/pprof/nothing", "404", "Unknown profile\nnothing\n"),
        ("PUT /config/local/log", "400", r#"{"message":"Invalid json body"}"#),
        ("POST /config/local/log", "405", "Method Not Allowed\n"),
        ("GET /nothing", "404", "404 page not found\n"),
        (
            "GET /version",
            "200",
            r#"{"etcdserver":"3.7.3","etcdcluster":"3.7.0","storage":"3.7.0"}"#,
        ),
        ("OPTIONS /version", "200", ""),
    ];
    for (line, status, body) in cases {
        let (head, found) = ask(&server, line, "host: x\r\n").await;
        assert!(head.starts_with(&format!("http/1.1 {status}")), "{line}: {head}");
        assert_eq!(found, body, "{line}");
        assert!(head.contains("access-control-allow-origin: *"), "{line}: {head}");
    }
    let (head, body) = ask(&server, "POST /v3/kv/range", "host: x\r\n").await;
    assert!(head.starts_with("http/1.1 501") && body.contains("\"code\":12"), "{head} {body}");
    let (head, body) = ask(&server, "GET /v3/kv/range", "host: x\r\n").await;
    assert!(head.starts_with("http/1.1 501"), "{head} {body}");
    assert_eq!(body, r#"{"code":12,"message":"Method Not Allowed"}"#);
    let (head, body) = ask(&server, "POST /v3/kv/nothing", "host: x\r\n").await;
    assert!(head.starts_with("http/1.1 404"), "{head} {body}");
    assert_eq!(body, r#"{"code":5,"message":"Not Found"}"#);
    let (_, body) = ask(&server, "GET /debug/vars", "host: x\r\n").await;
    let variables: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(variables["raft.status"]["term"], 2);
    let (head, body) = ask(&server, "GET /metrics", "host: x\r\n").await;
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    assert!(body.contains("etcd_server_health_success 2\n"), "{body}");
    // Who reads them is in flight, and counted afterwards.
    assert!(body.contains("promhttp_metric_handler_requests_in_flight 1\n"), "{body}");
    let (_, again) = ask(&server, "GET /metrics", "host: x\r\n").await;
    let counted = |body: &str, times| {
        body.contains(&format!("promhttp_metric_handler_requests_total{{code=\"200\"}} {times}\n"))
    };
    assert!(counted(&body, 0) && counted(&again, 1), "{body}{again}");
}

#[tokio::test]
async fn metrics_urls_serve_metrics_and_health_only() {
    let server = serve(Purpose::Metrics, "*", "*");
    for (line, status) in [
        ("GET /metrics", "200"),
        ("GET /health", "200"),
        ("GET /livez", "200"),
        ("GET /version", "404"),
        ("GET /debug/vars", "404"),
        ("GET /debug/pprof/", "404"),
        ("GET /config/local/log", "404"),
        ("POST /v3/kv/range", "404"),
    ] {
        let (head, _) = ask(&server, line, "host: x\r\n").await;
        assert!(head.starts_with(&format!("http/1.1 {status}")), "{line}: {head}");
        assert!(!head.contains("access-control"), "{head}");
    }
}

#[tokio::test]
async fn cve_2018_1098_cve_2018_1099_only_listed_origins_and_hosts_are_welcome() {
    let server = serve(Purpose::Client, "https://a.example", "good.example");
    let (head, _) = ask(&server, "GET /version", "host: good.example:2379\r\n").await;
    assert!(head.starts_with("http/1.1 200") && !head.contains("access-control"), "{head}");
    let origin = "host: good.example\r\norigin: https://a.example\r\n";
    let (head, _) = ask(&server, "GET /version", origin).await;
    assert!(head.contains("access-control-allow-origin: https://a.example"), "{head}");
    let other = "host: good.example\r\norigin: https://evil.example\r\n";
    for line in ["GET /version", "OPTIONS /version", "POST /v3/kv/range"] {
        let (head, _) = ask(&server, line, other).await;
        assert!(!head.contains("access-control"), "{line}: {head}");
    }
    let (head, body) = ask(&server, "GET /version", "host: evil.example\r\n").await;
    assert!(head.starts_with("http/1.1 421"), "{head}");
    assert!(body.contains("etcd --host-whitelist \"evil.example\"\n"), "{body}");
    let (head, _) = ask(&server, "GET /version", "host: [good.example]:1\r\n").await;
    assert!(head.starts_with("http/1.1 200"), "{head}");
}
