//! The HTTP client of the commands.

use std::{path::Path, time::Duration};

use anyhow::{Context, bail};
use modelyard_common::error::Problem;
use reqwest::{Body, Method, RequestBuilder, Response, StatusCode};
use serde_json::Value;

use super::UsageError;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an answer may take to continue; long uploads and downloads keep moving.
const READ_TIMEOUT: Duration = Duration::from_mins(2);

/// What follows an error that passes by itself; scripts may look for it.
const TRY_AGAIN: &str = "not available at present: try again in a moment";

/// The page size of complete lists.
const PAGE: u32 = 1000;

/// A connection to a server, for one project.
pub struct Client {
    http: reqwest::Client,
    url: String,
    token: Option<String>,
    project: String,
}

impl Client {
    /// A client of the server at `url`.
    pub fn new(url: &str, token: Option<&str>, project: &str) -> anyhow::Result<Self> {
        let url = url.trim_end_matches('/').to_owned();
        if reqwest::Url::parse(&url).is_err() {
            return Err(UsageError(format!("`{url}` is not a URL: write it as http://HOST:PORT")).into());
        }
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .build()
            .context("the HTTP client cannot be made")?;
        Ok(Self {
            http,
            url,
            token: token.map(str::to_owned),
            project: project.to_owned(),
        })
    }

    /// A request to a path of the server, `/v2/models` for example.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.url));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// A request to the project's part of the API; `segments` are encoded.
    pub fn project_request(&self, method: Method, segments: &[&str]) -> anyhow::Result<RequestBuilder> {
        let mut url = reqwest::Url::parse(&self.url)?;
        url.path_segments_mut()
            .map_err(|()| UsageError(format!("`{}` cannot be used as a URL", self.url)))?
            .pop_if_empty()
            .extend(["api", "v1", "projects", &self.project])
            .extend(segments);
        Ok(self.request(method, url.path()))
    }

    /// Sends a request and gives the JSON answer; problems become errors.
    pub async fn send(&self, request: RequestBuilder) -> anyhow::Result<Value> {
        let response = self.send_raw(request).await?;
        let text = response.text().await.context("the answer broke off")?;
        if text.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).context("the answer is not JSON: is this a Modelyard server?")
    }

    /// Sends a request; an error status becomes an error with the server's own words.
    pub async fn send_raw(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        let response = request.send().await.map_err(|error| {
            let is_connect = error.is_connect();
            let error = anyhow::Error::new(error);
            if is_connect {
                error.context(format!(
                    "no server answers at {}: start one with `modelyard serve`, or set MODELYARD_URL",
                    self.url
                ))
            } else {
                error.context(format!("the request to {} failed", self.url))
            }
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        bail!(refusal(response).await)
    }

    /// Gets one thing of the project.
    pub async fn get(&self, segments: &[&str]) -> anyhow::Result<Value> {
        self.send(self.project_request(Method::GET, segments)?).await
    }

    /// Gets one thing of the project, or nothing when it does not exist.
    pub async fn find(&self, segments: &[&str]) -> anyhow::Result<Option<Value>> {
        let response = self.project_request(Method::GET, segments)?.send().await;
        match response {
            Ok(response) if response.status() == StatusCode::NOT_FOUND => Ok(None),
            _ => self.get(segments).await.map(Some),
        }
    }

    /// Gets all pages of a list of the project.
    pub async fn list(&self, segments: &[&str]) -> anyhow::Result<Vec<Value>> {
        let mut items = Vec::new();
        let mut cursor: Option<String> = None;
        loop {
            let mut request = self.project_request(Method::GET, segments)?.query(&[("limit", PAGE)]);
            if let Some(cursor) = &cursor {
                request = request.query(&[("cursor", cursor)]);
            }
            let mut page = self.send(request).await?;
            let Some(Value::Array(page_items)) = page.get_mut("items").map(Value::take) else {
                bail!("the answer is not a list: is the server of another version?");
            };
            items.extend(page_items);
            match page.get("next_cursor").and_then(Value::as_str) {
                Some(next) => cursor = Some(next.to_owned()),
                None => return Ok(items),
            }
        }
    }

    /// Uploads a file as an artifact and gives its digest.
    pub async fn upload(&self, path: &Path) -> anyhow::Result<String> {
        let file = tokio::fs::File::open(path)
            .await
            .with_context(|| format!("`{}` cannot be read", path.display()))?;
        let size = file.metadata().await?.len();
        let body = Body::wrap_stream(tokio_util::io::ReaderStream::new(file));
        let request = self.project_request(Method::PUT, &["artifacts"])?;
        let answer = self.send(request.header("content-length", size).body(body)).await;
        let answer = answer.with_context(|| format!("`{}` cannot be uploaded", path.display()))?;
        let digest = answer.get("digest").and_then(Value::as_str);
        digest.map(str::to_owned).context("the server gave no digest")
    }
}

/// What the server said when it refused, and whether it may say otherwise soon.
async fn refusal(response: Response) -> String {
    let status = response.status();
    let said = words_of(response).await;
    match status {
        StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::BAD_GATEWAY
        | StatusCode::GATEWAY_TIMEOUT
        | StatusCode::TOO_MANY_REQUESTS => format!("{said} ({TRY_AGAIN})"),
        _ => said,
    }
}

async fn words_of(response: Response) -> String {
    let status = response.status();
    let text = response.text().await.unwrap_or_default();
    if let Ok(problem) = serde_json::from_str::<Problem>(&text) {
        return problem.detail;
    }
    let inference = serde_json::from_str::<Value>(&text).ok();
    if let Some(message) = inference
        .as_ref()
        .and_then(|value| value.get("error"))
        .and_then(Value::as_str)
    {
        return message.to_owned();
    }
    let excerpt: String = text.chars().take(200).collect();
    format!("the server answered {status} {excerpt}")
}
