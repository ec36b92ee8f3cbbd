//! What runs models beside the processors, where ONNX Runtime's library has it.

use std::path::Path;

use ort::ep::{CUDA, ExecutionProvider as _, ExecutionProviderDispatch, TensorRT, cuda::ConvAlgorithmSearch};

use crate::{
    error::{Error, RUNTIME_REMEDY, Result},
    runtime::Runtime,
};

/// The processors' arena, as ONNX Runtime calls it.
pub(crate) const PROCESSORS_ARENA: &str = "cpu:0";

/// A device, and by what it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accelerator {
    /// By what.
    pub provider: Provider,
    /// Which of the machine's devices, from 0.
    pub device: u8,
}

/// What uses a device: an execution provider of ONNX Runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provider {
    /// NVIDIA's CUDA.
    Cuda,
    /// NVIDIA's TensorRT, and CUDA for what it does not take.
    TensorRt,
}

impl Provider {
    /// Its name in ONNX Runtime.
    const fn name(self) -> &'static str {
        match self {
            Self::Cuda => CUDA::NAME,
            Self::TensorRt => TensorRT::NAME,
        }
    }
}

impl Accelerator {
    /// Checks that the library was built with it. Whether the device works is seen when the first model is loaded.
    ///
    /// # Errors
    /// `RuntimeUnusable` naming the library.
    pub fn check(self, runtime: &Runtime) -> Result<()> {
        let has = match self.provider {
            Provider::Cuda => CUDA::is_available(),
            Provider::TensorRt => TensorRT::is_available(),
        };
        if has.unwrap_or(false) {
            return Ok(());
        }
        Err(Error::RuntimeUnusable {
            path: runtime.library().to_owned(),
            detail: format!(
                "it has no {}, take the library of the package `onnxruntime-gpu` for that ({RUNTIME_REMEDY})",
                self.provider.name()
            ),
        })
    }

    /// Why no session runs there: its libraries or its driver are missing, there is no such device, or its memory is full.
    pub(crate) fn unusable(self, runtime: &Runtime, detail: &str) -> Error {
        Error::AcceleratorUnusable {
            provider: self.provider.name(),
            library: runtime.library().to_owned(),
            detail: said(detail).trim().to_owned(),
        }
    }

    /// What sessions try first; what they cannot have is an error. TensorRT finds the engines that were built before in the folder
    /// `engines`, and puts those there that it builds.
    pub(crate) fn providers(self, engines: Option<&Path>) -> Vec<ExecutionProviderDispatch> {
        let device = i32::from(self.device);
        let cuda = CUDA::default()
            .with_device_id(device)
            // Else the fastest convolution is searched for by trying all, and again for each size of a batch.
            .with_conv_algorithm_search(ConvAlgorithmSearch::Heuristic);
        let cuda = cuda.build().error_on_failure();
        match self.provider {
            Provider::Cuda => vec![cuda],
            Provider::TensorRt => {
                let mut tensor_rt = TensorRT::default().with_device_id(device);
                if let Some(engines) = engines {
                    tensor_rt = tensor_rt
                        .with_engine_cache(true)
                        .with_engine_cache_path(engines.display())
                        // Engines of further sizes are built faster with what was timed for the ones before.
                        .with_timing_cache(true)
                        .with_timing_cache_path(engines.display());
                }
                vec![tensor_rt.build().error_on_failure(), cuda]
            }
        }
    }

    /// The arenas that a session on it gives memory back from, as ONNX Runtime calls them.
    pub(crate) fn arenas(self) -> String {
        format!("{PROCESSORS_ARENA};gpu:{}", self.device)
    }
}

/// How messages of NVIDIA's libraries begin, behind the places in ONNX Runtime's sources where they were met.
const DEVICE_SAYS: [&str; 3] = ["CUDA failure", "CUBLAS failure", "CUDNN failure"];

/// Whether a message of ONNX Runtime's is one of a device's libraries.
pub(crate) fn said_by_device(message: &str) -> bool {
    DEVICE_SAYS.iter().any(|start| message.contains(start))
}

/// What a device's libraries said, of a message; else the message.
fn said(message: &str) -> &str {
    let starts = DEVICE_SAYS.iter().filter_map(|start| message.find(start));
    let said = starts.min().and_then(|start| message.get(start..));
    said.map_or(message, |said| said.split(" ; ").next().unwrap_or(said))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_devices_message_what_it_says_is_left() {
        let message = "/src/cuda_call.cc:146 T CudaCall(E) [with T = void; E = int] CUDA failure 100: no device ; GPU=0 ; line=355";
        assert_eq!(said(message), "CUDA failure 100: no device");
        assert_eq!(said("CUBLAS failure 1: no room"), "CUBLAS failure 1: no room");
        assert_eq!(said("cannot open libcuda.so.1 ; no"), "cannot open libcuda.so.1 ; no");
        assert!(said_by_device(message) && !said_by_device("cannot open libcuda.so.1"));
    }
}
