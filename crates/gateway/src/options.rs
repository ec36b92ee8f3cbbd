//! How an endpoint treats its requests, as the registry says it. Pure.

use std::time::Duration;

use modelyard_inference::{BatcherOptions, RaggedAxis};
use modelyard_proto::registry::v1 as proto;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Where a request carries a value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Attribute {
    /// A header over HTTP, metadata over gRPC; in lower case.
    Header(String),
    /// A parameter of the Open Inference Protocol's request.
    Parameter(String),
}

/// Holds for requests with this value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Condition {
    pub attribute: Attribute,
    pub equals: String,
}

/// What goes to the inference log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct LogOptions {
    pub predictions: bool,
    /// The share of the predictions, by their ids.
    pub sample: f64,
    /// Inputs and outputs whose values are left out.
    pub redact: Vec<String>,
    /// The largest record, in bytes; none: as large as the log takes.
    pub max_record_bytes: Option<u64>,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            predictions: true,
            sample: 1.0,
            redact: Vec::new(),
            max_record_bytes: None,
        }
    }
}

/// An axis along which requests may differ.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ragged {
    pub tensor: String,
    pub axis: u32,
    pub fill: f64,
}

/// How requests are merged. None: as the gateway is configured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Batching {
    pub max_rows: Option<u32>,
    pub max_delay: Option<Duration>,
    pub ragged: Vec<Ragged>,
}

/// What the endpoint may take. None: as the gateway is configured.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RequestLimits {
    pub timeout: Option<Duration>,
    pub max_queued_requests: Option<u32>,
    pub max_queue_time: Option<Duration>,
}

/// How an endpoint treats its requests.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Options {
    pub log: LogOptions,
    /// What keeps a request with its route; none: its id.
    pub sticky: Option<Attribute>,
    /// How long answers are kept; none: they are not.
    pub cache: Option<Duration>,
    pub batching: Batching,
    pub limits: RequestLimits,
    /// After this time without a request the models are let go of; none: never.
    pub unload_after: Option<Duration>,
}

impl Options {
    /// How the queues before its models work, by what the gateway is configured to.
    pub(crate) fn batcher(&self, defaults: &BatcherOptions) -> BatcherOptions {
        let (batching, limits) = (&self.batching, &self.limits);
        let count = |own: Option<u32>, default: usize| own.map_or(default, |count| count as usize);
        let ragged = batching.ragged.iter().map(|ragged| RaggedAxis {
            tensor: ragged.tensor.clone(),
            axis: ragged.axis as usize,
            fill: ragged.fill,
        });
        BatcherOptions {
            max_batch_rows: count(batching.max_rows, defaults.max_batch_rows),
            max_queue_delay: batching.max_delay.unwrap_or(defaults.max_queue_delay),
            max_queued_requests: count(limits.max_queued_requests, defaults.max_queued_requests),
            max_queue_time: limits.max_queue_time.unwrap_or(defaults.max_queue_time),
            ragged: ragged.collect(),
            ..defaults.clone()
        }
    }
}

fn refused(detail: impl Into<String>) -> Error {
    Error::InvalidEndpoint { detail: detail.into() }
}

impl TryFrom<proto::Attribute> for Attribute {
    type Error = Error;

    fn try_from(attribute: proto::Attribute) -> Result<Self> {
        use proto::attribute::Source;
        match attribute.source {
            Some(Source::Header(name)) => Ok(Self::Header(name.to_ascii_lowercase())),
            Some(Source::Parameter(name)) => Ok(Self::Parameter(name)),
            None => Err(refused("an attribute is neither a header nor a parameter")),
        }
    }
}

impl TryFrom<proto::Condition> for Condition {
    type Error = Error;

    fn try_from(condition: proto::Condition) -> Result<Self> {
        Ok(Self {
            attribute: condition
                .attribute
                .ok_or_else(|| refused("a condition looks at nothing"))?
                .try_into()?,
            equals: condition.equals,
        })
    }
}

impl TryFrom<&proto::Endpoint> for Options {
    type Error = Error;

    fn try_from(endpoint: &proto::Endpoint) -> Result<Self> {
        let log = endpoint.log.clone().unwrap_or_default();
        if log.predictions && !(log.sample > 0.0 && log.sample <= 1.0) {
            return Err(refused(format!("the log's sample is {}", log.sample)));
        }
        let batching = endpoint.batching.clone().unwrap_or_default();
        let limits = endpoint.limits.unwrap_or_default();
        let count = |count: u32| (count > 0).then_some(count);
        let millis = |millis: u64| (millis > 0).then(|| Duration::from_millis(millis));
        let ragged = batching.ragged.into_iter().map(|ragged| Ragged {
            tensor: ragged.tensor,
            axis: ragged.axis,
            fill: ragged.fill,
        });
        Ok(Self {
            log: LogOptions {
                predictions: log.predictions,
                sample: log.sample,
                redact: log.redact,
                max_record_bytes: (log.max_record_bytes > 0).then_some(log.max_record_bytes),
            },
            sticky: endpoint.sticky.clone().map(Attribute::try_from).transpose()?,
            cache: endpoint.cache.and_then(|cache| millis(cache.time_to_live_ms)),
            batching: Batching {
                max_rows: count(batching.max_rows),
                max_delay: (batching.max_delay_us > 0).then(|| Duration::from_micros(batching.max_delay_us)),
                ragged: ragged.collect(),
            },
            limits: RequestLimits {
                timeout: millis(limits.timeout_ms),
                max_queued_requests: count(limits.max_queued_requests),
                max_queue_time: millis(limits.max_queue_time_ms),
            },
            unload_after: millis(endpoint.unload_after_ms),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_is_as_the_gateway_is_configured() {
        let defaults = BatcherOptions {
            max_batch_rows: 7,
            ..BatcherOptions::default()
        };
        assert_eq!(Options::default().batcher(&defaults), defaults);
        let endpoint = proto::Endpoint {
            log: Some(proto::Log {
                predictions: true,
                sample: 0.5,
                ..proto::Log::default()
            }),
            batching: Some(proto::Batching {
                max_rows: 3,
                max_delay_us: 500,
                ragged: vec![proto::RaggedAxis {
                    tensor: "ids".to_owned(),
                    axis: 1,
                    fill: -1.0,
                }],
            }),
            limits: Some(proto::Limits {
                max_queue_time_ms: 20,
                ..proto::Limits::default()
            }),
            ..proto::Endpoint::default()
        };
        let options = Options::try_from(&endpoint).unwrap();
        let batcher = options.batcher(&defaults);
        assert_eq!(batcher.max_batch_rows, 3);
        assert_eq!(batcher.max_queue_delay, Duration::from_micros(500));
        assert_eq!(batcher.max_queue_time, Duration::from_millis(20));
        assert_eq!(batcher.max_queued_requests, defaults.max_queued_requests);
        assert_eq!(batcher.ragged[0].tensor, "ids");
        // What an older version kept lacks what it did not know.
        assert_eq!(serde_json::from_str::<Options>("{}").unwrap(), Options::default());
        let text = serde_json::to_string(&options).unwrap();
        assert_eq!(serde_json::from_str::<Options>(&text).unwrap(), options);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let spoilt = [
            proto::Endpoint {
                sticky: Some(proto::Attribute { source: None }),
                ..proto::Endpoint::default()
            },
            proto::Endpoint {
                log: Some(proto::Log {
                    predictions: true,
                    sample: f64::NAN,
                    ..proto::Log::default()
                }),
                ..proto::Endpoint::default()
            },
        ];
        for endpoint in spoilt {
            assert!(matches!(
                Options::try_from(&endpoint),
                Err(Error::InvalidEndpoint { .. })
            ));
        }
    }
}
