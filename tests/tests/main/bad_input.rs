//! What is refused: each with the thing, the remedy and the right exit code, and nothing half written.

use std::{
    fmt::Write as _,
    fs,
    net::TcpListener,
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use modelyard_flights::{Server, ServerOptions};
use modelyard_testkit::wait;
use serde_json::{Value, json};

use crate::deployment::{Deployment, Engine, Topology, binary, check_refused, modelyard, use_tls};

/// How long a server that cannot start may take to say so.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(30);

const PATIENCE: Duration = Duration::from_mins(1);

const LISTEN: [&str; 4] = ["--listen", "127.0.0.1:0", "--internal-listen", "127.0.0.1:0"];

async fn server() -> Result<Deployment> {
    Deployment::start(Topology::AllInOne, Engine::Sqlite).await
}

fn write(folder: &Path, name: &str, content: impl AsRef<[u8]>) -> Result<String> {
    let file = folder.join(name);
    fs::write(&file, content)?;
    Ok(file.display().to_string())
}

/// Checks that the server has no thing of this name, by `modelyard get`.
fn check_absent(deployment: &Deployment, kind: &str, name: &str) -> Result<()> {
    let listed = deployment.modelyard(&["get", kind, "-o", "json"])?;
    ensure!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    let text = String::from_utf8_lossy(&listed.stdout);
    ensure!(!text.contains(name), "`{name}` is half written: {text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dataset_that_is_neither_parquet_nor_csv_is_refused_by_name() -> Result<()> {
    let deployment = server().await?;
    let text = write(deployment.folder(), "notes.txt", "\u{0}\u{1}just some notes")?;
    let torn = write(deployment.folder(), "torn.parquet", "PAR1 and then nothing of a footer")?;
    for (file, name) in [(&text, "notes.txt"), (&torn, "torn.parquet")] {
        let output = deployment.modelyard(&["data", "push", "odd", file])?;
        check_refused(&output, 1, &[name, "neither Parquet nor CSV"])?;
    }
    let missing = deployment.modelyard(&["data", "push", "odd", "/nowhere/flights.csv"])?;
    check_refused(&missing, 1, &["/nowhere/flights.csv"])?;
    check_absent(&deployment, "datasets", "odd")?;
    deployment.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_the_data_lacks_fails_the_run_by_name_and_registers_nothing() -> Result<()> {
    let deployment = server().await?;
    let mut csv = String::from("day,size,late\n");
    for day in 1..=200 {
        writeln!(
            csv,
            "2013-01-{:02}T{:02}:00:00Z,{day},{}",
            day % 28 + 1,
            day % 24,
            day % 2
        )?;
    }
    let file = write(deployment.folder(), "small.csv", csv)?;
    let pushed = deployment.modelyard(&["data", "push", "small", &file])?;
    ensure!(pushed.status.success(), "{}", String::from_utf8_lossy(&pushed.stderr));
    let pipeline = "kind: Pipeline\nname: typo\nspec:\n  steps:\n    - name: data\n      op: dataset\n      with: { dataset: small@latest }\n    - name: train\n      op: train\n      with: { dataset: '{{ steps.data.outputs }}', target: lateness, time_column: day, holdout: 2d }\n    - name: register\n      op: register\n      with: { candidate: '{{ steps.train.outputs }}', model: typo }\n";
    let file = write(deployment.folder(), "typo.yaml", pipeline)?;
    let output = deployment.modelyard(&["run", &file, "--wait"])?;
    check_refused(&output, 1, &["lateness", "typo"])?;
    check_absent(&deployment, "models", "typo")?;
    deployment.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_with_a_cycle_or_an_unknown_op_is_refused_whole() -> Result<()> {
    let deployment = server().await?;
    let cycle = "kind: Pipeline\nname: ring\nspec:\n  steps:\n    - { name: one, op: value, needs: [two], with: { value: 1 } }\n    - { name: two, op: value, needs: [one], with: { value: 2 } }\n";
    let unknown = "kind: Pipeline\nname: magic\nspec:\n  steps:\n    - { name: one, op: conjure, with: {} }\n";
    for (name, text, words) in [
        ("ring", cycle, ["cycle", "one", "two"]),
        ("magic", unknown, ["conjure", "one", "train"]),
    ] {
        let file = write(deployment.folder(), &format!("{name}.yaml"), text)?;
        let output = deployment.modelyard(&["apply", "-f", &file])?;
        check_refused(&output, 1, &words)?;
        check_absent(&deployment, "pipelines", name)?;
    }
    deployment.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_no_onnx_model_is_not_registered() -> Result<()> {
    let deployment = server().await?;
    let file = write(deployment.folder(), "junk.onnx", [0xff_u8; 4096])?;
    let output = deployment.modelyard(&["models", "import", &file, "--name", "junk"])?;
    check_refused(&output, 1, &["not an ONNX model", "export"])?;
    check_absent(&deployment, "models", "junk")?;
    deployment.stop().await
}

#[test]
fn wrong_usage_ends_with_exit_code_2() -> Result<()> {
    check_refused(
        &modelyard(&["serve", "--data-dri", "/tmp/x"], &[])?,
        2,
        &["--data-dri", "--data-dir"],
    )?;
    check_refused(&modelyard(&["get", "endpiont"], &[])?, 2, &["endpiont", "endpoints"])?;
    let unknown = modelyard(&["serve"], &[("MODELYARD__GATEWAY__FLUSH_INTERVALL", "1s")])?;
    check_refused(&unknown, 2, &["flush_intervall"])?;
    Ok(())
}

#[test]
fn a_command_without_a_server_says_how_to_start_one() -> Result<()> {
    let output = modelyard(&["get", "endpoints"], &[("MODELYARD_URL", "http://127.0.0.1:9")])?;
    check_refused(&output, 1, &["127.0.0.1:9", "modelyard serve"])
}

#[test]
fn a_port_in_use_is_named_and_the_folder_stays_usable() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    let mut arguments = LISTEN;
    arguments[1] = &address;
    check_refused(&serve(folder.path(), &arguments, &[])?, 1, &[&address, "--listen"])?;
    let mut arguments = LISTEN;
    arguments[3] = &address;
    check_refused(
        &serve(folder.path(), &arguments, &[])?,
        1,
        &[&address, "--internal-listen"],
    )
}

#[test]
fn a_folder_of_a_newer_version_or_of_something_else_is_left_alone() -> Result<()> {
    let newer = tempfile::tempdir()?;
    let marker = r#"{"format": 99, "node": "node-of-the-future"}"#;
    write(newer.path(), "modelyard.json", marker)?;
    check_refused(
        &serve(newer.path(), &LISTEN, &[])?,
        1,
        &["newer version", "99", "--data-dir"],
    )?;
    ensure!(
        fs::read_to_string(newer.path().join("modelyard.json"))? == marker,
        "the marker was changed"
    );
    ensure!(
        !newer.path().join("registry.db").exists(),
        "a database was made in a folder that was refused"
    );

    let foreign = tempfile::tempdir()?;
    write(foreign.path(), "thesis.tex", "\\documentclass{article}")?;
    check_refused(&serve(foreign.path(), &LISTEN, &[])?, 1, &["thesis.tex", "--data-dir"])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_another_server_holds_is_refused() -> Result<()> {
    let deployment = server().await?;
    let held = deployment.folder().join("registry-orchestrator-monitoring-gateway");
    ensure!(held.is_dir());
    let output = serve(&held, &LISTEN, &[])?;
    check_refused(&output, 1, &["another server", "--data-dir"])?;
    // The one that holds it goes on.
    check_absent(&deployment, "models", "anything")?;
    deployment.stop().await
}

#[test]
fn a_missing_onnx_runtime_is_named_with_the_way_to_get_it() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let output = serve(
        folder.path(),
        &LISTEN,
        &[("ORT_DYLIB_PATH", "/nowhere/libonnxruntime.so")],
    )?;
    check_refused(
        &output,
        1,
        &["/nowhere/libonnxruntime.so", "cargo xtask setup", "ORT_DYLIB_PATH"],
    )
}

/// The admin is made once: whoever mends what failed must have the token already.
#[test]
fn a_first_start_that_fails_after_the_admin_was_made_still_tells_the_token() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let environment = [
        ("ORT_DYLIB_PATH", "/nowhere/libonnxruntime.so"),
        ("MODELYARD__AUTH__SIGN_IN", "true"),
    ];
    let failed = serve(folder.path(), &LISTEN, &environment)?;
    check_refused(&failed, 1, &["/nowhere/libonnxruntime.so"])?;
    let printed = String::from_utf8_lossy(&failed.stdout);
    ensure!(printed.contains("mdyp_"), "the token is not told: {printed}");
    let again = serve(folder.path(), &LISTEN, &environment)?;
    let printed = String::from_utf8_lossy(&again.stdout);
    ensure!(!printed.contains("mdyp_"), "a second admin was made: {printed}");
    Ok(())
}

#[test]
fn an_address_that_others_can_reach_is_refused_without_sign_in() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let arguments = ["--listen", "0.0.0.0:0", "--internal-listen", "127.0.0.1:0"];
    check_refused(&serve(folder.path(), &arguments, &[])?, 1, &["0.0.0.0", "127.0.0.1"])
}

/// A data folder on a disk of its own, which is filled to the last byte and freed again.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_named_loses_nothing_and_heals_when_there_is_space() -> Result<()> {
    const DISK_MIB: usize = 48;
    use_tls();
    let folder = tempfile::tempdir()?;
    let disk = folder.path().join("disk");
    fs::create_dir(&disk)?;
    let script = format!(r#"mount -t tmpfs -o size={DISK_MIB}m tmpfs "$0" && exec "$@""#);
    let wrapper = [
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        &script,
        &disk.display().to_string(),
    ];
    let mut server = Server::start(ServerOptions {
        binary: binary(),
        wrapper: wrapper.map(str::to_owned).to_vec(),
        data_dir: disk.join("data"),
        log: folder.path().join("server.log"),
        arguments: LISTEN.map(str::to_owned).to_vec(),
        environment: Vec::new(),
    })
    .await
    .context("a server on a small disk cannot be started: this test needs `unshare` and the right to mount a tmpfs")?;
    server.wait_ready().await?;
    let url = server.addresses().public.clone();
    let command = |arguments: &[&str]| modelyard(arguments, &[("MODELYARD_URL", &url)]);

    let kept = write(folder.path(), "kept.csv", "a,b\n1,2\n3,4\n")?;
    let pushed = command(&["data", "push", "kept", &kept])?;
    ensure!(pushed.status.success(), "{}", String::from_utf8_lossy(&pushed.stderr));

    // The disk exists for that process alone; this is the way in.
    let filler = server.data_dir_seen_from_here().with_file_name("filler");
    fill(&filler)?;
    let mut lines = String::from("a,b\n");
    for number in 0..200_000 {
        writeln!(lines, "{number},{}", number * 7)?;
    }
    let large = write(folder.path(), "large.csv", lines)?;
    let refused = command(&["data", "push", "large", &large])?;
    check_refused(&refused, 1, &["full"])?;
    ensure!(
        server.ended()?.is_none(),
        "the server ended: {}",
        server.last_log_lines()
    );
    let read = command(&["get", "datasets", "-o", "json"])?;
    ensure!(
        read.status.success(),
        "reading fails on a full disk: {}",
        String::from_utf8_lossy(&read.stderr)
    );
    let text = String::from_utf8_lossy(&read.stdout);
    ensure!(text.contains("kept") && !text.contains("large"), "{text}");

    fs::remove_file(&filler)?;
    wait::until("the push succeeds on the freed disk", PATIENCE, || async {
        let again = command(&["data", "push", "large", &large]).ok()?;
        again.status.success().then_some(())
    })
    .await;
    let versions: Value = reqwest::Client::builder()
        .timeout(PATIENCE)
        .build()?
        .get(format!("{url}/api/v1/projects/default/datasets/large/versions"))
        .send()
        .await?
        .json()
        .await?;
    let rows = versions.pointer("/items/0/rows").cloned();
    ensure!(rows == Some(json!(200_000)), "the version is not whole: {versions}");
    server.stop().await
}

/// Writes until the disk is full.
fn fill(file: &Path) -> Result<()> {
    use std::io::Write as _;
    let mut file = fs::File::create(file)?;
    let zeros = vec![0; 1 << 16];
    let mut chunk: &[u8] = &zeros;
    while !chunk.is_empty() {
        if file.write_all(chunk).is_err() {
            chunk = chunk.get(..chunk.len() / 2).unwrap_or_default();
        }
    }
    Ok(())
}

/// Runs `modelyard serve`, which must end by itself.
fn serve(data_dir: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Result<Output> {
    let mut child = Command::new(binary())
        .arg("serve")
        .arg("--data-dir")
        .arg(data_dir)
        .args(arguments)
        .envs(environment.iter().copied())
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("`{}` cannot be run", binary().display()))?;
    let deadline = Instant::now() + REFUSAL_PATIENCE;
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            child.kill()?;
            let output = child.wait_with_output()?;
            bail!("the server started: {}", String::from_utf8_lossy(&output.stderr));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(child.wait_with_output()?)
}
