//! The columns of a table, and how they grow.

use std::collections::{BTreeSet, HashMap};

use arrow::datatypes::{DataType, Schema, TimeUnit};
use deltalake::kernel::{ArrayType, DataType as DeltaType, StructField, StructType};

use crate::{
    error::{Error, Result},
    table_name::TableName,
};

/// The most columns of a table.
pub const MAX_COLUMNS: usize = 4096;
/// The longest name of a column, in bytes.
const MAX_COLUMN_NAME_BYTES: usize = 256;
/// What a column's name may not contain: Spark refuses it.
const FORBIDDEN: &[char] = &[' ', ',', ';', '{', '}', '(', ')', '\n', '\t', '='];

/// The type of a column in the table, or `None` for a type that tables do not have.
fn delta_type(data_type: &DataType) -> Option<DeltaType> {
    Some(match data_type {
        DataType::Boolean => DeltaType::BOOLEAN,
        DataType::Int8 => DeltaType::BYTE,
        DataType::Int16 => DeltaType::SHORT,
        DataType::Int32 => DeltaType::INTEGER,
        DataType::Int64 => DeltaType::LONG,
        DataType::Float32 => DeltaType::FLOAT,
        DataType::Float64 => DeltaType::DOUBLE,
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => DeltaType::STRING,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => DeltaType::BINARY,
        DataType::Date32 => DeltaType::DATE,
        DataType::Timestamp(TimeUnit::Microsecond, Some(zone)) if matches!(&**zone, "UTC" | "+00:00" | "Z") => {
            DeltaType::TIMESTAMP
        }
        DataType::List(element) | DataType::LargeList(element) => {
            ArrayType::new(delta_type(element.data_type())?, true).into()
        }
        _ => return None,
    })
}

/// A column as the table will have it. All columns can be null: an older file may lack them.
#[derive(Debug)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) data_type: DeltaType,
}

/// The columns of a file, without `partition_column` (its values are in the log).
///
/// # Errors
/// What is wrong with a column, in words.
pub(crate) fn columns_of(schema: &Schema, partition_column: &str) -> std::result::Result<Vec<Column>, String> {
    let mut seen = BTreeSet::new();
    let fields = schema.fields().iter().filter(|field| field.name() != partition_column);
    fields
        .map(|field| {
            let name = field.name();
            if name.is_empty() || name.len() > MAX_COLUMN_NAME_BYTES || name.contains(FORBIDDEN) {
                return Err(format!(
                    "column name `{}` is not usable: use 1 to {MAX_COLUMN_NAME_BYTES} bytes without spaces and `,;{{}}()=`",
                    name.escape_default()
                ));
            }
            if !seen.insert(name.to_lowercase()) {
                return Err(format!("column `{name}` is there twice (upper and lower case count as the same)"));
            }
            let data_type = delta_type(field.data_type()).ok_or_else(|| {
                format!(
                    "column `{name}` has the type {}: use signed integers, floats, text, booleans, dates, timestamps in microseconds UTC, or lists of them",
                    field.data_type()
                )
            })?;
            Ok(Column {
                name: name.clone(),
                data_type,
            })
        })
        .collect()
}

/// The schema of a new table.
pub(crate) fn create(table: &TableName, partition_column: &str, columns: &[Column]) -> Result<StructType> {
    let date = StructField::nullable(partition_column, DeltaType::DATE);
    let only_date = StructType::try_new([date]).map_err(|error| Error::internal("a new table's schema", error))?;
    Ok(merge(table, &only_date, columns)?.unwrap_or(only_date))
}

/// The table's schema with the columns that it lacks, or `None` if it has them all.
///
/// # Errors
/// [`Error::TypeConflict`], or there are too many columns.
pub(crate) fn merge(table: &TableName, schema: &StructType, columns: &[Column]) -> Result<Option<StructType>> {
    let mut known: HashMap<String, (&str, &DeltaType)> = schema
        .fields()
        .map(|field| (field.name().to_lowercase(), (field.name().as_str(), field.data_type())))
        .collect();
    let mut added = Vec::new();
    for column in columns {
        match known.get(&column.name.to_lowercase()) {
            Some((name, data_type)) if *name == column.name && same_type(data_type, &column.data_type) => {}
            Some((name, data_type)) => {
                return Err(Error::TypeConflict {
                    table: table.clone(),
                    column: (*name).to_owned(),
                    table_type: data_type.to_string(),
                    found_type: describe(name, column),
                });
            }
            None => {
                known.insert(column.name.to_lowercase(), (&column.name, &column.data_type));
                added.push(StructField::nullable(column.name.clone(), column.data_type.clone()));
            }
        }
    }
    if added.is_empty() {
        return Ok(None);
    }
    if known.len() > MAX_COLUMNS {
        return Err(Error::InvalidAppend {
            table: table.clone(),
            problem: format!(
                "it would have {} columns, and at most {MAX_COLUMNS} are possible",
                known.len()
            ),
        });
    }
    let merged = StructType::try_new(schema.fields().cloned().chain(added));
    merged
        .map(Some)
        .map_err(|error| Error::internal("merging a table's schema", error))
}

fn describe(name: &str, column: &Column) -> String {
    if name == column.name {
        column.data_type.to_string()
    } else {
        format!("{} under the name `{}`", column.data_type, column.name)
    }
}

/// Whether two types are the same but for the nullability of elements, which other writers set as they like.
fn same_type(left: &DeltaType, right: &DeltaType) -> bool {
    match (left, right) {
        (DeltaType::Array(left), DeltaType::Array(right)) => same_type(left.element_type(), right.element_type()),
        (left, right) => left == right,
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::Field;

    use super::*;

    fn table() -> TableName {
        "log/t".parse().unwrap()
    }

    fn columns(fields: &[(&str, DataType)]) -> Vec<Column> {
        let fields: Vec<Field> = fields
            .iter()
            .map(|(name, kind)| Field::new(*name, kind.clone(), false))
            .collect();
        columns_of(&Schema::new(fields), "day").unwrap()
    }

    #[test]
    fn columns_are_added_and_never_changed() {
        let schema = create(
            &table(),
            "day",
            &columns(&[("a", DataType::Int64), ("day", DataType::Date32)]),
        )
        .unwrap();
        assert_eq!(schema.fields().map(StructField::name).collect::<Vec<_>>(), ["day", "a"]);
        assert!(schema.fields().all(StructField::is_nullable));
        assert!(
            merge(&table(), &schema, &columns(&[("a", DataType::Int64)]))
                .unwrap()
                .is_none()
        );
        let list = DataType::List(Field::new("item", DataType::Float64, true).into());
        let wider = merge(&table(), &schema, &columns(&[("b", list.clone())]))
            .unwrap()
            .unwrap();
        assert_eq!(wider.fields().count(), 3);
        assert!(merge(&table(), &wider, &columns(&[("b", list)])).unwrap().is_none());

        for (name, kind) in [
            ("a", DataType::Float64),
            ("A", DataType::Int64),
            ("b", DataType::Float64),
        ] {
            let error = merge(&table(), &wider, &columns(&[(name, kind)])).unwrap_err();
            let named = matches!(&error, Error::TypeConflict { column, .. } if *column == name.to_lowercase());
            assert!(named, "{error}");
        }
    }

    #[test]
    fn what_no_reader_could_read_is_refused() {
        let refused = [
            ("a b", DataType::Int64),
            ("", DataType::Int64),
            ("u", DataType::UInt64),
            ("t", DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into()))),
            ("t", DataType::Timestamp(TimeUnit::Microsecond, None)),
        ];
        for (name, kind) in refused {
            assert!(columns_of(&Schema::new(vec![Field::new(name, kind, true)]), "day").is_err());
        }
        let twice = Schema::new(vec![
            Field::new("a", DataType::Int64, true),
            Field::new("A", DataType::Int64, true),
        ]);
        assert!(columns_of(&twice, "day").unwrap_err().contains("twice"));
    }
}
