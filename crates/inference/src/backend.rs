//! What runs a model, behind one trait: a session in this process, a worker process, another server.

use std::{
    borrow::Cow,
    time::{Duration, Instant},
};

use crate::{
    error::{Error, Result},
    signature::Signature,
    tensor::Tensor,
};

/// Something that runs one batch at a time. Queues, batches, limits and statistics are the [`Predictor`](crate::Predictor)'s
/// and work over all of them.
pub trait Backend: Send {
    /// Runs requests whose inputs are arranged by the signature. Several are merged along the first dimension, and their
    /// outputs taken apart again; one runs as it is, and its outputs are whatever the model gives. After the deadline
    /// nobody waits for the answer any more.
    ///
    /// # Errors
    /// `RunFailed` if the model fails, `InvalidOutput` if an output cannot be carried, `NotSplittable` if the outputs of a
    /// merged run are not by row, `BackendAway` if what runs the model cannot be reached, `BackendLost` if it ended with this
    /// run.
    fn run(&mut self, signature: &Signature, requests: &[&[Tensor]], deadline: Option<Instant>) -> Result<Run>;
}

/// Where a model's backends come from.
pub trait Source: Send + Sync {
    /// One more of them, warm.
    ///
    /// # Errors
    /// Why there can be none.
    fn open(&self) -> Result<Box<dyn Backend>>;

    /// Lets go of one of them, now or soon.
    fn close(&self, backend: Box<dyn Backend>) {
        drop(backend);
    }

    /// About how much memory each takes, in bytes.
    fn memory_bytes(&self) -> u64;

    /// Inputs, arranged by the signature, that the model is known to take: whether requests may be merged is tried with
    /// its first rows, else with made-up ones.
    fn example(&self) -> Option<Vec<Tensor>> {
        None
    }

    /// Whether it may round floats more coarsely than processors do, and otherwise for another number of rows, as devices' fast
    /// multiplications do, which keep ten bits (TF32).
    fn rounds_coarsely(&self) -> bool {
        false
    }

    /// Whether a run of more rows than any before takes long: memory is taken for it, or programs are built.
    fn grows_slowly(&self) -> bool {
        false
    }

    /// The first of them was warmed: what was built for that may be kept.
    fn warmed(&self) {}

    /// Whether elements of `BYTES` may be any bytes. Else they must be texts that ONNX's strings can carry.
    fn takes_any_bytes(&self) -> bool {
        false
    }

    /// Whether a run waits for somebody else, so that it must never be done on a thread that others need.
    fn waits(&self) -> bool {
        false
    }
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
    /// Taking the outputs out, each request's own rows; what is large enough may stay where it lies.
    pub output: Duration,
}

impl RunTimes {
    /// All of it.
    pub(crate) fn total(self) -> Duration {
        self.input + self.infer + self.output
    }
}

/// Runs requests by a function that takes whole tensors: several are merged along the first dimension before, and what
/// came out is taken apart after. A single request's tensors are handed over as they are.
///
/// # Errors
/// The function's, and `NotSplittable` if the outputs of merged requests are not by row.
pub fn run_merged(requests: &[&[Tensor]], run: impl FnOnce(Cow<'_, [Tensor]>) -> Result<Vec<Tensor>>) -> Result<Run> {
    let started = Instant::now();
    let inputs = match requests {
        [only] => Cow::Borrowed(*only),
        several => Cow::Owned(merge(several)?),
    };
    let merged = Instant::now();
    let outputs = run(inputs)?;
    let ran = Instant::now();
    let outputs = match requests {
        [_] => vec![outputs],
        several => take_apart(&outputs, several)?,
    };
    Ok(Run {
        outputs,
        times: RunTimes {
            input: merged - started,
            infer: ran - merged,
            output: ran.elapsed(),
        },
    })
}

fn merge(requests: &[&[Tensor]]) -> Result<Vec<Tensor>> {
    let inputs = requests.first().map_or(0, |first| first.len());
    let parts = |index: usize| requests.iter().filter_map(move |request| request.get(index));
    (0..inputs)
        .map(|index| Tensor::concat_rows(&parts(index).collect::<Vec<_>>()))
        .collect()
}

/// Each request's own rows.
fn take_apart(outputs: &[Tensor], requests: &[&[Tensor]]) -> Result<Vec<Vec<Tensor>>> {
    let rows = |request: &&[Tensor]| request.first().and_then(Tensor::rows).unwrap_or(0);
    let expected: usize = requests.iter().map(rows).sum();
    if let Some(output) = outputs.iter().find(|output| output.rows() != Some(expected)) {
        return Err(Error::not_splittable(output.name(), output.shape(), expected));
    }
    let mut start = 0;
    let each = requests.iter().map(|request| {
        let own = start..start + rows(request);
        start = own.end;
        outputs.iter().map(|output| output.slice_rows(own.clone())).collect()
    });
    each.collect()
}
