//! The flights by month, each with an id that stays the same in every run.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    path::Path,
    sync::Arc,
};

use anyhow::{Context, Result, bail};
use arrow::{
    array::{Array, ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray},
    compute::{cast, concat_batches, filter, filter_record_batch},
    datatypes::DataType,
};
use parquet::{
    arrow::{ArrowWriter, arrow_reader::ParquetRecordBatchReaderBuilder},
    basic::{Compression, ZstdLevel},
    file::properties::WriterProperties,
};

/// Length of `2013-03` at the start of an event time.
const MONTH_LENGTH: usize = 7;

const EVENT_TIME: &str = "time_hour";
const LABEL: &str = "late";

/// The flights of one month of event time, in UTC.
#[derive(Debug, Clone)]
pub struct Month {
    /// As `2013-03`.
    pub name: String,
    batch: RecordBatch,
    ids: StringArray,
    event_times: StringArray,
    labels: Int64Array,
}

/// Reads the flights and splits them by month. `share` of them (0 to 1) is kept, always the same ones.
pub fn read_months(file: &Path, share: f64) -> Result<BTreeMap<String, Month>> {
    let whole = read(file).with_context(|| format!("`{}` cannot be read as the flights' data", file.display()))?;
    let ids = request_ids(&whole)?;
    let times = text_column(&whole, EVENT_TIME)?;
    let mut names: BTreeMap<&str, Vec<bool>> = BTreeMap::new();
    for (row, time) in times.iter().enumerate() {
        let name = time.and_then(|time| time.get(..MONTH_LENGTH));
        let name = name.with_context(|| format!("row {row} of `{}` has no month in `{EVENT_TIME}`", file.display()))?;
        if is_kept(&ids[row], share) {
            names.entry(name).or_insert_with(|| vec![false; times.len()])[row] = true;
        }
    }
    let ids: ArrayRef = Arc::new(StringArray::from(ids));
    names
        .into_iter()
        .map(|(name, mask)| {
            let mask = BooleanArray::from(mask);
            let batch = filter_record_batch(&whole, &mask)?;
            let month = Month {
                name: name.to_owned(),
                event_times: text_column(&batch, EVENT_TIME)?,
                labels: integer_column(&batch, LABEL)?,
                ids: as_text(&filter(&ids, &mask)?)?,
                batch,
            };
            Ok((name.to_owned(), month))
        })
        .collect()
}

fn read(file: &Path) -> Result<RecordBatch> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(file)?)?;
    let schema = reader.schema().clone();
    let batches = reader.build()?.collect::<Result<Vec<_>, _>>()?;
    Ok(concat_batches(&schema, &batches)?)
}

/// `2013-03-01T10:00:00Z-UA-1545-EWR`; what would stand twice gets a number.
fn request_ids(batch: &RecordBatch) -> Result<Vec<String>> {
    let times = text_column(batch, EVENT_TIME)?;
    let carriers = text_column(batch, "carrier")?;
    let flights = integer_column(batch, "flight")?;
    let origins = text_column(batch, "origin")?;
    let mut seen: HashMap<String, u32> = HashMap::with_capacity(batch.num_rows());
    let ids = (0..batch.num_rows()).map(|row| {
        let id = format!(
            "{}-{}-{}-{}",
            times.value(row),
            carriers.value(row),
            flights.value(row),
            origins.value(row)
        );
        let count = seen.entry(id.clone()).or_default();
        *count += 1;
        match *count {
            1 => id,
            again => format!("{id}-{again}"),
        }
    });
    Ok(ids.collect())
}

/// Whether a flight belongs to the sample: the same answer in every run and on every machine.
fn is_kept(id: &str, share: f64) -> bool {
    share >= 1.0 || ((hash(id) >> 11) as f64 / (1_u64 << 53) as f64) < share
}

/// FNV-1a with a final mix, so that the high bits are even.
fn hash(text: &str) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in text.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}

fn text_column(batch: &RecordBatch, name: &str) -> Result<StringArray> {
    as_text(column(batch, name)?)
}

fn integer_column(batch: &RecordBatch, name: &str) -> Result<Int64Array> {
    let numbers = cast(column(batch, name)?, &DataType::Int64)?;
    let numbers = numbers.as_any().downcast_ref::<Int64Array>();
    numbers
        .cloned()
        .with_context(|| format!("the column `{name}` has no whole numbers"))
}

fn as_text(column: &ArrayRef) -> Result<StringArray> {
    let text = cast(column, &DataType::Utf8)?;
    let text = text.as_any().downcast_ref::<StringArray>();
    text.cloned().context("a column has no text")
}

fn column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef> {
    batch
        .column_by_name(name)
        .with_context(|| format!("the data has no column `{name}`"))
}

impl Month {
    /// How many flights there are.
    pub fn len(&self) -> usize {
        self.batch.num_rows()
    }

    /// The request id of a flight.
    pub fn id(&self, row: usize) -> &str {
        self.ids.value(row)
    }

    /// The event time of a flight, RFC 3339.
    pub fn event_time(&self, row: usize) -> &str {
        self.event_times.value(row)
    }

    /// Whether a flight was late: 0 or 1.
    pub fn label(&self, row: usize) -> i64 {
        self.labels.value(row)
    }

    /// A column, if the data has it.
    pub fn column(&self, name: &str) -> Option<&ArrayRef> {
        self.batch.column_by_name(name)
    }

    /// The start of the month after this one, RFC 3339: when the last of its labels is known.
    pub fn end(&self) -> Result<String> {
        let (year, month) = self.name.split_once('-').context("a month has no year")?;
        let (year, month): (u32, u32) = (year.parse()?, month.parse()?);
        let (year, month) = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
        Ok(format!("{year:04}-{month:02}-01T00:00:00Z"))
    }

    /// Writes the month as one Parquet file; the same flights give the same bytes.
    pub fn write(&self, file: &Path) -> Result<()> {
        if self.len() == 0 {
            bail!("the sample has no flight in {}: take a larger one", self.name);
        }
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .build();
        let mut writer = ArrowWriter::try_new(File::create(file)?, self.batch.schema(), Some(properties))?;
        writer.write(&self.batch)?;
        writer.close()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flights() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("flights.parquet")
    }

    #[test]
    fn months_hold_every_flight_once_under_its_own_id() {
        let months = read_months(&flights(), 1.0).unwrap();
        assert_eq!(months.values().map(Month::len).sum::<usize>(), 336_776);
        assert_eq!(months["2013-03"].len(), 28_886);
        let mut ids = std::collections::HashSet::new();
        for month in months.values() {
            for row in 0..month.len() {
                assert!(ids.insert(month.id(row)), "{} stands twice", month.id(row));
                assert!(month.event_time(row).starts_with(&month.name));
            }
        }
        assert_eq!(months["2013-01"].id(0), "2013-01-01T10:00:00Z-UA-1545-EWR");
        assert_eq!(months["2013-12"].end().unwrap(), "2014-01-01T00:00:00Z");
    }

    #[test]
    fn a_sample_is_the_same_every_time_and_of_its_size() {
        let first = read_months(&flights(), 0.1).unwrap();
        let second = read_months(&flights(), 0.1).unwrap();
        for (name, month) in &first {
            assert_eq!(month.ids, second[name].ids);
        }
        let kept = first["2013-07"].len() as f64;
        assert!((kept / 29_428.0 - 0.1).abs() < 0.01, "{kept}");
    }

    #[test]
    fn the_same_month_is_written_as_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let months = read_months(&flights(), 0.02).unwrap();
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        months["2013-03"].write(&one).unwrap();
        months["2013-03"].write(&two).unwrap();
        assert_eq!(std::fs::read(one).unwrap(), std::fs::read(two).unwrap());
    }
}
