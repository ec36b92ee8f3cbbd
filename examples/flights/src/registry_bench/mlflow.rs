//! MLflow's own server.

use std::{net::SocketAddr, path::Path};

use anyhow::Result;
use serde_json::json;
use tokio::process::Command;

use super::requests::{API, Connection};
use crate::peer_server::{PeerServer, free_address};

/// Starts MLflow's server with its data in a folder, and with what makes it faster than as it comes: no jobs beside it.
pub async fn start(program: &Path, folder: &Path) -> Result<PeerServer> {
    let address = free_address()?;
    let mut command = Command::new(program);
    command
        .args(["server", "--workers", "4", "--host", "127.0.0.1", "--port"])
        .arg(address.port().to_string())
        .arg("--backend-store-uri")
        .arg(format!("sqlite:///{}", folder.join("mlflow.db").display()))
        .arg("--artifacts-destination")
        .arg(folder.join("artifacts"))
        .env("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false");
    PeerServer::start(&mut command, address, &folder.join("mlflow.log"), answers).await
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
