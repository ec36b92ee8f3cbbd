//! Windows and their scores.

use async_trait::async_trait;
use conditional_trait_gen::trait_gen;
use modelyard_common::Timestamp;
use modelyard_db::{Pools, PostgresPools, SqlitePools, Transaction};
use modelyard_jobs::{Claim, complete_in};

use super::{
    BTreeSet, LastScore, MonitorJob, Raised, ScoreJob, ScoreTask, Scored, SqlStore, WindowKey, WindowStore, read_json,
    span, spans_of, write_json,
};
use crate::{
    error::Result,
    model::{
        alert::{Finding, alert_id},
        judge::{self, Command, Decision, Outcome, Standing},
        monitor::{Monitor, MonitorSpec},
        page::{Page, PageRequest},
        rule::AlertRuleSpec,
        score::{MonitorWindow, WindowScore},
        window::Span,
    },
};

/// How much of an error's text is kept, in bytes.
const MAX_ERROR_BYTES: usize = 2048;

#[derive(sqlx::FromRow)]
struct WindowRow {
    start_at: i64,
    end_at: i64,
    generation: i64,
    scored_generation: i64,
    check_at: Option<i64>,
    score: Option<String>,
    scored_at: Option<i64>,
    error: Option<String>,
    watermark: Option<i64>,
    judgements: i64,
    alert: Option<String>,
}

impl WindowRow {
    fn window(self) -> Result<MonitorWindow> {
        let score: WindowScore = match &self.score {
            Some(score) => read_json("score of a window", score)?,
            None => WindowScore::default(),
        };
        let span = span(self.start_at, self.end_at);
        let closed = span.is_closed(self.watermark.map(Timestamp::from_micros));
        Ok(MonitorWindow {
            start: span.start,
            end: span.end,
            closed,
            requests: score.requests,
            labels: score.labels,
            label_share: score.label_share(),
            scored_at: self.scored_at.map(Timestamp::from_micros),
            pending: self.scored_generation < self.generation,
            evaluated: self.judgements > 0 && self.check_at.is_none(),
            alert: self.alert,
            error: self.error,
            groups: score.groups,
        })
    }
}

#[derive(sqlx::FromRow)]
struct RuleRow {
    name: String,
    spec: String,
    judges_from: Option<i64>,
    outcome: Option<String>,
}

impl RuleRow {
    fn standing(&self, span: Span) -> Result<Standing> {
        if let Some(outcome) = &self.outcome {
            let outcome = Outcome::read(outcome);
            return Ok(Standing::Judged(outcome.ok_or_else(|| {
                modelyard_db::Error::value("outcome of a judgement", "unknown")
            })?));
        }
        let before = self.judges_from.is_some_and(|from| span.end.as_micros() <= from);
        Ok(if before { Standing::Before } else { Standing::Waiting })
    }
}

/// An alert to be raised.
struct Raise<'a> {
    project: &'a str,
    rule: &'a str,
    spec: &'a AlertRuleSpec,
    endpoint: &'a str,
    span: Span,
    finding: &'a Finding,
}

macro_rules! window_columns {
    ($rest:literal) => {
        concat!(
            "SELECT w.start_at, w.end_at, w.generation, w.scored_generation, w.check_at, w.score, w.scored_at, w.error,
                    (SELECT l.watermark FROM endpoint_log l WHERE l.project = w.project AND l.endpoint = $3) AS watermark,
                    (SELECT COUNT(*) FROM judgement j JOIN alert_rule r ON r.project = j.project AND r.name = j.rule
                     WHERE r.project = w.project AND r.monitor = w.monitor AND j.start_at = w.start_at) AS judgements,
                    (SELECT MIN(a.id) FROM alert a WHERE a.project = w.project AND a.monitor = w.monitor
                     AND a.start_at = w.start_at) AS alert
             FROM window_score w WHERE w.project = $1 AND w.monitor = $2 
             AND (w.row_count > 0 OR w.error IS NOT NULL) ",
            $rest
        )
    };
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
impl SqlStore<P> {
    /// Raises an alert and fires its trigger; whether it is new.
    async fn raise(
        &self,
        tx: &mut Transaction<<P as Pools>::Db>,
        raise: &Raise<'_>,
        now: Timestamp,
    ) -> Result<Option<Raised>> {
        let id = alert_id(raise.project, raise.rule, raise.span.start).to_string();
        let inserted = sqlx::query(
            "INSERT INTO alert (id, project, rule, monitor, endpoint, start_at, end_at, model, version, state, conditions,
                                trigger_name, fired_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 'firing', $10, $11, $12) ON CONFLICT DO NOTHING",
        )
        .bind(&id)
        .bind(raise.project)
        .bind(raise.rule)
        .bind(&raise.spec.monitor)
        .bind(raise.endpoint)
        .bind(raise.span.start.as_micros())
        .bind(raise.span.end.as_micros())
        .bind(&raise.finding.model)
        .bind(i64::from(raise.finding.version))
        .bind(write_json("conditions of an alert", &raise.finding.conditions)?)
        .bind(raise.spec.trigger.as_deref())
        .bind(now.as_micros())
        .execute(&mut **tx)
        .await?;
        if inserted.rows_affected() == 0 {
            return Ok(None);
        }
        // A rule without a trigger may guard a rollout.
        let job = self.fire_job(&id, now)?;
        self.enqueue(tx, &job, now).await?;
        Ok(Some(Raised {
            rule: raise.rule.to_owned(),
            alert: id,
        }))
    }

    /// Lets every rule of the monitor judge the window. The answer is when there is next something to judge, and what
    /// was raised.
    async fn judge(
        &self,
        tx: &mut Transaction<<P as Pools>::Db>,
        scored: &Scored,
        watermark: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<(Option<Timestamp>, Vec<Raised>)> {
        let (monitor, span) = (&scored.task.monitor, scored.task.span);
        let rules: Vec<RuleRow> = sqlx::query_as(
            "SELECT r.name, r.spec, r.judges_from, j.outcome FROM alert_rule r
             LEFT JOIN judgement j ON j.project = r.project AND j.rule = r.name AND j.start_at = $3
             WHERE r.project = $1 AND r.monitor = $2 ORDER BY r.name",
        )
        .bind(&monitor.project)
        .bind(&monitor.name)
        .bind(span.start.as_micros())
        .fetch_all(&mut **tx)
        .await?;
        let mut check_at = if span.is_closed(watermark) {
            None
        } else {
            Some(span.end)
        };
        let mut raised = Vec::new();
        for rule in rules {
            let standing = rule.standing(span)?;
            let spec: AlertRuleSpec = read_json("spec of an alert rule", &rule.spec)?;
            let window = judge::Scored {
                span,
                score: &scored.score,
                min_rows: monitor.spec.min_rows,
            };
            let decision = judge::decide(standing, &spec, window, watermark);
            check_at = check_at.into_iter().chain(decision.check_at).min();
            if decision.standing == standing {
                continue;
            }
            self.store_judgement(tx, (&monitor.project, &rule.name), span, &decision, now)
                .await?;
            for command in &decision.commands {
                if let Command::Raise(finding) = command {
                    let raise = Raise {
                        project: &monitor.project,
                        rule: &rule.name,
                        spec: &spec,
                        endpoint: &monitor.spec.endpoint,
                        span,
                        finding,
                    };
                    raised.extend(self.raise(tx, &raise, now).await?);
                }
            }
        }
        Ok((check_at, raised))
    }

    async fn store_judgement(
        &self,
        tx: &mut Transaction<<P as Pools>::Db>,
        rule: (&str, &str),
        span: Span,
        decision: &Decision,
        now: Timestamp,
    ) -> Result<()> {
        let outcome = match decision.standing {
            Standing::Judged(outcome) => outcome,
            Standing::Waiting | Standing::Before => return Ok(()),
        };
        sqlx::query("INSERT INTO judgement (project, rule, start_at, outcome, judged_at) VALUES ($1, $2, $3, $4, $5)")
            .bind(rule.0)
            .bind(rule.1)
            .bind(span.start.as_micros())
            .bind(outcome.as_str())
            .bind(now.as_micros())
            .execute(&mut **tx)
            .await?;
        if decision.commands.contains(&Command::ResolveEarlier) {
            sqlx::query(
                "UPDATE alert SET state = 'resolved', resolved_at = $4
                 WHERE project = $1 AND rule = $2 AND state = 'firing' AND start_at < $3",
            )
            .bind(rule.0)
            .bind(rule.1)
            .bind(span.start.as_micros())
            .bind(now.as_micros())
            .execute(&mut **tx)
            .await?;
        }
        Ok(())
    }

    /// Whether rows of the window are known that are not in the log yet. Their commit will have it scored again.
    async fn is_incomplete(
        &self,
        tx: &mut Transaction<<P as Pools>::Db>,
        monitor: &Monitor,
        span: Span,
    ) -> Result<bool> {
        let waiting: i64 = sqlx::query_scalar(
            "SELECT COUNT(*) FROM segment WHERE project = $1 AND endpoint = $2 AND state = 'waiting'
             AND min_event_time < $4 AND max_event_time >= $3",
        )
        .bind(&monitor.project)
        .bind(&monitor.spec.endpoint)
        .bind(span.start.as_micros())
        .bind(span.end.as_micros())
        .fetch_one(&mut **tx)
        .await?;
        Ok(waiting > 0)
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
#[async_trait]
impl WindowStore for SqlStore<P> {
    async fn finish_backfill(
        &self,
        claim: &Claim,
        job: &MonitorJob,
        hours: &BTreeSet<Timestamp>,
        now: Timestamp,
    ) -> Result<()> {
        let mut tx = self.pools.begin().await?;
        let row: Option<(String, String)> =
            sqlx::query_as("SELECT endpoint, spec FROM monitor WHERE project = $1 AND name = $2")
                .bind(&job.project)
                .bind(&job.monitor)
                .fetch_optional(&mut *tx)
                .await?;
        if let Some((endpoint, spec)) = row {
            let spec: MonitorSpec = read_json("spec of a monitor", &spec)?;
            self.lock(&mut tx, &job.project, &endpoint, now).await?;
            for span in spans_of(spec.window, hours) {
                self.touch(&mut tx, (&job.project, &job.monitor), span, now).await?;
            }
        }
        complete_in(&mut tx, claim, now).await?;
        tx.commit().await?;
        self.jobs.wake().notify();
        Ok(())
    }

    async fn begin_score(&self, job: &ScoreJob) -> Result<Option<ScoreTask>> {
        let window: Option<(i64, i64, i64)> = sqlx::query_as(
            "SELECT start_at, end_at, generation FROM window_score WHERE project = $1 AND monitor = $2 AND start_at = $3",
        )
        .bind(&job.project)
        .bind(&job.monitor)
        .bind(job.start.as_micros())
        .fetch_optional(self.pools.reader())
        .await?;
        let monitor = super::ResourceStore::find_monitor(self, &job.project, &job.monitor).await?;
        let found = window.zip(monitor);
        Ok(found.map(|((start, end, generation), monitor)| ScoreTask {
            monitor,
            span: span(start, end),
            generation,
        }))
    }

    async fn finish_score(&self, claim: &Claim, scored: &Scored, now: Timestamp) -> Result<Vec<Raised>> {
        let (monitor, task_span) = (&scored.task.monitor, scored.task.span);
        let mut tx = self.pools.begin().await?;
        let watermark = self
            .lock(&mut tx, &monitor.project, &monitor.spec.endpoint, now)
            .await?;
        let row: Option<(i64, Option<i64>)> = sqlx::query_as(
            "SELECT generation, check_at FROM window_score WHERE project = $1 AND monitor = $2 AND start_at = $3",
        )
        .bind(&monitor.project)
        .bind(&monitor.name)
        .bind(task_span.start.as_micros())
        .fetch_optional(&mut *tx)
        .await?;
        complete_in(&mut tx, claim, now).await?;
        let Some((generation, check_at)) = row else {
            tx.commit().await?;
            return Ok(Vec::new());
        };
        // What changed meanwhile is judged when it is scored.
        let newest = generation == scored.task.generation;
        let complete = newest && !self.is_incomplete(&mut tx, monitor, task_span).await?;
        let (check_at, raised) = if complete {
            self.judge(&mut tx, scored, watermark, now).await?
        } else {
            (check_at.map(Timestamp::from_micros), Vec::new())
        };
        let took_us = scored.took.as_micros() as i64;
        sqlx::query(
            "UPDATE window_score SET scored_generation = $4, check_at = $5, row_count = $6, score = $7, scored_at = $8,
                                     scoring_us = $9, error = NULL
             WHERE project = $1 AND monitor = $2 AND start_at = $3",
        )
        .bind(&monitor.project)
        .bind(&monitor.name)
        .bind(task_span.start.as_micros())
        .bind(scored.task.generation)
        .bind(check_at.map(Timestamp::as_micros))
        .bind(scored.score.rows() as i64)
        .bind(write_json("score of a window", &scored.score)?)
        .bind(now.as_micros())
        .bind(took_us)
        .execute(&mut *tx)
        .await?;
        if !newest {
            let window = WindowKey {
                project: &monitor.project,
                monitor: &monitor.name,
                start: task_span.start,
            };
            let last = LastScore {
                scored_at: Some(now.as_micros()),
                took_us: Some(took_us),
            };
            let job = self.score_job(window, last, now)?;
            self.enqueue(&mut tx, &job, now).await?;
        }
        tx.commit().await?;
        self.jobs.wake().notify();
        Ok(raised)
    }

    async fn give_up_score(&self, claim: &Claim, task: &ScoreTask, error: &str, now: Timestamp) -> Result<()> {
        let monitor = &task.monitor;
        let mut tx = self.pools.begin().await?;
        self.lock(&mut tx, &monitor.project, &monitor.spec.endpoint, now)
            .await?;
        let generation: Option<i64> = sqlx::query_scalar(
            "UPDATE window_score SET scored_generation = $4, error = $5
             WHERE project = $1 AND monitor = $2 AND start_at = $3 RETURNING generation",
        )
        .bind(&monitor.project)
        .bind(&monitor.name)
        .bind(task.span.start.as_micros())
        .bind(task.generation)
        .bind(&error[..error.floor_char_boundary(MAX_ERROR_BYTES)])
        .fetch_optional(&mut *tx)
        .await?;
        complete_in(&mut tx, claim, now).await?;
        if generation.is_some_and(|generation| generation > task.generation) {
            let window = WindowKey {
                project: &monitor.project,
                monitor: &monitor.name,
                start: task.span.start,
            };
            let job = self.score_job(window, LastScore::default(), now)?;
            self.enqueue(&mut tx, &job, now).await?;
        }
        tx.commit().await?;
        self.jobs.wake().notify();
        Ok(())
    }

    async fn note_error(&self, job: &ScoreJob, error: &str) -> Result<()> {
        let mut tx = self.pools.begin().await?;
        sqlx::query("UPDATE window_score SET error = $4 WHERE project = $1 AND monitor = $2 AND start_at = $3")
            .bind(&job.project)
            .bind(&job.monitor)
            .bind(job.start.as_micros())
            .bind(&error[..error.floor_char_boundary(MAX_ERROR_BYTES)])
            .execute(&mut *tx)
            .await?;
        Ok(tx.commit().await?)
    }

    async fn list_windows(
        &self,
        monitor: &Monitor,
        page: &PageRequest,
        ascending: bool,
    ) -> Result<Page<MonitorWindow>> {
        let sql = if ascending {
            window_columns!("AND w.start_at > $4 ORDER BY w.start_at LIMIT $5")
        } else {
            window_columns!("AND w.start_at < $4 ORDER BY w.start_at DESC LIMIT $5")
        };
        let rows: Vec<WindowRow> = sqlx::query_as(sql)
            .bind(&monitor.project)
            .bind(&monitor.name)
            .bind(&monitor.spec.endpoint)
            .bind(page.number()?.unwrap_or(if ascending { i64::MIN } else { i64::MAX }))
            .bind(page.rows())
            .fetch_all(self.pools.reader())
            .await?;
        let windows = rows.into_iter().map(WindowRow::window).collect::<Result<_>>()?;
        Ok(page.cut(windows, |window: &MonitorWindow| window.start.as_micros().to_string()))
    }

    async fn find_window(&self, monitor: &Monitor, start: Timestamp) -> Result<Option<MonitorWindow>> {
        let row: Option<WindowRow> = sqlx::query_as(window_columns!("AND w.start_at = $4"))
            .bind(&monitor.project)
            .bind(&monitor.name)
            .bind(&monitor.spec.endpoint)
            .bind(start.as_micros())
            .fetch_optional(self.pools.reader())
            .await?;
        row.map(WindowRow::window).transpose()
    }
}
