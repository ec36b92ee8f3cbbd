//! Something else than ONNX Runtime runs the model: queues, batches and statistics are the same.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use modelyard_inference::{
    Accelerator, Backend, BatcherOptions, DataType, Error, Model, ModelOptions, Predictor, Provider, Result, Run,
    RunTimes, Runtime, Signature, Source, Tensor, TensorSpec,
};

use crate::batcher::runtime;

/// What ends whatever runs the model.
const POISON: f32 = 666.0;

/// Of each run the shapes of its requests' input.
type Runs = Arc<Mutex<Vec<Vec<Vec<i64>>>>>;

/// Doubles what comes, notes it, and refuses to be opened when it is told to.
struct Doubling {
    runs: Runs,
    opens: bool,
}

impl Source for Doubling {
    fn open(&self) -> Result<Box<dyn Backend>> {
        if !self.opens {
            return Err(Error::Broken {
                detail: "the other server is away".to_owned(),
            });
        }
        Ok(Box::new(Doubler(Arc::clone(&self.runs))))
    }

    fn memory_bytes(&self) -> u64 {
        1000
    }
}

struct Doubler(Runs);

impl Backend for Doubler {
    fn run(&mut self, _: &Signature, requests: &[&[Tensor]], _: Option<Instant>) -> Result<Run> {
        let shapes = requests.iter().map(|request| request[0].shape().to_vec());
        self.0.lock().unwrap().push(shapes.collect());
        if requests
            .iter()
            .any(|request| request[0].values::<f32>().unwrap().contains(&POISON))
        {
            return Err(Error::BackendLost {
                detail: "it did not survive this".to_owned(),
            });
        }
        let double = |request: &&[Tensor]| {
            let doubled = request[0].values::<f32>()?.iter().map(|value| 2.0 * value).collect();
            Ok(vec![Tensor::from_vec("y", request[0].shape().to_vec(), doubled)?])
        };
        Ok(Run {
            outputs: requests.iter().map(double).collect::<Result<_>>()?,
            times: RunTimes::default(),
        })
    }
}

fn signature() -> Signature {
    let spec = |name: &str| TensorSpec {
        name: name.to_owned(),
        datatype: DataType::Fp32,
        shape: vec![-1, 1],
    };
    Signature {
        inputs: vec![spec("x")],
        outputs: vec![spec("y")],
    }
}

fn model(opens: bool) -> (Result<Model>, Runs) {
    let runs = Runs::default();
    let source = Doubling {
        runs: Arc::clone(&runs),
        opens,
    };
    let model = Model::new(signature(), Arc::new(source), 1);
    // What is found out by a trial is not what is looked at.
    runs.lock().unwrap().clear();
    (model, runs)
}

#[test]
fn requests_are_merged_checked_and_counted_whatever_runs_them() {
    const CALLERS: u8 = 8;
    // A held batch merges all of them, for sure.
    let options = BatcherOptions {
        max_batch_rows: CALLERS.into(),
        max_queue_delay: Duration::from_secs(5),
        ..BatcherOptions::default()
    };
    let (model, runs) = model(true);
    let predictor = Predictor::start(model.unwrap(), options).unwrap();
    assert_eq!(predictor.memory_bytes(), 1000);
    let ask = async |value: u8| {
        let input = Tensor::from_vec("x", vec![1, 1], vec![f32::from(value)]).unwrap();
        let prediction = predictor.predict(vec![input], None).await.unwrap();
        assert_eq!(
            *prediction.outputs[0].values::<f32>().unwrap(),
            [2.0 * f32::from(value)]
        );
        prediction.batch_rows
    };
    let answers = runtime().block_on(futures::future::join_all((0..CALLERS).map(ask)));
    assert_eq!(answers, [usize::from(CALLERS); CALLERS as usize]);
    assert_eq!(*runs.lock().unwrap(), [vec![vec![1, 1]; CALLERS as usize]]);
    let counted = predictor.statistics();
    assert_eq!((counted.succeeded, counted.executions), (CALLERS.into(), 1));
    let wrong = Tensor::from_vec("x", vec![1, 2], vec![1.0_f32, 2.0]).unwrap();
    let error = runtime().block_on(predictor.predict(vec![wrong], None)).unwrap_err();
    assert!(error.to_string().contains("expected shape [-1, 1]"), "{error}");
    assert_eq!(runs.lock().unwrap().len(), 1, "it was refused before it ran");
}

#[test]
fn a_model_is_warmed_with_shapes_that_were_seen() {
    let (model, runs) = model(true);
    let mut model = model.unwrap();
    model.warm_up(vec![vec![vec![7, 1]], vec![vec![3, 1]]]).unwrap();
    let warmed = runs.lock().unwrap().clone();
    for shape in [[7, 1], [3, 1]] {
        assert!(
            warmed.iter().any(|run| *run == [shape.to_vec()]),
            "{shape:?}: {warmed:?}"
        );
    }
    runs.lock().unwrap().clear();
    let predictor = Predictor::start(model, BatcherOptions::default()).unwrap();
    let input = Tensor::from_vec("x", vec![2, 1], vec![1.0_f32, 2.0]).unwrap();
    runtime().block_on(predictor.predict(vec![input], None)).unwrap();
    assert_eq!(
        *runs.lock().unwrap(),
        [[[2, 1]]],
        "the first request needs no other run"
    );
}

#[test]
fn a_request_that_what_runs_the_model_does_not_survive_fails_alone() {
    let options = BatcherOptions {
        max_batch_rows: 4,
        max_queue_delay: Duration::from_secs(5),
        ..BatcherOptions::default()
    };
    let (model, runs) = model(true);
    let predictor = Predictor::start(model.unwrap(), options).unwrap();
    let ask = async |value: f32| {
        let input = Tensor::from_vec("x", vec![1, 1], vec![value]).unwrap();
        predictor.predict(vec![input], None).await
    };
    let answers = runtime().block_on(futures::future::join_all([1.0, POISON, 2.0, 3.0].map(ask)));
    let failed: Vec<bool> = answers.iter().map(Result::is_err).collect();
    assert_eq!(failed, [false, true, false, false]);
    let error = answers.into_iter().find_map(Result::err).unwrap();
    assert!(error.to_string().contains("did not survive"), "{error}");
    let sizes: Vec<usize> = runs.lock().unwrap().iter().map(Vec::len).collect();
    assert_eq!(sizes, [4, 1, 1, 1, 1], "each is tried once more, alone");
}

#[test]
fn batches_have_no_more_elements_than_they_may() {
    const CALLERS: usize = 8;
    let options = BatcherOptions {
        max_batch_rows: 100,
        max_batch_elements: 3,
        max_queue_delay: Duration::from_millis(100),
        ..BatcherOptions::default()
    };
    let (model, runs) = model(true);
    let predictor = Predictor::start(model.unwrap(), options).unwrap();
    let ask = async || {
        let input = Tensor::from_vec("x", vec![1, 1], vec![1.0_f32]).unwrap();
        predictor.predict(vec![input], None).await.unwrap()
    };
    runtime().block_on(futures::future::join_all((0..CALLERS).map(|_| ask())));
    let sizes: Vec<usize> = runs.lock().unwrap().iter().map(Vec::len).collect();
    assert_eq!(sizes.iter().sum::<usize>(), CALLERS);
    assert!(sizes.iter().all(|size| *size <= 3) && sizes.contains(&3), "{sizes:?}");
}

#[test]
fn why_nothing_runs_it_is_told() {
    let error = model(false).0.unwrap_err();
    assert!(error.to_string().contains("the other server is away"), "{error}");
    let source = Doubling {
        runs: Arc::default(),
        opens: true,
    };
    let error = Model::new(signature(), Arc::new(source), 0).unwrap_err();
    assert!(error.to_string().contains("0 backends"), "{error}");
}

#[test]
fn an_accelerator_that_the_library_lacks_is_told_of() {
    // The library of the tests is built for processors alone.
    let runtime = Runtime::load().unwrap();
    for (provider, name) in [
        (Provider::Cuda, "CUDAExecutionProvider"),
        (Provider::TensorRt, "TensorrtExecutionProvider"),
    ] {
        let accelerator = Accelerator { provider, device: 0 };
        let error = accelerator.check(&runtime).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("onnxruntime-gpu"), "{error}");
        // A model is not run by the processors instead, as if nothing were.
        let options = ModelOptions::single().on(Some(accelerator));
        let error = Model::from_bytes(&runtime, &crate::graphs::add(), options).unwrap_err();
        assert!(
            matches!(&error, Error::AcceleratorUnusable { provider, .. } if *provider == name),
            "{error}"
        );
    }
}
