//! Requests of version 2, as which etcd 3.4 and 3.5 still write some things into the log: what members say
//! about themselves, and the version of the cluster. etcd 3.6 reads them as the requests that took their place.

use bytes::Bytes;
use prost::Message;
use proto::etcdserverpb::InternalRaftRequest;
use proto::membershippb::ClusterVersionSetRequest;

/// `etcdserverpb.Request` of etcd 3.5, without what only keys of version 2 have.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct RequestV2 {
    #[prost(string, tag = "2")]
    pub(crate) method: String,
    #[prost(string, tag = "3")]
    pub(crate) path: String,
    #[prost(string, tag = "4")]
    pub(crate) value: String,
    /// Always written, also if it is false. Where this has a number, [`InternalRaftRequest`] has a message,
    /// so that neither is taken for the other.
    #[prost(bool, optional, tag = "5")]
    pub(crate) directory: Option<bool>,
}

/// What an entry means that is no request of version 3; nothing if it is not one of version 2 either, or one
/// whose keys are lost with an import.
pub(crate) fn as_v3(data: Bytes) -> Option<InternalRaftRequest> {
    let request = RequestV2::decode(data).ok()?;
    request.directory?;
    let parts: Vec<&str> = request.path.split('/').collect();
    match (request.method.as_str(), &parts[..]) {
        ("PUT", ["", "0", "version"]) => {
            let set = ClusterVersionSetRequest { ver: request.value };
            Some(InternalRaftRequest { cluster_version_set: Some(set), ..<_>::default() })
        }
        // The members are others afterwards; reads change nothing, and ticks end keys of version 2.
        ("PUT", ["", "0", "members", _, "attributes"]) | ("QGET" | "SYNC", _) => {
            Some(InternalRaftRequest::default())
        }
        _ => None,
    }
}
