//! The answers of one version in one role.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use arrow::{
    array::{Array as _, ArrayRef, AsArray as _, BooleanArray, RecordBatch, Scalar, StringArray},
    compute::{kernels::cmp, nullif},
    datatypes::{DataType, Field, Schema},
};
use modelyard_stats::{
    ColumnKind, DatasetDrift, DriftOptions, DriftTest, Moments, Profile, ProfileOptions, Profiler, profile_drift,
};

use super::{
    LEADING_COLUMNS, Plan, Reference,
    outcome::{Outcomes, Outputs},
};
use crate::{
    error::{Error, Result},
    model::{
        rule,
        score::{ColumnScore, DriftScore, GroupScore, Role},
    },
    tables::{GroupKey, INPUT, label_at},
};

/// The name of the predictions in a reference profile: the probability of the positive class, or the predicted number.
pub const PREDICTION_COLUMN: &str = "prediction";

/// What a group's answers add up to.
pub struct Group {
    reference: Arc<Reference>,
    rows: u64,
    labels: u64,
    drift: Option<Drift>,
    /// Of the labels that are numbers or booleans.
    label: Moments,
    outcomes: Outcomes,
}

/// The profile of a group's inputs, to be compared with a reference.
struct Drift {
    profile: Arc<Profile>,
    features: BTreeSet<String>,
    /// Inputs whose empty texts are missing values: the interface of models has no other word for them, and these
    /// references have no empty text.
    empty_is_missing: BTreeSet<String>,
    predictions: bool,
    profiler: Profiler,
}

impl Drift {
    fn new(profile: Arc<Profile>, plan: &Plan, rows: &RecordBatch) -> Result<Self> {
        let has_input = |name: &String| rows.schema_ref().index_of(&format!("{INPUT}{name}")).is_ok();
        let features: BTreeSet<String> = match &plan.features {
            Some(features) => features.iter().cloned().collect(),
            None => profile.columns.keys().filter(|name| has_input(name)).cloned().collect(),
        };
        let lists_empty = |name: &String| {
            let top = profile.columns.get(name).and_then(|column| column.top_values.as_ref());
            top.is_some_and(|top| top.values.contains_key(""))
        };
        let empty_is_missing = features.iter().filter(|name| !lists_empty(name)).cloned().collect();
        let predictions = profile.columns.contains_key(PREDICTION_COLUMN) && !features.contains(PREDICTION_COLUMN);
        let mut columns = features.clone();
        if predictions {
            columns.insert(PREDICTION_COLUMN.to_owned());
        }
        let options = ProfileOptions {
            columns: Some(columns),
            binnings: profile.binnings(),
            ..ProfileOptions::default()
        };
        let profiler = Profiler::new(&options)?;
        Ok(Self {
            profile,
            features,
            empty_is_missing,
            predictions,
            profiler,
        })
    }

    fn update(&mut self, rows: &RecordBatch, predictions: Option<ArrayRef>) -> Result<()> {
        let (mut fields, mut columns) = (Vec::new(), Vec::new());
        for (field, column) in rows.schema_ref().fields().iter().zip(rows.columns()) {
            let Some(name) = field
                .name()
                .strip_prefix(INPUT)
                .filter(|name| self.features.contains(*name))
            else {
                continue;
            };
            let column = if self.empty_is_missing.contains(name) {
                without_empty(column)?
            } else {
                Arc::clone(column)
            };
            fields.push(Field::new(name, column.data_type().clone(), true));
            columns.push(column);
        }
        if let Some(predictions) = predictions.filter(|_| self.predictions) {
            fields.push(Field::new(PREDICTION_COLUMN, predictions.data_type().clone(), true));
            columns.push(predictions);
        }
        if columns.is_empty() {
            return Ok(());
        }
        let batch =
            RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(|error| Error::arrow(&error))?;
        Ok(self.profiler.update(&batch)?)
    }

    fn finish(self, plan: &Plan) -> Result<(DriftScore, Option<ColumnScore>)> {
        let current = self.profiler.finish();
        let measured = measure(&self.profile, &current, self.features, plan)?;
        let columns: Vec<ColumnScore> = measured.columns.iter().map(column_score).collect();
        let drifted = measured
            .columns
            .iter()
            .filter(|column| column.drifted)
            .map(|column| column.column.clone());
        let score = DriftScore {
            share: measured.drifted_share,
            drifted: drifted.collect(),
            columns,
        };
        let predictions = if self.predictions {
            let only = BTreeSet::from([PREDICTION_COLUMN.to_owned()]);
            measure(&self.profile, &current, only, plan)?
                .columns
                .first()
                .map(column_score)
        } else {
            None
        };
        Ok((score, predictions))
    }
}

/// Compares two profiles as a plan wants it. Columns that the test is not defined for are tested as with `auto`.
fn measure(reference: &Profile, current: &Profile, columns: BTreeSet<String>, plan: &Plan) -> Result<DatasetDrift> {
    let mut options = DriftOptions {
        test: plan.test,
        columns: Some(columns),
        min_rows: plan.min_rows,
        ..DriftOptions::default()
    };
    if plan.test.is_numeric_only() {
        for (name, column) in &reference.columns {
            if matches!(column.kind, ColumnKind::Text | ColumnKind::Boolean) {
                options.tests.insert(name.clone(), DriftTest::Auto);
            }
        }
    }
    let first = loop {
        match profile_drift(reference, current, &options) {
            // Each round settles one column more.
            Err(modelyard_stats::Error::TestNotApplicable { column, test, .. }) if test != DriftTest::Auto => {
                if options.tests.insert(column, DriftTest::Auto) == Some(DriftTest::Auto) {
                    return Err(Error::Log(format!("no drift test fits, not even instead of {test}")));
                }
            }
            measured => break measured?,
        }
    };
    // Which test is applied to a column is known only now, and with it the threshold.
    for column in &first.columns {
        if let Some(threshold) = plan.thresholds.get(&column.test) {
            options.thresholds.insert(column.column.clone(), *threshold);
        }
    }
    if options.thresholds.is_empty() {
        return Ok(first);
    }
    Ok(profile_drift(reference, current, &options)?)
}

fn column_score(drift: &modelyard_stats::ColumnDrift) -> ColumnScore {
    let outcome = serde_json::to_value(drift.outcome).ok();
    ColumnScore {
        column: drift.column.clone(),
        test: drift.test.to_string(),
        value: drift.value,
        threshold: drift.threshold,
        allowance: drift.allowance,
        drifted: drift.drifted,
        outcome: outcome
            .and_then(|outcome| outcome.as_str().map(str::to_owned))
            .unwrap_or_default(),
        missing_change: drift.missing_change,
    }
}

/// A column of text with null in place of empty texts; any other column as it is.
fn without_empty(column: &ArrayRef) -> Result<ArrayRef> {
    if *column.data_type() != DataType::Utf8 {
        return Ok(Arc::clone(column));
    }
    let empty: BooleanArray = cmp::eq(column.as_string::<i32>(), &Scalar::new(StringArray::from(vec![""])))
        .map_err(|error| Error::arrow(&error))?;
    nullif(column, &empty).map_err(|error| Error::arrow(&error))
}

impl Group {
    /// A group that has seen no answers. `rows` shows its columns.
    pub fn new(role: Role, reference: Arc<Reference>, plan: &Plan, rows: &RecordBatch) -> Result<Self> {
        let drift = match &reference.profile {
            Some(profile) if role == Role::Live => Some(Drift::new(Arc::clone(profile), plan, rows)?),
            _ => None,
        };
        Ok(Self {
            reference,
            rows: 0,
            labels: 0,
            drift,
            label: Moments::default(),
            outcomes: Outcomes::default(),
        })
    }

    /// Adds answers.
    pub fn update(&mut self, rows: &RecordBatch) -> Result<()> {
        self.rows += rows.num_rows() as u64;
        let outputs = Outputs::of(rows)?;
        if let Some(drift) = &mut self.drift {
            drift.update(rows, outputs.predictions())?;
        }
        let labels = [
            rows.column(LEADING_COLUMNS - 3),
            rows.column(LEADING_COLUMNS - 2),
            rows.column(LEADING_COLUMNS - 1),
        ];
        let mut values = Vec::new();
        for row in 0..rows.num_rows() {
            let Some(label) = label_at(labels, row) else { continue };
            self.labels += 1;
            if let Some(value) = label.as_number() {
                values.push(value);
            }
            self.outcomes.add(&outputs, row, &label)?;
        }
        self.label.merge(&Moments::of(&values));
        Ok(())
    }

    /// What came out.
    pub fn finish(self, key: GroupKey, plan: &Plan) -> Result<GroupScore> {
        let mut notes = self.reference.notes.clone();
        let (drift, prediction_drift) = match self.drift {
            Some(drift) => {
                let (drift, predictions) = drift.finish(plan)?;
                (Some(drift), predictions)
            }
            None => (None, None),
        };
        let mut performance = self.outcomes.finish(&mut notes)?;
        if self.label.count > 0 {
            let metrics = performance.get_or_insert_default();
            metrics.insert(rule::LABEL.to_owned(), self.label.mean);
        }
        Ok(GroupScore {
            role: key.role,
            model: key.model,
            version: key.version,
            rows: self.rows,
            labels: self.labels,
            drift,
            prediction_drift,
            performance,
            reference: self.reference.metrics.clone().map(BTreeMap::from_iter),
            notes,
        })
    }
}
