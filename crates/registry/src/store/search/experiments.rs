//! The statements that search experiments.

use super::{
    place::{Sight, Standing, Term, push_after},
    runs::push_keyed,
    sql::{Bind, Dialect, Sql, push_filter, push_text, push_time},
};
use crate::search::{Clause, Entity, Filter, Operator, Order, Value, View};

pub(super) const EXPERIMENT_ID: Sight = Sight::Integer("e.id", false);
const CREATED_AT: Sight = Sight::Integer("e.created_at", false);

/// The terms of an order, down to the id. Without one, the newest come first.
pub(super) fn terms(orders: &[Order]) -> Vec<Term> {
    let sight = |order: &Order| match order.key.as_str() {
        "name" => Sight::Text("e.name"),
        "experiment_id" => EXPERIMENT_ID,
        "last_update_time" => Sight::Integer("e.updated_at", false),
        _ => CREATED_AT,
    };
    let mut terms: Vec<Term> = orders
        .iter()
        .map(|order| Term {
            sight: sight(order),
            descending: order.descending,
        })
        .collect();
    let by_default = terms.is_empty();
    if by_default {
        terms.push(Term {
            sight: CREATED_AT,
            descending: true,
        });
    }
    if !terms.iter().any(|term| term.sight == EXPERIMENT_ID) {
        terms.push(Term {
            sight: EXPERIMENT_ID,
            descending: !by_default,
        });
    }
    terms
}

/// The statement that reads the places of experiments, in order.
pub(super) fn page(
    dialect: Dialect,
    project: &str,
    (filter, view): (Option<&Filter>, View),
    terms: &[Term],
    after: Option<&[Standing]>,
    limit: i64,
) -> Sql {
    let mut sql = Sql::new(dialect);
    sql.push("SELECT 1");
    for (index, term) in terms.iter().enumerate() {
        term.push_columns(&mut sql, index);
    }
    sql.push(" FROM experiment e WHERE e.project = ").text(project);
    if let Some(lifecycle) = view.lifecycle() {
        sql.push(" AND e.lifecycle = ").text(lifecycle);
    }
    if let Some(filter) = filter {
        sql.push(" AND ");
        push_filter(&mut sql, filter, &push_clause);
    }
    if let Some(after) = after {
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

fn push_clause(sql: &mut Sql, clause: &Clause) {
    match (clause.entity, clause.key.as_str()) {
        (Entity::Tag, _) => push_keyed(
            sql,
            "experiment_tag d WHERE d.experiment_id = e.id AND d.key = ",
            clause,
        ),
        (_, "name") => push_text(sql, "e.name", clause),
        (_, "creation_time") => push_time(sql, "e.created_at", clause),
        (_, "last_update_time") => push_time(sql, "e.updated_at", clause),
        _ => push_id(sql, clause),
    }
}

/// Adds a comparison of the id, which is written as a text, and whose texts were seen to be numbers.
fn push_id(sql: &mut Sql, clause: &Clause) {
    let texts = match &clause.value {
        Value::Text(text) => std::slice::from_ref(text),
        Value::Texts(texts) => texts.as_slice(),
        _ => &[],
    };
    let ids = texts.iter().filter_map(|text| text.parse().ok()).map(Bind::Integer);
    let others = matches!(clause.operator, Operator::NotEqual | Operator::NotIn);
    sql.push(if others { "e.id NOT IN " } else { "e.id IN " }).list(ids);
}
