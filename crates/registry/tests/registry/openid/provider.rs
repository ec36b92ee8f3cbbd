//! An OpenID provider on this machine.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use axum::{
    Json, Router,
    extract::State,
    routing::{get, post},
};
use http::StatusCode;
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet};

use super::forge::Key;

/// What the provider knows.
pub struct Known {
    pub issuer: String,
    pub key: Key,
    /// Codes and the nonces that belong to them.
    pub nonces: parking_lot::Mutex<HashMap<String, String>>,
    pub claims: parking_lot::Mutex<Value>,
}

/// A provider on this machine.
pub struct FakeProvider {
    pub known: Arc<Known>,
    pub address: SocketAddr,
    /// Ends with this.
    pub tasks: JoinSet<()>,
}

impl FakeProvider {
    pub async fn start() -> Self {
        // Whoever was first in this process has installed the same.
        rustls::crypto::ring::default_provider().install_default().ok();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let known = Arc::new(Known {
            issuer: format!("http://{address}"),
            key: Key::ec("k1"),
            nonces: parking_lot::Mutex::default(),
            claims: parking_lot::Mutex::new(json!({})),
        });
        let router = Router::new()
            .route("/.well-known/openid-configuration", get(metadata))
            .route(
                "/keys",
                get(async |State(known): State<Arc<Known>>| Json(json!({"keys": [known.key.jwk()]}))),
            )
            .route("/token", post(token))
            .with_state(Arc::clone(&known));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { known, address, tasks }
    }

    /// What the claims of the next users are.
    pub fn say(&self, claims: Value) {
        *self.known.claims.lock() = claims;
    }
}

async fn metadata(State(known): State<Arc<Known>>) -> Json<Value> {
    let at = |path: &str| format!("{}{path}", known.issuer);
    Json(json!({
        "issuer": known.issuer, "authorization_endpoint": at("/authorize"), "token_endpoint": at("/token"),
        "jwks_uri": at("/keys"),
    }))
}

async fn token(State(known): State<Arc<Known>>, body: String) -> (StatusCode, Json<Value>) {
    let form: HashMap<String, String> = url::form_urlencoded::parse(body.as_bytes()).into_owned().collect();
    let Some(nonce) = known.nonces.lock().remove(&form["code"]) else {
        return (StatusCode::BAD_REQUEST, Json(json!({"error": "invalid_grant"})));
    };
    let mut claims = known.claims.lock().clone();
    claims["iss"] = json!(known.issuer);
    claims["aud"] = json!("modelyard");
    claims["nonce"] = json!(nonce);
    let token = known.key.token(&claims);
    (
        StatusCode::OK,
        Json(json!({"access_token": "at", "token_type": "Bearer", "id_token": token})),
    )
}
