//! A tensor's JSON data, read straight into its elements.
//!
//! The data is flat, or nested with lists of one length on each level: as deep as the shape has dimensions it must be as the shape
//! says, and otherwise only the number of elements counts. Integers must be integers in the range of the datatype. Floats are numbers, `null` or `"NaN"` for NaN, and `"Infinity"` and `"-Infinity"`; a number beyond the
//! range of the datatype is refused. Strings must be strings.

use std::fmt;

use jiter::{Jiter, Peek};
use modelyard_inference::{DataType, TensorData, bf16, f16};
use serde::{
    Deserializer,
    de::{DeserializeSeed, Error, SeqAccess, Visitor},
};

use super::json::Fault;

/// The most characters of a value that an error shows.
const MAX_SHOWN_CHARACTERS: usize = 64;

/// The deepest nesting of data.
const MAX_DEPTH: usize = 128;

/// How a JSON value becomes an element; `None`: it does not.
trait Scalar: Sized {
    const EXPECTED: &'static str;
    /// Whether numbers become elements as floats; else as the digits that they are.
    const IS_FLOAT: bool = false;

    fn from_digits(_: &str) -> Option<Self> {
        None
    }
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

            fn from_digits(digits: &str) -> Option<Self> {
                digits.parse().ok()
            }
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
            const IS_FLOAT: bool = true;

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

impl Scalar for Vec<u8> {
    const EXPECTED: &'static str = "a string";

    fn from_text(value: &str) -> Option<Self> {
        Some(value.into())
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

/// What an expression makes of a vector's type that fits a datatype, as data.
macro_rules! data_of {
    ($datatype:expr, $values:expr) => {
        match $datatype {
            DataType::Bool => TensorData::Bool($values),
            DataType::Uint8 => TensorData::Uint8($values),
            DataType::Uint16 => TensorData::Uint16($values),
            DataType::Uint32 => TensorData::Uint32($values),
            DataType::Uint64 => TensorData::Uint64($values),
            DataType::Int8 => TensorData::Int8($values),
            DataType::Int16 => TensorData::Int16($values),
            DataType::Int32 => TensorData::Int32($values),
            DataType::Int64 => TensorData::Int64($values),
            DataType::Fp16 => TensorData::Fp16($values),
            DataType::Bf16 => TensorData::Bf16($values),
            DataType::Fp32 => TensorData::Fp32($values),
            DataType::Fp64 => TensorData::Fp64($values),
            DataType::Bytes => TensorData::Bytes($values),
        }
    };
}

/// The elements that come next in a text, and the lists that they come in. `count` is how many there will be, if that is known.
///
/// # Errors
/// What is no element, lists of unlike lengths, or no JSON.
pub(super) fn read_elements(
    json: &mut Jiter<'_>,
    datatype: DataType,
    count: usize,
) -> Result<(TensorData, Lists), Fault> {
    let mut lists = Lists::default();
    let data = data_of!(datatype, read_all(json, count, &mut lists)?);
    Ok((data, lists))
}

/// One integer of the text.
///
/// # Errors
/// What is none, or out of the range of INT64.
pub(super) fn read_integer(json: &mut Jiter<'_>, next: Peek) -> Result<i64, Fault> {
    read_one(json, next)
}

fn read_all<T: Scalar>(json: &mut Jiter<'_>, count: usize, lists: &mut Lists) -> Result<Vec<T>, Fault> {
    let mut values = Vec::with_capacity(count);
    let mut next = Some(json.peek()?);
    loop {
        let start = json.current_index();
        let at_start = |what| Fault::at(start, what);
        match next {
            Some(Peek::Array) => {
                lists.open().map_err(at_start)?;
                next = json.known_array()?;
                continue;
            }
            Some(value) => {
                values.push(read_one(json, value)?);
                lists.hold_value().map_err(at_start)?;
            }
            None => lists.close().map_err(at_start)?,
        }
        if lists.depth == 0 {
            // A hint is no reason to keep room for what did not come.
            if values.len() < count {
                values.shrink_to_fit();
            }
            return Ok(values);
        }
        next = json.array_step()?;
    }
}

/// The lists in each other that data comes in: all of a level have one length, and all values lie on the last one.
#[derive(Debug, Default)]
pub(super) struct Lists {
    /// The outermost first.
    levels: Vec<Level>,
    /// How many are open.
    depth: usize,
    has_values: bool,
}

#[derive(Debug, Default)]
struct Level {
    /// The length of its lists, once one of them has ended.
    length: Option<usize>,
    /// How much the list that is open holds.
    holds: usize,
}

impl Lists {
    fn open(&mut self) -> Result<(), String> {
        if self.depth == MAX_DEPTH {
            return Err(format!("the data is nested more than {MAX_DEPTH} times"));
        }
        if self.depth == self.levels.len() {
            if self.has_values {
                return Err("expected a value, as others beside it, got an array".to_owned());
            }
            self.levels.push(Level::default());
        }
        self.hold();
        if let Some(level) = self.levels.get_mut(self.depth) {
            level.holds = 0;
        }
        self.depth += 1;
        Ok(())
    }

    fn hold_value(&mut self) -> Result<(), String> {
        if self.depth != self.levels.len() {
            return Err("expected an array, as others beside it, got a value".to_owned());
        }
        self.has_values = true;
        self.hold();
        Ok(())
    }

    /// The list that is open holds one more.
    fn hold(&mut self) {
        if let Some(level) = self.depth.checked_sub(1).and_then(|open| self.levels.get_mut(open)) {
            level.holds += 1;
        }
    }

    fn close(&mut self) -> Result<(), String> {
        self.depth -= 1;
        let Some(level) = self.levels.get_mut(self.depth) else {
            return Ok(());
        };
        let holds = level.holds;
        match level.length.replace(holds) {
            Some(length) if length != holds => Err(format!(
                "expected an array of {length}, as others beside it, got one of {holds}"
            )),
            _ => Ok(()),
        }
    }

    /// Whether a tensor of this shape may come in them. Those that are as deep as it must say the same.
    pub(super) fn fit(&self, shape: &[i64]) -> bool {
        let lengths = self.lengths().map(|length| length as i64);
        self.levels.len() < 2 || self.levels.len() != shape.len() || lengths.eq(shape.iter().copied())
    }

    fn lengths(&self) -> impl Iterator<Item = usize> {
        self.levels.iter().map(|level| level.length.unwrap_or(0))
    }
}

impl fmt::Display for Lists {
    /// As a shape is written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.lengths()).finish()
    }
}

fn read_one<T: Scalar>(json: &mut Jiter<'_>, next: Peek) -> Result<T, Fault> {
    let start = json.current_index();
    let value = match next {
        Peek::String => T::from_text(json.known_str()?),
        Peek::True | Peek::False => T::from_bool(json.known_bool(next)?),
        Peek::Null => {
            json.known_null()?;
            T::from_null()
        }
        Peek::Array | Peek::Object => {
            json.known_skip(next)?;
            None
        }
        _ if T::IS_FLOAT => T::from_f64(json.known_float(next)?),
        _ => {
            let digits = json.known_number_bytes(next)?;
            std::str::from_utf8(digits).ok().and_then(T::from_digits)
        }
    };
    value.ok_or_else(|| {
        let given = match next {
            Peek::String => "a string".into(),
            Peek::Array => "an array".into(),
            Peek::Object => "an object".into(),
            _ => String::from_utf8_lossy(json.slice_to_current(start)),
        };
        let given: String = given.chars().take(MAX_SHOWN_CHARACTERS).collect();
        Fault::at(start, format!("expected {}, got {given}", T::EXPECTED))
    })
}

/// Reads the elements of a datatype, out of JSON that has been read.
pub(crate) struct DataSeed {
    pub datatype: DataType,
    /// How many there will be, if that is known; only a hint.
    pub count: usize,
}

impl<'de> DeserializeSeed<'de> for DataSeed {
    type Value = TensorData;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<TensorData, D::Error> {
        macro_rules! read {
            () => {{
                let mut values = Vec::with_capacity(self.count);
                Append(&mut values).deserialize(deserializer)?;
                values
            }};
        }
        Ok(data_of!(self.datatype, read!()))
    }
}
