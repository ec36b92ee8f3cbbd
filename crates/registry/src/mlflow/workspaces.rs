//! Workspaces, which are projects.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
};
use http::StatusCode;
use modelyard_auth::{Action, Resource};
use serde::Serialize;

use super::{
    error::Refusal,
    read::{Fields, Tenant},
    routes,
};
use crate::{
    error::Error,
    model::{
        endpoint::Outcome,
        page::{MAX_PAGE, PageRequest},
        project::{DEFAULT_PROJECT, Project, ProjectSpec},
    },
    service::Registry,
};

/// MLflow lists workspaces without pages; more than this are cut off.
const MAX_WORKSPACES: usize = 10_000;
/// The lengths of a name, in bytes.
const NAME_LENGTHS: std::ops::RangeInclusive<usize> = 2..=63;
/// Names that are parts of paths.
const RESERVED: [&str; 4] = ["workspaces", "api", "ajax-api", "static-files"];

#[derive(Serialize)]
struct Workspace {
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    description: String,
}

impl From<Project> for Workspace {
    fn from(project: Project) -> Self {
        Self {
            name: project.name,
            description: project.spec.description,
        }
    }
}

#[derive(Serialize)]
struct OneWorkspace {
    workspace: Workspace,
}

#[derive(Serialize)]
struct Workspaces {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    workspaces: Vec<Workspace>,
}

/// Checks the name of a new workspace as MLflow's clients do: they could not speak of it otherwise.
fn check_name(name: &str) -> Result<(), Refusal> {
    if name == DEFAULT_PROJECT {
        return Err(Refusal::invalid(format!(
            "The '{DEFAULT_PROJECT}' workspace is reserved and cannot be created"
        )));
    }
    if !NAME_LENGTHS.contains(&name.len()) {
        return Err(Refusal::invalid(format!(
            "Workspace name '{}' must be between {} and {} characters.",
            name.chars().take(*NAME_LENGTHS.end()).collect::<String>(),
            NAME_LENGTHS.start(),
            NAME_LENGTHS.end()
        )));
    }
    let is_inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if !name.chars().all(is_inner) || name.starts_with('-') || name.ends_with('-') {
        return Err(Refusal::invalid(format!(
            "Workspace name '{name}' must match the pattern ^[a-z0-9]([-a-z0-9]*[a-z0-9])?$ (lowercase alphanumeric with optional internal hyphens)."
        )));
    }
    if RESERVED.contains(&name) {
        return Err(Refusal::invalid(format!(
            "Workspace name '{name}' is reserved and cannot be used."
        )));
    }
    Ok(())
}

/// What a message says of a workspace; None: nothing.
fn read_description(fields: &Fields) -> Result<Option<String>, Refusal> {
    let archival = fields.object("trace_archival_config")?.unwrap_or_default();
    let places = [
        ("default_artifact_root", fields.text("default_artifact_root")?),
        ("trace_archival_config.location", archival.text("location")?),
        ("trace_archival_config.retention", archival.text("retention")?),
    ];
    // Empty, they say that the server shall decide, as it does.
    if let Some((name, _)) = places
        .iter()
        .find(|(_, value)| value.as_ref().is_some_and(|value| !value.is_empty()))
    {
        return Err(Refusal::invalid(format!(
            "A workspace cannot have its own `{name}`: everything of a workspace is in the store of the server, apart from that of others. Leave the field out."
        )));
    }
    fields.text("description")
}

async fn list(State(registry): State<Arc<Registry>>, tenant: Tenant) -> Result<Json<Workspaces>, Refusal> {
    let mut workspaces: Vec<Workspace> = Vec::new();
    let mut page = PageRequest::up_to(MAX_PAGE, None)?;
    while workspaces.len() < MAX_WORKSPACES {
        let found = registry.list_projects(&tenant.caller, &page).await?;
        workspaces.extend(found.items.into_iter().map(Workspace::from));
        let Some(next) = found.next_cursor else { break };
        page = PageRequest::up_to(MAX_PAGE, Some(&next))?;
    }
    Ok(Json(Workspaces { workspaces }))
}

async fn create(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    fields: Fields,
) -> Result<(StatusCode, Json<OneWorkspace>), Refusal> {
    let caller = &tenant.caller;
    // Before anything that tells which workspaces there are.
    caller.authorize(Action::ProjectWrite, Resource::INSTALLATION)?;
    let name = fields.required_text("name")?;
    check_name(&name)?;
    let description = read_description(&fields)?.unwrap_or_default();
    let exists = || Refusal::from(Error::Exists(format!("Workspace '{name}' already exists.")));
    if caller.snapshot().has_project(&name) {
        return Err(exists());
    }
    let (outcome, project) = registry
        .put_project(caller, &name, &ProjectSpec { description })
        .await?;
    if outcome != Outcome::Created {
        return Err(exists());
    }
    let workspace = project.into();
    Ok((StatusCode::CREATED, Json(OneWorkspace { workspace })))
}

async fn get(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    Path(name): Path<String>,
) -> Result<Json<OneWorkspace>, Refusal> {
    let workspace = registry.get_project(&tenant.caller, &name).await?.into();
    Ok(Json(OneWorkspace { workspace }))
}

async fn update(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    Path(name): Path<String>,
    fields: Fields,
) -> Result<Json<OneWorkspace>, Refusal> {
    let caller = &tenant.caller;
    // What is not there is not made by this.
    caller.authorize(Action::ProjectWrite, Resource::project(&name))?;
    let is_empty = fields.is_without(&["description", "default_artifact_root", "trace_archival_config"]);
    if is_empty {
        return Err(Refusal::invalid("Workspace update must have at least one key"));
    }
    let project = match read_description(&fields)? {
        Some(description) => {
            registry
                .put_project(caller, &name, &ProjectSpec { description })
                .await?
                .1
        }
        None => registry.get_project(caller, &name).await?,
    };
    let workspace = project.into();
    Ok(Json(OneWorkspace { workspace }))
}

async fn delete(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    Path(name): Path<String>,
    Mode(mode): Mode,
) -> Result<StatusCode, Refusal> {
    let caller = &tenant.caller;
    caller.authorize(Action::ProjectWrite, Resource::project(&name))?;
    if name == DEFAULT_PROJECT {
        return Err(Refusal::invalid_state(format!(
            "Cannot delete the reserved '{DEFAULT_PROJECT}' workspace"
        )));
    }
    let only_empty = match mode.as_str() {
        "RESTRICT" => true,
        "CASCADE" => false,
        "SET_DEFAULT" => {
            return Err(Refusal::not_implemented(
                "What is in a workspace cannot be moved to another: delete it with mode=CASCADE, or copy what is wanted first",
            ));
        }
        other => {
            return Err(Refusal::invalid(format!(
                "Invalid workspace deletion mode '{}'. Expected one of: RESTRICT, CASCADE, SET_DEFAULT.",
                other.chars().take(100).collect::<String>()
            )));
        }
    };
    let removed = registry.remove_project(caller, &name, only_empty).await;
    removed.map_err(|error| match error {
        Error::NotEmpty { what, .. } => Refusal::invalid_state(format!(
            "Cannot delete workspace '{name}': it still contains {what}. Remove them before deleting the workspace, or \
             delete it with mode=CASCADE."
        )),
        other => other.into(),
    })?;
    Ok(StatusCode::NO_CONTENT)
}

/// What shall become of what is in a workspace. It is in the query, whatever the method.
struct Mode(String);

impl<S: Send + Sync> axum::extract::FromRequestParts<S> for Mode {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut http::request::Parts, _: &S) -> Result<Self, Refusal> {
        let query = parts.uri.query().unwrap_or_default();
        let mode = form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == "mode");
        let mode = mode.map_or_else(|| "RESTRICT".to_owned(), |(_, value)| value.into_owned());
        Ok(Self(mode))
    }
}

routes! {
    get "/workspaces" => list,
    post "/workspaces" => create,
    get "/workspaces/{name}" => get,
    patch "/workspaces/{name}" => update,
    delete "/workspaces/{name}" => delete,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_clients_can_speak_of() {
        for good in ["team-a", "a1", "0x"] {
            check_name(good).unwrap();
        }
        for bad in [
            "a",
            "-a",
            "a-",
            "Team",
            "a_b",
            "a.b",
            "default",
            "api",
            "ä1",
            &"x".repeat(64),
        ] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_workspace_has_no_store_of_its_own() {
        let read = |text: &str| read_description(&Fields::from_json(text.as_bytes()).unwrap());
        assert_eq!(read(r#"{"description": "ours"}"#).unwrap().as_deref(), Some("ours"));
        assert_eq!(read(r#"{"default_artifact_root": ""}"#).unwrap(), None);
        assert!(read(r#"{"default_artifact_root": "s3://x"}"#).is_err());
        assert!(read(r#"{"trace_archival_config": {"retention": "3d"}}"#).is_err());
    }
}
