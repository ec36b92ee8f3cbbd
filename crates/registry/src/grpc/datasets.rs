//! `DatasetService`.

use modelyard_proto::registry::v1::{self as proto, dataset_service_server::DatasetService};
use tonic::{Request, Response, Status, async_trait};

use super::{Face, answer};
use crate::model::dataset::DatasetVersion;

fn proto_version(version: DatasetVersion) -> proto::DatasetVersion {
    let files = version.files.into_iter().map(|file| proto::DatasetFile {
        name: file.name,
        digest: file.digest,
        size_bytes: file.size_bytes,
        rows: file.rows,
        format: file.format.as_str().to_owned(),
    });
    let summary = version.summary;
    let columns = summary.columns.into_iter().map(|column| proto::DatasetColumn {
        name: column.name,
        r#type: column.data_type,
        nullable: column.nullable,
    });
    proto::DatasetVersion {
        project: summary.project,
        name: summary.dataset,
        version: summary.version,
        digest: summary.digest,
        files: files.collect(),
        columns: columns.collect(),
        rows: summary.rows,
        profile_digest: summary.profile_digest,
        created_at_us: summary.created_at.as_micros(),
    }
}

#[async_trait]
impl DatasetService for Face {
    async fn get_dataset_version(
        &self,
        request: Request<proto::GetDatasetVersionRequest>,
    ) -> Result<Response<proto::GetDatasetVersionResponse>, Status> {
        let caller = self.caller(&request)?;
        let request = request.into_inner();
        let version = Some(request.version).filter(|version| *version > 0);
        let found = self
            .registry
            .get_dataset_version(&caller, &request.project, &request.name, version)
            .await;
        answer(found.map(|version| proto::GetDatasetVersionResponse {
            dataset_version: Some(proto_version(version)),
        }))
    }
}
