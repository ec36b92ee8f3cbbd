//! Files of datasets: Parquet, or CSV with a header.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom},
    path::Path,
    sync::Arc,
};

use arrow::{
    array::RecordBatch,
    csv::{ReaderBuilder, reader::Format},
    datatypes::Schema,
    error::ArrowError,
};
use modelyard_stats::{Profile, ProfileOptions, Profiler};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::records::Records;
use crate::{
    error::{Error, Result},
    model::{
        column::{Column, columns_of},
        dataset::FileFormat,
    },
};

/// How many rows are read at once, at most.
const BATCH_ROWS: usize = 8192;
/// How many bytes of CSV are read at once, at most, where no row is larger.
const BATCH_BYTES: u64 = 16 << 20;
/// The most columns of a file.
pub const MAX_COLUMNS: usize = 10_000;
/// What a Parquet file begins and ends with.
const PARQUET_MAGIC: &[u8; 4] = b"PAR1";
/// How much of a file is looked at to see whether it is text, in bytes.
const SNIFF_BYTES: usize = 64 * 1024;
/// The longest first line that is taken for a header, in bytes.
const MAX_HEADER_BYTES: u64 = 4 << 20;
/// How much of a parser's message is passed on, in characters.
const SHOWN_CHARS: usize = 300;

/// What was read of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// What the file is.
    pub format: FileFormat,
    /// Its rows.
    pub rows: u64,
    /// Its columns.
    pub columns: Vec<Column>,
    /// The profile of its rows.
    pub profile: Profile,
}

/// Reads the file at `path`, which users know as `name`, once from front to back in bounded memory (CSV twice: the types
/// first). An error names the file and what it is not.
pub fn read_table(path: &Path, name: &str) -> Result<Table> {
    let mut file = File::open(path)?;
    let mut start = Vec::with_capacity(SNIFF_BYTES);
    file.by_ref().take(SNIFF_BYTES as u64).read_to_end(&mut start)?;
    file.seek(SeekFrom::Start(0))?;
    let reading = Reading { name };
    if start.starts_with(PARQUET_MAGIC) {
        return reading.parquet(file);
    }
    reading.check_text(&start)?;
    reading.csv(file)
}

/// The file being read.
struct Reading<'a> {
    name: &'a str,
}

impl Reading<'_> {
    fn neither(&self, problem: impl std::fmt::Display) -> Error {
        let problem: String = problem.to_string().chars().take(SHOWN_CHARS).collect();
        self.refuse(format!("is neither Parquet nor CSV: {problem}"))
    }

    fn refuse(&self, problem: String) -> Error {
        Error::DatasetFile {
            file: self.name.to_owned(),
            problem,
        }
    }

    /// Refuses what cannot be CSV at its first glance.
    fn check_text(&self, start: &[u8]) -> Result<()> {
        if start.is_empty() {
            return Err(self.neither("it is empty"));
        }
        if start.starts_with(&[0x1f, 0x8b]) || start.starts_with(b"PK\x03\x04") {
            return Err(self.neither("it is compressed: upload it uncompressed, or as Parquet"));
        }
        if start.contains(&0) {
            return Err(self.neither("it is binary: save it as Parquet, or as CSV with a header"));
        }
        match std::str::from_utf8(start) {
            // A character may be cut off where the look ended.
            Err(error) if error.error_len().is_some() => {
                return Err(self.neither("it is not UTF-8 text: save it as CSV in UTF-8"));
            }
            _ => {}
        }
        match start.iter().find(|byte| !byte.is_ascii_whitespace()) {
            Some(b'{' | b'[') => Err(self.neither("it looks like JSON: save it as Parquet, or as CSV with a header")),
            Some(b'<') => Err(self.neither("it looks like XML or HTML: save it as Parquet, or as CSV with a header")),
            _ => Ok(()),
        }
    }

    fn parquet(&self, file: File) -> Result<Table> {
        let broken = |error: &dyn std::fmt::Display| {
            self.neither(format!(
                "it begins as Parquet, but cannot be read ({error}): upload it again"
            ))
        };
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| broken(&error))?;
        let schema = Arc::clone(builder.schema());
        let batches = builder
            .with_batch_size(BATCH_ROWS)
            .build()
            .map_err(|error| broken(&error))?;
        self.read(FileFormat::Parquet, &schema, batches, |error| broken(&error))
    }

    fn csv(&self, file: File) -> Result<Table> {
        let mut reader = BufReader::new(file);
        let ends = (&mut reader).take(MAX_HEADER_BYTES).skip_until(b'\n')?;
        if ends as u64 >= MAX_HEADER_BYTES {
            return Err(self.neither("its first line is too long for a header"));
        }
        reader.seek(SeekFrom::Start(0))?;
        let mut records = Records::new(&mut reader, MAX_COLUMNS);
        let (schema, rows) = Format::default()
            .with_header(true)
            .infer_schema(&mut records, None)
            .map_err(|error| self.neither(csv_message(&error)))?;
        let batch_rows = batch_rows(records.longest());
        if rows == 0 {
            return Err(self.neither("there are no rows below its first line"));
        }
        if schema.fields().iter().any(|field| field.name().trim().is_empty()) {
            return Err(self.neither("its first line is no header: give every column a name"));
        }
        reader.seek(SeekFrom::Start(0))?;
        let schema = Arc::new(schema);
        let batches = ReaderBuilder::new(Arc::clone(&schema))
            .with_header(true)
            .with_batch_size(batch_rows)
            .build_buffered(reader)
            .map_err(|error| self.neither(csv_message(&error)))?;
        self.read(FileFormat::Csv, &schema, batches, |error| {
            self.neither(csv_message(&error))
        })
    }

    fn read(
        &self,
        format: FileFormat,
        schema: &Schema,
        batches: impl Iterator<Item = Result<RecordBatch, ArrowError>>,
        broken: impl Fn(ArrowError) -> Error,
    ) -> Result<Table> {
        self.check_names(schema)?;
        let profiled = |source| Error::Profile {
            file: self.name.to_owned(),
            source,
        };
        let mut profiler = Profiler::new(&ProfileOptions::default()).map_err(profiled)?;
        let mut rows = 0;
        for batch in batches {
            let batch = batch.map_err(&broken)?;
            rows += batch.num_rows() as u64;
            profiler.update(&batch).map_err(profiled)?;
        }
        Ok(Table {
            format,
            rows,
            columns: columns_of(schema),
            profile: profiler.finish(),
        })
    }

    fn check_names(&self, schema: &Schema) -> Result<()> {
        let columns = schema.fields();
        if columns.is_empty() || columns.len() > MAX_COLUMNS {
            return Err(self.refuse(format!("has {} columns: give it 1 to {MAX_COLUMNS}", columns.len())));
        }
        let mut seen = BTreeSet::new();
        match columns.iter().find(|column| !seen.insert(column.name())) {
            None => Ok(()),
            Some(twice) => Err(self.refuse(format!(
                "has two columns named `{}`: give each its own name",
                twice.name()
            ))),
        }
    }
}

/// How many rows of CSV are read at once where the longest has so many bytes.
fn batch_rows(longest: u64) -> usize {
    let rows = BATCH_BYTES / longest.max(1);
    usize::try_from(rows).map_or(BATCH_ROWS, |rows| rows.clamp(1, BATCH_ROWS))
}

/// The message of a CSV error without its repeated prefixes.
fn csv_message(error: &ArrowError) -> String {
    match error {
        ArrowError::CsvError(message) | ArrowError::ParseError(message) => message.clone(),
        ArrowError::IoError(_, source) if source.kind() == io::ErrorKind::InvalidData => {
            "it is not UTF-8 text: save it as CSV in UTF-8".to_owned()
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Float64Array, StringArray};
    use parquet::arrow::ArrowWriter;

    use super::*;

    fn read(content: &[u8]) -> Result<Table> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        read_table(file.path(), "flights")
    }

    fn parquet() -> Vec<u8> {
        let distance: ArrayRef = Arc::new(Float64Array::from(vec![Some(1.0), None, Some(3.5)]));
        let carrier: ArrayRef = Arc::new(StringArray::from(vec!["UA", "AA", "UA"]));
        let batch = RecordBatch::try_from_iter([("distance", distance), ("carrier", carrier)]).unwrap();
        let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.into_inner().unwrap()
    }

    fn types(table: &Table) -> Vec<(&str, &str)> {
        table
            .columns
            .iter()
            .map(|column| (column.name.as_str(), column.data_type.as_str()))
            .collect()
    }

    #[test]
    fn parquet_is_read() {
        let table = read(&parquet()).unwrap();
        assert_eq!(table.format, FileFormat::Parquet);
        assert_eq!((table.rows, table.profile.rows), (3, 3));
        assert_eq!(types(&table), [("distance", "Float64"), ("carrier", "Utf8")]);
        assert_eq!(table.profile.columns["distance"].missing, 1);
    }

    #[test]
    fn the_types_of_csv_are_inferred() {
        let table = read(b"a,b,c,d\n1,1.5,x,2013-01-01\n2,3,y,2013-01-02\n,4,z,\n").unwrap();
        assert_eq!(table.format, FileFormat::Csv);
        assert_eq!(table.rows, 3);
        assert_eq!(
            types(&table),
            [("a", "Int64"), ("b", "Float64"), ("c", "Utf8"), ("d", "Date32")]
        );
        assert_eq!(table.profile.columns["a"].missing, 1);
    }

    #[test]
    fn rows_are_bounded_and_read_in_batches_that_are() {
        assert_eq!(
            [batch_rows(0), batch_rows(100), batch_rows(1 << 20), batch_rows(1 << 30)],
            [8192, 8192, 16, 1]
        );
        // A quote that nobody closes.
        let endless = format!("a,b\n1,x\n2,\"{}", "y,y\n".repeat(5 << 20));
        let error = read(endless.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("line 3 has more than 16777216 bytes"), "{error}");
        let wide = format!("{}\n", vec!["c"; MAX_COLUMNS + 1].join(","));
        let error = read(wide.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("line 1 has more than 10000 columns"), "{error}");
        let long = "z".repeat(3 << 20);
        let table = read(format!("a,b\n1,{long}\n2,\"{long}\n\"\n3,x\n").as_bytes()).unwrap();
        assert_eq!((table.rows, types(&table)), (3, vec![("a", "Int64"), ("b", "Utf8")]));
    }

    #[test]
    fn what_is_neither_is_named() {
        let parquet = parquet();
        let cases: [(&[u8], &str); 12] = [
            (b"", "it is empty"),
            (&parquet[..parquet.len() - 6], "begins as Parquet"),
            (b"PAR1", "begins as Parquet"),
            (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "it is binary"),
            (b"\x1f\x8b\x08rest", "it is compressed"),
            (b"caf\xe9,b\n1,2\n", "not UTF-8"),
            (b" {\"a\": 1}\n", "looks like JSON"),
            (b"<html></html>\n", "looks like XML"),
            (b"a,b\n", "no rows"),
            (b"a,b\n1,2\n3\n", "is neither Parquet nor CSV"),
            (b"a,,c\n1,2,3\n", "give every column a name"),
            (b"a,b,a\n1,2,3\n", "two columns named `a`"),
        ];
        for (content, named) in cases {
            let error = read(content).unwrap_err().to_string();
            assert!(error.starts_with("`flights` "), "{error}");
            assert!(error.contains(named), "{named}: {error}");
        }
    }
}
