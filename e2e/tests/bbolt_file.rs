//! Files that our bbolt writer makes are good for Go etcd: its `etcdutl` checks every page of them
//! and counts what we count, restores a data directory from one, and what Go's bbolt then wrote on
//! top of our pages is read by ours.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::{Seek, Write};
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use bbolt::Writer;
use e2e::peers;
use prost::Message;
use proto::mvccpb::KeyValue;

/// A row of the `key` bucket.
fn revision_key(main: u64, sub: u64, tombstone: bool) -> Vec<u8> {
    let mut key = main.to_be_bytes().to_vec();
    key.push(b'_');
    key.extend_from_slice(&sub.to_be_bytes());
    if tombstone {
        key.push(b't');
    }
    key
}

/// Writes a backend with `keys` keys, each with a value of another length; every seventh is
/// deleted again.
fn write_backend(out: impl Write + Seek, keys: u64) -> Result<()> {
    let mut writer = Writer::new(out)?;
    for bucket in ["alarm", "auth", "authRoles", "authUsers", "cluster"] {
        writer.bucket(bucket.as_bytes())?;
    }
    writer.put(b"clusterVersion", b"3.7.0")?;
    writer.bucket(b"key")?;
    let mut revision = 1;
    for n in 0..keys {
        revision += 1;
        let key = format!("/registry/thing-{n:07}").into_bytes();
        let key_value = KeyValue {
            key: key.clone().into(),
            create_revision: revision as i64,
            mod_revision: revision as i64,
            version: 1,
            value: vec![b'v'; (n as usize * 131) % 9_001].into(),
            lease: 0,
        };
        writer.put(&revision_key(revision, 0, false), &key_value.encode_to_vec())?;
        if n % 7 == 0 {
            revision += 1;
            let gone = KeyValue { key: key.into(), ..KeyValue::default() };
            writer.put(&revision_key(revision, 0, true), &gone.encode_to_vec())?;
        }
    }
    for bucket in ["lease", "members", "members_removed", "meta"] {
        writer.bucket(bucket.as_bytes())?;
    }
    writer.put(b"consistent_index", &revision.to_be_bytes())?;
    writer.put(b"storageVersion", b"3.7.0")?;
    writer.put(b"term", &2u64.to_be_bytes())?;
    writer.finish()?.flush()?;
    Ok(())
}

fn status(program: &Path, file: &Path, format: &str) -> Result<Output> {
    Command::new(program)
        .args(["snapshot", "status", "-w", format])
        .arg(file)
        .output()
        .with_context(|| format!("run {}", program.display()))
}

#[test]
fn go_etcdutl_accepts_our_files_and_prints_what_ours_prints() -> Result<()> {
    let theirs = peers::etcd_binaries()?.etcdutl;
    let ours = peers::our_binary("etcdutl")?;
    let root = tempfile::tempdir()?;
    for keys in [0, 1, 50, 3_000] {
        let path = root.path().join(format!("{keys}.db"));
        write_backend(std::fs::File::create(&path)?, keys)?;
        for format in ["simple", "json", "fields", "table"] {
            let (theirs, ours) = (status(&theirs, &path, format)?, status(&ours, &path, format)?);
            ensure!(theirs.status.success(), "{keys} keys: {theirs:?}");
            ensure!(ours.status.success(), "{keys} keys: {ours:?}");
            assert_eq!(
                String::from_utf8_lossy(&ours.stdout),
                String::from_utf8_lossy(&theirs.stdout),
                "{keys} keys as {format}"
            );
        }
    }
    Ok(())
}

#[test]
fn go_etcdutl_restores_from_our_file() -> Result<()> {
    let theirs = peers::etcd_binaries()?.etcdutl;
    let root = tempfile::tempdir()?;
    let path = root.path().join("snapshot.db");
    write_backend(std::fs::File::create(&path)?, 500)?;
    let data = root.path().join("data");
    let restored = Command::new(&theirs)
        .args(["snapshot", "restore", "--skip-hash-check", "--data-dir"])
        .args([&data, &path])
        .output()?;
    ensure!(restored.status.success(), "{restored:?}");
    // What Go's bbolt wrote on top of our pages, ours reads: the same keys, other members.
    let ours = peers::our_binary("etcdutl")?;
    let db = data.join("member/snap/db");
    for format in ["simple", "json"] {
        let (theirs, ours) = (status(&theirs, &db, format)?, status(&ours, &db, format)?);
        ensure!(theirs.status.success(), "{theirs:?}");
        assert_eq!(String::from_utf8_lossy(&ours.stdout), String::from_utf8_lossy(&theirs.stdout));
    }
    Ok(())
}
