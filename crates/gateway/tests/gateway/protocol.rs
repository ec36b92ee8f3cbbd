//! The Open Inference Protocol, over HTTP and gRPC, as its clients speak it.

use std::{
    collections::HashMap,
    io::{Read as _, Write as _},
};

use axum::body::Body;
use flate2::{
    Compression,
    read::GzDecoder,
    write::{GzEncoder, ZlibEncoder},
};
use http::{Request, StatusCode};
use proptest::{prelude::*, test_runner::TestRunner};
use serde_json::{Value, json};

use crate::{
    harness::{Answer, Running, World, endpoint, live},
    onnx::scale,
    peers::Registry,
};

/// A gateway whose endpoint `e` doubles `x` and repeats `who` and `n`; it is version 2 of its model.
pub async fn doubling() -> (World, Running) {
    let world = World::new(Registry::new(vec![]));
    let digest = world.store(scale(2.0)).await;
    world
        .registry
        .set(vec![endpoint("e", vec![live("m", 2, &digest, 1.0)])]);
    let running = world.start_ready().await;
    (world, running)
}

/// A gateway whose endpoint `e` doubles `x`, its only input.
async fn of_one_input() -> (World, Running) {
    let world = World::new(Registry::new(vec![]));
    let digest = world.store(crate::onnx::simple(2.0)).await;
    world
        .registry
        .set(vec![endpoint("e", vec![live("m", 1, &digest, 1.0)])]);
    let running = world.start_ready().await;
    (world, running)
}

fn input(name: &str, datatype: &str, shape: &Value, data: &Value) -> Value {
    json!({"name": name, "datatype": datatype, "shape": shape, "data": data})
}

fn two_rows() -> Vec<Value> {
    vec![
        input("x", "FP32", &json!([2, 2]), &json!([0.1, -2, 3.5, 1e-3])),
        input("who", "BYTES", &json!([2]), &json!(["a\"b", "é"])),
        input("n", "INT64", &json!([2, 1]), &json!([1, -9_007_199_254_740_993_i64])),
    ]
}

fn two_rows_answer() -> Value {
    json!([
        {"name": "y", "datatype": "FP32", "shape": [2, 2], "data": [0.2, -4.0, 7.0, 0.002]},
        {"name": "name", "datatype": "BYTES", "shape": [2], "data": ["a\"b", "é"]},
        {"name": "m", "datatype": "INT64", "shape": [2, 1], "data": [1, -9_007_199_254_740_993_i64]},
    ])
}

/// A body of JSON and binary tensors.
pub fn binary_request(path: &str, header: &Value, tail: &[u8]) -> Request<Body> {
    let mut body = header.to_string().into_bytes();
    let length = body.len();
    body.extend_from_slice(tail);
    let request = Request::post(path).header("inference-header-content-length", length);
    request.body(Body::from(body)).unwrap()
}

/// The binary outputs behind an answer's JSON, by name.
pub fn binary_outputs(answer: &Answer) -> (Value, HashMap<String, Vec<u8>>) {
    let length: usize = answer.headers["inference-header-content-length"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert_eq!(answer.headers["content-type"], "application/octet-stream");
    let header: Value = serde_json::from_slice(&answer.body[..length]).unwrap();
    let mut tail = &answer.body[length..];
    let mut outputs = HashMap::new();
    for output in header["outputs"].as_array().unwrap() {
        if let Some(size) = output["parameters"]["binary_data_size"].as_u64() {
            let (bytes, rest) = tail.split_at(size as usize);
            outputs.insert(output["name"].as_str().unwrap().to_owned(), bytes.to_vec());
            tail = rest;
        }
    }
    assert!(tail.is_empty());
    (header, outputs)
}

#[tokio::test]
async fn the_server_and_its_models_describe_themselves() {
    let (_world, running) = doubling().await;
    for (path, expected) in [
        ("/v2/health/live", json!({"live": true})),
        ("/v2/health/ready", json!({"ready": true})),
        ("/v2/models", json!({"models": ["e"]})),
        ("/v2/models/e/ready", json!({"name": "e", "ready": true})),
        ("/v2/models/e/versions/2/ready", json!({"name": "e", "ready": true})),
    ] {
        let answer = running.get(path).await;
        assert_eq!((answer.status, answer.json()), (StatusCode::OK, expected), "{path}");
    }
    let server = running.get("/v2").await.json();
    assert_eq!(server["name"], "modelyard");
    let extensions = server["extensions"].as_array().unwrap();
    assert!(extensions.contains(&json!("binary_tensor_data")) && extensions.contains(&json!("statistics")));
    assert!(!extensions.contains(&json!("system_shared_memory")));
    let model = running.get("/v2/models/e").await.json();
    let expected = json!({
        "name": "e", "versions": ["2"], "platform": "onnx_onnxv1",
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [-1, 2]},
            {"name": "who", "datatype": "BYTES", "shape": [-1]},
            {"name": "n", "datatype": "INT64", "shape": [-1, 1]},
        ],
        "outputs": [
            {"name": "y", "datatype": "FP32", "shape": [-1, 2]},
            {"name": "name", "datatype": "BYTES", "shape": [-1]},
            {"name": "m", "datatype": "INT64", "shape": [-1, 1]},
        ],
    });
    assert_eq!(model, expected);
    assert_eq!(running.get("/v2/models/e/versions/2").await.json(), expected);
    for path in ["/v2/models/none", "/v2/models/none/ready", "/v2/models/e/versions/7"] {
        let answer = running.get(path).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{path}");
        assert!(answer.json()["error"].is_string(), "{path}");
    }
    for path in [
        "/v2/models/%ff",
        "/v2/models/e/versions/%ff",
        "/v2/models/%ff/ready",
        "/v2/models/%ff/stats",
    ] {
        let answer = running.get(path).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{path}");
        assert!(answer.json()["error"].as_str().unwrap().contains("UTF-8"), "{path}");
    }
    let answer = running.post("/v2/models/%ff/infer", &json!({})).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert!(answer.json()["error"].as_str().unwrap().contains("UTF-8"));
    assert_eq!(
        running.get("/v2/models/e/infer").await.status,
        StatusCode::METHOD_NOT_ALLOWED
    );
}

#[tokio::test]
async fn data_may_be_flat_or_nested_in_any_order_of_fields() {
    let (_world, running) = doubling().await;
    let mut nested = two_rows();
    nested[0]["data"] = json!([[0.1, -2], [3.5, 1e-3]]);
    nested[2]["data"] = json!([[1], [-9_007_199_254_740_993_i64]]);
    let mut mixed = two_rows();
    mixed[0]["data"] = json!([0.1, -2, 3.5, 1e-3]);
    mixed[1]["data"] = json!([["a\"b"], ["\u{e9}"]]);
    mixed.reverse();
    for inputs in [two_rows(), nested, mixed] {
        let body = json!({"id": "my id", "parameters": {"unheard_of": 1}, "inputs": inputs, "more": {}});
        let answer = running.post("/v2/models/e/infer", &body).await;
        let expected = json!({"model_name": "e", "model_version": "2", "id": "my id", "outputs": two_rows_answer()});
        assert_eq!((answer.status, answer.json()), (StatusCode::OK, expected));
        assert_eq!(answer.headers["content-type"], "application/json");
        assert!(!answer.headers.contains_key("inference-header-content-length"));
    }
    // The data before its datatype.
    let body = r#"{"inputs": [
        {"data": [[0.1, -2], [3.5, 0.001]], "shape": [2, 2], "name": "x", "datatype": "FP32"},
        {"data": ["a\"b", "\u00e9"], "name": "who", "shape": [2], "datatype": "BYTES"},
        {"data": [1, -9007199254740993], "datatype": "INT64", "name": "n", "shape": [2, 1]}]}"#;
    let answer = running
        .send(Request::post("/v2/models/e/infer").body(Body::from(body)).unwrap())
        .await;
    assert_eq!(answer.json()["outputs"], two_rows_answer());
    // An id is made where none is given, each time another.
    let again = running
        .send(Request::post("/v2/models/e/infer").body(Body::from(body)).unwrap())
        .await;
    assert_ne!(answer.json()["id"], again.json()["id"]);
    assert!(!again.json()["id"].as_str().unwrap().is_empty());
}

#[tokio::test]
async fn floats_that_json_has_no_number_for_go_through() {
    let (_world, running) = doubling().await;
    let mut inputs = two_rows();
    inputs[0]["data"] = json!(["NaN", null, "Infinity", "-Infinity"]);
    let answer = running.post("/v2/models/e/infer", &json!({"inputs": inputs})).await;
    assert_eq!(
        answer.json()["outputs"][0]["data"],
        json!([null, null, "Infinity", "-Infinity"])
    );
}

#[tokio::test]
async fn outputs_are_chosen_in_the_order_asked_for() {
    let (_world, running) = doubling().await;
    let body =
        json!({"inputs": two_rows(), "outputs": [{"name": "m"}, {"name": "y", "parameters": {"binary_data": true}}]});
    let answer = running.post("/v2/models/e/infer", &body).await;
    let (header, binary) = binary_outputs(&answer);
    assert_eq!(header["outputs"][0], two_rows_answer()[2]);
    assert_eq!(header["outputs"][1]["name"], "y");
    let expected: Vec<u8> = [0.2_f32, -4.0, 7.0, 0.002]
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    assert_eq!(binary["y"], expected);
    assert_eq!(binary.len(), 1);
}

#[tokio::test]
async fn what_cannot_be_right_is_refused_by_name() {
    let (_world, running) = doubling().await;
    let with = |index: usize, field: &str, value: Value| {
        let mut inputs = two_rows();
        inputs[index][field] = value;
        json!({"inputs": inputs})
    };
    let without = {
        let mut inputs = two_rows();
        inputs.pop();
        json!({"inputs": inputs})
    };
    let neither = {
        let mut inputs = two_rows();
        inputs[0].as_object_mut().unwrap().remove("data");
        json!({"inputs": inputs})
    };
    let cases = [
        (with(0, "data", json!([1, 2, 3])), "holds 4 elements, got 3"),
        (with(0, "shape", json!([4, 1])), "expected shape [-1, 2]"),
        (
            with(0, "data", json!([[1, 2, 3], [4]])),
            "input `x`: expected an array of 3, as others beside it, got one of 1",
        ),
        (
            with(0, "data", json!([[1], [2], [3], [4]])),
            "input `x`: its data is nested as [4, 1], and its shape is [2, 2]",
        ),
        (with(0, "shape", json!([-2, -2])), "negative dimension"),
        (with(0, "datatype", json!("FP64")), "expected datatype FP32, got FP64"),
        (with(0, "datatype", json!("FLOAT")), "unknown datatype `FLOAT`"),
        (with(0, "data", json!([1, 2, 3, 1e39])), "expected a number of FP32"),
        (with(0, "data", json!([1, 2, 3, "4"])), "got a string"),
        (with(0, "data", json!([1, 2, 3, true])), "got true"),
        (with(0, "name", json!("z")), "unknown: z"),
        (with(1, "data", json!(["a", 7])), "expected a string, got 7"),
        (
            with(2, "data", json!([1, 1.5])),
            "expected an integer of INT64, got 1.5",
        ),
        (
            with(2, "data", json!([1, 9_223_372_036_854_775_808_u64])),
            "expected an integer of INT64",
        ),
        (with(2, "data", json!([1, null])), "got null"),
        (with(2, "shape", json!([1, 1])), "holds 1 elements, got 2"),
        (without, "missing: n"),
        (neither, "neither data nor binary_data_size"),
        (
            json!({"inputs": two_rows(), "outputs": [{"name": "z"}]}),
            "no output `z`: it has y, name, m",
        ),
        (
            json!({"inputs": two_rows(), "outputs": [{"name": "y", "parameters": {"classification": 0}}]}),
            "asks for 0 classes",
        ),
        (
            json!({"inputs": two_rows(), "outputs": [{"name": "name", "parameters": {"classification": 1}}]}),
            "has no classes",
        ),
        (
            json!({"inputs": two_rows(), "parameters": {"sequence_id": 7, "sequence_start": true}}),
            "sequences",
        ),
        (
            json!({"inputs": two_rows(), "parameters": {"event_time": "yesterday"}}),
            "is not a point in time",
        ),
        (
            json!({"inputs": two_rows(), "id": "x".repeat(257)}),
            "the id has 257 bytes",
        ),
        (json!({"inputs": 7}), "expected array but found int"),
        (json!([]), "no inference request"),
        (json!({}), "missing field `inputs`"),
    ];
    for (body, expected) in cases {
        let answer = running.post("/v2/models/e/infer", &body).await;
        let message = answer.json()["error"].as_str().unwrap().to_owned();
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{message}");
        assert!(message.contains(expected), "{message} lacks {expected}");
    }
    let deep = format!(
        r#"{{"inputs":[{{"name":"x","datatype":"FP32","shape":[1,2],"data":{}"#,
        "[".repeat(200_000)
    );
    for float in ["NaN", "Infinity", "-Infinity"] {
        let data = format!(r#"{{"inputs":[{{"name":"x","datatype":"FP32","shape":[1,2],"data":[1.0, {float}]}}]}}"#);
        let answer = running
            .send(Request::post("/v2/models/e/infer").body(Body::from(data)).unwrap())
            .await;
        let message = answer.json()["error"].to_string();
        assert!(message.contains("send null"), "{float}: {message}");
    }
    for body in [deep.as_str(), "{", "\u{0}", r#"{"inputs": []} trailing"#] {
        let request = Request::post("/v2/models/e/infer")
            .body(Body::from(body.to_owned()))
            .unwrap();
        let answer = running.send(request).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        assert!(answer.json()["error"].is_string());
    }
    let expired = json!({"inputs": two_rows(), "parameters": {"timeout": 0}});
    let answer = running.post("/v2/models/e/infer", &expired).await;
    assert_eq!(answer.status, StatusCode::GATEWAY_TIMEOUT, "{:?}", answer.body);
    let large = Request::post("/v2/models/e/infer")
        .body(Body::from(vec![b' '; (64 << 20) + 1]))
        .unwrap();
    let answer = running.send(large).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(answer.json()["error"].as_str().unwrap().contains("67108864"));
}

#[tokio::test]
async fn binary_bodies_are_checked_to_the_last_byte() {
    let (_world, running) = doubling().await;
    let header = |size: usize| {
        let mut inputs = two_rows();
        inputs[0].as_object_mut().unwrap().remove("data");
        inputs[0]["parameters"] = json!({"binary_data_size": size});
        json!({"inputs": inputs})
    };
    let path = "/v2/models/e/infer";
    let cases = [
        (header(16), vec![0; 16], None),
        (header(16), vec![0; 15], Some("15 bytes are left")),
        (header(16), vec![0; 17], Some("1 bytes are behind")),
        (header(12), vec![0; 12], Some("takes 16 bytes, got 12")),
        (json!({"inputs": two_rows()}), vec![1], Some("1 bytes are behind")),
    ];
    for (header, tail, expected) in cases {
        let answer = running.send(binary_request(path, &header, &tail)).await;
        match expected {
            None => assert_eq!(answer.status, StatusCode::OK, "{:?}", answer.body),
            Some(expected) => {
                let message = answer.json()["error"].to_string();
                assert_eq!(answer.status, StatusCode::BAD_REQUEST);
                assert!(message.contains(expected), "{message} lacks {expected}");
            }
        }
    }
    for (length, expected) in [("99999", "the body has 2 bytes"), ("many", "no number of bytes")] {
        let request = Request::post(path).header("inference-header-content-length", length);
        let answer = running.send(request.body(Body::from("{}")).unwrap()).await;
        let message = answer.json()["error"].to_string();
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        assert!(message.contains(expected), "{message} lacks {expected}");
    }
    let whole = Request::post(path).header("inference-header-content-length", 0);
    let answer = running.send(whole.body(Body::from(vec![0; 8])).unwrap()).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert!(answer.json()["error"].to_string().contains("models with one input"));
}

#[tokio::test]
async fn a_body_without_json_is_the_only_inputs_row() {
    let (_world, running) = of_one_input().await;
    let bytes: Vec<u8> = [1.5_f32, -3.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    let request = Request::post("/v2/models/e/infer").header("inference-header-content-length", 0);
    let answer = running.send(request.body(Body::from(bytes)).unwrap()).await;
    let (header, binary) = binary_outputs(&answer);
    assert_eq!(header["outputs"][0]["shape"], json!([1, 2]));
    let expected: Vec<u8> = [3.0_f32, -6.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    assert_eq!(binary["y"], expected);
}

#[tokio::test]
async fn large_tensors_are_answered_whole_plain_and_compressed() {
    const ROWS: usize = 20_000;
    let (_world, running) = of_one_input().await;
    let values: Vec<f32> = (0..2 * ROWS).map(|value| (value % 1000) as f32).collect();
    let raw = |factor: f32| -> Vec<u8> { values.iter().flat_map(|value| (value * factor).to_le_bytes()).collect() };
    let input = json!({
        "name": "x", "shape": [ROWS, 2], "datatype": "FP32", "parameters": {"binary_data_size": values.len() * 4},
    });
    let header = json!({"parameters": {"binary_data_output": true}, "inputs": [input]});
    let path = "/v2/models/e/infer";
    let answer = running.send(binary_request(path, &header, &raw(1.0))).await;
    let length = answer.headers["content-length"].to_str().unwrap().parse::<usize>();
    assert_eq!(length, Ok(answer.body.len()));
    let (_, binary) = binary_outputs(&answer);
    assert_eq!(binary["y"], raw(2.0));

    let mut request = binary_request(path, &header, &raw(1.0));
    request.headers_mut().insert("accept-encoding", "gzip".parse().unwrap());
    let answer = running.send(request).await;
    assert_eq!(answer.headers["content-encoding"], "gzip");
    let mut body = Vec::new();
    GzDecoder::new(&answer.body[..]).read_to_end(&mut body).unwrap();
    assert!(body.ends_with(&raw(2.0)));
}

#[tokio::test]
async fn outputs_that_say_nothing_of_it_are_as_the_request_says_for_all() {
    let (_world, running) = doubling().await;
    let mut body = json!({"inputs": two_rows(), "outputs": [
        {"name": "y"},
        {"name": "m", "parameters": {"binary_data": false}},
    ]});
    body["parameters"] = json!({"binary_data_output": true});
    let answer = running.post("/v2/models/e/infer", &body).await;
    let (json, binary) = binary_outputs(&answer);
    assert_eq!(binary.keys().collect::<Vec<_>>(), ["y"]);
    let said = json["outputs"]
        .as_array()
        .unwrap()
        .iter()
        .find(|output| output["name"] == "m");
    assert!(said.unwrap()["data"].is_array(), "{json}");
}

#[tokio::test]
async fn compressed_bodies_are_read_and_bounded() {
    let (_world, running) = doubling().await;
    let plain = json!({"inputs": two_rows()}).to_string();
    let gzip = |bytes: &[u8]| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let mut zlib = ZlibEncoder::new(Vec::new(), Compression::fast());
    zlib.write_all(plain.as_bytes()).unwrap();
    let bomb = gzip(&vec![b' '; (64 << 20) + 1]);
    let cases = [
        ("gzip", gzip(plain.as_bytes()), StatusCode::OK),
        ("deflate", zlib.finish().unwrap(), StatusCode::OK),
        ("identity", plain.clone().into_bytes(), StatusCode::OK),
        ("gzip", plain.clone().into_bytes(), StatusCode::BAD_REQUEST),
        ("gzip", bomb, StatusCode::PAYLOAD_TOO_LARGE),
        ("br", vec![1], StatusCode::UNSUPPORTED_MEDIA_TYPE),
    ];
    for (encoding, body, expected) in cases {
        let request = Request::post("/v2/models/e/infer").header("content-encoding", encoding);
        let answer = running.send(request.body(Body::from(body)).unwrap()).await;
        assert_eq!(answer.status, expected, "{encoding}: {:?}", answer.body);
        if expected == StatusCode::OK {
            assert_eq!(answer.json()["outputs"], two_rows_answer());
        }
    }
}

/// Raw BYTES: each element behind its length.
pub fn raw_texts(texts: &[String]) -> Vec<u8> {
    let each = texts.iter().flat_map(|text| {
        let length = (text.len() as u32).to_le_bytes();
        length.into_iter().chain(text.bytes())
    });
    each.collect()
}

#[test]
fn json_and_binary_give_the_same_bits() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (_world, running) = runtime.block_on(doubling());
    let rows = (1_usize..5).prop_flat_map(|rows| {
        (
            proptest::collection::vec(
                prop::num::f32::NORMAL | prop::num::f32::SUBNORMAL | prop::num::f32::ZERO,
                rows * 2,
            ),
            proptest::collection::vec(any::<String>(), rows),
            proptest::collection::vec(any::<i64>(), rows),
        )
    });
    let test = |(x, who, n): (Vec<f32>, Vec<String>, Vec<i64>)| {
        let rows = n.len();
        // Doubling must stay in range, where JSON has numbers.
        let x: Vec<f32> = x.into_iter().map(|value| value / 4.0).collect();
        let text = json!({"parameters": {"binary_data_output": true}, "inputs": [
            input("x", "FP32", &json!([rows, 2]), &json!(x)),
            input("who", "BYTES", &json!([rows]), &json!(who)),
            input("n", "INT64", &json!([rows, 1]), &json!(n)),
        ]});
        let raw = [
            x.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>(),
            raw_texts(&who),
            n.iter().flat_map(|value| value.to_le_bytes()).collect(),
        ];
        let described = |name: &str, datatype: &str, shape: Value, raw: &[u8]| json!({"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": raw.len()}});
        let header = json!({"parameters": {"binary_data_output": true}, "inputs": [
            described("x", "FP32", json!([rows, 2]), &raw[0]),
            described("who", "BYTES", json!([rows]), &raw[1]),
            described("n", "INT64", json!([rows, 1]), &raw[2]),
        ]});
        let (from_text, from_raw, as_text) = runtime.block_on(async {
            let from_text = running.post("/v2/models/e/infer", &text).await;
            let from_raw = running
                .send(binary_request("/v2/models/e/infer", &header, &raw.concat()))
                .await;
            let mut as_text = text.clone();
            as_text["parameters"] = json!({});
            (from_text, from_raw, running.post("/v2/models/e/infer", &as_text).await)
        });
        let (_, from_text) = binary_outputs(&from_text);
        let (_, from_raw) = binary_outputs(&from_raw);
        prop_assert_eq!(&from_text, &from_raw);
        prop_assert_eq!(&from_raw["name"], &raw[1]);
        prop_assert_eq!(&from_raw["m"], &raw[2]);
        let y: Vec<f32> = serde_json::from_value(as_text.json()["outputs"][0]["data"].clone()).unwrap();
        let y: Vec<u8> = y.iter().flat_map(|value| value.to_le_bytes()).collect();
        prop_assert_eq!(&y, &from_raw["y"]);
        Ok(())
    };
    TestRunner::default().run(&rows, test).unwrap();
}
