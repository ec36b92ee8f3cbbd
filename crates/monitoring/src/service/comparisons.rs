//! Comparing the versions of an endpoint by what they answered and what came of it.

use std::time::Duration;

use modelyard_auth::{Action, Caller, Kind, Resource};
use modelyard_common::{Timestamp, name::check_name};
use tracing::instrument;

use super::{Monitoring, compute_over};
use crate::{
    error::{Error, Result},
    model::{comparison::Comparison, window::Span},
    scoring::{CONFIDENCE, Comparer},
};

/// What is compared where nobody says how much, and the most that is.
const DEFAULT_SPAN: Duration = Duration::from_hours(24 * 7);
const MAX_SPAN: Duration = Duration::from_hours(24 * 366);

/// What is to be compared.
#[derive(Debug, Clone, Default)]
pub struct ComparisonRequest {
    /// The version that the others are compared with, as `MODEL/VERSION`; none: the one that answered most.
    pub baseline: Option<String>,
    /// Where the slice of event time begins; none: a week before its end.
    pub start: Option<Timestamp>,
    /// Where it ends; none: now.
    pub end: Option<Timestamp>,
}

impl Monitoring {
    /// Compares the versions that answered live in a slice of event time.
    ///
    /// # Errors
    /// A slice that makes no sense or has too much in it, a baseline that answered nothing, or the storage.
    #[instrument(name = "monitoring.compare", skip_all)]
    pub async fn compare(
        &self,
        caller: &Caller,
        project: &str,
        endpoint: &str,
        request: ComparisonRequest,
    ) -> Result<Comparison> {
        caller.authorize(Action::EndpointRead, Resource::named(Kind::Endpoint, project, endpoint))?;
        check_name("an endpoint", endpoint)?;
        let end = request.end.unwrap_or_else(|| self.clock.now());
        let start = request
            .start
            .unwrap_or_else(|| Timestamp::from_micros(end.as_micros().saturating_sub(DEFAULT_SPAN.as_micros() as i64)));
        if start >= end || end.since(start) > MAX_SPAN {
            return Err(Error::request(format!(
                "the time from {start} to {end} cannot be compared: choose an end after the start, and at most 366 days"
            )));
        }
        let span = Span { start, end };
        let comparer = self.add_up(project, endpoint, span).await?;
        let baseline = match request.baseline {
            None => comparer.largest().map(str::to_owned),
            Some(named) if comparer.has(&named) => Some(named),
            Some(named) => {
                let shown: String = named.chars().take(256).flat_map(char::escape_default).collect();
                return Err(Error::request(format!(
                    "`{shown}` answered nothing live from {start} to {end}: name another baseline, as MODEL/VERSION, or leave it \
                     out"
                )));
            }
        };
        let (versions, differences) = comparer.finish(baseline.as_deref().unwrap_or_default());
        Ok(Comparison {
            endpoint: endpoint.to_owned(),
            span,
            baseline,
            confidence: CONFIDENCE,
            versions,
            differences,
        })
    }

    async fn add_up(&self, project: &str, endpoint: &str, span: Span) -> Result<Comparer> {
        let tables = self.tables(project, endpoint)?;
        let columns = Comparer::columns(&tables.log_columns().await?);
        let answers = tables.answers(span, &columns).await?;
        compute_over(answers, |batches| {
            let mut comparer = Comparer::default();
            for batch in batches {
                comparer.update(&batch)?;
            }
            Ok(comparer)
        })
        .await
    }
}
