//! What is asked of collections and quotas. The work itself is in `collector`.

use modelyard_auth::{Action, Caller, Kind, ProjectScope, Resource, audit::Operation};

use super::Registry;
use crate::{
    error::{Error, Result},
    model::{
        collection::{CollectedObject, CollectedOutcome, Collection, CollectionRequest, NewCollection},
        page::{Cursor as _, MAX_PAGE, Page, PageRequest},
        run::Experiment,
        storage::Quota,
        tracking::{ExperimentChange, Lifecycle},
    },
};

/// The largest quota, in bytes: what a database counts.
const MAX_QUOTA_BYTES: u64 = i64::MAX as u64;

fn no_collection(id: &str) -> Error {
    let shown: String = id.chars().take(64).flat_map(char::escape_default).collect();
    Error::not_found(
        "collection",
        shown,
        "list the collections of the project to see which there are",
    )
}

/// What is named to be freed and was not deleted.
fn not_deleted(what: &str, id: &str) -> Error {
    let shown: String = id.chars().take(64).flat_map(char::escape_default).collect();
    Error::State(format!(
        "{what} {shown} is not in `deleted` lifecycle stage. Only {what}s in `deleted` lifecycle stage can be removed for good: \
         delete it first"
    ))
}

impl Registry {
    /// Starts to free what deletion left behind in a project.
    pub async fn start_collection(
        &self,
        caller: &Caller,
        project: &str,
        request: CollectionRequest,
    ) -> Result<Collection> {
        self.enter(caller, Action::StorageWrite, Resource::project(project))
            .await?;
        self.start_checked(caller, project, request).await
    }

    async fn start_checked(&self, caller: &Caller, project: &str, request: CollectionRequest) -> Result<Collection> {
        let now = self.clock.now();
        self.check_named(project, &request, now).await?;
        let new = NewCollection {
            id: self.ids.next().to_string(),
            project: project.to_owned(),
            request,
            started_by: caller.principal().to_string(),
            event: caller.event(Action::StorageWrite, Operation::Create, &Resource::project(project)),
            now,
        };
        let started = self.stores.collections.start_collection(&new).await?;
        self.collections.notify_one();
        tracing::info!(
            project,
            collection = new.id,
            dry_run = new.request.dry_run,
            "collection started"
        );
        Ok(started)
    }

    /// Refuses what is named and not deleted.
    async fn check_named(
        &self,
        project: &str,
        request: &CollectionRequest,
        now: modelyard_common::Timestamp,
    ) -> Result<()> {
        let plan = request.plan(now)?;
        for id in &plan.run_ids {
            let found = self.stores.runs.find_run(project, id).await?;
            let run = found.ok_or_else(|| crate::store::no_run(id))?;
            if run.lifecycle != Lifecycle::Deleted {
                return Err(not_deleted("run", id));
            }
        }
        for id in &plan.experiment_ids {
            let experiment = self.required_experiment(project, *id).await?;
            if experiment.lifecycle != Lifecycle::Deleted {
                return Err(not_deleted("experiment", &experiment.experiment_id));
            }
        }
        for id in &plan.logged_model_ids {
            let found = self.stores.logged_models.find_logged_model(project, id).await?;
            let model = found.ok_or_else(|| crate::store::no_logged_model(id))?;
            if model.lifecycle != Lifecycle::Deleted {
                return Err(not_deleted("logged model", id));
            }
        }
        Ok(())
    }

    async fn required_experiment(&self, project: &str, id: i64) -> Result<Experiment> {
        let found = self.stores.experiments.find_experiment(project, id).await?;
        found.ok_or_else(|| Error::NotThere(format!("No Experiment with id={id} exists")))
    }

    /// Starts to free what deletion left behind in every project, and what is stored of projects that were removed; where that goes on
    /// already, what goes on.
    pub async fn start_collections(&self, caller: &Caller, request: &CollectionRequest) -> Result<Vec<Collection>> {
        self.enter(caller, Action::StorageWrite, Resource::INSTALLATION).await?;
        let plan = request.plan(self.clock.now())?;
        if !plan.is_for_all() {
            return Err(Error::request(
                "runs, experiments and logged models are of one project: name them where its collection is started",
            ));
        }
        let mut started = Vec::new();
        let mut page = PageRequest {
            after: None,
            limit: MAX_PAGE,
        };
        loop {
            let projects = self.stores.projects.list_projects(&ProjectScope::All, &page).await?;
            for project in projects.items {
                started.extend(self.start_or_find(caller, &project.name, request).await?);
            }
            page.after = projects.next_cursor.as_deref().and_then(String::read);
            if page.after.is_none() {
                break;
            }
        }
        let mut after = String::new();
        loop {
            let removed = self
                .stores
                .projects
                .list_removed_projects(plan.deleted_before, &after, MAX_PAGE);
            let removed = removed.await?;
            let Some(last) = removed.last() else {
                return Ok(started);
            };
            after.clone_from(last);
            for project in &removed {
                started.extend(self.start_or_find(caller, project, request).await?);
            }
        }
    }

    /// A collection of a project that is started, or goes on already.
    async fn start_or_find(
        &self,
        caller: &Caller,
        project: &str,
        request: &CollectionRequest,
    ) -> Result<Option<Collection>> {
        match self.start_checked(caller, project, request.clone()).await {
            Ok(collection) => Ok(Some(collection)),
            Err(Error::Exists(_)) => {
                let newest = PageRequest { after: None, limit: 1 };
                let running = self.stores.collections.list_collections(project, &newest).await?;
                Ok(running.items.into_iter().next())
            }
            Err(error) => Err(error),
        }
    }

    /// Lets in who may look at collections. Those of a removed project are the installation's.
    async fn enter_collections(&self, caller: &Caller, project: &str) -> Result<()> {
        let now = self.clock.now();
        let resource = if self.stores.projects.was_removed(project, now).await? {
            Resource::INSTALLATION
        } else {
            Resource::project(project)
        };
        self.enter(caller, Action::StorageRead, resource).await
    }

    /// A collection.
    pub async fn get_collection(&self, caller: &Caller, project: &str, id: &str) -> Result<Collection> {
        self.enter_collections(caller, project).await?;
        let found = self.stores.collections.find_collection(project, id).await?;
        found.ok_or_else(|| no_collection(id))
    }

    /// The collections of a project, the newest first.
    pub async fn list_collections(
        &self,
        caller: &Caller,
        project: &str,
        page: &PageRequest<String>,
    ) -> Result<Page<Collection>> {
        self.enter_collections(caller, project).await?;
        self.stores.collections.list_collections(project, page).await
    }

    /// What a collection freed, would free or kept, by kind and id.
    pub async fn list_collected(
        &self,
        caller: &Caller,
        project: &str,
        id: &str,
        outcome: Option<CollectedOutcome>,
        page: &PageRequest<String>,
    ) -> Result<Page<CollectedObject>> {
        self.get_collection(caller, project, id).await?;
        self.stores.collections.list_collected(project, id, outcome, page).await
    }

    /// Deletes an experiment with its runs. With `for_good` it is removed, with all that is in it, and its name is free again when the
    /// collection has ended that is answered.
    pub async fn remove_experiment(
        &self,
        caller: &Caller,
        project: &str,
        id: &str,
        for_good: bool,
    ) -> Result<Option<Collection>> {
        let resource = Resource::named(Kind::Experiment, project, id);
        self.enter(caller, Action::RunWrite, resource).await?;
        if for_good {
            self.enter(caller, Action::StorageWrite, Resource::project(project))
                .await?;
        }
        let number: i64 = id
            .parse()
            .map_err(|_| Error::request(format!("`{}` is no id of an experiment", id.escape_debug())))?;
        let experiment = self.required_experiment(project, number).await?;
        if experiment.lifecycle == Lifecycle::Active {
            let event = caller.event(Action::RunWrite, Operation::Delete, &resource);
            let change = ExperimentChange::Delete;
            self.stores
                .experiments
                .change_experiment(project, number, &change, &event)
                .await?;
        }
        if !for_good {
            return Ok(None);
        }
        let request = CollectionRequest {
            experiment_ids: vec![id.to_owned()],
            ..CollectionRequest::default()
        };
        self.start_checked(caller, project, request).await.map(Some)
    }

    /// How much a project stores and may store.
    pub async fn get_quota(&self, caller: &Caller, project: &str) -> Result<Quota> {
        self.enter(caller, Action::StorageRead, Resource::project(project))
            .await?;
        Ok(self.stores.blobs.storage_view(project).await?.quota)
    }

    /// Sets how much a project may store; none: as much as there is room for. Who may do so in one project alone may not: the
    /// quota holds for them.
    pub async fn set_quota(&self, caller: &Caller, project: &str, limit_bytes: Option<u64>) -> Result<Quota> {
        self.enter(caller, Action::StorageWrite, Resource::INSTALLATION).await?;
        if self.stores.projects.find_project(project).await?.is_none() {
            return Err(modelyard_auth::Error::Project(project.to_owned()).into());
        }
        if let Some(limit) = limit_bytes.filter(|limit| *limit > MAX_QUOTA_BYTES) {
            return Err(Error::request(format!(
                "limit_bytes is {limit}: write a number up to {MAX_QUOTA_BYTES}, or null for no limit"
            )));
        }
        let event = caller.event(Action::StorageWrite, Operation::Apply, &Resource::project(project));
        self.stores.blobs.set_quota(project, limit_bytes, &event).await
    }
}
