//! Loading and running.

use modelyard_common::error::{ErrorKind, Fault};
use modelyard_inference::{
    BatcherOptions, Batching, DataType, Error, Model, ModelOptions, Runtime, Tensor, TensorData, bf16, f16,
    probabilities,
};

use crate::graphs::{self, load};
use crate::onnx::{self, element};

fn floats(name: &str, shape: &[i64], values: &[f32]) -> Tensor {
    Tensor::from_vec(name, shape.to_vec(), values.to_vec()).unwrap()
}

#[test]
fn every_datatype_goes_through_a_model_unchanged_from_any_address() {
    let cases: Vec<(i32, Tensor)> = vec![
        (
            element::BOOL,
            Tensor::from_vec("x", vec![3], vec![true, false, true]).unwrap(),
        ),
        (
            element::UINT8,
            Tensor::from_vec("x", vec![3], vec![0, 1, u8::MAX]).unwrap(),
        ),
        (
            element::UINT16,
            Tensor::from_vec("x", vec![3], vec![0, 1, u16::MAX]).unwrap(),
        ),
        (
            element::UINT32,
            Tensor::from_vec("x", vec![3], vec![0, 1, u32::MAX]).unwrap(),
        ),
        (
            element::UINT64,
            Tensor::from_vec("x", vec![3], vec![0, 1, u64::MAX]).unwrap(),
        ),
        (
            element::INT8,
            Tensor::from_vec("x", vec![3], vec![i8::MIN, -1, i8::MAX]).unwrap(),
        ),
        (
            element::INT16,
            Tensor::from_vec("x", vec![3], vec![i16::MIN, -1, i16::MAX]).unwrap(),
        ),
        (
            element::INT32,
            Tensor::from_vec("x", vec![3], vec![i32::MIN, -1, i32::MAX]).unwrap(),
        ),
        (
            element::INT64,
            Tensor::from_vec("x", vec![3], vec![i64::MIN, -1, i64::MAX]).unwrap(),
        ),
        (
            element::FLOAT16,
            Tensor::from_vec("x", vec![3], vec![f16::MIN, f16::EPSILON, f16::MAX]).unwrap(),
        ),
        (
            element::BFLOAT16,
            Tensor::from_vec("x", vec![3], vec![bf16::MIN, bf16::EPSILON, bf16::INFINITY]).unwrap(),
        ),
        (
            element::FLOAT,
            Tensor::from_vec("x", vec![3], vec![f32::MIN, 0.1, f32::INFINITY]).unwrap(),
        ),
        (
            element::DOUBLE,
            Tensor::from_vec("x", vec![3], vec![f64::MIN, 0.1, 1e-310]).unwrap(),
        ),
        (
            element::STRING,
            Tensor::from_strings("x", vec![3], vec![String::new(), "日本".to_owned(), "a\nb".to_owned()]).unwrap(),
        ),
    ];
    let tried: Vec<DataType> = cases.iter().map(|(_, tensor)| tensor.datatype()).collect();
    assert_eq!(tried, DataType::ALL);
    for (number, tensor) in cases {
        let model = load(&graphs::identity(number, &[-1])).unwrap();
        assert_eq!(model.signature().inputs[0].datatype, tensor.datatype());
        assert_eq!(model.signature().outputs[0].shape, [-1]);
        assert_eq!(*model.batching(), Batching::Rows);
        let raw = tensor.clone().into_raw().unwrap();
        // One copy of the bytes at each alignment there is.
        for offset in 0..8 {
            let mut padded = vec![0; offset];
            padded.extend_from_slice(&raw);
            let moved = bytes::Bytes::from(padded).slice(offset..);
            let input = Tensor::from_raw("x", tensor.datatype(), vec![3], moved).unwrap();
            let output = model.run(vec![input]).unwrap().remove(0);
            assert_eq!((output.name(), output.shape()), ("y", [3].as_slice()));
            assert_eq!(output.data(), tensor.data());
        }
        // The model checks the datatype before it runs.
        let other = if tensor.datatype() == DataType::Int8 {
            DataType::Uint8
        } else {
            DataType::Int8
        };
        let error = model
            .run(vec![Tensor::zeros("x", other, vec![3]).unwrap()])
            .unwrap_err();
        assert!(
            error
                .to_string()
                .contains(&format!("expected datatype {}", tensor.datatype())),
            "{error}"
        );
    }
}

#[test]
fn empty_tensors_and_scalars_pass() {
    for (number, datatype) in [(element::FLOAT, DataType::Fp32), (element::STRING, DataType::Bytes)] {
        let model = load(&graphs::identity(number, &[-1, 2])).unwrap();
        let output = model
            .run(vec![Tensor::zeros("x", datatype, vec![0, 2]).unwrap()])
            .unwrap();
        assert_eq!((output[0].shape(), output[0].elements()), ([0, 2].as_slice(), 0));
        let scalar = load(&graphs::identity(number, &[])).unwrap();
        let output = scalar.run(vec![Tensor::zeros("x", datatype, vec![]).unwrap()]).unwrap();
        assert_eq!((output[0].shape(), output[0].elements()), ([].as_slice(), 1));
        assert!(matches!(scalar.batching(), Batching::Never(reason) if reason.contains("`x`")));
    }
}

#[test]
fn a_file_that_is_not_onnx_is_refused_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = Runtime::load().unwrap();
    let whole = graphs::add();
    for content in [
        b"".as_slice(),
        b"PAR1 this is not a model",
        b"{\"model\": 1}",
        &[0; 64],
        &[0xff; 64],
        &whole[..whole.len() / 2],
    ] {
        let error = load(content).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(matches!(error, Error::NotOnnx { .. }), "{content:?}: {error}");
        assert!(error.to_string().contains("not an ONNX model"), "{error}");
        let path = folder.path().join("model.onnx");
        std::fs::write(&path, content).unwrap();
        assert!(matches!(
            Model::from_file(&runtime, &path, ModelOptions::single()),
            Err(Error::NotOnnx { .. })
        ));
    }
    let path = folder.path().join("gone.onnx");
    let error = Model::from_file(&runtime, &path, ModelOptions::single()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("gone.onnx"), "{error}");
    std::fs::write(&path, whole).unwrap();
    Model::from_file(&runtime, &path, ModelOptions::single()).unwrap();
}

#[test]
fn models_that_cannot_be_served_are_refused_with_the_remedy() {
    let error = load(&graphs::classifier(true)).unwrap_err();
    assert!(
        matches!(&error, Error::UnsupportedType { name, .. } if name == "chances"),
        "{error}"
    );
    assert!(error.to_string().contains("zipmap"), "{error}");
    let error = load(&graphs::identity(element::FLOAT8, &[-1])).unwrap_err();
    assert!(
        error.to_string().contains("`x`") && error.to_string().contains("cast"),
        "{error}"
    );
    let unknown = onnx::file(onnx::Graph {
        node: vec![onnx::node("NoSuchOperator", &["x"], &["y"])],
        input: vec![onnx::tensor("x", element::FLOAT, &[-1])],
        output: vec![onnx::tensor("y", element::FLOAT, &[-1])],
        ..onnx::Graph::default()
    });
    let error = load(&unknown).unwrap_err();
    assert!(matches!(error, Error::ModelRefused { .. }), "{error}");
    assert!(error.to_string().contains("NoSuchOperator"), "{error}");
    let options = ModelOptions {
        instances: 0,
        ..ModelOptions::single()
    };
    let error = Model::from_bytes(&Runtime::load().unwrap(), &graphs::add(), options).unwrap_err();
    assert!(error.to_string().contains("instances is 0"), "{error}");
}

#[test]
fn a_model_cannot_read_the_servers_files_as_weights() {
    // The file is there: tests run in the crate's folder.
    assert!(std::path::Path::new("Cargo.toml").exists());
    let error = load(&graphs::external("Cargo.toml")).unwrap_err();
    assert!(matches!(error, Error::ModelRefused { .. }), "{error}");
    assert!(
        error.to_string().contains("External data path does not exist"),
        "{error}"
    );
}

#[test]
fn a_classifier_gives_its_probabilities() {
    let model = load(&graphs::classifier(false)).unwrap();
    assert_eq!(*model.batching(), Batching::Rows);
    let outputs = model.run(vec![floats("x", &[2, 2], &[0.0, 0.0, 1.0, 1.0])]).unwrap();
    assert_eq!(*outputs[0].data(), TensorData::Int64(vec![0, 1]));
    let found = probabilities(&outputs).unwrap();
    assert_eq!((found.rows, found.classes), (2, 2));
    assert_eq!(found.class(1), [-0.5, 2.5]);
}

#[test]
fn merging_is_allowed_only_where_rows_stay_apart() {
    let never = |bytes: &[u8]| match load(bytes).unwrap().batching() {
        Batching::Rows => String::new(),
        Batching::Never(reason) => reason.clone(),
    };
    assert_eq!(never(&graphs::add()), "");
    assert!(never(&graphs::total()).contains("output `y` is not the row"));
    assert!(never(&graphs::across_rows()).contains("changes with the rows beside it"));
    assert!(never(&graphs::identity(element::FLOAT, &[1, 2])).contains("not free"));
    let outputs = load(&graphs::total())
        .unwrap()
        .run(vec![floats("x", &[2, 2], &[1.0, 2.0, 3.0, 4.0])]);
    assert_eq!(*outputs.unwrap()[0].data(), TensorData::Fp32(vec![10.0]));
}

#[test]
fn an_undeclared_output_shape_is_found_by_trial() {
    let model = load(&graphs::lookup()).unwrap();
    assert_eq!(model.signature().outputs[0].shape, [-1, 2]);
    assert_eq!(*model.batching(), Batching::Rows);
}

#[test]
fn a_failing_run_says_why_and_the_session_lives_on() {
    let model = load(&graphs::lookup()).unwrap();
    let run = |index: i64| model.run(vec![Tensor::from_vec("index", vec![1], vec![index]).unwrap()]);
    let error = run(7).unwrap_err();
    assert!(matches!(error, Error::RunFailed { .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.to_string().contains("Gather"), "{error}");
    assert_eq!(*run(2).unwrap()[0].data(), TensorData::Fp32(vec![2.0, 2.5]));
}

/// Large outputs of runs that follow one another are not copied: they lie in the session's memory, and keep it.
#[test]
fn large_outputs_stay_what_they_are_whatever_runs_after_them_and_without_their_model() {
    const WIDTH: usize = 600_000;
    let inputs = |width: usize, seed: f32| {
        let values: Vec<f32> = (0..width).map(|place| place as f32 + seed).collect();
        let shape = [1, width as i64];
        vec![
            floats("a", &shape, &values),
            floats("b", &shape, &vec![1.0; width]),
            Tensor::from_strings("who", vec![1], vec![seed.to_string()]).unwrap(),
        ]
    };
    let check = |outputs: &[Tensor], width: usize, seed: f32| {
        let sums: Vec<f32> = (0..width).map(|place| place as f32 + seed + 1.0).collect();
        assert_eq!(outputs[0].shape(), [1, width as i64]);
        assert!(outputs[0].values::<f32>().unwrap() == sums.as_slice(), "{seed}");
        assert_eq!(outputs[1].strings().unwrap(), [seed.to_string()]);
    };
    let model = load(&graphs::add()).unwrap();
    let run = |width, seed| model.run(inputs(width, seed)).unwrap();
    let large: Vec<_> = (0..4).map(|seed| run(WIDTH, seed as f32)).collect();
    assert!(
        large
            .iter()
            .any(|outputs| matches!(outputs[0].data(), TensorData::Raw(_)))
    );
    // Others give memory back to the system, or use it again.
    for seed in 10..14 {
        check(&run(3, seed as f32), 3, seed as f32);
        check(&run(WIDTH, seed as f32), WIDTH, seed as f32);
    }
    drop(model);
    for (seed, outputs) in large.iter().enumerate() {
        check(outputs, WIDTH, seed as f32);
    }
}

/// An output that is an input of the graph is the memory of the request, which ends before its answer does.
#[test]
fn large_outputs_that_are_inputs_outlive_them() {
    const WIDTH: usize = 1_100_000;
    let model = load(&graphs::minus_and_itself()).unwrap();
    let values = |seed: usize| (0..WIDTH).map(move |place| (place + seed) as f32).collect::<Vec<_>>();
    let outputs: Vec<_> = (0..3)
        .map(|seed| {
            let input = floats("x", &[1, WIDTH as i64], &values(seed));
            model.run(vec![input]).unwrap()
        })
        .collect();
    // What the inputs' memory is used for afterwards.
    let after: Vec<_> = (0..6).map(|_| vec![f32::NAN; WIDTH]).collect();
    for (seed, outputs) in outputs.iter().enumerate() {
        let expected = values(seed);
        assert!(outputs[1].values::<f32>().unwrap() == expected.as_slice(), "{seed}");
        let minus: Vec<f32> = expected.iter().map(|value| -value).collect();
        assert!(outputs[0].values::<f32>().unwrap() == minus.as_slice(), "{seed}");
    }
    assert!(after.iter().all(|values| values[0].is_nan()));
}

#[test]
fn inputs_are_checked_before_the_run() {
    let model = load(&graphs::add()).unwrap();
    let who = |texts: &[&str]| {
        Tensor::from_strings(
            "who",
            vec![texts.len() as i64],
            texts.iter().map(|&text| text.to_owned()).collect(),
        )
        .unwrap()
    };
    let (a, b) = (floats("a", &[1, 2], &[1.0, 2.0]), floats("b", &[1, 2], &[10.0, 20.0]));
    let outputs = model.run(vec![b.clone(), who(&["é"]), a.clone()]).unwrap();
    assert_eq!(*outputs[0].data(), TensorData::Fp32(vec![11.0, 22.0]));
    assert_eq!(outputs[1].strings().unwrap(), ["é"]);
    let error = model.run(vec![a.clone(), b.clone(), who(&["a", "b"])]).unwrap_err();
    assert!(error.to_string().contains("`who` has 2"), "{error}");
    let error = model.run(vec![a.clone(), b.clone(), who(&["a\0b"])]).unwrap_err();
    assert!(
        error.to_string().contains("`who`") && error.to_string().contains("NUL"),
        "{error}"
    );
    let no_text = Tensor::new("who", vec![1], TensorData::Bytes(vec![vec![0xff]])).unwrap();
    let error = model.run(vec![a, b, no_text]).unwrap_err();
    assert!(
        error.to_string().contains("`who`") && error.to_string().contains("not UTF-8"),
        "{error}"
    );
}

#[test]
fn concurrent_runs_share_the_sessions() {
    let mut model = graphs::load_with(&graphs::identity(element::INT64, &[-1]), 2).unwrap();
    // Shapes of other models are passed over.
    let seen = vec![vec![vec![7]], vec![vec![1, 2]], vec![]];
    model.warm_up(seen, &BatcherOptions::default()).unwrap();
    assert_eq!(model.instances(), 2);
    std::thread::scope(|scope| {
        for caller in 0..4_i64 {
            let model = &model;
            scope.spawn(move || {
                for value in 0..50 {
                    let input = Tensor::from_vec("x", vec![2], vec![caller, value]).unwrap();
                    let output = model.run(vec![input]).unwrap();
                    assert_eq!(*output[0].data(), TensorData::Int64(vec![caller, value]));
                }
            });
        }
    });
}

#[test]
fn warming_up_a_model_that_refuses_zeros_is_an_error_and_no_more() {
    // The graph folds rows into threes, which one value a row, as its shape allows, cannot fill.
    let reshape = onnx::file(onnx::Graph {
        node: vec![onnx::node("Reshape", &["x", "shape"], &["y"])],
        input: vec![onnx::tensor("x", element::FLOAT, &[-1, -1])],
        output: vec![onnx::tensor("y", element::FLOAT, &[-1, 3])],
        initializer: vec![onnx::TensorProto {
            name: "shape".to_owned(),
            dims: vec![2],
            data_type: element::INT64,
            int64_data: vec![-1, 3],
            ..onnx::TensorProto::default()
        }],
        ..onnx::Graph::default()
    });
    let mut model = load(&reshape).unwrap();
    assert!(matches!(model.batching(), Batching::Never(reason) if reason.contains("trial")));
    let warmed = model.warm_up(Vec::new(), &BatcherOptions::default());
    assert!(matches!(warmed, Err(Error::RunFailed { .. })));
    let outputs = model
        .run(vec![floats("x", &[1, 6], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])])
        .unwrap();
    assert_eq!(outputs[0].shape(), [2, 3]);
}

#[test]
fn options_follow_the_size_of_the_model() {
    let small = ModelOptions::for_size(1 << 20, 4);
    assert_eq!((small.instances, small.intra_threads), (4, 1));
    let large = ModelOptions::for_size(1 << 30, 4);
    assert_eq!((large.instances, large.intra_threads), (1, 4));
    let none = ModelOptions::for_size(1, 0);
    assert_eq!((none.instances, none.intra_threads), (1, 1));
}
