//! What queries read, and what they may not do.

use super::*;

#[tokio::test]
async fn files_and_row_groups_that_cannot_match_are_not_read() {
    let store = memory();
    let analytics = analytics(&store);
    let mut files = Vec::new();
    for (number, date) in (1..=6).map(|number| (number, day(number))) {
        files.push(upload_log(&store, date, &format!("r{number}"), 3000).await);
    }
    // Ids in no order: every row group spans them all, so that only bloom filters can tell.
    let scattered: Vec<String> = (0..3000_u64)
        .map(|row| format!("{:016x}", row.wrapping_mul(0x9E37_79B9_7F4A_7C15)))
        .collect();
    let wanted = scattered[1500].clone();
    let absent = format!("{}x", &wanted[..15]);
    files.push(upload(&store, day(7), "scattered", &log_rows(day(7), &scattered)).await);
    analytics.append(&log(), files, "1").await.unwrap();

    let explain = async |filter: &str| {
        let sql = format!("EXPLAIN ANALYZE SELECT latency_us FROM log WHERE {filter}");
        table_text(&analytics, &sql, &[log_table(None)]).await
    };
    let by_date = explain("event_date = DATE '2013-03-03'").await;
    assert_eq!(metric(&by_date, "count_files_scanned"), "1", "{by_date}");
    let by_range = explain("request_id = 'r4-000123'").await;
    assert_eq!(metric(&by_range, "count_files_scanned"), "1", "{by_range}");
    let by_bloom = explain(&format!("request_id = '{absent}' AND event_date = DATE '2013-03-07'")).await;
    let pruned = metric(&by_bloom, "row_groups_pruned_bloom_filter");
    assert!(pruned.contains("3 total"), "{by_bloom}");
    assert_eq!(count(&analytics, &format!("request_id = '{wanted}'")).await, 1);
}

#[tokio::test]
async fn queries_stay_within_their_limits_and_change_nothing() {
    let store = memory();
    let small = AnalyticsOptions {
        threads: 1,
        memory_limit_bytes: 1024 * 1024,
        spill_limit_bytes: 0,
        ..AnalyticsOptions::default()
    };
    let analytics = Analytics::new(Arc::clone(&store), &small, Arc::new(SystemClock)).unwrap();
    let file = upload_log(&store, day(1), "a", 20_000).await;
    analytics.append(&log(), vec![file], "1").await.unwrap();
    let run = async |sql: &str, max_rows: usize| analytics.query_collect(sql, &[log_table(None)], &[], max_rows).await;

    assert_eq!(run("SELECT row FROM log", 20_000).await.unwrap().rows(), 20_000);
    assert_eq!(
        run("SELECT row FROM log", 19_999).await.unwrap_err().reason(),
        "RESULT_TOO_LARGE"
    );
    let hungry = "SELECT request_id, array_agg(input_distance) FROM log GROUP BY request_id";
    let error = run(hungry, ANY).await.unwrap_err();
    assert_eq!(error.reason(), "QUERY_OUT_OF_MEMORY", "{error}");
    for wrong in [
        "INSERT INTO log SELECT * FROM log",
        "DROP TABLE log",
        "SELECT nothing FROM log",
        "SELECT * FROM other",
    ] {
        assert_eq!(run(wrong, ANY).await.unwrap_err().reason(), "INVALID_QUERY", "{wrong}");
    }
    let file = "SELECT * FROM '/etc/passwd'";
    assert_eq!(run(file, ANY).await.unwrap_err().reason(), "INVALID_QUERY");

    let hostile = ScalarValue::Utf8(Some("x' OR '1'='1".to_owned()));
    let sql = "SELECT * FROM log WHERE request_id = $id";
    let found = analytics
        .query_collect(sql, &[log_table(None)], &[("id", hostile)], ANY)
        .await
        .unwrap();
    assert_eq!(found.rows(), 0);
    assert_eq!(run(sql, ANY).await.unwrap_err().reason(), "INVALID_QUERY");

    // A stream that is given up ends its query.
    let mut stream = analytics
        .query("SELECT a.row FROM log a, log b", &[log_table(None)], &[])
        .await
        .unwrap();
    assert!(stream.next().await.unwrap().is_ok());
    drop(stream);
    assert_eq!(count(&analytics, "true").await, 20_000);
}

#[tokio::test]
async fn a_table_that_does_not_exist_yet_is_empty_where_its_columns_are_known() {
    let store = memory();
    let analytics = analytics(&store);
    let sql = "SELECT count(*) AS n, avg(latency_us) FROM log";
    let error = analytics
        .query_collect(sql, &[log_table(None)], &[], ANY)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::TableNotFound { .. }));
    let schema = Arc::new(Schema::new(vec![Field::new("latency_us", DataType::Int64, false)]));
    let result = analytics
        .query_collect(sql, &[log_table(Some(schema))], &[], ANY)
        .await
        .unwrap();
    assert_eq!(result.batches[0].column(0).as_primitive::<Int64Type>().value(0), 0);
}

#[tokio::test]
async fn labels_are_written_once_by_date_and_joined() {
    let store = memory();
    let analytics = analytics(&store);
    let file = upload_log(&store, day(1), "a", 10).await;
    analytics.append(&log(), vec![file], "1").await.unwrap();
    let labels: TableName = "labels/default/flight-delay".parse().unwrap();
    let rows = |count: usize| {
        let first_day = 15_796;
        let columns: Vec<(&str, ArrayRef)> = vec![
            (
                "request_id",
                Arc::new(StringArray::from_iter_values(ids("a", count).into_iter().rev())),
            ),
            (
                "label",
                Arc::new(Float64Array::from_iter_values((0..count).map(|row| row as f64))),
            ),
            (
                "observed_date",
                Arc::new(Date32Array::from_iter_values(
                    (0..count).map(|row| first_day + row as i32 % 2),
                )),
            ),
        ];
        RecordBatch::try_from_iter(columns).unwrap()
    };
    let first = analytics
        .write_and_append(&labels, rows(6), "observed_date", "batch-1")
        .await
        .unwrap();
    assert_eq!(
        first,
        Appended {
            version: 1,
            already: false
        }
    );
    let again = analytics
        .write_and_append(&labels, rows(6), "observed_date", "batch-1")
        .await
        .unwrap();
    assert_eq!(
        again,
        Appended {
            version: 1,
            already: true
        }
    );
    // Other rows under the same id do not replace what is in the table.
    assert!(
        analytics
            .write_and_append(&labels, rows(4), "observed_date", "batch-1")
            .await
            .unwrap()
            .already
    );
    analytics
        .write_and_append(&labels, rows(2), "observed_date", "batch-2")
        .await
        .unwrap();

    let tables = [
        log_table(None),
        QueryTable {
            alias: "labels".to_owned(),
            table: labels.clone(),
            schema: None,
        },
    ];
    let dates = table_text(
        &analytics,
        "SELECT observed_date, count(*) AS n FROM labels GROUP BY 1 ORDER BY 1",
        &tables,
    )
    .await;
    assert!(dates.contains("2013-04-01") && dates.contains("2013-04-02"), "{dates}");
    let sql =
        "SELECT max(l.label) FROM log JOIN labels l ON l.request_id = log.request_id WHERE log.request_id = 'a-000002'";
    let joined = analytics.query_collect(sql, &tables, &[], ANY).await.unwrap();
    let label = joined.batches[0].column(0).as_primitive::<Float64Type>().value(0);
    assert!((label - 3.0).abs() < f64::EPSILON, "{label}");

    for (batch, column, id) in [
        (rows(2), "label", "x"),
        (rows(2), "missing", "x"),
        (rows(2), "observed_date", "../x"),
        (rows(0), "observed_date", "x"),
    ] {
        let error = analytics
            .write_and_append(&labels, batch, column, id)
            .await
            .unwrap_err();
        assert_eq!(error.reason(), "INVALID_APPEND");
    }
}
