//! From columns to the float32 matrix that the trees split.

use crate::config::Encoding;
use crate::error::{Error, Result};
use crate::table::{MISSING, Texts, Values};

/// Columns of the matrix at most: target means have one per class.
pub(crate) const MAX_MATRIX_COLUMNS: usize = 10_000;
/// Folds of the target means of training rows.
const FOLDS: usize = 5;

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

/// Fits an encoder on the first `rows` rows and encodes these rows for training. Target means of a training row come
/// from the other folds' rows: with its own label in it, the trees would trust them too much.
///
/// `targets`: for each output of the model one number a row.
pub(crate) fn fit(
    features: &[Values],
    targets: &[Vec<f64>],
    rows: usize,
    encoding: Encoding,
    seed: u64,
) -> Result<(Encoder, Encoded)> {
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
                    let means = TargetMeans::new(texts, &target[..rows], smoothing, seed);
                    encoded.push(means.encode_training_rows(texts));
                    columns.push(EncodedColumn {
                        feature,
                        code: Code::Lookup(means.lookup(texts)),
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

    fn without(self, other: Self) -> Self {
        Self {
            count: self.count - other.count,
            sum: self.sum - other.sum,
        }
    }

    /// The mean, drawn towards `prior`; a group without rows has the prior itself.
    fn smoothed(self, prior: f64, smoothing: f64) -> f32 {
        if self.count <= 0.0 {
            return prior as f32;
        }
        ((self.sum + smoothing * prior) / (self.count + smoothing)) as f32
    }
}

/// Sums of one target per category and fold. The missing ones are the last category.
struct TargetMeans {
    /// Of each category the sums of its folds.
    folds: Vec<[Sum; FOLDS]>,
    fold_of_row: Vec<u8>,
    all: Sum,
    smoothing: f64,
}

impl TargetMeans {
    fn new(texts: &Texts, target: &[f64], smoothing: f64, seed: u64) -> Self {
        let mut means = Self {
            folds: vec![[Sum::default(); FOLDS]; texts.categories.len() + 1],
            fold_of_row: (0..target.len() as u64).map(|row| fold(seed, row)).collect(),
            all: Sum::default(),
            smoothing,
        };
        for ((&code, &value), &fold) in texts.codes.iter().zip(target).zip(&means.fold_of_row) {
            let category = group(texts, code);
            means.folds[category][usize::from(fold)].add(value);
            means.all.add(value);
        }
        means
    }

    fn prior(&self) -> f64 {
        self.all.sum / self.all.count.max(1.0)
    }

    fn total(&self, category: usize) -> Sum {
        self.folds[category].iter().fold(Sum::default(), |total, part| Sum {
            count: total.count + part.count,
            sum: total.sum + part.sum,
        })
    }

    fn lookup(&self, texts: &Texts) -> Lookup {
        let prior = self.prior();
        let value = |category| self.total(category).smoothed(prior, self.smoothing);
        let categories = texts
            .categories
            .iter()
            .enumerate()
            .filter(|(category, _)| self.total(*category).count > 0.0)
            .map(|(category, name)| (name.clone(), value(category)))
            .collect();
        Lookup {
            categories,
            missing: value(texts.categories.len()),
            unseen: prior as f32,
        }
    }

    fn encode_training_rows(&self, texts: &Texts) -> Vec<f32> {
        let prior = self.prior();
        let outside: Vec<[f32; FOLDS]> = (0..self.folds.len())
            .map(|category| {
                let total = self.total(category);
                self.folds[category].map(|own| total.without(own).smoothed(prior, self.smoothing))
            })
            .collect();
        texts
            .codes
            .iter()
            .zip(&self.fold_of_row)
            .map(|(&code, &fold)| outside[group(texts, code)][usize::from(fold)])
            .collect()
    }
}

fn group(texts: &Texts, code: u32) -> usize {
    if code == MISSING {
        texts.categories.len()
    } else {
        code as usize
    }
}

/// The fold of a row: the finalizer of splitmix64 over seed and row, evenly spread and the same everywhere.
fn fold(seed: u64, row: u64) -> u8 {
    let mut bits = seed.wrapping_add(row.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((bits ^ (bits >> 31)) % FOLDS as u64) as u8
}

#[cfg(test)]
mod tests {
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
        let (encoder, encoded) = fit(&train, &[vec![0.0; 5]], 4, Encoding::Ordinal, 0).unwrap();
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
        let values = ["a", "a", "a", "b", "", ""];
        let target = vec![1.0, 1.0, 0.0, 1.0, 0.0, 0.0];
        let encoding = Encoding::TargetMean { smoothing: 2.0 };
        let (encoder, _) = fit(&[Values::Texts(texts(&values))], &[target], 6, encoding, 3).unwrap();
        let new = [Values::Texts(texts(&["a", "b", "", "z"]))];
        let column = &encoder.encode(&new, 0, 4).columns[0];
        assert_eq!(column[..], [(2.0 + 1.0) / 5.0, (1.0 + 1.0) / 3.0, 1.0 / 4.0, 0.5]);
    }

    #[test]
    fn a_training_row_does_not_see_its_own_label() {
        let values = ["a", "b", "c", "d"];
        let encode = |target: Vec<f64>| {
            let encoding = Encoding::TargetMean { smoothing: 1.0 };
            let (_, encoded) = fit(&[Values::Texts(texts(&values))], &[target], 4, encoding, 0).unwrap();
            encoded.columns[0].clone()
        };
        // Each category has one row: without it nothing but the prior is left.
        assert_eq!(encode(vec![1.0, 0.0, 1.0, 0.0]), vec![0.5; 4]);
    }

    #[test]
    fn multiclass_has_one_mean_per_class_and_numbers_stay() {
        let features = [Values::Numbers(vec![1.5, f32::NAN]), Values::Texts(texts(&["a", "b"]))];
        let targets = [vec![1.0, 0.0], vec![0.0, 1.0], vec![0.0, 0.0]];
        let encoding = Encoding::TargetMean { smoothing: 0.0 };
        let (encoder, encoded) = fit(&features, &targets, 2, encoding, 0).unwrap();
        assert_eq!(encoder.columns.len(), 4);
        assert_eq!(encoded.columns[0][0], 1.5);
        let again = encoder.encode(&features, 1, 2);
        assert!(again.columns[0][0].is_nan());
        assert_eq!(again.columns[1..], [vec![0.0], vec![1.0], vec![0.0]]);
    }

    #[test]
    fn folds_are_even_and_depend_on_the_seed() {
        let mut counts = [0; FOLDS];
        for row in 0..10_000 {
            counts[usize::from(fold(1, row))] += 1;
        }
        assert!(
            counts.iter().all(|&count| (1_800..2_200).contains(&count)),
            "{counts:?}"
        );
        assert!((0..100).any(|row| fold(1, row) != fold(2, row)));
    }
}
