//! The two requests that a gateway mostly gets, answered without a router: its layers, boxes and notes of the matched path
//! would cost each of them more than what is left to do.

use std::{net::IpAddr, sync::Arc};

use axum::{body::Body, extract::Request, response::Response};
use futures::FutureExt as _;
use http::{Method, Request as HttpRequest};
use modelyard_auth::{
    Access,
    http::{admit, id_of_answer, return_id},
};
use modelyard_common::serve::Answering;

use crate::{
    client::Client,
    grpc::InferenceService,
    http::{Named, infer},
    memory::Counted,
    predict::Gateway,
};

/// A prediction over gRPC.
const MODEL_INFER: &str = "/inference.GRPCInferenceService/ModelInfer";

/// Answers predictions.
#[derive(Clone)]
pub struct Predictions {
    gateway: Arc<Gateway>,
    access: Access,
    calls: InferenceService,
}

/// What a prediction is asked of: over HTTP its path names it, over gRPC its message.
pub struct Asked(Option<Named>);

impl Predictions {
    pub(crate) const fn new(gateway: Arc<Gateway>, access: Access, calls: InferenceService) -> Self {
        Self { gateway, access, calls }
    }

    /// What a request asks for, if it asks for a prediction and its path is written plainly. Others are for the routers.
    pub fn asked(request: &Request, is_grpc: bool) -> Option<Asked> {
        if request.method() != Method::POST {
            return None;
        }
        let path = request.uri().path();
        if is_grpc {
            return (path == MODEL_INFER).then_some(Asked(None));
        }
        named(path).map(|named| Asked(Some(named)))
    }

    /// The answer to a request from somewhere that asks for this.
    pub fn answer(&self, asked: Asked, source: IpAddr, request: Request) -> Answering {
        let (access, source) = (self.access.clone(), Some(source));
        match asked.0 {
            Some(named) => infer(Arc::clone(&self.gateway), access, Ok(named), source, request).boxed(),
            None => call(access, self.calls.clone(), source, request).boxed(),
        }
    }
}

async fn call(access: Access, calls: InferenceService, source: Option<IpAddr>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let client = match admit(&access, &parts, source).await {
        Ok(caller) => Client::new(caller, None, &parts.headers),
        Err(refused) => return refused,
    };
    let id = id_of_answer(&parts.headers);
    // Held until it is answered.
    let share = Arc::new(calls.share());
    let body = Counted {
        body,
        share: Arc::clone(&share),
    };
    let response = calls.answer(client, HttpRequest::from_parts(parts, body)).await;
    let mut response = response.map(Body::new);
    return_id(id, &mut response);
    response
}

/// What the path of a prediction names, if it is one and no part of it is encoded.
fn named(path: &str) -> Option<Named> {
    if path.contains('%') {
        return None;
    }
    let (project, path) = match path.strip_prefix("/projects/") {
        Some(rest) => {
            let (project, _) = rest.split_once('/')?;
            (Some(project), rest.get(project.len()..)?)
        }
        None => (None, path),
    };
    let path = path.strip_prefix("/v2/models/")?.strip_suffix("/infer")?;
    let (model, version) = match path.split_once('/') {
        Some((model, rest)) => (model, Some(rest.strip_prefix("versions/")?)),
        None => (path, None),
    };
    let is_name = |name: &str| !name.is_empty() && !name.contains('/');
    let are_names = [project, Some(model), version].into_iter().flatten().all(is_name);
    are_names.then(|| Named {
        project: project.map(str::to_owned),
        model: model.to_owned(),
        version: version.map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_of_a_prediction_names_what_is_asked() {
        let read = |path| named(path).map(|named| (named.project, named.model, named.version));
        let name = |name: &str| name.to_owned();
        assert_eq!(read("/v2/models/m/infer"), Some((None, name("m"), None)));
        assert_eq!(
            read("/v2/models/m/versions/3/infer"),
            Some((None, name("m"), Some(name("3"))))
        );
        assert_eq!(
            read("/projects/p/v2/models/m/infer"),
            Some((Some(name("p")), name("m"), None))
        );
        assert_eq!(
            read("/projects/p/v2/models/infer/versions/1/infer"),
            Some((Some(name("p")), name("infer"), Some(name("1"))))
        );
        for other in [
            "/v2/models/m",
            "/v2/models//infer",
            "/v2/models/infer",
            "/v2/models/m/infer/",
            "/v2/models/m/versions/infer",
            "/v2/models/m/versions//infer",
            "/v2/models/m/versions/1/2/infer",
            "/v2/models/a%2Fb/infer",
            "/projects//v2/models/m/infer",
            "/projects/p/q/v2/models/m/infer",
            "/projects/v2/models/m/infer",
            "/projects/p",
            "/x/v2/models/m/infer",
        ] {
            assert_eq!(read(other), None, "{other}");
        }
    }
}
