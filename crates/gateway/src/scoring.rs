//! MLflow's scoring (`/endpoints/NAME/invocations`) and TensorFlow Serving's (`/v1/models/NAME:predict`): rows in JSON,
//! CSV or Parquet, for clients that know no tensors. A client that brings an `X-Request-Id` can label its predictions by it.

mod table;

use std::{sync::Arc, time::Instant};

use arrow::array::RecordBatch;
use axum::{extract::State, response::Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use modelyard_auth::Action;
use modelyard_inference::{DataType, Priority, Signature, Tensor, TensorSpec};
use serde::de::DeserializeSeed as _;
use serde_json::{Map, Value, json};

use self::table::{read_parquet, table_tensors};
use crate::{
    client::Client,
    error::{Error, Result},
    http::{InPath, Named, Received, header_value, json_response, ready_status, received, refuse, refuse_with},
    meters,
    oip::{DataSeed, write_elements},
    options::Attribute,
    predict::{Answer, Gateway, Inputs, Request},
    spool::Protocol,
};

/// The header with the request's id.
const REQUEST_ID: &str = "x-request-id";

/// The media type of Parquet files.
pub(crate) const PARQUET: &str = "application/vnd.apache.parquet";

/// What ends the path of a prediction in TensorFlow Serving's protocol.
const PREDICT: &str = ":predict";

/// Rows as a client sends them.
#[derive(Debug)]
enum Rows {
    /// Named columns; each row has a value for each.
    Frame {
        columns: Vec<String>,
        rows: Vec<Vec<Value>>,
    },
    /// CSV's, whose values are all text.
    Csv {
        columns: Vec<String>,
        rows: Vec<Vec<Value>>,
    },
    /// A Parquet file's.
    Table(RecordBatch),
    /// One value or object a row.
    Instances(Vec<Value>),
    /// A list of values for each input, or for the only one.
    Inputs(Value),
}

pub(crate) async fn invocations(
    State(gateway): State<Arc<Gateway>>,
    client: Client,
    InPath(named): InPath<Named>,
    headers: HeaderMap,
    body: Received,
) -> Response {
    let arrived = Instant::now();
    let share = gateway.memory.share();
    let rows = client
        .authorize(Action::EndpointPredict, &named.model)
        .and_then(|()| received(&headers, body, &share))
        .and_then(|body| read_invocation(&headers, body))
        .inspect_err(|_| meters::refused_request());
    let answer = match rows {
        Ok(rows) => {
            let by_column = matches!(rows, Rows::Inputs(_));
            let answer = score(&gateway, &client, &named.model, None, rows, &headers, arrived).await;
            answer.map(|answer| (answer, by_column))
        }
        Err(error) => Err(error),
    };
    match answer {
        Ok((answer, by_column)) => respond(&answer, "predictions", by_column).unwrap_or_else(refuse_as_mlflow),
        Err(error) => refuse_as_mlflow(error),
    }
}

pub(crate) async fn predict(
    State(gateway): State<Arc<Gateway>>,
    client: Client,
    InPath(named): InPath<Named>,
    headers: HeaderMap,
    body: Received,
) -> Response {
    let arrived = Instant::now();
    let asked = match &named.version {
        None => named.model.strip_suffix(PREDICT).map(|model| (model, None)),
        Some(version) => version
            .strip_suffix(PREDICT)
            .map(|version| (named.model.as_str(), Some(version))),
    };
    let Some((endpoint, version)) = asked else {
        return refuse(Error::invalid(format!(
            "POST /v1/models/NAME{PREDICT} and /v1/models/NAME/versions/VERSION{PREDICT} are the only ones here"
        )));
    };
    let share = gateway.memory.share();
    let rows = client
        .authorize(Action::EndpointPredict, endpoint)
        .and_then(|()| received(&headers, body, &share))
        .and_then(|body| read_object(&body))
        .and_then(
            |mut object| match (object.remove("instances"), object.remove("inputs")) {
                (Some(instances), None) => Ok((Rows::Instances(list(instances, "instances")?), "predictions")),
                (None, Some(inputs)) => Ok((Rows::Inputs(inputs), "outputs")),
                _ => Err(Error::invalid(
                    "the body must have exactly one of `instances` and `inputs`",
                )),
            },
        )
        .inspect_err(|_| meters::refused_request());
    let (rows, key) = match rows {
        Ok(rows) => rows,
        Err(error) => return refuse(error),
    };
    let by_column = matches!(rows, Rows::Inputs(_));
    match score(&gateway, &client, endpoint, version, rows, &headers, arrived).await {
        Ok(answer) => respond(&answer, key, by_column).unwrap_or_else(refuse),
        Err(error) => refuse(error),
    }
}

pub(crate) async fn model_status(
    State(gateway): State<Arc<Gateway>>,
    client: Client,
    InPath(named): InPath<Named>,
) -> Response {
    let endpoint = client
        .authorize(Action::EndpointRead, &named.model)
        .and_then(|()| gateway.endpoint(&client.project, &named.model));
    let described = endpoint.and_then(|endpoint| {
        let is_ready = endpoint.is_ready();
        // A version that is named has to be there.
        if let Some(version) = named.version.as_deref().filter(|_| is_ready) {
            endpoint.describe(Some(version))?;
        }
        Ok((endpoint, is_ready))
    });
    let (endpoint, is_ready) = match described {
        Ok(described) => described,
        Err(error) => return refuse(error),
    };
    let is_asked = |version: &String| named.version.as_ref().is_none_or(|asked| asked == version);
    let versions = endpoint.versions().into_iter().filter(is_asked).map(|version| {
        json!({"version": version, "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}})
    });
    let body = json!({
        "name": named.model,
        "ready": is_ready,
        "model_version_status": versions.collect::<Vec<_>>(),
    });
    json_response(ready_status(is_ready), &body)
}

async fn score(
    gateway: &Gateway,
    client: &Client,
    endpoint: &str,
    version: Option<&str>,
    rows: Rows,
    headers: &HeaderMap,
    arrived: Instant,
) -> Result<Answer> {
    let id = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
    gateway
        .predict(Request {
            client,
            endpoint,
            version,
            id: id.map(str::to_owned),
            inputs: Inputs::Of(Box::new(move |signature| tensors(signature, rows))),
            event_time: None,
            arrived,
            timeout: None,
            priority: Priority::default(),
            carried: &|attribute| match attribute {
                Attribute::Header(name) => header_value(headers, name),
                Attribute::Parameter(_) => None,
            },
            outputs: &[],
            protocol: Protocol::Http,
        })
        .await
}

fn read_object(body: &[u8]) -> Result<Map<String, Value>> {
    serde_json::from_slice(body).map_err(|error| Error::invalid(format!("the body is no JSON object: {error}")))
}

fn list(value: Value, what: &str) -> Result<Vec<Value>> {
    match value {
        Value::Array(values) => Ok(values),
        _ => Err(Error::invalid(format!("`{what}` is no list"))),
    }
}

fn read_invocation(headers: &HeaderMap, body: Bytes) -> Result<Rows> {
    let given = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let media = given.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    read_body(&media, body)
}

/// Reads the rows of a body and fits them to a model.
#[cfg(fuzzing)]
pub(crate) fn read_rows(media: &str, body: Bytes, signature: &Signature) -> Result<Vec<Tensor>> {
    tensors(signature, read_body(media, body)?)
}

fn read_body(media: &str, body: Bytes) -> Result<Rows> {
    match media {
        "application/json" => read_json(read_object(&body)?),
        "text/csv" => read_csv(&body),
        PARQUET => Ok(Rows::Table(read_parquet(body)?)),
        _ => Err(Error::UnsupportedMedia {
            detail: format!("content type `{media}` is not read: use application/json, text/csv or {PARQUET}"),
        }),
    }
}

fn read_json(mut object: Map<String, Value>) -> Result<Rows> {
    const FORMS: [&str; 4] = ["dataframe_split", "dataframe_records", "instances", "inputs"];
    match object.remove("params") {
        None | Some(Value::Null) => {}
        Some(Value::Object(params)) if params.is_empty() => {}
        Some(_) => {
            return Err(Error::invalid(
                "`params` are not passed on to models here: leave them out, and log the model with the values that it shall use",
            ));
        }
    }
    let mut given = object.into_iter();
    let (Some((form, value)), None) = (given.next(), given.next()) else {
        return Err(Error::invalid(format!(
            "the body must have exactly one of {}",
            FORMS.join(", ")
        )));
    };
    match form.as_str() {
        "dataframe_split" => read_split(value),
        "dataframe_records" => read_records(list(value, &form)?),
        "instances" => Ok(Rows::Instances(list(value, &form)?)),
        "inputs" => Ok(Rows::Inputs(value)),
        other => Err(Error::invalid(format!(
            "`{}` is unknown: use one of {}",
            other.chars().take(64).collect::<String>(),
            FORMS.join(", ")
        ))),
    }
}

fn read_split(value: Value) -> Result<Rows> {
    let Value::Object(mut split) = value else {
        return Err(Error::invalid("`dataframe_split` is no object"));
    };
    let columns = list(split.remove("columns").unwrap_or_default(), "dataframe_split.columns")?;
    let columns = columns
        .into_iter()
        .map(|name| match name {
            Value::String(name) => Ok(name),
            other => Err(Error::invalid(format!("column name {other} is no string"))),
        })
        .collect::<Result<Vec<_>>>()?;
    let rows = list(split.remove("data").unwrap_or_default(), "dataframe_split.data")?;
    let rows = rows
        .into_iter()
        .enumerate()
        .map(|(index, row)| {
            let row = list(row, "a row of dataframe_split.data")?;
            check_width(index, row.len(), columns.len())?;
            Ok(row)
        })
        .collect::<Result<_>>()?;
    Ok(Rows::Frame { columns, rows })
}

fn check_width(index: usize, found: usize, expected: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "row {index} has {found} values for {expected} columns"
    )))
}

fn read_records(records: Vec<Value>) -> Result<Rows> {
    let mut columns: Vec<String> = Vec::new();
    let mut rows = Vec::with_capacity(records.len());
    for (index, record) in records.into_iter().enumerate() {
        let Value::Object(mut record) = record else {
            return Err(Error::invalid(format!("record {index} is no object")));
        };
        if index == 0 {
            columns = record.keys().cloned().collect();
        }
        let row = columns
            .iter()
            .map(|column| {
                record
                    .remove(column)
                    .ok_or_else(|| Error::invalid(format!("record {index} has no `{column}`")))
            })
            .collect::<Result<Vec<_>>>()?;
        if let Some(column) = record.keys().next() {
            return Err(Error::invalid(format!(
                "record {index} has `{column}`, and the first has not"
            )));
        }
        rows.push(row);
    }
    Ok(Rows::Frame { columns, rows })
}

/// CSV as RFC 4180 has it, with the columns' names in the first line.
fn read_csv(body: &[u8]) -> Result<Rows> {
    let text = std::str::from_utf8(body).map_err(|_| Error::invalid("the CSV is not UTF-8"))?;
    let mut lines = csv_lines(text)?.into_iter();
    let columns = lines.next().ok_or_else(|| Error::invalid("the CSV is empty"))?;
    let rows = lines
        .enumerate()
        .map(|(index, row)| {
            check_width(index, row.len(), columns.len())?;
            Ok(row.into_iter().map(Value::String).collect())
        })
        .collect::<Result<_>>()?;
    Ok(Rows::Csv { columns, rows })
}

fn csv_lines(text: &str) -> Result<Vec<Vec<String>>> {
    let mut lines = Vec::new();
    let mut line = Vec::new();
    let mut field = String::new();
    let mut quoted = false;
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                field.push('"');
            }
            '"' if quoted => quoted = false,
            '"' if field.is_empty() => quoted = true,
            _ if quoted => field.push(character),
            ',' => line.push(std::mem::take(&mut field)),
            '\r' if characters.peek() == Some(&'\n') => {}
            '\n' => {
                line.push(std::mem::take(&mut field));
                lines.push(std::mem::take(&mut line));
            }
            _ => field.push(character),
        }
    }
    if quoted {
        return Err(Error::invalid("the CSV ends within a quoted field"));
    }
    if !field.is_empty() || !line.is_empty() {
        line.push(field);
        lines.push(line);
    }
    Ok(lines)
}

/// The inputs of a model from rows.
fn tensors(signature: &Signature, rows: Rows) -> Result<Vec<Tensor>> {
    match rows {
        Rows::Frame { columns, rows } => frame_tensors(signature, &columns, rows, false),
        Rows::Csv { columns, rows } => frame_tensors(signature, &columns, rows, true),
        Rows::Table(table) => table_tensors(signature, &table),
        Rows::Instances(instances) => instance_tensors(signature, instances),
        Rows::Inputs(Value::Object(mut inputs)) => {
            let each = signature.inputs.iter().map(|spec| {
                let values = inputs
                    .remove(&spec.name)
                    .ok_or_else(|| Error::invalid(format!("there is no `{}` in `inputs`", spec.name)))?;
                tensor(spec, list(values, &spec.name)?)
            });
            each.collect()
        }
        Rows::Inputs(values) => Ok(vec![tensor(only_input(signature)?, list(values, "inputs")?)?]),
    }
}

fn only_input(signature: &Signature) -> Result<&TensorSpec> {
    match signature.inputs.as_slice() {
        [input] => Ok(input),
        inputs => {
            let names: Vec<&str> = inputs.iter().map(|input| input.name.as_str()).collect();
            Err(Error::invalid(format!(
                "the model takes the inputs {}: name them",
                names.join(", ")
            )))
        }
    }
}

fn frame_tensors(
    signature: &Signature,
    columns: &[String],
    mut rows: Vec<Vec<Value>>,
    is_text: bool,
) -> Result<Vec<Tensor>> {
    if let [input] = signature.inputs.as_slice()
        && input.shape.len() == 2
        && !columns.contains(&input.name)
    {
        // The only input takes whole rows.
        let rows = rows.into_iter().map(|row| {
            let values = row.into_iter().map(|value| from_text(input.datatype, value, is_text));
            values.collect::<Result<Vec<_>>>().map(Value::Array)
        });
        return Ok(vec![tensor(input, rows.collect::<Result<_>>()?)?]);
    }
    let each = signature.inputs.iter().map(|spec| {
        let place = columns.iter().position(|column| *column == spec.name);
        let place = place.ok_or_else(|| Error::invalid(format!("there is no column `{}`", spec.name)))?;
        let values = rows.iter_mut().map(|row| {
            let value = row.get_mut(place).map(Value::take).unwrap_or_default();
            from_text(spec.datatype, value, is_text)
        });
        let values = values.collect::<Result<_>>()?;
        tensor(spec, values)
    });
    each.collect()
}

/// A CSV's text as a value of the datatype.
fn from_text(datatype: DataType, value: Value, is_text: bool) -> Result<Value> {
    let text = match value {
        Value::String(text) if is_text && datatype != DataType::Bytes => text,
        other => return Ok(other),
    };
    let text = text.trim();
    if datatype.is_float() && (text.is_empty() || text.eq_ignore_ascii_case("nan")) {
        return Ok(Value::Null);
    }
    // A number or a boolean looks in CSV as in JSON, but for capitals.
    serde_json::from_str(&text.to_ascii_lowercase())
        .map_err(|_| Error::invalid(format!("`{}` is no {datatype}", text.escape_debug())))
}

fn instance_tensors(signature: &Signature, instances: Vec<Value>) -> Result<Vec<Tensor>> {
    if instances.iter().any(Value::is_object) {
        let Rows::Frame { columns, rows } = read_records(instances)? else {
            return Err(Error::invalid("the instances are no records"));
        };
        return frame_tensors(signature, &columns, rows, false);
    }
    Ok(vec![tensor(only_input(signature)?, instances)?])
}

/// The tensor of one value a row; the values may be nested lists.
fn tensor(spec: &TensorSpec, mut values: Vec<Value>) -> Result<Tensor> {
    let mut shape = vec![values.len() as i64];
    let mut inner = values.first();
    while let Some(Value::Array(list)) = inner {
        shape.push(list.len() as i64);
        inner = list.first();
    }
    if !values
        .iter()
        .all(|value| is_of_shape(value, shape.get(1..).unwrap_or_default()))
    {
        return Err(Error::invalid(format!(
            "`{}`: its values are lists of unlike lengths, which are no tensor: {shape:?} by the first of them",
            spec.name
        )));
    }
    if shape.len() == 1 && spec.shape.len() == 2 {
        shape.push(1);
    }
    if spec.datatype == DataType::Bytes {
        // A missing text is an empty one, as in training.
        for value in values.iter_mut().filter(|value| value.is_null()) {
            *value = Value::String(String::new());
        }
    }
    let seed = DataSeed {
        datatype: spec.datatype,
        count: values.len(),
    };
    let data = seed
        .deserialize(Value::Array(values))
        .map_err(|error| Error::invalid(format!("`{}`: {error}", spec.name)))?;
    Ok(Tensor::new(&spec.name, shape, data)?)
}

/// Whether lists in each other have the lengths of a shape.
fn is_of_shape(value: &Value, shape: &[i64]) -> bool {
    match (value, shape) {
        (Value::Array(items), [length, inner @ ..]) => {
            items.len() as i64 == *length && items.iter().all(|item| is_of_shape(item, inner))
        }
        (Value::Array(_), []) | (_, [_, ..]) => false,
        (_, []) => true,
    }
}

fn respond(answer: &Answer, key: &str, by_column: bool) -> Result<Response> {
    let outputs = answer
        .outputs
        .iter()
        .map(|output| Ok((output.name().to_owned(), nested(output)?)));
    let mut outputs: Vec<(String, Value)> = outputs.collect::<Result<_>>()?;
    let body = if outputs.len() == 1 {
        outputs.pop().map(|(_, values)| values).unwrap_or_default()
    } else if by_column {
        Value::Object(outputs.into_iter().collect())
    } else {
        records(outputs)
    };
    let mut response = json_response(StatusCode::OK, &json!({ key: body }));
    if let Ok(id) = HeaderValue::from_str(&answer.id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    Ok(response)
}

/// Columns as one object a row.
fn records(outputs: Vec<(String, Value)>) -> Value {
    let mut rows: Vec<Map<String, Value>> = Vec::new();
    for (name, values) in outputs {
        let Value::Array(values) = values else { continue };
        rows.resize_with(rows.len().max(values.len()), Map::new);
        for (row, value) in rows.iter_mut().zip(values) {
            row.insert(name.clone(), value);
        }
    }
    Value::Array(rows.into_iter().map(Value::Object).collect())
}

/// A tensor's elements, nested as its shape is; rows of one value are that value.
fn nested(tensor: &Tensor) -> Result<Value> {
    let mut json = Vec::new();
    write_elements(&mut json, tensor)?;
    let flat: Vec<Value> = serde_json::from_slice(&json).unwrap_or_default();
    let inner = match tensor.shape() {
        [_, 1] | [] => &[],
        [_, inner @ ..] => inner,
    };
    let mut values = flat;
    for &dimension in inner.iter().rev() {
        let width = usize::try_from(dimension).unwrap_or(0).max(1);
        values = values.chunks(width).map(|chunk| Value::Array(chunk.to_vec())).collect();
    }
    Ok(Value::Array(values))
}

fn refuse_as_mlflow(error: Error) -> Response {
    refuse_with(
        error,
        |problem| json!({"error_code": problem.reason, "message": problem.detail}),
    )
}
