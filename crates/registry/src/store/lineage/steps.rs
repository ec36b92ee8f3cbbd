//! The statements by which lineage is followed. Each goes by an index, and each holds what it finds to the project.

use crate::model::lineage::{
    ObjectKind::{
        self, DatasetInput, DatasetVersion, Endpoint, Experiment, LoggedModel, ModelVersion, PipelineRun, Prediction,
        Run,
    },
    Relation,
};

/// What a statement is asked with beside the name.
#[derive(Debug, Clone)]
pub(super) enum Bind {
    /// Nothing.
    Nothing,
    /// A version.
    Number(i64),
    /// A digest.
    Text(String),
}

/// One way from an object of a kind to others: `$1` is the project, `$2` the name, `$3` how many at most, `$4` the version or
/// digest.
pub(super) struct Step {
    pub(super) of: ObjectKind,
    pub(super) upstream: bool,
    pub(super) found: ObjectKind,
    /// None: it depends on what it was read for.
    pub(super) relation: Option<Relation>,
    /// Asked with a version as the source of its copies.
    pub(super) by_source: bool,
    pub(super) sql: &'static str,
}

const fn up(of: ObjectKind, found: ObjectKind, relation: Option<Relation>, sql: &'static str) -> Step {
    Step {
        of,
        upstream: true,
        found,
        relation,
        by_source: false,
        sql,
    }
}

const fn down(of: ObjectKind, found: ObjectKind, relation: Option<Relation>, sql: &'static str) -> Step {
    Step {
        upstream: false,
        ..up(of, found, relation, sql)
    }
}

/// The columns that a step gives.
macro_rules! select {
    ($name:literal, $number:literal, $second:literal, $detail:literal, $rest:literal) => {
        concat!(
            "SELECT DISTINCT ",
            $name,
            " AS name, CAST(",
            $number,
            " AS BIGINT) AS number, ",
            $second,
            " AS second, ",
            $detail,
            " AS detail ",
            $rest,
            " ORDER BY 1, 2, 3, 4 LIMIT $3"
        )
    };
}

/// All ways, those to one kind together.
pub(super) const STEPS: &[Step] = &[
    // --- runs
    up(
        Run,
        Experiment,
        Some(Relation::PartOf),
        select!(
            "''",
            "r.experiment_id",
            "''",
            "''",
            "FROM run r WHERE r.project = $1 AND r.id = $2"
        ),
    ),
    down(
        Experiment,
        Run,
        Some(Relation::PartOf),
        "SELECT r.id AS name, CAST(0 AS BIGINT) AS number, '' AS second, '' AS detail FROM run r
         WHERE r.experiment_id = CAST($2 AS BIGINT) AND r.project = $1 ORDER BY r.start_time DESC, r.id DESC LIMIT $3",
    ),
    up(
        Run,
        Run,
        Some(Relation::NestedIn),
        select!(
            "t.value",
            "0",
            "''",
            "''",
            "FROM run r JOIN run_tag t ON t.run_id = r.id
             WHERE r.project = $1 AND r.id = $2 AND t.key = 'mlflow.parentRunId' AND length(t.value) <= 256"
        ),
    ),
    down(
        Run,
        Run,
        Some(Relation::NestedIn),
        select!(
            "r.id",
            "0",
            "''",
            "''",
            "FROM run_tag t JOIN run r ON r.id = t.run_id
             WHERE t.key = 'mlflow.parentRunId' AND length(t.value) <= 256 AND t.value = $2 AND r.project = $1"
        ),
    ),
    up(
        Run,
        PipelineRun,
        Some(Relation::MadeBy),
        select!(
            "t.value",
            "0",
            "''",
            "''",
            "FROM run r JOIN run_tag t ON t.run_id = r.id
             WHERE r.project = $1 AND r.id = $2 AND t.key = 'pipeline_run' AND length(t.value) <= 256"
        ),
    ),
    down(
        PipelineRun,
        Run,
        Some(Relation::MadeBy),
        select!(
            "r.id",
            "0",
            "''",
            "''",
            "FROM run_tag t JOIN run r ON r.id = t.run_id
             WHERE t.key = 'pipeline_run' AND length(t.value) <= 256 AND t.value = $2 AND r.project = $1"
        ),
    ),
    // --- what runs read
    up(
        Run,
        DatasetVersion,
        None,
        select!(
            "i.dataset",
            "i.version",
            "''",
            "i.context",
            "FROM run r JOIN run_input i ON i.run_id = r.id WHERE r.project = $1 AND r.id = $2"
        ),
    ),
    down(
        DatasetVersion,
        Run,
        None,
        select!(
            "r.id",
            "0",
            "''",
            "i.context",
            "FROM run_input i JOIN run r ON r.id = i.run_id
             WHERE i.dataset = $2 AND i.version = $4 AND r.project = $1"
        ),
    ),
    up(
        Run,
        DatasetInput,
        None,
        select!(
            "d.name",
            "0",
            "d.digest",
            "d.context",
            "FROM run r JOIN run_dataset d ON d.run_id = r.id WHERE r.project = $1 AND r.id = $2"
        ),
    ),
    down(
        DatasetInput,
        Run,
        None,
        select!(
            "r.id",
            "0",
            "''",
            "d.context",
            "FROM run_dataset d JOIN run r ON r.id = d.run_id
             WHERE d.name = $2 AND d.digest = $4 AND r.project = $1"
        ),
    ),
    up(
        Run,
        LoggedModel,
        Some(Relation::Read),
        select!(
            "m.model_id",
            "0",
            "''",
            "''",
            "FROM run r JOIN run_model m ON m.run_id = r.id
             WHERE r.project = $1 AND r.id = $2 AND m.role = 'input'"
        ),
    ),
    down(
        LoggedModel,
        Run,
        Some(Relation::Read),
        select!(
            "r.id",
            "0",
            "''",
            "''",
            "FROM run_model m JOIN run r ON r.id = m.run_id
             WHERE m.model_id = $2 AND m.role = 'input' AND r.project = $1"
        ),
    ),
    // --- logged models
    up(
        LoggedModel,
        Run,
        Some(Relation::ProducedBy),
        select!(
            "l.source_run_id",
            "0",
            "''",
            "''",
            "FROM logged_model l WHERE l.project = $1 AND l.id = $2 AND l.source_run_id IS NOT NULL"
        ),
    ),
    up(
        LoggedModel,
        Run,
        Some(Relation::ProducedBy),
        select!(
            "r.id",
            "0",
            "''",
            "''",
            "FROM run_model m JOIN run r ON r.id = m.run_id
             WHERE m.model_id = $2 AND m.role = 'output' AND r.project = $1"
        ),
    ),
    down(
        Run,
        LoggedModel,
        Some(Relation::ProducedBy),
        select!(
            "l.id",
            "0",
            "''",
            "''",
            "FROM logged_model l WHERE l.source_run_id = $2 AND l.project = $1"
        ),
    ),
    down(
        Run,
        LoggedModel,
        Some(Relation::ProducedBy),
        select!(
            "m.model_id",
            "0",
            "''",
            "''",
            "FROM run r JOIN run_model m ON m.run_id = r.id
             WHERE r.project = $1 AND r.id = $2 AND m.role = 'output'"
        ),
    ),
    up(
        LoggedModel,
        DatasetInput,
        Some(Relation::EvaluatedOn),
        select!(
            "e.dataset_name",
            "0",
            "e.dataset_digest",
            "''",
            "FROM logged_model_metric e WHERE $1 = $1 AND e.model_id = $2 AND e.dataset_name <> ''"
        ),
    ),
    down(
        DatasetInput,
        LoggedModel,
        Some(Relation::EvaluatedOn),
        select!(
            "l.id",
            "0",
            "''",
            "''",
            "FROM logged_model_metric e JOIN logged_model l ON l.id = e.model_id
             WHERE e.dataset_name = $2 AND e.dataset_digest = $4 AND e.dataset_name <> '' AND l.project = $1"
        ),
    ),
    // --- versions
    up(
        ModelVersion,
        Run,
        Some(Relation::ProducedBy),
        select!(
            "COALESCE(v.source_run_id, v.run_id)",
            "0",
            "''",
            "''",
            "FROM model_version v WHERE v.project = $1 AND v.model = $2 AND v.version = $4
             AND COALESCE(v.source_run_id, v.run_id) IS NOT NULL"
        ),
    ),
    down(
        Run,
        ModelVersion,
        Some(Relation::ProducedBy),
        select!(
            "v.model",
            "v.version",
            "''",
            "''",
            "FROM model_version v WHERE v.project = $1 AND COALESCE(v.source_run_id, v.run_id) = $2"
        ),
    ),
    up(
        ModelVersion,
        LoggedModel,
        Some(Relation::RegisteredFrom),
        select!(
            "v.model_id",
            "0",
            "''",
            "''",
            "FROM model_version v WHERE v.project = $1 AND v.model = $2 AND v.version = $4 AND v.model_id IS NOT NULL"
        ),
    ),
    down(
        LoggedModel,
        ModelVersion,
        Some(Relation::RegisteredFrom),
        select!(
            "v.model",
            "v.version",
            "''",
            "''",
            "FROM model_version v WHERE v.model_id = $2 AND v.project = $1"
        ),
    ),
    up(
        ModelVersion,
        DatasetVersion,
        Some(Relation::TrainedOn),
        select!(
            "v.dataset",
            "v.dataset_version",
            "''",
            "''",
            "FROM model_version v WHERE v.project = $1 AND v.model = $2 AND v.version = $4 AND v.dataset IS NOT NULL"
        ),
    ),
    down(
        DatasetVersion,
        ModelVersion,
        Some(Relation::TrainedOn),
        select!(
            "v.model",
            "v.version",
            "''",
            "''",
            "FROM model_version v WHERE v.project = $1 AND v.dataset = $2 AND v.dataset_version = $4"
        ),
    ),
    up(
        ModelVersion,
        PipelineRun,
        Some(Relation::MadeBy),
        select!(
            "t.value",
            "0",
            "''",
            "''",
            "FROM model_version_tag t WHERE t.project = $1 AND t.model = $2 AND t.version = $4
             AND t.key = 'pipeline_run' AND length(t.value) <= 256"
        ),
    ),
    down(
        PipelineRun,
        ModelVersion,
        Some(Relation::MadeBy),
        select!(
            "t.model",
            "t.version",
            "''",
            "''",
            "FROM model_version_tag t WHERE t.project = $1 AND t.value = $2
             AND t.key = 'pipeline_run' AND length(t.value) <= 256"
        ),
    ),
    up(
        ModelVersion,
        ModelVersion,
        Some(Relation::CopiedFrom),
        select!(
            "v.source",
            "0",
            "''",
            "''",
            "FROM model_version v
             WHERE v.project = $1 AND v.model = $2 AND v.version = $4 AND v.source LIKE 'models:/%/%'"
        ),
    ),
    Step {
        by_source: true,
        ..down(
            ModelVersion,
            ModelVersion,
            Some(Relation::CopiedFrom),
            select!(
                "v.model",
                "v.version",
                "''",
                "''",
                "FROM model_version v WHERE v.project = $1 AND substr(v.source, 1, 300) = substr($2, 1, 300)
                 AND v.source <> '' AND v.source = $2"
            ),
        )
    },
    // --- endpoints
    up(
        Endpoint,
        ModelVersion,
        Some(Relation::Serves),
        select!(
            "r.model",
            "COALESCE(r.version, a.version)",
            "''",
            "r.role || ' ' || r.reference",
            "FROM endpoint_route r
             LEFT JOIN model_alias a ON a.project = r.project AND a.model = r.model AND a.alias = r.alias
             WHERE r.project = $1 AND r.endpoint = $2 AND COALESCE(r.version, a.version) IS NOT NULL"
        ),
    ),
    down(
        ModelVersion,
        Endpoint,
        Some(Relation::Serves),
        select!(
            "r.endpoint",
            "0",
            "''",
            "r.role || ' ' || r.reference",
            "FROM endpoint_route r
             LEFT JOIN model_alias a ON a.project = r.project AND a.model = r.model AND a.alias = r.alias
             WHERE r.project = $1 AND r.model = $2 AND COALESCE(r.version, a.version) = $4"
        ),
    ),
];

/// The statement that tells what is known of an object: `$1` is the project, `$2` the name, `$3` the version or digest.
pub(super) const fn facts_of(kind: ObjectKind) -> &'static str {
    match kind {
        Experiment => {
            "SELECT name, lifecycle AS state, created_at, updated_at FROM experiment
             WHERE project = $1 AND id = CAST($2 AS BIGINT)"
        }
        Run => {
            "SELECT name, CASE WHEN lifecycle = 'active' THEN status ELSE 'DELETED' END AS state,
                    start_time AS created_at, end_time AS updated_at
             FROM run WHERE project = $1 AND id = $2"
        }
        PipelineRun => {
            "SELECT CAST($2 AS TEXT) AS name, CAST(NULL AS TEXT) AS state, CAST(NULL AS BIGINT) AS created_at,
                    CAST(NULL AS BIGINT) AS updated_at
             WHERE EXISTS (SELECT 1 FROM run_tag t JOIN run r ON r.id = t.run_id
                           WHERE t.key = 'pipeline_run' AND length(t.value) <= 256 AND t.value = $2 AND r.project = $1)
             OR EXISTS (SELECT 1 FROM model_version_tag t
                        WHERE t.project = $1 AND t.value = $2 AND t.key = 'pipeline_run' AND length(t.value) <= 256)"
        }
        DatasetVersion => {
            "SELECT dataset AS name, CAST(NULL AS TEXT) AS state, created_at, CAST(NULL AS BIGINT) AS updated_at
             FROM dataset_version WHERE project = $1 AND dataset = $2 AND version = $3"
        }
        DatasetInput => {
            "SELECT d.name, CAST(NULL AS TEXT) AS state, CAST(NULL AS BIGINT) AS created_at,
                    CAST(NULL AS BIGINT) AS updated_at
             FROM run_dataset d JOIN run r ON r.id = d.run_id
             WHERE r.project = $1 AND d.name = $2 AND d.digest = $3 LIMIT 1"
        }
        LoggedModel => {
            "SELECT name, CASE WHEN lifecycle = 'active' THEN status ELSE 'DELETED' END AS state, created_at, updated_at
             FROM logged_model WHERE project = $1 AND id = $2"
        }
        ModelVersion => {
            "SELECT model AS name, status AS state, created_at, updated_at
             FROM model_version WHERE project = $1 AND model = $2 AND version = $3"
        }
        Endpoint => {
            "SELECT name, CAST(NULL AS TEXT) AS state, created_at, updated_at
             FROM endpoint WHERE project = $1 AND name = $2"
        }
        Prediction => {
            "SELECT e.name, CAST(NULL AS TEXT) AS state, CAST(NULL AS BIGINT) AS created_at,
                    CAST(NULL AS BIGINT) AS updated_at
             FROM endpoint e JOIN model_version v ON v.project = e.project
             WHERE e.project = $1 AND e.name = $4 AND v.model = $2 AND v.version = $3"
        }
    }
}
