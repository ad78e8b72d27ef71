//! The same calls to a server of each kind, and what they came to.

use std::fmt::Debug;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use e2e::peers;
use e2e::processes::{Cluster, ServerOptions};
use prost::Message;
use proto::rpc::Rpc;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::{AsciiMetadataValue, MetadataMap};
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

use super::codec::BytesCodec;
use super::shown::{masked, shown};

/// How long one call may take. Go etcd gives up after seven seconds when it has no leader.
const PATIENCE: Duration = Duration::from_secs(25);
/// How many differences a failure shows.
const SHOWN: usize = 60;

/// What an answer was: its messages, and the status it ended with.
#[derive(Clone, Debug)]
pub(crate) struct Came {
    pub(crate) messages: Vec<Bytes>,
    pub(crate) status: Option<Status>,
}

impl Came {
    /// The only message of an answer that is good.
    pub(crate) fn read<R: Message + Default>(&self) -> R {
        R::decode(self.messages.first().unwrap_or_else(|| panic!("{self:?}")).clone())
            .expect("a response")
    }
}

/// One call.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// The method's path.
    pub(crate) path: String,
    /// The method, by which answers are read.
    pub(crate) rpc: Option<Rpc>,
    pub(crate) requests: Vec<Bytes>,
    /// The requests as a failure shows them.
    pub(crate) text: String,
    pub(crate) metadata: Vec<(&'static str, Vec<u8>)>,
    /// Hang up after so many messages; without it, wait for the end.
    pub(crate) answers: Option<usize>,
}

impl Call {
    pub(crate) fn new(rpc: Rpc, request: &(impl Message + Debug)) -> Call {
        Call::many(rpc, std::slice::from_ref(request))
    }

    /// A call with several requests, whose sending side stays open.
    pub(crate) fn many<M: Message + Debug>(rpc: Rpc, requests: &[M]) -> Call {
        Call {
            path: rpc.path().to_owned(),
            rpc: Some(rpc),
            requests: requests.iter().map(|request| request.encode_to_vec().into()).collect(),
            text: format!("{requests:?}"),
            metadata: Vec::new(),
            answers: None,
        }
    }

    pub(crate) fn with(mut self, name: &'static str, value: &[u8]) -> Call {
        self.metadata.push((name, value.to_vec()));
        self
    }

    /// Hangs up after so many messages.
    pub(crate) fn take(mut self, answers: usize) -> Call {
        self.answers = Some(answers);
        self
    }

    pub(crate) async fn make(self, channel: Channel) -> Came {
        let mut came = Came { messages: Vec::new(), status: None };
        let called = self.collect(channel, &mut came.messages);
        came.status = match tokio::time::timeout(PATIENCE, called).await {
            Ok(result) => result.err(),
            Err(_) => Some(Status::unknown("(no end of the answer)")),
        };
        came
    }

    /// Makes the call; what comes beside its answers keeps the side of the requests open, if that stays so.
    pub(crate) async fn open(
        &self,
        channel: Channel,
    ) -> Result<(Streaming<Bytes>, mpsc::Sender<Bytes>), Status> {
        let mut grpc = Grpc::new(channel).max_decoding_message_size(usize::MAX);
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let sent = tokio_stream::iter(self.requests.clone());
        let mut metadata = MetadataMap::new();
        for (name, value) in &self.metadata {
            let value = AsciiMetadataValue::try_from(value.as_slice()).expect("a header's value");
            metadata.append(*name, value);
        }
        let path: PathAndQuery = self.path.parse().expect("a path");
        let (sending, nothing_more) = mpsc::channel(1);
        let answers = if self.answers.is_some() {
            let mut request = Request::new(sent.chain(ReceiverStream::new(nothing_more)));
            *request.metadata_mut() = metadata;
            grpc.streaming(request, path, BytesCodec::default()).await?.into_inner()
        } else {
            let mut request = Request::new(sent);
            *request.metadata_mut() = metadata;
            grpc.streaming(request, path, BytesCodec::default()).await?.into_inner()
        };
        Ok((answers, sending))
    }

    async fn collect(&self, channel: Channel, messages: &mut Vec<Bytes>) -> Result<(), Status> {
        // The sending side ends with this call: a stream of which only the answers are dropped stays open.
        let (mut answers, _sending) = self.open(channel).await?;
        while self.answers.is_none_or(|wanted| messages.len() < wanted) {
            match answers.next().await {
                Some(message) => messages.push(message?),
                None => break,
            }
        }
        Ok(())
    }
}

/// A server and what was said to it so far.
pub(crate) struct Talk {
    pub(crate) cluster: Cluster,
    pub(crate) options: ServerOptions,
    runtime: tokio::runtime::Runtime,
    channels: Vec<Option<Channel>>,
    /// Which member is asked.
    pub(crate) member: usize,
    lines: Vec<(String, String)>,
}

impl Talk {
    pub(crate) fn with(program: &Path, members: usize, flags: &[&str]) -> Talk {
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let options = ServerOptions { flags, members, ..ServerOptions::one(program) };
        Talk::at(Cluster::start(&options).expect("start a server"), options)
    }

    pub(crate) fn at(cluster: Cluster, options: ServerOptions) -> Talk {
        Talk {
            cluster,
            options,
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime"),
            channels: Vec::new(),
            member: 0,
            lines: Vec::new(),
        }
    }

    fn channel(&mut self) -> Channel {
        self.channels.resize(self.cluster.members().len(), None);
        let endpoint = format!("http://{}", self.cluster.members()[self.member].endpoint);
        let _inside = self.runtime.enter();
        let channel = &mut self.channels[self.member];
        channel
            .get_or_insert_with(|| {
                Channel::from_shared(endpoint).expect("an address").connect_lazy()
            })
            .clone()
    }

    /// Makes a call without keeping what came of it.
    pub(crate) fn quietly(&mut self, call: Call) -> Came {
        let channel = self.channel();
        self.runtime.block_on(call.make(channel))
    }

    /// Makes a call and keeps what came of it.
    pub(crate) fn call(&mut self, call: Call) -> Came {
        let came = self.quietly(call.clone());
        self.keep(&call, &came);
        came
    }

    /// Asks for all messages of an answer.
    pub(crate) fn ask(&mut self, rpc: Rpc, request: &(impl Message + Debug)) -> Came {
        self.call(Call::new(rpc, request))
    }

    /// Makes calls side by side.
    pub(crate) fn call_at_once(&mut self, calls: &[Call]) {
        let channel = self.channel();
        let made = self.runtime.block_on(async {
            let running: Vec<_> =
                calls.iter().map(|call| tokio::spawn(call.clone().make(channel.clone()))).collect();
            let mut made = Vec::new();
            for call in running {
                made.push(call.await.expect("no call panics"));
            }
            made
        });
        for (call, came) in calls.iter().zip(&made) {
            self.keep(call, came);
        }
    }

    /// Runs something asynchronous with a channel to the member.
    pub(crate) fn run<T, F: Future<Output = T>>(&mut self, run: impl FnOnce(Channel) -> F) -> T {
        let channel = self.channel();
        self.runtime.block_on(run(channel))
    }

    /// Keeps something that is to be equal.
    pub(crate) fn note(&mut self, what: &str, found: &str) {
        self.lines.push((what.to_owned(), masked(found)));
    }

    fn keep(&mut self, call: &Call, came: &Came) {
        let mut found = String::new();
        for message in &came.messages {
            found.push_str(&shown(call.rpc, message));
        }
        if let Some(status) = &came.status {
            found.push_str(&format!("{:?}: {}", status.code(), status.message()));
        }
        let metadata = call.metadata.iter().map(|(name, value)| {
            format!(" {name}={}", String::from_utf8_lossy(value).into_owned())
        });
        let metadata: String = metadata.collect();
        let member = self.member + 1;
        let mut asked = format!("m{member} {} {}{metadata}", call.path, call.text);
        asked.truncate(asked.char_indices().nth(2000).map_or(asked.len(), |(index, _)| index));
        self.note(&masked(&asked), &found);
    }
}

/// Has the same talk with both servers, Go etcd's first, and answers what each came to.
pub(crate) fn with_both<T: Send>(
    members: usize,
    flags: &[&str],
    talk: impl Fn(&mut Talk) -> T + Sync,
) -> [T; 2] {
    of_both(|program| talk(&mut Talk::with(program, members, flags)))
}

fn of_both<T: Send>(had: impl Fn(&Path) -> T + Sync) -> [T; 2] {
    let go = peers::etcd_binaries().expect("build Go etcd").etcd;
    let ours = peers::our_binary("etcd").expect("build our etcd");
    std::thread::scope(|scope| {
        let expected = scope.spawn(|| had(&go));
        let found = had(&ours);
        [expected.join().expect("the talk with Go etcd goes to its end"), found]
    })
}

/// Has the same talk with both servers and compares all that was kept.
pub(crate) fn compare(members: usize, flags: &[&str], talk: impl Fn(&mut Talk) + Sync) {
    compare_talks(|program| Talk::with(program, members, flags), talk);
}

/// The same with servers that `start` has started.
pub(crate) fn compare_talks(start: impl Fn(&Path) -> Talk + Sync, talk: impl Fn(&mut Talk) + Sync) {
    let [expected, found] = of_both(|program| {
        let mut with = start(program);
        talk(&mut with);
        std::mem::take(&mut with.lines)
    });
    let mut differences = String::new();
    let mut different = 0;
    for ((asked, expected), (also_asked, found)) in expected.iter().zip(&found) {
        if expected != found || asked != also_asked {
            different += 1;
            if different <= SHOWN {
                differences.push_str(&format!("{asked}\n  Go   {expected}\n  ours {found}\n"));
            }
        }
    }
    assert!(differences.is_empty(), "{different} of {} differ\n{differences}", expected.len());
    assert_eq!(expected.len(), found.len());
    println!("{} commands compared, {} equal", expected.len(), expected.len());
}
