//! `cargo xtask codegen`.

use anyhow::Result;

use crate::{
    process::{self, Workspace, cargo, say},
    setup,
};

/// Tells the tests that compare the files to write them.
const WRITE: &str = "MODELYARD_CODEGEN";

/// What the names of those tests end with.
const TESTS: &str = "as_committed";

/// Writes the files of the documentation that are made of the program, or compares them. The tests of the program that
/// makes them do it, so that every run of the tests compares them.
pub fn run(workspace: &Workspace, check: bool) -> Result<()> {
    setup::onnx_runtime(workspace)?;
    say(if check {
        "comparing the files made of the program"
    } else {
        "writing the files made of the program"
    });
    let mut tests = cargo(workspace);
    tests.args(["test", "--workspace", "--bin", "modelyard", "--quiet", "--", TESTS]);
    if check {
        tests.env_remove(WRITE);
    } else {
        tests.env(WRITE, "1");
    }
    process::run(&mut tests)
}
