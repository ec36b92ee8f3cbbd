use std::sync::Arc;

use arrow::{
    array::{
        BooleanArray, DictionaryArray, Float32Array, Float64Array, Int8Array, Int64Array, NullArray, StringArray,
        StringViewArray, UInt64Array,
    },
    datatypes::Int32Type,
};
use half::f16;
use modelyard_common::error::{ErrorKind, Fault};

use super::*;

fn convert(datatype: DataType, shape: &[i64], column: ArrayRef) -> Result<Tensor> {
    let signature = Signature {
        inputs: vec![TensorSpec {
            name: "c".to_owned(),
            datatype,
            shape: shape.to_vec(),
        }],
        outputs: vec![],
    };
    let batch = RecordBatch::try_from_iter_with_nullable([("unused", Arc::clone(&column), true), ("c", column, true)]);
    Ok(tensors_from_batch(&batch.unwrap(), &signature)?.remove(0))
}

#[test]
fn the_shape_follows_the_signature() {
    let column = || Arc::new(Float32Array::from(vec![1.0, 2.0, 3.0])) as ArrayRef;
    assert_eq!(convert(DataType::Fp32, &[-1, 1], column()).unwrap().shape(), [3, 1]);
    assert_eq!(convert(DataType::Fp32, &[-1], column()).unwrap().shape(), [3]);
    assert_eq!(convert(DataType::Fp32, &[-1, -1], column()).unwrap().shape(), [3, 1]);
    let error = convert(DataType::Fp32, &[-1, 4], column()).unwrap_err().to_string();
    assert!(error.contains("[-1, 4]") && error.contains("`c`"), "{error}");
    let error = convert(DataType::Fp32, &[2], column()).unwrap_err().to_string();
    assert!(error.contains("[2]") && error.contains("[3]"), "{error}");
}

#[test]
fn missing_floats_are_nan_and_missing_texts_are_empty() {
    let floats: ArrayRef = Arc::new(Float64Array::from(vec![Some(1.5), None]));
    let tensor = convert(DataType::Fp32, &[-1, 1], floats).unwrap();
    let values = tensor.values::<f32>().unwrap();
    assert_eq!(values[0].to_bits(), 1.5_f32.to_bits());
    assert!(values[1].is_nan());
    let integers: ArrayRef = Arc::new(Int64Array::from(vec![Some(7), None]));
    let tensor = convert(DataType::Fp64, &[-1, 1], integers).unwrap();
    let values = tensor.values::<f64>().unwrap();
    assert_eq!(values[0].to_bits(), 7.0_f64.to_bits());
    assert!(values[1].is_nan());
    let nothing: ArrayRef = Arc::new(NullArray::new(2));
    assert!(to_f64(&convert(DataType::Fp16, &[-1], Arc::clone(&nothing)).unwrap()).unwrap()[1].is_nan());
    let dictionary: DictionaryArray<Int32Type> = vec![Some("a"), None, Some("a")].into_iter().collect();
    for (column, expected) in [
        (
            Arc::new(StringArray::from(vec![Some("a"), None])) as ArrayRef,
            vec!["a", ""],
        ),
        (Arc::new(StringViewArray::from(vec![Some("é"), None])), vec!["é", ""]),
        (Arc::new(dictionary), vec!["a", "", "a"]),
        (nothing, vec!["", ""]),
    ] {
        let tensor = convert(DataType::Bytes, &[-1, 1], column).unwrap();
        assert_eq!(tensor.strings().unwrap(), expected);
    }
}

#[test]
fn integers_widen_and_narrow_only_where_they_fit() {
    let narrow: ArrayRef = Arc::new(Int8Array::from(vec![-1, 127]));
    let tensor = convert(DataType::Int64, &[-1], Arc::clone(&narrow)).unwrap();
    assert_eq!(*tensor.values::<i64>().unwrap(), [-1, 127]);
    let wide: ArrayRef = Arc::new(Int64Array::from(vec![5, 300]));
    let tensor = convert(DataType::Int32, &[-1], Arc::clone(&wide)).unwrap();
    assert_eq!(*tensor.values::<i32>().unwrap(), [5, 300]);
    let huge: ArrayRef = Arc::new(UInt64Array::from(vec![u64::MAX]));
    let tensor = convert(DataType::Uint64, &[-1], Arc::clone(&huge)).unwrap();
    assert_eq!(*tensor.values::<u64>().unwrap(), [u64::MAX]);
    for (datatype, column, found) in [
        (DataType::Int8, wide, "row 1: 300"),
        (DataType::Uint8, narrow, "row 0: -1"),
        (DataType::Int64, huge, "row 0: 18446744073709551615"),
    ] {
        let error = convert(datatype, &[-1], column).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().contains(found), "{error}");
    }
}

#[test]
fn integers_become_floats_only_where_that_is_exact() {
    let column = |value| Arc::new(Int64Array::from(vec![value])) as ArrayRef;
    let exact = 1 << 24;
    let tensor = convert(DataType::Fp32, &[-1], column(exact)).unwrap();
    assert_eq!(*tensor.values::<f32>().unwrap(), [16_777_216.0]);
    let tensor = convert(DataType::Fp16, &[-1], column(2048)).unwrap();
    assert_eq!(*tensor.values::<f16>().unwrap(), [f16::from_f32(2048.0)]);
    for (datatype, value) in [
        (DataType::Fp32, exact + 1),
        (DataType::Fp16, 2049),
        (DataType::Fp16, 70_000),
        (DataType::Fp64, i64::MAX),
    ] {
        let error = convert(datatype, &[-1], column(value)).unwrap_err().to_string();
        assert!(error.contains(&value.to_string()), "{error}");
    }
}

#[test]
fn what_has_no_meaning_is_refused() {
    let flags: ArrayRef = Arc::new(BooleanArray::from(vec![Some(true), Some(false)]));
    let tensor = convert(DataType::Bool, &[-1], Arc::clone(&flags)).unwrap();
    assert_eq!(*tensor.values::<bool>().unwrap(), [true, false]);
    let absent: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), None]));
    let error = convert(DataType::Int64, &[-1], absent).unwrap_err().to_string();
    assert!(error.contains("row 1 has no value"), "{error}");
    let absent: ArrayRef = Arc::new(BooleanArray::from(vec![None, Some(true)]));
    assert!(convert(DataType::Bool, &[-1], absent).is_err());
    let texts: ArrayRef = Arc::new(StringArray::from(vec!["1", "2"]));
    for (datatype, column) in [
        (DataType::Fp32, Arc::clone(&texts)),
        (DataType::Int32, texts),
        (DataType::Fp32, Arc::clone(&flags)),
        (DataType::Bytes, flags),
        (DataType::Int64, Arc::new(Float64Array::from(vec![1.0]))),
    ] {
        let error = convert(datatype, &[-1], column).unwrap_err().to_string();
        assert!(error.contains("got a column of"), "{error}");
    }
}

#[test]
fn all_missing_columns_are_named() {
    let spec = |name: &str| TensorSpec {
        name: name.to_owned(),
        datatype: DataType::Fp32,
        shape: vec![-1, 1],
    };
    let signature = Signature {
        inputs: vec![spec("a"), spec("b"), spec("c")],
        outputs: vec![],
    };
    let column: ArrayRef = Arc::new(Float32Array::from(vec![1.0]));
    let batch = RecordBatch::try_from_iter([("b", column)]).unwrap();
    let error = tensors_from_batch(&batch, &signature).unwrap_err().to_string();
    assert!(error.contains("a, c"), "{error}");
}

#[test]
fn probabilities_are_found_among_the_outputs() {
    let label = Tensor::from_vec("label", vec![2], vec![0_i64, 1]).unwrap();
    let chances = Tensor::from_vec("p", vec![2, 2], vec![0.75_f32, 0.25, 0.5, 0.5]).unwrap();
    let found = probabilities(&[label.clone(), chances.clone()]).unwrap();
    assert_eq!((found.rows, found.classes), (2, 2));
    assert_eq!(found.class(1), [0.25, 0.5]);
    let raw = Tensor::from_vec("raw", vec![2], vec![3.0_f64, 4.0]).unwrap();
    assert_eq!(probabilities(std::slice::from_ref(&raw)).unwrap().class(0), [3.0, 4.0]);
    assert!(probabilities(&[chances.clone(), raw.clone()]).is_err());
    let named = chances.renamed("probabilities");
    assert_eq!(probabilities(&[raw, named]).unwrap().class(0), [0.75, 0.5]);
    assert!(probabilities(&[label]).is_err());
}
