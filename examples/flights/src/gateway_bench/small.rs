//! Single rows to a gradient-boosted model, over HTTP as JSON and over gRPC.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use modelyard_inference::Tensor;
use prost::Message as _;
use serde::Serialize;
use serde_json::json;

use super::{
    beside::{Beside, Comparison, RAW_TURN, ROUNDS},
    gateway::Gateway,
    messages,
    models::{FEATURES, INPUT, gradient_boosted},
    raw::{Raw, processors},
};
use crate::{bare_server::BareServer, load::Message, wire};

/// The endpoint.
const ENDPOINT: &str = "small";

/// Both protocols, beside the same raw session.
#[derive(Debug, Serialize)]
pub struct Small {
    /// JSON beside an axum handler.
    pub http: Beside,
    /// Raw tensors beside a tonic handler.
    pub grpc: Beside,
    /// How long the raw session takes at p50, in microseconds.
    pub raw_p50_us: f64,
}

/// A handler that gives the answer that the gateway gave.
async fn start_bare(kind: &str, file: &Path, answer: &[u8]) -> Result<BareServer> {
    fs::write(file, answer)?;
    let file = file.to_str().context("the folder's path is not UTF-8")?;
    BareServer::start(&["bare-model", kind, file]).await
}

/// Measures it.
pub async fn measure(folder: &Path) -> Result<Small> {
    let gateway = Gateway::start(folder, ENDPOINT, Vec::new()).await?;
    let onnx = gradient_boosted();
    gateway.serve(ENDPOINT, &onnx, json!({})).await?;
    let values: Vec<f32> = (0..FEATURES).map(|feature| feature as f32 * 0.0625 - 0.9).collect();
    let shape = [1, FEATURES];
    let request = messages::json_floats(ENDPOINT, INPUT, &shape, &values);
    let answer = wire::exchange(gateway.subject.address, &request).await?;
    let bare = start_bare("json", &folder.join("answer.json"), &answer.body).await?;
    let processors = processors()?;
    let message = Message::Http(request.into());
    let mut http = Comparison::new(gateway.subject, bare, message, processors);

    let request = messages::grpc_floats(ENDPOINT, INPUT, &shape, &values);
    let message = Message::Grpc(request.encode_to_vec().into());
    let answer = messages::call(gateway.subject, request).await?;
    let bare = start_bare("grpc", &folder.join("answer.grpc"), &answer.encode_to_vec()).await?;
    let mut grpc = Comparison::new(gateway.subject, bare, message, processors);

    let raw = Raw::open(&onnx, 1, 1)?;
    let input = Tensor::from_vec(INPUT, vec![1, FEATURES as i64], values)?;
    let mut raw_p50_us = f64::NAN;
    for round in 0..=ROUNDS {
        let turn = raw.measure(&input, RAW_TURN)?;
        raw_p50_us = turn.p50_us();
        http.round(round, &turn).await?;
        grpc.round(round, &turn).await?;
    }
    gateway.stop().await?;
    Ok(Small {
        http: http.end(),
        grpc: grpc.end(),
        raw_p50_us,
    })
}
