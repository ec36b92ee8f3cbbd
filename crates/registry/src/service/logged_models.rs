//! Logged models.

use std::collections::BTreeMap;

use modelyard_auth::{Action, Caller, Resource};

use super::Registry;
use crate::{
    error::{Error, Result},
    model::{
        logged_model::{LoggedModel, LoggedModelChange, LoggedModelSearch, MAX_TEXTS, NewLoggedModel},
        run::{MAX_PARAM_BYTES, MAX_TAG_BYTES, check_key, check_text, check_title},
        tracking::{Lifecycle, PROXY_SCHEME},
    },
    store::no_logged_model,
};

/// The longest type of a model, in bytes.
const MAX_TYPE_BYTES: usize = 500;

/// A logged model as a client orders it.
#[derive(Debug, Clone, Default)]
pub struct LoggedModelOrderForm {
    /// Its experiment.
    pub experiment_id: i64,
    /// Its name; empty: one is made up.
    pub name: String,
    /// What it is for.
    pub model_type: String,
    /// The run that makes it.
    pub source_run_id: Option<String>,
    /// What it is made with.
    pub params: BTreeMap<String, String>,
    /// Notes.
    pub tags: BTreeMap<String, String>,
}

fn check_texts(params: &BTreeMap<String, String>, tags: &BTreeMap<String, String>) -> Result<()> {
    if params.len().max(tags.len()) > MAX_TEXTS {
        return Err(Error::request(format!(
            "{} params and {} tags are too many at once: send at most {MAX_TEXTS}",
            params.len(),
            tags.len()
        )));
    }
    for (what, texts, limit) in [("param", params, MAX_PARAM_BYTES), ("tag", tags, MAX_TAG_BYTES)] {
        for (key, value) in texts {
            check_key(what, key)?;
            check_text(what, key, value, limit)?;
        }
    }
    Ok(())
}

impl Registry {
    /// Makes a logged model.
    pub async fn create_logged_model(
        &self,
        caller: &Caller,
        project: &str,
        form: LoggedModelOrderForm,
    ) -> Result<LoggedModel> {
        self.enter(caller, Action::RunWrite, Resource::project(project)).await?;
        check_texts(&form.params, &form.tags)?;
        check_text("type of model", &form.name, &form.model_type, MAX_TYPE_BYTES)?;
        let digits = self.ids.next().simple().to_string();
        let name = if form.name.is_empty() {
            format!("model-{}", &digits[digits.len() - 8..])
        } else {
            form.name
        };
        check_title("a logged model", &name)?;
        if name.contains(['/', ':', '.', '%', '"', '\'']) {
            return Err(Error::request(format!(
                "Invalid model name ({name}) provided. Model name must be a non-empty string and cannot contain the \
                 following characters: ('/', ':', '.', '%', '\"', \"'\")"
            )));
        }
        let new = NewLoggedModel {
            model_id: format!("m-{digits}"),
            project: project.to_owned(),
            experiment_id: form.experiment_id,
            name,
            model_type: form.model_type,
            source_run_id: form.source_run_id,
            params: form.params,
            tags: form.tags,
            now: self.clock.now(),
        };
        self.stores.logged_models.create_logged_model(&new).await
    }

    /// A logged model.
    pub async fn get_logged_model(
        &self,
        caller: &Caller,
        project: &str,
        model_id: &str,
        also_deleted: bool,
    ) -> Result<LoggedModel> {
        self.enter(caller, Action::RunRead, Resource::project(project)).await?;
        let found = self.stores.logged_models.find_logged_model(project, model_id).await?;
        let found = found.filter(|model| also_deleted || model.lifecycle == Lifecycle::Active);
        found.ok_or_else(|| no_logged_model(model_id))
    }

    /// Changes a logged model.
    pub async fn change_logged_model(
        &self,
        caller: &Caller,
        project: &str,
        model_id: &str,
        change: &LoggedModelChange,
    ) -> Result<LoggedModel> {
        self.enter(caller, Action::RunWrite, Resource::project(project)).await?;
        check_texts(&change.params, &change.tags)?;
        let now = self.clock.now();
        self.stores
            .logged_models
            .change_logged_model(project, model_id, change, now)
            .await
    }

    /// Removes a tag of a logged model.
    pub async fn delete_logged_model_tag(
        &self,
        caller: &Caller,
        project: &str,
        model_id: &str,
        key: &str,
    ) -> Result<()> {
        self.enter(caller, Action::RunWrite, Resource::project(project)).await?;
        let logged_models = &self.stores.logged_models;
        if logged_models.delete_logged_model_tag(project, model_id, key).await? {
            return Ok(());
        }
        Err(Error::NotThere(format!(
            "No tag with key '{key}' found for model with ID '{model_id}'."
        )))
    }

    /// The logged models that are found, and one more if there is one.
    pub async fn search_logged_models(
        &self,
        caller: &Caller,
        project: &str,
        search: &LoggedModelSearch,
    ) -> Result<Vec<LoggedModel>> {
        self.enter(caller, Action::RunRead, Resource::project(project)).await?;
        self.stores.logged_models.search_logged_models(project, search).await
    }

    /// Where a logged model's artifacts are in the server's own store: what follows `mlflow-artifacts:/`.
    pub(crate) async fn logged_model_artifact_root(
        &self,
        caller: &Caller,
        project: &str,
        model_id: &str,
    ) -> Result<String> {
        let model = self.get_logged_model(caller, project, model_id, false).await?;
        let uri = model.artifact_uri();
        let path = uri
            .strip_prefix(PROXY_SCHEME)
            .map(|path| path.trim_start_matches('/').to_owned());
        path.ok_or_else(|| {
            Error::State(format!(
                "the artifacts of model {model_id} are at {uri} and not in this server's store: clients read them there"
            ))
        })
    }
}
