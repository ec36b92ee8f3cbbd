//! One session of a model, and running requests on it.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use ort::{
    session::{Session, SessionInputValue, SessionOutputs},
    value::{DynValue, TensorRef},
};
use zerocopy::IntoBytes as _;

use crate::{
    accelerator::{Accelerator, PROCESSORS_ARENA},
    backend::{Backend, Run, RunTimes},
    datatype::DataType,
    element::{Element, Storage, TensorData, in_place, with_element},
    error::{Error, Result},
    signature::Signature,
    tensor::{Tensor, byte_strings, concat_data, concat_shape, element_count},
    watchdog::Watched,
};

/// Above this many input elements a run is a large one: the session gives its memory back after it, because its arena only ever
/// grows, and an outlier would otherwise keep its size for good.
const LARGE_ELEMENTS: usize = 1 << 20;

/// The same on a device, whose memory takes long to be given back and taken again: more than batches have.
const LARGE_ELEMENTS_ON_DEVICE: usize = 1 << 22;

/// Large runs that follow one another within this time are no outliers: each would take the memory back from the system that the
/// one before gave to it. They keep it, and the first run after them that is not large gives it back. It is given back that often at
/// most: as long as what is lent holds it, more would not help.
const LARGE_TOGETHER: Duration = Duration::from_secs(1);

/// Outputs of fewer bytes are never lent: each holds a whole piece of the arena, and copying it costs little.
const LENT_BYTES: usize = 1 << 20;

/// A session, owned by one thread at a time, because ONNX Runtime's run is not safe to call concurrently.
pub(crate) struct Instance {
    session: Session,
    watched: Arc<Watched>,
    /// Above this many input elements a run is a large one.
    large_elements: usize,
    /// When a run was large last.
    large: Option<Instant>,
    /// Whether the arena may hold what a large run took.
    grown: bool,
    /// When what large runs took was given back last.
    gave_back: Option<Instant>,
    /// Held by each output that lies in the arena still.
    lent: Arc<()>,
}

impl Instance {
    pub(crate) fn new(session: Session, accelerator: Option<Accelerator>) -> Result<Self, ort::Error> {
        let arenas = accelerator.map_or_else(|| PROCESSORS_ARENA.to_owned(), Accelerator::arenas);
        Ok(Self {
            session,
            watched: Watched::new(&arenas)?,
            large_elements: accelerator.map_or(LARGE_ELEMENTS, |_| LARGE_ELEMENTS_ON_DEVICE),
            large: None,
            grown: false,
            gave_back: None,
            lent: Arc::default(),
        })
    }

    fn run_unguarded(
        &mut self,
        signature: &Signature,
        requests: &[&[Tensor]],
        deadline: Option<Instant>,
    ) -> Result<Run> {
        let started = Instant::now();
        let inputs = signature
            .inputs
            .iter()
            .enumerate()
            .map(|(index, _)| Input::new(requests.iter().filter_map(|request| request.get(index)).collect()))
            .collect::<Result<Vec<_>>>()?;
        let values = inputs.iter().map(Input::value).collect::<Result<Vec<_>>>()?;
        let elements: usize = inputs.iter().map(|input| input.count).sum();
        let prepared = Instant::now();
        let is_large = elements > self.large_elements;
        let is_recent = |moment: Option<Instant>| moment.is_some_and(|moment| prepared - moment < LARGE_TOGETHER);
        let is_one_of_many = is_large && is_recent(self.large);
        let gives_back = !is_one_of_many && (is_large || (self.grown && !is_recent(self.gave_back)));
        self.grown |= is_large;
        let is_lent = Arc::strong_count(&self.lent) > 1;
        let options = if gives_back {
            &self.watched.shrink
        } else {
            &self.watched.keep
        };
        self.watched.begin(deadline);
        let outputs = self.session.run_with_options(values.as_slice(), options);
        let is_ended = self.watched.end();
        let outputs = outputs.map_err(|error| {
            if is_ended {
                Error::DeadlineExceeded
            } else {
                Error::run(&error)
            }
        })?;
        let ran = Instant::now();
        if is_large {
            self.large = Some(ran);
        }
        if gives_back {
            // What was lent, and what this run itself took, cannot be given back yet.
            self.grown = is_large || is_lent;
            self.gave_back = Some(ran);
        }
        let outputs = match requests {
            [_] if is_one_of_many => lend_outputs(signature, outputs, &inputs, &self.lent)?,
            _ => take_outputs(signature, &outputs, requests)?,
        };
        Ok(Run {
            outputs,
            times: RunTimes {
                input: prepared - started,
                infer: ran - prepared,
                output: ran.elapsed(),
            },
        })
    }
}

impl Backend for Instance {
    fn run(&mut self, signature: &Signature, requests: &[&[Tensor]], deadline: Option<Instant>) -> Result<Run> {
        // A panic in the binding must answer the callers instead of ending the thread that serves them.
        catch_unwind(AssertUnwindSafe(|| self.run_unguarded(signature, requests, deadline))).unwrap_or_else(|panic| {
            let detail = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("it panicked");
            Err(Error::Broken {
                detail: detail.to_owned(),
            })
        })
    }
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Instance").finish_non_exhaustive()
    }
}

/// One input of a run: the same input of all requests.
struct Input<'a> {
    parts: Vec<&'a Tensor>,
    shape: Vec<i64>,
    count: usize,
    /// The elements, where they had to be copied: merged, or moved to an aligned address.
    copied: Option<TensorData>,
}

impl<'a> Input<'a> {
    fn new(parts: Vec<&'a Tensor>) -> Result<Self> {
        let (shape, copied) = match parts.as_slice() {
            [only] => (only.shape().to_vec(), misaligned(only).then(|| only.aligned_copy())),
            [first, ..] => {
                let shape = concat_shape(&parts)?;
                let count = element_count(first.name(), &shape)?;
                (shape, Some(concat_data(first.datatype(), count, &parts)))
            }
            [] => (Vec::new(), None),
        };
        Ok(Self {
            count: parts.iter().map(|part| part.elements()).sum(),
            parts,
            shape,
            copied,
        })
    }

    /// The elements, where the session reads them.
    fn data(&self) -> Option<&TensorData> {
        self.copied
            .as_ref()
            .or_else(|| self.parts.first().map(|first| first.data()))
    }

    /// Whether these bytes are its elements, and not a copy of them.
    fn holds(&self, bytes: &[u8]) -> bool {
        let (Some(first), Some(data)) = (self.parts.first(), self.data()) else {
            return false;
        };
        with_element!(
            first.datatype(),
            T => borrowed::<T>(data).is_some_and(|values| values.as_bytes().as_ptr_range().contains(&bytes.as_ptr())),
            text => false,
        )
    }

    /// The value that the session borrows.
    fn value(&self) -> Result<SessionInputValue<'_>> {
        let (Some(first), Some(data)) = (self.parts.first(), self.data()) else {
            return Err(Error::Broken {
                detail: "a run without requests".to_owned(),
            });
        };
        with_element!(
            first.datatype(),
            T => {
                let values = borrowed::<T>(data).ok_or_else(|| Error::tensor(first.name(), "its elements are not aligned"))?;
                TensorRef::from_array_view((self.shape.as_slice(), values))
                    .map(SessionInputValue::from)
                    .map_err(|error| Error::run(&error))
            },
            // Strings are always copied, because ONNX Runtime keeps its own.
            text => {
                let texts = texts(first.name(), data).map(|text| text.map(str::to_owned));
                let texts = texts.collect::<Result<Vec<_>>>()?;
                ort::value::Tensor::from_string_array((self.shape.as_slice(), texts.as_slice()))
                    .map(SessionInputValue::from)
                    .map_err(|error| Error::tensor(first.name(), error.message()))
            }
        )
    }
}

/// Checks that elements of `BYTES` can be handed to ONNX Runtime: its strings are UTF-8, and its interface ends them at a NUL.
///
/// # Errors
/// `InvalidTensor` naming the element that cannot.
pub(crate) fn check_texts(tensor: &Tensor) -> Result<()> {
    texts(tensor.name(), tensor.data()).try_for_each(|text| text.map(drop))
}

fn texts<'a>(name: &'a str, data: &'a TensorData) -> impl Iterator<Item = Result<&'a str>> {
    byte_strings(data).iter().enumerate().map(move |(index, value)| {
        let wrong = |what| Error::tensor(name, format!("element {index} {what}"));
        if value.contains(&0) {
            return Err(wrong("contains a NUL, which a model's strings cannot carry: remove it"));
        }
        std::str::from_utf8(value).map_err(|_| wrong("is not UTF-8, and ONNX's strings are: decode it first"))
    })
}

/// Typed elements, borrowed from typed storage or from aligned bytes.
fn borrowed<T: Element>(data: &TensorData) -> Option<&[T]> {
    match data {
        TensorData::Raw(bytes) => in_place(bytes),
        _ => T::typed(data),
    }
}

/// Whether the elements are bytes at an address that their type cannot be read from.
fn misaligned(tensor: &Tensor) -> bool {
    match tensor.data() {
        TensorData::Raw(bytes) => with_element!(
            tensor.datatype(),
            T => in_place::<T>(bytes).is_none(),
            text => false,
        ),
        _ => false,
    }
}

/// The outputs of each request, copied out of the session's memory once.
fn take_outputs(
    signature: &Signature,
    outputs: &SessionOutputs<'_>,
    requests: &[&[Tensor]],
) -> Result<Vec<Vec<Tensor>>> {
    let rows: Option<Vec<usize>> = (requests.len() > 1).then(|| {
        requests
            .iter()
            .map(|request| request.first().and_then(Tensor::rows).unwrap_or(0))
            .collect()
    });
    let mut taken: Vec<Vec<Tensor>> = requests
        .iter()
        .map(|_| Vec::with_capacity(signature.outputs.len()))
        .collect();
    for (index, spec) in signature.outputs.iter().enumerate() {
        let tensors = read_output(&spec.name, &outputs[index], rows.as_deref())?;
        for (request, tensor) in taken.iter_mut().zip(tensors) {
            request.push(tensor);
        }
    }
    Ok(taken)
}

/// The outputs of a single request, the large ones where they lie.
fn lend_outputs(
    signature: &Signature,
    outputs: SessionOutputs<'_>,
    inputs: &[Input<'_>],
    lent: &Arc<()>,
) -> Result<Vec<Vec<Tensor>>> {
    let mut tensors = Vec::with_capacity(signature.outputs.len());
    for (spec, (_, value)) in signature.outputs.iter().zip(outputs) {
        let output = Lent {
            datatype: output_type(&spec.name, &value)?,
            value,
            _of: Arc::clone(lent),
        };
        let bytes = output.as_ref();
        // An output that is an input of the graph lies in the request's memory, which ends with the request.
        if bytes.len() < LENT_BYTES || inputs.iter().any(|input| input.holds(bytes)) {
            tensors.extend(read_output(&spec.name, &output.value, None)?);
            continue;
        }
        let datatype = output.datatype;
        let shape = output.value.dtype().tensor_shape().map(|shape| shape.to_vec());
        let bytes = Bytes::from_owner(output);
        tensors.push(Tensor::from_raw(
            &spec.name,
            datatype,
            shape.unwrap_or_default(),
            bytes,
        )?);
    }
    Ok(vec![tensors])
}

/// An output that lies in the arena of the session that made it. It keeps the arena, not the session. Strings have no bytes.
struct Lent {
    value: DynValue,
    datatype: DataType,
    _of: Arc<()>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        with_element!(
            self.datatype,
            T => self.value.try_extract_tensor::<T>().map_or(&[], |(_, values)| values.as_bytes()),
            text => &[],
        )
    }
}

fn output_type(name: &str, value: &DynValue) -> Result<DataType> {
    let datatype = value.dtype().tensor_type().and_then(DataType::from_onnx);
    datatype.ok_or_else(|| Error::output(name, format!("it came out as {}", value.dtype())))
}

/// One output, whole or by the rows of each request.
fn read_output(name: &str, value: &DynValue, rows: Option<&[usize]>) -> Result<Vec<Tensor>> {
    let datatype = output_type(name, value)?;
    let invalid = |error: ort::Error| Error::output(name, error.message());
    with_element!(
        datatype,
        T => {
            let (shape, values) = value.try_extract_tensor::<T>().map_err(invalid)?;
            split(name, shape, values, rows, |values| T::wrap(values.to_vec()))
        },
        text => {
            let (shape, values) = read_strings(value).map_err(invalid)?;
            split(name, &shape, &values, rows, |values| TensorData::Bytes(values.to_vec()))
        },
    )
}

fn read_strings(value: &DynValue) -> Result<(Vec<i64>, Vec<Vec<u8>>), ort::Error> {
    let shape = value
        .dtype()
        .tensor_shape()
        .map(|shape| shape.to_vec())
        .unwrap_or_default();
    if shape.contains(&0) {
        return Ok((shape, Vec::new()));
    }
    let (_, values) = value.try_extract_strings()?;
    Ok((shape, values.into_iter().map(String::into_bytes).collect()))
}

/// The output as tensors: one, or one for each number of rows.
fn split<V>(
    name: &str,
    shape: &[i64],
    values: &[V],
    rows: Option<&[usize]>,
    store: impl Fn(&[V]) -> TensorData,
) -> Result<Vec<Tensor>> {
    let Some(rows) = rows else {
        return Ok(vec![Tensor::new(name, shape.to_vec(), store(values))?]);
    };
    let total: usize = rows.iter().sum();
    let not_splittable = || Error::not_splittable(name, shape, total);
    if shape.first().copied() != i64::try_from(total).ok() {
        return Err(not_splittable());
    }
    let width = values.len().checked_div(total).unwrap_or(0);
    let mut start = 0;
    rows.iter()
        .map(|&count| {
            let end = start + count * width;
            let own = values.get(start..end).ok_or_else(not_splittable)?;
            start = end;
            let mut shape = shape.to_vec();
            if let Some(first) = shape.first_mut() {
                *first = count as i64;
            }
            Tensor::new(name, shape, store(own))
        })
        .collect()
}
