//! Answers that are kept for a while, and given again to the same inputs.
//!
//! What is the same is decided by a keyed hash of 128 bits (BLAKE3) over everything that the answer depends on and who may
//! see it; the key is this process', so that nobody can prepare inputs that meet. Requests for the same that come while
//! the first is being answered wait for it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use blake3::Hasher;
use modelyard_inference::{Prediction, Tensor, TensorData};
use moka::{Expiry, future::Cache as Kept};
use rand::RngExt as _;

use crate::{
    desired::{EndpointKey, VersionRef},
    error::{Error, Result},
    meters,
};

/// About what an answer takes beside its tensors' elements, in bytes.
const ENTRY_BYTES: usize = 256;
const TENSOR_BYTES: usize = 128;

/// What an answer depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key([u8; 16]);

/// An answer, and for how long it counts.
#[derive(Clone)]
struct Answer {
    prediction: Arc<Prediction>,
    time_to_live: Duration,
}

struct Age;

impl Expiry<Key, Answer> for Age {
    fn expire_after_create(&self, _: &Key, answer: &Answer, _: Instant) -> Option<Duration> {
        Some(answer.time_to_live)
    }
}

/// Who asks for what: everything that an answer depends on.
pub(crate) struct Question<'a> {
    /// Who asks, with the most that the token opens: nobody is given what another one's rights brought.
    pub caller: &'a str,
    pub endpoint: &'a EndpointKey,
    pub version: &'a VersionRef,
    /// Arranged by the signature.
    pub inputs: &'a [Tensor],
}

/// The answers that are kept, of all endpoints together.
pub(crate) struct Cache {
    kept: Kept<Key, Answer>,
    secret: [u8; 32],
}

impl Cache {
    /// A cache of so many bytes at most.
    pub(crate) fn new(max_bytes: u64) -> Self {
        let kept = Kept::builder()
            .max_capacity(max_bytes)
            .weigher(|_, answer: &Answer| u32::try_from(bytes(&answer.prediction.outputs)).unwrap_or(u32::MAX))
            .expire_after(Age)
            .build();
        Self {
            kept,
            secret: rand::rng().random(),
        }
    }

    /// The key of a question.
    pub(crate) fn key(&self, question: &Question<'_>) -> Key {
        let mut hasher = Hasher::new_keyed(&self.secret);
        let endpoint = question.endpoint;
        let digest = question.version.digest.to_hex();
        for text in [
            question.caller.as_bytes(),
            endpoint.project.as_bytes(),
            endpoint.name.as_bytes(),
            question.version.model.as_bytes(),
            &question.version.version.to_le_bytes(),
            digest.as_bytes(),
        ] {
            add(&mut hasher, text);
        }
        for input in question.inputs {
            add(&mut hasher, input.name().as_bytes());
            add(&mut hasher, input.datatype().name().as_bytes());
            hasher.update(&(input.shape().len() as u64).to_le_bytes());
            for dimension in input.shape() {
                hasher.update(&dimension.to_le_bytes());
            }
            add_elements(&mut hasher, input);
        }
        let mut key = [0; 16];
        hasher.finalize_xof().fill(&mut key);
        Key(key)
    }

    /// The answer that is kept, or the one that `predict` gives, which is kept from then on. Errors are not kept.
    ///
    /// # Errors
    /// As `predict`; for those who waited for another one's answer, its error if it could be theirs as well.
    pub(crate) async fn answer<F: Future<Output = Result<Prediction>>>(
        &self,
        key: Key,
        time_to_live: Duration,
        predict: impl Fn() -> F,
    ) -> Result<(Arc<Prediction>, bool)> {
        let mut asked = false;
        let kept = self.kept.try_get_with(key, async {
            asked = true;
            let mut prediction = predict().await?;
            // What is kept keeps nothing else: an output may lie in the memory of a session or of a larger message.
            prediction.outputs.iter_mut().for_each(Tensor::own);
            Ok::<_, Error>(Answer {
                prediction: Arc::new(prediction),
                time_to_live,
            })
        });
        let result = kept.await;
        meters::cache_asked(!asked);
        meters::cache_bytes(self.kept.weighted_size());
        match result {
            Ok(answer) => Ok((answer.prediction, !asked)),
            Err(error) if asked => Err(Arc::try_unwrap(error).unwrap_or_else(Error::Shared)),
            // It may have been the other one's deadline, or its place in the queue.
            Err(_) => Ok((Arc::new(predict().await?), false)),
        }
    }
}

fn bytes(tensors: &[Tensor]) -> usize {
    let each = tensors.iter().map(|tensor| {
        let elements = match (tensor.data(), tensor.datatype().size_bytes()) {
            (TensorData::Bytes(values), _) => values.iter().map(|value| value.len() + size_of::<Vec<u8>>()).sum(),
            (_, size) => tensor.elements() * size.unwrap_or(1),
        };
        TENSOR_BYTES + elements
    });
    ENTRY_BYTES + each.sum::<usize>()
}

/// Bytes behind their length, so that no two lists of them are alike.
fn add(hasher: &mut Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

fn add_elements(hasher: &mut Hasher, input: &Tensor) {
    if let TensorData::Bytes(values) = input.data() {
        for value in values {
            add(hasher, value);
        }
        return;
    }
    // Numbers that were read from JSON and those that came as bytes are the same.
    match input.as_bytes() {
        Some(bytes) => add(hasher, bytes),
        None => add(hasher, &[]),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use modelyard_artifacts::Digest;
    use modelyard_common::{ErrorKind, Fault as _};

    use super::*;

    fn endpoint(project: &str) -> EndpointKey {
        EndpointKey {
            project: project.to_owned(),
            name: "e".to_owned(),
        }
    }

    fn version(version: u32) -> VersionRef {
        VersionRef {
            model: "m".to_owned(),
            version,
            digest: Digest::of(b"m"),
            bundle: None,
        }
    }

    fn floats(name: &str, shape: Vec<i64>, values: &[f32]) -> Tensor {
        Tensor::from_vec(name, shape, values.to_vec()).unwrap()
    }

    fn prediction(value: f32) -> Prediction {
        Prediction {
            outputs: vec![floats("y", vec![1], &[value])],
            queue_time: Duration::ZERO,
            compute_time: Duration::ZERO,
            batch_rows: 1,
        }
    }

    #[test]
    fn whatever_matters_makes_another_key() {
        let cache = Cache::new(1 << 20);
        let values = [1.0, 2.0, 3.0, 4.0];
        let base = vec![floats("x", vec![2, 2], &values)];
        let (here, first) = (endpoint("here"), version(1));
        let question = Question {
            caller: "user:ann",
            endpoint: &here,
            version: &first,
            inputs: &base,
        };
        let mut keys = vec![cache.key(&question)];
        for inputs in [
            vec![floats("x", vec![4, 1], &values)],
            vec![floats("z", vec![2, 2], &values)],
            vec![floats("x", vec![2, 2], &[1.0, 2.0, 3.0, 5.0])],
            vec![
                floats("x", vec![2, 1], &[1.0, 2.0]),
                floats("y", vec![2, 1], &[3.0, 4.0]),
            ],
            vec![Tensor::from_vec("x", vec![2, 2], vec![1_i32, 2, 3, 4]).unwrap()],
            vec![Tensor::from_strings("x", vec![2], vec!["ab".to_owned(), "c".to_owned()]).unwrap()],
            vec![Tensor::from_strings("x", vec![2], vec!["a".to_owned(), "bc".to_owned()]).unwrap()],
        ] {
            keys.push(cache.key(&Question {
                inputs: &inputs,
                ..question
            }));
        }
        keys.push(cache.key(&Question {
            caller: "user:bob",
            ..question
        }));
        keys.push(cache.key(&Question {
            endpoint: &endpoint("there"),
            ..question
        }));
        keys.push(cache.key(&Question {
            version: &version(2),
            ..question
        }));
        for (index, key) in keys.iter().enumerate() {
            assert_eq!(keys.iter().position(|other| other == key), Some(index));
        }
        // The same numbers as bytes.
        let raw: Vec<u8> = values.iter().flat_map(|value: &f32| value.to_le_bytes()).collect();
        let raw = Tensor::from_raw("x", modelyard_inference::DataType::Fp32, vec![2, 2], raw.into()).unwrap();
        assert_eq!(
            cache.key(&Question {
                inputs: &[raw],
                ..question
            }),
            keys[0]
        );
        assert_ne!(Cache::new(1 << 20).key(&question), keys[0], "the key is a process' own");
    }

    #[tokio::test]
    async fn the_same_question_is_answered_once() {
        let cache = Cache::new(1 << 20);
        let runs = AtomicUsize::new(0);
        let predict = || async {
            runs.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
            Ok(prediction(7.0))
        };
        let ask = || cache.answer(Key([1; 16]), Duration::from_mins(1), predict);
        let answers = futures::future::join_all((0..10).map(|_| ask())).await;
        for answer in answers {
            assert_eq!(*answer.unwrap().0, prediction(7.0));
        }
        assert!(ask().await.unwrap().1, "it was kept");
        assert_eq!(runs.load(Ordering::Relaxed), 1);
        let other = cache
            .answer(Key([2; 16]), Duration::from_mins(1), predict)
            .await
            .unwrap();
        assert!(!other.1);
        assert_eq!(runs.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn errors_are_not_kept_and_nobody_gets_anothers() {
        let cache = Cache::new(1 << 20);
        let runs = AtomicUsize::new(0);
        let predict = || async {
            let run = runs.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
            if run == 0 {
                Err(modelyard_inference::Error::DeadlineExceeded.into())
            } else {
                Ok(prediction(1.0))
            }
        };
        let ask = || cache.answer(Key([1; 16]), Duration::from_mins(1), predict);
        let (first, second) = tokio::join!(ask(), ask());
        assert_eq!(first.unwrap_err().kind(), ErrorKind::DeadlineExceeded);
        assert_eq!(*second.unwrap().0, prediction(1.0));
    }

    #[tokio::test]
    async fn what_is_kept_is_bounded_and_ages() {
        let cache = Cache::new(16 << 10);
        let large = || async {
            Ok(Prediction {
                outputs: vec![floats("y", vec![1024], &[0.0; 1024])],
                ..prediction(0.0)
            })
        };
        for key in 0..20 {
            cache
                .answer(Key([key; 16]), Duration::from_mins(1), large)
                .await
                .unwrap();
        }
        cache.kept.run_pending_tasks().await;
        assert!(cache.kept.weighted_size() <= 16 << 10);
        let brief = Duration::from_nanos(1);
        cache.answer(Key([99; 16]), brief, large).await.unwrap();
        assert!(
            !cache.answer(Key([99; 16]), brief, large).await.unwrap().1,
            "it has aged"
        );
    }
}
