//! Uploads in parts, and what becomes of one whose agent was killed.
//!
//! Until it is completed or aborted an upload takes space that no list of objects shows. An agent that
//! is told to stop aborts its own; one that is killed cannot. So an upload to a bucket is noted under
//! its id, in an object beside the snapshot, before its first part is sent; whoever works on the backup
//! next, another attempt or its deletion, aborts what is noted. A backup has a folder of its own, and
//! nobody else's uploads are ever touched. On a volume the unfinished upload is a file beside the
//! snapshot, and needs no note.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::{FutureExt, future::BoxFuture};
use object_store::{
    Error, MultipartUpload, ObjectStore, ObjectStoreExt, PutPayload, PutResult, UploadPart,
    multipart::{MultipartStore, PartId},
    path::Path as ObjectPath,
};
use serde::{Deserialize, Serialize};

use super::manifest::snapshot_path;

/// A store, and how its uploads can be ended from outside.
#[derive(Clone)]
pub struct Store {
    pub objects: Arc<dyn ObjectStore>,
    uploads: Uploads,
}

#[derive(Clone)]
enum Uploads {
    /// By an id that has to be noted.
    Noted(Arc<dyn MultipartStore>),
    /// Files below this directory, which the store itself does not list.
    Files(PathBuf),
    /// They end with the process.
    #[cfg(test)]
    Own,
}

/// What is noted of an upload while it is under way.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Note {
    upload_id: String,
}

impl Store {
    /// A bucket, or a part of one.
    pub fn bucket<S: ObjectStore + MultipartStore>(store: S) -> Store {
        let store = Arc::new(store);
        Store { objects: store.clone(), uploads: Uploads::Noted(store) }
    }

    /// What lies in a directory.
    pub fn directory(objects: Arc<dyn ObjectStore>, directory: &Path) -> Store {
        Store { objects, uploads: Uploads::Files(directory.to_owned()) }
    }

    /// The two sides of a bucket that are not one object.
    #[cfg(test)]
    pub fn of_parts(objects: Arc<dyn ObjectStore>, uploads: Arc<dyn MultipartStore>) -> Store {
        Store { objects, uploads: Uploads::Noted(uploads) }
    }

    /// A store for tests of other things.
    #[cfg(test)]
    pub fn plain(objects: Arc<dyn ObjectStore>) -> Store {
        Store { objects, uploads: Uploads::Own }
    }

    /// Begins to upload the snapshot of a folder; an earlier attempt to do so was discarded.
    ///
    /// # Errors
    /// The store refused.
    pub async fn begin(&self, folder: &str) -> Result<Box<dyn MultipartUpload>, Error> {
        let path = ObjectPath::from(snapshot_path(folder));
        let Uploads::Noted(store) = &self.uploads else {
            return self.objects.put_multipart(&path).await;
        };
        let upload_id = store.create_multipart(&path).await?;
        let note = Note { upload_id: upload_id.clone() };
        let text = serde_json::to_vec(&note).expect("a note is plain JSON");
        let upload = Upload { store: store.clone(), path, id: upload_id, parts: Parts::default() };
        self.objects.put(&note_path(folder), PutPayload::from(text)).await?;
        Ok(Box::new(upload))
    }

    /// Ends what an agent has left unfinished in a folder. Done after every upload too, whatever became
    /// of it: what is completed or aborted already is passed over, and the note goes.
    ///
    /// # Errors
    /// The store refused. Running it again goes on.
    pub async fn discard(&self, folder: &str) -> Result<(), Error> {
        match &self.uploads {
            Uploads::Noted(store) => self.discard_noted(store.as_ref(), folder).await,
            Uploads::Files(directory) => discard_files(&directory.join(folder)).await,
            #[cfg(test)]
            Uploads::Own => Ok(()),
        }
    }

    async fn discard_noted(&self, store: &dyn MultipartStore, folder: &str) -> Result<(), Error> {
        let path = note_path(folder);
        let note = match self.objects.get(&path).await {
            Err(Error::NotFound { .. }) => return Ok(()),
            found => found?.bytes().await?,
        };
        // A note that was cut off says nothing, and is not worth failing for.
        if let Ok(note) = serde_json::from_slice::<Note>(&note) {
            let snapshot = ObjectPath::from(snapshot_path(folder));
            match store.abort_multipart(&snapshot, &note.upload_id).await {
                Ok(()) => tracing::info!(folder, "an unfinished upload was aborted"),
                Err(Error::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        match self.objects.delete(&path).await {
            Err(error) if !matches!(error, Error::NotFound { .. }) => Err(error),
            _ => Ok(()),
        }
    }
}

fn note_path(folder: &str) -> ObjectPath {
    ObjectPath::from(format!("{folder}/upload.json"))
}

/// Removes the files that `object_store` writes to before it renames them: `snapshot.db#1` and on.
async fn discard_files(folder: &Path) -> Result<(), Error> {
    let failed = |source: std::io::Error| Error::Generic {
        store: "directory",
        source: format!("{}: {source}", folder.display()).into(),
    };
    let mut entries = match tokio::fs::read_dir(folder).await {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(failed)?,
    };
    while let Some(entry) = entries.next_entry().await.map_err(failed)? {
        if entry.file_name().to_string_lossy().starts_with("snapshot.db#") {
            tokio::fs::remove_file(entry.path()).await.map_err(failed)?;
            tracing::info!(file = %entry.path().display(), "an unfinished upload was removed");
        }
    }
    Ok(())
}

/// An upload whose id is known.
struct Upload {
    store: Arc<dyn MultipartStore>,
    path: ObjectPath,
    id: String,
    parts: Parts,
}

/// The parts in their order, as they are acknowledged.
// A plain mutex: it is held for an assignment and never across an await.
type Parts = Arc<Mutex<Vec<Option<PartId>>>>;

impl std::fmt::Debug for Upload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upload").field("path", &self.path).field("id", &self.id).finish()
    }
}

impl MultipartUpload for Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let index = {
            let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
            parts.push(None);
            parts.len() - 1
        };
        let (store, path, id) = (self.store.clone(), self.path.clone(), self.id.clone());
        let parts = self.parts.clone();
        Box::pin(async move {
            let part = store.put_part(&path, &id, index, data).await?;
            parts.lock().unwrap_or_else(PoisonError::into_inner)[index] = Some(part);
            Ok(())
        })
    }

    fn complete<'a, 'b>(&'a mut self) -> BoxFuture<'b, Result<PutResult, Error>>
    where
        'a: 'b,
        Self: 'b,
    {
        async move {
            let parts =
                std::mem::take(&mut *self.parts.lock().unwrap_or_else(PoisonError::into_inner));
            let sent = parts.into_iter().enumerate();
            let acknowledged = |(part, id): (usize, Option<PartId>)| {
                id.ok_or_else(|| Error::Generic {
                    store: "upload",
                    source: format!("part {part} was not acknowledged").into(),
                })
            };
            let parts = sent.map(acknowledged).collect::<Result<Vec<PartId>, Error>>()?;
            self.store.complete_multipart(&self.path, &self.id, parts).await
        }
        .boxed()
    }

    fn abort<'a, 'b>(&'a mut self) -> BoxFuture<'b, Result<(), Error>>
    where
        'a: 'b,
        Self: 'b,
    {
        async move { self.store.abort_multipart(&self.path, &self.id).await }.boxed()
    }
}
