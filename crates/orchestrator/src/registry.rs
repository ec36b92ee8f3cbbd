//! The registry, as the steps call it.

use std::{future::Future, time::Duration};

use modelyard_common::{
    error::RemoteError,
    rpc::{Channel, MAX_MESSAGE_BYTES},
};
use modelyard_proto::registry::v1::{
    ChangeRolloutRequest, CreateModelVersionRequest, CreateRunRequest, DatasetVersion, FinishRunRequest,
    GetDatasetVersionRequest, GetModelVersionRequest, ListRolloutsRequest, LogBatchRequest, ModelVersion, Rollout, Run,
    RunStatus, SetAliasRequest, dataset_service_client::DatasetServiceClient,
    endpoint_service_client::EndpointServiceClient, get_model_version_request::Selector,
    model_service_client::ModelServiceClient, run_service_client::RunServiceClient,
};
use tonic::{Request, Response, Status};

/// The longest that one call may take.
const CALL_DEADLINE: Duration = Duration::from_secs(20);

/// A client of the registry, cheap to clone.
#[derive(Clone)]
pub(crate) struct Registry {
    datasets: DatasetServiceClient<Channel>,
    runs: RunServiceClient<Channel>,
    models: ModelServiceClient<Channel>,
    endpoints: EndpointServiceClient<Channel>,
    channel: Channel,
}

fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL_DEADLINE);
    request
}

/// Waits for the answer a little longer than the server may take: a connection can hang, too.
async fn answer<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, RemoteError> {
    match tokio::time::timeout(CALL_DEADLINE + Duration::from_secs(1), call).await {
        Ok(result) => Ok(result?.into_inner()),
        Err(_) => Err(Status::deadline_exceeded("the registry did not answer in time").into()),
    }
}

/// A part of an answer that must be there.
fn present<T>(part: Option<T>) -> Result<T, RemoteError> {
    part.ok_or_else(|| {
        Status::data_loss("the registry's answer lacks its main part: run the same version of both").into()
    })
}

impl Registry {
    pub(crate) fn new(channel: Channel) -> Self {
        Self {
            datasets: DatasetServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES),
            runs: RunServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES),
            models: ModelServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES),
            endpoints: EndpointServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES),
            channel,
        }
    }

    /// The same, for somebody.
    pub(crate) fn acting_for(&self, principal: &str) -> Self {
        Self::new(self.channel.acting_for(principal))
    }

    /// A version of a dataset; 0: the newest.
    pub(crate) async fn dataset_version(
        &self,
        project: &str,
        name: &str,
        version: u32,
    ) -> Result<DatasetVersion, RemoteError> {
        let message = GetDatasetVersionRequest {
            project: project.to_owned(),
            name: name.to_owned(),
            version,
        };
        let mut client = self.datasets.clone();
        let response = answer(client.get_dataset_version(request(message))).await?;
        present(response.dataset_version)
    }

    pub(crate) async fn create_run(&self, message: CreateRunRequest) -> Result<Run, RemoteError> {
        let mut client = self.runs.clone();
        present(answer(client.create_run(request(message))).await?.run)
    }

    pub(crate) async fn log_batch(&self, message: LogBatchRequest) -> Result<(), RemoteError> {
        let mut client = self.runs.clone();
        answer(client.log_batch(request(message))).await.map(drop)
    }

    pub(crate) async fn finish_run(&self, project: &str, run_id: &str, status: RunStatus) -> Result<(), RemoteError> {
        let message = FinishRunRequest {
            project: project.to_owned(),
            run_id: run_id.to_owned(),
            status: status.into(),
        };
        let mut client = self.runs.clone();
        answer(client.finish_run(request(message))).await.map(drop)
    }

    /// The version that an alias points at.
    pub(crate) async fn aliased_version(
        &self,
        project: &str,
        model: &str,
        alias: &str,
    ) -> Result<ModelVersion, RemoteError> {
        let message = GetModelVersionRequest {
            project: project.to_owned(),
            name: model.to_owned(),
            selector: Some(Selector::Alias(alias.to_owned())),
        };
        let mut client = self.models.clone();
        present(answer(client.get_model_version(request(message))).await?.model_version)
    }

    pub(crate) async fn create_model_version(
        &self,
        message: CreateModelVersionRequest,
    ) -> Result<ModelVersion, RemoteError> {
        let mut client = self.models.clone();
        present(
            answer(client.create_model_version(request(message)))
                .await?
                .model_version,
        )
    }

    /// Points an alias at a version; answers where it pointed before, 0 if nowhere.
    pub(crate) async fn set_alias(&self, message: SetAliasRequest) -> Result<u32, RemoteError> {
        let mut client = self.models.clone();
        Ok(answer(client.set_alias(request(message))).await?.previous_version)
    }

    /// The rollouts that are under way.
    pub(crate) async fn list_rollouts(&self) -> Result<Vec<Rollout>, RemoteError> {
        let mut client = self.endpoints.clone();
        Ok(answer(client.list_rollouts(request(ListRolloutsRequest {})))
            .await?
            .rollouts)
    }

    /// Moves a rollout on.
    pub(crate) async fn change_rollout(&self, message: ChangeRolloutRequest) -> Result<(), RemoteError> {
        let mut client = self.endpoints.clone();
        answer(client.change_rollout(request(message))).await.map(drop)
    }
}
