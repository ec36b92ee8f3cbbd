use std::{collections::BTreeMap, fmt::Write as _};

use modelyard_db::Database;
use modelyard_testkit::postgres::{TestDatabase, test_databases};
use sqlx::AssertSqlSafe;

use super::*;
use crate::{
    model::lineage::MAX_DEPTH,
    store::{Stores, testing},
};

/// How many runs, logged models, versions and so on the graph has of each.
const EACH: u64 = 14;

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

fn run(sql: &mut String, project: &str, experiment: i64, id: &str) {
    let _ = write!(
        sql,
        "INSERT INTO run (id, project, experiment_id, name, status, lifecycle, start_time, request_digest)
         VALUES ('{id}', '{project}', {experiment}, 'run {id}', 'FINISHED', 'active', 5, '');"
    );
}

fn version(sql: &mut String, project: &str, number: u64, more: &[(&str, String)]) {
    let (mut names, mut values) = (String::new(), String::new());
    for (name, value) in more {
        let _ = write!(names, ", {name}");
        let _ = write!(values, ", {value}");
    }
    let _ = write!(
        sql,
        "INSERT INTO model_version (project, model, version, description, format, artifact_digest, artifact_size_bytes,
                                    signature, metrics, training_rows, request_digest, created_at{names})
         VALUES ('{project}', 'm', {number}, '', 'onnx', 'x', 1, '{{}}', '{{}}', 0, '', 7{values});"
    );
}

/// The start of a database: two projects with the same names in both.
fn beginning() -> String {
    let mut sql = "INSERT INTO project (name, created_at) VALUES ('other', 0);
        INSERT INTO experiment (id, project, name, lifecycle, created_at, updated_at)
        VALUES (1, 'default', 'one', 'active', 1, 2), (9, 'other', 'one', 'active', 1, 2);"
        .to_owned();
    for project in ["default", "other"] {
        let _ = write!(
            sql,
            "INSERT INTO registered_model (project, name, description, last_version, created_at, updated_at)
             VALUES ('{project}', 'm', '', 99, 0, 0);
             INSERT INTO dataset (project, name, last_version, created_at, updated_at) VALUES ('{project}', 'd', 9, 0, 0);
             INSERT INTO endpoint (project, name, spec, created_at, updated_at)
             VALUES ('{project}', 'e', '{{}}', 3, 4);"
        );
        for number in 1..4 {
            let _ = write!(
                sql,
                "INSERT INTO dataset_version (project, dataset, version, description, digest, rows, size_bytes, columns,
                                              profile_digest, created_at)
                 VALUES ('{project}', 'd', {number}, '', '', 0, 0, '[]', '', 6);"
            );
        }
    }
    sql
}

fn random_graph(seed: u64) -> String {
    let mut dice = Dice(seed);
    let mut sql = beginning();
    for number in 0..EACH {
        run(&mut sql, "default", (number % 2) as i64, &format!("r{number}"));
    }
    run(&mut sql, "other", 9, "foreign");
    for number in 0..EACH {
        let source = match dice.roll(3) {
            0 => "NULL".to_owned(),
            _ => format!("'r{}'", dice.roll(EACH)),
        };
        let _ = write!(
            sql,
            "INSERT INTO logged_model (id, project, experiment_id, name, model_type, status, source_run_id, lifecycle,
                                       created_at, updated_at)
             VALUES ('l{number}', 'default', 0, 'net', '', 'READY', {source}, 'active', 1, 2);"
        );
    }
    for number in 0..EACH {
        let id = format!("r{number}");
        if dice.roll(2) == 0 {
            // Runs within one another in a circle, too, and some within one that is not there or is another project's.
            let parent = match dice.roll(8) {
                0 => "foreign".to_owned(),
                1 => "absent".to_owned(),
                _ => format!("r{}", dice.roll(EACH)),
            };
            let _ = write!(
                sql,
                "INSERT INTO run_tag (run_id, key, value) VALUES ('{id}', 'mlflow.parentRunId', '{parent}');"
            );
        }
        if dice.roll(3) == 0 {
            let made_by = dice.roll(3);
            let _ = write!(
                sql,
                "INSERT INTO run_tag (run_id, key, value) VALUES ('{id}', 'pipeline_run', 'p{made_by}');"
            );
        }
        for (position, context) in ["training", "eval", ""].into_iter().enumerate() {
            if dice.roll(3) == 0 {
                let read = dice.roll(3) + 1;
                let _ = write!(
                    sql,
                    "INSERT INTO run_input (run_id, position, dataset, version, digest, context)
                     VALUES ('{id}', {position}, 'd', {read}, '', '{context}');
                     INSERT INTO run_dataset (run_id, position, name, digest, context, source_type, source, tags)
                     VALUES ('{id}', {position}, 'i', 'g{read}', '{context}', '', '', '[]');"
                );
            }
        }
        let mut linked = BTreeSet::new();
        for role in ["input", "output"] {
            let model = dice.roll(EACH + 1);
            if dice.roll(2) == 0 && linked.insert(role) {
                let _ = write!(
                    sql,
                    "INSERT INTO run_model (run_id, role, model_id, step) VALUES ('{id}', '{role}', 'l{model}', 0);"
                );
            }
        }
        let measured = dice.roll(EACH);
        let _ = write!(
            sql,
            "INSERT INTO logged_model_metric (model_id, key, run_id, dataset_name, dataset_digest, timestamp, step, value,
                                              is_nan)
             VALUES ('l{measured}', 'auc', '{id}', '{}', 'g{}', 0, 0, 0, 0);",
            ["i", ""][dice.roll(2) as usize],
            dice.roll(3) + 1
        );
    }
    for number in 1..=EACH {
        let mut more = Vec::new();
        match dice.roll(4) {
            0 => more.push(("source_run_id", format!("'r{}'", dice.roll(EACH)))),
            1 => more.push(("run_id", format!("'r{}'", dice.roll(EACH)))),
            2 => more.push(("model_id", format!("'l{}'", dice.roll(EACH)))),
            _ => more.push(("source", format!("'models:/m/{}'", dice.roll(EACH) + 1))),
        }
        if dice.roll(3) == 0 {
            more.push(("dataset", "'d'".to_owned()));
            more.push(("dataset_version", (dice.roll(3) + 1).to_string()));
        }
        version(&mut sql, "default", number, &more);
    }
    sql.push_str(
        "INSERT INTO model_alias (project, model, alias, version, updated_at) VALUES ('default', 'm', 'champion', 2, 0);
         INSERT INTO model_version_tag (project, model, version, key, value) VALUES ('default', 'm', 3, 'pipeline_run', 'p1');
         INSERT INTO endpoint_route (project, endpoint, position, role, reference, model, alias, version, weight, sample)
         VALUES ('default', 'e', 0, 'live', 'm@champion', 'm', 'champion', NULL, 1, 0),
                ('default', 'e', 1, 'shadow', 'm/5', 'm', NULL, 5, 0, 1),
                ('default', 'e', 2, 'live', 'm@gone', 'm', 'gone', NULL, 1, 0);",
    );
    sql
}

fn objects() -> Vec<Object> {
    let mut objects = vec![
        Object::Experiment(0),
        Object::Experiment(1),
        Object::Endpoint("e".to_owned()),
    ];
    for number in 0..EACH {
        objects.push(Object::Run(format!("r{number}")));
        objects.push(Object::LoggedModel(format!("l{number}")));
        objects.push(Object::ModelVersion("m".to_owned(), number as u32 + 1));
    }
    for number in 0..3 {
        objects.push(Object::PipelineRun(format!("p{number}")));
        objects.push(Object::DatasetVersion("d".to_owned(), number + 1));
        objects.push(Object::DatasetInput("i".to_owned(), format!("g{}", number + 1)));
    }
    objects
}

async fn open(place: &TestDatabase, script: String) -> (Database, Stores) {
    let (database, stores) = testing::open(place).await;
    testing::run(&database, script).await;
    (database, stores)
}

async fn closure(stores: &Stores, of: &Object, direction: Direction) -> Option<BTreeSet<Object>> {
    let graph = stores
        .lineage
        .trace("default", of, direction, MAX_DEPTH)
        .await
        .unwrap()?;
    assert!(graph.bounds.is_empty(), "{of}: {:?}", graph.bounds);
    assert_eq!(&graph.objects[0].object, of);
    let found: BTreeSet<Object> = graph.objects.iter().map(|found| found.object.clone()).collect();
    assert_eq!(found.len(), graph.objects.len(), "{of}: each once");
    for link in &graph.links {
        assert!(found.contains(&link.from) && found.contains(&link.to), "{link:?}");
    }
    let again = stores.lineage.trace("default", of, direction, MAX_DEPTH).await.unwrap();
    assert_eq!(again, Some(graph), "{of}: the same each time");
    Some(found)
}

#[tokio::test]
async fn what_is_downstream_of_one_has_it_upstream() {
    for seed in [3, 11, 20_260_301] {
        for place in test_databases().await.unwrap() {
            let (_database, stores) = open(&place, random_graph(seed)).await;
            let (mut up, mut down) = (BTreeMap::new(), BTreeMap::new());
            for object in objects() {
                let above = closure(&stores, &object, Direction::Upstream).await;
                let below = closure(&stores, &object, Direction::Downstream).await;
                assert_eq!(above.is_some(), below.is_some(), "{object}");
                let (Some(above), Some(below)) = (above, below) else {
                    continue;
                };
                let both = closure(&stores, &object, Direction::Both).await.unwrap();
                assert_eq!(both, above.union(&below).cloned().collect(), "{object}");
                up.insert(object.clone(), above);
                down.insert(object, below);
            }
            assert!(up.len() > 40, "{} of {seed}", place.name);
            for (x, below) in &down {
                for (y, above) in &up {
                    assert_eq!(
                        below.contains(y),
                        above.contains(x),
                        "{x} and {y} in {} of {seed}",
                        place.name
                    );
                }
            }
            assert!(down.values().map(BTreeSet::len).max() > Some(10), "something leads far");
        }
    }
}

#[tokio::test]
async fn another_project_is_not_there() {
    for place in test_databases().await.unwrap() {
        let mut sql = beginning();
        run(&mut sql, "other", 9, "foreign");
        run(&mut sql, "default", 1, "own");
        version(&mut sql, "other", 1, &[("run_id", "'foreign'".to_owned())]);
        // A run whose name somebody else knows does not become his by naming it.
        version(&mut sql, "default", 1, &[("source_run_id", "'foreign'".to_owned())]);
        sql.push_str(
            "INSERT INTO run_tag (run_id, key, value) VALUES ('own', 'mlflow.parentRunId', 'foreign'),
                 ('foreign', 'pipeline_run', 'p'), ('foreign', 'mlflow.parentRunId', 'own');
             INSERT INTO run_input (run_id, position, dataset, version, digest, context)
             VALUES ('foreign', 0, 'd', 1, '', 'training');
             INSERT INTO run_dataset (run_id, position, name, digest, context, source_type, source, tags)
             VALUES ('foreign', 0, 'i', 'g', '', '', '', '[]');",
        );
        let (_database, stores) = open(&place, sql).await;
        for hidden in [
            Object::Run("foreign".to_owned()),
            Object::Experiment(9),
            Object::PipelineRun("p".to_owned()),
            Object::DatasetInput("i".to_owned(), "g".to_owned()),
        ] {
            assert_eq!(closure(&stores, &hidden, Direction::Both).await, None, "{hidden}");
        }
        for alone in [
            Object::ModelVersion("m".to_owned(), 1),
            Object::DatasetVersion("d".to_owned(), 1),
        ] {
            let found = closure(&stores, &alone, Direction::Both).await.unwrap();
            assert_eq!(found, BTreeSet::from([alone]));
        }
        let own = closure(&stores, &Object::Run("own".to_owned()), Direction::Both)
            .await
            .unwrap();
        assert_eq!(
            own,
            BTreeSet::from([Object::Run("own".to_owned()), Object::Experiment(1)])
        );
    }
}

#[tokio::test]
async fn an_answer_is_bounded_and_says_so() {
    for place in test_databases().await.unwrap() {
        let mut sql = beginning();
        for number in 0..MAX_NODES + 5 {
            run(&mut sql, "default", 1, &format!("r{number:04}"));
            let parent = number + 1;
            if number < 60 {
                let _ = write!(
                    sql,
                    "INSERT INTO run_tag (run_id, key, value) VALUES ('r{number:04}', 'mlflow.parentRunId', 'r{parent:04}');"
                );
            }
        }
        let (_database, stores) = open(&place, sql).await;
        let trace = async |object: &Object, direction, depth| {
            let graph = stores.lineage.trace("default", object, direction, depth).await;
            graph.unwrap().unwrap()
        };
        let graph = trace(&Object::Experiment(1), Direction::Downstream, 1).await;
        assert_eq!(graph.objects.len(), MAX_NODES);
        assert!(graph.bounds.contains(&Bound::Nodes));
        let first = Object::Run("r0000".to_owned());
        let graph = trace(&first, Direction::Upstream, 3).await;
        // The run, three above it, and their experiment.
        assert_eq!((graph.objects.len(), graph.bounds.contains(&Bound::Depth)), (5, true));
        let last = Object::Run("r0059".to_owned());
        let graph = trace(&last, Direction::Upstream, 2).await;
        assert_eq!((graph.objects.len(), graph.bounds.is_empty()), (3, true));
    }
}

#[tokio::test]
async fn every_step_goes_by_an_index() {
    for place in test_databases().await.unwrap() {
        let (database, _stores) = open(&place, beginning()).await;
        let Database::Sqlite(pools) = &database else {
            continue;
        };
        let steps = STEPS.iter().map(|step| step.sql);
        let facts = objects().into_iter().map(|object| facts_of(object.kind()));
        for sql in steps.chain(facts) {
            let explained = AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}"));
            let plan: Vec<(i64, i64, i64, String)> = sqlx::query_as(explained).fetch_all(pools.reader()).await.unwrap();
            for (.., line) in plan {
                let scans = line.starts_with("SCAN ") && !line.contains("CONSTANT ROW");
                assert!(!scans && !line.contains("AUTOMATIC"), "{line}: {sql}");
            }
        }
    }
}
