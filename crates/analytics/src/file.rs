//! Data files: checked before they are committed, with the statistics that let queries skip them.

use std::{collections::HashMap, ops::Range, sync::Arc};

use arrow::{
    array::{
        Array as _, ArrayRef, BooleanArray, Date32Array, Int8Array, Int16Array, Int32Array, Int64Array, StringArray,
        TimestampMicrosecondArray, UInt64Array,
    },
    compute,
    datatypes::{DataType, Schema},
};
use bytes::Bytes;
use chrono::{DateTime, NaiveDate, SecondsFormat};
use deltalake::kernel::Add;
use futures::{FutureExt as _, TryFutureExt as _, future::BoxFuture};
use object_store::{ObjectStore, ObjectStoreExt as _, path::Path};
use parquet::{
    arrow::{
        arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, statistics::StatisticsConverter},
        async_reader::MetadataFetch,
    },
    errors::ParquetError,
    file::metadata::{ParquetMetaData, ParquetMetaDataReader},
};
use serde_json::{Map, Value};

use crate::{
    error::{Error, Result},
    schema::{Column, columns_of},
    table_name::{TableName, is_segment},
};

/// How many of a file's first columns get statistics: Delta Lake's own default. It bounds the log.
const MAX_STATISTICS_COLUMNS: usize = 32;
/// Texts longer than this bound nothing in the log.
const MAX_STATISTICS_TEXT_BYTES: usize = 128;
/// How much of a file's end is read at once in the hope that it is the whole footer.
const FOOTER_HINT_BYTES: usize = 64 * 1024;
/// How dates are written in paths and in the log.
pub(crate) const DATE_FORMAT: &str = "%Y-%m-%d";

/// A Parquet file in a table's folder that somebody has uploaded completely.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataFile {
    /// Where it is below the table's folder: `COLUMN=YYYY-MM-DD/NAME.parquet`. The folder is the partition: the column and
    /// the one date that all rows of the file have. The file need not contain this column.
    pub path: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Its number of rows.
    pub rows: u64,
}

/// The partition that a file's path names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Partition {
    pub(crate) column: String,
    pub(crate) date: NaiveDate,
}

impl Partition {
    /// The path of a file in this partition.
    pub(crate) fn file_path(&self, file_id: &str) -> String {
        format!("{}={}/{file_id}.parquet", self.column, self.date.format(DATE_FORMAT))
    }
}

/// A checked file, ready to be committed.
pub(crate) struct PreparedFile {
    pub(crate) add: Add,
    pub(crate) partition: Partition,
    pub(crate) columns: Vec<Column>,
}

pub(crate) fn parse_partition(path: &str) -> Option<Partition> {
    let (folder, name) = path.split_once('/')?;
    let (column, date) = folder.split_once('=')?;
    let stem = name.strip_suffix(".parquet")?;
    let date = NaiveDate::parse_from_str(date, DATE_FORMAT).ok()?;
    let partition = Partition {
        column: column.to_owned(),
        date,
    };
    // The same file must not have two spellings, or it could be appended twice.
    (is_segment(column) && is_segment(stem) && partition.file_path(stem) == path).then_some(partition)
}

/// Reads a file's footer, and refuses what would make the table wrong or unreadable.
pub(crate) async fn prepare(store: Arc<dyn ObjectStore>, table: TableName, file: DataFile) -> Result<PreparedFile> {
    let refuse = |problem: String| Error::InvalidFile {
        table: table.clone(),
        path: file.path.chars().take(256).flat_map(char::escape_default).collect(),
        problem,
    };
    let Some(partition) = parse_partition(&file.path) else {
        return Err(refuse("its path must be `COLUMN=YYYY-MM-DD/NAME.parquet`".to_owned()));
    };
    let within = Path::from(file.path.as_str());
    let path: Path = table.path().parts().chain(within.parts()).collect();
    let footer = match read_footer(FileRange { store, path }, file.size_bytes).await {
        Ok(footer) => footer,
        Err(error) => {
            return Err(match Error::internal("reading a file's footer", error) {
                Error::Internal { source, .. } => refuse(format!(
                    "it is not a whole Parquet file of {} bytes in the table's folder ({source})",
                    file.size_bytes
                )),
                storage => storage,
            });
        }
    };
    let rows = footer.metadata().file_metadata().num_rows();
    if u64::try_from(rows).ok() != Some(file.rows) {
        return Err(refuse(format!("it has {rows} rows, and {} were announced", file.rows)));
    }
    let columns = columns_of(footer.schema(), &partition.column).map_err(refuse)?;
    let statistics = statistics(footer.schema(), footer.metadata(), &partition.column);
    let date = partition.date.format(DATE_FORMAT).to_string();
    Ok(PreparedFile {
        add: Add {
            path: file.path,
            size: i64::try_from(file.size_bytes).unwrap_or(i64::MAX),
            partition_values: HashMap::from([(partition.column.clone(), Some(date))]),
            data_change: true,
            stats: Some(statistics.to_string()),
            ..Add::default()
        },
        partition,
        columns,
    })
}

/// Ranges of a file in the object store.
struct FileRange {
    store: Arc<dyn ObjectStore>,
    path: Path,
}

impl MetadataFetch for FileRange {
    fn fetch(&mut self, range: Range<u64>) -> BoxFuture<'_, parquet::errors::Result<Bytes>> {
        let read = async move { self.store.get_range(&self.path, range).await };
        read.map_err(|error| ParquetError::External(error.into())).boxed()
    }
}

async fn read_footer(file: FileRange, size_bytes: u64) -> parquet::errors::Result<ArrowReaderMetadata> {
    let reader = ParquetMetaDataReader::new().with_prefetch_hint(Some(FOOTER_HINT_BYTES));
    let metadata = reader.load_and_finish(file, size_bytes).await?;
    ArrowReaderMetadata::try_new(Arc::new(metadata), ArrowReaderOptions::new())
}

/// Delta Lake's statistics of a file, from its footer: what is not known is left out, which only means that the file is not
/// skipped for it. Floating-point columns get no bounds, because Parquet's leave out NaN.
fn statistics(schema: &Schema, metadata: &ParquetMetaData, partition_column: &str) -> Value {
    let mut min_values = Map::new();
    let mut max_values = Map::new();
    let mut null_counts = Map::new();
    let fields = schema.fields().iter().filter(|field| field.name() != partition_column);
    for field in fields.take(MAX_STATISTICS_COLUMNS) {
        let Some(bounds) = bounds_of(field.name(), schema, metadata) else {
            continue;
        };
        null_counts.insert(field.name().clone(), bounds.null_count.into());
        if let Some((min, max)) = bounds.range {
            min_values.insert(field.name().clone(), min);
            max_values.insert(field.name().clone(), max);
        }
    }
    serde_json::json!({
        "numRecords": metadata.file_metadata().num_rows(),
        "minValues": min_values,
        "maxValues": max_values,
        "nullCount": null_counts,
    })
}

struct Bounds {
    null_count: u64,
    range: Option<(Value, Value)>,
}

fn bounds_of(column: &str, schema: &Schema, metadata: &ParquetMetaData) -> Option<Bounds> {
    let parquet_schema = metadata.file_metadata().schema_descr();
    let converter = StatisticsConverter::try_new(column, schema, parquet_schema)
        .ok()?
        .with_missing_null_counts_as_zero(false);
    let groups = metadata.row_groups();
    let nulls: UInt64Array = converter.row_group_null_counts(groups).ok()?;
    if nulls.null_count() > 0 {
        return None;
    }
    let mins = converter.row_group_mins(groups).ok()?;
    let maxes = converter.row_group_maxes(groups).ok()?;
    // A group without bounds may hold anything, unless it holds nothing but nulls.
    let unbounded = groups.iter().enumerate().any(|(group, metadata)| {
        let only_nulls = i64::try_from(nulls.value(group)).ok() == Some(metadata.num_rows());
        !only_nulls && (mins.is_null(group) || maxes.is_null(group))
    });
    let range = if unbounded {
        None
    } else {
        extreme(&mins, false).zip(extreme(&maxes, true))
    };
    Some(Bounds {
        null_count: compute::sum(&nulls).unwrap_or(0),
        range,
    })
}

/// The least or greatest of a column's bounds, as the log writes it.
fn extreme(bounds: &ArrayRef, greatest: bool) -> Option<Value> {
    macro_rules! number {
        ($array:ty) => {{
            let bounds = bounds.as_any().downcast_ref::<$array>()?;
            if greatest {
                compute::max(bounds)
            } else {
                compute::min(bounds)
            }
        }};
    }
    match bounds.data_type() {
        DataType::Boolean => {
            let bounds = bounds.as_any().downcast_ref::<BooleanArray>()?;
            let bound = if greatest {
                compute::max_boolean(bounds)
            } else {
                compute::min_boolean(bounds)
            };
            bound.map(Value::from)
        }
        DataType::Int8 => number!(Int8Array).map(Value::from),
        DataType::Int16 => number!(Int16Array).map(Value::from),
        DataType::Int32 => number!(Int32Array).map(Value::from),
        DataType::Int64 => number!(Int64Array).map(Value::from),
        DataType::Date32 => {
            let date = DateTime::from_timestamp(i64::from(number!(Date32Array)?) * 86_400, 0)?;
            Some(date.format(DATE_FORMAT).to_string().into())
        }
        DataType::Timestamp(..) => {
            let bound = DateTime::from_timestamp_micros(number!(TimestampMicrosecondArray)?)?;
            Some(bound.to_rfc3339_opts(SecondsFormat::Micros, true).into())
        }
        DataType::Utf8 => {
            let bounds = bounds.as_any().downcast_ref::<StringArray>()?;
            let bound = if greatest {
                compute::max_string(bounds)
            } else {
                compute::min_string(bounds)
            }?;
            (bound.len() <= MAX_STATISTICS_TEXT_BYTES).then(|| bound.into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_one_partition_in_one_spelling() {
        let partition = parse_partition("event_date=2013-03-01/0198-ab.parquet").unwrap();
        assert_eq!(partition.column, "event_date");
        assert_eq!(partition.file_path("0198-ab"), "event_date=2013-03-01/0198-ab.parquet");
        for wrong in [
            "",
            "x.parquet",
            "event_date=2013-03-01/../x.parquet",
            "event_date=2013-3-1/x.parquet",
            "event_date=2013-13-01/x.parquet",
            "event_date=2013-03-01/x",
            "event_date=2013-03-01/a/x.parquet",
            "event_date=2013-03-01/.x.parquet",
            "/event_date=2013-03-01/x.parquet",
            "_delta_log=2013-03-01/x.parquet",
            "event_date=2013-03-01/a b.parquet",
        ] {
            assert!(parse_partition(wrong).is_none(), "{wrong}");
        }
    }
}
