//! Connections and transactions, under one trait for both databases.

use std::{
    fmt,
    ops::{Deref, DerefMut},
    path::Path,
    sync::Arc,
};

use sqlx::{PgPool, Postgres, Sqlite, SqlitePool};

use crate::error::Result;

/// What a store needs of its database. Stores are written once over a type that implements it.
pub trait Pools: Clone + Send + Sync + 'static {
    /// The database.
    type Db: sqlx::Database;

    /// Connections for single statements that only read.
    fn reader(&self) -> &sqlx::Pool<Self::Db>;

    /// A transaction that may write, the only way to do so. SQLite has one writer: this waits for its turn, and from
    /// then on nobody else writes (`BEGIN IMMEDIATE`). Never begin a second one while holding one.
    fn begin(&self) -> impl Future<Output = Result<Transaction<Self::Db>>> + Send;

    /// A transaction that only reads, and whose statements all see the same moment.
    fn snapshot(&self) -> impl Future<Output = Result<Transaction<Self::Db>>> + Send;
}

/// A transaction; what it did is undone when it is dropped without [`commit`](Self::commit). It gives its connection to
/// statements as `&mut *tx`.
pub struct Transaction<Db: sqlx::Database> {
    inner: sqlx::Transaction<'static, Db>,
}

impl<Db: sqlx::Database> Transaction<Db> {
    /// Makes the changes last: when this returns, the disk has them. After an error nothing of them is there.
    pub async fn commit(self) -> Result<()> {
        Ok(self.inner.commit().await?)
    }

    /// Undoes the changes.
    pub async fn rollback(self) -> Result<()> {
        Ok(self.inner.rollback().await?)
    }
}

impl<Db: sqlx::Database> Deref for Transaction<Db> {
    type Target = Db::Connection;

    fn deref(&self) -> &Self::Target {
        &self.inner
    }
}

impl<Db: sqlx::Database> DerefMut for Transaction<Db> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.inner
    }
}

impl<Db: sqlx::Database> fmt::Debug for Transaction<Db> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction").finish_non_exhaustive()
    }
}

/// A SQLite file: one connection that writes, several that read beside it.
#[derive(Debug, Clone)]
pub struct SqlitePools {
    pub(crate) writer: SqlitePool,
    pub(crate) reader: SqlitePool,
    pub(crate) file: Arc<Path>,
}

impl Pools for SqlitePools {
    type Db = Sqlite;

    fn reader(&self) -> &SqlitePool {
        &self.reader
    }

    async fn begin(&self) -> Result<Transaction<Sqlite>> {
        // A deferred transaction would take the write lock in its middle and could then fail instead of waiting.
        let inner = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        Ok(Transaction { inner })
    }

    async fn snapshot(&self) -> Result<Transaction<Sqlite>> {
        let inner = self.reader.begin_with("BEGIN DEFERRED").await?;
        Ok(Transaction { inner })
    }
}

/// A schema of a PostgreSQL database.
#[derive(Debug, Clone)]
pub struct PostgresPools {
    pub(crate) pool: PgPool,
    pub(crate) schema: &'static str,
    pub(crate) location: Arc<str>,
}

impl Pools for PostgresPools {
    type Db = Postgres;

    fn reader(&self) -> &PgPool {
        &self.pool
    }

    async fn begin(&self) -> Result<Transaction<Postgres>> {
        let inner = self.pool.begin().await?;
        Ok(Transaction { inner })
    }

    async fn snapshot(&self) -> Result<Transaction<Postgres>> {
        let statement = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
        let inner = self.pool.begin_with(statement).await?;
        Ok(Transaction { inner })
    }
}
