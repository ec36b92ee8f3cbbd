//! Requests that somebody's broken program, or somebody with bad intent, might send: each is the client's fault and nobody
//! else's.

use axum::body::Body;
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::{Request, StatusCode};
use proptest::{
    prelude::*,
    strategy::ValueTree as _,
    test_runner::{Config, TestRunner},
};
use serde_json::{Value, json};
use std::io::Write as _;

use crate::{harness::Running, protocol::doubling};

/// How many requests each test makes up.
const REQUESTS: usize = 400;

/// A request over HTTP.
#[derive(Debug, Clone)]
struct Sent {
    path: &'static str,
    headers: Vec<(&'static str, String)>,
    body: Bytes,
}

fn valid() -> Value {
    json!({"id": "a", "parameters": {"binary_data_output": false, "timeout": 1_000_000, "priority": 1}, "inputs": [
        {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.5, 2.0]},
        {"name": "who", "datatype": "BYTES", "shape": [1], "data": ["ann"]},
        {"name": "n", "datatype": "INT64", "shape": [1, 1], "data": [7]},
    ], "outputs": [{"name": "y", "parameters": {"binary_data": true}}]})
}

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(|number| json!(number)),
        ".{0,12}".prop_map(Value::from),
        Just(json!("FP64")),
        Just(json!(-1)),
        Just(json!(1_u64 << 40)),
        Just(json!([[]])),
        Just(json!({})),
        Just(json!([1, [2, 3]])),
    ]
}

/// The places of a document, as JSON pointers.
fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                places(field, &format!("{at}/{name}"), found);
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                places(item, &format!("{at}/{index}"), found);
            }
        }
        _ => {}
    }
}

/// A valid document with some places changed.
fn spoilt(document: Value) -> impl Strategy<Value = Value> {
    let mut found = Vec::new();
    places(&document, "", &mut found);
    proptest::collection::vec((proptest::sample::select(found), scalar()), 1..4).prop_map(move |changes| {
        let mut document = document.clone();
        for (place, value) in changes {
            if let Some(there) = document.pointer_mut(&place) {
                *there = value;
            }
        }
        document
    })
}

/// Bytes with some of them changed, and perhaps cut off.
fn damaged(bytes: Vec<u8>) -> impl Strategy<Value = Bytes> {
    let length = bytes.len();
    let changes = proptest::collection::vec((0..length, any::<u8>()), 0..6);
    (changes, 0..=length).prop_map(move |(changes, end)| {
        let mut bytes = bytes.clone();
        for (place, byte) in changes {
            bytes[place] = byte;
        }
        bytes.truncate(end);
        Bytes::from(bytes)
    })
}

/// A request with binary tensors, and how many of its bytes are JSON.
fn binary() -> (Vec<u8>, usize) {
    let header = json!({"inputs": [
        {"name": "x", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}},
        {"name": "who", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 7}},
        {"name": "n", "datatype": "INT64", "shape": [1, 1], "parameters": {"binary_data_size": 8}},
    ]})
    .to_string();
    let mut body = header.clone().into_bytes();
    for number in [1.5_f32, 2.0] {
        body.extend_from_slice(&number.to_le_bytes());
    }
    body.extend_from_slice(b"\x03\0\0\0ann");
    body.extend_from_slice(&7_i64.to_le_bytes());
    (body, header.len())
}

fn gzipped(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

fn inference() -> impl Strategy<Value = Sent> {
    const PATH: &str = "/v2/models/e/infer";
    let plain = |body: Bytes| Sent {
        path: PATH,
        headers: Vec::new(),
        body,
    };
    let (binary, header_bytes) = binary();
    let most = binary.len() + 3;
    let lengths = prop_oneof![
        Just(header_bytes.to_string()),
        (0..most).prop_map(|length| length.to_string()),
        ".{0,4}"
    ];
    prop_oneof![
        spoilt(valid()).prop_map(move |document| plain(document.to_string().into())),
        damaged(valid().to_string().into_bytes()).prop_map(plain),
        (damaged(binary), lengths).prop_map(|(body, length)| Sent {
            path: PATH,
            headers: vec![("inference-header-content-length", length)],
            body,
        }),
        damaged(gzipped(&valid().to_string())).prop_map(|body| Sent {
            path: PATH,
            headers: vec![("content-encoding", "gzip".to_owned())],
            body,
        }),
        proptest::collection::vec(any::<u8>(), 0..64).prop_map(move |bytes| plain(bytes.into())),
        (1_usize..200_000).prop_map(move |depth| plain("[".repeat(depth).into())),
    ]
}

fn rows() -> impl Strategy<Value = Sent> {
    const PATH: &str = "/endpoints/e/invocations";
    let record = json!({"x": [1.5, 2.0], "who": "ann", "n": 7});
    let forms = [
        json!({"dataframe_records": [record]}),
        json!({"dataframe_split": {"columns": ["x", "who", "n"], "data": [[[1.5, 2.0], "ann", 7]]}}),
        json!({"instances": [record]}),
        json!({"inputs": {"x": [[1.5, 2.0]], "who": ["ann"], "n": [7]}}),
    ];
    let json = proptest::sample::select(forms.to_vec()).prop_flat_map(spoilt);
    let typed = |kind: &'static str| {
        move |body: Bytes| Sent {
            path: PATH,
            headers: vec![("content-type", kind.to_owned())],
            body,
        }
    };
    let predict = |document: Value| Sent {
        path: "/v1/models/e:predict",
        headers: Vec::new(),
        body: document.to_string().into(),
    };
    prop_oneof![
        json.prop_map(|document| document.to_string().into())
            .prop_map(typed("application/json")),
        damaged(b"x,who,n\n1.5,ann,7\n2.5,\"bob\",8\n".to_vec()).prop_map(typed("text/csv")),
        damaged(b"PAR1\0\0\0\0PAR1".to_vec()).prop_map(typed("application/vnd.apache.parquet")),
        spoilt(json!({"instances": [{"x": [1.5, 2.0], "who": "ann", "n": 7}]})).prop_map(predict),
    ]
}

async fn send(running: &Running, sent: &Sent) -> StatusCode {
    let mut request = Request::post(sent.path);
    for (name, value) in &sent.headers {
        request = request.header(*name, value.as_str());
    }
    // A header that HTTP itself cannot carry is never sent.
    let Ok(request) = request.body(Body::from(sent.body.clone())) else {
        return StatusCode::BAD_REQUEST;
    };
    let answer = running.send(request).await;
    if answer.status.is_client_error() {
        let error = answer.json();
        let message = error["error"].as_str().or_else(|| error["message"].as_str());
        assert!(message.is_some_and(|message| !message.is_empty()), "{sent:?}: {error}");
    }
    answer.status
}

async fn each_is_answered_or_refused(made_up: impl Strategy<Value = Sent>) {
    let (_world, running) = doubling().await;
    let mut runner = TestRunner::new(Config::default());
    let mut refused = 0;
    for _ in 0..REQUESTS {
        let sent = made_up.new_tree(&mut runner).unwrap().current();
        let status = send(&running, &sent).await;
        assert!(
            status == StatusCode::OK || status.is_client_error(),
            "{status}: {sent:?}"
        );
        refused += usize::from(status.is_client_error());
    }
    assert!(refused > REQUESTS / 4, "{refused} of {REQUESTS} were refused");
    let sound = Sent {
        path: "/v2/models/e/infer",
        headers: Vec::new(),
        body: valid().to_string().into(),
    };
    assert_eq!(send(&running, &sound).await, StatusCode::OK, "it goes on");
    running.stop().await;
}

#[tokio::test]
async fn inference_requests_without_sense_are_refused() {
    each_is_answered_or_refused(inference()).await;
}

#[tokio::test]
async fn rows_without_sense_are_refused() {
    each_is_answered_or_refused(rows()).await;
}
