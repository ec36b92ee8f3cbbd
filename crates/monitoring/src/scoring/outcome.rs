//! Predictions beside what turned out to be true.
//!
//! The outputs are those of our own trainer, which other models may have as well: `probabilities` (two a row: binary, the
//! second is the positive class's; more: multiclass) with `label` (the name of the most probable class), or `prediction`
//! (a number). The classes' names are learned from the rows: the label output names the class that is most probable.

use std::collections::{BTreeMap, HashMap};

use arrow::{
    array::{Array as _, ArrayRef, AsArray as _, Float64Array, RecordBatch},
    compute::cast,
    datatypes::{DataType, Float64Type},
};
use modelyard_stats::{BinaryMetrics, MulticlassMetrics, RegressionMetrics, performance::DECISION_THRESHOLD};

use crate::{
    error::{Error, Result},
    model::label::LabelValue,
};

/// The most probable class.
pub const LABEL: &str = "output_label";
/// The classes' probabilities.
pub const PROBABILITIES: &str = "output_probabilities";
/// The predicted number.
pub const PREDICTION: &str = "output_prediction";
/// The most numbers that are kept of one group's labelled rows.
const MAX_NUMBERS: usize = 100_000_000;
/// The most different classes.
const MAX_CLASSES: usize = 10_000;

/// The output columns of a batch.
pub struct Outputs {
    labels: Option<ArrayRef>,
    probabilities: Option<Probabilities>,
    prediction: Option<ArrayRef>,
}

/// Probabilities of a batch, `width` a row.
struct Probabilities {
    width: usize,
    values: Vec<f64>,
}

impl Outputs {
    /// The output columns of a batch, prepared for reading row by row.
    pub fn of(rows: &RecordBatch) -> Result<Self> {
        let prediction = column(rows, PREDICTION).filter(|column| column.data_type().is_numeric());
        let prediction = prediction.map(|column| cast(&column, &DataType::Float64)).transpose();
        let probabilities = column(rows, PROBABILITIES).map(|column| probabilities(&column));
        Ok(Self {
            labels: column(rows, LABEL),
            probabilities: probabilities.transpose()?.flatten(),
            prediction: prediction.map_err(|error| Error::arrow(&error))?,
        })
    }

    /// One number a row that says what was predicted: the positive class's probability, or the predicted number.
    pub fn predictions(&self) -> Option<ArrayRef> {
        match &self.probabilities {
            Some(Probabilities { width: 2, values }) => {
                let positive = values
                    .chunks_exact(2)
                    .map(|pair| Some(pair[1]).filter(|value| !value.is_nan()));
                Some(std::sync::Arc::new(positive.collect::<Float64Array>()))
            }
            Some(_) => None,
            None => self.prediction.clone(),
        }
    }
}

/// How far a prediction was from what turned out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Loss {
    /// Of a class.
    Class {
        /// Whether it was the right one.
        is_right: bool,
    },
    /// Of a number.
    Number {
        /// The distance.
        distance: f64,
    },
}

impl Outputs {
    /// How far a row's prediction was from its label; `None` where they cannot be compared.
    pub fn loss(&self, row: usize, label: &LabelValue) -> Option<Loss> {
        if let Some(guess) = self.labels.as_ref().and_then(|labels| text_at(labels, row)) {
            let is_right = guess == class_name(label);
            return Some(Loss::Class { is_right });
        }
        let prediction = self.prediction.as_ref().filter(|column| column.is_valid(row))?;
        let prediction = prediction.as_primitive::<Float64Type>().value(row);
        match label {
            LabelValue::Number(truth) if prediction.is_finite() && truth.is_finite() => Some(Loss::Number {
                distance: (prediction - truth).abs(),
            }),
            _ => None,
        }
    }
}

/// Predictions with their labels.
#[derive(Default)]
pub struct Outcomes {
    classes: Classes,
    /// Probabilities a row; 0 before the first.
    width: usize,
    probabilities: Vec<f64>,
    /// Of each row: the class that turned out, and the one that was predicted, by name.
    truths: Vec<u32>,
    guesses: Vec<Option<u32>>,
    numbers: Vec<f64>,
    number_truths: Vec<f64>,
    /// Rows with a label that does not fit the outputs.
    unusable: u64,
}

/// Names of classes, numbered in the order of their appearance.
#[derive(Default)]
struct Classes {
    numbers: HashMap<String, u32>,
}

impl Classes {
    fn number(&mut self, name: String) -> Result<u32> {
        let next = self.numbers.len();
        if next >= MAX_CLASSES && !self.numbers.contains_key(&name) {
            return Err(Error::WindowTooLarge {
                limit: MAX_CLASSES as u64,
                what: "classes",
            });
        }
        Ok(*self.numbers.entry(name).or_insert(next as u32))
    }
}

/// The name of a class as both labels and outputs have it: yes is 1, no is 0, whole numbers have no fraction.
fn class_name(value: &LabelValue) -> String {
    match value {
        LabelValue::Boolean(value) => u8::from(*value).to_string(),
        LabelValue::Number(value) => value.to_string(),
        LabelValue::Text(value) => match value.as_str() {
            "true" | "True" => "1".to_owned(),
            "false" | "False" => "0".to_owned(),
            text => text.to_owned(),
        },
    }
}

fn column(rows: &RecordBatch, name: &str) -> Option<ArrayRef> {
    rows.column_by_name(name)
        .filter(|column| column.null_count() < column.len())
        .cloned()
}

fn probabilities(column: &ArrayRef) -> Result<Option<Probabilities>> {
    let doubles = |values: &ArrayRef| cast(values, &DataType::Float64).map_err(|error| Error::arrow(&error));
    match column.data_type() {
        DataType::List(_) => {
            let lists = column.as_list::<i32>();
            let width = (0..lists.len())
                .find(|row| lists.is_valid(*row))
                .map_or(0, |row| lists.value_length(row) as usize);
            let mut values = Vec::with_capacity(lists.len() * width);
            let all = doubles(lists.values())?;
            let all = all.as_primitive::<Float64Type>();
            for row in 0..lists.len() {
                let start = lists.value_offsets()[row] as usize;
                let fits = lists.is_valid(row) && lists.value_length(row) as usize == width;
                // A row of another width has no probabilities: it is left out with its label.
                values.extend((0..width).map(|index| if fits { all.value(start + index) } else { f64::NAN }));
            }
            Ok((width >= 2).then_some(Probabilities { width, values }))
        }
        data_type if data_type.is_numeric() => {
            // One probability a row is the positive class's.
            let all = doubles(column)?;
            let all = all.as_primitive::<Float64Type>();
            let pair = |value: Option<f64>| value.map_or([f64::NAN; 2], |value| [1.0 - value, value]);
            Ok(Some(Probabilities {
                width: 2,
                values: all.iter().flat_map(pair).collect(),
            }))
        }
        _ => Ok(None),
    }
}

fn text_at(column: &ArrayRef, row: usize) -> Option<String> {
    if column.is_null(row) {
        return None;
    }
    let value = match column.data_type() {
        DataType::Boolean => LabelValue::Boolean(column.as_boolean().value(row)),
        DataType::Utf8 => LabelValue::Text(column.as_string::<i32>().value(row).to_owned()),
        DataType::Int64 => LabelValue::Text(
            column
                .as_primitive::<arrow::datatypes::Int64Type>()
                .value(row)
                .to_string(),
        ),
        DataType::Float64 => LabelValue::Number(column.as_primitive::<Float64Type>().value(row)),
        _ => return None,
    };
    Some(class_name(&value))
}

impl Outcomes {
    /// Adds a row with its label.
    pub fn add(&mut self, outputs: &Outputs, row: usize, label: &LabelValue) -> Result<()> {
        if self.probabilities.len() + self.numbers.len() > MAX_NUMBERS {
            return Err(Error::WindowTooLarge {
                limit: MAX_NUMBERS as u64,
                what: "numbers to compare with labels",
            });
        }
        if let Some(Probabilities { width, values }) = &outputs.probabilities {
            let values = &values[row * width..(row + 1) * width];
            let usable = values.iter().all(|value| (0.0..=1.0).contains(value));
            if !usable || (self.width != 0 && self.width != *width) {
                self.unusable += 1;
                return Ok(());
            }
            self.width = *width;
            self.probabilities.extend_from_slice(values);
            let truth = self.classes.number(class_name(label))?;
            self.truths.push(truth);
            let guess = outputs.labels.as_ref().and_then(|labels| text_at(labels, row));
            let guess = guess.map(|name| self.classes.number(name)).transpose()?;
            self.guesses.push(guess);
            return Ok(());
        }
        let prediction = outputs.prediction.as_ref().filter(|column| column.is_valid(row));
        let prediction = prediction.map(|column| column.as_primitive::<Float64Type>().value(row));
        match (prediction, label) {
            (Some(prediction), LabelValue::Number(truth)) if prediction.is_finite() && truth.is_finite() => {
                self.numbers.push(prediction);
                self.number_truths.push(*truth);
            }
            _ => self.unusable += 1,
        }
        Ok(())
    }

    /// The metrics that are defined, by name; `None` without a single usable row.
    pub fn finish(mut self, notes: &mut Vec<String>) -> Result<Option<BTreeMap<String, f64>>> {
        let metrics = match self.width {
            0 if self.numbers.is_empty() => None,
            0 => Some(RegressionMetrics::compute(&self.number_truths, &self.numbers)?.values()),
            2 => self.binary()?,
            _ => self.multiclass()?,
        };
        if self.unusable > 0 {
            notes.push(format!(
                "{} labels do not fit the outputs and are in no metric",
                self.unusable
            ));
        }
        Ok(metrics.map(|values| {
            values
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect()
        }))
    }

    /// Which class each place among the probabilities stands for, as far as the rows tell.
    fn places(&self) -> Vec<Option<u32>> {
        let mut places = vec![None; self.width];
        for (values, guess) in self.probabilities.chunks_exact(self.width).zip(&self.guesses) {
            let mut best = 0;
            for (place, value) in values.iter().enumerate() {
                if *value > values[best] {
                    best = place;
                }
            }
            // In a tie the label could be either's.
            let alone = values
                .iter()
                .enumerate()
                .all(|(place, value)| place == best || *value < values[best]);
            if let Some(guess) = guess.filter(|_| alone) {
                places[best].get_or_insert(guess);
            }
        }
        places
    }

    fn class(&self, name: &str) -> Option<u32> {
        self.classes.numbers.get(name).copied()
    }

    /// The classes of a binary task, negative and positive; a class that was never predicted is 0 or 1 where the other is
    /// 1 or 0, else the one other that occurs.
    fn pair(&self) -> (Option<u32>, Option<u32>) {
        let places = self.places();
        let (zero, one) = (self.class("0"), self.class("1"));
        let (negative, positive) = match (places[0], places[1]) {
            (Some(negative), Some(positive)) => return (Some(negative), Some(positive)),
            (None, None) => return (zero, one),
            found => found,
        };
        let other = |known: u32| {
            let partner = if Some(known) == zero {
                one
            } else if Some(known) == one {
                zero
            } else {
                None
            };
            let mut rest = self.classes.numbers.values().filter(|class| **class != known);
            let only = rest.next().copied().filter(|_| rest.next().is_none());
            partner.or(only)
        };
        (
            negative.or_else(|| other(positive?)),
            positive.or_else(|| other(negative?)),
        )
    }

    fn binary(&mut self) -> Result<Option<Vec<(&'static str, f64)>>> {
        let (negative, positive) = self.pair();
        let (mut labels, mut scores) = (Vec::new(), Vec::new());
        for (truth, values) in self.truths.iter().zip(self.probabilities.chunks_exact(2)) {
            if Some(*truth) == positive || Some(*truth) == negative {
                labels.push(Some(*truth) == positive);
                scores.push(values[1]);
            } else {
                self.unusable += 1;
            }
        }
        if labels.is_empty() {
            return Ok(None);
        }
        Ok(Some(
            BinaryMetrics::compute(&labels, &scores, DECISION_THRESHOLD)?.values(),
        ))
    }

    fn multiclass(&mut self) -> Result<Option<Vec<(&'static str, f64)>>> {
        let places = self.places();
        let place_of: HashMap<u32, u32> = places
            .iter()
            .enumerate()
            .filter_map(|(place, class)| Some(((*class)?, place as u32)))
            .collect();
        if self.truths.iter().all(|truth| place_of.contains_key(truth)) {
            let labels: Vec<u32> = self
                .truths
                .iter()
                .filter_map(|truth| place_of.get(truth).copied())
                .collect();
            return Ok(Some(
                MulticlassMetrics::compute(&labels, &self.probabilities, self.width as u32)?.values(),
            ));
        }
        // A class that was never predicted has no known place: only what the names say can be measured.
        let right = self
            .truths
            .iter()
            .zip(&self.guesses)
            .filter(|(truth, guess)| **guess == Some(**truth))
            .count();
        let rows = self.guesses.iter().filter(|guess| guess.is_some()).count();
        Ok((rows > 0).then(|| vec![("accuracy", right as f64 / rows as f64)]))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::float_cmp, reason = "halves and quarters are exact")]
    use std::sync::Arc;

    use arrow::array::{Int64Array, ListArray, StringArray};

    use super::*;

    fn rows(probabilities: &[Vec<f64>], labels: ArrayRef) -> RecordBatch {
        let lists = probabilities
            .iter()
            .map(|row| Some(row.iter().copied().map(Some).collect::<Vec<_>>()));
        let lists: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Float64Type, _, _>(lists));
        RecordBatch::try_from_iter([(PROBABILITIES, lists), (LABEL, labels)]).unwrap()
    }

    fn metrics(batch: &RecordBatch, truths: &[LabelValue]) -> (BTreeMap<String, f64>, Vec<String>) {
        let mut outcomes = Outcomes::default();
        let outputs = Outputs::of(batch).unwrap();
        for (row, truth) in truths.iter().enumerate() {
            outcomes.add(&outputs, row, truth).unwrap();
        }
        let mut notes = Vec::new();
        (outcomes.finish(&mut notes).unwrap().unwrap_or_default(), notes)
    }

    fn two(positive: &[f64]) -> Vec<Vec<f64>> {
        positive.iter().map(|value| vec![1.0 - value, *value]).collect()
    }

    #[test]
    fn auc_is_that_of_the_second_probability() {
        // By hand: positives 0.9, 0.4; negatives 0.6, 0.2. Of 4 pairs 3 are in order: 0.75.
        let batch = rows(
            &two(&[0.9, 0.6, 0.4, 0.2]),
            Arc::new(Int64Array::from(vec![1, 1, 0, 0])),
        );
        let truths = [1.0, 0.0, 1.0, 0.0].map(LabelValue::Number);
        assert_eq!(metrics(&batch, &truths).0["auc"], 0.75);
        let truths = [true, false, true, false].map(LabelValue::Boolean);
        assert_eq!(metrics(&batch, &truths).0["auc"], 0.75);
    }

    #[test]
    fn names_of_classes_are_learned_from_the_label_output() {
        let labels: ArrayRef = Arc::new(StringArray::from(vec!["on time", "on time", "late", "late"]));
        let batch = rows(&two(&[0.1, 0.4, 0.6, 0.9]), labels);
        let truths = ["late", "on time", "on time", "late"].map(|name| LabelValue::Text(name.to_owned()));
        // Positives 0.1, 0.9; negatives 0.4, 0.6: 2 of 4.
        assert_eq!(metrics(&batch, &truths).0["auc"], 0.5);
        let mut with_a_stranger = truths;
        with_a_stranger[1] = LabelValue::Text("cancelled".to_owned());
        let (found, notes) = metrics(&batch, &with_a_stranger);
        assert_eq!(found["auc"], 0.5);
        assert_eq!(notes, ["1 labels do not fit the outputs and are in no metric"]);
    }

    #[test]
    fn a_class_that_is_never_predicted_is_still_counted() {
        let batch = rows(
            &two(&[0.1, 0.4, 0.2, 0.3]),
            Arc::new(Int64Array::from(vec![0, 0, 0, 0])),
        );
        let truths = [0.0, 1.0, 0.0, 1.0].map(LabelValue::Number);
        assert_eq!(metrics(&batch, &truths).0["auc"], 1.0);
    }

    #[test]
    fn several_classes_and_numbers_are_measured() {
        let labels: ArrayRef = Arc::new(StringArray::from(vec!["a", "b", "c"]));
        let batch = rows(&[vec![0.7, 0.2, 0.1], vec![0.1, 0.8, 0.1], vec![0.2, 0.2, 0.6]], labels);
        let truths = ["a", "b", "b"].map(|name| LabelValue::Text(name.to_owned()));
        let accuracy = metrics(&batch, &truths).0["accuracy"];
        assert!((accuracy - 2.0 / 3.0).abs() < 1e-12);

        let numbers: ArrayRef = Arc::new(Float64Array::from(vec![1.0, 2.0, f64::NAN]));
        let batch = RecordBatch::try_from_iter([(PREDICTION, numbers)]).unwrap();
        let (found, notes) = metrics(&batch, &[2.0, 2.0, 2.0].map(LabelValue::Number));
        assert_eq!(found["mae"], 0.5);
        assert_eq!(notes.len(), 1);
    }
}
