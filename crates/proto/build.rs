//! Generates the messages and service traits from `proto/`, with a protobuf compiler in Rust: no `protoc` needed.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    println!("cargo:rerun-if-changed={}", root.display());
    let files = [
        "modelyard/registry/v1/runs.proto",
        "modelyard/registry/v1/datasets.proto",
        "modelyard/registry/v1/models.proto",
        "modelyard/registry/v1/endpoints.proto",
        "modelyard/registry/v1/access.proto",
        "modelyard/registry/v1/audit.proto",
        "modelyard/registry/v1/secrets.proto",
        "modelyard/orchestrator/v1/rollouts.proto",
        "modelyard/orchestrator/v1/triggers.proto",
        "modelyard/monitoring/v1/segments.proto",
    ];
    tonic_prost_build::configure().compile_fds(protox::compile(files, [&root])?)?;
    // For clients that ask which methods there are.
    let mut compiler = protox::Compiler::new([&root])?;
    let inference = compiler
        .open_file("inference/inference.proto")?
        .encode_file_descriptor_set();
    std::fs::write(
        PathBuf::from(std::env::var("OUT_DIR")?).join("inference.bin"),
        inference,
    )?;
    // What comes over it comes from anybody.
    tonic_prost_build::configure()
        .codec_path("crate::codec::BoundedCodec")
        .bytes(".inference.ModelInferRequest.raw_input_contents")
        .bytes(".inference.ModelInferResponse.raw_output_contents")
        .compile_fds(protox::compile(["inference/inference.proto"], [&root])?)?;
    Ok(())
}
