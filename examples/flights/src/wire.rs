//! HTTP with as little work as a client can do, so that the benchmarks load servers and not themselves.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

/// The largest answer that is read.
const MAX_ANSWER_BYTES: usize = 16 << 20;

/// What is read at once of an answer that nobody looks at.
const READ_BYTES: usize = 64 << 10;

/// A connection that is kept.
pub type Stream = BufReader<TcpStream>;

/// Connects to a server.
pub async fn connect(address: SocketAddr) -> Result<Stream> {
    let stream = TcpStream::connect(address)
        .await
        .with_context(|| format!("{address} does not answer"))?;
    stream.set_nodelay(true)?;
    Ok(BufReader::new(stream))
}

/// The bytes of a request with a body, and with further headers if there are any.
pub fn post(path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut request = format!(
        "POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {}\r\n",
        body.len()
    );
    for &(name, value) in headers {
        request.extend([name, ": ", value, "\r\n"]);
    }
    request.push_str("\r\n");
    let mut request = request.into_bytes();
    request.extend_from_slice(body);
    request
}

/// An answer that was read whole.
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// How many of its bytes are JSON, where tensors follow them.
    pub header_bytes: Option<usize>,
    /// The body.
    pub body: Vec<u8>,
}

/// One request over a connection of its own; any status but 200 is an error.
pub async fn exchange(address: SocketAddr, request: &[u8]) -> Result<Answer> {
    let mut stream = connect(address).await?;
    stream.get_mut().write_all(request).await?;
    let answer = read_whole(&mut stream).await?;
    if answer.status != 200 {
        bail!(
            "the request is refused with status {}: {}",
            answer.status,
            String::from_utf8_lossy(&answer.body)
        );
    }
    Ok(answer)
}

/// Reads an answer.
pub async fn read_answer(stream: &mut Stream) -> Result<(u16, Vec<u8>)> {
    let answer = read_whole(stream).await?;
    Ok((answer.status, answer.body))
}

async fn read_whole(stream: &mut Stream) -> Result<Answer> {
    let head = read_head(stream).await?;
    ensure!(
        head.length <= MAX_ANSWER_BYTES,
        "the answer of {} bytes is larger than expected",
        head.length
    );
    let mut body = vec![0; head.length];
    stream.read_exact(&mut body).await?;
    Ok(Answer {
        status: head.status,
        header_bytes: head.header_bytes,
        body,
    })
}

/// A status line and headers, as far as they matter.
pub struct Head {
    /// The HTTP status.
    pub status: u16,
    /// The length of the body.
    pub length: usize,
    /// How many bytes of the body are JSON, where tensors follow them.
    pub header_bytes: Option<usize>,
}

/// Reads a status line and headers.
pub async fn read_head(stream: &mut Stream) -> Result<Head> {
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let status = line
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .context("the answer is not HTTP")?;
    let mut head = Head {
        status,
        length: 0,
        header_bytes: None,
    };
    loop {
        line.clear();
        stream.read_line(&mut line).await?;
        let header = line.trim_end();
        if header.is_empty() {
            return Ok(head);
        }
        let Some((name, value)) = header.split_once(':') else {
            continue;
        };
        let number = || value.trim().parse().context("the length of the answer is no number");
        if name.eq_ignore_ascii_case("content-length") {
            head.length = number()?;
        } else if name.eq_ignore_ascii_case("inference-header-content-length") {
            head.header_bytes = Some(number()?);
        }
    }
}

/// A connection on which answers are not looked at.
pub struct Connection {
    stream: Stream,
    /// Where answers go.
    buffer: Vec<u8>,
}

impl Connection {
    /// Connects to a server.
    pub async fn open(address: SocketAddr) -> Result<Self> {
        Ok(Self {
            stream: connect(address).await?,
            buffer: vec![0; READ_BYTES],
        })
    }

    /// Sends a request and gives the status of its answer.
    pub async fn ask(&mut self, request: &[u8]) -> Result<u16> {
        self.stream.get_mut().write_all(request).await?;
        let head = read_head(&mut self.stream).await?;
        let mut left = head.length;
        while left > 0 {
            let most = left.min(READ_BYTES);
            let space = self.buffer.get_mut(..most).context("the buffer is too small")?;
            let read = self.stream.read(space).await?;
            ensure!(read > 0, "the answer broke off");
            left -= read;
        }
        Ok(head.status)
    }
}
