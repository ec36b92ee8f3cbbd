//! Endpoints, their routes followed to versions, and the gateways' reports.

use std::{
    collections::{BTreeMap, HashMap, btree_map::Entry},
    sync::Arc,
};

use async_trait::async_trait;
use conditional_trait_gen::trait_gen;
use modelyard_auth::audit::NewEvent;
use modelyard_common::Timestamp;
use modelyard_db::{Pools, PostgresPools, SqlitePools, Transaction};
use serde_json::json;
use sqlx::QueryBuilder;

use super::{
    SqlStore, json, maybe, number, stored, to_json,
    traffic::{TrafficRow, select_traffic},
    word,
};
use crate::{
    error::Result,
    model::{
        alias::Selector,
        desired::{DesiredEndpoint, DesiredState, Route, RouteRole},
        endpoint::{EndpointKey, EndpointSpec, Outcome},
        event::EventKind,
        page::{Page, PageRequest},
        registered_model::NO_FILE,
        report::{NodeReport, NodeStatus},
        traffic::Traffic,
    },
};

/// How many endpoints of a report are inserted with one statement.
const INSERTED_REPORTS: usize = 500;

/// An endpoint with everything that is known about it.
#[derive(Debug, Clone, PartialEq)]
pub struct EndpointRecord {
    /// Which one.
    pub key: EndpointKey,
    /// What it shall be.
    pub spec: EndpointSpec,
    /// When it was created.
    pub created_at: Timestamp,
    /// When its spec was changed last.
    pub updated_at: Timestamp,
    /// Its routes with their references followed.
    pub routes: Vec<Route>,
    /// How its traffic stands; none: it never served.
    pub traffic: Option<Traffic>,
    /// What the nodes say, by node.
    pub nodes: Vec<NodeStatus>,
    /// The revision of all this.
    pub revision: u64,
}

/// Endpoints and the gateways' reports.
#[async_trait]
pub trait EndpointStore: Send + Sync {
    /// Makes the spec of an endpoint this one.
    async fn put_endpoint(&self, key: &EndpointKey, spec: &EndpointSpec, event: &NewEvent) -> Result<Outcome>;
    /// Removes an endpoint; whether there was one.
    async fn delete_endpoint(&self, key: &EndpointKey, event: &NewEvent) -> Result<bool>;
    /// An endpoint.
    async fn find_endpoint(&self, key: &EndpointKey) -> Result<Option<EndpointRecord>>;
    /// The endpoints by name.
    async fn list_endpoints(&self, project: &str, page: &PageRequest<String>) -> Result<Page<EndpointRecord>>;
    /// All endpoints with their references followed, and the revision of that.
    async fn desired_state(&self) -> Result<DesiredState>;
    /// Replaces what a node said before.
    async fn save_report(&self, report: &NodeReport) -> Result<()>;
    /// Forgets the reports before a time; how many.
    async fn prune_reports(&self, before: Timestamp) -> Result<u64>;
}

#[derive(sqlx::FromRow)]
struct EndpointRow {
    name: String,
    spec: String,
    created_at: i64,
    updated_at: i64,
}

/// A route, and what its reference leads to.
#[derive(sqlx::FromRow)]
struct RouteRow {
    project: String,
    endpoint: String,
    /// The endpoint's spec, beside its first route.
    spec: Option<String>,
    role: String,
    reference: String,
    model: String,
    alias: Option<String>,
    weight: f64,
    sample: f64,
    model_exists: i64,
    wanted_version: Option<i64>,
    found_version: Option<i64>,
    artifact_digest: Option<String>,
    artifact_size_bytes: Option<i64>,
    bundle_digest: Option<String>,
    /// Why the version cannot be served.
    status_message: Option<String>,
}

/// The columns of [`RouteRow`]; one statement follows all references at once.
macro_rules! select_routes {
    ($rest:literal) => {
        concat!(
            "SELECT e.project, e.name AS endpoint, CASE WHEN r.position = 0 THEN e.spec END AS spec, r.role, r.reference,
                    r.model, r.alias, r.weight, r.sample,
                    CASE WHEN m.name IS NULL THEN CAST(0 AS BIGINT) ELSE CAST(1 AS BIGINT) END AS model_exists,
                    COALESCE(r.version, a.version) AS wanted_version, v.version AS found_version, v.artifact_digest,
                    v.artifact_size_bytes, v.bundle_digest, v.status_message
             FROM endpoint e
             JOIN endpoint_route r ON r.project = e.project AND r.endpoint = e.name
             LEFT JOIN registered_model m ON m.project = r.project AND m.name = r.model
             LEFT JOIN model_alias a ON a.project = r.project AND a.model = r.model AND a.alias = r.alias
             LEFT JOIN model_version v
             ON v.project = r.project AND v.model = r.model AND v.version = COALESCE(r.version, a.version) ",
            $rest,
            " ORDER BY e.project, e.name, r.position"
        )
    };
}

impl RouteRow {
    /// Why the reference leads nowhere.
    fn unresolved(&self) -> Option<String> {
        let model = &self.model;
        match (self.found_version, &self.alias, self.wanted_version) {
            (Some(version), ..) if self.artifact_digest.as_deref() == Some(NO_FILE) => {
                let why = self.status_message.as_deref().filter(|why| !why.is_empty());
                let why = why.unwrap_or(
                    "has nothing that can be served: log the model as ONNX, or with a flavor that Python runs",
                );
                Some(format!("version {version} of model {model} {why}"))
            }
            (Some(_), ..) => None,
            _ if self.model_exists == 0 => Some(format!("model {model} does not exist")),
            (None, Some(alias), None) => Some(format!("alias {alias} of model {model} is not set")),
            (None, _, wanted) => Some(format!(
                "version {} of model {model} does not exist",
                wanted.unwrap_or_default()
            )),
        }
    }

    fn into_route(self) -> Result<Route> {
        let unresolved = self.unresolved();
        let is_served = unresolved.is_none();
        Ok(Route {
            role: word("role of a route", &self.role, RouteRole::parse)?,
            reference: self.reference,
            weight: self.weight,
            sample: self.sample,
            when: Vec::new(),
            model: is_served.then_some(self.model),
            version: maybe("version", self.found_version.filter(|_| is_served))?,
            artifact_digest: self.artifact_digest.filter(|_| is_served),
            artifact_size_bytes: maybe("size", self.artifact_size_bytes.filter(|_| is_served))?,
            bundle_digest: self.bundle_digest.filter(|_| is_served),
            unresolved,
        })
    }
}

/// Endpoints with what their routes mean.
type Resolved = BTreeMap<EndpointKey, (EndpointSpec, Vec<Route>)>;

fn collect_endpoints(rows: Vec<RouteRow>) -> Result<Resolved> {
    let mut endpoints = Resolved::new();
    for row in rows {
        let key = EndpointKey {
            project: row.project.clone(),
            name: row.endpoint.clone(),
        };
        // The first route of each endpoint comes first.
        let (spec, routes) = match endpoints.entry(key) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let spec = json("spec of an endpoint", row.spec.as_deref().unwrap_or_default())?;
                entry.insert((spec, Vec::new()))
            }
        };
        let mut route = row.into_route()?;
        if route.role == RouteRole::Live {
            let declared = spec.routes.iter().find(|declared| declared.model == route.reference);
            route.when = declared.map(|declared| declared.when.clone()).unwrap_or_default();
        }
        routes.push(route);
    }
    Ok(endpoints)
}

fn collect_traffic(rows: Vec<TrafficRow>) -> Result<BTreeMap<EndpointKey, Traffic>> {
    let each = rows.into_iter().map(|row| Ok((row.key(), row.into_traffic()?)));
    each.collect()
}

#[derive(sqlx::FromRow)]
struct NodeRow {
    endpoint: String,
    node: String,
    revision: i64,
    reported_at: i64,
    routes: String,
    serving: String,
}

impl NodeRow {
    fn into_status(self) -> Result<NodeStatus> {
        Ok(NodeStatus {
            node: self.node,
            revision: number("revision", self.revision)?,
            reported_at: Timestamp::from_micros(self.reported_at),
            stale: false,
            routes: json("report about routes", &self.routes)?,
            serving: json("report about versions", &self.serving)?,
        })
    }
}

fn event_subject(key: &EndpointKey) -> serde_json::Value {
    json!({"endpoint": key.name})
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
impl SqlStore<P> {
    async fn insert_routes(
        tx: &mut Transaction<<P as Pools>::Db>,
        key: &EndpointKey,
        spec: &EndpointSpec,
    ) -> Result<()> {
        for (position, route) in spec.declared()?.into_iter().enumerate() {
            let (alias, version) = match &route.reference.selector {
                Selector::Alias(alias) => (Some(alias.as_str()), None),
                Selector::Version(version) => (None, Some(i64::from(*version))),
            };
            sqlx::query(
                "INSERT INTO endpoint_route (project, endpoint, position, role, reference, model, alias, version,
                                             weight, sample)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
            )
            .bind(&key.project)
            .bind(&key.name)
            .bind(position as i64)
            .bind(route.role.as_str())
            .bind(route.reference.to_string())
            .bind(&route.reference.model)
            .bind(alias)
            .bind(version)
            .bind(route.weight)
            .bind(route.sample)
            .execute(&mut **tx)
            .await?;
        }
        Ok(())
    }

    /// An endpoint with what its routes mean now.
    pub(super) async fn resolve_endpoint(
        tx: &mut Transaction<<P as Pools>::Db>,
        key: &EndpointKey,
    ) -> Result<Option<(EndpointSpec, Vec<Route>)>> {
        let rows: Vec<RouteRow> = sqlx::query_as(select_routes!("WHERE e.project = $1 AND e.name = $2"))
            .bind(&key.project)
            .bind(&key.name)
            .fetch_all(&mut **tx)
            .await?;
        Ok(collect_endpoints(rows)?.remove(key))
    }

    /// Endpoints of one project with their routes and reports.
    async fn complete_endpoints(
        tx: &mut Transaction<<P as Pools>::Db>,
        project: &str,
        rows: Vec<EndpointRow>,
    ) -> Result<Vec<EndpointRecord>> {
        let (first, last) = match (rows.first(), rows.last()) {
            (Some(first), Some(last)) => (first.name.clone(), last.name.clone()),
            _ => return Ok(Vec::new()),
        };
        let query = sqlx::query_scalar("SELECT value FROM counter WHERE name = 'revision'");
        let revision: i64 = query.fetch_one(&mut **tx).await?;
        let revision = number("revision", revision)?;
        let routes: Vec<RouteRow> = sqlx::query_as(select_routes!("WHERE e.project = $1 AND e.name BETWEEN $2 AND $3"))
            .bind(project)
            .bind(&first)
            .bind(&last)
            .fetch_all(&mut **tx)
            .await?;
        let mut resolved = collect_endpoints(routes)?;
        let traffic: Vec<TrafficRow> =
            sqlx::query_as(select_traffic!("WHERE t.project = $1 AND t.endpoint BETWEEN $2 AND $3"))
                .bind(project)
                .bind(&first)
                .bind(&last)
                .fetch_all(&mut **tx)
                .await?;
        let mut traffic = collect_traffic(traffic)?;
        let found: Vec<NodeRow> = sqlx::query_as(
            "SELECT s.endpoint, s.node, r.revision, r.reported_at, s.routes, s.serving
             FROM gateway_endpoint s JOIN gateway_report r ON r.node = s.node
             WHERE s.project = $1 AND s.endpoint BETWEEN $2 AND $3 ORDER BY s.node",
        )
        .bind(project)
        .bind(&first)
        .bind(&last)
        .fetch_all(&mut **tx)
        .await?;
        let mut nodes: BTreeMap<String, Vec<NodeStatus>> = BTreeMap::new();
        for row in found {
            nodes.entry(row.endpoint.clone()).or_default().push(row.into_status()?);
        }
        let mut records = Vec::with_capacity(rows.len());
        for row in rows {
            let key = EndpointKey {
                project: project.to_owned(),
                name: row.name,
            };
            records.push(EndpointRecord {
                spec: json("spec of an endpoint", &row.spec)?,
                created_at: Timestamp::from_micros(row.created_at),
                updated_at: Timestamp::from_micros(row.updated_at),
                routes: resolved.remove(&key).map(|(_, routes)| routes).unwrap_or_default(),
                traffic: traffic.remove(&key),
                nodes: nodes.remove(&key.name).unwrap_or_default(),
                key,
                revision,
            });
        }
        Ok(records)
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
#[async_trait]
impl EndpointStore for SqlStore<P> {
    async fn put_endpoint(&self, key: &EndpointKey, spec: &EndpointSpec, event: &NewEvent) -> Result<Outcome> {
        let text = to_json("spec of an endpoint", spec)?;
        let mut tx = self.pools.begin().await?;
        let revision = Self::next_revision(&mut tx).await?;
        let before: Option<String> = sqlx::query_scalar("SELECT spec FROM endpoint WHERE project = $1 AND name = $2")
            .bind(&key.project)
            .bind(&key.name)
            .fetch_optional(&mut *tx)
            .await?;
        let outcome = match &before {
            Some(before) if *before == text => return Ok(Outcome::Unchanged),
            Some(_) => Outcome::Updated,
            None => Outcome::Created,
        };
        sqlx::query(
            "INSERT INTO endpoint (project, name, spec, created_at, updated_at) VALUES ($1, $2, $3, $4, $4)
             ON CONFLICT (project, name) DO UPDATE SET spec = excluded.spec, updated_at = excluded.updated_at",
        )
        .bind(&key.project)
        .bind(&key.name)
        .bind(&text)
        .bind(event.at.as_micros())
        .execute(&mut *tx)
        .await?;
        sqlx::query("DELETE FROM endpoint_route WHERE project = $1 AND endpoint = $2")
            .bind(&key.project)
            .bind(&key.name)
            .execute(&mut *tx)
            .await?;
        Self::insert_routes(&mut tx, key, spec).await?;
        Self::follow_endpoint(&mut tx, key, revision, event.at).await?;
        let kind = EventKind::EndpointChanged;
        Self::record_event(&mut tx, revision, &key.project, kind, &event_subject(key), event.at).await?;
        Self::append_audit(&mut tx, &event.with_digests(before.as_deref(), Some(&text))).await?;
        tx.commit().await?;
        Ok(outcome)
    }

    async fn delete_endpoint(&self, key: &EndpointKey, event: &NewEvent) -> Result<bool> {
        let mut tx = self.pools.begin().await?;
        let revision = Self::next_revision(&mut tx).await?;
        let deleted: Option<String> =
            sqlx::query_scalar("DELETE FROM endpoint WHERE project = $1 AND name = $2 RETURNING spec")
                .bind(&key.project)
                .bind(&key.name)
                .fetch_optional(&mut *tx)
                .await?;
        if deleted.is_none() {
            return Ok(false);
        }
        let kind = EventKind::EndpointDeleted;
        Self::record_event(&mut tx, revision, &key.project, kind, &event_subject(key), event.at).await?;
        Self::append_audit(&mut tx, &event.with_digests(deleted.as_deref(), None)).await?;
        tx.commit().await?;
        Ok(true)
    }

    async fn find_endpoint(&self, key: &EndpointKey) -> Result<Option<EndpointRecord>> {
        let mut tx = self.pools.snapshot().await?;
        let rows: Vec<EndpointRow> =
            sqlx::query_as("SELECT name, spec, created_at, updated_at FROM endpoint WHERE project = $1 AND name = $2")
                .bind(&key.project)
                .bind(&key.name)
                .fetch_all(&mut *tx)
                .await?;
        let found = Self::complete_endpoints(&mut tx, &key.project, rows).await?.pop();
        tx.rollback().await?;
        Ok(found)
    }

    async fn list_endpoints(&self, project: &str, page: &PageRequest<String>) -> Result<Page<EndpointRecord>> {
        let mut tx = self.pools.snapshot().await?;
        let rows: Vec<EndpointRow> = sqlx::query_as(
            "SELECT name, spec, created_at, updated_at FROM endpoint
             WHERE project = $1 AND name > $2 ORDER BY name LIMIT $3",
        )
        .bind(project)
        .bind(page.after.as_deref().unwrap_or_default())
        .bind(page.rows())
        .fetch_all(&mut *tx)
        .await?;
        let records = Self::complete_endpoints(&mut tx, project, rows).await?;
        tx.rollback().await?;
        Ok(page.cut(records, |record| record.key.name.clone()))
    }

    async fn desired_state(&self) -> Result<DesiredState> {
        let mut tx = self.pools.snapshot().await?;
        let query = sqlx::query_scalar("SELECT value FROM counter WHERE name = 'revision'");
        let revision: i64 = query.fetch_one(&mut *tx).await?;
        let query = sqlx::query_as(select_routes!(""));
        let rows: Vec<RouteRow> = query.fetch_all(&mut *tx).await?;
        let traffic: Vec<TrafficRow> = sqlx::query_as(select_traffic!("")).fetch_all(&mut *tx).await?;
        tx.rollback().await?;
        let traffic = collect_traffic(traffic)?;
        let endpoints = collect_endpoints(rows)?.into_iter().map(|(key, (spec, routes))| {
            let traffic = traffic.get(&key);
            let endpoint = DesiredEndpoint::new(key.clone(), spec, routes, traffic);
            (key, Arc::new(endpoint))
        });
        Ok(DesiredState {
            revision: number("revision", revision)?,
            endpoints: endpoints.collect(),
        })
    }

    async fn save_report(&self, report: &NodeReport) -> Result<()> {
        let mut tx = self.pools.begin().await?;
        sqlx::query(
            "INSERT INTO gateway_report (node, revision, reported_at) VALUES ($1, $2, $3)
             ON CONFLICT (node) DO UPDATE SET revision = excluded.revision, reported_at = excluded.reported_at",
        )
        .bind(&report.node)
        .bind(stored("revision", report.revision)?)
        .bind(report.reported_at.as_micros())
        .execute(&mut *tx)
        .await?;
        let known: Vec<(String, String, String, String)> =
            sqlx::query_as("SELECT project, endpoint, routes, serving FROM gateway_endpoint WHERE node = $1")
                .bind(&report.node)
                .fetch_all(&mut *tx)
                .await?;
        let mut known: HashMap<(String, String), (String, String)> = known
            .into_iter()
            .map(|(project, endpoint, routes, serving)| ((project, endpoint), (routes, serving)))
            .collect();
        let mut rows = Vec::new();
        for endpoint in &report.endpoints {
            let routes = to_json("report about routes", &endpoint.routes)?;
            let serving = to_json("report about versions", &endpoint.serving)?;
            let said = known.remove(&(endpoint.key.project.clone(), endpoint.key.name.clone()));
            // Most of what a node says is what it said before.
            if said.as_ref() != Some(&(routes.clone(), serving.clone())) {
                rows.push((&endpoint.key, routes, serving));
            }
        }
        for (project, endpoint) in known.into_keys() {
            sqlx::query("DELETE FROM gateway_endpoint WHERE node = $1 AND project = $2 AND endpoint = $3")
                .bind(&report.node)
                .bind(project)
                .bind(endpoint)
                .execute(&mut *tx)
                .await?;
        }
        for chunk in rows.chunks(INSERTED_REPORTS) {
            let mut query =
                QueryBuilder::new("INSERT INTO gateway_endpoint (node, project, endpoint, routes, serving) ");
            query.push_values(chunk, |mut row, (key, routes, serving)| {
                row.push_bind(report.node.clone())
                    .push_bind(key.project.clone())
                    .push_bind(key.name.clone())
                    .push_bind(routes.clone())
                    .push_bind(serving.clone());
            });
            query.push(
                " ON CONFLICT (node, project, endpoint)
                 DO UPDATE SET routes = excluded.routes, serving = excluded.serving",
            );
            query.build().execute(&mut *tx).await?;
        }
        Ok(tx.commit().await?)
    }

    async fn prune_reports(&self, before: Timestamp) -> Result<u64> {
        let mut tx = self.pools.begin().await?;
        sqlx::query("DELETE FROM gateway_traffic WHERE reported_at < $1")
            .bind(before.as_micros())
            .execute(&mut *tx)
            .await?;
        let pruned = sqlx::query("DELETE FROM gateway_report WHERE reported_at < $1")
            .bind(before.as_micros())
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(pruned.rows_affected())
    }
}
