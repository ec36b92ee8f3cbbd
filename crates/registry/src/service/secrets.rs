//! Secrets that pipelines and channels use: sealed at rest, told to nobody but the services that use them.

use modelyard_auth::{Action, Caller, Kind, Resource, audit::Operation, seal::SealError};
use modelyard_common::{error::Chain, name::check_name};

use super::{Registry, audit::KEY_CONTEXT};
use crate::{
    error::{Error, Result},
    model::{
        endpoint::Outcome,
        page::{Page, PageRequest},
        secret::{MAX_SECRET_BYTES, SecretEntry},
    },
    store::SealedSecret,
    webhooks::secret_context,
};

/// What a secret is sealed for: it opens as this one only.
fn context(project: &str, name: &str) -> String {
    format!("secret/{project}/{name}")
}

/// The keys do not do their work. The sealed value is not in the text.
pub(super) fn sealed(error: &SealError) -> Error {
    Error::State(error.to_string())
}

impl Registry {
    /// Sets a secret.
    pub async fn put_secret(
        &self,
        caller: &Caller,
        project: &str,
        name: &str,
        value: &str,
    ) -> Result<(Outcome, SecretEntry)> {
        let resource = Resource::named(Kind::Secret, project, name);
        caller.authorize(Action::SecretWrite, resource)?;
        check_name("a secret", name)?;
        if value.is_empty() || value.len() > MAX_SECRET_BYTES {
            return Err(Error::request(format!(
                "the value of secret `{name}` has {} bytes: use 1 to {MAX_SECRET_BYTES}",
                value.len()
            )));
        }
        let secret = SealedSecret {
            project: project.to_owned(),
            name: name.to_owned(),
            sealed: self
                .keys
                .seal(&context(project, name), value.as_bytes())
                .map_err(|error| sealed(&error))?,
        };
        // No digest of the value: a weak one could be guessed from it.
        let event = caller.event(Action::SecretWrite, Operation::Apply, &resource);
        let outcome = self.stores.secrets.put_secret(&secret, &event).await?;
        tracing::info!(project, secret = name, ?outcome, "secret set");
        let entry = self.stores.secrets.find_secret(project, name).await?;
        Ok((outcome, entry.ok_or_else(|| no_secret(name))?))
    }

    /// The secrets of a project, without their values.
    pub async fn list_secrets(
        &self,
        caller: &Caller,
        project: &str,
        page: &PageRequest<String>,
    ) -> Result<Page<SecretEntry>> {
        caller.authorize(Action::SecretRead, Resource::project(project))?;
        self.stores.secrets.list_secrets(project, page).await
    }

    /// Removes a secret.
    pub async fn remove_secret(&self, caller: &Caller, project: &str, name: &str) -> Result<()> {
        let resource = Resource::named(Kind::Secret, project, name);
        caller.authorize(Action::SecretWrite, resource)?;
        let event = caller.event(Action::SecretWrite, Operation::Delete, &resource);
        if !self.stores.secrets.remove_secret(project, name, &event).await? {
            return Err(no_secret(name));
        }
        tracing::info!(project, secret = name, "secret removed");
        Ok(())
    }

    /// The value of a secret, for a service. That it was opened is in the audit chain before it is given out.
    pub async fn open_secret(&self, caller: &Caller, project: &str, name: &str) -> Result<Vec<u8>> {
        let resource = Resource::named(Kind::Secret, project, name);
        caller.authorize(Action::SecretOpen, resource)?;
        let event = caller.event(Action::SecretOpen, Operation::Read, &resource);
        let found = self.stores.secrets.open_secret(project, name, &event).await?;
        let found = found.ok_or_else(|| no_secret(name))?;
        self.keys
            .open(&context(project, name), &found)
            .map_err(|error| sealed(&error))
    }

    /// Seals with the newest key what was sealed with an older one.
    pub(crate) async fn reseal(&self) {
        match self.reseal_all().await {
            Ok(0) => {}
            Ok(count) => tracing::info!(
                count,
                key = self.keys.current_id(),
                "secrets were sealed with the newest key"
            ),
            Err(error) => {
                tracing::error!(error = %Chain(&error), "secrets could not be sealed with the newest key: keep the older keys");
            }
        }
    }

    async fn reseal_all(&self) -> Result<usize> {
        let mut count = 0;
        for secret in self.stores.secrets.all_secrets().await? {
            if self.keys.needs_rotation(&secret.sealed) {
                let resealed = self.resealed(&context(&secret.project, &secret.name), &secret.sealed)?;
                self.stores.secrets.reseal_secret(&secret, &resealed).await?;
                count += 1;
            }
        }
        for (project, id, secret) in self.stores.webhooks.webhook_secrets().await? {
            if self.keys.needs_rotation(&secret) {
                let resealed = self.resealed(&secret_context(&project, &id), &secret)?;
                self.stores.webhooks.reseal_webhook(&id, &secret, &resealed).await?;
                count += 1;
            }
        }
        for key in self.stores.audit.audit_keys().await? {
            if self.keys.needs_rotation(&key.sealed) {
                let resealed = self.resealed(&format!("{KEY_CONTEXT}/{}", key.id), &key.sealed)?;
                self.stores.audit.reseal_audit_key(&key.id, &resealed).await?;
                count += 1;
            }
        }
        Ok(count)
    }

    fn resealed(&self, context: &str, text: &str) -> Result<String> {
        let plain = self.keys.open(context, text).map_err(|error| sealed(&error))?;
        self.keys.seal(context, &plain).map_err(|error| sealed(&error))
    }
}

fn no_secret(name: &str) -> Error {
    Error::not_found("secret", name, "list them with `modelyard secrets list`")
}
