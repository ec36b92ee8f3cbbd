//! Signing in at a provider and exchanging tokens, over HTTP and down to the tables.

#[path = "../../src/openid/tests/forge.rs"]
#[expect(dead_code, reason = "the module's own tests forge more")]
mod forge;
mod provider;

use std::collections::{BTreeMap, HashMap};

use axum::body::Body;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use modelyard_common::{Timestamp, clock::Clock as _};
use modelyard_db::Database;
use modelyard_registry::{Config, Provider, Rule, SignIn, Workload};
use modelyard_testkit::postgres::{TestDatabase, test_databases};
use serde_json::{Value, json};
use tower::ServiceExt as _;
use url::Url;

use self::{
    forge::{Key, forgeries},
    provider::FakeProvider,
};
use crate::support::{TestRegistry, start_with};

const AUDIENCE: &str = "http://127.0.0.1:7070";
const LOCAL_PASSWORD_HASH: &str = "none of argon2";

fn profile(registry: &TestRegistry, subject: &str, name: &str, groups: &[&str]) -> Value {
    let now = registry.clock.now().as_millis() / 1000;
    json!({"sub": subject, "preferred_username": name, "name": format!("The user {name}"), "groups": groups,
           "iat": now, "exp": now + 300})
}

fn settings(provider: &FakeProvider) -> SignIn {
    let issuer = provider.known.issuer.clone();
    let roles = vec!["contributor@default".parse().unwrap()];
    let rule = |namespace: &str, service_account: &str| Rule {
        claims: [("namespace".to_owned(), namespace.to_owned())].into(),
        service_account: service_account.to_owned(),
        scope: Some(vec!["deployer@default".parse().unwrap()]),
    };
    SignIn {
        public_url: Some(AUDIENCE.to_owned()),
        providers: vec![Provider {
            name: "test".to_owned(),
            label: Some("The test's provider".to_owned()),
            issuer: issuer.clone(),
            client_id: "modelyard".to_owned(),
            group_roles: BTreeMap::from([("ml-team".to_owned(), roles)]),
            ..Provider::default()
        }],
        workloads: vec![Workload {
            name: "cluster".to_owned(),
            issuer,
            rules: vec![rule("prod", "trainer"), rule("dev", "nobody"), rule("old", "disabled")],
            ..Workload::default()
        }],
    }
}

async fn send(registry: &TestRegistry, request: Request<Body>) -> Response<Body> {
    registry.router.clone().oneshot(request).await.unwrap()
}

async fn visit(registry: &TestRegistry, path: &str, headers: &[(&str, &str)]) -> Response<Body> {
    let mut request = Request::get(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    send(registry, request.body(Body::empty()).unwrap()).await
}

async fn text(response: Response<Body>) -> String {
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

async fn problem(response: Response<Body>) -> (StatusCode, String) {
    let status = response.status();
    let problem: Value = serde_json::from_str(&text(response).await).unwrap();
    (status, problem["reason"].as_str().unwrap().to_owned())
}

/// The value and the attributes of a cookie that an answer sets.
fn cookie(headers: &HeaderMap, name: &str) -> Option<(String, String)> {
    let values = headers
        .get_all(header::SET_COOKIE)
        .iter()
        .map(|value| value.to_str().unwrap());
    let mut pairs = values.filter_map(|value| value.split_once('='));
    let (_, rest) = pairs.find(|(found, _)| *found == name)?;
    let (value, attributes) = rest.split_once("; ").unwrap();
    Some((value.to_owned(), attributes.to_owned()))
}

/// The way of a browser up to the provider and back; the answer to coming back.
async fn sign_in(registry: &TestRegistry, provider: &FakeProvider, accept: &str) -> Response<Body> {
    let path = "/api/v1/auth/openid/test/sign-in?return_to=%2Fmodels%3Ftab%3D1";
    let begun = visit(registry, path, &[]).await;
    assert_eq!(begun.status(), StatusCode::SEE_OTHER);
    let (pending, attributes) = cookie(begun.headers(), "modelyard_sign_in").unwrap();
    assert_eq!(
        attributes,
        "Path=/api/v1/auth/openid; Max-Age=600; HttpOnly; SameSite=Lax"
    );
    let location = Url::parse(begun.headers()[header::LOCATION].to_str().unwrap()).unwrap();
    assert_eq!(location.port(), Some(provider.address.port()));
    let query: HashMap<String, String> = location.query_pairs().into_owned().collect();
    let code = format!("code-{}", query["nonce"]);
    provider
        .known
        .nonces
        .lock()
        .insert(code.clone(), query["nonce"].clone());
    let back = format!("/api/v1/auth/openid/test/callback?code={code}&state={}", query["state"]);
    let cookies = format!("other=1; modelyard_sign_in={pending}");
    visit(
        registry,
        &back,
        &[("cookie", &cookies), ("accept", accept), ("x-request-id", "r-1")],
    )
    .await
}

pub async fn database(place: &TestDatabase, registry: &TestRegistry) -> Database {
    let config = modelyard_db::DatabaseConfig {
        url: place.url.clone().map(modelyard_common::config::Secret::new),
        ..modelyard_db::DatabaseConfig::default()
    };
    Database::open(&config, &registry.data_dir, "registry").await.unwrap()
}

/// The texts of one column.
pub async fn column(database: &Database, query: &'static str) -> Vec<String> {
    match database {
        Database::Sqlite(pools) => sqlx::query_scalar(query)
            .fetch_all(modelyard_db::Pools::reader(pools))
            .await
            .unwrap(),
        Database::Postgres(pools) => sqlx::query_scalar(query)
            .fetch_all(modelyard_db::Pools::reader(pools))
            .await
            .unwrap(),
    }
}

/// An identity that an admin made.
async fn insert(database: &Database, kind: &str, name: &str, enabled: i64, now: Timestamp) {
    const INSERT: &str =
        "INSERT INTO identity (kind, name, display_name, enabled, password_hash, password_revision, \"groups\",
                                                created_at, updated_at)
                          VALUES ($1, $2, '', $3, $4, 1, '[]', $5, $5)";
    macro_rules! run {
        ($pools:expr) => {{
            let mut tx = modelyard_db::Pools::begin($pools).await.unwrap();
            let query = sqlx::query(INSERT)
                .bind(kind)
                .bind(name)
                .bind(enabled)
                .bind(LOCAL_PASSWORD_HASH);
            query.bind(now.as_micros()).execute(&mut *tx).await.unwrap();
            tx.commit().await.unwrap();
        }};
    }
    match database {
        Database::Sqlite(pools) => run!(pools),
        Database::Postgres(pools) => run!(pools),
    }
}

const USERS: &str =
    "SELECT name || ' ' || display_name || ' ' || \"groups\" || ' ' || COALESCE(subject, '') FROM identity
                     WHERE kind = 'user' ORDER BY name";
const EVENTS: &str = "SELECT actor || ' ' || action || ' ' || resource || ' ' || outcome || ' ' || COALESCE(reason, '')
                      FROM audit_event WHERE action IN ('sign-in', 'token.exchange') ORDER BY seq";

#[tokio::test]
async fn whoever_signs_in_is_a_user_with_a_session() {
    for place in test_databases().await.unwrap() {
        let provider = FakeProvider::start().await;
        let registry = start_with(&place, |config| config.sign_in = settings(&provider)).await;
        let database = database(&place, &registry).await;
        let shown = text(visit(&registry, "/api/v1/auth/providers", &[]).await).await;
        let expected = json!({"providers": [{"name": "test", "label": "The test's provider",
                                             "sign_in_path": "/api/v1/auth/openid/test/sign-in"}]});
        assert_eq!(serde_json::from_str::<Value>(&shown).unwrap(), expected);

        provider.say(profile(&registry, "1", "alice", &["ml-team"]));
        let back = sign_in(&registry, &provider, "*/*").await;
        assert_eq!(back.status(), StatusCode::SEE_OTHER);
        assert_eq!(back.headers()[header::LOCATION], "/models?tab=1");
        assert_eq!(back.headers()[header::CACHE_CONTROL], "no-store");
        let (over, attributes) = cookie(back.headers(), "modelyard_sign_in").unwrap();
        assert!(over.is_empty() && attributes.contains("Max-Age=0"), "{attributes}");
        let (session, attributes) = cookie(back.headers(), "modelyard_session").unwrap();
        assert_eq!(attributes, "Path=/; Max-Age=43200; HttpOnly; SameSite=Lax");
        let hash = modelyard_auth::token::Token::parse(&session)
            .unwrap()
            .hash()
            .to_string();
        let sessions = column(
            &database,
            "SELECT hash FROM access_token WHERE kind = 'session' AND owner = 'alice'",
        )
        .await;
        assert_eq!(sessions, [hash]);
        assert_eq!(column(&database, USERS).await, ["alice The user alice [\"ml-team\"] 1"]);

        // The name at the provider and the groups change; it is the same user.
        provider.say(profile(&registry, "1", "alice.liddell", &[]));
        assert_eq!(
            sign_in(&registry, &provider, "*/*").await.status(),
            StatusCode::SEE_OTHER
        );
        assert_eq!(column(&database, USERS).await, ["alice The user alice.liddell [] 1"]);
        let success = "user:alice sign-in alice success ";
        assert_eq!(column(&database, EVENTS).await, [success, success]);
        let details = column(
            &database,
            "SELECT details FROM audit_event WHERE action = 'sign-in' ORDER BY seq",
        )
        .await;
        let details: Value = serde_json::from_str(&details[0]).unwrap();
        assert_eq!(
            (&details["provider"], &details["subject"]),
            (&json!("test"), &json!("1"))
        );
        registry.stop().await;
    }
}

#[tokio::test]
async fn nobody_takes_over_a_name_or_comes_in_who_may_not() {
    for place in test_databases().await.unwrap() {
        let provider = FakeProvider::start().await;
        let registry = start_with(&place, |config| config.sign_in = settings(&provider)).await;
        let database = database(&place, &registry).await;
        insert(&database, "user", "alice", 1, registry.clock.now()).await;
        provider.say(profile(&registry, "1", "alice", &[]));
        let taken = (StatusCode::FORBIDDEN, "USER_NAME_TAKEN".to_owned());
        let refused = sign_in(&registry, &provider, "application/json").await;
        assert_eq!(cookie(refused.headers(), "modelyard_session"), None);
        assert_eq!(problem(refused).await, taken);
        // Another subject with the name of somebody who signed in before.
        provider.say(profile(&registry, "2", "bob", &[]));
        assert_eq!(
            sign_in(&registry, &provider, "*/*").await.status(),
            StatusCode::SEE_OTHER
        );
        provider.say(profile(&registry, "3", "bob", &[]));
        assert_eq!(problem(sign_in(&registry, &provider, "*/*").await).await, taken);
        assert_eq!(column(&database, USERS).await, ["alice  [] ", "bob The user bob [] 2"]);
        // A browser sees a page, in which nothing of others can run.
        provider.say(json!({"sub": "4", "preferred_username": "<script>alert(1)</script>",
                            "iat": 0, "exp": registry.clock.now().as_millis() / 1000 + 300}));
        let page = sign_in(&registry, &provider, "text/html,*/*;q=0.8").await;
        assert_eq!(page.status(), StatusCode::FORBIDDEN);
        assert_eq!(page.headers()[header::CONTENT_TYPE], "text/html; charset=utf-8");
        assert!(
            page.headers()[header::CONTENT_SECURITY_POLICY]
                .to_str()
                .unwrap()
                .contains("default-src 'none'")
        );
        let page = text(page).await;
        assert!(!page.contains("<script>") && page.contains("&lt;script&gt;"), "{page}");
        // Without a cookie, and elsewhere.
        let back = visit(&registry, "/api/v1/auth/openid/test/callback?code=x&state=y", &[]).await;
        assert_eq!(
            problem(back).await,
            (StatusCode::BAD_REQUEST, "SIGN_IN_NOT_BEGUN".to_owned())
        );
        for path in [
            "//evil.example",
            "https%3A%2F%2Fevil.example",
            "%2F%2Fevil.example",
            "%5C%5Cevil.example",
        ] {
            let begun = visit(
                &registry,
                &format!("/api/v1/auth/openid/test/sign-in?return_to={path}"),
                &[],
            )
            .await;
            assert_eq!(
                problem(begun).await,
                (StatusCode::BAD_REQUEST, "INVALID_RETURN_PATH".to_owned()),
                "{path}"
            );
        }
        let begun = visit(&registry, "/api/v1/auth/openid/nobody/sign-in", &[]).await;
        assert_eq!(
            problem(begun).await,
            (StatusCode::NOT_FOUND, "UNKNOWN_PROVIDER".to_owned())
        );
        let events = column(&database, EVENTS).await;
        assert_eq!(
            events,
            [
                "anonymous sign-in  failed USER_NAME_TAKEN",
                "user:bob sign-in bob success ",
                "anonymous sign-in  failed USER_NAME_TAKEN",
                "anonymous sign-in  failed NO_USER_NAME",
                "anonymous sign-in  failed SIGN_IN_NOT_BEGUN",
            ]
        );
        registry.stop().await;
        // Only those who came in before.
        let closed = |config: &mut Config| {
            config.sign_in = settings(&provider);
            config.sign_in.providers[0].create_users = false;
        };
        let registry = start_with(&place, closed).await;
        provider.say(profile(&registry, "5", "carol", &[]));
        let refused = problem(sign_in(&registry, &provider, "*/*").await).await;
        assert_eq!(refused, (StatusCode::FORBIDDEN, "NO_USER".to_owned()));
        provider.say(profile(&registry, "2", "bob", &[]));
        assert_eq!(
            sign_in(&registry, &provider, "*/*").await.status(),
            StatusCode::SEE_OTHER
        );
        registry.stop().await;
    }
}

/// The role bindings, each as subject, role and place.
async fn bindings(database: &Database) -> Vec<String> {
    let specs = column(database, "SELECT spec FROM access_resource WHERE kind = 'role-binding'").await;
    let text = |spec: &String| {
        let spec: Value = serde_json::from_str(spec).unwrap();
        let part = |key: &str| spec[key].as_str().unwrap().to_owned();
        format!("{} {} {}", part("subject"), part("role"), part("place"))
    };
    let mut bindings: Vec<String> = specs.iter().map(text).collect();
    bindings.sort_unstable();
    bindings
}

#[tokio::test]
async fn groups_have_the_roles_of_the_configuration() {
    for place in test_databases().await.unwrap() {
        let provider = FakeProvider::start().await;
        let more = |config: &mut Config| {
            config.sign_in = settings(&provider);
            let roles = vec!["contributor@default".parse().unwrap(), "viewer@*".parse().unwrap()];
            config.sign_in.providers[0].group_roles = BTreeMap::from([("ml-team".to_owned(), roles)]);
        };
        let registry = start_with(&place, more).await;
        let database = database(&place, &registry).await;
        let both = ["group:ml-team contributor default", "group:ml-team viewer *"];
        assert_eq!(bindings(&database).await, both);
        registry.stop().await;
        for (settings, left) in [(settings(&provider), &both[..1]), (SignIn::default(), &[])] {
            // The second start finds nothing to change.
            for _ in 0..2 {
                let registry = start_with(&place, |config| config.sign_in = settings.clone()).await;
                assert_eq!(bindings(&database).await, left);
                registry.stop().await;
            }
        }
        let events = "SELECT details FROM audit_event WHERE resource = 'the configuration' ORDER BY seq";
        let changes: Vec<Value> = column(&database, events)
            .await
            .iter()
            .map(|text| serde_json::from_str(text).unwrap())
            .collect();
        let change = |added: u32, removed: u32| json!({"added": added, "removed": removed});
        assert_eq!(changes, [change(2, 0), change(0, 1), change(0, 1)]);
    }
}

/// The form of an exchange.
async fn exchange(registry: &TestRegistry, form: &[(&str, &str)]) -> (StatusCode, Value) {
    let body = url::form_urlencoded::Serializer::new(String::new())
        .extend_pairs(form)
        .finish();
    let request = Request::post("/api/v1/auth/token")
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(Body::from(body))
        .unwrap();
    let response = send(registry, request).await;
    assert_eq!(response.headers()[header::CACHE_CONTROL], "no-store");
    let status = response.status();
    (status, serde_json::from_str(&text(response).await).unwrap())
}

const GRANT: (&str, &str) = ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange");
const JWT: (&str, &str) = ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt");

#[tokio::test]
async fn workloads_exchange_their_tokens() {
    for place in test_databases().await.unwrap() {
        let provider = FakeProvider::start().await;
        let registry = start_with(&place, |config| config.sign_in = settings(&provider)).await;
        let database = database(&place, &registry).await;
        insert(&database, "service-account", "trainer", 1, registry.clock.now()).await;
        insert(&database, "service-account", "disabled", 0, registry.clock.now()).await;
        let now = registry.clock.now().as_millis() / 1000;
        let claims = |namespace: &str| {
            json!({"iss": provider.known.issuer, "aud": AUDIENCE, "sub": "pod-1", "namespace": namespace,
                   "iat": now, "exp": now + 600})
        };
        let token = |namespace: &str| provider.known.key.token(&claims(namespace));
        let prod = token("prod");
        let (status, answer) = exchange(&registry, &[GRANT, JWT, ("subject_token", &prod)]).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        let issued = modelyard_auth::token::Token::parse(answer["access_token"].as_str().unwrap()).unwrap();
        assert_eq!(issued.kind(), modelyard_auth::token::TokenKind::Exchanged);
        assert_eq!(
            answer["issued_token_type"],
            "urn:ietf:params:oauth:token-type:access_token"
        );
        assert_eq!(
            (&answer["token_type"], &answer["expires_in"]),
            (&json!("Bearer"), &json!(900))
        );
        assert_eq!(answer["scope"], "deployer@default");
        let stored = "SELECT hash || ' ' || owner || ' ' || scope FROM access_token WHERE kind = 'exchanged'";
        let expected = format!("{} trainer [\"deployer@default\"]", issued.hash());
        assert_eq!(column(&database, stored).await, [expected]);
        // Less than the rule gives, and more.
        let less = ("scope", "deployer@default/endpoints/x");
        let (status, answer) = exchange(&registry, &[GRANT, JWT, ("subject_token", &prod), less]).await;
        assert_eq!((status, &answer["scope"]), (StatusCode::OK, &json!(less.1)));
        for more in ["admin@default", "deployer@*", "openid"] {
            let form = [GRANT, JWT, ("subject_token", prod.as_str()), ("scope", more)];
            let (status, answer) = exchange(&registry, &form).await;
            assert_eq!(
                (status, &answer["error"]),
                (StatusCode::BAD_REQUEST, &json!("invalid_scope")),
                "{more}"
            );
        }
        // Whatever is wrong with a token, the answer is the same.
        let mut answers = Vec::new();
        let mut refused = vec![
            token("dev"),
            token("old"),
            token("other"),
            Key::ec("k1").token(&claims("prod")),
        ];
        refused.extend(
            forgeries(&provider.known.key, &claims("prod"))
                .into_iter()
                .filter_map(|(what, token)| (what != "an access token").then_some(token)),
        );
        for token in &refused {
            answers.push(exchange(&registry, &[GRANT, JWT, ("subject_token", token)]).await);
        }
        answers.dedup();
        assert_eq!(answers.len(), 1, "{answers:?}");
        assert_eq!(
            (answers[0].0, &answers[0].1["error"]),
            (StatusCode::BAD_REQUEST, &json!("invalid_request"))
        );
        let events = column(&database, EVENTS).await;
        assert_eq!(events[0], "service-account:trainer token.exchange trainer success ");
        for (event, reason) in events[2..]
            .iter()
            .zip(["NO_SERVICE_ACCOUNT", "NO_SERVICE_ACCOUNT", "NO_RULE"])
        {
            assert_eq!(*event, format!("anonymous token.exchange  failed {reason}"));
        }
        assert_eq!(events.len(), 2 + refused.len());
        registry.stop().await;
    }
}

#[tokio::test]
async fn a_form_that_is_no_exchange_is_told_what_is_wrong() {
    let place = TestDatabase::sqlite().unwrap();
    let registry = start_with(&place, |_| {}).await;
    let token = ("subject_token", "x");
    for (form, error) in [
        (vec![], "unsupported_grant_type"),
        (
            vec![("grant_type", "client_credentials"), JWT, token],
            "unsupported_grant_type",
        ),
        (vec![GRANT, token], "invalid_request"),
        (vec![GRANT, JWT], "invalid_request"),
        (vec![GRANT, JWT, token, token], "invalid_request"),
        (vec![GRANT, JWT, token, ("actor_token", "y")], "invalid_request"),
        (
            vec![
                GRANT,
                ("subject_token_type", "urn:ietf:params:oauth:token-type:saml2"),
                token,
            ],
            "invalid_request",
        ),
        (vec![GRANT, JWT, token], "invalid_request"),
    ] {
        let (status, answer) = exchange(&registry, &form).await;
        assert_eq!(
            (status, &answer["error"]),
            (StatusCode::BAD_REQUEST, &json!(error)),
            "{form:?}"
        );
    }
    let json = Request::post("/api/v1/auth/token").header(header::CONTENT_TYPE, "application/json");
    let response = send(&registry, json.body(Body::from("{}")).unwrap()).await;
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    registry.stop().await;
}

#[tokio::test]
async fn a_provider_that_is_away_holds_nothing_up() {
    let place = TestDatabase::sqlite().unwrap();
    let mut provider = FakeProvider::start().await;
    provider.tasks.shutdown().await;
    let registry = start_with(&place, |config| config.sign_in = settings(&provider)).await;
    let begun = visit(&registry, "/api/v1/auth/openid/test/sign-in", &[]).await;
    assert_eq!(
        problem(begun).await,
        (StatusCode::SERVICE_UNAVAILABLE, "PROVIDER_UNAVAILABLE".to_owned())
    );
    let token = provider
        .known
        .key
        .token(&json!({"iss": provider.known.issuer, "aud": AUDIENCE, "sub": "x"}));
    let (status, answer) = exchange(&registry, &[GRANT, JWT, ("subject_token", &token)]).await;
    let expected = (StatusCode::SERVICE_UNAVAILABLE, &json!("temporarily_unavailable"));
    assert_eq!((status, &answer["error"]), expected);
    registry.stop().await;
}
