//! Where backups are kept: an S3-compatible bucket or a PersistentVolumeClaim.
//!
//! Credentials are named, never held: they are mounted into the Job that needs them and the
//! operator itself does not read them.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A place for backups; `type` says which of the members is filled in.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    cel,
    validation = Rule::new("(self.type == 'S3') == has(self.s3)").message("s3 is required when type is S3 and not allowed otherwise"),
    validation = Rule::new("(self.type == 'PersistentVolumeClaim') == has(self.persistentVolumeClaim)").message("persistentVolumeClaim is required when type is PersistentVolumeClaim and not allowed otherwise")
)]
pub struct BackupStore {
    /// Which kind of store this is.
    #[serde(rename = "type")]
    pub kind: BackupStoreType,
    /// An S3-compatible bucket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub s3: Option<S3Store>,
    /// A claim in the cluster's namespace that the backup Job can mount.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<PersistentVolumeClaimStore>,
}

/// The kinds of store.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackupStoreType {
    S3,
    PersistentVolumeClaim,
}

/// An S3-compatible bucket.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct S3Store {
    /// Name of the bucket; it must exist.
    #[schemars(length(min = 3, max = 63))]
    pub bucket: String,
    /// Folder inside the bucket under which all objects are written.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub prefix: String,
    /// URL of the service; empty means AWS.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^https?://"))]
    pub endpoint: Option<String>,
    /// Region used for signing.
    #[serde(default = "default_region")]
    pub region: String,
    /// How the bucket is named in requests: `Path` for most S3-compatible servers.
    #[serde(default)]
    pub addressing: S3Addressing,
    /// Secret with the keys `accessKeyID`, `secretAccessKey` and optionally `sessionToken`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<LocalObjectReference>,
    /// Secret with the key `ca.crt` that signs the endpoint's certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<LocalObjectReference>,
}

/// How requests name the bucket.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum S3Addressing {
    #[default]
    Path,
    VirtualHost,
}

/// A claim that backup Jobs mount.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PersistentVolumeClaimStore {
    /// Name of the claim.
    #[schemars(length(min = 1, max = 253))]
    pub claim_name: String,
    /// Folder inside the volume.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[x_kube(validation = Rule::new("!self.contains('..') && !self.startsWith('/')").message("prefix must be a relative path without '..'"))]
    pub prefix: String,
}

/// The name of an object in the same namespace.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
pub struct LocalObjectReference {
    /// Name of the object.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

fn default_region() -> String {
    "us-east-1".to_owned()
}
