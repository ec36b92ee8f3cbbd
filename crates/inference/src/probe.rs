//! Whether requests to a model may be merged: found out by running it, because graphs declare it badly.

use serde::Serialize;

use crate::{
    backend::Backend,
    datatype::DataType,
    element::{Storage, TensorData, with_element},
    error::Result,
    signature::{Signature, TensorSpec, sample_shape},
    tensor::Tensor,
};

/// How far a row's floats may differ between a run alone and a merged run, relative and absolute: kernels for
/// different batch sizes add in different orders.
const TOLERANCE: f64 = 1e-3;

/// The relative part where floats are rounded coarsely, of the largest float of the row: what products of ten bits (TF32) are off by has the
/// size of the terms that were added, not of their sum.
const COARSE_TOLERANCE: f64 = 3e-3;

/// Sums that differ in their last digits may be rounded to numbers that lie this many apart.
const ROUNDED_APART: f64 = 4.0;

/// How a model's requests are run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "mode", content = "reason", rename_all = "snake_case")]
pub enum Batching {
    /// The first dimension of everything is the row, and rows do not touch each other: requests are merged.
    Rows,
    /// Each request runs alone, for the reason given.
    Never(String),
}

/// What the probe found.
#[derive(Debug)]
pub(crate) struct Finding {
    pub batching: Batching,
    /// The outputs of one row and of two, if the model took the probe.
    outputs: Option<(Vec<Tensor>, Vec<Tensor>)>,
}

impl Finding {
    fn never(reason: impl Into<String>) -> Self {
        Self {
            batching: Batching::Never(reason.into()),
            outputs: None,
        }
    }

    /// Completes the outputs whose shape the graph leaves open with what came out: a dimension is dynamic where one
    /// row and two differ.
    pub(crate) fn complete(&self, specs: &mut [TensorSpec]) {
        let Some((one, two)) = &self.outputs else { return };
        for (spec, (one, two)) in specs.iter_mut().zip(one.iter().zip(two)) {
            if spec.shape.is_empty() && one.shape().len() == two.shape().len() {
                spec.shape = one
                    .shape()
                    .iter()
                    .zip(two.shape())
                    .map(|(&one, &two)| if one == two { one } else { -1 })
                    .collect();
            }
        }
    }
}

/// Runs one row, another row, and both merged. They may be merged in service if that gave each its own outputs. The rows are
/// those of an example that is known to be taken, else made up. `is_coarse`: floats may be rounded as devices do.
pub(crate) fn probe(
    instance: &mut dyn Backend,
    signature: &Signature,
    example: Option<&[Tensor]>,
    is_coarse: bool,
) -> Finding {
    if let Some(reason) = declared_obstacle(signature) {
        return Finding::never(reason);
    }
    let mut compare = |rows: Result<[Vec<Tensor>; 2]>| compare(instance, signature, &rows?, is_coarse);
    let made_up = |kind| sample(signature, kind);
    let known = example.map(|example| compare(first_rows(example)));
    // Different rows show whether rows touch each other; a model that refuses made-up values gets zeros.
    let found = known
        .unwrap_or_else(|| compare(made_up(0).and_then(|first| Ok([first, made_up(1)?]))))
        .or_else(|_| compare(made_up(0).map(|zeros| [zeros.clone(), zeros])));
    match found {
        Ok(finding) => finding,
        Err(error) => Finding::never(format!(
            "the model did not take a trial of one and two rows, so merging could not be tried ({error})"
        )),
    }
}

fn declared_obstacle(signature: &Signature) -> Option<String> {
    if signature.inputs.is_empty() {
        return Some("the model takes no inputs".to_owned());
    }
    signature
        .inputs
        .iter()
        .find(|spec| spec.shape.first() != Some(&-1))
        .map(|spec| {
            format!(
                "the first dimension of input `{}` is not free: its shape is {:?}",
                spec.name, spec.shape
            )
        })
}

/// The first row of an example, and its second, or the first again.
fn first_rows(example: &[Tensor]) -> Result<[Vec<Tensor>; 2]> {
    let row = |index: usize| -> Result<Vec<Tensor>> {
        let of = |input: &Tensor| {
            let index = index.min(input.rows().unwrap_or(1).saturating_sub(1));
            input.slice_rows(index..index + 1)
        };
        example.iter().map(of).collect()
    };
    Ok([row(0)?, row(1)?])
}

fn compare(
    instance: &mut dyn Backend,
    signature: &Signature,
    rows: &[Vec<Tensor>; 2],
    is_coarse: bool,
) -> Result<Finding> {
    let [first, second] = rows;
    let both = first
        .iter()
        .zip(second)
        .map(|(first, second)| Tensor::concat_rows(&[first, second]))
        .collect::<Result<Vec<_>>>()?;
    let mut run = |inputs: &[Tensor]| -> Result<Vec<Tensor>> {
        let run = instance.run(signature, &[inputs], None)?;
        Ok(run.outputs.into_iter().next().unwrap_or_default())
    };
    let (first, second, both) = (run(first)?, run(second)?, run(&both)?);
    let obstacle = first
        .iter()
        .zip(&second)
        .zip(&both)
        .find_map(|((first, second), both)| output_obstacle(first, second, both, is_coarse));
    Ok(Finding {
        batching: obstacle.map_or(Batching::Rows, Batching::Never),
        outputs: Some((first, both)),
    })
}

fn output_obstacle(first: &Tensor, second: &Tensor, both: &Tensor, is_coarse: bool) -> Option<String> {
    let name = both.name();
    if first.rows() != Some(1) || second.rows() != Some(1) || both.rows() != Some(2) {
        return Some(format!(
            "the first dimension of output `{name}` is not the row: shape {:?} for one row and {:?} for two",
            first.shape(),
            both.shape()
        ));
    }
    let own = |row: usize, alone: &Tensor| {
        both.slice_rows(row..row + 1)
            .is_ok_and(|merged| merged.shape() == alone.shape() && is_close(&merged, alone, is_coarse))
    };
    (!own(0, first) || !own(1, second)).then(|| format!("a row of output `{name}` changes with the rows beside it"))
}

fn is_close(one: &Tensor, other: &Tensor, is_coarse: bool) -> bool {
    let (Ok(ones), Ok(others)) = (crate::columns::to_f64(one), crate::columns::to_f64(other)) else {
        return one.data() == other.data();
    };
    if !one.datatype().is_float() {
        return one.data() == other.data();
    }
    let relative = if is_coarse { COARSE_TOLERANCE } else { TOLERANCE }.max(ROUNDED_APART * spacing(one.datatype()));
    let magnitudes = ones.iter().map(|value| value.abs()).filter(|value| value.is_finite());
    let largest = magnitudes.fold(0.0, f64::max);
    let close = |(one, other): (f64, f64)| {
        let scale = if is_coarse { largest } else { one.abs().max(other.abs()) };
        one.to_bits() == other.to_bits()
            || (one.is_nan() && other.is_nan())
            || (one - other).abs() <= TOLERANCE + relative * scale
    };
    ones.len() == others.len() && ones.into_iter().zip(others).all(close)
}

/// How far the numbers of a type lie apart at 1.
fn spacing(datatype: DataType) -> f64 {
    match datatype {
        DataType::Fp16 => half::f16::EPSILON.to_f64(),
        DataType::Bf16 => half::bf16::EPSILON.to_f64(),
        _ => 0.0,
    }
}

/// One row of made-up values: kind 0 is zeros (floats near them), kind 1 is something else.
fn sample(signature: &Signature, kind: u8) -> Result<Vec<Tensor>> {
    signature.inputs.iter().map(|spec| sample_input(spec, kind)).collect()
}

fn sample_input(spec: &TensorSpec, kind: u8) -> Result<Tensor> {
    let zeros = Tensor::zeros(spec.name.clone(), spec.datatype, sample_shape(&spec.shape, 1))?;
    if kind == 0 {
        return Ok(zeros);
    }
    let count = zeros.elements();
    // Uneven floats, so that a row that is normalized within itself does not vanish.
    let floats = || (0..count).map(|index| 0.125 * (index % 7) as f32 - 1.5);
    let data = match spec.datatype {
        DataType::Fp16 => TensorData::Fp16(floats().map(half::f16::from_f32).collect()),
        DataType::Bf16 => TensorData::Bf16(floats().map(half::bf16::from_f32).collect()),
        DataType::Fp32 => TensorData::Fp32(floats().collect()),
        DataType::Fp64 => TensorData::Fp64(floats().map(f64::from).collect()),
        DataType::Bool => TensorData::Bool(vec![true; count]),
        datatype => with_element!(
            datatype,
            T => {
                let mut one = Vec::<T>::new();
                T::append_bytes(&mut one, &one_le(size_of::<T>()));
                T::wrap(vec![one.first().copied().unwrap_or_default(); count])
            },
            text => TensorData::Bytes(vec![b"a".to_vec(); count]),
        ),
    };
    Tensor::new(spec.name.clone(), zeros.shape().to_vec(), data)
}

/// The integer 1 in little-endian bytes.
fn one_le(size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    if let Some(first) = bytes.first_mut() {
        *first = 1;
    }
    bytes
}
