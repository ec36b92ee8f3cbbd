//! A named tensor, checked once when it is made.

use std::{borrow::Cow, ops::Range};

use bytes::Bytes;
use zerocopy::IntoBytes;

use crate::{
    datatype::DataType,
    element::{Element, Storage, TensorData, append, in_place, with_element},
    error::{Error, Result},
};

/// The most elements that one tensor may have: 1 GiB of `FP32`.
pub const MAX_ELEMENTS: usize = 1 << 28;

/// The most dimensions that one tensor may have.
pub const MAX_RANK: usize = 32;

/// The bytes of the length before each element of raw `BYTES`.
const LENGTH_PREFIX_BYTES: usize = 4;

/// A named tensor: its elements are exactly as many as its shape says, and each is valid for its datatype.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    name: String,
    datatype: DataType,
    shape: Vec<i64>,
    data: TensorData,
}

impl Tensor {
    /// A tensor of typed elements in row-major order.
    ///
    /// # Errors
    /// `InvalidTensor` if the number of elements is not the shape's, the shape is invalid, or the data is raw (which
    /// needs [`Tensor::from_raw`], because bytes do not know their datatype).
    pub fn new(name: impl Into<String>, shape: Vec<i64>, data: TensorData) -> Result<Self> {
        let name = name.into();
        let Some(datatype) = data.datatype() else {
            return Err(Error::tensor(&name, "raw bytes have no datatype of their own: name it"));
        };
        let expected = element_count(&name, &shape)?;
        let found =
            with_element!(datatype, T => T::typed(&data).map_or(0, <[T]>::len), text => byte_strings(&data).len());
        if expected != found {
            return Err(Error::tensor(
                &name,
                format!("shape {shape:?} holds {expected} elements, got {found}"),
            ));
        }
        Ok(Self {
            name,
            datatype,
            shape,
            data,
        })
    }

    /// A tensor of numbers in row-major order.
    ///
    /// # Errors
    /// As [`Tensor::new`].
    pub fn from_vec<T: Element>(name: impl Into<String>, shape: Vec<i64>, values: Vec<T>) -> Result<Self> {
        Self::new(name, shape, T::wrap(values))
    }

    /// A tensor of strings in row-major order.
    ///
    /// # Errors
    /// As [`Tensor::new`].
    pub fn from_strings(name: impl Into<String>, shape: Vec<i64>, values: Vec<String>) -> Result<Self> {
        let values = values.into_iter().map(String::into_bytes).collect();
        Self::new(name, shape, TensorData::Bytes(values))
    }

    /// A tensor from the protocol's raw contents: little-endian elements, or for `BYTES` each element's length as a
    /// little-endian `u32` followed by its bytes. Numbers are kept as the bytes they are; elements of `BYTES` are taken apart.
    ///
    /// # Errors
    /// `InvalidTensor` if the bytes are not exactly the shape's elements, or a `BOOL` is neither 0 nor 1.
    pub fn from_raw(name: impl Into<String>, datatype: DataType, shape: Vec<i64>, bytes: Bytes) -> Result<Self> {
        let name = name.into();
        let count = element_count(&name, &shape)?;
        let data = match datatype.size_bytes() {
            None => TensorData::Bytes(parse_byte_strings(&name, count, &bytes)?),
            Some(size) => {
                // Cannot overflow: the count is at most MAX_ELEMENTS.
                if bytes.len() != count * size {
                    return Err(Error::tensor(
                        &name,
                        format!(
                            "shape {shape:?} of {datatype} takes {} bytes, got {}",
                            count * size,
                            bytes.len()
                        ),
                    ));
                }
                if datatype == DataType::Bool && in_place::<bool>(&bytes).is_none() {
                    return Err(Error::tensor(&name, "a BOOL is one byte, 0 or 1, got another value"));
                }
                TensorData::Raw(bytes)
            }
        };
        Ok(Self {
            name,
            datatype,
            shape,
            data,
        })
    }

    /// A tensor of zeros, `false` or empty strings.
    ///
    /// # Errors
    /// `InvalidTensor` if the shape is invalid.
    pub fn zeros(name: impl Into<String>, datatype: DataType, shape: Vec<i64>) -> Result<Self> {
        let name = name.into();
        let count = element_count(&name, &shape)?;
        let data = with_element!(
            datatype,
            T => T::wrap(vec![T::default(); count]),
            text => TensorData::Bytes(vec![Vec::new(); count]),
        );
        Ok(Self {
            name,
            datatype,
            shape,
            data,
        })
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The datatype.
    pub const fn datatype(&self) -> DataType {
        self.datatype
    }

    /// The dimensions, none negative.
    pub fn shape(&self) -> &[i64] {
        &self.shape
    }

    /// The elements as they are stored.
    pub const fn data(&self) -> &TensorData {
        &self.data
    }

    /// The number of elements.
    pub fn elements(&self) -> usize {
        match (&self.data, self.datatype.size_bytes()) {
            (TensorData::Raw(bytes), Some(size)) => bytes.len() / size,
            (data, _) => with_element!(
                self.datatype,
                T => T::typed(data).map_or(0, <[T]>::len),
                text => byte_strings(data).len(),
            ),
        }
    }

    /// The first dimension; `None` for a scalar.
    pub fn rows(&self) -> Option<usize> {
        self.shape.first().and_then(|&rows| usize::try_from(rows).ok())
    }

    /// The same tensor under another name.
    pub fn renamed(self, name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ..self
        }
    }

    /// The elements as numbers; borrowed, unless they are raw bytes at an odd address.
    ///
    /// # Errors
    /// `InvalidTensor` if the datatype is another.
    pub fn values<T: Element>(&self) -> Result<Cow<'_, [T]>> {
        if T::DATATYPE != self.datatype {
            return Err(Error::tensor(
                &self.name,
                format!("expected {}, got {}", T::DATATYPE, self.datatype),
            ));
        }
        if let Some(values) = T::typed(&self.data) {
            return Ok(Cow::Borrowed(values));
        }
        if let TensorData::Raw(bytes) = &self.data
            && let Some(values) = in_place(bytes)
        {
            return Ok(Cow::Borrowed(values));
        }
        let mut values = Vec::new();
        append(&mut values, &self.data);
        Ok(Cow::Owned(values))
    }

    /// The elements as texts.
    ///
    /// # Errors
    /// `InvalidTensor` if the datatype is not `BYTES`, or an element is not UTF-8.
    pub fn strings(&self) -> Result<Vec<&str>> {
        let TensorData::Bytes(values) = &self.data else {
            return Err(Error::tensor(
                &self.name,
                format!("expected {}, got {}", DataType::Bytes, self.datatype),
            ));
        };
        let texts = values.iter().enumerate().map(|(index, value)| {
            std::str::from_utf8(value).map_err(|_| Error::tensor(&self.name, format!("element {index} is not UTF-8")))
        });
        texts.collect()
    }

    /// The elements of numbers as little-endian bytes, without a copy; none for `BYTES`.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        if let TensorData::Raw(bytes) = &self.data {
            return Some(bytes);
        }
        with_element!(self.datatype, T => T::typed(&self.data).map(IntoBytes::as_bytes), text => None)
    }

    /// The elements as the protocol's raw contents, in the form that [`Tensor::from_raw`] takes. Numbers are handed
    /// over without a copy.
    ///
    /// # Errors
    /// `InvalidTensor` if a string is longer than a `u32` can say.
    pub fn into_raw(self) -> Result<Bytes> {
        Ok(match self.data {
            TensorData::Raw(bytes) => bytes,
            TensorData::Bytes(values) => write_byte_strings(&self.name, &values)?,
            TensorData::Uint8(values) => Bytes::from(values),
            TensorData::Bool(values) => owned_bytes(values),
            TensorData::Uint16(values) => owned_bytes(values),
            TensorData::Uint32(values) => owned_bytes(values),
            TensorData::Uint64(values) => owned_bytes(values),
            TensorData::Int8(values) => owned_bytes(values),
            TensorData::Int16(values) => owned_bytes(values),
            TensorData::Int32(values) => owned_bytes(values),
            TensorData::Int64(values) => owned_bytes(values),
            TensorData::Fp16(values) => owned_bytes(values),
            TensorData::Bf16(values) => owned_bytes(values),
            TensorData::Fp32(values) => owned_bytes(values),
            TensorData::Fp64(values) => owned_bytes(values),
        })
    }

    /// Some of the rows, along the first dimension.
    ///
    /// # Errors
    /// `InvalidTensor` for a scalar, or for rows that it does not have.
    pub fn slice_rows(&self, rows: Range<usize>) -> Result<Self> {
        let total = self
            .rows()
            .ok_or_else(|| Error::tensor(&self.name, "a scalar has no rows"))?;
        if rows.start > rows.end || rows.end > total {
            return Err(Error::tensor(
                &self.name,
                format!("rows {}..{} of {total} do not exist", rows.start, rows.end),
            ));
        }
        let width = self.elements().checked_div(total).unwrap_or(0);
        let range = rows.start * width..rows.end * width;
        let data = match (&self.data, self.datatype.size_bytes()) {
            (TensorData::Raw(bytes), Some(size)) => TensorData::Raw(bytes.slice(range.start * size..range.end * size)),
            (data, _) => with_element!(
                self.datatype,
                T => T::wrap(T::typed(data).and_then(|values| values.get(range)).unwrap_or_default().to_vec()),
                text => TensorData::Bytes(byte_strings(data).get(range).unwrap_or_default().to_vec()),
            ),
        };
        let mut shape = self.shape.clone();
        if let Some(first) = shape.first_mut() {
            *first = rows.len() as i64;
        }
        Ok(Self {
            name: self.name.clone(),
            datatype: self.datatype,
            shape,
            data,
        })
    }

    /// The rows of all tensors, one after the other, under the first one's name.
    ///
    /// # Errors
    /// `InvalidTensor` if they differ in datatype or in any dimension but the first, there are none, or the sum has
    /// too many elements.
    pub fn concat_rows(parts: &[&Self]) -> Result<Self> {
        let Some(first) = parts.first() else {
            return Err(Error::tensor("", "there is no tensor to concatenate"));
        };
        let shape = concat_shape(parts)?;
        let count = element_count(&first.name, &shape)?;
        Ok(Self {
            name: first.name.clone(),
            datatype: first.datatype,
            shape,
            data: concat_data(first.datatype, count, parts),
        })
    }

    /// Copies the elements where they may be a part of somebody else's memory, so that the tensor holds no more than it is.
    pub fn own(&mut self) {
        if let TensorData::Raw(bytes) = &mut self.data {
            *bytes = Bytes::copy_from_slice(bytes);
        }
    }

    /// The elements copied into an aligned vector.
    pub(crate) fn aligned_copy(&self) -> TensorData {
        concat_data(self.datatype, self.elements(), &[self])
    }
}

/// The number of elements of a shape.
///
/// # Errors
/// `InvalidTensor` if a dimension is negative, or the rank or the product is above its limit; no product overflows.
pub(crate) fn element_count(name: &str, shape: &[i64]) -> Result<usize> {
    if shape.len() > MAX_RANK {
        return Err(Error::tensor(
            name,
            format!("it has {} dimensions, at most {MAX_RANK} are possible", shape.len()),
        ));
    }
    let mut count = Some(1_usize);
    let mut empty = false;
    for &dimension in shape {
        let size = usize::try_from(dimension)
            .map_err(|_| Error::tensor(name, format!("shape {shape:?} has a negative dimension")))?;
        empty |= size == 0;
        count = count.and_then(|count| count.checked_mul(size.max(1)));
    }
    match count {
        // A shape such as [0, 2^40, 2^40] is refused too: its other dimensions would overflow elsewhere.
        Some(count) if count <= MAX_ELEMENTS => Ok(if empty { 0 } else { count }),
        _ => Err(Error::tensor(
            name,
            format!("shape {shape:?} has more than the {MAX_ELEMENTS} elements allowed: send less at once"),
        )),
    }
}

/// The shape of the parts' rows together.
pub(crate) fn concat_shape(parts: &[&Tensor]) -> Result<Vec<i64>> {
    let mut shape: Vec<i64> = parts.first().map(|part| part.shape.clone()).unwrap_or_default();
    let mut rows = 0_i64;
    for part in parts {
        let same = part.shape.get(1..) == shape.get(1..) && parts.first().is_some_and(|p| p.datatype == part.datatype);
        match part.shape.first() {
            Some(&more) if same => rows = rows.saturating_add(more),
            _ => {
                return Err(Error::tensor(
                    &part.name,
                    format!("shape {:?} cannot be put below rows of shape {shape:?}", part.shape),
                ));
            }
        }
    }
    if let Some(first) = shape.first_mut() {
        *first = rows;
    }
    Ok(shape)
}

/// The elements of all parts in one vector; the parts' datatype is `datatype`.
pub(crate) fn concat_data(datatype: DataType, count: usize, parts: &[&Tensor]) -> TensorData {
    with_element!(
        datatype,
        T => {
            // A single part makes its own room.
            let mut values = Vec::<T>::with_capacity(if parts.len() > 1 { count } else { 0 });
            for part in parts {
                append(&mut values, &part.data);
            }
            T::wrap(values)
        },
        text => {
            let mut values = Vec::with_capacity(count);
            for part in parts {
                values.extend_from_slice(byte_strings(&part.data));
            }
            TensorData::Bytes(values)
        },
    )
}

/// The elements of `BYTES`; none if it holds numbers.
pub(crate) fn byte_strings(data: &TensorData) -> &[Vec<u8>] {
    match data {
        TensorData::Bytes(values) => values,
        _ => &[],
    }
}

/// Elements as bytes, without a copy.
fn owned_bytes<T: Element>(values: Vec<T>) -> Bytes {
    struct Owner<T>(Vec<T>);
    impl<T: Element> AsRef<[u8]> for Owner<T> {
        fn as_ref(&self) -> &[u8] {
            self.0.as_bytes()
        }
    }
    Bytes::from_owner(Owner(values))
}

fn parse_byte_strings(name: &str, count: usize, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
    // Each element takes its prefix at least, so a lie about the count cannot make this allocate much.
    if bytes.len() / LENGTH_PREFIX_BYTES < count {
        return Err(Error::tensor(
            name,
            format!(
                "{count} elements of BYTES take {LENGTH_PREFIX_BYTES} bytes of length each at least, got {} bytes",
                bytes.len()
            ),
        ));
    }
    let mut values = Vec::with_capacity(count);
    let mut rest = bytes;
    for index in 0..count {
        let cut = || Error::tensor(name, format!("the bytes end within element {index} of {count}"));
        let (prefix, tail) = rest.split_first_chunk().ok_or_else(cut)?;
        let length = u32::from_le_bytes(*prefix) as usize;
        let (element, tail) = tail.split_at_checked(length).ok_or_else(cut)?;
        values.push(element.to_vec());
        rest = tail;
    }
    if rest.is_empty() {
        Ok(values)
    } else {
        Err(Error::tensor(
            name,
            format!("{} bytes follow the last of {count} elements", rest.len()),
        ))
    }
}

fn write_byte_strings(name: &str, values: &[Vec<u8>]) -> Result<Bytes> {
    let total = values.iter().map(|value| LENGTH_PREFIX_BYTES + value.len()).sum();
    let mut bytes = Vec::with_capacity(total);
    for value in values {
        let length =
            u32::try_from(value.len()).map_err(|_| Error::tensor(name, "a string of 4 GiB or more has no raw form"))?;
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(value);
    }
    Ok(Bytes::from(bytes))
}

#[cfg(test)]
#[path = "tensor_tests.rs"]
mod tests;
