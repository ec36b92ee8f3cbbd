//! Traces, metrics and probes as the tools of others see them.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use modelyard_testkit::wait;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
    trace_service_server::{TraceService, TraceServiceServer},
};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tonic::{Request, Response, Status};

use crate::deployment::{Deployment, Engine, Topology};

const PATIENCE: Duration = Duration::from_secs(30);

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// A collector that remembers the spans of one trace: the services that sent them, and their names.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<BTreeSet<String>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let trace: Vec<u8> = (0..TRACE.len())
            .step_by(2)
            .filter_map(|start| u8::from_str_radix(TRACE.get(start..start + 2)?, 16).ok())
            .collect();
        let spans = request
            .into_inner()
            .resource_spans
            .into_iter()
            .flat_map(|resource| resource.scope_spans);
        let names = spans
            .flat_map(|scope| scope.spans)
            .filter(|span| span.trace_id == trace)
            .map(|span| span.name);
        self.0
            .lock()
            .map_err(|_| Status::internal("the collector's lock is poisoned"))?
            .extend(names);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    async fn start() -> Result<(Self, SocketAddr)> {
        let collector = Self::default();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(collector.clone()));
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        #[expect(clippy::disallowed_methods, reason = "the collector ends with the test's runtime")]
        tokio::task::spawn(server.serve_with_incoming(incoming));
        Ok((collector, address))
    }

    fn names(&self) -> BTreeSet<String> {
        self.0.lock().map(|names| names.clone()).unwrap_or_default()
    }
}

/// A caller's trace goes on through HTTP, the calls between processes, and the jobs that they leave behind.
#[tokio::test(flavor = "multi_thread")]
async fn a_callers_trace_goes_on_through_all_processes_and_their_jobs() -> Result<()> {
    let (collector, address) = Collector::start().await?;
    let extra = format!("[telemetry]\notlp_endpoint = 'http://{address}'\n");
    let deployment = Deployment::start_with(Topology::Split, Engine::Sqlite, &extra).await?;
    let http = reqwest::Client::builder().timeout(PATIENCE).build()?;
    let project = format!("{}/api/v1/projects/default", deployment.url());
    let spec = json!({"steps": [{"name": "answer", "op": "value", "with": {"value": 42}}]});
    let traced =
        |request: reqwest::RequestBuilder| request.header("traceparent", format!("00-{TRACE}-00f067aa0ba902b7-01"));

    let declared = traced(http.put(format!("{project}/pipelines/traced")))
        .json(&spec)
        .send()
        .await?;
    ensure!(declared.status().is_success(), "{}", declared.text().await?);
    let run = traced(http.post(format!("{project}/pipelines/traced/runs")))
        .json(&json!({}))
        .send()
        .await?;
    ensure!(run.status().is_success(), "{}", run.text().await?);
    let run: Value = run.json().await?;
    let id = run
        .get("id")
        .and_then(Value::as_str)
        .context("the run has no id")?
        .to_owned();
    wait::until("the pipeline run has succeeded", PATIENCE, || async {
        let run: Value = http
            .get(format!("{project}/pipeline-runs/{id}"))
            .send()
            .await
            .ok()?
            .json()
            .await
            .ok()?;
        (run.get("status")? == "succeeded").then_some(())
    })
    .await;
    // A prediction is one, too, whatever comes of it.
    let asked = traced(http.post(format!("{}/v2/models/absent/infer", deployment.url())));
    let asked = asked.json(&json!({"inputs": []})).send().await?;
    ensure!(asked.status() == reqwest::StatusCode::NOT_FOUND, "{}", asked.status());
    wait::until(
        "the collector has the spans of the requests and of the job",
        PATIENCE,
        || async {
            let names = collector.names();
            let has = |word: &str| names.iter().any(|name| name.contains(word));
            (has("http.request") && has("job") && has("inference")).then_some(())
        },
    )
    .await;
    deployment.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_answer_on_both_listeners_and_metrics_on_the_internal_one_alone() -> Result<()> {
    let deployment = Deployment::start(Topology::AllInOne, Engine::Sqlite).await?;
    let http = reqwest::Client::builder().timeout(PATIENCE).build()?;
    let internal = deployment
        .internal_urls()
        .first()
        .copied()
        .unwrap_or_default()
        .to_owned();
    for listener in [deployment.url(), &internal] {
        for probe in ["livez", "readyz", "health"] {
            let answer = http.get(format!("{listener}/{probe}")).send().await?;
            ensure!(answer.status().is_success(), "{listener}/{probe}: {}", answer.status());
        }
    }
    let listed = http
        .get(format!("{}/api/v1/projects/default/models", deployment.url()))
        .send()
        .await?;
    ensure!(listed.status().is_success(), "{}", listed.text().await?);
    let metrics = http.get(format!("{internal}/metrics")).send().await?.text().await?;
    ensure!(
        metrics.contains("modelyard_http_request_duration_seconds_bucket{") && metrics.contains("/models"),
        "{metrics}"
    );
    let public = http.get(format!("{}/metrics", deployment.url())).send().await?;
    ensure!(public.status() == 404, "metrics are public: {}", public.status());
    deployment.stop().await
}
