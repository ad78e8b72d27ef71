//! What a member's edge does with a request, without the wire.
//!
//! Who a caller is and what it may do is decided by the rooms below, as in the server: tokens by
//! [`machine::SimpleTokens`], permissions by [`Permit`] for reads and at apply for the rest, and by
//! [`still_valid`] before a read is shown. Here is only the order in which they are asked, which is
//! that of the server's `auth.rs` and `api/access.rs`. Where the server computes between two of these
//! steps, or another thread could, this can take its time, so that something happens meanwhile.

use std::time::Duration;

use machine::{
    AuthAnswer, AuthRefusal, Caller, CommandKind, Outcome, Permit, Proposal, Refusal, SimpleTokens,
    Views, range_query, still_valid,
};
use mvcc::RangeError;
use prost::Message;
use proto::etcdserverpb as pb;
use replica::Unavailable;
use tokio::time::{sleep, timeout};
use types::{KeyRange, Planted};

use crate::auth::{AuthRequest, tag};
use crate::cluster::Service;
use crate::history::{Failure, Request, Response, decode};

/// How long a token may be ahead of this member.
const TOKEN_PATIENCE: Duration = Duration::from_secs(5);

/// Whom a member took a client for, and by which states it judged; the times are applied indexes.
#[derive(Clone, Debug, Default)]
pub struct Witness {
    pub token: Option<String>,
    pub caller: Caller,
    pub recognised: u64,
    /// When the keys were read, for what is read here.
    pub read: u64,
    /// When that was confirmed.
    pub confirmed: u64,
}

/// What comes with a request.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The operation of the history.
    pub operation: usize,
    pub token: Option<String>,
    /// How long the edge computes between two of its steps.
    pub pause: Duration,
}

/// What a method demands of its caller.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Anybody,
    AnyUser,
    Admin,
}

/// Serves a request and says whom it was served for.
pub async fn serve(
    service: &Service,
    request: Request,
    asked: &Asked,
) -> (Result<Response, Failure>, Option<Witness>) {
    let mut witness = None;
    let result = match &request {
        Request::Range(range) => serve_range(service, range, asked, &mut witness).await,
        Request::Other(AuthRequest::LogIn { user, password }) => {
            log_in(service, user, password, asked).await
        }
        _ => propose(service, &request, asked, &mut witness).await,
    };
    (result, witness)
}

/// What came of a request of auth.
fn told(answer: AuthAnswer) -> Response {
    Response::Other { revision: answer.revision.0, told: answer }
}

/// Whether a reason says that nothing was proposed.
fn failure(reason: Unavailable) -> Failure {
    match reason {
        Unavailable::TooManyRequests | Unavailable::NoLeader | Unavailable::NotLeader => {
            Failure::NotDone(reason.to_string())
        }
        reason => Failure::Unknown(reason.to_string()),
    }
}

/// Takes the time that the edge needs between two steps.
async fn compute(asked: &Asked) {
    if !asked.pause.is_zero() {
        sleep(asked.pause).await;
    }
}

fn applied_index(service: &Service) -> u64 {
    service.handle.views().applied_index().0
}

/// Who shows this token.
async fn recognise(service: &Service, asked: &Asked) -> Result<Witness, Failure> {
    let nobody = |service: &Service| Witness {
        token: asked.token.clone(),
        recognised: applied_index(service),
        ..Witness::default()
    };
    let Some(token) = &asked.token else { return Ok(nobody(service)) };
    if service.handle.with_views(Views::auth_is_off) {
        return Ok(nobody(service));
    }
    let index = SimpleTokens::index_of(token).ok_or(Failure::InvalidToken)?;
    let reached = timeout(TOKEN_PATIENCE, service.handle.applied(index)).await;
    reached.map_err(|_| Failure::InvalidToken)?;
    // Read only now: the entry that was waited for may have changed it.
    let auth_revision = service.handle.views().auth().revision();
    let user = service.user_of(token).ok_or(Failure::InvalidToken)?;
    Ok(Witness { caller: Caller { user, auth_revision }, ..nobody(service) })
}

fn demand(service: &Service, caller: &Caller, access: Access) -> Result<(), Failure> {
    let auth = || service.handle.views().auth();
    let granted = match access {
        Access::Anybody => Ok(()),
        Access::AnyUser => auth().check_any_user(&caller.user),
        Access::Admin => auth().check_admin(&caller.user),
    };
    granted.map_err(Failure::Denied)
}

fn command(request: &Request) -> Option<(CommandKind, Vec<u8>, Access)> {
    Some(match request {
        Request::Put(put) => (CommandKind::Put, put.encode_to_vec(), Access::Anybody),
        Request::Delete(delete) => {
            (CommandKind::DeleteRange, delete.encode_to_vec(), Access::Anybody)
        }
        Request::Txn(txn) => (CommandKind::Txn, txn.encode_to_vec(), Access::Anybody),
        Request::Compact(compact) => {
            (CommandKind::Compaction, compact.encode_to_vec(), Access::Admin)
        }
        Request::Grant(grant) => (CommandKind::LeaseGrant, grant.encode_to_vec(), Access::AnyUser),
        Request::Revoke(revoke) => {
            (CommandKind::LeaseRevoke, revoke.encode_to_vec(), Access::AnyUser)
        }
        Request::Other(auth) => {
            let (kind, body) = auth.command()?;
            let access = match auth {
                // Nobody else shall make the member hash.
                AuthRequest::UserAdd(_) | AuthRequest::UserChangePassword(_) => Access::Admin,
                _ => Access::Anybody,
            };
            (kind, body, access)
        }
        Request::Range(_) => return None,
    })
}

async fn propose(
    service: &Service,
    request: &Request,
    asked: &Asked,
    seen: &mut Option<Witness>,
) -> Result<Response, Failure> {
    let Some((kind, body, access)) = command(request) else {
        return Err(Failure::NotDone("this is not proposed".to_owned()));
    };
    let witness = recognise(service, asked).await?;
    let caller = witness.caller.clone();
    *seen = Some(witness);
    demand(service, &caller, access)?;
    if Planted::PermissionAtProposeOnly.is_made() {
        judge_too_early(service, request, &caller).map_err(Failure::Denied)?;
    }
    compute(asked).await;
    let proposal = Proposal { kind, body: tag(body, asked.operation), caller };
    match service.handle.propose(proposal).await.map_err(failure)? {
        Outcome::Put(response) => Ok(Response::Put(response)),
        Outcome::DeleteRange(response) => Ok(Response::Delete(response)),
        Outcome::Txn(response) => Ok(Response::Txn(response)),
        Outcome::Compaction(response) => Ok(Response::Compact(response)),
        Outcome::LeaseGrant(response) => Ok(Response::Grant(response)),
        Outcome::LeaseRevoke(response) => Ok(Response::Revoke(response)),
        Outcome::Auth(answer) => Ok(told(answer)),
        Outcome::Refused(refusal) => Err(Failure::Refused(refusal)),
        other => Err(Failure::Unknown(format!("an answer to another request: {other:?}"))),
    }
}

/// The planted mistake: judging what is written by the permissions of now.
fn judge_too_early(
    service: &Service,
    request: &Request,
    caller: &Caller,
) -> Result<(), AuthRefusal> {
    use pb::request_op::Request as Op;
    let auth = service.handle.views().auth();
    let permit = Permit::new(&auth, caller);
    let put = |put: &pb::PutRequest| {
        let key = KeyRange::single(put.key.clone());
        permit.write(&key)?;
        if put.prev_kv { permit.read(&key) } else { Ok(()) }
    };
    let delete = |delete: &pb::DeleteRangeRequest| {
        let range = KeyRange::from_wire(delete.key.clone(), delete.range_end.clone());
        permit.write(&range)?;
        if delete.prev_kv { permit.read(&range) } else { Ok(()) }
    };
    let read = |key: &bytes::Bytes, end: &bytes::Bytes| {
        permit.read(&KeyRange::from_wire(key.clone(), end.clone()))
    };
    match request {
        Request::Put(request) => put(request),
        Request::Delete(request) => delete(request),
        Request::Txn(txn) => {
            txn.compare.iter().try_for_each(|c| read(&c.key, &c.range_end))?;
            let operations = txn.success.iter().chain(&txn.failure);
            operations.filter_map(|operation| operation.request.as_ref()).try_for_each(
                |op| match op {
                    Op::RequestPut(request) => put(request),
                    Op::RequestDeleteRange(request) => delete(request),
                    Op::RequestRange(range) => read(&range.key, &range.range_end),
                    Op::RequestTxn(_) => Ok(()),
                },
            )
        }
        _ => Ok(()),
    }
}

async fn serve_range(
    service: &Service,
    range: &pb::RangeRequest,
    asked: &Asked,
    seen: &mut Option<Witness>,
) -> Result<Response, Failure> {
    if !range.serializable {
        service.handle.read_index().await.map_err(failure)?;
    }
    let mut witness = recognise(service, asked).await?;
    let views = service.handle.views();
    let keys = KeyRange::from_wire(range.key.clone(), range.range_end.clone());
    let judged = match views.auth_is_off() {
        true => Ok(()),
        false => Permit::new(&views.auth(), &witness.caller).read(&keys),
    };
    witness.read = views.applied_index().0;
    witness.confirmed = witness.read;
    *seen = Some(witness.clone());
    judged.map_err(Failure::Denied)?;
    compute(asked).await;
    witness.read = views.applied_index().0;
    let answer = views.mvcc.range(&range_query(range));
    compute(asked).await;
    witness.confirmed = views.applied_index().0;
    *seen = Some(witness.clone());
    still_valid(&witness.caller, &views).map_err(Failure::Denied)?;
    match answer {
        Ok(answer) => Ok(Response::Range(pb::RangeResponse {
            header: Some(pb::ResponseHeader {
                revision: answer.revision.0,
                ..pb::ResponseHeader::default()
            }),
            kvs: answer.kvs.iter().map(decode).collect(),
            more: answer.more,
            count: answer.count,
        })),
        Err(RangeError::Compacted) => Err(Failure::Refused(Refusal::Compacted)),
        Err(RangeError::FutureRevision) => Err(Failure::Refused(Refusal::FutureRevision)),
        Err(RangeError::Store(error)) => Err(Failure::NotDone(error.to_string())),
    }
}

/// Compares a password and has a token registered.
async fn log_in(
    service: &Service,
    user: &str,
    password: &str,
    asked: &Asked,
) -> Result<Response, Failure> {
    service.handle.read_index().await.map_err(|reason| Failure::NotDone(reason.to_string()))?;
    let found = service.handle.views().auth().password_hash(user);
    let (hash, auth_revision) = found.map_err(Failure::Denied)?;
    if hash != password.as_bytes() {
        return Err(Failure::Denied(AuthRefusal::AuthenticationFailed));
    }
    // Comparing takes long by design.
    compute(asked).await;
    let request = pb::InternalAuthenticateRequest {
        name: user.to_owned(),
        password: String::new(),
        simple_token: format!("t{}", asked.operation),
    };
    let proposal = Proposal {
        kind: CommandKind::Authenticate,
        body: tag(request.encode_to_vec(), asked.operation),
        caller: Caller { user: String::new(), auth_revision },
    };
    match service.handle.propose(proposal).await.map_err(failure)? {
        Outcome::Auth(answer) => Ok(told(answer)),
        Outcome::Refused(refusal) => Err(Failure::Refused(refusal)),
        other => Err(Failure::Unknown(format!("an answer to another request: {other:?}"))),
    }
}
