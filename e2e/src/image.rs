//! Container images without a container tool: a root file system becomes an OCI layout and a tarball
//! that `ctr images import`, `podman load` and `docker load` take.
//!
//! ```text
//! oci-layout                      {"imageLayoutVersion":"1.0.0"}
//! index.json                      one manifest, with the image's name as annotation
//! blobs/sha256/<layer>            the root file system as one uncompressed tar
//! blobs/sha256/<configuration>    what to run, as whom, where
//! blobs/sha256/<manifest>         the two above, by digest
//! ```
//!
//! The same files give the same bytes: entries are sorted, owned by root, dated 1970, and have one
//! of three modes. So an image's digest says whether anything has changed.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// What an image is apart from its files.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// With registry and tag, such as `docker.io/keelson/pause:1`.
    pub name: String,
    pub entrypoint: Vec<String>,
    /// `uid:gid`, or empty for root.
    pub user: String,
    pub labels: Vec<(String, String)>,
}

impl Image {
    /// Writes the layout of `root` into the directory `layout` and answers the manifest's digest.
    pub fn write_layout(&self, root: &Path, layout: &Path) -> Result<String> {
        if layout.exists() {
            fs::remove_dir_all(layout).with_context(|| format!("clear {}", layout.display()))?;
        }
        let blobs = layout.join("blobs/sha256");
        fs::create_dir_all(&blobs).with_context(|| format!("make {}", blobs.display()))?;
        let (layer, layer_bytes) = write_layer(root, &blobs)?;
        let configuration = write_json(&blobs, &self.configuration(&layer))?;
        let media = |kind: &str| format!("application/vnd.oci.image.{kind}");
        let manifest = write_json(
            &blobs,
            &json!({
                "schemaVersion": 2,
                "mediaType": media("manifest.v1+json"),
                "config": {"mediaType": media("config.v1+json"), "digest": configuration.0, "size": configuration.1},
                "layers": [{"mediaType": media("layer.v1.tar"), "digest": layer, "size": layer_bytes}],
            }),
        )?;
        let tag = self.name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        let index = json!({
            "schemaVersion": 2,
            "mediaType": media("index.v1+json"),
            "manifests": [{
                "mediaType": media("manifest.v1+json"), "digest": manifest.0, "size": manifest.1,
                "platform": {"os": "linux", "architecture": architecture()?},
                "annotations": {"io.containerd.image.name": self.name, "org.opencontainers.image.ref.name": tag},
            }],
        });
        fs::write(layout.join("index.json"), index.to_string())?;
        fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(manifest.0)
    }

    /// Writes the layout and its tarball; answers the manifest's digest.
    pub fn write_tarball(&self, root: &Path, layout: &Path, tarball: &Path) -> Result<String> {
        let digest = self.write_layout(root, layout)?;
        // Under another name first: a reader sees the old image or the new one.
        let unfinished = tarball.with_extension("tar.new");
        let file = fs::File::create(&unfinished)
            .with_context(|| format!("create {}", unfinished.display()))?;
        pack(layout, io::BufWriter::new(file))?.flush()?;
        fs::rename(&unfinished, tarball)
            .with_context(|| format!("rename to {}", tarball.display()))?;
        Ok(digest)
    }

    fn configuration(&self, layer: &str) -> Value {
        let labels: serde_json::Map<String, Value> =
            self.labels.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
        json!({
            "architecture": architecture().unwrap_or_default(),
            "os": "linux",
            "config": {
                "Entrypoint": self.entrypoint,
                "User": self.user,
                "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"],
                "WorkingDir": "/",
                "Labels": labels,
            },
            "rootfs": {"type": "layers", "diff_ids": [layer]},
            "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "cargo xtask image"}],
        })
    }
}

/// The name that OCI has for this machine's architecture.
fn architecture() -> Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => bail!("images for {other} are not supported"),
    }
}

fn write_json(blobs: &Path, value: &Value) -> Result<(String, usize)> {
    let text = value.to_string();
    let digest = hex::encode(Sha256::digest(&text));
    fs::write(blobs.join(&digest), &text)?;
    Ok((format!("sha256:{digest}"), text.len()))
}

fn write_layer(root: &Path, blobs: &Path) -> Result<(String, u64)> {
    let unfinished = blobs.join("layer");
    let file = fs::File::create(&unfinished)
        .with_context(|| format!("create {}", unfinished.display()))?;
    let mut digested =
        Digesting { inner: io::BufWriter::new(file), digest: Sha256::new(), bytes: 0 };
    pack(root, &mut digested)?;
    digested.flush()?;
    let digest = hex::encode(digested.digest.finalize());
    fs::rename(&unfinished, blobs.join(&digest))?;
    Ok((format!("sha256:{digest}"), digested.bytes))
}

/// Packs all below a directory.
fn pack<W: Write>(root: &Path, output: W) -> Result<W> {
    let mut archive = tar::Builder::new(output);
    for relative in sorted_entries(root)? {
        let path = root.join(&relative);
        let information = fs::symlink_metadata(&path)?;
        let mut header = tar::Header::new_gnu();
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        header.set_mode(mode(&relative, &information));
        if information.is_symlink() {
            header.set_entry_type(tar::EntryType::Symlink);
            archive.append_link(&mut header, &relative, fs::read_link(&path)?)?;
        } else if information.is_dir() {
            header.set_entry_type(tar::EntryType::Directory);
            archive.append_data(&mut header, &relative, io::empty())?;
        } else {
            header.set_size(information.len());
            archive.append_data(&mut header, &relative, fs::File::open(&path)?)?;
        }
    }
    archive.into_inner().context("finish the archive")
}

/// World-writable is only the directory for temporary files.
fn mode(relative: &Path, information: &fs::Metadata) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    if information.is_dir() {
        return if relative == Path::new("tmp") { 0o1777 } else { 0o755 };
    }
    if information.permissions().mode() & 0o111 != 0 { 0o755 } else { 0o644 }
}

fn sorted_entries(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        let entries =
            fs::read_dir(&directory).with_context(|| format!("list {}", directory.display()))?;
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
            }
            let path = entry.path();
            found.push(path.strip_prefix(root).expect("it was listed below root").to_owned());
        }
    }
    found.sort();
    Ok(found)
}

/// Hashes what it passes on.
struct Digesting<W> {
    inner: W,
    digest: Sha256,
    bytes: u64,
}

impl<W: Write> Write for Digesting<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buffer)?;
        self.digest.update(&buffer[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root_with(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = directory.path().join("root").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        directory
    }

    fn digest(directory: &tempfile::TempDir) -> String {
        let image = Image { name: "docker.io/keelson/x:1".to_owned(), ..Image::default() };
        let at = |name: &str| directory.path().join(name);
        image.write_tarball(&at("root"), &at("oci"), &at("x.tar")).unwrap()
    }

    #[test]
    fn the_same_files_give_the_same_bytes_and_other_files_do_not() {
        let (one, two) =
            (root_with(&[("b", "1"), ("a/c", "2")]), root_with(&[("a/c", "2"), ("b", "1")]));
        assert_eq!(digest(&one), digest(&two));
        let tarball =
            |directory: &tempfile::TempDir| fs::read(directory.path().join("x.tar")).unwrap();
        assert_eq!(tarball(&one), tarball(&two));
        assert_ne!(digest(&one), digest(&root_with(&[("b", "1"), ("a/c", "3")])));
    }

    #[test]
    fn a_blob_is_named_by_the_digest_of_its_bytes() {
        let directory = root_with(&[("bin/program", "text")]);
        digest(&directory);
        let mut blobs = 0;
        for blob in fs::read_dir(directory.path().join("oci/blobs/sha256")).unwrap() {
            let blob = blob.unwrap();
            let bytes = fs::read(blob.path()).unwrap();
            assert_eq!(hex::encode(Sha256::digest(bytes)), blob.file_name().to_str().unwrap());
            blobs += 1;
        }
        assert_eq!(blobs, 3, "layer, configuration and manifest");
    }
}
