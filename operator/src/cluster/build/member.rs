//! The `EtcdMember` of one member.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{FINALIZER, member_labels, owned_by_cluster};
use crate::{
    cluster::{model::Serial, validate::Validated},
    crd::{EtcdMember, EtcdMemberSpec, InitialState, JoinReason, LocalObjectReference},
};

/// The object of one member, held by a finalizer until etcd no longer lists the member.
pub fn member(
    validated: &Validated,
    serial: Serial,
    initial_state: InitialState,
    join_reason: Option<JoinReason>,
) -> EtcdMember {
    let names = &validated.desired.names;
    EtcdMember {
        metadata: ObjectMeta {
            name: Some(names.member(serial)),
            namespace: Some(names.namespace.clone()),
            labels: Some(member_labels(validated, serial)),
            finalizers: Some(vec![FINALIZER.to_owned()]),
            owner_references: Some(vec![owned_by_cluster(validated)]),
            ..ObjectMeta::default()
        },
        spec: EtcdMemberSpec {
            cluster_ref: LocalObjectReference { name: names.cluster.clone() },
            serial: serial.0,
            initial_state,
            peer_url: names.peer_url(serial),
            claim_name: names.claim(serial),
            join_reason,
        },
        status: None,
    }
}
