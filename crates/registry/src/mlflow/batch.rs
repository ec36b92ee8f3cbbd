//! Batches of what a run logs. They are the largest messages of all and come most often: a metric is read into its fields, not
//! into a map of its own.

use std::fmt;

use axum::extract::{FromRequest, Request};
use modelyard_common::Timestamp;
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};

use super::{
    error::Refusal,
    read::{Fields, json_body, missing, read_integer, read_number, read_text},
};
use crate::model::{
    run::{Batch, MAX_BATCH, MetricPoint, MetricValue},
    tracking::ModelMetric,
};

/// The field with the metrics.
const METRICS: &str = "metrics";

/// A metric, each field as it was written; null: it was not.
#[derive(Debug, Default, PartialEq)]
pub(super) struct MetricMessage {
    key: Value,
    value: Value,
    timestamp: Value,
    step: Value,
    model_id: Value,
    dataset_name: Value,
    dataset_digest: Value,
}

impl MetricMessage {
    /// The metric that a message is.
    pub(super) fn take(fields: &mut Fields) -> Self {
        Self {
            key: fields.take("key"),
            value: fields.take("value"),
            timestamp: fields.take("timestamp"),
            step: fields.take("step"),
            model_id: fields.take("model_id"),
            dataset_name: fields.take("dataset_name"),
            dataset_digest: fields.take("dataset_digest"),
        }
    }

    /// Adds it to a batch; `name` is how the message calls one of its fields.
    pub(super) fn read(&self, name: impl Fn(&str) -> String, batch: &mut Batch) -> Result<(), Refusal> {
        let key = read_text("key", &self.key)?.filter(|key| !key.is_empty());
        let key = key.ok_or_else(|| missing(&name("key")))?;
        let value = read_number("value", &self.value)?.ok_or_else(|| missing(&name("value")))?;
        let timestamp = read_integer("timestamp", &self.timestamp)?.ok_or_else(|| missing(&name("timestamp")))?;
        let point = MetricPoint {
            value: MetricValue(value),
            timestamp: Timestamp::from_millis(timestamp),
            step: read_integer("step", &self.step)?.unwrap_or_default(),
        };
        if let Some(model_id) = read_text("model_id", &self.model_id)?.filter(|id| !id.is_empty()) {
            let name = read_text("dataset_name", &self.dataset_name)?.unwrap_or_default();
            let digest = read_text("dataset_digest", &self.dataset_digest)?.unwrap_or_default();
            batch.model_metrics.push(ModelMetric {
                model_id,
                dataset: (name, digest),
                key: key.clone(),
                point,
            });
        }
        batch.metrics.push((key, point));
        Ok(())
    }
}

/// The names of the fields of a metric.
#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum MetricField {
    Key,
    Value,
    Timestamp,
    Step,
    ModelId,
    DatasetName,
    DatasetDigest,
    #[serde(other)]
    Other,
}

impl<'de> Deserialize<'de> for MetricMessage {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MetricReader)
    }
}

struct MetricReader;

impl<'de> Visitor<'de> for MetricReader {
    type Value = MetricMessage;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a metric")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<MetricMessage, A::Error> {
        let mut metric = MetricMessage::default();
        while let Some(field) = map.next_key()? {
            let place = match field {
                MetricField::Key => &mut metric.key,
                MetricField::Value => &mut metric.value,
                MetricField::Timestamp => &mut metric.timestamp,
                MetricField::Step => &mut metric.step,
                MetricField::ModelId => &mut metric.model_id,
                MetricField::DatasetName => &mut metric.dataset_name,
                MetricField::DatasetDigest => &mut metric.dataset_digest,
                MetricField::Other => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            *place = map.next_value()?;
        }
        Ok(metric)
    }
}

/// The metrics of a batch, as many as one may have; the others are counted.
#[derive(Debug, Default, PartialEq)]
struct Metrics {
    read: Vec<MetricMessage>,
    left_out: usize,
}

impl<'de> Deserialize<'de> for Metrics {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(MetricsReader)
    }
}

struct MetricsReader;

impl<'de> Visitor<'de> for MetricsReader {
    type Value = Metrics;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("metrics")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Metrics, A::Error> {
        let mut metrics = Metrics::default();
        while metrics.read.len() < MAX_BATCH {
            match list.next_element()? {
                Some(metric) => metrics.read.push(metric),
                None => return Ok(metrics),
            }
        }
        while list.next_element::<IgnoredAny>()?.is_some() {
            metrics.left_out += 1;
        }
        Ok(metrics)
    }
}

/// A batch as it comes.
#[derive(Debug, PartialEq)]
pub(super) struct BatchMessage {
    /// All but the metrics.
    pub(super) fields: Fields,
    /// The metrics.
    pub(super) metrics: Vec<MetricMessage>,
    /// How many metrics more there are than a batch may have.
    pub(super) left_out: usize,
}

impl BatchMessage {
    fn from_json(body: &[u8]) -> Result<Self, Refusal> {
        if let Ok(message) = serde_json::from_slice(body) {
            return Ok(message);
        }
        // It is not what clients send most: it is read with care, and what is wrong is told.
        let mut fields = Fields::from_json(body)?;
        let mut objects = fields.objects(METRICS)?;
        let left_out = objects.len().saturating_sub(MAX_BATCH);
        objects.truncate(MAX_BATCH);
        let metrics = objects.iter_mut().map(MetricMessage::take).collect();
        fields.take(METRICS);
        Ok(Self {
            fields,
            metrics,
            left_out,
        })
    }
}

impl<S: Send + Sync> FromRequest<S> for BatchMessage {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        Self::from_json(&json_body(request, state).await?)
    }
}

impl<'de> Deserialize<'de> for BatchMessage {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = BatchMessage;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a batch")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<BatchMessage, A::Error> {
        let (mut rest, mut metrics) = (Map::new(), Metrics::default());
        while let Some(name) = map.next_key::<String>()? {
            if name == METRICS {
                metrics = map.next_value()?;
            } else {
                rest.insert(name, map.next_value()?);
            }
        }
        Ok(BatchMessage {
            fields: Fields::from(rest),
            metrics: metrics.read,
            left_out: metrics.left_out,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The two ways of reading.
    fn both(body: &str) -> [BatchMessage; 2] {
        let quick = serde_json::from_str(body).unwrap();
        // A number that JSON lacks makes it be read with care.
        let careful = BatchMessage::from_json(
            body.replacen('{', r#"{"other": NaN, "#, 1)
                .replace(", }", "}")
                .as_bytes(),
        );
        let mut careful = careful.unwrap();
        careful.fields.take("other");
        [quick, careful]
    }

    #[test]
    fn both_ways_read_the_same() {
        let metric = r#"{"key": "k", "value": "NaN", "timestamp": "17", "step": 3, "model_id": "m-1", "other": [1]}"#;
        for body in [
            format!(r#"{{"run_id": "r", "metrics": [{metric}, {{}}], "params": [{{"key": "p"}}]}}"#),
            r#"{"run_id": "r", "metrics": []}"#.to_owned(),
            "{}".to_owned(),
            format!(r#"{{"metrics": [{}{{}}]}}"#, "{\"key\": \"k\"},".repeat(MAX_BATCH + 2)),
        ] {
            let [quick, careful] = both(&body);
            assert_eq!(quick, careful, "{body}");
            let all = body.matches(r#""key": "k""#).count();
            assert_eq!(quick.left_out, (all + 1).saturating_sub(MAX_BATCH).min(3));
        }
    }

    #[test]
    fn what_json_lacks_is_read_and_what_is_wrong_is_told() {
        let message = BatchMessage::from_json(br#"{"metrics": [{"key": "k", "value": NaN, "timestamp": 1}]}"#).unwrap();
        let mut batch = Batch::default();
        let name = |field: &str| format!("metrics[0].{field}");
        message.metrics[0].read(name, &mut batch).unwrap();
        assert!(batch.metrics[0].1.value.0.is_nan());
        let refused = BatchMessage::from_json(br#"{"metrics": [1]}"#).unwrap_err();
        assert_eq!(
            refused,
            Fields::from_json(br#"{"metrics": [1]}"#)
                .unwrap()
                .objects(METRICS)
                .unwrap_err()
        );
        let nothing = MetricMessage::default().read(name, &mut batch).unwrap_err();
        assert_eq!(nothing, missing("metrics[0].key"));
        assert!(BatchMessage::from_json(b"[]").is_err());
        let listed = BatchMessage::from_json(br#"{"metrics": [["loss", 0.1, 1700000000000, 3]]}"#);
        assert!(listed.is_err());
    }
}
