//! Artifacts: the server keeps them itself, and clients reach them below `mlflow-artifacts`.

mod presigned;
mod sending;

use std::{num::NonZeroU32, sync::Arc};

use axum::{
    Json, Router,
    body::Body,
    extract::{FromRequestParts, Path, State},
    response::{IntoResponse, Response},
    routing,
};
use http::{
    HeaderMap, HeaderName, Method, Uri, header,
    request::Parts,
    uri::{Authority, Scheme},
};
use serde::Serialize;

use self::presigned::in_pieces;
pub(super) use self::{
    presigned::{download_of_run, upload as presigned_upload},
    sending::send,
};
use super::{
    answers::Empty,
    error::Refusal,
    read::{Fields, Tenant, missing},
    routes,
};
use crate::{
    model::{
        artifact_file::{ArtifactFolder, ArtifactPath, ChosenPart, FolderEntry, FolderPlace, entity_tag},
        page::{Cursor as _, Page},
        tracking::PROXY_SCHEME,
    },
    service::{MAX_LISTED, Registry},
};

/// Where the parts of an upload are sent.
const PARTS_PATH: &str = "/api/2.0/mlflow-artifacts/mpu/parts";
/// The header with the secret of an upload. In the address it would be in logs.
const UPLOAD_SECRET: HeaderName = HeaderName::from_static("x-modelyard-upload");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FILE_NAME_MISSING: &str = "Artifact path must include a filename (cannot end with '/').";

/// What follows the name of an operation in its address.
pub(super) struct Rest(String);

impl<S: Send + Sync> FromRequestParts<S> for Rest {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        path.map(|Path(path)| Self(path))
            .map_err(|_| Refusal::invalid("Invalid path: it is no UTF-8 text"))
    }
}

/// A file or folder as MLflow lists it.
#[derive(Serialize)]
struct FileAnswer {
    path: String,
    is_dir: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    file_size: Option<u64>,
}

impl From<FolderEntry> for FileAnswer {
    fn from(entry: FolderEntry) -> Self {
        Self {
            is_dir: entry.is_folder(),
            file_size: entry.size_bytes,
            path: entry.path,
        }
    }
}

/// What is in a folder.
#[derive(Serialize)]
pub(super) struct FilesAnswer {
    #[serde(skip_serializing_if = "Option::is_none")]
    root_uri: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    files: Vec<FileAnswer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
}

impl FilesAnswer {
    fn new(root_uri: Option<String>, page: Page<FolderEntry>) -> Self {
        Self {
            root_uri,
            files: page.items.into_iter().map(FileAnswer::from).collect(),
            next_page_token: page.next_cursor,
        }
    }
}

#[derive(Serialize)]
struct UploadAnswer {
    upload_id: String,
    credentials: Vec<Credential>,
}

/// Where and how a client sends a part.
#[derive(Serialize)]
struct Credential {
    url: String,
    part_number: u32,
    headers: SecretHeader,
}

#[derive(Clone, Serialize)]
struct SecretHeader {
    #[serde(rename = "x-modelyard-upload")]
    secret: String,
}

async fn list(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<FilesAnswer>, Refusal> {
    let folder = ArtifactFolder::parse(&fields.text("path")?.unwrap_or_default())?;
    let page = registry
        .list_whole_folder(&tenant.caller, &tenant.project, &folder, None)
        .await?;
    if page.next_cursor.is_some() {
        // The client asks for no further pages, and would take a part for the whole.
        return Err(Refusal::invalid(format!(
            "folder `{}` has more than {MAX_LISTED} entries: list its folders one by one",
            folder.name()
        )));
    }
    Ok(Json(FilesAnswer::new(None, page)))
}

async fn upload(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    Rest(path): Rest,
    content: Body,
) -> Result<Response, Refusal> {
    if path.ends_with('/') {
        return Err(Refusal::invalid(FILE_NAME_MISSING));
    }
    let path = ArtifactPath::parse(&path)?;
    let content = content.into_data_stream();
    let file = registry
        .put_file(&tenant.caller, &tenant.project, &path, content)
        .await?;
    Ok(([(header::ETAG, entity_tag(file.digest))], Json(Empty {})).into_response())
}

async fn download(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    Rest(path): Rest,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let path = ArtifactPath::parse(&path)?;
    send(&registry, &tenant, &path, &method, &headers).await
}

async fn delete(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    Rest(path): Rest,
) -> Result<Json<Empty>, Refusal> {
    let path = ArtifactPath::parse(path.strip_suffix('/').unwrap_or(&path))?;
    registry.delete_path(&tenant.caller, &tenant.project, &path).await?;
    Ok(Json(Empty {}))
}

/// The file that a message about an upload in parts means: the name of the client's own file in the folder of the address.
fn file_of_upload(folder: &str, fields: &Fields) -> Result<ArtifactPath, Refusal> {
    let local = fields.required_text("path")?;
    let name = local.rsplit(['/', '\\']).next().unwrap_or_default();
    if name.is_empty() {
        return Err(Refusal::invalid(FILE_NAME_MISSING));
    }
    Ok(ArtifactFolder::parse(folder)?.file(name)?)
}

/// How the client reaches this server: as it did just now. Behind a proxy, as the proxy says.
fn address(uri: &Uri, headers: &HeaderMap, is_secure: bool) -> Result<String, Refusal> {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let first = |name: HeaderName| text(name).and_then(|values| values.split(',').next()).map(str::trim);
    let scheme = match first(FORWARDED_PROTO) {
        Some("https") => Scheme::HTTPS,
        Some("http") => Scheme::HTTP,
        _ => match uri.scheme() {
            Some(scheme) => scheme.clone(),
            None if is_secure => Scheme::HTTPS,
            None => Scheme::HTTP,
        },
    };
    let host = first(FORWARDED_HOST).or_else(|| text(header::HOST));
    let authority: Option<Authority> = match host {
        Some(host) => host.parse().ok(),
        None => uri.authority().cloned(),
    };
    match authority.filter(|authority| !authority.as_str().contains('@')) {
        Some(authority) => Ok(format!("{scheme}://{authority}")),
        None => Err(Refusal::invalid(
            "the request has no header `Host`: send one, so that parts find the way here",
        )),
    }
}

async fn create_upload(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    Rest(folder): Rest,
    uri: Uri,
    headers: HeaderMap,
    fields: Fields,
) -> Result<Json<UploadAnswer>, Refusal> {
    let path = file_of_upload(&folder, &fields)?;
    let count = fields.integer("num_parts")?.unwrap_or(1);
    let count = u32::try_from(count).ok().and_then(NonZeroU32::new);
    let count = count.ok_or_else(|| Refusal::invalid("Invalid value for parameter 'num_parts': it is 1 or more"))?;
    let address = address(&uri, &headers, registry.is_secure())?;
    let begun = registry
        .create_upload(&tenant.caller, &tenant.project, &path, count)
        .await?;
    let upload_id = begun.upload.upload_id;
    let headers = SecretHeader {
        secret: begun.secret.reveal().to_owned(),
    };
    let credential = |part_number| Credential {
        url: format!("{address}{PARTS_PATH}/{upload_id}/{part_number}"),
        part_number,
        headers: headers.clone(),
    };
    Ok(Json(UploadAnswer {
        credentials: (1..=count.get()).map(credential).collect(),
        upload_id,
    }))
}

/// Takes a part. The client sends what [`create_upload`] told it, and no token: this stands outside of what asks for one.
async fn put_part(
    State(registry): State<Arc<Registry>>,
    Path((upload_id, number)): Path<(String, u32)>,
    headers: HeaderMap,
    content: Body,
) -> Result<Response, Refusal> {
    let secret = headers.get(UPLOAD_SECRET).and_then(|value| value.to_str().ok());
    let content = content.into_data_stream();
    let part = registry
        .put_part(&upload_id, secret.unwrap_or_default(), number, content)
        .await?;
    Ok([(header::ETAG, entity_tag(part.digest))].into_response())
}

async fn complete_upload(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    Rest(folder): Rest,
    fields: Fields,
) -> Result<Json<Empty>, Refusal> {
    let path = file_of_upload(&folder, &fields)?;
    let upload_id = fields.required_text("upload_id")?;
    let parts = fields.objects("parts")?;
    if parts.is_empty() {
        return Err(missing("parts"));
    }
    let chosen = parts.iter().map(chosen_part).collect::<Result<Vec<_>, _>>()?;
    registry
        .complete_upload(&tenant.caller, &tenant.project, &path, &upload_id, &chosen)
        .await?;
    Ok(Json(Empty {}))
}

fn chosen_part(part: &Fields) -> Result<ChosenPart, Refusal> {
    let number = part
        .integer("part_number")?
        .and_then(|number| u32::try_from(number).ok());
    Ok(ChosenPart {
        number: number.ok_or_else(|| missing("part_number"))?,
        tag: part.text("etag")?.filter(|tag| !tag.is_empty()),
    })
}

async fn abort_upload(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    Rest(folder): Rest,
    fields: Fields,
) -> Result<Json<Empty>, Refusal> {
    file_of_upload(&folder, &fields)?;
    let upload_id = fields.required_text("upload_id")?;
    registry
        .abort_upload(&tenant.caller, &tenant.project, &upload_id)
        .await?;
    Ok(Json(Empty {}))
}

async fn list_below(
    registry: &Registry,
    tenant: &Tenant,
    root: &str,
    path: &str,
    token: Option<String>,
) -> Result<Json<FilesAnswer>, Refusal> {
    let place =
        |token: String| FolderPlace::read(&token).ok_or_else(|| Refusal::invalid("page_token is not one of this list"));
    let after = token.filter(|token| !token.is_empty()).map(place).transpose()?;
    let page = registry
        .list_run_artifacts(&tenant.caller, &tenant.project, root, path, after)
        .await?;
    Ok(Json(FilesAnswer::new(Some(format!("{PROXY_SCHEME}{root}")), page)))
}

/// The run that a message names, by its old name, too.
fn run_id(fields: &Fields) -> Result<String, Refusal> {
    match fields.text("run_id")? {
        Some(run_id) if !run_id.is_empty() => Ok(run_id),
        _ => match fields.text("run_uuid")? {
            Some(run_id) if !run_id.is_empty() => Ok(run_id),
            _ => Err(missing("run_id")),
        },
    }
}

/// The artifacts of a run: `GET /artifacts/list`.
pub(super) async fn list_of_run(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    fields: Fields,
) -> Result<Json<FilesAnswer>, Refusal> {
    let run_id = run_id(&fields)?;
    let path = fields.text("path")?.unwrap_or_default();
    let root = registry
        .run_artifact_root(&tenant.caller, &tenant.project, &run_id)
        .await?;
    list_below(&registry, &tenant, &root, &path, fields.text("page_token")?).await
}

/// The artifacts of a logged model: `GET /logged-models/{id}/artifacts/directories`.
pub(super) async fn list_of_logged_model(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    Rest(model_id): Rest,
    fields: Fields,
) -> Result<Json<FilesAnswer>, Refusal> {
    let path = fields.text("artifact_directory_path")?.unwrap_or_default();
    let root = registry
        .logged_model_artifact_root(&tenant.caller, &tenant.project, &model_id)
        .await?;
    list_below(&registry, &tenant, &root, &path, fields.text("page_token")?).await
}

/// An artifact of a run for pages that show it: `GET /get-artifact`.
pub(super) async fn get_of_run(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    method: Method,
    headers: HeaderMap,
    fields: Fields,
) -> Result<Response, Refusal> {
    let run_id = run_id(&fields)?;
    let below = fields.required_text("path")?;
    let root = registry
        .run_artifact_root(&tenant.caller, &tenant.project, &run_id)
        .await?;
    let path = ArtifactFolder::parse(&root)?.file(&below)?;
    send(&registry, &tenant, &path, &method, &headers).await
}

/// A file of a model version for pages that show it: `GET /model-versions/get-artifact`.
pub(super) async fn get_of_version(
    State(registry): State<Arc<Registry>>,
    tenant: Tenant,
    method: Method,
    headers: HeaderMap,
    fields: Fields,
) -> Result<Response, Refusal> {
    let name = fields.required_text("name")?;
    let version = fields.required_text("version")?;
    let below = fields.required_text("path")?;
    let root = registry
        .version_artifact_root(&tenant.caller, &tenant.project, &name, &version)
        .await?;
    let path = ArtifactFolder::parse(&root)?.file(&below)?;
    send(&registry, &tenant, &path, &method, &headers).await
}

/// What asks for no token.
pub(super) fn open_routes() -> Router<Arc<Registry>> {
    Router::new().route("/mpu/parts/{upload_id}/{number}", routing::put(put_part))
}

routes! {
    get "/artifacts" => list,
    get "/artifacts/{*path}" => download,
    put "/artifacts/{*path}" => upload,
    delete "/artifacts/{*path}" => delete,
    post "/mpu/create/{*path}" => create_upload,
    post "/mpu/complete/{*path}" => complete_upload,
    post "/mpu/abort/{*path}" => abort_upload,
    get "/presigned/{*path}" => in_pieces,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        let pairs = pairs.iter().map(|(name, value)| (name.clone(), value.parse().unwrap()));
        pairs.collect()
    }

    #[test]
    fn parts_find_the_way_that_the_client_came() {
        let uri = Uri::from_static("/mpu/create/x");
        let at = |pairs: &[(HeaderName, &str)], is_secure| address(&uri, &headers(pairs), is_secure).ok();
        let host = (header::HOST, "127.0.0.1:8080");
        assert_eq!(
            at(std::slice::from_ref(&host), false).as_deref(),
            Some("http://127.0.0.1:8080")
        );
        assert_eq!(
            at(std::slice::from_ref(&host), true).as_deref(),
            Some("https://127.0.0.1:8080")
        );
        let proxied = [host, (FORWARDED_PROTO, "https"), (FORWARDED_HOST, "yard.example")];
        assert_eq!(at(&proxied, false).as_deref(), Some("https://yard.example"));
        assert_eq!(at(&[], false), None);
        assert_eq!(at(&[(header::HOST, "user@host")], false), None);
        let uri = Uri::from_static("https://yard.example/mpu/create/x");
        assert_eq!(address(&uri, &HeaderMap::new(), false).unwrap(), "https://yard.example");
    }
}
