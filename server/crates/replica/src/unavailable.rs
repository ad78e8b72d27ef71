//! Why a request could not be served now. Each has one text at the edge, the one etcd uses.

/// The request may succeed later or on another member. For a write, only the reasons that say so
/// promise that it did not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// Too much is waiting to be applied; nothing was proposed.
    #[error("too many requests")]
    TooManyRequests,
    /// There is no leader to propose to; nothing was proposed.
    #[error("no leader")]
    NoLeader,
    /// The leader that the proposal was handed to is gone, and it is certain that the proposal was
    /// not and will not be applied. Requests meet this inside the room only: they are proposed again.
    #[error("not applied")]
    NotApplied,
    /// Leadership moved while the request was under way; a write may have happened.
    #[error("leader changed")]
    LeaderChanged,
    /// The leader of this member's choice is not the leader; nothing was proposed.
    #[error("not leader")]
    NotLeader,
    /// No answer in time; a write may have happened.
    #[error("request timed out")]
    Timeout,
    /// No answer in time, and the leader was lost meanwhile; a write may have happened.
    #[error("request timed out, possibly due to previous leader failure")]
    TimeoutLeaderFailure,
    /// No answer in time, and the leader could not be reached; a write may have happened.
    #[error("request timed out, possibly due to connection lost")]
    TimeoutConnectionLost,
    /// A read waited too long for this member to apply what the leader had committed.
    #[error("request timed out, waiting for the applied index took too long")]
    TimeoutWaitAppliedIndex,
    /// Fewer members than a quorum are connected.
    #[error("unhealthy cluster")]
    Unhealthy,
    /// This member is stopping.
    #[error("server stopped")]
    Stopped,
}
