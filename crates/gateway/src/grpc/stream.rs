//! A stream of requests, each answered alone and in its turn.

use std::{
    borrow::Cow,
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{
    FutureExt as _, Stream, StreamExt as _, future,
    stream::{self, BoxStream},
};
use modelyard_auth::http::Again;
use modelyard_common::error::{ErrorKind, Fault as _, to_status};
use modelyard_proto::inference::{
    InferParameter, ModelInferRequest, ModelInferResponse, ModelStreamInferResponse, infer_parameter::ParameterChoice,
};
use prost::Message as _;
use tokio::time::sleep;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::{Status, Streaming, metadata::MetadataMap};

use super::{InferenceService, choice};
use crate::{
    client::Client,
    predict::{MAX_REQUEST_ID_BYTES, long_id},
};

/// How many requests of one stream are answered at a time; the next is read when one of them has been sent.
const MAX_AT_ONCE: usize = 32;

/// How often it is asked whether a stream on which nothing comes may stay.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// With it a client asks that the last answer to each request says that it is the last: there is one each.
const ASKS_FINAL: &str = "triton_enable_empty_final_response";
const IS_FINAL: &str = "triton_final_response";

/// Who sends what comes.
pub(super) struct Sender {
    pub again: Again,
    pub project: Cow<'static, str>,
    pub metadata: MetadataMap,
}

/// Answers what comes. A request that fails is answered with its error; the stream ends with the client's, with the server, when
/// what comes is no request, or when nobody is known any more who sends it.
pub(super) fn infer(
    service: InferenceService,
    sender: Sender,
    requests: Streaming<ModelInferRequest>,
) -> BoxStream<'static, Result<ModelStreamInferResponse, Status>> {
    let sender = Arc::new(sender);
    let ending = ending(Arc::clone(&sender), service.gateway.soft.clone());
    let answers = until(requests, ending).map(move |request| {
        let (service, sender) = (service.clone(), Arc::clone(&sender));
        async move {
            let request = request?;
            // In a task of its own: a client that does not read must not hold up others whose work is done together.
            let requests = service.gateway.requests.clone();
            let answering = requests.spawn(async move { answer(&service, &sender, request).await });
            let answered = AbortOnDropHandle::new(answering).await;
            answered.map_err(|_| Status::internal("the answer broke off: the server's log has the details"))?
        }
    });
    let mut has_failed = false;
    answers
        .buffered(MAX_AT_ONCE)
        .take_while(move |answer| {
            // What comes after a broken message cannot be read.
            let goes_on = !has_failed;
            has_failed |= answer.is_err();
            future::ready(goes_on)
        })
        .boxed()
}

/// Waits until nothing more is taken, and says why: the server stops, or nobody is known any more who opened the stream.
async fn ending(sender: Arc<Sender>, soft: CancellationToken) -> Status {
    loop {
        tokio::select! {
            () = soft.cancelled() => {
                return Status::unavailable(
                    "the gateway is stopping: open the stream again, at another one if there are several",
                );
            }
            () = sleep(CHECK_INTERVAL) => {}
        }
        match sender.again.caller().await {
            Err(error) if error.kind() == ErrorKind::Unauthenticated => return to_status(&error),
            _ => {}
        }
    }
}

/// What comes until the end, which is the last thing that comes.
fn until<T: Send>(
    requests: impl Stream<Item = Result<T, Status>> + Send,
    ending: impl Future<Output = Status> + Send,
) -> impl Stream<Item = Result<T, Status>> + Send {
    let ending = ending.shared();
    let ended = ending.clone();
    let last = stream::once(async move { ended.peek().cloned().map(Err) });
    requests.take_until(ending).chain(last.filter_map(future::ready))
}

async fn answer(
    service: &InferenceService,
    sender: &Sender,
    request: ModelInferRequest,
) -> Result<ModelStreamInferResponse, Status> {
    let arrived = Instant::now();
    if request.id.len() > MAX_REQUEST_ID_BYTES {
        // Not sent back: answers wait for those before them, and what is as long as a message would be held meanwhile.
        return Ok(failed(String::new(), &to_status(&long_id(&request.id))));
    }
    let id = request.id.clone();
    let share = service.share();
    if let Err(full) = share.add(request.encoded_len()) {
        return Ok(failed(id, &to_status(&full)));
    }
    let asks_final = matches!(
        choice(&request.parameters, ASKS_FINAL),
        Some(ParameterChoice::BoolParam(true))
    );
    let client = match Client::again(&sender.again, sender.project.clone()).await {
        Ok(client) => client,
        Err(error) if error.kind() == ErrorKind::Unauthenticated => return Err(to_status(&error)),
        Err(error) => return Ok(failed(id, &to_status(&error))),
    };
    let answered = service.infer(&client, request, &sender.metadata, None, arrived).await;
    Ok(match answered {
        Ok(mut response) => {
            if asks_final {
                let last = InferParameter {
                    parameter_choice: Some(ParameterChoice::BoolParam(true)),
                };
                response.parameters.insert(IS_FINAL.to_owned(), last);
            }
            ModelStreamInferResponse {
                error_message: String::new(),
                infer_response: Some(response),
            }
        }
        Err(error) => failed(id, &to_status(&error)),
    })
}

/// The answer to a request that failed. Its id tells which one it was.
fn failed(id: String, status: &Status) -> ModelStreamInferResponse {
    ModelStreamInferResponse {
        error_message: status.message().to_owned(),
        infer_response: Some(ModelInferResponse {
            id,
            ..ModelInferResponse::default()
        }),
    }
}
