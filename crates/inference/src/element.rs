//! The elements of a tensor: the Rust types behind the datatypes, and the storage that holds them.

use std::fmt;

use bytes::Bytes;
use half::{bf16, f16};
use ort::value::PrimitiveTensorElementType;
use zerocopy::{FromBytes, Immutable, IntoBytes, TryFromBytes};

use crate::datatype::DataType;

/// A tensor's elements, in row-major order.
#[derive(Debug, Clone, PartialEq)]
pub enum TensorData {
    /// Elements of `BOOL`.
    Bool(Vec<bool>),
    /// Elements of `UINT8`.
    Uint8(Vec<u8>),
    /// Elements of `UINT16`.
    Uint16(Vec<u16>),
    /// Elements of `UINT32`.
    Uint32(Vec<u32>),
    /// Elements of `UINT64`.
    Uint64(Vec<u64>),
    /// Elements of `INT8`.
    Int8(Vec<i8>),
    /// Elements of `INT16`.
    Int16(Vec<i16>),
    /// Elements of `INT32`.
    Int32(Vec<i32>),
    /// Elements of `INT64`.
    Int64(Vec<i64>),
    /// Elements of `FP16`.
    Fp16(Vec<f16>),
    /// Elements of `BF16`.
    Bf16(Vec<bf16>),
    /// Elements of `FP32`.
    Fp32(Vec<f32>),
    /// Elements of `FP64`.
    Fp64(Vec<f64>),
    /// Elements of `BYTES`: texts mostly, but whoever runs the model may take any bytes.
    Bytes(Vec<Vec<u8>>),
    /// Elements of any datatype but `BYTES`, little endian, as they were received. A run borrows them where they are
    /// aligned for their type, and copies them once where they are not.
    Raw(Bytes),
}

impl TensorData {
    /// The datatype; `None` for raw bytes, which do not know theirs.
    pub const fn datatype(&self) -> Option<DataType> {
        Some(match self {
            Self::Bool(_) => DataType::Bool,
            Self::Uint8(_) => DataType::Uint8,
            Self::Uint16(_) => DataType::Uint16,
            Self::Uint32(_) => DataType::Uint32,
            Self::Uint64(_) => DataType::Uint64,
            Self::Int8(_) => DataType::Int8,
            Self::Int16(_) => DataType::Int16,
            Self::Int32(_) => DataType::Int32,
            Self::Int64(_) => DataType::Int64,
            Self::Fp16(_) => DataType::Fp16,
            Self::Bf16(_) => DataType::Bf16,
            Self::Fp32(_) => DataType::Fp32,
            Self::Fp64(_) => DataType::Fp64,
            Self::Bytes(_) => DataType::Bytes,
            Self::Raw(_) => return None,
        })
    }
}

mod sealed {
    use super::TensorData;

    /// What this crate needs of an element; closed, because the set of datatypes is.
    pub trait Storage: Sized {
        /// Elements as storage.
        fn wrap(values: Vec<Self>) -> TensorData;
        /// The elements, where the storage is of this type.
        fn typed(data: &TensorData) -> Option<&[Self]>;
        /// Appends the elements of little-endian bytes at any address; those that are none are left out.
        fn append_bytes(values: &mut Vec<Self>, bytes: &[u8]);
        /// The element nearest to a number.
        fn nearest(number: f64) -> Self;
    }
}
pub(crate) use sealed::Storage;

/// A Rust type that a tensor can hold: `bool`, the integers, [`f16`](crate::f16), [`bf16`](crate::bf16), `f32` and `f64`.
pub trait Element:
    Storage
    + Copy
    + Default
    + fmt::Debug
    + Send
    + Sync
    + 'static
    + PrimitiveTensorElementType
    + TryFromBytes
    + IntoBytes
    + Immutable
{
    /// The datatype of this type.
    const DATATYPE: DataType;
}

macro_rules! element {
    ($type:ty, $variant:ident, ($values:ident, $bytes:ident) => $append:expr, $number:ident => $nearest:expr) => {
        impl Storage for $type {
            fn wrap(values: Vec<Self>) -> TensorData {
                TensorData::$variant(values)
            }
            fn typed(data: &TensorData) -> Option<&[Self]> {
                match data {
                    TensorData::$variant(values) => Some(values),
                    _ => None,
                }
            }
            fn append_bytes($values: &mut Vec<Self>, $bytes: &[u8]) {
                $append
            }
            fn nearest($number: f64) -> Self {
                $nearest
            }
        }
        impl Element for $type {
            const DATATYPE: DataType = DataType::$variant;
        }
    };
    ($type:ty, $variant:ident, $number:ident => $nearest:expr) => {
        element!(
            $type,
            $variant,
            (values, bytes) => append_copied(values, bytes),
            $number => $nearest
        );
    };
    ($type:ty, $variant:ident) => {
        element!($type, $variant, number => number as $type);
    };
}

element!(
    bool,
    Bool,
    (values, bytes) => values.extend(bytes.iter().filter(|byte| **byte <= 1).map(|byte| *byte == 1)),
    number => number != 0.0
);
element!(u8, Uint8);
element!(u16, Uint16);
element!(u32, Uint32);
element!(u64, Uint64);
element!(i8, Int8);
element!(i16, Int16);
element!(i32, Int32);
element!(i64, Int64);
element!(f16, Fp16, number => Self::from_f64(number));
element!(bf16, Bf16, number => Self::from_f64(number));
element!(f32, Fp32);
element!(f64, Fp64);

/// Evaluates the first expression with `$T` as the Rust type of the datatype, or the second for `BYTES`.
macro_rules! with_element {
    ($datatype:expr, $T:ident => $numbers:expr, text => $text:expr $(,)?) => {
        match $datatype {
            $crate::datatype::DataType::Bool => {
                type $T = bool;
                $numbers
            }
            $crate::datatype::DataType::Uint8 => {
                type $T = u8;
                $numbers
            }
            $crate::datatype::DataType::Uint16 => {
                type $T = u16;
                $numbers
            }
            $crate::datatype::DataType::Uint32 => {
                type $T = u32;
                $numbers
            }
            $crate::datatype::DataType::Uint64 => {
                type $T = u64;
                $numbers
            }
            $crate::datatype::DataType::Int8 => {
                type $T = i8;
                $numbers
            }
            $crate::datatype::DataType::Int16 => {
                type $T = i16;
                $numbers
            }
            $crate::datatype::DataType::Int32 => {
                type $T = i32;
                $numbers
            }
            $crate::datatype::DataType::Int64 => {
                type $T = i64;
                $numbers
            }
            $crate::datatype::DataType::Fp16 => {
                type $T = half::f16;
                $numbers
            }
            $crate::datatype::DataType::Bf16 => {
                type $T = half::bf16;
                $numbers
            }
            $crate::datatype::DataType::Fp32 => {
                type $T = f32;
                $numbers
            }
            $crate::datatype::DataType::Fp64 => {
                type $T = f64;
                $numbers
            }
            $crate::datatype::DataType::Bytes => $text,
        }
    };
}
pub(crate) use with_element;

/// The elements of little-endian bytes in place; `None` where they are not aligned for the type (or, for `bool`, not
/// 0 or 1).
pub(crate) fn in_place<T: Element>(bytes: &[u8]) -> Option<&[T]> {
    <[T]>::try_ref_from_bytes(bytes).ok()
}

/// Appends little-endian bytes, every one of which is part of a number.
fn append_copied<T: Element + FromBytes>(values: &mut Vec<T>, bytes: &[u8]) {
    let count = bytes.len() / size_of::<T>();
    let bytes = bytes.get(..count * size_of::<T>()).unwrap_or_default();
    let start = values.len();
    if values.capacity() == 0 {
        // Memory that the system gives is zero already.
        *values = vec![T::default(); count];
    } else {
        values.resize(start + count, T::default());
    }
    if let Some(new) = values.get_mut(start..) {
        new.as_mut_bytes().copy_from_slice(bytes);
    }
}

/// Appends the elements of storage to `out`; bytes that are no element are left out, which a checked tensor has none of.
pub(crate) fn append<T: Element>(out: &mut Vec<T>, data: &TensorData) {
    if let Some(values) = T::typed(data) {
        out.extend_from_slice(values);
    } else if let TensorData::Raw(bytes) = data {
        match in_place::<T>(bytes) {
            Some(values) => out.extend_from_slice(values),
            None => T::append_bytes(out, bytes),
        }
    }
}
