//! The registry's metrics. Labels are bounded: kinds, never names.

/// Counts model versions that were created.
pub const MODEL_VERSIONS: &str = "modelyard_registry_model_versions_created_total";
/// Counts dataset versions that were created.
pub const DATASET_VERSIONS: &str = "modelyard_registry_dataset_versions_created_total";
/// Counts aliases that were set or removed.
pub const ALIAS_CHANGES: &str = "modelyard_registry_alias_changes_total";
/// Counts runs that were created; repeated calls count again.
pub const RUNS: &str = "modelyard_registry_runs_created_total";
/// Counts values of metrics that runs logged.
pub const METRIC_POINTS: &str = "modelyard_registry_metric_points_logged_total";
/// Seconds that reading an uploaded file took, by `kind`: `dataset` or `model`.
pub const IMPORT_DURATION: &str = "modelyard_registry_import_duration_seconds";
/// The label of [`IMPORT_DURATION`].
pub const KIND: &str = "kind";
/// Counts attempts to deliver to webhooks, by `state`: `pending` where another follows, `delivered` or `failed`.
pub const WEBHOOK_ATTEMPTS: &str = "modelyard_registry_webhook_attempts_total";
/// The label of [`WEBHOOK_ATTEMPTS`].
pub const STATE: &str = "state";
/// Streams of the desired state that are open.
pub const WATCHERS: &str = "modelyard_registry_watchers";
/// The revision of the desired state that watchers are given.
pub const REVISION: &str = "modelyard_registry_revision";
/// The revision of who may do what that this process knows.
pub const ACCESS_REVISION: &str = "modelyard_registry_access_revision";
/// The last event of the audit chain that this process signed.
pub const AUDIT_SIGNED: &str = "modelyard_registry_audit_signed_seq";
