//! Servers of others that ours is measured beside, each in a process group of its own.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep},
};

use crate::load::Subject;

/// How long such a server may take until it answers.
const START_PATIENCE: Duration = Duration::from_mins(2);
/// How often it is asked until then.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Where a server can listen.
pub fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// A server with its workers, killed when this is dropped.
pub struct PeerServer {
    process: Child,
    log: PathBuf,
    /// The server under load.
    pub subject: Subject,
}

impl PeerServer {
    /// Starts a program that listens at an address, with its output in a file, and waits until it answers.
    pub async fn start(
        command: &mut Command,
        address: SocketAddr,
        log: &Path,
        answers: impl AsyncFn(SocketAddr) -> bool,
    ) -> Result<Self> {
        let output = File::create(log)?;
        let process = command
            .stdout(output.try_clone()?)
            .stderr(output)
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()
            .with_context(|| format!("{} cannot be started", command.as_std().get_program().display()))?;
        let pid = process.id().context("the server has ended")?;
        let mut server = Self {
            process,
            log: log.to_owned(),
            subject: Subject { address, pid },
        };
        server.wait(answers).await?;
        Ok(server)
    }

    async fn wait(&mut self, answers: impl AsyncFn(SocketAddr) -> bool) -> Result<()> {
        let deadline = Instant::now() + START_PATIENCE;
        while !answers(self.subject.address).await {
            if self.process.try_wait()?.is_some() || Instant::now() > deadline {
                bail!("the server does not answer: {}", fs::read_to_string(&self.log)?);
            }
            sleep(LOOK_INTERVAL).await;
        }
        Ok(())
    }

    /// Ends it and its workers.
    pub async fn stop(mut self) -> Result<()> {
        self.kill();
        self.process.wait().await?;
        Ok(())
    }

    fn kill(&self) {
        if let Some(group) = Pid::from_raw(self.subject.pid.cast_signed()) {
            // It may have ended by itself.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

impl Drop for PeerServer {
    fn drop(&mut self) {
        // Once its end was waited for, the group may be another's.
        if self.process.id().is_some() {
            self.kill();
        }
    }
}
