//! Columns of a record batch as the trainer sees them.

use std::collections::{HashMap, HashSet};

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type, UInt32Type,
    UInt64Type,
};
use arrow::record_batch::RecordBatch;
use serde::{Deserialize, Serialize};

use crate::config::{TrainConfig, refuse};
use crate::error::{Error, Result, column};

/// Features at most: each is an input of the graph.
pub(crate) const MAX_FEATURES: usize = 2_000;
/// Distinct values of one string feature at most: all of them are written into the graph.
pub(crate) const MAX_CATEGORIES: usize = 50_000;
/// Code of a missing string.
pub(crate) const MISSING: u32 = u32::MAX;

/// The type that a feature has in the data and as an input of the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FeatureKind {
    /// True or false.
    Bool,
    /// Signed integer of 8 bits.
    Int8,
    /// Signed integer of 16 bits.
    Int16,
    /// Signed integer of 32 bits.
    Int32,
    /// Signed integer of 64 bits.
    Int64,
    /// Unsigned integer of 8 bits.
    #[serde(rename = "uint8")]
    UInt8,
    /// Unsigned integer of 16 bits.
    #[serde(rename = "uint16")]
    UInt16,
    /// Unsigned integer of 32 bits.
    #[serde(rename = "uint32")]
    UInt32,
    /// Unsigned integer of 64 bits.
    #[serde(rename = "uint64")]
    UInt64,
    /// Single precision; NaN is missing.
    Float32,
    /// Double precision, rounded to single inside the graph; NaN is missing.
    Float64,
    /// UTF-8 string; the empty one is missing.
    Text,
}

impl FeatureKind {
    fn of(data_type: &DataType) -> Option<Self> {
        Some(match data_type {
            DataType::Boolean => Self::Bool,
            DataType::Int8 => Self::Int8,
            DataType::Int16 => Self::Int16,
            DataType::Int32 => Self::Int32,
            DataType::Int64 => Self::Int64,
            DataType::UInt8 => Self::UInt8,
            DataType::UInt16 => Self::UInt16,
            DataType::UInt32 => Self::UInt32,
            DataType::UInt64 => Self::UInt64,
            DataType::Float32 => Self::Float32,
            DataType::Float64 => Self::Float64,
            DataType::Dictionary(_, value) => return Self::of(value),
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Self::Text,
            _ => return None,
        })
    }
}

/// One input of the model: a column of the data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Feature {
    /// Name of the column and of the graph's input.
    pub name: String,
    /// Type of the column and of the graph's input, whose shape is `[rows, 1]`.
    pub kind: FeatureKind,
    /// Whether values were missing in training. Integers and booleans cannot be missing at serving all the same: ONNX
    /// has no null.
    pub missing_in_training: bool,
}

/// The values of one feature, one a row.
#[derive(Debug, Clone)]
pub(crate) enum Values {
    /// In float32, as serving will see them; NaN is missing.
    Numbers(Vec<f32>),
    Texts(Texts),
}

/// A string column: a code a row and the sorted distinct strings that the codes point to.
#[derive(Debug, Clone)]
pub(crate) struct Texts {
    /// Index into `categories`, or [`MISSING`].
    pub(crate) codes: Vec<u32>,
    pub(crate) categories: Vec<String>,
}

impl Values {
    fn any_missing(&self) -> bool {
        match self {
            Self::Numbers(numbers) => numbers.iter().any(|number| number.is_nan()),
            Self::Texts(texts) => texts.codes.contains(&MISSING),
        }
    }

    /// The values in the order of `rows`.
    pub(crate) fn take(self, rows: &[u32]) -> Self {
        match self {
            Self::Numbers(numbers) => Self::Numbers(rows.iter().map(|&row| numbers[row as usize]).collect()),
            Self::Texts(texts) => Self::Texts(Texts {
                codes: rows.iter().map(|&row| texts.codes[row as usize]).collect(),
                categories: texts.categories,
            }),
        }
    }
}

/// The column of that name, which must be there exactly once.
pub(crate) fn column_of<'a>(data: &'a RecordBatch, name: &str, role: &'static str) -> Result<&'a ArrayRef> {
    let schema = data.schema_ref();
    let mut found = schema
        .fields()
        .iter()
        .enumerate()
        .filter(|(_, field)| field.name() == name);
    let Some((index, _)) = found.next() else {
        return Err(Error::UnknownColumn {
            column: name.to_owned(),
            role,
            known: schema.fields().iter().map(|field| field.name().clone()).collect(),
        });
    };
    if found.next().is_some() {
        return Err(column(name, "is in the dataset more than once: rename the others"));
    }
    Ok(data.column(index))
}

/// The names of the features that the config asks for, in the order of the data's columns.
pub(crate) fn feature_names(data: &RecordBatch, config: &TrainConfig) -> Result<Vec<String>> {
    for name in &config.exclude {
        column_of(data, name, "a column to exclude")?;
    }
    let mut left_out: HashSet<&str> = config.exclude.iter().map(String::as_str).collect();
    left_out.insert(&config.target);
    left_out.extend(config.time_column.as_deref());
    let wanted = match &config.features {
        Some(names) => {
            for name in names {
                column_of(data, name, "a feature")?;
            }
            Some(names.iter().map(String::as_str).collect::<HashSet<_>>())
        }
        None => None,
    };
    let names: Vec<String> = data
        .schema_ref()
        .fields()
        .iter()
        .map(|field| field.name().as_str())
        .filter(|name| !left_out.contains(name))
        .filter(|name| wanted.as_ref().is_none_or(|wanted| wanted.contains(name)))
        .map(str::to_owned)
        .collect();
    if names.is_empty() {
        return Err(refuse(
            "features",
            "leaves no column to learn from: name at least one that is neither target, time column nor excluded",
        ));
    }
    if names.len() > MAX_FEATURES {
        let reason = format!(
            "are {}: at most {MAX_FEATURES} are supported, exclude some",
            names.len()
        );
        return Err(refuse("features", reason));
    }
    Ok(names)
}

/// Reads one feature and says what it is.
pub(crate) fn read_feature(data: &RecordBatch, name: &str) -> Result<(Feature, Values)> {
    let array = column_of(data, name, "a feature")?;
    if name.is_empty() {
        return Err(column(
            name,
            "has no name: name it or exclude it, inputs of a model have names",
        ));
    }
    let Some(kind) = FeatureKind::of(array.data_type()) else {
        let reason = format!(
            "has type {}, which is neither number, boolean nor string: add it to `exclude`",
            array.data_type()
        );
        return Err(column(name, reason));
    };
    let values = read_values(name, array, kind)?;
    let feature = Feature {
        name: name.to_owned(),
        kind,
        missing_in_training: values.any_missing(),
    };
    Ok((feature, values))
}

/// Reads the column of a trained model's feature; its type must be the trained one.
pub(crate) fn read_known(data: &RecordBatch, feature: &Feature) -> Result<Values> {
    let array = column_of(data, &feature.name, "a feature")?;
    if FeatureKind::of(array.data_type()) != Some(feature.kind) {
        let reason = format!(
            "has type {}, but the model was trained on {:?}: convert the column",
            array.data_type(),
            feature.kind
        );
        return Err(column(&feature.name, reason));
    }
    read_values(&feature.name, array, feature.kind)
}

macro_rules! numbers {
    ($array:expr, $native:ty) => {
        $array
            .as_primitive::<$native>()
            .iter()
            .map(|value| value.map_or(f32::NAN, |value| value as f32))
            .collect()
    };
}

fn read_values(name: &str, array: &ArrayRef, kind: FeatureKind) -> Result<Values> {
    let plain;
    let array = match array.data_type() {
        DataType::Dictionary(_, value) => {
            plain = convert(name, array, value)?;
            &plain
        }
        _ => array,
    };
    let numbers: Vec<f32> = match kind {
        FeatureKind::Bool => array
            .as_boolean()
            .iter()
            .map(|value| value.map_or(f32::NAN, |value| f32::from(u8::from(value))))
            .collect(),
        FeatureKind::Int8 => numbers!(array, Int8Type),
        FeatureKind::Int16 => numbers!(array, Int16Type),
        FeatureKind::Int32 => numbers!(array, Int32Type),
        FeatureKind::Int64 => numbers!(array, Int64Type),
        FeatureKind::UInt8 => numbers!(array, UInt8Type),
        FeatureKind::UInt16 => numbers!(array, UInt16Type),
        FeatureKind::UInt32 => numbers!(array, UInt32Type),
        FeatureKind::UInt64 => numbers!(array, UInt64Type),
        FeatureKind::Float32 => numbers!(array, Float32Type),
        FeatureKind::Float64 => numbers!(array, Float64Type),
        FeatureKind::Text => return Ok(Values::Texts(read_texts(name, array)?)),
    };
    Ok(Values::Numbers(numbers))
}

pub(crate) fn convert(name: &str, array: &ArrayRef, to: &DataType) -> Result<ArrayRef> {
    cast(array, to).map_err(|error| column(name, format!("cannot be read as {to}: {error}")))
}

/// Codes are ranks among the sorted strings, so that they do not depend on the order of the rows.
fn read_texts(name: &str, array: &ArrayRef) -> Result<Texts> {
    let array = convert(name, array, &DataType::Utf8)?;
    let strings = array.as_string::<i32>();
    let mut seen: HashMap<&str, u32> = HashMap::new();
    let mut codes = Vec::with_capacity(strings.len());
    for value in strings {
        let code = match value {
            None | Some("") => MISSING,
            Some(text) => {
                let next = seen.len() as u32;
                *seen.entry(text).or_insert(next)
            }
        };
        codes.push(code);
        if seen.len() > MAX_CATEGORIES {
            let reason =
                format!("has more than {MAX_CATEGORIES} distinct strings: exclude it, or group its values first");
            return Err(column(name, reason));
        }
    }
    let mut sorted: Vec<(&str, u32)> = seen.into_iter().collect();
    sorted.sort_unstable();
    let mut rank_of = vec![0_u32; sorted.len()];
    for (rank, (_, code)) in sorted.iter().enumerate() {
        rank_of[*code as usize] = rank as u32;
    }
    for code in &mut codes {
        if *code != MISSING {
            *code = rank_of[*code as usize];
        }
    }
    Ok(Texts {
        codes,
        categories: sorted.iter().map(|(text, _)| (*text).to_owned()).collect(),
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::float_cmp, reason = "the numbers are exact")]

    use std::sync::Arc;

    use arrow::array::{
        BooleanArray, Date32Array, DictionaryArray, Float64Array, Int32Array, Int64Array, LargeStringArray, StringArray,
    };

    use super::*;

    fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
        RecordBatch::try_from_iter_with_nullable(
            columns
                .into_iter()
                .map(|(name, array)| (name, array, true))
                .collect::<Vec<_>>(),
        )
        .unwrap()
    }

    fn config() -> TrainConfig {
        TrainConfig {
            target: "y".to_owned(),
            ..TrainConfig::default()
        }
    }

    #[test]
    fn strings_get_sorted_codes_and_empty_ones_are_missing() {
        let array: ArrayRef = Arc::new(LargeStringArray::from(vec![
            Some("b"),
            None,
            Some(""),
            Some("a"),
            Some("b"),
        ]));
        let (feature, values) = read_feature(&batch(vec![("s", array)]), "s").unwrap();
        assert_eq!(feature.kind, FeatureKind::Text);
        assert!(feature.missing_in_training);
        let Values::Texts(texts) = values else {
            panic!("not texts")
        };
        assert_eq!(texts.categories, ["a", "b"]);
        assert_eq!(texts.codes, [1, MISSING, MISSING, 0, 1]);
    }

    #[test]
    fn dictionaries_and_booleans_are_read() {
        let dictionary: DictionaryArray<Int32Type> = vec!["x", "y", "x"].into_iter().collect();
        let flags: ArrayRef = Arc::new(BooleanArray::from(vec![Some(true), None, Some(false)]));
        let data = batch(vec![("d", Arc::new(dictionary) as ArrayRef), ("b", flags)]);
        let (feature, _) = read_feature(&data, "d").unwrap();
        assert_eq!(feature.kind, FeatureKind::Text);
        let (feature, values) = read_feature(&data, "b").unwrap();
        assert!(feature.missing_in_training);
        let Values::Numbers(numbers) = values else {
            panic!("not numbers")
        };
        assert_eq!(numbers[0], 1.0);
        assert!(numbers[1].is_nan());
    }

    #[test]
    fn integers_round_to_float32_at_once() {
        // Through float64 first, this value would be rounded twice and end one float32 lower.
        let value = (1_i64 << 60) + (1 << 36) + 1;
        let array: ArrayRef = Arc::new(Int64Array::from(vec![value]));
        let (_, values) = read_feature(&batch(vec![("i", array)]), "i").unwrap();
        let Values::Numbers(numbers) = values else {
            panic!("not numbers")
        };
        assert_eq!(numbers[0], value as f32);
        assert_ne!(numbers[0], value as f64 as f32);
    }

    #[test]
    fn features_are_all_columns_but_target_time_and_excluded() {
        let one = || Arc::new(Float64Array::from(vec![1.0])) as ArrayRef;
        let data = batch(vec![
            ("a", one()),
            ("y", one()),
            ("t", one()),
            ("id", one()),
            ("b", one()),
        ]);
        let chosen = TrainConfig {
            time_column: Some("t".to_owned()),
            exclude: vec!["id".to_owned()],
            ..config()
        };
        assert_eq!(feature_names(&data, &chosen).unwrap(), ["a", "b"]);
        let named = TrainConfig {
            features: Some(vec!["b".to_owned(), "a".to_owned()]),
            ..config()
        };
        assert_eq!(feature_names(&data, &named).unwrap(), ["a", "b"]);
    }

    #[test]
    fn wrong_columns_are_named() {
        let dates: ArrayRef = Arc::new(Date32Array::from(vec![1]));
        let text: ArrayRef = Arc::new(StringArray::from(vec!["x"]));
        let data = batch(vec![("day", dates), ("text", text)]);
        let unknown = TrainConfig {
            exclude: vec!["idd".to_owned()],
            ..config()
        };
        let error = feature_names(&data, &unknown).unwrap_err().to_string();
        assert_eq!(
            error,
            "unknown column `idd` as a column to exclude: the dataset has columns `day`, `text`"
        );
        let error = read_feature(&data, "day").unwrap_err().to_string();
        assert!(error.contains("column `day` has type Date32"), "{error}");
        let feature = Feature {
            name: "text".to_owned(),
            kind: FeatureKind::Int64,
            missing_in_training: false,
        };
        let error = read_known(&data, &feature).unwrap_err().to_string();
        assert!(error.contains("trained on Int64"), "{error}");
    }

    #[test]
    fn a_column_that_is_there_twice_is_refused() {
        let schema = arrow::datatypes::Schema::new(vec![
            arrow::datatypes::Field::new("a", DataType::Int32, false),
            arrow::datatypes::Field::new("a", DataType::Int32, false),
        ]);
        let one = || Arc::new(Int32Array::from(vec![1])) as ArrayRef;
        let data = RecordBatch::try_new(Arc::new(schema), vec![one(), one()]).unwrap();
        let error = column_of(&data, "a", "a feature").unwrap_err().to_string();
        assert!(error.contains("more than once"), "{error}");
    }
}
