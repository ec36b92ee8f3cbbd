//! Files become versions of datasets.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use http::{Method, StatusCode};
use modelyard_proto::registry::v1::GetDatasetVersionRequest;
use parquet::arrow::ArrowWriter;
use serde_json::{Value, json};

use crate::support::{PROJECT, TestRegistry, registries, start};

const VERSIONS: &str = "datasets/flights/versions";

fn parquet(distances: &[f64]) -> Vec<u8> {
    let carriers: ArrayRef = Arc::new(StringArray::from(vec!["UA"; distances.len()]));
    let distances: ArrayRef = Arc::new(Float64Array::from(distances.to_vec()));
    let batch = RecordBatch::try_from_iter([("carrier", carriers), ("distance", distances)]).unwrap();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.into_inner().unwrap()
}

async fn push(registry: &TestRegistry, files: &[(&str, &str)], append: bool) -> (StatusCode, Value) {
    let files: Vec<Value> = files
        .iter()
        .map(|(name, digest)| json!({"name": name, "digest": digest}))
        .collect();
    let body = json!({"files": files, "append": append});
    registry.json(Method::POST, VERSIONS, &body).await
}

#[tokio::test]
async fn versions_are_content_addressed_and_grow_by_appending() {
    for (_place, registry) in registries().await {
        let january = registry.upload("carrier,distance\nUA,1000\nAA,2000\n").await;
        let february = registry.upload(parquet(&[1.5, 2.5, 3.5])).await;

        let (status, first) = push(&registry, &[("2013-01.csv", &january)], false).await;
        assert_eq!(status, StatusCode::CREATED, "{first}");
        assert_eq!(first["version"], 1);
        assert_eq!(first["rows"], 2);
        assert_eq!(
            first["columns"][1],
            json!({"name": "distance", "type": "Int64", "nullable": true})
        );

        // Integers of one file and floating-point numbers of the next are floating-point numbers.
        let (status, second) = push(&registry, &[("2013-02.parquet", &february)], true).await;
        assert_eq!(status, StatusCode::CREATED, "{second}");
        assert_eq!((&second["version"], &second["rows"]), (&json!(2), &json!(5)));
        assert_eq!(second["columns"][1]["type"], "Float64");
        let formats: Vec<&Value> = second["files"]
            .as_array()
            .unwrap()
            .iter()
            .map(|file| &file["format"])
            .collect();
        assert_eq!(formats, ["csv", "parquet"]);

        // Appending what is there, and pushing the same whole, changes nothing.
        for (files, append) in [
            (vec![("2013-02.parquet", february.as_str())], true),
            (vec![("2013-01.csv", &january), ("2013-02.parquet", &february)], false),
        ] {
            let (status, again) = push(&registry, &files, append).await;
            assert_eq!(status, StatusCode::OK);
            assert_eq!(again, second);
        }

        let profile = registry.get(&format!("{VERSIONS}/latest/profile")).await;
        assert_eq!(profile["rows"], 5);
        assert_eq!(profile["columns"]["distance"]["count"], 5);
        assert_eq!(profile["columns"]["carrier"]["count"], 5);
        assert_eq!(profile["columns"]["distance"]["numeric"]["moments"]["max"], 2000.0);
        assert_eq!(registry.get(&format!("{VERSIONS}/1")).await, first);
        assert_eq!(registry.get(&format!("{VERSIONS}/latest")).await, second);

        let page = registry.get(&format!("{VERSIONS}?limit=1")).await;
        assert_eq!(page["items"][0]["version"], 2);
        let cursor = page["next_cursor"].as_str().unwrap();
        let page = registry.get(&format!("{VERSIONS}?limit=1&cursor={cursor}")).await;
        assert_eq!(
            (&page["items"][0]["version"], &page["next_cursor"]),
            (&json!(1), &Value::Null)
        );
        assert_eq!(registry.get("datasets").await["items"][0]["latest_version"], 2);

        let request = GetDatasetVersionRequest {
            project: PROJECT.to_owned(),
            name: "flights".to_owned(),
            version: 0,
        };
        let found = registry
            .datasets()
            .get_dataset_version(request)
            .await
            .unwrap()
            .into_inner();
        let found = found.dataset_version.unwrap();
        assert_eq!((found.version, found.rows, found.files.len()), (2, 5, 2));
        assert_eq!(found.digest, second["digest"].as_str().unwrap());
        // No copy of a file is left behind.
        let left = std::fs::read_dir(registry.data_dir.join("registry-imports"))
            .unwrap()
            .count();
        assert_eq!(left, 0);
    }
}

#[tokio::test]
async fn files_that_do_not_fit_are_refused_by_name_and_nothing_is_stored() {
    for (_place, registry) in registries().await {
        let good = registry.upload("carrier,distance\nUA,1000\n").await;
        let image = registry.upload(&b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"[..]).await;
        let texts = registry.upload("carrier,distance\nUA,far\n").await;
        let other = registry.upload("carrier,miles\nUA,1000\n").await;
        let missing = format!("sha256:{}", "0".repeat(64));
        let file = |name: &str, digest: &str| json!({"name": name, "digest": digest});
        let cases = [
            (
                json!({"files": [file("a.png", &image)]}),
                "INVALID_DATASET_FILE",
                "`a.png` is neither Parquet nor CSV",
            ),
            (
                json!({"files": [file("a", &good), file("b", &texts)]}),
                "COLUMNS_DIFFER",
                "`b` does not fit `a`: column `distance` has type Utf8",
            ),
            (
                json!({"files": [file("a", &good), file("b", &other)]}),
                "COLUMNS_DIFFER",
                "column `distance` is missing",
            ),
            (
                json!({"files": [file("a", &missing)]}),
                "INVALID_REQUEST",
                "is not in the artifact store",
            ),
            (
                json!({"files": [file("a", "md5:1")]}),
                "INVALID_DIGEST",
                "`md5:1` is not a digest",
            ),
            (
                json!({"files": [file("../a", &good)]}),
                "INVALID_REQUEST",
                "`../a` is not a name for a file",
            ),
            (
                json!({"files": [file("a", &good), file("a", &other)]}),
                "INVALID_REQUEST",
                "file `a` is there already",
            ),
            (json!({"files": []}), "INVALID_REQUEST", "0 entries"),
            (json!({"fils": []}), "INVALID_BODY", "unknown field `fils`"),
            (json!([1]), "INVALID_BODY", "the body cannot be used"),
        ];
        for (body, reason, named) in cases {
            let (status, found, detail) = registry.refuse(Method::POST, VERSIONS, &body).await;
            assert_eq!((status, found.as_str()), (StatusCode::BAD_REQUEST, reason), "{detail}");
            assert!(detail.contains(named), "{named}: {detail}");
        }
        let body = json!({"files": [file("a", &good)]});
        let (_, reason, detail) = registry.refuse(Method::POST, "datasets/a%20b/versions", &body).await;
        assert_eq!(reason, "INVALID_NAME", "{detail}");
        assert_eq!(registry.get("datasets").await["items"], json!([]));
        for path in [
            "datasets/flights/versions/1",
            "datasets/flights/versions/latest",
            VERSIONS,
        ] {
            let (status, ..) = registry.refuse(Method::GET, path, &Value::Null).await;
            assert_eq!(status, StatusCode::NOT_FOUND, "{path}");
        }
        for path in [
            "datasets/flights/versions/0",
            "datasets/flights/versions/x",
            "datasets?limit=0",
            "datasets?page=2",
        ] {
            let (status, ..) = registry.refuse(Method::GET, path, &Value::Null).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{path}");
        }
    }
}

#[tokio::test]
async fn versions_appended_at_once_have_no_gaps_and_lose_no_file() {
    const WRITERS: usize = 6;
    for (place, registry) in registries().await {
        let mut names = Vec::new();
        for writer in 0..WRITERS {
            let digest = registry.upload(format!("a\n{writer}\n")).await;
            names.push((format!("{writer}.csv"), digest));
        }
        let pushes = names.iter().map(|(name, digest)| {
            let registry = &registry;
            async move { push(registry, &[(name.as_str(), digest.as_str())], true).await }
        });
        let mut versions: Vec<u64> = Vec::new();
        for (status, version) in futures::future::join_all(pushes).await {
            assert_eq!(status, StatusCode::CREATED, "{}: {version}", place.name);
            versions.push(version["version"].as_u64().unwrap());
        }
        versions.sort_unstable();
        assert_eq!(versions, (1..=WRITERS as u64).collect::<Vec<_>>());
        let latest = registry.get(&format!("{VERSIONS}/latest")).await;
        assert_eq!(latest["files"].as_array().unwrap().len(), WRITERS);
        assert_eq!(latest["rows"], WRITERS as u64);
    }
}

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    for (place, registry) in registries().await {
        let digest = registry.upload(parquet(&[1.0])).await;
        let (_, version) = push(&registry, &[("a.parquet", &digest)], false).await;
        // What a kill leaves behind in the middle of an import.
        let left = registry.data_dir.join("registry-imports/0123/copy");
        std::fs::create_dir_all(&left).unwrap();
        drop(registry);
        let registry = start(&place).await;
        assert_eq!(registry.readiness.missing(), Vec::<String>::new());
        assert_eq!(registry.get(&format!("{VERSIONS}/1")).await, version);
        assert!(!left.exists());
        let (status, _) = push(&registry, &[("a.parquet", &digest)], true).await;
        assert_eq!(status, StatusCode::OK);
        registry.stop().await;
    }
}

#[tokio::test]
async fn wide_and_long_files_are_read_in_pieces() {
    for (_place, registry) in registries().await {
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..50_000));
        let batch = RecordBatch::try_from_iter([("n", numbers)]).unwrap();
        let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        let digest = registry.upload(writer.into_inner().unwrap()).await;
        let (status, version) = push(&registry, &[("n.parquet", &digest)], false).await;
        assert_eq!((status, &version["rows"]), (StatusCode::CREATED, &json!(50_000)));
        let profile = registry.get(&format!("{VERSIONS}/1/profile")).await;
        assert_eq!(profile["columns"]["n"]["numeric"]["moments"]["mean"], 24_999.5);
    }
}
