//! `AccessService`.

use futures::{StreamExt, stream::BoxStream};
use modelyard_auth::TokenUse;
use modelyard_common::{Timestamp, error::to_status};
use modelyard_proto::registry::v1::{self as proto, access_service_server::AccessService};
use tonic::{Request, Response, Status, async_trait};

use super::{Face, answer, audit::read_events, filled};
use crate::service::AccessUpdate;

fn proto_update(update: AccessUpdate) -> proto::WatchAccessResponse {
    proto::WatchAccessResponse {
        revision: update.revision,
        part: update.part.into(),
        is_last_part: update.is_last,
    }
}

#[async_trait]
impl AccessService for Face {
    type WatchAccessStream = BoxStream<'static, Result<proto::WatchAccessResponse, Status>>;

    async fn watch_access(
        &self,
        request: Request<proto::WatchAccessRequest>,
    ) -> Result<Response<Self::WatchAccessStream>, Status> {
        let caller = self.caller(&request)?;
        let request = request.into_inner();
        let updates = self
            .registry
            .watch_access(&caller, &request.node, request.since_revision)
            .await;
        let updates = updates.map_err(|error| to_status(&error))?;
        Ok(Response::new(updates.map(|update| Ok(proto_update(update))).boxed()))
    }

    async fn verify_password(
        &self,
        request: Request<proto::VerifyPasswordRequest>,
    ) -> Result<Response<proto::VerifyPasswordResponse>, Status> {
        let caller = self.caller(&request)?;
        let request = request.into_inner();
        let source = filled(request.source_address).and_then(|address| address.parse().ok());
        let verified = self
            .registry
            .verify_password(&caller, &request.name, &request.password, source)
            .await;
        answer(verified.map(|()| proto::VerifyPasswordResponse {}))
    }

    async fn report_access(
        &self,
        request: Request<proto::ReportAccessRequest>,
    ) -> Result<Response<proto::ReportAccessResponse>, Status> {
        let caller = self.caller(&request)?;
        let request = request.into_inner();
        let uses: Vec<TokenUse> = request.uses.into_iter().map(read_use).collect();
        let refusals = read_events(&request.refusals).map_err(|error| to_status(&error))?;
        let reported = self.registry.report_access(&caller, &uses, refusals).await;
        answer(reported.map(|()| proto::ReportAccessResponse {}))
    }
}

fn read_use(used: proto::TokenUse) -> TokenUse {
    TokenUse {
        token_id: used.token_id,
        at: Timestamp::from_micros(used.used_at),
    }
}
