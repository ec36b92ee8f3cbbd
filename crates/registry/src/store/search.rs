//! Searches of runs and experiments.
//!
//! Pages are continued by the place of their last item, not by a number of items to pass over: the hundredth page takes no
//! longer than the first, and what is added meanwhile neither repeats nor hides anything.

mod experiments;
mod page_room;
mod place;
mod runs;
pub(super) mod sql;
mod trace_metrics;
mod trace_pages;
mod traces;

#[cfg(test)]
mod tests;

use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use conditional_trait_gen::trait_gen;
use modelyard_db::{Pools, PostgresPools, SqlitePools, Transaction};
use sqlx::{QueryBuilder, Row as _};

pub(super) use self::sql::{Bind, Dialect, Piece, Sql, push_filter, push_number, push_text};
use self::{
    page_room::PageRoom,
    place::{Sight, Standing, Term},
    runs::{NARROW, Route, Search},
};
pub use self::{
    trace_metrics::{MAX_METRIC_GROUPS, MetricPage, MetricQuestion, TraceMetricStore},
    trace_pages::{CorrelationCounts, MAX_TRACES, TracePage, TraceSearch, TraceSearchStore},
};
use super::{
    SqlStore,
    experiments::{ExperimentRow, select_experiments},
    run_rows::{RunRow, select_runs},
};
use crate::{
    error::{Error, Result},
    model::run::{Experiment, Run},
    search::{Filter, Order, SearchError, View},
};

/// The most runs of a page.
pub const MAX_RUNS: u32 = 50_000;
/// The most experiments of a page.
pub const MAX_EXPERIMENTS: u32 = 50_000;
/// The most experiments whose runs are searched at once.
pub const MAX_SEARCHED: usize = 5000;
/// The longest token, in bytes.
const MAX_TOKEN_BYTES: usize = 1024 * 1024;
/// Up to so many experiments are searched one after the other, each along an index, and what is found is merged.
const MERGED: usize = 16;
/// A search for runs.
#[derive(Debug, Clone, Default)]
pub struct RunSearch {
    /// The experiments whose runs are searched, at most [`MAX_SEARCHED`]; those of other projects count as not there.
    pub experiment_ids: Vec<i64>,
    /// What must hold.
    pub filter: Option<Filter>,
    /// What comes first. Then the newest come first, then it goes by id.
    pub order: Vec<Order>,
    /// Whether deleted runs are searched.
    pub view: View,
    /// The most runs, 1 to [`MAX_RUNS`].
    pub limit: u32,
    /// `next_token` of the page before.
    pub token: Option<String>,
}

/// Runs that were found.
#[derive(Debug, Clone)]
pub struct RunPage {
    /// The runs, in order.
    pub runs: Vec<Run>,
    /// The `token` of the next page; None: there is none.
    pub next_token: Option<String>,
}

/// A search for experiments.
#[derive(Debug, Clone, Default)]
pub struct ExperimentSearch {
    /// What must hold.
    pub filter: Option<Filter>,
    /// What comes first; without it, the newest.
    pub order: Vec<Order>,
    /// Whether deleted experiments are searched.
    pub view: View,
    /// The most experiments, 1 to [`MAX_EXPERIMENTS`].
    pub limit: u32,
    /// `next_token` of the page before.
    pub token: Option<String>,
}

/// Experiments that were found.
#[derive(Debug, Clone)]
pub struct ExperimentPage {
    /// The experiments, in order.
    pub experiments: Vec<Experiment>,
    /// The `token` of the next page; None: there is none.
    pub next_token: Option<String>,
}

/// A dataset that runs of an experiment read.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct DatasetSummary {
    /// The experiment.
    pub experiment_id: i64,
    /// The dataset.
    pub name: String,
    /// Its content.
    pub digest: String,
    /// What it was read for; empty: it was not said.
    pub context: String,
}

/// Searches of runs and experiments.
#[async_trait]
pub trait SearchStore: Send + Sync {
    /// A page of the runs that are found.
    async fn search_runs(&self, project: &str, search: &RunSearch) -> Result<RunPage>;
    /// A page of the experiments that are found.
    async fn search_experiments(&self, project: &str, search: &ExperimentSearch) -> Result<ExperimentPage>;
    /// The datasets that runs of experiments read, each once, the first `limit`.
    async fn search_run_datasets(&self, project: &str, experiments: &[i64], limit: u32) -> Result<Vec<DatasetSummary>>;
}

impl From<SearchError> for Error {
    fn from(error: SearchError) -> Self {
        Self::request(error.into_message())
    }
}

/// Which SQL a database speaks.
pub(super) trait Speaks {
    /// That.
    const DIALECT: Dialect;
}

impl Speaks for SqlitePools {
    const DIALECT: Dialect = Dialect::Sqlite;
}

impl Speaks for PostgresPools {
    const DIALECT: Dialect = Dialect::Postgres;
}

/// A place as a token.
fn write_token(place: &[Standing]) -> Result<String> {
    Ok(URL_SAFE_NO_PAD.encode(super::to_json("place in a search", &place)?))
}

/// The place that a token stands for. It must be one in this order.
fn read_token(token: Option<&str>, terms: &[Term]) -> Result<Option<Vec<Standing>>> {
    read_place(token, |place| {
        place.len() == terms.len() && terms.iter().zip(place).all(|(term, standing)| term.takes(standing))
    })
}

/// The place that a token stands for. It must fit.
fn read_place(token: Option<&str>, fits: impl Fn(&[Standing]) -> bool) -> Result<Option<Vec<Standing>>> {
    let Some(token) = token.filter(|token| !token.is_empty()) else {
        return Ok(None);
    };
    let wrong = |what: &str| {
        Error::request(format!(
            "Invalid page token, {what}: pass `next_page_token` of the page before unchanged, with the same `order_by`"
        ))
    };
    if token.len() > MAX_TOKEN_BYTES {
        return Err(wrong("it is too long"));
    }
    let bytes = URL_SAFE_NO_PAD.decode(token);
    let bytes = bytes.map_err(|_| wrong("could not base64-decode"))?;
    let place: Vec<Standing> = serde_json::from_slice(&bytes).map_err(|_| wrong("it is none of this server"))?;
    if fits(&place) {
        Ok(Some(place))
    } else {
        Err(wrong("it belongs to another search"))
    }
}

/// Cuts what was found to a page. The token of the next one, if there is more.
fn cut(places: &mut Vec<Vec<Standing>>, limit: usize) -> Result<Option<String>> {
    let more = places.len() > limit;
    places.truncate(limit);
    let last = places.last().filter(|_| more);
    last.map(|place| write_token(place)).transpose()
}

/// Where in places the id stands.
fn position(terms: &[Term], id: &Sight) -> usize {
    let found = terms.iter().position(|term| term.sight == *id);
    found.unwrap_or(terms.len())
}

/// The ids, texts, of the first places.
fn text_ids(places: &[Vec<Standing>], position: usize, limit: u32) -> Vec<String> {
    let text = |place: &Vec<Standing>| match place.get(position) {
        Some(Standing::Text(id)) => Some(id.clone()),
        _ => None,
    };
    places.iter().take(limit as usize).filter_map(text).collect()
}

/// Groups of experiments that are searched with one statement.
fn scopes(ids: &[i64]) -> std::slice::Chunks<'_, i64> {
    ids.chunks(if ids.len() <= MERGED { 1 } else { MAX_SEARCHED })
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
impl SqlStore<P> {
    /// The query of a statement.
    pub(super) fn query(sql: Sql) -> QueryBuilder<<P as Pools>::Db> {
        let mut query = QueryBuilder::<<P as Pools>::Db>::new("");
        for piece in sql.into_pieces() {
            match piece {
                Piece::Fixed(text) => query.push(text),
                Piece::Bound(Bind::Integer(value)) => query.push_bind(value),
                Piece::Bound(Bind::Number(value)) => query.push_bind(value),
                Piece::Bound(Bind::Text(value)) => query.push_bind(value),
            };
        }
        query
    }

    /// The places that a statement reads. The first `absent` terms are not in it: there is nothing to stand.
    async fn places(
        tx: &mut Transaction<<P as Pools>::Db>,
        sql: Sql,
        terms: &[Term],
        absent: usize,
    ) -> Result<Vec<Vec<Standing>>> {
        let rows = Self::query(sql).build().fetch_all(&mut **tx).await?;
        let mut places = Vec::with_capacity(rows.len());
        for row in &rows {
            let mut place = vec![Standing::Missing; absent];
            // The first column only keeps the list from being empty.
            let mut column = 1;
            for term in terms.iter().skip(absent) {
                let standing = match &term.sight {
                    Sight::Metric(_) => {
                        let value: Option<f64> = row.try_get(column)?;
                        column += 1;
                        let is_nan: Option<i64> = row.try_get(column)?;
                        match (value, is_nan) {
                            (None, _) => None,
                            (Some(_), Some(1)) => Some(Standing::NotANumber),
                            (Some(value), _) => Some(Standing::number(value)),
                        }
                    }
                    Sight::Integer(..) => {
                        let value: Option<i64> = row.try_get(column)?;
                        value.map(Standing::Integer)
                    }
                    _ => {
                        let value: Option<String> = row.try_get(column)?;
                        value.map(Standing::Text)
                    }
                };
                column += 1;
                place.push(standing.unwrap_or(Standing::Missing));
            }
            places.push(place);
        }
        Ok(places)
    }

    /// Those of the experiments that the project has.
    async fn known_experiments(tx: &mut Transaction<<P as Pools>::Db>, project: &str, ids: &[i64]) -> Result<Vec<i64>> {
        let mut sql = Sql::new(<P as Speaks>::DIALECT);
        sql.push("SELECT id FROM experiment WHERE project = ").text(project);
        sql.push(" AND id IN ").list(ids.iter().copied().map(Bind::Integer));
        sql.push(" ORDER BY id");
        Ok(Self::query(sql).build_query_scalar().fetch_all(&mut **tx).await?)
    }

    /// The best way to the runs of some experiments; None: along the order.
    async fn shortcut<'a>(
        tx: &mut Transaction<<P as Pools>::Db>,
        search: &Search<'a>,
        scope: &[i64],
    ) -> Result<Option<Route<'a>>> {
        if let Some(route) = search.named() {
            return Ok(Some(route));
        }
        let mut narrowest = None;
        let mut fewest = search.few() + 1;
        for clause in search.narrowing() {
            let mut query = Self::query(search.count(scope, clause));
            let count: i64 = query.build_query_scalar().fetch_one(&mut **tx).await?;
            if count < fewest {
                fewest = count;
                narrowest = Some(Route::Narrow(clause));
            }
            if fewest <= NARROW {
                break;
            }
        }
        Ok(narrowest)
    }

    /// The first places of the runs of some experiments, in order.
    async fn run_places(
        tx: &mut Transaction<<P as Pools>::Db>,
        search: &Search<'_>,
        scope: &[i64],
        limit: i64,
    ) -> Result<Vec<Vec<Standing>>> {
        if let Some(route) = Self::shortcut(tx, search, scope).await? {
            return Self::places(tx, search.page(scope, route, limit), search.terms, 0).await;
        }
        let mut places = Vec::new();
        for route in search.routes() {
            let left = limit - places.len() as i64;
            if left <= 0 {
                break;
            }
            let absent = usize::from(*route == Route::Missing);
            let more = Self::places(tx, search.page(scope, *route, left), search.terms, absent).await?;
            places.extend(more);
        }
        Ok(places)
    }

    /// The runs of the first ids, in this order: as many as a page holds. And how many ids these are.
    async fn runs_by_id(tx: &mut Transaction<<P as Pools>::Db>, ids: &[String]) -> Result<(Vec<Run>, usize)> {
        let mut runs = Vec::with_capacity(ids.len());
        let mut room = PageRoom::new();
        while let Some(group) = room.next_group(ids) {
            let mut query = QueryBuilder::<<P as Pools>::Db>::new(select_runs!("WHERE r.id IN ("));
            let mut list = query.separated(", ");
            for id in group {
                list.push_bind(id.clone());
            }
            query.push(")");
            let rows: Vec<RunRow> = query.build_query_as().fetch_all(&mut **tx).await?;
            let complete = Self::complete_runs(tx, rows).await?;
            let by_id = complete.into_iter().map(|run| (run.run_id.clone(), run)).collect();
            runs.extend(room.take(group, by_id, Run::text_bytes));
        }
        Ok((runs, room.taken()))
    }

    /// As [`Self::runs_by_id`], of experiments.
    async fn experiments_by_id(
        tx: &mut Transaction<<P as Pools>::Db>,
        ids: &[i64],
    ) -> Result<(Vec<Experiment>, usize)> {
        let mut experiments = Vec::with_capacity(ids.len());
        let mut room = PageRoom::new();
        while let Some(group) = room.next_group(ids) {
            let mut query = QueryBuilder::<<P as Pools>::Db>::new(select_experiments!("WHERE e.id IN ("));
            let mut list = query.separated(", ");
            for id in group {
                list.push_bind(*id);
            }
            query.push(")");
            let rows: Vec<ExperimentRow> = query.build_query_as().fetch_all(&mut **tx).await?;
            let complete = Self::complete_experiments(tx, rows).await?;
            let by_id = complete
                .into_iter()
                .map(|experiment| (experiment.experiment_id.parse().unwrap_or(-1), experiment))
                .collect();
            experiments.extend(room.take(group, by_id, Experiment::text_bytes));
        }
        Ok((experiments, room.taken()))
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
#[async_trait]
impl SearchStore for SqlStore<P> {
    async fn search_run_datasets(&self, project: &str, experiments: &[i64], limit: u32) -> Result<Vec<DatasetSummary>> {
        let mut sql = Sql::new(<P as Speaks>::DIALECT);
        sql.push(
            "SELECT DISTINCT r.experiment_id, d.name, d.digest, d.context FROM run r JOIN run_dataset d ON d.run_id = r.id \
             WHERE r.project = ",
        );
        sql.text(project).push(" AND r.experiment_id IN ");
        sql.list(experiments.iter().map(|id| Bind::Integer(*id)));
        sql.push(" ORDER BY r.experiment_id, d.name, d.digest, d.context LIMIT ")
            .integer(i64::from(limit));
        let mut query = Self::query(sql);
        let mut tx = self.pools.snapshot().await?;
        let found = query.build_query_as().fetch_all(&mut *tx).await?;
        tx.rollback().await?;
        Ok(found)
    }

    async fn search_runs(&self, project: &str, search: &RunSearch) -> Result<RunPage> {
        if search.experiment_ids.len() > MAX_SEARCHED {
            return Err(Error::request(format!(
                "too many experiments are searched at once: name at most {MAX_SEARCHED}"
            )));
        }
        let terms = runs::terms(&search.order);
        let after = read_token(search.token.as_deref(), &terms)?;
        let limit = search.limit.clamp(1, MAX_RUNS);
        let statement = Search {
            dialect: <P as Speaks>::DIALECT,
            filter: search.filter.as_ref(),
            lifecycle: search.view.lifecycle(),
            terms: &terms,
            after: after.as_deref(),
        };
        let mut tx = self.pools.snapshot().await?;
        let experiments = Self::known_experiments(&mut tx, project, &search.experiment_ids).await?;
        let mut places = Vec::new();
        for scope in scopes(&experiments) {
            // One more tells whether there is another page.
            places.extend(Self::run_places(&mut tx, &statement, scope, i64::from(limit) + 1).await?);
        }
        places.sort_by(|left, right| place::compare(&terms, left, right));
        let ids = text_ids(&places, position(&terms, &runs::RUN_ID), limit);
        let (runs, taken) = Self::runs_by_id(&mut tx, &ids).await?;
        tx.rollback().await?;
        let next_token = cut(&mut places, taken)?;
        Ok(RunPage { runs, next_token })
    }

    async fn search_experiments(&self, project: &str, search: &ExperimentSearch) -> Result<ExperimentPage> {
        let terms = experiments::terms(&search.order);
        let after = read_token(search.token.as_deref(), &terms)?;
        let limit = search.limit.clamp(1, MAX_EXPERIMENTS);
        let sql = experiments::page(
            <P as Speaks>::DIALECT,
            project,
            (search.filter.as_ref(), search.view),
            &terms,
            after.as_deref(),
            i64::from(limit) + 1,
        );
        let mut tx = self.pools.snapshot().await?;
        let mut places = Self::places(&mut tx, sql, &terms, 0).await?;
        let id = position(&terms, &experiments::EXPERIMENT_ID);
        let ids: Vec<i64> = places
            .iter()
            .take(limit as usize)
            .filter_map(|place| match place.get(id) {
                Some(Standing::Integer(id)) => Some(*id),
                _ => None,
            })
            .collect();
        let (experiments, taken) = Self::experiments_by_id(&mut tx, &ids).await?;
        tx.rollback().await?;
        let next_token = cut(&mut places, taken)?;
        Ok(ExperimentPage {
            experiments,
            next_token,
        })
    }
}
