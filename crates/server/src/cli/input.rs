//! Values that nobody else should see: from a file, from standard input, or from a terminal that does not show them.

use std::{
    fs::File,
    io::{self, BufRead, IsTerminal, Read, Stdin, Write},
    path::Path,
};

use anyhow::{Context, bail};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use super::UsageError;

/// The longest newline that is taken off.
const NEWLINE: usize = 2;

/// Whether the value would come from somebody who types: standard input is meant, and it is a terminal.
pub fn is_typed(file: Option<&Path>) -> bool {
    is_standard_input(file) && io::stdin().is_terminal()
}

fn is_standard_input(file: Option<&Path>) -> bool {
    file.is_none_or(|file| file.as_os_str() == "-")
}

/// Reads a value (`what`: `password`) from a file, or from standard input without one and for `-`. One newline at its end
/// is taken off.
pub fn read_value(what: &str, file: Option<&Path>, max_bytes: usize) -> anyhow::Result<String> {
    if is_typed(file) {
        return prompt(what, max_bytes);
    }
    if let Some(file) = file.filter(|file| !is_standard_input(Some(file))) {
        return read_file(what, file, max_bytes);
    }
    let bytes = read_some(io::stdin().lock(), max_bytes).context("standard input cannot be read")?;
    Ok(value_of(what, bytes, max_bytes)?)
}

/// Reads a value from a file. One newline at its end is taken off.
pub fn read_file(what: &str, file: &Path, max_bytes: usize) -> anyhow::Result<String> {
    let bytes = File::open(file)
        .and_then(|file| read_some(file, max_bytes))
        .with_context(|| format!("`{}` cannot be read", file.display()))?;
    Ok(value_of(what, bytes, max_bytes)?)
}

/// Enough to see that it is too much.
fn read_some(reader: impl Read, max_bytes: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = max_bytes.saturating_add(NEWLINE + 1) as u64;
    reader.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn value_of(what: &str, bytes: Vec<u8>, max_bytes: usize) -> Result<String, UsageError> {
    let mut value = String::from_utf8(bytes)
        .map_err(|_| UsageError(format!("the {what} is no text in UTF-8: write other bytes as base64")))?;
    if value.ends_with('\n') {
        value.pop();
        if value.ends_with('\r') {
            value.pop();
        }
    }
    if value.len() > max_bytes {
        return Err(UsageError(format!(
            "the {what} is too long: {max_bytes} bytes at most are taken"
        )));
    }
    Ok(value)
}

/// Asks for a value at the terminal, which does not show it.
pub fn prompt(what: &str, max_bytes: usize) -> anyhow::Result<String> {
    let stdin = io::stdin();
    write!(io::stderr(), "{what}: ")?;
    io::stderr().flush()?;
    let shown = tcgetattr(&stdin).context("the terminal cannot be asked")?;
    let mut hidden = shown.clone();
    hidden.local_modes.remove(LocalModes::ECHO);
    // The end of the line is shown.
    hidden.local_modes.insert(LocalModes::ECHONL);
    tcsetattr(&stdin, OptionalActions::Flush, &hidden).context("the terminal cannot be told to hide what is typed")?;
    let line = read_line(&stdin, max_bytes);
    tcsetattr(&stdin, OptionalActions::Now, &shown).context("the terminal cannot be told to show what is typed")?;
    let line = line.context("the terminal cannot be read")?;
    if line.is_empty() {
        bail!("no {what} was typed");
    }
    Ok(value_of(what, line, max_bytes)?)
}

fn read_line(stdin: &Stdin, max_bytes: usize) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let limit = max_bytes.saturating_add(NEWLINE + 1) as u64;
    stdin.lock().take(limit).read_until(b'\n', &mut line)?;
    Ok(line)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn one_newline_is_taken_off() {
        for (bytes, expected) in [
            ("secret", "secret"),
            ("secret\n", "secret"),
            ("secret\r\n", "secret"),
            ("secret\n\n", "secret\n"),
            ("two\nlines\n", "two\nlines"),
            (" spaces \n", " spaces "),
            ("\n", ""),
            ("", ""),
        ] {
            assert_eq!(value_of("value", bytes.into(), 100).unwrap(), expected, "{bytes:?}");
        }
    }

    #[test]
    fn values_are_bounded_and_text() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("value");
        for (bytes, expected) in [
            (&b"12345678\r\n"[..], Ok("12345678")),
            (b"123456789", Err("too long: 8 bytes at most")),
            (&[b'x'; 4096], Err("too long: 8 bytes at most")),
            (b"\xff\xfe", Err("write other bytes as base64")),
        ] {
            fs::write(&file, bytes).unwrap();
            match (read_value("value", Some(&file), 8), expected) {
                (Ok(value), Ok(expected)) => assert_eq!(value, expected),
                (Err(error), Err(expected)) => {
                    assert!(error.is::<UsageError>(), "{error}");
                    assert!(error.to_string().contains(expected), "{error}");
                }
                (found, expected) => panic!("{found:?} is not {expected:?}"),
            }
        }
        let error = read_value("value", Some(&folder.path().join("missing")), 8).unwrap_err();
        assert!(error.to_string().contains("cannot be read"), "{error}");
    }
}
