//! Opens a service's database, SQLite or PostgreSQL, brings its tables up to date and gives out transactions. It has no
//! tables of its own, knows no service, and never makes a time or an id: callers bind both.
//!
//! A service writes its SQL once. `conditional-trait-gen` stamps the implementation of its store for both pools, and
//! the rest of the service sees `Arc<dyn Store>`:
//!
//! ```
//! use std::sync::Arc;
//! use async_trait::async_trait;
//! use conditional_trait_gen::{trait_gen, when};
//! # use modelyard_common::config::Secret;
//! use modelyard_db::{Database, DatabaseConfig, MigrationFile, Migrations, Pools, PostgresPools, Result, SqlitePools};
//!
//! // In a service: `migrations!("registry", ["0001_experiment"])`, which reads `migrations/registry/{sqlite,postgres}`.
//! const MIGRATIONS: Migrations = Migrations {
//!     name: "shop",
//!     files: &[MigrationFile {
//!         name: "0001_fruit",
//!         sqlite: "CREATE TABLE fruit (name TEXT PRIMARY KEY, stock BIGINT NOT NULL)",
//!         postgres: "CREATE TABLE fruit (name TEXT PRIMARY KEY, stock BIGINT NOT NULL)",
//!     }],
//! };
//!
//! #[async_trait]
//! pub trait FruitStore: Send + Sync {
//!     async fn add(&self, name: &str, count: i64) -> Result<i64>;
//!     async fn find_stock(&self, name: &str) -> Result<Option<i64>>;
//!     async fn dialect(&self) -> Result<&'static str>;
//! }
//!
//! struct SqlFruitStore<P> {
//!     pools: P,
//! }
//!
//! #[trait_gen(P -> SqlitePools, PostgresPools)]
//! #[async_trait]
//! impl FruitStore for SqlFruitStore<P> {
//!     // One method is one transaction: everything below happens, or nothing.
//!     async fn add(&self, name: &str, count: i64) -> Result<i64> {
//!         let mut tx = self.pools.begin().await?;
//!         let stock = sqlx::query_scalar(
//!             "INSERT INTO fruit (name, stock) VALUES ($1, $2)
//!              ON CONFLICT (name) DO UPDATE SET stock = fruit.stock + excluded.stock RETURNING stock",
//!         )
//!         .bind(name)
//!         .bind(count)
//!         .fetch_one(&mut *tx)
//!         .await?;
//!         tx.commit().await?;
//!         Ok(stock)
//!     }
//!
//!     async fn find_stock(&self, name: &str) -> Result<Option<i64>> {
//!         let query = sqlx::query_scalar("SELECT stock FROM fruit WHERE name = $1").bind(name);
//!         Ok(query.fetch_optional(self.pools.reader()).await?)
//!     }
//!
//!     // The few methods that differ are written once for each database.
//!     #[when(SqlitePools -> dialect)]
//!     async fn dialect_of_sqlite(&self) -> Result<&'static str> {
//!         Ok("sqlite")
//!     }
//!
//!     #[when(PostgresPools -> dialect)]
//!     async fn dialect_of_postgres(&self) -> Result<&'static str> {
//!         Ok("postgres")
//!     }
//! }
//!
//! /// The store on an open database.
//! pub async fn open_store(database: &Database) -> Result<Arc<dyn FruitStore>> {
//!     database.migrate(&[MIGRATIONS]).await?;
//!     Ok(match database.clone() {
//!         Database::Sqlite(pools) => Arc::new(SqlFruitStore { pools }),
//!         Database::Postgres(pools) => Arc::new(SqlFruitStore { pools }),
//!     })
//! }
//!
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! // A test does the same on a fresh SQLite file and, where there is a server, on a fresh PostgreSQL database.
//! for place in modelyard_testkit::postgres::test_databases().await.unwrap() {
//!     let config = DatabaseConfig { url: place.url.clone().map(Secret::new), ..DatabaseConfig::default() };
//!     let database = Database::open(&config, place.data_dir(), "shop").await.unwrap();
//!     let store = open_store(&database).await.unwrap();
//!     store.add("pear", 2).await.unwrap();
//!     assert_eq!(store.add("pear", 3).await.unwrap(), 5);
//!     assert_eq!(store.find_stock("pear").await.unwrap(), Some(5));
//!     assert_eq!(store.dialect().await.unwrap(), place.name);
//! }
//! # });
//! ```
//!
//! Rules for the SQL: `$1`, `RETURNING`, `ON CONFLICT` and CTEs work on both; times are `BIGINT` microseconds, ids and
//! enums and JSON are `TEXT`; no arrays, no SQL enums, no `now()`; a `COUNT` is a `BIGINT`, but PostgreSQL's `SUM` of
//! `BIGINT` is not: write `CAST(SUM(x) AS BIGINT)`. `trait_gen` reads Rust as it was before let-chains: inside a stamped
//! block nest `if let`, and put anything that needs newer syntax into a free function beside it.
//!
//! # Durability and group commit
//!
//! SQLite runs with `synchronous=FULL`: a commit returns when the disk has it. All writes go through [`Pools::begin`],
//! which hands the one writing connection to one caller after the other, and [`Transaction::commit`] is ours: that pair
//! is the place where several transactions can share one flush without any store noticing.

mod config;
mod error;
mod migrate;
mod open;
mod pools;

pub use config::{DatabaseConfig, MAX_CONNECTIONS};
pub use error::{Error, Result};
pub use migrate::{MigrationFile, Migrations};
pub use open::Database;
pub use pools::{Pools, PostgresPools, SqlitePools, Transaction};
