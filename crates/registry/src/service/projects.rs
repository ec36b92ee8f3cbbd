//! Projects.

use modelyard_auth::{Action, Caller, Resource, audit::Operation};

use super::Registry;
use crate::{
    error::{Error, Result},
    model::{
        endpoint::Outcome,
        page::{Page, PageRequest},
        project::{DEFAULT_PROJECT, Project, ProjectSpec},
    },
};

impl Registry {
    /// Makes a project, or changes it.
    pub async fn put_project(&self, caller: &Caller, name: &str, spec: &ProjectSpec) -> Result<(Outcome, Project)> {
        // Only who may do so everywhere makes new ones: within a project that does not exist nobody has a role.
        let place = if caller.sees(name) {
            Resource::project(name)
        } else {
            Resource::INSTALLATION
        };
        caller.authorize(Action::ProjectWrite, place)?;
        spec.check(name)?;
        let event = caller.event(Action::ProjectWrite, Operation::Apply, &Resource::project(name));
        let outcome = self.stores.projects.put_project(name, spec, &event).await?;
        if outcome != Outcome::Unchanged {
            self.know_change().await?;
            tracing::info!(project = name, ?outcome, "project declared");
        }
        Ok((outcome, self.find_project(name).await?))
    }

    /// A project.
    pub async fn get_project(&self, caller: &Caller, name: &str) -> Result<Project> {
        caller.authorize(Action::ProjectRead, Resource::project(name))?;
        self.find_project(name).await
    }

    async fn find_project(&self, name: &str) -> Result<Project> {
        let found = self.stores.projects.find_project(name).await?;
        found.ok_or_else(|| Error::Access(modelyard_auth::Error::Project(name.to_owned())))
    }

    /// The projects in which the caller has a role, by name.
    pub async fn list_projects(&self, caller: &Caller, page: &PageRequest<String>) -> Result<Page<Project>> {
        self.stores.projects.list_projects(&caller.projects(), page).await
    }

    /// Removes a project without endpoints, and, if that is asked for, without anything else. Its name is not given again.
    pub async fn remove_project(&self, caller: &Caller, name: &str, only_empty: bool) -> Result<()> {
        caller.authorize(Action::ProjectWrite, Resource::project(name))?;
        if name == DEFAULT_PROJECT {
            return Err(Error::State(format!(
                "project `{DEFAULT_PROJECT}` is always there and cannot be removed"
            )));
        }
        let event = caller.event(Action::ProjectWrite, Operation::Delete, &Resource::project(name));
        if !self.stores.projects.remove_project(name, only_empty, &event).await? {
            return Err(modelyard_auth::Error::Project(name.to_owned()).into());
        }
        tracing::info!(project = name, "project removed");
        self.know_change().await
    }
}
