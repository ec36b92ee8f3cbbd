//! What monitoring keeps in its database. One method is one transaction; times come from the caller.
//!
//! Whoever changes what scores depend on takes the row of the endpoint's log first ([`SqlStore::lock`]), and so does whoever
//! ends a job. So a job that ends sees what was accepted before it ended, and starts its successor; what is accepted
//! after that finds the job ended, and starts a new one. Windows count their changes: a score that has not seen the last
//! one is followed by another.

mod alerts;
mod log;
mod resources;
mod retention;
mod windows;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use async_trait::async_trait;
use conditional_trait_gen::trait_gen;
use modelyard_auth::audit::NewEvent;
use modelyard_common::{Timestamp, id::SharedIds};
use modelyard_db::{Database, Migrations, Pools, PostgresPools, SqlitePools, Transaction, migrations};
use modelyard_jobs::{Claim, JobStore, NewJob, enqueue_in};
use serde::{Deserialize, Serialize};

use crate::{
    error::Result,
    model::{
        alert::{Alert, AlertState},
        label::LabelBatch,
        monitor::{Monitor, MonitorSpec},
        page::{Page, PageRequest},
        resource::Applied,
        rule::{AlertRule, AlertRuleSpec},
        score::{MonitorWindow, WindowScore},
        segment::Segment,
        window::{Length, Span},
    },
};

/// The tables of monitoring.
pub const MIGRATIONS: Migrations = migrations!("monitoring", ["0001_monitoring", "0002_retention"]);

/// Commits segments to an endpoint's log. The payload is an [`EndpointJob`].
pub const COMMIT: &str = "commit";
/// Stores labels of an endpoint. The payload is an [`EndpointJob`].
pub const LABELS: &str = "labels";
/// Finds the windows of a monitor. The payload is a [`MonitorJob`].
pub const BACKFILL: &str = "backfill";
/// Scores a window. The payload is a [`ScoreJob`].
pub const SCORE: &str = "score";
/// Fires the trigger of an alert. The payload is a [`FireJob`].
pub const FIRE: &str = "fire";

/// How often firing a trigger is tried. With the longest wait between two, that is a day; then the sweep begins anew.
const FIRE_ATTEMPTS: u32 = 1000;
/// How often scoring a window is tried before the sweep takes over.
const SCORE_ATTEMPTS: u32 = 20;
/// A window is not scored for more than one part in so many of the time.
const SCORE_REST: u32 = 4;

/// Which endpoint a job is for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EndpointJob {
    /// The project.
    pub project: String,
    /// The endpoint.
    pub endpoint: String,
}

/// Which monitor a job is for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MonitorJob {
    /// The project.
    pub project: String,
    /// The monitor.
    pub monitor: String,
}

/// Which window a job is for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ScoreJob {
    /// The project.
    pub project: String,
    /// The monitor.
    pub monitor: String,
    /// The start of the window.
    pub start: Timestamp,
}

/// Which alert a job is for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FireJob {
    /// The alert.
    pub alert: String,
}

/// What came of committing segments.
#[derive(Debug, Clone, Default)]
pub struct Committed {
    /// Segments that are in the log now.
    pub segments: Vec<Segment>,
    /// Segments that never will be, each with the reason.
    pub refused: Vec<(String, String)>,
}

/// What came of storing labels.
#[derive(Debug, Clone, Default)]
pub struct Labelled {
    /// The batches that are in the table now.
    pub batches: Vec<String>,
    /// The hours of event time in which their predictions lie.
    pub hours: BTreeSet<Timestamp>,
    /// The latest time at which a label was known.
    pub max_observed_at: Timestamp,
}

/// A window to be scored.
#[derive(Debug, Clone)]
pub struct ScoreTask {
    /// The monitor.
    pub monitor: Monitor,
    /// The window.
    pub span: Span,
    /// The change that the score will have seen.
    pub generation: i64,
}

/// An alert that was raised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Raised {
    /// The rule.
    pub rule: String,
    /// The alert's id.
    pub alert: String,
}

/// A window's score to be stored.
#[derive(Debug, Clone)]
pub struct Scored {
    /// What was scored.
    pub task: ScoreTask,
    /// What came out.
    pub score: WindowScore,
    /// How long it took.
    pub took: Duration,
}

/// Segments, labels and the watermark of endpoints.
#[async_trait]
pub trait LogStore: Send + Sync {
    /// Accepts a segment and asks for its commit. The same segment again changes nothing.
    async fn accept_segment(&self, project: &str, endpoint: &str, segment: &Segment, now: Timestamp) -> Result<()>;
    /// Accepts labels and asks for their storing. The same batch again changes nothing while it waits.
    async fn accept_labels(&self, project: &str, endpoint: &str, batch: &LabelBatch, now: Timestamp) -> Result<()>;
    /// Segments that wait, the oldest first.
    async fn waiting_segments(&self, project: &str, endpoint: &str, limit: u32) -> Result<Vec<Segment>>;
    /// Labels that wait with the time of their arrival, the oldest first.
    async fn waiting_labels(&self, project: &str, endpoint: &str, limit: u32) -> Result<Vec<(LabelBatch, Timestamp)>>;
    /// Ends a job of committing: the windows touched are to be scored, the watermark moves on.
    async fn finish_commit(&self, claim: &Claim, job: &EndpointJob, done: &Committed, now: Timestamp) -> Result<()>;
    /// Ends a job of storing labels.
    async fn finish_labels(&self, claim: &Claim, job: &EndpointJob, done: &Labelled, now: Timestamp) -> Result<()>;
    /// The event time up to which the log of an endpoint is taken for complete.
    async fn watermark(&self, project: &str, endpoint: &str) -> Result<Option<Timestamp>>;
    /// Endpoints whose predictions or labels were seen, by name, with their watermarks.
    async fn endpoints(&self, project: &str, limit: u32) -> Result<Vec<(String, Option<Timestamp>)>>;
    /// The same of all projects.
    async fn all_endpoints(&self, limit: u32) -> Result<Vec<(String, String, Option<Timestamp>)>>;
    /// Asks again for everything that is to be done and that no job is there for; how much that was.
    async fn sweep(&self, now: Timestamp) -> Result<u64>;
}

/// Monitors and alert rules.
#[async_trait]
pub trait ResourceStore: Send + Sync {
    /// Declares a monitor, and asks for its windows to be found.
    async fn put_monitor(
        &self,
        project: &str,
        name: &str,
        spec: &MonitorSpec,
        event: &NewEvent,
    ) -> Result<Applied<MonitorSpec>>;
    /// A monitor.
    async fn find_monitor(&self, project: &str, name: &str) -> Result<Option<Monitor>>;
    /// Monitors by name.
    async fn list_monitors(&self, project: &str, page: &PageRequest) -> Result<Page<Monitor>>;
    /// Removes a monitor with its windows; whether there was one. Refused while alert rules refer to it.
    async fn delete_monitor(&self, project: &str, name: &str, event: &NewEvent) -> Result<bool>;
    /// Declares an alert rule. It judges windows that end after the present watermark.
    async fn put_rule(
        &self,
        project: &str,
        name: &str,
        spec: &AlertRuleSpec,
        event: &NewEvent,
    ) -> Result<Applied<AlertRuleSpec>>;
    /// An alert rule.
    async fn find_rule(&self, project: &str, name: &str) -> Result<Option<AlertRule>>;
    /// Alert rules by name.
    async fn list_rules(&self, project: &str, page: &PageRequest) -> Result<Page<AlertRule>>;
    /// Removes an alert rule and resolves its alerts; whether there was one.
    async fn delete_rule(&self, project: &str, name: &str, event: &NewEvent) -> Result<bool>;
}

/// Windows and their scores.
#[async_trait]
pub trait WindowStore: Send + Sync {
    /// Ends a job of finding windows: those of the hours are to be scored.
    async fn finish_backfill(
        &self,
        claim: &Claim,
        job: &MonitorJob,
        hours: &BTreeSet<Timestamp>,
        now: Timestamp,
    ) -> Result<()>;
    /// What is to be scored; `None` if the window is gone.
    async fn begin_score(&self, job: &ScoreJob) -> Result<Option<ScoreTask>>;
    /// Stores a score, lets the alert rules judge the window, and ends the job.
    async fn finish_score(&self, claim: &Claim, scored: &Scored, now: Timestamp) -> Result<Vec<Raised>>;
    /// Notes why a window cannot be scored as it is, and ends the job: it is tried again when something about the window
    /// changes.
    async fn give_up_score(&self, claim: &Claim, task: &ScoreTask, error: &str, now: Timestamp) -> Result<()>;
    /// Notes why a window could not be scored this time.
    async fn note_error(&self, job: &ScoreJob, error: &str) -> Result<()>;
    /// Windows with rows, newest first or oldest first.
    async fn list_windows(&self, monitor: &Monitor, page: &PageRequest, ascending: bool)
    -> Result<Page<MonitorWindow>>;
    /// A window that was scored.
    async fn find_window(&self, monitor: &Monitor, start: Timestamp) -> Result<Option<MonitorWindow>>;
}

/// Alerts.
#[async_trait]
pub trait AlertStore: Send + Sync {
    /// An alert.
    async fn find_alert(&self, project: &str, id: &str) -> Result<Option<Alert>>;
    /// An alert whose trigger is to be fired.
    async fn alert_to_fire(&self, id: &str) -> Result<Option<Alert>>;
    /// Alerts, the newest first.
    async fn list_alerts(&self, project: &str, filter: &AlertFilter, page: &PageRequest) -> Result<Page<Alert>>;
    /// Notes the pipeline run that an alert's trigger started.
    async fn alert_fired(&self, id: &str, pipeline_run_id: &str) -> Result<()>;
    /// Notes why an alert's trigger could not be fired.
    async fn alert_not_fired(&self, id: &str, error: &str) -> Result<()>;
    /// How many alerts are firing.
    async fn count_firing(&self) -> Result<u64>;
}

/// What is forgotten after a time: at most `limit` in one transaction, the oldest first; the answer is how many.
#[async_trait]
pub trait RetentionStore: Send + Sync {
    /// Forgets segments that ended before `older_than`.
    async fn remove_ended_segments(&self, older_than: Timestamp, limit: u32) -> Result<u64>;
    /// Forgets windows that have not changed since `older_than` and wait for no score, with what the rules found in
    /// them. Rows or labels that come for one later begin it anew.
    async fn forget_windows(&self, older_than: Timestamp, limit: u32) -> Result<u64>;
    /// Forgets alerts that were resolved before `older_than`, and those that fired before it and that their rule has
    /// followed by another: a rule's last alert stays as long as it fires.
    async fn forget_alerts(&self, older_than: Timestamp, limit: u32) -> Result<u64>;
    /// Forgets endpoints that nothing was heard of since `older_than`, that no monitor watches and nothing waits for:
    /// those that are gone, and those that got labels and never a prediction.
    async fn forget_endpoints(&self, older_than: Timestamp, limit: u32) -> Result<u64>;
}

/// Which alerts are wanted.
#[derive(Debug, Clone, Default)]
pub struct AlertFilter {
    /// Only those that stand so.
    pub state: Option<AlertState>,
    /// Only those of a rule.
    pub rule: Option<String>,
}

/// Everything that monitoring keeps.
pub trait Store: LogStore + ResourceStore + WindowStore + AlertStore + RetentionStore {}

impl<S: LogStore + ResourceStore + WindowStore + AlertStore + RetentionStore> Store for S {}

/// The store on an open database that has [`MIGRATIONS`] and those of the jobs. A window that still changes is scored
/// again after `score_interval` at the earliest.
#[must_use]
pub fn open(database: &Database, jobs: Arc<dyn JobStore>, ids: SharedIds, score_interval: Duration) -> Arc<dyn Store> {
    match database.clone() {
        Database::Sqlite(pools) => Arc::new(SqlStore {
            pools,
            jobs,
            ids,
            score_interval,
        }),
        Database::Postgres(pools) => Arc::new(SqlStore {
            pools,
            jobs,
            ids,
            score_interval,
        }),
    }
}

struct SqlStore<P> {
    pools: P,
    jobs: Arc<dyn JobStore>,
    /// For the ids of jobs, whose number only a transaction knows.
    ids: SharedIds,
    score_interval: Duration,
}

impl<P> SqlStore<P> {
    fn job<T: Serialize>(&self, queue: &str, key: String, payload: &T, run_at: Timestamp) -> Result<NewJob> {
        let payload =
            serde_json::to_value(payload).map_err(|_| modelyard_db::Error::value("payload of a job", queue))?;
        Ok(NewJob {
            key: Some(key),
            ..NewJob::new(self.ids.next(), queue, payload, run_at)
        })
    }

    fn endpoint_job(&self, queue: &str, project: &str, endpoint: &str, now: Timestamp) -> Result<NewJob> {
        let payload = EndpointJob {
            project: project.to_owned(),
            endpoint: endpoint.to_owned(),
        };
        self.job(queue, format!("{project}/{endpoint}"), &payload, now)
    }

    fn backfill_job(&self, project: &str, monitor: &str, now: Timestamp) -> Result<NewJob> {
        let payload = MonitorJob {
            project: project.to_owned(),
            monitor: monitor.to_owned(),
        };
        self.job(BACKFILL, format!("{project}/{monitor}"), &payload, now)
    }

    fn fire_job(&self, alert: &str, now: Timestamp) -> Result<NewJob> {
        let job = self.job(
            FIRE,
            alert.to_owned(),
            &FireJob {
                alert: alert.to_owned(),
            },
            now,
        )?;
        Ok(NewJob {
            max_attempts: FIRE_ATTEMPTS,
            ..job
        })
    }

    /// The next scoring of a window: at once if it was not scored lately.
    fn score_job(&self, window: WindowKey<'_>, last: LastScore, now: Timestamp) -> Result<NewJob> {
        let payload = ScoreJob {
            project: window.project.to_owned(),
            monitor: window.monitor.to_owned(),
            start: window.start,
        };
        let took = Duration::from_micros(u64::try_from(last.took_us.unwrap_or(0)).unwrap_or(0));
        let rest = self.score_interval.max(took.saturating_mul(SCORE_REST));
        let earliest = last
            .scored_at
            .map_or(now, |scored_at| Timestamp::from_micros(scored_at) + rest);
        let key = format!("{}/{}/{}", window.project, window.monitor, window.start.as_micros());
        let job = self.job(SCORE, key, &payload, earliest.max(now).min(now + rest))?;
        Ok(NewJob {
            max_attempts: SCORE_ATTEMPTS,
            ..job
        })
    }
}

#[derive(Clone, Copy)]
struct WindowKey<'a> {
    project: &'a str,
    monitor: &'a str,
    start: Timestamp,
}

#[derive(Clone, Copy, Default)]
struct LastScore {
    scored_at: Option<i64>,
    took_us: Option<i64>,
}

/// The windows of a length that hours lie in.
fn spans_of(length: Length, hours: &BTreeSet<Timestamp>) -> BTreeSet<Span> {
    hours.iter().map(|hour| length.span_of(*hour)).collect()
}

fn span(start: i64, end: i64) -> Span {
    Span {
        start: Timestamp::from_micros(start),
        end: Timestamp::from_micros(end),
    }
}

fn read_json<T: serde::de::DeserializeOwned>(what: &'static str, text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|_| modelyard_db::Error::value(what, text).into())
}

fn write_json<T: Serialize>(what: &'static str, value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|_| modelyard_db::Error::value(what, "not writable").into())
}

/// How many windows one move of the watermark touches; the sweep finds the rest.
const MAX_TOUCHED: i64 = 10_000;

#[trait_gen(P -> SqlitePools, PostgresPools)]
impl SqlStore<P> {
    /// Takes the row of an endpoint's log until the end of the transaction. The answer is the watermark.
    async fn lock(
        &self,
        tx: &mut Transaction<<P as Pools>::Db>,
        project: &str,
        endpoint: &str,
        now: Timestamp,
    ) -> Result<Option<Timestamp>> {
        let watermark: Option<i64> = sqlx::query_scalar(
            "INSERT INTO endpoint_log (project, endpoint, watermark, changes, created_at, touched_at)
             VALUES ($1, $2, NULL, 1, $3, $3)
             ON CONFLICT (project, endpoint) DO UPDATE SET changes = endpoint_log.changes + 1, touched_at = $3
             RETURNING watermark",
        )
        .bind(project)
        .bind(endpoint)
        .bind(now.as_micros())
        .fetch_one(&mut **tx)
        .await?;
        Ok(watermark.map(Timestamp::from_micros))
    }

    async fn enqueue(&self, tx: &mut Transaction<<P as Pools>::Db>, job: &NewJob, now: Timestamp) -> Result<()> {
        enqueue_in(tx, job, now).await?;
        Ok(())
    }

    /// A window has changed: it is to be scored.
    async fn touch(
        &self,
        tx: &mut Transaction<<P as Pools>::Db>,
        monitor: (&str, &str),
        span: Span,
        now: Timestamp,
    ) -> Result<()> {
        let (project, monitor) = monitor;
        let (scored_at, took_us): (Option<i64>, Option<i64>) = sqlx::query_as(
            "INSERT INTO window_score
                 (project, monitor, start_at, end_at, generation, scored_generation, check_at, row_count, touched_at)
             VALUES ($1, $2, $3, $4, 1, 0, $4, 0, $5)
             ON CONFLICT (project, monitor, start_at)
             DO UPDATE SET generation = window_score.generation + 1, touched_at = $5
             RETURNING scored_at, scoring_us",
        )
        .bind(project)
        .bind(monitor)
        .bind(span.start.as_micros())
        .bind(span.end.as_micros())
        .bind(now.as_micros())
        .fetch_one(&mut **tx)
        .await?;
        let window = WindowKey {
            project,
            monitor,
            start: span.start,
        };
        let job = self.score_job(window, LastScore { scored_at, took_us }, now)?;
        self.enqueue(tx, &job, now).await
    }

    /// Windows of a monitor that are closed and not judged by all rules: what the rules are has changed.
    async fn touch_unjudged(
        &self,
        tx: &mut Transaction<<P as Pools>::Db>,
        monitor: (&str, &str),
        now: Timestamp,
    ) -> Result<()> {
        let windows: Vec<(i64, i64)> = sqlx::query_as(
            "SELECT start_at, end_at FROM window_score
             WHERE project = $1 AND monitor = $2 AND check_at IS NOT NULL AND check_at > end_at
             ORDER BY start_at LIMIT $3",
        )
        .bind(monitor.0)
        .bind(monitor.1)
        .bind(MAX_TOUCHED)
        .fetch_all(&mut **tx)
        .await?;
        for (start, end) in windows {
            self.touch(tx, monitor, span(start, end), now).await?;
        }
        Ok(())
    }

    /// The monitors of an endpoint.
    async fn monitors_of(
        &self,
        tx: &mut Transaction<<P as Pools>::Db>,
        project: &str,
        endpoint: &str,
    ) -> Result<Vec<(String, MonitorSpec)>> {
        let rows: Vec<(String, String)> =
            sqlx::query_as("SELECT name, spec FROM monitor WHERE project = $1 AND endpoint = $2 ORDER BY name")
                .bind(project)
                .bind(endpoint)
                .fetch_all(&mut **tx)
                .await?;
        let mut monitors = Vec::with_capacity(rows.len());
        for (name, spec) in rows {
            monitors.push((name, read_json("spec of a monitor", &spec)?));
        }
        Ok(monitors)
    }

    /// Moves the watermark on, never past the present: a wrong clock must not close what is still going on. Windows
    /// that have something to judge from then on are scored.
    async fn advance(
        &self,
        tx: &mut Transaction<<P as Pools>::Db>,
        log: (&str, &str),
        from: Option<Timestamp>,
        to: Timestamp,
        now: Timestamp,
    ) -> Result<()> {
        let to = to.min(now);
        if from.is_some_and(|from| from >= to) {
            return Ok(());
        }
        sqlx::query("UPDATE endpoint_log SET watermark = $3 WHERE project = $1 AND endpoint = $2")
            .bind(log.0)
            .bind(log.1)
            .bind(to.as_micros())
            .execute(&mut **tx)
            .await?;
        let windows: Vec<(String, i64, i64)> = sqlx::query_as(
            "SELECT w.monitor, w.start_at, w.end_at FROM window_score w
             JOIN monitor m ON m.project = w.project AND m.name = w.monitor
             WHERE m.project = $1 AND m.endpoint = $2 AND w.check_at > $3 AND w.check_at <= $4
             ORDER BY w.monitor, w.start_at LIMIT $5",
        )
        .bind(log.0)
        .bind(log.1)
        .bind(from.unwrap_or(Timestamp::MIN).as_micros())
        .bind(to.as_micros())
        .bind(MAX_TOUCHED)
        .fetch_all(&mut **tx)
        .await?;
        for (monitor, start, end) in windows {
            self.touch(tx, (log.0, &monitor), span(start, end), now).await?;
        }
        Ok(())
    }
}
