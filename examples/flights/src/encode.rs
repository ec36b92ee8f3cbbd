//! One flight as an inference request: JSON for HTTP, raw tensors for gRPC. The columns and types are those that the
//! served model's metadata asks for.

use std::{collections::HashMap, io::Write, sync::Arc};

use anyhow::{Context, Result, bail};
use arrow::{
    array::{Array, Float64Array, Int64Array, StringArray},
    compute::cast,
    datatypes::DataType,
};
use modelyard_proto::inference::{
    InferParameter, ModelInferRequest, infer_parameter::ParameterChoice, model_infer_request::InferInputTensor,
};
use serde::Deserialize;

use crate::data::Month;

/// The parameter of a request that carries its event time.
const EVENT_TIME: &str = "event_time";

/// Metadata of a model, as `GET /v2/models/NAME` answers.
#[derive(Debug, Clone, Deserialize)]
pub struct Metadata {
    /// What the model takes.
    pub inputs: Vec<Tensor>,
}

/// One input.
#[derive(Debug, Clone, Deserialize)]
pub struct Tensor {
    name: String,
    datatype: String,
    shape: Vec<i64>,
}

/// The values of one input for all flights of a month, in the type that is sent.
enum Values {
    Int64(Int64Array),
    Int32(Int64Array),
    Fp64(Float64Array),
    Fp32(Float64Array),
    Bytes(StringArray),
}

struct Input {
    tensor: Tensor,
    values: Values,
    /// The JSON before the value.
    prefix: Vec<u8>,
}

/// Encodes the flights of a month.
pub struct Encoder {
    /// The flights.
    pub month: Arc<Month>,
    inputs: Vec<Input>,
    template: ModelInferRequest,
}

impl Encoder {
    /// An encoder for the inputs that `metadata` names; a column that the data lacks is an error.
    pub fn new(month: Arc<Month>, metadata: &Metadata, endpoint: &str) -> Result<Self> {
        let inputs = metadata
            .inputs
            .iter()
            .map(|tensor| Input::new(&month, tensor))
            .collect::<Result<Vec<_>>>()?;
        let template = ModelInferRequest {
            model_name: endpoint.to_owned(),
            inputs: inputs
                .iter()
                .map(|input| InferInputTensor {
                    name: input.tensor.name.clone(),
                    datatype: input.tensor.datatype.clone(),
                    shape: input.tensor.shape.clone(),
                    ..InferInputTensor::default()
                })
                .collect(),
            ..ModelInferRequest::default()
        };
        Ok(Self {
            month,
            inputs,
            template,
        })
    }

    /// The request of one flight as JSON.
    pub fn json(&self, row: usize) -> Result<Vec<u8>> {
        let mut body = Vec::with_capacity(160 + self.inputs.len() * 80);
        body.extend_from_slice(b"{\"id\":");
        serde_json::to_writer(&mut body, self.month.id(row))?;
        body.extend_from_slice(b",\"parameters\":{\"event_time\":");
        serde_json::to_writer(&mut body, self.month.event_time(row))?;
        body.extend_from_slice(b"},\"inputs\":[");
        for (position, input) in self.inputs.iter().enumerate() {
            if position > 0 {
                body.push(b',');
            }
            body.extend_from_slice(&input.prefix);
            input.values.write_json(row, &mut body)?;
            body.extend_from_slice(b"]}");
        }
        body.extend_from_slice(b"]}");
        Ok(body)
    }

    /// The request of one flight for gRPC, with raw contents.
    pub fn message(&self, row: usize) -> ModelInferRequest {
        let mut message = self.template.clone();
        self.month.id(row).clone_into(&mut message.id);
        let time = ParameterChoice::StringParam(self.month.event_time(row).to_owned());
        message.parameters = HashMap::from([(
            EVENT_TIME.to_owned(),
            InferParameter {
                parameter_choice: Some(time),
            },
        )]);
        message.raw_input_contents = self.inputs.iter().map(|input| input.values.raw(row).into()).collect();
        message
    }
}

impl Input {
    fn new(month: &Month, tensor: &Tensor) -> Result<Self> {
        let column = month.column(&tensor.name);
        let column = column.with_context(|| {
            format!(
                "the model asks for the input `{}`, which the flights do not have",
                tensor.name
            )
        })?;
        let convert = |kind: DataType| {
            cast(column, &kind).with_context(|| format!("the column `{}` cannot be sent as {kind}", tensor.name))
        };
        let wrong = || format!("the column `{}` cannot be sent as {}", tensor.name, tensor.datatype);
        let values = match tensor.datatype.as_str() {
            "INT64" | "INT32" => {
                let numbers = convert(DataType::Int64)?;
                let numbers = numbers
                    .as_any()
                    .downcast_ref::<Int64Array>()
                    .with_context(wrong)?
                    .clone();
                if numbers.null_count() > 0 {
                    bail!(
                        "the column `{}` has gaps and cannot be sent as whole numbers",
                        tensor.name
                    );
                }
                if tensor.datatype == "INT64" {
                    Values::Int64(numbers)
                } else {
                    Values::Int32(numbers)
                }
            }
            "FP64" | "FP32" => {
                let numbers = convert(DataType::Float64)?;
                let numbers = numbers
                    .as_any()
                    .downcast_ref::<Float64Array>()
                    .with_context(wrong)?
                    .clone();
                if tensor.datatype == "FP64" {
                    Values::Fp64(numbers)
                } else {
                    Values::Fp32(numbers)
                }
            }
            "BYTES" => {
                let texts = convert(DataType::Utf8)?;
                Values::Bytes(
                    texts
                        .as_any()
                        .downcast_ref::<StringArray>()
                        .with_context(wrong)?
                        .clone(),
                )
            }
            other => bail!(
                "the model's input `{}` has the datatype {other}, which flights are not",
                tensor.name
            ),
        };
        // One row: every dimension of free size has one element.
        let tensor = Tensor {
            shape: tensor.shape.iter().map(|size| (*size).max(1)).collect(),
            ..tensor.clone()
        };
        let mut prefix = b"{\"name\":".to_vec();
        serde_json::to_writer(&mut prefix, &tensor.name)?;
        write!(prefix, ",\"datatype\":\"{}\",\"shape\":", tensor.datatype)?;
        serde_json::to_writer(&mut prefix, &tensor.shape)?;
        prefix.extend_from_slice(b",\"data\":[");
        Ok(Self { tensor, values, prefix })
    }
}

impl Values {
    /// A missing number is `null` and a missing text is empty.
    fn write_json(&self, row: usize, body: &mut Vec<u8>) -> Result<()> {
        match self {
            Self::Int64(values) | Self::Int32(values) => write!(body, "{}", values.value(row))?,
            Self::Fp64(values) if values.is_valid(row) => serde_json::to_writer(body, &values.value(row))?,
            Self::Fp32(values) if values.is_valid(row) => serde_json::to_writer(body, &(values.value(row) as f32))?,
            Self::Fp64(_) | Self::Fp32(_) => body.extend_from_slice(b"null"),
            Self::Bytes(values) => serde_json::to_writer(body, text(values, row))?,
        }
        Ok(())
    }

    /// A missing number is NaN and a missing text is empty.
    fn raw(&self, row: usize) -> Vec<u8> {
        match self {
            Self::Int64(values) => values.value(row).to_le_bytes().to_vec(),
            Self::Int32(values) => (values.value(row) as i32).to_le_bytes().to_vec(),
            Self::Fp64(values) => number(values, row).to_le_bytes().to_vec(),
            Self::Fp32(values) => (number(values, row) as f32).to_le_bytes().to_vec(),
            Self::Bytes(values) => {
                let text = text(values, row).as_bytes();
                let mut raw = Vec::with_capacity(4 + text.len());
                raw.extend_from_slice(&(text.len() as u32).to_le_bytes());
                raw.extend_from_slice(text);
                raw
            }
        }
    }
}

fn number(values: &Float64Array, row: usize) -> f64 {
    if values.is_valid(row) {
        values.value(row)
    } else {
        f64::NAN
    }
}

fn text(values: &StringArray, row: usize) -> &str {
    if values.is_valid(row) { values.value(row) } else { "" }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;
    use crate::data::read_months;

    fn metadata() -> Metadata {
        serde_json::from_value(json!({"inputs": [
            {"name": "carrier", "datatype": "BYTES", "shape": [-1, 1]},
            {"name": "hour", "datatype": "INT64", "shape": [-1]},
            {"name": "weekday", "datatype": "INT32", "shape": [-1]},
            {"name": "pressure", "datatype": "FP64", "shape": [-1]},
            {"name": "temp", "datatype": "FP32", "shape": [-1]},
        ]}))
        .unwrap()
    }

    fn months() -> std::collections::BTreeMap<String, Month> {
        read_months(&Path::new(env!("CARGO_MANIFEST_DIR")).join("flights.parquet"), 0.02).unwrap()
    }

    #[test]
    fn both_forms_say_the_same() {
        let encoder = Encoder::new(Arc::new(months()["2013-03"].clone()), &metadata(), "flight-delay").unwrap();
        let mut gaps = 0;
        for row in 0..encoder.month.len() {
            let json: Value = serde_json::from_slice(&encoder.json(row).unwrap()).unwrap();
            let message = encoder.message(row);
            assert_eq!(json["id"], message.id);
            assert_eq!(json["parameters"]["event_time"], encoder.month.event_time(row));
            assert_eq!(json["inputs"][0]["shape"], json!([1, 1]));
            let raw = &message.raw_input_contents;
            assert_eq!(json["inputs"][0]["data"][0].as_str().unwrap().as_bytes(), &raw[0][4..]);
            let hour = i64::from_le_bytes(raw[1].as_ref().try_into().unwrap());
            assert_eq!(json["inputs"][1]["data"][0], hour);
            let weekday = i32::from_le_bytes(raw[2].as_ref().try_into().unwrap());
            assert_eq!(json["inputs"][2]["data"][0], weekday);
            let pressure = f64::from_le_bytes(raw[3].as_ref().try_into().unwrap());
            if let Some(number) = json["inputs"][3]["data"][0].as_f64() {
                assert!((number - pressure).abs() < f64::EPSILON);
            } else {
                gaps += 1;
                assert!(pressure.is_nan());
            }
        }
        assert!(gaps > 0, "the sample has no gap, so nothing was shown about them");
    }

    #[test]
    fn what_the_data_lacks_is_named() {
        let metadata = serde_json::from_value(json!({"inputs": [
            {"name": "altitude", "datatype": "FP32", "shape": [-1]},
        ]}));
        let error = Encoder::new(Arc::new(months()["2013-03"].clone()), &metadata.unwrap(), "x");
        assert!(format!("{:#}", error.err().unwrap()).contains("`altitude`"));
    }
}
