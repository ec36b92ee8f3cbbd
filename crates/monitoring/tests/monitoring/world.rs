//! A running service with everything around it, and the inference log as a gateway writes it.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use arrow::{
    array::{
        ArrayRef, Float64Array, Int32Array, Int64Array, ListArray, RecordBatch, StringArray, TimestampMicrosecondArray,
    },
    datatypes::Float64Type,
};
use axum::{Router, body::Body};
use http::{Method, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use modelyard_artifacts::{Artifacts, Storage, StorageConfig};
use modelyard_common::{
    Context, Timestamp,
    clock::SystemClock,
    config::Secret,
    id::RandomIds,
    lifecycle::Lifecycle,
    readiness::Readiness,
    rpc::{self, Channel},
};
use modelyard_db::DatabaseConfig;
use modelyard_monitoring::Config;
use modelyard_proto::{
    monitoring::v1::{CommitSegmentRequest, SegmentFile, segment_service_client::SegmentServiceClient},
    registry::v1::ModelVersion,
};
use modelyard_stats::{Profile, ProfileOptions};
use modelyard_testkit::{postgres::TestDatabase, wait::until};
use object_store::{ObjectStoreExt as _, path::Path};
use parquet::arrow::ArrowWriter;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::peers::{Orchestrator, Registry};

pub const PATIENCE: Duration = Duration::from_mins(1);
pub const ENDPOINT: &str = "flight-delay";
pub const MODEL: &str = "flight-delay";
const PROJECT: &str = "/api/v1/projects/default";

/// The service with its peers. Dropping it is a crash.
pub struct World {
    pub registry: Registry,
    pub orchestrator: Orchestrator,
    pub storage: Storage,
    config: Config,
    data_dir: PathBuf,
    context: Context,
    router: Router,

    segments: Channel,
}

fn context(data_dir: &std::path::Path) -> Context {
    let clock = Arc::new(SystemClock);
    Context {
        node: "test".into(),
        data_dir: Arc::new(data_dir.to_owned()),
        ids: RandomIds::new(clock.clone()),
        clock,
        lifecycle: Lifecycle::default(),
        readiness: Readiness::default(),
    }
}

impl World {
    pub async fn start(place: &TestDatabase) -> Self {
        let storage = Storage::open(&StorageConfig::folder(&place.data_dir().join("objects"))).unwrap();
        let config = Config {
            database: DatabaseConfig {
                url: place.url.clone().map(Secret::new),
                ..DatabaseConfig::default()
            },
            score_interval: Duration::ZERO,
            ..Config::default()
        };
        let (registry, orchestrator) = (Registry::default(), Orchestrator::default());
        Self::run(config, place.data_dir().to_owned(), storage, registry, orchestrator).await
    }

    async fn run(
        config: Config,
        data_dir: PathBuf,
        storage: Storage,
        registry: Registry,
        orchestrator: Orchestrator,
    ) -> Self {
        let context = context(&data_dir);
        let service = modelyard_monitoring::start(
            config.clone(),
            &context,
            storage.clone(),
            modelyard_testkit::access::open(&context).0,
            registry.channel(),
            orchestrator.channel(),
        );
        let service = service.await.unwrap();
        assert!(context.readiness.missing().is_empty());
        let (router, _) = service.http.split_for_parts();
        let segments = rpc::local(service.grpc).as_service("gateway");
        Self {
            registry,
            orchestrator,
            storage,
            config,
            data_dir,
            context,
            router,

            segments,
        }
    }

    /// Cuts everything off and starts anew on what is on the disk.
    pub async fn crash_and_restart(self) -> Self {
        self.context.lifecycle.abort();
        self.context.lifecycle.stop();
        self.context.lifecycle.finish(PATIENCE).await.unwrap();
        Self::run(
            self.config,
            self.data_dir,
            self.storage,
            self.registry,
            self.orchestrator,
        )
        .await
    }

    /// Registers a version with its held-out AUC, and a reference profile of distances and carriers.
    pub async fn register(&self, version: u32, auc: f64) {
        let rows: Vec<Row> = (0..2000).map(|index| Row::new(index, "2013-01-01T00:00:00Z")).collect();
        let distances: ArrayRef = Arc::new(rows.iter().map(|row| Some(row.distance)).collect::<Float64Array>());
        let carriers = rows
            .iter()
            .map(|row| Some(row.carrier).filter(|carrier| !carrier.is_empty()));
        let carriers: ArrayRef = Arc::new(carriers.collect::<StringArray>());
        let batch = RecordBatch::try_from_iter([("distance", distances), ("carrier", carriers)]).unwrap();
        let profile = Profile::of([&batch], &ProfileOptions::default()).unwrap();
        let artifacts = Artifacts::new(self.storage.clone()).project("default").unwrap();
        let blob = artifacts.put_bytes(profile.to_json().unwrap()).await.unwrap();
        let found = ModelVersion {
            project: "default".to_owned(),
            name: MODEL.to_owned(),
            version,
            artifact_digest: format!("sha256:{}", "0".repeat(64)),
            reference_profile_digest: blob.digest.to_string(),
            metrics: [("auc".to_owned(), auc)].into(),
            run_id: format!("run-{version}"),
            dataset: "flights".to_owned(),
            dataset_version: version,
            aliases: vec!["champion".to_owned()],
            created_at_us: 1_000_000,
            ..ModelVersion::default()
        };
        self.registry.versions.lock().insert(version, found);
    }

    pub async fn call(&self, method: Method, path: &str, body: Option<Value>) -> (StatusCode, Value) {
        self.call_in(PROJECT, method, path, body).await
    }

    pub async fn call_in(&self, project: &str, method: Method, path: &str, body: Option<Value>) -> (StatusCode, Value) {
        let mut request = Request::builder().method(method).uri(format!("{project}/{path}"));
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
        let response = self.router.clone().oneshot(request.body(body).unwrap()).await.unwrap();
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        (status, serde_json::from_slice(&bytes).unwrap_or(Value::String(text)))
    }

    pub async fn get(&self, path: &str) -> Value {
        let (status, body) = self.call(Method::GET, path, None).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        body
    }

    pub async fn put(&self, path: &str, spec: Value) -> Value {
        let (status, body) = self.call(Method::PUT, path, Some(spec)).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        body
    }

    /// The monitor of most tests: months, judged from 100 rows on.
    pub async fn monitor(&self) {
        let spec = json!({"endpoint": ENDPOINT, "window": "month", "min_rows": 100});
        self.put("monitors/m", spec).await;
    }

    /// A rule on the monitor, which fires the trigger `retrain`.
    pub async fn rule(&self, any: Value) {
        let labels = json!({"share": 0.95, "within": "14d"});
        self.put(
            "alert-rules/decay",
            json!({"monitor": "m", "labels": labels, "any": any, "trigger": "retrain"}),
        )
        .await;
    }

    pub async fn window(&self, start: &str) -> Option<Value> {
        let (status, body) = self
            .call(Method::GET, &format!("monitors/m/windows/{start}"), None)
            .await;
        (status == StatusCode::OK).then_some(body)
    }

    /// Waits until a window is as it should be. A score that is being replaced does not count.
    pub async fn wait_window(&self, start: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        until(what, PATIENCE, async || {
            let window = self.window(start).await?;
            (window["pending"] == json!(false) && holds(&window)).then_some(window)
        })
        .await
    }

    pub async fn send_labels(&self, labels: Vec<Value>) {
        let accepted = labels.len();
        let body = json!({"endpoint": ENDPOINT, "labels": labels});
        let (status, body) = self.call(Method::POST, "labels", Some(body)).await;
        assert_eq!((status, body), (StatusCode::ACCEPTED, json!({"accepted": accepted})));
    }

    /// Labels all rows as they turned out, known at a time.
    pub async fn label(&self, rows: &[Row], observed_at: &str) {
        self.send_labels(rows.iter().map(|row| row.label(observed_at)).collect())
            .await;
    }

    /// Uploads rows, a file a date, and hands them over as one segment.
    pub async fn log(&self, segment: &str, rows: &[Row]) {
        let request = self.upload(segment, rows).await;
        self.commit(request).await.unwrap();
    }

    pub async fn upload(&self, segment: &str, rows: &[Row]) -> CommitSegmentRequest {
        let mut by_date: BTreeMap<String, Vec<Row>> = BTreeMap::new();
        for row in rows {
            by_date
                .entry(row.event_time.to_string()[..10].to_owned())
                .or_default()
                .push(row.clone());
        }
        let mut files = Vec::new();
        for (index, (date, rows)) in by_date.iter().enumerate() {
            let path = format!("event_date={date}/{segment}-{index}.parquet");
            let content = parquet(rows);
            let size_bytes = content.len() as u64;
            let full = Path::parse(format!("inference-log/default/{ENDPOINT}/{path}")).unwrap();
            self.storage.store().put(&full, content.into()).await.unwrap();
            files.push(SegmentFile {
                path,
                size_bytes,
                rows: rows.len() as u64,
                event_date: date.clone(),
                min_event_time_us: rows.iter().map(|row| row.event_time.as_micros()).min().unwrap(),
                max_event_time_us: rows.iter().map(|row| row.event_time.as_micros()).max().unwrap(),
                schema_ipc: Vec::new(),
            });
        }
        CommitSegmentRequest {
            project: "default".to_owned(),
            endpoint: ENDPOINT.to_owned(),
            segment_id: segment.to_owned(),
            files,
        }
    }

    pub async fn commit(&self, request: CommitSegmentRequest) -> Result<(), tonic::Status> {
        SegmentServiceClient::new(self.segments.clone())
            .commit_segment(request)
            .await
            .map(|_| ())
    }
}

/// One answer in the log.
#[expect(clippy::struct_field_names, reason = "`row` is the name of the log's column")]
#[derive(Debug, Clone)]
pub struct Row {
    pub request_id: String,
    pub row: i32,
    pub event_time: Timestamp,
    pub received_at: Timestamp,
    pub version: u32,
    pub role: &'static str,
    pub distance: f64,
    pub carrier: &'static str,
    pub probability: f64,
    pub late: bool,
}

impl Row {
    /// The row of a number: its values are those of the reference, its probability is right more often than not.
    pub fn new(index: usize, start: &str) -> Self {
        let start: Timestamp = start.parse().unwrap();
        let event_time = start + Duration::from_secs(3600 * (index as u64 % 600));
        let late = index.is_multiple_of(3);
        let noise = (index * 7919 % 100) as f64 / 100.0;
        Self {
            request_id: format!("{start}-{index}"),
            row: 0,
            event_time,
            received_at: event_time + Duration::from_secs(1),
            version: 1,
            role: "live",
            distance: (index * 37 % 1000) as f64,
            carrier: ["UA", "AA", "DL", ""][index % 4],
            probability: if late { 0.3 + 0.7 * noise } else { 0.7 * noise },
            late,
        }
    }

    fn label(&self, observed_at: &str) -> Value {
        json!({"request_id": self.request_id, "row": self.row, "label": self.late, "observed_at": observed_at})
    }
}

/// Rows of a month.
pub fn rows(count: usize, start: &str) -> Vec<Row> {
    (0..count).map(|index| Row::new(index, start)).collect()
}

/// The area under the ROC curve by its definition: the share of pairs in the right order.
pub fn auc_by_pairs(rows: &[Row]) -> f64 {
    let (mut won, mut pairs) = (0.0, 0.0);
    for positive in rows.iter().filter(|row| row.late) {
        for negative in rows.iter().filter(|row| !row.late) {
            pairs += 1.0;
            won += if positive.probability > negative.probability {
                1.0
            } else if positive.probability < negative.probability {
                0.0
            } else {
                0.5
            };
        }
    }
    won / pairs
}

fn parquet(rows: &[Row]) -> Vec<u8> {
    let texts =
        |value: fn(&Row) -> String| -> ArrayRef { Arc::new(StringArray::from_iter_values(rows.iter().map(value))) };
    let times = |value: fn(&Row) -> Timestamp| -> ArrayRef {
        let micros = rows.iter().map(|row| value(row).as_micros());
        Arc::new(TimestampMicrosecondArray::from_iter_values(micros).with_timezone("UTC"))
    };
    let probabilities = rows
        .iter()
        .map(|row| Some(vec![Some(1.0 - row.probability), Some(row.probability)]));
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("request_id", texts(|row| row.request_id.clone())),
        (
            "row",
            Arc::new(Int32Array::from_iter_values(rows.iter().map(|row| row.row))),
        ),
        ("event_time", times(|row| row.event_time)),
        ("received_at", times(|row| row.received_at)),
        ("model", texts(|_| MODEL.to_owned())),
        ("model_version", texts(|row| row.version.to_string())),
        ("role", texts(|row| row.role.to_owned())),
        ("protocol", texts(|_| "http".to_owned())),
        ("latency_us", Arc::new(Int64Array::from(vec![250; rows.len()]))),
        (
            "input_distance",
            Arc::new(rows.iter().map(|row| Some(row.distance)).collect::<Float64Array>()),
        ),
        ("input_carrier", texts(|row| row.carrier.to_owned())),
        (
            "output_label",
            Arc::new(Int64Array::from_iter_values(
                rows.iter().map(|row| i64::from(row.probability > 0.5)),
            )),
        ),
        (
            "output_probabilities",
            Arc::new(ListArray::from_iter_primitive::<Float64Type, _, _>(probabilities)),
        ),
    ];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.into_inner().unwrap()
}
