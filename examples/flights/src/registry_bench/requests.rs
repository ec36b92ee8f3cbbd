//! Requests to a tracking server: as little work as a client can do.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::wire::{Stream, connect, read_answer};

/// Where the protocol is.
pub const API: &str = "/api/2.0/mlflow";

/// A connection that is kept.
pub struct Connection(Stream);

impl Connection {
    /// Connects to a server.
    pub async fn open(address: SocketAddr) -> Result<Self> {
        Ok(Self(connect(address).await?))
    }

    /// Sends a request, such as `POST /path`, with a body if it is not null; gives the answer as JSON.
    pub async fn ask(&mut self, line: &str, body: &Value) -> Result<Value> {
        let answer = self.ask_bytes(line, body).await?;
        Ok(serde_json::from_slice(&answer)?)
    }

    /// The same; the answer as it came.
    pub async fn ask_bytes(&mut self, line: &str, body: &Value) -> Result<Vec<u8>> {
        self.0.get_mut().write_all(&bytes(line, body)).await?;
        let (status, answer) = read_answer(&mut self.0).await?;
        ensure!(status == 200, "{line}: {status} {}", String::from_utf8_lossy(&answer));
        Ok(answer)
    }

    /// Makes a run and gives its id.
    pub async fn new_run(&mut self, experiment: &str) -> Result<String> {
        let made = self
            .ask(
                &format!("POST {API}/runs/create"),
                &json!({"experiment_id": experiment}),
            )
            .await?;
        let id = made.pointer("/run/info/run_id").and_then(Value::as_str);
        Ok(id.context("the run has no id")?.to_owned())
    }
}

fn bytes(line: &str, body: &Value) -> Vec<u8> {
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    format!(
        "{line} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}
