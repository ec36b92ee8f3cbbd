//! Starts the services of this process and joins them: by a local channel where the peer is here, else by the network.

use std::{collections::BTreeMap, io::Write as _};

use anyhow::Context as _;
use modelyard_artifacts::{Storage, StorageConfig};
use modelyard_auth::{Access, Mode, token::Token};
use modelyard_common::{
    Context,
    rpc::{self, Channel, PeerIdentity},
};
use modelyard_gateway::Predictions;
use tonic::service::Routes;
use utoipa_axum::router::OpenApiRouter;

use super::{
    access,
    config::{Config, Role},
    guard,
};

/// What the services of this process offer.
#[derive(Default)]
pub struct Services {
    /// Routes below `/api/v1` with their description.
    pub http: OpenApiRouter,
    /// Inference over HTTP, when the gateway is here.
    pub inference_http: Option<axum::Router>,
    /// Single predictions, to be asked before both kinds of inference.
    pub predictions: Option<Predictions>,
    /// Inference over gRPC, when the gateway is here.
    pub inference_grpc: Option<Routes>,
    /// The services' own contracts, by the prefix of their paths.
    pub internal_grpc: Vec<(&'static str, Routes)>,
    channels: BTreeMap<Role, Channel>,
    identity: PeerIdentity,
}

/// Starts the roles that the configuration names. Calls to peers show `identity`.
pub async fn start(config: &Config, context: &Context, identity: PeerIdentity) -> anyhow::Result<Services> {
    let storage = open_storage(config, context)?;
    let mode = if config.auth.sign_in { Mode::SignIn } else { Mode::Open };
    let access = access::open(mode, config.auth.requests_per_second, context)?;
    let mut services = Services {
        identity,
        ..Services::default()
    };
    for role in Role::ALL {
        if config.roles.contains(&role) {
            services
                .start(role, config, context, storage.clone(), access.clone())
                .await
                .with_context(|| format!("the role {} cannot start", role.name()))?;
        }
    }
    services.join(config, context, &access)?;
    Ok(services)
}

impl Services {
    async fn start(
        &mut self,
        role: Role,
        config: &Config,
        context: &Context,
        storage: Storage,
        access: Access,
    ) -> anyhow::Result<()> {
        match role {
            Role::Registry => {
                let config = config.registry.clone();
                let service = modelyard_registry::start(config, context, storage, access).await?;
                // At once: it is not made again where something after this fails.
                if let Some(token) = &service.first_token {
                    tell_first_token(token)?;
                }
                self.add(role, service.http, "/modelyard.registry.", service.grpc);
            }
            Role::Orchestrator => {
                let registry = self.channel(config, role, Role::Registry)?;
                let config = config.orchestrator.clone();
                let service = modelyard_orchestrator::start(config, context, storage, access, registry).await?;
                self.add(role, service.http, "/modelyard.orchestrator.", service.grpc);
            }
            Role::Monitoring => {
                let registry = self.channel(config, role, Role::Registry)?;
                let orchestrator = self.channel(config, role, Role::Orchestrator)?;
                let config = config.monitoring.clone();
                let service =
                    modelyard_monitoring::start(config, context, storage, access, registry, orchestrator).await?;
                self.add(role, service.http, "/modelyard.monitoring.", service.grpc);
            }
            Role::Gateway => {
                let registry = self.channel(config, role, Role::Registry)?;
                let monitoring = self.channel(config, role, Role::Monitoring)?;
                let config = config.gateway.clone();
                let service = modelyard_gateway::start(config, context, storage, access, registry, monitoring).await?;
                self.http = std::mem::take(&mut self.http).merge(service.http);
                self.predictions = Some(service.predictions);
                self.inference_http = Some(service.inference);
                self.inference_grpc = Some(service.grpc);
            }
        }
        Ok(())
    }

    /// Joins what is known of callers to the registry: it is followed where it is elsewhere, and told what was noticed.
    fn join(&self, config: &Config, context: &Context, access: &Access) -> anyhow::Result<()> {
        let Some(caller) = config.roles.first() else {
            return Ok(());
        };
        let registry = self.channel(config, *caller, Role::Registry)?;
        if !config.roles.contains(&Role::Registry) {
            access::follow(access, registry.clone(), context);
        }
        access::join(access, &registry, context);
        Ok(())
    }

    fn add(&mut self, role: Role, http: OpenApiRouter, prefix: &'static str, grpc: Routes) {
        self.http = std::mem::take(&mut self.http).merge(http);
        self.channels.insert(role, rpc::local(grpc.clone()));
        self.internal_grpc.push((prefix, grpc));
    }

    /// The way to a role, here or at the address of a peer, for the calls of another.
    fn channel(&self, config: &Config, caller: Role, role: Role) -> anyhow::Result<Channel> {
        if let Some(channel) = self.channels.get(&role) {
            return Ok(channel.as_service(caller.name()));
        }
        let key = format!("peers.{}.internal", role.name());
        let address = config.peers.get(role).internal.as_deref();
        let address = address.with_context(|| format!("`{key}` is not set"))?;
        if config.cluster_key.is_some() && is_plain_network(address) {
            tracing::warn!(
                key,
                address,
                "calls to this peer carry the cluster key unencrypted: trust the network between them, or use https://"
            );
        }
        let channel = rpc::remote(address, &self.identity).with_context(|| format!("`{key}` cannot be used"))?;
        Ok(channel.as_service(caller.name()))
    }
}

/// Tells the first admin's token, once, on standard output: what is logged stays and is read by many.
fn tell_first_token(token: &Token) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "The user `admin` was made. Its token is shown this once; keep it, or replace it by tokens of your own:\n"
    )
    .and_then(|()| writeln!(out, "    {}\n", token.reveal()))
    .and_then(|()| out.flush())
    .context("the admin's token cannot be printed: give the server a standard output")
}

/// Whether what is sent to an address leaves this machine as it is.
fn is_plain_network(address: &str) -> bool {
    let Ok(uri) = address.parse::<http::Uri>() else {
        return false;
    };
    uri.scheme() == Some(&http::uri::Scheme::HTTP) && !uri.host().is_some_and(guard::is_loopback)
}

fn open_storage(config: &Config, context: &Context) -> anyhow::Result<Storage> {
    let storage = match &config.storage {
        Some(storage) => storage.clone(),
        None => StorageConfig::folder(&context.data_dir.join("objects")),
    };
    Storage::open(&storage).context("the storage cannot be opened")
}
