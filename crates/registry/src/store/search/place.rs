//! Orders, and places in them.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

use super::sql::{Bind, Sql};

/// What something has where an order looks. Places are written into the tokens of pages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum Standing {
    /// The bits of a number, so that it comes back as it was.
    #[serde(rename = "n")]
    Number(u64),
    /// A whole number.
    #[serde(rename = "i")]
    Integer(i64),
    /// A text.
    #[serde(rename = "t")]
    Text(String),
    /// A metric that is NaN: after all numbers, whatever the direction.
    #[serde(rename = "x")]
    NotANumber,
    /// Nothing: last, whatever the direction.
    #[serde(rename = "m")]
    Missing,
}

impl Standing {
    pub(super) fn number(value: f64) -> Self {
        // The two zeros are one value, and one place.
        Self::Number((value + 0.0).to_bits())
    }

    /// Values come first, then NaN, then nothing.
    const fn class(&self) -> u8 {
        match self {
            Self::Number(_) | Self::Integer(_) | Self::Text(_) => 0,
            Self::NotANumber => 1,
            Self::Missing => 2,
        }
    }

    pub(super) fn bound(&self) -> Option<Bind> {
        match self {
            Self::Number(bits) => Some(Bind::Number(f64::from_bits(*bits))),
            Self::Integer(value) => Some(Bind::Integer(*value)),
            Self::Text(value) => Some(Bind::Text(value.clone())),
            Self::NotANumber | Self::Missing => None,
        }
    }

    fn compare(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Number(left), Self::Number(right)) => f64::from_bits(*left).total_cmp(&f64::from_bits(*right)),
            (Self::Integer(left), Self::Integer(right)) => left.cmp(right),
            (Self::Text(left), Self::Text(right)) => left.cmp(right),
            _ => Ordering::Equal,
        }
    }
}

/// What a term of an order looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Sight {
    /// A metric of the run.
    Metric(String),
    /// A param of the run.
    Param(String),
    /// A tag of the run.
    Tag(String),
    /// A tag of the trace.
    TraceTag(String),
    /// Metadata of the trace.
    TraceMetadata(String),
    /// A text that can be missing: SQL.
    OptionalText(&'static str),
    /// A text that is always there: SQL.
    Text(&'static str),
    /// A whole number: SQL, and whether it can be missing.
    Integer(&'static str, bool),
}

/// A term of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Term {
    pub(super) sight: Sight,
    pub(super) descending: bool,
}

/// The names by which terms are joined.
const JOINED: [&str; crate::search::MAX_ORDER] = [
    "o0", "o1", "o2", "o3", "o4", "o5", "o6", "o7", "o8", "o9", "o10", "o11", "o12", "o13", "o14", "o15",
];

impl Term {
    /// Whether a place can stand in this term.
    pub(super) fn takes(&self, standing: &Standing) -> bool {
        match (&self.sight, standing) {
            (Sight::Metric(_), Standing::Number(bits)) => !f64::from_bits(*bits).is_nan(),
            (Sight::Metric(_), Standing::NotANumber | Standing::Missing)
            | (
                Sight::Param(_)
                | Sight::Tag(_)
                | Sight::TraceTag(_)
                | Sight::TraceMetadata(_)
                | Sight::OptionalText(_)
                | Sight::Integer(_, true),
                Standing::Missing,
            )
            | (Sight::Integer(..), Standing::Integer(_)) => true,
            // PostgreSQL refuses it.
            (Sight::Metric(_) | Sight::Integer(..), _) => false,
            (_, Standing::Text(text)) => !text.contains('\0'),
            _ => false,
        }
    }

    /// Which of two comes first by this term.
    pub(super) fn compare(&self, left: &Standing, right: &Standing) -> Ordering {
        let by_value = if self.descending {
            right.compare(left)
        } else {
            left.compare(right)
        };
        left.class().cmp(&right.class()).then(by_value)
    }

    /// The table that has the values of this term, and its key.
    pub(super) fn table(&self) -> Option<(&'static str, &str)> {
        match &self.sight {
            Sight::Metric(key) => Some(("run_metric", key)),
            Sight::Param(key) => Some(("run_param", key)),
            Sight::Tag(key) => Some(("run_tag", key)),
            Sight::TraceTag(key) => Some(("trace_tag", key)),
            Sight::TraceMetadata(key) => Some(("trace_metadata", key)),
            Sight::Text(_) | Sight::OptionalText(_) | Sight::Integer(..) => None,
        }
    }

    fn can_be_missing(&self) -> bool {
        !matches!(self.sight, Sight::Text(_) | Sight::Integer(_, false))
    }

    /// Adds the value, in the way in which it is ordered. `index`: which term of the order this is.
    fn push_value(&self, sql: &mut Sql, index: usize) {
        match self.sight {
            Sight::Text(column) | Sight::OptionalText(column) => {
                sql.push(column).collate();
            }
            Sight::Integer(column, _) => {
                sql.push(column);
            }
            Sight::Metric(_) => {
                sql.push(joined(index)).push(".value");
            }
            Sight::Param(_) | Sight::Tag(_) | Sight::TraceTag(_) | Sight::TraceMetadata(_) => {
                sql.push(joined(index)).push(".value").collate();
            }
        }
    }

    /// Adds `, value` or `, value, is_nan`.
    pub(super) fn push_columns(&self, sql: &mut Sql, index: usize) {
        sql.push(", ");
        match self.sight {
            Sight::Text(column) | Sight::OptionalText(column) | Sight::Integer(column, _) => sql.push(column),
            _ => sql.push(joined(index)).push(".value"),
        };
        if matches!(self.sight, Sight::Metric(_)) {
            sql.push(", ").push(joined(index)).push(".is_nan");
        }
    }

    /// Adds the term to `ORDER BY`. `sorted`: only rows with a value are there.
    pub(super) fn push_order(&self, sql: &mut Sql, index: usize, sorted: bool) {
        if self.can_be_missing() && !sorted {
            sql.push("CASE ");
            if matches!(self.sight, Sight::Metric(_)) {
                sql.push("WHEN ").push(joined(index)).push(".is_nan = 1 THEN 1 ");
            }
            sql.push("WHEN ");
            self.push_value(sql, index);
            sql.push(" IS NULL THEN 2 ELSE 0 END, ");
        }
        self.push_value(sql, index);
        sql.push(if self.descending { " DESC" } else { "" });
    }

    /// Adds whether a row comes after a place by this term alone.
    fn push_after(&self, sql: &mut Sql, index: usize, place: &Standing) {
        let Some(value) = place.bound() else {
            match place {
                Standing::NotANumber => {
                    self.push_value(sql, index);
                    sql.push(" IS NULL");
                }
                _ => {
                    sql.push("1 = 0");
                }
            }
            return;
        };
        if !self.can_be_missing() {
            self.push_value(sql, index);
            sql.push(if self.descending { " < " } else { " > " }).bind(value);
            return;
        }
        sql.push("(");
        self.push_value(sql, index);
        sql.push(if self.descending { " < " } else { " > " }).bind(value);
        if matches!(self.sight, Sight::Metric(_)) {
            sql.push(" AND ").push(joined(index)).push(".is_nan = 0");
            sql.push(" OR ").push(joined(index)).push(".is_nan = 1");
        }
        sql.push(" OR ");
        self.push_value(sql, index);
        sql.push(" IS NULL)");
    }

    /// Adds whether a row is level with a place by this term.
    fn push_level(&self, sql: &mut Sql, index: usize, place: &Standing) {
        match place.bound() {
            Some(value) => {
                self.push_value(sql, index);
                sql.push(" = ").bind(value);
                if matches!(self.sight, Sight::Metric(_)) {
                    sql.push(" AND ").push(joined(index)).push(".is_nan = 0");
                }
            }
            None if *place == Standing::NotANumber => {
                sql.push(joined(index)).push(".is_nan = 1");
            }
            None => {
                self.push_value(sql, index);
                sql.push(" IS NULL");
            }
        }
    }

    /// Adds the range that begins with a place, for an index to start from. It says no more than what is added beside it.
    pub(super) fn push_range(&self, sql: &mut Sql, index: usize, place: &Standing) {
        if let Some(value) = place.bound() {
            sql.push(" AND ");
            self.push_value(sql, index);
            sql.push(if self.descending { " <= " } else { " >= " }).bind(value);
        }
    }

    /// Whether the place is one of the numbers, one of the NaNs, or one of those without the metric.
    pub(super) const fn class(place: &Standing) -> u8 {
        place.class()
    }
}

/// The name by which a term's table is joined.
pub(super) fn joined(index: usize) -> &'static str {
    // As many as an order may have terms.
    JOINED.get(index).copied().unwrap_or("o")
}

/// Adds whether a row comes after a place, by the terms from `first` on: by the first of them, or, level there, by the next.
pub(super) fn push_after(sql: &mut Sql, terms: &[Term], place: &[Standing], first: usize) {
    let pairs: Vec<_> = terms.iter().zip(place).enumerate().skip(first).collect();
    for (position, (index, (term, standing))) in pairs.iter().enumerate() {
        sql.push("(");
        term.push_after(sql, *index, standing);
        if position + 1 < pairs.len() {
            sql.push(" OR (");
            term.push_level(sql, *index, standing);
            sql.push(" AND ");
        }
    }
    for position in 0..pairs.len() {
        sql.push(if position == 0 { ")" } else { "))" });
    }
}

/// Which of two places comes first.
pub(super) fn compare(terms: &[Term], left: &[Standing], right: &[Standing]) -> Ordering {
    let pairs = terms.iter().zip(left.iter().zip(right));
    pairs.fold(Ordering::Equal, |order, (term, (left, right))| {
        order.then_with(|| term.compare(left, right))
    })
}
