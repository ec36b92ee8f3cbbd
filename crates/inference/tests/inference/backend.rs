//! Something else than ONNX Runtime runs the model: queues, batches and statistics are the same.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use modelyard_inference::{
    Accelerator, Backend, BatcherOptions, Batching, DataType, Error, Model, ModelOptions, Predictor, Provider, Result,
    Run, RunTimes, Runtime, Signature, Source, Tensor, TensorData, TensorSpec, bf16, f16,
};

use crate::batcher::runtime;

/// What ends whatever runs the model.
const POISON: f32 = 666.0;

/// Of each run the shapes of its requests' input.
type Runs = Arc<Mutex<Vec<Vec<Vec<i64>>>>>;

/// Doubles what comes, notes it, and refuses to be opened when it is told to.
#[derive(Default)]
struct Doubling {
    runs: Runs,
    opens: bool,
    grows_slowly: bool,
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

    fn grows_slowly(&self) -> bool {
        self.grows_slowly
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
        ..Doubling::default()
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
    let seen = vec![vec![vec![7, 1]], vec![vec![3, 1]]];
    model.warm_up(seen, &BatcherOptions::default()).unwrap();
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
fn what_grows_slowly_is_warmed_with_batches_as_large_as_they_get() {
    let runs = Runs::default();
    let source = Doubling {
        runs: Arc::clone(&runs),
        opens: true,
        grows_slowly: true,
    };
    let mut signature = signature();
    signature.inputs[0].shape = vec![-1, -1];
    signature.outputs[0].shape = vec![-1, -1];
    let mut model = Model::new(signature, Arc::new(source), 1).unwrap();
    let batches = BatcherOptions {
        max_batch_rows: 64,
        max_batch_elements: 1000,
        ..BatcherOptions::default()
    };
    // The last is no shape of this model's.
    let seen = vec![vec![vec![2, 5]], vec![vec![1, 100]], vec![vec![1, 5]], vec![vec![4]]];
    model.warm_up(seen, &batches).unwrap();
    let mut rows: Vec<Vec<i64>> = runs.lock().unwrap().iter().map(|run| run[0].clone()).collect();
    rows.retain(|shape| shape[0] > 2);
    assert_eq!(rows, [[10, 100], [64, 5], [64, 1]]);
}

/// Gives the same for each row, in runs of one row another number than in larger ones.
#[derive(Clone)]
struct Uneven {
    alone: TensorData,
    beside: TensorData,
    is_coarse: bool,
}

impl Source for Uneven {
    fn open(&self) -> Result<Box<dyn Backend>> {
        Ok(Box::new(self.clone()))
    }

    fn memory_bytes(&self) -> u64 {
        0
    }

    fn rounds_coarsely(&self) -> bool {
        self.is_coarse
    }
}

impl Backend for Uneven {
    fn run(&mut self, _: &Signature, requests: &[&[Tensor]], _: Option<Instant>) -> Result<Run> {
        let rows = requests[0][0].rows().unwrap_or(0);
        let data = if rows == 1 { &self.alone } else { &self.beside };
        let number = Tensor::new("y", vec![1, 2], data.clone())?;
        Ok(Run {
            outputs: vec![vec![Tensor::concat_rows(&vec![&number; rows])?]],
            times: RunTimes::default(),
        })
    }
}

#[test]
fn rows_may_be_rounded_otherwise_beside_others_as_far_as_what_runs_them_does() {
    let merges = |is_coarse: bool, alone: TensorData, beside: TensorData| {
        let mut signature = signature();
        signature.outputs[0].datatype = alone.datatype().unwrap();
        let source = Uneven {
            alone,
            beside,
            is_coarse,
        };
        let model = Model::new(signature, Arc::new(source), 1).unwrap();
        *model.batching() == Batching::Rows
    };
    let fp32 = |x| TensorData::Fp32(vec![100.0, x]);
    assert!(merges(false, fp32(1.0), fp32(1.001)) && !merges(false, fp32(1.0), fp32(1.2)));
    // A device's errors have the size of the row's largest number.
    assert!(merges(true, fp32(1.0), fp32(1.2)) && !merges(true, fp32(1.0), fp32(1.5)));
    let share = |x| TensorData::Fp32(vec![0.9, x]);
    assert!(!merges(true, share(0.001), share(0.009)));
    let fp16 = |x| TensorData::Fp16(vec![f16::from_f32(x); 2]);
    assert!(merges(false, fp16(1000.0), fp16(1002.0)) && !merges(false, fp16(1000.0), fp16(1020.0)));
    // The numbers of this type lie 4 apart there.
    let bf16 = |x| TensorData::Bf16(vec![bf16::from_f32(x); 2]);
    assert!(merges(false, bf16(1000.0), bf16(1012.0)) && !merges(false, bf16(1000.0), bf16(1100.0)));
    let whole = |x| TensorData::Int32(vec![x; 2]);
    assert!(!merges(true, whole(1000), whole(1001)));
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
        opens: true,
        ..Doubling::default()
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
