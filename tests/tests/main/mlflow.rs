//! MLflow's own client, unchanged, in both topologies and on both databases.

use anyhow::Result;

use crate::{
    clients::run_client,
    deployment::{Deployment, Engine, Topology},
};

/// Runs a script of the client against a fresh server.
async fn run(script: &str, topology: Topology, engine: Engine) -> Result<()> {
    let deployment = Deployment::start(topology, engine).await?;
    let url = deployment.url().to_owned();
    let script = script.to_owned();
    let output =
        tokio::task::spawn_blocking(move || run_client(&script, &[], &[("MLFLOW_TRACKING_URI", &url)])).await??;
    anyhow::ensure!(output.lines().count() > 20, "{output}");
    deployment.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn tracking_works_on_sqlite() -> Result<()> {
    run("mlflow_tracking.py", Topology::AllInOne, Engine::Sqlite).await
}

#[tokio::test(flavor = "multi_thread")]
async fn tracking_works_on_postgresql_in_separate_processes() -> Result<()> {
    run("mlflow_tracking.py", Topology::Split, Engine::Postgres).await
}

#[tokio::test(flavor = "multi_thread")]
async fn artifacts_work_on_sqlite() -> Result<()> {
    run("mlflow_files.py", Topology::AllInOne, Engine::Sqlite).await
}

#[tokio::test(flavor = "multi_thread")]
async fn artifacts_work_on_postgresql_in_separate_processes() -> Result<()> {
    run("mlflow_files.py", Topology::Split, Engine::Postgres).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_model_registry_works_on_sqlite() -> Result<()> {
    run("mlflow_registry.py", Topology::AllInOne, Engine::Sqlite).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_model_registry_works_on_postgresql_in_separate_processes() -> Result<()> {
    run("mlflow_registry.py", Topology::Split, Engine::Postgres).await
}
