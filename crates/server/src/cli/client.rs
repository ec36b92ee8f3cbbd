//! The HTTP client of the commands.

use std::{error::Error as StdError, fs, io, path::Path, time::Duration};

use anyhow::{Context, bail};
use modelyard_common::error::Problem;
use reqwest::{Body, Method, RequestBuilder, Response, StatusCode};
use serde_json::Value;

use super::UsageError;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an answer may take to begin, and to continue. It counts from when a request begins to be sent.
const READ_TIMEOUT: Duration = Duration::from_mins(2);

/// How often a connection without traffic is looked at, and how often in vain before it counts as broken.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_TRIES: u32 = 4;

/// What follows an error that passes by itself; scripts may look for it.
const TRY_AGAIN: &str = "not available at present: try again in a moment";

/// The page size of complete lists.
const PAGE: usize = 1000;

/// The part of the API that a thing is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// The whole installation: `/api/v1/...`.
    Installation,
    /// The client's project: `/api/v1/projects/PROJECT/...`.
    Project,
}

/// How requests are sent.
#[derive(Clone)]
pub struct Http {
    /// What is answered soon.
    pub prompt: reqwest::Client,
    /// What takes as long as it takes: uploads, and what a server reads through before it answers. Only a connection that is broken
    /// ends it.
    pub patient: reqwest::Client,
}

/// A connection to a server, for its installation and perhaps for one project.
pub struct Client {
    http: Http,
    url: String,
    token: Option<String>,
    project: Option<String>,
}

impl Client {
    /// A client of the server at `url`; the certificates in `ca_file` are trusted beside those of this machine.
    pub fn new(url: &str, token: Option<&str>, ca_file: Option<&Path>) -> anyhow::Result<Self> {
        let url = url.trim_end_matches('/').to_owned();
        if reqwest::Url::parse(&url).is_err() {
            return Err(UsageError(format!("`{url}` is not a URL: write it as http://HOST:PORT")).into());
        }
        Ok(Self {
            http: http_client(ca_file)?,
            url,
            token: token.map(str::to_owned),
            project: None,
        })
    }

    /// The client for a project.
    pub fn in_project(mut self, project: &str) -> Self {
        self.project = Some(project.to_owned());
        self
    }

    /// A request to a path of the server, `/v2/models` for example.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.with_token(self.http.prompt.request(method, format!("{}{path}", self.url)))
    }

    fn with_token(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// A request to the project's part of the API; `segments` are encoded.
    pub fn project_request(&self, method: Method, segments: &[&str]) -> anyhow::Result<RequestBuilder> {
        self.request_at(Level::Project, method, segments)
    }

    /// A request to the installation's part of the API; `segments` are encoded.
    pub fn installation_request(&self, method: Method, segments: &[&str]) -> anyhow::Result<RequestBuilder> {
        self.request_at(Level::Installation, method, segments)
    }

    /// A request to a part of the API; `segments` are encoded.
    pub fn request_at(&self, level: Level, method: Method, segments: &[&str]) -> anyhow::Result<RequestBuilder> {
        Ok(self.with_token(self.http.prompt.request(method, self.url_of(level, segments)?)))
    }

    /// A request to the project's part of the API that takes as long as it takes; `segments` are encoded.
    pub fn patient_request(&self, method: Method, segments: &[&str]) -> anyhow::Result<RequestBuilder> {
        let url = self.url_of(Level::Project, segments)?;
        Ok(self.with_token(self.http.patient.request(method, url)))
    }

    /// Names of users and groups may hold `/` and `@`: each segment stays one.
    fn url_of(&self, level: Level, segments: &[&str]) -> anyhow::Result<reqwest::Url> {
        let mut url = reqwest::Url::parse(&self.url)?;
        let mut path = url
            .path_segments_mut()
            .map_err(|()| UsageError(format!("`{}` cannot be used as a URL", self.url)))?;
        path.pop_if_empty().extend(["api", "v1"]);
        if level == Level::Project {
            let project = self.project.as_deref();
            let project = project.context("the command is for a project: name one with --project")?;
            path.push("projects").push(whole_segment(project)?);
        }
        for segment in segments {
            path.push(whole_segment(segment)?);
        }
        drop(path);
        Ok(url)
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
        let response = request.send().await.map_err(|error| self.failure(error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        bail!(refusal(response).await)
    }

    /// Why no answer came.
    fn failure(&self, error: reqwest::Error) -> anyhow::Error {
        let is_connect = error.is_connect();
        let error = anyhow::Error::new(error);
        if error.chain().any(is_distrust) {
            return error.context(format!(
                "the certificate of {} is not trusted: name the PEM file of the authority that signed it with --ca-file or MODELYARD_CA_FILE, and use a host that it is for",
                self.url
            ));
        }
        if is_connect {
            return error.context(format!(
                "no server answers at {}: start one with `modelyard serve`, or set MODELYARD_URL",
                self.url
            ));
        }
        error.context(format!("the request to {} failed", self.url))
    }

    /// Gets one thing of the project.
    pub async fn get(&self, segments: &[&str]) -> anyhow::Result<Value> {
        self.get_at(Level::Project, segments).await
    }

    /// Gets one thing of a part of the API.
    pub async fn get_at(&self, level: Level, segments: &[&str]) -> anyhow::Result<Value> {
        self.send(self.request_at(level, Method::GET, segments)?).await
    }

    /// Gets one thing of the project, or nothing when it does not exist.
    pub async fn find(&self, segments: &[&str]) -> anyhow::Result<Option<Value>> {
        let response = self.project_request(Method::GET, segments)?.send().await;
        match response {
            Ok(response) if response.status() == StatusCode::NOT_FOUND => Ok(None),
            _ => self.get(segments).await.map(Some),
        }
    }

    /// Gets the items of a list, page by page: those that the query selects, and no more than `at_most`.
    pub async fn list_at(
        &self,
        level: Level,
        segments: &[&str],
        query: &[(&str, &str)],
        at_most: Option<usize>,
    ) -> anyhow::Result<Vec<Value>> {
        let mut items = Vec::new();
        let mut cursor: Option<String> = None;
        loop {
            let wanted = at_most.map_or(PAGE, |most| PAGE.min(most.saturating_sub(items.len())));
            let mut request = self.request_at(level, Method::GET, segments)?;
            request = request.query(query).query(&[("limit", wanted)]);
            if let Some(cursor) = &cursor {
                request = request.query(&[("cursor", cursor)]);
            }
            let mut page = self.send(request).await?;
            let Some(Value::Array(page_items)) = page.get_mut("items").map(Value::take) else {
                bail!("the answer is not a list: is the server of another version?");
            };
            items.extend(page_items);
            if let Some(most) = at_most.filter(|most| items.len() >= *most) {
                items.truncate(most);
                return Ok(items);
            }
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
        let request = self.patient_request(Method::PUT, &["artifacts"])?;
        let answer = self.send(request.header("content-length", size).body(body)).await;
        let answer = answer.with_context(|| format!("`{}` cannot be uploaded", path.display()))?;
        let digest = answer.get("digest").and_then(Value::as_str);
        digest.map(str::to_owned).context("the server gave no digest")
    }
}

/// What sends requests; the certificates in `ca_file` are trusted beside those of this machine.
pub fn http_client(ca_file: Option<&Path>) -> anyhow::Result<Http> {
    http_with(ca_file, READ_TIMEOUT)
}

fn http_with(ca_file: Option<&Path>, read_timeout: Duration) -> anyhow::Result<Http> {
    let trusted = ca_file.map(authorities).transpose()?.unwrap_or_default();
    let builder = || {
        reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_keepalive(KEEPALIVE)
            .tcp_keepalive_interval(KEEPALIVE)
            .tcp_keepalive_retries(KEEPALIVE_TRIES)
            .tls_certs_merge(trusted.clone())
    };
    let cannot = "the HTTP client cannot be made";
    Ok(Http {
        prompt: builder().read_timeout(read_timeout).build().context(cannot)?,
        patient: builder().build().context(cannot)?,
    })
}

/// A text that can be a segment of a path. The others would be left out of the URL, which names something else then.
fn whole_segment(text: &str) -> Result<&str, UsageError> {
    if matches!(text, "" | "." | "..") || text.contains(char::is_control) {
        return Err(UsageError(format!(
            "`{}` names nothing: write a name",
            text.escape_debug()
        )));
    }
    Ok(text)
}

/// The certificates in a PEM file.
fn authorities(file: &Path) -> anyhow::Result<Vec<reqwest::Certificate>> {
    let pem = fs::read(file).with_context(|| format!("`{}` cannot be read", file.display()))?;
    let certificates = reqwest::Certificate::from_pem_bundle(&pem)
        .with_context(|| format!("`{}` cannot be read as certificates", file.display()))?;
    if certificates.is_empty() {
        bail!("`{}` has no certificate: name a PEM file that has one", file.display());
    }
    Ok(certificates)
}

/// Whether an error is the refusal of the server's certificate.
fn is_distrust(error: &(dyn StdError + 'static)) -> bool {
    let mut innermost = error;
    // An I/O error hides what it wraps from the chain, and can wrap another one.
    while let Some(wrapped) = innermost.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        innermost = wrapped;
    }
    matches!(
        innermost.downcast_ref::<rustls::Error>(),
        Some(rustls::Error::InvalidCertificate(_))
    )
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

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    fn client(url: &str) -> Client {
        // The program does the same when it starts.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Client::new(url, None, None).unwrap()
    }

    #[test]
    fn segments_stay_whole() {
        let client = client("http://localhost:7070/behind/").in_project("default");
        for (level, name, expected) in [
            (Level::Installation, "alice", "/behind/api/v1/users/alice"),
            (Level::Installation, "a@b.example", "/behind/api/v1/users/a@b.example"),
            (
                Level::Installation,
                "team/a b?#%",
                "/behind/api/v1/users/team%2Fa%20b%3F%23%25",
            ),
            (Level::Project, "x", "/behind/api/v1/projects/default/users/x"),
        ] {
            let url = client.url_of(level, &["users", name]).unwrap();
            assert_eq!((url.path(), url.query(), url.fragment()), (expected, None, None));
        }
        for name in ["", ".", "..", "al\nice"] {
            let error = client.url_of(Level::Installation, &["users", name]).unwrap_err();
            assert!(error.is::<UsageError>(), "{name}: {error}");
        }
    }

    async fn next_request(listener: &TcpListener) -> TcpStream {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = [0; 4096];
        assert!(stream.read(&mut head).await.unwrap() > 0);
        stream
    }

    #[tokio::test]
    async fn an_upload_takes_as_long_as_it_takes() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = client(&format!("http://{}", listener.local_addr().unwrap())).in_project("default");
        client.http = http_with(None, Duration::from_millis(100)).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "content").unwrap();
        let upload = client.upload(file.path());
        let serve = async {
            let mut upload = next_request(&listener).await;
            // The server is silent for longer than it may be to others.
            let (_question, refused) = tokio::join!(next_request(&listener), client.get(&["models"]));
            assert!(refused.is_err());
            let answer = "HTTP/1.1 201 Created\r\ncontent-length: 14\r\n\r\n{\"digest\":\"d\"}";
            upload.write_all(answer.as_bytes()).await.unwrap();
            upload
        };
        let (digest, _connection) = tokio::join!(upload, serve);
        assert_eq!(digest.unwrap(), "d");
    }

    #[test]
    fn a_client_of_the_installation_has_no_project() {
        let client = client("http://localhost:7070");
        assert!(client.url_of(Level::Project, &["models"]).is_err());
        let url = client.url_of(Level::Installation, &["roles"]).unwrap();
        assert_eq!(url.as_str(), "http://localhost:7070/api/v1/roles");
    }
}
