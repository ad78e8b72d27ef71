//! The JSON gateway, and behind it the lock and election services, answer as those of Go etcd do:
//! the same requests in the same order to a fresh server of each kind, and status, headers and body
//! of every answer compared.

use std::path::Path;
use std::time::{Duration, Instant};

use e2e::gateway::{Answer, Ask, Asking, ask};
use e2e::peers;
use e2e::processes::{Cluster, ServerOptions};

/// A request and what came of it.
type Transcript = Vec<(String, Answer)>;

/// A server and what was said to it so far.
struct Talk {
    cluster: Cluster,
    transcript: Transcript,
}

impl Talk {
    fn with(program: &Path, flags: &[&str]) -> Self {
        let mut options = ServerOptions::one(program);
        options.flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let cluster = Cluster::start(&options).expect("start a server");
        Self { cluster, transcript: Vec::new() }
    }

    fn endpoint(&self) -> String {
        self.cluster.members()[0].endpoint.clone()
    }

    /// Asks without keeping the answer.
    fn quietly(&self, path: &str, body: &str) -> Answer {
        ask(&self.endpoint(), &Ask::post(path, body)).expect("ask")
    }

    fn ask(&mut self, request: &Ask) -> Answer {
        let answer =
            ask(&self.endpoint(), request).unwrap_or_else(|e| panic!("{request:?}: {e:#}"));
        self.keep(request, answer.clone());
        answer
    }

    fn post(&mut self, path: &str, body: &str) -> Answer {
        self.ask(&Ask::post(path, body))
    }

    fn send(&self, request: &Ask) -> Asking {
        Asking::send(&self.endpoint(), request).expect("send a request")
    }

    fn finish(&mut self, request: &Ask, asking: Asking) -> Answer {
        let answer = asking.answer().unwrap_or_else(|error| panic!("{request:?}: {error:#}"));
        self.keep(request, answer.clone());
        answer
    }

    fn keep(&mut self, request: &Ask, answer: Answer) {
        let method = request.method;
        let text = format!("{method} {} {:?} {}", request.path, request.headers, request.body);
        self.transcript.push((text, answer.masked()));
    }

    /// Waits until so many keys are under `my/`: until somebody waits in line, or has left it.
    fn wait_for_keys(&self, count: usize) {
        let deadline = Instant::now() + Duration::from_secs(10);
        let request = r#"{"key":"bXkv","range_end":"bXkw","count_only":true}"#;
        let expected = match count {
            0 => "\"header\"".to_owned(),
            count => format!("\"count\":\"{count}\""),
        };
        loop {
            let found = self.quietly("kv/range", request).body;
            let is_it = found.contains(&expected) && (count > 0 || !found.contains("count"));
            if is_it {
                return;
            }
            assert!(Instant::now() < deadline, "there are not {count} keys: {found}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Has the same talk with both servers.
fn compare(flags: &[&str], talk: impl Fn(&mut Talk)) {
    let go = peers::etcd_binaries().expect("build Go etcd").etcd;
    let ours = peers::our_binary("etcd").expect("build our etcd");
    let had = |program: &Path| {
        let mut with = Talk::with(program, flags);
        talk(&mut with);
        with.transcript
    };
    let (expected, found) = (had(&go), had(&ours));
    assert_eq!(expected.len(), found.len());
    let mut differences = String::new();
    for ((request, expected), (_, found)) in expected.iter().zip(&found) {
        if expected != found {
            differences.push_str(&format!("{request}\n  Go   {expected:?}\n  ours {found:?}\n"));
        }
    }
    assert!(differences.is_empty(), "\n{differences}");
    println!("{} requests, all answered alike", expected.len());
}

/// To write, from `a` to `b`.
const PERMISSION: &str =
    r#"{"name":"writer","perm":{"permType":"WRITE","key":"YQ==","range_end":"Yg=="}}"#;

/// Until authentication is on, and what is refused then.
const MANAGEMENT: &[(&str, &str)] = &[
    ("auth/status", "{}"),
    ("auth/enable", "{}"),
    ("auth/disable", "{}"),
    ("auth/authenticate", r#"{"name":"root","password":"r"}"#),
    ("auth/user/add", r#"{"name":"root","password":"r"}"#),
    ("auth/user/add", r#"{"name":"root","password":"r"}"#),
    ("auth/user/add", r#"{"name":"","password":"r"}"#),
    ("auth/user/add", r#"{"name":"alice","password":"a"}"#),
    ("auth/user/add", r#"{"name":"bob","options":{"no_password":true}}"#),
    ("auth/user/add", r#"{"name":"carol","options":{"noPassword":"x"}}"#),
    ("auth/user/list", "{}"),
    ("auth/user/get", r#"{"name":"alice"}"#),
    ("auth/user/get", r#"{"name":"nobody"}"#),
    ("auth/user/changepw", r#"{"name":"alice","password":"b"}"#),
    ("auth/user/changepw", r#"{"name":"nobody","password":"b"}"#),
    ("auth/role/add", r#"{"name":"root"}"#),
    ("auth/role/add", r#"{"name":"writer"}"#),
    ("auth/role/add", r#"{"name":"writer"}"#),
    ("auth/role/add", r#"{"name":""}"#),
    ("auth/role/add", r#"{"name":"gone"}"#),
    ("auth/role/list", "{}"),
    ("auth/role/grant", PERMISSION),
    ("auth/role/grant", r#"{"name":"writer","perm":{"permType":2,"key":"eA=="}}"#),
    ("auth/role/grant", r#"{"name":"writer","perm":{"permType":"NONSENSE"}}"#),
    ("auth/role/grant", r#"{"name":"writer"}"#),
    ("auth/role/grant", r#"{"name":"nothing","perm":{"key":"eA=="}}"#),
    ("auth/role/get", r#"{"role":"writer"}"#),
    ("auth/role/get", r#"{"role":"nothing"}"#),
    ("auth/role/revoke", r#"{"role":"writer","key":"eA=="}"#),
    ("auth/role/revoke", r#"{"role":"writer","key":"eA=="}"#),
    ("auth/role/delete", r#"{"role":"gone"}"#),
    ("auth/role/delete", r#"{"role":"gone"}"#),
    ("auth/user/grant", r#"{"user":"root","role":"root"}"#),
    ("auth/user/grant", r#"{"user":"alice","role":"writer"}"#),
    ("auth/user/grant", r#"{"user":"alice","role":"nothing"}"#),
    ("auth/user/grant", r#"{"user":"bob","role":"writer"}"#),
    ("auth/user/revoke", r#"{"user":"bob","role":"writer"}"#),
    ("auth/user/revoke", r#"{"user":"bob","role":"writer"}"#),
    ("auth/user/delete", r#"{"name":"bob"}"#),
    ("auth/user/delete", r#"{"name":"bob"}"#),
    ("auth/enable", "{}"),
    ("auth/status", "{}"),
    ("auth/user/list", "{}"),
    ("kv/put", r#"{"key":"YQ==","value":"MQ=="}"#),
    ("auth/authenticate", r#"{"name":"alice","password":"a"}"#),
    ("auth/authenticate", r#"{"name":"nobody","password":"a"}"#),
];

#[test]
fn users_and_roles_are_managed_alike() {
    compare(&["--bcrypt-cost=4"], |talk| {
        for (path, body) in MANAGEMENT {
            talk.post(path, body);
        }
        let token = |talk: &Talk, name: &str, password: &str| {
            let body = format!(r#"{{"name":"{name}","password":"{password}"}}"#);
            let answer = talk.quietly("auth/authenticate", &body).body;
            let after = answer.split("\"token\":\"").nth(1).unwrap_or_else(|| panic!("{answer}"));
            after.split('"').next().expect("a token ends").to_owned()
        };
        let (root, alice) = (token(talk, "root", "r"), token(talk, "alice", "b"));
        // The header stands in what is compared, so tokens are asked with and not kept.
        let with = |talk: &mut Talk, name: &str, token: &str, path: &str, body: &str| {
            let headers = vec![("authorization".to_owned(), token.to_owned())];
            let request = Ask { headers, ..Ask::post(path, body) };
            let answer = ask(&talk.endpoint(), &request).expect("ask");
            talk.keep(
                &Ask { headers: vec![("as".to_owned(), name.to_owned())], ..request },
                answer,
            );
        };
        for (path, body) in [
            ("kv/put", r#"{"key":"YQ==","value":"MQ=="}"#),
            ("kv/put", r#"{"key":"Yg==","value":"MQ=="}"#),
            ("kv/range", r#"{"key":"YQ=="}"#),
            ("auth/user/get", r#"{"name":"alice"}"#),
            ("auth/user/get", r#"{"name":"root"}"#),
            ("auth/user/list", "{}"),
            ("auth/role/get", r#"{"role":"writer"}"#),
            ("maintenance/status", "{}"),
        ] {
            with(talk, "alice", &alice, path, body);
            with(talk, "root", &root, path, body);
            with(talk, "nobody", "nonsense.1", path, body);
        }
        with(talk, "alice", &alice, "auth/disable", "{}");
        with(talk, "root", &root, "auth/disable", "{}");
        talk.post("auth/status", "{}");
    });
}

#[test]
fn hashes_and_downgrades_are_answered_alike() {
    compare(&[], |talk| {
        talk.post("kv/put", r#"{"key":"YQ==","value":"MQ=="}"#);
        for (path, body) in [
            ("maintenance/hashkv", "{}"),
            ("maintenance/hashkv", r#"{"revision":"2"}"#),
            ("maintenance/hashkv", r#"{"revision":"99"}"#),
            ("maintenance/downgrade", "{}"),
            ("maintenance/downgrade", r#"{"action":"VALIDATE","version":"3.6.0"}"#),
            ("maintenance/downgrade", r#"{"action":"VALIDATE","version":"3.5.0"}"#),
            ("maintenance/downgrade", r#"{"action":"VALIDATE","version":"x"}"#),
            ("maintenance/downgrade", r#"{"action":"CANCEL"}"#),
            ("maintenance/downgrade", r#"{"action":7}"#),
            ("maintenance/defragment", "{}"),
            ("maintenance/transfer-leadership", r#"{"targetID":"7"}"#),
        ] {
            talk.post(path, body);
        }
        // What is hashed is the backend's file, which is not the same.
        let hash = talk.quietly("maintenance/hash", "{}");
        assert!(hash.status == "200" && hash.body.contains("\"hash\":"), "{hash:?}");
    });
}

#[test]
fn good_requests_are_answered_alike() {
    compare(&[], |talk| {
        for (path, body) in [
            ("kv/put", r#"{"key":"Zm9v","value":"YmFy"}"#),
            ("kv/put", r#"{"key":"Zm9v","value":"YmF6","prev_kv":true}"#),
            ("kv/put", r#"{"key":"Zm9v","prevKv":true,"ignoreValue":true}"#),
            ("kv/put", r#"{"key":"_-8","value":"-_8="}"#),
            ("kv/put", "{\"key\":\"Zm9w\\u0030\",\n \"value\":\"\",\"unknown\":{\"a\":[1,{}]}}"),
            ("kv/range", r#"{"key":"AA==","range_end":"AA=="}"#),
            ("kv/range", r#"{"key":"AA==","range_end":"AA==","limit":"1"}"#),
            ("kv/range", r#"{"key":"AA==","range_end":"AA==","limit":1e0,"keys_only":true}"#),
            ("kv/range", r#"{"key":"AA==","range_end":"AA==","count_only":true}"#),
            (
                "kv/range",
                r#"{"key":"AA==","range_end":"AA==","sort_order":"DESCEND","sort_target":"MOD"}"#,
            ),
            ("kv/range", r#"{"key":"AA==","range_end":"AA==","sort_order":2,"sortTarget":3}"#),
            ("kv/range", r#"{"key":"Zm9v","revision":"2","serializable":true}"#),
            ("kv/range", r#"{"key":"Zm9v","revision":null}  trailing"#),
            ("kv/deleterange", r#"{"key":"Zm9wMA==","prev_kv":true}"#),
            ("kv/deleterange", r#"{"key":"bm9uZQ=="}"#),
            (
                "kv/txn",
                r#"{"compare":[{"key":"Zm9v","target":"VALUE","value":"YmF6"}],
                    "success":[{"request_put":{"key":"YQ==","value":"Yg=="}},
                               {"request_range":{"key":"YQ=="}},
                               {"request_delete_range":{"key":"YQ=="}}],
                    "failure":[{"request_range":{"key":"Zm9v"}}]}"#,
            ),
            (
                "kv/txn",
                r#"{"compare":[{"key":"eA==","target":"CREATE","create_revision":"0","result":"GREATER"}],
                    "failure":[{"request_txn":{"success":[{"requestRange":{"key":"Zm9v"}}]}}]}"#,
            ),
            ("kv/txn", "{}"),
            ("kv/compaction", r#"{"revision":"3"}"#),
            ("lease/grant", r#"{"TTL":"100","ID":"4711"}"#),
            ("lease/grant", r#"{"TTL":100,"ID":4712}"#),
            ("kv/put", r#"{"key":"bGVhc2Vk","lease":"4711"}"#),
            ("lease/timetolive", r#"{"ID":"4711","keys":true}"#),
            ("kv/lease/timetolive", r#"{"ID":"1"}"#),
            ("lease/keepalive", r#"{"ID":"4711"}"#),
            ("lease/keepalive", r#"{"ID":"4711"}{"ID":4712} {"ID":"1"}"#),
            ("lease/keepalive", ""),
            ("lease/leases", ""),
            ("kv/lease/leases", "{}"),
            ("lease/revoke", r#"{"ID":"4712"}"#),
            ("kv/lease/revoke", r#"{"ID":"4711"}"#),
            ("cluster/member/list", r#"{"linearizable":true}"#),
            ("maintenance/alarm", "{}"),
            ("maintenance/hashkv", "{}"),
            ("maintenance/defragment", ""),
            ("auth/status", "{}"),
        ] {
            talk.post(path, body);
        }
        talk.ask(&Ask { path: "/v3beta/kv/range".into(), ..Ask::post("", r#"{"key":"Zm9v"}"#) });
        let status = talk.post("maintenance/status", "{}").body;
        assert!(status.contains("\"version\":"), "{status}");
    });
}

#[test]
#[expect(clippy::too_many_lines, reason = "one table of requests")]
fn bad_requests_are_refused_alike() {
    compare(&["--max-request-bytes=10000"], |talk| {
        for body in [
            "",
            "x",
            "{",
            "{\"key\":",
            "[]",
            "null",
            "\"a\"",
            "12",
            "{}",
            "{\"key\" \"a\"}",
            "{'key':1}",
            "{\"key\":nil}",
            "{\"key\":\"Z*9v\"}",
            "{\"key\":1}",
            "{\"key\":null}",
            "{\"key\":\"Zm9v=\"}",
            "{\"key\":\"Zg\\\\\"}",
            "{\"key\":\"\\x\"}",
            "{\"key\":\"Zg==\",\"key\":\"Zg==\"}",
            "{\"key\":\"Zg==\",\"limit\":\"x\"}",
            "{\"limit\":1.5}",
            "{\"limit\":1e400}",
            "{\"limit\":\"99999999999999999999\"}",
            "{\"limit\":true}",
            "{\"limit\":{}}",
            "{\"limit\":[1]}",
            "{\"limit\":\" 1\"}",
            " \n {\"limit\":1.5}",
            "{\n  \"key\": \"Zg==\",\n  \"rangeEnd\": 7\n}",
            "{\"sort_order\":\"FOO\"}",
            "{\"sort_order\":true}",
            "{\"key\":\"Zg==\",\"sort_order\":17}",
            "{\"serializable\":1}",
            "{\"serializable\":\"true\"}",
            "{\"key\":\"Zg==\",\"revision\":\"99\"}",
            "{\"x\":\"\\ud800\"}",
            "{\"x\":\"\\ud800\\u0041\"}",
            "{\"a\":1,}",
            "{\"a\":01}",
            "{\"a\":-}",
            "{\"a\":1.}",
            "{\"a\":1e}",
            "{\"a\":tru}",
            "{\"a\":\"\t\"}",
            "{\"a\":\"\\u12\"}",
            "{\"a\":1]",
            "[1}",
        ] {
            talk.post("kv/range", body);
        }
        for (path, body) in [
            ("kv/put", r#"{"value":"YmFy"}"#),
            ("kv/put", r#"{"key":"YQ==","lease":"9"}"#),
            ("kv/put", r#"{"key":"YQ==","ignore_value":true}"#),
            ("kv/put", r#"{"key":"YQ==","value":"YQ==","ignore_value":true}"#),
            ("kv/txn", r#"{"success":[{"request_put":{"key":"YQ=="},"request_range":{}}]}"#),
            (
                "kv/txn",
                r#"{"success":[{"request_put":{"key":"YQ=="}},{"request_put":{"key":"YQ=="}}]}"#,
            ),
            ("kv/txn", r#"{"success":{}}"#),
            ("kv/txn", r#"{"success":[null]}"#),
            ("kv/txn", r#"{"compare":[{"target":"FOO","key":"YQ=="}]}"#),
            ("kv/compaction", r#"{"revision":"99"}"#),
            ("kv/compaction", r#"{"revision":-1}"#),
            ("lease/grant", r#"{"TTL":"9999999999999"}"#),
            ("lease/revoke", r#"{"ID":"5"}"#),
            ("lease/keepalive", r#"{"ID":"abc"}"#),
            ("lease/keepalive", "nonsense"),
            ("cluster/member/add", "{}"),
            ("cluster/member/add", r#"{"peerURLs":["nonsense"]}"#),
            ("cluster/member/add", r#"{"peerURLs":"http://127.0.0.1:1"}"#),
            ("cluster/member/add", r#"{"peerURLs":[null]}"#),
            ("cluster/member/remove", r#"{"ID":"1"}"#),
            ("cluster/member/update", r#"{"ID":"1","peerURLs":["http://127.0.0.1:1"]}"#),
            ("cluster/member/promote", r#"{"ID":"1"}"#),
            ("maintenance/transfer-leadership", r#"{"targetID":"1"}"#),
            ("maintenance/hashkv", r#"{"revision":"99"}"#),
            ("auth/authenticate", r#"{"name":"a","password":"b"}"#),
            ("auth/nothing", "{}"),
            ("kv/range/", "{}"),
            ("kv/range/stream", "{}"),
            ("", "{}"),
        ] {
            talk.post(path, body);
        }
        let big = format!(r#"{{"key":"YQ==","value":"{}"}}"#, "YWFh".repeat(4000));
        talk.post("kv/put", &big);
        for (method, path) in [
            ("GET", "/v3/kv/range"),
            ("PUT", "/v3/kv/range"),
            ("DELETE", "/v3/nothing"),
            ("OPTIONS", "/v3/kv/range"),
            ("POST", "/v4/kv/range"),
        ] {
            talk.ask(&Ask { method, ..Ask { path: path.into(), ..Ask::default() } });
        }
        for (name, value) in [
            ("grpc-timeout", "5x"),
            ("grpc-timeout", "5S"),
            ("grpc-timeout", "0S"),
            ("grpc-timeout", "-1S"),
            ("grpc-timeout", "9999999999999999999S"),
            ("grpc-timeout", "9223372036854775807S"),
            ("grpc-timeout", "5124095576030431H"),
            ("authorization", "nonsense"),
            ("grpc-metadata-hasleader", "true"),
            ("origin", "https://a.example"),
        ] {
            let headers = vec![(name.to_owned(), value.to_owned())];
            talk.ask(&Ask { headers, ..Ask::post("kv/range", r#"{"key":"YQ=="}"#) });
        }
    });
}

#[test]
fn streams_are_lines_of_json_alike() {
    compare(&[], |talk| {
        talk.post("kv/put", r#"{"key":"YQ==","value":"MQ=="}"#);
        talk.post("kv/put", r#"{"key":"YQ==","value":"Mg=="}"#);
        talk.post("kv/deleterange", r#"{"key":"YQ=="}"#);
        let history = r#"{"create_request":{"key":"YQ==","start_revision":"2","prev_kv":true}}"#;
        talk.ask(&Ask::stream("watch", history, 2));
        let two = r#"{"create_request":{"key":"YQ==","watch_id":"7"}} {"create_request":{"key":"Yg==","watch_id":7}}"#;
        talk.ask(&Ask::stream("watch", two, 2));
        let canceled = r#"{"create_request":{"key":"YQ=="}}{"cancel_request":{"watch_id":"0"}}"#;
        talk.ask(&Ask::stream("watch", canceled, 2));
        talk.post("kv/compaction", r#"{"revision":"4"}"#);
        talk.ask(&Ask::stream("watch", history, 2));
        let live =
            Ask::stream("watch", r#"{"create_request":{"key":"Yw==","filters":["NOPUT"]}}"#, 2);
        let mut asking = talk.send(&live);
        asking.wait_for_lines(1).expect("the watch is created");
        talk.post("kv/put", r#"{"key":"Yw==","value":"MQ=="}"#);
        talk.post("kv/deleterange", r#"{"key":"Yw=="}"#);
        let answer = asking.answer().expect("the watch answers");
        let events = answer.body.lines().nth(1).unwrap_or_default().to_owned();
        talk.keep(&live, Answer { body: events, ..answer });
        talk.ask(&Ask::post("maintenance/snapshot", "nonsense"));
    });
}

const LOCK: &str = r#"{"name":"bXk=","lease":"LEASE"}"#;

fn lock(lease: &str) -> Ask {
    Ask::post("lock/lock", &LOCK.replace("LEASE", lease))
}

fn grant(talk: &mut Talk, leases: &[&str]) {
    for lease in leases {
        talk.post("lease/grant", &format!(r#"{{"TTL":"600","ID":"{lease}"}}"#));
    }
}

/// `my/b` and so on in base64: the key of the lease 11 and so on.
fn key_of(lease: i64) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(format!("my/{lease:x}"))
}

#[test]
fn locks_are_passed_on_in_order_alike() {
    compare(&[], |talk| {
        grant(talk, &["11", "12", "13", "14"]);
        talk.ask(&lock("11"));
        talk.ask(&lock("11"));
        let (second, third, fourth) = (lock("12"), lock("13"), lock("14"));
        let waiting_second = talk.send(&second);
        talk.wait_for_keys(2);
        let waiting_third = talk.send(&third);
        talk.wait_for_keys(3);
        let waiting_fourth = talk.send(&fourth);
        talk.wait_for_keys(4);
        // Who hangs up leaves the line.
        drop(waiting_fourth);
        talk.wait_for_keys(3);
        talk.post("lock/unlock", &format!(r#"{{"key":"{}"}}"#, key_of(11)));
        talk.finish(&second, waiting_second);
        // The third loses its lease while it waits, and is told when its turn comes.
        talk.post("lease/revoke", r#"{"ID":"13"}"#);
        talk.post("lease/revoke", r#"{"ID":"12"}"#);
        talk.finish(&third, waiting_third);
        talk.post("kv/range", r#"{"key":"bXkv","range_end":"bXkw"}"#);
        for (path, body) in [
            ("lock/lock", r#"{"name":"bXk=","lease":"99"}"#),
            ("lock/lock", r#"{"lease":"14"}"#),
            ("lock/lock", r#"{"name":5}"#),
            ("lock/unlock", r#"{"key":"bm9uZQ=="}"#),
            ("lock/unlock", "{}"),
        ] {
            talk.post(path, body);
        }
        // Without a lease the server makes one of sixty seconds.
        let made = talk.quietly("lock/lock", r#"{"name":"bXk="}"#);
        assert!(made.status == "200" && made.body.contains("\"key\":\"bXkv"), "{made:?}");
        let leases = talk.quietly("lease/leases", "{}").body;
        let ids: Vec<&str> =
            leases.split("\"ID\":\"").skip(1).filter_map(|t| t.split('"').next()).collect();
        let own = ids.iter().find(|id| !["11", "14"].contains(id)).expect("a lease was made");
        let life = talk.quietly("lease/timetolive", &format!(r#"{{"ID":"{own}"}}"#)).body;
        assert!(life.contains("\"grantedTTL\":\"60\""), "{life}");
    });
}

#[test]
fn elections_are_held_alike() {
    compare(&[], |talk| {
        grant(talk, &["11", "12", "13"]);
        talk.post("election/leader", r#"{"name":"bXk="}"#);
        let campaign = |lease: &str, value: &str| {
            let body = format!(r#"{{"name":"bXk=","lease":"{lease}","value":"{value}"}}"#);
            Ask::post("election/campaign", &body)
        };
        let observe = Ask::stream("election/observe", r#"{"name":"bXk="}"#, 4);
        let mut observing = talk.send(&observe);
        talk.ask(&campaign("11", "YQ=="));
        observing.wait_for_lines(1).expect("the first leader is seen");
        talk.ask(&campaign("11", "Yg=="));
        // One that is behind is shown the change with a later header.
        observing.wait_for_lines(2).expect("its new value is seen");
        talk.post("election/leader", r#"{"name":"bXk="}"#);
        let second = campaign("12", "Yw==");
        let waiting = talk.send(&second);
        talk.wait_for_keys(2);
        let leader = |lease: i64, revision: i64| {
            format!(
                r#"{{"name":"bXk=","key":"{}","rev":"{revision}","lease":"{lease}"}}"#,
                key_of(lease)
            )
        };
        talk.post(
            "election/proclaim",
            &format!(r#"{{"leader":{},"value":"ZA=="}}"#, leader(11, 2)),
        );
        talk.post(
            "election/proclaim",
            &format!(r#"{{"leader":{},"value":"ZA=="}}"#, leader(11, 3)),
        );
        observing.wait_for_lines(3).expect("what it proclaims is seen");
        talk.post("election/resign", &format!(r#"{{"leader":{}}}"#, leader(11, 2)));
        talk.finish(&second, waiting);
        talk.finish(&observe, observing);
        talk.post("election/resign", &format!(r#"{{"leader":{}}}"#, leader(11, 2)));
        // A candidate that hangs up is none any more.
        let third = campaign("13", "ZQ==");
        let hanging_up = talk.send(&third);
        talk.wait_for_keys(2);
        drop(hanging_up);
        talk.wait_for_keys(1);
        talk.post("lease/revoke", r#"{"ID":"12"}"#);
        for (path, body) in [
            ("election/leader", r#"{"name":"bXk="}"#),
            ("election/campaign", r#"{"name":"bXk=","lease":"99"}"#),
            ("election/proclaim", "{}"),
            ("election/resign", "{}"),
            ("election/resign", r#"{"leader":{}}"#),
            ("election/proclaim", r#"{"leader":{"lease":"13"}}"#),
            ("election/leader", "{}"),
        ] {
            talk.post(path, body);
        }
    });
}

#[test]
fn the_gateway_can_be_turned_off_alike() {
    compare(&["--enable-grpc-gateway=false"], |talk| {
        talk.post("kv/range", r#"{"key":"YQ=="}"#);
        talk.ask(&Ask { method: "GET", path: "/version".into(), ..Ask::default() });
    });
}

#[test]
fn origins_and_hosts_are_admitted_alike() {
    compare(
        &["--cors=https://a.example:8443", "--host-whitelist=good.example,127.0.0.1"],
        |talk| {
            for (name, value) in [
                ("origin", "https://a.example:8443"),
                ("origin", "https://a.example"),
                ("origin", "https://b.example"),
                ("host", "good.example"),
                ("host", "good.example:2379"),
                ("host", "evil.example"),
                ("host", "[::1]:2379"),
                ("x-nothing", "y"),
            ] {
                let headers = vec![(name.to_owned(), value.to_owned())];
                talk.ask(&Ask { headers: headers.clone(), ..Ask::post("kv/range", "{}") });
                talk.ask(&Ask { headers, method: "OPTIONS", ..Ask::post("kv/range", "") });
            }
        },
    );
}
