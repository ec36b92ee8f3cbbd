//! `RunService`.

use modelyard_common::Timestamp;
use modelyard_proto::registry::v1::{self as proto, run_service_server::RunService};
use tonic::{Request, Response, Status, async_trait};

use super::{Face, answer};
use crate::{
    error::{Error, Result},
    model::run::{Batch, MAX_PARAM_BYTES, MAX_TAG_BYTES, MetricPoint, MetricValue, Run, RunStatus, collect_texts},
    service::{InputRequest, RunRequest},
};

fn tags(tags: Vec<proto::Tag>) -> Result<std::collections::BTreeMap<String, String>> {
    collect_texts("tag", tags.into_iter().map(|tag| (tag.key, tag.value)), MAX_TAG_BYTES)
}

fn run_request(request: proto::CreateRunRequest) -> Result<RunRequest> {
    let inputs = request.inputs.into_iter().map(|input| InputRequest {
        dataset: input.name,
        version: input.version,
        context: input.context,
    });
    Ok(RunRequest {
        experiment: request.experiment,
        name: request.name,
        tags: tags(request.tags)?,
        inputs: inputs.collect(),
        idempotency_key: request.idempotency_key,
        ..RunRequest::default()
    })
}

fn batch(request: proto::LogBatchRequest) -> Result<Batch> {
    let params = request.params.into_iter().map(|param| (param.key, param.value));
    let metrics = request.metrics.into_iter().map(|metric| {
        let point = MetricPoint {
            value: MetricValue(metric.value),
            timestamp: Timestamp::from_micros(metric.timestamp_us),
            step: metric.step,
        };
        (metric.key, point)
    });
    Ok(Batch {
        params: collect_texts("param", params, MAX_PARAM_BYTES)?,
        metrics: metrics.collect(),
        tags: tags(request.tags)?,
        model_metrics: Vec::new(),
    })
}

fn status(status: proto::RunStatus) -> Option<RunStatus> {
    match status {
        proto::RunStatus::Unspecified => None,
        proto::RunStatus::Running => Some(RunStatus::Running),
        proto::RunStatus::Scheduled => Some(RunStatus::Scheduled),
        proto::RunStatus::Finished => Some(RunStatus::Finished),
        proto::RunStatus::Failed => Some(RunStatus::Failed),
        proto::RunStatus::Killed => Some(RunStatus::Killed),
    }
}

fn proto_status(status: RunStatus) -> proto::RunStatus {
    match status {
        RunStatus::Running => proto::RunStatus::Running,
        RunStatus::Scheduled => proto::RunStatus::Scheduled,
        RunStatus::Finished => proto::RunStatus::Finished,
        RunStatus::Failed => proto::RunStatus::Failed,
        RunStatus::Killed => proto::RunStatus::Killed,
    }
}

fn proto_run(run: Run) -> proto::Run {
    let params = run.params.into_iter().map(|(key, value)| proto::Param { key, value });
    let tags = run.tags.into_iter().map(|(key, value)| proto::Tag { key, value });
    let metrics = run.metrics.into_iter().map(|(key, point)| proto::Metric {
        key,
        value: point.value.0,
        timestamp_us: point.timestamp.as_micros(),
        step: point.step,
    });
    let inputs = run.inputs.into_iter().map(|input| proto::DatasetInput {
        name: input.dataset,
        version: input.version,
        digest: input.digest,
        context: input.context,
    });
    proto::Run {
        project: run.project,
        run_id: run.run_id,
        experiment_id: run.experiment_id,
        experiment: run.experiment,
        name: run.name,
        status: proto_status(run.status).into(),
        start_time_us: run.start_time.as_micros(),
        end_time_us: run.end_time.map_or(0, Timestamp::as_micros),
        params: params.collect(),
        metrics: metrics.collect(),
        tags: tags.collect(),
        inputs: inputs.collect(),
    }
}

#[async_trait]
impl RunService for Face {
    async fn create_run(
        &self,
        request: Request<proto::CreateRunRequest>,
    ) -> Result<Response<proto::CreateRunResponse>, Status> {
        let caller = self.caller(&request)?;
        let request = request.into_inner();
        let project = request.project.clone();
        let run = async { self.registry.create_run(&caller, &project, run_request(request)?).await }.await;
        answer(run.map(|run| proto::CreateRunResponse {
            run: Some(proto_run(run)),
        }))
    }

    async fn log_batch(
        &self,
        request: Request<proto::LogBatchRequest>,
    ) -> Result<Response<proto::LogBatchResponse>, Status> {
        let caller = self.caller(&request)?;
        let request = request.into_inner();
        let (project, run_id) = (request.project.clone(), request.run_id.clone());
        let logged = async {
            self.registry
                .log_batch(&caller, &project, &run_id, batch(request)?)
                .await
        }
        .await;
        answer(logged.map(|()| proto::LogBatchResponse {}))
    }

    async fn finish_run(
        &self,
        request: Request<proto::FinishRunRequest>,
    ) -> Result<Response<proto::FinishRunResponse>, Status> {
        let caller = self.caller(&request)?;
        let request = request.into_inner();
        let finished = async {
            let status = status(request.status())
                .ok_or_else(|| Error::request("status is missing: end the run as FINISHED, FAILED or KILLED"))?;
            let (project, run_id) = (&request.project, &request.run_id);
            self.registry.finish_run(&caller, project, run_id, status).await
        }
        .await;
        answer(finished.map(|run| proto::FinishRunResponse {
            run: Some(proto_run(run)),
        }))
    }

    async fn get_run(&self, request: Request<proto::GetRunRequest>) -> Result<Response<proto::GetRunResponse>, Status> {
        let caller = self.caller(&request)?;
        let request = request.into_inner();
        let run = self.registry.get_run(&caller, &request.project, &request.run_id).await;
        answer(run.map(|run| proto::GetRunResponse {
            run: Some(proto_run(run)),
        }))
    }
}
