//! MLflow's own server.

use std::{fs, net::SocketAddr, path::Path, process::Stdio, time::Duration};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::json;
use tokio::{
    process::{Child, Command},
    time::Instant,
};

use super::requests::{API, Connection};
use crate::load::Subject;

/// How long MLflow's server may take until it answers.
const START_PATIENCE: Duration = Duration::from_mins(2);

/// MLflow's server, with what makes it faster than as it comes: no jobs beside it.
pub struct Theirs {
    process: Child,
    /// The server under load.
    pub subject: Subject,
}

impl Theirs {
    /// Starts it with its data in a folder, and waits until it answers.
    pub async fn start(program: &Path, folder: &Path) -> Result<Self> {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?;
        drop(listener);
        let database = format!("sqlite:///{}", folder.join("mlflow.db").display());
        let log = fs::File::create(folder.join("mlflow.log"))?;
        let process = Command::new(program)
            .args([
                "server",
                "--workers",
                "4",
                "--host",
                "127.0.0.1",
                "--port",
                &address.port().to_string(),
            ])
            .args(["--backend-store-uri", &database])
            .args([
                "--artifacts-destination",
                &folder.join("artifacts").display().to_string(),
            ])
            .env("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
            .stdout(log.try_clone()?)
            .stderr(log)
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()
            .with_context(|| format!("{} cannot be started", program.display()))?;
        let pid = process.id().context("MLflow's server has ended")?;
        let theirs = Self {
            process,
            subject: Subject { address, pid },
        };
        let deadline = Instant::now() + START_PATIENCE;
        while !answers(address).await {
            if Instant::now() > deadline {
                bail!(
                    "MLflow's server does not answer: {}",
                    fs::read_to_string(folder.join("mlflow.log"))?
                );
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(theirs)
    }

    /// Ends it and its workers.
    pub async fn stop(mut self) -> Result<()> {
        if let Some(group) = Pid::from_raw(self.subject.pid.cast_signed()) {
            kill_process_group(group, Signal::KILL)?;
        }
        self.process.wait().await?;
        Ok(())
    }
}

async fn answers(address: SocketAddr) -> bool {
    let Ok(mut connection) = Connection::open(address).await else {
        return false;
    };
    connection
        .ask(&format!("POST {API}/experiments/search"), &json!({"max_results": 1}))
        .await
        .is_ok()
}
