//! Fills a profile from record batches, one pass, in bounded memory.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch},
    compute::cast,
    datatypes::{DataType, Float64Type, Int64Type, TimeUnit},
};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{
    distinct::{DistinctSketch, hash_number},
    error::{Error, Result},
    profile::{Binning, ColumnKind, ColumnProfile, Histogram, Moments, NumericProfile, PROFILE_VERSION, Profile},
    sketch::{DEFAULT_SKETCH_SIZE, QuantileSketch},
    values::{MAX_VALUES, ValueTable},
};

/// Batches with fewer values than this are read on the calling thread: handing them out costs more than it saves.
const PARALLEL_VALUES: usize = 65_536;
/// Numbers are read through a buffer of this many, so that memory does not depend on the size of a batch.
const CHUNK: usize = 8_192;
const SECONDS_PER_DAY: f64 = 86_400.0;

/// What to profile, and how closely.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProfileOptions {
    /// Size of the quantile sketches: the rank error is about `2.3 / size^0.9`.
    pub sketch_size: u32,
    /// Only these columns; all of them when `None`.
    pub columns: Option<BTreeSet<String>>,
    /// Bins to count numeric columns over, by column; usually [`Profile::binnings`] of a reference.
    pub binnings: BTreeMap<String, Binning>,
}

impl Default for ProfileOptions {
    fn default() -> Self {
        Self {
            sketch_size: DEFAULT_SKETCH_SIZE,
            columns: None,
            binnings: BTreeMap::new(),
        }
    }
}

/// Builds a [`Profile`] from a stream of batches.
///
/// ```
/// # use std::sync::Arc;
/// # use arrow::array::{ArrayRef, Float64Array, RecordBatch};
/// # use modelyard_stats::profile::{ProfileOptions, Profiler};
/// let column: ArrayRef = Arc::new(Float64Array::from(vec![Some(1.0), None, Some(3.0)]));
/// let batch = RecordBatch::try_from_iter([("distance", column)])?;
/// let mut profiler = Profiler::new(&ProfileOptions::default())?;
/// profiler.update(&batch)?;
/// let profile = profiler.finish();
/// assert_eq!(profile.columns["distance"].missing, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Profiler {
    options: ProfileOptions,
    rows: u64,
    columns: BTreeMap<String, ColumnBuilder>,
}

impl Profiler {
    /// A profiler that has seen no rows.
    ///
    /// # Errors
    /// A sketch size out of its range.
    pub fn new(options: &ProfileOptions) -> Result<Self> {
        QuantileSketch::new(options.sketch_size)?;
        Ok(Self {
            options: options.clone(),
            rows: 0,
            columns: BTreeMap::new(),
        })
    }

    /// Adds the rows of a batch. A column may appear later or be absent from some batches; rows without it are not counted
    /// as missing values.
    ///
    /// # Errors
    /// A column whose kind changes; the profiler must then be thrown away.
    pub fn update(&mut self, batch: &RecordBatch) -> Result<()> {
        let mut work: Vec<(&ArrayRef, &String, ColumnBuilder)> = Vec::new();
        let schema = batch.schema_ref();
        for (field, array) in schema.fields().iter().zip(batch.columns()) {
            let name = field.name();
            let wanted = self.options.columns.as_ref();
            if wanted.is_some_and(|columns| !columns.contains(name)) {
                continue;
            }
            let builder = match self.columns.remove(name) {
                Some(builder) => builder,
                None => ColumnBuilder::new(kind_of(array.data_type()), name, &self.options)?,
            };
            work.push((array, name, builder));
        }
        let values = batch.num_rows() * work.len();
        let add = |(array, name, builder): (&ArrayRef, &String, ColumnBuilder)| {
            let mut builder = builder.fitting(array.data_type(), name, &self.options)?;
            builder.update(array)?;
            Ok((name.clone(), builder))
        };
        let updated: Vec<(String, ColumnBuilder)> = if values >= PARALLEL_VALUES {
            work.into_par_iter().map(add).collect::<Result<_>>()?
        } else {
            work.into_iter().map(add).collect::<Result<_>>()?
        };
        self.columns.extend(updated);
        self.rows += batch.num_rows() as u64;
        Ok(())
    }

    /// The profile of all rows seen.
    pub fn finish(self) -> Profile {
        let columns = self
            .columns
            .into_iter()
            .map(|(name, builder)| (name, builder.finish()))
            .collect();
        Profile {
            version: PROFILE_VERSION,
            rows: self.rows,
            columns,
        }
    }
}

/// The kind that an Arrow type is profiled as.
pub fn kind_of(data_type: &DataType) -> ColumnKind {
    match data_type {
        DataType::Boolean => ColumnKind::Boolean,
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null => ColumnKind::Text,
        DataType::Date32 | DataType::Date64 | DataType::Timestamp(..) => ColumnKind::Timestamp,
        DataType::Time32(_) | DataType::Time64(_) | DataType::Duration(_) => ColumnKind::Numeric,
        DataType::Dictionary(_, values) => kind_of(values),
        other if other.is_numeric() => ColumnKind::Numeric,
        _ => ColumnKind::Other,
    }
}

/// One column while it is being read.
#[derive(Debug)]
struct ColumnBuilder {
    kind: ColumnKind,
    count: u64,
    missing: u64,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Numbers(Box<Numbers>),
    Texts(ValueTable),
    Counts,
}

#[derive(Debug)]
struct Numbers {
    infinite: u64,
    moments: Moments,
    quantiles: QuantileSketch,
    /// Counts by the value's bits while there are few enough different ones.
    values: Option<HashMap<u64, u64>>,
    distinct: Option<DistinctSketch>,
    histogram: Option<Histogram>,
    buffer: Vec<f64>,
}

impl ColumnBuilder {
    fn new(kind: ColumnKind, name: &str, options: &ProfileOptions) -> Result<Self> {
        let content = match kind {
            ColumnKind::Numeric | ColumnKind::Timestamp => Content::Numbers(Box::new(Numbers {
                infinite: 0,
                moments: Moments::default(),
                quantiles: QuantileSketch::new(options.sketch_size)?,
                values: Some(HashMap::new()),
                distinct: None,
                histogram: options.binnings.get(name).cloned().map(Histogram::new),
                buffer: Vec::with_capacity(CHUNK),
            })),
            ColumnKind::Text | ColumnKind::Boolean => Content::Texts(ValueTable::default()),
            ColumnKind::Other => Content::Counts,
        };
        Ok(Self {
            kind,
            count: 0,
            missing: 0,
            content,
        })
    }

    /// This builder, or a new one of the type's kind if only missing values were seen so far.
    fn fitting(self, data_type: &DataType, name: &str, options: &ProfileOptions) -> Result<Self> {
        let kind = kind_of(data_type);
        if self.kind == kind || *data_type == DataType::Null {
            return Ok(self);
        }
        if self.count == 0 {
            let mut fresh = Self::new(kind, name, options)?;
            fresh.missing = self.missing;
            return Ok(fresh);
        }
        Err(Error::KindMismatch {
            column: name.to_owned(),
            expected: self.kind,
            found: kind,
        })
    }

    fn update(&mut self, array: &ArrayRef) -> Result<()> {
        if *array.data_type() == DataType::Null {
            self.missing += array.len() as u64;
            return Ok(());
        }
        let before = self.count;
        match &mut self.content {
            Content::Numbers(numbers) => {
                for_each_chunk_of_numbers(array, &mut |chunk| self.count += numbers.add(chunk))?;
            }
            Content::Texts(table) => {
                self.count += for_each_text(array, &mut |text, weight| table.add(text, weight))?;
            }
            Content::Counts => self.count += (array.len() - array.logical_null_count()) as u64,
        }
        self.missing += array.len() as u64 - (self.count - before);
        Ok(())
    }

    fn finish(self) -> ColumnProfile {
        let mut profile = ColumnProfile {
            kind: self.kind,
            count: self.count,
            missing: self.missing,
            numeric: None,
            top_values: None,
            distinct_sketch: None,
        };
        match self.content {
            Content::Numbers(mut numbers) => {
                numbers.quantiles.seal();
                profile.distinct_sketch = numbers.distinct;
                profile.numeric = Some(NumericProfile {
                    infinite: numbers.infinite,
                    moments: numbers.moments,
                    quantiles: numbers.quantiles,
                    values: numbers.values.map(sorted_counts),
                    histogram: numbers.histogram,
                });
            }
            Content::Texts(table) => {
                let (top, distinct) = table.finish();
                profile.top_values = Some(top);
                profile.distinct_sketch = distinct;
            }
            Content::Counts => {}
        }
        profile
    }
}

fn sorted_counts(counts: HashMap<u64, u64>) -> Vec<(f64, u64)> {
    let mut sorted: Vec<(f64, u64)> = counts
        .into_iter()
        .map(|(bits, count)| (f64::from_bits(bits), count))
        .collect();
    sorted.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    sorted
}

impl Numbers {
    /// Adds numbers and returns how many were not NaN.
    fn add(&mut self, chunk: &[f64]) -> u64 {
        self.buffer.clear();
        let mut infinite = 0;
        for &value in chunk {
            if value.is_finite() {
                // One zero: -0.0 would be a value of its own.
                self.buffer.push(value + 0.0);
            } else if !value.is_nan() {
                infinite += 1;
            }
        }
        self.infinite += infinite;
        self.moments.merge(&Moments::of(&self.buffer));
        self.quantiles.extend(&self.buffer);
        if let Some(histogram) = &mut self.histogram {
            for &value in &self.buffer {
                histogram.counts[histogram.binning.bin(value)] += 1;
            }
        }
        self.count_values();
        infinite + self.buffer.len() as u64
    }

    fn count_values(&mut self) {
        if let Some(values) = &mut self.values {
            for &value in &self.buffer {
                *values.entry(value.to_bits()).or_insert(0) += 1;
            }
            if values.len() > MAX_VALUES {
                let distinct = self.distinct.get_or_insert_default();
                for &bits in values.keys() {
                    distinct.insert(hash_number(f64::from_bits(bits)));
                }
                self.values = None;
            }
        } else if let Some(distinct) = &mut self.distinct {
            for &value in &self.buffer {
                distinct.insert(hash_number(value));
            }
        }
    }
}

/// Factor from a time type's unit to seconds; 1 for any other number.
fn seconds_per_unit(data_type: &DataType) -> f64 {
    match data_type {
        DataType::Date32 => SECONDS_PER_DAY,
        DataType::Date64 | DataType::Timestamp(TimeUnit::Millisecond, _) => 1e-3,
        DataType::Timestamp(TimeUnit::Microsecond, _) => 1e-6,
        DataType::Timestamp(TimeUnit::Nanosecond, _) => 1e-9,
        _ => 1.0,
    }
}

/// Hands the values of a numeric or temporal column on as `f64`, nulls left out, in chunks of bounded size.
pub(crate) fn for_each_chunk_of_numbers(array: &ArrayRef, take: &mut dyn FnMut(&[f64])) -> Result<()> {
    if let DataType::Dictionary(_, values) = array.data_type() {
        return for_each_chunk_of_numbers(&cast(array, values)?, take);
    }
    let seconds = seconds_per_unit(array.data_type());
    let mut buffer = Vec::with_capacity(CHUNK);
    for start in (0..array.len()).step_by(CHUNK) {
        let slice = array.slice(start, CHUNK.min(array.len() - start));
        let is_timestamp = kind_of(slice.data_type()) == ColumnKind::Timestamp;
        if is_timestamp || !slice.data_type().is_numeric() {
            let integers = cast(&slice, &DataType::Int64)?;
            let integers = integers.as_primitive::<Int64Type>();
            buffer.clear();
            // Division is exact where the unit is a power of ten below one; multiplication is not.
            buffer.extend(integers.iter().flatten().map(|value| {
                if seconds < 1.0 {
                    value as f64 / (1.0 / seconds).round()
                } else {
                    value as f64 * seconds
                }
            }));
            take(&buffer);
            continue;
        }
        let floats = cast(&slice, &DataType::Float64)?;
        let floats = floats.as_primitive::<Float64Type>();
        if floats.null_count() == 0 {
            take(floats.values());
        } else {
            buffer.clear();
            buffer.extend(floats.iter().flatten());
            take(&buffer);
        }
    }
    Ok(())
}

/// Hands the values of a text or boolean column on with their number of occurrences, nulls left out; returns the sum of the
/// occurrences. A dictionary's value is handed on once for all its keys.
pub(crate) fn for_each_text(array: &ArrayRef, take: &mut dyn FnMut(&str, u64)) -> Result<u64> {
    let mut count = 0;
    let mut one = |text: Option<&str>| {
        if let Some(text) = text {
            take(text, 1);
            count += 1;
        }
    };
    match array.data_type() {
        DataType::Utf8 => array.as_string::<i32>().iter().for_each(&mut one),
        DataType::LargeUtf8 => array.as_string::<i64>().iter().for_each(&mut one),
        DataType::Utf8View => array.as_string_view().iter().for_each(&mut one),
        DataType::Boolean => {
            let array = array.as_boolean();
            let truths = array.true_count() as u64;
            let falsehoods = (array.len() - array.null_count()) as u64 - truths;
            take("true", truths);
            take("false", falsehoods);
            count = truths + falsehoods;
        }
        DataType::Dictionary(..) => return for_each_dictionary_text(array, take),
        _ => {
            let texts = cast(array, &DataType::Utf8)?;
            texts.as_string::<i32>().iter().for_each(&mut one);
        }
    }
    Ok(count)
}

fn for_each_dictionary_text(array: &ArrayRef, take: &mut dyn FnMut(&str, u64)) -> Result<u64> {
    let dictionary = array.as_any_dictionary();
    let mut weights = vec![0_u64; dictionary.values().len()];
    if !weights.is_empty() {
        let keys = dictionary.normalized_keys();
        for (row, key) in keys.into_iter().enumerate() {
            if dictionary.keys().is_valid(row) {
                weights[key] += 1;
            }
        }
    }
    let texts = cast(dictionary.values(), &DataType::Utf8)?;
    let mut count = 0;
    for (text, weight) in texts.as_string::<i32>().iter().zip(weights) {
        // A dictionary may hold a null, and values that no row uses.
        if let (Some(text), true) = (text, weight > 0) {
            take(text, weight);
            count += weight;
        }
    }
    Ok(count)
}
