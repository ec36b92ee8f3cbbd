//! The server that things go to.

use anyhow::Context;
use serde_json::{Value, json};

use super::mlflow::{Mlflow, list, text};

/// The server that things go to, for one project and one source.
pub struct Target {
    /// Its own face of MLflow's protocol.
    pub server: Mlflow,
    /// The project.
    pub project: String,
    /// What the source is called there.
    pub source: String,
}

/// The fingerprint of what went on when its files were copied. The server keeps it until all has arrived of what is over.
const GOING_ON: &str = "going on";

/// How far something is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// Its id here.
    pub id: String,
    /// What it looked like when all of it had arrived, and how it had ended; empty: some of it has not.
    pub fingerprint: String,
    /// What was read of it.
    pub counts: Counts,
}

/// What was read of something besides itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Points of metrics.
    pub points: u64,
    /// Files.
    pub files: u64,
    /// The size of all files, in bytes.
    pub bytes: u64,
}

impl Counts {
    fn read(value: &Value) -> Self {
        let count = |key: &str| value.get(key).and_then(Value::as_u64).unwrap_or_default();
        Self {
            points: count("points"),
            files: count("files"),
            bytes: count("bytes"),
        }
    }

    fn write(self) -> Value {
        json!({"points": self.points, "files": self.files, "bytes": self.bytes})
    }
}

impl State {
    /// Whether all has arrived of what looks like this.
    pub fn is_whole(&self, fingerprint: &str) -> bool {
        let known = self
            .fingerprint
            .split_once(' ')
            .map_or(self.fingerprint.as_str(), |(known, _)| known);
        !fingerprint.is_empty() && known == fingerprint
    }

    /// Whether the files of what ended so are as they were when the first of them was copied. Of what went on then, or ended anew
    /// since, a file can have another content and the same size.
    pub fn keeps_files(&self, ending: Option<&str>) -> bool {
        let known = self.fingerprint.split_once(' ').map(|(_, ending)| ending);
        ending.is_some() && (self.fingerprint.is_empty() || known == ending)
    }
}

impl Target {
    fn path(&self, what: &str) -> String {
        format!("api/v1/projects/{}/import/{what}", self.project)
    }

    /// Sends a batch, and gives what its things are called here, in their order.
    pub async fn import(&self, what: &str, mut batch: Value) -> anyhow::Result<Vec<String>> {
        batch["source"] = json!(self.source);
        let answer = self.server.post_patiently(&self.path(what), &batch).await?;
        Ok(list(&answer, "items")
            .iter()
            .map(|item| text(item, "id").to_owned())
            .collect())
    }

    /// How far some things are, in their order.
    pub async fn states(&self, kind: &str, ids: &[&str]) -> anyhow::Result<Vec<State>> {
        let body = json!({"source": self.source, "kind": kind, "ids": ids});
        let answer = self.server.post(&self.path("states/find"), &body).await?;
        let items = list(&answer, "items");
        let states = ids.iter().map(|id| {
            let item = items.iter().find(|item| text(item, "source_id") == *id);
            item.map_or_else(State::default, |item| State {
                id: text(item, "id").to_owned(),
                fingerprint: text(item, "fingerprint").to_owned(),
                counts: Counts::read(item.get("counts").unwrap_or(&Value::Null)),
            })
        });
        Ok(states.collect())
    }

    /// Says that something goes on, or went on when files of it were copied, so that all of them are copied again.
    pub async fn suspect(&self, kind: &str, id: &str) -> anyhow::Result<()> {
        self.finish(kind, id, GOING_ON, Counts::default()).await
    }

    /// Says that all of something has arrived.
    pub async fn finish(&self, kind: &str, id: &str, fingerprint: &str, counts: Counts) -> anyhow::Result<()> {
        let item = json!({"source_id": id, "fingerprint": fingerprint, "counts": counts.write()});
        let body = json!({"source": self.source, "kind": kind, "items": [item]});
        self.server.put(&self.path("states"), &body).await?;
        Ok(())
    }

    /// What of the source is in an experiment.
    pub async fn totals(&self, experiment: &str) -> anyhow::Result<Value> {
        let query = [("source", self.source.as_str()), ("experiment_id", experiment)];
        let answer = self.server.get(&self.path("counts"), &query).await;
        answer.context("what arrived cannot be counted")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_kept_of_what_was_over_when_they_came() {
        let state = |fingerprint: &str| State {
            fingerprint: fingerprint.to_owned(),
            ..State::default()
        };
        for (known, ending, keeps) in [
            // It was broken off.
            ("", Some("FINISHED 7"), true),
            ("", None, false),
            (GOING_ON, Some("FINISHED 7"), false),
            (GOING_ON, None, false),
            // A tag was changed.
            ("f0 FINISHED 7", Some("FINISHED 7"), true),
            ("f0 FINISHED 7", Some("FINISHED 9"), false),
            ("f0 FINISHED 7", None, false),
            ("f0", Some("FINISHED 7"), false),
        ] {
            assert_eq!(state(known).keeps_files(ending), keeps, "{known} {ending:?}");
        }
        assert!(state("f0 FINISHED 7").is_whole("f0") && state("f0").is_whole("f0"));
        assert!(!state("f0 FINISHED 7").is_whole("f1") && !state("").is_whole("") && !state(GOING_ON).is_whole("f0"));
    }
}
