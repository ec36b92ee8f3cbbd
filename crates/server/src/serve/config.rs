//! The configuration of a server, composed of what each part asks for.

use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf};

use anyhow::bail;
use clap::ValueEnum;
use modelyard_artifacts::StorageConfig;
use serde::{Deserialize, Serialize};

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
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
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Peer {
    /// Its internal listener, for calls between services: `http://10.0.0.7:7071`.
    pub internal: Option<String>,
    /// Its public listener, to which requests of clients are forwarded: `http://10.0.0.7:7070`.
    pub public: Option<String>,
}

/// The other processes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
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
}

/// The whole configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
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
        for (key, address) in [("listen", self.listen), ("internal_listen", self.internal_listen)] {
            if !address.ip().is_loopback() {
                bail!(
                    "refusing to listen on {address}: without sign-in only this machine may connect; set `{key}` to a loopback address such as 127.0.0.1:{}",
                    address.port()
                );
            }
        }
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
