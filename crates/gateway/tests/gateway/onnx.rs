//! The models of the tests, in the part of the public ONNX schema that they need.

use prost::Message;

const FLOAT: i32 = 1;
const INT64: i32 = 7;
const STRING: i32 = 8;

#[derive(Clone, PartialEq, Message)]
struct Model {
    #[prost(int64, tag = "1")]
    ir_version: i64,
    #[prost(message, optional, tag = "7")]
    graph: Option<Graph>,
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
struct Graph {
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
}

#[derive(Clone, PartialEq, Message)]
struct TensorProto {
    #[prost(int64, repeated, tag = "1")]
    dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    data_type: i32,
    #[prost(float, repeated, tag = "4")]
    float_data: Vec<f32>,
    #[prost(string, tag = "8")]
    name: String,
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

fn tensor(name: &str, element: i32, shape: &[i64]) -> ValueInfo {
    let dimension = shape.iter().enumerate().map(|(axis, &size)| Dimension {
        value: (size >= 0).then_some(size),
        name: (size < 0).then(|| format!("d{axis}")),
    });
    ValueInfo {
        name: name.to_owned(),
        value_type: Some(ValueType {
            tensor: Some(TensorType {
                element,
                shape: Some(Shape {
                    dimension: dimension.collect(),
                }),
            }),
        }),
    }
}

fn node(op_type: &str, inputs: &[&str], outputs: &[&str]) -> Node {
    Node {
        op_type: op_type.to_owned(),
        input: inputs.iter().map(|&name| name.to_owned()).collect(),
        output: outputs.iter().map(|&name| name.to_owned()).collect(),
    }
}

fn file(graph: Graph) -> Vec<u8> {
    Model {
        ir_version: 9,
        graph: Some(graph),
        opset_import: vec![Opset {
            domain: String::new(),
            version: 17,
        }],
    }
    .encode_to_vec()
}

/// `x` (FP32, two a row), `who` (one string a row) and `n` (one INT64 a row) in; `y = x * factor`, `name = who` and
/// `m = n` out. The factor tells the versions apart.
pub fn scale(factor: f32) -> Vec<u8> {
    file(Graph {
        node: vec![
            node("Mul", &["x", "factor"], &["y"]),
            node("Identity", &["who"], &["name"]),
            node("Identity", &["n"], &["m"]),
        ],
        name: "scale".to_owned(),
        initializer: vec![TensorProto {
            dims: vec![1],
            data_type: FLOAT,
            float_data: vec![factor],
            name: "factor".to_owned(),
        }],
        input: vec![
            tensor("x", FLOAT, &[-1, 2]),
            tensor("who", STRING, &[-1]),
            tensor("n", INT64, &[-1, 1]),
        ],
        output: vec![
            tensor("y", FLOAT, &[-1, 2]),
            tensor("name", STRING, &[-1]),
            tensor("m", INT64, &[-1, 1]),
        ],
    })
}

/// `x` (FP32, two a row) in, `y = x * factor` out.
pub fn simple(factor: f32) -> Vec<u8> {
    file(Graph {
        node: vec![node("Mul", &["x", "factor"], &["y"])],
        name: "simple".to_owned(),
        initializer: vec![TensorProto {
            dims: vec![1],
            data_type: FLOAT,
            float_data: vec![factor],
            name: "factor".to_owned(),
        }],
        input: vec![tensor("x", FLOAT, &[-1, 2])],
        output: vec![tensor("y", FLOAT, &[-1, 2])],
    })
}

/// As [`simple`], but each run takes a while: `steps` multiplications by a matrix of 256 x 256 that changes nothing.
pub fn slow(factor: f32, steps: usize) -> Vec<u8> {
    const WIDTH: usize = 256;
    let matrix = |rows: usize, columns: usize, diagonal: f32, name: &str| TensorProto {
        dims: vec![rows as i64, columns as i64],
        data_type: FLOAT,
        float_data: (0..rows * columns)
            .map(|cell| {
                if cell / columns == cell % columns {
                    diagonal
                } else {
                    0.0
                }
            })
            .collect(),
        name: name.to_owned(),
    };
    let name = |step: usize| format!("x{step}");
    let mut nodes = vec![node("MatMul", &["x", "widen"], &["x0"])];
    nodes.extend((0..steps).map(|step| node("MatMul", &[&name(step), "keep"], &[&name(step + 1)])));
    nodes.push(node("MatMul", &[&name(steps), "narrow"], &["y"]));
    file(Graph {
        node: nodes,
        name: "slow".to_owned(),
        initializer: vec![
            matrix(2, WIDTH, factor, "widen"),
            matrix(WIDTH, WIDTH, 1.0, "keep"),
            matrix(WIDTH, 2, 1.0, "narrow"),
        ],
        input: vec![tensor("x", FLOAT, &[-1, 2])],
        output: vec![tensor("y", FLOAT, &[-1, 2])],
    })
}
