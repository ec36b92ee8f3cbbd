//! Metrics of traces, spans and assessments, which the database computes.

use async_trait::async_trait;
use conditional_trait_gen::trait_gen;
use modelyard_db::{Pools, PostgresPools, SqlitePools};
use sqlx::Row as _;

use super::{
    Speaks, SqlStore,
    place::Standing,
    read_place,
    sql::{Bind, Sql, push_text},
    trace_pages::check_experiments,
    traces::{Scope, push_part},
    write_token,
};
use crate::{
    error::{Error, Result},
    model::trace_metrics::{Aggregation, Metric, MetricSpan, View},
    search::{Filter, MetricFilter},
};

/// The most groups of a page.
pub const MAX_METRIC_GROUPS: u32 = 10_000;
/// The most traces, spans or assessments of a time that are measured at once: no index serves what is asked of them.
const MAX_MEASURED: i64 = 1_000_000;
/// The most columns by which values are grouped: the interval, and five dimensions.
const GROUPS: [&str; 6] = ["m.d0", "m.d1", "m.d2", "m.d3", "m.d4", "m.d5"];
const NAMED_GROUPS: [&str; 6] = [" AS d0", " AS d1", " AS d2", " AS d3", " AS d4", " AS d5"];

/// What to measure.
#[derive(Debug, Clone)]
pub struct MetricQuestion {
    /// The experiments whose traces count; those of other projects count as not there.
    pub experiment_ids: Vec<i64>,
    /// Whether traces, spans or assessments are measured.
    pub view: View,
    /// The metric, which is one of the view.
    pub metric: &'static Metric,
    /// What becomes of its values; the metric takes it.
    pub aggregations: Vec<Aggregation>,
    /// By what its values are grouped; the metric takes it.
    pub dimensions: Vec<String>,
    /// What must hold.
    pub filters: Vec<MetricFilter>,
    /// When.
    pub span: MetricSpan,
    /// The most groups, 1 to [`MAX_METRIC_GROUPS`].
    pub limit: u32,
    /// `next_token` of the page before.
    pub token: Option<String>,
}

/// A group and its values.
#[derive(Debug, Clone, PartialEq)]
pub struct MetricGroup {
    /// Where the interval begins, in milliseconds since the epoch.
    pub begins_ms: Option<i64>,
    /// What the dimensions are, in their order.
    pub dimensions: Vec<String>,
    /// What the aggregations are, in their order; none: there is no value.
    pub values: Vec<Option<f64>>,
}

/// Groups that were measured.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MetricPage {
    /// The groups: the earliest intervals first, then by their dimensions.
    pub groups: Vec<MetricGroup>,
    /// The `token` of the next page; None: there is none.
    pub next_token: Option<String>,
}

/// Metrics of traces.
#[async_trait]
pub trait TraceMetricStore: Send + Sync {
    /// A page of the groups of a metric.
    async fn measure_traces(&self, project: &str, question: &MetricQuestion) -> Result<MetricPage>;
}

impl MetricQuestion {
    /// Whether spans are measured by what they cost, which an index has with their own times.
    fn is_cost(&self) -> bool {
        self.view == View::Spans && self.metric.name.ends_with("_cost")
    }

    /// How many columns group the values.
    fn groups(&self) -> usize {
        self.dimensions.len() + usize::from(self.span.interval_seconds.is_some())
    }

    /// The column of a value: a number, but of sessions, which are counted once.
    fn value(&self) -> &'static str {
        match (self.view, self.metric.name) {
            (View::Traces, "session_count") => "r.session_id",
            (View::Traces, "latency") => "r.execution_time_ms",
            (View::Traces, "input_tokens") => "r.input_tokens",
            (View::Traces, "output_tokens") => "r.output_tokens",
            (View::Traces, "total_tokens") => "r.total_tokens",
            (View::Traces, "cache_read_input_tokens") => "r.cache_read_input_tokens",
            (View::Traces, "cache_creation_input_tokens") => "r.cache_creation_input_tokens",
            (View::Spans, "latency") => "(s.duration_ns / 1000000)",
            (View::Spans, "input_cost") => "s.input_cost",
            (View::Spans, "output_cost") => "s.output_cost",
            (View::Spans, "total_cost") => "s.total_cost",
            (View::Assessments, "assessment_value") => "a.aggregate_value",
            _ => "1",
        }
    }

    /// Adds what is measured, up to the time and whether it has a value.
    fn push_rows(&self, sql: &mut Sql, scope: Scope<'_>) {
        let experiments = || scope.experiments.iter().copied().map(Bind::Integer);
        if self.is_cost() {
            // The spans first, along their index; SQLite keeps the order of a cross join.
            sql.push(" FROM span s CROSS JOIN trace r WHERE r.project = s.project AND r.id = s.trace_id");
            sql.push(" AND s.project = ").text(scope.project);
            sql.push(" AND s.experiment_id IN ").list(experiments());
            sql.push(" AND ").push(self.value()).push(" IS NOT NULL");
            if let Some(start) = self.span.start_ms {
                sql.push(" AND s.start_ns >= ").integer(start.saturating_mul(1_000_000));
            }
            if let Some(end) = self.span.end_ms {
                let after = end.saturating_add(1).saturating_mul(1_000_000);
                sql.push(" AND s.start_ns < ").integer(after);
            }
            return;
        }
        sql.push(" FROM trace r");
        sql.push(match self.view {
            View::Traces => "",
            View::Spans => " JOIN span s ON s.project = r.project AND s.trace_id = r.id",
            View::Assessments => " JOIN assessment a ON a.project = r.project AND a.trace_id = r.id AND a.is_valid = 1",
        });
        sql.push(" WHERE r.project = ").text(scope.project);
        sql.push(" AND r.experiment_id IN ").list(experiments());
        if let Some(start) = self.span.start_ms {
            sql.push(" AND r.timestamp_ms >= ").integer(start);
        }
        if let Some(end) = self.span.end_ms {
            sql.push(" AND r.timestamp_ms <= ").integer(end);
        }
    }

    /// The statement that counts what is measured, up to one more than there may be.
    fn measured(&self, scope: Scope<'_>) -> Sql {
        let mut sql = Sql::new(scope.dialect);
        sql.push("SELECT COUNT(*) FROM (SELECT 1");
        self.push_rows(&mut sql, scope);
        sql.push(" LIMIT ").integer(MAX_MEASURED + 1).push(") m");
        sql
    }

    /// Adds the beginning of the interval in which something lies: the greatest one that is not after it.
    fn push_interval(&self, sql: &mut Sql, seconds: i64) {
        let (time, unit) = if self.view == View::Spans {
            ("s.start_ns", 1_000_000_000)
        } else {
            ("r.timestamp_ms", 1000)
        };
        let length = seconds.saturating_mul(unit);
        sql.push("(").push(time).push(" / ").integer(length);
        // A division goes towards zero.
        sql.push(" - CASE WHEN ").push(time).push(" % ").integer(length);
        sql.push(" < 0 THEN 1 ELSE 0 END) * ")
            .integer(seconds.saturating_mul(1000));
    }

    /// Adds the rows with their groups `d0`, `d1` and so on, and their value `v`.
    fn push_values(&self, sql: &mut Sql, scope: Scope<'_>) {
        sql.push("SELECT ");
        let mut names = NAMED_GROUPS.into_iter();
        if let Some(seconds) = self.span.interval_seconds {
            self.push_interval(sql, seconds);
            sql.push(names.next().unwrap_or_default()).push(", ");
        }
        for dimension in &self.dimensions {
            sql.push(column(dimension));
            sql.push(names.next().unwrap_or_default()).push(", ");
        }
        if self.metric.name == "session_count" {
            sql.push(self.value()).push(" AS v");
        } else {
            // The sum of whole numbers can be too large for one.
            sql.push("CAST(").push(self.value()).push(" AS DOUBLE PRECISION) AS v");
        }
        self.push_rows(sql, scope);
        sql.push(" AND ").push(self.value()).push(" IS NOT NULL");
        for dimension in &self.dimensions {
            sql.push(" AND ").push(column(dimension)).push(" IS NOT NULL");
        }
        for filter in &self.filters {
            sql.push(" AND ");
            match filter {
                MetricFilter::Trace(clause) => push_part(sql, &Filter::Clause(clause.clone()), scope),
                MetricFilter::Span(clause) => push_text(sql, of_span(&clause.key), clause),
                MetricFilter::Assessment(clause) => push_text(sql, of_assessment(&clause.key), clause),
            }
        }
    }

    /// Adds the columns of the groups, separated, each after `before`.
    fn push_groups(&self, sql: &mut Sql, before: &'static str, in_order: bool) {
        let mut separator = before;
        for (index, group) in GROUPS.into_iter().enumerate().take(self.groups()) {
            sql.push(separator).push(group);
            if in_order && !self.is_interval(index) {
                sql.collate();
            }
            separator = ", ";
        }
    }

    fn is_interval(&self, index: usize) -> bool {
        index == 0 && self.span.interval_seconds.is_some()
    }

    /// Adds that the groups come after a place.
    fn push_after(&self, sql: &mut Sql, after: &[Standing]) {
        self.push_groups(sql, " WHERE (", true);
        sql.push(") > ");
        sql.list(after.iter().filter_map(Standing::bound));
    }

    /// The statement that reads the groups and their values.
    fn page(&self, scope: Scope<'_>, after: Option<&[Standing]>) -> Sql {
        let mut sql = Sql::new(scope.dialect);
        sql.push("SELECT ");
        for group in GROUPS.into_iter().take(self.groups()) {
            sql.push(group).push(", ");
        }
        for (index, aggregation) in self.aggregations.iter().enumerate() {
            sql.push(if index == 0 { "CAST(" } else { ", CAST(" });
            match aggregation {
                Aggregation::Count if self.metric.name == "session_count" => sql.push("COUNT(DISTINCT m.v)"),
                Aggregation::Count => sql.push("COUNT(m.v)"),
                Aggregation::Sum => sql.push("SUM(m.v)"),
                Aggregation::Avg => sql.push("AVG(m.v)"),
                Aggregation::Min => sql.push("MIN(m.v)"),
                Aggregation::Max => sql.push("MAX(m.v)"),
                Aggregation::Percentile(percent) => push_percentile(&mut sql, percent / 100.0),
            };
            sql.push(" AS DOUBLE PRECISION)");
        }
        let has_places = self
            .aggregations
            .iter()
            .any(|aggregation| matches!(aggregation, Aggregation::Percentile(_)));
        sql.push(" FROM (");
        if has_places {
            sql.push("SELECT m.*, ROW_NUMBER() OVER (");
            self.push_groups(&mut sql, "PARTITION BY ", false);
            sql.push(" ORDER BY m.v) - 1 AS place, COUNT(*) OVER (");
            self.push_groups(&mut sql, "PARTITION BY ", false);
            sql.push(") - 1 AS last FROM (");
        }
        self.push_values(&mut sql, scope);
        if has_places {
            sql.push(") m");
        }
        sql.push(") m");
        if let Some(after) = after {
            self.push_after(&mut sql, after);
        }
        self.push_groups(&mut sql, " GROUP BY ", false);
        self.push_groups(&mut sql, " ORDER BY ", true);
        // One more tells whether there is another page.
        sql.push(" LIMIT ").integer(i64::from(self.limit) + 1);
        sql
    }

    /// Whether a place can be one of these groups.
    fn takes(&self, place: &[Standing]) -> bool {
        let fits = |(index, standing): (usize, &Standing)| match standing {
            Standing::Integer(_) => self.is_interval(index),
            Standing::Text(_) => !self.is_interval(index),
            _ => false,
        };
        !place.is_empty() && place.len() == self.groups() && place.iter().enumerate().all(fits)
    }

    /// Refuses filters that this view does not have.
    fn check(&self) -> Result<()> {
        let wrong = |what: &str, view: View| {
            Err(Error::request(format!(
                "Filtering by {what} is only supported for {} view type, got {}",
                view.as_str(),
                self.view.as_str()
            )))
        };
        for filter in &self.filters {
            match filter {
                MetricFilter::Span(_) if self.view != View::Spans => return wrong("span", View::Spans),
                MetricFilter::Assessment(_) if self.view != View::Assessments => {
                    return wrong("assessment", View::Assessments);
                }
                _ => {}
            }
        }
        check_experiments(&self.experiment_ids)
    }
}

/// Adds the value at a part of the way from the least to the greatest: the two beside it, each as far as the other is away.
fn push_percentile(sql: &mut Sql, part: f64) -> &mut Sql {
    sql.push("SUM(CASE WHEN ABS(m.place - m.last * ")
        .bind(Bind::Number(part));
    sql.push(") < 1 THEN m.v * (1 - ABS(m.place - m.last * ")
        .bind(Bind::Number(part));
    sql.push(")) END)")
}

fn column(dimension: &str) -> &'static str {
    match dimension {
        "trace_name" => "r.name",
        "trace_status" => "r.state",
        "span_name" => "s.name",
        "span_type" => "s.type",
        "span_status" => "s.status",
        "span_model_name" => "s.model_name",
        "span_model_provider" => "s.model_provider",
        "assessment_value" => "a.value",
        _ => "a.name",
    }
}

fn of_span(key: &str) -> &'static str {
    match key {
        "type" => "s.type",
        "status" => "s.status",
        _ => "s.name",
    }
}

fn of_assessment(key: &str) -> &'static str {
    match key {
        "type" => "a.kind",
        _ => "a.name",
    }
}

/// Cuts groups to a page. The token of the next one, if there is more.
fn cut(groups: &mut Vec<MetricGroup>, limit: u32) -> Result<Option<String>> {
    let more = groups.len() > limit as usize;
    groups.truncate(limit as usize);
    let Some(last) = groups.last().filter(|_| more) else {
        return Ok(None);
    };
    let begins = last.begins_ms.map(Standing::Integer);
    let dimensions = last.dimensions.iter().cloned().map(Standing::Text);
    let place: Vec<Standing> = begins.into_iter().chain(dimensions).collect();
    write_token(&place).map(Some)
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
#[async_trait]
impl TraceMetricStore for SqlStore<P> {
    async fn measure_traces(&self, project: &str, question: &MetricQuestion) -> Result<MetricPage> {
        question.check()?;
        let after = read_place(question.token.as_deref(), |place| question.takes(place))?;
        let mut tx = self.pools.snapshot().await?;
        let experiments = Self::known_experiments(&mut tx, project, &question.experiment_ids).await?;
        let scope = Scope {
            dialect: <P as Speaks>::DIALECT,
            project,
            experiments: &experiments,
            searched: &experiments,
        };
        let mut query = Self::query(question.measured(scope));
        let measured: i64 = query.build_query_scalar().fetch_one(&mut *tx).await?;
        if measured > MAX_MEASURED {
            return Err(Error::request(format!(
                "more than {MAX_MEASURED} {} are to be measured at once: name fewer experiments, or a shorter time with \
                 start_time_ms and end_time_ms",
                question.view.as_str().to_lowercase()
            )));
        }
        let mut query = Self::query(question.page(scope, after.as_deref()));
        let rows = query.build().fetch_all(&mut *tx).await?;
        let mut groups = Vec::with_capacity(rows.len());
        for row in &rows {
            let first = usize::from(question.span.interval_seconds.is_some());
            let begins_ms = if first == 1 { Some(row.try_get(0)?) } else { None };
            let mut dimensions = Vec::with_capacity(question.dimensions.len());
            for index in first..question.groups() {
                dimensions.push(row.try_get(index)?);
            }
            let mut values = Vec::with_capacity(question.aggregations.len());
            for index in 0..question.aggregations.len() {
                values.push(row.try_get(question.groups() + index)?);
            }
            groups.push(MetricGroup {
                begins_ms,
                dimensions,
                values,
            });
        }
        tx.rollback().await?;
        let next_token = cut(&mut groups, question.limit)?;
        Ok(MetricPage { groups, next_token })
    }
}
