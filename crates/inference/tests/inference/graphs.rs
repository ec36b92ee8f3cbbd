//! The models of the tests.

use modelyard_inference::{Model, ModelOptions, Result, Runtime};

use crate::onnx::{Attribute, Entry, Graph, MapType, Node, SequenceType, TensorProto, ValueInfo, ValueType};
use crate::onnx::{element, file, floats, node, tensor};

/// Loads a model with one session.
pub fn load(bytes: &[u8]) -> Result<Model> {
    load_with(bytes, 1)
}

/// Loads a model with so many sessions.
pub fn load_with(bytes: &[u8], instances: usize) -> Result<Model> {
    let options = ModelOptions {
        instances,
        ..ModelOptions::single()
    };
    Model::from_bytes(&Runtime::load()?, bytes, options)
}

fn graph(nodes: Vec<Node>, inputs: Vec<ValueInfo>, outputs: Vec<ValueInfo>, fixed: Vec<TensorProto>) -> Vec<u8> {
    file(Graph {
        node: nodes,
        input: inputs,
        output: outputs,
        initializer: fixed,
        ..Graph::default()
    })
}

fn with(mut node: Node, attribute: Attribute) -> Node {
    node.attribute.push(attribute);
    node
}

/// `x` of any type comes out as `y`.
pub fn identity(element: i32, shape: &[i64]) -> Vec<u8> {
    graph(
        vec![node("Identity", &["x"], &["y"])],
        vec![tensor("x", element, shape)],
        vec![tensor("y", element, shape)],
        vec![],
    )
}

/// `y` is minus `x`, and `x` comes out as it came.
pub fn minus_and_itself() -> Vec<u8> {
    let x = || tensor("x", element::FLOAT, &[-1, -1]);
    graph(
        vec![node("Neg", &["x"], &["y"])],
        vec![x()],
        vec![tensor("y", element::FLOAT, &[-1, -1]), x()],
        vec![],
    )
}

/// `sum = a + b`, float rows of any width, and `who` as it came.
pub fn add() -> Vec<u8> {
    graph(
        vec![
            node("Add", &["a", "b"], &["sum"]),
            node("Identity", &["who"], &["name"]),
        ],
        vec![
            tensor("a", element::FLOAT, &[-1, -1]),
            tensor("b", element::FLOAT, &[-1, -1]),
            tensor("who", element::STRING, &[-1]),
        ],
        vec![
            tensor("sum", element::FLOAT, &[-1, -1]),
            tensor("name", element::STRING, &[-1]),
        ],
        vec![],
    )
}

/// `y` is the sum of all of `x`, of shape `[1]` whatever the rows.
pub fn total() -> Vec<u8> {
    let reduce = with(node("ReduceSum", &["x"], &["sum"]), Attribute::int("keepdims", 0));
    let axis = TensorProto {
        name: "one".to_owned(),
        dims: vec![1],
        data_type: element::INT64,
        int64_data: vec![1],
        ..TensorProto::default()
    };
    graph(
        vec![reduce, node("Reshape", &["sum", "one"], &["y"])],
        vec![tensor("x", element::FLOAT, &[-1, 2])],
        vec![tensor("y", element::FLOAT, &[1])],
        vec![axis],
    )
}

/// `y` is a softmax over the rows: as many rows come out, and each depends on the others.
pub fn across_rows() -> Vec<u8> {
    graph(
        vec![with(node("Softmax", &["x"], &["y"]), Attribute::int("axis", 0))],
        vec![tensor("x", element::FLOAT, &[-1, 2])],
        vec![tensor("y", element::FLOAT, &[-1, 2])],
        vec![],
    )
}

/// A row of `table` (three of them) by `index`: fails for an index that there is not. The output's shape is not
/// declared.
pub fn lookup() -> Vec<u8> {
    let mut output = tensor("y", element::FLOAT, &[]);
    if let Some(kind) = output.value_type.as_mut().and_then(|kind| kind.tensor.as_mut()) {
        kind.shape = None;
    }
    graph(
        vec![node("Gather", &["table", "index"], &["y"])],
        vec![tensor("index", element::INT64, &[-1])],
        vec![output],
        vec![floats("table", &[3, 2], &[0.0, 0.5, 1.0, 1.5, 2.0, 2.5])],
    )
}

/// `x` times a matrix so large that a run takes a while: `size` multiplications of 256 x 256.
pub fn slow(size: usize) -> Vec<u8> {
    const WIDTH: usize = 256;
    // A permutation matrix: values move, none is lost, so the answer is known.
    let matrix: Vec<f32> = (0..WIDTH * WIDTH)
        .map(|cell| f32::from(u8::from((cell / WIDTH + 1) % WIDTH == cell % WIDTH)))
        .collect();
    let name = |step: usize| if step == 0 { "x".to_owned() } else { format!("x{step}") };
    let nodes = (0..size)
        .map(|step| node("MatMul", &[&name(step), "matrix"], &[&name(step + 1)]))
        .chain([node("Identity", &[&name(size)], &["y"])])
        .collect();
    graph(
        nodes,
        vec![tensor("x", element::FLOAT, &[-1, WIDTH as i64])],
        vec![tensor("y", element::FLOAT, &[-1, WIDTH as i64])],
        vec![floats("matrix", &[WIDTH as i64, WIDTH as i64], &matrix)],
    )
}

/// A linear classifier over two features with the outputs of scikit-learn's converter: `label` and `probabilities`
/// (scores here), or a `ZipMap` behind them.
pub fn classifier(zipmap: bool) -> Vec<u8> {
    let classify = Node {
        domain: "ai.onnx.ml".to_owned(),
        attribute: vec![
            Attribute::floats("coefficients", &[-1.0, -2.0, 1.0, 2.0]),
            Attribute::floats("intercepts", &[0.5, -0.5]),
            Attribute::ints("classlabels_ints", &[0, 1]),
        ],
        ..node("LinearClassifier", &["x"], &["label", "probabilities"])
    };
    let mut nodes = vec![classify];
    let mut outputs = vec![tensor("label", element::INT64, &[-1])];
    if zipmap {
        nodes.push(Node {
            domain: "ai.onnx.ml".to_owned(),
            attribute: vec![Attribute::ints("classlabels_int64s", &[0, 1])],
            ..node("ZipMap", &["probabilities"], &["chances"])
        });
        let value = tensor("", element::FLOAT, &[]).value_type.map(Box::new);
        let map = ValueType {
            map: Some(Box::new(MapType {
                key: element::INT64,
                value,
            })),
            ..ValueType::default()
        };
        outputs.push(ValueInfo {
            name: "chances".to_owned(),
            value_type: Some(ValueType {
                sequence: Some(Box::new(SequenceType {
                    element: Some(Box::new(map)),
                })),
                ..ValueType::default()
            }),
        });
    } else {
        outputs.push(tensor("probabilities", element::FLOAT, &[-1, 2]));
    }
    graph(nodes, vec![tensor("x", element::FLOAT, &[-1, 2])], outputs, vec![])
}

/// Looks values up in weights that are said to lie in another file.
pub fn external(location: &str) -> Vec<u8> {
    let entry = |key: &str, value: &str| Entry {
        key: key.to_owned(),
        value: value.to_owned(),
    };
    let weights = TensorProto {
        name: "w".to_owned(),
        dims: vec![2],
        data_type: element::FLOAT,
        external_data: vec![entry("location", location), entry("length", "8")],
        data_location: 1,
        ..TensorProto::default()
    };
    graph(
        vec![node("Gather", &["w", "index"], &["y"])],
        vec![tensor("index", element::INT64, &[-1])],
        vec![tensor("y", element::FLOAT, &[-1])],
        vec![weights],
    )
}
