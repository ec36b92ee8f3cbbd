//! The stream of the desired state.

use std::collections::BTreeMap;

use futures::StreamExt;
use http::Method;
use modelyard_proto::registry::v1::{Endpoint, WatchRequest, WatchResponse, watch_response::Update};
use modelyard_testkit::wait;
use proptest::prelude::*;
use serde_json::{Value, json};
use tonic::Streaming;

use crate::support::{PATIENCE, TestRegistry, registries, start};

/// One that watches, with what it has put together.
struct Watcher {
    stream: Streaming<WatchResponse>,
    revision: u64,
    endpoints: BTreeMap<String, Endpoint>,
    snapshots: u32,
}

impl Watcher {
    async fn open(registry: &TestRegistry, since_revision: u64) -> Self {
        let request = WatchRequest {
            node: "gateway".to_owned(),
            since_revision,
        };
        let stream = registry.endpoints().watch(request).await.unwrap().into_inner();
        Self {
            stream,
            revision: since_revision,
            endpoints: BTreeMap::new(),
            snapshots: 0,
        }
    }

    /// Takes the next update in; its kind. None: the stream ended.
    async fn next(&mut self) -> Option<&'static str> {
        let next = tokio::time::timeout(PATIENCE, self.stream.next()).await.unwrap();
        let response = next?.unwrap();
        assert!(response.revision >= self.revision, "revisions never go back");
        self.revision = response.revision;
        Some(match response.update.unwrap() {
            Update::Snapshot(snapshot) => {
                self.snapshots += 1;
                self.endpoints = snapshot
                    .endpoints
                    .into_iter()
                    .map(|endpoint| (endpoint.name.clone(), endpoint))
                    .collect();
                "snapshot"
            }
            Update::Delta(delta) => {
                assert!(!delta.changed.is_empty() || !delta.removed.is_empty());
                for endpoint in delta.changed {
                    let before = self.endpoints.insert(endpoint.name.clone(), endpoint.clone());
                    assert_ne!(before, Some(endpoint), "sent without a change");
                }
                for key in delta.removed {
                    assert!(self.endpoints.remove(&key.name).is_some());
                }
                "delta"
            }
            Update::Heartbeat(_) => "heartbeat",
        })
    }

    /// Goes on until a revision is reached.
    async fn reach(&mut self, revision: u64) {
        while self.revision < revision {
            assert!(self.next().await.is_some());
        }
    }
}

async fn put(registry: &TestRegistry, name: &str, spec: Value) {
    registry.take(Method::PUT, &format!("endpoints/{name}"), &spec).await;
}

/// The revision of the last change.
async fn revision(registry: &TestRegistry) -> u64 {
    let mut watcher = Watcher::open(registry, u64::MAX).await;
    watcher.revision = 0;
    assert_eq!(watcher.next().await, Some("snapshot"));
    watcher.revision
}

#[tokio::test]
async fn a_snapshot_then_only_what_changed() {
    for (_place, registry) in registries().await {
        let digest = registry.upload_model().await;
        for _ in 0..2 {
            registry.create_version("m", &digest).await;
        }
        put(&registry, "follows", json!({"routes": [{"model": "m@champion"}]})).await;
        put(&registry, "pinned", json!({"routes": [{"model": "m/1"}]})).await;
        let mut watcher = Watcher::open(&registry, 0).await;
        assert_eq!(watcher.next().await, Some("snapshot"));
        assert_eq!(
            watcher.endpoints["follows"].routes[0].unresolved,
            "alias champion of model m is not set"
        );
        let pinned = watcher.endpoints["pinned"].clone();
        registry.set_alias("m", "champion", 2).await;
        assert_eq!(watcher.next().await, Some("delta"));
        assert_eq!(watcher.endpoints["follows"].routes[0].version, 2);
        assert_eq!(watcher.endpoints["pinned"], pinned);
        registry.take(Method::DELETE, "endpoints/pinned", &Value::Null).await;
        assert_eq!(watcher.next().await, Some("delta"));
        assert_eq!(watcher.endpoints.keys().collect::<Vec<_>>(), ["follows"]);

        // Who holds the present revision hears so at once, and then what changes.
        let mut returned = Watcher::open(&registry, watcher.revision).await;
        returned.endpoints = watcher.endpoints.clone();
        assert_eq!(returned.next().await, Some("heartbeat"));
        registry.set_alias("m", "champion", 1).await;
        assert_eq!(returned.next().await, Some("delta"));
        assert_eq!(returned.endpoints["follows"].routes[0].version, 1);

        // An unknown revision gets everything.
        for unknown in [1, watcher.revision + 1000] {
            let mut lost = Watcher::open(&registry, unknown).await;
            lost.revision = 0;
            assert_eq!(lost.next().await, Some("snapshot"));
        }

        let lifecycle = registry.lifecycle.clone();
        lifecycle.stop();
        while watcher.next().await.is_some() {}
        assert_eq!(lifecycle.finish(PATIENCE).await, Ok(vec![]));
    }
}

#[tokio::test]
async fn a_heartbeat_comes_when_nothing_changes() {
    let place = modelyard_testkit::postgres::TestDatabase::sqlite().unwrap();
    let registry = start(&place).await;
    let mut watcher = Watcher::open(&registry, 0).await;
    assert_eq!(watcher.next().await, Some("snapshot"));
    let revision = watcher.revision;
    assert_eq!(watcher.next().await, Some("heartbeat"));
    assert_eq!(watcher.revision, revision);
}

#[tokio::test]
async fn changes_of_another_process_arrive() {
    for (place, registry) in registries().await {
        let other = start(&place).await;
        let mut watcher = Watcher::open(&registry, 0).await;
        assert_eq!(watcher.next().await, Some("snapshot"));
        put(&other, "theirs", json!({"routes": [{"model": "m@a"}]})).await;
        while !watcher.endpoints.contains_key("theirs") {
            assert!(watcher.next().await.is_some());
        }
        // A node that comes from the other process is not thrown back.
        let newest = revision(&other).await;
        let mut moved = Watcher::open(&registry, newest).await;
        assert_eq!(moved.next().await, Some("heartbeat"));
    }
}

#[tokio::test]
async fn who_does_not_listen_costs_nothing_and_loses_nothing() {
    for (_place, registry) in registries().await {
        let mut slow = Watcher::open(&registry, 0).await;
        assert_eq!(slow.next().await, Some("snapshot"));
        for weight in 1..=60 {
            put(&registry, "e", json!({"routes": [{"model": "m@a", "weight": weight}]})).await;
        }
        let newest = revision(&registry).await;
        let mut updates = 0;
        while slow.revision < newest {
            slow.next().await;
            updates += 1;
        }
        assert_eq!(slow.endpoints["e"].routes[0].weight.to_bits(), 60.0_f64.to_bits());
        assert!(updates < 60, "{updates} updates were kept for one that did not listen");
    }
}

/// A change of what endpoints depend on.
#[derive(Debug, Clone)]
enum Change {
    Put { endpoint: u8, alias: bool, number: u32 },
    Delete { endpoint: u8 },
    Create,
    SetAlias { alias: u32, version: u32 },
    RemoveAlias { alias: u32 },
    Reopen,
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        3 => (0_u8..3, any::<bool>(), 1_u32..4)
            .prop_map(|(endpoint, alias, number)| Change::Put { endpoint, alias, number }),
        1 => (0_u8..3).prop_map(|endpoint| Change::Delete { endpoint }),
        1 => Just(Change::Create),
        3 => (1_u32..4, 1_u32..4).prop_map(|(alias, version)| Change::SetAlias { alias, version }),
        1 => (1_u32..4).prop_map(|alias| Change::RemoveAlias { alias }),
        1 => Just(Change::Reopen),
    ]
}

async fn apply(registry: &TestRegistry, digest: &str, watcher: &mut Watcher, change: &Change) {
    match change {
        Change::Put {
            endpoint,
            alias,
            number,
        } => {
            let model = if *alias {
                format!("m@a{number}")
            } else {
                format!("m/{number}")
            };
            put(registry, &format!("e{endpoint}"), json!({"routes": [{"model": model}]})).await;
        }
        Change::Delete { endpoint } => {
            registry
                .json(Method::DELETE, &format!("endpoints/e{endpoint}"), &Value::Null)
                .await;
        }
        Change::Create => {
            registry.create_version("m", digest).await;
        }
        Change::SetAlias { alias, version } => {
            let body = json!({"version": version});
            registry
                .json(Method::PUT, &format!("models/m/aliases/a{alias}"), &body)
                .await;
        }
        Change::RemoveAlias { alias } => {
            registry
                .json(Method::DELETE, &format!("models/m/aliases/a{alias}"), &Value::Null)
                .await;
        }
        Change::Reopen => {
            let endpoints = std::mem::take(&mut watcher.endpoints);
            let held = watcher.revision;
            *watcher = Watcher::open(registry, held).await;
            watcher.endpoints = endpoints;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]
    #[test]
    fn one_that_watches_ends_where_the_registry_is(changes in proptest::collection::vec(change(), 1..25)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            for (_place, registry) in registries().await {
                let digest = registry.upload_model().await;
                let mut watcher = Watcher::open(&registry, 0).await;
                watcher.next().await;
                for change in &changes {
                    apply(&registry, &digest, &mut watcher, change).await;
                }
                let mut fresh = Watcher::open(&registry, 0).await;
                assert_eq!(fresh.next().await, Some("snapshot"));
                watcher.reach(fresh.revision).await;
                assert_eq!(watcher.endpoints, fresh.endpoints);
                let listed = registry.get("endpoints").await;
                for endpoint in listed["items"].as_array().unwrap() {
                    let name = endpoint["name"].as_str().unwrap();
                    // What served goes on serving while the routes lead nowhere.
                    let resolved = &endpoint["resolved"][0]["version"];
                    let serving = endpoint.pointer("/traffic/stable/0/version").unwrap_or(resolved);
                    let version = serving.as_u64().unwrap_or(0);
                    assert_eq!(u64::from(fresh.endpoints[name].routes[0].version), version);
                }
                assert_eq!(listed["items"].as_array().unwrap().len(), fresh.endpoints.len());
                registry.stop().await;
            }
        });
    }
}

#[tokio::test]
async fn a_database_that_is_away_shows_in_readiness() {
    let place = modelyard_testkit::postgres::TestDatabase::sqlite().unwrap();
    let registry = start(&place).await;
    assert_eq!(registry.readiness.missing(), Vec::<String>::new());
    let file = place.data_dir().join("registry.db");
    let pool = sqlx::SqlitePool::connect(&format!("sqlite://{}", file.display()))
        .await
        .unwrap();
    sqlx::query("ALTER TABLE counter RENAME TO hidden")
        .execute(&pool)
        .await
        .unwrap();
    let readiness = registry.readiness.clone();
    let missing = async || readiness.missing().pop();
    let why = wait::until("the gate closes", PATIENCE, missing).await;
    assert_eq!(why, "registry.database: the desired state cannot be read");
    sqlx::query("ALTER TABLE hidden RENAME TO counter")
        .execute(&pool)
        .await
        .unwrap();
    let ready = async || readiness.missing().is_empty().then_some(());
    wait::until("the gate opens", PATIENCE, ready).await;
    registry.stop().await;
}
