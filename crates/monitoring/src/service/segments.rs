//! Segments and labels: accepted durably, then brought into their tables.

use modelyard_auth::{Action, Caller, Kind, Resource};
use modelyard_common::{Fault as _, Timestamp, name::check_name};
use modelyard_jobs::Claim;
use tracing::instrument;

use super::Monitoring;
use crate::{
    error::{Error, Result},
    measure,
    model::{
        label::{LabelRequest, LabelsAccepted},
        segment::{MAX_SEGMENT_FILES, Segment},
    },
    store::{Committed, EndpointJob, Labelled},
    tables::EndpointTables,
};

/// The most segments of one commit.
const MAX_SEGMENTS: u32 = 200;
/// The most batches of labels of one commit.
const MAX_BATCHES: u32 = 20;

impl Monitoring {
    /// Accepts a segment of the inference log. When this returns, the segment is not forgotten any more.
    ///
    /// # Errors
    /// What is wrong with the segment, or the database.
    #[instrument(name = "monitoring.commit_segment", skip_all, fields(endpoint, segment = segment.id), level = "debug")]
    pub async fn commit_segment(
        &self,
        caller: &Caller,
        project: &str,
        endpoint: &str,
        segment: &Segment,
    ) -> Result<()> {
        caller.authorize(Action::SegmentWrite, Resource::named(Kind::Endpoint, project, endpoint))?;
        check_name("a project", project)?;
        check_name("an endpoint", endpoint)?;
        segment.check()?;
        self.store
            .accept_segment(project, endpoint, segment, self.clock.now())
            .await
    }

    /// Accepts labels. When this returns, they are not forgotten any more.
    ///
    /// # Errors
    /// What is wrong with the labels, or the database.
    #[instrument(name = "monitoring.add_labels", skip_all, fields(labels = request.labels.len()))]
    pub async fn add_labels(&self, caller: &Caller, project: &str, request: LabelRequest) -> Result<LabelsAccepted> {
        caller.authorize(Action::LabelWrite, Resource::project(project))?;
        let now = self.clock.now();
        let (endpoint, batch) = request.check(now)?;
        self.store.accept_labels(project, &endpoint, &batch, now).await?;
        Ok(LabelsAccepted {
            accepted: batch.labels.len() as u64,
        })
    }

    /// Commits the segments of an endpoint that wait, all in one commit of its table.
    pub(super) async fn run_commit(&self, job: &EndpointJob, claim: &Claim) -> Result<()> {
        let mut waiting = self
            .store
            .waiting_segments(&job.project, &job.endpoint, MAX_SEGMENTS)
            .await?;
        let mut files = 0;
        // The first fits always; those that do not are left to the next commit.
        waiting.retain(|segment| {
            files += segment.files.len();
            files <= MAX_SEGMENT_FILES
        });
        let done = if waiting.is_empty() {
            Committed::default()
        } else {
            append(&self.tables(&job.project, &job.endpoint)?, waiting).await?
        };
        self.store.finish_commit(claim, job, &done, self.clock.now()).await?;
        let rows = done.segments.iter().map(Segment::rows).sum();
        measure::committed(
            &job.endpoint,
            done.segments.len() as u64,
            done.refused.len() as u64,
            rows,
        );
        Ok(())
    }

    /// Stores the labels of an endpoint that wait, and finds the windows of their predictions.
    pub(super) async fn run_labels(&self, job: &EndpointJob, claim: &Claim) -> Result<()> {
        let waiting = self
            .store
            .waiting_labels(&job.project, &job.endpoint, MAX_BATCHES)
            .await?;
        let observed = || {
            waiting
                .iter()
                .flat_map(|(batch, _)| &batch.labels)
                .map(|label| label.observed_at)
        };
        let mut done = Labelled {
            batches: waiting.iter().map(|(batch, _)| batch.id.clone()).collect(),
            max_observed_at: observed().max().unwrap_or_default(),
            ..Labelled::default()
        };
        if !waiting.is_empty() {
            let months: (Timestamp, Timestamp) = (observed().min().unwrap_or_default(), done.max_observed_at);
            let tables = self.tables(&job.project, &job.endpoint)?;
            let name = tables.append_labels(&waiting).await?;
            done.hours = tables.hours_labelled_by(&name, months).await?;
        }
        self.store.finish_labels(claim, job, &done, self.clock.now()).await?;
        let labels = waiting.iter().map(|(batch, _)| batch.labels.len() as u64).sum();
        measure::labelled(&job.endpoint, labels);
        Ok(())
    }
}

/// Whether a segment can never be committed, whatever happens around it.
fn is_hopeless(error: &Error) -> bool {
    use modelyard_analytics::Error as Analytics;
    matches!(
        error,
        Error::Analytics(
            Analytics::InvalidFile { .. } | Analytics::TypeConflict { .. } | Analytics::InvalidAppend { .. }
        )
    )
}

/// Appends segments in one commit; where one of them is refused, each by itself, so that it keeps no other back.
async fn append(tables: &EndpointTables, segments: Vec<Segment>) -> Result<Committed> {
    match tables.append(&segments).await {
        Ok(()) => {
            return Ok(Committed {
                segments,
                refused: Vec::new(),
            });
        }
        Err(error) if is_hopeless(&error) => {}
        Err(error) => return Err(error),
    }
    let mut done = Committed::default();
    for segment in segments {
        match tables.append(std::slice::from_ref(&segment)).await {
            Ok(()) => done.segments.push(segment),
            Err(error) if is_hopeless(&error) => {
                tracing::error!(
                    segment = segment.id,
                    reason = error.reason(),
                    error = %error,
                    "a segment of the inference log is refused: its files stay in the storage and are in no table"
                );
                done.refused.push((segment.id, error.to_string()));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}
