//! Segments as the columns of the inference log: Parquet files, one for each date and schema.

use std::{
    collections::{HashMap, HashSet},
    fmt::Write as _,
    sync::Arc,
};

use arrow::{
    array::{
        ArrayRef, BooleanArray, Float64Array, Int32Array, Int64Array, ListArray, RecordBatch, StringArray,
        StringBuilder, TimestampMicrosecondArray, UInt64Array,
    },
    buffer::OffsetBuffer,
    compute::take,
    datatypes::{DataType as ColumnType, Field, Schema, SchemaRef, TimeUnit},
    error::ArrowError,
    ipc::writer::StreamWriter,
};
use bytes::Bytes;
use modelyard_common::Timestamp;
use modelyard_inference::{DataType, Tensor, TensorData, TensorSpec, to_f64};
use modelyard_proto::monitoring::v1::SegmentFile;
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, ZstdLevel},
    errors::ParquetError,
    file::properties::WriterProperties,
    schema::types::ColumnPath,
};
use uuid::Uuid;

use super::{
    read::Content,
    record::{Definition, Part, RawPrediction},
};
use crate::desired::Role;

/// How dates are written in paths.
const DATE_FORMAT: &str = "%Y-%m-%d";

/// The column with the ids of requests.
const REQUEST_ID: &str = "request_id";

/// Microseconds of a day.
const MICROS_OF_DAY: i64 = 86_400_000_000;

/// The longest name of a column, in bytes.
const MAX_COLUMN_NAME_BYTES: usize = 256;

/// What a column's name may not contain: readers of the table refuse it.
const FORBIDDEN: &[char] = &[' ', ',', ';', '{', '}', '(', ')', '\n', '\t', '='];

/// A Parquet file to be uploaded.
pub(super) struct TableFile {
    pub content: Bytes,
    pub description: SegmentFile,
}

/// A segment's files.
pub(super) struct TableFiles {
    pub files: Vec<TableFile>,
    /// Records that could not be read.
    pub damaged: u64,
}

/// A segment could not be written as Parquet.
#[derive(Debug, thiserror::Error)]
pub(super) enum TableError {
    #[error("cannot make columns of a segment: {0}")]
    Arrow(#[from] ArrowError),
    #[error("cannot write a segment as parquet: {0}")]
    Parquet(#[from] ParquetError),
}

/// The same segment gives the same files, name by name and row by row.
pub(super) fn files(content: &Content, segment: Uuid) -> Result<TableFiles, TableError> {
    let mut groups: Vec<Group> = Vec::new();
    // By date and definition; definitions with equal columns share a group.
    let mut places: HashMap<(i64, u32), usize> = HashMap::new();
    let mut damaged = 0;
    for prediction in &content.predictions {
        let Some(definition) = content.definitions.get(&prediction.definition) else {
            damaged += 1;
            continue;
        };
        let day = prediction.event_time_us.div_euclid(MICROS_OF_DAY);
        let place = *places.entry((day, definition.key)).or_insert_with(|| {
            let schema = schema(definition);
            let known = groups
                .iter()
                .position(|group| group.day == day && group.schema == schema);
            known.unwrap_or_else(|| {
                groups.push(Group::new(day, schema));
                groups.len() - 1
            })
        });
        if let Some(group) = groups.get_mut(place) {
            group.members.push((prediction, definition));
        }
    }
    // Stable: within a date in the order of appearance in the file.
    groups.sort_by_key(|group| group.day);
    let mut files = Vec::with_capacity(groups.len());
    for (index, group) in groups.into_iter().enumerate() {
        let name = format!("{}-{index}.parquet", segment.as_hyphenated());
        damaged += group.write(&name, &mut files)?;
    }
    Ok(TableFiles { files, damaged })
}

/// Predictions of one date and schema.
struct Group<'a> {
    /// Days since the epoch.
    day: i64,
    schema: SchemaRef,
    members: Vec<(&'a RawPrediction, &'a Arc<Definition>)>,
}

impl Group<'_> {
    const fn new(day: i64, schema: SchemaRef) -> Self {
        Self {
            day,
            schema,
            members: Vec::new(),
        }
    }

    fn date(&self) -> String {
        let begin = Timestamp::from_micros(self.day.saturating_mul(MICROS_OF_DAY));
        begin.to_datetime().format(DATE_FORMAT).to_string()
    }

    /// Adds the group's file; gives the number of records that could not be read.
    fn write(mut self, name: &str, files: &mut Vec<TableFile>) -> Result<u64, TableError> {
        self.members.sort_by_key(|(prediction, _)| prediction.event_time_us);
        let mut columns = Columns::default();
        let mut damaged = 0;
        for (prediction, definition) in &self.members {
            match prediction.read(definition) {
                Some((rows, inputs, outputs)) => columns.push(prediction, definition, rows, &inputs, &outputs),
                None => damaged += 1,
            }
        }
        let (Some(&first), Some(&last)) = (columns.event_times.first(), columns.event_times.last()) else {
            return Ok(damaged);
        };
        let batch = columns.batch(&self.schema)?;
        let content = parquet(&batch)?;
        let date = self.date();
        files.push(TableFile {
            description: SegmentFile {
                path: format!("event_date={date}/{name}"),
                size_bytes: content.len() as u64,
                rows: batch.num_rows() as u64,
                event_date: date,
                min_event_time_us: first,
                max_event_time_us: last,
                schema_ipc: schema_message(&self.schema)?,
            },
            content,
        });
        Ok(damaged)
    }
}

fn parquet(batch: &RecordBatch) -> Result<Bytes, TableError> {
    // Numbers seldom repeat, and looking for those that do costs more than everything else here.
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?))
        .set_dictionary_enabled(false);
    let schema = batch.schema();
    for field in schema.fields().iter().filter(|field| field.name() != REQUEST_ID) {
        let path = match field.data_type() {
            ColumnType::Utf8 => vec![field.name().clone()],
            ColumnType::List(element) if element.data_type() == &ColumnType::Utf8 => {
                vec![field.name().clone(), "list".to_owned(), element.name().clone()]
            }
            _ => continue,
        };
        properties = properties.set_column_dictionary_enabled(ColumnPath::new(path), true);
    }
    let properties = properties.build();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties))?;
    writer.write(batch)?;
    Ok(Bytes::from(writer.into_inner()?))
}

/// A schema as an IPC message: what a stream begins with.
fn schema_message(schema: &Schema) -> Result<Vec<u8>, TableError> {
    Ok(StreamWriter::try_new(Vec::new(), schema)?.get_ref().clone())
}

/// The columns of a version's rows.
fn schema(definition: &Definition) -> SchemaRef {
    let time = ColumnType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let fixed = [
        (REQUEST_ID, ColumnType::Utf8),
        ("row", ColumnType::Int32),
        ("event_time", time.clone()),
        ("received_at", time),
        ("model", ColumnType::Utf8),
        ("model_version", ColumnType::Utf8),
        ("role", ColumnType::Utf8),
        ("protocol", ColumnType::Utf8),
        ("latency_us", ColumnType::Int64),
    ];
    let mut fields: Vec<Field> = fixed
        .into_iter()
        .map(|(name, kind)| Field::new(name, kind, true))
        .collect();
    // Readers take upper and lower case for the same.
    let mut taken: HashSet<String> = fields.iter().map(|field| field.name().to_lowercase()).collect();
    let signature = &definition.signature;
    let inputs = signature.inputs.iter().map(|spec| ("input", spec));
    for (prefix, spec) in inputs.chain(signature.outputs.iter().map(|spec| ("output", spec))) {
        let name = column_name(prefix, &spec.name, &mut taken);
        let value = value_type(spec.datatype);
        let kind = if is_single(spec, definition.by_row) {
            value
        } else {
            ColumnType::List(element_field(value))
        };
        fields.push(Field::new(name, kind, true));
    }
    Arc::new(Schema::new(fields))
}

/// A tensor's name as a column's: without what readers refuse, and unlike all before it.
fn column_name(prefix: &str, tensor: &str, taken: &mut HashSet<String>) -> String {
    let mut name = format!("{prefix}_{}", tensor.replace(FORBIDDEN, "_"));
    while name.len() > MAX_COLUMN_NAME_BYTES - 8 {
        name.pop();
    }
    let base = name.clone();
    let mut number = 1;
    while !taken.insert(name.to_lowercase()) {
        number += 1;
        name = format!("{base}_{number}");
    }
    name
}

fn element_field(value: ColumnType) -> Arc<Field> {
    Arc::new(Field::new("element", value, true))
}

/// Whether every row of a tensor is one value.
fn is_single(spec: &TensorSpec, by_row: bool) -> bool {
    match spec.shape.as_slice() {
        // Not declared: it could be anything.
        [] => false,
        [_, rest @ ..] if by_row => rest.iter().all(|&dimension| dimension == 1),
        all => all.iter().all(|&dimension| dimension == 1),
    }
}

const fn value_type(datatype: DataType) -> ColumnType {
    match datatype {
        DataType::Bool => ColumnType::Boolean,
        DataType::Bytes => ColumnType::Utf8,
        DataType::Fp16 | DataType::Bf16 | DataType::Fp32 | DataType::Fp64 => ColumnType::Float64,
        _ => ColumnType::Int64,
    }
}

/// The rows of a file, column by column.
#[derive(Default)]
struct Columns {
    request_ids: StringBuilder,
    rows: Vec<i32>,
    event_times: Vec<i64>,
    received_at: Vec<i64>,
    models: StringBuilder,
    versions: StringBuilder,
    roles: StringBuilder,
    protocols: StringBuilder,
    latencies: Vec<i64>,
    tensors: Vec<Values>,
}

/// One tensor's elements, where each row ends, and which rows were left out.
struct Values {
    elements: Elements,
    ends: Vec<usize>,
    left_out: Vec<bool>,
}

enum Elements {
    Integers(Vec<Option<i64>>),
    Floats(Vec<f64>),
    Booleans(Vec<bool>),
    /// What is not UTF-8 is missing.
    Texts(Vec<Option<String>>),
}

impl Columns {
    fn push(
        &mut self,
        prediction: &RawPrediction,
        definition: &Definition,
        rows: usize,
        inputs: &[Tensor],
        outputs: &[Tensor],
    ) {
        let role = match prediction.part {
            Part::Live(_) => Role::Live,
            Part::Shadow(_) => Role::Shadow,
        };
        for row in 0..rows {
            self.request_ids.append_value(&prediction.id);
            self.rows.push(i32::try_from(row).unwrap_or(i32::MAX));
            self.event_times.push(prediction.event_time_us);
            self.received_at.push(prediction.received_at_us);
            self.models.append_value(&definition.version.model);
            // Writing to a column cannot fail.
            let _ = write!(self.versions, "{}", definition.version.version);
            self.versions.append_value("");
            self.roles.append_value(role.label());
            self.protocols.append_value(prediction.protocol.label());
            self.latencies
                .push(i64::try_from(prediction.latency_us).unwrap_or(i64::MAX));
        }
        for (index, tensor) in inputs.iter().chain(outputs).enumerate() {
            if self.tensors.len() == index {
                self.tensors.push(Values::new(tensor.datatype()));
            }
            if let Some(values) = self.tensors.get_mut(index) {
                if definition.redact.iter().any(|name| name == tensor.name()) {
                    values.leave_out(rows);
                } else {
                    values.push(tensor, rows);
                }
            }
        }
    }

    fn batch(mut self, schema: &SchemaRef) -> Result<RecordBatch, TableError> {
        let time =
            |micros: Vec<i64>| -> ArrayRef { Arc::new(TimestampMicrosecondArray::from(micros).with_timezone("UTC")) };
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(self.request_ids.finish()),
            Arc::new(Int32Array::from(self.rows)),
            time(self.event_times),
            time(self.received_at),
            Arc::new(self.models.finish()),
            Arc::new(self.versions.finish()),
            Arc::new(self.roles.finish()),
            Arc::new(self.protocols.finish()),
            Arc::new(Int64Array::from(self.latencies)),
        ];
        let fields = schema.fields().iter().skip(columns.len());
        let tensors = self
            .tensors
            .into_iter()
            .zip(fields)
            .map(|(values, field)| values.array(field.data_type()))
            .collect::<Result<Vec<_>, _>>()?;
        columns.extend(tensors);
        Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
    }
}

impl Values {
    const fn new(datatype: DataType) -> Self {
        let elements = match datatype {
            DataType::Bool => Elements::Booleans(Vec::new()),
            DataType::Bytes => Elements::Texts(Vec::new()),
            DataType::Fp16 | DataType::Bf16 | DataType::Fp32 | DataType::Fp64 => Elements::Floats(Vec::new()),
            _ => Elements::Integers(Vec::new()),
        };
        Self {
            elements,
            ends: Vec::new(),
            left_out: Vec::new(),
        }
    }

    /// Appends a tensor of the column's datatype, as so many rows of equal width.
    fn push(&mut self, tensor: &Tensor, rows: usize) {
        let before = self.elements.len();
        self.elements.extend(tensor);
        let width = (self.elements.len() - before).checked_div(rows).unwrap_or(0);
        self.ends.extend((1..=rows).map(|row| before + row * width));
        self.left_out.resize(self.ends.len(), false);
    }

    /// Appends so many rows without values.
    fn leave_out(&mut self, rows: usize) {
        self.ends.resize(self.ends.len() + rows, self.elements.len());
        self.left_out.resize(self.ends.len(), true);
    }

    fn array(self, column: &ColumnType) -> Result<ArrayRef, TableError> {
        let values = self.elements.array();
        let ColumnType::List(field) = column else {
            if !self.left_out.contains(&true) {
                return Ok(values);
            }
            // Rows without a value take none of the elements.
            let mut next = 0..;
            let places = self
                .left_out
                .iter()
                .map(|left_out| if *left_out { None } else { next.next() });
            let places: UInt64Array = places.collect();
            return Ok(take(&values, &places, None)?);
        };
        let mut before = 0;
        let lengths = self
            .ends
            .into_iter()
            .map(|end| end - std::mem::replace(&mut before, end));
        let offsets = OffsetBuffer::from_lengths(lengths);
        let nulls = self.left_out.contains(&true);
        let nulls = nulls.then(|| self.left_out.iter().map(|left_out| !left_out).collect());
        Ok(Arc::new(ListArray::try_new(Arc::clone(field), offsets, values, nulls)?))
    }
}

impl Elements {
    const fn len(&self) -> usize {
        match self {
            Self::Integers(values) => values.len(),
            Self::Floats(values) => values.len(),
            Self::Booleans(values) => values.len(),
            Self::Texts(values) => values.len(),
        }
    }

    fn extend(&mut self, tensor: &Tensor) {
        match self {
            Self::Integers(all) => extend_integers(all, tensor),
            // An FP16 or FP32 has the same value as a double.
            Self::Floats(all) => all.extend(to_f64(tensor).unwrap_or_default()),
            Self::Booleans(all) => all.extend_from_slice(&tensor.values::<bool>().unwrap_or_default()),
            Self::Texts(all) => {
                if let TensorData::Bytes(values) = tensor.data() {
                    all.extend(values.iter().map(|value| String::from_utf8(value.clone()).ok()));
                }
            }
        }
    }

    fn array(self) -> ArrayRef {
        match self {
            Self::Integers(values) => Arc::new(Int64Array::from(values)),
            Self::Floats(values) => Arc::new(Float64Array::from(values)),
            Self::Booleans(values) => Arc::new(BooleanArray::from(values)),
            Self::Texts(values) => Arc::new(StringArray::from(values)),
        }
    }
}

/// Integers of any width. A UINT64 that the column cannot hold is missing rather than wrong.
fn extend_integers(all: &mut Vec<Option<i64>>, tensor: &Tensor) {
    macro_rules! widen {
        ($type:ty) => {
            all.extend(
                tensor
                    .values::<$type>()
                    .unwrap_or_default()
                    .iter()
                    .map(|&value| i64::try_from(value).ok()),
            )
        };
    }
    match tensor.datatype() {
        DataType::Uint8 => widen!(u8),
        DataType::Uint16 => widen!(u16),
        DataType::Uint32 => widen!(u32),
        DataType::Uint64 => widen!(u64),
        DataType::Int8 => widen!(i8),
        DataType::Int16 => widen!(i16),
        DataType::Int32 => widen!(i32),
        DataType::Int64 => widen!(i64),
        _ => {}
    }
}
