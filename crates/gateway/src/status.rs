//! Tells the registry what is served.

use std::{convert::Infallible, sync::Arc, time::Duration};

use modelyard_common::rpc::Channel;
use modelyard_proto::registry::v1::{
    EndpointStatus, ReportStatusRequest, endpoint_service_client::EndpointServiceClient,
};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

/// How often a report is sent when nothing changes.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// How soon a failed report is sent again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// How long a report may take.
const REPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// What there is to tell.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Report {
    pub revision: u64,
    pub endpoints: Vec<EndpointStatus>,
}

/// Sends a report at each change, and now and then, until the soft end.
pub(crate) async fn report(
    registry: Channel,
    node: Arc<str>,
    mut reports: watch::Receiver<Option<Report>>,
    soft: CancellationToken,
) -> Result<(), Infallible> {
    let mut client = EndpointServiceClient::new(registry);
    let mut ticks = interval(REPORT_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failed = false;
    loop {
        tokio::select! {
            changed = reports.changed() => if changed.is_err() {
                return Ok(());
            },
            _ = ticks.tick() => {}
            () = tokio::time::sleep(RETRY_INTERVAL), if failed => {}
            () = soft.cancelled() => return Ok(()),
        }
        let Some(report) = reports.borrow_and_update().clone() else {
            continue;
        };
        let request = ReportStatusRequest {
            node: node.to_string(),
            revision: report.revision,
            endpoints: report.endpoints,
        };
        let before = failed;
        failed = match timeout(REPORT_TIMEOUT, client.report_status(request)).await {
            Ok(Ok(_)) => false,
            Ok(Err(status)) => {
                tracing::debug!(error = %status.message(), "the registry takes no report");
                true
            }
            Err(_) => true,
        };
        if failed && !before {
            tracing::warn!("the registry takes no status reports: trying again");
        }
    }
}
