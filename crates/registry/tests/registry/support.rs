//! A registry alone, without ports.

use std::{path::PathBuf, sync::Arc, time::Duration};

use axum::{Router, body::Body};
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use modelyard_artifacts::{Storage, StorageConfig};
use modelyard_auth::{Access, Mode};
use modelyard_common::{
    Context, Timestamp,
    clock::ManualClock,
    config::Secret,
    id::RandomIds,
    lifecycle::Lifecycle,
    readiness::Readiness,
    rpc::{self, Channel},
};
use modelyard_db::{Database, DatabaseConfig, Pools as _};
use modelyard_proto::registry::v1::{
    CreateModelVersionRequest, ModelVersion, SetAliasRequest, dataset_service_client::DatasetServiceClient,
    endpoint_service_client::EndpointServiceClient, model_service_client::ModelServiceClient,
    run_service_client::RunServiceClient,
};
use modelyard_registry::Config;
use modelyard_testkit::postgres::{TestDatabase, test_databases};
use serde_json::Value;
use sqlx::AssertSqlSafe;
use tower::ServiceExt;

use crate::fixture;

/// The project of all tests.
pub const PROJECT: &str = "default";
/// Long enough for a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(30);
const START: &str = "2013-03-01T00:00:00Z";

/// A registry that runs.
pub struct TestRegistry {
    /// Calls of a service for the local user.
    pub channel: Channel,
    /// Calls of a service for itself.
    pub services: Channel,
    pub access: Access,
    /// The token of the first admin.
    pub first_token: Option<String>,
    pub router: Router,
    pub clock: Arc<ManualClock>,
    pub lifecycle: Lifecycle,
    pub readiness: Readiness,
    pub data_dir: PathBuf,
}

/// A fresh place and a registry on it, for each database.
pub async fn registries() -> Vec<(TestDatabase, TestRegistry)> {
    let mut running = Vec::new();
    for place in test_databases().await.unwrap() {
        let registry = start(&place).await;
        running.push((place, registry));
    }
    running
}

/// A registry on what is in the place.
pub async fn start(place: &TestDatabase) -> TestRegistry {
    start_with(place, |_| {}).await
}

/// The same, with settings of the test's own.
pub async fn start_with(place: &TestDatabase, change: impl FnOnce(&mut Config)) -> TestRegistry {
    start_in(place, Mode::Open, change).await
}

/// The same, where callers sign in or need not.
pub async fn start_in(place: &TestDatabase, mode: Mode, change: impl FnOnce(&mut Config)) -> TestRegistry {
    try_start_in(place, mode, change).await.unwrap()
}

/// The same, where that may fail.
pub async fn try_start_in(
    place: &TestDatabase,
    mode: Mode,
    change: impl FnOnce(&mut Config),
) -> Result<TestRegistry, modelyard_registry::Error> {
    let clock = ManualClock::at(START.parse::<Timestamp>().unwrap());
    let data_dir = place.data_dir().to_owned();
    let context = Context {
        node: "test".into(),
        data_dir: Arc::new(data_dir.clone()),
        clock: clock.clone(),
        ids: RandomIds::new(clock.clone()),
        lifecycle: Lifecycle::default(),
        readiness: Readiness::default(),
    };
    let mut config = Config {
        database: DatabaseConfig {
            url: place.url.clone().map(Secret::new),
            ..DatabaseConfig::default()
        },
        ..Config::default()
    };
    change(&mut config);
    let storage = Storage::open(&StorageConfig::folder(&data_dir.join("objects"))).unwrap();
    let access = Access::new(mode, None, context.clock.clone(), context.ids.clone()).unwrap();
    let service = modelyard_registry::start(config, &context, storage, access.clone()).await?;
    let (router, _) = service.http.split_for_parts();
    let services = rpc::local(service.grpc).as_service("orchestrator");
    Ok(TestRegistry {
        channel: services.acting_for("user:local"),
        services,
        access,
        first_token: service.first_token.map(|token| token.reveal().to_owned()),
        router,
        clock,
        lifecycle: context.lifecycle,
        readiness: context.readiness,
        data_dir,
    })
}

/// Runs statements behind the registry's back.
pub async fn execute(database: &Database, script: impl Into<String>) -> Result<(), sqlx::Error> {
    let script = AssertSqlSafe(script.into());
    match database {
        Database::Sqlite(pools) => {
            let mut tx = pools.begin().await.unwrap();
            sqlx::raw_sql(script).execute(&mut *tx).await?;
            tx.commit().await.unwrap();
        }
        Database::Postgres(pools) => {
            let mut tx = pools.begin().await.unwrap();
            sqlx::raw_sql(script).execute(&mut *tx).await?;
            tx.commit().await.unwrap();
        }
    }
    Ok(())
}

impl TestRegistry {
    pub fn runs(&self) -> RunServiceClient<Channel> {
        RunServiceClient::new(self.channel.clone())
    }

    pub fn datasets(&self) -> DatasetServiceClient<Channel> {
        DatasetServiceClient::new(self.channel.clone())
    }

    pub fn models(&self) -> ModelServiceClient<Channel> {
        ModelServiceClient::new(self.channel.clone())
    }

    pub fn endpoints(&self) -> EndpointServiceClient<Channel> {
        EndpointServiceClient::new(self.services.clone())
    }

    /// Sends a request to a path below the project.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: impl Into<Body>,
    ) -> (StatusCode, Bytes) {
        let request = Request::builder()
            .method(method)
            .uri(format!("/api/v1/projects/{PROJECT}/{path}"))
            .header(header::CONTENT_TYPE, content_type)
            .body(body.into())
            .unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        (status, response.into_body().collect().await.unwrap().to_bytes())
    }

    /// Sends JSON and reads JSON; null where nothing came back.
    pub async fn json(&self, method: Method, path: &str, body: &Value) -> (StatusCode, Value) {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let (status, body) = self.send(method, path, "application/json", body).await;
        let value = if body.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&body).unwrap()
        };
        (status, value)
    }

    /// Gets JSON that must be there.
    pub async fn get(&self, path: &str) -> Value {
        let (status, value) = self.json(Method::GET, path, &Value::Null).await;
        assert_eq!(status, StatusCode::OK, "{path}: {value}");
        value
    }

    /// Sends JSON that must be taken.
    pub async fn take(&self, method: Method, path: &str, body: &Value) -> Value {
        let (status, value) = self.json(method, path, body).await;
        assert!(status.is_success(), "{path}: {status} {value}");
        value
    }

    /// Sends JSON that must be refused; the status and what was wrong.
    pub async fn refuse(&self, method: Method, path: &str, body: &Value) -> (StatusCode, String, String) {
        let (status, value) = self.json(method, path, body).await;
        assert!(!status.is_success(), "{path} was taken: {value}");
        let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
        assert_eq!(value["status"], status.as_u16());
        (status, text("reason"), text("detail"))
    }

    /// Uploads content; its digest.
    pub async fn upload(&self, content: impl Into<Bytes>) -> String {
        let content = Body::from(content.into());
        let (status, body) = self
            .send(Method::PUT, "artifacts", "application/octet-stream", content)
            .await;
        assert_eq!(status, StatusCode::CREATED);
        let artifact: Value = serde_json::from_slice(&body).unwrap();
        artifact["digest"].as_str().unwrap().to_owned()
    }

    /// Uploads a model file.
    pub async fn upload_model(&self) -> String {
        self.upload(fixture::onnx_model()).await
    }

    /// Registers a version of a model.
    pub async fn create_version(&self, model: &str, artifact_digest: &str) -> ModelVersion {
        let request = CreateModelVersionRequest {
            project: PROJECT.to_owned(),
            name: model.to_owned(),
            artifact_digest: artifact_digest.to_owned(),
            ..CreateModelVersionRequest::default()
        };
        let created = self.models().create_model_version(request).await.unwrap();
        created.into_inner().model_version.unwrap()
    }

    /// Points an alias at a version.
    pub async fn set_alias(&self, model: &str, alias: &str, version: u32) -> u32 {
        let request = SetAliasRequest {
            project: PROJECT.to_owned(),
            name: model.to_owned(),
            alias: alias.to_owned(),
            version,
        };
        self.models()
            .set_alias(request)
            .await
            .unwrap()
            .into_inner()
            .previous_version
    }

    /// Ends softly; nothing may be left running.
    pub async fn stop(self) {
        self.lifecycle.stop();
        assert_eq!(self.lifecycle.finish(PATIENCE).await, Ok(vec![]));
    }
}
