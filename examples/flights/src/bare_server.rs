//! Bare handlers in processes of their own, that servers are measured beside.

use std::{
    net::{Ipv4Addr, SocketAddr},
    process::Stdio,
};

use anyhow::{Context, Result};
use axum::Router;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpListener,
    process::{Child, Command},
};

use crate::load::Subject;

/// A bare handler in a process of its own, ended when this is dropped.
pub struct BareServer {
    /// Where it listens, and its process.
    pub subject: Subject,
    _process: Child,
}

impl BareServer {
    /// Starts this program with the arguments that make it one.
    pub async fn start(arguments: &[&str]) -> Result<Self> {
        let program = std::env::current_exe().context("this program has no path")?;
        let mut process = Command::new(program)
            .args(arguments)
            .stdout(Stdio::piped())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("the bare handler cannot be started")?;
        let output = process.stdout.take().context("the bare handler has no output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).await?;
        Ok(Self {
            subject: Subject {
                address: line.trim().parse().context("the bare handler names no address")?,
                pid: process.id().context("the bare handler has ended")?,
            },
            _process: process,
        })
    }
}

/// Serves routes until the process is ended, after its address was announced.
pub async fn serve(router: Router, announce: impl FnOnce(SocketAddr) -> Result<()>) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    announce(listener.local_addr()?)?;
    let listener = axum::serve::ListenerExt::tap_io(listener, |connection| {
        connection.set_nodelay(true).ok();
    });
    axum::serve(listener, router).await?;
    Ok(())
}
