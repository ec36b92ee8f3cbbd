//! The configuration of a server, composed of what each part asks for.

use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf};

use anyhow::bail;
use clap::ValueEnum;
use modelyard_artifacts::StorageConfig;
use modelyard_common::{
    config::Secret,
    rpc::{ClusterKey, InvalidClusterKey},
    tls,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::origin::Network;

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// What is: runs, datasets, models, endpoints.
    Registry,
    /// What shall happen: pipelines and triggers.
    Orchestrator,
    /// Traffic: predictions.
    Gateway,
    /// What was seen: inference log, scores, alerts.
    Monitoring,
}

impl Role {
    /// All roles, in the order in which they start.
    pub const ALL: [Self; 4] = [Self::Registry, Self::Orchestrator, Self::Monitoring, Self::Gateway];

    /// The role as it is written in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Registry => "registry",
            Self::Orchestrator => "orchestrator",
            Self::Gateway => "gateway",
            Self::Monitoring => "monitoring",
        }
    }
}

/// Where a role that runs in another process is reached.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Peer {
    /// Its internal listener, for calls between services: `https://10.0.0.7:7071`, or `http://` where it has no TLS.
    pub internal: Option<String>,
    /// Its public listener, to which requests of clients are forwarded: `https://10.0.0.7:7070`, or `http://` where it has no TLS.
    pub public: Option<String>,
}

/// The other processes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Peers {
    /// Where the registry is.
    pub registry: Peer,
    /// Where the orchestrator is.
    pub orchestrator: Peer,
    /// Where the gateway is.
    pub gateway: Peer,
    /// Where monitoring is.
    pub monitoring: Peer,
}

impl Peers {
    /// The peer that has a role.
    pub const fn get(&self, role: Role) -> &Peer {
        match role {
            Role::Registry => &self.registry,
            Role::Orchestrator => &self.orchestrator,
            Role::Gateway => &self.gateway,
            Role::Monitoring => &self.monitoring,
        }
    }

    /// Whether a peer is reached by TLS.
    pub fn use_tls(&self) -> bool {
        let peers = Role::ALL.map(|role| self.get(role));
        let mut addresses = peers.iter().flat_map(|peer| [&peer.internal, &peer.public]).flatten();
        addresses.any(|address| address.starts_with("https://"))
    }
}

/// Who is let in.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AuthConfig {
    /// Whether callers must sign in. Without it everybody who reaches the server is its admin, so that it listens on a
    /// loopback address only.
    pub sign_in: bool,
    /// The most requests a second of one token, or of one user with a password; a second's worth may come at once. No limit
    /// where it is left out.
    pub requests_per_second: Option<u32>,
    /// Networks of proxies and of other processes of this installation, such as `10.0.0.0/8`: what they say in
    /// `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<Network>,
}

/// The whole configuration.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Folder for databases, spool and caches. One server at a time.
    pub data_dir: PathBuf,
    /// Address of the public listener: API, inference over HTTP and gRPC.
    pub listen: SocketAddr,
    /// Address of the internal listener: calls between services, metrics, probes.
    pub internal_listen: SocketAddr,
    /// The roles of this process.
    pub roles: BTreeSet<Role>,
    /// Where the other roles are, when they are not in this process.
    pub peers: Peers,
    /// Who is let in. The same for all processes.
    pub auth: AuthConfig,
    /// Certificates of the listeners and of the calls to peers.
    pub tls: tls::Config,
    /// A secret of at least 32 characters, the same for all processes, that lets their calls in at each other's internal
    /// listeners: for where processes have no certificates of their own. It is sent as it is, so the network must be trusted
    /// or encrypted.
    pub cluster_key: Option<Secret>,
    /// Where artifacts and the inference log are kept. By default the folder `objects` in the data folder.
    pub storage: Option<StorageConfig>,
    /// Logs and traces.
    pub telemetry: modelyard_common::telemetry::Config,
    /// The registry.
    pub registry: modelyard_registry::Config,
    /// The orchestrator.
    pub orchestrator: modelyard_orchestrator::Config,
    /// The gateway.
    pub gateway: modelyard_gateway::Config,
    /// Monitoring.
    pub monitoring: modelyard_monitoring::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("modelyard-data"),
            listen: SocketAddr::from(([127, 0, 0, 1], 7070)),
            internal_listen: SocketAddr::from(([127, 0, 0, 1], 7071)),
            roles: Role::ALL.into(),
            peers: Peers::default(),
            auth: AuthConfig::default(),
            tls: tls::Config::default(),
            cluster_key: None,
            storage: None,
            telemetry: modelyard_common::telemetry::Config::default(),
            registry: modelyard_registry::Config::default(),
            orchestrator: modelyard_orchestrator::Config::default(),
            gateway: modelyard_gateway::Config::default(),
            monitoring: modelyard_monitoring::Config::default(),
        }
    }
}

impl Config {
    /// Checks what the types cannot.
    pub fn validate(&self) -> anyhow::Result<()> {
        if self.roles.is_empty() {
            bail!(
                "a server needs a role: leave `roles` out for all, or name some of registry, orchestrator, gateway, monitoring"
            );
        }
        if self.auth.requests_per_second == Some(0) {
            bail!("`auth.requests_per_second` is 0, which lets nobody in: set it to 1 or more, or leave it out");
        }
        if !self.listen.ip().is_loopback() && !self.auth.sign_in {
            bail!(
                "refusing to listen on {}: without sign-in only this machine may connect; set `auth.sign_in = true`, or `listen` to a loopback address such as 127.0.0.1:{}",
                self.listen,
                self.listen.port()
            );
        }
        if !self.internal_listen.ip().is_loopback() && !self.requires_peer_proof() {
            bail!(
                "refusing to listen on {}: whoever reaches the internal listener could call the services; set `tls.internal` or `cluster_key`, or `internal_listen` to a loopback address such as 127.0.0.1:{}",
                self.internal_listen,
                self.internal_listen.port()
            );
        }
        self.cluster_key()?;
        self.tls.validate(self.peers.use_tls())?;
        for role in self.needed_peers() {
            if self.peers.get(role).internal.is_none() {
                bail!(
                    "the role {0} is neither in this process nor is its address known: add it to `roles`, or set `peers.{0}.internal`",
                    role.name()
                );
            }
        }
        self.registry.validate()?;
        self.orchestrator.validate()?;
        self.gateway.validate()?;
        self.monitoring.validate()?;
        Ok(())
    }

    /// Whether the internal listener answers service contracts only to callers that prove to be peers: by a client
    /// certificate or by the cluster key.
    pub const fn requires_peer_proof(&self) -> bool {
        self.tls.internal.is_some() || self.cluster_key.is_some()
    }

    /// The cluster key, checked.
    pub fn cluster_key(&self) -> Result<Option<ClusterKey>, InvalidClusterKey> {
        self.cluster_key.as_ref().map(ClusterKey::new).transpose()
    }

    /// The roles that the roles of this process call and that are not among them.
    fn needed_peers(&self) -> BTreeSet<Role> {
        let mut needed = BTreeSet::new();
        for role in &self.roles {
            match role {
                Role::Registry => {}
                Role::Orchestrator => needed.extend([Role::Registry]),
                Role::Gateway => needed.extend([Role::Registry, Role::Monitoring]),
                Role::Monitoring => needed.extend([Role::Registry, Role::Orchestrator]),
            }
        }
        &needed - &self.roles
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_start_everything_on_loopback() {
        let config = Config::default();
        config.validate().unwrap();
        assert_eq!(config.roles.len(), 4);
    }

    #[test]
    fn other_addresses_are_refused_without_sign_in() {
        let config = Config {
            listen: "0.0.0.0:7070".parse().unwrap(),
            ..Config::default()
        };
        let error = config.validate().unwrap_err().to_string();
        assert!(
            error.contains("0.0.0.0:7070") && error.contains("127.0.0.1:7070"),
            "{error}"
        );
        assert!(error.contains("auth.sign_in"), "{error}");
        let auth = AuthConfig {
            sign_in: true,
            ..AuthConfig::default()
        };
        Config { auth, ..config }.validate().unwrap();
    }

    #[test]
    fn the_internal_listener_goes_abroad_only_with_a_proof_of_peers() {
        let config = Config {
            internal_listen: "0.0.0.0:7071".parse().unwrap(),
            ..Config::default()
        };
        assert!(!config.requires_peer_proof());
        let error = config.validate().unwrap_err().to_string();
        assert!(error.contains("`tls.internal` or `cluster_key`"), "{error}");
        let with_key = |key: &str| Config {
            cluster_key: Some(Secret::new(key)),
            ..config.clone()
        };
        let config = with_key(&"k".repeat(32));
        assert!(config.requires_peer_proof());
        config.validate().unwrap();
        let error = with_key("too short").validate().unwrap_err().to_string();
        assert!(
            error.contains("at least 32 characters") && !error.contains("too short"),
            "{error}"
        );
    }

    #[test]
    fn a_single_role_needs_its_peers() {
        let config = Config {
            roles: [Role::Gateway].into(),
            ..Config::default()
        };
        let error = config.validate().unwrap_err().to_string();
        assert!(error.contains("peers.registry.internal"), "{error}");
        let alone = Config {
            roles: [Role::Registry].into(),
            ..Config::default()
        };
        alone.validate().unwrap();
    }
}
