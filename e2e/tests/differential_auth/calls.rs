//! Calls of any method, by its path and with any message.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use e2e::processes::Cluster;
use prost::Message;
use proto::etcdserverpb as pb;
use proto::rpc::Rpc;
use tokio_stream::StreamExt;
use tonic::client::Grpc;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

use super::codec::BytesCodec;

/// What a call came to.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    Message(Bytes),
    Error(Code, String),
    /// The stream ended and said nothing: how both servers refuse to observe an election.
    Nothing,
}

/// The texts with which auth refuses.
const REFUSALS: [&str; 4] = [
    "etcdserver: user name is empty",
    "etcdserver: invalid auth token",
    "etcdserver: permission denied",
    "etcdserver: revision of auth store is old",
];

impl Answer {
    fn of(rpc: Rpc, result: Result<Bytes, Status>) -> Self {
        match result {
            Err(status) => Self::Error(status.code(), status.message().to_owned()),
            Ok(message) if rpc == Rpc::WatchWatch => Self::of_watch(message),
            Ok(message) => Self::Message(message),
        }
    }

    /// A watch is refused inside of its stream.
    fn of_watch(message: Bytes) -> Self {
        let response = pb::WatchResponse::decode(message.clone()).expect("a watch response");
        let reason = response.cancel_reason;
        let Some(rest) = reason.strip_prefix("rpc error: code = ") else {
            return Self::Message(message);
        };
        assert!(response.created && response.canceled && response.watch_id == -1, "{reason}");
        let (code, text) = rest.split_once(" desc = ").expect("a Go error");
        let codes = [Code::InvalidArgument, Code::Unauthenticated, Code::PermissionDenied];
        let code = codes.into_iter().find(|known| format!("{known:?}") == code);
        Self::Error(code.expect("a code of auth"), text.to_owned())
    }

    /// How auth refused, if it did. Whatever else a call came to, it passed auth.
    pub(crate) fn refusal(&self) -> Option<(Code, String)> {
        match self {
            Self::Error(code, text) if REFUSALS.contains(&text.as_str()) => {
                Some((*code, text.clone()))
            }
            Self::Nothing => Some((Code::Unknown, String::new())),
            _ => None,
        }
    }
}

/// A connection to a server.
pub(crate) struct Server {
    channel: Channel,
    pub(crate) peer_url: String,
}

/// How long one call may take.
const PATIENCE: Duration = Duration::from_secs(20);

impl Server {
    pub(crate) async fn connect(cluster: &Cluster) -> Self {
        let member = &cluster.members()[0];
        let endpoint = Channel::from_shared(format!("http://{}", member.endpoint));
        let channel = endpoint.expect("an address").connect().await.expect("connect");
        Self { channel, peer_url: member.peer_url.clone() }
    }

    async fn stream(
        &self,
        rpc: Rpc,
        request: &impl Message,
        token: Option<&str>,
    ) -> Result<Streaming<Bytes>, Status> {
        let mut grpc = Grpc::new(self.channel.clone()).max_decoding_message_size(usize::MAX);
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let message = Bytes::from(request.encode_to_vec());
        let mut request = Request::new(tokio_stream::once(message));
        if let Some(token) = token {
            request.metadata_mut().insert("token", token.parse().expect("a token is text"));
        }
        let path = http_path(rpc);
        Ok(grpc.streaming(request, path, BytesCodec::default()).await?.into_inner())
    }

    /// Sends one message and takes the first of the answer, whatever kind of method it is.
    pub(crate) async fn call(
        &self,
        rpc: Rpc,
        request: &impl Message,
        token: Option<&str>,
    ) -> Answer {
        let called = async {
            let mut answers = self.stream(rpc, request, token).await?;
            let first = answers.next().await;
            Ok(match first {
                Some(first) => Answer::of(rpc, first),
                None => Answer::Nothing,
            })
        };
        let called = tokio::time::timeout(PATIENCE, called).await;
        let called = called.unwrap_or_else(|_| Err(Status::unknown("no answer")));
        called.unwrap_or_else(|status: Status| Answer::of(rpc, Err(status)))
    }

    /// A call that must succeed.
    pub(crate) async fn ask<R: Message + Default>(
        &self,
        rpc: Rpc,
        request: &impl Message,
        token: Option<&str>,
    ) -> R {
        match self.call(rpc, request, token).await {
            Answer::Message(message) => R::decode(message).expect("a response"),
            error => panic!("{rpc:?}: {error:?}"),
        }
    }

    /// A call in nobody's name that must succeed.
    pub(crate) async fn done(&self, rpc: Rpc, request: &impl Message) {
        let answer = self.call(rpc, request, None).await;
        assert!(matches!(answer, Answer::Message(_)), "{rpc:?}: {answer:?}");
    }

    /// A token of this user, whose password is its name.
    pub(crate) async fn log_in(&self, user: &str) -> String {
        let request = pb::AuthenticateRequest { name: user.to_owned(), password: user.to_owned() };
        let answer: pb::AuthenticateResponse =
            self.ask(Rpc::AuthAuthenticate, &request, None).await;
        answer.token
    }

    pub(crate) async fn save_snapshot(&self, token: &str, file: &Path) {
        let request = pb::SnapshotRequest {};
        let mut pieces =
            self.stream(Rpc::MaintenanceSnapshot, &request, Some(token)).await.expect("a snapshot");
        let mut bytes = Vec::new();
        while let Some(piece) = pieces.next().await {
            let piece = pb::SnapshotResponse::decode(piece.expect("a piece")).expect("a response");
            bytes.extend_from_slice(&piece.blob);
        }
        std::fs::write(file, bytes).expect("write the snapshot");
    }
}

fn http_path(rpc: Rpc) -> tonic::codegen::http::uri::PathAndQuery {
    tonic::codegen::http::uri::PathAndQuery::from_static(rpc.path())
}
