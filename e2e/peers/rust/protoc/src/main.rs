//! Prints the path of the protobuf compiler that came with a crate.

fn main() {
    let path = protoc_bin_vendored::protoc_bin_path().expect("a compiler for this system");
    println!("{}", path.display());
}
