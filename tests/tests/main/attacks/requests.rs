//! Ids, paths, headers, origins and bodies.

use std::{fmt::Write as _, io::Write as _, ops::RangeInclusive};

use anyhow::{Context, Result};
use flate2::{Compression, write::GzEncoder};
use reqwest::{Client, Method, RequestBuilder, header};
use serde_json::{Value, json};

use super::{
    ATTACKER, MINE, NOWHERE, Open, Scene, THEIRS,
    raw::{self, Findings},
};
use crate::permissions::installation::{ALL_ROLES, PATIENCE, accepted, call, grpc_refusal, text};

/// Names of headers by which services say who they are, and spellings of them.
const IDENTITY: [(&str, &str); 8] = [
    ("modelyard-service", "gateway"),
    ("modelyard-acting-for", "user:admin"),
    ("Modelyard-Service", "registry"),
    ("MODELYARD-ACTING-FOR", "user:admin"),
    ("modelyard_service", "gateway"),
    ("modelyard_acting_for", "user:admin"),
    ("modelyard-service-", "gateway"),
    ("modelyard-acting-for-", "user:admin"),
];
/// What a bomb unpacks to, and what the server may need for refusing some of them.
const BOMB_BYTES: usize = 300 << 20;
const MEMORY_LIMIT_BYTES: u64 = 320 << 20;
const NESTED: usize = 200_000;
/// More than the largest JSON body.
const JSON_BYTES: usize = 9 << 20;

async fn told(request: RequestBuilder) -> Result<(u16, String)> {
    let answer = request.send().await?;
    Ok((answer.status().as_u16(), answer.text().await?))
}

/// Asks with each of two words, and notes where the answers differ by more than the word, or say yes.
async fn compare(
    scene: &mut Scene,
    what: &str,
    (real, made_up): (&str, &str),
    request: impl Fn(&Scene, &str) -> RequestBuilder,
) -> Result<()> {
    let (status, body) = told(request(scene, real)).await?;
    let (other_status, other_body) = told(request(scene, made_up)).await?;
    scene.findings.check(
        status == other_status && body.replace(real, "ID") == other_body.replace(made_up, "ID"),
        format!("{what}: {status} {body} BUT {other_status} {other_body}"),
    );
    scene
        .findings
        .check((400..500).contains(&status), format!("{what}: {status} {body}"));
    Ok(())
}

/// An id of the same form.
fn another(id: &str) -> String {
    id.chars()
        .rev()
        .enumerate()
        .map(|(index, c)| match c {
            '0' if index < 8 => '1',
            c if index < 8 && c.is_ascii_hexdigit() => '0',
            c => c,
        })
        .collect::<Vec<_>>()
        .into_iter()
        .rev()
        .collect()
}

pub async fn ids_of_others_are_like_ids_that_never_were(scene: &mut Scene) -> Result<()> {
    let theirs = |path: &str| format!("/api/v1/projects/{THEIRS}{path}");
    let stored = accepted(
        scene
            .at
            .as_admin(Method::PUT, &theirs("/artifacts"))
            .body("their content"),
    )
    .await?;
    let digest = text(&stored, "/digest")?.to_owned();
    let step = json!({"steps": [{"name": "answer", "op": "value", "with": {"value": 42}}]});
    scene.at.put(&theirs("/pipelines/answer"), &step).await?;
    let run = scene.at.as_admin(Method::POST, &theirs("/pipelines/answer/runs"));
    let run = accepted(run.json(&json!({}))).await?;
    let run = text(&run, "/id")?.to_owned();
    let routes = json!({"routes": [{"model": "nothing@champion"}]});
    scene.at.put(&theirs("/endpoints/hidden"), &routes).await?;
    let tokens = scene.at.get("/api/v1/tokens?owner=user:admin").await?;
    let token = text(&tokens, "/items/0/id")?.to_owned();

    // In a project of one's own: what others have is not there.
    let mine = |path: &str| format!("/api/v1/projects/{MINE}{path}");
    let absent_digest = another(&digest);
    let digests = (digest.as_str(), absent_digest.as_str());
    compare(scene, "an artifact", digests, |scene, id| {
        scene.attack(Method::GET, &mine(&format!("/artifacts/{id}")))
    })
    .await?;
    compare(scene, "a model of their artifact", digests, |scene, id| {
        let request = scene.attack(Method::POST, &mine("/models/copy/versions"));
        request.json(&json!({"artifact_digest": id}))
    })
    .await?;
    compare(scene, "a dataset of their artifact", digests, |scene, id| {
        let request = scene.attack(Method::POST, &mine("/datasets/copy/versions"));
        request.json(&json!({"files": [{"name": "a.csv", "digest": id}]}))
    })
    .await?;
    let other_run = another(&run);
    let runs = (run.as_str(), other_run.as_str());
    for path in ["/pipeline-runs", "/runs", "/predictions", "/alerts"] {
        compare(scene, path, runs, |scene, id| {
            scene.attack(Method::GET, &mine(&format!("{path}/{id}")))
        })
        .await?;
    }
    compare(scene, "cancelling a run", runs, |scene, id| {
        scene.attack(Method::POST, &mine(&format!("/pipeline-runs/{id}/cancel")))
    })
    .await?;
    compare(scene, "a secret", ("key", "yek"), |scene, id| {
        scene.attack(Method::DELETE, &mine(&format!("/secrets/{id}")))
    })
    .await?;
    compare(scene, "an endpoint", ("hidden", "nidden"), |scene, id| {
        scene.attack(Method::GET, &format!("/projects/{MINE}/v2/models/{id}"))
    })
    .await?;
    let other_token = another(&token);
    compare(scene, "revoking a token", (&token, &other_token), |scene, id| {
        scene.attack(Method::DELETE, &format!("/api/v1/tokens/{id}"))
    })
    .await?;

    // In their project: nothing is told, not even that it is there.
    for (method, path) in [
        ("GET", format!("/artifacts/{digest}")),
        ("GET", format!("/pipeline-runs/{run}")),
        ("POST", format!("/pipeline-runs/{run}/cancel")),
        ("GET", "/endpoints/hidden".to_owned()),
        ("GET", "/secrets".to_owned()),
        ("DELETE", "/secrets/key".to_owned()),
        ("GET", String::new()),
    ] {
        let method: Method = method.parse()?;
        compare(
            scene,
            &format!("{method} {path}"),
            (THEIRS, NOWHERE),
            |scene, project| scene.attack(method.clone(), &format!("/api/v1/projects/{project}{path}")),
        )
        .await?;
    }
    compare(scene, "their model", (THEIRS, NOWHERE), |scene, project| {
        scene.attack(Method::GET, &format!("/projects/{project}/v2/models/hidden"))
    })
    .await?;
    compare(scene, "an audit filter", (THEIRS, NOWHERE), |scene, project| {
        scene.attack(Method::GET, &format!("/api/v1/audit/events?project={project}"))
    })
    .await?;
    // Asking about oneself is allowed, and tells nothing about projects.
    let why = |project: &str| {
        let question = json!({
            "principal": format!("user:{ATTACKER}"), "action": "model.read", "resource": format!("model:{project}/any"),
        });
        scene.attack(Method::POST, "/api/v1/auth/explain").json(&question)
    };
    let (seen, absent) = (told(why(THEIRS)).await?, told(why(NOWHERE)).await?);
    scene.findings.check(
        seen.1.replace(THEIRS, "ID") == absent.1.replace(NOWHERE, "ID"),
        format!("explain tells which projects exist: {seen:?} BUT {absent:?}"),
    );
    let events = told(scene.attack(Method::GET, "/api/v1/audit/events?limit=1000")).await?;
    scene
        .findings
        .check(!events.1.contains(THEIRS), "the events of others are listed");
    Ok(())
}

pub async fn paths_stay_where_they_belong(scene: &mut Scene) -> Result<()> {
    let authorization = format!("Bearer {}", scene.at.admin);
    let headers = [("Host", "127.0.0.1"), ("Authorization", authorization.as_str())];
    let json = r#"{"value": "any", "description": "", "steps": [], "files": [], "routes": [{"model": "a@b"}]}"#;
    for name in [
        "..",
        "../../etc/passwd",
        "%2e%2e",
        "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "..%2fpasswd",
        "%2e%2e%5cpasswd",
        "%00",
        "a%00b",
        "%c0%ae%c0%ae%2fpasswd",
        "%252e%252e%252fpasswd",
        "%2fetc%2fpasswd",
        "a%0d%0aX:1",
    ] {
        let project = format!("/api/v1/projects/{MINE}");
        for start in [
            format!("GET {project}/artifacts/{name}"),
            format!("GET {project}/artifacts/sha256:{name}"),
            format!("GET {project}/datasets/{name}/versions"),
            format!("POST {project}/datasets/{name}/versions"),
            format!("PUT {project}/endpoints/{name}"),
            format!("PUT {project}/secrets/{name}"),
            format!("PUT {project}/pipelines/{name}"),
            format!("GET {project}/predictions/any?endpoint={name}"),
            format!("PUT /api/v1/projects/{name}"),
            format!("PUT /api/v1/projects/{name}/artifacts"),
            format!("GET /projects/{name}/v2/models/any"),
            format!("POST /endpoints/{name}/invocations"),
        ] {
            let body = if start.starts_with("GET") { "" } else { json };
            let (status, answer) = raw::send(&scene.at.url, &raw::request(&start, &headers, body)).await?;
            // Lists of what cannot have this name may be empty.
            let is_refused = (400..500).contains(&status);
            let is_empty = status == 200 && start.starts_with("GET") && answer.contains("\"items\":[]");
            scene
                .findings
                .check(is_refused || is_empty, format!("{start}: {answer}"));
        }
    }
    let digest = format!("sha256:{}", "0".repeat(64));
    for name in ["../../x.csv", "/etc/passwd", "a/../../b.csv", "a\u{0}.csv", "..\\x.csv"] {
        let request = scene
            .attack(
                Method::POST,
                &format!("/api/v1/projects/{MINE}/datasets/files/versions"),
            )
            .json(&json!({"files": [{"name": name, "digest": digest}]}));
        scene.expect(&format!("a file {name:?}"), request, &[400]).await?;
    }
    Ok(())
}

pub async fn nobody_is_a_service_by_saying_so(scene: &mut Scene) -> Result<()> {
    for (name, value) in IDENTITY {
        let what = format!("{name}: {value} at {}", scene.at.url);
        for path in ["/api/v1/auth/me", "/v2/models"] {
            let request = scene.at.request(Method::GET, path).header(name, value);
            scene.expect(&what, request, &[401]).await?;
        }
        let me = accepted(scene.attack(Method::GET, "/api/v1/auth/me").header(name, value)).await?;
        scene.findings.check(
            me.get("principal") == Some(&json!(format!("user:{ATTACKER}"))),
            format!("{what}: {me}"),
        );
        let others = format!("/api/v1/projects/{THEIRS}/pipelines");
        scene
            .expect(&what, scene.attack(Method::GET, &others).header(name, value), &[404])
            .await?;
        let service = |method: &str| {
            let name = name.to_ascii_lowercase();
            call(&scene.at.http2, &scene.at.url, method, &[])
                .header(name, value)
                .header("modelyard-service", "registry")
        };
        let probe = service("inference.GRPCInferenceService/ModelMetadata").send().await?;
        let refusal = grpc_refusal(&probe);
        scene
            .findings
            .check(matches!(refusal, Some((16, _))), format!("{what}: {refusal:?}"));
        for method in [
            "modelyard.registry.v1.SecretService/OpenSecret",
            "modelyard.registry.v1.AuditService/AppendEvents",
            "modelyard.monitoring.v1.SegmentService/CommitSegment",
            "modelyard.orchestrator.v1.TriggerService/FireTrigger",
        ] {
            for request in [service(method), service(method).bearer_auth(&scene.at.admin)] {
                let answer = request.send().await?;
                let refusal = grpc_refusal(&answer);
                scene.findings.check(
                    matches!(refusal, Some((12 | 16, _))),
                    format!("{what}: {method} is answered: {refusal:?} {:?}", answer.status()),
                );
            }
        }
    }
    Ok(())
}

pub async fn other_origins_are_refused(open: &mut Open) -> Result<()> {
    let url = open.deployment.url().to_owned();
    let host = url.trim_start_matches("http://").to_owned();
    let internal = open.deployment.internal_urls().first().map(ToString::to_string);
    let internal = internal.context("no internal listener")?;
    let port = host.split(':').nth(1).unwrap_or_default().to_owned();
    let rebound = format!("evil.example:{port}");
    let disguised = format!("127.0.0.1.evil.example:{port}");
    let body = r#"{"description": "of another page"}"#;
    for (host, origin, is_refused) in [
        (rebound.as_str(), None, true),
        (rebound.as_str(), Some(format!("http://{rebound}")), true),
        (disguised.as_str(), None, true),
        ("", None, true),
        (host.as_str(), Some("https://evil.example".to_owned()), true),
        (host.as_str(), Some("null".to_owned()), true),
        (host.as_str(), Some(format!("http://{disguised}")), true),
        (host.as_str(), Some(format!("http://{host}")), false),
        (host.as_str(), None, false),
    ] {
        let mut headers = vec![("Host", host)];
        if let Some(origin) = &origin {
            headers.push(("Origin", origin));
        }
        for (start, body) in [
            ("PUT /api/v1/projects/default", body),
            ("GET /api/v1/projects", ""),
            ("GET /v2/models", ""),
        ] {
            let (status, answer) = raw::send(&url, &raw::request(start, &headers, body)).await?;
            let is_right = if is_refused { status == 403 } else { status == 200 };
            open.findings
                .check(is_right, format!("{start} with {headers:?}: {answer}"));
        }
        // After rebinding its name, a page writes the headers of a service as it likes.
        if is_refused {
            let mut request = "POST /modelyard.registry.v1.AuditService/AppendEvents HTTP/1.1\r\nConnection: close\r\n\
                 Content-Type: application/grpc\r\nTE: trailers\r\nmodelyard-service: gateway\r\nContent-Length: 5\r\n"
                .to_owned();
            for (name, value) in &headers {
                let _ = write!(request, "{name}: {value}\r\n");
            }
            request.push_str("\r\n\0\0\0\0\0");
            let (status, answer) = raw::send(&internal, request.as_bytes()).await?;
            let is_answered =
                status == 200 && !answer.contains("grpc-status: 7") && !answer.contains("grpc-status: 16");
            open.findings.check(
                !is_answered,
                format!("the internal listener answers a page with {headers:?}: {answer:?}"),
            );
            for start in ["GET /metrics", "GET /readyz"] {
                let (status, answer) = raw::send(&internal, &raw::request(start, &headers, "")).await?;
                open.findings
                    .check(status == 403, format!("{start}, internal, with {headers:?}: {answer}"));
            }
        }
    }
    Ok(())
}

/// Zeros, compressed as they are made.
fn bomb() -> Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    let zeros = vec![0; 1 << 20];
    for _ in 0..BOMB_BYTES / zeros.len() {
        encoder.write_all(&zeros)?;
    }
    Ok(encoder.finish()?)
}

async fn refused(
    findings: &mut Findings,
    statuses: RangeInclusive<u16>,
    what: &str,
    request: RequestBuilder,
) -> Result<()> {
    match request.send().await {
        Ok(answer) => {
            let status = answer.status().as_u16();
            let body = answer.text().await?;
            findings.check(statuses.contains(&status), format!("{what}: {status} {body}"));
        }
        // The server may close before it has read all.
        Err(error) => findings.check(error.is_request() || error.is_body(), format!("{what}: {error:?}")),
    }
    Ok(())
}

pub async fn large_bodies_are_refused(open: &mut Open) -> Result<()> {
    const INFERENCE: [&str; 3] = [
        "/v2/models/any/infer",
        "/v1/models/any:predict",
        "/endpoints/any/invocations",
    ];
    let url = open.deployment.url().to_owned();
    let data_dir = open.deployment.folder().join(ALL_ROLES);
    let project = "/api/v1/projects/default";
    let http: Client = open.http.clone();
    let json = |method: Method, path: &str, body: Vec<u8>| {
        http.request(method, format!("{url}{path}"))
            .header(header::CONTENT_TYPE, "application/json")
            .timeout(PATIENCE)
            .body(body)
    };
    let before = raw::memory(&data_dir, "VmRSS")?;
    let bomb = bomb()?;
    for path in INFERENCE {
        let request = json(Method::POST, path, bomb.clone()).header(header::CONTENT_ENCODING, "gzip");
        refused(&mut open.findings, 400..=499, &format!("a bomb at {path}"), request).await?;
    }
    let grown = raw::memory(&data_dir, "VmHWM")?.saturating_sub(before);
    open.findings.check(
        grown < MEMORY_LIMIT_BYTES,
        format!("three bombs took {} MiB", grown >> 20),
    );
    let deep = "[".repeat(NESTED).into_bytes();
    let objects = r#"{"a":"#.repeat(NESTED).into_bytes();
    let named = |path: &str| format!("{project}{path}");
    let writes = [
        (Method::PUT, named("/secrets/any")),
        (Method::PUT, named("/pipelines/any")),
        (Method::PUT, named("/triggers/any")),
        (Method::PUT, named("/monitors/any")),
        (Method::PUT, named("/endpoints/any")),
        (Method::POST, named("/labels")),
        (Method::POST, named("/datasets/any/versions")),
        (Method::POST, "/api/v1/auth/explain".to_owned()),
    ];
    let inference = INFERENCE.map(|path| (Method::POST, path.to_owned()));
    for (method, path) in writes.iter().chain(&inference) {
        for (what, body) in [("nested lists", &deep), ("nested objects", &objects)] {
            let request = json(method.clone(), path, body.clone());
            refused(
                &mut open.findings,
                400..=499,
                &format!("{what} at {method} {path}"),
                request,
            )
            .await?;
        }
    }
    let long: Value = json!({"value": "x".repeat(JSON_BYTES)});
    let long = serde_json::to_vec(&long)?;
    for (method, path) in writes.iter().filter(|(_, path)| !path.ends_with("/labels")) {
        let request = json(method.clone(), path, long.clone());
        refused(
            &mut open.findings,
            413..=413,
            &format!("a long body at {method} {path}"),
            request,
        )
        .await?;
    }
    Ok(())
}
