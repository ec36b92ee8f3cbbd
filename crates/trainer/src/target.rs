//! The column to predict: its task, its classes and one number a row.

use std::collections::BTreeSet;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{DataType, Float32Type, Float64Type, Int32Type, Int64Type};
use arrow::record_batch::RecordBatch;
use serde::{Deserialize, Serialize};

use crate::config::Task;
use crate::error::{Result, column};
use crate::table::{column_of, convert};

/// Classes at most: each costs an ensemble of its own.
pub(crate) const MAX_CLASSES: usize = 100;
/// With [`Task::Auto`], integers with more distinct values than this are regression.
pub(crate) const AUTO_MAX_CLASSES: usize = 20;

/// Typed labels: of rows, or of classes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type", content = "values")]
pub enum Labels {
    /// ONNX BOOL.
    Bool(Vec<bool>),
    /// ONNX INT32; narrower integers are widened to it.
    Int32(Vec<i32>),
    /// ONNX INT64; unsigned integers of 32 and 64 bits are widened to it.
    Int64(Vec<i64>),
    /// ONNX FLOAT.
    Float32(Vec<f32>),
    /// ONNX DOUBLE.
    Float64(Vec<f64>),
    /// ONNX STRING.
    Text(Vec<String>),
}

impl Labels {
    /// Number of labels.
    pub fn len(&self) -> usize {
        match self {
            Self::Bool(values) => values.len(),
            Self::Int32(values) => values.len(),
            Self::Int64(values) => values.len(),
            Self::Float32(values) => values.len(),
            Self::Float64(values) => values.len(),
            Self::Text(values) => values.len(),
        }
    }

    /// Whether there is no label.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The label at that place as text, for messages and metadata; empty beyond the end.
    pub fn text(&self, index: usize) -> String {
        let text = match self {
            Self::Bool(values) => values.get(index).map(ToString::to_string),
            Self::Int32(values) => values.get(index).map(ToString::to_string),
            Self::Int64(values) => values.get(index).map(ToString::to_string),
            Self::Float32(values) => values.get(index).map(ToString::to_string),
            Self::Float64(values) => values.get(index).map(ToString::to_string),
            Self::Text(values) => values.get(index).cloned(),
        };
        text.unwrap_or_default()
    }

    /// The labels at `indices`, all of which must be below [`len`](Self::len).
    pub(crate) fn take(&self, indices: &[usize]) -> Self {
        fn pick<T: Clone>(values: &[T], indices: &[usize]) -> Vec<T> {
            indices.iter().map(|&index| values[index].clone()).collect()
        }
        match self {
            Self::Bool(values) => Self::Bool(pick(values, indices)),
            Self::Int32(values) => Self::Int32(pick(values, indices)),
            Self::Int64(values) => Self::Int64(pick(values, indices)),
            Self::Float32(values) => Self::Float32(pick(values, indices)),
            Self::Float64(values) => Self::Float64(pick(values, indices)),
            Self::Text(values) => Self::Text(pick(values, indices)),
        }
    }

    /// Whether both have the same label, of the same type, at that place.
    pub(crate) fn same_at(&self, other: &Self, index: usize) -> bool {
        match (self, other) {
            (Self::Bool(a), Self::Bool(b)) => a.get(index) == b.get(index),
            (Self::Int32(a), Self::Int32(b)) => a.get(index) == b.get(index),
            (Self::Int64(a), Self::Int64(b)) => a.get(index) == b.get(index),
            (Self::Float32(a), Self::Float32(b)) => a.get(index) == b.get(index),
            (Self::Float64(a), Self::Float64(b)) => a.get(index) == b.get(index),
            (Self::Text(a), Self::Text(b)) => a.get(index) == b.get(index),
            _ => false,
        }
    }
}

/// The target as it is learned.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    /// Sorted classes and for each row the index of its class.
    Classes { classes: Labels, codes: Vec<u32> },
    /// A finite number a row.
    Numbers(Vec<f64>),
}

impl Target {
    pub(crate) fn take(self, rows: &[u32]) -> Self {
        match self {
            Self::Classes { classes, codes } => Self::Classes {
                classes,
                codes: rows.iter().map(|&row| codes[row as usize]).collect(),
            },
            Self::Numbers(numbers) => Self::Numbers(rows.iter().map(|&row| numbers[row as usize]).collect()),
        }
    }
}

/// Reads the target and decides the task, which is never [`Task::Auto`] afterwards.
pub(crate) fn read_target(data: &RecordBatch, name: &str, task: Task) -> Result<(Task, Target)> {
    let array = column_of(data, name, "target")?;
    let labels = read_labels(name, array)?;
    let limit = match task {
        Task::Auto if is_integer(&labels) => AUTO_MAX_CLASSES,
        Task::Auto if is_float(&labels) => 2,
        _ => MAX_CLASSES,
    };
    let distinct = Distinct::of(&labels, limit);
    if let Some(distinct) = &distinct
        && distinct.classes.len() == 1
    {
        let reason = format!(
            "has the single value `{}` as target: there is nothing to learn, take rows with other labels too",
            distinct.classes.text(0)
        );
        return Err(column(name, reason));
    }
    let task = match (task, &distinct) {
        (Task::Auto, Some(distinct)) if distinct.classes.len() == 2 => Task::Binary,
        (Task::Auto, Some(_)) => Task::Multiclass,
        (Task::Auto, None) if matches!(labels, Labels::Text(_)) => return Err(too_many(name)),
        (Task::Auto, None) => Task::Regression,
        (task, _) => task,
    };
    if task == Task::Regression {
        return Ok((task, Target::Numbers(to_numbers(name, &labels)?)));
    }
    let distinct = distinct.ok_or_else(|| too_many(name))?;
    if task == Task::Binary && distinct.classes.len() != 2 {
        let reason = format!(
            "has {} distinct values as target of a binary task: set `task` to multiclass or regression",
            distinct.classes.len()
        );
        return Err(column(name, reason));
    }
    let target = Target::Classes {
        classes: distinct.classes,
        codes: distinct.codes,
    };
    Ok((task, target))
}

fn too_many(name: &str) -> crate::Error {
    let reason = format!(
        "has more than {MAX_CLASSES} distinct values as target: too many classes, group them or use regression"
    );
    column(name, reason)
}

fn is_integer(labels: &Labels) -> bool {
    matches!(labels, Labels::Int32(_) | Labels::Int64(_))
}

fn is_float(labels: &Labels) -> bool {
    matches!(labels, Labels::Float32(_) | Labels::Float64(_))
}

fn read_labels(name: &str, array: &ArrayRef) -> Result<Labels> {
    let to = label_type(name, array.data_type())?;
    // A narrowing cast (unsigned 64 bits to signed) turns what does not fit into null, which is counted below.
    let array = convert(name, array, &to)?;
    let labels = match to {
        DataType::Boolean => Labels::Bool(array.as_boolean().iter().flatten().collect()),
        DataType::Int32 => Labels::Int32(array.as_primitive::<Int32Type>().iter().flatten().collect()),
        DataType::Int64 => Labels::Int64(array.as_primitive::<Int64Type>().iter().flatten().collect()),
        DataType::Float32 => Labels::Float32(
            array
                .as_primitive::<Float32Type>()
                .iter()
                .flatten()
                .filter(|value| value.is_finite())
                .collect(),
        ),
        DataType::Float64 => Labels::Float64(
            array
                .as_primitive::<Float64Type>()
                .iter()
                .flatten()
                .filter(|value| value.is_finite())
                .collect(),
        ),
        _ => Labels::Text(
            array
                .as_string::<i32>()
                .iter()
                .flatten()
                .filter(|text| !text.is_empty())
                .map(str::to_owned)
                .collect(),
        ),
    };
    let missing = array.len() - labels.len();
    if missing > 0 {
        let reason = format!(
            "has {missing} missing labels among {} rows (null, NaN, infinite or empty): leave these rows out",
            array.len()
        );
        return Err(column(name, reason));
    }
    Ok(labels)
}

fn label_type(name: &str, of: &DataType) -> Result<DataType> {
    Ok(match of {
        DataType::Boolean => DataType::Boolean,
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::UInt8 | DataType::UInt16 => DataType::Int32,
        DataType::Int64 | DataType::UInt32 | DataType::UInt64 => DataType::Int64,
        DataType::Float32 => DataType::Float32,
        DataType::Float64 => DataType::Float64,
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => DataType::Utf8,
        DataType::Dictionary(_, value) => label_type(name, value)?,
        other => {
            let reason = format!("has type {other} as target: only numbers, booleans and strings can be predicted");
            return Err(column(name, reason));
        }
    })
}

fn to_numbers(name: &str, labels: &Labels) -> Result<Vec<f64>> {
    Ok(match labels {
        Labels::Int32(values) => values.iter().map(|&value| f64::from(value)).collect(),
        Labels::Int64(values) => values.iter().map(|&value| value as f64).collect(),
        Labels::Float32(values) => values.iter().map(|&value| f64::from(value)).collect(),
        Labels::Float64(values) => values.clone(),
        Labels::Bool(_) | Labels::Text(_) => {
            let reason = "is no number, as regression needs: set `task` to binary or multiclass";
            return Err(column(name, reason));
        }
    })
}

struct Distinct {
    classes: Labels,
    codes: Vec<u32>,
}

impl Distinct {
    /// The sorted distinct labels and their codes, or `None` if there are more than `limit`.
    fn of(labels: &Labels, limit: usize) -> Option<Self> {
        Some(match labels {
            Labels::Bool(values) => Self::sorted(values, limit, |value| *value, Labels::Bool)?,
            Labels::Int32(values) => Self::sorted(values, limit, |value| *value, Labels::Int32)?,
            Labels::Int64(values) => Self::sorted(values, limit, |value| *value, Labels::Int64)?,
            Labels::Float32(values) => {
                let order = |value: &f32| ordered(f64::from(*value));
                Self::sorted(values, limit, order, Labels::Float32)?
            }
            Labels::Float64(values) => Self::sorted(values, limit, |value| ordered(*value), Labels::Float64)?,
            Labels::Text(values) => Self::sorted(values, limit, Clone::clone, Labels::Text)?,
        })
    }

    fn sorted<T: Clone, K: Ord>(
        values: &[T],
        limit: usize,
        key: impl Fn(&T) -> K,
        wrap: impl Fn(Vec<T>) -> Labels,
    ) -> Option<Self> {
        let mut keys = BTreeSet::new();
        let mut samples: Vec<(K, T)> = Vec::new();
        for value in values {
            let found = key(value);
            if keys.contains(&found) {
                continue;
            }
            if keys.len() == limit {
                return None;
            }
            keys.insert(found);
            samples.push((key(value), value.clone()));
        }
        samples.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        let codes = values
            .iter()
            .map(|value| {
                let found = key(value);
                samples.partition_point(|(key, _)| *key < found) as u32
            })
            .collect();
        Some(Self {
            classes: wrap(samples.into_iter().map(|(_, value)| value).collect()),
            codes,
        })
    }
}

/// Integers in the order of the finite numbers; both zeros are one.
fn ordered(value: f64) -> i64 {
    let bits = (value + 0.0).to_bits() as i64;
    if bits < 0 { i64::MIN - bits } else { bits }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{BooleanArray, Float64Array, Int8Array, Int64Array, StringArray, UInt64Array};

    use super::*;

    fn read(array: ArrayRef, task: Task) -> Result<(Task, Target)> {
        let data = RecordBatch::try_from_iter_with_nullable(vec![("y", array, true)]).unwrap();
        read_target(&data, "y", task)
    }

    fn classes(array: ArrayRef) -> (Task, Labels, Vec<u32>) {
        match read(array, Task::Auto).unwrap() {
            (task, Target::Classes { classes, codes }) => (task, classes, codes),
            (task, Target::Numbers(_)) => panic!("{task:?} has numbers"),
        }
    }

    #[test]
    fn the_task_follows_from_the_target() {
        let (task, found, codes) = classes(Arc::new(StringArray::from(vec!["no", "yes", "no"])));
        assert_eq!(task, Task::Binary);
        assert_eq!(found, Labels::Text(vec!["no".to_owned(), "yes".to_owned()]));
        assert_eq!(codes, [0, 1, 0]);

        let (task, found, _) = classes(Arc::new(BooleanArray::from(vec![true, false])));
        assert_eq!((task, found), (Task::Binary, Labels::Bool(vec![false, true])));

        let (task, found, codes) = classes(Arc::new(Int8Array::from(vec![7, -3, 0])));
        assert_eq!((task, found), (Task::Multiclass, Labels::Int32(vec![-3, 0, 7])));
        assert_eq!(codes, [2, 0, 1]);

        let (task, found, _) = classes(Arc::new(Float64Array::from(vec![1.0, -0.0, 0.0])));
        assert_eq!(task, Task::Binary);
        assert_eq!(found.text(1), "1");

        let many: ArrayRef = Arc::new(Int64Array::from((0..21).collect::<Vec<i64>>()));
        assert_eq!(read(many, Task::Auto).unwrap().0, Task::Regression);
        let floats: ArrayRef = Arc::new(Float64Array::from(vec![0.5, -1.5, 2.5]));
        let (task, target) = read(floats, Task::Auto).unwrap();
        assert_eq!(task, Task::Regression);
        assert!(matches!(target, Target::Numbers(numbers) if numbers == [0.5, -1.5, 2.5]));
    }

    #[test]
    fn numbers_keep_their_order_as_keys() {
        let numbers = [-1e300, -2.5, -1e-300, 0.0, 1e-300, 2.5, 1e300];
        assert!(numbers.windows(2).all(|pair| ordered(pair[0]) < ordered(pair[1])));
        assert_eq!(ordered(-0.0), ordered(0.0));
    }

    #[test]
    fn targets_that_cannot_be_learned_are_refused() {
        let texts: Vec<String> = (0..101).map(|index| format!("c{index}")).collect();
        let cases: Vec<(ArrayRef, Task, &str)> = vec![
            (Arc::new(Int64Array::from(vec![1, 1])), Task::Auto, "single value `1`"),
            (
                Arc::new(Float64Array::from(vec![2.5, 2.5])),
                Task::Regression,
                "single value `2.5`",
            ),
            (
                Arc::new(Int64Array::from(vec![Some(1), None, Some(0)])),
                Task::Auto,
                "1 missing labels among 3",
            ),
            (
                Arc::new(Float64Array::from(vec![0.0, f64::NAN, 1.0])),
                Task::Auto,
                "1 missing labels among 3",
            ),
            (
                Arc::new(StringArray::from(vec!["a", "", "b"])),
                Task::Auto,
                "1 missing labels among 3",
            ),
            (
                Arc::new(UInt64Array::from(vec![1, u64::MAX])),
                Task::Auto,
                "1 missing labels among 2",
            ),
            (
                Arc::new(StringArray::from(texts)),
                Task::Auto,
                "more than 100 distinct values",
            ),
            (
                Arc::new(Int64Array::from(vec![1, 2, 3])),
                Task::Binary,
                "3 distinct values",
            ),
            (
                Arc::new(StringArray::from(vec!["a", "b"])),
                Task::Regression,
                "is no number",
            ),
        ];
        for (array, task, message) in cases {
            let error = read(array, task).unwrap_err().to_string();
            assert!(error.starts_with("column `y`") && error.contains(message), "{error}");
        }
    }
}
