//! The browsable description of the API: one page that reads `openapi.json`, without anything from elsewhere.

use axum::response::Html;

/// The page at `/api/docs`.
pub async fn page() -> Html<&'static str> {
    Html(include_str!("api_docs.html"))
}
