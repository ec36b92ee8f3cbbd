//! The tables of the inference log and of labels: their names, columns and the queries over them.
//!
//! Values are bound; identifiers come from the tables' own schemas and are quoted here, in one place.

use std::{collections::BTreeSet, sync::Arc};

use arrow::{
    array::{
        Array as _, ArrayRef, AsArray as _, BooleanArray, Date32Array, Float64Array, Int32Array, RecordBatch,
        StringArray, TimestampMicrosecondArray,
    },
    compute::cast,
    datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, TimeUnit},
};
use chrono::{Datelike as _, NaiveDate};
use modelyard_analytics::{Analytics, DataFile, QueryTable, ScalarValue, SendableRecordBatchStream, TableName};
use modelyard_common::Timestamp;
use sha2::{Digest as _, Sha256};

use crate::{
    error::{Error, Result},
    model::{
        label::{Label, LabelBatch, LabelValue},
        score::Role,
        segment::Segment,
        window::Span,
    },
};

/// The folder of the inference logs, below the storage root.
const LOG_FOLDER: &str = "inference-log";
/// The folder of the labels.
const LABEL_FOLDER: &str = "labels";
/// The column that labels are partitioned by: the first of the month in which they were known.
const LABEL_PARTITION: &str = "observed_month";
/// What a column of an input begins with.
pub const INPUT: &str = "input_";
/// What a column of an output begins with.
pub const OUTPUT: &str = "output_";
/// The most hours in which the labels of one job can have their predictions.
const MAX_HOURS: usize = 500_000;
/// The most versions that answered in one window.
const MAX_GROUPS: usize = 1000;
/// The most answers to one request that are shown.
const MAX_ANSWERS: usize = 10_000;

const UTC: &str = "UTC";

/// The tables of one endpoint.
#[derive(Debug, Clone)]
pub struct EndpointTables {
    analytics: Analytics,
    log: TableName,
    labels: TableName,
}

/// The answers of one version in one role.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct GroupKey {
    /// Live or shadow.
    pub role: Role,
    /// The model.
    pub model: String,
    /// The version; 0 where the log has none.
    pub version: u32,
}

fn time_type() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some(UTC.into()))
}

fn field(name: &str, data_type: DataType) -> Field {
    Field::new(name, data_type, true)
}

/// The columns that every inference log has.
fn log_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        field("request_id", DataType::Utf8),
        field("row", DataType::Int32),
        field("event_time", time_type()),
        field("received_at", time_type()),
        field("model", DataType::Utf8),
        field("model_version", DataType::Utf8),
        field("role", DataType::Utf8),
        field("protocol", DataType::Utf8),
        field("latency_us", DataType::Int64),
        field("event_date", DataType::Date32),
    ]))
}

/// The columns of labels. A label is in the one of the three that has its type; in none of them when it was taken back.
fn label_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        field("request_id", DataType::Utf8),
        field("row", DataType::Int32),
        field("label", DataType::Float64),
        field("label_text", DataType::Utf8),
        field("label_boolean", DataType::Boolean),
        field("observed_at", time_type()),
        field("received_at", time_type()),
        field("batch", DataType::Utf8),
        field(LABEL_PARTITION, DataType::Date32),
    ]))
}

/// An identifier in a query.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn time(time: Timestamp) -> ScalarValue {
    ScalarValue::TimestampMicrosecond(Some(time.as_micros()), Some(UTC.into()))
}

fn date(date: NaiveDate) -> ScalarValue {
    ScalarValue::Date32(Some(days(date)))
}

/// Days since 1970.
fn days(date: NaiveDate) -> i32 {
    date.num_days_from_ce() - NaiveDate::default().num_days_from_ce()
}

fn month_of(time: Timestamp) -> NaiveDate {
    let date = time.to_datetime().date_naive();
    date.with_day(1).unwrap_or(date)
}

fn span_params(span: Span) -> Vec<(&'static str, ScalarValue)> {
    let (first, last) = span.dates();
    vec![
        ("start", time(span.start)),
        ("end", time(span.end)),
        ("first", date(first)),
        ("last", date(last)),
    ]
}

/// The rows of a window; the dates let queries skip all other files.
const IN_WINDOW: &str = "event_date >= $first AND event_date <= $last AND event_time >= $start AND event_time < $end";

/// Numbers the answers that are the same answer, the first that arrived with 1: clients retry and crashes repeat. A
/// request is answered live once, whichever version did it; each shadow version answers it once.
const NTH_ANSWER: &str = "ROW_NUMBER() OVER (
    PARTITION BY request_id, \"row\", role, CASE WHEN role = 'shadow' THEN model END,
                 CASE WHEN role = 'shadow' THEN model_version END
    ORDER BY received_at, model, model_version, latency_us)";

/// Numbers the labels of a row, the one that holds with 1: the latest known, of these the latest sent.
const NTH_LABEL: &str = "ROW_NUMBER() OVER (
    PARTITION BY request_id, \"row\" ORDER BY observed_at DESC, received_at DESC, batch, label, label_text, label_boolean)";

impl EndpointTables {
    /// The tables of an endpoint, whose names were checked.
    ///
    /// # Errors
    /// A name that cannot be a folder.
    pub fn new(analytics: &Analytics, project: &str, endpoint: &str) -> Result<Self> {
        Ok(Self {
            analytics: analytics.clone(),
            log: TableName::new(&[LOG_FOLDER, project, endpoint])?,
            labels: TableName::new(&[LABEL_FOLDER, project, endpoint])?,
        })
    }

    fn tables(&self) -> [QueryTable; 2] {
        let table = |alias: &str, table: &TableName, schema| QueryTable {
            alias: alias.to_owned(),
            table: table.clone(),
            schema: Some(schema),
        };
        [
            table("log", &self.log, log_schema()),
            table("labels", &self.labels, label_schema()),
        ]
    }

    async fn collect(
        &self,
        sql: &str,
        params: &[(&str, ScalarValue)],
        rows: usize,
    ) -> Result<(SchemaRef, Vec<RecordBatch>)> {
        let result = self.analytics.query_collect(sql, &self.tables(), params, rows).await?;
        Ok((result.schema, result.batches))
    }

    /// Adds the files of segments to the log, in one commit. Files that are there are passed over.
    ///
    /// # Errors
    /// A file that cannot be part of the log, or the storage.
    pub async fn append(&self, segments: &[Segment]) -> Result<()> {
        let files = segments.iter().flat_map(|segment| &segment.files).map(|file| DataFile {
            path: file.path.clone(),
            size_bytes: file.size_bytes,
            rows: file.rows,
        });
        let id = digest_of(segments.iter().map(|segment| segment.id.as_str()));
        self.analytics.append(&self.log, files.collect(), &id).await?;
        Ok(())
    }

    /// Adds batches of labels in one commit, and says under which name.
    ///
    /// # Errors
    /// The storage.
    pub async fn append_labels(&self, batches: &[(LabelBatch, Timestamp)]) -> Result<String> {
        let name = format!(
            "labels-{}",
            digest_of(batches.iter().map(|(batch, _)| batch.id.as_str()))
        );
        let rows = label_rows(batches, &name)?;
        self.analytics
            .write_and_append(&self.labels, rows, LABEL_PARTITION, &name)
            .await?;
        Ok(name)
    }

    /// The hours of event time in which the predictions lie that the labels of an append are for.
    ///
    /// # Errors
    /// The query failed.
    pub async fn hours_labelled_by(&self, batch: &str, months: (Timestamp, Timestamp)) -> Result<BTreeSet<Timestamp>> {
        let sql = format!(
            "SELECT DISTINCT date_trunc('hour', log.event_time) AS hour FROM log JOIN
                 (SELECT DISTINCT request_id FROM labels WHERE batch = $batch
                  AND {LABEL_PARTITION} >= $first AND {LABEL_PARTITION} <= $last) AS new
             ON log.request_id = new.request_id"
        );
        let params = [
            ("batch", ScalarValue::Utf8(Some(batch.to_owned()))),
            ("first", date(month_of(months.0))),
            ("last", date(month_of(months.1))),
        ];
        self.hours(&sql, &params).await
    }

    /// All hours of event time in which there are predictions.
    ///
    /// # Errors
    /// The query failed.
    pub async fn all_hours(&self) -> Result<BTreeSet<Timestamp>> {
        self.hours("SELECT DISTINCT date_trunc('hour', event_time) AS hour FROM log", &[])
            .await
    }

    async fn hours(&self, sql: &str, params: &[(&str, ScalarValue)]) -> Result<BTreeSet<Timestamp>> {
        let (_, batches) = self.collect(sql, params, MAX_HOURS).await?;
        let mut hours = BTreeSet::new();
        for batch in batches {
            hours.extend(times_of(batch.column(0))?.into_iter().flatten());
        }
        Ok(hours)
    }

    /// The columns of the log.
    ///
    /// # Errors
    /// The table cannot be read.
    pub async fn log_columns(&self) -> Result<SchemaRef> {
        Ok(self.collect("SELECT * FROM log LIMIT 0", &[], 1).await?.0)
    }

    /// Who answered in a window.
    ///
    /// # Errors
    /// The query failed.
    pub async fn groups(&self, span: Span) -> Result<Vec<GroupKey>> {
        let sql = format!("SELECT DISTINCT role, model, model_version FROM log WHERE {IN_WINDOW} ORDER BY 1, 2, 3");
        let (_, batches) = self.collect(&sql, &span_params(span), MAX_GROUPS).await?;
        let mut groups = Vec::new();
        for batch in &batches {
            let keys = GroupColumns::of(batch, 0)?;
            groups.extend((0..batch.num_rows()).filter_map(|row| keys.key(row)));
        }
        groups.dedup();
        Ok(groups)
    }

    /// The answers of a window with their labels, each answer once, one group after the other and always in the same
    /// order: the same rows give the same numbers to the last digit. The columns are role, model, model_version, label,
    /// label_text, label_boolean, then those asked for.
    ///
    /// # Errors
    /// The query failed.
    pub async fn answers(&self, span: Span, columns: &[String]) -> Result<SendableRecordBatchStream> {
        let wanted: String = columns
            .iter()
            .flat_map(|column| [", a.".to_owned(), quoted(column)])
            .collect();
        let sql = format!(
            "WITH answers AS (SELECT *, {NTH_ANSWER} AS nth_answer FROM log WHERE {IN_WINDOW}),
                  truth AS (SELECT *, {NTH_LABEL} AS nth_label FROM labels
                            WHERE request_id IN (SELECT request_id FROM log WHERE {IN_WINDOW}))
             SELECT a.role, a.model, a.model_version, t.label, t.label_text, t.label_boolean{wanted}
             FROM answers a LEFT JOIN (SELECT * FROM truth WHERE nth_label = 1) t
                  ON a.request_id = t.request_id AND a.\"row\" = t.\"row\"
             WHERE a.nth_answer = 1
             ORDER BY a.role, a.model, a.model_version, a.request_id, a.\"row\""
        );
        Ok(self.analytics.query(&sql, &self.tables(), &span_params(span)).await?)
    }

    /// The answers to one request, each once, live ones first.
    ///
    /// # Errors
    /// The query failed, or there are more than can be shown.
    pub async fn answers_to(&self, request_id: &str) -> Result<Vec<RecordBatch>> {
        let sql = format!(
            "SELECT * FROM (SELECT *, {NTH_ANSWER} AS nth_answer FROM log WHERE request_id = $id)
             WHERE nth_answer = 1 ORDER BY role, \"row\", model, model_version"
        );
        let id = ScalarValue::Utf8(Some(request_id.to_owned()));
        Ok(self.collect(&sql, &[("id", id)], MAX_ANSWERS).await?.1)
    }

    /// The labels that hold for one request: row, label, label_text, label_boolean, observed_at.
    ///
    /// # Errors
    /// The query failed, or there are more than can be shown.
    pub async fn labels_of(&self, request_id: &str) -> Result<Vec<RecordBatch>> {
        let sql = format!(
            "SELECT \"row\", label, label_text, label_boolean, observed_at
             FROM (SELECT *, {NTH_LABEL} AS nth_label FROM labels WHERE request_id = $id) WHERE nth_label = 1"
        );
        let id = ScalarValue::Utf8(Some(request_id.to_owned()));
        Ok(self.collect(&sql, &[("id", id)], MAX_ANSWERS).await?.1)
    }
}

/// A name for a set of things: the same for the same ones in the same order.
fn digest_of<'a>(ids: impl Iterator<Item = &'a str>) -> String {
    let mut hash = Sha256::new();
    for id in ids {
        hash.update(id.as_bytes());
        hash.update([0]);
    }
    hex::encode(&hash.finalize()[..16])
}

fn label_rows(batches: &[(LabelBatch, Timestamp)], name: &str) -> Result<RecordBatch> {
    // Collected first: Arrow builds its arrays from iterators that know their length.
    let mut all = Vec::new();
    for (batch, received) in batches {
        all.extend(batch.labels.iter().map(|label| (label, *received)));
    }
    let labels = || all.iter().copied();
    let times = |time: fn(&Label, Timestamp) -> Timestamp| -> ArrayRef {
        let values = labels().map(|(label, received)| time(label, received).as_micros());
        Arc::new(TimestampMicrosecondArray::from_iter_values(values).with_timezone(UTC))
    };
    let texts = labels().map(|(label, _)| match &label.label {
        Some(LabelValue::Text(text)) => Some(text.as_str()),
        _ => None,
    });
    let numbers = labels().map(|(label, _)| match label.label {
        Some(LabelValue::Number(number)) => Some(number),
        _ => None,
    });
    let booleans = labels().map(|(label, _)| match label.label {
        Some(LabelValue::Boolean(boolean)) => Some(boolean),
        _ => None,
    });
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(
            labels().map(|(label, _)| &label.request_id),
        )),
        Arc::new(Int32Array::from_iter_values(labels().map(|(label, _)| label.row))),
        Arc::new(numbers.collect::<Float64Array>()),
        Arc::new(texts.collect::<StringArray>()),
        Arc::new(booleans.collect::<BooleanArray>()),
        times(|label, _| label.observed_at),
        times(|_, received| received),
        Arc::new(StringArray::from(vec![name; all.len()])),
        Arc::new(Date32Array::from_iter_values(
            labels().map(|(label, _)| days(month_of(label.observed_at))),
        )),
    ];
    RecordBatch::try_new(label_schema(), columns).map_err(|error| Error::arrow(&error))
}

/// The times of a column, in microseconds since 1970.
pub fn times_of(column: &ArrayRef) -> Result<Vec<Option<Timestamp>>> {
    let micros = cast(column, &time_type()).and_then(|times| cast(&times, &DataType::Int64));
    let micros = micros.map_err(|error| Error::arrow(&error))?;
    Ok(micros
        .as_primitive::<Int64Type>()
        .iter()
        .map(|time| time.map(Timestamp::from_micros))
        .collect())
}

/// The columns role, model and model_version of a batch.
pub struct GroupColumns {
    roles: ArrayRef,
    models: ArrayRef,
    versions: ArrayRef,
}

impl GroupColumns {
    /// They stand side by side, from column `first` on.
    pub fn of(batch: &RecordBatch, first: usize) -> Result<Self> {
        let text = |index: usize| {
            let column = batch
                .columns()
                .get(index)
                .ok_or_else(|| Error::Log("columns are missing".to_owned()))?;
            cast(column, &DataType::Utf8).map_err(|error| Error::arrow(&error))
        };
        Ok(Self {
            roles: text(first)?,
            models: text(first + 1)?,
            versions: text(first + 2)?,
        })
    }

    /// Whose row it is; `None` for a row without a known role.
    pub fn key(&self, row: usize) -> Option<GroupKey> {
        let text = |column: &ArrayRef| -> String {
            let values = column.as_string::<i32>();
            if values.is_null(row) {
                String::new()
            } else {
                values.value(row).to_owned()
            }
        };
        let role = match text(&self.roles).as_str() {
            "live" => Role::Live,
            "shadow" => Role::Shadow,
            _ => return None,
        };
        Some(GroupKey {
            role,
            model: text(&self.models),
            version: text(&self.versions).parse().unwrap_or(0),
        })
    }

    /// Whether two rows are of one group.
    pub fn same(&self, left: usize, right: usize) -> bool {
        [&self.roles, &self.models, &self.versions].into_iter().all(|column| {
            let values = column.as_string::<i32>();
            match (values.is_null(left), values.is_null(right)) {
                (false, false) => values.value(left) == values.value(right),
                (left, right) => left == right,
            }
        })
    }
}

/// The label in three columns (number, text, boolean).
pub fn label_at(columns: [&ArrayRef; 3], row: usize) -> Option<LabelValue> {
    let [numbers, texts, booleans] = columns;
    if !numbers.is_null(row) {
        return Some(LabelValue::Number(
            numbers.as_primitive_opt::<arrow::datatypes::Float64Type>()?.value(row),
        ));
    }
    if !texts.is_null(row) {
        return Some(LabelValue::Text(texts.as_string_opt::<i32>()?.value(row).to_owned()));
    }
    (!booleans.is_null(row)).then(|| {
        booleans
            .as_boolean_opt()
            .map(|values| LabelValue::Boolean(values.value(row)))
    })?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_cannot_leave_their_quotes() {
        assert_eq!(quoted("input_a\" FROM log; --"), "\"input_a\"\" FROM log; --\"");
    }

    #[test]
    fn labels_of_each_type_have_their_own_column() {
        let at: Timestamp = "2013-04-17T00:00:00Z".parse().unwrap();
        let values = [
            Some(LabelValue::Boolean(true)),
            Some(LabelValue::Number(2.5)),
            Some(LabelValue::Text("x".into())),
            None,
        ];
        let labels = values.iter().map(|value| Label {
            request_id: "r".to_owned(),
            row: 0,
            label: value.clone(),
            observed_at: at,
        });
        let batch = LabelBatch {
            id: "b".to_owned(),
            labels: labels.collect(),
            max_observed_at: at,
        };
        let rows = label_rows(&[(batch, at)], "labels-1").unwrap();
        for (row, value) in values.iter().enumerate() {
            assert_eq!(label_at([rows.column(2), rows.column(3), rows.column(4)], row), *value);
        }
        let month = rows.column(8).as_primitive::<arrow::datatypes::Date32Type>().value(0);
        assert_eq!(month, days(NaiveDate::from_ymd_opt(2013, 4, 1).unwrap()));
    }
}
