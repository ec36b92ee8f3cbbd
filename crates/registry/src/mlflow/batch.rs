//! Batches of what a run logs. They are the largest messages of all and come most often: a metric is read into its fields, not
//! into a map of its own.

use std::fmt;

use axum::extract::{FromRequest, Request};
use modelyard_common::Timestamp;
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::{Map, Value};

use super::{
    error::Refusal,
    read::{Fields, json_body, missing, read_integer, read_number, read_text},
};
use crate::model::{
    run::{Batch, MetricPoint, MetricValue},
    tracking::ModelMetric,
};

/// The field with the metrics.
const METRICS: &str = "metrics";

/// A metric, each field as it was written; null: it was not.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
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

/// A batch as it comes.
#[derive(Debug, PartialEq)]
pub(super) struct BatchMessage {
    /// All but the metrics.
    pub(super) fields: Fields,
    /// The metrics.
    pub(super) metrics: Vec<MetricMessage>,
}

impl BatchMessage {
    fn from_json(body: &[u8]) -> Result<Self, Refusal> {
        if let Ok(message) = serde_json::from_slice(body) {
            return Ok(message);
        }
        // It is not what clients send most: it is read with care, and what is wrong is told.
        let mut fields = Fields::from_json(body)?;
        let metrics = fields.objects(METRICS)?.iter_mut().map(MetricMessage::take).collect();
        fields.take(METRICS);
        Ok(Self { fields, metrics })
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
        let (mut rest, mut metrics) = (Map::new(), Vec::new());
        while let Some(name) = map.next_key::<String>()? {
            if name == METRICS {
                metrics = map.next_value()?;
            } else {
                rest.insert(name, map.next_value()?);
            }
        }
        Ok(BatchMessage {
            fields: Fields::from(rest),
            metrics,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The two ways of reading.
    fn both(body: &str) -> [BatchMessage; 2] {
        let quick = serde_json::from_str(body).unwrap();
        let mut fields = Fields::from_json(body.as_bytes()).unwrap();
        let metrics = fields
            .objects(METRICS)
            .unwrap()
            .iter_mut()
            .map(MetricMessage::take)
            .collect();
        fields.take(METRICS);
        [quick, BatchMessage { fields, metrics }]
    }

    #[test]
    fn both_ways_read_the_same() {
        let metric = r#"{"key": "k", "value": "NaN", "timestamp": "17", "step": 3, "model_id": "m-1", "other": [1]}"#;
        for body in [
            format!(r#"{{"run_id": "r", "metrics": [{metric}, {{}}], "params": [{{"key": "p"}}]}}"#),
            r#"{"run_id": "r", "metrics": []}"#.to_owned(),
            "{}".to_owned(),
        ] {
            let [quick, careful] = both(&body);
            assert_eq!(quick, careful, "{body}");
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
    }
}
