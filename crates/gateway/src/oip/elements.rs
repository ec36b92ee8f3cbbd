//! A tensor's JSON data, read straight into its elements.
//!
//! The data is flat or nested in any way; only the number of elements counts. Integers must be integers in the range of
//! the datatype. Floats are numbers, `null` or `"NaN"` for NaN, and `"Infinity"` and `"-Infinity"`; a number beyond the
//! range of the datatype is refused. Strings must be strings.

use std::fmt;

use modelyard_inference::{DataType, TensorData, bf16, f16};
use serde::{
    Deserializer,
    de::{DeserializeSeed, Error, SeqAccess, Visitor},
};

/// How a JSON value becomes an element; `None`: it does not.
trait Scalar: Sized {
    const EXPECTED: &'static str;

    fn from_bool(_: bool) -> Option<Self> {
        None
    }
    fn from_u64(_: u64) -> Option<Self> {
        None
    }
    fn from_i64(_: i64) -> Option<Self> {
        None
    }
    fn from_f64(_: f64) -> Option<Self> {
        None
    }
    fn from_text(_: &str) -> Option<Self> {
        None
    }
    fn from_null() -> Option<Self> {
        None
    }
}

macro_rules! integers {
    ($($type:ty => $expected:literal),*) => {
        $(impl Scalar for $type {
            const EXPECTED: &'static str = $expected;

            fn from_u64(value: u64) -> Option<Self> {
                value.try_into().ok()
            }
            fn from_i64(value: i64) -> Option<Self> {
                value.try_into().ok()
            }
        })*
    };
}

integers!(
    u8 => "an integer of UINT8", u16 => "an integer of UINT16", u32 => "an integer of UINT32",
    u64 => "an integer of UINT64", i8 => "an integer of INT8", i16 => "an integer of INT16",
    i32 => "an integer of INT32", i64 => "an integer of INT64"
);

macro_rules! floats {
    ($($type:ty, $expected:literal, $narrow:expr);*) => {
        $(impl Scalar for $type {
            const EXPECTED: &'static str = $expected;

            fn from_u64(value: u64) -> Option<Self> {
                <Self as Scalar>::from_f64(value as f64)
            }
            fn from_i64(value: i64) -> Option<Self> {
                <Self as Scalar>::from_f64(value as f64)
            }
            fn from_f64(value: f64) -> Option<Self> {
                let narrow: fn(f64) -> $type = $narrow;
                let narrowed = narrow(value);
                // JSON has no infinity, so that one is a number beyond the range.
                narrowed.is_finite().then_some(narrowed)
            }
            fn from_text(value: &str) -> Option<Self> {
                Some(match value {
                    "NaN" => <$type>::NAN,
                    "Infinity" => <$type>::INFINITY,
                    "-Infinity" => <$type>::NEG_INFINITY,
                    _ => return None,
                })
            }
            fn from_null() -> Option<Self> {
                Some(<$type>::NAN)
            }
        })*
    };
}

floats!(
    f16, "a number of FP16, null or \"NaN\"", f16::from_f64;
    bf16, "a number of BF16, null or \"NaN\"", bf16::from_f64;
    f32, "a number of FP32, null or \"NaN\"", |value| value as f32;
    f64, "a number of FP64, null or \"NaN\"", |value| value
);

impl Scalar for bool {
    const EXPECTED: &'static str = "true or false";

    fn from_bool(value: bool) -> Option<Self> {
        Some(value)
    }
}

impl Scalar for String {
    const EXPECTED: &'static str = "a string";

    fn from_text(value: &str) -> Option<Self> {
        Some(value.to_owned())
    }
}

/// Appends a value, or all values in an array, to the elements.
struct Append<'a, T>(&'a mut Vec<T>);

impl<'de, T: Scalar> DeserializeSeed<'de> for Append<'_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<T: Scalar> Append<'_, T> {
    fn push<E: Error>(self, value: Option<T>, given: &dyn fmt::Display) -> Result<(), E> {
        match value {
            Some(value) => {
                self.0.push(value);
                Ok(())
            }
            None => Err(E::custom(format_args!("expected {}, got {given}", T::EXPECTED))),
        }
    }
}

impl<'de, T: Scalar> Visitor<'de> for Append<'_, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an array of {}", T::EXPECTED)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<(), A::Error> {
        while array.next_element_seed(Append(self.0))?.is_some() {}
        Ok(())
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.push(T::from_bool(value), &value)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.push(T::from_u64(value), &value)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.push(T::from_i64(value), &value)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.push(T::from_f64(value), &value)
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        self.push(T::from_text(value), &"a string")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.push(T::from_null(), &"null")
    }
}

/// Reads the elements of a datatype.
pub(crate) struct DataSeed {
    pub datatype: DataType,
    /// How many there will be, if that is known; only a hint.
    pub count: usize,
}

impl<'de> DeserializeSeed<'de> for DataSeed {
    type Value = TensorData;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<TensorData, D::Error> {
        macro_rules! read {
            ($variant:ident) => {{
                let mut values = Vec::with_capacity(self.count);
                Append(&mut values).deserialize(deserializer)?;
                TensorData::$variant(values)
            }};
        }
        Ok(match self.datatype {
            DataType::Bool => read!(Bool),
            DataType::Uint8 => read!(Uint8),
            DataType::Uint16 => read!(Uint16),
            DataType::Uint32 => read!(Uint32),
            DataType::Uint64 => read!(Uint64),
            DataType::Int8 => read!(Int8),
            DataType::Int16 => read!(Int16),
            DataType::Int32 => read!(Int32),
            DataType::Int64 => read!(Int64),
            DataType::Fp16 => read!(Fp16),
            DataType::Bf16 => read!(Bf16),
            DataType::Fp32 => read!(Fp32),
            DataType::Fp64 => read!(Fp64),
            DataType::Bytes => read!(Text),
        })
    }
}
