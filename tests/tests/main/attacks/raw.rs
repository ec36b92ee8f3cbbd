//! Requests that no polite client sends, and what the system tells of a server.

use std::{fmt::Write as _, fs, net::SocketAddr, path::Path};

use anyhow::{Context, Result};
use modelyard_testkit::wait;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::permissions::installation::PATIENCE;

/// Sends a request as it is written and gives the status of the answer and all that came.
pub async fn send(url: &str, request: &[u8]) -> Result<(u16, String)> {
    let address: SocketAddr = url.trim_start_matches("http://").parse()?;
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(request).await?;
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer))
        .await
        .context("the server neither answers nor closes")??;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.with_context(|| format!("no HTTP: {answer}"))?, answer))
}

/// A request by hand, with a body of JSON where there is one.
pub fn request(start: &str, headers: &[(&str, &str)], body: &str) -> Vec<u8> {
    let mut text = format!("{start} HTTP/1.1\r\nConnection: close\r\n");
    for (name, value) in headers {
        let _ = write!(text, "{name}: {value}\r\n");
    }
    if !body.is_empty() {
        let _ = write!(
            text,
            "Content-Type: application/json\r\nContent-Length: {}\r\n",
            body.len()
        );
    }
    text.push_str("\r\n");
    text.push_str(body);
    text.into_bytes()
}

/// A number of bytes in `/proc/PID/status`.
pub fn memory(data_dir: &Path, key: &str) -> Result<u64> {
    let addresses: Value = serde_json::from_slice(&fs::read(data_dir.join("addresses.json"))?)?;
    let process = addresses.get("pid").context("no pid")?;
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    let kib = line.and_then(|line| line.trim_start_matches(':').split_whitespace().next());
    Ok(kib.with_context(|| format!("no {key}"))?.parse::<u64>()? << 10)
}

/// What a token of this body must end with: CRC-32 in base 62.
pub fn checksum(body: &str) -> String {
    const DIGITS: &[u8] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut crc = u32::MAX;
    for byte in body.bytes() {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
        }
    }
    let mut rest = !crc as usize;
    let mut digits: Vec<u8> = Vec::new();
    for _ in 0..6 {
        digits.extend(DIGITS.get(rest % DIGITS.len()));
        rest /= DIGITS.len();
    }
    digits.iter().rev().map(|digit| char::from(*digit)).collect()
}

/// What went wrong: all of it, not the first alone.
#[derive(Default)]
pub struct Findings(Vec<String>);

impl Findings {
    /// Notes what is not as it must be.
    pub fn check(&mut self, is_right: bool, what: impl Into<String>) {
        if !is_right {
            self.0.push(what.into().chars().take(600).collect());
        }
    }

    /// Fails with everything that was found.
    pub fn finish(self) -> Result<()> {
        anyhow::ensure!(
            self.0.is_empty(),
            "{} findings:\n- {}",
            self.0.len(),
            self.0.join("\n- ")
        );
        Ok(())
    }
}

/// Waits until a question has an answer.
pub async fn eventually<F: Future<Output = Option<()>>>(what: &str, question: impl FnMut() -> F) {
    wait::until(what, PATIENCE, question).await;
}
