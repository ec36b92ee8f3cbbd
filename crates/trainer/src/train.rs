//! One training run, from a record batch to a model.

use std::ops::ControlFlow;

use arrow::record_batch::RecordBatch;

use crate::boost::{Boosted, Booster, Evaluation, Measure, Objective};
use crate::calibrate::{self, Calibrator};
use crate::config::{Calibration, Encoding, Task, TrainConfig, refuse};
use crate::encode::{self, Encoded, Encoder};
use crate::error::{Error, Result};
use crate::forest::Forest;
use crate::metrics::{auc, log_loss, mean, sigmoid};
use crate::model::{Head, Pipeline, Summary, TrainedModel, first_largest};
use crate::onnx;
use crate::order::{MAX_ROWS, canonical_order, read_times, slice_begin};
use crate::progress::{Phase, Progress, Reporter};
use crate::table::{Feature, Values, column_of, feature_names, read_feature};
use crate::target::{Labels, Target, read_target};
use crate::workers::Workers;

/// Rows at least: fewer hold nothing that a tree could learn and a slice could confirm.
const MIN_ROWS: usize = 20;

/// Trains a model on `data`.
///
/// The rows before the last time slice are boosted first; the slice decides how many rounds are best (with early
/// stopping), measures the model and fits the calibration. Then all rows are boosted for that many rounds. `on_progress`
/// is called on this thread, at least once a round, and cancels the run with `Break`.
///
/// Training is deterministic: the same data and config give the same bytes whatever the number of threads, and with a
/// time column whatever the order of the rows.
pub fn train(
    data: &RecordBatch,
    config: &TrainConfig,
    on_progress: &dyn Fn(Progress) -> ControlFlow<()>,
) -> Result<TrainedModel> {
    config.validate()?;
    let reporter = Reporter::new(on_progress);
    let workers = Workers::new(config.threads)?;
    reporter.report(Phase::Reading, 0, 1)?;
    let problem = Problem::read(data, config, &workers)?;
    reporter.report(Phase::Reading, 1, 1)?;

    let run = Run {
        problem: &problem,
        config,
        workers: &workers,
        reporter: &reporter,
    };
    let trial = match problem.slice_begin {
        Some(begin) => Some(run.trial(begin)?),
        None => None,
    };
    let rounds = trial.as_ref().map_or(config.trees as usize, |trial| trial.best_rounds);
    let (encoder, forest) = run.refit(rounds)?;

    reporter.report(Phase::Exporting, 0, 1)?;
    let (calibration, calibrators) = match &trial {
        Some(trial) => (trial.calibration, trial.calibrators.clone()),
        None => (Calibration::None, vec![Calibrator::Identity; problem.targets.len()]),
    };
    let summary = Summary {
        target: config.target.clone(),
        task: problem.task,
        encoding: problem.encoding,
        calibration,
        best_iteration: rounds,
        rows: problem.rows,
        validation_rows: problem.slice_begin.map_or(0, |begin| problem.rows - begin),
        validation_metrics: trial.map(|trial| trial.metrics).unwrap_or_default(),
        importance: importance(&problem.features, &encoder, &forest),
    };
    let pipeline = Pipeline {
        head: problem.head(calibrators),
        features: problem.features,
        encoder,
        forest,
    };
    let onnx = onnx::export(&pipeline, &summary)?;
    reporter.report(Phase::Exporting, 1, 1)?;
    Ok(TrainedModel {
        pipeline,
        summary,
        onnx,
        workers,
    })
}

/// The data as it is learned: rows in the order of time.
struct Problem {
    features: Vec<Feature>,
    values: Vec<Values>,
    rows: usize,
    task: Task,
    encoding: Encoding,
    kind: Kind,
    /// One number a row for each output of the model: 0 and 1, or the standardised number.
    targets: Vec<Vec<f64>>,
    slice_begin: Option<usize>,
}

enum Kind {
    Classes {
        classes: Labels,
        /// Class of each row.
        codes: Vec<u32>,
    },
    /// number = standardised * scale + center.
    Number { scale: f64, center: f64 },
}

impl Problem {
    fn read(data: &RecordBatch, config: &TrainConfig, workers: &Workers) -> Result<Self> {
        let rows = data.num_rows();
        let names = feature_names(data, config)?;
        onnx::check_names(&names)?;
        // A wrong name is worth more to say than too few rows or another column's type.
        column_of(data, &config.target, "target")?;
        if let Some(name) = &config.time_column {
            column_of(data, name, "the time column")?;
        }
        if !(MIN_ROWS..=MAX_ROWS).contains(&rows) {
            return Err(Error::Data(format!(
                "the dataset has {rows} rows: training needs at least {MIN_ROWS} and at most {MAX_ROWS}"
            )));
        }
        let (task, target) = read_target(data, &config.target, config.task)?;
        let read: Result<Vec<_>> = names.iter().map(|name| read_feature(data, name)).collect();
        let (features, mut values): (Vec<_>, Vec<_>) = read?.into_iter().unzip();
        let times = match &config.time_column {
            Some(name) => Some(read_times(data, name)?),
            None => None,
        };
        let (times, target) = match times {
            Some(times) => {
                let order = workers.run(|| canonical_order(&times, &values, &target));
                values = values.into_iter().map(|column| column.take(&order)).collect();
                let times: Vec<i64> = order.iter().map(|&row| times[row as usize]).collect();
                (Some(times), target.take(&order))
            }
            None => (None, target),
        };
        let (kind, targets) = split_target(task, target);
        Ok(Self {
            features,
            values,
            rows,
            task,
            encoding: config.encoding.unwrap_or(match task {
                Task::Multiclass => Encoding::Ordinal,
                _ => Encoding::TargetMean {
                    smoothing: Encoding::DEFAULT_SMOOTHING,
                },
            }),
            kind,
            targets,
            slice_begin: find_slice(rows, config, times.as_deref())?,
        })
    }

    fn objective(&self) -> Objective {
        match self.kind {
            Kind::Classes { .. } => Objective::Logistic,
            Kind::Number { .. } => Objective::Squared,
        }
    }

    fn head(&self, calibrators: Vec<Calibrator>) -> Head {
        match &self.kind {
            Kind::Classes { classes, .. } => Head::Classes {
                classes: classes.clone(),
                calibrators,
            },
            Kind::Number { scale, center } => Head::Number {
                scale: *scale as f32,
                center: *center as f32,
            },
        }
    }
}

/// One target an output. Numbers are standardised, so that float32 scores and regularisation fit any unit.
fn split_target(task: Task, target: Target) -> (Kind, Vec<Vec<f64>>) {
    match target {
        Target::Classes { classes, codes } => {
            let outputs = if task == Task::Binary { 1..2 } else { 0..classes.len() };
            let targets = outputs
                .map(|class| {
                    codes
                        .iter()
                        .map(|&code| f64::from(u8::from(code as usize == class)))
                        .collect()
                })
                .collect();
            (Kind::Classes { classes, codes }, targets)
        }
        Target::Numbers(mut numbers) => {
            let center = mean(numbers.iter().copied());
            let variance = mean(numbers.iter().map(|number| (number - center).powi(2)));
            let scale = if variance.is_finite() && variance > 0.0 {
                variance.sqrt()
            } else {
                1.0
            };
            for number in &mut numbers {
                *number = (*number - center) / scale;
            }
            (Kind::Number { scale, center }, vec![numbers])
        }
    }
}

fn find_slice(rows: usize, config: &TrainConfig, times: Option<&[i64]>) -> Result<Option<usize>> {
    if config.validation_share == 0.0 {
        return Ok(None);
    }
    match slice_begin(rows, config.validation_share, times) {
        Some(begin) => Ok(Some(begin)),
        None => Err(refuse(
            "validation_share",
            "finds no last slice, since all rows have the same time: set it to 0 or leave out `time_column`",
        )),
    }
}

/// What the rows before the last slice, tried on the slice, tell.
struct Trial {
    best_rounds: usize,
    calibration: Calibration,
    calibrators: Vec<Calibrator>,
    metrics: Vec<(String, f64)>,
}

struct Run<'a> {
    problem: &'a Problem,
    config: &'a TrainConfig,
    workers: &'a Workers,
    reporter: &'a Reporter<'a>,
}

impl Run<'_> {
    fn trial(&self, begin: usize) -> Result<Trial> {
        let problem = self.problem;
        let (encoder, train) = self.encode(begin, 0)?;
        let slice = encoder.encode(&problem.values, begin, problem.rows);
        let (name, measure) = self.measure(begin);
        let evaluation = Evaluation {
            encoded: &slice,
            name,
            measure: &*measure,
        };
        let rounds = self.config.trees as usize;
        let mut boosted = self.boost(&train, rounds, Phase::Boosting, Some(&evaluation))?;
        boosted.forest.truncate(boosted.best_rounds);
        let scores = boosted.forest.scores(&slice, self.workers);
        let (calibration, calibrators) = self.calibrate(&scores, begin)?;
        Ok(Trial {
            best_rounds: boosted.best_rounds,
            calibration,
            calibrators,
            metrics: self.metrics(&scores, begin),
        })
    }

    fn refit(&self, rounds: usize) -> Result<(Encoder, Forest)> {
        let (encoder, train) = self.encode(self.problem.rows, 1)?;
        let boosted = self.boost(&train, rounds, Phase::Refitting, None)?;
        Ok((encoder, boosted.forest))
    }

    fn encode(&self, rows: usize, done: u32) -> Result<(Encoder, Encoded)> {
        let total = if self.problem.slice_begin.is_some() { 2 } else { 1 };
        self.reporter.report(Phase::Encoding, done.min(total - 1), total)?;
        let shuffle = self.config.time_column.is_none().then_some(self.config.seed);
        let order = encode::learning_order(rows, shuffle);
        encode::fit(
            &self.problem.values,
            &self.problem.targets,
            &order,
            self.problem.encoding,
        )
    }

    fn boost(
        &self,
        train: &Encoded,
        rounds: usize,
        phase: Phase,
        evaluation: Option<&Evaluation<'_>>,
    ) -> Result<Boosted> {
        let booster = Booster {
            objective: self.problem.objective(),
            config: self.config,
            workers: self.workers,
        };
        let total = rounds as u32;
        self.reporter.report(phase, 0, total)?;
        booster.boost(train, &self.problem.targets, rounds, evaluation, |round, metric| {
            self.reporter.report_metric(phase, round as u32, total, metric)
        })
    }

    /// What early stopping watches on the slice.
    fn measure(&self, begin: usize) -> (&'static str, Box<Measure<'_>>) {
        match &self.problem.kind {
            Kind::Number { scale, .. } => {
                let target = &self.problem.targets[0][begin..];
                let rmse = move |scores: &[Vec<f64>]| {
                    let errors = scores[0].iter().zip(target);
                    mean(errors.map(|(score, truth)| (score - truth).powi(2))).sqrt() * scale
                };
                ("rmse", Box::new(rmse))
            }
            Kind::Classes { codes, .. } => {
                let codes = &codes[begin..];
                let loss = move |scores: &[Vec<f64>]| {
                    log_loss(
                        codes
                            .iter()
                            .enumerate()
                            .map(|(row, &code)| shares(scores.iter().map(|of_class| of_class[row]))[code as usize]),
                    )
                };
                ("log_loss", Box::new(loss))
            }
        }
    }

    fn calibrate(&self, scores: &[Vec<f32>], begin: usize) -> Result<(Calibration, Vec<Calibrator>)> {
        if matches!(self.problem.kind, Kind::Number { .. }) {
            return Ok((Calibration::None, vec![Calibrator::Identity]));
        }
        let total = scores.len() as u32;
        let mut calibrators = Vec::with_capacity(scores.len());
        let mut most_flexible = Calibration::None;
        for (output, scores) in scores.iter().enumerate() {
            self.reporter.report(Phase::Calibrating, output as u32, total)?;
            let target = &self.problem.targets[output][begin..];
            let positive: Vec<bool> = target.iter().map(|target| *target > 0.5).collect();
            let positives = positive.iter().filter(|positive| **positive).count();
            let one_sided = positives == 0 || positives == positive.len();
            // Among many classes some are rare: one that the slice does not have keeps its own probabilities.
            let wanted = if one_sided && self.problem.task == Task::Multiclass {
                Some(Calibration::None)
            } else {
                self.config.calibration
            };
            let (chosen, calibrator) = calibrate::fit(wanted, scores, &positive)?;
            most_flexible = more_flexible(most_flexible, chosen);
            calibrators.push(calibrator);
        }
        self.reporter.report(Phase::Calibrating, total, total)?;
        Ok((most_flexible, calibrators))
    }

    fn metrics(&self, scores: &[Vec<f32>], begin: usize) -> Vec<(String, f64)> {
        match &self.problem.kind {
            Kind::Number { scale, .. } => number_metrics(&scores[0], &self.problem.targets[0][begin..], *scale),
            Kind::Classes { codes, .. } => class_metrics(scores, &codes[begin..]),
        }
    }
}

fn more_flexible(a: Calibration, b: Calibration) -> Calibration {
    match (a, b) {
        (Calibration::Isotonic, _) | (_, Calibration::Isotonic) => Calibration::Isotonic,
        (Calibration::Platt, _) | (_, Calibration::Platt) => Calibration::Platt,
        _ => Calibration::None,
    }
}

/// Uncalibrated probabilities of all classes from the scores of one row: one score is the second of two classes.
fn shares(scores: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut shares: Vec<f64> = scores.map(sigmoid).collect();
    if let [positive] = shares[..] {
        return vec![1.0 - positive, positive];
    }
    let total: f64 = shares.iter().sum();
    for share in &mut shares {
        *share /= total;
    }
    shares
}

fn class_metrics(scores: &[Vec<f32>], codes: &[u32]) -> Vec<(String, f64)> {
    let rows: Vec<Vec<f64>> = (0..codes.len())
        .map(|row| shares(scores.iter().map(|of_class| f64::from(of_class[row]))))
        .collect();
    let truths = || rows.iter().zip(codes).map(|(shares, &code)| shares[code as usize]);
    let hits = rows.iter().zip(codes).map(|(shares, &code)| {
        let shares: Vec<f32> = shares.iter().map(|&share| share as f32).collect();
        f64::from(u8::from(first_largest(&shares) == code as usize))
    });
    let mut metrics = vec![
        ("log_loss".to_owned(), log_loss(truths())),
        ("accuracy".to_owned(), mean(hits)),
    ];
    if let [of_positive] = scores {
        let scores: Vec<f64> = of_positive.iter().map(|&score| f64::from(score)).collect();
        let positive: Vec<bool> = codes.iter().map(|&code| code == 1).collect();
        metrics.extend(auc(&scores, &positive).map(|area| ("auc".to_owned(), area)));
        let brier = mean(truths().map(|share| (1.0 - share).powi(2)));
        metrics.push(("brier".to_owned(), brier));
    }
    metrics.sort_by(|a, b| a.0.cmp(&b.0));
    metrics
}

fn number_metrics(scores: &[f32], truth: &[f64], scale: f64) -> Vec<(String, f64)> {
    let errors = || scores.iter().zip(truth).map(|(&score, truth)| f64::from(score) - truth);
    let squared = mean(errors().map(|error| error * error));
    let center = mean(truth.iter().copied());
    let variance = mean(truth.iter().map(|truth| (truth - center).powi(2)));
    let mut metrics = vec![
        ("mae".to_owned(), mean(errors().map(f64::abs)) * scale),
        ("rmse".to_owned(), squared.sqrt() * scale),
    ];
    if variance > 0.0 {
        metrics.push(("r2".to_owned(), 1.0 - squared / variance));
    }
    metrics.sort_by(|a, b| a.0.cmp(&b.0));
    metrics
}

/// Gain by feature, normalised: a feature may have several columns of the matrix.
fn importance(features: &[Feature], encoder: &Encoder, forest: &Forest) -> Vec<(String, f64)> {
    let gains = forest.gains(encoder.columns.len());
    let total: f64 = gains.iter().sum();
    let mut of_feature: Vec<(String, f64)> = features.iter().map(|feature| (feature.name.clone(), 0.0)).collect();
    for (column, gain) in encoder.columns.iter().zip(gains) {
        if total > 0.0 {
            of_feature[column.feature].1 += gain / total;
        }
    }
    of_feature.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    of_feature
}
