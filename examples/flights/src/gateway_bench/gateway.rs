//! A server of a part's own, with models at endpoints.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result};
use modelyard_flights::{Api, Look, Quiet, Server, ServerOptions, wait_for};
use serde_json::{Value, json};

use crate::{load::Subject, modelyard};

/// How long a call is tried again.
const CALLS_AWAY: Duration = Duration::from_secs(10);
/// How long an endpoint may take until it is ready.
const READY_PATIENCE: Duration = Duration::from_mins(2);

/// A server, and how it is told what to serve.
pub struct Gateway {
    server: Server,
    /// Its HTTP API.
    pub api: Api,
    /// Its public listener.
    pub subject: Subject,
}

impl Gateway {
    /// Starts a server with nothing, and waits until it is ready. Its data is in a folder of this name.
    pub async fn start(folder: &Path, name: &str, environment: Vec<(String, String)>) -> Result<Self> {
        let mut server = Server::start(ServerOptions {
            binary: modelyard()?,
            wrapper: Vec::new(),
            data_dir: folder.join(name),
            log: folder.join(format!("{name}.log")),
            arguments: ["--listen", "127.0.0.1:0", "--internal-listen", "127.0.0.1:0"]
                .map(str::to_owned)
                .to_vec(),
            environment,
        })
        .await?;
        server.wait_ready().await?;
        let addresses = server.addresses();
        let subject = Subject {
            address: addresses.public.trim_start_matches("http://").parse()?,
            pid: addresses.pid,
        };
        Ok(Self {
            api: Api::new(&addresses.public, CALLS_AWAY)?,
            subject,
            server,
        })
    }

    /// Serves a model at an endpoint of its name, and waits until it does. What the endpoint's spec has beside its route is
    /// `further`, an object.
    pub async fn serve(&self, name: &str, onnx: &[u8], further: Value) -> Result<()> {
        declare(&self.api, name, onnx, further).await?;
        let path = format!("endpoints/{name}");
        wait_for(
            &format!("the endpoint `{name}` is ready"),
            READY_PATIENCE,
            &Quiet,
            async || {
                let endpoint = self.api.get(&path).await?;
                if is_ready(&endpoint) {
                    return Ok(Look::Found(()));
                }
                let status = endpoint.get("status").cloned().unwrap_or_default();
                Ok(Look::NotYet(status.to_string()))
            },
        )
        .await
        .with_context(|| format!("the server's log says:\n{}\nerror", self.server.last_log_lines()))
    }

    /// Ends it.
    pub async fn stop(self) -> Result<()> {
        self.server.stop().await
    }
}

/// Registers a model and declares an endpoint of its name.
pub async fn declare(api: &Api, name: &str, onnx: &[u8], further: Value) -> Result<()> {
    let digest = api.upload(onnx.to_vec()).await?;
    let version = json!({"artifact_digest": digest, "format": "onnx"});
    api.post(&format!("models/{name}/versions"), &version).await?;
    let mut spec = further;
    spec["routes"] = json!([{"model": format!("{name}/1")}]);
    api.put(&format!("endpoints/{name}"), &spec).await?;
    Ok(())
}

/// Whether an endpoint says that it serves what it shall.
pub fn is_ready(endpoint: &Value) -> bool {
    endpoint.pointer("/status/ready") == Some(&Value::Bool(true))
}
