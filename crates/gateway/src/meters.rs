//! The gateway's metrics: names, labels, and handles that the hot path keeps.

use std::time::{Duration, Instant};

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use parking_lot::Mutex;

/// Predictions by endpoint, version, role and outcome.
const REQUESTS: &str = "modelyard_gateway_requests_total";
/// Seconds from a request's arrival to its answer, by endpoint, version and role.
const DURATION: &str = "modelyard_gateway_request_duration_seconds";
/// Rows in the runs that answered, by endpoint and version.
const BATCH_ROWS: &str = "modelyard_gateway_batch_rows";
/// Requests that wait for a model, by endpoint, version and role; of all routes to the version together.
const QUEUED: &str = "modelyard_gateway_queued_requests";
/// Requests for endpoints and versions that are not served, or that could not be read.
const REFUSED: &str = "modelyard_gateway_refused_requests_total";
/// Bytes of the inference log on this machine.
const SPOOL_BYTES: &str = "modelyard_gateway_spool_bytes";
/// Segments of the inference log that were handed over, by outcome.
const SEGMENTS: &str = "modelyard_gateway_segments_total";
/// Records of the inference log that were lost, by reason.
const DROPPED: &str = "modelyard_gateway_dropped_records_total";
/// 1 while the registry's changes arrive, else 0.
const WATCH_CONNECTED: &str = "modelyard_gateway_watch_connected";
/// The revision of the desired state that is being served.
const REVISION: &str = "modelyard_gateway_desired_revision";

/// Models in memory, the bytes that they take, and how often one was loaded, or let go of for a reason.
const MODELS: &str = "modelyard_gateway_loaded_models";
const MODEL_BYTES: &str = "modelyard_gateway_loaded_model_bytes";
const MODEL_LOADS: &str = "modelyard_gateway_model_loads_total";
const MODEL_UNLOADS: &str = "modelyard_gateway_model_unloads_total";
/// Answers that were kept: asked for and found or not, by outcome; and the bytes that they take.
const CACHE: &str = "modelyard_gateway_cache_requests_total";
const CACHE_BYTES: &str = "modelyard_gateway_cache_bytes";
/// How long a request that comes now would wait for a model, in seconds, by endpoint, version and role: what to scale by.
const EXPECTED_WAIT: &str = "modelyard_gateway_expected_wait_seconds";
/// The share of the last moments that a model's workers worked, 0 to 1, by endpoint, version and role: what to scale by.
const UTILIZATION: &str = "modelyard_gateway_utilization";
/// Workers of a model, by endpoint, version and role.
const WORKERS: &str = "modelyard_gateway_workers";

/// Why a model was let go of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unloaded {
    /// Others that were used more recently needed the memory.
    Memory,
    /// Nobody asked for it.
    Idle,
}

/// Why a record of the inference log was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DropReason {
    /// The spool holds as much as it may.
    SpoolFull,
    /// The disk has no more space to spare.
    DiskFull,
    /// The file could not be written.
    WriteFailed,
    /// The model's outputs are not one for each row.
    Shape,
    /// A shadow route's answer, under more load than it can follow.
    ShadowOverload,
    /// A shadow route's version that cannot be loaded any more, or that fails on the input.
    ShadowFailed,
    /// A record on disk that cannot be read.
    Damaged,
    /// A record of more bytes than the endpoint wants in its log.
    TooLarge,
}

impl DropReason {
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::SpoolFull => "spool_full",
            Self::DiskFull => "disk_full",
            Self::WriteFailed => "write_failed",
            Self::Shape => "shape",
            Self::ShadowOverload => "shadow_overload",
            Self::ShadowFailed => "shadow_failed",
            Self::Damaged => "damaged",
            Self::TooLarge => "too_large",
        }
    }
}

/// How a prediction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// With outputs.
    Ok,
    /// The client's fault.
    Invalid,
    /// The queue was full.
    Rejected,
    /// The deadline passed.
    Expired,
    /// Our fault.
    Failed,
}

/// How a model is.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Load {
    pub queued: usize,
    pub expected_wait: Duration,
    pub workers: usize,
    /// How long it worked so far.
    pub busy: Duration,
}

/// The metrics of one route.
pub(crate) struct RouteMeters {
    outcomes: [Counter; 5],
    duration: Histogram,
    batch_rows: Histogram,
    queued: Gauge,
    expected_wait: Gauge,
    workers: Gauge,
    utilization: Gauge,
    /// When was looked last, and how long the model had worked then.
    looked: Mutex<Option<(Instant, Duration)>>,
}

impl RouteMeters {
    pub(crate) fn new(endpoint: &str, version: &str, role: &'static str) -> Self {
        let labels = || {
            [
                ("endpoint", endpoint.to_owned()),
                ("version", version.to_owned()),
                ("role", role.to_owned()),
            ]
        };
        let outcome = |name: &'static str| {
            let [endpoint, version, role] = labels();
            counter!(REQUESTS, &[endpoint, version, role, ("outcome", name.to_owned())])
        };
        Self {
            outcomes: ["ok", "invalid", "rejected", "expired", "failed"].map(outcome),
            duration: histogram!(DURATION, &labels()),
            batch_rows: histogram!(BATCH_ROWS, &labels()),
            queued: gauge!(QUEUED, &labels()),
            expected_wait: gauge!(EXPECTED_WAIT, &labels()),
            workers: gauge!(WORKERS, &labels()),
            utilization: gauge!(UTILIZATION, &labels()),
            looked: Mutex::default(),
        }
    }

    pub(crate) fn count(&self, outcome: Outcome) {
        let index = match outcome {
            Outcome::Ok => 0,
            Outcome::Invalid => 1,
            Outcome::Rejected => 2,
            Outcome::Expired => 3,
            Outcome::Failed => 4,
        };
        if let Some(counter) = self.outcomes.get(index) {
            counter.increment(1);
        }
    }

    pub(crate) fn answered(&self, latency: Duration, batch_rows: usize) {
        self.count(Outcome::Ok);
        self.duration.record(latency.as_secs_f64());
        self.batch_rows.record(batch_rows as f64);
    }

    /// Shows how a route's model is.
    pub(crate) fn load(&self, load: Load) {
        self.queued.set(load.queued as f64);
        self.expected_wait.set(load.expected_wait.as_secs_f64());
        self.workers.set(load.workers as f64);
        let now = Instant::now();
        if let Some((before, busy)) = self.looked.lock().replace((now, load.busy)) {
            let worked = load.busy.saturating_sub(busy).as_secs_f64();
            let could = now.saturating_duration_since(before).as_secs_f64() * load.workers.max(1) as f64;
            // A run counts when it ends, so that a long one may count for more than the time since.
            self.utilization.set((worked / could).clamp(0.0, 1.0));
        }
    }
}

pub(crate) fn refused_request() {
    counter!(REFUSED).increment(1);
}

/// What shows the bytes of the inference log on this machine.
pub(crate) fn spool_bytes() -> Gauge {
    gauge!(SPOOL_BYTES)
}

pub(crate) fn segment(outcome: &'static str) {
    counter!(SEGMENTS, "outcome" => outcome).increment(1);
}

pub(crate) fn dropped(reason: DropReason, records: u64) {
    counter!(DROPPED, "reason" => reason.label()).increment(records);
}

pub(crate) fn watch_connected(connected: bool) {
    gauge!(WATCH_CONNECTED).set(if connected { 1.0 } else { 0.0 });
}

pub(crate) fn revision(revision: u64) {
    gauge!(REVISION).set(revision as f64);
}

/// Shows the models that are in memory.
pub(crate) fn models(loaded: usize, bytes: u64) {
    gauge!(MODELS).set(loaded as f64);
    gauge!(MODEL_BYTES).set(bytes as f64);
}

pub(crate) fn model_loaded() {
    counter!(MODEL_LOADS).increment(1);
}

pub(crate) fn model_unloaded(why: Unloaded) {
    let reason = match why {
        Unloaded::Memory => "memory",
        Unloaded::Idle => "idle",
    };
    counter!(MODEL_UNLOADS, "reason" => reason).increment(1);
}

pub(crate) fn cache_asked(found: bool) {
    counter!(CACHE, "outcome" => if found { "hit" } else { "miss" }).increment(1);
}

pub(crate) fn cache_bytes(bytes: u64) {
    gauge!(CACHE_BYTES).set(bytes as f64);
}
