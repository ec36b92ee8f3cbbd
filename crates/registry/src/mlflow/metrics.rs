//! Metrics over time.

use std::{io, sync::Arc};

use axum::{
    Json,
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures::stream;
use http::{HeaderValue, header};
use modelyard_auth::Caller;
use serde::Serialize;

use super::{
    answers::MetricAnswer,
    error::Refusal,
    read::{Fields, Tenant, missing},
    routes,
};
use crate::{
    model::{
        page::PageRequest,
        run::{MetricPlace, MetricPoint},
        tracking::MetricSampling,
    },
    service::Registry,
};

/// The most points of a page.
const MAX_PAGE: i64 = 25_000;
/// The most runs whose whole histories are asked for at once.
const MAX_BULK_RUNS: usize = 100;
/// How many points are read at once where all are wanted.
const PIECE: u32 = 10_000;
/// The steps of a chart where nobody says how many.
const DEFAULT_STEPS: i64 = 2500;
/// The most steps of a chart.
const MAX_STEPS: i64 = 25_000;

#[derive(Serialize)]
struct History {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    metrics: Vec<MetricAnswer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
}

async fn get_history(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Response, Refusal> {
    let old = fields.text("run_uuid")?;
    let run_id = fields.text("run_id")?.or(old).filter(|id| !id.is_empty());
    let run_id = run_id.ok_or_else(|| missing("run_id"))?;
    let key = fields.required_text("metric_key")?;
    let cursor = fields.text("page_token")?.filter(|token| !token.is_empty());
    let Some(limit) = fields.integer("max_results")? else {
        let rest = PageRequest::up_to(PIECE, cursor.as_deref())?;
        return all_points(registry, tenant, (run_id, key), rest).await;
    };
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(Refusal::invalid(format!(
            "Invalid value {limit} for parameter 'max_results' supplied: it must be at least 1 and at most {MAX_PAGE}."
        )));
    }
    let page = PageRequest::up_to(limit as u32, cursor.as_deref())?;
    let page = registry
        .metric_history(&tenant.caller, &tenant.project, &run_id, &key, &page)
        .await?;
    let points = page.items.iter();
    let history = History {
        metrics: points
            .map(|point| MetricAnswer::new(&key, point, Some(&run_id)))
            .collect(),
        next_page_token: page.next_cursor,
    };
    Ok(Json(history).into_response())
}

/// Where the reading of a whole history is.
struct Reading {
    registry: Arc<Registry>,
    caller: Caller,
    project: String,
    run_id: String,
    key: String,
    next: Option<PageRequest<MetricPlace>>,
    is_first: bool,
}

impl Reading {
    /// The next piece of the answer; none at the end.
    async fn piece(&mut self) -> Result<Option<Bytes>, Refusal> {
        let Some(request) = self.next.take() else {
            return Ok(None);
        };
        let page = self
            .registry
            .metric_history(&self.caller, &self.project, &self.run_id, &self.key, &request)
            .await?;
        let mut text = Vec::with_capacity(page.items.len() * 96);
        for point in &page.items {
            text.extend_from_slice(if self.is_first { b"{\"metrics\":[" } else { b"," });
            self.is_first = false;
            self.write(point, &mut text)?;
        }
        match &page.next_cursor {
            Some(cursor) => self.next = Some(PageRequest::up_to(PIECE, Some(cursor))?),
            None if self.is_first => text.extend_from_slice(b"{}"),
            None => text.extend_from_slice(b"]}"),
        }
        Ok(Some(text.into()))
    }

    fn write(&self, point: &MetricPoint, text: &mut Vec<u8>) -> Result<(), Refusal> {
        let answer = MetricAnswer::new(&self.key, point, Some(&self.run_id));
        serde_json::to_writer(text, &answer).map_err(|error| crate::Error::State(error.to_string()).into())
    }
}

/// All points, or those after a page, sent as they are read: a long history takes no memory here.
async fn all_points(
    registry: Arc<Registry>,
    tenant: Tenant,
    (run_id, key): (String, String),
    first: PageRequest<MetricPlace>,
) -> Result<Response, Refusal> {
    let mut reading = Reading {
        registry,
        caller: tenant.caller,
        project: tenant.project,
        run_id,
        key,
        next: Some(first),
        is_first: true,
    };
    // The first piece is awaited, so that a refusal is one.
    let first = reading.piece().await?.unwrap_or_default();
    let rest = stream::try_unfold(reading, |mut reading| async move {
        let piece = reading.piece().await;
        let piece = piece.map_err(|refusal| io::Error::other(format!("{refusal:?}")))?;
        Ok::<_, io::Error>(piece.map(|piece| (piece, reading)))
    });
    let first = stream::once(async move { Ok::<_, io::Error>(first) });
    let mut response = Body::from_stream(futures::StreamExt::chain(first, rest)).into_response();
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

async fn bulk_interval(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<History>, Refusal> {
    let run_ids = fields.texts("run_ids")?;
    if run_ids.is_empty() {
        return Err(missing("run_ids"));
    }
    let steps = match (fields.integer("start_step")?, fields.integer("end_step")?) {
        (None, None) => None,
        (Some(first), Some(last)) if first <= last => Some((first, last)),
        (Some(first), Some(last)) => {
            return Err(Refusal::invalid(format!(
                "end_step must be greater than start_step. Found start_step={first} and end_step={last}."
            )));
        }
        _ => {
            return Err(Refusal::invalid(
                "If either start step or end step are specified, both must be specified.",
            ));
        }
    };
    let limit = fields.integer("max_results")?.unwrap_or(DEFAULT_STEPS);
    if !(1..=MAX_STEPS).contains(&limit) {
        return Err(Refusal::invalid(format!(
            "max_results must be between 1 and {MAX_STEPS}."
        )));
    }
    let sampling = MetricSampling {
        run_ids,
        key: fields.required_text("metric_key")?,
        steps,
        limit: limit as u32,
    };
    let points = registry
        .sample_metric(&tenant.caller, &tenant.project, &sampling)
        .await?;
    let answers = points
        .iter()
        .map(|(run_id, point)| MetricAnswer::new(&sampling.key, point, Some(run_id)));
    Ok(Json(History {
        metrics: answers.collect(),
        next_page_token: None,
    }))
}

/// The histories of one metric of several runs, each by time: what pages of MLflow ask for.
async fn bulk(State(registry): State<Arc<Registry>>, tenant: Tenant, fields: Fields) -> Result<Json<History>, Refusal> {
    let mut run_ids = fields.texts("run_id")?;
    if run_ids.is_empty() {
        return Err(Refusal::invalid(
            "GetMetricHistoryBulk request must specify at least one run_id.",
        ));
    }
    if run_ids.len() > MAX_BULK_RUNS {
        return Err(Refusal::invalid(format!(
            "GetMetricHistoryBulk request cannot specify more than {MAX_BULK_RUNS} run_ids. Received {} run_ids.",
            run_ids.len()
        )));
    }
    let key = fields.text("metric_key")?;
    let key = key.ok_or_else(|| Refusal::invalid("GetMetricHistoryBulk request must specify a metric_key."))?;
    let wanted = fields.integer("max_results")?.unwrap_or(MAX_PAGE).clamp(1, MAX_PAGE) as usize;
    run_ids.sort_unstable();
    let mut metrics = Vec::new();
    for run_id in &run_ids {
        let room = wanted - metrics.len();
        if room == 0 {
            break;
        }
        let page = PageRequest::up_to(room as u32, None)?;
        let history = registry.metric_history(&tenant.caller, &tenant.project, run_id, &key, &page);
        let mut points = history.await?.items;
        points.sort_by(|left, right| {
            let order = (left.timestamp, left.step).cmp(&(right.timestamp, right.step));
            order.then(left.value.0.total_cmp(&right.value.0))
        });
        metrics.extend(points.iter().map(|point| MetricAnswer::new(&key, point, Some(run_id))));
    }
    Ok(Json(History {
        metrics,
        next_page_token: None,
    }))
}

routes! {
    get "/metrics/get-history-bulk" => bulk,
    get "/metrics/get-history" => get_history,
    get "/metrics/get-history-bulk-interval" => bulk_interval,
}
