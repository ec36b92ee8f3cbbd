//! The JSON of a request, read from front to back as it comes: a reader that knows the request's form takes half the time of one
//! that does not.

use jiter::{Jiter, JiterError, LinePosition, Peek};
use modelyard_inference::{DataType, TensorData};
use serde::de::DeserializeOwned;

use super::elements::{read_elements, read_integer};

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
pub(super) struct WireRequest<'a, P> {
    pub id: Option<String>,
    pub parameters: P,
    pub inputs: Vec<WireInput<'a>>,
    pub outputs: Vec<WireOutput>,
}

/// An input, with its data as elements already where its datatype came before it.
pub(super) struct WireInput<'a> {
    pub name: String,
    pub datatype: DataType,
    pub shape: Vec<i64>,
    pub parameters: TensorParameters,
    pub data: Option<WireData<'a>>,
}

/// The data of an input.
pub(super) enum WireData<'a> {
    Elements(TensorData),
    /// JSON.
    Text(&'a [u8]),
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

impl<'a, P: DeserializeOwned + Default> WireRequest<'a, P> {
    /// Reads the whole text.
    ///
    /// # Errors
    /// What is no request.
    pub(super) fn read(text: &'a [u8]) -> Result<Self, Fault> {
        let json = &mut Jiter::new(text);
        let (mut id, mut parameters, mut inputs, mut outputs) = (None, None, None, Vec::new());
        let mut field = json.next_object()?.map(Field::of);
        while let Some(name) = field {
            match name {
                Field::Id => id = unless_null(json, |json, _| Ok(json.next_str()?.to_owned()))?,
                Field::Parameters => parameters = Some(read_by_serde(json)?),
                Field::Inputs => inputs = Some(read_list(json, WireInput::read)?),
                Field::Outputs => {
                    outputs = unless_null(json, |json, _| read_list(json, WireOutput::read))?.unwrap_or_default();
                }
                _ => json.next_skip()?,
            }
            field = json.next_key()?.map(Field::of);
        }
        json.finish()?;
        Ok(Self {
            id,
            parameters: parameters.unwrap_or_default(),
            inputs: inputs.ok_or_else(|| missing(json, "inputs"))?,
            outputs,
        })
    }
}

impl<'a> WireInput<'a> {
    fn read(json: &mut Jiter<'a>) -> Result<Self, Fault> {
        let (mut name, mut datatype, mut shape, mut data) = (None, None, None::<Vec<i64>>, None);
        let mut parameters = TensorParameters::default();
        let mut field = json.next_object()?.map(Field::of);
        while let Some(known) = field {
            match known {
                Field::Name => name = Some(json.next_str()?.to_owned()),
                Field::Shape => shape = Some(read_shape(json)?),
                Field::Datatype => datatype = Some(read_datatype(json)?),
                Field::Parameters => parameters = TensorParameters::read(json)?,
                Field::Data => {
                    data = Some(match datatype {
                        Some(datatype) => {
                            let count = shape.as_deref().map_or(0, hinted_elements);
                            let elements = read_elements(json, datatype, count);
                            WireData::Elements(elements.map_err(|fault| fault.of_input(name.as_deref()))?)
                        }
                        // The datatype comes later, and so does the reading.
                        None => WireData::Text(skipped(json)?),
                    });
                }
                _ => json.next_skip()?,
            }
            field = json.next_key()?.map(Field::of);
        }
        Ok(Self {
            name: name.ok_or_else(|| missing(json, "name"))?,
            datatype: datatype.ok_or_else(|| missing(json, "datatype"))?,
            shape: shape.ok_or_else(|| missing(json, "shape"))?,
            parameters,
            data,
        })
    }
}

impl WireData<'_> {
    /// The elements, read by now at the latest.
    ///
    /// # Errors
    /// What is no element of the datatype.
    pub(super) fn into_elements(self, datatype: DataType, shape: &[i64]) -> Result<TensorData, String> {
        match self {
            Self::Elements(data) => Ok(data),
            Self::Text(text) => read_elements(&mut Jiter::new(text), datatype, hinted_elements(shape))
                .map_err(|fault| format!("its data: {}", fault.describe(text))),
        }
    }
}

impl WireOutput {
    fn read(json: &mut Jiter<'_>) -> Result<Self, Fault> {
        let (mut name, mut parameters) = (None, TensorParameters::default());
        let mut field = json.next_object()?.map(Field::of);
        while let Some(known) = field {
            match known {
                Field::Name => name = Some(json.next_str()?.to_owned()),
                Field::Parameters => parameters = TensorParameters::read(json)?,
                _ => json.next_skip()?,
            }
            field = json.next_key()?.map(Field::of);
        }
        let name = name.ok_or_else(|| missing(json, "name"))?;
        Ok(Self { name, parameters })
    }
}

impl TensorParameters {
    fn read(json: &mut Jiter<'_>) -> Result<Self, Fault> {
        let mut read = Self::default();
        let mut field = json.next_object()?.map(Field::of);
        while let Some(known) = field {
            match known {
                Field::BinaryData => read.binary_data = unless_null(json, |json, next| Ok(json.known_bool(next)?))?,
                Field::BinaryDataSize => read.binary_data_size = unless_null(json, read_count)?,
                Field::Classification => read.classification = unless_null(json, read_count)?,
                Field::SharedMemoryRegion => {
                    let region = unless_null(json, |json, next| Ok(json.known_skip(next)?))?;
                    read.in_shared_memory = region.is_some();
                }
                _ => json.next_skip()?,
            }
            field = json.next_key()?.map(Field::of);
        }
        Ok(read)
    }
}

/// The fields that mean something, wherever they do.
#[derive(Clone, Copy)]
enum Field {
    Id,
    Parameters,
    Inputs,
    Outputs,
    Name,
    Shape,
    Datatype,
    Data,
    BinaryData,
    BinaryDataSize,
    Classification,
    SharedMemoryRegion,
    Other,
}

impl Field {
    fn of(name: &str) -> Self {
        match name {
            "id" => Self::Id,
            "parameters" => Self::Parameters,
            "inputs" => Self::Inputs,
            "outputs" => Self::Outputs,
            "name" => Self::Name,
            "shape" => Self::Shape,
            "datatype" => Self::Datatype,
            "data" => Self::Data,
            "binary_data" => Self::BinaryData,
            "binary_data_size" => Self::BinaryDataSize,
            "classification" => Self::Classification,
            "shared_memory_region" => Self::SharedMemoryRegion,
            _ => Self::Other,
        }
    }
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

fn read_list<'a, T>(json: &mut Jiter<'a>, read: impl Fn(&mut Jiter<'a>) -> Result<T, Fault>) -> Result<Vec<T>, Fault> {
    let mut items = Vec::new();
    let mut next = json.next_array()?;
    while next.is_some() {
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

/// The next value as it is written. Its strings may be no UTF-8.
fn skipped<'a>(json: &mut Jiter<'a>) -> Result<&'a [u8], Fault> {
    json.peek()?;
    let start = json.current_index();
    json.next_skip()?;
    Ok(json.slice_to_current(start))
}

/// The next value, of which only serde knows the form.
fn read_by_serde<T: DeserializeOwned>(json: &mut Jiter<'_>) -> Result<T, Fault> {
    let text = skipped(json)?;
    let start = json.current_index() - text.len();
    serde_json::from_slice(text).map_err(|error| Fault::at(start, error.to_string()))
}

/// How many elements a shape promises, as far as room is made for them.
fn hinted_elements(shape: &[i64]) -> usize {
    let product = shape.iter().try_fold(1_usize, |product, &dimension| {
        product.checked_mul(usize::try_from(dimension).ok()?)
    });
    product.unwrap_or(0).min(MAX_HINTED_ELEMENTS)
}

#[cfg(test)]
mod tests {
    use modelyard_inference::Tensor;
    use proptest::prelude::*;
    use serde::de::DeserializeSeed as _;
    use serde_json::{Value, json};

    use super::*;
    use crate::oip::DataSeed;

    fn read(text: &str) -> Result<WireRequest<'_, Value>, String> {
        WireRequest::read(text.as_bytes()).map_err(|fault| fault.describe(text.as_bytes()))
    }

    #[test]
    fn fields_are_read_in_any_order_and_others_passed_over() {
        let text = r#" {"more": {"a": [1, {"b": "\u00e9"}]}, "outputs": [{"parameters": {"binary_data": false,
            "classification": 3, "what": null}, "name": "y"}], "id": "n\"1", "parameters": {"p": 1},
            "inputs": [{"data": [[1.5, null], ["Infinity", -2]], "shape": [2, 2], "extra": 1e400, "datatype": "FP32",
            "name": "x", "parameters": {}}, {"name": "b", "shape": [1], "datatype": "INT64",
            "parameters": {"binary_data_size": 8, "shared_memory_region": null}}]} "#;
        let request = read(text).unwrap();
        assert_eq!(request.id.as_deref(), Some("n\"1"));
        assert_eq!(request.parameters, json!({"p": 1}));
        let [output] = request.outputs.as_slice() else {
            panic!("one output")
        };
        assert_eq!(
            (output.name.as_str(), output.parameters.binary_data),
            ("y", Some(false))
        );
        assert_eq!(output.parameters.classification, Some(3));
        let mut inputs = request.inputs.into_iter();
        let x = inputs.next().unwrap();
        assert_eq!((x.name.as_str(), x.shape.as_slice()), ("x", [2, 2].as_slice()));
        let data = x.data.unwrap().into_elements(x.datatype, &x.shape).unwrap();
        let TensorData::Fp32(values) = data else {
            panic!("{data:?}")
        };
        assert!(values[0] == 1.5 && values[1].is_nan() && values[2] == f32::INFINITY && values[3] == -2.0);
        let b = inputs.next().unwrap();
        assert!(b.data.is_none() && !b.parameters.in_shared_memory);
        assert_eq!(b.parameters.binary_data_size, Some(8));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        for (text, expected) in [
            ("", "EOF while parsing a value at line 1 column 0"),
            ("{\n\"inputs\": 7}", "expected array but found int at line 2 column 11"),
            ("{}", "missing field `inputs` at line 1 column 2"),
            ("{\"inputs\": []} x", "trailing characters"),
            (
                "{\"inputs\": [{\"shape\": [1.5]}]}",
                "expected an integer of INT64, got 1.5",
            ),
            (
                "{\"inputs\": [{\"datatype\": \"FP32\", \"data\": [-Infinity]}]}",
                "send null, \"NaN\"",
            ),
            (
                "{\"inputs\": [{\"name\": \"x\", \"datatype\": \"BOOL\", \"data\": [1]}]}",
                "input `x`: expected true or false, got 1 at line 1 column 56",
            ),
            (
                "{\"inputs\": [{\"parameters\": {\"binary_data_size\": -1}}]}",
                "expected a number of zero or more, got -1",
            ),
        ] {
            let problem = read(text).map(|_| ()).unwrap_err();
            assert!(problem.contains(expected), "{text}: {problem}");
        }
        let quoted = read(r#"{"inputs": [{"datatype": "INT32", "data": ["NaN"]}]}"#).map(|_| ());
        let problem = quoted.unwrap_err();
        assert!(
            problem.contains("got a string") && !problem.contains("send null"),
            "{problem}"
        );
    }

    fn element() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<i8>().prop_map(Value::from),
            prop::num::f64::NORMAL.prop_map(Value::from),
            any::<f32>().prop_map(Value::from),
            any::<bool>().prop_map(Value::from),
            Just(Value::Null),
            "\\PC{0,8}".prop_map(Value::from),
            prop::sample::select(vec!["NaN", "Infinity", "-Infinity"]).prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 20, 5, |inner| {
            prop::collection::vec(inner, 0..5).prop_map(Value::from)
        })
    }

    proptest! {
        /// Both readers of elements agree on what is one.
        #[test]
        fn elements_are_what_they_are_to_serde(
            values in element(), datatype in prop::sample::select(DataType::ALL.to_vec()),
        ) {
            let text = values.to_string();
            let read = read_elements(&mut Jiter::new(text.as_bytes()), datatype, 0);
            let by_serde = DataSeed { datatype, count: 0 }.deserialize(&values);
            let raw = |data: TensorData, count: i64| Tensor::new("x", vec![count], data).and_then(Tensor::into_raw);
            match (read, by_serde) {
                (Ok(read), Ok(by_serde)) => {
                    let count = |data: &TensorData| (0..100).find(|&count| raw(data.clone(), count).is_ok()).unwrap();
                    let expected = count(&by_serde);
                    // NaN is no less the same for being unlike itself.
                    prop_assert_eq!(raw(read, expected).unwrap(), raw(by_serde, expected).unwrap());
                }
                (Err(_), Err(_)) => {}
                (read, by_serde) => prop_assert!(false, "{text} as {datatype}: {read:?}, by serde {by_serde:?}"),
            }
        }

        /// What a client writes in its shortest digits comes back bit by bit.
        #[test]
        fn floats_come_back_exactly(
            singles in prop::collection::vec(any::<f32>().prop_filter("finite", |value| value.is_finite()), 0..50),
            doubles in prop::collection::vec(any::<f64>().prop_filter("finite", |value| value.is_finite()), 0..50),
        ) {
            let text = serde_json::to_string(&singles).unwrap();
            let TensorData::Fp32(read) = read_elements(&mut Jiter::new(text.as_bytes()), DataType::Fp32, 0).unwrap() else {
                return Err(TestCaseError::fail("it has another datatype"));
            };
            let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&read), bits(&singles));
            let text = serde_json::to_string(&doubles).unwrap();
            let TensorData::Fp64(read) = read_elements(&mut Jiter::new(text.as_bytes()), DataType::Fp64, 0).unwrap() else {
                return Err(TestCaseError::fail("it has another datatype"));
            };
            let bits = |values: &[f64]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&read), bits(&doubles));
        }

        /// Whatever the bytes, there is an answer.
        #[test]
        fn no_text_is_too_much(text in "[\\[\\]{}\",:0-9a-zA-Z\\-+.e \\\\]{0,200}", bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&text);
            let _ = WireRequest::<Value>::read(&bytes).map_err(|fault| fault.describe(&bytes));
        }
    }
}
