//! Writing rows as data files.

use std::ops::Range;

use arrow::{
    array::{Array as _, ArrayRef, Date32Array, RecordBatch},
    compute::{self, SortColumn},
    datatypes::DataType,
};
use chrono::{DateTime, NaiveDate};
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, ZstdLevel},
    errors::ParquetError,
    file::properties::WriterProperties,
    schema::types::ColumnPath,
};

use crate::{
    commit::MAX_FILES_PER_COMMIT,
    error::{Error, Result},
    file::{DataFile, Partition, parse_partition},
    table_name::TableName,
};

/// The most rows of one batch.
pub const MAX_BATCH_ROWS: usize = 1_000_000;
/// How many rows a row group has at most: the unit that a look-up of one request reads.
const ROW_GROUP_ROWS: usize = 65_536;
const ZSTD_LEVEL: i32 = 3;
/// The column that single rows are looked up by.
const KEY_COLUMN: &str = "request_id";

/// A data file to be uploaded.
pub(crate) struct EncodedFile {
    pub(crate) file: DataFile,
    pub(crate) content: Vec<u8>,
}

/// Splits a batch by date into files, each sorted by request. Runs for long: not for an async thread.
pub(crate) fn encode(
    table: &TableName,
    batch: &RecordBatch,
    date_column: &str,
    file_id: &str,
) -> Result<Vec<EncodedFile>> {
    let refuse = |problem: String| Error::InvalidAppend {
        table: table.clone(),
        problem,
    };
    let failed = |error| Error::internal("sorting a batch", error);
    if batch.num_rows() == 0 || batch.num_rows() > MAX_BATCH_ROWS {
        let problem = format!(
            "{} rows arrived, and 1 to {MAX_BATCH_ROWS} can be appended at once",
            batch.num_rows()
        );
        return Err(refuse(problem));
    }
    let Some((date_index, field)) = batch.schema_ref().column_with_name(date_column) else {
        return Err(refuse(format!(
            "column `{date_column}`, which the table is partitioned by, is missing"
        )));
    };
    if *field.data_type() != DataType::Date32 || batch.column(date_index).null_count() > 0 {
        return Err(refuse(format!("column `{date_column}` must be a date in every row")));
    }
    let sorted = sort(batch, date_index).map_err(failed)?;
    let dates = compute::partition(&[ArrayRef::clone(sorted.column(date_index))])
        .map_err(failed)?
        .ranges();
    if dates.len() > MAX_FILES_PER_COMMIT {
        let problem = format!(
            "it has rows of {} dates, and {MAX_FILES_PER_COMMIT} are possible at once",
            dates.len()
        );
        return Err(refuse(problem));
    }
    let encode_date = |rows: Range<usize>| {
        let date = date_at(sorted.column(date_index), rows.start)
            .ok_or_else(|| refuse(format!("column `{date_column}` has a date out of range")))?;
        let partition = Partition {
            column: date_column.to_owned(),
            date,
        };
        let path = partition.file_path(file_id);
        if parse_partition(&path).is_none() {
            let problem = "the file's id and the date column must be letters, digits, `-`, `_` and `.`, and the date of a year of four digits";
            return Err(refuse(problem.to_owned()));
        }
        let mut rows_of_date = sorted.slice(rows.start, rows.len());
        rows_of_date.remove_column(date_index);
        let content = to_parquet(&rows_of_date).map_err(|error| Error::internal("encoding a batch", error))?;
        Ok(EncodedFile {
            file: DataFile {
                path,
                size_bytes: content.len() as u64,
                rows: rows.len() as u64,
            },
            content,
        })
    };
    dates.into_iter().map(encode_date).collect()
}

fn date_at(dates: &ArrayRef, row: usize) -> Option<NaiveDate> {
    let days = dates.as_any().downcast_ref::<Date32Array>()?.value(row);
    Some(DateTime::from_timestamp(i64::from(days) * 86_400, 0)?.date_naive())
}

/// By date, then by request.
fn sort(batch: &RecordBatch, date_index: usize) -> arrow::error::Result<RecordBatch> {
    let column = |values: &ArrayRef| SortColumn {
        values: ArrayRef::clone(values),
        options: None,
    };
    let mut columns = vec![column(batch.column(date_index))];
    columns.extend(batch.column_by_name(KEY_COLUMN).map(column));
    let order = compute::lexsort_to_indices(&columns, None)?;
    compute::take_record_batch(batch, &order)
}

fn to_parquet(batch: &RecordBatch) -> parquet::errors::Result<Vec<u8>> {
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(ZSTD_LEVEL)?))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS));
    if batch.column_by_name(KEY_COLUMN).is_some() {
        let key = ColumnPath::from(KEY_COLUMN);
        let distinct = batch.num_rows().min(ROW_GROUP_ROWS) as u64;
        properties = properties
            .set_column_bloom_filter_enabled(key.clone(), true)
            .set_column_bloom_filter_max_ndv(key, distinct);
    }
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties.build()))?;
    writer.write(batch)?;
    writer.into_inner().map_err(|error: ParquetError| error)
}
