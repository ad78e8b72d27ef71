//! The two Services: one for clients, one headless for the members' names.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Service, ServicePort, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{
    CLIENT_PORT, METRICS_PORT, PEER_PORT, SERVING_LABEL, cluster_metadata, member_selector,
};
use crate::{cluster::validate::Validated, crd::ClientServiceType};

/// The Service for clients. It selects members that serve, so neither a Job's Pod nor a learner
/// nor a member of a cluster that was never formed becomes an endpoint.
pub fn client_service(validated: &Validated) -> Service {
    let client = &validated.spec.services.client;
    let mut metadata = cluster_metadata(
        validated,
        format!("{}-client", validated.desired.names.cluster),
        "service",
    );
    if !client.annotations.is_empty() {
        metadata.annotations = Some(client.annotations.clone());
    }
    let mut selector = member_selector(&validated.desired.names.cluster);
    selector.insert(SERVING_LABEL.to_owned(), "true".to_owned());
    let kind = match client.kind {
        ClientServiceType::ClusterIP => "ClusterIP",
        ClientServiceType::NodePort => "NodePort",
        ClientServiceType::LoadBalancer => "LoadBalancer",
    };
    Service {
        metadata,
        spec: Some(ServiceSpec {
            type_: Some(kind.to_owned()),
            selector: Some(selector),
            ports: Some(vec![port("client", CLIENT_PORT)]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// The headless Service behind the members' DNS names. Members must find each other before they
/// are ready, or they never would be.
pub fn peer_service(validated: &Validated) -> Service {
    let cluster = &validated.desired.names.cluster;
    let selector: BTreeMap<String, String> = member_selector(cluster);
    Service {
        metadata: cluster_metadata(validated, format!("{cluster}-peers"), "service"),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".to_owned()),
            publish_not_ready_addresses: Some(true),
            selector: Some(selector),
            ports: Some(vec![
                port("client", CLIENT_PORT),
                port("peer", PEER_PORT),
                port("metrics", METRICS_PORT),
            ]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

fn port(name: &str, port: i32) -> ServicePort {
    ServicePort {
        name: Some(name.to_owned()),
        port,
        target_port: Some(IntOrString::Int(port)),
        protocol: Some("TCP".to_owned()),
        ..ServicePort::default()
    }
}
