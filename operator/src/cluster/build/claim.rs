//! The claim that holds a member's data.
//!
//! It has no owner reference. A member owns its claim all the same, but by label and by rule: a
//! cascading delete must never take the data of a voter (I5), and a foreground delete of the
//! `EtcdMember` would do just that before any finalizer could object. `act` deletes it, by policy.

use k8s_openapi::{
    api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimSpec, VolumeResourceRequirements},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::member_labels;
use crate::{
    cluster::{model::Serial, validate::Validated},
    crd::AccessMode,
};

/// The claim of one member.
pub fn claim(validated: &Validated, serial: Serial) -> PersistentVolumeClaim {
    let (names, storage) = (&validated.desired.names, &validated.spec.storage);
    let access_mode = match storage.access_mode {
        AccessMode::ReadWriteOnce => "ReadWriteOnce",
        AccessMode::ReadWriteOncePod => "ReadWriteOncePod",
    };
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(names.claim(serial)),
            namespace: Some(names.namespace.clone()),
            labels: Some(member_labels(validated, serial)),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec![access_mode.to_owned()]),
            storage_class_name: storage.class_name.clone(),
            resources: Some(VolumeResourceRequirements {
                requests: Some([("storage".to_owned(), storage.size.clone())].into()),
                ..VolumeResourceRequirements::default()
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        ..PersistentVolumeClaim::default()
    }
}
