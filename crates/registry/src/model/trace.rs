//! Traces: what an application did for one request, as a tree of spans, and what people and judges say of it.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

pub use super::assessment::{Assessment, AssessmentChange, AssessmentKind, aggregate_of};
use super::{
    run::pair_bytes,
    span_totals::{SpanNode, whole},
};

/// The tag with the name of a trace.
pub const TRACE_NAME_TAG: &str = "mlflow.traceName";
/// The tag that says where the spans of a trace are.
pub const SPANS_LOCATION_TAG: &str = "mlflow.trace.spansLocation";
/// The spans are in this server's database.
pub const IN_STORE: &str = "TRACKING_STORE";
/// The tag with the folder of a trace's artifacts.
pub const ARTIFACT_LOCATION_TAG: &str = "mlflow.artifactLocation";
/// The metadata that says that the client has told all it knows of the trace.
pub const FINALIZED_KEY: &str = "mlflow.trace.infoFinalized";
/// The metadata with the session of a trace.
pub const SESSION_KEY: &str = "mlflow.trace.session";
/// The metadata with the user of a trace.
pub const USER_KEY: &str = "mlflow.trace.user";
/// The metadata with the tokens that a trace used.
pub const TOKEN_USAGE_KEY: &str = "mlflow.trace.tokenUsage";
/// The metadata with what a trace cost.
pub const COST_KEY: &str = "mlflow.trace.cost";
/// The metadata with the sizes of the spans, among them their number.
pub const SIZE_STATS_KEY: &str = "mlflow.trace.sizeStats";
/// The metadata with the run that made a trace.
pub const SOURCE_RUN_KEY: &str = "mlflow.sourceRun";

/// How a trace ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TraceState {
    /// That was not said.
    Unspecified,
    /// Well.
    Ok,
    /// With an error.
    Error,
    /// It has not ended.
    InProgress,
}

impl TraceState {
    const ALL: [Self; 4] = [Self::Unspecified, Self::Ok, Self::Error, Self::InProgress];

    /// As it is stored and sent.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unspecified => "STATE_UNSPECIFIED",
            Self::Ok => "OK",
            Self::Error => "ERROR",
            Self::InProgress => "IN_PROGRESS",
        }
    }

    /// The state with a name, or with the number of protobuf.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let by_name = Self::ALL.into_iter().find(|state| state.as_str() == text);
        by_name.or_else(|| Self::ALL.get(text.parse::<usize>().ok()?).copied())
    }
}

/// The tokens that a trace used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TokenUsage {
    /// Of the input.
    pub input: Option<i64>,
    /// Of the output.
    pub output: Option<i64>,
    /// All.
    pub total: Option<i64>,
    /// Read from a cache.
    pub cache_read: Option<i64>,
    /// Written to a cache.
    pub cache_creation: Option<i64>,
    /// Written to a cache for longer than an hour.
    pub cache_creation_above_1hr: Option<i64>,
}

impl TokenUsage {
    /// The names of the counts, in the order of [`Self::counts`].
    pub const KEYS: [&str; 6] = [
        "input_tokens",
        "output_tokens",
        "total_tokens",
        "cache_read_input_tokens",
        "cache_creation_input_tokens",
        "cache_creation_input_tokens_above_1hr",
    ];

    /// The counts.
    #[must_use]
    pub const fn counts(&self) -> [Option<i64>; 6] {
        [
            self.input,
            self.output,
            self.total,
            self.cache_read,
            self.cache_creation,
            self.cache_creation_above_1hr,
        ]
    }

    /// The counts as the metadata says them; None: there are none.
    #[must_use]
    pub fn text(&self) -> Option<String> {
        let counts = Self::KEYS.into_iter().zip(self.counts());
        spaced(counts.filter_map(|(key, count)| Some((key, count?))))
    }

    /// The usage with these counts.
    #[must_use]
    pub const fn of(counts: [Option<i64>; 6]) -> Self {
        let [
            input,
            output,
            total,
            cache_read,
            cache_creation,
            cache_creation_above_1hr,
        ] = counts;
        Self {
            input,
            output,
            total,
            cache_read,
            cache_creation,
            cache_creation_above_1hr,
        }
    }
}

/// What a trace, or a span, cost, in US dollars.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cost {
    /// Of the input.
    pub input: Option<f64>,
    /// Of the output.
    pub output: Option<f64>,
    /// All.
    pub total: Option<f64>,
}

impl Cost {
    /// The names of the amounts, in the order of [`Self::amounts`].
    pub const KEYS: [&str; 3] = ["input_cost", "output_cost", "total_cost"];

    /// The amounts.
    #[must_use]
    pub const fn amounts(&self) -> [Option<f64>; 3] {
        [self.input, self.output, self.total]
    }

    /// The amounts as the metadata says them; None: there are none.
    #[must_use]
    pub fn text(&self) -> Option<String> {
        let amounts = Self::KEYS.into_iter().zip(self.amounts());
        spaced(amounts.filter_map(|(key, amount)| Some((key, Value::from(amount?)))))
    }

    /// The cost with these amounts.
    #[must_use]
    pub const fn of(amounts: [Option<f64>; 3]) -> Self {
        let [input, output, total] = amounts;
        Self { input, output, total }
    }
}

/// What is told of a trace besides its spans.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceInfo {
    /// Its id, which is one within the project.
    pub trace_id: String,
    /// The project.
    pub project: String,
    /// Its experiment.
    pub experiment_id: i64,
    /// When it began, in milliseconds since the epoch.
    pub timestamp_ms: i64,
    /// How long it took; none: it has not ended.
    pub execution_time_ms: Option<i64>,
    /// How it ended.
    pub state: TraceState,
    /// What its client calls it.
    pub client_request_id: Option<String>,
    /// The beginning of the request.
    pub request_preview: Option<String>,
    /// The beginning of the response.
    pub response_preview: Option<String>,
    /// Its name.
    pub name: Option<String>,
    /// Its session.
    pub session_id: Option<String>,
    /// The tokens that it used.
    pub usage: TokenUsage,
    /// What it cost.
    pub cost: Cost,
    /// Tags but the name.
    pub tags: BTreeMap<String, String>,
    /// Metadata but session, tokens and cost.
    pub metadata: BTreeMap<String, String>,
    /// What is said of it, oldest first.
    pub assessments: Vec<Assessment>,
}

/// JSON as Python writes it.
fn spaced<T: ToString>(pairs: impl Iterator<Item = (&'static str, T)>) -> Option<String> {
    let pairs: Vec<String> = pairs
        .map(|(key, value)| format!("\"{key}\": {}", value.to_string()))
        .collect();
    (!pairs.is_empty()).then(|| format!("{{{}}}", pairs.join(", ")))
}

impl TraceInfo {
    /// About how many bytes of names and texts it has.
    #[must_use]
    pub fn text_bytes(&self) -> usize {
        let previews = [&self.request_preview, &self.response_preview].map(|text| text.as_ref().map_or(0, String::len));
        let assessments: usize = self.assessments.iter().map(Assessment::text_bytes).sum();
        previews.iter().sum::<usize>() + pair_bytes(&self.tags) + pair_bytes(&self.metadata) + assessments
    }

    /// All tags, the name among them.
    #[must_use]
    pub fn all_tags(&self) -> BTreeMap<String, String> {
        let mut tags = self.tags.clone();
        if let Some(name) = &self.name {
            tags.insert(TRACE_NAME_TAG.to_owned(), name.clone());
        }
        tags
    }

    /// All metadata, session, tokens and cost among them.
    #[must_use]
    pub fn all_metadata(&self) -> BTreeMap<String, String> {
        let mut metadata = self.metadata.clone();
        if let Some(session) = &self.session_id {
            metadata.insert(SESSION_KEY.to_owned(), session.clone());
        }
        if let Some(usage) = self.usage.text() {
            metadata.insert(TOKEN_USAGE_KEY.to_owned(), usage);
        }
        if let Some(cost) = self.cost.text() {
            metadata.insert(COST_KEY.to_owned(), cost);
        }
        metadata
    }

    /// How many spans the client has said that there are.
    #[must_use]
    pub fn expected_spans(&self) -> Option<u64> {
        let stats: Map<String, Value> = serde_json::from_str(self.metadata.get(SIZE_STATS_KEY)?).ok()?;
        stats.get("num_spans")?.as_u64()
    }

    /// Whether its spans are in the database, and not among the artifacts.
    #[must_use]
    pub fn has_spans_in_store(&self) -> bool {
        self.tags.get(SPANS_LOCATION_TAG).is_some_and(|place| place == IN_STORE)
    }
}

/// A span as it is stored.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredSpan {
    /// Its trace.
    pub trace_id: String,
    /// Its id: 16 hexadecimal digits.
    pub span_id: String,
    /// The span above; none: a root.
    pub parent_id: Option<String>,
    /// Its name.
    pub name: String,
    /// Its type, such as `LLM`.
    pub span_type: String,
    /// `UNSET`, `OK` or `ERROR`.
    pub status: &'static str,
    /// When it began, in nanoseconds since the epoch.
    pub start_ns: i64,
    /// When it ended.
    pub end_ns: Option<i64>,
    /// The span as MLflow's clients store it, as JSON.
    pub content: String,
    /// The tokens that it used: a JSON object.
    pub token_usage: Option<String>,
    /// What it cost.
    pub cost: Cost,
    /// The model that it called.
    pub model_name: Option<String>,
    /// Who provides that model.
    pub model_provider: Option<String>,
}

impl StoredSpan {
    /// What it used and cost.
    pub(crate) fn node(&self) -> SpanNode {
        SpanNode {
            span_id: self.span_id.clone(),
            parent_id: self.parent_id.clone(),
            token_usage: self.token_usage.clone(),
            cost: self.cost,
        }
    }
}

/// A trace with its spans, each as JSON, roots first, then by their beginning.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// What is told of it.
    pub info: TraceInfo,
    /// Its spans.
    pub spans: Vec<String>,
}

/// What the metadata of a trace says that has columns of its own.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Promoted {
    /// The session.
    pub(crate) session_id: Option<String>,
    /// The tokens.
    pub(crate) usage: TokenUsage,
    /// The cost.
    pub(crate) cost: Cost,
}

impl Promoted {
    /// Takes it out of the metadata.
    pub(crate) fn take(metadata: &mut BTreeMap<String, String>) -> Self {
        let mut object = |key: &str| -> Map<String, Value> {
            let text = metadata.remove(key).unwrap_or_default();
            serde_json::from_str(&text).unwrap_or_default()
        };
        let (usage, cost) = (object(TOKEN_USAGE_KEY), object(COST_KEY));
        let count = |key: &str| match usage.get(key)? {
            Value::String(text) => text.trim().parse().ok(),
            value => whole(value),
        };
        let amount = |key: &str| match cost.get(key)? {
            Value::String(text) => text.trim().parse().ok(),
            value => value.as_f64(),
        };
        Self {
            usage: TokenUsage::of(TokenUsage::KEYS.map(count)),
            cost: Cost::of(Cost::KEYS.map(|key| amount(key).filter(|amount: &f64| amount.is_finite()))),
            session_id: metadata.remove(SESSION_KEY),
        }
    }
}

/// A trace as its client tells of it at its end.
#[derive(Debug, Clone)]
pub struct NewTrace {
    /// What is told; its artifacts' place is not in the tags.
    pub info: TraceInfo,
    /// Whether the client has told all; else there may be more to come.
    pub is_final: bool,
}

/// What becomes of a trace of the older protocol at its end.
#[derive(Debug, Clone)]
pub struct TraceEnd {
    /// When it ended, in milliseconds since the epoch.
    pub timestamp_ms: i64,
    /// How.
    pub state: TraceState,
    /// Its name, if it gets one.
    pub name: Option<String>,
    /// Its session, if it gets one.
    pub session_id: Option<String>,
    /// The tokens that it used.
    pub usage: TokenUsage,
    /// What it cost.
    pub cost: Cost,
    /// Tags that are set.
    pub tags: BTreeMap<String, String>,
    /// Metadata that is set.
    pub metadata: BTreeMap<String, String>,
}

/// What the spans of a trace that came together tell of it.
#[derive(Debug, Clone, Default)]
pub struct SpansSummary {
    /// When the first began, in milliseconds since the epoch.
    pub start_ms: i64,
    /// When the last ended.
    pub end_ms: Option<i64>,
    /// How the root ended, if it is among them.
    pub root_state: Option<TraceState>,
    /// The beginning of the root's input.
    pub request_preview: Option<String>,
    /// The beginning of the root's output.
    pub response_preview: Option<String>,
    /// The name that the root gives the trace.
    pub name: Option<String>,
    /// The session.
    pub session_id: Option<String>,
    /// The user.
    pub user_id: Option<String>,
    /// Tags of the resource and of the root.
    pub tags: BTreeMap<String, String>,
}

/// Spans of one trace that came together.
#[derive(Debug, Clone)]
pub struct TraceSpans {
    /// The trace.
    pub trace_id: String,
    /// What they tell of it.
    pub summary: SpansSummary,
    /// The spans, each once.
    pub spans: Vec<StoredSpan>,
}

/// Spans of one request.
#[derive(Debug, Clone)]
pub struct SpanBatch {
    /// The project.
    pub project: String,
    /// The experiment of traces that are new.
    pub experiment_id: i64,
    /// The traces, by their ids.
    pub traces: Vec<TraceSpans>,
}

/// Which traces are wanted.
#[derive(Debug, Clone, Default)]
pub struct TraceChoice {
    /// The project.
    pub project: String,
    /// The traces.
    pub trace_ids: Vec<String>,
    /// Only those of these experiments; none: of all.
    pub experiment_ids: Option<Vec<i64>>,
}

/// Which traces are deleted: those of an experiment to which everything that is given applies.
#[derive(Debug, Clone)]
pub struct TraceDeletion {
    /// The project.
    pub project: String,
    /// The experiment.
    pub experiment_id: i64,
    /// Those that began then or before, in milliseconds since the epoch.
    pub until_ms: Option<i64>,
    /// These; empty: all.
    pub trace_ids: Vec<String>,
    /// The most, the oldest first.
    pub limit: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_metadata_has_columns() {
        let usage = r#"{"input_tokens": 3, "output_tokens": "4", "total_tokens": 7.5}"#;
        let mut metadata: BTreeMap<String, String> = [
            (TOKEN_USAGE_KEY, usage),
            (COST_KEY, r#"{"input_cost": 0.5, "total_cost": 1}"#),
            (SESSION_KEY, "s"),
            (SOURCE_RUN_KEY, "r"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
        let promoted = Promoted::take(&mut metadata);
        assert_eq!(metadata.keys().collect::<Vec<_>>(), [SOURCE_RUN_KEY]);
        let info = TraceInfo {
            trace_id: "t".to_owned(),
            project: "p".to_owned(),
            experiment_id: 1,
            timestamp_ms: 1,
            execution_time_ms: None,
            state: TraceState::Ok,
            client_request_id: None,
            request_preview: None,
            response_preview: None,
            name: Some("n".to_owned()),
            session_id: promoted.session_id,
            usage: promoted.usage,
            cost: promoted.cost,
            tags: BTreeMap::new(),
            metadata,
            assessments: Vec::new(),
        };
        let all = info.all_metadata();
        assert_eq!(all[TOKEN_USAGE_KEY], r#"{"input_tokens": 3, "output_tokens": 4}"#);
        assert_eq!(all[COST_KEY], r#"{"input_cost": 0.5, "total_cost": 1.0}"#);
        assert_eq!((all[SESSION_KEY].as_str(), all.len()), ("s", 4));
        assert_eq!(info.all_tags()[TRACE_NAME_TAG], "n");
    }
}
