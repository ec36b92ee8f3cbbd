//! The contracts between the services and the Open Inference Protocol, generated from `proto/`. Nothing here is
//! written by hand but the codec of the latter.

#![expect(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes,
    reason = "generated code"
)]

pub mod codec;

/// What the registry offers to the other services.
pub mod registry {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("modelyard.registry.v1");
    }
}

/// What the orchestrator offers to the other services.
pub mod orchestrator {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("modelyard.orchestrator.v1");
    }
}

/// What monitoring offers to the other services.
pub mod monitoring {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("modelyard.monitoring.v1");
    }
}

/// The Open Inference Protocol over gRPC.
pub mod inference {
    tonic::include_proto!("inference");

    /// The contract itself, for clients that ask which methods there are.
    pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("inference");
}
