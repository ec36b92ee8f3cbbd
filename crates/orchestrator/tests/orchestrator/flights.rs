//! The pipeline of examples/flights on a sample of the data, with everything real but the registry.

use std::{fs::File, path::PathBuf};

use arrow::{
    array::{Array, AsArray, RecordBatch, UInt32Array},
    compute::{concat_batches, take_record_batch},
};
use modelyard_inference::{Model, ModelOptions, Runtime, probabilities, tensors_from_batch};
use modelyard_proto::registry::v1::{DatasetColumn, DatasetFile, DatasetVersion, RunStatus};
use modelyard_stats::Profile;
use modelyard_testkit::wait::until;
use parquet::arrow::{ArrowWriter, arrow_reader::ParquetRecordBatchReaderBuilder};
use serde_json::{Value, json};

use crate::world::{PATIENCE, World, step};

/// One row of so many is kept.
const SAMPLE: usize = 4;

fn example(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../examples/flights")
        .join(name)
}

/// A resource file of the example: its name and its spec.
fn resource(file: &str) -> (String, Value) {
    let text = std::fs::read_to_string(example(file)).unwrap();
    let resource: Value = serde_norway::from_str(&text).unwrap();
    (resource["name"].as_str().unwrap().to_owned(), resource["spec"].clone())
}

fn flights() -> RecordBatch {
    let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(example("flights.parquet")).unwrap()).unwrap();
    let batches: Vec<RecordBatch> = builder.build().unwrap().map(Result::unwrap).collect();
    concat_batches(&batches[0].schema(), &batches).unwrap()
}

/// The sampled rows of some months.
fn months(all: &RecordBatch, months: &[&str]) -> RecordBatch {
    let times = arrow::compute::cast(
        all.column_by_name("time_hour").unwrap(),
        &arrow::datatypes::DataType::Utf8,
    )
    .unwrap();
    let times = times.as_string::<i32>();
    let of_months = (0..times.len()).filter(|&row| months.iter().any(|month| times.value(row).starts_with(month)));
    let rows: Vec<u32> = of_months.step_by(SAMPLE).map(|row| row as u32).collect();
    take_record_batch(all, &UInt32Array::from(rows)).unwrap()
}

async fn add_version(world: &World, version: u32, parts: &[RecordBatch]) {
    let mut files = Vec::new();
    for (place, part) in parts.iter().enumerate() {
        let mut bytes = Vec::new();
        let mut writer = ArrowWriter::try_new(&mut bytes, part.schema(), None).unwrap();
        writer.write(part).unwrap();
        writer.close().unwrap();
        let size_bytes = bytes.len() as u64;
        let blob = world.artifacts().put_bytes(bytes).await.unwrap();
        files.push(DatasetFile {
            name: format!("part-{place}.parquet"),
            digest: blob.digest.to_string(),
            size_bytes,
            rows: part.num_rows() as u64,
            format: "parquet".to_owned(),
        });
    }
    let schema = parts[0].schema();
    let columns = schema.fields().iter().map(|field| DatasetColumn {
        name: field.name().clone(),
        r#type: field.data_type().to_string(),
        nullable: field.is_nullable(),
    });
    world.registry.contents.lock().datasets.push(DatasetVersion {
        project: "default".to_owned(),
        name: "flights".to_owned(),
        version,
        digest: format!("sha256:{}", "0".repeat(64)),
        columns: columns.collect(),
        rows: files.iter().map(|file| file.rows).sum(),
        files,
        ..DatasetVersion::default()
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn the_flights_go_from_data_to_champion_and_are_retrained() {
    let world = World::new().await;
    let all = flights();
    let (name, spec) = resource("pipeline.yaml");
    world.put(&format!("pipelines/{name}"), &spec).await;
    let (trigger, trigger_spec) = resource("trigger.yaml");
    world.put(&format!("triggers/{trigger}"), &trigger_spec).await;

    let winter = months(&all, &["2013-01", "2013-02"]);
    add_version(&world, 1, std::slice::from_ref(&winter)).await;
    let run = world.finish(&world.run(&name, &json!({})).await).await;
    assert_eq!(run["status"], "succeeded", "{run}");
    let trained = &step(&run, "train")["outputs"];
    assert!(
        trained["parity"]["largest_difference"].as_f64().unwrap() <= 1e-5,
        "{trained}"
    );
    assert_eq!(
        trained["training_rows"].as_u64().unwrap() + trained["holdout_rows"].as_u64().unwrap(),
        winter.num_rows() as u64
    );
    let evaluated = &step(&run, "evaluate")["outputs"];
    assert_eq!(evaluated["champion"], Value::Null);
    assert!(evaluated["candidate"]["auc"].as_f64().unwrap() > 0.6, "{evaluated}");
    assert_eq!(step(&run, "promote")["outputs"]["previous_version"], Value::Null);
    check_registered(&world, &winter, trained, evaluated).await;

    // More months come: an alert fires the trigger, and the same pipeline compares with the champion.
    let rest = months(&all, &["2013-03", "2013-04", "2013-05", "2013-06"]);
    add_version(&world, 2, &[winter, rest]).await;
    let id = world
        .fire(&trigger, "alert:1", &json!({"window": "2013-06"}))
        .await
        .unwrap();
    let run = world.finish(&id).await;
    assert_eq!(run["status"], "succeeded", "{run}");
    let evaluated = &step(&run, "evaluate")["outputs"];
    assert_eq!(evaluated["champion_version"], 1);
    let (candidate, champion) = (
        evaluated["candidate"]["auc"].as_f64(),
        evaluated["champion"]["auc"].as_f64(),
    );
    println!(
        "candidate {candidate:?}, champion {champion:?}: {}",
        step(&run, "gate")["outputs"]["reason"]
    );
    assert!(candidate > champion, "four more months make it better: {evaluated}");
    assert_eq!(step(&run, "promote")["outputs"]["previous_version"], 1);
    let contents = world.registry.contents.lock();
    assert_eq!(contents.versions.len(), 2);
    assert_eq!(contents.aliases[&("flight-delay".to_owned(), "champion".to_owned())], 2);
    assert!(
        contents
            .runs
            .iter()
            .all(|run| run.status == i32::from(RunStatus::Finished))
    );
}

/// What was registered can be served, and says where it comes from.
async fn check_registered(world: &World, rows: &RecordBatch, trained: &Value, evaluated: &Value) {
    let (version, run) = {
        let contents = world.registry.contents.lock();
        (contents.versions[0].clone(), contents.runs[0].clone())
    };
    assert_eq!((version.dataset.as_str(), version.dataset_version), ("flights", 1));
    assert_eq!(
        (version.run_id.as_str(), run.experiment.as_str()),
        (run.run_id.as_str(), "flight-delay")
    );
    assert_eq!(
        version.metrics.get("auc").copied(),
        evaluated["candidate"]["auc"].as_f64()
    );
    assert_eq!(version.training_rows, trained["training_rows"].as_u64().unwrap());
    assert_eq!(run.inputs[0].name, "flights");
    let logged = |key: &str| {
        run.metrics
            .iter()
            .find(|metric| metric.key == key)
            .map(|metric| metric.value)
    };
    assert_eq!(logged("holdout_auc"), evaluated["candidate"]["auc"].as_f64());
    assert!(
        run.params
            .iter()
            .any(|param| param.key == "trees" && param.value == "150")
    );
    let signature: Value = serde_json::from_str(&version.signature_json).unwrap();
    let inputs: Vec<&str> = signature["inputs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|input| input["name"].as_str().unwrap())
        .collect();
    assert!(
        inputs.contains(&"carrier") && !inputs.contains(&"flight") && !inputs.contains(&"time_hour"),
        "{inputs:?}"
    );
    assert_eq!(
        signature["outputs"][1]["tensor-spec"],
        json!({"dtype": "float32", "shape": [-1, 2]})
    );

    let artifacts = world.artifacts();
    let profile = artifacts
        .get_bytes(version.reference_profile_digest.parse().unwrap(), 1 << 30)
        .await
        .unwrap();
    let profile = Profile::from_json(std::str::from_utf8(&profile).unwrap()).unwrap();
    assert_eq!(profile.rows, version.training_rows);
    let names: Vec<&str> = profile
        .columns
        .keys()
        .map(String::as_str)
        .filter(|name| !inputs.contains(name))
        .collect();
    assert_eq!(names, ["prediction"], "beside the inputs");
    assert_eq!(
        profile.columns["prediction"].count,
        trained["holdout_rows"].as_u64().unwrap()
    );
    let graph = artifacts
        .get_bytes(version.artifact_digest.parse().unwrap(), 1 << 30)
        .await
        .unwrap();
    let model = Model::from_bytes(&Runtime::load().unwrap(), &graph, ModelOptions::single()).unwrap();
    let few = rows.slice(0, 10);
    let answers = probabilities(&model.run(tensors_from_batch(&few, model.signature()).unwrap()).unwrap()).unwrap();
    assert_eq!((answers.rows, answers.classes), (10, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_trainer_refuses_is_the_error_of_the_step_and_ends_its_run() {
    let world = World::new().await;
    add_version(&world, 1, &[months(&flights(), &["2013-01"])]).await;
    let cases = [
        (
            json!({"target": "latte"}),
            "unknown column `latte` as target: the dataset has columns",
        ),
        (
            json!({"target": "late", "holdout": "7d"}),
            "with.holdout: needs `time_column`",
        ),
        (
            json!({"target": "late", "holdout": "29d", "time_column": "carrier"}),
            "carrier",
        ),
        (json!({"target": "late", "features": ["wind"]}), "unknown column `wind`"),
    ];
    for (place, (with, expected)) in cases.into_iter().enumerate() {
        let mut train = json!({"name": "t", "op": "train", "with": with});
        train["with"]["dataset"] = json!("flights/1");
        let run = world.finish(&world.run_steps(json!([train])).await).await;
        assert_eq!(run["status"], "failed");
        let error = run["steps"][0]["error"].as_str().unwrap();
        assert!(error.contains(expected), "{error}");
        assert_eq!(
            world.registry.contents.lock().runs[place].status,
            i32::from(RunStatus::Failed)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_training_that_is_called_off_ends_its_run_as_killed() {
    let world = World::new().await;
    add_version(&world, 1, &[months(&flights(), &["2013-01", "2013-02"])]).await;
    let train = |timeout: &str| {
        json!({"name": "t", "op": "train", "timeout": timeout,
            "with": {"dataset": "flights/1", "target": "late", "exclude": ["flight", "time_hour"], "trees": 5000, "max_depth": 12}})
    };
    let id = world.run_steps(json!([train("1h")])).await;
    let boosting = |run: &Value| {
        run["steps"][0]["progress"]["message"]
            .as_str()
            .is_some_and(|text| text.contains("boosting"))
    };
    let run = world.wait(&id, "the training says how far it is", boosting).await;
    assert_eq!(run["steps"][0]["progress"]["total"], 5000);
    let (_, run) = world
        .send(http::Method::POST, &format!("pipeline-runs/{id}/cancel"), None)
        .await;
    assert_eq!(run["status"], "cancelled");
    let killed = |place: usize| {
        let registry = world.registry.clone();
        until("the run of the experiment is killed", PATIENCE, move || {
            let contents = registry.contents.lock();
            let is_killed = contents
                .runs
                .get(place)
                .is_some_and(|run| run.status == i32::from(RunStatus::Killed));
            std::future::ready(is_killed.then_some(()))
        })
    };
    killed(0).await;
    let run = world.finish(&world.run_steps(json!([train("300ms")])).await).await;
    assert_eq!(
        run["error"],
        "step `t` failed: it took longer than its timeout of 300ms"
    );
    killed(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_training_begins_anew_in_the_same_run_of_the_experiment() {
    let mut world = World::new().await;
    add_version(&world, 1, &[months(&flights(), &["2013-01"])]).await;
    let train = json!({"name": "t", "op": "train", "with": {"dataset": "flights/1", "target": "late", "exclude": ["flight", "time_hour"], "trees": 30}});
    let register = json!({"name": "r", "op": "register", "with": {"candidate": "{{ steps.t.outputs }}", "model": "m"}});
    let id = world.run_steps(json!([train, register])).await;
    let running = |run: &Value| run["steps"][0]["status"] != "pending";
    world.wait(&id, "the training has begun", running).await;
    world.kill_and_restart().await;
    let run = world.finish(&id).await;
    assert_eq!(run["status"], "succeeded", "{run}");
    let contents = world.registry.contents.lock();
    assert_eq!((contents.runs.len(), contents.versions.len()), (1, 1));
    assert_eq!(contents.runs[0].status, i32::from(RunStatus::Finished));
    let names: Vec<&str> = contents.runs[0]
        .metrics
        .iter()
        .map(|metric| metric.key.as_str())
        .collect();
    let distinct: std::collections::BTreeSet<&str> = names.iter().copied().collect();
    assert_eq!(names.len(), distinct.len(), "every metric once: {names:?}");
    assert_eq!(
        contents.versions[0].metrics.keys().len(),
        run["steps"][0]["outputs"]["validation"].as_object().unwrap().len()
    );
}
