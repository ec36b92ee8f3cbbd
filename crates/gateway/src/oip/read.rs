//! Requests: what their JSON and the bytes behind it mean.

use std::{borrow::Cow, fmt, time::Duration};

use bytes::Bytes;
use modelyard_common::Timestamp;
use modelyard_inference::{Priority, Signature, Tensor, TensorData};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::Value;

use super::json::{WireInput, WireOutput, WireRequest};
use crate::error::{Error, Result};

/// The most parameters that mean nothing here and are kept for the routes.
const MAX_OTHER_PARAMETERS: usize = 64;

/// A request.
pub(crate) struct InferRequest {
    pub id: Option<String>,
    pub inputs: RequestInputs,
    /// The outputs that are wanted; empty: all.
    pub outputs: Vec<RequestedOutput>,
    /// Whether outputs that do not say it are binary.
    pub binary: bool,
    pub event_time: Option<Timestamp>,
    pub timeout: Option<Duration>,
    pub priority: Priority,
    /// The parameters that mean something to the endpoint's routes at most, as texts.
    pub others: Vec<(String, String)>,
}

/// The tensors of a request.
pub(crate) enum RequestInputs {
    Tensors(Vec<Tensor>),
    /// The whole body is the one input's elements, one row of them.
    Whole(Bytes),
}

/// An output that is wanted.
#[derive(Debug)]
pub(crate) struct RequestedOutput {
    pub name: String,
    /// Whether it is sent behind the JSON; not said: as the request says for all.
    pub binary: Option<bool>,
    /// How many classes are wanted of each row instead of the elements.
    pub classes: Option<usize>,
}

/// Refuses a request that is part of a sequence: each would need the state that the one before it left.
///
/// # Errors
/// `InvalidRequest`.
pub(crate) fn refuse_sequence() -> Error {
    Error::invalid(
        "sequences (`sequence_id`, `sequence_start`, `sequence_end`) are not offered: models here have no state, so leave \
         these parameters out and send all that a prediction needs",
    )
}

/// Reads a body whose first `header_bytes` are JSON, all of it if that is not said.
///
/// # Errors
/// `InvalidRequest` that says what and where.
pub(crate) fn read(body: &Bytes, header_bytes: Option<usize>) -> Result<InferRequest> {
    let header_bytes = match header_bytes {
        Some(0) => {
            return Ok(InferRequest {
                id: None,
                inputs: RequestInputs::Whole(body.clone()),
                outputs: Vec::new(),
                binary: true,
                event_time: None,
                timeout: None,
                priority: Priority::default(),
                others: Vec::new(),
            });
        }
        Some(header_bytes) => header_bytes,
        None => body.len(),
    };
    let Some(header) = body.get(..header_bytes) else {
        return Err(Error::invalid(format!(
            "Inference-Header-Content-Length is {header_bytes}, and the body has {} bytes",
            body.len()
        )));
    };
    let request = WireRequest::<RequestParameters>::read(header)
        .map_err(|fault| Error::invalid(format!("the body is no inference request: {}", fault.describe(header))))?;
    if request.parameters.is_of_sequence() {
        return Err(refuse_sequence());
    }
    let mut binary = body.slice(header_bytes..);
    let inputs = request
        .inputs
        .into_iter()
        .map(|input| input.into_tensor(&mut binary))
        .collect::<Result<Vec<_>>>()?;
    if !binary.is_empty() {
        return Err(Error::invalid(format!(
            "{} bytes are behind the last input's binary data: binary_data_size says how many each has",
            binary.len()
        )));
    }
    let outputs = request.outputs.into_iter();
    Ok(InferRequest {
        id: request.id,
        inputs: RequestInputs::Tensors(inputs),
        outputs: outputs.map(WireOutput::into_requested).collect::<Result<_>>()?,
        binary: request.parameters.binary_data_output.unwrap_or(false),
        event_time: request.parameters.event_time,
        timeout: request
            .parameters
            .timeout
            .map(|timeout| Duration::from_micros(timeout.0)),
        priority: priority(request.parameters.priority.unwrap_or(0)),
        others: request.parameters.others,
    })
}

/// The one row that a whole body is, for a model with one input.
///
/// # Errors
/// `InvalidRequest` if the model has more inputs, or dimensions that the number of bytes does not tell.
pub(crate) fn whole_body(signature: &Signature, body: Bytes) -> Result<Vec<Tensor>> {
    let [input] = signature.inputs.as_slice() else {
        return Err(Error::invalid(format!(
            "a body without a JSON header is for models with one input, and this one has {}",
            signature.inputs.len()
        )));
    };
    let Some(size) = input.datatype.size_bytes() else {
        // One element, without its length.
        let shape = vec![1; input.shape.len().max(1)];
        let element = TensorData::Bytes(vec![body.into()]);
        return Ok(vec![Tensor::new(&input.name, shape, element)?]);
    };
    let mut shape = input.shape.clone();
    if let Some(first) = shape.first_mut().filter(|first| **first == -1) {
        *first = 1;
    }
    let known: i64 = shape.iter().filter(|&&dimension| dimension >= 0).product();
    let elements = (body.len() / size) as i64;
    let mut open = shape.iter_mut().filter(|dimension| **dimension == -1);
    if let Some(dimension) = open.next() {
        *dimension = elements.checked_div(known).unwrap_or(0);
    }
    if open.next().is_some() {
        return Err(Error::invalid(format!(
            "input `{}` has several open dimensions: send a JSON header with its shape",
            input.name
        )));
    }
    Ok(vec![Tensor::from_raw(&input.name, input.datatype, shape, body)?])
}

/// The parameters of a request: those that mean something here, and others, by which routes may be chosen.
#[derive(Default)]
struct RequestParameters {
    binary_data_output: Option<bool>,
    event_time: Option<Timestamp>,
    timeout: Option<Micros>,
    priority: Option<u64>,
    sequence_id: Option<SequenceId>,
    sequence_start: Option<bool>,
    sequence_end: Option<bool>,
    others: Vec<(String, String)>,
}

impl<'de> Deserialize<'de> for RequestParameters {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ParametersVisitor;
        impl<'de> Visitor<'de> for ParametersVisitor {
            type Value = RequestParameters;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of parameters")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RequestParameters, A::Error> {
                let mut read = RequestParameters::default();
                while let Some(name) = map.next_key::<Cow<'_, str>>()? {
                    match &*name {
                        "binary_data_output" => read.binary_data_output = map.next_value()?,
                        "event_time" => read.event_time = map.next_value()?,
                        "timeout" => read.timeout = map.next_value()?,
                        "priority" => read.priority = map.next_value()?,
                        "sequence_id" => read.sequence_id = map.next_value()?,
                        "sequence_start" => read.sequence_start = map.next_value()?,
                        "sequence_end" => read.sequence_end = map.next_value()?,
                        _ => {
                            let value = map.next_value::<Value>()?;
                            if let Some(text) = parameter_text(value)
                                && read.others.len() < MAX_OTHER_PARAMETERS
                            {
                                read.others.push((name.into_owned(), text));
                            }
                        }
                    }
                }
                Ok(read)
            }
        }
        deserializer.deserialize_map(ParametersVisitor)
    }
}

/// A parameter's value as JSON writes it, without quotation marks; parameters are no lists and no objects.
fn parameter_text(value: Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text),
        Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
        _ => None,
    }
}

/// A priority as Triton's clients send it: 1 is the most urgent, 0 says nothing, and whatever is above 2 can wait.
pub(crate) const fn priority(level: u64) -> Priority {
    match level {
        0 | 2 => Priority::Normal,
        1 => Priority::High,
        _ => Priority::Low,
    }
}

impl RequestParameters {
    /// Whether the request is part of a sequence; `0` and an empty text are the ids of none.
    fn is_of_sequence(&self) -> bool {
        let has_id = match &self.sequence_id {
            None => false,
            Some(SequenceId::Text(id)) => !id.is_empty(),
            Some(SequenceId::Other(id)) => id.as_u64() != Some(0),
        };
        has_id || self.sequence_start == Some(true) || self.sequence_end == Some(true)
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum SequenceId {
    Text(String),
    /// A number that is not zero, or whatever else somebody takes for an id, is one of a sequence.
    Other(Value),
}

/// Microseconds, as a number or, as some clients send it, as text.
struct Micros(u64);

impl<'de> Deserialize<'de> for Micros {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MicrosVisitor;
        impl Visitor<'_> for MicrosVisitor {
            type Value = Micros;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of microseconds")
            }
            fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Micros, E> {
                Ok(Micros(value))
            }
            fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Micros, E> {
                value
                    .parse()
                    .map(Micros)
                    .map_err(|_| E::custom("timeout is no number of microseconds"))
            }
        }
        deserializer.deserialize_any(MicrosVisitor)
    }
}

impl WireOutput {
    fn into_requested(self) -> Result<RequestedOutput> {
        if self.parameters.in_shared_memory {
            return Err(Error::invalid(format!(
                "output `{}`: shared memory is not offered: leave `shared_memory_region` out",
                self.name
            )));
        }
        Ok(RequestedOutput {
            name: self.name,
            binary: self.parameters.binary_data,
            classes: self.parameters.classification,
        })
    }
}

impl WireInput {
    fn into_tensor(self, binary: &mut Bytes) -> Result<Tensor> {
        let name = self.name;
        if self.parameters.in_shared_memory {
            return Err(Error::invalid(format!(
                "input `{name}`: shared memory is not offered: send the data"
            )));
        }
        match (self.parameters.binary_data_size, self.data) {
            (Some(_), Some(_)) => Err(Error::invalid(format!(
                "input `{name}` has both data and binary_data_size: send one"
            ))),
            (None, None) => Err(Error::invalid(format!(
                "input `{name}` has neither data nor binary_data_size"
            ))),
            (Some(size), None) => {
                if size > binary.len() {
                    return Err(Error::invalid(format!(
                        "input `{name}`: binary_data_size is {size}, and {} bytes are left",
                        binary.len()
                    )));
                }
                let bytes = binary.split_to(size);
                Ok(Tensor::from_raw(name, self.datatype, self.shape, bytes)?)
            }
            (None, Some(data)) => Ok(Tensor::new(name, self.shape, data)?),
        }
    }
}
