//! The kinds of things that `apply`, `get`, `describe` and `delete` know.

use serde_json::Value;

use super::{
    UsageError,
    client::Level,
    output::{Column, column, text_at},
};

/// A kind of things: its names, where the API has it, and what can be done with it.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// Its name in YAML.
    pub yaml: &'static str,
    /// Its name on the command line, for one.
    pub singular: &'static str,
    /// Its name on the command line, for many.
    pub plural: &'static str,
    /// Its name in URLs.
    pub path: &'static str,
    /// The part of the API that it is in.
    pub level: Level,
    /// Whether it is declared by `apply`, or comes into being otherwise.
    pub is_declared: bool,
    /// Whether `delete` removes one by its name.
    pub is_deletable: bool,
    /// Whether the API gives one by its name; else it is looked for in the list.
    pub is_addressable: bool,
    /// Whether `NAME/VERSION` is one of its versions.
    pub is_versioned: bool,
    /// What a list shows.
    pub columns: &'static [Column],
}

impl Kind {
    /// Something of the project that `apply` declares.
    const fn declared(yaml: &'static str, singular: &'static str, plural: &'static str) -> Self {
        Self {
            yaml,
            singular,
            plural,
            path: plural,
            level: Level::Project,
            is_declared: true,
            is_deletable: true,
            is_addressable: true,
            is_versioned: false,
            columns: GENERAL,
        }
    }

    /// Something of the project that comes into being otherwise.
    const fn listed(yaml: &'static str, singular: &'static str, plural: &'static str) -> Self {
        Self {
            is_declared: false,
            is_deletable: false,
            ..Self::declared(yaml, singular, plural)
        }
    }

    const fn at(self, path: &'static str) -> Self {
        Self { path, ..self }
    }

    const fn of_installation(self) -> Self {
        Self {
            level: Level::Installation,
            ..self
        }
    }

    const fn versioned(self) -> Self {
        Self {
            is_versioned: true,
            ..self
        }
    }

    const fn deletable(self) -> Self {
        Self {
            is_deletable: true,
            ..self
        }
    }

    const fn only_in_lists(self) -> Self {
        Self {
            is_addressable: false,
            ..self
        }
    }

    const fn showing(self, columns: &'static [Column]) -> Self {
        Self { columns, ..self }
    }
}

/// Tokens, without what lets one in.
pub const TOKEN: Kind = Kind::listed("Token", "token", "tokens")
    .of_installation()
    .only_in_lists()
    .showing(TOKEN_COLUMNS);

/// What can be done at all.
pub const ACTION: Kind = Kind::listed("Action", "action", "actions")
    .of_installation()
    .only_in_lists()
    .showing(ACTION_COLUMNS);

/// Secrets, without their values.
pub const SECRET: Kind = Kind::listed("Secret", "secret", "secrets")
    .deletable()
    .only_in_lists()
    .showing(SECRET_COLUMNS);

/// All kinds. Declared ones stand in the order in which they are applied: what is referred to comes first, and the
/// installation before what is in its projects.
pub static KINDS: [Kind; 21] = [
    Kind::declared("Project", "project", "projects")
        .of_installation()
        .showing(PROJECT_COLUMNS),
    Kind::declared("Role", "role", "roles")
        .of_installation()
        .showing(ROLE_COLUMNS),
    Kind::declared("Policy", "policy", "policies")
        .of_installation()
        .showing(POLICY_COLUMNS),
    Kind::declared("ServiceAccount", "service-account", "service-accounts")
        .of_installation()
        .showing(IDENTITY_COLUMNS),
    Kind::declared("User", "user", "users")
        .of_installation()
        .showing(IDENTITY_COLUMNS),
    Kind::declared("RoleBinding", "role-binding", "role-bindings")
        .of_installation()
        .showing(ROLE_BINDING_COLUMNS),
    Kind::declared("ProjectRoleBinding", "project-role-binding", "project-role-bindings")
        .at("role-bindings")
        .showing(ROLE_BINDING_COLUMNS),
    Kind::declared("Pipeline", "pipeline", "pipelines"),
    Kind::declared("Trigger", "trigger", "triggers"),
    Kind::declared("Endpoint", "endpoint", "endpoints"),
    Kind::declared("Monitor", "monitor", "monitors"),
    Kind::declared("AlertRule", "alert-rule", "alert-rules"),
    Kind::listed("Alert", "alert", "alerts"),
    Kind::listed("PipelineRun", "pipeline-run", "pipeline-runs"),
    Kind::listed("Rollout", "rollout", "rollouts").showing(ROLLOUT_COLUMNS),
    Kind::listed("Dataset", "dataset", "datasets").versioned(),
    Kind::listed("Model", "model", "models").versioned(),
    Kind::listed("Run", "run", "runs"),
    TOKEN,
    ACTION,
    SECRET,
];

/// The kind that a word on the command line means.
pub fn kind_of(word: &str) -> Result<&'static Kind, UsageError> {
    let lower = word.to_lowercase();
    KINDS
        .iter()
        .find(|kind| kind.plural == lower || kind.singular == lower || kind.yaml.to_lowercase() == lower)
        .ok_or_else(|| {
            let known: Vec<_> = KINDS.iter().map(|kind| kind.plural).collect();
            UsageError(format!("`{word}` is no kind: use {}", known.join(", ")))
        })
}

const NAME: Column = column("name", |item| text_at(item, &["/name"]));
const CREATED: Column = column("created", |item| text_at(item, &["/created_at"]));
const UPDATED: Column = column("updated", |item| text_at(item, &["/updated_at", "/created_at"]));
const DESCRIPTION: Column = column("description", |item| {
    text_at(item, &["/spec/description", "/description"])
});

const GENERAL: &[Column] = &[
    column("name", |item| text_at(item, &["/name", "/id", "/run_id"])),
    column("state", state),
    column("time", |item| {
        text_at(item, &["/updated_at", "/created_at", "/fired_at", "/started_at"])
    }),
];

const ROLLOUT_COLUMNS: &[Column] = &[
    column("id", |item| text_at(item, &["/id"])),
    column("endpoint", |item| text_at(item, &["/endpoint"])),
    column("from", |item| text_at(item, &["/from"])),
    column("to", |item| text_at(item, &["/to"])),
    column("state", |item| text_at(item, &["/state"])),
    column("share", |item| text_at(item, &["/share"])),
    column("reason", |item| text_or(item, "/reason", "-")),
];

const PROJECT_COLUMNS: &[Column] = &[NAME, DESCRIPTION, CREATED];

const ROLE_COLUMNS: &[Column] = &[
    NAME,
    column("built in", |item| match item.pointer("/built_in") {
        Some(Value::Bool(true)) => "yes".to_owned(),
        _ => "no".to_owned(),
    }),
    // There are too many for a line: `describe` names them.
    column("actions", |item| {
        let actions = item.pointer("/spec/actions").and_then(Value::as_array);
        actions.map_or_else(|| "-".to_owned(), |actions| actions.len().to_string())
    }),
    DESCRIPTION,
];

const POLICY_COLUMNS: &[Column] = &[NAME, DESCRIPTION, UPDATED];

const IDENTITY_COLUMNS: &[Column] = &[
    NAME,
    column("display name", |item| text_at(item, &["/spec/display_name"])),
    column("enabled", |item| text_at(item, &["/spec/enabled"])),
    column("groups", |item| text_at(item, &["/spec/groups"])),
];

const ROLE_BINDING_COLUMNS: &[Column] = &[
    NAME,
    column("subject", |item| text_at(item, &["/spec/subject"])),
    column("role", |item| text_at(item, &["/spec/role"])),
    column("place", |item| text_at(item, &["/spec/place"])),
];

const TOKEN_COLUMNS: &[Column] = &[
    column("id", |item| text_at(item, &["/id"])),
    NAME,
    column("owner", |item| text_at(item, &["/owner"])),
    column("kind", |item| text_at(item, &["/kind"])),
    column("scope", |item| text_or(item, "/scope", "all of the owner's")),
    column("expires", |item| match item.get("revoked_at") {
        Some(Value::String(_)) => "revoked".to_owned(),
        _ => text_or(item, "/expires_at", "never"),
    }),
    column("last used", |item| text_or(item, "/last_used_at", "never")),
];

const ACTION_COLUMNS: &[Column] = &[NAME, DESCRIPTION];

const SECRET_COLUMNS: &[Column] = &[NAME, CREATED, UPDATED];

fn state(item: &Value) -> String {
    match item.pointer("/status/ready").and_then(Value::as_bool) {
        Some(ready) => if ready { "ready" } else { "not ready" }.to_owned(),
        None => text_at(item, &["/status", "/state", "/latest_version", "/version"]),
    }
}

/// The value, or the words for none.
fn text_or(item: &Value, pointer: &str, none: &str) -> String {
    match item.pointer(pointer) {
        None | Some(Value::Null) => none.to_owned(),
        Some(_) => text_at(item, &[pointer]),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;

    fn row(plural: &str, item: &Value) -> Vec<String> {
        let kind = kind_of(plural).unwrap();
        kind.columns.iter().map(|column| (column.text)(item)).collect()
    }

    #[test]
    fn a_kind_is_found_by_each_of_its_names() {
        for kind in &KINDS {
            for word in [kind.yaml, kind.singular, kind.plural, &kind.plural.to_uppercase()] {
                assert_eq!(kind_of(word).unwrap().yaml, kind.yaml);
            }
        }
        let names = KINDS.iter().flat_map(|kind| [kind.singular, kind.plural]);
        assert_eq!(names.collect::<BTreeSet<_>>().len(), 2 * KINDS.len());
        let error = kind_of("widgets").unwrap_err().to_string();
        assert!(
            error.contains("role-bindings") && error.contains("endpoints"),
            "{error}"
        );
    }

    #[test]
    fn the_installation_is_applied_before_its_projects() {
        let declared: Vec<_> = KINDS.iter().filter(|kind| kind.is_declared).collect();
        let installation = declared.iter().take_while(|kind| kind.level == Level::Installation);
        let names: Vec<_> = installation.map(|kind| kind.yaml).collect();
        let expected = ["Project", "Role", "Policy", "ServiceAccount", "User", "RoleBinding"];
        assert_eq!(names, expected);
        let later = declared.get(names.len()..).unwrap();
        assert!(later.iter().all(|kind| kind.level == Level::Project));
    }

    #[test]
    fn lists_show_what_matters_of_a_kind() {
        for (plural, item, expected) in [
            (
                "users",
                json!({"name": "alice", "spec": {"display_name": "Alice", "enabled": true, "groups": ["a", "b"]}}),
                &["alice", "Alice", "yes", "a, b"][..],
            ),
            (
                "service-accounts",
                json!({"name": "ci", "spec": {"display_name": "", "enabled": false, "groups": []}}),
                &["ci", "-", "no", "-"],
            ),
            (
                "roles",
                json!({"name": "reader", "spec": {"description": "Reads", "actions": ["run.read", "model.read"]}}),
                &["reader", "no", "2", "Reads"],
            ),
            (
                "role-bindings",
                json!({"name": "b", "spec": {"subject": "group:team", "role": "viewer", "place": "*"}}),
                &["b", "group:team", "viewer", "*"],
            ),
            (
                "tokens",
                json!({"id": "1", "name": "laptop", "kind": "api", "owner": "user:alice", "scope": ["viewer@default"],
                    "expires_at": "2026-01-01T00:00:00Z", "last_used_at": null, "revoked_at": null}),
                &[
                    "1",
                    "laptop",
                    "user:alice",
                    "api",
                    "viewer@default",
                    "2026-01-01T00:00:00Z",
                    "never",
                ],
            ),
            (
                "tokens",
                json!({"id": "2", "name": "old", "kind": "api", "owner": "user:alice", "scope": null,
                    "expires_at": null, "last_used_at": "t", "revoked_at": "t"}),
                &["2", "old", "user:alice", "api", "all of the owner's", "revoked", "t"],
            ),
            (
                "actions",
                json!({"name": "alias.write", "description": "Point aliases at model versions."}),
                &["alias.write", "Point aliases at model versions."],
            ),
            (
                "secrets",
                json!({"name": "slack", "created_at": "t1", "updated_at": "t2"}),
                &["slack", "t1", "t2"],
            ),
            (
                "endpoints",
                json!({"name": "e", "status": {"ready": false}, "updated_at": "t"}),
                &["e", "not ready", "t"],
            ),
            (
                "runs",
                json!({"run_id": "r", "status": "running", "started_at": 7}),
                &["r", "running", "7"],
            ),
        ] {
            assert_eq!(row(plural, &item), expected, "{plural}");
        }
    }
}
