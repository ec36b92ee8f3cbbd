//! How the traffic of endpoints stands.

use async_trait::async_trait;
use conditional_trait_gen::trait_gen;
use modelyard_auth::audit::NewEvent;
use modelyard_common::Timestamp;
use modelyard_db::{Pools, PostgresPools, SqlitePools, Transaction};
use serde_json::json;

use super::{SqlStore, json, maybe, number, to_json};
use crate::{
    error::Result,
    model::{
        desired::{Route, RouteRole},
        endpoint::{EndpointKey, EndpointSpec},
        event::EventKind,
        report::TrafficReport,
        traffic::{Candidate, Traffic},
    },
};

/// A change of an endpoint's traffic.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum TrafficChange {
    /// The candidate of this rollout gets a share, in percent.
    Share(u64, f64),
    /// The candidate of this rollout serves from now on.
    Promote(u64),
    /// The candidate of this rollout is refused.
    Reject(u64),
    /// Back to what served before.
    RollBack,
}

/// The traffic of endpoints.
#[async_trait]
pub trait TrafficStore: Send + Sync {
    /// Changes how the traffic of an endpoint stands; how it stands then. None: it never served.
    async fn change_traffic(
        &self,
        key: &EndpointKey,
        change: TrafficChange,
        event: &NewEvent,
    ) -> Result<Option<Traffic>>;
    /// The endpoints with a candidate that is on its way, by name.
    async fn list_candidates(&self) -> Result<Vec<OnItsWay>>;
    /// Replaces what a node said of the traffic of endpoints; of endpoints that are gone nothing is kept.
    async fn save_traffic_reports(&self, reports: &[TrafficReport], now: Timestamp) -> Result<()>;
}

/// An endpoint with a candidate that is on its way.
#[derive(Debug, Clone, PartialEq)]
pub struct OnItsWay {
    /// Which one.
    pub key: EndpointKey,
    /// What it was declared to be.
    pub spec: EndpointSpec,
    /// How its traffic stands.
    pub traffic: Traffic,
    /// What the nodes counted.
    pub reports: Vec<TrafficReport>,
}

#[derive(sqlx::FromRow)]
struct ReportRow {
    node: String,
    project: String,
    endpoint: String,
    process: String,
    versions: String,
}

impl ReportRow {
    fn into_report(self) -> Result<TrafficReport> {
        Ok(TrafficReport {
            node: self.node,
            process: self.process,
            key: EndpointKey {
                project: self.project,
                name: self.endpoint,
            },
            versions: json("report about traffic", &self.versions)?,
        })
    }
}

/// The columns of [`TrafficRow`].
macro_rules! select_traffic {
    ($rest:literal) => {
        concat!(
            "SELECT t.project, t.endpoint, t.stable, t.previous, t.candidate, t.candidate_revision, t.share, t.rejected,
                    e.spec
             FROM endpoint_traffic t JOIN endpoint e ON e.project = t.project AND e.name = t.endpoint ",
            $rest
        )
    };
}
pub(super) use select_traffic;

#[derive(sqlx::FromRow)]
pub(super) struct TrafficRow {
    project: String,
    endpoint: String,
    stable: String,
    previous: Option<String>,
    candidate: Option<String>,
    candidate_revision: Option<i64>,
    share: f64,
    rejected: i64,
    spec: String,
}

impl TrafficRow {
    pub(super) fn key(&self) -> EndpointKey {
        EndpointKey {
            project: self.project.clone(),
            name: self.endpoint.clone(),
        }
    }

    fn spec(&self) -> Result<EndpointSpec> {
        json("spec of an endpoint", &self.spec)
    }

    pub(super) fn into_traffic(self) -> Result<Traffic> {
        let routes = |text: &str| json::<Vec<Route>>("routes of an endpoint", text);
        let candidate = match (&self.candidate, maybe("revision", self.candidate_revision)?) {
            (Some(candidate), Some(revision)) => Some(Candidate {
                revision,
                routes: routes(candidate)?,
                share: self.share,
                rejected: self.rejected != 0,
            }),
            _ => None,
        };
        Ok(Traffic {
            stable: routes(&self.stable)?,
            previous: self.previous.as_deref().map(routes).transpose()?,
            candidate,
        })
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
impl SqlStore<P> {
    /// How the traffic of an endpoint stands; none if it never served.
    async fn find_traffic(tx: &mut Transaction<<P as Pools>::Db>, key: &EndpointKey) -> Result<Option<Traffic>> {
        let row: Option<TrafficRow> = sqlx::query_as(select_traffic!("WHERE t.project = $1 AND t.endpoint = $2"))
            .bind(&key.project)
            .bind(&key.name)
            .fetch_optional(&mut **tx)
            .await?;
        row.map(TrafficRow::into_traffic).transpose()
    }

    async fn save_traffic(
        tx: &mut Transaction<<P as Pools>::Db>,
        key: &EndpointKey,
        traffic: &Traffic,
        now: Timestamp,
    ) -> Result<()> {
        let text = |routes: &Vec<Route>| to_json("routes of an endpoint", routes);
        let candidate = traffic.candidate.as_ref();
        let revision = candidate.map(|candidate| candidate.revision as i64);
        sqlx::query(
            "INSERT INTO endpoint_traffic (project, endpoint, stable, previous, candidate, candidate_revision, share,
                                           rejected, updated_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
             ON CONFLICT (project, endpoint)
             DO UPDATE SET stable = excluded.stable, previous = excluded.previous, candidate = excluded.candidate,
                           candidate_revision = excluded.candidate_revision, share = excluded.share,
                           rejected = excluded.rejected, updated_at = excluded.updated_at",
        )
        .bind(&key.project)
        .bind(&key.name)
        .bind(text(&traffic.stable)?)
        .bind(traffic.previous.as_ref().map(text).transpose()?)
        .bind(candidate.map(|candidate| text(&candidate.routes)).transpose()?)
        .bind(revision)
        .bind(candidate.map_or(0.0, |candidate| candidate.share))
        .bind(i64::from(candidate.is_some_and(|candidate| candidate.rejected)))
        .bind(now.as_micros())
        .execute(&mut **tx)
        .await?;
        Ok(())
    }

    /// Takes note of what the routes of an endpoint mean after a change, in the change's own transaction. As long as one
    /// of them leads nowhere, what served goes on serving.
    pub(super) async fn follow_endpoint(
        tx: &mut Transaction<<P as Pools>::Db>,
        key: &EndpointKey,
        revision: i64,
        now: Timestamp,
    ) -> Result<()> {
        let Some((spec, routes)) = Self::resolve_endpoint(tx, key).await? else {
            return Ok(());
        };
        let mut live = routes
            .into_iter()
            .filter(|route| route.role == RouteRole::Live)
            .peekable();
        if live.peek().is_none() {
            return Ok(());
        }
        let live: Vec<Route> = live.collect();
        if live.iter().any(|route| route.target().is_none()) {
            return Ok(());
        }
        let before = Self::find_traffic(tx, key).await?;
        let revision = number("revision", revision)?;
        let after = match before.clone() {
            None => Traffic::new(live),
            Some(traffic) => traffic.follow(live, revision, spec.rollout.is_some()),
        };
        if before.as_ref() == Some(&after) {
            return Ok(());
        }
        Self::save_traffic(tx, key, &after, now).await
    }

    /// As [`Self::follow_endpoint`], for all endpoints with a route that follows an alias of a model.
    pub(super) async fn follow_model(
        tx: &mut Transaction<<P as Pools>::Db>,
        project: &str,
        model: &str,
        revision: i64,
        now: Timestamp,
    ) -> Result<()> {
        let names: Vec<String> = sqlx::query_scalar(
            "SELECT DISTINCT endpoint FROM endpoint_route WHERE project = $1 AND model = $2 AND role = 'live'",
        )
        .bind(project)
        .bind(model)
        .fetch_all(&mut **tx)
        .await?;
        for name in names {
            let key = EndpointKey {
                project: project.to_owned(),
                name,
            };
            Self::follow_endpoint(tx, &key, revision, now).await?;
        }
        Ok(())
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
#[async_trait]
impl TrafficStore for SqlStore<P> {
    async fn change_traffic(
        &self,
        key: &EndpointKey,
        change: TrafficChange,
        event: &NewEvent,
    ) -> Result<Option<Traffic>> {
        let mut tx = self.pools.begin().await?;
        let revision = Self::next_revision(&mut tx).await?;
        let Some(before) = Self::find_traffic(&mut tx, key).await? else {
            return Ok(None);
        };
        let after = match change {
            TrafficChange::Share(of, share) => before.clone().with_share(of, share)?,
            TrafficChange::Promote(of) => before.clone().promoted(of)?,
            TrafficChange::Reject(of) => before.clone().rejected(of)?,
            TrafficChange::RollBack => before.clone().rolled_back(&key.name, number("revision", revision)?)?,
        };
        if after == before {
            return Ok(Some(after));
        }
        Self::save_traffic(&mut tx, key, &after, event.at).await?;
        let subject = json!({"endpoint": key.name});
        let kind = EventKind::EndpointChanged;
        Self::record_event(&mut tx, revision, &key.project, kind, &subject, event.at).await?;
        Self::append_audit(&mut tx, event).await?;
        tx.commit().await?;
        Ok(Some(after))
    }

    async fn list_candidates(&self) -> Result<Vec<OnItsWay>> {
        let mut tx = self.pools.snapshot().await?;
        let rows: Vec<TrafficRow> = sqlx::query_as(select_traffic!(
            "WHERE t.candidate_revision IS NOT NULL AND t.rejected = 0 ORDER BY t.project, t.endpoint"
        ))
        .fetch_all(&mut *tx)
        .await?;
        let mut found = Vec::with_capacity(rows.len());
        for row in rows {
            let key = row.key();
            let reports: Vec<ReportRow> = sqlx::query_as(
                "SELECT node, project, endpoint, process, versions FROM gateway_traffic
                 WHERE project = $1 AND endpoint = $2 ORDER BY node",
            )
            .bind(&key.project)
            .bind(&key.name)
            .fetch_all(&mut *tx)
            .await?;
            found.push(OnItsWay {
                key,
                spec: row.spec()?,
                traffic: row.into_traffic()?,
                reports: reports.into_iter().map(ReportRow::into_report).collect::<Result<_>>()?,
            });
        }
        tx.rollback().await?;
        Ok(found)
    }

    async fn save_traffic_reports(&self, reports: &[TrafficReport], now: Timestamp) -> Result<()> {
        let mut tx = self.pools.begin().await?;
        for report in reports {
            sqlx::query(
                "INSERT INTO gateway_traffic (node, project, endpoint, process, versions, reported_at)
                 SELECT $1, e.project, e.name, $4, $5, $6 FROM endpoint e WHERE e.project = $2 AND e.name = $3
                 ON CONFLICT (project, endpoint, node)
                 DO UPDATE SET process = excluded.process, versions = excluded.versions,
                               reported_at = excluded.reported_at",
            )
            .bind(&report.node)
            .bind(&report.key.project)
            .bind(&report.key.name)
            .bind(&report.process)
            .bind(to_json("report about traffic", &report.versions)?)
            .bind(now.as_micros())
            .execute(&mut *tx)
            .await?;
        }
        Ok(tx.commit().await?)
    }
}
