//! The table of what can be asked over HTTP, and what each operation needs.

use super::roles::Need;

/// A row of the matrix.
#[derive(Debug, Clone, Copy)]
pub struct Operation {
    /// The method, and the path as the description or the router has it.
    pub route: &'static str,
    /// The path that is asked, where it is another; parts in braces are filled in.
    pub path: Option<&'static str>,
    pub body: Body,
    pub need: Need,
}

/// What is sent.
#[derive(Debug, Clone, Copy)]
pub enum Body {
    None,
    Json(&'static str),
    Form(&'static str),
    Bytes(&'static str),
}

pub(super) const fn op(route: &'static str, need: Need) -> Operation {
    Operation {
        route,
        path: None,
        body: Body::None,
        need,
    }
}

impl Operation {
    pub(super) const fn at(mut self, path: &'static str) -> Self {
        self.path = Some(path);
        self
    }

    pub(super) const fn json(mut self, body: &'static str) -> Self {
        self.body = Body::Json(body);
        self
    }

    /// The method and the path that is asked.
    pub fn call(&self) -> (&'static str, &'static str) {
        let (method, path) = self.route.split_once(' ').unwrap_or(("", ""));
        (method, self.path.unwrap_or(path))
    }
}

/// Everything in `openapi.json`. What may not be stored is not valid otherwise, so that nothing changes whoever asks.
pub const API: &[Operation] = &[
    // --- signing in
    op("GET /api/v1/auth/providers", Need::Public),
    op("GET /api/v1/auth/openid/{provider}/sign-in", Need::Public),
    op("GET /api/v1/auth/openid/{provider}/callback", Need::Public),
    Operation {
        body: Body::Form("grant_type=none"),
        ..op("POST /api/v1/auth/token", Need::Public)
    },
    op("POST /api/v1/auth/sign-in", Need::Public).json("{}"),
    op("GET /api/v1/auth/me", Need::SignedIn),
    op("GET /api/v1/auth/schema", Need::SignedIn),
    op("GET /api/v1/actions", Need::SignedIn),
    op("POST /api/v1/auth/explain", Need::Project(&[]))
        .json(r#"{"principal": "{me}", "action": "run.read", "resource": "run:{project}/absent"}"#),
    op("POST /api/v1/auth/explain", Need::Project(&["access.read"]))
        .json(r#"{"principal": "user:somebody", "action": "run.read", "resource": "project:{project}"}"#),
    op("POST /api/v1/auth/explain", Need::Installation(&["access.read"]))
        .json(r#"{"principal": "user:somebody", "action": "identity.read", "resource": "installation"}"#),
    // --- identities
    op("GET /api/v1/users", Need::Installation(&["identity.read"])),
    op("GET /api/v1/users/{name}", Need::Installation(&["identity.read"])),
    op("PUT /api/v1/users/{name}", Need::Installation(&["identity.write"]))
        .at("/api/v1/users/-bad")
        .json("{}"),
    op("DELETE /api/v1/users/{name}", Need::Installation(&["identity.write"])),
    op(
        "PUT /api/v1/users/{name}/password",
        Need::Installation(&["identity.write"]),
    )
    .json(r#"{"password": "a password of some length"}"#),
    op("GET /api/v1/service-accounts", Need::Installation(&["identity.read"])),
    op(
        "GET /api/v1/service-accounts/{name}",
        Need::Installation(&["identity.read"]),
    ),
    op(
        "PUT /api/v1/service-accounts/{name}",
        Need::Installation(&["identity.write"]),
    )
    .at("/api/v1/service-accounts/-bad")
    .json("{}"),
    op(
        "DELETE /api/v1/service-accounts/{name}",
        Need::Installation(&["identity.write"]),
    ),
    op("GET /api/v1/tokens", Need::SignedIn),
    op("GET /api/v1/tokens", Need::Installation(&["identity.read"])).at("/api/v1/tokens?owner=user:somebody"),
    op("POST /api/v1/tokens", Need::SignedIn).json(r#"{"name": "-bad"}"#),
    op("POST /api/v1/tokens", Need::Installation(&["identity.write"]))
        .json(r#"{"name": "test", "owner": "service-account:absent"}"#),
    op("DELETE /api/v1/tokens/{id}", Need::SignedIn),
    // --- access
    op("GET /api/v1/roles", Need::Installation(&["access.read"])),
    op("GET /api/v1/roles/{name}", Need::Installation(&["access.read"])),
    op("PUT /api/v1/roles/{name}", Need::Installation(&["access.write"])).json(r#"{"actions": ["fly"]}"#),
    op("DELETE /api/v1/roles/{name}", Need::Installation(&["access.write"])),
    op("GET /api/v1/policies", Need::Installation(&["access.read"])),
    op("GET /api/v1/policies/{name}", Need::Installation(&["access.read"])),
    op("PUT /api/v1/policies/{name}", Need::Installation(&["access.write"])).json(r#"{"policy": "permit"}"#),
    op("DELETE /api/v1/policies/{name}", Need::Installation(&["access.write"])),
    op("GET /api/v1/role-bindings", Need::Installation(&["access.read"])),
    op("GET /api/v1/role-bindings/{name}", Need::Installation(&["access.read"])),
    op(
        "PUT /api/v1/role-bindings/{name}",
        Need::Installation(&["access.write"]),
    )
    .json(r#"{"subject": "user:somebody", "role": "no role", "place": "*"}"#),
    op(
        "DELETE /api/v1/role-bindings/{name}",
        Need::Installation(&["access.write"]),
    ),
    op(
        "GET /api/v1/projects/{project}/role-bindings",
        Need::Project(&["access.read"]),
    ),
    op(
        "GET /api/v1/projects/{project}/role-bindings/{name}",
        Need::Project(&["access.read"]),
    ),
    op(
        "PUT /api/v1/projects/{project}/role-bindings/{name}",
        Need::Project(&["access.write"]),
    )
    .json(r#"{"subject": "user:somebody", "role": "no role"}"#),
    op(
        "DELETE /api/v1/projects/{project}/role-bindings/{name}",
        Need::Project(&["access.write"]),
    ),
    op(
        "GET /api/v1/projects/{project}/sensitive",
        Need::Project(&["access.read"]),
    ),
    op(
        "PUT /api/v1/projects/{project}/sensitive/{kind}/{name}",
        Need::Project(&["access.write"]),
    )
    .at("/api/v1/projects/{project}/sensitive/nothing/absent"),
    op(
        "DELETE /api/v1/projects/{project}/sensitive/{kind}/{name}",
        Need::Project(&["access.write"]),
    ),
    // --- the audit chain
    op("GET /api/v1/audit/events", Need::Anywhere("audit.read")),
    op("GET /api/v1/audit/events", Need::Project(&["audit.read"])).at("/api/v1/audit/events?project={project}"),
    op("GET /api/v1/audit/events", Need::Installation(&["audit.read"])).at("/api/v1/audit/events?project="),
    op("GET /api/v1/audit/export", Need::Installation(&["audit.read"])),
    op("GET /api/v1/audit/export", Need::Installation(&["audit.read"])).at("/api/v1/audit/export?format=ocsf"),
    op("POST /api/v1/audit/verify", Need::Installation(&["audit.read"])),
    op("POST /api/v1/audit/checkpoints", Need::Installation(&["audit.sign"])),
    op("GET /api/v1/audit/keys", Need::Installation(&["audit.read"])),
    // --- projects and secrets
    op("GET /api/v1/projects", Need::SignedIn),
    op("GET /api/v1/projects/{project}", Need::Project(&["project.read"])),
    op("PUT /api/v1/projects/{project}", Need::SeenProject("project.write")).json(r#"{"description": ""}"#),
    // The target has an endpoint, so that nobody can remove it.
    op("DELETE /api/v1/projects/{project}", Need::Project(&["project.write"])),
    op(
        "GET /api/v1/projects/{project}/secrets",
        Need::Project(&["secret.read"]),
    ),
    op(
        "PUT /api/v1/projects/{project}/secrets/{name}",
        Need::Project(&["secret.write"]),
    )
    .json(r#"{"value": ""}"#),
    op(
        "DELETE /api/v1/projects/{project}/secrets/{name}",
        Need::Project(&["secret.write"]),
    ),
    // --- storage; what is named is not there, so that nothing is collected
    op("POST /api/v1/projects/{project}/gc", Need::Project(&["storage.write"])).json(r#"{"run_ids": ["absent"]}"#),
    op("GET /api/v1/projects/{project}/gc", Need::Project(&["storage.read"])),
    op(
        "GET /api/v1/projects/{project}/gc/{id}",
        Need::Project(&["storage.read"]),
    ),
    op(
        "GET /api/v1/projects/{project}/gc/{id}/objects",
        Need::Project(&["storage.read"]),
    ),
    op("POST /api/v1/gc", Need::Installation(&["storage.write"])).json(r#"{"run_ids": ["absent"]}"#),
    op("GET /api/v1/projects/{project}/quota", Need::Project(&["storage.read"])),
    op(
        "PUT /api/v1/projects/{project}/quota",
        Need::Installation(&["storage.write"]),
    )
    .json(r#"{"limit_bytes": null}"#),
    op(
        "DELETE /api/v1/projects/{project}/experiments/{id}",
        Need::Project(&["run.write"]),
    ),
    op(
        "DELETE /api/v1/projects/{project}/experiments/{id}",
        Need::Project(&["run.write", "storage.write"]),
    )
    .at("/api/v1/projects/{project}/experiments/{id}?permanent=true"),
    // --- artifacts and datasets
    Operation {
        body: Body::Bytes("an artifact of the matrix"),
        ..op(
            "PUT /api/v1/projects/{project}/artifacts",
            Need::Project(&["artifact.write"]),
        )
    },
    op(
        "GET /api/v1/projects/{project}/artifacts/{digest}",
        Need::Project(&["artifact.read"]),
    ),
    op(
        "HEAD /api/v1/projects/{project}/artifacts/{digest}",
        Need::Project(&["artifact.read"]),
    ),
    op(
        "GET /api/v1/projects/{project}/datasets",
        Need::Project(&["dataset.read"]),
    ),
    op(
        "GET /api/v1/projects/{project}/datasets/{dataset}/versions",
        Need::Project(&["dataset.read"]),
    ),
    op(
        "POST /api/v1/projects/{project}/datasets/{dataset}/versions",
        Need::Project(&["dataset.write"]),
    )
    .json(r#"{"files": []}"#),
    op(
        "GET /api/v1/projects/{project}/datasets/{dataset}/versions/{version}",
        Need::Project(&["dataset.read"]),
    ),
    op(
        "GET /api/v1/projects/{project}/datasets/{dataset}/versions/{version}/profile",
        Need::Project(&["dataset.read"]),
    ),
    // --- runs
    op(
        "GET /api/v1/projects/{project}/experiments",
        Need::Project(&["run.read"]),
    ),
    op("GET /api/v1/projects/{project}/runs", Need::Project(&["run.read"])),
    op(
        "GET /api/v1/projects/{project}/runs/{run_id}",
        Need::Project(&["run.read"]),
    ),
    op(
        "GET /api/v1/projects/{project}/runs/{run_id}/metrics/{key}",
        Need::Project(&["run.read"]),
    ),
    // --- webhooks
    op(
        "GET /api/v1/projects/{project}/webhooks/{webhook_id}/deliveries",
        Need::Project(&["webhook.read"]),
    ),
    // --- imports
    op(
        "POST /api/v1/projects/{project}/import/experiments",
        Need::Project(&["run.write"]),
    )
    .json(r#"{"source": "", "experiments": []}"#),
    op(
        "POST /api/v1/projects/{project}/import/runs",
        Need::Project(&["run.write"]),
    )
    .json(r#"{"source": "", "experiment_id": 0, "runs": []}"#),
    op(
        "POST /api/v1/projects/{project}/import/points",
        Need::Project(&["run.write"]),
    )
    .json(r#"{"source": "", "run_id": "absent", "key": "m", "points": []}"#),
    op(
        "POST /api/v1/projects/{project}/import/logged-models",
        Need::Project(&["run.write"]),
    )
    .json(r#"{"source": "", "experiment_id": 0, "models": []}"#),
    op(
        "POST /api/v1/projects/{project}/import/models",
        Need::Project(&["model.write"]),
    )
    .json(r#"{"source": "", "models": []}"#),
    op(
        "POST /api/v1/projects/{project}/import/versions",
        Need::Project(&["model.write"]),
    )
    .json(r#"{"source": "", "source_id": "absent", "model": "absent", "versions": []}"#),
    op(
        "POST /api/v1/projects/{project}/import/states/find",
        Need::Project(&["run.read"]),
    )
    .json(r#"{"source": "", "kind": "run", "ids": []}"#),
    op(
        "PUT /api/v1/projects/{project}/import/states",
        Need::Project(&["run.write"]),
    )
    .json(r#"{"source": "", "kind": "run", "items": []}"#),
    op(
        "GET /api/v1/projects/{project}/import/counts",
        Need::Project(&["run.read"]),
    )
    .at("/api/v1/projects/{project}/import/counts?source=s&experiment_id=0"),
    // --- models
    op("GET /api/v1/projects/{project}/models", Need::Project(&["model.read"])),
    op(
        "GET /api/v1/projects/{project}/models/{model}",
        Need::Project(&["model.read"]),
    ),
    op(
        "GET /api/v1/projects/{project}/models/{model}/versions",
        Need::Project(&["model.read"]),
    ),
    op(
        "POST /api/v1/projects/{project}/models/{model}/versions",
        Need::Project(&["model.write"]),
    )
    .json(r#"{"artifact_digest": "none"}"#),
    op(
        "POST /api/v1/projects/{project}/models/{model}/versions",
        Need::Project(&["model.write", "alias.write"]),
    )
    .json(r#"{"artifact_digest": "none", "aliases": ["champion"]}"#),
    op(
        "GET /api/v1/projects/{project}/models/{model}/versions/{version}",
        Need::Project(&["model.read"]),
    ),
    op(
        "PUT /api/v1/projects/{project}/models/{model}/versions/{version}/bundle",
        Need::Project(&["model.write"]),
    )
    .json(r#"{"digest": "none"}"#),
    op(
        "GET /api/v1/projects/{project}/models/{model}/aliases/{alias}",
        Need::Project(&["model.read"]),
    ),
    op(
        "PUT /api/v1/projects/{project}/models/{model}/aliases/{alias}",
        Need::Project(&["alias.write"]),
    )
    .json(r#"{"version": 1}"#),
    op(
        "DELETE /api/v1/projects/{project}/models/{model}/aliases/{alias}",
        Need::Project(&["alias.write"]),
    ),
    op(
        "GET /api/v1/projects/{project}/models/{model}/aliases/{alias}/history",
        Need::Project(&["model.read"]),
    ),
    op(
        "GET /api/v1/projects/{project}/models/{model}/aliases/{alias}/at",
        Need::Project(&["model.read"]),
    )
    .at("/api/v1/projects/{project}/models/absent/aliases/champion/at?time=2026-01-01T00:00:00Z"),
    // --- lineage
    op("GET /api/v1/projects/{project}/lineage", Need::Project(&["run.read"]))
        .at("/api/v1/projects/{project}/lineage?of=run/absent"),
    op("GET /api/v1/projects/{project}/lineage", Need::Project(&["model.read"]))
        .at("/api/v1/projects/{project}/lineage?of=model/absent/1"),
    op("GET /api/v1/projects/{project}/lineage", Need::Project(&["model.read"]))
        .at("/api/v1/projects/{project}/lineage?of=model/absent@champion"),
    op(
        "GET /api/v1/projects/{project}/lineage",
        Need::Project(&["dataset.read"]),
    )
    .at("/api/v1/projects/{project}/lineage?of=dataset/absent/1"),
    op(
        "GET /api/v1/projects/{project}/lineage",
        Need::Project(&["endpoint.read"]),
    )
    .at("/api/v1/projects/{project}/lineage?of=endpoint/absent"),
    op(
        "GET /api/v1/projects/{project}/lineage",
        Need::Project(&["pipeline.read"]),
    )
    .at("/api/v1/projects/{project}/lineage?of=pipeline-run/absent"),
    // --- endpoints
    op(
        "GET /api/v1/projects/{project}/endpoints",
        Need::Project(&["endpoint.read"]),
    ),
    op(
        "GET /api/v1/projects/{project}/endpoints/{name}",
        Need::Project(&["endpoint.read"]),
    ),
    op(
        "GET /api/v1/projects/{project}/endpoints/{name}",
        Need::Endpoint("endpoint.read"),
    )
    .at("/api/v1/projects/{project}/endpoints/served"),
    op(
        "PUT /api/v1/projects/{project}/endpoints/{name}",
        Need::Project(&["endpoint.write"]),
    )
    .json("[]"),
    op(
        "DELETE /api/v1/projects/{project}/endpoints/{name}",
        Need::Project(&["endpoint.write"]),
    ),
    op(
        "POST /api/v1/projects/{project}/endpoints/{name}/rollback",
        Need::Project(&["endpoint.write"]),
    ),
    op("GET /api/v1/projects/{project}/events", Need::Project(&["event.read"])),
    // --- pipelines and triggers
    op(
        "GET /api/v1/projects/{project}/pipelines",
        Need::Project(&["pipeline.read"]),
    ),
    op(
        "GET /api/v1/projects/{project}/pipelines/{name}",
        Need::Project(&["pipeline.read"]),
    ),
    op(
        "PUT /api/v1/projects/{project}/pipelines/{name}",
        Need::Project(&["pipeline.write"]),
    )
    .json(r#"{"steps": [{"name": "one", "op": "conjure"}]}"#),
    op(
        "DELETE /api/v1/projects/{project}/pipelines/{name}",
        Need::Project(&["pipeline.write"]),
    ),
    op(
        "POST /api/v1/projects/{project}/pipelines/{name}/runs",
        Need::Project(&["pipeline.run"]),
    ),
    op(
        "GET /api/v1/projects/{project}/pipeline-runs",
        Need::Project(&["pipeline.read"]),
    ),
    op(
        "GET /api/v1/projects/{project}/pipeline-runs/{id}",
        Need::Project(&["pipeline.read"]),
    ),
    op(
        "POST /api/v1/projects/{project}/pipeline-runs/{id}/cancel",
        Need::Project(&["pipeline.run"]),
    ),
    op(
        "GET /api/v1/projects/{project}/triggers",
        Need::Project(&["trigger.read"]),
    ),
    op(
        "GET /api/v1/projects/{project}/triggers/{name}",
        Need::Project(&["trigger.read"]),
    ),
    // What a trigger starts works with the rights of whoever declares it.
    op(
        "PUT /api/v1/projects/{project}/triggers/{name}",
        Need::Project(&["trigger.write", "pipeline.run"]),
    )
    .json(r#"{"pipeline": "-bad"}"#),
    op(
        "DELETE /api/v1/projects/{project}/triggers/{name}",
        Need::Project(&["trigger.write"]),
    ),
    op(
        "GET /api/v1/projects/{project}/rollouts",
        Need::Project(&["endpoint.read"]),
    ),
    op(
        "GET /api/v1/projects/{project}/rollouts/{id}",
        Need::Project(&["endpoint.read"]),
    ),
    op(
        "POST /api/v1/projects/{project}/rollouts/{id}/pause",
        Need::Project(&["endpoint.write"]),
    ),
    op(
        "POST /api/v1/projects/{project}/rollouts/{id}/resume",
        Need::Project(&["endpoint.write"]),
    ),
    op(
        "POST /api/v1/projects/{project}/rollouts/{id}/promote",
        Need::Project(&["endpoint.write"]),
    ),
    op(
        "POST /api/v1/projects/{project}/rollouts/{id}/abort",
        Need::Project(&["endpoint.write"]),
    ),
    // --- monitoring
    op(
        "GET /api/v1/projects/{project}/monitors",
        Need::Project(&["monitor.read"]),
    ),
    op(
        "GET /api/v1/projects/{project}/monitors/{name}",
        Need::Project(&["monitor.read"]),
    ),
    op(
        "PUT /api/v1/projects/{project}/monitors/{name}",
        Need::Project(&["monitor.write"]),
    )
    .json("{}"),
    op(
        "DELETE /api/v1/projects/{project}/monitors/{name}",
        Need::Project(&["monitor.write"]),
    ),
    op(
        "GET /api/v1/projects/{project}/monitors/{name}/windows",
        Need::Project(&["monitor.read"]),
    ),
    op(
        "GET /api/v1/projects/{project}/monitors/{name}/windows/{start}",
        Need::Project(&["monitor.read"]),
    ),
    op(
        "GET /api/v1/projects/{project}/alert-rules",
        Need::Project(&["alert-rule.read"]),
    ),
    op(
        "GET /api/v1/projects/{project}/alert-rules/{name}",
        Need::Project(&["alert-rule.read"]),
    ),
    op(
        "PUT /api/v1/projects/{project}/alert-rules/{name}",
        Need::Project(&["alert-rule.write"]),
    )
    .json("{}"),
    op(
        "DELETE /api/v1/projects/{project}/alert-rules/{name}",
        Need::Project(&["alert-rule.write"]),
    ),
    op("GET /api/v1/projects/{project}/alerts", Need::Project(&["alert.read"])),
    op(
        "GET /api/v1/projects/{project}/alerts/{id}",
        Need::Project(&["alert.read"]),
    ),
    op(
        "POST /api/v1/projects/{project}/labels",
        Need::Project(&["label.write"]),
    )
    .json(r#"{"endpoint": "served", "labels": []}"#),
    op(
        "GET /api/v1/projects/{project}/predictions/{request_id}",
        Need::Project(&["prediction.read"]),
    ),
    op(
        "GET /api/v1/projects/{project}/comparisons/{name}",
        Need::Project(&["endpoint.read"]),
    ),
    op(
        "GET /api/v1/projects/{project}/comparisons/{name}",
        Need::Endpoint("endpoint.read"),
    )
    .at("/api/v1/projects/{project}/comparisons/served"),
    // --- the last one: it ends the token that it is asked with
    op("POST /api/v1/auth/sign-out", Need::SignedIn),
];
