//! Compiles the `.proto` files with protox, a protobuf compiler in Rust, so that building needs no
//! `protoc`, and generates messages, clients and servers from the result.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

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

    // Values can be megabytes and pass through several rooms: `Bytes` lets them share one buffer.
    tonic_prost_build::configure()
        .bytes(".")
        .emit_rerun_if_changed(false)
        .compile_fds(Message::decode(descriptors.as_slice())?)?;
    Ok(())
}
