//! `cargo xtask test` and `lint`.

use std::process::ExitCode;

use anyhow::Result;

use crate::{
    process::{self, Profile, Workspace, cargo, say, succeeds},
    setup, tidy,
};

/// Checks formatting, the rules of the source tree, and lints.
pub fn lint(workspace: &Workspace) -> Result<()> {
    say("checking the format");
    process::run(cargo(workspace).args(["fmt", "--all", "--check"]))?;
    tidy::check(workspace)?;
    say("checking the lints");
    process::run(cargo(workspace).args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--quiet",
        "--",
        "-D",
        "warnings",
    ]))
}

/// Runs every test: first the rules of the tree, then the examples in the documentation, then the tests with a
/// PostgreSQL server beside them, whose count closes the output.
pub fn run(workspace: &Workspace, options: &[String]) -> Result<ExitCode> {
    setup::onnx_runtime(workspace)?;
    setup::for_tests(workspace)?;
    say("checking the format");
    process::run(cargo(workspace).args(["fmt", "--all", "--check"]))?;
    tidy::check(workspace)?;
    say("building");
    process::run(cargo(workspace).args(["build", "--workspace", "--all-targets"]))?;
    say("running the examples of the documentation");
    process::run(cargo(workspace).args(["test", "--workspace", "--doc", "--quiet"]))?;
    say("running the tests");
    let mut with_postgres = workspace.binary("with-postgres", Profile::Development);
    process::without_our_package(&mut with_postgres);
    with_postgres
        .env("TEST_PYTHON", setup::test_python_path(workspace))
        .env("TEST_PYTHON_OLD_CLIENT", setup::old_client_python_path(workspace))
        .env("TEST_PYTHON_KSERVE", setup::kserve_python_path(workspace))
        .env("TEST_PYTHON_SIGNING", setup::signing_python_path(workspace))
        .env("TEST_PERF_ANALYZER", setup::load_generator_path(workspace))
        .env("TEST_ONNXRUNTIME_GPU", setup::gpu_library_path(workspace))
        .env("TEST_DEVICE", setup::device_path(workspace))
        .env("TEST_NODE", setup::test_node_path(workspace))
        .env("TEST_OPENID_PROVIDER", setup::openid_provider_path(workspace))
        .env("MODELYARD_REQUIRE_POSTGRES", "1")
        .args(runner(workspace))
        .args(options);
    process::status(&mut with_postgres)
}

/// nextest where it is installed, else cargo's own runner.
fn runner(workspace: &Workspace) -> Vec<String> {
    let cargo = cargo(workspace).get_program().to_string_lossy().into_owned();
    let words: &[&str] = if succeeds(&cargo, &["nextest", "--version"]) {
        &[
            "nextest",
            "run",
            "--workspace",
            "--no-fail-fast",
            "--status-level",
            "slow",
            "--final-status-level",
            "fail",
        ]
    } else {
        &["test", "--workspace", "--lib", "--bins", "--tests", "--no-fail-fast"]
    };
    std::iter::once(cargo)
        .chain(words.iter().map(|word| (*word).to_owned()))
        .collect()
}
