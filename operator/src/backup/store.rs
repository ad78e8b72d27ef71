//! Opens a store: an S3-compatible bucket or a mounted volume, behind one interface.
//!
//! `object_store` is used because it is maintained by the Arrow project, uploads in parts with
//! bounded memory, retries, and signs with ring. It runs in the agent only: the operator process
//! never holds credentials.

use std::{path::Path, sync::Arc};

use object_store::{
    Certificate, ClientOptions, ObjectStore,
    aws::{AmazonS3, AmazonS3Builder},
    local::LocalFileSystem,
    prefix::PrefixStore,
};

use super::uploads::Store;
use crate::crd::{BackupStore, BackupStoreType, PersistentVolumeClaimStore, S3Addressing, S3Store};

/// Where a claim is mounted in agents.
pub const VOLUME_MOUNT: &str = "/backup";
/// Where the CA of an S3 endpoint is mounted in agents.
pub const CA_MOUNT: &str = "/etc/etcd/backup-ca";

/// A store that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("store has type {kind:?}, but that part of it is missing")]
    Incomplete { kind: BackupStoreType },
    #[error("open store: {0}")]
    Store(#[from] object_store::Error),
    #[error("read {path}: {source}")]
    File { path: String, source: std::io::Error },
}

/// Credentials as the agent's environment holds them.
#[derive(Clone, Default)]
pub struct Credentials {
    pub access_key_id: Option<String>,
    pub secret_access_key: Option<String>,
    pub session_token: Option<String>,
}

impl Credentials {
    /// From the variables that the Job sets.
    pub fn from_environment() -> Credentials {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        Credentials {
            access_key_id: variable("AWS_ACCESS_KEY_ID"),
            secret_access_key: variable("AWS_SECRET_ACCESS_KEY"),
            session_token: variable("AWS_SESSION_TOKEN"),
        }
    }
}

/// Opens the store.
///
/// # Errors
/// The description is incomplete, or a file that it names cannot be read.
pub fn open(store: &BackupStore, credentials: &Credentials) -> Result<Store, OpenError> {
    let incomplete = || OpenError::Incomplete { kind: store.kind };
    match store.kind {
        BackupStoreType::S3 => {
            let s3 = store.s3.as_ref().ok_or_else(incomplete)?;
            let bucket = open_s3(s3, credentials)?;
            Ok(match s3.prefix.as_str() {
                "" => Store::bucket(bucket),
                prefix => Store::bucket(PrefixStore::new(bucket, prefix)),
            })
        }
        BackupStoreType::PersistentVolumeClaim => {
            let claim = store.persistent_volume_claim.as_ref().ok_or_else(incomplete)?;
            Ok(open_volume(Path::new(VOLUME_MOUNT), claim)?)
        }
    }
}

/// A volume that is mounted there. What is written is on the disk before it counts as written.
pub(super) fn open_volume(
    mount: &Path,
    claim: &PersistentVolumeClaimStore,
) -> Result<Store, object_store::Error> {
    let files = LocalFileSystem::new_with_prefix(mount)?.with_fsync(true);
    let prefix = claim.prefix.as_str();
    let objects: Arc<dyn ObjectStore> = match prefix {
        "" => Arc::new(files),
        prefix => Arc::new(PrefixStore::new(files, prefix)),
    };
    Ok(Store::directory(objects, &mount.join(prefix.trim_matches('/'))))
}

fn open_s3(s3: &S3Store, credentials: &Credentials) -> Result<AmazonS3, OpenError> {
    let mut options = ClientOptions::new();
    let plain = s3.endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://"));
    let ca = Path::new(CA_MOUNT).join("ca.crt");
    if s3.ca_secret_ref.is_some() {
        let pem = std::fs::read(&ca)
            .map_err(|source| OpenError::File { path: ca.display().to_string(), source })?;
        for certificate in Certificate::from_pem_bundle(&pem)? {
            options = options.with_root_certificate(certificate);
        }
    }
    // Without TLS no authority is needed, and a CA that is named is the one to trust: neither
    // depends on what the image knows of public authorities.
    options = options.with_no_system_certificates(plain || s3.ca_secret_ref.is_some());
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(&s3.bucket)
        .with_region(&s3.region)
        .with_allow_http(plain)
        .with_virtual_hosted_style_request(s3.addressing == S3Addressing::VirtualHost)
        .with_client_options(options.with_allow_http(plain));
    if let Some(endpoint) = &s3.endpoint {
        builder = builder.with_endpoint(endpoint.trim_end_matches('/'));
    }
    if let (Some(id), Some(key)) = (&credentials.access_key_id, &credentials.secret_access_key) {
        builder = builder.with_access_key_id(id).with_secret_access_key(key);
    }
    if let Some(token) = &credentials.session_token {
        builder = builder.with_token(token);
    }
    Ok(builder.build()?)
}
