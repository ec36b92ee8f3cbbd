//! The table of the gateway's own routes.

use super::{
    operations::{Operation, op},
    roles::Need,
};

/// The gateway's own routes, as its router has them; those that ask who calls are below `/projects/{project}`, too.
pub const INFERENCE: &[Operation] = &[
    op("GET /v2", Need::Public),
    op("GET /v2/health/live", Need::Public),
    op("GET /v2/health/ready", Need::Public),
    op("GET /ping", Need::Public),
    op("GET /v2/models", Need::SignedIn),
    op("GET /v1/models", Need::SignedIn),
    op("GET /v2/models/{model}", Need::Endpoint("endpoint.read")).at("/v2/models/served"),
    op("GET /v2/models/{model}", Need::Project(&["endpoint.read"])),
    op("GET /v2/models/{model}/ready", Need::Endpoint("endpoint.read")).at("/v2/models/served/ready"),
    op("POST /v2/models/{model}/infer", Need::Endpoint("endpoint.predict"))
        .at("/v2/models/served/infer")
        .json(r#"{"inputs": []}"#),
    op("POST /v2/models/{model}/infer", Need::Project(&["endpoint.predict"])).json(r#"{"inputs": []}"#),
    op(
        "GET /v2/models/{model}/versions/{version}",
        Need::Endpoint("endpoint.read"),
    )
    .at("/v2/models/served/versions/1"),
    op(
        "GET /v2/models/{model}/versions/{version}/ready",
        Need::Endpoint("endpoint.read"),
    )
    .at("/v2/models/served/versions/1/ready"),
    op(
        "POST /v2/models/{model}/versions/{version}/infer",
        Need::Endpoint("endpoint.predict"),
    )
    .at("/v2/models/served/versions/1/infer")
    .json(r#"{"inputs": []}"#),
    op("GET /v2/models/{model}/config", Need::Endpoint("endpoint.read")).at("/v2/models/served/config"),
    op("GET /v2/models/{model}/stats", Need::Endpoint("endpoint.read")).at("/v2/models/served/stats"),
    op(
        "GET /v2/models/{model}/versions/{version}/config",
        Need::Endpoint("endpoint.read"),
    )
    .at("/v2/models/served/versions/1/config"),
    op(
        "GET /v2/models/{model}/versions/{version}/stats",
        Need::Endpoint("endpoint.read"),
    )
    .at("/v2/models/served/versions/1/stats"),
    op("GET /v2/models/stats", Need::SignedIn),
    op("POST /v2/repository/index", Need::SignedIn).json("{}"),
    op("POST /v2/repository/{repository}/index", Need::SignedIn)
        .at("/v2/repository/all/index")
        .json("{}"),
    // With a parameter that nobody may send: the answer tells who could, and nothing is loaded.
    op(
        "POST /v2/repository/models/{model}/load",
        Need::Endpoint("endpoint.write"),
    )
    .at("/v2/repository/models/served/load")
    .json(r#"{"parameters": {"config": ""}}"#),
    op(
        "POST /v2/repository/models/{model}/unload",
        Need::Endpoint("endpoint.write"),
    )
    .at("/v2/repository/models/served/unload")
    .json(r#"{"parameters": {"config": ""}}"#),
    op(
        "POST /v2/repository/{repository}/models/{model}/load",
        Need::Endpoint("endpoint.write"),
    )
    .at("/v2/repository/all/models/served/load")
    .json(r#"{"parameters": {"config": ""}}"#),
    op(
        "POST /v2/repository/{repository}/models/{model}/unload",
        Need::Endpoint("endpoint.write"),
    )
    .at("/v2/repository/all/models/served/unload")
    .json(r#"{"parameters": {"config": ""}}"#),
    op("GET /v2/systemsharedmemory/{*rest}", Need::Public).at("/v2/systemsharedmemory/status"),
    op("POST /v2/systemsharedmemory/{*rest}", Need::Public)
        .at("/v2/systemsharedmemory/region/r/register")
        .json("{}"),
    op("GET /v2/cudasharedmemory/{*rest}", Need::Public).at("/v2/cudasharedmemory/status"),
    op("POST /v2/cudasharedmemory/{*rest}", Need::Public)
        .at("/v2/cudasharedmemory/region/r/register")
        .json("{}"),
    op("GET /v1/models/{model}", Need::Endpoint("endpoint.read")).at("/v1/models/served"),
    op("POST /v1/models/{model}", Need::Endpoint("endpoint.predict"))
        .at("/v1/models/served:predict")
        .json(r#"{"instances": [[1]]}"#),
    op(
        "POST /endpoints/{model}/invocations",
        Need::Endpoint("endpoint.predict"),
    )
    .at("/endpoints/served/invocations")
    .json(r#"{"inputs": [[1]]}"#),
    op(
        "GET /v1/models/{model}/versions/{version}",
        Need::Endpoint("endpoint.read"),
    )
    .at("/v1/models/served/versions/1"),
    op(
        "POST /v1/models/{model}/versions/{version}",
        Need::Endpoint("endpoint.predict"),
    )
    .at("/v1/models/served/versions/1:predict")
    .json(r#"{"instances": [[1]]}"#),
];
