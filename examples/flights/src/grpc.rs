//! gRPC with as little work as a client can do: frames of HTTP/2 by hand, for one unary method and one call at a time.
//!
//! A whole client would take more of the machine than the servers that it loads.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::wire::{Stream, connect};

/// What begins a connection.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The method that is called.
const PATH: &[u8] = b"/inference.GRPCInferenceService/ModelInfer";
/// The largest frame that every peer takes.
const MAX_FRAME_BYTES: usize = 16 << 10;
/// The bytes before a frame's content, and where the number of its stream is among them.
const FRAME_HEAD_BYTES: usize = 9;
const STREAM_OFFSET: usize = 5;
/// The bytes before a message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;
/// As large as a window can be, and as it is at first.
const MAX_WINDOW: u32 = (1 << 31) - 1;
const FIRST_WINDOW: u32 = (1 << 16) - 1;

/// Kinds of frames.
mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const RESET: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GO_AWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
}

/// Flags of frames: the same bit means another thing for other kinds.
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// A connection that calls with the same message again and again.
pub struct Connection {
    stream: Stream,
    /// The frames of a call.
    call: Vec<u8>,
    /// Where the call's frames have the number of their stream.
    places: [usize; 2],
    /// The stream of the next call.
    next: u32,
    /// What a frame brought.
    content: Vec<u8>,
}

/// What is known of a frame before its content.
struct FrameHead {
    kind: u8,
    flags: u8,
    stream: u32,
}

impl Connection {
    /// Connects to a server.
    pub async fn open(address: SocketAddr, message: &[u8]) -> Result<Self> {
        let headers = frame(kind::HEADERS, END_HEADERS, &header_block(address));
        let mut prefixed = vec![0];
        prefixed.extend(u32::try_from(message.len())?.to_be_bytes());
        prefixed.extend(message);
        ensure!(
            prefixed.len() <= MAX_FRAME_BYTES,
            "a message of {} bytes takes several frames",
            message.len()
        );
        let places = [STREAM_OFFSET, headers.len() + STREAM_OFFSET];
        let call = [headers, frame(kind::DATA, END_STREAM, &prefixed)].concat();
        let mut stream = connect(address).await?;
        stream.get_mut().write_all(&greeting()).await?;
        Ok(Self {
            stream,
            call,
            places,
            next: 1,
            content: Vec::new(),
        })
    }

    /// Calls; whether a message came back. A refusal has none.
    pub async fn ask(&mut self) -> Result<bool> {
        let stream = self.next;
        for place in self.places {
            let number = self.call.get_mut(place..place + size_of::<u32>());
            number
                .context("the frames of the call are too short")?
                .copy_from_slice(&stream.to_be_bytes());
        }
        self.next += 2;
        self.stream.get_mut().write_all(&self.call).await?;
        let mut answered = 0;
        loop {
            let head = self.read().await?;
            match head.kind {
                kind::GO_AWAY => bail!("the server closes the connection"),
                kind::RESET => bail!("the server broke off the call"),
                kind::DATA if head.stream == stream => answered += self.content.len(),
                kind::SETTINGS | kind::PING if head.flags & ACK == 0 => self.acknowledge(head.kind).await?,
                _ => {}
            }
            if matches!(head.kind, kind::DATA | kind::HEADERS) && head.stream == stream && head.flags & END_STREAM != 0
            {
                return Ok(answered > PREFIX_BYTES);
            }
        }
    }

    /// Reads a frame; what it brings is in `content` then.
    async fn read(&mut self) -> Result<FrameHead> {
        let mut head = [0; FRAME_HEAD_BYTES];
        self.stream.read_exact(&mut head).await?;
        let [a, b, c, kind, flags, stream @ ..] = head;
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        ensure!(length <= MAX_FRAME_BYTES, "a frame of {length} bytes is too large");
        self.content.resize(length, 0);
        self.stream.read_exact(&mut self.content).await?;
        Ok(FrameHead {
            kind,
            flags,
            stream: u32::from_be_bytes(stream) & MAX_WINDOW,
        })
    }

    async fn acknowledge(&mut self, kind: u8) -> Result<()> {
        let content = if kind == kind::PING {
            self.content.as_slice()
        } else {
            &[]
        };
        let answer = frame(kind, ACK, content);
        Ok(self.stream.get_mut().write_all(&answer).await?)
    }
}

/// The preface, no table of headers that answers could refer to, and windows that are never too small.
fn greeting() -> Vec<u8> {
    const HEADER_TABLE_SIZE: u16 = 1;
    const INITIAL_WINDOW_SIZE: u16 = 4;
    let mut settings = Vec::new();
    for (name, value) in [(HEADER_TABLE_SIZE, 0), (INITIAL_WINDOW_SIZE, MAX_WINDOW)] {
        settings.extend(name.to_be_bytes());
        settings.extend(value.to_be_bytes());
    }
    let wider = (MAX_WINDOW - FIRST_WINDOW).to_be_bytes();
    [
        PREFACE.to_vec(),
        frame(kind::SETTINGS, 0, &settings),
        frame(kind::WINDOW_UPDATE, 0, &wider),
    ]
    .concat()
}

/// A frame of the stream 0.
fn frame(kind: u8, flags: u8, content: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = (content.len() as u32).to_be_bytes();
    let mut frame = vec![a, b, c, kind, flags, 0, 0, 0, 0];
    frame.extend_from_slice(content);
    frame
}

/// The headers of a call: whole ones of the protocol's own table, names of it with values, and one that it lacks.
fn header_block(address: SocketAddr) -> Vec<u8> {
    const METHOD_POST: u8 = 0x83;
    const SCHEME_HTTP: u8 = 0x86;
    const NAME_PATH: &[u8] = &[0x04];
    const NAME_AUTHORITY: &[u8] = &[0x01];
    const NAME_CONTENT_TYPE: &[u8] = &[0x0f, 0x10];
    const NAME_TE: &[u8] = &[0x00, 2, b't', b'e'];
    let authority = address.to_string();
    let mut block = vec![METHOD_POST, SCHEME_HTTP];
    let named: [(&[u8], &[u8]); 4] = [
        (NAME_PATH, PATH),
        (NAME_AUTHORITY, authority.as_bytes()),
        (NAME_CONTENT_TYPE, b"application/grpc"),
        (NAME_TE, b"trailers"),
    ];
    for (name, value) in named {
        block.extend_from_slice(name);
        // None is so long that its length takes a second byte.
        block.push(value.len() as u8);
        block.extend_from_slice(value);
    }
    block
}
