//! Scoring windows.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use modelyard_common::{Timestamp, error::Chain};
use modelyard_jobs::Claim;
use tracing::Instrument as _;

use super::{Monitoring, compute_over};
use crate::{
    error::{Error, Result},
    measure,
    model::score::WindowScore,
    scoring::{Plan, Reference, Scorer},
    store::{MonitorJob, ScoreJob, ScoreTask, Scored},
};

/// Whether a window cannot be scored before something about it changes.
const fn is_hopeless(error: &Error) -> bool {
    matches!(
        error,
        Error::WindowTooLarge { .. } | Error::Statistics(_) | Error::Log(_)
    )
}

impl Monitoring {
    /// Scores a window anew; what it replaces is gone. Then the alert rules judge it.
    pub(super) async fn run_score(&self, job: &ScoreJob, claim: &Claim) -> Result<()> {
        let span = tracing::debug_span!("monitoring.score", monitor = job.monitor, window = %job.start);
        self.score(job, claim).instrument(span).await
    }

    async fn score(&self, job: &ScoreJob, claim: &Claim) -> Result<()> {
        let Some(task) = self.store.begin_score(job).await? else {
            // The monitor was deleted.
            self.jobs.complete(claim, self.clock.now()).await?;
            return Ok(());
        };
        let started = Instant::now();
        let score = match self.compute(&task).await {
            Ok(score) => score,
            Err(error) if is_hopeless(&error) => {
                let text = Chain(&error).to_string();
                tracing::error!(monitor = job.monitor, window = %job.start, error = text, "a window cannot be scored");
                return self.store.give_up_score(claim, &task, &text, self.clock.now()).await;
            }
            Err(error) => return Err(error),
        };
        let took = started.elapsed();
        measure::scored(&task.monitor.name, took);
        let scored = Scored { task, score, took };
        for raised in self.store.finish_score(claim, &scored, self.clock.now()).await? {
            measure::raised(&raised.rule);
            tracing::info!(rule = raised.rule, alert = raised.alert, window = %job.start, "an alert fires");
        }
        Ok(())
    }

    async fn compute(&self, task: &ScoreTask) -> Result<WindowScore> {
        let monitor = &task.monitor;
        let tables = self.tables(&monitor.project, &monitor.spec.endpoint)?;
        let mut references = BTreeMap::new();
        for group in tables.groups(task.span).await? {
            let reference = if group.version == 0 {
                Arc::new(Reference::default())
            } else {
                self.registry
                    .reference(&monitor.project, &group.model, group.version)
                    .await?
            };
            references.insert(group, reference);
        }
        let plan = Plan::new(&monitor.spec, references);
        let columns = plan.columns(&tables.log_columns().await?);
        let answers = tables.answers(task.span, &columns).await?;
        compute_over(answers, move |batches| {
            let mut scorer = Scorer::new(plan);
            for batch in batches {
                scorer.update(&batch)?;
            }
            scorer.finish()
        })
        .await
    }

    /// Finds the windows of a monitor that have predictions already.
    pub(super) async fn run_backfill(&self, job: &MonitorJob, claim: &Claim) -> Result<()> {
        let hours: BTreeSet<Timestamp> = match self.store.find_monitor(&job.project, &job.monitor).await? {
            Some(monitor) => self.tables(&job.project, &monitor.spec.endpoint)?.all_hours().await?,
            None => BTreeSet::new(),
        };
        self.store.finish_backfill(claim, job, &hours, self.clock.now()).await
    }
}
