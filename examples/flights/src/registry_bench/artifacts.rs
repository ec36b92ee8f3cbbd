//! Artifacts through the server, beside a plain copy through axum on the same disk.

use std::{fs, io::Write as _, net::SocketAddr, path::Path};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::Instant,
};

use crate::{
    bare_server::BareServer,
    figures::Ratio,
    wire::{Stream, connect, read_answer, read_head},
};

/// The size of each file.
pub const FILE_BYTES: usize = 64 << 20;
/// How many files go through each of both.
const ROUNDS: u32 = 9;
/// Where the server takes artifacts.
const ARTIFACTS: &str = "/api/2.0/mlflow-artifacts/artifacts/bench";
/// What is read of an answer at once.
const READ_BYTES: usize = 256 << 10;

/// The server's rate over that of the plain copy, in both directions.
#[derive(Debug, Serialize)]
pub struct Copies {
    /// To the server, until it says that it has the file.
    pub upload: Ratio,
    /// From the server.
    pub download: Ratio,
}

/// One file there and back, in seconds.
struct Turn {
    upload: f64,
    download: f64,
}

/// Sends files to the server and to a plain copy through axum in turns, and gets them back.
pub async fn compare(address: SocketAddr, folder: &Path) -> Result<Copies> {
    let folder = folder.join("plain-copies");
    fs::create_dir(&folder)?;
    let shown = folder.to_str().context("the folder's path is not UTF-8")?;
    let bare = BareServer::start(&["bare-files", shown]).await?;
    let mut content = vec![0; FILE_BYTES];
    rand::fill(content.as_mut_slice());
    let (mut uploads, mut downloads) = (Vec::new(), Vec::new());
    // The first round warms both up and does not count.
    for round in 0..=ROUNDS {
        // Each file is another one: the server stores equal content once.
        if let Some(start) = content.first_chunk_mut() {
            *start = round.to_le_bytes();
        }
        let ours = format!("{ARTIFACTS}/{round}.bin");
        let theirs = format!("/files/{round}");
        // Who comes second may find the disk in another state: they change places.
        let (ours, theirs) = if round % 2 == 0 {
            let ours = there_and_back(address, &ours, &content, &folder).await?;
            (
                ours,
                there_and_back(bare.subject.address, &theirs, &content, &folder).await?,
            )
        } else {
            let theirs = there_and_back(bare.subject.address, &theirs, &content, &folder).await?;
            (there_and_back(address, &ours, &content, &folder).await?, theirs)
        };
        fs::remove_file(folder.join(round.to_string()))?;
        if round > 0 {
            uploads.push(theirs.upload / ours.upload);
            downloads.push(theirs.download / ours.download);
        }
    }
    Ok(Copies {
        upload: Ratio::of(uploads),
        download: Ratio::of(downloads),
    })
}

/// Leaves memory for a file that was in use just now: that costs a virtual machine less than memory that it has to get first, and
/// whoever came first would have it.
fn free_memory(folder: &Path, content: &[u8]) -> Result<()> {
    let path = folder.join("scratch");
    let mut file = fs::File::create(&path)?;
    for _ in 0..2 {
        file.write_all(content)?;
    }
    file.sync_all()?;
    Ok(fs::remove_file(&path)?)
}

async fn there_and_back(address: SocketAddr, path: &str, content: &[u8], folder: &Path) -> Result<Turn> {
    free_memory(folder, content)?;
    let mut stream = connect(address).await?;
    let started = Instant::now();
    upload(&mut stream, path, content).await?;
    let upload = started.elapsed().as_secs_f64();
    let started = Instant::now();
    download(&mut stream, path, content).await?;
    Ok(Turn {
        upload,
        download: started.elapsed().as_secs_f64(),
    })
}

async fn upload(stream: &mut Stream, path: &str, content: &[u8]) -> Result<()> {
    let head = format!(
        "PUT {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {}\r\n\r\n",
        content.len()
    );
    stream.get_mut().write_all(head.as_bytes()).await?;
    stream.get_mut().write_all(content).await?;
    let (status, answer) = read_answer(stream).await?;
    ensure!(
        status == 200,
        "PUT {path}: {status} {}",
        String::from_utf8_lossy(&answer)
    );
    Ok(())
}

/// Reads a file and compares it with what was sent.
async fn download(stream: &mut Stream, path: &str, content: &[u8]) -> Result<()> {
    let head = format!("GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n");
    stream.get_mut().write_all(head.as_bytes()).await?;
    let head = read_head(stream).await?;
    ensure!(head.status == 200, "GET {path}: {}", head.status);
    ensure!(
        head.length == content.len(),
        "GET {path}: {} bytes instead of {}",
        head.length,
        content.len()
    );
    let mut buffer = vec![0; READ_BYTES];
    let mut rest = content;
    while !rest.is_empty() {
        let wanted = rest.len().min(READ_BYTES);
        let space = buffer.get_mut(..wanted).context("the buffer is too small")?;
        let read = stream.read(space).await?;
        ensure!(read > 0, "GET {path}: the answer broke off");
        let (expected, later) = rest.split_at_checked(read).context("more was read than wanted")?;
        ensure!(
            space.get(..read) == Some(expected),
            "GET {path}: the content is another one"
        );
        rest = later;
    }
    Ok(())
}
