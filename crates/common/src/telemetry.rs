//! Logs, traces and metrics: one set-up for every process.

use std::{io::IsTerminal, sync::OnceLock, time::Duration};

use http::{HeaderMap, HeaderValue};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use opentelemetry::{propagation::TextMapPropagator, trace::TracerProvider as _};
use opentelemetry_http::{HeaderExtractor, HeaderInjector};
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{Sampler, SdkTracerProvider},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, util::SubscriberInitExt};

/// Seconds that HTTP requests took, by method, route and status.
pub const HTTP_DURATION: &str = "modelyard_http_request_duration_seconds";

/// Bounds of the buckets of all histograms of seconds.
const SECONDS_BUCKETS: [f64; 16] = [
    0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// How long the last spans may take to leave at the end.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

const TRACEPARENT: &str = "traceparent";

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people on a terminal, JSON otherwise.
    #[default]
    Auto,
    /// One readable line an event.
    Text,
    /// One JSON object an event.
    Json,
}

/// Logs and traces.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Which events are logged, in the syntax of `RUST_LOG`, for example `info,modelyard_gateway=debug`.
    pub log: String,
    /// How they are written.
    pub log_format: LogFormat,
    /// Where spans go: the address of an OTLP collector over gRPC, for example `http://127.0.0.1:4317`. None: nowhere.
    pub otlp_endpoint: Option<String>,
    /// Share of the traces that begin here and are sent, 0 to 1.
    pub trace_sample_share: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            log: "info,ort=warn".to_owned(),
            log_format: LogFormat::Auto,
            otlp_endpoint: None,
            trace_sample_share: 1.0,
        }
    }
}

/// Telemetry that could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is not one.
    #[error("`{filter}` is not a log filter ({message}): write it as in `info,modelyard_gateway=debug`")]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        message: String,
    },
    /// The collector's address is not one.
    #[error("traces cannot be sent to `{endpoint}` ({message}): write it as http://HOST:PORT")]
    Collector {
        /// What was given.
        endpoint: String,
        /// What is wrong with it.
        message: String,
    },
    /// A second set-up in one process.
    #[error("telemetry was set up twice")]
    Twice,
}

/// Keeps telemetry alive; sends what is left when it is dropped.
pub struct Guard {
    provider: SdkTracerProvider,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Err(error) = self.provider.shutdown_with_timeout(FLUSH_TIMEOUT) {
            tracing::debug!(%error, "the last spans could not be sent");
        }
    }
}

/// Sets up logs (on standard error), traces and metrics for this process.
pub fn init(config: &Config, service: &str) -> Result<Guard, TelemetryError> {
    let filter = EnvFilter::try_new(&config.log).map_err(|error| TelemetryError::Filter {
        filter: config.log.clone(),
        message: error.to_string(),
    })?;
    let provider = tracer_provider(config, service)?;
    let spans = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("modelyard"))
        .with_filter(tracing_subscriber::filter::LevelFilter::INFO);
    let json = match config.log_format {
        LogFormat::Auto => !std::io::stderr().is_terminal(),
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    let logs = if json {
        tracing_subscriber::fmt::layer()
            .json()
            .flatten_event(true)
            .with_writer(std::io::stderr)
            .boxed()
    } else {
        tracing_subscriber::fmt::layer()
            .with_target(false)
            .with_writer(std::io::stderr)
            .boxed()
    };
    tracing_subscriber::registry()
        .with(logs.with_filter(filter))
        .with(spans)
        .try_init()
        .map_err(|_| TelemetryError::Twice)?;
    prometheus();
    Ok(Guard { provider })
}

/// Without a collector spans are not sampled, but a caller's trace context still passes through.
fn tracer_provider(config: &Config, service: &str) -> Result<SdkTracerProvider, TelemetryError> {
    let resource = Resource::builder().with_service_name(service.to_owned()).build();
    let builder = SdkTracerProvider::builder().with_resource(resource);
    let Some(endpoint) = &config.otlp_endpoint else {
        return Ok(builder.with_sampler(Sampler::AlwaysOff).build());
    };
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .build()
        .map_err(|error| TelemetryError::Collector {
            endpoint: endpoint.clone(),
            message: error.to_string(),
        })?;
    let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.trace_sample_share)));
    Ok(builder.with_sampler(sampler).with_batch_exporter(exporter).build())
}

static PROMETHEUS: OnceLock<Option<PrometheusHandle>> = OnceLock::new();

/// Installs the recorder of metrics once.
fn prometheus() -> Option<&'static PrometheusHandle> {
    PROMETHEUS
        .get_or_init(|| {
            PrometheusBuilder::new()
                .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS_BUCKETS)
                .and_then(PrometheusBuilder::install_recorder)
                .inspect_err(|error| tracing::warn!(%error, "metrics are not recorded"))
                .ok()
        })
        .as_ref()
}

/// The metrics in Prometheus' text format.
#[must_use]
pub fn render_metrics() -> String {
    prometheus().map(PrometheusHandle::render).unwrap_or_default()
}

/// Moves observations of histograms into their buckets; to be called every few seconds, so that memory stays bounded
/// between two scrapes.
pub fn upkeep_metrics() {
    if let Some(handle) = prometheus() {
        handle.run_upkeep();
    }
}

/// Makes `span` a child of the trace that the headers carry, if they carry one.
pub fn continue_trace(span: &Span, headers: &HeaderMap<HeaderValue>) {
    if headers.contains_key(TRACEPARENT) && !span.is_disabled() {
        let parent = TraceContextPropagator::new().extract(&HeaderExtractor(headers));
        // Fails only where no exporter layer is installed, as in tests.
        let _ = span.set_parent(parent);
    }
}

/// Writes the present span's trace context into the headers of a request.
pub fn inject_trace(headers: &mut HeaderMap<HeaderValue>) {
    let context = Span::current().context();
    TraceContextPropagator::new().inject_context(&context, &mut HeaderInjector(headers));
}

/// The present span's trace context as the value of `traceparent`, to be stored with a job.
#[must_use]
pub fn current_trace() -> Option<String> {
    let mut headers = HeaderMap::new();
    inject_trace(&mut headers);
    let value = headers.get(TRACEPARENT)?;
    value.to_str().ok().map(str::to_owned)
}

/// Makes `span` a child of a stored trace context.
pub fn resume_trace(span: &Span, traceparent: Option<&str>) {
    let Some(value) = traceparent.and_then(|text| HeaderValue::from_str(text).ok()) else {
        return;
    };
    let mut headers = HeaderMap::new();
    headers.insert(TRACEPARENT, value);
    continue_trace(span, &headers);
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    #[test]
    fn a_trace_crosses_headers_and_jobs() {
        let provider = SdkTracerProvider::builder().with_sampler(Sampler::AlwaysOff).build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let span = tracing::info_span!("outer");
            resume_trace(&span, Some(&format!("00-{TRACE}-00f067aa0ba902b7-01")));
            let _entered = span.enter();
            let stored = current_trace().unwrap();
            assert!(stored.contains(TRACE), "{stored}");
            let inner = tracing::info_span!(parent: None, "inner");
            resume_trace(&inner, Some(&stored));
            let _entered = inner.enter();
            assert!(current_trace().unwrap().contains(TRACE));
        });
    }

    #[test]
    fn metrics_are_rendered_for_prometheus() {
        prometheus();
        metrics::histogram!(HTTP_DURATION, "route" => "/test").record(0.02);
        metrics::counter!("modelyard_test_total").increment(3);
        let text = render_metrics();
        assert!(text.contains("modelyard_test_total 3"), "{text}");
        assert!(text.contains("le=\"0.025\""), "{text}");
    }
}
