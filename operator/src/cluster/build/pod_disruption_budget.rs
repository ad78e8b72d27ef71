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

/// With fewer members than this nobody can be spared.
const SMALLEST_THAT_BEARS_A_LOSS: usize = 3;

/// A budget over the serving voters, so that of those that vote now a quorum stays: a drain need not wait
/// until a cluster has grown that bears it already. On the way from one to three everybody is needed. A
/// single member gets none: its budget could only forbid every drain for ever.
pub fn pod_disruption_budget(
    validated: &Validated,
    electorate: usize,
) -> Option<PodDisruptionBudget> {
    let size = electorate.max(validated.desired.replicas.min(SMALLEST_THAT_BEARS_A_LOSS));
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
