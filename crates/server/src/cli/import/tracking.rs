//! Experiments with their runs and logged models.

use futures::{StreamExt, stream};
use serde_json::{Value, json};

use super::{
    Import, convert,
    files::copy_files,
    mlflow::{Place, list, text},
    target::{Counts, State},
};

/// How many runs or logged models are on their way at the same time.
const AT_ONCE: usize = 8;
/// The most that is sent in one batch, in bytes of JSON, about.
const BATCH_BYTES: usize = 4 << 20;

/// An experiment there and here.
pub struct Home {
    /// Its id there.
    pub source_id: String,
    /// Its id here.
    pub id: String,
}

/// Something of which the parts that are sent one by one are to be brought.
struct Waiting {
    id: String,
    fingerprint: String,
    /// How it ended; None: more of it may come.
    ending: Option<String>,
    /// Whether files that are here already are as they are there.
    keeps_files: bool,
    /// What is asked for one by one: metrics.
    keys: Vec<String>,
    place: Place,
    root: String,
}

impl Import {
    /// Brings the runs of an experiment, page by page.
    pub async fn bring_runs(&self, home: &Home) -> anyhow::Result<()> {
        let mut token: Option<String> = None;
        loop {
            let page = self.source.runs(&home.source_id, token.as_deref()).await?;
            self.bring_run_page(home, &page.items).await?;
            if page.next.is_none() || page.items.is_empty() {
                return Ok(());
            }
            token = page.next;
        }
    }

    async fn bring_run_page(&self, home: &Home, found: &[Value]) -> anyhow::Result<()> {
        self.bar.inc_length(found.len() as u64);
        let ids: Vec<&str> = found.iter().map(convert::run_id).collect();
        let states = self.target.states("run", &ids).await?;
        let (mut sent, mut waiting) = (Vec::new(), Vec::new());
        for (run, state) in found.iter().zip(states) {
            let converted = convert::run(run);
            let metrics = run.pointer("/data/metrics").cloned().unwrap_or(Value::Null);
            let fingerprint = convert::fingerprint(&[&converted, &metrics]);
            self.count_run(&converted);
            if state.is_whole(&fingerprint) {
                self.count_parts(state.counts);
                self.bar.inc(1);
                continue;
            }
            let run_id = convert::run_id(run).to_owned();
            let ending = convert::run_ending(run);
            let keeps_files = state.keeps_files(ending.as_deref());
            if !keeps_files && !state.id.is_empty() {
                self.target.suspect("run", &run_id).await?;
            }
            let uri = run.pointer("/info/artifact_uri").and_then(Value::as_str);
            waiting.push(Waiting {
                place: Place::read(uri.unwrap_or_default(), Place::Run(run_id.clone())),
                root: format!("{}/{run_id}/artifacts", home.id),
                keys: convert::metric_keys(run),
                fingerprint,
                ending,
                keeps_files,
                id: run_id,
            });
            sent.push(converted);
        }
        let refused = self.send_batches(home, "runs", "runs", "run_id", sent).await;
        waiting.retain(|run| !refused.contains(&run.id));
        self.bring_parts("run", waiting).await;
        Ok(())
    }

    fn count_run(&self, run: &Value) {
        let mut report = self.report.lock();
        report.read("runs", 1);
        let fields = |key: &str| {
            run.get(key)
                .and_then(Value::as_object)
                .map_or(0, |texts| texts.len() as u64)
        };
        report.read("params", fields("params"));
        report.read("tags", fields("tags"));
        let links = list(run, "datasets").len() + list(run, "models").len();
        report.read("links", links as u64);
    }

    fn count_parts(&self, counts: Counts) {
        let mut report = self.report.lock();
        report.read("points", counts.points);
        report.read("files", counts.files);
        report.read("bytes", counts.bytes);
    }

    /// Sends things in batches of a bounded size. A batch that is refused is sent one by one, so that nothing fails for
    /// another; the ids of what is refused.
    async fn send_batches(&self, home: &Home, path: &str, field: &str, id_key: &str, items: Vec<Value>) -> Vec<String> {
        let mut refused = Vec::new();
        let mut batch = Vec::new();
        let mut bytes = 0;
        for item in items {
            let size = item.to_string().len();
            if !batch.is_empty() && bytes + size > BATCH_BYTES {
                refused.extend(
                    self.send_batch(home, path, field, id_key, std::mem::take(&mut batch))
                        .await,
                );
                bytes = 0;
            }
            bytes += size;
            batch.push(item);
        }
        if !batch.is_empty() {
            refused.extend(self.send_batch(home, path, field, id_key, batch).await);
        }
        refused
    }

    async fn send_batch(&self, home: &Home, path: &str, field: &str, id_key: &str, batch: Vec<Value>) -> Vec<String> {
        let number: i64 = home.id.parse().unwrap_or_default();
        let body = |items: &[Value]| json!({"experiment_id": number, field: items});
        if batch.len() > 1 && self.target.import(path, body(&batch)).await.is_ok() {
            return Vec::new();
        }
        let mut refused = Vec::new();
        for item in batch {
            let id = text(&item, id_key).to_owned();
            if let Err(error) = self.target.import(path, body(std::slice::from_ref(&item))).await {
                self.report.lock().problem(&format!("{field} `{id}`"), &error);
                self.bar.inc(1);
                refused.push(id);
            }
        }
        refused
    }

    /// Brings metrics and files of several things at the same time.
    async fn bring_parts(&self, kind: &'static str, waiting: Vec<Waiting>) {
        let brought = stream::iter(waiting).map(|thing| async move {
            if let Err(error) = self.bring_part(kind, &thing).await {
                self.report.lock().problem(&format!("{kind} `{}`", thing.id), &error);
            }
            self.bar.inc(1);
        });
        brought.buffer_unordered(AT_ONCE).collect::<()>().await;
    }

    async fn bring_part(&self, kind: &str, thing: &Waiting) -> anyhow::Result<()> {
        // Said before the first file is copied, so that it is known however this ends.
        if !thing.keeps_files {
            self.target.suspect(kind, &thing.id).await?;
        }
        let mut points = 0;
        for key in &thing.keys {
            points += self.bring_points(&thing.id, key).await?;
        }
        let files = copy_files(&self.source, &thing.place, &self.target, &thing.root, thing.keeps_files);
        let mut counts = files.await?;
        counts.points = points;
        self.count_parts(counts);
        match &thing.ending {
            Some(ending) => {
                let fingerprint = format!("{} {ending}", thing.fingerprint);
                self.target.finish(kind, &thing.id, &fingerprint, counts).await
            }
            None => Ok(()),
        }
    }

    async fn bring_points(&self, run_id: &str, key: &str) -> anyhow::Result<u64> {
        let (mut count, mut token) = (0, None::<String>);
        loop {
            let page = self.source.points(run_id, key, token.as_deref()).await?;
            count += page.items.len() as u64;
            for chunk in page.items.chunks(MAX_POINTS) {
                let points: Vec<Value> = chunk.iter().map(convert::point).collect();
                let body = json!({"run_id": run_id, "key": key, "points": points});
                self.target.import("points", body).await?;
            }
            if page.next.is_none() || page.items.is_empty() {
                return Ok(count);
            }
            token = page.next;
        }
    }

    /// Brings the logged models of an experiment, page by page.
    pub async fn bring_logged_models(&self, home: &Home) -> anyhow::Result<()> {
        let mut token: Option<String> = None;
        loop {
            let page = self.source.logged_models(&home.source_id, token.as_deref()).await?;
            self.bring_logged_model_page(home, &page.items).await?;
            if page.next.is_none() || page.items.is_empty() {
                return Ok(());
            }
            token = page.next;
        }
    }

    async fn bring_logged_model_page(&self, home: &Home, found: &[Value]) -> anyhow::Result<()> {
        self.bar.inc_length(found.len() as u64);
        let id_of = |model: &Value| {
            model
                .pointer("/info/model_id")
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let ids: Vec<String> = found.iter().map(id_of).collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        let states: Vec<State> = self.target.states("logged_model", &ids).await?;
        let (mut sent, mut waiting) = (Vec::new(), Vec::new());
        for ((model, id), state) in found.iter().zip(ids).zip(states) {
            let converted = convert::logged_model(model);
            let fingerprint = convert::fingerprint(&[&converted]);
            self.report.lock().read("logged_models", 1);
            if state.is_whole(&fingerprint) {
                self.count_parts(state.counts);
                self.bar.inc(1);
                continue;
            }
            let ending = convert::logged_model_ending(&converted);
            let keeps_files = state.keeps_files(ending.as_deref());
            if !keeps_files && !state.id.is_empty() {
                self.target.suspect("logged_model", id).await?;
            }
            let uri = model.pointer("/info/artifact_uri").and_then(Value::as_str);
            waiting.push(Waiting {
                place: Place::read(uri.unwrap_or_default(), Place::LoggedModel(id.to_owned())),
                root: format!("{}/models/{id}/artifacts", home.id),
                keys: Vec::new(),
                fingerprint,
                ending,
                keeps_files,
                id: id.to_owned(),
            });
            sent.push(converted);
        }
        let refused = self
            .send_batches(home, "logged-models", "models", "model_id", sent)
            .await;
        waiting.retain(|model| !refused.contains(&model.id));
        self.bring_parts("logged_model", waiting).await;
        Ok(())
    }
}

/// The most points of one batch.
const MAX_POINTS: usize = 25_000;
