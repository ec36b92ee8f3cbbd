//! Runs as rows, and what belongs to them.

use std::collections::BTreeMap;

use conditional_trait_gen::trait_gen;
use modelyard_common::Timestamp;
use modelyard_db::{Pools, PostgresPools, SqlitePools};
use sqlx::{AssertSqlSafe, Database, QueryBuilder};

use super::{SqlStore, json, number, word};
use crate::{
    error::Result,
    model::{
        run::{MetricPoint, MetricValue, Run, RunInput, RunStatus},
        tracking::{Lifecycle, ModelRole, PROXY_SCHEME, RunDataset, RunModel},
    },
};

#[derive(sqlx::FromRow)]
pub(super) struct RunRow {
    pub(super) id: String,
    pub(super) project: String,
    pub(super) experiment_id: i64,
    pub(super) experiment: String,
    pub(super) name: String,
    pub(super) user_id: String,
    pub(super) status: String,
    pub(super) lifecycle: String,
    pub(super) artifact_location: String,
    pub(super) start_time: i64,
    pub(super) end_time: Option<i64>,
    pub(super) request_digest: String,
    /// 0, 1: whether it used datasets, or used or made models.
    has_inputs: i64,
}

/// The columns of [`RunRow`].
macro_rules! select_runs {
    ($rest:literal) => {
        concat!(
            "SELECT r.id, r.project, r.experiment_id, e.name AS experiment, r.name, r.user_id, r.status, r.lifecycle,
                    e.artifact_location, r.start_time, r.end_time, r.request_digest,
                    CAST(CASE WHEN EXISTS (SELECT 1 FROM run_input i WHERE i.run_id = r.id)
                           OR EXISTS (SELECT 1 FROM run_dataset d WHERE d.run_id = r.id)
                           OR EXISTS (SELECT 1 FROM run_model m WHERE m.run_id = r.id) THEN 1 ELSE 0 END AS BIGINT) AS has_inputs
             FROM run r JOIN experiment e ON e.id = r.experiment_id ",
            $rest
        )
    };
}
pub(super) use select_runs;

/// Where clients put the artifacts of a run.
pub(super) fn artifact_uri(location: &str, experiment_id: i64, run_id: &str) -> String {
    if location.is_empty() {
        format!("{PROXY_SCHEME}{experiment_id}/{run_id}/artifacts")
    } else {
        format!("{}/{run_id}/artifacts", location.trim_end_matches('/'))
    }
}

impl RunRow {
    fn into_run(self) -> Result<Run> {
        Ok(Run {
            artifact_uri: artifact_uri(&self.artifact_location, self.experiment_id, &self.id),
            user_id: self.user_id,
            lifecycle: word("lifecycle of a run", &self.lifecycle, Lifecycle::parse)?,
            datasets: Vec::new(),
            models: Vec::new(),
            run_id: self.id,
            project: self.project,
            experiment_id: self.experiment_id.to_string(),
            experiment: self.experiment,
            name: self.name,
            status: word("status of a run", &self.status, RunStatus::parse)?,
            start_time: Timestamp::from_micros(self.start_time),
            end_time: self.end_time.map(Timestamp::from_micros),
            params: BTreeMap::new(),
            metrics: BTreeMap::new(),
            tags: BTreeMap::new(),
            inputs: Vec::new(),
        })
    }
}

#[derive(sqlx::FromRow)]
pub(super) struct PointRow {
    pub(super) timestamp: i64,
    pub(super) step: i64,
    pub(super) value: f64,
    pub(super) is_nan: i64,
}

impl PointRow {
    pub(super) fn into_point(self) -> MetricPoint {
        let value = if self.is_nan == 0 { self.value } else { f64::NAN };
        MetricPoint {
            value: MetricValue(value),
            timestamp: Timestamp::from_micros(self.timestamp),
            step: self.step,
        }
    }
}

/// A parameter, a tag or the latest point of a metric: most of a run, with one statement. Every statement more is a way to the
/// database and back, which costs more than its rows.
#[derive(sqlx::FromRow)]
struct RecordRow {
    /// [`PARAM`], [`TAG`], [`METRIC`]
    kind: i64,
    run_id: String,
    key: String,
    text: String,
    #[sqlx(flatten)]
    point: PointRow,
}

const PARAM: i64 = 0;
const TAG: i64 = 1;
const METRIC: i64 = 2;

/// The statement that reads what some runs recorded; its parameters are their ids.
fn select_records(runs: usize) -> String {
    let ids = id_list(runs);
    let texts = |kind: i64, table: &str| {
        format!(
            "SELECT CAST({kind} AS BIGINT) AS kind, run_id, key, value AS text, CAST(0 AS BIGINT) AS timestamp,
                    CAST(0 AS BIGINT) AS step, CAST(0 AS DOUBLE PRECISION) AS value, CAST(0 AS BIGINT) AS is_nan
             FROM {table} WHERE run_id IN ({ids})"
        )
    };
    let (params, tags) = (texts(PARAM, "run_param"), texts(TAG, "run_tag"));
    format!(
        "{params} UNION ALL {tags} UNION ALL
         SELECT CAST({METRIC} AS BIGINT), run_id, key, '', timestamp, step, value, is_nan
         FROM run_metric WHERE run_id IN ({ids})"
    )
}

/// The places of the first parameters.
fn id_list(count: usize) -> String {
    let places: Vec<String> = (1..=count).map(|place| format!("${place}")).collect();
    places.join(", ")
}

#[derive(sqlx::FromRow)]
struct InputRow {
    run_id: String,
    dataset: String,
    version: i64,
    digest: String,
    context: String,
}

#[derive(sqlx::FromRow)]
struct DatasetRow {
    run_id: String,
    name: String,
    digest: String,
    context: String,
    source_type: String,
    source: String,
    schema: Option<String>,
    profile: Option<String>,
    tags: String,
}

impl DatasetRow {
    fn into_dataset(self) -> Result<RunDataset> {
        Ok(RunDataset {
            name: self.name,
            digest: self.digest,
            context: self.context,
            source_type: self.source_type,
            source: self.source,
            schema: self.schema,
            profile: self.profile,
            tags: json("tags of a dataset", &self.tags)?,
        })
    }
}

#[derive(sqlx::FromRow)]
struct ModelRow {
    run_id: String,
    role: String,
    model_id: String,
    step: i64,
}

impl ModelRow {
    fn into_model(self) -> Result<RunModel> {
        Ok(RunModel {
            model_id: self.model_id,
            role: word("role of a model", &self.role, ModelRole::parse)?,
            step: self.step,
        })
    }
}

/// A point as it is stored: the value, and whether it is NaN.
pub(super) fn stored_value(point: &MetricPoint) -> (f64, i64) {
    if point.value.0.is_nan() {
        (0.0, 1)
    } else {
        // The two zeros are one value, and one row.
        (point.value.0 + 0.0, 0)
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
impl SqlStore<P> {
    pub(super) async fn run_in(
        connection: &mut <<P as Pools>::Db as Database>::Connection,
        project: &str,
        run_id: &str,
    ) -> Result<Option<Run>> {
        let rows: Vec<RunRow> = sqlx::query_as(select_runs!("WHERE r.project = $1 AND r.id = $2"))
            .bind(project)
            .bind(run_id)
            .fetch_all(&mut *connection)
            .await?;
        Ok(Self::complete_runs(connection, rows).await?.pop())
    }

    /// Runs with what they recorded.
    pub(super) async fn complete_runs(
        connection: &mut <<P as Pools>::Db as Database>::Connection,
        rows: Vec<RunRow>,
    ) -> Result<Vec<Run>> {
        let has_inputs = rows.iter().any(|row| row.has_inputs == 1);
        let mut runs = rows.into_iter().map(RunRow::into_run).collect::<Result<Vec<_>>>()?;
        if runs.is_empty() {
            return Ok(runs);
        }
        let mut query = sqlx::query_as(AssertSqlSafe(select_records(runs.len())));
        for run in &runs {
            query = query.bind(run.run_id.clone());
        }
        let records: Vec<RecordRow> = query.fetch_all(&mut *connection).await?;
        let places: BTreeMap<String, usize> = runs
            .iter()
            .enumerate()
            .map(|(place, run)| (run.run_id.clone(), place))
            .collect();
        for row in records {
            let run = &mut runs[places[&row.run_id]];
            match row.kind {
                PARAM => drop(run.params.insert(row.key, row.text)),
                TAG => drop(run.tags.insert(row.key, row.text)),
                _ => drop(run.metrics.insert(row.key, row.point.into_point())),
            }
        }
        if has_inputs {
            Self::add_inputs(connection, &mut runs, &places).await?;
        }
        Ok(runs)
    }

    /// Adds the datasets and models of runs.
    async fn add_inputs(
        connection: &mut <<P as Pools>::Db as Database>::Connection,
        runs: &mut [Run],
        places: &BTreeMap<String, usize>,
    ) -> Result<()> {
        let chosen = |columns: &str, order: &str| {
            let mut query = QueryBuilder::<<P as Pools>::Db>::new(format!("SELECT {columns} WHERE run_id IN ("));
            let mut ids = query.separated(", ");
            for run in runs.iter() {
                ids.push_bind(run.run_id.clone());
            }
            query.push(format!(") ORDER BY run_id, {order}"));
            query
        };
        let mut query = chosen("run_id, dataset, version, digest, context FROM run_input", "position");
        let inputs: Vec<InputRow> = query.build_query_as().fetch_all(&mut *connection).await?;
        let mut query = chosen(
            "run_id, name, digest, context, source_type, source, schema, profile, tags FROM run_dataset",
            "position",
        );
        let datasets: Vec<DatasetRow> = query.build_query_as().fetch_all(&mut *connection).await?;
        let mut query = chosen("run_id, role, model_id, step FROM run_model", "step, model_id");
        let models: Vec<ModelRow> = query.build_query_as().fetch_all(&mut *connection).await?;
        for row in inputs {
            let input = RunInput {
                dataset: row.dataset,
                version: number("version", row.version)?,
                digest: row.digest,
                context: row.context,
            };
            runs[places[&row.run_id]].inputs.push(input);
        }
        for row in datasets {
            let place = places[&row.run_id];
            runs[place].datasets.push(row.into_dataset()?);
        }
        for row in models {
            let place = places[&row.run_id];
            runs[place].models.push(row.into_model()?);
        }
        Ok(())
    }
}
