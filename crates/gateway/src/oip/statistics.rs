//! What models have done, as Triton's clients ask for it. All durations are nanoseconds; `inference_count` is rows and
//! `execution_count` runs of the model.

use std::time::Duration;

use modelyard_auth::Action;
use modelyard_inference::{BatchStatistics, Statistics};
use modelyard_proto::inference::{InferBatchStatistics, InferStatistics, ModelStatistics, StatisticDuration};
use serde_json::{Value, json};

use crate::{client::Client, error::Result, predict::Gateway, routing::Version};

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn part(count: u64, time: Duration) -> StatisticDuration {
    StatisticDuration { count, ns: nanos(time) }
}

/// What a version has done under the endpoint's name. Answers that were kept count as requests, and not as inferences.
fn model_statistics(endpoint: &str, version: &Version) -> ModelStatistics {
    let counted: Statistics = version.model.statistics();
    let (cache_hits, cache_misses) = version.cache_counts();
    let compute = counted.input_time + counted.infer_time + counted.output_time;
    let of_batch = |batch: &BatchStatistics| InferBatchStatistics {
        batch_size: batch.rows as u64,
        compute_input: Some(part(batch.executions, batch.input_time)),
        compute_infer: Some(part(batch.executions, batch.infer_time)),
        compute_output: Some(part(batch.executions, batch.output_time)),
    };
    ModelStatistics {
        name: endpoint.to_owned(),
        version: version.text.clone(),
        last_inference: version.last_answer_ms(),
        inference_count: counted.rows,
        execution_count: counted.executions,
        inference_stats: Some(InferStatistics {
            success: Some(part(counted.succeeded + cache_hits, counted.queue_time + compute)),
            fail: Some(part(counted.failed, counted.failed_time)),
            queue: Some(part(counted.succeeded, counted.queue_time)),
            compute_input: Some(part(counted.succeeded, counted.input_time)),
            compute_infer: Some(part(counted.succeeded, counted.infer_time)),
            compute_output: Some(part(counted.succeeded, counted.output_time)),
            // A look into the cache takes next to nothing.
            cache_hit: Some(part(cache_hits, Duration::ZERO)),
            cache_miss: Some(part(cache_misses, Duration::ZERO)),
        }),
        batch_stats: counted.batches.iter().map(of_batch).collect(),
    }
}

/// What the versions of an endpoint have done, or one of them.
pub(crate) fn statistics_of(
    gateway: &Gateway,
    client: &Client,
    endpoint: &str,
    version: Option<&str>,
) -> Result<Vec<ModelStatistics>> {
    client.authorize(Action::EndpointRead, endpoint)?;
    let found = gateway.endpoint(&client.project, endpoint)?;
    let versions = match version {
        Some(version) => vec![version.to_owned()],
        None => found.versions(),
    };
    let each = versions.iter().map(|version| {
        let version = found.describe(Some(version))?;
        Ok(model_statistics(endpoint, version))
    });
    each.collect()
}

/// What all versions have done that the client may see.
pub(crate) fn all_statistics_of(gateway: &Gateway, client: &Client) -> Vec<ModelStatistics> {
    let mut names = gateway.table.load().names(&client.project);
    names.retain(|name| client.sees(name));
    let each = names.iter().filter_map(|name| {
        // One that went or was unloaded meanwhile has done nothing.
        statistics_of(gateway, client, name, None).ok()
    });
    each.flatten().collect()
}

fn duration_json(part: Option<&StatisticDuration>) -> Value {
    let part = part.copied().unwrap_or_default();
    json!({"count": part.count, "ns": part.ns})
}

/// Statistics as JSON, with numbers where protobuf's own JSON would write 64 bits as texts.
pub(crate) fn statistics_json(statistics: &[ModelStatistics]) -> Value {
    let of_batch = |batch: &InferBatchStatistics| {
        json!({
            "batch_size": batch.batch_size,
            "compute_input": duration_json(batch.compute_input.as_ref()),
            "compute_infer": duration_json(batch.compute_infer.as_ref()),
            "compute_output": duration_json(batch.compute_output.as_ref()),
        })
    };
    let each = statistics.iter().map(|model| {
        let parts = model.inference_stats.unwrap_or_default();
        json!({
            "name": model.name,
            "version": model.version,
            "last_inference": model.last_inference,
            "inference_count": model.inference_count,
            "execution_count": model.execution_count,
            "inference_stats": {
                "success": duration_json(parts.success.as_ref()),
                "fail": duration_json(parts.fail.as_ref()),
                "queue": duration_json(parts.queue.as_ref()),
                "compute_input": duration_json(parts.compute_input.as_ref()),
                "compute_infer": duration_json(parts.compute_infer.as_ref()),
                "compute_output": duration_json(parts.compute_output.as_ref()),
                "cache_hit": duration_json(parts.cache_hit.as_ref()),
                "cache_miss": duration_json(parts.cache_miss.as_ref()),
            },
            "batch_stats": model.batch_stats.iter().map(of_batch).collect::<Vec<_>>(),
        })
    });
    json!({"model_stats": each.collect::<Vec<_>>()})
}
