//! What leads from one thing to another, level by level.

mod steps;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use conditional_trait_gen::trait_gen;
use modelyard_common::Timestamp;
use modelyard_db::{Pools, PostgresPools, SqlitePools, Transaction};

use self::steps::{Bind, STEPS, Step, facts_of};
use super::{SqlStore, number};
use crate::{
    error::Result,
    model::lineage::{Bound, Direction, Facts, Found, Graph, Link, MAX_EDGES, MAX_NODES, Object, ObjectKind, Relation},
};

/// How the source of a copy begins.
const COPIED: &str = "models:/";

/// Lineage.
#[async_trait]
pub trait LineageStore: Send + Sync {
    /// What is around an object; None: there is no such object in the project.
    async fn trace(&self, project: &str, root: &Object, direction: Direction, depth: u32) -> Result<Option<Graph>>;
}

/// What a step finds.
#[derive(sqlx::FromRow)]
struct FoundRow {
    name: String,
    number: i64,
    second: String,
    detail: String,
}

impl FoundRow {
    fn object(&self, kind: ObjectKind) -> Result<Object> {
        Ok(match kind {
            ObjectKind::Experiment => Object::Experiment(number("experiment", self.number)?),
            ObjectKind::Run => Object::Run(self.name.clone()),
            ObjectKind::PipelineRun => Object::PipelineRun(self.name.clone()),
            ObjectKind::DatasetVersion => Object::DatasetVersion(self.name.clone(), number("version", self.number)?),
            ObjectKind::DatasetInput => Object::DatasetInput(self.name.clone(), self.second.clone()),
            ObjectKind::LoggedModel => Object::LoggedModel(self.name.clone()),
            ObjectKind::ModelVersion => match read_source(&self.name) {
                Some((model, version)) => Object::ModelVersion(model, version),
                None => Object::ModelVersion(self.name.clone(), number("version", self.number)?),
            },
            ObjectKind::Endpoint | ObjectKind::Prediction => Object::Endpoint(self.name.clone()),
        })
    }
}

#[derive(sqlx::FromRow)]
struct FactsRow {
    name: String,
    state: Option<String>,
    created_at: Option<i64>,
    updated_at: Option<i64>,
}

/// The version that a copy names as its source. No model has such a name.
fn read_source(source: &str) -> Option<(String, u32)> {
    let (model, version) = source.strip_prefix(COPIED)?.rsplit_once('/')?;
    Some((model.to_owned(), version.parse().ok()?))
}

/// What a statement about an object is asked with: its name, and its version or digest.
fn name_of(object: &Object) -> (String, Bind) {
    match object {
        Object::Experiment(id) => (id.to_string(), Bind::Nothing),
        Object::Run(id) | Object::PipelineRun(id) | Object::LoggedModel(id) | Object::Endpoint(id) => {
            (id.clone(), Bind::Nothing)
        }
        Object::DatasetVersion(name, version) | Object::ModelVersion(name, version) => {
            (name.clone(), Bind::Number(i64::from(*version)))
        }
        Object::DatasetInput(name, digest) => (name.clone(), Bind::Text(digest.clone())),
        Object::Prediction(_, model, version) => (model.clone(), Bind::Number(i64::from(*version))),
    }
}

/// What is found so far.
struct Walk {
    /// What is known of the objects that were met; None: there is no such thing in the project.
    met: BTreeMap<Object, Option<Facts>>,
    /// The nodes, in the order in which they were found.
    order: Vec<Object>,
    /// The edges, each with its detail.
    links: BTreeMap<(Object, Object, Relation), String>,
    bounds: BTreeSet<Bound>,
}

impl Walk {
    fn is_node(&self, object: &Object) -> bool {
        self.met.get(object).is_some_and(Option::is_some) && self.order.contains(object)
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
impl SqlStore<P> {
    /// What a step leads to, at most `limit`.
    async fn follow(
        tx: &mut Transaction<<P as Pools>::Db>,
        project: &str,
        object: &Object,
        step: &Step,
        limit: usize,
    ) -> Result<Vec<FoundRow>> {
        let (name, bind) = name_of(object);
        let name = if step.by_source {
            match object {
                Object::ModelVersion(model, version) => format!("{COPIED}{model}/{version}"),
                _ => name,
            }
        } else {
            name
        };
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let query = sqlx::query_as(step.sql).bind(project).bind(name).bind(limit);
        let query = match bind {
            _ if step.by_source => query,
            Bind::Nothing => query,
            Bind::Number(number) => query.bind(number),
            Bind::Text(text) => query.bind(text),
        };
        Ok(query.fetch_all(&mut **tx).await?)
    }

    /// What is known of an object; None: there is none in the project.
    async fn facts_in(tx: &mut Transaction<<P as Pools>::Db>, project: &str, object: &Object) -> Result<Option<Facts>> {
        let (name, bind) = name_of(object);
        let query = sqlx::query_as(facts_of(object.kind())).bind(project).bind(name);
        let query = match bind {
            Bind::Nothing => query,
            Bind::Number(number) => query.bind(number),
            Bind::Text(text) => query.bind(text),
        };
        let query = match object {
            Object::Prediction(endpoint, ..) => query.bind(endpoint.clone()),
            _ => query,
        };
        let row: Option<FactsRow> = query.fetch_optional(&mut **tx).await?;
        Ok(row.map(|row| Facts {
            name: row.name,
            state: row.state,
            created_at: row.created_at.map(Timestamp::from_micros),
            updated_at: row.updated_at.map(Timestamp::from_micros),
        }))
    }

    /// What is one edge away.
    async fn neighbours(
        tx: &mut Transaction<<P as Pools>::Db>,
        project: &str,
        object: &Object,
        upstream: bool,
        limit: usize,
    ) -> Result<Vec<Link>> {
        let mut links = Vec::new();
        if let Object::Prediction(endpoint, model, version) = object {
            if upstream {
                for from in [
                    Object::ModelVersion(model.clone(), *version),
                    Object::Endpoint(endpoint.clone()),
                ] {
                    links.push(Link {
                        from,
                        to: object.clone(),
                        relation: Relation::AnsweredBy,
                        detail: String::new(),
                    });
                }
            }
            return Ok(links);
        }
        for step in STEPS {
            if step.of != object.kind() || step.upstream != upstream {
                continue;
            }
            for row in Self::follow(tx, project, object, step, limit).await? {
                let found = row.object(step.found)?;
                let (from, to) = if upstream {
                    (found, object.clone())
                } else {
                    (object.clone(), found)
                };
                links.push(Link {
                    from,
                    to,
                    relation: step.relation.unwrap_or_else(|| Relation::of_context(&row.detail)),
                    detail: row.detail,
                });
            }
        }
        Ok(links)
    }

    async fn walk(
        tx: &mut Transaction<<P as Pools>::Db>,
        project: &str,
        root: &Object,
        upstream: bool,
        depth: u32,
        walk: &mut Walk,
    ) -> Result<()> {
        let mut seen = BTreeSet::from([root.clone()]);
        let mut level = vec![root.clone()];
        // One level more than is wanted, to say whether there is one.
        for distance in 1..=depth + 1 {
            let mut next = Vec::new();
            for object in &level {
                let limit = MAX_EDGES - walk.links.len() + 1;
                for link in Self::neighbours(tx, project, object, upstream, limit).await? {
                    let far = if upstream { link.from.clone() } else { link.to.clone() };
                    let is_full = walk.order.len() >= MAX_NODES;
                    if is_full && !walk.met.contains_key(&far) {
                        walk.bounds.insert(Bound::Nodes);
                        continue;
                    }
                    if !walk.met.contains_key(&far) {
                        let facts = Self::facts_in(tx, project, &far).await?;
                        walk.met.insert(far.clone(), facts);
                    }
                    let is_there = walk.met.get(&far).is_some_and(Option::is_some);
                    let key = (link.from, link.to, link.relation);
                    if !is_there {
                        continue;
                    }
                    // An edge of a circle may be there from the other way.
                    if !walk.links.contains_key(&key) {
                        if distance > depth {
                            walk.bounds.insert(Bound::Depth);
                            return Ok(());
                        }
                        if walk.links.len() >= MAX_EDGES {
                            walk.bounds.insert(Bound::Edges);
                            return Ok(());
                        }
                        if !walk.is_node(&far) {
                            if is_full {
                                walk.bounds.insert(Bound::Nodes);
                                continue;
                            }
                            walk.order.push(far.clone());
                        }
                        walk.links.insert(key, link.detail);
                    }
                    if seen.insert(far.clone()) {
                        next.push(far);
                    }
                }
            }
            level = next;
        }
        Ok(())
    }
}

#[trait_gen(P -> SqlitePools, PostgresPools)]
#[async_trait]
impl LineageStore for SqlStore<P> {
    async fn trace(&self, project: &str, root: &Object, direction: Direction, depth: u32) -> Result<Option<Graph>> {
        let mut tx = self.pools.snapshot().await?;
        let facts = Self::facts_in(&mut tx, project, root).await?;
        if facts.is_none() {
            return Ok(None);
        }
        let mut walk = Walk {
            met: BTreeMap::from([(root.clone(), facts)]),
            order: vec![root.clone()],
            links: BTreeMap::new(),
            bounds: BTreeSet::new(),
        };
        for upstream in direction.ways() {
            Self::walk(&mut tx, project, root, *upstream, depth, &mut walk).await?;
        }
        tx.rollback().await?;
        Ok(Some(into_graph(walk)))
    }
}

fn into_graph(walk: Walk) -> Graph {
    let Walk {
        mut met,
        order,
        links,
        bounds,
    } = walk;
    let found = |object: Object| {
        let facts = met.remove(&object).flatten()?;
        Some(Found { object, facts })
    };
    let link = |((from, to, relation), detail)| Link {
        from,
        to,
        relation,
        detail,
    };
    Graph {
        objects: order.into_iter().filter_map(found).collect(),
        links: links.into_iter().map(link).collect(),
        bounds,
    }
}
