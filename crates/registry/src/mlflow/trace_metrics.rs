//! Metrics of traces.

use std::{collections::BTreeMap, sync::Arc};

use axum::{Json, extract::State};
use modelyard_common::Timestamp;
use serde::Serialize;

use super::{
    error::Refusal,
    read::{Fields, Tenant, missing, read_number},
    routes,
    search::limit,
    trace_search::experiments,
};
use crate::{
    model::{
        run::MetricValue,
        trace_metrics::{Aggregation, MAX_AGGREGATIONS, MetricSpan, View},
    },
    search::parse_metric_filter,
    service::Registry,
    store::{MAX_METRIC_GROUPS, MetricQuestion},
};

/// How many groups a page has where the client does not say.
const DEFAULT_GROUPS: i64 = 1000;
/// The most filters of a question.
const MAX_FILTERS: usize = 64;

#[derive(Serialize)]
struct DataPoint {
    metric_name: &'static str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    dimensions: BTreeMap<String, String>,
    values: BTreeMap<String, MetricValue>,
}

#[derive(Serialize)]
struct DataPoints {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    data_points: Vec<DataPoint>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
}

/// A name of a list of names, or its number.
fn name(fields: &Fields, field: &str) -> Result<String, Refusal> {
    match fields.value(field) {
        Some(value) if value.is_number() => Ok(value.to_string()),
        _ => fields.required_text(field),
    }
}

fn aggregations(fields: &Fields) -> Result<Vec<Aggregation>, Refusal> {
    let named = fields.objects("aggregations")?;
    if named.is_empty() {
        return Err(missing("aggregations"));
    }
    let mut known: Vec<Aggregation> = Vec::with_capacity(named.len());
    for one in named {
        let percentile = one.value("percentile_value");
        let percentile = percentile.map_or(Ok(None), |value| read_number("percentile_value", value))?;
        let aggregation = Aggregation::of(&name(&one, "aggregation_type")?, percentile)?;
        if !known.contains(&aggregation) {
            known.push(aggregation);
        }
        // The check of the metric says so.
        if known.len() > MAX_AGGREGATIONS {
            break;
        }
    }
    Ok(known)
}

/// Names without those that were named before.
fn once(names: Vec<String>) -> Vec<String> {
    let mut known: Vec<String> = Vec::with_capacity(names.len());
    for name in names {
        if !known.contains(&name) {
            known.push(name);
        }
    }
    known
}

async fn question(registry: &Registry, tenant: &Tenant, fields: &Fields) -> Result<MetricQuestion, Refusal> {
    let named = fields.texts("experiment_ids")?;
    if named.is_empty() {
        return Err(missing("experiment_ids"));
    }
    let view = name(fields, "view_type")?;
    let view = View::of(&view).ok_or_else(|| {
        Refusal::invalid(format!(
            "view_type must be one of ['TRACES', 'SPANS', 'ASSESSMENTS'], got '{view}'"
        ))
    })?;
    let metric = view.metric(&fields.required_text("metric_name")?)?;
    let aggregations = aggregations(fields)?;
    let dimensions = fields.texts("dimensions")?;
    metric.check(&aggregations, &dimensions)?;
    let filters = fields.texts("filters")?;
    if filters.len() > MAX_FILTERS {
        return Err(Refusal::invalid(format!(
            "{} filters are too many at once: name at most {MAX_FILTERS}",
            filters.len()
        )));
    }
    let filters: Result<Vec<_>, _> = filters.iter().map(|filter| parse_metric_filter(filter)).collect();
    Ok(MetricQuestion {
        experiment_ids: experiments(registry, tenant, named).await?,
        view,
        metric,
        aggregations,
        dimensions: once(dimensions),
        filters: filters.map_err(crate::Error::from)?,
        span: MetricSpan {
            start_ms: fields.integer("start_time_ms")?,
            end_ms: fields.integer("end_time_ms")?,
            interval_seconds: fields.integer("time_interval_seconds")?.filter(|seconds| *seconds != 0),
        },
        limit: limit(fields, DEFAULT_GROUPS, MAX_METRIC_GROUPS)?,
        token: fields.text("page_token")?,
    })
}

async fn query(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<DataPoints>, Refusal> {
    let question = question(&registry, &tenant, &fields).await?;
    let page = registry
        .measure_traces(&tenant.caller, &tenant.project, &question)
        .await?;
    let mut data_points = Vec::with_capacity(page.groups.len());
    for group in page.groups {
        let named = question.dimensions.iter().cloned();
        let mut dimensions: BTreeMap<String, String> = named.zip(group.dimensions).collect();
        if let Some(begins) = group.begins_ms {
            let time = Timestamp::from_millis(begins).to_datetime().to_rfc3339();
            dimensions.insert("time_bucket".to_owned(), time);
        }
        let labels = question.aggregations.iter().map(|aggregation| aggregation.label());
        let values: BTreeMap<String, MetricValue> = labels
            .zip(group.values)
            .filter_map(|(label, value)| Some((label, MetricValue(value?))))
            .collect();
        if !values.is_empty() {
            data_points.push(DataPoint {
                metric_name: question.metric.name,
                dimensions,
                values,
            });
        }
    }
    Ok(Json(DataPoints {
        data_points,
        next_page_token: page.next_token,
    }))
}

routes! {
    post "/traces/metrics" => query,
}
