//! A model version's place in memory: what is known of it always, what runs it while there is room and use for it.

use std::{
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use futures::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use modelyard_common::error::Chain;
use modelyard_inference::{
    BatcherOptions, Batching, Counters, Error as InferenceError, InputShapes, Predictor, Signature, Statistics, Tensor,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    loader::{Loader, ModelKey, Wanted},
    meters::{self, Unloaded},
};

/// For how long a failure to load is the answer to all who ask, before it is tried again.
const FAILURE_LIFETIME: Duration = Duration::from_secs(1);

/// How many different shapes of inputs are remembered, and of how many requests one is looked at.
const MAX_SHAPES: usize = 8;
const LOOKED_AT: u64 = 32;

/// What is known of a model once it was loaded.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Facts {
    pub signature: Signature,
    pub batching: Batching,
    pub platform: Platform,
}

/// What runs a model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Platform {
    #[default]
    Onnx,
    Python,
    Upstream,
}

impl Platform {
    /// Its name in the Open Inference Protocol.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Onnx => "onnx_onnxv1",
            Self::Python => "mlflow_pyfunc",
            Self::Upstream => "open_inference",
        }
    }

    /// Its name in Triton's model configuration.
    pub(crate) const fn backend(self) -> &'static str {
        match self {
            Self::Onnx => "onnxruntime",
            Self::Python => "python",
            Self::Upstream => "upstream",
        }
    }
}

/// Shapes of inputs that were seen at an endpoint: with them its next versions are warmed.
#[derive(Debug, Default)]
pub(crate) struct Shapes {
    requests: AtomicU64,
    seen: Mutex<Vec<InputShapes>>,
}

impl Shapes {
    pub(crate) fn new(seen: Vec<InputShapes>) -> Self {
        Self {
            requests: AtomicU64::new(0),
            seen: Mutex::new(seen),
        }
    }

    /// Looks at a request now and then.
    pub(crate) fn look(&self, inputs: &[Tensor]) {
        if !self.requests.fetch_add(1, Ordering::Relaxed).is_multiple_of(LOOKED_AT) {
            return;
        }
        let shapes: InputShapes = inputs.iter().map(|input| input.shape().to_vec()).collect();
        let mut seen = self.seen.lock();
        if let Some(place) = seen.iter().position(|known| *known == shapes) {
            // The latest stay.
            let latest = seen.remove(place);
            seen.insert(0, latest);
            return;
        }
        seen.truncate(MAX_SHAPES - 1);
        seen.insert(0, shapes);
    }

    /// The latest first.
    pub(crate) fn seen(&self) -> Vec<InputShapes> {
        self.seen.lock().clone()
    }
}

type Loading = Shared<BoxFuture<'static, Result<Arc<Predictor>, Arc<Error>>>>;

/// A load, and when it failed if it did.
#[derive(Default)]
struct Load {
    under_way: Option<Loading>,
    failed: Option<(Instant, Arc<Error>)>,
}

/// A model version as one endpoint serves it. When the last user lets go of it, its queue closes and its sessions are
/// freed.
pub(crate) struct Model {
    pub key: ModelKey,
    facts: Facts,
    wanted: Wanted,
    loader: Arc<Loader>,
    counters: Arc<Counters>,
    /// None: it is not in memory.
    predictor: ArcSwapOption<Predictor>,
    load: Mutex<Load>,
    /// How many requests wait for it to be loaded.
    waiting: AtomicUsize,
    /// Milliseconds after which it goes if nobody asks; 0: never.
    unload_after_ms: AtomicU64,
    /// When it was used last, in milliseconds since the process began.
    used_ms: AtomicU64,
}

impl Model {
    /// A model that is loaded with its first request.
    pub(crate) fn new(key: ModelKey, wanted: Wanted, facts: Facts, loader: Arc<Loader>) -> Self {
        Self {
            key,
            facts,
            unload_after_ms: AtomicU64::new(millis(wanted.unload_after)),
            wanted,
            loader,
            counters: Arc::default(),
            predictor: ArcSwapOption::empty(),
            load: Mutex::default(),
            waiting: AtomicUsize::new(0),
            used_ms: AtomicU64::new(now_ms()),
        }
    }

    /// The model, loaded already, with what counts its runs.
    pub(crate) fn loaded(self, predictor: Predictor, counters: Arc<Counters>) -> Self {
        Self {
            counters,
            predictor: ArcSwapOption::from_pointee(predictor),
            ..self
        }
    }

    /// Whether it works as is wanted.
    pub(crate) fn is_as(&self, wanted: &Wanted) -> bool {
        self.wanted.batcher == wanted.batcher
    }

    /// What it takes and gives.
    pub(crate) const fn signature(&self) -> &Signature {
        &self.facts.signature
    }

    /// What runs it.
    pub(crate) const fn platform(&self) -> Platform {
        self.facts.platform
    }

    /// Whether its requests are merged, and if not, why.
    pub(crate) fn batching(&self) -> Batching {
        match &*self.predictor.load() {
            Some(predictor) => predictor.batching(),
            None => self.facts.batching.clone(),
        }
    }

    /// How its requests are queued and merged.
    pub(crate) const fn options(&self) -> &BatcherOptions {
        &self.wanted.batcher
    }

    /// What was seen of its endpoint's requests.
    pub(crate) fn shapes(&self) -> &Shapes {
        &self.wanted.shapes
    }

    /// What it has done, in all the times that it was loaded.
    pub(crate) fn statistics(&self) -> Statistics {
        self.counters.snapshot()
    }

    /// How long it worked, all its workers together.
    pub(crate) fn busy(&self) -> Duration {
        self.counters.busy()
    }

    /// The requests that wait for it, and how long one that comes now would wait.
    pub(crate) fn queued(&self) -> (usize, Duration) {
        match &*self.predictor.load() {
            Some(predictor) => (predictor.queued(), predictor.expected_wait()),
            None => (0, Duration::ZERO),
        }
    }

    /// What runs it: how many at once.
    pub(crate) fn workers(&self) -> usize {
        self.predictor
            .load()
            .as_ref()
            .map_or(0, |predictor| predictor.workers())
    }

    /// About how much memory it takes, in bytes.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.predictor
            .load()
            .as_ref()
            .map_or(0, |predictor| predictor.memory_bytes())
    }

    pub(crate) fn is_loaded(&self) -> bool {
        self.predictor.load().is_some()
    }

    /// What runs it, if it is in memory.
    pub(crate) fn at_hand(&self) -> Option<Arc<Predictor>> {
        self.used_ms.store(now_ms(), Ordering::Relaxed);
        self.predictor.load_full()
    }

    /// What runs it. Where it is not in memory, whoever asks first has it loaded, and all wait for that.
    ///
    /// # Errors
    /// Why it cannot be loaded; a failure is the answer to all who ask for a moment, before it is tried again. `QueueFull` if as
    /// many wait for it as may.
    pub(crate) async fn predictor(self: &Arc<Self>) -> Result<Arc<Predictor>> {
        if let Some(predictor) = self.at_hand() {
            return Ok(predictor);
        }
        let most = self.wanted.batcher.max_queued_requests;
        let _waiting = Waiting::new(&self.waiting, most).ok_or_else(|| InferenceError::QueueFull {
            limit: format!("{most} requests wait for the model to be loaded"),
        })?;
        let loading = self.loading()?;
        loading.await.map_err(|error| Error::Load { error })
    }

    fn loading(self: &Arc<Self>) -> Result<Loading> {
        let mut load = self.load.lock();
        if let Some(loading) = &load.under_way {
            return Ok(loading.clone());
        }
        if let Some(predictor) = self.predictor.load_full() {
            return Ok(std::future::ready(Ok(predictor)).boxed().shared());
        }
        if let Some((at, error)) = &load.failed
            && at.elapsed() < FAILURE_LIFETIME
        {
            let error = Arc::clone(error);
            return Err(Error::Load { error });
        }
        // A task of its own: whoever asked first may not wait for the end, and others do.
        #[expect(
            clippy::disallowed_methods,
            reason = "it ends by itself, and nothing is lost if the process ends before"
        )]
        let task = tokio::spawn(Arc::clone(self).load());
        let loading = async move {
            task.await.unwrap_or_else(|_| {
                Err(Arc::new(Error::Interrupted {
                    what: "loading the model",
                }))
            })
        };
        let loading = loading.boxed().shared();
        load.under_way = Some(loading.clone());
        Ok(loading)
    }

    async fn load(self: Arc<Self>) -> Result<Arc<Predictor>, Arc<Error>> {
        let opened = self.loader.open(&self.key, &self.wanted, &self.counters).await;
        let mut load = self.load.lock();
        load.under_way = None;
        match opened {
            Ok(predictor) => {
                let predictor = Arc::new(predictor);
                self.predictor.store(Some(Arc::clone(&predictor)));
                load.failed = None;
                drop(load);
                self.loader.note_loaded(&self);
                Ok(predictor)
            }
            Err(error) => {
                tracing::warn!(endpoint = %self.key.endpoint, error = %Chain(&error), "a model cannot be loaded");
                let error = Arc::new(error);
                load.failed = Some((Instant::now(), Arc::clone(&error)));
                Err(error)
            }
        }
    }

    /// Lets go of what runs it, until it is asked for again; requests that are under way are answered. Whether there was
    /// anything to let go of.
    pub(crate) fn unload(&self, why: Unloaded) -> bool {
        let was_loaded = self.predictor.swap(None).is_some();
        if was_loaded {
            meters::model_unloaded(why);
        }
        was_loaded
    }

    /// After what time without a request it goes.
    pub(crate) fn unload_after(&self, time: Option<Duration>) {
        self.unload_after_ms.store(millis(time), Ordering::Relaxed);
    }

    /// Whether nobody asked for as long as it may stay.
    pub(crate) fn is_overdue(&self) -> bool {
        let allowed = self.unload_after_ms.load(Ordering::Relaxed);
        allowed > 0 && self.is_loaded() && now_ms().saturating_sub(self.used()) >= allowed
    }

    /// When it was used last, in milliseconds since the process began.
    pub(crate) fn used(&self) -> u64 {
        self.used_ms.load(Ordering::Relaxed)
    }
}

/// One of those who wait.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    /// None: so many wait already.
    fn new(waiting: &'a AtomicUsize, most: usize) -> Option<Self> {
        let before = waiting.fetch_add(1, Ordering::Relaxed);
        // Counted out again if it is one too many.
        let this = Self(waiting);
        (before < most).then_some(this)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn millis(time: Option<Duration>) -> u64 {
    time.map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

fn now_ms() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    millis(Some(START.elapsed()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_wait_than_may() {
        let waiting = AtomicUsize::new(0);
        let first = Waiting::new(&waiting, 2).unwrap();
        let second = Waiting::new(&waiting, 2);
        assert!(second.is_some() && Waiting::new(&waiting, 2).is_none());
        drop(first);
        assert!(Waiting::new(&waiting, 2).is_some());
        drop(second);
        assert_eq!(waiting.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn shapes_are_remembered_the_latest_first() {
        let shapes = Shapes::default();
        let look = |length: i64| {
            let input = Tensor::zeros("x", modelyard_inference::DataType::Fp32, vec![1, length]).unwrap();
            for _ in 0..LOOKED_AT {
                shapes.look(std::slice::from_ref(&input));
            }
        };
        for length in 1..=10 {
            look(length);
        }
        look(5);
        let lengths: Vec<i64> = shapes.seen().iter().map(|shapes| shapes[0][1]).collect();
        assert_eq!(lengths, [5, 10, 9, 8, 7, 6, 4, 3]);
        assert_eq!(Shapes::new(shapes.seen()).seen(), shapes.seen());
    }
}
