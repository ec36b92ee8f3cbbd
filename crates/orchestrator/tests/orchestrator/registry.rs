//! A registry in memory, which can be away and can be slow.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use futures::stream::BoxStream;
use modelyard_common::rpc::{self, Channel};
use modelyard_proto::registry::v1::{
    ChangeRolloutRequest, ChangeRolloutResponse, CreateModelVersionRequest, CreateModelVersionResponse,
    CreateRunRequest, CreateRunResponse, DatasetVersion, FinishRunRequest, FinishRunResponse, GetDatasetVersionRequest,
    GetDatasetVersionResponse, GetEndpointRequest, GetEndpointResponse, GetModelVersionRequest,
    GetModelVersionResponse, GetRunRequest, GetRunResponse, ListRolloutsRequest, ListRolloutsResponse, LogBatchRequest,
    LogBatchResponse, ModelVersion, ReportStatusRequest, ReportStatusResponse, ReportTrafficRequest,
    ReportTrafficResponse, Rollout, Run, RunStatus, SetAliasRequest, SetAliasResponse, WatchRequest, WatchResponse,
    change_rollout_request::Change,
    dataset_service_server::{DatasetService, DatasetServiceServer},
    endpoint_service_server::{EndpointService, EndpointServiceServer},
    get_model_version_request::Selector,
    model_service_server::{ModelService, ModelServiceServer},
    run_service_server::{RunService, RunServiceServer},
};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status, service::Routes};

#[derive(Default)]
pub struct Contents {
    pub datasets: Vec<DatasetVersion>,
    pub runs: Vec<Run>,
    pub versions: Vec<ModelVersion>,
    pub aliases: BTreeMap<(String, String), u32>,
    pub rollouts: Vec<Rollout>,
    /// What was wanted of rollouts, in this order.
    pub changes: Vec<ChangeRolloutRequest>,
    keys: BTreeMap<String, usize>,
}

#[derive(Clone)]
pub struct FakeRegistry {
    pub contents: Arc<Mutex<Contents>>,
    /// Every call is answered with UNAVAILABLE.
    pub away: Arc<AtomicBool>,
    /// Calls, whatever their answer.
    pub calls: Arc<AtomicUsize>,
    /// Every call takes a permit: with none left, it hangs.
    pub permits: Arc<Semaphore>,
}

impl FakeRegistry {
    pub fn new() -> Self {
        Self {
            contents: Arc::default(),
            away: Arc::default(),
            calls: Arc::default(),
            permits: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)),
        }
    }

    pub fn channel(&self) -> Channel {
        let routes = Routes::new(DatasetServiceServer::new(self.clone()))
            .add_service(RunServiceServer::new(self.clone()))
            .add_service(ModelServiceServer::new(self.clone()))
            .add_service(EndpointServiceServer::new(self.clone()));
        rpc::local(routes)
    }

    async fn enter(&self) -> Result<(), Status> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.permits.acquire().await.unwrap().forget();
        if self.away.load(Ordering::SeqCst) {
            return Err(Status::unavailable("the registry is away"));
        }
        Ok(())
    }
}

#[async_trait]
impl DatasetService for FakeRegistry {
    async fn get_dataset_version(
        &self,
        request: Request<GetDatasetVersionRequest>,
    ) -> Result<Response<GetDatasetVersionResponse>, Status> {
        self.enter().await?;
        let request = request.into_inner();
        let contents = self.contents.lock();
        let mut versions = contents.datasets.iter().filter(|version| version.name == request.name);
        let found = match request.version {
            0 => versions.next_back(),
            wanted => versions.find(|version| version.version == wanted),
        };
        let found = found.ok_or_else(|| Status::not_found(format!("dataset `{}` does not exist", request.name)))?;
        Ok(Response::new(GetDatasetVersionResponse {
            dataset_version: Some(found.clone()),
        }))
    }
}

#[async_trait]
impl RunService for FakeRegistry {
    async fn create_run(&self, request: Request<CreateRunRequest>) -> Result<Response<CreateRunResponse>, Status> {
        self.enter().await?;
        let request = request.into_inner();
        let mut contents = self.contents.lock();
        let known = contents.keys.get(&request.idempotency_key).copied();
        let place = if let Some(place) = known {
            place
        } else {
            let place = contents.runs.len();
            contents.keys.insert(request.idempotency_key, place);
            contents.runs.push(Run {
                project: request.project,
                run_id: format!("run-{place}"),
                experiment: request.experiment,
                name: request.name,
                status: RunStatus::Running.into(),
                start_time_us: 1_000_000,
                tags: request.tags,
                inputs: request.inputs,
                ..Run::default()
            });
            place
        };
        let run = Some(contents.runs[place].clone());
        Ok(Response::new(CreateRunResponse { run }))
    }

    async fn log_batch(&self, request: Request<LogBatchRequest>) -> Result<Response<LogBatchResponse>, Status> {
        self.enter().await?;
        let request = request.into_inner();
        let mut contents = self.contents.lock();
        let run = contents
            .runs
            .iter_mut()
            .find(|run| run.run_id == request.run_id)
            .unwrap();
        for param in request.params {
            match run.params.iter().find(|known| known.key == param.key) {
                Some(known) if known.value != param.value => return Err(Status::already_exists("params never change")),
                Some(_) => {}
                None => run.params.push(param),
            }
        }
        for metric in request.metrics {
            if !run.metrics.contains(&metric) {
                run.metrics.push(metric);
            }
        }
        Ok(Response::new(LogBatchResponse {}))
    }

    async fn finish_run(&self, request: Request<FinishRunRequest>) -> Result<Response<FinishRunResponse>, Status> {
        self.enter().await?;
        let request = request.into_inner();
        let mut contents = self.contents.lock();
        let run = contents
            .runs
            .iter_mut()
            .find(|run| run.run_id == request.run_id)
            .unwrap();
        run.status = request.status;
        Ok(Response::new(FinishRunResponse { run: Some(run.clone()) }))
    }

    async fn get_run(&self, _: Request<GetRunRequest>) -> Result<Response<GetRunResponse>, Status> {
        Err(Status::unimplemented("no step asks for it"))
    }
}

#[async_trait]
impl ModelService for FakeRegistry {
    async fn create_model_version(
        &self,
        request: Request<CreateModelVersionRequest>,
    ) -> Result<Response<CreateModelVersionResponse>, Status> {
        self.enter().await?;
        let request = request.into_inner();
        let mut contents = self.contents.lock();
        let known = contents.keys.get(&request.idempotency_key).copied();
        let place = if let Some(place) = known {
            place
        } else {
            let place = contents.versions.len();
            let of_model = contents
                .versions
                .iter()
                .filter(|version| version.name == request.name)
                .count();
            contents.keys.insert(request.idempotency_key, place);
            contents.versions.push(ModelVersion {
                project: request.project,
                name: request.name,
                version: of_model as u32 + 1,
                format: request.format,
                artifact_digest: request.artifact_digest,
                signature_json: request.signature_json,
                reference_profile_digest: request.reference_profile_digest,
                metrics: request.metrics,
                run_id: request.run_id,
                dataset: request.dataset,
                dataset_version: request.dataset_version,
                tags: request.tags,
                training_rows: request.training_rows,
                ..ModelVersion::default()
            });
            place
        };
        let model_version = Some(contents.versions[place].clone());
        Ok(Response::new(CreateModelVersionResponse { model_version }))
    }

    async fn get_model_version(
        &self,
        request: Request<GetModelVersionRequest>,
    ) -> Result<Response<GetModelVersionResponse>, Status> {
        self.enter().await?;
        let request = request.into_inner();
        let contents = self.contents.lock();
        let wanted = match request.selector.unwrap() {
            Selector::Version(version) => Some(version),
            Selector::Alias(alias) => contents.aliases.get(&(request.name.clone(), alias)).copied(),
        };
        let mut versions = contents.versions.iter();
        let found = versions.find(|version| version.name == request.name && Some(version.version) == wanted);
        let found = found.ok_or_else(|| Status::not_found("there is no such version"))?;
        Ok(Response::new(GetModelVersionResponse {
            model_version: Some(found.clone()),
        }))
    }

    async fn set_alias(&self, request: Request<SetAliasRequest>) -> Result<Response<SetAliasResponse>, Status> {
        self.enter().await?;
        let request = request.into_inner();
        let mut contents = self.contents.lock();
        let previous = contents.aliases.insert((request.name, request.alias), request.version);
        Ok(Response::new(SetAliasResponse {
            previous_version: previous.unwrap_or(0),
        }))
    }
}

/// Rollouts are asked for all the time, so that these calls are not counted with the others.
#[async_trait]
impl EndpointService for FakeRegistry {
    type WatchStream = BoxStream<'static, Result<WatchResponse, Status>>;

    async fn list_rollouts(&self, _: Request<ListRolloutsRequest>) -> Result<Response<ListRolloutsResponse>, Status> {
        let rollouts = self.contents.lock().rollouts.clone();
        Ok(Response::new(ListRolloutsResponse { rollouts }))
    }

    async fn change_rollout(
        &self,
        request: Request<ChangeRolloutRequest>,
    ) -> Result<Response<ChangeRolloutResponse>, Status> {
        let request = request.into_inner();
        let mut contents = self.contents.lock();
        contents.changes.push(request.clone());
        let place = contents
            .rollouts
            .iter()
            .position(|rollout| rollout.revision == request.revision);
        let Some(place) = place else {
            return Err(Status::failed_precondition("it is over"));
        };
        match request.change {
            Some(Change::Share(share)) => contents.rollouts[place].share = share,
            _ => drop(contents.rollouts.remove(place)),
        }
        Ok(Response::new(ChangeRolloutResponse {}))
    }

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("gateways watch"))
    }

    async fn report_status(&self, _: Request<ReportStatusRequest>) -> Result<Response<ReportStatusResponse>, Status> {
        Err(Status::unimplemented("gateways report"))
    }

    async fn report_traffic(
        &self,
        _: Request<ReportTrafficRequest>,
    ) -> Result<Response<ReportTrafficResponse>, Status> {
        Err(Status::unimplemented("gateways report"))
    }

    async fn get_endpoint(&self, _: Request<GetEndpointRequest>) -> Result<Response<GetEndpointResponse>, Status> {
        Err(Status::unimplemented("rollouts are all that is asked for"))
    }
}
