//! What people and judges say of traces.

use async_trait::async_trait;
use conditional_trait_gen::trait_gen;
use modelyard_db::{Pools, PostgresPools, SqlitePools, Transaction};

use super::{
    SqlStore, to_json,
    trace_rows::{AssessmentRow, select_assessments},
};
use crate::{
    error::{Error, Result},
    model::trace::{Assessment, AssessmentChange, aggregate_of},
};

/// Assessments.
#[async_trait]
pub trait AssessmentStore: Send + Sync {
    /// Adds an assessment to a trace that is there. The one that it replaces is not valid any more.
    async fn create_assessment(&self, project: &str, assessment: &Assessment) -> Result<Assessment>;
    /// An assessment.
    async fn find_assessment(&self, project: &str, trace_id: &str, assessment_id: &str) -> Result<Option<Assessment>>;
    /// Changes an assessment that is there.
    async fn change_assessment(
        &self,
        project: &str,
        trace_id: &str,
        assessment_id: &str,
        change: &AssessmentChange,
    ) -> Result<Assessment>;
    /// Deletes an assessment, if it is there. The one that it replaced is valid again.
    async fn delete_assessment(&self, project: &str, trace_id: &str, assessment_id: &str) -> Result<()>;
}

/// What an assessment that is not there is answered with.
pub(crate) fn no_assessment(trace_id: &str, assessment_id: &str) -> Error {
    let shown = |id: &str| id.chars().take(64).flat_map(char::escape_default).collect::<String>();
    Error::NotThere(format!(
        "Assessment with ID '{}' not found for trace '{}'",
        shown(assessment_id),
        shown(trace_id)
    ))
}

const UPSERT: &str = "
    INSERT INTO assessment (project, id, trace_id, name, kind, value, error, created_ms, updated_ms, source_type, source_id,
                            run_id, span_id, rationale, overrides, is_valid, metadata, aggregate_value, is_numeric)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)
    ON CONFLICT (project, id) DO UPDATE SET
        name = excluded.name, kind = excluded.kind, value = excluded.value, error = excluded.error,
        created_ms = excluded.created_ms, updated_ms = excluded.updated_ms, source_type = excluded.source_type,
        source_id = excluded.source_id, run_id = excluded.run_id, span_id = excluded.span_id,
        rationale = excluded.rationale, overrides = excluded.overrides, is_valid = excluded.is_valid,
        metadata = excluded.metadata, aggregate_value = excluded.aggregate_value, is_numeric = excluded.is_numeric
    WHERE assessment.trace_id = excluded.trace_id";

#[trait_gen(P -> SqlitePools, PostgresPools)]
impl SqlStore<P> {
    /// Writes an assessment.
    pub(super) async fn upsert_assessment(
        tx: &mut Transaction<<P as Pools>::Db>,
        project: &str,
        assessment: &Assessment,
    ) -> Result<()> {
        let error = assessment.error.as_ref();
        let error = error
            .map(|error| to_json("error of an assessment", error))
            .transpose()?;
        let metadata = Some(&assessment.metadata).filter(|metadata| !metadata.is_empty());
        let metadata = metadata.map(|metadata| to_json("metadata of an assessment", metadata));
        let (aggregate, is_numeric) = aggregate_of(&assessment.value);
        let written = sqlx::query(UPSERT)
            .bind(project)
            .bind(&assessment.assessment_id)
            .bind(&assessment.trace_id)
            .bind(&assessment.name)
            .bind(assessment.kind.as_str())
            .bind(to_json("value of an assessment", &assessment.value)?)
            .bind(error)
            .bind(assessment.created_ms)
            .bind(assessment.updated_ms)
            .bind(&assessment.source_type)
            .bind(assessment.source_id.as_deref())
            .bind(assessment.run_id.as_deref())
            .bind(assessment.span_id.as_deref())
            .bind(assessment.rationale.as_deref())
            .bind(assessment.overrides.as_deref())
            .bind(i64::from(assessment.is_valid))
            .bind(metadata.transpose()?)
            .bind(aggregate)
            .bind(i64::from(is_numeric))
            .execute(&mut **tx)
            .await?;
        if written.rows_affected() == 0 {
            return Err(Error::Exists(format!(
                "the id '{}' belongs to an assessment of another trace: leave it out, and one is made",
                assessment.assessment_id
            )));
        }
        Ok(())
    }

    async fn assessment_in(
        tx: &mut Transaction<<P as Pools>::Db>,
        project: &str,
        trace_id: &str,
        assessment_id: &str,
    ) -> Result<Option<Assessment>> {
        if trace_id.contains('\0') || assessment_id.contains('\0') {
            return Ok(None);
        }
        let query = select_assessments!("WHERE project = $1 AND trace_id = $2 AND id = $3");
        let row: Option<AssessmentRow> = sqlx::query_as(query)
            .bind(project)
            .bind(trace_id)
            .bind(assessment_id)
            .fetch_optional(&mut **tx)
            .await?;
        row.map(AssessmentRow::into_assessment).transpose()
    }

    async fn mark_assessment(
        tx: &mut Transaction<<P as Pools>::Db>,
        project: &str,
        trace_id: &str,
        assessment_id: &str,
        is_valid: bool,
    ) -> Result<u64> {
        let query = "UPDATE assessment SET is_valid = $1 WHERE project = $2 AND trace_id = $3 AND id = $4";
        let marked = sqlx::query(query)
            .bind(i64::from(is_valid))
            .bind(project)
            .bind(trace_id)
            .bind(assessment_id)
            .execute(&mut **tx)
            .await?;
        Ok(marked.rows_affected())
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
#[async_trait]
impl AssessmentStore for SqlStore<P> {
    async fn create_assessment(&self, project: &str, assessment: &Assessment) -> Result<Assessment> {
        let mut tx = self.pools.begin().await?;
        let trace_id = assessment.trace_id.as_str();
        Self::hold_trace(&mut tx, project, trace_id).await?;
        if let Some(overridden) = &assessment.overrides
            && Self::mark_assessment(&mut tx, project, trace_id, overridden, false).await? == 0
        {
            return Err(no_assessment(trace_id, overridden));
        }
        Self::upsert_assessment(&mut tx, project, assessment).await?;
        let made = Self::assessment_in(&mut tx, project, trace_id, &assessment.assessment_id).await?;
        let made = made.ok_or_else(|| no_assessment(trace_id, &assessment.assessment_id))?;
        tx.commit().await?;
        Ok(made)
    }

    async fn find_assessment(&self, project: &str, trace_id: &str, assessment_id: &str) -> Result<Option<Assessment>> {
        let mut tx = self.pools.snapshot().await?;
        let found = Self::assessment_in(&mut tx, project, trace_id, assessment_id).await?;
        tx.rollback().await?;
        Ok(found)
    }

    async fn change_assessment(
        &self,
        project: &str,
        trace_id: &str,
        assessment_id: &str,
        change: &AssessmentChange,
    ) -> Result<Assessment> {
        let mut tx = self.pools.begin().await?;
        Self::hold_trace(&mut tx, project, trace_id).await?;
        let found = Self::assessment_in(&mut tx, project, trace_id, assessment_id).await?;
        let found = found.ok_or_else(|| no_assessment(trace_id, assessment_id))?;
        let changed = found.changed(change)?;
        Self::upsert_assessment(&mut tx, project, &changed).await?;
        tx.commit().await?;
        Ok(changed)
    }

    async fn delete_assessment(&self, project: &str, trace_id: &str, assessment_id: &str) -> Result<()> {
        let mut tx = self.pools.begin().await?;
        Self::hold_trace(&mut tx, project, trace_id).await?;
        if let Some(found) = Self::assessment_in(&mut tx, project, trace_id, assessment_id).await? {
            if let Some(overridden) = &found.overrides {
                Self::mark_assessment(&mut tx, project, trace_id, overridden, true).await?;
            }
            sqlx::query("DELETE FROM assessment WHERE project = $1 AND id = $2")
                .bind(project)
                .bind(assessment_id)
                .execute(&mut *tx)
                .await?;
        }
        Ok(tx.commit().await?)
    }
}
