use super::{
    traces::{KnownTrace, known_traces, trace_script},
    *,
};
use crate::{
    model::trace_metrics::{Aggregation, MetricSpan, View},
    search::parse_metric_filter,
    store::search::trace_metrics::MetricQuestion,
};

const AGGREGATIONS: [Aggregation; 7] = [
    Aggregation::Avg,
    Aggregation::Min,
    Aggregation::Max,
    Aggregation::Percentile(0.0),
    Aggregation::Percentile(37.5),
    Aggregation::Percentile(50.0),
    Aggregation::Percentile(100.0),
];

/// A value with the groups to which it belongs.
type Measured = (Option<i64>, Vec<String>, f64);

fn question(view: View, metric: &str, aggregations: &[Aggregation], dimensions: &[&str]) -> MetricQuestion {
    MetricQuestion {
        experiment_ids: vec![0, 2, 9],
        view,
        metric: view.metric(metric).unwrap(),
        aggregations: aggregations.to_vec(),
        dimensions: dimensions.iter().map(|name| (*name).to_owned()).collect(),
        filters: Vec::new(),
        span: MetricSpan::default(),
        limit: 2,
        token: None,
    }
}

fn percentile(sorted: &[f64], percent: f64) -> f64 {
    let at = percent / 100.0 * (sorted.len() - 1) as f64;
    let (below, part) = (at.floor() as usize, at.fract());
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + part * (sorted[above] - sorted[below])
}

fn aggregated(values: &mut [f64], aggregation: Aggregation) -> f64 {
    values.sort_by(f64::total_cmp);
    let sum: f64 = values.iter().sum();
    match aggregation {
        Aggregation::Count => values.len() as f64,
        Aggregation::Sum => sum,
        Aggregation::Avg => sum / values.len() as f64,
        Aggregation::Min => values[0],
        Aggregation::Max => values[values.len() - 1],
        Aggregation::Percentile(percent) => percentile(values, percent),
    }
}

async fn check(stores: &Stores, question: &MetricQuestion, measured: Vec<Measured>) {
    let mut groups: BTreeMap<(Option<i64>, Vec<String>), Vec<f64>> = BTreeMap::new();
    for (begins, dimensions, value) in measured {
        groups.entry((begins, dimensions)).or_default().push(value);
    }
    let mut question = question.clone();
    let mut found = Vec::new();
    loop {
        let page = stores.trace_metrics.measure_traces("default", &question).await.unwrap();
        assert!(page.groups.len() <= question.limit as usize);
        found.extend(page.groups);
        question.token = page.next_token;
        if question.token.is_none() {
            break;
        }
    }
    assert_eq!(found.len(), groups.len(), "{question:?}");
    for (group, ((begins, dimensions), mut values)) in found.into_iter().zip(groups) {
        assert_eq!(
            (group.begins_ms, &group.dimensions),
            (begins, &dimensions),
            "{question:?}"
        );
        for (value, aggregation) in group.values.into_iter().zip(&question.aggregations) {
            let (value, expected) = (value.unwrap(), aggregated(&mut values, *aggregation));
            assert!(
                (value - expected).abs() < 1e-6,
                "{question:?} {aggregation:?}: {value} {expected}"
            );
        }
    }
}

fn searched(traces: &[KnownTrace]) -> impl Iterator<Item = &KnownTrace> {
    traces.iter().filter(|trace| [0, 2].contains(&trace.experiment))
}

#[tokio::test]
async fn traces_are_measured() {
    let traces = known_traces();
    for place in test_databases().await.unwrap() {
        let stores = stores_of(&place, trace_script(&traces)).await;
        let mut asked = question(View::Traces, "latency", &AGGREGATIONS, &["trace_name"]);
        let named = searched(&traces).filter_map(|trace| {
            let value = trace.execution_time_ms? as f64;
            Some((None, vec![trace.name.clone()?], value))
        });
        check(&stores, &asked, named.collect()).await;

        asked = question(
            View::Traces,
            "input_tokens",
            &[Aggregation::Sum, Aggregation::Percentile(90.0)],
            &[],
        );
        asked.span = MetricSpan {
            start_ms: Some(-3000),
            end_ms: Some(4000),
            interval_seconds: Some(3),
        };
        asked.filters = vec![parse_metric_filter("trace.status = 'OK'").unwrap()];
        let timed = searched(&traces).filter_map(|trace| {
            let is_asked = trace.state == "OK" && (-3000..=4000).contains(&trace.timestamp_ms);
            let begins = trace.timestamp_ms.div_euclid(3000) * 3000;
            Some((Some(begins), vec![], trace.tokens.filter(|_| is_asked)? as f64))
        });
        check(&stores, &asked, timed.collect()).await;

        asked = question(
            View::Traces,
            "trace_count",
            &[Aggregation::Count],
            &["trace_status", "trace_name"],
        );
        asked.filters = vec![parse_metric_filter("trace.tag.k = 'a'").unwrap()];
        let tagged = searched(&traces).filter_map(|trace| {
            let is_asked = trace.tags.get("k").is_some_and(|value| value == "a");
            let dimensions = vec![trace.state.to_owned(), trace.name.clone()?];
            is_asked.then_some((None, dimensions, 1.0))
        });
        check(&stores, &asked, tagged.collect()).await;

        let asked = question(View::Traces, "session_count", &[Aggregation::Count], &[]);
        let sessions = searched(&traces).filter_map(|trace| trace.session.as_deref());
        let sessions: std::collections::BTreeSet<&str> = sessions.collect();
        check(
            &stores,
            &asked,
            sessions.into_iter().map(|_| (None, vec![], 1.0)).collect(),
        )
        .await;
    }
}

#[tokio::test]
async fn spans_and_assessments_are_measured() {
    let traces = known_traces();
    for place in test_databases().await.unwrap() {
        let stores = stores_of(&place, trace_script(&traces)).await;
        let mut asked = question(View::Spans, "latency", &AGGREGATIONS, &["span_name", "span_status"]);
        asked.filters = vec![parse_metric_filter("span.type = 'LLM'").unwrap()];
        let spans = || searched(&traces).flat_map(|trace| &trace.spans);
        let slow = spans().filter(|span| span.kind == "LLM").filter_map(|span| {
            let value = (span.duration_ns? / 1_000_000) as f64;
            Some((None, vec![span.name.clone(), span.status.to_owned()], value))
        });
        check(&stores, &asked, slow.collect()).await;

        asked = question(
            View::Spans,
            "total_cost",
            &[Aggregation::Sum, Aggregation::Percentile(50.0)],
            &[],
        );
        asked.span = MetricSpan {
            start_ms: Some(-1500),
            end_ms: Some(5499),
            interval_seconds: Some(2),
        };
        let costly = spans().filter_map(|span| {
            let is_asked = (-1_500_000_000..5_500_000_000).contains(&span.start_ns);
            let begins = span.start_ns.div_euclid(2_000_000_000) * 2000;
            Some((Some(begins), vec![], span.cost.filter(|_| is_asked)?))
        });
        check(&stores, &asked, costly.collect()).await;

        let said = || {
            let said = searched(&traces).flat_map(|trace| &trace.said);
            said.filter(|said| said.is_valid)
        };
        asked = question(
            View::Assessments,
            "assessment_value",
            &AGGREGATIONS,
            &["assessment_name"],
        );
        asked.filters = vec![parse_metric_filter("assessment.type = 'feedback'").unwrap()];
        let rated = said().filter(|said| said.kind == "feedback");
        let rated = rated.filter_map(|said| Some((None, vec![said.name.to_owned()], said.number()?)));
        check(&stores, &asked, rated.collect()).await;

        let dimensions = ["assessment_name", "assessment_value"];
        let asked = question(
            View::Assessments,
            "assessment_count",
            &[Aggregation::Count],
            &dimensions,
        );
        let counted = said().map(|said| (None, vec![said.name.to_owned(), said.value.to_string()], 1.0));
        check(&stores, &asked, counted.collect()).await;
    }
}

#[tokio::test]
async fn nothing_is_measured_of_other_views_and_projects() {
    for place in test_databases().await.unwrap() {
        let stores = stores_of(&place, trace_script(&known_traces())).await;
        let mut asked = question(View::Traces, "trace_count", &[Aggregation::Count], &[]);
        asked.experiment_ids = vec![9];
        let page = stores.trace_metrics.measure_traces("default", &asked).await.unwrap();
        assert_eq!(page.groups[0].values, [Some(0.0)]);
        for (filter, token) in [
            ("span.name = 'a'", None),
            ("assessment.name = 'a'", None),
            ("trace.status = 'OK'", Some(URL_SAFE_NO_PAD.encode("[{\"t\":\"a\"}]"))),
        ] {
            asked.filters = vec![parse_metric_filter(filter).unwrap()];
            asked.token = token;
            let refused = stores
                .trace_metrics
                .measure_traces("default", &asked)
                .await
                .unwrap_err();
            assert!(matches!(refused, Error::Request(_)), "{filter}: {refused:?}");
        }
    }
}
