//! The memory of requests under way, bounded for all of them together: each for itself may be large.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use axum::body::Body;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use modelyard_common::error::to_status;

use crate::error::{Error, Result};

/// What all requests have together.
#[derive(Debug)]
pub(crate) struct RequestMemory {
    limit_bytes: u64,
    taken: AtomicU64,
}

impl RequestMemory {
    pub(crate) fn new(limit_bytes: u64) -> Arc<Self> {
        Arc::new(Self {
            limit_bytes,
            taken: AtomicU64::new(0),
        })
    }

    /// A request's share, which is nothing to begin with.
    pub(crate) fn share(self: &Arc<Self>) -> Share {
        Share {
            memory: Arc::clone(self),
            bytes: AtomicU64::new(0),
        }
    }
}

/// What a request has, until this is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    memory: Arc<RequestMemory>,
    bytes: AtomicU64,
}

impl Share {
    /// Takes more.
    ///
    /// # Errors
    /// `MemoryFull` if all requests would have more than they may.
    pub(crate) fn add(&self, bytes: usize) -> Result<()> {
        let bytes = bytes as u64;
        let before = self.memory.taken.fetch_add(bytes, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let limit_bytes = self.memory.limit_bytes;
        if before.saturating_add(bytes) > limit_bytes {
            return Err(Error::MemoryFull { limit_bytes });
        }
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.memory.taken.fetch_sub(*self.bytes.get_mut(), Ordering::Relaxed);
    }
}

/// A body whose bytes are counted as they come.
pub(crate) struct Counted {
    pub body: Body,
    pub share: Arc<Share>,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let Some(data) = frame.data_ref()
            && let Err(error) = self.share.add(data.len())
        {
            return Poll::Ready(Some(Err(axum::Error::new(to_status(&error)))));
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use tonic::{Code, Status};

    use super::*;

    #[test]
    fn requests_have_no_more_together_than_they_may_and_give_it_back() {
        let memory = RequestMemory::new(100);
        let (one, other) = (memory.share(), memory.share());
        one.add(60).unwrap();
        other.add(40).unwrap();
        let error = other.add(1).unwrap_err().to_string();
        assert!(error.contains("100 bytes"), "{error}");
        drop(other);
        one.add(40).unwrap();
        drop(one);
        assert_eq!(memory.taken.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn a_body_that_finds_no_room_breaks_off_with_the_reason_for_a_call() {
        let memory = RequestMemory::new(10);
        let mut counted = Counted {
            body: Body::from("more than there is room for"),
            share: Arc::new(memory.share()),
        };
        let broken = counted.frame().await.unwrap().unwrap_err();
        let status = Status::from_error(Box::new(broken));
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        assert!(status.message().contains("10 bytes"), "{status:?}");
    }
}
