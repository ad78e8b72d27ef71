//! A proxy in a process of its own.

#![allow(dead_code, reason = "each test takes what it needs")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use client::{Client, Config};
use e2e::processes::{Cluster, free_ports, http_get};
use proto::etcdserverpb::PutRequest;

use crate::calls::{parsed, until};

/// A running proxy; ends when dropped.
pub(crate) struct Proxy {
    child: Child,
    pub(crate) address: String,
}

impl Proxy {
    /// Starts a proxy before the first member.
    pub(crate) fn start(program: &Path, cluster: &Cluster, flags: &[&str]) -> Proxy {
        let address = format!("127.0.0.1:{}", free_ports(1).unwrap()[0]);
        let child = Command::new(program)
            .args(["grpc-proxy", "start"])
            .arg(format!("--listen-addr={address}"))
            .arg(format!("--advertise-client-url={address}"))
            .arg(format!("--endpoints={}", cluster.members()[0].endpoint))
            .args(flags)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let proxy = Proxy { child, address };
        until("the proxy is healthy", || {
            http_get(&proxy.address, "/health").is_ok_and(|body| body.contains("\"true\""))
        });
        proxy
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it shows of itself.
    pub(crate) fn metrics(&self) -> BTreeMap<String, f64> {
        parsed(&http_get(&self.address, "/proxy/metrics").unwrap())
    }

    /// One of its own metrics, such as `cache_hits`.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        self.metrics()[&format!("etcd_grpc_proxy_{name}_total")]
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ours and Go's.
pub(crate) fn both() -> [PathBuf; 2] {
    [e2e::peers::our_binary("etcd").unwrap(), e2e::peers::etcd_binaries().unwrap().etcd]
}

/// A client of one server or proxy.
pub(crate) async fn connect(endpoint: &str) -> Client {
    let config = Config { endpoints: vec![endpoint.to_owned()], ..Config::default() };
    Client::connect(config).await.unwrap()
}

pub(crate) fn put(key: &str, value: &str) -> PutRequest {
    let (key, value) = (key.to_owned().into(), value.to_owned().into());
    PutRequest { key, value, ..PutRequest::default() }
}
