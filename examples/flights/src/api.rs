//! The HTTP API of a project, called again while the server is away, and waiting for what takes time.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use reqwest::{Method, StatusCode};
use serde_json::Value;

use crate::progress::Progress;

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long one call may take, uploads of a month included.
const CALL_TIMEOUT: Duration = Duration::from_mins(1);

/// The pause before a call is made again.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// How often something that takes time is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// The longest part of an answer that an error shows.
const SHOWN_CHARACTERS: usize = 500;

/// The API of the project `default` on one server.
#[derive(Debug, Clone)]
pub struct Api {
    http: reqwest::Client,
    url: String,
    away: Duration,
}

/// What a look at something that takes time found.
pub enum Look<T> {
    /// It is there.
    Found(T),
    /// Not yet; what the server said instead.
    NotYet(String),
}

/// A refusal: the server understood and said no.
#[derive(Debug)]
pub struct Refused {
    /// The HTTP status.
    pub status: StatusCode,
    /// The server's words.
    pub detail: String,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.detail, self.status)
    }
}

impl std::error::Error for Refused {}

impl Api {
    /// The API of the server at `url`. A call is made again for `away` while the server does not answer.
    pub fn new(url: &str, away: Duration) -> Result<Self> {
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(CALL_TIMEOUT)
            .build()
            .context("the HTTP client cannot be made")?;
        Ok(Self {
            http,
            url: url.trim_end_matches('/').to_owned(),
            away,
        })
    }

    /// Gets something of the project: `path` stands below it, encoded.
    pub async fn get(&self, path: &str) -> Result<Value> {
        self.call(Method::GET, &project_path(path), None).await
    }

    /// Gets something of the project, or nothing when it does not exist.
    pub async fn find(&self, path: &str) -> Result<Option<Value>> {
        match self.get(path).await {
            Ok(found) => Ok(Some(found)),
            Err(error) => match error.downcast_ref::<Refused>() {
                Some(refused) if refused.status == StatusCode::NOT_FOUND => Ok(None),
                _ => Err(error),
            },
        }
    }

    /// Posts JSON to the project.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let body = Bytes::from(serde_json::to_vec(body)?);
        self.call(Method::POST, &project_path(path), Some(body)).await
    }

    /// Declares a resource of the project by its spec.
    pub async fn put(&self, path: &str, spec: &Value) -> Result<Value> {
        let body = Bytes::from(serde_json::to_vec(spec)?);
        self.call(Method::PUT, &project_path(path), Some(body)).await
    }

    /// Uploads an artifact and gives its digest.
    pub async fn upload(&self, content: Vec<u8>) -> Result<String> {
        let path = project_path("artifacts");
        let answer = self.call(Method::PUT, &path, Some(Bytes::from(content))).await?;
        let digest = answer.get("digest").and_then(Value::as_str);
        digest.map(str::to_owned).context("the server gave no digest")
    }

    /// Gets anything of the server, `/v2/models/NAME` for example.
    pub async fn get_path(&self, path: &str) -> Result<Value> {
        self.call(Method::GET, path, None).await
    }

    /// Whether the server says that it is ready, and what it says.
    pub async fn look_ready(&self) -> Look<()> {
        match self.http.get(format!("{}/readyz", self.url)).send().await {
            Ok(response) if response.status().is_success() => Look::Found(()),
            Ok(response) => Look::NotYet(response.text().await.unwrap_or_default().trim().to_owned()),
            Err(error) => Look::NotYet(chain(&error)),
        }
    }

    async fn call(&self, method: Method, path: &str, body: Option<Bytes>) -> Result<Value> {
        let deadline = Instant::now() + self.away;
        loop {
            let error = match self.call_once(&method, path, body.clone()).await {
                Ok(Called::Answer(value)) => return Ok(value),
                Ok(Called::Refused(refused)) => {
                    return Err(anyhow::Error::new(refused).context(format!("{method} {path} was refused")));
                }
                Ok(Called::Away(error)) => error,
                Err(error) => return Err(error.context(format!("{method} {path} failed"))),
            };
            if Instant::now() > deadline {
                let waited = self.away;
                return Err(error.context(format!("{method} {path}: no answer for {waited:?}")));
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    async fn call_once(&self, method: &Method, path: &str, body: Option<Bytes>) -> Result<Called> {
        let mut request = self.http.request(method.clone(), format!("{}{path}", self.url));
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body);
        }
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) if error.is_builder() => bail!(error),
            Err(error) => return Ok(Called::Away(anyhow!(chain(&error)))),
        };
        let status = response.status();
        let text = match response.text().await {
            Ok(text) => text,
            Err(error) => return Ok(Called::Away(anyhow!(chain(&error)))),
        };
        if status.is_success() {
            if text.is_empty() {
                return Ok(Called::Answer(Value::Null));
            }
            let value = serde_json::from_str(&text).context("the answer is not JSON: is this a Modelyard server?")?;
            return Ok(Called::Answer(value));
        }
        let detail = detail(&text);
        if is_away(status) {
            return Ok(Called::Away(anyhow!("{detail} ({status})")));
        }
        Ok(Called::Refused(Refused { status, detail }))
    }
}

enum Called {
    Answer(Value),
    Refused(Refused),
    Away(anyhow::Error),
}

/// Statuses that say that the server, or one behind it, cannot answer at present.
pub fn is_away(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::BAD_GATEWAY
            | StatusCode::GATEWAY_TIMEOUT
            | StatusCode::TOO_MANY_REQUESTS
    )
}

fn project_path(path: &str) -> String {
    format!("/api/v1/projects/default/{path}")
}

/// The words of a refusal: a problem's detail, an inference error, or the text itself.
fn detail(text: &str) -> String {
    let value = serde_json::from_str::<Value>(text).unwrap_or_default();
    let words = ["detail", "error"].iter().find_map(|key| value.get(key)?.as_str());
    words.unwrap_or(text).chars().take(SHOWN_CHARACTERS).collect()
}

/// An error with its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Looks until it is found; after `patience` an error says what was waited for and what the server said last.
pub async fn wait_for<T>(
    what: &str,
    patience: Duration,
    progress: &dyn Progress,
    mut look: impl AsyncFnMut() -> Result<Look<T>>,
) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        let said = match look().await.with_context(|| format!("while waiting until {what}"))? {
            Look::Found(found) => return Ok(found),
            Look::NotYet(said) => said,
        };
        progress.waiting(&said);
        if Instant::now() > deadline {
            bail!("waited {patience:?} in vain until {what}; last: {said}");
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}
