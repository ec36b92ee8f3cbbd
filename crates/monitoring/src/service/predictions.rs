//! The story of one prediction: who answered, what that was trained on, how it turned out.

use std::collections::BTreeMap;

use arrow::{
    array::{Array as _, ArrayRef, AsArray as _, RecordBatch},
    datatypes::{DataType, Float64Type, Int32Type, Int64Type},
};
use modelyard_auth::{Action, Caller, Kind, Resource, audit::Operation};
use modelyard_common::name::check_name;
use modelyard_jobs::audit::delivery;
use serde_json::{Map, Value};
use tracing::instrument;

use super::{MAX_ENDPOINTS, Monitoring};
use crate::{
    error::{Error, Result},
    model::{
        label::is_request_id,
        prediction::{KnownLabel, Prediction, PredictionRow},
    },
    peers::{served_version, training_run},
    tables::{EndpointTables, GroupColumns, INPUT, OUTPUT, label_at, times_of},
};

/// The deepest nesting of lists that is shown.
const MAX_DEPTH: usize = 8;

impl Monitoring {
    /// Everything about one request, of the endpoint named or of the first that knows it.
    ///
    /// # Errors
    /// Nobody knows it, or the registry does not answer.
    #[instrument(name = "monitoring.get_prediction", skip_all)]
    pub async fn get_prediction(
        &self,
        caller: &Caller,
        project: &str,
        request_id: &str,
        endpoint: Option<&str>,
    ) -> Result<Prediction> {
        caller.authorize(
            Action::PredictionRead,
            Resource::named(Kind::Prediction, project, request_id),
        )?;
        let shown: String = request_id.chars().take(128).flat_map(char::escape_default).collect();
        if !is_request_id(request_id) {
            return Err(Error::request(format!("`{shown}` is not the id of a request")));
        }
        let endpoints = if let Some(endpoint) = endpoint {
            check_name("an endpoint", endpoint)?;
            vec![endpoint.to_owned()]
        } else {
            let known = self.store.endpoints(project, MAX_ENDPOINTS).await?;
            known.into_iter().map(|(endpoint, _)| endpoint).collect()
        };
        for endpoint in endpoints {
            let tables = self.tables(project, &endpoint)?;
            let rows = rows_of(&tables, request_id).await?;
            if !rows.is_empty() {
                self.note_reading(caller, project, &endpoint, request_id).await?;
                return self.compose(project, endpoint, request_id, rows).await;
            }
        }
        let remedy = "check the id; the log may be behind by the gateway's flush interval, so try again in a moment";
        Err(Error::not_found("prediction", shown, remedy))
    }

    /// Writes down that a prediction of an endpoint is read that an admin marked as sensitive, before it is.
    async fn note_reading(&self, caller: &Caller, project: &str, endpoint: &str, request_id: &str) -> Result<()> {
        let resource = Resource::named(Kind::Endpoint, project, endpoint);
        if !caller.is_sensitive(resource) {
            return Ok(());
        }
        let mut event = caller.event(Action::PredictionRead, Operation::Read, &resource);
        event.add_detail("prediction", request_id);
        self.jobs.enqueue(&delivery(&event)?, event.at).await?;
        Ok(())
    }

    async fn compose(
        &self,
        project: &str,
        endpoint: String,
        request_id: &str,
        rows: Vec<PredictionRow>,
    ) -> Result<Prediction> {
        // Live answers come first.
        let answered = rows.first().filter(|row| row.version > 0);
        let version = match answered {
            Some(row) => self.registry.find_version(project, &row.model, row.version).await?,
            None => None,
        };
        let version = version.map(served_version);
        let run_id = version.as_ref().and_then(|version| version.run_id.as_deref());
        let run = match run_id {
            Some(run_id) => self.registry.find_run(project, run_id).await?,
            None => None,
        };
        Ok(Prediction {
            request_id: request_id.to_owned(),
            endpoint,
            rows,
            model_version: version,
            run: run.map(training_run),
        })
    }
}

async fn rows_of(tables: &EndpointTables, request_id: &str) -> Result<Vec<PredictionRow>> {
    let answers = tables.answers_to(request_id).await?;
    if answers.iter().all(|batch| batch.num_rows() == 0) {
        return Ok(Vec::new());
    }
    let labels = labels_by_row(&tables.labels_of(request_id).await?)?;
    let mut rows = Vec::new();
    for batch in &answers {
        read_rows(batch, &labels, &mut rows)?;
    }
    Ok(rows)
}

fn labels_by_row(batches: &[RecordBatch]) -> Result<BTreeMap<i32, KnownLabel>> {
    let mut labels = BTreeMap::new();
    for batch in batches {
        let rows = batch.column(0).as_primitive::<Int32Type>();
        let observed = times_of(batch.column(4))?;
        for (row, observed_at) in observed.into_iter().enumerate() {
            let label = label_at([batch.column(1), batch.column(2), batch.column(3)], row);
            if let Some((value, observed_at)) = label.zip(observed_at) {
                labels.insert(rows.value(row), KnownLabel { value, observed_at });
            }
        }
    }
    Ok(labels)
}

fn read_rows(batch: &RecordBatch, labels: &BTreeMap<i32, KnownLabel>, rows: &mut Vec<PredictionRow>) -> Result<()> {
    let column = |name: &str| {
        batch
            .column_by_name(name)
            .ok_or_else(|| Error::Log(format!("its table has no column `{name}`")))
    };
    let keys = RecordBatch::try_from_iter(
        [
            ("role", column("role")?),
            ("model", column("model")?),
            ("model_version", column("model_version")?),
        ]
        .map(|(name, column)| (name, ArrayRef::clone(column))),
    );
    let keys = GroupColumns::of(&keys.map_err(|error| Error::arrow(&error))?, 0)?;
    let indices = column("row")?.as_primitive::<Int32Type>();
    let latencies = column("latency_us")?.as_primitive::<Int64Type>();
    let protocols = column("protocol")?.as_string::<i32>();
    let (happened, received) = (times_of(column("event_time")?)?, times_of(column("received_at")?)?);
    for row in 0..batch.num_rows() {
        let Some(key) = keys.key(row) else { continue };
        rows.push(PredictionRow {
            row: indices.value(row),
            event_time: happened[row].unwrap_or_default(),
            received_at: received[row].unwrap_or_default(),
            role: key.role.as_str().to_owned(),
            model: key.model,
            version: key.version,
            protocol: protocols.value(row).to_owned(),
            latency_us: latencies.value(row),
            inputs: values(batch, INPUT, row),
            outputs: values(batch, OUTPUT, row),
            label: labels.get(&indices.value(row)).cloned(),
        });
    }
    Ok(())
}

/// The values of a row in the columns of a prefix. Columns of other versions are null, and left out.
fn values(batch: &RecordBatch, prefix: &str, row: usize) -> Map<String, Value> {
    let columns = batch.schema_ref().fields().iter().zip(batch.columns());
    let named = columns.filter_map(|(field, column)| Some((field.name().strip_prefix(prefix)?, column)));
    named
        .filter(|(_, column)| column.is_valid(row))
        .map(|(name, column)| (name.to_owned(), value_at(column, row, 0)))
        .collect()
}

fn value_at(column: &ArrayRef, row: usize, depth: usize) -> Value {
    if column.is_null(row) {
        return Value::Null;
    }
    match column.data_type() {
        DataType::Int64 => column.as_primitive::<Int64Type>().value(row).into(),
        // What is no number in JSON is null.
        DataType::Float64 => column.as_primitive::<Float64Type>().value(row).into(),
        DataType::Utf8 => column.as_string::<i32>().value(row).into(),
        DataType::Boolean => column.as_boolean().value(row).into(),
        DataType::List(_) if depth < MAX_DEPTH => {
            let list = column.as_list::<i32>().value(row);
            (0..list.len()).map(|index| value_at(&list, index, depth + 1)).collect()
        }
        other => format!("<{other}>").into(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Float64Array, ListArray, StringArray};
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_shown_as_json_and_missing_ones_left_out() {
        let lists = ListArray::from_iter_primitive::<Float64Type, _, _>([Some(vec![Some(0.25), Some(f64::NAN)])]);
        let columns: [(&str, ArrayRef); 3] = [
            ("input_carrier", Arc::new(StringArray::from(vec![Some("UA")]))),
            ("input_gone", Arc::new(Float64Array::from(vec![None]))),
            ("output_probabilities", Arc::new(lists)),
        ];
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        assert_eq!(Value::from(values(&batch, INPUT, 0)), json!({"carrier": "UA"}));
        assert_eq!(
            Value::from(values(&batch, OUTPUT, 0)),
            json!({"probabilities": [0.25, null]})
        );
    }
}
