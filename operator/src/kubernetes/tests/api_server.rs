//! An API server in memory, as far as the operator's controllers need one: objects by path, applied
//! and merged patches, labels, uids and resource versions that a write depends on, and a list of the
//! writes that arrived. Fields have no owners: an apply is a merge. A watch hears of removals only. It
//! also notes which right each request takes.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    sync::{Arc, Mutex},
};

use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, Response, StatusCode, body::Bytes};
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::leader_election::Lease;

/// Group, resource and verb, as in a role.
pub(super) type Right = (String, String, String);

/// A collection's path and an object's name.
type Key = (String, String);

#[derive(Default)]
struct State {
    objects: BTreeMap<Key, Value>,
    writes: Vec<String>,
    rights: BTreeSet<Right>,
    /// The lease is taken away when this many writes have arrived.
    lost_at: Option<(usize, Lease)>,
    /// Writes are not answered any more, and the lease goes when one arrives.
    hangs: Option<Lease>,
    /// The next update is answered as if somebody else had been faster.
    conflicts: bool,
    /// The next status in this collection is answered as if somebody else had been faster.
    stale_status: Option<String>,
    /// Nothing is created in this collection, for this reason.
    refused: Option<(String, Value)>,
    /// What is put in its place once its collection has been listed.
    replaced: Option<(Key, Value)>,
    /// The last object that was removed behind the operator's back.
    removed: watch::Sender<Option<(Key, Value)>>,
    versions: u64,
}

#[derive(Clone, Default)]
pub(super) struct ApiServer(Arc<Mutex<State>>);

impl ApiServer {
    pub(super) fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move { Ok::<_, Infallible>(server.answer(request).await) }
        });
        Client::new(service, "ns")
    }

    pub(super) fn put(&self, collection: &str, name: &str, object: Value) {
        self.state(|state| {
            state.objects.insert((collection.to_owned(), name.to_owned()), object);
        });
    }

    pub(super) fn object(&self, collection: &str, name: &str) -> Option<Value> {
        self.state(|state| state.objects.get(&(collection.to_owned(), name.to_owned())).cloned())
    }

    /// As if it had never been; who watches is told.
    pub(super) fn remove(&self, collection: &str, name: &str) {
        self.state(|state| {
            let removed = state.objects.remove_entry(&(collection.to_owned(), name.to_owned()));
            state.removed.send_replace(removed);
        });
    }

    /// As if a user had deleted it: the finalizers hold it.
    pub(super) fn mark_deleted(&self, collection: &str, name: &str) {
        self.state(|state| {
            let key = (collection.to_owned(), name.to_owned());
            let object = state.objects.get_mut(&key).expect("there is something to delete");
            object["metadata"]["deletionTimestamp"] = json!("2026-11-22T01:00:00Z");
        });
    }

    pub(super) fn writes(&self) -> Vec<String> {
        self.state(|state| state.writes.clone())
    }

    /// What a role would have to give for all requests so far.
    pub(super) fn rights(&self) -> BTreeSet<Right> {
        self.state(|state| state.rights.clone())
    }

    /// The same since the last time.
    pub(super) fn take_rights(&self) -> BTreeSet<Right> {
        self.state(|state| std::mem::take(&mut state.rights))
    }

    pub(super) fn refuse_next_update(&self) {
        self.state(|state| state.conflicts = true);
    }

    pub(super) fn refuse_next_status_in(&self, collection: &str) {
        self.state(|state| state.stale_status = Some(collection.to_owned()));
    }

    /// From now on nothing is created in the collection, because it is forbidden with these causes.
    pub(super) fn forbid_creation(&self, collection: &str, message: &str, causes: &Value) {
        let mut answer = failure(403, "Forbidden");
        answer["message"] = json!(message);
        answer["details"] = json!({ "causes": causes });
        self.state(|state| state.refused = Some((collection.to_owned(), answer)));
    }

    /// Somebody else puts the object there, after the next look at its collection.
    pub(super) fn put_after_the_next_list(&self, collection: &str, name: &str, object: Value) {
        let key = (collection.to_owned(), name.to_owned());
        self.state(|state| state.replaced = Some((key, object)));
    }

    /// The reason is gone.
    pub(super) fn allow_creation(&self) {
        self.state(|state| state.refused = None);
    }

    pub(super) fn take_lease_at(&self, writes: usize, lease: Lease) {
        self.state(|state| state.lost_at = Some((writes, lease)));
    }

    pub(super) fn hang(&self, lease: Lease) {
        self.state(|state| state.hangs = Some(lease));
    }

    /// The event of the next removal from the collection.
    async fn removal(&self, collection: &str) -> Value {
        let mut removed = self.state(|state| state.removed.subscribe());
        loop {
            removed.changed().await.expect("the sender is in the state");
            if let Some(((place, _), object)) = &*removed.borrow_and_update()
                && place == collection
            {
                return json!({"type": "DELETED", "object": object});
            }
        }
    }

    fn state<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.0.lock().unwrap())
    }

    async fn answer(&self, request: Request<Body>) -> Response<Full<Bytes>> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.expect("the request has a body").to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let path = parts.uri.path().to_owned();
        if parts.method != Method::GET && self.state(|state| state.note(&parts.method, &path)) {
            std::future::pending::<()>().await;
        }
        let query = parts.uri.query().unwrap_or_default();
        let watches = query.contains("watch=true");
        self.state(|state| state.note_rights(&parts.method, &path, watches, &body));
        let labels = selector(query);
        let (code, answer) = match watches {
            true => (200, self.removal(&path).await),
            false => self.state(|state| state.serve(&parts.method, &path, &labels, body)),
        };
        let code = StatusCode::from_u16(code).expect("a code of HTTP");
        let mut response = Response::new(Full::new(Bytes::from(format!("{answer}\n"))));
        *response.status_mut() = code;
        response
    }
}

impl State {
    /// The rights that Kubernetes would ask for.
    fn note_rights(&mut self, method: &Method, path: &str, watches: bool, body: &Value) {
        let parts: Vec<&str> = path.split('/').skip(1).collect();
        let (group, rest) = match parts[0] {
            "api" => ("", &parts[2..]),
            _ => (parts[1], &parts[3..]),
        };
        let rest = if rest[0] == "namespaces" && rest.len() > 2 { &rest[2..] } else { rest };
        let resource = match rest.get(2) {
            Some(subresource) => format!("{}/{subresource}", rest[0]),
            None => rest[0].to_owned(),
        };
        let verb = match *method {
            Method::GET if rest.len() > 1 => "get",
            Method::GET if watches => "watch",
            Method::GET => "list",
            Method::POST => "create",
            Method::PATCH => "patch",
            Method::PUT => "update",
            _ => "delete",
        };
        let mut note = |group: &str, resource: &str, verb: &str| {
            self.rights.insert((group.to_owned(), resource.to_owned(), verb.to_owned()));
        };
        note(group, &resource, verb);
        let place = path.rsplit_once('/').unwrap_or_default();
        let key = (place.0.to_owned(), place.1.to_owned());
        if verb == "patch" && rest.len() == 2 && !self.objects.contains_key(&key) {
            // To apply what is not there is to create it.
            note(group, &resource, "create");
        }
        let owners = body["metadata"]["ownerReferences"].as_array();
        for owner in owners.into_iter().flatten().filter(|o| o["blockOwnerDeletion"] == true) {
            let version = owner["apiVersion"].as_str().unwrap_or_default();
            let kind = owner["kind"].as_str().unwrap_or_default().to_lowercase();
            let group = version.split_once('/').unwrap_or_default().0;
            note(group, &format!("{kind}s/finalizers"), "update");
        }
    }

    /// Returns whether the write is never answered.
    fn note(&mut self, method: &Method, path: &str) -> bool {
        self.writes.push(format!("{method} {path}"));
        if let Some((lost_at, lease)) = &self.lost_at
            && self.writes.len() >= *lost_at
        {
            lease.give_up();
        }
        if let Some(lease) = &self.hangs {
            lease.give_up();
        }
        self.hangs.is_some()
    }

    fn serve(
        &mut self,
        method: &Method,
        path: &str,
        labels: &[(String, String)],
        body: Value,
    ) -> (u16, Value) {
        let (path, is_status) = match path.strip_suffix("/status") {
            Some(path) => (path, true),
            None => (path, false),
        };
        // /api/v1/namespaces/NAMESPACE/KIND/NAME, or one more at the front, or a kind of no namespace.
        let depth = path.split('/').count();
        let is_collection = match path.starts_with("/api/") {
            true => depth == 6 || depth == 4,
            false => depth == 7,
        };
        let place = path.rsplit_once('/').unwrap_or_default();
        let key = (place.0.to_owned(), place.1.to_owned());
        match *method {
            Method::GET if is_collection => {
                let list = self.list(path, labels);
                let listed = |((place, _), _): &mut (Key, Value)| place == path;
                self.objects.extend(self.replaced.take_if(listed));
                (200, list)
            }
            Method::GET => self.objects.get(&key).map_or_else(not_found, |o| (200, o.clone())),
            Method::POST => self.create(path, body),
            Method::PATCH if is_status && self.stale_status.take_if(|c| *c == key.0).is_some() => {
                (409, failure(409, "Conflict"))
            }
            Method::PATCH if is_status && !self.objects.contains_key(&key) => not_found(),
            Method::PATCH => self.patch(key, &body),
            Method::PUT if std::mem::take(&mut self.conflicts) => (409, failure(409, "Conflict")),
            Method::PUT => self.store(key, body),
            Method::DELETE => self.delete(&key, &body),
            _ => (405, failure(405, "MethodNotAllowed")),
        }
    }

    fn list(&self, collection: &str, labels: &[(String, String)]) -> Value {
        let selected = |object: &Value| {
            let has = |(key, value): &(String, String)| &object["metadata"]["labels"][key] == value;
            labels.iter().all(has)
        };
        let found = self
            .objects
            .iter()
            .filter(|((place, _), object)| place == collection && selected(object));
        let items: Vec<&Value> = found.map(|(_, object)| object).collect();
        json!({"metadata": {"resourceVersion": "1"}, "items": items})
    }

    fn create(&mut self, collection: &str, object: Value) -> (u16, Value) {
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let key = (collection.to_owned(), name);
        if let Some((_, answer)) = self.refused.as_ref().filter(|(place, _)| place == collection) {
            return (403, answer.clone());
        }
        if self.objects.contains_key(&key) {
            return (409, failure(409, "AlreadyExists"));
        }
        self.store(key, object)
    }

    fn patch(&mut self, key: Key, change: &Value) -> (u16, Value) {
        let mut object = self.objects.get(&key).cloned().unwrap_or_else(|| json!({}));
        let wanted = &change["metadata"];
        let differs =
            |field: &str| !wanted[field].is_null() && wanted[field] != object["metadata"][field];
        if differs("uid") || differs("resourceVersion") {
            return (409, failure(409, "Conflict"));
        }
        merge(&mut object, change);
        let going = !object["metadata"]["deletionTimestamp"].is_null();
        let held = object["metadata"]["finalizers"].as_array().is_some_and(|f| !f.is_empty());
        if going && !held {
            self.objects.remove(&key);
            return (200, object);
        }
        self.store(key, object)
    }

    fn store(&mut self, key: Key, mut object: Value) -> (u16, Value) {
        self.versions += 1;
        let metadata = &mut object["metadata"];
        metadata["name"] = json!(key.1);
        metadata["namespace"] = json!("ns");
        metadata["resourceVersion"] = json!(self.versions.to_string());
        if metadata["uid"].is_null() {
            metadata["uid"] = json!(format!("uid-{}", self.versions));
            metadata["creationTimestamp"] = json!("2026-11-22T00:30:00Z");
        }
        self.objects.insert(key, object.clone());
        (200, object)
    }

    fn delete(&mut self, key: &Key, options: &Value) -> (u16, Value) {
        let Some(object) = self.objects.get_mut(key) else { return not_found() };
        let meant = &options["preconditions"]["uid"];
        if !meant.is_null() && *meant != object["metadata"]["uid"] {
            return (409, failure(409, "Conflict"));
        }
        if object["metadata"]["finalizers"].as_array().is_some_and(|held| !held.is_empty()) {
            object["metadata"]["deletionTimestamp"] = json!("2026-11-22T01:00:00Z");
            return (200, object.clone());
        }
        self.objects.remove(key);
        (200, json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}))
    }
}

/// The labels that a list is asked for.
fn selector(query: &str) -> Vec<(String, String)> {
    let query = query.replace("%2F", "/").replace("%3D", "=").replace("%2C", ",");
    let wanted = query.split('&').find_map(|part| part.strip_prefix("labelSelector="));
    let pairs = wanted.unwrap_or_default().split(',').filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn not_found() -> (u16, Value) {
    (404, failure(404, "NotFound"))
}

fn failure(code: u16, reason: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": reason,
        "reason": reason, "code": code,
    })
}

fn merge(into: &mut Value, change: &Value) {
    match (into, change) {
        (Value::Object(into), Value::Object(change)) => {
            for (key, value) in change {
                if value.is_null() {
                    into.remove(key);
                } else {
                    merge(into.entry(key.clone()).or_insert(Value::Null), value);
                }
            }
        }
        (into, change) => *into = change.clone(),
    }
}
