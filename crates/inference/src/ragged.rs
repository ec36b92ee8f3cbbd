//! Axes along which requests may differ: filled up before a merged run, cut back after it.

use crate::{
    element::{Storage, TensorData, append, with_element},
    error::{Error, Result},
    signature::{Signature, TensorSpec},
    tensor::{Tensor, byte_strings, element_count},
};

/// An axis along which requests to a model may differ, declared by who knows the model: what is filled in must not change
/// what comes out, as where a mask tells the model what to leave out.
#[derive(Debug, Clone, PartialEq)]
pub struct RaggedAxis {
    /// An input or output.
    pub tensor: String,
    /// 1 or more: 0 is the batch.
    pub axis: usize,
    /// Inputs: what the gap is filled with; strings are filled with empty ones.
    pub fill: f64,
}

/// An axis of a tensor by its position in the signature.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Place {
    tensor: usize,
    axis: usize,
    fill: f64,
}

/// The ragged axes of one model. All of them have one length within a request.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Ragged {
    inputs: Vec<Place>,
    outputs: Vec<Place>,
}

impl Ragged {
    /// Finds the declared axes in a model.
    ///
    /// # Errors
    /// `InvalidOptions` if there is no such tensor, or its axis is missing or fixed.
    pub(crate) fn new(signature: &Signature, declared: &[RaggedAxis]) -> Result<Self> {
        let mut found = Self::default();
        for ragged in declared {
            let place = |specs: &[TensorSpec]| specs.iter().position(|spec| spec.name == ragged.tensor);
            let (tensor, specs, axes) = match (place(&signature.inputs), place(&signature.outputs)) {
                (Some(index), _) => (index, &signature.inputs, &mut found.inputs),
                (None, Some(index)) => (index, &signature.outputs, &mut found.outputs),
                (None, None) => return Err(refused(ragged, "the model has no input or output of this name")),
            };
            let dimension = specs.get(tensor).and_then(|spec| spec.shape.get(ragged.axis));
            if ragged.axis == 0 || dimension != Some(&-1) {
                return Err(refused(ragged, "it is no free dimension beside the batch"));
            }
            axes.push(Place {
                tensor,
                axis: ragged.axis,
                fill: ragged.fill,
            });
        }
        if found.inputs.is_empty() && !found.outputs.is_empty() {
            return Err(Error::InvalidOptions {
                detail: "ragged: outputs alone are declared: declare the inputs that they are as long as".to_owned(),
            });
        }
        Ok(found)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.inputs.is_empty()
    }

    /// The length that a request has along all ragged axes; none if they differ, so that it runs alone.
    pub(crate) fn length(&self, inputs: &[Tensor]) -> Option<usize> {
        let mut lengths = self.inputs.iter().map(|axis| dimension(inputs, *axis));
        let first = lengths.next()??;
        lengths.all(|length| length == Some(first)).then_some(first)
    }

    /// Whether two requests are alike in every dimension that is not the batch and not ragged.
    pub(crate) fn are_alike(&self, one: &[Tensor], other: &[Tensor]) -> bool {
        one.len() == other.len()
            && one.iter().zip(other).enumerate().all(|(index, (one, other))| {
                let is_free = |axis: usize| {
                    axis == 0
                        || self
                            .inputs
                            .iter()
                            .any(|ragged| ragged.tensor == index && ragged.axis == axis)
                };
                one.shape().len() == other.shape().len()
                    && one
                        .shape()
                        .iter()
                        .zip(other.shape())
                        .enumerate()
                        .all(|(axis, (one, other))| one == other || is_free(axis))
            })
    }

    /// The inputs, filled up to a length.
    ///
    /// # Errors
    /// `InvalidTensor` if that makes a tensor too large.
    pub(crate) fn fill(&self, inputs: &[Tensor], length: usize) -> Result<Vec<Tensor>> {
        let mut filled = inputs.to_vec();
        for axis in &self.inputs {
            if let Some(tensor) = filled.get_mut(axis.tensor) {
                *tensor = resize(tensor, axis.axis, length, axis.fill)?;
            }
        }
        Ok(filled)
    }

    /// The outputs of a run that was filled up to `filled`, cut back to the request's own length.
    ///
    /// # Errors
    /// `InvalidOutput` if an output is not as long as the inputs were.
    pub(crate) fn cut(&self, outputs: &mut [Tensor], filled: usize, length: usize) -> Result<()> {
        for axis in &self.outputs {
            let found = dimension(outputs, *axis);
            let Some(tensor) = outputs.get_mut(axis.tensor) else {
                continue;
            };
            if found != Some(filled) {
                return Err(Error::output(
                    tensor.name(),
                    format!(
                        "axis {} was declared to be as long as the inputs, {filled}, and the output has shape {:?}",
                        axis.axis,
                        tensor.shape()
                    ),
                ));
            }
            *tensor = resize(tensor, axis.axis, length, 0.0)?;
        }
        Ok(())
    }
}

fn refused(ragged: &RaggedAxis, why: &str) -> Error {
    Error::InvalidOptions {
        detail: format!("ragged: axis {} of `{}`: {why}", ragged.axis, ragged.tensor),
    }
}

fn dimension(tensors: &[Tensor], axis: Place) -> Option<usize> {
    let size = *tensors.get(axis.tensor)?.shape().get(axis.axis)?;
    usize::try_from(size).ok()
}

/// The tensor with another length along an axis: cut off at the end, or filled up there.
fn resize(tensor: &Tensor, axis: usize, length: usize, fill: f64) -> Result<Tensor> {
    let mut shape = tensor.shape().to_vec();
    let Some(size) = shape.get_mut(axis) else {
        return Err(Error::tensor(tensor.name(), format!("it has no axis {axis}")));
    };
    let before = usize::try_from(*size).unwrap_or(0);
    if before == length {
        return Ok(tensor.clone());
    }
    *size = i64::try_from(length).unwrap_or(i64::MAX);
    let count = element_count(tensor.name(), &shape)?;
    let inner: usize = shape.iter().skip(axis + 1).map(|&size| size as usize).product();
    let outer: usize = shape.iter().take(axis).map(|&size| size as usize).product();
    let blocks = Blocks {
        outer,
        before: before * inner,
        after: length * inner,
        count,
    };
    let data = with_element!(
        tensor.datatype(),
        T => {
            let mut values = Vec::<T>::new();
            append(&mut values, tensor.data());
            T::wrap(blocks.resize(&values, &<T as Storage>::nearest(fill)))
        },
        text => TensorData::Bytes(blocks.resize(byte_strings(tensor.data()), &Vec::new())),
    );
    Tensor::new(tensor.name(), shape, data)
}

/// Runs of elements that grow or shrink.
struct Blocks {
    outer: usize,
    before: usize,
    after: usize,
    count: usize,
}

impl Blocks {
    fn resize<V: Clone>(&self, values: &[V], fill: &V) -> Vec<V> {
        let mut resized = Vec::with_capacity(self.count);
        let kept = self.before.min(self.after);
        for block in 0..self.outer {
            let start = block * self.before;
            resized.extend_from_slice(values.get(start..start + kept).unwrap_or_default());
            resized.resize((block + 1) * self.after, fill.clone());
        }
        resized
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datatype::DataType;

    fn signature() -> Signature {
        let spec = |name: &str, datatype, shape: &[i64]| TensorSpec {
            name: name.to_owned(),
            datatype,
            shape: shape.to_vec(),
        };
        Signature {
            inputs: vec![
                spec("ids", DataType::Int64, &[-1, -1]),
                spec("points", DataType::Fp32, &[-1, -1, 2]),
                spec("words", DataType::Bytes, &[-1, -1]),
            ],
            outputs: vec![
                spec("each", DataType::Int64, &[-1, -1]),
                spec("all", DataType::Fp32, &[-1, 3]),
            ],
        }
    }

    fn axis(tensor: &str, axis: usize, fill: f64) -> RaggedAxis {
        RaggedAxis {
            tensor: tensor.to_owned(),
            axis,
            fill,
        }
    }

    fn inputs(length: usize) -> Vec<Tensor> {
        let ids = (0..2 * length as i64).collect();
        let points = (0..4 * length).map(|index| index as f32).collect();
        let words = (0..2 * length).map(|index| index.to_string()).collect();
        vec![
            Tensor::from_vec("ids", vec![2, length as i64], ids).unwrap(),
            Tensor::from_vec("points", vec![2, length as i64, 2], points).unwrap(),
            Tensor::from_strings("words", vec![2, length as i64], words).unwrap(),
        ]
    }

    fn all() -> Ragged {
        let declared = [
            axis("ids", 1, -1.0),
            axis("points", 1, 0.5),
            axis("words", 1, 0.0),
            axis("each", 1, 0.0),
        ];
        Ragged::new(&signature(), &declared).unwrap()
    }

    #[test]
    fn gaps_are_filled_behind_each_row_and_cut_again() {
        let ragged = all();
        let own = inputs(2);
        assert_eq!(ragged.length(&own), Some(2));
        let filled = ragged.fill(&own, 3).unwrap();
        assert_eq!(*filled[0].data(), TensorData::Int64(vec![0, 1, -1, 2, 3, -1]));
        assert_eq!(filled[1].shape(), [2, 3, 2]);
        let points = vec![0.0, 1.0, 2.0, 3.0, 0.5, 0.5, 4.0, 5.0, 6.0, 7.0, 0.5, 0.5];
        assert_eq!(*filled[1].data(), TensorData::Fp32(points));
        assert_eq!(filled[2].strings().unwrap(), ["0", "1", "", "2", "3", ""]);
        let mut outputs = vec![
            filled[0].clone().renamed("each"),
            Tensor::zeros("all", DataType::Fp32, vec![2, 3]).unwrap(),
        ];
        ragged.cut(&mut outputs, 3, 2).unwrap();
        assert_eq!(*outputs[0].data(), TensorData::Int64(vec![0, 1, 2, 3]));
        assert_eq!(outputs[1].shape(), [2, 3], "it was not declared");
        let error = ragged.cut(&mut outputs, 3, 2).unwrap_err().to_string();
        assert!(error.contains("`each`") && error.contains("[2, 2]"), "{error}");
    }

    #[test]
    fn only_declared_axes_may_differ() {
        let ragged = all();
        assert!(ragged.are_alike(&inputs(2), &inputs(5)));
        let mut mixed = inputs(2);
        mixed.truncate(1);
        mixed.extend(inputs(3).into_iter().skip(1));
        assert_eq!(ragged.length(&mixed), None, "its own lengths differ");
        let only_ids = Ragged::new(&signature(), &[axis("ids", 1, 0.0)]).unwrap();
        assert!(!only_ids.are_alike(&inputs(2), &inputs(5)));
    }

    #[test]
    fn what_a_model_does_not_have_is_refused() {
        for (declared, word) in [
            (axis("nobody", 1, 0.0), "no input or output"),
            (axis("ids", 0, 0.0), "no free dimension"),
            (axis("points", 2, 0.0), "no free dimension"),
            (axis("ids", 5, 0.0), "no free dimension"),
            (axis("each", 1, 0.0), "outputs alone"),
        ] {
            let error = Ragged::new(&signature(), &[declared]).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
