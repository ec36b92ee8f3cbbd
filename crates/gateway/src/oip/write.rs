//! Answers, written in one pass.
//!
//! A float that is not finite has no JSON number: NaN is written as `null`, the infinities as `"Infinity"` and
//! `"-Infinity"`, which is what requests may contain as well. Clients that need each bit ask for binary outputs.

use bytes::Bytes;
use modelyard_inference::{DataType, Tensor, bf16, f16};
use serde::Serialize;

use super::{RequestedOutput, classify};
use crate::{
    error::{Error, Result},
    predict::Answer,
};

/// The room that an answer's JSON is given at first, beside its elements.
const JSON_BYTES: usize = 256;

/// From this size on, in bytes, tensors are sent as they are instead of being put behind the JSON first.
const LARGE_TAIL_BYTES: usize = 64 << 10;

/// An answer's body.
#[derive(Debug)]
pub(crate) struct Body {
    /// Its parts, one after the other: one, but for large tensors.
    pub parts: Vec<Bytes>,
    /// How many bytes of it are JSON, if tensors are behind it.
    pub header_bytes: Option<usize>,
}

impl Body {
    /// The bytes of all parts.
    pub(crate) fn length(&self) -> usize {
        self.parts.iter().map(Bytes::len).sum()
    }
}

/// Writes an answer with the outputs that are wanted, in the order in which they are.
///
/// # Errors
/// `Inference` if a string is longer than its binary form can say, `InvalidRequest` for classes of what has none.
pub(crate) fn write(mut answer: Answer, wanted: &[RequestedOutput], binary: bool) -> Result<Body> {
    let outputs = select(&mut answer, wanted)?;
    let outputs = outputs
        .into_iter()
        .map(|(output, wish)| (output, wish.unwrap_or(binary)));
    let outputs: Vec<(Tensor, bool)> = outputs.collect();
    let in_json = |(output, binary): &(Tensor, bool)| if *binary { 0 } else { output.elements() * 10 };
    let elements: usize = outputs.iter().map(|output| 64 + in_json(output)).sum();
    let mut json = Vec::with_capacity(JSON_BYTES + elements);
    json.extend_from_slice(b"{\"model_name\":");
    put(&mut json, &answer.endpoint.key.name);
    json.extend_from_slice(b",\"model_version\":");
    put(&mut json, &answer.version.text);
    json.extend_from_slice(b",\"id\":");
    put(&mut json, &answer.id);
    json.extend_from_slice(b",\"outputs\":[");
    let mut tail = Vec::new();
    for (index, (output, binary)) in outputs.into_iter().enumerate() {
        if index > 0 {
            json.push(b',');
        }
        write_output(&mut json, output, binary.then_some(&mut tail))?;
    }
    json.extend_from_slice(b"]}");
    let header_bytes = (!tail.is_empty()).then_some(json.len());
    let mut parts = Vec::with_capacity(1);
    if tail.iter().map(Bytes::len).sum::<usize>() < LARGE_TAIL_BYTES {
        for part in tail {
            json.extend_from_slice(&part);
        }
        parts.push(json.into());
    } else {
        parts.push(json.into());
        parts.extend(tail);
    }
    Ok(Body { parts, header_bytes })
}

/// The outputs that are wanted, out of an answer, each with whether it is wished to be binary.
///
/// # Errors
/// `InvalidRequest` for classes of what has none.
pub(crate) fn select(answer: &mut Answer, wanted: &[RequestedOutput]) -> Result<Vec<(Tensor, Option<bool>)>> {
    let mut outputs = std::mem::take(&mut answer.outputs);
    if wanted.is_empty() {
        return Ok(outputs.into_iter().map(|output| (output, None)).collect());
    }
    let by_row = answer.version.definition.is_by_row();
    let mut selected = Vec::with_capacity(wanted.len());
    for wish in wanted {
        if let Some(place) = outputs.iter().position(|output| output.name() == wish.name) {
            let output = outputs.swap_remove(place);
            let output = match wish.classes {
                Some(classes) => classify(&output, classes, by_row)?,
                None => output,
            };
            selected.push((output, wish.binary));
        }
    }
    Ok(selected)
}

fn write_output(json: &mut Vec<u8>, output: Tensor, tail: Option<&mut Vec<Bytes>>) -> Result<()> {
    json.extend_from_slice(b"{\"name\":");
    put(json, output.name());
    json.extend_from_slice(b",\"datatype\":\"");
    json.extend_from_slice(output.datatype().name().as_bytes());
    json.extend_from_slice(b"\",\"shape\":");
    put(json, output.shape());
    if let Some(tail) = tail {
        let raw = output.into_raw()?;
        json.extend_from_slice(b",\"parameters\":{\"binary_data_size\":");
        put(json, &raw.len());
        json.push(b'}');
        tail.push(raw);
    } else {
        json.extend_from_slice(b",\"data\":");
        write_elements(json, &output)?;
    }
    json.push(b'}');
    Ok(())
}

/// The elements as one flat array.
///
/// # Errors
/// `InvalidRequest` for bytes that are no text: JSON has no other strings.
pub(crate) fn write_elements(json: &mut Vec<u8>, tensor: &Tensor) -> Result<()> {
    macro_rules! numbers {
        ($type:ty) => {
            put(json, tensor.values::<$type>().unwrap_or_default().as_ref())
        };
    }
    match tensor.datatype() {
        DataType::Bool => numbers!(bool),
        DataType::Uint8 => numbers!(u8),
        DataType::Uint16 => numbers!(u16),
        DataType::Uint32 => numbers!(u32),
        DataType::Uint64 => numbers!(u64),
        DataType::Int8 => numbers!(i8),
        DataType::Int16 => numbers!(i16),
        DataType::Int32 => numbers!(i32),
        DataType::Int64 => numbers!(i64),
        DataType::Fp16 => write_floats(json, &tensor.values::<f16>().unwrap_or_default(), f16::to_f32),
        DataType::Bf16 => write_floats(json, &tensor.values::<bf16>().unwrap_or_default(), bf16::to_f32),
        DataType::Fp32 => write_floats(json, &tensor.values::<f32>().unwrap_or_default(), |value| value),
        DataType::Fp64 => write_floats(json, &tensor.values::<f64>().unwrap_or_default(), |value| value),
        DataType::Bytes => {
            let texts = tensor.strings().map_err(|_| {
                Error::invalid(format!(
                    "output `{}` has elements that are not UTF-8, which JSON cannot carry: ask for binary outputs",
                    tensor.name()
                ))
            })?;
            put(json, &texts);
        }
    }
    Ok(())
}

fn write_floats<T: Copy, F: Into<f64> + Copy + Serialize>(json: &mut Vec<u8>, values: &[T], number: impl Fn(T) -> F) {
    json.push(b'[');
    for (index, &value) in values.iter().enumerate() {
        if index > 0 {
            json.push(b',');
        }
        let value = number(value);
        let double: f64 = value.into();
        if double.is_infinite() {
            put(json, if double > 0.0 { "Infinity" } else { "-Infinity" });
        } else {
            // Shortest digits of the value's own width; NaN becomes null.
            put(json, &value);
        }
    }
    json.push(b']');
}

fn put<T: Serialize + ?Sized>(json: &mut Vec<u8>, value: &T) {
    // Numbers and texts go into memory without fail.
    let _ = serde_json::to_writer(json, value);
}
