//! Models on a device: ONNX Runtime's own providers for CUDA and TensorRT run them, on a stand-in for NVIDIA's libraries.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use modelyard_testkit::wait::until;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{
    clients::run_client,
    deployment::{Deployment, Engine, Topology},
    permissions::installation::PATIENCE,
};

/// The variables that name ONNX Runtime's library with what uses devices, and the folder with what stands in for NVIDIA's.
const LIBRARY: &str = "TEST_ONNXRUNTIME_GPU";
const DEVICE: &str = "TEST_DEVICE";

/// The largest batch of an endpoint that does not say otherwise.
const LARGEST_BATCH: i64 = 64;

/// Room for what an outlier takes, and not for what twice its rows would.
const DEVICE_BYTES: &str = "83886080";
const OUTLIERS_ROWS: usize = 1 << 21;

/// A server with a device, and what the device has done.
struct Scene {
    deployment: Deployment,
    log: PathBuf,
    folder: tempfile::TempDir,
}

impl Scene {
    /// `device` are variables of the stand-in's.
    async fn start(provider: &str, device: &[(&str, &str)]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let log = folder.path().join("log");
        let named = |variable| {
            env::var(variable).with_context(|| format!("{variable} is not set: run the tests by `cargo xtask test`"))
        };
        let log_name = log.display().to_string();
        let (library, libraries) = (named(LIBRARY)?, named(DEVICE)?);
        let variables = [
            ("ORT_DYLIB_PATH", &*library),
            ("LD_LIBRARY_PATH", &libraries),
            ("CUDA_STAND_IN_LOG", &log_name),
        ];
        let variables = variables.iter().chain(device);
        let environment: Vec<_> = variables
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let extra = format!("gateway.accelerator = {{ provider = '{provider}' }}\n");
        let deployment = Deployment::start_in(Topology::AllInOne, Engine::Sqlite, &extra, &environment).await?;
        run_client("onnx_models.py", &[&folder.path().display().to_string()], &[])?;
        Ok(Self {
            deployment,
            log,
            folder,
        })
    }

    /// Registers one of the models and declares an endpoint of its name.
    fn deploy(&self, name: &str, further: &[&str]) -> Result<()> {
        let file = self.folder.path().join(format!("{name}.onnx")).display().to_string();
        let model = format!("{name}@champion");
        self.deployment
            .succeed(&["models", "import", &file, "--name", name, "--alias", "champion"])?;
        let arguments = [&["deploy", name, "--model", &model], further].concat();
        self.deployment.succeed(&arguments).map(drop)
    }

    /// The status and the body of an answer.
    async fn ask(&self, name: &str, inputs: &Value) -> Result<(u16, Value)> {
        ask(&self.deployment, name, inputs).await
    }

    /// What the device did, in words of a line each.
    fn done(&self) -> Result<Vec<Vec<String>>> {
        let text = fs::read_to_string(&self.log)?;
        let words = |line: &str| line.split(' ').map(str::to_owned).collect();
        Ok(text.lines().map(words).collect())
    }

    /// The numbers behind a word.
    fn numbers(&self, word: &str) -> Result<Vec<Vec<i64>>> {
        let lines = self.done()?;
        let named = lines.iter().filter(|line| line[0] == word);
        let numbers = |line: &Vec<String>| line[1..].iter().map(|number| Ok(number.parse()?)).collect();
        named.map(numbers).collect()
    }

    /// Checks that since there were so many lines the device was asked for something, and by none of the threads that serve everybody.
    fn check_threads(&self, lines: usize) -> Result<()> {
        let done = self.done()?;
        let mut threads = done.iter().skip(lines).filter(|line| line[0] == "thread").peekable();
        ensure!(
            threads.peek().is_some() && threads.all(|line| line[1] == "predict"),
            "{done:?}"
        );
        Ok(())
    }

    /// The device's memory that is taken, in bytes.
    fn taken(&self) -> Result<i64> {
        let sum = |word| -> Result<i64> { Ok(self.numbers(word)?.iter().map(|bytes| bytes[0]).sum()) };
        Ok(sum("take")? - sum("give")?)
    }
}

async fn ask(deployment: &Deployment, name: &str, inputs: &Value) -> Result<(u16, Value)> {
    let client = reqwest::Client::builder().timeout(PATIENCE).build()?;
    let url = format!("{}/v2/models/{name}/infer", deployment.url());
    let answer = client.post(url).json(&json!({ "inputs": inputs })).send().await?;
    Ok((answer.status().as_u16(), answer.json().await?))
}

/// The one input of the models of three numbers a row.
fn rows(numbers: &[f32]) -> Value {
    json!([{"name": "x", "datatype": "FP32", "shape": [numbers.len() / 3, 3], "data": numbers}])
}

/// The status of the answer to so many rows of ones, which travel as bytes both ways, and its body.
async fn ask_for_many(deployment: &Deployment, name: &str, rows: usize) -> Result<(u16, Vec<u8>)> {
    let bytes = rows * 3 * size_of::<f32>();
    let binary = json!({"binary_data_size": bytes});
    let input = json!({"name": "x", "datatype": "FP32", "shape": [rows, 3], "parameters": binary});
    let header = json!({"inputs": [input], "parameters": {"binary_data_output": true}}).to_string();
    let body = [header.as_bytes(), &1.0_f32.to_le_bytes().repeat(rows * 3)].concat();
    let client = reqwest::Client::builder().timeout(PATIENCE).build()?;
    let url = format!("{}/v2/models/{name}/infer", deployment.url());
    let request = client.post(url).header("inference-header-content-length", header.len());
    let answer = request.body(body).send().await?;
    Ok((answer.status().as_u16(), answer.bytes().await?.to_vec()))
}

fn data(answer: &Value) -> &Value {
    &answer["outputs"][0]["data"]
}

#[tokio::test(flavor = "multi_thread")]
async fn cuda_runs_models_on_a_device() -> Result<()> {
    const CALLERS: u8 = 32;
    let scene = Scene::start("cuda", &[]).await?;
    scene.deploy("product", &["--wait"])?;
    // The largest batch was run before anybody asked.
    let largest = [LARGEST_BATCH, 2, 3];
    ensure!(
        scene.numbers("multiply")?.contains(&largest.to_vec()),
        "{:?}",
        scene.done()?
    );

    let warmed = scene.done()?.len();
    let mut calls = JoinSet::new();
    for caller in 0..CALLERS {
        let url = scene.deployment.url().to_owned();
        let number = f32::from(caller);
        let body = json!({"inputs": rows(&[number, 2.0, 3.0])});
        calls.spawn(async move {
            let client = reqwest::Client::builder().timeout(PATIENCE).build()?;
            let sent = client.post(format!("{url}/v2/models/product/infer")).json(&body).send();
            let answer: Value = sent.await?.json().await?;
            ensure!(*data(&answer) == json!([number + 3.0, 320.0]), "{answer}");
            Ok(())
        });
    }
    while let Some(answered) = calls.join_next().await {
        answered??;
    }
    scene.check_threads(warmed)?;
    let wrong = json!([{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}]);
    let (status, answer) = scene.ask("product", &wrong).await?;
    ensure!(status == 400, "{answer}");

    // All datatypes, texts among them, which stay with the processors.
    scene.deploy("identity", &["--wait"])?;
    let values = |datatype: &str| match datatype {
        "BOOL" => json!([true, false]),
        "BYTES" => json!(["one", "another"]),
        _ => json!([1, 2]),
    };
    let datatypes = [
        "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "BF16", "FP32",
        "FP64", "BYTES",
    ];
    let input = |datatype: &&str| json!({"name": format!("in_{datatype}"), "datatype": datatype, "shape": [1, 2], "data": values(datatype)});
    let inputs: Vec<Value> = datatypes.iter().map(input).collect();
    let (status, answer) = scene.ask("identity", &json!(inputs)).await?;
    ensure!(status == 200, "{answer}");
    for output in answer["outputs"].as_array().context("no outputs")? {
        let datatype = output["datatype"].as_str().unwrap_or_default();
        let same = match &values(datatype) {
            Value::Array(numbers) if numbers[0].is_number() => output["data"]
                .as_array()
                .is_some_and(|data| data.iter().map(Value::as_f64).eq(numbers.iter().map(Value::as_f64))),
            other => output["data"] == *other,
        };
        ensure!(same, "{output}");
    }
    scene.deployment.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_outlier_took_of_a_devices_memory_is_given_back() -> Result<()> {
    let scene = Scene::start("cuda", &[("CUDA_STAND_IN_BYTES", DEVICE_BYTES)]).await?;
    scene.deploy("product", &["--wait"])?;
    let small = rows(&[1.0, 2.0, 3.0]);
    let before = scene.taken()?;
    ensure!(before > 0, "the device has nothing of the model");

    let (status, answer) = ask_for_many(&scene.deployment, "product", OUTLIERS_ROWS).await?;
    ensure!(status == 200 && answer.ends_with(&110.0_f32.to_le_bytes()), "{status}");
    let most = scene.numbers("take")?.into_iter().flatten().max().unwrap_or(0);
    ensure!(most > before, "it took no more than {most}");
    until("the memory is given back", PATIENCE, || async {
        let (status, _) = scene.ask("product", &small).await.ok()?;
        assert_eq!(status, 200);
        (scene.taken().ok()? <= before).then_some(())
    })
    .await;

    // More than there is: its own request fails, as a fault of the server's, and no other.
    let (status, _) = ask_for_many(&scene.deployment, "product", 2 * OUTLIERS_ROWS).await?;
    let logged = scene.deployment.logs();
    ensure!(
        status == 500 && logged.contains("Failed to allocate memory"),
        "{status}: {logged}"
    );
    let (status, answer) = scene.ask("product", &small).await?;
    ensure!(status == 200 && *data(&answer) == json!([4.0, 320.0]), "{answer}");
    scene.deployment.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_not_there_is_told_of() -> Result<()> {
    for provider in ["cuda", "tensorrt"] {
        let scene = Scene::start(provider, &[("CUDA_STAND_IN_DEVICES", "0")]).await?;
        let told = scene
            .deploy("product", &["--wait"])
            .map_or_else(|error| error.to_string(), |()| String::new());
        ensure!(
            told.contains("no CUDA-capable device is detected") && told.contains("driver"),
            "{told}"
        );
        // Nobody wants to know where in ONNX Runtime's sources that was found.
        ensure!(!told.contains("onnxruntime_src"), "{told}");
        // It is not run by the processors instead.
        let (status, answer) = scene.ask("product", &rows(&[1.0, 2.0, 3.0])).await?;
        ensure!(status == 503, "{status}: {answer}");
        scene.deployment.stop().await?;
    }
    Ok(())
}

/// The files below a folder with this ending.
fn files(folder: &Path, ending: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path, ending)?);
        } else if path.extension().is_some_and(|extension| extension == ending) {
            found.push(path);
        }
    }
    Ok(found)
}

#[tokio::test(flavor = "multi_thread")]
async fn tensorrt_builds_engines_once_and_leaves_the_rest_to_cuda() -> Result<()> {
    let mut scene = Scene::start("tensorrt", &[]).await?;
    scene.deploy("product", &["--wait"])?;
    let small = rows(&[1.0, 2.0, 3.0]);
    let (_, answer) = scene.ask("product", &small).await?;
    ensure!(*data(&answer) == json!([4.0, 320.0]), "{answer}");
    ensure!(scene.numbers("multiply")?.contains(&vec![1, 2, 3]) && scene.numbers("double")?.is_empty());

    // For all sizes of batches, before anybody asked.
    scene.deploy("doubled", &["--wait"])?;
    let built = scene.numbers("build")?;
    ensure!(
        built == [[LARGEST_BATCH, LARGEST_BATCH], [1, LARGEST_BATCH]],
        "{built:?}"
    );
    let (_, answer) = scene.ask("doubled", &small).await?;
    ensure!(*data(&answer) == json!([2.0, 4.0, 6.0]), "{answer}");
    let (_, answer) = scene.ask("doubled", &rows(&[1.0; 60])).await?;
    ensure!(*data(&answer) == json!(vec![2.0; 60]), "{answer}");
    ensure!(scene.numbers("double")?.contains(&vec![20]) && scene.numbers("build")? == built);
    // A larger request has one built for it, while others are served.
    let before = scene.done()?.len();
    let (_, answer) = scene.ask("doubled", &rows(&[1.0; 300])).await?;
    ensure!(*data(&answer) == json!(vec![2.0; 300]), "{answer}");
    ensure!(
        scene.numbers("build")?.last() == Some(&vec![1, 100]),
        "{:?}",
        scene.done()?
    );
    scene.check_threads(before)?;

    let engines = files(scene.deployment.folder(), "engine")?;
    ensure!(engines.len() == 1, "{engines:?}");
    // Kept as they were; half of one, as a machine may leave it that loses power; and one that does not fit what is said of it.
    for damaged in [None, Some("an engine for"), Some("an engine for 1 to 2 rows.")] {
        scene.deployment.kill(0)?;
        fs::remove_file(&scene.log)?;
        if let Some(content) = damaged {
            fs::write(&engines[0], content)?;
        }
        scene.deployment.restart(0).await?;
        until("it serves", PATIENCE, || async {
            let (status, _) = scene.ask("doubled", &small).await.ok()?;
            (status == 200).then_some(())
        })
        .await;
        let (status, answer) = scene.ask("doubled", &rows(&[1.0; 60])).await?;
        ensure!(status == 200, "{damaged:?}: {answer}");
        let loaded = scene.numbers("load")?;
        ensure!(
            loaded.last() == Some(&vec![1, LARGEST_BATCH]),
            "{damaged:?}: {loaded:?}"
        );
        let built = scene.numbers("build")?;
        ensure!(built.is_empty() == damaged.is_none(), "{damaged:?}: {built:?}");
    }
    scene.deployment.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn engines_are_kept_while_there_is_no_device() -> Result<()> {
    let mut scene = Scene::start("tensorrt", &[]).await?;
    scene.deploy("doubled", &["--wait"])?;
    let engines = files(scene.deployment.folder(), "engine")?;
    for devices in ["0", "1"] {
        scene.deployment.kill(0)?;
        fs::remove_file(&scene.log)?;
        scene.deployment.set_variable(0, "CUDA_STAND_IN_DEVICES", devices)?;
        scene.deployment.restart(0).await?;
        let wanted = if devices == "0" { 503 } else { 200 };
        until("it answers as it should", PATIENCE, || async {
            let (status, _) = scene.ask("doubled", &rows(&[1.0, 2.0, 3.0])).await.ok()?;
            (status == wanted).then_some(())
        })
        .await;
        ensure!(files(scene.deployment.folder(), "engine")? == engines);
    }
    ensure!(scene.numbers("build")?.is_empty(), "{:?}", scene.done()?);
    scene.deployment.stop().await
}
