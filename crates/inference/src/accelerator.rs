//! What runs models beside the processors, where ONNX Runtime's library has it.

use ort::ep::{CUDA, ExecutionProvider as _, ExecutionProviderDispatch, TensorRT};

use crate::{
    error::{Error, RUNTIME_REMEDY, Result},
    runtime::Runtime,
};

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

    /// Why no session can have it: its libraries or its driver are missing, or there is no such device.
    pub(crate) fn unusable(self, runtime: &Runtime, detail: &str) -> Error {
        Error::AcceleratorUnusable {
            provider: self.provider.name(),
            library: runtime.library().to_owned(),
            detail: detail.trim().to_owned(),
        }
    }

    /// What sessions try first; what they cannot have is an error.
    pub(crate) fn providers(self) -> Vec<ExecutionProviderDispatch> {
        let device = i32::from(self.device);
        let cuda = CUDA::default().with_device_id(device).build().error_on_failure();
        match self.provider {
            Provider::Cuda => vec![cuda],
            Provider::TensorRt => {
                let tensor_rt = TensorRT::default().with_device_id(device).build().error_on_failure();
                vec![tensor_rt, cuda]
            }
        }
    }
}
