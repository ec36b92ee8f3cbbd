//! The registry and the orchestrator, as the tests play them.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use modelyard_common::rpc::{self, Channel};
use modelyard_proto::{
    orchestrator::v1::{
        FireTriggerRequest, FireTriggerResponse, ReportAlertRequest, ReportAlertResponse,
        rollout_service_server::{RolloutService, RolloutServiceServer},
        trigger_service_server::{TriggerService, TriggerServiceServer},
    },
    registry::v1::{
        CreateModelVersionRequest, CreateModelVersionResponse, CreateRunRequest, CreateRunResponse, DatasetInput,
        FinishRunRequest, FinishRunResponse, GetModelVersionRequest, GetModelVersionResponse, GetRunRequest,
        GetRunResponse, LogBatchRequest, LogBatchResponse, Metric, ModelVersion, Run, RunStatus, SetAliasRequest,
        SetAliasResponse,
        get_model_version_request::Selector,
        model_service_server::{ModelService, ModelServiceServer},
        run_service_server::{RunService, RunServiceServer},
    },
};
use parking_lot::Mutex;
use tonic::{Request, Response, Status, service::Routes};

/// A registry that knows the versions it was given.
#[derive(Clone, Default)]
pub struct Registry {
    pub versions: Arc<Mutex<HashMap<u32, ModelVersion>>>,
    pub away: Arc<AtomicBool>,
}

fn unused<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("monitoring does not call this"))
}

impl Registry {
    pub fn channel(&self) -> Channel {
        let routes =
            Routes::new(ModelServiceServer::new(self.clone())).add_service(RunServiceServer::new(self.clone()));
        rpc::local(routes)
    }

    fn check(&self) -> Result<(), Status> {
        if self.away.load(Ordering::SeqCst) {
            Err(Status::unavailable("away"))
        } else {
            Ok(())
        }
    }
}

#[async_trait]
impl ModelService for Registry {
    async fn create_model_version(
        &self,
        _: Request<CreateModelVersionRequest>,
    ) -> Result<Response<CreateModelVersionResponse>, Status> {
        unused()
    }

    async fn get_model_version(
        &self,
        request: Request<GetModelVersionRequest>,
    ) -> Result<Response<GetModelVersionResponse>, Status> {
        self.check()?;
        let request = request.into_inner();
        let Some(Selector::Version(version)) = request.selector else {
            return Err(Status::invalid_argument("monitoring asks for versions"));
        };
        let found = self
            .versions
            .lock()
            .get(&version)
            .filter(|found| found.name == request.name)
            .cloned();
        let model_version = Some(found.ok_or_else(|| Status::not_found("no such version"))?);
        Ok(Response::new(GetModelVersionResponse { model_version }))
    }

    async fn set_alias(&self, _: Request<SetAliasRequest>) -> Result<Response<SetAliasResponse>, Status> {
        unused()
    }
}

#[async_trait]
impl RunService for Registry {
    async fn create_run(&self, _: Request<CreateRunRequest>) -> Result<Response<CreateRunResponse>, Status> {
        unused()
    }

    async fn log_batch(&self, _: Request<LogBatchRequest>) -> Result<Response<LogBatchResponse>, Status> {
        unused()
    }

    async fn finish_run(&self, _: Request<FinishRunRequest>) -> Result<Response<FinishRunResponse>, Status> {
        unused()
    }

    async fn get_run(&self, request: Request<GetRunRequest>) -> Result<Response<GetRunResponse>, Status> {
        self.check()?;
        let run_id = request.into_inner().run_id;
        let run = Run {
            run_id,
            experiment: "flight-delay".to_owned(),
            name: "train".to_owned(),
            status: RunStatus::Finished.into(),
            start_time_us: 1_000_000,
            end_time_us: 2_000_000,
            metrics: vec![Metric {
                key: "auc".to_owned(),
                value: 0.7,
                ..Metric::default()
            }],
            inputs: vec![DatasetInput {
                name: "flights".to_owned(),
                version: 1,
                ..DatasetInput::default()
            }],
            ..Run::default()
        };
        Ok(Response::new(GetRunResponse { run: Some(run) }))
    }
}

/// An orchestrator that starts one pipeline run a key.
#[derive(Clone, Default)]
pub struct Orchestrator {
    pub away: Arc<AtomicBool>,
    pub calls: Arc<AtomicUsize>,
    pub fired: Arc<Mutex<HashMap<String, FireTriggerRequest>>>,
    /// The alerts that were told of, by their ids.
    pub told: Arc<Mutex<HashMap<String, ReportAlertRequest>>>,
}

impl Orchestrator {
    pub fn channel(&self) -> Channel {
        rpc::local(
            Routes::new(TriggerServiceServer::new(self.clone())).add_service(RolloutServiceServer::new(self.clone())),
        )
    }
}

#[async_trait]
impl TriggerService for Orchestrator {
    async fn fire_trigger(
        &self,
        request: Request<FireTriggerRequest>,
    ) -> Result<Response<FireTriggerResponse>, Status> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        if self.away.load(Ordering::SeqCst) {
            return Err(Status::unavailable("away"));
        }
        let request = request.into_inner();
        let pipeline_run_id = format!("run of {}", request.key);
        self.fired.lock().insert(request.key.clone(), request);
        Ok(Response::new(FireTriggerResponse { pipeline_run_id }))
    }
}

#[async_trait]
impl RolloutService for Orchestrator {
    async fn report_alert(
        &self,
        request: Request<ReportAlertRequest>,
    ) -> Result<Response<ReportAlertResponse>, Status> {
        let request = request.into_inner();
        self.told.lock().insert(request.alert.clone(), request);
        Ok(Response::new(ReportAlertResponse::default()))
    }
}
