//! Statements that are put together from what is searched for. Values are always bound, never part of the text.

use crate::search::{Clause, Filter, Operator, Value};

/// Whose SQL is written. The two differ in how texts are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// SQLite.
    Sqlite,
    /// PostgreSQL.
    Postgres,
}

/// A value that is bound.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Bind {
    /// A whole number.
    Integer(i64),
    /// A number.
    Number(f64),
    /// A text.
    Text(String),
}

/// A piece of a statement.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Piece {
    /// SQL.
    Fixed(&'static str),
    /// A value.
    Bound(Bind),
}

/// A statement in the making.
#[derive(Debug)]
pub(crate) struct Sql {
    pub(super) dialect: Dialect,
    pieces: Vec<Piece>,
}

impl Sql {
    pub(crate) const fn new(dialect: Dialect) -> Self {
        Self {
            dialect,
            pieces: Vec::new(),
        }
    }

    /// Adds SQL. It is static: nothing that came from outside can become a part of it.
    pub(crate) fn push(&mut self, text: &'static str) -> &mut Self {
        self.pieces.push(Piece::Fixed(text));
        self
    }

    pub(crate) fn bind(&mut self, value: Bind) -> &mut Self {
        self.pieces.push(Piece::Bound(value));
        self
    }

    pub(crate) fn text(&mut self, value: &str) -> &mut Self {
        self.bind(Bind::Text(value.to_owned()))
    }

    pub(crate) fn integer(&mut self, value: i64) -> &mut Self {
        self.bind(Bind::Integer(value))
    }

    /// Adds `(a, b)`.
    pub(crate) fn list(&mut self, values: impl IntoIterator<Item = Bind>) -> &mut Self {
        let mut separator = "(";
        for value in values {
            self.push(separator).bind(value);
            separator = ", ";
        }
        self.push(if separator == "(" { "(NULL)" } else { ")" })
    }

    /// Adds how texts are ordered: by their bytes, in both databases and here alike.
    pub(crate) fn collate(&mut self) -> &mut Self {
        self.push(match self.dialect {
            Dialect::Sqlite => " COLLATE BINARY",
            Dialect::Postgres => " COLLATE \"C\"",
        })
    }

    pub(crate) fn into_pieces(self) -> Vec<Piece> {
        self.pieces
    }
}

/// Adds a filter; `clause` adds each comparison, which must never be NULL, or `NOT` would not turn it around. As deep as the
/// filter is, and that is bounded where it is read.
pub(crate) fn push_filter(sql: &mut Sql, filter: &Filter, clause: &dyn Fn(&mut Sql, &Clause)) {
    let (parts, word) = match filter {
        Filter::Clause(comparison) => {
            sql.push("(");
            clause(sql, comparison);
            sql.push(")");
            return;
        }
        Filter::Not(part) => {
            sql.push("NOT ");
            push_filter(sql, part, clause);
            return;
        }
        Filter::All(parts) => (parts, " AND "),
        Filter::Any(parts) => (parts, " OR "),
    };
    sql.push("(");
    for (index, part) in parts.iter().enumerate() {
        if index > 0 {
            sql.push(word);
        }
        push_filter(sql, part, clause);
    }
    sql.push(")");
}

/// Adds the comparison of a text, which is never NULL.
pub(crate) fn push_text(sql: &mut Sql, column: &'static str, clause: &Clause) {
    sql.push(column);
    match (&clause.value, clause.operator) {
        (Value::Text(pattern), Operator::Like) => like(sql, pattern),
        (Value::Text(pattern), Operator::ILike) => {
            // SQLite's LIKE knows no upper and lower case as far as ASCII goes, and no escape unless one is named.
            sql.push(match sql.dialect {
                Dialect::Sqlite => " LIKE ",
                Dialect::Postgres => " ILIKE ",
            });
            sql.text(pattern);
            no_escape(sql);
        }
        (Value::Text(expression), Operator::RLike) => {
            match sql.dialect {
                Dialect::Sqlite => sql.push(" REGEXP ").text(expression),
                Dialect::Postgres => sql.push(" ~ ").text(&in_postgres(expression)),
            };
        }
        (Value::Text(text), operator) => {
            sql.push(compared(operator)).text(text);
        }
        (Value::Texts(texts), operator) => {
            sql.push(if operator == Operator::NotIn {
                " NOT IN "
            } else {
                " IN "
            });
            sql.list(texts.iter().cloned().map(Bind::Text));
        }
        // The reader of filters gives no other value to a text.
        _ => {
            sql.push(" IS NULL");
        }
    }
}

/// A regular expression in PostgreSQL's words: the edge of a word and the end of the text have other letters there. What it
/// does not read at all, it refuses.
fn in_postgres(expression: &str) -> String {
    let mut written = String::with_capacity(expression.len());
    let mut characters = expression.chars();
    while let Some(c) = characters.next() {
        written.push(c);
        if c == '\\'
            && let Some(escaped) = characters.next()
        {
            written.push(match escaped {
                'b' => 'y',
                'B' => 'Y',
                'z' => 'Z',
                other => other,
            });
        }
    }
    written
}

/// Adds a pattern in which upper and lower case differ. SQLite's LIKE cannot tell them apart (the pragma that changes it
/// would change `ILIKE` as well), but its GLOB can, and reads the same pattern once its own signs are put in brackets.
fn like(sql: &mut Sql, pattern: &str) {
    if sql.dialect == Dialect::Postgres {
        sql.push(" LIKE ").text(pattern);
        no_escape(sql);
        return;
    }
    let mut glob = String::with_capacity(pattern.len());
    for c in pattern.chars() {
        match c {
            '%' => glob.push('*'),
            '_' => glob.push('?'),
            '*' => glob.push_str("[*]"),
            '?' => glob.push_str("[?]"),
            '[' => glob.push_str("[[]"),
            other => glob.push(other),
        }
    }
    sql.push(" GLOB ").text(&glob);
}

/// PostgreSQL takes a backslash for an escape unless it is told that there is none; patterns here have none.
fn no_escape(sql: &mut Sql) {
    if sql.dialect == Dialect::Postgres {
        sql.push(" ESCAPE ''");
    }
}

/// Adds the comparison of a number, which is never NULL.
pub(crate) fn push_number(sql: &mut Sql, column: &'static str, clause: &Clause) {
    sql.push(column).push(compared(clause.operator));
    match clause.value {
        Value::Integer(value) => sql.integer(value),
        Value::Number(value) => sql.bind(Bind::Number(value)),
        _ => sql.push("NULL"),
    };
}

/// Adds the comparison of a time that is stored in microseconds, and never NULL, with one in milliseconds. A stored time is
/// shown in whole milliseconds, and that is what is compared: each of them is a range of microseconds. So the column stays
/// bare, and an index on it usable.
pub(crate) fn push_time(sql: &mut Sql, column: &'static str, clause: &Clause) {
    // The first microsecond that is not before the value, and the first one after it.
    let (from, after) = match clause.value {
        Value::Integer(value) => (micros(value), micros(value.saturating_add(1))),
        Value::Number(value) => (
            micros(value.ceil() as i64),
            micros((value.floor() as i64).saturating_add(1)),
        ),
        _ => (i64::MAX, i64::MAX),
    };
    match clause.operator {
        Operator::Less => sql.push(column).push(" < ").integer(from),
        Operator::GreaterOrEqual => sql.push(column).push(" >= ").integer(from),
        Operator::LessOrEqual => sql.push(column).push(" < ").integer(after),
        Operator::Greater => sql.push(column).push(" >= ").integer(after),
        // Of a fraction the range is empty: nothing is equal to it.
        Operator::NotEqual => {
            let below = sql.push("(").push(column).push(" < ").integer(from);
            below.push(" OR ").push(column).push(" >= ").integer(after).push(")")
        }
        _ => {
            let above = sql.push("(").push(column).push(" >= ").integer(from);
            above.push(" AND ").push(column).push(" < ").integer(after).push(")")
        }
    };
}

const fn micros(millis: i64) -> i64 {
    millis.saturating_mul(1000)
}

/// A comparison as SQL has it.
const fn compared(operator: Operator) -> &'static str {
    match operator {
        Operator::NotEqual => " <> ",
        Operator::Greater => " > ",
        Operator::GreaterOrEqual => " >= ",
        Operator::Less => " < ",
        Operator::LessOrEqual => " <= ",
        _ => " = ",
    }
}
