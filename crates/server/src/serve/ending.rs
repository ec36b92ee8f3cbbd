//! Calls over gRPC that end with the server even if nobody ends them: streams and watches have no end of their own.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::{body::Body, extract::Request, response::Response};
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use modelyard_gateway::MODEL_STREAM_INFER;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::Status;

/// Calls that go on until somebody ends them. All others are answered whole.
const ENDLESS: [&str; 4] = [
    MODEL_STREAM_INFER,
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// Whether a call has no end of its own.
pub fn is_endless(path: &str) -> bool {
    ENDLESS.contains(&path)
}

/// The answer to a call, which ends with `UNAVAILABLE` once the server stops, if it has not ended before.
pub fn answer_until(soft: &CancellationToken, response: Response) -> Response {
    let stopping = Status::unavailable("the server is stopping: call again, another one if there are several");
    response.map(|body| Ending::body(body, soft, Some(stopping)))
}

/// A call that says no more once the server stops: else whoever reads it would hold its connection.
pub fn request_until(soft: &CancellationToken, request: Request) -> Request {
    request.map(|body| Ending::body(body, soft, None))
}

struct Ending {
    body: Body,
    stopped: Pin<Box<WaitForCancellationFutureOwned>>,
    /// What is said at the end.
    last: Option<Status>,
    is_over: bool,
}

impl Ending {
    fn body(body: Body, soft: &CancellationToken, last: Option<Status>) -> Body {
        if body.is_end_stream() {
            return body;
        }
        Body::new(Self {
            body,
            stopped: Box::pin(soft.clone().cancelled_owned()),
            last,
            is_over: false,
        })
    }
}

impl HttpBody for Ending {
    type Data = <Body as HttpBody>::Data;
    type Error = <Body as HttpBody>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        // What the call itself has to say comes first.
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            return Poll::Ready(frame);
        }
        ready!(self.stopped.as_mut().poll(context));
        self.is_over = true;
        let trailers = self.last.take().and_then(|last| {
            let mut trailers = HeaderMap::new();
            last.add_header(&mut trailers).ok().map(|()| trailers)
        });
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.is_over || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures::{FutureExt as _, StreamExt as _, stream};
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn an_answer_without_an_end_ends_with_the_server() {
        let soft = CancellationToken::new();
        let first = stream::iter([Ok::<_, Infallible>("first")]);
        let endless = Response::new(Body::from_stream(first.chain(stream::pending())));
        let mut body = answer_until(&soft, endless).into_body();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "first");
        assert!(body.frame().now_or_never().is_none(), "nothing more comes");
        soft.cancel();
        let trailers = body.frame().await.unwrap().unwrap().into_trailers().unwrap();
        assert_eq!(trailers["grpc-status"], "14");
        assert!(body.frame().await.is_none());
        let endless = Request::new(Body::from_stream(stream::pending::<Result<&str, Infallible>>()));
        assert!(request_until(&soft, endless).into_body().frame().await.is_none());
        // What is there already is answered whole.
        let body = answer_until(&soft, Response::new(Body::from("whole"))).into_body();
        assert_eq!(body.collect().await.unwrap().to_bytes(), "whole");
    }
}
