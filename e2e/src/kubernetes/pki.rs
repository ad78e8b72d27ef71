//! The cluster's certificates and the kubeconfig of every component.
//!
//! Two authorities, as Kubernetes wants it: one for everybody, one only for the apiserver's proxy
//! client towards aggregated apiservers. A component is a user by the common name and organization
//! of its certificate (Kubernetes documentation, "PKI certificates and requirements").

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::json;

use super::layout::{API_SERVER, HOST_ADDRESS, Layout, NodeNumber};

const ADMINISTRATORS: &str = "system:masters";
/// The first address of the Service network is the apiserver's own Service.
const API_SERVICE_ADDRESS: &str = "10.96.0.1";

/// A certificate and its key, in PEM.
struct Identity {
    certificate: String,
    key: String,
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    identity: Identity,
}

impl Authority {
    fn new(name: &str) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut parameters = CertificateParams::new(Vec::new())?;
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = parameters.self_signed(&key)?.pem();
        let identity = Identity { certificate, key: key.serialize_pem() };
        Ok(Self { issuer: Issuer::new(parameters, key), identity })
    }

    /// A certificate for a user (name, organization) or a server (names).
    fn issue(&self, user: &str, organization: &str, names: &[&str]) -> Result<Identity> {
        let key = KeyPair::generate()?;
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut parameters = CertificateParams::new(names)?;
        parameters.distinguished_name.push(DnType::CommonName, user);
        if !organization.is_empty() {
            parameters.distinguished_name.push(DnType::OrganizationName, organization);
        }
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        parameters.use_authority_key_identifier_extension = true;
        let certificate = parameters.signed_by(&key, &self.issuer)?.pem();
        Ok(Identity { certificate, key: key.serialize_pem() })
    }
}

/// Writes everything that the components read.
pub(super) fn write(layout: &Layout, nodes: &[NodeNumber]) -> Result<()> {
    let authority = Authority::new("keelson")?;
    let front = Authority::new("keelson-front-proxy")?;
    let api_names = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "localhost",
        "127.0.0.1",
        HOST_ADDRESS,
        API_SERVICE_ADDRESS,
    ];
    write_pair(layout, "ca", &authority.identity)?;
    write_pair(layout, "front", &front.identity)?;
    write_pair(layout, "apiserver", &authority.issue("kube-apiserver", "", &api_names)?)?;
    let kubelet_client = authority.issue("kube-apiserver-kubelet-client", ADMINISTRATORS, &[])?;
    write_pair(layout, "kubelet-client", &kubelet_client)?;
    write_pair(layout, "front-client", &front.issue("front-proxy-client", "", &[])?)?;
    let tokens = KeyPair::generate()?;
    write_secret(&layout.pki("sa.key"), &tokens.serialize_pem())?;
    write_secret(&layout.pki("sa.pub"), &tokens.public_key_pem())?;

    let user = |path: &Path, name: &str, organization: &str| -> Result<()> {
        let identity = authority.issue(name, organization, &[])?;
        write_secret(path, &kubeconfig(&authority.identity, &identity))
    };
    user(&layout.kubeconfig(), "keelson-admin", ADMINISTRATORS)?;
    for (file, name) in [
        ("controller-manager.kubeconfig", "system:kube-controller-manager"),
        ("scheduler.kubeconfig", "system:kube-scheduler"),
        ("proxy.kubeconfig", "system:kube-proxy"),
        ("dns.kubeconfig", "system:coredns"),
    ] {
        user(&layout.pki(file), name, "")?;
    }
    for node in nodes {
        let file = layout.pki(&format!("{node}.kubeconfig"));
        user(&file, &format!("system:node:{node}"), "system:nodes")?;
    }
    Ok(())
}

/// JSON, which every reader of YAML takes.
fn kubeconfig(authority: &Identity, user: &Identity) -> String {
    let encode = |text: &str| STANDARD.encode(text);
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "keelson",
        "clusters": [{"name": "keelson", "cluster": {
            "server": API_SERVER,
            "certificate-authority-data": encode(&authority.certificate),
        }}],
        "users": [{"name": "keelson", "user": {
            "client-certificate-data": encode(&user.certificate),
            "client-key-data": encode(&user.key),
        }}],
        "contexts": [{"name": "keelson", "context": {"cluster": "keelson", "user": "keelson"}}],
    })
    .to_string()
}

fn write_pair(layout: &Layout, name: &str, identity: &Identity) -> Result<()> {
    write_secret(&layout.pki(&format!("{name}.crt")), &identity.certificate)?;
    write_secret(&layout.pki(&format!("{name}.key")), &identity.key)
}

fn write_secret(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("write {}", path.display()))
}
