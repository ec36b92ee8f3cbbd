//! Traces.

use std::collections::BTreeMap;

use modelyard_auth::{Action, Caller, Kind, Resource, audit::Operation};
use tokio::sync::SemaphorePermit;

use super::Registry;
use crate::{
    error::{Error, Result},
    model::{
        run::check_key,
        span::{MAX_SESSION_CHARS, MAX_TRACE_NAME_CHARS, MAX_TRACE_TAG_CHARS, SpanGroup, cut, store_spans},
        trace::{
            NewTrace, SpanBatch, TRACE_NAME_TAG, Trace, TraceChoice, TraceDeletion, TraceEnd, TraceInfo, TraceSpans,
        },
        trace_metrics::NAMED_MS,
    },
    store::no_trace,
};

/// The longest id of a trace, in bytes.
const MAX_TRACE_ID_BYTES: usize = 250;
/// The most traces that are asked for at once.
const MAX_TRACES: usize = 1000;
/// The most traces whose spans are asked for at once.
const MAX_WHOLE_TRACES: usize = 200;
/// The most assessments of a trace that are given at once.
const MAX_ASSESSMENTS: usize = 1000;
/// The most traces that are linked at once.
const MAX_LINKS: usize = 100;
/// The most tags, and the most metadata, of a trace that are given at once.
const MAX_TRACE_TEXTS: usize = 1000;
/// How many traces are deleted in one transaction.
const DELETED_AT_ONCE: u32 = 200;
/// The longest preview that a client gives, in characters.
const MAX_GIVEN_PREVIEW_CHARS: usize = 10_000;
/// The longest metadata of a trace, in characters.
const MAX_METADATA_CHARS: usize = 8000;
/// How many spans are read on the thread that answers; more are read on one that may be busy.
const SPANS_INLINE: usize = 64;
/// Tags that only the server sets.
const OWN_TAGS: [&str; 3] = [
    "mlflow.trace.spansLocation",
    "mlflow.trace.archiveLocation",
    "mlflow.trace.archivalFailure",
];
/// The one of them that may be removed.
const REMOVABLE_TAG: &str = "mlflow.trace.archivalFailure";

/// Which traces are to be deleted.
#[derive(Debug, Clone, Default)]
pub struct TraceDeletionForm {
    /// Of this experiment.
    pub experiment_id: i64,
    /// Those that began then or before, in milliseconds since the epoch.
    pub until_ms: Option<i64>,
    /// The most, the oldest first.
    pub limit: Option<i64>,
    /// These; empty: all.
    pub trace_ids: Vec<String>,
}

impl TraceDeletionForm {
    fn check(&self) -> Result<()> {
        let has_ids = !self.trace_ids.is_empty();
        if self.until_ms.is_none() && !has_ids {
            return Err(Error::request(
                "Either `max_timestamp_millis` or `trace_ids` must be specified.",
            ));
        }
        if self.until_ms.is_some() && has_ids {
            return Err(Error::request(
                "Only one of `max_timestamp_millis` and `trace_ids` can be specified.",
            ));
        }
        if has_ids && self.limit.is_some() {
            return Err(Error::request(
                "`max_traces` can't be specified if `trace_ids` is specified.",
            ));
        }
        if let Some(limit) = self.limit.filter(|limit| *limit <= 0) {
            return Err(Error::request(format!(
                "`max_traces` must be a positive integer, received {limit}."
            )));
        }
        if self.trace_ids.len() > MAX_TRACES {
            return Err(Error::request(format!(
                "{} traces are too many at once: delete at most {MAX_TRACES}",
                self.trace_ids.len()
            )));
        }
        Ok(())
    }
}

fn check_trace_id(trace_id: &str) -> Result<()> {
    let is_good = !trace_id.is_empty()
        && trace_id.len() <= MAX_TRACE_ID_BYTES
        && !trace_id.chars().any(|letter| letter.is_control() || letter == '/');
    if is_good {
        return Ok(());
    }
    let shown: String = trace_id.chars().take(64).flat_map(char::escape_default).collect();
    Err(Error::request(format!(
        "`{shown}` is no id of a trace: use 1 to {MAX_TRACE_ID_BYTES} bytes without a slash"
    )))
}

/// Texts of a trace as they are stored: keys are checked, long values are cut.
fn checked_texts(what: &str, texts: BTreeMap<String, String>, limit: usize) -> Result<BTreeMap<String, String>> {
    if texts.len() > MAX_TRACE_TEXTS {
        return Err(Error::request(format!(
            "a trace with {} {what} has too many: use at most {MAX_TRACE_TEXTS}",
            texts.len()
        )));
    }
    let checked = texts.into_iter().map(|(key, value)| {
        check_key(what, &key)?;
        Ok((key, cut(&value, limit)))
    });
    checked.collect()
}

fn check_length(what: &str, value: Option<&str>, limit: usize) -> Result<()> {
    let length = value.map_or(0, |value| value.chars().count());
    if length <= limit {
        return Ok(());
    }
    Err(Error::request(format!(
        "{what} exceeds the maximum length of {limit} characters: it has {length}"
    )))
}

fn check_own_tag(key: &str, operation: &str) -> Result<()> {
    if OWN_TAGS.contains(&key) && !(operation == "deleted" && key == REMOVABLE_TAG) {
        return Err(Error::request(format!(
            "Tag '{key}' is immutable and cannot be {operation} on a trace."
        )));
    }
    Ok(())
}

/// Times beyond would not fit when a duration is added.
fn check_time(time_ms: i64) -> Result<()> {
    if NAMED_MS.contains(&time_ms) {
        return Ok(());
    }
    Err(Error::request(format!(
        "timestamp_ms is {time_ms}: send milliseconds since 1970 in the years 1 to 9999"
    )))
}

impl Registry {
    /// A place among those who read a large request, to be held until it is stored.
    pub(crate) async fn large_request(&self) -> Option<SemaphorePermit<'_>> {
        // It is never closed.
        self.large_requests.acquire().await.ok()
    }

    /// Adds spans, and makes the traces that are new. They are on the disk when this returns. The traces whose root was among
    /// them.
    pub(crate) async fn log_spans(
        &self,
        caller: &Caller,
        project: &str,
        experiment_id: i64,
        groups: Vec<SpanGroup>,
    ) -> Result<Vec<String>> {
        self.enter(caller, Action::RunWrite, Resource::project(project)).await?;
        let count: usize = groups.iter().map(|group| group.spans.len()).sum();
        let traces = if count > SPANS_INLINE {
            tokio::task::spawn_blocking(move || store_spans(groups)).await?
        } else {
            store_spans(groups)
        };
        let has_root = |trace: &&TraceSpans| trace.summary.root_state.is_some();
        let complete = traces
            .iter()
            .filter(has_root)
            .map(|trace| trace.trace_id.clone())
            .collect();
        let batch = SpanBatch {
            project: project.to_owned(),
            experiment_id,
            traces,
        };
        self.spans.put(batch).await?;
        Ok(complete)
    }

    /// Adds what a client tells of a trace.
    pub async fn start_trace(&self, caller: &Caller, project: &str, mut new: NewTrace) -> Result<TraceInfo> {
        self.enter(caller, Action::RunWrite, Resource::project(project)).await?;
        let info = &mut new.info;
        check_trace_id(&info.trace_id)?;
        check_time(info.timestamp_ms)?;
        check_length("Trace name", info.name.as_deref(), MAX_TRACE_NAME_CHARS)?;
        check_length("Session ID", info.session_id.as_deref(), MAX_SESSION_CHARS)?;
        check_length(
            "Client request ID",
            info.client_request_id.as_deref(),
            MAX_SESSION_CHARS,
        )?;
        for preview in [&mut info.request_preview, &mut info.response_preview] {
            *preview = preview.take().map(|text| cut(&text, MAX_GIVEN_PREVIEW_CHARS));
        }
        info.tags = checked_texts("tag", std::mem::take(&mut info.tags), MAX_TRACE_TAG_CHARS)?;
        info.metadata = checked_texts("metadata", std::mem::take(&mut info.metadata), MAX_METADATA_CHARS)?;
        if info.assessments.len() > MAX_ASSESSMENTS {
            return Err(Error::request(format!(
                "{} assessments are too many at once: send at most {MAX_ASSESSMENTS}",
                info.assessments.len()
            )));
        }
        for assessment in &mut info.assessments {
            self.complete_assessment(assessment)?;
        }
        project.clone_into(&mut info.project);
        self.stores.traces.start_trace(&new).await
    }

    /// Makes a trace of the older protocol, with an id of the server's.
    pub async fn start_old_trace(&self, caller: &Caller, project: &str, mut new: NewTrace) -> Result<TraceInfo> {
        new.info.trace_id = self.ids.next().simple().to_string();
        self.start_trace(caller, project, new).await
    }

    /// Ends a trace of the older protocol.
    pub async fn end_trace(
        &self,
        caller: &Caller,
        project: &str,
        trace_id: &str,
        mut end: TraceEnd,
    ) -> Result<TraceInfo> {
        self.enter(caller, Action::RunWrite, Resource::project(project)).await?;
        check_time(end.timestamp_ms)?;
        check_length("Trace name", end.name.as_deref(), MAX_TRACE_NAME_CHARS)?;
        check_length("Session ID", end.session_id.as_deref(), MAX_SESSION_CHARS)?;
        end.tags = checked_texts("tag", end.tags, MAX_TRACE_TAG_CHARS)?;
        end.metadata = checked_texts("metadata", end.metadata, MAX_METADATA_CHARS)?;
        self.stores.traces.end_trace(project, trace_id, &end).await
    }

    fn choice(
        project: &str,
        trace_ids: Vec<String>,
        experiment_ids: Option<Vec<i64>>,
        limit: usize,
    ) -> Result<TraceChoice> {
        if trace_ids.len() > limit {
            return Err(Error::request(format!(
                "{} traces are too many at once: ask for at most {limit}",
                trace_ids.len()
            )));
        }
        Ok(TraceChoice {
            project: project.to_owned(),
            trace_ids,
            experiment_ids,
        })
    }

    /// What is told of a trace.
    pub async fn get_trace_info(&self, caller: &Caller, project: &str, trace_id: &str) -> Result<TraceInfo> {
        let found = self.find_trace_infos(caller, project, vec![trace_id.to_owned()], None);
        found.await?.pop().ok_or_else(|| no_trace(trace_id))
    }

    /// What is told of those of some traces that are there.
    pub async fn find_trace_infos(
        &self,
        caller: &Caller,
        project: &str,
        trace_ids: Vec<String>,
        experiment_ids: Option<Vec<i64>>,
    ) -> Result<Vec<TraceInfo>> {
        self.enter(caller, Action::RunRead, Resource::project(project)).await?;
        let choice = Self::choice(project, trace_ids, experiment_ids, MAX_TRACES)?;
        self.stores.traces.find_trace_infos(&choice).await
    }

    /// Those of some traces that are there, with their spans.
    pub async fn find_traces(
        &self,
        caller: &Caller,
        project: &str,
        trace_ids: Vec<String>,
        experiment_ids: Option<Vec<i64>>,
    ) -> Result<Vec<Trace>> {
        self.enter(caller, Action::RunRead, Resource::project(project)).await?;
        let choice = Self::choice(project, trace_ids, experiment_ids, MAX_WHOLE_TRACES)?;
        self.stores.traces.find_traces(&choice).await
    }

    /// A trace with its spans.
    pub async fn get_trace(&self, caller: &Caller, project: &str, trace_id: &str) -> Result<Trace> {
        let found = self.find_traces(caller, project, vec![trace_id.to_owned()], None);
        found.await?.pop().ok_or_else(|| {
            let shown: String = trace_id.chars().take(64).flat_map(char::escape_default).collect();
            Error::NotThere(format!("Trace with ID {shown} is not found."))
        })
    }

    /// Sets a tag of a trace.
    pub async fn set_trace_tag(
        &self,
        caller: &Caller,
        project: &str,
        trace_id: &str,
        key: &str,
        value: &str,
    ) -> Result<()> {
        self.enter(caller, Action::RunWrite, Resource::project(project)).await?;
        check_own_tag(key, "set")?;
        check_key("tag", key)?;
        if key == TRACE_NAME_TAG {
            check_length("Trace name", Some(value), MAX_TRACE_NAME_CHARS)?;
        }
        let value = cut(value, MAX_TRACE_TAG_CHARS);
        self.stores.traces.set_trace_tag(project, trace_id, key, &value).await
    }

    /// Removes a tag of a trace.
    pub async fn delete_trace_tag(&self, caller: &Caller, project: &str, trace_id: &str, key: &str) -> Result<()> {
        self.enter(caller, Action::RunWrite, Resource::project(project)).await?;
        check_own_tag(key, "deleted")?;
        if self.stores.traces.delete_trace_tag(project, trace_id, key).await? {
            return Ok(());
        }
        Err(Error::NotThere(format!(
            "No trace tag with key '{key}' for trace with ID '{trace_id}'"
        )))
    }

    /// Deletes traces, some at a time, so that others can write meanwhile. How many.
    pub async fn delete_traces(&self, caller: &Caller, project: &str, form: TraceDeletionForm) -> Result<u64> {
        let experiment = form.experiment_id.to_string();
        let resource = Resource::named(Kind::Experiment, project, &experiment);
        self.enter(caller, Action::RunWrite, resource).await?;
        form.check()?;
        let mut event = caller.event(Action::RunWrite, Operation::Delete, &resource);
        // Not the experiment: what is in it.
        event.add_detail("what", "traces");
        let mut event = Some(&event);
        let mut left = form.limit.map_or(u64::MAX, i64::unsigned_abs);
        let mut deletion = TraceDeletion {
            project: project.to_owned(),
            experiment_id: form.experiment_id,
            until_ms: form.until_ms,
            trace_ids: form.trace_ids,
            limit: DELETED_AT_ONCE,
        };
        let mut deleted = 0;
        while left > 0 {
            deletion.limit = u32::try_from(left).unwrap_or(u32::MAX).min(DELETED_AT_ONCE);
            let gone = self.stores.traces.delete_traces(&deletion, event.take()).await?;
            deleted += gone;
            left -= gone.min(left);
            if gone < u64::from(deletion.limit) {
                break;
            }
        }
        Ok(deleted)
    }

    /// Links traces to a run.
    pub async fn link_traces_to_run(
        &self,
        caller: &Caller,
        project: &str,
        run_id: &str,
        trace_ids: &[String],
    ) -> Result<()> {
        self.enter(caller, Action::RunWrite, Resource::project(project)).await?;
        if trace_ids.is_empty() {
            return Ok(());
        }
        if trace_ids.len() > MAX_LINKS {
            return Err(Error::request(format!(
                "Cannot link more than {MAX_LINKS} traces to a run in a single request. Provided {} traces.",
                trace_ids.len()
            )));
        }
        trace_ids.iter().try_for_each(|id| check_trace_id(id))?;
        self.stores.traces.link_traces_to_run(project, run_id, trace_ids).await
    }

    /// Links versions of prompts to a trace.
    pub async fn link_prompts(
        &self,
        caller: &Caller,
        project: &str,
        trace_id: &str,
        prompts: &[(String, u64)],
    ) -> Result<()> {
        self.enter(caller, Action::RunWrite, Resource::project(project)).await?;
        if prompts.len() > MAX_LINKS {
            return Err(Error::request(format!(
                "{} prompts are too many at once: link at most {MAX_LINKS}",
                prompts.len()
            )));
        }
        let prompts: Vec<String> = prompts
            .iter()
            .map(|(name, version)| format!("{name}/{version}"))
            .collect();
        prompts.iter().try_for_each(|prompt| check_key("prompt", prompt))?;
        self.stores.traces.link_prompts(project, trace_id, &prompts).await
    }
}
