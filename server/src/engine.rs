//! Opening the engine that `--backend-engine` names, measured, and never in the other one's files.

use std::path::Path;
use std::sync::Arc;

use disk::Disk;
use replica::OpenEngine;
use revlog::{RevLog, RevLogOptions, RevStore, RevStoreError, SledOptions, SledStore};

use crate::config::Engine;
use crate::ops::metrics::Metrics;
use crate::ops::observed::MeasuredStore;

/// What opens the engine in a directory of its own.
pub(crate) fn opener(engine: Engine, disk: Arc<dyn Disk>, metrics: Metrics) -> OpenEngine {
    let measured = move |engine: Arc<dyn RevStore>| {
        Arc::new(MeasuredStore::new(engine, metrics.clone())) as Arc<dyn RevStore>
    };
    match engine {
        Engine::Revlog => Arc::new(move |path: &Path| {
            refuse_other_engine(&*disk, path, "db", "sled")?;
            let log = RevLog::open(disk.clone(), path, RevLogOptions::default())?;
            Ok(measured(Arc::new(log)))
        }),
        Engine::Sled => Arc::new(move |path: &Path| {
            refuse_other_engine(&*disk, path, "manifest", "revlog")?;
            let store = SledStore::open(path, SledOptions::default())?;
            Ok(measured(Arc::new(store)))
        }),
    }
}

/// One engine would take the other's directory for an empty one.
fn refuse_other_engine(
    disk: &dyn Disk,
    path: &Path,
    file: &str,
    other: &'static str,
) -> Result<(), RevStoreError> {
    let file = path.join(file);
    match disk.exists(&file) {
        Ok(false) => Ok(()),
        Ok(true) => Err(RevStoreError::Engine {
            engine: other,
            detail: format!(
                "{} belongs to the engine {other}; start with --backend-engine={other}, or clear \
                 this member's data directory and add it again as a new member",
                file.display()
            ),
        }),
        Err(error) => Err(RevStoreError::Engine { engine: other, detail: error.to_string() }),
    }
}
