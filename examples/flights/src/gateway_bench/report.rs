//! What the benchmark of the gateway prints.

use anyhow::Result;
use serde::Serialize;

use super::{
    beside::{Beside, CONNECTIONS},
    encoder::Encoder,
    large::Large,
    many::Many,
    memory::Memory,
    peers::Peer,
    small::Small,
};
use crate::{
    Format,
    figures::{at_least, at_most},
    print,
};

/// The bar: requests per second over those of the bare handler.
const MIN_SMALL: f64 = 0.7;
/// The bar: what is added to the raw session at p50.
const MAX_ADDED_US: f64 = 150.0;
/// The bar: CPU time a request over that of the bare handler and the raw session.
const MAX_SMALL_CPU: f64 = 1.4;
/// The bar: sequences per second over those of the raw session.
const MIN_ENCODER: f64 = 0.95;
/// The bar: CPU time a request over that of the bare handler and the raw session; batches have to save more than serving costs.
const MAX_MLP_CPU: f64 = 1.0;
/// The bar: the rate of large tensors over that of the handler that copies them.
const MIN_LARGE: f64 = 0.8;
/// The bar: resident memory at the end over that after a third of the time.
const MAX_GROWTH: f64 = 1.1;
/// Bytes of a megabyte.
const MEGABYTE: f64 = 1e6;
/// For percent.
const PERCENT: f64 = 100.0;

/// All that was measured.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Single rows to a gradient-boosted model.
    pub small: Option<Small>,
    /// Sequences to an encoder.
    pub encoder: Option<Encoder>,
    /// Single rows to a perceptron.
    pub mlp: Option<Beside>,
    /// Tensors of 10 MB.
    pub large: Option<Large>,
    /// The server's memory.
    pub memory: Option<Memory>,
    /// Many models.
    pub many: Option<Many>,
    /// Other servers.
    pub peers: Vec<Peer>,
}

impl Report {
    /// Requests that were refused, in all parts.
    pub fn failed_requests(&self) -> u64 {
        let small = self.small.as_ref();
        let parts = [
            small.map(|small| small.http.failed_requests + small.grpc.failed_requests),
            self.encoder.as_ref().map(|encoder| encoder.failed_requests),
            self.mlp.as_ref().map(|mlp| mlp.failed_requests),
            self.large.as_ref().map(|large| large.failed_requests),
            self.memory.as_ref().map(|memory| memory.failed_requests),
            self.many.as_ref().map(|many| many.failed_requests),
        ];
        let peers = self.peers.iter().map(|peer| peer.failed_requests);
        parts.into_iter().flatten().chain(peers).sum()
    }
}

/// Prints a report. A bar that is not met is marked.
pub fn show(report: &Report, format: Format) -> Result<()> {
    if format == Format::Json {
        return print(&serde_json::to_string_pretty(report)?);
    }
    let mut lines = Vec::new();
    lines.extend(report.small.iter().flat_map(small_lines));
    lines.extend(report.encoder.iter().flat_map(encoder_lines));
    lines.extend(report.mlp.iter().flat_map(mlp_lines));
    lines.extend(report.large.iter().map(large_line));
    lines.extend(report.memory.iter().map(memory_line));
    lines.extend(report.many.iter().flat_map(many_lines));
    lines.extend(report.peers.iter().map(peer_line));
    lines.push(if lines.is_empty() {
        "nothing was measured".to_owned()
    } else {
        format!("failed requests: {}", report.failed_requests())
    });
    lines.iter().try_for_each(|line| print(line))
}

fn small_lines(small: &Small) -> Vec<String> {
    let mut lines = vec![format!(
        "small: single rows of a gradient-boosted model of 30 features, {CONNECTIONS} connections, logged"
    )];
    let protocols = [
        ("HTTP with JSON, beside a bare axum handler", &small.http),
        ("gRPC with raw tensors, beside a bare tonic handler", &small.grpc),
    ];
    for (name, beside) in protocols {
        lines.push(format!(
            "  {name}: {:.2} of its requests per second ({}; rounds: {}), {:.0} a second",
            beside.throughput.median,
            at_least(beside.throughput.median, MIN_SMALL),
            beside.throughput.shown(),
            beside.requests_per_second
        ));
        lines.push(format!(
            "    {}",
            cpu_words(beside, &at_most(beside.cpu.median, MAX_SMALL_CPU, ""))
        ));
        lines.push(format!(
            "    added at p50 to the {:.1} µs of a raw session, one connection: {:.0} µs ({}); the bare handler takes {:.0} µs",
            small.raw_p50_us,
            beside.added_p50_us.median,
            at_most(beside.added_p50_us.median, MAX_ADDED_US, " µs"),
            beside.bare_p50_us
        ));
    }
    lines
}

/// The server's CPU time a request, and what it is compared with.
fn cpu_words(beside: &Beside, bar: &str) -> String {
    let [ours, bare, raw] = beside.cpu_us;
    format!(
        "server CPU: {ours:.1} µs a request, {:.2} of the bare handler's {bare:.1} µs and a raw run's {raw:.1} µs together ({bar}; rounds: {}); \
         the load took {:.0} % of the machine",
        beside.cpu.median,
        beside.cpu.shown(),
        beside.load_share * PERCENT
    )
}

fn encoder_lines(encoder: &Encoder) -> Vec<String> {
    let [ours, raw] = encoder.cpu_ms;
    let way = encoder.raw;
    vec![
        format!(
            "encoder: sequences of 32 tokens, {CONNECTIONS} connections, beside raw ONNX Runtime at its best ({} sessions of {} threads, \
             batches of {}): {:.2} of its sequences per second ({}; rounds: {}), {:.0} a second",
            way.sessions,
            way.threads,
            way.batch,
            encoder.plain.median,
            at_least(encoder.plain.median, MIN_ENCODER),
            encoder.plain.shown(),
            encoder.sequences_per_second
        ),
        format!(
            "  the load itself took {:.1} % of the machine, the raw session has none; over what that would do with the rest: {:.2} ({}); \
             CPU a sequence: {ours:.2} ms of the server, {raw:.2} ms raw",
            encoder.load_share * PERCENT,
            encoder.scaled.median,
            at_least(encoder.scaled.median, MIN_ENCODER)
        ),
    ]
}

fn mlp_lines(mlp: &Beside) -> Vec<String> {
    vec![
        format!(
            "mlp: single rows of a perceptron of 800,000 weights, binary over HTTP, {CONNECTIONS} connections, logged: {:.0} a second, {:.2} of \
             the requests per second of a bare handler, which predicts nothing",
            mlp.requests_per_second, mlp.throughput.median
        ),
        format!("  {}", cpu_words(mlp, &at_most(mlp.cpu.median, MAX_MLP_CPU, ""))),
    ]
}

fn large_line(large: &Large) -> String {
    let [ours, bare] = large.cpu_ms;
    format!(
        "large: tensors of 10 MB there and back, binary over HTTP, 4 connections, not logged, beside a handler that copies the body once: \
         {:.2} of its rate ({}; rounds: {}), {:.0} a second; server CPU: {ours:.1} ms a request, the handler's {bare:.1} ms",
        large.throughput.median,
        at_least(large.throughput.median, MIN_LARGE),
        large.throughput.shown(),
        large.requests_per_second
    )
}

fn memory_line(memory: &Memory) -> String {
    let parts: Vec<String> = memory
        .bytes
        .iter()
        .map(|bytes| format!("{:.0}", bytes / MEGABYTE))
        .collect();
    format!(
        "memory: {} requests of 1 to 64 rows or of 1 to 128 tokens in {:.0} s, 16 connections, logged: resident memory at the end {:.2} of that \
         after a third ({}; MB in each twelfth: {})",
        memory.requests,
        memory.seconds,
        memory.growth,
        at_most(memory.growth, MAX_GROWTH, ""),
        parts.join(" ")
    )
}

fn many_lines(many: &Many) -> Vec<String> {
    let [alone, beside] = many.p99_ms;
    let [alone_rate, all_rate] = many.requests_per_second;
    vec![
        format!(
            "many: {} endpoints with a model each, memory for a tenth, 16 connections: p99 of the five asked most {beside:.1} ms beside the others, \
             {alone:.1} ms without them, so {:.1} times (rounds: {})",
            many.models,
            many.p99.median,
            many.p99.shown()
        ),
        format!(
            "  p99 of the others: {:.0} ms; {all_rate:.0} requests a second, {alone_rate:.0} without the others; all registered after {:.1} s, ready \
             after {:.1} s",
            many.others_p99_ms, many.registered_seconds, many.ready_seconds
        ),
    ]
}

fn peer_line(peer: &Peer) -> String {
    let [ours, theirs] = peer.requests_per_second;
    let [our_p50, their_p50] = peer.p50_ms;
    format!(
        "{}: single rows of a gradient-boosted model as JSON, {CONNECTIONS} connections: the gateway answers {:.1} times its requests per second \
         (rounds: {}; {ours:.0} to {theirs:.0}), p50 {our_p50:.1} ms to {their_p50:.1} ms; its CPU time a request is {:.1} times the gateway's",
        peer.name,
        peer.throughput.median,
        peer.throughput.shown(),
        peer.cpu.median
    )
}
