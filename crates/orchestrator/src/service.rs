//! What can be asked of the orchestrator: check, store, enqueue.

mod pipelines;
mod rollouts;
mod runs;
mod triggers;

use std::sync::Arc;

use modelyard_auth::{Access, Caller, Resource as Protected, audit::Operation};
use modelyard_common::name::check_name;

pub(crate) use rollouts::RolloutChange;
pub(crate) use runs::RunQuery;

use crate::{
    engine::Engine,
    error::{Error, Result},
    model::{AppliedResource, Resource, ResourceKind, ResourcePage},
    store::Page,
};

/// How many items a page has when the caller does not say.
pub(crate) const DEFAULT_PAGE: u32 = 50;
/// The most items of a page.
pub(crate) const MAX_PAGE: u32 = 1_000;
/// The longest cursor: a name or an id.
const MAX_CURSOR_BYTES: usize = 256;

/// The operations, behind both faces.
#[derive(Clone)]
pub(crate) struct Orchestrator {
    pub(crate) engine: Arc<Engine>,
    pub(crate) access: Access,
}

/// A page as it is asked for.
pub(crate) fn page(limit: Option<u32>, cursor: Option<&str>) -> Result<Page<'_>> {
    let limit = limit.unwrap_or(DEFAULT_PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(Error::request(format!(
            "limit is {limit}: ask for 1 to {MAX_PAGE} items at once"
        )));
    }
    if cursor.is_some_and(|cursor| cursor.is_empty() || cursor.len() > MAX_CURSOR_BYTES) {
        return Err(Error::request(
            "cursor is not one of this list: pass `next_cursor` of the page before it unchanged",
        ));
    }
    Ok(Page { after: cursor, limit })
}

impl Orchestrator {
    /// Stores a spec that was found valid.
    async fn declare(
        &self,
        caller: &Caller,
        project: &str,
        kind: ResourceKind,
        name: &str,
        spec: serde_json::Value,
    ) -> Result<AppliedResource> {
        let now = self.engine.clock.now();
        let resource = Resource {
            kind,
            name: name.to_owned(),
            project: project.to_owned(),
            spec,
            applied_by: caller.acting_for().to_string(),
            created_at: now,
            updated_at: now,
        };
        let event = caller.event(
            kind.write(),
            Operation::Apply,
            &Protected::named(kind.protected(), project, name),
        );
        let (outcome, resource) = self.engine.stores.resources.put_resource(&resource, &event).await?;
        tracing::info!(kind = kind.word(), name, ?outcome, "resource declared");
        Ok(AppliedResource { outcome, resource })
    }

    /// A declared resource.
    pub(crate) async fn get_resource(
        &self,
        caller: &Caller,
        project: &str,
        kind: ResourceKind,
        name: &str,
    ) -> Result<Resource> {
        caller.authorize(kind.read(), Protected::named(kind.protected(), project, name))?;
        self.find_resource(project, kind, name).await
    }

    /// A declared resource, for whoever may do what needs it.
    async fn find_resource(&self, project: &str, kind: ResourceKind, name: &str) -> Result<Resource> {
        check_name(kind.described(), name)?;
        let found = self.engine.stores.resources.find_resource(project, kind, name).await?;
        found.ok_or_else(|| not_declared(kind, name))
    }

    /// The declared resources of one kind.
    pub(crate) async fn list_resources(
        &self,
        caller: &Caller,
        project: &str,
        kind: ResourceKind,
        limit: Option<u32>,
        cursor: Option<&str>,
    ) -> Result<ResourcePage> {
        caller.authorize(kind.read(), Protected::project(project))?;
        let page = page(limit, cursor)?;
        let mut items = self.engine.stores.resources.list_resources(project, kind, page).await?;
        let more = items.len() > page.limit as usize;
        items.truncate(page.limit as usize);
        let next_cursor = items.last().filter(|_| more).map(|resource| resource.name.clone());
        Ok(ResourcePage { items, next_cursor })
    }

    /// Removes a declared resource. Runs that it has started go on.
    pub(crate) async fn delete_resource(
        &self,
        caller: &Caller,
        project: &str,
        kind: ResourceKind,
        name: &str,
    ) -> Result<()> {
        let resource = Protected::named(kind.protected(), project, name);
        caller.authorize(kind.write(), resource)?;
        check_name(kind.described(), name)?;
        if self
            .engine
            .stores
            .resources
            .delete_resource(
                project,
                kind,
                name,
                &caller.event(kind.write(), Operation::Delete, &resource),
            )
            .await?
        {
            tracing::info!(kind = kind.word(), name, "resource deleted");
            return Ok(());
        }
        Err(not_declared(kind, name))
    }
}

fn not_declared(kind: ResourceKind, name: &str) -> Error {
    Error::NotFound {
        what: kind.word(),
        name: name.to_owned(),
        remedy: "apply its definition with `modelyard apply -f`",
    }
}
