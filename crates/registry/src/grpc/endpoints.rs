//! `EndpointService`.

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
        report::{EndpointReport, NodeReport, RouteReport, RouteState},
    },
    service::Update,
};

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
        unresolved: route.unresolved.clone().unwrap_or_default(),
    }
}

fn proto_endpoint(endpoint: &DesiredEndpoint) -> proto::Endpoint {
    proto::Endpoint {
        project: endpoint.key.project.clone(),
        name: endpoint.key.name.clone(),
        routes: endpoint.routes.iter().map(proto_route).collect(),
        log_predictions: endpoint.log_predictions,
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
}
