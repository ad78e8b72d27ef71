//! The Secrets of a cluster with self-managed TLS: read by name, completed where something is
//! missing or near its end, and never listed.
//!
//! | Secret | holds |
//! |---|---|
//! | `<cluster>-client-ca`, `<cluster>-peer-ca` | `tls.crt`, `tls.key` of a CA |
//! | `<cluster>-client-tls` | `tls.crt`, `tls.key`, `ca.crt` for clients, the operator among them |
//! | `<member>-tls` | `server.*`, `peer.*`, `client-ca.crt`, `peer-ca.crt` |

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::{ByteString, api::core::v1::Secret};

use super::{
    build::cluster_metadata,
    model::Serial,
    validate::Validated,
};
use crate::{
    certificates::{self, CertificateError, KeyPairPem, Usage, leaf_is_current, new_ca, new_leaf, normalized},
    etcd::ClientTls,
    kubernetes::{Kubernetes, KubernetesError},
};

/// The two CAs of a cluster.
#[derive(Clone, Debug)]
pub struct Authorities {
    pub client: KeyPairPem,
    pub peer: KeyPairPem,
}

/// Certificates could not be brought in order.
#[derive(Debug, thiserror::Error)]
pub enum SecurityError {
    #[error(transparent)]
    Kubernetes(#[from] KubernetesError),
    #[error("Secret {secret}: {source}")]
    Certificate { secret: String, source: CertificateError },
    #[error("Secret {secret} has no usable {key}; delete it to have it issued again")]
    Incomplete { secret: String, key: &'static str },
}

/// The CAs and the client certificate; made where they do not exist.
///
/// # Errors
/// A Secret cannot be read or written, or holds something else. An existing CA is never replaced.
pub async fn ensure_cluster(
    kubernetes: &Kubernetes,
    validated: &Validated,
    now: Timestamp,
) -> Result<(Authorities, Arc<ClientTls>), SecurityError> {
    let cluster = &validated.desired.names.cluster;
    let client = authority(kubernetes, validated, "client", now).await?;
    let peer = authority(kubernetes, validated, "peer", now).await?;
    let secret = format!("{cluster}-client-tls");
    let existing = read(kubernetes, validated, &secret).await?;
    let identity = pair(&existing, "tls");
    let stays = is_current(&secret, identity.as_ref(), &client, &[], now)?
        && text(&existing, "ca.crt").as_deref() == Some(client.certificate.as_str());
    let identity = match identity.filter(|_| stays) {
        Some(identity) => identity,
        None => {
            let issued = issue(&secret, &client, &format!("{cluster}-client"), &[], Usage::Client, now)?;
            let data = [
                ("tls.crt", &issued.certificate),
                ("tls.key", &issued.key),
                ("ca.crt", &client.certificate),
            ];
            write(kubernetes, validated, secret, &data).await?;
            issued
        }
    };
    let tls = ClientTls { ca: client.certificate.clone(), identity };
    Ok((Authorities { client, peer }, Arc::new(tls)))
}

/// The certificates of one member.
///
/// # Errors
/// As [`ensure_cluster`].
pub async fn ensure_member(
    kubernetes: &Kubernetes,
    validated: &Validated,
    authorities: &Authorities,
    serial: Serial,
    now: Timestamp,
) -> Result<(), SecurityError> {
    let name = validated.desired.names.member(serial);
    let secret = format!("{name}-tls");
    let (server_names, peer_names) = (server_names(validated, serial), peer_names(validated, serial));
    let existing = read(kubernetes, validated, &secret).await?;
    let (server, peer) = (pair(&existing, "server"), pair(&existing, "peer"));
    let stays = is_current(&secret, server.as_ref(), &authorities.client, &server_names, now)?
        && is_current(&secret, peer.as_ref(), &authorities.peer, &peer_names, now)?;
    if stays {
        return Ok(());
    }
    let server = issue(&secret, &authorities.client, &name, &server_names, Usage::Server, now)?;
    let peer = issue(&secret, &authorities.peer, &name, &peer_names, Usage::Peer, now)?;
    let data = [
        ("server.crt", &server.certificate),
        ("server.key", &server.key),
        ("peer.crt", &peer.certificate),
        ("peer.key", &peer.key),
        ("client-ca.crt", &authorities.client.certificate),
        ("peer-ca.crt", &authorities.peer.certificate),
    ];
    write(kubernetes, validated, secret, &data).await?;
    Ok(())
}

/// Names under which clients may know the member.
fn server_names(validated: &Validated, serial: Serial) -> Vec<String> {
    let names = &validated.desired.names;
    let (cluster, namespace) = (&names.cluster, &names.namespace);
    let mut all = peer_names(validated, serial);
    for service in [
        format!("{cluster}-client"),
        format!("{cluster}-client.{namespace}"),
        format!("{cluster}-client.{namespace}.svc"),
        format!("{cluster}-client.{namespace}.svc.cluster.local"),
        "localhost".to_owned(),
        "127.0.0.1".to_owned(),
    ] {
        all.push(service);
    }
    all.extend(validated.spec.tls.extra_sans.iter().cloned());
    normalized(&all)
}

fn peer_names(validated: &Validated, serial: Serial) -> Vec<String> {
    let host = validated.desired.names.host(serial);
    normalized(&[host.clone(), format!("{host}.cluster.local")])
}

async fn authority(
    kubernetes: &Kubernetes,
    validated: &Validated,
    role: &str,
    now: Timestamp,
) -> Result<KeyPairPem, SecurityError> {
    let secret = format!("{}-{role}-ca", validated.desired.names.cluster);
    let existing = read(kubernetes, validated, &secret).await?;
    if existing.is_empty() {
        let name = format!("{} {role} CA", validated.desired.names.cluster);
        let ca = new_ca(&name, now)
            .map_err(|source| SecurityError::Certificate { secret: secret.clone(), source })?;
        let data = [("tls.crt", &ca.certificate), ("tls.key", &ca.key)];
        // Create, not apply: of two operators only one may decide what the CA is.
        let object = object(validated, secret.clone(), &data);
        if kubernetes.create(&validated.desired.names.namespace, &object).await? {
            return Ok(ca);
        }
        let existing = read(kubernetes, validated, &secret).await?;
        return pair(&existing, "tls").ok_or(SecurityError::Incomplete { secret, key: "tls.crt" });
    }
    let ca = pair(&existing, "tls").ok_or(SecurityError::Incomplete { secret: secret.clone(), key: "tls.crt" })?;
    certificates::not_after(&ca.certificate)
        .map_err(|source| SecurityError::Certificate { secret, source })?;
    Ok(ca)
}

fn is_current(
    secret: &str,
    leaf: Option<&KeyPairPem>,
    ca: &KeyPairPem,
    names: &[String],
    now: Timestamp,
) -> Result<bool, SecurityError> {
    let Some(leaf) = leaf else { return Ok(false) };
    leaf_is_current(&leaf.certificate, &ca.certificate, names, now)
        .map_err(|source| SecurityError::Certificate { secret: secret.to_owned(), source })
}

fn issue(
    secret: &str,
    ca: &KeyPairPem,
    name: &str,
    names: &[String],
    usage: Usage,
    now: Timestamp,
) -> Result<KeyPairPem, SecurityError> {
    new_leaf(ca, name, names, usage, now)
        .map_err(|source| SecurityError::Certificate { secret: secret.to_owned(), source })
}

type Data = BTreeMap<String, ByteString>;

async fn read(kubernetes: &Kubernetes, validated: &Validated, name: &str) -> Result<Data, KubernetesError> {
    let secret = kubernetes.get::<Secret>(&validated.desired.names.namespace, name).await?;
    Ok(secret.and_then(|secret| secret.data).unwrap_or_default())
}

fn text(data: &Data, key: &str) -> Option<String> {
    String::from_utf8(data.get(key)?.0.clone()).ok()
}

fn pair(data: &Data, name: &str) -> Option<KeyPairPem> {
    let certificate = text(data, &format!("{name}.crt"))?;
    Some(KeyPairPem { certificate, key: text(data, &format!("{name}.key"))? })
}

fn object(validated: &Validated, name: String, data: &[(&str, &String)]) -> Secret {
    let data = data.iter().map(|(key, value)| ((*key).to_owned(), ByteString(value.as_bytes().to_vec())));
    Secret {
        metadata: cluster_metadata(validated, name, "certificate"),
        data: Some(data.collect()),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    }
}

async fn write(
    kubernetes: &Kubernetes,
    validated: &Validated,
    name: String,
    data: &[(&str, &String)],
) -> Result<(), KubernetesError> {
    let secret = object(validated, name, data);
    kubernetes.apply(&validated.desired.names.namespace, &secret).await.map(|_| ())
}
