//! The boosting loop: one tree per round and output, grown by `forust-ml`, with its progress reported after each round.
//!
//! The loop is ours because the library's own reports nothing and cannot be cancelled, and because several outputs share
//! one binned matrix here.

use forust_ml::Matrix;
use forust_ml::binning::{TiledBins, bin_matrix};
use forust_ml::constraints::ConstraintMap;
use forust_ml::data::JaggedMatrix;
use forust_ml::gradientbooster::GrowPolicy;
use forust_ml::sampler::SampleMethod;
use forust_ml::splitter::MissingImputerSplitter;
use forust_ml::tree::Tree as GrownTree;
use rayon::prelude::*;

use crate::config::TrainConfig;
use crate::encode::Encoded;
use crate::error::{Error, Result};
use crate::forest::{Ensemble, Forest, Tree};
use crate::metrics::{mean, sigmoid};
use crate::workers::Workers;

/// Rows that one task computes gradients for.
const GRADIENT_CHUNK_ROWS: usize = 16_384;

/// What the trees minimise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Objective {
    /// Log loss of 0 and 1; scores are log odds.
    Logistic,
    /// Squared error; scores are the numbers.
    Squared,
}

impl Objective {
    /// The best score without any feature.
    fn base(self, targets: &[f64]) -> f32 {
        let mean = mean(targets.iter().copied());
        match self {
            Self::Squared => mean as f32,
            Self::Logistic => {
                // A class without a row (or without any other) would have infinite log odds.
                let floor = 1.0 / (targets.len() as f64 + 2.0);
                let share = mean.clamp(floor, 1.0 - floor);
                (share / (1.0 - share)).ln() as f32
            }
        }
    }

    fn gradient(self, score: f64, target: f64) -> (f32, f32) {
        match self {
            Self::Squared => ((score - target) as f32, 1.0),
            Self::Logistic => {
                let share = sigmoid(score);
                ((share - target) as f32, (share * (1.0 - share)) as f32)
            }
        }
    }
}

/// A measure of scores, one vector an output: smaller is better.
pub(crate) type Measure<'a> = dyn Fn(&[Vec<f64>]) -> f64 + 'a;

/// The rows that early stopping watches.
pub(crate) struct Evaluation<'a> {
    pub(crate) encoded: &'a Encoded,
    /// Name of the measure.
    pub(crate) name: &'static str,
    pub(crate) measure: &'a Measure<'a>,
}

/// What boosting came to.
pub(crate) struct Boosted {
    pub(crate) forest: Forest,
    /// Rounds up to the best measure; all of them without early stopping.
    pub(crate) best_rounds: usize,
}

/// Boosts with one set of settings.
pub(crate) struct Booster<'a> {
    pub(crate) objective: Objective,
    pub(crate) config: &'a TrainConfig,
    pub(crate) workers: &'a Workers,
}

impl Booster<'_> {
    /// Boosts `rounds` rounds on `train`. `targets` has at least `train.rows` numbers for each output. `report` is told
    /// the rounds done and the measure, and stops everything with an error.
    pub(crate) fn boost(
        &self,
        train: &Encoded,
        targets: &[Vec<f64>],
        rounds: usize,
        evaluation: Option<&Evaluation<'_>>,
        mut report: impl FnMut(usize, Option<(&'static str, f64)>) -> Result<()>,
    ) -> Result<Boosted> {
        let bins = Bins::new(train, self.config, self.workers)?;
        let mut outputs: Vec<Growing> = targets
            .iter()
            .map(|target| Growing::new(&target[..train.rows], self.objective))
            .collect();
        let mut watched = evaluation.map(|evaluation| Watched::new(evaluation, &outputs));
        let patience = self.config.early_stopping_rounds.map(|rounds| rounds as usize);
        for round in 1..=rounds {
            for (index, output) in outputs.iter_mut().enumerate() {
                let tree = output.grow(self, &bins, train)?;
                if let Some(watched) = &mut watched {
                    watched.add(index, &tree, self.workers);
                }
                output.trees.push(tree);
            }
            let metric = watched.as_mut().map(|watched| watched.measure(round));
            report(round, metric)?;
            if let (Some(watched), Some(patience)) = (&watched, patience)
                && round - watched.best_round >= patience
            {
                break;
            }
        }
        let best_rounds = match (&watched, patience) {
            (Some(watched), Some(_)) => watched.best_round,
            _ => rounds,
        };
        let outputs = outputs.into_iter().map(Growing::into_ensemble).collect();
        Ok(Boosted {
            forest: Forest { outputs },
            best_rounds,
        })
    }
}

/// The training rows in bins, shared by all outputs.
struct Bins {
    binned: Vec<u16>,
    cuts: JaggedMatrix<f64>,
    rows: usize,
    columns: Vec<usize>,
    /// The same bins row by row: histograms over them take two thirds of the time.
    tiles: TiledBins,
}

impl Bins {
    fn new(train: &Encoded, config: &TrainConfig, workers: &Workers) -> Result<Self> {
        let columns = train.columns.len();
        // Infinite values have no bin. As the largest finite ones they go the same way at every split.
        let values: Vec<f64> = train
            .columns
            .iter()
            .flatten()
            .map(|&value| f64::from(value.clamp(f32::MIN, f32::MAX)))
            .collect();
        let weights = vec![1.0; train.rows];
        let binned = workers
            .run(|| {
                let matrix = Matrix::new(&values, train.rows, columns);
                bin_matrix(&matrix, &weights, config.bins, f64::NAN, true)
            })
            .map_err(|error| Error::Internal(format!("features cannot be binned: {error}")))?;
        let tiles = workers.run(|| {
            let matrix = Matrix::new(&binned.binned_data, train.rows, columns);
            TiledBins::new(&matrix, &binned.cuts, true)
        });
        Ok(Self {
            tiles,
            binned: binned.binned_data,
            cuts: binned.cuts,
            rows: train.rows,
            columns: (0..columns).collect(),
        })
    }
}

/// One output while its trees grow.
struct Growing<'a> {
    target: &'a [f64],
    base: f32,
    trees: Vec<Tree>,
    scores: Vec<f64>,
    gradients: Vec<f32>,
    hessians: Vec<f32>,
}

impl<'a> Growing<'a> {
    fn new(target: &'a [f64], objective: Objective) -> Self {
        let base = objective.base(target);
        Self {
            target,
            base,
            trees: Vec::new(),
            scores: vec![f64::from(base); target.len()],
            gradients: vec![0.0; target.len()],
            hessians: vec![0.0; target.len()],
        }
    }

    fn into_ensemble(self) -> Ensemble {
        Ensemble {
            base: self.base,
            trees: self.trees,
        }
    }

    /// Grows the next tree and adds its values to the scores.
    fn grow(&mut self, booster: &Booster<'_>, bins: &Bins, train: &Encoded) -> Result<Tree> {
        let config = booster.config;
        booster.workers.run(|| {
            self.update_gradients(booster.objective);
            let splitter = MissingImputerSplitter {
                l1: 0.0,
                l2: config.l2 as f32,
                max_delta_step: 0.0,
                gamma: 0.0,
                min_leaf_weight: config.min_leaf_weight as f32,
                learning_rate: config.learning_rate as f32,
                allow_missing_splits: true,
                constraints_map: ConstraintMap::new(),
            };
            let data = Matrix::new(&bins.binned, bins.rows, bins.columns.len());
            let mut grown = GrownTree::new();
            let leaf_rows = grown.fit_with_tiles(
                &data,
                (0..bins.rows).collect(),
                &bins.columns,
                &bins.cuts,
                &self.gradients,
                &self.hessians,
                &splitter,
                usize::MAX,
                config.max_depth as usize,
                true,
                &SampleMethod::None,
                &GrowPolicy::DepthWise,
                Some(&bins.tiles),
            );
            let tree = Tree::from_grown(&grown)?;
            match leaf_rows {
                Some(leaf_rows) => {
                    for (rows, weight) in leaf_rows.leaves(&grown) {
                        for &row in rows {
                            self.scores[row] += weight;
                        }
                    }
                }
                // The library could not say for sure which rows ended in which leaf.
                None => self.scores.par_iter_mut().enumerate().for_each(|(row, score)| {
                    *score += f64::from(tree.value(|column| train.columns[column][row]));
                }),
            }
            Ok(tree)
        })
    }

    fn update_gradients(&mut self, objective: Objective) {
        self.gradients
            .par_chunks_mut(GRADIENT_CHUNK_ROWS)
            .zip(self.hessians.par_chunks_mut(GRADIENT_CHUNK_ROWS))
            .zip(self.scores.par_chunks(GRADIENT_CHUNK_ROWS))
            .zip(self.target.par_chunks(GRADIENT_CHUNK_ROWS))
            .for_each(|(((gradients, hessians), scores), target)| {
                for index in 0..scores.len() {
                    (gradients[index], hessians[index]) = objective.gradient(scores[index], target[index]);
                }
            });
    }
}

/// The evaluation rows while the trees grow.
struct Watched<'a> {
    evaluation: &'a Evaluation<'a>,
    scores: Vec<Vec<f64>>,
    best: f64,
    best_round: usize,
}

impl<'a> Watched<'a> {
    fn new(evaluation: &'a Evaluation<'a>, outputs: &[Growing<'_>]) -> Self {
        Self {
            evaluation,
            scores: outputs
                .iter()
                .map(|output| vec![f64::from(output.base); evaluation.encoded.rows])
                .collect(),
            best: f64::INFINITY,
            best_round: 0,
        }
    }

    fn add(&mut self, output: usize, tree: &Tree, workers: &Workers) {
        let columns = &self.evaluation.encoded.columns;
        let scores = &mut self.scores[output];
        workers.run(|| {
            scores.par_iter_mut().enumerate().for_each(|(row, score)| {
                *score += f64::from(tree.value(|column| columns[column][row]));
            });
        });
    }

    fn measure(&mut self, round: usize) -> (&'static str, f64) {
        let value = (self.evaluation.measure)(&self.scores);
        if value < self.best || round == 1 {
            self.best = value;
            self.best_round = round;
        }
        (self.evaluation.name, value)
    }
}
