//! `EndpointService`.

use std::time::Duration;

use futures::{StreamExt, stream::BoxStream};
use modelyard_common::Timestamp;
use modelyard_proto::registry::v1::{
    self as proto, endpoint_service_server::EndpointService, watch_response::Update as ProtoUpdate,
};
use tonic::{Request, Response, Status, async_trait};

use super::{Face, answer, filled};
use crate::{
    error::{Error, Result},
    model::{
        desired::{DesiredEndpoint, Route, RouteRole},
        endpoint::EndpointKey,
        endpoint_options::{Attribute, BatchingSpec, Condition, LimitsSpec, LogSpec},
        report::{EndpointReport, NodeReport, RouteReport, RouteState, TrafficReport, VersionTraffic},
    },
    service::Update,
    store::{OnItsWay, TrafficChange},
};

fn proto_attribute(attribute: Attribute) -> proto::Attribute {
    use proto::attribute::Source;
    let source = match attribute {
        // Names of headers are compared without regard to case; over HTTP/2 they are in lower case.
        Attribute::Header(name) => Source::Header(name.to_ascii_lowercase()),
        Attribute::Parameter(name) => Source::Parameter(name),
    };
    proto::Attribute { source: Some(source) }
}

fn proto_condition(condition: &Condition) -> proto::Condition {
    proto::Condition {
        attribute: condition.attribute().map(proto_attribute),
        equals: condition.equals.clone(),
    }
}

fn proto_log(log: &LogSpec) -> proto::Log {
    proto::Log {
        predictions: log.predictions,
        sample: log.sample,
        redact: log.redact.clone(),
        max_record_bytes: log.max_record_bytes.unwrap_or_default(),
    }
}

fn proto_batching(batching: &BatchingSpec) -> proto::Batching {
    let ragged = batching.ragged.iter().map(|ragged| proto::RaggedAxis {
        tensor: ragged.tensor.clone(),
        axis: ragged.axis,
        fill: ragged.fill,
    });
    proto::Batching {
        max_rows: batching.max_rows.unwrap_or_default(),
        max_delay_us: batching.max_delay.map(micros).unwrap_or_default(),
        ragged: ragged.collect(),
    }
}

fn proto_limits(limits: &LimitsSpec) -> proto::Limits {
    proto::Limits {
        timeout_ms: limits.timeout.map(millis).unwrap_or_default(),
        max_queued_requests: limits.max_queued_requests.unwrap_or_default(),
        max_queue_time_ms: limits.max_queue_time.map(millis).unwrap_or_default(),
    }
}

/// At least one: zero would mean the default.
fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1)
}

fn proto_route(route: &Route) -> proto::Route {
    let role = match route.role {
        RouteRole::Live => proto::RouteRole::Live,
        RouteRole::Shadow => proto::RouteRole::Shadow,
    };
    proto::Route {
        role: role.into(),
        reference: route.reference.clone(),
        weight: route.weight,
        sample: route.sample,
        model: route.model.clone().unwrap_or_default(),
        version: route.version.unwrap_or_default(),
        artifact_digest: route.artifact_digest.clone().unwrap_or_default(),
        artifact_size_bytes: route.artifact_size_bytes.unwrap_or_default(),
        bundle_digest: route.bundle_digest.clone().unwrap_or_default(),
        unresolved: route.unresolved.clone().unwrap_or_default(),
        when: route.when.iter().map(proto_condition).collect(),
    }
}

fn proto_endpoint(endpoint: &DesiredEndpoint) -> proto::Endpoint {
    let spec = &endpoint.spec;
    proto::Endpoint {
        project: endpoint.key.project.clone(),
        name: endpoint.key.name.clone(),
        routes: endpoint.routes.iter().map(proto_route).collect(),
        log: Some(proto_log(&spec.log)),
        sticky: spec.sticky.clone().map(proto_attribute),
        cache: spec.cache.as_ref().map(|cache| proto::Cache {
            time_to_live_ms: millis(cache.time_to_live),
        }),
        batching: Some(proto_batching(&spec.batching)),
        limits: Some(proto_limits(&spec.limits)),
        unload_after_ms: spec.unload_after.map(millis).unwrap_or_default(),
        in_rollout: endpoint.in_rollout,
    }
}

fn proto_update(update: &Update) -> proto::WatchResponse {
    let (revision, update) = match update {
        Update::Snapshot(state) => {
            let endpoints = state.endpoints.values().map(|endpoint| proto_endpoint(endpoint));
            let endpoints = endpoints.collect();
            (state.revision, ProtoUpdate::Snapshot(proto::Snapshot { endpoints }))
        }
        Update::Delta { revision, difference } => {
            let changed = difference.changed.iter().map(|endpoint| proto_endpoint(endpoint));
            let removed = difference.removed.iter().map(|key| proto::EndpointKey {
                project: key.project.clone(),
                name: key.name.clone(),
            });
            let delta = proto::Delta {
                changed: changed.collect(),
                removed: removed.collect(),
            };
            (*revision, ProtoUpdate::Delta(delta))
        }
        Update::Heartbeat { revision } => (*revision, ProtoUpdate::Heartbeat(proto::Heartbeat {})),
    };
    proto::WatchResponse {
        revision,
        update: Some(update),
    }
}

fn route_report(route: proto::RouteStatus) -> Result<RouteReport> {
    let role = match route.role() {
        proto::RouteRole::Live => RouteRole::Live,
        proto::RouteRole::Shadow => RouteRole::Shadow,
        proto::RouteRole::Unspecified => return Err(Error::request("a reported route has no role: give it one")),
    };
    let state = match route.state() {
        proto::RouteState::Loading => RouteState::Loading,
        proto::RouteState::Ready => RouteState::Ready,
        proto::RouteState::Failed => RouteState::Failed,
        proto::RouteState::Unspecified => return Err(Error::request("a reported route has no state: give it one")),
    };
    Ok(RouteReport {
        role,
        state,
        model: route.model,
        version: route.version,
        message: route.message,
    })
}

fn node_report(request: proto::ReportStatusRequest) -> Result<NodeReport> {
    let endpoint = |endpoint: proto::EndpointStatus| {
        Ok(EndpointReport {
            key: EndpointKey {
                project: filled(endpoint.project).unwrap_or_else(|| "default".to_owned()),
                name: endpoint.name,
            },
            routes: endpoint.routes.into_iter().map(route_report).collect::<Result<_>>()?,
            serving: endpoint.serving,
        })
    };
    Ok(NodeReport {
        node: request.node,
        revision: request.revision,
        reported_at: Timestamp::MIN,
        endpoints: request.endpoints.into_iter().map(endpoint).collect::<Result<_>>()?,
    })
}

fn traffic_reports(request: proto::ReportTrafficRequest) -> Vec<TrafficReport> {
    let version = |version: proto::VersionTraffic| VersionTraffic {
        model: version.model,
        version: version.version,
        answered: version.answered,
        failed: version.failed,
        latency_buckets: version.latency_buckets,
    };
    let (node, process) = (request.node, request.process);
    let each = request.endpoints.into_iter().map(|endpoint| TrafficReport {
        node: node.clone(),
        process: process.clone(),
        key: EndpointKey {
            project: endpoint.project,
            name: endpoint.name,
        },
        versions: endpoint.versions.into_iter().map(version).collect(),
    });
    each.collect()
}

fn proto_rollout(found: OnItsWay) -> Result<Option<proto::Rollout>> {
    // Rules that were taken away meanwhile end the rollout with the next change.
    let (Some(rules), Some(candidate)) = (&found.spec.rollout, &found.traffic.candidate) else {
        return Ok(None);
    };
    let version = |version: VersionTraffic| proto::VersionTraffic {
        model: version.model,
        version: version.version,
        answered: version.answered,
        failed: version.failed,
        latency_buckets: version.latency_buckets,
    };
    let node = |report: TrafficReport| proto::NodeTraffic {
        node: report.node,
        process: report.process,
        versions: report.versions.into_iter().map(version).collect(),
    };
    Ok(Some(proto::Rollout {
        rules_json: to_json(rules)?,
        stable_json: to_json(&found.traffic.stable)?,
        candidate_json: to_json(&candidate.routes)?,
        revision: candidate.revision,
        share: candidate.share,
        project: found.key.project,
        endpoint: found.key.name,
        nodes: found.reports.into_iter().map(node).collect(),
    }))
}

fn to_json(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|error| Error::request(format!("a rollout cannot be written: {error}")))
}

#[async_trait]
impl EndpointService for Face {
    type WatchStream = BoxStream<'static, Result<proto::WatchResponse, Status>>;

    async fn watch(&self, request: Request<proto::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let caller = self.caller(&request)?;
        let request = request.into_inner();
        let updates = self
            .registry
            .watch(&caller, &request.node, request.since_revision)
            .await;
        answer(updates.map(|updates| updates.map(|update| Ok(proto_update(&update))).boxed()))
    }

    async fn report_status(
        &self,
        request: Request<proto::ReportStatusRequest>,
    ) -> Result<Response<proto::ReportStatusResponse>, Status> {
        let caller = self.caller(&request)?;
        let report = node_report(request.into_inner());
        let saved = async { self.registry.report_status(&caller, report?).await }.await;
        answer(saved.map(|()| proto::ReportStatusResponse {}))
    }

    async fn get_endpoint(
        &self,
        request: Request<proto::GetEndpointRequest>,
    ) -> Result<Response<proto::GetEndpointResponse>, Status> {
        let caller = self.caller(&request)?;
        let request = request.into_inner();
        let endpoint = self
            .registry
            .get_desired_endpoint(&caller, &request.project, &request.name)
            .await;
        answer(endpoint.map(|endpoint| proto::GetEndpointResponse {
            endpoint: Some(proto_endpoint(&endpoint)),
        }))
    }

    async fn report_traffic(
        &self,
        request: Request<proto::ReportTrafficRequest>,
    ) -> Result<Response<proto::ReportTrafficResponse>, Status> {
        let caller = self.caller(&request)?;
        let reports = traffic_reports(request.into_inner());
        let saved = self.registry.report_traffic(&caller, reports).await;
        answer(saved.map(|()| proto::ReportTrafficResponse {}))
    }

    async fn list_rollouts(
        &self,
        request: Request<proto::ListRolloutsRequest>,
    ) -> Result<Response<proto::ListRolloutsResponse>, Status> {
        let caller = self.caller(&request)?;
        let found = self.registry.list_rollouts(&caller).await.and_then(|found| {
            let each = found.into_iter().filter_map(|found| proto_rollout(found).transpose());
            each.collect::<Result<_>>()
        });
        answer(found.map(|rollouts| proto::ListRolloutsResponse { rollouts }))
    }

    async fn change_rollout(
        &self,
        request: Request<proto::ChangeRolloutRequest>,
    ) -> Result<Response<proto::ChangeRolloutResponse>, Status> {
        use proto::change_rollout_request::Change;
        let caller = self.caller(&request)?;
        let request = request.into_inner();
        let revision = request.revision;
        let (change, reason) = match request.change {
            Some(Change::Share(share)) => (Some(TrafficChange::Share(revision, share)), String::new()),
            Some(Change::Promote(reason)) => (Some(TrafficChange::Promote(revision)), reason),
            Some(Change::Reject(reason)) => (Some(TrafficChange::Reject(revision)), reason),
            None => (None, String::new()),
        };
        let changed = self
            .registry
            .change_rollout(&caller, &request.project, &request.endpoint, change, &reason)
            .await;
        answer(changed.map(|()| proto::ChangeRolloutResponse {}))
    }
}
