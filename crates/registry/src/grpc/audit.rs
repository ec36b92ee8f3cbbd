//! `AuditService`.

use modelyard_auth::audit::NewEvent;
use modelyard_common::error::to_status;
use modelyard_proto::registry::v1::{self as proto, audit_service_server::AuditService};
use tonic::{Request, Response, Status, async_trait};

use super::{Face, answer};
use crate::error::{Error, Result};

/// Reads events that other processes wrote as JSON.
pub(super) fn read_events(texts: &[String]) -> Result<Vec<NewEvent>> {
    let read = |text: &String| {
        serde_json::from_str(text).map_err(|error| {
            Error::request(format!(
                "an audit event cannot be read: {error}; run one version of all"
            ))
        })
    };
    texts.iter().map(read).collect()
}

#[async_trait]
impl AuditService for Face {
    async fn append_events(
        &self,
        request: Request<proto::AppendEventsRequest>,
    ) -> Result<Response<proto::AppendEventsResponse>, Status> {
        let caller = self.caller(&request)?;
        let events = read_events(&request.into_inner().events).map_err(|error| to_status(&error))?;
        let appended = self.registry.append_audit_events(&caller, events).await;
        answer(appended.map(|()| proto::AppendEventsResponse {}))
    }
}
