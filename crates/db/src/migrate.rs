//! Bringing the tables up to date.

use sqlx::{
    Connection, SqlSafeStr,
    migrate::{AppliedMigration, Migrate, MigrateError, Migration, MigrationType, Migrator},
};

use crate::{
    error::{Error, Result},
    open::schema_lock,
    pools::{PostgresPools, SqlitePools},
};

/// One step, in both dialects.
#[derive(Debug, Clone, Copy)]
pub struct MigrationFile {
    /// `NNNN_what_it_does`, the name of both files without `.sql`; the number orders them.
    pub name: &'static str,
    /// The SQL for SQLite.
    pub sqlite: &'static str,
    /// The SQL for PostgreSQL.
    pub postgres: &'static str,
}

/// The migrations of one owner. Several sets can share one database, as the jobs' and a service's own do.
#[derive(Debug, Clone, Copy)]
pub struct Migrations {
    /// A word in lower case, which also names the table of what was applied: `migration_<name>`.
    pub name: &'static str,
    /// In order. Only ever extended at its end.
    pub files: &'static [MigrationFile],
}

/// The [`Migrations`] below `migrations/<name>/{sqlite,postgres}/` of the workspace, built into the program:
/// `migrations!("jobs", ["0001_job"])`. A file that is listed must exist for both databases.
#[macro_export]
macro_rules! migrations {
    ($set:literal, [$($file:literal),+ $(,)?]) => {
        $crate::Migrations {
            name: $set,
            files: &[$(
                $crate::MigrationFile {
                    name: $file,
                    sqlite: include_str!(concat!(
                        env!("CARGO_MANIFEST_DIR"), "/../../migrations/", $set, "/sqlite/", $file, ".sql"
                    )),
                    postgres: include_str!(concat!(
                        env!("CARGO_MANIFEST_DIR"), "/../../migrations/", $set, "/postgres/", $file, ".sql"
                    )),
                }
            ),+],
        }
    };
}

impl Migrations {
    fn table(&self) -> String {
        format!("migration_{}", self.name)
    }

    /// The set as sqlx runs it, with the SQL that `dialect` picks.
    fn migrator(&self, dialect: impl Fn(&MigrationFile) -> &'static str) -> Result<Migrator> {
        let is_word = |c: char| c.is_ascii_lowercase() || c == '_';
        if self.name.is_empty() || !self.name.chars().all(is_word) {
            return Err(Error::Config {
                message: format!("`{}` cannot name migrations: use lower case letters and `_`", self.name),
            });
        }
        let mut steps = Vec::with_capacity(self.files.len());
        let mut last = 0;
        for file in self.files {
            let number = file
                .name
                .split_once('_')
                .and_then(|(number, _)| number.parse::<i64>().ok());
            let Some(number) = number.filter(|number| *number > last) else {
                return Err(Error::Config {
                    message: format!(
                        "migration `{}` of `{}` is out of order: name it NNNN_what_it_does, numbers ascending",
                        file.name, self.name
                    ),
                });
            };
            last = number;
            let sql = dialect(file).into_sql_str();
            steps.push(Migration::new(
                number,
                file.name.into(),
                MigrationType::Simple,
                sql,
                false,
            ));
        }
        let mut migrator = Migrator::with_migrations(steps);
        migrator.dangerous_set_table_name(self.table());
        Ok(migrator)
    }

    /// Refuses a database whose history is not a beginning of ours.
    fn compare(&self, ours: &Migrator, applied: &[AppliedMigration], location: &str) -> Result<()> {
        for step in applied.iter().rev() {
            let database = location.to_owned();
            let (set, migration) = (self.name, step.version);
            match ours.iter().find(|own| own.version == step.version) {
                None => {
                    return Err(Error::Newer {
                        database,
                        set,
                        migration,
                    });
                }
                Some(own) if own.checksum != step.checksum => {
                    return Err(Error::Changed {
                        database,
                        set,
                        migration,
                    });
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    fn failed(&self, source: MigrateError, location: &str) -> Error {
        let inner = match source {
            MigrateError::Execute(source) | MigrateError::ExecuteMigration(source, _) => Error::from(source),
            source => {
                return Error::Migration {
                    database: location.to_owned(),
                    set: self.name,
                    source,
                };
            }
        };
        match inner {
            Error::Statement { source } => Error::Migration {
                database: location.to_owned(),
                set: self.name,
                source: MigrateError::Execute(source),
            },
            other => other.at(location),
        }
    }
}

/// Compares all sets before it changes the first, and then applies what is missing. `has_table` tells whether a table
/// exists, as only the dialect knows.
async fn apply<C: Migrate>(connection: &mut C, location: &str, sets: Vec<(&Migrations, Migrator, bool)>) -> Result<()> {
    for (set, migrator, has_table) in &sets {
        if *has_table {
            let applied = connection.list_applied_migrations(&set.table()).await;
            let applied = applied.map_err(|error| set.failed(error, location))?;
            set.compare(migrator, &applied, location)?;
        }
    }
    for (set, migrator, _) in &sets {
        let ran = migrator.run_direct(None, connection, false).await;
        ran.map_err(|error| set.failed(error, location))?;
    }
    Ok(())
}

impl SqlitePools {
    pub(crate) async fn migrate(&self, sets: &[Migrations]) -> Result<()> {
        let location = self.file.display().to_string();
        let mut connection = self
            .writer
            .acquire()
            .await
            .map_err(|error| Error::from(error).at(&location))?;
        let mut known = Vec::with_capacity(sets.len());
        for set in sets {
            let found: i64 =
                sqlx::query_scalar("SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' AND name = $1")
                    .bind(set.table())
                    .fetch_one(&mut *connection)
                    .await
                    .map_err(|error| Error::from(error).at(&location))?;
            known.push((set, set.migrator(|file| file.sqlite)?, found > 0));
        }
        apply(&mut *connection, &location, known).await
    }
}

impl PostgresPools {
    /// On a connection of its own: a migration may take longer than a statement may, and the locks of a failed one must
    /// not go back into the pool.
    pub(crate) async fn migrate(&self, sets: &[Migrations]) -> Result<()> {
        let opened = sqlx::PgConnection::connect_with(&self.pool.connect_options()).await;
        let mut connection = opened.map_err(|error| Error::from(error).at(&self.location))?;
        let result = self.migrate_on(&mut connection, sets).await;
        // The locks end with the connection, so a failure to say good-bye changes nothing.
        connection.close().await.ok();
        result
    }

    async fn migrate_on(&self, connection: &mut sqlx::PgConnection, sets: &[Migrations]) -> Result<()> {
        let located = |error: sqlx::Error| Error::from(error).at(&self.location);
        sqlx::raw_sql("SET statement_timeout = 0; SET lock_timeout = 0")
            .execute(&mut *connection)
            .await
            .map_err(located)?;
        // One node migrates; the others wait here and then find nothing to do.
        sqlx::query("SELECT pg_advisory_lock($1)")
            .bind(schema_lock(self.schema))
            .execute(&mut *connection)
            .await
            .map_err(located)?;
        let mut known = Vec::with_capacity(sets.len());
        for set in sets {
            let found: bool = sqlx::query_scalar(
                "SELECT EXISTS (SELECT 1 FROM information_schema.tables WHERE table_schema = $1 AND table_name = $2)",
            )
            .bind(self.schema)
            .bind(set.table())
            .fetch_one(&mut *connection)
            .await
            .map_err(located)?;
            known.push((set, set.migrator(|file| file.postgres)?, found));
        }
        apply(connection, &self.location, known).await
    }
}
