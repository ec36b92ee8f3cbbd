//! What is forgotten after a time.

use async_trait::async_trait;
use conditional_trait_gen::trait_gen;
use modelyard_common::Timestamp;
use modelyard_db::{Pools, PostgresPools, SqlitePools};

use super::{RetentionStore, SqlStore};
use crate::error::Result;

#[trait_gen(P -> SqlitePools, PostgresPools)]
#[async_trait]
impl RetentionStore for SqlStore<P> {
    async fn remove_ended_segments(&self, older_than: Timestamp, limit: u32) -> Result<u64> {
        let mut tx = self.pools.begin().await?;
        let removed = sqlx::query(
            "DELETE FROM segment WHERE (project, endpoint, segment_id) IN
                 (SELECT project, endpoint, segment_id FROM segment WHERE ended_at < $1 ORDER BY ended_at LIMIT $2)",
        )
        .bind(older_than.as_micros())
        .bind(i64::from(limit))
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(removed.rows_affected())
    }

    async fn forget_windows(&self, older_than: Timestamp, limit: u32) -> Result<u64> {
        let mut tx = self.pools.begin().await?;
        // The conditions are said twice: PostgreSQL looks at the outer ones again for a row that changed meanwhile.
        let windows: Vec<(String, String, i64)> = sqlx::query_as(
            "DELETE FROM window_score WHERE touched_at < $1 AND scored_generation >= generation
             AND (project, monitor, start_at) IN
                 (SELECT project, monitor, start_at FROM window_score
                  WHERE touched_at < $1 AND scored_generation >= generation ORDER BY touched_at LIMIT $2)
             RETURNING project, monitor, start_at",
        )
        .bind(older_than.as_micros())
        .bind(i64::from(limit))
        .fetch_all(&mut *tx)
        .await?;
        for (project, monitor, start) in &windows {
            sqlx::query(
                "DELETE FROM judgement WHERE project = $1 AND start_at = $3
                 AND rule IN (SELECT name FROM alert_rule WHERE project = $1 AND monitor = $2)",
            )
            .bind(project)
            .bind(monitor)
            .bind(start)
            .execute(&mut *tx)
            .await?;
        }
        tx.commit().await?;
        Ok(windows.len() as u64)
    }

    async fn forget_alerts(&self, older_than: Timestamp, limit: u32) -> Result<u64> {
        let mut tx = self.pools.begin().await?;
        let removed = sqlx::query(
            "DELETE FROM alert WHERE id IN
                 (SELECT old.id FROM alert old WHERE old.fired_at < $1
                  AND (old.resolved_at < $1
                       OR (old.state = 'firing'
                           AND EXISTS (SELECT 1 FROM alert newer WHERE newer.project = old.project
                                       AND newer.rule = old.rule AND newer.fired_at > old.fired_at)))
                  ORDER BY old.fired_at LIMIT $2)",
        )
        .bind(older_than.as_micros())
        .bind(i64::from(limit))
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(removed.rows_affected())
    }

    async fn forget_endpoints(&self, older_than: Timestamp, limit: u32) -> Result<u64> {
        let mut tx = self.pools.begin().await?;
        let removed = sqlx::query(
            "DELETE FROM endpoint_log WHERE touched_at < $1 AND (project, endpoint) IN
                 (SELECT l.project, l.endpoint FROM endpoint_log l WHERE l.touched_at < $1
                  AND NOT EXISTS (SELECT 1 FROM monitor m WHERE m.project = l.project AND m.endpoint = l.endpoint)
                  AND NOT EXISTS (SELECT 1 FROM segment s WHERE s.project = l.project AND s.endpoint = l.endpoint)
                  AND NOT EXISTS (SELECT 1 FROM label_batch b WHERE b.project = l.project AND b.endpoint = l.endpoint)
                  ORDER BY l.touched_at LIMIT $2)",
        )
        .bind(older_than.as_micros())
        .bind(i64::from(limit))
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(removed.rows_affected())
    }
}
