//! `import`: a data directory of ours from one that Go etcd has left.
//!
//! What a member of Go etcd knows is its backend and, after a crash, the entries of its log that had
//! not reached the backend: it commits to the backend ten times a second, and only the log is synced
//! before a client is answered. So the backend is read like a snapshot, and then every entry of the log
//! above the backend's consistent index is applied by our own applier, which answers requests as etcd
//! does, so revisions come out the same.
//!
//! That includes entries of which the log does not say that they are committed: the answer to a client
//! can be out before it does. It is what this member would commit if it were elected with its log. Of
//! several members the one to import is therefore one that was stopped last, or the last leader: what
//! only others have is lost.
//!
//! Users, roles and whether they count are replayed with everything else: an entry names who asked for
//! it and the revision of users and roles under which that was judged, so our applier, at the same
//! index, refuses what etcd's refuses. etcd 3.6 and 3.7 commit the backend with every change of users and
//! roles that they apply, so from them such a change is above the consistent index only if the process
//! ended after the log had it and before it was applied, as while a commit waits. Whoever does not want
//! the users and roles needs them for the replay all the same; they are dropped behind it.
//!
//! Members and ids are those of the new cluster, as in [`crate::restore`], and each member of it is
//! imported from the same directory. Changes of the old cluster's members are passed over.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use disk::Disk;
use machine::{Caller, CommandKind, Proposal};
use prost::Message;
use proto::etcdserverpb::InternalRaftRequest;
use rustix::fs::FlockOperation;

use crate::go_wal::{self, Entry, WalError};
use crate::request_v2;

/// The least TTL that Go etcd grants with its default election timeout.
const MIN_LEASE_TTL: i64 = 2;

/// Why a data directory of Go etcd cannot be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The words of Go's `os.Stat`.
    #[error("stat {}: no such file or directory", .0.display())]
    Missing(PathBuf),
    #[error("{} is in use by a running server: stop it first", .0.display())]
    InUse(PathBuf),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Wal(#[from] WalError),
    #[error(
        "{}: the backend stands at index {consistent_index} and the log goes on at {first}: start Go \
         etcd on it once and stop it, so that it takes over the snapshot between them", path.display()
    )]
    Gap { path: PathBuf, consistent_index: u64, first: u64 },
    #[error(
        "{}: log entry {index} holds a password and not its hash, as before etcd 3.5: start Go etcd on \
         it once and stop it, so that it is hashed", path.display()
    )]
    Password { path: PathBuf, index: u64 },
    #[error("{}: log entry {index} cannot be read: {source}", path.display())]
    Entry { path: PathBuf, index: u64, source: prost::DecodeError },
}

/// What a log has above a backend.
#[derive(Debug)]
pub struct Requests {
    pub requests: Vec<Proposal>,
    /// How many of them, at the end, the log does not say to be committed.
    pub unsettled: usize,
}

/// A data directory of Go etcd, on which no server can start for as long as this is kept.
#[derive(Debug)]
pub struct GoDataDir {
    path: PathBuf,
    wal: PathBuf,
    /// The backend, locked until it is closed.
    _locked: File,
}

impl GoDataDir {
    /// Looks at the directory.
    ///
    /// # Errors
    /// There is no backend in it, or a server is running on it.
    pub fn open(path: &Path, wal_dir: Option<&Path>) -> Result<Self, ImportError> {
        let wal = wal_dir.map_or_else(|| path.join("member/wal"), Path::to_owned);
        let backend = backend_of(path);
        let file = File::open(&backend).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => ImportError::Missing(backend.clone()),
            _ => ImportError::Io { path: backend.clone(), source },
        })?;
        // bbolt locks its file for as long as it is open.
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(Self { path: path.to_owned(), wal, _locked: file }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(ImportError::InUse(path.to_owned())),
            Err(error) => Err(ImportError::Io { path: backend, source: error.into() }),
        }
    }

    /// The backend, a bbolt file without digest.
    pub fn backend(&self) -> PathBuf {
        backend_of(&self.path)
    }

    /// The requests that the backend lacks, in order, each in the name of who made it.
    pub fn requests_above(
        &self,
        disk: &dyn Disk,
        consistent_index: u64,
    ) -> Result<Requests, ImportError> {
        let tail = go_wal::read_tail(disk, &self.wal, consistent_index)?;
        let (mut requests, mut unsettled) = (Vec::new(), 0);
        // A damaged number may be the highest; no entry follows it.
        let mut expected = consistent_index.saturating_add(1);
        for (index, entry) in tail.entries {
            if index != expected {
                let path = self.path.clone();
                return Err(ImportError::Gap { path, consistent_index, first: index });
            }
            expected = expected.saturating_add(1);
            let Some(request) = self.request(entry)? else { continue };
            if holds_password(&request) {
                return Err(ImportError::Password { path: self.path.clone(), index });
            }
            if let Some(proposal) = proposal(&request) {
                requests.push(proposal);
                unsettled += usize::from(index > tail.commit);
            }
        }
        if tail.commit >= expected {
            let path = self.path.clone();
            return Err(ImportError::Gap { path, consistent_index, first: tail.commit });
        }
        Ok(Requests { requests, unsettled })
    }

    fn request(&self, entry: Entry) -> Result<Option<InternalRaftRequest>, ImportError> {
        // Changes of the configuration have another kind, and a new leader's entry is empty.
        if entry.kind != 0 || entry.data.is_empty() {
            return Ok(None);
        }
        // In etcd's order.
        match InternalRaftRequest::decode(entry.data.clone()) {
            Ok(request) => Ok(Some(request)),
            Err(source) => request_v2::as_v3(entry.data).map(Some).ok_or_else(|| {
                ImportError::Entry { path: self.path.clone(), index: entry.index, source }
            }),
        }
    }
}

fn backend_of(data_dir: &Path) -> PathBuf {
    data_dir.join("member/snap/db")
}

/// In whose name a request was made, and under which users and roles. Nobody's, if authentication was
/// off.
fn caller(request: &InternalRaftRequest) -> Caller {
    let header = request.header.as_ref();
    Caller {
        user: header.map(|header| header.username.clone()).unwrap_or_default(),
        auth_revision: header.map_or(0, |header| header.auth_revision),
    }
}

/// Whether a request has a password where there should be its hash. Each member hashed it anew, so the
/// members that are imported from this directory would differ.
fn holds_password(request: &InternalRaftRequest) -> bool {
    let added = request.auth_user_add.as_ref().is_some_and(|add| {
        let no_password = add.options.as_ref().is_some_and(|options| options.no_password);
        !no_password && !add.password.is_empty() && add.hashed_password.is_empty()
    });
    let changed = request.auth_user_change_password.as_ref();
    added || changed.is_some_and(|new| !new.password.is_empty() && new.hashed_password.is_empty())
}

/// A request of Go etcd's log in our terms; nothing for one that leaves the state as it is.
fn proposal(found: &InternalRaftRequest) -> Option<Proposal> {
    let change = change_of_data(found).or_else(|| change_of_auth(found))?;
    Some(Proposal { caller: caller(found), ..change })
}

/// A request that changes users, roles or whether they count.
fn change_of_auth(found: &InternalRaftRequest) -> Option<Proposal> {
    Some(if let Some(request) = &found.auth_enable {
        Proposal::new(CommandKind::AuthEnable, request)
    } else if let Some(request) = &found.auth_disable {
        Proposal::new(CommandKind::AuthDisable, request)
    } else if let Some(request) = &found.auth_user_add {
        Proposal::new(CommandKind::UserAdd, request)
    } else if let Some(request) = &found.auth_user_delete {
        Proposal::new(CommandKind::UserDelete, request)
    } else if let Some(request) = &found.auth_user_change_password {
        Proposal::new(CommandKind::UserChangePassword, request)
    } else if let Some(request) = &found.auth_user_grant_role {
        Proposal::new(CommandKind::UserGrantRole, request)
    } else if let Some(request) = &found.auth_user_revoke_role {
        Proposal::new(CommandKind::UserRevokeRole, request)
    } else if let Some(request) = &found.auth_role_add {
        Proposal::new(CommandKind::RoleAdd, request)
    } else if let Some(request) = &found.auth_role_delete {
        Proposal::new(CommandKind::RoleDelete, request)
    } else if let Some(request) = &found.auth_role_grant_permission {
        Proposal::new(CommandKind::RoleGrantPermission, request)
    } else if let Some(request) = &found.auth_role_revoke_permission {
        Proposal::new(CommandKind::RoleRevokePermission, request)
    } else {
        // Reads, and logins: a token ends with the process that gave it.
        return None;
    })
}

/// A request that changes anything else.
fn change_of_data(found: &InternalRaftRequest) -> Option<Proposal> {
    Some(if let Some(request) = &found.put {
        Proposal::new(CommandKind::Put, request)
    } else if let Some(request) = &found.delete_range {
        Proposal::new(CommandKind::DeleteRange, request)
    } else if let Some(request) = &found.txn {
        Proposal::new(CommandKind::Txn, request)
    } else if let Some(request) = &found.compaction {
        Proposal::new(CommandKind::Compaction, request)
    } else if let Some(request) = &found.lease_grant {
        let mut request = *request;
        request.ttl = request.ttl.max(MIN_LEASE_TTL);
        Proposal::new(CommandKind::LeaseGrant, &request)
    } else if let Some(request) = &found.lease_revoke {
        Proposal::new(CommandKind::LeaseRevoke, request)
    } else if let Some(request) = &found.lease_checkpoint {
        Proposal::new(CommandKind::LeaseCheckpoint, request)
    } else if let Some(request) = &found.alarm {
        Proposal::new(CommandKind::Alarm, request)
    } else if let Some(request) = &found.cluster_version_set {
        Proposal::new(CommandKind::ClusterVersionSet, request)
    } else if let Some(request) = &found.downgrade_info_set {
        Proposal::new(CommandKind::DowngradeInfoSet, request)
    } else {
        // Reads, and what the old members said about themselves.
        return None;
    })
}

#[cfg(test)]
mod tests {
    use proto::authpb::UserAddOptions;
    use proto::etcdserverpb as pb;

    use super::*;
    use crate::go_wal::tests::Writer;
    use crate::request_v2::RequestV2;

    fn read(log: &[InternalRaftRequest]) -> Result<Vec<Proposal>, ImportError> {
        read_entries(log.iter().map(Message::encode_to_vec))
    }

    /// The requests of a log that begins at index 1, above the index 0.
    fn read_entries(log: impl IntoIterator<Item = Vec<u8>>) -> Result<Vec<Proposal>, ImportError> {
        let wal = PathBuf::from("/old/member/wal");
        let mut writer = Writer::default();
        for (index, entry) in (1..).zip(log) {
            writer.request(1, index, entry);
        }
        let disk = writer.disk(&wal);
        let _locked = File::open("/dev/null").unwrap();
        let from = GoDataDir { path: PathBuf::from("/old"), wal, _locked };
        from.requests_above(&disk, 0).map(|found| found.requests)
    }

    #[test]
    fn no_server_starts_on_a_directory_that_is_being_imported() {
        let directory = tempfile::tempdir().unwrap();
        let snap = directory.path().join("member/snap");
        std::fs::create_dir_all(&snap).unwrap();
        let backend = File::create(snap.join("db")).unwrap();
        let lock = || rustix::fs::flock(&backend, FlockOperation::NonBlockingLockExclusive);
        let found = GoDataDir::open(directory.path(), None).unwrap();
        assert_eq!(lock(), Err(rustix::io::Errno::WOULDBLOCK));
        drop(found);
        assert_eq!(lock(), Ok(()));
        let busy = GoDataDir::open(directory.path(), None).unwrap_err();
        assert!(matches!(busy, ImportError::InUse(_)), "{busy}");
    }

    /// A leader that was cut off takes what the others never see: whoever imports its directory is told.
    #[test]
    fn what_the_log_does_not_say_to_be_committed_is_counted() {
        let wal = PathBuf::from("/old/member/wal");
        let put = InternalRaftRequest { put: Some(<_>::default()), ..<_>::default() };
        let read = InternalRaftRequest { range: Some(<_>::default()), ..<_>::default() };
        let mut writer = Writer::default();
        for (index, request) in (1..).zip([&put, &put, &read, &put, &put]) {
            writer.request(1, index, request.encode_to_vec());
        }
        writer.commit(2);
        let disk = writer.disk(&wal);
        let _locked = File::open("/dev/null").unwrap();
        let from = GoDataDir { path: PathBuf::from("/old"), wal, _locked };
        let found = from.requests_above(&disk, 0).unwrap();
        assert_eq!((found.requests.len(), found.unsettled), (4, 2));
    }

    #[test]
    fn changes_come_in_the_name_of_their_caller_and_reads_and_logins_do_not() {
        let header = pb::RequestHeader { username: "u".into(), auth_revision: 7, ..<_>::default() };
        let by_user = InternalRaftRequest { header: Some(header), ..<_>::default() };
        let login = pb::InternalAuthenticateRequest { name: "u".into(), ..<_>::default() };
        let found = read(&[
            InternalRaftRequest { put: Some(<_>::default()), ..by_user.clone() },
            InternalRaftRequest { range: Some(<_>::default()), ..by_user.clone() },
            InternalRaftRequest { authenticate: Some(login), ..by_user.clone() },
            InternalRaftRequest { auth_user_get: Some(<_>::default()), ..by_user.clone() },
            InternalRaftRequest { auth_role_add: Some(<_>::default()), ..by_user },
            InternalRaftRequest { auth_disable: Some(<_>::default()), ..<_>::default() },
        ]);
        let found: Vec<_> = found
            .unwrap()
            .into_iter()
            .map(|proposal| (proposal.kind, proposal.caller.user, proposal.caller.auth_revision))
            .collect();
        let user = || "u".to_owned();
        assert_eq!(
            found,
            [
                (CommandKind::Put, user(), 7),
                (CommandKind::RoleAdd, user(), 7),
                (CommandKind::AuthDisable, String::new(), 0),
            ]
        );
    }

    /// As etcd 3.5 writes it: what is empty or false is there.
    fn of_version_2(method: &str, path: &str, value: &str) -> Vec<u8> {
        let mut entry = vec![0x08, 7];
        for (tag, text) in [(0x12, method), (0x1a, path), (0x22, value)] {
            entry.extend([tag, u8::try_from(text.len()).unwrap()]);
            entry.extend(text.as_bytes());
        }
        entry.extend([0x28, 0, 0x32, 0, 0x38, 0]);
        entry
    }

    #[test]
    fn requests_of_version_2_are_known_or_refused() {
        let put = InternalRaftRequest { put: Some(<_>::default()), ..<_>::default() };
        let found = read_entries([
            of_version_2("PUT", "/0/members/8e9e05c52164694d/attributes", "{}"),
            of_version_2("PUT", "/0/version", "3.5.0"),
            of_version_2("SYNC", "", ""),
            of_version_2("QGET", "/1/key", ""),
            put.encode_to_vec(),
        ]);
        let found: Vec<_> = found.unwrap();
        let version = proto::membershippb::ClusterVersionSetRequest { ver: "3.5.0".into() };
        assert_eq!(found[0].body, version.encode_to_vec());
        let kinds: Vec<_> = found.iter().map(|proposal| proposal.kind).collect();
        assert_eq!(kinds, [CommandKind::ClusterVersionSet, CommandKind::Put]);
        let cut = RequestV2 { method: "SYNC".into(), ..<_>::default() };
        for entry in [
            of_version_2("PUT", "/1/key", "v"),
            of_version_2("DELETE", "/0/version", ""),
            of_version_2("PUT", "/0/members/1", "{}"),
            b"no message".to_vec(),
            // Neither.
            [cut.encode_to_vec(), vec![0x22, 1, 0xff]].concat(),
        ] {
            let error = read_entries([put.encode_to_vec(), entry]).unwrap_err();
            assert!(matches!(error, ImportError::Entry { index: 2, .. }), "{error}");
        }
    }

    #[test]
    fn a_password_that_each_member_would_hash_anew_is_refused() {
        let add = |password: &str, hash: &str, no_password| InternalRaftRequest {
            auth_user_add: Some(pb::AuthUserAddRequest {
                name: "u".into(),
                password: password.into(),
                hashed_password: hash.into(),
                options: Some(UserAddOptions { no_password }),
            }),
            ..<_>::default()
        };
        let change = InternalRaftRequest {
            auth_user_change_password: Some(pb::AuthUserChangePasswordRequest {
                name: "u".into(),
                password: "secret".into(),
                hashed_password: String::new(),
            }),
            ..<_>::default()
        };
        for (request, refused) in [
            (add("", "aGFzaA==", false), false),
            (add("", "", true), false),
            (add("secret", "", true), false),
            (add("secret", "", false), true),
            (change, true),
        ] {
            let fine = add("", "aGFzaA==", false);
            match read(&[fine, request.clone()]) {
                Ok(found) => assert!(!refused && found.len() == 2, "{request:?}"),
                Err(error) => {
                    assert!(refused, "{error}");
                    assert!(matches!(error, ImportError::Password { index: 2, .. }), "{error}");
                    assert!(!error.to_string().contains("secret"));
                }
            }
        }
    }
}
