//! `ModelService`.

use modelyard_proto::registry::v1::{
    self as proto, get_model_version_request::Selector as ProtoSelector, model_service_server::ModelService,
};
use tonic::{Request, Response, Status, async_trait};

use super::{Face, answer, filled};
use crate::{
    error::{Error, Result},
    model::{
        alias::Selector,
        registered_model::{ModelVersion, ONNX},
    },
    service::ModelVersionRequest,
};

fn version_request(request: proto::CreateModelVersionRequest) -> Result<ModelVersionRequest> {
    let signature = filled(request.signature_json).map(|json| {
        serde_json::from_str(&json).map_err(|error| {
            Error::request(format!(
                "signature_json is not JSON ({error}): leave it out, or correct it"
            ))
        })
    });
    Ok(ModelVersionRequest {
        artifact_digest: request.artifact_digest,
        format: filled(request.format).unwrap_or_else(|| ONNX.to_owned()),
        description: request.description,
        signature: signature.transpose()?,
        reference_profile_digest: filled(request.reference_profile_digest),
        metrics: request.metrics.into_iter().collect(),
        run_id: filled(request.run_id),
        dataset: filled(request.dataset),
        dataset_version: Some(request.dataset_version).filter(|version| *version > 0),
        training_rows: request.training_rows,
        tags: request.tags.into_iter().collect(),
        aliases: Vec::new(),
        idempotency_key: request.idempotency_key,
    })
}

fn proto_version(version: ModelVersion) -> proto::ModelVersion {
    proto::ModelVersion {
        project: version.project,
        name: version.model,
        version: version.version,
        description: version.description,
        format: version.format,
        artifact_digest: version.artifact_digest,
        artifact_size_bytes: version.artifact_size_bytes,
        signature_json: version.signature.to_string(),
        reference_profile_digest: version.reference_profile_digest.unwrap_or_default(),
        metrics: version.metrics.into_iter().collect(),
        run_id: version.run_id.unwrap_or_default(),
        dataset: version.dataset.unwrap_or_default(),
        dataset_version: version.dataset_version.unwrap_or_default(),
        aliases: version.aliases,
        tags: version.tags.into_iter().collect(),
        created_at_us: version.created_at.as_micros(),
        training_rows: version.training_rows,
    }
}

fn selector(selector: Option<ProtoSelector>) -> Result<Selector> {
    match selector {
        Some(ProtoSelector::Version(version)) => Ok(Selector::Version(version)),
        Some(ProtoSelector::Alias(alias)) => Ok(Selector::Alias(alias)),
        None => Err(Error::request("which version is missing: give a version or an alias")),
    }
}

#[async_trait]
impl ModelService for Face {
    async fn create_model_version(
        &self,
        request: Request<proto::CreateModelVersionRequest>,
    ) -> Result<Response<proto::CreateModelVersionResponse>, Status> {
        let caller = self.caller(&request)?;
        let request = request.into_inner();
        let (project, model) = (request.project.clone(), request.name.clone());
        let created = async {
            let request = version_request(request)?;
            self.registry
                .create_model_version(&caller, &project, &model, request)
                .await
        }
        .await;
        answer(created.map(|(version, _)| proto::CreateModelVersionResponse {
            model_version: Some(proto_version(version)),
        }))
    }

    async fn get_model_version(
        &self,
        request: Request<proto::GetModelVersionRequest>,
    ) -> Result<Response<proto::GetModelVersionResponse>, Status> {
        let caller = self.caller(&request)?;
        let request = request.into_inner();
        let found = async {
            let selector = selector(request.selector)?;
            self.registry
                .get_model_version(&caller, &request.project, &request.name, &selector)
                .await
        }
        .await;
        answer(found.map(|version| proto::GetModelVersionResponse {
            model_version: Some(proto_version(version)),
        }))
    }

    async fn set_alias(
        &self,
        request: Request<proto::SetAliasRequest>,
    ) -> Result<Response<proto::SetAliasResponse>, Status> {
        let caller = self.caller(&request)?;
        let request = request.into_inner();
        let previous = self
            .registry
            .set_alias(
                &caller,
                &request.project,
                &request.name,
                &request.alias,
                request.version,
            )
            .await;
        answer(previous.map(|previous| proto::SetAliasResponse {
            previous_version: previous.unwrap_or_default(),
        }))
    }
}
