//! Where things come from and what became of them.

use std::{borrow::Cow, collections::BTreeSet};

use modelyard_auth::{Action, Caller, Kind, Resource};

use super::Registry;
use crate::{
    error::{Error, Result},
    model::lineage::{Address, DEFAULT_DEPTH, Direction, Lineage, MAX_DEPTH, Object},
};

fn resource_of<'a>(project: &'a str, named: Option<&'a (Kind, Cow<'_, str>)>) -> Resource<'a> {
    match named {
        Some((kind, name)) => Resource::named(*kind, project, name),
        None => Resource::project(project),
    }
}

impl Registry {
    /// The lineage of an object, as far as the caller may see it.
    #[tracing::instrument(name = "registry.lineage", skip_all, fields(%project, %of))]
    pub async fn lineage(
        &self,
        caller: &Caller,
        project: &str,
        of: &str,
        direction: Direction,
        depth: Option<u32>,
    ) -> Result<Lineage> {
        let address: Address = match of.parse() {
            Ok(address) => address,
            // Nobody learns more than that who has no place in the project.
            Err(error) => {
                self.enter(caller, Action::RunRead, Resource::project(project)).await?;
                return Err(error);
            }
        };
        let root = match address {
            Address::Object(object) => object,
            Address::Alias(model, alias) => {
                self.enter(caller, Action::ModelRead, Resource::named(Kind::Model, project, &model))
                    .await?;
                let version = self.find_alias(project, &model, &alias).await?.version;
                Object::ModelVersion(model, version)
            }
        };
        let (action, named) = root.permission();
        self.enter(caller, action, resource_of(project, named.as_ref())).await?;
        let depth = depth.unwrap_or(DEFAULT_DEPTH);
        if !(1..=MAX_DEPTH).contains(&depth) {
            return Err(Error::request(format!("depth is {depth}: write 1 to {MAX_DEPTH}")));
        }
        let graph = self.stores.lineage.trace(project, &root, direction, depth).await?;
        let graph = graph.ok_or_else(|| Error::not_found("object", of, "check its kind, name and version"))?;
        let mut visible = BTreeSet::from([root.clone()]);
        for found in &graph.objects {
            let (action, named) = found.object.permission();
            let resource = resource_of(project, named.as_ref());
            // A part that is left out is no refusal, and is not written down as one.
            if found.object != root && caller.may(action, resource) {
                self.enter(caller, action, resource).await?;
                visible.insert(found.object.clone());
            }
        }
        Ok(graph.into_lineage(project, direction, depth, &visible))
    }
}
