//! How far things have come that are brought here from other servers.

use conditional_trait_gen::trait_gen;
use modelyard_db::{Pools, PostgresPools, SqlitePools, Transaction};

use super::{SqlStore, json, number};
use crate::{
    error::Result,
    model::import::{GOING_ON, ImportCounts, ImportKind, ImportScope, ImportState, ImportTotals},
};

#[derive(sqlx::FromRow)]
struct StateRow {
    source_id: String,
    local_id: String,
    fingerprint: String,
    counts: String,
}

/// The runs of a source that are in an experiment.
macro_rules! imported_runs {
    ($select:literal, $joins:literal) => {
        concat!(
            "SELECT ",
            $select,
            " FROM import_item i JOIN run r ON r.id = i.local_id AND r.project = i.project ",
            $joins,
            " WHERE i.project = $1 AND i.source = $2 AND i.kind = 'run' AND r.experiment_id = $3"
        )
    };
}

/// The logged models of a source that are in an experiment.
macro_rules! imported_logged_models {
    ($select:literal, $joins:literal) => {
        concat!(
            "SELECT ",
            $select,
            " FROM import_item i JOIN logged_model l ON l.id = i.local_id AND l.project = i.project ",
            $joins,
            " WHERE i.project = $1 AND i.source = $2 AND i.kind = 'logged_model' AND l.experiment_id = $3"
        )
    };
}

/// What finds a thing of the project `$1` by what it is called here: a name `$2`, a number `$3`, or both. What of these it has not is
/// empty or negative.
const fn is_here(kind: ImportKind) -> &'static str {
    match kind {
        ImportKind::Experiment => "SELECT CAST(1 AS BIGINT) FROM experiment WHERE project = $1 AND $2 = '' AND id = $3",
        ImportKind::Run => "SELECT CAST(1 AS BIGINT) FROM run WHERE project = $1 AND id = $2 AND $3 < 0",
        ImportKind::LoggedModel => {
            "SELECT CAST(1 AS BIGINT) FROM logged_model WHERE project = $1 AND id = $2 AND $3 < 0"
        }
        ImportKind::Model => {
            "SELECT CAST(1 AS BIGINT) FROM registered_model WHERE project = $1 AND name = $2 AND $3 < 0"
        }
        ImportKind::Version => {
            "SELECT CAST(1 AS BIGINT) FROM model_version WHERE project = $1 AND model = $2 AND version = $3"
        }
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
impl SqlStore<P> {
    /// What something is called here; None: it was not imported.
    pub(super) async fn imported_as(
        tx: &mut Transaction<<P as Pools>::Db>,
        scope: &ImportScope,
        kind: ImportKind,
        source_id: &str,
    ) -> Result<Option<String>> {
        let query = sqlx::query_scalar(
            "SELECT local_id FROM import_item WHERE project = $1 AND source = $2 AND kind = $3 AND source_id = $4",
        );
        Ok(query
            .bind(&scope.project)
            .bind(&scope.source)
            .bind(kind.as_str())
            .bind(source_id)
            .fetch_optional(&mut **tx)
            .await?)
    }

    /// Remembers what something is called here. All of it has to arrive again before it is whole; that it went on when its files
    /// came is not forgotten until then.
    pub(super) async fn remember_import(
        tx: &mut Transaction<<P as Pools>::Db>,
        scope: &ImportScope,
        kind: ImportKind,
        source_id: &str,
        local_id: &str,
    ) -> Result<()> {
        sqlx::query(
            "INSERT INTO import_item (project, source, kind, source_id, local_id, fingerprint, counts)
             VALUES ($1, $2, $3, $4, $5, '', '{}')
             ON CONFLICT (project, source, kind, source_id)
             DO UPDATE SET local_id = excluded.local_id,
                           fingerprint = CASE WHEN import_item.fingerprint = $6 THEN import_item.fingerprint ELSE '' END",
        )
        .bind(&scope.project)
        .bind(&scope.source)
        .bind(kind.as_str())
        .bind(source_id)
        .bind(local_id)
        .bind(GOING_ON)
        .execute(&mut **tx)
        .await?;
        Ok(())
    }

    /// How far some things are. What was removed here since it came has to come again.
    pub(super) async fn states_in(
        tx: &mut Transaction<<P as Pools>::Db>,
        scope: &ImportScope,
        kind: ImportKind,
        ids: &[String],
    ) -> Result<Vec<ImportState>> {
        let mut query = sqlx::QueryBuilder::<<P as Pools>::Db>::new(
            "SELECT source_id, local_id, fingerprint, counts FROM import_item WHERE project = ",
        );
        query.push_bind(scope.project.clone());
        query.push(" AND source = ").push_bind(scope.source.clone());
        query.push(" AND kind = ").push_bind(kind.as_str());
        query.push(" AND source_id IN (");
        let mut wanted = query.separated(", ");
        for id in ids {
            wanted.push_bind(id.clone());
        }
        query.push(")");
        let rows: Vec<StateRow> = query.build_query_as().fetch_all(&mut **tx).await?;
        let mut states = Vec::with_capacity(rows.len());
        for row in rows {
            if !Self::is_imported_here(tx, scope, kind, &row.local_id).await? {
                continue;
            }
            states.push(ImportState {
                source_id: row.source_id,
                id: row.local_id,
                fingerprint: row.fingerprint,
                counts: json::<ImportCounts>("counts of an import", &row.counts)?,
            });
        }
        Ok(states)
    }

    async fn is_imported_here(
        tx: &mut Transaction<<P as Pools>::Db>,
        scope: &ImportScope,
        kind: ImportKind,
        local_id: &str,
    ) -> Result<bool> {
        let (name, digits) = match kind {
            ImportKind::Experiment => ("", local_id),
            ImportKind::Version => local_id.rsplit_once('/').unwrap_or_default(),
            ImportKind::Run | ImportKind::LoggedModel | ImportKind::Model => (local_id, ""),
        };
        let found: Option<i64> = sqlx::query_scalar(is_here(kind))
            .bind(&scope.project)
            .bind(name)
            .bind(digits.parse::<i64>().unwrap_or(-1))
            .fetch_optional(&mut **tx)
            .await?;
        Ok(found.is_some())
    }

    /// What of a source is in an experiment.
    pub(super) async fn totals_in(
        tx: &mut Transaction<<P as Pools>::Db>,
        scope: &ImportScope,
        experiment: i64,
    ) -> Result<ImportTotals> {
        let runs = Self::count_of(tx, imported_runs!("COUNT(*)", ""), scope, experiment).await?;
        let params = imported_runs!("COUNT(*)", "JOIN run_param x ON x.run_id = r.id");
        let tags = imported_runs!("COUNT(*)", "JOIN run_tag x ON x.run_id = r.id");
        let points = imported_runs!(
            "COUNT(*)",
            "JOIN run_metric m ON m.run_id = r.id JOIN run_metric_point x ON x.series_id = m.id"
        );
        let datasets = imported_runs!("COUNT(*)", "JOIN run_dataset x ON x.run_id = r.id");
        let models = imported_runs!("COUNT(*)", "JOIN run_model x ON x.run_id = r.id");
        let logged = imported_logged_models!("COUNT(*)", "");
        let files = imported_runs!(
            "COUNT(*)",
            "JOIN artifact_file x ON x.project = r.project
              AND x.path > CAST(r.experiment_id AS TEXT) || '/' || r.id || '/artifacts/'
              AND x.path < CAST(r.experiment_id AS TEXT) || '/' || r.id || '/artifacts0'"
        );
        let bytes = imported_runs!(
            "CAST(COALESCE(SUM(x.size_bytes), 0) AS BIGINT)",
            "JOIN artifact_file x ON x.project = r.project
              AND x.path > CAST(r.experiment_id AS TEXT) || '/' || r.id || '/artifacts/'
              AND x.path < CAST(r.experiment_id AS TEXT) || '/' || r.id || '/artifacts0'"
        );
        let model_files = imported_logged_models!(
            "COUNT(*)",
            "JOIN artifact_file x ON x.project = l.project
              AND x.path > CAST(l.experiment_id AS TEXT) || '/models/' || l.id || '/artifacts/'
              AND x.path < CAST(l.experiment_id AS TEXT) || '/models/' || l.id || '/artifacts0'"
        );
        let model_bytes = imported_logged_models!(
            "CAST(COALESCE(SUM(x.size_bytes), 0) AS BIGINT)",
            "JOIN artifact_file x ON x.project = l.project
              AND x.path > CAST(l.experiment_id AS TEXT) || '/models/' || l.id || '/artifacts/'
              AND x.path < CAST(l.experiment_id AS TEXT) || '/models/' || l.id || '/artifacts0'"
        );
        Ok(ImportTotals {
            runs,
            params: Self::count_of(tx, params, scope, experiment).await?,
            tags: Self::count_of(tx, tags, scope, experiment).await?,
            points: Self::count_of(tx, points, scope, experiment).await?,
            links: Self::count_of(tx, datasets, scope, experiment).await?
                + Self::count_of(tx, models, scope, experiment).await?,
            logged_models: Self::count_of(tx, logged, scope, experiment).await?,
            files: Self::count_of(tx, files, scope, experiment).await?
                + Self::count_of(tx, model_files, scope, experiment).await?,
            bytes: Self::count_of(tx, bytes, scope, experiment).await?
                + Self::count_of(tx, model_bytes, scope, experiment).await?,
        })
    }

    async fn count_of(
        tx: &mut Transaction<<P as Pools>::Db>,
        statement: &'static str,
        scope: &ImportScope,
        experiment: i64,
    ) -> Result<u64> {
        let count: i64 = sqlx::query_scalar(statement)
            .bind(&scope.project)
            .bind(&scope.source)
            .bind(experiment)
            .fetch_one(&mut **tx)
            .await?;
        number("count", count)
    }
}
