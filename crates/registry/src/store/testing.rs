//! What tests of the stores begin with.

use std::{collections::BTreeMap, time::Duration};

use modelyard_auth::audit::{NewEvent, Outcome};
use modelyard_common::{Timestamp, config::Secret};
use modelyard_db::{Database, DatabaseConfig, Pools as _, PostgresPools};
use modelyard_testkit::{
    postgres::{TestDatabase, test_databases},
    wait::until,
};
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use super::{MIGRATIONS, Stores};
use crate::model::registered_model::{NO_FILE, NewModelVersion};

/// The project of the tests.
pub const PROJECT: &str = "default";

/// Stores on a fresh database.
pub struct TestStores {
    pub stores: Stores,
    pub database: Database,
    // Last: its folder goes when the database is closed.
    pub place: TestDatabase,
}

/// Stores on each database that can be tested.
pub async fn test_stores() -> Vec<TestStores> {
    let mut opened = Vec::new();
    for place in test_databases().await.unwrap() {
        let (database, stores) = open(&place).await;
        opened.push(TestStores {
            stores,
            database,
            place,
        });
    }
    opened
}

/// A database that has the registry's tables, and the stores on it.
pub async fn open(place: &TestDatabase) -> (Database, Stores) {
    let config = DatabaseConfig {
        url: place.url.clone().map(Secret::new),
        ..DatabaseConfig::default()
    };
    let database = Database::open(&config, place.data_dir(), "registry").await.unwrap();
    database.migrate(&[MIGRATIONS]).await.unwrap();
    let stores = Stores::open(&database);
    (database, stores)
}

/// Runs statements.
pub async fn run(database: &Database, script: impl Into<String>) {
    let script = AssertSqlSafe(script.into());
    match database {
        Database::Sqlite(pools) => {
            let mut tx = pools.begin().await.unwrap();
            sqlx::raw_sql(script).execute(&mut *tx).await.unwrap();
            tx.commit().await.unwrap();
        }
        Database::Postgres(pools) => {
            let mut tx = pools.begin().await.unwrap();
            sqlx::raw_sql(script).execute(&mut *tx).await.unwrap();
            tx.commit().await.unwrap();
        }
    }
}

impl TestStores {
    /// Runs statements.
    pub async fn run(&self, script: impl Into<String>) {
        run(&self.database, script).await;
    }

    /// Where rows are held one by one: on PostgreSQL.
    pub const fn postgres(&self) -> Option<&PostgresPools> {
        match &self.database {
            Database::Postgres(pools) => Some(pools),
            Database::Sqlite(_) => None,
        }
    }

    /// Waits until somebody waits for a row that somebody else holds.
    pub async fn until_one_waits(&self) {
        const WAITING: &str =
            "SELECT COUNT(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
        until("somebody waits", Duration::from_secs(30), || async {
            (self.number(WAITING).await > 0).then_some(())
        })
        .await;
    }

    /// The number that a statement finds.
    pub async fn number(&self, query: impl Into<String>) -> i64 {
        let query = AssertSqlSafe(query.into());
        match &self.database {
            Database::Sqlite(pools) => sqlx::query_scalar(query).fetch_one(pools.reader()).await.unwrap(),
            Database::Postgres(pools) => sqlx::query_scalar(query).fetch_one(pools.reader()).await.unwrap(),
        }
    }
}

/// So many seconds after the beginning.
pub fn at(seconds: i64) -> Timestamp {
    Timestamp::from_micros(seconds * 1_000_000)
}

/// What the audit chain is told; the chain takes each number once.
pub fn event(number: u128, seconds: i64) -> NewEvent {
    NewEvent {
        id: Uuid::from_u128(number),
        at: at(seconds),
        project: PROJECT.to_owned(),
        actor: "user:local".to_owned(),
        on_behalf_of: None,
        action: "model.write".to_owned(),
        resource_kind: "model".to_owned(),
        resource: "m".to_owned(),
        outcome: Outcome::Success,
        reason: None,
        before_digest: None,
        after_digest: None,
        request_id: None,
        source_address: None,
        details: serde_json::json!({}),
    }
}

/// A version of the model `m` without a file.
pub fn model_version(event: NewEvent) -> NewModelVersion {
    NewModelVersion {
        project: PROJECT.to_owned(),
        model: "m".to_owned(),
        description: String::new(),
        format: NO_FILE.to_owned(),
        artifact_digest: String::new(),
        artifact_size_bytes: 0,
        files: Vec::new(),
        signature: "{}".to_owned(),
        bundle: None,
        reference_profile_digest: None,
        reference_profile_size_bytes: 0,
        removals: 0,
        metrics: BTreeMap::new(),
        run_id: None,
        dataset: None,
        training_rows: 0,
        tags: BTreeMap::new(),
        aliases: Vec::new(),
        idempotency_key: None,
        request_digest: String::new(),
        changed_by: "user:local".to_owned(),
        now: event.at,
        event,
    }
}
