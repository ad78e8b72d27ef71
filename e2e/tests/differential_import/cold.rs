//! What a data directory of Go etcd holds while no server runs on it, by our readers.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use disk::OsDisk;
use etcdutl::go_wal;
use etcdutl::schema::{Auth, Backend};
use etcdutl::snapshot_file::SnapshotFile;
use prost::Message;
use proto::etcdserverpb::InternalRaftRequest;

pub(crate) struct Cold {
    /// Users and roles of the backend.
    pub(crate) auth: Auth,
    /// The requests that the log holds above the backend's consistent index.
    pub(crate) requests: Vec<InternalRaftRequest>,
}

impl Cold {
    pub(crate) fn read(directory: &Path) -> Result<Cold> {
        let disk = OsDisk::new();
        let file = SnapshotFile::open(&disk, &directory.join("member/snap/db"))?.bbolt()?;
        let backend = Backend::new(&file);
        let index = backend.meta()?.consistent_index.context("a consistent index")?;
        let tail = go_wal::read_tail(&disk, &directory.join("member/wal"), index)?;
        let requests = tail
            .entries
            .into_values()
            .filter(|entry| entry.kind == 0 && !entry.data.is_empty())
            .map(|entry| InternalRaftRequest::decode(entry.data));
        Ok(Cold { auth: backend.auth()?, requests: requests.collect::<Result<_, _>>()? })
    }

    /// What the requests of the log ask for.
    pub(crate) fn kinds(&self) -> Vec<&'static str> {
        self.requests.iter().map(kind).collect()
    }

    /// Whether the log has a put of this key in this name.
    pub(crate) fn has_put(&self, user: &str, key: &str) -> bool {
        self.requests.iter().any(|request| {
            let name = request.header.as_ref().map_or("", |header| &header.username);
            name == user && request.put.as_ref().is_some_and(|put| put.key == key)
        })
    }
}

/// All that changes users and roles.
pub(crate) const AUTH_KINDS: [&str; 11] = [
    "auth enable",
    "auth disable",
    "auth user add",
    "auth user delete",
    "auth user passwd",
    "auth user grant-role",
    "auth user revoke-role",
    "auth role add",
    "auth role delete",
    "auth role grant-permission",
    "auth role revoke-permission",
];

fn kind(request: &InternalRaftRequest) -> &'static str {
    let changes_auth = [
        request.auth_enable.is_some(),
        request.auth_disable.is_some(),
        request.auth_user_add.is_some(),
        request.auth_user_delete.is_some(),
        request.auth_user_change_password.is_some(),
        request.auth_user_grant_role.is_some(),
        request.auth_user_revoke_role.is_some(),
        request.auth_role_add.is_some(),
        request.auth_role_delete.is_some(),
        request.auth_role_grant_permission.is_some(),
        request.auth_role_revoke_permission.is_some(),
    ];
    let change = changes_auth.iter().position(|is_it| *is_it);
    change.map_or("other", |place| AUTH_KINDS[place])
}

/// Changes a byte of the password of the user whom the log names last.
pub(crate) fn damage_last_change_of_auth(directory: &Path) {
    let wal = directory.join("member/wal/0000000000000000-0000000000000000.wal");
    let mut bytes = fs::read(&wal).unwrap();
    // Base64 of the beginning of a bcrypt hash, `$2a$`.
    let hash = b"JDJhJD";
    let last = bytes.windows(hash.len()).rposition(|window| window == hash).unwrap();
    bytes[last] ^= 1;
    fs::write(&wal, bytes).unwrap();
}
