//! `etcd grpc-proxy --experimental-leasing-prefix`: keys that a proxy holds are read without the members, and
//! nobody reads what has been replaced, whichever proxies share the keys: ours, or ours and Go etcd's.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, also in its helpers")]

mod calls;
mod proxy;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use calls::{metric, until_async};
use client::Client;
use e2e::processes::{Cluster, ServerOptions};
use proto::etcdserverpb::*;
use proxy::{Proxy, both, connect, put};

const FLAG: &str = "--experimental-leasing-prefix=leases/";

fn get(key: &str) -> RangeRequest {
    RangeRequest { key: key.to_owned().into(), ..RangeRequest::default() }
}

fn delete(key: &str, range_end: &str) -> DeleteRangeRequest {
    let (key, range_end) = (key.to_owned().into(), range_end.to_owned().into());
    DeleteRangeRequest { key, range_end, ..DeleteRangeRequest::default() }
}

/// The value of a key; empty if there is none.
async fn read(client: &Client, key: &str) -> String {
    let kvs = client.range(get(key)).await.unwrap().kvs;
    kvs.first().map(|kv| String::from_utf8_lossy(&kv.value).into_owned()).unwrap_or_default()
}

async fn held(direct: &Client) -> Vec<String> {
    let range = RangeRequest { range_end: "leases0".into(), keys_only: true, ..get("leases/") };
    let kvs = direct.range(range).await.unwrap().kvs;
    kvs.iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned()).collect()
}

/// Reads until the proxy holds the key: its session may only begin, or somebody has wanted the key lately.
async fn until_held(through: &Client, direct: &Client, key: &str) {
    until_async("the key is held", async || {
        read(through, key).await;
        held(direct).await.contains(&format!("leases/{key}"))
    })
    .await;
}

fn calls_for_keys(cluster: &Cluster) -> f64 {
    let metrics = calls::metrics(&cluster.members()[0]);
    let of = |method: &str| {
        metric(&metrics, "grpc_server_started_total", &format!("grpc_method=\"{method}\""))
    };
    of("Range") + of("Txn")
}

#[tokio::test]
async fn a_key_that_is_held_is_read_without_the_members_and_given_up_for_who_writes() {
    const READS: u32 = 100;
    let [ours, theirs] = both();
    for (first, second) in [(&ours, &ours), (&ours, &theirs), (&theirs, &ours)] {
        let cluster = Cluster::start(&ServerOptions::one(&ours)).unwrap();
        let direct = connect(&cluster.members()[0].endpoint).await;
        let holder = Proxy::start(first, &cluster, &[FLAG]);
        let other = Proxy::start(second, &cluster, &[FLAG]);
        let (holding, writing) = (connect(&holder.address).await, connect(&other.address).await);
        holding.put(put("k", "1")).await.unwrap();
        until_held(&holding, &direct, "k").await;
        let before = calls_for_keys(&cluster);
        for _ in 0..READS {
            assert_eq!(read(&holding, "k").await, "1");
        }
        let asked = calls_for_keys(&cluster) - before;
        // Ours looks from time to time whether one may still read.
        assert!(asked < f64::from(READS) / 4.0, "{asked} calls by {}", first.display());
        for value in ["2", "3"] {
            writing.put(put("k", value)).await.unwrap();
            assert_eq!(read(&holding, "k").await, value);
            assert_eq!(read(&writing, "k").await, value);
        }
        let request = Some(request_op::Request::RequestPut(put("k", "4")));
        let txn = TxnRequest { success: vec![RequestOp { request }], ..TxnRequest::default() };
        until_held(&holding, &direct, "k").await;
        assert!(writing.txn(txn).await.unwrap().succeeded);
        assert_eq!(read(&holding, "k").await, "4");
        until_held(&holding, &direct, "k").await;
        assert_eq!(writing.delete_range(delete("a", "l")).await.unwrap().deleted, 1);
        assert_eq!(read(&holding, "k").await, "");
    }
}

#[tokio::test]
async fn what_a_proxy_that_holds_a_key_answers_is_what_the_members_say() {
    let [ours, theirs] = both();
    let mut answers = Vec::new();
    for program in [&ours, &theirs] {
        let cluster = Cluster::start(&ServerOptions::one(&ours)).unwrap();
        let direct = connect(&cluster.members()[0].endpoint).await;
        let proxy = Proxy::start(program, &cluster, &[FLAG]);
        let through = connect(&proxy.address).await;
        let mut seen = Vec::new();
        let compare = async |what: &str, range: RangeRequest| {
            let told = |it: RangeResponse| (it.kvs, it.count, it.more);
            let of_proxy = told(through.range(range.clone()).await.unwrap());
            // etcd's forgets to count when a key that it holds is deleted.
            if *program == ours {
                assert_eq!(of_proxy, told(direct.range(range).await.unwrap()), "{what}");
            }
            // Nor versions: etcd's writes a key twice that it does not hold.
            let kvs: Vec<_> = of_proxy.0.iter().map(|kv| (&kv.key, &kv.value)).collect();
            format!("{what}: {kvs:?}")
        };
        until_held(&through, &direct, "absent").await;
        seen.push(compare("absent", get("absent")).await);
        for value in ["1", "2"] {
            through.put(put("k", value)).await.unwrap();
            until_held(&through, &direct, "k").await;
            seen.push(compare("whole", get("k")).await);
            seen.push(compare("again", get("k")).await);
        }
        seen.push(compare("keys only", RangeRequest { keys_only: true, ..get("k") }).await);
        let before = RangeRequest { revision: 2, ..get("k") };
        seen.push(compare("at a revision", before).await);
        seen.push(compare("limited", RangeRequest { limit: 1, ..get("k") }).await);
        let replaced = through.put(PutRequest { prev_kv: true, ..put("k", "3") }).await.unwrap();
        seen.push(format!("{:?}", replaced.prev_kv.map(|kv| kv.value)));
        seen.push(compare("replaced", get("k")).await);
        let deleted = through.delete_range(delete("k", "")).await.unwrap();
        seen.push(format!("deleted {}", deleted.deleted));
        seen.push(compare("deleted", get("k")).await);
        through.put(put("k", "4")).await.unwrap();
        seen.push(compare("there again", get("k")).await);
        for refused in [put("", "x"), PutRequest { lease: 12345, ..put("k", "x") }] {
            seen.push(through.put(refused).await.unwrap_err().to_string());
        }
        seen.push(compare("as before", get("k")).await);
        answers.push(seen);
    }
    assert_eq!(answers[0], answers[1]);
}

/// A key's history: numbers from one up. A number that can be divided by five is a deletion.
#[derive(Default)]
struct Story {
    begun: AtomicI64,
    done: AtomicI64,
}

impl Story {
    async fn write(&self, client: &Client, key: &str) {
        let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        match number % 5 {
            0 if number % 2 == 0 => {
                let upto = format!("{key}0");
                client.delete_range(delete(key, &upto)).await.map(drop).unwrap();
            }
            0 => client.delete_range(delete(key, "")).await.map(drop).unwrap(),
            1 | 2 => client.put(put(key, &number.to_string())).await.map(drop).unwrap(),
            _ => {
                let put = put(key, &number.to_string());
                let request = Some(request_op::Request::RequestPut(put));
                let success = vec![RequestOp { request }];
                client.txn(TxnRequest { success, ..Default::default() }).await.map(drop).unwrap();
            }
        }
        self.done.fetch_max(number, Ordering::SeqCst);
    }

    /// A read shows nothing that had been replaced when it began, and nothing that had not begun.
    async fn read(&self, client: &Client, key: &str) {
        let oldest = self.done.load(Ordering::SeqCst);
        let value = read(client, key).await;
        let newest = self.begun.load(Ordering::SeqCst);
        let is_fine = match value.parse::<i64>() {
            Ok(number) => (oldest..=newest).contains(&number),
            Err(_) => (oldest..=newest).any(|number| number % 5 == 0),
        };
        assert!(is_fine, "{value:?} is not between {oldest} and {newest}");
    }
}

async fn nobody_reads_what_has_been_replaced(other: &std::path::Path, writes: i64) {
    const KEYS: [&str; 3] = ["a", "b", "c"];
    let [ours, _] = both();
    let cluster = Cluster::start(&ServerOptions::one(&ours)).unwrap();
    let one = Proxy::start(&ours, &cluster, &[FLAG]);
    let two = Proxy::start(other, &cluster, &[FLAG]);
    let (one, two) = (connect(&one.address).await, connect(&two.address).await);
    let direct = connect(&cluster.members()[0].endpoint).await;
    for key in KEYS {
        until_held(&one, &direct, key).await;
    }
    let stories: Vec<Arc<Story>> = KEYS.iter().map(|_| Arc::default()).collect();
    let mut tasks = Vec::new();
    for (key, story) in KEYS.iter().zip(&stories) {
        let (clients, story) = ([one.clone(), two.clone()], story.clone());
        let writer = async move {
            for number in 0..writes {
                // Now and then one proxy has the key for itself.
                let client = &clients[usize::from(number % 12 >= 9)];
                story.write(client, key).await;
                for _ in 0..5 {
                    story.read(&clients[0], key).await;
                }
            }
        };
        tasks.push(tokio::spawn(writer));
    }
    for (key, story) in KEYS.iter().zip(&stories) {
        let (client, story) = (one.clone(), story.clone());
        let reader = async move {
            while story.done.load(Ordering::SeqCst) < writes {
                story.read(&client, key).await;
            }
        };
        tasks.push(tokio::spawn(reader));
    }
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn nobody_reads_what_has_been_replaced_through_two_proxies_of_ours() {
    nobody_reads_what_has_been_replaced(&both()[0], 150).await;
}

#[tokio::test]
async fn nobody_reads_what_has_been_replaced_although_the_other_proxy_is_that_of_go_etcd() {
    nobody_reads_what_has_been_replaced(&both()[1], 60).await;
}

#[tokio::test]
async fn a_proxy_that_stops_gives_its_keys_back() {
    let [ours, _] = both();
    let cluster = Cluster::start(&ServerOptions::one(&ours)).unwrap();
    let direct = connect(&cluster.members()[0].endpoint).await;
    let proxy = Proxy::start(&ours, &cluster, &[FLAG]);
    until_held(&connect(&proxy.address).await, &direct, "k").await;
    e2e::processes::signal(proxy.pid(), "TERM").unwrap();
    until_async("the key is given back", async || held(&direct).await.is_empty()).await;
}

#[tokio::test]
async fn what_is_held_is_forgotten_when_nobody_may_read_it_any_more() {
    let [ours, _] = both();
    let cluster = Cluster::start(&ServerOptions::one(&ours)).unwrap();
    let direct = connect(&cluster.members()[0].endpoint).await;
    let proxy = Proxy::start(&ours, &cluster, &[FLAG]);
    let through = connect(&proxy.address).await;
    until_held(&through, &direct, "k").await;
    let user = AuthUserAddRequest {
        name: "root".into(),
        password: "p".into(),
        ..AuthUserAddRequest::default()
    };
    direct.user_add(user).await.unwrap();
    direct.role_add(AuthRoleAddRequest { name: "root".into() }).await.unwrap();
    let grant = AuthUserGrantRoleRequest { user: "root".into(), role: "root".into() };
    direct.user_grant_role(grant).await.unwrap();
    direct.auth_enable(AuthEnableRequest {}).await.unwrap();
    until_async("reads without a name are refused", async || {
        let refused = through.range(get("k")).await;
        refused.is_err_and(|error| error.to_string() == "etcdserver: user name is empty")
    })
    .await;
}
