//! Streams of callers who want a leader (metadata `hasleader`) end once there has been none for long.
//!
//! Whoever waits on a stream at a member that is cut off would wait for ever, and renew leases or watch keys
//! elsewhere in vain. etcd cancels the context of every such stream; which streams take notice of that is
//! up to their handlers: one that only sends, as a snapshot does, goes on.

use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use tonic::Status;

use super::context::ApiContext;
use super::status::ApiError;

/// A stream that wants a leader ends after this many election timeouts without one.
const LEADERLESS_TIMEOUTS: u32 = 3;

/// Resolves when the caller asked for a leader and there has been none for too long.
pub(super) async fn leader_lost(context: &ApiContext, wanted: bool) -> Status {
    if !wanted {
        return std::future::pending().await;
    }
    let patience: Duration = context.server.election_timeout * LEADERLESS_TIMEOUTS;
    let mut status = context.handle.watch_status();
    loop {
        if status.wait_for(|status| status.answered_leader().is_none()).await.is_err() {
            return ApiError::Stopped.into();
        }
        let back = status.wait_for(|status| status.answered_leader().is_some());
        match tokio::time::timeout(patience, back).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return ApiError::Stopped.into(),
            Err(_) => return ApiError::NoLeader.into(),
        }
    }
}

/// These answers, until a leader that is wanted is lost.
pub(super) fn while_led<T: Send>(
    context: ApiContext,
    wanted: bool,
    answers: impl Stream<Item = Result<T, Status>> + Send,
) -> impl Stream<Item = Result<T, Status>> + Send {
    let lost = async move { leader_lost(&context, wanted).await };
    let state = Some((Box::pin(answers), Box::pin(lost)));
    stream::unfold(state, |state| async move {
        let (mut answers, mut lost) = state?;
        tokio::select! {
            answer = answers.next() => Some((answer?, Some((answers, lost)))),
            status = &mut lost => Some((Err(status), None)),
        }
    })
}
