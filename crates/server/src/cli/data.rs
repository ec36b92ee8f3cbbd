//! `data push`.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    ConnectionArguments, UsageError,
    output::{self, Format},
};

#[derive(Args)]
pub struct PushArguments {
    /// Dataset
    name: String,
    /// Parquet or CSV files
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Keep the files of the newest version and add these
    #[arg(long)]
    append: bool,
    #[command(flatten)]
    connection: ConnectionArguments,
}

pub async fn push(arguments: &PushArguments) -> anyhow::Result<()> {
    let client = arguments.connection.client()?;
    let format = arguments.connection.server.output;
    let bar = output::progress(
        format,
        "uploading {wide_bar} {pos}/{len} files",
        arguments.files.len() as u64,
    );
    let mut files = Vec::new();
    for path in &arguments.files {
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| UsageError(format!("`{}` has no file name", path.display())))?;
        files.push(json!({ "name": name, "digest": client.upload(path).await? }));
        bar.inc(1);
    }
    bar.finish_and_clear();
    // The server reads all of the files before it answers.
    let request = client.patient_request(Method::POST, &["datasets", &arguments.name, "versions"])?;
    let body = json!({ "files": files, "append": arguments.append });
    let version = client.send(request.json(&body)).await?;
    if format == Format::Json {
        return output::print_json(&version);
    }
    let number = version
        .get("version")
        .and_then(Value::as_u64)
        .context("the server gave no version")?;
    output::print_line(&format!("{}/{number}", arguments.name))
}
