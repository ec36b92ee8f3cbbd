//! `models import`: an ONNX file, a folder with a model, or a model of another server.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use clap::Args;
use reqwest::{Body, Method, header};
use serde_json::{Value, json};

use super::{
    ConnectionArguments, UsageError,
    client::{self, Client},
    import::mlflow::{Credential, Mlflow, Place, text},
    output::{self, Format},
};

/// The description of a folder that MLflow saved a model in.
const MLMODEL: &str = "MLmodel";
/// The most files of a model.
const MAX_FILES: usize = 10_000;
/// The experiment of what is imported: `Default` of the project.
const EXPERIMENT: &str = "0";
/// The schemes of addresses of other servers.
const UPSTREAM_SCHEMES: [&str; 2] = ["grpc", "grpcs"];
/// What a logged model's name must not have in it.
const REFUSED_IN_NAMES: [char; 6] = ['/', ':', '.', '%', '"', '\''];

/// What `models import` takes.
#[derive(Args)]
pub struct ImportArguments {
    /// ONNX file, folder that MLflow saved a model in, folder with one ONNX file and what belongs to it, or the model of
    /// another server: grpc://HOST:PORT/MODEL[/VERSION], with TLS grpcs://
    path: PathBuf,
    /// Registered model; made when it does not exist
    #[arg(long)]
    name: String,
    /// Alias to point at the new version
    #[arg(long)]
    alias: Option<String>,
    /// Description of the version
    #[arg(long)]
    description: Option<String>,
    /// Tag of the version; can be given several times
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = tag)]
    tags: Vec<(String, String)>,
    #[command(flatten)]
    connection: ConnectionArguments,
}

fn tag(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    if key.is_empty() {
        return Err("write KEY=VALUE".to_owned());
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// Runs the command.
pub async fn import(arguments: &ImportArguments) -> anyhow::Result<()> {
    let client = arguments.connection.client()?;
    let version = if let Some(description) = upstream(&arguments.path)? {
        import_upstream(arguments, &client, &description).await?
    } else if arguments.path.is_dir() {
        import_folder(arguments, &client).await?
    } else {
        import_file(arguments, &client, &arguments.path, "onnx").await?
    };
    if arguments.connection.server.output == Format::Json {
        return output::print_json(&version);
    }
    let number = version.get("version").and_then(Value::as_u64);
    let number = number.context("the server gave no version")?;
    output::print_line(&format!("{}/{number}", arguments.name))
}

/// The description of the model of another server that an address names; none: it is no such address.
fn upstream(path: &Path) -> Result<Option<Value>, UsageError> {
    let Some((scheme, rest)) = path.to_str().and_then(|text| text.split_once("://")) else {
        return Ok(None);
    };
    let wrong = || {
        UsageError(format!(
            "`{}` names no model of another server: write grpc://HOST:PORT/MODEL[/VERSION], with TLS grpcs://",
            path.display()
        ))
    };
    if !UPSTREAM_SCHEMES.contains(&scheme) {
        return Err(wrong());
    }
    let mut parts = rest.split('/');
    let (place, model) = (parts.next(), parts.next().filter(|model| !model.is_empty()));
    let (Some(place), Some(model), version, None) = (place, model, parts.next(), parts.next()) else {
        return Err(wrong());
    };
    let url = format!("{scheme}://{place}");
    Ok(Some(json!({
        "upstream": { "url": url, "model": model, "version": version.unwrap_or_default() }
    })))
}

async fn import_upstream(arguments: &ImportArguments, client: &Client, description: &Value) -> anyhow::Result<Value> {
    let file = tempfile::NamedTempFile::new().context("a temporary file cannot be made")?;
    serde_json::to_writer(&file, description)?;
    import_file(arguments, client, file.path(), "upstream").await
}

async fn import_file(arguments: &ImportArguments, client: &Client, path: &Path, format: &str) -> anyhow::Result<Value> {
    let digest = client.upload(path).await?;
    let aliases: Vec<_> = arguments.alias.iter().collect();
    let tags: BTreeMap<_, _> = arguments.tags.iter().cloned().collect();
    let mut body = json!({ "artifact_digest": digest, "format": format, "aliases": aliases, "tags": tags });
    if let Some(description) = &arguments.description {
        body["description"] = json!(description);
    }
    // The server fetches the file and reads it before it answers.
    let request = client.patient_request(Method::POST, &["models", &arguments.name, "versions"])?;
    client
        .send(request.json(&body))
        .await
        .with_context(|| format!("`{}` cannot be registered", arguments.path.display()))
}

/// All files below a folder, by their paths in it with `/`.
fn files_below(folder: &Path) -> anyhow::Result<BTreeMap<String, PathBuf>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![(String::new(), folder.to_owned())];
    while let Some((prefix, folder)) = folders.pop() {
        let entries = fs::read_dir(&folder).with_context(|| format!("`{}` cannot be read", folder.display()))?;
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().into_string();
            let name = name.map_err(|name| UsageError(format!("`{}` is not a name in UTF-8", name.display())))?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push((format!("{prefix}{name}/"), entry.path()));
            } else if kind.is_file() {
                files.insert(format!("{prefix}{name}"), entry.path());
            } else {
                bail!(
                    "`{}` is a link or a device: put the file itself there",
                    entry.path().display()
                );
            }
            ensure!(
                files.len() + folders.len() <= MAX_FILES,
                "`{}` has more than {MAX_FILES} files and folders: name the folder of one model",
                folder.display()
            );
        }
    }
    Ok(files)
}

/// The ONNX file of a folder that has no description: the only one, or `model.onnx` among several.
fn onnx_file(names: &BTreeMap<String, PathBuf>, folder: &Path) -> Result<String, UsageError> {
    let found: Vec<&String> = names
        .keys()
        .filter(|name| name.strip_suffix(".onnx").is_some())
        .collect();
    let chosen = match found.as_slice() {
        [only] => Some((*only).clone()),
        several => several
            .iter()
            .find(|name| name.as_str() == "model.onnx")
            .map(|name| (*name).clone()),
    };
    chosen.ok_or_else(|| {
        let folder = folder.display();
        UsageError(match found.len() {
            0 => {
                format!("`{folder}` has neither a file `{MLMODEL}` nor an ONNX file: export the model to ONNX into it")
            }
            count => format!("`{folder}` has {count} ONNX files: call the one to register `model.onnx`"),
        })
    })
}

/// The name of the logged model, which is stricter than that of a registered one.
fn logged_name(name: &str) -> String {
    name.chars()
        .map(|c| if REFUSED_IN_NAMES.contains(&c) { '-' } else { c })
        .collect()
}

fn mlflow_of(arguments: &ImportArguments) -> anyhow::Result<Mlflow> {
    let server = &arguments.connection.server;
    let url = reqwest::Url::parse(&server.url).map_err(|_| UsageError(format!("`{}` is not a URL", server.url)))?;
    let token = server.token.as_deref().filter(|token| !token.is_empty());
    let credential = token.map_or(Credential::None, |token| Credential::Token(token.to_owned()));
    let http = client::http_client(server.ca_file.as_deref())?;
    Ok(Mlflow::new(
        http,
        url,
        credential,
        Some(arguments.connection.project.clone()),
    ))
}

/// Keeps all files of a folder as a logged model, and registers it. What its ONNX file takes and gives is read from it.
async fn import_folder(arguments: &ImportArguments, client: &Client) -> anyhow::Result<Value> {
    let files = files_below(&arguments.path)?;
    let made_up = if files.contains_key(MLMODEL) {
        None
    } else {
        let file = onnx_file(&files, &arguments.path)?;
        Some(json!({"flavors": {"onnx": {"data": file}}}).to_string())
    };
    let server = mlflow_of(arguments)?;
    let body = json!({"experiment_id": EXPERIMENT, "name": logged_name(&arguments.name)});
    let made = server.create("api/2.0/mlflow/logged-models", &body).await?;
    let info = made.pointer("/model/info").cloned().unwrap_or(Value::Null);
    let (model_id, uri) = (text(&info, "model_id"), text(&info, "artifact_uri"));
    let Place::Proxied(root) = Place::read(uri, Place::Run(String::new())) else {
        bail!("the experiment `Default` keeps its artifacts at {uri}, where this command cannot put files");
    };
    let bar = output::progress(
        arguments.connection.server.output,
        "uploading {wide_bar} {pos}/{len} files",
        files.len() as u64,
    );
    for (name, path) in &files {
        put_file(&server, &format!("{root}/{name}"), path).await?;
        bar.inc(1);
    }
    if let Some(description) = made_up {
        put_bytes(&server, &format!("{root}/{MLMODEL}"), description).await?;
    }
    bar.finish_and_clear();
    let path = format!("api/2.0/mlflow/logged-models/{model_id}");
    let body = json!({"model_id": model_id, "status": "LOGGED_MODEL_READY"});
    server.patch(&path, &body).await?;
    register(arguments, client, &server, model_id).await
}

async fn register(
    arguments: &ImportArguments,
    client: &Client,
    server: &Mlflow,
    model_id: &str,
) -> anyhow::Result<Value> {
    let name = arguments.name.as_str();
    if server.find_model(name).await?.is_none() {
        let body = json!({"name": name});
        let made = server.create("api/2.0/mlflow/registered-models/create", &body).await;
        // It may have been made, by this request or by somebody else.
        if let Err(error) = made
            && server.find_model(name).await?.is_none()
        {
            return Err(error);
        }
    }
    let tags: Vec<Value> = arguments
        .tags
        .iter()
        .map(|(key, value)| json!({"key": key, "value": value}))
        .collect();
    let body = json!({
        "name": name,
        "source": format!("models:/{model_id}"),
        "model_id": model_id,
        "description": arguments.description.as_deref().unwrap_or_default(),
        "tags": tags,
    });
    let made = server.create("api/2.0/mlflow/model-versions/create", &body).await?;
    let made = made.get("model_version").cloned().unwrap_or(Value::Null);
    let problem = text(&made, "status_message");
    let number = text(&made, "version");
    if !problem.is_empty() {
        output::hint(&format!("{name}/{number} {problem}"));
    }
    if let Some(alias) = &arguments.alias {
        server.set_alias(name, alias, number).await?;
    }
    client.get(&["models", name, "versions", number]).await
}

async fn put_file(server: &Mlflow, path: &str, file: &Path) -> anyhow::Result<()> {
    let opened = tokio::fs::File::open(file).await;
    let opened = opened.with_context(|| format!("`{}` cannot be read", file.display()))?;
    let size = opened.metadata().await?.len();
    let body = Body::wrap_stream(tokio_util::io::ReaderStream::new(opened));
    put(server, path, body, size)
        .await
        .with_context(|| format!("`{}` cannot be uploaded", file.display()))
}

async fn put_bytes(server: &Mlflow, path: &str, content: String) -> anyhow::Result<()> {
    let size = content.len() as u64;
    put(server, path, Body::from(content), size).await
}

async fn put(server: &Mlflow, path: &str, body: Body, size: u64) -> anyhow::Result<()> {
    let path = format!("api/2.0/mlflow-artifacts/artifacts/{path}");
    let segments: Vec<&str> = path.split('/').collect();
    let request = server.patient_request(Method::PUT, &segments)?;
    let answer = request.header(header::CONTENT_LENGTH, size).body(body).send().await?;
    let status = answer.status();
    if !status.is_success() {
        bail!(
            "the server answered {status}: {}",
            answer.text().await.unwrap_or_default()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> BTreeMap<String, PathBuf> {
        names.iter().map(|name| ((*name).to_owned(), PathBuf::new())).collect()
    }

    #[test]
    fn the_onnx_file_of_a_folder_is_plain_or_named() {
        let folder = Path::new("f");
        let find = |all: &[&str]| onnx_file(&names(all), folder).map_err(|error| error.0);
        assert_eq!(find(&["a.onnx", "b.safetensors"]).unwrap(), "a.onnx");
        assert_eq!(find(&["a.onnx", "model.onnx"]).unwrap(), "model.onnx");
        assert!(find(&["a.onnx", "b.onnx"]).unwrap_err().contains("2 ONNX files"));
        assert!(find(&["a.safetensors"]).unwrap_err().contains("neither"));
    }

    #[test]
    fn files_are_found_below_folders_and_links_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("data")).unwrap();
        fs::write(folder.path().join("data/w.safetensors"), "w").unwrap();
        fs::write(folder.path().join("model.onnx"), "m").unwrap();
        let found: Vec<String> = files_below(folder.path()).unwrap().into_keys().collect();
        assert_eq!(found, ["data/w.safetensors", "model.onnx"]);
        std::os::unix::fs::symlink("/etc/hosts", folder.path().join("link")).unwrap();
        let error = files_below(folder.path()).unwrap_err().to_string();
        assert!(error.contains("link"), "{error}");
    }

    #[test]
    fn models_of_other_servers_are_named_by_an_address() {
        let read = |text: &str| upstream(Path::new(text)).map_err(|error| error.0);
        assert_eq!(read("model.onnx"), Ok(None));
        let expected = |url: &str, version: &str| {
            Ok(Some(
                json!({"upstream": {"url": url, "model": "resnet", "version": version}}),
            ))
        };
        assert_eq!(read("grpc://t:8001/resnet"), expected("grpc://t:8001", ""));
        assert_eq!(read("grpcs://t:8001/resnet/3"), expected("grpcs://t:8001", "3"));
        for bad in ["grpc://t:8001", "grpc://t:8001/", "grpc://t/a/b/c", "https://t/m"] {
            assert!(read(bad).unwrap_err().contains("grpc://HOST:PORT/MODEL"), "{bad}");
        }
    }

    #[test]
    fn names_and_tags_are_read() {
        assert_eq!(logged_name("a.b c"), "a-b c");
        assert_eq!(tag("k=v=w"), Ok(("k".to_owned(), "v=w".to_owned())));
        assert!(tag("k").is_err() && tag("=v").is_err());
    }
}
