//! What a model takes and gives.

use serde::{Deserialize, Serialize};

use crate::{
    datatype::DataType,
    error::{Error, Result},
    options::BatcherOptions,
    tensor::Tensor,
};

/// One input or output of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorSpec {
    /// Its name in the graph.
    pub name: String,
    /// The type of its elements.
    pub datatype: DataType,
    /// Its dimensions; -1 where any size is taken. Empty where the graph does not say, or for a scalar.
    pub shape: Vec<i64>,
}

impl TensorSpec {
    /// The specification as people write it, such as `x FP32 [-1, 4]`.
    pub(crate) fn describe(&self) -> String {
        format!("`{}` {} {:?}", self.name, self.datatype, self.shape)
    }

    /// Whether a tensor fits: datatype, rank and every fixed dimension.
    ///
    /// # Errors
    /// `InvalidTensor` with what was expected and what was given.
    pub fn check(&self, tensor: &Tensor) -> Result<()> {
        if tensor.datatype() != self.datatype {
            return Err(Error::tensor(
                &self.name,
                format!("expected datatype {}, got {}", self.datatype, tensor.datatype()),
            ));
        }
        // A graph may leave an input's shape open altogether; then ONNX Runtime is the judge.
        let fits = self.shape.is_empty()
            || (self.shape.len() == tensor.shape().len()
                && self
                    .shape
                    .iter()
                    .zip(tensor.shape())
                    .all(|(&expected, &found)| expected == -1 || expected == found));
        if fits {
            return Ok(());
        }
        Err(Error::tensor(
            &self.name,
            format!(
                "expected shape {:?} (-1 is any size), got {:?}",
                self.shape,
                tensor.shape()
            ),
        ))
    }
}

/// The inputs and outputs of a model, in the graph's order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    /// What it takes.
    pub inputs: Vec<TensorSpec>,
    /// What it gives.
    pub outputs: Vec<TensorSpec>,
}

impl Signature {
    /// The inputs in the graph's order, each checked. Nothing is converted.
    ///
    /// # Errors
    /// `InvalidInputs` if a name is missing, unknown or given twice; `InvalidTensor` if one does not fit.
    pub fn arrange(&self, mut inputs: Vec<Tensor>) -> Result<Vec<Tensor>> {
        for (index, spec) in self.inputs.iter().enumerate() {
            // Clients nearly always send the graph's order, so this finds the name at once.
            let found = inputs
                .iter()
                .skip(index)
                .position(|tensor| tensor.name() == spec.name)
                .ok_or_else(|| self.mismatch(&inputs))?;
            inputs.swap(index, index + found);
        }
        if inputs.len() != self.inputs.len() {
            return Err(self.mismatch(&inputs));
        }
        for (spec, tensor) in self.inputs.iter().zip(&inputs) {
            spec.check(tensor)?;
        }
        Ok(inputs)
    }

    /// The outputs in the signature's order; what it does not name is left out.
    ///
    /// # Errors
    /// `InvalidOutput` if one is missing.
    pub fn arrange_outputs(&self, mut outputs: Vec<Tensor>) -> Result<Vec<Tensor>> {
        let each = self.outputs.iter().map(|spec| {
            let place = outputs.iter().position(|tensor| tensor.name() == spec.name);
            let place = place.ok_or_else(|| Error::output(&spec.name, "what runs the model did not send it"))?;
            Ok(outputs.swap_remove(place))
        });
        each.collect()
    }

    /// Whether every dimension of every input but the first is fixed, so that rows of any two requests can be merged.
    pub(crate) fn rows_are_fixed(&self) -> bool {
        self.inputs.iter().all(|spec| {
            spec.shape
                .split_first()
                .is_some_and(|(_, rest)| rest.iter().all(|&dimension| dimension >= 0))
        })
    }

    /// Zeros and empty strings for every input, with dynamic dimensions of 1 and the first one, where it is dynamic,
    /// of `rows`.
    ///
    /// # Errors
    /// `InvalidTensor` if a fixed shape is above the limits.
    pub(crate) fn zeros(&self, rows: usize) -> Result<Vec<Tensor>> {
        let shapes = self.sample_shapes(rows);
        let each = self.inputs.iter().zip(shapes);
        each.map(|(spec, shape)| Tensor::zeros(spec.name.clone(), spec.datatype, shape))
            .collect()
    }

    /// Shapes that inputs of so many rows may have.
    pub(crate) fn sample_shapes(&self, rows: usize) -> Vec<Vec<i64>> {
        self.inputs.iter().map(|spec| sample_shape(&spec.shape, rows)).collect()
    }

    /// These shapes with as many rows as a merged run may have of them; none if they have none, or a length that is no number.
    pub(crate) fn largest_batch(&self, shapes: &[Vec<i64>], batches: &BatcherOptions) -> Option<Vec<Vec<i64>>> {
        let of_row = |shape: &Vec<i64>| {
            let lengths = shape.iter().skip(1).map(|&length| usize::try_from(length).ok());
            lengths.product::<Option<usize>>()
        };
        let elements = shapes.iter().map(of_row).sum::<Option<usize>>()?;
        let rows = batches
            .max_batch_rows
            .min(batches.max_batch_elements / elements.max(1))
            .max(1);
        let mut largest = shapes.to_vec();
        for shape in &mut largest {
            *shape.first_mut()? = i64::try_from(rows).ok()?;
        }
        Some(largest)
    }

    /// Zeros and empty strings of these shapes; none if they do not fit.
    pub(crate) fn zeros_of(&self, shapes: &[Vec<i64>]) -> Option<Vec<Tensor>> {
        if shapes.len() != self.inputs.len() {
            return None;
        }
        let each = self.inputs.iter().zip(shapes).map(|(spec, shape)| {
            let zeros = Tensor::zeros(spec.name.clone(), spec.datatype, shape.clone()).ok()?;
            spec.check(&zeros).is_ok().then_some(zeros)
        });
        each.collect()
    }

    /// Why the names do not fit.
    fn mismatch(&self, inputs: &[Tensor]) -> Error {
        let given = |name: &str| inputs.iter().filter(|tensor| tensor.name() == name).count();
        let missing: Vec<&str> = self
            .inputs
            .iter()
            .map(|spec| spec.name.as_str())
            .filter(|name| given(name) == 0)
            .collect();
        let unknown: Vec<&str> = inputs
            .iter()
            .map(Tensor::name)
            .filter(|name| self.inputs.iter().all(|spec| spec.name != *name))
            .collect();
        let repeated: Vec<&str> = self
            .inputs
            .iter()
            .map(|spec| spec.name.as_str())
            .filter(|name| given(name) > 1)
            .collect();
        let mut faults = Vec::new();
        for (what, names) in [("missing", missing), ("unknown", unknown), ("given twice", repeated)] {
            if !names.is_empty() {
                faults.push(format!("{what}: {}", names.join(", ")));
            }
        }
        let expected: Vec<String> = self.inputs.iter().map(TensorSpec::describe).collect();
        Error::InvalidInputs {
            detail: format!(
                "the inputs do not fit the model ({}): it takes {}",
                faults.join("; "),
                if expected.is_empty() {
                    "none".to_owned()
                } else {
                    expected.join(", ")
                }
            ),
        }
    }
}

/// A shape with its dynamic dimensions filled in: the first by `rows`, the others by 1.
pub(crate) fn sample_shape(shape: &[i64], rows: usize) -> Vec<i64> {
    shape
        .iter()
        .enumerate()
        .map(|(axis, &dimension)| match (axis, dimension) {
            (0, -1) => rows as i64,
            (_, -1) => 1,
            _ => dimension,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signature() -> Signature {
        let spec = |name: &str, datatype, shape: &[i64]| TensorSpec {
            name: name.to_owned(),
            datatype,
            shape: shape.to_vec(),
        };
        Signature {
            inputs: vec![spec("x", DataType::Fp32, &[-1, 2]), spec("who", DataType::Bytes, &[-1])],
            outputs: vec![],
        }
    }

    fn x(shape: Vec<i64>) -> Tensor {
        Tensor::zeros("x", DataType::Fp32, shape).unwrap()
    }

    fn who() -> Tensor {
        Tensor::zeros("who", DataType::Bytes, vec![3]).unwrap()
    }

    #[test]
    fn inputs_come_out_in_the_graphs_order() {
        let arranged = signature().arrange(vec![who(), x(vec![3, 2])]).unwrap();
        let names: Vec<&str> = arranged.iter().map(Tensor::name).collect();
        assert_eq!(names, ["x", "who"]);
    }

    #[test]
    fn a_misfit_says_what_was_expected_and_what_was_given() {
        let message = |inputs| signature().arrange(inputs).unwrap_err().to_string();
        let missing = message(vec![x(vec![1, 2])]);
        assert!(missing.contains("missing: who"), "{missing}");
        assert!(missing.contains("`x` FP32 [-1, 2]"), "{missing}");
        let unknown = message(vec![x(vec![1, 2]), who(), who().renamed("y")]);
        assert!(unknown.contains("unknown: y"), "{unknown}");
        let twice = message(vec![x(vec![1, 2]), who(), who()]);
        assert!(twice.contains("given twice: who"), "{twice}");
        let shape = message(vec![x(vec![1, 3]), who()]);
        assert!(
            shape.contains("expected shape [-1, 2]") && shape.contains("got [1, 3]"),
            "{shape}"
        );
        let rank = message(vec![x(vec![2]), who()]);
        assert!(rank.contains("got [2]"), "{rank}");
        let datatype = message(vec![Tensor::zeros("x", DataType::Fp64, vec![1, 2]).unwrap(), who()]);
        assert!(datatype.contains("expected datatype FP32, got FP64"), "{datatype}");
    }

    #[test]
    fn it_is_stored_with_the_protocols_names() {
        let text = serde_json::to_string(&signature()).unwrap();
        assert!(
            text.contains(r#"{"name":"x","datatype":"FP32","shape":[-1,2]}"#),
            "{text}"
        );
        assert_eq!(serde_json::from_str::<Signature>(&text).unwrap(), signature());
    }
}
