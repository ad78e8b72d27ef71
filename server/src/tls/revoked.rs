//! Revoked certificates, as etcd reads a list of them (`--client-crl-file`, `--peer-crl-file`): a
//! connection is refused when any certificate that was shown has a serial number on the list, whoever
//! issued it and however old the list is.

use std::collections::BTreeSet;

use x509_parser::prelude::{CertificateRevocationList, FromDer};

use super::{PeerIdentity, TlsError, revocations};

/// Serial numbers that are not welcome.
#[derive(Debug, Default)]
pub(super) struct Revoked(BTreeSet<Vec<u8>>);

impl Revoked {
    /// Reads a list in DER or PEM form; without a path nothing is revoked.
    pub(super) fn read(path: &str, bytes: &[u8]) -> Result<Self, TlsError> {
        let mut serials = BTreeSet::new();
        for list in revocations(path, bytes)? {
            let (_, list) = CertificateRevocationList::from_der(&list).map_err(|error| {
                TlsError::Revocations { path: path.to_owned(), reason: error.to_string() }
            })?;
            let listed = list.iter_revoked_certificates();
            serials.extend(listed.map(|revoked| revoked.serial().to_bytes_be()));
        }
        Ok(Self(serials))
    }

    pub(super) fn check(&self, identity: &PeerIdentity) -> Result<(), String> {
        match identity.serials().iter().find(|serial| self.0.contains(*serial)) {
            Some(serial) => {
                Err(format!("transport: certificate serial {} revoked", hex::encode(serial)))
            }
            None => Ok(()),
        }
    }
}
