//! The inference log: what is handed over, and what survives.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::Write as _,
    path::PathBuf,
    time::Duration,
};

use arrow::{
    array::{Array as _, AsArray as _, RecordBatch},
    datatypes::{DataType, Float64Type, Int32Type, Int64Type, TimeUnit, TimestampMicrosecondType},
};
use http::StatusCode;
use modelyard_common::telemetry::render_metrics;
use modelyard_proto::registry::v1::Log;
use modelyard_testkit::wait::until;
use serde_json::{Value, json};

use crate::{
    harness::{PATIENCE, Running, World, endpoint, live, shadow},
    life::metric,
    onnx::{scale, simple, slow},
    peers::Registry,
    protocol::binary_request,
};

fn request(id: &str, event_time: &str) -> Value {
    json!({"id": id, "parameters": {"event_time": event_time}, "inputs": [
        {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.5, 2.0]},
        {"name": "who", "datatype": "BYTES", "shape": [1], "data": ["ann"]},
        {"name": "n", "datatype": "INT64", "shape": [1, 1], "data": [7]},
    ]})
}

async fn predict(running: &Running, id: &str, event_time: &str) {
    let answer = running.post("/v2/models/e/infer", &request(id, event_time)).await;
    assert_eq!(answer.status, StatusCode::OK, "{:?}", answer.body);
}

/// A world whose endpoint `e` is answered by version 2, shadowed by version 1.
async fn shadowed() -> World {
    shadowed_with(scale).await
}

/// The same with versions of this kind, which multiply by their number.
async fn shadowed_with(model: fn(f32) -> Vec<u8>) -> World {
    let world = World::new(Registry::new(vec![]));
    let (first, second) = (world.store(model(1.0)).await, world.store(model(2.0)).await);
    let routes = vec![live("m", 2, &second, 1.0), shadow("m", 1, &first, 1.0)];
    world.registry.set(vec![endpoint("e", routes)]);
    world
}

fn texts(batch: &RecordBatch, column: &str) -> Vec<String> {
    let values = batch.column_by_name(column).unwrap().as_string::<i32>();
    values.iter().map(|value| value.unwrap().to_owned()).collect()
}

/// How often each request is in the log, by id and role.
async fn counts(world: &World) -> BTreeMap<(String, String), usize> {
    let mut counts = BTreeMap::new();
    for batch in world.rows("e").await {
        for pair in texts(&batch, "request_id").into_iter().zip(texts(&batch, "role")) {
            *counts.entry(pair).or_default() += 1;
        }
    }
    counts
}

/// The counts of a log that is whole: each request once, live and shadow.
fn whole(requests: usize) -> BTreeMap<(String, String), usize> {
    (0..requests)
        .flat_map(|id| ["live", "shadow"].map(|role| ((format!("r{id}"), role.to_owned()), 1)))
        .collect()
}

async fn wait_until_whole(world: &World, requests: usize) {
    let expected = whole(requests);
    until("the log is whole", PATIENCE, || async {
        let found = counts(world).await;
        let too_often: Vec<_> = found.iter().filter(|(_, count)| **count > 1).collect();
        assert!(too_often.is_empty(), "{too_often:?}");
        (found == expected).then_some(())
    })
    .await;
}

fn segments(world: &World) -> Vec<PathBuf> {
    let folder = world.data_dir().join("gateway/spool/default/e");
    let entries = fs::read_dir(folder).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

#[tokio::test]
async fn predictions_and_their_shadows_reach_the_table() {
    let world = shadowed().await;
    let running = world.start_ready().await;
    let (first, second) = ("2013-03-31T23:00:00Z", "2013-04-01T01:00:00+02:00");
    predict(&running, "r1", "2013-04-01T10:00:00Z").await;
    predict(&running, "r0", first).await;
    predict(&running, "r2", second).await;
    wait_until_whole(&world, 3).await;
    for commit in world.monitoring.commits() {
        assert_eq!((commit.project.as_str(), commit.endpoint.as_str()), ("default", "e"));
        for file in commit.files {
            assert_eq!(
                file.path,
                format!(
                    "event_date={}/{}-{}.parquet",
                    file.event_date,
                    commit.segment_id,
                    file_number(&file.path)
                )
            );
            assert!(file.size_bytes > 0 && file.rows > 0 && !file.schema_ipc.is_empty());
            assert!(file.min_event_time_us <= file.max_event_time_us);
            let day = 24 * 3600 * 1_000_000;
            assert_eq!(file.min_event_time_us / day, file.max_event_time_us / day);
        }
    }
    let mut seen = 0;
    for batch in world.rows("e").await {
        check_columns(&batch);
        seen += batch.num_rows();
        let times = batch
            .column_by_name("event_time")
            .unwrap()
            .as_primitive::<TimestampMicrosecondType>();
        assert!(times.values().is_sorted());
    }
    assert_eq!(seen, 6);
    until("the spool is empty", PATIENCE, || async {
        segments(&world).is_empty().then_some(())
    })
    .await;
    running.stop().await;
}

fn file_number(path: &str) -> &str {
    path.rsplit_once('-').unwrap().1.strip_suffix(".parquet").unwrap()
}

fn check_columns(batch: &RecordBatch) {
    let schema = batch.schema();
    let time = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    assert_eq!(
        names,
        [
            "request_id",
            "row",
            "event_time",
            "received_at",
            "model",
            "model_version",
            "role",
            "protocol",
            "latency_us",
            "input_x",
            "input_who",
            "input_n",
            "output_y",
            "output_name",
            "output_m",
        ]
    );
    assert_eq!(schema.field(2).data_type(), &time);
    assert!(texts(batch, "protocol").iter().all(|protocol| protocol == "http"));
    for (row, (version, role)) in texts(batch, "model_version")
        .iter()
        .zip(texts(batch, "role"))
        .enumerate()
    {
        let factor: f64 = version.parse().unwrap();
        assert_eq!(role, if version == "2" { "live" } else { "shadow" });
        let y = batch.column_by_name("output_y").unwrap().as_list::<i32>().value(row);
        assert_eq!(y.as_primitive::<Float64Type>().values(), &[1.5 * factor, 2.0 * factor]);
        let m = batch.column_by_name("output_m").unwrap().as_primitive::<Int64Type>();
        assert_eq!((m.value(row), m.null_count()), (7, 0));
        assert_eq!(
            batch
                .column_by_name("row")
                .unwrap()
                .as_primitive::<Int32Type>()
                .value(row),
            0
        );
    }
    assert!(texts(batch, "input_who").iter().all(|who| who == "ann"));
}

#[tokio::test]
async fn a_request_of_many_rows_is_as_many_rows() {
    let world = shadowed().await;
    let running = world.start_ready().await;
    let body = json!({"id": "r0", "inputs": [
        {"name": "x", "datatype": "FP32", "shape": [3, 2], "data": [1, 2, 3, 4, 5, 6]},
        {"name": "who", "datatype": "BYTES", "shape": [3], "data": ["a", "b", "c"]},
        {"name": "n", "datatype": "INT64", "shape": [3, 1], "data": [1, 2, 3]},
    ]});
    assert_eq!(running.post("/v2/models/e/infer", &body).await.status, StatusCode::OK);
    until("the rows are there", PATIENCE, || async {
        (counts(&world).await.values().sum::<usize>() == 6).then_some(())
    })
    .await;
    let mut rows = Vec::new();
    for batch in world.rows("e").await {
        let numbers = batch
            .column_by_name("row")
            .unwrap()
            .as_primitive::<Int32Type>()
            .values()
            .to_vec();
        let inputs = batch
            .column_by_name("input_n")
            .unwrap()
            .as_primitive::<Int64Type>()
            .values()
            .to_vec();
        let sides = texts(&batch, "role").into_iter().zip(texts(&batch, "input_who"));
        rows.extend(sides.zip(numbers).zip(inputs));
    }
    rows.sort();
    let expected: Vec<_> = ["live", "shadow"]
        .into_iter()
        .flat_map(|role| {
            ["a", "b", "c"]
                .into_iter()
                .enumerate()
                .map(move |(row, who)| (((role.to_owned(), who.to_owned()), row as i32), row as i64 + 1))
        })
        .collect();
    assert_eq!(rows, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_before_a_kill_is_in_the_log_once() {
    const REQUESTS: usize = 300;
    let mut world = shadowed().await;
    // Nothing is handed over before the kill.
    world.config.flush_interval = Duration::from_hours(1);
    let running = world.start_ready().await;
    for id in 0..REQUESTS {
        predict(&running, &format!("r{id}"), "2013-03-01T00:00:00Z").await;
    }
    running.kill().await;
    assert_eq!(world.monitoring.commits().len(), 0);
    // A record that the kill has torn in two.
    let segment = segments(&world).pop().unwrap();
    let torn = OpenOptions::new().append(true).open(segment).unwrap();
    (&torn).write_all(&[200, 0, 0, 0, 1, 2, 3, 4, 2, 0]).unwrap();
    world.config.flush_interval = Duration::from_millis(100);
    let running = world.start_ready().await;
    wait_until_whole(&world, REQUESTS).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_at_any_moment_cost_and_repeat_no_row() {
    const ROUNDS: usize = 6;
    const REQUESTS: usize = 40;
    let mut world = shadowed().await;
    for round in 0..ROUNDS {
        // Some rounds are killed while segments are on their way, some before.
        world.config.flush_interval = Duration::from_millis(if round % 2 == 0 { 100 } else { 3_600_000 });
        let running = world.start_ready().await;
        for id in 0..REQUESTS {
            predict(&running, &format!("r{}", round * REQUESTS + id), "2013-03-01T00:00:00Z").await;
        }
        running.kill().await;
    }
    world.config.flush_interval = Duration::from_millis(100);
    let running = world.start_ready().await;
    wait_until_whole(&world, ROUNDS * REQUESTS).await;
    running.stop().await;
    assert!(segments(&world).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shadows_that_a_kill_interrupts_are_computed_after_it() {
    const REQUESTS: usize = 200;
    let mut world = World::new(Registry::new(vec![]));
    let (fast, slow) = (world.store(simple(2.0)).await, world.store(slow(1.0, 100)).await);
    let routes = vec![live("m", 2, &fast, 1.0), shadow("m", 1, &slow, 1.0)];
    world.registry.set(vec![endpoint("e", routes)]);
    world.config.flush_interval = Duration::from_hours(1);
    let running = world.start_ready().await;
    for id in 0..REQUESTS {
        let body = json!({"id": format!("r{id}"), "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [id, 1]},
        ]});
        assert_eq!(running.post("/v2/models/e/infer", &body).await.status, StatusCode::OK);
    }
    running.kill().await;
    // The shadow has no route any more: what it owes is computed all the same.
    world.registry.set(vec![endpoint("e", vec![live("m", 2, &fast, 1.0)])]);
    world.config.flush_interval = Duration::from_millis(100);
    let running = world.start_ready().await;
    wait_until_whole(&world, REQUESTS).await;
    for batch in world.rows("e").await {
        let y = batch.column_by_name("output_y").unwrap().as_list::<i32>();
        for (row, id) in texts(&batch, "request_id").iter().enumerate() {
            let factor: f64 = texts(&batch, "model_version")[row].parse().unwrap();
            let id: f64 = id.trim_start_matches('r').parse().unwrap();
            assert_eq!(
                y.value(row).as_primitive::<Float64Type>().values(),
                &[id * factor, factor]
            );
        }
    }
    running.stop().await;
}

/// Asks for so many rows, which make a record of so many times 16 bytes.
async fn ask_for_rows(running: &Running, rows: usize) {
    let raw = vec![0; 8 * rows];
    let header = json!({"id": "r0", "parameters": {"binary_data_output": true}, "inputs": [
        {"name": "x", "datatype": "FP32", "shape": [rows, 2], "parameters": {"binary_data_size": raw.len()}},
    ]});
    let answer = running.send(binary_request("/v2/models/e/infer", &header, &raw)).await;
    assert_eq!(answer.status, StatusCode::OK, "{:?}", answer.body);
}

#[tokio::test]
async fn shadows_of_large_requests_wait_on_disk() {
    const ROWS: usize = 4000;
    let world = shadowed_with(simple).await;
    let running = world.start_ready().await;
    ask_for_rows(&running, ROWS).await;
    let expected = ["live", "shadow"].map(|role| (("r0".to_owned(), role.to_owned()), ROWS));
    let expected = BTreeMap::from(expected);
    until("the rows are in the log", PATIENCE, || async {
        (counts(&world).await == expected).then_some(())
    })
    .await;
    running.stop().await;
}

#[tokio::test]
async fn shadows_are_given_up_first_where_the_log_is_short_of_room() {
    const ROWS: usize = 250_000;
    let _installed = render_metrics();
    let mut world = shadowed_with(simple).await;
    // The least that it may have. Nothing of it is ever handed over.
    world.config.spool_max_bytes = 64 << 20;
    world.monitoring.lose_answers(usize::MAX);
    let running = world.start_ready().await;
    let given_up = || metric(r#"modelyard_gateway_dropped_records_total{reason="shadow_overload"}"#);
    let mut asked = 0;
    while given_up() < 0.5 {
        assert!(asked < 16, "the spool must be full by now");
        ask_for_rows(&running, ROWS).await;
        asked += 1;
    }
    assert!(asked > 2, "there was room for {asked}");
    assert!(metric(r#"modelyard_gateway_dropped_records_total{reason="spool_full"}"#) < 0.5);
    running.kill().await;
}

#[tokio::test]
async fn a_lost_answer_hands_the_same_segment_over_again() {
    let world = shadowed().await;
    world.monitoring.lose_answers(2);
    let running = world.start_ready().await;
    predict(&running, "r0", "2013-03-01T00:00:00Z").await;
    wait_until_whole(&world, 1).await;
    until("the spool is empty", PATIENCE, || async {
        segments(&world).is_empty().then_some(())
    })
    .await;
    let commits = world.monitoring.commits();
    assert!(commits.len() >= 3);
    assert_eq!(commits[0], commits[1]);
    assert_eq!(commits[1], commits[2]);
    let mut files: Vec<String> = commits
        .iter()
        .flat_map(|commit| {
            commit
                .files
                .iter()
                .map(|file| format!("inference-log/default/e/{}", file.path))
        })
        .collect();
    files.sort();
    files.dedup();
    let mut objects = world.objects().await;
    objects.sort();
    assert_eq!(objects, files);
    running.stop().await;
}

#[tokio::test]
async fn a_segment_that_is_refused_is_set_aside_and_tried_at_the_next_start() {
    let world = shadowed().await;
    world.monitoring.refuse(true);
    let running = world.start_ready().await;
    predict(&running, "r0", "2013-03-01T00:00:00Z").await;
    until("the segments are set aside", PATIENCE, || async {
        let paths = segments(&world);
        let aside = paths
            .iter()
            .all(|path| path.extension().is_some_and(|suffix| suffix == "refused"));
        (aside && !paths.is_empty()).then_some(())
    })
    .await;
    running.kill().await;
    world.monitoring.refuse(false);
    let running = world.start_ready().await;
    until("the request is in the log", PATIENCE, || async {
        counts(&world)
            .await
            .contains_key(&("r0".to_owned(), "live".to_owned()))
            .then_some(())
    })
    .await;
    running.stop().await;
}

#[tokio::test]
async fn a_soft_end_hands_everything_over() {
    let mut world = shadowed().await;
    world.config.flush_interval = Duration::from_hours(1);
    let running = world.start_ready().await;
    for id in 0..5 {
        predict(&running, &format!("r{id}"), "2013-03-01T00:00:00Z").await;
    }
    let expected: Vec<String> = (0..5).map(|id| format!("r{id}")).collect();
    running.stop().await;
    // Shadows that were not computed yet, and with them their segment, wait for the next start.
    if segments(&world).is_empty() {
        let live: Vec<String> = counts(&world)
            .await
            .into_keys()
            .filter(|(_, role)| role == "live")
            .map(|(id, _)| id)
            .collect();
        assert_eq!(live, expected);
    }
    let running = world.start_ready().await;
    running.stop().await;
    world.config.flush_interval = Duration::from_millis(100);
    let running = world.start_ready().await;
    wait_until_whole(&world, 5).await;
    running.stop().await;
}

#[tokio::test]
async fn a_full_disk_costs_the_log_and_not_the_answers() {
    let mut world = shadowed().await;
    world.config.spool_min_free_bytes = u64::MAX;
    let running = world.start_ready().await;
    for id in 0..5 {
        predict(&running, &format!("r{id}"), "2013-03-01T00:00:00Z").await;
    }
    assert_eq!(segments(&world), Vec::<PathBuf>::new());
    running.stop().await;
    assert_eq!(world.monitoring.commits().len(), 0);
}

#[tokio::test]
async fn an_endpoint_that_is_not_logged_leaves_nothing() {
    let world = World::new(Registry::new(vec![]));
    let digest = world.store(simple(2.0)).await;
    let mut quiet = endpoint("e", vec![live("m", 1, &digest, 1.0), shadow("m", 1, &digest, 1.0)]);
    quiet.log = None;
    world.registry.set(vec![quiet]);
    let running = world.start_ready().await;
    let body = json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]});
    assert_eq!(running.post("/v2/models/e/infer", &body).await.status, StatusCode::OK);
    running.stop().await;
    assert!(!world.data_dir().join("gateway/spool/default").exists());
    assert_eq!(world.monitoring.commits().len(), 0);
}

#[tokio::test]
async fn the_log_keeps_to_what_the_endpoint_wants_of_it() {
    const REQUESTS: usize = 200;
    let world = World::new(Registry::new(vec![]));
    let (first, second) = (world.store(scale(1.0)).await, world.store(scale(2.0)).await);
    let mut reserved = endpoint("e", vec![live("m", 2, &second, 1.0), shadow("m", 1, &first, 1.0)]);
    reserved.log = Some(Log {
        predictions: true,
        sample: 0.3,
        redact: vec!["who".to_owned(), "x".to_owned(), "m".to_owned()],
        max_record_bytes: 0,
    });
    world.registry.set(vec![reserved.clone()]);
    let running = world.start_ready().await;
    for id in 0..REQUESTS {
        predict(&running, &format!("r{id}"), "2013-04-01T10:00:00Z").await;
    }
    let all_handed_over = || async { segments(&world).is_empty().then_some(()) };
    until("the log is handed over", PATIENCE, all_handed_over).await;
    running.stop().await;
    let batches = world.rows("e").await;
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    // Live and shadow rows of 30 %, within four standard deviations.
    assert!((2 * 34..=2 * 86).contains(&rows), "{rows} rows");
    for batch in &batches {
        for (column, nulls) in [
            ("input_who", batch.num_rows()),
            ("input_x", batch.num_rows()),
            ("output_m", batch.num_rows()),
            ("input_n", 0),
            ("output_y", 0),
            ("output_name", 0),
        ] {
            let found = batch.column_by_name(column).unwrap().null_count();
            assert_eq!(found, nulls, "{column}");
        }
    }
    // Which of them are logged is a matter of their ids.
    let mut again = reserved.clone();
    again.log.as_mut().unwrap().max_record_bytes = 10;
    world.registry.set(vec![again]);
    let running = world.start_ready().await;
    for id in 0..REQUESTS {
        predict(&running, &format!("s{id}"), "2013-04-01T10:00:00Z").await;
    }
    running.stop().await;
    let after: usize = world.rows("e").await.iter().map(RecordBatch::num_rows).sum();
    assert_eq!(after, rows, "none is so small");
}
