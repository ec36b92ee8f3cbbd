//! The feed of events.

use async_trait::async_trait;
use conditional_trait_gen::trait_gen;
use modelyard_common::Timestamp;
use modelyard_db::{Pools, PostgresPools, SqlitePools};

use super::{SqlStore, json, number, word};
use crate::{
    error::Result,
    model::{
        event::{Event, EventKind},
        page::{Page, PageRequest},
    },
};

/// The feed of events.
#[async_trait]
pub trait EventStore: Send + Sync {
    /// The events after a revision, oldest first.
    async fn list_events(&self, project: &str, page: &PageRequest<u64>) -> Result<Page<Event>>;
    /// Forgets the events before a time; how many.
    async fn prune_events(&self, before: Timestamp) -> Result<u64>;
}

#[derive(sqlx::FromRow)]
struct EventRow {
    revision: i64,
    project: String,
    kind: String,
    subject: String,
    at: i64,
}

impl EventRow {
    fn into_event(self) -> Result<Event> {
        Ok(Event {
            revision: number("revision", self.revision)?,
            project: self.project,
            kind: word("kind of event", &self.kind, EventKind::parse)?,
            subject: json("subject of an event", &self.subject)?,
            at: Timestamp::from_micros(self.at),
        })
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
#[async_trait]
impl EventStore for SqlStore<P> {
    async fn list_events(&self, project: &str, page: &PageRequest<u64>) -> Result<Page<Event>> {
        let after = super::stored("revision", page.after.unwrap_or(0))?;
        let rows: Vec<EventRow> = sqlx::query_as(
            "SELECT revision, project, kind, subject, at FROM event WHERE project = $1 AND revision > $2
             ORDER BY revision LIMIT $3",
        )
        .bind(project)
        .bind(after)
        .bind(page.rows())
        .fetch_all(self.pools.reader())
        .await?;
        let events = rows.into_iter().map(EventRow::into_event).collect::<Result<_>>()?;
        Ok(page.cut(events, |event| event.revision))
    }

    async fn prune_events(&self, before: Timestamp) -> Result<u64> {
        let mut tx = self.pools.begin().await?;
        let pruned = sqlx::query("DELETE FROM event WHERE at < $1")
            .bind(before.as_micros())
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(pruned.rows_affected())
    }
}
