//! MLflow's scoring and TensorFlow Serving's protocol.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch};
use axum::body::Body;
use http::{Request, StatusCode};
use parquet::arrow::ArrowWriter;
use serde_json::{Value, json};

use crate::{
    harness::{Running, World, endpoint, live},
    onnx::{scale, simple},
    peers::Registry,
};

async fn gateway() -> (World, Running) {
    let world = World::new(Registry::new(vec![]));
    let (named, single) = (world.store(scale(2.0)).await, world.store(simple(2.0)).await);
    world.registry.set(vec![
        endpoint("named", vec![live("m", 1, &named, 1.0)]),
        endpoint("single", vec![live("s", 1, &single, 1.0)]),
    ]);
    let running = world.start_ready().await;
    (world, running)
}

#[tokio::test]
async fn mlflow_clients_score_in_every_form() {
    let (_world, running) = gateway().await;
    let record = |x: [f32; 2], who: &str, n: i64| json!({"x": x, "who": who, "n": n});
    let answered = |y: [f32; 2], name: &str, m: i64| json!({"y": y, "name": name, "m": m});
    let named = json!([answered([2.0, 4.0], "ann", 1), answered([6.0, 8.0], "", 2)]);
    let by_column = json!({"y": [[2.0, 4.0], [6.0, 8.0]], "name": ["ann", ""], "m": [1, 2]});
    let columns = json!({"x": [[1, 2], [3, 4]], "who": ["ann", null], "n": [1, 2]});
    let single = json!([[2.0, 4.0], [6.0, 8.0]]);
    let cases = [
        (
            "named",
            json!({"dataframe_records": [record([1.0, 2.0], "ann", 1), record([3.0, 4.0], "", 2)]}),
            &named,
        ),
        (
            "named",
            json!({"dataframe_split": {"columns": ["n", "x", "who", "more"], "index": [0, 1],
                "data": [[1, [1, 2], "ann", 0], [2, [3, 4], null, 0]]}}),
            &named,
        ),
        (
            "named",
            json!({"instances": [record([1.0, 2.0], "ann", 1), record([3.0, 4.0], "", 2)]}),
            &named,
        ),
        ("named", json!({"inputs": columns, "params": {}}), &by_column),
        ("single", json!({"instances": [[1, 2], [3, 4]]}), &single),
        ("single", json!({"inputs": [[1, 2], [3, 4]]}), &single),
        ("single", json!({"inputs": {"x": [[1, 2], [3, 4]]}}), &single),
        (
            "single",
            json!({"dataframe_split": {"columns": ["a", "b"], "data": [[1, 2], [3, 4]]}}),
            &single,
        ),
    ];
    for (name, body, expected) in cases {
        let answer = running.post(&format!("/endpoints/{name}/invocations"), &body).await;
        assert_eq!(answer.status, StatusCode::OK, "{body}: {:?}", answer.body);
        assert_eq!(answer.json(), json!({"predictions": expected}), "{body}");
        assert!(answer.headers.contains_key("x-request-id"));
    }
    let csv = "a,\"b\"\r\n1,2\n\"3\",4\n";
    let request = Request::post("/endpoints/single/invocations")
        .header("content-type", "text/csv; charset=utf-8")
        .header("x-request-id", "mine");
    let answer = running.send(request.body(Body::from(csv)).unwrap()).await;
    assert_eq!(answer.json(), json!({"predictions": single}));
    assert_eq!(answer.headers["x-request-id"], "mine");
}

#[tokio::test]
async fn what_mlflow_clients_get_wrong_is_named() {
    let (_world, running) = gateway().await;
    let cases = [
        (json!({}), "exactly one of dataframe_split"),
        (json!({"instances": [], "inputs": []}), "exactly one of"),
        (json!({"rows": []}), "`rows` is unknown"),
        (
            json!({"dataframe_split": {"columns": ["x"], "data": [[1, 2]]}}),
            "row 0 has 2 values for 1 columns",
        ),
        (json!({"dataframe_records": [{"x": [1, 2]}]}), "no column `who`"),
        (json!({"dataframe_records": [{"x": 1}, {}]}), "record 1 has no `x`"),
        (json!({"instances": [[1, 2]]}), "takes the inputs x, who, n: name them"),
        (
            json!({"inputs": {"x": [[1, 2]], "who": ["a"], "n": [1.5]}}),
            "`n`: expected an integer of INT64",
        ),
        (json!({"inputs": {"x": [[1, 2]], "who": ["a"]}}), "no `n` in `inputs`"),
        (
            json!({"inputs": {"x": [[1, 2], [3]], "who": ["a", "b"], "n": [1, 2]}}),
            "`x`: its values are lists of unlike lengths",
        ),
    ];
    for (body, expected) in cases {
        let answer = running.post("/endpoints/named/invocations", &body).await;
        let message = answer.json()["message"].as_str().unwrap().to_owned();
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{message}");
        assert!(message.contains(expected), "{message} lacks {expected}");
        assert!(answer.json()["error_code"].is_string());
    }
    for (media, body, status, expected) in [
        (
            "application/xml",
            "",
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "use application/json, text/csv or application/vnd.apache.parquet",
        ),
        ("text/csv", "a,b\n1,x\n", StatusCode::BAD_REQUEST, "`x` is no FP32"),
        (
            "text/csv",
            "a,b\n1,\"2\n",
            StatusCode::BAD_REQUEST,
            "within a quoted field",
        ),
        ("text/csv", "", StatusCode::BAD_REQUEST, "the CSV is empty"),
    ] {
        let request = Request::post("/endpoints/single/invocations").header("content-type", media);
        let answer = running.send(request.body(Body::from(body)).unwrap()).await;
        let message = answer.json()["message"].to_string();
        assert_eq!(answer.status, status, "{message}");
        assert!(message.contains(expected), "{message} lacks {expected}");
    }
    let answer = running
        .post("/endpoints/none/invocations", &json!({"instances": [1]}))
        .await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn tensorflow_serving_clients_predict() {
    let (_world, running) = gateway().await;
    let cases: [(&str, Value, Value); 2] = [
        (
            "single",
            json!({"instances": [[1, 2]]}),
            json!({"predictions": [[2.0, 4.0]]}),
        ),
        (
            "named",
            json!({"signature_name": "serving_default", "inputs": {"x": [[1, 2]], "who": ["a"], "n": [1]}}),
            json!({"outputs": {"y": [[2.0, 4.0]], "name": ["a"], "m": [1]}}),
        ),
    ];
    for (name, body, expected) in cases {
        let answer = running.post(&format!("/v1/models/{name}:predict"), &body).await;
        assert_eq!((answer.status, answer.json()), (StatusCode::OK, expected));
    }
    let status = running.get("/v1/models/single").await.json();
    assert_eq!(status["ready"], true);
    assert_eq!(status["model_version_status"][0]["version"], "1");
    for (path, status) in [
        ("/v1/models/single", StatusCode::BAD_REQUEST),
        ("/v1/models/single:explain", StatusCode::BAD_REQUEST),
        ("/v1/models/none:predict", StatusCode::NOT_FOUND),
    ] {
        assert_eq!(
            running.post(path, &json!({"instances": [[1, 2]]})).await.status,
            status,
            "{path}"
        );
    }
    assert_eq!(running.get("/ping").await.status, StatusCode::OK);
    // A version may be named.
    let rows = json!({"instances": [[1, 2]]});
    let answer = running.post("/v1/models/single/versions/1:predict", &rows).await;
    assert_eq!(
        (answer.status, answer.json()),
        (StatusCode::OK, json!({"predictions": [[2.0, 4.0]]}))
    );
    let status = running.get("/v1/models/single/versions/1").await;
    assert_eq!(status.json()["model_version_status"][0]["version"], "1");
    for path in ["/v1/models/single/versions/7:predict", "/v1/models/single/versions/7"] {
        let answer = if path.ends_with("predict") {
            running.post(path, &rows).await
        } else {
            running.get(path).await
        };
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{path}");
        assert!(
            answer.json()["error"]
                .as_str()
                .unwrap()
                .contains("does not serve version `7`")
        );
    }
}

#[tokio::test]
async fn a_model_that_is_not_ready_says_so_to_probes() {
    let world = World::new(Registry::new(vec![]));
    world.registry.set(vec![endpoint("empty", vec![])]);
    let running = world.start_ready().await;
    let status = running.get("/v1/models/empty").await;
    assert_eq!(status.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(status.json()["ready"], false);
    running.stop().await;
}

#[tokio::test]
async fn parameters_of_models_are_refused_instead_of_dropped() {
    let (_world, running) = gateway().await;
    let ask = async |params: Value| {
        let body = json!({"inputs": [[1, 2]], "params": params});
        running.post("/endpoints/single/invocations", &body).await
    };
    for nothing in [Value::Null, json!({})] {
        assert_eq!(ask(nothing).await.status, StatusCode::OK);
    }
    let refused = ask(json!({"temperature": 0.5})).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    assert!(refused.json()["message"].as_str().unwrap().contains("`params`"));
}

fn parquet(columns: Vec<(&str, ArrayRef)>) -> Vec<u8> {
    let table = RecordBatch::try_from_iter(columns).unwrap();
    let mut file = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut file, table.schema(), None).unwrap();
    writer.write(&table).unwrap();
    writer.close().unwrap();
    file
}

#[tokio::test]
async fn parquet_is_read_by_column_or_by_row_and_bounded() {
    let (_world, running) = gateway().await;
    let ask = |endpoint: &str, body: Vec<u8>| {
        let request = Request::post(format!("/endpoints/{endpoint}/invocations"));
        let request = request.header("content-type", "application/vnd.apache.parquet");
        running.send(request.body(Body::from(body)).unwrap())
    };
    let floats = |values: Vec<f64>| Arc::new(Float64Array::from(values)) as ArrayRef;
    let integers = |values: Vec<i64>| Arc::new(Int64Array::from(values)) as ArrayRef;
    // The only input takes whole rows, of columns with any names and types.
    let rows = parquet(vec![("a", floats(vec![1.0, 3.0])), ("b", integers(vec![2, 4]))]);
    let answer = ask("single", rows).await;
    assert_eq!(answer.json(), json!({"predictions": [[2.0, 4.0], [6.0, 8.0]]}));

    let missing = ask("named", parquet(vec![("n", integers(vec![1]))])).await;
    assert_eq!(missing.status, StatusCode::BAD_REQUEST);
    assert!(
        missing.json()["message"].as_str().unwrap().contains("x, who"),
        "{:?}",
        missing.json()
    );
    let narrow = ask("single", parquet(vec![("a", floats(vec![1.0]))])).await;
    assert_eq!(narrow.status, StatusCode::BAD_REQUEST);
    let broken = ask("single", b"PAR1 and no more PAR1".to_vec()).await;
    assert_eq!(broken.status, StatusCode::BAD_REQUEST);
    assert!(broken.json()["message"].as_str().unwrap().contains("no Parquet file"));
    // A few bytes that unpack to more than a body may have.
    let bomb = parquet(vec![
        ("a", floats(vec![7.0; 9 << 20])),
        ("b", floats(vec![7.0; 9 << 20])),
    ]);
    assert!(bomb.len() < 1 << 20, "{} bytes", bomb.len());
    assert_eq!(ask("single", bomb).await.status, StatusCode::PAYLOAD_TOO_LARGE);
}
