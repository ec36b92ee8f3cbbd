//! A small ONNX model for tests, put together byte by byte from the public schema.

/// A field with bytes.
fn bytes(number: u8, content: &[u8]) -> Vec<u8> {
    let mut field = vec![number << 3 | 2];
    let mut length = content.len();
    while length >= 0x80 {
        field.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    field.push(length as u8);
    field.extend_from_slice(content);
    field
}

/// A field with a small number.
fn number(number: u8, value: u8) -> Vec<u8> {
    vec![number << 3, value]
}

/// An input or output: its element type, and its dimensions, where 0 is open.
fn value(name: &str, element: u8, sizes: &[u8]) -> Vec<u8> {
    let dimension = |size: &u8| match size {
        0 => bytes(1, &bytes(2, b"batch")),
        size => bytes(1, &number(1, *size)),
    };
    let shape: Vec<u8> = sizes.iter().flat_map(dimension).collect();
    let tensor = [number(1, element), bytes(2, &shape)].concat();
    [bytes(1, name.as_bytes()), bytes(2, &bytes(1, &tensor))].concat()
}

/// A model with the inputs `carrier` (text) and `distance` (double), and the outputs `label` and `probabilities`. Its node
/// computes nothing that could run: the registry looks at the signature only.
pub fn onnx_model() -> Vec<u8> {
    onnx_model_named("flights")
}

/// The same model with another name of its graph, so that its content is another.
pub fn onnx_model_named(name: &str) -> Vec<u8> {
    let weights = [number(2, 1), bytes(8, b"weights"), bytes(9, &[0; 300])].concat();
    let graph = [
        bytes(
            1,
            &[bytes(1, b"carrier"), bytes(2, b"label"), bytes(4, b"Identity")].concat(),
        ),
        bytes(2, name.as_bytes()),
        bytes(5, &weights),
        bytes(11, &value("carrier", 8, &[0, 1])),
        bytes(11, &value("distance", 11, &[0, 1])),
        bytes(11, &value("weights", 1, &[75])),
        bytes(12, &value("label", 7, &[0])),
        bytes(12, &value("probabilities", 1, &[0, 2])),
    ]
    .concat();
    [number(1, 8), bytes(7, &graph), bytes(8, &number(2, 17))].concat()
}
