//! The audit chain: searched, verified, signed and exported.

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use modelyard_auth::{
    Caller,
    audit::{AuditEvent, Checkpoint, export::CONTENT_TYPE},
};
use modelyard_common::{Timestamp, error::Problem, extract::Query};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::{
    error::{Error, Result},
    model::{
        audit::{AuditFilter, AuditKey},
        page::{Page, PageRequest},
    },
    service::{ExportFormat, Registry, Verification},
};

/// Which events are wanted; what is left out lets all through.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct AuditQuery {
    /// Of this project; empty: those of the installation.
    project: Option<String>,
    /// By this actor, or on behalf of it: `user:NAME`, ...
    actor: Option<String>,
    /// Of this action.
    action: Option<String>,
    /// On resources of this kind.
    resource_kind: Option<String>,
    /// On this resource.
    resource: Option<String>,
    /// With this outcome: `success`, `denied` or `failed`.
    outcome: Option<String>,
    /// Of this request.
    request_id: Option<String>,
    /// At or after this time (RFC 3339).
    since: Option<String>,
    /// Before this time (RFC 3339).
    until: Option<String>,
    /// The most items, 1 to 1000; 50 when it is left out.
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// How the chain is exported.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ExportQuery {
    /// `jsonl`, which anybody can verify, or `ocsf`; `jsonl` when it is left out.
    #[serde(default)]
    #[param(inline)]
    format: ExportFormat,
}

/// The public half of a key that signs the chain, or has signed it.
#[derive(Debug, Serialize, ToSchema)]
pub struct AuditPublicKey {
    /// Its id, which checkpoints name.
    id: String,
    /// The key, as PEM.
    public_key: String,
    /// When it was made.
    created_at: Timestamp,
}

impl From<AuditKey> for AuditPublicKey {
    fn from(key: AuditKey) -> Self {
        Self {
            id: key.id,
            public_key: key.public_key,
            created_at: key.created_at,
        }
    }
}

fn time(key: &str, text: Option<&str>) -> Result<Option<Timestamp>> {
    let parse = |text: &str| {
        text.parse()
            .map_err(|_| Error::request(format!("{key} `{text}` is no time: write it as 2026-01-31T09:00:00Z")))
    };
    text.map(parse).transpose()
}

impl AuditQuery {
    fn filter(self) -> Result<(AuditFilter, PageRequest<u64>)> {
        let page = PageRequest::new(self.limit, self.cursor.as_deref())?;
        let filter = AuditFilter {
            since: time("since", self.since.as_deref())?,
            until: time("until", self.until.as_deref())?,
            projects: self.project.map(|project| vec![project]),
            actor: self.actor,
            action: self.action,
            resource_kind: self.resource_kind,
            resource: self.resource,
            outcome: self.outcome,
            request_id: self.request_id,
        };
        Ok((filter, page))
    }
}

/// The events, the newest first.
#[utoipa::path(get, path = "/audit/events", tag = "audit", params(AuditQuery),
    responses((status = OK, body = Page<AuditEvent>), (status = "default", body = Problem)))]
pub async fn list_audit_events(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Query(query): Query<AuditQuery>,
) -> Result<Json<Page<AuditEvent>>, Problem> {
    let (filter, page) = query.filter()?;
    Ok(Json(registry.list_audit_events(&caller, filter, &page).await?))
}

/// The whole chain as lines, signed up to its end.
#[utoipa::path(get, path = "/audit/export", tag = "audit", params(ExportQuery),
    responses((status = OK, content_type = "application/jsonl", body = String), (status = "default", body = Problem)))]
pub async fn export_audit_chain(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
    Query(query): Query<ExportQuery>,
) -> Result<Response, Problem> {
    let lines = registry.export_audit_chain(&caller, query.format).await?;
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE)),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    // An error cuts the stream off, which clients notice: the length is not announced, and the end is marked.
    Ok((headers, Body::from_stream(lines)).into_response())
}

/// Verifies the whole chain.
#[utoipa::path(post, path = "/audit/verify", tag = "audit",
    responses((status = OK, body = Verification), (status = "default", body = Problem)))]
pub async fn verify_audit_chain(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
) -> Result<Json<Verification>, Problem> {
    Ok(Json(registry.verify_audit_chain(&caller).await?))
}

/// Signs the head of the chain.
#[utoipa::path(post, path = "/audit/checkpoints", tag = "audit",
    responses((status = CREATED, body = Checkpoint), (status = "default", body = Problem)))]
pub async fn sign_audit_chain(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
) -> Result<(StatusCode, Json<Checkpoint>), Problem> {
    Ok((StatusCode::CREATED, Json(registry.sign_audit_chain(&caller).await?)))
}

/// The public keys that sign or have signed the chain, the newest first.
#[utoipa::path(get, path = "/audit/keys", tag = "audit",
    responses((status = OK, body = Page<AuditPublicKey>), (status = "default", body = Problem)))]
pub async fn list_audit_keys(
    State(registry): State<Arc<Registry>>,
    caller: Caller,
) -> Result<Json<Page<AuditPublicKey>>, Problem> {
    let keys = registry.audit_public_keys(&caller).await?;
    Ok(Json(Page {
        items: keys.into_iter().map(AuditPublicKey::from).collect(),
        next_cursor: None,
    }))
}
