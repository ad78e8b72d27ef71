//! Keeping a lease alive.
//!
//! A renewal is sent when a third of the time to live has passed. A broken stream is opened again
//! until the lease would have expired at the latest; then it counts as lost.

use std::time::Duration;

use proto::etcdserverpb::lease_client::LeaseClient;
use proto::etcdserverpb::{LeaseKeepAliveRequest, LeaseKeepAliveResponse};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::call::Client;
use crate::error::Error;

/// How long the first answer may take, if the client has no dial timeout (clientv3's defaultTTL).
const FIRST_ANSWER: Duration = Duration::from_secs(5);
/// Pause before a broken stream is opened again (clientv3's retryConnWait).
const RECONNECT_PAUSE: Duration = Duration::from_millis(500);

/// A lease that is being kept alive.
#[derive(Debug)]
pub struct KeepAlive {
    client: Client,
    id: i64,
    open: Option<(mpsc::Sender<LeaseKeepAliveRequest>, Streaming<LeaseKeepAliveResponse>)>,
    renew_at: Instant,
    expires_at: Instant,
    ended: bool,
}

impl Client {
    /// Keeps a lease alive as long as [`KeepAlive::next`] is called.
    pub fn lease_keep_alive(&self, id: i64) -> KeepAlive {
        let now = Instant::now();
        let first =
            self.dial_timeout().map_or(FIRST_ANSWER, |timeout| timeout + Duration::from_secs(1));
        KeepAlive {
            client: self.require_leader(),
            id,
            open: None,
            renew_at: now,
            expires_at: now + first,
            ended: false,
        }
    }

    /// Renews a lease once; an unknown lease is an error.
    pub async fn lease_keep_alive_once(&self, id: i64) -> Result<LeaseKeepAliveResponse, Error> {
        loop {
            let attempt = async {
                let (_requests, mut stream) = open(self, id).await?;
                stream
                    .message()
                    .await?
                    .ok_or_else(|| Error::from(Status::unavailable("the stream ended")))
            };
            let result = self.before_deadline(attempt).await.ok_or(Error::DeadlineExceeded)?;
            match result {
                Ok(response) if response.ttl <= 0 => {
                    return Err(Status::not_found("etcdserver: requested lease not found").into());
                }
                Err(error) if passes(&error) => continue,
                result => return result,
            }
        }
    }
}

impl KeepAlive {
    /// The next renewal; nothing once the lease has expired or was revoked.
    pub async fn next(&mut self) -> Option<LeaseKeepAliveResponse> {
        while !self.ended {
            sleep_until(self.renew_at).await;
            match timeout_at(self.expires_at, self.renew()).await {
                Ok(Ok(response)) if response.ttl > 0 => {
                    let ttl = Duration::from_secs(response.ttl.unsigned_abs());
                    let now = Instant::now();
                    self.renew_at = now + ttl / 3;
                    self.expires_at = now + ttl;
                    return Some(response);
                }
                // Expired, revoked, or out of reach for longer than it lives.
                Ok(Ok(_)) | Err(_) => self.ended = true,
                Ok(Err(_)) => {
                    self.open = None;
                    self.renew_at = Instant::now() + RECONNECT_PAUSE;
                    self.ended = self.renew_at > self.expires_at;
                }
            }
        }
        None
    }

    async fn renew(&mut self) -> Result<LeaseKeepAliveResponse, Error> {
        let (_, stream) = match &mut self.open {
            Some((requests, stream)) => {
                requests
                    .send(LeaseKeepAliveRequest { id: self.id })
                    .await
                    .map_err(|_| Status::unavailable("the stream ended"))?;
                (requests, stream)
            }
            closed => {
                let (requests, stream) = closed.insert(open(&self.client, self.id).await?);
                (requests, stream)
            }
        };
        stream.message().await?.ok_or_else(|| Status::unavailable("the stream ended").into())
    }
}

type Open = (mpsc::Sender<LeaseKeepAliveRequest>, Streaming<LeaseKeepAliveResponse>);

/// Opens a stream with a first request on it: a server sends nothing, not even headers, before it
/// has a response.
async fn open(client: &Client, id: i64) -> Result<Open, Error> {
    client.refresh_token().await?;
    loop {
        let lent = client.lend("/etcdserverpb.Lease/LeaseKeepAlive", 0).await?;
        let (requests, receiver) = mpsc::channel(1);
        let first = requests.try_send(LeaseKeepAliveRequest { id });
        first.map_err(|_| Status::internal("the renewal was not sent"))?;
        let request = client.request(ReceiverStream::new(receiver));
        match LeaseClient::new(lent.channel.clone()).lease_keep_alive(request).await {
            Ok(response) => return Ok((requests, response.into_inner())),
            Err(status) => {
                let sent = client.note_lost_connection(&lent, &status);
                if sent {
                    return Err(status.into());
                }
                sleep(RECONNECT_PAUSE).await;
            }
        }
    }
}

fn passes(error: &Error) -> bool {
    matches!(error.code(), Some(Code::Unavailable | Code::Internal))
}
