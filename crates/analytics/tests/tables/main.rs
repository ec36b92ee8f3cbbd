//! What tables and queries promise, on a local folder and in memory.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{collections::HashSet, path::Path, process::Command, sync::Arc, time::Duration};

use arrow::{
    array::{
        ArrayRef, AsArray as _, Date32Array, Float64Array, Int32Array, Int64Array, ListArray, RecordBatch, StringArray,
        TimestampMicrosecondArray,
    },
    datatypes::{DataType, Field, Float64Type, Int64Type, Schema, TimeUnit},
    util::pretty::pretty_format_batches,
};
use chrono::NaiveDate;
use deltalake::logstore::default_logstore;
use futures::{StreamExt as _, future::join_all};
use modelyard_analytics::{
    Analytics, AnalyticsOptions, Appended, CHECKPOINT_INTERVAL, DataFile, Error, QueryTable, ScalarValue, TableName,
};
use modelyard_artifacts::{Storage, StorageConfig};
use modelyard_common::{Fault as _, clock::SystemClock};
use object_store::{ObjectStore, ObjectStoreExt as _, path::Path as ObjectPath, prefix::PrefixStore};
use parquet::{arrow::ArrowWriter, file::properties::WriterProperties, schema::types::ColumnPath};
use tempfile::TempDir;

mod queries;

const ANY: usize = 1_000_000;

fn analytics(store: &Arc<dyn ObjectStore>) -> Analytics {
    let options = AnalyticsOptions {
        threads: 2,
        ..AnalyticsOptions::default()
    };
    Analytics::new(Arc::clone(store), &options, Arc::new(SystemClock)).unwrap()
}

fn memory() -> Arc<dyn ObjectStore> {
    Storage::open(&StorageConfig::memory()).unwrap().store()
}

fn folder(path: &Path) -> Arc<dyn ObjectStore> {
    Storage::open(&StorageConfig::folder(path)).unwrap().store()
}

fn log() -> TableName {
    TableName::new(&["inference-log", "default", "flight-delay"]).unwrap()
}

fn log_table(schema: Option<Arc<Schema>>) -> QueryTable {
    QueryTable {
        alias: "log".to_owned(),
        table: log(),
        schema,
    }
}

fn day(day: u32) -> NaiveDate {
    NaiveDate::from_ymd_opt(2013, 3, day).unwrap()
}

fn micros(date: NaiveDate, second: i64) -> i64 {
    date.and_hms_opt(0, 0, 0).unwrap().and_utc().timestamp_micros() + second * 1_000_000
}

fn times(values: impl Iterator<Item = i64>) -> ArrayRef {
    Arc::new(TimestampMicrosecondArray::from_iter_values(values).with_timezone("UTC"))
}

/// Rows of the inference log with the given request ids, one a second.
fn log_rows(date: NaiveDate, ids: &[String]) -> RecordBatch {
    let texts = |text: &str| -> ArrayRef { Arc::new(StringArray::from(vec![text; ids.len()])) };
    let rows = ids.len() as i64;
    let probabilities = (0..rows).map(|row| Some(vec![Some(row as f64), Some(0.5)]));
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("request_id", Arc::new(StringArray::from(ids.to_vec()))),
        ("row", Arc::new(Int32Array::from(vec![0; ids.len()]))),
        ("event_time", times((0..rows).map(|row| micros(date, row)))),
        ("received_at", times((0..rows).map(|row| micros(date, row + 1)))),
        ("model", texts("flight-delay")),
        ("model_version", texts("1")),
        ("role", texts("live")),
        ("latency_us", Arc::new(Int64Array::from_iter_values(0..rows))),
        (
            "input_carrier",
            Arc::new(
                (0..rows)
                    .map(|row| (row % 3 > 0).then_some("UA"))
                    .collect::<StringArray>(),
            ),
        ),
        (
            "input_distance",
            Arc::new(Float64Array::from_iter_values((0..rows).map(|row| row as f64))),
        ),
        (
            "output_probability",
            Arc::new(ListArray::from_iter_primitive::<Float64Type, _, _>(probabilities)),
        ),
    ];
    RecordBatch::try_from_iter(columns).unwrap()
}

fn ids(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|row| format!("{prefix}-{row:06}")).collect()
}

async fn upload(store: &Arc<dyn ObjectStore>, date: NaiveDate, name: &str, rows: &RecordBatch) -> DataFile {
    let key = ColumnPath::from("request_id");
    let properties = WriterProperties::builder()
        .set_max_row_group_row_count(Some(1000))
        .set_column_bloom_filter_enabled(key, true)
        .build();
    let mut writer = ArrowWriter::try_new(Vec::new(), rows.schema(), Some(properties)).unwrap();
    writer.write(rows).unwrap();
    let content = writer.into_inner().unwrap();
    let file = DataFile {
        path: format!("event_date={date}/{name}.parquet"),
        size_bytes: content.len() as u64,
        rows: rows.num_rows() as u64,
    };
    let path = ObjectPath::parse(format!("{}/{}", log(), file.path)).unwrap();
    store.put(&path, content.into()).await.unwrap();
    file
}

async fn upload_log(store: &Arc<dyn ObjectStore>, date: NaiveDate, name: &str, count: usize) -> DataFile {
    upload(store, date, name, &log_rows(date, &ids(name, count))).await
}

async fn count(analytics: &Analytics, filter: &str) -> i64 {
    let sql = format!("SELECT count(*) FROM log WHERE {filter}");
    let result = analytics.query_collect(&sql, &[log_table(None)], &[], 1).await.unwrap();
    result.batches[0].column(0).as_primitive::<Int64Type>().value(0)
}

async fn table_text(analytics: &Analytics, sql: &str, tables: &[QueryTable]) -> String {
    let result = analytics.query_collect(sql, tables, &[], ANY).await.unwrap();
    pretty_format_batches(&result.batches).unwrap().to_string()
}

/// The value of a metric of the scan in the text of an `EXPLAIN ANALYZE`.
fn metric(text: &str, name: &str) -> String {
    let start = text
        .find(&format!("{name}="))
        .unwrap_or_else(|| panic!("no {name} in {text}"));
    let value = &text[start + name.len() + 1..];
    value.chars().take_while(|c| !matches!(c, ',' | ']')).collect()
}

#[tokio::test]
async fn appended_files_are_read_with_their_types() {
    let root = tempfile::tempdir().unwrap();
    for store in [folder(root.path()), memory()] {
        let analytics = analytics(&store);
        assert_eq!(analytics.version(&log()).await.unwrap(), None);
        let files = vec![
            upload_log(&store, day(1), "a", 10).await,
            upload_log(&store, day(2), "b", 5).await,
        ];
        let appended = analytics.append(&log(), files, "segment-1").await.unwrap();
        assert_eq!(
            appended,
            Appended {
                version: 1,
                already: false
            }
        );
        assert_eq!(count(&analytics, "true").await, 15);
        assert_eq!(count(&analytics, "event_date = DATE '2013-03-02'").await, 5);
        assert_eq!(
            count(&analytics, "event_time < TIMESTAMP '2013-03-01T00:00:03Z'").await,
            3
        );

        let sql = "SELECT * FROM log WHERE request_id = $id AND event_date = $day";
        let days_since_1970 = 15_765;
        let params = [
            ("id", ScalarValue::Utf8(Some("a-000004".to_owned()))),
            ("day", ScalarValue::Date32(Some(days_since_1970))),
        ];
        let result = analytics
            .query_collect(sql, &[log_table(None)], &params, ANY)
            .await
            .unwrap();
        assert_eq!(result.rows(), 1);
        let kind = |name: &str| result.schema.field_with_name(name).unwrap().data_type().clone();
        assert_eq!(kind("request_id"), DataType::Utf8);
        assert_eq!(kind("event_date"), DataType::Date32);
        assert_eq!(kind("row"), DataType::Int32);
        assert_eq!(
            kind("event_time"),
            DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
        );
        let list = result.batches[0]
            .column_by_name("output_probability")
            .unwrap()
            .as_list::<i32>()
            .value(0);
        assert_eq!(list.as_primitive::<Float64Type>().values(), &[4.0, 0.5]);
    }
}

#[tokio::test]
async fn a_file_is_in_a_table_once_however_often_it_is_appended() {
    let store = memory();
    let first = analytics(&store);
    let a = upload_log(&store, day(1), "a", 10).await;
    let b = upload_log(&store, day(1), "b", 10).await;
    first.append(&log(), vec![a.clone()], "1").await.unwrap();
    let again = first.append(&log(), vec![a.clone()], "1").await.unwrap();
    assert_eq!(
        again,
        Appended {
            version: 1,
            already: true
        }
    );
    // After a restart, and together with a new file.
    let second = analytics(&store);
    let again = second.append(&log(), vec![a.clone()], "1").await.unwrap();
    assert_eq!(
        again,
        Appended {
            version: 1,
            already: true
        }
    );
    let both = second.append(&log(), vec![a.clone(), b], "2").await.unwrap();
    assert_eq!(
        both,
        Appended {
            version: 2,
            already: false
        }
    );
    assert_eq!(count(&first, "true").await, 20);

    // Another tool compacts the table: the files are gone from it, and their rows are not.
    let below = Arc::new(PrefixStore::new(Arc::clone(&store), log().to_string()));
    let url = format!("memory:///{}/", log()).parse().unwrap();
    let log_store = default_logstore(
        below,
        Arc::clone(&store),
        &url,
        &deltalake::logstore::StorageConfig::default(),
    );
    let mut table = deltalake::DeltaTable::new(log_store);
    table.load().await.unwrap();
    let (_, metrics) = table.optimize().await.unwrap();
    assert_eq!(metrics.num_files_removed, 2);
    for analytics in [&first, &second, &analytics(&store)] {
        assert!(analytics.append(&log(), vec![a.clone()], "1").await.unwrap().already);
        assert_eq!(count(analytics, "true").await, 20);
    }
}

#[tokio::test]
async fn columns_may_come_but_not_change() {
    let store = memory();
    let analytics = analytics(&store);
    let old = upload_log(&store, day(1), "old", 4).await;
    analytics.append(&log(), vec![old], "1").await.unwrap();

    let rows = log_rows(day(2), &ids("new", 3));
    let with = |name: &str, column: ArrayRef| {
        let mut columns: Vec<(String, ArrayRef)> = Vec::new();
        for (field, column) in rows.schema().fields().iter().zip(rows.columns()) {
            columns.push((field.name().clone(), Arc::clone(column)));
        }
        columns.retain(|(existing, _)| existing != name);
        columns.push((name.to_owned(), column));
        RecordBatch::try_from_iter(columns).unwrap()
    };
    let wider = with("input_origin", Arc::new(StringArray::from(vec!["EWR", "JFK", "LGA"])));
    let file = upload(&store, day(2), "wider", &wider).await;
    analytics.append(&log(), vec![file], "2").await.unwrap();
    assert_eq!(count(&analytics, "input_origin IS NULL").await, 4);
    assert_eq!(count(&analytics, "input_origin = 'JFK'").await, 1);

    let changed = with("input_distance", Arc::new(Int64Array::from(vec![1, 2, 3])));
    let changed = upload(&store, day(2), "changed", &changed).await;
    let good = upload_log(&store, day(2), "good", 1).await;
    let error = analytics.append(&log(), vec![good, changed], "3").await.unwrap_err();
    assert_eq!(error.reason(), "COLUMN_TYPE_CONFLICT");
    let text = error.to_string();
    assert!(
        text.contains("input_distance") && text.contains("double") && text.contains("long"),
        "{text}"
    );
    assert_eq!(analytics.version(&log()).await.unwrap(), Some(2));
    assert_eq!(count(&analytics, "true").await, 7);
}

#[tokio::test]
async fn what_would_break_a_table_is_not_committed() {
    let store = memory();
    let analytics = analytics(&store);
    let good = upload_log(&store, day(1), "good", 10).await;
    let other = |change: &dyn Fn(&mut DataFile)| {
        let mut file = good.clone();
        change(&mut file);
        file
    };
    let noise = ObjectPath::parse(format!("{}/event_date=2013-03-01/noise.parquet", log())).unwrap();
    store
        .put(&noise, vec![7; good.size_bytes as usize].into())
        .await
        .unwrap();
    let wrong = [
        other(&|file| file.path = file.path.replace("good", "missing")),
        other(&|file| file.path = file.path.replace("good", "noise")),
        other(&|file| file.path = "event_date=2013-03-01/../good.parquet".to_owned()),
        other(&|file| file.path = "good.parquet".to_owned()),
        other(&|file| file.size_bytes -= 1),
        other(&|file| file.size_bytes += 1),
        other(&|file| file.rows += 1),
    ];
    for file in wrong {
        let error = analytics.append(&log(), vec![file.clone()], "1").await.unwrap_err();
        assert_eq!(error.reason(), "INVALID_DATA_FILE", "{file:?}: {error}");
    }
    for files in [vec![], vec![good.clone(), good.clone()]] {
        let error = analytics.append(&log(), files, "1").await.unwrap_err();
        assert_eq!(error.reason(), "INVALID_APPEND");
    }
    assert_eq!(analytics.version(&log()).await.unwrap(), None);

    analytics.append(&log(), vec![good], "1").await.unwrap();
    let rows = log_rows(day(1), &ids("x", 1));
    let elsewhere = upload(&store, day(1), "elsewhere", &rows).await;
    let from = ObjectPath::parse(format!("{}/{}", log(), elsewhere.path)).unwrap();
    let path = elsewhere.path.replace("event_date", "other_date");
    store
        .copy(&from, &ObjectPath::parse(format!("{}/{path}", log())).unwrap())
        .await
        .unwrap();
    let error = analytics
        .append(&log(), vec![DataFile { path, ..elsewhere }], "2")
        .await
        .unwrap_err();
    assert!(error.to_string().contains("event_date"), "{error}");
}

#[tokio::test]
async fn writers_in_many_processes_lose_and_double_nothing() {
    const WRITERS: usize = 4;
    const FILES: usize = 6;
    let root = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    for number in 0..FILES * WRITERS {
        files.push(upload_log(&folder(root.path()), day(1), &format!("f{number}"), 3).await);
    }
    // Each writer has its own files, and all of them want the last one, too.
    let writers = (0..WRITERS).map(|writer| {
        let analytics = analytics(&folder(root.path()));
        let files = &files;
        async move {
            for file in files.iter().skip(writer).step_by(WRITERS) {
                let both = vec![file.clone(), files[FILES * WRITERS - 1].clone()];
                let mut both: Vec<DataFile> = both.into_iter().collect();
                both.dedup();
                loop {
                    match analytics.append(&log(), both.clone(), "commit").await {
                        Ok(_) => break,
                        Err(Error::Contention { .. }) => {}
                        Err(error) => panic!("{error}: {error:?}"),
                    }
                }
            }
        }
    });
    join_all(writers).await;
    assert_eq!(
        count(&analytics(&folder(root.path())), "true").await,
        (3 * FILES * WRITERS) as i64
    );
}

#[tokio::test]
async fn a_long_log_is_read_from_its_checkpoint() {
    let root = tempfile::tempdir().unwrap();
    let store = folder(root.path());
    let analytics = analytics(&store);
    let commits = CHECKPOINT_INTERVAL + 3;
    for number in 0..commits {
        let file = upload_log(&store, day(1), &format!("f{number}"), 1).await;
        analytics
            .append(&log(), vec![file], &format!("{number}"))
            .await
            .unwrap();
    }
    let log_folder = root.path().join(log().as_str()).join("_delta_log");
    assert!(log_folder.join("_last_checkpoint").is_file());
    // With the older part of the log gone, only a checkpoint can tell of the first files.
    for version in 0..CHECKPOINT_INTERVAL - 1 {
        std::fs::remove_file(log_folder.join(format!("{version:020}.json"))).unwrap();
    }
    let restarted = self::analytics(&store);
    assert_eq!(count(&restarted, "true").await, commits as i64);
    let first = upload_log(&store, day(1), "f0", 1).await;
    assert!(restarted.append(&log(), vec![first], "0").await.unwrap().already);
}

const CRASH_FOLDER: &str = "MODELYARD_TEST_CRASH_FOLDER";
const CRASH_FILES: usize = 40;

async fn append_all(store: &Arc<dyn ObjectStore>) {
    let analytics = analytics(store);
    for number in 0..CRASH_FILES {
        let file = upload_log(store, day(1), &format!("f{number}"), 2).await;
        analytics
            .append(&log(), vec![file], &format!("{number}"))
            .await
            .unwrap();
    }
}

/// The process that `a_kill_at_any_moment_loses_and_doubles_nothing` kills; alone it does nothing.
#[tokio::test]
async fn appending_until_killed() {
    if let Some(folder_to_fill) = std::env::var_os(CRASH_FOLDER) {
        append_all(&folder(Path::new(&folder_to_fill))).await;
    }
}

#[tokio::test]
async fn a_kill_at_any_moment_loses_and_doubles_nothing() {
    let root: TempDir = tempfile::tempdir().unwrap();
    let log_folder = root.path().join(log().as_str()).join("_delta_log");
    for kill_at in [1, 7, 19] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "appending_until_killed"])
            .env(CRASH_FOLDER, root.path())
            .spawn()
            .unwrap();
        let deadline = tokio::time::Instant::now() + Duration::from_mins(1);
        while !log_folder.join(format!("{kill_at:020}.json")).exists() {
            assert!(tokio::time::Instant::now() < deadline, "no version {kill_at}");
            tokio::task::yield_now().await;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let committed = analytics(&folder(root.path())).version(&log()).await.unwrap().unwrap();
        assert!(committed >= kill_at);
    }
    append_all(&folder(root.path())).await;
    let analytics = analytics(&folder(root.path()));
    let sql = "SELECT DISTINCT request_id FROM log";
    let distinct = analytics
        .query_collect(sql, &[log_table(None)], &[], ANY)
        .await
        .unwrap();
    let rows: HashSet<String> = distinct
        .batches
        .iter()
        .flat_map(|batch| {
            batch
                .column(0)
                .as_string::<i32>()
                .iter()
                .map(|id| id.unwrap().to_owned())
                .collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(rows.len(), 2 * CRASH_FILES);
    assert_eq!(count(&analytics, "true").await, 2 * CRASH_FILES as i64);
}
