//! What the registry keeps in its database. Callers bring ids and times; one method is one transaction.
//!
//! Whoever changes what others follow raises the counter `revision` first, and so holds its row until the commit: such
//! changes happen one after the other, and nobody sees a revision whose predecessor is not there yet.

mod access;
mod aliases;
mod artifact_files;
mod assessments;
mod audit;
mod blobs;
mod collections;
mod collector;
mod collector_experiments;
mod datasets;
mod endpoints;
mod entry_search;
mod evaluation_datasets;
mod evaluation_records;
mod events;
mod experiments;
mod first_admin;
mod identities;
mod import;
mod import_progress;
mod import_registry;
mod lineage;
mod logged_models;
mod model_registry;
mod models;
mod openid;
mod projects;
mod run_log;
mod run_rows;
mod runs;
mod scorers;
mod search;
mod secrets;
mod spans;
#[cfg(test)]
pub(crate) mod testing;
mod tokens;
mod trace_rows;
mod traces;
mod tracking;
mod traffic;
mod version_registry;
mod version_rows;
mod versions;
mod webhook_outbox;
mod webhooks;

use std::sync::Arc;

use conditional_trait_gen::trait_gen;
use modelyard_common::Timestamp;
use modelyard_db::{Database, Migrations, Pools, PostgresPools, SqlitePools, Transaction, migrations};
use serde_json::Value;

pub use self::{
    access::AccessStore,
    aliases::{AliasRequest, AliasStore},
    artifact_files::{Arrival, ArtifactFileStore, ArtifactUploadStore},
    assessments::AssessmentStore,
    audit::AuditStore,
    blobs::{BlobStore, OldBlob, Removal},
    collections::{CollectionStore, Ending, FoundObject, Step},
    collector::CollectorStore,
    datasets::{DatasetStore, Inserted, NewDatasetVersion},
    endpoints::{EndpointRecord, EndpointStore},
    entry_search::EntrySearchStore,
    evaluation_datasets::EvaluationDatasetStore,
    evaluation_records::EvaluationRecordStore,
    events::EventStore,
    experiments::ExperimentStore,
    first_admin::{FirstAdmin, FirstAdminStore},
    identities::IdentityStore,
    import::{ImportStore, MeasuredModel},
    import_registry::ImportRegistryStore,
    lineage::LineageStore,
    logged_models::LoggedModelStore,
    model_registry::{Aliases, ModelRegistryStore},
    models::ModelStore,
    openid::{ExchangedAs, NewExchange, NewSignIn, SignInStore, SignedIn},
    projects::ProjectStore,
    run_log::RunLogStore,
    runs::RunStore,
    scorers::ScorerStore,
    search::{
        CorrelationCounts, DatasetSummary, ExperimentPage, ExperimentSearch, MAX_EXPERIMENTS as MAX_FOUND_EXPERIMENTS,
        MAX_METRIC_GROUPS, MAX_RUNS as MAX_FOUND_RUNS, MAX_SEARCHED, MAX_TRACES as MAX_FOUND_TRACES, MetricPage,
        MetricQuestion, RunPage, RunSearch, SearchStore, TraceMetricStore, TracePage, TraceSearch, TraceSearchStore,
    },
    secrets::{SealedSecret, SecretStore},
    tokens::{TokenMade, TokenRow, TokenStore},
    traces::TraceStore,
    tracking::TrackingStore,
    traffic::{OnItsWay, TrafficChange, TrafficStore},
    version_registry::VersionRegistryStore,
    webhooks::WebhookStore,
};
pub(crate) use self::{
    artifact_files::no_upload, assessments::no_assessment, collections::object_place,
    evaluation_datasets::no_evaluation_dataset, logged_models::no_logged_model, trace_rows::no_trace, tracking::no_run,
    webhooks::no_webhook,
};
use crate::{error::Result, model::event::EventKind};

/// The registry's tables.
pub const MIGRATIONS: Migrations = migrations!(
    "registry",
    [
        "0001_registry",
        "0002_access",
        "0003_tracking",
        "0004_artifact_file",
        "0005_model_registry",
        "0006_traces",
        "0007_evaluation_dataset",
        "0008_webhooks",
        "0009_collection",
        "0010_lineage",
        "0011_import",
        "0012_scorer",
        "0013_metric_series",
        "0014_artifact_blocks",
        "0015_endpoint_traffic",
        "0016_retention",
        "0017_model_version_file",
        "0018_model_version_bundle"
    ]
);

/// The stores on an open database.
#[derive(Clone)]
pub struct Stores {
    /// Projects.
    pub projects: Arc<dyn ProjectStore>,
    /// Experiments and runs.
    pub runs: Arc<dyn RunStore>,
    /// What changes experiments.
    pub experiments: Arc<dyn ExperimentStore>,
    /// What runs log.
    pub run_log: Arc<dyn RunLogStore>,
    /// What changes runs.
    pub tracking: Arc<dyn TrackingStore>,
    /// Scorers of experiments.
    pub scorers: Arc<dyn ScorerStore>,
    /// Searches of runs and experiments.
    pub search: Arc<dyn SearchStore>,
    /// Logged models.
    pub logged_models: Arc<dyn LoggedModelStore>,
    /// Artifacts by their paths.
    pub artifact_files: Arc<dyn ArtifactFileStore>,
    /// Uploads of artifacts in parts.
    pub artifact_uploads: Arc<dyn ArtifactUploadStore>,
    /// Blobs and quotas.
    pub blobs: Arc<dyn BlobStore>,
    /// The records of collections.
    pub collections: Arc<dyn CollectionStore>,
    /// The steps of collections.
    pub collector: Arc<dyn CollectorStore>,
    /// What MLflow's registry tells of models.
    pub model_registry: Arc<dyn ModelRegistryStore>,
    /// What MLflow's registry tells of versions.
    pub version_registry: Arc<dyn VersionRegistryStore>,
    /// Searches of models and versions.
    pub entry_search: Arc<dyn EntrySearchStore>,
    /// Traces.
    pub traces: Arc<dyn TraceStore>,
    /// Searches of traces.
    pub trace_search: Arc<dyn TraceSearchStore>,
    /// Metrics of traces.
    pub trace_metrics: Arc<dyn TraceMetricStore>,
    /// What is said of traces.
    pub assessments: Arc<dyn AssessmentStore>,
    /// What comes from other servers.
    pub imports: Arc<dyn ImportStore>,
    /// Models and versions that come from other servers.
    pub import_registry: Arc<dyn ImportRegistryStore>,
    /// What leads from one thing to another.
    pub lineage: Arc<dyn LineageStore>,
    /// Evaluation datasets.
    pub evaluation_datasets: Arc<dyn EvaluationDatasetStore>,
    /// The records of evaluation datasets.
    pub evaluation_records: Arc<dyn EvaluationRecordStore>,
    /// Datasets.
    pub datasets: Arc<dyn DatasetStore>,
    /// Models and versions.
    pub models: Arc<dyn ModelStore>,
    /// Aliases.
    pub aliases: Arc<dyn AliasStore>,
    /// Endpoints and the gateways' reports.
    pub endpoints: Arc<dyn EndpointStore>,
    /// How the traffic of endpoints stands.
    pub traffic: Arc<dyn TrafficStore>,
    /// The feed of events.
    pub events: Arc<dyn EventStore>,
    /// The audit chain.
    pub audit: Arc<dyn AuditStore>,
    /// Those who sign in elsewhere.
    pub openid: Arc<dyn SignInStore>,
    /// Users and service accounts.
    pub identities: Arc<dyn IdentityStore>,
    /// Tokens.
    pub tokens: Arc<dyn TokenStore>,
    /// Roles, bindings, policies, marks, and all of it as one state.
    pub access: Arc<dyn AccessStore>,
    /// Secrets.
    pub secrets: Arc<dyn SecretStore>,
    /// Webhooks and their deliveries.
    pub webhooks: Arc<dyn WebhookStore>,
    /// The admin of the first start.
    pub first_admin: Arc<dyn FirstAdminStore>,
}

impl Stores {
    /// The stores on a database that has [`MIGRATIONS`].
    #[must_use]
    pub fn open(database: &Database) -> Self {
        match database.clone() {
            Database::Sqlite(pools) => Self::of(Arc::new(SqlStore { pools })),
            Database::Postgres(pools) => Self::of(Arc::new(SqlStore { pools })),
        }
    }

    fn of<S>(store: Arc<S>) -> Self
    where
        S: ProjectStore
            + RunStore
            + DatasetStore
            + ModelStore
            + AliasStore
            + EndpointStore
            + TrafficStore
            + EventStore
            + AuditStore
            + SignInStore
            + IdentityStore
            + TokenStore
            + AccessStore
            + SecretStore
            + FirstAdminStore
            + ExperimentStore
            + TrackingStore
            + RunLogStore
            + ScorerStore
            + SearchStore
            + LoggedModelStore
            + ArtifactFileStore
            + ArtifactUploadStore
            + ModelRegistryStore
            + VersionRegistryStore
            + EntrySearchStore
            + TraceStore
            + TraceSearchStore
            + TraceMetricStore
            + AssessmentStore
            + EvaluationDatasetStore
            + EvaluationRecordStore
            + WebhookStore
            + BlobStore
            + CollectionStore
            + CollectorStore
            + ImportStore
            + ImportRegistryStore
            + LineageStore
            + 'static,
    {
        Self {
            projects: Arc::clone(&store) as Arc<dyn ProjectStore>,
            runs: Arc::clone(&store) as Arc<dyn RunStore>,
            experiments: Arc::clone(&store) as Arc<dyn ExperimentStore>,
            run_log: Arc::clone(&store) as Arc<dyn RunLogStore>,
            tracking: Arc::clone(&store) as Arc<dyn TrackingStore>,
            scorers: Arc::clone(&store) as Arc<dyn ScorerStore>,
            search: Arc::clone(&store) as Arc<dyn SearchStore>,
            logged_models: Arc::clone(&store) as Arc<dyn LoggedModelStore>,
            artifact_files: Arc::clone(&store) as Arc<dyn ArtifactFileStore>,
            artifact_uploads: Arc::clone(&store) as Arc<dyn ArtifactUploadStore>,
            blobs: Arc::clone(&store) as Arc<dyn BlobStore>,
            collections: Arc::clone(&store) as Arc<dyn CollectionStore>,
            collector: Arc::clone(&store) as Arc<dyn CollectorStore>,
            model_registry: Arc::clone(&store) as Arc<dyn ModelRegistryStore>,
            version_registry: Arc::clone(&store) as Arc<dyn VersionRegistryStore>,
            entry_search: Arc::clone(&store) as Arc<dyn EntrySearchStore>,
            trace_search: Arc::clone(&store) as Arc<dyn TraceSearchStore>,
            trace_metrics: Arc::clone(&store) as Arc<dyn TraceMetricStore>,
            traces: Arc::clone(&store) as Arc<dyn TraceStore>,
            assessments: Arc::clone(&store) as Arc<dyn AssessmentStore>,
            imports: Arc::clone(&store) as Arc<dyn ImportStore>,
            import_registry: Arc::clone(&store) as Arc<dyn ImportRegistryStore>,
            lineage: Arc::clone(&store) as Arc<dyn LineageStore>,
            evaluation_datasets: Arc::clone(&store) as Arc<dyn EvaluationDatasetStore>,
            evaluation_records: Arc::clone(&store) as Arc<dyn EvaluationRecordStore>,
            datasets: Arc::clone(&store) as Arc<dyn DatasetStore>,
            models: Arc::clone(&store) as Arc<dyn ModelStore>,
            aliases: Arc::clone(&store) as Arc<dyn AliasStore>,
            endpoints: Arc::clone(&store) as Arc<dyn EndpointStore>,
            traffic: Arc::clone(&store) as Arc<dyn TrafficStore>,
            events: Arc::clone(&store) as Arc<dyn EventStore>,
            audit: Arc::clone(&store) as Arc<dyn AuditStore>,
            openid: Arc::clone(&store) as Arc<dyn SignInStore>,
            identities: Arc::clone(&store) as Arc<dyn IdentityStore>,
            tokens: Arc::clone(&store) as Arc<dyn TokenStore>,
            access: Arc::clone(&store) as Arc<dyn AccessStore>,
            secrets: Arc::clone(&store) as Arc<dyn SecretStore>,
            webhooks: Arc::clone(&store) as Arc<dyn WebhookStore>,
            first_admin: store as Arc<dyn FirstAdminStore>,
        }
    }
}

struct SqlStore<P> {
    pools: P,
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
impl SqlStore<P> {
    /// The next revision. From here to the commit nobody else changes what is followed.
    async fn next_revision(tx: &mut Transaction<<P as Pools>::Db>) -> Result<i64> {
        let query = sqlx::query_scalar("UPDATE counter SET value = value + 1 WHERE name = 'revision' RETURNING value");
        Ok(query.fetch_one(&mut **tx).await?)
    }

    async fn record_event(
        tx: &mut Transaction<<P as Pools>::Db>,
        revision: i64,
        project: &str,
        kind: EventKind,
        subject: &Value,
        now: Timestamp,
    ) -> Result<()> {
        sqlx::query("INSERT INTO event (revision, project, kind, subject, at) VALUES ($1, $2, $3, $4, $5)")
            .bind(revision)
            .bind(project)
            .bind(kind.as_str())
            .bind(subject.to_string())
            .bind(now.as_micros())
            .execute(&mut **tx)
            .await?;
        Ok(())
    }
}

/// A stored number that is never negative.
fn number<N: TryFrom<i64>>(what: &'static str, stored: i64) -> Result<N> {
    N::try_from(stored).map_err(|_| modelyard_db::Error::value(what, &stored.to_string()).into())
}

/// A stored number that may be missing.
fn maybe<N: TryFrom<i64>>(what: &'static str, stored: Option<i64>) -> Result<Option<N>> {
    stored.map(|stored| number(what, stored)).transpose()
}

/// A number as it is stored.
fn stored(what: &'static str, number: u64) -> Result<i64> {
    i64::try_from(number).map_err(|_| modelyard_db::Error::value(what, &number.to_string()).into())
}

/// A stored JSON text.
fn json<T: serde::de::DeserializeOwned>(what: &'static str, stored: &str) -> Result<T> {
    serde_json::from_str(stored).map_err(|_| modelyard_db::Error::value(what, stored).into())
}

/// JSON as it is stored.
fn to_json(what: &'static str, value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|error| modelyard_db::Error::value(what, &error.to_string()).into())
}

/// A stored word.
fn word<T>(what: &'static str, stored: &str, parse: impl Fn(&str) -> Option<T>) -> Result<T> {
    parse(stored).ok_or_else(|| modelyard_db::Error::value(what, stored).into())
}

/// The upper bound of a page of a list that goes down by number.
fn before(page: &crate::model::page::PageRequest<u64>) -> i64 {
    page.after
        .map_or(i64::MAX, |after| i64::try_from(after).unwrap_or(i64::MAX))
}
