//! The columns of a dataset, and which columns fit which.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::error::{Error, Result};

/// A column of a dataset version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// The name of its Arrow type, such as `Int64`, `Utf8` or `Timestamp(µs, "UTC")`.
    #[serde(rename = "type")]
    pub data_type: String,
    /// Whether values may be missing.
    pub nullable: bool,
}

/// All texts are one type, however a file lays them out.
fn normal(data_type: &DataType) -> DataType {
    match data_type {
        DataType::LargeUtf8 | DataType::Utf8View => DataType::Utf8,
        DataType::Dictionary(_, values) => normal(values),
        other => other.clone(),
    }
}

/// The bits of an integer type, negative for unsigned ones.
fn integer_bits(data_type: &DataType) -> Option<i32> {
    Some(match data_type {
        DataType::Int8 => 8,
        DataType::Int16 => 16,
        DataType::Int32 => 32,
        DataType::Int64 => 64,
        DataType::UInt8 => -8,
        DataType::UInt16 => -16,
        DataType::UInt32 => -32,
        DataType::UInt64 => -64,
        _ => return None,
    })
}

/// The type that holds the values of both, if there is one without surprise: the same type, the wider of two integers of
/// the same sign, a floating-point number for a mix of integers and those, and anything where one side has no values.
fn common(left: &str, right: &str) -> Option<String> {
    if left == right {
        return Some(left.to_owned());
    }
    let (left, right): (DataType, DataType) = (left.parse().ok()?, right.parse().ok()?);
    match (&left, &right) {
        (DataType::Null, other) | (other, DataType::Null) => return Some(other.to_string()),
        _ => {}
    }
    let (left_bits, right_bits) = (integer_bits(&left), integer_bits(&right));
    if let (Some(left_bits), Some(right_bits)) = (left_bits, right_bits) {
        let wider = if left_bits.abs() >= right_bits.abs() {
            left
        } else {
            right
        };
        return (left_bits.signum() == right_bits.signum()).then(|| wider.to_string());
    }
    let number = |data_type: &DataType, bits: Option<i32>| bits.is_some() || data_type.is_floating();
    (number(&left, left_bits) && number(&right, right_bits)).then(|| DataType::Float64.to_string())
}

/// The columns of a schema.
#[must_use]
pub fn columns_of(schema: &Schema) -> Vec<Column> {
    let column = |field: &Arc<Field>| Column {
        name: field.name().clone(),
        data_type: normal(field.data_type()).to_string(),
        nullable: field.is_nullable(),
    };
    schema.fields().iter().map(column).collect()
}

/// Takes the columns of `file` into those of `other`, widening types where that is without surprise.
pub fn unite(mine: &mut [Column], other: &str, theirs: &[Column], file: &str) -> Result<()> {
    let differ = |problem: String| Error::Columns {
        file: file.to_owned(),
        other: other.to_owned(),
        problem,
    };
    let has = |columns: &[Column], name: &str| columns.iter().any(|column| column.name == name);
    if let Some(missing) = mine.iter().find(|column| !has(theirs, &column.name)) {
        let name = &missing.name;
        return Err(differ(format!("column `{name}` is missing: add it to the file")));
    }
    for (index, column) in theirs.iter().enumerate() {
        let name = &column.name;
        let placed = mine.get(index).is_some_and(|mine| mine.name == *name);
        if !placed {
            return Err(differ(if has(mine, name) {
                format!("column `{name}` is at another place: write the columns in the same order")
            } else {
                format!("column `{name}` is new: remove it from the file, or start a new dataset")
            }));
        }
        let mine = &mut mine[index];
        mine.data_type = common(&mine.data_type, &column.data_type).ok_or_else(|| {
            differ(format!(
                "column `{name}` has type {} instead of {}: convert it",
                column.data_type, mine.data_type
            ))
        })?;
        mine.nullable |= column.nullable;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::TimeUnit;

    use super::*;

    fn columns(list: &[(&str, &str)]) -> Vec<Column> {
        let column = |(name, data_type): &(&str, &str)| Column {
            name: (*name).to_owned(),
            data_type: (*data_type).to_owned(),
            nullable: false,
        };
        list.iter().map(column).collect()
    }

    #[test]
    fn numbers_widen_and_nothing_else_does() {
        let cases = [
            ("Int64", "Float64", Some("Float64")),
            ("Int32", "Int64", Some("Int64")),
            ("Int64", "Int8", Some("Int64")),
            ("Float32", "Float64", Some("Float64")),
            ("UInt8", "UInt32", Some("UInt32")),
            ("Null", "Utf8", Some("Utf8")),
            ("List(Int64)", "List(Int64)", Some("List(Int64)")),
            ("List(Int64)", "List(Utf8)", None),
            ("Int32", "UInt32", None),
            ("Utf8", "Int64", None),
            ("Boolean", "Int64", None),
            ("Date32", "Utf8", None),
        ];
        for (left, right, expected) in cases {
            assert_eq!(common(left, right).as_deref(), expected, "{left} {right}");
            assert_eq!(common(right, left).as_deref(), expected, "{right} {left}");
        }
    }

    #[test]
    fn the_names_of_simple_types_are_read_back() {
        for data_type in [
            DataType::Int64,
            DataType::Utf8,
            DataType::Null,
            DataType::Date32,
            DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            DataType::Timestamp(TimeUnit::Nanosecond, None),
        ] {
            assert_eq!(data_type.to_string().parse::<DataType>().unwrap(), data_type);
        }
    }

    #[test]
    fn what_differs_is_named() {
        let first = columns(&[("a", "Int64"), ("b", "Utf8")]);
        for (other, named) in [
            (columns(&[("a", "Int64")]), "column `b` is missing"),
            (
                columns(&[("a", "Int64"), ("b", "Utf8"), ("c", "Utf8")]),
                "column `c` is new",
            ),
            (
                columns(&[("b", "Utf8"), ("a", "Int64")]),
                "column `b` is at another place",
            ),
            (
                columns(&[("a", "Utf8"), ("b", "Utf8")]),
                "column `a` has type Utf8 instead of Int64",
            ),
        ] {
            let error = unite(&mut first.clone(), "old.csv", &other, "new.csv").unwrap_err();
            let error = error.to_string();
            assert!(error.contains(named), "{error}");
            assert!(error.contains("`new.csv` does not fit `old.csv`"), "{error}");
        }
    }
}
