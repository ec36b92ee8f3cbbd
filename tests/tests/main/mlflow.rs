//! MLflow's own client, unchanged, in both topologies and on both databases.

use anyhow::{Context as _, Result};

use crate::{
    clients::{ObjectStore, run_client, run_old_client},
    deployment::{Deployment, Engine, Topology},
    permissions::installation::{ADMIN_PASSWORD, Installation},
};

/// What its client asks of a server where people sign in, with the variables that say who asks.
fn sees_experiments(url: &str, who: &[(&str, &str)]) -> Result<String> {
    let mut variables = vec![("MLFLOW_TRACKING_URI", url)];
    variables.extend_from_slice(who);
    run_client("mlflow_sign_in.py", &[], &variables)
}

#[tokio::test(flavor = "multi_thread")]
async fn its_client_signs_in_by_token_and_by_name_and_password() -> Result<()> {
    let at = Installation::start(Topology::AllInOne, "", "").await?;
    at.make_project("theirs").await?;
    at.make_user("alice", ADMIN_PASSWORD).await?;
    at.make_service_account("trainer", &[]).await?;
    at.bind("alice", "user:alice", "contributor", "default").await?;
    at.bind("trainer", "service-account:trainer", "contributor", "theirs")
        .await?;
    let token = at.make_token("trainer", None).await?.text;
    at.wait_status(&at.url, &at.admin, 200).await;
    let url = at.url.clone();
    tokio::task::spawn_blocking(move || {
        let password = [
            ("MLFLOW_TRACKING_USERNAME", "alice"),
            ("MLFLOW_TRACKING_PASSWORD", ADMIN_PASSWORD),
        ];
        let said = sees_experiments(&url, &password)?;
        anyhow::ensure!(said.contains("logged"), "{said}");
        let wrong = [
            ("MLFLOW_TRACKING_USERNAME", "alice"),
            ("MLFLOW_TRACKING_PASSWORD", "another"),
        ];
        let said = sees_experiments(&url, &wrong)?;
        anyhow::ensure!(said.contains("refused 401"), "{said}");
        // The token's role is in another project than the one that is asked without a workspace.
        let token = ("MLFLOW_TRACKING_TOKEN", token.as_str());
        let said = sees_experiments(&url, &[token])?;
        anyhow::ensure!(said.contains("refused 404"), "{said}");
        let said = sees_experiments(&url, &[token, ("MLFLOW_WORKSPACE", "theirs")])?;
        anyhow::ensure!(said.contains("logged"), "{said}");
        let said = sees_experiments(&url, &[])?;
        anyhow::ensure!(said.contains("refused 401"), "{said}");
        Ok(())
    })
    .await??;
    at.deployment.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn workspaces_users_and_roles_are_projects_identities_and_bindings() -> Result<()> {
    workspaces_users_and_roles_on(Topology::AllInOne, Engine::Sqlite).await
}

#[tokio::test(flavor = "multi_thread")]
async fn workspaces_users_and_roles_work_on_postgresql_in_separate_processes() -> Result<()> {
    workspaces_users_and_roles_on(Topology::Split, Engine::Postgres).await
}

async fn workspaces_users_and_roles_on(topology: Topology, engine: Engine) -> Result<()> {
    let at = Installation::start_on(topology, engine, "", "").await?;
    let (url, admin) = (at.url.clone(), at.admin.clone());
    let said = tokio::task::spawn_blocking(move || {
        let variables = [
            ("MLFLOW_TRACKING_URI", url.as_str()),
            ("MLFLOW_TRACKING_TOKEN", admin.as_str()),
        ];
        run_client("mlflow_workspaces.py", &[], &variables)
    })
    .await??;
    anyhow::ensure!(said.lines().count() > 30, "{said}");
    at.deployment.stop().await
}

/// Runs a script of the client against a fresh server.
async fn run(script: &str, topology: Topology, engine: Engine) -> Result<()> {
    run_at(script, Deployment::start(topology, engine).await?).await
}

async fn run_at(script: &str, deployment: Deployment) -> Result<()> {
    run_with(script, &[], deployment).await
}

async fn run_with(script: &str, arguments: &'static [&str], deployment: Deployment) -> Result<()> {
    let url = deployment.url().to_owned();
    let script = script.to_owned();
    let variables = move || run_client(&script, arguments, &[("MLFLOW_TRACKING_URI", &url)]);
    let output = tokio::task::spawn_blocking(variables).await??;
    anyhow::ensure!(!output.trim().is_empty(), "the script checked nothing");
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
async fn its_older_client_works_too() -> Result<()> {
    for script in ["mlflow_tracking.py", "mlflow_registry.py", "mlflow_files.py"] {
        let deployment = Deployment::start(Topology::AllInOne, Engine::Sqlite).await?;
        let url = deployment.url().to_owned();
        let asked = move || run_old_client(script, &[], &[("MLFLOW_TRACKING_URI", &url)]);
        let output = tokio::task::spawn_blocking(asked).await??;
        anyhow::ensure!(!output.trim().is_empty(), "{script} checked nothing");
        deployment.stop().await?;
    }
    Ok(())
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

#[tokio::test(flavor = "multi_thread")]
async fn logged_models_and_charts_work_on_sqlite() -> Result<()> {
    run("mlflow_logged_models.py", Topology::AllInOne, Engine::Sqlite).await
}

#[tokio::test(flavor = "multi_thread")]
async fn logged_models_and_charts_work_on_postgresql_in_separate_processes() -> Result<()> {
    run("mlflow_logged_models.py", Topology::Split, Engine::Postgres).await
}

#[tokio::test(flavor = "multi_thread")]
async fn training_is_logged_by_itself_on_sqlite() -> Result<()> {
    run("mlflow_autolog.py", Topology::AllInOne, Engine::Sqlite).await
}

#[tokio::test(flavor = "multi_thread")]
async fn training_is_logged_by_itself_on_postgresql_in_separate_processes() -> Result<()> {
    run("mlflow_autolog.py", Topology::Split, Engine::Postgres).await
}

/// The receiver of the script is on this machine.
const WEBHOOKS_INSIDE: &str = "[registry.webhooks]\nallow_http = true\nallow_private_addresses = true\n";

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_work_on_sqlite() -> Result<()> {
    let deployment = Deployment::start_with(Topology::AllInOne, Engine::Sqlite, WEBHOOKS_INSIDE).await?;
    run_at("mlflow_webhooks.py", deployment).await
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_work_on_postgresql_in_separate_processes() -> Result<()> {
    let deployment = Deployment::start_with(Topology::Split, Engine::Postgres, WEBHOOKS_INSIDE).await?;
    run_at("mlflow_webhooks.py", deployment).await
}

#[tokio::test(flavor = "multi_thread")]
async fn traces_work_on_sqlite() -> Result<()> {
    run("mlflow_traces.py", Topology::AllInOne, Engine::Sqlite).await
}

#[tokio::test(flavor = "multi_thread")]
async fn traces_work_on_postgresql_in_separate_processes() -> Result<()> {
    run("mlflow_traces.py", Topology::Split, Engine::Postgres).await
}

#[tokio::test(flavor = "multi_thread")]
async fn scorers_work_on_sqlite() -> Result<()> {
    run("mlflow_scorers.py", Topology::AllInOne, Engine::Sqlite).await
}

#[tokio::test(flavor = "multi_thread")]
async fn scorers_work_on_postgresql_in_separate_processes() -> Result<()> {
    run("mlflow_scorers.py", Topology::Split, Engine::Postgres).await
}

#[tokio::test(flavor = "multi_thread")]
async fn traces_are_found_on_sqlite() -> Result<()> {
    run("mlflow_trace_search.py", Topology::AllInOne, Engine::Sqlite).await
}

#[tokio::test(flavor = "multi_thread")]
async fn traces_are_found_on_postgresql_in_separate_processes() -> Result<()> {
    run("mlflow_trace_search.py", Topology::Split, Engine::Postgres).await
}

#[tokio::test(flavor = "multi_thread")]
async fn evaluation_datasets_work_on_sqlite() -> Result<()> {
    run("mlflow_evaluation.py", Topology::AllInOne, Engine::Sqlite).await
}

#[tokio::test(flavor = "multi_thread")]
async fn evaluation_datasets_work_on_postgresql_in_separate_processes() -> Result<()> {
    run("mlflow_evaluation.py", Topology::Split, Engine::Postgres).await
}

#[tokio::test(flavor = "multi_thread")]
async fn traces_are_measured_on_sqlite() -> Result<()> {
    run("mlflow_trace_metrics.py", Topology::AllInOne, Engine::Sqlite).await
}

#[tokio::test(flavor = "multi_thread")]
async fn traces_are_measured_on_postgresql_in_separate_processes() -> Result<()> {
    run("mlflow_trace_metrics.py", Topology::Split, Engine::Postgres).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_is_evaluated_on_sqlite() -> Result<()> {
    run("mlflow_evaluate.py", Topology::AllInOne, Engine::Sqlite).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_is_evaluated_on_postgresql_in_separate_processes() -> Result<()> {
    run("mlflow_evaluate.py", Topology::Split, Engine::Postgres).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_deleted_is_collected_on_sqlite() -> Result<()> {
    run("mlflow_gc.py", Topology::AllInOne, Engine::Sqlite).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_deleted_is_collected_on_postgresql_in_separate_processes() -> Result<()> {
    run("mlflow_gc.py", Topology::Split, Engine::Postgres).await
}

#[tokio::test(flavor = "multi_thread")]
async fn lineage_is_walked_on_sqlite() -> Result<()> {
    run("mlflow_lineage.py", Topology::AllInOne, Engine::Sqlite).await
}

#[tokio::test(flavor = "multi_thread")]
async fn lineage_is_walked_on_postgresql_in_separate_processes() -> Result<()> {
    run("mlflow_lineage.py", Topology::Split, Engine::Postgres).await
}

/// What has content, with it on S3 and its tables on PostgreSQL.
#[tokio::test(flavor = "multi_thread")]
async fn all_that_has_content_works_on_s3_and_postgresql() -> Result<()> {
    let objects = ObjectStore::start().await?;
    let scripts = [
        "mlflow_files.py",
        "mlflow_tracking.py",
        "mlflow_logged_models.py",
        "mlflow_registry.py",
        "mlflow_autolog.py",
        "mlflow_traces.py",
        "mlflow_evaluation.py",
        "mlflow_lineage.py",
        "mlflow_gc.py",
    ];
    for script in scripts {
        // Files are fetched from the store itself where the client asks for that.
        let arguments = if script == "mlflow_files.py" {
            ["--presigned"].as_slice()
        } else {
            &[]
        };
        let deployment = Deployment::start_with(Topology::AllInOne, Engine::Postgres, &objects.settings()).await?;
        run_with(script, arguments, deployment)
            .await
            .with_context(|| script.to_owned())?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn artifacts_work_on_s3_and_sealed() -> Result<()> {
    let objects = ObjectStore::start().await?;
    let keys = tempfile::NamedTempFile::new()?;
    std::fs::write(&keys, format!("{}\n", "5a".repeat(32)))?;
    let sealed = format!("encryption.key_file = '{}'\n", keys.path().display());
    // What is sealed is never fetched from the store itself.
    let direct = ["--presigned"].as_slice();
    for (settings, arguments) in [(String::new(), direct), (sealed, &[])] {
        let settings = format!("{}{settings}", objects.settings());
        let deployment = Deployment::start_with(Topology::AllInOne, Engine::Sqlite, &settings).await?;
        run_with("mlflow_files.py", arguments, deployment).await?;
    }
    Ok(())
}
