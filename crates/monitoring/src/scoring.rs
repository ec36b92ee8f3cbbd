//! Scoring a window: one pass over its answers, one group after the other.

mod comparison;
mod group;
mod outcome;

use std::{collections::BTreeMap, sync::Arc};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use modelyard_stats::{DriftTest, Profile};

use crate::{
    error::{Error, Result},
    model::{
        monitor::MonitorSpec,
        score::{GroupScore, Role, WindowScore},
    },
    tables::{GroupColumns, GroupKey, INPUT},
};
pub use comparison::{CONFIDENCE, Comparer};
use group::Group;

/// The most rows of one window.
pub const MAX_WINDOW_ROWS: u64 = 50_000_000;
/// How many columns come before those that were asked for: role, model, model_version, label, label_text, label_boolean.
const LEADING_COLUMNS: usize = 6;
/// The outputs that scores are made of.
const OUTPUTS: [&str; 3] = [outcome::LABEL, outcome::PROBABILITIES, outcome::PREDICTION];

/// What is known of a version beside its answers.
#[derive(Debug, Clone, Default)]
pub struct Reference {
    /// The metrics that it was registered with; `None` if the registry does not know the version.
    pub metrics: Option<BTreeMap<String, f64>>,
    /// The profile of its training data.
    pub profile: Option<Arc<Profile>>,
    /// Why something is missing.
    pub notes: Vec<String>,
}

/// What is to be scored, and against what.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The drift test.
    pub test: DriftTest,
    /// Thresholds of single tests.
    pub thresholds: BTreeMap<DriftTest, f64>,
    /// Groups with fewer rows are not tested.
    pub min_rows: u64,
    /// The features that were named; `None` for all.
    pub features: Option<Vec<String>>,
    /// What is known of each version that answered.
    pub references: BTreeMap<GroupKey, Arc<Reference>>,
}

impl Plan {
    /// The plan of a monitor.
    #[must_use]
    pub fn new(spec: &MonitorSpec, references: BTreeMap<GroupKey, Arc<Reference>>) -> Self {
        Self {
            test: spec.tests,
            thresholds: spec.thresholds.clone(),
            min_rows: spec.min_rows,
            features: spec
                .features
                .as_ref()
                .map(|features| features.iter().cloned().collect()),
            references,
        }
    }

    /// The columns of the log that are read: the inputs that a reference knows, and the outputs.
    #[must_use]
    pub fn columns(&self, log: &SchemaRef) -> Vec<String> {
        let known = |name: &str| {
            let live = self.references.iter().filter(|(key, _)| key.role == Role::Live);
            let mut profiles = live.filter_map(|(_, reference)| reference.profile.as_ref());
            profiles.any(|profile| profile.columns.contains_key(name))
        };
        let wanted = |name: &str| match name.strip_prefix(INPUT) {
            Some(input) => {
                let named = self.features.as_ref();
                known(input) && named.is_none_or(|features| features.iter().any(|feature| feature == input))
            }
            None => OUTPUTS.contains(&name),
        };
        log.fields()
            .iter()
            .map(|field| field.name())
            .filter(|name| wanted(name))
            .cloned()
            .collect()
    }
}

/// Adds up the answers of a window. Blocks for as long as the numbers take.
pub struct Scorer {
    plan: Plan,
    current: Option<(GroupKey, Group)>,
    rows: u64,
    groups: Vec<GroupScore>,
}

impl Scorer {
    /// A scorer that has seen no answers.
    #[must_use]
    pub const fn new(plan: Plan) -> Self {
        Self {
            plan,
            current: None,
            rows: 0,
            groups: Vec::new(),
        }
    }

    /// Adds answers, in the order of their groups.
    ///
    /// # Errors
    /// The window is too large, or its columns are not as they should be.
    pub fn update(&mut self, batch: &RecordBatch) -> Result<()> {
        self.rows += batch.num_rows() as u64;
        if self.rows > MAX_WINDOW_ROWS {
            return Err(Error::WindowTooLarge {
                limit: MAX_WINDOW_ROWS,
                what: "rows",
            });
        }
        let keys = GroupColumns::of(batch, 0)?;
        let mut start = 0;
        while start < batch.num_rows() {
            let mut end = start + 1;
            while end < batch.num_rows() && keys.same(start, end) {
                end += 1;
            }
            if let Some(key) = keys.key(start) {
                self.add(key, &batch.slice(start, end - start))?;
            }
            start = end;
        }
        Ok(())
    }

    fn add(&mut self, key: GroupKey, rows: &RecordBatch) -> Result<()> {
        let mut group = match self.current.take() {
            Some((current, group)) if current == key => group,
            other => {
                if let Some((finished, group)) = other {
                    self.groups.push(group.finish(finished, &self.plan)?);
                }
                let reference = self.plan.references.get(&key).cloned().unwrap_or_default();
                Group::new(key.role, reference, &self.plan, rows)?
            }
        };
        group.update(rows)?;
        self.current = Some((key, group));
        Ok(())
    }

    /// The score of all answers.
    ///
    /// # Errors
    /// The statistics refuse what was collected.
    pub fn finish(mut self) -> Result<WindowScore> {
        if let Some((key, group)) = self.current.take() {
            self.groups.push(group.finish(key, &self.plan)?);
        }
        let live = self.groups.iter().filter(|group| group.role == Role::Live);
        let (requests, labels) = live.fold((0, 0), |sum, group| (sum.0 + group.rows, sum.1 + group.labels));
        Ok(WindowScore {
            requests,
            labels,
            groups: self.groups,
        })
    }
}
