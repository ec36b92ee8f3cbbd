//! The statements that search runs.
//!
//! Which rows are looked at first decides over the time that a search takes, so it is not left to the database, which
//! knows little about keys: see [`Route`].

use super::{
    place::{Sight, Standing, Term, joined, push_after},
    sql::{Bind, Dialect, Sql, push_filter, push_number, push_text, push_time},
};
use crate::search::{Clause, Entity, Filter, Operator, Order, Value};

/// A comparison that leaves at most so many values of a metric is the way to the runs, rather than the order.
pub(super) const NARROW: i64 = 2000;
/// The same where more is asked: what fits may be rare, and looking for it along the order could take all runs.
const NARROW_AMONG_OTHERS: i64 = 10_000;
/// How many comparisons are looked at for one that is narrow.
const NARROWING: usize = 8;

/// Where the files of a run are, as `Run::artifact_uri` has it.
const ARTIFACT_URI: &str = "(SELECT CASE WHEN e.artifact_location = '' THEN 'mlflow-artifacts:/' || CAST(e.id AS TEXT)
         ELSE RTRIM(e.artifact_location, '/') END FROM experiment e WHERE e.id = r.experiment_id)
         || '/' || r.id || '/artifacts'";

/// What is searched: the same for all statements of a search.
pub(super) struct Search<'a> {
    pub(super) dialect: Dialect,
    pub(super) filter: Option<&'a Filter>,
    /// The lifecycle of the runs; None: any.
    pub(super) lifecycle: Option<&'static str>,
    /// The order, down to the id: no two runs are level.
    pub(super) terms: &'a [Term],
    /// The place after which the page begins.
    pub(super) after: Option<&'a [Standing]>,
}

/// The way to the runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Route<'a> {
    /// Along the runs of the experiments: the newest first is an index.
    Runs,
    /// To the runs that the filter names.
    Named(&'a [String]),
    /// Along the few values that a comparison of a metric leaves.
    Narrow(&'a Clause),
    /// Along the numbers of the metric that the order begins with, which are an index in that order.
    Numbers,
    /// The runs whose first metric is NaN: they come after the numbers.
    NotANumber,
    /// The runs without that metric: they come last.
    Missing,
}

/// The terms of an order: what was asked for, then the newest first, then by id.
pub(super) fn terms(orders: &[Order]) -> Vec<Term> {
    let mut terms: Vec<Term> = orders.iter().filter_map(term).collect();
    let has = |terms: &[Term], sight: &Sight| terms.iter().any(|term| term.sight == *sight);
    for (sight, descending) in [(START_TIME, true), (RUN_ID, false)] {
        if !has(&terms, &sight) {
            terms.push(Term { sight, descending });
        }
    }
    terms
}

const START_TIME: Sight = Sight::Integer("r.start_time", false);
pub(super) const RUN_ID: Sight = Sight::Text("r.id");

fn term(order: &Order) -> Option<Term> {
    let key = || order.key.clone();
    let sight = match (order.entity, order.key.as_str()) {
        (Entity::Metric, _) => Sight::Metric(key()),
        (Entity::Param, _) => Sight::Param(key()),
        (Entity::Tag, _) => Sight::Tag(key()),
        (Entity::Attribute, "start_time") => START_TIME,
        (Entity::Attribute, "end_time") => Sight::Integer("r.end_time", true),
        (Entity::Attribute, name) => Sight::Text(text_column(name)?),
        _ => return None,
    };
    Some(Term {
        sight,
        descending: order.descending,
    })
}

/// The column of an attribute that is a text.
fn text_column(name: &str) -> Option<&'static str> {
    Some(match name {
        "run_id" => "r.id",
        "run_name" => "r.name",
        "status" => "r.status",
        "user_id" => "r.user_id",
        "artifact_uri" => ARTIFACT_URI,
        _ => return None,
    })
}

impl<'a> Search<'a> {
    fn required(&self) -> impl Iterator<Item = &'a Clause> {
        self.filter.into_iter().flat_map(Filter::required)
    }

    /// The metric that the order begins with.
    pub(super) fn first_metric(&self) -> Option<&'a str> {
        match self.terms.first().map(|term| &term.sight) {
            Some(Sight::Metric(key)) => Some(key),
            _ => None,
        }
    }

    /// The runs that the filter names.
    pub(super) fn named(&self) -> Option<Route<'a>> {
        self.required().find_map(|clause| {
            let ids = match (&clause.value, clause.operator) {
                _ if clause.entity != Entity::Attribute || clause.key != "run_id" => return None,
                (Value::Text(id), Operator::Equal) => std::slice::from_ref(id),
                (Value::Texts(ids), Operator::In) => ids.as_slice(),
                _ => return None,
            };
            Some(Route::Named(ids))
        })
    }

    /// The comparisons of metrics that may be narrow. Those of the metric that the order begins with are followed anyway.
    pub(super) fn narrowing(&self) -> impl Iterator<Item = &'a Clause> {
        let first = self.first_metric();
        let ranges = self.required().filter(move |clause| {
            let is_range = clause.entity == Entity::Metric && clause.operator != Operator::NotEqual;
            is_range && first != Some(&clause.key)
        });
        ranges.take(NARROWING)
    }

    /// How many values of a metric are few.
    pub(super) fn few(&self) -> i64 {
        match self.filter {
            Some(Filter::All(_)) => NARROW_AMONG_OTHERS,
            _ => NARROW,
        }
    }

    /// The routes that together give all runs in order, if none was found that is better.
    pub(super) fn routes(&self) -> &'static [Route<'static>] {
        let Some(metric) = self.first_metric() else {
            return &[Route::Runs];
        };
        let mut routes: &[Route<'static>] = &[Route::Numbers, Route::NotANumber, Route::Missing];
        for clause in self.required() {
            if clause.entity == Entity::Metric && clause.key == metric {
                // What is missing fulfils no comparison, and NaN none but `!=`.
                let kept = if clause.operator == Operator::NotEqual { 2 } else { 1 };
                routes = routes.get(..kept.min(routes.len())).unwrap_or(routes);
            }
        }
        let passed = self.after.and_then(<[_]>::first).map_or(0, Term::class);
        routes.get(usize::from(passed)..).unwrap_or_default()
    }

    /// The statement that counts the values which a comparison leaves, up to one more than are few.
    pub(super) fn count(&self, scope: &[i64], clause: &Clause) -> Sql {
        let mut sql = Sql::new(self.dialect);
        sql.push("SELECT COUNT(*) FROM (SELECT 1 FROM run_metric f WHERE ");
        push_scope(&mut sql, "f.experiment_id", scope);
        push_metric(&mut sql, "f", clause);
        sql.push(" LIMIT ").integer(self.few() + 1).push(") AS few");
        sql
    }

    /// The statement that reads the places of runs along a route, in order.
    pub(super) fn page(&self, scope: &[i64], route: Route<'_>, limit: i64) -> Sql {
        let mut sql = Sql::new(self.dialect);
        sql.push("SELECT 1");
        // Along `Missing` the first metric is nowhere to be read.
        let absent = usize::from(route == Route::Missing);
        for (index, term) in self.terms.iter().enumerate().skip(absent) {
            term.push_columns(&mut sql, index);
        }
        self.push_from(&mut sql, route);
        self.push_route(&mut sql, scope, route);
        if let Some(lifecycle) = self.lifecycle {
            sql.push(" AND r.lifecycle = ").text(lifecycle);
        }
        if let Some(filter) = self.filter {
            sql.push(" AND ");
            push_filter(&mut sql, filter, &push_clause);
        }
        self.push_place(&mut sql, route);
        let settled = usize::from(matches!(route, Route::NotANumber | Route::Missing));
        let mut separator = " ORDER BY ";
        for (index, term) in self.terms.iter().enumerate().skip(settled) {
            sql.push(separator);
            term.push_order(&mut sql, index, index == 0 && route == Route::Numbers);
            separator = ", ";
        }
        sql.push(" LIMIT ").integer(limit);
        sql
    }

    /// Adds the tables. SQLite takes those before `CROSS JOIN` first; for PostgreSQL it is a join like others.
    fn push_from(&self, sql: &mut Sql, route: Route<'_>) {
        let joined_from = match route {
            Route::Numbers | Route::NotANumber => {
                sql.push(" FROM run_metric o0 CROSS JOIN run r");
                1
            }
            Route::Narrow(_) => {
                sql.push(" FROM run_metric f CROSS JOIN run r");
                0
            }
            Route::Missing => {
                sql.push(" FROM run r");
                1
            }
            Route::Runs | Route::Named(_) => {
                sql.push(" FROM run r");
                0
            }
        };
        for (index, term) in self.terms.iter().enumerate().skip(joined_from) {
            if let Some((table, key)) = term.table() {
                let name = joined(index);
                sql.push(" LEFT JOIN ").push(table).push(" ").push(name).push(" ON ");
                sql.push(name).push(".run_id = r.id AND ").push(name).push(".key = ");
                sql.text(key);
            }
        }
    }

    fn push_route(&self, sql: &mut Sql, scope: &[i64], route: Route<'_>) {
        let first = self.first_metric().unwrap_or_default();
        sql.push(" WHERE ");
        match route {
            Route::Runs => push_scope(sql, "r.experiment_id", scope),
            Route::Named(ids) => {
                sql.push("r.id IN ").list(ids.iter().cloned().map(Bind::Text));
                // The sum keeps the index of experiments out of it: the ids are few, an experiment's runs may not be.
                sql.push(" AND ");
                push_scope(sql, "r.experiment_id + 0", scope);
            }
            Route::Narrow(clause) => {
                push_scope(sql, "f.experiment_id", scope);
                push_metric(sql, "f", clause);
                sql.push(" AND r.id = f.run_id");
            }
            Route::Numbers | Route::NotANumber => {
                push_scope(sql, "o0.experiment_id", scope);
                sql.push(" AND o0.key = ").text(first);
                sql.push(if route == Route::Numbers {
                    " AND o0.is_nan = 0"
                } else {
                    " AND o0.is_nan = 1"
                });
                sql.push(" AND r.id = o0.run_id");
                if route == Route::Numbers {
                    // What the filter says of this metric shortens the way along it.
                    let same = |clause: &&Clause| clause.entity == Entity::Metric && clause.key == first;
                    for clause in self.required().filter(same) {
                        sql.push(" AND ");
                        push_number(sql, "o0.value", clause);
                    }
                }
            }
            Route::Missing => {
                push_scope(sql, "r.experiment_id", scope);
                sql.push(" AND NOT EXISTS (SELECT 1 FROM run_metric o0 WHERE o0.run_id = r.id AND o0.key = ");
                sql.text(first).push(")");
            }
        }
    }

    /// Adds that the rows come after the place, which may be in the class of this route, or in one before it.
    fn push_place(&self, sql: &mut Sql, route: Route<'_>) {
        let Some(after) = self.after else { return };
        let class = after.first().map_or(0, Term::class);
        let first = match route {
            Route::NotANumber if class == 1 => 1,
            Route::Missing if class == 2 => 1,
            Route::NotANumber | Route::Missing => return,
            _ => 0,
        };
        if let (Some(term), Some(standing)) = (self.terms.first(), after.first()) {
            let ranges = route == Route::Numbers || matches!(term.sight, Sight::Integer(_, false));
            if first == 0 && ranges {
                term.push_range(sql, 0, standing);
            }
        }
        sql.push(" AND ");
        push_after(sql, self.terms, after, first);
    }
}

/// Adds that a column has one of the experiments.
fn push_scope(sql: &mut Sql, column: &'static str, scope: &[i64]) {
    sql.push(column);
    match scope {
        // Not a list of one: it lets the index be read in its order.
        [only] => sql.push(" = ").integer(*only),
        many => sql.push(" IN ").list(many.iter().copied().map(Bind::Integer)),
    };
}

/// Adds the key and the range of a comparison of a metric that is not `!=`.
fn push_metric(sql: &mut Sql, table: &'static str, clause: &Clause) {
    sql.push(" AND ").push(table).push(".key = ").text(&clause.key);
    sql.push(" AND ").push(table).push(".is_nan = 0 AND ").push(table);
    push_number(sql, ".value", clause);
}

/// Adds a comparison of a run. The details of a run are looked up by its id and their key, which is their primary key.
fn push_clause(sql: &mut Sql, clause: &Clause) {
    match (clause.entity, clause.operator) {
        (Entity::Attribute, _) => push_attribute(sql, clause),
        (Entity::Metric, operator) => {
            sql.push("EXISTS (SELECT 1 FROM run_metric d WHERE d.run_id = r.id AND d.key = ");
            sql.text(&clause.key);
            // NaN is kept as zero, and differs from every number.
            if operator == Operator::NotEqual {
                sql.push(" AND (d.is_nan = 1 OR ");
            } else {
                sql.push(" AND (d.is_nan = 0 AND ");
            }
            push_number(sql, "d.value", clause);
            sql.push("))");
        }
        (Entity::Param, _) => {
            push_keyed(sql, "run_param d WHERE d.run_id = r.id AND d.key = ", clause);
        }
        (Entity::Tag, _) => {
            push_keyed(sql, "run_tag d WHERE d.run_id = r.id AND d.key = ", clause);
        }
        _ => push_dataset(sql, clause),
    }
}

/// Adds a comparison of a param or tag. `rows`: the table and the condition, up to the key.
pub(super) fn push_keyed(sql: &mut Sql, rows: &'static str, clause: &Clause) {
    if clause.operator == Operator::IsNull {
        sql.push("NOT ");
    }
    sql.push("EXISTS (SELECT 1 FROM ").push(rows).text(&clause.key);
    if !matches!(clause.operator, Operator::IsNull | Operator::IsNotNull) {
        sql.push(" AND ");
        push_text(sql, "d.value", clause);
    }
    sql.push(")");
}

fn push_attribute(sql: &mut Sql, clause: &Clause) {
    match clause.key.as_str() {
        "start_time" => push_time(sql, "r.start_time", clause),
        "end_time" => {
            sql.push("r.end_time IS NOT NULL AND ");
            push_time(sql, "r.end_time", clause);
        }
        name => match text_column(name) {
            Some(column) => {
                // In parentheses: some are expressions.
                sql.push("(");
                push_text(sql, column, clause);
                sql.push(")");
            }
            None => {
                sql.push("1 = 0");
            }
        },
    }
}

/// Adds a comparison of the datasets that a run has read: those that its client described, and versions of ours.
fn push_dataset(sql: &mut Sql, clause: &Clause) {
    let (described, ours) = match clause.key.as_str() {
        "name" => ("d.name", "d.dataset"),
        "digest" => ("d.digest", "d.digest"),
        _ => ("d.context", "d.context"),
    };
    for (rows, column) in [
        (
            "EXISTS (SELECT 1 FROM run_dataset d WHERE d.run_id = r.id AND ",
            described,
        ),
        (" OR EXISTS (SELECT 1 FROM run_input d WHERE d.run_id = r.id AND ", ours),
    ] {
        sql.push(rows);
        if clause.key == "context" {
            // An empty one was not said, and what is missing fulfils no comparison.
            sql.push("d.context <> '' AND ");
        }
        push_text(sql, column, clause);
        sql.push(")");
    }
}
