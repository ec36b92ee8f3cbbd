//! A trained model: the graph, what it takes and answers, and its own predictions.

use arrow::record_batch::RecordBatch;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::calibrate::Calibrator;
use crate::config::{Calibration, Encoding, Task};
use crate::encode::Encoder;
use crate::error::Result;
use crate::forest::Forest;
use crate::metrics::sigmoid;
use crate::onnx;
use crate::predictions::Predictions;
use crate::table::{Feature, Values, read_known};
use crate::target::Labels;
use crate::workers::Workers;

/// One output of the graph.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "name")]
pub enum Output {
    /// The most probable class in the target's own type: `[rows]`.
    Label,
    /// FLOAT `[rows, classes]`.
    Probabilities {
        /// Number of classes.
        classes: usize,
    },
    /// The number, FLOAT `[rows, 1]`.
    Prediction,
}

impl Output {
    /// Name in the graph.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Label => onnx::LABEL,
            Self::Probabilities { .. } => onnx::PROBABILITIES,
            Self::Prediction => onnx::PREDICTION,
        }
    }
}

/// What scores mean.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Head {
    /// One calibrator per output of the forest. Two classes with one output are binary: it is the second class's.
    Classes {
        classes: Labels,
        calibrators: Vec<Calibrator>,
    },
    /// prediction = score * scale + center.
    Number { scale: f32, center: f32 },
}

/// All that predicting needs.
#[derive(Debug)]
pub(crate) struct Pipeline {
    pub(crate) features: Vec<Feature>,
    pub(crate) encoder: Encoder,
    pub(crate) forest: Forest,
    pub(crate) head: Head,
}

/// How training went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Summary {
    pub(crate) target: String,
    pub(crate) task: Task,
    pub(crate) encoding: Encoding,
    pub(crate) calibration: Calibration,
    pub(crate) best_iteration: usize,
    pub(crate) rows: usize,
    pub(crate) validation_rows: usize,
    pub(crate) validation_metrics: Vec<(String, f64)>,
    pub(crate) importance: Vec<(String, f64)>,
}

/// A trained model.
#[derive(Debug)]
pub struct TrainedModel {
    pub(crate) pipeline: Pipeline,
    pub(crate) summary: Summary,
    pub(crate) onnx: Vec<u8>,
    pub(crate) workers: Workers,
}

impl TrainedModel {
    /// The graph: an ONNX model that takes [`inputs`](Self::inputs) and answers [`outputs`](Self::outputs). The same
    /// data and config give the same bytes.
    pub fn onnx(&self) -> &[u8] {
        &self.onnx
    }

    /// The graph's inputs in order, each of shape `[rows, 1]`. A missing number is NaN, a missing string is empty;
    /// integers and booleans cannot be missing.
    pub fn inputs(&self) -> &[Feature] {
        &self.pipeline.features
    }

    /// The graph's outputs in order.
    pub fn outputs(&self) -> Vec<Output> {
        match &self.pipeline.head {
            Head::Classes { classes, .. } => vec![Output::Label, Output::Probabilities { classes: classes.len() }],
            Head::Number { .. } => vec![Output::Prediction],
        }
    }

    /// Name of the column that is predicted.
    pub fn target(&self) -> &str {
        &self.summary.target
    }

    /// What is predicted; never [`Task::Auto`].
    pub fn task(&self) -> Task {
        self.summary.task
    }

    /// The classes in the order of the probabilities; `None` in regression. In a binary task the second one counts as
    /// positive.
    pub fn classes(&self) -> Option<&Labels> {
        match &self.pipeline.head {
            Head::Classes { classes, .. } => Some(classes),
            Head::Number { .. } => None,
        }
    }

    /// How string features are encoded.
    pub fn encoding(&self) -> Encoding {
        self.summary.encoding
    }

    /// How probabilities are calibrated. In a multiclass task classes may differ; this is the most flexible method among
    /// them.
    pub fn calibration(&self) -> Calibration {
        self.summary.calibration
    }

    /// Each feature's share of the loss that all splits saved, largest first; they sum to 1, or all are 0 where no split
    /// was worth it.
    pub fn importance(&self) -> &[(String, f64)] {
        &self.summary.importance
    }

    /// Number of trees, over all outputs.
    pub fn trees(&self) -> usize {
        self.pipeline.forest.tree_count()
    }

    /// Rounds of boosting that were best on the last time slice, and that the model has.
    pub fn best_iteration(&self) -> usize {
        self.summary.best_iteration
    }

    /// Rows that the model was fitted on.
    pub fn train_rows(&self) -> usize {
        self.summary.rows
    }

    /// Rows of the last time slice; 0 without one.
    pub fn validation_rows(&self) -> usize {
        self.summary.validation_rows
    }

    /// Measures on the last time slice of a model that has not seen it, before calibration. Binary: `auc` (where both
    /// classes are in the slice), `log_loss`, `brier`, `accuracy`; multiclass: `log_loss`, `accuracy`; regression:
    /// `rmse`, `mae`, `r2`. Empty without a slice.
    pub fn validation_metrics(&self) -> &[(String, f64)] {
        &self.summary.validation_metrics
    }

    /// Predicts as the graph does, but without it. The columns must have the types of training; others are ignored.
    pub fn predict(&self, data: &RecordBatch) -> Result<Predictions> {
        let values = self
            .pipeline
            .features
            .iter()
            .map(|feature| read_known(data, feature))
            .collect::<Result<Vec<_>>>()?;
        Ok(self.pipeline.predict(&values, data.num_rows(), &self.workers))
    }
}

impl Pipeline {
    fn predict(&self, values: &[Values], rows: usize, workers: &Workers) -> Predictions {
        let encoded = self.encoder.encode(values, 0, rows);
        let scores = self.forest.scores(&encoded, workers);
        match &self.head {
            Head::Number { scale, center } => {
                Predictions::Numbers(scores[0].iter().map(|score| score * scale + center).collect())
            }
            Head::Classes { classes, calibrators } => {
                let count = classes.len();
                let mut probabilities = vec![0.0_f32; rows * count];
                workers.run(|| {
                    probabilities
                        .par_chunks_mut(count)
                        .enumerate()
                        .for_each(|(row, of_row)| {
                            fill_probabilities(&scores, calibrators, row, of_row);
                        });
                });
                let best: Vec<usize> = probabilities.chunks(count).map(first_largest).collect();
                Predictions::Classes {
                    labels: classes.take(&best),
                    probabilities,
                }
            }
        }
    }
}

fn fill_probabilities(scores: &[Vec<f32>], calibrators: &[Calibrator], row: usize, of_row: &mut [f32]) {
    let share = |output: usize| sigmoid(calibrators[output].log_odds(scores[output][row]));
    if calibrators.len() == 1 {
        let positive = share(0);
        of_row[0] = (1.0 - positive) as f32;
        of_row[1] = positive as f32;
        return;
    }
    let total: f64 = (0..calibrators.len()).map(share).sum();
    for (class, probability) in of_row.iter_mut().enumerate() {
        *probability = (share(class) / total) as f32;
    }
}

/// Index of the largest number, the first among equals.
pub(crate) fn first_largest(numbers: &[f32]) -> usize {
    let mut best = 0;
    for (index, number) in numbers.iter().enumerate() {
        if *number > numbers[best] {
            best = index;
        }
    }
    best
}
