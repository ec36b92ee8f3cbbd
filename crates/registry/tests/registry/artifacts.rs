//! Files under their digests.

use axum::body::Body;
use http::{Method, StatusCode};
use serde_json::Value;

use crate::support::registries;

#[tokio::test]
async fn what_was_uploaded_comes_back_under_its_digest() {
    for (_place, registry) in registries().await {
        let digest = registry.upload(&b"some bytes"[..]).await;
        let path = format!("artifacts/{digest}");
        let (status, body) = registry.send(Method::GET, &path, "", Body::empty()).await;
        assert_eq!((status, &body[..]), (StatusCode::OK, &b"some bytes"[..]));
        let (status, body) = registry.send(Method::HEAD, &path, "", Body::empty()).await;
        assert_eq!((status, body.len()), (StatusCode::OK, 0));
        let announced = format!("artifacts?digest={digest}");
        let (status, _) = registry.send(Method::PUT, &announced, "", "some bytes").await;
        assert_eq!(status, StatusCode::CREATED);
    }
}

#[tokio::test]
async fn what_is_not_there_or_damaged_is_refused() {
    for (_place, registry) in registries().await {
        let digest = registry.upload(&b"right"[..]).await;
        let missing = format!("sha256:{}", "0".repeat(64));
        let cases = [
            (
                Method::PUT,
                format!("artifacts?digest={missing}"),
                "DIGEST_MISMATCH",
                StatusCode::BAD_REQUEST,
            ),
            (
                Method::PUT,
                "artifacts?digest=x".to_owned(),
                "INVALID_DIGEST",
                StatusCode::BAD_REQUEST,
            ),
            (
                Method::PUT,
                "artifacts?digst=x".to_owned(),
                "INVALID_QUERY",
                StatusCode::BAD_REQUEST,
            ),
            (
                Method::GET,
                format!("artifacts/{missing}"),
                "BLOB_NOT_FOUND",
                StatusCode::NOT_FOUND,
            ),
            (
                Method::GET,
                "artifacts/latest".to_owned(),
                "INVALID_DIGEST",
                StatusCode::BAD_REQUEST,
            ),
        ];
        for (method, path, reason, status) in cases {
            let (got, found, detail) = registry.refuse(method, &path, &Value::String("wrong".to_owned())).await;
            assert_eq!((got, found.as_str()), (status, reason), "{path}: {detail}");
        }
        let (status, _) = registry
            .send(Method::HEAD, &format!("artifacts/{missing}"), "", Body::empty())
            .await;
        assert_eq!(status, StatusCode::NOT_FOUND);

        // Somebody changes the file behind the registry's back.
        let digits = &digest["sha256:".len()..];
        let file = registry
            .data_dir
            .join("objects/projects/default/blobs/sha256")
            .join(&digits[..2])
            .join(&digits[2..]);
        std::fs::write(&file, "wrong").unwrap();
        let request = http::Request::get(format!("/api/v1/projects/default/artifacts/{digest}"));
        let response = tower::ServiceExt::oneshot(registry.router.clone(), request.body(Body::empty()).unwrap());
        let body = response.await.unwrap().into_body();
        assert!(
            http_body_util::BodyExt::collect(body).await.is_err(),
            "damaged content was sent"
        );
    }
}

#[tokio::test]
async fn only_projects_that_exist_are_served() {
    for (_place, registry) in registries().await {
        for path in [
            "models",
            "datasets",
            "runs",
            "endpoints",
            "experiments",
            "events",
            "models/m",
        ] {
            let uri = format!("/api/v1/projects/elsewhere/{path}");
            let request = http::Request::get(uri).body(Body::empty()).unwrap();
            let response = tower::ServiceExt::oneshot(registry.router.clone(), request)
                .await
                .unwrap();
            assert_eq!(response.status(), StatusCode::NOT_FOUND, "{path}");
            assert_eq!(
                response.headers()[http::header::CONTENT_TYPE],
                "application/problem+json"
            );
        }
    }
}
