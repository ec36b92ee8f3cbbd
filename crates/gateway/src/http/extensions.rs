//! Triton's extensions of the protocol over HTTP: configuration, statistics and the repository of models.

use axum::{extract::State, response::Response};
use bytes::Bytes;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{InPath, Named, Received, Shared, json_response, or_refuse, received, refuse};
use crate::{
    client::Client,
    error::{Error, Result},
    oip::{all_statistics_of, model_config, model_config_json, statistics_json, statistics_of},
    repository::{self, Change},
};

pub(super) async fn config(State(gateway): Shared, client: Client, InPath(named): InPath<Named>) -> Response {
    let config = model_config(&gateway, &client, &named.model, named.version.as_deref());
    or_refuse(config.map(|config| model_config_json(&config)))
}

pub(super) async fn statistics(State(gateway): Shared, client: Client, InPath(named): InPath<Named>) -> Response {
    let counted = statistics_of(&gateway, &client, &named.model, named.version.as_deref());
    or_refuse(counted.map(|counted| statistics_json(&counted)))
}

pub(super) async fn all_statistics(State(gateway): Shared, client: Client) -> Response {
    json_response(StatusCode::OK, &statistics_json(&all_statistics_of(&gateway, &client)))
}

fn read_object(body: &Bytes) -> Result<Map<String, Value>> {
    if body.is_empty() {
        return Ok(Map::new());
    }
    serde_json::from_slice(body).map_err(|error| Error::invalid(format!("the body is no JSON object: {error}")))
}

pub(super) async fn index(
    State(gateway): Shared,
    client: Client,
    headers: http::HeaderMap,
    body: Received,
) -> Response {
    let share = gateway.memory.share();
    let only_ready = received(&headers, body, &share)
        .and_then(|body| read_object(&body))
        .and_then(|body| match body.get("ready") {
            None => Ok(false),
            Some(Value::Bool(ready)) => Ok(*ready),
            Some(_) => Err(Error::invalid("`ready` is neither true nor false")),
        });
    let only_ready = match only_ready {
        Ok(only_ready) => only_ready,
        Err(error) => return refuse(error),
    };
    let models = repository::index(&gateway, &client, only_ready);
    let each = models.iter().map(|model| {
        let mut entry = Map::from_iter([("name".to_owned(), json!(model.name))]);
        for (field, text) in [
            ("version", &model.version),
            ("state", &model.state),
            ("reason", &model.reason),
        ] {
            if !text.is_empty() {
                entry.insert(field.to_owned(), json!(text));
            }
        }
        Value::Object(entry)
    });
    json_response(StatusCode::OK, &Value::Array(each.collect()))
}

/// The parts of a path below `/v2/repository`.
#[derive(Deserialize)]
pub(super) struct Stored {
    model: String,
}

pub(super) async fn load(
    gateway: Shared,
    client: Client,
    stored: InPath<Stored>,
    headers: http::HeaderMap,
    body: Received,
) -> Response {
    let share = gateway.memory.share();
    change(gateway, client, stored, received(&headers, body, &share), Change::Load).await
}

pub(super) async fn unload(
    gateway: Shared,
    client: Client,
    stored: InPath<Stored>,
    headers: http::HeaderMap,
    body: Received,
) -> Response {
    let share = gateway.memory.share();
    change(
        gateway,
        client,
        stored,
        received(&headers, body, &share),
        Change::Unload,
    )
    .await
}

async fn change(
    State(gateway): Shared,
    client: Client,
    InPath(stored): InPath<Stored>,
    body: Result<Bytes>,
    change: Change,
) -> Response {
    let parameters = body
        .and_then(|body| read_object(&body))
        .map(|mut body| body.remove("parameters"));
    let parameters = match parameters {
        Ok(Some(Value::Object(parameters))) => parameters,
        Ok(None | Some(Value::Null)) => Map::new(),
        Ok(Some(_)) => return refuse(Error::invalid("`parameters` is no object")),
        Err(error) => return refuse(error),
    };
    let names = parameters.keys().map(String::as_str);
    match repository::change(&gateway, &client, &stored.model, change, names).await {
        Ok(()) => json_response(StatusCode::OK, &json!({})),
        Err(error) => refuse(error),
    }
}
