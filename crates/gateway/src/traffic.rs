//! What came of each version's requests, for those who decide whether new versions get more of them.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use modelyard_common::rpc::Channel;
use modelyard_proto::registry::v1::{
    EndpointTraffic, ReportTrafficRequest, VersionTraffic, endpoint_service_client::EndpointServiceClient,
};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::{predict::Gateway, routing::Version};

/// How often is told.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// How long telling may take.
const REPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// The latencies that the first bucket holds, in microseconds, and the buckets of each doubling: the contract's.
const FIRST_BUCKET_US: f64 = 100.0;
const BUCKETS_PER_DOUBLING: f64 = 4.0;

/// The buckets; the last holds all that took longer than 100 microseconds times 2 to the power of 20: 105 seconds.
const BUCKETS: usize = 82;

/// What came of a version's requests since the process began.
pub(crate) struct VersionCounts {
    answered: AtomicU64,
    failed: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
}

impl Default for VersionCounts {
    fn default() -> Self {
        Self {
            answered: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
        }
    }
}

impl VersionCounts {
    pub(crate) fn answered(&self, latency: Duration) {
        self.answered.fetch_add(1, Ordering::Relaxed);
        if let Some(bucket) = self.buckets.get(bucket_of(latency)) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A request that failed by our fault.
    pub(crate) fn failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }
}

fn bucket_of(latency: Duration) -> usize {
    let micros = latency.as_secs_f64() * 1e6;
    let bucket = (micros / FIRST_BUCKET_US).log2() * BUCKETS_PER_DOUBLING;
    // What took less than the first bucket's is below zero, and nothing is nothing: a cast takes both for 0.
    (bucket.ceil() as usize).min(BUCKETS - 1)
}

fn traffic_of(version: &Version) -> VersionTraffic {
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let counts = &version.counts;
    VersionTraffic {
        model: version.name.model.clone(),
        version: version.name.version,
        answered: count(&counts.answered),
        failed: count(&counts.failed),
        latency_buckets: counts.buckets.iter().map(count).collect(),
    }
}

/// Tells the registry what was counted, as long as new routes are on their way, until the soft end.
pub(crate) async fn report(
    gateway: Arc<Gateway>,
    registry: Channel,
    node: Arc<str>,
    soft: CancellationToken,
) -> Result<(), Infallible> {
    let process = gateway.ids.next().to_string();
    let mut ticks = interval(REPORT_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = soft.cancelled() => return Ok(()),
        }
        let endpoints: Vec<EndpointTraffic> = {
            let table = gateway.table.load();
            let of_endpoint = table.in_rollout().map(|endpoint| EndpointTraffic {
                project: endpoint.key.project.clone(),
                name: endpoint.key.name.clone(),
                versions: endpoint.live_versions().map(traffic_of).collect(),
            });
            of_endpoint.collect()
        };
        if endpoints.is_empty() {
            continue;
        }
        let request = ReportTrafficRequest {
            node: node.to_string(),
            process: process.clone(),
            endpoints,
        };
        let mut client = EndpointServiceClient::new(registry.clone());
        match timeout(REPORT_TIMEOUT, client.report_traffic(request)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::debug!(%error, "the registry was not told of the traffic"),
            Err(_) => tracing::debug!("the registry did not take the report about the traffic in time"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_latency_is_in_the_contracts_bucket() {
        for (micros, bucket) in [
            (0, 0),
            (1, 0),
            (100, 0),
            (101, 1),
            (118, 1),
            (119, 2),
            (200, 4),
            (201, 5),
            (100 << 20, 80),
            (u64::MAX / 2000, BUCKETS - 1),
        ] {
            assert_eq!(bucket_of(Duration::from_micros(micros)), bucket, "{micros} us");
        }
    }
}
