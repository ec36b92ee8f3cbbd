use super::*;
use crate::{
    model::{
        collection::{Claim, CollectionPlan, CollectionRequest, NewCollection},
        mlflow_registry::NewVersionEntry,
        registered_model::NewModelVersion,
    },
    store::testing::{PROJECT, TestStores, at, event, model_version, test_stores},
};

/// An experiment with runs and a logged model that were deleted.
const DELETED: &str = "
    INSERT INTO experiment (id, project, name, lifecycle, created_at, updated_at)
    VALUES (1, 'default', 'one', 'active', 1, 2);
    INSERT INTO run (id, project, experiment_id, name, status, lifecycle, start_time, request_digest, deleted_at)
    VALUES ('r1', 'default', 1, '', 'FINISHED', 'deleted', 5, '', 6),
           ('r2', 'default', 1, '', 'FINISHED', 'deleted', 5, '', 6);
    INSERT INTO logged_model (id, project, experiment_id, name, model_type, status, lifecycle, created_at, updated_at)
    VALUES ('m-1', 'default', 1, 'l', '', 'READY', 'deleted', 5, 6);
    INSERT INTO registered_model (project, name, description, last_version, created_at, updated_at)
    VALUES ('default', 'm', '', 0, 0, 0);";

/// A collection of all that was deleted, taken up.
pub async fn claim(test: &TestStores, number: u128) -> (Claim, CollectionPlan) {
    let request = CollectionRequest {
        older_than: Some("0s".to_owned()),
        blob_grace: Some("0s".to_owned()),
        ..CollectionRequest::default()
    };
    let new = NewCollection {
        id: format!("c{number}"),
        project: PROJECT.to_owned(),
        request,
        started_by: "user:local".to_owned(),
        event: event(number, 100),
        now: at(100),
    };
    let collections = &test.stores.collections;
    collections.start_collection(&new).await.unwrap();
    let claim = collections
        .claim_collection("n", at(100), at(400))
        .await
        .unwrap()
        .unwrap();
    let plan = claim.request.plan(claim.started_at).unwrap();
    (claim, plan)
}

fn version(run_id: Option<&str>) -> NewModelVersion {
    NewModelVersion {
        run_id: run_id.map(str::to_owned),
        ..model_version(event(900, 101))
    }
}

#[tokio::test]
async fn no_version_names_what_was_taken_since_it_was_looked_for() {
    for test in test_stores().await {
        test.run(DELETED).await;
        let (claim, plan) = claim(&test, 1).await;
        let step = Step {
            claim: &claim,
            plan: &plan,
            now: at(100),
            lease_until: at(400),
        };
        let collector = &test.stores.collector;
        assert_eq!(collector.take_runs(&step, "").await.unwrap().as_deref(), Some("r2"));
        collector.take_logged_models(&step, "").await.unwrap();
        let refused = test.stores.models.create_model_version(&version(Some("r1"))).await;
        assert!(matches!(refused, Err(Error::NotThere(_))), "{refused:?}");
        let of_model = NewVersionEntry {
            version: version(None),
            source: "models:/m-1".to_owned(),
            storage_location: String::new(),
            run_id: None,
            run_link: String::new(),
            status_message: String::new(),
            model_id: Some("m-1".to_owned()),
        };
        let refused = test.stores.version_registry.create_version_entry(&of_model).await;
        assert!(matches!(refused, Err(Error::NotThere(_))), "{refused:?}");
        let versions = test.number("SELECT COUNT(*) FROM model_version").await;
        assert_eq!(versions, 0);
    }
}

#[tokio::test]
async fn a_taken_run_that_a_version_names_holds_up_no_other() {
    for test in test_stores().await {
        test.run(DELETED).await;
        let (claim, plan) = claim(&test, 1).await;
        let step = Step {
            claim: &claim,
            plan: &plan,
            now: at(100),
            lease_until: at(400),
        };
        let collector = &test.stores.collector;
        collector.take_runs(&step, "").await.unwrap();
        test.run(
            "INSERT INTO model_version (project, model, version, description, format, artifact_digest, artifact_size_bytes,
                                        signature, metrics, training_rows, request_digest, created_at, run_id)
             VALUES ('default', 'm', 1, '', 'onnx', 'x', 1, '{}', '{}', 0, '', 7, 'r1')",
        )
        .await;
        assert!(!collector.remove_remains(&step).await.unwrap());
        let left = "SELECT COUNT(*) FROM run WHERE id = 'r1'";
        assert_eq!(test.number("SELECT COUNT(*) FROM run").await, 1);
        assert_eq!(test.number(left).await, 1);
        test.run("DELETE FROM model_version").await;
        assert!(!collector.remove_remains(&step).await.unwrap());
        assert_eq!(test.number(left).await, 0);
    }
}

#[tokio::test]
async fn what_is_restored_while_it_is_looked_at_stays() {
    for test in test_stores().await {
        // Elsewhere there is one writer.
        let Some(pools) = test.postgres() else {
            continue;
        };
        test.run(DELETED).await;
        test.run(
            "UPDATE experiment SET lifecycle = 'deleted' WHERE id = 1;
             UPDATE logged_model SET lifecycle = 'active';
             INSERT INTO trace (project, id, experiment_id, timestamp_ms, state) VALUES ('default', 't', 1, 1, 'OK');",
        )
        .await;
        let (claim, plan) = claim(&test, 1).await;
        let step = Step {
            claim: &claim,
            plan: &plan,
            now: at(100),
            lease_until: at(400),
        };
        let collector = &test.stores.collector;
        for is_of_traces in [false, true] {
            test.run("UPDATE experiment SET lifecycle = 'deleted' WHERE id = 1")
                .await;
            let mut tx = pools.begin().await.unwrap();
            SqlStore::<PostgresPools>::hold_experiments(&mut tx).await.unwrap();
            let restore = async {
                test.until_one_waits().await;
                sqlx::query("UPDATE experiment SET lifecycle = 'active' WHERE id = 1")
                    .execute(&mut *tx)
                    .await
                    .unwrap();
                tx.commit().await.unwrap();
            };
            let look = async {
                if is_of_traces {
                    collector.remove_traces(&step).await.map(|_| ())
                } else {
                    collector.take_logged_models(&step, "").await.map(|_| ())
                }
            };
            let (looked, ()) = tokio::join!(look, restore);
            looked.unwrap();
        }
        assert_eq!(test.number("SELECT COUNT(*) FROM trace").await, 1);
        let stays = "SELECT COUNT(*) FROM logged_model WHERE project = 'default'";
        assert_eq!(test.number(stays).await, 1);
    }
}
