use modelyard_inference::Tensor;
use proptest::prelude::*;
use serde::de::DeserializeSeed as _;
use serde_json::{Map, Value, json};

use super::*;
use crate::oip::DataSeed;

fn read(text: &str) -> Result<WireRequest<Value>, String> {
    WireRequest::read(text.as_bytes()).map_err(|fault| fault.describe(text.as_bytes()))
}

#[test]
fn fields_are_read_in_any_order_and_others_passed_over() {
    let text = r#" {"more": {"a": [1, {"b": "\u00e9"}]}, "outputs": [{"parameters": {"binary_data": false,
        "classification": 3, "what": null}, "name": "y"}], "id": "n\"1", "parameters": {"p": 1},
        "inputs": [{"data": [[1.5, null], ["Infinity", -2]], "shape": [2, 2], "extra": 1e400, "datatype": "FP32",
        "name": "x", "parameters": {}}, {"name": "b", "shape": [1], "datatype": "INT64",
        "parameters": {"binary_data_size": 8, "shared_memory_region": null}}]} "#;
    let request = read(text).unwrap();
    assert_eq!(request.id.as_deref(), Some("n\"1"));
    assert_eq!(request.parameters, json!({"p": 1}));
    let [output] = request.outputs.as_slice() else {
        panic!("one output")
    };
    assert_eq!(
        (output.name.as_str(), output.parameters.binary_data),
        ("y", Some(false))
    );
    assert_eq!(output.parameters.classification, Some(3));
    let mut inputs = request.inputs.into_iter();
    let x = inputs.next().unwrap();
    assert_eq!((x.name.as_str(), x.shape.as_slice()), ("x", [2, 2].as_slice()));
    let Some(TensorData::Fp32(values)) = x.data else {
        panic!("{:?}", x.data)
    };
    assert_eq!(format!("{values:?}"), "[1.5, NaN, inf, -2.0]");
    let b = inputs.next().unwrap();
    assert!(b.data.is_none() && !b.parameters.in_shared_memory);
    assert_eq!(b.parameters.binary_data_size, Some(8));
}

fn elements(text: &str, datatype: DataType) -> TensorData {
    read_elements(&mut Jiter::new(text.as_bytes()), datatype, 0).unwrap().0
}

#[test]
fn data_is_nested_as_its_shape_says_or_flat() {
    let read_as = |shape: &str, data: &str| {
        let after = format!(r#"{{"name": "x", "datatype": "INT8", "shape": {shape}, "data": {data}}}"#);
        let before = format!(r#"{{"data": {data}, "name": "x", "datatype": "INT8", "shape": {shape}}}"#);
        let [after, before] = [after, before].map(|input| read(&format!(r#"{{"inputs": [{input}]}}"#)).map(drop));
        assert_eq!(after.is_ok(), before.is_ok(), "{data}");
        after.map_err(|problem| problem.split(" at line").next().unwrap_or_default().to_owned())
    };
    for (shape, data) in [
        ("[2, 3]", "[[1, 2, 3], [4, 5, 6]]"),
        ("[2, 3]", "[1, 2, 3, 4, 5, 6]"),
        ("[6]", "[[1, 2, 3], [4, 5, 6]]"),
        ("[2, 3, 1]", "[[1, 2, 3], [4, 5, 6]]"),
        ("[2, 0]", "[[], []]"),
        ("[1]", "7"),
    ] {
        read_as(shape, data).unwrap();
    }
    for (shape, data, problem) in [
        (
            "[3, 2]",
            "[[1, 2, 3], [4, 5, 6]]",
            "its data is nested as [2, 3], and its shape is [3, 2]",
        ),
        (
            "[2, 2]",
            "[[1, 2, 3], [4]]",
            "expected an array of 3, as others beside it, got one of 1",
        ),
        (
            "[2, 2]",
            "[[1, 2], 3, 4]",
            "expected an array, as others beside it, got a value",
        ),
        (
            "[4]",
            "[1, [2], 3, 4]",
            "expected a value, as others beside it, got an array",
        ),
        ("[1]", "[[], 1]", "expected an array, as others beside it, got a value"),
    ] {
        assert_eq!(
            read_as(shape, data).unwrap_err(),
            format!("input `x`: {problem}"),
            "{data}"
        );
    }
    for (depth, is_possible) in [(128, true), (129, false)] {
        let data = format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(read_as("[1]", &data).is_ok(), is_possible, "{depth}");
    }
}

/// Each promises much and holds nothing.
#[test]
fn no_more_tensors_are_read_than_are_possible() {
    let input = r#"{"name": "x", "datatype": "BYTES", "shape": [65536], "data": []}"#;
    let request = |inputs| format!(r#"{{"inputs": [{}]}}"#, vec![input; inputs].join(","));
    let most = read(&request(MAX_TENSORS)).unwrap();
    let room = most.inputs.iter().map(|input| match &input.data {
        Some(TensorData::Bytes(values)) => values.capacity(),
        data => panic!("{data:?}"),
    });
    assert_eq!(room.sum::<usize>(), 0);
    let problem = read(&request(MAX_TENSORS + 1)).map(drop).unwrap_err();
    assert!(problem.contains("at most"), "{problem}");
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    for (text, expected) in [
        ("", "EOF while parsing a value at line 1 column 0"),
        ("{\n\"inputs\": 7}", "expected array but found int at line 2 column 11"),
        ("{}", "missing field `inputs` at line 1 column 2"),
        ("{\"inputs\": []} x", "trailing characters"),
        (
            "{\"inputs\": [{\"shape\": [1.5]}]}",
            "expected an integer of INT64, got 1.5",
        ),
        (
            "{\"inputs\": [{\"datatype\": \"FP32\", \"data\": [-Infinity]}]}",
            "send null, \"NaN\"",
        ),
        (
            "{\"inputs\": [{\"name\": \"x\", \"datatype\": \"BOOL\", \"data\": [1]}]}",
            "input `x`: expected true or false, got 1 at line 1 column 56",
        ),
        (
            "{\"inputs\": [{\"parameters\": {\"binary_data_size\": -1}}]}",
            "expected a number of zero or more, got -1",
        ),
        // What comes before its datatype is read later.
        (
            "{\"inputs\": [{\"data\": [1, true],\n\"shape\": [2], \"datatype\": \"FP32\", \"name\": \"x\"}]}",
            "input `x`: expected a number of FP32, null or \"NaN\", got true at line 1 column 26",
        ),
        (
            "{\"inputs\": [], \"id\": null, \"inputs\": []}",
            "duplicate field `inputs` at line 1",
        ),
        (
            "{\"inputs\": [{\"datatype\": \"FP32\", \"shape\": [1], \"datatype\": \"INT8\"}]}",
            "duplicate field `datatype`",
        ),
        (
            "{\"inputs\": [{\"parameters\": {\"binary_data_size\": 1, \"binary_data_size\": 2}}]}",
            "duplicate field `binary_data_size`",
        ),
    ] {
        let problem = read(text).map(|_| ()).unwrap_err();
        assert!(problem.contains(expected), "{text}: {problem}");
    }
    assert!(read(r#"{"inputs": [], "x": 1, "x": 2}"#).is_ok());
    // What serde reads has places of its own.
    let text = b"{\"inputs\": [],\n\"parameters\": 7}";
    let fault = WireRequest::<Map<String, Value>>::read(text).map(drop).unwrap_err();
    assert_eq!(
        fault.describe(text),
        "invalid type: integer `7`, expected a map at line 2 column 15"
    );
    let quoted = read(r#"{"inputs": [{"datatype": "INT32", "data": ["NaN"]}]}"#).map(|_| ());
    let problem = quoted.unwrap_err();
    assert!(
        problem.contains("got a string") && !problem.contains("send null"),
        "{problem}"
    );
}

fn element() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i8>().prop_map(Value::from),
        prop::num::f64::NORMAL.prop_map(Value::from),
        any::<f32>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        Just(Value::Null),
        "\\PC{0,8}".prop_map(Value::from),
        prop::sample::select(vec!["NaN", "Infinity", "-Infinity"]).prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 20, 3, |inner| {
        let alike = (inner.clone(), 0_usize..4).prop_map(|(value, count)| Value::from(vec![value; count]));
        prop_oneof![alike, prop::collection::vec(inner, 0..3).prop_map(Value::from)]
    })
}

/// The lengths of lists in each other, if all of a level have the same.
fn lengths(value: &Value) -> Option<Vec<usize>> {
    let Value::Array(items) = value else {
        return Some(Vec::new());
    };
    let inner = items.iter().map(lengths).collect::<Option<Vec<_>>>()?;
    let is_regular = inner.windows(2).all(|pair| pair[0] == pair[1]);
    is_regular.then(|| {
        let mut lengths = vec![items.len()];
        lengths.extend(inner.into_iter().next().unwrap_or_default());
        lengths
    })
}

proptest! {
    /// Both readers of elements agree on what is one, and lists are refused that are no tensor's.
    #[test]
    fn elements_are_what_they_are_to_serde(
        values in element(), datatype in prop::sample::select(DataType::ALL.to_vec()),
    ) {
        let text = values.to_string();
        let read = read_elements(&mut Jiter::new(text.as_bytes()), datatype, 0);
        let by_serde = DataSeed { datatype, count: 0 }.deserialize(&values);
        let raw = |data: TensorData, count: i64| Tensor::new("x", vec![count], data).and_then(Tensor::into_raw);
        match (read, by_serde, lengths(&values)) {
            (Ok((read, lists)), Ok(by_serde), Some(lengths)) => {
                let count = |data: &TensorData| (0..100).find(|&count| raw(data.clone(), count).is_ok()).unwrap();
                let expected = count(&by_serde);
                // NaN is no less the same for being unlike itself.
                prop_assert_eq!(raw(read, expected).unwrap(), raw(by_serde, expected).unwrap());
                prop_assert_eq!(lists.to_string(), format!("{lengths:?}"));
                let mut shape: Vec<i64> = lengths.iter().map(|&length| length as i64).collect();
                prop_assert!(lists.fit(&shape) && lists.fit(&[1; 9]));
                if lengths.len() > 1 {
                    shape[0] += 1;
                    prop_assert!(!lists.fit(&shape));
                }
            }
            (Err(_), Err(_), _) | (Err(_), _, None) => {}
            (read, by_serde, _) => prop_assert!(false, "{text} as {datatype}: {read:?}, by serde {by_serde:?}"),
        }
    }

    /// What a client writes in its shortest digits comes back bit by bit.
    #[test]
    fn floats_come_back_exactly(
        singles in prop::collection::vec(any::<f32>().prop_filter("finite", |value| value.is_finite()), 0..50),
        doubles in prop::collection::vec(any::<f64>().prop_filter("finite", |value| value.is_finite()), 0..50),
    ) {
        let text = serde_json::to_string(&singles).unwrap();
        let TensorData::Fp32(read) = elements(&text, DataType::Fp32) else {
            return Err(TestCaseError::fail("it has another datatype"));
        };
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        prop_assert_eq!(bits(&read), bits(&singles));
        let text = serde_json::to_string(&doubles).unwrap();
        let TensorData::Fp64(read) = elements(&text, DataType::Fp64) else {
            return Err(TestCaseError::fail("it has another datatype"));
        };
        let bits = |values: &[f64]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        prop_assert_eq!(bits(&read), bits(&doubles));
    }

    /// What lies half way between two floats, or a little above it, is the one that Rust reads.
    #[test]
    fn longer_digits_are_the_nearest_float(
        mantissa in 1_u64 << 52..1 << 53, shift in 0_u32..70, digits in "0{0,30}[0-9]{1,3}",
    ) {
        let half_way = u128::from(2 * mantissa + 1) << shift;
        let number = format!("{half_way}.{digits}");
        let TensorData::Fp64(read) = elements(&format!("[{number}]"), DataType::Fp64) else {
            return Err(TestCaseError::fail("it has another datatype"));
        };
        let expected: f64 = number.parse().unwrap();
        prop_assert_eq!(read[0].to_bits(), expected.to_bits(), "{}", number);
    }

    /// Whatever the bytes, there is an answer.
    #[test]
    fn no_text_is_too_much(text in "[\\[\\]{}\",:0-9a-zA-Z\\-+.e \\\\]{0,200}", bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = read(&text);
        let _ = WireRequest::<Value>::read(&bytes).map_err(|fault| fault.describe(&bytes));
    }
}
