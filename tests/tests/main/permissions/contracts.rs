//! The tables of what can be called over gRPC.

use super::roles::Need;

/// A method, the fields of a request in their order, and what it needs.
pub type Call = (&'static str, &'static [Field], Need);

/// A field of a message.
#[derive(Debug, Clone, Copy)]
pub enum Field {
    /// The project that is asked about.
    Project,
    Text(&'static str),
    Number(u8),
}

use Field::{Number, Project, Text};

/// The tag of a field is its number and its wire type.
const NUMBER: u8 = 0;
const LENGTH_DELIMITED: u8 = 2;

/// A message of these fields: the first has number 1.
pub fn message(fields: &[Field], project: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (tag, field) in (1_u8..).zip(fields) {
        let text = match field {
            Project => project,
            Text(text) => text,
            Number(number) => {
                bytes.extend([(tag << 3) | NUMBER, *number]);
                continue;
            }
        };
        bytes.extend([(tag << 3) | LENGTH_DELIMITED, text.len() as u8]);
        bytes.extend_from_slice(text.as_bytes());
    }
    bytes
}

/// An entry of a map, the parameter `config`, which nobody may send: the answer tells who could, and nothing is loaded.
const BROUGHT: &str = "\n\u{6}config";

/// `proto/inference`: the project is in the metadata.
pub const INFERENCE: &[Call] = &[
    ("inference.GRPCInferenceService/ServerLive", &[], Need::Public),
    ("inference.GRPCInferenceService/ServerReady", &[], Need::Public),
    ("inference.GRPCInferenceService/ServerMetadata", &[], Need::Public),
    (
        "inference.GRPCInferenceService/ModelReady",
        &[Text("served")],
        Need::Endpoint("endpoint.read"),
    ),
    (
        "inference.GRPCInferenceService/ModelMetadata",
        &[Text("served")],
        Need::Endpoint("endpoint.read"),
    ),
    (
        "inference.GRPCInferenceService/ModelMetadata",
        &[Text("absent")],
        Need::Project(&["endpoint.read"]),
    ),
    (
        "inference.GRPCInferenceService/ModelInfer",
        &[Text("served")],
        Need::Endpoint("endpoint.predict"),
    ),
    // Each message of a stream is answered by itself, and this one with what is wrong with it.
    ("inference.GRPCInferenceService/ModelStreamInfer", &[], Need::SignedIn),
    (
        "inference.GRPCInferenceService/ModelConfig",
        &[Text("served")],
        Need::Endpoint("endpoint.read"),
    ),
    (
        "inference.GRPCInferenceService/ModelStatistics",
        &[Text("served")],
        Need::Endpoint("endpoint.read"),
    ),
    ("inference.GRPCInferenceService/RepositoryIndex", &[], Need::SignedIn),
    (
        "inference.GRPCInferenceService/RepositoryModelLoad",
        &[Text(""), Text("served"), Text(BROUGHT)],
        Need::Endpoint("endpoint.write"),
    ),
    (
        "inference.GRPCInferenceService/RepositoryModelUnload",
        &[Text(""), Text("served"), Text(BROUGHT)],
        Need::Endpoint("endpoint.write"),
    ),
];

/// `proto/modelyard`: what services call.
pub const INTERNAL: &[Call] = &[
    (
        "modelyard.orchestrator.v1.TriggerService/FireTrigger",
        &[Project, Text("absent"), Text("key"), Text("{}")],
        Need::Project(&["trigger.fire"]),
    ),
    (
        "modelyard.orchestrator.v1.RolloutService/ReportAlert",
        &[Project, Text("absent"), Text("rule"), Text("alert")],
        Need::Project(&["trigger.fire"]),
    ),
    (
        "modelyard.monitoring.v1.SegmentService/CommitSegment",
        &[Project, Text("absent")],
        Need::Project(&["segment.write"]),
    ),
    (
        "modelyard.registry.v1.RunService/CreateRun",
        &[Project],
        Need::Project(&["run.write"]),
    ),
    (
        "modelyard.registry.v1.RunService/LogBatch",
        &[Project, Text("absent")],
        Need::Project(&["run.write"]),
    ),
    (
        "modelyard.registry.v1.RunService/FinishRun",
        &[Project, Text("absent"), Number(3)],
        Need::Project(&["run.write"]),
    ),
    (
        "modelyard.registry.v1.RunService/GetRun",
        &[Project, Text("absent")],
        Need::Project(&["run.read"]),
    ),
    (
        "modelyard.registry.v1.DatasetService/GetDatasetVersion",
        &[Project, Text("absent"), Number(1)],
        Need::Project(&["dataset.read"]),
    ),
    (
        "modelyard.registry.v1.AuditService/AppendEvents",
        &[],
        Need::Installation(&["audit.append"]),
    ),
    (
        "modelyard.registry.v1.EndpointService/Watch",
        &[Text("matrix")],
        Need::Installation(&["endpoint.watch"]),
    ),
    (
        "modelyard.registry.v1.EndpointService/ReportStatus",
        &[],
        Need::Installation(&["endpoint.watch"]),
    ),
    (
        "modelyard.registry.v1.EndpointService/ReportTraffic",
        &[],
        Need::Installation(&["endpoint.watch"]),
    ),
    (
        "modelyard.registry.v1.EndpointService/ListRollouts",
        &[],
        Need::Installation(&["endpoint.watch"]),
    ),
    (
        "modelyard.registry.v1.EndpointService/ChangeRollout",
        &[Project, Text("served")],
        Need::Installation(&["endpoint.watch"]),
    ),
    (
        "modelyard.registry.v1.EndpointService/GetEndpoint",
        &[Project, Text("served")],
        Need::Endpoint("endpoint.read"),
    ),
    (
        "modelyard.registry.v1.SecretService/OpenSecret",
        &[Project, Text("absent")],
        Need::Project(&["secret.open"]),
    ),
    (
        "modelyard.registry.v1.AccessService/WatchAccess",
        &[Text("matrix")],
        Need::Installation(&["access.watch"]),
    ),
    (
        "modelyard.registry.v1.AccessService/VerifyPassword",
        &[Text("absent"), Text("wrong")],
        Need::Installation(&["access.watch"]),
    ),
    (
        "modelyard.registry.v1.AccessService/ReportAccess",
        &[],
        Need::Installation(&["audit.append"]),
    ),
    (
        "modelyard.registry.v1.ModelService/CreateModelVersion",
        &[Project, Text("absent")],
        Need::Project(&["model.write"]),
    ),
    (
        "modelyard.registry.v1.ModelService/GetModelVersion",
        &[Project, Text("absent"), Number(1)],
        Need::Project(&["model.read"]),
    ),
    (
        "modelyard.registry.v1.ModelService/SetAlias",
        &[Project, Text("absent"), Text("champion"), Number(1)],
        Need::Project(&["alias.write"]),
    ),
];
