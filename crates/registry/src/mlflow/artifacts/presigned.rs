//! Artifacts that are fetched from the storage itself.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{Json, extract::State};
use modelyard_auth::{Action, Kind, Resource};
use serde::Serialize;

use super::{
    super::{
        error::Refusal,
        read::{Fields, Tenant},
    },
    Rest,
};
use crate::{
    model::artifact_file::{ArtifactFolder, ArtifactPath},
    service::{PRESIGNED_LIFETIME, Registry},
};

/// What MLflow's client looks for before it goes another way.
const NOT_IN_PIECES: &str = "Multipart download is not supported for the current artifact repository";
/// As storages have it, a week.
const LONGEST_LIFETIME_SECONDS: i64 = 604_800;

/// Where a client fetches a file in pieces at the same time.
#[derive(Serialize)]
pub(super) struct PiecesAnswer {
    url: String,
    /// What has to be sent along.
    headers: BTreeMap<String, String>,
    file_size: u64,
}

/// Where a file of a run is fetched.
#[derive(Serialize)]
pub(in super::super) struct AddressAnswer {
    presigned_url: String,
    /// What has to be sent along.
    headers: BTreeMap<String, String>,
    file_size: u64,
}

/// `GET mlflow-artifacts/presigned/{path}`
pub(super) async fn in_pieces(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    Rest(path): Rest,
) -> Result<Json<PiecesAnswer>, Refusal> {
    let path = ArtifactPath::parse(&path)?;
    if !registry.presigns() {
        let file = Resource::named(Kind::Artifact, &tenant.project, path.as_str());
        tenant.caller.authorize(Action::ArtifactRead, file)?;
        return Err(Refusal::not_implemented(NOT_IN_PIECES));
    }
    let (file, url) = registry
        .presign_file(&tenant.caller, &tenant.project, &path, PRESIGNED_LIFETIME)
        .await?;
    Ok(Json(PiecesAnswer {
        url: url.ok_or_else(|| Refusal::not_implemented(NOT_IN_PIECES))?,
        headers: BTreeMap::new(),
        file_size: file.size_bytes,
    }))
}

fn proxied(direction: &str, below: &str) -> Refusal {
    Refusal::invalid(format!(
        "Presigned {direction} is not supported for {below}proxied artifact storage (artifact URI scheme: mlflow-artifacts). \
         This endpoint requires a direct cloud storage artifact URI."
    ))
}

/// `POST mlflow/artifacts/presigned-download-url`
pub(in super::super) async fn download_of_run(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<AddressAnswer>, Refusal> {
    let run_id = fields.required_text("run_id")?;
    let below = fields.required_text("path")?;
    let lifetime = match fields.integer("expiration")? {
        None => PRESIGNED_LIFETIME,
        Some(seconds) if (1..=LONGEST_LIFETIME_SECONDS).contains(&seconds) => {
            Duration::from_secs(seconds.unsigned_abs())
        }
        Some(seconds) => {
            return Err(Refusal::invalid(format!(
                "expiration must be between 1 and {LONGEST_LIFETIME_SECONDS} seconds (got {seconds})."
            )));
        }
    };
    let root = registry
        .run_artifact_root(&tenant.caller, &tenant.project, &run_id)
        .await?;
    if !registry.presigns() {
        return Err(proxied("download", "runs with "));
    }
    let path = ArtifactFolder::parse(&root)?.file(&below)?;
    let (file, url) = registry
        .presign_file(&tenant.caller, &tenant.project, &path, lifetime)
        .await?;
    Ok(Json(AddressAnswer {
        presigned_url: url.ok_or_else(|| proxied("download", "runs with "))?,
        headers: BTreeMap::new(),
        file_size: file.size_bytes,
    }))
}

/// `POST mlflow/artifacts/presigned-upload-url`: refused, as MLflow's server refuses it where artifacts go through it. A file is
/// stored by its digest, and whoever wrote past the server could make content say what it is not.
pub(in super::super) async fn upload(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<AddressAnswer>, Refusal> {
    let of = |name| Ok::<_, Refusal>(fields.text(name)?.filter(|id| !id.is_empty()));
    fields.required_text("path")?;
    match (of("run_id")?, of("model_id")?) {
        (Some(run_id), None) => {
            registry
                .run_artifact_root(&tenant.caller, &tenant.project, &run_id)
                .await?
        }
        (None, Some(model_id)) => {
            registry
                .logged_model_artifact_root(&tenant.caller, &tenant.project, &model_id)
                .await?
        }
        _ => return Err(Refusal::invalid("Exactly one of run_id and model_id must be provided.")),
    };
    Err(proxied("upload", ""))
}
