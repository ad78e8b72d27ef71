//! Compiles the `.proto` files with protox, a protobuf compiler in Rust, so that building needs no
//! `protoc`, and generates messages, clients and servers from the result.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;
use prost_types::FileDescriptorSet;

const FILES: [&str; 11] = [
    "authpb/auth.proto",
    "etcdserverpb/etcdserver.proto",
    "etcdserverpb/raft_internal.proto",
    "etcdserverpb/rpc.proto",
    "grpc/health/v1/health.proto",
    "keelson/peer/v1/peer.proto",
    "membershippb/membership.proto",
    "mvccpb/kv.proto",
    "v3electionpb/v3election.proto",
    "v3lockpb/v3lock.proto",
    "versionpb/version.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::Compiler::new(["."])?
        .include_imports(true)
        .open_files(FILES)?
        .encode_file_descriptor_set();
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), &descriptors)?;
    let set = FileDescriptorSet::decode(descriptors.as_slice())?;
    fs::write(out.join("rpcs.rs"), rpcs(&set))?;

    // Values can be megabytes and pass through several rooms: `Bytes` lets them share one buffer.
    tonic_prost_build::configure().bytes(".").emit_rerun_if_changed(false).compile_fds(set)?;
    Ok(())
}

/// An enum of all methods of etcd's own services, so that a table with a row for each can be checked
/// by the compiler.
fn rpcs(set: &FileDescriptorSet) -> String {
    let mut variants = Vec::new();
    const PACKAGES: [&str; 3] = ["etcdserverpb", "v3lockpb", "v3electionpb"];
    for file in set.file.iter().filter(|file| PACKAGES.contains(&file.package())) {
        for service in &file.service {
            for method in &service.method {
                let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                variants.push((format!("{}{}", service.name(), method.name()), path));
            }
        }
    }
    let names = |line: fn(&(String, String)) -> String| {
        variants.iter().map(line).collect::<Vec<_>>().join("\n")
    };
    format!(
        "/// A method of etcd's services.\n\
         #[derive(Clone, Copy, Debug, PartialEq, Eq)]\npub enum Rpc {{\n{}\n}}\n\
         impl Rpc {{\n/// All of them.\npub const ALL: &[Rpc] = &[\n{}\n];\n\
         /// The path of the method, as gRPC names it.\n\
         pub fn path(self) -> &'static str {{\nmatch self {{\n{}\n}}\n}}\n}}\n",
        names(|(name, path)| format!("/// `{path}`\n{name},")),
        names(|(name, _)| format!("Rpc::{name},")),
        names(|(name, path)| format!("Rpc::{name} => {path:?},")),
    )
}
