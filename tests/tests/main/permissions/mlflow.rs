//! The table of what can be asked in MLflow's protocol, and what each operation needs.

use super::{
    operations::{Operation, op},
    roles::Need,
};

const READ_RUNS: Need = Need::Project(&["run.read"]);
const WRITE_RUNS: Need = Need::Project(&["run.write"]);
const READ_ARTIFACTS: Need = Need::Project(&["artifact.read"]);
const WRITE_ARTIFACTS: Need = Need::Project(&["artifact.write"]);
const READ_MODELS: Need = Need::Project(&["model.read"]);
const WRITE_MODELS: Need = Need::Project(&["model.write"]);
const WRITE_ALIASES: Need = Need::Project(&["alias.write"]);

const RUN: &str = r#"{"run_id": "absent"}"#;
const EXPERIMENT: &str = r#"{"experiment_id": "4711", "new_name": "absent", "key": "k", "value": "v"}"#;
const MODEL: &str = r#"{"name": "absent", "new_name": "gone", "key": "k", "value": "v", "alias": "a", "version": "1"}"#;
const VERSION: &str = r#"{"name": "absent", "version": "1", "key": "k", "value": "v", "stage": "Staging"}"#;

/// Everything in the `routes!` of the protocol. What is named is absent, or it does not matter that it comes into being.
pub const MLFLOW: &[Operation] = &[
    op("GET /api/3.0/mlflow/server-info", Need::Public),
    // --- experiments
    op("POST /api/2.0/mlflow/experiments/create", WRITE_RUNS).json(r#"{"name": "\n"}"#),
    op("GET /api/2.0/mlflow/experiments/get", READ_RUNS).at("/api/2.0/mlflow/experiments/get?experiment_id=4711"),
    op("GET /api/2.0/mlflow/experiments/get-by-name", READ_RUNS)
        .at("/api/2.0/mlflow/experiments/get-by-name?experiment_name=absent"),
    op("POST /api/2.0/mlflow/experiments/delete", WRITE_RUNS).json(EXPERIMENT),
    op("POST /api/2.0/mlflow/experiments/restore", WRITE_RUNS).json(EXPERIMENT),
    op("POST /api/2.0/mlflow/experiments/update", WRITE_RUNS).json(EXPERIMENT),
    op("POST /api/2.0/mlflow/experiments/set-experiment-tag", WRITE_RUNS).json(EXPERIMENT),
    op("POST /api/2.0/mlflow/experiments/delete-experiment-tag", WRITE_RUNS).json(EXPERIMENT),
    op("POST /api/2.0/mlflow/experiments/search", READ_RUNS).json("{}"),
    op("GET /api/2.0/mlflow/experiments/search", READ_RUNS).at("/api/2.0/mlflow/experiments/search?max_results=1"),
    // --- runs
    op("POST /api/2.0/mlflow/runs/create", WRITE_RUNS).json(EXPERIMENT),
    op("GET /api/2.0/mlflow/runs/get", READ_RUNS).at("/api/2.0/mlflow/runs/get?run_id=absent"),
    op("POST /api/2.0/mlflow/runs/update", WRITE_RUNS).json(RUN),
    op("POST /api/2.0/mlflow/runs/delete", WRITE_RUNS).json(RUN),
    op("POST /api/2.0/mlflow/runs/restore", WRITE_RUNS).json(RUN),
    op("POST /api/2.0/mlflow/runs/log-metric", WRITE_RUNS)
        .json(r#"{"run_id": "absent", "key": "k", "value": 1, "timestamp": 1}"#),
    op("POST /api/2.0/mlflow/runs/log-parameter", WRITE_RUNS).json(r#"{"run_id": "absent", "key": "k", "value": "v"}"#),
    op("POST /api/2.0/mlflow/runs/log-batch", WRITE_RUNS).json(RUN),
    op("POST /api/2.0/mlflow/runs/log-model", READ_RUNS).json(r#"{"run_id": "absent", "model_json": "{}"}"#),
    op("POST /api/2.0/mlflow/runs/log-inputs", WRITE_RUNS).json(RUN),
    op("POST /api/2.0/mlflow/runs/outputs", WRITE_RUNS).json(RUN),
    op("POST /api/2.0/mlflow/runs/set-tag", WRITE_RUNS).json(r#"{"run_id": "absent", "key": "k", "value": "v"}"#),
    op("POST /api/2.0/mlflow/runs/delete-tag", WRITE_RUNS).json(r#"{"run_id": "absent", "key": "k"}"#),
    op("POST /api/2.0/mlflow/runs/search", READ_RUNS).json("{}"),
    op("GET /api/2.0/mlflow/metrics/get-history", READ_RUNS)
        .at("/api/2.0/mlflow/metrics/get-history?run_id=absent&metric_key=k"),
    op("GET /api/2.0/mlflow/metrics/get-history-bulk-interval", READ_RUNS)
        .at("/api/2.0/mlflow/metrics/get-history-bulk-interval?run_ids=absent&metric_key=k"),
    // --- logged models
    op("POST /api/2.0/mlflow/logged-models", WRITE_RUNS).json(EXPERIMENT),
    op("POST /api/2.0/mlflow/logged-models/search", READ_RUNS).json(r#"{"experiment_ids": ["4711"]}"#),
    op("GET /api/2.0/mlflow/logged-models/{model_id}", READ_RUNS),
    op("PATCH /api/2.0/mlflow/logged-models/{model_id}", WRITE_RUNS).json(r#"{"status": "LOGGED_MODEL_READY"}"#),
    op("DELETE /api/2.0/mlflow/logged-models/{model_id}", WRITE_RUNS),
    op("POST /api/2.0/mlflow/logged-models/{model_id}/params", WRITE_RUNS).json("{}"),
    op("PATCH /api/2.0/mlflow/logged-models/{model_id}/tags", WRITE_RUNS).json("{}"),
    op("DELETE /api/2.0/mlflow/logged-models/{model_id}/tags/{key}", WRITE_RUNS),
    // --- artifacts
    op("GET /get-artifact", READ_RUNS).at("/get-artifact?run_id=absent&path=absent"),
    op("GET /model-versions/get-artifact", READ_MODELS)
        .at("/model-versions/get-artifact?name=absent&version=1&path=absent"),
    op("GET /api/2.0/mlflow/artifacts/list", READ_RUNS).at("/api/2.0/mlflow/artifacts/list?run_id=absent"),
    op(
        "GET /api/2.0/mlflow/logged-models/{model_id}/artifacts/directories",
        READ_RUNS,
    ),
    op("GET /api/2.0/mlflow-artifacts/artifacts", READ_ARTIFACTS).at("/api/2.0/mlflow-artifacts/artifacts?path=absent"),
    op("GET /api/2.0/mlflow-artifacts/artifacts/{*path}", READ_ARTIFACTS)
        .at("/api/2.0/mlflow-artifacts/artifacts/absent"),
    op("PUT /api/2.0/mlflow-artifacts/artifacts/{*path}", WRITE_ARTIFACTS)
        .at("/api/2.0/mlflow-artifacts/artifacts/matrix"),
    op("DELETE /api/2.0/mlflow-artifacts/artifacts/{*path}", WRITE_ARTIFACTS)
        .at("/api/2.0/mlflow-artifacts/artifacts/absent"),
    op("POST /api/2.0/mlflow-artifacts/mpu/create/{*path}", WRITE_ARTIFACTS)
        .at("/api/2.0/mlflow-artifacts/mpu/create/absent")
        .json(r#"{"path": "absent", "num_parts": 1}"#),
    op("POST /api/2.0/mlflow-artifacts/mpu/complete/{*path}", WRITE_ARTIFACTS)
        .at("/api/2.0/mlflow-artifacts/mpu/complete/absent")
        .json(r#"{"path": "absent", "upload_id": "absent", "parts": [{"part_number": 1}]}"#),
    op("POST /api/2.0/mlflow-artifacts/mpu/abort/{*path}", WRITE_ARTIFACTS)
        .at("/api/2.0/mlflow-artifacts/mpu/abort/absent")
        .json(r#"{"path": "absent", "upload_id": "absent"}"#),
    op("GET /api/2.0/mlflow-artifacts/presigned/{*path}", READ_ARTIFACTS)
        .at("/api/2.0/mlflow-artifacts/presigned/absent"),
    // --- registered models and their versions
    op("POST /api/2.0/mlflow/registered-models/create", WRITE_MODELS).json(r#"{"name": "a/b"}"#),
    op("GET /api/2.0/mlflow/registered-models/get", READ_MODELS)
        .at("/api/2.0/mlflow/registered-models/get?name=absent"),
    op("PATCH /api/2.0/mlflow/registered-models/update", WRITE_MODELS).json(MODEL),
    op("POST /api/2.0/mlflow/registered-models/rename", WRITE_MODELS).json(MODEL),
    op("DELETE /api/2.0/mlflow/registered-models/delete", WRITE_MODELS).json(MODEL),
    op("GET /api/2.0/mlflow/registered-models/search", READ_MODELS)
        .at("/api/2.0/mlflow/registered-models/search?max_results=1"),
    op("GET /api/2.0/mlflow/registered-models/get-latest-versions", READ_MODELS)
        .at("/api/2.0/mlflow/registered-models/get-latest-versions?name=absent"),
    op(
        "POST /api/2.0/mlflow/registered-models/get-latest-versions",
        READ_MODELS,
    )
    .json(MODEL),
    op("POST /api/2.0/mlflow/registered-models/set-tag", WRITE_MODELS).json(MODEL),
    op("DELETE /api/2.0/mlflow/registered-models/delete-tag", WRITE_MODELS).json(MODEL),
    op("POST /api/2.0/mlflow/registered-models/alias", WRITE_ALIASES).json(MODEL),
    op("DELETE /api/2.0/mlflow/registered-models/alias", WRITE_ALIASES).json(MODEL),
    op("GET /api/2.0/mlflow/registered-models/alias", READ_MODELS)
        .at("/api/2.0/mlflow/registered-models/alias?name=absent&alias=a"),
    op("POST /api/2.0/mlflow/model-versions/create", WRITE_MODELS)
        .json(r#"{"name": "absent", "source": "mlflow-artifacts:/1/x"}"#),
    op("GET /api/2.0/mlflow/model-versions/get", READ_MODELS)
        .at("/api/2.0/mlflow/model-versions/get?name=absent&version=1"),
    op("PATCH /api/2.0/mlflow/model-versions/update", WRITE_MODELS).json(VERSION),
    op("POST /api/2.0/mlflow/model-versions/transition-stage", WRITE_MODELS).json(VERSION),
    op("DELETE /api/2.0/mlflow/model-versions/delete", WRITE_MODELS).json(VERSION),
    op("GET /api/2.0/mlflow/model-versions/search", READ_MODELS)
        .at("/api/2.0/mlflow/model-versions/search?max_results=1"),
    op("GET /api/2.0/mlflow/model-versions/get-download-uri", READ_MODELS)
        .at("/api/2.0/mlflow/model-versions/get-download-uri?name=absent&version=1"),
    op("POST /api/2.0/mlflow/model-versions/set-tag", WRITE_MODELS).json(VERSION),
    op("DELETE /api/2.0/mlflow/model-versions/delete-tag", WRITE_MODELS).json(VERSION),
];
