//! The JSON of a request, read from front to back as it comes: a reader that knows the request's form takes half the time of one
//! that does not.

use jiter::{Jiter, JiterError, LinePosition, Peek};
use modelyard_inference::{DataType, TensorData};
use serde::de::DeserializeOwned;

use super::{
    MAX_TENSORS,
    elements::{read_elements, read_integer},
};

/// The most elements that are made room for on the word of a shape alone.
const MAX_HINTED_ELEMENTS: usize = 1 << 16;

/// The most characters of an input's name that an error shows.
const MAX_NAME_CHARACTERS: usize = 128;

/// What is wrong with a text, and where.
#[derive(Debug)]
pub(super) struct Fault {
    index: usize,
    what: String,
}

impl Fault {
    /// Something wrong at a byte of the text.
    pub(super) fn at(index: usize, what: impl Into<String>) -> Self {
        Self {
            index,
            what: what.into(),
        }
    }

    /// The same, as a fault of an input, where its name is known by now.
    fn of_input(self, name: Option<&str>) -> Self {
        let Some(name) = name else { return self };
        let name: String = name.chars().take(MAX_NAME_CHARACTERS).collect();
        Self::at(self.index, format!("input `{name}`: {}", self.what))
    }

    /// The same in a text of which this one begins at `start`.
    fn behind(mut self, start: usize) -> Self {
        self.index += start;
        self
    }

    /// The fault in words, for whoever knows the text.
    pub(super) fn describe(&self, text: &[u8]) -> String {
        let position = LinePosition::find(text, self.index);
        let hint = hint_at(text, self.index);
        format!(
            "{} at line {} column {}{hint}",
            self.what, position.line, position.column
        )
    }
}

impl From<JiterError> for Fault {
    fn from(error: JiterError) -> Self {
        Self::at(error.index, error.error_type.to_string())
    }
}

/// What to do where a client's library wrote a float that JSON has no number for, as Python's does.
fn hint_at(text: &[u8], index: usize) -> &'static str {
    // The longest such word with a sign before it, and how far the reader may have come in it.
    const AROUND: usize = 9;
    let around = index.saturating_sub(AROUND)..(index + AROUND).min(text.len());
    let around = String::from_utf8_lossy(text.get(around).unwrap_or_default());
    let is_word = |word: &str| {
        let mut places = around.match_indices(word);
        // In quotation marks it is a text, which is one of the remedies.
        places.any(|(place, _)| {
            let before = around.get(..place).unwrap_or_default();
            !before.trim_end_matches('-').ends_with('"')
        })
    };
    if is_word("NaN") || is_word("Infinity") {
        ": JSON has no NaN and no Infinity: send null, \"NaN\", \"Infinity\" or binary data"
    } else {
        ""
    }
}

/// A request as its JSON says it.
pub(super) struct WireRequest<P> {
    pub id: Option<String>,
    pub parameters: P,
    pub inputs: Vec<WireInput>,
    pub outputs: Vec<WireOutput>,
}

/// An input.
pub(super) struct WireInput {
    pub name: String,
    pub datatype: DataType,
    pub shape: Vec<i64>,
    pub parameters: TensorParameters,
    pub data: Option<TensorData>,
}

/// An output that is wanted.
pub(super) struct WireOutput {
    pub name: String,
    pub parameters: TensorParameters,
}

/// The parameters of a tensor that mean something here; the protocol lets others be.
#[derive(Default)]
pub(super) struct TensorParameters {
    pub binary_data: Option<bool>,
    pub binary_data_size: Option<usize>,
    pub classification: Option<usize>,
    pub in_shared_memory: bool,
}

impl<P: DeserializeOwned + Default> WireRequest<P> {
    /// Reads the whole text.
    ///
    /// # Errors
    /// What is no request.
    pub(super) fn read(text: &[u8]) -> Result<Self, Fault> {
        let json = &mut Jiter::new(text);
        let (mut id, mut parameters, mut inputs, mut outputs) = (None, None, None, None);
        read_object(json, |json, field| {
            match field {
                Field::Id => id = unless_null(json, |json, _| Ok(json.next_str()?.to_owned()))?,
                Field::Parameters => parameters = Some(read_by_serde(json)?),
                Field::Inputs => inputs = Some(read_tensors(json, WireInput::read)?),
                Field::Outputs => outputs = unless_null(json, |json, _| read_tensors(json, WireOutput::read))?,
                _ => json.next_skip()?,
            }
            Ok(())
        })?;
        json.finish()?;
        Ok(Self {
            id,
            parameters: parameters.unwrap_or_default(),
            inputs: inputs.ok_or_else(|| missing(json, "inputs"))?,
            outputs: outputs.unwrap_or_default(),
        })
    }
}

impl WireInput {
    fn read(json: &mut Jiter<'_>) -> Result<Self, Fault> {
        let (mut name, mut datatype, mut shape) = (None::<String>, None, None::<Vec<i64>>);
        let (mut data, mut later, mut parameters) = (None, None, TensorParameters::default());
        read_object(json, |json, field| {
            match field {
                Field::Name => name = Some(json.next_str()?.to_owned()),
                Field::Shape => shape = Some(read_shape(json)?),
                Field::Datatype => datatype = Some(read_datatype(json)?),
                Field::Parameters => parameters = TensorParameters::read(json)?,
                Field::Data => match datatype {
                    Some(datatype) => {
                        let count = shape.as_deref().map_or(0, hinted_elements);
                        let elements = read_elements(json, datatype, count);
                        data = Some(elements.map_err(|fault| fault.of_input(name.as_deref()))?);
                    }
                    // The datatype comes later, and so does the reading.
                    None => later = Some(skipped(json)?),
                },
                _ => json.next_skip()?,
            }
            Ok(())
        })?;
        let name = name.ok_or_else(|| missing(json, "name"))?;
        let datatype = datatype.ok_or_else(|| missing(json, "datatype"))?;
        let shape = shape.ok_or_else(|| missing(json, "shape"))?;
        if let Some((start, text)) = later {
            let elements = read_elements(&mut Jiter::new(text), datatype, hinted_elements(&shape));
            data = Some(elements.map_err(|fault| fault.behind(start).of_input(Some(&name)))?);
        }
        let data = match data {
            None => None,
            Some((data, lists)) if lists.fit(&shape) => Some(data),
            Some((_, lists)) => {
                let what = format!("its data is nested as {lists}, and its shape is {shape:?}");
                return Err(Fault::at(json.current_index(), what).of_input(Some(&name)));
            }
        };
        Ok(Self {
            name,
            datatype,
            shape,
            parameters,
            data,
        })
    }
}

impl WireOutput {
    fn read(json: &mut Jiter<'_>) -> Result<Self, Fault> {
        let (mut name, mut parameters) = (None, TensorParameters::default());
        read_object(json, |json, field| {
            match field {
                Field::Name => name = Some(json.next_str()?.to_owned()),
                Field::Parameters => parameters = TensorParameters::read(json)?,
                _ => json.next_skip()?,
            }
            Ok(())
        })?;
        let name = name.ok_or_else(|| missing(json, "name"))?;
        Ok(Self { name, parameters })
    }
}

impl TensorParameters {
    fn read(json: &mut Jiter<'_>) -> Result<Self, Fault> {
        let mut read = Self::default();
        read_object(json, |json, field| {
            match field {
                Field::BinaryData => read.binary_data = unless_null(json, |json, next| Ok(json.known_bool(next)?))?,
                Field::BinaryDataSize => read.binary_data_size = unless_null(json, read_count)?,
                Field::Classification => read.classification = unless_null(json, read_count)?,
                Field::SharedMemoryRegion => {
                    let region = unless_null(json, |json, next| Ok(json.known_skip(next)?))?;
                    read.in_shared_memory = region.is_some();
                }
                _ => json.next_skip()?,
            }
            Ok(())
        })?;
        Ok(read)
    }
}

macro_rules! fields {
    ($($field:ident = $name:literal),*) => {
        /// The fields that mean something, wherever they do.
        #[derive(Clone, Copy, PartialEq, Eq)]
        enum Field {
            $($field,)*
            Other,
        }

        impl Field {
            fn of(name: &str) -> Self {
                match name {
                    $($name => Self::$field,)*
                    _ => Self::Other,
                }
            }

            const fn name(self) -> &'static str {
                match self {
                    $(Self::$field => $name,)*
                    Self::Other => "",
                }
            }
        }
    };
}

fields!(
    Id = "id",
    Parameters = "parameters",
    Inputs = "inputs",
    Outputs = "outputs",
    Name = "name",
    Shape = "shape",
    Datatype = "datatype",
    Data = "data",
    BinaryData = "binary_data",
    BinaryDataSize = "binary_data_size",
    Classification = "classification",
    SharedMemoryRegion = "shared_memory_region"
);

/// Reads an object, whose fields' values are read by `read`. What is said twice is not said at all.
fn read_object<'a>(
    json: &mut Jiter<'a>,
    mut read: impl FnMut(&mut Jiter<'a>, Field) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let mut seen = 0_u32;
    let mut next = json.next_object()?.map(Field::of);
    while let Some(field) = next {
        let bit = 1 << field as u32;
        if field != Field::Other && seen & bit != 0 {
            let what = format!("duplicate field `{}`", field.name());
            return Err(Fault::at(json.current_index(), what));
        }
        seen |= bit;
        read(json, field)?;
        next = json.next_key()?.map(Field::of);
    }
    Ok(())
}

fn missing(json: &Jiter<'_>, field: &str) -> Fault {
    Fault::at(json.current_index(), format!("missing field `{field}`"))
}

fn unless_null<'a, T>(
    json: &mut Jiter<'a>,
    read: impl FnOnce(&mut Jiter<'a>, Peek) -> Result<T, Fault>,
) -> Result<Option<T>, Fault> {
    let next = json.peek()?;
    if next == Peek::Null {
        json.known_null()?;
        return Ok(None);
    }
    read(json, next).map(Some)
}

fn read_tensors<'a, T>(
    json: &mut Jiter<'a>,
    read: impl Fn(&mut Jiter<'a>) -> Result<T, Fault>,
) -> Result<Vec<T>, Fault> {
    let mut items = Vec::new();
    let mut next = json.next_array()?;
    while next.is_some() {
        // Before room is made for its elements.
        if items.len() == MAX_TENSORS {
            return Err(Fault::at(
                json.current_index(),
                format!("at most {MAX_TENSORS} tensors are possible"),
            ));
        }
        items.push(read(json)?);
        next = json.array_step()?;
    }
    Ok(items)
}

fn read_shape(json: &mut Jiter<'_>) -> Result<Vec<i64>, Fault> {
    let mut shape = Vec::new();
    let mut next = json.next_array()?;
    while let Some(dimension) = next {
        shape.push(read_integer(json, dimension)?);
        next = json.array_step()?;
    }
    Ok(shape)
}

fn read_count(json: &mut Jiter<'_>, next: Peek) -> Result<usize, Fault> {
    let start = json.current_index();
    let count = read_integer(json, next)?;
    usize::try_from(count).map_err(|_| Fault::at(start, format!("expected a number of zero or more, got {count}")))
}

fn read_datatype(json: &mut Jiter<'_>) -> Result<DataType, Fault> {
    let start = json.current_index();
    let name = json.next_str()?;
    let datatype = name.parse::<DataType>();
    datatype.map_err(|error| Fault::at(start, error.to_string()))
}

/// The next value as it is written, and where it begins. Its strings may be no UTF-8.
fn skipped<'a>(json: &mut Jiter<'a>) -> Result<(usize, &'a [u8]), Fault> {
    json.peek()?;
    let start = json.current_index();
    json.next_skip()?;
    Ok((start, json.slice_to_current(start)))
}

/// The next value, of which only serde knows the form.
fn read_by_serde<T: DeserializeOwned>(json: &mut Jiter<'_>) -> Result<T, Fault> {
    let (start, text) = skipped(json)?;
    serde_json::from_slice(text).map_err(|error| {
        // Its own place counts from where the value begins.
        let place = format!(" at line {} column {}", error.line(), error.column());
        let what = error.to_string();
        Fault::at(start, what.strip_suffix(&place).unwrap_or(&what))
    })
}

/// How many elements a shape promises, as far as room is made for them.
fn hinted_elements(shape: &[i64]) -> usize {
    let product = shape.iter().try_fold(1_usize, |product, &dimension| {
        product.checked_mul(usize::try_from(dimension).ok()?)
    });
    product.unwrap_or(0).min(MAX_HINTED_ELEMENTS)
}

#[cfg(test)]
mod tests;
