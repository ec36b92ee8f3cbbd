//! Who may do what: every operation of every face, asked by everybody, from one table.

pub mod installation;

mod contracts;
mod inference;
mod mlflow;
mod operations;
mod roles;
mod sources;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use reqwest::{Method, RequestBuilder, Response, header};
use serde_json::{Value, json};

use crate::deployment::Topology;
use contracts::{Call, message};
use inference::INFERENCE;
use installation::{ADMIN_PASSWORD, Installation, accepted, call, grpc_refusal, text};
use mlflow::MLFLOW;
use operations::{API, Body, Operation};
use roles::{A_SERVICE, COLUMNS, Column, Entrance, NOWHERE, OTHER, SERVED, TARGET, TUNE, TUNER, Verdict};

/// What the refusal of a project says that does not exist or is not seen.
const UNSEEN: &str = "or you have no role in it";
/// What the answer says to a wrong password, which is not about who asks.
const WRONG_PASSWORD: &str = "the name or the password is wrong";
/// How soon a change must count everywhere.
const SOON: Duration = Duration::from_secs(5);

/// The installation with everybody in it.
struct Matrix {
    at: Installation,
    /// By the title of the column.
    tokens: BTreeMap<&'static str, String>,
    /// An artifact of the target.
    digest: String,
    mismatches: String,
    asked: usize,
}

/// An answer, read.
struct Read {
    verdict: Verdict,
    shown: String,
}

impl Matrix {
    async fn start(topology: Topology) -> Result<Self> {
        let at = Installation::start(topology, "", "").await?;
        for project in [TARGET, OTHER] {
            at.make_project(project).await?;
        }
        at.put(
            &format!("/api/v1/projects/{TARGET}/endpoints/{SERVED}"),
            &json!({"routes": [{"model": "nothing@champion"}]}),
        )
        .await?;
        at.put(&format!("/api/v1/roles/{TUNER}"), &json!({"actions": TUNE}))
            .await?;
        let stored = at.as_admin(Method::PUT, &format!("/api/v1/projects/{TARGET}/artifacts"));
        let stored = accepted(stored.body("an artifact of the target")).await?;
        let digest = text(&stored, "/digest")?.to_owned();
        let mut tokens = BTreeMap::new();
        for column in COLUMNS {
            if let Some(token) = enter(&at, column).await? {
                tokens.insert(column.title, token);
            }
        }
        Ok(Self {
            at,
            tokens,
            digest,
            mismatches: String::new(),
            asked: 0,
        })
    }

    fn with_token(&self, request: RequestBuilder, column: &Column) -> RequestBuilder {
        match self.tokens.get(column.title) {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    fn fill(&self, text: &str, column: &Column, project: &str) -> String {
        let filled = text
            .replace("{project}", project)
            .replace("{me}", &column.principal())
            .replace("{digest}", &self.digest)
            .replace("{kind}", "model")
            .replace("{version}", "1")
            .replace("{start}", "2026-01-01");
        [
            "{name}",
            "{dataset}",
            "{model}",
            "{alias}",
            "{run_id}",
            "{key}",
            "{id}",
            "{request_id}",
            "{provider}",
            "{model_id}",
            "{trace_id}",
            "{assessment_id}",
        ]
        .iter()
        .fold(filled, |filled, part| filled.replace(part, "absent"))
    }

    /// Asks over HTTP at `front`; the path stands below `prefix`, and the header names the project where there is none.
    async fn ask(
        &self,
        (front, prefix): (&str, &str),
        operation: &Operation,
        column: &Column,
        project: &str,
    ) -> Result<Read> {
        let (method, path) = operation.call();
        let url = format!("{front}{}", self.fill(&format!("{prefix}{path}"), column, project));
        let mut request = self.at.http.request(method.parse()?, url);
        if prefix.is_empty() {
            request = request
                .header("modelyard-project", project)
                .header("x-mlflow-workspace", project);
        }
        request = match operation.body {
            Body::None => request,
            Body::Json(body) => request
                .header(header::CONTENT_TYPE, "application/json")
                .body(self.fill(body, column, project)),
            Body::Form(body) => request
                .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(body),
            Body::Bytes(body) => request.body(body),
        };
        let answer = self.with_token(request, column).send().await?;
        let status = answer.status().as_u16();
        let body = answer.text().await?;
        let is_unseen = body.contains(UNSEEN) || method == "HEAD";
        let verdict = match status {
            401 => Verdict::Unknown,
            403 => Verdict::Denied,
            404 if is_unseen => Verdict::Unseen,
            404 if body.contains("ROUTE_NOT_FOUND") => Verdict::Broken,
            405 | 500 => Verdict::Broken,
            _ => Verdict::Allowed,
        };
        Ok(Read {
            verdict,
            shown: format!("{status} {body}"),
        })
    }

    fn note(&mut self, what: &str, column: &Column, expected: Verdict, read: &Read) {
        self.asked += 1;
        if read.verdict != expected {
            let shown: String = read.shown.chars().take(160).collect();
            let (expected, got) = (format!("{expected:?}"), format!("{:?}", read.verdict));
            // Writing to a string cannot fail.
            let _ = writeln!(
                self.mismatches,
                "{what:<75} {:<17} {expected:<8} {got:<8} {shown}",
                column.title
            );
        }
    }

    /// Who has no role in a project is told the same of one that does not exist.
    fn note_difference(&mut self, what: &str, column: &Column, seen: &Read, absent: &Read) {
        if seen.shown != absent.shown.replace(NOWHERE, TARGET) {
            let shown = Read {
                verdict: Verdict::Broken,
                shown: format!("{} BUT {}", seen.shown, absent.shown),
            };
            self.note(what, column, Verdict::Unseen, &shown);
        }
    }

    async fn check_operation(&mut self, place: (&str, &str), operation: &Operation) -> Result<()> {
        for column in COLUMNS {
            let read = self.ask(place, operation, column, TARGET).await?;
            let what = format!("{} {}", place.1, operation.route);
            self.note(&what, column, column.expected(operation.need), &read);
            let is_known = !matches!(column.entrance, Entrance::Nobody | Entrance::Disabled);
            let is_last = operation.route.ends_with("sign-out");
            if is_known && !is_last && !column.sees_target() {
                let absent = self.ask(place, operation, column, NOWHERE).await?;
                self.note_difference(&what, column, &read, &absent);
            }
        }
        Ok(())
    }

    async fn check_inference_call(&mut self, (method, fields, need): &Call) -> Result<()> {
        for column in COLUMNS {
            let mut reads = Vec::new();
            for project in [TARGET, NOWHERE] {
                let request = call(&self.at.http2, &self.at.url, method, &message(fields, project));
                let request = request.header("modelyard-project", project);
                reads.push(read_call(&self.with_token(request, column).send().await?)?);
            }
            self.note_pair(method, column, column.expected(*need), &reads);
        }
        Ok(())
    }

    /// A contract between services: as a service, as one that acts for each, and as nobody.
    async fn check_contract(&mut self, listener: &str, (method, fields, need): &Call) -> Result<()> {
        let request = |project: &str, service: Option<&str>, acting_for: Option<&str>| {
            let mut request = call(&self.at.http2, listener, method, &message(fields, project));
            if let Some(service) = service {
                request = request.header("modelyard-service", service);
            }
            if let Some(acting_for) = acting_for {
                request = request.header("modelyard-acting-for", acting_for);
            }
            request
        };
        let mut all = Vec::new();
        for (service, acting_for, expected) in [
            (Some("gateway"), None, A_SERVICE.expected(*need)),
            (None, None, Verdict::Unknown),
            (None, Some("user:admin"), Verdict::Unknown),
            (Some("gateway"), Some("service:registry"), Verdict::Unknown),
            (Some("gateway"), Some("anonymous"), Verdict::Unknown),
            (Some("gateway"), Some("?"), Verdict::Unknown),
            (Some("gateway"), Some("user:nobody-knows"), Verdict::Unknown),
            (Some("gateway"), Some("user:admin;what"), Verdict::Unknown),
            (
                Some("gateway"),
                Some("user:admin;"),
                Column {
                    scope: Some(&[]),
                    ..A_SERVICE
                }
                .expected(*need),
            ),
        ] {
            let read = read_call(&request(TARGET, service, acting_for).send().await?)?;
            let what = format!("{method} as {service:?} for {acting_for:?}");
            all.push((what, A_SERVICE, expected, vec![read]));
        }
        for column in COLUMNS.iter().filter(|column| column.entrance != Entrance::Nobody) {
            let acting_for = acting_for(column);
            let mut reads = Vec::new();
            for project in [TARGET, NOWHERE] {
                let request = request(project, Some("orchestrator"), Some(&acting_for));
                reads.push(read_call(&request.send().await?)?);
            }
            all.push(((*method).to_owned(), *column, column.expected(*need), reads));
        }
        for (what, column, expected, reads) in all {
            self.note_pair(&what, &column, expected, &reads);
        }
        Ok(())
    }

    fn note_pair(&mut self, what: &str, column: &Column, expected: Verdict, reads: &[Read]) {
        if let Some(read) = reads.first() {
            self.note(what, column, expected, read);
            if let Some(absent) = reads.get(1).filter(|_| expected == Verdict::Unseen) {
                self.note_difference(what, column, read, absent);
            }
        }
    }

    async fn finish(self) -> Result<()> {
        ensure!(
            self.mismatches.is_empty(),
            "of {} answers these are not what the table says (operation, who, expected, got):\n{}",
            self.asked,
            self.mismatches
        );
        self.at.deployment.stop().await
    }
}

/// Makes the identity of a column, and its token.
async fn enter(at: &Installation, column: &Column) -> Result<Option<String>> {
    let name = column.name;
    let subject = if column.by_group {
        format!("group:{name}-group")
    } else {
        column.principal()
    };
    let scope = column.scope.map(|grants| {
        let texts = grants.iter().map(|(role, place)| format!("{role}@{}", place.text()));
        texts.collect::<Vec<_>>()
    });
    let token = match column.entrance {
        Entrance::Nobody | Entrance::Service => return Ok(None),
        Entrance::User | Entrance::Disabled => {
            at.make_user(name, ADMIN_PASSWORD).await?;
            let order = at.request(Method::POST, "/api/v1/tokens");
            let order = order.basic_auth(name, Some(ADMIN_PASSWORD));
            text(&accepted(order.json(&json!({"name": "test"}))).await?, "/token")?.to_owned()
        }
        Entrance::ServiceAccount => {
            at.make_service_account(name, &[&format!("{name}-group")]).await?;
            at.make_token(name, scope.as_deref()).await?.text
        }
    };
    for (index, (role, place)) in column.grants.iter().enumerate() {
        at.bind(&format!("{name}-{index}"), &subject, role, &place.text())
            .await?;
    }
    if column.entrance == Entrance::Disabled {
        at.put(&format!("/api/v1/users/{name}"), &json!({"enabled": false}))
            .await?;
    }
    Ok(Some(token))
}

/// How a service says for whom it works.
fn acting_for(column: &Column) -> String {
    let mut text = column.principal();
    if let Some(scope) = column.scope {
        let grants = scope.iter().map(|(role, place)| format!("{role}@{}", place.text()));
        text = format!("{text};{}", grants.collect::<Vec<_>>().join(","));
    }
    text
}

fn read_call(answer: &Response) -> Result<Read> {
    ensure!(answer.status().is_success(), "{answer:?}");
    let Some((status, message)) = grpc_refusal(answer) else {
        return Ok(Read {
            verdict: Verdict::Allowed,
            shown: "0".to_owned(),
        });
    };
    let verdict = match status {
        16 if message.contains(WRONG_PASSWORD) => Verdict::Allowed,
        16 => Verdict::Unknown,
        7 => Verdict::Denied,
        5 if message.contains(UNSEEN) => Verdict::Unseen,
        2 | 12 | 13 => Verdict::Broken,
        _ => Verdict::Allowed,
    };
    Ok(Read {
        verdict,
        shown: format!("{status} {message}"),
    })
}

fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Fails when a table lacks something that there is, or names what there is not.
fn check_complete(what: &str, there_are: &BTreeSet<String>, table: impl Iterator<Item = String>) -> Result<()> {
    let named: BTreeSet<String> = table.collect();
    let missing: Vec<_> = there_are.difference(&named).collect();
    let gone: Vec<_> = named.difference(there_are).collect();
    ensure!(!there_are.is_empty(), "no {what} were found");
    ensure!(
        missing.is_empty() && gone.is_empty(),
        "the table of permissions lacks the {what} {missing:#?}, and names {gone:#?}, which are not there"
    );
    Ok(())
}

/// The operations of `openapi.json`; those that are marked as open to everybody.
fn described(description: &Value) -> Result<(BTreeSet<String>, BTreeSet<String>)> {
    let (mut all, mut open) = (BTreeSet::new(), BTreeSet::new());
    let paths = description.pointer("/paths").and_then(Value::as_object);
    for (path, methods) in paths.context("the description has no paths")? {
        for (method, operation) in methods.as_object().context("a path has no methods")? {
            let route = format!("{} {path}", method.to_uppercase());
            if operation.get("security") == Some(&json!([{}])) {
                open.insert(route.clone());
            }
            all.insert(route);
        }
    }
    Ok((all, open))
}

#[test]
fn every_route_and_every_method_is_in_the_table() -> Result<()> {
    let routes = sources::inference_routes()?;
    let table = INFERENCE.iter().map(|operation| operation.route.to_owned());
    check_complete("inference routes", &routes, table)?;
    let routes = sources::mlflow_routes()?;
    let table = MLFLOW.iter().map(|operation| operation.route.to_owned());
    check_complete("routes of MLflow's protocol", &routes, table)?;
    for (folder, table) in [("inference", contracts::INFERENCE), ("modelyard", contracts::INTERNAL)] {
        let mut found = BTreeSet::new();
        sources::methods(&repository().join("proto").join(folder), &mut found)?;
        let table = table.iter().map(|(method, ..)| (*method).to_owned());
        check_complete("methods", &found, table)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_may_do_what_the_table_says_and_no_more() -> Result<()> {
    let mut matrix = Matrix::start(Topology::AllInOne).await?;
    let front = matrix.at.url.clone();
    let description: Value = matrix
        .at
        .http
        .get(format!("{front}/api/v1/openapi.json"))
        .send()
        .await?
        .json()
        .await?;
    let (all, open) = described(&description)?;
    let routes = API.iter().map(|operation| operation.route.to_owned());
    check_complete("operations", &all, routes)?;
    let public = API
        .iter()
        .filter(|operation| matches!(operation.need, roles::Need::Public));
    check_complete(
        "operations without sign-in",
        &open,
        public.map(|operation| operation.route.to_owned()),
    )?;

    for row in contracts::INFERENCE {
        matrix.check_inference_call(row).await?;
    }
    let internal = matrix.at.deployment.internal_urls().first().map(ToString::to_string);
    let internal = internal.context("there is no internal listener")?;
    for row in contracts::INTERNAL {
        matrix.check_contract(&internal, row).await?;
    }
    for operation in INFERENCE {
        matrix.check_operation((&front, ""), operation).await?;
        if !matches!(operation.need, roles::Need::Public) {
            matrix
                .check_operation((&front, "/projects/{project}"), operation)
                .await?;
        }
    }
    for operation in MLFLOW {
        matrix.check_operation((&front, ""), operation).await?;
    }
    // Last: it ends with what ends the tokens.
    for operation in API {
        matrix.check_operation((&front, ""), operation).await?;
    }
    matrix.finish().await
}

/// One operation of each role, asked at each process.
const SAMPLE: [&str; 3] = [
    "GET /api/v1/projects/{project}/models",
    "PUT /api/v1/projects/{project}/triggers/{name}",
    "PUT /api/v1/projects/{project}/monitors/{name}",
];

#[tokio::test(flavor = "multi_thread")]
async fn every_process_decides_alike_and_forgets_a_revoked_token_soon() -> Result<()> {
    let mut matrix = Matrix::start(Topology::Split).await?;
    let fronts = matrix.at.public_urls()?;
    ensure!(fronts.len() == matrix.at.deployment.len(), "{fronts:?}");
    matrix.at.make_service_account("courier", &[]).await?;
    matrix
        .at
        .bind("courier", "service-account:courier", "viewer", "*")
        .await?;
    let (first, second) = (
        matrix.at.make_token("courier", None).await?,
        matrix.at.make_token("courier", None).await?,
    );
    // What was made last counts everywhere: so does everything before.
    let front = matrix.at.url.clone();
    for token in [&first, &second] {
        matrix.at.wait_status(&front, &token.text, 200).await;
    }
    for front in &fronts {
        for operation in API.iter().filter(|operation| SAMPLE.contains(&operation.route)) {
            matrix.check_operation((front, ""), operation).await?;
        }
        for operation in INFERENCE.iter().filter(|operation| operation.route.ends_with("/infer")) {
            matrix
                .check_operation((front, "/projects/{project}"), operation)
                .await?;
        }
    }
    for row in contracts::INFERENCE {
        matrix.check_inference_call(row).await?;
    }
    let listeners: Vec<String> = matrix
        .at
        .deployment
        .internal_urls()
        .iter()
        .map(ToString::to_string)
        .collect();
    for (listener, service) in listeners.iter().zip(["registry", "orchestrator", "monitoring"]) {
        let prefix = format!("modelyard.{service}.");
        for row in contracts::INTERNAL.iter().filter(|row| row.0.starts_with(&prefix)) {
            matrix.check_contract(listener, row).await?;
        }
    }
    // The whole table at the process that has none of the other roles.
    let signs_out = |operation: &&Operation| operation.route.ends_with("sign-out");
    let all = MLFLOW.iter().chain(INFERENCE).chain(API);
    for operation in all.filter(|operation| !signs_out(operation)) {
        matrix.check_operation((&front, ""), operation).await?;
    }

    let revoked = Instant::now();
    let answer = matrix
        .at
        .as_admin(Method::DELETE, &format!("/api/v1/tokens/{}", first.id))
        .send()
        .await?;
    ensure!(answer.status().as_u16() == 204, "{}", answer.text().await?);
    matrix.at.wait_status(&front, &first.text, 401).await;
    ensure!(revoked.elapsed() < SOON, "it took {:?}", revoked.elapsed());
    for front in &fronts {
        let statuses = matrix.at.statuses(front, &first.text).await?;
        ensure!(statuses.iter().all(|status| *status == 401), "{front}: {statuses:?}");
        let statuses = matrix.at.statuses(front, &second.text).await?;
        ensure!(statuses.iter().all(|status| *status == 200), "{front}: {statuses:?}");
    }
    let made = Instant::now();
    let third = matrix.at.make_token("courier", None).await?;
    matrix.at.wait_status(&front, &third.text, 200).await;
    ensure!(made.elapsed() < SOON, "it took {:?}", made.elapsed());
    matrix.finish().await
}
