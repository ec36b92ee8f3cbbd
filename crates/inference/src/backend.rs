//! What runs a model, behind one trait: a session in this process, a worker process, another server.

use std::time::Duration;

use crate::{error::Result, signature::Signature, tensor::Tensor};

/// Something that runs one batch at a time. Queues, batches, limits and statistics are the [`Predictor`](crate::Predictor)'s
/// and work over all of them.
pub trait Backend: Send {
    /// Runs requests whose inputs are arranged by the signature. Several are merged along the first dimension, and their
    /// outputs taken apart again; one runs as it is, and its outputs are whatever the model gives.
    ///
    /// # Errors
    /// `RunFailed` if the model fails, `InvalidOutput` if an output cannot be carried, `NotSplittable` if the outputs of a
    /// merged run are not by row.
    fn run(&mut self, signature: &Signature, requests: &[&[Tensor]]) -> Result<Run>;
}

/// Where a model's backends come from.
pub trait Source: Send + Sync {
    /// One more of them, warm.
    ///
    /// # Errors
    /// Why there can be none.
    fn open(&self) -> Result<Box<dyn Backend>>;

    /// About how much memory each takes, in bytes.
    fn memory_bytes(&self) -> u64;
}

/// What a run gave, and how long its parts took.
#[derive(Debug)]
pub struct Run {
    /// The outputs of each request, in the order of the requests.
    pub outputs: Vec<Vec<Tensor>>,
    /// How long its parts took.
    pub times: RunTimes,
}

/// How long the parts of a run took.
#[derive(Debug, Clone, Copy, Default)]
pub struct RunTimes {
    /// Merging and handing over the inputs.
    pub input: Duration,
    /// The model.
    pub infer: Duration,
    /// Copying the outputs out, each request's own rows.
    pub output: Duration,
}

impl RunTimes {
    /// All of it.
    pub(crate) fn total(self) -> Duration {
        self.input + self.infer + self.output
    }
}
