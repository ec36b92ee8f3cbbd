//! The gRPC face: gateways hand over segments.

use std::sync::Arc;

use async_trait::async_trait;
use modelyard_auth::{Access, rpc};
use modelyard_common::{Timestamp, error::to_status};
use modelyard_proto::monitoring::v1::{
    CommitSegmentRequest, CommitSegmentResponse, segment_service_server::SegmentService,
};
use tonic::{Request, Response, Status};

use crate::{
    model::segment::{Segment, SegmentFile},
    service::Monitoring,
};

/// The gRPC face.
pub struct Segments {
    /// Takes them.
    pub monitoring: Arc<Monitoring>,
    /// Who calls.
    pub access: Access,
}

#[async_trait]
impl SegmentService for Segments {
    async fn commit_segment(
        &self,
        request: Request<CommitSegmentRequest>,
    ) -> Result<Response<CommitSegmentResponse>, Status> {
        let caller = rpc::caller(&self.access, &request)?;
        let request = request.into_inner();
        // The files' own footers are read when they are committed: what they say counts.
        let files = request.files.into_iter().map(|file| SegmentFile {
            path: file.path,
            size_bytes: file.size_bytes,
            rows: file.rows,
            min_event_time: Timestamp::from_micros(file.min_event_time_us),
            max_event_time: Timestamp::from_micros(file.max_event_time_us),
        });
        let segment = Segment {
            id: request.segment_id,
            files: files.collect(),
        };
        let committed = self
            .monitoring
            .commit_segment(&caller, &request.project, &request.endpoint, &segment)
            .await;
        committed.map_err(|error| to_status(&error))?;
        Ok(Response::new(CommitSegmentResponse {}))
    }
}
