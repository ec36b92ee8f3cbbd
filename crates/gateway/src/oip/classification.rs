//! The classification extension: the largest elements of each row as texts `value:index`, the largest first.

use std::cmp::Ordering;

use modelyard_inference::{DataType, Tensor, to_f64};

use crate::error::{Error, Result};

/// The `count` largest elements of each row of an output; of equal ones the first comes first, and NaN comes last. The
/// first dimension is that of the rows if `by_row`, else all elements are one row. Floats are written with six decimals,
/// as Triton writes them.
///
/// # Errors
/// `InvalidRequest` for texts and booleans, and for no classes at all.
pub(crate) fn classify(output: &Tensor, count: usize, by_row: bool) -> Result<Tensor> {
    macro_rules! integers {
        ($type:ty) => {
            largest(
                &output.values::<$type>()?,
                |left, right| right.cmp(left),
                <$type>::to_string,
                output,
                count,
                by_row,
            )
        };
    }
    let name = output.name();
    if count == 0 {
        return Err(Error::invalid(format!(
            "output `{name}`: classification asks for 0 classes: ask for at least 1"
        )));
    }
    let (shape, texts) = match output.datatype() {
        DataType::Uint8 => integers!(u8),
        DataType::Uint16 => integers!(u16),
        DataType::Uint32 => integers!(u32),
        DataType::Uint64 => integers!(u64),
        DataType::Int8 => integers!(i8),
        DataType::Int16 => integers!(i16),
        DataType::Int32 => integers!(i32),
        DataType::Int64 => integers!(i64),
        DataType::Fp16 | DataType::Bf16 | DataType::Fp32 | DataType::Fp64 => largest(
            &to_f64(output)?,
            |left, right| greatest_first(*left, *right),
            |value| format!("{value:.6}"),
            output,
            count,
            by_row,
        ),
        DataType::Bool | DataType::Bytes => {
            return Err(Error::invalid(format!(
                "output `{name}` is {} and has no classes: classification is for numbers",
                output.datatype()
            )));
        }
    };
    Ok(Tensor::from_strings(name, shape, texts)?)
}

/// Larger ones first, NaN last.
fn greatest_first(left: f64, right: f64) -> Ordering {
    right
        .partial_cmp(&left)
        .unwrap_or_else(|| left.is_nan().cmp(&right.is_nan()))
}

fn largest<T>(
    values: &[T],
    order: impl Fn(&T, &T) -> Ordering,
    write: impl Fn(&T) -> String,
    output: &Tensor,
    count: usize,
    by_row: bool,
) -> (Vec<i64>, Vec<String>) {
    let rows = if by_row { output.rows().unwrap_or(1) } else { 1 };
    let width = values.len().checked_div(rows).unwrap_or(0);
    let kept = count.min(width);
    let mut texts = Vec::with_capacity(rows * kept);
    for row in values.chunks(width.max(1)) {
        let mut ranked: Vec<(usize, &T)> = row.iter().enumerate().collect();
        // Stable: of equal ones the first stays first.
        ranked.sort_by(|(_, left), (_, right)| order(left, right));
        texts.extend(
            ranked
                .into_iter()
                .take(kept)
                .map(|(index, value)| format!("{}:{index}", write(value))),
        );
    }
    let shape = if by_row {
        vec![rows as i64, kept as i64]
    } else {
        vec![kept as i64]
    };
    (shape, texts)
}

#[cfg(test)]
mod tests {
    use modelyard_inference::TensorData;

    use super::*;

    fn classes(data: TensorData, shape: &[i64], count: usize, by_row: bool) -> (Vec<i64>, Vec<String>) {
        let tensor = Tensor::new("scores", shape.to_vec(), data).unwrap();
        let classified = classify(&tensor, count, by_row).unwrap();
        let texts = classified.strings().unwrap().into_iter().map(str::to_owned);
        (classified.shape().to_vec(), texts.collect())
    }

    #[test]
    fn the_largest_of_each_row_come_first() {
        let scores = TensorData::Fp32(vec![0.1, 0.7, 0.2, f32::NAN, 0.25, 0.25]);
        let (shape, texts) = classes(scores.clone(), &[2, 3], 2, true);
        assert_eq!(shape, [2, 2]);
        assert_eq!(texts, ["0.700000:1", "0.200000:2", "0.250000:1", "0.250000:2"]);
        let (shape, texts) = classes(scores, &[2, 3], 1, false);
        assert_eq!((shape, texts), (vec![1], vec!["0.700000:1".to_owned()]));
        let (shape, texts) = classes(TensorData::Int64(vec![i64::MAX - 1, i64::MAX]), &[1, 2], 9, true);
        assert_eq!(shape, [1, 2]);
        assert_eq!(texts, ["9223372036854775807:1", "9223372036854775806:0"]);
        let (shape, texts) = classes(TensorData::Fp64(vec![]), &[0, 3], 2, true);
        assert_eq!((shape, texts.len()), (vec![0, 0], 0));
    }

    #[test]
    fn what_has_no_classes_is_refused() {
        let texts = Tensor::from_strings("words", vec![1], vec!["a".to_owned()]).unwrap();
        assert!(
            classify(&texts, 1, true)
                .unwrap_err()
                .to_string()
                .contains("`words` is BYTES")
        );
        let numbers = Tensor::new("n", vec![1], TensorData::Uint8(vec![1])).unwrap();
        assert!(
            classify(&numbers, 0, true)
                .unwrap_err()
                .to_string()
                .contains("at least 1")
        );
    }
}
