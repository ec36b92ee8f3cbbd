//! Searches of experiments and runs.

use std::{collections::BTreeSet, sync::Arc};

use axum::{Json, extract::State};
use serde::Serialize;

use super::{
    answers::{ExperimentAnswer, RunAnswer},
    error::Refusal,
    read::{Fields, Tenant},
    routes,
};
use crate::{
    search::{EXPERIMENTS, RUNS, View, parse_filter, parse_order},
    service::Registry,
    store::{ExperimentSearch, MAX_FOUND_EXPERIMENTS, MAX_FOUND_RUNS, MAX_SEARCHED, RunSearch},
};

/// How many runs a page has where the client does not say.
const DEFAULT_RUNS: i64 = 1000;
/// The most experiments whose datasets are asked for at once.
const MAX_DATASET_EXPERIMENTS: usize = 20;

#[derive(Serialize)]
struct Runs {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    runs: Vec<RunAnswer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
}

#[derive(Serialize)]
struct Experiments {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    experiments: Vec<ExperimentAnswer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
}

#[derive(Serialize)]
struct DatasetAnswer {
    experiment_id: String,
    name: String,
    digest: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    context: String,
}

#[derive(Serialize)]
struct Datasets {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    dataset_summaries: Vec<DatasetAnswer>,
}

fn view(fields: &Fields, name: &str) -> Result<View, Refusal> {
    Ok(match fields.text(name)?.as_deref() {
        Some("ALL" | "3") => View::All,
        Some("DELETED_ONLY" | "2") => View::Deleted,
        _ => View::Active,
    })
}

/// How many are wanted at most.
pub(super) fn limit(fields: &Fields, default: i64, most: u32) -> Result<u32, Refusal> {
    let wanted = fields.integer("max_results")?.unwrap_or(default);
    match u32::try_from(wanted) {
        Ok(limit) if (1..=most).contains(&limit) => Ok(limit),
        _ => Err(Refusal::invalid(format!(
            "Invalid value {wanted} for parameter 'max_results' supplied: it must be at least 1 and at most {most}."
        ))),
    }
}

async fn search_runs(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<Runs>, Refusal> {
    let named: BTreeSet<String> = fields.texts("experiment_ids")?.into_iter().collect();
    if named.len() > MAX_SEARCHED {
        return Err(Refusal::invalid(format!(
            "{} experiments are too many at once: name at most {MAX_SEARCHED}",
            named.len()
        )));
    }
    let mut experiment_ids = Vec::with_capacity(named.len());
    for id in named {
        let number = registry.experiment_number(&tenant.caller, &tenant.project, &id).await?;
        experiment_ids.push(number);
    }
    let search = RunSearch {
        experiment_ids,
        filter: parse_filter(&RUNS, &fields.text("filter")?.unwrap_or_default()).map_err(crate::Error::from)?,
        order: parse_order(&RUNS, &fields.texts("order_by")?).map_err(crate::Error::from)?,
        view: view(&fields, "run_view_type")?,
        limit: limit(&fields, DEFAULT_RUNS, MAX_FOUND_RUNS)?,
        token: fields.text("page_token")?,
    };
    let page = registry.search_runs(&tenant.caller, &tenant.project, &search).await?;
    Ok(Json(Runs {
        runs: page.runs.into_iter().map(RunAnswer::from).collect(),
        next_page_token: page.next_token,
    }))
}

async fn search_experiments(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<Experiments>, Refusal> {
    let filter = fields.text("filter")?.unwrap_or_default();
    let search = ExperimentSearch {
        filter: parse_filter(&EXPERIMENTS, &filter).map_err(crate::Error::from)?,
        order: parse_order(&EXPERIMENTS, &fields.texts("order_by")?).map_err(crate::Error::from)?,
        view: view(&fields, "view_type")?,
        limit: limit(&fields, DEFAULT_RUNS, MAX_FOUND_EXPERIMENTS)?,
        token: fields.text("page_token")?,
    };
    let page = registry
        .search_experiments(&tenant.caller, &tenant.project, &search)
        .await?;
    Ok(Json(Experiments {
        experiments: page.experiments.into_iter().map(ExperimentAnswer::from).collect(),
        next_page_token: page.next_token,
    }))
}

async fn search_datasets(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<Datasets>, Refusal> {
    let named = fields.texts("experiment_ids")?;
    if named.is_empty() {
        return Err(Refusal::invalid(
            "SearchDatasets request must specify at least one experiment_id.",
        ));
    }
    if named.len() > MAX_DATASET_EXPERIMENTS {
        return Err(Refusal::invalid(format!(
            "SearchDatasets request cannot specify more than {MAX_DATASET_EXPERIMENTS} experiment_ids. Received {} \
             experiment_ids.",
            named.len()
        )));
    }
    let mut experiments = Vec::with_capacity(named.len());
    for id in named {
        experiments.push(registry.experiment_number(&tenant.caller, &tenant.project, &id).await?);
    }
    let found = registry
        .search_run_datasets(&tenant.caller, &tenant.project, &experiments)
        .await?;
    let summaries = found.into_iter().map(|found| DatasetAnswer {
        experiment_id: found.experiment_id.to_string(),
        name: found.name,
        digest: found.digest,
        context: found.context,
    });
    Ok(Json(Datasets {
        dataset_summaries: summaries.collect(),
    }))
}

routes! {
    post "/runs/search" => search_runs,
    post "/experiments/search" => search_experiments,
    get "/experiments/search" => search_experiments,
    post "/experiments/search-datasets" => search_datasets,
}
