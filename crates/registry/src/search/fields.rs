//! What can be searched, and by which fields.

use super::{Entity, Operator};

/// What is searched: it decides over the fields, and over the words of refusals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subject {
    Runs,
    Experiments,
    RegisteredModels,
    ModelVersions,
    LoggedModels,
    Traces,
    EvaluationDatasets,
}

/// What an attribute holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holds {
    /// A text.
    Text,
    /// The decimal number of an experiment, written as a text, which has no order.
    ExperimentId,
    /// A whole number. `fractions`: it may be compared with numbers that are none. `texts`: it may be written as a text.
    Integer { fractions: bool, texts: bool },
}

/// An attribute.
#[derive(Debug)]
pub(super) struct Attribute {
    /// How it is called here.
    pub(super) name: &'static str,
    /// How it is called in filters.
    pub(super) filter: &'static [&'static str],
    /// How it is called in orders.
    pub(super) order: &'static [&'static str],
    pub(super) holds: Holds,
}

/// What can be searched by what.
#[derive(Debug)]
pub struct Schema {
    pub(super) subject: Subject,
    /// The entities and the words for them.
    pub(super) entities: &'static [(Entity, &'static [&'static str])],
    pub(super) attributes: &'static [Attribute],
}

/// The keys of a dataset.
pub(super) const DATASET_KEYS: [&str; 3] = ["name", "digest", "context"];

/// What is asked of a span, but its attributes.
pub(super) const SPAN_KEYS: [&str; 4] = ["name", "type", "status", "content"];
/// What stands in front of the name of a span's attribute.
pub const SPAN_ATTRIBUTE: &str = "attributes.";

/// The comparisons of numbers.
pub(super) const NUMBERS: &[Operator] = &[
    Operator::Equal,
    Operator::NotEqual,
    Operator::Greater,
    Operator::GreaterOrEqual,
    Operator::Less,
    Operator::LessOrEqual,
];
/// The comparisons of texts.
pub(super) const TEXTS: &[Operator] = &[
    Operator::Equal,
    Operator::NotEqual,
    Operator::Like,
    Operator::ILike,
    Operator::In,
    Operator::NotIn,
];
/// The comparisons of params and tags.
pub(super) const KEYED_TEXTS: &[Operator] = &[
    Operator::Equal,
    Operator::NotEqual,
    Operator::Like,
    Operator::ILike,
    Operator::In,
    Operator::NotIn,
    Operator::IsNull,
    Operator::IsNotNull,
];
/// The comparisons of the texts of a trace that are always there, and of spans.
const SEARCHED_TEXTS: &[Operator] = &[
    Operator::Equal,
    Operator::NotEqual,
    Operator::Like,
    Operator::ILike,
    Operator::RLike,
    Operator::In,
    Operator::NotIn,
];
/// The comparisons of tags, metadata and other texts of a trace that may be missing.
const SEARCHED_KEYED_TEXTS: &[Operator] = &[
    Operator::Equal,
    Operator::NotEqual,
    Operator::Like,
    Operator::ILike,
    Operator::RLike,
    Operator::In,
    Operator::NotIn,
    Operator::IsNull,
    Operator::IsNotNull,
];
/// The comparisons of what is said of a trace.
const ASSESSED: &[Operator] = &[
    Operator::Equal,
    Operator::NotEqual,
    Operator::Greater,
    Operator::GreaterOrEqual,
    Operator::Less,
    Operator::LessOrEqual,
    Operator::Like,
    Operator::ILike,
    Operator::RLike,
    Operator::IsNull,
    Operator::IsNotNull,
];
/// The comparisons of all that a span holds.
const CONTAINED: &[Operator] = &[Operator::Like, Operator::ILike];
/// The comparisons of what is the same or not there.
const SAME: &[Operator] = &[Operator::Equal];
/// The comparisons of what has no order.
pub(super) const NAMES: &[Operator] = &[Operator::Equal, Operator::NotEqual, Operator::In, Operator::NotIn];

const TIME: Holds = Holds::Integer {
    fractions: false,
    texts: false,
};

/// An attribute with one name.
const fn same(name: &'static str, names: &'static [&'static str], holds: Holds) -> Attribute {
    Attribute {
        name,
        filter: names,
        order: names,
        holds,
    }
}

const fn ordered(name: &'static str, order: &'static [&'static str]) -> Attribute {
    Attribute {
        name,
        filter: &[],
        order,
        holds: TIME,
    }
}

/// Runs.
pub const RUNS: Schema = Schema {
    subject: Subject::Runs,
    entities: &[
        (Entity::Metric, &["metric", "metrics"]),
        (Entity::Param, &["parameter", "parameters", "param", "params"]),
        (Entity::Tag, &["tag", "tags"]),
        (Entity::Attribute, &["attribute", "attributes", "attr", "run"]),
        (Entity::Dataset, &["dataset", "datasets"]),
    ],
    attributes: &[
        same("run_id", &["run_id"], Holds::Text),
        Attribute {
            name: "run_name",
            filter: &["run_name", "run name", "Run name", "Run Name"],
            order: &["run_name"],
            holds: Holds::Text,
        },
        same("status", &["status"], Holds::Text),
        same("user_id", &["user_id"], Holds::Text),
        same("artifact_uri", &["artifact_uri"], Holds::Text),
        same(
            "start_time",
            &["start_time", "created", "Created"],
            Holds::Integer {
                fractions: true,
                texts: false,
            },
        ),
        same(
            "end_time",
            &["end_time"],
            Holds::Integer {
                fractions: true,
                texts: false,
            },
        ),
    ],
};

/// Experiments.
pub const EXPERIMENTS: Schema = Schema {
    subject: Subject::Experiments,
    entities: &[(Entity::Attribute, &["attribute"]), (Entity::Tag, &["tag", "tags"])],
    attributes: &[
        same("name", &["name"], Holds::Text),
        same("experiment_id", &["experiment_id"], Holds::ExperimentId),
        same("creation_time", &["creation_time"], TIME),
        same("last_update_time", &["last_update_time"], TIME),
    ],
};

/// Registered models.
pub const REGISTERED_MODELS: Schema = Schema {
    subject: Subject::RegisteredModels,
    entities: &[(Entity::Attribute, &["attribute"]), (Entity::Tag, &["tag", "tags"])],
    attributes: &[
        same("name", &["name"], Holds::Text),
        ordered("last_updated_timestamp", &["timestamp", "last_updated_timestamp"]),
    ],
};

/// Model versions.
pub const MODEL_VERSIONS: Schema = Schema {
    subject: Subject::ModelVersions,
    entities: &[(Entity::Attribute, &["attribute"]), (Entity::Tag, &["tag", "tags"])],
    attributes: &[
        same("name", &["name"], Holds::Text),
        same(
            "version_number",
            &["version_number"],
            Holds::Integer {
                fractions: false,
                texts: true,
            },
        ),
        Attribute {
            name: "run_id",
            filter: &["run_id"],
            order: &[],
            holds: Holds::Text,
        },
        Attribute {
            name: "source_path",
            filter: &["source_path"],
            order: &[],
            holds: Holds::Text,
        },
        ordered("creation_timestamp", &["creation_timestamp"]),
        ordered("last_updated_timestamp", &["last_updated_timestamp"]),
    ],
};

/// Logged models.
pub const LOGGED_MODELS: Schema = Schema {
    subject: Subject::LoggedModels,
    entities: &[
        (Entity::Attribute, &["attributes"]),
        (Entity::Metric, &["metrics"]),
        (Entity::Param, &["params"]),
        (Entity::Tag, &["tags"]),
    ],
    attributes: &[
        same("name", &["name"], Holds::Text),
        same("model_id", &["model_id"], Holds::Text),
        same("model_type", &["model_type"], Holds::Text),
        same("status", &["status"], Holds::Text),
        same("source_run_id", &["source_run_id"], Holds::Text),
        same(
            "creation_timestamp",
            &["creation_timestamp", "creation_time", "creation_timestamp_ms"],
            Holds::Integer {
                fractions: true,
                texts: false,
            },
        ),
        same(
            "last_updated_timestamp",
            &[
                "last_updated_timestamp",
                "last_updated_time",
                "last_updated_timestamp_ms",
            ],
            Holds::Integer {
                fractions: true,
                texts: false,
            },
        ),
    ],
};

/// Evaluation datasets.
pub const EVALUATION_DATASETS: Schema = Schema {
    subject: Subject::EvaluationDatasets,
    entities: &[(Entity::Tag, &["tags"])],
    attributes: &[
        same("name", &["name"], Holds::Text),
        same("created_time", &["created_time"], TIME),
        same("last_update_time", &["last_update_time"], TIME),
        Attribute {
            name: "created_by",
            filter: &["created_by"],
            order: &[],
            holds: Holds::Text,
        },
        Attribute {
            name: "last_updated_by",
            filter: &["last_updated_by"],
            order: &[],
            holds: Holds::Text,
        },
    ],
};

const TRACE_TIME: Holds = Holds::Integer {
    fractions: true,
    texts: false,
};

/// Traces.
pub const TRACES: Schema = Schema {
    subject: Subject::Traces,
    entities: &[
        (Entity::Tag, &["tag", "tags"]),
        (Entity::Attribute, &["attribute", "attributes", "trace"]),
        (Entity::Metadata, &["request_metadata", "metadata"]),
        (Entity::Span, &["span"]),
        (Entity::Feedback, &["feedback"]),
        (Entity::Expectation, &["expectation"]),
        (Entity::Issue, &["issue"]),
    ],
    attributes: &[
        same("trace_id", &["request_id", "trace_id"], Holds::Text),
        same("timestamp_ms", &["timestamp", "timestamp_ms"], TRACE_TIME),
        same(
            "execution_time_ms",
            &["execution_time", "execution_time_ms"],
            TRACE_TIME,
        ),
        same("end_time_ms", &["end_time", "end_time_ms"], TRACE_TIME),
        same("status", &["status"], Holds::Text),
        same("name", &["name"], Holds::Text),
        same("run_id", &["run_id"], Holds::Text),
        ordered("experiment_id", &["experiment_id"]),
        Attribute {
            name: "client_request_id",
            filter: &["client_request_id"],
            order: &[],
            holds: Holds::Text,
        },
        Attribute {
            name: "prompt",
            filter: &["prompt"],
            order: &[],
            holds: Holds::Text,
        },
        Attribute {
            name: "text",
            filter: &["text"],
            order: &[],
            holds: Holds::Text,
        },
    ],
};

/// A field of a schema.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field<'a> {
    pub(super) entity: Entity,
    /// As it is asked for, without quotes.
    pub(super) key: &'a str,
    /// The attribute, if it is one.
    pub(super) attribute: Option<&'static Attribute>,
}

impl Field<'_> {
    /// The comparisons that it takes.
    pub(super) fn operators(&self, schema: &Schema) -> &'static [Operator] {
        if schema.subject == Subject::Traces {
            return self.trace_operators();
        }
        match (self.entity, self.attribute.map(|attribute| attribute.holds)) {
            (Entity::Metric, _) | (Entity::Attribute, Some(Holds::Integer { .. })) => NUMBERS,
            (Entity::Attribute, Some(Holds::ExperimentId)) => NAMES,
            (Entity::Attribute | Entity::Dataset, _) => TEXTS,
            _ => KEYED_TEXTS,
        }
    }

    fn trace_operators(&self) -> &'static [Operator] {
        match (self.entity, self.attribute.map(|attribute| attribute.holds), self.key) {
            (Entity::Attribute, Some(Holds::Integer { .. }), _) => NUMBERS,
            (Entity::Attribute, _, "prompt") | (Entity::Issue, ..) => SAME,
            (Entity::Attribute, _, "name" | "run_id" | "client_request_id") => SEARCHED_KEYED_TEXTS,
            (Entity::Span, _, "content") => CONTAINED,
            (Entity::Attribute | Entity::Span, ..) => SEARCHED_TEXTS,
            (Entity::Feedback | Entity::Expectation, ..) => ASSESSED,
            _ => SEARCHED_KEYED_TEXTS,
        }
    }
}

impl Schema {
    /// The entity that a word stands for.
    pub(super) fn entity(&self, word: &str) -> Option<Entity> {
        let found = self.entities.iter().find(|(_, words)| words.contains(&word));
        found.map(|(entity, _)| *entity)
    }

    /// The names of the attributes in filters, or in orders.
    pub(super) fn attribute_names(&self, ordering: bool) -> Vec<&'static str> {
        let names = |attribute: &'static Attribute| if ordering { attribute.order } else { attribute.filter };
        self.attributes.iter().flat_map(names).copied().collect()
    }

    /// The attribute of a name in filters, or in orders.
    pub(super) fn attribute(&self, name: &str, ordering: bool) -> Option<&'static Attribute> {
        let named = |attribute: &&Attribute| {
            let names = if ordering { attribute.order } else { attribute.filter };
            names.contains(&name)
        };
        self.attributes.iter().find(named)
    }
}
