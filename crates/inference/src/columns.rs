//! From tables to tensors, and from outputs to the numbers that evaluation wants.

use std::fmt::Display;

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray, PrimitiveArray, RecordBatch, StringArray},
    compute::{CastOptions, cast_with_options},
    datatypes::{ArrowPrimitiveType, DataType as ColumnType, Float64Type, Int64Type, UInt64Type},
};

use crate::{
    datatype::DataType,
    element::TensorData,
    error::{Error, Result},
    signature::{Signature, TensorSpec},
    tensor::Tensor,
};

/// The inputs of a model from the columns of the same names, one row of the table a row of the tensors: shape `[N, 1]`,
/// or `[N]` where the signature has one dimension.
///
/// Conversions: integers of any width to any other that holds every value, and to floats that hold them exactly;
/// floats to narrower floats by rounding; text to `BYTES`. A missing float is NaN and a missing text is empty; other
/// missing values are refused.
///
/// # Errors
/// `MissingColumns` with all that are missing, `InvalidColumn` where a column's type or a value does not convert, with
/// the row.
pub fn tensors_from_batch(batch: &RecordBatch, signature: &Signature) -> Result<Vec<Tensor>> {
    let missing: Vec<String> = signature
        .inputs
        .iter()
        .filter(|spec| batch.column_by_name(&spec.name).is_none())
        .map(|spec| spec.name.clone())
        .collect();
    if !missing.is_empty() {
        return Err(Error::MissingColumns { missing });
    }
    signature
        .inputs
        .iter()
        .filter_map(|spec| Some((spec, batch.column_by_name(&spec.name)?)))
        .map(|(spec, column)| column_tensor(spec, column))
        .collect()
}

fn column_tensor(spec: &TensorSpec, column: &ArrayRef) -> Result<Tensor> {
    let rows = column.len() as i64;
    let shape = match spec.shape.as_slice() {
        [_] => vec![rows],
        [] | [_, 1 | -1] => vec![rows, 1],
        other => {
            return Err(Error::column(
                &spec.name,
                format!("the model takes shape {other:?}, and a column gives one value a row"),
            ));
        }
    };
    let tensor = Tensor::new(spec.name.clone(), shape, column_data(spec, column)?)?;
    spec.check(&tensor)?;
    Ok(tensor)
}

fn column_data(spec: &TensorSpec, column: &ArrayRef) -> Result<TensorData> {
    let name = &spec.name;
    Ok(match spec.datatype {
        DataType::Bool => TensorData::Bool(booleans(name, column)?),
        DataType::Uint8 => TensorData::Uint8(integers(name, column)?),
        DataType::Uint16 => TensorData::Uint16(integers(name, column)?),
        DataType::Uint32 => TensorData::Uint32(integers(name, column)?),
        DataType::Uint64 => TensorData::Uint64(integers(name, column)?),
        DataType::Int8 => TensorData::Int8(integers(name, column)?),
        DataType::Int16 => TensorData::Int16(integers(name, column)?),
        DataType::Int32 => TensorData::Int32(integers(name, column)?),
        DataType::Int64 => TensorData::Int64(integers(name, column)?),
        DataType::Fp16 => TensorData::Fp16(floats(name, column, half::f16::from_f64, f64::from)?),
        DataType::Bf16 => TensorData::Bf16(floats(name, column, half::bf16::from_f64, f64::from)?),
        DataType::Fp32 => TensorData::Fp32(floats(name, column, |value| value as f32, f64::from)?),
        DataType::Fp64 => TensorData::Fp64(floats(name, column, |value| value, |value| value)?),
        DataType::Bytes => TensorData::Bytes(texts(name, column)?),
    })
}

/// Any integers to a narrower or wider type that holds each of them.
fn integers<T>(name: &str, column: &ArrayRef) -> Result<Vec<T>>
where
    T: TryFrom<i64> + TryFrom<u64>,
{
    if column.data_type() == &ColumnType::UInt64 {
        each(
            name,
            column.as_primitive::<UInt64Type>(),
            "an integer",
            narrow::<u64, T>,
        )
    } else {
        require(name, column, ColumnType::is_integer, "integers")?;
        let column = cast(name, column, &ColumnType::Int64)?;
        each(name, column.as_primitive::<Int64Type>(), "an integer", narrow::<i64, T>)
    }
}

fn narrow<From: Copy + Display, To: TryFrom<From>>(value: From) -> Result<To, String> {
    To::try_from(value).map_err(|_| format!("{value} is out of the range of the model's type"))
}

/// The values of a column without missing ones, each converted.
fn each<T: ArrowPrimitiveType, V>(
    name: &str,
    column: &PrimitiveArray<T>,
    what: &str,
    convert: impl Fn(T::Native) -> Result<V, String>,
) -> Result<Vec<V>> {
    column
        .iter()
        .enumerate()
        .map(|(row, value)| {
            let value = value.ok_or_else(|| no_value(name, row, what))?;
            convert(value).map_err(|fault| Error::column(name, format!("row {row}: {fault}")))
        })
        .collect()
}

/// Floats and exactly representable integers; missing ones are NaN.
fn floats<V: Copy>(name: &str, column: &ArrayRef, round: impl Fn(f64) -> V, back: impl Fn(V) -> f64) -> Result<Vec<V>> {
    let is_number = |kind: &ColumnType| kind.is_integer() || kind.is_floating() || kind == &ColumnType::Null;
    require(name, column, is_number, "numbers")?;
    let exact = |row: usize, value: i128, float: f64| {
        let rounded = round(float);
        // An integer that comes back as itself was not changed on the way.
        if back(rounded) as i128 == value {
            return Ok(rounded);
        }
        Err(Error::column(
            name,
            format!("row {row}: {value} has no exact value in the model's float type: make the column a float"),
        ))
    };
    let missing = round(f64::NAN);
    match column.data_type() {
        ColumnType::UInt64 => numbers(column.as_primitive::<UInt64Type>(), missing, |row, value| {
            exact(row, i128::from(value), value as f64)
        }),
        kind if kind.is_integer() => {
            let column = cast(name, column, &ColumnType::Int64)?;
            numbers(column.as_primitive::<Int64Type>(), missing, |row, value| {
                exact(row, i128::from(value), value as f64)
            })
        }
        _ => {
            let column = cast(name, column, &ColumnType::Float64)?;
            numbers(column.as_primitive::<Float64Type>(), missing, |_, value| {
                Ok(round(value))
            })
        }
    }
}

fn numbers<T: ArrowPrimitiveType, V: Copy>(
    column: &PrimitiveArray<T>,
    missing: V,
    convert: impl Fn(usize, T::Native) -> Result<V>,
) -> Result<Vec<V>> {
    column
        .iter()
        .enumerate()
        .map(|(row, value)| value.map_or(Ok(missing), |value| convert(row, value)))
        .collect()
}

fn booleans(name: &str, column: &ArrayRef) -> Result<Vec<bool>> {
    require(name, column, |kind| kind == &ColumnType::Boolean, "booleans")?;
    let column: &BooleanArray = column.as_boolean();
    column
        .iter()
        .enumerate()
        .map(|(row, value)| value.ok_or_else(|| no_value(name, row, "a boolean")))
        .collect()
}

/// Text, also as a dictionary; missing texts are empty.
fn texts(name: &str, column: &ArrayRef) -> Result<Vec<Vec<u8>>> {
    fn is_text(kind: &ColumnType) -> bool {
        match kind {
            ColumnType::Dictionary(_, values) => is_text(values),
            ColumnType::Utf8 | ColumnType::LargeUtf8 | ColumnType::Utf8View | ColumnType::Null => true,
            _ => false,
        }
    }
    require(name, column, is_text, "text")?;
    let column = cast(name, column, &ColumnType::Utf8)?;
    let column: &StringArray = column.as_string();
    Ok(column.iter().map(|text| text.unwrap_or_default().into()).collect())
}

fn require(name: &str, column: &ArrayRef, fits: impl Fn(&ColumnType) -> bool, what: &str) -> Result<()> {
    if fits(column.data_type()) {
        return Ok(());
    }
    Err(Error::column(
        name,
        format!("the model takes {what}, got a column of {}", column.data_type()),
    ))
}

fn cast(name: &str, column: &ArrayRef, kind: &ColumnType) -> Result<ArrayRef> {
    let options = CastOptions {
        safe: false,
        ..CastOptions::default()
    };
    cast_with_options(column, kind, &options).map_err(|error| Error::column(name, error.to_string()))
}

fn no_value(name: &str, row: usize, what: &str) -> Error {
    Error::column(
        name,
        format!("row {row} has no value, and the model takes {what} there: fill it, or make the column a float"),
    )
}

/// The elements of a float tensor as `f32`.
///
/// # Errors
/// `InvalidTensor` if it is no float tensor, or an `FP64`, which would be rounded.
pub fn to_f32(tensor: &Tensor) -> Result<Vec<f32>> {
    match tensor.datatype() {
        DataType::Fp16 => Ok(tensor
            .values::<half::f16>()?
            .iter()
            .map(|value| value.to_f32())
            .collect()),
        DataType::Bf16 => Ok(tensor
            .values::<half::bf16>()?
            .iter()
            .map(|value| value.to_f32())
            .collect()),
        _ => Ok(tensor.values::<f32>()?.into_owned()),
    }
}

/// The elements of a float tensor as `f64`, all exact.
///
/// # Errors
/// `InvalidTensor` if it is no float tensor.
pub fn to_f64(tensor: &Tensor) -> Result<Vec<f64>> {
    match tensor.datatype() {
        DataType::Fp64 => Ok(tensor.values::<f64>()?.into_owned()),
        _ => Ok(to_f32(tensor)?.into_iter().map(f64::from).collect()),
    }
}

/// A classifier's probabilities, or a regression's predictions as one class.
#[derive(Debug, Clone, PartialEq)]
pub struct Probabilities {
    /// The rows.
    pub rows: usize,
    /// The values of each row.
    pub classes: usize,
    /// Row-major, `rows * classes` of them.
    pub values: Vec<f64>,
}

impl Probabilities {
    /// One class's values, a row each; empty for a class that there is not.
    pub fn class(&self, class: usize) -> Vec<f64> {
        self.values
            .chunks_exact(self.classes.max(1))
            .filter_map(|row| row.get(class).copied())
            .collect()
    }
}

/// The probabilities among a model's outputs: the output named `probabilities`, else the only float output of shape
/// `[N, k]`, `[N, 1]` or `[N]`.
///
/// # Errors
/// `InvalidOutput` if there is no such output, or several.
pub fn probabilities(outputs: &[Tensor]) -> Result<Probabilities> {
    let fits = |tensor: &&Tensor| tensor.datatype().is_float() && matches!(tensor.shape().len(), 1 | 2);
    let mut candidates = outputs.iter().filter(fits);
    let chosen = match (
        candidates.clone().find(|tensor| tensor.name() == "probabilities"),
        candidates.next(),
    ) {
        (Some(named), _) => named,
        (None, Some(only)) if candidates.next().is_none() => only,
        _ => {
            return Err(Error::output(
                "probabilities",
                "the model must have one output of this name, or one output of floats alone, of shape [N, k]",
            ));
        }
    };
    let rows = chosen.rows().unwrap_or(0);
    let classes = chosen
        .shape()
        .get(1)
        .map_or(1, |&classes| usize::try_from(classes).unwrap_or(0));
    Ok(Probabilities {
        rows,
        classes,
        values: to_f64(chosen)?,
    })
}

#[cfg(test)]
#[path = "columns_tests.rs"]
mod tests;
