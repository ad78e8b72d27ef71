use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use machine::{
    AppliedEntry, AppliedPayload, Batch, ClusterVersion, CommandKind, LogPosition, Machine,
    MembershipEntry, MembershipNode, Proposal, Ticket,
};
use mvcc::memory::MemoryRevs;
use proto::etcdserverpb::{
    AuthEnableRequest, AuthRoleAddRequest, AuthRoleGrantPermissionRequest, AuthUserAddRequest,
    AuthUserGrantRoleRequest, CompactionRequest, DeleteRangeRequest, LeaseGrantRequest, PutRequest,
};
use types::{ClusterId, LogIndex, MemberId, Term};

use super::*;

struct Fixture {
    machine: Machine,
    index: u64,
}

impl Fixture {
    fn new() -> Self {
        let machine = Machine::new(Arc::new(MemoryRevs::default()), ClusterId(7));
        let mut fixture = Self { machine, index: 0 };
        let node = MembershipNode {
            id: MemberId(0xabc),
            peer_urls: vec!["http://localhost:2380".to_owned()],
            voter_intent: true,
            ..MembershipNode::default()
        };
        fixture.entry(AppliedPayload::Membership(MembershipEntry {
            nodes: vec![node],
            voters: vec![[MemberId(0xabc)].into()],
        }));
        fixture
    }

    fn entry(&mut self, payload: AppliedPayload) {
        self.index += 1;
        let position = LogPosition { term: Term(2), index: LogIndex(self.index) };
        self.machine.apply(&[AppliedEntry { position, payload }]).unwrap();
    }

    fn propose(&mut self, kind: CommandKind, request: &impl Message) {
        let ticket = Ticket { origin: MemberId(0xabc), seq: 1 };
        let batch = Batch::encode(&[(ticket, Proposal::new(kind, request))]);
        self.entry(AppliedPayload::Batch(batch));
    }

    /// Turns auth on, with `root` and a role.
    fn guard(&mut self) {
        let (name, hashed_password) = ("root".to_owned(), "aGFzaA==".to_owned());
        let user = AuthUserAddRequest { name, hashed_password, ..Default::default() };
        self.propose(CommandKind::UserAdd, &user);
        let (user, role) = ("root".to_owned(), "root".to_owned());
        self.propose(CommandKind::UserGrantRole, &AuthUserGrantRoleRequest { user, role });
        self.propose(CommandKind::RoleAdd, &AuthRoleAddRequest { name: "r".to_owned() });
        let (key, range_end) = ("a".into(), Bytes::from_static(&[0]));
        let perm = Some(authpb::Permission { perm_type: 2, key, range_end });
        let grant = AuthRoleGrantPermissionRequest { name: "r".to_owned(), perm };
        self.propose(CommandKind::RoleGrantPermission, &grant);
        self.propose(CommandKind::AuthEnable, &AuthEnableRequest {});
    }

    fn put(&mut self, key: &str, value: &str, lease: i64) {
        let (key, value) = (key.as_bytes().to_vec().into(), value.as_bytes().to_vec().into());
        self.propose(CommandKind::Put, &PutRequest { key, value, lease, ..PutRequest::default() });
    }
}

fn filled() -> Fixture {
    let mut fixture = Fixture::new();
    fixture.propose(CommandKind::LeaseGrant, &LeaseGrantRequest { id: 9, ttl: 60 });
    for number in 0..2000 {
        fixture.put(&format!("key-{:04}", number % 500), &"v".repeat(200), 0);
    }
    fixture.put("leased", "x", 9);
    let key = Bytes::from_static(b"key-0007");
    fixture.propose(CommandKind::DeleteRange, &DeleteRangeRequest { key, ..Default::default() });
    let revision = 1700;
    fixture.propose(CommandKind::Compaction, &CompactionRequest { revision, physical: false });
    fixture
}

async fn received(views: &Views) -> (Vec<u8>, Vec<SnapshotResponse>) {
    let directory = tempfile::tempdir().unwrap();
    let file = write(views, directory.path(), 0).unwrap();
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "nothing is left behind");
    let length = file.len();
    let messages: Vec<SnapshotResponse> =
        Box::pin(stream(file)).map(|message| message.unwrap()).collect().await;
    let pieces = &messages[..messages.len() - 1];
    let bytes = pieces.iter().flat_map(|message| message.blob.to_vec()).collect::<Vec<u8>>();
    assert_eq!(bytes.len() as u64, length);
    (bytes, messages)
}

#[tokio::test]
async fn the_pieces_are_in_order_and_the_digest_comes_last() {
    let fixture = filled();
    let (bytes, messages) = received(&fixture.machine.views()).await;
    assert!(bytes.len() % 512 == 0, "tools tell the digest by it");
    let (last, pieces) = messages.split_last().unwrap();
    assert_eq!(last.blob[..], Sha256::digest(&bytes)[..]);
    let mut remaining = bytes.len() as u64;
    for piece in pieces {
        remaining -= piece.blob.len() as u64;
        assert_eq!(piece.remaining_bytes, remaining);
        assert_eq!(piece.version, "3.7.0");
    }
    assert_eq!((remaining, last.remaining_bytes), (0, 0));
}

#[tokio::test]
async fn the_file_holds_what_etcd_keeps_in_its_buckets() {
    let mut fixture = filled();
    fixture.guard();
    let views = fixture.machine.views();
    let (bytes, _) = received(&views).await;
    let file = bbolt::Bbolt::open(bytes.as_slice()).unwrap();
    file.check().unwrap();
    let names: Vec<String> = file
        .buckets()
        .unwrap()
        .iter()
        .map(|name| String::from_utf8(name.to_vec()).unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "alarm",
            "auth",
            "authRoles",
            "authUsers",
            "cluster",
            "key",
            "lease",
            "members",
            "members_removed",
            "meta"
        ]
    );
    let get = |bucket: &str, key: &[u8]| {
        file.bucket(bucket.as_bytes()).unwrap().unwrap().get(key).unwrap()
    };
    assert_eq!(get("auth", b"authEnabled").unwrap(), [1][..]);
    let revision = views.auth().revision();
    assert_eq!(get("auth", b"authRevision").unwrap(), revision.to_be_bytes()[..]);
    let root = authpb::User::decode(get("authUsers", b"root").unwrap()).unwrap();
    assert_eq!((&root.name[..], &root.password[..]), (&b"root"[..], &b"hash"[..]));
    assert_eq!((root.roles, root.options), (vec!["root".to_owned()], Some(Default::default())));
    let role = authpb::Role::decode(get("authRoles", b"r").unwrap()).unwrap();
    assert_eq!(role.key_permission[0].range_end, b"\0"[..]);
    let member: serde_json::Value =
        serde_json::from_slice(&get("members", b"abc").unwrap()).unwrap();
    assert_eq!(member["id"], 0xabc);
    assert_eq!(member["peerURLs"][0], "http://localhost:2380");
    assert!(member.get("isLearner").is_none());
    let lease = LeaseRecord::decode(get("lease", &9_i64.to_be_bytes()).unwrap()).unwrap();
    assert_eq!((lease.id, lease.ttl), (9, 60));
    let compacted = record_key(RecordRevision { main: 1700, sub: 0 }, false);
    assert_eq!(get("meta", b"finishedCompactRev").unwrap(), compacted[..]);
    assert_eq!(get("meta", b"storageVersion").unwrap(), "3.7.0");
}

#[tokio::test]
async fn the_keys_of_the_file_have_the_hash_of_the_member() {
    let fixture = filled();
    let views = fixture.machine.views();
    let (bytes, _) = received(&views).await;
    let file = bbolt::Bbolt::open(bytes.as_slice()).unwrap();
    // What Go's HashKV reads: all rows above the compaction, and below it only what is still seen at
    // the newest revision.
    let hash = views.mvcc.hash_kv(0).unwrap();
    let rows: Vec<(Bytes, Bytes)> =
        file.bucket(b"key").unwrap().unwrap().entries().map(|entry| entry.unwrap()).collect();
    let main = |key: &Bytes| i64::from_be_bytes(key[..8].try_into().unwrap());
    let mut newest = std::collections::BTreeMap::new();
    for (key, value) in &rows {
        let kv = mvcc::KeyValue::decode(value).unwrap();
        newest.insert(kv.key, main(key));
    }
    let mut crc = crc32c::crc32c(b"key");
    for (key, value) in &rows {
        let kv = mvcc::KeyValue::decode(value).unwrap();
        if main(key) > 1700 || newest[&kv.key] == main(key) {
            crc = crc32c::crc32c_append(crc, key);
            crc = crc32c::crc32c_append(crc, value);
        }
    }
    assert_eq!(crc, hash.hash);
}

#[test]
fn hash_covers_what_the_member_holds_and_not_where_it_stands() {
    let mut fixture = filled();
    let before = hash(&fixture.machine.views()).unwrap();
    fixture.entry(AppliedPayload::Blank);
    assert_eq!(hash(&fixture.machine.views()).unwrap(), before, "the index moved, nothing else");
    fixture.put("one", "more", 0);
    assert_ne!(hash(&fixture.machine.views()).unwrap(), before);
}

#[test]
fn a_version_that_the_cluster_agreed_on_is_written_as_text() {
    assert_eq!(
        "3.7.0".parse::<ClusterVersion>().unwrap().to_string(),
        version::release().cluster().to_string()
    );
}

/// A backup of half of the disk raised the alarm that stops all writes.
#[test]
fn a_file_that_would_take_the_members_room_is_not_written() {
    let mut fixture = Fixture::new();
    fixture.put("key", &"v".repeat(100_000), 0);
    let directory = tempfile::tempdir().unwrap();
    let views = fixture.machine.views();
    write(&views, directory.path(), 0).unwrap();
    let free = rustix::fs::statvfs(directory.path()).unwrap();
    let free = free.f_bavail * free.f_frsize;
    let refused = write(&views, directory.path(), free).map(|file| file.len());
    let Err(error @ SnapshotFileError::NoSpace { free: told, kept }) = refused else {
        panic!("{refused:?}")
    };
    assert!(told < free + LOOK_BYTES, "{told}");
    assert_eq!(kept, free + MARGIN_BYTES);
    let text = error.to_string();
    assert!(text.contains("enlarge the volume"), "{text}");
}

#[test]
fn the_free_space_is_looked_at_while_the_file_grows() {
    use std::io::Write;
    let mut file = Bounded::new(tempfile::tempfile().unwrap(), 0);
    file.write_all(&[0; 10]).unwrap();
    file.kept = u64::MAX;
    let chunk = vec![0; 1 << 20];
    let error = (0..8).find_map(|_| file.write_all(&chunk).err()).expect("it has looked");
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
}

/// The file had the keys of a later moment than the users and roles that guard them.
#[test]
fn what_is_written_meanwhile_is_not_in_the_file() {
    let mut fixture = Fixture::new();
    fixture.put("early", "1", 0);
    let views = fixture.machine.views();
    let (mut records, mut guarded) = (0, Vec::new());
    write_buckets(&views, &mut |name, entries| {
        if name == b"alarm" {
            fixture.guard();
            fixture.put("late", "2", 0);
        }
        entries(&mut |key, value| {
            records += usize::from(name == b"key");
            if key == b"authEnabled" {
                guarded = value.to_vec();
            }
            Ok(())
        })
    })
    .unwrap();
    assert_eq!((records, guarded), (1, vec![0]));
}
