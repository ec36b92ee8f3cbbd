//! The repository extension: what can be asked for, and models that are loaded and unloaded by hand on this gateway.
//!
//! The registry says what is to be served. A model that is unloaded by hand frees its memory and answers nothing until it
//! is loaded by hand, its endpoint changes, or the gateway starts again.

use modelyard_auth::Action;
use modelyard_proto::inference::repository_index_response::ModelIndex;
use tokio::sync::{mpsc, oneshot};

use crate::{
    client::Client,
    desired::EndpointKey,
    error::{Error, Result},
    predict::Gateway,
};

/// How many changes wait for the one task that makes them; more wait where they are asked for.
const MAX_WAITING: usize = 64;
/// The longest names of what is loaded that an error repeats, in characters.
const MAX_SHOWN_CHARS: usize = 128;

/// What becomes of a model in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Load,
    Unload,
}

/// A change that is asked for, and where its end is told.
pub(crate) struct Command {
    pub key: EndpointKey,
    pub change: Change,
    pub done: oneshot::Sender<Result<()>>,
}

pub(crate) type Commands = mpsc::Sender<Command>;

/// Where changes are asked for, and where they arrive.
pub(crate) fn commands() -> (Commands, mpsc::Receiver<Command>) {
    mpsc::channel(MAX_WAITING)
}

/// What is there, by name and version; with `only_ready` without what cannot answer.
pub(crate) fn index(gateway: &Gateway, client: &Client, only_ready: bool) -> Vec<ModelIndex> {
    let table = gateway.table.load();
    let mut names = table.names(&client.project);
    names.retain(|name| client.sees(name));
    let endpoints = names.iter().filter_map(|name| table.find(&client.project, name));
    let each = endpoints.flat_map(|endpoint| {
        let name = &endpoint.key.name;
        let ready = endpoint.versions().into_iter().map(|version| ModelIndex {
            name: name.clone(),
            version,
            state: "READY".to_owned(),
            reason: String::new(),
        });
        let mut models: Vec<ModelIndex> = ready.collect();
        if models.is_empty() && !only_ready {
            models.push(ModelIndex {
                name: name.clone(),
                version: String::new(),
                state: if endpoint.is_loading() {
                    "LOADING"
                } else {
                    "UNAVAILABLE"
                }
                .to_owned(),
                reason: endpoint.reason().to_owned(),
            });
        }
        models
    });
    each.collect()
}

/// Loads or unloads the models of an endpoint, and waits until that is done. The parameters that clients may send with
/// it, which bring a configuration or files, are refused: versions come from the registry.
///
/// # Errors
/// The caller may not change the endpoint, there is none of the name, or a version cannot be loaded.
pub(crate) async fn change(
    gateway: &Gateway,
    client: &Client,
    endpoint: &str,
    change: Change,
    mut parameters: impl Iterator<Item = &str>,
) -> Result<()> {
    client.authorize(Action::EndpointWrite, endpoint)?;
    if let Some(parameter) = parameters.find(|name| *name != "unload_dependents") {
        return Err(Error::invalid(format!(
            "the parameter `{}` is not offered: models come from the registry, see `modelyard models import` and `modelyard deploy`",
            parameter.chars().take(MAX_SHOWN_CHARS).collect::<String>()
        )));
    }
    let (done, ended) = oneshot::channel();
    let command = Command {
        key: gateway.endpoint(&client.project, endpoint)?.key.clone(),
        change,
        done,
    };
    let interrupted = || Error::Interrupted {
        what: "the change of what is loaded",
    };
    gateway.repository.send(command).await.map_err(|_| interrupted())?;
    ended.await.map_err(|_| interrupted())?
}
