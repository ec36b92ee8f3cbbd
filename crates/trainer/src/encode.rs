//! From columns to the float32 matrix that the trees split.

use crate::config::Encoding;
use crate::error::{Error, Result};
use crate::table::{MISSING, Texts, Values};

/// Columns of the matrix at most: target means have one per class.
pub(crate) const MAX_MATRIX_COLUMNS: usize = 10_000;

/// How one column of the matrix comes from one feature.
#[derive(Debug, Clone)]
pub(crate) enum Code {
    /// The number itself.
    Number,
    /// A number per category.
    Lookup(Lookup),
}

/// One number per category of a string feature.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Lookup {
    /// Sorted, with the value that each has in the matrix. Categories without a row of their own are left out.
    pub(crate) categories: Vec<(String, f32)>,
    pub(crate) missing: f32,
    pub(crate) unseen: f32,
}

/// One column of the matrix.
#[derive(Debug, Clone)]
pub(crate) struct EncodedColumn {
    /// Index of the feature.
    pub(crate) feature: usize,
    pub(crate) code: Code,
}

/// All columns of the matrix, in order.
#[derive(Debug, Clone)]
pub(crate) struct Encoder {
    pub(crate) columns: Vec<EncodedColumn>,
}

/// A float32 matrix, column by column; NaN is missing.
#[derive(Debug)]
pub(crate) struct Encoded {
    pub(crate) columns: Vec<Vec<f32>>,
    pub(crate) rows: usize,
}

/// The order in which target means come to know `rows` rows: that of time, in which they are, or with a seed a shuffled
/// one, the same everywhere.
pub(crate) fn learning_order(rows: usize, shuffle: Option<u64>) -> Vec<u32> {
    let mut order: Vec<u32> = (0..rows as u32).collect();
    if let Some(seed) = shuffle {
        order.sort_by_cached_key(|&row| (scatter(seed, u64::from(row)), row));
    }
    order
}

/// The finalizer of splitmix64 over seed and row.
fn scatter(seed: u64, row: u64) -> u64 {
    let mut bits = seed.wrapping_add(row.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// Fits an encoder on the first rows and encodes these rows for training. A target mean of a training row comes from the
/// rows before it in `order` only: with its own label in it, the trees would trust the column too much.
///
/// `order`: a permutation of the rows to fit on. `targets`: for each output of the model one number a row.
pub(crate) fn fit(
    features: &[Values],
    targets: &[Vec<f64>],
    order: &[u32],
    encoding: Encoding,
) -> Result<(Encoder, Encoded)> {
    let rows = order.len();
    let per_text = match encoding {
        Encoding::Ordinal => 1,
        Encoding::TargetMean { .. } => targets.len(),
    };
    let texts = features
        .iter()
        .filter(|values| matches!(values, Values::Texts(_)))
        .count();
    let wanted = features.len() - texts + texts * per_text;
    if wanted > MAX_MATRIX_COLUMNS {
        return Err(Error::Data(format!(
            "the features become {wanted} columns: at most {MAX_MATRIX_COLUMNS} are supported, use the ordinal encoding \
             or fewer features"
        )));
    }
    let mut columns = Vec::with_capacity(wanted);
    let mut encoded = Vec::with_capacity(wanted);
    for (feature, values) in features.iter().enumerate() {
        match (values, encoding) {
            (Values::Numbers(numbers), _) => {
                columns.push(EncodedColumn {
                    feature,
                    code: Code::Number,
                });
                encoded.push(numbers[..rows].to_vec());
            }
            (Values::Texts(texts), Encoding::Ordinal) => {
                let lookup = ordinal(texts, rows);
                encoded.push(look_up(&lookup, texts, rows));
                columns.push(EncodedColumn {
                    feature,
                    code: Code::Lookup(lookup),
                });
            }
            (Values::Texts(texts), Encoding::TargetMean { smoothing }) => {
                for target in targets {
                    let (lookup, column) = target_means(texts, target, order, smoothing);
                    encoded.push(column);
                    columns.push(EncodedColumn {
                        feature,
                        code: Code::Lookup(lookup),
                    });
                }
            }
        }
    }
    let encoder = Encoder { columns };
    Ok((encoder, Encoded { columns: encoded, rows }))
}

impl Encoder {
    /// Encodes rows as serving will. `features`: their values, one a feature of the model.
    pub(crate) fn encode(&self, features: &[Values], first: usize, end: usize) -> Encoded {
        let columns = self
            .columns
            .iter()
            .map(|column| match (&column.code, &features[column.feature]) {
                (Code::Number, Values::Numbers(numbers)) => numbers[first..end].to_vec(),
                (Code::Lookup(lookup), Values::Texts(texts)) => {
                    let table = lookup.table(&texts.categories);
                    texts.codes[first..end]
                        .iter()
                        .map(|&code| lookup.value(&table, code))
                        .collect()
                }
                // Features are read with the kinds they were fitted with.
                _ => vec![f32::NAN; end - first],
            })
            .collect();
        Encoded {
            columns,
            rows: end - first,
        }
    }
}

impl Lookup {
    /// The value of each of `categories` (sorted).
    fn table(&self, categories: &[String]) -> Vec<f32> {
        let mut known = self.categories.iter().peekable();
        categories
            .iter()
            .map(|category| {
                while known.next_if(|(name, _)| name < category).is_some() {}
                match known.peek() {
                    Some((name, value)) if name == category => *value,
                    _ => self.unseen,
                }
            })
            .collect()
    }

    fn value(&self, table: &[f32], code: u32) -> f32 {
        if code == MISSING {
            self.missing
        } else {
            table[code as usize]
        }
    }
}

fn look_up(lookup: &Lookup, texts: &Texts, rows: usize) -> Vec<f32> {
    let table = lookup.table(&texts.categories);
    texts.codes[..rows]
        .iter()
        .map(|&code| lookup.value(&table, code))
        .collect()
}

fn ordinal(texts: &Texts, rows: usize) -> Lookup {
    let mut present = vec![false; texts.categories.len()];
    for &code in &texts.codes[..rows] {
        if code != MISSING {
            present[code as usize] = true;
        }
    }
    let categories = texts
        .categories
        .iter()
        .zip(&present)
        .filter(|(_, present)| **present)
        .enumerate()
        .map(|(rank, (category, _))| (category.clone(), rank as f32))
        .collect();
    Lookup {
        categories,
        missing: f32::NAN,
        unseen: f32::NAN,
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    count: f64,
    sum: f64,
}

impl Sum {
    fn add(&mut self, value: f64) {
        self.count += 1.0;
        self.sum += value;
    }

    /// The mean; 0 of nothing.
    fn mean(self) -> f64 {
        self.sum / self.count.max(1.0)
    }

    /// The mean, drawn towards `prior`; a group without rows has the prior itself.
    fn smoothed(self, prior: f64, smoothing: f64) -> f32 {
        if self.count == 0.0 {
            return prior as f32;
        }
        ((self.sum + smoothing * prior) / (self.count + smoothing)) as f32
    }
}

/// The means of one target per category for serving, and the training rows encoded.
fn target_means(texts: &Texts, target: &[f64], order: &[u32], smoothing: f64) -> (Lookup, Vec<f32>) {
    let missing = texts.categories.len();
    let group_of = |row: u32| match texts.codes[row as usize] {
        MISSING => missing,
        code => code as usize,
    };
    let mut groups = vec![Sum::default(); missing + 1];
    let mut all = Sum::default();
    let mut column = vec![0.0; order.len()];
    for &row in order {
        let group = &mut groups[group_of(row)];
        column[row as usize] = group.smoothed(all.mean(), smoothing);
        group.add(target[row as usize]);
        all.add(target[row as usize]);
    }
    let prior = all.mean();
    let value = |group: &Sum| group.smoothed(prior, smoothing);
    let lookup = Lookup {
        categories: texts
            .categories
            .iter()
            .zip(&groups)
            .filter(|(_, group)| group.count > 0.0)
            .map(|(category, group)| (category.clone(), value(group)))
            .collect(),
        missing: value(&groups[missing]),
        unseen: prior as f32,
    };
    if groups.iter().filter(|group| group.count > 0.0).count() <= 1 {
        // With one group there is nothing to tell apart: all that the column would show is how its mean settled.
        column.fill(prior as f32);
    }
    (lookup, column)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::float_cmp, reason = "the numbers are exact")]

    use super::*;

    fn texts(values: &[&str]) -> Texts {
        let mut categories: Vec<String> = values
            .iter()
            .filter(|value| !value.is_empty())
            .map(|value| (*value).to_owned())
            .collect();
        categories.sort();
        categories.dedup();
        let codes = values
            .iter()
            .map(|value| {
                categories
                    .iter()
                    .position(|category| category == value)
                    .map_or(MISSING, |code| code as u32)
            })
            .collect();
        Texts { codes, categories }
    }

    #[test]
    fn ordinals_are_ranks_and_the_unknown_is_missing() {
        let train = [Values::Texts(texts(&["c", "a", "", "c", "b"]))];
        let (encoder, encoded) = fit(&train, &[vec![0.0; 5]], &learning_order(4, None), Encoding::Ordinal).unwrap();
        // `b` is only in the fifth row, which the encoder has not seen.
        assert_eq!(encoded.columns[0][..2], [1.0, 0.0]);
        assert!(encoded.columns[0][2].is_nan());
        let new = [Values::Texts(texts(&["b", "c", "", "a"]))];
        let column = &encoder.encode(&new, 0, 4).columns[0];
        assert!(column[0].is_nan() && column[2].is_nan());
        assert_eq!((column[1], column[3]), (1.0, 0.0));
    }

    #[test]
    fn target_means_are_smoothed_and_the_unseen_get_the_mean() {
        let values = [Values::Texts(texts(&["a", "a", "a", "b", "", ""]))];
        let target = vec![1.0, 1.0, 0.0, 1.0, 0.0, 0.0];
        let encoding = Encoding::TargetMean { smoothing: 2.0 };
        let (encoder, _) = fit(&values, &[target], &learning_order(6, Some(3)), encoding).unwrap();
        let new = [Values::Texts(texts(&["a", "b", "", "z"]))];
        let column = &encoder.encode(&new, 0, 4).columns[0];
        assert_eq!(column[..], [(2.0 + 1.0) / 5.0, (1.0 + 1.0) / 3.0, 1.0 / 4.0, 0.5]);
    }

    #[test]
    fn a_training_row_is_encoded_by_the_rows_before_it() {
        let values = [Values::Texts(texts(&["a", "a", "b", "a", "b"]))];
        let target = vec![1.0, 0.0, 1.0, 1.0, 0.0];
        let encoding = Encoding::TargetMean { smoothing: 1.0 };
        let (_, encoded) = fit(&values, &[target], &learning_order(5, None), encoding).unwrap();
        // Of what came before: sum of the category, plus the overall mean, through its rows plus one.
        let expected = [0.0, 1.0, 0.5, (1.0 + 2.0 / 3.0) / 3.0, 1.75 / 2.0];
        assert_eq!(encoded.columns[0], expected.map(|value: f64| value as f32));
    }

    #[test]
    fn a_column_with_one_group_is_constant() {
        let values = [Values::Texts(texts(&["", "", "", ""]))];
        let encoding = Encoding::TargetMean { smoothing: 1.0 };
        let target = vec![1.0, 0.0, 0.0, 0.0];
        let (_, encoded) = fit(&values, &[target], &learning_order(4, None), encoding).unwrap();
        assert_eq!(encoded.columns[0], [0.25; 4]);
    }

    #[test]
    fn multiclass_has_one_mean_per_class_and_numbers_stay() {
        let features = [Values::Numbers(vec![1.5, f32::NAN]), Values::Texts(texts(&["a", "b"]))];
        let targets = [vec![1.0, 0.0], vec![0.0, 1.0], vec![0.0, 0.0]];
        let encoding = Encoding::TargetMean { smoothing: 0.0 };
        let (encoder, encoded) = fit(&features, &targets, &learning_order(2, None), encoding).unwrap();
        assert_eq!(encoder.columns.len(), 4);
        assert_eq!(encoded.columns[0][0], 1.5);
        let again = encoder.encode(&features, 1, 2);
        assert!(again.columns[0][0].is_nan());
        assert_eq!(again.columns[1..], [vec![0.0], vec![1.0], vec![0.0]]);
    }

    #[test]
    fn a_shuffled_order_has_every_row_once_and_depends_on_the_seed() {
        let order = learning_order(1_000, Some(1));
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, learning_order(1_000, None));
        assert_ne!(order, sorted);
        assert_ne!(order, learning_order(1_000, Some(2)));
    }
}
