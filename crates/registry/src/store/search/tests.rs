mod trace_metrics;
mod traces;

use std::{cmp::Ordering, collections::BTreeMap, fmt::Write as _};

use modelyard_testkit::postgres::{TestDatabase, test_databases};

use super::*;
use crate::{
    search::{Clause, EXPERIMENTS, Entity, Operator, RUNS, Value, parse_filter, parse_order},
    store::{Stores, testing},
};

/// A run as the tests know it.
struct Known {
    id: String,
    experiment: i64,
    lifecycle: &'static str,
    start_time: i64,
    end_time: Option<i64>,
    texts: BTreeMap<&'static str, String>,
    metrics: BTreeMap<&'static str, f64>,
    params: BTreeMap<&'static str, String>,
    tags: BTreeMap<&'static str, String>,
    datasets: Vec<[String; 3]>,
}

/// Numbers that look random, and are the same every time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

const TEXTS: [&str; 12] = [
    "a", "A", "ab", "a*b", "a?b", "a[b", "a_b", "a%b", "a\\b", "A%B", "", "it's",
];

fn known_runs() -> Vec<Known> {
    let mut dice = Dice(7);
    let text = |dice: &mut Dice| TEXTS[dice.roll(12) as usize].to_owned();
    let mut runs = Vec::new();
    for number in 0..150 {
        let id = format!("{:032x}", dice.roll(1 << 30) * 1000 + number);
        let keyed = |dice: &mut Dice| {
            let keys = ["p", "q"].into_iter().filter(|_| dice.roll(4) > 0).collect::<Vec<_>>();
            keys.into_iter()
                .map(|key| (key, text(dice)))
                .collect::<BTreeMap<_, _>>()
        };
        let params = keyed(&mut dice);
        let tags = keyed(&mut dice);
        let mut metrics = BTreeMap::new();
        for key in ["m", "n"] {
            match dice.roll(6) {
                0 => {}
                1 => drop(metrics.insert(key, f64::NAN)),
                _ => drop(metrics.insert(key, dice.roll(9) as f64 - 4.0)),
            }
        }
        let experiment = dice.roll(3) as i64;
        let datasets = (0..dice.roll(3)).map(|index| {
            let contexts = ["train", "", "eval"];
            [
                format!("d{}", dice.roll(3)),
                format!("g{index}"),
                contexts[dice.roll(3) as usize].to_owned(),
            ]
        });
        let datasets = datasets.collect();
        let texts = BTreeMap::from([
            (
                "artifact_uri",
                format!(
                    "{}/{id}/artifacts",
                    ["mlflow-artifacts:/0", "s3://b", "mlflow-artifacts:/2"][experiment as usize]
                ),
            ),
            ("run_id", id.clone()),
            ("run_name", TEXTS[dice.roll(9) as usize].to_owned()),
            (
                "status",
                ["RUNNING", "FINISHED", "FAILED"][dice.roll(3) as usize].to_owned(),
            ),
            ("user_id", String::new()),
        ]);
        runs.push(Known {
            id,
            experiment,
            lifecycle: if dice.roll(5) == 0 { "deleted" } else { "active" },
            start_time: dice.roll(9) as i64 * 500,
            end_time: (dice.roll(3) > 0).then(|| dice.roll(9) as i64 * 500),
            texts,
            metrics,
            params,
            tags,
            datasets,
        });
    }
    runs
}

/// The statements that store the runs. Experiment 9 is another project's, with a run that nobody else may find.
fn script(runs: &[Known]) -> String {
    let quote = |text: &str| format!("'{}'", text.replace('\'', "''"));
    let mut sql = "INSERT INTO project (name, created_at) VALUES ('other', 0);
        UPDATE experiment SET created_at = 1000500, updated_at = 5000 WHERE id = 0;
        INSERT INTO experiment (id, project, name, lifecycle, artifact_location, created_at, updated_at) VALUES
            (1, 'default', 'One', 'active', 's3://b/', 1001000, 4000), (2, 'default', 'two%', 'active', '', 1001000, 3000),
            (3, 'default', 'gone', 'deleted', '', 0, 0), (9, 'other', 'One', 'active', '', 1001000, 0);
        INSERT INTO experiment_tag (experiment_id, key, value) VALUES (1, 'k', 'v'), (2, 'k', 'V');
        INSERT INTO run (id, project, experiment_id, name, status, lifecycle, start_time, request_digest)
            VALUES ('foreign', 'other', 9, 'a', 'RUNNING', 'active', 0, '');"
        .to_owned();
    for run in runs {
        let id = quote(&run.id);
        let end_time = run.end_time.map_or("NULL".to_owned(), |time| time.to_string());
        let text = |name: &str| quote(&run.texts[name]);
        let (name, status) = (text("run_name"), text("status"));
        let (experiment, lifecycle, start_time) = (run.experiment, run.lifecycle, run.start_time);
        let _ = write!(
            sql,
            "INSERT INTO run (id, project, experiment_id, name, status, lifecycle, start_time, end_time, request_digest)
             VALUES ({id}, 'default', {experiment}, {name}, {status}, '{lifecycle}', {start_time}, {end_time}, '');"
        );
        for (table, values) in [("run_param", &run.params), ("run_tag", &run.tags)] {
            for (key, value) in values {
                let value = quote(value);
                let _ = write!(
                    sql,
                    "INSERT INTO {table} (run_id, key, value) VALUES ({id}, '{key}', {value});"
                );
            }
        }
        for (key, value) in &run.metrics {
            let (value, is_nan) = if value.is_nan() { (0.0, 1) } else { (*value, 0) };
            let _ = write!(
                sql,
                "INSERT INTO run_metric (run_id, experiment_id, key, timestamp, step, value, is_nan)
                 VALUES ({id}, {experiment}, '{key}', 0, 0, {value}, {is_nan});"
            );
        }
        for (position, [name, digest, context]) in run.datasets.iter().enumerate() {
            let _ = if position == 0 {
                write!(
                    sql,
                    "INSERT INTO run_dataset (run_id, position, name, digest, context, source_type, source, tags)
                     VALUES ({id}, 0, '{name}', '{digest}', '{context}', '', '', '[]');"
                )
            } else {
                write!(
                    sql,
                    "INSERT INTO run_input (run_id, position, dataset, version, digest, context)
                     VALUES ({id}, {position}, '{name}', 1, '{digest}', '{context}');"
                )
            };
        }
    }
    sql
}

async fn stores(place: &TestDatabase, runs: &[Known]) -> Stores {
    stores_of(place, script(runs)).await
}

/// A registry in which a script has stored something.
async fn stores_of(place: &TestDatabase, script: String) -> Stores {
    let (database, stores) = testing::open(place).await;
    testing::run(&database, script).await;
    stores
}

fn fits_pattern(text: &[char], pattern: &[char]) -> bool {
    match pattern {
        [] => text.is_empty(),
        ['%', rest @ ..] => (0..=text.len()).any(|from| fits_pattern(&text[from..], rest)),
        ['_', rest @ ..] => !text.is_empty() && fits_pattern(&text[1..], rest),
        [c, rest @ ..] => text.first() == Some(c) && fits_pattern(&text[1..], rest),
    }
}

fn text_holds(text: &str, clause: &Clause) -> bool {
    let like = |text: &str, pattern: &str| {
        let chars = |text: &str| text.chars().collect::<Vec<_>>();
        fits_pattern(&chars(text), &chars(pattern))
    };
    match (clause.operator, &clause.value) {
        (Operator::Equal, Value::Text(value)) => text == value,
        (Operator::NotEqual, Value::Text(value)) => text != value,
        (Operator::Like, Value::Text(pattern)) => like(text, pattern),
        (Operator::ILike, Value::Text(pattern)) => like(&text.to_lowercase(), &pattern.to_lowercase()),
        (Operator::RLike, Value::Text(expression)) => regex::Regex::new(expression).unwrap().is_match(text),
        (Operator::In, Value::Texts(values)) => values.iter().any(|value| value == text),
        (Operator::NotIn, Value::Texts(values)) => values.iter().all(|value| value != text),
        (Operator::IsNotNull, _) => true,
        other => panic!("{other:?}"),
    }
}

#[expect(clippy::float_cmp, reason = "a filter compares exactly")]
fn number_holds(number: f64, clause: &Clause) -> bool {
    let value = match clause.value {
        Value::Integer(value) => value as f64,
        Value::Number(value) => value,
        ref other => panic!("{other:?}"),
    };
    match clause.operator {
        Operator::Equal => number == value,
        Operator::NotEqual => number != value,
        Operator::Greater => number > value,
        Operator::GreaterOrEqual => number >= value,
        Operator::Less => number < value,
        Operator::LessOrEqual => number <= value,
        other => panic!("{other:?}"),
    }
}

fn holds(run: &Known, filter: &Filter) -> bool {
    let clause = match filter {
        Filter::All(parts) => return parts.iter().all(|part| holds(run, part)),
        Filter::Any(parts) => return parts.iter().any(|part| holds(run, part)),
        Filter::Not(part) => return !holds(run, part),
        Filter::Clause(clause) => clause,
    };
    let key = clause.key.as_str();
    let keyed = |values: &BTreeMap<&str, String>| match (values.get(key), clause.operator) {
        (found, Operator::IsNull) => found.is_none(),
        (None, _) => false,
        (Some(text), _) => text_holds(text, clause),
    };
    let millis = |time: i64| number_holds(time.div_euclid(1000) as f64, clause);
    match clause.entity {
        Entity::Metric => run.metrics.get(key).is_some_and(|value| number_holds(*value, clause)),
        Entity::Param => keyed(&run.params),
        Entity::Tag => keyed(&run.tags),
        Entity::Attribute if key == "start_time" => millis(run.start_time),
        Entity::Attribute if key == "end_time" => run.end_time.is_some_and(millis),
        Entity::Attribute => text_holds(&run.texts[key], clause),
        _ => run.datasets.iter().any(|[name, digest, context]| match key {
            "name" => text_holds(name, clause),
            "digest" => text_holds(digest, clause),
            _ => !context.is_empty() && text_holds(context, clause),
        }),
    }
}

/// Values first, in the direction that is asked for, then NaN, then what is missing.
fn ordered(left: &Known, right: &Known, order: &Order) -> Ordering {
    fn by<T>(left: Option<T>, right: Option<T>, descending: bool, compare: impl Fn(&T, &T) -> Ordering) -> Ordering {
        match (left, right) {
            (Some(left), Some(right)) if descending => compare(&right, &left),
            (Some(left), Some(right)) => compare(&left, &right),
            (left, right) => left.is_none().cmp(&right.is_none()),
        }
    }
    let key = order.key.as_str();
    let descending = order.descending;
    let compare = |left: Option<&String>, right: Option<&String>| by(left, right, descending, Ord::cmp);
    let times = |left: Option<i64>, right: Option<i64>| by(left, right, descending, i64::cmp);
    match order.entity {
        Entity::Metric => {
            let class = |run: &Known| run.metrics.get(key).map_or(2, |value| u8::from(value.is_nan()));
            let number = |run: &Known| run.metrics.get(key).copied().filter(|value| !value.is_nan());
            let classes = class(left).cmp(&class(right));
            classes.then_with(|| by(number(left), number(right), descending, f64::total_cmp))
        }
        Entity::Param => compare(left.params.get(key), right.params.get(key)),
        Entity::Tag => compare(left.tags.get(key), right.tags.get(key)),
        _ if key == "start_time" => times(Some(left.start_time), Some(right.start_time)),
        _ if key == "end_time" => times(left.end_time, right.end_time),
        _ => compare(left.texts.get(key), right.texts.get(key)),
    }
}

/// The runs that a search must find.
fn expected<'a>(runs: &'a [Known], search: &RunSearch) -> Vec<&'a str> {
    let lifecycle = search.view.lifecycle();
    let fits = |run: &&Known| {
        search.experiment_ids.contains(&run.experiment)
            && lifecycle.is_none_or(|lifecycle| run.lifecycle == lifecycle)
            && search.filter.as_ref().is_none_or(|filter| holds(run, filter))
    };
    let mut found: Vec<&Known> = runs.iter().filter(fits).collect();
    found.sort_by(|left, right| {
        let asked = search.order.iter().map(|order| ordered(left, right, order));
        let asked = asked.fold(Ordering::Equal, Ordering::then);
        asked
            .then_with(|| right.start_time.cmp(&left.start_time))
            .then_with(|| left.id.cmp(&right.id))
    });
    found.into_iter().map(|run| run.id.as_str()).collect()
}

/// Everything that a search finds, page by page.
async fn found(store: &dyn SearchStore, search: &RunSearch) -> Vec<String> {
    let mut search = search.clone();
    let mut ids = Vec::new();
    loop {
        let page = store.search_runs("default", &search).await.unwrap();
        assert!(page.runs.len() <= search.limit as usize);
        ids.extend(page.runs.into_iter().map(|run| run.run_id));
        assert!(ids.len() <= 150, "{search:?}");
        search.token = page.next_token;
        if search.token.is_none() {
            return ids;
        }
    }
}

#[tokio::test]
async fn runs_are_found_in_order_page_by_page() {
    let runs = known_runs();
    let some: Vec<String> = runs.iter().step_by(3).map(|run| format!("'{}'", run.id)).collect();
    let named = format!("run_id IN ({})", some.join(","));
    let filters = [
        "",
        "metrics.m > 0",
        "metrics.m != 1 AND metrics.n < 2",
        "metrics.n = 0 OR metrics.m >= 2",
        "NOT metrics.m > 0",
        "metrics.m <= 1 AND NOT (params.p = 'a' OR tags.q LIKE 'a%')",
        "params.p LIKE 'a_b'",
        "params.p LIKE 'A%' OR params.q ILIKE 'A%b'",
        "params.p LIKE '%*%' OR params.p LIKE 'a[b' OR params.p LIKE '%?b'",
        "params.q LIKE 'a\\b' OR params.q LIKE '%\\%'",
        "params.p IS NULL AND tags.p IS NOT NULL",
        "params.p != 'a' AND NOT tags.q != 'ab'",
        "params.p IN ('a', '', 'it''s') OR tags.q NOT IN ('A', 'ab')",
        "status = 'FAILED' AND run_name ILIKE 'A'",
        "status NOT IN ('FAILED') AND artifact_uri LIKE 's3:%' OR run_name = 'a%b'",
        "artifact_uri LIKE 'mlflow-artifacts:/2/%'",
        "start_time > 1 AND start_time <= 3",
        "start_time = 2 OR start_time = 2.5",
        "start_time != 2 AND end_time >= 1.5",
        "NOT end_time < 2",
        "start_time < 99999999999999999999999",
        "dataset.name = 'd0'",
        "dataset.context != 'train' AND dataset.digest IN ('g0', 'g1')",
        "NOT dataset.name LIKE 'd%'",
        &named,
        "run_id IN ('foreign')",
        "run_id NOT IN ('foreign') AND run_id != 'x'",
    ];
    let orders: [&[&str]; 10] = [
        &[],
        &["metrics.m"],
        &["metrics.m DESC"],
        &["metrics.n DESC", "metrics.m", "params.p DESC"],
        &["params.p", "tags.q DESC"],
        &["end_time DESC", "status"],
        &["start_time"],
        &["run_name DESC", "start_time DESC", "run_id DESC"],
        &["artifact_uri"],
        &["run_id"],
    ];
    for place in test_databases().await.unwrap() {
        let stores = stores(&place, &runs).await;
        for (index, filter) in filters.iter().enumerate() {
            for (other, order) in orders.iter().enumerate() {
                let search = RunSearch {
                    experiment_ids: [vec![0], vec![2, 1, 0], vec![1, 9, 77]][(index + other) % 3].clone(),
                    filter: parse_filter(&RUNS, filter).unwrap(),
                    order: parse_order(&RUNS, order).unwrap(),
                    view: [View::Active, View::All, View::Deleted][(index * 7 + other) % 3],
                    limit: [7, 1, 40, 500][(index + other) % 4],
                    token: None,
                };
                let found = found(stores.search.as_ref(), &search).await;
                assert_eq!(
                    found,
                    expected(&runs, &search),
                    "{}: {filter:?} {order:?} {search:?}",
                    place.name
                );
            }
        }
        // More experiments than are merged.
        let search = RunSearch {
            experiment_ids: (0..40).collect(),
            order: parse_order(&RUNS, &["metrics.m DESC"]).unwrap(),
            limit: 9,
            ..RunSearch::default()
        };
        assert_eq!(
            found(stores.search.as_ref(), &search).await,
            expected(&runs, &search),
            "{}",
            place.name
        );
    }
}

#[tokio::test]
async fn the_largest_filter_is_taken() {
    // Each turn nests three deep.
    let nested = (0..crate::search::MAX_NESTING / 3).fold("params.p = 'a'".to_owned(), |inner, _| {
        format!("NOT (params.q = 'x' AND (metrics.m > 1 OR {inner}))")
    });
    let wide = vec!["params.p = 'x'"; crate::search::MAX_CLAUSES].join(" OR ");
    let list = format!("run_id IN ({})", vec!["'x'"; crate::search::MAX_LIST].join(","));
    let pattern = format!("params.p LIKE '{}{}'", "%a".repeat(64), "_".repeat(15_000));
    let glob = format!("params.p LIKE '{}'", "[".repeat(16_000));
    for place in test_databases().await.unwrap() {
        let stores = stores(&place, &known_runs()).await;
        for filter in [&nested, &wide, &list, &pattern, &glob] {
            let search = RunSearch {
                experiment_ids: (0..MAX_SEARCHED as i64).collect(),
                filter: parse_filter(&RUNS, filter).unwrap(),
                order: parse_order(&RUNS, &["params.p", "metrics.m", "tags.a", "tags.b", "tags.c"]).unwrap(),
                limit: 5,
                ..RunSearch::default()
            };
            stores.search.search_runs("default", &search).await.unwrap();
        }
    }
}

#[tokio::test]
async fn tokens_of_other_searches_are_refused() {
    for place in test_databases().await.unwrap() {
        let stores = stores(&place, &known_runs()).await;
        let mut search = RunSearch {
            experiment_ids: vec![0],
            order: parse_order(&RUNS, &["metrics.m"]).unwrap(),
            limit: 1,
            ..RunSearch::default()
        };
        let token = stores.search.search_runs("default", &search).await.unwrap().next_token;
        search.order = parse_order(&RUNS, &["params.p"]).unwrap();
        let write = |text: &str| URL_SAFE_NO_PAD.encode(text);
        for wrong in [
            token.unwrap(),
            "~".to_owned(),
            write("{\"offset\": 3}"),
            write("[]"),
            write("[{\"t\":\"a\\u0000\"},{\"i\":1},{\"t\":\"a\"}]"),
        ] {
            search.token = Some(wrong);
            let refused = stores.search.search_runs("default", &search).await.unwrap_err();
            let Error::Request(message) = refused else {
                panic!("{refused:?}")
            };
            assert!(message.starts_with("Invalid page token"), "{message}");
        }
    }
}

#[tokio::test]
async fn experiments_are_found() {
    let table: [(&str, &[&str], View, &[&str]); 14] = [
        ("", &[], View::Active, &["1", "2", "0"]),
        ("", &["name"], View::All, &["0", "1", "3", "2"]),
        ("", &["creation_time"], View::Active, &["0", "2", "1"]),
        ("", &["last_update_time DESC"], View::All, &["0", "1", "2", "3"]),
        ("", &["experiment_id"], View::Deleted, &["3"]),
        ("name = 'One'", &[], View::All, &["1"]),
        ("name LIKE '%O%' OR name = 'two%'", &[], View::Active, &["1", "2"]),
        ("name ILIKE '%O%'", &[], View::Active, &["1", "2"]),
        ("experiment_id IN ('2', '0', '9')", &[], View::Active, &["2", "0"]),
        ("experiment_id != '1'", &[], View::Active, &["2", "0"]),
        ("creation_time = 1000", &[], View::Active, &["0"]),
        ("last_update_time > 3", &[], View::Active, &["1", "0"]),
        ("tags.k = 'v'", &[], View::Active, &["1"]),
        ("tags.k IS NULL OR tag.k NOT IN ('v')", &[], View::Active, &["2", "0"]),
    ];
    for place in test_databases().await.unwrap() {
        let stores = stores(&place, &[]).await;
        for (filter, order, view, expected) in table {
            let mut search = ExperimentSearch {
                filter: parse_filter(&EXPERIMENTS, filter).unwrap(),
                order: parse_order(&EXPERIMENTS, order).unwrap(),
                view,
                limit: 1,
                token: None,
            };
            let mut found = Vec::new();
            loop {
                let page = stores.search.search_experiments("default", &search).await.unwrap();
                found.extend(page.experiments.into_iter().map(|experiment| experiment.experiment_id));
                search.token = page.next_token;
                if search.token.is_none() {
                    break;
                }
            }
            assert_eq!(found, expected, "{}: {filter:?} {order:?}", place.name);
        }
    }
}
