//! The audit chain as a stream of lines.

use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, stream};
use modelyard_auth::{
    Action, Caller, Resource,
    audit::{AuditEvent, Checkpoint, GENESIS, Operation, export, ocsf::to_ocsf},
};
use serde::Deserialize;
use utoipa::ToSchema;

use super::Registry;
use crate::error::{Error, Result};

/// How many events are read at once.
const BATCH: u32 = 2000;

/// How the chain is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ExportFormat {
    /// JSON Lines that anybody can verify without this program.
    #[default]
    Jsonl,
    /// Events of the Open Cybersecurity Schema Framework, one a line, for security teams' tools.
    Ocsf,
}

/// Where an export stands.
struct Exporter {
    registry: Arc<Registry>,
    format: ExportFormat,
    /// The last event that was written.
    seq: u64,
    /// The last event that is wanted: the one that was signed when the export began.
    end: u64,
    is_begun: bool,
}

impl Exporter {
    /// The next piece; none at the end.
    async fn next(&mut self) -> Result<Option<Bytes>> {
        let mut lines = Vec::new();
        if !self.is_begun {
            self.is_begun = true;
            if self.format == ExportFormat::Jsonl {
                let keys = self.registry.public_keys().await?;
                export::write_header(&keys, 1, &GENESIS, &mut lines).map_err(|error| broken(&error))?;
                return Ok(Some(lines.into()));
            }
        }
        if self.seq >= self.end {
            return Ok(None);
        }
        let audit = &self.registry.stores.audit;
        let mut events = Vec::new();
        for (seq, event) in audit.chain_after(self.seq, BATCH).await? {
            if seq <= self.end {
                events.push(event?);
            }
        }
        let Some(last) = events.last().map(|event| event.seq) else {
            return Ok(None);
        };
        let checkpoints = match self.format {
            ExportFormat::Jsonl => audit.checkpoints(self.seq + 1, last).await?,
            ExportFormat::Ocsf => Vec::new(),
        };
        self.seq = last;
        let format = self.format;
        let written = tokio::task::spawn_blocking(move || write(format, &events, &checkpoints, lines));
        Ok(Some(written.await??.into()))
    }
}

fn write(
    format: ExportFormat,
    events: &[AuditEvent],
    checkpoints: &[Checkpoint],
    mut lines: Vec<u8>,
) -> Result<Vec<u8>> {
    let mut checkpoints = checkpoints.iter().peekable();
    for event in events {
        match format {
            ExportFormat::Jsonl => {
                export::write_event(event, &mut lines).map_err(|error| broken(&error))?;
                while let Some(checkpoint) = checkpoints.next_if(|checkpoint| checkpoint.seq <= event.seq) {
                    export::write_checkpoint(checkpoint, &mut lines).map_err(|error| broken(&error))?;
                }
            }
            ExportFormat::Ocsf => {
                lines.extend_from_slice(to_ocsf(event, env!("CARGO_PKG_VERSION")).to_string().as_bytes());
                lines.push(b'\n');
            }
        }
    }
    Ok(lines)
}

fn broken(error: &modelyard_auth::audit::Error) -> Error {
    Error::State(format!("the audit chain cannot be exported: {error}"))
}

impl Registry {
    /// The whole chain up to its present end, which is signed first. It is written piece by piece.
    pub async fn export_audit_chain(
        self: Arc<Self>,
        caller: &Caller,
        format: ExportFormat,
    ) -> Result<impl Stream<Item = Result<Bytes>> + Send + 'static + use<>> {
        caller.authorize(Action::AuditRead, Resource::INSTALLATION)?;
        let event = caller.event(Action::AuditRead, Operation::Export, &Resource::INSTALLATION);
        self.append(vec![event]).await?;
        let end = self.sign_head().await?.seq;
        let exporter = Exporter {
            registry: self,
            format,
            seq: 0,
            end,
            is_begun: false,
        };
        Ok(stream::try_unfold(exporter, |mut exporter| async move {
            Ok(exporter.next().await?.map(|piece| (piece, exporter)))
        }))
    }
}
