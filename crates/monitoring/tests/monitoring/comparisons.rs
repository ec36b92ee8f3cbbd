//! Versions of an endpoint beside each other.

use http::{Method, StatusCode};
use modelyard_testkit::{postgres::test_databases, wait::until};
use serde_json::{Value, json};

use crate::world::{ENDPOINT, MODEL, PATIENCE, Row, World, rows};

const MARCH: &str = "2013-03-01T00:00:00Z";
const APRIL: &str = "2013-04-01T00:00:00Z";
const IN_MARCH: &str = "start=2013-03-01T00:00:00Z&end=2013-04-01T00:00:00Z";

fn find<'a>(comparison: &'a Value, metric: &str) -> &'a Value {
    let differences = comparison["differences"].as_array().unwrap();
    let found = differences.iter().find(|difference| difference["metric"] == metric);
    assert!(found.is_some(), "no {metric}: {comparison}");
    found.unwrap()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

/// The share of rows whose class is the right one.
fn accuracy(rows: &[Row]) -> f64 {
    let right = rows.iter().filter(|row| (row.probability > 0.5) == row.late).count();
    right as f64 / rows.len() as f64
}

#[tokio::test]
async fn a_better_version_is_better_for_sure_and_chance_is_none() {
    for place in test_databases().await.unwrap() {
        let world = World::start(&place).await;
        // Every second request goes to the second version, which is always right.
        let mut march = rows(600, MARCH);
        for (index, row) in march.iter_mut().enumerate() {
            if index % 2 == 1 {
                row.version = 2;
                row.probability = if row.late { 0.9 } else { 0.1 };
            }
        }
        // One more of the first, so that it is the one that answered most.
        march.push(Row::new(600, MARCH));
        let shadows: Vec<Row> = march
            .iter()
            .map(|row| Row {
                role: "shadow",
                version: 3,
                ..row.clone()
            })
            .collect();
        world.log("march", &march).await;
        world.log("march-shadow", &shadows).await;
        world.label(&march, APRIL).await;
        let path = format!("comparisons/{ENDPOINT}?{IN_MARCH}");
        let comparison = until("all labels count", PATIENCE, async || {
            let comparison = world.get(&path).await;
            let versions = comparison["versions"].as_array()?;
            let labels: u64 = versions.iter().filter_map(|version| version["labels"].as_u64()).sum();
            (labels == 601).then_some(comparison)
        })
        .await;
        assert_eq!(comparison["baseline"], format!("{MODEL}/1"), "{comparison}");
        assert_eq!(
            comparison["versions"].as_array().unwrap().len(),
            2,
            "shadows are not live: {comparison}"
        );
        let first: Vec<Row> = march.iter().filter(|row| row.version == 1).cloned().collect();
        let better = find(&comparison, "accuracy");
        assert!(
            (number(&better["difference"]) - (1.0 - accuracy(&first))).abs() < 1e-12,
            "{better}"
        );
        assert_eq!(better["significant"], true, "{better}");
        assert!(
            number(&better["low"]) > 0.0 && number(&better["p_value"]) < 1e-6,
            "{better}"
        );
        // One of three is late, whichever version is asked.
        let outcome = find(&comparison, "label");
        assert_eq!(outcome["significant"], false, "{outcome}");
        assert!(
            number(&outcome["low"]) < 0.0 && number(&outcome["high"]) > 0.0,
            "{outcome}"
        );
        let latency = find(&comparison, "latency_us");
        assert_eq!(
            (&latency["difference"], &latency["p_value"]),
            (&json!(0.0), &json!(1.0))
        );

        let turned = world.get(&format!("{path}&baseline={MODEL}/2")).await;
        let worse = find(&turned, "accuracy");
        assert!(
            (number(&worse["difference"]) + number(&better["difference"])).abs() < 1e-12,
            "{worse}"
        );
        for (query, expected) in [
            (format!("{IN_MARCH}&baseline={MODEL}/9"), "answered nothing live"),
            (format!("start={APRIL}&end={MARCH}"), "an end after the start"),
            (
                "start=2010-01-01T00:00:00Z&end=2013-04-01T00:00:00Z".to_owned(),
                "at most 366 days",
            ),
        ] {
            let (status, body) = world
                .call(Method::GET, &format!("comparisons/{ENDPOINT}?{query}"), None)
                .await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
            assert!(body["detail"].as_str().unwrap().contains(expected), "{body}");
        }
        let nothing = world
            .get(&format!(
                "comparisons/{ENDPOINT}?start=2014-01-01T00:00:00Z&end=2014-01-02T00:00:00Z"
            ))
            .await;
        assert_eq!((&nothing["baseline"], &nothing["versions"]), (&Value::Null, &json!([])));
    }
}
