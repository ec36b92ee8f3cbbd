//! The metrics of monitoring. Labels are endpoints, rules and monitors: bounded by what is declared.

use std::time::Duration;

use modelyard_common::Timestamp;

/// Segments committed to inference log tables, by endpoint.
pub const SEGMENTS: &str = "modelyard_monitoring_segments_committed_total";
/// Segments that could not be committed and never will be, by endpoint.
pub const SEGMENTS_REFUSED: &str = "modelyard_monitoring_segments_refused_total";
/// Rows committed to inference log tables, by endpoint.
pub const ROWS: &str = "modelyard_monitoring_log_rows_total";
/// Labels stored, by endpoint.
pub const LABELS: &str = "modelyard_monitoring_labels_total";
/// Seconds that scoring a window took, by monitor.
pub const SCORE_DURATION: &str = "modelyard_monitoring_score_duration_seconds";
/// Seconds that the watermark is behind the present, by endpoint.
pub const WATERMARK_LAG: &str = "modelyard_monitoring_watermark_lag_seconds";
/// Alerts that are firing.
pub const ALERTS_FIRING: &str = "modelyard_monitoring_alerts_firing";
/// Alerts raised, by rule.
pub const ALERTS: &str = "modelyard_monitoring_alerts_total";

const PROJECT: &str = "project";
const ENDPOINT: &str = "endpoint";
const MONITOR: &str = "monitor";
const RULE: &str = "rule";

pub(crate) fn committed(endpoint: &str, segments: u64, refused: u64, rows: u64) {
    let labels = [(ENDPOINT, endpoint.to_owned())];
    metrics::counter!(SEGMENTS, &labels).increment(segments);
    metrics::counter!(SEGMENTS_REFUSED, &labels).increment(refused);
    metrics::counter!(ROWS, &labels).increment(rows);
}

pub(crate) fn labelled(endpoint: &str, labels: u64) {
    metrics::counter!(LABELS, ENDPOINT => endpoint.to_owned()).increment(labels);
}

pub(crate) fn scored(monitor: &str, took: Duration) {
    metrics::histogram!(SCORE_DURATION, MONITOR => monitor.to_owned()).record(took.as_secs_f64());
}

pub(crate) fn watermark(project: &str, endpoint: &str, watermark: Timestamp, now: Timestamp) {
    let labels = [(PROJECT, project.to_owned()), (ENDPOINT, endpoint.to_owned())];
    metrics::gauge!(WATERMARK_LAG, &labels).set(now.since(watermark).as_secs_f64());
}

pub(crate) fn raised(rule: &str) {
    metrics::counter!(ALERTS, RULE => rule.to_owned()).increment(1);
}

pub(crate) fn firing(alerts: u64) {
    metrics::gauge!(ALERTS_FIRING).set(alerts as f64);
}
