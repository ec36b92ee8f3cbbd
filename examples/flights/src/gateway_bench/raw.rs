//! A model run as directly as it can be: sessions of ONNX Runtime on threads of their own, in this process.

use std::{
    panic::resume_unwind,
    process, thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use modelyard_inference::{Model, ModelOptions, Runtime, Tensor};

use crate::{figures::median, process::own_cpu_seconds};

/// Sessions that run at the same time.
pub struct Raw {
    models: Vec<Model>,
}

/// What the sessions did in a turn.
#[derive(Debug, Default)]
pub struct RawTurn {
    /// How long each run took, in microseconds.
    took: Vec<f64>,
    /// Runs a second, over all sessions.
    pub rate: f64,
    /// CPU time for each run, in microseconds.
    pub cpu_us: f64,
}

impl RawTurn {
    /// How long a run took at p50, in microseconds.
    pub fn p50_us(&self) -> f64 {
        median(&self.took)
    }
}

/// The processors that this process may use.
pub fn processors() -> Result<usize> {
    Ok(Runtime::load()?.processors())
}

impl Raw {
    /// Opens sessions of so many threads each.
    pub fn open(onnx: &[u8], sessions: usize, threads: usize) -> Result<Self> {
        let runtime = Runtime::load()?;
        let options = ModelOptions {
            intra_threads: threads,
            ..ModelOptions::single()
        };
        let open = |_| Model::from_bytes(&runtime, onnx, options).context("the model cannot be loaded");
        Ok(Self {
            models: (0..sessions).map(open).collect::<Result<_>>()?,
        })
    }

    /// Runs all sessions on the same input for a while, each at least once.
    pub fn measure(&self, input: &Tensor, time: Duration) -> Result<RawTurn> {
        let own = process::id();
        let before = own_cpu_seconds(own)?;
        let each = tokio::task::block_in_place(|| {
            thread::scope(|scope| {
                let start = |model| scope.spawn(move || run(model, input, time));
                let started: Vec<_> = self.models.iter().map(start).collect();
                let ended = started
                    .into_iter()
                    .map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
                ended.collect::<Result<Vec<_>>>()
            })
        })?;
        let mut turn = RawTurn::default();
        for (took, seconds) in each {
            turn.rate += took.len() as f64 / seconds;
            turn.took.extend(took);
        }
        turn.cpu_us = (own_cpu_seconds(own)? - before) * 1e6 / turn.took.len() as f64;
        Ok(turn)
    }
}

/// How long each run of one session took, in microseconds, and all of them, in seconds.
fn run(model: &Model, input: &Tensor, time: Duration) -> Result<(Vec<f64>, f64)> {
    let started = Instant::now();
    let mut took = Vec::new();
    loop {
        let inputs = vec![input.clone()];
        let begun = Instant::now();
        model.run(inputs)?;
        took.push(begun.elapsed().as_secs_f64() * 1e6);
        let elapsed = started.elapsed();
        if elapsed >= time {
            return Ok((took, elapsed.as_secs_f64()));
        }
    }
}
