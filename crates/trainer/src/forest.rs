//! Boosted trees in float32, as the graph computes them.

use forust_ml::tree::Tree as GrownTree;
use rayon::prelude::*;

use crate::encode::Encoded;
use crate::error::{Error, Result};
use crate::workers::Workers;

/// Rows that one task scores: large enough to amortise walking from tree to tree, small enough to stay in cache.
const SCORE_CHUNK_ROWS: usize = 1_024;

/// One node of a tree.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Node {
    Split {
        column: u32,
        /// Values below it go left.
        threshold: f32,
        left: u32,
        right: u32,
        /// Whether a missing value (NaN) goes left.
        missing_left: bool,
        /// Loss that the split saved in training.
        gain: f32,
    },
    Leaf(f32),
}

/// A tree; its root is the first node.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tree {
    pub(crate) nodes: Vec<Node>,
}

/// The trees of one output of the model.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ensemble {
    pub(crate) base: f32,
    pub(crate) trees: Vec<Tree>,
}

/// One ensemble per output: the positive class, each class, or the number.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Forest {
    pub(crate) outputs: Vec<Ensemble>,
}

impl Tree {
    /// Takes over a grown tree, whose leaves have the learning rate in them.
    pub(crate) fn from_grown(grown: &GrownTree) -> Result<Self> {
        let nodes = grown
            .nodes
            .iter()
            .map(|node| {
                if node.is_leaf {
                    return Ok(Node::Leaf(node.weight_value));
                }
                let missing_left = node.missing_node == node.left_child;
                if !missing_left && node.missing_node != node.right_child {
                    return Err(Error::Internal(
                        "a grown tree has a third branch for missing values".to_owned(),
                    ));
                }
                let (left, right) = (node.left_child as u32, node.right_child as u32);
                let column = node.split_feature as u32;
                let gain = node.split_gain;
                if node.split_value > f64::from(f32::MAX) {
                    // The split parts missing values from all others. "Nothing is below minus infinity" says so for
                    // infinite values, too, which no finite threshold does.
                    return Ok(Node::Split {
                        column,
                        threshold: f32::NEG_INFINITY,
                        left: right,
                        right: left,
                        missing_left: !missing_left,
                        gain,
                    });
                }
                Ok(Node::Split {
                    column,
                    threshold: round_up(node.split_value),
                    left,
                    right,
                    missing_left,
                    gain,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Self { nodes })
    }

    pub(crate) fn value(&self, at: impl Fn(usize) -> f32) -> f32 {
        let mut index = 0;
        loop {
            match self.nodes[index] {
                Node::Leaf(value) => return value,
                Node::Split {
                    column,
                    threshold,
                    left,
                    right,
                    missing_left,
                    ..
                } => {
                    let value = at(column as usize);
                    let go_left = value < threshold || (missing_left && value.is_nan());
                    index = if go_left { left } else { right } as usize;
                }
            }
        }
    }
}

/// The smallest float32 that is not below `value`: it parts float32 numbers exactly as `value` does.
fn round_up(value: f64) -> f32 {
    let nearest = value as f32;
    if f64::from(nearest) < value {
        nearest.next_up()
    } else {
        nearest
    }
}

impl Ensemble {
    /// Sums in float32 and in the order of the trees, the base last, as the runtime's tree operator does.
    fn score(&self, encoded: &Encoded, first: usize, scores: &mut [f32]) {
        for tree in &self.trees {
            for (offset, score) in scores.iter_mut().enumerate() {
                *score += tree.value(|column| encoded.columns[column][first + offset]);
            }
        }
        for score in scores {
            *score += self.base;
        }
    }
}

impl Forest {
    /// The score of each row, for each output.
    pub(crate) fn scores(&self, encoded: &Encoded, workers: &Workers) -> Vec<Vec<f32>> {
        self.outputs
            .iter()
            .map(|ensemble| {
                let mut scores = vec![0.0_f32; encoded.rows];
                workers.run(|| {
                    scores
                        .par_chunks_mut(SCORE_CHUNK_ROWS)
                        .enumerate()
                        .for_each(|(chunk, scores)| {
                            ensemble.score(encoded, chunk * SCORE_CHUNK_ROWS, scores);
                        });
                });
                scores
            })
            .collect()
    }

    /// The first `rounds` trees of each output.
    pub(crate) fn truncate(&mut self, rounds: usize) {
        for ensemble in &mut self.outputs {
            ensemble.trees.truncate(rounds);
        }
    }

    pub(crate) fn tree_count(&self) -> usize {
        self.outputs.iter().map(|ensemble| ensemble.trees.len()).sum()
    }

    /// Total gain of each column of the matrix.
    pub(crate) fn gains(&self, columns: usize) -> Vec<f64> {
        let mut gains = vec![0.0; columns];
        let nodes = self
            .outputs
            .iter()
            .flat_map(|ensemble| &ensemble.trees)
            .flat_map(|tree| &tree.nodes);
        for node in nodes {
            if let Node::Split { column, gain, .. } = node {
                gains[*column as usize] += f64::from(*gain);
            }
        }
        gains
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::float_cmp, reason = "the numbers are exact")]

    use super::*;

    #[test]
    fn thresholds_part_float32_numbers_as_the_doubles_do() {
        for value in [0.1, -0.1, 1.0, 1e-40, -1e-46, 16_777_217.0, 3.3e38] {
            let threshold = round_up(value);
            for near in [threshold.next_down(), threshold, threshold.next_up()] {
                assert_eq!(near < threshold, f64::from(near) < value, "{near} at {value}");
            }
        }
    }

    #[test]
    fn missing_values_follow_their_own_direction() {
        let tree = |missing_left| Tree {
            nodes: vec![
                Node::Split {
                    column: 0,
                    threshold: 1.0,
                    left: 1,
                    right: 2,
                    missing_left,
                    gain: 1.0,
                },
                Node::Leaf(-1.0),
                Node::Leaf(2.0),
            ],
        };
        assert_eq!(tree(true).value(|_| f32::NAN), -1.0);
        assert_eq!(tree(false).value(|_| f32::NAN), 2.0);
        assert_eq!(tree(true).value(|_| 1.0), 2.0);
        assert_eq!(tree(false).value(|_| 0.99), -1.0);
    }

    #[test]
    fn chunks_score_every_row_once() {
        let leaf = |value| Tree {
            nodes: vec![
                Node::Split {
                    column: 0,
                    threshold: 1_500.0,
                    left: 1,
                    right: 2,
                    missing_left: false,
                    gain: 2.0,
                },
                Node::Leaf(value),
                Node::Leaf(0.0),
            ],
        };
        let forest = Forest {
            outputs: vec![Ensemble {
                base: 10.0,
                trees: vec![leaf(1.0), leaf(2.0)],
            }],
        };
        let rows = SCORE_CHUNK_ROWS * 2 + 7;
        let encoded = Encoded {
            columns: vec![(0..rows).map(|row| row as f32).collect()],
            rows,
        };
        let workers = Workers::new(Some(2)).unwrap();
        let scores = forest.scores(&encoded, &workers);
        assert!((0..rows).all(|row| scores[0][row] == if row < 1_500 { 13.0 } else { 10.0 }));
        assert_eq!(forest.gains(1), [4.0]);
    }
}
