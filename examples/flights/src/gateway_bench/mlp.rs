//! Single rows to a perceptron, as binary tensors over HTTP: what batches save is more than what serving costs.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use modelyard_inference::Tensor;
use serde_json::json;

use super::{
    beside::{Beside, Comparison, RAW_TURN, ROUNDS},
    gateway::Gateway,
    messages,
    models::{INPUT, LAYERS, perceptron},
    raw::{Raw, processors},
};
use crate::{bare_server::BareServer, load::Message, wire};

/// The endpoint.
const ENDPOINT: &str = "mlp";

/// Measures it.
pub async fn measure(folder: &Path) -> Result<Beside> {
    let gateway = Gateway::start(folder, ENDPOINT, Vec::new()).await?;
    let onnx = perceptron();
    gateway.serve(ENDPOINT, &onnx, json!({})).await?;
    let [width, ..] = LAYERS;
    let values: Vec<f32> = (0..width).map(|place| place as f32 / width as f32).collect();
    let request = messages::binary_floats(ENDPOINT, INPUT, &[1, width], &values);
    let answer = wire::exchange(gateway.subject.address, &request).await?;
    let file = folder.join("answer.mlp");
    fs::write(&file, &answer.body)?;
    let file = file.to_str().context("the folder's path is not UTF-8")?;
    let header_bytes = answer
        .header_bytes
        .context("the answer has no binary tensors")?
        .to_string();
    let bare = BareServer::start(&["bare-model", "binary", file, &header_bytes]).await?;
    let mut comparison = Comparison::new(gateway.subject, bare, Message::Http(request.into()), processors()?);
    let raw = Raw::open(&onnx, 1, 1)?;
    let input = Tensor::from_vec(INPUT, vec![1, width as i64], values)?;
    for round in 0..=ROUNDS {
        let turn = raw.measure(&input, RAW_TURN)?;
        comparison.round(round, &turn).await?;
    }
    gateway.stop().await?;
    Ok(comparison.end())
}
