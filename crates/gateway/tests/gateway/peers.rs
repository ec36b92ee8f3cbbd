//! The registry and monitoring of the tests: the generated service traits, implemented over what a test sets.

use std::{
    collections::HashSet,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use futures::{Stream, StreamExt as _};
use modelyard_common::rpc::{Channel, local};
use modelyard_proto::{
    monitoring::v1::{
        CommitSegmentRequest, CommitSegmentResponse,
        segment_service_server::{SegmentService, SegmentServiceServer},
    },
    registry::v1::{
        ChangeRolloutRequest, ChangeRolloutResponse, Delta, Endpoint, EndpointKey, EndpointStatus, GetEndpointRequest,
        GetEndpointResponse, ListRolloutsRequest, ListRolloutsResponse, ReportStatusRequest, ReportStatusResponse,
        ReportTrafficRequest, ReportTrafficResponse, Snapshot, VersionTraffic, WatchRequest, WatchResponse,
        endpoint_service_server::{EndpointService, EndpointServiceServer},
        watch_response::Update,
    },
};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status, service::Routes};

type State = (u64, Vec<Endpoint>);

/// A registry that holds endpoints, and can be away.
#[derive(Clone)]
pub struct Registry {
    state: watch::Sender<State>,
    reports: Arc<Mutex<Option<ReportStatusRequest>>>,
    traffic: Arc<Mutex<Option<ReportTrafficRequest>>>,
    away: Arc<AtomicBool>,
}

impl Registry {
    pub fn new(endpoints: Vec<Endpoint>) -> Self {
        Self {
            state: watch::Sender::new((1, endpoints)),
            reports: Arc::default(),
            traffic: Arc::default(),
            away: Arc::default(),
        }
    }

    pub fn channel(&self) -> Channel {
        local(Routes::new(EndpointServiceServer::new(self.clone())))
    }

    /// Replaces all endpoints.
    pub fn set(&self, endpoints: Vec<Endpoint>) {
        self.state.send_modify(|(revision, current)| {
            *revision += 1;
            *current = endpoints;
        });
    }

    pub fn leave(&self) {
        self.away.store(true, Ordering::SeqCst);
    }

    /// What the gateway told last about an endpoint.
    pub fn status(&self, name: &str) -> Option<EndpointStatus> {
        let reports = self.reports.lock();
        reports
            .as_ref()?
            .endpoints
            .iter()
            .find(|status| status.name == name)
            .cloned()
    }
}

impl Registry {
    /// What the gateway counted last of an endpoint's versions.
    pub fn traffic(&self, name: &str) -> Vec<VersionTraffic> {
        let traffic = self.traffic.lock();
        let endpoints = traffic.iter().flat_map(|traffic| &traffic.endpoints);
        let of_endpoint = endpoints.filter(|endpoint| endpoint.name == name);
        of_endpoint.flat_map(|endpoint| endpoint.versions.clone()).collect()
    }
}

fn keys(endpoints: &[Endpoint]) -> HashSet<(String, String)> {
    endpoints
        .iter()
        .map(|endpoint| (endpoint.project.clone(), endpoint.name.clone()))
        .collect()
}

#[tonic::async_trait]
impl EndpointService for Registry {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        if self.away.load(Ordering::SeqCst) {
            return Err(Status::unavailable("away"));
        }
        let since = request.into_inner().since_revision;
        let mut before: Option<State> = None;
        let updates = WatchStream::new(self.state.subscribe()).filter_map(move |(revision, endpoints)| {
            let update = match &before {
                None if since == revision => None,
                None => Some(Update::Snapshot(Snapshot {
                    endpoints: endpoints.clone(),
                })),
                Some((_, old)) => {
                    let now = keys(&endpoints);
                    let removed = keys(old).into_iter().filter(|key| !now.contains(key));
                    Some(Update::Delta(Delta {
                        changed: endpoints
                            .iter()
                            .filter(|endpoint| !old.contains(endpoint))
                            .cloned()
                            .collect(),
                        removed: removed.map(|(project, name)| EndpointKey { project, name }).collect(),
                    }))
                }
            };
            before = Some((revision, endpoints));
            std::future::ready(update.map(|update| {
                Ok(WatchResponse {
                    revision,
                    update: Some(update),
                })
            }))
        });
        Ok(Response::new(Box::pin(updates)))
    }

    async fn report_status(
        &self,
        request: Request<ReportStatusRequest>,
    ) -> Result<Response<ReportStatusResponse>, Status> {
        if self.away.load(Ordering::SeqCst) {
            return Err(Status::unavailable("away"));
        }
        *self.reports.lock() = Some(request.into_inner());
        Ok(Response::new(ReportStatusResponse {}))
    }

    async fn get_endpoint(&self, _: Request<GetEndpointRequest>) -> Result<Response<GetEndpointResponse>, Status> {
        Err(Status::unimplemented("the gateway watches"))
    }

    async fn report_traffic(
        &self,
        request: Request<ReportTrafficRequest>,
    ) -> Result<Response<ReportTrafficResponse>, Status> {
        *self.traffic.lock() = Some(request.into_inner());
        Ok(Response::new(ReportTrafficResponse {}))
    }

    async fn list_rollouts(&self, _: Request<ListRolloutsRequest>) -> Result<Response<ListRolloutsResponse>, Status> {
        Err(Status::unimplemented("the orchestrator asks"))
    }

    async fn change_rollout(
        &self,
        _: Request<ChangeRolloutRequest>,
    ) -> Result<Response<ChangeRolloutResponse>, Status> {
        Err(Status::unimplemented("the orchestrator asks"))
    }
}

/// A monitoring service that takes segments, or fails as it is told.
#[derive(Clone, Default)]
pub struct Monitoring {
    commits: Arc<Mutex<Vec<CommitSegmentRequest>>>,
    failures: Arc<AtomicUsize>,
    refuses: Arc<AtomicBool>,
}

impl Monitoring {
    pub fn channel(&self) -> Channel {
        local(Routes::new(SegmentServiceServer::new(self.clone())))
    }

    /// The next calls take the segment and answer that they did not.
    pub fn lose_answers(&self, count: usize) {
        self.failures.store(count, Ordering::SeqCst);
    }

    /// Whether segments are refused for good.
    pub fn refuse(&self, refuses: bool) {
        self.refuses.store(refuses, Ordering::SeqCst);
    }

    /// All calls that took a segment, also those whose answer was lost.
    pub fn commits(&self) -> Vec<CommitSegmentRequest> {
        self.commits.lock().clone()
    }
}

#[tonic::async_trait]
impl SegmentService for Monitoring {
    async fn commit_segment(
        &self,
        request: Request<CommitSegmentRequest>,
    ) -> Result<Response<CommitSegmentResponse>, Status> {
        if self.refuses.load(Ordering::SeqCst) {
            return Err(Status::invalid_argument("not this one"));
        }
        self.commits.lock().push(request.into_inner());
        let lost = self
            .failures
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
            .is_ok();
        if lost {
            return Err(Status::unavailable("the answer is lost"));
        }
        Ok(Response::new(CommitSegmentResponse {}))
    }
}
