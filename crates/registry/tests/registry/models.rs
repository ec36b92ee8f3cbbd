//! Versions of models and their aliases.

use std::collections::BTreeMap;

use http::{Method, StatusCode};
use modelyard_common::error::{ErrorKind, Fault, RemoteError};
use modelyard_proto::registry::v1::{
    CreateModelVersionRequest, GetModelVersionRequest, get_model_version_request::Selector,
};
use serde_json::{Value, json};

use crate::{
    fixture,
    support::{PROJECT, registries},
};

fn request(artifact_digest: &str, key: &str) -> CreateModelVersionRequest {
    CreateModelVersionRequest {
        project: PROJECT.to_owned(),
        name: "flight-delay".to_owned(),
        artifact_digest: artifact_digest.to_owned(),
        format: "onnx".to_owned(),
        metrics: [("auc".to_owned(), 0.719)].into(),
        tags: [("team".to_owned(), "ops".to_owned())].into(),
        training_rows: 52_000,
        idempotency_key: key.to_owned(),
        ..CreateModelVersionRequest::default()
    }
}

#[tokio::test]
async fn an_import_reads_the_signature_and_sets_aliases() {
    for (_place, registry) in registries().await {
        let digest = registry.upload_model().await;
        let body = json!({
            "artifact_digest": digest, "description": "from the lab", "tags": {"team": "ops"},
            "aliases": ["champion", "candidate", "champion"],
        });
        let version = registry.take(Method::POST, "models/flight-delay/versions", &body).await;
        assert_eq!(version["version"], 1);
        assert_eq!(version["aliases"], json!(["candidate", "champion"]));
        assert_eq!(
            version["signature"]["inputs"][0],
            json!({"name": "carrier", "type": "string", "required": true})
        );
        assert_eq!(version["artifact_size_bytes"], fixture::onnx_model().len());
        assert_eq!(
            (&version["run_id"], &version["tags"]["team"]),
            (&Value::Null, &json!("ops"))
        );
        assert_eq!(registry.get("models/flight-delay/versions/1").await, version);
        assert_eq!(
            registry.get("models/flight-delay/versions").await["items"],
            json!([version])
        );
        let model = registry.get("models/flight-delay").await;
        assert_eq!(
            (&model["latest_version"], &model["aliases"][1]["version"]),
            (&json!(1), &json!(1))
        );
        assert_eq!(registry.get("models").await["items"], json!([model]));
    }
}

#[tokio::test]
async fn a_version_answers_where_it_comes_from() {
    for (_place, registry) in registries().await {
        let file = registry.upload("a\n1\n").await;
        let files = json!({"files": [{"name": "a.csv", "digest": file}]});
        let data = registry.take(Method::POST, "datasets/flights/versions", &files).await;
        let run = modelyard_proto::registry::v1::CreateRunRequest {
            project: PROJECT.to_owned(),
            experiment: "flight-delay".to_owned(),
            ..Default::default()
        };
        let run = registry.runs().create_run(run).await.unwrap().into_inner().run.unwrap();
        let profile = data["profile_digest"].as_str().unwrap().to_owned();
        let mut request = request(&registry.upload_model().await, "");
        request.run_id.clone_from(&run.run_id);
        request.dataset = "flights".to_owned();
        request.dataset_version = 1;
        request.reference_profile_digest = profile.clone();
        registry.models().create_model_version(request).await.unwrap();
        let version = registry.get("models/flight-delay/versions/1").await;
        assert_eq!(version["run_id"], run.run_id);
        assert_eq!(
            (&version["dataset"], &version["dataset_version"]),
            (&json!("flights"), &json!(1))
        );
        assert_eq!(version["dataset_digest"], data["digest"]);
        assert_eq!(version["reference_profile_digest"], profile);
        assert_eq!(
            (&version["metrics"]["auc"], &version["training_rows"]),
            (&json!(0.719), &json!(52_000))
        );
    }
}

#[tokio::test]
async fn a_repeated_call_finds_the_first_ones_version_also_at_the_same_time() {
    const CALLERS: usize = 8;
    for (place, registry) in registries().await {
        let digest = registry.upload_model().await;
        let calls = (0..CALLERS).map(|_| {
            let (mut client, request) = (registry.models(), request(&digest, "run-1/register"));
            async move { client.create_model_version(request).await }
        });
        for version in futures::future::join_all(calls).await {
            let version = version.unwrap().into_inner().model_version.unwrap();
            assert_eq!(version.version, 1, "{}", place.name);
        }
        let mut other = request(&digest, "run-1/register");
        other.training_rows += 1;
        let error = registry.models().create_model_version(other).await.unwrap_err();
        let error = RemoteError::from(error);
        assert_eq!(
            (error.kind(), error.reason()),
            (ErrorKind::AlreadyExists, "IDEMPOTENCY_KEY_REUSED")
        );
        let next = registry
            .models()
            .create_model_version(request(&digest, "run-2/register"))
            .await
            .unwrap();
        assert_eq!(next.into_inner().model_version.unwrap().version, 2);
    }
}

#[tokio::test]
async fn versions_made_at_once_count_without_gaps() {
    const VERSIONS: u32 = 24;
    for (place, registry) in registries().await {
        let digest = registry.upload_model().await;
        let models = ["a", "b"];
        let calls = (0..VERSIONS * 2).map(|number| registry.create_version(models[number as usize % 2], &digest));
        let mut versions: BTreeMap<String, Vec<u32>> = BTreeMap::new();
        for version in futures::future::join_all(calls).await {
            versions.entry(version.name).or_default().push(version.version);
        }
        for (model, mut numbers) in versions {
            numbers.sort_unstable();
            assert_eq!(numbers, (1..=VERSIONS).collect::<Vec<_>>(), "{} {model}", place.name);
        }
        // The feed tells of each once, in the order of the revisions, and pages do not lose any.
        let (mut seen, mut after) = (0, 0);
        loop {
            let page = registry.get(&format!("events?limit=7&after={after}")).await;
            for event in page["items"].as_array().unwrap() {
                assert_eq!(event["kind"], "model_version_created");
                let revision = event["revision"].as_u64().unwrap();
                assert!(revision > after);
                after = revision;
                seen += 1;
            }
            if page["next_cursor"].is_null() {
                break;
            }
        }
        assert_eq!(seen, VERSIONS * 2);
    }
}

#[tokio::test]
async fn aliases_move_and_remember() {
    for (_place, registry) in registries().await {
        let digest = registry.upload_model().await;
        for _ in 0..2 {
            registry.create_version("m", &digest).await;
        }
        assert_eq!(registry.set_alias("m", "champion", 1).await, 0);
        registry.clock.advance(std::time::Duration::from_mins(1));
        let before = registry.get("events").await;
        assert_eq!(registry.set_alias("m", "champion", 1).await, 1);
        assert_eq!(
            registry.get("events").await,
            before,
            "setting it where it points is no change"
        );
        let path = "models/m/aliases/champion";
        let alias = registry.take(Method::PUT, path, &json!({"version": 2})).await;
        assert_eq!(
            (&alias["version"], &alias["updated_at"]),
            (&json!(2), &json!("2013-03-01T00:01:00Z"))
        );
        let selected = GetModelVersionRequest {
            project: PROJECT.to_owned(),
            name: "m".to_owned(),
            selector: Some(Selector::Alias("champion".to_owned())),
        };
        let version = registry
            .models()
            .get_model_version(selected.clone())
            .await
            .unwrap()
            .into_inner();
        let version = version.model_version.unwrap();
        assert_eq!((version.version, version.aliases), (2, vec!["champion".to_owned()]));
        let (status, _) = registry.json(Method::DELETE, path, &Value::Null).await;
        assert_eq!(status, StatusCode::NO_CONTENT);
        let (status, ..) = registry.refuse(Method::DELETE, path, &Value::Null).await;
        assert_eq!(status, StatusCode::NOT_FOUND);
        let error = RemoteError::from(registry.models().get_model_version(selected).await.unwrap_err());
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(
            error.to_string().contains("alias `m@champion` does not exist"),
            "{error}"
        );

        let history = registry.get(&format!("{path}/history")).await;
        let changes: Vec<_> = history["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|change| {
                (
                    change["previous_version"].as_u64(),
                    change["version"].as_u64(),
                    change["changed_by"].as_str().unwrap(),
                )
            })
            .collect();
        assert_eq!(
            changes,
            [
                (Some(2), None, "user:local"),
                (Some(1), Some(2), "user:local"),
                (None, Some(1), "user:local")
            ]
        );
    }
}

#[tokio::test]
async fn bad_versions_and_aliases_are_refused_and_nothing_is_stored() {
    for (_place, registry) in registries().await {
        let digest = registry.upload_model().await;
        let text = registry.upload("carrier,distance\nUA,1\n").await;
        let missing = format!("sha256:{}", "0".repeat(64));
        let cases = [
            (json!({"artifact_digest": text}), "NOT_ONNX", "is not an ONNX model"),
            (
                json!({"artifact_digest": missing}),
                "INVALID_REQUEST",
                "is not in the artifact store",
            ),
            (json!({"artifact_digest": "x"}), "INVALID_DIGEST", "`x` is not a digest"),
            (
                json!({"artifact_digest": digest, "format": "pickle"}),
                "INVALID_REQUEST",
                "`pickle` cannot be served",
            ),
            (
                json!({"artifact_digest": digest, "aliases": ["v1"]}),
                "INVALID_REQUEST",
                "`v1` is reserved",
            ),
            (
                json!({"artifact_digest": digest, "run_id": "gone"}),
                "INVALID_REQUEST",
                "run `gone` does not exist",
            ),
            (
                json!({"artifact_digest": digest, "dataset": "d"}),
                "INVALID_REQUEST",
                "belong together",
            ),
            (
                json!({"artifact_digest": digest, "dataset": "d", "dataset_version": 1}),
                "INVALID_REQUEST",
                "version 1 of dataset `d` does not exist",
            ),
            (
                json!({"artifact_digest": digest, "signature": {"inputs": []}}),
                "INVALID_REQUEST",
                "the signature has no `inputs`",
            ),
            (
                json!({"artifact_digest": digest, "stage": "Production"}),
                "INVALID_BODY",
                "unknown field `stage`",
            ),
            (json!({}), "INVALID_BODY", "missing field `artifact_digest`"),
        ];
        for (body, reason, named) in cases {
            let (status, found, detail) = registry.refuse(Method::POST, "models/m/versions", &body).await;
            assert_eq!((status, found.as_str()), (StatusCode::BAD_REQUEST, reason), "{detail}");
            assert!(detail.contains(named), "{named}: {detail}");
        }
        assert_eq!(registry.get("models").await["items"], json!([]));
        let (status, ..) = registry.refuse(Method::GET, "models/m", &Value::Null).await;
        assert_eq!(status, StatusCode::NOT_FOUND);

        registry.create_version("m", &digest).await;
        for (alias, version, status) in [
            ("latest", 1, StatusCode::BAD_REQUEST),
            ("v7", 1, StatusCode::BAD_REQUEST),
            ("a%20b", 1, StatusCode::BAD_REQUEST),
            ("champion", 2, StatusCode::NOT_FOUND),
            ("champion", 0, StatusCode::NOT_FOUND),
        ] {
            let path = format!("models/m/aliases/{alias}");
            let (got, _, detail) = registry.refuse(Method::PUT, &path, &json!({"version": version})).await;
            assert_eq!(got, status, "{alias}: {detail}");
        }
        let (status, _) = registry
            .send(Method::POST, "models/m/versions", "text/plain", "{}")
            .await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        let (status, body) = registry
            .send(
                Method::POST,
                "models/m/versions",
                "application/json",
                vec![b' '; 9 << 20],
            )
            .await;
        assert_eq!(
            status,
            StatusCode::PAYLOAD_TOO_LARGE,
            "{}",
            String::from_utf8_lossy(&body)
        );
    }
}
