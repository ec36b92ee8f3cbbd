//! Experiments and runs.

use http::{Method, StatusCode};
use modelyard_common::error::{ErrorKind, Fault, RemoteError};
use modelyard_proto::registry::v1::{
    CreateRunRequest, DatasetInput, FinishRunRequest, GetRunRequest, LogBatchRequest, Metric, Param, Run, RunStatus,
    Tag,
};
use serde_json::{Value, json};

use crate::support::{PROJECT, TestRegistry, registries};

fn request(key: &str) -> CreateRunRequest {
    CreateRunRequest {
        project: PROJECT.to_owned(),
        experiment: "flight delays: all/of them".to_owned(),
        idempotency_key: key.to_owned(),
        ..CreateRunRequest::default()
    }
}

async fn create(registry: &TestRegistry, request: CreateRunRequest) -> Run {
    registry
        .runs()
        .create_run(request)
        .await
        .unwrap()
        .into_inner()
        .run
        .unwrap()
}

fn metric(key: &str, step: i64, timestamp_us: i64, value: f64) -> Metric {
    Metric {
        key: key.to_owned(),
        value,
        timestamp_us,
        step,
    }
}

fn param(key: &str, value: &str) -> Param {
    Param {
        key: key.to_owned(),
        value: value.to_owned(),
    }
}

fn batch(run: &Run, params: Vec<Param>, metrics: Vec<Metric>) -> LogBatchRequest {
    LogBatchRequest {
        project: PROJECT.to_owned(),
        run_id: run.run_id.clone(),
        params,
        metrics,
        tags: vec![Tag {
            key: "last".to_owned(),
            value: "batch".to_owned(),
        }],
    }
}

async fn get(registry: &TestRegistry, run: &Run) -> Run {
    let request = GetRunRequest {
        project: PROJECT.to_owned(),
        run_id: run.run_id.clone(),
    };
    registry
        .runs()
        .get_run(request)
        .await
        .unwrap()
        .into_inner()
        .run
        .unwrap()
}

#[tokio::test]
async fn a_run_from_its_start_to_its_end() {
    for (_place, registry) in registries().await {
        let file = registry.upload("a\n1\n").await;
        let files = json!({"files": [{"name": "a.csv", "digest": file}]});
        let data = registry.take(Method::POST, "datasets/flights/versions", &files).await;
        let mut new = request("");
        new.inputs = vec![DatasetInput {
            name: "flights".to_owned(),
            version: 1,
            digest: String::new(),
            context: "training".to_owned(),
        }];
        let run = create(&registry, new).await;
        assert_eq!(run.experiment_id, "1");
        assert_eq!(run.run_id.len(), 32);
        assert!(run.name.starts_with("run-"), "{}", run.name);
        assert_eq!(run.inputs[0].digest, data["digest"].as_str().unwrap());

        let points = vec![
            metric("auc", 1, 10, 0.6),
            metric("auc", 2, 5, 0.7),
            metric("auc", 2, 5, 0.65),
            metric("auc", 1, 20, 0.9),
            metric("loss", 0, 0, f64::NAN),
            metric("loss", 0, 0, f64::INFINITY),
        ];
        let request = batch(&run, vec![param("trees", "150")], points);
        // An exact repetition changes nothing.
        for _ in 0..2 {
            registry.runs().log_batch(request.clone()).await.unwrap();
        }
        let logged = get(&registry, &run).await;
        assert_eq!(logged.params, [param("trees", "150")]);
        assert_eq!(logged.metrics[0], metric("auc", 2, 5, 0.7));
        assert_eq!(logged.metrics[1].value.to_bits(), f64::MAX.to_bits());
        assert_eq!(logged.tags[0].value, "batch");

        let path = format!("runs/{}/metrics", run.run_id);
        let mut history = Vec::new();
        let mut cursor = String::new();
        loop {
            let page = registry.get(&format!("{path}/auc?limit=3{cursor}")).await;
            history.extend(
                page["items"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|point| point["value"].as_f64().unwrap()),
            );
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        assert_eq!(history, [0.6, 0.9, 0.65, 0.7]);
        let losses = registry.get(&format!("{path}/loss")).await;
        assert_eq!(losses["items"].as_array().unwrap().len(), 2);
        assert_eq!(losses["items"][0]["value"], "NaN");
        assert_eq!(registry.get(&format!("{path}/unknown")).await["items"], json!([]));

        registry.clock.advance(std::time::Duration::from_secs(7));
        let finish = FinishRunRequest {
            project: PROJECT.to_owned(),
            run_id: run.run_id.clone(),
            status: RunStatus::Finished.into(),
        };
        let finished = registry
            .runs()
            .finish_run(finish.clone())
            .await
            .unwrap()
            .into_inner()
            .run
            .unwrap();
        assert_eq!(finished.end_time_us - finished.start_time_us, 7_000_000);
        registry.clock.advance(std::time::Duration::from_secs(7));
        let again = registry
            .runs()
            .finish_run(finish)
            .await
            .unwrap()
            .into_inner()
            .run
            .unwrap();
        assert_eq!(again, finished);
        let shown = registry.get(&format!("runs/{}", run.run_id)).await;
        assert_eq!(
            (&shown["status"], &shown["metrics"]["auc"]["step"]),
            (&json!("FINISHED"), &json!(2))
        );
    }
}

#[tokio::test]
async fn a_repeated_creation_finds_the_first_ones_run_also_at_the_same_time() {
    for (place, registry) in registries().await {
        let calls = (0..8).map(|_| create(&registry, request("pipeline-1/train")));
        let runs = futures::future::join_all(calls).await;
        assert!(runs.iter().all(|run| run.run_id == runs[0].run_id), "{}", place.name);
        let mut other = request("pipeline-1/train");
        other.name = "another".to_owned();
        let error = RemoteError::from(registry.runs().create_run(other).await.unwrap_err());
        assert_eq!(
            (error.kind(), error.reason()),
            (ErrorKind::AlreadyExists, "IDEMPOTENCY_KEY_REUSED")
        );
        let without_key = [
            create(&registry, request("")).await,
            create(&registry, request("")).await,
        ];
        assert_ne!(without_key[0].run_id, without_key[1].run_id);
    }
}

#[tokio::test]
async fn experiments_count_from_zero_and_runs_are_listed_newest_first() {
    for (_place, registry) in registries().await {
        let mut ids = Vec::new();
        for number in 0..5 {
            let mut new = request("");
            new.name = format!("run {number}");
            registry.clock.advance(std::time::Duration::from_secs(1));
            ids.push(create(&registry, new).await.run_id);
        }
        let mut other = request("");
        other.experiment = "other".to_owned();
        create(&registry, other).await;
        let experiments = registry.get("experiments").await;
        let listed: Vec<_> = experiments["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|experiment| {
                (
                    experiment["experiment_id"].as_str().unwrap(),
                    experiment["name"].as_str().unwrap(),
                )
            })
            .collect();
        assert_eq!(
            listed,
            [("0", "Default"), ("1", "flight delays: all/of them"), ("2", "other")]
        );
        assert_eq!(registry.get("runs").await["items"].as_array().unwrap().len(), 6);

        let of_experiment = "runs?experiment=flight%20delays%3A%20all%2Fof%20them&limit=2";
        let (mut seen, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = registry.get(&format!("{of_experiment}{cursor}")).await;
            seen.extend(
                page["items"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|run| run["run_id"].as_str().unwrap().to_owned()),
            );
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        ids.reverse();
        assert_eq!(seen, ids);
    }
}

#[tokio::test]
async fn a_refused_batch_leaves_nothing_behind() {
    for (place, registry) in registries().await {
        let run = create(&registry, request("")).await;
        let first = batch(&run, vec![param("trees", "150")], vec![]);
        registry.runs().log_batch(first).await.unwrap();
        let before = get(&registry, &run).await;
        let point = || vec![metric("auc", 0, 0, 0.5)];
        let many = (0..1001).map(|step| metric("auc", step, 0, 0.5)).collect();
        let mut unknown = batch(&run, vec![], point());
        unknown.run_id = "f".repeat(32);
        let long = "x".repeat(6001);
        let cases = [
            (
                batch(&run, vec![param("depth", "6"), param("trees", "151")], point()),
                ErrorKind::AlreadyExists,
                "Param `trees`",
            ),
            (
                batch(&run, vec![param("depth", "6"), param("depth", "7")], point()),
                ErrorKind::InvalidArgument,
                "given twice",
            ),
            (
                batch(&run, vec![param("", "6")], point()),
                ErrorKind::InvalidArgument,
                "is not a key for a param",
            ),
            (
                batch(&run, vec![param("depth", &long)], point()),
                ErrorKind::InvalidArgument,
                "6001 bytes",
            ),
            (
                batch(&run, vec![], many),
                ErrorKind::InvalidArgument,
                "too many for one batch",
            ),
            (unknown, ErrorKind::NotFound, "Run with id=ffff"),
        ];
        for (request, kind, named) in cases {
            let error = RemoteError::from(registry.runs().log_batch(request).await.unwrap_err());
            assert_eq!(error.kind(), kind, "{} {error}", place.name);
            assert!(error.to_string().contains(named), "{named}: {error}");
        }
        assert_eq!(get(&registry, &run).await, before);
        let mut finish = FinishRunRequest {
            project: PROJECT.to_owned(),
            run_id: run.run_id.clone(),
            status: RunStatus::Running.into(),
        };
        let error = RemoteError::from(registry.runs().finish_run(finish.clone()).await.unwrap_err());
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        finish.run_id = "none".to_owned();
        finish.status = RunStatus::Failed.into();
        let error = RemoteError::from(registry.runs().finish_run(finish).await.unwrap_err());
        assert_eq!(error.kind(), ErrorKind::NotFound);
        let mut bad = request("");
        bad.inputs = vec![DatasetInput::default()];
        let error = RemoteError::from(registry.runs().create_run(bad).await.unwrap_err());
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        for path in ["runs/none", "runs/none/metrics/auc"] {
            let (status, ..) = registry.refuse(Method::GET, path, &Value::Null).await;
            assert_eq!(status, StatusCode::NOT_FOUND, "{path}");
        }
    }
}

#[tokio::test]
async fn batches_at_the_same_time_keep_the_latest_value() {
    for (place, registry) in registries().await {
        let run = create(&registry, request("")).await;
        let batches = (0..10).map(|number| {
            let steps = (0..20).map(|step| metric("auc", step * 10 + number, 0, number as f64));
            let (mut client, request) = (
                registry.runs(),
                batch(&run, vec![param("trees", "150")], steps.collect()),
            );
            async move { client.log_batch(request).await }
        });
        for logged in futures::future::join_all(batches).await {
            logged.unwrap();
        }
        assert_eq!(
            get(&registry, &run).await.metrics,
            [metric("auc", 199, 0, 9.0)],
            "{}",
            place.name
        );
        let history = registry
            .get(&format!("runs/{}/metrics/auc?limit=1000", run.run_id))
            .await;
        assert_eq!(history["items"].as_array().unwrap().len(), 200);
    }
}
