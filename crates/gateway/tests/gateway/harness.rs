//! A gateway with its peers, its storage and its data folder.

use std::{path::Path, sync::Arc, time::Duration};

use arrow::array::RecordBatch;
use axum::body::Body;
use bytes::Bytes;
use futures::TryStreamExt as _;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt as _;
use modelyard_artifacts::{Artifacts, Storage, StorageConfig};
use modelyard_common::{Context, clock::SystemClock, id::RandomIds, lifecycle::Lifecycle, readiness::Readiness};
use modelyard_gateway::{Config, Service, start};
use modelyard_proto::registry::v1::{Endpoint, Log, Route, RouteRole};
use modelyard_testkit::wait::until;
use object_store::{ObjectStoreExt as _, path::Path as ObjectPath};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;
use tempfile::TempDir;
use tower::ServiceExt as _;

use crate::peers::{Monitoring, Registry};

pub const PATIENCE: Duration = Duration::from_secs(30);

/// What outlives a gateway.
pub struct World {
    pub folder: TempDir,
    pub storage: Storage,
    pub registry: Registry,
    pub monitoring: Monitoring,
    pub config: Config,
}

/// A gateway at work.
pub struct Running {
    pub service: Service,
    pub lifecycle: Lifecycle,
    pub readiness: Readiness,
}

pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {:?}", self.body))
    }
}

impl World {
    pub fn new(registry: Registry) -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            storage: Storage::open(&StorageConfig::memory()).unwrap(),
            registry,
            monitoring: Monitoring::default(),
            config: Config {
                flush_interval: Duration::from_millis(100),
                ..Config::default()
            },
        }
    }

    pub fn data_dir(&self) -> &Path {
        self.folder.path()
    }

    /// Stores a model's file; gives its digest.
    pub async fn store(&self, model: Vec<u8>) -> String {
        let artifacts = Artifacts::new(self.storage.clone()).project("default").unwrap();
        let blob = artifacts.put_bytes(model).await.unwrap();
        blob.digest.to_string()
    }

    pub async fn start(&self) -> Running {
        let clock = Arc::new(SystemClock);
        let context = Context {
            node: "gateway-1".into(),
            data_dir: Arc::new(self.data_dir().to_owned()),
            ids: RandomIds::new(clock.clone()),
            clock,
            lifecycle: Lifecycle::default(),
            readiness: Readiness::default(),
        };
        let service = start(
            self.config.clone(),
            &context,
            self.storage.clone(),
            modelyard_testkit::access::open(&context).0,
            self.registry.channel(),
            self.monitoring.channel(),
        );
        Running {
            service: service.await.unwrap(),
            lifecycle: context.lifecycle,
            readiness: context.readiness,
        }
    }

    pub async fn start_ready(&self) -> Running {
        let running = self.start().await;
        until("the gateway is ready", PATIENCE, || async {
            running.readiness.missing().is_empty().then_some(())
        })
        .await;
        running
    }

    /// The rows of all committed files, each file once.
    pub async fn rows(&self, endpoint: &str) -> Vec<RecordBatch> {
        let mut paths: Vec<String> = self
            .monitoring
            .commits()
            .into_iter()
            .filter(|commit| commit.endpoint == endpoint)
            .flat_map(|commit| commit.files.into_iter().map(|file| file.path))
            .collect();
        paths.sort();
        paths.dedup();
        let mut batches = Vec::new();
        for path in paths {
            let path: ObjectPath = ["inference-log", "default", endpoint]
                .into_iter()
                .chain(path.split('/'))
                .collect();
            let content = self.storage.store().get(&path).await.unwrap().bytes().await.unwrap();
            let reader = ParquetRecordBatchReaderBuilder::try_new(content)
                .unwrap()
                .build()
                .unwrap();
            batches.extend(reader.map(Result::unwrap));
        }
        batches
    }

    /// The objects of the log.
    pub async fn objects(&self) -> Vec<String> {
        let prefix = ObjectPath::from("inference-log");
        let objects: Vec<_> = self.storage.store().list(Some(&prefix)).try_collect().await.unwrap();
        objects.into_iter().map(|object| object.location.to_string()).collect()
    }
}

impl Running {
    pub async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.service.inference.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        Answer {
            status: parts.status,
            headers: parts.headers,
            body: body.collect().await.unwrap().to_bytes(),
        }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        let request = Request::post(path).header("content-type", "application/json");
        self.send(request.body(Body::from(body.to_string())).unwrap()).await
    }

    /// Ends everything at once, as a signal that cannot be caught would.
    pub async fn kill(self) {
        self.lifecycle.abort();
        self.lifecycle.stop();
        let _ = self.lifecycle.finish(Duration::ZERO).await;
    }

    /// Ends softly.
    pub async fn stop(self) {
        self.lifecycle.stop();
        assert_eq!(self.lifecycle.finish(PATIENCE).await, Ok(vec![]));
    }
}

pub fn live(model: &str, version: u32, digest: &str, weight: f64) -> Route {
    Route {
        role: RouteRole::Live.into(),
        reference: format!("{model}@v{version}"),
        weight,
        sample: 1.0,
        model: model.to_owned(),
        version,
        artifact_digest: digest.to_owned(),
        ..Route::default()
    }
}

pub fn shadow(model: &str, version: u32, digest: &str, sample: f64) -> Route {
    Route {
        role: RouteRole::Shadow.into(),
        reference: format!("{model}/{version}"),
        sample,
        ..live(model, version, digest, 0.0)
    }
}

pub fn endpoint(name: &str, routes: Vec<Route>) -> Endpoint {
    Endpoint {
        project: "default".to_owned(),
        name: name.to_owned(),
        routes,
        log: Some(Log {
            predictions: true,
            sample: 1.0,
            ..Log::default()
        }),
        ..Endpoint::default()
    }
}
