//! What a request shows of its sender.

use std::sync::Arc;

use http::Extensions;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};

use crate::listen::ConnectionInfo;
use crate::tls::PeerIdentity;

/// What the gateway sends along; then the certificate is the gateway's and not the caller's.
const GATEWAY_MARK: &str = "grpcgateway-accept";

/// Token and certificate of one request, or of a stream for as long as it lives.
#[derive(Clone, Default)]
pub(crate) struct Credentials {
    token: Option<MetadataValue<Ascii>>,
    certificate: Option<Arc<PeerIdentity>>,
}

impl Credentials {
    /// `by_certificate`: whether the common name of a verified certificate is a user's name.
    pub(crate) fn of(
        metadata: &MetadataMap,
        extensions: &Extensions,
        by_certificate: bool,
    ) -> Self {
        let token = metadata.get("token").or_else(|| metadata.get("authorization")).cloned();
        let believed = by_certificate && metadata.get(GATEWAY_MARK).is_none();
        let connection = extensions.get::<ConnectionInfo>().filter(|_| believed);
        let certificate = connection.and_then(|connection| connection.identity.clone());
        Self { token, certificate }
    }

    /// The token; inside, nothing if it is no text.
    pub(super) fn token(&self) -> Option<Option<&str>> {
        let token = self.token.as_ref()?;
        Some(token.to_str().ok().map(|text| text.strip_prefix("Bearer ").unwrap_or(text)))
    }

    pub(super) fn common_name(&self) -> Option<&str> {
        self.certificate.as_deref().map(|certificate| certificate.common_name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listen::Purpose;

    fn connection(common_name: &str) -> Extensions {
        let mut parameters = rcgen::CertificateParams::default();
        parameters.distinguished_name.push(rcgen::DnType::CommonName, common_name);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = parameters.self_signed(&key).unwrap().der().clone();
        let identity = PeerIdentity::shown(Some(&[certificate])).unwrap().map(Arc::new);
        let mut extensions = Extensions::new();
        let purpose = Purpose::Client;
        let (remote, local) = (None, None);
        extensions.insert(ConnectionInfo { remote, local, purpose, secure: true, identity });
        extensions
    }

    fn metadata(pairs: &[(&'static str, &str)]) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        for (name, value) in pairs {
            metadata.insert(*name, value.parse().unwrap());
        }
        metadata
    }

    #[test]
    fn a_token_is_found_under_either_name_and_without_its_scheme() {
        for (pairs, token) in [
            (&[][..], None),
            (&[("token", "a.1")][..], Some("a.1")),
            (&[("authorization", "Bearer a.1")][..], Some("a.1")),
            (&[("authorization", "a.1")][..], Some("a.1")),
            (&[("authorization", "x"), ("token", "Bearer a.1")][..], Some("a.1")),
        ] {
            let credentials = Credentials::of(&metadata(pairs), &Extensions::new(), true);
            assert_eq!(credentials.token().flatten(), token, "{pairs:?}");
        }
    }

    #[test]
    fn cve_2018_16886_a_certificate_is_not_believed_through_the_gateway_or_unless_asked_for() {
        let extensions = connection("root");
        let name = |pairs: &[(&'static str, &str)], by_certificate| {
            let credentials = Credentials::of(&metadata(pairs), &extensions, by_certificate);
            credentials.common_name().map(str::to_owned)
        };
        assert_eq!(name(&[], true), Some("root".to_owned()));
        assert_eq!(name(&[], false), None);
        assert_eq!(name(&[("grpcgateway-accept", "application/json")], true), None);
    }
}
