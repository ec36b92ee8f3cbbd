//! `models sign` and `models verify`: signatures of the files of versions, as OpenSSF's model signing has them.

use std::{fs, path::PathBuf};

use anyhow::{Context, bail, ensure};
use clap::{ArgGroup, Args};
use modelyard_artifacts::signing::{Bundle, Files, MAX_BUNDLE_BYTES, ONLY_FILE, PrivateKey, PublicKey, read_list};
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    ConnectionArguments, UsageError,
    client::Client,
    output::{self, Format},
};

/// The format of versions whose file lists the files of a folder.
const LISTED: &str = "mlflow";
/// The largest of such lists, in bytes.
const MAX_LIST_BYTES: u64 = 8 << 20;

/// What `models sign` takes.
#[derive(Args)]
#[command(group(ArgGroup::new("signature").required(true).args(["key", "bundle"])))]
pub struct SignArguments {
    /// NAME/VERSION
    version: String,
    /// Private key to sign with: ECDSA on P-256 or P-384, in PEM. What is signed are the digests that the server tells
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Signature that was made elsewhere, by `model_signing sign key` for example
    #[arg(long, value_name = "FILE")]
    bundle: Option<PathBuf>,
    #[command(flatten)]
    connection: ConnectionArguments,
}

/// What `models verify` takes.
#[derive(Args)]
pub struct VerifyArguments {
    /// NAME/VERSION
    version: String,
    /// Public key that must have signed, in PEM; can be given several times, then one of them must
    #[arg(long = "key", value_name = "FILE", required = true)]
    keys: Vec<PathBuf>,
    #[command(flatten)]
    connection: ConnectionArguments,
}

/// Signs a version.
pub async fn sign(arguments: &SignArguments) -> anyhow::Result<()> {
    let (model, number) = place(&arguments.version)?;
    let client = arguments.connection.client()?;
    let path = ["models", model, "versions", number];
    let digest = match (&arguments.key, &arguments.bundle) {
        (Some(key), None) => {
            let text = fs::read_to_string(key).with_context(|| format!("`{}` cannot be read", key.display()))?;
            let key = PrivateKey::from_pem(&text)?;
            let version = client.get(&path).await?;
            let bundle = Bundle::sign(&arguments.version, &files(&client, &version).await?, &key)?;
            let file = tempfile::NamedTempFile::new().context("a temporary file cannot be made")?;
            fs::write(file.path(), bundle)?;
            client.upload(file.path()).await?
        }
        (None, Some(bundle)) => {
            let content = fs::read(bundle).with_context(|| format!("`{}` cannot be read", bundle.display()))?;
            Bundle::read(&content)?;
            client.upload(bundle).await?
        }
        _ => bail!(UsageError("give either --key or --bundle".to_owned())),
    };
    let request = client.project_request(Method::PUT, &["models", model, "versions", number, "bundle"])?;
    let version = client.send(request.json(&json!({"digest": digest}))).await?;
    match arguments.connection.server.output {
        Format::Json => output::print_json(&version),
        Format::Text => output::print_line(&arguments.version),
    }
}

/// Checks the signature of a version.
pub async fn verify(arguments: &VerifyArguments) -> anyhow::Result<()> {
    let (model, number) = place(&arguments.version)?;
    let mut keys = Vec::with_capacity(arguments.keys.len());
    for key in &arguments.keys {
        let text = fs::read_to_string(key).with_context(|| format!("`{}` cannot be read", key.display()))?;
        keys.push(PublicKey::from_pem(&text).with_context(|| format!("`{}`", key.display()))?);
    }
    let client = arguments.connection.client()?;
    let version = client.get(&["models", model, "versions", number]).await?;
    let Some(bundle) = version.get("bundle_digest").and_then(Value::as_str) else {
        bail!(
            "{} is not signed: sign it with `modelyard models sign`",
            arguments.version
        );
    };
    let bundle = Bundle::read(&fetch(&client, bundle, MAX_BUNDLE_BYTES).await?)?;
    let signer = bundle.verify(&keys)?.hint()?;
    let files = files(&client, &version).await?;
    bundle.check(&files)?;
    match arguments.connection.server.output {
        Format::Json => output::print_json(&json!({"version": arguments.version, "key": signer, "files": files})),
        Format::Text => output::print_line(&output::facts(&[
            ("version", arguments.version.clone()),
            ("files", files.len().to_string()),
            ("signed by", format!("key {signer}")),
        ])),
    }
}

/// The model and the number of a version.
fn place(version: &str) -> Result<(&str, &str), UsageError> {
    version
        .split_once('/')
        .filter(|(_, number)| number.parse::<u32>().is_ok())
        .ok_or_else(|| UsageError(format!("`{version}` is no version of a model: write NAME/VERSION")))
}

/// The files of a version, by their names in a bundle.
async fn files(client: &Client, version: &Value) -> anyhow::Result<Files> {
    let text = |name: &str| version.get(name).and_then(Value::as_str).unwrap_or_default();
    let digest = text("artifact_digest");
    ensure!(!digest.is_empty(), "the version has no file that could be signed here");
    if text("format") == LISTED {
        return Ok(read_list(&fetch(client, digest, MAX_LIST_BYTES).await?)?);
    }
    Ok(Files::from([(ONLY_FILE.to_owned(), digest.parse()?)]))
}

/// A small artifact's content.
async fn fetch(client: &Client, digest: &str, limit_bytes: u64) -> anyhow::Result<Vec<u8>> {
    let request = client.project_request(Method::GET, &["artifacts", digest])?;
    let mut answer = client.send_raw(request).await?;
    let mut content = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        content.extend_from_slice(&chunk);
        ensure!(
            content.len() as u64 <= limit_bytes,
            "artifact {digest} has more than {limit_bytes} bytes"
        );
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_named_by_model_and_number() {
        assert_eq!(place("m/3").unwrap(), ("m", "3"));
        for bad in ["m", "m@champion", "m/x", "m/3/4", "/"] {
            assert!(place(bad).is_err(), "{bad}");
        }
    }
}
