//! Searches of traces.

use modelyard_auth::{Action, Caller, Resource};

use super::Registry;
use crate::{
    error::Result,
    search::{Filter, TRACES, parse_filter},
    store::{CorrelationCounts, MetricPage, MetricQuestion, TracePage, TraceSearch},
};

/// What is added to each count, so that few traces say little: half a trace, as Jeffreys has it.
const SMOOTHING: f64 = 0.5;

/// Which filters are compared.
#[derive(Debug, Clone, Default)]
pub struct CorrelationForm {
    /// The experiments.
    pub experiment_ids: Vec<i64>,
    /// The first filter.
    pub first: String,
    /// The second filter.
    pub second: String,
    /// Only traces to which this applies count; empty: all.
    pub base: String,
}

/// How often two filters apply together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Correlation {
    /// From -1, never together, to 1, always together; none: one of them never applies.
    pub npmi: Option<f64>,
    /// The same, for few traces.
    pub npmi_smoothed: Option<f64>,
    /// To how many traces they apply.
    pub counts: CorrelationCounts,
}

/// The normalized pointwise mutual information of both, neither, and each alone.
fn information(both: f64, first: f64, second: f64, neither: f64) -> Option<f64> {
    let all = both + first + second + neither;
    let (of_first, of_second) = (both + first, both + second);
    if both <= 0.0 || of_first <= 0.0 || of_second <= 0.0 {
        return None;
    }
    if first == 0.0 && second == 0.0 && neither == 0.0 {
        return Some(1.0);
    }
    let mutual = (both.ln() + all.ln()) - (of_first.ln() + of_second.ln());
    Some((mutual / (all.ln() - both.ln())).clamp(-1.0, 1.0))
}

impl Correlation {
    fn of(counts: CorrelationCounts) -> Self {
        let CorrelationCounts {
            total,
            first,
            second,
            joint,
        } = counts;
        let number = |count: i64| count as f64;
        let [both, only_first, only_second] = [joint, first - joint, second - joint].map(number);
        let neither = number(total - first - second + joint);
        let is_known = first > 0 && second > 0;
        let npmi = if joint == 0 {
            Some(-1.0)
        } else {
            information(both, only_first, only_second, neither)
        };
        let smoothed = information(
            both + SMOOTHING,
            only_first + SMOOTHING,
            only_second + SMOOTHING,
            neither + SMOOTHING,
        );
        Self {
            npmi: npmi.filter(|_| is_known),
            npmi_smoothed: smoothed.filter(|_| is_known),
            counts,
        }
    }
}

impl Registry {
    /// A page of the traces that are found.
    pub async fn search_traces(&self, caller: &Caller, project: &str, search: &TraceSearch) -> Result<TracePage> {
        self.enter(caller, Action::RunRead, Resource::project(project)).await?;
        self.stores.trace_search.search_traces(project, search).await
    }

    /// A page of the groups of a metric of traces.
    pub async fn measure_traces(
        &self,
        caller: &Caller,
        project: &str,
        question: &MetricQuestion,
    ) -> Result<MetricPage> {
        self.enter(caller, Action::RunRead, Resource::project(project)).await?;
        question.metric.check(&question.aggregations, &question.dimensions)?;
        question.span.check()?;
        self.stores.trace_metrics.measure_traces(project, question).await
    }

    /// How often two filters apply together.
    pub async fn correlate_traces(
        &self,
        caller: &Caller,
        project: &str,
        form: &CorrelationForm,
    ) -> Result<Correlation> {
        self.enter(caller, Action::RunRead, Resource::project(project)).await?;
        let read = |text: &str| -> Result<Option<Filter>> { Ok(parse_filter(&TRACES, text)?) };
        let (base, first, second) = (read(&form.base)?, read(&form.first)?, read(&form.second)?);
        let filters = [first.as_ref(), second.as_ref()];
        let counted = self
            .stores
            .trace_search
            .count_correlation(project, &form.experiment_ids, base.as_ref(), filters);
        Ok(Correlation::of(counted.await?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_go_together_or_do_not() {
        let of = |total, first, second, joint| {
            let counts = CorrelationCounts {
                total,
                first,
                second,
                joint,
            };
            let correlation = Correlation::of(counts);
            (correlation.npmi, correlation.npmi_smoothed)
        };
        assert_eq!(of(10, 0, 5, 0), (None, None));
        assert_eq!(of(10, 5, 5, 0).0, Some(-1.0));
        assert_eq!(of(10, 10, 10, 10).0, Some(1.0));
        assert!((of(10, 5, 5, 5).0.unwrap() - 1.0).abs() < 1e-9);
        assert!(of(16, 4, 4, 1).0.unwrap().abs() < 1e-9);
        assert!(of(10, 5, 5, 5).1.unwrap() < 1.0);
    }
}
