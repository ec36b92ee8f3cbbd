//! One worker process: started, spoken to over a socket, ended.

use std::{
    fs,
    io::{self, Read, Write},
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream, process::ExitStatusExt as _},
    },
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use modelyard_inference::{Error as InferenceError, Signature, Tensor, TensorSpec};
use serde::{Deserialize, Serialize};

use super::environment::pass_on;

/// What the workers run.
const PROGRAM: &str = include_str!("worker.py");

/// The longest head of a message, in bytes, and the longest body.
const MAX_HEAD_BYTES: u32 = 16 << 20;
const MAX_BODY_BYTES: u64 = 1 << 30;

/// How long a worker may take to load its model and try it.
const START_TIMEOUT: Duration = Duration::from_mins(5);

/// How long a worker is given to end by itself.
const END_TIMEOUT: Duration = Duration::from_secs(2);
const END_CHECK_INTERVAL: Duration = Duration::from_millis(10);

/// How a worker is started.
#[derive(Debug, Clone)]
pub(super) struct Launch {
    /// The Python with all that the model needs.
    pub interpreter: PathBuf,
    /// The folder that MLflow saved the model in.
    pub folder: PathBuf,
    /// The most memory that the worker may have for its data, in bytes; none: as much as there is.
    pub memory_bytes: Option<u64>,
    /// How many processors it may use; none: all.
    pub processors: Option<usize>,
    /// How long it may take for one run, even if nobody waits for that any more. After it the worker is taken for stuck, and ended.
    pub run_timeout: Duration,
}

/// A tensor in the head of a message.
#[derive(Debug, Serialize, Deserialize)]
struct TensorHead {
    name: String,
    datatype: String,
    shape: Vec<i64>,
    bytes: usize,
}

#[derive(Serialize)]
struct Question {
    tensors: Vec<TensorHead>,
}

/// What a worker says of a request.
#[derive(Deserialize)]
#[serde(untagged)]
enum Answer {
    Failed {
        error: String,
        #[serde(default)]
        inputs_at_fault: bool,
    },
    Tensors {
        tensors: Vec<TensorHead>,
    },
}

/// What a worker says first.
#[derive(Deserialize)]
#[serde(untagged)]
enum Greeting {
    Failed {
        error: String,
    },
    Ready {
        inputs: Vec<TensorSpec>,
        outputs: Vec<TensorSpec>,
        /// The inputs that it was tried with.
        tensors: Vec<TensorHead>,
    },
}

/// Why a worker gave no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// It is of no use any more.
    Ended(String),
    /// It works, and refused.
    Refused(InferenceError),
}

/// A worker at work. It ends when it is dropped.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    connection: UnixStream,
}

/// What a worker found out about its model.
#[derive(Debug)]
pub(super) struct Findings {
    pub signature: Signature,
    /// Inputs that the model takes.
    pub example: Vec<Tensor>,
}

impl Process {
    /// Starts a worker, and waits until it has loaded and tried its model.
    ///
    /// # Errors
    /// Why there is none, in words.
    pub(super) fn start(launch: &Launch) -> Result<(Self, Findings), String> {
        let (ours, theirs) = UnixStream::pair().map_err(|error| format!("no socket can be made: {error}"))?;
        let mut command = Command::new(&launch.interpreter);
        pass_on(&mut command, &[]);
        let threads = launch
            .processors
            .unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));
        let threads = threads.to_string();
        for name in [
            "OMP_NUM_THREADS",
            "OPENBLAS_NUM_THREADS",
            "MKL_NUM_THREADS",
            "NUMEXPR_NUM_THREADS",
        ] {
            command.env(name, &threads);
        }
        let child = command
            .env("PYTHONUNBUFFERED", "1")
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .args(["-c", PROGRAM])
            .arg(&launch.folder)
            .arg(launch.memory_bytes.unwrap_or_default().to_string())
            .arg(launch.processors.unwrap_or_default().to_string())
            .current_dir(&launch.folder)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .map_err(|error| format!("`{}` cannot be started: {error}", launch.interpreter.display()))?;
        let mut process = Self {
            child,
            connection: ours,
        };
        let (head, body) = process.receive(START_TIMEOUT).map_err(|error| process.end_of(&error))?;
        match serde_json::from_slice(&head) {
            Ok(Greeting::Ready {
                inputs,
                outputs,
                tensors,
            }) => {
                let findings = Findings {
                    signature: Signature { inputs, outputs },
                    example: take_tensors(tensors, body).map_err(|error| error.to_string())?,
                };
                Ok((process, findings))
            }
            Ok(Greeting::Failed { error }) => Err(error),
            Err(error) => Err(format!("its worker says what is not understood: {error}")),
        }
    }

    /// Whether it has ended, by itself or by the system.
    pub(super) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// How much memory it takes at present, in bytes.
    pub(super) fn memory_bytes(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
        Some(kib << 10)
    }

    /// Runs the model, and ends it if that takes longer than `patience`.
    pub(super) fn run(&mut self, inputs: Vec<Tensor>, patience: Duration) -> Result<Vec<Tensor>, Failure> {
        let mut bodies = Vec::with_capacity(inputs.len());
        let mut tensors = Vec::with_capacity(inputs.len());
        for input in inputs {
            let (name, datatype, shape) = (input.name().to_owned(), input.datatype(), input.shape().to_vec());
            let body = input.into_raw().map_err(Failure::Refused)?;
            tensors.push(TensorHead {
                name,
                datatype: datatype.name().to_owned(),
                shape,
                bytes: body.len(),
            });
            bodies.push(body);
        }
        let exchanged = self
            .send(&Question { tensors }, &bodies, patience)
            .and_then(|()| self.receive(patience));
        let (head, body) = exchanged.map_err(|error| Failure::Ended(self.end_of(&error)))?;
        match serde_json::from_slice(&head) {
            Ok(Answer::Tensors { tensors }) => take_tensors(tensors, body).map_err(Failure::Refused),
            Ok(Answer::Failed { error, inputs_at_fault }) => Err(Failure::Refused(InferenceError::RunFailed {
                detail: error,
                inputs_at_fault,
            })),
            Err(error) => Err(Failure::Ended(format!("it says what is not understood: {error}"))),
        }
    }

    fn send(&mut self, question: &Question, bodies: &[Bytes], patience: Duration) -> io::Result<()> {
        let head = serde_json::to_vec(question)?;
        let head_bytes = u32::try_from(head.len()).map_err(io::Error::other)?;
        let body_bytes: usize = bodies.iter().map(Bytes::len).sum();
        self.connection.set_write_timeout(Some(patience))?;
        self.connection.write_all(&head_bytes.to_le_bytes())?;
        self.connection.write_all(&(body_bytes as u64).to_le_bytes())?;
        self.connection.write_all(&head)?;
        for body in bodies {
            self.connection.write_all(body)?;
        }
        Ok(())
    }

    /// The head and body of the next message.
    fn receive(&mut self, patience: Duration) -> io::Result<(Vec<u8>, Bytes)> {
        let until = Instant::now() + patience;
        let (mut head_bytes, mut body_bytes) = ([0; 4], [0; 8]);
        self.read_exactly(&mut head_bytes, until)?;
        self.read_exactly(&mut body_bytes, until)?;
        let (head_bytes, body_bytes) = (u32::from_le_bytes(head_bytes), u64::from_le_bytes(body_bytes));
        if head_bytes > MAX_HEAD_BYTES || body_bytes > MAX_BODY_BYTES {
            return Err(io::Error::other(format!(
                "its answer has {head_bytes} and {body_bytes} bytes, and at most {MAX_HEAD_BYTES} and {MAX_BODY_BYTES} are taken"
            )));
        }
        let mut head = vec![0; head_bytes as usize];
        self.read_exactly(&mut head, until)?;
        let mut body = vec![0; usize::try_from(body_bytes).map_err(io::Error::other)?];
        self.read_exactly(&mut body, until)?;
        Ok((head, body.into()))
    }

    fn read_exactly(&mut self, mut room: &mut [u8], until: Instant) -> io::Result<()> {
        while !room.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.connection.set_read_timeout(Some(left))?;
            match self.connection.read(room) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => room = room.get_mut(count..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(io::ErrorKind::TimedOut.into()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Ends the worker after an error of its connection, and says what became of it.
    fn end_of(&mut self, error: &io::Error) -> String {
        if error.kind() == io::ErrorKind::TimedOut {
            let _ = self.child.kill();
            let _ = self.child.wait();
            return "it did not answer in time and was ended".to_owned();
        }
        match self.end() {
            Some(status) => match status.signal() {
                Some(signal) => format!("it was ended by signal {signal}"),
                None => format!("it ended with exit code {}", status.code().unwrap_or_default()),
            },
            None => format!("its connection failed: {error}"),
        }
    }

    /// Waits for the end of the worker, and brings it about where that takes too long. How it ended by itself.
    fn end(&mut self) -> Option<ExitStatus> {
        let _ = self.connection.shutdown(std::net::Shutdown::Both);
        let until = Instant::now() + END_TIMEOUT;
        while Instant::now() < until {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            thread::sleep(END_CHECK_INTERVAL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        None
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// The tensors that a worker sent. What is wrong with them is never the fault of who asked.
fn take_tensors(heads: Vec<TensorHead>, mut body: Bytes) -> Result<Vec<Tensor>, InferenceError> {
    let each = heads.into_iter().map(|head| {
        let output = head.name.clone();
        let tensor = if head.bytes > body.len() {
            Err("the worker sent less than it said".to_owned())
        } else {
            let content = body.split_to(head.bytes);
            let datatype = head.datatype.parse();
            let tensor = datatype.and_then(|datatype| Tensor::from_raw(head.name, datatype, head.shape, content));
            tensor.map_err(|error: InferenceError| error.to_string())
        };
        tensor.map_err(|detail| InferenceError::InvalidOutput { output, detail })
    });
    each.collect()
}

#[cfg(test)]
mod tests {
    use modelyard_common::{ErrorKind, Fault as _};

    use super::*;

    #[test]
    fn what_a_worker_sends_wrongly_is_no_fault_of_who_asked() {
        let head = |datatype: &str, shape: &[i64], bytes| TensorHead {
            name: "y".to_owned(),
            datatype: datatype.to_owned(),
            shape: shape.to_vec(),
            bytes,
        };
        let take = |head: TensorHead| take_tensors(vec![head], Bytes::from_static(&[0; 8]));
        assert!(take(head("FP32", &[2], 8)).is_ok());
        for wrong in [
            head("FP32", &[2], 9),
            head("FP32", &[3], 8),
            head("FP32", &[-1], 8),
            head("FP33", &[2], 8),
            head("BYTES", &[3], 8),
        ] {
            let described = format!("{wrong:?}");
            let error = take(wrong).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Internal, "{described}: {error}");
            assert!(error.to_string().contains("output `y`"), "{error}");
        }
    }
}
