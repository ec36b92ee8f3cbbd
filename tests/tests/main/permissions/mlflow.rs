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
const READ_IDENTITIES: Need = Need::Installation(&["identity.read"]);
const WRITE_IDENTITIES: Need = Need::Installation(&["identity.write"]);
const READ_ACCESS: Need = Need::Installation(&["access.read"]);
const WRITE_ACCESS: Need = Need::Installation(&["access.write"]);
const WRITE_ALIASES: Need = Need::Project(&["alias.write"]);
const READ_WEBHOOKS: Need = Need::Project(&["webhook.read"]);
const WRITE_WEBHOOKS: Need = Need::Project(&["webhook.write"]);

const RUN: &str = r#"{"run_id": "absent"}"#;
const EXPERIMENT: &str = r#"{"experiment_id": "4711", "new_name": "absent", "key": "k", "value": "v"}"#;
const TRACE: &str = r#"{"trace": {"trace_info": {"trace_id": "tr-1", "trace_location": {"mlflow_experiment": {"experiment_id": "4711"}}}}}"#;
const SCORER: &str = r#"{"experiment_id": "4711", "name": "absent", "serialized_scorer": "{}", "sample_rate": 0.5}"#;
const MODEL: &str = r#"{"name": "absent", "new_name": "gone", "key": "k", "value": "v", "alias": "a", "version": "1"}"#;
const VERSION: &str = r#"{"name": "absent", "version": "1", "key": "k", "value": "v", "stage": "Staging"}"#;
const WEBHOOK: &str =
    r#"{"name": "_", "url": "https://example.com/", "events": [{"entity": "PROMPT", "action": "CREATED"}]}"#;

/// Everything in the `routes!` of the protocol. What is named is absent, or it does not matter that it comes into being.
pub const MLFLOW: &[Operation] = &[
    op("GET /api/3.0/mlflow/server-info", Need::Public),
    // --- workspaces, users and roles
    op("GET /api/3.0/mlflow/workspaces", Need::SignedIn),
    op(
        "POST /api/3.0/mlflow/workspaces",
        Need::Installation(&["project.write"]),
    )
    .json(r#"{"name": "-"}"#),
    op(
        "GET /api/3.0/mlflow/workspaces/{name}",
        Need::Project(&["project.read"]),
    )
    .at("/api/3.0/mlflow/workspaces/{project}"),
    op(
        "PATCH /api/3.0/mlflow/workspaces/{name}",
        Need::Project(&["project.write"]),
    )
    .at("/api/3.0/mlflow/workspaces/{project}")
    .json("{}"),
    op(
        "DELETE /api/3.0/mlflow/workspaces/{name}",
        Need::Project(&["project.write"]),
    )
    .at("/api/3.0/mlflow/workspaces/{project}?mode=NONE"),
    op("POST /api/2.0/mlflow/users/create", WRITE_IDENTITIES).json(r#"{"username": "-bad", "password": "x"}"#),
    op("GET /api/2.0/mlflow/users/get", READ_IDENTITIES).at("/api/2.0/mlflow/users/get?username=absent"),
    op("GET /api/2.0/mlflow/users/current", Need::SignedIn),
    op("GET /api/2.0/mlflow/users/list", READ_IDENTITIES),
    op("PATCH /api/2.0/mlflow/users/update-password", WRITE_IDENTITIES)
        .json(r#"{"username": "absent", "password": "x"}"#),
    op("PATCH /api/2.0/mlflow/users/update-admin", WRITE_ACCESS).json(r#"{"username": "absent", "is_admin": true}"#),
    op("DELETE /api/2.0/mlflow/users/delete", WRITE_IDENTITIES).json(r#"{"username": "absent"}"#),
    op("POST /api/3.0/mlflow/roles/create", WRITE_ACCESS).json("{}"),
    op("GET /api/3.0/mlflow/roles/get", READ_ACCESS).at("/api/3.0/mlflow/roles/get?role_id=1"),
    op("GET /api/3.0/mlflow/roles/list", READ_ACCESS),
    op("GET /api/3.0/mlflow/roles/list", Need::Project(&["access.read"]))
        .at("/api/3.0/mlflow/roles/list?workspace={project}"),
    op("PATCH /api/3.0/mlflow/roles/update", WRITE_ACCESS).json(r#"{"role_id": 1}"#),
    op("DELETE /api/3.0/mlflow/roles/delete", WRITE_ACCESS).json(r#"{"role_id": 1}"#),
    op("POST /api/3.0/mlflow/roles/permissions/add", WRITE_ACCESS).json(r#"{"role_id": 1}"#),
    op("DELETE /api/3.0/mlflow/roles/permissions/remove", WRITE_ACCESS).json("{}"),
    op("GET /api/3.0/mlflow/roles/permissions/list", READ_ACCESS)
        .at("/api/3.0/mlflow/roles/permissions/list?role_id=1"),
    op("PATCH /api/3.0/mlflow/roles/permissions/update", WRITE_ACCESS).json("{}"),
    op("POST /api/3.0/mlflow/roles/assign", WRITE_ACCESS).json(r#"{"role_id": 1, "username": "absent"}"#),
    op("DELETE /api/3.0/mlflow/roles/unassign", WRITE_ACCESS).json(r#"{"role_id": 1, "username": "absent"}"#),
    op("GET /api/3.0/mlflow/roles/users/list", READ_ACCESS).at("/api/3.0/mlflow/roles/users/list?role_id=1"),
    op("GET /api/3.0/mlflow/users/roles/list", READ_ACCESS).at("/api/3.0/mlflow/users/roles/list?username=absent"),
    op("GET /api/3.0/mlflow/users/current/permissions", Need::SignedIn),
    op("GET /api/3.0/mlflow/users/permissions/list", READ_ACCESS)
        .at("/api/3.0/mlflow/users/permissions/list?username=absent"),
    op(
        "GET /api/3.0/mlflow/users/permissions/get",
        Need::Project(&["access.read"]),
    )
    .at("/api/3.0/mlflow/users/permissions/get?username=absent&resource_type=experiment&resource_id=1"),
    op(
        "POST /api/3.0/mlflow/users/permissions/grant",
        Need::Project(&["access.write"]),
    )
    .json("{}"),
    op(
        "POST /api/3.0/mlflow/users/permissions/revoke",
        Need::Project(&["access.write"]),
    )
    .json("{}"),
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
    op("POST /api/2.0/mlflow/experiments/search-datasets", READ_RUNS).json(r#"{"experiment_ids": ["4711"]}"#),
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
    op("GET /api/2.0/mlflow/metrics/get-history-bulk", READ_RUNS)
        .at("/api/2.0/mlflow/metrics/get-history-bulk?run_id=absent&metric_key=k"),
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
    // --- traces
    op("POST /v1/traces", WRITE_RUNS).json("{}"),
    op("POST /api/2.0/mlflow/traces", WRITE_RUNS).json(EXPERIMENT),
    op("PATCH /api/2.0/mlflow/traces/{trace_id}", WRITE_RUNS).json(r#"{"timestamp_ms": 1, "status": "OK"}"#),
    op("GET /api/2.0/mlflow/traces", READ_RUNS).at("/api/2.0/mlflow/traces?experiment_ids=4711"),
    op("GET /api/2.0/mlflow/traces/{trace_id}/info", READ_RUNS),
    op("PATCH /api/2.0/mlflow/traces/{trace_id}/tags", WRITE_RUNS).json(r#"{"key": "k", "value": "v"}"#),
    op("DELETE /api/2.0/mlflow/traces/{trace_id}/tags", WRITE_RUNS).json(r#"{"key": "k"}"#),
    op("POST /api/2.0/mlflow/traces/delete-traces", WRITE_RUNS)
        .json(r#"{"experiment_id": "4711", "max_timestamp_millis": 1}"#),
    op("POST /api/2.0/mlflow/traces/link-to-run", WRITE_RUNS).json(r#"{"run_id": "absent", "trace_ids": ["absent"]}"#),
    op("POST /api/2.0/mlflow/traces/link-prompts", WRITE_RUNS)
        .json(r#"{"trace_id": "absent", "prompt_versions": [{"name": "p", "version": "1"}]}"#),
    op("GET /api/2.0/mlflow/get-trace-artifact", READ_RUNS).at("/api/2.0/mlflow/get-trace-artifact?request_id=absent"),
    op("POST /api/3.0/mlflow/traces", WRITE_RUNS).json(TRACE),
    op("POST /api/3.0/mlflow/traces/search", READ_RUNS)
        .json(r#"{"locations": [{"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": "4711"}}]}"#),
    op("POST /api/3.0/mlflow/traces/metrics", READ_RUNS).json(
        r#"{"experiment_ids": ["4711"], "view_type": "TRACES", "metric_name": "trace_count",
            "aggregations": [{"aggregation_type": "COUNT"}]}"#,
    ),
    op("POST /api/3.0/mlflow/traces/calculate-filter-correlation", READ_RUNS)
        .json(r#"{"experiment_ids": ["4711"], "filter_string1": "name = 'a'", "filter_string2": "name = 'b'"}"#),
    op("GET /api/3.0/mlflow/traces/get", READ_RUNS).at("/api/3.0/mlflow/traces/get?trace_id=absent"),
    op("GET /api/3.0/mlflow/traces/batchGet", READ_RUNS).at("/api/3.0/mlflow/traces/batchGet?trace_ids=absent"),
    op("POST /api/3.0/mlflow/traces/batchGetInfos", READ_RUNS).json(r#"{"trace_ids": ["absent"]}"#),
    op("POST /api/3.0/mlflow/traces/delete-traces", WRITE_RUNS)
        .json(r#"{"experiment_id": "4711", "max_timestamp_millis": 1}"#),
    op("GET /api/3.0/mlflow/traces/{trace_id}", READ_RUNS),
    op("PATCH /api/3.0/mlflow/traces/{trace_id}/tags", WRITE_RUNS).json(r#"{"key": "k", "value": "v"}"#),
    op("DELETE /api/3.0/mlflow/traces/{trace_id}/tags", WRITE_RUNS).json(r#"{"key": "k"}"#),
    op("GET /api/3.0/mlflow/get-trace-artifact", READ_RUNS).at("/api/3.0/mlflow/get-trace-artifact?request_id=absent"),
    op("POST /api/3.0/mlflow/traces/{trace_id}/assessments", WRITE_RUNS)
        .json(r#"{"assessment": {"assessment_name": "good", "feedback": {"value": true}}}"#),
    op(
        "GET /api/3.0/mlflow/traces/{trace_id}/assessments/{assessment_id}",
        READ_RUNS,
    ),
    op(
        "PATCH /api/3.0/mlflow/traces/{trace_id}/assessments/{assessment_id}",
        WRITE_RUNS,
    )
    .json(r#"{"assessment": {"rationale": "r"}, "update_mask": "rationale"}"#),
    op(
        "DELETE /api/3.0/mlflow/traces/{trace_id}/assessments/{assessment_id}",
        WRITE_RUNS,
    ),
    // --- evaluation datasets
    op("POST /api/3.0/mlflow/datasets/create", WRITE_RUNS).json(r#"{"name": "\n"}"#),
    op("POST /api/3.0/mlflow/datasets/search", READ_RUNS).json("{}"),
    op("GET /api/3.0/mlflow/datasets/search", READ_RUNS).at("/api/3.0/mlflow/datasets/search?max_results=1"),
    op("GET /api/3.0/mlflow/datasets/{dataset_id}", READ_RUNS),
    op("DELETE /api/3.0/mlflow/datasets/{dataset_id}", WRITE_RUNS),
    op("GET /api/3.0/mlflow/datasets/{dataset_id}/records", READ_RUNS),
    op("POST /api/3.0/mlflow/datasets/{dataset_id}/records", WRITE_RUNS).json(r#"{"records": "[]"}"#),
    op("DELETE /api/3.0/mlflow/datasets/{dataset_id}/records", WRITE_RUNS)
        .json(r#"{"dataset_record_ids": ["absent"]}"#),
    op("PATCH /api/3.0/mlflow/datasets/{dataset_id}/tags", WRITE_RUNS).json(r#"{"tags": "{}"}"#),
    op("DELETE /api/3.0/mlflow/datasets/{dataset_id}/tags/{key}", WRITE_RUNS),
    op("GET /api/3.0/mlflow/datasets/{dataset_id}/experiment-ids", READ_RUNS),
    op("POST /api/3.0/mlflow/datasets/{dataset_id}/add-experiments", WRITE_RUNS).json("{}"),
    op(
        "POST /api/3.0/mlflow/datasets/{dataset_id}/remove-experiments",
        WRITE_RUNS,
    )
    .json("{}"),
    op("POST /api/3.0/mlflow/scorers/register", WRITE_RUNS).json(SCORER),
    op("GET /api/3.0/mlflow/scorers/list", READ_RUNS),
    op("GET /api/3.0/mlflow/scorers/versions", READ_RUNS)
        .at("/api/3.0/mlflow/scorers/versions?experiment_id=4711&name=absent"),
    op("GET /api/3.0/mlflow/scorers/get", READ_RUNS).at("/api/3.0/mlflow/scorers/get?experiment_id=4711&name=absent"),
    op("DELETE /api/3.0/mlflow/scorers/delete", WRITE_RUNS).json(SCORER),
    op("GET /api/3.0/mlflow/scorers/online-configs", READ_RUNS)
        .at("/api/3.0/mlflow/scorers/online-configs?scorer_ids=absent"),
    op("PUT /api/3.0/mlflow/scorers/online-config", WRITE_RUNS).json(SCORER),
    // --- artifacts
    op("GET /get-artifact", READ_RUNS).at("/get-artifact?run_id=absent&path=absent"),
    op("GET /model-versions/get-artifact", READ_MODELS)
        .at("/model-versions/get-artifact?name=absent&version=1&path=absent"),
    op("GET /api/2.0/mlflow/artifacts/list", READ_RUNS).at("/api/2.0/mlflow/artifacts/list?run_id=absent"),
    op("POST /api/2.0/mlflow/artifacts/presigned-download-url", READ_RUNS)
        .json(r#"{"run_id": "absent", "path": "absent"}"#),
    op("POST /api/2.0/mlflow/artifacts/presigned-upload-url", READ_RUNS)
        .json(r#"{"run_id": "absent", "path": "absent"}"#),
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
    // --- webhooks
    op("POST /api/2.0/mlflow/webhooks", WRITE_WEBHOOKS).json(WEBHOOK),
    op("GET /api/2.0/mlflow/webhooks", READ_WEBHOOKS).at("/api/2.0/mlflow/webhooks?max_results=1"),
    op("GET /api/2.0/mlflow/webhooks/{webhook_id}", READ_WEBHOOKS),
    op("PATCH /api/2.0/mlflow/webhooks/{webhook_id}", WRITE_WEBHOOKS).json(WEBHOOK),
    op("DELETE /api/2.0/mlflow/webhooks/{webhook_id}", WRITE_WEBHOOKS),
    op("POST /api/2.0/mlflow/webhooks/{webhook_id}/test", WRITE_WEBHOOKS).json("{}"),
];
