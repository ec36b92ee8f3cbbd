//! A plain copy through axum: the body becomes a file that is on the disk before the answer, and the file becomes a body.
//!
//! It makes no digest, has no database and no callers, and verifies nothing; the server does all of that beside the same writes
//! and reads, and fsyncs the folder as well.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use anyhow::Result;
use axum::{
    Router,
    body::Body,
    extract::{Path, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::put,
};
use futures::StreamExt;
use tokio::{fs::File, io::AsyncWriteExt};
use tokio_util::io::ReaderStream;

use crate::bare_server;

/// How much of a file is read at once; the server reads as much.
const READ_BYTES: usize = 1 << 20;

/// Serves files of a folder, named by numbers.
pub async fn serve(folder: PathBuf, announce: impl FnOnce(SocketAddr) -> Result<()>) -> Result<()> {
    let router = Router::new()
        .route("/files/{number}", put(upload).get(download))
        .with_state(Arc::new(folder));
    bare_server::serve(router, announce).await
}

/// What went wrong, for the one who reads the benchmark's message.
struct Failure(anyhow::Error);

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (StatusCode::INTERNAL_SERVER_ERROR, format!("{:#}", self.0)).into_response()
    }
}

async fn upload(
    State(folder): State<Arc<PathBuf>>,
    Path(number): Path<u32>,
    body: Body,
) -> Result<&'static str, Failure> {
    let mut file = File::create(folder.join(number.to_string())).await?;
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.next().await {
        file.write_all(&piece?).await?;
    }
    file.flush().await?;
    file.sync_all().await?;
    Ok("{}")
}

async fn download(State(folder): State<Arc<PathBuf>>, Path(number): Path<u32>) -> Result<Response, Failure> {
    let file = File::open(folder.join(number.to_string())).await?;
    let length = file.metadata().await?.len();
    let body = Body::from_stream(ReaderStream::with_capacity(file, READ_BYTES));
    Ok(([(header::CONTENT_LENGTH, length)], body).into_response())
}
