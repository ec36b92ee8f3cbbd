//! ONNX models: whether a file is one, and its signature.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{Read, Seek},
    path::Path,
};

use prost::Message;
use serde_json::{Value, json};

use super::wire::{Field, Wire, WireError};
use crate::{
    error::{Error, Result},
    model::registered_model::MAX_SIGNATURE_BYTES,
};

/// The largest description of one input or output, in bytes.
const MAX_VALUE_BYTES: u64 = 1 << 20;
/// The longest name of a constant, in bytes.
const MAX_NAME_BYTES: u64 = 64 * 1024;
/// The most inputs, and the most outputs, of a model.
const MAX_VALUES: usize = 10_000;
/// The largest descriptions of all inputs and outputs together, in bytes. In memory they take many times as much.
const MAX_ALL_VALUES_BYTES: u64 = 4 << 20;
/// The most constants of a model whose names are kept.
const MAX_CONSTANTS: usize = 1_000_000;
/// The longest names of all constants together, in bytes.
const MAX_ALL_NAMES_BYTES: u64 = 64 << 20;

// Field numbers of the public ONNX schema.
const MODEL_IR_VERSION: u32 = 1;
const MODEL_GRAPH: u32 = 7;
const MODEL_OPSET: u32 = 8;
const GRAPH_NODE: u32 = 1;
const GRAPH_INITIALIZER: u32 = 5;
const GRAPH_INPUT: u32 = 11;
const GRAPH_OUTPUT: u32 = 12;
const TENSOR_NAME: u32 = 8;
const TENSOR_LOCATION: u32 = 14;
/// The content of a constant is in another file.
const EXTERNAL: u64 = 1;

/// `ValueInfoProto`, as far as a signature needs it.
#[derive(Clone, PartialEq, Message)]
struct ValueInfo {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    value_type: Option<ValueType>,
}

/// `TypeProto`.
#[derive(Clone, PartialEq, Message)]
struct ValueType {
    #[prost(message, optional, tag = "1")]
    tensor: Option<TensorType>,
}

/// `TypeProto.Tensor`.
#[derive(Clone, PartialEq, Message)]
struct TensorType {
    #[prost(int32, tag = "1")]
    element: i32,
    #[prost(message, optional, tag = "2")]
    shape: Option<Shape>,
}

/// `TensorShapeProto`.
#[derive(Clone, PartialEq, Message)]
struct Shape {
    #[prost(message, repeated, tag = "1")]
    dimensions: Vec<Dimension>,
}

/// `TensorShapeProto.Dimension`; a named or missing size is open.
#[derive(Clone, PartialEq, Message)]
struct Dimension {
    #[prost(int64, optional, tag = "1")]
    size: Option<i64>,
}

/// What was found in a graph.
#[derive(Default)]
struct Graph {
    nodes: u64,
    inputs: Vec<ValueInfo>,
    outputs: Vec<ValueInfo>,
    constants: BTreeSet<String>,
    is_external: bool,
    /// What was read of inputs and outputs.
    value_bytes: u64,
    /// What was read of names of constants.
    name_bytes: u64,
}

/// What a model takes and gives.
#[derive(Debug, Clone, PartialEq)]
pub struct Description {
    /// Its signature, as MLflow writes it.
    pub signature: Value,
    /// Whether its weights are in other files beside it, which are not read when it is served.
    pub is_external: bool,
}

/// Reads the signature of the model at `path`, which has all of its weights in it. `digest` names the model in errors.
pub fn read_signature(path: &Path, digest: &str) -> Result<Value> {
    let description = read_description(path, digest)?;
    if description.is_external {
        return Err(Error::request(format!(
            "artifact {digest} cannot be served: its weights are in other files (external data); save the model as one ONNX \
             file, or import the folder with all of its files, to keep it without serving it"
        )));
    }
    Ok(description.signature)
}

/// Reads the signature of the model at `path`. The weights are passed over, so that this takes little memory whatever the
/// model's size.
pub fn read_description(path: &Path, digest: &str) -> Result<Description> {
    let file = File::open(path)?;
    let size_bytes = file.metadata()?.len();
    let refuse = |problem: String| Error::NotOnnx {
        digest: digest.to_owned(),
        problem,
    };
    let graph = match read_model(&mut Wire::new(file, size_bytes)) {
        Ok(graph) => graph,
        Err(WireError::Malformed(problem)) => return Err(refuse(problem)),
        Err(WireError::Io(error)) => return Err(error.into()),
    };
    // Until IR version 4 a graph listed its constants among its inputs, too.
    let inputs: Vec<_> = graph
        .inputs
        .iter()
        .filter(|input| !graph.constants.contains(&input.name))
        .collect();
    if inputs.is_empty() {
        return Err(refuse("its graph has no input".to_owned()));
    }
    if graph.outputs.is_empty() {
        return Err(refuse("its graph has no output".to_owned()));
    }
    if graph.nodes == 0 {
        return Err(refuse("its graph computes nothing".to_owned()));
    }
    let inputs = inputs.into_iter().map(|input| entry(input, true));
    let outputs = graph.outputs.iter().map(|output| entry(output, false));
    let signature = json!({
        "inputs": inputs.collect::<Result<Vec<_>, String>>().map_err(refuse)?,
        "outputs": outputs.collect::<Result<Vec<_>, String>>().map_err(refuse)?,
    });
    let signature_bytes = signature.to_string().len();
    if signature_bytes > MAX_SIGNATURE_BYTES {
        return Err(refuse(format!(
            "its inputs and outputs take {signature_bytes} bytes to describe, more than {MAX_SIGNATURE_BYTES}"
        )));
    }
    Ok(Description {
        signature,
        is_external: graph.is_external,
    })
}

fn read_model<R: Read + Seek>(wire: &mut Wire<R>) -> Result<Graph, WireError> {
    let missing = |what: &str| WireError::Malformed(format!("it has no {what}"));
    let (mut graph, mut version, mut opsets) = (None, 0, 0_u64);
    let end = wire.end();
    while let Some(field) = wire.next(end)? {
        match field {
            Field::Number { number, value } if number == MODEL_IR_VERSION => version = value,
            Field::Bytes { number, length } if number == MODEL_GRAPH => {
                let graph_end = wire.position() + length;
                graph = Some(read_graph(wire, graph_end)?);
            }
            Field::Bytes { number, length } => {
                opsets += u64::from(number == MODEL_OPSET);
                wire.skip(length, end)?;
            }
            _ => {}
        }
    }
    let graph = graph.ok_or_else(|| missing("graph"))?;
    if version == 0 {
        return Err(missing("version"));
    }
    if opsets == 0 {
        return Err(missing("operator set"));
    }
    Ok(graph)
}

fn read_graph<R: Read + Seek>(wire: &mut Wire<R>, end: u64) -> Result<Graph, WireError> {
    let mut graph = Graph::default();
    while let Some(field) = wire.next(end)? {
        let Field::Bytes { number, length } = field else {
            continue;
        };
        match number {
            GRAPH_INPUT | GRAPH_OUTPUT => {
                let what = "inputs and outputs";
                spend(&mut graph.value_bytes, length, MAX_ALL_VALUES_BYTES, what)?;
                let values = if number == GRAPH_INPUT {
                    &mut graph.inputs
                } else {
                    &mut graph.outputs
                };
                values.push(read_value(wire, length, values.len())?);
            }
            GRAPH_INITIALIZER => {
                let constant_end = wire.position() + length;
                if graph.constants.len() >= MAX_CONSTANTS {
                    return Err(WireError::Malformed(format!("it has over {MAX_CONSTANTS} constants")));
                }
                let (name, is_external) = read_constant(wire, constant_end)?;
                let name_bytes = name.as_ref().map_or(0, |name| name.len() as u64);
                spend(
                    &mut graph.name_bytes,
                    name_bytes,
                    MAX_ALL_NAMES_BYTES,
                    "constants' names",
                )?;
                graph.constants.extend(name);
                graph.is_external |= is_external;
            }
            _ => {
                graph.nodes += u64::from(number == GRAPH_NODE);
                wire.skip(length, end)?;
            }
        }
    }
    Ok(graph)
}

/// Counts what was read of one kind.
fn spend(total: &mut u64, length: u64, limit: u64, what: &str) -> Result<(), WireError> {
    *total = total.saturating_add(length);
    if *total > limit {
        return Err(WireError::Malformed(format!(
            "its {what} have over {limit} bytes together"
        )));
    }
    Ok(())
}

fn read_value<R: Read + Seek>(wire: &mut Wire<R>, length: u64, before: usize) -> Result<ValueInfo, WireError> {
    if before >= MAX_VALUES {
        return Err(WireError::Malformed(format!(
            "it has over {MAX_VALUES} inputs or outputs"
        )));
    }
    let bytes = wire.read(length, MAX_VALUE_BYTES, "an input or output")?;
    ValueInfo::decode(bytes.as_slice())
        .map_err(|_| WireError::Malformed("its inputs or outputs cannot be read".to_owned()))
}

/// The name of a constant, and whether its content is in another file.
fn read_constant<R: Read + Seek>(wire: &mut Wire<R>, end: u64) -> Result<(Option<String>, bool), WireError> {
    let (mut name, mut is_external) = (None, false);
    while let Some(field) = wire.next(end)? {
        match field {
            Field::Bytes { number, length } if number == TENSOR_NAME => {
                let bytes = wire.read(length, MAX_NAME_BYTES, "the name of a constant")?;
                name = String::from_utf8(bytes).ok();
            }
            Field::Bytes { length, .. } => wire.skip(length, end)?,
            Field::Number { number, value } if number == TENSOR_LOCATION => is_external = value == EXTERNAL,
            _ => {}
        }
    }
    Ok((name, is_external))
}

/// The names of an element type in MLflow's column and tensor signatures; a tensor's name is NumPy's.
fn element_names(element: i32) -> Option<(Option<&'static str>, &'static str)> {
    Some(match element {
        1 => (Some("float"), "float32"),
        2 => (Some("integer"), "uint8"),
        3 => (Some("integer"), "int8"),
        4 => (Some("integer"), "uint16"),
        5 => (Some("integer"), "int16"),
        6 => (Some("integer"), "int32"),
        7 => (Some("long"), "int64"),
        8 => (Some("string"), "object"),
        9 => (Some("boolean"), "bool"),
        10 => (None, "float16"),
        11 => (Some("double"), "float64"),
        12 => (Some("long"), "uint32"),
        13 => (None, "uint64"),
        14 => (None, "complex64"),
        15 => (None, "complex128"),
        16 => (None, "bfloat16"),
        _ => return None,
    })
}

/// One entry of a signature: a column where there is one value for each row, else a tensor.
fn entry(value: &ValueInfo, required: bool) -> Result<Value, String> {
    let name = &value.name;
    if name.is_empty() {
        return Err("an input or output has no name".to_owned());
    }
    let tensor = value
        .value_type
        .as_ref()
        .and_then(|value_type| value_type.tensor.as_ref());
    let (tensor, (column, dtype)) = tensor
        .and_then(|tensor| Some((tensor, element_names(tensor.element)?)))
        .ok_or_else(|| format!("`{name}` is not a tensor of a type that can be served"))?;
    let dimensions = tensor.shape.iter().flat_map(|shape| &shape.dimensions);
    let sizes: Vec<i64> = dimensions.map(|dimension| dimension.size.unwrap_or(-1)).collect();
    let mut entry = match (column, sizes.as_slice()) {
        (Some(column), [-1] | [-1, 1]) => json!({"name": name, "type": column}),
        _ => json!({"name": name, "type": "tensor", "tensor-spec": {"dtype": dtype, "shape": sizes}}),
    };
    if required && let Some(entry) = entry.as_object_mut() {
        entry.insert("required".to_owned(), true.into());
    }
    Ok(entry)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fixture;

    fn read(content: &[u8]) -> Result<Value> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        read_signature(file.path(), "sha256:00")
    }

    #[test]
    fn the_signature_is_the_graphs() {
        let signature = read(&fixture::onnx_model()).unwrap();
        assert_eq!(
            signature,
            json!({
                "inputs": [
                    {"name": "carrier", "type": "string", "required": true},
                    {"name": "distance", "type": "double", "required": true},
                ],
                "outputs": [
                    {"name": "label", "type": "long"},
                    {"name": "probabilities", "type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 2]}},
                ],
            })
        );
    }

    #[test]
    fn what_is_no_model_is_named() {
        let model = fixture::onnx_model();
        let cases: [(&[u8], &str); 5] = [
            (b"", "it has no graph"),
            (b"PAR1 and other things, none of them a model", "it is"),
            (b"carrier,distance\nUA,1\n", "it is"),
            (&model[..model.len() / 2], "cut off"),
            (&[0x3a, 0x00, 0x08, 0x08, 0x42, 0x00], "no input"),
        ];
        for (content, named) in cases {
            let error = read(content).unwrap_err().to_string();
            assert!(error.contains("artifact sha256:00 is not an ONNX model"), "{error}");
            assert!(error.contains(named), "{named}: {error}");
        }
    }

    #[test]
    fn weights_in_other_files_are_noticed() {
        // A graph with the constant `w`, whose location is the last byte.
        for (location, is_external) in [(1, true), (0, false)] {
            let graph = vec![0x2a, 0x05, 0x42, 0x01, b'w', 0x70, location];
            let mut wire = Wire::new(std::io::Cursor::new(graph), 7);
            let end = wire.end();
            let read = read_graph(&mut wire, end).unwrap();
            assert_eq!(read.is_external, is_external);
            assert!(read.constants.contains("w"));
        }
    }

    /// A model of this graph.
    fn model(graph: &[u8]) -> Vec<u8> {
        [&[0x08, 0x08][..], &field(7, graph), &[0x42, 0x00]].concat()
    }

    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        let mut field = vec![number << 3 | 2];
        prost::encode_length_delimiter(content.len(), &mut field).unwrap();
        field.extend_from_slice(content);
        field
    }

    #[test]
    fn what_is_kept_of_a_graph_is_bounded() {
        let node = field(1, &[]);
        // An input of so many open dimensions.
        let input = |name: &str, rank: usize| {
            let shape = [0x0a, 0x00].repeat(rank);
            let tensor = [&[0x08, 0x01][..], &field(2, &shape)].concat();
            field(11, &[field(1, name.as_bytes()), field(2, &field(1, &tensor))].concat())
        };
        let output = field(12, &[field(1, b"y"), field(2, &field(1, &[0x08, 0x01]))].concat());
        let refused = |graph: &[Vec<u8>]| read(&model(&graph.concat())).unwrap_err().to_string();
        assert!(read(&model(&[node.clone(), input("x", 1000), output.clone()].concat())).is_ok());
        let error = refused(&[node.clone(), input("x", 400_000), output.clone()]);
        assert!(error.contains("more than 1048576"), "{error}");
        let wide = input("x", 500_000).repeat(5);
        let error = refused(&[node.clone(), wide, output.clone()]);
        assert!(
            error.contains("inputs and outputs have over 4194304 bytes together"),
            "{error}"
        );
        let mut constants = Vec::new();
        for number in 0..1100 {
            let name = format!("{number:065000}");
            constants.extend(field(5, &field(8, name.as_bytes())));
        }
        let error = refused(&[node, constants, input("x", 1), output]);
        assert!(error.contains("constants' names have over"), "{error}");
    }

    proptest! {
        #[test]
        fn no_bytes_bring_it_down(content: Vec<u8>, cut in 0_usize..400, flip in 0_usize..400) {
            let _ = read(&content);
            let mut model = fixture::onnx_model();
            let length = model.len();
            model[flip % length] ^= 0x55;
            model.truncate(length - cut % length);
            let _ = read(&model);
        }
    }
}
