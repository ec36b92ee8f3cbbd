//! A gateway of a part's own, with models at endpoints, and the other roles in a process beside it: what is measured is the gateway.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use modelyard_flights::{Api, Look, Quiet, Server, ServerOptions, wait_for};
use serde_json::{Value, json};

use crate::{load::Subject, modelyard, peer_server::free_address, process::cpu_seconds};

/// How long a call is tried again.
const CALLS_AWAY: Duration = Duration::from_secs(10);
/// How long an endpoint may take until it is ready.
const READY_PATIENCE: Duration = Duration::from_mins(2);

/// How long the servers may take until they have nothing to do; and for how long they must have taken no more than this of a processor
/// to be taken for idle, looked at in such windows: predictions wait for five seconds before anything is done with them.
const IDLE_PATIENCE: Duration = Duration::from_mins(3);
const IDLE_TIME: Duration = Duration::from_secs(7);
const IDLE_SHARE: f64 = 0.1;
const IDLE_WINDOW: Duration = Duration::from_secs(1);

/// A gateway, and how it is told what to serve.
pub struct Gateway {
    server: Server,
    others: Server,
    /// The HTTP API of the others.
    pub api: Api,
    /// Its public listener.
    pub subject: Subject,
}

/// A process of its own, with these roles.
struct Place {
    roles: &'static [&'static str],
    public: SocketAddr,
    internal: SocketAddr,
}

impl Place {
    fn free(roles: &'static [&'static str]) -> Result<Self> {
        Ok(Self {
            roles,
            public: free_address()?,
            internal: free_address()?,
        })
    }

    /// Where others find its roles, as variables of their environment.
    fn told(&self) -> Vec<(String, String)> {
        let each = self.roles.iter().flat_map(|role| {
            let variable = |what: &str| format!("MODELYARD__PEERS__{}__{what}", role.to_uppercase());
            [
                (variable("PUBLIC"), format!("http://{}", self.public)),
                (variable("INTERNAL"), format!("http://{}", self.internal)),
            ]
        });
        each.collect()
    }

    /// Starts it with its data in a folder.
    async fn start(&self, folder: &Path, name: &str, environment: Vec<(String, String)>) -> Result<Server> {
        let roles = self.roles.join(",");
        let arguments = ["--roles", &roles, "--listen", &self.public.to_string()]
            .into_iter()
            .chain(["--internal-listen", &self.internal.to_string()])
            .map(str::to_owned)
            .collect();
        Server::start(ServerOptions {
            binary: modelyard()?,
            wrapper: Vec::new(),
            data_dir: folder.join(name),
            log: folder.join(format!("{name}.log")),
            arguments,
            environment,
        })
        .await
    }
}

impl Gateway {
    /// Starts a gateway with nothing and the other roles, and waits until they are ready. Their data is in a folder of this name.
    pub async fn start(folder: &Path, name: &str, environment: Vec<(String, String)>) -> Result<Self> {
        let folder = folder.join(name);
        fs::create_dir_all(&folder)?;
        let (own, other) = (
            Place::free(&["gateway"])?,
            Place::free(&["registry", "orchestrator", "monitoring"])?,
        );
        let storage = (
            "MODELYARD__STORAGE__URL".to_owned(),
            folder.join("objects").display().to_string(),
        );
        let environment = |told: Vec<(String, String)>| {
            let mut all = environment.clone();
            all.push(storage.clone());
            all.extend(told);
            all
        };
        let mut others = other.start(&folder, "others", environment(own.told())).await?;
        let mut server = own.start(&folder, "gateway", environment(other.told())).await?;
        others.wait_ready().await?;
        server.wait_ready().await?;
        Ok(Self {
            api: Api::new(&others.addresses().public, CALLS_AWAY)?,
            subject: Subject {
                address: own.public,
                pid: server.addresses().pid,
            },
            server,
            others,
        })
    }

    /// Serves a model at an endpoint of its name, and waits until it does. What the endpoint's spec has beside its route is
    /// `further`, an object.
    pub async fn serve(&self, name: &str, onnx: &[u8], further: Value) -> Result<()> {
        declare(&self.api, name, onnx, further).await?;
        let path = format!("endpoints/{name}");
        wait_for(
            &format!("the endpoint `{name}` is ready"),
            READY_PATIENCE,
            &Quiet,
            async || {
                let endpoint = self.api.get(&path).await?;
                if is_ready(&endpoint) {
                    return Ok(Look::Found(()));
                }
                let status = endpoint.get("status").cloned().unwrap_or_default();
                Ok(Look::NotYet(status.to_string()))
            },
        )
        .await
        .with_context(|| format!("the server's log says:\n{}\nerror", self.server.last_log_lines()))
    }

    /// Waits until neither it nor the other roles have anything to do with what was predicted before.
    pub async fn wait_idle(&self) -> Result<()> {
        let busy = || anyhow::Ok(cpu_seconds(self.subject.pid)? + cpu_seconds(self.others.addresses().pid)?);
        let (mut began, mut before, mut idle) = (Instant::now(), busy()?, Duration::ZERO);
        wait_for(
            "all predictions are in their tables",
            IDLE_PATIENCE,
            &Quiet,
            async || {
                let took = began.elapsed();
                if took >= IDLE_WINDOW {
                    let now = busy()?;
                    let share = (now - before) / took.as_secs_f64();
                    idle = if share < IDLE_SHARE {
                        idle + took
                    } else {
                        Duration::ZERO
                    };
                    (began, before) = (Instant::now(), now);
                }
                Ok(if idle >= IDLE_TIME {
                    Look::Found(())
                } else {
                    Look::NotYet(format!("the servers have been idle for {idle:.0?}"))
                })
            },
        )
        .await
    }

    /// Ends it.
    pub async fn stop(self) -> Result<()> {
        self.server.stop().await?;
        self.others.stop().await
    }
}

/// Registers a model and declares an endpoint of its name.
pub async fn declare(api: &Api, name: &str, onnx: &[u8], further: Value) -> Result<()> {
    let digest = api.upload(onnx.to_vec()).await?;
    let version = json!({"artifact_digest": digest, "format": "onnx"});
    api.post(&format!("models/{name}/versions"), &version).await?;
    let mut spec = further;
    spec["routes"] = json!([{"model": format!("{name}/1")}]);
    api.put(&format!("endpoints/{name}"), &spec).await?;
    Ok(())
}

/// Whether an endpoint says that it serves what it shall.
pub fn is_ready(endpoint: &Value) -> bool {
    endpoint.pointer("/status/ready") == Some(&Value::Bool(true))
}
