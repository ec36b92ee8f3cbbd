use modelyard_artifacts::Digest;
use serde_json::{Value, json};

use super::*;
use crate::{
    model::{
        import::{GOING_ON, ReadyVersion},
        mlflow_registry::{NewVersionEntry, Stage, VersionStatus},
        registered_model::{NewModelVersion, ONNX},
    },
    store::testing::{PROJECT, TestStores, at, event, model_version, test_stores},
};

fn scope() -> ImportScope {
    ImportScope {
        project: PROJECT.to_owned(),
        source: "http://there".to_owned(),
    }
}

/// What another server has, as it is sent.
fn sent<T: serde::de::DeserializeOwned>(number: u128, item: Value) -> Audited<T> {
    Audited {
        item: serde_json::from_value(item).unwrap(),
        event: event(number, 100),
    }
}

fn experiment(number: u128, name: &str) -> Audited<ImportedExperiment> {
    let item = json!({"source_id": "7", "name": name, "lifecycle": "active", "created_ms": 0, "updated_ms": 0});
    sent(number, item)
}

fn run(number: u128, lifecycle: &str) -> Audited<ImportedRun> {
    let item = json!({
        "run_id": "r", "name": "r", "status": "FINISHED", "lifecycle": lifecycle, "start_ms": 1, "end_ms": 2,
    });
    sent(number, item)
}

fn logged_model(number: u128) -> MeasuredModel {
    let item = json!({
        "model_id": "m-1", "name": "l", "status": "LOGGED_MODEL_READY", "created_ms": 1, "updated_ms": 2,
    });
    (sent(number, item), Vec::new())
}

fn version(number: u128, digest: &str) -> ReadyVersion {
    ReadyVersion {
        entry: NewVersionEntry {
            version: NewModelVersion {
                format: ONNX.to_owned(),
                artifact_digest: digest.to_owned(),
                artifact_size_bytes: 1,
                // When it was made there.
                now: at(1),
                ..model_version(event(number, 100))
            },
            source: "s3://there/m".to_owned(),
            storage_location: String::new(),
            run_id: None,
            run_link: String::new(),
            status_message: String::new(),
            model_id: None,
        },
        number: 1,
        user_id: String::new(),
        stage: Stage::None,
        status: VersionStatus::Ready,
        updated_at: at(1),
    }
}

/// Brings an experiment with a run and a logged model, and a model with a version; the id of the experiment.
async fn bring(test: &TestStores) -> i64 {
    let (imports, registry) = (&test.stores.imports, &test.stores.import_registry);
    let made = imports
        .import_experiments(&scope(), &[experiment(1, "e")], false)
        .await
        .unwrap();
    let id = made.first().unwrap().id.parse().unwrap();
    imports.import_runs(&scope(), id, &[run(2, "active")]).await.unwrap();
    imports
        .import_logged_models(&scope(), id, &[logged_model(3)])
        .await
        .unwrap();
    let model = json!({"source_id": "m", "name": "m", "created_ms": 0, "updated_ms": 0});
    registry
        .import_models(&scope(), &[sent(4, model)], false)
        .await
        .unwrap();
    let digest = Digest::of(b"m").to_string();
    registry
        .import_versions(&scope(), "m", &[version(5, &digest)])
        .await
        .unwrap();
    id
}

async fn states(test: &TestStores, kind: ImportKind, id: &str) -> Vec<ImportState> {
    let imports = &test.stores.imports;
    imports.import_states(&scope(), kind, &[id.to_owned()]).await.unwrap()
}

#[tokio::test]
async fn what_was_removed_here_has_to_come_again() {
    for test in test_stores().await {
        bring(&test).await;
        let kinds = [
            (ImportKind::Experiment, "7"),
            (ImportKind::Run, "r"),
            (ImportKind::LoggedModel, "m-1"),
            (ImportKind::Model, "m"),
            (ImportKind::Version, "m/1"),
        ];
        for (kind, id) in kinds {
            assert_eq!(states(&test, kind, id).await.len(), 1, "{kind:?}");
        }
        test.run(
            "DELETE FROM run; DELETE FROM logged_model; DELETE FROM experiment WHERE id <> 0; DELETE FROM model_version;
             DELETE FROM registered_model;",
        )
        .await;
        for (kind, id) in kinds {
            assert_eq!(states(&test, kind, id).await, [], "{kind:?}");
        }
    }
}

#[tokio::test]
async fn a_model_with_another_name_is_found_by_it() {
    for test in test_stores().await {
        bring(&test).await;
        let models = &test.stores.model_registry;
        let aliases = crate::store::Aliases::Go;
        models
            .rename_model(PROJECT, "m", "n", "user:local", aliases, &event(9, 101))
            .await
            .unwrap();
        for (kind, id, local) in [(ImportKind::Model, "m", "n"), (ImportKind::Version, "m/1", "n/1")] {
            let found = states(&test, kind, id).await;
            assert_eq!(found.iter().map(|state| state.id.as_str()).collect::<Vec<_>>(), [local]);
        }
    }
}

#[tokio::test]
async fn that_something_went_on_is_known_until_it_is_whole() {
    for test in test_stores().await {
        let experiment = bring(&test).await;
        let imports = &test.stores.imports;
        for (said, kept) in [("f0", ""), (GOING_ON, GOING_ON)] {
            let state = ImportState {
                source_id: "r".to_owned(),
                id: String::new(),
                fingerprint: said.to_owned(),
                counts: crate::model::import::ImportCounts::default(),
            };
            imports
                .set_import_states(&scope(), ImportKind::Run, &[state])
                .await
                .unwrap();
            imports
                .import_runs(&scope(), experiment, &[run(10, "active")])
                .await
                .unwrap();
            let found = states(&test, ImportKind::Run, "r").await;
            assert_eq!(found.first().unwrap().fingerprint, kept);
        }
    }
}

#[tokio::test]
async fn what_was_deleted_here_stays_deleted() {
    for test in test_stores().await {
        let experiment = bring(&test).await;
        test.run(
            "UPDATE run SET lifecycle = 'deleted', deleted_at = 77;
             UPDATE logged_model SET lifecycle = 'deleted', updated_at = 77;",
        )
        .await;
        let imports = &test.stores.imports;
        for (number, lifecycle) in [(20, "active"), (21, "deleted")] {
            let again = [run(number, lifecycle)];
            imports.import_runs(&scope(), experiment, &again).await.unwrap();
        }
        let again = [logged_model(22)];
        imports
            .import_logged_models(&scope(), experiment, &again)
            .await
            .unwrap();
        for deleted in [
            "SELECT COUNT(*) FROM run WHERE lifecycle = 'deleted' AND deleted_at = 77",
            "SELECT COUNT(*) FROM logged_model WHERE lifecycle = 'deleted' AND updated_at = 77",
        ] {
            assert_eq!(test.number(deleted).await, 1, "{deleted}");
        }
    }
}

#[tokio::test]
async fn an_experiment_that_keeps_its_artifacts_elsewhere_is_not_taken_over() {
    for test in test_stores().await {
        test.run(
            "INSERT INTO experiment (id, project, name, lifecycle, artifact_location, created_at, updated_at)
             VALUES (50, 'default', 'elsewhere', 'active', 's3://bucket/e', 1, 1),
                    (51, 'default', 'here', 'active', '', 1, 1)",
        )
        .await;
        let imports = &test.stores.imports;
        let refused = imports
            .import_experiments(&scope(), &[experiment(1, "elsewhere")], true)
            .await;
        assert!(matches!(refused, Err(Error::Exists(_))), "{refused:?}");
        let made = imports
            .import_experiments(&scope(), &[experiment(1, "here")], false)
            .await
            .unwrap();
        assert_eq!(made.first().unwrap().id, "51");
    }
}

#[tokio::test]
async fn blobs_of_an_old_version_are_as_young_as_they_are_here() {
    for test in test_stores().await {
        bring(&test).await;
        let stored = "SELECT stored_at FROM blob";
        assert_eq!(test.number(stored).await, at(100).as_micros());
        let made = "SELECT created_at FROM model_version";
        assert_eq!(test.number(made).await, at(1).as_micros());
    }
}

#[tokio::test]
async fn only_what_every_database_has_is_dated_at_the_start() {
    for test in test_stores().await {
        let id = bring(&test).await;
        test.stores.projects.date_defaults(at(200)).await.unwrap();
        let created = |id: i64| format!("SELECT created_at FROM experiment WHERE id = {id}");
        assert_eq!(test.number(created(0)).await, at(200).as_micros());
        assert_eq!(test.number(created(id)).await, 0);
    }
}
