//! An orchestrator that is started, killed and started again.

use std::{path::Path, sync::Arc, time::Duration};

use axum::{Router, body::Body};
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use modelyard_artifacts::{Artifacts, ProjectArtifacts, Storage, StorageConfig};
use modelyard_common::{Context, clock::SystemClock, id::RandomIds, lifecycle::Lifecycle, readiness::Readiness, rpc};
use modelyard_orchestrator::{Config, start};
use modelyard_proto::orchestrator::v1::{
    FireTriggerRequest, ReportAlertRequest, rollout_service_client::RolloutServiceClient,
    trigger_service_client::TriggerServiceClient,
};
use modelyard_testkit::{postgres::TestDatabase, wait::until};
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::registry::FakeRegistry;

pub const PATIENCE: Duration = Duration::from_mins(2);

/// The machine's own clock and random ids, as in production.
pub fn context(data_dir: &Path) -> Context {
    let clock = Arc::new(SystemClock);
    Context {
        node: "node-1".into(),
        data_dir: Arc::new(data_dir.to_owned()),
        ids: RandomIds::new(clock.clone()),
        clock,
        lifecycle: Lifecycle::default(),
        readiness: Readiness::default(),
    }
}

pub fn config(place: &TestDatabase) -> Config {
    let mut config = Config::default();
    config.database.url = place.url.clone().map(modelyard_common::config::Secret::new);
    config
}

pub struct World {
    pub registry: FakeRegistry,
    pub storage: Storage,
    place: TestDatabase,
    running: Running,
}

struct Running {
    context: Context,
    http: Router,
    grpc: rpc::Channel,
}

impl World {
    pub async fn on(place: TestDatabase) -> Self {
        let registry = FakeRegistry::new();
        let storage = Storage::open(&StorageConfig::memory()).unwrap();
        let running = Running::start(&place, &storage, &registry).await;
        Self {
            registry,
            storage,
            place,
            running,
        }
    }

    pub async fn new() -> Self {
        Self::on(TestDatabase::sqlite().unwrap()).await
    }

    pub fn artifacts(&self) -> ProjectArtifacts {
        Artifacts::new(self.storage.clone()).project("default").unwrap()
    }

    /// Ends the process as a kill would: tasks are cut off wherever they are.
    pub async fn kill_and_restart(&mut self) {
        self.kill().await;
        self.running = Running::start(&self.place, &self.storage, &self.registry).await;
    }

    async fn kill(&self) {
        self.running.context.lifecycle.abort();
        let finished = self.running.context.lifecycle.finish(Duration::ZERO).await;
        assert!(finished.is_ok(), "{finished:?}");
    }

    pub async fn send(&self, method: Method, path: &str, body: Option<&Value>) -> (StatusCode, Value) {
        let uri = format!("/api/v1/projects/default/{path}");
        let mut request = Request::builder().method(method).uri(uri);
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
        let request = request.body(body).unwrap();
        let response = self.running.http.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let value = if bytes.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&bytes).unwrap()
        };
        (status, value)
    }

    pub async fn get(&self, path: &str) -> Value {
        let (status, value) = self.send(Method::GET, path, None).await;
        assert_eq!(status, StatusCode::OK, "{value}");
        value
    }

    pub async fn put(&self, path: &str, spec: &Value) -> Value {
        let (status, value) = self.send(Method::PUT, path, Some(spec)).await;
        assert_eq!(status, StatusCode::OK, "{value}");
        value
    }

    /// Starts a pipeline; the id of its run.
    pub async fn run(&self, pipeline: &str, body: &Value) -> String {
        let (status, run) = self
            .send(Method::POST, &format!("pipelines/{pipeline}/runs"), Some(body))
            .await;
        assert_eq!(status, StatusCode::CREATED, "{run}");
        run["id"].as_str().unwrap().to_owned()
    }

    /// Declares a pipeline of the given steps and starts it.
    pub async fn run_steps(&self, steps: Value) -> String {
        self.put("pipelines/p", &json!({"steps": steps})).await;
        self.run("p", &json!({})).await
    }

    /// Tells of an alert about version 2 of model `m` at endpoint `e`; the rollouts that are rolled back.
    pub async fn report_alert(&self, rule: &str, version: u32) -> Vec<String> {
        let request = ReportAlertRequest {
            project: "default".to_owned(),
            endpoint: "e".to_owned(),
            rule: rule.to_owned(),
            alert: "a1".to_owned(),
            model: "m".to_owned(),
            version,
            reason: "drift_share is 0.9".to_owned(),
        };
        let mut client = RolloutServiceClient::new(self.running.grpc.clone());
        client.report_alert(request).await.unwrap().into_inner().rollout_ids
    }

    pub async fn fire(&self, trigger: &str, key: &str, event: &Value) -> Result<String, tonic::Status> {
        let request = FireTriggerRequest {
            project: "default".to_owned(),
            trigger: trigger.to_owned(),
            key: key.to_owned(),
            event_json: event.to_string(),
        };
        let mut client = TriggerServiceClient::new(self.running.grpc.clone());
        Ok(client.fire_trigger(request).await?.into_inner().pipeline_run_id)
    }

    /// Waits until the run is as wanted.
    pub async fn wait(&self, id: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        until(what, PATIENCE, async || {
            let run = self.get(&format!("pipeline-runs/{id}")).await;
            wanted(&run).then_some(run)
        })
        .await
    }

    /// Waits until the run has ended.
    pub async fn finish(&self, id: &str) -> Value {
        let ends = ["succeeded", "failed", "cancelled"];
        self.wait(id, "the run ends", |run| {
            ends.contains(&run["status"].as_str().unwrap())
        })
        .await
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.running.context.lifecycle.abort();
    }
}

impl Running {
    async fn start(place: &TestDatabase, storage: &Storage, registry: &FakeRegistry) -> Self {
        let context = context(place.data_dir());
        let (access, _) = modelyard_testkit::access::open(&context);
        let service = start(config(place), &context, storage.clone(), access, registry.channel())
            .await
            .unwrap();
        assert_eq!(context.readiness.missing(), Vec::<String>::new());
        let (http, _) = service.http.split_for_parts();
        Self {
            context,
            http,
            grpc: rpc::local(service.grpc).as_service("monitoring"),
        }
    }
}

/// A step of a run by its name.
pub fn step<'a>(run: &'a Value, name: &str) -> &'a Value {
    let steps = run["steps"].as_array().unwrap();
    steps.iter().find(|step| step["name"] == name).unwrap()
}
