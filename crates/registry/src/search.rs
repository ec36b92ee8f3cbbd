//! The language of searches: what MLflow's clients send as `filter_string` and `order_by`, and a little more.
//!
//! ```text
//! filter  = any
//! any     = all ( OR all )*
//! all     = unary ( [ AND ] unary )*
//! unary   = NOT unary | "(" any ")" | clause
//! clause  = field operator value | field [ NOT ] IN "(" text ( "," text )* ")" | field IS [ NOT ] NULL
//! field   = [ entity "." ] key                  -- no entity: an attribute
//! key     = bare ( "." bare )* | `back quoted` | "double quoted"
//! value   = 'text' | "text" | number            -- a doubled quote stands for one
//! ```
//!
//! What MLflow accepts means the same here, and what it refuses is refused in its words, because its clients and their
//! tests look for them. More than there: `OR`, `NOT`, parentheses, `IN` for every text, and a doubled quote is one quote.
//! A clause holds or it does not, there is no third state: what is missing fulfils no comparison, not even `!=`, and
//! `NOT` turns that around.
//!
//! Everything is bounded, and reading takes no recursion. Nothing here knows a database.

mod fields;
mod lexer;
mod metric_filter;
mod order;
mod parser;
mod value;
mod wording;

#[cfg(test)]
mod tests;

use std::fmt;

pub use self::{
    fields::{
        EVALUATION_DATASETS, EXPERIMENTS, LOGGED_MODELS, MODEL_VERSIONS, REGISTERED_MODELS, RUNS, SPAN_ATTRIBUTE,
        Schema, TRACES,
    },
    metric_filter::{MetricFilter, parse_metric_filter},
    order::{Order, parse_logged_model_order, parse_order},
    parser::parse_filter,
};

/// The longest filter, in bytes.
pub const MAX_FILTER_BYTES: usize = 64 * 1024;
/// The most clauses of a filter.
pub const MAX_CLAUSES: usize = 256;
/// How deep parentheses and `NOT` nest.
pub const MAX_NESTING: usize = 32;
/// The most texts of a list.
pub const MAX_LIST: usize = 2000;
/// The longest pattern of `LIKE`, in bytes: SQLite takes 50,000 once its own wildcards are escaped.
pub const MAX_PATTERN_BYTES: usize = 16_000;
/// The most `%` of a pattern: SQLite recurses for each.
pub const MAX_WILDCARDS: usize = 64;
/// The longest pattern of `RLIKE`, in bytes.
pub const MAX_EXPRESSION_BYTES: usize = 1000;
/// The most terms of an order.
pub const MAX_ORDER: usize = 16;

/// What a field belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Entity {
    /// The thing itself.
    Attribute,
    /// The latest value of a metric.
    Metric,
    /// A param.
    Param,
    /// A tag.
    Tag,
    /// A dataset that a run has read.
    Dataset,
    /// Metadata of a trace.
    Metadata,
    /// A span of a trace.
    Span,
    /// How good something in a trace was.
    Feedback,
    /// What should have come out of a trace.
    Expectation,
    /// A problem that was found in a trace.
    Issue,
}

impl Entity {
    /// The word for it in a filter.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Attribute => "attribute",
            Self::Metric => "metric",
            Self::Param => "parameter",
            Self::Tag => "tag",
            Self::Dataset => "dataset",
            Self::Metadata => "request_metadata",
            Self::Span => "span",
            Self::Feedback => "feedback",
            Self::Expectation => "expectation",
            Self::Issue => "issue",
        }
    }
}

/// How a field is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    /// `=`
    Equal,
    /// `!=`
    NotEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterOrEqual,
    /// `<`
    Less,
    /// `<=`
    LessOrEqual,
    /// `LIKE`: upper and lower case differ; `%` is any text, `_` any character.
    Like,
    /// `ILIKE`: like `LIKE`, and upper and lower case are the same.
    ILike,
    /// `RLIKE`: a regular expression fits somewhere in the text.
    RLike,
    /// `IN`
    In,
    /// `NOT IN`
    NotIn,
    /// `IS NULL`: there is no such param or tag.
    IsNull,
    /// `IS NOT NULL`
    IsNotNull,
}

impl Operator {
    /// As it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Equal => "=",
            Self::NotEqual => "!=",
            Self::Greater => ">",
            Self::GreaterOrEqual => ">=",
            Self::Less => "<",
            Self::LessOrEqual => "<=",
            Self::Like => "LIKE",
            Self::ILike => "ILIKE",
            Self::RLike => "RLIKE",
            Self::In => "IN",
            Self::NotIn => "NOT IN",
            Self::IsNull => "IS NULL",
            Self::IsNotNull => "IS NOT NULL",
        }
    }
}

/// What a field is compared with.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Nothing: `IS NULL` and `IS NOT NULL`.
    None,
    /// A whole number.
    Integer(i64),
    /// A number; never NaN.
    Number(f64),
    /// A text.
    Text(String),
    /// The texts of a list, one or more.
    Texts(Vec<String>),
}

/// One comparison.
#[derive(Debug, Clone, PartialEq)]
pub struct Clause {
    /// What the field belongs to.
    pub entity: Entity,
    /// The key of a metric, param or tag, or the attribute's own name: aliases are resolved.
    pub key: String,
    /// How it is compared.
    pub operator: Operator,
    /// With what. It fits the field and the operator.
    pub value: Value,
}

/// A filter.
#[derive(Debug, Clone, PartialEq)]
pub enum Filter {
    /// All of them hold.
    All(Vec<Filter>),
    /// One of them holds.
    Any(Vec<Filter>),
    /// It does not hold.
    Not(Box<Filter>),
    /// A comparison.
    Clause(Clause),
}

impl Filter {
    /// The comparisons that must hold whatever else does: what may be used to find rows rather than to sift them.
    pub fn required(&self) -> impl Iterator<Item = &Clause> {
        let parts = match self {
            Self::All(parts) => parts.as_slice(),
            other => std::slice::from_ref(other),
        };
        parts.iter().filter_map(|part| match part {
            Self::Clause(clause) => Some(clause),
            _ => None,
        })
    }

    /// Whether something of a kind is compared anywhere.
    #[must_use]
    pub fn asks(&self, entity: Entity) -> bool {
        match self {
            Self::Clause(clause) => clause.entity == entity,
            Self::Not(part) => part.asks(entity),
            Self::All(parts) | Self::Any(parts) => parts.iter().any(|part| part.asks(entity)),
        }
    }
}

/// Which of what was deleted, or was not, is searched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum View {
    /// What was not deleted.
    #[default]
    Active,
    /// What was deleted.
    Deleted,
    /// Both.
    All,
}

impl View {
    /// The lifecycle that is asked for, as it is stored; None: any.
    #[must_use]
    pub const fn lifecycle(self) -> Option<&'static str> {
        match self {
            Self::Active => Some("active"),
            Self::Deleted => Some("deleted"),
            Self::All => None,
        }
    }

    /// As MLflow's clients write it.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "ACTIVE_ONLY" => Some(Self::Active),
            "DELETED_ONLY" => Some(Self::Deleted),
            "ALL" => Some(Self::All),
            _ => None,
        }
    }
}

/// Why a filter or an order cannot be used, in MLflow's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SearchError(String);

impl SearchError {
    fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }

    /// The message.
    #[must_use]
    pub fn into_message(self) -> String {
        self.0
    }
}

impl fmt::Display for SearchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for SearchError {}
