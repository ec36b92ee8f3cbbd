//! Identities, tokens, bindings, projects and secrets, over HTTP and down to the tables.

use axum::body::Body;
use http::{Method, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use modelyard_auth::Mode;
use modelyard_common::config::Secret;
use modelyard_proto::registry::v1::{
    OpenSecretRequest, VerifyPasswordRequest, WatchAccessRequest, access_service_client::AccessServiceClient,
    secret_service_client::SecretServiceClient,
};
use modelyard_testkit::postgres::test_databases;
use serde_json::{Value, json};
use tonic::Code;
use tower::ServiceExt as _;

use crate::{
    openid::database,
    support::{TestRegistry, start_in, try_start_in},
};

const PASSWORD: &str = "correct horse battery staple";

/// Sends a request with a token; the status and the answer.
async fn send(
    registry: &TestRegistry,
    token: &str,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> (StatusCode, Value) {
    let mut request = Request::builder().method(method).uri(format!("/api/v1/{path}"));
    if !token.is_empty() {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    let request = match body {
        Some(body) => request
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body.to_string())),
        None => request.body(Body::empty()),
    };
    let response = registry.router.clone().oneshot(request.unwrap()).await.unwrap();
    let status = response.status();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

pub async fn done(registry: &TestRegistry, token: &str, method: Method, path: &str, body: Value) -> Value {
    let body = Some(body).filter(|body| !body.is_null());
    let (status, answer) = send(registry, token, method, path, body.as_ref()).await;
    assert!(status.is_success(), "{path}: {status} {answer}");
    answer
}

/// The registries that ask who comes, on each database, with the first admin's token.
pub async fn guarded() -> Vec<(modelyard_testkit::postgres::TestDatabase, TestRegistry, String)> {
    let mut all = Vec::new();
    for place in test_databases().await.unwrap() {
        let registry = start_in(&place, Mode::SignIn, |config| {
            config.admin_password = Some(Secret::new(PASSWORD));
        })
        .await;
        let token = registry.first_token.clone().unwrap();
        all.push((place, registry, token));
    }
    all
}

/// Makes a service account with roles and gives its token.
async fn account(registry: &TestRegistry, admin: &str, name: &str, grants: &[(&str, &str)]) -> String {
    done(
        registry,
        admin,
        Method::PUT,
        &format!("service-accounts/{name}"),
        json!({}),
    )
    .await;
    for (index, (role, place)) in grants.iter().enumerate() {
        let binding = json!({"subject": format!("service-account:{name}"), "role": role, "place": place});
        done(
            registry,
            admin,
            Method::PUT,
            &format!("role-bindings/{name}-{index}"),
            binding,
        )
        .await;
    }
    let order = json!({"name": "t", "owner": format!("service-account:{name}")});
    let made = done(registry, admin, Method::POST, "tokens", order).await;
    made["token"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn the_first_admin_is_made_once_and_only_where_callers_sign_in() {
    for (place, registry, token) in guarded().await {
        let me = done(&registry, &token, Method::GET, "auth/me", Value::Null).await;
        assert_eq!(
            (&me["principal"], &me["roles"]),
            (&json!("user:admin"), &json!(["admin@*"]))
        );
        registry.stop().await;
        let again = start_in(&place, Mode::SignIn, |_| {}).await;
        assert_eq!(again.first_token, None);
        // What was made before still counts.
        done(&again, &token, Method::GET, "users", Value::Null).await;
        again.stop().await;
        let open = start_in(&place, Mode::Open, |_| {}).await;
        assert_eq!(open.first_token, None);
        assert_eq!(open.access.mode(), Mode::Open);
        open.stop().await;
    }
}

#[tokio::test]
async fn tokens_are_told_once_and_end_when_they_are_revoked_or_their_owner_is() {
    for (place, registry, admin) in guarded().await {
        let token = account(&registry, &admin, "ci", &[("viewer", "default")]).await;
        let models = "projects/default/models";
        assert_eq!(
            send(&registry, &token, Method::GET, models, None).await.0,
            StatusCode::OK
        );
        let listed = done(
            &registry,
            &admin,
            Method::GET,
            "tokens?owner=service-account:ci",
            Value::Null,
        )
        .await;
        assert!(!listed.to_string().contains(&token));
        let id = listed["items"][0]["id"].as_str().unwrap().to_owned();
        // Nobody else learns of it.
        let other = account(&registry, &admin, "other", &[]).await;
        let revoked = send(&registry, &other, Method::DELETE, &format!("tokens/{id}"), None).await;
        assert_eq!(revoked.0, StatusCode::NOT_FOUND);
        done(&registry, &admin, Method::DELETE, &format!("tokens/{id}"), Value::Null).await;
        let (status, problem) = send(&registry, &token, Method::GET, models, None).await;
        assert_eq!(
            (status, &problem["reason"]),
            (StatusCode::UNAUTHORIZED, &json!("INVALID_TOKEN"))
        );
        done(
            &registry,
            &admin,
            Method::PUT,
            "service-accounts/other",
            json!({"enabled": false}),
        )
        .await;
        assert_eq!(
            send(&registry, &other, Method::GET, "auth/me", None).await.0,
            StatusCode::UNAUTHORIZED
        );
        // Only hashes are in the database.
        let database = database(&place, &registry).await;
        let hashes = crate::openid::column(&database, "SELECT hash || name FROM access_token").await;
        assert!(hashes.iter().all(|hash| !hash.contains("mdyp_")));
        registry.stop().await;
    }
}

#[tokio::test]
async fn what_would_give_nothing_is_refused() {
    for (_place, registry, admin) in guarded().await {
        done(&registry, &admin, Method::PUT, "users/bob", json!({})).await;
        let binding = |subject, role, place| json!({"subject": subject, "role": role, "place": place});
        for (spec, named) in [
            (binding("user:bbo", "viewer", "*"), "subject `user:bbo`"),
            (
                binding("service-account:bob", "viewer", "*"),
                "subject `service-account:bob`",
            ),
            (binding("user:bob", "vewer", "*"), "role `vewer`"),
            (binding("user:bob", "viewer", "defualt"), "project `defualt`"),
            (
                binding("group:nobody-yet", "viewer", "defualt/endpoints/x"),
                "project `defualt`",
            ),
        ] {
            let (status, problem) = send(&registry, &admin, Method::PUT, "role-bindings/b", Some(&spec)).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{problem}");
            assert!(problem["detail"].as_str().unwrap().contains(named), "{problem}");
        }
        let late = binding("group:nobody-yet", "caller", "default/endpoints/no-yet");
        done(&registry, &admin, Method::PUT, "role-bindings/b", late).await;
        for (scope, expected) in [
            ("vewer@default", StatusCode::BAD_REQUEST),
            ("viewer@defualt", StatusCode::NOT_FOUND),
            ("viewer@default", StatusCode::CREATED),
        ] {
            let order = json!({"name": "t", "scope": [scope]});
            let (status, problem) = send(&registry, &admin, Method::POST, "tokens", Some(&order)).await;
            assert_eq!(status, expected, "{scope}: {problem}");
        }
        registry.stop().await;
    }
}

#[tokio::test]
async fn the_last_admin_stays() {
    for (_place, registry, admin) in guarded().await {
        done(&registry, &admin, Method::PUT, "users/bob", json!({})).await;
        let path = "role-bindings/admin";
        let less = json!({"subject": "user:admin", "role": "viewer", "place": "*"});
        let bob = json!({"subject": "user:bob", "role": "admin", "place": "*"});
        // A group is known to its provider alone, and may have nobody in it.
        let group = json!({"subject": "group:admins", "role": "admin", "place": "*"});
        done(&registry, &admin, Method::PUT, "role-bindings/group", group).await;
        for (method, spec) in [(Method::DELETE, None), (Method::PUT, Some(&less))] {
            let (status, problem) = send(&registry, &admin, method, path, spec).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{problem}");
            assert!(problem["detail"].as_str().unwrap().contains("last one"), "{problem}");
        }
        done(&registry, &admin, Method::PUT, "role-bindings/bob", bob).await;
        done(&registry, &admin, Method::DELETE, path, Value::Null).await;
        registry.stop().await;
    }
}

#[tokio::test]
async fn built_in_roles_tell_what_they_may_do() {
    for (_place, registry, admin) in guarded().await {
        let roles = done(&registry, &admin, Method::GET, "roles", Value::Null).await;
        let caller = roles["items"]
            .as_array()
            .unwrap()
            .iter()
            .find(|role| role["name"] == "caller");
        assert_eq!(
            caller.unwrap()["spec"]["actions"],
            json!(["endpoint.predict", "endpoint.read"])
        );
        let auditor = done(&registry, &admin, Method::GET, "roles/auditor", Value::Null).await;
        assert_eq!(auditor["spec"]["actions"], json!(["audit.read", "audit.sign"]));
        registry.stop().await;
    }
}

#[tokio::test]
async fn a_lost_file_of_keys_is_not_made_anew() {
    for (place, registry, admin) in guarded().await {
        let secret = json!({"value": "hunter2"});
        done(&registry, &admin, Method::PUT, "projects/default/secrets/s", secret).await;
        let project = done(&registry, &admin, Method::GET, "projects/default", Value::Null).await;
        assert!(project["created_at"].as_str().unwrap() > "2000", "{project}");
        registry.stop().await;
        let keys = place.data_dir().join("registry.keys");
        std::fs::remove_file(&keys).unwrap();
        let problem = try_start_in(&place, Mode::SignIn, |_| {})
            .await
            .err()
            .unwrap()
            .to_string();
        assert!(
            problem.contains("registry.keys") && problem.contains("backup"),
            "{problem}"
        );
        assert!(!keys.exists());
    }
}

#[tokio::test]
async fn who_is_narrow_or_held_in_a_project_gives_no_more_than_it_has() {
    for (_place, registry, admin) in guarded().await {
        done(
            &registry,
            &admin,
            Method::PUT,
            "projects/team",
            json!({"description": "ours"}),
        )
        .await;
        let lead = account(&registry, &admin, "lead", &[("admin", "team")]).await;
        done(&registry, &admin, Method::PUT, "users/bob", json!({})).await;
        let binding = |place: &str| json!({"subject": "user:bob", "role": "viewer", "place": place});
        let path = "projects/team/role-bindings/bob";
        let made = done(&registry, &lead, Method::PUT, path, binding("")).await;
        assert_eq!(made["resource"]["spec"]["place"], "team");
        assert_eq!(made["resource"]["kind"], "ProjectRoleBinding");
        for place in ["*", "default"] {
            let (status, _) = send(&registry, &lead, Method::PUT, path, Some(&binding(place))).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{place}");
        }
        let (status, _) = send(
            &registry,
            &lead,
            Method::PUT,
            "role-bindings/bob",
            Some(&binding("team")),
        )
        .await;
        assert_eq!(status, StatusCode::FORBIDDEN);
        // Another project and one that never was answer alike.
        let [other, never] = ["default", "never"].map(|project| format!("projects/{project}/models"));
        let (other, never) = (
            send(&registry, &lead, Method::GET, &other, None).await,
            send(&registry, &lead, Method::GET, &never, None).await,
        );
        assert_eq!(
            (other.0, &other.1["reason"]),
            (StatusCode::NOT_FOUND, &never.1["reason"])
        );
        let projects = done(&registry, &lead, Method::GET, "projects", Value::Null).await;
        assert_eq!(projects["items"].as_array().unwrap().len(), 1);
        // A narrow token makes none that is wider.
        let order = json!({"name": "narrow", "scope": ["viewer@team"]});
        let narrow = done(&registry, &lead, Method::POST, "tokens", order).await;
        let narrow = narrow["token"].as_str().unwrap();
        let (status, _) = send(
            &registry,
            narrow,
            Method::POST,
            "tokens",
            Some(&json!({"name": "wide"})),
        )
        .await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        let (status, _) = send(&registry, narrow, Method::PUT, path, Some(&binding("team"))).await;
        assert_eq!(status, StatusCode::FORBIDDEN);
        // A name that was removed is not given again.
        done(&registry, &admin, Method::DELETE, "projects/team", Value::Null).await;
        let (status, _) = send(&registry, &admin, Method::PUT, "projects/team", Some(&json!({}))).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        registry.stop().await;
    }
}

#[tokio::test]
async fn who_manages_users_becomes_no_admin_by_it() {
    for (_place, registry, admin) in guarded().await {
        for (role, actions) in [
            ("people", json!(["identity.read", "identity.write"])),
            (
                "owner",
                json!(["identity.read", "identity.write", "access.read", "access.write"]),
            ),
        ] {
            let spec = json!({ "actions": actions });
            done(&registry, &admin, Method::PUT, &format!("roles/{role}"), spec).await;
        }
        let group = json!({"subject": "group:admins", "role": "admin", "place": "*"});
        done(&registry, &admin, Method::PUT, "role-bindings/group", group).await;
        let manager = account(&registry, &admin, "manager", &[("people", "*")]).await;
        let owner = account(&registry, &admin, "owner", &[("owner", "*")]).await;
        let password = json!({"password": "another good passphrase"});
        done(&registry, &manager, Method::PUT, "users/carol", json!({})).await;
        done(
            &registry,
            &manager,
            Method::PUT,
            "users/carol/password",
            password.clone(),
        )
        .await;
        for (method, path, body) in [
            (Method::PUT, "users/admin/password", Some(&password)),
            (Method::PUT, "users/admin", Some(&json!({"enabled": false}))),
            (Method::PUT, "users/carol", Some(&json!({"groups": ["admins"]}))),
            (Method::DELETE, "users/admin", None),
            (Method::DELETE, "service-accounts/owner", None),
        ] {
            let (status, problem) = send(&registry, &manager, method, path, body).await;
            assert_eq!(status, StatusCode::FORBIDDEN, "{path}: {problem}");
        }
        for (method, body) in [(Method::DELETE, None), (Method::PUT, Some(&json!({"enabled": false})))] {
            let (status, problem) = send(&registry, &owner, method, "users/admin", body).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{problem}");
            assert!(problem["detail"].as_str().unwrap().contains("last one"), "{problem}");
        }
        done(&registry, &manager, Method::DELETE, "users/carol", Value::Null).await;
        registry.stop().await;
    }
}

#[tokio::test]
async fn passwords_are_verified_slowed_down_and_changed() {
    for (_place, registry, admin) in guarded().await {
        let sign_in = async |password: &str| {
            let body = json!({"name": "admin", "password": password});
            send(&registry, "", Method::POST, "auth/sign-in", Some(&body)).await
        };
        assert_eq!(sign_in(PASSWORD).await.0, StatusCode::OK);
        let verify = async |name: &str, password: &str| {
            let request = VerifyPasswordRequest {
                name: name.to_owned(),
                password: password.to_owned(),
                source_address: "192.0.2.1".to_owned(),
            };
            let mut client = AccessServiceClient::new(registry.services.clone());
            client
                .verify_password(request)
                .await
                .map(drop)
                .map_err(|status| status.code())
        };
        assert_eq!(verify("admin", PASSWORD).await, Ok(()));
        assert_eq!(verify("nobody", PASSWORD).await, Err(Code::Unauthenticated));
        let new = json!({"password": "another good passphrase"});
        done(&registry, &admin, Method::PUT, "users/bob", json!({})).await;
        done(&registry, &admin, Method::PUT, "users/bob/password", new).await;
        for weak in ["short", "bobbobbobbob", ""] {
            let weak = json!({"password": weak});
            let (status, _) = send(&registry, &admin, Method::PUT, "users/bob/password", Some(&weak)).await;
            assert!(
                status == StatusCode::BAD_REQUEST || weak["password"] == "bobbobbobbob",
                "{weak}"
            );
        }
        let mut answers = Vec::new();
        for _ in 0..8 {
            answers.push(sign_in("wrong but long enough").await.0);
        }
        assert_eq!(answers.first(), Some(&StatusCode::UNAUTHORIZED));
        assert_eq!(answers.last(), Some(&StatusCode::TOO_MANY_REQUESTS));
        // Also with the right one: who guesses does not see that it was right.
        assert_eq!(sign_in(PASSWORD).await.0, StatusCode::TOO_MANY_REQUESTS);
        registry.stop().await;
    }
}

#[tokio::test]
async fn secrets_are_sealed_opened_by_services_alone_and_sealed_anew_after_a_rotation() {
    for (place, registry, admin) in guarded().await {
        let value = json!({"value": "hunter2 and more"});
        done(&registry, &admin, Method::PUT, "projects/default/secrets/hook", value).await;
        let listed = done(&registry, &admin, Method::GET, "projects/default/secrets", Value::Null).await;
        assert!(!listed.to_string().contains("hunter2"));
        let open = async |registry: &TestRegistry, channel: modelyard_common::rpc::Channel| {
            let request = OpenSecretRequest {
                project: "default".to_owned(),
                name: "hook".to_owned(),
            };
            let opened = SecretServiceClient::new(channel).open_secret(request).await;
            let _ = registry;
            opened
                .map(|answer| answer.into_inner().value)
                .map_err(|status| status.code())
        };
        assert_eq!(
            open(&registry, registry.services.clone()).await.unwrap(),
            b"hunter2 and more"
        );
        let for_admin = registry.services.acting_for("user:admin");
        assert_eq!(open(&registry, for_admin).await, Err(Code::PermissionDenied));
        let sealed = "SELECT sealed FROM secret";
        let before = crate::openid::column(&database(&place, &registry).await, sealed).await;
        assert!(!before[0].contains("hunter2"));
        registry.stop().await;
        let file = place.data_dir().join("registry.keys");
        let ring = modelyard_auth::seal::KeyRing::parse(&std::fs::read_to_string(&file).unwrap()).unwrap();
        std::fs::write(&file, ring.rotated().unwrap().to_text()).unwrap();
        let registry = start_in(&place, Mode::SignIn, |_| {}).await;
        let after = crate::openid::column(&database(&place, &registry).await, sealed).await;
        assert_ne!(before, after);
        assert_eq!(
            open(&registry, registry.services.clone()).await.unwrap(),
            b"hunter2 and more"
        );
        registry.stop().await;
    }
}

#[tokio::test]
async fn processes_that_follow_are_told_the_whole_state_and_each_change() {
    for (_place, registry, admin) in guarded().await {
        let request = WatchAccessRequest {
            node: "gateway-1".to_owned(),
            since_revision: 0,
        };
        let mut client = AccessServiceClient::new(registry.services.clone());
        let mut updates = client.watch_access(request).await.unwrap().into_inner();
        let first = updates.message().await.unwrap().unwrap();
        assert!(first.is_last_part);
        let state: Value = serde_json::from_slice(&first.part).unwrap();
        assert_eq!(state["projects"], json!(["default"]));
        done(&registry, &admin, Method::PUT, "projects/team", json!({})).await;
        let second = updates.message().await.unwrap().unwrap();
        assert!(second.revision > first.revision);
        let state: Value = serde_json::from_slice(&second.part).unwrap();
        assert_eq!(state["projects"], json!(["default", "team"]));
        // Nobody but services follows.
        let mut client = AccessServiceClient::new(registry.services.acting_for("user:admin"));
        let refused = client.watch_access(WatchAccessRequest::default()).await.err().unwrap();
        assert_eq!(refused.code(), Code::PermissionDenied);
        drop(updates);
        registry.stop().await;
    }
}
