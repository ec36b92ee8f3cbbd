//! Searches of traces.

use async_trait::async_trait;
use conditional_trait_gen::trait_gen;
use modelyard_db::{Pools, PostgresPools, SqlitePools, Transaction};
use sqlx::QueryBuilder;

use super::{
    MAX_SEARCHED, Speaks, SqlStore, cut,
    page_room::PageRoom,
    place, position, read_token, scopes, text_ids,
    traces::{self, Scope},
};
use crate::{
    error::{Error, Result},
    model::trace::TraceInfo,
    search::{Clause, Entity, Filter, Operator, Order},
    store::trace_rows::{TraceRow, select_traces},
};

/// The most traces of a page.
pub const MAX_TRACES: u32 = 500;

/// The most comparisons of what is said of sessions, times the experiments of the search.
const MAX_SAID: usize = 20_000;

/// A search for traces.
#[derive(Debug, Clone, Default)]
pub struct TraceSearch {
    /// The experiments whose traces are searched, at most [`MAX_SEARCHED`]; those of other projects count as not there.
    pub experiment_ids: Vec<i64>,
    /// What must hold.
    pub filter: Option<Filter>,
    /// What comes first. Then the newest come first, then it goes by id.
    pub order: Vec<Order>,
    /// The most traces, 1 to [`MAX_TRACES`].
    pub limit: u32,
    /// `next_token` of the page before.
    pub token: Option<String>,
}

/// Traces that were found.
#[derive(Debug, Clone)]
pub struct TracePage {
    /// The traces, in order.
    pub traces: Vec<TraceInfo>,
    /// The `token` of the next page; None: there is none.
    pub next_token: Option<String>,
}

/// To how many traces two filters apply.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CorrelationCounts {
    /// All traces.
    pub total: i64,
    /// The first filter.
    pub first: i64,
    /// The second filter.
    pub second: i64,
    /// Both.
    pub joint: i64,
}

/// Searches of traces.
#[async_trait]
pub trait TraceSearchStore: Send + Sync {
    /// A page of the traces that are found.
    async fn search_traces(&self, project: &str, search: &TraceSearch) -> Result<TracePage>;
    /// To how many traces of some experiments, and to which `base` applies, two filters apply.
    async fn count_correlation(
        &self,
        project: &str,
        experiment_ids: &[i64],
        base: Option<&Filter>,
        filters: [Option<&Filter>; 2],
    ) -> Result<CorrelationCounts>;
}

pub(super) fn check_experiments(ids: &[i64]) -> Result<()> {
    if ids.len() <= MAX_SEARCHED {
        return Ok(());
    }
    Err(Error::request(format!(
        "too many experiments are searched at once: name at most {MAX_SEARCHED}"
    )))
}

/// Whether a filter asks something that no trace can answer: what the tokens are like, for example.
fn check_filter(filter: &Filter) -> Result<()> {
    use crate::model::trace::{COST_KEY, TOKEN_USAGE_KEY};
    let check = |clause: &Clause| {
        let is_reserved =
            clause.entity == Entity::Metadata && [TOKEN_USAGE_KEY, COST_KEY].contains(&clause.key.as_str());
        let is_known = matches!(
            clause.operator,
            Operator::Equal | Operator::NotEqual | Operator::IsNull | Operator::IsNotNull
        );
        if !is_reserved || is_known {
            return Ok(());
        }
        Err(Error::request(format!(
            "Comparator '{}' is not supported for reserved metadata '{}'. Only '=', '!=', 'IS NULL', and 'IS NOT NULL' are \
             supported.",
            clause.operator.as_str(),
            clause.key
        )))
    };
    match filter {
        Filter::Clause(clause) => check(clause),
        Filter::Not(part) => check_filter(part),
        Filter::All(parts) | Filter::Any(parts) => parts.iter().try_for_each(check_filter),
    }
}

/// How often a filter asks for what is said of a session: each time with all experiments of the search.
fn count_said(filter: &Filter) -> usize {
    match filter {
        Filter::Clause(clause) => usize::from(matches!(clause.entity, Entity::Feedback | Entity::Expectation)),
        Filter::Not(part) => count_said(part),
        Filter::All(parts) | Filter::Any(parts) => parts.iter().map(count_said).sum(),
    }
}

/// Refuses what would have more parameters than a statement can.
fn check_said<'a>(filters: impl IntoIterator<Item = &'a Filter>, experiments: usize) -> Result<()> {
    let said: usize = filters.into_iter().map(count_said).sum();
    if said.saturating_mul(experiments) <= MAX_SAID {
        return Ok(());
    }
    Err(Error::request(format!(
        "{said} comparisons of feedback or expectations in {experiments} experiments are too many at once: name fewer of \
         either"
    )))
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
impl SqlStore<P> {
    /// The traces of the first ids, in this order: as many as a page holds. And how many ids these are.
    async fn traces_by_id(
        tx: &mut Transaction<<P as Pools>::Db>,
        project: &str,
        ids: &[String],
    ) -> Result<(Vec<TraceInfo>, usize)> {
        let mut traces = Vec::with_capacity(ids.len());
        let mut room = PageRoom::new();
        while let Some(group) = room.next_group(ids) {
            let mut query = QueryBuilder::<<P as Pools>::Db>::new(select_traces!("WHERE r.project = "));
            query.push_bind(project.to_owned());
            query.push(" AND r.id IN (");
            let mut list = query.separated(", ");
            for id in group {
                list.push_bind(id.clone());
            }
            query.push(")");
            let rows: Vec<TraceRow> = query.build_query_as().fetch_all(&mut **tx).await?;
            let complete = Self::complete_traces(tx, project, rows).await?;
            let by_id = complete.into_iter().map(|info| (info.trace_id.clone(), info)).collect();
            traces.extend(room.take(group, by_id, TraceInfo::text_bytes));
        }
        Ok((traces, room.taken()))
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
#[async_trait]
impl TraceSearchStore for SqlStore<P> {
    async fn search_traces(&self, project: &str, search: &TraceSearch) -> Result<TracePage> {
        check_experiments(&search.experiment_ids)?;
        let filter = search.filter.as_ref();
        filter.map_or(Ok(()), check_filter)?;
        let terms = traces::terms(&search.order)?;
        let after = read_token(search.token.as_deref(), &terms)?;
        check_said(filter, search.experiment_ids.len())?;
        let limit = search.limit.clamp(1, MAX_TRACES);
        let mut tx = self.pools.snapshot().await?;
        let experiments = Self::known_experiments(&mut tx, project, &search.experiment_ids).await?;
        let mut places = Vec::new();
        for part in scopes(&experiments) {
            let scope = Scope {
                dialect: <P as Speaks>::DIALECT,
                project,
                experiments: part,
                searched: &experiments,
            };
            // One more tells whether there is another page.
            let sql = traces::page(scope, filter, &terms, after.as_deref(), i64::from(limit) + 1);
            places.extend(Self::places(&mut tx, sql, &terms, 0).await?);
        }
        places.sort_by(|left, right| place::compare(&terms, left, right));
        let ids = text_ids(&places, position(&terms, &traces::TRACE_ID), limit);
        let (traces, taken) = Self::traces_by_id(&mut tx, project, &ids).await?;
        tx.rollback().await?;
        let next_token = cut(&mut places, taken)?;
        Ok(TracePage { traces, next_token })
    }

    async fn count_correlation(
        &self,
        project: &str,
        experiment_ids: &[i64],
        base: Option<&Filter>,
        filters: [Option<&Filter>; 2],
    ) -> Result<CorrelationCounts> {
        check_experiments(experiment_ids)?;
        let [first, second] = filters;
        // The compared filters come twice.
        let all = [base, first, first, second, second];
        check_said(all.into_iter().flatten(), experiment_ids.len())?;
        for filter in [base, first, second].into_iter().flatten() {
            check_filter(filter)?;
        }
        let mut tx = self.pools.snapshot().await?;
        let experiments = Self::known_experiments(&mut tx, project, experiment_ids).await?;
        let scope = Scope {
            dialect: <P as Speaks>::DIALECT,
            project,
            experiments: &experiments,
            searched: &experiments,
        };
        let mut query = Self::query(traces::counts(scope, base, first, second));
        let counted: (i64, i64, i64, i64) = query.build_query_as().fetch_one(&mut *tx).await?;
        tx.rollback().await?;
        let (total, first, second, joint) = counted;
        Ok(CorrelationCounts {
            total,
            first,
            second,
            joint,
        })
    }
}
