//! Starts the services of this process and joins them: by a local channel where the peer is here, else by the network.

use std::collections::BTreeMap;

use anyhow::Context as _;
use modelyard_artifacts::{Storage, StorageConfig};
use modelyard_common::{
    Context,
    rpc::{self, Channel},
};
use tonic::service::Routes;
use utoipa_axum::router::OpenApiRouter;

use super::config::{Config, Role};

/// What the services of this process offer.
#[derive(Default)]
pub struct Services {
    /// Routes below `/api/v1` with their description.
    pub http: OpenApiRouter,
    /// Inference over HTTP, when the gateway is here.
    pub inference_http: Option<axum::Router>,
    /// Inference over gRPC, when the gateway is here.
    pub inference_grpc: Option<Routes>,
    /// The services' own contracts, by the prefix of their paths.
    pub internal_grpc: Vec<(&'static str, Routes)>,
    channels: BTreeMap<Role, Channel>,
}

/// Starts the roles that the configuration names.
pub async fn start(config: &Config, context: &Context) -> anyhow::Result<Services> {
    let storage = open_storage(config, context)?;
    let mut services = Services::default();
    for role in Role::ALL {
        if config.roles.contains(&role) {
            services
                .start(role, config, context, storage.clone())
                .await
                .with_context(|| format!("the role {} cannot start", role.name()))?;
        }
    }
    Ok(services)
}

impl Services {
    async fn start(&mut self, role: Role, config: &Config, context: &Context, storage: Storage) -> anyhow::Result<()> {
        match role {
            Role::Registry => {
                let service = modelyard_registry::start(config.registry.clone(), context, storage).await?;
                self.add(role, service.http, "/modelyard.registry.", service.grpc);
            }
            Role::Orchestrator => {
                let registry = self.channel(config, Role::Registry)?;
                let service =
                    modelyard_orchestrator::start(config.orchestrator.clone(), context, storage, registry).await?;
                self.add(role, service.http, "/modelyard.orchestrator.", service.grpc);
            }
            Role::Monitoring => {
                let registry = self.channel(config, Role::Registry)?;
                let orchestrator = self.channel(config, Role::Orchestrator)?;
                let config = config.monitoring.clone();
                let service = modelyard_monitoring::start(config, context, storage, registry, orchestrator).await?;
                self.add(role, service.http, "/modelyard.monitoring.", service.grpc);
            }
            Role::Gateway => {
                let registry = self.channel(config, Role::Registry)?;
                let monitoring = self.channel(config, Role::Monitoring)?;
                let config = config.gateway.clone();
                let service = modelyard_gateway::start(config, context, storage, registry, monitoring).await?;
                self.http = std::mem::take(&mut self.http).merge(service.http);
                self.inference_http = Some(service.inference);
                self.inference_grpc = Some(service.grpc);
            }
        }
        Ok(())
    }

    fn add(&mut self, role: Role, http: OpenApiRouter, prefix: &'static str, grpc: Routes) {
        self.http = std::mem::take(&mut self.http).merge(http);
        self.channels.insert(role, rpc::local(grpc.clone()));
        self.internal_grpc.push((prefix, grpc));
    }

    /// The way to a role: here, or at the address of a peer.
    fn channel(&self, config: &Config, role: Role) -> anyhow::Result<Channel> {
        if let Some(channel) = self.channels.get(&role) {
            return Ok(channel.clone());
        }
        let key = format!("peers.{}.internal", role.name());
        let address = config.peers.get(role).internal.as_deref();
        let address = address.with_context(|| format!("`{key}` is not set"))?;
        rpc::remote(address).with_context(|| format!("`{key}` cannot be used"))
    }
}

fn open_storage(config: &Config, context: &Context) -> anyhow::Result<Storage> {
    let storage = match &config.storage {
        Some(storage) => storage.clone(),
        None => StorageConfig::folder(&context.data_dir.join("objects")),
    };
    Storage::open(&storage).context("the storage cannot be opened")
}
