//! Signing in at a certified OpenID provider, as a browser does, and exchanging a token of that provider.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use modelyard_flights::{Server, ServerOptions};
use reqwest::{Client, Method, Response, StatusCode, Url, header, redirect::Policy};
use serde_json::{Value, json};

use crate::deployment::{binary, free_port, use_tls};

/// The variables that name Node.js and the provider's program.
const NODE: &str = "TEST_NODE";
const PROVIDER: &str = "TEST_OPENID_PROVIDER";

const CLIENT: &str = "modelyard";
const SECRET: &str = "a secret of this test only";
/// How many pages there may be between the first one and the end.
const MAX_PAGES: usize = 20;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);
const ADMIN_PASSWORD: &str = "correct horse battery staple";

/// The provider's process. It ends with this.
struct Provider {
    child: Child,
    issuer: String,
}

impl Provider {
    fn start(redirect_uri: &str, audience: &str) -> Result<Self> {
        let missing =
            |name| format!("{name} is not set: run the tests by `cargo xtask test`, which fetches the provider");
        let node = env::var_os(NODE).with_context(|| missing(NODE))?;
        let program = env::var_os(PROVIDER).with_context(|| missing(PROVIDER))?;
        let mut child = Command::new(node)
            .arg(program)
            .args([CLIENT, SECRET, redirect_uri, audience])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let output = child.stdout.take().context("the provider has no output")?;
        let mut issuer = String::new();
        BufReader::new(output).read_line(&mut issuer)?;
        let issuer = issuer.trim().to_owned();
        ensure!(issuer.starts_with("http://127.0.0.1:"), "the provider does not start");
        Ok(Self { child, issuer })
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A browser: it keeps cookies, follows redirects and sends forms.
struct Browser {
    http: Client,
    /// By the origin and the name. Paths are not looked at: both servers give each name one meaning.
    cookies: BTreeMap<(String, String), String>,
}

struct Page {
    url: Url,
    status: StatusCode,
    text: String,
}

fn client() -> Result<Client> {
    use_tls();
    Ok(Client::builder().redirect(Policy::none()).timeout(PATIENCE).build()?)
}

impl Browser {
    fn new() -> Result<Self> {
        Ok(Self {
            http: client()?,
            cookies: BTreeMap::new(),
        })
    }

    async fn request(&mut self, method: Method, url: &Url, form: Option<String>) -> Result<Response> {
        let origin = url.origin().ascii_serialization();
        let here = self.cookies.iter().filter(|((at, _), _)| *at == origin);
        let cookies: Vec<String> = here.map(|((_, name), value)| format!("{name}={value}")).collect();
        let mut request = self
            .http
            .request(method, url.clone())
            .header(header::ACCEPT, "text/html");
        if !cookies.is_empty() {
            request = request.header(header::COOKIE, cookies.join("; "));
        }
        if let Some(form) = form {
            request = request
                .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(form);
        }
        let response = request.send().await?;
        for cookie in response.headers().get_all(header::SET_COOKIE) {
            let (name, rest) = cookie.to_str()?.split_once('=').context("a cookie without a value")?;
            let (value, attributes) = rest.split_once(';').unwrap_or((rest, ""));
            let key = (origin.clone(), name.to_owned());
            if value.is_empty() || attributes.contains("Max-Age=0") {
                self.cookies.remove(&key);
            } else {
                self.cookies.insert(key, value.to_owned());
            }
        }
        Ok(response)
    }

    /// Goes to an address, and on to where it leads.
    async fn open(&mut self, url: &Url, form: Option<String>) -> Result<Page> {
        let mut method = if form.is_some() { Method::POST } else { Method::GET };
        let (mut url, mut form) = (url.clone(), form);
        for _ in 0..MAX_PAGES {
            let response = self.request(method, &url, form.take()).await?;
            let status = response.status();
            if let Some(location) = response.headers().get(header::LOCATION) {
                url = url.join(location.to_str()?)?;
                method = Method::GET;
                continue;
            }
            let text = response.text().await?;
            return Ok(Page { url, status, text });
        }
        bail!("{url} leads nowhere")
    }

    /// Signs in by the provider's pages: a name, and consent.
    async fn sign_in(&mut self, origin: &str, login: &str) -> Result<Page> {
        let start = Url::parse(&format!(
            "{origin}/api/v1/auth/openid/test/sign-in?return_to=/api/v1/auth/me"
        ))?;
        let mut page = self.open(&start, None).await?;
        for _ in 0..MAX_PAGES {
            if page.url.origin().ascii_serialization() == origin {
                return Ok(page);
            }
            let action = attribute(&page.text, "<form", "action").with_context(|| page.text.clone())?;
            let prompt = if page.text.contains("name=\"login\"") {
                "login"
            } else {
                "consent"
            };
            let form = format!("prompt={prompt}&login={login}&password=any");
            page = self.open(&page.url.join(&action)?, Some(form)).await?;
        }
        bail!("signing in leads nowhere: {}", page.text)
    }
}

/// The value of an attribute of the first such element.
fn attribute(text: &str, element: &str, name: &str) -> Option<String> {
    let (_, rest) = text.split_once(element)?;
    let (inside, _) = rest.split_once('>')?;
    let (_, value) = inside.split_once(&format!("{name}=\""))?;
    value.split_once('"').map(|(value, _)| value.to_owned())
}

fn configuration(issuer: &str, origin: &str) -> String {
    format!(
        "auth.sign_in = true
         [registry.sign_in]
         public_url = '{origin}'
         [[registry.sign_in.providers]]
         name = 'test'
         label = 'The test'
         issuer = '{issuer}'
         client_id = '{CLIENT}'
         client_secret = '{SECRET}'
         allowed_groups = ['ml-team']
         group_roles = {{ 'ml-team' = ['contributor@default'] }}
         [[registry.sign_in.workloads]]
         name = 'test'
         issuer = '{issuer}'
         rules = [{{ claims = {{ sub = '{CLIENT}' }}, service_account = 'trainer', scope = ['viewer@default'] }}]
        "
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn people_and_workloads_sign_in_at_a_certified_provider() -> Result<()> {
    let folder = tempfile::Builder::new().prefix("modelyard-test-").tempdir()?;
    let (public, internal) = (free_port()?, free_port()?);
    let origin = format!("http://127.0.0.1:{public}");
    let provider = Provider::start(&format!("{origin}/api/v1/auth/openid/test/callback"), &origin)?;
    let file = folder.path().join("modelyard.toml");
    fs::write(&file, configuration(&provider.issuer, &origin))?;
    let mut server = Server::start(ServerOptions {
        binary: binary(),
        wrapper: Vec::new(),
        data_dir: folder.path().join("data"),
        log: folder.path().join("server.log"),
        arguments: vec![
            "--config".to_owned(),
            file.display().to_string(),
            "--listen".to_owned(),
            format!("127.0.0.1:{public}"),
            "--internal-listen".to_owned(),
            format!("127.0.0.1:{internal}"),
        ],
        environment: vec![(
            "MODELYARD__REGISTRY__ADMIN_PASSWORD".to_owned(),
            ADMIN_PASSWORD.to_owned(),
        )],
    })
    .await?;
    server.wait_ready().await?;
    let http = client()?;

    // Nobody is let in without being known.
    let models = format!("{origin}/api/v1/projects/default/models");
    ensure!(http.get(&models).send().await?.status() == StatusCode::UNAUTHORIZED);

    // Who is in the group has its role; the provider's own checks of PKCE, nonce and redirect are part of this.
    let mut alice = Browser::new()?;
    let page = alice.sign_in(&origin, "alice").await?;
    ensure!(page.status == StatusCode::OK, "{}: {}", page.url, page.text);
    ensure!(page.url.path() == "/api/v1/auth/me", "{}", page.url);
    let me: Value = serde_json::from_str(&page.text)?;
    ensure!(me.to_string().contains("alice"), "{me}");
    let page = alice.open(&Url::parse(&models)?, None).await?;
    ensure!(page.status == StatusCode::OK, "{}", page.text);

    // Who is in none of the groups is told so, on a page.
    let mut mallory = Browser::new()?;
    let page = mallory.sign_in(&origin, "mallory").await?;
    ensure!(page.status == StatusCode::FORBIDDEN, "{}: {}", page.url, page.text);
    ensure!(page.text.contains("NOT_IN_ALLOWED_GROUP"), "{}", page.text);

    // A workload brings the provider's token for it.
    let answer = http
        .post(format!("{}/token", provider.issuer))
        .basic_auth(CLIENT, Some(SECRET))
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(format!("grant_type=client_credentials&resource={origin}"))
        .send()
        .await?
        .error_for_status()?;
    let answer: Value = answer.json().await?;
    let subject_token = answer.get("access_token").and_then(Value::as_str).context("no token")?;
    let exchange = async || -> Result<(StatusCode, Value)> {
        let form = format!(
            "grant_type=urn:ietf:params:oauth:grant-type:token-exchange\
             &subject_token_type=urn:ietf:params:oauth:token-type:jwt&subject_token={subject_token}"
        );
        let request = http
            .post(format!("{origin}/api/v1/auth/token"))
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        let answer = request.body(form).send().await?;
        Ok((answer.status(), answer.json().await?))
    };
    let (status, refused) = exchange().await?;
    ensure!(
        status == StatusCode::BAD_REQUEST,
        "without the service account: {refused}"
    );
    let admin = |request: reqwest::RequestBuilder| request.basic_auth("admin", Some(ADMIN_PASSWORD));
    let account = json!({"display_name": "The trainer"});
    let binding = json!({"subject": "service-account:trainer", "role": "viewer", "place": "default"});
    let created = admin(http.put(format!("{origin}/api/v1/service-accounts/trainer")))
        .json(&account)
        .send()
        .await?;
    ensure!(created.status().is_success(), "{}", created.text().await?);
    let bound = admin(http.put(format!("{origin}/api/v1/role-bindings/trainer")))
        .json(&binding)
        .send()
        .await?;
    ensure!(bound.status().is_success(), "{}", bound.text().await?);
    let (status, exchanged) = exchange().await?;
    ensure!(status == StatusCode::OK, "{exchanged}");
    ensure!(exchanged.get("token_type") == Some(&json!("Bearer")), "{exchanged}");
    let token = exchanged
        .get("access_token")
        .and_then(Value::as_str)
        .context("no token")?;
    let listed = http.get(&models).bearer_auth(token).send().await?;
    ensure!(listed.status() == StatusCode::OK, "{}", listed.text().await?);
    server.stop().await
}
