//! Compiles proto/ into Rust. protox parses the files, so no protoc is needed on the machine.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Asked when it runs: a target directory may outlive the checkout that this was compiled in.
    let root = Path::new(&std::env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    let files = [
        "etcd/kv.proto",
        "etcd/auth.proto",
        "etcd/lease.proto",
        "etcd/rpc.proto",
        "etcd/v3election.proto",
        "etcd/v3lock.proto",
        "grpc/health.proto",
        "tailwater/tail.proto",
        "tailwater/peer.proto",
        "tailwater/write.proto",
    ];
    for file in files {
        println!("cargo:rerun-if-changed={}", root.join(file).display());
    }
    let descriptors = protox::compile(files, [&root])?;
    // For whoever reads messages by their fields' names.
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?).join("descriptors.bin");
    std::fs::write(out, prost::Message::encode_to_vec(&descriptors))?;
    tonic_prost_build::configure()
        .bytes(".etcdserverpb")
        .bytes(".mvccpb")
        .bytes(".tailwater")
        .compile_fds(descriptors)?;
    Ok(())
}
