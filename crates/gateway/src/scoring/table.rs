//! Rows as a Parquet file brings them.

use arrow::{array::RecordBatch, compute::concat_batches};
use bytes::Bytes;
use modelyard_inference::{DataType, Signature, Tensor, TensorSpec, tensors_from_batch};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::{
    error::{Error, Result},
    oip::{MAX_BODY_BYTES, MAX_TENSORS},
};

/// How many rows are decoded at a time: what they take is looked at after each.
const ROWS_AT_ONCE: usize = 1024;

/// Reads a file whole, as long as it takes no more memory than a body may.
///
/// # Errors
/// `InvalidRequest` for what is no Parquet file, `BodyTooLarge` for one that unpacks to too much.
pub(super) fn read_parquet(body: Bytes) -> Result<RecordBatch> {
    let broken = |error: &dyn std::fmt::Display| Error::invalid(format!("the body is no Parquet file: {error}"));
    let builder = ParquetRecordBatchReaderBuilder::try_new(body).map_err(|error| broken(&error))?;
    let schema = builder.schema().clone();
    if schema.fields().len() > MAX_TENSORS {
        return Err(Error::invalid(format!(
            "the table has {} columns: send at most {MAX_TENSORS}",
            schema.fields().len()
        )));
    }
    let reader = builder
        .with_batch_size(ROWS_AT_ONCE)
        .build()
        .map_err(|error| broken(&error))?;
    let mut batches = Vec::new();
    let mut memory = 0;
    for batch in reader {
        let batch = batch.map_err(|error| broken(&error))?;
        memory += batch.get_array_memory_size();
        if memory > MAX_BODY_BYTES {
            return Err(Error::BodyTooLarge {
                limit_bytes: MAX_BODY_BYTES,
            });
        }
        batches.push(batch);
    }
    concat_batches(&schema, &batches).map_err(|error| broken(&error))
}

/// The inputs of a model from a table: a column for each, or all columns as the rows of the only one.
///
/// # Errors
/// What is missing, or does not convert.
pub(super) fn table_tensors(signature: &Signature, table: &RecordBatch) -> Result<Vec<Tensor>> {
    match signature.inputs.as_slice() {
        [input] if input.shape.len() == 2 && table.column_by_name(&input.name).is_none() => {
            Ok(vec![whole_rows(input, table)?])
        }
        _ => Ok(tensors_from_batch(table, signature)?),
    }
}

fn whole_rows(input: &TensorSpec, table: &RecordBatch) -> Result<Tensor> {
    let schema = table.schema();
    let column = |name: &String| TensorSpec {
        name: name.clone(),
        datatype: input.datatype,
        shape: vec![-1],
    };
    let columns = Signature {
        inputs: schema.fields().iter().map(|field| column(field.name())).collect(),
        outputs: Vec::new(),
    };
    let columns = tensors_from_batch(table, &columns)?;
    let (rows, width) = (table.num_rows(), columns.len());
    let shape = vec![rows as i64, width as i64];
    let Some(size) = input.datatype.size_bytes() else {
        let columns: Vec<Vec<&str>> = columns.iter().map(Tensor::strings).collect::<Result<_, _>>()?;
        let mut texts = Vec::with_capacity(rows * width);
        for row in 0..rows {
            texts.extend(columns.iter().filter_map(|column| Some((*column.get(row)?).to_owned())));
        }
        return Ok(Tensor::from_strings(&input.name, shape, texts)?);
    };
    let columns: Vec<Bytes> = columns.into_iter().map(Tensor::into_raw).collect::<Result<_, _>>()?;
    let mut elements = Vec::with_capacity(rows * width * size);
    for row in 0..rows {
        for column in &columns {
            elements.extend_from_slice(column.get(row * size..(row + 1) * size).unwrap_or_default());
        }
    }
    let datatype: DataType = input.datatype;
    Ok(Tensor::from_raw(&input.name, datatype, shape, elements.into())?)
}
