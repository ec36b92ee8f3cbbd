//! The rows of a dataset version, read into memory.

use std::{io::Cursor, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, RecordBatch},
    compute::{CastOptions, cast_with_options, concat_batches},
    csv,
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use bytes::Bytes;
use modelyard_artifacts::Digest;
use modelyard_proto::registry::v1::{DatasetFile, DatasetVersion};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::{StepContext, StepError, context::Reporter};

/// The most rows that a training can take: they lie in memory.
pub(crate) const MAX_ROWS: u64 = 20_000_000;
/// The largest file of a dataset that a training can take, in bytes: one at a time lies in memory beside the rows.
pub(crate) const MAX_FILE_BYTES: u64 = 2 << 30;
/// The most memory that the rows may take, in bytes.
pub(crate) const MAX_TABLE_BYTES: usize = 4 << 30;
/// Rows that are decoded at once.
const BATCH_ROWS: usize = 65_536;

/// Reads all rows of a version, its columns in the types that the registry knows. Whole numbers with missing values become
/// floating point, because no input of a model can say that a whole number is missing.
pub(super) async fn read(step: &StepContext, version: &DatasetVersion) -> Result<RecordBatch, StepError> {
    let what = format!("{}/{}", version.name, version.version);
    if version.rows > MAX_ROWS {
        return Err(StepError::Fail(format!(
            "dataset {what} has {} rows, and a step can read {MAX_ROWS}: train on a smaller version",
            version.rows
        )));
    }
    let schema = schema(version).map_err(StepError::Fail)?;
    let mut batches = Vec::new();
    let mut size = 0;
    for (place, file) in version.files.iter().enumerate() {
        let message = format!("reading {what}: {}", file.name);
        step.report(place as u64, version.files.len() as u64, message);
        let bytes = download(step, file).await?;
        let (name, format) = (file.name.clone(), file.format.clone());
        let (schema, reporter) = (Arc::clone(&schema), step.reporter());
        let decoded = step
            .blocking(move || decode(&name, &format, bytes, &schema, size, &reporter))
            .await?;
        size = decoded.1;
        batches.extend(decoded.0);
    }
    step.blocking(move || join(&schema, &batches)).await
}

async fn download(step: &StepContext, file: &DatasetFile) -> Result<Bytes, StepError> {
    if file.size_bytes > MAX_FILE_BYTES {
        return Err(StepError::Fail(format!(
            "file `{}` has {} bytes, and a step can read {MAX_FILE_BYTES}: push the dataset in smaller files",
            file.name, file.size_bytes
        )));
    }
    let digest: Digest = file
        .digest
        .parse()
        .map_err(|error| StepError::Fail(format!("file `{}`: {error}", file.name)))?;
    let artifacts = step.artifacts()?;
    step.patiently("the storage", || artifacts.get_bytes(digest, MAX_FILE_BYTES))
        .await
        .map_err(|error| StepError::of(&error))
}

fn schema(version: &DatasetVersion) -> Result<SchemaRef, String> {
    let fields = version.columns.iter().map(|column| {
        let data_type: DataType = column.r#type.parse().map_err(|_| {
            format!(
                "column `{}` has the type `{}`, which a step cannot read",
                column.name, column.r#type
            )
        })?;
        Ok(Field::new(&column.name, data_type, true))
    });
    Ok(Arc::new(Schema::new(fields.collect::<Result<Vec<Field>, String>>()?)))
}

/// The rows of a file, and how much memory they take with those before them.
fn decode(
    name: &str,
    format: &str,
    bytes: Bytes,
    schema: &SchemaRef,
    mut size: usize,
    reporter: &Reporter,
) -> Result<(Vec<RecordBatch>, usize), StepError> {
    let fail = |error: &dyn std::fmt::Display| StepError::Fail(format!("file `{name}` cannot be read: {error}"));
    let reader: Box<dyn Iterator<Item = Result<RecordBatch, arrow::error::ArrowError>>> = match format {
        "parquet" => {
            let builder = ParquetRecordBatchReaderBuilder::try_new(bytes).map_err(|error| fail(&error))?;
            Box::new(
                builder
                    .with_batch_size(BATCH_ROWS)
                    .build()
                    .map_err(|error| fail(&error))?,
            )
        }
        "csv" => {
            let builder = csv::ReaderBuilder::new(Arc::clone(schema))
                .with_header(true)
                .with_batch_size(BATCH_ROWS);
            Box::new(builder.build(Cursor::new(bytes)).map_err(|error| fail(&error))?)
        }
        other => return Err(fail(&format!("`{other}` is neither parquet nor csv"))),
    };
    let mut batches = Vec::new();
    for batch in reader {
        reporter.check()?;
        let batch = conform(&batch.map_err(|error| fail(&error))?, schema).map_err(|error| fail(&error))?;
        size += batch.get_array_memory_size();
        if size > MAX_TABLE_BYTES {
            return Err(fail(&format!(
                "the rows take more than {MAX_TABLE_BYTES} bytes of memory: train on a smaller version"
            )));
        }
        batches.push(batch);
    }
    Ok((batches, size))
}

/// The columns of the schema in its types; files of one version may differ in how wide their numbers are.
fn conform(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, String> {
    let columns = schema.fields().iter().map(|field| {
        let name = field.name();
        let column = batch
            .column_by_name(name)
            .ok_or_else(|| format!("it has no column `{name}`"))?;
        cast(column, field.data_type()).map_err(|error| format!("column `{name}`: {error}"))
    });
    let columns = columns.collect::<Result<Vec<ArrayRef>, String>>()?;
    RecordBatch::try_new(Arc::clone(schema), columns).map_err(|error| error.to_string())
}

fn cast(column: &ArrayRef, data_type: &DataType) -> Result<ArrayRef, arrow::error::ArrowError> {
    if column.data_type() == data_type {
        return Ok(Arc::clone(column));
    }
    // What does not fit is an error, not a missing value.
    let strict = CastOptions {
        safe: false,
        ..CastOptions::default()
    };
    cast_with_options(column, data_type, &strict)
}

fn join(schema: &SchemaRef, batches: &[RecordBatch]) -> Result<RecordBatch, StepError> {
    let fail = |error: arrow::error::ArrowError| StepError::Fail(format!("the rows cannot be joined: {error}"));
    let table = concat_batches(schema, batches).map_err(fail)?;
    let mut fields = Vec::with_capacity(table.num_columns());
    let mut columns = Vec::with_capacity(table.num_columns());
    for (field, column) in schema.fields().iter().zip(table.columns()) {
        let widened = field.data_type().is_integer() && column.null_count() > 0;
        let data_type = if widened {
            DataType::Float64
        } else {
            field.data_type().clone()
        };
        columns.push(cast(column, &data_type).map_err(fail)?);
        fields.push(Field::new(field.name(), data_type, true));
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(fail)
}

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray, Int32Array, StringArray};
    use arrow::datatypes::{Float64Type, Int64Type, TimeUnit};
    use modelyard_proto::registry::v1::DatasetColumn;

    use super::*;

    fn version(columns: &[(&str, &str)]) -> DatasetVersion {
        let columns = columns.iter().map(|(name, data_type)| DatasetColumn {
            name: (*name).to_owned(),
            r#type: (*data_type).to_owned(),
            nullable: true,
        });
        DatasetVersion {
            columns: columns.collect(),
            ..DatasetVersion::default()
        }
    }

    fn csv(text: &'static str, schema: &SchemaRef) -> Result<RecordBatch, StepError> {
        let (batches, _) = decode("x.csv", "csv", Bytes::from(text), schema, 0, &Reporter::detached())?;
        join(schema, &batches)
    }

    #[test]
    fn csv_is_read_in_the_types_of_the_registry() {
        let schema = schema(&version(&[
            ("a", "Int64"),
            ("b", "Utf8"),
            ("c", "Float64"),
            ("d", "Int64"),
        ]))
        .unwrap();
        let table = csv("a,b,c,d\n1,x,2,\n2,,2.5,7\n", &schema).unwrap();
        assert_eq!(table.column(0).as_primitive::<Int64Type>().values(), &[1, 2]);
        assert_eq!(table.column(2).as_primitive::<Float64Type>().values(), &[2.0, 2.5]);
        let gaps = table.column(3).as_primitive::<Float64Type>();
        assert!(gaps.is_null(0), "whole numbers with gaps become floating point");
        assert_eq!(gaps.iter().collect::<Vec<_>>(), [None, Some(7.0)]);
    }

    #[test]
    fn types_as_the_registry_writes_them_are_read() {
        let types = [
            DataType::Int32,
            DataType::UInt8,
            DataType::Float32,
            DataType::Boolean,
            DataType::Utf8,
            DataType::Date32,
            DataType::Null,
            DataType::Timestamp(TimeUnit::Microsecond, None),
            DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())),
        ];
        for data_type in types {
            let written = data_type.to_string();
            let read = schema(&version(&[("a", &written)])).unwrap();
            assert_eq!(read.field(0).data_type(), &data_type, "{written}");
        }
        assert!(
            schema(&version(&[("a", "Colour")]))
                .unwrap_err()
                .contains("type `Colour`")
        );
    }

    #[test]
    fn narrow_columns_widen_and_missing_ones_are_named() {
        let schema = schema(&version(&[("b", "Utf8"), ("a", "Int64")])).unwrap();
        let a: ArrayRef = Arc::new(Int32Array::from(vec![1, 2]));
        let b: ArrayRef = Arc::new(StringArray::from(vec!["x", "y"]));
        let batch = RecordBatch::try_from_iter([("a", Arc::clone(&a)), ("b", b)]).unwrap();
        let wide = conform(&batch, &schema).unwrap();
        assert_eq!(wide.column(1).as_primitive::<Int64Type>().values(), &[1, 2]);
        let lacking = RecordBatch::try_from_iter([("a", a)]).unwrap();
        assert_eq!(conform(&lacking, &schema).unwrap_err(), "it has no column `b`");
    }

    #[test]
    fn what_cannot_be_read_says_which_file() {
        let schema = schema(&version(&[("a", "Int64")])).unwrap();
        let StepError::Fail(error) = csv("a\nx\n", &schema).unwrap_err() else {
            panic!("it must fail");
        };
        assert!(error.contains("file `x.csv` cannot be read"), "{error}");
        let none = Reporter::detached();
        let parquet = decode("y", "parquet", Bytes::from_static(b"no"), &schema, 0, &none);
        assert!(matches!(parquet, Err(StepError::Fail(_))));
        assert!(matches!(
            decode("y", "xls", Bytes::new(), &schema, 0, &none),
            Err(StepError::Fail(_))
        ));
    }
}
