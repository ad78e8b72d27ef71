//! kube-apiserver on our store: what it and its clients need of lists, watches and compaction.
//!
//! ConfigMaps are served from the apiserver's watch cache, which itself lists and watches the store;
//! Events have none, so their pages and watches are the store's own. Go etcd passes the same tests
//! (`--store`).
//!
//! One compacts the store, and with it what the others are about to read: they take turns.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use client::{Client, Config};
use e2e::kubernetes::layout::STORE_CLIENT_URL;
use e2e::kubernetes::{Access, Cluster, Namespace};
use proto::etcdserverpb::{CompactionRequest, RangeRequest};
use serde_json::{Value, json};

static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    // Whose turn ended in a panic has left nothing behind that concerns the next.
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

const OBJECTS: usize = 25;
const PAGE: usize = 10;

/// A kind of object to be listed and watched.
#[derive(Clone, Copy)]
struct Kind {
    kind: &'static str,
    resource: &'static str,
}

const CONFIG_MAPS: Kind = Kind { kind: "ConfigMap", resource: "configmaps" };
const EVENTS: Kind = Kind { kind: "Event", resource: "events" };

impl Kind {
    fn object(self, name: &str, namespace: &str, value: &str) -> Value {
        match self.kind {
            "Event" => json!({
                "apiVersion": "v1", "kind": "Event", "metadata": {"name": name},
                "involvedObject": {"kind": "Pod", "name": "p", "namespace": namespace},
                "reason": "Test", "message": value,
            }),
            kind => json!({
                "apiVersion": "v1", "kind": kind, "metadata": {"name": name},
                "data": {"value": value},
            }),
        }
    }

    fn value(self, object: &Value) -> String {
        let value =
            if self.kind == "Event" { &object["message"] } else { &object["data"]["value"] };
        value.as_str().unwrap_or_default().to_owned()
    }

    fn path(self, namespace: &str) -> String {
        format!("/api/v1/namespaces/{namespace}/{}", self.resource)
    }

    /// Creates `o-000` and so on.
    fn fill(self, namespace: &Namespace<'_>, count: usize) -> Result<()> {
        let items: Vec<Value> = (0..count)
            .map(|number| self.object(&name(number), namespace.name(), "first"))
            .collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        create(namespace, &list)
    }
}

fn name(number: usize) -> String {
    format!("o-{number:03}")
}

fn create(namespace: &Namespace<'_>, objects: &Value) -> Result<()> {
    let access = namespace.cluster().access();
    let line = ["-n", namespace.name(), "create", "-f", "-"];
    access.kubectl(line).input(objects.to_string()).run().map(drop)
}

fn raw(access: &Access, path: &str) -> Result<String> {
    access.kubectl(["get", "--raw", path]).limit(Duration::from_secs(30)).run()
}

fn list(access: &Access, path: &str) -> Result<Value> {
    serde_json::from_str(&raw(access, path)?).with_context(|| format!("read {path}"))
}

/// What a watch said until the server ended it.
fn watch(access: &Access, path: &str) -> Result<Vec<Value>> {
    let text = raw(access, path)?;
    let events = serde_json::Deserializer::from_str(&text).into_iter::<Value>();
    events.collect::<Result<_, _>>().with_context(|| format!("read what {path} said"))
}

fn names(list: &Value) -> Vec<String> {
    let items = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    items
        .iter()
        .map(|item| item["metadata"]["name"].as_str().unwrap_or_default().to_owned())
        .collect()
}

fn revision(object: &Value) -> Result<i64> {
    let text = object["metadata"]["resourceVersion"].as_str().context("a resourceVersion")?;
    text.parse().with_context(|| format!("{text:?} is no revision"))
}

/// What Kubernetes' own pods write into a namespace is not ours.
fn ours(names: Vec<String>) -> Vec<String> {
    names.into_iter().filter(|name| name.starts_with("o-")).collect()
}

#[test]
fn a_list_in_pages_is_one_snapshot_whatever_is_written_meanwhile() -> Result<()> {
    let _turn = turn();
    let cluster = Cluster::of_environment()?;
    let access = cluster.access();
    for kind in [CONFIG_MAPS, EVENTS] {
        let namespace = Namespace::new(&cluster, &format!("pages-{}", kind.resource))?;
        kind.fill(&namespace, OBJECTS)?;
        let path = kind.path(namespace.name());
        let first = list(access, &format!("{path}?limit={PAGE}"))?;
        let at = revision(&first)?;
        ensure!(names(&first).len() == PAGE, "{:?}", names(&first));
        let remaining = first["metadata"]["remainingItemCount"].as_i64().context("remaining")?;
        ensure!(remaining >= i64::try_from(OBJECTS - PAGE)?, "{remaining} remain");

        // None of this may show on the pages to come.
        namespace.kubectl(&format!("delete {} {}", kind.resource, name(OBJECTS - 1)))?;
        let added = kind.object("o-999", namespace.name(), "added");
        create(&namespace, &added)?;

        let mut all = names(&first);
        let mut next = first["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
        while !next.is_empty() {
            let page = list(access, &format!("{path}?limit={PAGE}&continue={next}"))?;
            ensure!(revision(&page)? == at, "a page of {at} is at {}", revision(&page)?);
            all.extend(names(&page));
            next = page["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
        }
        let expected: Vec<String> = (0..OBJECTS).map(name).collect();
        ensure!(ours(all.clone()) == expected, "{}: the pages have {all:?}", kind.kind);

        // A list of now, one at that revision, and one that is not older than it.
        let now = ours(names(&list(access, &path)?));
        ensure!(!now.contains(&name(OBJECTS - 1)) && now.contains(&"o-999".to_owned()), "{now:?}");
        let exact = format!("{path}?resourceVersion={at}&resourceVersionMatch=Exact&limit=500");
        ensure!(ours(names(&list(access, &exact)?)) == expected, "{}: Exact", kind.kind);
        let later = format!("{path}?resourceVersion={at}&resourceVersionMatch=NotOlderThan");
        ensure!(revision(&list(access, &later)?)? >= at, "{}: NotOlderThan", kind.kind);
    }
    Ok(())
}

#[test]
fn a_watch_tells_every_change_after_its_revision_in_order_and_bookmarks() -> Result<()> {
    let _turn = turn();
    let cluster = Cluster::of_environment()?;
    for kind in [CONFIG_MAPS, EVENTS] {
        let namespace = Namespace::new(&cluster, &format!("watch-{}", kind.resource))?;
        kind.fill(&namespace, 3)?;
        let path = kind.path(namespace.name());
        let start = revision(&list(cluster.access(), &path)?)?;
        // Half of the changes are made before the watch begins, and half while it runs.
        let change = |from: usize, to: usize| -> Result<()> {
            for number in from..to {
                let object = kind.object(&name(100 + number), namespace.name(), "made");
                create(&namespace, &object)?;
                let changed = kind.object(&name(100 + number), namespace.name(), "changed");
                namespace.apply(&changed.to_string())?;
                let gone = format!("delete {} {}", kind.resource, name(100 + number));
                namespace.kubectl(&gone)?;
            }
            Ok(())
        };
        change(0, 2)?;
        let access = cluster.access().clone();
        let line = format!(
            "{path}?watch=1&resourceVersion={start}&allowWatchBookmarks=true&timeoutSeconds=8"
        );
        let watching = thread::spawn(move || watch(&access, &line));
        change(2, 4)?;
        let events = watching.join().map_err(|_| anyhow!("the watch panicked"))??;

        let mut last = start;
        let mut told = Vec::new();
        let mut bookmarks = 0;
        for event in &events {
            let at = revision(&event["object"])?;
            let what = event["type"].as_str().unwrap_or_default();
            if what == "BOOKMARK" {
                bookmarks += 1;
                ensure!(at >= last, "a bookmark at {at} after {last}");
                last = at;
                continue;
            }
            ensure!(at > last, "{what} at {at} after {last}");
            last = at;
            let object = &event["object"];
            let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            if name.starts_with("o-") {
                told.push((what.to_owned(), name, kind.value(object)));
            }
        }
        let expected: Vec<(String, String, String)> = (0..4)
            .flat_map(|number| {
                [("ADDED", "made"), ("MODIFIED", "changed"), ("DELETED", "changed")]
                    .map(|(what, value)| (what.to_owned(), name(100 + number), value.to_owned()))
            })
            .collect();
        ensure!(told == expected, "{}: told {told:#?}", kind.kind);
        if kind.kind == "ConfigMap" {
            ensure!(bookmarks > 0, "no bookmark in {} events", events.len());
        }
    }
    Ok(())
}

#[test]
fn a_watch_that_asks_for_the_state_gets_it_and_then_a_bookmark() -> Result<()> {
    let _turn = turn();
    let cluster = Cluster::of_environment()?;
    let namespace = Namespace::new(&cluster, "watch-list")?;
    CONFIG_MAPS.fill(&namespace, 5)?;
    let line = format!(
        "{}?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan\
         &allowWatchBookmarks=true&timeoutSeconds=3",
        CONFIG_MAPS.path(namespace.name())
    );
    let events = watch(cluster.access(), &line)?;
    let end = events.iter().position(|event| {
        event["type"] == "BOOKMARK"
            && event["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"] == "true"
    });
    let end = end.with_context(|| format!("no end of the state in {events:?}"))?;
    let state: Vec<String> = events[..end]
        .iter()
        .map(|event| event["object"]["metadata"]["name"].as_str().unwrap_or_default().to_owned())
        .collect();
    ensure!(ours(state.clone()) == (0..5).map(name).collect::<Vec<_>>(), "{state:?}");
    Ok(())
}

#[test]
fn what_was_compacted_is_refused_as_expired_and_the_rest_goes_on() -> Result<()> {
    let _turn = turn();
    let cluster = Cluster::of_environment()?;
    let access = cluster.access();
    let namespace = Namespace::new(&cluster, "compaction")?;
    EVENTS.fill(&namespace, OBJECTS)?;
    let path = EVENTS.path(namespace.name());
    let first = list(access, &format!("{path}?limit={PAGE}"))?;
    let (at, next) = (revision(&first)?, first["metadata"]["continue"].as_str().context("more")?);
    // Two changes, because etcd still serves a watch from the compacted revision itself, but has no
    // previous value for what happened at it, which the apiserver takes for an error.
    for number in 0..2 {
        namespace.kubectl(&format!("delete events {}", name(number)))?;
    }
    let now = revision(&list(access, &path)?)?;
    ensure!(now > at + 1, "{now} after {at}");
    compact(now)?;

    let expired = |what: &str, answer: Result<String>| match answer {
        Ok(text) => Err(anyhow!("{what} was answered: {text}")),
        Err(error) => {
            let said = format!("{error:#}");
            ensure!(said.contains("Expired") || said.contains("too old"), "{what}: {said}");
            Ok(())
        }
    };
    expired("the next page", raw(access, &format!("{path}?limit={PAGE}&continue={next}")))?;
    expired(
        "a list of then",
        raw(access, &format!("{path}?resourceVersion={at}&resourceVersionMatch=Exact")),
    )?;
    let events = watch(access, &format!("{path}?watch=1&resourceVersion={at}&timeoutSeconds=3"));
    match events {
        // As an event of the watch, or as the answer to it.
        Ok(events) => {
            let error = events.first().context("the watch said nothing")?;
            ensure!(error["type"] == "ERROR" && error["object"]["code"] == 410, "{error}");
        }
        Err(error) => expired("a watch from then", Err(error))?,
    }

    let all = ours(names(&list(access, &path)?));
    ensure!(all.len() == OBJECTS - 2, "{all:?}");
    let from_now =
        watch(access, &format!("{path}?watch=1&resourceVersion={now}&timeoutSeconds=1"))?;
    ensure!(from_now.iter().all(|event| event["type"] != "ERROR"), "{from_now:?}");
    create(&namespace, &EVENTS.object("o-500", namespace.name(), "after"))
}

/// Compacts the store itself, as the apiserver does every five minutes.
fn compact(revision: i64) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let endpoints = vec![STORE_CLIENT_URL.to_owned()];
        let client = Client::connect(Config { endpoints, ..Config::default() }).await?;
        let request = CompactionRequest { revision, physical: true };
        client.compact(request).await?;
        let old = RangeRequest {
            key: bytes::Bytes::from_static(b"/registry/"),
            revision: revision - 1,
            ..RangeRequest::default()
        };
        let error = client.range(old).await.err().context("a compacted revision was read")?;
        ensure!(error.to_string().contains("has been compacted"), "{error}");
        Ok(())
    })
}
