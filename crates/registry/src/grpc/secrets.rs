//! `SecretService`.

use modelyard_proto::registry::v1::{self as proto, secret_service_server::SecretService};
use tonic::{Request, Response, Status, async_trait};

use super::{Face, answer};

#[async_trait]
impl SecretService for Face {
    async fn open_secret(
        &self,
        request: Request<proto::OpenSecretRequest>,
    ) -> Result<Response<proto::OpenSecretResponse>, Status> {
        let caller = self.caller(&request)?;
        let request = request.into_inner();
        let opened = self
            .registry
            .open_secret(&caller, &request.project, &request.name)
            .await;
        answer(opened.map(|value| proto::OpenSecretResponse { value }))
    }
}
