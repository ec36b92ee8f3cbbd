//! Files of the documentation that are made of the program, and committed, so that a change of them is seen.

use std::{env, fs, path::Path};

/// Set by `cargo xtask codegen`: the files are written instead of compared.
const WRITE: &str = "MODELYARD_CODEGEN";

/// Compares a committed file, named from the root of the checkout, with what the program makes.
pub fn check(path: &str, made: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path);
    if env::var_os(WRITE).is_some() {
        fs::write(&file, made).unwrap();
        return;
    }
    let committed = fs::read_to_string(&file).unwrap_or_default();
    if committed == made {
        return;
    }
    let same = committed.lines().zip(made.lines()).take_while(|(old, new)| old == new);
    let line = same.count();
    panic!(
        "{path} is not what the program makes: run `cargo xtask codegen`, look at the difference and commit it\n\
         line {}:\n  committed: {}\n  made:      {}",
        line + 1,
        committed.lines().nth(line).unwrap_or("(its end)"),
        made.lines().nth(line).unwrap_or("(its end)"),
    );
}
