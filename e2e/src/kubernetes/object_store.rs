//! The S3 server that backups of the local Kubernetes go to: a process of the host over a directory,
//! which pods reach at the bridge's address. A bucket is a directory, so a test can look into it.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::layout::{HOST_ADDRESS, Layout};

pub const ENDPOINT: &str = "http://10.77.0.1:7070";
pub const REGION: &str = "us-east-1";
/// Fixed, because the server lives on this machine's own network only as long as the cluster.
pub const ACCESS_KEY: &str = "keelson";
pub const SECRET_KEY: &str = "keelson-secret";
/// Exists from the start.
pub const BUCKET: &str = "backups";

/// The directory of a bucket.
pub fn bucket(layout: &Layout, name: &str) -> PathBuf {
    layout.join("s3").join(name)
}

/// Makes a bucket; names have at least three characters (an S3 rule).
pub fn make_bucket(layout: &Layout, name: &str) -> Result<()> {
    let directory = bucket(layout, name);
    fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))
}

pub(super) fn arguments(layout: &Layout) -> Vec<String> {
    let line = format!(
        "--quiet --region {REGION} --port {HOST_ADDRESS}:7070 --access {ACCESS_KEY} --secret \
         {SECRET_KEY} posix"
    );
    let mut arguments: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    arguments.push(layout.join("s3").display().to_string());
    arguments
}
