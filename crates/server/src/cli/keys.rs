//! `keys`: the keys that secrets are sealed with, as they lie in a file beside the server.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand};
use modelyard_auth::seal::KeyRing;
use serde_json::json;

use super::{
    file::NewFile,
    input,
    output::{self, Format},
};

/// The largest key file: the keys of a full ring, with room for comments.
const MAX_FILE_BYTES: usize = 64 << 10;

/// The commands for keys.
#[derive(Subcommand)]
pub enum KeysCommand {
    /// Put a new key first in a key file: it seals from the registry's next start on, those of before still open
    Rotate(RotateArguments),
}

/// What `keys rotate` takes.
#[derive(Args)]
pub struct RotateArguments {
    /// Key file: a key a line, as base64 or hex; comments in it are not kept
    file: PathBuf,
    /// Output
    #[arg(short, long, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    output: Format,
}

/// Runs one of the commands; no server is needed.
pub fn run(command: &KeysCommand) -> anyhow::Result<()> {
    let KeysCommand::Rotate(arguments) = command;
    let rotated = rotate(&arguments.file)?;
    let file = arguments.file.display();
    if arguments.output == Format::Json {
        return output::print_json(&json!({
            "file": arguments.file,
            "key_id": rotated.new,
            "previous_key_id": rotated.old,
        }));
    }
    output::print_line(&format!(
        "`{file}`: the new key {} seals, {} and those below it still open\n\
         now: keep a copy of the file apart from the database, and restart every process that reads it\n\
         secrets (`registry.key_file`): the registry seals all with the new key; when its log says so, the older lines can go\n\
         artifacts (`storage.encryption.key_file`): those that are stored stay sealed with their key; keep the older lines",
        rotated.new, rotated.old,
    ))
}

/// The ids of the keys that seal.
#[derive(Debug)]
struct Rotated {
    old: String,
    new: String,
}

/// Puts a new key first in the file, which is either as it was before or whole.
fn rotate(file: &Path) -> anyhow::Result<Rotated> {
    let text = input::read_file("key file", file, MAX_FILE_BYTES)?;
    let wrong = || format!("`{}` cannot be rotated", file.display());
    let ring = KeyRing::parse(&text).with_context(wrong)?;
    let rotated = ring.rotated().with_context(wrong)?;
    let mut new = NewFile::begin(file)?;
    new.take_owner()?;
    new.write(rotated.to_text().as_bytes())?;
    new.keep()?;
    Ok(Rotated {
        old: ring.current_id().to_owned(),
        new: rotated.current_id().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, Permissions},
        os::unix::fs::PermissionsExt,
    };

    use super::*;

    const PLACE: &str = "secret/default/slack";

    #[test]
    fn a_new_key_seals_and_the_old_one_opens() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keys");
        let old = KeyRing::generate().unwrap();
        fs::write(&file, format!("# mine\n{}", old.to_text())).unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
        let sealed = old.seal(PLACE, b"treasure").unwrap();

        let rotated = rotate(&file).unwrap();
        assert_eq!(rotated.old, old.current_id());
        let new = KeyRing::parse(&fs::read_to_string(&file).unwrap()).unwrap();
        assert_eq!(new.current_id(), rotated.new);
        assert_ne!(rotated.new, rotated.old);
        assert_eq!(new.open(PLACE, &sealed).unwrap(), b"treasure");
        assert!(new.needs_rotation(&sealed));
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_no_key_file_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keys");
        for text in ["# no keys\n", "something else\n"] {
            fs::write(&file, text).unwrap();
            let error = format!("{:#}", rotate(&file).unwrap_err());
            assert!(
                error.contains("keys` cannot be rotated") && error.contains("base64"),
                "{error}"
            );
            assert_eq!(fs::read_to_string(&file).unwrap(), text);
        }
        assert!(rotate(&folder.path().join("missing")).is_err());
    }
}
