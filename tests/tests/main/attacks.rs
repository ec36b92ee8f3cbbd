//! What attackers try, and what they must not get.

mod credentials;
mod raw;
mod requests;
mod traces;

use anyhow::{Context, Result, ensure};
use reqwest::{Client, Method, RequestBuilder};
use serde_json::{Value, json};

use crate::{
    deployment::{Deployment, Engine, Topology},
    permissions::installation::{ALL_ROLES, Installation, PATIENCE, accepted, client, text},
};
use raw::Findings;

/// The attacker: the admin of one project, who is nobody in the other one.
const ATTACKER: &str = "mallory";
const PASSWORD: &str = "seven green ladders lean on rain";
const MINE: &str = "attackers";
const THEIRS: &str = "protected";
const NOWHERE: &str = "forgotten";
/// The secret of the other project.
const SECRET: &str = "the-value-that-nobody-reads-3f9a";

/// An installation with an attacker in it.
struct Scene {
    at: Installation,
    /// The attacker's token.
    token: String,
    /// All that must never be seen again.
    confidential: Vec<String>,
    findings: Findings,
}

impl Scene {
    async fn start(topology: Topology, auth: &str, tables: &str) -> Result<Self> {
        let at = Installation::start(topology, auth, tables).await?;
        for project in [MINE, THEIRS] {
            at.make_project(project).await?;
        }
        at.make_user(ATTACKER, PASSWORD).await?;
        at.bind("attacker", &format!("user:{ATTACKER}"), "admin", MINE).await?;
        at.put(
            &format!("/api/v1/projects/{THEIRS}/secrets/key"),
            &json!({"value": SECRET}),
        )
        .await?;
        let order = at
            .request(Method::POST, "/api/v1/tokens")
            .basic_auth(ATTACKER, Some(PASSWORD));
        let token = text(&accepted(order.json(&json!({"name": "own"}))).await?, "/token")?.to_owned();
        for front in at.public_urls()? {
            at.wait_known(&front, &token).await;
        }
        let confidential = [PASSWORD, SECRET, &token, &at.admin].map(str::to_owned).to_vec();
        Ok(Self {
            at,
            token,
            confidential,
            findings: Findings::default(),
        })
    }

    /// A request of the attacker's.
    fn attack(&self, method: Method, path: &str) -> RequestBuilder {
        self.at.request(method, path).bearer_auth(&self.token)
    }

    /// Sends a request that must be answered with one of these statuses, and gives the body.
    async fn expect(&mut self, what: &str, request: RequestBuilder, statuses: &[u16]) -> Result<String> {
        let answer = request.send().await.with_context(|| what.to_owned())?;
        let status = answer.status().as_u16();
        let body = answer.text().await?;
        self.findings
            .check(statuses.contains(&status), format!("{what}: {status} {body}"));
        Ok(body)
    }

    /// Where the audit chain says that a request came from.
    async fn source_of(&self, request_id: &str) -> Result<String> {
        let events = self
            .at
            .get(&format!("/api/v1/audit/events?request_id={request_id}"))
            .await?;
        Ok(text(&events, "/items/0/source_address")?.to_owned())
    }

    /// Sets a secret with headers about where the request came from; where the chain says that it came from.
    async fn source_with(&self, request_id: &str, forwarded_for: &str) -> Result<String> {
        let set = self
            .attack(Method::PUT, &format!("/api/v1/projects/{MINE}/secrets/origin"))
            .header("x-request-id", request_id)
            .header("x-forwarded-for", forwarded_for)
            .json(&json!({"value": request_id}));
        accepted(set).await?;
        self.source_of(request_id).await
    }

    async fn finish(self) -> Result<()> {
        self.findings.finish()?;
        self.at.deployment.stop().await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_signs_in_gets_no_more_than_is_theirs_and_leaves_a_clean_trace() -> Result<()> {
    let auth = "trusted_proxies = ['127.0.0.1', '10.0.0.0/8']";
    let mut scene = Scene::start(Topology::AllInOne, auth, "[telemetry]\nlog = 'debug'\n").await?;
    requests::ids_of_others_are_like_ids_that_never_were(&mut scene).await?;
    requests::paths_stay_where_they_belong(&mut scene).await?;
    requests::nobody_is_a_service_by_saying_so(&mut scene).await?;
    credentials::forged_tokens_open_nothing(&mut scene).await?;
    credentials::other_sites_cannot_use_a_session(&mut scene).await?;
    credentials::rights_do_not_grow(&mut scene).await?;
    // What proxies say is believed from the right; the client may have written the rest.
    for (request_id, forwarded_for) in [
        ("proxied-1", "203.0.113.9"),
        ("proxied-2", "198.51.100.1, 203.0.113.9"),
        ("proxied-3", "198.51.100.1, 203.0.113.9, 10.1.2.3"),
    ] {
        let source = scene.source_with(request_id, forwarded_for).await?;
        scene.findings.check(
            source == "203.0.113.9",
            format!("{forwarded_for} is taken for {source}"),
        );
    }
    traces::names_cannot_forge_lines(&mut scene).await?;
    traces::errors_do_not_repeat_what_is_confidential(&mut scene).await?;
    credentials::guessing_is_slowed_down(&mut scene).await?;
    traces::refusals_are_in_the_chain(&mut scene).await?;
    let log = scene.at.deployment.folder().join(format!("{ALL_ROLES}.log"));
    traces::nothing_confidential_is_written(&mut scene, &log).await?;
    scene.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_are_not_smuggled_through_other_processes() -> Result<()> {
    let mut scene = Scene::start(Topology::Split, "", "").await?;
    for front in scene.at.public_urls()? {
        scene.at.url = front;
        requests::nobody_is_a_service_by_saying_so(&mut scene).await?;
    }
    let source = scene.source_with("unproxied", "203.0.113.9").await?;
    scene
        .findings
        .check(source == "127.0.0.1", format!("an untrusted header counts: {source}"));
    scene.finish().await
}

/// A server that asks nobody to sign in.
struct Open {
    deployment: Deployment,
    http: Client,
    findings: Findings,
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_others_do_not_reach_an_open_server() -> Result<()> {
    let deployment = Deployment::start(Topology::AllInOne, Engine::Sqlite).await?;
    let mut open = Open {
        deployment,
        http: client()?,
        findings: Findings::default(),
    };
    requests::other_origins_are_refused(&mut open).await?;
    // Nobody is a proxy here.
    let url = open.deployment.url().to_owned();
    let set = open
        .http
        .put(format!("{url}/api/v1/projects/default/secrets/origin"))
        .header("x-request-id", "unproxied")
        .header("x-forwarded-for", "203.0.113.9");
    accepted(set.json(&json!({"value": "any"}))).await?;
    let events = open.http.get(format!("{url}/api/v1/audit/events?request_id=unproxied"));
    let events: Value = accepted(events).await?;
    let source = text(&events, "/items/0/source_address")?;
    open.findings
        .check(source == "127.0.0.1", format!("an untrusted header counts: {source}"));
    open.findings.finish()?;
    open.deployment.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_grow_are_refused_with_bounded_memory() -> Result<()> {
    let deployment = Deployment::start(Topology::AllInOne, Engine::Sqlite).await?;
    let mut open = Open {
        deployment,
        http: Client::builder().timeout(PATIENCE).build()?,
        findings: Findings::default(),
    };
    requests::large_bodies_are_refused(&mut open).await?;
    // A client of its own: the server has closed the other's connections, and it may not know yet.
    let alive = Client::builder()
        .timeout(PATIENCE)
        .build()?
        .get(format!("{}/livez", open.deployment.url()))
        .send()
        .await?;
    ensure!(alive.status().is_success(), "the server does not live");
    open.findings.finish()?;
    open.deployment.stop().await
}
