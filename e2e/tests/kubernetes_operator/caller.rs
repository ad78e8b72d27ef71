//! A client of an etcd cluster in Kubernetes, for threads without a runtime of their own.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use client::{Client, Config, Error, TlsOptions, prefix_range_end};
use e2e::kubernetes::wait;
use proto::etcdserverpb::{
    HashKvRequest, MoveLeaderRequest, PutRequest, RangeRequest, RangeResponse, StatusRequest,
    StatusResponse,
};
use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;

/// How long one call may take.
const CALL: Duration = Duration::from_secs(20);
/// How long it may take until there is a connection: kube-proxy learns of Pods with a delay, and
/// until then sends connections to where nobody is any more.
const CONNECTED: Duration = Duration::from_secs(30);
const PROBE: Duration = Duration::from_secs(2);

pub(crate) struct Caller {
    runtime: Runtime,
    client: Client,
}

impl Caller {
    /// `name` is what the server's certificate has to be for.
    pub(crate) fn new(address: &str, name: &str, certificates: PathBuf) -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build().context("a runtime")?;
        let config = Config {
            endpoints: vec![format!("https://{address}:2379")],
            tls: Some(TlsOptions {
                ca_file: Some(certificates.join("ca.crt")),
                certificate_file: Some(certificates.join("tls.crt")),
                key_file: Some(certificates.join("tls.key")),
                server_name: Some(name.to_owned()),
                ..TlsOptions::default()
            }),
            ..Config::default()
        };
        let client = runtime.block_on(Client::connect(config))?;
        Ok(Self { runtime, client })
    }

    /// The same, once it has a connection that serves.
    pub(crate) fn connected(address: &str, name: &str, certificates: PathBuf) -> Result<Self> {
        wait::until(&format!("{name} at {address} serves"), CONNECTED, || {
            let caller = Self::new(address, name, certificates.clone())?;
            let probe = RangeRequest {
                key: Bytes::from_static(b"\0"),
                serializable: true,
                ..RangeRequest::default()
            };
            caller.call(PROBE, async move |client| client.range(probe).await)?;
            Ok(caller)
        })
    }

    /// Calls with a deadline; answers etcd's own error.
    pub(crate) fn call<T>(
        &self,
        limit: Duration,
        call: impl AsyncFnOnce(Client) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.runtime.block_on(async {
            let deadline = Instant::now() + limit;
            call(self.client.until(deadline)).await
        })
    }

    pub(crate) fn put(&self, key: &str, value: &str) -> Result<i64> {
        let request = PutRequest {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: Bytes::copy_from_slice(value.as_bytes()),
            ..PutRequest::default()
        };
        let answer = self.call(CALL, async move |client| client.put(request).await)?;
        Ok(answer.header.context("a header")?.revision)
    }

    pub(crate) fn get(&self, key: &str) -> Result<Option<String>> {
        let answer = self.range(RangeRequest {
            key: Bytes::copy_from_slice(key.as_bytes()),
            ..RangeRequest::default()
        })?;
        Ok(answer.kvs.first().map(|kv| String::from_utf8_lossy(&kv.value).into_owned()))
    }

    pub(crate) fn prefix(&self, prefix: &str, serializable: bool) -> Result<RangeResponse> {
        self.range(RangeRequest {
            key: Bytes::copy_from_slice(prefix.as_bytes()),
            range_end: prefix_range_end(prefix.as_bytes()),
            serializable,
            ..RangeRequest::default()
        })
    }

    fn range(&self, request: RangeRequest) -> Result<RangeResponse> {
        Ok(self.call(CALL, async move |client| client.range(request).await)?)
    }

    pub(crate) fn revision(&self) -> Result<i64> {
        let answer = self.prefix("\0", false)?;
        Ok(answer.header.context("a header")?.revision)
    }

    pub(crate) fn status(&self) -> Result<StatusResponse> {
        self.status_within(CALL)
    }

    pub(crate) fn status_within(&self, limit: Duration) -> Result<StatusResponse> {
        Ok(self.call(limit, async move |client| client.status(StatusRequest {}).await)?)
    }

    pub(crate) fn move_leader(&self, target_id: u64) -> Result<()> {
        let request = MoveLeaderRequest { target_id };
        self.call(CALL, async move |client| client.move_leader(request).await)?;
        Ok(())
    }

    pub(crate) fn hash_kv(&self, revision: i64) -> Result<u32> {
        let request = HashKvRequest { revision };
        let answer = self.call(CALL, async move |client| client.hash_kv(request).await)?;
        ensure!(answer.hash_revision == revision, "it has hashed {}", answer.hash_revision);
        Ok(answer.hash)
    }
}
