//! Segments, labels and the watermark of endpoints.

use async_trait::async_trait;
use conditional_trait_gen::trait_gen;
use modelyard_common::Timestamp;
use modelyard_db::{Pools, PostgresPools, SqlitePools};
use modelyard_jobs::{Claim, complete_in};

use super::{
    BTreeSet, COMMIT, Committed, EndpointJob, LABELS, Labelled, LastScore, LogStore, SqlStore, WindowKey, read_json,
    span, spans_of, write_json,
};
use crate::{
    error::{Error, Result},
    model::{label::LabelBatch, segment::Segment},
};

/// How much of each kind one sweep takes up.
const MAX_SWEPT: i64 = 1000;

#[derive(sqlx::FromRow)]
struct LabelBatchRow {
    batch_id: String,
    labels: String,
    max_observed_at: i64,
    received_at: i64,
}

impl LabelBatchRow {
    fn batch(self) -> Result<(LabelBatch, Timestamp)> {
        let batch = LabelBatch {
            labels: read_json("batch of labels", &self.labels)?,
            id: self.batch_id,
            max_observed_at: Timestamp::from_micros(self.max_observed_at),
        };
        Ok((batch, Timestamp::from_micros(self.received_at)))
    }
}

fn segment_of((id, files): (String, String)) -> Result<Segment> {
    Ok(Segment {
        id,
        files: read_json("files of a segment", &files)?,
    })
}

/// The spans of a monitor's windows that segments have rows in, or may have.
fn touched(length: crate::model::window::Length, segments: &[Segment]) -> BTreeSet<crate::model::window::Span> {
    let files = segments.iter().flat_map(|segment| &segment.files);
    files
        .flat_map(|file| length.spans(file.min_event_time, file.max_event_time))
        .collect()
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
#[async_trait]
impl LogStore for SqlStore<P> {
    async fn accept_segment(&self, project: &str, endpoint: &str, segment: &Segment, now: Timestamp) -> Result<()> {
        let files = write_json("files of a segment", &segment.files)?;
        let mut tx = self.pools.begin().await?;
        self.lock(&mut tx, project, endpoint, now).await?;
        let inserted = sqlx::query(
            "INSERT INTO segment (project, endpoint, segment_id, files, min_event_time, max_event_time, received_at, state)
             VALUES ($1, $2, $3, $4, $5, $6, $7, 'waiting') ON CONFLICT (project, endpoint, segment_id) DO NOTHING",
        )
        .bind(project)
        .bind(endpoint)
        .bind(&segment.id)
        .bind(&files)
        .bind(segment.min_event_time().as_micros())
        .bind(segment.max_event_time().as_micros())
        .bind(now.as_micros())
        .execute(&mut *tx)
        .await?;
        if inserted.rows_affected() == 0 {
            let known: String = sqlx::query_scalar(
                "SELECT files FROM segment WHERE project = $1 AND endpoint = $2 AND segment_id = $3",
            )
            .bind(project)
            .bind(endpoint)
            .bind(&segment.id)
            .fetch_one(&mut *tx)
            .await?;
            return if known == files {
                Ok(())
            } else {
                Err(Error::SegmentChanged(segment.id.clone()))
            };
        }
        let job = self.endpoint_job(COMMIT, project, endpoint, now)?;
        self.enqueue(&mut tx, &job, now).await?;
        tx.commit().await?;
        self.jobs.wake().notify();
        Ok(())
    }

    async fn accept_labels(&self, project: &str, endpoint: &str, batch: &LabelBatch, now: Timestamp) -> Result<()> {
        let labels = write_json("batch of labels", &batch.labels)?;
        let mut tx = self.pools.begin().await?;
        self.lock(&mut tx, project, endpoint, now).await?;
        sqlx::query(
            "INSERT INTO label_batch (project, endpoint, batch_id, labels, label_count, max_observed_at, received_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (project, endpoint, batch_id) DO NOTHING",
        )
        .bind(project)
        .bind(endpoint)
        .bind(&batch.id)
        .bind(&labels)
        .bind(batch.labels.len() as i64)
        .bind(batch.max_observed_at.as_micros())
        .bind(now.as_micros())
        .execute(&mut *tx)
        .await?;
        let job = self.endpoint_job(LABELS, project, endpoint, now)?;
        self.enqueue(&mut tx, &job, now).await?;
        tx.commit().await?;
        self.jobs.wake().notify();
        Ok(())
    }

    async fn waiting_segments(&self, project: &str, endpoint: &str, limit: u32) -> Result<Vec<Segment>> {
        let rows: Vec<(String, String)> = sqlx::query_as(
            "SELECT segment_id, files FROM segment WHERE project = $1 AND endpoint = $2 AND state = 'waiting'
             ORDER BY received_at, segment_id LIMIT $3",
        )
        .bind(project)
        .bind(endpoint)
        .bind(i64::from(limit))
        .fetch_all(self.pools.reader())
        .await?;
        rows.into_iter().map(segment_of).collect()
    }

    async fn waiting_labels(&self, project: &str, endpoint: &str, limit: u32) -> Result<Vec<(LabelBatch, Timestamp)>> {
        let rows: Vec<LabelBatchRow> = sqlx::query_as(
            "SELECT batch_id, labels, max_observed_at, received_at FROM label_batch WHERE project = $1 AND endpoint = $2
             ORDER BY received_at, batch_id LIMIT $3",
        )
        .bind(project)
        .bind(endpoint)
        .bind(i64::from(limit))
        .fetch_all(self.pools.reader())
        .await?;
        rows.into_iter().map(LabelBatchRow::batch).collect()
    }

    async fn finish_commit(&self, claim: &Claim, job: &EndpointJob, done: &Committed, now: Timestamp) -> Result<()> {
        let (project, endpoint) = (job.project.as_str(), job.endpoint.as_str());
        let mut tx = self.pools.begin().await?;
        let watermark = self.lock(&mut tx, project, endpoint, now).await?;
        let committed = done
            .segments
            .iter()
            .map(|segment| (segment.id.as_str(), "committed", None));
        let refused = done
            .refused
            .iter()
            .map(|(id, error)| (id.as_str(), "refused", Some(error.as_str())));
        for (id, state, error) in committed.chain(refused) {
            sqlx::query(
                "UPDATE segment SET state = $4, ended_at = $5, error = $6
                 WHERE project = $1 AND endpoint = $2 AND segment_id = $3 AND state = 'waiting'",
            )
            .bind(project)
            .bind(endpoint)
            .bind(id)
            .bind(state)
            .bind(now.as_micros())
            .bind(error)
            .execute(&mut *tx)
            .await?;
        }
        for (monitor, spec) in self.monitors_of(&mut tx, project, endpoint).await? {
            for span in touched(spec.window, &done.segments) {
                self.touch(&mut tx, (project, &monitor), span, now).await?;
            }
        }
        if let Some(latest) = done.segments.iter().map(Segment::max_event_time).max() {
            self.advance(&mut tx, (project, endpoint), watermark, latest, now)
                .await?;
        }
        complete_in(&mut tx, claim, now).await?;
        let more: i64 = sqlx::query_scalar(
            "SELECT COUNT(*) FROM segment WHERE project = $1 AND endpoint = $2 AND state = 'waiting'",
        )
        .bind(project)
        .bind(endpoint)
        .fetch_one(&mut *tx)
        .await?;
        if more > 0 {
            let job = self.endpoint_job(COMMIT, project, endpoint, now)?;
            self.enqueue(&mut tx, &job, now).await?;
        }
        tx.commit().await?;
        self.jobs.wake().notify();
        Ok(())
    }

    async fn finish_labels(&self, claim: &Claim, job: &EndpointJob, done: &Labelled, now: Timestamp) -> Result<()> {
        let (project, endpoint) = (job.project.as_str(), job.endpoint.as_str());
        let mut tx = self.pools.begin().await?;
        let watermark = self.lock(&mut tx, project, endpoint, now).await?;
        for batch in &done.batches {
            sqlx::query("DELETE FROM label_batch WHERE project = $1 AND endpoint = $2 AND batch_id = $3")
                .bind(project)
                .bind(endpoint)
                .bind(batch)
                .execute(&mut *tx)
                .await?;
        }
        for (monitor, spec) in self.monitors_of(&mut tx, project, endpoint).await? {
            for span in spans_of(spec.window, &done.hours) {
                self.touch(&mut tx, (project, &monitor), span, now).await?;
            }
        }
        if !done.batches.is_empty() {
            self.advance(&mut tx, (project, endpoint), watermark, done.max_observed_at, now)
                .await?;
        }
        complete_in(&mut tx, claim, now).await?;
        let more: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM label_batch WHERE project = $1 AND endpoint = $2")
            .bind(project)
            .bind(endpoint)
            .fetch_one(&mut *tx)
            .await?;
        if more > 0 {
            let job = self.endpoint_job(LABELS, project, endpoint, now)?;
            self.enqueue(&mut tx, &job, now).await?;
        }
        tx.commit().await?;
        self.jobs.wake().notify();
        Ok(())
    }

    async fn watermark(&self, project: &str, endpoint: &str) -> Result<Option<Timestamp>> {
        let watermark: Option<Option<i64>> =
            sqlx::query_scalar("SELECT watermark FROM endpoint_log WHERE project = $1 AND endpoint = $2")
                .bind(project)
                .bind(endpoint)
                .fetch_optional(self.pools.reader())
                .await?;
        Ok(watermark.flatten().map(Timestamp::from_micros))
    }

    async fn endpoints(&self, project: &str, limit: u32) -> Result<Vec<(String, Option<Timestamp>)>> {
        let rows: Vec<(String, Option<i64>)> = sqlx::query_as(
            "SELECT endpoint, watermark FROM endpoint_log WHERE project = $1 ORDER BY endpoint LIMIT $2",
        )
        .bind(project)
        .bind(i64::from(limit))
        .fetch_all(self.pools.reader())
        .await?;
        Ok(rows
            .into_iter()
            .map(|(endpoint, at)| (endpoint, at.map(Timestamp::from_micros)))
            .collect())
    }

    async fn all_endpoints(&self, limit: u32) -> Result<Vec<(String, String, Option<Timestamp>)>> {
        let rows: Vec<(String, String, Option<i64>)> =
            sqlx::query_as("SELECT project, endpoint, watermark FROM endpoint_log ORDER BY project, endpoint LIMIT $1")
                .bind(i64::from(limit))
                .fetch_all(self.pools.reader())
                .await?;
        let time = |(project, endpoint, at): (String, String, Option<i64>)| {
            (project, endpoint, at.map(Timestamp::from_micros))
        };
        Ok(rows.into_iter().map(time).collect())
    }

    async fn sweep(&self, now: Timestamp) -> Result<u64> {
        let mut tx = self.pools.begin().await?;
        let mut jobs = Vec::new();
        let logs: Vec<(String, String)> = sqlx::query_as(
            "SELECT DISTINCT project, endpoint FROM segment WHERE state = 'waiting' ORDER BY project, endpoint LIMIT $1",
        )
        .bind(MAX_SWEPT)
        .fetch_all(&mut *tx)
        .await?;
        for (project, endpoint) in logs {
            jobs.push(self.endpoint_job(COMMIT, &project, &endpoint, now)?);
        }
        let labels: Vec<(String, String)> =
            sqlx::query_as("SELECT DISTINCT project, endpoint FROM label_batch ORDER BY project, endpoint LIMIT $1")
                .bind(MAX_SWEPT)
                .fetch_all(&mut *tx)
                .await?;
        for (project, endpoint) in labels {
            jobs.push(self.endpoint_job(LABELS, &project, &endpoint, now)?);
        }
        // Also windows that have something to judge: the watermark moved on over more of them than one move touches.
        let windows: Vec<(String, String, i64, Option<i64>, Option<i64>)> = sqlx::query_as(
            "SELECT w.project, w.monitor, w.start_at, w.scored_at, w.scoring_us FROM window_score w
             JOIN monitor m ON m.project = w.project AND m.name = w.monitor
             LEFT JOIN endpoint_log l ON l.project = m.project AND l.endpoint = m.endpoint
             WHERE w.scored_generation < w.generation OR w.check_at <= l.watermark
             ORDER BY w.project, w.monitor, w.start_at LIMIT $1",
        )
        .bind(MAX_SWEPT)
        .fetch_all(&mut *tx)
        .await?;
        for (project, monitor, start, scored_at, took_us) in &windows {
            let window = WindowKey {
                project,
                monitor,
                start: span(*start, *start).start,
            };
            let last = LastScore {
                scored_at: *scored_at,
                took_us: *took_us,
            };
            jobs.push(self.score_job(window, last, now)?);
        }
        let alerts: Vec<String> = sqlx::query_scalar(
            "SELECT id FROM alert WHERE trigger_name IS NOT NULL AND pipeline_run_id IS NULL ORDER BY id LIMIT $1",
        )
        .bind(MAX_SWEPT)
        .fetch_all(&mut *tx)
        .await?;
        for alert in alerts {
            jobs.push(self.fire_job(&alert, now)?);
        }
        let mut created = 0;
        for job in &jobs {
            created += u64::from(modelyard_jobs::enqueue_in(&mut tx, job, now).await?.created);
        }
        tx.commit().await?;
        if created > 0 {
            self.jobs.wake().notify();
        }
        Ok(created)
    }
}
