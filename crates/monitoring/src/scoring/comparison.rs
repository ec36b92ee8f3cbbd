//! Means of what versions did, added up row by row, and their differences.

use std::collections::BTreeMap;

use arrow::{
    array::{AsArray as _, RecordBatch},
    compute::cast,
    datatypes::{DataType, Int64Type, SchemaRef},
};
use modelyard_stats::{
    Moments,
    difference::{holm, mean_difference},
};

use super::{
    MAX_WINDOW_ROWS,
    outcome::{LABEL, Loss, Outputs, PREDICTION},
};
use crate::{
    error::{Error, Result},
    model::{
        comparison::{ComparedVersion, Difference, MetricMean},
        score::Role,
    },
    tables::{GroupColumns, label_at},
};

/// How sure a difference has to be.
pub const CONFIDENCE: f64 = 0.95;

const LATENCY: &str = "latency_us";

/// Adds up what each version did.
#[derive(Default)]
pub struct Comparer {
    rows: u64,
    versions: BTreeMap<String, Seen>,
}

/// What is seen of a version.
#[derive(Default)]
struct Seen {
    rows: u64,
    labels: u64,
    metrics: BTreeMap<&'static str, Moments>,
}

impl Comparer {
    /// The columns of the log that are read.
    #[must_use]
    pub fn columns(log: &SchemaRef) -> Vec<String> {
        let columns = [LATENCY, LABEL, PREDICTION].into_iter();
        let columns = columns.filter(|name| log.index_of(name).is_ok());
        columns.map(str::to_owned).collect()
    }

    /// Adds answers, in the order of their groups.
    ///
    /// # Errors
    /// There are too many, or their columns are not as they should be.
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
            if let Some(key) = keys.key(start).filter(|key| key.role == Role::Live) {
                let seen = self
                    .versions
                    .entry(format!("{}/{}", key.model, key.version))
                    .or_default();
                seen.update(&batch.slice(start, end - start))?;
            }
            start = end;
        }
        Ok(())
    }

    /// The versions, and how those that are not the baseline differ from it.
    #[must_use]
    pub fn finish(self, baseline: &str) -> (Vec<ComparedVersion>, Vec<Difference>) {
        let mut differences = Vec::new();
        let reference = self.versions.get(baseline);
        for (version, seen) in self.versions.iter().filter(|(version, _)| *version != baseline) {
            for (metric, moments) in &seen.metrics {
                let reference = reference.and_then(|reference| reference.metrics.get(metric));
                let found = reference.and_then(|reference| mean_difference(reference, moments, CONFIDENCE));
                differences.extend(found.map(|found| Difference {
                    version: version.clone(),
                    metric: (*metric).to_owned(),
                    difference: found.difference,
                    low: found.interval.0,
                    high: found.interval.1,
                    p_value: found.p_value,
                    adjusted_p_value: found.p_value,
                    significant: false,
                }));
            }
        }
        let p_values: Vec<f64> = differences.iter().map(|difference| difference.p_value).collect();
        for (difference, adjusted) in differences.iter_mut().zip(holm(&p_values)) {
            difference.adjusted_p_value = adjusted;
            difference.significant = adjusted < 1.0 - CONFIDENCE;
        }
        let versions = self.versions.into_iter().map(|(version, seen)| ComparedVersion {
            version,
            rows: seen.rows,
            labels: seen.labels,
            metrics: seen.metrics.into_iter().map(mean_of).collect(),
        });
        (versions.collect(), differences)
    }

    /// The version that answered most, of equal ones the first by name.
    #[must_use]
    pub fn largest(&self) -> Option<&str> {
        let by_rows = self.versions.iter().rev().max_by_key(|(_, seen)| seen.rows);
        by_rows.map(|(version, _)| version.as_str())
    }

    /// Whether a version answered.
    #[must_use]
    pub fn has(&self, version: &str) -> bool {
        self.versions.contains_key(version)
    }
}

fn mean_of((metric, moments): (&'static str, Moments)) -> MetricMean {
    MetricMean {
        metric: metric.to_owned(),
        rows: moments.count,
        mean: moments.mean,
    }
}

impl Seen {
    fn update(&mut self, rows: &RecordBatch) -> Result<()> {
        self.rows += rows.num_rows() as u64;
        let mut values: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
        if let Some(latencies) = rows.column_by_name(LATENCY) {
            let latencies = cast(latencies, &DataType::Int64).map_err(|error| Error::arrow(&error))?;
            let latencies = latencies.as_primitive::<Int64Type>().iter().flatten();
            values.insert(LATENCY, latencies.map(|micros| micros as f64).collect());
        }
        let outputs = Outputs::of(rows)?;
        let labels = [rows.column(3), rows.column(4), rows.column(5)];
        for row in 0..rows.num_rows() {
            let Some(label) = label_at(labels, row) else { continue };
            self.labels += 1;
            let outcome = label.as_number();
            let loss = outputs.loss(row, &label).map(|loss| match loss {
                Loss::Class { is_right } => ("accuracy", f64::from(u8::from(is_right))),
                Loss::Number { distance } => ("absolute_error", distance),
            });
            let found = outcome.map(|outcome| ("label", outcome)).into_iter().chain(loss);
            for (metric, value) in found {
                values.entry(metric).or_default().push(value);
            }
        }
        for (metric, values) in values.into_iter().filter(|(_, values)| !values.is_empty()) {
            self.metrics.entry(metric).or_default().merge(&Moments::of(&values));
        }
        Ok(())
    }
}
