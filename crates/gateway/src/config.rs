//! The gateway's configuration.

use std::{fs, path::PathBuf, time::Duration};

use modelyard_common::config::{duration, maybe_size, size};
use modelyard_inference::{Accelerator, BatcherOptions, Provider};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{error::Error, oip::MAX_BODY_BYTES};

/// Where the kernel tells how much memory the process' control group may use.
const GROUP_MEMORY_LIMIT: &str = "/sys/fs/cgroup/memory.max";

/// The shortest time after which a segment of the inference log is handed over.
const MIN_FLUSH_INTERVAL: Duration = Duration::from_millis(100);

/// The longest time that a prediction may be given.
const MAX_REQUEST_TIMEOUT: Duration = Duration::from_hours(1);

/// The smallest spool: room for two segments.
const MIN_SPOOL_BYTES: u64 = 64 << 20;

/// The most worker processes of a model of Python, and the least memory of one.
const MAX_WORKERS: usize = 64;
const MIN_WORKER_BYTES: u64 = 64 << 20;

/// The shortest time after which a worker is taken for stuck: less would end those that are busy.
const MIN_RUN_TIMEOUT: Duration = Duration::from_secs(1);

/// How the gateway serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How long a prediction waits on this machine before it is handed over to the inference log, at most.
    #[serde(with = "duration")]
    pub flush_interval: Duration,
    /// The most bytes of predictions that wait on this machine to be handed over. Beyond them predictions are served
    /// and not logged, which is counted.
    #[serde(with = "size")]
    pub spool_max_bytes: u64,
    /// The free disk space that the log leaves to others.
    #[serde(with = "size")]
    pub spool_min_free_bytes: u64,
    /// The most bytes of model files that are kept on this machine beyond those in use.
    #[serde(with = "size")]
    pub model_cache_bytes: u64,
    /// About how much memory loaded models may take. Beyond it those that were used least recently are let go of, and
    /// loaded again with their next request. None: half of what this process may use.
    #[serde(with = "maybe_size")]
    pub model_memory_bytes: Option<u64>,
    /// How much memory the bodies of requests under way may take together; more are refused until there is room. None: a quarter
    /// of what this process may use.
    #[serde(with = "maybe_size")]
    pub request_memory_bytes: Option<u64>,
    /// The most bytes of answers that are kept for endpoints that want it.
    #[serde(with = "size")]
    pub answer_cache_bytes: u64,
    /// After what time the gateway is ready although some models are still being loaded: those must not keep the others from serving.
    #[serde(with = "duration")]
    pub ready_after: Duration,
    /// The time that a prediction without a deadline of its own is given.
    #[serde(with = "duration")]
    pub request_timeout: Duration,
    /// The most rows of concurrent requests that are merged into one run of a model.
    pub max_batch_rows: usize,
    /// The most requests that wait for a model; more are refused.
    pub max_queued_requests: usize,
    /// Requests that would wait for a model longer than this are refused at once, by what the runs before them took.
    #[serde(with = "duration")]
    pub max_queue_time: Duration,
    /// The servers of the Open Inference Protocol whose models versions may stand for, as `HOST:PORT`; `*`: any that this
    /// machine reaches. Whoever may register models has them called.
    pub upstreams: Vec<String>,
    /// How models run that MLflow saved in other flavours than ONNX.
    pub python: PythonConfig,
    /// Whose signature models must have to be served.
    pub signatures: SignatureConfig,
    /// What runs ONNX models. None: the processors.
    pub accelerator: Option<AcceleratorConfig>,
}

/// A device that runs ONNX models, where ONNX Runtime's library is built for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AcceleratorConfig {
    /// By what it is used.
    pub provider: ProviderConfig,
    /// Which of the machine's devices, from 0.
    #[serde(default)]
    pub device: u8,
}

/// What uses a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ProviderConfig {
    /// NVIDIA's CUDA.
    Cuda,
    /// NVIDIA's TensorRT, and CUDA for what it does not take.
    TensorRt,
}

impl From<AcceleratorConfig> for Accelerator {
    fn from(config: AcceleratorConfig) -> Self {
        Self {
            provider: match config.provider {
                ProviderConfig::Cuda => Provider::Cuda,
                ProviderConfig::TensorRt => Provider::TensorRt,
            },
            device: config.device,
        }
    }
}

/// Whose signature models must have to be served: Sigstore bundles, as OpenSSF's model signing makes them. A version without one
/// that counts is not loaded; what was served before stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SignatureConfig {
    /// The projects whose models must be signed; `*`: all.
    pub projects: Vec<String>,
    /// Files with the public keys that are trusted, in PEM: ECDSA on P-256 or P-384. One of them must have signed.
    pub keys: Vec<PathBuf>,
}

impl SignatureConfig {
    fn validate(&self) -> Result<(), Error> {
        if !self.projects.is_empty() && self.keys.is_empty() {
            return Err(refused(
                "signatures.projects names projects and signatures.keys no key: name the files with the public keys",
            ));
        }
        Ok(())
    }
}

/// How models run that MLflow saved in other flavours than ONNX: in worker processes of Python.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PythonConfig {
    /// The Python that runs them, such as `python3`. None: they are not served. Their code may do whatever this process may:
    /// whoever may register models can run programs here.
    pub interpreter: Option<PathBuf>,
    /// Whether each gets an environment with what it asks for (its `requirements.txt`), made by pip and kept for all that
    /// ask for the same. Else what `interpreter` has must do.
    pub environments: bool,
    /// The most worker processes of a model. One is started at first, more while it has more work than it gets done.
    pub max_workers: usize,
    /// The most memory that a worker may have for its data. None: as much as there is.
    #[serde(with = "maybe_size")]
    pub worker_memory_bytes: Option<u64>,
    /// The most processors that a worker may use. None: all.
    pub worker_processors: Option<usize>,
    /// A worker that has not answered after this time, and for whose answer nobody waits any more, is taken for stuck: it is
    /// ended, and another one started.
    #[serde(with = "duration")]
    pub run_timeout: Duration,
}

impl Default for PythonConfig {
    fn default() -> Self {
        Self {
            interpreter: None,
            environments: true,
            max_workers: 1,
            worker_memory_bytes: None,
            worker_processors: None,
            run_timeout: Duration::from_mins(1),
        }
    }
}

impl PythonConfig {
    fn validate(&self) -> Result<(), Error> {
        if !(1..=MAX_WORKERS).contains(&self.max_workers) {
            return Err(refused(&format!(
                "python.max_workers is {}: choose 1 to {MAX_WORKERS}",
                self.max_workers
            )));
        }
        if self.run_timeout < MIN_RUN_TIMEOUT {
            return Err(refused(&format!(
                "python.run_timeout is {:?}: choose at least {MIN_RUN_TIMEOUT:?}",
                self.run_timeout
            )));
        }
        if self.worker_processors == Some(0) {
            return Err(refused("python.worker_processors is 0: choose at least 1"));
        }
        if self.worker_memory_bytes.is_some_and(|bytes| bytes < MIN_WORKER_BYTES) {
            return Err(refused(&format!(
                "python.worker_memory_bytes is less than {MIN_WORKER_BYTES}, with which Python cannot load a model"
            )));
        }
        Ok(())
    }
}

impl Default for Config {
    fn default() -> Self {
        let batcher = BatcherOptions::default();
        Self {
            flush_interval: Duration::from_secs(5),
            spool_max_bytes: 1 << 30,
            spool_min_free_bytes: 256 << 20,
            model_cache_bytes: 4 << 30,
            model_memory_bytes: None,
            request_memory_bytes: None,
            answer_cache_bytes: 64 << 20,
            ready_after: Duration::from_mins(1),
            request_timeout: Duration::from_secs(30),
            max_batch_rows: batcher.max_batch_rows,
            max_queued_requests: batcher.max_queued_requests,
            max_queue_time: batcher.max_queue_time,
            upstreams: Vec::new(),
            python: PythonConfig::default(),
            signatures: SignatureConfig::default(),
            accelerator: None,
        }
    }
}

impl Config {
    /// Checks every value.
    ///
    /// # Errors
    /// [`Error::Config`] naming the first one out of range.
    pub fn validate(&self) -> Result<(), Error> {
        if self.flush_interval < MIN_FLUSH_INTERVAL {
            return Err(refused(&format!(
                "flush_interval is {:?}: choose at least {MIN_FLUSH_INTERVAL:?}",
                self.flush_interval
            )));
        }
        if self.request_timeout.is_zero() || self.request_timeout > MAX_REQUEST_TIMEOUT {
            return Err(refused(&format!(
                "request_timeout is {:?}: choose more than zero and at most {MAX_REQUEST_TIMEOUT:?}",
                self.request_timeout
            )));
        }
        if self.spool_max_bytes < MIN_SPOOL_BYTES {
            return Err(refused(&format!(
                "spool_max_bytes is {}: choose at least {MIN_SPOOL_BYTES}",
                self.spool_max_bytes
            )));
        }
        if self
            .request_memory_bytes
            .is_some_and(|bytes| bytes < MAX_BODY_BYTES as u64)
        {
            return Err(refused(&format!(
                "request_memory_bytes is less than {MAX_BODY_BYTES}, which one request may have"
            )));
        }
        self.python.validate()?;
        self.signatures.validate()?;
        self.batcher().validate().map_err(|error| refused(&error.to_string()))
    }

    /// How much memory loaded models may take, in bytes.
    pub(crate) fn model_memory_bytes(&self) -> u64 {
        self.model_memory_bytes.unwrap_or_else(|| usable_memory_bytes() / 2)
    }

    /// How much memory the bodies of requests under way may take together, in bytes.
    pub(crate) fn request_memory_bytes(&self) -> u64 {
        let most = MAX_BODY_BYTES as u64;
        self.request_memory_bytes
            .unwrap_or_else(|| (usable_memory_bytes() / 4).max(most))
    }

    /// How the models' queues work.
    pub(crate) fn batcher(&self) -> BatcherOptions {
        BatcherOptions {
            max_batch_rows: self.max_batch_rows,
            max_queued_requests: self.max_queued_requests,
            max_queue_time: self.max_queue_time,
            ..BatcherOptions::default()
        }
    }
}

/// The memory that this process may use: the machine's, or less where its control group is limited.
fn usable_memory_bytes() -> u64 {
    let machine = rustix::system::sysinfo();
    let machine = machine.totalram.saturating_mul(u64::from(machine.mem_unit));
    let group = fs::read_to_string(GROUP_MEMORY_LIMIT).ok();
    // `max`: it is not limited.
    let group = group.and_then(|text| text.trim().parse().ok());
    group.map_or(machine, |group: u64| group.min(machine))
}

fn refused(detail: &str) -> Error {
    Error::Config {
        detail: format!("the gateway's configuration: {detail}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes a configuration that is refused.
    type Spoil = fn(&mut Config);

    #[test]
    fn defaults_are_valid_and_survive_text() {
        let config = Config::default();
        config.validate().unwrap();
        let text = serde_json::to_string(&config).unwrap();
        assert!(text.contains(r#""spool_max_bytes":"1GiB""#), "{text}");
        assert_eq!(serde_json::from_str::<Config>(&text).unwrap(), config);
    }

    #[test]
    fn what_cannot_work_is_named() {
        let cases: [(&str, Spoil); 10] = [
            ("request_memory_bytes", |config| config.request_memory_bytes = Some(1)),
            ("signatures.keys", |config| {
                config.signatures.projects.push("*".to_owned());
            }),
            ("python.max_workers", |config| config.python.max_workers = 0),
            ("python.run_timeout", |config| {
                config.python.run_timeout = Duration::ZERO;
            }),
            ("worker_processors", |config| config.python.worker_processors = Some(0)),
            ("worker_memory_bytes", |config| {
                config.python.worker_memory_bytes = Some(1);
            }),
            ("flush_interval", |config| config.flush_interval = Duration::ZERO),
            ("request_timeout", |config| config.request_timeout = Duration::ZERO),
            ("spool_max_bytes", |config| config.spool_max_bytes = 1),
            ("max_batch_rows", |config| config.max_batch_rows = 0),
        ];
        for (name, spoil) in cases {
            let mut config = Config::default();
            spoil(&mut config);
            let message = config.validate().unwrap_err().to_string();
            assert!(message.contains(name), "{message}");
        }
        assert!(serde_json::from_str::<Config>(r#"{"flush_intervall": "1s"}"#).is_err());
    }
}
