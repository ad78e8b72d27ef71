//! What the operator asks of etcd: the standard API and nothing else, so that it can drive Go etcd
//! as well as our own server.
//!
//! Members are dialled one by one at their Pods' addresses, never through a Service: the operator
//! has to know which member said what. The TLS name is the member's DNS name, so that the address
//! need not be in its certificate and the operator needs no cluster DNS.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use proto::etcdserverpb::{
    MemberAddRequest, MemberListRequest, MemberPromoteRequest, MemberRemoveRequest,
    MoveLeaderRequest, StatusRequest, cluster_client::ClusterClient,
    maintenance_client::MaintenanceClient,
};
use tonic::{
    Code, Status,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};
use types::{ClusterId, MemberId};

use crate::{
    certificates::KeyPairPem,
    cluster::model::{Entry, Silence},
};

/// Longest time a single call may take.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// One member's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberAddress {
    /// `http://10.0.0.1:2379`.
    pub url: String,
    /// Name that the certificate must hold.
    pub host: String,
}

/// What the operator shows and trusts.
#[derive(Clone, Debug)]
pub struct ClientTls {
    pub ca: String,
    pub identity: KeyPairPem,
}

/// What a member says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberReport {
    pub cluster_id: ClusterId,
    pub member_id: MemberId,
    /// 0 when the member knows no leader.
    pub leader: MemberId,
    pub term: u64,
    pub revision: i64,
    pub raft_index: u64,
    pub applied_index: u64,
    pub version: String,
    pub db_size: i64,
    /// Absent when the member does not say (etcd before 3.6) or has no limit.
    pub db_quota: Option<i64>,
    pub is_learner: bool,
    pub corrupt: bool,
    /// Members that ran out of space; the alarms are the cluster's, so every member names them all.
    pub no_space: Vec<MemberId>,
}

/// A call that a member did not answer well.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EtcdError {
    /// The member was not reached.
    #[error("{silence:?}: {detail}")]
    Silent { silence: Silence, detail: String },
    /// The member refused; asking again without a change is of no use.
    #[error("{detail}")]
    Refused { reason: Refusal, detail: String },
}

/// Refusals that the operator reacts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Go etcd adds nobody while a member is down.
    Unhealthy,
    /// The learner is not in sync yet.
    LearnerNotReady,
    /// The member is not in the list (any more).
    MemberNotFound,
    /// A member with this peer URL exists.
    PeerExists,
    Other,
}

/// The part of etcd's API that membership needs.
pub trait EtcdAdmin: Send + Sync {
    fn status<'a>(
        &'a self,
        member: &'a MemberAddress,
    ) -> BoxFuture<'a, Result<MemberReport, EtcdError>>;
    /// The member list, confirmed by a quorum.
    fn member_list<'a>(
        &'a self,
        member: &'a MemberAddress,
    ) -> BoxFuture<'a, Result<(ClusterId, Vec<Entry>), EtcdError>>;
    fn add_learner<'a>(
        &'a self,
        member: &'a MemberAddress,
        peer_url: &'a str,
    ) -> BoxFuture<'a, Result<MemberId, EtcdError>>;
    fn promote<'a>(
        &'a self,
        member: &'a MemberAddress,
        id: MemberId,
    ) -> BoxFuture<'a, Result<(), EtcdError>>;
    fn remove<'a>(
        &'a self,
        member: &'a MemberAddress,
        id: MemberId,
    ) -> BoxFuture<'a, Result<(), EtcdError>>;
    /// Must be asked of the leader.
    fn move_leader<'a>(
        &'a self,
        leader: &'a MemberAddress,
        to: MemberId,
    ) -> BoxFuture<'a, Result<(), EtcdError>>;
}

/// [`EtcdAdmin`] over gRPC.
#[derive(Clone)]
pub struct GrpcAdmin {
    tls: Option<Arc<ClientTls>>,
}

impl GrpcAdmin {
    pub fn new(tls: Option<Arc<ClientTls>>) -> GrpcAdmin {
        GrpcAdmin { tls }
    }

    /// A connection to one member.
    ///
    /// # Errors
    /// The address or the certificates are not valid, or nobody answers.
    pub async fn connect(&self, member: &MemberAddress) -> Result<Channel, EtcdError> {
        let wrong = |error: tonic::transport::Error| EtcdError::Silent {
            silence: Silence::TlsRejected,
            detail: chain(&error),
        };
        let mut endpoint =
            Endpoint::from_shared(member.url.clone()).map_err(wrong)?.connect_timeout(CALL_TIMEOUT);
        if let Some(tls) = &self.tls {
            let identity = Identity::from_pem(&tls.identity.certificate, &tls.identity.key);
            let config = ClientTlsConfig::new()
                .domain_name(&member.host)
                .ca_certificate(Certificate::from_pem(&tls.ca))
                .identity(identity);
            endpoint = endpoint.tls_config(config).map_err(wrong)?;
        }
        endpoint.connect().await.map_err(|error| {
            let detail = chain(&error);
            let silence = if detail.contains("refused") {
                Silence::Refused
            } else if detail.contains("certificate") || detail.contains("tls") {
                Silence::TlsRejected
            } else {
                Silence::Timeout
            };
            EtcdError::Silent { silence, detail }
        })
    }

    async fn cluster(&self, member: &MemberAddress) -> Result<ClusterClient<Channel>, EtcdError> {
        Ok(ClusterClient::new(self.connect(member).await?))
    }

    async fn maintenance(
        &self,
        member: &MemberAddress,
    ) -> Result<MaintenanceClient<Channel>, EtcdError> {
        Ok(MaintenanceClient::new(self.connect(member).await?))
    }
}

impl EtcdAdmin for GrpcAdmin {
    fn status<'a>(
        &'a self,
        member: &'a MemberAddress,
    ) -> BoxFuture<'a, Result<MemberReport, EtcdError>> {
        Box::pin(bounded(async move {
            let status = self.maintenance(member).await?.status(StatusRequest {}).await;
            let status = status.map_err(refusal)?.into_inner();
            let header = status.header.unwrap_or_default();
            Ok(MemberReport {
                cluster_id: ClusterId(header.cluster_id),
                member_id: MemberId(header.member_id),
                leader: MemberId(status.leader),
                term: status.raft_term,
                revision: header.revision,
                raft_index: status.raft_index,
                applied_index: status.raft_applied_index,
                version: status.version,
                db_size: status.db_size,
                db_quota: Some(status.db_size_quota).filter(|quota| *quota > 0),
                is_learner: status.is_learner,
                corrupt: status.errors.iter().any(|error| error.contains("CORRUPT")),
                no_space: status.errors.iter().filter_map(|error| no_space(error)).collect(),
            })
        }))
    }

    fn member_list<'a>(
        &'a self,
        member: &'a MemberAddress,
    ) -> BoxFuture<'a, Result<(ClusterId, Vec<Entry>), EtcdError>> {
        Box::pin(bounded(async move {
            let request = MemberListRequest { linearizable: true };
            let list = self.cluster(member).await?.member_list(request).await;
            let list = list.map_err(refusal)?.into_inner();
            let cluster_id = ClusterId(list.header.unwrap_or_default().cluster_id);
            let entries = list.members.into_iter().map(|member| Entry {
                id: MemberId(member.id),
                name: member.name,
                peer_url: member.peer_ur_ls.into_iter().next().unwrap_or_default(),
                learner: member.is_learner,
                started: !member.client_ur_ls.is_empty(),
            });
            Ok((cluster_id, entries.collect()))
        }))
    }

    fn add_learner<'a>(
        &'a self,
        member: &'a MemberAddress,
        peer_url: &'a str,
    ) -> BoxFuture<'a, Result<MemberId, EtcdError>> {
        Box::pin(bounded(async move {
            let request =
                MemberAddRequest { peer_ur_ls: vec![peer_url.to_owned()], is_learner: true };
            let added = self.cluster(member).await?.member_add(request).await.map_err(refusal)?;
            Ok(MemberId(added.into_inner().member.unwrap_or_default().id))
        }))
    }

    fn promote<'a>(
        &'a self,
        member: &'a MemberAddress,
        id: MemberId,
    ) -> BoxFuture<'a, Result<(), EtcdError>> {
        Box::pin(bounded(async move {
            let request = MemberPromoteRequest { id: id.0 };
            self.cluster(member).await?.member_promote(request).await.map_err(refusal).map(|_| ())
        }))
    }

    fn remove<'a>(
        &'a self,
        member: &'a MemberAddress,
        id: MemberId,
    ) -> BoxFuture<'a, Result<(), EtcdError>> {
        Box::pin(bounded(async move {
            let request = MemberRemoveRequest { id: id.0 };
            self.cluster(member).await?.member_remove(request).await.map_err(refusal).map(|_| ())
        }))
    }

    fn move_leader<'a>(
        &'a self,
        leader: &'a MemberAddress,
        to: MemberId,
    ) -> BoxFuture<'a, Result<(), EtcdError>> {
        Box::pin(bounded(async move {
            let request = MoveLeaderRequest { target_id: to.0 };
            self.maintenance(leader).await?.move_leader(request).await.map_err(refusal).map(|_| ())
        }))
    }
}

async fn bounded<T>(call: impl Future<Output = Result<T, EtcdError>>) -> Result<T, EtcdError> {
    tokio::time::timeout(CALL_TIMEOUT, call).await.unwrap_or_else(|_| {
        let detail = format!("no answer within {} s", CALL_TIMEOUT.as_secs());
        Err(EtcdError::Silent { silence: Silence::Timeout, detail })
    })
}

/// etcd's texts are part of its API: clients tell errors apart by them (`rpctypes/error.go`).
pub(crate) fn refusal(status: Status) -> EtcdError {
    let text = status.message();
    let silent = |silence| EtcdError::Silent { silence, detail: text.to_owned() };
    let refused = |reason| EtcdError::Refused { reason, detail: text.to_owned() };
    match status.code() {
        Code::DeadlineExceeded | Code::Cancelled => silent(Silence::Timeout),
        _ if text.contains("unhealthy cluster") => refused(Refusal::Unhealthy),
        _ if text.contains("re-configuration failed due to not enough started members") => {
            refused(Refusal::Unhealthy)
        }
        _ if text.contains("can only promote a learner member which is in sync with leader") => {
            refused(Refusal::LearnerNotReady)
        }
        _ if text.contains("member not found") => refused(Refusal::MemberNotFound),
        _ if text.contains("Peer URLs already exists") => refused(Refusal::PeerExists),
        Code::Unavailable if text.contains("no leader") => silent(Silence::NoLeader),
        Code::Unavailable => silent(Silence::Timeout),
        _ => refused(Refusal::Other),
    }
}

/// The member that an alarm is about: `memberID:10501334649042878790 alarm:NOSPACE`.
fn no_space(error: &str) -> Option<MemberId> {
    let mut words = error.split_whitespace();
    let id = words.next()?.strip_prefix("memberID:")?.parse().ok()?;
    (words.next()? == "alarm:NOSPACE").then_some(MemberId(id))
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alarm_of_no_space_names_its_member() {
        let id = MemberId(10_501_334_649_042_878_790);
        assert_eq!(no_space("memberID:10501334649042878790 alarm:NOSPACE"), Some(id));
        // Go's protobuf puts one blank or two, so that nobody counts on its text.
        assert_eq!(no_space("memberID:10501334649042878790  alarm:NOSPACE "), Some(id));
        assert_eq!(no_space("memberID:10501334649042878790 alarm:CORRUPT"), None);
        assert_eq!(no_space("etcdserver: no leader"), None);
    }
}
