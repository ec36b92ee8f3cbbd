use half::{bf16, f16};
use modelyard_common::error::{ErrorKind, Fault};
use proptest::prelude::*;

use super::*;

/// A tensor of each datatype, two rows of three, with the extreme values.
fn every_datatype() -> Vec<Tensor> {
    let shape = || vec![2, 3];
    vec![
        Tensor::from_vec("t", shape(), vec![true, false, true, true, false, false]).unwrap(),
        Tensor::from_vec("t", shape(), vec![0, 1, 2, 3, u8::MAX, 7]).unwrap(),
        Tensor::from_vec("t", shape(), vec![0, 1, 2, 3, u16::MAX, 7]).unwrap(),
        Tensor::from_vec("t", shape(), vec![0, 1, 2, 3, u32::MAX, 7]).unwrap(),
        Tensor::from_vec("t", shape(), vec![0, 1, 2, 3, u64::MAX, 7]).unwrap(),
        Tensor::from_vec("t", shape(), vec![0, -1, 2, i8::MIN, i8::MAX, 7]).unwrap(),
        Tensor::from_vec("t", shape(), vec![0, -1, 2, i16::MIN, i16::MAX, 7]).unwrap(),
        Tensor::from_vec("t", shape(), vec![0, -1, 2, i32::MIN, i32::MAX, 7]).unwrap(),
        Tensor::from_vec("t", shape(), vec![0, -1, 2, i64::MIN, i64::MAX, 7]).unwrap(),
        Tensor::from_vec(
            "t",
            shape(),
            vec![f16::MIN, f16::MAX, f16::ONE, f16::ZERO, f16::INFINITY, f16::EPSILON],
        )
        .unwrap(),
        Tensor::from_vec(
            "t",
            shape(),
            [0.5, -1.0, 0.1, -0.0, f32::INFINITY, 1e-40]
                .map(bf16::from_f32)
                .to_vec(),
        )
        .unwrap(),
        Tensor::from_vec("t", shape(), vec![f32::MIN, f32::MAX, 0.1, -0.0, f32::INFINITY, 1e-40]).unwrap(),
        Tensor::from_vec(
            "t",
            shape(),
            vec![f64::MIN, f64::MAX, 0.1, -0.0, f64::NEG_INFINITY, 1e-310],
        )
        .unwrap(),
        Tensor::from_strings(
            "t",
            shape(),
            ["", "a", "é", "日本", "\n", "0123"].map(str::to_owned).to_vec(),
        )
        .unwrap(),
    ]
}

/// The same bytes at an address that is odd.
fn at_odd_address(bytes: &[u8]) -> Bytes {
    let mut padded = vec![0; bytes.len() + 2];
    let start = usize::from(padded.as_ptr().addr().is_multiple_of(2));
    padded[start..start + bytes.len()].copy_from_slice(bytes);
    let moved = Bytes::from(padded).slice(start..start + bytes.len());
    assert_eq!(moved.as_ptr().addr() % 2, 1, "the buffer moved");
    moved
}

/// The elements in typed storage, so that equality is of values.
fn typed(tensor: &Tensor) -> TensorData {
    tensor.aligned_copy()
}

#[test]
fn every_datatype_survives_its_raw_form_at_any_address() {
    let tensors = every_datatype();
    let datatypes: Vec<DataType> = tensors.iter().map(Tensor::datatype).collect();
    assert_eq!(datatypes, DataType::ALL);
    for tensor in tensors {
        let raw = tensor.clone().into_raw().unwrap();
        if let Some(size) = tensor.datatype().size_bytes() {
            assert_eq!(raw.len(), 6 * size);
        }
        for bytes in [raw.clone(), at_odd_address(&raw)] {
            let back = Tensor::from_raw("t", tensor.datatype(), vec![2, 3], bytes).unwrap();
            assert_eq!(back.elements(), 6);
            assert_eq!(typed(&back), *tensor.data(), "{}", tensor.datatype());
            assert_eq!(back.into_raw().unwrap(), raw);
        }
    }
}

#[test]
fn the_raw_form_is_the_protocols() {
    let number = Tensor::from_vec("t", vec![1], vec![0x0102_0304_u32]).unwrap();
    assert_eq!(*number.into_raw().unwrap(), [4, 3, 2, 1]);
    let texts = Tensor::from_strings("t", vec![2], vec!["ab".to_owned(), String::new()]).unwrap();
    assert_eq!(*texts.into_raw().unwrap(), [2, 0, 0, 0, b'a', b'b', 0, 0, 0, 0]);
}

#[test]
fn elements_of_bytes_are_any_bytes_and_texts_where_they_are_utf_8() {
    let raw = Bytes::from_static(&[2, 0, 0, 0, 0xff, 0, 1, 0, 0, 0, b'a']);
    let tensor = Tensor::from_raw("t", DataType::Bytes, vec![2], raw.clone()).unwrap();
    assert_eq!(*tensor.data(), TensorData::Bytes(vec![vec![0xff, 0], b"a".to_vec()]));
    let error = tensor.strings().unwrap_err().to_string();
    assert!(
        error.contains("`t`") && error.contains("element 0 is not UTF-8"),
        "{error}"
    );
    assert_eq!(tensor.slice_rows(1..2).unwrap().strings().unwrap(), ["a"]);
    assert_eq!(tensor.into_raw().unwrap(), raw);
}

#[test]
fn datatypes_are_written_and_read_by_the_protocols_names() {
    for datatype in DataType::ALL {
        assert_eq!(datatype.to_string().parse::<DataType>().unwrap(), datatype);
        assert_eq!(serde_json::to_value(datatype).unwrap(), datatype.name());
    }
    let error = "FLOAT".parse::<DataType>().unwrap_err().to_string();
    assert!(error.contains("FLOAT") && error.contains("FP32"), "{error}");
}

#[test]
fn values_are_borrowed_where_they_are_aligned() {
    let raw = Tensor::from_vec("t", vec![2], vec![1.0_f32, 2.0])
        .unwrap()
        .into_raw()
        .unwrap();
    let aligned = Tensor::from_raw("t", DataType::Fp32, vec![2], raw.clone()).unwrap();
    assert!(matches!(aligned.values::<f32>().unwrap(), Cow::Borrowed([1.0, 2.0])));
    let odd = Tensor::from_raw("t", DataType::Fp32, vec![2], at_odd_address(&raw)).unwrap();
    assert!(matches!(odd.values::<f32>().unwrap(), Cow::Owned(values) if values == [1.0, 2.0]));
    assert!(aligned.values::<i32>().is_err());
    assert!(aligned.strings().is_err());
}

#[test]
fn tensors_that_contradict_themselves_are_refused_by_name() {
    let raw = |datatype, shape: Vec<i64>, bytes: &'static [u8]| {
        Tensor::from_raw("pixels", datatype, shape, Bytes::from_static(bytes)).unwrap_err()
    };
    let faults = [
        (raw(DataType::Fp32, vec![2], &[0; 7]), "takes 8 bytes, got 7"),
        (raw(DataType::Bool, vec![2], &[1, 2]), "0 or 1"),
        (raw(DataType::Int8, vec![-1], &[0]), "negative"),
        (
            raw(DataType::Bytes, vec![1], &[2, 0, 0, 0, b'a']),
            "end within element 0",
        ),
        (raw(DataType::Bytes, vec![2], &[0, 0, 0, 0, 0]), "5 bytes"),
        (raw(DataType::Bytes, vec![1], &[0, 0, 0, 0, 9]), "1 bytes follow"),
        (
            raw(DataType::Bytes, vec![1], &[0xff, 0xff, 0xff, 0xff, 0]),
            "end within element 0",
        ),
        (
            Tensor::from_vec("pixels", vec![3], vec![1_i64]).unwrap_err(),
            "3 elements, got 1",
        ),
        (
            Tensor::from_vec("pixels", vec![1; 33], vec![1_i64]).unwrap_err(),
            "33 dimensions",
        ),
        (
            Tensor::new("pixels", vec![0], TensorData::Raw(Bytes::new())).unwrap_err(),
            "datatype",
        ),
    ];
    for (error, part) in faults {
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(
            error.to_string().contains("`pixels`") && error.to_string().contains(part),
            "{error}"
        );
    }
}

#[test]
fn shapes_that_overflow_take_no_memory() {
    for shape in [
        vec![i64::MAX],
        vec![i64::MAX, i64::MAX],
        vec![1 << 32, 1 << 32],
        vec![0, i64::MAX, 4],
        vec![MAX_ELEMENTS as i64 + 1],
    ] {
        for datatype in [DataType::Uint8, DataType::Fp64, DataType::Bytes] {
            let error = Tensor::from_raw("t", datatype, shape.clone(), Bytes::new()).unwrap_err();
            assert!(error.to_string().contains("more than"), "{error}");
            assert!(Tensor::zeros("t", datatype, shape.clone()).is_err());
        }
    }
    // A count within the limit that the bytes cannot back must not be allocated for either.
    assert!(Tensor::from_raw("t", DataType::Bytes, vec![MAX_ELEMENTS as i64], Bytes::new()).is_err());
    assert_eq!(Tensor::zeros("t", DataType::Fp32, vec![]).unwrap().elements(), 1);
    assert_eq!(Tensor::zeros("t", DataType::Fp32, vec![0, 4]).unwrap().elements(), 0);
}

#[test]
fn rows_of_other_shapes_or_datatypes_do_not_join() {
    let one = Tensor::zeros("t", DataType::Fp32, vec![1, 2]).unwrap();
    for other in [
        Tensor::zeros("t", DataType::Fp32, vec![1, 3]).unwrap(),
        Tensor::zeros("t", DataType::Fp64, vec![1, 2]).unwrap(),
        Tensor::zeros("t", DataType::Fp32, vec![2]).unwrap(),
        Tensor::zeros("t", DataType::Fp32, vec![]).unwrap(),
    ] {
        assert!(Tensor::concat_rows(&[&one, &other]).is_err());
        assert!(Tensor::concat_rows(&[&other, &one]).is_err());
    }
    assert!(Tensor::concat_rows(&[]).is_err());
    assert!(one.slice_rows(0..2).is_err());
    assert!(
        Tensor::zeros("t", DataType::Fp32, vec![])
            .unwrap()
            .slice_rows(0..0)
            .is_err()
    );
}

proptest! {
    /// Cutting a tensor anywhere and joining the pieces gives the tensor, whether its elements are typed or raw.
    #[test]
    fn slices_join_to_the_whole(rows in 0_usize..6, width in 0_usize..4, cut in 0_usize..6, which in 0_usize..13, raw: bool) {
        let cut = cut.min(rows);
        let shape = vec![rows as i64, width as i64];
        let source = every_datatype().swap_remove(which);
        let datatype = source.datatype();
        let count = rows * width;
        let data = with_element!(
            datatype,
            T => {
                let values = source.values::<T>().unwrap();
                T::wrap(values.iter().copied().cycle().take(count).collect())
            },
            text => TensorData::Bytes(crate::tensor::byte_strings(source.data()).iter().cloned().cycle().take(count).collect()),
        );
        let whole = Tensor::new("t", shape.clone(), data.clone()).unwrap();
        let whole = if raw {
            Tensor::from_raw("t", datatype, shape.clone(), at_odd_address(&whole.into_raw().unwrap())).unwrap()
        } else {
            whole
        };
        let (head, tail) = (whole.slice_rows(0..cut).unwrap(), whole.slice_rows(cut..rows).unwrap());
        prop_assert_eq!(head.rows(), Some(cut));
        let joined = Tensor::concat_rows(&[&head, &tail]).unwrap();
        prop_assert_eq!(joined.shape(), shape.as_slice());
        prop_assert_eq!(joined.data(), &data);
    }
}
