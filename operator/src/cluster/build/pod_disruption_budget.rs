//! The budget that keeps drains from taking the quorum.

use k8s_openapi::{
    api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};

use super::{SERVING_LABEL, cluster_metadata, member_selector};
use crate::{
    cluster::{model::quorum, validate::Validated},
    crd::Switch,
};

/// A budget over the serving voters. While the size changes, the larger of the two sizes counts.
/// A single member gets none: its budget could only forbid every drain for ever.
pub fn pod_disruption_budget(validated: &Validated, voters: usize) -> Option<PodDisruptionBudget> {
    let size = voters.max(validated.desired.replicas);
    if validated.spec.disruption.pod_disruption_budget == Switch::Disabled || size < 2 {
        return None;
    }
    let cluster = &validated.desired.names.cluster;
    let mut selector = member_selector(cluster);
    selector.insert(SERVING_LABEL.to_owned(), "true".to_owned());
    Some(PodDisruptionBudget {
        metadata: cluster_metadata(validated, cluster.clone(), "disruption"),
        spec: Some(PodDisruptionBudgetSpec {
            min_available: Some(IntOrString::Int(i32::try_from(quorum(size)).unwrap_or(i32::MAX))),
            selector: Some(LabelSelector {
                match_labels: Some(selector),
                ..LabelSelector::default()
            }),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    })
}
