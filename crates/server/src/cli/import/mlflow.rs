//! A client of MLflow's protocol, for the server that things come from and for the one that they go to.

use std::time::Duration;

use anyhow::{Context, bail};
use reqwest::{Method, RequestBuilder, Response, StatusCode, header};
use serde_json::{Value, json};

use crate::cli::client::Http;

/// How often a request is tried before its error counts.
const ATTEMPTS: u32 = 7;
/// How long the first pause between two tries is; each is twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause, also where the server asks for a longer one.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How many things of a kind are asked for at once.
pub const PAGE: usize = 100;
/// How many points of a metric are asked for at once.
const POINTS_PAGE: usize = 25_000;
/// The most pages of one list, so that a server that never ends a list cannot hold us for ever.
const MAX_PAGES: usize = 1_000_000;
/// The most of an error's text that is shown, in characters.
const SHOWN_CHARS: usize = 300;
/// The filter that finds prompts, which are hidden otherwise.
const ONLY_PROMPTS: &str = "tags.`mlflow.prompt.is_prompt` = 'true'";

/// Who asks.
#[derive(Clone)]
pub enum Credential {
    /// Nobody in particular.
    None,
    /// Whoever has this token.
    Token(String),
    /// A name and a password.
    Password(String, String),
}

/// A connection to a server that speaks MLflow's protocol.
pub struct Mlflow {
    http: Http,
    url: reqwest::Url,
    credential: Credential,
    workspace: Option<String>,
}

/// A page of a list.
pub struct Page {
    /// What is on it.
    pub items: Vec<Value>,
    /// What the next one is asked for with.
    pub next: Option<String>,
}

/// Where artifacts are, and how a server gives them out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Below this path of its own store.
    Proxied(String),
    /// The artifacts of a run, wherever they are.
    Run(String),
    /// The files of a logged model, wherever they are.
    LoggedModel(String),
}

/// A file or folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its path below the place.
    pub path: String,
    /// Whether it is a folder.
    pub is_folder: bool,
    /// The size of a file in bytes, where that was said.
    pub size_bytes: Option<u64>,
}

impl Place {
    /// The place that a URI means; what is not in the server's own store is asked for by what it belongs to.
    pub fn read(uri: &str, otherwise: Self) -> Self {
        let Some(rest) = uri.strip_prefix("mlflow-artifacts:") else {
            return otherwise;
        };
        let path = match rest.strip_prefix("//") {
            Some(rest) => rest.split_once('/').map_or("", |(_, path)| path),
            None => rest,
        };
        Self::Proxied(path.trim_matches('/').to_owned())
    }
}

/// A path below a folder.
pub fn below(folder: &str, name: &str) -> String {
    if folder.is_empty() {
        return name.to_owned();
    }
    format!("{folder}/{name}")
}

/// A text of an answer; empty where there is none.
pub fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// A number of an answer, which may be written as a text.
pub fn number(value: &Value, key: &str) -> Option<i64> {
    let found = value.get(key)?;
    found.as_i64().or_else(|| found.as_str()?.parse().ok())
}

/// A list of an answer; empty where there is none.
pub fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// What a server said when it refused.
#[derive(Debug, thiserror::Error)]
#[error("{url} answered {status}: {words}")]
struct Refused {
    url: String,
    status: StatusCode,
    words: String,
}

/// What a server said when it refused something for good; None: it did not answer.
pub fn refusal(error: &anyhow::Error) -> Option<&str> {
    let refused = error
        .downcast_ref::<Refused>()
        .filter(|refused| !is_passing(refused.status));
    // That nobody was let in is about everything, not about one thing.
    let refused = refused.filter(|refused| !matches!(refused.status.as_u16(), 401 | 403 | 404));
    refused.map(|refused| refused.words.as_str())
}

/// Whether something was not there.
fn is_missing(error: &anyhow::Error) -> bool {
    let refused = error.downcast_ref::<Refused>();
    refused.is_some_and(|refused| refused.status == StatusCode::NOT_FOUND)
}

fn is_passing(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
}

/// How long the server asks to be left alone.
fn asked_pause(response: &Response) -> Option<Duration> {
    let value = response.headers().get(header::RETRY_AFTER)?.to_str().ok()?;
    value.parse().ok().map(Duration::from_secs)
}

/// The pause after a try, counted from 0.
fn pause(attempt: u32, asked: Option<Duration>) -> Duration {
    let own = FIRST_PAUSE.saturating_mul(1 << attempt.min(10));
    asked.unwrap_or_default().max(own).min(LONGEST_PAUSE)
}

/// How a try ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// With an answer.
    Answered(StatusCode),
    /// Before anything was sent.
    Unsent,
    /// Without an answer.
    Unanswered,
}

impl End {
    fn of(answered: &Result<Response, reqwest::Error>) -> Self {
        match answered {
            Ok(response) => Self::Answered(response.status()),
            Err(error) if error.is_connect() => Self::Unsent,
            Err(_) => Self::Unanswered,
        }
    }

    /// Whether what was asked for was certainly not done.
    fn is_undone(self) -> bool {
        match self {
            Self::Answered(status) => matches!(status.as_u16(), 429 | 503),
            Self::Unsent => true,
            Self::Unanswered => false,
        }
    }
}

impl Mlflow {
    /// A connection to the server at a URL.
    pub fn new(http: Http, url: reqwest::Url, credential: Credential, workspace: Option<String>) -> Self {
        Self {
            http,
            url,
            credential,
            workspace,
        }
    }

    /// A request to a path, whose segments are encoded.
    pub fn request(&self, method: Method, segments: &[&str]) -> anyhow::Result<RequestBuilder> {
        self.request_by(&self.http.prompt, method, segments)
    }

    /// The same for what takes as long as it takes.
    pub fn patient_request(&self, method: Method, segments: &[&str]) -> anyhow::Result<RequestBuilder> {
        self.request_by(&self.http.patient, method, segments)
    }

    fn request_by(&self, http: &reqwest::Client, method: Method, segments: &[&str]) -> anyhow::Result<RequestBuilder> {
        let mut url = self.url.clone();
        let mut path = url
            .path_segments_mut()
            .map_err(|()| anyhow::anyhow!("`{}` cannot be used as a URL", self.url))?;
        path.pop_if_empty();
        for segment in segments {
            if matches!(*segment, "" | "." | "..") {
                bail!("`{}` is not a path that can be asked for", segments.join("/"));
            }
            path.push(segment);
        }
        drop(path);
        let mut request = http.request(method, url);
        request = match &self.credential {
            Credential::None => request,
            Credential::Token(token) => request.bearer_auth(token),
            Credential::Password(name, password) => request.basic_auth(name, Some(password)),
        };
        if let Some(workspace) = &self.workspace {
            request = request.header("x-mlflow-workspace", workspace);
        }
        Ok(request)
    }

    /// Sends what is made anew for each try, until it is answered or its error does not pass.
    pub async fn send(&self, make: impl Fn() -> anyhow::Result<RequestBuilder>) -> anyhow::Result<Response> {
        self.send_if(make, |_| true).await
    }

    /// The same, trying again only after ends of which that may be done.
    async fn send_if(
        &self,
        make: impl Fn() -> anyhow::Result<RequestBuilder>,
        is_repeatable: impl Fn(&End) -> bool,
    ) -> anyhow::Result<Response> {
        let mut attempt = 0;
        loop {
            let answered = make()?.send().await;
            let end = End::of(&answered);
            let (error, asked) = match answered {
                Ok(response) if response.status().is_success() => return Ok(response),
                Ok(response) => {
                    let (status, asked) = (response.status(), asked_pause(&response));
                    let body = response.text().await.unwrap_or_default();
                    let error = anyhow::Error::new(Refused {
                        url: self.url.to_string(),
                        status,
                        words: words_of(&body),
                    });
                    if !is_passing(status) {
                        return Err(error);
                    }
                    (error, asked)
                }
                Err(error) => (
                    anyhow::Error::new(error).context(format!("{} does not answer", self.url)),
                    None,
                ),
            };
            if !is_repeatable(&end) {
                return Err(error.context("it is not known whether it was done: look before you run the command again"));
            }
            if attempt + 1 >= ATTEMPTS {
                return Err(error.context(format!(
                    "given up after {ATTEMPTS} tries; run the command again to go on"
                )));
            }
            tokio::time::sleep(pause(attempt, asked)).await;
            attempt += 1;
        }
    }

    async fn json(&self, make: impl Fn() -> anyhow::Result<RequestBuilder>) -> anyhow::Result<Value> {
        self.read(self.send(make).await?).await
    }

    async fn read(&self, response: Response) -> anyhow::Result<Value> {
        let text = response.text().await.context("an answer broke off")?;
        if text.is_empty() {
            return Ok(json!({}));
        }
        serde_json::from_str(&text).with_context(|| format!("{} does not speak MLflow's protocol", self.url))
    }

    /// Gets something.
    pub async fn get(&self, path: &str, query: &[(&str, &str)]) -> anyhow::Result<Value> {
        let segments: Vec<&str> = path.split('/').collect();
        self.json(|| Ok(self.request(Method::GET, &segments)?.query(query)))
            .await
    }

    /// Sends something.
    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let segments: Vec<&str> = path.split('/').collect();
        self.json(|| Ok(self.request(Method::POST, &segments)?.json(body)))
            .await
    }

    /// Sends what the server reads through before it answers.
    pub async fn post_patiently(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let segments: Vec<&str> = path.split('/').collect();
        self.json(|| Ok(self.patient_request(Method::POST, &segments)?.json(body)))
            .await
    }

    /// Makes something that would be made twice if it were sent twice.
    pub async fn create(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let segments: Vec<&str> = path.split('/').collect();
        let make = || Ok(self.patient_request(Method::POST, &segments)?.json(body));
        self.read(self.send_if(make, |end| end.is_undone()).await?).await
    }

    /// Changes something.
    pub async fn patch(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let segments: Vec<&str> = path.split('/').collect();
        self.json(|| Ok(self.request(Method::PATCH, &segments)?.json(body)))
            .await
    }

    /// Puts something.
    pub async fn put(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let segments: Vec<&str> = path.split('/').collect();
        self.json(|| Ok(self.request(Method::PUT, &segments)?.json(body))).await
    }

    /// A page of the experiments, deleted ones among them.
    pub async fn experiments(&self, token: Option<&str>) -> anyhow::Result<Page> {
        let mut body = json!({"max_results": PAGE, "view_type": "ALL", "order_by": ["experiment_id ASC"]});
        add_token(&mut body, token);
        let answer = self.post("api/2.0/mlflow/experiments/search", &body).await?;
        Ok(Page::read(answer, "experiments"))
    }

    /// A page of the runs of an experiment, deleted ones among them, the oldest first.
    pub async fn runs(&self, experiment: &str, token: Option<&str>) -> anyhow::Result<Page> {
        let mut body = json!({
            "experiment_ids": [experiment],
            "max_results": PAGE,
            "run_view_type": "ALL",
            "order_by": ["attributes.start_time ASC"],
        });
        add_token(&mut body, token);
        let answer = self.post("api/2.0/mlflow/runs/search", &body).await?;
        Ok(Page::read(answer, "runs"))
    }

    /// A page of the points of a metric.
    pub async fn points(&self, run_id: &str, key: &str, token: Option<&str>) -> anyhow::Result<Page> {
        let limit = POINTS_PAGE.to_string();
        let mut query = vec![("run_id", run_id), ("metric_key", key), ("max_results", limit.as_str())];
        query.extend(token.map(|token| ("page_token", token)));
        let answer = self.get("api/2.0/mlflow/metrics/get-history", &query).await?;
        Ok(Page::read(answer, "metrics"))
    }

    /// A page of the logged models of an experiment. A server before version 3 has none.
    pub async fn logged_models(&self, experiment: &str, token: Option<&str>) -> anyhow::Result<Page> {
        let mut body = json!({"experiment_ids": [experiment], "max_results": PAGE});
        add_token(&mut body, token);
        let answered = self.post("api/2.0/mlflow/logged-models/search", &body).await;
        match answered {
            Ok(answer) => Ok(Page::read(answer, "models")),
            Err(error) if is_missing(&error) => Ok(Page::empty()),
            Err(error) => Err(error),
        }
    }

    /// A page of the registered models, or of the prompts.
    pub async fn models(&self, prompts: bool, token: Option<&str>) -> anyhow::Result<Page> {
        let limit = PAGE.to_string();
        let mut query = vec![("max_results", limit.as_str())];
        if prompts {
            query.push(("filter", ONLY_PROMPTS));
        }
        query.extend(token.map(|token| ("page_token", token)));
        let answer = self.get("api/2.0/mlflow/registered-models/search", &query).await?;
        Ok(Page::read(answer, "registered_models"))
    }

    /// A page of the versions of a model.
    pub async fn versions(&self, model: &str, is_prompt: bool, token: Option<&str>) -> anyhow::Result<Page> {
        let limit = PAGE.to_string();
        let mut filter = format!("name = '{}'", model.replace('\'', "''"));
        if is_prompt {
            filter = format!("{filter} AND {ONLY_PROMPTS}");
        }
        let mut query = vec![("max_results", limit.as_str()), ("filter", filter.as_str())];
        query.extend(token.map(|token| ("page_token", token)));
        let answer = self.get("api/2.0/mlflow/model-versions/search", &query).await?;
        Ok(Page::read(answer, "model_versions"))
    }

    /// Points an alias at a version.
    pub async fn set_alias(&self, model: &str, alias: &str, version: &str) -> anyhow::Result<()> {
        let body = json!({"name": model, "alias": alias, "version": version});
        self.post("api/2.0/mlflow/registered-models/alias", &body).await?;
        Ok(())
    }

    /// A registered model, or None.
    pub async fn find_model(&self, name: &str) -> anyhow::Result<Option<Value>> {
        match self
            .get("api/2.0/mlflow/registered-models/get", &[("name", name)])
            .await
        {
            Ok(mut answer) => Ok(answer.get_mut("registered_model").map(Value::take)),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What is in a folder of a place, one level deep.
    pub async fn files(&self, place: &Place, folder: &str) -> anyhow::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        let mut token: Option<String> = None;
        for _ in 0..MAX_PAGES {
            let answer = self.files_page(place, folder, token.as_deref()).await?;
            for file in list(&answer, "files") {
                let name = text(file, "path");
                // The server's own store names what is in a folder, the others what is in the place.
                let path = match place {
                    Place::Proxied(_) => below(folder, name),
                    Place::Run(_) | Place::LoggedModel(_) => name.to_owned(),
                };
                entries.push(Entry {
                    path,
                    is_folder: file.get("is_dir").and_then(Value::as_bool) == Some(true),
                    size_bytes: number(file, "file_size").and_then(|size| size.try_into().ok()),
                });
            }
            token = next_token(&answer);
            if token.is_none() {
                return Ok(entries);
            }
        }
        bail!("folder `{folder}` has no end")
    }

    async fn files_page(&self, place: &Place, folder: &str, token: Option<&str>) -> anyhow::Result<Value> {
        let mut query: Vec<(&str, &str)> = token.map(|token| ("page_token", token)).into_iter().collect();
        match place {
            Place::Proxied(root) => {
                let path = below(root, folder);
                query.push(("path", path.trim_end_matches('/')));
                self.get("api/2.0/mlflow-artifacts/artifacts", &query).await
            }
            Place::Run(run_id) => {
                query.push(("run_id", run_id));
                if !folder.is_empty() {
                    query.push(("path", folder));
                }
                self.get("api/2.0/mlflow/artifacts/list", &query).await
            }
            Place::LoggedModel(model_id) => {
                if !folder.is_empty() {
                    query.push(("artifact_directory_path", folder));
                }
                let path = format!("api/2.0/mlflow/logged-models/{model_id}/artifacts/directories");
                self.get(&path, &query).await
            }
        }
    }

    /// Begins to read a file.
    pub async fn open(&self, place: &Place, path: &str) -> anyhow::Result<Response> {
        match place {
            Place::Proxied(root) => {
                let path = format!("api/2.0/mlflow-artifacts/artifacts/{}", below(root, path));
                let segments: Vec<&str> = path.split('/').collect();
                self.send(|| self.request(Method::GET, &segments)).await
            }
            Place::Run(run_id) => {
                let query = [("run_uuid", run_id.as_str()), ("path", path)];
                self.send(|| Ok(self.request(Method::GET, &["get-artifact"])?.query(&query)))
                    .await
            }
            Place::LoggedModel(model_id) => {
                let address = format!("ajax-api/2.0/mlflow/logged-models/{model_id}/artifacts/files");
                let segments: Vec<&str> = address.split('/').collect();
                let query = [("artifact_file_path", path)];
                self.send(|| Ok(self.request(Method::GET, &segments)?.query(&query)))
                    .await
            }
        }
    }
}

fn add_token(body: &mut Value, token: Option<&str>) {
    if let (Some(token), Some(fields)) = (token, body.as_object_mut()) {
        fields.insert("page_token".to_owned(), token.into());
    }
}

fn next_token(answer: &Value) -> Option<String> {
    let token = text(answer, "next_page_token");
    (!token.is_empty()).then(|| token.to_owned())
}

impl Page {
    fn read(mut answer: Value, key: &str) -> Self {
        let items = match answer.get_mut(key).map(Value::take) {
            Some(Value::Array(items)) => items,
            _ => Vec::new(),
        };
        Self {
            items,
            next: next_token(&answer),
        }
    }

    const fn empty() -> Self {
        Self {
            items: Vec::new(),
            next: None,
        }
    }
}

/// What an error says.
fn words_of(body: &str) -> String {
    let parsed = serde_json::from_str::<Value>(body).ok();
    let message = parsed.as_ref().and_then(|value| {
        let message = value.get("message").or_else(|| value.get("detail"))?;
        message.as_str()
    });
    message.unwrap_or(body).chars().take(SHOWN_CHARS).collect()
}

#[cfg(test)]
mod tests;
