//! The Secrets of a cluster with self-managed TLS: read by name, completed where something is
//! missing or near its end, and never listed.
//!
//! Leaves are issued again whenever that helps. A CA is made once, before the cluster is formed: its
//! members trust no other, so that one which is lost has to be brought back by somebody who has it.
//!
//! | Secret | holds |
//! |---|---|
//! | `<cluster>-client-ca`, `<cluster>-peer-ca` | `tls.crt`, `tls.key` of a CA |
//! | `<cluster>-client-tls` | `tls.crt`, `tls.key`, `ca.crt` for clients, the operator among them |
//! | `<member>-tls` | `server.*`, `peer.*`, `client-ca.crt`, `peer-ca.crt` |

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::{ByteString, api::core::v1::Secret};

use super::{build::cluster_metadata, model::Serial, validate::Validated};
use crate::{
    certificates::{
        self, CertificateError, KeyPairPem, Usage, leaf_is_current, new_ca, new_leaf, normalized,
    },
    etcd::ClientTls,
    kubernetes::{Kubernetes, KubernetesError},
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
    #[error(
        "Secret {secret} belongs to an older cluster of this name; waiting until it is collected"
    )]
    OldSecret { secret: String },
    #[error("Secret {secret} has no usable {key}; delete it to have it issued again")]
    Incomplete { secret: String, key: &'static str },
    #[error(
        "Secret {secret}, a CA of a cluster that is formed, {what}: restore it from a copy; it is not made anew, because the members trust no other"
    )]
    AuthorityLost { secret: String, what: &'static str },
    #[error("Secret {secret} {what}, and nothing is issued while spec.paused is true")]
    Paused { secret: String, what: &'static str },
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
    let existing = read(kubernetes, validated, &secret).await?;
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
            write(kubernetes, validated, secret, &data).await?;
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
        let existing = read(kubernetes, validated, &secret).await?;
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

/// The certificates of one member, made or renewed where that is due; returns when they end.
///
/// # Errors
/// As [`ensure_cluster`].
pub async fn ensure_member(
    kubernetes: &Kubernetes,
    validated: &Validated,
    authorities: &Authorities,
    serial: Serial,
    now: Timestamp,
) -> Result<Vec<CertificateEnd>, SecurityError> {
    let name = validated.desired.names.member(serial);
    let secret = member_secret(validated, serial);
    let (server_names, peer_names) =
        (server_names(validated, serial), peer_names(validated, serial));
    let existing = read(kubernetes, validated, &secret).await?;
    let (server, peer) = (pair(&existing, "server"), pair(&existing, "peer"));
    let stays = is_current(&secret, server.as_ref(), &authorities.client, &server_names, now)?
        && is_current(&secret, peer.as_ref(), &authorities.peer, &peer_names, now)?;
    if let (true, Some(server), Some(peer)) = (stays, &server, &peer) {
        return member_ends(&secret, server, peer);
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
    let ends = member_ends(&secret, &server, &peer)?;
    write(kubernetes, validated, secret, &data).await?;
    Ok(ends)
}

/// When the certificates of one member end, as they are: for a cluster that is paused.
///
/// # Errors
/// The Secret cannot be read, or holds something else. One that does not exist is none.
pub async fn look_at_member(
    kubernetes: &Kubernetes,
    validated: &Validated,
    serial: Serial,
) -> Result<Vec<CertificateEnd>, SecurityError> {
    let secret = member_secret(validated, serial);
    let existing = read(kubernetes, validated, &secret).await?;
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
    let mut existing = read(kubernetes, validated, &secret).await?;
    if existing.is_empty() && !formed {
        let name = format!("{} {role} CA", validated.desired.names.cluster);
        let ca = new_ca(&name, now)
            .map_err(|source| SecurityError::Certificate { secret: secret.clone(), source })?;
        let data = [("tls.crt", &ca.certificate), ("tls.key", &ca.key)];
        // Create, not apply: of two operators only one may decide what the CA is.
        let object = object(validated, secret.clone(), &data);
        if kubernetes.create(&validated.desired.names.namespace, &object).await? {
            return Ok(ca);
        }
        existing = read(kubernetes, validated, &secret).await?;
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

/// The data of a Secret, empty if there is none. One that an older cluster of this name owns is
/// about to be collected; using it would mean to lose it in a moment.
async fn read(
    kubernetes: &Kubernetes,
    validated: &Validated,
    name: &str,
) -> Result<Data, SecurityError> {
    let secret = kubernetes.get::<Secret>(&validated.desired.names.namespace, name).await?;
    let Some(secret) = secret else { return Ok(Data::new()) };
    let owners = secret.metadata.owner_references.unwrap_or_default();
    if !owners.is_empty() && owners.iter().all(|owner| owner.uid != validated.uid) {
        return Err(SecurityError::OldSecret { secret: name.to_owned() });
    }
    Ok(secret.data.unwrap_or_default())
}

fn text(data: &Data, key: &str) -> Option<String> {
    String::from_utf8(data.get(key)?.0.clone()).ok()
}

fn pair(data: &Data, name: &str) -> Option<KeyPairPem> {
    let certificate = text(data, &format!("{name}.crt"))?;
    Some(KeyPairPem { certificate, key: text(data, &format!("{name}.key"))? })
}

fn object(validated: &Validated, name: String, data: &[(&str, &String)]) -> Secret {
    let data =
        data.iter().map(|(key, value)| ((*key).to_owned(), ByteString(value.as_bytes().to_vec())));
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
    kubernetes.apply(&validated.desired.names.namespace, &secret).await
}
