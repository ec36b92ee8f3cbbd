//! Searches of traces.

use std::{collections::BTreeSet, sync::Arc};

use axum::{Json, extract::State};
use serde::Serialize;

use super::{
    error::Refusal,
    read::{Fields, Tenant, missing},
    routes,
    search::limit,
    trace_answers::TraceInfoAnswer,
};
use crate::{
    search::{TRACES, parse_filter, parse_order},
    service::{CorrelationForm, Registry},
    store::{MAX_FOUND_TRACES, MAX_SEARCHED, TracePage, TraceSearch},
};

/// How many traces a page has where the client does not say.
const DEFAULT_TRACES: i64 = 100;

#[derive(Serialize)]
struct Traces {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    traces: Vec<TraceInfoAnswer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
}

#[derive(Serialize)]
struct CorrelationAnswer {
    #[serde(skip_serializing_if = "Option::is_none")]
    npmi: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    npmi_smoothed: Option<f64>,
    filter1_count: i64,
    filter2_count: i64,
    joint_count: i64,
    total_count: i64,
}

/// The numbers of experiments.
pub(super) async fn experiments(registry: &Registry, tenant: &Tenant, named: Vec<String>) -> Result<Vec<i64>, Refusal> {
    let named: BTreeSet<String> = named.into_iter().collect();
    if named.len() > MAX_SEARCHED {
        return Err(Refusal::invalid(format!(
            "{} experiments are too many at once: name at most {MAX_SEARCHED}",
            named.len()
        )));
    }
    let mut numbers = Vec::with_capacity(named.len());
    for id in named {
        numbers.push(registry.experiment_number(&tenant.caller, &tenant.project, &id).await?);
    }
    Ok(numbers)
}

/// A page of the traces of experiments.
pub(super) async fn found(
    registry: &Registry,
    tenant: &Tenant,
    fields: &Fields,
    named: Vec<String>,
) -> Result<TracePage, Refusal> {
    let search = TraceSearch {
        experiment_ids: experiments(registry, tenant, named).await?,
        filter: parse_filter(&TRACES, &fields.text("filter")?.unwrap_or_default()).map_err(crate::Error::from)?,
        order: parse_order(&TRACES, &fields.texts("order_by")?).map_err(crate::Error::from)?,
        limit: limit(fields, DEFAULT_TRACES, MAX_FOUND_TRACES)?,
        token: fields.text("page_token")?,
    };
    Ok(registry.search_traces(&tenant.caller, &tenant.project, &search).await?)
}

async fn search(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<Traces>, Refusal> {
    let locations = fields.objects("locations")?;
    if locations.is_empty() {
        return Err(missing("locations"));
    }
    let mut named = Vec::with_capacity(locations.len());
    for location in locations {
        if let Some(experiment) = location.object("mlflow_experiment")? {
            named.push(experiment.text("experiment_id")?.unwrap_or_default());
        }
    }
    let page = found(&registry, &tenant, &fields, named).await?;
    Ok(Json(Traces {
        traces: page.traces.into_iter().map(TraceInfoAnswer::from).collect(),
        next_page_token: page.next_token,
    }))
}

async fn correlate(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<CorrelationAnswer>, Refusal> {
    let named = fields.texts("experiment_ids")?;
    if named.is_empty() {
        return Err(missing("experiment_ids"));
    }
    let form = CorrelationForm {
        experiment_ids: experiments(&registry, &tenant, named).await?,
        first: fields.required_text("filter_string1")?,
        second: fields.required_text("filter_string2")?,
        base: fields.text("base_filter")?.unwrap_or_default(),
    };
    let found = registry
        .correlate_traces(&tenant.caller, &tenant.project, &form)
        .await?;
    Ok(Json(CorrelationAnswer {
        npmi: found.npmi,
        npmi_smoothed: found.npmi_smoothed,
        filter1_count: found.counts.first,
        filter2_count: found.counts.second,
        joint_count: found.counts.joint,
        total_count: found.counts.total,
    }))
}

routes! {
    post "/traces/search" => search,
    post "/traces/calculate-filter-correlation" => correlate,
}
