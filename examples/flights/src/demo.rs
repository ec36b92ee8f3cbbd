//! `flights demo`: a server on an empty folder, the main job on it, and the closing table.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use modelyard_flights::{MainJob, Report, Server, ServerOptions, run_main_job};

use crate::{DemoArguments, Format, complain, example_folder, modelyard, print, terminal::Terminal, told_to_end};

/// The predictions are handed over often, so that each month waits less.
const FLUSH_INTERVAL: (&str, &str) = ("MODELYARD__GATEWAY__FLUSH_INTERVAL", "1s");

/// Runs the demo.
pub async fn run(arguments: &DemoArguments) -> Result<ExitCode> {
    let folder = DemoFolder::new(arguments.data_dir.as_deref())?;
    let terminal = Terminal::new();
    let mut server = start_server(&folder).await?;
    let job = MainJob {
        url: server.addresses().public.clone(),
        grpc_url: server.addresses().public.clone(),
        binary: server.options().binary.clone(),
        folder: arguments.resources.clone().unwrap_or_else(example_folder),
        months: usize::from(arguments.months),
        sample: arguments.sample,
        concurrency: usize::from(arguments.concurrency),
        // Nobody ends the server here: a request that meets none has failed.
        away: Duration::ZERO,
    };
    let result = tokio::select! {
        result = run_main_job(&job, &terminal) => result,
        () = told_to_end()? => Err(anyhow!("interrupted; the server is stopped, its folder stays: {}", folder.path.display())),
    };
    terminal.finish();
    let report = match result {
        Ok(report) => report,
        Err(error) => {
            let log = server.last_log_lines();
            server.kill()?;
            return Err(error.context(format!(
                "the main job did not come to its end; the server's log says:\n{log}\nerror"
            )));
        }
    };
    show(&report, arguments.output)?;
    let shortfalls = report.shortfalls();
    for shortfall in &shortfalls {
        complain(&format!("warning: {shortfall}"));
    }
    if arguments.once {
        server.stop().await?;
        folder.remove_if_own(shortfalls.is_empty());
    } else {
        farewell(&server, &folder);
        server.leave();
    }
    Ok(if shortfalls.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn start_server(folder: &DemoFolder) -> Result<Server> {
    let mut server = Server::start(ServerOptions {
        binary: modelyard()?,
        wrapper: Vec::new(),
        data_dir: folder.path.join("data"),
        log: folder.path.join("server.log"),
        arguments: ["--listen", "127.0.0.1:0", "--internal-listen", "127.0.0.1:0"]
            .map(str::to_owned)
            .to_vec(),
        environment: vec![(FLUSH_INTERVAL.0.to_owned(), FLUSH_INTERVAL.1.to_owned())],
    })
    .await?;
    server.wait_ready().await?;
    complain(&format!(
        "a server runs at {} on the folder {}",
        server.addresses().public,
        folder.path.display()
    ));
    Ok(server)
}

fn show(report: &Report, format: Format) -> Result<()> {
    if format == Format::Json {
        return print(&serde_json::to_string_pretty(report)?);
    }
    print(&report.table())?;
    print(&report.closing_line())?;
    print("")?;
    print("where one of the predictions came from, by `modelyard describe prediction ID`:")?;
    print(&report.prediction)?;
    let parts: Vec<String> = report
        .parts
        .iter()
        .map(|(part, took)| format!("{part} {:.0} s", took.as_secs_f64()))
        .collect();
    complain(&format!("time: {}", parts.join(", ")));
    Ok(())
}

fn farewell(server: &Server, folder: &DemoFolder) {
    let addresses = server.addresses();
    complain("");
    complain(&format!("the server runs on: {}", addresses.public));
    complain(&format!(
        "use it with:         export MODELYARD_URL={}",
        addresses.public
    ));
    complain(&format!("stop it with:        kill {}", addresses.pid));
    complain(&format!("its folder:          {}", folder.path.display()));
}

/// The folder with the server's data and its log.
struct DemoFolder {
    path: PathBuf,
    /// Made by the demo among the temporary files, under a new name.
    is_own: bool,
}

impl DemoFolder {
    fn new(chosen: Option<&Path>) -> Result<Self> {
        let Some(path) = chosen else {
            let folder = tempfile::Builder::new().prefix("modelyard-demo-").tempdir();
            let folder =
                folder.context("no folder can be made among the temporary files: choose one with --data-dir")?;
            return Ok(Self {
                path: folder.keep(),
                is_own: true,
            });
        };
        fs::create_dir_all(path).with_context(|| format!("the folder `{}` cannot be made", path.display()))?;
        let path = path.canonicalize()?;
        if fs::read_dir(&path)?.next().is_some() {
            bail!(
                "the folder `{}` is not empty: the demo begins with nothing; remove it, or choose another with --data-dir",
                path.display()
            );
        }
        Ok(Self { path, is_own: false })
    }

    /// Removes a folder that nobody asked for; after a failure it stays, for its log.
    fn remove_if_own(&self, is_fine: bool) {
        if self.is_own && is_fine {
            if let Err(error) = fs::remove_dir_all(&self.path) {
                complain(&format!("warning: the folder {} stays: {error}", self.path.display()));
            }
        } else {
            complain(&format!("the server's data and log stay in {}", self.path.display()));
        }
    }
}
