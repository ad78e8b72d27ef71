//! The Secrets of a cluster with self-managed TLS: read by name, completed where something is
//! missing or near its end, and never listed.
//!
//! Leaves are issued again whenever that helps. A CA is made once, before the cluster is formed: its
//! members trust no other, so that one which is lost has to be brought back by somebody who has it.
//!
//! | Secret | owner | holds |
//! |---|---|---|
//! | `<cluster>-client-ca`, `<cluster>-peer-ca` | cluster | `tls.crt`, `tls.key` of a CA |
//! | `<cluster>-client-tls` | cluster | `tls.crt`, `tls.key`, `ca.crt` for clients, the operator among them |
//! | `<member>-tls` | member | `server.*`, `peer.*`, `client-ca.crt`, `peer-ca.crt` |
//!
//! A Secret with another owner is somebody else's, or about to be collected with an older cluster of this
//! name: it is not used. Only a CA may have lost its owner, as copies do.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::{
    ByteString,
    api::core::v1::Secret,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::ResourceExt;

use super::{
    build::{CLUSTER_LABEL, cluster_metadata, owned_by_cluster, owned_by_member},
    model::Serial,
    validate::Validated,
};
use crate::{
    certificates::{
        self, CertificateError, KeyPairPem, Usage, leaf_is_current, new_ca, new_leaf, normalized,
    },
    etcd::ClientTls,
    kubernetes::{Kubernetes, KubernetesError, is_owned_by, not_ours},
};

/// The two CAs of a cluster.
#[derive(Clone, Debug)]
pub struct Authorities {
    pub client: KeyPairPem,
    pub peer: KeyPairPem,
}

/// What a pass needs of a cluster's certificates.
#[derive(Clone)]
pub struct Certificates {
    pub authorities: Authorities,
    pub tls: Arc<ClientTls>,
    /// When each of them ends, those of the members included.
    pub ends: Vec<CertificateEnd>,
}

/// A certificate of the cluster, and when it ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateEnd {
    pub secret: String,
    pub key: &'static str,
    pub not_after: Timestamp,
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
    #[error(
        "Secret {secret}, a CA of a cluster that is formed, {what}: restore it from a copy; it is not made anew, because the members trust no other"
    )]
    AuthorityLost { secret: String, what: &'static str },
    #[error("Secret {secret} {what}, and nothing is issued while spec.paused is true")]
    Paused { secret: String, what: &'static str },
}

impl SecurityError {
    /// Somebody else's Secret has the name.
    pub fn is_not_ours(&self) -> bool {
        matches!(self, SecurityError::Kubernetes(error) if error.is_not_ours())
    }

    /// The one Secret that it names is what is wrong, and not the way to it.
    pub fn is_of_one_secret(&self) -> bool {
        !matches!(self, SecurityError::Kubernetes(_)) || self.is_not_ours()
    }
}

const MISSING: &str = "is missing";
const UNUSABLE: &str = "has no usable tls.crt and tls.key";

/// The CAs and the client certificate, without those of members; made where they do not exist.
///
/// # Errors
/// A Secret cannot be read or written, or holds something else. An existing CA is never replaced, and
/// that of a cluster that is formed is never made anew.
pub async fn ensure_cluster(
    kubernetes: &Kubernetes,
    validated: &Validated,
    formed: bool,
    now: Timestamp,
) -> Result<Certificates, SecurityError> {
    let client = authority(kubernetes, validated, "client", formed, now).await?;
    let peer = authority(kubernetes, validated, "peer", formed, now).await?;
    let secret = client_secret(validated);
    let existing = data(find(kubernetes, validated, &secret, is_cluster_owned).await?);
    let identity = pair(&existing, "tls");
    let stays = is_current(&secret, identity.as_ref(), &client, &[], now)?
        && text(&existing, "ca.crt").as_deref() == Some(client.certificate.as_str());
    let identity = match identity.filter(|_| stays) {
        Some(identity) => identity,
        None => {
            let name = format!("{}-client", validated.desired.names.cluster);
            let issued = issue(&secret, &client, &name, &[], Usage::Client, now)?;
            let data = [
                ("tls.crt", &issued.certificate),
                ("tls.key", &issued.key),
                ("ca.crt", &client.certificate),
            ];
            let object = object(validated, secret, owned_by_cluster(validated), &data);
            kubernetes.apply(&validated.desired.names.namespace, &object).await?;
            issued
        }
    };
    certificates_of(validated, client, peer, identity)
}

/// The same as they are, for a cluster that is paused; none if it has never had them.
///
/// # Errors
/// A Secret cannot be read, or a cluster that is formed does not have it.
pub async fn look_at_cluster(
    kubernetes: &Kubernetes,
    validated: &Validated,
    formed: bool,
) -> Result<Option<Certificates>, SecurityError> {
    let (client, peer) =
        (authority_secret(validated, "client"), authority_secret(validated, "peer"));
    let mut pairs = Vec::new();
    for secret in [client, peer, client_secret(validated)] {
        let is_authority = pairs.len() < 2;
        let is_ours = |found: &Secret, validated: &Validated| {
            is_cluster_owned(found, validated)
                || is_authority && is_copy_of_authority(found, validated, formed)
        };
        let existing = data(find(kubernetes, validated, &secret, is_ours).await?);
        let what = if existing.is_empty() { MISSING } else { UNUSABLE };
        match pair(&existing, "tls") {
            Some(pair) => pairs.push(pair),
            None if formed => return Err(SecurityError::Paused { secret, what }),
            None => return Ok(None),
        }
    }
    let [client, peer, identity] = pairs.try_into().expect("one of each Secret");
    certificates_of(validated, client, peer, identity).map(Some)
}

fn certificates_of(
    validated: &Validated,
    client: KeyPairPem,
    peer: KeyPairPem,
    identity: KeyPairPem,
) -> Result<Certificates, SecurityError> {
    let ends = vec![
        end(&authority_secret(validated, "client"), "tls.crt", &client.certificate)?,
        end(&authority_secret(validated, "peer"), "tls.crt", &peer.certificate)?,
        end(&client_secret(validated), "tls.crt", &identity.certificate)?,
    ];
    let tls = ClientTls { ca: client.certificate.clone(), identity };
    Ok(Certificates { authorities: Authorities { client, peer }, tls: Arc::new(tls), ends })
}

/// The certificates of one member, made or renewed where that is due; returns when they end. The member is
/// named with the uid of its object, which they go with.
///
/// # Errors
/// As [`ensure_cluster`].
pub async fn ensure_member(
    kubernetes: &Kubernetes,
    validated: &Validated,
    authorities: &Authorities,
    (serial, uid): (Serial, &str),
    now: Timestamp,
) -> Result<Vec<CertificateEnd>, SecurityError> {
    let name = validated.desired.names.member(serial);
    let secret = member_secret(validated, serial);
    let (server_names, peer_names) =
        (server_names(validated, serial), peer_names(validated, serial));
    let found = find(kubernetes, validated, &secret, is_member_owned(uid)).await?;
    let is_settled = found.as_ref().is_some_and(|found| is_owned_by(found, uid));
    let existing = data(found);
    let (server, peer) = (pair(&existing, "server"), pair(&existing, "peer"));
    let stays = is_current(&secret, server.as_ref(), &authorities.client, &server_names, now)?
        && is_current(&secret, peer.as_ref(), &authorities.peer, &peer_names, now)?;
    let (server, peer) = match (stays, server, peer) {
        (true, Some(server), Some(peer)) if is_settled => {
            return member_ends(&secret, &server, &peer);
        }
        (true, Some(server), Some(peer)) => (server, peer),
        _ => (
            issue(&secret, &authorities.client, &name, &server_names, Usage::Server, now)?,
            issue(&secret, &authorities.peer, &name, &peer_names, Usage::Peer, now)?,
        ),
    };
    let data = [
        ("server.crt", &server.certificate),
        ("server.key", &server.key),
        ("peer.crt", &peer.certificate),
        ("peer.key", &peer.key),
        ("client-ca.crt", &authorities.client.certificate),
        ("peer-ca.crt", &authorities.peer.certificate),
    ];
    let ends = member_ends(&secret, &server, &peer)?;
    let object = object(validated, secret, owned_by_member(validated, serial, uid), &data);
    let was_ours = |found: &Secret| is_cluster_owned(found, validated);
    kubernetes.apply_over(&validated.desired.names.namespace, &object, was_ours).await?;
    Ok(ends)
}

/// When the certificates of one member end, as they are: for a cluster that is paused.
///
/// # Errors
/// The Secret cannot be read, or holds something else. One that does not exist is none.
pub async fn look_at_member(
    kubernetes: &Kubernetes,
    validated: &Validated,
    (serial, uid): (Serial, &str),
) -> Result<Vec<CertificateEnd>, SecurityError> {
    let secret = member_secret(validated, serial);
    let existing = data(find(kubernetes, validated, &secret, is_member_owned(uid)).await?);
    match (pair(&existing, "server"), pair(&existing, "peer")) {
        (Some(server), Some(peer)) => member_ends(&secret, &server, &peer),
        _ => Ok(Vec::new()),
    }
}

fn member_ends(
    secret: &str,
    server: &KeyPairPem,
    peer: &KeyPairPem,
) -> Result<Vec<CertificateEnd>, SecurityError> {
    Ok(vec![
        end(secret, "server.crt", &server.certificate)?,
        end(secret, "peer.crt", &peer.certificate)?,
    ])
}

fn end(
    secret: &str,
    key: &'static str,
    certificate: &str,
) -> Result<CertificateEnd, SecurityError> {
    let not_after = certificates::not_after(certificate)
        .map_err(|source| SecurityError::Certificate { secret: secret.to_owned(), source })?;
    Ok(CertificateEnd { secret: secret.to_owned(), key, not_after })
}

fn member_secret(validated: &Validated, serial: Serial) -> String {
    format!("{}-tls", validated.desired.names.member(serial))
}

fn authority_secret(validated: &Validated, role: &str) -> String {
    format!("{}-{role}-ca", validated.desired.names.cluster)
}

fn client_secret(validated: &Validated) -> String {
    format!("{}-client-tls", validated.desired.names.cluster)
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
    formed: bool,
    now: Timestamp,
) -> Result<KeyPairPem, SecurityError> {
    let secret = authority_secret(validated, role);
    let is_ours = |found: &Secret, validated: &Validated| {
        is_cluster_owned(found, validated) || is_copy_of_authority(found, validated, formed)
    };
    let mut existing = data(find(kubernetes, validated, &secret, is_ours).await?);
    if existing.is_empty() && !formed {
        let name = format!("{} {role} CA", validated.desired.names.cluster);
        let ca = new_ca(&name, now)
            .map_err(|source| SecurityError::Certificate { secret: secret.clone(), source })?;
        let data = [("tls.crt", &ca.certificate), ("tls.key", &ca.key)];
        // Create, not apply: of two operators only one may decide what the CA is.
        let object = object(validated, secret.clone(), owned_by_cluster(validated), &data);
        if kubernetes.create(&validated.desired.names.namespace, &object).await? {
            return Ok(ca);
        }
        existing = self::data(find(kubernetes, validated, &secret, is_ours).await?);
    }
    match pair(&existing, "tls") {
        Some(ca) => {
            certificates::not_after(&ca.certificate)
                .map_err(|source| SecurityError::Certificate { secret, source })?;
            Ok(ca)
        }
        None if formed => {
            let what = if existing.is_empty() { MISSING } else { UNUSABLE };
            Err(SecurityError::AuthorityLost { secret, what })
        }
        None => Err(SecurityError::Incomplete { secret, key: "tls.crt" }),
    }
}

fn is_current(
    secret: &str,
    leaf: Option<&KeyPairPem>,
    ca: &KeyPairPem,
    names: &[String],
    now: Timestamp,
) -> Result<bool, SecurityError> {
    let Some(leaf) = leaf else { return Ok(false) };
    leaf_is_current(leaf, &ca.certificate, names, now)
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

/// The Secret of this name, if there is one.
async fn find(
    kubernetes: &Kubernetes,
    validated: &Validated,
    name: &str,
    is_ours: impl Fn(&Secret, &Validated) -> bool,
) -> Result<Option<Secret>, SecurityError> {
    let found = kubernetes.get::<Secret>(&validated.desired.names.namespace, name).await?;
    match found {
        Some(found) if !is_ours(&found, validated) => Err(not_ours(&found).into()),
        found => Ok(found),
    }
}

fn is_cluster_owned(found: &Secret, validated: &Validated) -> bool {
    is_owned_by(found, &validated.uid)
}

/// Its own, or still the cluster's: older operators left the Secrets of members that are gone for as long
/// as the cluster was there.
fn is_member_owned(uid: &str) -> impl Fn(&Secret, &Validated) -> bool {
    move |found, validated| is_owned_by(found, uid) || is_cluster_owned(found, validated)
}

/// Whether it may be a CA that somebody has brought back. A cluster that is formed needs it, whatever it
/// has lost; one that is to be formed could as well have one of its own, so that it has to be known by
/// the label.
fn is_copy_of_authority(found: &Secret, validated: &Validated, formed: bool) -> bool {
    let label = found.labels().get(CLUSTER_LABEL);
    found.owner_references().is_empty()
        && (formed || label == Some(&validated.desired.names.cluster))
}

/// What a Secret holds: nothing, if there is none.
fn data(found: Option<Secret>) -> Data {
    found.and_then(|secret| secret.data).unwrap_or_default()
}

fn text(data: &Data, key: &str) -> Option<String> {
    String::from_utf8(data.get(key)?.0.clone()).ok()
}

fn pair(data: &Data, name: &str) -> Option<KeyPairPem> {
    let certificate = text(data, &format!("{name}.crt"))?;
    Some(KeyPairPem { certificate, key: text(data, &format!("{name}.key"))? })
}

fn object(
    validated: &Validated,
    name: String,
    owner: OwnerReference,
    data: &[(&str, &String)],
) -> Secret {
    let data =
        data.iter().map(|(key, value)| ((*key).to_owned(), ByteString(value.as_bytes().to_vec())));
    Secret {
        metadata: ObjectMeta {
            owner_references: Some(vec![owner]),
            ..cluster_metadata(validated, name, "certificate")
        },
        data: Some(data.collect()),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    }
}
