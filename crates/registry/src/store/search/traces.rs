//! The statements that search traces.

use serde_json::Value as JsonValue;

use super::{
    place::{Sight, Standing, Term, joined, push_after},
    runs::push_keyed,
    sql::{Bind, Dialect, Sql, push_number, push_text},
};
use crate::{
    error::{Error, Result},
    model::trace::{COST_KEY, Promoted, SESSION_KEY, SOURCE_RUN_KEY, TOKEN_USAGE_KEY, TRACE_NAME_TAG},
    search::{Clause, Entity, Filter, Operator, Order, SPAN_ATTRIBUTE, Value},
};

pub(super) const TRACE_ID: Sight = Sight::Text("r.id");
const TIMESTAMP: Sight = Sight::Integer("r.timestamp_ms", false);
const END_TIME: &str = "r.timestamp_ms + COALESCE(r.execution_time_ms, 0)";

/// What is searched.
#[derive(Clone, Copy)]
pub(super) struct Scope<'a> {
    pub(super) dialect: Dialect,
    pub(super) project: &'a str,
    /// The experiments of this statement, which are the project's.
    pub(super) experiments: &'a [i64],
    /// All experiments of the search, of which these are a part: what is said of a session counts in all of them.
    pub(super) searched: &'a [i64],
}

/// The terms of an order, down to the id; without one, the newest come first.
pub(super) fn terms(orders: &[Order]) -> Result<Vec<Term>> {
    let mut terms = Vec::with_capacity(orders.len() + 2);
    for order in orders {
        let key = order.key.as_str();
        let sight = match (order.entity, key) {
            (Entity::Tag, TRACE_NAME_TAG) | (Entity::Attribute, "name") => Sight::OptionalText("r.name"),
            (Entity::Tag, _) => Sight::TraceTag(key.to_owned()),
            (Entity::Metadata, SESSION_KEY) => Sight::OptionalText("r.session_id"),
            (Entity::Metadata, TOKEN_USAGE_KEY | COST_KEY) => {
                return Err(Error::request(format!(
                    "Ordering by reserved metadata '{key}' is not supported because it is represented by multiple columns."
                )));
            }
            (Entity::Metadata, _) => Sight::TraceMetadata(key.to_owned()),
            (_, "run_id") => Sight::TraceMetadata(SOURCE_RUN_KEY.to_owned()),
            (_, "status") => Sight::Text("r.state"),
            (_, "trace_id") => TRACE_ID,
            (_, "experiment_id") => Sight::Integer("r.experiment_id", false),
            (_, "execution_time_ms") => Sight::Integer("r.execution_time_ms", true),
            (_, "end_time_ms") => Sight::Integer(END_TIME, false),
            _ => TIMESTAMP,
        };
        let descending = order.descending;
        if !terms.iter().any(|term: &Term| term.sight == sight) {
            terms.push(Term { sight, descending });
        }
    }
    for (sight, descending) in [(TIMESTAMP, true), (TRACE_ID, false)] {
        if !terms.iter().any(|term| term.sight == sight) {
            terms.push(Term { sight, descending });
        }
    }
    Ok(terms)
}

fn push_scope(sql: &mut Sql, scope: Scope<'_>) {
    match scope.experiments {
        [only] => sql.push(" WHERE r.experiment_id = ").integer(*only),
        several => {
            sql.push(" WHERE r.experiment_id IN ");
            sql.list(several.iter().copied().map(Bind::Integer))
        }
    };
}

/// The statement that reads the places of traces, in order.
pub(super) fn page(
    scope: Scope<'_>,
    filter: Option<&Filter>,
    terms: &[Term],
    after: Option<&[Standing]>,
    limit: i64,
) -> Sql {
    let mut sql = Sql::new(scope.dialect);
    sql.push("SELECT 1");
    for (index, term) in terms.iter().enumerate() {
        term.push_columns(&mut sql, index);
    }
    sql.push(" FROM trace r");
    for (index, term) in terms.iter().enumerate() {
        if let Some((table, key)) = term.table() {
            let name = joined(index);
            sql.push(" LEFT JOIN ").push(table).push(" ").push(name).push(" ON ");
            sql.push(name).push(".project = r.project AND ").push(name);
            sql.push(".trace_id = r.id AND ").push(name).push(".key = ").text(key);
        }
    }
    push_scope(&mut sql, scope);
    if let Some(filter) = filter {
        sql.push(" AND ");
        push_part(&mut sql, filter, scope);
    }
    if let Some(after) = after {
        if let (Some(term), Some(standing)) = (terms.first(), after.first())
            && term.sight == TIMESTAMP
        {
            term.push_range(&mut sql, 0, standing);
        }
        sql.push(" AND ");
        push_after(&mut sql, terms, after, 0);
    }
    let mut separator = " ORDER BY ";
    for (index, term) in terms.iter().enumerate() {
        sql.push(separator);
        term.push_order(&mut sql, index, false);
        separator = ", ";
    }
    sql.push(" LIMIT ").integer(limit);
    sql
}

/// The statement that counts the traces of which `base` holds: all, those of which the first filter holds, the second, both.
pub(super) fn counts(scope: Scope<'_>, base: Option<&Filter>, first: Option<&Filter>, second: Option<&Filter>) -> Sql {
    let mut sql = Sql::new(scope.dialect);
    sql.push("SELECT COUNT(*)");
    for filters in [[first, None], [second, None], [first, second]] {
        sql.push(", COUNT(CASE WHEN 1 = 1");
        for filter in filters.into_iter().flatten() {
            sql.push(" AND ");
            push_part(&mut sql, filter, scope);
        }
        sql.push(" THEN 1 END)");
    }
    sql.push(" FROM trace r");
    push_scope(&mut sql, scope);
    if let Some(base) = base {
        sql.push(" AND ");
        push_part(&mut sql, base, scope);
    }
    sql
}

/// Adds a filter, as deep as it is, and that is bounded where it is read. What is asked of spans beside each other is asked
/// of one span.
pub(super) fn push_part(sql: &mut Sql, filter: &Filter, scope: Scope<'_>) {
    match filter {
        Filter::Clause(clause) if clause.entity == Entity::Span => push_spans(sql, &[clause]),
        Filter::Clause(clause) => {
            sql.push("(");
            push_clause(sql, clause, scope);
            sql.push(")");
        }
        Filter::Not(part) => {
            sql.push("NOT ");
            push_part(sql, part, scope);
        }
        Filter::Any(parts) => {
            let mut separator = "(";
            for part in parts {
                sql.push(separator);
                push_part(sql, part, scope);
                separator = " OR ";
            }
            sql.push(")");
        }
        Filter::All(parts) => {
            let of_spans = |part: &&Filter| matches!(part, Filter::Clause(clause) if clause.entity == Entity::Span);
            let spans: Vec<&Clause> = parts.iter().filter(of_spans).flat_map(Filter::required).collect();
            let mut separator = "(";
            for part in parts.iter().filter(|part| !of_spans(part)) {
                sql.push(separator);
                push_part(sql, part, scope);
                separator = " AND ";
            }
            if !spans.is_empty() {
                sql.push(separator);
                push_spans(sql, &spans);
            }
            sql.push(")");
        }
    }
}

/// Adds that there is a span to which all of it applies.
fn push_spans(sql: &mut Sql, clauses: &[&Clause]) {
    sql.push("EXISTS (SELECT 1 FROM span s WHERE s.project = r.project AND s.trace_id = r.id");
    for clause in clauses {
        sql.push(" AND ");
        match (clause.key.as_str(), clause.key.strip_prefix(SPAN_ATTRIBUTE)) {
            (_, Some(name)) => push_span_attribute(sql, name, clause),
            ("type", _) => push_text(sql, "s.type", clause),
            ("status", _) => push_text(sql, "s.status", clause),
            ("content", _) => push_text(sql, "s.content", clause),
            _ => push_text(sql, "s.name", clause),
        }
    }
    sql.push(")");
}

/// Adds the comparison of an attribute of a span. Its value is JSON; texts are compared without their quotes.
fn push_span_attribute(sql: &mut Sql, name: &str, clause: &Clause) {
    sql.push("EXISTS (SELECT 1 FROM ");
    sql.push(match sql.dialect {
        Dialect::Sqlite => "json_each(s.content, '$.attributes')",
        Dialect::Postgres => {
            "json_each_text(CASE json_typeof(CAST(s.content AS json) -> 'attributes') WHEN 'object'
             THEN CAST(s.content AS json) -> 'attributes' ELSE '{}' END)"
        }
    });
    sql.push(" a WHERE a.key = ").text(name);
    sql.push(" AND a.value IS NOT NULL AND ");
    let value = "CASE WHEN a.value LIKE '\"%\"' THEN substr(a.value, 2, length(a.value) - 2) ELSE a.value END";
    push_text(sql, value, clause);
    sql.push(")");
}

/// Adds the comparison of a text that can be missing.
fn push_optional(sql: &mut Sql, column: &'static str, clause: &Clause) {
    match clause.operator {
        Operator::IsNull => {
            sql.push(column).push(" IS NULL");
        }
        Operator::IsNotNull => {
            sql.push(column).push(" IS NOT NULL");
        }
        _ => {
            sql.push(column).push(" IS NOT NULL AND ");
            push_text(sql, column, clause);
        }
    }
}

fn push_clause(sql: &mut Sql, clause: &Clause, scope: Scope<'_>) {
    match (clause.entity, clause.key.as_str()) {
        (Entity::Tag, TRACE_NAME_TAG) | (Entity::Attribute, "name") => push_optional(sql, "r.name", clause),
        (Entity::Tag, _) => push_keyed(
            sql,
            "trace_tag d WHERE d.project = r.project AND d.trace_id = r.id AND d.key = ",
            clause,
        ),
        (Entity::Metadata, SOURCE_RUN_KEY) | (Entity::Attribute, "run_id") => push_run(sql, clause, scope),
        (Entity::Metadata, SESSION_KEY) => push_optional(sql, "r.session_id", clause),
        (Entity::Metadata, TOKEN_USAGE_KEY | COST_KEY) => push_totals(sql, clause),
        (Entity::Metadata, _) => push_metadata(sql, clause),
        (Entity::Feedback | Entity::Expectation, _) => push_assessment(sql, clause, scope),
        (Entity::Issue, _) => {
            sql.push(
                "EXISTS (SELECT 1 FROM assessment a WHERE a.project = r.project AND a.trace_id = r.id
                 AND a.kind = 'issue' AND ",
            );
            push_text(sql, "a.name", clause);
            sql.push(")");
        }
        (_, "prompt") => {
            sql.push("EXISTS (SELECT 1 FROM trace_prompt p WHERE p.project = r.project AND p.trace_id = r.id AND ");
            push_text(sql, "p.prompt", clause);
            sql.push(")");
        }
        (_, "timestamp_ms") => push_number(sql, "r.timestamp_ms", clause),
        (_, "end_time_ms") => push_number(sql, END_TIME, clause),
        (_, "execution_time_ms") => {
            sql.push("r.execution_time_ms IS NOT NULL AND ");
            push_number(sql, "r.execution_time_ms", clause);
        }
        (_, "client_request_id") => push_optional(sql, "r.client_request_id", clause),
        (_, "status") => push_text(sql, "r.state", clause),
        _ => push_text(sql, "r.id", clause),
    }
}

fn push_metadata(sql: &mut Sql, clause: &Clause) {
    push_keyed(
        sql,
        "trace_metadata d WHERE d.project = r.project AND d.trace_id = r.id AND d.key = ",
        clause,
    );
}

/// Adds a comparison of the run: the one that made the trace, or, if it is named, one to which the trace was linked.
fn push_run(sql: &mut Sql, clause: &Clause, scope: Scope<'_>) {
    let (Operator::Equal, Value::Text(run)) = (clause.operator, &clause.value) else {
        let of_metadata = Clause {
            key: SOURCE_RUN_KEY.to_owned(),
            ..clause.clone()
        };
        push_metadata(sql, &of_metadata);
        return;
    };
    sql.push("r.project = ").text(scope.project);
    // The project is wrapped, and the index named, so that SQLite looks for the run and not through the project.
    sql.push(" AND r.id IN (SELECT trace_id FROM trace_run WHERE run_id = ")
        .text(run);
    sql.push(" AND COALESCE(project, '') = ").text(scope.project);
    sql.push(" UNION SELECT trace_id FROM trace_metadata");
    if scope.dialect == Dialect::Sqlite {
        sql.push(" INDEXED BY trace_metadata_run");
    }
    sql.push(" WHERE key = 'mlflow.sourceRun' AND project = ")
        .text(scope.project);
    if scope.dialect == Dialect::Postgres {
        // Its index has the beginnings of values.
        let prefix: String = run.chars().take(64).collect();
        sql.push(" AND substr(value, 1, 64) = ").text(&prefix);
    }
    sql.push(" AND value = ").text(run).push(")");
}

/// The columns of the tokens or of the cost, and how they are told apart from nothing.
fn totals(key: &str) -> (&'static [&'static str], &'static str) {
    if key == COST_KEY {
        return (
            &["r.input_cost", "r.output_cost", "r.total_cost"],
            "COALESCE(r.input_cost, r.output_cost, r.total_cost) IS NOT NULL",
        );
    }
    (
        &[
            "r.input_tokens",
            "r.output_tokens",
            "r.total_tokens",
            "r.cache_read_input_tokens",
            "r.cache_creation_input_tokens",
            "r.cache_creation_input_tokens_above_1hr",
        ],
        "COALESCE(r.input_tokens, r.output_tokens, r.total_tokens, r.cache_read_input_tokens,
                  r.cache_creation_input_tokens, r.cache_creation_input_tokens_above_1hr) IS NOT NULL",
    )
}

/// Adds a comparison of all tokens, or of the whole cost, with the text that is sent for them.
fn push_totals(sql: &mut Sql, clause: &Clause) {
    let (columns, is_there) = totals(&clause.key);
    match (clause.operator, &clause.value) {
        (Operator::IsNull, _) => {
            sql.push("NOT (").push(is_there).push(")");
        }
        (operator @ (Operator::Equal | Operator::NotEqual), Value::Text(text)) => {
            sql.push(is_there);
            sql.push(if operator == Operator::Equal {
                " AND "
            } else {
                " AND NOT "
            });
            let mut separator = "(";
            let told = told(&clause.key, text);
            if told.is_empty() {
                sql.push("(1 = 0");
            }
            for (column, value) in columns.iter().zip(told) {
                sql.push(separator).push(column);
                match value {
                    // Where it is missing, the comparison is still true or false.
                    Some(value) => sql.push(" IS NOT NULL AND ").push(column).push(" = ").bind(value),
                    None => sql.push(" IS NULL"),
                };
                separator = " AND ";
            }
            sql.push(")");
        }
        _ => {
            sql.push(is_there);
        }
    }
}

/// The numbers of a text that says all tokens, or the whole cost, as it is sent; empty: nothing is equal to it.
fn told(key: &str, text: &str) -> Vec<Option<Bind>> {
    let told = Promoted::take(&mut [(key.to_owned(), text.to_owned())].into());
    let (sent, numbers) = if key == COST_KEY {
        let numbers = told.cost.amounts().map(|amount| amount.map(Bind::Number));
        (told.cost.text(), numbers.to_vec())
    } else {
        let numbers = told.usage.counts().map(|count| count.map(Bind::Integer));
        (told.usage.text(), numbers.to_vec())
    };
    if sent.as_deref() == Some(text) {
        numbers
    } else {
        Vec::new()
    }
}

/// Adds a comparison of what is said of a trace, or of its whole session.
fn push_assessment(sql: &mut Sql, clause: &Clause, scope: Scope<'_>) {
    if clause.operator == Operator::IsNull {
        sql.push("NOT ");
    }
    sql.push("(EXISTS (SELECT 1 FROM assessment a WHERE a.project = r.project AND a.trace_id = r.id AND ");
    push_said(sql, clause);
    sql.push(") OR (r.session_id IS NOT NULL AND r.session_id IN (");
    sql.push("SELECT o.session_id FROM assessment a JOIN trace o ON o.project = a.project AND o.id = a.trace_id");
    sql.push(" WHERE a.project = ").text(scope.project);
    sql.push(" AND o.session_id IS NOT NULL AND o.experiment_id IN ");
    sql.list(scope.searched.iter().copied().map(Bind::Integer));
    sql.push(" AND a.metadata LIKE '%\"mlflow.trace.session\":%' AND ");
    push_said(sql, clause);
    sql.push(")))");
}

/// Adds that an assessment is the one that is asked for.
fn push_said(sql: &mut Sql, clause: &Clause) {
    sql.push("a.is_valid = 1 AND a.kind = ").text(clause.entity.as_str());
    sql.push(" AND a.name = ").text(&clause.key);
    match (clause.operator, &clause.value) {
        (Operator::IsNull | Operator::IsNotNull, _) => {}
        (_, Value::Number(_) | Value::Integer(_)) => {
            sql.push(" AND a.is_numeric = 1 AND a.aggregate_value IS NOT NULL AND ");
            push_number(sql, "a.aggregate_value", clause);
        }
        (operator @ (Operator::Equal | Operator::NotEqual), Value::Text(text)) => {
            let is_equal = operator == Operator::Equal;
            sql.push(if is_equal {
                " AND a.value IN ("
            } else {
                " AND a.value NOT IN ("
            });
            sql.text(text)
                .push(", ")
                .text(&JsonValue::from(text.as_str()).to_string());
            sql.push(")");
        }
        _ => {
            sql.push(" AND ");
            push_text(sql, "a.value", clause);
        }
    }
}
