//! An installation that asks everybody to sign in, and who signs in there.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use modelyard_testkit::wait;
use reqwest::{Client, Method, RequestBuilder, Response, header, redirect::Policy};
use serde_json::{Value, json};

use crate::deployment::{Deployment, Engine, Topology};

/// How long anything here may take.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// The password of the user `admin`.
pub const ADMIN_PASSWORD: &str = "correct horse battery staple";
/// The name of the one process that has all roles.
pub const ALL_ROLES: &str = "registry-orchestrator-monitoring-gateway";
/// An empty message, framed for gRPC.
const FRAME_HEADER: [u8; 5] = [0; 5];

/// Running servers, and the admin's way to them.
pub struct Installation {
    pub deployment: Deployment,
    /// Speaks HTTP/1.1, follows nothing and keeps nothing.
    pub http: Client,
    /// Speaks HTTP/2 at once, as gRPC does.
    pub http2: Client,
    pub url: String,
    /// A token of the admin's, with all rights.
    pub admin: String,
}

/// A token that was made.
pub struct MadeToken {
    pub id: String,
    pub text: String,
}

/// A text of an answer.
pub fn text<'a>(value: &'a Value, pointer: &str) -> Result<&'a str> {
    let found = value.pointer(pointer).and_then(Value::as_str);
    found.with_context(|| format!("the answer has no {pointer}: {value}"))
}

/// A client that follows nothing.
pub fn client() -> Result<Client> {
    crate::deployment::use_tls();
    Ok(Client::builder().timeout(PATIENCE).redirect(Policy::none()).build()?)
}

impl Installation {
    /// Starts the servers, with lines for the table `auth`, and tables of the test's own.
    pub async fn start(topology: Topology, auth: &str, tables: &str) -> Result<Self> {
        Self::start_on(topology, Engine::Sqlite, auth, tables).await
    }

    /// The same, on this database.
    pub async fn start_on(topology: Topology, engine: Engine, auth: &str, tables: &str) -> Result<Self> {
        let settings =
            format!("registry.admin_password = '{ADMIN_PASSWORD}'\n[auth]\nsign_in = true\n{auth}\n{tables}");
        let deployment = Deployment::start_with(topology, engine, &settings).await?;
        let mut installation = Self {
            url: deployment.url().to_owned(),
            deployment,
            http: client()?,
            http2: Client::builder().timeout(PATIENCE).http2_prior_knowledge().build()?,
            admin: String::new(),
        };
        let order = installation
            .http
            .post(format!("{}/api/v1/tokens", installation.url))
            .basic_auth("admin", Some(ADMIN_PASSWORD))
            .json(&json!({"name": "test"}));
        text(&accepted(order).await?, "/token")?.clone_into(&mut installation.admin);
        // In other processes the token counts a moment later.
        installation
            .wait_status(&installation.url, &installation.admin, 200)
            .await;
        Ok(installation)
    }

    /// The URL of each process' public listener.
    pub fn public_urls(&self) -> Result<Vec<String>> {
        let mut urls = Vec::new();
        for entry in fs::read_dir(self.deployment.folder())? {
            let file = entry?.path().join("addresses.json");
            if let Ok(bytes) = fs::read(file) {
                urls.push(text(&serde_json::from_slice(&bytes)?, "/public")?.to_owned());
            }
        }
        Ok(urls)
    }

    /// A request to the public listener.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url))
    }

    /// A request of the admin's.
    pub fn as_admin(&self, method: Method, path: &str) -> RequestBuilder {
        self.request(method, path).bearer_auth(&self.admin)
    }

    /// Declares something as the admin.
    pub async fn put(&self, path: &str, spec: &Value) -> Result<Value> {
        accepted(self.as_admin(Method::PUT, path).json(spec)).await
    }

    /// What the admin reads.
    pub async fn get(&self, path: &str) -> Result<Value> {
        accepted(self.as_admin(Method::GET, path)).await
    }

    /// Makes a project.
    pub async fn make_project(&self, name: &str) -> Result<()> {
        self.put(&format!("/api/v1/projects/{name}"), &json!({"description": ""}))
            .await?;
        Ok(())
    }

    /// Makes a service account in some groups.
    pub async fn make_service_account(&self, name: &str, groups: &[&str]) -> Result<()> {
        self.put(&format!("/api/v1/service-accounts/{name}"), &json!({"groups": groups}))
            .await?;
        Ok(())
    }

    /// Makes a user with a password.
    pub async fn make_user(&self, name: &str, password: &str) -> Result<()> {
        self.put(&format!("/api/v1/users/{name}"), &json!({"display_name": name}))
            .await?;
        let set = self.as_admin(Method::PUT, &format!("/api/v1/users/{name}/password"));
        let answer = set.json(&json!({"password": password})).send().await?;
        ensure!(answer.status().is_success(), "{}", answer.text().await?);
        Ok(())
    }

    /// Gives somebody a role at a place.
    pub async fn bind(&self, name: &str, subject: &str, role: &str, place: &str) -> Result<()> {
        self.put(
            &format!("/api/v1/role-bindings/{name}"),
            &json!({"subject": subject, "role": role, "place": place}),
        )
        .await?;
        Ok(())
    }

    /// Makes a token of a service account.
    pub async fn make_token(&self, account: &str, scope: Option<&[String]>) -> Result<MadeToken> {
        let owner = format!("service-account:{account}");
        let order = json!({"name": "test", "owner": owner, "scope": scope});
        let made = accepted(self.as_admin(Method::POST, "/api/v1/tokens").json(&order)).await?;
        Ok(MadeToken {
            id: text(&made, "/id")?.to_owned(),
            text: text(&made, "/token")?.to_owned(),
        })
    }

    /// Waits until each role answers a token with a status, asked through a process.
    pub async fn wait_status(&self, front: &str, token: &str, status: u16) {
        wait::until(&format!("every role answers {status}"), PATIENCE, || async {
            let statuses = self.statuses(front, token).await.ok()?;
            statuses.iter().all(|here| *here == status).then_some(())
        })
        .await;
    }

    /// Waits until every role, asked through a process, knows whose a token is, whatever it may do with it.
    pub async fn wait_known(&self, front: &str, token: &str) {
        wait::until("every role knows the token", PATIENCE, || async {
            let statuses = self.statuses(front, token).await.ok()?;
            (!statuses.contains(&401)).then_some(())
        })
        .await;
    }

    /// How each role answers a token, asked through a process: whoever has the role decides by what it knows itself.
    pub async fn statuses(&self, front: &str, token: &str) -> Result<Vec<u16>> {
        let mut statuses = Vec::new();
        for path in [
            "/api/v1/projects",
            "/api/v1/projects/default/pipelines",
            "/api/v1/projects/default/monitors",
            "/v2/models",
        ] {
            let request = self.http.get(format!("{front}{path}")).bearer_auth(token);
            statuses.push(request.send().await?.status().as_u16());
        }
        Ok(statuses)
    }
}

/// The JSON of an answer that says yes.
pub async fn accepted(request: RequestBuilder) -> Result<Value> {
    let answer = request.send().await?;
    let (status, url) = (answer.status(), answer.url().path().to_owned());
    let body = answer.text().await?;
    ensure!(status.is_success(), "{url} answers {status}: {body}");
    serde_json::from_str(&body).with_context(|| format!("{url} answers no JSON: {body}"))
}

/// A unary call over gRPC, by hand.
pub fn call(http2: &Client, listener: &str, method: &str, message: &[u8]) -> RequestBuilder {
    open_call(http2, listener, method).body(framed(message))
}

/// The same without its messages.
pub fn open_call(http2: &Client, listener: &str, method: &str) -> RequestBuilder {
    http2
        .post(format!("{listener}/{method}"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
}

/// A message as gRPC sends it.
pub fn framed(message: &[u8]) -> Vec<u8> {
    let mut frame = FRAME_HEADER.to_vec();
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    if let Some(place) = frame.get_mut(1..) {
        place.copy_from_slice(&length.to_be_bytes());
    }
    frame.extend_from_slice(message);
    frame
}

/// The status and message of an answer that is a refusal; a call that succeeds says so only at its end.
pub fn grpc_refusal(answer: &Response) -> Option<(u8, String)> {
    let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
    let status = header("grpc-status")?.parse().ok().filter(|status| *status != 0)?;
    Some((status, decode(header("grpc-message").unwrap_or_default())))
}

/// Undoes the percent-encoding of a message.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, others)) = rest.split_first() {
        let digits = others.get(..2).filter(|_| *first == b'%');
        let digits = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(byte) = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            bytes.push(byte);
            rest = others.get(2..).unwrap_or_default();
        } else {
            bytes.push(*first);
            rest = others;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
