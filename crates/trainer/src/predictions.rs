//! Predictions, and how far two ways of computing them are apart.

use std::fmt;

use crate::error::{Error, Result};
use crate::target::Labels;

/// What a model answers for some rows, in the shape of the graph's outputs.
#[derive(Debug, Clone, PartialEq)]
pub enum Predictions {
    /// Of a classifier.
    Classes {
        /// The most probable class of each row: `[rows]`.
        labels: Labels,
        /// The probability of each class, row by row: `[rows, classes]`, in the order of the model's classes.
        probabilities: Vec<f32>,
    },
    /// Of a regression: one number a row.
    Numbers(Vec<f32>),
}

impl Predictions {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        match self {
            Self::Classes { labels, .. } => labels.len(),
            Self::Numbers(numbers) => numbers.len(),
        }
    }
}

/// The largest difference between two sets of predictions, and where it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// The absolute difference of probabilities. For numbers it is divided by the expected number's size where that is
    /// above 1, because float32 has no absolute precision. For labels it is how much more probable the expected label
    /// is than the next one: two labels may differ where their probabilities are the same. Infinite where a value is no
    /// number.
    pub value: f64,
    /// Row of the difference, counted from 0.
    pub row: usize,
    /// Output of the difference: `probabilities[CLASS]`, `label` or `prediction`.
    pub output: String,
    /// What was expected there.
    pub expected: String,
    /// What was there.
    pub actual: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` of row {} is {} where {} was expected: a difference of {:e}",
            self.output, self.row, self.actual, self.expected, self.value
        )
    }
}

/// Finds the largest difference. Predictions of different shapes are an error.
pub fn largest_difference(expected: &Predictions, actual: &Predictions) -> Result<Difference> {
    let mut largest = Difference {
        value: 0.0,
        row: 0,
        output: String::new(),
        expected: String::new(),
        actual: String::new(),
    };
    match (expected, actual) {
        (Predictions::Numbers(expected), Predictions::Numbers(actual)) => {
            same_length("predictions", expected.len(), actual.len())?;
            for (row, (a, b)) in expected.iter().zip(actual).enumerate() {
                let scale = f64::from(a.abs()).max(1.0);
                largest.consider(distance(*a, *b) / scale, row, || {
                    ("prediction".to_owned(), a.to_string(), b.to_string())
                });
            }
        }
        (
            Predictions::Classes { labels, probabilities },
            Predictions::Classes {
                labels: actual_labels,
                probabilities: actual_probabilities,
            },
        ) => {
            same_length("labels", labels.len(), actual_labels.len())?;
            same_length("probabilities", probabilities.len(), actual_probabilities.len())?;
            let classes = probabilities.len().checked_div(labels.len()).unwrap_or(0);
            for (index, (a, b)) in probabilities.iter().zip(actual_probabilities).enumerate() {
                largest.consider(distance(*a, *b), index / classes.max(1), || {
                    let output = format!("probabilities[{}]", index % classes.max(1));
                    (output, a.to_string(), b.to_string())
                });
            }
            for row in 0..labels.len() {
                if !labels.same_at(actual_labels, row) {
                    let of_row = &probabilities[row * classes..(row + 1) * classes];
                    largest.consider(lead(of_row), row, || {
                        ("label".to_owned(), labels.text(row), actual_labels.text(row))
                    });
                }
            }
        }
        _ => {
            return Err(Error::Data(
                "predictions of a classifier cannot be compared with those of a regression".to_owned(),
            ));
        }
    }
    Ok(largest)
}

impl Difference {
    fn consider(&mut self, value: f64, row: usize, place: impl FnOnce() -> (String, String, String)) {
        if value > self.value {
            let (output, expected, actual) = place();
            *self = Self {
                value,
                row,
                output,
                expected,
                actual,
            };
        }
    }
}

fn same_length(what: &str, expected: usize, actual: usize) -> Result<()> {
    if expected == actual {
        return Ok(());
    }
    Err(Error::Data(format!(
        "{actual} {what} cannot be compared with {expected} expected ones"
    )))
}

fn distance(expected: f32, actual: f32) -> f64 {
    if expected.is_nan() || actual.is_nan() {
        return f64::INFINITY;
    }
    if expected.total_cmp(&actual).is_eq() {
        // Equal infinities, too.
        return 0.0;
    }
    (f64::from(expected) - f64::from(actual)).abs()
}

/// By how much the most probable class leads.
fn lead(probabilities: &[f32]) -> f64 {
    let (mut first, mut second) = (0.0_f32, 0.0_f32);
    for &probability in probabilities {
        if probability > first {
            (first, second) = (probability, first);
        } else {
            second = second.max(probability);
        }
    }
    f64::from(first) - f64::from(second)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::float_cmp, reason = "the numbers are exact")]

    use super::*;

    fn classes(labels: Vec<i64>, probabilities: Vec<f32>) -> Predictions {
        Predictions::Classes {
            labels: Labels::Int64(labels),
            probabilities,
        }
    }

    #[test]
    fn the_largest_difference_says_where_it_is() {
        let expected = classes(vec![0, 1], vec![0.75, 0.25, 0.25, 0.75]);
        let actual = classes(vec![0, 1], vec![0.75, 0.25, 0.5, 0.75]);
        let difference = largest_difference(&expected, &actual).unwrap();
        assert_eq!((difference.value, difference.row), (0.25, 1));
        assert_eq!(
            difference.to_string(),
            "`probabilities[0]` of row 1 is 0.5 where 0.25 was expected: a difference of 2.5e-1"
        );
    }

    #[test]
    fn another_label_differs_by_the_lead_of_the_expected_one() {
        let expected = classes(vec![1], vec![0.125, 0.625, 0.25]);
        let difference = largest_difference(&expected, &classes(vec![0], vec![0.125, 0.625, 0.25])).unwrap();
        assert_eq!((difference.value, difference.output.as_str()), (0.375, "label"));
        let other_type = Predictions::Classes {
            labels: Labels::Text(vec!["1".to_owned()]),
            probabilities: vec![0.125, 0.625, 0.25],
        };
        assert_eq!(largest_difference(&expected, &other_type).unwrap().value, 0.375);
        let tie = classes(vec![0], vec![0.5, 0.5]);
        let other = classes(vec![1], vec![0.5, 0.5]);
        assert_eq!(largest_difference(&tie, &other).unwrap().value, 0.0);
    }

    #[test]
    fn numbers_are_compared_at_their_size_and_nan_is_infinitely_far() {
        let expected = Predictions::Numbers(vec![0.5, 1e6]);
        let actual = Predictions::Numbers(vec![0.25, 1e6 + 1.0]);
        let difference = largest_difference(&expected, &actual).unwrap();
        assert_eq!((difference.value, difference.row), (0.25, 0));
        let nan = Predictions::Numbers(vec![0.5, f32::NAN]);
        let difference = largest_difference(&expected, &nan).unwrap();
        assert!(difference.value.is_infinite());
        assert_eq!(difference.row, 1);
    }

    #[test]
    fn shapes_must_be_the_same() {
        let one = Predictions::Numbers(vec![0.5]);
        let two = Predictions::Numbers(vec![0.5, 0.5]);
        assert!(largest_difference(&one, &two).is_err());
        assert!(largest_difference(&one, &classes(vec![0], vec![1.0])).is_err());
        let none = classes(vec![], vec![]);
        assert_eq!(largest_difference(&none, &none).unwrap().value, 0.0);
    }
}
