//! A stream of requests, each answered alone and in its turn.

use std::{sync::Arc, time::Instant};

use futures::{StreamExt as _, future, stream::BoxStream};
use modelyard_auth::http::Again;
use modelyard_proto::inference::{
    InferParameter, ModelInferRequest, ModelInferResponse, ModelStreamInferResponse, infer_parameter::ParameterChoice,
};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Status, Streaming, metadata::MetadataMap};

use super::{InferenceService, choice};
use crate::client::Client;

/// How many requests of one stream are answered at a time; the next is read when one of them has been sent.
const MAX_AT_ONCE: usize = 32;

/// With it a client asks that the last answer to each request says that it is the last: there is one each.
const ASKS_FINAL: &str = "triton_enable_empty_final_response";
const IS_FINAL: &str = "triton_final_response";

/// Who sends what comes.
pub(super) struct Sender {
    /// As of the stream's beginning.
    pub client: Client,
    pub again: Again,
    pub metadata: MetadataMap,
}

/// Answers what comes. A request that fails is answered with its error; the stream ends only with the client's, or when
/// what comes is no request.
pub(super) fn infer(
    service: InferenceService,
    sender: Sender,
    requests: Streaming<ModelInferRequest>,
) -> BoxStream<'static, Result<ModelStreamInferResponse, Status>> {
    let sender = Arc::new(sender);
    let answers = requests.map(move |request| {
        let (service, sender) = (service.clone(), Arc::clone(&sender));
        async move {
            let request = request?;
            // In a task of its own: a client that does not read must not hold up others whose work is done together.
            let requests = service.gateway.requests.clone();
            let answering = requests.spawn(async move { answer(&service, &sender, request).await });
            let answered = AbortOnDropHandle::new(answering).await;
            answered.map_err(|_| Status::internal("the answer broke off: the server's log has the details"))
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

async fn answer(service: &InferenceService, sender: &Sender, request: ModelInferRequest) -> ModelStreamInferResponse {
    let arrived = Instant::now();
    let id = request.id.clone();
    let asks_final = matches!(
        choice(&request.parameters, ASKS_FINAL),
        Some(ParameterChoice::BoolParam(true))
    );
    let answered = async {
        let client = sender.client.again(&sender.again).await?;
        service.infer(&client, request, &sender.metadata, None, arrived).await
    };
    match answered.await {
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
        Err(error) => ModelStreamInferResponse {
            error_message: error.to_string(),
            // Tells which request it was.
            infer_response: Some(ModelInferResponse {
                id,
                ..ModelInferResponse::default()
            }),
        },
    }
}
