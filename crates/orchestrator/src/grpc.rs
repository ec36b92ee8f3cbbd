//! The face for other services.

use async_trait::async_trait;
use modelyard_auth::rpc;
use modelyard_common::{error::to_status, rpc::MAX_MESSAGE_BYTES};
use modelyard_proto::orchestrator::v1::{
    FireTriggerRequest, FireTriggerResponse, ReportAlertRequest, ReportAlertResponse,
    rollout_service_server::{RolloutService, RolloutServiceServer},
    trigger_service_server::{TriggerService, TriggerServiceServer},
};
use tonic::{Request, Response, Status, service::Routes};

use crate::service::Orchestrator;

struct Triggers {
    orchestrator: Orchestrator,
}

struct Rollouts {
    orchestrator: Orchestrator,
}

/// The gRPC services.
pub(crate) fn routes(orchestrator: Orchestrator) -> Routes {
    let rollouts = RolloutServiceServer::new(Rollouts {
        orchestrator: orchestrator.clone(),
    });
    let triggers = TriggerServiceServer::new(Triggers { orchestrator });
    Routes::new(triggers.max_decoding_message_size(MAX_MESSAGE_BYTES)).add_service(rollouts)
}

#[async_trait]
impl TriggerService for Triggers {
    #[tracing::instrument(name = "orchestrator.fire_trigger", skip_all)]
    async fn fire_trigger(
        &self,
        request: Request<FireTriggerRequest>,
    ) -> Result<Response<FireTriggerResponse>, Status> {
        let caller = rpc::caller(&self.orchestrator.access, &request)?;
        let message = request.into_inner();
        let fired = self
            .orchestrator
            .fire_trigger(
                &caller,
                &message.project,
                &message.trigger,
                &message.key,
                &message.event_json,
            )
            .await;
        let pipeline_run_id = fired.map_err(|error| to_status(&error))?;
        Ok(Response::new(FireTriggerResponse { pipeline_run_id }))
    }
}

#[async_trait]
impl RolloutService for Rollouts {
    #[tracing::instrument(name = "orchestrator.report_alert", skip_all)]
    async fn report_alert(
        &self,
        request: Request<ReportAlertRequest>,
    ) -> Result<Response<ReportAlertResponse>, Status> {
        let caller = rpc::caller(&self.orchestrator.access, &request)?;
        let reported = self.orchestrator.report_alert(&caller, &request.into_inner()).await;
        let rollout_ids = reported.map_err(|error| to_status(&error))?;
        Ok(Response::new(ReportAlertResponse { rollout_ids }))
    }
}
