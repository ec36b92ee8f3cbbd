//! A loaded model: its signature and what runs it.

use std::{cmp::Reverse, fmt, sync::Arc};

use parking_lot::{Condvar, Mutex};

use crate::{
    backend::{Backend, Source},
    error::{Error, Result},
    instance::check_texts,
    options::BatcherOptions,
    probe::{Batching, probe},
    signature::Signature,
    tensor::Tensor,
};

/// The most backends of one model, and the most threads of one session.
pub(crate) const MAX_BACKENDS: usize = 256;

/// The shapes of one request's inputs, in the order of the signature.
pub type InputShapes = Vec<Vec<i64>>;

/// What is known of a model, apart from what runs it.
#[derive(Debug)]
pub(crate) struct ModelFacts {
    pub signature: Signature,
    pub batching: Batching,
    /// Whether any two requests can be merged, whatever their shapes.
    pub rows_are_fixed: bool,
    /// Whether elements of `BYTES` need not be texts.
    pub takes_any_bytes: bool,
}

impl ModelFacts {
    /// The inputs in the graph's order, checked in every way that can be checked before a run; with the rows that a
    /// mergeable model finds in all of them.
    pub(crate) fn accept(&self, inputs: Vec<Tensor>) -> Result<(Vec<Tensor>, Option<usize>)> {
        let inputs = self.signature.arrange(inputs)?;
        if !self.takes_any_bytes {
            for input in &inputs {
                check_texts(input)?;
            }
        }
        if self.batching != Batching::Rows {
            return Ok((inputs, None));
        }
        let rows = inputs.first().and_then(Tensor::rows);
        if let (Some(first), Some(other)) = (inputs.first(), inputs.iter().find(|input| input.rows() != rows)) {
            return Err(Error::InvalidInputs {
                detail: format!(
                    "the inputs disagree on the number of rows: `{}` has {}, `{}` has {}",
                    first.name(),
                    first.rows().unwrap_or(0),
                    other.name(),
                    other.rows().unwrap_or(0)
                ),
            });
        }
        Ok((inputs, rows))
    }
}

/// A model with what runs it. Runs wait for a free backend; for many concurrent callers put a
/// [`Predictor`](crate::Predictor) before it.
pub struct Model {
    facts: Arc<ModelFacts>,
    idle: Mutex<Vec<Box<dyn Backend>>>,
    returned: Condvar,
    source: Arc<dyn Source>,
    most: usize,
    recorded: Vec<InputShapes>,
}

/// A model taken apart, for worker threads that keep its backends.
pub(crate) struct Parts {
    pub facts: Arc<ModelFacts>,
    pub backends: Vec<Box<dyn Backend>>,
    pub source: Arc<dyn Source>,
    /// The most backends that there may be.
    pub most: usize,
    /// What further backends are warmed with.
    pub recorded: Vec<InputShapes>,
}

impl Model {
    /// A model that something else than a session in this process runs. By a trial is found out whether its requests may
    /// be merged.
    ///
    /// # Errors
    /// `InvalidOptions` if `most`, the most backends that there may be, is out of range; or why there is none.
    pub fn new(signature: Signature, source: Arc<dyn Source>, most: usize) -> Result<Self> {
        if !(1..=MAX_BACKENDS).contains(&most) {
            return Err(Error::InvalidOptions {
                detail: format!("{most} backends: choose 1 to {MAX_BACKENDS}"),
            });
        }
        let first = source.open()?;
        Ok(Self::with_first(signature, first, source, most))
    }

    pub(crate) fn with_first(
        mut signature: Signature,
        mut first: Box<dyn Backend>,
        source: Arc<dyn Source>,
        most: usize,
    ) -> Self {
        let finding = probe(
            &mut *first,
            &signature,
            source.example().as_deref(),
            source.rounds_coarsely(),
        );
        finding.complete(&mut signature.outputs);
        if let Batching::Never(reason) = &finding.batching {
            tracing::info!(reason, "requests to this model run one by one");
        }
        Self {
            facts: Arc::new(ModelFacts {
                rows_are_fixed: signature.rows_are_fixed(),
                takes_any_bytes: source.takes_any_bytes(),
                signature,
                batching: finding.batching,
            }),
            idle: Mutex::new(vec![first]),
            returned: Condvar::new(),
            source,
            most,
            recorded: Vec::new(),
        }
    }

    /// What it takes and gives.
    pub fn signature(&self) -> &Signature {
        &self.facts.signature
    }

    /// Whether its requests may be merged, and if not, why.
    pub fn batching(&self) -> &Batching {
        &self.facts.batching
    }

    /// The most backends that there may be.
    pub const fn instances(&self) -> usize {
        self.most
    }

    /// Runs the model on the calling thread. The inputs may come in any order; nothing is converted.
    ///
    /// # Errors
    /// `InvalidInputs` or `InvalidTensor` if they do not fit the signature, `RunFailed` if the graph fails on them,
    /// `InvalidOutput` if what came out cannot be carried.
    pub fn run(&self, inputs: Vec<Tensor>) -> Result<Vec<Tensor>> {
        let (inputs, _) = self.facts.accept(inputs)?;
        let mut lease = self.lease();
        let run = lease.backend()?.run(&self.facts.signature, &[&inputs], None)?;
        Ok(run.outputs.into_iter().next().unwrap_or_default())
    }

    /// Runs it on zeros and empty strings of shapes that were seen in requests, and of one row and, where rows can be
    /// merged, two: the first runs of a session are slow, and no caller should wait for them. On a device it is run on the largest
    /// batches of them as well. Backends that are opened later are warmed alike.
    ///
    /// # Errors
    /// `RunFailed` if the model refuses zeros, which says nothing about real inputs.
    pub fn warm_up(&mut self, recorded: Vec<InputShapes>, batches: &BatcherOptions) -> Result<()> {
        self.recorded = recorded;
        if self.source.grows_slowly() && self.facts.batching == Batching::Rows {
            let largest = self.largest_batches(batches);
            self.recorded.splice(0..0, largest);
        }
        let (facts, recorded) = (&self.facts, &self.recorded);
        let mut backends = self.idle.get_mut().iter_mut();
        let warmed = backends.try_for_each(|backend| warm(&mut **backend, facts, recorded));
        self.source.warmed();
        warmed
    }

    /// The shapes of the largest batches of what was recorded, and of made-up rows; the largest first, because where others fit into it
    /// nothing is built for them.
    fn largest_batches(&self, batches: &BatcherOptions) -> Vec<InputShapes> {
        let signature = &self.facts.signature;
        let made_up = signature.sample_shapes(1);
        let each = std::iter::once(&made_up).chain(&self.recorded);
        let mut largest: Vec<InputShapes> = each
            .filter_map(|shapes| signature.largest_batch(shapes, batches))
            .collect();
        let elements = |shapes: &InputShapes| shapes.iter().map(|shape| shape.iter().product::<i64>()).sum::<i64>();
        largest.sort_by_key(|shapes| (Reverse(elements(shapes)), shapes.clone()));
        largest.dedup();
        largest
    }

    pub(crate) fn into_parts(self) -> Parts {
        Parts {
            facts: self.facts,
            backends: self.idle.into_inner(),
            source: self.source,
            most: self.most,
            recorded: self.recorded,
        }
    }

    /// A backend, waited for if it is in use.
    fn lease(&self) -> Lease<'_> {
        let mut idle = self.idle.lock();
        loop {
            if let Some(backend) = idle.pop() {
                return Lease {
                    model: self,
                    backend: Some(backend),
                };
            }
            self.returned.wait(&mut idle);
        }
    }
}

/// Runs a backend on made-up inputs of real shapes.
pub(crate) fn warm(backend: &mut dyn Backend, facts: &ModelFacts, recorded: &[InputShapes]) -> Result<()> {
    let signature = &facts.signature;
    for rows in 1..=if facts.batching == Batching::Rows { 2 } else { 1 } {
        let inputs = signature.zeros(rows)?;
        backend.run(signature, &[&inputs], None)?;
    }
    for shapes in recorded {
        // What was recorded of another version may not fit this one.
        if let Some(inputs) = signature.zeros_of(shapes) {
            backend.run(signature, &[&inputs], None)?;
        }
    }
    Ok(())
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model")
            .field("facts", &self.facts)
            .field("most", &self.most)
            .finish_non_exhaustive()
    }
}

/// A backend that goes back when it is dropped.
struct Lease<'a> {
    model: &'a Model,
    backend: Option<Box<dyn Backend>>,
}

impl Lease<'_> {
    fn backend(&mut self) -> Result<&mut dyn Backend> {
        match &mut self.backend {
            Some(backend) => Ok(&mut **backend),
            None => Err(Error::Broken {
                detail: "a leased backend is gone".to_owned(),
            }),
        }
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        if let Some(backend) = self.backend.take() {
            self.model.idle.lock().push(backend);
            self.model.returned.notify_one();
        }
    }
}
