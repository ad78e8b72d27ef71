//! A watcher that survives lost connections.
//!
//! Each watcher has a stream of its own. When the stream breaks for a reason that will pass, it is
//! opened again, on another endpoint if need be, at the revision after the last one delivered.

use std::time::Duration;

use proto::etcdserverpb::watch_client::WatchClient;
use proto::etcdserverpb::watch_request::RequestUnion;
use proto::etcdserverpb::{WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse};
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::call::Client;
use crate::error::Error;

/// Requests that wait to be sent; a watcher sends its creation and progress requests only.
const REQUESTS: usize = 16;
/// Pause before a broken stream is opened again (clientv3 waits as long).
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);

/// Events of one key or range, in the order of revisions.
#[derive(Debug)]
pub struct WatchStream {
    client: Client,
    create: WatchCreateRequest,
    open: Option<(mpsc::Sender<WatchRequest>, Streaming<WatchResponse>)>,
    /// The first revision not delivered yet; zero until the server has said where it starts.
    next_revision: i64,
    ended: bool,
}

/// Asks a watcher's server how far it is, from beside the watcher.
#[derive(Clone, Debug)]
pub struct ProgressRequester(mpsc::WeakSender<WatchRequest>);

impl Client {
    /// Watches a key or range. Events are fetched by [`WatchStream::next`].
    pub fn watch(&self, create: WatchCreateRequest) -> WatchStream {
        let next_revision = create.start_revision;
        WatchStream { client: self.clone(), create, open: None, next_revision, ended: false }
    }
}

impl WatchStream {
    /// The next response: events, progress, or as the last one a cancellation. Nothing after that.
    ///
    /// Cancellation safe: a response is either returned or still to come.
    pub async fn next(&mut self) -> Option<Result<WatchResponse, Error>> {
        while !self.ended {
            if let Err(error) = self.ensure_open().await {
                self.ended = true;
                return Some(Err(error));
            }
            let Some((_, stream)) = &mut self.open else { continue };
            match stream.message().await {
                Ok(Some(response)) => {
                    if let Some(response) = self.accept(response) {
                        return Some(Ok(response));
                    }
                }
                Ok(None) => self.open = None,
                Err(status) if passes(&status) => {
                    self.open = None;
                    sleep(RECONNECT_PAUSE).await;
                }
                Err(status) => {
                    self.ended = true;
                    return Some(Err(status.into()));
                }
            }
        }
        None
    }

    /// A handle that can ask for progress while [`WatchStream::next`] waits. Opens the stream.
    pub async fn progress_requester(&mut self) -> Result<ProgressRequester, Error> {
        loop {
            self.ensure_open().await?;
            if let Some((requests, _)) = &self.open {
                return Ok(ProgressRequester(requests.downgrade()));
            }
        }
    }

    /// Notes how far the watcher is. Its creation is no news for the caller.
    fn accept(&mut self, response: WatchResponse) -> Option<WatchResponse> {
        let revision = response.header.as_ref().map_or(0, |header| header.revision);
        if response.canceled {
            self.ended = true;
            return Some(response);
        }
        if response.created {
            if self.next_revision == 0 {
                self.next_revision = revision + 1;
            }
            return None;
        }
        let last_event = response.events.last().and_then(|event| event.kv.as_ref());
        match last_event {
            Some(kv) => self.next_revision = kv.mod_revision + 1,
            // Progress: everything up to here has been delivered.
            None => self.next_revision = self.next_revision.max(revision + 1),
        }
        Some(response)
    }

    async fn ensure_open(&mut self) -> Result<(), Error> {
        while self.open.is_none() {
            self.client.refresh_token().await?;
            let lent = self.client.lend("/etcdserverpb.Watch/Watch", 0).await?;
            let (requests, receiver) = mpsc::channel(REQUESTS);
            let create =
                WatchCreateRequest { start_revision: self.next_revision, ..self.create.clone() };
            let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
            requests.try_send(create).map_err(|_| Status::internal("the watch was not sent"))?;
            let mut watch = WatchClient::new(lent.channel.clone())
                .max_decoding_message_size(self.client.max_response_bytes());
            let request = self.client.request(ReceiverStream::new(receiver));
            match watch.watch(request).await {
                Ok(response) => self.open = Some((requests, response.into_inner())),
                Err(status) if passes(&status) => {
                    self.client.note_lost_connection(&lent, &status);
                    sleep(RECONNECT_PAUSE).await;
                }
                Err(status) => return Err(status.into()),
            }
        }
        Ok(())
    }
}

impl ProgressRequester {
    /// Asks for progress. Forgotten if the stream has ended or is full of requests: the next
    /// progress says the same.
    pub fn request(&self) {
        if let Some(requests) = self.0.upgrade() {
            let union = Some(RequestUnion::ProgressRequest(WatchProgressRequest {}));
            let _ = requests.try_send(WatchRequest { request_union: union });
        }
    }
}

/// Whether a failure is one that a new stream may not have (clientv3's isHaltErr).
fn passes(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::Internal | Code::Cancelled | Code::Unknown)
        && !status.message().starts_with("etcdserver: ")
        || status.code() == Code::Unavailable
}
