//! Reading the files that users upload: tables and models. Everything here blocks and runs on threads for that.

pub mod folder;
pub mod mlmodel;
pub mod onnx;
mod records;
pub mod table;
pub mod upstream;
mod wire;
