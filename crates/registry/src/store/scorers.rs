//! Scorers of experiments.

use async_trait::async_trait;
use conditional_trait_gen::trait_gen;
use modelyard_auth::audit::NewEvent;
use modelyard_common::Timestamp;
use modelyard_db::{Pools, PostgresPools, SqlitePools, Transaction};
use sqlx::QueryBuilder;

use super::{
    SqlStore,
    audit::{after, change},
    experiments::no_experiment,
};
use crate::{
    error::{Error, Result},
    model::{
        scorer::{
            MAX_LISTED_BYTES, MAX_LISTED_SCORERS, MAX_SCORER_VERSIONS, MAX_SCORERS, ScorerOnlineConfig, ScorerVersion,
            no_scorer, uses_gateway,
        },
        tracking::Lifecycle,
    },
};

/// Scorers.
#[async_trait]
pub trait ScorerStore: Send + Sync {
    /// Adds a version; `new` has the id of a scorer that does not exist yet, and no number.
    async fn register_scorer(&self, project: &str, new: &ScorerVersion, event: &NewEvent) -> Result<ScorerVersion>;
    /// The newest version of each scorer of active experiments; none: of all of them.
    async fn list_scorers(&self, project: &str, experiment_ids: Option<&[i64]>) -> Result<Vec<ScorerVersion>>;
    /// The newest version of each scorer of an experiment, which must be active.
    async fn list_scorers_of(&self, project: &str, experiment_id: i64) -> Result<Vec<ScorerVersion>>;
    /// The versions of a scorer, in their order.
    async fn list_scorer_versions(&self, project: &str, experiment_id: i64, name: &str) -> Result<Vec<ScorerVersion>>;
    /// A version of a scorer; the newest if none is named.
    async fn get_scorer(
        &self,
        project: &str,
        experiment_id: i64,
        name: &str,
        version: Option<i64>,
    ) -> Result<ScorerVersion>;
    /// Removes a version of a scorer, or the scorer.
    async fn delete_scorer(
        &self,
        project: &str,
        experiment_id: i64,
        name: &str,
        version: Option<i64>,
        event: &NewEvent,
    ) -> Result<()>;
    /// The online configurations of scorers.
    async fn online_configs(&self, project: &str, scorer_ids: &[String]) -> Result<Vec<ScorerOnlineConfig>>;
    /// Puts the online configuration of a scorer in the place of what it has; the scorer's id is found by its name.
    async fn put_online_config(
        &self,
        project: &str,
        name: &str,
        wanted: &ScorerOnlineConfig,
    ) -> Result<ScorerOnlineConfig>;
}

#[derive(sqlx::FromRow)]
struct ScorerRow {
    scorer_id: String,
    experiment_id: i64,
    name: String,
    version: i64,
    serialized: String,
    created_at: i64,
}

impl From<ScorerRow> for ScorerVersion {
    fn from(row: ScorerRow) -> Self {
        Self {
            scorer_id: row.scorer_id,
            experiment_id: row.experiment_id,
            name: row.name,
            version: row.version,
            serialized: row.serialized,
            created_at: Timestamp::from_micros(row.created_at),
        }
    }
}

/// The columns of [`ScorerRow`]; the tables are `s` and `v`.
const SELECT: &str = "SELECT s.id AS scorer_id, s.experiment_id, s.name, v.version, v.serialized, v.created_at ";
/// Scorers with their newest versions, in active experiments.
const NEWEST: &str = "FROM scorer s JOIN experiment e ON e.id = s.experiment_id AND e.lifecycle = 'active'
     JOIN scorer_version v ON v.scorer_id = s.id
     AND v.version = (SELECT MAX(n.version) FROM scorer_version n WHERE n.scorer_id = s.id)
     WHERE s.project = ";

#[trait_gen(P -> SqlitePools, PostgresPools)]
impl SqlStore<P> {
    /// Refuses an experiment that is not there or deleted.
    async fn check_scored(tx: &mut Transaction<<P as Pools>::Db>, project: &str, experiment_id: i64) -> Result<()> {
        let found = Self::experiment_in(tx, project, experiment_id).await?;
        let found = found.ok_or_else(|| no_experiment(experiment_id))?;
        if found.lifecycle == Lifecycle::Active {
            return Ok(());
        }
        Err(Error::request(format!(
            "The experiment {experiment_id} must be in the 'active' state. Current state is deleted."
        )))
    }

    /// Keeps others from changing the scorers of an experiment until the commit.
    async fn hold_scored(tx: &mut Transaction<<P as Pools>::Db>, project: &str, experiment_id: i64) -> Result<()> {
        sqlx::query("UPDATE experiment SET name = name WHERE project = $1 AND id = $2")
            .bind(project)
            .bind(experiment_id)
            .execute(&mut **tx)
            .await?;
        Self::check_scored(tx, project, experiment_id).await
    }

    async fn scorer_id(
        tx: &mut Transaction<<P as Pools>::Db>,
        project: &str,
        experiment_id: i64,
        name: &str,
    ) -> Result<Option<String>> {
        let query = "SELECT id FROM scorer WHERE project = $1 AND experiment_id = $2 AND name = $3";
        let found = sqlx::query_scalar(query).bind(project).bind(experiment_id).bind(name);
        Ok(found.fetch_optional(&mut **tx).await?)
    }

    /// A version of a scorer, or the newest one.
    async fn scorer_version_in(
        tx: &mut Transaction<<P as Pools>::Db>,
        project: &str,
        experiment_id: i64,
        name: &str,
        version: Option<i64>,
    ) -> Result<Option<ScorerVersion>> {
        let mut query = QueryBuilder::<<P as Pools>::Db>::new(SELECT);
        query.push("FROM scorer s JOIN scorer_version v ON v.scorer_id = s.id WHERE s.project = ");
        query.push_bind(project.to_owned());
        query.push(" AND s.experiment_id = ").push_bind(experiment_id);
        query.push(" AND s.name = ").push_bind(name.to_owned());
        if let Some(version) = version {
            query.push(" AND v.version = ").push_bind(version);
        }
        query.push(" ORDER BY v.version DESC LIMIT 1");
        let row: Option<ScorerRow> = query.build_query_as().fetch_optional(&mut **tx).await?;
        Ok(row.map(ScorerVersion::from))
    }

    /// The id of a scorer, which is made if it is not there.
    async fn scorer_for(tx: &mut Transaction<<P as Pools>::Db>, project: &str, new: &ScorerVersion) -> Result<String> {
        if let Some(id) = Self::scorer_id(tx, project, new.experiment_id, &new.name).await? {
            return Ok(id);
        }
        let query = "SELECT COUNT(*) FROM scorer WHERE project = $1 AND experiment_id = $2";
        let query = sqlx::query_scalar(query).bind(project).bind(new.experiment_id);
        let count: i64 = query.fetch_one(&mut **tx).await?;
        if count >= MAX_SCORERS {
            return Err(Error::State(format!(
                "experiment {} has {count} scorers, as many as it may have: delete some first",
                new.experiment_id
            )));
        }
        sqlx::query("INSERT INTO scorer (id, project, experiment_id, name) VALUES ($1, $2, $3, $4)")
            .bind(&new.scorer_id)
            .bind(project)
            .bind(new.experiment_id)
            .bind(&new.name)
            .execute(&mut **tx)
            .await?;
        Ok(new.scorer_id.clone())
    }

    /// The newest versions, if they are few and small enough for one answer.
    async fn newest_scorers(
        tx: &mut Transaction<<P as Pools>::Db>,
        project: &str,
        experiment_ids: Option<&[i64]>,
    ) -> Result<Vec<ScorerVersion>> {
        let fill = |query: &mut QueryBuilder<<P as Pools>::Db>| {
            query.push(NEWEST).push_bind(project.to_owned());
            if let Some(ids) = experiment_ids {
                query.push(" AND s.experiment_id IN (-1");
                for id in ids {
                    query.push(", ").push_bind(*id);
                }
                query.push(")");
            }
        };
        let mut query = QueryBuilder::new("SELECT COUNT(*), CAST(COALESCE(SUM(LENGTH(v.serialized)), 0) AS BIGINT) ");
        fill(&mut query);
        let (count, bytes): (i64, i64) = query.build_query_as().fetch_one(&mut **tx).await?;
        if count > MAX_LISTED_SCORERS as i64 || bytes > MAX_LISTED_BYTES {
            return Err(Error::request(format!(
                "{count} scorers are too many for one answer: list those of fewer experiments at once"
            )));
        }
        let mut query = QueryBuilder::new(SELECT);
        fill(&mut query);
        query.push(" ORDER BY s.experiment_id, s.name");
        let rows: Vec<ScorerRow> = query.build_query_as().fetch_all(&mut **tx).await?;
        Ok(rows.into_iter().map(ScorerVersion::from).collect())
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
#[async_trait]
impl ScorerStore for SqlStore<P> {
    async fn register_scorer(&self, project: &str, new: &ScorerVersion, event: &NewEvent) -> Result<ScorerVersion> {
        let mut tx = self.pools.begin().await?;
        Self::hold_scored(&mut tx, project, new.experiment_id).await?;
        let scorer_id = Self::scorer_for(&mut tx, project, new).await?;
        let (count, newest): (i64, i64) =
            sqlx::query_as("SELECT COUNT(*), COALESCE(MAX(version), 0) FROM scorer_version WHERE scorer_id = $1")
                .bind(&scorer_id)
                .fetch_one(&mut *tx)
                .await?;
        if count >= MAX_SCORER_VERSIONS {
            return Err(Error::State(format!(
                "scorer `{}` has {count} versions, as many as it may have: delete some first",
                new.name
            )));
        }
        let made = ScorerVersion {
            scorer_id,
            version: newest + 1,
            ..new.clone()
        };
        sqlx::query("INSERT INTO scorer_version (scorer_id, version, serialized, created_at) VALUES ($1, $2, $3, $4)")
            .bind(&made.scorer_id)
            .bind(made.version)
            .bind(&made.serialized)
            .bind(made.created_at.as_micros())
            .execute(&mut *tx)
            .await?;
        Self::append_audit(&mut tx, &after(event, &made)?).await?;
        tx.commit().await?;
        Ok(made)
    }

    async fn list_scorers(&self, project: &str, experiment_ids: Option<&[i64]>) -> Result<Vec<ScorerVersion>> {
        let mut tx = self.pools.snapshot().await?;
        let found = Self::newest_scorers(&mut tx, project, experiment_ids).await?;
        tx.rollback().await?;
        Ok(found)
    }

    async fn list_scorers_of(&self, project: &str, experiment_id: i64) -> Result<Vec<ScorerVersion>> {
        let mut tx = self.pools.snapshot().await?;
        Self::check_scored(&mut tx, project, experiment_id).await?;
        let found = Self::newest_scorers(&mut tx, project, Some(&[experiment_id])).await?;
        tx.rollback().await?;
        Ok(found)
    }

    async fn list_scorer_versions(&self, project: &str, experiment_id: i64, name: &str) -> Result<Vec<ScorerVersion>> {
        let mut tx = self.pools.snapshot().await?;
        Self::check_scored(&mut tx, project, experiment_id).await?;
        let mut query = QueryBuilder::<<P as Pools>::Db>::new(SELECT);
        query.push("FROM scorer s JOIN scorer_version v ON v.scorer_id = s.id WHERE s.project = ");
        query.push_bind(project.to_owned());
        query.push(" AND s.experiment_id = ").push_bind(experiment_id);
        query.push(" AND s.name = ").push_bind(name.to_owned());
        query.push(" ORDER BY v.version");
        let rows: Vec<ScorerRow> = query.build_query_as().fetch_all(&mut *tx).await?;
        tx.rollback().await?;
        if rows.is_empty() {
            return Err(no_scorer(experiment_id, name, None));
        }
        Ok(rows.into_iter().map(ScorerVersion::from).collect())
    }

    async fn get_scorer(
        &self,
        project: &str,
        experiment_id: i64,
        name: &str,
        version: Option<i64>,
    ) -> Result<ScorerVersion> {
        let mut tx = self.pools.snapshot().await?;
        Self::check_scored(&mut tx, project, experiment_id).await?;
        let is_there = Self::scorer_id(&mut tx, project, experiment_id, name).await?.is_some();
        let found = Self::scorer_version_in(&mut tx, project, experiment_id, name, version).await?;
        tx.rollback().await?;
        found.ok_or_else(|| no_scorer(experiment_id, name, version.filter(|_| is_there)))
    }

    async fn delete_scorer(
        &self,
        project: &str,
        experiment_id: i64,
        name: &str,
        version: Option<i64>,
        event: &NewEvent,
    ) -> Result<()> {
        let mut tx = self.pools.begin().await?;
        Self::hold_scored(&mut tx, project, experiment_id).await?;
        let scorer_id = Self::scorer_id(&mut tx, project, experiment_id, name).await?;
        let scorer_id = scorer_id.ok_or_else(|| no_scorer(experiment_id, name, None))?;
        let before = Self::scorer_version_in(&mut tx, project, experiment_id, name, version).await?;
        let before = before.ok_or_else(|| no_scorer(experiment_id, name, version))?;
        if let Some(version) = version {
            sqlx::query("DELETE FROM scorer_version WHERE scorer_id = $1 AND version = $2")
                .bind(&scorer_id)
                .bind(version)
                .execute(&mut *tx)
                .await?;
        } else {
            sqlx::query("DELETE FROM scorer WHERE project = $1 AND id = $2")
                .bind(project)
                .bind(&scorer_id)
                .execute(&mut *tx)
                .await?;
        }
        Self::append_audit(&mut tx, &change(event, &before, &None::<ScorerVersion>)?).await?;
        tx.commit().await?;
        Ok(())
    }

    async fn online_configs(&self, project: &str, scorer_ids: &[String]) -> Result<Vec<ScorerOnlineConfig>> {
        let mut query = QueryBuilder::<<P as Pools>::Db>::new(
            "SELECT c.id, c.scorer_id, s.experiment_id, c.sample_rate, c.filter
             FROM scorer s JOIN scorer_online_config c ON c.scorer_id = s.id WHERE s.project = ",
        );
        query.push_bind(project.to_owned()).push(" AND s.id IN (''");
        for id in scorer_ids {
            query.push(", ").push_bind(id.clone());
        }
        query.push(") ORDER BY s.id");
        let rows: Vec<(String, String, i64, f64, Option<String>)> =
            query.build_query_as().fetch_all(self.pools.reader()).await?;
        let configs = rows.into_iter();
        let configs = configs.map(
            |(id, scorer_id, experiment_id, sample_rate, filter)| ScorerOnlineConfig {
                id,
                scorer_id,
                experiment_id,
                sample_rate,
                filter,
            },
        );
        Ok(configs.collect())
    }

    async fn put_online_config(
        &self,
        project: &str,
        name: &str,
        wanted: &ScorerOnlineConfig,
    ) -> Result<ScorerOnlineConfig> {
        let mut tx = self.pools.begin().await?;
        let experiment_id = wanted.experiment_id;
        Self::hold_scored(&mut tx, project, experiment_id).await?;
        let scorer_id = Self::scorer_id(&mut tx, project, experiment_id, name).await?;
        let scorer_id = scorer_id.ok_or_else(|| no_scorer(experiment_id, name, None))?;
        let newest = Self::scorer_version_in(&mut tx, project, experiment_id, name, None).await?;
        if wanted.sample_rate > 0.0 && newest.is_some_and(|newest| !uses_gateway(&newest.serialized)) {
            return Err(Error::request(format!(
                "Scorer '{name}' does not use a gateway model. Automatic evaluation is only supported for scorers that \
                 use gateway models."
            )));
        }
        sqlx::query(
            "INSERT INTO scorer_online_config (scorer_id, id, sample_rate, filter) VALUES ($1, $2, $3, $4)
             ON CONFLICT (scorer_id) DO UPDATE SET
                 id = excluded.id, sample_rate = excluded.sample_rate, filter = excluded.filter",
        )
        .bind(&scorer_id)
        .bind(&wanted.id)
        .bind(wanted.sample_rate)
        .bind(wanted.filter.as_deref())
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(ScorerOnlineConfig {
            scorer_id,
            ..wanted.clone()
        })
    }
}
