//! The part of the public ONNX schema that the benchmark's models need.

use prost::Message;

/// The element types that ONNX numbers.
const FLOAT: i32 = 1;
const INT64: i32 = 7;

/// The version of the file format, of the operators, and of those for trees.
const IR_VERSION: i64 = 9;
const OPSET: i64 = 20;
const TREE_OPSET: i64 = 3;
const TREE_DOMAIN: &str = "ai.onnx.ml";

#[derive(Clone, PartialEq, Message)]
struct Model {
    #[prost(int64, tag = "1")]
    ir_version: i64,
    #[prost(message, optional, tag = "7")]
    graph: Option<GraphProto>,
    #[prost(message, repeated, tag = "8")]
    opset_import: Vec<Opset>,
}

#[derive(Clone, PartialEq, Message)]
struct Opset {
    #[prost(string, tag = "1")]
    domain: String,
    #[prost(int64, tag = "2")]
    version: i64,
}

#[derive(Clone, PartialEq, Message)]
struct GraphProto {
    #[prost(message, repeated, tag = "1")]
    node: Vec<Node>,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(message, repeated, tag = "5")]
    initializer: Vec<TensorProto>,
    #[prost(message, repeated, tag = "11")]
    input: Vec<ValueInfo>,
    #[prost(message, repeated, tag = "12")]
    output: Vec<ValueInfo>,
}

#[derive(Clone, PartialEq, Message)]
struct Node {
    #[prost(string, repeated, tag = "1")]
    input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    output: Vec<String>,
    #[prost(string, tag = "4")]
    op_type: String,
    #[prost(message, repeated, tag = "5")]
    attribute: Vec<Attribute>,
    #[prost(string, tag = "7")]
    domain: String,
}

/// What tells an operator how to work.
#[derive(Clone, PartialEq, Message)]
pub struct Attribute {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(int64, optional, tag = "3")]
    int: Option<i64>,
    #[prost(float, repeated, tag = "7")]
    floats: Vec<f32>,
    #[prost(int64, repeated, tag = "8")]
    numbers: Vec<i64>,
    #[prost(bytes = "vec", repeated, tag = "9")]
    texts: Vec<Vec<u8>>,
    #[prost(int32, tag = "20")]
    kind: i32,
}

impl Attribute {
    /// A number.
    pub fn number(name: &str, value: i64) -> Self {
        Self {
            name: name.to_owned(),
            int: Some(value),
            kind: 2,
            ..Self::default()
        }
    }

    /// Several floats.
    pub fn floats(name: &str, floats: Vec<f32>) -> Self {
        Self {
            name: name.to_owned(),
            floats,
            kind: 6,
            ..Self::default()
        }
    }

    /// Several numbers.
    pub fn numbers(name: &str, numbers: Vec<i64>) -> Self {
        Self {
            name: name.to_owned(),
            numbers,
            kind: 7,
            ..Self::default()
        }
    }

    /// Several texts.
    pub fn texts(name: &str, texts: &[&str]) -> Self {
        Self {
            name: name.to_owned(),
            texts: texts.iter().map(|text| text.as_bytes().to_vec()).collect(),
            kind: 8,
            ..Self::default()
        }
    }
}

#[derive(Clone, PartialEq, Message)]
struct TensorProto {
    #[prost(int64, repeated, tag = "1")]
    dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    data_type: i32,
    #[prost(string, tag = "8")]
    name: String,
    #[prost(bytes = "vec", tag = "9")]
    raw_data: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct ValueInfo {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    value_type: Option<ValueType>,
}

#[derive(Clone, PartialEq, Message)]
struct ValueType {
    #[prost(message, optional, tag = "1")]
    tensor: Option<TensorType>,
}

#[derive(Clone, PartialEq, Message)]
struct TensorType {
    #[prost(int32, tag = "1")]
    element: i32,
    #[prost(message, optional, tag = "2")]
    shape: Option<Shape>,
}

#[derive(Clone, PartialEq, Message)]
struct Shape {
    #[prost(message, repeated, tag = "1")]
    dimension: Vec<Dimension>,
}

#[derive(Clone, PartialEq, Message)]
struct Dimension {
    #[prost(int64, optional, tag = "1")]
    value: Option<i64>,
    #[prost(string, optional, tag = "2")]
    name: Option<String>,
}

/// A graph as it grows.
#[derive(Default)]
pub struct Graph(GraphProto);

impl Graph {
    /// A graph without anything.
    pub fn new() -> Self {
        Self::default()
    }

    /// An input of floats; -1 is a free dimension.
    pub fn input_floats(&mut self, name: &str, shape: &[i64]) {
        self.0.input.push(value(name, FLOAT, shape));
    }

    /// An input of numbers.
    pub fn input_numbers(&mut self, name: &str, shape: &[i64]) {
        self.0.input.push(value(name, INT64, shape));
    }

    /// An output of floats.
    pub fn output_floats(&mut self, name: &str, shape: &[i64]) {
        self.0.output.push(value(name, FLOAT, shape));
    }

    /// Fixed floats.
    pub fn floats(&mut self, name: &str, shape: &[i64], values: &[f32]) {
        self.fixed(
            name,
            FLOAT,
            shape,
            values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        );
    }

    /// Fixed numbers.
    pub fn numbers(&mut self, name: &str, shape: &[i64], values: &[i64]) {
        self.fixed(
            name,
            INT64,
            shape,
            values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        );
    }

    fn fixed(&mut self, name: &str, data_type: i32, shape: &[i64], raw_data: Vec<u8>) {
        self.0.initializer.push(TensorProto {
            dims: shape.to_vec(),
            data_type,
            name: name.to_owned(),
            raw_data,
        });
    }

    /// An operator with one output.
    pub fn node(&mut self, op_type: &str, inputs: &[&str], output: &str) {
        self.node_with(op_type, inputs, output, Vec::new());
    }

    /// The same with attributes.
    pub fn node_with(&mut self, op_type: &str, inputs: &[&str], output: &str, attribute: Vec<Attribute>) {
        self.0.node.push(Node {
            input: inputs.iter().map(|&name| name.to_owned()).collect(),
            output: vec![output.to_owned()],
            op_type: op_type.to_owned(),
            attribute,
            domain: String::new(),
        });
    }

    /// An operator for trees.
    pub fn tree_node(&mut self, op_type: &str, input: &str, output: &str, attribute: Vec<Attribute>) {
        self.0.node.push(Node {
            input: vec![input.to_owned()],
            output: vec![output.to_owned()],
            op_type: op_type.to_owned(),
            attribute,
            domain: TREE_DOMAIN.to_owned(),
        });
    }

    /// The file.
    pub fn into_file(self) -> Vec<u8> {
        let opset = |domain: &str, version| Opset {
            domain: domain.to_owned(),
            version,
        };
        Model {
            ir_version: IR_VERSION,
            graph: Some(GraphProto {
                name: "benchmark".to_owned(),
                ..self.0
            }),
            opset_import: vec![opset("", OPSET), opset(TREE_DOMAIN, TREE_OPSET)],
        }
        .encode_to_vec()
    }
}

fn value(name: &str, element: i32, shape: &[i64]) -> ValueInfo {
    let dimension = |(axis, &size): (usize, &i64)| Dimension {
        value: (size >= 0).then_some(size),
        name: (size < 0).then(|| {
            if axis == 0 {
                "rows".to_owned()
            } else {
                format!("{name}_{axis}")
            }
        }),
    };
    ValueInfo {
        name: name.to_owned(),
        value_type: Some(ValueType {
            tensor: Some(TensorType {
                element,
                shape: Some(Shape {
                    dimension: shape.iter().enumerate().map(dimension).collect(),
                }),
            }),
        }),
    }
}
