//! The behaviour of a database, on each that can be tested.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use async_trait::async_trait;
use conditional_trait_gen::{trait_gen, when};
use modelyard_common::{
    config::Secret,
    error::{ErrorKind, Fault},
};
use modelyard_db::{
    Database, DatabaseConfig, Error, MigrationFile, Migrations, Pools, PostgresPools, Result, SqlitePools,
};
use modelyard_testkit::postgres::{TestDatabase, test_databases};

const fn both(name: &'static str, sql: &'static str) -> MigrationFile {
    MigrationFile {
        name,
        sqlite: sql,
        postgres: sql,
    }
}

const FRUIT: MigrationFile = both(
    "0001_fruit",
    "CREATE TABLE fruit (name TEXT PRIMARY KEY, stock BIGINT NOT NULL)",
);
const BASKET: MigrationFile = both(
    "0002_basket",
    "CREATE TABLE basket (id TEXT PRIMARY KEY, fruit TEXT NOT NULL REFERENCES fruit (name))",
);
const SHOP: Migrations = Migrations {
    name: "shop",
    files: &[FRUIT, BASKET],
};
const JOBS: Migrations = Migrations {
    name: "work",
    files: &[both("0001_task", "CREATE TABLE task (id TEXT PRIMARY KEY)")],
};

#[async_trait]
trait FruitStore: Send + Sync {
    async fn insert(&self, name: &str, stock: i64) -> Result<()>;
    async fn insert_basket(&self, id: &str, fruit: &str) -> Result<()>;
    async fn insert_and_forget(&self, name: &str) -> Result<()>;
    async fn add_one(&self, name: &str) -> Result<i64>;
    async fn find_stock(&self, name: &str) -> Result<Option<i64>>;
    async fn stock_seen_twice(&self, name: &str, between: &dyn FruitStore) -> Result<(i64, i64)>;
    async fn write_in_snapshot(&self) -> Result<()>;
    async fn dialect(&self) -> Result<String>;
}

struct SqlFruitStore<P> {
    pools: P,
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
impl SqlFruitStore<P> {
    // A private helper of a stamped store takes the transaction by its stamped type.
    async fn stock_in(tx: &mut modelyard_db::Transaction<<P as Pools>::Db>, name: &str) -> Result<i64> {
        let query = sqlx::query_scalar("SELECT stock FROM fruit WHERE name = $1").bind(name);
        Ok(query.fetch_one(&mut **tx).await?)
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
#[async_trait]
impl FruitStore for SqlFruitStore<P> {
    async fn insert(&self, name: &str, stock: i64) -> Result<()> {
        let mut tx = self.pools.begin().await?;
        let query = sqlx::query("INSERT INTO fruit (name, stock) VALUES ($1, $2)");
        query.bind(name).bind(stock).execute(&mut *tx).await?;
        tx.commit().await
    }

    async fn insert_basket(&self, id: &str, fruit: &str) -> Result<()> {
        let mut tx = self.pools.begin().await?;
        let query = sqlx::query("INSERT INTO basket (id, fruit) VALUES ($1, $2)");
        query.bind(id).bind(fruit).execute(&mut *tx).await?;
        tx.commit().await
    }

    async fn insert_and_forget(&self, name: &str) -> Result<()> {
        let mut tx = self.pools.begin().await?;
        let query = sqlx::query("INSERT INTO fruit (name, stock) VALUES ($1, 1)");
        query.bind(name).execute(&mut *tx).await?;
        Ok(())
    }

    async fn add_one(&self, name: &str) -> Result<i64> {
        let mut tx = self.pools.begin().await?;
        // Locks the row first, as a store does that decides by what it reads.
        sqlx::query("UPDATE fruit SET stock = stock WHERE name = $1")
            .bind(name)
            .execute(&mut *tx)
            .await?;
        let stock = Self::stock_in(&mut tx, name).await? + 1;
        let query = sqlx::query("UPDATE fruit SET stock = $2 WHERE name = $1");
        query.bind(name).bind(stock).execute(&mut *tx).await?;
        tx.commit().await?;
        Ok(stock)
    }

    async fn find_stock(&self, name: &str) -> Result<Option<i64>> {
        let query = sqlx::query_scalar("SELECT stock FROM fruit WHERE name = $1").bind(name);
        Ok(query.fetch_optional(self.pools.reader()).await?)
    }

    async fn stock_seen_twice(&self, name: &str, between: &dyn FruitStore) -> Result<(i64, i64)> {
        let mut tx = self.pools.snapshot().await?;
        let first = Self::stock_in(&mut tx, name).await?;
        between.add_one(name).await?;
        let second = Self::stock_in(&mut tx, name).await?;
        tx.rollback().await?;
        Ok((first, second))
    }

    async fn write_in_snapshot(&self) -> Result<()> {
        let mut tx = self.pools.snapshot().await?;
        sqlx::query("DELETE FROM fruit").execute(&mut *tx).await?;
        tx.commit().await
    }

    #[when(SqlitePools -> dialect)]
    async fn dialect_of_sqlite(&self) -> Result<String> {
        let query = sqlx::query_scalar("SELECT 'sqlite' || substr(sqlite_version(), 1, 0)");
        Ok(query.fetch_one(self.pools.reader()).await?)
    }

    #[when(PostgresPools -> dialect)]
    async fn dialect_of_postgres(&self) -> Result<String> {
        let query = sqlx::query_scalar("SELECT 'postgres' || substr(current_schema()::text, 1, 0)");
        Ok(query.fetch_one(self.pools.reader()).await?)
    }
}

async fn open(place: &TestDatabase) -> Database {
    let config = DatabaseConfig {
        url: place.url.clone().map(Secret::new),
        ..DatabaseConfig::default()
    };
    Database::open(&config, place.data_dir(), "shop").await.unwrap()
}

fn store(database: &Database) -> Arc<dyn FruitStore> {
    match database.clone() {
        Database::Sqlite(pools) => Arc::new(SqlFruitStore { pools }),
        Database::Postgres(pools) => Arc::new(SqlFruitStore { pools }),
    }
}

#[tokio::test]
async fn the_stamped_store_runs_on_its_database() {
    for place in test_databases().await.unwrap() {
        let database = open(&place).await;
        database.migrate(&[JOBS, SHOP]).await.unwrap();
        database.check().await.unwrap();
        let store = store(&database);
        assert_eq!(store.dialect().await.unwrap(), place.name);
        store.insert("pear", 2).await.unwrap();
        assert_eq!(store.find_stock("pear").await.unwrap(), Some(2));
    }
}

#[tokio::test]
async fn a_closed_database_keeps_what_was_committed_and_nothing_else() {
    for place in test_databases().await.unwrap() {
        let database = open(&place).await;
        database.migrate(&[SHOP]).await.unwrap();
        store(&database).insert("pear", 2).await.unwrap();
        store(&database).insert_and_forget("plum").await.unwrap();
        database.close().await;
        assert_eq!(database.check().await.unwrap_err().kind(), ErrorKind::Unavailable);

        let database = open(&place).await;
        database.migrate(&[SHOP]).await.unwrap();
        assert_eq!(store(&database).find_stock("pear").await.unwrap(), Some(2));
        assert_eq!(store(&database).find_stock("plum").await.unwrap(), None);
    }
}

#[tokio::test]
async fn concurrent_writers_lose_no_update() {
    const WRITERS: i64 = 32;
    for place in test_databases().await.unwrap() {
        let database = open(&place).await;
        database.migrate(&[SHOP]).await.unwrap();
        let store = store(&database);
        store.insert("pear", 0).await.unwrap();
        let mut writers = tokio::task::JoinSet::new();
        for _ in 0..WRITERS {
            let store = Arc::clone(&store);
            writers.spawn(async move { store.add_one("pear").await.unwrap() });
        }
        let mut seen = writers.join_all().await;
        seen.sort_unstable();
        assert_eq!(seen, (1..=WRITERS).collect::<Vec<_>>());
        assert_eq!(store.find_stock("pear").await.unwrap(), Some(WRITERS));
    }
}

#[tokio::test]
async fn a_snapshot_sees_one_moment_and_writes_nothing() {
    for place in test_databases().await.unwrap() {
        let database = open(&place).await;
        database.migrate(&[SHOP]).await.unwrap();
        let store = store(&database);
        store.insert("pear", 1).await.unwrap();
        assert_eq!(store.stock_seen_twice("pear", &*store).await.unwrap(), (1, 1));
        assert!(store.write_in_snapshot().await.is_err());
        assert_eq!(store.find_stock("pear").await.unwrap(), Some(2));
    }
}

#[tokio::test]
async fn violations_keep_their_kind() {
    for place in test_databases().await.unwrap() {
        let database = open(&place).await;
        database.migrate(&[SHOP]).await.unwrap();
        let store = store(&database);
        store.insert("pear", 1).await.unwrap();
        let twice = store.insert("pear", 2).await.unwrap_err();
        assert!(twice.is_duplicate());
        assert_eq!(twice.kind(), ErrorKind::AlreadyExists);
        assert!(twice.to_string().contains("fruit"), "{twice}");
        let dangling = store.insert_basket("1", "plum").await.unwrap_err();
        assert_eq!(dangling.kind(), ErrorKind::FailedPrecondition);
        assert_eq!(dangling.reason(), "DATABASE_REFERENCE");
    }
}

#[tokio::test]
async fn a_newer_database_is_refused_and_left_alone() {
    for place in test_databases().await.unwrap() {
        let database = open(&place).await;
        database.migrate(&[SHOP]).await.unwrap();
        let older = Migrations {
            name: "shop",
            files: &[FRUIT],
        };
        // The set before it is new to this database, and must not be applied either.
        let error = database.migrate(&[JOBS, older]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
        let text = error.to_string();
        assert!(text.contains("newer version (migration 0002 of `shop`)"), "{text}");
        assert!(text.contains(&database.location()), "{text}");
        // A second table of the same name would fail, had it been made.
        let probe = Migrations {
            name: "probe",
            files: const { &[both("0001_task", "CREATE TABLE task (id TEXT PRIMARY KEY)")] },
        };
        database.migrate(&[probe]).await.unwrap();
    }
}

#[tokio::test]
async fn a_changed_migration_is_refused() {
    for place in test_databases().await.unwrap() {
        let database = open(&place).await;
        database.migrate(&[SHOP]).await.unwrap();
        let changed = Migrations {
            name: "shop",
            files: const { &[both("0001_fruit", "CREATE TABLE fruit (name TEXT)"), BASKET] },
        };
        let error = database.migrate(&[changed]).await.unwrap_err();
        assert_eq!(error.reason(), "DATABASE_MIGRATION_CHANGED");
    }
}

#[tokio::test]
async fn a_failing_migration_leaves_nothing_and_can_be_repaired() {
    for place in test_databases().await.unwrap() {
        let database = open(&place).await;
        let broken = Migrations {
            name: "shop",
            files: const {
                &[both(
                    "0001_fruit",
                    "CREATE TABLE fruit (name TEXT); CREATE TABEL typo (name TEXT)",
                )]
            },
        };
        let error = database.migrate(&[broken]).await.unwrap_err();
        assert_eq!(error.reason(), "DATABASE_MIGRATION");
        database.migrate(&[SHOP]).await.unwrap();
        store(&database).insert("pear", 1).await.unwrap();
    }
}

#[tokio::test]
async fn nodes_that_start_together_migrate_once() {
    for place in test_databases().await.unwrap() {
        // Two processes cannot share a SQLite folder; two nodes do share a server.
        if place.name == "sqlite" {
            continue;
        }
        let mut nodes = tokio::task::JoinSet::new();
        let place = Arc::new(place);
        for _ in 0..4 {
            let place = Arc::clone(&place);
            nodes.spawn(async move { open(&place).await.migrate(&[JOBS, SHOP]).await.unwrap() });
        }
        nodes.join_all().await;
    }
}

#[tokio::test]
async fn a_full_disk_refuses_the_write_and_keeps_the_rest() {
    let place = TestDatabase::sqlite().unwrap();
    let database = open(&place).await;
    database.migrate(&[SHOP]).await.unwrap();
    let store = store(&database);
    store.insert("pear", 1).await.unwrap();
    let Database::Sqlite(pools) = &database else { return };
    // SQLite answers a full disk and a full file with the same code, and a file can be filled in a test.
    let mut tx = pools.begin().await.unwrap();
    sqlx::query("PRAGMA max_page_count = 1")
        .execute(&mut *tx)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let error = store.insert(&"plum".repeat(10_000), 1).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted);
    assert!(error.to_string().contains("free space"), "{error}");

    let mut tx = pools.begin().await.unwrap();
    sqlx::query("PRAGMA max_page_count = 1000000")
        .execute(&mut *tx)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    assert_eq!(store.find_stock("pear").await.unwrap(), Some(1));
    store.insert("plum", 1).await.unwrap();
}

#[tokio::test]
async fn bad_places_and_settings_are_named() {
    let place = TestDatabase::sqlite().unwrap();
    std::fs::write(place.data_dir().join("shop.db"), "x".repeat(4096)).unwrap();
    let error = Database::open(&DatabaseConfig::default(), place.data_dir(), "shop")
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
    assert!(error.to_string().contains("shop.db"), "{error}");

    let in_the_way = place.data_dir().join("file");
    std::fs::write(&in_the_way, "").unwrap();
    let error = Database::open(&DatabaseConfig::default(), &in_the_way, "shop")
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Folder { .. }), "{error}");

    for (url, max_connections, named) in [
        (Some("mysql://somewhere"), 1, "postgres://"),
        (None, 0, "max_connections"),
        (None, 10_000, "max_connections"),
    ] {
        let config = DatabaseConfig {
            url: url.map(Secret::new),
            max_connections,
        };
        let error = Database::open(&config, place.data_dir(), "shop").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().contains(named), "{error}");
    }
}

#[tokio::test]
async fn a_server_that_is_away_is_named_without_its_password() {
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let place = TestDatabase::sqlite().unwrap();
    let config = DatabaseConfig {
        url: Some(Secret::new(format!("postgres://me:sesame@127.0.0.1:{port}/models"))),
        ..DatabaseConfig::default()
    };
    let error = Database::open(&config, place.data_dir(), "shop").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let text = error.to_string();
    assert!(text.contains(&format!("127.0.0.1:{port}/models")), "{text}");
    assert!(!text.contains("sesame"), "{text}");
}
