//! The records of the spool: what one prediction leaves on disk.
//!
//! A segment is a row of frames: length, CRC-32 and a payload whose first byte tells its kind. The header and the
//! definitions are JSON, because they are rare; predictions are compact. A definition tells the names and datatypes of a
//! version's tensors, so that predictions need not repeat them.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use bytes::{Buf as _, Bytes};
use modelyard_inference::{DataType, Signature, Tensor, TensorData, TensorSpec};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::desired::{EndpointKey, VersionRef};

/// The format that this version writes and reads.
pub(super) const FORMAT: u32 = 1;

/// Length and CRC-32 before each payload.
pub(super) const FRAME_HEADER_BYTES: usize = 8;

/// The longest payload. A request's body is bounded, and so is what a model makes of it.
pub(super) const MAX_PAYLOAD_BYTES: usize = 1 << 30;

const KIND_HEADER: u8 = 0;
const KIND_DEFINITION: u8 = 1;
const KIND_LIVE: u8 = 2;
const KIND_SHADOW: u8 = 3;

/// Where a live record keeps its latency, behind the frame's header, the kind, the protocol and the definition's key.
const LATENCY_OFFSET: usize = FRAME_HEADER_BYTES + 1 + 1 + 4;

/// The first frame of a segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header {
    pub format: u32,
    pub segment: Uuid,
    pub endpoint: EndpointKey,
}

/// What a version's records mean.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Definition {
    /// What its records call it; unique within a segment.
    pub(super) key: u32,
    pub(super) version: VersionRef,
    /// Whether the first dimension of every tensor is the row; else a request is one row.
    pub(super) by_row: bool,
    pub(super) signature: Signature,
    /// Inputs and outputs whose values stay out of the table. They are in the spool, because shadows need them.
    #[serde(default)]
    pub(super) redact: Vec<String>,
}

impl Definition {
    /// The definition of a version that is in memory.
    pub(crate) fn new(version: &VersionRef, signature: &Signature, by_row: bool, redact: &[String]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        Self {
            // A process that loads four billion versions has wrapped; a segment holds few of them.
            key: NEXT.fetch_add(1, Ordering::Relaxed),
            version: version.clone(),
            by_row,
            signature: signature.clone(),
            redact: redact.to_vec(),
        }
    }

    /// Inputs and outputs whose values stay out of the table.
    pub(crate) fn redacted(&self) -> &[String] {
        &self.redact
    }

    /// Whether it is of this version, logged like this.
    pub(crate) fn is_of(&self, version: &VersionRef, redact: &[String]) -> bool {
        self.version == *version && self.redact == redact
    }

    /// What records call it.
    pub(crate) const fn key(&self) -> u32 {
        self.key
    }

    /// The version.
    pub(crate) const fn version(&self) -> &VersionRef {
        &self.version
    }

    /// Whether the first dimension of every tensor is the row.
    pub(crate) const fn is_by_row(&self) -> bool {
        self.by_row
    }

    /// The rows of a request with these inputs.
    fn rows(&self, inputs: &[Tensor]) -> usize {
        match inputs.first().and_then(Tensor::rows) {
            Some(rows) if self.by_row => rows,
            _ => 1,
        }
    }
}

/// How a request came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http,
    Grpc,
}

impl Protocol {
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
        }
    }

    const fn byte(self) -> u8 {
        match self {
            Self::Http => 0,
            Self::Grpc => 1,
        }
    }
}

/// What a request is, apart from its tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RequestFacts<'a> {
    pub id: &'a str,
    pub protocol: Protocol,
    /// Microseconds since the epoch.
    pub event_time_us: i64,
    /// Microseconds since the epoch.
    pub received_at_us: i64,
}

/// A record that is ready to be written, or nearly so.
#[derive(Debug)]
pub(crate) struct Encoded {
    /// The frame, its header still empty until it is sealed.
    frame: Vec<u8>,
    pub(super) rows: usize,
}

impl Encoded {
    fn begin(kind: u8, definition: &Definition, facts: &RequestFacts<'_>, capacity: usize) -> Vec<u8> {
        let mut frame = Vec::with_capacity(capacity);
        frame.extend_from_slice(&[0; FRAME_HEADER_BYTES]);
        frame.push(kind);
        frame.push(facts.protocol.byte());
        frame.extend_from_slice(&definition.key.to_le_bytes());
        // The latency is known later.
        frame.extend_from_slice(&[0; 8]);
        frame.extend_from_slice(&facts.event_time_us.to_le_bytes());
        frame.extend_from_slice(&facts.received_at_us.to_le_bytes());
        put_bytes(&mut frame, facts.id.as_bytes());
        frame
    }

    /// A live record with the inputs, in the order of the definition, before they are given away.
    pub(crate) fn live(definition: &Definition, facts: &RequestFacts<'_>, inputs: &[Tensor], owed: &[u32]) -> Self {
        let mut frame = Self::begin(KIND_LIVE, definition, facts, 96 + size_hint(inputs) * 2);
        put_varint(&mut frame, owed.len() as u64);
        for key in owed {
            frame.extend_from_slice(&key.to_le_bytes());
        }
        Self {
            rows: definition.rows(inputs),
            frame: put_inputs(frame, inputs),
        }
    }

    /// A shadow's record, for the live record at `of` and the place of the route among those it owes.
    pub(crate) fn shadow(definition: &Definition, facts: &RequestFacts<'_>, inputs: &[Tensor], of: Owed) -> Self {
        let mut frame = Self::begin(KIND_SHADOW, definition, facts, 128 + size_hint(inputs) * 2);
        frame.extend_from_slice(of.segment.as_bytes());
        frame.extend_from_slice(&of.index.to_le_bytes());
        frame.push(of.slot);
        Self {
            rows: definition.rows(inputs),
            frame: put_inputs(frame, inputs),
        }
    }

    /// Completes the record with the outputs and what they took. `None` if the outputs are not one for each row.
    pub(crate) fn finish(mut self, definition: &Definition, latency_us: u64, outputs: &[Tensor]) -> Option<Self> {
        if definition.by_row && outputs.iter().any(|output| output.rows() != Some(self.rows)) {
            return None;
        }
        put_tensors(&mut self.frame, outputs);
        if let Some(place) = self.frame.get_mut(LATENCY_OFFSET..LATENCY_OFFSET + 8) {
            place.copy_from_slice(&latency_us.to_le_bytes());
        }
        seal(&mut self.frame);
        Some(self)
    }

    /// How large it is, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.frame.len() as u64
    }

    /// The finished frame.
    pub(super) fn frame(&self) -> &[u8] {
        &self.frame
    }

    /// Whether it is a live one.
    pub(super) fn is_live(&self) -> bool {
        self.frame.get(FRAME_HEADER_BYTES) == Some(&KIND_LIVE)
    }

    /// A copy of the finished payload.
    pub(crate) fn payload(&self) -> Bytes {
        Bytes::copy_from_slice(self.frame.get(FRAME_HEADER_BYTES..).unwrap_or_default())
    }
}

/// A shadow's answer that a live record asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Owed {
    /// The live record's segment.
    pub segment: Uuid,
    /// The live record's place among the live records of its segment.
    pub index: u32,
    /// The route's place among those that the record owes.
    pub slot: u8,
}

/// A frame of JSON.
fn json_frame(kind: u8, value: &impl Serialize) -> Vec<u8> {
    let mut frame = vec![0; FRAME_HEADER_BYTES];
    frame.push(kind);
    // Plain structs of texts and numbers go into memory without fail.
    let _ = serde_json::to_writer(&mut frame, value);
    seal(&mut frame);
    frame
}

pub(super) fn header_frame(header: &Header) -> Vec<u8> {
    json_frame(KIND_HEADER, header)
}

pub(super) fn definition_frame(definition: &Definition) -> Vec<u8> {
    json_frame(KIND_DEFINITION, definition)
}

/// Fills in a frame's header.
fn seal(frame: &mut [u8]) {
    if let Some((header, payload)) = frame.split_first_chunk_mut::<FRAME_HEADER_BYTES>() {
        let length = (payload.len() as u32).to_le_bytes();
        let crc = crc32fast::hash(payload).to_le_bytes();
        header[..4].copy_from_slice(&length);
        header[4..].copy_from_slice(&crc);
    }
}

/// A rough number of bytes that tensors take.
fn size_hint(tensors: &[Tensor]) -> usize {
    tensors.iter().map(|tensor| 12 + tensor.elements() * 8).sum()
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_inputs(mut frame: Vec<u8>, inputs: &[Tensor]) -> Vec<u8> {
    put_tensors(&mut frame, inputs);
    frame
}

fn put_tensors(out: &mut Vec<u8>, tensors: &[Tensor]) {
    put_varint(out, tensors.len() as u64);
    for tensor in tensors {
        put_varint(out, tensor.shape().len() as u64);
        for &dimension in tensor.shape() {
            put_varint(out, dimension as u64);
        }
        put_elements(out, tensor);
    }
}

/// The elements in the protocol's raw form, behind their length.
fn put_elements(out: &mut Vec<u8>, tensor: &Tensor) {
    macro_rules! numbers {
        ($values:expr) => {{
            put_varint(out, size_of_val($values.as_slice()) as u64);
            out.extend($values.iter().flat_map(|value| value.to_le_bytes()));
        }};
    }
    match tensor.data() {
        TensorData::Raw(bytes) => put_bytes(out, bytes),
        TensorData::Uint8(values) => put_bytes(out, values),
        TensorData::Bool(values) => {
            put_varint(out, values.len() as u64);
            out.extend(values.iter().map(|&value| u8::from(value)));
        }
        TensorData::Bytes(values) => {
            let bytes: usize = values.iter().map(|value| 4 + value.len()).sum();
            put_varint(out, bytes as u64);
            for value in values {
                out.extend_from_slice(&(value.len() as u32).to_le_bytes());
                out.extend_from_slice(value);
            }
        }
        TensorData::Uint16(values) => numbers!(values),
        TensorData::Uint32(values) => numbers!(values),
        TensorData::Uint64(values) => numbers!(values),
        TensorData::Int8(values) => numbers!(values),
        TensorData::Int16(values) => numbers!(values),
        TensorData::Int32(values) => numbers!(values),
        TensorData::Int64(values) => numbers!(values),
        TensorData::Fp16(values) => numbers!(values),
        TensorData::Bf16(values) => numbers!(values),
        TensorData::Fp32(values) => numbers!(values),
        TensorData::Fp64(values) => numbers!(values),
    }
}

/// A payload that was read.
#[derive(Debug)]
pub(super) enum Payload {
    Header(Header),
    Definition(Definition),
    Prediction(Box<RawPrediction>),
}

/// A prediction whose tensors are still bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RawPrediction {
    pub(super) definition: u32,
    pub(super) protocol: Protocol,
    pub(super) latency_us: u64,
    pub(super) event_time_us: i64,
    pub(super) received_at_us: i64,
    pub(super) id: String,
    pub(super) part: Part,
    tensors: Bytes,
}

/// Which side of the traffic a prediction is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    /// The client got it; these definitions' shadows are owed.
    Live(Vec<u32>),
    /// A shadow's, for this live record.
    Shadow(Owed),
}

/// Reads a payload. `None` if it is not one of this format.
pub(super) fn read_payload(mut payload: Bytes) -> Option<Payload> {
    if payload.is_empty() {
        return None;
    }
    Some(match payload.get_u8() {
        KIND_HEADER => Payload::Header(serde_json::from_slice(&payload).ok()?),
        KIND_DEFINITION => Payload::Definition(serde_json::from_slice(&payload).ok()?),
        kind @ (KIND_LIVE | KIND_SHADOW) => Payload::Prediction(Box::new(read_prediction(kind, payload)?)),
        _ => return None,
    })
}

/// Reads the payload of a live record.
pub(crate) fn read_live(mut payload: Bytes) -> Option<RawPrediction> {
    (payload.try_get_u8().ok()? == KIND_LIVE)
        .then(|| read_prediction(KIND_LIVE, payload))
        .flatten()
}

fn read_prediction(kind: u8, mut bytes: Bytes) -> Option<RawPrediction> {
    let protocol = match bytes.try_get_u8().ok()? {
        0 => Protocol::Http,
        1 => Protocol::Grpc,
        _ => return None,
    };
    let definition = bytes.try_get_u32_le().ok()?;
    let latency_us = bytes.try_get_u64_le().ok()?;
    let event_time_us = bytes.try_get_i64_le().ok()?;
    let received_at_us = bytes.try_get_i64_le().ok()?;
    let id = String::from_utf8(take_bytes(&mut bytes)?.to_vec()).ok()?;
    let part = if kind == KIND_LIVE {
        let owed = take_varint(&mut bytes)?;
        let keys = (0..owed).map(|_| bytes.try_get_u32_le().ok());
        Part::Live(keys.collect::<Option<_>>()?)
    } else {
        Part::Shadow(Owed {
            segment: Uuid::from_bytes(bytes.try_get_u128().ok()?.to_be_bytes()),
            index: bytes.try_get_u32_le().ok()?,
            slot: bytes.try_get_u8().ok()?,
        })
    };
    Some(RawPrediction {
        definition,
        protocol,
        latency_us,
        event_time_us,
        received_at_us,
        id,
        part,
        tensors: bytes,
    })
}

impl RawPrediction {
    /// What the request was.
    pub(crate) fn facts(&self) -> RequestFacts<'_> {
        RequestFacts {
            id: &self.id,
            protocol: self.protocol,
            event_time_us: self.event_time_us,
            received_at_us: self.received_at_us,
        }
    }

    /// The inputs. `None` if they do not fit the definition.
    pub(crate) fn inputs(&self, definition: &Definition) -> Option<Vec<Tensor>> {
        take_tensors(&mut self.tensors.clone(), &definition.signature.inputs)
    }

    /// Rows, inputs and outputs. `None` if they do not fit the definition.
    pub(super) fn read(&self, definition: &Definition) -> Option<(usize, Vec<Tensor>, Vec<Tensor>)> {
        let mut bytes = self.tensors.clone();
        let inputs = take_tensors(&mut bytes, &definition.signature.inputs)?;
        let outputs = take_tensors(&mut bytes, &definition.signature.outputs)?;
        Some((definition.rows(&inputs), inputs, outputs))
    }
}

fn take_varint(bytes: &mut Bytes) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = bytes.try_get_u8().ok()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn take_bytes(bytes: &mut Bytes) -> Option<Bytes> {
    let length = usize::try_from(take_varint(bytes)?).ok()?;
    (length <= bytes.len()).then(|| bytes.split_to(length))
}

fn take_tensors(bytes: &mut Bytes, specs: &[TensorSpec]) -> Option<Vec<Tensor>> {
    if take_varint(bytes)? != specs.len() as u64 {
        return None;
    }
    specs
        .iter()
        .map(|spec| {
            let rank = take_varint(bytes)?;
            let shape = (0..rank)
                .map(|_| i64::try_from(take_varint(bytes)?).ok())
                .collect::<Option<Vec<_>>>()?;
            take_tensor(bytes, &spec.name, spec.datatype, shape)
        })
        .collect()
}

fn take_tensor(bytes: &mut Bytes, name: &str, datatype: DataType, shape: Vec<i64>) -> Option<Tensor> {
    Tensor::from_raw(name, datatype, shape, take_bytes(bytes)?).ok()
}

/// Definitions by the key that records call them.
pub(super) type Definitions = std::collections::HashMap<u32, Arc<Definition>>;

#[cfg(test)]
mod tests {
    use modelyard_artifacts::Digest;
    use modelyard_inference::{bf16, f16};
    use proptest::prelude::*;

    use super::*;

    fn tensor() -> impl Strategy<Value = TensorData> {
        const ROWS: usize = 3;
        let many = |range| proptest::collection::vec(range, ROWS);
        prop_oneof![
            many(any::<f32>()).prop_map(TensorData::Fp32),
            proptest::collection::vec(any::<f64>(), ROWS).prop_map(TensorData::Fp64),
            proptest::collection::vec(any::<i64>(), ROWS).prop_map(TensorData::Int64),
            proptest::collection::vec(any::<i8>(), ROWS).prop_map(TensorData::Int8),
            proptest::collection::vec(any::<u16>(), ROWS).prop_map(TensorData::Uint16),
            proptest::collection::vec(any::<u8>(), ROWS).prop_map(TensorData::Uint8),
            proptest::collection::vec(any::<bool>(), ROWS).prop_map(TensorData::Bool),
            proptest::collection::vec(any::<u16>().prop_map(f16::from_bits), ROWS).prop_map(TensorData::Fp16),
            proptest::collection::vec(any::<u16>().prop_map(bf16::from_bits), ROWS).prop_map(TensorData::Bf16),
            proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..9), ROWS).prop_map(TensorData::Bytes),
        ]
    }

    fn specs(tensors: &[Tensor]) -> Vec<TensorSpec> {
        let spec = |tensor: &Tensor| TensorSpec {
            name: tensor.name().to_owned(),
            datatype: tensor.datatype(),
            shape: vec![-1],
        };
        tensors.iter().map(spec).collect()
    }

    fn raw(tensors: Vec<Tensor>) -> Vec<Bytes> {
        tensors.into_iter().map(|tensor| tensor.into_raw().unwrap()).collect()
    }

    proptest! {
        #[test]
        fn predictions_survive_their_bytes(
            inputs in proptest::collection::vec(tensor(), 1..5),
            outputs in proptest::collection::vec(tensor(), 1..3),
            id in ".{0,40}",
            latency in any::<u64>(),
            times in any::<(i64, i64)>(),
            owed in proptest::collection::vec(any::<u32>(), 0..3),
        ) {
            let named = |data: Vec<TensorData>| -> Vec<Tensor> {
                let each = data.into_iter().enumerate();
                each.map(|(index, data)| Tensor::new(format!("t{index}"), vec![3], data).unwrap()).collect()
            };
            let (inputs, outputs) = (named(inputs), named(outputs));
            let version = VersionRef { model: "m".to_owned(), version: 1, digest: Digest::of(b"m"), bundle: None };
            let signature = Signature { inputs: specs(&inputs), outputs: specs(&outputs) };
            let definition = Definition::new(&version, &signature, true, &[]);
            let facts = RequestFacts {
                id: &id, protocol: Protocol::Grpc, event_time_us: times.0, received_at_us: times.1,
            };
            let of = Owed { segment: Uuid::from_u128(7), index: 9, slot: 1 };
            for (encoded, part) in [
                (Encoded::live(&definition, &facts, &inputs, &owed), Part::Live(owed.clone())),
                (Encoded::shadow(&definition, &facts, &inputs, of), Part::Shadow(of)),
            ] {
                let payload = encoded.finish(&definition, latency, &outputs).unwrap().payload();
                let Some(Payload::Prediction(read)) = read_payload(payload.clone()) else {
                    return Err(TestCaseError::fail("it is no prediction"));
                };
                prop_assert_eq!(&read.part, &part);
                prop_assert_eq!(read.facts(), facts.clone());
                prop_assert_eq!(read.latency_us, latency);
                let (rows, read_inputs, read_outputs) = read.read(&definition).unwrap();
                prop_assert_eq!(rows, 3);
                prop_assert_eq!(raw(read_inputs), raw(inputs.clone()));
                prop_assert_eq!(raw(read_outputs), raw(outputs.clone()));
                // Cut anywhere, it is refused or incomplete, and never a panic.
                for end in 0..payload.len() {
                    if let Some(Payload::Prediction(cut)) = read_payload(payload.slice(..end)) {
                        prop_assert_eq!(cut.read(&definition), None);
                    }
                }
            }
        }
    }

    #[test]
    fn outputs_that_are_not_by_row_are_refused() {
        let inputs = vec![Tensor::zeros("x", DataType::Fp32, vec![2]).unwrap()];
        let outputs = vec![Tensor::zeros("y", DataType::Fp32, vec![1]).unwrap()];
        let version = VersionRef {
            model: "m".to_owned(),
            version: 1,
            digest: Digest::of(b"m"),
            bundle: None,
        };
        let signature = Signature {
            inputs: specs(&inputs),
            outputs: specs(&outputs),
        };
        let facts = RequestFacts {
            id: "a",
            protocol: Protocol::Http,
            event_time_us: 0,
            received_at_us: 0,
        };
        for (by_row, accepted) in [(true, false), (false, true)] {
            let definition = Definition::new(&version, &signature, by_row, &[]);
            let encoded = Encoded::live(&definition, &facts, &inputs, &[]);
            assert_eq!(encoded.finish(&definition, 1, &outputs).is_some(), accepted);
        }
    }
}
