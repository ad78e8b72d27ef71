//! A backup from a member that speaks gRPC into a store that is watched: what is held in memory,
//! in which order things appear in the store, and what is left of a stream that breaks.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    pin::Pin,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, future::BoxFuture, stream, stream::BoxStream};
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    PutMultipartOptions, PutOptions, PutResult, UploadPart,
    memory::InMemory,
    multipart::{MultipartStore, PartId},
};
use proto::etcdserverpb::{
    AlarmRequest, AlarmResponse, DefragmentRequest, DefragmentResponse, DowngradeRequest,
    DowngradeResponse, HashKvRequest, HashKvResponse, HashRequest, HashResponse, MoveLeaderRequest,
    MoveLeaderResponse, ResponseHeader, SnapshotResponse, StatusRequest, StatusResponse,
    maintenance_server::{Maintenance, MaintenanceServer},
};
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tonic::{Request, Response, Status, async_trait, transport::Server};

use super::*;
use crate::{backup::store::open_volume, crd::PersistentVolumeClaimStore};

/// Nothing here takes long; a test that hangs has to say so.
const LIMIT: Duration = Duration::from_secs(120);
const MIB: usize = 1 << 20;
/// What one message of the stream carries.
const BLOB: usize = 64 << 10;
/// What HTTP/2 and the two ends of it may hold of a stream.
const TRANSPORT: usize = 4 * MIB;

// === The member ===

/// How a stream goes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Script {
    Whole,
    /// The member ends after so many bytes.
    BreaksAfter(usize),
    /// The stream ends early, as if it were whole.
    CutTo(usize),
    WrongDigest,
}

/// A member with a database of so many bytes, which it sends as its script says.
#[derive(Clone)]
struct Member {
    script: Script,
    database: usize,
    sent: Arc<AtomicUsize>,
    asked: Arc<AtomicUsize>,
}

impl Member {
    fn new(script: Script, database: usize) -> Member {
        Member { script, database, sent: Arc::default(), asked: Arc::default() }
    }

    /// Serves at an address that the kernel chooses, until the test's runtime ends.
    async fn serve(&self) -> MemberAddress {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let incoming = stream::unfold(listener, async |listener| {
            let accepted = listener.accept().await.map(|(connection, _)| connection);
            Some((accepted, listener))
        });
        let service = MaintenanceServer::new(self.clone());
        tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
        MemberAddress { url, host: "main-1".to_owned() }
    }

    /// The snapshot: a pattern, and the digest of it.
    fn blobs(&self) -> impl Iterator<Item = Bytes> + use<> {
        let block: Bytes = (0..BLOB).map(|i| (i * 7 % 251) as u8).collect::<Vec<u8>>().into();
        let (whole, rest) = (self.database / BLOB, self.database % BLOB);
        let mut digest = Sha256::new();
        (0..whole).for_each(|_| digest.update(&block));
        digest.update(&block[..rest]);
        let mut digest = digest.finalize().to_vec();
        digest[0] ^= u8::from(self.script == Script::WrongDigest);
        let last = [block.slice(..rest), Bytes::from(digest)];
        std::iter::repeat_n(block, whole).chain(last).filter(|blob| !blob.is_empty())
    }

    fn pieces(&self) -> Vec<Result<Bytes, Status>> {
        let limit = match self.script {
            Script::Whole | Script::WrongDigest => usize::MAX,
            Script::BreaksAfter(bytes) | Script::CutTo(bytes) => bytes,
        };
        let mut left = limit;
        let mut pieces: Vec<Result<Bytes, Status>> = self
            .blobs()
            .map(|blob| {
                let piece = blob.slice(..blob.len().min(left));
                left -= piece.len().min(left);
                piece
            })
            .take_while(|piece| !piece.is_empty())
            .map(Ok)
            .collect();
        if let Script::BreaksAfter(_) = self.script {
            pieces.push(Err(Status::unavailable("the server is stopping")));
        }
        pieces
    }
}

type SnapshotStream = Pin<Box<dyn Stream<Item = Result<SnapshotResponse, Status>> + Send>>;

#[async_trait]
impl Maintenance for Member {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let header = ResponseHeader { cluster_id: 1, member_id: 2, revision: 7, raft_term: 3 };
        Ok(Response::new(StatusResponse {
            header: Some(header),
            version: "3.7.3".to_owned(),
            leader: 2,
            raft_term: 3,
            raft_applied_index: 9,
            ..StatusResponse::default()
        }))
    }

    type SnapshotStream = SnapshotStream;

    async fn snapshot(
        &self,
        _: Request<SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let sent = self.sent.clone();
        let pieces = stream::iter(self.pieces()).map(move |piece| {
            let blob = piece?;
            sent.fetch_add(blob.len(), Ordering::SeqCst);
            Ok(SnapshotResponse { blob, ..SnapshotResponse::default() })
        });
        Ok(Response::new(Box::pin(pieces)))
    }

    async fn alarm(&self, _: Request<AlarmRequest>) -> Result<Response<AlarmResponse>, Status> {
        Err(not_asked())
    }

    async fn defragment(
        &self,
        _: Request<DefragmentRequest>,
    ) -> Result<Response<DefragmentResponse>, Status> {
        Err(not_asked())
    }

    async fn hash(&self, _: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        Err(not_asked())
    }

    async fn hash_kv(&self, _: Request<HashKvRequest>) -> Result<Response<HashKvResponse>, Status> {
        Err(not_asked())
    }

    async fn move_leader(
        &self,
        _: Request<MoveLeaderRequest>,
    ) -> Result<Response<MoveLeaderResponse>, Status> {
        Err(not_asked())
    }

    async fn downgrade(
        &self,
        _: Request<DowngradeRequest>,
    ) -> Result<Response<DowngradeResponse>, Status> {
        Err(not_asked())
    }
}

fn not_asked() -> Status {
    Status::unimplemented("a backup does not ask this")
}

// === The store ===

/// What the store was asked to change, in order.
#[derive(Clone, Debug, PartialEq)]
enum Call {
    Put(String),
    StartUpload(String),
    CompleteUpload(String),
    AbortUpload(String),
}

/// What is known of the parts of an upload.
#[derive(Clone, Copy, Debug, Default)]
struct Parts {
    started: usize,
    in_flight: usize,
    in_flight_max: usize,
    bytes_done: usize,
    bytes_max: usize,
    /// Bytes that the member had sent and the store had not taken yet, at the worst moment.
    held_max: usize,
}

/// A store that writes down what it is asked. A part is not taken before the uploader has as many
/// parts under way as it ever will: so what it holds at most is seen without any waiting for time.
#[derive(Clone, Debug)]
struct Watched {
    inner: Arc<dyn ObjectStore>,
    calls: Arc<Mutex<Vec<Call>>>,
    parts: watch::Sender<Parts>,
    sent: Arc<AtomicUsize>,
    /// How many parts there will be; with 0 each part is taken at once.
    expected: usize,
    /// The part that fails, counted from one.
    fails_at: Option<usize>,
}

impl Watched {
    fn new(inner: Arc<dyn ObjectStore>, member: &Member, expected: usize) -> Watched {
        Watched {
            inner,
            calls: Arc::default(),
            parts: watch::Sender::new(Parts::default()),
            sent: member.sent.clone(),
            expected,
            fails_at: None,
        }
    }

    fn note(&self, call: Call) {
        self.calls.lock().unwrap().push(call);
    }

    fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }
}

impl std::fmt::Display for Watched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "watched {}", self.inner)
    }
}

#[async_trait]
impl ObjectStore for Watched {
    async fn put_opts(
        &self,
        location: &ObjectPath,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        self.note(Call::Put(location.to_string()));
        self.inner.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &ObjectPath,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.note(Call::StartUpload(location.to_string()));
        let inner = self.inner.put_multipart_opts(location, options).await?;
        Ok(Box::new(WatchedUpload { store: self.clone(), path: location.to_string(), inner }))
    }

    async fn get_opts(
        &self,
        location: &ObjectPath,
        options: GetOptions,
    ) -> object_store::Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<ObjectPath>>,
    ) -> BoxStream<'static, object_store::Result<ObjectPath>> {
        self.inner.delete_stream(locations)
    }

    fn list(
        &self,
        prefix: Option<&ObjectPath>,
    ) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(
        &self,
        prefix: Option<&ObjectPath>,
    ) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(
        &self,
        from: &ObjectPath,
        to: &ObjectPath,
        options: CopyOptions,
    ) -> object_store::Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[derive(Debug)]
struct WatchedUpload {
    store: Watched,
    path: String,
    inner: Box<dyn MultipartUpload>,
}

#[async_trait]
impl MultipartUpload for WatchedUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let store = self.store.clone();
        let bytes = data.content_length();
        store.parts.send_modify(|parts| {
            parts.started += 1;
            parts.in_flight += 1;
            parts.in_flight_max = parts.in_flight_max.max(parts.in_flight);
            parts.bytes_max = parts.bytes_max.max(bytes);
        });
        let number = store.parts.borrow().started;
        let taken = self.inner.put_part(data);
        let part: BoxFuture<'static, object_store::Result<()>> = Box::pin(async move {
            let enough = (number + PARTS_MAX - 1).min(store.expected);
            let mut seen = store.parts.subscribe();
            seen.wait_for(|parts| parts.started >= enough).await.expect("the store is there");
            if store.fails_at == Some(number) {
                let source = "the disk is full".into();
                return Err(object_store::Error::Generic { store: "watched", source });
            }
            taken.await?;
            store.parts.send_modify(|parts| {
                let held = store.sent.load(Ordering::SeqCst) - parts.bytes_done;
                parts.held_max = parts.held_max.max(held);
                parts.in_flight -= 1;
                parts.bytes_done += bytes;
            });
            Ok(())
        });
        part
    }

    async fn complete(&mut self) -> object_store::Result<PutResult> {
        self.store.note(Call::CompleteUpload(self.path.clone()));
        self.inner.complete().await
    }

    async fn abort(&mut self) -> object_store::Result<()> {
        self.store.note(Call::AbortUpload(self.path.clone()));
        self.inner.abort().await
    }
}

// === What is promised ===

const SNAPSHOT: &str = "f/snapshot.db";
const MANIFEST: &str = "f/manifest.json";

async fn take(member: &Member, store: Arc<dyn ObjectStore>) -> Result<Manifest, AgentError> {
    take_into(member, &Store::plain(store)).await
}

fn order() -> BackupOrder {
    BackupOrder {
        folder: "f".to_owned(),
        backup_uid: "uid".to_owned(),
        cluster: "main".to_owned(),
        member: "main-1".to_owned(),
        address: MemberAddress { url: String::new(), host: String::new() },
    }
}

async fn take_into(member: &Member, store: &Store) -> Result<Manifest, AgentError> {
    let order = BackupOrder { address: member.serve().await, ..order() };
    let etcd = GrpcAdmin::new(None);
    tokio::time::timeout(LIMIT, backup(&order, &etcd, store)).await.expect("the backup hangs")
}

fn digest_of(member: &Member) -> (u64, String) {
    let mut digest = Sha256::new();
    let size = member.blobs().map(|blob| {
        digest.update(&blob);
        blob.len() as u64
    });
    (size.sum(), hex::encode(digest.finalize()))
}

#[tokio::test]
async fn a_large_snapshot_goes_through_in_parts_and_the_manifest_comes_last() {
    let member = Member::new(Script::Whole, 72 * MIB);
    let parts = 10;
    let store = Watched::new(Arc::new(InMemory::new()), &member, parts);
    let manifest = take(&member, Arc::new(store.clone())).await.unwrap();
    assert_eq!((manifest.size_bytes, manifest.sha256.clone()), digest_of(&member));
    assert_eq!((manifest.revision, manifest.raft_term, manifest.raft_index), (7, 3, 9));
    let said = |text: &str| text.to_owned();
    assert_eq!(
        store.calls(),
        [
            Call::StartUpload(said(SNAPSHOT)),
            Call::CompleteUpload(said(SNAPSHOT)),
            Call::Put(said(MANIFEST)),
        ]
    );
    let seen = *store.parts.borrow();
    assert_eq!((seen.started, seen.bytes_max), (parts, PART_BYTES));
    assert_eq!(seen.in_flight_max, PARTS_MAX, "{seen:?}");
    // The parts in flight, the one that is being filled, and what is on the wire.
    let bound = (PARTS_MAX + 1) * PART_BYTES + TRANSPORT;
    assert!(seen.held_max <= bound && bound < 72 * MIB, "{seen:?}, bound {bound}");
    assert!(seen.held_max > PART_BYTES, "nothing was measured: {seen:?}");
    // What the store has is what the member sent.
    let stored: Arc<dyn ObjectStore> = Arc::new(store.clone());
    let bytes = stored.get(&ObjectPath::from(SNAPSHOT)).await.unwrap().bytes().await.unwrap();
    assert_eq!(hex::encode(Sha256::digest(&bytes)), manifest.sha256);

    // A second attempt finds it done, and asks the member for nothing.
    assert_eq!(take(&member, stored).await.unwrap(), manifest);
    assert_eq!(member.asked.load(Ordering::SeqCst), 1);
    assert_eq!(store.calls().len(), 3);
}

#[tokio::test]
async fn what_is_not_whole_leaves_nothing_in_the_store() {
    let database = 20 * MIB;
    let table: [(Script, Option<usize>, &str); 6] = [
        (Script::BreaksAfter(17 * MIB + 5), None, "the server is stopping"),
        (Script::BreaksAfter(0), None, "the server is stopping"),
        (Script::WrongDigest, None, "was damaged"),
        // The other one is a whole number of sectors and the length of a digest.
        (Script::CutTo(9 * MIB), None, "was cut off"),
        (Script::CutTo(9 * MIB + 32), None, "was damaged"),
        (Script::Whole, Some(2), "the disk is full"),
    ];
    for (script, fails_at, said) in table {
        let member = Member::new(script, database);
        let inner: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let store = Watched { fails_at, ..Watched::new(inner.clone(), &member, 0) };
        let error = take(&member, Arc::new(store.clone())).await.unwrap_err().to_string();
        assert!(error.contains(said), "{script:?}: {error}");
        let path = SNAPSHOT.to_owned();
        let expected = [Call::StartUpload(path.clone()), Call::AbortUpload(path)];
        assert_eq!(store.calls(), expected, "{script:?}, {fails_at:?}");
        let left: Vec<_> = inner.list(None).collect().await;
        assert!(left.is_empty(), "{script:?}: {left:?}");
        // The next attempt, of a member that is well, is not disturbed by it.
        let member = Member::new(Script::Whole, database);
        take(&member, inner).await.unwrap();
    }
}

// === On a volume ===

/// The files below a directory, with their sizes.
fn files(directory: &Path) -> BTreeMap<PathBuf, u64> {
    let mut files = BTreeMap::new();
    let mut open = vec![directory.to_owned()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(&next).unwrap().map(Result::unwrap) {
            match entry.metadata().unwrap() {
                found if found.is_dir() => open.push(entry.path()),
                found => {
                    let path = entry.path().strip_prefix(directory).unwrap().to_owned();
                    files.insert(path, found.len());
                }
            }
        }
    }
    files
}

#[tokio::test]
async fn a_backup_on_a_volume_is_two_files_and_a_new_cluster_is_made_of_them() {
    for prefix in ["", "team/a"] {
        let volume = tempfile::tempdir().unwrap();
        let claim =
            PersistentVolumeClaimStore { claim_name: "c".to_owned(), prefix: prefix.to_owned() };
        let open = || open_volume(volume.path(), &claim).unwrap();

        // An attempt that fails leaves no file, also not one that is hidden or half written.
        let broken = Member::new(Script::BreaksAfter(9 * MIB), 20 * MIB);
        take_into(&broken, &open()).await.unwrap_err();
        assert_eq!(files(volume.path()), BTreeMap::new());

        let member = Member::new(Script::Whole, 20 * MIB);
        let manifest = take_into(&member, &open()).await.unwrap();
        let folder = Path::new(prefix).join("f");
        let found = files(volume.path());
        assert_eq!(found.get(&folder.join("snapshot.db")), Some(&manifest.size_bytes));
        assert!(found.contains_key(&folder.join("manifest.json")) && found.len() == 2, "{found:?}");

        // By another process, which knows the store and the path of the manifest only.
        let place = tempfile::tempdir().unwrap();
        let order = RestoreOrder {
            manifest: MANIFEST.to_owned(),
            sha256: Some(manifest.sha256.clone()),
            data_dir: place.path().join("data"),
            etcdutl: super::tests::copying_etcdutl(place.path()),
            arguments: vec!["--name".to_owned(), "copy-1".to_owned()],
            bump_revision: 0,
        };
        assert_eq!(restore(&order, open().objects).await.unwrap(), Some(manifest.revision));
        let restored = std::fs::read(place.path().join("data/db")).unwrap();
        assert_eq!(hex::encode(Sha256::digest(&restored)), manifest.sha256);

        delete(MANIFEST, "uid", &open()).await.unwrap();
        assert_eq!(files(volume.path()), BTreeMap::new());
    }
}

/// A bucket that knows which uploads are open, as a real one does, and that can be made to take its
/// time over a part.
#[derive(Clone, Debug, Default)]
struct Bucket {
    inner: Arc<InMemory>,
    open: Arc<Mutex<BTreeMap<String, String>>>,
    parts: watch::Sender<usize>,
    stuck: bool,
}

impl Bucket {
    fn open_uploads(&self) -> Vec<String> {
        self.open.lock().unwrap().values().cloned().collect()
    }

    async fn objects(&self) -> Vec<String> {
        let all: Vec<ObjectMeta> = self.inner.list(None).try_collect().await.unwrap();
        all.into_iter().map(|object| object.location.to_string()).collect()
    }

    /// It closes the upload, or says as S3 does that there is none.
    fn close(&self, id: &str) -> object_store::Result<()> {
        let closed = self.open.lock().unwrap().remove(id);
        closed.map(drop).ok_or_else(|| object_store::Error::NotFound {
            path: id.to_owned(),
            source: "NoSuchUpload".into(),
        })
    }
}

#[async_trait]
impl MultipartStore for Bucket {
    async fn create_multipart(&self, path: &ObjectPath) -> object_store::Result<String> {
        let id = self.inner.create_multipart(path).await?;
        self.open.lock().unwrap().insert(id.clone(), path.to_string());
        Ok(id)
    }

    async fn put_part(
        &self,
        path: &ObjectPath,
        id: &String,
        part: usize,
        data: PutPayload,
    ) -> object_store::Result<PartId> {
        let taken = self.inner.put_part(path, id, part, data).await?;
        self.parts.send_modify(|parts| *parts += 1);
        if self.stuck {
            std::future::pending::<()>().await;
        }
        Ok(taken)
    }

    async fn complete_multipart(
        &self,
        path: &ObjectPath,
        id: &String,
        parts: Vec<PartId>,
    ) -> object_store::Result<PutResult> {
        self.close(id)?;
        self.inner.complete_multipart(path, id, parts).await
    }

    async fn abort_multipart(&self, path: &ObjectPath, id: &String) -> object_store::Result<()> {
        self.close(id)?;
        self.inner.abort_multipart(path, id).await
    }
}

/// Starts a backup into a bucket and kills the agent once a part of the snapshot is there.
async fn kill_in_the_middle(bucket: &Bucket) {
    let stuck = Bucket { stuck: true, ..bucket.clone() };
    let mut parts = stuck.parts.subscribe();
    let before = *parts.borrow();
    let agent = tokio::spawn(async move {
        let member = Member::new(Script::Whole, 20 * MIB);
        drop(take_into(&member, &stuck.store()).await);
    });
    let part = parts.wait_for(|parts| *parts > before);
    tokio::time::timeout(LIMIT, part).await.expect("no part comes").unwrap();
    agent.abort();
    assert!(agent.await.unwrap_err().is_cancelled());
}

impl Bucket {
    fn store(&self) -> Store {
        Store::of_parts(self.inner.clone(), Arc::new(self.clone()))
    }
}

#[tokio::test]
async fn an_agent_that_was_killed_leaves_no_upload_to_the_next() {
    let bucket = Bucket::default();
    let member = Member::new(Script::Whole, 20 * MIB);
    for _ in 0..2 {
        kill_in_the_middle(&bucket).await;
        // Also the second finds that of the first, and leaves its own.
        assert_eq!(bucket.open_uploads(), [SNAPSHOT]);
        assert_eq!(bucket.objects().await, ["f/upload.json"]);
    }
    let manifest = take_into(&member, &bucket.store()).await.unwrap();
    assert_eq!((manifest.size_bytes, manifest.sha256), digest_of(&member));
    assert!(bucket.open_uploads().is_empty(), "{:?}", bucket.open_uploads());
    assert_eq!(bucket.objects().await, [MANIFEST, SNAPSHOT]);
    // One that fails by itself cleans up by itself.
    let bucket = Bucket::default();
    let broken = Member::new(Script::BreaksAfter(9 * MIB), 20 * MIB);
    take_into(&broken, &bucket.store()).await.unwrap_err();
    assert!(bucket.open_uploads().is_empty() && bucket.objects().await.is_empty());
}

/// The deadline of its Job: nobody comes after it who would abort its upload.
#[tokio::test]
async fn an_agent_that_is_told_to_end_leaves_no_upload() {
    let bucket = Bucket::default();
    let stuck = Bucket { stuck: true, ..bucket.clone() };
    let member = Member::new(Script::Whole, 20 * MIB);
    let order = BackupOrder { address: member.serve().await, ..order() };
    let mut parts = stuck.parts.subscribe();
    let begun = async { drop(parts.wait_for(|parts| *parts > 0).await) };
    let store = stuck.store();
    let etcd = GrpcAdmin::new(None);
    let ended = tokio::time::timeout(LIMIT, backup_until(&order, &etcd, &store, begun));
    let error = ended.await.expect("it ends").unwrap_err();
    assert!(matches!(error, AgentError::Stopped), "{error}");
    assert!(bucket.open_uploads().is_empty(), "{:?}", bucket.open_uploads());
    assert!(bucket.objects().await.is_empty());
}

#[tokio::test]
async fn with_a_backup_that_never_came_about_goes_its_upload_and_no_other() {
    let bucket = Bucket::default();
    kill_in_the_middle(&bucket).await;
    let other = ObjectPath::from("g-uid2/snapshot.db");
    bucket.create_multipart(&other).await.unwrap();
    // The folder of a backup ends with its uid; this one is another's.
    delete(MANIFEST, "uid", &bucket.store()).await.unwrap();
    assert_eq!(bucket.open_uploads(), [SNAPSHOT, other.as_ref()]);
    delete(MANIFEST, "f", &bucket.store()).await.unwrap();
    assert_eq!(bucket.open_uploads(), [other.as_ref()]);
    assert!(bucket.objects().await.is_empty());
}

#[tokio::test]
async fn on_a_volume_the_file_of_a_killed_agent_goes_with_the_next_and_with_the_deletion() {
    let volume = tempfile::tempdir().unwrap();
    let claim =
        PersistentVolumeClaimStore { claim_name: "c".to_owned(), prefix: "team/a".to_owned() };
    let store = open_volume(volume.path(), &claim).unwrap();
    let left = volume.path().join("team/a/f/snapshot.db#1");
    let killed = || {
        std::fs::create_dir_all(left.parent().unwrap()).unwrap();
        std::fs::write(&left, b"half of it").unwrap();
    };
    killed();
    let member = Member::new(Script::Whole, MIB);
    take_into(&member, &store).await.unwrap();
    assert!(!left.exists());
    killed();
    // A path that the store itself would not give away.
    assert!(
        !store
            .objects
            .list(None)
            .map(|o| o.unwrap().location)
            .any(async |path| { path.as_ref().contains('#') })
            .await
    );
    delete(MANIFEST, "f", &store).await.unwrap_err();
    assert!(!left.exists());
}
