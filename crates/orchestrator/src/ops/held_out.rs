//! The last slice of time: kept away from training, and what candidates and champions are compared on.

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch},
    compute::cast,
    datatypes::{DataType, Float64Type, Int64Type},
};
use modelyard_inference::{Model, Probabilities, probabilities, tensors_from_batch};
use modelyard_stats::{BinaryMetrics, MulticlassMetrics, RegressionMetrics, performance::DECISION_THRESHOLD};
use modelyard_trainer::{Labels, Task, split_by_time};
use std::collections::BTreeMap;

use super::{StepError, context::Reporter};
use crate::model::parse_duration;

/// Rows that go through a graph at once.
pub(super) const SCORE_ROWS: usize = 8_192;

/// The rows before the last slice of time, and the slice.
pub(super) fn split(
    table: &RecordBatch,
    time_column: Option<&str>,
    holdout: &str,
) -> Result<(RecordBatch, RecordBatch), StepError> {
    let time_column = time_column
        .ok_or_else(|| StepError::Fail("with.holdout: needs `time_column`, which says when each row was".to_owned()))?;
    let last = parse_duration(holdout).map_err(|problem| StepError::Fail(format!("with.holdout: {problem}")))?;
    split_by_time(table, time_column, last).map_err(|error| StepError::Fail(error.to_string()))
}

/// What a graph answers for all rows: probabilities of each class, or one number a row.
pub(super) fn score(
    model: &Model,
    rows: &RecordBatch,
    reporter: &Reporter,
    who: &str,
) -> Result<Probabilities, StepError> {
    let fail = |error: modelyard_inference::Error| StepError::Fail(format!("{who}: {error}"));
    let total = rows.num_rows();
    let mut all = Probabilities {
        rows: 0,
        classes: 0,
        values: Vec::new(),
    };
    for begin in (0..total).step_by(SCORE_ROWS) {
        reporter.check()?;
        reporter.report(begin as u64, total as u64, format!("scoring the held-out slice: {who}"));
        let part = rows.slice(begin, SCORE_ROWS.min(total - begin));
        let inputs = tensors_from_batch(&part, model.signature()).map_err(fail)?;
        let scored = probabilities(&model.run(inputs).map_err(fail)?).map_err(fail)?;
        all.rows += scored.rows;
        all.classes = scored.classes;
        all.values.extend(scored.values);
    }
    Ok(all)
}

/// The labels of the slice, as the metrics want them.
pub(super) enum Truth {
    /// Whether each row is of the second class.
    Binary(Vec<bool>),
    /// The place of each row's class.
    Multiclass(Vec<u32>, u32),
    /// The number of each row.
    Numbers(Vec<f64>),
}

impl Truth {
    pub(super) fn read(
        rows: &RecordBatch,
        target: &str,
        task: Task,
        classes: Option<&Labels>,
    ) -> Result<Self, StepError> {
        let column = rows.column_by_name(target).ok_or_else(|| {
            StepError::Fail(format!(
                "the dataset has no column `{target}`, the target of the candidate"
            ))
        })?;
        if column.null_count() > 0 {
            return Err(StepError::Fail(format!(
                "column `{target}` has missing labels in the held-out slice: leave those rows out"
            )));
        }
        let fail = |problem: String| StepError::Fail(format!("column `{target}`: {problem}"));
        match (task, classes) {
            (Task::Regression, _) | (_, None) => numbers(column).map(Self::Numbers).map_err(fail),
            (_, Some(classes)) => {
                let places = places(column, classes).map_err(fail)?;
                if classes.len() == 2 {
                    return Ok(Self::Binary(places.into_iter().map(|place| place == 1).collect()));
                }
                Ok(Self::Multiclass(places, classes.len() as u32))
            }
        }
    }

    /// How good answers are, by the names that metrics have everywhere.
    pub(super) fn metrics(&self, answers: &Probabilities, who: &str) -> Result<BTreeMap<String, f64>, StepError> {
        let expected = match self {
            Self::Binary(_) => 2,
            Self::Multiclass(_, classes) => *classes as usize,
            Self::Numbers(_) => 1,
        };
        if answers.classes != expected {
            return Err(StepError::Fail(format!(
                "{who} answers {} values a row where the target has {expected}: it was trained for another task, so that they cannot be compared",
                answers.classes
            )));
        }
        let values = match self {
            Self::Binary(truth) => {
                BinaryMetrics::compute(truth, &answers.class(1), DECISION_THRESHOLD).map(|metrics| metrics.values())
            }
            Self::Multiclass(truth, classes) => {
                MulticlassMetrics::compute(truth, &answers.values, *classes).map(|metrics| metrics.values())
            }
            Self::Numbers(truth) => RegressionMetrics::compute(truth, &answers.values).map(|metrics| metrics.values()),
        };
        let values = values.map_err(|error| StepError::Fail(format!("{who}: {error}")))?;
        Ok(values
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect())
    }
}

fn numbers(column: &ArrayRef) -> Result<Vec<f64>, String> {
    let column = cast(column, &DataType::Float64).map_err(|error| error.to_string())?;
    Ok(column.as_primitive::<Float64Type>().values().to_vec())
}

/// The place of each row's label among the classes.
fn places(column: &ArrayRef, classes: &Labels) -> Result<Vec<u32>, String> {
    let find = |position: Option<usize>, label: &dyn std::fmt::Display| {
        position.and_then(|place| u32::try_from(place).ok()).ok_or_else(|| {
            format!("the label `{label}` of the held-out slice is not among the rows that were trained on: hold less out, or train on more")
        })
    };
    let as_type = |data_type: &DataType| cast(column, data_type).map_err(|error| error.to_string());
    match classes {
        Labels::Text(classes) => {
            let column = as_type(&DataType::Utf8)?;
            let texts = column.as_string::<i32>().iter().flatten();
            texts
                .map(|text| find(classes.iter().position(|class| class == text), &text))
                .collect()
        }
        Labels::Int64(_) | Labels::Int32(_) => {
            let classes: Vec<i64> = match classes {
                Labels::Int64(classes) => classes.clone(),
                Labels::Int32(classes) => classes.iter().copied().map(i64::from).collect(),
                _ => Vec::new(),
            };
            let column = as_type(&DataType::Int64)?;
            let labels = column.as_primitive::<Int64Type>().values();
            labels
                .iter()
                .map(|label| find(classes.iter().position(|class| class == label), label))
                .collect()
        }
        Labels::Bool(_) | Labels::Float32(_) | Labels::Float64(_) => {
            let classes: Vec<f64> = match classes {
                Labels::Bool(classes) => classes.iter().map(|&class| f64::from(u8::from(class))).collect(),
                Labels::Float32(classes) => classes.iter().copied().map(f64::from).collect(),
                Labels::Float64(classes) => classes.clone(),
                _ => Vec::new(),
            };
            let near = |label: f64| {
                classes
                    .iter()
                    .position(|&class| (class - label).abs() <= f64::from(f32::EPSILON) * label.abs())
            };
            numbers(column)?
                .into_iter()
                .map(|label| find(near(label), &label))
                .collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{BooleanArray, Float64Array, Int64Array, StringArray};

    use super::*;

    fn truth(column: ArrayRef, task: Task, classes: Option<&Labels>) -> Result<Truth, StepError> {
        let rows = RecordBatch::try_from_iter([("y", column)]).unwrap();
        Truth::read(&rows, "y", task, classes)
    }

    fn answers(classes: usize, values: Vec<f64>) -> Probabilities {
        Probabilities {
            rows: values.len() / classes,
            classes,
            values,
        }
    }

    #[test]
    fn the_second_class_is_positive_whatever_its_type() {
        let columns: [(ArrayRef, Labels); 4] = [
            (Arc::new(Int64Array::from(vec![0, 1, 1])), Labels::Int64(vec![0, 1])),
            (
                Arc::new(BooleanArray::from(vec![false, true, true])),
                Labels::Bool(vec![false, true]),
            ),
            (
                Arc::new(StringArray::from(vec!["no", "yes", "yes"])),
                Labels::Text(vec!["no".into(), "yes".into()]),
            ),
            (
                Arc::new(Float64Array::from(vec![0.5, 1.5, 1.5])),
                Labels::Float64(vec![0.5, 1.5]),
            ),
        ];
        for (column, classes) in columns {
            let truth = truth(column, Task::Binary, Some(&classes)).unwrap();
            let metrics = truth
                .metrics(&answers(2, vec![0.9, 0.1, 0.2, 0.8, 0.95, 0.05]), "it")
                .unwrap();
            // One of the two positives is above the negative.
            assert!((metrics["auc"] - 0.5).abs() < 1e-12);
        }
    }

    #[test]
    fn an_answer_of_another_shape_or_an_unknown_label_is_refused() {
        let labels: ArrayRef = Arc::new(Int64Array::from(vec![0, 2]));
        let Err(StepError::Fail(error)) = truth(labels, Task::Binary, Some(&Labels::Int64(vec![0, 1]))) else {
            panic!("it must fail");
        };
        assert!(error.contains("the label `2`"), "{error}");
        let numbers = truth(Arc::new(Float64Array::from(vec![1.0, 2.0])), Task::Regression, None).unwrap();
        assert!(numbers.metrics(&answers(2, vec![0.0; 4]), "champion").is_err());
        let metrics = numbers.metrics(&answers(1, vec![1.0, 4.0]), "it").unwrap();
        assert!((metrics["mae"] - 1.0).abs() < 1e-12);
    }
}
